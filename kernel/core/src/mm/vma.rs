//! Virtual memory areas: [`Vma`], and [`VmaSet`], the ordered set of them that an address space has.
//!
//! A VMA is a page-aligned range with one set of [`VmFlags`] and one [`Backing`] (none: private anonymous memory). The set is
//! a B-tree by start address: find by address, split at an address, merge neighbours that continue each other. Gaps are
//! searched from the top as Linux does; a remembered lower bound makes the usual search (allocate below the last mapping)
//! independent of the number of VMAs.
//!
//! Nothing here takes a lock; the set lives inside the mm lock of [`super::AddressSpace`].

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ursa_hal::PAGE_SIZE;

use super::object::MemoryObject;
use super::{FileRef, VmFlags};

/// `PAGE_SIZE` in the width of an address.
pub(super) const PAGE: u64 = PAGE_SIZE as u64;
/// How far below a stack other mappings are kept (`stack_guard_gap`, 256 pages).
pub(super) const STACK_GUARD_GAP: u64 = 256 * PAGE;

/// What a mapping shows: an object, and the open file it came from, if any.
pub struct Backing {
    /// The pages.
    pub object: Arc<MemoryObject>,
    /// For `/proc/PID/maps`, and to keep the file open while it is mapped.
    pub file: Option<FileRef>,
}

/// One mapping.
pub struct Vma {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Rights and behaviour.
    pub flags: VmFlags,
    /// None for private anonymous memory.
    pub backing: Option<Arc<Backing>>,
    /// The file that private anonymous memory is a mapping of: `/dev/zero`.
    pub zeroes_of: Option<FileRef>,
    /// With a backing or a file: the page of it at `start`. Without: `start` in pages when it was first mapped, so that
    /// neighbours that were never one mapping do not merge after `mremap`, as on Linux.
    pub pgoff: u64,
    /// `PR_SET_VMA_ANON_NAME`, or the name of a special mapping (`[vdso]`).
    pub name: Option<Arc<str>>,
    /// The entry in the object's reverse map.
    pub(super) rmap: Option<super::rmap::Slot>,
    /// Whether private pages may exist that differ from the backing (Linux's `anon_vma`); only grows.
    pub(super) has_anon: AtomicBool,
    /// The page that a sequential toucher would fault on next, with the window to map ahead then in the low bits.
    pub(super) ahead: AtomicU64,
}

impl Vma {
    /// A mapping of `start..end`; `pgoff` as in [`Vma::pgoff`].
    pub fn new(start: u64, end: u64, flags: VmFlags, backing: Option<Arc<Backing>>, pgoff: u64) -> Vma {
        Vma {
            start,
            end,
            flags,
            backing,
            zeroes_of: None,
            pgoff,
            name: None,
            rmap: None,
            has_anon: AtomicBool::new(false),
            ahead: AtomicU64::new(0),
        }
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Never true of a VMA in a set.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Pages.
    pub fn pages(&self) -> u64 {
        self.len() / PAGE
    }

    /// Whether `va` lies inside.
    pub fn contains(&self, va: u64) -> bool {
        self.start <= va && va < self.end
    }

    /// Private anonymous memory.
    pub fn is_anonymous(&self) -> bool {
        self.backing.is_none()
    }

    /// Whether there may be pages that only this mapping has: anonymous memory, or copies on write.
    pub fn may_have_private_pages(&self) -> bool {
        self.is_anonymous() || self.has_anon.load(Ordering::Relaxed)
    }

    /// The object, if there is one.
    pub fn object(&self) -> Option<&Arc<MemoryObject>> {
        self.backing.as_ref().map(|b| &b.object)
    }

    /// The file, if there is one.
    pub fn file(&self) -> Option<&FileRef> {
        match &self.backing {
            Some(backing) => backing.file.as_ref(),
            None => self.zeroes_of.as_ref(),
        }
    }

    /// The page index of `va` in the object.
    pub fn index_of(&self, va: u64) -> u64 {
        self.pgoff + (va - self.start) / PAGE
    }

    /// A copy for a child's address space or for another place; it has no reverse map entry yet.
    pub(super) fn duplicate(&self) -> Vma {
        Vma {
            start: self.start,
            end: self.end,
            flags: self.flags,
            backing: self.backing.clone(),
            zeroes_of: self.zeroes_of.clone(),
            pgoff: self.pgoff,
            name: self.name.clone(),
            rmap: None,
            has_anon: AtomicBool::new(self.has_anon.load(Ordering::Relaxed)),
            ahead: AtomicU64::new(0),
        }
    }

    /// Whether `next` continues this one in every respect, so that the two can be one.
    pub(super) fn continued_by(&self, next: &Vma) -> bool {
        self.end == next.start
            && self.flags == next.flags
            && !self.flags.intersects(VmFlags::DEVICE | VmFlags::SPECIAL)
            && self.pgoff + self.pages() == next.pgoff
            && match (&self.backing, &next.backing) {
                (None, None) => is_same(self.zeroes_of.as_ref(), next.zeroes_of.as_ref()),
                (Some(a), Some(b)) => {
                    Arc::ptr_eq(a, b) || Arc::ptr_eq(&a.object, &b.object) && is_same(a.file.as_ref(), b.file.as_ref())
                }
                _ => false,
            }
            && self.name == next.name
    }
}

/// Whether both are one open file, or none.
fn is_same(a: Option<&FileRef>, b: Option<&FileRef>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        _ => false,
    }
}

/// The VMAs of an address space, by start address; they do not overlap.
#[derive(Default)]
pub struct VmaSet {
    map: BTreeMap<u64, Vma>,
    scanned: Option<Scanned>,
}

/// What the last search from the top learnt: between `to` and `high` no gap is larger than `hole`.
#[derive(Clone, Copy)]
struct Scanned {
    high: u64,
    to: u64,
    hole: u64,
}

impl VmaSet {
    /// How many.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// All, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Vma> {
        self.map.values()
    }

    /// All, ascending, by value.
    pub(super) fn into_vmas(self) -> impl Iterator<Item = Vma> {
        self.map.into_values()
    }

    /// The VMA that contains `va`.
    #[inline]
    pub fn find(&self, va: u64) -> Option<&Vma> {
        self.map.range(..=va).next_back().map(|(_, vma)| vma).filter(|vma| va < vma.end)
    }

    /// The VMA that contains `va`, to change what is not its range.
    pub fn find_mut(&mut self, va: u64) -> Option<&mut Vma> {
        self.map.range_mut(..=va).next_back().map(|(_, vma)| vma).filter(|vma| va < vma.end)
    }

    /// The first VMA that ends above `va`: the one that contains it, or the next.
    pub fn find_at_or_above(&self, va: u64) -> Option<&Vma> {
        self.find(va).or_else(|| self.map.range(va..).next().map(|(_, vma)| vma))
    }

    /// The last VMA that ends at or below `va`.
    pub fn find_below(&self, va: u64) -> Option<&Vma> {
        self.map.range(..va).next_back().map(|(_, vma)| vma).filter(|vma| vma.end <= va)
    }

    /// The VMAs that overlap `start..end`, ascending.
    pub fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = &Vma> {
        let first = self.find(start).map_or(start, |vma| vma.start);
        self.map.range(first..end.max(first)).map(|(_, vma)| vma)
    }

    /// As [`VmaSet::overlapping`], to change what is not the range.
    pub fn overlapping_mut(&mut self, start: u64, end: u64) -> impl Iterator<Item = &mut Vma> {
        let first = self.find(start).map_or(start, |vma| vma.start);
        self.map.range_mut(first..end.max(first)).map(|(_, vma)| vma)
    }

    /// Whether `start..end` is wholly mapped.
    pub fn covers(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        for vma in self.overlapping(start, end) {
            if vma.start > at {
                return false;
            }
            at = vma.end;
        }
        at >= end
    }

    /// Adds a VMA to a free range.
    pub fn insert(&mut self, vma: Vma) {
        debug_assert!(self.overlapping(vma.start, vma.end).next().is_none());
        self.map.insert(vma.start, vma);
    }

    /// Takes one out by its start.
    pub fn remove(&mut self, start: u64) -> Option<Vma> {
        let vma = self.map.remove(&start)?;
        self.freed(vma.start, vma.end);
        Some(vma)
    }

    /// Tells the gap search that `start..end` became free.
    fn freed(&mut self, start: u64, end: u64) {
        if self.scanned.is_some_and(|s| end >= s.to) {
            // The gap may join its neighbours: measure the whole of it.
            let low = self.find_below(start).map_or(0, |vma| vma.end);
            let high = self.map.range(end..).next().map_or(u64::MAX, |(&s, _)| s);
            if let Some(scanned) = &mut self.scanned {
                scanned.hole = scanned.hole.max(high - low);
            }
        }
    }

    /// Moves the end of the VMA at `start` (stack, heap and mapping growth, trimming).
    pub fn set_end(&mut self, start: u64, end: u64) {
        if let Some(vma) = self.map.get_mut(&start) {
            let old = vma.end;
            vma.end = end;
            if end < old {
                self.freed(end, old);
            }
        }
    }

    /// Moves the start of the VMA at `old`; its pages keep their place.
    pub fn set_start(&mut self, old: u64, start: u64) {
        if let Some(mut vma) = self.map.remove(&old) {
            if start < old {
                vma.pgoff = vma.pgoff.wrapping_sub((old - start) / PAGE);
            } else {
                vma.pgoff += (start - old) / PAGE;
            }
            vma.start = start;
            self.map.insert(start, vma);
            if start > old {
                self.freed(old, start);
            }
        }
    }

    /// Makes `at` a boundary: splits the VMA that has it inside. Returns the start of the upper part if it did.
    pub fn split(&mut self, at: u64) -> Option<u64> {
        let vma = self.find_mut(at).filter(|vma| vma.start < at)?;
        let mut upper = vma.duplicate();
        upper.pgoff = vma.index_of(at);
        upper.start = at;
        vma.end = at;
        self.map.insert(at, upper);
        Some(at)
    }

    /// If the VMA that starts at `at` continues the one before it, makes them one. Returns the VMA that was swallowed.
    pub fn merge_at(&mut self, at: u64) -> Option<Vma> {
        let next = self.map.get(&at)?;
        let previous = self.find_below(at).filter(|vma| vma.continued_by(next))?.start;
        let swallowed = self.map.remove(&at)?;
        let previous = self.map.get_mut(&previous)?;
        previous.end = swallowed.end;
        previous.has_anon.fetch_or(swallowed.has_anon.load(Ordering::Relaxed), Ordering::Relaxed);
        Some(swallowed)
    }

    /// The highest free `len` bytes within `low..high`, aligned to pages, leaving the guard gap below stacks.
    pub fn gap_top_down(&mut self, len: u64, low: u64, high: u64) -> Option<u64> {
        let mut top = high;
        let mut hole = 0;
        if let Some(known) = self.scanned.filter(|s| s.high == high && len > s.hole && s.to > low) {
            top = known.to;
            hole = known.hole;
        }
        let mut found = None;
        // A VMA that contains `top`, or a stack just above it whose guard gap reaches below.
        if let Some(above) = self.find_at_or_above(top) {
            top = top.min(guarded_start(above));
        }
        for (_, vma) in self.map.range(..top).rev() {
            let floor = vma.end.max(low);
            if floor < top {
                if top - floor >= len {
                    found = Some(top - len);
                    break;
                }
                hole = hole.max(top - floor);
            }
            top = top.min(guarded_start(vma));
            if top <= low {
                break;
            }
        }
        if found.is_none()
            && top > low
            && top - low >= len
            && self.map.range(..top).next_back().is_none_or(|(_, v)| v.end <= low)
        {
            found = Some(top - len);
        }
        if let Some(at) = found {
            self.scanned = Some(Scanned { high, to: at + len, hole });
        }
        found
    }

    /// The lowest free `len` bytes within `low..high`.
    pub fn gap_bottom_up(&self, len: u64, low: u64, high: u64) -> Option<u64> {
        let mut at = self.find(low).map_or(low, |vma| vma.end);
        for (_, vma) in self.map.range(at..) {
            if guarded_start(vma).checked_sub(at).is_some_and(|gap| gap >= len) {
                break;
            }
            at = at.max(vma.end);
        }
        (at.checked_add(len)? <= high).then_some(at)
    }

    /// Whether `start..end` is free and keeps the guard gap below a stack.
    pub fn is_free_guarded(&self, start: u64, end: u64) -> bool {
        self.find_at_or_above(start).is_none_or(|vma| guarded_start(vma) >= end)
    }
}

/// Where other mappings have to end below `vma`.
fn guarded_start(vma: &Vma) -> u64 {
    if vma.flags.contains(VmFlags::GROWSDOWN) { vma.start.saturating_sub(STACK_GUARD_GAP) } else { vma.start }
}
