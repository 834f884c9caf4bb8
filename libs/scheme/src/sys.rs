//! The extension ioctls of a connection, and the memory of its journal, as safe functions: the only `unsafe` of this crate.
//!
//! Each function owns the structure that the ioctl takes and the buffers that the structure points to for as long as the
//! call lasts; the structures themselves are [`fuse_abi::scheme`]'s, whose sizes are part of the request numbers.
#![allow(unsafe_code)]

use std::{
    ffi::c_void,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering, compiler_fence},
};

use fuse_abi::scheme::{self as abi};
use rustix::{
    io::Errno,
    ioctl::{self, IoctlOutput, Opcode},
};

/// One ioctl whose argument is a structure.
struct Call<'a, T> {
    number: u32,
    argument: &'a mut T,
}

// SAFETY: `as_ptr` gives a valid, exclusive pointer to a structure of the size in the number; whether the structure's own
// pointers are right is a matter for the functions below, which make them from slices.
unsafe impl<T> ioctl::Ioctl for Call<'_, T> {
    type Output = i32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.number as Opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (self.argument as *mut T).cast()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(output)
    }
}

/// Makes one call; the result is ioctl(2)'s.
///
/// # Safety
/// Pointers in `argument` are valid for what `number` does with them.
unsafe fn call<T>(fd: BorrowedFd<'_>, number: u32, argument: &mut T) -> Result<i32, Errno> {
    loop {
        // SAFETY: `Call` is right for the number by construction, and the caller vouches for the structure's pointers.
        match unsafe { ioctl::ioctl(fd, Call { number, argument }) } {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Takes possession of a descriptor that an ioctl has just made.
fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel returned it as new, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// `SCHEME_IOC_CREATE`.
pub fn create(device: BorrowedFd<'_>, mut request: abi::Create, ranges: &[abi::Range]) -> io::Result<OwnedFd> {
    request.ranges = ranges.as_ptr().addr() as u64;
    request.nranges = ranges.len() as u32;
    ranges.as_ptr().expose_provenance();
    // SAFETY: `ranges` holds `nranges` structures and outlives the call.
    Ok(owned(unsafe { call(device, abi::SCHEME_IOC_CREATE, &mut request) }?))
}

/// How long `SCHEME_IOC_REPLY_WAIT` waits.
#[derive(Clone, Copy)]
pub enum Wait<'a> {
    /// Not at all.
    No,
    /// For a request.
    Request,
    /// For a request or until this is readable.
    Beside(BorrowedFd<'a>),
}

/// `SCHEME_IOC_REPLY_WAIT`. Unlike the others it is not restarted after a signal: the reply may have been taken.
pub fn reply_wait(fd: BorrowedFd<'_>, reply: &[u8], into: &mut [u8], wait: Wait<'_>) -> Result<usize, Errno> {
    let (flags, events) = match wait {
        Wait::No => (abi::ReplyWaitFlags::NONBLOCK, -1),
        Wait::Request => (abi::ReplyWaitFlags::empty(), -1),
        Wait::Beside(events) => (abi::ReplyWaitFlags::EVENTS, events.as_raw_fd()),
    };
    let mut request = abi::ReplyWait {
        reply: reply.as_ptr().expose_provenance() as u64,
        reply_len: reply.len() as u64,
        recv: into.as_mut_ptr().expose_provenance() as u64,
        recv_len: into.len() as u64,
        flags: flags.bits(),
        events,
    };
    // SAFETY: both buffers outlive the call with the lengths given.
    unsafe { ioctl::ioctl(fd, Call { number: abi::SCHEME_IOC_REPLY_WAIT, argument: &mut request }) }
        .map(|length| length as usize)
}

/// `SCHEME_IOC_PUBLISH`.
pub fn publish(fd: BorrowedFd<'_>, description: &[u8]) -> io::Result<()> {
    let mut request =
        abi::Publish { desc: description.as_ptr().expose_provenance() as u64, desc_len: description.len() as u64 };
    // SAFETY: the text outlives the call with the length given.
    unsafe { call(fd, abi::SCHEME_IOC_PUBLISH, &mut request) }?;
    Ok(())
}

/// `SCHEME_IOC_UNPUBLISH`.
pub fn unpublish(fd: BorrowedFd<'_>, cookie: u64) -> io::Result<()> {
    // SAFETY: the structure has no pointers.
    unsafe { call(fd, abi::SCHEME_IOC_UNPUBLISH, &mut abi::Unpublish { cookie }) }?;
    Ok(())
}

/// `SCHEME_IOC_UEVENT` and `SCHEME_IOC_ATTR`.
pub fn device_text(fd: BorrowedFd<'_>, number: u32, cookie: u64, text: &[u8]) -> io::Result<()> {
    let mut request =
        abi::DeviceText { cookie, text: text.as_ptr().expose_provenance() as u64, text_len: text.len() as u64 };
    // SAFETY: the text outlives the call with the length given.
    unsafe { call(fd, number, &mut request) }?;
    Ok(())
}

/// `SCHEME_IOC_READY`.
pub fn ready(fd: BorrowedFd<'_>, fh: u64, mask: u32) -> Result<(), Errno> {
    // SAFETY: the structure has no pointers.
    unsafe { call(fd, abi::SCHEME_IOC_READY, &mut abi::Ready { fh, mask, padding: 0 }) }.map(drop)
}

/// `SCHEME_IOC_COPY` from the caller.
pub fn copy_in(fd: BorrowedFd<'_>, unique: u64, addr: u64, into: &mut [u8]) -> Result<usize, Errno> {
    let buf = into.as_mut_ptr().expose_provenance() as u64;
    let mut request = abi::Copy { unique, addr, buf, len: into.len() as u64, dir: abi::COPY_FROM_CALLER, padding: 0 };
    // SAFETY: the kernel writes at most `len` bytes to `into`, which outlives the call.
    unsafe { call(fd, abi::SCHEME_IOC_COPY, &mut request) }.map(|copied| copied as usize)
}

/// `SCHEME_IOC_COPY` to the caller.
pub fn copy_out(fd: BorrowedFd<'_>, unique: u64, addr: u64, data: &[u8]) -> Result<usize, Errno> {
    let buf = data.as_ptr().expose_provenance() as u64;
    let mut request = abi::Copy { unique, addr, buf, len: data.len() as u64, dir: abi::COPY_TO_CALLER, padding: 0 };
    // SAFETY: the kernel reads at most `len` bytes of `data`, which outlives the call.
    unsafe { call(fd, abi::SCHEME_IOC_COPY, &mut request) }.map(|copied| copied as usize)
}

/// `SCHEME_IOC_INSTALL_FD`.
pub fn install_fd(fd: BorrowedFd<'_>, unique: u64, object: BorrowedFd<'_>, flags: u32) -> Result<i32, Errno> {
    let mut request = abi::InstallFd { unique, fd: object.as_raw_fd(), flags };
    // SAFETY: the structure has no pointers.
    unsafe { call(fd, abi::SCHEME_IOC_INSTALL_FD, &mut request) }
}

/// `SCHEME_IOC_INSTALL_FILE`.
pub fn install_file(fd: BorrowedFd<'_>, mut request: abi::InstallFile) -> Result<i32, Errno> {
    // SAFETY: the structure has no pointers.
    unsafe { call(fd, abi::SCHEME_IOC_INSTALL_FILE, &mut request) }
}

/// `SCHEME_IOC_GRAB_FD`: a descriptor, or the number of one of the server's own open files.
pub fn grab_fd(fd: BorrowedFd<'_>, unique: u64, theirs: i32) -> Result<Result<OwnedFd, u64>, Errno> {
    let mut request = abi::GrabFd { unique, fd: theirs, padding: 0, fh: 0 };
    // SAFETY: the structure has no pointers.
    match unsafe { call(fd, abi::SCHEME_IOC_GRAB_FD, &mut request) } {
        Ok(new) => Ok(Ok(owned(new))),
        Err(Errno::XDEV) => Ok(Err(request.fh)),
        Err(errno) => Err(errno),
    }
}

/// `SCHEME_IOC_REVOKE`.
pub fn revoke(fd: BorrowedFd<'_>, fh: u64, offset: u64, len: u64) -> Result<(), Errno> {
    // SAFETY: the structure has no pointers.
    unsafe { call(fd, abi::SCHEME_IOC_REVOKE, &mut abi::Revoke { fh, offset, len }) }.map(drop)
}

/// `SCHEME_IOC_KEEP`.
pub fn keep(fd: BorrowedFd<'_>, key: u64, object: BorrowedFd<'_>) -> io::Result<()> {
    let mut request = abi::Keep { key, fd: object.as_raw_fd(), padding: 0 };
    // SAFETY: the structure has no pointers.
    unsafe { call(fd, abi::SCHEME_IOC_KEEP, &mut request) }?;
    Ok(())
}

/// `SCHEME_IOC_KEEP_GET`.
pub fn keep_get(fd: BorrowedFd<'_>, key: u64) -> io::Result<OwnedFd> {
    let mut request = abi::Keep { key, fd: -1, padding: 0 };
    // SAFETY: the structure has no pointers.
    Ok(owned(unsafe { call(fd, abi::SCHEME_IOC_KEEP_GET, &mut request) }?))
}

/// `SCHEME_IOC_KEEP_DROP`.
pub fn keep_drop(fd: BorrowedFd<'_>, key: u64) -> io::Result<()> {
    let mut request = abi::Keep { key, fd: -1, padding: 0 };
    // SAFETY: the structure has no pointers.
    unsafe { call(fd, abi::SCHEME_IOC_KEEP_DROP, &mut request) }?;
    Ok(())
}

/// `SCHEME_IOC_KEEP_LIST`.
pub fn keep_list(fd: BorrowedFd<'_>) -> io::Result<Vec<u64>> {
    let mut keys = vec![0u64; 64];
    loop {
        let mut request =
            abi::KeepList { keys: keys.as_mut_ptr().expose_provenance() as u64, count: keys.len() as u64 };
        // SAFETY: there is room for `count` keys, and the vector outlives the call.
        let all = unsafe { call(fd, abi::SCHEME_IOC_KEEP_LIST, &mut request) }? as usize;
        if all <= keys.len() {
            keys.truncate(all);
            return Ok(keys);
        }
        keys.resize(all, 0);
    }
}

/// `SCHEME_IOC_RESUME`.
pub fn resume(fd: BorrowedFd<'_>) -> io::Result<usize> {
    // The number takes no argument; the kernel ignores the pointer.
    // SAFETY: the structure has no pointers.
    Ok(unsafe { call(fd, abi::SCHEME_IOC_RESUME, &mut 0u64) }? as usize)
}

/// `SCHEME_IOC_COMMITTED`.
pub fn committed(fd: BorrowedFd<'_>, upto: u64, also: &[abi::Done]) -> Result<(), Errno> {
    let also = &also[..also.len().min(abi::ALSO_MAX)];
    let mut request = abi::Committed { upto, also: also.as_ptr().expose_provenance() as u64, count: also.len() as u64 };
    // SAFETY: `also` holds `count` structures and outlives the call.
    unsafe { call(fd, abi::SCHEME_IOC_COMMITTED, &mut request) }.map(drop)
}

/// `SCHEME_IOC_LIVE` and `SCHEME_IOC_OUTSTANDING`: `T` is what they list.
fn list<T: Copy + Default + zerocopy::FromBytes>(fd: BorrowedFd<'_>, number: u32) -> Result<Vec<T>, Errno> {
    let mut entries = vec![T::default(); 1024];
    loop {
        let mut request =
            abi::Room { at: entries.as_mut_ptr().expose_provenance() as u64, count: entries.len() as u64 };
        // SAFETY: there is room for `count` entries, any bytes are one, and the vector outlives the call.
        let all = unsafe { call(fd, number, &mut request) }? as usize;
        if all <= entries.len() {
            entries.truncate(all);
            return Ok(entries);
        }
        entries.resize(all, T::default());
    }
}

/// `SCHEME_IOC_LIVE`.
pub fn live(fd: BorrowedFd<'_>) -> Result<Vec<abi::Live>, Errno> {
    list(fd, abi::SCHEME_IOC_LIVE)
}

/// `SCHEME_IOC_OUTSTANDING`.
pub fn outstanding(fd: BorrowedFd<'_>) -> Result<Vec<u64>, Errno> {
    list(fd, abi::SCHEME_IOC_OUTSTANDING)
}

/// The descriptor that the service manager passed at this number.
pub fn passed(fd: i32) -> OwnedFd {
    owned(fd)
}

/// Memory that outlives the process: a mapping of a memfd that the kernel keeps. Nobody else writes to it; that a process
/// may be killed between any two stores is what its user has to reckon with.
pub struct Memory {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is the process's, not a thread's, and all access goes through `&mut self` or copies.
unsafe impl Send for Memory {}

impl Memory {
    /// Maps the first `len` bytes of a file that is that long.
    ///
    /// # Errors
    /// mmap(2)'s.
    pub fn map(fd: BorrowedFd<'_>, len: usize) -> io::Result<Memory> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses free addresses, so nothing that exists is replaced.
        let base = unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, fd, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Memory { base, len })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    fn check(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "outside of the mapping");
        // SAFETY: within the mapping, as just checked.
        unsafe { self.base.add(offset) }
    }

    /// Copies out.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let at = self.check(offset, into.len());
        // SAFETY: the range is mapped, and `into` lies elsewhere: nothing of Rust's lies in the mapping.
        unsafe { at.as_ptr().copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
    }

    /// Copies in.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let at = self.check(offset, data.len());
        // SAFETY: as for reading.
        unsafe { at.as_ptr().copy_from_nonoverlapping(data.as_ptr(), data.len()) };
    }

    /// Stores a word, whole or not at all, after everything that was written before.
    pub fn publish(&mut self, offset: usize, value: u64) {
        assert!(offset.is_multiple_of(8), "misaligned");
        let at = self.check(offset, 8);
        // A kill comes between instructions, and another process reads only after it: the compiler's order is what counts.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: mapped and aligned; every access to this word while the process runs is by this thread.
        unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) }.store(value, Ordering::Release);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `map` made this mapping, and nobody holds a pointer into it.
        // An error would mean that it is not mapped; there is nothing to do about it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
