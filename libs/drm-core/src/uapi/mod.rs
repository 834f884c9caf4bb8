//! DRM's user ABI as plain data: structures, numbers and flags of `drm.h`, `drm_mode.h` and `drm_fourcc.h`.
//!
//! `linux-raw-sys` does not cover DRM. The structures are ours and derive zerocopy's traits, so that an ioctl's argument
//! is taken from bytes and given back as bytes without `unsafe`; the tests compare sizes, offsets and numbers with the
//! `drm-sys` crate, which was generated from the headers.
#![expect(missing_docs, reason = "names, fields and meanings are those of include/uapi/drm/*.h")]

mod core;
pub mod fourcc;
mod mode;
#[cfg(test)]
mod tests;

pub use self::core::*;
pub use mode::*;

/// Defines structures that cross the user boundary. Each is `repr(C)` and has no padding: zerocopy's derive refuses it
/// otherwise.
macro_rules! uapi {
    ($($(#[$meta:meta])* struct $name:ident { $($(#[$fmeta:meta])* $field:ident: $ty:ty),* $(,)? })*) => {
        $(
            $(#[$meta])*
            #[derive(
                Clone, Copy, Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
            )]
            #[repr(C)]
            pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }

            impl Default for $name {
                fn default() -> Self {
                    zerocopy::FromZeros::new_zeroed()
                }
            }
        )*
    };
}
use uapi;

/// An ioctl's number: direction, size, type `'d'` and number, as `_IOC` packs them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cmd(pub u32);

impl Cmd {
    /// Packs a number of type `'d'`.
    pub const fn new(write: bool, read: bool, nr: u32, size: usize) -> Cmd {
        Cmd((write as u32) << 30 | (read as u32) << 31 | (size as u32) << 16 | (DRM_IOCTL_BASE as u32) << 8 | nr)
    }

    /// `_IOC_NR`.
    pub const fn nr(self) -> u32 {
        self.0 & 0xff
    }

    /// `_IOC_TYPE`.
    pub const fn kind(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// `_IOC_SIZE`.
    pub const fn size(self) -> usize {
        (self.0 >> 16 & 0x3fff) as usize
    }

    /// `_IOC_DIR` has `_IOC_WRITE`: the caller hands bytes in.
    pub const fn writes(self) -> bool {
        self.0 & 1 << 30 != 0
    }

    /// `_IOC_DIR` has `_IOC_READ`: the caller takes bytes back.
    pub const fn reads(self) -> bool {
        self.0 & 1 << 31 != 0
    }
}
