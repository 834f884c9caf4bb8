//! TLB shoot-down.
//!
//! A CPU that changed page tables in a way that takes rights away tells every other CPU that may hold old entries and waits
//! until each has dropped them; only then may a frame be freed. Each CPU has one request of its own in [`TlbLocal`] (it
//! waits, so one is enough) and a mask of CPUs whose requests it has not served yet.
//!
//! **No deadlock:** the waiter has interrupts on (asserted), so it serves others while it waits, and it also serves in
//! its loop. Spin lock holders have interrupts on; `IrqLock` holders never wait for another CPU and finish.
//!
//! Which CPUs may hold entries of a user space: those in its `cpus` mask, set before CR3 is loaded and cleared after
//! another root is. A CPU that runs a kernel task keeps the last space loaded and is told like any other.

use super::kernel;
use crate::addr::PAGE_SIZE;
use crate::percpu::{self, CpuSet};
use crate::smp::{self, Ipi};
use crate::sync::{IrqsOff, irqs_enabled};
use core::arch::asm;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicU64, Ordering, fence};

/// Ranges longer than this many pages flush everything instead of page by page (Linux's default, 33).
const SINGLE_LIMIT: u64 = 33;
/// `start` of a request for everything, kernel entries included.
const ALL: u64 = u64::MAX;

/// A CPU's side of shoot-downs.
pub(crate) struct TlbLocal {
    /// This CPU's request: first byte (or [`ALL`]) and end.
    start: AtomicU64,
    end: AtomicU64,
    /// CPUs that have not served it.
    pending: AtomicU64,
    /// CPUs with a request for this one.
    inbox: AtomicU64,
}

impl TlbLocal {
    pub(crate) const fn new() -> Self {
        Self { start: AtomicU64::new(0), end: AtomicU64::new(0), pending: AtomicU64::new(0), inbox: AtomicU64::new(0) }
    }
}

/// Drops user entries of `[start, end)` on this CPU.
#[inline]
fn flush_local(start: u64, end: u64) {
    if start == ALL {
        kernel::flush_all_local();
    } else if end - start <= SINGLE_LIMIT * PAGE_SIZE as u64 {
        let mut va = start;
        while va < end {
            // SAFETY: only drops a TLB entry.
            unsafe { asm!("invlpg [{}]", in(reg) va, options(nostack, preserves_flags)) };
            va += PAGE_SIZE as u64;
        }
    } else {
        // SAFETY: loads the same root again; global entries stay.
        unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags)) };
    }
}

/// Serves what other CPUs asked of this one. Called by the IPI's handler.
pub fn handle_ipi() {
    let _off = IrqsOff::new();
    let me = percpu::local();
    let mut from = me.tlb.inbox.swap(0, Ordering::AcqRel);
    while from != 0 {
        let cpu = from.trailing_zeros() as usize;
        from &= from - 1;
        if let Some(l) = percpu::local_of(cpu) {
            flush_local(l.tlb.start.load(Ordering::Acquire), l.tlb.end.load(Ordering::Relaxed));
            l.tlb.pending.fetch_and(!(1 << me.cpu_id.get()), Ordering::AcqRel);
        }
    }
}

/// Tells the CPUs in `targets` (this one left out) and waits for them.
#[cold]
fn shoot(targets: CpuSet, start: u64, end: u64) {
    assert!(irqs_enabled(), "TLB shoot-down with interrupts off");
    let me = percpu::local();
    let targets = targets.without(me.cpu_id.get() as usize).and(percpu::online());
    if targets.is_empty() {
        return;
    }
    me.tlb.start.store(start, Ordering::Relaxed);
    me.tlb.end.store(end, Ordering::Relaxed);
    me.tlb.pending.store(targets.bits(), Ordering::Release);
    for cpu in targets.iter() {
        if let Some(l) = percpu::local_of(cpu) {
            l.tlb.inbox.fetch_or(1 << me.cpu_id.get(), Ordering::AcqRel);
        }
    }
    smp::send_ipi(targets, Ipi::TlbFlush);
    while me.tlb.pending.load(Ordering::Acquire) != 0 {
        if me.tlb.inbox.load(Ordering::Relaxed) != 0 {
            handle_ipi();
        }
        spin_loop();
    }
}

/// Drops entries of `[start, end)` of the space that the CPUs in `cpus` may run. The tables were changed before.
#[inline]
pub(super) fn flush_user(cpus: &AtomicU64, start: u64, end: u64) {
    // The table change must be visible before the mask is read: a CPU that sets its bit later sees the new tables.
    fence(Ordering::SeqCst);
    let mask = cpus.load(Ordering::Relaxed);
    if mask == 0 {
        return;
    }
    let me = 1 << percpu::cpu_id();
    if mask & me != 0 {
        flush_local(start, end);
    }
    if mask & !me != 0 {
        shoot(CpuSet::from_bits(mask), start, end);
    }
}

/// Drops everything on all CPUs.
pub(super) fn flush_kernel() {
    fence(Ordering::SeqCst);
    kernel::flush_all_local();
    shoot(CpuSet::all(), ALL, ALL);
}
