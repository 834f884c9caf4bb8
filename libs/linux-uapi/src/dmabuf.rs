//! dma-buf, sync_file, udmabuf and software timelines: `linux/dma-buf.h`, `linux/sync_file.h`, `linux/udmabuf.h`,
//! `drivers/dma-buf/sw_sync.c` (whose interface has no header of its own).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `DMA_BUF_IOCTL_SYNC`
pub const DMA_BUF_IOCTL_SYNC: u32 = 0x4008_6200;
/// `DMA_BUF_SET_NAME_A` (a 32-bit pointer in its number)
pub const DMA_BUF_SET_NAME_A: u32 = 0x4004_6201;
/// `DMA_BUF_SET_NAME_B`, which is also `DMA_BUF_SET_NAME`
pub const DMA_BUF_SET_NAME_B: u32 = 0x4008_6201;
/// `DMA_BUF_IOCTL_EXPORT_SYNC_FILE`
pub const DMA_BUF_IOCTL_EXPORT_SYNC_FILE: u32 = 0xc008_6202;
/// `DMA_BUF_IOCTL_IMPORT_SYNC_FILE`
pub const DMA_BUF_IOCTL_IMPORT_SYNC_FILE: u32 = 0x4008_6203;
/// `DMA_BUF_SYNC_READ`
pub const DMA_BUF_SYNC_READ: u64 = 1;
/// `DMA_BUF_SYNC_WRITE`
pub const DMA_BUF_SYNC_WRITE: u64 = 2;
/// `DMA_BUF_SYNC_RW`
pub const DMA_BUF_SYNC_RW: u64 = DMA_BUF_SYNC_READ | DMA_BUF_SYNC_WRITE;
/// `DMA_BUF_SYNC_END`
pub const DMA_BUF_SYNC_END: u64 = 4;
/// `DMA_BUF_NAME_LEN`: the longest name with its NUL.
pub const DMA_BUF_NAME_LEN: usize = 32;

/// `SYNC_IOC_MERGE`
pub const SYNC_IOC_MERGE: u32 = 0xc030_3e03;
/// `SYNC_IOC_FILE_INFO`
pub const SYNC_IOC_FILE_INFO: u32 = 0xc038_3e04;
/// `SYNC_IOC_SET_DEADLINE`
pub const SYNC_IOC_SET_DEADLINE: u32 = 0x4010_3e05;

/// `SW_SYNC_IOC_CREATE_FENCE`
pub const SW_SYNC_IOC_CREATE_FENCE: u32 = 0xc028_5700;
/// `SW_SYNC_IOC_INC`
pub const SW_SYNC_IOC_INC: u32 = 0x4004_5701;
/// `SW_SYNC_GET_DEADLINE`
pub const SW_SYNC_GET_DEADLINE: u32 = 0xc010_5702;

/// `UDMABUF_CREATE`
pub const UDMABUF_CREATE: u32 = 0x4018_7542;
/// `UDMABUF_CREATE_LIST`
pub const UDMABUF_CREATE_LIST: u32 = 0x4008_7543;
/// `UDMABUF_FLAGS_CLOEXEC`
pub const UDMABUF_FLAGS_CLOEXEC: u32 = 1;

/// `struct dma_buf_export_sync_file` and `struct dma_buf_import_sync_file`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaBufSyncFile {
    /// `DMA_BUF_SYNC_READ`, `DMA_BUF_SYNC_WRITE`.
    pub flags: u32,
    /// The sync_file.
    pub fd: i32,
}

/// `struct sync_merge_data`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SyncMergeData {
    /// Name of the new sync_file.
    pub name: [u8; 32],
    /// The second sync_file.
    pub fd2: i32,
    /// Out: the new one.
    pub fence: i32,
    /// Must be 0.
    pub flags: u32,
    /// Must be 0.
    pub pad: u32,
}

/// `struct sync_fence_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SyncFenceInfo {
    /// Name of the timeline.
    pub obj_name: [u8; 32],
    /// Name of the driver.
    pub driver_name: [u8; 32],
    /// 0 waits, 1 signalled, below 0 an error.
    pub status: i32,
    /// 0.
    pub flags: u32,
    /// When it was signalled.
    pub timestamp_ns: u64,
}

/// `struct sync_file_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SyncFileInfo {
    /// Name of the sync_file.
    pub name: [u8; 32],
    /// 0 waits, 1 signalled, below 0 an error.
    pub status: i32,
    /// Must be 0.
    pub flags: u32,
    /// In: room in `sync_fence_info`; out: fences.
    pub num_fences: u32,
    /// Must be 0.
    pub pad: u32,
    /// Address of an array of [`SyncFenceInfo`].
    pub sync_fence_info: u64,
}

/// `struct sync_set_deadline`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SyncSetDeadline {
    /// On the monotonic clock.
    pub deadline_ns: u64,
    /// Must be 0.
    pub pad: u64,
}

/// `struct sw_sync_create_fence_data`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SwSyncCreateFence {
    /// The timeline's value that signals the fence.
    pub value: u32,
    /// Not used by Linux either.
    pub name: [u8; 32],
    /// Out: the sync_file.
    pub fence: i32,
}

/// `struct sw_sync_get_deadline`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SwSyncGetDeadline {
    /// Out: the earliest deadline that was set.
    pub deadline_ns: u64,
    /// Must be 0.
    pub pad: u32,
    /// The sync_file.
    pub fence_fd: i32,
}

/// `struct udmabuf_create`; `struct udmabuf_create_item` is the same with padding for `flags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UdmabufCreate {
    /// The memfd.
    pub memfd: u32,
    /// `UDMABUF_FLAGS_CLOEXEC`.
    pub flags: u32,
    /// First byte, on a page.
    pub offset: u64,
    /// Bytes, whole pages.
    pub size: u64,
}

/// `struct udmabuf_create_list` without its items, which follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UdmabufCreateList {
    /// `UDMABUF_FLAGS_CLOEXEC`.
    pub flags: u32,
    /// Items.
    pub count: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    /// The size that an ioctl's number carries.
    fn size_in(cmd: u32) -> usize {
        (cmd >> 16 & 0x3fff) as usize
    }

    #[test]
    fn layouts_are_those_of_linux() {
        assert_eq!(size_of::<DmaBufSyncFile>(), size_in(DMA_BUF_IOCTL_EXPORT_SYNC_FILE));
        assert_eq!(size_of::<SyncMergeData>(), size_in(SYNC_IOC_MERGE));
        assert_eq!(offset_of!(SyncMergeData, fence), 36);
        assert_eq!(size_of::<SyncFileInfo>(), size_in(SYNC_IOC_FILE_INFO));
        assert_eq!(offset_of!(SyncFileInfo, sync_fence_info), 48);
        assert_eq!(size_of::<SyncFenceInfo>(), 80);
        assert_eq!(offset_of!(SyncFenceInfo, timestamp_ns), 72);
        assert_eq!(size_of::<SyncSetDeadline>(), size_in(SYNC_IOC_SET_DEADLINE));
        assert_eq!(size_of::<SwSyncCreateFence>(), size_in(SW_SYNC_IOC_CREATE_FENCE));
        assert_eq!(size_of::<SwSyncGetDeadline>(), size_in(SW_SYNC_GET_DEADLINE));
        assert_eq!(size_of::<UdmabufCreate>(), size_in(UDMABUF_CREATE));
        assert_eq!(size_of::<UdmabufCreateList>(), size_in(UDMABUF_CREATE_LIST));
    }
}
