//! Feature bits that concern queues and transports.

use bitflags::bitflags;

bitflags! {
    /// The 64 feature bits; bits 0 to 23 (and 50 to 63) belong to the device type and have no name here.
    ///
    /// Reference: VIRTIO 1.2, 2.2 and 6.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Features: u64 {
        /// `VIRTIO_F_INDIRECT_DESC`
        const INDIRECT_DESC = 1 << 28;
        /// `VIRTIO_F_EVENT_IDX`: either side says after which entry it wants to hear.
        const EVENT_IDX = 1 << 29;
        /// `VIRTIO_F_VERSION_1`: the modern interface.
        const VERSION_1 = 1 << 32;
        /// `VIRTIO_F_ACCESS_PLATFORM`: the device's addresses go through the platform's translation (an IOMMU).
        const ACCESS_PLATFORM = 1 << 33;
        /// `VIRTIO_F_RING_PACKED`
        const RING_PACKED = 1 << 34;
        /// `VIRTIO_F_ORDER_PLATFORM`
        const ORDER_PLATFORM = 1 << 36;
        // Device types define the rest.
        const _ = !0;
    }
}

impl Features {
    /// Feature `bit` of the device's type.
    pub const fn device(bit: u32) -> Features {
        Features::from_bits_retain(1 << bit)
    }
}
