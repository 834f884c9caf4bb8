//! Sending signals.
//!
//! A signal goes to a thread or to a process as a whole. Sending decides what must happen at once (SIGCONT and stop signals,
//! dropping what is ignored, ending a process that cannot survive it), queues the rest, and makes a thread look.
//! All of it may run in interrupt context (timers) and needs no memory but the queue entry.
//!
//! References: signal(7), kill(2), Linux `kernel/signal.c`.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use linux_uapi::signal::{
    CLD_DUMPED, CLD_EXITED, CLD_KILLED, SI_KERNEL, SI_USER, SIG_DFL, SIG_IGN, SIGCHLD, SIGCONT, SIGKILL, SIGRTMIN,
    SIGSTOP, SigInfo, SigSet,
};

use super::pending::{Insert, Queued};
use super::{SA_NOCLDWAIT, job};
use crate::process::rlimit::Resource;
use crate::process::{Pid, Process, Thread, try_current};
use crate::sched::{self, SleepState, Work};
use crate::time::posix_timer::PosixTimer;
use crate::{Errno, Result};

/// What ends or stops even the first process of a nested PID namespace when it comes from above; everything else it gets only when it
/// handles it. Nothing ends or stops the first process of all.
pub(super) const UNSTOPPABLE: [u32; 2] = [SIGKILL, SIGSTOP];

/// Sends a signal from the kernel to a process; any thread may take it.
pub fn send_to_process(process: &Process, info: SigInfo) {
    // Without an account there is no limit to hit.
    let _ = send(process, None, Queued::new(info, None));
}

/// Sends a signal from the kernel to one thread.
pub fn send_to_thread(thread: &Thread, info: SigInfo) {
    let _ = send(thread.process(), Some(thread), Queued::new(info, None));
}

/// Sends a signal from the kernel to every member of a process group, as terminals do. Not for interrupt context.
pub fn send_to_group(group: Pid, info: SigInfo) {
    let Some(group) = crate::process::process_group(group) else { return };
    // No process is born meanwhile: a member's child is a member too, or its fork sees the signal and starts again.
    let tree = crate::process::tree_lock();
    let members = group.members();
    for member in &members {
        send_to_process(member, info);
    }
    drop(tree);
    // The last reference to a process is not dropped under the lock.
    drop(members);
}

/// Sends a signal on behalf of a program: a queued one counts against the target user's `RLIMIT_SIGPENDING`.
///
/// # Errors
/// `EAGAIN` when a real-time signal of sigqueue(3) cannot be queued.
pub(super) fn send_from_user(process: &Process, target: Option<&Thread>, mut info: SigInfo) -> Result {
    let signo = info.signo();
    let from_outside = try_current().is_some_and(|t| t.process().seen_from(process.pid_namespace()) == 0);
    if from_outside {
        info.hide_sender();
    }
    let receiver = match target {
        Some(thread) => Some(thread.arc()),
        None => process.representative(),
    };
    let Some(receiver) = receiver else { return Err(Errno::ESRCH) };
    let account = receiver.with_cred(|cred| cred.user.clone());
    let pending = account.pending_signals.fetch_add(1, Ordering::Relaxed);
    let queued = Queued::new(info, Some(account));
    // A standard signal takes no slot twice, so it is always let in; a real-time one queues without bound otherwise.
    if signo >= SIGRTMIN && pending >= process.rlimits.soft(Resource::Sigpending) {
        drop(queued);
        if info.si_code != SI_USER {
            return Err(Errno::EAGAIN);
        }
        return send_inner(process, target, signo, None, from_outside);
    }
    send_inner(process, target, signo, Some(queued), from_outside)
}

/// Sends a POSIX timer's signal. Returns whether it was queued; if not, it is ignored now or pending already.
pub(crate) fn send_from_timer(
    process: &Process,
    target: Option<&Thread>,
    info: SigInfo,
    timer: Arc<PosixTimer>,
) -> bool {
    if is_ignored(process, target, info.signo(), false) {
        return false;
    }
    send(process, target, Queued::from_timer(info, timer)).is_ok()
}

/// Takes a deleted timer's signal out of the queues.
pub(crate) fn forget_timer(process: &Process, timer: &PosixTimer) {
    let shared = process.signals.shared.lock().remove_timer(timer);
    drop(shared);
    for thread in process.threads() {
        let own = thread.signals.pending.lock().remove_timer(timer);
        drop(own);
    }
}

fn send(process: &Process, target: Option<&Thread>, queued: Queued) -> Result {
    let is_kernels = queued.info.si_code == SI_KERNEL;
    send_inner(process, target, queued.info.signo(), Some(queued), is_kernels)
}

/// `from_above`: the sender is the kernel, or outside of the process's PID namespace.
fn send_inner(
    process: &Process,
    target: Option<&Thread>,
    signo: u32,
    queued: Option<Queued>,
    from_above: bool,
) -> Result {
    if process.is_zombie() || process.is_dumping() && signo != SIGKILL {
        return Ok(());
    }
    if signo == SIGCONT {
        job::resume(process);
    } else if SigSet::STOP.contains(signo) {
        job::forget_continue(process);
    }
    if is_ignored(process, target, signo, from_above) {
        return Ok(());
    }
    let from_timer = queued.as_ref().is_some_and(|queued| queued.timer.is_some());
    let inserted = match target {
        Some(thread) => thread.signals.pending.lock().insert(signo, queued),
        None => process.signals.shared.lock().insert(signo, queued),
    };
    if inserted == Insert::Merged {
        return Ok(());
    }
    process.signals.signalfd_wait.wake_all();
    match target {
        Some(thread) => notify_if_wanted(process, thread, signo),
        None => {
            // A timer's signal goes to the thread that runs here, if it is one of these: no idle one is woken up for it.
            if from_timer
                && let Some(running) = try_current()
                && core::ptr::eq(&**running.process(), process)
                && wants(&running, signo)
            {
                notify_if_wanted(process, &running, signo);
                return Ok(());
            }
            let chosen = process.find_thread(|thread| wants(thread, signo).then(|| thread.clone()));
            if let Some(thread) = chosen {
                notify_if_wanted(process, &thread, signo);
            }
        }
    }
    Ok(())
}

/// Whether signals that nobody handles do nothing to a process: the first of a PID namespace, unless it did what it cannot go on after.
pub(super) fn is_protected(process: &Process) -> bool {
    process.is_first() && !process.signals.exposed.load(Ordering::Acquire)
}

/// Whether sending changes nothing: the signal is ignored and nobody could see it pending.
fn is_ignored(process: &Process, target: Option<&Thread>, signo: u32, from_above: bool) -> bool {
    let blocked_or_traced = |thread: &Thread| {
        let held_back = thread.signals.blocked().union(SigSet(thread.signals.awaited.load(Ordering::SeqCst)));
        held_back.contains(signo) || thread.signals.ptrace.is_traced() && signo != SIGKILL
    };
    let visible = match target {
        Some(thread) => blocked_or_traced(thread),
        None => process.find_thread(|thread| Some(blocked_or_traced(thread))).unwrap_or(false),
    };
    if visible {
        return false;
    }
    match process.signals.action(signo).handler {
        SIG_IGN => true,
        SIG_DFL if SigSet::DEFAULT_IGNORED.contains(signo) => true,
        SIG_DFL if is_protected(process) => process.pid() == 1 || !from_above || !UNSTOPPABLE.contains(&signo),
        _ => false,
    }
}

fn wants(thread: &Thread, signo: u32) -> bool {
    if thread.is_dead() {
        return false;
    }
    let awaited = SigSet(thread.signals.awaited.load(Ordering::SeqCst));
    signo == SIGKILL || awaited.contains(signo) || !thread.signals.blocked().contains(signo)
}

fn notify_if_wanted(process: &Process, thread: &Thread, signo: u32) {
    if !wants(thread, signo) {
        return;
    }
    if SigSet(thread.signals.awaited.load(Ordering::SeqCst)).contains(signo) {
        // rt_sigtimedwait looks at the queue itself; a signal that is also unblocked is taken there, too.
        if let Some(task) = thread.task() {
            sched::wake(&task, SleepState::INTERRUPTIBLE);
        }
        if thread.signals.blocked().contains(signo) {
            return;
        }
    }
    if ends_process(process, thread, signo) {
        end_process(process, signo);
    } else {
        notify_thread(thread);
    }
}

/// Whether the signal ends the process for certain: then all threads leave their sleeps now, killable ones too.
fn ends_process(process: &Process, thread: &Thread, signo: u32) -> bool {
    if signo == SIGKILL {
        return true;
    }
    process.signals.action(signo).handler == SIG_DFL
        && !is_protected(process)
        && !SigSet::DEFAULT_IGNORED.union(SigSet::STOP).union(SigSet::CORE_DUMP).contains(signo)
        && !thread.signals.ptrace.is_traced()
        && !process.signals.is_stopping()
}

fn end_process(process: &Process, signo: u32) {
    let fatal = &process.signals.fatal;
    if fatal.compare_exchange(0, signo, Ordering::AcqRel, Ordering::Acquire).is_err() && signo == SIGKILL {
        // Nothing outranks SIGKILL, unless the end is under way already.
        fatal.store(SIGKILL, Ordering::Release);
    }
    let mut states = SleepState::INTERRUPTIBLE | SleepState::KILLABLE;
    if signo == SIGKILL {
        states |= SleepState::STOPPED | SleepState::TRACED;
    }
    process.find_thread(|thread| {
        if let Some(task) = thread.task() {
            sched::ext_of(&task).add_work(Work::KILL);
            sched::kick(&task, states);
        }
        None::<()>
    });
}

/// Makes a thread look at its signals, and at whatever else it follows on its way to user mode.
pub(crate) fn notify_thread(thread: &Thread) {
    if let Some(task) = thread.task() {
        sched::ext_of(&task).add_work(Work::SIGNAL);
        sched::kick(&task, SleepState::INTERRUPTIBLE);
    }
}

/// Tells a parent that its child is a zombie now. Returns whether the child is to be reaped without a wait(2).
pub fn notify_parent_of_exit(child: &Process, parent: &Process) -> bool {
    let signo = child.exit_signal();
    let Some(signo) = u32::try_from(signo).ok().filter(|&signo| signo != 0) else {
        return false;
    };
    let mut auto_reap = false;
    let mut send_signal = true;
    if signo == SIGCHLD {
        let action = parent.signals.action(SIGCHLD);
        if action.handler == SIG_IGN {
            auto_reap = true;
            send_signal = false;
        } else if action.flags & SA_NOCLDWAIT != 0 {
            auto_reap = true;
        }
    }
    if send_signal {
        let status = child.exit_status();
        let (code, value) = match status & 0x7f {
            0 => (CLD_EXITED, status >> 8 & 0xff),
            signal if status & 0x80 != 0 => (CLD_DUMPED, signal),
            signal => (CLD_KILLED, signal),
        };
        let mut info = job::child_info(child, parent, code, value);
        info.si_signo = signo as i32;
        send_to_process(parent, info);
    }
    auto_reap
}

/// Checks that a thread may send `signo` to a process, as kill(2) says.
///
/// # Errors
/// `EPERM`.
pub fn check_permission(sender: &Thread, target: &Process, signo: u32) -> Result {
    if core::ptr::eq(&**sender.process(), target) {
        return Ok(());
    }
    let Some(receiver) = target.leader().or_else(|| target.representative()) else { return Err(Errno::ESRCH) };
    let (theirs_uid, theirs_suid) = receiver.with_cred(|cred| (cred.uid, cred.suid));
    let allowed = sender.with_cred(|cred| {
        [cred.euid, cred.uid].into_iter().any(|mine| mine == theirs_uid || mine == theirs_suid)
            || cred.has_cap(crate::process::Cap::Kill)
    });
    if allowed || signo == SIGCONT && sender.process().session().id() == target.session().id() {
        return Ok(());
    }
    Err(Errno::EPERM)
}

/// Whether stopping signals have no effect on this process now: its group is orphaned.
pub(super) fn stop_is_ignored(process: &Process, signo: u32) -> bool {
    signo != SIGSTOP && process.group().is_orphaned(None)
}
