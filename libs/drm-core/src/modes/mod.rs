//! Display modes: arithmetic and checks (`drm_modes.c`), standard timings, and what an EDID says.

pub(crate) mod edid;
pub mod standard;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;

use linux_uapi::Errno;

use crate::uapi::*;

/// The modes that a display announces in its EDID, those left out that nobody could use; `None` for what is no EDID.
pub fn of_edid(bytes: &[u8]) -> Option<Vec<Mode>> {
    edid::Edid::parse(bytes).map(|edid| edid.modes().into_iter().filter(Mode::is_sane).collect())
}

impl Mode {
    /// Its name as text: `1024x768`.
    pub fn name(&self) -> &str {
        let end = self.name.iter().position(|&byte| byte == 0).unwrap_or(self.name.len());
        std::str::from_utf8(&self.name[..end]).unwrap_or("")
    }

    /// The same with the name that its size gives (`drm_mode_set_name`).
    pub fn named(mut self) -> Mode {
        let interlaced = if self.flags & DRM_MODE_FLAG_INTERLACE != 0 { "i" } else { "" };
        let name = format!("{}x{}{interlaced}", self.hdisplay, self.vdisplay);
        self.name = [0; DRM_DISPLAY_MODE_LEN];
        self.name[..name.len()].copy_from_slice(name.as_bytes());
        self
    }

    /// Frames a second, rounded (`drm_mode_vrefresh`).
    pub fn refresh(&self) -> u32 {
        let mut clock = u64::from(self.clock) * 1000;
        let mut pixels = u64::from(self.htotal) * u64::from(self.vtotal);
        if self.flags & DRM_MODE_FLAG_INTERLACE != 0 {
            clock *= 2;
        }
        if self.flags & DRM_MODE_FLAG_DBLSCAN != 0 {
            pixels *= 2;
        }
        if self.vscan > 1 {
            pixels *= u64::from(self.vscan);
        }
        (clock + pixels / 2).checked_div(pixels).unwrap_or(0).min(u64::from(u32::MAX)) as u32
    }

    /// Its numbers make a picture (`drm_mode_validate_basic`).
    pub fn is_sane(&self) -> bool {
        self.kind & !DRM_MODE_TYPE_ALL == 0
            && self.flags & !(DRM_MODE_FLAG_ALL | DRM_MODE_FLAG_PIC_AR_MASK) == 0
            && self.clock != 0
            && self.hdisplay != 0
            && self.hsync_start >= self.hdisplay
            && self.hsync_end >= self.hsync_start
            && self.htotal >= self.hsync_end
            && self.vdisplay != 0
            && self.vsync_start >= self.vdisplay
            && self.vsync_end >= self.vsync_start
            && self.vtotal >= self.vsync_end
    }

    /// A client's mode, checked and made regular (`drm_mode_convert_umode`).
    pub(crate) fn checked(mut self) -> Result<Mode, Errno> {
        if self.clock > i32::MAX as u32 || self.vrefresh > i32::MAX as u32 {
            return Err(Errno::ERANGE);
        }
        // Old clients left it unset.
        self.kind &= DRM_MODE_TYPE_ALL;
        if self.flags & DRM_MODE_FLAG_PIC_AR_MASK > DRM_MODE_FLAG_PIC_AR_256_135 || !self.is_sane() {
            return Err(Errno::EINVAL);
        }
        self.vrefresh = self.refresh();
        self.name[DRM_DISPLAY_MODE_LEN - 1] = 0;
        Ok(self)
    }

    /// The same picture, whatever it is called (`drm_mode_equal`).
    pub fn same_timing(&self, other: &Mode) -> bool {
        let kept = |mode: &Mode| Mode { kind: 0, name: [0; DRM_DISPLAY_MODE_LEN], vrefresh: 0, ..*mode };
        kept(self) == kept(other)
    }

    /// The order of a connector's list: preferred, larger, faster first (`drm_mode_compare`).
    pub(crate) fn compare(&self, other: &Mode) -> Ordering {
        let key = |mode: &Mode| {
            let area = u32::from(mode.hdisplay) * u32::from(mode.vdisplay);
            (mode.kind & DRM_MODE_TYPE_PREFERRED, area, mode.refresh(), mode.clock)
        };
        key(other).cmp(&key(self))
    }
}
