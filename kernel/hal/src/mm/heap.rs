//! The kernel heap: the global allocator.
//!
//! Sizes up to 4 KiB come from slab classes; each CPU keeps a short list of free objects (a magazine) for each class, so that
//! the common path touches no lock. Magazines refill from and spill to the class's slabs in batches. A slab is one page, or
//! an aligned run of four for the larger classes; its free list and use count live in the frame metadata of its first page,
//! so an object's slab is found by rounding its address down, and a slab that becomes empty is given back.
//!
//! Larger blocks are runs of frames in the direct map, or, when memory is fragmented, frames shown in the vmap area.
//!
//! The heap may use the frame reserve ([`super::set_reserve`]): it fails only when nothing is left at all.
//!
//! Interrupt handlers may allocate and free: while a CPU's magazines are being changed its `alloc_busy` flag sends them to the
//! slabs, which an `IrqLock` guards.
//!
//! Reference: Bonwick and Adams, "Magazines and Vmem", USENIX 2001.

use super::buddy;
use super::frame::{Frame, FrameRun, kind, meta};
use super::vmap::{VmapArea, free_frames};
use crate::addr::{DIRECT_MAP, DIRECT_MAP_SIZE, PAGE_SHIFT, PAGE_SIZE, PhysAddr, VMAP};
use crate::percpu;
use crate::sync::IrqLock;
use core::alloc::{GlobalAlloc, Layout};
use core::mem::ManuallyDrop;
use core::ptr;
use core::sync::atomic::{Ordering, compiler_fence};

const SIZES: [usize; 18] = [16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1536, 2048, 3072, 4096];
const CLASSES: usize = SIZES.len();
const LARGEST: usize = 4096;
/// Classes from here on use slabs of four pages.
const FOUR_PAGES_FROM: usize = 640;
/// No free object in a slab.
const NONE: u32 = 0xffff;

/// Class of a size, by 16-byte steps.
const CLASS_OF: [u8; LARGEST / 16 + 1] = {
    let mut t = [0; LARGEST / 16 + 1];
    let mut i = 0;
    while i < t.len() {
        let mut c = 0;
        while SIZES[c] < i * 16 {
            c += 1;
        }
        t[i] = c as u8;
        i += 1;
    }
    t
};

#[inline(always)]
const fn slab_pages(class: usize) -> u64 {
    if SIZES[class] >= FOUR_PAGES_FROM { 4 } else { 1 }
}
/// Objects that a magazine holds at most; about 8 KiB worth, at least 4.
const fn magazine(class: usize) -> u32 {
    let n = 16384 / SIZES[class];
    if n > 64 {
        64
    } else if n < 4 {
        4
    } else {
        n as u32
    }
}

/// One CPU's magazines.
pub(crate) struct HeapCache {
    mags: [Magazine; CLASSES],
}
struct Magazine {
    head: *mut Object,
    n: u32,
}
/// A free object.
struct Object {
    next: *mut Object,
}

impl HeapCache {
    pub(crate) const fn new() -> Self {
        Self { mags: [const { Magazine { head: ptr::null_mut(), n: 0 } }; CLASSES] }
    }
}

/// Slabs of a class that have free objects, linked by frame number.
struct Class {
    partial: u32,
}
static SLABS: [IrqLock<Class>; CLASSES] = [const { IrqLock::new(Class { partial: 0 }) }; CLASSES];

// Slab state in `Meta::refs`: low half the first free object's index, high half the number of objects in use.
fn state(pfn: u64) -> (u32, u32) {
    let v = meta(pfn).refs.load(Ordering::Relaxed);
    (v & 0xffff, v >> 16)
}
fn set_state(pfn: u64, first: u32, used: u32) {
    meta(pfn).refs.store(first | used << 16, Ordering::Relaxed);
}

impl Class {
    fn link(&mut self, pfn: u64) {
        let m = meta(pfn);
        m.next.store(self.partial, Ordering::Relaxed);
        m.prev.store(0, Ordering::Relaxed);
        if self.partial != 0 {
            meta(u64::from(self.partial)).prev.store(pfn as u32, Ordering::Relaxed);
        }
        self.partial = pfn as u32;
    }
    fn unlink(&mut self, pfn: u64) {
        let m = meta(pfn);
        let (next, prev) = (m.next.load(Ordering::Relaxed), m.prev.load(Ordering::Relaxed));
        if prev == 0 {
            self.partial = next;
        } else {
            meta(u64::from(prev)).next.store(next, Ordering::Relaxed);
        }
        if next != 0 {
            meta(u64::from(next)).prev.store(prev, Ordering::Relaxed);
        }
        m.next.store(0, Ordering::Relaxed);
        m.prev.store(0, Ordering::Relaxed);
    }

    /// A new slab with all objects free, on the list.
    fn grow(&mut self, class: usize) -> bool {
        let pages = slab_pages(class);
        let pfn = if pages == 1 {
            match buddy::lock().alloc(0) {
                Some(p) => p,
                None => return false,
            }
        } else {
            match buddy::lock().alloc(pages.trailing_zeros()) {
                Some(p) => p,
                None => return false,
            }
        };
        let m = meta(pfn);
        m.kind.store(kind::SLAB | (class as u32) << 8, Ordering::Relaxed);
        let size = SIZES[class];
        let n = pages as usize * PAGE_SIZE / size;
        let base = (DIRECT_MAP + (pfn << PAGE_SHIFT)) as *mut u8;
        for i in 0..n {
            // SAFETY: inside the slab's pages, which are ours; objects are at least 16 bytes and 16-aligned.
            unsafe {
                let o = base.add(i * size).cast::<Object>();
                let next = if i + 1 < n { base.add((i + 1) * size).cast() } else { ptr::null_mut() };
                o.write(Object { next });
            }
        }
        set_state(pfn, 0, 0);
        self.link(pfn);
        true
    }

    /// Takes one object.
    fn take(&mut self, class: usize) -> *mut Object {
        if self.partial == 0 && !self.grow(class) {
            return ptr::null_mut();
        }
        let pfn = u64::from(self.partial);
        let base = DIRECT_MAP + (pfn << PAGE_SHIFT);
        let (first, used) = state(pfn);
        let o = (base + u64::from(first) * SIZES[class] as u64) as *mut Object;
        // SAFETY: the first free object of a slab on the partial list; only the class's lock holder touches free objects.
        let next = unsafe { (*o).next };
        if next.is_null() {
            set_state(pfn, NONE, used + 1);
            self.unlink(pfn);
        } else {
            set_state(pfn, ((next as u64 - base) / SIZES[class] as u64) as u32, used + 1);
        }
        o
    }

    /// Puts one object back.
    fn give(&mut self, class: usize, o: *mut Object) {
        let pages = slab_pages(class);
        let pfn = ((o as u64 - DIRECT_MAP) >> PAGE_SHIFT) & !(pages - 1);
        let base = DIRECT_MAP + (pfn << PAGE_SHIFT);
        let (first, used) = state(pfn);
        if first == NONE {
            self.link(pfn);
        }
        if used == 1 {
            self.unlink(pfn);
            meta(pfn).kind.store(kind::USED, Ordering::Relaxed);
            meta(pfn).refs.store(0, Ordering::Relaxed);
            buddy::lock().free(pfn, pages.trailing_zeros());
            return;
        }
        let next = if first == NONE {
            ptr::null_mut()
        } else {
            (base + u64::from(first) * SIZES[class] as u64) as *mut Object
        };
        // SAFETY: the object was just given up by its owner.
        unsafe { o.write(Object { next }) };
        set_state(pfn, ((o as u64 - base) / SIZES[class] as u64) as u32, used - 1);
    }
}

#[cold]
fn refill(mag: &mut Magazine, class: usize) -> *mut u8 {
    let mut c = SLABS[class].lock();
    let first = c.take(class);
    if first.is_null() {
        return ptr::null_mut();
    }
    for _ in 0..magazine(class) / 2 {
        // Do not take a new slab only to fill up.
        if c.partial == 0 {
            break;
        }
        let o = c.take(class);
        if o.is_null() {
            break;
        }
        // SAFETY: the object is ours now.
        unsafe { o.write(Object { next: mag.head }) };
        mag.head = o;
        mag.n += 1;
    }
    first.cast()
}

#[cold]
fn spill(mag: &mut Magazine, class: usize) {
    let mut c = SLABS[class].lock();
    while mag.n > magazine(class) / 2 {
        let o = mag.head;
        // SAFETY: objects in the magazine are free and linked.
        mag.head = unsafe { (*o).next };
        mag.n -= 1;
        c.give(class, o);
    }
}

#[inline(always)]
fn with_magazine<R>(class: usize, f: impl FnOnce(&mut Magazine) -> R) -> Option<R> {
    let l = percpu::local();
    if l.alloc_busy.get() {
        return None;
    }
    l.alloc_busy.set(true);
    compiler_fence(Ordering::SeqCst);
    // SAFETY: this CPU's own; no preemption, and `alloc_busy` keeps interrupt handlers and nested calls away.
    let r = f(unsafe { &mut (*l.heap.get()).mags[class] });
    compiler_fence(Ordering::SeqCst);
    l.alloc_busy.set(false);
    Some(r)
}

/// The class for a layout, if it is small. Sizes with more than 16 bytes of alignment are rounded up to a power of two, whose
/// objects are aligned to their size.
#[inline(always)]
fn class_of(layout: &Layout) -> Option<usize> {
    let mut size = layout.size();
    if layout.align() > 16 {
        size = size.max(layout.align()).checked_next_power_of_two()?;
    }
    if size > LARGEST {
        return None;
    }
    Some(usize::from(CLASS_OF[size.div_ceil(16)]))
}

#[inline]
fn alloc_small(class: usize) -> *mut u8 {
    let got = with_magazine(class, |m| {
        let o = m.head;
        if o.is_null() {
            return refill(m, class);
        }
        // SAFETY: objects in the magazine are free and linked.
        m.head = unsafe { (*o).next };
        m.n -= 1;
        o.cast()
    });
    got.unwrap_or_else(|| SLABS[class].lock().take(class).cast())
}

#[inline]
fn free_small(class: usize, p: *mut u8) {
    let o = p.cast::<Object>();
    let done = with_magazine(class, |m| {
        // SAFETY: the object's owner gave it up; it is at least 16 bytes and aligned.
        unsafe { o.write(Object { next: m.head }) };
        m.head = o;
        m.n += 1;
        if m.n > magazine(class) {
            spill(m, class);
        }
    });
    if done.is_none() {
        SLABS[class].lock().give(class, o);
    }
}

#[cold]
fn alloc_large(layout: &Layout) -> *mut u8 {
    let pages = layout.size().div_ceil(PAGE_SIZE).max(1);
    let align = layout.align().div_ceil(PAGE_SIZE);
    if let Some(run) = FrameRun::alloc_reserve(pages, align, None, 0) {
        return ManuallyDrop::new(run).phys().direct();
    }
    if align > 1 || pages < 2 {
        return ptr::null_mut();
    }
    let Some(area) = VmapArea::new(pages) else { return ptr::null_mut() };
    for i in 0..pages {
        let ok = Frame::alloc_kernel().is_some_and(|f| {
            let phys = f.into_raw();
            let ok = area.set(i, phys, true, super::CacheMode::WriteBack);
            if !ok {
                // SAFETY: the reference given up just above; not mapped.
                drop(unsafe { Frame::from_raw(phys) });
            }
            ok
        });
        if !ok {
            free_frames(&area);
            return ptr::null_mut();
        }
    }
    ManuallyDrop::new(area).base() as *mut u8
}

#[cold]
fn free_large(p: *mut u8, layout: &Layout) {
    let pages = layout.size().div_ceil(PAGE_SIZE).max(1);
    let at = p as u64;
    if (DIRECT_MAP..DIRECT_MAP + DIRECT_MAP_SIZE).contains(&at) {
        // SAFETY: the block came from `alloc_large`, whose run had this address and length.
        drop(unsafe { FrameRun::from_raw(PhysAddr(at - DIRECT_MAP), pages) });
    } else {
        debug_assert!(at >= VMAP);
        // SAFETY: the block came from `alloc_large`, whose area had this base and length.
        let area = unsafe { VmapArea::from_raw(at, pages) };
        free_frames(&area);
    }
}

struct Heap;

#[cfg(target_os = "none")]
#[global_allocator]
static HEAP: Heap = Heap;

// SAFETY: blocks come from slabs, runs and areas that are not handed out twice; class sizes and alignments cover the layout.
unsafe impl GlobalAlloc for Heap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class_of(&layout) {
            Some(c) => alloc_small(c),
            None => alloc_large(&layout),
        }
    }
    #[inline]
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        match class_of(&layout) {
            Some(c) => free_small(c, p),
            None => free_large(p, &layout),
        }
    }
}
