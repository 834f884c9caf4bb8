//! Sizes and numbers against the headers, by way of `drm-sys`.

use super::*;

#[test]
fn structures_have_the_headers_sizes() {
    macro_rules! same {
        ($($ours:ty = $theirs:ident),* $(,)?) => {
            $(assert_eq!(size_of::<$ours>(), size_of::<drm_sys::$theirs>(), stringify!($ours));)*
        };
    }
    same!(
        Version = drm_version,
        Unique = drm_unique,
        Auth = drm_auth,
        Client = drm_client,
        SetVersion = drm_set_version,
        GetCap = drm_get_cap,
        SetClientCap = drm_set_client_cap,
        GemClose = drm_gem_close,
        GemFlink = drm_gem_flink,
        GemOpen = drm_gem_open,
        PrimeHandle = drm_prime_handle,
        WaitVblank = drm_wait_vblank,
        CrtcGetSequence = drm_crtc_get_sequence,
        CrtcQueueSequence = drm_crtc_queue_sequence,
        SyncobjCreate = drm_syncobj_create,
        SyncobjDestroy = drm_syncobj_destroy,
        SyncobjTransfer = drm_syncobj_transfer,
        SyncobjWait = drm_syncobj_wait,
        SyncobjTimelineWait = drm_syncobj_timeline_wait,
        SyncobjArray = drm_syncobj_array,
        SyncobjTimelineArray = drm_syncobj_timeline_array,
        SyncobjEventfd = drm_syncobj_eventfd,
        EventVblank = drm_event_vblank,
        EventCrtcSequence = drm_event_crtc_sequence,
        Mode = drm_mode_modeinfo,
        CardRes = drm_mode_card_res,
        ModeCrtc = drm_mode_crtc,
        SetPlane = drm_mode_set_plane,
        GetPlane = drm_mode_get_plane,
        GetEncoder = drm_mode_get_encoder,
        GetConnector = drm_mode_get_connector,
        PropertyEnum = drm_mode_property_enum,
        GetProperty = drm_mode_get_property,
        ConnectorSetProperty = drm_mode_connector_set_property,
        GetBlob = drm_mode_get_blob,
        FbCmd = drm_mode_fb_cmd,
        FbCmd2 = drm_mode_fb_cmd2,
        FbDirty = drm_mode_fb_dirty_cmd,
        ModeModeCmd = drm_mode_mode_cmd,
        Cursor = drm_mode_cursor,
        Cursor2 = drm_mode_cursor2,
        CrtcLut = drm_mode_crtc_lut,
        ColorLut = drm_color_lut,
        CrtcPageFlip = drm_mode_crtc_page_flip,
        CreateDumb = drm_mode_create_dumb,
        MapDumb = drm_mode_map_dumb,
        DestroyDumb = drm_mode_destroy_dumb,
        Atomic = drm_mode_atomic,
        FormatModifierBlob = drm_format_modifier_blob,
        FormatModifier = drm_format_modifier,
        CreateBlob = drm_mode_create_blob,
        DestroyBlob = drm_mode_destroy_blob,
        CreateLease = drm_mode_create_lease,
        GetLease = drm_mode_get_lease,
        RevokeLease = drm_mode_revoke_lease,
        ModeRect = drm_mode_rect,
        ClipRect = drm_clip_rect,
    );
    // These have padding that the derive makes us name, and so other sizes in C's eyes or none to compare with.
    assert_eq!(size_of::<GetPlaneRes>(), 16);
    assert_eq!(size_of::<ObjGetProperties>(), 32);
    assert_eq!(size_of::<ObjSetProperty>(), 24);
    assert_eq!(size_of::<ListLessees>(), 16);
    assert_eq!(size_of::<SyncobjHandle>(), 16);
    assert_eq!(size_of::<CloseFb>(), 8);
}

#[test]
fn fields_are_where_the_headers_have_them() {
    macro_rules! at {
        ($($ours:ty, $field:ident = $theirs:ident, $there:ident);* $(;)?) => {
            $(assert_eq!(
                std::mem::offset_of!($ours, $field),
                std::mem::offset_of!(drm_sys::$theirs, $there),
                stringify!($ours $field)
            );)*
        };
    }
    at!(
        Version, desc = drm_version, desc;
        Mode, vrefresh = drm_mode_modeinfo, vrefresh;
        Mode, kind = drm_mode_modeinfo, type_;
        ModeCrtc, mode_valid = drm_mode_crtc, mode_valid;
        SetPlane, src_h = drm_mode_set_plane, src_h;
        SetPlane, src_w = drm_mode_set_plane, src_w;
        GetPlane, format_type_ptr = drm_mode_get_plane, format_type_ptr;
        GetConnector, connection = drm_mode_get_connector, connection;
        GetConnector, prop_values_ptr = drm_mode_get_connector, prop_values_ptr;
        GetProperty, count_enum_blobs = drm_mode_get_property, count_enum_blobs;
        FbCmd, handle = drm_mode_fb_cmd, handle;
        FbCmd2, modifier = drm_mode_fb_cmd2, modifier;
        FbDirty, clips_ptr = drm_mode_fb_dirty_cmd, clips_ptr;
        Cursor2, hot_y = drm_mode_cursor2, hot_y;
        CreateDumb, handle = drm_mode_create_dumb, handle;
        Atomic, prop_values_ptr = drm_mode_atomic, prop_values_ptr;
        Atomic, user_data = drm_mode_atomic, user_data;
        CreateLease, fd = drm_mode_create_lease, fd;
        EventVblank, crtc_id = drm_event_vblank, crtc_id;
        SyncobjWait, first_signaled = drm_syncobj_wait, first_signaled;
        SyncobjTransfer, dst_point = drm_syncobj_transfer, dst_point;
    );
}

#[test]
fn numbers_are_the_headers() {
    macro_rules! same {
        ($($name:ident),* $(,)?) => { $(assert_eq!($name as u64, drm_sys::$name as u64, stringify!($name));)* };
    }
    same!(
        DRM_CAP_ADDFB2_MODIFIERS,
        DRM_CAP_CRTC_IN_VBLANK_EVENT,
        DRM_CAP_SYNCOBJ_TIMELINE,
        DRM_CLIENT_CAP_ATOMIC,
        DRM_CLIENT_CAP_WRITEBACK_CONNECTORS,
        DRM_MODE_ATOMIC_ALLOW_MODESET,
        DRM_MODE_ATOMIC_NONBLOCK,
        DRM_MODE_ATOMIC_TEST_ONLY,
        DRM_MODE_PAGE_FLIP_EVENT,
        DRM_MODE_CURSOR_FLAGS,
        DRM_MODE_FB_DIRTY_MAX_CLIPS,
        DRM_MODE_FLAG_3D_MASK,
        DRM_MODE_OBJECT_BLOB,
        DRM_MODE_OBJECT_CRTC,
        DRM_MODE_OBJECT_PLANE,
        DRM_MODE_PROP_ATOMIC,
        DRM_MODE_PROP_BLOB,
        DRM_MODE_PROP_ENUM,
        DRM_MODE_PROP_IMMUTABLE,
        DRM_MODE_PROP_RANGE,
    );
    assert_eq!(Cmd::new(true, true, 0xbc, size_of::<Atomic>()).0, 0xc038_64bc);
    assert_eq!(Cmd::new(false, true, 0x02, 4).0, 0x8004_6402);
    assert_eq!(Cmd(0xc038_64bc).size(), 56);
}
