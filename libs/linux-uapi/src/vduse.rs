//! `linux/vduse.h`: virtio devices that a process serves (`/dev/vduse/control`, `/dev/vduse/NAME`).
//! References: <linux/vduse.h>; Documentation/userspace-api/vduse.rst.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const fn ioc(direction: u32, nr: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | 0x81 << 8 | nr
}
const WRITE: u32 = 1;
const READ: u32 = 2;

/// The only version of the interface.
pub const API_VERSION: u64 = 0;
/// Bytes of a name with its NUL.
pub const NAME_MAX: usize = 256;

/// `VDUSE_GET_API_VERSION`.
pub const GET_API_VERSION: u32 = ioc(READ, 0x00, 8);
/// `VDUSE_SET_API_VERSION`.
pub const SET_API_VERSION: u32 = ioc(WRITE, 0x01, 8);
/// `VDUSE_CREATE_DEV`.
pub const CREATE_DEV: u32 = ioc(WRITE, 0x02, size_of::<DevConfig>());
/// `VDUSE_DESTROY_DEV`.
pub const DESTROY_DEV: u32 = ioc(WRITE, 0x03, NAME_MAX);
/// `VDUSE_URSA_CONFINE`, an extension of the control file: from now on it makes, opens and destroys the device of this name and
/// no other. It cannot be taken back. For whoever passes the file to a server that shall have nothing else.
pub const URSA_CONFINE: u32 = ioc(WRITE, 0x40, NAME_MAX);
/// `VDUSE_URSA_OPEN`, an extension of a confined control file: opens its device as `open("/dev/vduse/NAME", O_RDWR)` does and
/// returns the descriptor, for a server that sees no `/dev`.
pub const URSA_OPEN: u32 = ioc(0, 0x41, 0);
/// `VDUSE_IOTLB_GET_FD`.
pub const IOTLB_GET_FD: u32 = ioc(READ | WRITE, 0x10, size_of::<IotlbEntry>());
/// `VDUSE_DEV_GET_FEATURES`.
pub const DEV_GET_FEATURES: u32 = ioc(READ, 0x11, 8);
/// `VDUSE_DEV_SET_CONFIG`.
pub const DEV_SET_CONFIG: u32 = ioc(WRITE, 0x12, size_of::<ConfigData>());
/// `VDUSE_DEV_INJECT_CONFIG_IRQ`.
pub const DEV_INJECT_CONFIG_IRQ: u32 = ioc(0, 0x13, 0);
/// `VDUSE_VQ_SETUP`.
pub const VQ_SETUP: u32 = ioc(WRITE, 0x14, size_of::<VqConfig>());
/// `VDUSE_VQ_GET_INFO`.
pub const VQ_GET_INFO: u32 = ioc(READ | WRITE, 0x15, size_of::<VqInfo>());
/// `VDUSE_VQ_SETUP_KICKFD`.
pub const VQ_SETUP_KICKFD: u32 = ioc(WRITE, 0x16, size_of::<VqEventfd>());
/// `VDUSE_VQ_INJECT_IRQ`.
pub const VQ_INJECT_IRQ: u32 = ioc(WRITE, 0x17, 4);
/// `VDUSE_IOTLB_GET_INFO`.
pub const IOTLB_GET_INFO: u32 = ioc(READ | WRITE, 0x1a, size_of::<IovaInfo>());

/// `VDUSE_ACCESS_RW`.
pub const ACCESS_RW: u8 = 3;
/// `VDUSE_EVENTFD_DEASSIGN`.
pub const EVENTFD_DEASSIGN: i32 = -1;

/// `VDUSE_GET_VQ_STATE`.
pub const REQ_GET_VQ_STATE: u32 = 0;
/// `VDUSE_SET_STATUS`.
pub const REQ_SET_STATUS: u32 = 1;
/// `VDUSE_UPDATE_IOTLB`.
pub const REQ_UPDATE_IOTLB: u32 = 2;
/// `VDUSE_REQ_RESULT_OK`.
pub const RESULT_OK: u32 = 0;
/// `VDUSE_REQ_RESULT_FAILED`.
pub const RESULT_FAILED: u32 = 1;

/// `struct vduse_dev_config`; the device's configuration follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DevConfig {
    /// Name, ended by a NUL.
    pub name: [u8; NAME_MAX],
    /// Virtio vendor.
    pub vendor_id: u32,
    /// Virtio device type.
    pub device_id: u32,
    /// Features that the server offers.
    pub features: u64,
    /// Virtqueues.
    pub vq_num: u32,
    /// Alignment of rings.
    pub vq_align: u32,
    /// Zero.
    pub reserved: [u32; 13],
    /// Bytes of the configuration.
    pub config_size: u32,
}

/// `struct vduse_iotlb_entry`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IotlbEntry {
    /// Where the range starts in the file.
    pub offset: u64,
    /// First address.
    pub start: u64,
    /// Last address.
    pub last: u64,
    /// `VDUSE_ACCESS_*`.
    pub perm: u8,
    /// Padding.
    pub pad: [u8; 7],
}

/// `struct vduse_config_data`; the bytes follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConfigData {
    /// Where in the configuration.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
}

/// `struct vduse_vq_config`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VqConfig {
    /// Which queue.
    pub index: u32,
    /// The most entries.
    pub max_size: u16,
    /// Zero.
    pub reserved: [u16; 13],
}

/// `struct vduse_vq_info`, for split rings.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VqInfo {
    /// Which queue.
    pub index: u32,
    /// Entries.
    pub num: u32,
    /// Address of the descriptors.
    pub desc_addr: u64,
    /// Address of the available ring.
    pub driver_addr: u64,
    /// Address of the used ring.
    pub device_addr: u64,
    /// Where the server starts in the available ring.
    pub avail_index: u16,
    /// Of packed rings.
    pub packed: [u16; 3],
    /// Whether the queue is in use.
    pub ready: u8,
    /// Padding.
    pub pad: [u8; 7],
}

/// `struct vduse_vq_eventfd`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VqEventfd {
    /// Which queue.
    pub index: u32,
    /// An eventfd, or [`EVENTFD_DEASSIGN`].
    pub fd: i32,
}

/// `struct vduse_iova_info`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IovaInfo {
    /// First address.
    pub start: u64,
    /// Last address.
    pub last: u64,
    /// What can be done with the range.
    pub capability: u64,
    /// Zero.
    pub reserved: [u64; 3],
}

/// `struct vduse_dev_request`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DevRequest {
    /// `VDUSE_*`.
    pub kind: u32,
    /// Comes back with the answer.
    pub request_id: u32,
    /// Zero.
    pub reserved: [u32; 4],
    /// By kind: the status in the first byte; first and last address; queue.
    pub body: [u32; 32],
}

/// `struct vduse_dev_response`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DevResponse {
    /// Of the request.
    pub request_id: u32,
    /// `VDUSE_REQ_RESULT_*`.
    pub result: u32,
    /// Zero.
    pub reserved: [u32; 4],
    /// By kind.
    pub body: [u32; 32],
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layouts() {
        assert_eq!(size_of::<DevConfig>(), 336);
        assert_eq!(offset_of!(DevConfig, config_size), 332);
        assert_eq!(size_of::<IotlbEntry>(), 32);
        assert_eq!(size_of::<VqConfig>(), 32);
        assert_eq!(size_of::<VqInfo>(), 48);
        assert_eq!(offset_of!(VqInfo, ready), 40);
        assert_eq!(size_of::<DevRequest>(), 152);
        assert_eq!(size_of::<DevResponse>(), 152);
        assert_eq!(CREATE_DEV, 0x4150_8102);
        assert_eq!(VQ_GET_INFO, 0xc030_8115);
    }
}
