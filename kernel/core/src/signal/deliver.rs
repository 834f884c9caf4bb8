//! Delivery: what a thread does with its signals on the way back to user mode.

use core::sync::atomic::Ordering;

use linux_uapi::signal::{SI_KERNEL, SIG_DFL, SIG_IGN, SIGALRM, SIGKILL, SIGSEGV, SIGSTOP, SigAction, SigInfo, SigSet};
use ursa_hal::trap::UserContext;

use super::pending::Queued;
use super::{SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTART, frame, job, mask, send};
use crate::process::Thread;
use crate::sched::{self, Work};
use crate::{Errno, ptrace};

/// Whether the thread has a signal to take or a stop to follow.
pub(crate) fn wants_delivery(thread: &Thread) -> bool {
    let signals = &thread.process().signals;
    let unblocked = SigSet::ALL.difference(thread.signals.blocked());
    !thread.signals.pending().union(signals.pending()).intersection(unblocked).is_empty()
        || signals.is_stopping()
        || thread.cgroup.is_freezing()
}

/// Takes the next signal of `wanted`: the thread's own before the process's, synchronous ones first.
pub(super) fn take(thread: &Thread, wanted: SigSet) -> Option<SigInfo> {
    let queued = take_queued(thread, wanted)?;
    let info = match &queued.timer {
        Some(timer) => timer.taken(queued.info),
        None => queued.info,
    };
    if info.signo() == SIGALRM && info.si_code == SI_KERNEL {
        thread.process().signals.timers.alarm_was_taken();
    }
    drop(queued);
    Some(info)
}

fn take_queued(thread: &Thread, wanted: SigSet) -> Option<Queued> {
    let mut own = thread.signals.pending.lock();
    if let Some(signo) = own.next(wanted) {
        return Some(own.take(signo));
    }
    drop(own);
    let mut shared = thread.process().signals.shared.lock();
    let signo = shared.next(wanted)?;
    Some(shared.take(signo))
}

/// Takes a signal of `wanted` for a signalfd of the running thread.
pub fn signalfd_take(thread: &Thread, wanted: SigSet) -> Option<SigInfo> {
    take(thread, wanted.difference(SigSet::UNBLOCKABLE))
}

/// Delivers pending signals to the running thread and resolves a restart code in `rax`.
///
/// Returns with the thread due to end (`Thread::exit_status`) if a signal said so.
pub(crate) fn deliver(thread: &Thread, context: &mut UserContext) {
    let process = thread.process();
    sched::with_current(|ext| ext.take_work(Work::SIGNAL));
    loop {
        job::tell_if_continued(process);
        crate::fs::cgroup::rest_while_freezing(thread);
        if end_if_killed(thread) {
            return;
        }
        job::sleep_while_stopped(thread, context);
        if end_if_killed(thread) {
            return;
        }
        job::tell_if_continued(process);
        ptrace::stop_if_asked(thread, context);
        if crate::fs::cgroup::rest_while_freezing(thread) {
            continue;
        }
        let unblocked = SigSet::ALL.difference(thread.signals.blocked());
        let Some(mut info) = take(thread, unblocked) else { break };
        let mut signo = info.signo();
        if signo != SIGKILL && thread.signals.ptrace.is_traced() {
            match ptrace::signal_stop(thread, context, info) {
                Some(replaced) => info = replaced,
                None => continue,
            }
            signo = info.signo();
            if thread.signals.blocked().contains(signo) {
                super::send_to_thread(thread, info);
                continue;
            }
        }
        let action = process.signals.action(signo);
        match action.handler {
            SIG_IGN => continue,
            SIG_DFL => {
                let is_protected = send::is_protected(process) && !send::UNSTOPPABLE.contains(&signo);
                if SigSet::DEFAULT_IGNORED.contains(signo) || is_protected {
                    continue;
                }
                if SigSet::STOP.contains(signo) && (signo == SIGSTOP || !send::stop_is_ignored(process, signo)) {
                    job::begin_stop(process, signo);
                    continue;
                }
                if SigSet::STOP.contains(signo) {
                    continue;
                }
                die(thread, &info, context);
                return;
            }
            _ => {}
        }
        resolve_restart(context, Some(&action));
        if run_handler(thread, context, &info, &action).is_err() {
            // The frame does not fit on the stack: as on Linux that is SIGSEGV, and its default action if that is what failed.
            if signo == SIGSEGV {
                process.signals.actions().set_default(SIGSEGV);
            }
            force_signal(thread, SigInfo::kernel(SIGSEGV));
        }
    }
    resolve_restart_without_handler(thread, context);
    if let Some(saved) = mask::take_saved(thread) {
        super::set_blocked(thread, saved);
    }
}

/// Acts on a fatal signal that was seen when it was sent. Returns whether the thread ends.
fn end_if_killed(thread: &Thread) -> bool {
    if thread.exit_status().is_some() {
        return true;
    }
    if let Some(signo) = thread.process().signals.fatal_signal() {
        thread.process().exit_group(signo as i32);
        return thread.exit_status().is_some();
    }
    false
}

/// The default action that ends the process.
pub(crate) fn die(thread: &Thread, info: &SigInfo, context: &UserContext) {
    let signo = info.signo();
    if SigSet::CORE_DUMP.contains(signo) {
        crate::coredump::dump(thread, info, context);
    }
    // After a dump the status is settled, and says whether there is a file.
    thread.process().exit_group(signo as i32);
}

fn run_handler(thread: &Thread, context: &mut UserContext, info: &SigInfo, action: &SigAction) -> crate::Result {
    let signo = info.signo();
    let blocked = thread.signals.blocked();
    // After sigsuspend and its kin the handler returns to the mask of before.
    let saved = mask::take_saved(thread).unwrap_or(blocked);
    crate::process::rseq::on_signal(thread, context);
    ptrace::hide_step(thread, context);
    frame::push(thread, context, info, action, saved, action.flags & SA_ONSTACK != 0)?;
    if action.flags & SA_RESETHAND != 0 {
        thread.process().signals.actions().set_default(signo);
    }
    let mut mask = blocked.union(action.mask);
    if action.flags & SA_NODEFER == 0 {
        mask.insert(signo);
    }
    super::set_blocked(thread, mask);
    ptrace::handler_set_up(thread, context);
    Ok(())
}

/// Whether the event was a system call, so that `rax` may hold a restart code.
fn restart_code(context: &UserContext) -> Option<Errno> {
    let registers = context.regs();
    if registers.orig_rax as i32 == -1 {
        return None;
    }
    let code = u32::try_from((registers.rax as i64).checked_neg()?).ok()?;
    Errno::from_raw(code).filter(|errno| {
        [Errno::ERESTARTSYS, Errno::ERESTARTNOINTR, Errno::ERESTARTNOHAND, Errno::ERESTART_RESTARTBLOCK].contains(errno)
    })
}

/// Before a handler: the interrupted call fails with `EINTR` or is set up to run again after it.
fn resolve_restart(context: &mut UserContext, action: Option<&SigAction>) {
    let Some(code) = restart_code(context) else { return };
    let again = match code {
        Errno::ERESTARTNOINTR => true,
        Errno::ERESTARTSYS => action.is_some_and(|action| action.flags & SA_RESTART != 0),
        _ => false,
    };
    if again {
        rewind(context, None);
    } else {
        context.regs_mut().rax = Errno::EINTR.to_return();
    }
}

/// No handler ran: the interrupted call goes on.
fn resolve_restart_without_handler(_thread: &Thread, context: &mut UserContext) {
    const SYS_RESTART_SYSCALL: u64 = 219;
    match restart_code(context) {
        None => {}
        Some(Errno::ERESTART_RESTARTBLOCK) => rewind(context, Some(SYS_RESTART_SYSCALL)),
        Some(_) => rewind(context, None),
    }
}

/// Has the `syscall` instruction executed again.
fn rewind(context: &mut UserContext, number: Option<u64>) {
    const SYSCALL_INSTRUCTION_LEN: u64 = 2;
    let registers = context.regs_mut();
    registers.rax = number.unwrap_or(registers.orig_rax);
    registers.rip = registers.rip.wrapping_sub(SYSCALL_INSTRUCTION_LEN);
    // Done with this call: a second look must not rewind again.
    registers.orig_rax = !0;
}

/// Sends the running thread a signal that it cannot evade: a blocked or ignored one gets its default action.
pub fn force_signal(thread: &Thread, info: SigInfo) {
    let signo = info.signo();
    let blocked = thread.signals.blocked().contains(signo);
    let action = thread.process().signals.action(signo);
    if blocked || action.handler == SIG_IGN {
        thread.process().signals.actions().set_default(signo);
        if blocked {
            let mut mask = thread.signals.blocked();
            mask.remove(signo);
            super::set_blocked(thread, mask);
        }
    }
    if thread.process().signals.action(signo).handler == SIG_DFL {
        thread.process().signals.exposed.store(true, Ordering::Release);
    }
    super::send_to_thread(thread, info);
}

/// The running thread did something that cannot go on (`SIGSEGV` at an address and the like).
pub fn force_fault(thread: &Thread, signo: u32, code: i32, addr: u64) {
    force_signal(thread, SigInfo::fault(signo, code, addr));
}

/// A thread of a process ends: what it was to take goes to others, and a stop may be complete without it.
pub fn thread_exits(thread: &Thread, is_last: bool) {
    let process = thread.process();
    if is_last {
        process.signals.timers.delete_all(process);
        return;
    }
    let taken_by_it = process.signals.pending().difference(thread.signals.blocked());
    thread.signals.awaited.store(0, Ordering::SeqCst);
    mask::retarget(thread, taken_by_it);
    job::thread_exits(process);
}
