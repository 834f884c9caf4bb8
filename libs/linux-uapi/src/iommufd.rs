//! `linux/iommufd.h`: address spaces of devices, and Ursa's extension for machines without an IOMMU.
//!
//! An I/O address space (IOAS) belongs to one open `/dev/iommu`; devices are bound to that file and attached to the space.
//! Every structure starts with its size. A machine without an IOMMU cannot translate: there `IOAS_MAP` fails with
//! `EOPNOTSUPP`, and [`URSA_BUS_ADDRESSES`] pins a buffer of a DMA heap and tells where it is on the bus.
//! References: <linux/iommufd.h>; Documentation/userspace-api/iommufd.rst.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const fn io(nr: u32) -> u32 {
    (b';' as u32) << 8 | nr
}

/// `IOMMU_DESTROY`.
pub const DESTROY: u32 = io(0x80);
/// `IOMMU_IOAS_ALLOC`.
pub const IOAS_ALLOC: u32 = io(0x81);
/// `IOMMU_IOAS_IOVA_RANGES`.
pub const IOAS_IOVA_RANGES: u32 = io(0x84);
/// `IOMMU_IOAS_ALLOW_IOVAS`.
pub const IOAS_ALLOW_IOVAS: u32 = io(0x82);
/// `IOMMU_IOAS_MAP`.
pub const IOAS_MAP: u32 = io(0x85);
/// `IOMMU_IOAS_UNMAP`.
pub const IOAS_UNMAP: u32 = io(0x86);
/// `IOMMU_IOAS_MAP_FILE`.
pub const IOAS_MAP_FILE: u32 = io(0x8f);
/// Extension: pin (part of) a DMA heap's buffer and get its bus addresses.
pub const URSA_BUS_ADDRESSES: u32 = io(0xf0);

/// The IOVA is given, not chosen.
pub const IOAS_MAP_FIXED_IOVA: u32 = 1 << 0;
/// The device may write.
pub const IOAS_MAP_WRITEABLE: u32 = 1 << 1;
/// The device may read.
pub const IOAS_MAP_READABLE: u32 = 1 << 2;

/// `struct iommu_destroy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Destroy {
    /// Of this structure.
    pub size: u32,
    /// Which object.
    pub id: u32,
}

/// `struct iommu_ioas_alloc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoasAlloc {
    /// Of this structure.
    pub size: u32,
    /// Zero.
    pub flags: u32,
    /// The new space's id.
    pub out_ioas_id: u32,
}

/// `struct iommu_iova_range`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IovaRange {
    /// First address.
    pub start: u64,
    /// Last address.
    pub last: u64,
}

/// `struct iommu_ioas_iova_ranges`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IovaRanges {
    /// Of this structure.
    pub size: u32,
    /// Which space.
    pub ioas_id: u32,
    /// Room for this many; comes back as how many there are.
    pub num_iovas: u32,
    /// Zero.
    pub reserved: u32,
    /// Address of an [`IovaRange`] array.
    pub allowed_iovas: u64,
    /// Alignment that mappings need.
    pub out_iova_alignment: u64,
}

/// `struct iommu_ioas_allow_iovas`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AllowIovas {
    /// Of this structure.
    pub size: u32,
    /// Which space.
    pub ioas_id: u32,
    /// How many ranges.
    pub num_iovas: u32,
    /// Zero.
    pub reserved: u32,
    /// Address of an [`IovaRange`] array.
    pub allowed_iovas: u64,
}

/// `struct iommu_ioas_map`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoasMap {
    /// Of this structure.
    pub size: u32,
    /// `IOAS_MAP_*`.
    pub flags: u32,
    /// Which space.
    pub ioas_id: u32,
    /// Zero.
    pub reserved: u32,
    /// The caller's memory.
    pub user_va: u64,
    /// Bytes.
    pub length: u64,
    /// Where in the space.
    pub iova: u64,
}

/// `struct iommu_ioas_map_file`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoasMapFile {
    /// Of this structure.
    pub size: u32,
    /// `IOAS_MAP_*`.
    pub flags: u32,
    /// Which space.
    pub ioas_id: u32,
    /// A memfd or dma-buf.
    pub fd: i32,
    /// Where in the file.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Where in the space.
    pub iova: u64,
}

/// `struct iommu_ioas_unmap`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoasUnmap {
    /// Of this structure.
    pub size: u32,
    /// Which space.
    pub ioas_id: u32,
    /// From here.
    pub iova: u64,
    /// Bytes; comes back as how many were unmapped. `iova` 0 and all ones: everything.
    pub length: u64,
}

/// A run of bus addresses, as [`BusAddresses::segs`] lists them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BusSegment {
    /// Bus address.
    pub address: u64,
    /// Bytes.
    pub len: u64,
}

/// The argument of [`URSA_BUS_ADDRESSES`]. The buffer stays pinned until [`DESTROY`] of `out_id` or the last close of the file.
/// `EOVERFLOW` with the number needed in `nsegs` when there is not room enough, and nothing is pinned then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BusAddresses {
    /// Of this structure.
    pub size: u32,
    /// Zero.
    pub flags: u32,
    /// Which space: only a device that is attached to it may use the addresses.
    pub ioas_id: u32,
    /// A dma-buf of a DMA heap.
    pub fd: i32,
    /// Where in the buffer, page-aligned.
    pub offset: u64,
    /// Bytes, page-aligned.
    pub length: u64,
    /// Address of a [`BusSegment`] array.
    pub segs: u64,
    /// Room in it; comes back as how many there are.
    pub nsegs: u32,
    /// Id of the pin.
    pub out_id: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_headers() {
        assert_eq!(IOAS_ALLOC, 0x3b81);
        assert_eq!(size_of::<IoasAlloc>(), 12);
        assert_eq!(size_of::<IovaRanges>(), 32);
        assert_eq!(size_of::<AllowIovas>(), 24);
        assert_eq!(size_of::<IoasMap>(), 40);
        assert_eq!(size_of::<IoasMapFile>(), 40);
        assert_eq!(core::mem::offset_of!(IoasMapFile, iova), 32);
        assert_eq!(size_of::<IoasUnmap>(), 24);
        assert_eq!(size_of::<BusAddresses>(), 48);
    }
}
