//! The signal system calls.
//!
//! References: sigaction(2), sigprocmask(2), sigpending(2), sigsuspend(2), sigwaitinfo(2), rt_sigqueueinfo(2), sigaltstack(2),
//! kill(2), tkill(2), pause(2).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use linux_uapi::raw::general as uapi;
use linux_uapi::signal::{
    NSIG, SI_TKILL, SI_USER, SIG_DFL, SIG_IGN, SIGINFO_SIZE, SigAction, SigAltStack, SigInfo, SigSet,
};
use linux_uapi::time::Timespec;
use linux_uapi::zerocopy::FromBytes;

use super::deliver::take;
use super::frame::{self, alt_stack_flags};
use super::send::{check_permission, send_from_user};
use super::{
    SA_EXPOSE_TAGBITS, SA_NOCLDSTOP, SA_NOCLDWAIT, SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTART, SA_RESTORER,
    SA_SIGINFO, SS_AUTODISARM, SS_DISABLE, SS_ONSTACK, mask, restore_mask_later, set_blocked,
};
use crate::fs::procfs;
use crate::process::{self, Pid, Process, ProcessGroup, Thread};
use crate::sched::{self, SleepState};
use crate::syscall::Cx;
use crate::time::{Deadline, SleepTimer};
use crate::user::{self, UserAddr, UserPtr};
use crate::{Errno, Result};

crate::syscalls! { ROWS;
    13 rt_sigaction => sys_rt_sigaction(0, 1, 2, 3);
    14 rt_sigprocmask => sys_rt_sigprocmask(0, 1, 2, 3);
    15 rt_sigreturn => sys_rt_sigreturn;
    34 pause => sys_pause;
    62 kill => sys_kill(0, 1);
    127 rt_sigpending => sys_rt_sigpending(0, 1);
    128 rt_sigtimedwait => sys_rt_sigtimedwait(0, 1, 2, 3);
    129 rt_sigqueueinfo => sys_rt_sigqueueinfo(0, 1, 2);
    130 rt_sigsuspend => sys_rt_sigsuspend(0, 1);
    131 sigaltstack => sys_sigaltstack(0, 1);
    200 tkill => sys_tkill(0, 1);
    219 restart_syscall => sys_restart_syscall;
    234 tgkill => sys_tgkill(0, 1, 2);
    297 rt_tgsigqueueinfo => sys_rt_tgsigqueueinfo(0, 1, 2, 3);
    424 pidfd_send_signal => sys_pidfd_send_signal(0, 1, 2, 3);
}

fn check_set_size(size: usize) -> Result {
    if size == size_of::<SigSet>() { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Decodes a signal number; 0 asks for permission and existence only.
fn decode_signal(signo: i32) -> Result<u32> {
    u32::try_from(signo).ok().filter(|&signo| signo <= NSIG as u32).ok_or(Errno::EINVAL)
}

/// Examines and changes the action of a signal.
pub fn sys_rt_sigaction(
    cx: &mut Cx<'_>,
    signo: i32,
    new: UserPtr<SigAction>,
    old: UserPtr<SigAction>,
    size: usize,
) -> Result {
    const KNOWN: u64 = SA_NOCLDSTOP
        | SA_NOCLDWAIT
        | SA_SIGINFO
        | SA_ONSTACK
        | SA_RESTART
        | SA_NODEFER
        | SA_RESETHAND
        | SA_RESTORER
        | SA_EXPOSE_TAGBITS;
    check_set_size(size)?;
    let signo = decode_signal(signo)?;
    if signo == 0 {
        return Err(Errno::EINVAL);
    }
    let new = new.non_null().map(UserPtr::read).transpose()?;
    if new.is_some() && SigSet::UNBLOCKABLE.contains(signo) {
        return Err(Errno::EINVAL);
    }
    let process = cx.thread.process();
    let actions = process.signals.actions();
    let former = match new {
        None => actions.get(signo),
        Some(mut action) => {
            // Unknown flags are dropped, so that programs can find out what is supported by reading back.
            action.flags &= KNOWN;
            action.mask = action.mask.difference(SigSet::UNBLOCKABLE);
            let former = actions.replace(signo, action);
            if action.handler == SIG_IGN || action.handler == SIG_DFL && SigSet::DEFAULT_IGNORED.contains(signo) {
                discard(process, SigSet::single(signo));
            }
            former
        }
    };
    old.write_if_given(&former)
}

/// Drops pending instances of signals that are ignored from now on.
fn discard(process: &Process, signals: SigSet) {
    drop(process.signals.flush(signals));
    for thread in process.threads() {
        let gone = thread.signals.pending.lock().flush(signals);
        drop(gone);
    }
}

/// Examines and changes the blocked mask.
pub fn sys_rt_sigprocmask(
    cx: &mut Cx<'_>,
    how: i32,
    new: UserPtr<SigSet>,
    old: UserPtr<SigSet>,
    size: usize,
) -> Result {
    check_set_size(size)?;
    let former = cx.thread.signals.blocked();
    if !new.is_null() {
        let set = new.read()?.difference(SigSet::UNBLOCKABLE);
        let mask = match how as u32 {
            uapi::SIG_BLOCK => former.union(set),
            uapi::SIG_UNBLOCK => former.difference(set),
            uapi::SIG_SETMASK => set,
            _ => return Err(Errno::EINVAL),
        };
        set_blocked(cx.thread, mask);
    }
    old.write_if_given(&former)
}

/// Returns from a signal handler: restores the context in the frame on the stack.
pub fn sys_rt_sigreturn(cx: &mut Cx<'_>) -> Result {
    frame::pop(cx.thread, cx.regs);
    cx.keep_rax();
    Ok(())
}

/// Goes on with a call that a stop or an ignored signal interrupted.
pub fn sys_restart_syscall(cx: &mut Cx<'_>) -> Result<u64> {
    match cx.thread.signals.take_restart() {
        Some(block) => block(cx).map(|value| value.0),
        None => Err(Errno::EINTR),
    }
}

/// Sleeps until a handler has run.
pub fn sys_pause(_cx: &mut Cx<'_>) -> Result {
    sleep_until_signal();
    Err(Errno::ERESTARTNOHAND)
}

fn sleep_until_signal() {
    loop {
        sched::prepare_to_sleep(SleepState::INTERRUPTIBLE);
        if sched::signal_pending() {
            break;
        }
        sched::schedule();
    }
    sched::finish_sleep();
}

/// Replaces the mask and sleeps until a handler has run; its return restores the mask.
pub fn sys_rt_sigsuspend(cx: &mut Cx<'_>, mask: UserPtr<SigSet>, size: usize) -> Result {
    check_set_size(size)?;
    let mask = mask.read()?;
    let former = cx.thread.signals.blocked();
    set_blocked(cx.thread, mask.difference(SigSet::UNBLOCKABLE));
    sleep_until_signal();
    restore_mask_later(cx.thread, former);
    Err(Errno::ERESTARTNOHAND)
}

/// Returns the blocked signals that are pending.
pub fn sys_rt_sigpending(cx: &mut Cx<'_>, set: UserPtr<[u8; 8]>, size: usize) -> Result {
    if size > size_of::<SigSet>() {
        return Err(Errno::EINVAL);
    }
    let pending = cx.thread.signals.pending().union(cx.thread.process().signals.pending());
    let blocked = pending.intersection(cx.thread.signals.blocked());
    user::write_bytes(set.addr(), &blocked.0.to_ne_bytes()[..size])
}

/// Takes a pending signal of a set, waiting for one up to a time limit.
pub fn sys_rt_sigtimedwait(
    cx: &mut Cx<'_>,
    set: UserPtr<SigSet>,
    info: UserAddr,
    timeout: UserPtr<Timespec>,
    size: usize,
) -> Result<u32> {
    check_set_size(size)?;
    let wanted = set.read()?.difference(SigSet::UNBLOCKABLE);
    let timeout = match timeout.non_null() {
        Some(timeout) => Some(timeout.read()?.to_ns().ok_or(Errno::EINVAL)?),
        None => None,
    };
    let taken = match take(cx.thread, wanted) {
        Some(taken) => taken,
        None if timeout == Some(0) => return Err(Errno::EAGAIN),
        None => wait_for_signal(cx.thread, wanted, timeout.map(Deadline::after))?,
    };
    if info.as_u64() != 0 {
        user::write_bytes(info, &taken.to_user())?;
    }
    Ok(taken.signo())
}

fn wait_for_signal(thread: &Thread, wanted: SigSet, deadline: Option<Deadline>) -> Result<SigInfo> {
    let timer = deadline.map(SleepTimer::start);
    thread.signals.awaited.store(wanted.0, Ordering::SeqCst);
    let outcome = loop {
        sched::prepare_to_sleep(SleepState::INTERRUPTIBLE);
        if let Some(info) = take(thread, wanted) {
            break Ok(info);
        }
        if sched::signal_pending() {
            break Err(Errno::EINTR);
        }
        if timer.as_ref().is_some_and(SleepTimer::has_fired) {
            break Err(Errno::EAGAIN);
        }
        sched::schedule();
    };
    sched::finish_sleep();
    thread.signals.awaited.store(0, Ordering::SeqCst);
    // One that came while we left the wait is ours, too, and unblocked others must be seen.
    let outcome = outcome.or_else(|error| take(thread, wanted).ok_or(error));
    mask::recalculate(thread);
    outcome
}

/// Sets and reads the alternate signal stack.
pub fn sys_sigaltstack(cx: &mut Cx<'_>, new: UserPtr<SigAltStack>, old: UserPtr<SigAltStack>) -> Result {
    let sp = cx.regs.regs().rsp;
    let former = cx.thread.signals.alt_stack();
    if let Some(new) = new.non_null() {
        let new = new.read()?;
        set_alt_stack(cx.thread, &new, sp, uapi::MINSIGSTKSZ as u64)?;
    }
    let flags = alt_stack_flags(&former, sp) | former.ss_flags & SS_AUTODISARM;
    old.write_if_given(&SigAltStack { ss_flags: flags, pad: 0, ..former })
}

/// Sets the alternate stack.
///
/// # Errors
/// `EPERM` while it is in use, `EINVAL` for unknown flags, `ENOMEM` when it is too small.
pub(super) fn set_alt_stack(thread: &Thread, new: &SigAltStack, sp: u64, min_size: u64) -> Result {
    let current = thread.signals.alt_stack();
    if frame::on_alt_stack(&current, sp) {
        return Err(Errno::EPERM);
    }
    let mode = new.ss_flags & !SS_AUTODISARM;
    if mode != 0 && mode != SS_DISABLE && mode != SS_ONSTACK {
        return Err(Errno::EINVAL);
    }
    let stack = if mode == SS_DISABLE {
        SigAltStack { ss_sp: 0, ss_size: 0, ss_flags: new.ss_flags, pad: 0 }
    } else {
        if new.ss_size < min_size {
            return Err(Errno::ENOMEM);
        }
        if new.ss_sp.checked_add(new.ss_size).is_none() {
            return Err(Errno::ENOMEM);
        }
        SigAltStack { pad: 0, ..*new }
    };
    thread.signals.set_alt_stack(stack);
    Ok(())
}

fn own_info(thread: &Thread, signo: u32, code: i32) -> SigInfo {
    SigInfo::user(signo, code, thread.process().seen_pid(), thread.with_cred(|cred| cred.uid))
}

fn send_checked(sender: &Thread, target: &Process, thread: Option<&Thread>, signo: u32, info: SigInfo) -> Result {
    check_permission(sender, target, signo)?;
    if signo == 0 { Ok(()) } else { send_from_user(target, thread, info) }
}

/// Sends a signal to a process, a group, or all.
pub fn sys_kill(cx: &mut Cx<'_>, pid: i32, signo: i32) -> Result {
    let sender = cx.thread;
    let signo = decode_signal(signo)?;
    let info = own_info(sender, signo, SI_USER);
    match pid {
        1.. => {
            let target = process::seen_process(pid).ok_or(Errno::ESRCH)?;
            send_checked(sender, &target, None, signo, info)
        }
        0 => kill_group(sender, &sender.process().group(), signo, info),
        -1 => {
            let all_others = || {
                let mut targets = process::processes();
                targets.retain(|target| target.seen_pid() > 1 && !Arc::ptr_eq(target, sender.process()));
                targets
            };
            kill_many(sender, all_others, signo, info)
        }
        i32::MIN => Err(Errno::ESRCH),
        _ => {
            let group = process::seen_group(-pid).ok_or(Errno::ESRCH)?;
            kill_group(sender, &group, signo, info)
        }
    }
}

fn kill_group(sender: &Thread, group: &ProcessGroup, signo: u32, info: SigInfo) -> Result {
    kill_many(sender, || group.members(), signo, info)
}

/// Succeeds if any member could be sent to. No process is born between the choice of the targets and the end of the sending:
/// a target's child is a target too, or its fork sees the parent's signal and starts again.
fn kill_many(sender: &Thread, targets: impl FnOnce() -> Vec<Arc<Process>>, signo: u32, info: SigInfo) -> Result {
    let tree = process::tree_lock();
    let targets = targets();
    let mut outcome = Err(Errno::ESRCH);
    for target in &targets {
        match send_checked(sender, target, None, signo, info) {
            Ok(()) => outcome = Ok(()),
            Err(error) if outcome.is_err() => outcome = Err(error),
            Err(_) => {}
        }
    }
    // The last reference to a process is not dropped under the lock.
    drop(tree);
    outcome
}

/// The thread `tid`, of the process `tgid` if that is given.
fn find_thread(tgid: Option<Pid>, tid: Pid) -> Result<Arc<Thread>> {
    if tid <= 0 || tgid.is_some_and(|tgid| tgid <= 0) {
        return Err(Errno::EINVAL);
    }
    let thread = process::seen_thread(tid).filter(|thread| !thread.is_dead()).ok_or(Errno::ESRCH)?;
    match tgid {
        Some(tgid) if thread.process().seen_pid() != tgid => Err(Errno::ESRCH),
        _ => Ok(thread),
    }
}

/// Sends a signal to a thread.
pub fn sys_tkill(cx: &mut Cx<'_>, tid: i32, signo: i32) -> Result {
    kill_thread(cx, None, tid, signo)
}

/// Sends a signal to a thread of a process.
pub fn sys_tgkill(cx: &mut Cx<'_>, tgid: i32, tid: i32, signo: i32) -> Result {
    kill_thread(cx, Some(tgid), tid, signo)
}

fn kill_thread(cx: &mut Cx<'_>, tgid: Option<Pid>, tid: Pid, signo: i32) -> Result {
    let target = find_thread(tgid, tid);
    let signo = decode_signal(signo)?;
    let target = target?;
    let info = own_info(cx.thread, signo, SI_TKILL);
    send_checked(cx.thread, target.process(), Some(&target), signo, info)
}

/// Reads a `siginfo_t` that a program made up. Only the kernel may claim to be the kernel.
fn read_info(thread: &Thread, address: UserAddr, signo: u32, target: Pid) -> Result<SigInfo> {
    let mut bytes = [0; SIGINFO_SIZE];
    user::read_bytes(address, &mut bytes)?;
    let (mut info, _) = SigInfo::read_from_prefix(&bytes).map_err(|_| Errno::EINVAL)?;
    info.si_signo = signo as i32;
    info.pad = 0;
    if (info.si_code >= 0 || info.si_code == SI_TKILL) && thread.process().seen_pid() != target {
        return Err(Errno::EPERM);
    }
    Ok(info)
}

/// Queues a signal with data to a process (sigqueue(3)).
pub fn sys_rt_sigqueueinfo(cx: &mut Cx<'_>, pid: i32, signo: i32, info: UserAddr) -> Result {
    let number = decode_signal(signo)?;
    let info = read_info(cx.thread, info, number, pid)?;
    let target = process::seen_process(pid).ok_or(Errno::ESRCH)?;
    send_checked(cx.thread, &target, None, number, info)
}

/// Sends a signal to what a pidfd stands for; `flags` may choose the thread, the process, or its group.
pub fn sys_pidfd_send_signal(cx: &mut Cx<'_>, pidfd: i32, signo: i32, info: UserPtr<u8>, flags: u32) -> Result {
    const PIDFD_SIGNAL_THREAD: u32 = 1;
    const PIDFD_SIGNAL_THREAD_GROUP: u32 = 2;
    const PIDFD_SIGNAL_PROCESS_GROUP: u32 = 4;
    if flags & !7 != 0 || flags.count_ones() > 1 {
        return Err(Errno::EINVAL);
    }
    let file = cx.thread.file(pidfd)?;
    // A directory of `/proc/PID` stands for its process, too.
    let by_name;
    let target = match process::pidfd::of_file(&file) {
        Ok(target) => target,
        Err(error) => {
            by_name = process::pidfd::PidFd::Process(procfs::process_of(&file).ok_or(error)??);
            &by_name
        }
    };
    let number = decode_signal(signo)?;
    let to_thread = match flags {
        PIDFD_SIGNAL_THREAD => true,
        PIDFD_SIGNAL_THREAD_GROUP | PIDFD_SIGNAL_PROCESS_GROUP => false,
        _ => matches!(target, process::pidfd::PidFd::Thread(_)),
    };
    let process = target.process();
    if process.is_reaped() {
        return Err(Errno::ESRCH);
    }
    if process.seen_pid() == 0 {
        // Nobody signals out of the PID namespace.
        return Err(Errno::EINVAL);
    }
    let info = if info.is_null() {
        own_info(cx.thread, number, if to_thread { SI_TKILL } else { SI_USER })
    } else {
        let made_up = read_info(cx.thread, info.addr(), number, process.seen_pid())?;
        // The program's own number for the signal must agree.
        let claimed = info.cast::<i32>().read()?;
        if claimed != signo { return Err(Errno::EINVAL) } else { made_up }
    };
    if flags == PIDFD_SIGNAL_PROCESS_GROUP {
        return kill_group(cx.thread, &process.group(), number, info);
    }
    if !to_thread {
        return send_checked(cx.thread, process, None, number, info);
    }
    let thread = target.thread()?;
    if thread.is_dead() {
        return Err(Errno::ESRCH);
    }
    send_checked(cx.thread, process, Some(&thread), number, info)
}

/// Queues a signal with data to a thread (pthread_sigqueue(3)).
pub fn sys_rt_tgsigqueueinfo(cx: &mut Cx<'_>, tgid: i32, tid: i32, signo: i32, info: UserAddr) -> Result {
    if tgid <= 0 || tid <= 0 {
        return Err(Errno::EINVAL);
    }
    let number = decode_signal(signo)?;
    let info = read_info(cx.thread, info, number, tid)?;
    let target = find_thread(Some(tgid), tid)?;
    send_checked(cx.thread, target.process(), Some(&target), number, info)
}
