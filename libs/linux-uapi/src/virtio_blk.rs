//! `linux/virtio_blk.h`: virtio block devices, as drivers and servers share them.
//! References: <linux/virtio_blk.h>; VIRTIO 1.2, 5.2.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Virtio device type.
pub const DEVICE_TYPE: u32 = 2;

/// Feature bits.
pub mod feature {
    /// Segments have a largest size.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// Requests have a largest number of segments.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The device is read-only.
    pub const RO: u64 = 1 << 5;
    /// The block size is told.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// The device knows flushes.
    pub const FLUSH: u64 = 1 << 9;
    /// The topology is told.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// Several queues.
    pub const MQ: u64 = 1 << 12;
    /// The device knows discards.
    pub const DISCARD: u64 = 1 << 13;
    /// The device knows write-zeroes.
    pub const WRITE_ZEROES: u64 = 1 << 14;
    /// `VIRTIO_F_VERSION_1`.
    pub const VERSION_1: u64 = 1 << 32;
    /// `VIRTIO_F_ACCESS_PLATFORM`.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
}

/// Read.
pub const T_IN: u32 = 0;
/// Write.
pub const T_OUT: u32 = 1;
/// Make written data durable.
pub const T_FLUSH: u32 = 4;
/// Ask for the serial number.
pub const T_GET_ID: u32 = 8;
/// Discard.
pub const T_DISCARD: u32 = 11;
/// Write zeroes.
pub const T_WRITE_ZEROES: u32 = 13;
/// Zeroes may be made by discarding.
pub const WRITE_ZEROES_UNMAP: u32 = 1;
/// Done.
pub const S_OK: u8 = 0;
/// Failed.
pub const S_IOERR: u8 = 1;
/// Not known.
pub const S_UNSUPP: u8 = 2;
/// Bytes of a serial number.
pub const ID_BYTES: usize = 20;

/// `struct virtio_blk_outhdr`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OutHeader {
    /// `T_*`.
    pub kind: u32,
    /// Priority.
    pub ioprio: u32,
    /// First sector, of 512 bytes.
    pub sector: u64,
}

/// `struct virtio_blk_discard_write_zeroes`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Range {
    /// First sector.
    pub sector: u64,
    /// Sectors.
    pub sectors: u32,
    /// [`WRITE_ZEROES_UNMAP`].
    pub flags: u32,
}

/// `struct virtio_blk_config`, up to write-zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Sectors of 512 bytes (two words: the structure is packed in C).
    pub capacity: [u32; 2],
    /// The most bytes of a segment.
    pub size_max: u32,
    /// The most segments of a request.
    pub seg_max: u32,
    /// Cylinders, heads, sectors.
    pub geometry: u32,
    /// Logical block size.
    pub blk_size: u32,
    /// Physical block size: logical, shifted by this.
    pub physical_block_exp: u8,
    /// Offset of the first aligned logical block.
    pub alignment_offset: u8,
    /// Best smallest transfer, in logical blocks.
    pub min_io_size: u16,
    /// Best transfer, in logical blocks.
    pub opt_io_size: u32,
    /// Write-back cache.
    pub wce: u8,
    /// Padding.
    pub unused: u8,
    /// Queues.
    pub num_queues: u16,
    /// The most sectors of a discard's segment.
    pub max_discard_sectors: u32,
    /// The most segments of a discard.
    pub max_discard_seg: u32,
    /// Discards are best aligned to this many sectors.
    pub discard_sector_alignment: u32,
    /// The most sectors of a write-zeroes' segment.
    pub max_write_zeroes_sectors: u32,
    /// The most segments of a write-zeroes.
    pub max_write_zeroes_seg: u32,
    /// Write-zeroes may discard.
    pub write_zeroes_may_unmap: u8,
    /// Padding.
    pub unused1: [u8; 3],
}

impl Config {
    /// Sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        u64::from(self.capacity[0]) | u64::from(self.capacity[1]) << 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layouts() {
        assert_eq!(size_of::<Config>(), 60);
        assert_eq!(offset_of!(Config, num_queues), 34);
        assert_eq!(offset_of!(Config, write_zeroes_may_unmap), 56);
        assert_eq!(size_of::<OutHeader>(), 16);
        assert_eq!(size_of::<Range>(), 16);
    }
}
