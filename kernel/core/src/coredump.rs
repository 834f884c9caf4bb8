//! Core dumps.

use linux_uapi::signal::SigInfo;
use ursa_hal::trap::UserContext;

use crate::process::Thread;

/// Writes the core file of the calling thread's process. Returns whether one was written.
pub(crate) fn dump(_thread: &Thread, _info: &SigInfo, _context: &UserContext) -> bool {
    false
}
