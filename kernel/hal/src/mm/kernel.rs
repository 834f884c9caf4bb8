//! The kernel's own page tables.
//!
//! Built once from the memory map: the image with text executable and read-only, rodata read-only, data writable and not
//! executable; all RAM in the direct map, never executable, with the image's text and rodata read-only there too;
//! the metadata array. Entries are global (they survive CR3 loads). All top-level entries that will ever be used exist
//! after [`init`], so that user spaces copy them once and never look again.

use super::buddy::{self, SECTION};
use super::frame::{Frame, Meta, kind, meta};
use super::pte::{A, ADDR, CacheMode, D, G, NX, P, PS, TABLE, U, W};
use crate::addr::{DIRECT_MAP, DIRECT_MAP_SIZE, KERNEL_BASE, PAGE_SHIFT, PAGE_SIZE, PhysAddr, VMAP, VMEMMAP};
use crate::boot::{BootInfo, MemoryKind};
use crate::sync::{Once, SpinLock};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

const PAGE: u64 = PAGE_SIZE as u64;
const MIB2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

static ROOT: AtomicU64 = AtomicU64::new(0);
static TABLES: SpinLock<()> = SpinLock::new(());
/// Top-level entries of the kernel half that are in use.
static TOP: Once<([(u16, u64); 8], usize)> = Once::new();

/// Physical address of the kernel's top-level table, for CR3 on a starting CPU.
pub fn kernel_root() -> PhysAddr {
    PhysAddr(ROOT.load(Ordering::Acquire))
}

/// Loads the kernel's own tables on this CPU.
pub fn activate_kernel() {
    write_cr3(kernel_root());
}

#[inline(always)]
pub(crate) fn write_cr3(root: PhysAddr) {
    // SAFETY: every root that reaches this maps the whole kernel half.
    unsafe { asm!("mov cr3, {}", in(reg) root.0, options(nostack, preserves_flags)) };
}

/// The entries of a table in the direct map.
#[inline(always)]
pub(super) fn entry(table: PhysAddr, index: usize) -> &'static AtomicU64 {
    // SAFETY: `table` is a page-table frame, which stays one as long as anyone can walk to it; the index is masked.
    unsafe { &*((DIRECT_MAP | table.0) as *const AtomicU64).add(index & 511) }
}

/// Index into the table of `level` (1 = leaf).
#[inline(always)]
pub(super) const fn index(va: u64, level: u32) -> usize {
    (va >> (PAGE_SHIFT + 9 * (level - 1))) as usize & 511
}

/// Memory for tables while there is no frame allocator.
struct Early {
    next: u64,
    end: u64,
}

impl Early {
    fn page(&mut self) -> PhysAddr {
        assert!(self.next < self.end, "too little memory to boot: no room for the page tables");
        let p = PhysAddr(self.next);
        self.next += PAGE;
        // SAFETY: usable RAM below 4 GiB that nothing else uses yet; mapped by the boot tables.
        unsafe { super::copy::zero_page(p.direct()) };
        p
    }
}

/// Maps `size` bytes at `va` with one entry of `level`, making tables with `alloc`. False when there is no memory.
fn set(root: PhysAddr, va: u64, level: u32, value: u64, mut alloc: impl FnMut() -> Option<PhysAddr>) -> bool {
    let mut table = root;
    for l in (level + 1..=4).rev() {
        let e = entry(table, index(va, l));
        let mut v = e.load(Ordering::Relaxed);
        if v & P == 0 {
            let Some(t) = alloc() else { return false };
            v = t.0 | (TABLE & !U);
            e.store(v, Ordering::Release);
        }
        assert!(v & PS == 0, "kernel mapping inside a large page");
        table = PhysAddr(v & ADDR);
    }
    entry(table, index(va, level)).store(value, Ordering::Release);
    true
}

unsafe extern "C" {
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
    static __data_start: u8;
    static __data_end: u8;
    static __boot_stack_guard: u8;
    static mut boot_pml4: [u64; 512];
}

macro_rules! symbol {
    ($s:ident) => {
        &raw const $s as u64
    };
}

/// Builds and loads the final tables, then fills the frame allocator.
pub(super) fn init(boot: &'static BootInfo) {
    // The boot tables map 4 GiB one to one; show the same at the direct map's place, so that `direct()` works from here on.
    // SAFETY: boot_pml4 is the live top-level table, reached through its identity mapping; slot 256 was empty.
    unsafe {
        let t = &raw mut boot_pml4;
        (*t)[index(DIRECT_MAP, 4)] = (*t)[0];
    }
    let home = boot
        .memory
        .iter()
        .filter(|r| r.kind == MemoryKind::Usable && r.start.0 < 4 * GIB)
        .max_by_key(|r| r.end().0.min(4 * GIB) - r.start.0)
        .expect("no usable memory below 4 GiB");
    let mut early = Early { next: home.start.0, end: home.end().0.min(4 * GIB) };
    let root = early.page();
    let image = crate::boot::kernel_image();
    let (ro_start, ro_end) = (symbol!(__text_start) - KERNEL_BASE, symbol!(__rodata_end) - KERNEL_BASE);

    let mut map = |va: u64, level: u32, value: u64| {
        set(root, va, level, value | A | D | G, || Some(early.page()));
    };
    // The image.
    let ranges = [
        (symbol!(__text_start), symbol!(__text_end), 0),
        (symbol!(__rodata_start), symbol!(__rodata_end), NX),
        (symbol!(__data_start), symbol!(__data_end), W | NX),
        (symbol!(__data_end), KERNEL_BASE + image.end.0, NX),
    ];
    for (start, end, bits) in ranges {
        for va in (start..end).step_by(PAGE_SIZE) {
            if va != symbol!(__boot_stack_guard) {
                map(va, 1, (va - KERNEL_BASE) | P | bits);
            }
        }
    }
    // The direct map.
    let has_1g = crate::cpu::cpuid(0x8000_0001, 0).edx & (1 << 26) != 0;
    for (start, end) in ram_spans(boot) {
        assert!(end <= DIRECT_MAP_SIZE, "more physical address space than the direct map covers");
        let mut at = start;
        while at < end {
            let clear =
                |size: u64| at.is_multiple_of(size) && end - at >= size && (at + size <= ro_start || at >= ro_end);
            if has_1g && clear(GIB) {
                map(DIRECT_MAP + at, 3, at | P | W | NX | PS);
                at += GIB;
            } else if clear(MIB2) {
                map(DIRECT_MAP + at, 2, at | P | W | NX | PS);
                at += MIB2;
            } else {
                let w = if (ro_start..ro_end).contains(&at) { 0 } else { W };
                map(DIRECT_MAP + at, 1, at | P | w | NX);
                at += PAGE;
            }
        }
    }
    // Metadata for every section that holds managed memory; sections of one region may be shared with the next one.
    let mut done = 0;
    for r in managed(boot) {
        let mut section = (r.start.pfn() / SECTION).max(done);
        while section * SECTION < r.end().pfn() {
            let bytes = SECTION * size_of::<Meta>() as u64;
            for off in (0..bytes).step_by(PAGE_SIZE) {
                let page = early.page();
                set(root, VMEMMAP + section * bytes + off, 1, page.0 | P | W | NX | A | D | G, || Some(early.page()));
            }
            section += 1;
        }
        done = section;
    }
    // The vmap area's one slot.
    let vmap_table = early.page();
    entry(root, index(VMAP, 4)).store(vmap_table.0 | (TABLE & !U), Ordering::Relaxed);
    let mut top = ([(0, 0); 8], 0);
    for i in 256..512 {
        let v = entry(root, i).load(Ordering::Relaxed);
        if v != 0 {
            // With more than 64 TiB of address space spread over slots this would need a longer array.
            top.0[top.1] = (i as u16, v);
            top.1 += 1;
        }
    }
    TOP.call_once(|| top);
    ROOT.store(root.0, Ordering::Release);
    write_cr3(root);

    // Metadata is reachable now.
    for r in managed(boot) {
        let pfns = r.start.pfn()..r.end().pfn();
        buddy::add_total(pfns.end - pfns.start);
        if r.kind == MemoryKind::Module {
            for pfn in pfns {
                meta(pfn).kind.store(kind::MODULE, Ordering::Relaxed);
            }
        } else {
            let start = if r.start == home.start { early.next >> PAGE_SHIFT } else { pfns.start };
            let mut b = buddy::lock();
            b.free_range(start, pfns.end - start);
        }
    }
}

fn managed(boot: &BootInfo) -> impl Iterator<Item = &crate::boot::MemoryRegion> {
    boot.memory.iter().filter(|r| matches!(r.kind, MemoryKind::Usable | MemoryKind::Module))
}

/// Spans of RAM, with neighbours joined, for large pages.
fn ram_spans(boot: &BootInfo) -> impl Iterator<Item = (u64, u64)> {
    let mut regions = boot.memory.iter().filter(|r| r.kind.is_ram()).peekable();
    core::iter::from_fn(move || {
        let first = regions.next()?;
        let mut end = first.end().0;
        while let Some(r) = regions.next_if(|r| r.start.0 == end) {
            end = r.end().0;
        }
        Some((first.start.0, end))
    })
}

/// Writes the kernel half into a new top-level table.
#[inline]
pub(super) fn copy_top(table: PhysAddr) {
    let (entries, n) = TOP.get().expect("mm::init has run");
    for &(i, v) in &entries[..*n] {
        entry(table, usize::from(i)).store(v, Ordering::Relaxed);
    }
}

/// Maps one page in the vmap area. False when there is no memory for a table.
pub(super) fn map_page(va: u64, phys: PhysAddr, write: bool, cache: CacheMode) -> bool {
    let w = if write { W } else { 0 };
    let _guard = TABLES.lock();
    set(kernel_root(), va, 1, phys.0 | P | w | NX | A | D | G | cache.bits(), || {
        let f = Frame::alloc_kernel()?;
        f.zero();
        Some(f.into_raw())
    })
}

/// Unmaps one page of the vmap area and returns what was there. The TLBs still know it.
pub(super) fn unmap_page(va: u64) -> Option<PhysAddr> {
    let mut table = kernel_root();
    for l in (2..=4).rev() {
        let v = entry(table, index(va, l)).load(Ordering::Acquire);
        if v & P == 0 || v & PS != 0 {
            return None;
        }
        table = PhysAddr(v & ADDR);
    }
    let old = entry(table, index(va, 1)).swap(0, Ordering::AcqRel);
    (old & P != 0).then_some(PhysAddr(old & ADDR))
}

/// Drops all TLB entries of this CPU, global ones too.
pub(super) fn flush_all_local() {
    // SAFETY: toggling CR4.PGE (or reloading CR3 where it is off) only empties the TLB.
    unsafe {
        let cr4: u64;
        asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack, preserves_flags));
        if cr4 & (1 << 7) != 0 {
            asm!("mov cr4, {}", "mov cr4, {}", in(reg) cr4 & !(1 << 7), in(reg) cr4, options(nostack, preserves_flags));
        } else {
            asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags));
        }
    }
}

/// Whether the kernel can write to and execute at `va`; `None` when nothing is mapped there. For tests.
pub(super) fn flags_of(va: u64) -> Option<(bool, bool)> {
    let mut table = kernel_root();
    for l in (1..=4).rev() {
        let v = entry(table, index(va, l)).load(Ordering::Acquire);
        if v & P == 0 {
            return None;
        }
        if l == 1 || v & PS != 0 {
            return Some((v & W != 0, v & NX == 0));
        }
        table = PhysAddr(v & ADDR);
    }
    None
}
