//! The error that a socket keeps for the next call: [`PendingError`].

use core::sync::atomic::{AtomicU32, Ordering};

use crate::Errno;

/// A socket's `so_error`: set by what happens to it, taken by the next call or by `SO_ERROR`, socket(7).
#[derive(Debug)]
pub struct PendingError(AtomicU32);

impl PendingError {
    /// None yet.
    pub const fn new() -> PendingError {
        PendingError(AtomicU32::new(0))
    }

    /// Keeps `error` in place of an earlier one.
    pub fn set(&self, error: Errno) {
        self.0.store(error.raw(), Ordering::SeqCst);
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }

    /// Takes it. Without one, which is nearly always, nothing is written.
    pub fn take(&self) -> Option<Errno> {
        if self.is_set() { Errno::from_raw(self.0.swap(0, Ordering::SeqCst)) } else { None }
    }
}
