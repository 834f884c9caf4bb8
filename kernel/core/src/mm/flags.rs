//! What a mapping allows and how it behaves: [`VmFlags`], and the decoding of `PROT_*` and `MAP_*`.
//!
//! The bits are those of Linux's `include/linux/mm.h` (`VM_*`), so that `/proc/PID/smaps` and readers who know Linux find
//! what they expect. Everything here is pure.

use bitflags::bitflags;
use linux_uapi::raw::general as uapi;
use ursa_hal::mm::Prot;

use crate::{Errno, Result};

bitflags! {
    /// The `vm_flags` of a VMA.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct VmFlags: u64 {
        /// The owner may read.
        const READ = 1 << 0;
        /// The owner may write.
        const WRITE = 1 << 1;
        /// The owner may execute.
        const EXEC = 1 << 2;
        /// Stores reach the object and everyone else who maps it.
        const SHARED = 1 << 3;
        /// `mprotect` may add [`VmFlags::READ`].
        const MAYREAD = 1 << 4;
        /// `mprotect` may add [`VmFlags::WRITE`].
        const MAYWRITE = 1 << 5;
        /// `mprotect` may add [`VmFlags::EXEC`].
        const MAYEXEC = 1 << 6;
        /// Asked for as `MAP_SHARED`, even if the file was not open for writing.
        const MAYSHARE = 1 << 7;
        /// A stack: a touch just below extends it.
        const GROWSDOWN = 1 << 8;
        /// Pages without a `Frame`: raw device memory.
        const PFNMAP = 1 << 10;
        /// `mlock`ed.
        const LOCKED = 1 << 13;
        /// Device memory: never dumped, never read by `process_vm_readv`.
        const IO = 1 << 14;
        /// `MADV_SEQUENTIAL`.
        const SEQ_READ = 1 << 15;
        /// `MADV_RANDOM`.
        const RAND_READ = 1 << 16;
        /// `MADV_DONTFORK`.
        const DONTCOPY = 1 << 17;
        /// `mremap` may not grow it.
        const DONTEXPAND = 1 << 18;
        /// `MLOCK_ONFAULT`.
        const LOCKONFAULT = 1 << 19;
        /// Counts towards the commit limit.
        const ACCOUNT = 1 << 20;
        /// `MAP_NORESERVE`.
        const NORESERVE = 1 << 21;
        /// `MADV_WIPEONFORK`.
        const WIPEONFORK = 1 << 25;
        /// `MADV_DONTDUMP`.
        const DONTDUMP = 1 << 26;
        /// `MADV_HUGEPAGE`.
        const HUGEPAGE = 1 << 29;
        /// `MADV_NOHUGEPAGE`.
        const NOHUGEPAGE = 1 << 30;
        /// `MADV_MERGEABLE`.
        const MERGEABLE = 1 << 31;
        /// `MAP_DROPPABLE`: pages may vanish under memory pressure.
        const DROPPABLE = 1 << 40;
        /// The kernel's own (vDSO, vvar): keeps its place, `mremap` may not resize it.
        const SPECIAL = 1 << 48;

        /// What `PROT_*` can say.
        const ACCESS = Self::READ.bits() | Self::WRITE.bits() | Self::EXEC.bits();
        /// What `mprotect` may add.
        const MAYACCESS = Self::MAYREAD.bits() | Self::MAYWRITE.bits() | Self::MAYEXEC.bits();
        /// Mappings that `mlock`, `madvise(DONTNEED)` and merging leave alone (`VM_SPECIAL`).
        const DEVICE = Self::IO.bits() | Self::PFNMAP.bits() | Self::DONTEXPAND.bits();
    }
}

impl VmFlags {
    /// Decodes `PROT_*`. Unknown bits are ignored by `mmap` (as Linux does) and refused by `mprotect`, which checks first.
    pub fn from_prot(prot: u32) -> VmFlags {
        let mut flags = VmFlags::empty();
        flags.set(VmFlags::READ, prot & uapi::PROT_READ != 0);
        flags.set(VmFlags::WRITE, prot & uapi::PROT_WRITE != 0);
        flags.set(VmFlags::EXEC, prot & uapi::PROT_EXEC != 0);
        flags
    }

    /// The rights a page of such a mapping has at most. On x86-64 every mapping that can be touched at all can be read.
    pub fn prot(self) -> Prot {
        let mut prot = Prot::empty();
        if self.intersects(VmFlags::ACCESS) {
            prot |= Prot::R;
        }
        if self.contains(VmFlags::WRITE) {
            prot |= Prot::W;
        }
        if self.contains(VmFlags::EXEC) {
            prot |= Prot::X;
        }
        prot
    }

    /// Whether this is a copy-on-write mapping (`is_cow_mapping`): private, and writable now or later.
    pub fn is_cow(self) -> bool {
        !self.contains(VmFlags::SHARED) && self.contains(VmFlags::MAYWRITE)
    }

    /// The two-letter codes of the `VmFlags` line in `/proc/PID/smaps`, in Linux's order.
    pub fn codes(self) -> impl Iterator<Item = &'static str> {
        const CODES: [(VmFlags, &str); 26] = [
            (VmFlags::READ, "rd"),
            (VmFlags::WRITE, "wr"),
            (VmFlags::EXEC, "ex"),
            (VmFlags::SHARED, "sh"),
            (VmFlags::MAYREAD, "mr"),
            (VmFlags::MAYWRITE, "mw"),
            (VmFlags::MAYEXEC, "me"),
            (VmFlags::MAYSHARE, "ms"),
            (VmFlags::GROWSDOWN, "gd"),
            (VmFlags::PFNMAP, "pf"),
            (VmFlags::LOCKED, "lo"),
            (VmFlags::IO, "io"),
            (VmFlags::SEQ_READ, "sr"),
            (VmFlags::RAND_READ, "rr"),
            (VmFlags::DONTCOPY, "dc"),
            (VmFlags::DONTEXPAND, "de"),
            (VmFlags::LOCKONFAULT, "lf"),
            (VmFlags::ACCOUNT, "ac"),
            (VmFlags::NORESERVE, "nr"),
            (VmFlags::WIPEONFORK, "wf"),
            (VmFlags::DONTDUMP, "dd"),
            (VmFlags::HUGEPAGE, "hg"),
            (VmFlags::NOHUGEPAGE, "nh"),
            (VmFlags::MERGEABLE, "mg"),
            (VmFlags::DROPPABLE, "dp"),
            (VmFlags::SPECIAL, ""),
        ];
        CODES.into_iter().filter(move |(flag, code)| !code.is_empty() && self.contains(*flag)).map(|(_, code)| code)
    }
}

bitflags! {
    /// The `MAP_*` flags of `mmap(2)` beside the mapping type.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct MapFlags: u32 {
        /// Exactly at `addr`, replacing what is there.
        const FIXED = uapi::MAP_FIXED;
        /// No file.
        const ANONYMOUS = uapi::MAP_ANONYMOUS;
        /// Below 2 GiB.
        const BIT32 = 0x40;
        /// A stack.
        const GROWSDOWN = uapi::MAP_GROWSDOWN;
        /// Ignored, as on Linux.
        const DENYWRITE = uapi::MAP_DENYWRITE;
        /// Ignored, as on Linux.
        const EXECUTABLE = uapi::MAP_EXECUTABLE;
        /// `mlock` it.
        const LOCKED = uapi::MAP_LOCKED;
        /// Do not count it towards the commit limit.
        const NORESERVE = uapi::MAP_NORESERVE;
        /// Fault everything in before returning.
        const POPULATE = uapi::MAP_POPULATE;
        /// With POPULATE: do not read from the file.
        const NONBLOCK = uapi::MAP_NONBLOCK;
        /// Memory of a stack, which does not come in huge pages.
        const STACK = uapi::MAP_STACK;
        /// Huge pages from a pool; there is none.
        const HUGETLB = uapi::MAP_HUGETLB;
        /// DAX only.
        const SYNC = uapi::MAP_SYNC;
        /// Exactly at `addr`, or `EEXIST`.
        const FIXED_NOREPLACE = uapi::MAP_FIXED_NOREPLACE;
        /// Shared (decoded from the mapping type).
        const SHARED = uapi::MAP_SHARED;
        /// Droppable (decoded from the mapping type).
        const DROPPABLE = 1 << 31;
    }
}

/// The type field of the `MAP_*` flags.
const MAP_TYPE: u32 = 0x0f;
/// What existed before `MAP_SHARED_VALIDATE` and may be ignored under it (`LEGACY_MAP_MASK`); not `MAP_FIXED_NOREPLACE`.
const LEGACY: u32 = MAP_TYPE
    | uapi::MAP_FIXED
    | uapi::MAP_ANONYMOUS
    | 0xc0 // MAP_32BIT, MAP_ABOVE4G
    | uapi::MAP_GROWSDOWN
    | uapi::MAP_DENYWRITE
    | uapi::MAP_EXECUTABLE
    | uapi::MAP_LOCKED
    | uapi::MAP_NORESERVE
    | uapi::MAP_POPULATE
    | uapi::MAP_NONBLOCK
    | uapi::MAP_STACK
    | uapi::MAP_HUGETLB
    | 0x0400_0000 // MAP_UNINITIALIZED
    | 0x7c00_0000; // MAP_HUGE_2MB, MAP_HUGE_1GB
/// `MAP_DROPPABLE` (Linux 6.11).
const MAP_DROPPABLE: u32 = 0x08;

impl MapFlags {
    /// Decodes the flags word of `mmap(2)`. Unknown bits are ignored except under `MAP_SHARED_VALIDATE`, which exists to
    /// refuse them with `EOPNOTSUPP`. An unknown mapping type is `EINVAL`.
    pub fn decode(raw: u32, has_file: bool) -> Result<MapFlags> {
        let mut flags = MapFlags::from_bits_truncate(raw & !MAP_TYPE & !(1 << 31));
        match raw & MAP_TYPE {
            uapi::MAP_SHARED => flags |= MapFlags::SHARED,
            uapi::MAP_PRIVATE => {}
            uapi::MAP_SHARED_VALIDATE if has_file => {
                if raw & !LEGACY != 0 || flags.contains(MapFlags::SYNC) {
                    return Err(Errno::EOPNOTSUPP);
                }
                flags |= MapFlags::SHARED;
            }
            MAP_DROPPABLE if !has_file => flags |= MapFlags::DROPPABLE | MapFlags::NORESERVE,
            _ => return Err(Errno::EINVAL),
        }
        if flags.contains(MapFlags::FIXED_NOREPLACE) {
            flags |= MapFlags::FIXED;
        }
        Ok(flags)
    }
}
