//! Changing the set of VMAs under the exclusive mm lock: splitting, merging, removing, with the reverse maps kept in step.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ursa_hal::VirtAddr;

use super::account::{self, PageKind};
use super::space::{AddressSpace, Inner};
use super::vma::{Backing, Vma};
use super::{FileRef, VmFlags, rmap};
use crate::{Errno, Result};

/// The most VMAs of one address space (`vm.max_map_count`).
pub const MAX_MAP_COUNT: usize = 65530;

/// What removed mappings referred to. To be dropped without the mm lock: the last reference to a file runs its release, which
/// takes inode locks.
#[derive(Default)]
#[must_use = "drop it after the mm lock"]
pub(super) struct Removed(Vec<Arc<Backing>>, Vec<FileRef>);

impl AddressSpace {
    /// Adds a VMA to a free range and counts it; merges it with what it continues.
    pub(super) fn link(&self, inner: &mut Inner, mut vma: Vma) {
        if vma.rmap.is_none() {
            rmap::attach(self, &mut vma);
        }
        inner.count(&vma, vma.pages(), 1);
        let (start, end) = (vma.start, vma.end);
        inner.vmas.insert(vma);
        self.merge(inner, end);
        self.merge(inner, start);
    }

    /// Joins the VMAs on both sides of `at` if one continues the other.
    pub(super) fn merge(&self, inner: &mut Inner, at: u64) {
        if let Some(mut swallowed) = inner.vmas.merge_at(at) {
            rmap::detach(&mut swallowed);
            if let Some(vma) = inner.vmas.find(swallowed.start) {
                rmap::update(vma);
            }
        }
    }

    /// Makes `at` a boundary between VMAs.
    pub(super) fn split(&self, inner: &mut Inner, at: u64) {
        if inner.vmas.split(at).is_some() {
            if let Some(lower) = inner.vmas.find_below(at) {
                rmap::update(lower);
            }
            if let Some(upper) = inner.vmas.find_mut(at) {
                rmap::attach(self, upper);
            }
        }
    }

    /// Makes both ends of the range boundaries. `ENOMEM` if that makes too many VMAs.
    pub(super) fn isolate(&self, inner: &mut Inner, start: u64, end: u64) -> Result {
        let inside = |at: u64| inner.vmas.find(at).is_some_and(|vma| vma.start < at);
        let more = usize::from(inside(start)) + usize::from(inside(end));
        if more > 0 && inner.vmas.len() + more > MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        self.split(inner, start);
        self.split(inner, end);
        Ok(())
    }

    /// Changes flags of everything mapped in the range: `f` says what a VMA's flags become. Splits at the ends, keeps the
    /// totals right, merges what became equal. Page tables are the caller's.
    pub(super) fn change_flags(
        &self,
        inner: &mut Inner,
        start: u64,
        end: u64,
        mut f: impl FnMut(&Vma) -> VmFlags,
    ) -> Result {
        self.isolate(inner, start, end)?;
        let starts: Vec<u64> = inner.vmas.overlapping(start, end).map(|vma| vma.start).collect();
        for &at in &starts {
            let Some(vma) = inner.vmas.find(at) else { continue };
            let (old, new) = (vma.flags, f(vma));
            if old == new {
                continue;
            }
            let pages = vma.pages();
            // `count` looks at the flags alone: a stand-in avoids borrowing the set twice.
            let mut stand_in = Vma::new(0, 0, old, None, 0);
            inner.count(&stand_in, pages, -1);
            stand_in.flags = new;
            inner.count(&stand_in, pages, 1);
            if let Some(vma) = inner.vmas.find_mut(at) {
                vma.flags = new;
            }
        }
        self.merge(inner, end);
        for &at in starts.iter().rev() {
            self.merge(inner, at);
        }
        Ok(())
    }

    /// Removes everything from a range, pages included.
    pub(super) fn remove_range(&self, inner: &mut Inner, start: u64, end: u64, removed: &mut Removed) -> Result {
        if inner.vmas.overlapping(start, end).next().is_none() {
            return Ok(());
        }
        self.isolate(inner, start, end)?;
        loop {
            let first = inner.vmas.overlapping(start, end).next().map(|vma| vma.start);
            let Some(mut vma) = first.and_then(|at| inner.vmas.remove(at)) else { break };
            self.unmap_pages(&vma, vma.start, vma.end);
            rmap::detach(&mut vma);
            inner.count(&vma, vma.pages(), -1);
            if vma.flags.contains(VmFlags::ACCOUNT) {
                account::uncommit(vma.pages());
            }
            removed.0.extend(vma.backing.take());
            removed.1.extend(vma.zeroes_of.take());
        }
        Ok(())
    }

    /// Takes the pages of part of a VMA out of the page tables and the counters.
    pub(super) fn unmap_pages(&self, vma: &Vma, start: u64, end: u64) {
        let mut tally = Tally::new(vma);
        self.space.unmap(VirtAddr::new(start)..VirtAddr::new(end), |_, frame, _| tally.see(frame.tag()));
        tally.book(&self.counters, -1);
    }
}

/// Sorts the pages that one walk over a VMA meets into kinds.
pub(super) struct Tally {
    object: PageKind,
    anon: i64,
    of_object: i64,
}

impl Tally {
    pub fn new(vma: &Vma) -> Tally {
        Tally { object: vma.object().map_or(PageKind::Anon, |o| o.page_kind()), anon: 0, of_object: 0 }
    }

    pub fn with_kind(object: PageKind) -> Tally {
        Tally { object, anon: 0, of_object: 0 }
    }

    #[inline]
    pub fn see(&mut self, tag: u32) {
        match tag {
            super::TAG_ANON => self.anon += 1,
            super::TAG_OBJECT => self.of_object += 1,
            _ => {}
        }
    }

    pub fn book(self, counters: &super::space::Counters, sign: i64) {
        if self.anon != 0 {
            counters.add(PageKind::Anon, sign * self.anon);
        }
        if self.of_object != 0 {
            counters.add(self.object, sign * self.of_object);
        }
    }
}
