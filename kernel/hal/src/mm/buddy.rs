//! The buddy allocator behind the per-CPU frame caches.
//!
//! Free memory is kept in blocks of 2^order frames, aligned to their size, in doubly linked lists through the frame
//! metadata; freeing merges a block with its buddy as far as that is free. Two zones, below and above 4 GiB, so that memory
//! which 32-bit devices can reach is used last. One `IrqLock`: batches of the per-CPU caches keep it cold.
//!
//! Reference: Knuth, TAOCP vol. 1, 2.5; Linux `mm/page_alloc.c`.

use super::frame::{kind, meta};
use crate::addr::PAGE_SHIFT;
use crate::sync::{IrqGuard, IrqLock};
use core::sync::atomic::{AtomicUsize, Ordering};

/// Order of the largest block: 2^15 frames, 128 MiB.
pub(super) const MAX_ORDER: u32 = 15;
/// Frames in a metadata section: all of a section's metadata is mapped, so that a buddy's can always be looked at.
pub(super) const SECTION: u64 = 1 << MAX_ORDER;
const ZONE_BORDER: u64 = (4 << 30) >> PAGE_SHIFT;
/// End of a list. Frame 0 is never managed.
const NIL: u32 = 0;

static FREE: AtomicUsize = AtomicUsize::new(0);
static TOTAL: AtomicUsize = AtomicUsize::new(0);
static BUDDY: IrqLock<Buddy> = IrqLock::new(Buddy { zones: [const { Zone::new() }; 2] });

pub(super) fn lock() -> IrqGuard<'static, Buddy> {
    BUDDY.lock()
}

/// Managed and free frames (without per-CPU caches).
pub(super) fn counts() -> (usize, usize) {
    (TOTAL.load(Ordering::Relaxed), FREE.load(Ordering::Relaxed))
}

#[inline]
pub(super) fn free_estimate() -> usize {
    FREE.load(Ordering::Relaxed)
}

/// Counts frames as managed.
pub(super) fn add_total(n: u64) {
    TOTAL.fetch_add(n as usize, Ordering::Relaxed);
}

struct Zone {
    /// First free block of each order.
    heads: [u32; MAX_ORDER as usize + 1],
    /// Bit n: the list of order n is not empty.
    mask: u32,
}

impl Zone {
    const fn new() -> Self {
        Self { heads: [NIL; MAX_ORDER as usize + 1], mask: 0 }
    }

    fn push(&mut self, pfn: u64, order: u32) {
        let m = meta(pfn);
        let head = self.heads[order as usize];
        m.kind.store(kind::FREE | order << 8, Ordering::Relaxed);
        m.prev.store(NIL, Ordering::Relaxed);
        m.next.store(head, Ordering::Relaxed);
        if head != NIL {
            meta(u64::from(head)).prev.store(pfn as u32, Ordering::Relaxed);
        }
        self.heads[order as usize] = pfn as u32;
        self.mask |= 1 << order;
    }

    fn remove(&mut self, pfn: u64, order: u32) {
        let m = meta(pfn);
        let (next, prev) = (m.next.load(Ordering::Relaxed), m.prev.load(Ordering::Relaxed));
        if prev == NIL {
            self.heads[order as usize] = next;
            if next == NIL {
                self.mask &= !(1 << order);
            }
        } else {
            meta(u64::from(prev)).next.store(next, Ordering::Relaxed);
        }
        if next != NIL {
            meta(u64::from(next)).prev.store(prev, Ordering::Relaxed);
        }
        m.kind.store(kind::USED, Ordering::Relaxed);
        m.next.store(0, Ordering::Relaxed);
    }

    fn alloc(&mut self, order: u32) -> Option<u64> {
        let fit = self.mask >> order;
        if fit == 0 {
            return None;
        }
        let have = order + fit.trailing_zeros();
        let pfn = u64::from(self.heads[have as usize]);
        self.remove(pfn, have);
        self.split(pfn, have, order);
        Some(pfn)
    }

    /// Frees all but the first 2^to frames of a block of order `from`.
    fn split(&mut self, pfn: u64, from: u32, to: u32) {
        for o in (to..from).rev() {
            self.push(pfn + (1 << o), o);
        }
    }
}

/// The free lists.
pub(super) struct Buddy {
    zones: [Zone; 2],
}

impl Buddy {
    /// Free frames.
    pub(super) fn free_frames(&self) -> usize {
        FREE.load(Ordering::Relaxed)
    }

    fn count(&self, by: isize) {
        // Under the lock: load and store instead of a locked add.
        FREE.store(FREE.load(Ordering::Relaxed).wrapping_add_signed(by), Ordering::Relaxed);
    }

    /// A block of 2^order frames; from high memory if possible.
    pub(super) fn alloc(&mut self, order: u32) -> Option<u64> {
        let pfn = self.zones[1].alloc(order).or_else(|| self.zones[0].alloc(order))?;
        self.count(-(1 << order));
        Some(pfn)
    }

    /// A block of 2^order frames that ends at or below frame number `limit`.
    pub(super) fn alloc_below(&mut self, order: u32, limit: u64) -> Option<u64> {
        if limit >= ZONE_BORDER {
            let pfn = self.zones[0].alloc(order);
            if pfn.is_some() || limit == ZONE_BORDER {
                pfn.inspect(|_| self.count(-(1 << order)))
            } else {
                self.search(1, order, limit)
            }
        } else {
            self.search(0, order, limit)
        }
    }

    fn search(&mut self, zone: usize, order: u32, limit: u64) -> Option<u64> {
        let z = &mut self.zones[zone];
        for have in order..=MAX_ORDER {
            let mut at = z.heads[have as usize];
            while at != NIL {
                let pfn = u64::from(at);
                if pfn + (1 << order) <= limit {
                    z.remove(pfn, have);
                    z.split(pfn, have, order);
                    self.count(-(1 << order));
                    return Some(pfn);
                }
                at = meta(pfn).next.load(Ordering::Relaxed);
            }
        }
        None
    }

    /// Gives a block back and merges it with its free neighbours.
    pub(super) fn free(&mut self, mut pfn: u64, mut order: u32) {
        self.count(1 << order);
        let z = &mut self.zones[usize::from(pfn >= ZONE_BORDER)];
        while order < MAX_ORDER {
            // In the same section, so the metadata is mapped.
            let buddy = pfn ^ (1 << order);
            if meta(buddy).kind.load(Ordering::Relaxed) != kind::FREE | order << 8 {
                break;
            }
            z.remove(buddy, order);
            pfn &= !(1 << order);
            order += 1;
        }
        z.push(pfn, order);
    }

    /// Gives `n` frames back, in the largest aligned blocks.
    pub(super) fn free_range(&mut self, mut pfn: u64, mut n: u64) {
        while n > 0 {
            let order = pfn.trailing_zeros().min(n.ilog2()).min(MAX_ORDER);
            meta(pfn).kind.store(kind::USED, Ordering::Relaxed);
            self.free(pfn, order);
            pfn += 1 << order;
            n -= 1 << order;
        }
    }
}
