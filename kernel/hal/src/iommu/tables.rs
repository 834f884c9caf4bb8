//! Page tables of I/O address spaces, in the formats of VT-d's second level and of AMD-Vi.
//!
//! A leaf owns one reference to each frame it maps. What is unmapped goes in two steps, so that no page is freed while a device may
//! still reach it: [`Tables::hide`] makes the leaves not present and keeps their addresses, the caller flushes the IOMMUs, and
//! [`Tables::release`] gives the references up. Neither allocates. Empty tables stay until [`Tables::sweep`] takes them out,
//! which the caller flushes as well.
//!
//! A table's [`Frame::tag`] counts its entries in use.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::addr::{DIRECT_MAP, PAGE_SIZE, PhysAddr};
use crate::mm::{Frame, is_managed};

const ENTRIES: u64 = 512;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PAGE: u64 = PAGE_SIZE as u64;
/// AMD's entries: where the level below stands; may be read, may be written.
const AMD_LEVEL: u32 = 9;
const AMD_RIGHTS: u64 = 3 << 61;
/// Pages of a large leaf.
const LARGE: u64 = ENTRIES;

/// What a device may do with memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// Read.
    pub read: bool,
    /// Write.
    pub write: bool,
}

/// How entries are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// VT-d's second level: bit 0 read, 1 write, 7 large.
    Intel,
    /// AMD's host tables: bit 0 present, 9 to 11 the level of the table below (0: a leaf), 61 read, 62 write.
    Amd,
}

impl Format {
    /// The entry for a table of `level`.
    fn table(self, at: u64, level: u32) -> u64 {
        match self {
            Format::Intel => at | 3,
            Format::Amd => at | 1 | u64::from(level) << AMD_LEVEL | AMD_RIGHTS,
        }
    }
    fn leaf(self, at: u64, level: u32, rights: Rights) -> u64 {
        let (read, write) = (u64::from(rights.read), u64::from(rights.write));
        match self {
            Format::Intel => at | read | write << 1 | if level > 1 { 1 << 7 } else { 0 },
            // Coherent as well (bit 60).
            Format::Amd => at | 1 | 1 << 60 | read << 61 | write << 62,
        }
    }
    fn present(self, entry: u64) -> bool {
        match self {
            Format::Intel => entry & 3 != 0,
            Format::Amd => entry & 1 != 0,
        }
    }
    fn hidden(self, entry: u64) -> u64 {
        match self {
            Format::Intel => entry & !3,
            // Without its rights: QEMU takes a leaf's word for them, present or not.
            Format::Amd => entry & !(1 | AMD_RIGHTS),
        }
    }
    /// Whether an entry of `level` that is not 0 maps memory, present or hidden, rather than a table.
    fn is_leaf(self, entry: u64, level: u32) -> bool {
        level == 1
            || match self {
                Format::Intel => entry & 1 << 7 != 0,
                Format::Amd => entry >> AMD_LEVEL & 7 == 0,
            }
    }
}

/// How tables look on this machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub format: Format,
    /// Levels of tables.
    pub levels: u32,
    /// The second level can map 2 MiB.
    pub large: bool,
    /// The IOMMU reads tables through the CPU's caches.
    pub coherent: bool,
}

/// A tree of tables.
pub(super) struct Tables {
    shape: Shape,
    /// Address of the top table, once there is one.
    root: Option<Frame>,
    /// Tables without entries.
    empty: usize,
}

/// The entry `index` of the table at `table`.
fn slot(table: u64, index: u64) -> &'static AtomicU64 {
    debug_assert!(index < ENTRIES);
    // SAFETY: callers pass addresses of tables of their own tree, which are frames that they hold, in the direct map. The hardware
    // reads them, nobody else writes; entries are atomics everywhere. The reference is not kept beyond the tree's lock.
    unsafe { &*((DIRECT_MAP | table) as *const AtomicU64).add(index as usize) }
}

/// A borrowed handle of the table at `table`, for its tag.
fn with_table<R>(table: u64, f: impl FnOnce(&Frame) -> R) -> R {
    // SAFETY: as for `slot`; the tree holds a reference, which the handle does not give up.
    let frame = core::mem::ManuallyDrop::new(unsafe { Frame::from_raw(PhysAddr(table)) });
    f(&frame)
}

fn used(table: u64) -> u32 {
    with_table(table, Frame::tag)
}

/// Gives up the reference that a leaf had on the frame at `at`, if it is a frame: firmware's memory is none.
fn put(at: u64) {
    if is_managed(PhysAddr(at)) {
        // SAFETY: `map` took the reference over from a `Frame`; each leaf is released once, since `release` clears it.
        drop(unsafe { Frame::from_raw(PhysAddr(at)) });
    }
}

fn index(iova: u64, level: u32) -> u64 {
    iova >> (12 + 9 * (level - 1)) & (ENTRIES - 1)
}

/// What a walk over leaves does with each.
enum Step {
    Hide,
    Release,
}

impl Tables {
    pub(super) fn new(shape: Shape) -> Tables {
        Tables { shape, root: None, empty: 0 }
    }

    fn write(&self, at: &AtomicU64, value: u64) {
        at.store(value, Ordering::Release);
        if !self.shape.coherent {
            super::write_back(core::ptr::from_ref(at).cast(), 8);
        }
    }

    fn new_table(&mut self) -> Option<Frame> {
        let table = Frame::alloc_zeroed()?;
        table.set_tag(0);
        if !self.shape.coherent {
            super::write_back(table.ptr(), PAGE_SIZE);
        }
        self.empty += 1;
        Some(table)
    }

    /// The top table, made now if need be.
    pub(super) fn root(&mut self) -> Option<PhysAddr> {
        if self.root.is_none() {
            self.root = self.new_table();
        }
        self.root.as_ref().map(Frame::phys)
    }

    /// Tables without entries.
    pub(super) fn empty(&self) -> usize {
        self.empty
    }

    fn count_up(&mut self, table: u64) {
        with_table(table, |t| {
            if t.tag() == 0 {
                self.empty -= 1;
            }
            t.set_tag(t.tag() + 1);
        });
    }

    fn count_down(&mut self, table: u64) {
        with_table(table, |t| {
            t.set_tag(t.tag() - 1);
            if t.tag() == 0 {
                self.empty += 1;
            }
        });
    }

    /// The table of `level` for `iova`, made if need be; `None` without memory, or where a large leaf is in the way.
    fn table_for(&mut self, iova: u64, level: u32) -> Option<u64> {
        let mut table = self.root()?.as_u64();
        let mut here = self.shape.levels;
        while here > level {
            let entry = slot(table, index(iova, here));
            let value = entry.load(Ordering::Relaxed);
            table = if value == 0 {
                let below = self.new_table()?.into_raw().as_u64();
                self.count_up(table);
                self.write(entry, self.shape.format.table(below, here - 1));
                below
            } else if self.shape.format.is_leaf(value, here) {
                return None;
            } else {
                value & ADDRESS
            };
            here -= 1;
        }
        Some(table)
    }

    /// Maps `frames` from `iova` on, where nothing is mapped; the leaves take the references over. Large leaves are used where
    /// frames and addresses allow. Returns how many were mapped: fewer without memory for tables, the rest being dropped.
    pub(super) fn map(&mut self, iova: u64, frames: Vec<Frame>, rights: Rights) -> usize {
        let (mut done, total) = (0, frames.len());
        let mut frames = frames.into_iter();
        while done < total {
            let at = iova + done as u64 * PAGE;
            let large = self.shape.large && self.large_run(at, frames.as_slice());
            let level = if large { 2 } else { 1 };
            let Some(table) = self.table_for(at, level) else { break };
            let entry = slot(table, index(at, level));
            if entry.load(Ordering::Relaxed) != 0 {
                break;
            }
            let n = if large { LARGE as usize } else { 1 };
            let mut first = None;
            for frame in frames.by_ref().take(n) {
                let phys = frame.into_raw();
                first.get_or_insert(phys.as_u64());
            }
            self.count_up(table);
            self.write(entry, self.shape.format.leaf(first.unwrap_or(0), level, rights));
            done += n;
        }
        done
    }

    /// Whether a large leaf can map the next frames at `at`.
    fn large_run(&mut self, at: u64, frames: &[Frame]) -> bool {
        let n = LARGE as usize;
        let bytes = LARGE * PAGE;
        if !at.is_multiple_of(bytes) || frames.len() < n || !frames[0].phys().as_u64().is_multiple_of(bytes) {
            return false;
        }
        let first = frames[0].phys().as_u64();
        let run = frames[..n].iter().zip(0..).all(|(f, i)| f.phys().as_u64() == first + i * PAGE);
        // A table that is there, if only empty, is used.
        run && self.table_for(at, 2).is_some_and(|t| slot(t, index(at, 2)).load(Ordering::Relaxed) == 0)
    }

    /// Maps firmware's memory at its own addresses. False without memory for tables.
    pub(super) fn map_firmware(&mut self, start: u64, last: u64) -> bool {
        let rights = Rights { read: true, write: true };
        let mut at = start & !(PAGE - 1);
        while at <= last {
            debug_assert!(!is_managed(PhysAddr(at)));
            let Some(table) = self.table_for(at, 1) else { return false };
            let entry = slot(table, index(at, 1));
            if entry.load(Ordering::Relaxed) == 0 {
                self.count_up(table);
                self.write(entry, self.shape.format.leaf(at, 1, rights));
            }
            at += PAGE;
        }
        true
    }

    /// Makes all leaves from `iova` for `len` bytes not present. Whole leaves only: areas are unmapped as they were mapped.
    pub(super) fn hide(&mut self, iova: u64, len: u64) {
        self.walk(iova, len, &Step::Hide);
    }

    /// Gives up the frames of leaves that were hidden and flushed.
    pub(super) fn release(&mut self, iova: u64, len: u64) {
        self.walk(iova, len, &Step::Release);
    }

    fn walk(&mut self, iova: u64, len: u64, step: &Step) {
        let Some(root) = self.root.as_ref().map(|r| r.phys().as_u64()) else { return };
        let end = iova + len;
        let mut at = iova;
        while at < end {
            let (mut table, mut level) = (root, self.shape.levels);
            let next = loop {
                let entry = slot(table, index(at, level));
                let value = entry.load(Ordering::Relaxed);
                let size = PAGE << (9 * (level - 1));
                let after = (at & !(size - 1)) + size;
                if value == 0 {
                    break after;
                }
                if !self.shape.format.is_leaf(value, level) {
                    table = value & ADDRESS;
                    level -= 1;
                    continue;
                }
                match step {
                    Step::Hide => self.write(entry, self.shape.format.hidden(value)),
                    Step::Release if !self.shape.format.present(value) => {
                        self.write(entry, 0);
                        self.count_down(table);
                        for i in 0..size / PAGE {
                            put((value & ADDRESS) + i * PAGE);
                        }
                    }
                    Step::Release => {}
                }
                break after;
            };
            at = next;
        }
    }

    /// Takes empty tables out of the tree. They may be freed when the IOMMUs have been told.
    pub(super) fn sweep(&mut self) -> Vec<Frame> {
        let mut out = Vec::new();
        if let Some(root) = self.root.as_ref().map(|r| r.phys().as_u64()) {
            self.sweep_below(root, self.shape.levels, &mut out);
        }
        out
    }

    fn sweep_below(&mut self, table: u64, level: u32, out: &mut Vec<Frame>) {
        if level < 2 {
            return;
        }
        for i in 0..ENTRIES {
            let entry = slot(table, i);
            let value = entry.load(Ordering::Relaxed);
            if value == 0 || self.shape.format.is_leaf(value, level) {
                continue;
            }
            let below = value & ADDRESS;
            self.sweep_below(below, level - 1, out);
            // Without room in the list it stays for the next time.
            if used(below) == 0 && out.try_reserve(1).is_ok() {
                self.write(entry, 0);
                self.count_down(table);
                self.empty -= 1;
                // SAFETY: the entry owned the reference, and has just been cleared.
                out.push(unsafe { Frame::from_raw(PhysAddr(below)) });
            }
        }
    }

    fn free(&self, table: u64, level: u32) {
        for i in 0..ENTRIES {
            let value = slot(table, i).load(Ordering::Relaxed);
            if value == 0 {
                continue;
            }
            if self.shape.format.is_leaf(value, level) {
                for i in 0..1 << (9 * (level - 1)) {
                    put((value & ADDRESS) + i * PAGE);
                }
            } else {
                self.free(value & ADDRESS, level - 1);
                // SAFETY: the entry owned the reference; the tree is not used any more.
                drop(unsafe { Frame::from_raw(PhysAddr(value & ADDRESS)) });
            }
        }
    }
}

impl Drop for Tables {
    /// Frees everything: no device uses the tree any more.
    fn drop(&mut self) {
        if let Some(root) = self.root.take() {
            self.free(root.phys().as_u64(), self.shape.levels);
        }
    }
}
