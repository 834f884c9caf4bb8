//! Structures that driver and device exchange.
//!
//! Names and layouts are those of VIRTIO 1.2, 5.7 (GPU device); all fields are little-endian. Each structure has its size
//! tested below.

use virtio::Features;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Virtio device type of a GPU.
pub const DEVICE_TYPE: u16 = 16;
/// Number of the queue for commands.
pub const CONTROL_QUEUE: u16 = 0;
/// Number of the queue for cursor commands.
pub const CURSOR_QUEUE: u16 = 1;
/// `VIRTIO_GPU_MAX_SCANOUTS`
pub const MAX_SCANOUTS: usize = 16;

/// `VIRTIO_GPU_F_EDID`
pub const F_EDID: Features = Features::device(1);

/// Offsets in the configuration, 5.7.4.
pub mod config {
    /// Events that happened.
    pub const EVENTS_READ: usize = 0;
    /// Written to clear events.
    pub const EVENTS_CLEAR: usize = 4;
    /// How many scanouts there are, 1 to 16.
    pub const NUM_SCANOUTS: usize = 8;
    /// `VIRTIO_GPU_EVENT_DISPLAY`: the displays changed.
    pub const EVENT_DISPLAY: u32 = 1;
}

/// `enum virtio_gpu_ctrl_type`
pub mod kind {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const GET_DISPLAY_INFO: u32 = 0x0100;
    pub const RESOURCE_CREATE_2D: u32 = 0x0101;
    pub const RESOURCE_UNREF: u32 = 0x0102;
    pub const SET_SCANOUT: u32 = 0x0103;
    pub const RESOURCE_FLUSH: u32 = 0x0104;
    pub const TRANSFER_TO_HOST_2D: u32 = 0x0105;
    pub const RESOURCE_ATTACH_BACKING: u32 = 0x0106;
    pub const GET_EDID: u32 = 0x010a;
    pub const UPDATE_CURSOR: u32 = 0x0300;
    pub const MOVE_CURSOR: u32 = 0x0301;
    pub const RESP_OK_NODATA: u32 = 0x1100;
    pub const RESP_OK_DISPLAY_INFO: u32 = 0x1101;
    pub const RESP_OK_EDID: u32 = 0x1104;
}

/// `VIRTIO_GPU_FLAG_FENCE`: the answer comes when the command's effect is there.
pub const FLAG_FENCE: u32 = 1;

/// `VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM`, which is `DRM_FORMAT_XRGB8888`.
pub const FORMAT_B8G8R8X8: u32 = 2;
/// `VIRTIO_GPU_FORMAT_B8G8R8A8_UNORM`, which is `DRM_FORMAT_ARGB8888`.
pub const FORMAT_B8G8R8A8: u32 = 1;

macro_rules! abi {
    ($($(#[$doc:meta])* struct $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        #[expect(missing_docs, reason = "the names are the specification's")]
        pub struct $name { $(pub $field: $type),* }
    )*};
}

abi! {
    /// `struct virtio_gpu_ctrl_hdr`
    struct Header { kind: u32, flags: u32, fence_id: u64, ctx_id: u32, ring_idx: u8, padding: [u8; 3] }
    /// `struct virtio_gpu_rect`
    struct Rect { x: u32, y: u32, width: u32, height: u32 }
    /// `struct virtio_gpu_display_one`
    struct Display { r: Rect, enabled: u32, flags: u32 }
    /// `struct virtio_gpu_resource_create_2d`
    struct ResourceCreate2d { header: Header, resource_id: u32, format: u32, width: u32, height: u32 }
    /// `struct virtio_gpu_resource_unref`
    struct ResourceUnref { header: Header, resource_id: u32, padding: u32 }
    /// `struct virtio_gpu_set_scanout`
    struct SetScanout { header: Header, r: Rect, scanout_id: u32, resource_id: u32 }
    /// `struct virtio_gpu_resource_flush`
    struct ResourceFlush { header: Header, r: Rect, resource_id: u32, padding: u32 }
    /// `struct virtio_gpu_transfer_to_host_2d`
    struct TransferToHost2d { header: Header, r: Rect, offset: u64, resource_id: u32, padding: u32 }
    /// `struct virtio_gpu_resource_attach_backing`; entries follow.
    struct AttachBacking { header: Header, resource_id: u32, nr_entries: u32 }
    /// `struct virtio_gpu_mem_entry`
    struct MemEntry { address: u64, length: u32, padding: u32 }
    /// `struct virtio_gpu_get_edid`
    struct GetEdid { header: Header, scanout: u32, padding: u32 }
    /// `struct virtio_gpu_update_cursor`, for moves as well.
    struct UpdateCursor {
        header: Header, scanout_id: u32, x: u32, y: u32, padding: u32, resource_id: u32, hot_x: u32, hot_y: u32,
        padding2: u32,
    }
    /// `struct virtio_gpu_resp_display_info`
    struct DisplayInfo { header: Header, displays: [Display; MAX_SCANOUTS] }
}

/// The length of `struct virtio_gpu_resp_edid`: header, size, padding, 1024 bytes.
pub const EDID_LEN: usize = 24 + 8 + 1024;

impl Header {
    /// The header of a command without a fence.
    pub fn new(kind: u32) -> Self {
        Header { kind, ..Default::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_specification() {
        assert_eq!(size_of::<Header>(), 24);
        assert_eq!(size_of::<DisplayInfo>(), 24 + 16 * 24);
        assert_eq!(size_of::<ResourceCreate2d>(), 40);
        assert_eq!(size_of::<SetScanout>(), 48);
        assert_eq!(size_of::<ResourceFlush>(), 48);
        assert_eq!(size_of::<TransferToHost2d>(), 56);
        assert_eq!(size_of::<AttachBacking>(), 32);
        assert_eq!(size_of::<MemEntry>(), 16);
        assert_eq!(size_of::<UpdateCursor>(), 56);
        assert_eq!(std::mem::offset_of!(TransferToHost2d, offset), 40);
        assert_eq!(std::mem::offset_of!(UpdateCursor, resource_id), 40);
    }
}
