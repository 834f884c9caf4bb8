//! Memory: objects that can be mapped, address spaces that map them, faults, limits, reclaim.
//!
//! | module | what |
//! |---|---|
//! | [`object`] | [`MemoryObject`]: page index → frame; shmem, page cache, dma-buf, device |
//! | [`page_tree`] | the radix tree in an object |
//! | [`rmap`] | where an object is mapped |
//! | [`vma`], [`flags`] | one mapping; the ordered set of them; what `PROT_*` and `MAP_*` mean |
//! | [`layout`] | where stack, heap and mmap area are, with randomisation |
//! | [`space`] | [`AddressSpace`]; its lock and its rules |
//! | [`fault`], [`huge`] | demand paging, copy on write, blocks of 2 MiB |
//! | [`map`], [`remap`], [`advise`], [`lock`] | the `mmap` family |
//! | [`edit`] | splitting and merging under the mm lock |
//! | [`fork`], [`exec`], [`remote`] | what process creation, `execve` and debuggers use |
//! | [`account`], [`reclaim`], [`oom`] | who pays, what is freed, who ends |
//! | [`writeback`] | when dirty page cache is written |
//! | [`memfd`] | `memfd_create` |
//! | [`syscall`] | the handlers |
//!
//! Pages of private anonymous memory live in the page tables alone; everything else belongs to an object. The lock order is in
//! [`space`] and [`object`].

pub mod account;
pub mod advise;
pub mod edit;
pub mod exec;
pub mod fault;
pub mod flags;
pub mod fork;
pub mod huge;
pub mod layout;
pub mod lock;
pub mod map;
pub mod memfd;
pub mod object;
pub mod oom;
pub mod page_tree;
pub mod reclaim;
pub mod remap;
pub mod remote;
mod rmap;
pub mod space;
pub mod syscall;
mod tests;
pub mod vma;
pub mod writeback;

use alloc::sync::Arc;

pub use account::Charge;
pub use fault::{Fault, handle_kernel_fault};
pub use flags::{MapFlags, VmFlags};
pub use layout::{Layout, MMAP_MIN_ADDR};
pub use map::{MapBacking, MapRequest};
pub use object::{MAX_SIZE as MAX_OBJECT_SIZE, MemoryObject, Pager, Seals, Supplier};
pub use remote::FutexKey;
pub use space::{AddressSpace, Usage, Vmas};
pub use vma::{Backing, Vma};

use crate::process::Resource;

/// The open file that a mapping came from.
pub type FileRef = Arc<crate::fs::File>;

/// Tag of a frame that is private anonymous memory of one or (after `fork`) several address spaces.
const TAG_ANON: u32 = 1;
/// Tag of a frame that belongs or belonged to an object.
const TAG_OBJECT: u32 = 2;
/// Tag of the page of zeroes.
const TAG_ZERO: u32 = 3;

/// The soft limit of the running process; none in the kernel's own threads.
fn limit(resource: Resource) -> u64 {
    crate::process::try_current().map_or(u64::MAX, |thread| thread.process().rlimits.soft(resource))
}

/// Whether the running thread is to die or is on its way out: whoever waits or works for long gives up. A thread that exits
/// must not wait for memory, since it may be its own that everyone waits for.
fn is_dying() -> bool {
    crate::process::try_current()
        .is_some_and(|thread| crate::sched::fatal_signal_pending() || thread.process().is_exiting())
}

/// Memory of the machine in bytes, as sysinfo(2) and `/proc/meminfo` count it.
#[derive(Clone, Copy, Debug)]
pub struct MemoryTotals {
    /// All that the kernel manages.
    pub total: u64,
    /// Unused.
    pub free: u64,
    /// Free or reclaimable for a new program.
    pub available: u64,
    /// Page cache, shmem included.
    pub cached: u64,
    /// Shmem: tmpfs, memfd, shared anonymous memory.
    pub shared: u64,
    /// Promised to programs.
    pub committed: u64,
    /// The most that may be promised in mode 2.
    pub commit_limit: u64,
}

/// Reads the totals; each is exact, together they are a snapshot over some microseconds.
pub fn memory_totals() -> MemoryTotals {
    let stats = ursa_hal::mm::stats();
    let bytes = |pages: u64| pages * vma::PAGE;
    let (free, file, shmem) = (stats.free as u64, account::file_pages(), account::shmem_pages());
    MemoryTotals {
        total: bytes(stats.total as u64),
        free: bytes(free),
        available: bytes(free.saturating_sub(reserve(stats.total) as u64) + file),
        cached: bytes(file + shmem),
        shared: bytes(shmem),
        committed: bytes(account::committed_pages()),
        commit_limit: bytes(account::commit_limit()),
    }
}

/// Frames kept for the kernel: 1/64 of memory, at least 2 MiB, at most 64 MiB.
fn reserve(total: usize) -> usize {
    (total / 64).clamp(512, 16384)
}

/// Sets up what faults need before the first program runs, and the reserve for the kernel.
pub fn init() {
    ursa_hal::mm::set_reserve(reserve(ursa_hal::mm::stats().total));
    fault::zero_frame();
    AddressSpace::empty();
}
