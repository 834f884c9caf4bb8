//! The interface from before the atomic one, as commits of that (`drm_crtc.c`, `drm_plane.c`, `drm_color_mgmt.c`).

use std::rc::Rc;

use linux_uapi::Errno;
use scheme::Cx;
use zerocopy::IntoBytes;

use crate::card::Card;
use crate::check::Update;
use crate::commit::Signal;
use crate::error::{Error, Outcome};
use crate::file::Fh;
use crate::state::{Framebuffer, Rect};
use crate::uapi::fourcc::DRM_FORMAT_ARGB8888;
use crate::uapi::*;

/// `drm_mode_crtc.fb_id` for "the framebuffer that is there".
const PRESENT_FB: u32 = u32::MAX;

impl Card {
    /// Checks an update and commits it as an ioctl that returns when it is on the screen.
    pub(crate) fn commit_waiting(&mut self, update: Update) -> Outcome<i32> {
        let change = self.check(update)?;
        if !change.unpaced {
            self.wait_turn(change.crtcs, false)?;
        }
        match self.submit(change, Vec::new(), Vec::new()) {
            Some(flight) => Err(Error::Commit(flight)),
            None => Ok(0),
        }
    }

    /// `drm_crtc_check_viewport`: the framebuffer reaches as far as the mode shows of it.
    fn check_viewport(x: u32, y: u32, mode: &Mode, fb: &Framebuffer) -> Result<(), Errno> {
        let fits = |at: u32, size: u16, whole: u32| u64::from(at) + u64::from(size) <= u64::from(whole);
        if fits(x, mode.hdisplay, fb.width) && fits(y, mode.vdisplay, fb.height) { Ok(()) } else { Err(Errno::ENOSPC) }
    }

    /// `DRM_IOCTL_MODE_SETCRTC`.
    pub(crate) fn set_crtc(&mut self, cx: &Cx<'_>, fh: Fh, request: &mut ModeCrtc) -> Outcome<i32> {
        // The position is a 16.16 number further down.
        if request.x & 0xffff_0000 != 0 || request.y & 0xffff_0000 != 0 {
            return Err(Errno::ERANGE.into());
        }
        let crtc = self.crtc_by_id(fh, request.crtc_id)?;
        let primary = self.crtcs[crtc].primary;
        if !self.lease_held(fh, self.planes[primary].id) {
            return Err(Errno::EACCES.into());
        }
        let mut picture = None;
        if request.mode_valid != 0 {
            let fb = if request.fb_id == PRESENT_FB {
                self.state.planes[primary].fb.clone().ok_or(Errno::EINVAL)?
            } else {
                self.framebuffer(request.fb_id)?
            };
            let aspect = self.file(fh)?.caps.aspect_ratio;
            if !aspect && request.mode.flags & DRM_MODE_FLAG_PIC_AR_MASK != 0 {
                return Err(Errno::EINVAL.into());
            }
            let mode = request.mode.checked()?;
            if !self.topology.planes[primary].formats.contains(&fb.format) {
                return Err(Errno::EINVAL.into());
            }
            Card::check_viewport(request.x, request.y, &mode, &fb)?;
            picture = Some((mode, fb));
        }
        let count = request.count_connectors as usize;
        if (count == 0) != picture.is_none() || count > self.connectors.len() {
            return Err(Errno::EINVAL.into());
        }
        let ids: Vec<u32> = cx.read_slice(request.set_connectors_ptr, count)?;
        let connectors = ids.iter().map(|&id| self.connector_by_id(fh, id)).collect::<Result<Vec<_>, _>>()?;

        let mut update = Update::new(&self.state);
        let Some((mode, fb)) = picture else {
            let state = update.crtc(crtc);
            (state.mode, state.mode_blob, state.active) = (None, None, false);
            update.clear_connectors(crtc);
            if update.peek_plane(primary).crtc == Some(crtc) {
                update.disable_plane(primary);
            }
            return self.commit_waiting(update);
        };
        // The blob by which the atomic interface names it; the same mode keeps its own.
        let blob = match &self.state.crtcs[crtc] {
            state if state.mode == Some(mode) && state.mode_blob.is_some() => state.mode_blob.clone(),
            _ => Some(self.new_blob(mode.as_bytes().to_vec())?),
        };
        let state = update.crtc(crtc);
        (state.mode, state.mode_blob, state.active) = (Some(mode), blob, true);
        let whole = Rect::new(0, 0, mode.hdisplay.into(), mode.vdisplay.into());
        update.show(primary, crtc, fb, (request.x, request.y), whole);
        for connector in 0..self.connectors.len() {
            let wanted = connectors.contains(&connector);
            if !wanted && update.peek_connector(connector).crtc == Some(crtc) {
                update.set_connector_crtc(connector, None);
            } else if wanted {
                self.take_connector(&mut update, connector, crtc);
            }
        }
        self.commit_waiting(update)
    }

    /// Puts a connector on a CRTC. The CRTC that loses its last connector by it is turned off, as
    /// `update_output_state` does.
    fn take_connector(&self, update: &mut Update, connector: usize, crtc: usize) {
        let before = update.peek_connector(connector).crtc;
        update.set_connector_crtc(connector, Some(crtc));
        let Some(before) = before.filter(|&before| before != crtc) else { return };
        if (0..self.connectors.len()).any(|other| update.peek_connector(other).crtc == Some(before)) {
            return;
        }
        let state = update.crtc(before);
        (state.mode, state.mode_blob, state.active) = (None, None, false);
        let primary = self.crtcs[before].primary;
        if update.peek_plane(primary).crtc == Some(before) {
            update.disable_plane(primary);
        }
    }

    /// A connector's `DPMS`: its CRTC is active as long as one of its connectors is on.
    pub(crate) fn set_dpms(&mut self, connector: usize, value: u64, update: &mut Update) {
        let value = if value == DRM_MODE_DPMS_ON { DRM_MODE_DPMS_ON } else { DRM_MODE_DPMS_OFF };
        let Some(crtc) = self.state.connectors[connector].crtc else {
            self.connectors[connector].dpms = value;
            return;
        };
        let on = |(index, other): (usize, &crate::state::ConnectorState)| {
            let dpms = if index == connector { value } else { self.connectors[index].dpms };
            other.crtc == Some(crtc) && dpms == DRM_MODE_DPMS_ON
        };
        let active = self.state.connectors.iter().enumerate().any(on);
        if self.state.crtcs[crtc].active == active {
            self.connectors[connector].dpms = value;
            return;
        }
        update.crtc(crtc).active = active;
    }

    /// `DRM_IOCTL_MODE_SETPLANE`.
    pub(crate) fn set_plane(&mut self, fh: Fh, request: &SetPlane) -> Outcome<i32> {
        let plane = self.plane_by_id(fh, request.plane_id)?;
        let mut update = Update::new(&self.state);
        update.unpaced = self.is_cursor(plane);
        if request.fb_id == 0 {
            update.disable_plane(plane);
            return self.commit_waiting(update);
        }
        let fb = self.framebuffer(request.fb_id)?;
        let crtc = self.crtc_by_id(fh, request.crtc_id)?;
        update.set_plane_crtc(plane, Some(crtc));
        let state = update.plane(plane);
        state.fb = Some(fb);
        (state.crtc_x, state.crtc_y) = (request.crtc_x, request.crtc_y);
        (state.crtc_w, state.crtc_h) = (request.crtc_w, request.crtc_h);
        (state.src_x, state.src_y) = (request.src_x, request.src_y);
        (state.src_w, state.src_h) = (request.src_w, request.src_h);
        self.commit_waiting(update)
    }

    fn is_cursor(&self, plane: usize) -> bool {
        self.crtcs.iter().any(|crtc| crtc.cursor == Some(plane))
    }

    /// `DRM_IOCTL_MODE_CURSOR` and `CURSOR2`, as commits of the cursor plane (`drm_mode_cursor_universal`).
    pub(crate) fn cursor(&mut self, fh: Fh, request: &Cursor2) -> Outcome<i32> {
        if request.flags == 0 || request.flags & !DRM_MODE_CURSOR_FLAGS != 0 {
            return Err(Errno::EINVAL.into());
        }
        let crtc = self.crtc_by_id(fh, request.crtc_id)?;
        let plane = self.crtcs[crtc].cursor.ok_or(Errno::ENXIO)?;
        if !self.lease_held(fh, self.planes[plane].id) {
            return Err(Errno::EACCES.into());
        }
        let present = self.state.planes[plane].clone();
        let (mut fb, mut hotspot) = (present.fb, (present.hotspot_x, present.hotspot_y));
        if request.flags & DRM_MODE_CURSOR_BO != 0 {
            fb = if request.handle == 0 { None } else { Some(self.cursor_framebuffer(fh, request)?) };
            hotspot = if fb.is_some() { (request.hot_x, request.hot_y) } else { (0, 0) };
        }
        if request.flags & DRM_MODE_CURSOR_MOVE != 0 {
            self.crtcs[crtc].cursor_at = (request.x, request.y);
        }
        let mut update = Update::new(&self.state);
        update.unpaced = true;
        match fb {
            Some(fb) => {
                let (x, y) = self.crtcs[crtc].cursor_at;
                let dst = Rect::new(x, y, fb.width, fb.height);
                if i64::from(x) + i64::from(fb.width) > i64::from(i32::MAX)
                    || i64::from(y) + i64::from(fb.height) > i64::from(i32::MAX)
                {
                    return Err(Errno::ERANGE.into());
                }
                update.show(plane, crtc, fb, (0, 0), dst);
                let state = update.plane(plane);
                (state.hotspot_x, state.hotspot_y) = hotspot;
            }
            None if self.state.planes[plane].crtc == Some(crtc) => update.disable_plane(plane),
            None => return Ok(0),
        }
        self.commit_waiting(update)
    }

    fn cursor_framebuffer(&mut self, fh: Fh, request: &Cursor2) -> Outcome<Rc<Framebuffer>> {
        let fb = FbCmd2 {
            width: request.width,
            height: request.height,
            pixel_format: DRM_FORMAT_ARGB8888,
            pitches: [request.width.checked_mul(4).ok_or(Errno::EINVAL)?, 0, 0, 0],
            handles: [request.handle, 0, 0, 0],
            ..FbCmd2::default()
        };
        self.create_framebuffer(fh, &fb)
    }

    /// `DRM_IOCTL_MODE_PAGE_FLIP`: another framebuffer on the primary plane, without waiting.
    pub(crate) fn page_flip(&mut self, fh: Fh, request: &CrtcPageFlip) -> Outcome<i32> {
        let flags = request.flags;
        if flags & !DRM_MODE_PAGE_FLIP_FLAGS != 0
            || request.reserved_or_sequence != 0 && flags & DRM_MODE_PAGE_FLIP_TARGET == 0
            || flags & DRM_MODE_PAGE_FLIP_TARGET == DRM_MODE_PAGE_FLIP_TARGET
            || flags & DRM_MODE_PAGE_FLIP_ASYNC != 0
        {
            return Err(Errno::EINVAL.into());
        }
        let crtc = self.crtc_by_id(fh, request.crtc_id)?;
        let primary = self.crtcs[crtc].primary;
        if !self.lease_held(fh, self.planes[primary].id) {
            return Err(Errno::EACCES.into());
        }
        // Flips to a given frame: no driver here has them (DRM_CAP_PAGE_FLIP_TARGET).
        if flags & DRM_MODE_PAGE_FLIP_TARGET != 0 {
            return Err(Errno::EINVAL.into());
        }
        let plane = &self.state.planes[primary];
        // Not lit yet, or gone: the framebuffer may go at any time, so a client may race with it.
        let old = plane.fb.as_ref().ok_or(Errno::EBUSY)?;
        let fb = self.framebuffer(request.fb_id)?;
        let reaches = |at: u32, size: u32, whole: u32| u64::from(at) + u64::from(size) <= u64::from(whole) << 16;
        if !reaches(plane.src_x, plane.src_w, fb.width) || !reaches(plane.src_y, plane.src_h, fb.height) {
            return Err(Errno::ENOSPC.into());
        }
        if old.format != fb.format {
            return Err(Errno::EINVAL.into());
        }
        let mut update = Update::new(&self.state);
        update.allow_modeset = false;
        update.plane(primary).fb = Some(fb);
        if !self.state.crtcs[crtc].active {
            return Err(Errno::EINVAL.into());
        }
        let change = self.check(update)?;
        self.wait_turn(change.crtcs, true)?;
        let mut signals = Vec::new();
        if flags & DRM_MODE_PAGE_FLIP_EVENT != 0 {
            self.file_mut(fh)?.reserve_event(size_of::<EventVblank>())?;
            signals.push(Signal { crtc, event: Some((fh, request.user_data)), fence: None });
        }
        self.submit(change, signals, Vec::new());
        Ok(0)
    }

    /// Brings dirty rectangles of a framebuffer to the screen, on every plane that shows it
    /// (`drm_atomic_helper_dirtyfb`).
    pub(crate) fn refresh(&mut self, fb: &Rc<Framebuffer>, clips: Option<Rc<[Rect]>>) -> Outcome<i32> {
        let mut update = Update::new(&self.state);
        update.unpaced = true;
        for plane in 0..self.planes.len() {
            if self.state.planes[plane].fb.as_ref().is_some_and(|shown| Rc::ptr_eq(shown, fb)) {
                let clip = |clip: &Rect| clip.intersection(&fb.rect());
                update.plane(plane).damage = clips.as_ref().map(|clips| clips.iter().filter_map(clip).collect());
            }
        }
        if update.crtcs == 0 {
            return Ok(0);
        }
        self.commit_waiting(update)
    }

    /// Takes a framebuffer off every plane, and turns CRTCs off where a driver does not do without
    /// (`atomic_remove_fb`). It cannot wait: the client is going.
    pub(crate) fn remove_from_screen(&mut self, fb: &Rc<Framebuffer>) {
        for off in [false, true] {
            let mut update = Update::new(&self.state);
            update.unpaced = true;
            for plane in 0..self.planes.len() {
                let state = &self.state.planes[plane];
                if !state.fb.as_ref().is_some_and(|shown| Rc::ptr_eq(shown, fb)) {
                    continue;
                }
                if let Some(crtc) = state.crtc.filter(|&crtc| off && self.crtcs[crtc].primary == plane) {
                    let state = update.crtc(crtc);
                    (state.mode, state.mode_blob, state.active) = (None, None, false);
                    update.clear_connectors(crtc);
                }
                update.disable_plane(plane);
            }
            if update.crtcs == 0 {
                return;
            }
            if let Ok(change) = self.check(update) {
                self.hurry(&change);
                self.submit(change, Vec::new(), Vec::new());
                return;
            }
        }
    }

    /// `DRM_IOCTL_MODE_GETGAMMA`.
    pub(crate) fn get_gamma(&self, cx: &Cx<'_>, fh: Fh, request: &CrtcLut) -> Outcome<i32> {
        let crtc = self.crtc_by_id(fh, request.crtc_id)?;
        let size = self.features.gamma_size;
        if request.gamma_size != size {
            return Err(Errno::EINVAL.into());
        }
        let channel = |channel: usize| -> Vec<u16> {
            match &self.state.crtcs[crtc].gamma {
                Some(gamma) => gamma.iter().map(|entry| entry[channel]).collect(),
                None => (0..size).map(|step| (u64::from(step) * 65535 / u64::from(size.max(2) - 1)) as u16).collect(),
            }
        };
        for (index, address) in [request.red, request.green, request.blue].into_iter().enumerate() {
            cx.write_user(address, channel(index).as_bytes())?;
        }
        Ok(0)
    }

    /// `DRM_IOCTL_MODE_SETGAMMA`.
    pub(crate) fn set_gamma(&mut self, cx: &Cx<'_>, fh: Fh, request: &CrtcLut) -> Outcome<i32> {
        let crtc = self.crtc_by_id(fh, request.crtc_id)?;
        let size = self.features.gamma_size;
        if size == 0 {
            return Err(Errno::ENOSYS.into());
        }
        if request.gamma_size != size {
            return Err(Errno::EINVAL.into());
        }
        let read = |address: u64| cx.read_slice::<u16>(address, size as usize);
        let (red, green, blue) = (read(request.red)?, read(request.green)?, read(request.blue)?);
        let gamma: Rc<[[u16; 3]]> = (0..size as usize).map(|step| [red[step], green[step], blue[step]]).collect();
        let table: Vec<ColorLut> =
            gamma.iter().map(|&[red, green, blue]| ColorLut { red, green, blue, reserved: 0 }).collect();
        let blob = self.new_blob(table.as_bytes().to_vec())?;
        let mut update = Update::new(&self.state);
        let state = update.crtc(crtc);
        (state.gamma, state.gamma_blob) = (Some(gamma), Some(blob));
        self.commit_waiting(update)
    }
}
