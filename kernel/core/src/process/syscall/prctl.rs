//! prctl(2): a process's own settings.

use alloc::sync::Arc;
use core::sync::atomic::Ordering::*;

use linux_uapi::ptrace::SudConfig;
use linux_uapi::signal::NSIG;

use super::cred;
use crate::process::Process;
use crate::process::cred::Credentials;
use crate::process::process::process_flags;
use crate::process::thread::{NAME_LEN, Thread};
use crate::syscall::Cx;
use crate::user::{self, UserAddr, UserPtr};
use crate::{Errno, Result};

const PR_SET_PDEATHSIG: i32 = 1;
const PR_GET_PDEATHSIG: i32 = 2;
const PR_GET_DUMPABLE: i32 = 3;
const PR_SET_DUMPABLE: i32 = 4;
const PR_GET_TIMING: i32 = 13;
const PR_SET_TIMING: i32 = 14;
const PR_SET_NAME: i32 = 15;
const PR_GET_NAME: i32 = 16;
const PR_GET_SECCOMP: i32 = 21;
const PR_GET_TSC: i32 = 25;
const PR_SET_TSC: i32 = 26;
const PR_SET_TIMERSLACK: i32 = 29;
const PR_GET_TIMERSLACK: i32 = 30;
const PR_MCE_KILL: i32 = 33;
const PR_MCE_KILL_GET: i32 = 34;
const PR_SET_CHILD_SUBREAPER: i32 = 36;
const PR_GET_CHILD_SUBREAPER: i32 = 37;
const PR_SET_NO_NEW_PRIVS: i32 = 38;
const PR_GET_NO_NEW_PRIVS: i32 = 39;
const PR_GET_TID_ADDRESS: i32 = 40;
const PR_SET_THP_DISABLE: i32 = 41;
const PR_GET_THP_DISABLE: i32 = 42;
const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;
const PR_SET_VMA: i32 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: u64 = 0;
const PR_SET_PTRACER: i32 = 0x5961_6d61;
const PR_SET_MDWE: i32 = 65;
const PR_GET_MDWE: i32 = 66;
const PR_GET_AUXV: i32 = 0x4155_5856;
const PR_TSC_ENABLE: i32 = 1;
const VMA_NAME_MAX: usize = 80;

/// Performs the operation `option`; its result is a value or 0.
pub fn sys_prctl(cx: &mut Cx<'_>, option: i32, a2: u64, a3: u64, a4: u64, a5: u64) -> Result<u64> {
    let thread = cx.thread;
    let process = thread.process();
    let no_more =
        |from: usize| if [a2, a3, a4, a5][from..].iter().any(|a| *a != 0) { Err(Errno::EINVAL) } else { Ok(()) };
    if let Some(result) = cred::prctl(thread, option, [a2, a3, a4, a5]) {
        return result;
    }
    match option {
        PR_SET_PDEATHSIG => {
            let signo = i32::try_from(a2).ok().filter(|s| *s <= NSIG as i32).ok_or(Errno::EINVAL)?;
            thread.death_signal.store(signo, Relaxed);
        }
        PR_GET_PDEATHSIG => UserPtr::<i32>::new(a2).write(&thread.death_signal.load(Relaxed))?,
        PR_GET_DUMPABLE => return Ok(process.dumpable().into()),
        PR_SET_DUMPABLE => {
            if a2 > 1 {
                return Err(Errno::EINVAL);
            }
            process.dumpable.store(a2 as u8, Relaxed);
        }
        PR_GET_TIMING => {}
        PR_SET_TIMING => {
            // Only statistical timing exists.
            if a2 != 0 {
                return Err(Errno::EINVAL);
            }
        }
        PR_SET_NAME => set_name(thread, UserAddr::new(a2))?,
        PR_GET_NAME => user::write_bytes(UserAddr::new(a2), &thread.comm())?,
        PR_GET_SECCOMP => {}
        PR_GET_TSC => UserPtr::<i32>::new(a2).write(&PR_TSC_ENABLE)?,
        PR_SET_TSC => {
            // The time stamp counter cannot be taken from programs: the vDSO reads it.
            if a2 != PR_TSC_ENABLE as u64 {
                return Err(Errno::EINVAL);
            }
        }
        PR_SET_TIMERSLACK => {
            let slack = if (a2 as i64) <= 0 { thread.default_timer_slack_ns.load(Relaxed) } else { a2 };
            thread.timer_slack_ns.store(slack, Relaxed);
        }
        PR_GET_TIMERSLACK => return Ok(thread.timer_slack_ns.load(Relaxed)),
        PR_MCE_KILL => mce_kill(thread, a2, a3, a4, a5)?,
        PR_MCE_KILL_GET => {
            no_more(0)?;
            return Ok(thread.mce_policy.load(Relaxed).into());
        }
        PR_SET_CHILD_SUBREAPER => set_subreaper(process, a2 != 0),
        PR_GET_CHILD_SUBREAPER => {
            UserPtr::<i32>::new(a2).write(&i32::from(process.subreaper.load(Relaxed)))?;
        }
        PR_SET_NO_NEW_PRIVS => {
            if a2 != 1 {
                return Err(Errno::EINVAL);
            }
            no_more(1)?;
            let mut new = Credentials::clone(&thread.cred());
            new.no_new_privs = true;
            thread.set_cred(new);
        }
        PR_GET_NO_NEW_PRIVS => {
            no_more(0)?;
            return Ok(thread.with_cred(|c| c.no_new_privs).into());
        }
        PR_GET_TID_ADDRESS => UserPtr::<u64>::new(a2).write(&thread.clear_child_tid.load(Relaxed))?,
        PR_SET_THP_DISABLE => {
            no_more(1)?;
            if a2 != 0 {
                process.flags.fetch_or(process_flags::THP_DISABLE, Relaxed);
            } else {
                process.flags.fetch_and(!process_flags::THP_DISABLE, Relaxed);
            }
        }
        PR_GET_THP_DISABLE => {
            no_more(0)?;
            return Ok(u64::from(process.wants_no_huge_pages()));
        }
        PR_SET_SYSCALL_USER_DISPATCH => {
            let config = SudConfig { mode: a2, offset: a3, len: a4, selector: a5 };
            let task = thread.task().ok_or(Errno::ESRCH)?;
            thread.dispatch.set(&task, &config)?;
        }
        PR_SET_VMA => name_vma(thread, a2, a3, a4, a5)?,
        // Yama's; without it Linux refuses too.
        PR_SET_PTRACER => return Err(Errno::EINVAL),
        PR_SET_MDWE => return Err(Errno::EINVAL),
        PR_GET_MDWE => no_more(0)?,
        PR_GET_AUXV => {
            no_more(2)?;
            let auxv = thread.vm().auxv();
            let len = auxv.len().min(a3 as usize);
            user::write_bytes(UserAddr::new(a2), &auxv[..len])?;
            return Ok(auxv.len() as u64);
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn set_name(thread: &Thread, from: UserAddr) -> Result {
    let mut name = [0; NAME_LEN - 1];
    match ursa_hal::user::strncpy_from_user(&mut name, from) {
        Ok(len) => thread.set_name(&name[..len]),
        Err(ursa_hal::user::StrError::TooLong) => thread.set_name(&name),
        Err(ursa_hal::user::StrError::Fault) => return Err(Errno::EFAULT),
    }
    Ok(())
}

/// Sets the subreaper mark; the descendants learn that an ancestor has it, so that death without one stays cheap.
fn set_subreaper(process: &Arc<Process>, on: bool) {
    process.subreaper.store(on, Relaxed);
    if !on {
        return;
    }
    // New descendants copy the mark; those that exist get it here.
    let mut queue = process.children();
    while let Some(child) = queue.pop() {
        if !child.has_subreaper.swap(true, Relaxed) {
            queue.extend(child.children());
        }
    }
}

/// `PR_MCE_KILL`: how to be told of memory errors. There are none to tell; the choice is kept.
fn mce_kill(thread: &Thread, a2: u64, a3: u64, a4: u64, a5: u64) -> Result {
    const CLEAR: u64 = 0;
    const SET: u64 = 1;
    if a4 != 0 || a5 != 0 {
        return Err(Errno::EINVAL);
    }
    match a2 {
        CLEAR if a3 == 0 => thread.mce_policy.store(2, Relaxed),
        SET if a3 <= 2 => thread.mce_policy.store(a3 as u8, Relaxed),
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

/// `PR_SET_VMA_ANON_NAME`: names anonymous memory in `/proc/PID/maps`.
fn name_vma(thread: &Thread, what: u64, start: u64, len: u64, name: u64) -> Result {
    if what != PR_SET_VMA_ANON_NAME {
        return Err(Errno::EINVAL);
    }
    let name = match name {
        0 => None,
        addr => {
            let name = user::read_cstr(UserAddr::new(addr), VMA_NAME_MAX)
                .map_err(|e| if e == Errno::ENAMETOOLONG { Errno::EINVAL } else { e })?;
            let allowed = |b: &u8| (0x20..0x7f).contains(b) && !b"\\`$[]".contains(b);
            if !name.iter().all(allowed) {
                return Err(Errno::EINVAL);
            }
            Some(name)
        }
    };
    thread.vm().set_anon_name(UserAddr::new(start), len as usize, name.as_deref())
}
