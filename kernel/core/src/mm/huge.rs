//! Transparent huge pages: private anonymous memory in blocks of 2 MiB.
//!
//! The first store to a block of which nothing is there yet brings all of it, if the VMA covers it and contiguous memory is at hand; else
//! pages come as ever. A block stays one until somebody changes a part of it (`munmap`, `mprotect`, `madvise`, `mremap`, and
//! `fork`, which shares page by page); nothing is moved to make blocks afterwards, as `khugepaged` does.
//!
//! Reference: Linux, `Documentation/admin-guide/mm/transhuge.rst`.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use ursa_hal::VirtAddr;
use ursa_hal::mm::{BLOCK_FRAMES, BLOCK_SIZE, FrameRun};

use super::account::PageKind;
use super::space::AddressSpace;
use super::vma::Vma;
use super::{TAG_ANON, VmFlags};

/// Which memory comes in blocks: `/sys/kernel/mm/transparent_hugepage/enabled`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// All that `MADV_NOHUGEPAGE` does not except.
    Always,
    /// What `MADV_HUGEPAGE` asked for.
    Madvise,
    /// None.
    Never,
}

impl Mode {
    /// All, in the order in which sysfs lists them.
    pub const ALL: [(Mode, &str); 3] = [(Mode::Always, "always"), (Mode::Madvise, "madvise"), (Mode::Never, "never")];
}

/// An index into [`Mode::ALL`].
static MODE: AtomicU8 = AtomicU8::new(0);
/// Faults that brought a block, and those that were to and found no memory for one.
static ALLOCATED: AtomicU64 = AtomicU64::new(0);
static FALLBACKS: AtomicU64 = AtomicU64::new(0);

/// The present mode.
pub fn mode() -> Mode {
    Mode::ALL[usize::from(MODE.load(Relaxed))].0
}

/// Sets the mode. What is mapped stays as it is.
pub fn set_mode(mode: Mode) {
    let at = Mode::ALL.iter().position(|(other, _)| *other == mode).unwrap_or_default();
    MODE.store(at as u8, Relaxed);
}

/// `thp_fault_alloc` and `thp_fault_fallback` of `/proc/vmstat`.
pub fn fault_counts() -> (u64, u64) {
    (ALLOCATED.load(Relaxed), FALLBACKS.load(Relaxed))
}

/// Whether memory of this VMA may come in blocks: private and anonymous, not to be executed, and wanted so.
pub fn is_eligible(vma: &Vma) -> bool {
    let wanted = match mode() {
        Mode::Always => !vma.flags.contains(VmFlags::NOHUGEPAGE),
        Mode::Madvise => vma.flags.contains(VmFlags::HUGEPAGE),
        Mode::Never => false,
    };
    wanted
        && vma.is_anonymous()
        && vma.flags & (VmFlags::WRITE | VmFlags::EXEC) == VmFlags::WRITE
        && vma.start.next_multiple_of(BLOCK_SIZE) + BLOCK_SIZE <= vma.end
}

impl AddressSpace {
    /// Maps the block around `va` for a store, if it is to come whole and can. False: the page is to be mapped by itself.
    pub(super) fn write_block(&self, vma: &Vma, va: u64) -> bool {
        let start = va & !(BLOCK_SIZE - 1);
        let at = VirtAddr::new(start);
        let covered = start >= vma.start && start + BLOCK_SIZE <= vma.end;
        if !covered || !is_eligible(vma) || !self.space.is_bare(at) || is_disabled() {
            return false;
        }
        // When memory is short it goes where it is used.
        let run = if ursa_hal::mm::low() { None } else { FrameRun::alloc_zeroed(BLOCK_FRAMES, BLOCK_FRAMES, None) };
        let Some(run) = run else {
            FALLBACKS.fetch_add(1, Relaxed);
            return false;
        };
        run.set_tag(TAG_ANON);
        if self.space.map_block(at, run, vma.flags.prot()).is_err() {
            // Somebody was faster, or there is no page table.
            return false;
        }
        ALLOCATED.fetch_add(1, Relaxed);
        self.counters.add(PageKind::Anon, BLOCK_FRAMES as i64);
        true
    }
}

/// Whether the running process wants none (`PR_SET_THP_DISABLE`).
fn is_disabled() -> bool {
    crate::process::try_current().is_some_and(|thread| thread.process().wants_no_huge_pages())
}
