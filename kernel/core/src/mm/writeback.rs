//! When dirty page cache is written: limits, and the tasks that write.
//!
//! Above the background limit the writers' tasks are woken, one for each *backing* ([`Pager::backing`](super::Pager::backing)): a
//! file server that answers nothing holds up its own task and nobody else's. Above the hard limit whoever dirties pages
//! writes its own object before it goes on ([`balance`]), so nobody waits for another's server either. What has been dirty
//! for [`AGE_MAX`] is written in any case. An allocation that finds nothing clean to reclaim waits for these tasks
//! ([`wait_for_progress`]) before a process has to end.
//!
//! A server may itself need memory to take what is written. Processes that the OOM killer never takes may use the kernel's
//! reserve for their pages (`reclaim::may_use_reserve`): the boot set is of this kind.
//!
//! References: Linux `mm/page-writeback.c`, `fs/fs-writeback.c`; `Documentation/admin-guide/sysctl/vm.rst`.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use ursa_hal::sync::{Once, SpinLock};
use ursa_hal::time::monotonic_ns;

use super::{MemoryObject, reclaim};
use crate::time::Deadline;
use crate::wait::WaitQueue;
use crate::{Errno, Result, sched};

/// Percent of memory (`dirty_background_ratio`, `dirty_ratio`).
const BACKGROUND_PERCENT: usize = 10;
const HARD_PERCENT: usize = 20;
/// How long a page stays dirty (`dirty_expire_centisecs`), in nanoseconds.
const AGE_MAX: u64 = 30_000_000_000;
/// How often ages are looked at (`dirty_writeback_centisecs`).
const PERIOD: u64 = 5_000_000_000;
/// How long an allocation waits for a page to become clean before it is believed that none will.
const PATIENCE: u64 = 1_000_000_000;

/// Dirty pages of all objects.
static DIRTY: AtomicI64 = AtomicI64::new(0);
/// Pages that were written, ever.
static WRITTEN: AtomicU64 = AtomicU64::new(0);
static WANTED: AtomicBool = AtomicBool::new(false);
static WAKE: WaitQueue = WaitQueue::new();
static PROGRESS: WaitQueue = WaitQueue::new();
/// Backings whose task runs.
static BUSY: SpinLock<BTreeSet<usize>> = SpinLock::new(BTreeSet::new());

/// Pages became dirty, or are it no more.
pub(super) fn count(delta: i64) {
    DIRTY.fetch_add(delta, Relaxed);
}

/// Dirty pages.
pub fn dirty_pages() -> u64 {
    DIRTY.load(Relaxed).max(0) as u64
}

/// Pages at which writing begins, and at which writers do it themselves.
fn limits() -> (u64, u64) {
    static LIMITS: Once<(u64, u64)> = Once::new();
    *LIMITS.call_once(|| {
        let total = ursa_hal::mm::stats().total;
        ((total * BACKGROUND_PERCENT / 100) as u64, (total * HARD_PERCENT / 100) as u64)
    })
}

/// `pages` have been written.
pub(super) fn progress(pages: u64) {
    WRITTEN.fetch_add(pages, SeqCst);
    PROGRESS.wake_all();
}

/// Starts the task that has dirty pages written.
///
/// # Errors
/// `ENOMEM`.
pub fn start() -> Result {
    sched::spawn_kernel("writeback", run).map(drop).ok_or(Errno::ENOMEM)
}

/// May be called with spin locks held.
fn wake() {
    WANTED.store(true, SeqCst);
    WAKE.wake_all();
}

/// A page of some object became dirty. Never waits.
pub(super) fn dirtied() {
    if dirty_pages() > limits().0 {
        wake();
    }
}

/// Called by who has dirtied pages of `object`, without locks: above the hard limit it writes them.
pub fn balance(object: &MemoryObject) {
    if dirty_pages() > limits().1 {
        // The pages stay dirty after an error; fsync tells.
        let _ = object.sync(0, u64::MAX);
    }
}

/// Waits until a page has been written, if any may be. False: none will be.
pub(super) fn wait_for_progress() -> bool {
    if dirty_pages() == 0 {
        return false;
    }
    let before = WRITTEN.load(SeqCst);
    wake();
    let deadline = Deadline::monotonic(monotonic_ns() + PATIENCE);
    let moved = || (WRITTEN.load(SeqCst) != before).then_some(());
    PROGRESS.wait_killable_until(Some(deadline), moved).is_ok()
}

/// The task that finds out what is to be written, and has it done.
fn run() {
    loop {
        let deadline = Deadline::monotonic(monotonic_ns() + PERIOD);
        // Either end is a reason to look.
        let _ = WAKE.wait_killable_until(Some(deadline), || WANTED.swap(false, SeqCst).then_some(()));
        let (over, now) = (dirty_pages() > limits().0, monotonic_ns());
        let mut work: BTreeMap<usize, Vec<Arc<MemoryObject>>> = BTreeMap::new();
        for object in reclaim::caches() {
            let since = object.dirty_since();
            if let (Some(backing), Some(since)) = (object.backing(), since)
                && (over || ursa_hal::mm::low() || now.saturating_sub(since) > AGE_MAX)
            {
                work.entry(backing).or_default().push(object);
            }
        }
        for (backing, objects) in work {
            if !BUSY.lock().insert(backing) {
                continue;
            }
            let started = sched::spawn_kernel("flush", move || {
                for object in objects {
                    let _ = object.sync(0, u64::MAX);
                }
                BUSY.lock().remove(&backing);
            });
            if started.is_none() {
                BUSY.lock().remove(&backing);
            }
        }
    }
}
