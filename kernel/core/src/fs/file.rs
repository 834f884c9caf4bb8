//! Open file descriptions: [`File`], and what implements one, [`FileOps`].
//!
//! A `File` is what `open` makes and descriptors share: status flags, position, the path it was opened by and the
//! object behind it. Regular files, devices, pipes, sockets and anonymous descriptors differ only in their `FileOps`.
//! Every `FileOps` method has a default that gives the errno Linux gives for a file without that operation.
//!
//! Locking: `flags` is atomic; `pos` is a sleeping mutex held over a whole positioned read or write, as POSIX asks for
//! descriptors that share a position. Lock order: `File::pos` → inode lock → page cache object.
//!
//! References: open(2), `include/linux/fs.h` (`struct file`, `struct file_operations`).

use alloc::{
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{
    any::Any,
    fmt,
    sync::atomic::{AtomicU32, Ordering},
};

use bitflags::bitflags;
use linux_uapi::{raw::general as uapi, stat::Stat};
use ursa_hal::sync::SpinLock;

use super::{
    inode::Inode,
    io::{Sink, Source},
    lease, lock,
    notify::{self, mask},
    owner::FileOwner,
    path::Path,
};
use crate::{
    Errno, Result,
    mm::{MapRequest, MemoryObject},
    poll::{PollEvents, PollTable},
    wait::Mutex,
};

bitflags! {
    /// What may be done through an open file (Linux's `FMODE_*`), fixed when it is opened.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FileMode: u32 {
        /// Reading is allowed.
        const READ = 1;
        /// Writing is allowed.
        const WRITE = 2;
        /// `lseek`, `pread` and `pwrite` work.
        const SEEK = 4;
        /// Opened with `O_PATH`: a name only.
        const PATH = 8;
        /// No position at all: `read` and `write` need no position lock.
        const STREAM = 16;
        /// Holds write access to its inode (counted; see `Inode::get_write_access`).
        const WRITER = 32;
        /// Opening it made the file (`F_CREATED_QUERY`).
        const CREATED = 64;
        /// Counts among its inode's readers.
        const READER = 128;
    }
}

/// What `F_SETFL` may change.
pub const SETFL_MASK: u32 = uapi::O_APPEND | uapi::O_NONBLOCK | uapi::FASYNC | uapi::O_DIRECT | uapi::O_NOATIME;

/// Receives directory entries from [`FileOps::readdir`].
pub trait DirSink {
    /// Takes an entry; `next` is the position after it. Returns false when it has no room: stop, do not advance.
    fn emit(&mut self, name: &[u8], ino: u64, kind: u8, next: u64) -> bool;
}

/// The behaviour of an open file.
///
/// `f` is the open file description; streams ignore `pos`. Methods may sleep.
#[expect(unused_variables, reason = "the defaults refuse without looking")]
pub trait FileOps: Any + Send + Sync {
    /// Whether it is a directory: [`FileOps::readdir`] and [`FileOps::seek`] are what it has.
    fn is_directory(&self) -> bool {
        false
    }
    /// Reads at `pos`. The caller moves the position by the result.
    fn read(&self, f: &File, dst: &mut Sink<'_>, pos: u64) -> Result<usize> {
        Err(if self.is_directory() { Errno::EISDIR } else { Errno::EINVAL })
    }
    /// Writes at `pos` (`O_APPEND` files choose the position themselves: see [`FileOps::append`]).
    fn write(&self, f: &File, src: &mut Source<'_>, pos: u64) -> Result<usize> {
        Err(Errno::EINVAL)
    }
    /// Writes at the end, atomically against other appenders; the new position and the count.
    fn append(&self, f: &File, src: &mut Source<'_>) -> Result<(u64, usize)> {
        let n = self.write(f, src, 0)?;
        Ok((n as u64, n))
    }
    /// Whether reads and writes have no position (pipe, socket, tty): `lseek` gives `ESPIPE`.
    fn is_stream(&self) -> bool {
        !self.is_directory()
    }
    /// Whether the object can be read and written with positions although `lseek` is refused or special.
    fn is_seekable(&self) -> bool {
        !self.is_stream()
    }
    /// Readiness; see [`crate::poll`]. Register first, then look.
    fn poll(&self, f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        PollEvents::DEFAULT
    }
    /// Whether readiness can change, so that epoll takes the file (`EPERM` otherwise).
    fn can_poll(&self) -> bool {
        !self.is_directory()
    }
    /// `ioctl(2)`; generic commands (`FIONBIO`, `FIOCLEX`…) are handled before.
    fn ioctl(&self, f: &File, cmd: u32, arg: usize) -> Result<i64> {
        Err(Errno::ENOTTY)
    }
    /// Fills in what a mapping of this file is backed by.
    fn mmap(&self, f: &File, req: &mut MapRequest) -> Result {
        Err(Errno::ENODEV)
    }
    /// The page cache that reads and writes go through, where there is one by now.
    fn cache(&self, f: &File) -> Option<Arc<MemoryObject>> {
        f.inode().and_then(|inode| inode.ops().memory_object(inode))
    }
    /// `lseek(2)`: `pos` is the current position; returns the new one.
    fn seek(&self, f: &File, offset: i64, whence: u32, pos: u64) -> Result<u64> {
        Err(Errno::ESPIPE)
    }
    /// Lists entries from `*pos` on, advancing it past each that `sink` took.
    fn readdir(&self, f: &File, pos: &mut u64, sink: &mut dyn DirSink) -> Result {
        Err(Errno::ENOTDIR)
    }
    /// Makes written data durable. `EINVAL` for what has no storage (pipes, sockets).
    fn fsync(&self, f: &File, data_only: bool) -> Result {
        Err(Errno::EINVAL)
    }
    /// `fallocate(2)`; `mode` is checked against the known bits.
    fn fallocate(&self, f: &File, mode: u32, offset: u64, len: u64) -> Result {
        Err(Errno::ENODEV)
    }
    /// `ftruncate(2)` for files without an [`Inode`] that can do it (memfd has its own).
    fn truncate(&self, f: &File, size: u64) -> Result {
        Err(Errno::EINVAL)
    }
    /// Runs at each `close` of a descriptor.
    fn flush(&self, f: &File) -> Result {
        Ok(())
    }
    /// Runs once, when the last reference goes.
    fn release(&self, f: &File) {}
    /// `fstat` of a file without an inode. `None`: an anonymous inode's attributes.
    fn stat(&self, f: &File) -> Result<Option<Stat>> {
        Ok(None)
    }
    /// `FASYNC` was switched by `F_SETFL` or `FIOASYNC`; the owner is in [`File::owner`].
    fn set_fasync(&self, f: &Arc<File>, on: bool) -> Result {
        Err(Errno::ENOTTY)
    }
    /// [`File::owner`] was set: who wants signals of the object that do not depend on `FASYNC`.
    fn owner_set(&self, f: &File) {}
    /// Checks or observes a change of `O_NONBLOCK`, `O_APPEND` … by `F_SETFL`.
    fn set_flags(&self, f: &File, flags: u32) -> Result {
        Ok(())
    }
    /// Adds lines to `/proc/PID/fdinfo/FD` after the common ones.
    fn fdinfo(&self, f: &File, out: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }
    /// What `/proc/PID/fd/N` shows when there is no path, if more than the name (`pipe:[17]`).
    fn link_name(&self, f: &File, out: &mut dyn fmt::Write) -> fmt::Result {
        out.write_str(f.name)
    }
    /// Moves up to `len` bytes into a pipe or other page sink without copying where possible. Default: through `read`.
    fn splice_read(&self, f: &File, dst: &mut Sink<'_>, pos: u64) -> Result<usize> {
        self.read(f, dst, pos)
    }
    /// Opens the same object anew through `/proc/PID/fd/N`, for files without a path. `flags` are `O_*`.
    fn reopen(&self, f: &Arc<File>, flags: u32) -> Result<Arc<dyn FileOps>> {
        Err(Errno::ENXIO)
    }
    /// `fcntl` commands that belong to the object: pipe size, seals. `None`: not known here.
    fn fcntl(&self, f: &File, cmd: u32, arg: u64) -> Option<Result<i64>> {
        None
    }
}

/// The position that lseek(2) asks for: from the start, the position or, for files that have one, the end.
///
/// # Errors
/// `EINVAL` for another `whence` or a position before the start, `EOVERFLOW` for one that no number holds.
pub fn seek_from(offset: i64, whence: u32, pos: u64, end: Option<u64>) -> Result<u64> {
    let base = match (whence, end) {
        (uapi::SEEK_SET, _) => 0,
        (uapi::SEEK_CUR, _) => pos as i64,
        (uapi::SEEK_END, Some(end)) => i64::try_from(end).map_err(|_| Errno::EOVERFLOW)?,
        _ => return Err(Errno::EINVAL),
    };
    u64::try_from(base.checked_add(offset).ok_or(Errno::EOVERFLOW)?).map_err(|_| Errno::EINVAL)
}

/// Hears of the end of a file: epoll forgets its entry then.
pub trait ReleaseHook: Send + Sync {
    /// The file that [`File::id`] named is gone.
    fn file_gone(&self, id: usize);
}

/// An open file description.
pub struct File {
    ops: Arc<dyn FileOps>,
    mode: FileMode,
    flags: AtomicU32,
    /// The position. Streams never lock it.
    pub pos: Mutex<u64>,
    path: Option<Path>,
    inode: Option<Arc<Inode>>,
    /// What `/proc/PID/fd` calls a file without a path: `anon_inode:[eventpoll]`.
    pub name: &'static str,
    /// `F_SETOWN`, `F_SETSIG`.
    pub owner: FileOwner,
    /// Who wants to hear of the last close: epoll instances that watch the file.
    release_hooks: SpinLock<Vec<Weak<dyn ReleaseHook>>>,
}

impl File {
    /// Makes an open file of an object without a path: pipe, socket, epoll, eventfd …
    ///
    /// `flags` are the `O_*` access mode and status flags; `O_CLOEXEC` belongs to the descriptor and is dropped.
    pub fn anon(ops: Arc<dyn FileOps>, name: &'static str, flags: u32) -> Arc<File> {
        Self::build(ops, None, None, name, flags, FileMode::empty())
    }

    /// Makes an open file of an inode reached by `path`.
    pub fn with_path(ops: Arc<dyn FileOps>, path: Path, inode: Arc<Inode>, flags: u32, extra: FileMode) -> Arc<File> {
        Self::build(ops, Some(path), Some(inode), "", flags, extra)
    }

    /// Makes an open file of an inode without a path: memfd, a socket with an inode.
    pub fn with_inode(ops: Arc<dyn FileOps>, inode: Arc<Inode>, name: &'static str, flags: u32) -> Arc<File> {
        Self::build(ops, None, Some(inode), name, flags, FileMode::empty())
    }

    /// The same object as an open file of its own that keeps no mount busy, for what the kernel keeps open.
    pub fn without_path(&self) -> Arc<File> {
        Self::build(self.ops.clone(), None, self.inode.clone(), self.name, self.flags(), FileMode::empty())
    }

    fn build(
        ops: Arc<dyn FileOps>,
        path: Option<Path>,
        inode: Option<Arc<Inode>>,
        name: &'static str,
        flags: u32,
        extra: FileMode,
    ) -> Arc<File> {
        let mut mode = extra;
        if flags & uapi::O_PATH != 0 {
            mode |= FileMode::PATH;
        } else {
            match flags & uapi::O_ACCMODE {
                uapi::O_RDONLY => mode |= FileMode::READ,
                uapi::O_WRONLY => mode |= FileMode::WRITE,
                uapi::O_RDWR => mode |= FileMode::READ | FileMode::WRITE,
                // Access mode 3 opens for ioctl only, as Linux has it.
                _ => {}
            }
            if ops.is_stream() {
                mode |= FileMode::STREAM;
            }
            if ops.is_seekable() {
                mode |= FileMode::SEEK;
            }
        }
        let kept = flags & !(uapi::O_CLOEXEC | uapi::O_CREAT | uapi::O_EXCL | uapi::O_NOCTTY | uapi::O_TRUNC);
        Arc::new(File {
            ops,
            mode,
            flags: AtomicU32::new(kept),
            pos: Mutex::new(0),
            path,
            inode,
            name,
            owner: FileOwner::new(),
            release_hooks: SpinLock::new(Vec::new()),
        })
    }

    /// A number that names this open file description while it lives.
    #[inline]
    pub fn id(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// Registers `hook` to be told when the last reference goes.
    pub fn add_release_hook(&self, hook: Weak<dyn ReleaseHook>) {
        let mut hooks = self.release_hooks.lock();
        // A file that is watched and forgotten again and again keeps one entry per epoll.
        hooks.retain(|h| h.strong_count() > 0 && !h.ptr_eq(&hook));
        hooks.push(hook);
    }

    /// The object behind the file.
    #[inline]
    pub fn file_ops(&self) -> &dyn FileOps {
        &*self.ops
    }

    /// The object behind the file if it is a `T`.
    #[inline]
    pub fn ops<T: FileOps>(&self) -> Option<&T> {
        (&*self.ops as &dyn Any).downcast_ref::<T>()
    }

    /// As [`File::ops`], shared.
    pub fn ops_shared<T: FileOps>(&self) -> Option<Arc<T>> {
        let any: Arc<dyn Any + Send + Sync> = self.ops.clone();
        any.downcast::<T>().ok()
    }

    /// What may be done through it.
    #[inline]
    pub fn mode(&self) -> FileMode {
        self.mode
    }

    /// Status flags and access mode, as `F_GETFL` reports them.
    #[inline]
    pub fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// Replaces the flags in `mask` by those of `value`.
    pub fn update_flags(&self, mask: u32, value: u32) {
        let _ = self.flags.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| Some(old & !mask | value & mask));
    }

    /// Whether operations must not block.
    #[inline]
    pub fn is_nonblocking(&self) -> bool {
        self.flags() & uapi::O_NONBLOCK != 0
    }

    /// The path it was opened by.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_ref()
    }

    /// The inode behind it.
    #[inline]
    pub fn inode(&self) -> Option<&Arc<Inode>> {
        self.inode.as_ref()
    }

    /// `EBADF` unless the file may be read.
    #[inline]
    pub fn check_read(&self) -> Result {
        if self.mode.contains(FileMode::READ) { Ok(()) } else { Err(Errno::EBADF) }
    }

    /// `EBADF` unless the file may be written.
    #[inline]
    pub fn check_write(&self) -> Result {
        if self.mode.contains(FileMode::WRITE) { Ok(()) } else { Err(Errno::EBADF) }
    }

    /// Readiness now; registers with `pt` when given.
    #[inline]
    pub fn poll(&self, pt: Option<&mut PollTable>) -> PollEvents {
        self.ops.poll(self, pt)
    }

    /// Reads at the file's position and moves it.
    ///
    /// # Errors
    /// `EBADF` when not open for reading, and the object's own.
    #[inline]
    pub fn read(&self, dst: &mut Sink<'_>) -> Result<usize> {
        self.check_read()?;
        if self.mode.contains(FileMode::STREAM) {
            return self.ops.read(self, dst, 0);
        }
        let mut pos = self.pos.lock();
        let n = self.ops.read(self, dst, *pos)?;
        *pos += n as u64;
        Ok(n)
    }

    /// Reads at `pos` without moving the position.
    ///
    /// # Errors
    /// `EBADF`, `ESPIPE` for what has no positions, and the object's own.
    pub fn read_at(&self, dst: &mut Sink<'_>, pos: u64) -> Result<usize> {
        self.check_read()?;
        if !self.mode.contains(FileMode::SEEK) {
            return Err(Errno::ESPIPE);
        }
        self.ops.read(self, dst, pos)
    }

    /// Writes at the file's position (the end with `O_APPEND`) and moves it.
    ///
    /// # Errors
    /// `EBADF` when not open for writing, and the object's own.
    #[inline]
    pub fn write(&self, src: &mut Source<'_>) -> Result<usize> {
        self.check_write()?;
        if self.mode.contains(FileMode::STREAM) {
            return self.ops.write(self, src, 0);
        }
        let mut pos = self.pos.lock();
        if self.flags() & uapi::O_APPEND != 0 {
            let (end, n) = self.ops.append(self, src)?;
            *pos = end;
            return Ok(n);
        }
        let n = self.ops.write(self, src, *pos)?;
        *pos += n as u64;
        Ok(n)
    }

    /// Writes at `pos` without moving the position. As on Linux, an `O_APPEND` file appends all the same.
    ///
    /// # Errors
    /// `EBADF`, `ESPIPE` for what has no positions, and the object's own.
    pub fn write_at(&self, src: &mut Source<'_>, pos: u64) -> Result<usize> {
        self.check_write()?;
        if !self.mode.contains(FileMode::SEEK) {
            return Err(Errno::ESPIPE);
        }
        if self.flags() & uapi::O_APPEND != 0 {
            return Ok(self.ops.append(self, src)?.1);
        }
        self.ops.write(self, src, pos)
    }

    /// Reads what there is at `pos`, `buf.len()` bytes at most, for kernel users; returns how many.
    ///
    /// # Errors
    /// The object's own.
    pub fn fill_at(&self, buf: &mut [u8], pos: u64) -> Result<usize> {
        let mut dst = Sink::kernel(buf);
        while dst.remaining() > 0 {
            let at = pos + dst.done() as u64;
            if self.ops.read(self, &mut dst, at)? == 0 {
                break;
            }
        }
        Ok(dst.done())
    }

    /// Reads exactly `buf.len()` bytes at `pos`, for kernel users such as the ELF loader.
    ///
    /// # Errors
    /// `EIO` at an early end of file, and the object's own.
    pub fn read_exact_at(&self, buf: &mut [u8], pos: u64) -> Result {
        if self.fill_at(buf, pos)? == buf.len() { Ok(()) } else { Err(Errno::EIO) }
    }
}

/// `lseek` of a file whose contents are a memory object.
///
/// # Errors
/// `EINVAL` for a position below 0 or an unknown `whence`, `ENXIO` for `SEEK_DATA`/`SEEK_HOLE` beyond the end, `EOVERFLOW`.
pub fn seek_object(object: &MemoryObject, offset: i64, whence: u32, pos: u64) -> Result<u64> {
    if whence == uapi::SEEK_DATA || whence == uapi::SEEK_HOLE {
        let from = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        return object.seek(from, whence == uapi::SEEK_DATA);
    }
    seek_from(offset, whence, pos, Some(object.size()))
}

impl Drop for File {
    fn drop(&mut self) {
        if self.mode.contains(FileMode::PATH) {
            return;
        }
        let id = self.id();
        for hook in self.release_hooks.get_mut().drain(..) {
            if let Some(hook) = hook.upgrade() {
                hook.file_gone(id);
            }
        }
        if let Some(inode) = &self.inode {
            lock::release_file(self, inode);
            lease::release_file(self, inode);
            if self.mode.contains(FileMode::READER) {
                inode.readers.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.ops.release(self);
        if let Some(path) = &self.path {
            let what = if self.mode.contains(FileMode::WRITE) { mask::CLOSE_WRITE } else { mask::CLOSE_NOWRITE };
            notify::event(&path.dentry, what);
        }
        if self.mode.contains(FileMode::WRITER)
            && let Some(inode) = &self.inode
        {
            inode.put_write_access();
            if let Some(path) = &self.path {
                path.mount.end_write();
            }
        }
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("name", &self.name).field("mode", &self.mode).finish_non_exhaustive()
    }
}
