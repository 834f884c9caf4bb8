//! `include/uapi/drm/drm_mode.h`.

use super::uapi;

pub const DRM_DISPLAY_MODE_LEN: usize = 32;
pub const DRM_PROP_NAME_LEN: usize = 32;

uapi! {
    /// `struct drm_mode_modeinfo`, which is also what this crate computes with.
    #[derive(PartialEq, Eq)]
    struct Mode {
        /// Pixel clock in kHz.
        clock: u32,
        hdisplay: u16, hsync_start: u16, hsync_end: u16, htotal: u16, hskew: u16,
        vdisplay: u16, vsync_start: u16, vsync_end: u16, vtotal: u16, vscan: u16,
        vrefresh: u32, flags: u32, kind: u32, name: [u8; DRM_DISPLAY_MODE_LEN],
    }
    struct CardRes {
        fb_id_ptr: u64, crtc_id_ptr: u64, connector_id_ptr: u64, encoder_id_ptr: u64,
        count_fbs: u32, count_crtcs: u32, count_connectors: u32, count_encoders: u32,
        min_width: u32, max_width: u32, min_height: u32, max_height: u32,
    }
    struct ModeCrtc {
        set_connectors_ptr: u64, count_connectors: u32, crtc_id: u32, fb_id: u32, x: u32, y: u32,
        gamma_size: u32, mode_valid: u32, mode: Mode,
    }
    struct SetPlane {
        plane_id: u32, crtc_id: u32, fb_id: u32, flags: u32,
        crtc_x: i32, crtc_y: i32, crtc_w: u32, crtc_h: u32,
        src_x: u32, src_y: u32, src_h: u32, src_w: u32,
    }
    struct GetPlane {
        plane_id: u32, crtc_id: u32, fb_id: u32, possible_crtcs: u32, gamma_size: u32, count_format_types: u32,
        format_type_ptr: u64,
    }
    struct GetPlaneRes { plane_id_ptr: u64, count_planes: u32, pad: u32 }
    struct GetEncoder { encoder_id: u32, encoder_type: u32, crtc_id: u32, possible_crtcs: u32, possible_clones: u32 }
    struct GetConnector {
        encoders_ptr: u64, modes_ptr: u64, props_ptr: u64, prop_values_ptr: u64,
        count_modes: u32, count_props: u32, count_encoders: u32, encoder_id: u32, connector_id: u32,
        connector_type: u32, connector_type_id: u32, connection: u32, mm_width: u32, mm_height: u32, subpixel: u32,
        pad: u32,
    }
    struct PropertyEnum { value: u64, name: [u8; DRM_PROP_NAME_LEN] }
    struct GetProperty {
        values_ptr: u64, enum_blob_ptr: u64, prop_id: u32, flags: u32, name: [u8; DRM_PROP_NAME_LEN],
        count_values: u32, count_enum_blobs: u32,
    }
    struct ConnectorSetProperty { value: u64, prop_id: u32, connector_id: u32 }
    struct ObjGetProperties {
        props_ptr: u64, prop_values_ptr: u64, count_props: u32, obj_id: u32, obj_type: u32, pad: u32,
    }
    struct ObjSetProperty { value: u64, prop_id: u32, obj_id: u32, obj_type: u32, pad: u32 }
    struct GetBlob { blob_id: u32, length: u32, data: u64 }
    struct FbCmd { fb_id: u32, width: u32, height: u32, pitch: u32, bpp: u32, depth: u32, handle: u32 }
    struct FbCmd2 {
        fb_id: u32, width: u32, height: u32, pixel_format: u32, flags: u32,
        handles: [u32; 4], pitches: [u32; 4], offsets: [u32; 4], pad: u32, modifier: [u64; 4],
    }
    struct FbDirty { fb_id: u32, flags: u32, color: u32, num_clips: u32, clips_ptr: u64 }
    struct ClipRect { x1: u16, y1: u16, x2: u16, y2: u16 }
    struct ModeModeCmd { connector_id: u32, mode: Mode }
    struct Cursor { flags: u32, crtc_id: u32, x: i32, y: i32, width: u32, height: u32, handle: u32 }
    struct Cursor2 {
        flags: u32, crtc_id: u32, x: i32, y: i32, width: u32, height: u32, handle: u32, hot_x: i32, hot_y: i32,
    }
    struct CrtcLut { crtc_id: u32, gamma_size: u32, red: u64, green: u64, blue: u64 }
    /// `struct drm_color_lut`: one entry of a `GAMMA_LUT` blob.
    struct ColorLut { red: u16, green: u16, blue: u16, reserved: u16 }
    struct CrtcPageFlip { crtc_id: u32, fb_id: u32, flags: u32, reserved_or_sequence: u32, user_data: u64 }
    struct CreateDumb { height: u32, width: u32, bpp: u32, flags: u32, handle: u32, pitch: u32, size: u64 }
    struct MapDumb { handle: u32, pad: u32, offset: u64 }
    struct DestroyDumb { handle: u32 }
    struct Atomic {
        flags: u32, count_objs: u32, objs_ptr: u64, count_props_ptr: u64, props_ptr: u64, prop_values_ptr: u64,
        reserved: u64, user_data: u64,
    }
    struct FormatModifierBlob {
        version: u32, flags: u32, count_formats: u32, formats_offset: u32, count_modifiers: u32, modifiers_offset: u32,
    }
    struct FormatModifier { formats: u64, offset: u32, pad: u32, modifier: u64 }
    struct CreateBlob { data: u64, length: u32, blob_id: u32 }
    struct DestroyBlob { blob_id: u32 }
    struct CreateLease { object_ids: u64, object_count: u32, flags: u32, lessee_id: u32, fd: u32 }
    struct ListLessees { count_lessees: u32, pad: u32, lessees_ptr: u64 }
    struct GetLease { count_objects: u32, pad: u32, objects_ptr: u64 }
    struct RevokeLease { lessee_id: u32 }
    #[derive(PartialEq, Eq)]
    struct ModeRect { x1: i32, y1: i32, x2: i32, y2: i32 }
    struct CloseFb { fb_id: u32, pad: u32 }
}

pub const DRM_MODE_TYPE_PREFERRED: u32 = 1 << 3;
pub const DRM_MODE_TYPE_USERDEF: u32 = 1 << 5;
pub const DRM_MODE_TYPE_DRIVER: u32 = 1 << 6;
pub const DRM_MODE_TYPE_ALL: u32 = DRM_MODE_TYPE_PREFERRED | DRM_MODE_TYPE_USERDEF | DRM_MODE_TYPE_DRIVER;

pub const DRM_MODE_FLAG_PHSYNC: u32 = 1 << 0;
pub const DRM_MODE_FLAG_NHSYNC: u32 = 1 << 1;
pub const DRM_MODE_FLAG_PVSYNC: u32 = 1 << 2;
pub const DRM_MODE_FLAG_NVSYNC: u32 = 1 << 3;
pub const DRM_MODE_FLAG_INTERLACE: u32 = 1 << 4;
pub const DRM_MODE_FLAG_DBLSCAN: u32 = 1 << 5;
pub const DRM_MODE_FLAG_CSYNC: u32 = 1 << 6;
pub const DRM_MODE_FLAG_DBLCLK: u32 = 1 << 12;
pub const DRM_MODE_FLAG_CLKDIV2: u32 = 1 << 13;
pub const DRM_MODE_FLAG_3D_MASK: u32 = 0x1f << 14;
pub const DRM_MODE_FLAG_PIC_AR_MASK: u32 = 0xf << 19;
pub const DRM_MODE_FLAG_PIC_AR_4_3: u32 = 1 << 19;
pub const DRM_MODE_FLAG_PIC_AR_16_9: u32 = 2 << 19;
pub const DRM_MODE_FLAG_PIC_AR_64_27: u32 = 3 << 19;
pub const DRM_MODE_FLAG_PIC_AR_256_135: u32 = 4 << 19;
/// Flags that user space may set in a mode (`DRM_MODE_FLAG_ALL` and the aspect ratio bits).
pub const DRM_MODE_FLAG_ALL: u32 = 0x3ff | DRM_MODE_FLAG_DBLCLK | DRM_MODE_FLAG_CLKDIV2 | DRM_MODE_FLAG_3D_MASK;

pub const DRM_MODE_CONNECTED: u32 = 1;
pub const DRM_MODE_DISCONNECTED: u32 = 2;
pub const DRM_MODE_UNKNOWNCONNECTION: u32 = 3;

pub const DRM_MODE_ENCODER_NONE: u32 = 0;
pub const DRM_MODE_ENCODER_DAC: u32 = 1;
pub const DRM_MODE_ENCODER_VIRTUAL: u32 = 5;

pub const DRM_MODE_PROP_RANGE: u32 = 1 << 1;
pub const DRM_MODE_PROP_IMMUTABLE: u32 = 1 << 2;
pub const DRM_MODE_PROP_ENUM: u32 = 1 << 3;
pub const DRM_MODE_PROP_BLOB: u32 = 1 << 4;
pub const DRM_MODE_PROP_BITMASK: u32 = 1 << 5;
pub const DRM_MODE_PROP_OBJECT: u32 = 1 << 6;
pub const DRM_MODE_PROP_SIGNED_RANGE: u32 = 2 << 6;
pub const DRM_MODE_PROP_ATOMIC: u32 = 0x8000_0000;

pub const DRM_MODE_OBJECT_CRTC: u32 = 0xcccc_cccc;
pub const DRM_MODE_OBJECT_CONNECTOR: u32 = 0xc0c0_c0c0;
pub const DRM_MODE_OBJECT_ENCODER: u32 = 0xe0e0_e0e0;
pub const DRM_MODE_OBJECT_MODE: u32 = 0xdede_dede;
pub const DRM_MODE_OBJECT_PROPERTY: u32 = 0xb0b0_b0b0;
pub const DRM_MODE_OBJECT_FB: u32 = 0xfbfb_fbfb;
pub const DRM_MODE_OBJECT_BLOB: u32 = 0xbbbb_bbbb;
pub const DRM_MODE_OBJECT_PLANE: u32 = 0xeeee_eeee;
pub const DRM_MODE_OBJECT_ANY: u32 = 0;

pub const DRM_MODE_FB_INTERLACED: u32 = 1;
pub const DRM_MODE_FB_MODIFIERS: u32 = 2;
pub const DRM_MODE_FB_DIRTY_ANNOTATE_COPY: u32 = 1;
pub const DRM_MODE_FB_DIRTY_ANNOTATE_FILL: u32 = 2;
pub const DRM_MODE_FB_DIRTY_FLAGS: u32 = 3;
pub const DRM_MODE_FB_DIRTY_MAX_CLIPS: u32 = 256;

pub const DRM_MODE_CURSOR_BO: u32 = 1;
pub const DRM_MODE_CURSOR_MOVE: u32 = 2;
pub const DRM_MODE_CURSOR_FLAGS: u32 = 3;

pub const DRM_MODE_PAGE_FLIP_EVENT: u32 = 0x01;
pub const DRM_MODE_PAGE_FLIP_ASYNC: u32 = 0x02;
pub const DRM_MODE_PAGE_FLIP_TARGET_ABSOLUTE: u32 = 0x4;
pub const DRM_MODE_PAGE_FLIP_TARGET_RELATIVE: u32 = 0x8;
pub const DRM_MODE_PAGE_FLIP_TARGET: u32 = 0xc;
pub const DRM_MODE_PAGE_FLIP_FLAGS: u32 = 0xf;

pub const DRM_MODE_ATOMIC_TEST_ONLY: u32 = 0x0100;
pub const DRM_MODE_ATOMIC_NONBLOCK: u32 = 0x0200;
pub const DRM_MODE_ATOMIC_ALLOW_MODESET: u32 = 0x0400;
pub const DRM_MODE_ATOMIC_FLAGS: u32 = DRM_MODE_PAGE_FLIP_EVENT
    | DRM_MODE_PAGE_FLIP_ASYNC
    | DRM_MODE_ATOMIC_TEST_ONLY
    | DRM_MODE_ATOMIC_NONBLOCK
    | DRM_MODE_ATOMIC_ALLOW_MODESET;

pub const DRM_PLANE_TYPE_OVERLAY: u64 = 0;
pub const DRM_PLANE_TYPE_PRIMARY: u64 = 1;
pub const DRM_PLANE_TYPE_CURSOR: u64 = 2;

pub const DRM_MODE_DPMS_ON: u64 = 0;
pub const DRM_MODE_DPMS_STANDBY: u64 = 1;
pub const DRM_MODE_DPMS_SUSPEND: u64 = 2;
pub const DRM_MODE_DPMS_OFF: u64 = 3;

pub const DRM_MODE_LINK_STATUS_GOOD: u64 = 0;
pub const DRM_MODE_LINK_STATUS_BAD: u64 = 1;

pub const FORMAT_BLOB_CURRENT: u32 = 1;
