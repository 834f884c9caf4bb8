//! `process_vm_readv`, `process_vm_writev`, `process_madvise`, `process_mrelease`: other processes' memory.

use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_uapi::raw::general as uapi;
use ursa_hal::VirtAddr;

use crate::mm::AddressSpace;
use crate::mm::vma::PAGE;
use crate::process::{self, Cap, capable};
use crate::syscall::Cx;
use crate::user::{self, UserPtr};
use crate::{Errno, Result, ptrace};

/// `UIO_MAXIOV`.
const MAX_SEGMENTS: u64 = 1024;

/// The address space of `pid` (0: the caller's), if the caller may trace that process.
pub(super) fn target(cx: &Cx<'_>, pid: i32) -> Result<Arc<AddressSpace>> {
    if pid == 0 {
        return Ok(cx.thread.vm());
    }
    let thread = process::seen_thread(pid).ok_or(Errno::ESRCH)?;
    ptrace::check_access(cx.thread, &thread)?;
    thread.process().try_vm().ok_or(Errno::ESRCH)
}

/// A checked `struct iovec` list.
fn segments(list: UserPtr<[u64; 2]>, count: u64) -> Result<Vec<(u64, u64)>> {
    if count > MAX_SEGMENTS {
        return Err(Errno::EINVAL);
    }
    let mut total = 0u64;
    user::read_slice(list, count as usize)?
        .into_iter()
        .map(|[base, len]| {
            total = total.checked_add(len).filter(|&n| n <= i64::MAX as u64).ok_or(Errno::EINVAL)?;
            Ok((base, len))
        })
        .collect()
}

fn transfer(
    cx: &Cx<'_>,
    pid: i32,
    local: (UserPtr<[u64; 2]>, u64),
    remote: (UserPtr<[u64; 2]>, u64),
    flags: u64,
    write: bool,
) -> Result<usize> {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let local = segments(local.0, local.1)?;
    if local.iter().any(|&(base, len)| !VirtAddr::new(base).is_user_range(len)) {
        return Err(Errno::EFAULT);
    }
    let remote = segments(remote.0, remote.1)?;
    if local.iter().all(|&(_, len)| len == 0) || remote.iter().all(|&(_, len)| len == 0) {
        return Ok(0);
    }
    let thread = process::seen_thread(pid).ok_or(Errno::ESRCH)?;
    ptrace::check_access(cx.thread, &thread)?;
    let vm = thread.process().try_vm().ok_or(Errno::ESRCH)?;

    let mut done = 0usize;
    let mut local = local.into_iter();
    let (mut base, mut left) = (0u64, 0u64);
    for (mut at, mut len) in remote {
        while len > 0 {
            while left == 0 {
                match local.next() {
                    Some(next) => (base, left) = next,
                    None => return Ok(done),
                }
            }
            let within = at % PAGE;
            let n = len.min(left).min(PAGE - within);
            let moved = vm.page_for(VirtAddr::new(at), write, false).and_then(|frame| {
                // One copy, between the other's page and the caller's memory; no lock is held.
                let (within, here, n) = (within as usize, VirtAddr::new(base), n as usize);
                let copied =
                    if write { frame.copy_from_user(within, here, n) } else { frame.copy_to_user(within, here, n) };
                copied.map_err(|_| Errno::EFAULT)
            });
            match moved {
                Ok(()) => {}
                Err(_) if done > 0 => return Ok(done),
                Err(error) => return Err(error),
            }
            done += n as usize;
            at = at.wrapping_add(n);
            base += n;
            len -= n;
            left -= n;
            if crate::mm::is_dying() {
                return if done > 0 { Ok(done) } else { Err(Errno::EINTR) };
            }
        }
    }
    Ok(done)
}

/// process_vm_readv(2).
pub(super) fn sys_process_vm_readv(
    cx: &mut Cx<'_>,
    pid: i32,
    local: UserPtr<[u64; 2]>,
    local_count: u64,
    remote: UserPtr<[u64; 2]>,
    remote_count: u64,
    flags: u64,
) -> Result<usize> {
    transfer(cx, pid, (local, local_count), (remote, remote_count), flags, false)
}

/// process_vm_writev(2).
pub(super) fn sys_process_vm_writev(
    cx: &mut Cx<'_>,
    pid: i32,
    local: UserPtr<[u64; 2]>,
    local_count: u64,
    remote: UserPtr<[u64; 2]>,
    remote_count: u64,
    flags: u64,
) -> Result<usize> {
    transfer(cx, pid, (local, local_count), (remote, remote_count), flags, true)
}

/// process_madvise(2): hints for another process, by pidfd.
pub(super) fn sys_process_madvise(
    cx: &mut Cx<'_>,
    pidfd: i32,
    list: UserPtr<[u64; 2]>,
    count: u64,
    advice: u32,
    flags: u32,
) -> Result<usize> {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let list = segments(list, count)?;
    let file = cx.thread.file(pidfd)?;
    let target = process::pidfd::of_file(&file)?.process();
    let known = matches!(advice, uapi::MADV_COLD | uapi::MADV_PAGEOUT | uapi::MADV_WILLNEED | uapi::MADV_COLLAPSE);
    if !known {
        return Err(Errno::EINVAL);
    }
    let thread = target.leader().ok_or(Errno::ESRCH)?;
    ptrace::check_access(cx.thread, &thread)?;
    if !capable(Cap::SysNice) {
        return Err(Errno::EPERM);
    }
    let vm = target.try_vm().ok_or(Errno::ESRCH)?;
    let mut done = 0;
    for (base, len) in list {
        match vm.madvise(VirtAddr::new(base), len as usize, advice) {
            Ok(()) => done += len as usize,
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// process_mrelease(2): frees the memory of a process that was killed, by pidfd, without waiting for its end.
pub(super) fn sys_process_mrelease(cx: &mut Cx<'_>, pidfd: i32, flags: u32) -> Result {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let file = cx.thread.file(pidfd)?;
    let target = process::pidfd::of_file(&file)?.process();
    let vm = target.try_vm().ok_or(Errno::ESRCH)?;
    // Whoever shares the memory must be dying as well.
    let is_dying = |process: &process::Process| {
        !process.is_dumping() && (process.is_exiting() || process.signals.fatal_signal().is_some())
    };
    let shares = |process: &process::Process| process.try_vm().is_some_and(|other| Arc::ptr_eq(&other, &vm));
    if !is_dying(target) || !process::processes().iter().all(|other| is_dying(other) || !shares(other)) {
        return Err(Errno::EINVAL);
    }
    vm.reap()
}
