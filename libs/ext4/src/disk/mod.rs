//! What lies on the disk: structures with the names of the kernel's headers, and nothing but data.
//!
//! Everything is little-endian except the journal (big-endian). Sizes are asserted where the structures are defined.
//!
//! References: Linux `Documentation/filesystems/ext4/`, `fs/ext4/ext4.h`, `include/linux/jbd2.h`.

pub mod dir;
pub mod extent;
pub mod group;
pub mod inode;
pub mod journal;
pub mod superblock;
pub mod xattr;

macro_rules! on_disk {
    ($($(#[$meta:meta])* struct $name:ident($size:literal) { $($field:ident: $ty:ty),* $(,)? })*) => {
        $(
            $(#[$meta])*
            #[derive(
                Clone, ::core::marker::Copy,
                ::zerocopy::FromBytes, ::zerocopy::IntoBytes, ::zerocopy::Immutable, ::zerocopy::KnownLayout,
                ::zerocopy::Unaligned,
            )]
            #[repr(C)]
            #[expect(missing_docs, reason = "the fields carry the names of the kernel's header, which documents them")]
            pub struct $name { $(pub $field: $ty),* }

            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}

pub(crate) use on_disk;

/// Little-endian `u16` at a place in a block.
///
/// # Panics
/// Beyond the end, which the caller has checked.
pub fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Little-endian `u32` at a place in a block.
///
/// # Panics
/// As [`le16`].
pub fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Stores a little-endian `u16`.
///
/// # Panics
/// As [`le16`].
pub fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// Stores a little-endian `u32`.
///
/// # Panics
/// As [`le16`].
pub fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
