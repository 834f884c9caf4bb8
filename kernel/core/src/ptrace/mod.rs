//! Tracing.

use linux_uapi::signal::SigInfo;
use ursa_hal::sync::SpinLock;
use ursa_hal::trap::UserContext;

use crate::process::{Process, Thread};

/// What a thread's last exception was, for its signal frame.
#[derive(Clone, Copy, Default)]
pub(crate) struct Fault {
    pub vector: u64,
    pub error_code: u64,
    pub address: u64,
}

/// The traced side of a thread.
#[derive(Default)]
pub struct Tracee {
    fault: SpinLock<Fault>,
}

impl Tracee {
    /// Whether a tracer is attached.
    pub fn is_traced(&self) -> bool {
        false
    }

    pub(crate) fn fault(&self) -> Fault {
        *self.fault.lock()
    }

    pub(crate) fn set_fault(&self, vector: u64, error_code: u64, address: u64) {
        *self.fault.lock() = Fault { vector, error_code, address };
    }
}

pub(crate) fn stop_if_asked(_thread: &Thread, _context: &mut UserContext) {}
pub(crate) fn signal_stop(_thread: &Thread, _context: &mut UserContext, info: SigInfo) -> Option<SigInfo> {
    Some(info)
}
pub(crate) fn handler_set_up(_thread: &Thread, _context: &mut UserContext) {}
pub(crate) fn syscall_enter(_thread: &Thread, _context: &mut UserContext) -> bool {
    true
}
pub(crate) fn syscall_exit(_thread: &Thread, _context: &mut UserContext) {}
pub(crate) fn debug_exception(_thread: &Thread, _dr6: u64) {}
/// The tracer's process id for `/proc/PID/status`, 0 for none.
pub fn tracer_id(_thread: &Thread) -> i32 {
    0
}

/// Whether a tracer is attached to the thread.
pub fn is_traced(_thread: &Thread) -> bool {
    false
}
/// The thread is about to end.
pub fn exit_event(_thread: &Thread, _status: i32) {}
/// The thread has ended.
pub fn exited(_thread: &Thread, _is_last: bool) {}
/// Whether a tracer other than the parent is to see the zombie first.
pub fn holds_zombie(_process: &Process) -> bool {
    false
}

/// What a look over a thread's tracees found.
pub enum TraceeScan {
    /// A tracee has news.
    Event(crate::process::wait::Event),
    /// There are tracees that fit, without news.
    Wait,
    /// No tracee fits.
    NoTracee,
}

/// Looks for news of the thread's tracees.
pub fn scan_tracees(
    _thread: &Thread,
    _target: &crate::process::wait::Target,
    _options: crate::process::wait::WaitOptions,
) -> TraceeScan {
    TraceeScan::NoTracee
}

/// Checks that a thread may look into another and steer it (`PTRACE_MODE_ATTACH_REALCREDS`).
///
/// # Errors
/// `EPERM`.
pub fn check_access(thread: &Thread, target: &Thread) -> crate::Result {
    if alloc::sync::Arc::ptr_eq(thread.process(), target.process()) {
        return Ok(());
    }
    let theirs = target.cred();
    let allowed = thread.with_cred(|cred| {
        let same = [theirs.uid, theirs.euid, theirs.suid].iter().all(|&uid| uid == cred.uid)
            && [theirs.gid, theirs.egid, theirs.sgid].iter().all(|&gid| gid == cred.gid);
        cred.has_cap(crate::process::Cap::SysPtrace)
            || same && target.process().dumpable() == 1 && theirs.permitted.is_subset(cred.permitted)
    });
    if allowed { Ok(()) } else { Err(crate::Errno::EPERM) }
}

/// The thread has made a child.
pub fn cloned(_parent: &Thread, _child: &Thread, _request: &crate::process::fork::CloneRequest) {}
/// The thread has executed a program.
pub fn exec_event(_thread: &Thread) {}
/// A thread has taken the number of its dead leader.
pub fn leader_replaced(_thread: &Thread, _leader: &Thread) {}
/// Whether the tracer lacks the privilege to steer a more privileged program.
pub fn is_traced_by_unprivileged(_thread: &Thread) -> bool {
    false
}
