//! The reverse map of an object: where its pages are mapped, so that truncation, revocation and write-back reach them.
//!
//! One entry per VMA that shows the object. Entries live in a slab whose slot the VMA remembers, so that adding and removing
//! one costs no search (fork and exit do it for every file mapping). The lock of the reverse map is held while pages are
//! unmapped through it: a VMA leaves the map (under its mm lock) before its range can be used for anything else.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ursa_hal::VirtAddr;
use ursa_hal::mm::UserSpace;

use super::account::PageKind;
use super::edit::Tally;
use super::object::Reach;
use super::space::Counters;
use super::vma::{PAGE, Vma};
use super::{AddressSpace, VmFlags};

/// Where a VMA's entry is in its object's slab.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot(u32);

/// One VMA as its object sees it.
pub(super) struct Entry {
    pub space: Arc<UserSpace>,
    pub start: u64,
    pub pages: u64,
    pub pgoff: u64,
    pub shared: bool,
    pub counters: Arc<Counters>,
    kind: PageKind,
}

impl Entry {
    /// Takes pages of the object out of this mapping, or everything. Returns when no CPU can reach them.
    pub fn unmap(&self, start: VirtAddr, end: VirtAddr, reach: Reach) {
        let mut tally = Tally::with_kind(self.kind);
        if self.shared || reach == Reach::AlsoPrivateCopies {
            self.space.unmap(start..end, |_, frame, _| tally.see(frame.tag()));
        } else {
            // Private copies stay: find the stretches that show the object and take only those.
            let mut stretch: Option<(u64, u64)> = None;
            let mut stretches = Vec::new();
            self.space.harvest(start..end, false, false, |va, frame, _, _| {
                if frame.tag() != super::TAG_OBJECT {
                    return;
                }
                let va = va.as_u64();
                match &mut stretch {
                    Some((_, stop)) if *stop == va => *stop += PAGE,
                    _ => stretches.extend(stretch.replace((va, va + PAGE))),
                }
            });
            for (from, to) in stretches.into_iter().chain(stretch) {
                self.space.unmap(VirtAddr::new(from)..VirtAddr::new(to), |_, frame, _| tally.see(frame.tag()));
            }
        }
        tally.book(&self.counters, -1);
    }

    /// The part of the mapping that shows pages `first..end` of the object, as an address range.
    pub fn range(&self, first: u64, end: u64) -> Option<(VirtAddr, VirtAddr)> {
        let from = first.max(self.pgoff);
        let to = end.min(self.pgoff.saturating_add(self.pages));
        (from < to).then(|| {
            let at = |index: u64| VirtAddr::new(self.start + (index - self.pgoff) * PAGE);
            (at(from), at(to))
        })
    }
}

/// The slab of entries.
#[derive(Default)]
pub(super) struct ReverseMap {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// Shared mappings that may be written now or after `mprotect`; what `F_SEAL_WRITE` has to wait for.
    pub writable: usize,
}

impl ReverseMap {
    pub const fn new() -> ReverseMap {
        ReverseMap { entries: Vec::new(), free: Vec::new(), writable: 0 }
    }

    fn insert(&mut self, entry: Entry) -> Slot {
        match self.free.pop() {
            Some(slot) => {
                self.entries[slot as usize] = Some(entry);
                Slot(slot)
            }
            None => {
                self.entries.push(Some(entry));
                Slot(self.entries.len() as u32 - 1)
            }
        }
    }

    fn remove(&mut self, slot: Slot) {
        self.entries[slot.0 as usize] = None;
        self.free.push(slot.0);
        if self.free.len() == self.entries.len() {
            self.entries.clear();
            self.free.clear();
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().flatten()
    }

    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }
}

fn is_writable(vma: &Vma) -> bool {
    vma.flags.contains(VmFlags::SHARED | VmFlags::MAYWRITE)
}

/// Enters a VMA that is about to join `mm` in its object's reverse map.
pub(super) fn attach(mm: &AddressSpace, vma: &mut Vma) {
    let Some(backing) = &vma.backing else { return };
    if !backing.object.is_revocable() {
        return;
    }
    let entry = Entry {
        space: mm.space.clone(),
        start: vma.start,
        pages: vma.pages(),
        pgoff: vma.pgoff,
        shared: vma.flags.contains(VmFlags::SHARED),
        counters: mm.counters.clone(),
        kind: backing.object.page_kind(),
    };
    let mut map = backing.object.rmap.lock();
    map.writable += usize::from(is_writable(vma));
    vma.rmap = Some(map.insert(entry));
}

/// Brings the entry up to date after the range of `vma` changed.
pub(super) fn update(vma: &Vma) {
    let (Some(backing), Some(slot)) = (&vma.backing, vma.rmap) else { return };
    let mut map = backing.object.rmap.lock();
    if let Some(entry) = &mut map.entries[slot.0 as usize] {
        entry.start = vma.start;
        entry.pages = vma.pages();
        entry.pgoff = vma.pgoff;
    }
}

/// Takes a VMA that leaves its address space out of the reverse map.
pub(super) fn detach(vma: &mut Vma) {
    let (Some(backing), Some(slot)) = (&vma.backing, vma.rmap.take()) else { return };
    let mut map = backing.object.rmap.lock();
    map.writable -= usize::from(is_writable(vma));
    map.remove(slot);
}
