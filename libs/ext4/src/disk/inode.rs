//! Inodes.

#![expect(missing_docs, reason = "flags carry the names of the kernel's headers")]

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32};

use super::on_disk;

/// The root directory's number.
pub const ROOT_INO: u32 = 2;
/// Size of an inode of the first revision, to which everything after is extra.
pub const GOOD_OLD_SIZE: usize = 128;
/// `i_links_count` of a directory with more subdirectories than this is 1 (`dir_nlink`).
pub const LINK_MAX: u32 = 65000;
/// Bytes in `i_block`.
pub const BLOCK_BYTES: usize = 60;

on_disk! {
    /// An inode: the part that every reader of today knows.
    #[doc(alias = "ext4_inode")]
    struct DiskInode(160) {
        mode: U16, uid: U16, size_lo: U32, atime: U32, ctime: U32, mtime: U32, dtime: U32, gid: U16, links_count: U16,
        blocks_lo: U32, flags: U32, version: U32, block: [u8; 60], generation: U32, file_acl_lo: U32, size_high: U32,
        obso_faddr: U32, blocks_high: U16, file_acl_high: U16, uid_high: U16, gid_high: U16, checksum_lo: U16,
        reserved: U16, extra_isize: U16, checksum_hi: U16, ctime_extra: U32, mtime_extra: U32, atime_extra: U32,
        crtime: U32, crtime_extra: U32, version_hi: U32, projid: U32,
    }
}

/// Where `checksum_lo` lies.
pub const CHECKSUM_LO_OFFSET: usize = 0x7c;
/// Where `checksum_hi` lies.
pub const CHECKSUM_HI_OFFSET: usize = 0x82;

bitflags! {
    /// `i_flags`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InodeFlags: u32 {
        const SYNC = 0x8;
        const IMMUTABLE = 0x10;
        const APPEND = 0x20;
        const NODUMP = 0x40;
        const NOATIME = 0x80;
        const ENCRYPT = 0x800;
        const INDEX = 0x1000;
        const JOURNAL_DATA = 0x4000;
        const DIRSYNC = 0x1_0000;
        const TOPDIR = 0x2_0000;
        const HUGE_FILE = 0x4_0000;
        const EXTENTS = 0x8_0000;
        const VERITY = 0x10_0000;
        const EA_INODE = 0x20_0000;
        const INLINE_DATA = 0x1000_0000;
        const PROJINHERIT = 0x2000_0000;
        const CASEFOLD = 0x4000_0000;
    }
}

impl InodeFlags {
    /// What a new file takes over from its directory (`EXT4_FL_INHERITED`, as far as it means anything here).
    pub const INHERITED: InodeFlags = InodeFlags::SYNC
        .union(InodeFlags::NODUMP)
        .union(InodeFlags::NOATIME)
        .union(InodeFlags::JOURNAL_DATA)
        .union(InodeFlags::DIRSYNC)
        .union(InodeFlags::PROJINHERIT);
}

/// A point in time: seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nsec: u32,
}

impl Time {
    /// Now, or when it was that what is done again was done.
    pub fn now() -> Time {
        if let Some(again) = crate::again::current() {
            return again.now;
        }
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Time { sec: since.as_secs() as i64, nsec: since.subsec_nanos() }
    }

    /// From the two words on the disk: the lowest two bits of the second extend the first to 34 bits.
    pub fn decode(sec: u32, extra: u32) -> Time {
        Time { sec: i64::from(sec as i32) + (i64::from(extra & 3) << 32), nsec: (extra >> 2).min(999_999_999) }
    }

    /// To the two words on the disk, at the nearest time that they can say.
    pub fn encode(self) -> (u32, u32) {
        let sec = self.sec.clamp(i64::from(i32::MIN), i64::from(i32::MAX) + (3i64 << 32));
        let epoch = ((sec - i64::from(sec as i32)) >> 32) as u32 & 3;
        (sec as u32, epoch | self.nsec << 2)
    }

    /// To the one word of an inode without extra space.
    pub fn encode_old(self) -> u32 {
        self.sec.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_outside_32_bits_come_back() {
        for sec in [0, -1, 1, i64::from(i32::MIN), 0x7fff_ffff, 0x8000_0000, 0x1_7fff_ffff, 0x3_7fff_ffff] {
            let time = Time { sec, nsec: 999_999_999 };
            let (word, extra) = time.encode();
            assert_eq!(Time::decode(word, extra), time);
        }
    }
}
