//! Numbers, groups and sessions: getpid(2), gettid(2), getppid(2), setpgid(2), getpgid(2), setsid(2), getsid(2).

use alloc::sync::Arc;

use crate::process::group::{ProcessGroup, Session};
use crate::process::pid::{Pid, process_group, seen_group, seen_process, seen_thread};
use crate::process::process::{Process, tree_lock};
use crate::syscall::Cx;
use crate::{Errno, Result};

/// Returns the process's number.
pub fn sys_getpid(cx: &mut Cx<'_>) -> Result<Pid> {
    Ok(cx.thread.process().identity().own())
}

/// Returns the thread's number.
pub fn sys_gettid(cx: &mut Cx<'_>) -> Result<Pid> {
    Ok(cx.thread.own_tid())
}

/// Returns the parent's number.
pub fn sys_getppid(cx: &mut Cx<'_>) -> Result<Pid> {
    let process = cx.thread.process();
    Ok(process.parent_seen_from(process.pid_namespace()))
}

/// Returns the process group.
pub fn sys_getpgrp(cx: &mut Cx<'_>) -> Result<Pid> {
    Ok(cx.thread.process().group().identity().seen())
}

fn process_or_self(cx: &Cx<'_>, pid: Pid) -> Result<Arc<Process>> {
    match pid {
        0 => Ok(cx.thread.process().clone()),
        _ => find_process(pid),
    }
}

/// Finds the process that has a thread numbered `pid`, as Linux's `find_task_by_vpid` callers do.
fn find_process(pid: Pid) -> Result<Arc<Process>> {
    seen_process(pid)
        .or_else(|| seen_thread(pid).map(|t| t.process().clone()))
        .filter(|p| !p.is_reaped())
        .ok_or(Errno::ESRCH)
}

/// Returns the process group of `pid`.
pub fn sys_getpgid(cx: &mut Cx<'_>, pid: Pid) -> Result<Pid> {
    Ok(process_or_self(cx, pid)?.group().identity().seen())
}

/// Returns the session of `pid`.
pub fn sys_getsid(cx: &mut Cx<'_>, pid: Pid) -> Result<Pid> {
    Ok(process_or_self(cx, pid)?.session().identity().seen())
}

/// Moves a process into a process group.
pub fn sys_setpgid(cx: &mut Cx<'_>, pid: Pid, pgid: Pid) -> Result {
    let me = cx.thread.process();
    let pid = if pid == 0 { me.seen_pid() } else { pid };
    let pgid = if pgid == 0 { pid } else { pgid };
    if pgid < 0 {
        return Err(Errno::EINVAL);
    }
    let _tree = tree_lock();
    let target = seen_process(pid).filter(|p| !p.is_reaped()).ok_or(Errno::ESRCH)?;
    let is_child = target.parent().is_some_and(|p| Arc::ptr_eq(&p, me));
    if is_child {
        if target.session().id() != me.session().id() {
            return Err(Errno::EPERM);
        }
        if target.has_execed() {
            return Err(Errno::EACCES);
        }
    } else if !Arc::ptr_eq(&target, me) {
        return Err(Errno::ESRCH);
    }
    if target.is_session_leader() {
        return Err(Errno::EPERM);
    }
    if target.group().identity().seen() == pgid {
        return Ok(());
    }
    let session = target.session();
    let group = if pgid == pid {
        // The number is the process's own: its group may exist still, with other members.
        match seen_group(pgid) {
            Some(group) => group,
            None => ProcessGroup::new(target.number().clone(), session.clone()),
        }
    } else {
        seen_group(pgid).filter(|g| !g.members().is_empty()).ok_or(Errno::EPERM)?
    };
    if group.session().id() != session.id() {
        return Err(Errno::EPERM);
    }
    let former = join(&target, group);
    drop(_tree);
    drop(former);
    Ok(())
}

/// Moves `process` to `group`; under the tree lock. The former group is returned to be dropped out of it.
fn join(process: &Arc<Process>, group: Arc<ProcessGroup>) -> Arc<ProcessGroup> {
    let former = core::mem::replace(&mut process.links.lock().group, group.clone());
    former.leave(process);
    group.join(process);
    former
}

/// Makes the process the leader of a new session without terminal.
pub fn sys_setsid(cx: &mut Cx<'_>) -> Result<Pid> {
    let process = cx.thread.process();
    let tree = tree_lock();
    if process_group(process.pid()).is_some_and(|g| !g.members().is_empty()) || process.is_session_leader() {
        return Err(Errno::EPERM);
    }
    let session = Session::new(process.number().clone());
    let group = ProcessGroup::new(process.number().clone(), session);
    let former = join(process, group);
    process.links.lock().left_terminal = false;
    drop(tree);
    drop(former);
    Ok(process.identity().own())
}
