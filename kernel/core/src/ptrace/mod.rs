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
    /// Something to report.
    Event(crate::process::wait::Event),
    /// Tracees that fit, with nothing to report yet.
    Wait,
    /// No tracee fits.
    NoTracee,
}
/// Looks for a tracee that can be reported.
pub fn scan_tracees(
    _thread: &Thread,
    _target: &crate::process::wait::Target,
    _options: crate::process::wait::WaitOptions,
) -> TraceeScan {
    TraceeScan::NoTracee
}
/// The thread made a child.
pub fn cloned(_parent: &Thread, _child: &alloc::sync::Arc<Thread>, _request: &crate::process::fork::CloneRequest) {}
/// The thread executed a program.
pub fn exec_event(_thread: &Thread) {}
/// `thread` took the number of the leader, which is gone.
pub fn leader_replaced(_thread: &Thread, _leader: &Thread) {}
/// Whether a tracer without `CAP_SYS_PTRACE` is attached: exec gives no privileges then.
pub fn is_traced_by_unprivileged(_thread: &Thread) -> bool {
    false
}
/// Checks that `caller` may look into `target`, as ptrace(2) says (`PTRACE_MODE_READ_REALCREDS`).
///
/// # Errors
/// `EPERM`.
pub fn check_access(caller: &Thread, target: &Thread) -> crate::Result {
    use crate::process::Cap;
    if alloc::sync::Arc::ptr_eq(caller.process(), target.process()) {
        return Ok(());
    }
    let (me, them) = (caller.cred(), target.cred());
    if me.has_cap(Cap::SysPtrace) {
        return Ok(());
    }
    let same = [them.uid, them.euid, them.suid].iter().all(|id| *id == me.uid)
        && [them.gid, them.egid, them.sgid].iter().all(|id| *id == me.gid);
    if same && target.process().dumpable() == 1 && them.permitted.is_subset(me.permitted) {
        Ok(())
    } else {
        Err(crate::Errno::EPERM)
    }
}
