//! One CPU's run queue: the real-time queue above the fair queue, and which of them a wake-up preempts.
//!
//! The running task is in neither heap; a fair one still counts in the fair queue's sums. Everything here runs under the
//! queue's lock with interrupts off.

use alloc::sync::Arc;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use ursa_hal::task::Task;

use super::entity::{Queued, TaskExt};
use super::ext_of;
use super::fair::FairQueue;
use super::heap::Heap;
use super::policy::{Class, RR_SLICE_NS};

pub(super) struct RunQueue {
    pub(super) cpu: usize,
    fair: FairQueue,
    /// Real-time tasks by (99 − priority, order).
    realtime: Heap<(u8, i64), Queued>,
    next_back: i64,
    next_front: i64,
    /// The running task; the idle task while nothing else runs.
    pub(super) current: Option<Arc<Task>>,
    pub(super) idle: Option<Arc<Task>>,
    /// Start of the current one-second window of the real-time throttle, and real-time nanoseconds used in it.
    rt_window_start: u64,
    rt_used_ns: u64,
}

/// Real-time tasks get at most 950 ms of each second while fair tasks wait (`sched_rt_runtime_us`).
const RT_PERIOD_NS: u64 = 1_000_000_000;
const RT_RUNTIME_NS: u64 = 950_000_000;
/// A fair task is not preempted by a wake-up before it has run this long, unless it is of the idle policy.
const MIN_GRANULARITY_NS: u64 = 700_000;

fn class_of(ext: &TaskExt) -> Class {
    Class::from_u8(ext.class.load(Relaxed))
}

fn rt_rank(ext: &TaskExt) -> u8 {
    99 - ext.rt_priority.load(Relaxed).min(99)
}

/// Books CPU time. Only the task's own CPU writes these, so plain stores do.
fn account(ext: &TaskExt, ran: u64) {
    let add = |counter: &AtomicU64| counter.store(counter.load(Relaxed).wrapping_add(ran), Relaxed);
    add(&ext.run_ns);
    if let Some(thread) = ext.thread() {
        add(if ext.sampled_user.load(Relaxed) { &thread.usage.user_ns } else { &thread.usage.system_ns });
    }
}

impl RunQueue {
    pub(super) const fn new(cpu: usize) -> Self {
        RunQueue {
            cpu,
            fair: FairQueue::new(),
            realtime: Heap::new(),
            next_back: 0,
            next_front: -1,
            current: None,
            idle: None,
            rt_window_start: 0,
            rt_used_ns: 0,
        }
    }

    pub(super) fn reserve_total(&mut self, capacity: usize) -> bool {
        self.fair.reserve_total(capacity) && self.realtime.reserve_total(capacity)
    }

    pub(super) fn capacity(&self) -> usize {
        self.fair.capacity().min(self.realtime.capacity())
    }

    /// Tasks that wait here.
    pub(super) fn queued(&self) -> usize {
        self.fair.len() + self.realtime.len()
    }

    pub(super) fn is_idle(&self) -> bool {
        match (&self.current, &self.idle) {
            (Some(current), Some(idle)) => Arc::ptr_eq(current, idle),
            _ => true,
        }
    }

    /// Tasks that run or wait here.
    pub(super) fn runnable(&self) -> usize {
        self.queued() + usize::from(!self.is_idle())
    }

    /// The load that balancing compares: Σ weights, with a real-time task as heavy as a dozen ordinary ones.
    pub(super) fn load(&self) -> u64 {
        let realtime_running = self.current_ext().is_some_and(|ext| class_of(ext).is_realtime());
        self.fair.weight() + 12 * 1024 * (self.realtime.len() as u64 + u64::from(realtime_running))
    }

    fn current_ext(&self) -> Option<&TaskExt> {
        if self.is_idle() { None } else { self.current.as_ref().map(|task| ext_of(task)) }
    }

    /// Charges the running task up to `now`. Returns whether it should give way (its slice is over).
    pub(super) fn charge_current(&mut self, now: u64) -> bool {
        if self.is_idle() {
            return false;
        }
        let Some(current) = self.current.take() else { return false };
        let ext = ext_of(&current);
        let ran = now.saturating_sub(ext.exec_start.load(Relaxed));
        ext.exec_start.store(now, Relaxed);
        account(ext, ran);
        let slice_over = match class_of(ext) {
            Class::Fifo => {
                self.rt_used_ns += ran;
                false
            }
            Class::RoundRobin => {
                self.rt_used_ns += ran;
                let used = ext.slice_used.load(Relaxed) + ran;
                let over = used >= RR_SLICE_NS;
                ext.slice_used.store(if over { 0 } else { used }, Relaxed);
                over && self.realtime.peek().is_some_and(|((rank, _), _)| rank <= rt_rank(ext))
            }
            _ => {
                ext.slice_used.fetch_add(ran, Relaxed);
                self.fair.charge(ext, ran) && self.fair.len() > 0
            }
        };
        self.current = Some(current);
        slice_over
    }

    /// Takes in a task that woke, was created, or came from another CPU. Returns whether it preempts the running one.
    pub(super) fn enqueue(&mut self, task: Arc<Task>, now: u64, preempts_equal: bool) -> bool {
        self.charge_current(now);
        let queued = Queued(task);
        let ext = queued.ext();
        ext.set_cpu(self.cpu);
        ext.wait_start.store(now, Relaxed);
        let class = class_of(ext);
        if class.is_realtime() {
            let rank = rt_rank(ext);
            self.next_back += 1;
            self.realtime.push((rank, self.next_back), queued);
            return match self.current_ext() {
                None => true,
                Some(current) if class_of(current).is_realtime() => rank < rt_rank(current),
                Some(_) => true,
            };
        }
        self.fair.join(ext);
        let (eligible, deadline) = (self.fair.is_eligible(ext), ext.deadline.load(Relaxed));
        self.fair.push(queued);
        let Some(current) = self.current_ext() else { return true };
        match class_of(current) {
            Class::Fifo | Class::RoundRobin => false,
            Class::IdlePolicy => class != Class::IdlePolicy,
            _ if class == Class::Batch || class == Class::IdlePolicy => false,
            _ => {
                eligible
                    && (preempts_equal
                        || current.slice_used.load(Relaxed) >= MIN_GRANULARITY_NS
                            && (deadline < current.deadline.load(Relaxed) || !self.fair.is_eligible(current)))
            }
        }
    }

    /// The running task, not on its way to sleep, goes back among the waiting.
    pub(super) fn requeue_current(&mut self, task: Arc<Task>, now: u64, to_back: bool) {
        let queued = Queued(task);
        let ext = queued.ext();
        ext.wait_start.store(now, Relaxed);
        if class_of(ext).is_realtime() {
            let rank = rt_rank(ext);
            let order = if to_back {
                self.next_back += 1;
                self.next_back
            } else {
                self.next_front -= 1;
                self.next_front
            };
            self.realtime.push((rank, order), queued);
        } else {
            self.fair.push(queued);
        }
    }

    /// The running task goes to sleep or away.
    pub(super) fn leave_current(&mut self, ext: &TaskExt) {
        if !class_of(ext).is_realtime() {
            self.fair.leave(ext);
        }
    }

    /// A fair task gives up the rest of its slice (sched_yield(2)).
    pub(super) fn forfeit_slice(&mut self, ext: &TaskExt) {
        if !class_of(ext).is_realtime() {
            let weight = ext.weight.load(Relaxed);
            let slice = super::fair::virtual_ns(ext.slice_ns.load(Relaxed), weight);
            ext.deadline.fetch_add(slice, Relaxed);
        }
    }

    fn rt_throttled(&mut self, now: u64) -> bool {
        if now.saturating_sub(self.rt_window_start) >= RT_PERIOD_NS {
            self.rt_window_start = now;
            self.rt_used_ns = 0;
        }
        self.rt_used_ns >= RT_RUNTIME_NS && self.fair.len() > 0
    }

    /// Takes the task to run next; `None` means idle.
    pub(super) fn pick(&mut self, now: u64) -> Option<Arc<Task>> {
        let throttled = !self.realtime.is_empty() && self.rt_throttled(now);
        let picked = if throttled { None } else { self.realtime.pop().map(|(_, task)| task) };
        let Queued(task) = picked.or_else(|| self.fair.pop())?;
        let ext = ext_of(&task);
        ext.exec_start.store(now, Relaxed);
        if class_of(ext) != Class::RoundRobin {
            ext.slice_used.store(0, Relaxed);
        }
        ext.wait_ns.fetch_add(now.saturating_sub(ext.wait_start.load(Relaxed)), Relaxed);
        Some(task)
    }

    /// Takes a waiting task out for good (it moves to another CPU).
    pub(super) fn dequeue(&mut self, task: &Arc<Task>) -> Option<Arc<Task>> {
        let position = &ext_of(task).position;
        if let Some((_, Queued(task))) = self.realtime.remove_at_position(position) {
            return Some(task);
        }
        let Queued(task) = self.fair.unqueue(position)?;
        self.fair.leave(ext_of(&task));
        Some(task)
    }

    /// Takes a waiting task that may run on `cpu`, has left its former CPU's stack, and is best moved.
    pub(super) fn steal_for(&mut self, cpu: usize) -> Option<Arc<Task>> {
        let allowed = |queued: &&Queued| queued.ext().affinity() >> cpu & 1 != 0 && !queued.0.is_on_cpu();
        let task = self.realtime.iter().find(allowed).or_else(|| self.fair.iter().find(allowed))?.0.clone();
        self.dequeue(&task)
    }

    /// Applies new parameters to a task that this queue owns.
    pub(super) fn change_params(&mut self, task: &Arc<Task>, change: impl FnOnce(&TaskExt), now: u64) -> bool {
        self.charge_current(now);
        let ext = ext_of(task);
        if let Some(task) = self.dequeue(task) {
            change(ext);
            return self.enqueue(task, now, false);
        }
        let is_current = self.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, task));
        if is_current && !class_of(ext).is_realtime() {
            self.fair.leave(ext);
        }
        change(ext);
        if is_current && !class_of(ext).is_realtime() {
            self.fair.join(ext);
        }
        is_current
    }

    /// How long the running task may go on before somebody waiting should be looked at, or `None` when nobody waits.
    pub(super) fn slice_left(&mut self) -> Option<u64> {
        let ext = self.current_ext()?;
        match class_of(ext) {
            Class::Fifo => None,
            Class::RoundRobin => {
                (!self.realtime.is_empty()).then(|| RR_SLICE_NS.saturating_sub(ext.slice_used.load(Relaxed)))
            }
            _ => {
                let left = ext.deadline.load(Relaxed).saturating_sub(ext.vruntime.load(Relaxed));
                let weight = ext.weight.load(Relaxed);
                (self.fair.len() > 0).then(|| (left as u128 * weight as u128 / 1024) as u64)
            }
        }
    }

    /// Whether the running fair task should give way at a tick.
    pub(super) fn should_preempt_at_tick(&mut self, slice_over: bool, now: u64) -> bool {
        if self.rt_throttled(now) && self.current_ext().is_some_and(|ext| class_of(ext).is_realtime()) {
            return true;
        }
        slice_over || (!self.realtime.is_empty() && self.current_ext().is_some_and(|ext| !class_of(ext).is_realtime()))
    }
}
