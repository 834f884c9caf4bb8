//! clone(2), clone3(2), fork(2), vfork(2), exit(2), exit_group(2).

use alloc::vec::Vec;

use linux_uapi::process::CloneArgs;

use crate::fs::cgroup;
use crate::process::Cap;
use crate::process::fork::{self, CloneFlags, CloneRequest};
use crate::process::pid::Pid;
use crate::syscall::Cx;
use crate::user::{self, UserAddr, UserPtr};
use crate::{Errno, Result};

/// Makes a thread or process. x86-64's argument order: flags, stack, parent_tid, child_tid, tls.
pub fn sys_clone(cx: &mut Cx<'_>, flags: u64, stack: u64, parent_tid: u64, child_tid: u64, tls: u64) -> Result<Pid> {
    let request = fork::legacy_request(flags & 0xffff_ffff, stack, parent_tid, child_tid, tls);
    // The parent's tid and the pidfd would go to the same place.
    if request.flags.contains(CloneFlags::PIDFD | CloneFlags::PARENT_SETTID) {
        return Err(Errno::EINVAL);
    }
    fork::clone(cx.thread, cx.regs, &request)
}

/// Makes a copy of the process.
pub fn sys_fork(cx: &mut Cx<'_>) -> Result<Pid> {
    fork::clone(cx.thread, cx.regs, &fork::fork_request(CloneFlags::empty()))
}

/// Makes a child that borrows the memory until it executes a program or exits.
pub fn sys_vfork(cx: &mut Cx<'_>) -> Result<Pid> {
    fork::clone(cx.thread, cx.regs, &fork::fork_request(CloneFlags::VM | CloneFlags::VFORK))
}

/// As clone, with an extensible structure.
pub fn sys_clone3(cx: &mut Cx<'_>, args: UserAddr, size: usize) -> Result<Pid> {
    let args = read_clone_args(args, size)?;
    fork::clone(cx.thread, cx.regs, &decode_clone3(cx, &args, size)?)
}

fn read_clone_args(addr: UserAddr, size: usize) -> Result<CloneArgs> {
    if size > 4096 {
        return Err(Errno::E2BIG);
    }
    if size < CloneArgs::SIZE_VER0 {
        return Err(Errno::EINVAL);
    }
    user::read_extensible(addr, size)
}

fn decode_clone3(cx: &Cx<'_>, args: &CloneArgs, size: usize) -> Result<CloneRequest> {
    let flags = CloneFlags::from_bits(args.flags).ok_or(Errno::EINVAL)?;
    if flags.contains(CloneFlags::INTO_CGROUP) && size < size_of::<CloneArgs>() {
        return Err(Errno::EINVAL);
    }
    if flags.contains(CloneFlags::DETACHED) || args.exit_signal > 64 {
        return Err(Errno::EINVAL);
    }
    if flags.intersects(CloneFlags::THREAD | CloneFlags::PARENT) && args.exit_signal != 0 {
        return Err(Errno::EINVAL);
    }
    if (args.stack == 0) != (args.stack_size == 0) {
        return Err(Errno::EINVAL);
    }
    let stack_pointer = args.stack.checked_add(args.stack_size).filter(|sp| *sp <= ursa_hal::USER_END);
    if (args.set_tid == 0) != (args.set_tid_size == 0) || args.set_tid_size > 32 {
        return Err(Errno::EINVAL);
    }
    let set_tid = read_set_tid(cx, args)?;
    let cgroup = if flags.contains(CloneFlags::INTO_CGROUP) {
        let fd = i32::try_from(args.cgroup).map_err(|_| Errno::EINVAL)?;
        // `O_PATH` is enough.
        let group = cgroup::of_file(&*cx.thread.files().get_any(fd)?)?;
        cgroup::may_fork_into(cx.thread, &group, flags.contains(CloneFlags::THREAD))?;
        Some(group)
    } else {
        None
    };
    Ok(CloneRequest {
        flags,
        exit_signal: args.exit_signal as i32,
        stack_pointer: stack_pointer.ok_or(Errno::EINVAL)?,
        tls: args.tls,
        parent_tid: UserPtr::new(args.parent_tid),
        child_tid: UserPtr::new(args.child_tid),
        pidfd: UserPtr::new(args.pidfd),
        set_tid,
        cgroup,
    })
}

/// The numbers that the child is to have, one for each PID namespace from its own outwards.
fn read_set_tid(cx: &Cx<'_>, args: &CloneArgs) -> Result<Vec<Pid>> {
    if args.set_tid_size == 0 {
        return Ok(Vec::new());
    }
    let flags = CloneFlags::from_bits_truncate(args.flags);
    let namespaces = cx.thread.namespaces().ok_or(Errno::ESRCH)?;
    let depth = namespaces.pid_for_children.level() + 1 + usize::from(flags.contains(CloneFlags::NEWPID));
    if args.set_tid_size as usize > depth {
        return Err(Errno::EINVAL);
    }
    let numbers = user::read_slice(UserPtr::<Pid>::new(args.set_tid), args.set_tid_size as usize)?;
    if !cx.thread.with_cred(|c| c.has_cap(Cap::SysAdmin) || c.has_cap(Cap::CheckpointRestore)) {
        return Err(Errno::EPERM);
    }
    Ok(numbers)
}

/// Ends the thread.
pub fn sys_exit(cx: &mut Cx<'_>, status: i32) -> Result {
    cx.thread.request_exit((status & 0xff) << 8);
    crate::sched::with_current(|ext| ext.add_work(crate::sched::Work::KILL));
    Ok(())
}

/// Ends the process.
pub fn sys_exit_group(cx: &mut Cx<'_>, status: i32) -> Result {
    cx.thread.process().exit_group((status & 0xff) << 8);
    Ok(())
}
