//! uinput's ioctls as safe functions: the only `unsafe` of this crate.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_void},
    io,
    os::fd::BorrowedFd,
    ptr,
};

use linux_uapi::input::{UI_ABS_SETUP, UI_DEV_SETUP, UI_URSA_GET_WRITTEN, UinputAbsSetup, UinputSetup};
use rustix::ioctl::{self, IoctlOutput, Opcode};

/// One ioctl: its number and its argument, an address or a plain value.
struct Call {
    number: u32,
    argument: *mut c_void,
}

// SAFETY: the argument is passed on as it is; whether it is right for the number is for the functions below. One of them has the
// kernel write to it, so the call is declared as mutating.
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
pub fn value(fd: BorrowedFd<'_>, number: u32, value: u16) -> io::Result<()> {
    let argument = ptr::without_provenance_mut(usize::from(value));
    // SAFETY: uinput takes the argument of these requests as a number.
    Ok(unsafe { ioctl::ioctl(fd, Call { number, argument }) }?)
}

/// A request whose argument is a string.
pub fn string(fd: BorrowedFd<'_>, number: u32, text: &CStr) -> io::Result<()> {
    let argument = text.as_ptr().cast_mut().cast();
    // SAFETY: the kernel reads the string up to its NUL, and it outlives the call.
    Ok(unsafe { ioctl::ioctl(fd, Call { number, argument }) }?)
}

/// `UI_DEV_SETUP`.
pub fn dev_setup(fd: BorrowedFd<'_>, mut setup: UinputSetup) -> io::Result<()> {
    let argument = (&raw mut setup).cast();
    // SAFETY: the number is made from the structure's size, and the kernel only reads it.
    Ok(unsafe { ioctl::ioctl(fd, Call { number: UI_DEV_SETUP, argument }) }?)
}

/// `UI_ABS_SETUP`.
pub fn abs_setup(fd: BorrowedFd<'_>, mut setup: UinputAbsSetup) -> io::Result<()> {
    let argument = (&raw mut setup).cast();
    // SAFETY: the number is made from the structure's size, and the kernel only reads it.
    Ok(unsafe { ioctl::ioctl(fd, Call { number: UI_ABS_SETUP, argument }) }?)
}

/// `UI_URSA_GET_WRITTEN`.
pub fn written(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut count = 0_u32;
    let argument = (&raw mut count).cast();
    // SAFETY: the kernel writes the four bytes that the number names, which are there; nothing else uses them meanwhile.
    unsafe { ioctl::ioctl(fd, Call { number: UI_URSA_GET_WRITTEN, argument }) }?;
    Ok(count)
}
