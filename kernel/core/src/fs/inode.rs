//! Inodes and file systems: [`Inode`], [`InodeOps`], [`SuperBlock`], [`FileSystem`].
//!
//! An [`Inode`] is the kernel's view of a file: cached attributes, locks and watches. What it does is its file system's
//! [`InodeOps`]. The split is made for file systems of both kinds: one in memory (tmpfs, procfs), whose attributes here
//! are the truth, and one behind a server (FUSE), whose attributes here are a cache with an expiry time that
//! [`InodeOps::refresh`] renews, whose directory entries carry an expiry too ([`Entry`]), and where every operation may
//! sleep, fail or be interrupted.
//!
//! Locking: `Inode::lock` (sleeping) is what Linux calls `i_rwsem`: exclusive for a change of the directory or the size,
//! shared for a lookup that reaches the file system. Order: renames of one super block (`SuperBlock::rename_lock`) →
//! parent directory → child (two of one kind by inode number) → page cache object. Attributes are atomics and one spin
//! lock for the times; they are read without the inode lock.
//!
//! References: stat(2), `include/linux/fs.h`, `Documentation/filesystems/vfs.rst`.

use alloc::{
    boxed::Box,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{
    any::Any,
    sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering},
};

use bitflags::bitflags;
use linux_uapi::raw::general as uapi;
use ursa_hal::sync::SpinLock;

use super::{
    acl::Acls,
    dentry::Dentry,
    file::{File, FileOps},
    handle::HandleKind,
    lease::Leases,
    lock::InodeLocks,
    mount::{Mount, MountFlags},
    notify::Marks,
    path::Path,
};
use crate::{
    Errno, Result,
    mm::MemoryObject,
    wait::{Mutex, RwLock},
};

/// A point in time as inodes keep it: nanoseconds since 1970, which holds until 2262.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds, `0..1_000_000_000`.
    pub nsec: u32,
}

/// Seconds of the last [`Time::now`]: good enough to tell whether a day has passed.
static LAST_SECOND: AtomicI64 = AtomicI64::new(0);

impl Time {
    /// The present wall-clock time.
    pub fn now() -> Time {
        let ns = ursa_hal::time::realtime_ns();
        let sec = ns.div_euclid(1_000_000_000);
        LAST_SECOND.store(sec, Ordering::Relaxed);
        Time { sec, nsec: ns.rem_euclid(1_000_000_000) as u32 }
    }
}

/// The kind of file: the `S_IFMT` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FileKind {
    /// `S_IFREG`
    Regular = uapi::S_IFREG,
    /// `S_IFDIR`
    Directory = uapi::S_IFDIR,
    /// `S_IFLNK`
    Symlink = uapi::S_IFLNK,
    /// `S_IFCHR`
    CharDevice = uapi::S_IFCHR,
    /// `S_IFBLK`
    BlockDevice = uapi::S_IFBLK,
    /// `S_IFIFO`
    Fifo = uapi::S_IFIFO,
    /// `S_IFSOCK`
    Socket = uapi::S_IFSOCK,
}

impl FileKind {
    /// The kind in a mode's `S_IFMT` bits.
    pub fn from_mode(mode: u32) -> Option<FileKind> {
        Some(match mode & uapi::S_IFMT {
            uapi::S_IFREG => FileKind::Regular,
            uapi::S_IFDIR => FileKind::Directory,
            uapi::S_IFLNK => FileKind::Symlink,
            uapi::S_IFCHR => FileKind::CharDevice,
            uapi::S_IFBLK => FileKind::BlockDevice,
            uapi::S_IFIFO => FileKind::Fifo,
            uapi::S_IFSOCK => FileKind::Socket,
            _ => return None,
        })
    }

    /// The `DT_*` value of a directory entry.
    pub fn dirent_type(self) -> u8 {
        (self as u32 >> 12) as u8
    }
}

/// A snapshot of an inode's attributes: what `stat` reports.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Kind and permission bits.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks in use.
    pub blocks: u64,
    /// Preferred size of I/O.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of contents.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Birth, where it is known.
    pub btime: Option<Time>,
}

/// A requested change of attributes; `None` leaves a field alone.
#[derive(Clone, Debug, Default)]
pub struct SetAttr {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size: truncate or extend.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<Time>,
    /// Modification time.
    pub mtime: Option<Time>,
}

/// The answer to a lookup or a creation.
pub struct Entry {
    /// The inode; `None`: there is no such name.
    pub inode: Option<Arc<Inode>>,
    /// Until when (monotonic nanoseconds) the answer may be used without asking again; `u64::MAX` for ever, 0 not at all.
    pub valid_until: u64,
}

impl Entry {
    /// An answer that holds until it is changed through this kernel.
    pub fn stable(inode: Arc<Inode>) -> Entry {
        Entry { inode: Some(inode), valid_until: u64::MAX }
    }

    /// An answer that must be asked for again each time.
    pub fn volatile(inode: Arc<Inode>) -> Entry {
        Entry { inode: Some(inode), valid_until: 0 }
    }
}

/// Where a symbolic link leads.
pub enum LinkTarget {
    /// A path to walk.
    Path(Arc<[u8]>),
    /// An object to jump to, as `/proc/PID/fd/N` does.
    Jump(Path),
    /// A name that leads nowhere (`/proc/PID/ns/*`).
    Name(Vec<u8>),
}

/// What is created by [`InodeOps::create`].
#[derive(Clone, Copy, Debug)]
pub struct NewInode {
    /// Kind and permission bits, umask applied.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group (the directory's set-group-ID bit is applied already).
    pub gid: u32,
    /// Device number, for device nodes.
    pub rdev: u32,
}

/// The operations of a file system on its inodes.
///
/// The VFS has checked permissions, names (`.`/`..`, length), kinds and mount flags, and holds the directory's lock
/// exclusively for changes and shared for `lookup`. Defaults refuse as Linux does for a file system without the operation.
#[expect(unused_variables, reason = "the defaults refuse without looking")]
pub trait InodeOps: Any + Send + Sync {
    /// Finds `name` in this directory.
    fn lookup(&self, dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        Err(Errno::ENOTDIR)
    }
    /// Makes a regular file, directory, device node, FIFO or socket.
    fn create(&self, dir: &Arc<Inode>, name: &[u8], new: &NewInode) -> Result<Entry> {
        Err(Errno::EPERM)
    }
    /// Makes a regular file that is opened with `flags` (`O_*`) next, by the same thread. For file systems that do both at
    /// once; what was opened waits for [`InodeOps::open`].
    fn create_open(&self, dir: &Arc<Inode>, name: &[u8], new: &NewInode, flags: u32) -> Result<Entry> {
        self.create(dir, name, new)
    }
    /// Makes a symbolic link.
    fn symlink(&self, dir: &Arc<Inode>, name: &[u8], target: &[u8], new: &NewInode) -> Result<Entry> {
        Err(Errno::EPERM)
    }
    /// Makes a further name for `inode`.
    fn link(&self, dir: &Arc<Inode>, name: &[u8], inode: &Arc<Inode>) -> Result {
        Err(Errno::EPERM)
    }
    /// Removes a name that is not a directory's.
    fn unlink(&self, dir: &Arc<Inode>, name: &[u8], inode: &Arc<Inode>) -> Result {
        Err(Errno::EPERM)
    }
    /// Removes an empty directory (`ENOTEMPTY` else).
    fn rmdir(&self, dir: &Arc<Inode>, name: &[u8], inode: &Arc<Inode>) -> Result {
        Err(Errno::EPERM)
    }
    /// Moves a name, replacing or exchanging `new.inode`. `flags`: `RENAME_*`.
    fn rename(&self, old: &RenameSide<'_>, new: &RenameSide<'_>, flags: u32) -> Result {
        Err(Errno::EPERM)
    }
    /// Makes a regular file without a name (`O_TMPFILE`).
    fn tmpfile(&self, dir: &Arc<Inode>, new: &NewInode) -> Result<Arc<Inode>> {
        Err(Errno::EOPNOTSUPP)
    }
    /// Where a symbolic link leads.
    fn readlink(&self, inode: &Arc<Inode>) -> Result<LinkTarget> {
        Err(Errno::EINVAL)
    }
    /// Brings cached attributes up to date; called before they are reported or checked when
    /// [`SuperBlock::attributes_expire`].
    fn refresh(&self, inode: &Inode) -> Result {
        Ok(())
    }
    /// As [`InodeOps::refresh`], where mode and owner are all that matters.
    fn refresh_mode(&self, inode: &Inode) -> Result {
        self.refresh(inode)
    }
    /// Size and blocks where the cached ones are not the truth (a page cache object has its own size).
    fn size(&self, inode: &Inode) -> (u64, u64) {
        (inode.size.load(Ordering::Relaxed), inode.blocks.load(Ordering::Relaxed))
    }
    /// Last chance to change what `stat` reports.
    fn fill_attr(&self, inode: &Inode, attr: &mut Attr) {}
    /// Changes attributes. The default changes the cached ones and refuses a size.
    fn setattr(&self, inode: &Arc<Inode>, change: &SetAttr) -> Result {
        if change.size.is_some() {
            return Err(Errno::EINVAL);
        }
        inode.apply(change);
        Ok(())
    }
    /// A permission check of the file system's own: after the mode bits allowed the access, or instead of them
    /// ([`SuperOps::decides_permissions`]). `mask` may hold `permission::MAY_ACCESS`.
    fn permission(&self, inode: &Inode, mask: u32) -> Result {
        Ok(())
    }
    /// Opens the inode. Device nodes, FIFOs and sockets are opened by the VFS. `flags` are `O_*`.
    fn open(&self, inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>> {
        Err(Errno::ENXIO)
    }
    /// The page cache of a regular file, where there is one by now.
    fn memory_object(&self, inode: &Inode) -> Option<Arc<MemoryObject>> {
        None
    }
    /// Reads an extended attribute (full name).
    fn getxattr(&self, inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
        Err(Errno::EOPNOTSUPP)
    }
    /// Sets one. `flags`: `XATTR_CREATE`, `XATTR_REPLACE`.
    fn setxattr(&self, inode: &Inode, name: &[u8], value: &[u8], flags: u32) -> Result {
        Err(Errno::EOPNOTSUPP)
    }
    /// The names, each followed by a NUL.
    fn listxattr(&self, inode: &Inode) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }
    /// Removes one.
    fn removexattr(&self, inode: &Inode, name: &[u8]) -> Result {
        Err(Errno::EOPNOTSUPP)
    }
    /// Runs when the last link and the last reference are gone.
    fn evict(&self, inode: &Inode) {}
}

/// One side of a rename.
pub struct RenameSide<'a> {
    /// The directory, locked exclusively.
    pub dir: &'a Arc<Inode>,
    /// The name in it.
    pub name: &'a [u8],
    /// What the name means now.
    pub inode: Option<&'a Arc<Inode>>,
}

/// Cached times.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Last access.
    pub atime: Time,
    /// Last change of contents.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Birth.
    pub btime: Time,
}

/// A file, as the kernel sees it.
pub struct Inode {
    /// Its file system.
    pub sb: Arc<SuperBlock>,
    /// Its number, unique in the file system.
    pub ino: u64,
    /// Its kind, which never changes.
    pub kind: FileKind,
    /// Device number of a device node.
    pub rdev: u32,
    ops: Box<dyn InodeOps>,
    mode: AtomicU32,
    uid: AtomicU32,
    gid: AtomicU32,
    nlink: AtomicU32,
    /// Cached size; see [`InodeOps::size`].
    pub size: AtomicU64,
    /// Cached 512-byte blocks.
    pub blocks: AtomicU64,
    times: SpinLock<Times>,
    /// See the module's notes on locking.
    pub lock: RwLock<()>,
    /// Directory removed: nothing may be created in it.
    pub dead: AtomicBool,
    /// Made by `O_TMPFILE` without `O_EXCL`: `linkat` may give it its first name.
    pub linkable: AtomicBool,
    /// Positive: open for writing so often. Negative: being executed, writing refused (`ETXTBSY`).
    write_access: AtomicI32,
    /// `flock`, POSIX and OFD locks.
    pub locks: InodeLocks,
    /// `F_SETLEASE`.
    pub leases: Leases,
    /// How many have it open for reading only, where it is a regular file.
    pub readers: AtomicU32,
    /// inotify watches.
    pub marks: Marks,
    /// The dentry of a directory whose names the file system may call back.
    pub alias: SpinLock<Weak<Dentry>>,
    /// Access control lists, where [`SuperBlock::acls`].
    pub acls: Acls,
    /// What device, FIFO and socket code hangs on the inode: a FIFO's pipe, a bound socket.
    pub special: SpinLock<Option<Arc<dyn Any + Send + Sync>>>,
}

impl Inode {
    /// Makes an inode with one link (two for a directory) and all times now.
    pub fn new(sb: &Arc<SuperBlock>, ino: u64, new: &NewInode, ops: Box<dyn InodeOps>) -> Arc<Inode> {
        let now = Time::now();
        let kind = FileKind::from_mode(new.mode).unwrap_or(FileKind::Regular);
        Arc::new(Inode {
            sb: sb.clone(),
            ino,
            kind,
            rdev: new.rdev,
            ops,
            mode: AtomicU32::new(kind as u32 | new.mode & 0o7777),
            uid: AtomicU32::new(new.uid),
            gid: AtomicU32::new(new.gid),
            nlink: AtomicU32::new(if kind == FileKind::Directory { 2 } else { 1 }),
            size: AtomicU64::new(0),
            blocks: AtomicU64::new(0),
            times: SpinLock::new(Times { atime: now, mtime: now, ctime: now, btime: now }),
            lock: RwLock::new(()),
            dead: AtomicBool::new(false),
            linkable: AtomicBool::new(false),
            write_access: AtomicI32::new(0),
            locks: InodeLocks::new(),
            leases: Leases::default(),
            readers: AtomicU32::new(0),
            marks: Marks::new(),
            alias: SpinLock::new(Weak::new()),
            acls: Acls::default(),
            special: SpinLock::new(None),
        })
    }

    /// The file system's operations.
    #[inline]
    pub fn ops(&self) -> &dyn InodeOps {
        &*self.ops
    }

    /// The file system's data of the inode, if it is a `T`.
    #[inline]
    pub fn ops_as<T: InodeOps>(&self) -> Option<&T> {
        (&*self.ops as &dyn Any).downcast_ref::<T>()
    }

    /// Whether it is a directory.
    #[inline]
    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }

    /// Kind and permission bits.
    #[inline]
    pub fn mode(&self) -> u32 {
        self.mode.load(Ordering::Relaxed)
    }

    /// Replaces the permission bits.
    pub fn set_mode(&self, mode: u32) {
        self.mode.store(self.kind as u32 | mode & 0o7777, Ordering::Relaxed);
    }

    /// The owner.
    #[inline]
    pub fn uid(&self) -> u32 {
        self.uid.load(Ordering::Relaxed)
    }

    /// The group.
    #[inline]
    pub fn gid(&self) -> u32 {
        self.gid.load(Ordering::Relaxed)
    }

    /// Replaces owner and group.
    pub fn set_owner(&self, uid: u32, gid: u32) {
        self.uid.store(uid, Ordering::Relaxed);
        self.gid.store(gid, Ordering::Relaxed);
    }

    /// The number of hard links.
    pub fn nlink(&self) -> u32 {
        self.nlink.load(Ordering::Relaxed)
    }

    /// Sets the number of hard links.
    pub fn set_nlink(&self, n: u32) {
        self.nlink.store(n, Ordering::Relaxed);
    }

    /// Adds to the number of hard links. The directory lock of the change orders it.
    pub fn add_nlink(&self, n: i32) {
        self.nlink.fetch_add(n as u32, Ordering::Relaxed);
    }

    /// The cached times.
    pub fn times(&self) -> Times {
        *self.times.lock()
    }

    /// Changes the cached times.
    pub fn update_times(&self, change: impl FnOnce(&mut Times)) {
        change(&mut self.times.lock());
    }

    /// Contents changed now.
    pub fn touch_modified(&self) {
        let now = Time::now();
        self.update_times(|t| {
            t.mtime = now;
            t.ctime = now;
        });
    }

    /// The inode changed now.
    pub fn touch_changed(&self) {
        let now = Time::now();
        self.update_times(|t| t.ctime = now);
    }

    /// The file was read: `relatime`, unless the mount or `O_NOATIME` says otherwise.
    #[inline]
    pub fn accessed(&self, mount: &Mount, flags: u32) {
        let skip = MountFlags::NOATIME | MountFlags::RDONLY;
        if flags & uapi::O_NOATIME != 0 || mount.flags().intersects(skip) {
            return;
        }
        let mut times = self.times.lock();
        let fresh = times.atime > times.mtime && times.atime > times.ctime;
        if fresh && LAST_SECOND.load(Ordering::Relaxed) - times.atime.sec < 24 * 60 * 60 {
            return;
        }
        times.atime = Time::now();
    }

    /// Applies a change to the cached attributes (not the size).
    pub fn apply(&self, change: &SetAttr) {
        if let Some(mode) = change.mode {
            self.set_mode(mode);
        }
        if let Some(uid) = change.uid {
            self.uid.store(uid, Ordering::Relaxed);
        }
        if let Some(gid) = change.gid {
            self.gid.store(gid, Ordering::Relaxed);
        }
        let now = Time::now();
        self.update_times(|t| {
            if let Some(atime) = change.atime {
                t.atime = atime;
            }
            if let Some(mtime) = change.mtime {
                t.mtime = mtime;
            }
            t.ctime = now;
        });
    }

    /// The size in bytes.
    #[inline]
    pub fn len(&self) -> u64 {
        self.ops.size(self).0
    }

    /// All attributes.
    ///
    /// # Errors
    /// What the file system reports when it must ask a server.
    pub fn attr(&self) -> Result<Attr> {
        if self.sb.attributes_expire {
            self.ops.refresh(self)?;
        }
        let (size, blocks) = self.ops.size(self);
        let times = self.times();
        let mut attr = Attr {
            ino: self.ino,
            mode: self.mode(),
            nlink: self.nlink(),
            uid: self.uid(),
            gid: self.gid(),
            rdev: self.rdev,
            size,
            blocks,
            blksize: self.sb.block_size,
            atime: times.atime,
            mtime: times.mtime,
            ctime: times.ctime,
            btime: Some(times.btime),
        };
        self.ops.fill_attr(self, &mut attr);
        Ok(attr)
    }

    /// Counts an open for writing.
    ///
    /// # Errors
    /// `ETXTBSY` while the file is being executed.
    pub fn get_write_access(&self) -> Result {
        self.write_access
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| (n >= 0).then_some(n + 1))
            .map(|_| ())
            .map_err(|_| Errno::ETXTBSY)
    }

    /// Ends what [`Inode::get_write_access`] began.
    pub fn put_write_access(&self) {
        self.write_access.fetch_sub(1, Ordering::AcqRel);
    }

    /// Refuses writers while the file is being executed. Ended by [`Inode::allow_write`].
    ///
    /// # Errors
    /// `ETXTBSY` while somebody has it open for writing.
    pub fn deny_write(&self) -> Result {
        self.write_access
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| (n <= 0).then_some(n - 1))
            .map(|_| ())
            .map_err(|_| Errno::ETXTBSY)
    }

    /// Ends what [`Inode::deny_write`] began.
    pub fn allow_write(&self) {
        self.write_access.fetch_add(1, Ordering::AcqRel);
    }

    /// As [`Inode::writers`], or negative while it is being executed.
    pub fn write_access(&self) -> i32 {
        self.write_access.load(Ordering::SeqCst)
    }

    /// How many have it open for writing.
    pub fn writers(&self) -> i32 {
        self.write_access().max(0)
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        // The operations outlive this call; they see the inode whole.
        self.ops.evict(self);
    }
}

bitflags! {
    /// Mount options that belong to the file system (`SB_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SbFlags: u32 {
        /// Read-only.
        const RDONLY = 1;
        /// Device nodes are not opened.
        const NODEV = 4;
        /// Nothing is executed.
        const NOEXEC = 8;
    }
}

/// What `statfs` reports about a file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct FsStat {
    /// `*_MAGIC`
    pub magic: u64,
    /// Block size.
    pub block_size: u64,
    /// Blocks.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for ordinary users.
    pub available: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Longest name.
    pub name_max: u64,
}

/// Operations of a mounted file system as a whole.
#[expect(unused_variables, reason = "the defaults ignore")]
pub trait SuperOps: Any + Send + Sync {
    /// `statfs(2)`.
    fn statfs(&self, sb: &SuperBlock) -> Result<FsStat>;
    /// Writes everything out (`sync`, `syncfs`).
    fn sync(&self, sb: &SuperBlock, wait: bool) -> Result {
        Ok(())
    }
    /// Adds `,option=value` to the line in `/proc/mounts`.
    fn show_options(&self, sb: &SuperBlock, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
        Ok(())
    }
    /// Changes options at `remount`.
    fn remount(&self, sb: &SuperBlock, data: &[u8]) -> Result {
        Ok(())
    }
    /// What follows the type's name and a dot in `/proc/mounts` (`fuse.sshfs`).
    fn subtype(&self) -> &str {
        ""
    }
    /// Whether [`InodeOps::permission`] alone decides: the mode bits are the server's business.
    fn decides_permissions(&self) -> bool {
        false
    }
    /// Whether its files have access control lists, which the VFS keeps.
    fn has_acls(&self) -> bool {
        false
    }
    /// How handles of its files look; `None` if they cannot be opened by such.
    fn handle_kind(&self) -> Option<HandleKind> {
        None
    }
    /// `umount -f`: lets go of what cannot be reached any more, so that nobody waits for it.
    fn force_end(&self, sb: &SuperBlock) {}
    /// The last mount is gone.
    fn shutdown(&self, sb: &SuperBlock) {}
}

/// A mounted file system.
pub struct SuperBlock {
    /// Device number that its files report (`st_dev`), also its id.
    pub dev: u32,
    /// The type's name, as in `/proc/filesystems`.
    pub fs_name: &'static str,
    /// `*_MAGIC` of `<linux/magic.h>`.
    pub magic: u64,
    /// Preferred size of I/O.
    pub block_size: u32,
    /// Longest name.
    pub name_max: usize,
    /// Cached attributes must be refreshed before use.
    pub attributes_expire: bool,
    /// See [`SuperOps::decides_permissions`].
    pub own_permissions: bool,
    /// See [`SuperOps::has_acls`].
    pub acls: bool,
    /// Names that do not exist are remembered. Not worth it where asking the file system is as cheap as the cache.
    pub cache_negative: bool,
    /// `SB_*`.
    pub flags: AtomicU32,
    /// Files open for writing: a remount to read-only is refused meanwhile.
    pub writers: AtomicU32,
    /// How many mounts show it; the kernel's own file systems count one more and never end.
    pub mounts: AtomicU32,
    /// One rename between directories at a time, so that no cycle can arise.
    pub rename_lock: Mutex<()>,
    next_ino: AtomicU64,
    root: SpinLock<Option<Arc<Dentry>>>,
    ops: Box<dyn SuperOps>,
}

/// The parameters of a new super block.
pub struct SuperBlockParams {
    /// See [`SuperBlock::fs_name`].
    pub fs_name: &'static str,
    /// See [`SuperBlock::magic`].
    pub magic: u64,
    /// See [`SuperBlock::attributes_expire`].
    pub attributes_expire: bool,
    /// See [`SuperBlock::cache_negative`].
    pub cache_negative: bool,
    /// See [`SuperBlock::flags`].
    pub flags: SbFlags,
}

/// The next anonymous device number's minor (major 0).
static NEXT_ANON_DEV: AtomicU32 = AtomicU32::new(1);

impl SuperBlock {
    /// Returns whether its files are made as they are read (procfs, sysfs).
    pub fn is_generated(&self) -> bool {
        matches!(self.fs_name, "proc" | "sysfs")
    }

    /// Makes a super block on an anonymous device number; its root is set with [`SuperBlock::set_root`].
    pub fn new(params: SuperBlockParams, ops: Box<dyn SuperOps>) -> Arc<SuperBlock> {
        let dev = super::dev::make_dev(0, NEXT_ANON_DEV.fetch_add(1, Ordering::Relaxed));
        Arc::new(SuperBlock {
            dev,
            fs_name: params.fs_name,
            magic: params.magic,
            block_size: 4096,
            name_max: 255,
            attributes_expire: params.attributes_expire,
            own_permissions: ops.decides_permissions(),
            acls: ops.has_acls(),
            cache_negative: params.cache_negative,
            flags: AtomicU32::new(params.flags.bits()),
            writers: AtomicU32::new(0),
            mounts: AtomicU32::new(0),
            rename_lock: Mutex::new(()),
            next_ino: AtomicU64::new(1),
            root: SpinLock::new(None),
            ops,
        })
    }

    /// The operations.
    pub fn ops(&self) -> &dyn SuperOps {
        &*self.ops
    }

    /// The operations, if they are a `T`.
    pub fn ops_as<T: SuperOps>(&self) -> Option<&T> {
        (&*self.ops as &dyn Any).downcast_ref::<T>()
    }

    /// A number for a new inode.
    pub fn next_ino(&self) -> u64 {
        self.next_ino.fetch_add(1, Ordering::Relaxed)
    }

    /// The flags.
    pub fn flags(&self) -> SbFlags {
        SbFlags::from_bits_retain(self.flags.load(Ordering::Relaxed))
    }

    /// Sets the root directory.
    pub fn set_root(self: &Arc<Self>, inode: Arc<Inode>) {
        *self.root.lock() = Some(Dentry::new_root(inode));
    }

    /// The root directory.
    ///
    /// # Errors
    /// `ENODEV` after the last unmount.
    pub fn root(&self) -> Result<Arc<Dentry>> {
        self.root.lock().clone().ok_or(Errno::ENODEV)
    }

    /// Ends the file system: the root and its cached tree go as soon as nobody uses them.
    pub fn shutdown(&self) {
        let root = self.root.lock().take();
        if let Some(root) = root {
            root.forget_tree();
        }
        self.ops.shutdown(self);
    }
}

/// A file system type.
pub trait FileSystem: Send + Sync {
    /// Its name for `mount(2)`.
    fn name(&self) -> &'static str;
    /// Whether it needs no device (`nodev` in `/proc/filesystems`).
    fn nodev(&self) -> bool {
        true
    }
    /// Makes or finds the file system for `mount(2)`.
    ///
    /// # Errors
    /// As mount(2): `EINVAL` for bad options, `ENODEV`, `ENOMEM`.
    fn mount(&self, source: &[u8], flags: SbFlags, data: &[u8]) -> Result<Arc<SuperBlock>>;
    /// As [`FileSystem::mount`], with what followed the name and a dot in the type.
    ///
    /// # Errors
    /// Those of [`FileSystem::mount`]; `ENODEV` for a type without subtypes.
    fn mount_subtype(&self, subtype: &[u8], source: &[u8], flags: SbFlags, data: &[u8]) -> Result<Arc<SuperBlock>> {
        if subtype.is_empty() { self.mount(source, flags, data) } else { Err(Errno::ENODEV) }
    }
}

/// An open file that ended: used by [`InodeOps`] implementations that want the inode of a [`File`].
///
/// # Errors
/// `EBADF` for a file without an inode.
pub fn inode_of(f: &File) -> Result<&Arc<Inode>> {
    f.inode().ok_or(Errno::EBADF)
}
