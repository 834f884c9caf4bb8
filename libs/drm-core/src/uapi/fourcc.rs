//! `include/uapi/drm/drm_fourcc.h`: pixel formats and what `drm_format_info` knows of them.

/// A pixel format's four characters, as `fourcc_code` packs them.
pub const fn fourcc(code: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*code)
}

pub const DRM_FORMAT_C8: u32 = fourcc(b"C8  ");
pub const DRM_FORMAT_RGB565: u32 = fourcc(b"RG16");
pub const DRM_FORMAT_RGB888: u32 = fourcc(b"RG24");
pub const DRM_FORMAT_XRGB1555: u32 = fourcc(b"XR15");
pub const DRM_FORMAT_XRGB8888: u32 = fourcc(b"XR24");
pub const DRM_FORMAT_XBGR8888: u32 = fourcc(b"XB24");
pub const DRM_FORMAT_BGRX8888: u32 = fourcc(b"BX24");
pub const DRM_FORMAT_RGBX8888: u32 = fourcc(b"RX24");
pub const DRM_FORMAT_ARGB8888: u32 = fourcc(b"AR24");
pub const DRM_FORMAT_ABGR8888: u32 = fourcc(b"AB24");
pub const DRM_FORMAT_BGRA8888: u32 = fourcc(b"BA24");
pub const DRM_FORMAT_RGBA8888: u32 = fourcc(b"RA24");
pub const DRM_FORMAT_XRGB2101010: u32 = fourcc(b"XR30");
pub const DRM_FORMAT_ARGB2101010: u32 = fourcc(b"AR30");

pub const DRM_FORMAT_MOD_LINEAR: u64 = 0;
pub const DRM_FORMAT_MOD_INVALID: u64 = 0x00ff_ffff_ffff_ffff;
/// The bit that user space sets in a format for the other byte order.
pub const DRM_FORMAT_BIG_ENDIAN: u32 = 1 << 31;

/// What the core has to know of a pixel format (`struct drm_format_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatInfo {
    /// The format's code.
    pub format: u32,
    /// Colour depth for the legacy interface, or 0.
    pub depth: u8,
    /// Bytes a pixel, per plane; 0 past the last.
    pub cpp: [u8; 4],
    /// Horizontal subsampling of the planes past the first.
    pub hsub: u8,
    /// Vertical subsampling of the planes past the first.
    pub vsub: u8,
}

impl FormatInfo {
    /// How many memory planes the format has.
    pub fn planes(&self) -> usize {
        self.cpp.iter().filter(|&&cpp| cpp != 0).count()
    }

    /// The width of a plane of a framebuffer `width` wide.
    pub fn plane_width(&self, width: u32, plane: usize) -> u32 {
        if plane == 0 { width } else { width.div_ceil(u32::from(self.hsub)) }
    }

    /// The height of a plane of a framebuffer `height` high.
    pub fn plane_height(&self, height: u32, plane: usize) -> u32 {
        if plane == 0 { height } else { height.div_ceil(u32::from(self.vsub)) }
    }
}

const fn packed(code: &[u8; 4], depth: u8, cpp: u8) -> FormatInfo {
    FormatInfo { format: fourcc(code), depth, cpp: [cpp, 0, 0, 0], hsub: 1, vsub: 1 }
}

const fn planar(code: &[u8; 4], cpp: [u8; 4], hsub: u8, vsub: u8) -> FormatInfo {
    FormatInfo { format: fourcc(code), depth: 0, cpp, hsub, vsub }
}

static FORMATS: &[FormatInfo] = &[
    packed(b"C8  ", 8, 1),
    packed(b"R8  ", 8, 1),
    packed(b"R16 ", 0, 2),
    packed(b"RGB8", 8, 1),
    packed(b"BGR8", 8, 1),
    packed(b"XR12", 0, 2),
    packed(b"XB12", 0, 2),
    packed(b"RX12", 0, 2),
    packed(b"BX12", 0, 2),
    packed(b"AR12", 0, 2),
    packed(b"AB12", 0, 2),
    packed(b"RA12", 0, 2),
    packed(b"BA12", 0, 2),
    packed(b"XR15", 15, 2),
    packed(b"XB15", 15, 2),
    packed(b"RX15", 15, 2),
    packed(b"BX15", 15, 2),
    packed(b"AR15", 15, 2),
    packed(b"AB15", 15, 2),
    packed(b"RA15", 15, 2),
    packed(b"BA15", 15, 2),
    packed(b"RG16", 16, 2),
    packed(b"BG16", 16, 2),
    packed(b"RG24", 24, 3),
    packed(b"BG24", 24, 3),
    packed(b"XR24", 24, 4),
    packed(b"XB24", 24, 4),
    packed(b"RX24", 24, 4),
    packed(b"BX24", 24, 4),
    packed(b"AR24", 32, 4),
    packed(b"AB24", 32, 4),
    packed(b"RA24", 32, 4),
    packed(b"BA24", 32, 4),
    packed(b"XR30", 30, 4),
    packed(b"XB30", 30, 4),
    packed(b"RX30", 30, 4),
    packed(b"BX30", 30, 4),
    packed(b"AR30", 30, 4),
    packed(b"AB30", 30, 4),
    packed(b"RA30", 30, 4),
    packed(b"BA30", 30, 4),
    packed(b"XR4H", 0, 8),
    packed(b"XB4H", 0, 8),
    packed(b"AR4H", 0, 8),
    packed(b"AB4H", 0, 8),
    packed(b"YUYV", 0, 2),
    packed(b"YVYU", 0, 2),
    packed(b"UYVY", 0, 2),
    packed(b"VYUY", 0, 2),
    packed(b"AYUV", 0, 4),
    planar(b"NV12", [1, 2, 0, 0], 2, 2),
    planar(b"NV21", [1, 2, 0, 0], 2, 2),
    planar(b"NV16", [1, 2, 0, 0], 2, 1),
    planar(b"NV61", [1, 2, 0, 0], 2, 1),
    planar(b"NV24", [1, 2, 0, 0], 1, 1),
    planar(b"NV42", [1, 2, 0, 0], 1, 1),
    planar(b"YU12", [1, 1, 1, 0], 2, 2),
    planar(b"YV12", [1, 1, 1, 0], 2, 2),
    planar(b"YU16", [1, 1, 1, 0], 2, 1),
    planar(b"YV16", [1, 1, 1, 0], 2, 1),
    planar(b"YU24", [1, 1, 1, 0], 1, 1),
    planar(b"YV24", [1, 1, 1, 0], 1, 1),
];

/// Looks a format up. `None`: not a format that the core knows.
pub fn format_info(format: u32) -> Option<&'static FormatInfo> {
    FORMATS.iter().find(|info| info.format == format)
}

/// The format that bits per pixel and depth mean in the legacy interface (`drm_mode_legacy_fb_format`).
pub fn legacy_format(bpp: u32, depth: u32) -> Option<u32> {
    Some(match (bpp, depth) {
        (8, 8) => DRM_FORMAT_C8,
        (16, 15) => DRM_FORMAT_XRGB1555,
        (16, 16) => DRM_FORMAT_RGB565,
        (24, 24) => DRM_FORMAT_RGB888,
        (32, 24) => DRM_FORMAT_XRGB8888,
        (32, 30) => DRM_FORMAT_XRGB2101010,
        (32, 32) => DRM_FORMAT_ARGB8888,
        _ => return None,
    })
}
