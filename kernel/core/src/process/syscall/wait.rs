//! wait4(2), waitid(2).

use linux_uapi::process::Rusage;
use linux_uapi::signal::{SIGCHLD, SigInfo};

use crate::process::pid::{Pid, number_meant};
use crate::process::pidfd;
use crate::process::usage::UsageTotals;
use crate::process::wait::{self, Event, Target, WaitOptions};
use crate::syscall::Cx;
use crate::user::UserPtr;
use crate::{Errno, Result};

use super::limits::rusage_of;

const P_ALL: i32 = 0;
const P_PID: i32 = 1;
const P_PGID: i32 = 2;
const P_PIDFD: i32 = 3;

/// Waits for a child; returns its number, or 0 with `WNOHANG` when nothing happened.
pub fn sys_wait4(
    cx: &mut Cx<'_>,
    pid: Pid,
    status: UserPtr<i32>,
    options: u32,
    rusage: UserPtr<Rusage>,
) -> Result<Pid> {
    use WaitOptions as W;
    let allowed = W::NOHANG | W::STOPPED | W::CONTINUED | W::NOTHREAD | W::ALL | W::CLONE;
    let options = W::from_bits(options).filter(|o| allowed.contains(*o)).ok_or(Errno::EINVAL)?;
    let target = match pid {
        -1 => Target::Any,
        0 => Target::Group(cx.thread.process().group().id()),
        ..0 => Target::Group(number_meant(pid.checked_neg().ok_or(Errno::ESRCH)?)),
        _ => Target::Pid(number_meant(pid)),
    };
    let Some(event) = wait::wait(cx.thread, &target, options | W::EXITED)? else { return Ok(0) };
    status.write_if_given(&event.status())?;
    rusage.write_if_given(&rusage_of(&event.usage))?;
    Ok(event.pid)
}

/// Waits for a child and describes it as its SIGCHLD would.
pub fn sys_waitid(
    cx: &mut Cx<'_>,
    which: i32,
    id: i32,
    info: UserPtr<SigInfo>,
    options: u32,
    rusage: UserPtr<Rusage>,
) -> Result {
    use WaitOptions as W;
    let mut options = W::from_bits(options).ok_or(Errno::EINVAL)?;
    if !options.intersects(W::EXITED | W::STOPPED | W::CONTINUED) {
        return Err(Errno::EINVAL);
    }
    let mut nonblocking_fd = false;
    let target = match which {
        P_ALL => Target::Any,
        P_PID if id > 0 => Target::Pid(number_meant(id)),
        P_PGID if id > 0 => Target::Group(number_meant(id)),
        P_PGID if id == 0 => Target::Group(cx.thread.process().group().id()),
        P_PIDFD if id >= 0 => {
            let file = cx.thread.file(id)?;
            nonblocking_fd = file.is_nonblocking();
            Target::Process(pidfd::of_file(&file)?.process().clone())
        }
        _ => return Err(Errno::EINVAL),
    };
    let hang = !options.contains(W::NOHANG);
    if nonblocking_fd {
        options |= W::NOHANG;
    }
    let event = wait::wait(cx.thread, &target, options)?;
    if event.is_none() && nonblocking_fd && hang {
        return Err(Errno::EAGAIN);
    }
    let usage = event.as_ref().map_or(UsageTotals::default(), |e| e.usage);
    if event.is_some() {
        rusage.write_if_given(&rusage_of(&usage))?;
    }
    write_info(info, event.as_ref())
}

/// Writes the fields that waitid sets, and no others: programs keep data of their own beside them.
fn write_info(info: UserPtr<SigInfo>, event: Option<&Event>) -> Result {
    if info.is_null() {
        return Ok(());
    }
    let base = info.addr().as_u64();
    let put = |offset: u64, value: i32| UserPtr::<i32>::new(base.wrapping_add(offset)).write(&value);
    let (signo, pid, uid, code, status) = match event {
        Some(event) => {
            let (code, status) = event.code_and_status();
            (SIGCHLD as i32, event.pid, event.uid as i32, code, status)
        }
        None => (0, 0, 0, 0, 0),
    };
    put(0, signo)?;
    put(4, 0)?;
    put(8, code)?;
    put(16, pid)?;
    put(20, uid)?;
    put(24, status)
}
