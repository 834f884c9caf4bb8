//! Scheduling: which task runs on which CPU, and for how long.
//!
//! Each CPU has a [`RunQueue`](runqueue) with a real-time queue (FIFO, RR) above a fair one (EEVDF with nice weights, BATCH,
//! IDLE). A task that wakes goes to an idle CPU near where it ran, else stays; CPUs that run dry pull work, and a slow
//! periodic balance evens out the rest ([`balance`]). The kernel is not preemptible: a switch happens when a task blocks
//! ([`schedule`]), asks ([`cond_resched`]), or is on its way back to user mode.
//!
//! Key types: [`TaskExt`] (the scheduler's part of every task), [`SleepState`], [`Work`] (flags for the return to user mode),
//! [`Params`] (policy, nice, priority).
//!
//! Time: a CPU that runs a task ticks 250 times a second for accounting and balancing, and at the end of a slice when others
//! wait; an idle CPU has no tick. Both share the CPU's one-shot timer with [`crate::time::timer`].
//!
//! Locking: one `IrqLock` per run queue, innermost of all but hal's; never two at a time (a task in transit between
//! queues is owned by whoever took it out). Sleep and wake-up need no lock but the queue's: see [`entity`].
//! References: sched(7), Linux `kernel/sched/`.

mod balance;
mod entity;
mod fair;
mod heap;
mod kernel_task;
mod loadavg;
mod policy;
mod runqueue;
pub mod syscall;
mod tests;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use ursa_hal::fpu::FpuState;
use ursa_hal::percpu::PerCpu;
use ursa_hal::smp;
use ursa_hal::sync::{IrqLock, IrqsOff, Lazy};
use ursa_hal::task::{self, Stack, Task};

pub use entity::{SleepState, TaskExt, Work};
pub use heap::{Heap, HeapItem, Position};
pub use kernel_task::spawn_kernel;
pub use loadavg::{LOAD_FRACTION_BITS, load_averages};
pub use policy::{FAIR_SLICE_NS, Params, Policy, RR_SLICE_NS};

use crate::process::Thread;
use crate::time::timer;
use crate::{Errno, Result};
use runqueue::RunQueue;

/// The tick of a CPU that is not idle.
const TICK_NS: u64 = 4_000_000;

struct CpuSched {
    queue: IrqLock<RunQueue>,
    /// Tasks that run or wait here, for others to see without the lock.
    runnable: AtomicUsize,
    load: AtomicU64,
    /// When this CPU's scheduler wants its timer, as time.
    tick_at: AtomicU64,
    idle_ns: AtomicU64,
    idle_since: AtomicU64,
    balance_at: AtomicU64,
    /// The task that was just switched away from because it may not run here any more; see [`finish_switch`].
    leaving: IrqLock<Option<Arc<Task>>>,
    has_leaving: AtomicBool,
    /// How many [`WakeBatch`]es this CPU is in, and the CPUs that the outermost will interrupt, as bits. This CPU's own.
    batches: AtomicU32,
    batched: AtomicU64,
}

static CPUS: Lazy<PerCpu<CpuSched>> = Lazy::new(|| {
    PerCpu::new(|cpu| CpuSched {
        queue: IrqLock::new(RunQueue::new(cpu)),
        runnable: AtomicUsize::new(0),
        load: AtomicU64::new(0),
        tick_at: AtomicU64::new(u64::MAX),
        idle_ns: AtomicU64::new(0),
        idle_since: AtomicU64::new(0),
        balance_at: AtomicU64::new(0),
        leaving: IrqLock::new(None),
        has_leaving: AtomicBool::new(false),
        batches: AtomicU32::new(0),
        batched: AtomicU64::new(0),
    })
});

/// CPUs that schedule, and of those the idle ones.
static ONLINE: AtomicU64 = AtomicU64::new(0);
static IDLE: AtomicU64 = AtomicU64::new(0);
/// All tasks that may be queued, for reserving the queues' storage.
static TASKS: AtomicUsize = AtomicUsize::new(0);
static SWITCHES: AtomicU64 = AtomicU64::new(0);

/// The CPUs that tasks may run on, as bits.
pub fn online_cpus() -> u64 {
    ONLINE.load(Ordering::Relaxed)
}

/// Context switches since boot (`ctxt` of `/proc/stat`).
pub fn context_switches() -> u64 {
    SWITCHES.load(Ordering::Relaxed)
}

/// Nanoseconds that a CPU has been idle.
pub fn idle_ns(cpu: usize) -> u64 {
    let this = CPUS.on(cpu);
    let done = this.idle_ns.load(Ordering::Relaxed);
    let is_idle = IDLE.load(Ordering::Relaxed) >> cpu & 1 != 0;
    let since = this.idle_since.load(Ordering::Relaxed);
    if is_idle { done + ursa_hal::time::monotonic_ns().saturating_sub(since) } else { done }
}

/// Tasks that run or want to, on all CPUs.
pub fn runnable() -> usize {
    CPUS.iter().map(|(_, cpu)| cpu.runnable.load(Ordering::Relaxed)).sum()
}

/// The scheduler's part of a task.
///
/// hal's boot contexts, which become the idle tasks, carry none: they share one that is never queued.
#[inline]
pub fn ext_of(task: &Task) -> &TaskExt {
    static IDLE_EXT: Lazy<TaskExt> = Lazy::new(|| TaskExt::new(None, Params::DEFAULT, !0));
    match task.ext::<TaskExt>() {
        Some(ext) => ext,
        None => &IDLE_EXT,
    }
}

/// Runs `f` on the scheduler's part of the running task.
#[inline]
pub fn with_current<R>(f: impl FnOnce(&TaskExt) -> R) -> R {
    f(ext_of(&task::current()))
}

/// A counted reference to the running task.
pub fn current_task() -> Arc<Task> {
    task::current().arc()
}

/// Whether the running task should leave its interruptible sleep.
#[inline]
pub fn signal_pending() -> bool {
    with_current(|ext| ext.work().intersects(Work::SIGNAL | Work::KILL))
}

/// Whether the running task is about to be ended.
#[inline]
pub fn fatal_signal_pending() -> bool {
    with_current(|ext| ext.work().contains(Work::KILL))
}

/// Makes a task that does not run yet; [`wake_new`] starts it. `None` when memory is short.
///
/// A user thread inherits its creator's parameters and affinity.
pub fn new_task(
    name: &str,
    thread: Option<Arc<Thread>>,
    fpu: Option<FpuState>,
    body: impl FnOnce() + Send + 'static,
) -> Option<Arc<Task>> {
    let (params, affinity) = match task::current().ext::<TaskExt>() {
        Some(parent) if thread.is_some() && parent.thread().is_some() => {
            (parent.params().for_child(), parent.affinity())
        }
        _ => (Params::DEFAULT, !0),
    };
    reserve_for(TASKS.fetch_add(1, Ordering::Relaxed) + 1)?;
    let body = Box::new(move || {
        finish_switch(false);
        body();
        exit_current()
    });
    let ext = Arc::new(TaskExt::new(thread, params, affinity));
    let task = Stack::new().and_then(|stack| Task::new(name, stack, ext, fpu, body));
    match &task {
        Some(task) => drop(ext_of(task).set_keep_alive(Some(task.clone()))),
        None => {
            TASKS.fetch_sub(1, Ordering::Relaxed);
        }
    }
    task
}

/// Reads a task's CPU time: `f` gets what runs at this moment and is not booked yet, and reads what is. Nothing is booked
/// meanwhile, so that the sum never goes back.
pub fn with_cpu_time<R>(task: &Arc<Task>, f: impl FnOnce(u64) -> R) -> R {
    let ext = ext_of(task);
    let mut result = None;
    with_owning_queue(ext, |queue, now| {
        let runs = queue.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, task));
        result = Some(f(if runs { now.saturating_sub(ext.exec_start.load(Ordering::Relaxed)) } else { 0 }));
        false
    });
    result.expect("the queue was there")
}

/// Gives every queue room for `tasks`, so that no wake-up has to allocate.
fn reserve_for(tasks: usize) -> Option<()> {
    for (_, cpu) in CPUS.iter() {
        let mut queue = cpu.queue.lock();
        if queue.capacity() < tasks && !queue.reserve_total(tasks.next_power_of_two().max(64)) {
            TASKS.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
    }
    Some(())
}

/// Forgets a task that was made but never started.
pub fn discard_new(task: &Arc<Task>) {
    TASKS.fetch_sub(1, Ordering::Relaxed);
    drop(ext_of(task).set_keep_alive(None));
}

/// Starts a task from [`new_task`].
pub fn wake_new(task: &Arc<Task>) {
    wake_with(task, SleepState::UNINTERRUPTIBLE, false);
}

/// Wakes a task from one of `states`; returns whether it slept so.
pub fn wake(task: &Arc<Task>, states: SleepState) -> bool {
    wake_with(task, states, false)
}

/// As [`wake`]; with `handoff` the caller is about to sleep and the task may have its CPU.
pub fn wake_with(task: &Arc<Task>, states: SleepState, handoff: bool) -> bool {
    let ext = ext_of(task);
    match ext.try_wake(states) {
        None => false,
        Some(false) => true,
        Some(true) => {
            let _irqs = IrqsOff::new();
            let cpu = balance::select_cpu(task, ext, handoff);
            enqueue_on(cpu, task.clone(), handoff);
            true
        }
    }
}

/// Puts a task that nobody owns into a CPU's queue and makes that CPU look, where it must.
fn enqueue_on(cpu: usize, task: Arc<Task>, handoff: bool) {
    let this = CPUS.on(cpu);
    let preempt = {
        let mut queue = this.queue.lock();
        let preempt = queue.enqueue(task, ursa_hal::time::monotonic_ns(), handoff);
        this.publish(&queue);
        preempt
    };
    if preempt {
        interrupt(cpu);
    }
}

/// Makes a CPU look at its queue: at once, or at the end of the [`WakeBatch`] that this one is in. Interrupts are off.
fn interrupt(cpu: usize) {
    let this = CPUS.get();
    if cpu == smp::current_cpu() || this.batches.load(Ordering::Relaxed) == 0 {
        task::set_need_resched(cpu);
    } else {
        this.batched.store(this.batched.load(Ordering::Relaxed) | 1 << cpu, Ordering::Relaxed);
    }
}

/// While one lives, what this CPU wakes on others does not interrupt them: they are interrupted at its end, each once.
///
/// For wakers that hold a lock which the woken want first: an interrupt takes long to send, and the woken would spin for as long. It
/// is made before the lock is taken and dropped after it is let go, and keeps interrupts off: nobody sleeps in it or takes a `SpinLock`.
pub struct WakeBatch {
    // Dropped after the interrupts are sent.
    _irqs: IrqsOff,
}

impl WakeBatch {
    /// Begins one; they nest.
    pub fn begin() -> Self {
        let irqs = IrqsOff::new();
        let batches = &CPUS.get().batches;
        batches.store(batches.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        WakeBatch { _irqs: irqs }
    }
}

impl Drop for WakeBatch {
    fn drop(&mut self) {
        let this = CPUS.get();
        let outer = this.batches.load(Ordering::Relaxed) - 1;
        this.batches.store(outer, Ordering::Relaxed);
        if outer == 0 {
            let mut cpus = this.batched.load(Ordering::Relaxed);
            this.batched.store(0, Ordering::Relaxed);
            while cpus != 0 {
                task::set_need_resched(cpus.trailing_zeros() as usize);
                cpus &= cpus - 1;
            }
        }
    }
}

impl CpuSched {
    fn publish(&self, queue: &RunQueue) {
        self.runnable.store(queue.runnable(), Ordering::Relaxed);
        self.load.store(queue.load(), Ordering::Relaxed);
    }
}

/// Sees to it that a thread looks at its [`Work`] flags soon: wakes it from `states`, or interrupts its CPU.
pub fn kick(task: &Arc<Task>, states: SleepState) {
    if !wake(task, states) && task.is_on_cpu() {
        task::set_need_look(ext_of(task).cpu());
    }
}

// Sleeping.

/// Announces that the running task is about to sleep. Look at the condition afterwards, then [`schedule`].
pub fn prepare_to_sleep(state: SleepState) {
    with_current(|ext| ext.set_sleep(state));
}

/// Takes the announcement back.
pub fn finish_sleep() {
    with_current(|ext| ext.set_sleep(SleepState::empty()));
}

/// Sleeps once in `state` unless a wake-up came since [`prepare_to_sleep`], or gives others a chance to run.
pub fn schedule() {
    ursa_hal::sync::might_sleep();
    switch(Why::Block);
}

/// Lets another task run if one should. For long loops in the kernel.
#[inline]
pub fn cond_resched() {
    if task::need_resched() && !task::take_need_look() {
        switch(Why::Preempt);
    }
}

/// Gives the CPU up to whoever waits (sched_yield(2)).
pub fn yield_now() {
    switch(Why::Yield);
}

/// Ends the running task.
pub fn exit_current() -> ! {
    let current = task::current();
    let ext = ext_of(&current);
    let _irqs = IrqsOff::new();
    ext.set_sleep(SleepState::DEAD);
    TASKS.fetch_sub(1, Ordering::Relaxed);
    // hal holds the running task; this was the reference that let it sleep unobserved.
    drop(ext.set_keep_alive(None));
    let next = choose_next(Why::Block).expect("a dead task is not chosen again");
    task::exit_to(next)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The task may be about to sleep.
    Block,
    /// The task still wants to run.
    Preempt,
    /// The task wants to run after the others.
    Yield,
}

fn switch(why: Why) {
    let _irqs = IrqsOff::new();
    if let Some(next) = choose_next(why) {
        task::switch_to(next);
        finish_switch(why != Why::Block);
    }
}

/// The first thing after a switch, on the new stack: brings in the user memory of the task that runs now, and sends a task on
/// its way that may no longer use this CPU. It could not enter another queue while it stood on its stack here. `preempted`: the
/// task that runs now had not gone to sleep.
fn finish_switch(preempted: bool) {
    if let Some(thread) = ext_of(&task::current()).thread() {
        thread.switched_in(preempted);
    }
    let cpu = CPUS.get();
    if cpu.has_leaving.load(Ordering::Relaxed) {
        let _irqs = IrqsOff::new();
        cpu.has_leaving.store(false, Ordering::Relaxed);
        let leaving = cpu.leaving.lock().take();
        if let Some(task) = leaving {
            let to = balance::select_cpu(&task, ext_of(&task), false);
            enqueue_on(to, task, false);
        }
    }
}

/// Puts the running task where it belongs and takes the next; `None` when it is the same.
fn choose_next(why: Why) -> Option<Arc<Task>> {
    let current = task::current();
    let ext = ext_of(&current);
    let cpu = CPUS.get();
    task::clear_need_resched();

    let mut queue = cpu.queue.lock();
    let now = ursa_hal::time::monotonic_ns();
    queue.charge_current(now);
    let was_idle = queue.is_idle();
    let slept = !was_idle
        && ext.try_sleep(|state| {
            why != Why::Block
                || state.contains(SleepState::INTERRUPTIBLE) && ext.work().intersects(Work::SIGNAL | Work::KILL)
                || state.contains(SleepState::KILLABLE) && ext.work().contains(Work::KILL)
        });
    if slept {
        queue.leave_current(ext);
    } else if !was_idle {
        let elsewhere = ext.affinity() & online_cpus();
        if elsewhere != 0 && elsewhere >> queue.cpu & 1 == 0 {
            queue.leave_current(ext);
            *cpu.leaving.lock() = Some(current.arc());
            cpu.has_leaving.store(true, Ordering::Relaxed);
        } else {
            if queue.queued() == 0 {
                cpu.arm(&mut queue, now);
                return None;
            }
            if why == Why::Yield {
                queue.forfeit_slice(ext);
            }
            queue.requeue_current(current.arc(), now, why == Why::Yield);
        }
    }
    let mut picked = queue.pick(now);
    if picked.is_none() {
        // Nothing here: look at the neighbours before going idle. The queue's lock must not be held meanwhile; nothing
        // can be picked twice, since only this CPU picks from its queue.
        drop(queue);
        picked = balance::pull_for_idle(smp::current_cpu());
        queue = cpu.queue.lock();
        if let Some(pulled) = picked.take() {
            queue.enqueue(pulled, now, false);
        }
        picked = queue.pick(now);
    }
    let next = picked.or_else(|| queue.idle.clone()).expect("a CPU that schedules has an idle task");
    let same = core::ptr::eq::<Task>(&*next, &*current);
    queue.current = Some(next.clone());
    note_idle(cpu, &queue, was_idle, now);
    cpu.publish(&queue);
    cpu.arm(&mut queue, now);
    drop(queue);
    if same {
        return None;
    }
    SWITCHES.fetch_add(1, Ordering::Relaxed);
    if let Some(thread) = ext.thread() {
        let counter = if slept { &thread.usage.voluntary_switches } else { &thread.usage.involuntary_switches };
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
    Some(next)
}

fn note_idle(cpu: &CpuSched, queue: &RunQueue, was_idle: bool, now: u64) {
    let bit = 1 << queue.cpu;
    match (was_idle, queue.is_idle()) {
        (false, true) => {
            cpu.idle_since.store(now, Ordering::Relaxed);
            IDLE.fetch_or(bit, Ordering::Relaxed);
        }
        (true, false) => {
            let idle = now.saturating_sub(cpu.idle_since.load(Ordering::Relaxed));
            cpu.idle_ns.fetch_add(idle, Ordering::Relaxed);
            IDLE.fetch_and(!bit, Ordering::Relaxed);
        }
        _ => {}
    }
}

impl CpuSched {
    /// Sets when this CPU's scheduler wants to be called next.
    fn arm(&self, queue: &mut RunQueue, now: u64) {
        let at = if queue.is_idle() {
            u64::MAX
        } else {
            let tick = now + TICK_NS;
            queue.slice_left().map_or(tick, |left| tick.min(now + left.max(50_000)))
        };
        let former = self.tick_at.swap(at, Ordering::Relaxed);
        // A tick that stands already and comes no later than wanted is left alone, on an idle CPU too, where it fires
        // once into the void: so most switches touch no timer.
        if at < former {
            timer::set_scheduler_deadline(at);
        } else {
            self.tick_at.store(former, Ordering::Relaxed);
        }
    }
}

/// The scheduler's part of the timer interrupt: called when the deadline of `arm` has passed.
pub(crate) fn tick(now: u64) {
    let cpu = CPUS.get();
    if now < cpu.tick_at.load(Ordering::Relaxed) {
        return;
    }
    cpu.tick_at.store(u64::MAX, Ordering::Relaxed);
    {
        let mut queue = cpu.queue.lock();
        let slice_over = queue.charge_current(now);
        // After the booking: what readers saw as user or system time must not change sides afterwards.
        with_current(|ext| ext.sampled_user.store(ext.is_in_user(), Ordering::Relaxed));
        if queue.should_preempt_at_tick(slice_over, now) {
            task::set_need_resched(smp::current_cpu());
        }
        cpu.publish(&queue);
        cpu.arm(&mut queue, now);
    }
    loadavg::update(now);
    with_current(|ext| {
        if let Some(thread) = ext.thread() {
            crate::time::cpu_timers::tick(thread);
        }
    });
    balance::periodic(now);
}

// CPUs.

/// Makes the scheduler ready on the boot CPU, so that tasks can be made and woken; they run from [`enter_idle`] on.
pub fn init() {
    start_cpu();
}

/// The end of a CPU's boot: its boot context goes on as its idle task, which runs whatever there is and halts else.
pub fn enter_idle() -> ! {
    if online_cpus() >> smp::current_cpu() & 1 == 0 {
        start_cpu();
    }
    loop {
        switch(Why::Preempt);
        ursa_hal::cpu::halt_if(|| !task::need_resched());
    }
}

fn start_cpu() {
    let index = smp::current_cpu();
    let cpu = CPUS.get();
    let idle = task::idle();
    {
        let mut queue = cpu.queue.lock();
        queue.reserve_total(64);
        queue.current = Some(idle.clone());
        queue.idle = Some(idle);
    }
    cpu.idle_since.store(ursa_hal::time::monotonic_ns(), Ordering::Relaxed);
    IDLE.fetch_or(1 << index, Ordering::Relaxed);
    ONLINE.fetch_or(1 << index, Ordering::SeqCst);
}

// Parameters.

/// Changes a task's policy, nice value or priority.
pub fn set_params(task: &Arc<Task>, params: Params) {
    let ext = ext_of(task);
    ext.set_params(params);
    apply_params(task, ext);
}

/// Lends a task better parameters than its own (priority inheritance), or takes them back.
pub fn boost(task: &Arc<Task>, params: Option<Params>) {
    let ext = ext_of(task);
    ext.set_boost(params);
    apply_params(task, ext);
}

fn apply_params(task: &Arc<Task>, ext: &TaskExt) {
    let params = ext.effective_params();
    with_owning_queue(ext, |queue, now| queue.change_params(task, |ext| ext.load_params(&params), now));
}

/// Restricts a task to `cpus`.
///
/// # Errors
/// `EINVAL` when none of them schedules.
pub fn set_affinity(task: &Arc<Task>, cpus: u64) -> Result {
    if cpus & online_cpus() == 0 {
        return Err(Errno::EINVAL);
    }
    let ext = ext_of(task);
    ext.set_affinity_bits(cpus);
    // If it waits on a CPU that it may no longer use, it moves now; if it runs there, it moves at its next switch.
    let mut waiting = None;
    with_owning_queue(ext, |queue, _| {
        let misplaced = cpus >> queue.cpu & 1 == 0;
        if misplaced && !task.is_on_cpu() {
            waiting = queue.dequeue(task);
        }
        misplaced
    });
    if let Some(task) = waiting {
        let _irqs = IrqsOff::new();
        let cpu = balance::select_cpu(&task, ext, false);
        enqueue_on(cpu, task, false);
    }
    Ok(())
}

/// Runs `f` on the queue that owns the task, or owned it last; resched of that CPU if `f` says so.
fn with_owning_queue(ext: &TaskExt, f: impl FnOnce(&mut RunQueue, u64) -> bool) {
    loop {
        let index = ext.cpu();
        let cpu = CPUS.on(index);
        let mut queue = cpu.queue.lock();
        if ext.cpu() != index {
            continue;
        }
        let now = ursa_hal::time::monotonic_ns();
        let resched = f(&mut queue, now);
        cpu.publish(&queue);
        drop(queue);
        if resched {
            task::set_need_resched(index);
        }
        return;
    }
}
