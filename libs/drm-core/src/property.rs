//! Properties: the named values of mode objects through which everything atomic is set, and which objects have which.
//!
//! Names, flags, ranges and order are Linux's (`drm_mode_create_standard_properties`, `drm_connector_init`,
//! `__drm_crtc_init_with_planes`, `__drm_universal_plane_init`), so that a client sees the same list on the same card.

use crate::driver::{ConnectorKind, ConnectorSpec, Features, PlaneKind, PlaneSpec, Topology};
use crate::uapi::*;

/// Which property it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(crate) enum Key {
    Edid,
    Dpms,
    Tile,
    LinkStatus,
    NonDesktop,
    Type,
    SrcX,
    SrcY,
    SrcW,
    SrcH,
    CrtcX,
    CrtcY,
    CrtcW,
    CrtcH,
    FbId,
    InFenceFd,
    OutFencePtr,
    CrtcId,
    FbDamageClips,
    Active,
    ModeId,
    VrrEnabled,
    GammaLut,
    GammaLutSize,
    InFormats,
    HotspotX,
    HotspotY,
}

/// Which values a property takes.
#[derive(Clone, Debug)]
pub(crate) enum Values {
    Range(u64, u64),
    Signed(i64, i64),
    Enum(&'static [(u64, &'static str)]),
    Object(u32),
    Blob,
}

/// A property.
#[derive(Clone, Debug)]
pub(crate) struct Property {
    pub(crate) key: Key,
    pub(crate) id: u32,
    pub(crate) name: &'static str,
    pub(crate) values: Values,
    pub(crate) immutable: bool,
    /// Only clients with `DRM_CLIENT_CAP_ATOMIC` see it.
    pub(crate) atomic: bool,
}

impl Property {
    /// `drm_mode_get_property.flags`.
    pub(crate) fn flags(&self) -> u32 {
        let kind = match self.values {
            Values::Range(..) => DRM_MODE_PROP_RANGE,
            Values::Signed(..) => DRM_MODE_PROP_SIGNED_RANGE,
            Values::Enum(_) => DRM_MODE_PROP_ENUM,
            Values::Object(_) => DRM_MODE_PROP_OBJECT,
            Values::Blob => DRM_MODE_PROP_BLOB,
        };
        kind | if self.immutable { DRM_MODE_PROP_IMMUTABLE } else { 0 }
            | if self.atomic { DRM_MODE_PROP_ATOMIC } else { 0 }
    }

    /// What `GETPROPERTY` lists as values.
    pub(crate) fn listed(&self) -> Vec<u64> {
        match self.values {
            Values::Range(min, max) => vec![min, max],
            Values::Signed(min, max) => vec![min as u64, max as u64],
            Values::Enum(values) => values.iter().map(|(value, _)| *value).collect(),
            Values::Object(kind) => vec![u64::from(kind)],
            Values::Blob => Vec::new(),
        }
    }
}

const DPMS: &[(u64, &str)] = &[
    (DRM_MODE_DPMS_ON, "On"),
    (DRM_MODE_DPMS_STANDBY, "Standby"),
    (DRM_MODE_DPMS_SUSPEND, "Suspend"),
    (DRM_MODE_DPMS_OFF, "Off"),
];
const LINK_STATUS: &[(u64, &str)] = &[(DRM_MODE_LINK_STATUS_GOOD, "Good"), (DRM_MODE_LINK_STATUS_BAD, "Bad")];
const PLANE_TYPE: &[(u64, &str)] =
    &[(DRM_PLANE_TYPE_OVERLAY, "Overlay"), (DRM_PLANE_TYPE_PRIMARY, "Primary"), (DRM_PLANE_TYPE_CURSOR, "Cursor")];

const UINT: Values = Values::Range(0, u32::MAX as u64);
const INT: Values = Values::Signed(i32::MIN as i64, i32::MAX as i64);
const SIZE: Values = Values::Range(0, i32::MAX as u64);
const BOOL: Values = Values::Range(0, 1);

/// All properties that there are: key, name, values, immutable, atomic.
const ALL: &[(Key, &str, Values, bool, bool)] = &[
    (Key::Edid, "EDID", Values::Blob, true, false),
    (Key::Dpms, "DPMS", Values::Enum(DPMS), false, false),
    (Key::Tile, "TILE", Values::Blob, true, false),
    (Key::LinkStatus, "link-status", Values::Enum(LINK_STATUS), false, false),
    (Key::NonDesktop, "non-desktop", BOOL, true, false),
    (Key::Type, "type", Values::Enum(PLANE_TYPE), true, false),
    (Key::SrcX, "SRC_X", UINT, false, true),
    (Key::SrcY, "SRC_Y", UINT, false, true),
    (Key::SrcW, "SRC_W", UINT, false, true),
    (Key::SrcH, "SRC_H", UINT, false, true),
    (Key::CrtcX, "CRTC_X", INT, false, true),
    (Key::CrtcY, "CRTC_Y", INT, false, true),
    (Key::CrtcW, "CRTC_W", SIZE, false, true),
    (Key::CrtcH, "CRTC_H", SIZE, false, true),
    (Key::FbId, "FB_ID", Values::Object(DRM_MODE_OBJECT_FB), false, true),
    (Key::InFenceFd, "IN_FENCE_FD", Values::Signed(-1, i32::MAX as i64), false, true),
    (Key::OutFencePtr, "OUT_FENCE_PTR", Values::Range(0, u64::MAX), false, true),
    (Key::CrtcId, "CRTC_ID", Values::Object(DRM_MODE_OBJECT_CRTC), false, true),
    (Key::FbDamageClips, "FB_DAMAGE_CLIPS", Values::Blob, false, true),
    (Key::Active, "ACTIVE", BOOL, false, true),
    (Key::ModeId, "MODE_ID", Values::Blob, false, true),
    (Key::VrrEnabled, "VRR_ENABLED", BOOL, false, false),
    (Key::GammaLut, "GAMMA_LUT", Values::Blob, false, false),
    (Key::GammaLutSize, "GAMMA_LUT_SIZE", UINT, true, false),
    (Key::InFormats, "IN_FORMATS", Values::Blob, true, true),
    (Key::HotspotX, "HOTSPOT_X", INT, false, false),
    (Key::HotspotY, "HOTSPOT_Y", INT, false, false),
];

/// The properties of a card, numbered.
pub(crate) fn create(mut allocate: impl FnMut() -> u32, features: &Features, topology: &Topology) -> Vec<Property> {
    ALL.iter()
        .filter(|(key, ..)| match key {
            Key::GammaLut | Key::GammaLutSize => features.gamma_size != 0,
            Key::InFormats => features.modifiers,
            Key::HotspotX | Key::HotspotY => features.cursor_hotspot,
            Key::FbDamageClips => topology.planes.iter().any(|plane| plane.damage_clips),
            _ => true,
        })
        .map(|(key, name, values, immutable, atomic)| Property {
            key: *key,
            id: allocate(),
            name,
            values: values.clone(),
            immutable: *immutable,
            atomic: *atomic,
        })
        .collect()
}

/// A connector's properties, in order. Linux's virtual connectors get their EDID last, by their driver.
pub(crate) fn of_connector(connector: &ConnectorSpec) -> Vec<Key> {
    let mut keys = vec![Key::Dpms, Key::LinkStatus, Key::NonDesktop, Key::Tile, Key::CrtcId];
    if connector.edid {
        let at = if connector.kind == ConnectorKind::Virtual { keys.len() } else { 0 };
        keys.insert(at, Key::Edid);
    }
    keys
}

/// A CRTC's properties, in order.
pub(crate) fn of_crtc(features: &Features) -> Vec<Key> {
    let mut keys = vec![Key::Active, Key::ModeId, Key::OutFencePtr, Key::VrrEnabled];
    if features.gamma_size != 0 {
        keys.extend([Key::GammaLut, Key::GammaLutSize]);
    }
    keys
}

/// A plane's properties, in order.
pub(crate) fn of_plane(plane: &PlaneSpec, features: &Features) -> Vec<Key> {
    let mut keys = vec![
        Key::Type,
        Key::FbId,
        Key::InFenceFd,
        Key::CrtcId,
        Key::CrtcX,
        Key::CrtcY,
        Key::CrtcW,
        Key::CrtcH,
        Key::SrcX,
        Key::SrcY,
        Key::SrcW,
        Key::SrcH,
    ];
    if features.cursor_hotspot && plane.kind == PlaneKind::Cursor {
        keys.extend([Key::HotspotX, Key::HotspotY]);
    }
    if features.modifiers && !plane.modifiers.is_empty() {
        keys.push(Key::InFormats);
    }
    if plane.damage_clips {
        keys.push(Key::FbDamageClips);
    }
    keys
}

/// The contents of an `IN_FORMATS` blob: all formats with all modifiers of a plane.
pub(crate) fn in_formats(plane: &PlaneSpec) -> Vec<u8> {
    use zerocopy::IntoBytes;
    let header = size_of::<FormatModifierBlob>();
    let modifiers_offset = (header + plane.formats.len() * 4).next_multiple_of(8);
    let mut blob = Vec::new();
    blob.extend_from_slice(
        FormatModifierBlob {
            version: FORMAT_BLOB_CURRENT,
            flags: 0,
            count_formats: plane.formats.len() as u32,
            formats_offset: header as u32,
            count_modifiers: (plane.modifiers.len() * plane.formats.len().div_ceil(64)) as u32,
            modifiers_offset: modifiers_offset as u32,
        }
        .as_bytes(),
    );
    blob.extend_from_slice(plane.formats.as_bytes());
    blob.resize(modifiers_offset, 0);
    for &modifier in &plane.modifiers {
        for (index, group) in plane.formats.chunks(64).enumerate() {
            let formats = if group.len() == 64 { u64::MAX } else { (1 << group.len()) - 1 };
            let entry = FormatModifier { formats, offset: (index * 64) as u32, pad: 0, modifier };
            blob.extend_from_slice(entry.as_bytes());
        }
    }
    blob
}
