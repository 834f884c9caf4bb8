//! Frames: 4 KiB pieces of RAM with a reference count.
//!
//! Each frame of RAM has one 16-byte [`Meta`] in an array at a fixed address ([`crate::addr::VMEMMAP`]), so that going from
//! a frame to its count is a shift and an add. A [`Frame`] is one reference; page tables hold references as raw words.
//!
//! Allocation takes frames from a per-CPU cache, which refills from the buddy allocator ([`super::buddy`]) in batches. The cache
//! is guarded against interrupt handlers by the CPU's `alloc_busy` flag rather than by disabling interrupts: a handler that
//! finds the flag set goes to the buddy allocator itself.
//!
//! **Untyped memory.** What a frame holds may change at any time: programs, devices and other CPUs write to it. No Rust
//! reference to a frame's bytes is ever made, except to atomics; contents are moved by the copy routines in
//! [`super::copy`], which are assembly and thus opaque to the compiler. A torn or stale byte is a possible *value*, never
//! undefined behaviour.
//!
//! **Counts saturate.** A count that reaches 2^31 stays there and the frame is never freed: a leak instead of a use after
//! free.

use super::buddy;
use super::copy;
use crate::addr::{DIRECT_MAP, PAGE_SHIFT, PAGE_SIZE, PhysAddr, VMEMMAP, VirtAddr};
use crate::percpu;
use crate::user::{self, UserFault};
use core::fmt;
use core::mem::ManuallyDrop;
use core::num::NonZeroU64;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence};

/// What a frame is used for, in [`Meta::kind`]; 0: not managed (a hole, firmware memory, the kernel image).
pub(super) mod kind {
    /// Head of a free block; the order is in bits 8 and up.
    pub const FREE: u32 = 1;
    /// Inside a free block, in a CPU's cache, or allocated: no list holds it.
    pub const USED: u32 = 2;
    /// Page of the boot module, not yet adopted.
    pub const MODULE: u32 = 3;
    /// Page of a heap slab.
    pub const SLAB: u32 = 4;
}

/// Book-keeping of one frame.
#[repr(C, align(16))]
pub(crate) struct Meta {
    /// References to the frame. Slab: free-list head and objects in use.
    pub(super) refs: AtomicU32,
    pub(super) kind: AtomicU32,
    /// List link (free block, slab), or the number of used entries of a page table.
    pub(super) next: AtomicU32,
    /// List link (free block, slab, page tables on their way out), or the tag of an allocated frame ([`Frame::tag`]).
    pub(super) prev: AtomicU32,
}

/// From here on a count sticks.
const SATURATED: u32 = 1 << 31;

#[inline(always)]
pub(super) fn meta(pfn: u64) -> &'static Meta {
    meta_at(pfn << PAGE_SHIFT)
}

/// As [`meta`], by page-aligned physical address: a shift and an OR.
#[inline(always)]
pub(super) fn meta_at(phys: u64) -> &'static Meta {
    const { assert!(size_of::<Meta>() == PAGE_SIZE >> 8) };
    // SAFETY: callers pass frames of RAM regions, for which `mm::init` mapped zeroed metadata; it is never unmapped.
    unsafe { &*((VMEMMAP | phys >> 8) as *const Meta) }
}

/// Adds a reference to a frame, given by its address, that has at least one.
#[inline(always)]
pub(super) fn get_ref(phys: u64) {
    let m = meta_at(phys);
    if m.refs.fetch_add(1, Ordering::Relaxed) >= SATURATED {
        m.saturate();
    }
}

/// Gives one reference up; true when it was the last, and the caller frees the frame.
#[inline(always)]
pub(super) fn put_ref(phys: u64) -> bool {
    let m = meta_at(phys);
    // Alone: nobody else can raise the count, since that takes a reference.
    if m.refs.load(Ordering::Acquire) == 1 {
        m.refs.store(0, Ordering::Relaxed);
        return true;
    }
    m.put_shared()
}

impl Meta {
    #[cold]
    fn saturate(&self) {
        self.refs.store(SATURATED + (SATURATED >> 1), Ordering::Relaxed);
    }
    #[inline]
    fn put_shared(&self) -> bool {
        let old = self.refs.fetch_sub(1, Ordering::Release);
        if old == 1 {
            fence(Ordering::Acquire);
            return true;
        }
        if old >= SATURATED {
            self.saturate();
        }
        false
    }
}

const CACHE: usize = 128;
const BATCH: usize = 64;

/// Free frames at hand on one CPU.
pub(crate) struct FrameCache {
    /// Atomic only so that statistics may read it from elsewhere.
    n: AtomicU32,
    pfns: [u32; CACHE],
}

impl FrameCache {
    pub(crate) const fn new() -> Self {
        Self { n: AtomicU32::new(0), pfns: [0; CACHE] }
    }
}

/// Frames that user-visible allocation leaves for the kernel.
static RESERVE: AtomicUsize = AtomicUsize::new(0);

/// Runs `f` on this CPU's cache, unless the code it would interrupt is at it (or at the heap's).
#[inline(always)]
fn with_cache<R>(f: impl FnOnce(&mut FrameCache) -> R) -> Option<R> {
    let l = percpu::local();
    if l.alloc_busy.get() {
        return None;
    }
    l.alloc_busy.set(true);
    compiler_fence(Ordering::SeqCst);
    // SAFETY: the cache is this CPU's, there is no preemption, and `alloc_busy` keeps interrupt handlers (and nested
    // calls) off it, so this is the only reference.
    let r = f(unsafe { &mut *l.frames.get() });
    compiler_fence(Ordering::SeqCst);
    l.alloc_busy.set(false);
    Some(r)
}

/// Address of a frame that nobody has, or 0. Its count is 0.
#[inline(always)]
fn alloc_phys(for_kernel: bool) -> u64 {
    let got = with_cache(|c| {
        let n = c.n.load(Ordering::Relaxed);
        if n == 0 {
            return 0;
        }
        let i = n.wrapping_sub(1);
        c.n.store(i, Ordering::Relaxed);
        // The count never exceeds the array.
        c.pfns[i as usize & (CACHE - 1)]
    });
    match got {
        Some(pfn) if pfn != 0 => u64::from(pfn) << PAGE_SHIFT,
        _ => alloc_slow(for_kernel),
    }
}

/// Refills the cache (or, when that is in use, goes round it).
#[cold]
#[inline(never)]
fn alloc_slow(for_kernel: bool) -> u64 {
    let reserve = if for_kernel { 0 } else { RESERVE.load(Ordering::Relaxed) };
    let pfn = with_cache(|c| refill(c, reserve)).unwrap_or_else(|| {
        let mut b = buddy::lock();
        if b.free_frames() <= reserve { None } else { b.alloc(0) }
    });
    pfn.unwrap_or(0) << PAGE_SHIFT
}

fn refill(c: &mut FrameCache, reserve: usize) -> Option<u64> {
    let mut b = buddy::lock();
    if b.free_frames() <= reserve {
        return None;
    }
    let room = b.free_frames() - reserve;
    if room >= 4 * BATCH
        && let Some(first) = b.alloc(BATCH.trailing_zeros())
    {
        // Handed out ascending: neighbours in memory for neighbours in a program, and runs when they come back.
        for i in 0..BATCH - 1 {
            c.pfns[i] = (first as usize + BATCH - 1 - i) as u32;
        }
        c.n.store(BATCH as u32 - 1, Ordering::Relaxed);
        return Some(first);
    }
    b.alloc(0)
}

/// Returns a frame whose count is 0.
#[inline(always)]
pub(super) fn free_frame(phys: u64) {
    let done = with_cache(|c| {
        let n = c.n.load(Ordering::Relaxed);
        if n >= CACHE as u32 {
            return false;
        }
        c.pfns[n as usize & (CACHE - 1)] = (phys >> PAGE_SHIFT) as u32;
        c.n.store(n.wrapping_add(1), Ordering::Relaxed);
        true
    });
    if done != Some(true) {
        free_slow(phys);
    }
}

#[cold]
#[inline(never)]
fn free_slow(phys: u64) {
    let pfn = phys >> PAGE_SHIFT;
    let done = with_cache(|c| {
        spill(c);
        let n = c.n.load(Ordering::Relaxed) as usize;
        c.pfns[n] = pfn as u32;
        c.n.store(n as u32 + 1, Ordering::Relaxed);
    });
    if done.is_none() {
        buddy::lock().free(pfn, 0);
    }
}

/// Gives the older half of a full cache back, runs of neighbours as whole blocks, and moves the newer half down: recently freed frames
/// are warm in the CPU's caches.
fn spill(c: &mut FrameCache) {
    let mut b = buddy::lock();
    let old = &c.pfns[..BATCH];
    let mut i = 0;
    while i < BATCH {
        let start = i;
        i += 1;
        while i < BATCH && old[i] == old[i - 1].wrapping_add(1) {
            i += 1;
        }
        b.free_range(u64::from(old[start]), (i - start) as u64);
    }
    c.pfns.copy_within(BATCH.., 0);
    c.n.store((CACHE - BATCH) as u32, Ordering::Relaxed);
}

/// A reference to one 4 KiB frame of RAM. Cloning adds a reference; the frame is freed with its last one.
///
/// The bytes are *untyped*: see the module documentation. Two holders may read and write at the same time; bytes may tear.
#[derive(PartialEq, Eq)]
#[repr(transparent)]
pub struct Frame(NonZeroU64);

impl Frame {
    /// Takes over a reference that [`Frame::into_raw`] gave out.
    ///
    /// # Safety
    /// `phys` is the page-aligned address of a managed frame, and the caller owns one reference to it.
    #[inline(always)]
    pub(crate) unsafe fn from_raw(phys: PhysAddr) -> Self {
        // SAFETY: frame 0 is never managed.
        Self(unsafe { NonZeroU64::new_unchecked(phys.0) })
    }
    /// The physical address; the caller becomes responsible for the reference.
    #[inline(always)]
    pub(crate) fn into_raw(self) -> PhysAddr {
        ManuallyDrop::new(self).phys()
    }

    #[inline(always)]
    fn new(for_kernel: bool) -> Option<Self> {
        let phys = alloc_phys(for_kernel);
        if phys == 0 {
            return None;
        }
        meta_at(phys).refs.store(1, Ordering::Relaxed);
        // SAFETY: the frame is ours alone, with the one reference just set.
        Some(unsafe { Self::from_raw(PhysAddr(phys)) })
    }

    /// A frame with unspecified content. `None` when free memory is down to the reserve.
    pub fn alloc() -> Option<Self> {
        Self::new(false)
    }
    /// As [`Frame::alloc`], for the kernel's own needs: may use the reserve.
    pub fn alloc_kernel() -> Option<Self> {
        Self::new(true)
    }
    /// A frame full of zeroes.
    #[inline]
    pub fn alloc_zeroed() -> Option<Self> {
        let f = Self::alloc()?;
        // SAFETY: the frame is 4 KiB of RAM in the direct map and ours alone.
        unsafe { copy::zero_page(f.ptr()) };
        Some(f)
    }
    /// Adopts page `phys` of the boot module. `None` if it is not such a page or was adopted before.
    pub(crate) fn adopt_module(phys: PhysAddr) -> Option<Self> {
        if !super::is_managed(phys) {
            return None;
        }
        let m = meta(phys.pfn());
        m.kind.compare_exchange(kind::MODULE, kind::USED, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        m.refs.store(1, Ordering::Relaxed);
        // SAFETY: the exchange made it ours; it is RAM that nothing else uses.
        Some(unsafe { Self::from_raw(phys.page_base()) })
    }

    #[inline(always)]
    pub(crate) fn ptr(&self) -> *mut u8 {
        (DIRECT_MAP | self.0.get()) as *mut u8
    }
    #[inline(always)]
    pub(super) fn pfn(&self) -> u64 {
        self.0.get() >> PAGE_SHIFT
    }
    /// Where it is on the memory bus.
    #[inline(always)]
    pub fn phys(&self) -> PhysAddr {
        PhysAddr(self.0.get())
    }
    /// How many references there are. May change at any time unless it is 1.
    #[inline]
    pub fn ref_count(&self) -> u32 {
        meta(self.pfn()).refs.load(Ordering::Acquire)
    }
    /// Whether this is the only reference: nobody else can reach or gain access to the frame.
    #[inline]
    pub fn is_unique(&self) -> bool {
        self.ref_count() == 1
    }

    /// A number for the owner's use, shared by all references (what kind of page this is). Unspecified until it is set.
    #[inline]
    pub fn tag(&self) -> u32 {
        meta(self.pfn()).prev.load(Ordering::Relaxed)
    }
    /// Sets [`Frame::tag`].
    #[inline]
    pub fn set_tag(&self, tag: u32) {
        meta(self.pfn()).prev.store(tag, Ordering::Relaxed);
    }

    #[inline]
    #[track_caller]
    fn range(&self, off: usize, len: usize) -> *mut u8 {
        assert!(off <= PAGE_SIZE && len <= PAGE_SIZE - off, "access outside of a frame");
        // SAFETY: within the frame.
        unsafe { self.ptr().add(off) }
    }
    /// Copies out. Panics when the range leaves the frame, as do all below.
    #[inline]
    #[track_caller]
    pub fn read(&self, off: usize, buf: &mut [u8]) {
        let p = self.range(off, buf.len());
        // SAFETY: `p` is valid for the length; `buf` is ours and cannot overlap a frame that it does not own.
        unsafe { copy::copy(buf.as_mut_ptr(), p, buf.len()) };
    }
    /// Copies in.
    #[inline]
    #[track_caller]
    pub fn write(&self, off: usize, data: &[u8]) {
        let p = self.range(off, data.len());
        // SAFETY: as for `read`.
        unsafe { copy::copy(p, data.as_ptr(), data.len()) };
    }
    /// Sets `len` bytes to `byte`.
    #[track_caller]
    pub fn fill(&self, off: usize, len: usize, byte: u8) {
        let p = self.range(off, len);
        // SAFETY: inside the frame.
        unsafe { copy::fill(p, byte, len) };
    }
    /// Sets all bytes to 0.
    pub fn zero(&self) {
        // SAFETY: 4 KiB of RAM in the direct map.
        unsafe { copy::zero_page(self.ptr()) };
    }
    /// Copies all of `src`.
    pub fn copy_from(&self, src: &Frame) {
        // SAFETY: both are 4 KiB of RAM in the direct map; the same frame on both sides is harmless.
        unsafe { copy::copy_page(self.ptr(), src.ptr()) };
    }
    /// Copies `len` bytes from another frame.
    #[track_caller]
    pub fn copy_range_from(&self, off: usize, src: &Frame, src_off: usize, len: usize) {
        let (d, s) = (self.range(off, len), src.range(src_off, len));
        if self == src {
            // SAFETY: inside one frame; `core::ptr::copy` allows overlap. Untyped memory as in the module documentation.
            unsafe { core::ptr::copy(s, d, len) };
        } else {
            // SAFETY: inside two different frames.
            unsafe { copy::copy(d, s, len) };
        }
    }
    /// A 32-bit word in the frame. Panics when `off` is not aligned.
    #[inline]
    #[track_caller]
    pub fn atomic_u32(&self, off: usize) -> &AtomicU32 {
        assert!(off.is_multiple_of(4));
        // SAFETY: inside the frame, aligned, alive as long as `self`; all kernel access is atomic or by opaque copies.
        unsafe { &*self.range(off, 4).cast::<AtomicU32>() }
    }
    /// A 64-bit word in the frame. Panics when `off` is not aligned.
    #[inline]
    #[track_caller]
    pub fn atomic_u64(&self, off: usize) -> &AtomicU64 {
        assert!(off.is_multiple_of(8));
        // SAFETY: as for `atomic_u32`.
        unsafe { &*self.range(off, 8).cast::<AtomicU64>() }
    }
    /// Copies from the frame to user memory in one step. May sleep in the fault handler.
    #[track_caller]
    pub fn copy_to_user(&self, off: usize, to: VirtAddr, len: usize) -> Result<(), UserFault> {
        let p = self.range(off, len);
        // SAFETY: `p` is readable for `len` bytes.
        unsafe { user::raw_copy_to_user(to, p, len) }
    }
    /// Copies from user memory into the frame in one step. May sleep in the fault handler.
    #[track_caller]
    pub fn copy_from_user(&self, off: usize, from: VirtAddr, len: usize) -> Result<(), UserFault> {
        let p = self.range(off, len);
        // SAFETY: `p` is writable for `len` bytes.
        unsafe { user::raw_copy_from_user(p, from, len) }
    }
}

impl Clone for Frame {
    #[inline]
    fn clone(&self) -> Self {
        get_ref(self.0.get());
        Self(self.0)
    }
}

impl Drop for Frame {
    #[inline]
    fn drop(&mut self) {
        if put_ref(self.0.get()) {
            free_frame(self.0.get());
        }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({:#x} x{})", self.0, self.ref_count())
    }
}

/// Contiguous frames, one reference to each. For DMA and tables.
pub struct FrameRun {
    first: u64,
    n: usize,
}

impl FrameRun {
    /// `n` contiguous frames, the first at a multiple of `align` pages (a power of two), all below `below` if given. The
    /// content is unspecified. `None` when there is no such run or free memory is down to the reserve.
    pub fn alloc(n: usize, align: usize, below: Option<PhysAddr>) -> Option<Self> {
        Self::alloc_reserve(n, align, below, RESERVE.load(Ordering::Relaxed))
    }
    pub(crate) fn alloc_reserve(n: usize, align: usize, below: Option<PhysAddr>, reserve: usize) -> Option<Self> {
        assert!(align.is_power_of_two());
        if n == 0 {
            return None;
        }
        let order = n.checked_next_power_of_two()?.max(align).trailing_zeros();
        if order > buddy::MAX_ORDER {
            return None;
        }
        let mut b = buddy::lock();
        if b.free_frames() < reserve.checked_add(n)? {
            return None;
        }
        let first = match below {
            None => b.alloc(order),
            Some(limit) => b.alloc_below(order, limit.pfn()),
        }?;
        b.free_range(first + n as u64, (1 << order) - n as u64);
        drop(b);
        for pfn in first..first + n as u64 {
            let m = meta(pfn);
            m.kind.store(kind::USED, Ordering::Relaxed);
            m.refs.store(1, Ordering::Relaxed);
        }
        Some(Self { first, n })
    }
    /// Takes over a run whose owner forgot it.
    ///
    /// # Safety
    /// The caller owns one reference to each of `n` frames from `phys` on.
    pub(crate) unsafe fn from_raw(phys: PhysAddr, n: usize) -> Self {
        Self { first: phys.pfn(), n }
    }
    /// As [`FrameRun::alloc`], full of zeroes.
    pub fn alloc_zeroed(n: usize, align: usize, below: Option<PhysAddr>) -> Option<Self> {
        let r = Self::alloc(n, align, below)?;
        for i in 0..n {
            // SAFETY: frames of the run, ours alone, in the direct map.
            unsafe { copy::zero_page(r.phys().direct().add(i * PAGE_SIZE)) };
        }
        Some(r)
    }
    /// Address of the first frame.
    pub fn phys(&self) -> PhysAddr {
        PhysAddr(self.first << PAGE_SHIFT)
    }
    /// Number of frames.
    #[allow(clippy::len_without_is_empty, reason = "a run is never empty")]
    pub fn len(&self) -> usize {
        self.n
    }
    /// A further reference to frame `i`, for mapping it somewhere. Panics when there is no such frame.
    #[track_caller]
    pub fn frame(&self, i: usize) -> Frame {
        assert!(i < self.n);
        get_ref((self.first + i as u64) << PAGE_SHIFT);
        // SAFETY: the reference was just added.
        unsafe { Frame::from_raw(PhysAddr((self.first + i as u64) << PAGE_SHIFT)) }
    }
    /// Sets the [`Frame::tag`] of each.
    pub fn set_tag(&self, tag: u32) {
        for pfn in self.first..self.first + self.n as u64 {
            meta(pfn).prev.store(tag, Ordering::Relaxed);
        }
    }
    /// The frames, each with its reference.
    pub fn into_frames(self) -> impl ExactSizeIterator<Item = Frame> {
        let this = ManuallyDrop::new(self);
        let first = this.first;
        (0..this.n).map(move |i| {
            // SAFETY: the run's reference to frame `i` goes to the `Frame`.
            unsafe { Frame::from_raw(PhysAddr((first + i as u64) << PAGE_SHIFT)) }
        })
    }
}

impl Drop for FrameRun {
    fn drop(&mut self) {
        // Neighbours that nobody else holds go back as blocks.
        let end = self.first + self.n as u64;
        let mut start = self.first;
        for pfn in self.first..end {
            if !put_ref(pfn << PAGE_SHIFT) {
                if start < pfn {
                    buddy::lock().free_range(start, pfn - start);
                }
                start = pfn + 1;
            }
        }
        if start < end {
            buddy::lock().free_range(start, end - start);
        }
    }
}

/// Frees boot module pages that nobody adopted.
pub(crate) fn release_module_page(phys: PhysAddr) {
    drop(Frame::adopt_module(phys));
}

/// Physical memory in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryStats {
    /// Frames that the allocator manages.
    pub total: usize,
    /// Free frames, those in per-CPU caches included.
    pub free: usize,
}

/// Counts managed and free frames. Free counts may be some frames off while other CPUs allocate.
pub fn stats() -> MemoryStats {
    let (total, mut free) = buddy::counts();
    for cpu in percpu::online().iter() {
        if let Some(l) = percpu::local_of(cpu) {
            // SAFETY: only the atomic count is read; no reference to the rest is made.
            free += unsafe {
                let n = &raw const (*l.frames.get()).n;
                (*n).load(Ordering::Relaxed) as usize
            };
        }
    }
    MemoryStats { total, free }
}

/// Frames kept back for the kernel: [`Frame::alloc`] and [`FrameRun::alloc`] fail rather than go below, while the heap and
/// page tables of the kernel may use them.
pub fn set_reserve(frames: usize) {
    RESERVE.store(frames, Ordering::Relaxed);
}

/// Whether free memory is below twice the reserve: time to reclaim.
#[inline]
pub fn low() -> bool {
    buddy::free_estimate() < RESERVE.load(Ordering::Relaxed).saturating_mul(2)
}
