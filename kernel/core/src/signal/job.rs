//! Job control: stopping and continuing whole processes.
//!
//! ```text
//!   running ──stop signal taken──▶ stopping ──every live thread sleeps──▶ stopped (parent told)
//!      ▲                              │                                        │
//!      └──────────── SIGCONT (parent told if it was stopped), SIGKILL ─────────┘
//! ```
//! The thread that takes a stop signal asks all others to stop; each sleeps where it would return to user mode. The last one
//! tells the parent. SIGCONT takes effect when it is sent, blocked or not; its news are told by the continued process.
//! Locking: `ProcessSignals::job`, with the process's thread list inside.
//! References: signal(7), wait(2), POSIX.1-2024 XBD "job control".

use linux_uapi::signal::{CLD_CONTINUED, CLD_STOPPED, SIG_IGN, SIGCHLD, SIGCONT, SigInfo, SigSet};

use super::SA_NOCLDSTOP;
use super::state::ProcessSignals;
use crate::process::{Process, Thread};
use crate::sched::{self, SleepState, Work};
use ursa_hal::trap::UserContext;

/// Stop state of a process; see the module's text.
#[derive(Default)]
pub(super) struct Job {
    /// The signal that stops or has stopped the process.
    stop_signal: Option<u32>,
    /// Threads that sleep for it.
    sleeping: u32,
    /// All threads sleep.
    complete: bool,
    /// News for waitid(2): stopped and not yet waited for.
    unread_stop: Option<u32>,
    /// News for waitid(2): continued and not yet waited for.
    unread_continue: bool,
    /// Counts stops, so that a tracee that was let out of one does not fall back into it.
    generation: u64,
    /// The parent is yet to be told that the process goes on.
    tell_continued: bool,
}

impl ProcessSignals {
    /// Whether the process is stopped as a whole.
    pub fn is_stopped(&self) -> bool {
        self.job.lock().complete
    }

    /// Whether the process is stopped or about to be.
    pub fn is_stopping(&self) -> bool {
        self.job.lock().stop_signal.is_some()
    }

    /// For `WUNTRACED`: the signal that stopped the process, unless already reported; `consume` reports it.
    pub fn stop_report(&self, consume: bool) -> Option<u32> {
        let mut job = self.job.lock();
        if consume { job.unread_stop.take() } else { job.unread_stop }
    }

    /// For `WCONTINUED`: whether the process went on, unless already reported; `consume` reports it.
    pub fn continue_report(&self, consume: bool) -> bool {
        let mut job = self.job.lock();
        if consume { core::mem::take(&mut job.unread_continue) } else { job.unread_continue }
    }
}

/// Begins to stop the process: called by the thread that took a stop signal.
pub(super) fn begin_stop(process: &Process, signo: u32) {
    {
        let mut job = process.signals.job.lock();
        if job.stop_signal.is_none() {
            job.stop_signal = Some(signo);
            job.generation += 1;
            job.sleeping = 0;
            job.complete = false;
            job.unread_continue = false;
        }
    }
    for thread in process.threads() {
        super::send::notify_thread(&thread);
    }
}

/// SIGCONT was sent: the process goes on at once, whatever becomes of the signal.
pub(super) fn resume(process: &Process) {
    drop(process.signals.flush(SigSet::STOP));
    let resumed = {
        let mut job = process.signals.job.lock();
        let was_complete = job.complete;
        let resumed = job.stop_signal.take().is_some();
        if resumed && was_complete {
            job.unread_stop = None;
            job.unread_continue = true;
            job.tell_continued = true;
        }
        job.complete = false;
        job.sleeping = 0;
        resumed
    };
    for thread in process.threads() {
        let gone = thread.signals.pending.lock().flush(SigSet::STOP);
        drop(gone);
        if resumed && let Some(task) = thread.task() {
            sched::ext_of(&task).add_work(Work::SIGNAL);
            sched::wake(&task, SleepState::STOPPED);
        }
    }
}

/// A stop signal was sent: it takes back a SIGCONT that is still pending.
pub(super) fn forget_continue(process: &Process) {
    let continue_set = SigSet::single(SIGCONT);
    drop(process.signals.flush(continue_set));
    for thread in process.threads() {
        let gone = thread.signals.pending.lock().flush(continue_set);
        drop(gone);
    }
}

/// Whether the thread is to sleep because its process stops: its tracer may have let it run out of that.
pub(crate) fn is_to_stop(thread: &Thread) -> bool {
    let job = thread.process().signals.job.lock();
    let generation = job.stop_signal.is_some().then_some(job.generation);
    drop(job);
    generation.is_some_and(|generation| !crate::ptrace::passed_stop(thread, generation))
}

/// Sleeps while the process is stopped. Called on the way to user mode.
pub(super) fn sleep_while_stopped(thread: &Thread, context: &mut UserContext) {
    let process = thread.process();
    let (signo, generation) = {
        let job = process.signals.job.lock();
        let Some(signo) = job.stop_signal else { return };
        (signo, job.generation)
    };
    if crate::ptrace::passed_stop(thread, generation) {
        return;
    }
    let completed = {
        let mut job = process.signals.job.lock();
        if job.stop_signal.is_none() {
            return;
        }
        job.sleeping += 1;
        complete_if_all_sleep(process, &mut job)
    };
    if completed {
        crate::fs::cgroup::process_rests(process);
        tell_parent(process, CLD_STOPPED);
    }
    if crate::ptrace::group_stop(thread, context, signo, generation) {
        return;
    }
    loop {
        sched::prepare_to_sleep(SleepState::STOPPED);
        if process.signals.job.lock().stop_signal.is_none() || sched::fatal_signal_pending() {
            break;
        }
        if crate::ptrace::wants_stop(thread, generation) {
            break;
        }
        sched::schedule();
    }
    sched::finish_sleep();
}

fn complete_if_all_sleep(process: &Process, job: &mut Job) -> bool {
    let all = job.sleeping >= process.live_threads();
    if all && !job.complete {
        job.complete = true;
        job.unread_stop = job.stop_signal;
        return true;
    }
    false
}

/// A thread ended: the others may all be asleep now.
pub(super) fn thread_exits(process: &Process) {
    let completed = {
        let mut job = process.signals.job.lock();
        job.stop_signal.is_some() && process.live_threads() > 0 && complete_if_all_sleep(process, &mut job)
    };
    if completed {
        tell_parent(process, CLD_STOPPED);
    }
}

/// Tells the parent that the process goes on, if that is still to be told.
pub(super) fn tell_if_continued(process: &Process) {
    let tell = core::mem::take(&mut process.signals.job.lock().tell_continued);
    if tell {
        tell_parent(process, CLD_CONTINUED);
    }
}

fn tell_parent(process: &Process, code: i32) {
    let Some(parent) = process.parent() else { return };
    let status = match code {
        CLD_STOPPED => process.signals.job.lock().stop_signal.unwrap_or(0),
        _ => SIGCONT,
    };
    let action = parent.signals.action(SIGCHLD);
    if action.handler != SIG_IGN && action.flags & SA_NOCLDSTOP == 0 {
        super::send_to_process(&parent, child_info(process, &parent, code, status as i32));
    }
    parent.child_wait.wake_all();
}

/// The SIGCHLD information about a process, for its parent.
pub(super) fn child_info(process: &Process, parent: &Process, code: i32, status: i32) -> SigInfo {
    let pid = process.seen_from(parent.pid_namespace());
    const NS_PER_CLOCK_TICK: u64 = 10_000_000;
    let usage = process.usage();
    let uid = process.representative().map_or(0, |thread| thread.with_cred(|cred| cred.uid));
    let (user, system) = (usage.user_ns / NS_PER_CLOCK_TICK, usage.system_ns / NS_PER_CLOCK_TICK);
    SigInfo::child(code, pid, uid, status, user, system)
}
