//! The ioctls of `/dev/net/tun` as safe functions: the only `unsafe` of this crate.
#![allow(unsafe_code)]

use std::{ffi::c_void, io, os::fd::BorrowedFd, ptr};

use rustix::ioctl::{self, IoctlOutput, Opcode};

/// `struct ifreq`: a name, and what the request makes of the rest.
pub type IfReq = [u8; 40];

/// One ioctl: its number and its argument, an address or a plain value.
struct Call {
    number: u32,
    argument: *mut c_void,
}

// SAFETY: the argument is passed on as it is; whether it is right for the number is for the functions below.
unsafe impl ioctl::Ioctl for Call {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.number as Opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// A request whose argument is a number.
pub fn value(fd: BorrowedFd<'_>, number: u32, value: usize) -> io::Result<()> {
    let argument = ptr::without_provenance_mut(value);
    // SAFETY: the callers' requests (TUNSETPERSIST) take the argument as a number.
    Ok(unsafe { ioctl::ioctl(fd, Call { number, argument }) }?)
}

/// A request whose argument is the address of an `int`.
pub fn int(fd: BorrowedFd<'_>, number: u32, mut value: i32) -> io::Result<()> {
    let argument = (&raw mut value).cast();
    // SAFETY: the kernel reads an int there, and it outlives the call.
    Ok(unsafe { ioctl::ioctl(fd, Call { number, argument }) }?)
}

/// A request whose argument is the address of a `struct ifreq`.
pub fn request(fd: BorrowedFd<'_>, number: u32, request: &mut IfReq) -> io::Result<()> {
    let argument = request.as_mut_ptr().cast();
    // SAFETY: the kernel reads and writes a struct ifreq there, which has this size, and it outlives the call.
    Ok(unsafe { ioctl::ioctl(fd, Call { number, argument }) }?)
}
