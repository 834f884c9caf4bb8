//! Extended attributes: entries from the front, values from the back.

use zerocopy::little_endian::{U16, U32};

use super::on_disk;

/// First word of a block or of the space behind an inode.
pub const MAGIC: u32 = 0xea02_0000;

on_disk! {
    /// Heads a block of attributes.
    #[doc(alias = "ext4_xattr_header")]
    struct Header(32) { magic: U32, refcount: U32, blocks: U32, hash: U32, checksum: U32, reserved: [U32; 3] }

    /// One attribute; its name follows, padded to 4 bytes.
    #[doc(alias = "ext4_xattr_entry")]
    struct Entry(16) { name_len: u8, name_index: u8, value_offs: U16, value_inum: U32, value_size: U32, hash: U32 }
}

/// Where a header's `checksum` lies.
pub const CHECKSUM_OFFSET: usize = 16;

/// Prefixes of names and the numbers that stand for them.
pub const PREFIXES: &[(u8, &[u8])] = &[
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
    (8, b"system.richacl"),
    (7, b"system."),
];
