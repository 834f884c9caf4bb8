//! Waiting for children: the engine of wait4(2) and waitid(2).
//!
//! [`wait`] looks over the children that a [`Target`] names, takes what can be reported ([`Event`]), and otherwise sleeps
//! on the process's `child_wait` queue, which every change of a child wakes. A zombie is claimed by an atomic swap, so two
//! waiting threads never get the same child. References: wait(2), Linux `kernel/exit.c`.

use alloc::sync::Arc;
use core::sync::atomic::Ordering::*;

use bitflags::bitflags;
use linux_uapi::signal::{CLD_CONTINUED, CLD_DUMPED, CLD_EXITED, CLD_KILLED, CLD_STOPPED, CLD_TRAPPED, SIGCHLD};

use super::exit;
use super::pid::Pid;
use super::process::Process;
use super::thread::Thread;
use super::usage::UsageTotals;
use crate::ptrace;
use crate::{Errno, Result};

bitflags! {
    /// `W*` and `__W*` options.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct WaitOptions: u32 {
        /// `WNOHANG`
        const NOHANG = 1;
        /// `WSTOPPED`
        const STOPPED = 2;
        /// `WEXITED`
        const EXITED = 4;
        /// `WCONTINUED`
        const CONTINUED = 8;
        /// `WNOWAIT`
        const NOWAIT = 0x0100_0000;
        /// `WNOTHREAD`
        const NOTHREAD = 0x2000_0000;
        /// `WALL`
        const ALL = 0x4000_0000;
        /// `WCLONE`
        const CLONE = 0x8000_0000;
    }
}

/// Which children are meant.
#[derive(Clone)]
pub enum Target {
    /// Every child.
    Any,
    /// The child with this number in the first PID namespace.
    Pid(Pid),
    /// The children in the process group with this number in the first PID namespace.
    Group(Pid),
    /// The child behind a pidfd.
    Process(Arc<Process>),
}

/// What happened to a child.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChildState {
    /// It ended, with this status in wait(2)'s encoding.
    Exited(i32),
    /// It was stopped by this signal.
    Stopped(u32),
    /// It stopped for its tracer: signal and event as `ptrace` encodes them.
    Trapped(u32),
    /// It was continued.
    Continued,
}

/// A report of one child.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// The child's number, as the waiting thread knows it.
    pub pid: Pid,
    /// Its real user.
    pub uid: u32,
    /// What happened.
    pub state: ChildState,
    /// What it and its reaped children consumed.
    pub usage: UsageTotals,
}

impl Event {
    /// Returns wait4's status word.
    pub fn status(&self) -> i32 {
        match self.state {
            ChildState::Exited(status) => status,
            ChildState::Stopped(signo) | ChildState::Trapped(signo) => (signo << 8 | 0x7f) as i32,
            ChildState::Continued => 0xffff,
        }
    }

    /// Returns waitid's `si_code` and `si_status`.
    pub fn code_and_status(&self) -> (i32, i32) {
        match self.state {
            ChildState::Exited(status) => exit_code_and_status(status),
            ChildState::Stopped(signo) => (CLD_STOPPED, signo as i32),
            ChildState::Trapped(signo) => (CLD_TRAPPED, signo as i32),
            ChildState::Continued => (CLD_CONTINUED, linux_uapi::signal::SIGCONT as i32),
        }
    }
}

/// Splits wait(2)'s status of an ended process into `si_code` and `si_status`.
pub fn exit_code_and_status(status: i32) -> (i32, i32) {
    match status & 0x7f {
        0 => (CLD_EXITED, status >> 8 & 0xff),
        signo if status & 0x80 != 0 => (CLD_DUMPED, signo),
        signo => (CLD_KILLED, signo),
    }
}

/// What a look over the children found.
enum Scan {
    Event(Event),
    /// Nothing to report now, but later.
    Wait,
    /// No child fits.
    NoChild,
}

/// Waits for an event of a child. `None` with `NOHANG` when there is none yet.
///
/// # Errors
/// `ECHILD` when no child fits, `ERESTARTSYS` on a signal.
pub fn wait(thread: &Thread, target: &Target, options: WaitOptions) -> Result<Option<Event>> {
    let process = thread.process();
    let look = || match scan(thread, target, options) {
        Scan::Event(event) => Some(Ok(Some(event))),
        Scan::NoChild => Some(Err(Errno::ECHILD)),
        Scan::Wait if options.contains(WaitOptions::NOHANG) => Some(Ok(None)),
        Scan::Wait => None,
    };
    process.child_wait.wait_interruptible(None, look)?
}

fn scan(thread: &Thread, target: &Target, options: WaitOptions) -> Scan {
    let process = thread.process();
    let mut result = Scan::NoChild;
    let mut visit = |child: &Arc<Process>| {
        if !is_eligible(thread, child, target, options) {
            return None;
        }
        result = Scan::Wait;
        report(process, child, options)
    };
    let found = match target {
        Target::Pid(pid) => {
            let child = process.links.lock().children.get(pid).cloned();
            child.as_ref().and_then(&mut visit)
        }
        Target::Process(wanted) => {
            let child = process.links.lock().children.get(&wanted.pid()).cloned();
            child.as_ref().filter(|c| Arc::ptr_eq(c, wanted)).and_then(&mut visit)
        }
        Target::Any | Target::Group(_) => process.children().iter().find_map(&mut visit),
    };
    if let Some(event) = found {
        return Scan::Event(event);
    }
    match ptrace::scan_tracees(thread, target, options) {
        ptrace::TraceeScan::Event(event) => Scan::Event(event),
        ptrace::TraceeScan::Wait => Scan::Wait,
        ptrace::TraceeScan::NoTracee => result,
    }
}

fn is_eligible(thread: &Thread, child: &Arc<Process>, target: &Target, options: WaitOptions) -> bool {
    if let Target::Group(id) = target
        && child.group().id() != *id
    {
        return false;
    }
    if options.contains(WaitOptions::NOTHREAD) && child.links.lock().parent_tid != thread.tid() {
        return false;
    }
    // A "clone child" reports with another signal than SIGCHLD, or none.
    let is_clone = child.exit_signal() != SIGCHLD as i32;
    options.contains(WaitOptions::ALL) || is_clone == options.contains(WaitOptions::CLONE)
}

/// Takes what can be reported of `child`.
fn report(parent: &Process, child: &Arc<Process>, options: WaitOptions) -> Option<Event> {
    let consume = !options.contains(WaitOptions::NOWAIT);
    let event = |state| {
        let mut usage = child.usage();
        usage.add(&child.children_usage());
        let uid = child.leader().or_else(|| child.representative()).map_or(0, |t| t.with_cred(|c| c.uid));
        Event { pid: child.seen_pid(), uid, state, usage }
    };
    if child.is_zombie() {
        let is_ready = child.is_announced() && !child.is_reaped() && !ptrace::holds_zombie(child);
        if !options.contains(WaitOptions::EXITED) || !is_ready {
            return None;
        }
        let report = event(ChildState::Exited(child.exit_status()));
        if consume {
            if !exit::claim(child) {
                return None;
            }
            parent.children_usage.lock().add(&report.usage);
            exit::release(child);
        }
        return Some(report);
    }
    if options.contains(WaitOptions::STOPPED)
        && let Some(signo) = child.signals.stop_report(consume)
    {
        return Some(event(ChildState::Stopped(signo)));
    }
    if options.contains(WaitOptions::CONTINUED) && child.signals.continue_report(consume) {
        return Some(event(ChildState::Continued));
    }
    None
}

impl Process {
    /// Sets the signal that the parent gets at exit.
    pub fn set_exit_signal(&self, signo: u32) {
        self.exit_signal.store(signo as i32, Relaxed);
    }
}
