//! Physical and virtual addresses and the layout of the kernel's half of the address space.
//!
//! | from | what |
//! |---|---|
//! | `0` .. [`USER_END`] | user space |
//! | [`DIRECT_MAP`] | all RAM, read-write, never executable |
//! | [`VMAP`] | stacks, MMIO windows, large heap blocks (one top-level slot, so new user spaces copy a fixed set of entries) |
//! | [`VMEMMAP`] | the frame metadata array, mapped only where there is RAM |
//! | [`KERNEL_BASE`] | the kernel image at its physical address |
//!
//! References: Intel SDM vol. 3A ch. 4 (4-level paging), Linux `Documentation/arch/x86/x86_64/mm.rst`.

use core::fmt;
use core::ops::{Add, Sub};

/// Bytes in a page and in a frame.
pub const PAGE_SIZE: usize = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// First address above user space; the last page below the canonical hole stays unmapped (SYSRET hazard).
pub const USER_END: u64 = 0x7fff_ffff_f000;

/// Virtual address of physical address 0 in the kernel image's mapping.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// Virtual address of physical address 0 in the direct map.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// Bytes the direct map can span.
pub const DIRECT_MAP_SIZE: u64 = 32 << 40;
/// Start of the area for stacks, MMIO and large heap blocks.
pub const VMAP: u64 = 0xffff_c000_0000_0000;
/// Bytes of the vmap area.
pub const VMAP_SIZE: u64 = 1 << 39;
/// Start of the frame metadata array.
pub const VMEMMAP: u64 = 0xffff_e000_0000_0000;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Wraps `addr`.
            #[inline]
            pub const fn new(addr: u64) -> Self {
                Self(addr)
            }
            /// Start of the page that holds this address.
            #[inline]
            pub const fn page_down(self) -> Self {
                self.page_base()
            }
            /// Number of the page.
            #[inline]
            pub const fn page_number(self) -> u64 {
                self.0 >> PAGE_SHIFT
            }
            /// The address as a number.
            #[inline]
            pub const fn as_u64(self) -> u64 {
                self.0
            }
            /// The address as a `usize`.
            #[inline]
            pub const fn as_usize(self) -> usize {
                self.0 as usize
            }
            /// Offset within the page.
            #[inline]
            pub const fn page_offset(self) -> usize {
                self.0 as usize & (PAGE_SIZE - 1)
            }
            /// Start of the page that holds this address.
            #[inline]
            pub const fn page_base(self) -> Self {
                Self(self.0 & !(PAGE_SIZE as u64 - 1))
            }
            /// First page boundary at or above this address, if it does not overflow.
            #[inline]
            pub const fn page_up(self) -> Option<Self> {
                match self.0.checked_add(PAGE_SIZE as u64 - 1) {
                    Some(v) => Some(Self(v & !(PAGE_SIZE as u64 - 1))),
                    None => None,
                }
            }
            /// True at a page boundary.
            #[inline]
            pub const fn is_page_aligned(self) -> bool {
                self.page_offset() == 0
            }
            /// True at a multiple of `align`, a power of two.
            #[inline]
            pub const fn is_aligned(self, align: u64) -> bool {
                self.0 & (align - 1) == 0
            }
            /// `self + n`, unless that overflows.
            #[inline]
            pub const fn checked_add(self, n: u64) -> Option<Self> {
                match self.0.checked_add(n) {
                    Some(v) => Some(Self(v)),
                    None => None,
                }
            }
            /// True for address 0.
            #[inline]
            pub const fn is_null(self) -> bool {
                self.0 == 0
            }
        }
        impl Add<u64> for $name {
            type Output = Self;
            #[inline]
            fn add(self, n: u64) -> Self {
                Self(self.0 + n)
            }
        }
        impl Sub<u64> for $name {
            type Output = Self;
            #[inline]
            fn sub(self, n: u64) -> Self {
                Self(self.0 - n)
            }
        }
        impl Sub for $name {
            type Output = u64;
            #[inline]
            fn sub(self, o: Self) -> u64 {
                self.0 - o.0
            }
        }
        impl From<u64> for $name {
            #[inline]
            fn from(v: u64) -> Self {
                Self(v)
            }
        }
        impl From<$name> for u64 {
            #[inline]
            fn from(v: $name) -> u64 {
                v.0
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address!(
    /// An address on the memory bus.
    PhysAddr
);
address!(
    /// An address as a program or the kernel uses it. A value of this type carries no right to touch memory.
    VirtAddr
);

/// An address that came from a program and has not been checked.
pub type UserAddr = VirtAddr;

impl PhysAddr {
    /// Page frame number.
    #[inline]
    pub const fn pfn(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }
    /// Where the direct map shows this address. Only RAM is mapped there.
    #[inline]
    pub(crate) const fn direct(self) -> *mut u8 {
        (DIRECT_MAP + self.0) as *mut u8
    }
}

impl VirtAddr {
    /// True when `[self, self+len)` lies wholly in user space.
    #[inline]
    pub const fn is_user_range(self, len: u64) -> bool {
        self.0 <= USER_END && len <= USER_END - self.0
    }
    /// Whether bits 63..47 are all equal (4-level paging).
    #[inline]
    pub const fn is_canonical(self) -> bool {
        ((self.0 as i64) << 16 >> 16) as u64 == self.0
    }
}
