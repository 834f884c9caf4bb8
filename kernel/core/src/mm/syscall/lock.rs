//! `mlock` and its family, `mincore`, `msync`.

use linux_uapi::raw::general as uapi;
use ursa_hal::VirtAddr;

use crate::mm::lock::LockAll;
use crate::syscall::Cx;
use crate::user::{self, UserAddr};
use crate::{Errno, Result};

/// mlock(2).
pub(super) fn sys_mlock(cx: &mut Cx<'_>, addr: UserAddr, len: usize) -> Result {
    cx.thread.vm().mlock(addr, len, false)
}

/// mlock2(2).
pub(super) fn sys_mlock2(cx: &mut Cx<'_>, addr: UserAddr, len: usize, flags: u32) -> Result {
    if flags & !uapi::MLOCK_ONFAULT != 0 {
        return Err(Errno::EINVAL);
    }
    cx.thread.vm().mlock(addr, len, flags & uapi::MLOCK_ONFAULT != 0)
}

/// munlock(2).
pub(super) fn sys_munlock(cx: &mut Cx<'_>, addr: UserAddr, len: usize) -> Result {
    cx.thread.vm().munlock(addr, len)
}

/// mlockall(2).
pub(super) fn sys_mlockall(cx: &mut Cx<'_>, flags: u32) -> Result {
    let which = LockAll::from_bits(flags).ok_or(Errno::EINVAL)?;
    if which.is_empty() || which == LockAll::ONFAULT {
        return Err(Errno::EINVAL);
    }
    cx.thread.vm().mlockall(which)
}

/// munlockall(2).
pub(super) fn sys_munlockall(cx: &mut Cx<'_>) -> Result {
    cx.thread.vm().munlockall()
}

/// mincore(2).
pub(super) fn sys_mincore(cx: &mut Cx<'_>, addr: UserAddr, len: usize, vec: UserAddr) -> Result {
    cx.thread
        .vm()
        .mincore(addr, len, |at, bytes| user::write_bytes(VirtAddr::new(vec.as_u64().wrapping_add(at as u64)), bytes))
}

/// msync(2).
pub(super) fn sys_msync(cx: &mut Cx<'_>, addr: UserAddr, len: usize, flags: u32) -> Result {
    let (asynchronous, invalidate, sync) = (uapi::MS_ASYNC, uapi::MS_INVALIDATE, uapi::MS_SYNC);
    if flags & !(asynchronous | invalidate | sync) != 0 || flags & (asynchronous | sync) == asynchronous | sync {
        return Err(Errno::EINVAL);
    }
    cx.thread.vm().msync(addr, len, flags & sync != 0, flags & invalidate != 0)
}
