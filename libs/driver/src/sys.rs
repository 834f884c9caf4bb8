//! The three system calls that the type system cannot check: ioctl, mmap, and adopting a passed descriptor.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use linux_uapi::vduse;
use linux_uapi::zerocopy::{FromBytes, IntoBytes};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use rustix::mm::{MapFlags, ProtFlags};

/// One ioctl on bytes that both sides may change.
struct Call<'a> {
    opcode: u32,
    argument: &'a mut [u8],
}

// SAFETY: the pointer is valid for reads and writes of the whole argument while the call runs (it borrows it), and the call is
// declared as mutating. That the kernel keeps within the argument is `bytes`'s duty.
unsafe impl Ioctl for Call<'_> {
    type Output = i32;
    const IS_MUTATING: bool = true;
    fn opcode(&self) -> Opcode {
        self.opcode as Opcode
    }
    fn as_ptr(&mut self) -> *mut c_void {
        self.argument.as_mut_ptr().cast()
    }
    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

/// Calls ioctl `opcode` with a variable-length argument that starts with its own size (VFIO's `argsz`, iommufd's `size`).
pub(crate) fn sized(fd: impl AsFd, opcode: u32, argument: &mut [u8]) -> io::Result<i32> {
    let said = argument.first_chunk::<4>().map_or(u32::MAX, |b| u32::from_ne_bytes(*b));
    if said as usize > argument.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: VFIO's and iommufd's ioctls write no more than the size that the argument starts with, which is within it.
    Ok(unsafe { rustix::ioctl::ioctl(fd, Call { opcode, argument }) }?)
}

/// Calls ioctl `opcode` with a structure that starts with its own size.
pub(crate) fn ioctl<T: FromBytes + IntoBytes>(fd: impl AsFd, opcode: u32, argument: &mut T) -> io::Result<i32> {
    sized(fd, opcode, argument.as_mut_bytes())
}

/// Calls an ioctl that has its argument's size in its number (`_IOWR`).
pub(crate) fn encoded<T: FromBytes + IntoBytes>(fd: impl AsFd, opcode: u32, argument: &mut T) -> io::Result<i32> {
    let argument = argument.as_mut_bytes();
    if (opcode >> 16 & 0x3fff) as usize != argument.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the kernel writes no more than the size in the number, which is the argument's.
    Ok(unsafe { rustix::ioctl::ioctl(fd, Call { opcode, argument }) }?)
}

/// As [`ioctl`], with an array that the structure points to: `pointer` says which field. The caller has put `array`'s length
/// into the structure.
pub(crate) fn with_array<T: FromBytes + IntoBytes, E: FromBytes + IntoBytes>(
    fd: impl AsFd,
    opcode: u32,
    argument: &mut T,
    pointer: impl FnOnce(&mut T) -> &mut u64,
    array: &mut [E],
) -> io::Result<i32> {
    *pointer(argument) = array.as_mut_ptr().expose_provenance() as u64;
    ioctl(fd, opcode, argument)
}

/// Takes ownership of a descriptor that the kernel installed for this process (`DMA_HEAP_IOCTL_ALLOC`, `VDUSE_IOTLB_GET_FD`).
pub(crate) fn installed(fd: u32) -> OwnedFd {
    // SAFETY: the callers pass what a successful ioctl has just returned as a new descriptor.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

/// Calls an ioctl without an argument.
pub(crate) fn bare(fd: impl AsFd, opcode: u32) -> io::Result<i32> {
    // SAFETY: the callers' numbers (`VFIO_DEVICE_RESET`, `VDUSE_URSA_OPEN` …) take no argument, so the kernel uses no pointer.
    Ok(unsafe { rustix::ioctl::ioctl(fd, Call { opcode, argument: &mut [] }) }?)
}

/// `VDUSE_CREATE_DEV`: the configuration follows the structure, whose field says how long it is.
pub(crate) fn vduse_create(fd: impl AsFd, mut config: vduse::DevConfig, space: &[u8]) -> io::Result<i32> {
    config.config_size = u32::try_from(space.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut argument = [config.as_bytes(), space].concat();
    // SAFETY: the kernel reads the structure and as many bytes behind it as the structure says, which are there; it writes none.
    Ok(unsafe { rustix::ioctl::ioctl(fd, Call { opcode: vduse::CREATE_DEV, argument: &mut argument }) }?)
}

/// `VDUSE_DEV_SET_CONFIG`: the bytes follow the structure, whose field says how many they are.
pub(crate) fn vduse_config(fd: impl AsFd, offset: u32, space: &[u8]) -> io::Result<i32> {
    let length = u32::try_from(space.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut argument = [vduse::ConfigData { offset, length }.as_bytes(), space].concat();
    // SAFETY: as for `vduse_create`.
    Ok(unsafe { rustix::ioctl::ioctl(fd, Call { opcode: vduse::DEV_SET_CONFIG, argument: &mut argument }) }?)
}

/// A shared mapping of a file. It ends with the value.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is process-wide, and all access goes through volatile operations.
unsafe impl Send for Mapping {}
// SAFETY: as above; concurrent volatile accesses of other threads are like those of the device.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` at `offset`, to read and write.
    pub(crate) fn new(fd: impl AsFd, offset: u64, len: usize) -> io::Result<Self> {
        // SAFETY: the kernel chooses free addresses, so nothing that exists is replaced.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                offset,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { base, len })
    }

    /// First byte; valid while `self` lives.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes that can be accessed.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` made this mapping, and whoever holds a pointer into it borrows `self`.
        // An error would mean that it is not mapped; there is nothing to do about it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Takes ownership of descriptor `fd`, which another process passed at exec.
///
/// `passed` calls this at most once for each number that the environment lists.
pub(crate) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only borrowed for the question whether it is open; -1 is excluded by the caller's range.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: open as just seen; the environment says that it was passed for this process, and `passed` gives it out once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
