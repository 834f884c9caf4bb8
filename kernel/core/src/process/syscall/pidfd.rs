//! pidfd_open(2), pidfd_getfd(2). Sending through a pidfd is with the other signal calls.

use alloc::sync::Arc;

use crate::process::pid::{Pid, seen_process, seen_thread};
use crate::process::pidfd::{self, PIDFD_THREAD};
use crate::process::rlimit::Resource;
use crate::syscall::Cx;
use crate::{Errno, Result};

const O_NONBLOCK: u32 = 0o4000;

/// Opens a descriptor for a process or thread.
pub fn sys_pidfd_open(cx: &mut Cx<'_>, pid: Pid, flags: u32) -> Result<i32> {
    if flags & !(O_NONBLOCK | PIDFD_THREAD) != 0 || pid <= 0 {
        return Err(Errno::EINVAL);
    }
    // The thread of a process that was reaped may not have left its stack yet.
    let thread = seen_thread(pid).filter(|thread| !thread.process().is_reaped());
    let file = if flags & PIDFD_THREAD != 0 {
        pidfd::open_thread(&thread.ok_or(Errno::ESRCH)?, flags & O_NONBLOCK)
    } else {
        let process = seen_process(pid).filter(|process| !process.is_reaped());
        // A number of a thread that is not a process's: the descriptor cannot stand for it.
        let process = process.ok_or_else(|| if thread.is_some() { Errno::ENOENT } else { Errno::ESRCH })?;
        pidfd::open_process(&process, flags)
    };
    let limit = cx.thread.process().rlimits.soft(Resource::Nofile);
    cx.thread.files().install(file, true, limit)
}

/// Takes a copy of another process's descriptor.
pub fn sys_pidfd_getfd(cx: &mut Cx<'_>, pidfd: i32, target_fd: i32, flags: u32) -> Result<i32> {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let file = cx.thread.file(pidfd)?;
    let target = pidfd::of_file(&file)?.thread()?;
    if !Arc::ptr_eq(target.process(), cx.thread.process()) {
        crate::ptrace::check_access(cx.thread, &target)?;
    }
    if target.is_dead() {
        return Err(Errno::ESRCH);
    }
    let copy = target.file(target_fd)?;
    let limit = cx.thread.process().rlimits.soft(Resource::Nofile);
    cx.thread.files().install(copy, true, limit)
}
