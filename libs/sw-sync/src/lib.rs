//! Software timelines: fences (`sync_file` descriptors) that a program signals, through `/dev/sw_sync`.
//!
//! A [`Timeline`] counts up; a fence made for a value signals when the counter reaches it. Closing the timeline signals what
//! is left of it with an error. The two ioctls are all the `unsafe` there is.
//!
//! Reference: `drivers/dma-buf/sw_sync.c` (`SW_SYNC_IOC_CREATE_FENCE`, `SW_SYNC_IOC_INC`), `Documentation/driver-api/sync_file.rst`.

use std::ffi::CStr;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::ioctl::{Setter, Updater, ioctl, opcode};

const MAGIC: u8 = b'W';
const CREATE_FENCE: rustix::ioctl::Opcode = opcode::read_write::<CreateFence>(MAGIC, 0);
const INC: rustix::ioctl::Opcode = opcode::write::<u32>(MAGIC, 1);

/// `struct sw_sync_create_fence_data`.
#[repr(C)]
struct CreateFence {
    value: u32,
    name: [u8; 32],
    fence: i32,
}

/// A timeline, at 0.
#[derive(Debug)]
pub struct Timeline {
    fd: OwnedFd,
}

impl Timeline {
    /// Opens a new timeline.
    ///
    /// # Errors
    /// As open(2) of `/dev/sw_sync`: `ENOENT` where the kernel has none.
    pub fn open() -> io::Result<Timeline> {
        let fd = open("/dev/sw_sync", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Timeline { fd })
    }

    /// Makes a fence that signals when the counter reaches `value`.
    ///
    /// # Errors
    /// `EMFILE`, `ENOMEM`.
    pub fn create_fence(&self, name: &CStr, value: u32) -> io::Result<OwnedFd> {
        let mut data = CreateFence { value, name: [0; 32], fence: -1 };
        let bytes = name.to_bytes();
        let len = bytes.len().min(data.name.len() - 1);
        data.name[..len].copy_from_slice(&bytes[..len]);
        // SAFETY: the opcode is this structure's, which the kernel reads and writes whole and keeps no pointer to.
        unsafe { ioctl(&self.fd, Updater::<{ CREATE_FENCE }, CreateFence>::new(&mut data)) }?;
        if data.fence < 0 {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        // SAFETY: the kernel made this descriptor for us just now; nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(data.fence) })
    }

    /// Counts up by `steps`.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn advance(&self, steps: u32) -> io::Result<()> {
        // SAFETY: the opcode takes a pointer to a u32, which `Setter` passes, and the kernel only reads it.
        unsafe { ioctl(&self.fd, Setter::<{ INC }, u32>::new(steps)) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_headers() {
        assert_eq!(size_of::<CreateFence>(), 40);
        assert_eq!(CREATE_FENCE, 0xc028_5700);
        assert_eq!(INC, 0x4004_5701);
    }
}
