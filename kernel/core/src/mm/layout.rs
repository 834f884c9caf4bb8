//! Where things go in a new address space: [`Layout`], Linux's x86-64 arrangement with address space randomisation.
//!
//! From the top: the stack (randomised by up to 16 GiB), a gap that leaves room for the stack to grow to its limit, the
//! mmap area growing down from `mmap_base` (randomised by 28 bits of pages), the heap after the program (randomised by up to
//! 32 MiB). References: Linux `arch/x86/mm/mmap.c`, `fs/binfmt_elf.c`, `arch_randomize_brk`.

use ursa_hal::USER_END;

use super::vma::{PAGE, STACK_GUARD_GAP};

/// The lowest address that `mmap` gives without being asked (`vm.mmap_min_addr` as Debian sets it).
pub const MMAP_MIN_ADDR: u64 = 65536;
/// Where a position-independent program without interpreter goes, before randomisation (`ELF_ET_DYN_BASE`).
pub const ELF_ET_DYN_BASE: u64 = (USER_END / 3 * 2) & !(PAGE - 1);
/// The end of what `MAP_32BIT` and 32-bit searches may use.
pub const LOW_END: u64 = 0x8000_0000;

const STACK_RND_MASK: u64 = 0x3f_ffff;
const MMAP_RND_BITS: u32 = 28;
const MIN_GAP: u64 = 128 << 20;
const MAX_GAP: u64 = USER_END / 6 * 5;
const BRK_RANDOM: u64 = 0x0200_0000;

/// The landmarks of an address space, in bytes. What exec finds out is filled in by it and shown in `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    /// The mmap area ends here and grows down; in a legacy layout it starts here and grows up.
    pub mmap_base: u64,
    /// Whether the mmap area grows up (`ADDR_COMPAT_LAYOUT`, or an unlimited stack).
    pub legacy: bool,
    /// Where the stack ends, before argument strings.
    pub stack_top: u64,
    /// First address of the program text.
    pub start_code: u64,
    /// End of the program text.
    pub end_code: u64,
    /// First address of the program data.
    pub start_data: u64,
    /// End of the program data.
    pub end_data: u64,
    /// Where the heap starts.
    pub start_brk: u64,
    /// Where the heap ends now (not page-aligned).
    pub brk: u64,
    /// The stack pointer at the start of the program.
    pub start_stack: u64,
    /// Argument strings.
    pub arg_start: u64,
    /// End of the argument strings.
    pub arg_end: u64,
    /// Environment strings.
    pub env_start: u64,
    /// End of the environment strings.
    pub env_end: u64,
}

impl Layout {
    /// The layout for a stack limit of `stack_limit` bytes. `random` gives a random number each time; `None` for a program
    /// that asked for fixed addresses (`ADDR_NO_RANDOMIZE`).
    pub fn new(stack_limit: u64, legacy: bool, mut random: Option<&mut dyn FnMut() -> u64>) -> Layout {
        let mut draw = |mask: u64| random.as_mut().map_or(0, |f| f() & mask);
        let stack_random = draw(STACK_RND_MASK) * PAGE;
        let mmap_random = draw((1 << MMAP_RND_BITS) - 1) * PAGE;
        let randomized = random.is_some();
        let stack_top = USER_END - stack_random;
        let pad = if randomized { STACK_RND_MASK * PAGE } else { 0 } + STACK_GUARD_GAP;
        let gap = stack_limit.saturating_add(pad).clamp(MIN_GAP, MAX_GAP);
        let legacy = legacy || stack_limit == u64::MAX;
        let mmap_base = if legacy {
            ((USER_END / 3) & !(PAGE - 1)) + mmap_random
        } else {
            (USER_END - gap - mmap_random) & !(PAGE - 1)
        };
        Layout { mmap_base, legacy, stack_top, ..Layout::default() }
    }

    /// Where the heap starts for a program whose data ends at `end` (`arch_randomize_brk`).
    pub fn heap_start(end: u64, random: Option<&mut dyn FnMut() -> u64>) -> u64 {
        let end = end.next_multiple_of(PAGE);
        match random {
            Some(random) => end + (random() % (BRK_RANDOM / PAGE)) * PAGE,
            None => end,
        }
    }

    /// Where a position-independent program goes that needs `len` bytes and has no interpreter.
    pub fn pie_base(random: Option<&mut dyn FnMut() -> u64>) -> u64 {
        ELF_ET_DYN_BASE + random.map_or(0, |f| f() & ((1 << MMAP_RND_BITS) - 1)) * PAGE
    }

    /// The range that `mmap` searches: low, high.
    pub(super) fn search_area(&self) -> (u64, u64) {
        if self.legacy { (self.mmap_base, USER_END) } else { (MMAP_MIN_ADDR, self.mmap_base) }
    }
}
