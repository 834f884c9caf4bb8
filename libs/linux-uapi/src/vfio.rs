//! `linux/vfio.h`: device files of user-space drivers.
//!
//! Every structure starts with `argsz`, what the caller has room for, so that both sides can grow. The regions of a device
//! lie at [`region_offset`] of its file. One extension: [`URSA_MMAP_WC`].
//! References: <linux/vfio.h>; Documentation/driver-api/vfio.rst, "VFIO Device cdev".

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const fn io(nr: u32) -> u32 {
    (b';' as u32) << 8 | (100 + nr)
}

/// `VFIO_DEVICE_GET_INFO`.
pub const DEVICE_GET_INFO: u32 = io(7);
/// `VFIO_DEVICE_GET_REGION_INFO`.
pub const DEVICE_GET_REGION_INFO: u32 = io(8);
/// `VFIO_DEVICE_GET_IRQ_INFO`.
pub const DEVICE_GET_IRQ_INFO: u32 = io(9);
/// `VFIO_DEVICE_SET_IRQS`.
pub const DEVICE_SET_IRQS: u32 = io(10);
/// `VFIO_DEVICE_RESET`.
pub const DEVICE_RESET: u32 = io(11);
/// `VFIO_DEVICE_BIND_IOMMUFD`.
pub const DEVICE_BIND_IOMMUFD: u32 = io(18);
/// `VFIO_DEVICE_ATTACH_IOMMUFD_PT`.
pub const DEVICE_ATTACH_IOMMUFD_PT: u32 = io(19);
/// `VFIO_DEVICE_DETACH_IOMMUFD_PT`.
pub const DEVICE_DETACH_IOMMUFD_PT: u32 = io(20);

/// The device can be reset.
pub const DEVICE_FLAGS_RESET: u32 = 1 << 0;
/// The device is a PCI function.
pub const DEVICE_FLAGS_PCI: u32 = 1 << 1;
/// The device is on no bus that can be enumerated.
pub const DEVICE_FLAGS_PLATFORM: u32 = 1 << 2;

/// Bits of [`RegionInfo::flags`].
pub const REGION_INFO_FLAG_READ: u32 = 1 << 0;
/// `VFIO_REGION_INFO_FLAG_WRITE`.
pub const REGION_INFO_FLAG_WRITE: u32 = 1 << 1;
/// `VFIO_REGION_INFO_FLAG_MMAP`.
pub const REGION_INFO_FLAG_MMAP: u32 = 1 << 2;
/// `VFIO_REGION_INFO_FLAG_CAPS`.
pub const REGION_INFO_FLAG_CAPS: u32 = 1 << 3;
/// `VFIO_REGION_INFO_CAP_MSIX_MAPPABLE`: the page of the MSI-X table can be mapped too (writing it is harmless).
pub const REGION_INFO_CAP_MSIX_MAPPABLE: u16 = 3;
/// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`.
pub const REGION_INFO_CAP_SPARSE_MMAP: u16 = 1;

/// Bits of [`IrqInfo::flags`].
pub const IRQ_INFO_EVENTFD: u32 = 1 << 0;
/// `VFIO_IRQ_INFO_MASKABLE`.
pub const IRQ_INFO_MASKABLE: u32 = 1 << 1;
/// `VFIO_IRQ_INFO_AUTOMASKED`: masked by each interrupt until the driver unmasks it.
pub const IRQ_INFO_AUTOMASKED: u32 = 1 << 2;
/// `VFIO_IRQ_INFO_NORESIZE`: the number of interrupts is fixed by the first `SET_IRQS`.
pub const IRQ_INFO_NORESIZE: u32 = 1 << 3;

/// Bits of [`IrqSet::flags`]: what the data is.
pub const IRQ_SET_DATA_NONE: u32 = 1 << 0;
/// One byte for each interrupt.
pub const IRQ_SET_DATA_BOOL: u32 = 1 << 1;
/// One `i32` descriptor for each interrupt, -1 for none.
pub const IRQ_SET_DATA_EVENTFD: u32 = 1 << 2;
/// Mask.
pub const IRQ_SET_ACTION_MASK: u32 = 1 << 3;
/// Unmask.
pub const IRQ_SET_ACTION_UNMASK: u32 = 1 << 4;
/// Set the eventfds, or signal them.
pub const IRQ_SET_ACTION_TRIGGER: u32 = 1 << 5;

/// Regions of a PCI function: BARs 0 to 5, then these.
pub const PCI_ROM_REGION: u32 = 6;
/// Configuration space.
pub const PCI_CONFIG_REGION: u32 = 7;
/// Legacy VGA.
pub const PCI_VGA_REGION: u32 = 8;
/// How many regions a PCI function has.
pub const PCI_NUM_REGIONS: u32 = 9;
/// Interrupt indexes of a PCI function.
pub const PCI_INTX_IRQ: u32 = 0;
/// MSI.
pub const PCI_MSI_IRQ: u32 = 1;
/// MSI-X.
pub const PCI_MSIX_IRQ: u32 = 2;
/// PCIe error.
pub const PCI_ERR_IRQ: u32 = 3;
/// The user is asked to give the device back.
pub const PCI_REQ_IRQ: u32 = 4;
/// How many interrupt indexes a PCI function has.
pub const PCI_NUM_IRQS: u32 = 5;

/// Bits of an offset that are within the region (`VFIO_PCI_OFFSET_SHIFT`).
pub const REGION_SHIFT: u32 = 40;
/// Extension: added to the offset given to `mmap`, maps a prefetchable region write-combining instead of uncached.
pub const URSA_MMAP_WC: u64 = 1 << 39;

/// Where region `index` starts in the device's file.
pub const fn region_offset(index: u32) -> u64 {
    (index as u64) << REGION_SHIFT
}

/// `struct vfio_device_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceInfo {
    /// Size of what the caller gave.
    pub argsz: u32,
    /// `DEVICE_FLAGS_*`.
    pub flags: u32,
    /// Highest region index plus 1.
    pub num_regions: u32,
    /// Highest interrupt index plus 1.
    pub num_irqs: u32,
    /// Where the first capability is.
    pub cap_offset: u32,
    /// Zero.
    pub pad: u32,
}

/// `struct vfio_region_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionInfo {
    /// Size of what the caller gave; comes back as what is needed with capabilities.
    pub argsz: u32,
    /// `REGION_INFO_FLAG_*`.
    pub flags: u32,
    /// Which region.
    pub index: u32,
    /// Where the first capability is.
    pub cap_offset: u32,
    /// Bytes.
    pub size: u64,
    /// Where it starts in the device's file.
    pub offset: u64,
}

/// `struct vfio_info_cap_header`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CapHeader {
    /// Which.
    pub id: u16,
    /// Of its layout.
    pub version: u16,
    /// Offset of the next, 0 at the end.
    pub next: u32,
}

/// `struct vfio_irq_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqInfo {
    /// Size of what the caller gave.
    pub argsz: u32,
    /// `IRQ_INFO_*`.
    pub flags: u32,
    /// Which.
    pub index: u32,
    /// How many interrupts it has.
    pub count: u32,
}

/// `struct vfio_irq_set`, before its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqSet {
    /// Header and data.
    pub argsz: u32,
    /// One `IRQ_SET_DATA_*` and one `IRQ_SET_ACTION_*`.
    pub flags: u32,
    /// Which index.
    pub index: u32,
    /// First interrupt.
    pub start: u32,
    /// How many interrupts.
    pub count: u32,
}

/// `struct vfio_device_bind_iommufd`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BindIommufd {
    /// Size of what the caller gave.
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
    /// Descriptor of `/dev/iommu`.
    pub iommufd: i32,
    /// The device's object id there.
    pub out_devid: u32,
}

/// `struct vfio_device_attach_iommufd_pt`, as it was first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AttachPt {
    /// Size of what the caller gave.
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
    /// Id of an IOAS; comes back as the id of what it was attached to.
    pub pt_id: u32,
}

/// `struct vfio_device_detach_iommufd_pt`, as it was first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DetachPt {
    /// Size of what the caller gave.
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_headers() {
        assert_eq!(DEVICE_GET_INFO, 0x3b6b);
        assert_eq!(DEVICE_ATTACH_IOMMUFD_PT, 0x3b77);
        assert_eq!(size_of::<DeviceInfo>(), 24);
        assert_eq!(size_of::<RegionInfo>(), 32);
        assert_eq!(core::mem::offset_of!(RegionInfo, size), 16);
        assert_eq!(size_of::<IrqInfo>(), 16);
        assert_eq!(size_of::<IrqSet>(), 20);
        assert_eq!(size_of::<BindIommufd>(), 16);
        assert_eq!(size_of::<AttachPt>(), 12);
        assert_eq!(size_of::<CapHeader>(), 8);
    }
}
