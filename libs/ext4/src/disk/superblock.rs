//! The superblock.

#![expect(missing_docs, reason = "flags carry the names of the kernel's headers")]

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};

use super::on_disk;

/// `s_magic`.
pub const MAGIC: u16 = 0xef53;
/// Where the first superblock lies, in bytes.
pub const OFFSET: u64 = 1024;
/// Its size in bytes.
pub const SIZE: usize = 1024;
/// `s_state`: cleanly unmounted (always set where there is a journal).
pub const STATE_VALID: u16 = 1;
/// `s_state`: errors were found.
pub const STATE_ERROR: u16 = 2;
/// `s_flags`: directory hashes take bytes as unsigned.
pub const FLAG_UNSIGNED_HASH: u32 = 2;
/// `s_checksum_type`: CRC-32C, the only one.
pub const CHECKSUM_CRC32C: u8 = 1;

on_disk! {
    /// The superblock.
    #[doc(alias = "ext4_super_block")]
    struct Superblock(1024) {
        inodes_count: U32, blocks_count_lo: U32, r_blocks_count_lo: U32, free_blocks_count_lo: U32,
        free_inodes_count: U32, first_data_block: U32, log_block_size: U32, log_cluster_size: U32,
        blocks_per_group: U32, clusters_per_group: U32, inodes_per_group: U32, mtime: U32,
        wtime: U32, mnt_count: U16, max_mnt_count: U16, magic: U16, state: U16, errors: U16, minor_rev_level: U16,
        lastcheck: U32, checkinterval: U32, creator_os: U32, rev_level: U32,
        def_resuid: U16, def_resgid: U16, first_ino: U32, inode_size: U16, block_group_nr: U16, feature_compat: U32,
        feature_incompat: U32, feature_ro_compat: U32, uuid: [u8; 16], volume_name: [u8; 16], last_mounted: [u8; 64],
        algorithm_usage_bitmap: U32, prealloc_blocks: u8, prealloc_dir_blocks: u8, reserved_gdt_blocks: U16,
        journal_uuid: [u8; 16], journal_inum: U32, journal_dev: U32, last_orphan: U32, hash_seed: [U32; 4],
        def_hash_version: u8, jnl_backup_type: u8, desc_size: U16, default_mount_opts: U32, first_meta_bg: U32,
        mkfs_time: U32, jnl_blocks: [U32; 17], blocks_count_hi: U32, r_blocks_count_hi: U32, free_blocks_count_hi: U32,
        min_extra_isize: U16, want_extra_isize: U16, flags: U32, raid_stride: U16, mmp_update_interval: U16,
        mmp_block: U64, raid_stripe_width: U32, log_groups_per_flex: u8, checksum_type: u8, reserved_pad: U16,
        kbytes_written: U64, snapshot_inum: U32, snapshot_id: U32, snapshot_r_blocks_count: U64, snapshot_list: U32,
        error_count: U32, first_error_time: U32, first_error_ino: U32, first_error_block: U64,
        first_error_func: [u8; 32], first_error_line: U32, last_error_time: U32, last_error_ino: U32,
        last_error_line: U32, last_error_block: U64, last_error_func: [u8; 32], mount_opts: [u8; 64],
        usr_quota_inum: U32, grp_quota_inum: U32, overhead_clusters: U32, backup_bgs: [U32; 2],
        encrypt_algos: [u8; 4], encrypt_pw_salt: [u8; 16], lpf_ino: U32, prj_quota_inum: U32, checksum_seed: U32,
        time_hi: [u8; 6], error_codes: [u8; 2], encoding: U16, encoding_flags: U16, orphan_file_inum: U32,
        reserved: [U32; 94], checksum: U32,
    }
}

impl Superblock {
    /// Number of blocks.
    pub fn blocks_count(&self) -> u64 {
        wide(self.blocks_count_lo, self.blocks_count_hi)
    }

    /// Number of blocks kept for the superuser.
    pub fn reserved_blocks(&self) -> u64 {
        wide(self.r_blocks_count_lo, self.r_blocks_count_hi)
    }

    /// Number of free blocks.
    pub fn free_blocks(&self) -> u64 {
        wide(self.free_blocks_count_lo, self.free_blocks_count_hi)
    }

    /// Sets the number of free blocks.
    pub fn set_free_blocks(&mut self, count: u64) {
        self.free_blocks_count_lo.set(count as u32);
        self.free_blocks_count_hi.set((count >> 32) as u32);
    }

    /// Features that others need not know.
    pub fn compat(&self) -> Compat {
        Compat::from_bits_retain(self.feature_compat.get())
    }

    /// Features without which nobody may read.
    pub fn incompat(&self) -> Incompat {
        Incompat::from_bits_retain(self.feature_incompat.get())
    }

    /// Features without which nobody may write.
    pub fn ro_compat(&self) -> RoCompat {
        RoCompat::from_bits_retain(self.feature_ro_compat.get())
    }
}

fn wide(lo: U32, hi: U32) -> u64 {
    u64::from(hi.get()) << 32 | u64::from(lo.get())
}

bitflags! {
    /// `s_feature_compat`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Compat: u32 {
        const DIR_PREALLOC = 0x1;
        const IMAGIC_INODES = 0x2;
        const HAS_JOURNAL = 0x4;
        const EXT_ATTR = 0x8;
        const RESIZE_INODE = 0x10;
        const DIR_INDEX = 0x20;
        const SPARSE_SUPER2 = 0x200;
        const FAST_COMMIT = 0x400;
        const STABLE_INODES = 0x800;
        const ORPHAN_FILE = 0x1000;
    }

    /// `s_feature_incompat`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Incompat: u32 {
        const COMPRESSION = 0x1;
        const FILETYPE = 0x2;
        const RECOVER = 0x4;
        const JOURNAL_DEV = 0x8;
        const META_BG = 0x10;
        const EXTENTS = 0x40;
        const BIT64 = 0x80;
        const MMP = 0x100;
        const FLEX_BG = 0x200;
        const EA_INODE = 0x400;
        const DIRDATA = 0x1000;
        const CSUM_SEED = 0x2000;
        const LARGEDIR = 0x4000;
        const INLINE_DATA = 0x8000;
        const ENCRYPT = 0x10000;
        const CASEFOLD = 0x20000;
    }

    /// `s_feature_ro_compat`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RoCompat: u32 {
        const SPARSE_SUPER = 0x1;
        const LARGE_FILE = 0x2;
        const HUGE_FILE = 0x8;
        const GDT_CSUM = 0x10;
        const DIR_NLINK = 0x20;
        const EXTRA_ISIZE = 0x40;
        const QUOTA = 0x100;
        const BIGALLOC = 0x200;
        const METADATA_CSUM = 0x400;
        const READONLY = 0x1000;
        const PROJECT = 0x2000;
        const VERITY = 0x8000;
        const ORPHAN_PRESENT = 0x10000;
    }
}

impl Incompat {
    /// What this library reads and writes.
    pub const KNOWN: Incompat = Incompat::FILETYPE
        .union(Incompat::RECOVER)
        .union(Incompat::META_BG)
        .union(Incompat::EXTENTS)
        .union(Incompat::BIT64)
        .union(Incompat::FLEX_BG)
        .union(Incompat::CSUM_SEED);
}

impl RoCompat {
    /// What this library writes.
    pub const KNOWN: RoCompat = RoCompat::SPARSE_SUPER
        .union(RoCompat::LARGE_FILE)
        .union(RoCompat::HUGE_FILE)
        .union(RoCompat::GDT_CSUM)
        .union(RoCompat::DIR_NLINK)
        .union(RoCompat::EXTRA_ISIZE)
        .union(RoCompat::METADATA_CSUM)
        .union(RoCompat::ORPHAN_PRESENT);
}
