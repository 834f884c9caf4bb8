//! Core dumps: the memory and registers of a process that a signal ends, for a debugger.
//!
//! ```text
//!  fatal signal ─▶ dump ─▶ every other thread is asked to end ─▶ each parks with its registers on the way (park)
//!                                                               └▶ all parked: write the file ─▶ all end
//! ```
//! The dying thread writes: [`output`] opens what `core_pattern` names (a file, or a pipe to a program), [`image`] says what
//! goes into it. Nothing of the process changes meanwhile but through others that share its memory; whatever they do makes
//! holes in the file, nothing worse. `SIGKILL` ends a dump.
//! References: core(5), Linux `fs/coredump.c`, `fs/binfmt_elf.c`.

mod image;
mod output;
mod pattern;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};

use linux_uapi::signal::SigInfo;
use ursa_hal::sync::SpinLock;
use ursa_hal::task;
use ursa_hal::trap::UserContext;

use crate::process::Thread;
use crate::ptrace::UserRegs;
use crate::sched::{self, Work};
use crate::wait::WaitQueue;

pub use output::{PIPE_LIMIT, SUID_DUMPABLE};
pub use pattern::{CORE_USES_PID, core_pattern, set_core_pattern};

/// What a thread was when the process died.
struct ThreadState {
    thread: Arc<Thread>,
    regs: UserRegs,
    /// The vector state as XSAVE lays it out; empty when there was no memory for it.
    vector: Vec<u8>,
}

impl ThreadState {
    /// The running thread's.
    fn of_current(thread: &Thread, context: &UserContext) -> ThreadState {
        let mut vector = Vec::new();
        if vector.try_reserve_exact(ursa_hal::fpu::size()).is_ok() {
            vector.resize(ursa_hal::fpu::size(), 0);
            ursa_hal::fpu::save_to(&mut vector);
        }
        ThreadState { thread: thread.arc(), regs: UserRegs::read(context.regs(), &task::current()), vector }
    }
}

/// A dump under way: where the other threads leave their state and wait for its end.
#[derive(Default)]
pub struct Gathering {
    states: SpinLock<Vec<ThreadState>>,
    parked: AtomicU32,
    over: AtomicBool,
    wait: WaitQueue,
}

/// Writes the core file of the running thread's process, which dies of the signal in `info`.
pub(crate) fn dump(thread: &Thread, info: &SigInfo, context: &UserContext) {
    let Some(plan) = output::Plan::decide(thread, info) else { return };
    let process = thread.process();
    let gathering = Arc::new(Gathering::default());
    if !process.begin_core_dump(&gathering, thread, info.signo() as i32) {
        return;
    }
    let written = gather_and_write(thread, &gathering, info, context, plan);
    process.end_core_dump(written);
    gathering.over.store(true, Release);
    gathering.wait.wake_all();
}

fn gather_and_write(
    thread: &Thread,
    gathering: &Gathering,
    info: &SigInfo,
    context: &UserContext,
    plan: output::Plan,
) -> bool {
    let process = thread.process();
    // A thread that does not park was ending already, and is dead soon.
    let alone = || (process.live_threads() == gathering.parked.load(Acquire) + 1).then_some(());
    if process.wait_for_threads(alone).is_err() {
        return false;
    }
    let mut states = Vec::new();
    let parked = core::mem::take(&mut *gathering.states.lock());
    if states.try_reserve_exact(parked.len() + 1).is_err() {
        return false;
    }
    states.push(ThreadState::of_current(thread, context));
    states.extend(parked);
    match plan.write(thread, &states, info) {
        Ok(()) => true,
        Err(error) => {
            ursa_hal::info!("{}[{}]: no core file: {error}", thread.log_name(), process.pid());
            false
        }
    }
}

/// Called by a thread that is about to end: waits for a dump of its process, after leaving its registers there.
pub(crate) fn park(thread: &Thread, context: &UserContext) {
    let Some(gathering) = thread.process().core_dump() else { return };
    let state = ThreadState::of_current(thread, context);
    {
        let mut states = gathering.states.lock();
        // Without memory the dump lacks this thread.
        if states.try_reserve(1).is_ok() {
            states.push(state);
        }
    }
    gathering.parked.fetch_add(1, AcqRel);
    thread.process().threads_changed();
    gathering.wait.wait_until(|| gathering.over.load(Acquire).then_some(()));
}

/// Whether the dump must be given up: `SIGKILL` came. Other signals have nothing to say any more and are passed over.
fn is_cut_short() -> bool {
    sched::with_current(|ext| ext.take_work(Work::SIGNAL));
    sched::fatal_signal_pending()
}

/// `PR_GET_DUMPABLE`'s value for a process that changed who it acts as (`suid_dumpable`).
pub fn of_privileged() -> u8 {
    SUID_DUMPABLE.load(Relaxed) as u8
}
