//! Memory: frames, page tables, the kernel heap.
//!
//! | module | what |
//! |---|---|
//! | [`frame`] | reference-counted frames, per-CPU caches; [`buddy`] behind them |
//! | [`space`] | user page tables ([`UserSpace`]) |
//! | [`kernel`] | the kernel's tables: image with W^X, direct map, vmap area ([mod@vmap]) |
//! | [mod@mmio] | device registers |
//! | [`tlb`] | shoot-down on other CPUs |
//! | [`heap`] | the global allocator |
//!
//! Order of locks, outermost first: a space's lock, the vmap area's, a heap class's, the buddy allocator's.

pub(crate) mod buddy;
pub(crate) mod copy;
pub(crate) mod frame;
pub(crate) mod heap;
pub(crate) mod kernel;
mod memfn;
mod mmio;
mod pte;
mod space;
pub(crate) mod tables;
#[cfg(target_os = "none")]
mod tests;
pub mod tlb;
mod vmap;

pub use frame::{Frame, FrameRun, MemoryStats, low, set_reserve, stats};
pub(crate) use kernel::write_cr3 as load_root;
pub use kernel::{activate_kernel, kernel_root};
pub(crate) use mmio::map_firmware;
pub use mmio::{Mmio, mmio};
pub use pte::{CacheMode, Prot};
pub use space::{BLOCK_FRAMES, BLOCK_SIZE, MapError, Mapping, UserSpace, WriteFault, mapped_blocks};
pub use vmap::{KernelMapping, vmap};
pub(crate) use vmap::{VmapArea, free_frames as free_area_frames, map_stack};

use crate::addr::PhysAddr;
use crate::boot::{BootInfo, MemoryKind};
use crate::sync::Once;

static BOOT: Once<&'static BootInfo> = Once::new();

/// Takes memory over from the boot page tables: metadata, final kernel tables, frame allocator, heap. Called once on the
/// boot CPU, with interrupts off.
pub fn init(boot: &'static BootInfo) {
    BOOT.call_once(|| boot);
    crate::user::patch_smap();
    crate::user::sort_ex_table();
    kernel::init(boot);
    let s = stats();
    crate::info!("memory: {} MiB, {} MiB free", s.total >> 8, s.free >> 8);
}

/// Whether the frame at `phys` has metadata and may be handed out: usable RAM and the boot module.
pub(crate) fn is_managed(phys: PhysAddr) -> bool {
    BOOT.get().is_some_and(|b| {
        b.memory.iter().any(|r| {
            matches!(r.kind, MemoryKind::Usable | MemoryKind::Module) && r.start <= phys && phys - r.start < r.len
        })
    })
}

/// Whether any of `[phys, phys+len)` is RAM that the kernel uses or hands out.
pub fn overlaps_ram(phys: PhysAddr, len: u64) -> bool {
    let Some(end) = phys.checked_add(len) else { return true };
    BOOT.get().is_none_or(|b| {
        b.memory.iter().any(|r| {
            matches!(r.kind, MemoryKind::Usable | MemoryKind::Module | MemoryKind::Kernel)
                && r.start < end
                && phys < r.end()
        })
    })
}

/// Adopts page `phys` of the boot module as a frame, once.
pub(crate) fn adopt_module_page(phys: PhysAddr) -> Option<Frame> {
    Frame::adopt_module(phys)
}

/// Frees page `phys` of the boot module if nobody adopted it.
pub(crate) fn release_module_page(phys: PhysAddr) {
    frame::release_module_page(phys);
}
