//! Physical and virtual addresses.
//!
//! [`PhysAddr`] and [`VirtAddr`] are plain numbers that cannot be mixed up. Arithmetic that could overflow is checked or
//! explicit; neither type can be dereferenced.

use core::fmt;

/// log2 of the page size.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// First address above user space (one page below the canonical hole, as Linux's TASK_SIZE_MAX).
pub const USER_END: u64 = 0x7fff_ffff_f000;

macro_rules! address {
    ($(#[$m:meta])* $name:ident) => {
        $(#[$m])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Wraps `addr`.
            pub const fn new(addr: u64) -> Self {
                Self(addr)
            }
            /// The number.
            pub const fn as_u64(self) -> u64 {
                self.0
            }
            /// The number, as `usize`.
            pub const fn as_usize(self) -> usize {
                self.0 as usize
            }
            /// Rounded down to a page.
            pub const fn page_down(self) -> Self {
                Self(self.0 & !(PAGE_SIZE as u64 - 1))
            }
            /// Rounded up to a page; `None` on overflow.
            pub const fn page_up(self) -> Option<Self> {
                match self.0.checked_add(PAGE_SIZE as u64 - 1) {
                    Some(v) => Some(Self(v & !(PAGE_SIZE as u64 - 1))),
                    None => None,
                }
            }
            /// Offset within the page.
            pub const fn page_offset(self) -> usize {
                (self.0 & (PAGE_SIZE as u64 - 1)) as usize
            }
            /// Whether this is a multiple of the page size.
            pub const fn is_page_aligned(self) -> bool {
                self.page_offset() == 0
            }
            /// Number of the page.
            pub const fn page_number(self) -> u64 {
                self.0 >> PAGE_SHIFT
            }
            /// `self + n`, `None` on overflow.
            pub const fn checked_add(self, n: u64) -> Option<Self> {
                match self.0.checked_add(n) {
                    Some(v) => Some(Self(v)),
                    None => None,
                }
            }
        }

        impl core::ops::Add<u64> for $name {
            type Output = Self;
            fn add(self, n: u64) -> Self {
                Self(self.0 + n)
            }
        }
        impl core::ops::Sub<u64> for $name {
            type Output = Self;
            fn sub(self, n: u64) -> Self {
                Self(self.0 - n)
            }
        }
        impl core::ops::Sub<$name> for $name {
            type Output = u64;
            fn sub(self, o: Self) -> u64 {
                self.0 - o.0
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

address! {
    /// A physical address.
    PhysAddr
}
address! {
    /// A virtual address, not necessarily canonical or mapped.
    VirtAddr
}

impl VirtAddr {
    /// Whether `[self, self + len)` lies in the user half.
    pub const fn is_user_range(self, len: u64) -> bool {
        match self.0.checked_add(len) {
            Some(end) => end <= USER_END,
            None => false,
        }
    }
    /// Whether bits 63..47 are all equal (4-level paging).
    pub const fn is_canonical(self) -> bool {
        ((self.0 as i64) << 16 >> 16) as u64 == self.0
    }
}
