//! High-resolution timers: a queue per CPU over hal's one-shot deadline.
//!
//! A [`Timer`] is armed for an instant of a clock and calls its callback in interrupt context on the CPU that armed it. It can
//! be re-armed and cancelled from anywhere, its own callback included; [`Timer::cancel_sync`] also waits until no callback
//! runs. Setting the wall clock moves the timers that are bound to it.
//!
//! [`SleepTimer`] is the timer of a sleeping task.
//!
//! Locking: a timer's `state`, then one queue; both disable interrupts. Callbacks run with neither held.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ursa_hal::percpu::PerCpu;
use ursa_hal::smp;
use ursa_hal::sync::{IrqLock, IrqsOff, Lazy};
use ursa_hal::task::Task;

use super::clock::{self, ClockBase};
use crate::sched::{self, Heap, HeapItem, Position, SleepState};

/// An instant of a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// The clock.
    pub clock: ClockBase,
    /// Its value in nanoseconds.
    pub ns: u64,
}

impl Deadline {
    /// An instant of the monotonic clock.
    pub const fn monotonic(ns: u64) -> Self {
        Deadline { clock: ClockBase::Monotonic, ns }
    }

    /// `ns` from now. Saturates: a time-out of centuries never comes.
    pub fn after(ns: u64) -> Self {
        Deadline::monotonic(clock::monotonic_ns().saturating_add(ns).min(i64::MAX as u64))
    }

    /// The instant on the monotonic clock, as the wall clock stands now.
    pub fn to_monotonic(self) -> u64 {
        self.clock.to_monotonic(self.ns)
    }

    /// Whether it has come.
    pub fn has_passed(self) -> bool {
        self.clock.now() >= self.ns
    }

    /// Nanoseconds until then, 0 if it has passed.
    pub fn remaining(self) -> u64 {
        self.ns.saturating_sub(self.clock.now())
    }
}

/// What a timer does: called in interrupt context at or after the deadline. Returns when to call again.
pub type Callback = Box<dyn Fn() -> Option<Deadline> + Send + Sync>;

#[derive(Default)]
struct State {
    /// The queue that holds it while its position says that it is queued.
    cpu: usize,
    deadline: Option<Deadline>,
    /// Moves with every arm and cancel, so that a callback's wish to go on does not undo them.
    generation: u64,
}

/// A timer; see the module's text.
pub struct Timer {
    position: Position,
    state: IrqLock<State>,
    /// Callbacks that run now.
    running: AtomicU32,
    callback: Callback,
}

struct Armed(Arc<Timer>);

impl HeapItem for Armed {
    fn position(&self) -> &Position {
        &self.0.position
    }
}

struct CpuTimers {
    queue: IrqLock<Queue>,
    /// Deadline of the queue's head, or `u64::MAX`.
    next: AtomicU64,
    /// When the scheduler wants its tick, or `u64::MAX`.
    scheduler: AtomicU64,
    /// What hal's deadline was last set to.
    programmed: AtomicU64,
}

struct Queue {
    heap: Heap<(u64, u64), Armed>,
    sequence: u64,
}

static TIMERS: Lazy<PerCpu<CpuTimers>> = Lazy::new(|| {
    PerCpu::new(|_| CpuTimers {
        queue: IrqLock::new(Queue { heap: Heap::new(), sequence: 0 }),
        next: AtomicU64::new(u64::MAX),
        scheduler: AtomicU64::new(u64::MAX),
        programmed: AtomicU64::new(u64::MAX),
    })
});

impl CpuTimers {
    /// Sets this CPU's hardware to the earliest of what is wanted. Interrupts are off.
    fn program(&self) {
        let wanted = self.next.load(Ordering::Relaxed).min(self.scheduler.load(Ordering::Relaxed));
        let programmed = self.programmed.load(Ordering::Relaxed);
        // A deadline that stands earlier than needed costs one interrupt at most, re-programming costs each time.
        if wanted < programmed {
            self.programmed.store(wanted, Ordering::Relaxed);
            ursa_hal::time::set_deadline(Some(wanted));
        }
    }

    fn publish(&self, queue: &Queue) {
        self.next.store(queue.heap.peek().map_or(u64::MAX, |((at, _), _)| at), Ordering::Relaxed);
    }
}

impl Timer {
    /// A timer that is not armed.
    pub fn new(callback: impl Fn() -> Option<Deadline> + Send + Sync + 'static) -> Arc<Timer> {
        Arc::new(Timer {
            position: Position::new(),
            state: IrqLock::new(State::default()),
            running: AtomicU32::new(0),
            callback: Box::new(callback),
        })
    }

    /// Arms the timer, in place of any earlier deadline. One that has passed fires at once, in interrupt context.
    pub fn arm(self: &Arc<Self>, deadline: Deadline) {
        let mut state = self.state.lock();
        state.generation += 1;
        self.arm_locked(&mut state, deadline);
    }

    fn arm_locked(self: &Arc<Self>, state: &mut State, deadline: Deadline) {
        self.unqueue(state);
        let at = deadline.to_monotonic();
        state.cpu = smp::current_cpu();
        state.deadline = Some(deadline);
        let cpu = TIMERS.get();
        let mut queue = cpu.queue.lock();
        queue.sequence += 1;
        let key = (at, queue.sequence);
        queue.heap.push(key, Armed(self.clone()));
        cpu.publish(&queue);
        drop(queue);
        cpu.program();
    }

    /// Takes the timer out of its queue. Returns whether it was armed.
    fn unqueue(&self, state: &mut State) -> bool {
        let cpu = TIMERS.on(state.cpu);
        let mut queue = cpu.queue.lock();
        let removed = queue.heap.remove_at_position(&self.position);
        cpu.publish(&queue);
        drop(queue);
        state.deadline = None;
        removed.is_some()
    }

    /// Disarms the timer. Returns whether it was armed; if not, its callback may be running.
    pub fn cancel(&self) -> bool {
        let mut state = self.state.lock();
        state.generation += 1;
        self.unqueue(&mut state)
    }

    /// Disarms the timer and waits until its callback does not run. Not for the callback itself, nor under a lock that it takes.
    pub fn cancel_sync(&self) -> bool {
        let was_armed = self.cancel();
        while self.running.load(Ordering::Acquire) != 0 {
            core::hint::spin_loop();
        }
        was_armed
    }

    /// When it is armed for.
    pub fn deadline(&self) -> Option<Deadline> {
        self.state.lock().deadline
    }

    fn fire(self: &Arc<Self>) {
        let generation = {
            let mut state = self.state.lock();
            state.deadline = None;
            state.generation
        };
        let again = (self.callback)();
        if let Some(deadline) = again {
            let mut state = self.state.lock();
            if state.generation == generation {
                self.arm_locked(&mut state, deadline);
            }
        }
    }
}

/// Tells hal's timer hook when the scheduler wants its tick. Interrupts are off.
pub(crate) fn set_scheduler_deadline(at: u64) {
    let cpu = TIMERS.get();
    cpu.scheduler.store(at, Ordering::Relaxed);
    cpu.program();
}

/// hal's timer hook: this CPU's deadline has come. Runs in interrupt context.
pub fn interrupt() {
    let cpu = TIMERS.get();
    cpu.programmed.store(u64::MAX, Ordering::Relaxed);
    // Bounded: a callback that re-arms itself in the past must not keep the CPU in here.
    for _ in 0..256 {
        let now = clock::monotonic_ns();
        let mut queue = cpu.queue.lock();
        let expired = match queue.heap.peek() {
            Some(((at, _), _)) if at <= now => queue.heap.pop(),
            _ => None,
        };
        cpu.publish(&queue);
        if let Some((_, Armed(timer))) = &expired {
            timer.running.fetch_add(1, Ordering::Relaxed);
        }
        drop(queue);
        let Some((_, Armed(timer))) = expired else { break };
        timer.fire();
        timer.running.fetch_sub(1, Ordering::Release);
    }
    let now = clock::monotonic_ns();
    if now >= cpu.scheduler.load(Ordering::Relaxed) {
        cpu.scheduler.store(u64::MAX, Ordering::Relaxed);
        sched::tick(now);
    }
    cpu.program();
}

/// The wall clock was set: timers that are bound to it get their new place.
pub(super) fn wall_clock_was_set() {
    let mut bound: Vec<Arc<Timer>> = Vec::new();
    for (_, cpu) in TIMERS.iter() {
        // Collected in process context with room made beforehand, as the queue's lock disables interrupts.
        loop {
            let wanted = cpu.queue.lock().heap.len();
            if bound.try_reserve(wanted + 16).is_err() {
                return;
            }
            let queue = cpu.queue.lock();
            if queue.heap.len() <= bound.capacity() - bound.len() {
                bound.extend(queue.heap.iter().map(|armed| armed.0.clone()));
                break;
            }
        }
    }
    for timer in bound {
        let mut state = timer.state.lock();
        if let Some(deadline) = state.deadline.filter(|deadline| deadline.clock.follows_wall_clock()) {
            timer.arm_locked(&mut state, deadline);
        }
    }
}

/// Wakes a sleeping task at a deadline; disarmed when it is dropped.
pub struct SleepTimer {
    timer: Arc<Timer>,
    fired: Arc<AtomicBool>,
}

impl SleepTimer {
    /// Arms a timer that wakes the calling task.
    pub fn start(deadline: Deadline) -> SleepTimer {
        SleepTimer::for_task(sched::current_task(), deadline)
    }

    fn for_task(task: Arc<Task>, deadline: Deadline) -> SleepTimer {
        let fired = Arc::new(AtomicBool::new(false));
        let set = fired.clone();
        let timer = Timer::new(move || {
            set.store(true, Ordering::SeqCst);
            sched::wake(&task, SleepState::ANY_SLEEP);
            None
        });
        if deadline.has_passed() {
            fired.store(true, Ordering::Relaxed);
        } else {
            timer.arm(deadline);
        }
        SleepTimer { timer, fired }
    }

    /// Whether the deadline has passed.
    pub fn has_fired(&self) -> bool {
        self.fired.load(Ordering::SeqCst)
    }
}

impl Drop for SleepTimer {
    fn drop(&mut self) {
        let _irqs = IrqsOff::new();
        self.timer.cancel();
    }
}
