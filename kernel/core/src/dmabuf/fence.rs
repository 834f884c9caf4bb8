//! Fences: [`Fence`], an event that happens once, with a result.
//!
//! Whoever makes a fence promises to signal it in finite time, also when it fails or dies: fences are waited for without
//! asking who made them. References: `Documentation/driver-api/dma-buf.rst`, `drivers/dma-buf/dma-fence.c`.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use ursa_hal::sync::IrqLock;

use crate::poll::PollEvents;
use crate::time;
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// No deadline was set.
const NO_DEADLINE: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct State {
    /// 0 waits, 1 signalled, below 0 signalled with an error.
    status: i32,
    /// When, on the monotonic clock.
    at_ns: u64,
}

/// An event that happens once. See the module documentation.
pub struct Fence {
    /// What made it (`driver_name` of `SYNC_IOC_FILE_INFO`).
    pub driver: &'static str,
    /// The timeline it lies on.
    pub timeline: Arc<str>,
    /// Number of the timeline: fences of one context happen in the order of their `seqno`.
    pub context: u64,
    /// Where on the timeline.
    pub seqno: u64,
    state: IrqLock<State>,
    queue: Arc<WaitQueue>,
    deadline_ns: AtomicU64,
    /// Takes the fence off its timeline when nobody holds it any more.
    _on_drop: Option<Box<dyn FnOnceDrop>>,
}

/// Something that acts when it is dropped.
pub(super) trait FnOnceDrop: Send + Sync {}

/// A number for a new timeline.
pub fn new_context() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Fence {
    /// A fence that waits to be signalled.
    pub fn new(driver: &'static str, timeline: Arc<str>, context: u64, seqno: u64) -> Fence {
        Fence {
            driver,
            timeline,
            context,
            seqno,
            state: IrqLock::new(State { status: 0, at_ns: 0 }),
            queue: Arc::new(WaitQueue::new()),
            deadline_ns: AtomicU64::new(NO_DEADLINE),
            _on_drop: None,
        }
    }

    /// Has `guard` dropped together with the fence.
    pub(super) fn with_guard(mut self, guard: Box<dyn FnOnceDrop>) -> Fence {
        self._on_drop = Some(guard);
        self
    }

    /// A fence that is signalled already, since `at_ns` (Linux's stub fence).
    pub fn signalled(at_ns: u64) -> Arc<Fence> {
        let fence = Fence::new("stub", Arc::from("stub"), new_context(), 0);
        *fence.state.lock() = State { status: 1, at_ns };
        Arc::new(fence)
    }

    /// The event has happened; `Err` is a failure. Only the first call counts. Callable from interrupt context.
    pub fn signal(&self, result: Result) {
        {
            let mut state = self.state.lock();
            if state.status != 0 {
                return;
            }
            let status = match result {
                Ok(()) => 1,
                Err(errno) => -(errno.raw() as i32),
            };
            *state = State { status, at_ns: time::monotonic_ns() };
        }
        self.queue.wake_events(PollEvents::READABLE | PollEvents::WRITABLE);
    }

    /// Whether it has happened, well or not.
    pub fn is_signalled(&self) -> bool {
        self.state.lock().status != 0
    }

    /// 0 waits, 1 signalled, below 0 signalled with an error (`dma_fence_get_status`).
    pub fn status(&self) -> i32 {
        self.state.lock().status
    }

    /// When it happened, 0 before that.
    pub fn signalled_at(&self) -> u64 {
        self.state.lock().at_ns
    }

    /// Waits until it has happened.
    ///
    /// # Errors
    /// `ERESTARTSYS` when a signal is pending.
    pub fn wait(&self) -> Result {
        self.queue.wait_interruptible(None, || self.is_signalled().then_some(()))
    }

    /// Woken when it happens.
    pub fn queue(&self) -> &Arc<WaitQueue> {
        &self.queue
    }

    /// Somebody hopes that it happens until then; the earliest counts.
    pub fn set_deadline(&self, ns: u64) {
        if !self.is_signalled() {
            self.deadline_ns.fetch_min(ns, Ordering::Relaxed);
        }
    }

    /// The earliest deadline that was set.
    pub fn deadline(&self) -> Option<u64> {
        Some(self.deadline_ns.load(Ordering::Relaxed)).filter(|&ns| ns != NO_DEADLINE)
    }

    /// Whether it comes after `other` on the same timeline.
    pub fn is_later_than(&self, other: &Fence) -> bool {
        self.context == other.context && self.seqno > other.seqno
    }
}

/// What all of `fences` together say: 0 while one waits, else the first error, else 1.
pub fn joint_status<'a>(fences: impl IntoIterator<Item = &'a Arc<Fence>>) -> i32 {
    let mut joint = 1;
    for fence in fences {
        match fence.status() {
            0 => return 0,
            error if error < 0 && joint > 0 => joint = error,
            _ => {}
        }
    }
    joint
}

/// What is left to wait for of `fences`: the latest pending one of each timeline, or a signalled one if all have happened.
pub fn merge<'a>(fences: impl IntoIterator<Item = &'a Arc<Fence>>) -> Result<Box<[Arc<Fence>]>> {
    let mut merged: alloc::vec::Vec<Arc<Fence>> = alloc::vec::Vec::new();
    let mut latest = 0;
    for fence in fences {
        if fence.is_signalled() {
            latest = latest.max(fence.signalled_at());
            continue;
        }
        match merged.iter_mut().find(|m| m.context == fence.context) {
            Some(known) if fence.is_later_than(known) => *known = fence.clone(),
            Some(_) => {}
            None => {
                merged.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                merged.push(fence.clone());
            }
        }
    }
    if merged.is_empty() {
        merged.push(Fence::signalled(latest));
    }
    merged.sort_by_key(|fence| fence.context);
    Ok(merged.into_boxed_slice())
}
