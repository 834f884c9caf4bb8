//! Who uses how much memory, and how much may be promised: [`Charge`], page counts, the commit limit.
//!
//! A [`Charge`] counts the pages that someone answers for: the shmem of a process (the OOM killer adds it to what the
//! process maps, so that a process cannot hide behind a memfd), or a tmpfs mount (with a limit). The commit limit is Linux's
//! `vm.overcommit_memory`: 0 refuses only what could never fit, 1 nothing, 2 keeps the sum below a limit.

use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::{Errno, Result};

/// A count of pages with an optional limit.
#[derive(Debug)]
pub struct Charge {
    pages: AtomicU64,
    limit: AtomicU64,
}

impl Default for Charge {
    fn default() -> Charge {
        Charge::with_limit(u64::MAX)
    }
}

impl Charge {
    /// A charge that refuses more than `limit` pages.
    pub const fn with_limit(limit: u64) -> Charge {
        Charge { pages: AtomicU64::new(0), limit: AtomicU64::new(limit) }
    }

    /// Pages charged now.
    pub fn pages(&self) -> u64 {
        self.pages.load(Relaxed)
    }

    /// The limit.
    pub fn limit(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    /// Changes the limit (remounting a tmpfs); what is charged already stays.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Relaxed);
    }

    /// Adds without looking at the limit.
    pub fn add(&self, count: u64) {
        self.pages.fetch_add(count, Relaxed);
    }

    /// Adds unless that exceeds the limit.
    pub fn try_add(&self, count: u64) -> bool {
        let limit = self.limit();
        self.pages.fetch_update(Relaxed, Relaxed, |old| old.checked_add(count).filter(|&new| new <= limit)).is_ok()
    }

    /// Gives back.
    pub fn sub(&self, count: u64) {
        self.pages.fetch_sub(count, Relaxed);
    }
}

/// What a resident page is, as `/proc` counts it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageKind {
    /// Private anonymous.
    Anon,
    /// Page cache of a file with a pager, or a dma-buf.
    File,
    /// Shmem: tmpfs, memfd, shared anonymous.
    Shmem,
}

static FILE_PAGES: AtomicI64 = AtomicI64::new(0);
static SHMEM_PAGES: AtomicI64 = AtomicI64::new(0);

/// Counts pages of objects, system-wide.
pub(super) fn add_pages(kind: PageKind, count: i64) {
    match kind {
        PageKind::Anon => {}
        PageKind::File => _ = FILE_PAGES.fetch_add(count, Relaxed),
        PageKind::Shmem => _ = SHMEM_PAGES.fetch_add(count, Relaxed),
    }
}

/// Pages in caches of files (`Cached` of `/proc/meminfo` is this plus [`shmem_pages`]).
pub fn file_pages() -> u64 {
    FILE_PAGES.load(Relaxed).max(0) as u64
}

/// Pages of shmem (`Shmem` of `/proc/meminfo`).
pub fn shmem_pages() -> u64 {
    SHMEM_PAGES.load(Relaxed).max(0) as u64
}

/// `vm.overcommit_memory`: 0 heuristic, 1 always, 2 never.
pub static OVERCOMMIT: AtomicU32 = AtomicU32::new(0);
/// `vm.overcommit_ratio`, in percent of memory, for mode 2.
pub static OVERCOMMIT_RATIO: AtomicU32 = AtomicU32::new(50);

static COMMITTED: AtomicI64 = AtomicI64::new(0);

/// Pages promised (`Committed_AS`).
pub fn committed_pages() -> u64 {
    COMMITTED.load(Relaxed).max(0) as u64
}

/// The most that mode 2 promises (`CommitLimit`), in pages.
pub fn commit_limit() -> u64 {
    ursa_hal::mm::stats().total as u64 * u64::from(OVERCOMMIT_RATIO.load(Relaxed)) / 100
}

/// Promises `pages`, or `ENOMEM`.
pub(super) fn commit(pages: u64) -> Result {
    let refuse = match OVERCOMMIT.load(Relaxed) {
        1 => false,
        0 => pages > ursa_hal::mm::stats().total as u64,
        _ => committed_pages() + pages > commit_limit(),
    };
    if refuse {
        return Err(Errno::ENOMEM);
    }
    COMMITTED.fetch_add(pages as i64, Relaxed);
    Ok(())
}

/// Takes a promise back.
pub(super) fn uncommit(pages: u64) {
    if pages != 0 {
        COMMITTED.fetch_sub(pages as i64, Relaxed);
    }
}
