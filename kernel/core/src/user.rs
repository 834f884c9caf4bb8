//! Typed user memory: how a system call reads its arguments behind pointers and writes its results.
//!
//! [`UserPtr<T>`] names a `T` in the calling process's address space; nothing is dereferenced until [`UserPtr::read`] or
//! [`UserPtr::write`], which copy and report `EFAULT`. Only types that zerocopy proves free of padding and invalid bit
//! patterns can cross. No raw user address passes beyond the handler that decoded it, except as such a pointer or
//! inside a [`crate::fs::Sink`] or [`crate::fs::Source`].
//!
//! Copies may fault pages in and therefore sleep: never copy while holding a spin lock.

use alloc::vec::Vec;
use core::marker::PhantomData;

use linux_uapi::zerocopy::{FromBytes, Immutable, IntoBytes};
use ursa_hal::user as hal_user;

use crate::{Errno, Result};

/// An address in the calling process's address space; not yet checked.
pub type UserAddr = ursa_hal::addr::VirtAddr;

/// Bytes of the longest path that a call accepts, with its NUL: `PATH_MAX` of `<linux/limits.h>`.
pub const PATH_MAX: usize = 4096;

/// A pointer to a `T` in user memory.
pub struct UserPtr<T> {
    addr: u64,
    _marker: PhantomData<fn() -> T>,
}

impl<T> Clone for UserPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for UserPtr<T> {}

impl<T> UserPtr<T> {
    /// Makes a pointer from the value of a register or a structure's field.
    pub const fn new(addr: u64) -> Self {
        Self { addr, _marker: PhantomData }
    }

    /// Whether the program passed `NULL`.
    pub const fn is_null(self) -> bool {
        self.addr == 0
    }

    /// The address itself.
    pub const fn addr(self) -> UserAddr {
        ursa_hal::addr::VirtAddr::new(self.addr)
    }

    /// `None` for `NULL`, for arguments where that means "not given".
    pub fn non_null(self) -> Option<Self> {
        (!self.is_null()).then_some(self)
    }

    /// The pointer `index` elements further on; wraps as C's arithmetic would, the copy then reports `EFAULT`.
    pub const fn add(self, index: usize) -> Self {
        Self::new(self.addr.wrapping_add((index as u64).wrapping_mul(size_of::<T>() as u64)))
    }

    /// The same address as a pointer to another type.
    pub const fn cast<U>(self) -> UserPtr<U> {
        UserPtr::new(self.addr)
    }
}

impl<T: FromBytes + IntoBytes> UserPtr<T> {
    /// Copies the value in.
    ///
    /// # Errors
    /// `EFAULT` when any byte is not readable.
    #[inline]
    pub fn read(self) -> Result<T> {
        let mut value = T::new_zeroed();
        hal_user::copy_from_user(value.as_mut_bytes(), self.addr()).map_err(|_| Errno::EFAULT)?;
        Ok(value)
    }
}

impl<T: IntoBytes + Immutable> UserPtr<T> {
    /// Copies the value out.
    ///
    /// # Errors
    /// `EFAULT` when any byte is not writable; a part may have been written, as on Linux.
    #[inline]
    pub fn write(self, value: &T) -> Result {
        hal_user::copy_to_user(self.addr(), value.as_bytes()).map_err(|_| Errno::EFAULT)
    }

    /// Copies the value out unless the pointer is `NULL`.
    ///
    /// # Errors
    /// As [`UserPtr::write`].
    pub fn write_if_given(self, value: &T) -> Result {
        if self.is_null() { Ok(()) } else { self.write(value) }
    }
}

/// Copies `buf.len()` bytes in.
///
/// # Errors
/// `EFAULT` when any byte is not readable.
pub fn read_bytes(addr: UserAddr, buf: &mut [u8]) -> Result {
    hal_user::copy_from_user(buf, addr).map_err(|_| Errno::EFAULT)
}

/// Copies `bytes` out.
///
/// # Errors
/// `EFAULT` when any byte is not writable.
pub fn write_bytes(addr: UserAddr, bytes: &[u8]) -> Result {
    hal_user::copy_to_user(addr, bytes).map_err(|_| Errno::EFAULT)
}

/// Writes `len` zero bytes.
///
/// # Errors
/// `EFAULT` when any byte is not writable.
pub fn clear(addr: UserAddr, len: usize) -> Result {
    hal_user::fill_user(addr, len, 0).map_err(|_| Errno::EFAULT)
}

/// Copies an extensible structure in, whose size the program states: what is missing is zero, what is unknown here must be
/// (`copy_struct_from_user`). The caller has bounded `size`.
///
/// # Errors
/// `EFAULT`, or `E2BIG` for a member that is not known here and not zero.
pub fn read_extensible<T: FromBytes + IntoBytes>(addr: UserAddr, size: usize) -> Result<T> {
    let known = size_of::<T>();
    let mut value = T::new_zeroed();
    read_bytes(addr, &mut value.as_mut_bytes()[..size.min(known)])?;
    let mut at = known;
    while at < size {
        let mut rest = [0; 64];
        let n = rest.len().min(size - at);
        read_bytes(UserAddr::new(addr.as_u64().wrapping_add(at as u64)), &mut rest[..n])?;
        if rest[..n].iter().any(|&b| b != 0) {
            return Err(Errno::E2BIG);
        }
        at += n;
    }
    Ok(value)
}

/// Reads `count` elements. The caller has bounded `count`.
///
/// # Errors
/// `EFAULT`, or `ENOMEM` when the kernel cannot hold them.
pub fn read_slice<T: FromBytes + IntoBytes>(ptr: UserPtr<T>, count: usize) -> Result<Vec<T>> {
    let mut values = T::new_vec_zeroed(count).map_err(|_| Errno::ENOMEM)?;
    read_bytes(ptr.addr(), values.as_mut_slice().as_mut_bytes())?;
    Ok(values)
}

/// Writes all of `values`.
///
/// # Errors
/// `EFAULT` when any byte is not writable.
pub fn write_slice<T: IntoBytes + Immutable>(ptr: UserPtr<T>, values: &[T]) -> Result {
    write_bytes(ptr.addr(), values.as_bytes())
}

/// Reads a NUL-terminated string of fewer than `max` bytes; the result has no NUL.
///
/// # Errors
/// `EFAULT`; `ENAMETOOLONG` when no NUL stands in the first `max` bytes.
pub fn read_cstr(addr: UserAddr, max: usize) -> Result<Vec<u8>> {
    // Most strings are short: one small copy on the stack, then only what is needed on the heap.
    let mut small = [0u8; 256];
    let first = max.min(small.len());
    if let Some(len) = strncpy(&mut small[..first], addr)? {
        return Ok(small[..len].to_vec());
    }
    if first == max {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut buf = Vec::new();
    buf.try_reserve_exact(max).map_err(|_| Errno::ENOMEM)?;
    buf.resize(max, 0);
    match strncpy(&mut buf, addr)? {
        Some(len) => {
            buf.truncate(len);
            Ok(buf)
        }
        None => Err(Errno::ENAMETOOLONG),
    }
}

/// Reads a path name as [`read_cstr`] does, with `PATH_MAX` as its limit.
///
/// # Errors
/// `EFAULT`, `ENAMETOOLONG`.
pub fn read_path(addr: UserAddr) -> Result<Vec<u8>> {
    read_cstr(addr, PATH_MAX)
}

/// Copies a string in; the length without its NUL, or `None` when the buffer filled up first.
fn strncpy(buf: &mut [u8], addr: UserAddr) -> Result<Option<usize>> {
    match hal_user::strncpy_from_user(buf, addr) {
        Ok(len) => Ok(Some(len)),
        Err(hal_user::StrError::TooLong) => Ok(None),
        Err(hal_user::StrError::Fault) => Err(Errno::EFAULT),
    }
}
