//! Framebuffers: made of buffers, read back, removed (`drm_framebuffer.c`).

use std::rc::Rc;

use linux_uapi::Errno;
use scheme::Cx;

use crate::card::Card;
use crate::driver::FramebufferPlane;
use crate::error::Outcome;
use crate::file::{Fh, limits};
use crate::object::{Gem, Hold};
use crate::state::{Framebuffer, Rect};
use crate::uapi::fourcc::{
    DRM_FORMAT_BIG_ENDIAN, DRM_FORMAT_MOD_INVALID, DRM_FORMAT_MOD_LINEAR, FormatInfo, format_info, legacy_format,
};
use crate::uapi::*;

impl Card {
    /// `DRM_IOCTL_MODE_ADDFB`: depth and bits a pixel in a format's place.
    pub(crate) fn add_fb(&mut self, fh: Fh, fb: &mut FbCmd) -> Outcome<i32> {
        let pixel_format = legacy_format(fb.bpp, fb.depth).ok_or(Errno::EINVAL)?;
        let mut request = FbCmd2 {
            width: fb.width,
            height: fb.height,
            pixel_format,
            handles: [fb.handle, 0, 0, 0],
            pitches: [fb.pitch, 0, 0, 0],
            ..FbCmd2::default()
        };
        let result = self.add_fb2(fh, &mut request)?;
        fb.fb_id = request.fb_id;
        Ok(result)
    }

    /// `DRM_IOCTL_MODE_ADDFB2`.
    pub(crate) fn add_fb2(&mut self, fh: Fh, request: &mut FbCmd2) -> Outcome<i32> {
        if self.file(fh)?.framebuffers.len() >= limits::FRAMEBUFFERS {
            return Err(Errno::ENOMEM.into());
        }
        let fb = self.create_framebuffer(fh, request)?;
        request.fb_id = fb.hold.object;
        self.file_mut(fh)?.framebuffers.push(fb);
        Ok(0)
    }

    /// Checks a request and makes the framebuffer (`drm_internal_framebuffer_create`).
    pub(crate) fn create_framebuffer(&mut self, fh: Fh, request: &FbCmd2) -> Outcome<Rc<Framebuffer>> {
        let (min, max) = (self.features.min_size, self.features.max_size);
        let sized = |size: u32, min: u32, max: u32| size != 0 && (min..=max).contains(&size);
        if request.flags & !(DRM_MODE_FB_INTERLACED | DRM_MODE_FB_MODIFIERS) != 0
            || !sized(request.width, min.0, max.0)
            || !sized(request.height, min.1, max.1)
            || request.flags & DRM_MODE_FB_MODIFIERS != 0 && !self.features.modifiers
        {
            return Err(Errno::EINVAL.into());
        }
        let info = format_info(request.pixel_format & !DRM_FORMAT_BIG_ENDIAN).ok_or(Errno::EINVAL)?;
        let modifier = check_planes(request, info)?;
        if !self.any_plane_shows(request.pixel_format, modifier) {
            return Err(Errno::EINVAL.into());
        }
        let file = self.file(fh)?;
        let mut buffers: Vec<Rc<Gem>> = Vec::new();
        let mut planes = Vec::new();
        for plane in 0..info.planes() {
            let gem = file.gem(request.handles[plane])?;
            let (pitch, offset) = (request.pitches[plane], request.offsets[plane]);
            let lines = u64::from(info.plane_height(request.height, plane));
            let line = u64::from(info.plane_width(request.width, plane)) * u64::from(info.cpp[plane]);
            if (lines - 1) * u64::from(pitch) + line + u64::from(offset) > gem.size {
                return Err(Errno::EINVAL.into());
            }
            planes.push(FramebufferPlane { buffer: gem.id, pitch, offset });
            buffers.push(Rc::clone(gem));
        }
        let (object, id) = self.framebuffer_ids()?;
        let framebuffer = Framebuffer {
            id,
            width: request.width,
            height: request.height,
            format: request.pixel_format,
            modifier,
            planes,
            hold: Hold::default(),
        };
        if let Err(errno) = self.driver.create_framebuffer(&framebuffer) {
            self.object_ids.release(object);
            return Err(errno.into());
        }
        let hold = Hold::new(object, request.flags, buffers, &self.grave, id);
        let framebuffer = Rc::new(Framebuffer { hold, ..framebuffer });
        self.framebuffers.insert(object, Rc::downgrade(&framebuffer));
        self.touched.objects.push(object);
        Ok(framebuffer)
    }

    /// `drm_any_plane_has_format`.
    fn any_plane_shows(&self, format: u32, modifier: u64) -> bool {
        self.topology.planes.iter().any(|plane| {
            plane.formats.contains(&format) && (plane.modifiers.is_empty() || plane.modifiers.contains(&modifier))
        })
    }

    /// A framebuffer that this file made.
    fn take_framebuffer(&mut self, fh: Fh, id: u32) -> Outcome<Rc<Framebuffer>> {
        let file = self.file_mut(fh)?;
        let at = file.framebuffers.iter().position(|fb| fb.hold.object == id).ok_or(Errno::ENOENT)?;
        Ok(file.framebuffers.swap_remove(at))
    }

    /// `DRM_IOCTL_MODE_RMFB`: it goes from the screen, too.
    pub(crate) fn remove_fb(&mut self, fh: Fh, id: u32) -> Outcome<i32> {
        let fb = self.take_framebuffer(fh, id)?;
        self.remove_from_screen(&fb);
        Ok(0)
    }

    /// `DRM_IOCTL_MODE_CLOSEFB`: what is shown stays on the screen.
    pub(crate) fn close_fb(&mut self, fh: Fh, close: &CloseFb) -> Outcome<i32> {
        if close.pad != 0 {
            return Err(Errno::EINVAL.into());
        }
        self.take_framebuffer(fh, close.fb_id)?;
        Ok(0)
    }

    /// Only the master, and root, see what others' framebuffers hold.
    fn may_see_handles(&self, cx: &Cx<'_>, fh: Fh) -> bool {
        self.is_current_master(fh) || cx.uid == 0
    }

    fn handle_for(&mut self, fh: Fh, gem: &Rc<Gem>) -> Outcome<u32> {
        let file = self.file_mut(fh)?;
        file.dumb_bytes += gem.size;
        Ok(file.add_handle(Rc::clone(gem))?)
    }

    /// `DRM_IOCTL_MODE_GETFB`.
    pub(crate) fn get_fb(&mut self, cx: &Cx<'_>, fh: Fh, request: &mut FbCmd) -> Outcome<i32> {
        let fb = self.framebuffer(request.fb_id)?;
        let info = format_info(fb.format & !DRM_FORMAT_BIG_ENDIAN).ok_or(Errno::EINVAL)?;
        // More than one plane, or none of the old kind of formats: the old structure cannot say it.
        if info.planes() > 1 || fb.hold.buffers.is_empty() {
            return Err(Errno::EINVAL.into());
        }
        request.height = fb.height;
        request.width = fb.width;
        request.depth = u32::from(info.depth);
        request.bpp = u32::from(info.cpp[0]) * 8;
        request.pitch = fb.planes[0].pitch;
        request.handle = if self.may_see_handles(cx, fh) { self.handle_for(fh, &fb.hold.buffers[0])? } else { 0 };
        Ok(0)
    }

    /// `DRM_IOCTL_MODE_GETFB2`: planes of one buffer get one handle.
    pub(crate) fn get_fb2(&mut self, cx: &Cx<'_>, fh: Fh, _arg: u64, request: &mut FbCmd2) -> Outcome<i32> {
        let fb = self.framebuffer(request.fb_id)?;
        request.height = fb.height;
        request.width = fb.width;
        request.pixel_format = fb.format;
        request.flags = if self.features.modifiers { DRM_MODE_FB_MODIFIERS } else { 0 };
        request.flags |= fb.hold.flags & DRM_MODE_FB_INTERLACED;
        (request.handles, request.pitches, request.offsets) = Default::default();
        request.modifier = [0; 4];
        let see = self.may_see_handles(cx, fh);
        for (index, plane) in fb.planes.iter().enumerate() {
            request.pitches[index] = plane.pitch;
            request.offsets[index] = plane.offset;
            if self.features.modifiers {
                request.modifier[index] = fb.modifier;
            }
            if see {
                let same = (0..index).find(|&before| fb.planes[before].buffer == plane.buffer);
                request.handles[index] = match same {
                    Some(before) => request.handles[before],
                    None => self.handle_for(fh, &fb.hold.buffers[index])?,
                };
            }
        }
        Ok(0)
    }

    /// `DRM_IOCTL_MODE_DIRTYFB`: what a client drew in place is brought to the screen.
    pub(crate) fn dirty_fb(&mut self, cx: &Cx<'_>, dirty: &FbDirty) -> Outcome<i32> {
        let fb = self.framebuffer(dirty.fb_id)?;
        let count = dirty.num_clips;
        let copy = dirty.flags & DRM_MODE_FB_DIRTY_ANNOTATE_COPY != 0;
        if (count == 0) != (dirty.clips_ptr == 0)
            || copy && !count.is_multiple_of(2)
            || count > DRM_MODE_FB_DIRTY_MAX_CLIPS
        {
            return Err(Errno::EINVAL.into());
        }
        let clips: Vec<ClipRect> = cx.read_slice(dirty.clips_ptr, count as usize)?;
        let clips = (count != 0).then(|| {
            // Of a copy, every second rectangle is the source, which does not change.
            let step = if copy { 2 } else { 1 };
            let rect = |clip: &ClipRect| Rect {
                x1: clip.x1.into(),
                y1: clip.y1.into(),
                x2: clip.x2.into(),
                y2: clip.y2.into(),
            };
            clips.iter().step_by(step).map(rect).collect::<Rc<[Rect]>>()
        });
        self.refresh(&fb, clips)
    }
}

/// What `framebuffer_check` asks of the planes; the modifier.
fn check_planes(request: &FbCmd2, info: &FormatInfo) -> Outcome<u64> {
    let with_modifiers = request.flags & DRM_MODE_FB_MODIFIERS != 0;
    for plane in 0..4 {
        let (handle, pitch, offset) = (request.handles[plane], request.pitches[plane], request.offsets[plane]);
        let modifier = request.modifier[plane];
        if plane >= info.planes() {
            // Without the flag, old clients may have left anything in what was not there then.
            if modifier != 0 && with_modifiers || handle != 0 || pitch != 0 || offset != 0 {
                return Err(Errno::EINVAL.into());
            }
            continue;
        }
        let width = info.plane_width(request.width, plane);
        let height = info.plane_height(request.height, plane);
        if handle == 0 {
            return Err(Errno::EINVAL.into());
        }
        let line = u64::from(width) * u64::from(info.cpp[plane]);
        if line > u64::from(u32::MAX) {
            return Err(Errno::ERANGE.into());
        }
        if u64::from(height) * u64::from(pitch) + u64::from(offset) > u64::from(u32::MAX) {
            return Err(Errno::ERANGE.into());
        }
        if u64::from(pitch) < line {
            return Err(Errno::EINVAL.into());
        }
        if !with_modifiers && modifier != 0 || with_modifiers && modifier != request.modifier[0] {
            return Err(Errno::EINVAL.into());
        }
    }
    let modifier = if with_modifiers { request.modifier[0] } else { DRM_FORMAT_MOD_LINEAR };
    if modifier == DRM_FORMAT_MOD_INVALID {
        return Err(Errno::EINVAL.into());
    }
    Ok(modifier)
}
