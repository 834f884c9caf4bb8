//! Tracing: ptrace(2).
//!
//! A tracee stops where it would return to user mode, or at the edges of a system call; it leaves a copy of its registers in its
//! [`Tracee`] state, tells the tracer, and sleeps until the tracer says how to go on. Only then may the tracer look and
//! change: requests work on the copy, which the tracee takes over when it runs again. Memory is reached through the
//! tracee's address space, vector state through hal, which refuses both for a task that is not off its CPU.
//!
//! Modules: this one has the state and the stops; [`access`] who may trace whom; [`regs`] the register structures; [`breakpoints`]
//! the debug registers;
//! [`request`] the system call; [`news`] what wait(2) and the births and deaths of threads have to do with it.
//!
//! The tracer is a process here, not a single thread of it: any of its threads may make requests (Linux wants the one
//! that attached; see CAVEATS.md).
//!
//! Locking: `Tracee::state` and a tracer's list of tracees are leaf spin locks, never held together.
//! References: ptrace(2), Linux `kernel/ptrace.c`.

mod access;
mod breakpoints;
mod news;
mod regs;
pub mod request;

use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicBool, Ordering, fence};

use linux_uapi::raw::ptrace as uapi;
use linux_uapi::signal::{CLD_TRAPPED, SIGCHLD, SIGTRAP, SigInfo, TRAP_BRKPT};
use ursa_hal::sync::SpinLock;
use ursa_hal::task::Task;
use ursa_hal::trap::{Regs, UserContext};

use breakpoints::Breakpoints;

use crate::process::{Process, Thread, exit};
use crate::sched::{self, SleepState, Work};
use crate::signal;

pub use access::{check_access, is_traced_by_unprivileged};
pub use news::{
    TraceeScan, cloned, event_stop_of_clone, exec_event, exit_event, exited, holds_zombie, leader_replaced,
    release_tracees, scan_tracees, tracer_id,
};
pub(crate) use regs::UserRegs;

const TRAP_FLAG: u64 = 0x100;
const EVENT_STOP: u32 = uapi::PTRACE_EVENT_STOP;

/// What a thread's last exception was, for its signal frame.
#[derive(Clone, Copy, Default)]
pub(crate) struct Fault {
    pub vector: u64,
    pub error_code: u64,
    pub address: u64,
}

/// How a tracee goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Continue,
    ToSyscall,
    Step,
    /// Stay stopped with the process, but hear of its continuation.
    Listen,
}

/// Why a tracee stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Signal,
    SyscallEntry,
    SyscallExit,
    Event,
    Group,
}

struct Stop {
    /// What wait(2) shows as the stop signal: a signal, with an event above it.
    code: u32,
    kind: Kind,
    info: SigInfo,
    regs: Regs,
    /// wait(2) has shown it.
    reported: bool,
}

#[derive(Clone, Copy)]
struct Resume {
    mode: Mode,
    signal: u32,
}

#[derive(Default)]
struct State {
    tracer: Weak<Process>,
    options: u32,
    seized: bool,
    stop: Option<Stop>,
    resume: Option<Resume>,
    event_message: u64,
    /// `PTRACE_INTERRUPT`, or the first stop of an attached child.
    interrupt: bool,
    /// An event to stop for on the way back to user mode.
    event: Option<(u32, u64)>,
    /// The trap flag in the registers is ours.
    stepping: bool,
    /// A process stop that the tracer has let the thread run out of.
    passed_stop: u64,
    /// The process stop that the tracer was shown last.
    shown_stop: u64,
    /// How a traced thread ended, until the tracer has waited for it.
    exit_status: Option<i32>,
    privileged: bool,
    /// The information of the signal that was stopped for, as the tracer left it (`PTRACE_SETSIGINFO`).
    edited_info: Option<SigInfo>,
}

/// The traced side of a thread.
#[derive(Default)]
pub struct Tracee {
    traced: AtomicBool,
    state: SpinLock<State>,
    fault: SpinLock<Fault>,
    breakpoints: SpinLock<Breakpoints>,
}

impl Tracee {
    /// Whether a tracer is attached.
    pub fn is_traced(&self) -> bool {
        self.traced.load(Ordering::Acquire)
    }

    pub(crate) fn fault(&self) -> Fault {
        *self.fault.lock()
    }

    pub(crate) fn set_fault(&self, vector: u64, error_code: u64, address: u64) {
        *self.fault.lock() = Fault { vector, error_code, address };
    }

    /// The thread got a #DB; `status` is DR6.
    pub(crate) fn debug_trap(&self, status: u64, context: &mut UserContext) {
        self.breakpoints.lock().hit(status, context);
    }

    /// The thread has become a new program, which has no breakpoints.
    pub(crate) fn clear_breakpoints(&self, task: &Task) {
        self.breakpoints.lock().clear(task);
    }

    fn tracer(&self) -> Option<Arc<Process>> {
        if self.is_traced() { self.state.lock().tracer.upgrade() } else { None }
    }

    fn has_option(&self, option: u32) -> bool {
        self.is_traced() && self.state.lock().options & option != 0
    }
}

/// Whether a tracer is attached to the thread.
pub fn is_traced(thread: &Thread) -> bool {
    thread.signals.ptrace.is_traced()
}

/// Makes `tracer` the tracer of a thread that has none.
///
/// Either side may be dying. A process is marked as a zombie, and a thread as dead, before they look at what ties them to each
/// other, so the one that comes too late is seen here and the tie undone: else the tracee would stop for nobody, or its zombie
/// wait for a tracer that was never told of it.
///
/// # Errors
/// `EPERM` when the thread has a tracer, `ESRCH` when it or `tracer` has ended.
fn attach(thread: &Arc<Thread>, tracer: &Arc<Process>, options: u32, seized: bool, privileged: bool) -> crate::Result {
    {
        let mut state = thread.signals.ptrace.state.lock();
        if thread.signals.ptrace.is_traced() {
            return Err(crate::Errno::EPERM);
        }
        *state = State { tracer: Arc::downgrade(tracer), options, seized, privileged, ..State::default() };
        thread.signals.ptrace.traced.store(true, Ordering::Release);
    }
    {
        let mut tracees = tracer.signals.tracees.lock();
        tracees.retain(|other| other.strong_count() > 0);
        tracees.push(Arc::downgrade(thread));
    }
    // Pairs with the one in `news::exited`: of two that meet, at least one sees the other.
    fence(Ordering::SeqCst);
    if tracer.is_zombie() {
        detach(thread, 0);
        return Err(crate::Errno::ESRCH);
    }
    if thread.is_dead() {
        detach(thread, 0);
        if thread.is_leader() && thread.process().is_zombie() {
            exit::notify_parent(thread.process());
        } else if !thread.is_leader() {
            thread.process().forget_dead_thread(thread);
        }
        return Err(crate::Errno::ESRCH);
    }
    Ok(())
}

/// Ends the tracing of a thread; one that stands still goes on with `signal`.
fn detach(thread: &Arc<Thread>, signal: u32) {
    let tracer = {
        let mut state = thread.signals.ptrace.state.lock();
        let tracer = core::mem::take(&mut state.tracer);
        thread.signals.ptrace.traced.store(false, Ordering::Release);
        state.resume = Some(Resume { mode: Mode::Continue, signal });
        state.interrupt = false;
        state.event = None;
        tracer.upgrade()
    };
    if let Some(tracer) = tracer {
        tracer.signals.tracees.lock().retain(|other| !core::ptr::eq(other.as_ptr(), Arc::as_ptr(thread)));
    }
    if let Some(task) = thread.task() {
        sched::ext_of(&task).take_work(Work::SYSCALL_TRACE);
        sched::wake(&task, SleepState::TRACED);
    }
}

/// Stops the calling thread for its tracer and returns how to go on. A thread that is not traced, or is killed, goes on at once.
fn stop(thread: &Thread, context: &mut UserContext, kind: Kind, code: u32, info: SigInfo) -> Resume {
    let mut registers = *context.regs();
    let resume = stop_with(thread, &mut registers, kind, code, info);
    *context.regs_mut() = registers;
    resume
}

fn stop_with(thread: &Thread, registers: &mut Regs, kind: Kind, code: u32, info: SigInfo) -> Resume {
    let go_on = Resume { mode: Mode::Continue, signal: info.signo() };
    let tracee = &thread.signals.ptrace;
    // A thread that is to end shows nothing more but its end.
    if sched::fatal_signal_pending() {
        return go_on;
    }
    {
        let mut state = tracee.state.lock();
        if !tracee.is_traced() {
            return go_on;
        }
        if core::mem::take(&mut state.stepping) {
            registers.rflags &= !TRAP_FLAG;
        }
        state.resume = None;
        state.stop = Some(Stop { code, kind, info, regs: *registers, reported: false });
    }
    crate::fs::cgroup::resting_during(thread, || {
        tell_tracer(thread, CLD_TRAPPED, code & 0x7f);
        loop {
            sched::prepare_to_sleep(SleepState::TRACED);
            if sched::fatal_signal_pending() || tracee.state.lock().resume.is_some() || !tracee.is_traced() {
                break;
            }
            sched::schedule();
        }
        sched::finish_sleep();
    });
    let mut state = tracee.state.lock();
    if let Some(stop) = state.stop.take() {
        *registers = stop.regs;
        state.edited_info = Some(stop.info);
    }
    let resume = state.resume.take().unwrap_or(go_on);
    let step = resume.mode == Mode::Step && tracee.is_traced();
    state.stepping = step;
    if step {
        registers.rflags |= TRAP_FLAG;
    }
    drop(state);
    sched::with_current(|ext| {
        let mut work = Work::empty();
        work.set(Work::SYSCALL_TRACE, resume.mode == Mode::ToSyscall && tracee.is_traced());
        work.set(Work::SINGLE_STEP, step);
        ext.take_work(Work::SYSCALL_TRACE | Work::SINGLE_STEP);
        ext.add_work(work);
    });
    resume
}

fn tell_tracer(thread: &Thread, code: i32, status: u32) {
    let Some(tracer) = thread.signals.ptrace.tracer() else { return };
    let action = tracer.signals.action(SIGCHLD);
    const SA_NOCLDSTOP: u64 = linux_uapi::raw::general::SA_NOCLDSTOP as u64;
    if action.handler != linux_uapi::signal::SIG_IGN && action.flags & SA_NOCLDSTOP == 0 {
        let uid = thread.with_cred(|cred| cred.uid);
        let pid = thread.identity().seen_from(tracer.pid_namespace());
        signal::send_to_process(&tracer, SigInfo::child(code, pid, uid, status as i32, 0, 0));
    }
    tracer.child_wait.wake_all();
}

/// The number of the parent, as the thread knows it.
fn parent_of(thread: &Thread) -> i32 {
    let process = thread.process();
    process.parent_seen_from(process.pid_namespace())
}

/// The information of a stop that no signal caused.
fn trap_info(thread: &Thread, code: u32) -> SigInfo {
    let uid = thread.with_cred(|cred| cred.uid);
    SigInfo::user(SIGTRAP, code as i32, thread.own_tid(), uid)
}

/// Whether an event or an interrupt is due.
pub(crate) fn is_asked_to_stop(thread: &Thread) -> bool {
    if !thread.signals.ptrace.is_traced() {
        return false;
    }
    let state = thread.signals.ptrace.state.lock();
    state.interrupt || state.event.is_some()
}

/// On the way back to user mode: stops for an event or an interrupt that is due.
pub(crate) fn stop_if_asked(thread: &Thread, context: &mut UserContext) {
    if !thread.signals.ptrace.is_traced() {
        return;
    }
    stop_for_event(thread, context);
    let interrupted = core::mem::take(&mut thread.signals.ptrace.state.lock().interrupt);
    if interrupted {
        let code = SIGTRAP | EVENT_STOP << 8;
        stop(thread, context, Kind::Event, code, trap_info(thread, code));
    }
}

fn stop_for_event(thread: &Thread, context: &mut UserContext) {
    let event = thread.signals.ptrace.state.lock().event.take();
    if let Some((event, message)) = event {
        thread.signals.ptrace.state.lock().event_message = message;
        let code = SIGTRAP | event << 8;
        stop(thread, context, Kind::Event, code, trap_info(thread, code));
    }
}

/// Before a signal is acted upon: the tracer sees it and may replace or drop it.
pub(crate) fn signal_stop(thread: &Thread, context: &mut UserContext, info: SigInfo) -> Option<SigInfo> {
    let (resume, edited) = {
        let tracee = &thread.signals.ptrace;
        let mut registers = *context.regs();
        // The tracer may edit the information in place; read it back before the stop is gone.
        let resume = stop_with(thread, &mut registers, Kind::Signal, info.signo(), info);
        *context.regs_mut() = registers;
        let edited = tracee.state.lock().edited_info.take();
        (resume, edited)
    };
    if resume.signal == 0 {
        return None;
    }
    if resume.signal == info.signo() {
        return Some(edited.unwrap_or(info));
    }
    let uid = thread.with_cred(|cred| cred.uid);
    Some(SigInfo::user(resume.signal, linux_uapi::signal::SI_USER, parent_of(thread), uid))
}

/// The process is stopped as a whole: a tracee stops for its tracer instead. False when the tracer wants it to stay stopped.
pub(crate) fn group_stop(thread: &Thread, context: &mut UserContext, signo: u32, generation: u64) -> bool {
    let tracee = &thread.signals.ptrace;
    if !tracee.is_traced() {
        return false;
    }
    let seized = tracee.state.lock().seized;
    let code = if seized { signo | EVENT_STOP << 8 } else { signo };
    tracee.state.lock().shown_stop = generation;
    let resume = stop(thread, context, Kind::Group, code, trap_info(thread, code));
    if resume.mode == Mode::Listen || !tracee.is_traced() {
        return false;
    }
    tracee.state.lock().passed_stop = generation;
    true
}

/// Whether the tracer has let the thread run out of this stop of its process.
pub(crate) fn passed_stop(thread: &Thread, generation: u64) -> bool {
    thread.signals.ptrace.is_traced() && thread.signals.ptrace.state.lock().passed_stop == generation
}

/// Whether a thread that sleeps in a stop of its process is to stop for a new tracer, or was interrupted by it.
pub(crate) fn wants_stop(thread: &Thread, generation: u64) -> bool {
    if !thread.signals.ptrace.is_traced() {
        return false;
    }
    let state = thread.signals.ptrace.state.lock();
    state.interrupt || state.shown_stop != generation
}

/// A handler is about to run: a stepping tracer sees its first instruction.
pub(crate) fn handler_set_up(thread: &Thread, context: &mut UserContext) {
    if thread.signals.ptrace.is_traced() && thread.signals.ptrace.state.lock().stepping {
        stop(thread, context, Kind::Signal, SIGTRAP, SigInfo::fault(SIGTRAP, TRAP_BRKPT, context.regs().rip));
    }
}

/// Before a frame is built: the trap flag of a stepping tracer is not the program's.
pub(crate) fn hide_step(thread: &Thread, context: &mut UserContext) {
    if thread.signals.ptrace.is_traced() && thread.signals.ptrace.state.lock().stepping {
        context.regs_mut().rflags &= !TRAP_FLAG;
    }
}

fn syscall_code(thread: &Thread) -> u32 {
    if thread.signals.ptrace.has_option(uapi::PTRACE_O_TRACESYSGOOD) { SIGTRAP | 0x80 } else { SIGTRAP }
}

/// A system call is about to run under a tracer that wants to see it. Returns whether it is to run.
pub(crate) fn syscall_enter(thread: &Thread, context: &mut UserContext) -> bool {
    let number = context.regs().rax;
    let registers = context.regs_mut();
    registers.orig_rax = number;
    registers.rax = crate::Errno::ENOSYS.to_return();
    let code = syscall_code(thread);
    let resume = stop(thread, context, Kind::SyscallEntry, code, trap_info(thread, code));
    inject(thread, resume, code);
    let number = context.regs().orig_rax;
    if number as i32 == -1 {
        return false;
    }
    context.regs_mut().rax = number;
    true
}

/// A system call has run.
pub(crate) fn syscall_exit(thread: &Thread, context: &mut UserContext) {
    let code = syscall_code(thread);
    let resume = stop(thread, context, Kind::SyscallExit, code, trap_info(thread, code));
    inject(thread, resume, code);
}

/// A call was executed by single steps: the next stop is right behind it.
pub(crate) fn step_over_syscall(thread: &Thread, context: &mut UserContext) {
    let info = SigInfo::fault(SIGTRAP, TRAP_BRKPT, context.regs().rip);
    signal::force_signal(thread, info);
}

/// An event during a call that was not a signal: stops for it.
pub(crate) fn event_during_syscall(thread: &Thread, context: &mut UserContext) {
    if thread.signals.ptrace.is_traced() {
        stop_for_event(thread, context);
    }
}

/// A tracer that goes on from a system call stop with a signal sends it.
fn inject(thread: &Thread, resume: Resume, code: u32) {
    let signal = resume.signal;
    if signal != 0 && signal != code & 0x7f {
        let uid = thread.with_cred(|cred| cred.uid);
        signal::send_to_thread(thread, SigInfo::user(signal, linux_uapi::signal::SI_USER, parent_of(thread), uid));
    }
}
