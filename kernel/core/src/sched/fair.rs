//! The fair queue: Earliest Eligible Virtual Deadline First.
//!
//! Each task has a weight *w*, a virtual runtime *v* that grows by ran/w, and a virtual deadline *v + slice/w*. The queue's
//! virtual time is the weighted mean *V = Σwv / Σw* over all its tasks, the running one included. A task is *eligible*
//! while it has had no more than its share (*v ≤ V*); of the eligible ones the earliest deadline runs. A task that leaves
//! takes its lag (*V − v*, bounded) with it and comes back at the same lag, on whatever CPU.
//!
//! Shape: two heaps. `ready` holds tasks that were eligible when last looked at, by deadline; `future` holds the others, by
//! virtual runtime. V only grows but for arrivals and departures, so tasks move from `future` to `ready` once per round;
//! a task in `ready` that lost its eligibility by somebody's departure is sent back when it comes to the top. This gives
//! O(log n) without an augmented tree. Sums are exact (128 bits), so there is no drift to correct.
//!
//! References: Stoica and Abdel-Wahab, "Earliest Eligible Virtual Deadline First" (1995); Linux `kernel/sched/fair.c`.

use core::sync::atomic::Ordering::Relaxed;

use super::entity::{Queued, TaskExt};
use super::heap::{Heap, Position};
use super::policy::NICE_0_WEIGHT;

/// Where a fair task's state is read and written: everything is scaled so that nice 0 runs in real nanoseconds.
pub(super) struct FairQueue {
    /// Eligible tasks by virtual deadline.
    ready: Heap<(u64, u64), Queued>,
    /// Tasks ahead of their share, by virtual runtime.
    future: Heap<(u64, u64), Queued>,
    /// Σw over queued tasks and the running one.
    weight: u64,
    /// Σwv over the same.
    weighted_runtime: i128,
    /// V when the queue was last non-empty: where an empty queue's first task starts.
    last_virtual_time: u64,
    /// Breaks ties in order of arrival.
    sequence: u64,
}

/// Virtual times start here, so that lags never reach below zero.
const VIRTUAL_TIME_START: u64 = 1 << 40;

/// Scales real nanoseconds by a weight.
pub(super) fn virtual_ns(ns: u64, weight: u32) -> u64 {
    if weight == NICE_0_WEIGHT { ns } else { ((ns as u128 * NICE_0_WEIGHT as u128) / weight as u128) as u64 }
}

impl FairQueue {
    pub(super) const fn new() -> Self {
        FairQueue {
            ready: Heap::new(),
            future: Heap::new(),
            weight: 0,
            weighted_runtime: 0,
            last_virtual_time: VIRTUAL_TIME_START,
            sequence: 0,
        }
    }

    pub(super) fn reserve_total(&mut self, capacity: usize) -> bool {
        self.ready.reserve_total(capacity) && self.future.reserve_total(capacity)
    }

    pub(super) fn capacity(&self) -> usize {
        self.ready.capacity().min(self.future.capacity())
    }

    /// Queued tasks, without the running one.
    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.future.len()
    }

    /// Σw, the running task included.
    pub(super) fn weight(&self) -> u64 {
        self.weight
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Queued> {
        self.future.iter().chain(self.ready.iter())
    }

    /// V.
    pub(super) fn virtual_time(&self) -> u64 {
        if self.weight == 0 { self.last_virtual_time } else { (self.weighted_runtime / self.weight as i128) as u64 }
    }

    fn is_eligible_at(&self, vruntime: u64) -> bool {
        vruntime as i128 * self.weight as i128 <= self.weighted_runtime
    }

    /// Whether the task has had no more than its share.
    pub(super) fn is_eligible(&self, ext: &TaskExt) -> bool {
        self.is_eligible_at(ext.vruntime.load(Relaxed))
    }

    /// A task joins the competition, with the lag that it left with.
    pub(super) fn join(&mut self, ext: &TaskExt) {
        let weight = ext.weight.load(Relaxed);
        let virtual_time = self.virtual_time();
        // Its own arrival moves V towards it: scale the lag up so that it is what it was once the task is in.
        let mut lag = ext.lag.load(Relaxed);
        if self.weight > 0 {
            lag = (lag as i128 * (self.weight as i128 + weight as i128) / self.weight as i128) as i64;
        } else {
            lag = 0;
        }
        let vruntime = virtual_time.saturating_add_signed(lag.saturating_neg());
        ext.vruntime.store(vruntime, Relaxed);
        ext.deadline.store(vruntime + virtual_ns(ext.slice_ns.load(Relaxed), weight), Relaxed);
        self.weight += u64::from(weight);
        self.weighted_runtime += i128::from(weight) * vruntime as i128;
    }

    /// A task leaves the competition; its lag is kept in it.
    pub(super) fn leave(&mut self, ext: &TaskExt) {
        let weight = ext.weight.load(Relaxed);
        let vruntime = ext.vruntime.load(Relaxed);
        let limit = 2 * virtual_ns(ext.slice_ns.load(Relaxed), weight) as i64;
        let virtual_time = self.virtual_time();
        let lag = (virtual_time as i64).wrapping_sub(vruntime as i64).clamp(-limit, limit);
        ext.lag.store(lag, Relaxed);
        self.last_virtual_time = virtual_time.max(vruntime);
        self.weight -= u64::from(weight);
        self.weighted_runtime -= i128::from(weight) * vruntime as i128;
    }

    /// The running task has run: moves its virtual runtime on. Returns whether its slice is over.
    pub(super) fn charge(&mut self, ext: &TaskExt, ran_ns: u64) -> bool {
        let weight = ext.weight.load(Relaxed);
        let delta = virtual_ns(ran_ns, weight);
        let vruntime = ext.vruntime.load(Relaxed) + delta;
        ext.vruntime.store(vruntime, Relaxed);
        self.weighted_runtime += i128::from(weight) * delta as i128;
        if vruntime < ext.deadline.load(Relaxed) {
            return false;
        }
        ext.deadline.store(vruntime + virtual_ns(ext.slice_ns.load(Relaxed), weight), Relaxed);
        true
    }

    /// Queues a task that has joined.
    pub(super) fn push(&mut self, task: Queued) {
        self.sequence += 1;
        let (vruntime, deadline) = (task.ext().vruntime.load(Relaxed), task.ext().deadline.load(Relaxed));
        if self.is_eligible_at(vruntime) {
            self.ready.push((deadline, self.sequence), task);
        } else {
            self.future.push((vruntime, self.sequence), task);
        }
    }

    /// Takes a queued task out of the heaps; it has not left the competition yet.
    pub(super) fn unqueue(&mut self, position: &Position) -> Option<Queued> {
        let removed = self.ready.remove_at_position(position).or_else(|| self.future.remove_at_position(position));
        removed.map(|(_, task)| task)
    }

    /// Brings the heaps up to date; afterwards the head of `ready`, if any, is the one to run.
    fn settle(&mut self) {
        while let Some(((vruntime, _), _)) = self.future.peek() {
            if !self.is_eligible_at(vruntime) {
                break;
            }
            if let Some((_, task)) = self.future.pop() {
                self.push(task);
            }
        }
        while let Some((_, task)) = self.ready.peek() {
            if self.is_eligible(task.ext()) {
                break;
            }
            if let Some((_, task)) = self.ready.pop() {
                self.push(task);
            }
        }
    }

    /// Takes the task to run next.
    pub(super) fn pop(&mut self) -> Option<Queued> {
        self.settle();
        // By the definition of a mean something is eligible, the running task perhaps: then the least advanced is next.
        self.ready.pop().or_else(|| self.future.pop()).map(|(_, task)| task)
    }
}
