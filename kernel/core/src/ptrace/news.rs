//! What tracing has to do with births, deaths and wait(2).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use linux_uapi::raw::ptrace as uapi;
use linux_uapi::signal::{CLD_EXITED, SI_USER, SIGCHLD, SIGKILL, SIGSTOP, SIGTRAP, SigInfo};
use ursa_hal::trap::UserContext;

use super::{Kind, attach, detach, stop_with, tell_tracer, trap_info};
use crate::process::fork::{CloneFlags, CloneRequest};
use crate::process::wait::{ChildState, Event, Target, WaitOptions};
use crate::process::{PidNamespace, Process, Thread, exit, pid::Identity};
use crate::sched::{self, Work};
use crate::signal;

/// What a look over a process's tracees found.
pub enum TraceeScan {
    /// A tracee has news.
    Event(Event),
    /// There are tracees that fit, without news.
    Wait,
    /// No tracee fits.
    NoTracee,
}

/// The living tracees of a process.
fn tracees(tracer: &Process) -> Vec<Arc<Thread>> {
    tracer.signals.tracees.lock().iter().filter_map(|thread| thread.upgrade()).collect()
}

/// Looks for news of the tracees of the thread's process.
pub fn scan_tracees(thread: &Thread, target: &Target, options: WaitOptions) -> TraceeScan {
    let mut result = TraceeScan::NoTracee;
    for tracee in tracees(thread.process()) {
        let fits = match target {
            Target::Any => true,
            Target::Pid(pid) => tracee.tid() == *pid,
            Target::Group(group) => tracee.process().group().id() == *group,
            Target::Process(process) => Arc::ptr_eq(tracee.process(), process),
        };
        if !fits || !tracee.signals.ptrace.is_traced() {
            continue;
        }
        result = TraceeScan::Wait;
        if let Some(state) = take_news(&tracee, options) {
            let usage = tracee.usage.totals();
            let uid = tracee.with_cred(|cred| cred.uid);
            return TraceeScan::Event(Event { pid: tracee.seen_tid(), uid, state, usage });
        }
    }
    result
}

fn take_news(tracee: &Arc<Thread>, options: WaitOptions) -> Option<ChildState> {
    let consume = !options.contains(WaitOptions::NOWAIT);
    let exited = {
        let mut state = tracee.signals.ptrace.state.lock();
        if let Some(stop) = state.stop.as_mut().filter(|stop| !stop.reported) {
            stop.reported = consume;
            return Some(ChildState::Trapped(stop.code));
        }
        let wanted = options.contains(WaitOptions::EXITED);
        if consume && wanted { state.exit_status.take() } else { state.exit_status.filter(|_| wanted) }
    };
    let status = exited?;
    if consume {
        detach(tracee, 0);
        let process = tracee.process();
        if tracee.is_leader() && process.is_zombie() {
            // Its parent, who is not the tracer, may see it now.
            exit::notify_parent(process);
        } else if !tracee.is_leader() {
            process.forget_dead_thread(tracee);
        }
    }
    Some(ChildState::Exited(status))
}

/// The tracer's process id in a PID namespace for `/proc/PID/status`, 0 for none.
pub fn tracer_id(thread: &Thread, namespace: &PidNamespace) -> i32 {
    thread.signals.ptrace.tracer().map_or(0, |tracer| tracer.seen_from(namespace))
}

/// The event that a clone is, for a tracer that asked for it.
fn clone_event(parent: &Thread, request: &CloneRequest) -> Option<u32> {
    let (event, option) = if request.flags.contains(CloneFlags::VFORK) {
        (uapi::PTRACE_EVENT_VFORK, uapi::PTRACE_O_TRACEVFORK)
    } else if request.exit_signal != SIGCHLD as i32 {
        (uapi::PTRACE_EVENT_CLONE, uapi::PTRACE_O_TRACECLONE)
    } else {
        (uapi::PTRACE_EVENT_FORK, uapi::PTRACE_O_TRACEFORK)
    };
    (!request.flags.contains(CloneFlags::UNTRACED) && parent.signals.ptrace.has_option(option)).then_some(event)
}

/// A child is about to start: it is traced like its maker if the tracer wants that.
pub fn cloned(parent: &Thread, child: &Arc<Thread>, request: &CloneRequest) {
    let wanted = clone_event(parent, request).is_some() || request.flags.contains(CloneFlags::PTRACE);
    let Some(tracer) = parent.signals.ptrace.tracer().filter(|_| wanted) else { return };
    let (options, seized, privileged) = {
        let state = parent.signals.ptrace.state.lock();
        (state.options, state.seized, state.privileged)
    };
    if attach(child, &tracer, options, seized, privileged).is_err() {
        return;
    }
    if seized {
        child.signals.ptrace.state.lock().interrupt = true;
        if let Some(task) = child.task() {
            sched::ext_of(&task).add_work(Work::SIGNAL);
        }
    } else {
        signal::send_to_thread(child, SigInfo::user(SIGSTOP, SI_USER, 0, 0));
    }
}

/// The child runs: its maker stops with the event, before it waits for a vfork.
pub fn event_stop_of_clone(parent: &Thread, context: &UserContext, request: &CloneRequest, child: &Identity) {
    let Some(event) = clone_event(parent, request) else { return };
    let pid = parent.signals.ptrace.tracer().map_or(0, |tracer| child.seen_from(tracer.pid_namespace()));
    parent.signals.ptrace.state.lock().event_message = pid as u64;
    let code = SIGTRAP | event << 8;
    let mut registers = *context.regs();
    stop_with(parent, &mut registers, Kind::Event, code, trap_info(parent, code));
}

/// The thread has executed a program.
pub fn exec_event(thread: &Thread) {
    let tracee = &thread.signals.ptrace;
    if !tracee.is_traced() {
        return;
    }
    let tid = tracee.tracer().map_or(0, |tracer| thread.identity().seen_from(tracer.pid_namespace()));
    let mut state = tracee.state.lock();
    if state.options & uapi::PTRACE_O_TRACEEXEC != 0 {
        state.event = Some((uapi::PTRACE_EVENT_EXEC, tid as u64));
        drop(state);
        sched::with_current(|ext| ext.add_work(Work::SIGNAL));
    } else if !state.seized {
        drop(state);
        signal::send_to_thread(thread, SigInfo::user(SIGTRAP, SI_USER, thread.own_tid(), 0));
    }
}

/// A thread has taken the number of its dead leader: the leader's tracing ends.
pub fn leader_replaced(_thread: &Thread, leader: &Arc<Thread>) {
    if leader.signals.ptrace.is_traced() {
        detach(leader, 0);
    }
}

/// The thread is about to end.
pub fn exit_event(thread: &Thread, status: i32) {
    if thread.signals.ptrace.has_option(uapi::PTRACE_O_TRACEEXIT) {
        thread.signals.ptrace.state.lock().event_message = status as u32 as u64;
        let code = SIGTRAP | uapi::PTRACE_EVENT_EXIT << 8;
        let mut registers = *UserContext::new().regs();
        // It is ending already; only another SIGKILL cuts this stop short.
        sched::with_current(|ext| ext.take_work(Work::KILL));
        stop_with(thread, &mut registers, Kind::Event, code, trap_info(thread, code));
        sched::with_current(|ext| ext.add_work(Work::KILL));
    }
}

/// The thread has ended; with `is_last` its process with it.
pub fn exited(thread: &Arc<Thread>, is_last: bool) {
    // The thread was marked as dead before: pairs with the one in `attach`.
    fence(Ordering::SeqCst);
    if is_last {
        release_tracees(thread.process());
    }
    let Some(tracer) = thread.signals.ptrace.tracer() else { return };
    let is_parent = thread.process().parent().is_some_and(|parent| Arc::ptr_eq(&parent, &tracer));
    if thread.is_leader() && is_parent {
        // wait(2) shows the child itself.
        detach(thread, 0);
        return;
    }
    if thread.is_leader() && !is_last {
        // Shown when the whole process is gone.
        return;
    }
    let status = if is_last { thread.process().exit_status() } else { thread.exit_status().unwrap_or(0) };
    let shown = if is_last { thread.process().leader() } else { Some(thread.clone()) };
    if let Some(shown) = shown.filter(|shown| shown.signals.ptrace.is_traced()) {
        shown.signals.ptrace.state.lock().exit_status = Some(status);
    }
    if is_last && !thread.is_leader() {
        thread.signals.ptrace.state.lock().exit_status = Some(status);
    }
    tell_tracer(thread, CLD_EXITED, status as u32 >> 8 & 0xff);
}

/// A tracer ends: its tracees go on alone, or end with it.
pub fn release_tracees(tracer: &Process) {
    for tracee in tracees(tracer) {
        let kill = tracee.signals.ptrace.has_option(uapi::PTRACE_O_EXITKILL);
        let zombie = tracee.is_leader() && tracee.process().is_zombie();
        detach(&tracee, 0);
        if kill {
            signal::send_to_process(tracee.process(), SigInfo::kernel(SIGKILL));
        }
        if zombie {
            exit::notify_parent(tracee.process());
        } else if tracee.is_dead() && !tracee.is_leader() {
            tracee.process().forget_dead_thread(&tracee);
        }
    }
}

/// Whether a tracer other than the parent is to see the zombie first.
pub fn holds_zombie(process: &Process) -> bool {
    let Some(leader) = process.leader() else { return false };
    let Some(tracer) = leader.signals.ptrace.tracer() else { return false };
    leader.signals.ptrace.traced.load(Ordering::Acquire)
        && process.parent().is_none_or(|parent| !Arc::ptr_eq(&parent, &tracer))
}
