//! The atomic interface: `DRM_IOCTL_MODE_ATOMIC`, and properties set one at a time (`drm_atomic_uapi.c`).
//!
//! The ioctl is read whole, decoded into an [`Update`], checked, and only then has an effect; out fences and events are
//! prepared between check and effect, so that nothing is left of it when they fail.

use std::os::fd::AsFd;
use std::rc::Rc;

use linux_uapi::Errno;
use scheme::Cx;
use zerocopy::FromBytes;

use crate::card::{Card, Object};
use crate::check::Update;
use crate::commit::Signal;
use crate::error::{Error, Outcome, Wake};
use crate::fence::Fence;
use crate::file::{Fh, limits};
use crate::object::Blob;
use crate::property::{Key, Values};
use crate::state::Rect;
use crate::uapi::*;

/// What an atomic request asks for beside the state.
#[derive(Debug, Default)]
struct Extras {
    in_fences: Vec<(usize, Rc<Fence>)>,
    /// CRTC and where its out fence's descriptor goes.
    out_fences: Vec<(usize, u64)>,
    vrr: Vec<(usize, bool)>,
}

impl Card {
    /// `DRM_IOCTL_MODE_ATOMIC`.
    pub(crate) fn atomic(&mut self, cx: &Cx<'_>, fh: Fh, request: &mut Atomic) -> Outcome<i32> {
        let flags = request.flags;
        let test = flags & DRM_MODE_ATOMIC_TEST_ONLY != 0;
        let event = flags & DRM_MODE_PAGE_FLIP_EVENT != 0;
        if !self.file(fh)?.caps.atomic
            || flags & !DRM_MODE_ATOMIC_FLAGS != 0
            || request.reserved != 0
            // No card here flips in the middle of a frame.
            || flags & DRM_MODE_PAGE_FLIP_ASYNC != 0
            || test && event
        {
            return Err(Errno::EINVAL.into());
        }
        let mut update = Update::new(&self.state);
        update.allow_modeset = flags & DRM_MODE_ATOMIC_ALLOW_MODESET != 0;
        let mut extras = Extras::default();
        self.decode(cx, fh, request, &mut update, &mut extras)?;

        // What may signal is what the client itself touched; a check may add to it.
        let asked = update.crtcs;
        let change = self.check(update)?;
        if event && asked == 0 {
            return Err(Errno::EINVAL.into());
        }
        for crtc in (0..self.crtcs.len()).filter(|crtc| asked & 1 << crtc != 0) {
            // Nothing ever ends on a CRTC that is off before and after.
            let off = !change.old.crtcs[crtc].active && !change.new.crtcs[crtc].active;
            let signals = event || extras.out_fences.iter().any(|(fence, _)| *fence == crtc);
            if off && signals {
                return Err(Errno::EINVAL.into());
            }
        }
        if test {
            return Ok(0);
        }
        let nonblock = flags & DRM_MODE_ATOMIC_NONBLOCK != 0;
        let fences: Vec<Rc<Fence>> = extras.in_fences.iter().map(|(_, fence)| Rc::clone(fence)).collect();
        self.wait_turn(change.crtcs, nonblock)?;
        if !nonblock && fences.iter().any(|fence| !fence.signalled()) {
            let fences = fences.into_iter().filter(|fence| !fence.signalled()).collect();
            return Err(Error::Park(Wake { fences, ..Wake::default() }));
        }
        let signals = self.prepare_signals(cx, fh, request, asked, event, &extras)?;
        for (crtc, on) in extras.vrr {
            self.crtcs[crtc].vrr_enabled = on;
        }
        match self.submit(change, signals, fences) {
            Some(flight) if !nonblock => Err(Error::Commit(flight)),
            _ => Ok(0),
        }
    }

    /// A commit waits for the one before it on its CRTCs, or is refused.
    pub(crate) fn wait_turn(&self, crtcs: u32, nonblock: bool) -> Outcome<()> {
        if self.busy_crtcs() & crtcs == 0 {
            return Ok(());
        }
        if nonblock { Err(Errno::EBUSY.into()) } else { Err(Error::Park(Wake { crtcs, ..Wake::default() })) }
    }

    /// Promises events and makes out fences; what was done is undone if one fails.
    fn prepare_signals(
        &mut self,
        cx: &Cx<'_>,
        fh: Fh,
        request: &Atomic,
        crtcs: u32,
        event: bool,
        extras: &Extras,
    ) -> Outcome<Vec<Signal>> {
        let mut signals: Vec<Signal> = Vec::new();
        let mut prepare = || -> Outcome<()> {
            for crtc in (0..self.crtcs.len()).filter(|crtc| crtcs & 1 << crtc != 0) {
                let mut signal = Signal { crtc, ..Signal::default() };
                if event {
                    self.file_mut(fh)?.reserve_event(size_of::<EventVblank>())?;
                    signal.event = Some((fh, request.user_data));
                }
                signals.push(signal);
            }
            for &(crtc, address) in &extras.out_fences {
                let (fd, fence) = self.fence_source.create()?;
                if let Some(signal) = signals.iter_mut().find(|signal| signal.crtc == crtc) {
                    signal.fence = Some(fence);
                }
                let number = cx.channel.install_fd(cx.unique, fd.as_fd(), true)?;
                cx.write_value(address, &number)?;
            }
            Ok(())
        };
        match prepare() {
            Ok(()) => Ok(signals),
            Err(error) => {
                for signal in signals {
                    if signal.event.is_some() {
                        self.file_mut(fh)?.cancel_event(size_of::<EventVblank>());
                    }
                    if let Some(fence) = signal.fence {
                        self.fence_source.signal(fence);
                    }
                }
                Err(error)
            }
        }
    }

    /// Reads the request's four arrays and puts each property into the update.
    fn decode(
        &mut self,
        cx: &Cx<'_>,
        fh: Fh,
        request: &Atomic,
        update: &mut Update,
        extras: &mut Extras,
    ) -> Outcome<()> {
        if request.count_objs > limits::ATOMIC {
            return Err(Errno::EINVAL.into());
        }
        let count = request.count_objs as usize;
        let objects: Vec<u32> = cx.read_slice(request.objs_ptr, count)?;
        let counts: Vec<u32> = cx.read_slice(request.count_props_ptr, count)?;
        let mut at = 0;
        for (&id, &count) in objects.iter().zip(&counts) {
            let object = self.object(fh, id)?;
            let keys = self.keys_of(object).map_err(|_| Errno::ENOENT)?.to_vec();
            if u64::from(count) + at > u64::from(limits::ATOMIC) {
                return Err(Errno::EINVAL.into());
            }
            let ids: Vec<u32> = cx.read_slice(request.props_ptr.wrapping_add(at * 4), count as usize)?;
            let values: Vec<u64> = cx.read_slice(request.prop_values_ptr.wrapping_add(at * 8), count as usize)?;
            at += u64::from(count);
            for (&id, &value) in ids.iter().zip(&values) {
                let key = keys.iter().copied().find(|&key| self.property(key).is_some_and(|p| p.id == id));
                let key = key.ok_or(Errno::ENOENT)?;
                self.set_in_update(cx, fh, object, key, value, update, extras)?;
            }
        }
        Ok(())
    }

    /// `drm_property_change_valid_get`: the property takes this value.
    fn check_value(&self, key: Key, value: u64) -> Result<(), Errno> {
        let property = self.property(key).ok_or(Errno::ENOENT)?;
        let good = !property.immutable
            && match property.values {
                Values::Range(min, max) => (min..=max).contains(&value),
                Values::Signed(min, max) => (min..=max).contains(&(value as i64)),
                Values::Enum(values) => values.iter().any(|&(known, _)| known == value),
                Values::Blob => value == 0 || u32::try_from(value).is_ok_and(|id| self.blob(id).is_ok()),
                Values::Object(kind) => {
                    value == 0
                        || u32::try_from(value).is_ok_and(|id| match kind {
                            DRM_MODE_OBJECT_FB => self.framebuffer(id).is_ok(),
                            _ => self.objects.get(&id).is_some_and(|object| object.kind() == kind),
                        })
                }
            };
        if good { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// The CRTC that a value names; one that is not lent to the client is forbidden.
    fn crtc_value(&self, fh: Fh, value: u64) -> Result<Option<usize>, Errno> {
        if value == 0 {
            return Ok(None);
        }
        self.crtc_by_id(fh, value as u32).map(Some).map_err(|_| Errno::EACCES)
    }

    fn blob_value(&self, value: u64) -> Result<Option<Rc<Blob>>, Errno> {
        if value == 0 { Ok(None) } else { self.blob(value as u32).map(Some) }
    }

    /// Puts one property of an atomic request into the update.
    #[expect(
        clippy::too_many_arguments,
        reason = "the context of an ioctl, the property, and the two places it may go"
    )]
    fn set_in_update(
        &mut self,
        cx: &Cx<'_>,
        fh: Fh,
        object: Object,
        key: Key,
        value: u64,
        update: &mut Update,
        extras: &mut Extras,
    ) -> Outcome<()> {
        self.check_value(key, value)?;
        match (object, key) {
            (Object::Crtc(crtc), Key::VrrEnabled) => {
                update.crtc(crtc);
                extras.vrr.push((crtc, value != 0));
            }
            (Object::Crtc(crtc), Key::OutFencePtr) => {
                update.crtc(crtc);
                if value != 0 {
                    cx.write_value(value, &-1_i32)?;
                    extras.out_fences.retain(|(other, _)| *other != crtc);
                    extras.out_fences.push((crtc, value));
                }
            }
            (Object::Plane(plane), Key::InFenceFd) => {
                update.plane(plane);
                if value as i64 != -1 {
                    if extras.in_fences.iter().any(|(other, _)| *other == plane) {
                        return Err(Errno::EINVAL.into());
                    }
                    extras.in_fences.push((plane, self.grab_fence(cx, value as i32)?));
                }
            }
            _ => self.set_state(fh, object, key, value, update)?,
        }
        Ok(())
    }

    /// Puts a property that is nothing but state into an update (`drm_atomic_set_property`).
    fn set_state(&self, fh: Fh, object: Object, key: Key, value: u64, update: &mut Update) -> Result<(), Errno> {
        match (object, key) {
            (Object::Connector(connector), Key::CrtcId) => {
                update.set_connector_crtc(connector, self.crtc_value(fh, value)?);
            }
            // A client may say that a bad link is good, which sets the mode anew; never the other way round.
            (Object::Connector(connector), Key::LinkStatus) => {
                update.connector(connector).link_bad &= value == DRM_MODE_LINK_STATUS_BAD;
            }
            (Object::Crtc(crtc), Key::Active) => update.crtc(crtc).active = value != 0,
            (Object::Crtc(crtc), Key::ModeId) => {
                let blob = self.blob_value(value)?;
                let mode = blob.as_deref().map(mode_of).transpose()?;
                let state = update.crtc(crtc);
                (state.mode, state.mode_blob) = (mode, blob);
            }
            (Object::Crtc(crtc), Key::GammaLut) => {
                let blob = self.blob_value(value)?;
                let gamma = blob.as_deref().map(|blob| gamma_of(blob, self.features.gamma_size)).transpose()?;
                let state = update.crtc(crtc);
                (state.gamma, state.gamma_blob) = (gamma, blob);
            }
            (Object::Plane(plane), Key::FbId) => {
                let fb = if value == 0 { None } else { Some(self.framebuffer(value as u32)?) };
                update.plane(plane).fb = fb;
            }
            (Object::Plane(plane), Key::CrtcId) => update.set_plane_crtc(plane, self.crtc_value(fh, value)?),
            (Object::Plane(plane), Key::FbDamageClips) => {
                let clips = self.blob_value(value)?.map(|blob| damage_of(&blob)).transpose()?;
                update.plane(plane).damage = clips;
            }
            (Object::Plane(plane), _) => {
                let state = update.plane(plane);
                let signed = value as i64 as i32;
                match key {
                    Key::CrtcX => state.crtc_x = signed,
                    Key::CrtcY => state.crtc_y = signed,
                    Key::CrtcW => state.crtc_w = value as u32,
                    Key::CrtcH => state.crtc_h = value as u32,
                    Key::SrcX => state.src_x = value as u32,
                    Key::SrcY => state.src_y = value as u32,
                    Key::SrcW => state.src_w = value as u32,
                    Key::SrcH => state.src_h = value as u32,
                    Key::HotspotX => state.hotspot_x = signed,
                    Key::HotspotY => state.hotspot_y = signed,
                    _ => return Err(Errno::EINVAL),
                }
            }
            // Connectors' DPMS is for the legacy interface; here it is the CRTC's ACTIVE.
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// `DRM_IOCTL_MODE_OBJ_SETPROPERTY`, and `DRM_IOCTL_MODE_SETPROPERTY` of a connector.
    pub(crate) fn set_property(&mut self, fh: Fh, id: u32, kind: u32, property: u32, value: u64) -> Outcome<i32> {
        let object = self.typed_object(fh, id, kind)?;
        let of_id = |key: &Key| self.property(*key).is_some_and(|p| p.id == property);
        let key = self.keys_of(object)?.iter().copied().find(of_id).ok_or(Errno::EINVAL)?;
        self.check_value(key, value)?;
        let mut update = Update::new(&self.state);
        match (object, key) {
            (Object::Connector(connector), Key::Dpms) => {
                self.set_dpms(connector, value, &mut update);
                if update.crtcs == 0 {
                    return Ok(0);
                }
            }
            (Object::Crtc(crtc), Key::VrrEnabled) => {
                self.crtcs[crtc].vrr_enabled = value != 0;
                return Ok(0);
            }
            _ => self.set_state(fh, object, key, value, &mut update)?,
        }
        self.commit_waiting(update)
    }
}

/// The mode in a blob (`drm_atomic_set_mode_prop_for_crtc`).
fn mode_of(blob: &Blob) -> Result<Mode, Errno> {
    let mode = Mode::read_from_bytes(&blob.data).map_err(|_| Errno::EINVAL)?;
    mode.checked()
}

/// The table in a `GAMMA_LUT` blob.
fn gamma_of(blob: &Blob, size: u32) -> Result<Rc<[[u16; 3]]>, Errno> {
    if blob.data.len() != size as usize * size_of::<ColorLut>() {
        return Err(Errno::EINVAL);
    }
    let entry = |bytes: &[u8]| {
        let entry = ColorLut::read_from_bytes(bytes).map_err(|_| Errno::EINVAL)?;
        Ok([entry.red, entry.green, entry.blue])
    };
    blob.data.chunks_exact(size_of::<ColorLut>()).map(entry).collect()
}

/// The rectangles in an `FB_DAMAGE_CLIPS` blob.
fn damage_of(blob: &Blob) -> Result<Rc<[Rect]>, Errno> {
    if !blob.data.len().is_multiple_of(size_of::<ModeRect>()) {
        return Err(Errno::EINVAL);
    }
    let rect = |bytes: &[u8]| {
        let clip = ModeRect::read_from_bytes(bytes).map_err(|_| Errno::EINVAL)?;
        Ok(Rect { x1: clip.x1, y1: clip.y1, x2: clip.x2, y2: clip.y2 })
    };
    blob.data.chunks_exact(size_of::<ModeRect>()).map(rect).collect()
}
