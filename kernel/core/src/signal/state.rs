//! The signal state of threads and processes.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use linux_uapi::signal::{NSIG, SIG_DFL, SIG_IGN, SigAction, SigAltStack, SigInfo, SigSet};
use ursa_hal::sync::{IrqLock, SpinLock};

use super::SS_DISABLE;
use super::job::Job;
use super::pending::{Pending, Queued};
use crate::Result;
use crate::process::Thread;
use crate::ptrace::Tracee;
use crate::syscall::{Cx, SysRet};
use crate::time::ProcessTimers;
use crate::wait::WaitQueue;

/// How a call goes on after a stop or an ignored signal, through restart_syscall(2).
pub type RestartBlock = Box<dyn FnOnce(&mut Cx<'_>) -> Result<SysRet> + Send>;

/// Signal state of one thread.
pub struct ThreadSignals {
    /// Signals held back. Only the thread itself changes it, or its tracer while it is stopped.
    blocked: AtomicU64,
    /// What rt_sigtimedwait(2) waits for: senders wake the thread for these although they are blocked.
    pub(super) awaited: AtomicU64,
    /// The mask to restore after a handler of rt_sigsuspend(2) and its kin, while `Work::RESTORE_MASK` is set.
    pub(super) saved_mask: AtomicU64,
    pub(super) pending: IrqLock<Pending>,
    alt_stack: SpinLock<SigAltStack>,
    restart: SpinLock<Option<RestartBlock>>,
    /// What the tracer set and sees.
    pub ptrace: Tracee,
}

const DISABLED_STACK: SigAltStack = SigAltStack { ss_sp: 0, ss_flags: SS_DISABLE, pad: 0, ss_size: 0 };

impl ThreadSignals {
    /// The state of a first thread: nothing blocked.
    pub fn new() -> Self {
        ThreadSignals::with_mask(SigSet::EMPTY, DISABLED_STACK)
    }

    fn with_mask(blocked: SigSet, alt_stack: SigAltStack) -> Self {
        ThreadSignals {
            blocked: AtomicU64::new(blocked.0),
            awaited: AtomicU64::new(0),
            saved_mask: AtomicU64::new(0),
            pending: IrqLock::new(Pending::default()),
            alt_stack: SpinLock::new(alt_stack),
            restart: SpinLock::new(None),
            ptrace: Tracee::default(),
        }
    }

    /// What a child of clone(2) starts with: the mask, and the alternate stack unless it is to be dropped (the child shares
    /// memory, and not as vfork does).
    pub fn for_child(&self, drop_alt_stack: bool) -> Self {
        let alt_stack = if drop_alt_stack { DISABLED_STACK } else { self.alt_stack() };
        ThreadSignals::with_mask(self.blocked(), alt_stack)
    }

    /// execve(2): no alternate stack, no restart; mask and pending signals stay.
    pub fn reset_on_exec(&self) {
        self.set_alt_stack(DISABLED_STACK);
        drop(self.restart.lock().take());
    }

    /// The blocked signals.
    pub fn blocked(&self) -> SigSet {
        SigSet(self.blocked.load(Ordering::SeqCst))
    }

    pub(super) fn store_blocked(&self, set: SigSet) {
        self.blocked.store(set.difference(SigSet::UNBLOCKABLE).0, Ordering::SeqCst);
    }

    /// The thread's own pending signals.
    pub fn pending(&self) -> SigSet {
        self.pending.lock().set()
    }

    /// The signal at a place of the thread's own queue, which stays there (`PTRACE_PEEKSIGINFO`).
    pub(crate) fn peek(&self, index: usize) -> Option<SigInfo> {
        self.pending.lock().peek(index)
    }

    /// The alternate signal stack.
    pub fn alt_stack(&self) -> SigAltStack {
        *self.alt_stack.lock()
    }

    pub(super) fn set_alt_stack(&self, stack: SigAltStack) {
        *self.alt_stack.lock() = stack;
    }

    pub(super) fn disable_alt_stack(&self) {
        self.set_alt_stack(DISABLED_STACK);
    }

    /// A call that returns `ERESTART_RESTARTBLOCK` leaves here how it goes on.
    pub fn set_restart(&self, block: RestartBlock) {
        let former = self.restart.lock().replace(block);
        drop(former);
    }

    pub(super) fn take_restart(&self) -> Option<RestartBlock> {
        self.restart.lock().take()
    }
}

impl Default for ThreadSignals {
    fn default() -> Self {
        ThreadSignals::new()
    }
}

/// The actions of all signals: shared by the threads of a process, and by processes that clone(2) made with `CLONE_SIGHAND`.
pub struct SigActions(IrqLock<[SigAction; NSIG]>);

impl SigActions {
    fn new() -> Self {
        SigActions(IrqLock::new([SigAction::default(); NSIG]))
    }

    /// The action of a valid signal number.
    pub fn get(&self, signo: u32) -> SigAction {
        self.0.lock()[signo as usize - 1]
    }

    pub(super) fn replace(&self, signo: u32, action: SigAction) -> SigAction {
        core::mem::replace(&mut self.0.lock()[signo as usize - 1], action)
    }

    pub(super) fn set_default(&self, signo: u32) {
        self.0.lock()[signo as usize - 1].handler = SIG_DFL;
    }

    /// Has a signal ignored.
    pub(crate) fn ignore(&self, signo: u32) {
        self.0.lock()[signo as usize - 1].handler = SIG_IGN;
    }

    fn duplicate(&self) -> Self {
        SigActions(IrqLock::new(*self.0.lock()))
    }

    /// Every caught signal back to the default (`ignored_too`: ignored ones as well), as execve(2) does.
    fn reset(&self, ignored_too: bool) {
        for action in self.0.lock().iter_mut() {
            let handler = if action.handler == SIG_IGN && !ignored_too { SIG_IGN } else { SIG_DFL };
            *action = SigAction { handler, ..SigAction::default() };
        }
    }

    /// The ignored and the caught signals, for `/proc/PID/status`.
    pub fn ignored_and_caught(&self) -> (SigSet, SigSet) {
        let (mut ignored, mut caught) = (SigSet::EMPTY, SigSet::EMPTY);
        for (signo, action) in (1..).zip(self.0.lock().iter()) {
            match action.handler {
                SIG_DFL => {}
                SIG_IGN => ignored.insert(signo),
                _ => caught.insert(signo),
            }
        }
        (ignored, caught)
    }
}

/// Signal state of a process.
pub struct ProcessSignals {
    actions: IrqLock<Arc<SigActions>>,
    pub(super) shared: IrqLock<Pending>,
    pub(super) job: IrqLock<Job>,
    /// A fatal signal that ends the process; its threads look here once they see `Work::KILL`.
    pub(super) fatal: AtomicU32,
    /// The first process of a PID namespace did what it cannot go on after: it is protected from signals no more
    /// (Linux clears `SIGNAL_UNKILLABLE`).
    pub(super) exposed: AtomicBool,
    /// Pollers of signalfds and threads in a signalfd read: woken by every signal to the process or one of its threads.
    pub signalfd_wait: Arc<WaitQueue>,
    /// Interval and POSIX timers.
    pub timers: ProcessTimers,
    /// Threads that this process traces.
    pub(crate) tracees: SpinLock<Vec<Weak<Thread>>>,
}

impl ProcessSignals {
    /// The state of the first process: default actions.
    pub fn new() -> Self {
        ProcessSignals::with_actions(Arc::new(SigActions::new()))
    }

    fn with_actions(actions: Arc<SigActions>) -> Self {
        ProcessSignals {
            actions: IrqLock::new(actions),
            shared: IrqLock::new(Pending::default()),
            job: IrqLock::new(Job::default()),
            fatal: AtomicU32::new(0),
            exposed: AtomicBool::new(false),
            signalfd_wait: Arc::new(WaitQueue::new()),
            timers: ProcessTimers::default(),
            tracees: SpinLock::new(Vec::new()),
        }
    }

    /// A child's state: a copy of the actions, or the same ones with `share` (`CLONE_SIGHAND`), all default with `clear`
    /// (`CLONE_CLEAR_SIGHAND`). Nothing is pending, no timer runs.
    pub fn fork(&self, share: bool, clear: bool) -> Self {
        let actions = self.actions();
        if share {
            return ProcessSignals::with_actions(actions);
        }
        let copy = actions.duplicate();
        if clear {
            copy.reset(false);
        }
        ProcessSignals::with_actions(Arc::new(copy))
    }

    /// execve(2): actions are no longer shared with other processes, caught signals are back to default, POSIX timers go.
    pub fn reset_on_exec(&self) {
        let own = Arc::new(self.actions().duplicate());
        own.reset(false);
        let former = core::mem::replace(&mut *self.actions.lock(), own);
        drop(former);
        self.timers.delete_posix_timers();
    }

    /// The action table.
    pub fn actions(&self) -> Arc<SigActions> {
        self.actions.lock().clone()
    }

    /// The action of a valid signal number.
    pub fn action(&self, signo: u32) -> SigAction {
        self.actions.lock().get(signo)
    }

    /// Signals pending for the process as a whole.
    pub fn pending(&self) -> SigSet {
        self.shared.lock().set()
    }

    /// The signal at a place of the process's queue, which stays there (`PTRACE_PEEKSIGINFO`).
    pub(crate) fn peek(&self, index: usize) -> Option<SigInfo> {
        self.shared.lock().peek(index)
    }

    pub(super) fn flush(&self, signals: SigSet) -> VecDeque<Queued> {
        self.shared.lock().flush(signals)
    }

    /// The fatal signal that ends the process, if one came.
    pub fn fatal_signal(&self) -> Option<u32> {
        Some(self.fatal.load(Ordering::Acquire)).filter(|&signo| signo != 0)
    }
}

impl Default for ProcessSignals {
    fn default() -> Self {
        ProcessSignals::new()
    }
}
