//! Device registers.

use super::pte::CacheMode;
use super::vmap::VmapArea;
use crate::addr::{PAGE_SIZE, PhysAddr};

/// A window on device memory. Accessors are volatile and bounds-checked.
pub struct Mmio {
    area: VmapArea,
    offset: usize,
    len: usize,
}

/// Maps device memory. `None` when memory is short or the range is RAM that the kernel manages.
///
/// What a device does when its registers are written is the caller's affair: a device that can reach memory by DMA must be
/// held by the IOMMU or be trusted.
pub fn mmio(phys: PhysAddr, len: usize, cache: CacheMode) -> Option<Mmio> {
    if len == 0 || super::overlaps_ram(phys, len as u64) {
        return None;
    }
    let offset = phys.page_offset();
    let pages = offset.checked_add(len)?.div_ceil(PAGE_SIZE);
    let area = VmapArea::new(pages)?;
    for i in 0..pages {
        if !area.set(i, phys.page_base() + (i * PAGE_SIZE) as u64, true, cache) {
            return None;
        }
    }
    Some(Mmio { area, offset, len })
}

/// Maps firmware tables and other memory that is not handed out, read-only. `None` when memory is short.
pub(crate) fn map_firmware(phys: PhysAddr, len: usize) -> Option<Mmio> {
    let offset = phys.page_offset();
    let pages = offset.checked_add(len.max(1))?.div_ceil(PAGE_SIZE);
    let area = VmapArea::new(pages)?;
    for i in 0..pages {
        if !area.set(i, phys.page_base() + (i * PAGE_SIZE) as u64, false, CacheMode::WriteBack) {
            return None;
        }
    }
    Some(Mmio { area, offset, len })
}

macro_rules! accessors {
    ($read:ident, $write:ident, $t:ty) => {
        /// Volatile read. Panics outside of the window or when not aligned.
        #[inline]
        #[track_caller]
        pub fn $read(&self, off: usize) -> $t {
            // SAFETY: `at` checked the range and the alignment; the mapping lives as long as `self`.
            unsafe { self.at::<$t>(off).read_volatile() }
        }
        /// Volatile write. Panics outside of the window or when not aligned.
        #[inline]
        #[track_caller]
        pub fn $write(&self, off: usize, value: $t) {
            // SAFETY: as for reads.
            unsafe { self.at::<$t>(off).write_volatile(value) }
        }
    };
}

impl Mmio {
    #[inline]
    #[track_caller]
    fn at<T>(&self, off: usize) -> *mut T {
        let size = size_of::<T>();
        assert!(off <= self.len && size <= self.len - off, "register outside of the window");
        let p = self.area.base() as usize + self.offset + off;
        assert!(p.is_multiple_of(size), "register not aligned");
        p as *mut T
    }
    /// Bytes in the window.
    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.len
    }
    accessors!(read8, write8, u8);
    accessors!(read16, write16, u16);
    accessors!(read32, write32, u32);
    accessors!(read64, write64, u64);

    /// Copies bytes out, for memory without side effects (firmware tables, framebuffers).
    #[track_caller]
    pub fn read_bytes(&self, off: usize, buf: &mut [u8]) {
        assert!(off <= self.len && buf.len() <= self.len - off, "range outside of the window");
        let p = (self.area.base() as usize + self.offset + off) as *const u8;
        // SAFETY: inside the mapping.
        unsafe { super::copy::copy(buf.as_mut_ptr(), p, buf.len()) };
    }
    /// Copies bytes in, for memory without side effects (framebuffers).
    #[track_caller]
    pub fn write_bytes(&self, off: usize, data: &[u8]) {
        assert!(off <= self.len && data.len() <= self.len - off, "range outside of the window");
        let p = (self.area.base() as usize + self.offset + off) as *mut u8;
        // SAFETY: inside the mapping.
        unsafe { super::copy::copy(p, data.as_ptr(), data.len()) };
    }
}
