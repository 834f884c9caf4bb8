//! A thread's own registrations: set_tid_address(2), set_robust_list(2), rseq(2), arch_prctl(2), getcpu(2).

use core::sync::atomic::Ordering::*;

use crate::process::pid::{Pid, seen_thread};
use crate::process::rseq;
use crate::syscall::Cx;
use crate::user::UserPtr;
use crate::{Errno, Result};

/// Bytes of `struct robust_list_head`.
const ROBUST_HEAD_LEN: usize = 24;
const ARCH_SET_GS: i32 = 0x1001;
const ARCH_SET_FS: i32 = 0x1002;
const ARCH_GET_FS: i32 = 0x1003;
const ARCH_GET_GS: i32 = 0x1004;
const ARCH_GET_CPUID: i32 = 0x1011;
const ARCH_SET_CPUID: i32 = 0x1012;

/// Sets where the thread's end is announced; returns the thread's number.
pub fn sys_set_tid_address(cx: &mut Cx<'_>, addr: u64) -> Result<Pid> {
    cx.thread.clear_child_tid.store(addr, Relaxed);
    Ok(cx.thread.own_tid())
}

/// Registers the list of robust futexes.
pub fn sys_set_robust_list(cx: &mut Cx<'_>, head: u64, len: usize) -> Result {
    if len != ROBUST_HEAD_LEN {
        return Err(Errno::EINVAL);
    }
    cx.thread.robust_list.store(head, Relaxed);
    Ok(())
}

/// Returns a thread's list of robust futexes.
pub fn sys_get_robust_list(cx: &mut Cx<'_>, pid: Pid, head: UserPtr<u64>, len: UserPtr<u64>) -> Result {
    let value = if pid == 0 {
        cx.thread.robust_list.load(Relaxed)
    } else {
        let target = seen_thread(pid).ok_or(Errno::ESRCH)?;
        crate::ptrace::check_access(cx.thread, &target)?;
        target.robust_list.load(Relaxed)
    };
    len.write(&(ROBUST_HEAD_LEN as u64))?;
    head.write(&value)
}

/// Registers the restartable sequence area.
pub fn sys_rseq(cx: &mut Cx<'_>, area: u64, len: u32, flags: u32, signature: u32) -> Result {
    rseq::register(cx.thread, area, len, flags, signature)
}

/// Sets and gets the segment bases.
pub fn sys_arch_prctl(_cx: &mut Cx<'_>, option: i32, value: u64) -> Result<u64> {
    let task = ursa_hal::task::current();
    match option {
        ARCH_SET_FS if !task.set_fs_base(value) => return Err(Errno::EPERM),
        ARCH_SET_GS if !task.set_gs_base(value) => return Err(Errno::EPERM),
        ARCH_SET_FS | ARCH_SET_GS => {}
        ARCH_GET_FS => UserPtr::<u64>::new(value).write(&task.fs_base())?,
        ARCH_GET_GS => UserPtr::<u64>::new(value).write(&task.gs_base())?,
        ARCH_GET_CPUID => return Ok(1),
        // Needs CPUID faulting, which no supported machine is required to have.
        ARCH_SET_CPUID => return Err(Errno::ENODEV),
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// Returns the CPU that the call runs on, and its node.
pub fn sys_getcpu(_cx: &mut Cx<'_>, cpu: UserPtr<u32>, node: UserPtr<u32>) -> Result {
    cpu.write_if_given(&(ursa_hal::percpu::cpu_id() as u32))?;
    node.write_if_given(&0)
}
