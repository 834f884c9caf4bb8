//! The journal (JBD2). Everything is big-endian.

#![expect(missing_docs, reason = "flags carry the names of the kernel's headers")]

use bitflags::bitflags;
use zerocopy::big_endian::{U16, U32, U64};

use super::on_disk;

/// First word of each block of the journal that is not a copy.
pub const MAGIC: u32 = 0xc03b_3998;
/// Block type: tags of the copies that follow.
pub const DESCRIPTOR: u32 = 1;
/// Block type: end of a transaction.
pub const COMMIT: u32 = 2;
/// Block type: superblock of the first version.
pub const SUPERBLOCK_V1: u32 = 3;
/// Block type: superblock.
pub const SUPERBLOCK_V2: u32 = 4;
/// Block type: blocks that earlier transactions no longer speak of.
pub const REVOKE: u32 = 5;
/// Tag: the copy's first word was [`MAGIC`] and is 0 in the journal.
pub const TAG_ESCAPE: u32 = 1;
/// Tag: no UUID follows.
pub const TAG_SAME_UUID: u32 = 2;
/// Tag: the last of this descriptor.
pub const TAG_LAST: u32 = 8;
/// `s_checksum_type`, `h_chksum_type`: CRC-32C.
pub const CHECKSUM_CRC32C: u8 = 4;
/// Heads Ursa's record of the highest request that a commit holds, in commit blocks and in the superblock's padding.
///
/// Linux and e2fsprogs check these blocks' checksums as a whole and read none of these bytes.
pub const SEQUENCE_MAGIC: u64 = u64::from_be_bytes(*b"UrsaSeqN");

on_disk! {
    /// Heads descriptor, commit and revoke blocks.
    #[doc(alias = "journal_header_s")]
    struct Header(12) { magic: U32, blocktype: U32, sequence: U32 }

    /// The journal's superblock.
    #[doc(alias = "journal_superblock_s")]
    struct Superblock(1024) {
        header: Header, blocksize: U32, maxlen: U32, first: U32, sequence: U32, start: U32, errno: U32,
        feature_compat: U32, feature_incompat: U32, feature_ro_compat: U32, uuid: [u8; 16], nr_users: U32,
        dynsuper: U32, max_transaction: U32, max_trans_data: U32, checksum_type: u8, padding2: [u8; 3],
        num_fc_blocks: U32, head: U32, padding: [U32; 34], ursa_magic: U64, ursa_sequence: U64, reserved: [U32; 2],
        checksum: U32, users: [u8; 768],
    }

    /// The front of a commit block.
    #[doc(alias = "commit_header")]
    struct Commit(80) {
        header: Header, chksum_type: u8, chksum_size: u8, padding: [u8; 2], chksum: [U32; 8], commit_sec: U64,
        commit_nsec: U32, reserved: U32, ursa_magic: U64, ursa_sequence: U64,
    }

    /// The tag of a copied block where the journal has `CSUM_V3`.
    #[doc(alias = "journal_block_tag3_s")]
    struct Tag3(16) { blocknr: U32, flags: U32, blocknr_high: U32, checksum: U32 }

    /// The tag of a copied block otherwise; the high half is there with `BIT64` only.
    #[doc(alias = "journal_block_tag_s")]
    struct Tag(12) { blocknr: U32, checksum: U16, flags: U16, blocknr_high: U32 }
}

/// Where a commit block's checksum lies.
pub const COMMIT_CHECKSUM_OFFSET: usize = 16;
/// Where the superblock's checksum lies.
pub const SUPERBLOCK_CHECKSUM_OFFSET: usize = 0xfc;
/// Where a revoke block's records begin; the word before is the bytes used.
pub const REVOKE_HEADER: usize = 16;

bitflags! {
    /// `s_feature_incompat`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Incompat: u32 {
        const REVOKE = 0x1;
        const BIT64 = 0x2;
        const ASYNC_COMMIT = 0x4;
        const CSUM_V2 = 0x8;
        const CSUM_V3 = 0x10;
        const FAST_COMMIT = 0x20;
    }
}

/// `s_feature_compat`: a CRC-32 of the whole transaction in the commit block (the first version of checksums).
pub const COMPAT_CHECKSUM: u32 = 1;
