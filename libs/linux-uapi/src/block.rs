//! `linux/blkpg.h`, `linux/hdreg.h` and `linux/loop.h`: block devices' own structures. Numbers of ioctls that need none are
//! in `raw::ioctl` (`BLK*`).
//! References: <linux/blkpg.h>, <linux/hdreg.h>, <linux/loop.h>; loop(4).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `BLKPG_ADD_PARTITION`.
pub const BLKPG_ADD_PARTITION: i32 = 1;
/// `BLKPG_DEL_PARTITION`.
pub const BLKPG_DEL_PARTITION: i32 = 2;
/// `BLKPG_RESIZE_PARTITION`.
pub const BLKPG_RESIZE_PARTITION: i32 = 3;
/// `HDIO_GETGEO`.
pub const HDIO_GETGEO: u32 = 0x0301;

/// `struct blkpg_ioctl_arg`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlkpgIoctlArg {
    /// `BLKPG_*_PARTITION`.
    pub op: i32,
    /// Unused.
    pub flags: i32,
    /// Bytes of the data.
    pub datalen: i32,
    /// Padding.
    pub pad: u32,
    /// Address of a [`BlkpgPartition`].
    pub data: u64,
}

/// `struct blkpg_partition`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlkpgPartition {
    /// First byte.
    pub start: i64,
    /// Bytes.
    pub length: i64,
    /// Partition number.
    pub pno: i32,
    /// Unused.
    pub devname: [u8; 64],
    /// Unused.
    pub volname: [u8; 64],
    /// Padding.
    pub pad: u32,
}

/// `struct hd_geometry`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HdGeometry {
    /// Heads.
    pub heads: u8,
    /// Sectors a track.
    pub sectors: u8,
    /// Cylinders.
    pub cylinders: u16,
    /// Padding.
    pub pad: u32,
    /// First sector.
    pub start: u64,
}

/// `LO_FLAGS_READ_ONLY`.
pub const LO_FLAGS_READ_ONLY: u32 = 1;
/// `LO_FLAGS_AUTOCLEAR`.
pub const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// `LO_FLAGS_PARTSCAN`.
pub const LO_FLAGS_PARTSCAN: u32 = 8;
/// `LO_FLAGS_DIRECT_IO`.
pub const LO_FLAGS_DIRECT_IO: u32 = 16;
/// `LOOP_SET_FD`.
pub const LOOP_SET_FD: u32 = 0x4c00;
/// `LOOP_CLR_FD`.
pub const LOOP_CLR_FD: u32 = 0x4c01;
/// `LOOP_SET_STATUS64`.
pub const LOOP_SET_STATUS64: u32 = 0x4c04;
/// `LOOP_GET_STATUS64`.
pub const LOOP_GET_STATUS64: u32 = 0x4c05;
/// `LOOP_SET_CAPACITY`.
pub const LOOP_SET_CAPACITY: u32 = 0x4c07;
/// `LOOP_SET_DIRECT_IO`.
pub const LOOP_SET_DIRECT_IO: u32 = 0x4c08;
/// `LOOP_SET_BLOCK_SIZE`.
pub const LOOP_SET_BLOCK_SIZE: u32 = 0x4c09;
/// `LOOP_CONFIGURE`.
pub const LOOP_CONFIGURE: u32 = 0x4c0a;
/// `LOOP_CTL_ADD`.
pub const LOOP_CTL_ADD: u32 = 0x4c80;
/// `LOOP_CTL_REMOVE`.
pub const LOOP_CTL_REMOVE: u32 = 0x4c81;
/// `LOOP_CTL_GET_FREE`.
pub const LOOP_CTL_GET_FREE: u32 = 0x4c82;

/// `struct loop_info64`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LoopInfo64 {
    /// Device of the file.
    pub device: u64,
    /// Inode of the file.
    pub inode: u64,
    /// Device number of the file, when that is a device.
    pub rdevice: u64,
    /// First byte of the file.
    pub offset: u64,
    /// Bytes of the file; 0: all.
    pub sizelimit: u64,
    /// Number of the loop device.
    pub number: u32,
    /// Unused.
    pub encrypt_type: u32,
    /// Unused.
    pub encrypt_key_size: u32,
    /// `LO_FLAGS_*`.
    pub flags: u32,
    /// Path of the file, as the program calls it.
    pub file_name: [u8; 64],
    /// Unused.
    pub crypt_name: [u8; 64],
    /// Unused.
    pub encrypt_key: [u8; 32],
    /// Unused.
    pub init: [u64; 2],
}

/// `struct loop_config`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LoopConfig {
    /// The file.
    pub fd: u32,
    /// Logical block size; 0: 512.
    pub block_size: u32,
    /// As for `LOOP_SET_STATUS64`.
    pub info: LoopInfo64,
    /// Zero.
    pub reserved: [u64; 8],
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layouts() {
        assert_eq!(size_of::<BlkpgIoctlArg>(), 24);
        assert_eq!(size_of::<BlkpgPartition>(), 152);
        assert_eq!(size_of::<HdGeometry>(), 16);
        assert_eq!(size_of::<LoopInfo64>(), 232);
        assert_eq!(offset_of!(LoopInfo64, file_name), 56);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }
}
