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
