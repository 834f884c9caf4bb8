//! The blocked mask of the running thread.

use core::sync::atomic::Ordering;
use linux_uapi::signal::SigSet;

use crate::process::Thread;
use crate::sched::{self, Work};

/// Sets the blocked mask of the calling thread.
pub fn set_blocked(thread: &Thread, mask: SigSet) {
    let former = thread.signals.blocked();
    thread.signals.store_blocked(mask);
    let newly_blocked = mask.difference(former);
    // A signal to the process that this thread was woken for must not wait until it unblocks: find another thread.
    let orphaned = thread.process().signals.pending().intersection(newly_blocked);
    if !orphaned.is_empty() && thread.process().live_threads() > 1 {
        retarget(thread, orphaned);
    }
    recalculate(thread);
}

/// Sets the blocked mask of a tracee that stands still.
pub(crate) fn set_blocked_of_tracee(thread: &Thread, mask: SigSet) {
    thread.signals.store_blocked(mask);
    super::send::notify_thread(thread);
}

/// Makes other threads look at signals of the process that `thread` no longer takes.
pub(super) fn retarget(thread: &Thread, signals: SigSet) {
    let others = thread.process().threads();
    for signo in signals.iter() {
        let taker = others.iter().find(|other| {
            !core::ptr::eq(&***other, thread) && !other.is_dead() && !other.signals.blocked().contains(signo)
        });
        if let Some(taker) = taker {
            super::send::notify_thread(taker);
        }
    }
}

/// Sets the running thread's signal flag if something is to be delivered.
pub(super) fn recalculate(thread: &Thread) {
    if super::wants_delivery(thread) {
        sched::with_current(|ext| ext.add_work(Work::SIGNAL));
    }
}

/// Installs `mask` until the call that asked for it (rt_sigsuspend, ppoll, pselect, epoll_pwait) is over. If a handler runs before,
/// its return restores the old mask: [`restore_mask_later`].
///
/// `f` runs with the new mask. An error with a restart code or `EINTR` keeps the new mask until signals were delivered.
pub fn with_temporary_mask<R>(
    thread: &Thread,
    mask: Option<SigSet>,
    f: impl FnOnce() -> crate::Result<R>,
) -> crate::Result<R> {
    let Some(mask) = mask else { return f() };
    let former = thread.signals.blocked();
    set_blocked(thread, mask);
    let result = f();
    if result.is_err() && sched::signal_pending() {
        restore_mask_later(thread, former);
    } else {
        set_blocked(thread, former);
    }
    result
}

/// Has `mask` restored once the pending signals are delivered: a handler's frame saves it, or the way back to user mode sets it.
pub fn restore_mask_later(thread: &Thread, mask: SigSet) {
    thread.signals.saved_mask.store(mask.0, Ordering::Relaxed);
    sched::with_current(|ext| ext.add_work(Work::RESTORE_MASK | Work::SIGNAL));
}

/// Takes the mask of [`restore_mask_later`].
pub(super) fn take_saved(thread: &Thread) -> Option<SigSet> {
    let was_set = sched::with_current(|ext| ext.take_work(Work::RESTORE_MASK)).contains(Work::RESTORE_MASK);
    was_set.then(|| SigSet(thread.signals.saved_mask.load(Ordering::Relaxed)))
}
