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
const _: () = assert!(4 * PAGE_SIZE / 16 < NONE as usize);

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
/// Slots of a magazine.
const SLOTS: usize = 64;
/// Objects that a magazine holds at most; about 16 KiB worth, at least 4.
const LIMIT: [u8; CLASSES] = {
    let mut t = [0; CLASSES];
    let mut c = 0;
    while c < CLASSES {
        let n = 16384 / SIZES[c];
        t[c] = if n > SLOTS {
            SLOTS
        } else if n < 4 {
            4
        } else {
            n
        } as u8;
        c += 1;
    }
    t
};

/// One CPU's magazines.
pub(crate) struct HeapCache {
    mags: [Magazine; CLASSES],
}
struct Magazine {
    n: u32,
    limit: u32,
    objects: [*mut Object; SLOTS],
}
/// A free object in a slab.
struct Object {
    /// Offset of the next one in 16-byte units.
    next: u32,
}

impl HeapCache {
    pub(crate) const fn new() -> Self {
        let mut mags = [const { Magazine { n: 0, limit: 0, objects: [ptr::null_mut(); SLOTS] } }; CLASSES];
        let mut c = 0;
        while c < CLASSES {
            mags[c].limit = LIMIT[c] as u32;
            c += 1;
        }
        Self { mags }
    }
}

/// Slabs of a class that have free objects, linked by frame number.
struct Class {
    partial: u32,
}
static SLABS: [IrqLock<Class>; CLASSES] = [const { IrqLock::new(Class { partial: 0 }) }; CLASSES];

// Slab state. `Meta::refs`: low half the first free object (offset in 16-byte units, NONE: none), high half the number of objects in
// use. `Meta::kind`: class in bits 8 to 15, number of objects that were ever handed out in bits 16 and up; those behind need no list.
#[inline(always)]
fn state(pfn: u64) -> (u32, u32) {
    let v = meta(pfn).refs.load(Ordering::Relaxed);
    (v & 0xffff, v >> 16)
}
#[inline(always)]
fn set_state(pfn: u64, first: u32, used: u32) {
    meta(pfn).refs.store(first | used << 16, Ordering::Relaxed);
}
#[inline(always)]
const fn capacity(class: usize) -> u32 {
    (slab_pages(class) as usize * PAGE_SIZE / SIZES[class]) as u32
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
        let Some(pfn) = buddy::lock().alloc(slab_pages(class).trailing_zeros()) else { return false };
        meta(pfn).kind.store(kind::SLAB | (class as u32) << 8, Ordering::Relaxed);
        set_state(pfn, NONE, 0);
        self.link(pfn);
        true
    }

    /// Takes up to `want` objects of one slab and passes them to `f`; makes a slab when there is none and `want_slab`. Returns how many.
    fn take(&mut self, class: usize, want: u32, want_slab: bool, mut f: impl FnMut(*mut Object)) -> u32 {
        if self.partial == 0 && !(want_slab && self.grow(class)) {
            return 0;
        }
        let pfn = u64::from(self.partial);
        let base = (DIRECT_MAP + (pfn << PAGE_SHIFT)) as *mut u8;
        let (mut first, used) = state(pfn);
        let m = meta(pfn);
        let k = m.kind.load(Ordering::Relaxed);
        let mut fresh = k >> 16;
        let mut n = 0;
        while n < want {
            // SAFETY: list and fresh objects are inside the slab and free; only the class's lock holder touches them.
            let o = unsafe {
                if first != NONE {
                    let o = base.add(first as usize * 16).cast::<Object>();
                    first = (*o).next;
                    o
                } else if fresh < capacity(class) {
                    let o = base.add(fresh as usize * SIZES[class]).cast::<Object>();
                    fresh += 1;
                    o
                } else {
                    break;
                }
            };
            f(o);
            n += 1;
        }
        set_state(pfn, first, used + n);
        m.kind.store(k & 0xffff | fresh << 16, Ordering::Relaxed);
        if first == NONE && fresh == capacity(class) {
            self.unlink(pfn);
        }
        n
    }

    /// Puts one object back.
    fn give(&mut self, class: usize, o: *mut Object) {
        let pages = slab_pages(class);
        let pfn = ((o as u64 - DIRECT_MAP) >> PAGE_SHIFT) & !(pages - 1);
        let (first, used) = state(pfn);
        if used == 1 {
            // A full slab of one object is on no list; there is none such: all slabs hold several.
            self.unlink(pfn);
            meta(pfn).kind.store(kind::USED, Ordering::Relaxed);
            meta(pfn).refs.store(0, Ordering::Relaxed);
            buddy::lock().free(pfn, pages.trailing_zeros());
            return;
        }
        if used == capacity(class) {
            self.link(pfn);
        }
        // SAFETY: the object was just given up by its owner.
        unsafe { o.write(Object { next: first }) };
        let at = (o as u64 & (pages * PAGE_SIZE as u64 - 1)) / 16;
        set_state(pfn, at as u32, used - 1);
    }
}

/// Takes an object for the caller and half a magazine full besides.
#[cold]
#[inline(never)]
fn alloc_slow(class: usize) -> *mut u8 {
    let mut first: *mut Object = ptr::null_mut();
    let done = with_magazine(class, |m| {
        let mut c = SLABS[class].lock();
        let want = (m.limit / 2).max(1);
        let mut got = 0;
        // A new slab only for the first object, not to fill up.
        while got < want {
            let n = c.take(class, want - got, got == 0, |o| {
                if first.is_null() {
                    first = o;
                } else {
                    m.objects[m.n as usize] = o;
                    m.n += 1;
                }
            });
            if n == 0 {
                break;
            }
            got += n;
        }
    });
    if done.is_none() {
        SLABS[class].lock().take(class, 1, true, |o| first = o);
    }
    first.cast()
}

/// Puts an object back past a full magazine, half of which goes back, too.
#[cold]
#[inline(never)]
fn free_slow(class: usize, o: *mut Object) {
    let done = with_magazine(class, |m| {
        let mut c = SLABS[class].lock();
        // The older half; what was freed last stays.
        let n = m.n.min(m.limit / 2) as usize;
        for old in &m.objects[..n] {
            c.give(class, *old);
        }
        m.objects.copy_within(n.., 0);
        m.n -= n as u32;
        m.objects[m.n as usize] = o;
        m.n += 1;
    });
    if done.is_none() {
        SLABS[class].lock().give(class, o);
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
    Some(usize::from(CLASS_OF[size.wrapping_add(15) / 16]))
}

#[inline(always)]
fn alloc_small(class: usize) -> *mut u8 {
    let got = with_magazine(class, |m| {
        if m.n == 0 {
            return ptr::null_mut::<u8>();
        }
        let i = m.n.wrapping_sub(1);
        m.n = i;
        m.objects[i as usize & (SLOTS - 1)].cast()
    });
    match got {
        Some(p) if !p.is_null() => p,
        _ => alloc_slow(class),
    }
}

#[inline(always)]
fn free_small(class: usize, p: *mut u8) {
    let o = p.cast::<Object>();
    let done = with_magazine(class, |m| {
        if m.n >= m.limit {
            return false;
        }
        m.objects[m.n as usize & (SLOTS - 1)] = o;
        m.n = m.n.wrapping_add(1);
        true
    });
    if done != Some(true) {
        free_slow(class, o);
    }
}

#[cold]
#[inline(never)]
fn alloc_large(layout: Layout) -> *mut u8 {
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
#[inline(never)]
fn free_large(p: *mut u8, layout: Layout) {
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
    #[inline(always)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class_of(&layout) {
            Some(c) => alloc_small(c),
            None => alloc_large(layout),
        }
    }
    #[inline(always)]
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        match class_of(&layout) {
            Some(c) => free_small(c, p),
            None => free_large(p, layout),
        }
    }
}
