//! Block group descriptors.

use zerocopy::little_endian::{U16, U32};

use super::on_disk;

/// The inode table and bitmap were never written.
pub const INODE_UNINIT: u16 = 1;
/// The block bitmap was never written.
pub const BLOCK_UNINIT: u16 = 2;
/// The inode table is zeroed.
pub const INODE_ZEROED: u16 = 4;

on_disk! {
    /// A group descriptor; without the 64bit feature only the first 32 bytes are on the disk.
    #[doc(alias = "ext4_group_desc")]
    struct GroupDesc(64) {
        block_bitmap_lo: U32, inode_bitmap_lo: U32, inode_table_lo: U32, free_blocks_count_lo: U16,
        free_inodes_count_lo: U16, used_dirs_count_lo: U16, flags: U16, exclude_bitmap_lo: U32,
        block_bitmap_csum_lo: U16, inode_bitmap_csum_lo: U16, itable_unused_lo: U16, checksum: U16,
        block_bitmap_hi: U32, inode_bitmap_hi: U32, inode_table_hi: U32, free_blocks_count_hi: U16,
        free_inodes_count_hi: U16, used_dirs_count_hi: U16, itable_unused_hi: U16, exclude_bitmap_hi: U32,
        block_bitmap_csum_hi: U16, inode_bitmap_csum_hi: U16, reserved: U32,
    }
}

/// Where `checksum` lies.
pub const CHECKSUM_OFFSET: usize = 0x1e;

impl GroupDesc {
    /// The block of the block bitmap.
    pub fn block_bitmap(&self) -> u64 {
        u64::from(self.block_bitmap_hi.get()) << 32 | u64::from(self.block_bitmap_lo.get())
    }

    /// The block of the inode bitmap.
    pub fn inode_bitmap(&self) -> u64 {
        u64::from(self.inode_bitmap_hi.get()) << 32 | u64::from(self.inode_bitmap_lo.get())
    }

    /// The first block of the inode table.
    pub fn inode_table(&self) -> u64 {
        u64::from(self.inode_table_hi.get()) << 32 | u64::from(self.inode_table_lo.get())
    }

    /// Number of free blocks.
    pub fn free_blocks(&self) -> u32 {
        u32::from(self.free_blocks_count_hi.get()) << 16 | u32::from(self.free_blocks_count_lo.get())
    }

    /// Number of free inodes.
    pub fn free_inodes(&self) -> u32 {
        u32::from(self.free_inodes_count_hi.get()) << 16 | u32::from(self.free_inodes_count_lo.get())
    }

    /// Number of directories.
    pub fn used_dirs(&self) -> u32 {
        u32::from(self.used_dirs_count_hi.get()) << 16 | u32::from(self.used_dirs_count_lo.get())
    }

    /// Number of inodes at the end of the table that were never used.
    pub fn itable_unused(&self) -> u32 {
        u32::from(self.itable_unused_hi.get()) << 16 | u32::from(self.itable_unused_lo.get())
    }

    /// Sets the number of free blocks.
    pub fn set_free_blocks(&mut self, count: u32) {
        self.free_blocks_count_lo.set(count as u16);
        self.free_blocks_count_hi.set((count >> 16) as u16);
    }

    /// Sets the number of free inodes.
    pub fn set_free_inodes(&mut self, count: u32) {
        self.free_inodes_count_lo.set(count as u16);
        self.free_inodes_count_hi.set((count >> 16) as u16);
    }

    /// Sets the number of directories.
    pub fn set_used_dirs(&mut self, count: u32) {
        self.used_dirs_count_lo.set(count as u16);
        self.used_dirs_count_hi.set((count >> 16) as u16);
    }

    /// Sets the number of inodes that were never used.
    pub fn set_itable_unused(&mut self, count: u32) {
        self.itable_unused_lo.set(count as u16);
        self.itable_unused_hi.set((count >> 16) as u16);
    }
}
