//! What the scheduler knows of one task: [`TaskExt`], the extension of every hal task.
//!
//! A task's life in one word, `run_state`: why it sleeps ([`SleepState`], zero while it runs or wants to) and whether a run
//! queue owns it (`ON_RQ`: queued, running, or on its way into a queue). Both change together by compare-and-swap, so a
//! wake-up and the task's own way to sleep cannot miss each other, without a lock of the task's own:
//!
//! ```text
//!            prepare_to_sleep                 schedule
//!   ON_RQ ───────────────────▶ ON_RQ|sleep ───────────▶ sleep       (the waker that clears `sleep` here also
//!     ▲                             │ wake                │ wake     sets ON_RQ and so owns the enqueueing)
//!     └─────────────────────────────┴─────────────────────┘
//! ```
//!
//! Fields in the section "run queue" belong to the run queue that owns the task and change under its lock; they are
//! atomics because safe Rust has no other way to say that, always `Relaxed`.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};

use ursa_hal::sync::IrqLock;
use ursa_hal::task::Task;

use super::heap::{HeapItem, Position};
use super::policy::{Params, weight_of};
use crate::process::Thread;

bitflags::bitflags! {
    /// Why a task sleeps; which wake-ups reach it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SleepState: u32 {
        /// Woken by its event or any signal.
        const INTERRUPTIBLE = 1;
        /// Woken by its event alone.
        const UNINTERRUPTIBLE = 2;
        /// Woken by its event or a fatal signal.
        const KILLABLE = 4;
        /// Stopped by a signal.
        const STOPPED = 8;
        /// Stopped for its tracer.
        const TRACED = 16;
        /// Ended: nothing wakes it.
        const DEAD = 32;
        /// What an event wakes.
        const ANY_SLEEP = Self::INTERRUPTIBLE.bits() | Self::UNINTERRUPTIBLE.bits() | Self::KILLABLE.bits();
    }
}

/// Set in `run_state` while a run queue owns the task.
const ON_RQ: u32 = 1 << 16;

bitflags::bitflags! {
    /// What a thread has to do before it returns to user mode, or what ends its sleep early.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Work: u32 {
        /// A signal is to be delivered: ends interruptible sleeps.
        const SIGNAL = 1;
        /// A fatal signal or the end of the process: ends killable sleeps too.
        const KILL = 2;
        /// Look at everything slow on the way back (rseq, ptrace requests, deferred work).
        const NOTIFY = 4;
        /// Stop at system calls for the tracer.
        const SYSCALL_TRACE = 8;
        /// rt_sigsuspend and its kin: the saved mask is to be restored.
        const RESTORE_MASK = 16;
        /// Stop after one instruction for the tracer.
        const SINGLE_STEP = 32;
        /// System calls may belong to the program (`PR_SET_SYSCALL_USER_DISPATCH`).
        const USER_DISPATCH = 64;
        /// What makes a system call take the long way.
        const AT_SYSCALL = Self::SYSCALL_TRACE.bits() | Self::SINGLE_STEP.bits() | Self::USER_DISPATCH.bits();
        /// What must be done before user mode is entered.
        const BEFORE_USER_MODE =
            Self::SIGNAL.bits() | Self::KILL.bits() | Self::NOTIFY.bits() | Self::RESTORE_MASK.bits();
    }
}

/// The extension of every hal task: the scheduler's state and, for user threads, the thread.
pub struct TaskExt {
    thread: Option<Arc<Thread>>,
    run_state: AtomicU32,
    work: AtomicU32,
    /// The run queue that owns the task, or owned it last. Changes under that queue's lock.
    cpu: AtomicU32,
    /// CPUs that the task may use.
    affinity: AtomicU64,
    params: IrqLock<Params>,
    /// What the waiters for the task's PI futexes lend it.
    boost: IrqLock<Option<Params>>,
    /// Keeps a sleeping task alive; taken at its end.
    keep_alive: IrqLock<Option<Arc<Task>>>,

    // Run queue.
    pub(super) position: Position,
    pub(super) class: AtomicU8,
    pub(super) rt_priority: AtomicU8,
    pub(super) weight: AtomicU32,
    pub(super) slice_ns: AtomicU64,
    pub(super) vruntime: AtomicU64,
    pub(super) deadline: AtomicU64,
    pub(super) lag: AtomicI64,
    pub(super) exec_start: AtomicU64,
    pub(super) slice_used: AtomicU64,
    pub(super) wait_start: AtomicU64,

    // Accounting: written by the CPU that runs the task.
    pub(super) run_ns: AtomicU64,
    pub(super) wait_ns: AtomicU64,
    in_user: AtomicBool,
    /// Whether the last tick found the task in user mode: what it runs until the next tick is booked there.
    pub(super) sampled_user: AtomicBool,
}

impl TaskExt {
    /// State for a task that has not run yet.
    pub fn new(thread: Option<Arc<Thread>>, params: Params, affinity: u64) -> Self {
        let ext = TaskExt {
            thread,
            run_state: AtomicU32::new(SleepState::UNINTERRUPTIBLE.bits()),
            work: AtomicU32::new(0),
            cpu: AtomicU32::new(ursa_hal::smp::current_cpu() as u32),
            affinity: AtomicU64::new(affinity),
            params: IrqLock::new(params),
            boost: IrqLock::new(None),
            keep_alive: IrqLock::new(None),
            position: Position::new(),
            class: AtomicU8::new(0),
            rt_priority: AtomicU8::new(0),
            weight: AtomicU32::new(weight_of(0)),
            slice_ns: AtomicU64::new(0),
            vruntime: AtomicU64::new(0),
            deadline: AtomicU64::new(0),
            lag: AtomicI64::new(0),
            exec_start: AtomicU64::new(0),
            slice_used: AtomicU64::new(0),
            wait_start: AtomicU64::new(0),
            run_ns: AtomicU64::new(0),
            wait_ns: AtomicU64::new(0),
            in_user: AtomicBool::new(false),
            sampled_user: AtomicBool::new(true),
        };
        ext.load_params(&params);
        ext
    }

    /// The user thread, or `None` for a kernel task.
    #[inline]
    pub fn thread(&self) -> Option<&Arc<Thread>> {
        self.thread.as_ref()
    }

    pub(super) fn set_keep_alive(&self, task: Option<Arc<Task>>) -> Option<Arc<Task>> {
        core::mem::replace(&mut *self.keep_alive.lock(), task)
    }

    /// The CPU whose run queue owns the task, or owned it last.
    pub fn cpu(&self) -> usize {
        self.cpu.load(Ordering::Acquire) as usize
    }

    pub(super) fn set_cpu(&self, cpu: usize) {
        self.cpu.store(cpu as u32, Ordering::Release);
    }

    /// CPUs that the task may use, as bits.
    pub fn affinity(&self) -> u64 {
        self.affinity.load(Ordering::Relaxed)
    }

    pub(super) fn set_affinity_bits(&self, bits: u64) {
        self.affinity.store(bits, Ordering::Relaxed);
    }

    /// Policy, nice value and priority.
    pub fn params(&self) -> Params {
        *self.params.lock()
    }

    pub(super) fn set_params(&self, params: Params) {
        *self.params.lock() = params;
    }

    /// Whether the task runs with borrowed parameters.
    pub fn is_boosted(&self) -> bool {
        self.boost.lock().is_some()
    }

    pub(super) fn set_boost(&self, boost: Option<Params>) {
        *self.boost.lock() = boost;
    }

    /// The parameters that the run queue goes by: the task's own, or better ones that were lent.
    pub fn effective_params(&self) -> Params {
        self.boost.lock().unwrap_or_else(|| self.params())
    }

    /// Takes the parameters over into the run queue's fields.
    pub(super) fn load_params(&self, params: &Params) {
        self.class.store(params.class() as u8, Ordering::Relaxed);
        self.rt_priority.store(params.rt_priority, Ordering::Relaxed);
        self.weight.store(params.weight(), Ordering::Relaxed);
        self.slice_ns.store(params.slice_ns(), Ordering::Relaxed);
    }

    // State.

    /// Why the task sleeps; empty while it runs or waits for a CPU.
    pub fn sleep_state(&self) -> SleepState {
        SleepState::from_bits_truncate(self.run_state.load(Ordering::Acquire))
    }

    /// The running task announces that it is about to sleep, before it looks at its condition a last time.
    pub(super) fn set_sleep(&self, state: SleepState) {
        self.run_state.swap(ON_RQ | state.bits(), Ordering::SeqCst);
    }

    /// Wakes from one of `states`. `Some(true)`: the caller must enqueue the task.
    pub(super) fn try_wake(&self, states: SleepState) -> Option<bool> {
        let woken = self
            .run_state
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| (word & states.bits() != 0).then_some(ON_RQ));
        woken.ok().map(|former| former & ON_RQ == 0)
    }

    /// The running task leaves its queue if it still means to sleep and nothing aborts the sleep. Returns whether it did.
    pub(super) fn try_sleep(&self, abort: impl Fn(SleepState) -> bool) -> bool {
        let mut word = self.run_state.load(Ordering::SeqCst);
        loop {
            let state = SleepState::from_bits_truncate(word);
            if state.is_empty() {
                return false;
            }
            let aborted = abort(state);
            let next = if aborted { ON_RQ } else { word & !ON_RQ };
            match self.run_state.compare_exchange_weak(word, next, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return !aborted,
                Err(now) => word = now,
            }
        }
    }

    // Work flags.

    /// The work flags.
    #[inline]
    pub fn work(&self) -> Work {
        Work::from_bits_retain(self.work.load(Ordering::Acquire))
    }

    /// Whether there is any work before the return to user mode.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.work.load(Ordering::Relaxed) & Work::BEFORE_USER_MODE.bits() != 0
    }

    /// Adds flags; the caller wakes or kicks the task where it must see them soon.
    pub fn add_work(&self, work: Work) {
        self.work.fetch_or(work.bits(), Ordering::SeqCst);
    }

    /// Removes flags and returns those that were set.
    pub fn take_work(&self, work: Work) -> Work {
        Work::from_bits_retain(self.work.fetch_and(!work.bits(), Ordering::SeqCst)) & work
    }

    // Accounting.

    /// Marks whether the task is in user mode, for the sampling tick.
    #[inline]
    pub(crate) fn set_in_user(&self, in_user: bool) {
        self.in_user.store(in_user, Ordering::Relaxed);
    }

    /// Where the last tick found the task: what is not booked yet goes there.
    pub(crate) fn last_sample_was_user(&self) -> bool {
        self.sampled_user.load(Ordering::Relaxed)
    }

    pub(super) fn is_in_user(&self) -> bool {
        self.in_user.load(Ordering::Relaxed)
    }

    /// Nanoseconds of CPU time, up to the last switch or tick.
    pub fn run_ns(&self) -> u64 {
        self.run_ns.load(Ordering::Relaxed)
    }

    /// Nanoseconds spent waiting for a CPU.
    pub fn wait_ns(&self) -> u64 {
        self.wait_ns.load(Ordering::Relaxed)
    }
}

/// A task in a run queue's heap.
pub(super) struct Queued(pub Arc<Task>);

impl Queued {
    pub(super) fn ext(&self) -> &TaskExt {
        super::ext_of(&self.0)
    }
}

impl HeapItem for Queued {
    fn position(&self) -> &Position {
        &self.ext().position
    }
}
