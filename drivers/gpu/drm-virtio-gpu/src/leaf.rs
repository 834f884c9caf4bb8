//! The leaf under `drm-core`: what mode objects, buffers and commits are on a virtio-gpu.
//!
//! Scanout n is CRTC n, encoder n, connector n and the planes 2n (primary) and 2n + 1 (cursor).
//!
//! **Damage.** The device keeps a copy of every buffer. A client with two buffers tells with each flip what changed since
//! the *previous picture*, while the copy of the buffer at hand is two pictures old. Linux's driver therefore copies whole
//! buffers at each flip. Here every copy has a *stale* rectangle: what it lacks. Damage of one buffer's picture makes the
//! same part of the others' copies stale, and a flip brings over the damage and what is stale. A buffer that moves to
//! another scanout or is shown through another framebuffer is stale as a whole.
//!
//! **Order.** Transfer, scanout and flush are on one queue and run in order. The cursor's queue is another one, so a cursor
//! is shown when the fence of its transfer has come.

use std::{collections::HashMap, io, os::fd::BorrowedFd, rc::Rc, time::Duration};

use drm_core::{
    Errno,
    driver::{
        Buffer, BufferId, Cache, Change, Completion, ConnectorKind, ConnectorSpec, Driver, DriverIoctl, DumbRequest,
        EncoderSpec, Event, Features, Framebuffer, FramebufferId, Info, IoctlError, Mode, PlaneKind, PlaneSpec, Probe,
        Rect, Result, Topology,
    },
};
use virtio::Transport;

use crate::{
    abi,
    commands::{Done, Gpu, ResourceId},
    memory::{Backing, BackingAllocator},
};

/// `DRM_FORMAT_XRGB8888`: the one format of primary planes.
pub const XRGB8888: u32 = u32::from_le_bytes(*b"XR24");
/// `DRM_FORMAT_ARGB8888`: the one format of cursors.
pub const ARGB8888: u32 = u32::from_le_bytes(*b"AR24");
const ENCODER_VIRTUAL: u32 = 5;
/// `DRM_MODE_TYPE_PREFERRED`
const TYPE_PREFERRED: u32 = 1 << 3;
/// What a display without size gets: `XRES_DEF`, `YRES_DEF`.
const DEFAULT_SIZE: (u32, u32) = (1024, 768);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// More clips than this are one transfer of the rectangle around them.
const CLIPS_MAX: usize = 8;
/// With more commands waiting there are no new buffers.
const BACKLOG_MAX: usize = 4096;

/// `DRM_VIRTGPU_*`, relative to `DRM_COMMAND_BASE`.
mod ioctl {
    pub const MAP: u32 = 0x01;
    pub const GETPARAM: u32 = 0x03;
    pub const RESOURCE_CREATE_BLOB: u32 = 0x0a;
    pub const CONTEXT_INIT: u32 = 0x0b;
    /// `VIRTGPU_PARAM_3D_FEATURES` to `VIRTGPU_PARAM_EXPLICIT_DEBUG_NAME`
    pub const PARAMS: std::ops::RangeInclusive<u64> = 1..=8;
    pub const PARAM_CAPSET_QUERY_FIX: u64 = 2;
}

/// The device's copy of a resource.
#[derive(Default)]
struct Picture {
    /// What of the shown part differs from memory.
    stale: Option<Rect>,
    /// On which CRTC, through which framebuffer and which part of it was last shown.
    shown: Option<(usize, FramebufferId, Rect)>,
}

struct GemBuffer<B> {
    backing: Rc<B>,
    width: u32,
    height: u32,
    pitch: u32,
    picture: ResourceId,
}

struct FramebufferEntry {
    resource: ResourceId,
    /// Set when the resource is this framebuffer's own: its lines are not the buffer's.
    own: Option<BufferId>,
}

#[derive(Default)]
struct Cursor {
    resource: u32,
    x: i32,
    y: i32,
    hot_x: i32,
    hot_y: i32,
    /// What the device has still to be told.
    update: bool,
    moved: bool,
    /// A new picture that has still to be brought over: resource, its size, where it begins.
    upload: Option<(ResourceId, Rect, u64)>,
    /// The transfer that must be done before.
    after: Option<u64>,
}

/// Dirty rectangles on their way. No commit waits for them, so more that come meanwhile are merged.
struct Dirty {
    fence: u64,
    /// What to bring over next: the stale part of this.
    again: Option<Shown>,
}

/// A part of a resource on a screen.
#[derive(Clone, Copy)]
struct Shown {
    resource: ResourceId,
    src: Rect,
    pitch: u32,
    offset: u32,
}

#[derive(Default)]
struct Scanout {
    display: abi::Display,
    edid: Vec<u8>,
    cursor: Cursor,
    dirty: Option<Dirty>,
}

struct Flip {
    fence: u64,
    crtcs: Vec<usize>,
}

/// A virtio-gpu as a leaf of `drm-core`.
pub struct VirtioGpu<T: Transport, A: BackingAllocator> {
    gpu: Gpu<T, A, Rc<A::Backing>>,
    info: Info,
    scanouts: Vec<Scanout>,
    buffers: HashMap<BufferId, GemBuffer<A::Backing>>,
    framebuffers: HashMap<FramebufferId, FramebufferEntry>,
    pictures: HashMap<ResourceId, Picture>,
    flips: Vec<Flip>,
    /// EDIDs still to come before the change of displays is told.
    edids_due: usize,
    on_failure: Box<dyn FnMut(&virtio::Error)>,
}

impl<T: Transport, A: BackingAllocator> VirtioGpu<T, A> {
    /// Brings the device up and learns what is plugged in. `parent` is the device's directory below `/sys`, `bus_id` its
    /// name for clients. `on_failure` is called when the device is of no more use: the process had better end.
    ///
    /// # Errors
    /// Those of [`virtio`]; a device that does not answer.
    pub fn new(
        transport: T,
        dma: A,
        parent: String,
        bus_id: String,
        on_failure: Box<dyn FnMut(&virtio::Error)>,
    ) -> virtio::Result<Self> {
        let mut gpu = Gpu::new(transport, dma)?;
        let count = gpu.scanouts();
        let edids = if gpu.has_edid() { count } else { 0 };
        gpu.get_display_info();
        (0..edids).for_each(|scanout| gpu.get_edid(scanout));
        let answers = gpu.wait(ANSWER_TIMEOUT, |done| done.len() > edids as usize)?;
        let info = Info { name: "virtio_gpu", desc: "virtio GPU", date: "0", version: (0, 1, 0), bus_id, parent };
        let mut leaf = VirtioGpu {
            gpu,
            info,
            scanouts: (0..count).map(|_| Scanout::default()).collect(),
            buffers: HashMap::new(),
            framebuffers: HashMap::new(),
            pictures: HashMap::new(),
            flips: Vec::new(),
            edids_due: 0,
            on_failure,
        };
        for answer in answers {
            match answer {
                Done::Displays(displays) => leaf.set_displays(&displays),
                Done::Edid(scanout, edid) => leaf.scanouts[scanout as usize].edid = edid,
                Done::Fence(_) | Done::DisplaysChanged => {}
            }
        }
        Ok(leaf)
    }

    fn set_displays(&mut self, displays: &[abi::Display]) {
        for (scanout, display) in self.scanouts.iter_mut().zip(displays) {
            scanout.display = *display;
        }
    }

    /// Shows a CRTC's primary plane as `change` has it. The fence is that of the last command.
    fn show(&mut self, change: &Change, plane: usize, crtc: usize) -> Option<u64> {
        let new = &change.new.planes[plane];
        let fb = new.fb.as_ref()?;
        let resource = self.framebuffers.get(&fb.id)?.resource;
        let src = new.src().intersection(&fb.rect())?;
        let mut clips = change.damage(plane);
        let around = clips.iter().copied().reduce(|a, b| a.union(&b));
        let rescan = change.fb_changed(plane) || change.modeset(crtc) || change.old.planes[plane].src() != new.src();
        let shown = Some((crtc, fb.id, src));
        let picture = self.pictures.get_mut(&resource)?;
        if picture.shown != shown {
            *picture = Picture { stale: Some(src), shown };
        }
        let stale = picture.stale.take();
        if let Some(damage) = around {
            for (&other, picture) in &mut self.pictures {
                if other != resource && picture.shown.is_some_and(|(home, ..)| home == crtc) {
                    picture.stale = Some(picture.stale.map_or(damage, |stale| stale.union(&damage)));
                }
            }
        }
        if let Some(stale) = stale {
            // The stale part is one rectangle, and so are clips that it swallows or that are too many to be worth it.
            clips.retain(|clip| clip.intersection(&stale) != Some(*clip));
            clips.push(stale);
        }
        let area = |rect: &Rect| u64::from(rect.width()) * u64::from(rect.height());
        let flushed = clips.iter().copied().reduce(|a, b| a.union(&b)).or(rescan.then_some(src))?;
        if clips.len() > CLIPS_MAX || clips.iter().map(area).sum::<u64>() > area(&flushed) / 4 * 3 {
            clips = vec![flushed];
        }
        let lines = fb.planes[0];
        let shown = Shown { resource, src, pitch: lines.pitch, offset: lines.offset };
        if change.unpaced
            && !rescan
            && let Some(dirty) = &mut self.scanouts[crtc].dirty
        {
            dirty.again = Some(shown);
            self.pictures.get_mut(&resource)?.stale = Some(flushed);
            return None;
        }
        self.transfer(shown, &clips);
        if rescan {
            self.gpu.set_scanout(crtc as u32, Some((resource, wire(src))));
        }
        let fence = self.gpu.flush_fenced(resource, wire(flushed));
        if change.unpaced {
            self.scanouts[crtc].dirty = Some(Dirty { fence, again: None });
        }
        Some(fence)
    }

    fn transfer(&mut self, shown: Shown, clips: &[Rect]) {
        for clip in clips {
            let line = u64::from(shown.offset) + clip.y1 as u64 * u64::from(shown.pitch);
            self.gpu.transfer(shown.resource, wire(*clip), line + clip.x1 as u64 * 4);
        }
    }

    /// Dirty rectangles are on the screen: those that came meanwhile are next.
    fn dirty_done(&mut self, scanout: usize) {
        let again = self.scanouts[scanout].dirty.take().and_then(|dirty| dirty.again);
        let Some(shown) = again else { return };
        // The resource may be gone by now, shown elsewhere, or brought over by a commit.
        let picture = self.pictures.get_mut(&shown.resource);
        let here =
            picture.filter(|picture| picture.shown.is_some_and(|(crtc, _, src)| (crtc, src) == (scanout, shown.src)));
        let Some(stale) = here.and_then(|picture| picture.stale.take()) else { return };
        self.transfer(shown, &[stale]);
        let fence = self.gpu.flush_fenced(shown.resource, wire(stale));
        self.scanouts[scanout].dirty = Some(Dirty { fence, again: None });
    }

    /// Notes what a cursor plane shows; [`VirtioGpu::pump_cursor`] tells the device.
    fn set_cursor(&mut self, change: &Change, plane: usize, crtc: usize) {
        let new = &change.new.planes[plane];
        let active = new.crtc.is_some_and(|crtc| change.new.crtcs[crtc].active);
        let fb = new.fb.as_ref().filter(|_| active);
        let entry = fb.and_then(|fb| self.framebuffers.get(&fb.id));
        let resource = entry.map(|entry| entry.resource);
        let redrawn = change.fb_changed(plane) || new.damage.is_some();
        let upload = fb.zip(resource).filter(|_| redrawn);
        let cursor = &mut self.scanouts[crtc].cursor;
        if let Some((fb, resource)) = upload {
            cursor.upload = Some((resource, fb.rect(), fb.planes[0].offset.into()));
        } else if resource.is_none() {
            cursor.upload = None;
        }
        cursor.update |= upload.is_some()
            || cursor.resource != resource.map_or(0, |resource| resource.0)
            || (cursor.hot_x, cursor.hot_y) != (new.hotspot_x, new.hotspot_y);
        cursor.moved |= (cursor.x, cursor.y) != (new.crtc_x, new.crtc_y);
        cursor.resource = resource.map_or(0, |resource| resource.0);
        (cursor.x, cursor.y) = (new.crtc_x, new.crtc_y);
        (cursor.hot_x, cursor.hot_y) = (new.hotspot_x, new.hotspot_y);
    }

    /// Tells the device of the newest state of a cursor; moves that found no room are merged in it.
    fn pump_cursor(&mut self, scanout: usize) {
        let cursor = &mut self.scanouts[scanout].cursor;
        if cursor.after.is_none()
            && let Some((resource, rect, offset)) = cursor.upload.take()
            && self.pictures.contains_key(&resource)
        {
            cursor.after = Some(self.gpu.transfer_fenced(resource, wire(rect), offset));
        }
        if cursor.after.is_some() || !(cursor.update || cursor.moved) {
            return;
        }
        let command = abi::UpdateCursor {
            scanout_id: scanout as u32,
            x: cursor.x as u32,
            y: cursor.y as u32,
            resource_id: cursor.resource,
            hot_x: cursor.hot_x as u32,
            hot_y: cursor.hot_y as u32,
            ..Default::default()
        };
        if self.gpu.cursor(command, !cursor.update) {
            (cursor.update, cursor.moved) = (false, false);
        }
    }

    fn done(&mut self, done: Done, events: &mut Vec<Event>) {
        match done {
            Done::Fence(fence) => {
                self.flips.retain(|flip| {
                    let over = flip.fence == fence;
                    if over {
                        events.extend(flip.crtcs.iter().map(|&crtc| Event::FlipDone { crtc }));
                    }
                    !over
                });
                for index in 0..self.scanouts.len() {
                    let scanout = &mut self.scanouts[index];
                    scanout.cursor.after = scanout.cursor.after.filter(|after| *after != fence);
                    if scanout.dirty.as_ref().is_some_and(|dirty| dirty.fence == fence) {
                        self.dirty_done(index);
                    }
                }
            }
            Done::DisplaysChanged => self.gpu.get_display_info(),
            Done::Displays(displays) => {
                self.set_displays(&displays);
                if self.gpu.has_edid() {
                    self.edids_due = self.scanouts.len();
                    (0..self.scanouts.len()).for_each(|scanout| self.gpu.get_edid(scanout as u32));
                } else {
                    events.push(Event::Hotplug);
                }
            }
            Done::Edid(scanout, edid) => {
                self.scanouts[scanout as usize].edid = edid;
                self.edids_due = self.edids_due.saturating_sub(1);
                if self.edids_due == 0 {
                    events.push(Event::Hotplug);
                }
            }
        }
    }

    fn new_resource(&mut self, backing: &A::Backing, width: u32, height: u32) -> ResourceId {
        let resource = self.gpu.create_2d(abi::FORMAT_B8G8R8X8, width, height);
        self.gpu.attach_backing(resource, &backing.segments());
        self.gpu.kick();
        self.pictures.insert(resource, Picture::default());
        resource
    }

    fn drop_resource(&mut self, resource: ResourceId, backing: Rc<A::Backing>) {
        self.pictures.remove(&resource);
        self.gpu.unref(resource, backing);
        self.gpu.kick();
    }
}

fn wire(rect: Rect) -> abi::Rect {
    abi::Rect { x: rect.x1 as u32, y: rect.y1 as u32, width: rect.width(), height: rect.height() }
}

impl<T: Transport, A: BackingAllocator> Driver for VirtioGpu<T, A> {
    fn info(&self) -> Info {
        self.info.clone()
    }

    fn features(&self) -> Features {
        Features {
            min_size: (32, 32),
            max_size: (8192, 8192),
            cursor_size: (64, 64),
            preferred_depth: 0,
            render: true,
            syncobj: true,
            syncobj_timeline: true,
            cursor_hotspot: true,
            ..Features::default()
        }
    }

    fn topology(&self) -> Topology {
        let plane = |kind, format, scanout: usize| PlaneSpec {
            kind,
            possible_crtcs: 1 << scanout,
            formats: vec![format],
            modifiers: Vec::new(),
            damage_clips: kind == PlaneKind::Primary,
            can_scale: false,
            can_position: kind == PlaneKind::Cursor,
        };
        let count = self.scanouts.len();
        let planes =
            |scanout| [plane(PlaneKind::Primary, XRGB8888, scanout), plane(PlaneKind::Cursor, ARGB8888, scanout)];
        let encoder = |scanout: usize| EncoderSpec { kind: ENCODER_VIRTUAL, possible_crtcs: 1 << scanout };
        let edid = self.gpu.has_edid();
        let connector = |scanout| ConnectorSpec { kind: ConnectorKind::Virtual, encoders: vec![scanout], edid };
        Topology {
            crtcs: count,
            planes: (0..count).flat_map(planes).collect(),
            encoders: (0..count).map(encoder).collect(),
            connectors: (0..count).map(connector).collect(),
        }
    }

    fn create_dumb(&mut self, buffer: BufferId, request: &DumbRequest) -> Result<Buffer> {
        if request.bpp != 32 {
            return Err(Errno::EINVAL);
        }
        // A client that makes buffers faster than the device takes them has to wait for it.
        if self.gpu.backlog() > BACKLOG_MAX {
            return Err(Errno::ENOMEM);
        }
        let pitch = request.width.checked_mul(4).ok_or(Errno::EINVAL)?;
        let size = (u64::from(pitch) * u64::from(request.height)).next_multiple_of(4096);
        let len = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
        let backing = self.gpu.dma().alloc_backing(len).map_err(|error| errno(&error))?;
        let fd = backing.to_fd().map_err(|error| errno(&error))?;
        let picture = self.new_resource(&backing, request.width, request.height);
        let (width, height) = (request.width, request.height);
        self.buffers.insert(buffer, GemBuffer { backing: Rc::new(backing), width, height, pitch, picture });
        Ok(Buffer { fd, pitch, size, cache: Cache::WriteBack })
    }

    fn restore_buffer(&mut self, id: BufferId, buffer: &Buffer, request: Option<&DumbRequest>) -> Result<()> {
        let &DumbRequest { width, height, .. } = request.ok_or(Errno::EINVAL)?;
        let fd = buffer.fd.try_clone().map_err(|error| errno(&error))?;
        let len = usize::try_from(buffer.size).map_err(|_| Errno::EINVAL)?;
        let backing = self.gpu.dma().adopt_backing(fd, len).map_err(|error| errno(&error))?;
        let picture = self.new_resource(&backing, width, height);
        self.buffers.insert(id, GemBuffer { backing: Rc::new(backing), width, height, pitch: buffer.pitch, picture });
        Ok(())
    }

    fn destroy_buffer(&mut self, buffer: BufferId) {
        if let Some(gone) = self.buffers.remove(&buffer) {
            self.drop_resource(gone.picture, gone.backing);
        }
    }

    fn create_framebuffer(&mut self, fb: &Framebuffer) -> Result<()> {
        let [lines] = fb.planes[..] else { return Err(Errno::EINVAL) };
        let buffer = self.buffers.get(&lines.buffer).ok_or(Errno::ENOENT)?;
        // The device counts lines by the resource's width: a framebuffer with other lines needs a resource of its own.
        let fits = lines.pitch == buffer.pitch && fb.width <= buffer.width && fb.height <= buffer.height;
        let entry = if fits {
            FramebufferEntry { resource: buffer.picture, own: None }
        } else {
            if !lines.pitch.is_multiple_of(4) {
                return Err(Errno::EINVAL);
            }
            let backing = buffer.backing.clone();
            let resource = self.new_resource(&backing, lines.pitch / 4, fb.height);
            FramebufferEntry { resource, own: Some(lines.buffer) }
        };
        self.framebuffers.insert(fb.id, entry);
        Ok(())
    }

    fn destroy_framebuffer(&mut self, fb: FramebufferId) {
        let Some(FramebufferEntry { resource, own: Some(buffer) }) = self.framebuffers.remove(&fb) else { return };
        if let Some(backing) = self.buffers.get(&buffer).map(|buffer| buffer.backing.clone()) {
            self.drop_resource(resource, backing);
        }
    }

    fn probe(&mut self, connector: usize) -> Probe {
        let scanout = &self.scanouts[connector];
        let abi::Rect { width, height, .. } = scanout.display.r;
        Probe {
            connected: scanout.display.enabled != 0,
            edid: (!scanout.edid.is_empty()).then(|| scanout.edid.clone()),
            preferred: Some(if width == 0 || height == 0 { DEFAULT_SIZE } else { (width, height) }),
            ..Probe::default()
        }
    }

    fn mode_valid(&self, connector: usize, mode: &Mode) -> bool {
        // Of the preferred modes only those near the window's size, whose width an EDID may have rounded.
        let size = self.scanouts[connector].display.r;
        let near = |wanted: u16, have: u32| (have.saturating_sub(16)..=have).contains(&wanted.into());
        mode.kind & TYPE_PREFERRED == 0
            || (u32::from(mode.hdisplay), u32::from(mode.vdisplay)) == DEFAULT_SIZE
            || near(mode.hdisplay, size.width) && near(mode.vdisplay, size.height)
    }

    fn atomic_commit(&mut self, change: &Change) -> Completion {
        let mut last = None;
        for (crtc, old, new) in change.crtcs() {
            if old.active && !new.active {
                last = Some(self.gpu.disable_scanout_fenced(crtc as u32));
            }
        }
        for (plane, old, new) in change.planes() {
            let crtc = plane / 2;
            if plane % 2 == 1 {
                self.set_cursor(change, plane, crtc);
                self.pump_cursor(crtc);
                continue;
            }
            let active = new.visible() && change.new.crtcs[crtc].active;
            let shown = if active { self.show(change, plane, crtc) } else { None };
            let off = !active && old.visible() && change.new.crtcs[crtc].active;
            last = shown.or_else(|| off.then(|| self.gpu.disable_scanout_fenced(crtc as u32))).or(last);
        }
        self.gpu.kick();
        match last {
            Some(fence) if !change.unpaced => {
                let crtcs = change.crtcs().filter(|(_, _, new)| new.active).map(|(crtc, _, _)| crtc).collect();
                self.flips.push(Flip { fence, crtcs });
                Completion::Pending
            }
            _ => Completion::Done,
        }
    }

    fn event_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.gpu.event_fds()
    }

    fn service(&mut self, events: &mut Vec<Event>) {
        let mut done = Vec::new();
        if let Err(error) = self.gpu.service(&mut done) {
            (self.on_failure)(&error);
            // Whoever still runs shall not wait for what never comes.
            let waiting = std::mem::take(&mut self.flips);
            events.extend(waiting.into_iter().flat_map(|flip| flip.crtcs).map(|crtc| Event::FlipDone { crtc }));
        }
        for done in done {
            self.done(done, events);
        }
        (0..self.scanouts.len()).for_each(|scanout| self.pump_cursor(scanout));
        self.gpu.kick();
    }

    fn ioctl_render(&self, nr: u32) -> Option<bool> {
        (ioctl::MAP..=ioctl::CONTEXT_INIT).contains(&nr).then_some(true)
    }

    fn ioctl(&mut self, call: &mut DriverIoctl<'_>) -> std::result::Result<i32, IoctlError> {
        match call.nr {
            ioctl::GETPARAM => {
                let Some((param, at)) = call.data.split_first_chunk::<8>() else { return Err(Errno::EINVAL.into()) };
                let (param, at) =
                    (u64::from_ne_bytes(*param), at.first_chunk().map_or(0, |at| u64::from_ne_bytes(*at)));
                if !ioctl::PARAMS.contains(&param) {
                    return Err(Errno::EINVAL.into());
                }
                // All others are features of three-dimensional devices.
                let value = i32::from(param == ioctl::PARAM_CAPSET_QUERY_FIX);
                call.memory.write(at, &value.to_ne_bytes())?;
                Ok(0)
            }
            ioctl::RESOURCE_CREATE_BLOB | ioctl::CONTEXT_INIT => Err(Errno::EINVAL.into()),
            // GET_CAPS, EXECBUFFER and TRANSFER_FROM_HOST as Linux; the others need handles that the core keeps to itself.
            _ => Err(Errno::ENOSYS.into()),
        }
    }
}

/// The errno in an error, `ENOMEM` if there is none.
fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().and_then(|raw| Errno::from_raw(raw.cast_unsigned())).unwrap_or(Errno::ENOMEM)
}

#[cfg(test)]
#[path = "leaf_tests.rs"]
mod tests;
