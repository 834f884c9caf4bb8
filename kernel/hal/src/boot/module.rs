//! The boot module: a file that the loader put into memory (the initramfs).
//!
//! It can be read, and its pages can be taken as frames of the page cache without copying, each once. What is not taken is
//! freed by [`BootModule::release_rest`].

use alloc::vec;
use alloc::vec::Vec;

use super::ModuleRange;
use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::mm::Frame;
use crate::sync::SpinLock;

/// The boot module. There is one; whoever gets it first ([`take`]) owns it.
pub struct BootModule {
    range: ModuleRange,
    /// One bit a page that was taken as a frame and may be written by its new owner.
    taken: SpinLock<Vec<u64>>,
}

/// The boot module, once.
pub fn take() -> Option<BootModule> {
    use core::sync::atomic::{AtomicBool, Ordering};
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let range = super::info().module?;
    let pages = (range.start.page_offset() as u64 + range.len).div_ceil(PAGE_SIZE as u64);
    let taken = SpinLock::new(vec![0; pages.div_ceil(64) as usize]);
    (!TAKEN.swap(true, Ordering::Relaxed)).then_some(BootModule { range, taken })
}

impl BootModule {
    /// Length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "an empty module is none")]
    pub fn len(&self) -> u64 {
        self.range.len
    }

    /// Offset of the module's first byte in its first page; 0 with the loaders that Ursa knows.
    fn lead(&self) -> u64 {
        self.range.start.page_offset() as u64
    }

    /// Copies bytes out; returns how many there were. Pages that were taken read as zeroes.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let n = self.range.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < n {
            let at = self.range.start + offset + done as u64;
            let len = (n - done).min(PAGE_SIZE - at.page_offset());
            let page = (at.page_number() - self.range.start.page_number()) as usize;
            let out = &mut buf[done..done + len];
            let taken = self.taken.lock();
            if taken[page / 64] & 1 << (page % 64) != 0 {
                out.fill(0);
            } else {
                // SAFETY: the page belongs to the module, so it is RAM in the direct map; the lock keeps it from being taken, and
                // until then nobody writes it. `len` ends within the page.
                out.copy_from_slice(unsafe { core::slice::from_raw_parts(at.direct(), len) });
            }
            done += len;
        }
        n
    }

    /// Takes page `index` of the module as a frame: the bytes `index * PAGE_SIZE ..`. `None` beyond the end, the second time, or
    /// when the module does not begin on a page. What lies behind the module's end in the last page is zeroed.
    pub fn take_frame(&self, index: u64) -> Option<Frame> {
        let at = index.checked_mul(PAGE_SIZE as u64).filter(|at| *at < self.range.len && self.lead() == 0)?;
        let frame = {
            let mut taken = self.taken.lock();
            let frame = crate::mm::adopt_module_page(self.range.start + at)?;
            taken[index as usize / 64] |= 1 << (index % 64);
            frame
        };
        let rest = self.range.len - at;
        if rest < PAGE_SIZE as u64 {
            frame.fill(rest as usize, PAGE_SIZE - rest as usize, 0);
        }
        Some(frame)
    }

    /// Frees all pages that were not taken.
    pub fn release_rest(self) {
        let end = self.range.start + self.range.len;
        let mut page: PhysAddr = self.range.start.page_down();
        while page < end {
            crate::mm::release_module_page(page);
            page = page + PAGE_SIZE as u64;
        }
    }
}
