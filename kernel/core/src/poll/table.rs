//! The collector of wait queues that a `poll` call hands to files, [`PollTable`].

use super::PollEvents;

/// What a file registers its wait queues with, so that the caller hears of the next change.
///
/// A file's `poll` calls `register` for each queue that announces a change *before* it computes its mask. Passing no table
/// asks for the mask alone.
pub struct PollTable {
    interest: PollEvents,
}

impl PollTable {
    /// Returns the events that the caller waits for; a file may skip queues that announce others.
    pub fn interest(&self) -> PollEvents {
        self.interest
    }
}
