//! Page table entries. Intel SDM vol. 3A, 4.5.

use bitflags::bitflags;

pub(super) const P: u64 = 1 << 0;
pub(super) const W: u64 = 1 << 1;
pub(super) const U: u64 = 1 << 2;
pub(super) const PWT: u64 = 1 << 3;
pub(super) const PCD: u64 = 1 << 4;
pub(super) const A: u64 = 1 << 5;
pub(super) const D: u64 = 1 << 6;
/// Large page, in levels 2 and 3.
pub(super) const PS: u64 = 1 << 7;
/// Survives a CR3 load. In entries that are not present: a user mapping without any access right (`PROT_NONE`), which
/// keeps its frame.
pub(super) const G: u64 = 1 << 8;
pub(super) const NO_ACCESS: u64 = G;
/// Software bit: the address is device memory, no frame reference is held.
pub(super) const DEVICE: u64 = 1 << 9;
/// Software bit: executable if it were accessible (kept while NO_ACCESS).
pub(super) const NX: u64 = 1 << 63;
pub(super) const ADDR: u64 = 0x000f_ffff_ffff_f000;

/// Table entries point at tables with all rights; the leaf decides.
pub(super) const TABLE: u64 = P | W | U | A;

bitflags! {
    /// What user code may do with a page.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
    pub struct Prot: u8 {
        /// Read.
        const R = 1;
        /// Write (implies read on x86).
        const W = 2;
        /// Execute (implies read on x86).
        const X = 4;
        /// Read and write.
        const RW = 3;
        /// Read and execute.
        const RX = 5;
        /// Everything.
        const RWX = 7;
    }
}

/// How accesses go through the CPU's caches (PAT entries 0, 1 and 3 as `trap::init_cpu` programs them).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum CacheMode {
    /// Ordinary memory.
    #[default]
    WriteBack,
    /// Writes are gathered; for framebuffers.
    WriteCombining,
    /// Every access goes to the device.
    Uncached,
}

impl CacheMode {
    #[inline(always)]
    pub(super) const fn bits(self) -> u64 {
        match self {
            Self::WriteBack => 0,
            Self::WriteCombining => PWT,
            Self::Uncached => PWT | PCD,
        }
    }
    #[inline(always)]
    pub(super) const fn of(pte: u64) -> Self {
        match pte & (PWT | PCD) {
            0 => Self::WriteBack,
            PWT => Self::WriteCombining,
            _ => Self::Uncached,
        }
    }
}

/// The bits for user rights, without address.
#[inline(always)]
pub(super) const fn user_bits(prot: Prot) -> u64 {
    BITS[prot.bits() as usize & 7]
}

const BITS: [u64; 8] = {
    let mut t = [U | NO_ACCESS | NX; 8];
    let mut p = 1;
    while p < 8 {
        t[p] = P | U | if p & 2 != 0 { W } else { 0 } | if p & 4 != 0 { 0 } else { NX };
        p += 1;
    }
    t
};

#[inline(always)]
pub(super) const fn prot_of(pte: u64) -> Prot {
    if pte & P == 0 {
        return Prot::empty();
    }
    let mut p = 1;
    if pte & W != 0 {
        p |= 2;
    }
    if pte & NX == 0 {
        p |= 4;
    }
    Prot::from_bits_truncate(p)
}

/// Bits that [`user_bits`] decides.
pub(super) const RIGHTS: u64 = P | W | NX | NO_ACCESS;
