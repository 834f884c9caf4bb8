//! User page tables.
//!
//! A [`UserSpace`] is a four-level table whose lower half maps frames for a program and whose upper half is the
//! kernel's. Leaf entries own one frame reference each, except device pages. One spin lock per space guards the tables;
//! the hardware sets accessed and dirty bits behind its back, so entries of a space that may be running are taken out with
//! atomic exchanges.
//!
//! Table frames keep the number of their used entries in their metadata; an empty table leaves with the pages.
//! Whole empty subtrees are skipped when a range is walked.
//!
//! A *block*, 2 MiB of contiguous frames, may be mapped by one entry of the second level ([`UserSpace::map_block`]). Its leaf table is
//! made and filled all the same and waits, named by the metadata of the block's first frame. Whatever changes an entry in the
//! block first puts the table in the block's place ([`UserSpace::split`]): one store that cannot fail. The two say the same,
//! so a TLB may go on using the large entry until the change is flushed (Intel SDM vol. 3A, 4.10.2.3), and the frames never
//! know how they are mapped. Memory from which programs run is not mapped so: some CPUs cannot bear that change for code.
//!
//! Pages and tables leave only after the TLB flush on every CPU that runs the space ([`super::tlb`]); callbacks for pages
//! that leave run after that, outside the lock.
//!
//! Reference: Intel SDM vol. 3A, 4.5 and 4.10 (paging-structure caches: `INVLPG` and CR3 loads drop them too).

use super::frame::{Frame, FrameRun, free_frame, get_ref, meta, meta_at, put_ref};
use super::kernel::{entry, index};
use super::pte::{A, ADDR, CacheMode, D, DEVICE, P, PS, Prot, RIGHTS, TABLE, W, prot_of, user_bits};
use super::tables::{free_root, free_table, new_root, new_table};
use super::tlb;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PhysAddr, USER_END, VirtAddr};
use crate::percpu;
use crate::sync::{Once, SpinLock, SpinLockGuard};
use alloc::sync::Arc;
use core::mem::MaybeUninit;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

const PAGE: u64 = PAGE_SIZE as u64;
/// Bytes that a leaf table maps.
const LEAF_SPAN: u64 = 512 * PAGE;

/// Bytes in a block.
pub const BLOCK_SIZE: u64 = LEAF_SPAN;
/// Frames in a block.
pub const BLOCK_FRAMES: usize = 512;

/// Blocks that are mapped whole, in all spaces.
static BLOCKS: AtomicUsize = AtomicUsize::new(0);

/// How many blocks are mapped whole, in all spaces.
pub fn mapped_blocks() -> usize {
    BLOCKS.load(Ordering::Relaxed)
}

/// Why a page was not mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// No frame for a page table.
    NoMemory,
    /// Something is mapped there.
    AlreadyMapped,
}

/// What a store to a private mapping needs; see [`UserSpace::write_fault`].
#[derive(Debug)]
pub enum WriteFault {
    /// Nothing is mapped there.
    NotMapped,
    /// The page can be written now.
    Done,
    /// Others hold this page, too: the caller copies it.
    Shared(Frame),
}

/// What is mapped at an address.
#[derive(Debug)]
pub struct Mapping {
    /// A reference to the frame; `None` for device memory.
    pub frame: Option<Frame>,
    /// The physical address of the page.
    pub phys: PhysAddr,
    /// User rights.
    pub prot: Prot,
    /// Cache mode.
    pub cache: CacheMode,
    /// Used since the bit was last cleared.
    pub accessed: bool,
    /// Written since the bit was last cleared.
    pub dirty: bool,
}

/// What an entry of the second level leads to.
enum Below {
    Nothing,
    Leaf(PhysAddr),
    /// A block: the entry and what it says.
    Block(&'static AtomicU64, u64),
}

/// Page tables of a program.
pub struct UserSpace {
    root: PhysAddr,
    lock: SpinLock<()>,
    /// CPUs that may hold TLB entries of this space.
    pub(crate) cpus: AtomicU64,
    /// Table frames, the root included.
    tables: AtomicUsize,
    /// Made for who waits for the end; see [`UserSpace::freed`].
    freed: Once<Arc<AtomicBool>>,
}

/// Pages that a gather list holds without a frame.
const FEW: usize = 8;

/// Pages on their way out: address and entry. The list fills a frame if there is one, else a few slots on the stack.
struct Gather {
    page: Option<Frame>,
    few: [MaybeUninit<(u64, u64)>; FEW],
    n: usize,
    /// First table frame to free, linked through `Meta::prev`.
    tables: u32,
    n_tables: usize,
    /// Range that must be flushed.
    start: u64,
    end: u64,
}

impl Gather {
    #[inline(always)]
    const fn new() -> Self {
        Self { page: None, few: [MaybeUninit::uninit(); FEW], n: 0, tables: 0, n_tables: 0, start: u64::MAX, end: 0 }
    }
    /// Makes room for up to `pages` pages, if there is memory.
    #[inline]
    fn reserve(&mut self, pages: u64) {
        if self.page.is_none() && self.n == 0 && pages > FEW as u64 {
            self.page = Frame::alloc_kernel();
        }
    }
    #[inline]
    fn slots(&mut self) -> &mut [MaybeUninit<(u64, u64)>] {
        match &self.page {
            // SAFETY: the frame is unique and not shown to anybody: 4 KiB of plain memory, aligned, as uninitialised slots.
            // Borrowed from `self`, so there is one reference at a time.
            Some(f) => unsafe { core::slice::from_raw_parts_mut(f.ptr().cast(), PAGE_SIZE / size_of::<(u64, u64)>()) },
            None => &mut self.few,
        }
    }
    #[inline]
    fn is_full(&mut self) -> bool {
        self.n == self.slots().len()
    }
    #[inline]
    fn note(&mut self, start: u64, end: u64) {
        self.start = self.start.min(start);
        self.end = self.end.max(end);
    }
    /// Takes entries `from..to` of `leaf`, which maps from `base` on, as far as there is room. Returns the entry where it stopped.
    #[inline]
    fn take(&mut self, leaf: PhysAddr, base: u64, from: usize, to: usize) -> usize {
        let count = used(leaf);
        let mut left = count.load(Ordering::Relaxed);
        let mut n = self.n;
        let slots = self.slots();
        let mut i = from;
        let (mut first, mut last) = (usize::MAX, 0);
        while i < to && left > 0 {
            let e = entry(leaf, i);
            if e.load(Ordering::Relaxed) != 0 {
                let Some(slot) = slots.get_mut(n) else { break };
                slot.write((base.wrapping_add((i * PAGE_SIZE) as u64), e.swap(0, Ordering::AcqRel)));
                n += 1;
                left -= 1;
                first = first.min(i);
                last = i + 1;
            }
            i += 1;
        }
        self.n = n;
        count.store(left, Ordering::Relaxed);
        if last > 0 {
            self.note(base + (first * PAGE_SIZE) as u64, base + (last * PAGE_SIZE) as u64);
        }
        if left == 0 { to } else { i }
    }
    fn push_table(&mut self, table: PhysAddr, va: u64) {
        meta(table.pfn()).prev.store(self.tables, Ordering::Relaxed);
        self.tables = table.pfn() as u32;
        self.n_tables += 1;
        self.note(va, va + PAGE);
    }
    /// Flushes, frees tables, and hands the pages to `f`.
    #[inline]
    fn finish(&mut self, space: &UserSpace, mut f: impl FnMut(VirtAddr, Frame, bool)) {
        if self.start < self.end {
            tlb::flush_user(&space.cpus, self.start, self.end);
        }
        if self.tables != 0 {
            while self.tables != 0 {
                let pfn = u64::from(self.tables);
                self.tables = meta(pfn).prev.swap(0, Ordering::Relaxed);
                free_table(PhysAddr(pfn << PAGE_SHIFT));
            }
            space.tables.fetch_sub(self.n_tables, Ordering::Relaxed);
        }
        let n = core::mem::take(&mut self.n);
        for slot in &self.slots()[..n] {
            // SAFETY: `take` wrote the first `n` slots.
            let (va, pte) = unsafe { slot.assume_init() };
            if pte & DEVICE == 0 {
                // SAFETY: the entry owned a reference and was taken out of the table.
                let frame = unsafe { Frame::from_raw(PhysAddr(pte & ADDR)) };
                f(VirtAddr(va), frame, pte & D != 0);
            }
        }
        (self.start, self.end, self.n_tables) = (u64::MAX, 0, 0);
    }
}

/// The leaf table that waits for the end of a block.
fn waiting_leaf(block: u64) -> PhysAddr {
    PhysAddr(u64::from(meta_at(block & ADDR).next.load(Ordering::Relaxed)) << PAGE_SHIFT)
}

/// Number of used entries in a table.
#[inline(always)]
fn used(table: PhysAddr) -> &'static core::sync::atomic::AtomicU32 {
    &meta(table.pfn()).next
}

/// Adds to a counter that a lock guards.
#[inline(always)]
fn bump(c: &core::sync::atomic::AtomicU32, by: i32) -> u32 {
    let v = c.load(Ordering::Relaxed).wrapping_add_signed(by);
    c.store(v, Ordering::Relaxed);
    v
}

#[inline(always)]
#[track_caller]
fn check_range(range: &Range<VirtAddr>) {
    let (start, end) = (range.start.0, range.end.0);
    if (start | end) & (PAGE - 1) != 0 || start > end || end > USER_END {
        bad_range(start, end);
    }
}

#[cold]
#[track_caller]
fn bad_range(start: u64, end: u64) -> ! {
    panic!("bad user range {start:#x}..{end:#x}");
}

#[inline]
#[track_caller]
fn check_page(va: VirtAddr) {
    assert!(va.is_page_aligned() && va.0 < USER_END, "bad user page {va:#x}");
}

impl UserSpace {
    /// Empty tables. `None` when memory is short.
    pub fn new() -> Option<Self> {
        let root = new_root()?;
        Some(Self {
            root,
            lock: SpinLock::new(()),
            cpus: AtomicU64::new(0),
            tables: AtomicUsize::new(1),
            freed: Once::new(),
        })
    }

    /// Physical address of the top-level table.
    pub(crate) fn root(&self) -> PhysAddr {
        self.root
    }
    /// Memory taken by the tables, in frames.
    pub fn table_frames(&self) -> usize {
        self.tables.load(Ordering::Relaxed)
    }

    /// Becomes true when the last of its pages and tables is free.
    pub fn freed(&self) -> Arc<AtomicBool> {
        self.freed.call_once(Arc::default).clone()
    }

    /// Runs this space's user half on this CPU from now on; the same as `task::switch_space`.
    pub fn activate(self: &Arc<Self>) {
        crate::task::switch_space(self);
    }

    /// The leaf table for `va`, made if it is not there.
    #[inline(always)]
    fn leaf_or_new(&self, va: u64) -> Option<PhysAddr> {
        self.leaf(va).or_else(|| self.new_leaf(va))
    }

    #[cold]
    #[inline(never)]
    fn new_leaf(&self, va: u64) -> Option<PhysAddr> {
        self.table_or_new(va, 1)
    }

    /// The table of a level for `va`, made with those above it where they are not there. Below level 2 there is no block.
    fn table_or_new(&self, va: u64, level: u32) -> Option<PhysAddr> {
        let mut table = self.root;
        for level in (level + 1..=4).rev() {
            let e = entry(table, index(va, level));
            let v = e.load(Ordering::Relaxed);
            table = if v & P != 0 {
                PhysAddr(v & ADDR)
            } else {
                let t = new_table()?;
                self.tables.fetch_add(1, Ordering::Relaxed);
                e.store(t.0 | TABLE, Ordering::Release);
                bump(used(table), 1);
                t
            };
        }
        Some(table)
    }

    /// What the second level says of `va`.
    #[inline(always)]
    fn walk(&self, va: u64) -> Below {
        // Written out: the compiler keeps a loop rolled.
        let v = entry(self.root, index(va, 4)).load(Ordering::Relaxed);
        if v & P == 0 {
            return Below::Nothing;
        }
        let v = entry(PhysAddr(v & ADDR), index(va, 3)).load(Ordering::Relaxed);
        if v & P == 0 {
            return Below::Nothing;
        }
        let e = entry(PhysAddr(v & ADDR), index(va, 2));
        let v = e.load(Ordering::Relaxed);
        match v & (P | PS) {
            P => Below::Leaf(PhysAddr(v & ADDR)),
            0 => Below::Nothing,
            _ => Below::Block(e, v),
        }
    }

    /// The leaf table for `va`, if it is there: no block any more.
    #[inline(always)]
    fn leaf(&self, va: u64) -> Option<PhysAddr> {
        match self.walk(va) {
            Below::Leaf(leaf) => Some(leaf),
            Below::Nothing => None,
            Below::Block(e, block) => Some(Self::split(e, block)),
        }
    }

    /// Puts the leaf table of a block in its place. The lock is held. Returns the table.
    #[cold]
    #[inline(never)]
    fn split(e: &AtomicU64, block: u64) -> PhysAddr {
        let leaf = waiting_leaf(block);
        // The hardware has nothing to add to the old entry, which has its accessed and dirty bits, so a store will do.
        e.store(leaf.0 | TABLE, Ordering::Release);
        BLOCKS.fetch_sub(1, Ordering::Relaxed);
        leaf
    }

    /// As [`UserSpace::leaf`], for one who only looks: a block stays one.
    fn peek(&self, va: u64) -> Option<PhysAddr> {
        match self.walk(va) {
            Below::Leaf(leaf) => Some(leaf),
            Below::Nothing => None,
            Below::Block(_, block) => Some(waiting_leaf(block)),
        }
    }

    /// The first leaf table that maps anything at or after `va` and before `end`, with the address where to go on.
    #[inline(always)]
    fn next_leaf(&self, va: u64, end: u64) -> Option<(u64, PhysAddr)> {
        if va >= end {
            return None;
        }
        match self.leaf(va) {
            Some(leaf) => Some((va, leaf)),
            None => self.find_leaf(va, end),
        }
    }

    #[cold]
    #[inline(never)]
    fn find_leaf(&self, mut va: u64, end: u64) -> Option<(u64, PhysAddr)> {
        'top: while va < end {
            let mut table = self.root;
            for level in (2..=4).rev() {
                let v = entry(table, index(va, level)).load(Ordering::Relaxed);
                if v & P == 0 {
                    let span = PAGE << (9 * (level - 1));
                    va = (va & !(span - 1)) + span;
                    continue 'top;
                }
                table = if v & PS != 0 { Self::split(entry(table, index(va, level)), v) } else { PhysAddr(v & ADDR) };
            }
            return Some((va, table));
        }
        None
    }

    /// Unlinks the leaf table for `va` if it is empty, and the tables above it that become so.
    fn prune(&self, va: u64, leaf: PhysAddr, gather: &mut Gather) {
        if used(leaf).load(Ordering::Relaxed) != 0 {
            return;
        }
        let mut path = [self.root; 3];
        let mut table = self.root;
        for level in (2..=4).rev() {
            path[4 - level as usize] = table;
            table = PhysAddr(entry(table, index(va, level)).load(Ordering::Relaxed) & ADDR);
        }
        let mut child = leaf;
        for level in 2..=4 {
            let parent = path[4 - level as usize];
            entry(parent, index(va, level)).store(0, Ordering::Release);
            gather.push_table(child, va);
            if bump(used(parent), -1) != 0 || level == 4 {
                return;
            }
            child = parent;
        }
    }

    /// Maps `frame` at `va`.
    #[inline]
    #[track_caller]
    pub fn map(&self, va: VirtAddr, frame: Frame, prot: Prot, cache: CacheMode) -> Result<(), MapError> {
        check_page(va);
        let _guard = self.lock.lock();
        let leaf = self.leaf_or_new(va.0).ok_or(MapError::NoMemory)?;
        let e = entry(leaf, index(va.0, 1));
        if e.load(Ordering::Relaxed) != 0 {
            return Err(MapError::AlreadyMapped);
        }
        e.store(frame.into_raw().0 | user_bits(prot) | cache.bits(), Ordering::Release);
        bump(used(leaf), 1);
        Ok(())
    }

    /// Maps the pages that `pages` yields, with one lock and, for neighbours, one walk. Pages that are mapped already are
    /// skipped. Returns how many were mapped; stops early when there is no memory for a table.
    #[track_caller]
    pub fn map_many(&self, prot: Prot, cache: CacheMode, pages: impl IntoIterator<Item = (VirtAddr, Frame)>) -> usize {
        let bits = user_bits(prot) | cache.bits();
        let _guard = self.lock.lock();
        let mut at: Option<(u64, PhysAddr)> = None;
        let mut mapped = 0;
        for (va, frame) in pages {
            check_page(va);
            let leaf = match at {
                Some((span, leaf)) if span == va.0 / LEAF_SPAN => leaf,
                _ => match self.leaf_or_new(va.0) {
                    Some(l) => l,
                    None => break,
                },
            };
            at = Some((va.0 / LEAF_SPAN, leaf));
            let e = entry(leaf, index(va.0, 1));
            if e.load(Ordering::Relaxed) == 0 {
                e.store(frame.into_raw().0 | bits, Ordering::Release);
                bump(used(leaf), 1);
                mapped += 1;
            }
        }
        mapped
    }

    /// Maps the 512 frames of `run`, which begins at a multiple of [`BLOCK_SIZE`] as `va` does, by one entry. Accesses do not set
    /// accessed and dirty bits of its pages: they count as set. `prot` is readable and not executable.
    ///
    /// # Errors
    /// Nothing is mapped then, and the frames are free.
    #[track_caller]
    pub fn map_block(&self, va: VirtAddr, run: FrameRun, prot: Prot) -> Result<(), MapError> {
        check_page(va);
        let first = run.phys();
        assert!(run.len() == BLOCK_FRAMES && (va.0 | first.0).is_multiple_of(BLOCK_SIZE), "not a block");
        assert!(prot.contains(Prot::R) && !prot.contains(Prot::X), "a block with rights {prot:?}");
        let _guard = self.lock.lock();
        let table = self.table_or_new(va.0, 2).ok_or(MapError::NoMemory)?;
        let e = entry(table, index(va.0, 2));
        if e.load(Ordering::Relaxed) != 0 {
            return Err(MapError::AlreadyMapped);
        }
        let leaf = new_table().ok_or(MapError::NoMemory)?;
        let bits = user_bits(prot) | A | D;
        for (i, frame) in run.into_frames().enumerate() {
            entry(leaf, i).store(frame.into_raw().0 | bits, Ordering::Relaxed);
        }
        used(leaf).store(BLOCK_FRAMES as u32, Ordering::Relaxed);
        meta_at(first.0).next.store(leaf.pfn() as u32, Ordering::Relaxed);
        self.tables.fetch_add(1, Ordering::Relaxed);
        bump(used(table), 1);
        BLOCKS.fetch_add(1, Ordering::Relaxed);
        e.store(first.0 | bits | PS, Ordering::Release);
        Ok(())
    }

    /// Whether nothing is mapped in the block around `va`, so that [`UserSpace::map_block`] may succeed.
    pub fn is_bare(&self, va: VirtAddr) -> bool {
        let _guard = self.lock.lock();
        va.0 < USER_END && matches!(self.walk(va.0), Below::Nothing)
    }

    /// Whether the page at `va` is mapped as part of a block.
    pub fn is_block(&self, va: VirtAddr) -> bool {
        let _guard = self.lock.lock();
        va.0 < USER_END && matches!(self.walk(va.0), Below::Block(..))
    }

    /// Maps a page of device memory, for which no reference is held. Panics for RAM that the kernel manages: that is mapped
    /// as [`Frame`]s.
    #[track_caller]
    pub fn map_phys(&self, va: VirtAddr, phys: PhysAddr, prot: Prot, cache: CacheMode) -> Result<(), MapError> {
        check_page(va);
        assert!(phys.is_page_aligned() && phys.0 & !ADDR == 0 && !super::overlaps_ram(phys, PAGE), "{phys:#x} is RAM");
        let _guard = self.lock.lock();
        let leaf = self.leaf_or_new(va.0).ok_or(MapError::NoMemory)?;
        let e = entry(leaf, index(va.0, 1));
        if e.load(Ordering::Relaxed) != 0 {
            return Err(MapError::AlreadyMapped);
        }
        e.store(phys.0 | DEVICE | user_bits(prot) | cache.bits(), Ordering::Release);
        bump(used(leaf), 1);
        Ok(())
    }

    /// What is mapped at `va`.
    pub fn query(&self, va: VirtAddr) -> Option<Mapping> {
        if va.0 >= USER_END {
            return None;
        }
        let _guard = self.lock.lock();
        let pte = entry(self.peek(va.0)?, index(va.0, 1)).load(Ordering::Relaxed);
        if pte == 0 {
            return None;
        }
        let phys = PhysAddr(pte & ADDR);
        let frame = (pte & DEVICE == 0).then(|| {
            get_ref(phys.0);
            // SAFETY: the entry holds a reference, the lock keeps it there, and one was added.
            unsafe { Frame::from_raw(phys) }
        });
        Some(Mapping {
            frame,
            phys,
            prot: prot_of(pte),
            cache: CacheMode::of(pte),
            accessed: pte & A != 0,
            dirty: pte & D != 0,
        })
    }

    /// Puts `frame` at `va` in place of what is there (copy-on-write break), or maps it if nothing is. The old frame leaves
    /// after the flush.
    #[track_caller]
    pub fn replace(&self, va: VirtAddr, frame: Frame, prot: Prot) -> Result<(), MapError> {
        check_page(va);
        let old = {
            let _guard = self.lock.lock();
            let leaf = self.leaf_or_new(va.0).ok_or(MapError::NoMemory)?;
            let e = entry(leaf, index(va.0, 1));
            let old = e.swap(frame.into_raw().0 | user_bits(prot), Ordering::AcqRel);
            if old == 0 {
                bump(used(leaf), 1);
                return Ok(());
            }
            old
        };
        tlb::flush_user(&self.cpus, va.0, va.0 + PAGE);
        if old & DEVICE == 0 {
            // SAFETY: the entry owned a reference and was taken out of the table; no TLB knows it any more.
            drop(unsafe { Frame::from_raw(PhysAddr(old & ADDR)) });
        }
        Ok(())
    }

    /// Takes all pages in `range` out. `f` gets each frame, after the TLBs have forgotten it, with whether it was written to.
    #[track_caller]
    pub fn unmap(&self, range: Range<VirtAddr>, mut f: impl FnMut(VirtAddr, Frame, bool)) {
        check_range(&range);
        let (mut va, end) = (range.start.0, range.end.0);
        let mut gather = Gather::new();
        while va < end {
            {
                let _guard = self.lock.lock();
                while let Some((at, leaf)) = self.next_leaf(va, end) {
                    gather.reserve((end - at) >> PAGE_SHIFT);
                    let base = at & !(LEAF_SPAN - 1);
                    let stop = if end - base < LEAF_SPAN { index(end, 1) } else { 512 };
                    let reached = gather.take(leaf, base, index(at, 1), stop);
                    self.prune(at, leaf, &mut gather);
                    va = base + (reached * PAGE_SIZE) as u64;
                    if reached < stop {
                        break;
                    }
                }
            }
            let more = gather.is_full();
            gather.finish(self, &mut f);
            if !more {
                return;
            }
        }
    }

    /// Changes rights: `f` gets each mapped page with its present rights and returns the new ones. Device pages are not shown
    /// and keep theirs; use [`UserSpace::protect_all`] where the frames do not matter.
    #[track_caller]
    pub fn protect(&self, range: Range<VirtAddr>, mut f: impl FnMut(VirtAddr, &Frame, Prot) -> Prot) {
        self.change(range, |va, pte| {
            if pte & DEVICE != 0 {
                return prot_of(pte);
            }
            // SAFETY: the entry holds a reference and the lock keeps it; `ManuallyDrop` leaves it with the entry.
            let frame = core::mem::ManuallyDrop::new(unsafe { Frame::from_raw(PhysAddr(pte & ADDR)) });
            f(VirtAddr(va), &frame, prot_of(pte))
        });
    }

    /// Restricts or widens every page in `range`, device pages included, to what `f` makes of its rights.
    #[track_caller]
    pub fn protect_all(&self, range: Range<VirtAddr>, mut f: impl FnMut(Prot) -> Prot) {
        self.change(range, |_, pte| f(prot_of(pte)));
    }

    #[inline]
    #[track_caller]
    fn change(&self, range: Range<VirtAddr>, mut f: impl FnMut(u64, u64) -> Prot) {
        check_range(&range);
        let (mut start, mut last) = (u64::MAX, 0);
        {
            let _guard = self.lock.lock();
            self.for_each(&range, |va, e, pte| {
                let bits = user_bits(f(va, pte));
                if (pte ^ bits) & RIGHTS == 0 {
                    return;
                }
                let mut now = pte;
                loop {
                    // Keep what hardware sets meanwhile.
                    match e.compare_exchange_weak(now, now & !RIGHTS | bits, Ordering::AcqRel, Ordering::Relaxed) {
                        Ok(_) => break,
                        Err(v) => now = v,
                    }
                }
                if pte & P != 0 {
                    start = start.min(va);
                    last = va + PAGE;
                }
            });
        }
        if start < last {
            tlb::flush_user(&self.cpus, start, last);
        }
    }

    /// Widens the rights of one page, if it is still mapped with `frame`. Other CPUs may fault once more and find the new
    /// rights: no shoot-down. False when something else is mapped.
    #[track_caller]
    pub fn widen(&self, va: VirtAddr, frame: &Frame, prot: Prot) -> bool {
        check_page(va);
        let _guard = self.lock.lock();
        let Some(leaf) = self.leaf(va.0) else { return false };
        let e = entry(leaf, index(va.0, 1));
        let bits = user_bits(prot);
        let mut now = e.load(Ordering::Relaxed);
        loop {
            if now == 0 || now & ADDR != frame.phys().0 || now & DEVICE != 0 || !prot.contains(prot_of(now)) {
                return false;
            }
            match e.compare_exchange_weak(now, now & !RIGHTS | bits, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(v) => now = v,
            }
        }
    }

    /// Settles a store to the page at `va` of a private mapping in place, where that is possible: a page that carries `tag` and
    /// that only this entry holds becomes accessible as `prot` says (copy-on-write without a copy). Otherwise says what
    /// the caller has to do. No shoot-down: other CPUs may fault once more and find the new rights.
    #[track_caller]
    pub fn write_fault(&self, va: VirtAddr, tag: u32, prot: Prot) -> WriteFault {
        check_page(va);
        let _guard = self.lock.lock();
        let leaf = match self.walk(va.0) {
            Below::Leaf(leaf) => leaf,
            Below::Nothing => return WriteFault::NotMapped,
            // Another thread was faster.
            Below::Block(_, block) if block & W != 0 => return WriteFault::Done,
            Below::Block(e, block) => Self::split(e, block),
        };
        let e = entry(leaf, index(va.0, 1));
        let mut now = e.load(Ordering::Relaxed);
        if now == 0 {
            return WriteFault::NotMapped;
        }
        if now & (DEVICE | W) != 0 {
            return WriteFault::Done;
        }
        let m = meta((now & ADDR) >> PAGE_SHIFT);
        // One reference is this entry's: nobody can add one, since that takes a reference or this lock.
        if m.refs.load(Ordering::Acquire) != 1 || m.prev.load(Ordering::Relaxed) != tag {
            get_ref(now & ADDR);
            // SAFETY: the entry holds a reference, the lock keeps it there, and one was added.
            return WriteFault::Shared(unsafe { Frame::from_raw(PhysAddr(now & ADDR)) });
        }
        let bits = user_bits(prot);
        while let Err(v) = e.compare_exchange_weak(now, now & !RIGHTS | bits, Ordering::AcqRel, Ordering::Relaxed) {
            now = v;
        }
        WriteFault::Done
    }

    /// Puts `new` at `va` if `old` is still mapped there without the right to write (a copy-on-write break that raced with nobody). The
    /// old frame's reference leaves after the flush. False when something else is there by now; `new` is dropped then.
    #[track_caller]
    pub fn replace_if(&self, va: VirtAddr, old: &Frame, new: Frame, prot: Prot) -> bool {
        check_page(va);
        {
            let _guard = self.lock.lock();
            let Some(leaf) = self.leaf(va.0) else { return false };
            let e = entry(leaf, index(va.0, 1));
            let now = e.load(Ordering::Relaxed);
            if now == 0 || now & (DEVICE | W) != 0 || now & ADDR != old.phys().0 {
                return false;
            }
            // Without the right to write, hardware sets the accessed bit at most; a swap loses nothing that matters.
            e.swap(new.into_raw().0 | user_bits(prot), Ordering::AcqRel);
        }
        tlb::flush_user(&self.cpus, va.0, va.0 + PAGE);
        // SAFETY: the entry owned a reference and was taken out of the table; no TLB knows it any more.
        drop(unsafe { Frame::from_raw(old.phys()) });
        true
    }

    /// Visits used leaf entries. The lock is held.
    #[inline]
    fn for_each(&self, range: &Range<VirtAddr>, mut f: impl FnMut(u64, &'static AtomicU64, u64)) {
        let (mut va, end) = (range.start.0, range.end.0);
        while let Some((at, leaf)) = self.next_leaf(va, end) {
            va = at;
            let stop = end.min((va & !(LEAF_SPAN - 1)) + LEAF_SPAN);
            while va < stop {
                let e = entry(leaf, index(va, 1));
                let pte = e.load(Ordering::Relaxed);
                if pte != 0 {
                    f(va, e, pte);
                }
                va += PAGE;
            }
        }
    }

    /// Shares all pages of `range` with `dst`, which must have nothing mapped there. Unless `share`, both sides lose the right to
    /// write (copy on write). `see` gets the tag of each page's frame. On `NoMemory` `dst` has some of the pages; the caller
    /// throws it away.
    #[track_caller]
    pub fn fork_cow(
        &self,
        dst: &UserSpace,
        range: Range<VirtAddr>,
        share: bool,
        mut see: impl FnMut(u32),
    ) -> Result<(), MapError> {
        check_range(&range);
        assert!(!core::ptr::eq(self, dst));
        let (mut start, mut last) = (u64::MAX, 0);
        let mut result = Ok(());
        {
            let (_a, _b) = lock_two(self, dst);
            // Alone: no other CPU sets accessed or dirty bits while this one is here.
            let alone = self.cpus.load(Ordering::SeqCst) & !(1 << percpu::cpu_id()) == 0;
            let drop_bits = if share { A | D } else { A | D | W };
            let (mut va, end) = (range.start.0, range.end.0);
            'leaves: while let Some((at, leaf)) = self.next_leaf(va, end) {
                va = at;
                let stop = end.min((va & !(LEAF_SPAN - 1)) + LEAF_SPAN);
                let mut left = used(leaf).load(Ordering::Relaxed);
                if left == 0 {
                    va = stop;
                    continue;
                }
                let Some(to) = dst.leaf_or_new(va) else {
                    result = Err(MapError::NoMemory);
                    break;
                };
                let mut copied = 0;
                let base = va & !(LEAF_SPAN - 1);
                let to_index = if stop - base < LEAF_SPAN { index(stop, 1) } else { 512 };
                let mut i = index(va, 1);
                while i < to_index && left > 0 {
                    let e = entry(leaf, i);
                    let pte = e.load(Ordering::Relaxed);
                    if pte != 0 {
                        left -= 1;
                        let d = entry(to, i);
                        if d.load(Ordering::Relaxed) != 0 {
                            result = Err(MapError::AlreadyMapped);
                            bump(used(to), copied);
                            break 'leaves;
                        }
                        if pte & DEVICE == 0 {
                            get_ref(pte & ADDR);
                            see(meta_at(pte & ADDR).prev.load(Ordering::Relaxed));
                        }
                        if !share && pte & W != 0 {
                            if alone {
                                e.store(pte & !W, Ordering::Relaxed);
                            } else {
                                e.fetch_and(!W, Ordering::AcqRel);
                            }
                            let at = base.wrapping_add((i * PAGE_SIZE) as u64);
                            start = start.min(at);
                            last = at.wrapping_add(PAGE);
                        }
                        d.store(pte & !drop_bits, Ordering::Relaxed);
                        copied += 1;
                    }
                    i += 1;
                }
                bump(used(to), copied);
                va = stop;
            }
        }
        if start < last {
            tlb::flush_user(&self.cpus, start, last);
        }
        result
    }

    /// Shows `f` each page of `range` with its accessed and dirty bits, which are then cleared as asked. After it, clean means
    /// clean on every CPU (dirty bits are flushed from TLBs); a cleared accessed bit may be set late.
    #[track_caller]
    pub fn harvest(
        &self,
        range: Range<VirtAddr>,
        clear_accessed: bool,
        clear_dirty: bool,
        mut f: impl FnMut(VirtAddr, &Frame, bool, bool),
    ) {
        check_range(&range);
        let clear = if clear_accessed { A } else { 0 } | if clear_dirty { D } else { 0 };
        let (mut start, mut last) = (u64::MAX, 0);
        {
            let _guard = self.lock.lock();
            self.for_each(&range, |va, e, pte| {
                if pte & DEVICE != 0 {
                    return;
                }
                let pte = if pte & clear != 0 { e.fetch_and(!clear, Ordering::AcqRel) } else { pte };
                if pte & clear & D != 0 {
                    start = start.min(va);
                    last = va + PAGE;
                }
                // SAFETY: as in `protect`.
                let frame = core::mem::ManuallyDrop::new(unsafe { Frame::from_raw(PhysAddr(pte & ADDR)) });
                f(VirtAddr(va), &frame, pte & A != 0, pte & D != 0);
            });
        }
        if start < last {
            tlb::flush_user(&self.cpus, start, last);
        }
    }

    /// Moves the pages of `[old, old+len)` to `[new, new+len)`, which must be empty and must not overlap (mremap). On `NoMemory`
    /// nothing has moved.
    #[track_caller]
    pub fn move_range(&self, old: VirtAddr, new: VirtAddr, len: u64) -> Result<(), MapError> {
        let from = old..VirtAddr(old.0.saturating_add(len));
        let to = new..VirtAddr(new.0.saturating_add(len));
        check_range(&from);
        check_range(&to);
        assert!(from.end <= to.start || to.end <= from.start, "ranges overlap");
        let shift = new.0.wrapping_sub(old.0);
        let mut gather = Gather::new();
        let result = {
            let _guard = self.lock.lock();
            // First the tables, so that the move itself cannot fail.
            let mut result = Ok(());
            let mut last_leaf = u64::MAX;
            self.for_each(&from, |va, _, _| {
                let to = va.wrapping_add(shift);
                if result.is_err() || to / LEAF_SPAN == last_leaf {
                    return;
                }
                last_leaf = to / LEAF_SPAN;
                if self.leaf_or_new(to).is_none() {
                    result = Err(MapError::NoMemory);
                }
            });
            if result.is_ok() {
                self.for_each(&to, |_, _, _| result = Err(MapError::AlreadyMapped));
            }
            if result.is_ok() {
                let mut va = from.start.0;
                while let Some((at, leaf)) = self.next_leaf(va, from.end.0) {
                    va = at;
                    let stop = from.end.0.min((va & !(LEAF_SPAN - 1)) + LEAF_SPAN);
                    while va < stop {
                        let pte = entry(leaf, index(va, 1)).swap(0, Ordering::AcqRel);
                        if pte != 0 {
                            bump(used(leaf), -1);
                            gather.note(va, va + PAGE);
                            let dst = va.wrapping_add(shift);
                            if let Some(l) = self.leaf(dst) {
                                entry(l, index(dst, 1)).store(pte, Ordering::Release);
                                bump(used(l), 1);
                            }
                        }
                        va += PAGE;
                    }
                    va = stop;
                }
                // Only now: a table that lost its pages early may have been the one that others came to since.
                let mut va = from.start.0;
                while let Some((at, leaf)) = self.next_leaf(va, from.end.0) {
                    self.prune(at, leaf, &mut gather);
                    va = (at & !(LEAF_SPAN - 1)) + LEAF_SPAN;
                }
            }
            result
        };
        gather.finish(self, |_, _, _| {});
        result
    }

    /// Number of pages mapped in `range`, device pages included.
    #[track_caller]
    pub fn count(&self, range: Range<VirtAddr>) -> usize {
        check_range(&range);
        let _guard = self.lock.lock();
        let mut n = 0;
        let (mut va, end) = (range.start.0, range.end.0);
        while let Some((at, leaf)) = self.next_leaf(va, end) {
            let next = (at & !(LEAF_SPAN - 1)) + LEAF_SPAN;
            if at.is_multiple_of(LEAF_SPAN) && next <= end {
                n += used(leaf).load(Ordering::Relaxed) as usize;
            } else {
                let mut va = at;
                while va < end.min(next) {
                    n += usize::from(entry(leaf, index(va, 1)).load(Ordering::Relaxed) != 0);
                    va += PAGE;
                }
            }
            va = next;
        }
        n
    }
}

fn lock_two<'a>(a: &'a UserSpace, b: &'a UserSpace) -> (SpinLockGuard<'a, ()>, SpinLockGuard<'a, ()>) {
    // By address, so that two forks between the same two spaces cannot deadlock.
    if a.root < b.root {
        let ga = a.lock.lock();
        (ga, b.lock.lock())
    } else {
        let gb = b.lock.lock();
        (a.lock.lock(), gb)
    }
}

impl Drop for UserSpace {
    fn drop(&mut self) {
        // No CPU runs it: each that does owns an `Arc`. So no TLB knows its entries and nobody changes them.
        assert!(self.cpus.load(Ordering::Relaxed) == 0, "a space that is active was dropped");
        clear_table(self.root, 4);
        free_root(self.root);
        if let Some(freed) = self.freed.get() {
            freed.store(true, Ordering::Release);
        }
    }
}

/// Frees everything below a table and clears its entries (for the top level: the user half).
fn clear_table(table: PhysAddr, level: u32) {
    let mut left = used(table).load(Ordering::Relaxed);
    let mut i = 0;
    while left > 0 {
        let e = entry(table, i);
        let v = e.load(Ordering::Relaxed);
        i += 1;
        if v == 0 {
            continue;
        }
        left -= 1;
        e.store(0, Ordering::Relaxed);
        let mut phys = PhysAddr(v & ADDR);
        if level == 2 && v & PS != 0 {
            phys = waiting_leaf(v);
            BLOCKS.fetch_sub(1, Ordering::Relaxed);
        }
        if level > 1 {
            clear_table(phys, level - 1);
            free_table(phys);
        } else if v & DEVICE == 0 && put_ref(phys.0) {
            free_frame(phys.0);
        }
    }
    used(table).store(0, Ordering::Relaxed);
}
