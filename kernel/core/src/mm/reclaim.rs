//! Getting memory back: clean page cache first, then the OOM killer.
//!
//! [`alloc()`] and [`alloc_zeroed`] are what allocations that may sleep use. A fault that finds no frame calls [`make_room`]
//! without locks and starts over. The frame allocator keeps a reserve that only the kernel's own structures may use, so that the
//! kernel makes progress while programs wait.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ursa_hal::mm::Frame;
use ursa_hal::sync::SpinLock;

use super::MemoryObject;
use crate::{Errno, Result};

/// Pages that one pass tries to free.
const BATCH: usize = 256;

/// Every pager-backed object that lives, by number.
static CACHES: SpinLock<BTreeMap<u64, Weak<MemoryObject>>> = SpinLock::new(BTreeMap::new());
/// The object where the next pass starts: passes go round.
static HAND: AtomicU64 = AtomicU64::new(0);

/// Makes an object a candidate for reclaim.
pub(super) fn register(object: &Arc<MemoryObject>) {
    CACHES.lock().insert(object.id(), Arc::downgrade(object));
}

/// A pager-backed object goes.
pub(super) fn unregister(id: u64) {
    CACHES.lock().remove(&id);
}

/// Whether the running thread's pages may come from the kernel's reserve: others may wait for it to write their pages.
fn may_use_reserve() -> bool {
    crate::process::try_current().is_some_and(|thread| thread.vm().oom_score_adj() == super::oom::EXEMPT)
}

/// A frame with unspecified contents, if there is one. Never sleeps.
pub(super) fn try_alloc() -> Option<Frame> {
    Frame::alloc().or_else(|| if may_use_reserve() { Frame::alloc_kernel() } else { None })
}

/// Every pager-backed object that lives.
pub(super) fn caches() -> Vec<Arc<MemoryObject>> {
    CACHES.lock().values().filter_map(Weak::upgrade).collect()
}

/// A frame with unspecified contents. May sleep, reclaim, and end a process.
pub fn alloc() -> Result<Frame> {
    loop {
        match try_alloc() {
            Some(frame) => return Ok(frame),
            None => make_room()?,
        }
    }
}

/// A frame of zeroes. May sleep, reclaim, and end a process.
pub fn alloc_zeroed() -> Result<Frame> {
    let frame = alloc()?;
    frame.zero();
    Ok(frame)
}

/// Frees memory, or has a process end that holds some, and waits for it.
///
/// # Errors
/// `ENOMEM` if the caller is the one to end, or nothing can be had.
pub(super) fn make_room() -> Result {
    if reclaim_caches(BATCH) > 0 || super::writeback::wait_for_progress() {
        return Ok(());
    }
    super::oom::out_of_memory()
}

/// Frees up to `target` clean pages of the page cache.
pub fn reclaim_caches(target: usize) -> usize {
    let mut freed = 0;
    let start = HAND.load(Relaxed);
    let objects: Vec<Arc<MemoryObject>> = {
        let caches = CACHES.lock();
        let (after, before) = (caches.range(start..), caches.range(..start));
        after.chain(before).filter_map(|(_, weak)| weak.upgrade()).take(64).collect()
    };
    for object in &objects {
        if freed >= target {
            break;
        }
        freed += object.reclaim(target - freed);
        HAND.store(object.id() + 1, Relaxed);
    }
    freed
}

/// Frees all clean page cache that nobody maps or uses (`drop_caches`).
pub fn drop_caches() {
    for object in caches() {
        object.reclaim(usize::MAX);
        crate::sched::cond_resched();
    }
}

/// Writes all dirty page cache back (`sync(2)`).
///
/// # Errors
/// The first error of a pager; the others are still written.
pub fn sync_all() -> Result {
    let objects = caches();
    let mut result = Ok(());
    for object in objects {
        if let Err(error) = object.sync(0, u64::MAX) {
            result = result.and(Err(error));
        }
    }
    result.map_err(|error: Errno| error)
}
