//! `include/uapi/drm/drm.h`.

use super::uapi;

pub const DRM_IOCTL_BASE: u8 = b'd';
pub const DRM_COMMAND_BASE: u32 = 0x40;
pub const DRM_COMMAND_END: u32 = 0xa0;

uapi! {
    struct Version {
        version_major: i32, version_minor: i32, version_patchlevel: i32, pad: u32,
        name_len: u64, name: u64, date_len: u64, date: u64, desc_len: u64, desc: u64,
    }
    struct Unique { unique_len: u64, unique: u64 }
    struct Auth { magic: u32 }
    struct SetVersion { drm_di_major: i32, drm_di_minor: i32, drm_dd_major: i32, drm_dd_minor: i32 }
    struct GetCap { capability: u64, value: u64 }
    struct SetClientCap { capability: u64, value: u64 }
    struct Client { idx: i32, auth: i32, pid: u64, uid: u64, magic: u64, iocs: u64 }
    struct GemClose { handle: u32, pad: u32 }
    struct GemFlink { handle: u32, name: u32 }
    struct GemOpen { name: u32, handle: u32, size: u64 }
    struct PrimeHandle { handle: u32, flags: u32, fd: i32 }
    /// `union drm_wait_vblank`: request and reply share their first three fields' places.
    struct WaitVblank { kind: u32, sequence: u32, signal_or_sec: u64, usec: u64 }
    struct CrtcGetSequence { crtc_id: u32, active: u32, sequence: u64, sequence_ns: i64 }
    struct CrtcQueueSequence { crtc_id: u32, flags: u32, sequence: u64, user_data: u64 }

    struct SyncobjCreate { handle: u32, flags: u32 }
    struct SyncobjDestroy { handle: u32, pad: u32 }
    /// Without `point`, which later kernels append.
    struct SyncobjHandle { handle: u32, flags: u32, fd: i32, pad: u32 }
    struct SyncobjTransfer {
        src_handle: u32, dst_handle: u32, src_point: u64, dst_point: u64, flags: u32, pad: u32,
    }
    struct SyncobjWait {
        handles: u64, timeout_nsec: i64, count_handles: u32, flags: u32, first_signaled: u32, pad: u32,
        deadline_nsec: u64,
    }
    struct SyncobjTimelineWait {
        handles: u64, points: u64, timeout_nsec: i64, count_handles: u32, flags: u32, first_signaled: u32, pad: u32,
        deadline_nsec: u64,
    }
    struct SyncobjEventfd { handle: u32, flags: u32, point: u64, fd: i32, pad: u32 }
    struct SyncobjArray { handles: u64, count_handles: u32, pad: u32 }
    struct SyncobjTimelineArray { handles: u64, points: u64, count_handles: u32, flags: u32 }

    struct EventHeader { kind: u32, length: u32 }
    struct EventVblank {
        kind: u32, length: u32, user_data: u64, tv_sec: u32, tv_usec: u32, sequence: u32, crtc_id: u32,
    }
    struct EventCrtcSequence { kind: u32, length: u32, user_data: u64, time_ns: i64, sequence: u64 }
}

impl EventVblank {
    /// The event `kind` of a frame that began at `time` (monotonic nanoseconds), on the CRTC `crtc_id`.
    pub(crate) fn new(kind: u32, user_data: u64, time: u64, sequence: u64, crtc_id: u32) -> EventVblank {
        EventVblank {
            kind,
            length: size_of::<EventVblank>() as u32,
            user_data,
            tv_sec: (time / 1_000_000_000) as u32,
            tv_usec: (time % 1_000_000_000 / 1000) as u32,
            sequence: sequence as u32,
            crtc_id,
        }
    }
}

pub const DRM_CAP_DUMB_BUFFER: u64 = 0x1;
pub const DRM_CAP_VBLANK_HIGH_CRTC: u64 = 0x2;
pub const DRM_CAP_DUMB_PREFERRED_DEPTH: u64 = 0x3;
pub const DRM_CAP_DUMB_PREFER_SHADOW: u64 = 0x4;
pub const DRM_CAP_PRIME: u64 = 0x5;
pub const DRM_PRIME_CAP_IMPORT: u64 = 0x1;
pub const DRM_PRIME_CAP_EXPORT: u64 = 0x2;
pub const DRM_CAP_TIMESTAMP_MONOTONIC: u64 = 0x6;
pub const DRM_CAP_ASYNC_PAGE_FLIP: u64 = 0x7;
pub const DRM_CAP_CURSOR_WIDTH: u64 = 0x8;
pub const DRM_CAP_CURSOR_HEIGHT: u64 = 0x9;
pub const DRM_CAP_ADDFB2_MODIFIERS: u64 = 0x10;
pub const DRM_CAP_PAGE_FLIP_TARGET: u64 = 0x11;
pub const DRM_CAP_CRTC_IN_VBLANK_EVENT: u64 = 0x12;
pub const DRM_CAP_SYNCOBJ: u64 = 0x13;
pub const DRM_CAP_SYNCOBJ_TIMELINE: u64 = 0x14;
pub const DRM_CAP_ATOMIC_ASYNC_PAGE_FLIP: u64 = 0x15;

pub const DRM_CLIENT_CAP_STEREO_3D: u64 = 1;
pub const DRM_CLIENT_CAP_UNIVERSAL_PLANES: u64 = 2;
pub const DRM_CLIENT_CAP_ATOMIC: u64 = 3;
pub const DRM_CLIENT_CAP_ASPECT_RATIO: u64 = 4;
pub const DRM_CLIENT_CAP_WRITEBACK_CONNECTORS: u64 = 5;
pub const DRM_CLIENT_CAP_CURSOR_PLANE_HOTSPOT: u64 = 6;

pub const DRM_CLOEXEC: u32 = 0o2000000;
pub const DRM_RDWR: u32 = 0o2;

pub const DRM_VBLANK_TYPES_MASK: u32 = 0x1;
pub const DRM_VBLANK_RELATIVE: u32 = 0x1;
pub const DRM_VBLANK_HIGH_CRTC_MASK: u32 = 0x3e;
pub const DRM_VBLANK_HIGH_CRTC_SHIFT: u32 = 1;
pub const DRM_VBLANK_EVENT: u32 = 0x0400_0000;
pub const DRM_VBLANK_FLIP: u32 = 0x0800_0000;
pub const DRM_VBLANK_NEXTONMISS: u32 = 0x1000_0000;
pub const DRM_VBLANK_SECONDARY: u32 = 0x2000_0000;
pub const DRM_VBLANK_SIGNAL: u32 = 0x4000_0000;

pub const DRM_CRTC_SEQUENCE_RELATIVE: u32 = 1;
pub const DRM_CRTC_SEQUENCE_NEXT_ON_MISS: u32 = 2;

pub const DRM_EVENT_VBLANK: u32 = 1;
pub const DRM_EVENT_FLIP_COMPLETE: u32 = 2;
pub const DRM_EVENT_CRTC_SEQUENCE: u32 = 3;

pub const DRM_SYNCOBJ_CREATE_SIGNALED: u32 = 1;
pub const DRM_SYNCOBJ_FD_TO_HANDLE_FLAGS_IMPORT_SYNC_FILE: u32 = 1;
pub const DRM_SYNCOBJ_HANDLE_TO_FD_FLAGS_EXPORT_SYNC_FILE: u32 = 1;
pub const DRM_SYNCOBJ_WAIT_FLAGS_WAIT_ALL: u32 = 1;
pub const DRM_SYNCOBJ_WAIT_FLAGS_WAIT_FOR_SUBMIT: u32 = 2;
pub const DRM_SYNCOBJ_WAIT_FLAGS_WAIT_AVAILABLE: u32 = 4;
pub const DRM_SYNCOBJ_WAIT_FLAGS_WAIT_DEADLINE: u32 = 8;
pub const DRM_SYNCOBJ_QUERY_FLAGS_LAST_SUBMITTED: u32 = 1;
