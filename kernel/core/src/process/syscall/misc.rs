//! personality(2), vhangup(2), kcmp(2), membarrier(2), ioprio_set(2), ioprio_get(2).

use alloc::sync::Arc;
use core::cmp::Ordering as Cmp;
use core::sync::atomic::{Ordering::*, fence};

use crate::process::Cap;
use crate::process::pid::{Pid, seen_group, seen_thread};
use crate::process::process::process_flags as flags;
use crate::process::thread::Thread;
use crate::syscall::Cx;
use crate::{Errno, Result};

/// Sets the execution domain; returns the former one. `0xffffffff` only asks.
pub fn sys_personality(cx: &mut Cx<'_>, persona: u32) -> Result<u32> {
    let old = cx.thread.personality.load(Relaxed);
    if persona != u32::MAX {
        cx.thread.personality.store(persona, Relaxed);
    }
    Ok(old)
}

/// Hangs up the controlling terminal.
pub fn sys_vhangup(cx: &mut Cx<'_>) -> Result {
    cx.thread.cred().require(Cap::SysTtyConfig)?;
    if let Some(terminal) = cx.thread.process().terminal() {
        terminal.hang_up();
    }
    Ok(())
}

/// Compares what two processes have: 0 same, 1 less, 2 greater, in an order of no meaning but consistency.
pub fn sys_kcmp(cx: &mut Cx<'_>, pid1: Pid, pid2: Pid, kind: i32, idx1: u64, idx2: u64) -> Result<u32> {
    let find = |pid| seen_thread(pid).ok_or(Errno::ESRCH);
    let (a, b) = (find(pid1)?, find(pid2)?);
    crate::ptrace::check_access(cx.thread, &a)?;
    crate::ptrace::check_access(cx.thread, &b)?;
    let fd = |idx: u64| i32::try_from(idx).map_err(|_| Errno::EBADF);
    let order = match kind {
        0 => address(&a.files().get_any(fd(idx1)?)?).cmp(&address(&b.files().get_any(fd(idx2)?)?)),
        1 => address(&a.vm()).cmp(&address(&b.vm())),
        2 => address(&a.files()).cmp(&address(&b.files())),
        3 => address(&a.fs()).cmp(&address(&b.fs())),
        4 => address(&a.process().signals.actions()).cmp(&address(&b.process().signals.actions())),
        // I/O contexts and System V undo lists are not shared by anyone: each thread has its own.
        5 | 6 => address(&a).cmp(&address(&b)),
        _ => return Err(Errno::EOPNOTSUPP),
    };
    Ok(match order {
        Cmp::Equal => 0,
        Cmp::Less => 1,
        Cmp::Greater => 2,
    })
}

fn address<T>(object: &Arc<T>) -> usize {
    // Scrambled, so that nothing is learnt of where kernel objects are.
    static KEY: ursa_hal::sync::Once<usize> = ursa_hal::sync::Once::new();
    let key = *KEY.call_once(|| crate::process::rng::u64() as usize | 1);
    (Arc::as_ptr(object) as usize).wrapping_mul(key)
}

const MEMBARRIER_CMD_QUERY: i32 = 0;
const MEMBARRIER_CMD_GLOBAL: i32 = 1;
const MEMBARRIER_CMD_GLOBAL_EXPEDITED: i32 = 2;
const MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED: i32 = 4;
const MEMBARRIER_CMD_PRIVATE_EXPEDITED: i32 = 8;
const MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED: i32 = 16;
const MEMBARRIER_CMD_PRIVATE_SYNC_CORE: i32 = 32;
const MEMBARRIER_CMD_REGISTER_PRIVATE_SYNC_CORE: i32 = 64;
const MEMBARRIER_CMD_GET_REGISTRATIONS: i32 = 512;
const MEMBARRIER_ALL: i32 = MEMBARRIER_CMD_GLOBAL
    | MEMBARRIER_CMD_GLOBAL_EXPEDITED
    | MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED
    | MEMBARRIER_CMD_PRIVATE_EXPEDITED
    | MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED
    | MEMBARRIER_CMD_PRIVATE_SYNC_CORE
    | MEMBARRIER_CMD_REGISTER_PRIVATE_SYNC_CORE
    | MEMBARRIER_CMD_GET_REGISTRATIONS;

/// Orders memory accesses of other threads.
///
/// An interrupt on each other CPU is a barrier there, and its return serialises the instruction stream, so one way does for
/// every command.
pub fn sys_membarrier(cx: &mut Cx<'_>, command: i32, flags_arg: u32, _cpu: i32) -> Result<i32> {
    if flags_arg != 0 {
        return Err(Errno::EINVAL);
    }
    let registered = &cx.thread.process().flags;
    let require = |flag: u32| if registered.load(Relaxed) & flag != 0 { Ok(()) } else { Err(Errno::EPERM) };
    let register = |flag: u32| {
        registered.fetch_or(flag, Relaxed);
    };
    match command {
        MEMBARRIER_CMD_QUERY => return Ok(MEMBARRIER_ALL),
        MEMBARRIER_CMD_GLOBAL | MEMBARRIER_CMD_GLOBAL_EXPEDITED => barrier_everywhere(),
        MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED => register(flags::MEMBARRIER_GLOBAL_EXPEDITED),
        MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED => register(flags::MEMBARRIER_PRIVATE_EXPEDITED),
        MEMBARRIER_CMD_REGISTER_PRIVATE_SYNC_CORE => register(flags::MEMBARRIER_SYNC_CORE),
        MEMBARRIER_CMD_PRIVATE_EXPEDITED => {
            require(flags::MEMBARRIER_PRIVATE_EXPEDITED)?;
            barrier_everywhere();
        }
        MEMBARRIER_CMD_PRIVATE_SYNC_CORE => {
            require(flags::MEMBARRIER_SYNC_CORE)?;
            barrier_everywhere();
        }
        MEMBARRIER_CMD_GET_REGISTRATIONS => {
            let set = registered.load(Relaxed);
            let mut mask = 0;
            for (flag, command) in [
                (flags::MEMBARRIER_GLOBAL_EXPEDITED, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED),
                (flags::MEMBARRIER_PRIVATE_EXPEDITED, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED),
                (flags::MEMBARRIER_SYNC_CORE, MEMBARRIER_CMD_REGISTER_PRIVATE_SYNC_CORE),
            ] {
                if set & flag != 0 {
                    mask |= command;
                }
            }
            return Ok(mask);
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn barrier_everywhere() {
    fence(SeqCst);
    ursa_hal::smp::call_on(ursa_hal::percpu::CpuSet::all(), &|| fence(SeqCst));
    fence(SeqCst);
}

const IOPRIO_WHO_PROCESS: i32 = 1;
const IOPRIO_WHO_PGRP: i32 = 2;
const IOPRIO_WHO_USER: i32 = 3;
const IOPRIO_CLASS_SHIFT: u32 = 13;

/// Calls `f` on each thread that `which` and `who` name.
fn for_each_io_target(cx: &Cx<'_>, which: i32, who: i32, mut f: impl FnMut(&Thread) -> Result) -> Result {
    let mut found = false;
    let mut visit = |thread: &Thread| {
        found = true;
        f(thread)
    };
    match which {
        IOPRIO_WHO_PROCESS if who == 0 => visit(cx.thread)?,
        IOPRIO_WHO_PROCESS => visit(&*seen_thread(who).ok_or(Errno::ESRCH)?)?,
        IOPRIO_WHO_PGRP => {
            let group = if who == 0 { Some(cx.thread.process().group()) } else { seen_group(who) };
            for process in group.ok_or(Errno::ESRCH)?.members() {
                process.threads().iter().try_for_each(|t| visit(t))?;
            }
        }
        IOPRIO_WHO_USER => {
            let uid = if who == 0 { cx.thread.with_cred(|c| c.uid) } else { who as u32 };
            for process in crate::process::processes().into_iter().filter(|process| process.seen_pid() != 0) {
                for thread in process.threads() {
                    if thread.with_cred(|c| c.uid) == uid {
                        visit(&thread)?;
                    }
                }
            }
        }
        _ => return Err(Errno::EINVAL),
    }
    if found { Ok(()) } else { Err(Errno::ESRCH) }
}

/// Sets the priority of input and output. Kept and shown; the kernel has no I/O scheduler to obey it.
pub fn sys_ioprio_set(cx: &mut Cx<'_>, which: i32, who: i32, priority: u32) -> Result {
    let (class, data) = (priority >> IOPRIO_CLASS_SHIFT, priority & 7);
    let cred = cx.thread.cred();
    match class {
        0 if data != 0 => return Err(Errno::EINVAL),
        0 | 2 | 3 => {}
        1 => {
            if !cred.has_cap(Cap::SysAdmin) && !cred.has_cap(Cap::SysNice) {
                return Err(Errno::EPERM);
            }
        }
        _ => return Err(Errno::EINVAL),
    }
    for_each_io_target(cx, which, who, |thread| {
        let theirs = thread.cred();
        if theirs.uid != cred.euid && theirs.uid != cred.uid && !cred.has_cap(Cap::SysNice) {
            return Err(Errno::EPERM);
        }
        thread.io_priority.store(priority, Relaxed);
        Ok(())
    })
}

/// Returns the highest priority of input and output among those named.
pub fn sys_ioprio_get(cx: &mut Cx<'_>, which: i32, who: i32) -> Result<u32> {
    let mut best: Option<u32> = None;
    for_each_io_target(cx, which, who, |thread| {
        let mut priority = thread.io_priority.load(Relaxed);
        if priority >> IOPRIO_CLASS_SHIFT == 0 {
            // Not set: best effort, middle.
            priority = if which == IOPRIO_WHO_PROCESS { priority } else { 2 << IOPRIO_CLASS_SHIFT | 4 };
        }
        best = Some(best.map_or(priority, |b| b.min(priority)));
        Ok(())
    })?;
    best.ok_or(Errno::ESRCH)
}
