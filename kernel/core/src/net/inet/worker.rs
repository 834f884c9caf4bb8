//! What the network does by itself when its time has come: retransmissions, questions to neighbours.
//!
//! One kernel task sleeps until the earliest deadline. Work is named weakly: what is gone needs none.

use alloc::collections::BTreeMap;
use alloc::sync::Weak;
use core::sync::atomic::{AtomicU64, Ordering};

use ursa_hal::sync::SpinLock;

use super::interface::Interface;
use super::{link, tcp};
use crate::time::{Deadline, monotonic_ns};
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// Something to look after.
pub enum Work {
    /// An interface's neighbours.
    Neighbours(Weak<Interface>),
    /// A connection to another machine.
    Engine(Weak<tcp::remote::Engine>),
}

static AGENDA: SpinLock<BTreeMap<(u64, u64), Work>> = SpinLock::new(BTreeMap::new());
/// When the first of it is due, in nanoseconds of the monotonic clock.
static FIRST: AtomicU64 = AtomicU64::new(u64::MAX);
static QUEUE: WaitQueue = WaitQueue::new();

/// Puts work on the agenda.
pub fn at(when: u64, work: Work) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let key = (when, NEXT.fetch_add(1, Ordering::Relaxed));
    let mut agenda = AGENDA.lock();
    agenda.insert(key, work);
    let is_first = when < FIRST.load(Ordering::Relaxed);
    if is_first {
        FIRST.store(when, Ordering::Relaxed);
    }
    drop(agenda);
    if is_first {
        QUEUE.wake_all();
    }
}

/// Starts the task.
///
/// # Errors
/// `ENOMEM`.
pub fn init() -> Result {
    crate::sched::spawn_kernel("net", run).map(drop).ok_or(Errno::ENOMEM)
}

fn run() {
    loop {
        let now = monotonic_ns();
        let next = {
            let mut agenda = AGENDA.lock();
            let due = agenda.first_entry().filter(|e| e.key().0 <= now).map(|e| e.remove());
            let first = agenda.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
            FIRST.store(first, Ordering::Relaxed);
            due
        };
        match next {
            Some(Work::Neighbours(interface)) => {
                if let Some(interface) = interface.upgrade() {
                    link::work(&interface);
                }
            }
            Some(Work::Engine(engine)) => {
                if let Some(engine) = engine.upgrade() {
                    engine.timer();
                }
            }
            None => {
                let first = FIRST.load(Ordering::Relaxed);
                if first == u64::MAX {
                    QUEUE.wait_until(|| (FIRST.load(Ordering::Relaxed) != u64::MAX).then_some(()));
                } else {
                    QUEUE.sleep_until_or(Deadline::after(first.saturating_sub(now)), || {
                        FIRST.load(Ordering::Relaxed) < first
                    });
                }
            }
        }
        crate::sched::cond_resched();
    }
}
