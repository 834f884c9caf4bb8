//! What a client learns and says at the start: version, names, capabilities (`drm_ioctl.c`).

use linux_uapi::Errno;
use scheme::Cx;

use crate::card::Card;
use crate::error::Outcome;
use crate::file::Fh;
use crate::uapi::*;

/// The version of the interface that `SET_VERSION` offers (`DRM_IF_MAJOR`, `DRM_IF_MINOR`).
const INTERFACE: (i32, i32) = (1, 4);

impl Card {
    /// `DRM_IOCTL_VERSION`: each string as far as there is room, and its length.
    pub(crate) fn version(&self, cx: &Cx<'_>, version: &mut Version) -> Outcome<i32> {
        let copy = |text: &str, address: u64, len: &mut u64| -> Outcome<()> {
            let room = usize::try_from(*len).unwrap_or(usize::MAX).min(text.len());
            if address != 0 {
                cx.write_user(address, &text.as_bytes()[..room])?;
            }
            *len = text.len() as u64;
            Ok(())
        };
        copy(self.info.name, version.name, &mut version.name_len)?;
        copy(self.info.date, version.date, &mut version.date_len)?;
        copy(self.info.desc, version.desc, &mut version.desc_len)?;
        (version.version_major, version.version_minor, version.version_patchlevel) = self.info.version;
        Ok(0)
    }

    /// `DRM_IOCTL_GET_UNIQUE`: the bus name, empty until `SET_VERSION` asked for it.
    pub(crate) fn get_unique(&self, cx: &Cx<'_>, fh: Fh, unique: &mut Unique) -> Outcome<i32> {
        let master = self.file(fh)?.master.and_then(|master| self.masters.get(&master));
        let name = master.and_then(|master| master.unique.as_deref()).unwrap_or("");
        if unique.unique_len >= name.len() as u64 {
            cx.write_user(unique.unique, name.as_bytes())?;
        }
        unique.unique_len = name.len() as u64;
        Ok(0)
    }

    /// `DRM_IOCTL_GET_CLIENT`: what is left of it: whether the caller itself is authenticated.
    pub(crate) fn get_client(&self, fh: Fh, client: &mut Client) -> Outcome<i32> {
        if client.idx != 0 {
            return Err(Errno::EINVAL.into());
        }
        let file = self.file(fh)?;
        client.auth = i32::from(file.authenticated);
        client.pid = u64::from(file.pid);
        client.uid = u64::from(file.uid);
        client.magic = 0;
        client.iocs = 0;
        Ok(0)
    }

    /// `DRM_IOCTL_SET_VERSION`.
    pub(crate) fn set_version(&mut self, fh: Fh, version: &mut SetVersion) -> Outcome<i32> {
        let mut result = Ok(0);
        if version.drm_di_major != -1 {
            if version.drm_di_major != INTERFACE.0 || !(0..=INTERFACE.1).contains(&version.drm_di_minor) {
                result = Err(Errno::EINVAL.into());
            } else if version.drm_di_minor >= 1 {
                let bus_id = self.info.bus_id.clone();
                let master = self.file(fh)?.master.ok_or(Errno::EINVAL)?;
                if let Some(master) = self.masters.get_mut(&master) {
                    master.unique = Some(bus_id);
                }
            }
        }
        let (major, minor, _) = self.info.version;
        if result.is_ok()
            && version.drm_dd_major != -1
            && (version.drm_dd_major != major || version.drm_dd_minor < 0 || version.drm_dd_minor > minor)
        {
            result = Err(Errno::EINVAL.into());
        }
        (version.drm_di_major, version.drm_di_minor) = INTERFACE;
        (version.drm_dd_major, version.drm_dd_minor) = (major, minor);
        result
    }

    /// `DRM_IOCTL_GET_CAP`.
    pub(crate) fn get_cap(&self, cap: &mut GetCap) -> Outcome<i32> {
        let features = &self.features;
        cap.value = match cap.capability {
            DRM_CAP_DUMB_BUFFER
            | DRM_CAP_VBLANK_HIGH_CRTC
            | DRM_CAP_TIMESTAMP_MONOTONIC
            | DRM_CAP_CRTC_IN_VBLANK_EVENT => 1,
            DRM_CAP_DUMB_PREFERRED_DEPTH => u64::from(features.preferred_depth),
            DRM_CAP_DUMB_PREFER_SHADOW => u64::from(features.prefer_shadow),
            DRM_CAP_PRIME => DRM_PRIME_CAP_IMPORT | DRM_PRIME_CAP_EXPORT,
            DRM_CAP_ASYNC_PAGE_FLIP | DRM_CAP_PAGE_FLIP_TARGET | DRM_CAP_ATOMIC_ASYNC_PAGE_FLIP => 0,
            DRM_CAP_CURSOR_WIDTH => u64::from(features.cursor_size.0),
            DRM_CAP_CURSOR_HEIGHT => u64::from(features.cursor_size.1),
            DRM_CAP_ADDFB2_MODIFIERS => u64::from(features.modifiers),
            DRM_CAP_SYNCOBJ => u64::from(features.syncobj),
            DRM_CAP_SYNCOBJ_TIMELINE => u64::from(features.syncobj && features.syncobj_timeline),
            _ => return Err(Errno::EINVAL.into()),
        };
        Ok(0)
    }

    /// `DRM_IOCTL_SET_CLIENT_CAP`.
    pub(crate) fn set_client_cap(&mut self, cx: &Cx<'_>, fh: Fh, cap: &SetClientCap) -> Outcome<i32> {
        let hotspot = self.features.cursor_hotspot;
        let file = self.file_mut(fh)?;
        let most = if cap.capability == DRM_CLIENT_CAP_ATOMIC { 2 } else { 1 };
        let on = cap.value != 0;
        let within = if cap.value <= most { Ok(()) } else { Err(Errno::EINVAL) };
        match cap.capability {
            DRM_CLIENT_CAP_STEREO_3D => {
                within?;
                file.caps.stereo = on;
            }
            DRM_CLIENT_CAP_UNIVERSAL_PLANES => {
                within?;
                file.caps.universal_planes = on;
            }
            DRM_CLIENT_CAP_ATOMIC => {
                // Xorg's modesetting driver uses the atomic interface wrongly; 2 says "I know what I do".
                if cap.value == 1 && command_begins_with_x(cx.pid) {
                    return Err(Errno::EOPNOTSUPP.into());
                }
                within?;
                file.caps.atomic = on;
                file.caps.universal_planes = on;
                file.caps.aspect_ratio = on;
            }
            DRM_CLIENT_CAP_ASPECT_RATIO => {
                within?;
                file.caps.aspect_ratio = on;
            }
            DRM_CLIENT_CAP_WRITEBACK_CONNECTORS => {
                if !file.caps.atomic {
                    return Err(Errno::EINVAL.into());
                }
                within?;
                file.caps.writeback = on;
            }
            DRM_CLIENT_CAP_CURSOR_PLANE_HOTSPOT => {
                if !hotspot {
                    return Err(Errno::EOPNOTSUPP.into());
                }
                if !file.caps.atomic {
                    return Err(Errno::EINVAL.into());
                }
                within?;
                file.caps.cursor_hotspot = on;
            }
            _ => return Err(Errno::EINVAL.into()),
        }
        Ok(0)
    }
}

fn command_begins_with_x(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.first() == Some(&b'X'))
}
