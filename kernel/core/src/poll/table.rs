//! The collector of wait queues that a `poll` call hands to files, [`PollTable`].

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::PollEvents;
use crate::wait::{WaitKey, WaitQueue, WakeTarget};

/// What a file registers its wait queues with, so that the caller hears of the next change.
///
/// A file's `poll` calls [`register`](Self::register) for each queue that announces a change *before* it computes its mask;
/// thus a change between the two is not lost. Passing no table asks for the mask alone. A queue that a file shares with
/// pollers is held in an `Arc`, so that the registration may outlive the file.
pub struct PollTable {
    interest: PollEvents,
    target: Arc<dyn WakeTarget>,
    exclusive: bool,
    registrations: Registrations,
}

/// A wait queue that outlives the registration.
enum Queue {
    Shared(Arc<WaitQueue>),
    Static(&'static WaitQueue),
}

/// Entries in wait queues; leaves them when dropped.
#[derive(Default)]
pub struct Registrations(Vec<(Queue, WaitKey)>);

impl PollTable {
    /// Makes a table that registers `target`, for about `queues` queues.
    pub fn new(target: Arc<dyn WakeTarget>, interest: PollEvents, exclusive: bool, queues: usize) -> Self {
        PollTable { interest, target, exclusive, registrations: Registrations(Vec::with_capacity(queues)) }
    }

    /// Returns the events that the caller waits for; a file may skip queues that announce others.
    pub fn interest(&self) -> PollEvents {
        self.interest
    }

    /// Changes what [`interest`](Self::interest) says, for a table that several files register with in turn.
    pub(super) fn set_interest(&mut self, interest: PollEvents) {
        self.interest = interest;
    }

    /// Has the caller woken by `queue`, until the registrations are dropped.
    pub fn register(&mut self, queue: &Arc<WaitQueue>) {
        let key = queue.add(self.target.clone(), self.exclusive);
        self.registrations.0.push((Queue::Shared(queue.clone()), key));
    }

    /// As [`register`](Self::register), for a queue of the kernel as a whole.
    pub fn register_static(&mut self, queue: &'static WaitQueue) {
        let key = queue.add(self.target.clone(), self.exclusive);
        self.registrations.0.push((Queue::Static(queue), key));
    }

    /// Hands the registrations over to a caller that keeps them (epoll).
    pub fn into_registrations(self) -> Registrations {
        self.registrations
    }
}

impl Drop for Registrations {
    fn drop(&mut self) {
        for (queue, key) in self.0.drain(..) {
            match queue {
                Queue::Shared(queue) => queue.remove(key),
                Queue::Static(queue) => queue.remove(key),
            }
        }
    }
}
