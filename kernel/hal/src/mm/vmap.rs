//! The vmap area: frames and device memory shown at contiguous kernel addresses, with a guard page before each mapping.
//!
//! Unmapping leaves stale TLB entries behind; the address range goes to a list of dirty ranges and is reused only
//! after a flush on all CPUs, which happens when enough has gathered. Frames may be freed at once: nobody may use the old
//! address any more, so a stale entry is never used.

use super::frame::Frame;
use super::pte::CacheMode;
use super::{kernel, tlb};
use crate::addr::{PAGE_SIZE, PhysAddr, VMAP, VMAP_SIZE, VirtAddr};
use crate::sync::{IrqLock, irqs_enabled};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Dirty pages that start a flush.
const DIRTY_LIMIT: u64 = 8192;

struct Area {
    /// Free ranges: start to length in pages, never adjacent.
    free: BTreeMap<u64, u64>,
    /// Unmapped, perhaps still in a TLB.
    /// A tree, not a vector: its nodes are small, so inserting never needs the vmap area itself.
    dirty: BTreeMap<u64, u64>,
    dirty_pages: u64,
    /// Addresses from here on were never used.
    fresh: u64,
}

static AREA: IrqLock<Area> =
    IrqLock::new(Area { free: BTreeMap::new(), dirty: BTreeMap::new(), dirty_pages: 0, fresh: VMAP + (1 << 30) });

impl Area {
    fn take(&mut self, pages: u64) -> Option<u64> {
        let found = self.free.iter().find(|(_, n)| **n >= pages).map(|(s, n)| (*s, *n));
        if let Some((start, n)) = found {
            self.free.remove(&start);
            if n > pages {
                self.free.insert(start + pages * PAGE_SIZE as u64, n - pages);
            }
            return Some(start);
        }
        let end = self.fresh.checked_add(pages.checked_mul(PAGE_SIZE as u64)?)?;
        if end > VMAP + VMAP_SIZE {
            return None;
        }
        let start = self.fresh;
        self.fresh = end;
        Some(start)
    }

    fn give(&mut self, start: u64, pages: u64) {
        let (mut start, mut pages) = (start, pages);
        if let Some((&s, &n)) = self.free.range(..start).next_back()
            && s + n * PAGE_SIZE as u64 == start
        {
            self.free.remove(&s);
            start = s;
            pages += n;
        }
        let end = start + pages * PAGE_SIZE as u64;
        if let Some(n) = self.free.remove(&end) {
            pages += n;
        }
        self.free.insert(start, pages);
    }
}

/// Flushes the TLBs and makes dirty ranges free. Must be called with interrupts on.
fn purge() {
    let list = {
        let mut a = AREA.lock();
        a.dirty_pages = 0;
        core::mem::take(&mut a.dirty)
    };
    tlb::flush_kernel();
    let mut a = AREA.lock();
    for (start, pages) in list {
        a.give(start, pages);
    }
}

/// An address range of the vmap area with what is mapped there. Unmapped when dropped; frames are not freed.
pub(crate) struct VmapArea {
    /// The guard page; the mapping begins one page on.
    start: u64,
    pages: u64,
}

impl VmapArea {
    /// Reserves addresses for `pages` pages behind a guard page.
    pub(crate) fn new(pages: usize) -> Option<Self> {
        if irqs_enabled() && AREA.lock().dirty_pages > DIRTY_LIMIT {
            purge();
        }
        let pages = pages as u64;
        let start = AREA.lock().take(pages.checked_add(1)?)?;
        Some(Self { start, pages })
    }
    /// Takes over an area whose owner forgot it.
    ///
    /// # Safety
    /// `base` and `pages` are those of an area that was forgotten and not taken over yet.
    pub(crate) unsafe fn from_raw(base: u64, pages: usize) -> Self {
        Self { start: base - PAGE_SIZE as u64, pages: pages as u64 }
    }
    /// First mapped byte.
    pub(crate) fn base(&self) -> u64 {
        self.start + PAGE_SIZE as u64
    }
    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.pages as usize * PAGE_SIZE
    }
    /// Shows `phys` as page `i`.
    pub(crate) fn set(&self, i: usize, phys: PhysAddr, write: bool, cache: CacheMode) -> bool {
        assert!((i as u64) < self.pages);
        kernel::map_page(self.base() + (i * PAGE_SIZE) as u64, phys, write, cache)
    }
    /// Takes page `i` out; the caller owns what was mapped.
    pub(crate) fn clear(&self, i: usize) -> Option<PhysAddr> {
        kernel::unmap_page(self.base() + (i * PAGE_SIZE) as u64)
    }
}

impl Drop for VmapArea {
    fn drop(&mut self) {
        for i in 0..self.pages as usize {
            self.clear(i);
        }
        let mut a = AREA.lock();
        a.dirty_pages += self.pages + 1;
        a.dirty.insert(self.start, self.pages + 1);
    }
}

/// Maps fresh frames for a kernel stack.
pub(crate) fn map_stack(pages: usize) -> Option<VmapArea> {
    let area = VmapArea::new(pages)?;
    for i in 0..pages {
        let ok = match Frame::alloc_kernel() {
            Some(f) => {
                let phys = f.into_raw();
                let ok = area.set(i, phys, true, CacheMode::WriteBack);
                if !ok {
                    // SAFETY: the reference given up just above; the frame was not mapped.
                    drop(unsafe { Frame::from_raw(phys) });
                }
                ok
            }
            None => false,
        };
        if !ok {
            free_frames(&area);
            return None;
        }
    }
    Some(area)
}

/// Unmaps all pages of `area` and drops the frame reference that each holds.
pub(crate) fn free_frames(area: &VmapArea) {
    for i in 0..area.len() / PAGE_SIZE {
        if let Some(phys) = area.clear(i) {
            // SAFETY: mapped with an owned reference by `map_stack` or the heap; `clear` returns each page once.
            drop(unsafe { Frame::from_raw(phys) });
        }
    }
}

/// Frames shown at contiguous kernel addresses. As untyped as the frames themselves.
pub struct KernelMapping {
    area: VmapArea,
    frames: Vec<Frame>,
}

/// Maps `frames` one behind the other. `None` when memory is short.
pub fn vmap(frames: &[Frame]) -> Option<KernelMapping> {
    let area = VmapArea::new(frames.len())?;
    for (i, f) in frames.iter().enumerate() {
        if !area.set(i, f.phys(), true, CacheMode::WriteBack) {
            return None;
        }
    }
    Some(KernelMapping { area, frames: frames.to_vec() })
}

impl KernelMapping {
    /// Bytes.
    #[allow(clippy::len_without_is_empty, reason = "a mapping of nothing is of no use")]
    pub fn len(&self) -> usize {
        self.area.len()
    }
    /// Where it is.
    pub fn addr(&self) -> VirtAddr {
        VirtAddr(self.area.base())
    }
    /// What is mapped.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }
    #[track_caller]
    fn at(&self, off: usize, len: usize) -> *mut u8 {
        assert!(off <= self.len() && len <= self.len() - off, "access outside of a mapping");
        (self.area.base() + off as u64) as *mut u8
    }
    /// Copies out. Panics when the range leaves the mapping.
    #[track_caller]
    pub fn read(&self, off: usize, buf: &mut [u8]) {
        // SAFETY: inside the mapping, whose frames are held.
        unsafe { super::copy::copy(buf.as_mut_ptr(), self.at(off, buf.len()), buf.len()) };
    }
    /// Copies in. Panics when the range leaves the mapping.
    #[track_caller]
    pub fn write(&self, off: usize, data: &[u8]) {
        // SAFETY: inside the mapping, whose frames are held.
        unsafe { super::copy::copy(self.at(off, data.len()), data.as_ptr(), data.len()) };
    }
}
