//! Doing again what was done before: a server that died had answered a request, and what it did is not on the disk.
//!
//! The second time must end like the first: the same inode, the same times, and look-ups that somebody still has are not
//! counted twice. An operation that runs in [`again`] knows these.

use std::cell::Cell;

use crate::disk::inode::Time;

/// What is known of the first time.
#[derive(Clone, Copy, Debug)]
pub struct Again {
    /// The inode that was made: number and generation.
    pub made: Option<(u32, u32)>,
    /// When it was.
    pub now: Time,
}

thread_local! {
    static CURRENT: Cell<Option<Again>> = const { Cell::new(None) };
}

/// Runs an operation as one that was done before.
pub fn again<T>(what: Again, operation: impl FnOnce() -> T) -> T {
    /// Ends it also when the operation panics.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            CURRENT.set(None);
        }
    }
    CURRENT.set(Some(what));
    let _end = End;
    operation()
}

/// What the running operation knows of the first time, if it is done again.
pub(crate) fn current() -> Option<Again> {
    CURRENT.get()
}
