//! The first Rust code: gathers [`BootInfo`] and brings hal up in order.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};

use super::memmap::{MAX_REGIONS, MemoryKind, MemoryRegion};
use super::{BootInfo, Raw, multiboot2, pvh};
use crate::addr::PhysAddr;

#[cfg(target_os = "none")]
core::arch::global_asm!(include_str!("entry.s"), start = sym start);

unsafe extern "Rust" {
    /// What hal hands the machine to; defined by `kernel/main`.
    safe fn kernel_main(info: &'static BootInfo) -> !;
}

/// A static that the boot CPU writes once, before any other code can see it.
struct BootCell<T>(UnsafeCell<MaybeUninit<T>>, AtomicBool);
// SAFETY: written once by the boot CPU while it runs alone; `get` checks the flag that the write releases.
unsafe impl<T: Sync> Sync for BootCell<T> {}

impl<T> BootCell<T> {
    const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::uninit()), AtomicBool::new(false))
    }
    /// Stores the value. Panics on the second call.
    fn set(&'static self, v: T) -> &'static T {
        assert!(!self.1.load(Ordering::Relaxed));
        // SAFETY: the flag is clear, so no reference to the content exists, and only the boot CPU runs.
        let r = unsafe { (*self.0.get()).write(v) };
        self.1.store(true, Ordering::Release);
        r
    }
    fn get(&self) -> Option<&T> {
        // SAFETY: the flag is set after the value was written, which happens once.
        self.1.load(Ordering::Acquire).then(|| unsafe { (*self.0.get()).assume_init_ref() })
    }
}

const CMDLINE_MAX: usize = 4096;
static INFO: BootCell<BootInfo> = BootCell::new();
static CMDLINE: BootCell<[u8; CMDLINE_MAX]> = BootCell::new();
static LOADER: BootCell<[u8; 64]> = BootCell::new();
static MEMORY: BootCell<[MemoryRegion; MAX_REGIONS]> = BootCell::new();

/// What the loader told.
///
/// # Panics
/// Before boot has got that far, which no caller outside hal can see.
pub fn info() -> &'static BootInfo {
    INFO.get().expect("boot information is not there yet")
}

/// As [`info`], for what may run very early (the log, panics).
pub(crate) fn try_info() -> Option<&'static BootInfo> {
    INFO.get()
}

unsafe extern "C" {
    static __boot_start: u8;
    static __image_end: u8;
    static __ksyms_start: u8;
}
/// Distance between the kernel image's virtual and physical addresses.
pub(crate) const KERNEL_OFFSET: u64 = 0xffff_ffff_8000_0000;

/// Physical range of the kernel image, from the boot code to the end of the appended symbol table.
pub fn kernel_image() -> core::ops::Range<PhysAddr> {
    let ksyms = &raw const __ksyms_start as u64 - KERNEL_OFFSET;
    let end = (&raw const __image_end as u64 - KERNEL_OFFSET).max(ksyms + crate::panic::ksyms_len() as u64);
    PhysAddr(&raw const __boot_start as u64)..PhysAddr(end).page_up().expect("image below 4 GiB")
}

/// Physical memory through the identity map of the entry code: below 4 GiB, until `mm::init` replaces it.
fn identity(at: u64, len: usize) -> Option<&'static [u8]> {
    let end = at.checked_add(len as u64)?;
    if at == 0 || end > 1 << 32 {
        return None;
    }
    // SAFETY: the entry code maps the first 4 GiB; the loader's data is RAM that nobody writes before the copy in `gather`.
    Some(unsafe { core::slice::from_raw_parts(at as *const u8, len) })
}

/// The Rust entry, called by `entry.s` on the boot stack with interrupts off.
extern "C" fn start(magic: u32, at: u32) -> ! {
    crate::serial::early_init();
    let info = gather(magic, u64::from(at));
    crate::log::set_options(info.cmdline);
    crate::info!("Ursa {} on {}, loaded by {}", env!("CARGO_PKG_VERSION"), crate::cpu::brand(), info.loader);
    crate::info!("command line: {}", info.cmdline);
    for r in info.memory {
        crate::debug!("memory {:#014x}..{:#014x} {:?}", r.start.0, r.end().0, r.kind);
    }
    crate::percpu::init_bsp();
    crate::mm::init(info);
    crate::trap::init_cpu();
    crate::fpu::init_cpu();
    crate::task::init_idle();
    crate::console::init();
    crate::acpi::init();
    crate::smp::enumerate();
    crate::irq::init();
    crate::time::init();
    crate::serial::init();
    crate::cpu::irq_enable();
    kernel_main(info)
}

/// Parses the loader's data and copies it into statics.
fn gather(magic: u32, at: u64) -> &'static BootInfo {
    let raw = if magic == multiboot2::MAGIC {
        let len = identity(at, 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
        multiboot2::parse(identity(at, len.min(1 << 20)).unwrap_or(&[]), at)
    } else {
        pvh::parse(at, identity).unwrap_or_else(|| panic!("started by no loader that Ursa knows (PVH or multiboot2)"))
    };
    let Raw { cmdline, loader, module, framebuffer, mut memory, .. } = raw;
    // The RSDP may lie in loader memory that is handed out later: its pages are kept.
    if let Some(rsdp) = raw.rsdp {
        memory.add(rsdp.0, 36, MemoryKind::AcpiReclaimable);
    }
    let image = kernel_image();
    memory.add(image.start.0, image.end - image.start, MemoryKind::Kernel);
    if let Some(m) = module {
        memory.add(m.start.0, m.len, MemoryKind::Module);
    }
    if memory.dropped > 0 {
        crate::warn!("memory map: {} entries dropped", memory.dropped);
    }

    let cmdline = keep_text(&CMDLINE, cmdline);
    let loader = keep_text(&LOADER, loader);
    let mut regions = [MemoryRegion { start: PhysAddr(0), len: 0, kind: MemoryKind::Reserved }; MAX_REGIONS];
    let n = memory.finish(&mut regions);
    INFO.set(BootInfo { cmdline, memory: &MEMORY.set(regions)[..n], module, framebuffer, rsdp: raw.rsdp, loader })
}

/// Copies text into a static; cut at the end or at the first byte that is not UTF-8.
fn keep_text<const N: usize>(cell: &'static BootCell<[u8; N]>, text: &[u8]) -> &'static str {
    let mut buf = [0; N];
    let n = text.len().min(N);
    buf[..n].copy_from_slice(&text[..n]);
    let kept = &cell.set(buf)[..n];
    match core::str::from_utf8(kept) {
        Ok(s) => s,
        Err(e) => core::str::from_utf8(&kept[..e.valid_up_to()]).unwrap_or(""),
    }
    .trim()
}
