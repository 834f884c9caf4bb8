//! Page-table frames, kept clear.
//!
//! A table that leaves a space is empty: each CPU keeps some, so that a new one needs no clearing. Top-level tables keep the kernel's
//! half, which never changes. (Linux called these quicklists.) The lists are guarded like the frame cache, by `alloc_busy`.

use super::copy;
use super::frame::{Frame, meta_at};
use super::kernel::copy_top;
use crate::addr::{PAGE_SHIFT, PhysAddr};
use crate::percpu;
use core::sync::atomic::{Ordering, compiler_fence};

const TABLES: usize = 32;
const ROOTS: usize = 8;

struct List<const N: usize> {
    n: usize,
    pfns: [u32; N],
}

impl<const N: usize> List<N> {
    const fn new() -> Self {
        Self { n: 0, pfns: [0; N] }
    }
    #[inline(always)]
    fn pop(&mut self) -> Option<PhysAddr> {
        let i = self.n.checked_sub(1)?;
        self.n = i;
        Some(PhysAddr(u64::from(self.pfns[i & (N - 1)]) << PAGE_SHIFT))
    }
    #[inline(always)]
    fn push(&mut self, table: PhysAddr) -> bool {
        if self.n >= N {
            return false;
        }
        self.pfns[self.n & (N - 1)] = (table.0 >> PAGE_SHIFT) as u32;
        self.n += 1;
        true
    }
}

/// One CPU's clear tables.
pub(crate) struct TableCache {
    tables: List<TABLES>,
    roots: List<ROOTS>,
}

impl TableCache {
    pub(crate) const fn new() -> Self {
        Self { tables: List::new(), roots: List::new() }
    }
}

#[inline(always)]
fn with_cache<R>(f: impl FnOnce(&mut TableCache) -> R) -> Option<R> {
    let l = percpu::local();
    if l.alloc_busy.get() {
        return None;
    }
    l.alloc_busy.set(true);
    compiler_fence(Ordering::SeqCst);
    // SAFETY: this CPU's own; no preemption, and `alloc_busy` keeps interrupt handlers and nested calls away.
    let r = f(unsafe { &mut *l.page_tables.get() });
    compiler_fence(Ordering::SeqCst);
    l.alloc_busy.set(false);
    Some(r)
}

#[cold]
#[inline(never)]
fn fresh() -> Option<PhysAddr> {
    let f = Frame::alloc()?;
    // SAFETY: 4 KiB of RAM in the direct map, ours alone.
    unsafe { copy::zero_page(f.ptr()) };
    let table = f.into_raw();
    meta_at(table.0).next.store(0, Ordering::Relaxed);
    Some(table)
}

/// A clear table.
#[inline]
pub(super) fn new_table() -> Option<PhysAddr> {
    with_cache(|c| c.tables.pop()).flatten().or_else(fresh)
}

/// A clear top-level table with the kernel's half.
pub(super) fn new_root() -> Option<PhysAddr> {
    if let Some(root) = with_cache(|c| c.roots.pop()).flatten() {
        return Some(root);
    }
    let root = new_table()?;
    copy_top(root);
    Some(root)
}

#[cold]
#[inline(never)]
fn release(table: PhysAddr) {
    // SAFETY: the reference that `fresh` gave up; the table is in no space any more.
    drop(unsafe { Frame::from_raw(table) });
}

/// Takes a clear table back.
#[inline]
pub(super) fn free_table(table: PhysAddr) {
    if with_cache(|c| c.tables.push(table)) != Some(true) {
        release(table);
    }
}

/// Takes a top-level table with a clear user half back.
pub(super) fn free_root(table: PhysAddr) {
    if with_cache(|c| c.roots.push(table)) != Some(true) {
        release(table);
    }
}
