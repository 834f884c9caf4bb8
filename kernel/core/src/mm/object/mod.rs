//! Memory objects: [`MemoryObject`], the one type behind everything that can be mapped.
//!
//! An object maps page indices to frames. Its kinds differ in where a missing page comes from: *shmem* (memfd, tmpfs files,
//! shared anonymous memory) fills with zeroes; *pager-backed* (the page cache of a file server's file) reads from a
//! [`Pager`] and writes back to it; *fixed* has all its frames from the start (a dma-buf); *device* is a physical range that
//! is mapped without frames; *supplied* shows pages of other objects, named by a
//! [`Supplier`] when they are touched. Private anonymous memory has no object: its pages live in the page tables alone.
//!
//! ## Locking
//! `pages` is a spin lock over the tree. A fault looks pages up **and maps them** under it; truncation takes pages out
//! under it and unmaps them afterwards through the reverse map. So a page that has left the tree is never mapped anew, and
//! whatever mapped it before is found. Order: inode lock → mm lock → `rmap` → `pages` → page table lock → frame allocator.
//! Input from a pager ([`read_ahead`]) happens with none of these held; who reads a range is recorded in `filling`, others wait
//! for it.
//!
//! References: Linux `mm/filemap.c`, `mm/shmem.c`, `mm/truncate.c`; memfd_create(2), fcntl(2) for the seals.

mod read_ahead;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bitflags::bitflags;
use ursa_hal::PhysAddr;
use ursa_hal::mm::{CacheMode, Frame};
use ursa_hal::sync::{Once, RwSpinLock, SpinLock};

use super::account::{self, Charge, PageKind};
use super::page_tree::{Mark, PageTree, Tally};
use super::rmap::ReverseMap;
use super::vma::PAGE;
use crate::fs::{Sink, Source};
use crate::wait::{Mutex, WaitQueue};
use crate::{Errno, Result};

/// The largest size of an object, as Linux's `MAX_LFS_FILESIZE`.
pub const MAX_SIZE: u64 = i64::MAX as u64;
/// The most pages that one call of a pager writes (1 MiB, as much as FUSE's largest request).
const WRITE_RUN_MAX: usize = 256;
/// Leaves of the tree that are counted before others may have the lock and the CPU.
const TALLY_LEAVES: usize = 256;

bitflags! {
    /// `F_SEAL_*` of fcntl(2).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Seals: u32 {
        /// No more seals.
        const SEAL = 0x1;
        /// The size may not decrease.
        const SHRINK = 0x2;
        /// The size may not increase.
        const GROW = 0x4;
        /// The contents may not change.
        const WRITE = 0x8;
        /// No new way to write; existing writable mappings stay.
        const FUTURE_WRITE = 0x10;
        /// The execute bits of the mode may not change.
        const EXEC = 0x20;
    }
}

/// Where the pages of a pager-backed object come from and go to. Called without locks; may sleep.
pub trait Pager: Send + Sync {
    /// Fills `frames`, the pages from index `first` on. Returns how many were filled, at least one; bytes past the end of
    /// the file are zeroes.
    fn read_pages(&self, first: u64, frames: &[Frame]) -> Result<usize>;

    /// Makes `frames`, the pages from index `first` on, durable in the pager. `size` is the object's size in bytes: what lies beyond
    /// in the last page does not belong to the file.
    fn write_pages(&self, first: u64, frames: &[Frame], size: u64) -> Result;

    /// Names what is behind the pager: objects with the same number are written by one task.
    fn backing(&self) -> usize;
}

/// Where the pages of an object come from that shows pages of other objects (a device server's, by touch). Called without
/// locks; may sleep.
pub trait Supplier: Send + Sync {
    /// The pages from index `index` on: at least one.
    ///
    /// # Errors
    /// `EINTR` for a thread that is to die; all others are a bus error.
    fn supply(&self, index: u64) -> Result<Vec<Frame>>;
}

enum Kind {
    Shmem,
    Pager(Arc<dyn Pager>),
    Supplied(Arc<dyn Supplier>),
    Fixed,
    Device { base: PhysAddr, cache: CacheMode },
}

/// Something that can be mapped. See the module documentation.
pub struct MemoryObject {
    id: u64,
    kind: Kind,
    size: AtomicU64,
    pub(super) pages: RwSpinLock<PageTree>,
    pub(super) rmap: Mutex<ReverseMap>,
    seals: AtomicU32,
    /// Who pays for the pages: the process that made the object (for the OOM killer), a file system's limit.
    owner: Once<Arc<Charge>>,
    quota: Option<Arc<Charge>>,
    /// Pages counted towards the commit limit for the whole life of the object.
    committed: AtomicU64,
    /// Ranges of pages that someone is reading from the pager.
    filling: SpinLock<Vec<Range<u64>>>,
    filled: WaitQueue,
    /// Counts removals of pages, so that a read that was under way when its range was cut off is thrown away.
    cuts: AtomicU64,
    /// The page that a sequential reader would miss next.
    ahead_next: AtomicU64,
    ahead_window: AtomicU64,
    /// When the first page became dirty, after none was.
    dirty_since: AtomicU64,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl MemoryObject {
    fn new(kind: Kind, size: u64, owner: Option<Arc<Charge>>, quota: Option<Arc<Charge>>) -> MemoryObject {
        MemoryObject {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            kind,
            size: AtomicU64::new(size),
            pages: RwSpinLock::new(PageTree::new()),
            rmap: Mutex::new(ReverseMap::new()),
            // Only memfd_create with MFD_ALLOW_SEALING opens this.
            seals: AtomicU32::new(Seals::SEAL.bits()),
            owner: {
                let slot = Once::new();
                if let Some(owner) = owner {
                    slot.call_once(|| owner);
                }
                slot
            },
            quota,
            committed: AtomicU64::new(0),
            filling: SpinLock::new(Vec::new()),
            filled: WaitQueue::new(),
            cuts: AtomicU64::new(0),
            ahead_next: AtomicU64::new(0),
            ahead_window: AtomicU64::new(0),
            dirty_since: AtomicU64::new(0),
        }
    }

    /// Memory that fills with zeroes on demand, `size` bytes long, charged to no process.
    pub fn new_shmem(size: u64) -> Arc<MemoryObject> {
        Arc::new(Self::new(Kind::Shmem, size, None, None))
    }

    /// As [`MemoryObject::new_shmem`], with who pays: `owner` for the OOM killer, `quota` a limit (`ENOSPC` beyond it).
    pub fn new_shmem_charged(size: u64, owner: Option<Arc<Charge>>, quota: Option<Arc<Charge>>) -> Arc<MemoryObject> {
        Arc::new(Self::new(Kind::Shmem, size, owner, quota))
    }

    /// The page cache of a file of `size` bytes whose contents `pager` has.
    pub fn with_pager(pager: Arc<dyn Pager>, size: u64) -> Arc<MemoryObject> {
        let object = Arc::new(Self::new(Kind::Pager(pager), size, None, None));
        super::reclaim::register(&object);
        object
    }

    /// An object of any size whose pages are those that `supplier` names when they are touched, until they are revoked.
    /// They are charged where they come from.
    pub fn supplied(supplier: Arc<dyn Supplier>) -> Arc<MemoryObject> {
        Arc::new(Self::new(Kind::Supplied(supplier), MAX_SIZE, None, None))
    }

    /// An object of exactly these frames (a dma-buf).
    pub fn fixed(frames: impl IntoIterator<Item = Frame>) -> Arc<MemoryObject> {
        let object = Self::new(Kind::Fixed, 0, None, None);
        let mut index = 0;
        {
            let mut pages = object.pages.write();
            for frame in frames {
                pages.insert(index, frame);
                index += 1;
            }
        }
        object.size.store(index * PAGE, Ordering::Relaxed);
        Arc::new(object)
    }

    /// A physical range that the frame allocator does not own (a BAR). `base` and `len` are multiples of the page size.
    pub fn device(base: PhysAddr, len: u64, cache: CacheMode) -> Result<Arc<MemoryObject>> {
        if !base.is_page_aligned() || !len.is_multiple_of(PAGE) || base.as_u64().checked_add(len).is_none() {
            return Err(Errno::EINVAL);
        }
        Ok(Arc::new(Self::new(Kind::Device { base, cache }, len, None, None)))
    }

    /// A number that no other object ever has: with the offset it is the key of a shared futex.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn size_pages(&self) -> u64 {
        self.size().div_ceil(PAGE)
    }

    /// Whether this fills with zeroes (memfd, tmpfs, shared anonymous memory).
    pub fn is_shmem(&self) -> bool {
        matches!(self.kind, Kind::Shmem)
    }

    /// Whether it is mapped without frames.
    pub fn is_device(&self) -> bool {
        matches!(self.kind, Kind::Device { .. })
    }

    /// Whether a store through a mapping has to be noticed, to be written back.
    pub(super) fn tracks_dirty(&self) -> bool {
        matches!(self.kind, Kind::Pager(_))
    }

    /// Marks the page at `index` as newer than the pager's. `pages` is the object's own tree.
    pub(super) fn mark_dirty(&self, pages: &mut PageTree, index: u64) {
        if pages.dirty_len() == 0 {
            self.dirty_since.store(ursa_hal::time::monotonic_ns(), Ordering::Relaxed);
        }
        if !pages.set_mark(index, Mark::Dirty, true) {
            super::writeback::dirtied();
        }
    }

    /// Since when pages are dirty (monotonic nanoseconds); `None`: none is.
    pub(super) fn dirty_since(&self) -> Option<u64> {
        (self.pages.read().dirty_len() > 0).then(|| self.dirty_since.load(Ordering::Relaxed))
    }

    /// See [`Pager::backing`].
    pub(super) fn backing(&self) -> Option<usize> {
        match &self.kind {
            Kind::Pager(pager) => Some(pager.backing()),
            _ => None,
        }
    }

    /// Whether mappings have to be found again. All kinds can be revoked, truncated or written back.
    pub(super) fn is_revocable(&self) -> bool {
        true
    }

    pub(super) fn page_kind(&self) -> PageKind {
        if self.is_shmem() { PageKind::Shmem } else { PageKind::File }
    }

    /// Pages present.
    pub fn resident_pages(&self) -> usize {
        self.pages.read().len()
    }

    /// How many VMAs show the object.
    pub fn mapping_count(&self) -> usize {
        self.rmap.lock().len()
    }

    /// Whether the page at `index` is present.
    pub fn is_resident(&self, index: u64) -> bool {
        match self.kind {
            Kind::Device { .. } => true,
            _ => self.pages.read().get(index).is_some(),
        }
    }

    /// Whether the page at `index` is present and has been used (`mincore`).
    pub fn is_touched(&self, index: u64) -> bool {
        match self.kind {
            Kind::Device { .. } => true,
            _ => self.pages.read().get_touched(index).is_some(),
        }
    }

    /// Counts the pages of `first..end`, dirty ones and those on their way to the pager (`cachestat`).
    pub fn tally(&self, first: u64, end: u64) -> Tally {
        let (mut tally, mut at) = (Tally::default(), Some(first));
        while let Some(from) = at {
            at = self.pages.read().tally(from, end, TALLY_LEAVES, &mut tally);
            crate::sched::cond_resched();
        }
        tally
    }

    /// Notes that the page at `index` is used, so that it is a hole no more.
    pub(super) fn touch(&self, index: u64) {
        self.pages.write().set_mark(index, Mark::Untouched, false);
    }

    /// The page at `index`, if it is present, for someone who uses its contents; never sleeps.
    fn take_up(&self, index: u64) -> Option<Frame> {
        let pages = self.pages.read();
        if let Some(frame) = pages.get_touched(index) {
            return Some(frame.clone());
        }
        let frame = pages.get(index)?.clone();
        drop(pages);
        self.touch(index);
        Some(frame)
    }

    /// Names who answers for the pages, before there are any; the first call counts.
    pub fn set_owner(&self, owner: Arc<Charge>) {
        self.owner.call_once(|| owner);
    }

    /// The page at `index` if it is present; never sleeps.
    pub fn peek(&self, index: u64) -> Option<Frame> {
        self.pages.read().get(index).cloned()
    }

    /// The next offset at or after `from` with data (`SEEK_DATA`) or without (`SEEK_HOLE`). The end counts as a hole.
    pub fn seek(&self, from: u64, data: bool) -> Result<u64> {
        let size = self.size();
        if from >= size {
            return Err(Errno::ENXIO);
        }
        if !self.is_shmem() {
            return Ok(if data { from } else { size });
        }
        let found = self.pages.read().next(from / PAGE, size.div_ceil(PAGE), data);
        match found {
            Some(index) => Ok((index * PAGE).max(from).min(size)),
            None if data => Err(Errno::ENXIO),
            None => Ok(size),
        }
    }

    /// The page at `index`: from the tree, filled with zeroes, or read from the pager. `write` says that it is going to be
    /// changed (it is marked dirty). May sleep.
    ///
    /// # Errors
    /// `EFAULT` past the end, `ENOMEM`, `ENOSPC` at the file system's limit, or what the pager says.
    pub fn get_page(&self, index: u64, write: bool) -> Result<Frame> {
        loop {
            {
                if let Some(frame) = self.take_up(index)
                    && index < self.size_pages()
                {
                    if write && self.tracks_dirty() {
                        self.mark_dirty(&mut self.pages.write(), index);
                    }
                    return Ok(frame);
                }
            }
            self.bring_in(index)?;
        }
    }

    /// Makes the page at `index` present. May sleep.
    pub(super) fn bring_in(&self, index: u64) -> Result {
        if index >= self.size_pages() {
            return Err(Errno::EFAULT);
        }
        match &self.kind {
            Kind::Shmem => {
                let frame = super::reclaim::alloc_zeroed()?;
                self.insert_missing(index, frame, true)
            }
            Kind::Pager(pager) => self.read_ahead(&**pager, index),
            Kind::Supplied(supplier) => self.bring_supplied(&**supplier, index),
            Kind::Fixed | Kind::Device { .. } => Err(Errno::EFAULT),
        }
    }

    /// Asks the supplier, and shows what it names unless that was revoked meanwhile.
    fn bring_supplied(&self, supplier: &dyn Supplier, index: u64) -> Result {
        let cuts = self.cuts.load(Ordering::Acquire);
        let frames = supplier.supply(index)?;
        let mut pages = self.pages.write();
        if self.cuts.load(Ordering::Acquire) == cuts {
            for (index, frame) in (index..self.size_pages()).zip(frames) {
                if pages.get(index).is_none() {
                    pages.insert(index, frame);
                }
            }
        }
        Ok(())
    }

    /// Inserts a page unless there is one by now or the index is past the end by now. `used`: not just allocated.
    fn insert_missing(&self, index: u64, frame: Frame, used: bool) -> Result {
        self.charge(1)?;
        let mut pages = self.pages.write();
        if index >= self.size_pages() {
            drop(pages);
            self.uncharge(1);
            return Err(Errno::EFAULT);
        }
        if pages.get(index).is_some() {
            drop(pages);
            self.uncharge(1);
            return Ok(());
        }
        pages.insert(index, frame);
        if !used {
            pages.set_mark(index, Mark::Untouched, true);
        }
        Ok(())
    }

    fn charge(&self, count: u64) -> Result {
        if let Some(quota) = &self.quota
            && !quota.try_add(count)
        {
            return Err(Errno::ENOSPC);
        }
        if let Some(owner) = self.owner.get() {
            owner.add(count);
        }
        account::add_pages(self.page_kind(), count as i64);
        Ok(())
    }

    fn uncharge(&self, count: u64) {
        if count == 0 {
            return;
        }
        if let Some(quota) = &self.quota {
            quota.sub(count);
        }
        if let Some(owner) = self.owner.get() {
            owner.sub(count);
        }
        account::add_pages(self.page_kind(), -(count as i64));
    }

    /// Puts `frame` at `index`, replacing what is there; the object grows to include it. For adopting pages (the boot
    /// archive, `splice`, a device server's answer to a fault). Mappings of a replaced page are taken away.
    pub fn insert_page(&self, index: u64, frame: Frame) -> Result {
        let end = index.checked_add(1).and_then(|n| n.checked_mul(PAGE)).filter(|&n| n <= MAX_SIZE);
        let end = end.ok_or(Errno::EFBIG)?;
        self.charge(1)?;
        let old = {
            let mut pages = self.pages.write();
            self.size.fetch_max(end, Ordering::Release);
            let old = pages.insert(index, frame);
            if self.tracks_dirty() {
                self.mark_dirty(&mut pages, index);
            }
            old
        };
        if old.is_some() {
            self.uncharge(1);
            self.unmap(index, index + 1, Reach::ObjectPages);
        }
        Ok(())
    }

    /// Reads from `offset` into `dst` until that is full or the object ends; the count is in `dst` too. Holes of shmem read
    /// as zeroes without taking memory.
    pub fn read(&self, offset: u64, dst: &mut Sink<'_>) -> Result<usize> {
        let start = dst.done();
        let mut at = offset;
        while dst.remaining() > 0 {
            let size = self.size();
            if at >= size {
                break;
            }
            let within = (at % PAGE) as usize;
            let len = (size - at).min(PAGE - within as u64).min(dst.remaining() as u64) as usize;
            let page =
                if self.is_shmem() { Ok(self.take_up(at / PAGE)) } else { self.get_page(at / PAGE, false).map(Some) };
            let moved = match page {
                Ok(Some(frame)) => dst.put_frame(&frame, within, len),
                Ok(None) => dst.put_zeros(len),
                // Truncated meanwhile.
                Err(Errno::EFAULT) if at >= self.size() => break,
                Err(error) => Err(error),
            };
            match moved {
                Ok(n) => {
                    at += n as u64;
                    if n < len {
                        break;
                    }
                }
                Err(_) if dst.done() > start => break,
                Err(error) => return Err(error),
            }
        }
        Ok(dst.done() - start)
    }

    /// Writes all of `src` at `offset`, growing the object. The caller holds the inode lock, so that writers do not
    /// interleave. Returns how much was written if that is more than nothing.
    pub fn write(&self, offset: u64, src: &mut Source<'_>) -> Result<usize> {
        self.write_up_to(offset, src, usize::MAX)
    }

    /// As [`MemoryObject::write`], at most `most` bytes.
    ///
    /// # Errors
    /// As there.
    pub fn write_up_to(&self, offset: u64, src: &mut Source<'_>, most: usize) -> Result<usize> {
        let seals = self.seals();
        if seals.intersects(Seals::WRITE | Seals::FUTURE_WRITE) {
            return Err(Errno::EPERM);
        }
        let start = src.done();
        let mut at = offset;
        let limit = if seals.contains(Seals::GROW) { self.size() } else { MAX_SIZE };
        let end = offset.saturating_add(most as u64).min(limit);
        if src.remaining() > 0 && at >= limit {
            return Err(if limit == MAX_SIZE { Errno::EFBIG } else { Errno::EPERM });
        }
        while src.remaining() > 0 && at < end {
            let within = (at % PAGE) as usize;
            let len = (end - at).min(PAGE - within as u64).min(src.remaining() as u64) as usize;
            let moved = self.write_in_page(at / PAGE, within, len, src);
            match moved {
                Ok(n) => {
                    at += n as u64;
                    if n < len {
                        break;
                    }
                }
                Err(_) if src.done() > start => break,
                Err(error) => return Err(error),
            }
        }
        Ok(src.done() - start)
    }

    fn write_in_page(&self, index: u64, within: usize, len: usize, src: &mut Source<'_>) -> Result<usize> {
        let from = index * PAGE + within as u64;
        let known = self.take_up(index).filter(|_| index < self.size_pages());
        let whole = within == 0 && (len as u64 == PAGE || from + len as u64 >= self.size());
        let frame = match known {
            Some(frame) => {
                let n = src.take_to_frame(&frame, within, len)?;
                self.size.fetch_max(from + n as u64, Ordering::Release);
                self.settle(index, &frame, within, n);
                return Ok(n);
            }
            None if whole || self.is_shmem() || index >= self.size_pages() => super::reclaim::alloc()?,
            None => {
                let frame = self.get_page(index, true)?;
                let n = src.take_to_frame(&frame, within, len)?;
                self.size.fetch_max(from + n as u64, Ordering::Release);
                self.settle(index, &frame, within, n);
                return Ok(n);
            }
        };
        // A page that nobody sees yet: fill it, then show it, so that neither zeroing nor stale contents are needed.
        self.charge(1)?;
        let moved = src.take_to_frame(&frame, within, len);
        let n = match moved {
            Ok(n) if n > 0 => n,
            other => {
                self.uncharge(1);
                return other;
            }
        };
        frame.fill(0, within, 0);
        frame.fill(within + n, PAGE as usize - within - n, 0);
        let mut pages = self.pages.write();
        if let Some(present) = pages.get(index) {
            // A fault was faster: give it the bytes.
            present.copy_range_from(within, &frame, within, n);
            pages.set_mark(index, Mark::Untouched, false);
            self.uncharge(1);
        } else {
            pages.insert(index, frame);
        }
        if self.tracks_dirty() {
            self.mark_dirty(&mut pages, index);
        }
        self.size.fetch_max(from + n as u64, Ordering::Release);
        Ok(n)
    }

    /// Marks a page dirty after `len` bytes of `frame` have been stored; if the page was taken out of the tree before that (it
    /// was clean), it is put back.
    fn settle(&self, index: u64, frame: &Frame, within: usize, len: usize) {
        if !self.tracks_dirty() {
            return;
        }
        let mut pages = self.pages.write();
        match pages.get(index) {
            Some(present) if present.phys() == frame.phys() => {}
            Some(present) => present.copy_range_from(within, frame, within, len),
            None => {
                pages.insert(index, frame.clone());
                account::add_pages(PageKind::File, 1);
            }
        }
        self.mark_dirty(&mut pages, index);
    }

    /// Brings the pages that are present up to date with `data`, which the pager's side has got at `offset` already. A read
    /// of the range that is under way is thrown away: it may have been answered before.
    pub fn update(&self, offset: u64, data: &[u8]) {
        // Under the tree's lock: a page that was being read is in the tree by now, or is never shown.
        {
            let _pages = self.pages.write();
            self.cuts.fetch_add(1, Ordering::Release);
        }
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let within = (at % PAGE) as usize;
            let (now, later) = rest.split_at(rest.len().min(PAGE as usize - within));
            if let Some(frame) = self.peek(at / PAGE) {
                frame.write(within, now);
            }
            at += now.len() as u64;
            rest = later;
        }
    }

    /// Sets the size (`ftruncate`): what lies beyond is unmapped everywhere and freed, the tail of the last page is zeroed.
    pub fn set_size(&self, size: u64) -> Result {
        if size > MAX_SIZE {
            return Err(Errno::EFBIG);
        }
        let old = self.size();
        let seals = self.seals();
        if size < old && seals.contains(Seals::SHRINK) || size > old && seals.contains(Seals::GROW) {
            return Err(Errno::EPERM);
        }
        if matches!(self.kind, Kind::Fixed | Kind::Supplied(_) | Kind::Device { .. }) {
            return Err(Errno::EINVAL);
        }
        if size >= old {
            self.size.store(size, Ordering::Release);
        } else {
            self.cut(size);
        }
        Ok(())
    }

    /// Makes the object smaller.
    fn cut(&self, size: u64) {
        let first = size.div_ceil(PAGE);
        let mut removed = Vec::new();
        {
            let mut pages = self.pages.write();
            self.size.store(size, Ordering::Release);
            self.cuts.fetch_add(1, Ordering::Release);
            pages.remove_range(first, u64::MAX, |_, frame| removed.push(frame));
            let tail = (size % PAGE) as usize;
            if tail != 0
                && let Some(frame) = pages.get(size / PAGE)
            {
                frame.fill(tail, PAGE as usize - tail, 0);
            }
        }
        self.unmap(first, u64::MAX, Reach::AlsoPrivateCopies);
        self.uncharge(removed.len() as u64);
    }

    /// Frees the pages wholly inside `offset..offset+len` and zeroes the rest of the range (`FALLOC_FL_PUNCH_HOLE`,
    /// `MADV_REMOVE`).
    pub fn punch_hole(&self, offset: u64, len: u64) -> Result {
        if self.seals().intersects(Seals::WRITE | Seals::FUTURE_WRITE) {
            return Err(Errno::EPERM);
        }
        if !self.is_shmem() {
            return Err(Errno::EOPNOTSUPP);
        }
        let end = offset.checked_add(len).ok_or(Errno::EINVAL)?;
        let (first, last) = (offset.div_ceil(PAGE), end / PAGE);
        let mut removed = Vec::new();
        {
            let mut pages = self.pages.write();
            let zero = |pages: &PageTree, from: u64, to: u64| {
                if from < to
                    && let Some(frame) = pages.get(from / PAGE)
                {
                    frame.fill((from % PAGE) as usize, (to - from) as usize, 0);
                }
            };
            if first > last {
                zero(&pages, offset, end);
            } else {
                zero(&pages, offset, first * PAGE);
                zero(&pages, last * PAGE, end);
                pages.remove_range(first, last, |_, frame| removed.push(frame));
            }
        }
        if first < last {
            self.unmap(first, last, Reach::ObjectPages);
        }
        self.uncharge(removed.len() as u64);
        Ok(())
    }

    /// Makes every page of `offset..offset+len` present (`fallocate`); grows the object unless `keep_size`. The caller keeps
    /// other changes of size away.
    ///
    /// # Errors
    /// `ENOSPC` if the quota has no room for them, which is known before the first page is taken; `EPERM` for a sealed object;
    /// `EINTR`, `ENOMEM` for a caller who is to die. What an allocation that failed had taken is given back.
    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result {
        let end = offset.checked_add(len).filter(|&end| end <= MAX_SIZE).ok_or(Errno::EFBIG)?;
        let old = self.size();
        let grows = end > old && !keep_size;
        if grows && self.seals().contains(Seals::GROW) {
            return Err(Errno::EPERM);
        }
        // Linux keeps pages beyond the end for KEEP_SIZE; they would be invisible, so only what can be seen is allocated here.
        let pages = offset / PAGE..if grows { end.div_ceil(PAGE) } else { end.div_ceil(PAGE).min(self.size_pages()) };
        if let Some(quota) = &self.quota {
            let mut missing = pages.end.saturating_sub(pages.start);
            self.pages.read().for_each(pages.start, pages.end, |_, _| {
                missing -= 1;
                true
            });
            if quota.pages().saturating_add(missing) > quota.limit() {
                return Err(Errno::ENOSPC);
            }
        }
        if grows {
            self.size.store(end, Ordering::Release);
        }
        let mut taken: Vec<Range<u64>> = Vec::new();
        for index in pages {
            let result = match self.is_resident(index) {
                _ if super::is_dying() => Err(Errno::EINTR),
                true => continue,
                false => super::reclaim::alloc_zeroed().and_then(|frame| self.insert_missing(index, frame, false)),
            };
            if let Err(error) = result {
                if grows {
                    self.cut(old);
                }
                taken.into_iter().for_each(|range| self.give_back(range));
                return Err(error);
            }
            match taken.last_mut() {
                Some(last) if last.end == index => last.end += 1,
                _ => taken.push(index..index + 1),
            }
        }
        Ok(())
    }

    /// Frees those pages of a range that are mapped nowhere and hold zeroes, as a hole does.
    fn give_back(&self, range: Range<u64>) {
        let mut removed = Vec::new();
        let mut bytes = [0; 256];
        {
            let mut pages = self.pages.write();
            for index in range {
                let unused = pages.get(index).is_some_and(|frame| {
                    frame.is_unique()
                        && (0..PAGE as usize).step_by(bytes.len()).all(|at| {
                            frame.read(at, &mut bytes);
                            bytes.iter().all(|&byte| byte == 0)
                        })
                });
                if unused {
                    removed.extend(pages.remove(index));
                }
            }
        }
        self.uncharge(removed.len() as u64);
    }

    /// Takes the pages of `first..end` away from every mapping: the next touch asks the object again. For revocation the
    /// object's pages go too, so that the next touch reaches the pager.
    pub fn revoke(&self, first: u64, end: u64) {
        let mut removed = Vec::new();
        if matches!(self.kind, Kind::Pager(_) | Kind::Supplied(_)) {
            let mut pages = self.pages.write();
            // Under the tree's lock: who is bringing a page in either has it in the tree, or sees the count and drops it.
            self.cuts.fetch_add(1, Ordering::Release);
            pages.remove_range(first, end, |_, frame| removed.push(frame));
        }
        self.unmap(first, end, Reach::ObjectPages);
        if matches!(self.kind, Kind::Pager(_)) {
            self.uncharge(removed.len() as u64);
        }
    }

    /// Takes the clean pages of `first..end` out, mapped or not: the next touch asks the pager. Dirty ones, and those on their
    /// way, stay.
    pub fn drop_clean(&self, first: u64, end: u64) {
        let mut removed = Vec::new();
        {
            let mut pages = self.pages.write();
            self.cuts.fetch_add(1, Ordering::Release);
            let mut clean = Vec::new();
            pages.for_each(first, end, |index, _| {
                clean.push(index);
                true
            });
            clean.retain(|&index| !pages.has_mark(index, Mark::Dirty) && !pages.has_mark(index, Mark::Writeback));
            removed.extend(clean.iter().filter_map(|&index| pages.remove(index)));
        }
        if !removed.is_empty() {
            // A page that can be stored to is dirty, so no store is lost.
            self.unmap(first, end, Reach::ObjectPages);
            self.uncharge(removed.len() as u64);
        }
    }

    /// Ends a device range: it is mapped nowhere any more, and a touch gives `SIGBUS`. For a driver's death.
    pub fn retire(&self) {
        if self.is_device() {
            {
                // A fault maps under this lock: none that has seen the old size is left after it.
                let _pages = self.pages.write();
                self.size.store(0, Ordering::Release);
            }
            self.unmap(0, u64::MAX, Reach::AlsoPrivateCopies);
        }
    }

    /// Unmaps pages `first..end` wherever they are mapped. Returns when no CPU can reach them.
    fn unmap(&self, first: u64, end: u64, reach: Reach) {
        let map = self.rmap.lock();
        for entry in map.iter() {
            let Some((start, stop)) = entry.range(first, end) else { continue };
            entry.unmap(start, stop, reach);
        }
    }

    /// Write-protects pages `first..end` in shared mappings, so that the next store is noticed.
    fn write_protect(&self, first: u64, end: u64) {
        let map = self.rmap.lock();
        for entry in map.iter().filter(|entry| entry.shared) {
            let Some((start, stop)) = entry.range(first, end) else { continue };
            entry.space.protect(start..stop, |_, _, prot| prot - ursa_hal::mm::Prot::W);
        }
    }

    /// Writes the dirty pages of `first..end` to the pager and waits for it (`msync`, `fsync`, reclaim). Nothing to do for
    /// objects without one.
    ///
    /// # Errors
    /// The pager's: then the pages are still dirty. `EINTR` for a thread that is to die.
    pub fn sync(&self, first: u64, end: u64) -> Result {
        let Kind::Pager(pager) = &self.kind else { return Ok(()) };
        loop {
            let mut at = first;
            while let Some((start, frames)) = self.take_dirty_run(at, end) {
                self.write_run(&**pager, start, &frames)?;
                at = start + frames.len() as u64;
            }
            // Pages that another caller is writing are part of the promise, too; one of them may have changed since, and a page
            // is never on its way twice.
            let mut again = false;
            self.filled.wait_killable(|| {
                let (mut busy, pages) = (false, self.pages.read());
                pages.for_each_marked(Mark::Writeback, first, end, |index, _| {
                    again |= pages.has_mark(index, Mark::Dirty);
                    busy = true;
                    true
                });
                (!busy).then_some(())
            })?;
            if !again {
                return Ok(());
            }
        }
    }

    /// Writes pages that are marked as being written, and unmarks them.
    fn write_run(&self, pager: &dyn Pager, start: u64, frames: &[Frame]) -> Result {
        let count = frames.len() as u64;
        self.write_protect(start, start + count);
        let written = pager.write_pages(start, frames, self.size());
        let mut pages = self.pages.write();
        for (index, frame) in (start..).zip(frames) {
            // One that was cut off meanwhile is another page, or none.
            if pages.get(index).is_some_and(|present| present.phys() == frame.phys())
                && pages.set_mark(index, Mark::Writeback, false)
                && written.is_err()
            {
                pages.set_mark(index, Mark::Dirty, true);
            }
        }
        drop(pages);
        self.filled.wake_all();
        if written.is_ok() {
            super::writeback::progress(count);
        }
        written
    }

    /// The next run of dirty pages that nobody is writing, now marked as being written instead.
    fn take_dirty_run(&self, first: u64, end: u64) -> Option<(u64, Vec<Frame>)> {
        let mut pages = self.pages.write();
        let (mut start, mut frames) = (0, Vec::new());
        pages.for_each_marked(Mark::Dirty, first, end, |index, frame| {
            if pages.has_mark(index, Mark::Writeback) {
                return frames.is_empty();
            }
            if frames.is_empty() {
                start = index;
            } else if index != start + frames.len() as u64 || frames.len() == WRITE_RUN_MAX {
                return false;
            }
            frames.push(frame.clone());
            true
        });
        for index in start..start + frames.len() as u64 {
            pages.set_mark(index, Mark::Dirty, false);
            pages.set_mark(index, Mark::Writeback, true);
        }
        (!frames.is_empty()).then_some((start, frames))
    }

    /// Frees clean pages of a pager-backed object that nobody maps or uses, at most `target`. Returns how many.
    pub(super) fn reclaim(&self, target: usize) -> usize {
        if !matches!(self.kind, Kind::Pager(_)) {
            return 0;
        }
        let mut victims = Vec::new();
        let mut pages = self.pages.write();
        pages.for_each(0, u64::MAX, |index, frame| {
            if frame.is_unique() && !pages.has_mark(index, Mark::Dirty) && !pages.has_mark(index, Mark::Writeback) {
                victims.push(index);
            }
            victims.len() < target
        });
        for &index in &victims {
            pages.remove(index);
        }
        drop(pages);
        account::add_pages(PageKind::File, -(victims.len() as i64));
        victims.len()
    }

    /// Where page `index` of a device object is.
    pub(super) fn device_page(&self, index: u64) -> Option<(PhysAddr, CacheMode)> {
        match self.kind {
            Kind::Device { base, cache } if index < self.size_pages() => {
                Some((PhysAddr::new(base.as_u64() + index * PAGE), cache))
            }
            _ => None,
        }
    }

    /// The seals.
    pub fn seals(&self) -> Seals {
        Seals::from_bits_truncate(self.seals.load(Ordering::Acquire))
    }

    /// Allows `F_ADD_SEALS` (`MFD_ALLOW_SEALING`), before anyone else knows the object.
    pub fn allow_sealing(&self) {
        self.seals.store(0, Ordering::Release);
    }

    /// `F_ADD_SEALS`: `EPERM` if sealed against it, `EBUSY` for [`Seals::WRITE`] while a writable shared mapping exists.
    pub fn add_seals(&self, seals: Seals) -> Result {
        // The reverse map's lock orders this against new mappings.
        let map = self.rmap.lock();
        if self.seals().contains(Seals::SEAL) {
            return Err(Errno::EPERM);
        }
        if seals.contains(Seals::WRITE) && !self.seals().contains(Seals::WRITE) && map.writable > 0 {
            return Err(Errno::EBUSY);
        }
        self.seals.fetch_or(seals.bits(), Ordering::AcqRel);
        Ok(())
    }

    /// Counts `pages` towards the commit limit until the object dies.
    pub(super) fn commit(&self, pages: u64) -> Result {
        account::commit(pages)?;
        self.committed.fetch_add(pages, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for MemoryObject {
    fn drop(&mut self) {
        let count = self.pages.get_mut().len() as u64;
        if !matches!(self.kind, Kind::Fixed | Kind::Supplied(_)) {
            self.uncharge(count);
        }
        account::uncommit(*self.committed.get_mut());
        if self.tracks_dirty() {
            super::reclaim::unregister(self.id);
        }
    }
}

/// Which pages of private mappings an unmapping takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reach {
    /// Only pages of the object.
    ObjectPages,
    /// Private copies too (`even_cows`): what lies past the end of a file is gone for everyone.
    AlsoPrivateCopies,
}
