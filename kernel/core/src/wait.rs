//! Wait queues: how a thread sleeps until a condition holds.
//!
//! A [`WaitQueue`] holds who wants to hear about an object: sleeping tasks and, for poll and epoll, any [`WakeTarget`].
//! The waker changes the object first and wakes second; the waiter enters the queue first and looks at the object second;
//! so no wake-up is lost. Waits re-check their condition after every wake-up, and once more after they have left the queue,
//! so that a wake-up which arrives together with a signal or a time-out is not swallowed.
//!
//! [`Mutex`] and [`RwLock`] are hal's sleeping locks over this queue.
//!
//! Locking: a queue's own lock is innermost but for run queues and timer queues, and disables interrupts: all `wake_*`
//! may be called from interrupt context and with spin locks held. A [`WakeTarget::wake`] is called under it and must
//! neither sleep nor touch the same queue.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

use ursa_hal::sync::{IrqLock, Park};
use ursa_hal::task::Task;

use crate::poll::PollEvents;
use crate::sched::{self, SleepState};
use crate::time::{Deadline, SleepTimer};
use crate::{Errno, Result};

/// Who is told of a wake-up.
pub trait WakeTarget: Send + Sync {
    /// Reports that `events` may hold now (empty: unknown). Returns whether it counts as a wake-up for `wake_one`.
    fn wake(&self, events: PollEvents) -> bool;
}

/// Names an entry of a queue for [`WaitQueue::remove`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitKey(u64);

enum Target {
    Task(Arc<Task>),
    Other { target: Arc<dyn WakeTarget>, exclusive: bool },
}

struct Entry {
    key: WaitKey,
    target: Target,
}

/// The waiters of an object, in order of arrival.
pub struct WaitQueue {
    /// Number of entries: read without the lock so that waking an empty queue costs one load.
    len: AtomicUsize,
    entries: IrqLock<VecDeque<Entry>>,
}

static NEXT_KEY: AtomicU64 = AtomicU64::new(1);

/// How a wait may end early.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Interruptible {
    No,
    ByFatalSignal,
    BySignal,
}

impl WaitQueue {
    /// An empty queue.
    pub const fn new() -> Self {
        WaitQueue { len: AtomicUsize::new(0), entries: IrqLock::new(VecDeque::new()) }
    }

    /// Whether nobody waits; the caller's earlier stores are ordered before the look.
    #[inline]
    pub fn is_empty(&self) -> bool {
        // Pairs with the fence in `insert`: either the waker sees the entry, or the waiter sees the waker's change.
        fence(Ordering::SeqCst);
        self.len.load(Ordering::Relaxed) == 0
    }

    /// Wakes every poller and the first sleeping task.
    pub fn wake_one(&self) {
        self.wake_n(1, PollEvents::empty(), false);
    }

    /// As [`wake_one`](Self::wake_one), for a waker that is about to sleep: the woken task may take its CPU over at once.
    pub fn wake_one_handoff(&self) {
        self.wake_n(1, PollEvents::empty(), true);
    }

    /// Wakes everybody.
    pub fn wake_all(&self) {
        self.wake_n(usize::MAX, PollEvents::empty(), false);
    }

    /// Wakes everybody and tells pollers what happened.
    pub fn wake_events(&self, events: PollEvents) {
        self.wake_n(usize::MAX, events, false);
    }

    /// Wakes every non-exclusive poller and up to `count` tasks and exclusive pollers; returns how many of the latter.
    pub fn wake_n(&self, count: usize, events: PollEvents, handoff: bool) -> usize {
        if self.is_empty() {
            return 0;
        }
        let mut woken = 0;
        // The woken take the queue's lock to leave it.
        let batch = sched::WakeBatch::begin();
        let entries = self.entries.lock();
        for entry in entries.iter() {
            let counts = match &entry.target {
                Target::Task(_) if woken >= count => continue,
                Target::Other { exclusive: true, .. } if woken >= count => continue,
                Target::Task(task) => sched::wake_with(task, SleepState::ANY_SLEEP, handoff),
                Target::Other { target, exclusive } => target.wake(events) && *exclusive,
            };
            woken += usize::from(counts);
        }
        drop(entries);
        drop(batch);
        woken
    }

    /// Enters a poller. An exclusive one shares `wake_one` with the sleeping tasks.
    pub fn add(&self, target: Arc<dyn WakeTarget>, exclusive: bool) -> WaitKey {
        self.insert(Target::Other { target, exclusive })
    }

    /// Takes an entry out; nothing happens if it is not there.
    pub fn remove(&self, key: WaitKey) {
        let mut entries = self.entries.lock();
        let removed = entries.iter().position(|entry| entry.key == key).and_then(|index| entries.remove(index));
        self.len.store(entries.len(), Ordering::Relaxed);
        // The target's last reference may go here: outside the lock, since its drop may wake or free.
        drop(entries);
        drop(removed);
    }

    fn insert(&self, target: Target) -> WaitKey {
        let key = WaitKey(NEXT_KEY.fetch_add(1, Ordering::Relaxed));
        let mut entries = self.entries.lock();
        entries.push_back(Entry { key, target });
        self.len.store(entries.len(), Ordering::Relaxed);
        drop(entries);
        fence(Ordering::SeqCst);
        key
    }

    /// Sleeps until `cond` gives a value; nothing ends the wait early.
    pub fn wait_until<R>(&self, cond: impl FnMut() -> Option<R>) -> R {
        match self.wait(Interruptible::No, None, cond) {
            Ok(value) => value,
            Err(_) => unreachable!("an uninterruptible wait without deadline ends with its condition"),
        }
    }

    /// Sleeps until the deadline; nothing ends it early. For waits that hardware asks for.
    pub fn sleep_until(&self, deadline: Deadline) {
        // The only end that such a wait has is the deadline's ETIMEDOUT.
        let _: Result = self.wait(Interruptible::No, Some(deadline), || None);
    }

    /// Sleeps until the deadline or until `cond` holds; nothing else ends it.
    pub fn sleep_until_or(&self, deadline: Deadline, cond: impl Fn() -> bool) {
        // Its other end is the deadline's ETIMEDOUT.
        let _: Result = self.wait(Interruptible::No, Some(deadline), || cond().then_some(()));
    }

    /// Sleeps until `cond` gives a value.
    ///
    /// # Errors
    /// `EINTR` when a fatal signal is pending.
    pub fn wait_killable<R>(&self, cond: impl FnMut() -> Option<R>) -> Result<R> {
        self.wait(Interruptible::ByFatalSignal, None, cond)
    }

    /// As [`wait_killable`](Self::wait_killable), with a time limit.
    ///
    /// # Errors
    /// `EINTR` when a fatal signal is pending, `ETIMEDOUT` after the deadline.
    pub fn wait_killable_until<R>(&self, deadline: Option<Deadline>, cond: impl FnMut() -> Option<R>) -> Result<R> {
        self.wait(Interruptible::ByFatalSignal, deadline, cond)
    }

    /// Sleeps until `cond` gives a value, a signal is pending, or the deadline passes.
    ///
    /// # Errors
    /// `ERESTARTSYS` when a signal is pending, `ETIMEDOUT` after the deadline.
    pub fn wait_interruptible<R>(&self, deadline: Option<Deadline>, cond: impl FnMut() -> Option<R>) -> Result<R> {
        self.wait(Interruptible::BySignal, deadline, cond)
    }

    fn wait<R>(
        &self,
        interruptible: Interruptible,
        deadline: Option<Deadline>,
        mut cond: impl FnMut() -> Option<R>,
    ) -> Result<R> {
        if let Some(value) = cond() {
            return Ok(value);
        }
        let state = match interruptible {
            Interruptible::No => SleepState::UNINTERRUPTIBLE,
            Interruptible::ByFatalSignal => SleepState::KILLABLE,
            Interruptible::BySignal => SleepState::INTERRUPTIBLE,
        };
        let timer = deadline.map(SleepTimer::start);
        let key = self.insert(Target::Task(sched::current_task()));
        let outcome = loop {
            sched::prepare_to_sleep(state);
            if let Some(value) = cond() {
                break Ok(value);
            }
            if let Some(error) = interrupted(interruptible) {
                break Err(error);
            }
            if timer.as_ref().is_some_and(SleepTimer::has_fired) {
                break Err(Errno::ETIMEDOUT);
            }
            sched::schedule();
        };
        sched::finish_sleep();
        self.remove(key);
        // We may have used up a `wake_one` that came with the signal or at the deadline: what it announced is ours now.
        outcome.or_else(|error| cond().ok_or(error))
    }
}

fn interrupted(interruptible: Interruptible) -> Option<Errno> {
    match interruptible {
        Interruptible::No => None,
        Interruptible::ByFatalSignal => sched::fatal_signal_pending().then_some(Errno::EINTR),
        Interruptible::BySignal => sched::signal_pending().then_some(Errno::ERESTARTSYS),
    }
}

impl Default for WaitQueue {
    fn default() -> Self {
        WaitQueue::new()
    }
}

impl core::fmt::Debug for WaitQueue {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "WaitQueue({})", self.len.load(Ordering::Relaxed))
    }
}

/// Wakes a task: the target of waits that watch several queues at once (poll, select).
pub struct TaskWaker(Arc<Task>);

impl TaskWaker {
    /// Wakes the calling task.
    pub fn current() -> Self {
        TaskWaker(sched::current_task())
    }
}

impl WakeTarget for TaskWaker {
    fn wake(&self, _events: PollEvents) -> bool {
        sched::wake_with(&self.0, SleepState::ANY_SLEEP, false)
    }
}

/// How hal's sleeping locks sleep.
pub struct KernelPark;

impl Park for KernelPark {
    type Queue = WaitQueue;

    fn wait_until(queue: &WaitQueue, cond: &mut dyn FnMut() -> bool) {
        queue.wait_until(|| cond().then_some(()));
    }

    fn wake_one(queue: &WaitQueue) {
        queue.wake_one();
    }

    fn wake_all(queue: &WaitQueue) {
        queue.wake_all();
    }
}

/// A lock whose holder may sleep.
pub type Mutex<T> = ursa_hal::sync::Mutex<T, KernelPark>;
/// A reader-writer lock whose holders may sleep.
pub type RwLock<T> = ursa_hal::sync::RwLock<T, KernelPark>;
