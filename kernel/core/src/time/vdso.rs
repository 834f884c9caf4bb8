//! The vDSO in the kernel: its image, the page of data that it reads, and the mapping of both into programs.
//!
//! The image is linked from `kernel/vdso` by `build.rs`. One page of data is shared by all programs and written by
//! [`update`] alone, under a lock, as a sequence lock that user mode reads.
//!
//! References: vdso(7), Linux `arch/x86/entry/vdso/vma.c`.

use alloc::sync::Arc;
use core::mem::offset_of;
use core::sync::atomic::{Ordering, fence};

use ursa_hal::addr::VirtAddr;
use ursa_hal::mm::Frame;
use ursa_hal::sync::{IrqLock, Once};
use ursa_vdso::Data;

use super::clock::{COARSE_RESOLUTION_NS, TAI_OFFSET};
use crate::Result;
use crate::mm::{AddressSpace, MemoryObject, VmFlags};

static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vdso.so"));
const PAGE: u64 = ursa_hal::PAGE_SIZE as u64;

struct Vdso {
    data: Frame,
    data_object: Arc<MemoryObject>,
    image: Arc<MemoryObject>,
}

static VDSO: Once<Option<Vdso>> = Once::new();
/// Held by who writes the page.
static WRITER: IrqLock<()> = IrqLock::new(());

fn vdso() -> Option<&'static Vdso> {
    VDSO.call_once(|| {
        let data = Frame::alloc_zeroed()?;
        let mut pages = alloc::vec::Vec::new();
        for part in IMAGE.chunks(PAGE as usize) {
            let page = Frame::alloc_zeroed()?;
            page.write(0, part);
            pages.push(page);
        }
        Some(Vdso { data_object: MemoryObject::fixed([data.clone()]), data, image: MemoryObject::fixed(pages) })
    })
    .as_ref()
}

/// Brings the page up to date: after the clock was chosen, the wall clock set, or the random generator seeded.
pub(crate) fn update() {
    let Some(vdso) = vdso() else { return };
    let data = &vdso.data;
    let _writer = WRITER.lock();
    let sequence = data.atomic_u32(offset_of!(Data, sequence));
    let before = sequence.load(Ordering::Relaxed);
    sequence.store(before.wrapping_add(1), Ordering::Relaxed);
    fence(Ordering::SeqCst);
    let word = |offset: usize, value: u64| data.atomic_u64(offset).store(value, Ordering::Relaxed);
    let half = |offset: usize, value: u32| data.atomic_u32(offset).store(value, Ordering::Relaxed);
    let params = ursa_hal::time::tsc_params().filter(|params| params.shift == ursa_vdso::SHIFT);
    half(offset_of!(Data, counter_is_clock), u32::from(params.is_some()));
    if let Some(params) = params {
        word(offset_of!(Data, base), params.base);
        word(offset_of!(Data, base_ns), params.base_ns);
        word(offset_of!(Data, multiplier), params.mult);
    }
    word(offset_of!(Data, wall_offset_ns), ursa_hal::time::wall_offset_ns().cast_unsigned());
    half(offset_of!(Data, tai_offset), TAI_OFFSET.load(Ordering::Relaxed).cast_unsigned());
    half(offset_of!(Data, coarse_ns), COARSE_RESOLUTION_NS as u32);
    sequence.store(before.wrapping_add(2), Ordering::Release);
}

/// Tells programs that their random generators must take new keys. `generation` is not 0.
pub(crate) fn set_random_generation(generation: u64) {
    if let Some(vdso) = vdso() {
        vdso.data.atomic_u64(offset_of!(Data, random_generation)).store(generation, Ordering::Release);
    }
}

/// Maps the vDSO into a new program's address space and returns its address, 0 for none (auxv's `AT_SYSINFO_EHDR`).
///
/// # Errors
/// `ENOMEM`.
pub(crate) fn map(vm: &AddressSpace) -> Result<u64> {
    let Some(vdso) = vdso().filter(|_| !IMAGE.is_empty()) else { return Ok(0) };
    let size = vdso.image.size();
    let start = vm.find_free(PAGE + size)?;
    let image = VirtAddr::new(start.as_u64() + PAGE);
    vm.map_special(start, &vdso.data_object, PAGE, VmFlags::READ, "[vvar]")?;
    vm.map_special(image, &vdso.image, size, VmFlags::READ | VmFlags::EXEC, "[vdso]")?;
    Ok(image.as_u64())
}
