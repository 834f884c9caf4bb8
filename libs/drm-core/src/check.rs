//! Changing a state and checking it: the rules that hold for every driver (`drm_atomic.c`, `drm_atomic_helper.c`).

use std::rc::Rc;

use linux_uapi::Errno;

use crate::card::Card;
use crate::driver::PlaneSpec;
use crate::state::{Change, ConnectorState, CrtcState, Framebuffer, PlaneState, Rect, State};

/// A change that is being put together (`struct drm_atomic_state`): what is touched is part of it.
#[derive(Debug)]
pub(crate) struct Update {
    old: State,
    new: State,
    pub(crate) crtcs: u32,
    planes: u64,
    connectors: u32,
    pub(crate) allow_modeset: bool,
    /// Cursor moves and dirty rectangles wait for no frame.
    pub(crate) unpaced: bool,
}

impl Update {
    /// Nothing changed yet.
    pub(crate) fn new(state: &State) -> Update {
        Update {
            old: state.clone(),
            new: state.clone(),
            crtcs: 0,
            planes: 0,
            connectors: 0,
            allow_modeset: true,
            unpaced: false,
        }
    }

    fn touch_crtc(&mut self, crtc: Option<usize>) {
        if let Some(crtc) = crtc {
            self.crtcs |= 1 << crtc;
        }
    }

    /// A plane's state after, which makes it and its CRTC part of the change.
    pub(crate) fn plane(&mut self, plane: usize) -> &mut PlaneState {
        self.planes |= 1 << plane;
        self.touch_crtc(self.new.planes[plane].crtc);
        &mut self.new.planes[plane]
    }

    /// The state of a plane after, unchanged.
    pub(crate) fn peek_plane(&self, plane: usize) -> &PlaneState {
        &self.new.planes[plane]
    }

    pub(crate) fn crtc(&mut self, crtc: usize) -> &mut CrtcState {
        self.crtcs |= 1 << crtc;
        &mut self.new.crtcs[crtc]
    }

    pub(crate) fn connector(&mut self, connector: usize) -> &mut ConnectorState {
        self.connectors |= 1 << connector;
        self.touch_crtc(self.new.connectors[connector].crtc);
        &mut self.new.connectors[connector]
    }

    pub(crate) fn peek_connector(&self, connector: usize) -> &ConnectorState {
        &self.new.connectors[connector]
    }

    pub(crate) fn set_plane_crtc(&mut self, plane: usize, crtc: Option<usize>) {
        self.plane(plane).crtc = crtc;
        self.touch_crtc(crtc);
    }

    /// Shows nothing on a plane.
    pub(crate) fn disable_plane(&mut self, plane: usize) {
        let state = self.plane(plane);
        *state = PlaneState { hotspot_x: state.hotspot_x, hotspot_y: state.hotspot_y, ..PlaneState::default() };
    }

    /// Shows all of a framebuffer's rectangle at a place, unscaled.
    pub(crate) fn show(&mut self, plane: usize, crtc: usize, fb: Rc<Framebuffer>, src: (u32, u32), dst: Rect) {
        self.set_plane_crtc(plane, Some(crtc));
        let state = self.plane(plane);
        state.fb = Some(fb);
        (state.crtc_x, state.crtc_y, state.crtc_w, state.crtc_h) = (dst.x1, dst.y1, dst.width(), dst.height());
        (state.src_x, state.src_y) = (src.0 << 16, src.1 << 16);
        (state.src_w, state.src_h) = (dst.width() << 16, dst.height() << 16);
    }

    pub(crate) fn set_connector_crtc(&mut self, connector: usize, crtc: Option<usize>) {
        self.connector(connector).crtc = crtc;
        self.touch_crtc(crtc);
    }

    /// Takes all connectors off a CRTC.
    pub(crate) fn clear_connectors(&mut self, crtc: usize) {
        for connector in 0..self.new.connectors.len() {
            if self.new.connectors[connector].crtc == Some(crtc) {
                self.set_connector_crtc(connector, None);
            }
        }
    }
}

fn bits(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |bit| mask & 1 << bit != 0)
}

impl Card {
    /// Checks an update against all rules and the driver's. It has no effect.
    pub(crate) fn check(&self, mut update: Update) -> Result<Change, Errno> {
        for plane in (0..update.new.planes.len()).filter(|plane| update.planes & 1 << plane != 0) {
            let (old, new) = (&update.old.planes[plane], &update.new.planes[plane]);
            check_plane(&self.topology.planes[plane], old, new)?;
        }
        for state in &mut update.new.crtcs {
            state.enable = state.mode.is_some();
            if state.active && !state.enable {
                return Err(Errno::EINVAL);
            }
        }
        let mut modesets = 0;
        for crtc in bits(update.crtcs) {
            let (old, new) = (&update.old.crtcs[crtc], &update.new.crtcs[crtc]);
            if old.mode != new.mode || old.active != new.active {
                modesets |= 1 << crtc;
            }
        }
        modesets |= self.route(&mut update)?;
        update.crtcs |= modesets;
        for crtc in bits(update.crtcs) {
            let lit = update.new.connectors.iter().any(|state| state.crtc == Some(crtc));
            if update.new.crtcs[crtc].enable != lit {
                return Err(Errno::EINVAL);
            }
        }
        if modesets != 0 && !update.allow_modeset {
            return Err(Errno::EINVAL);
        }
        for plane in 0..update.new.planes.len() {
            let on = |state: &State| state.planes[plane].crtc.is_some_and(|crtc| modesets & 1 << crtc != 0);
            if on(&update.old) || on(&update.new) {
                update.planes |= 1 << plane;
            }
            if update.planes & 1 << plane != 0 {
                let state = &update.new.planes[plane];
                let mode = state.crtc.and_then(|crtc| update.new.crtcs[crtc].mode.as_ref());
                let clip =
                    mode.map_or(Rect::default(), |mode| Rect::new(0, 0, mode.hdisplay.into(), mode.vdisplay.into()));
                check_place(&self.topology.planes[plane], state, clip)?;
            }
        }
        let change = Change {
            old: update.old,
            new: update.new,
            crtcs: update.crtcs,
            modesets,
            planes: update.planes,
            unpaced: update.unpaced && modesets == 0,
        };
        self.driver.atomic_check(&change)?;
        Ok(change)
    }

    /// Finds encoders for connectors; the CRTCs that are set anew for it (`update_connector_routing`).
    fn route(&self, update: &mut Update) -> Result<u32, Errno> {
        let mut modesets = 0;
        for connector in bits(update.connectors) {
            let (old, new) = (&update.old.connectors[connector], &update.new.connectors[connector]);
            if old.crtc != new.crtc || old.link_bad != new.link_bad {
                for crtc in [old.crtc, new.crtc].into_iter().flatten() {
                    modesets |= 1 << crtc;
                }
            }
            if new.crtc.is_none() {
                update.new.connectors[connector].encoder = None;
            }
        }
        for connector in bits(update.connectors) {
            let Some(crtc) = update.new.connectors[connector].crtc else { continue };
            let free = |encoder: usize| {
                let taken =
                    |(other, state): (usize, &ConnectorState)| other != connector && state.encoder == Some(encoder);
                self.topology.encoders[encoder].possible_crtcs & 1 << crtc != 0
                    && !update.new.connectors.iter().enumerate().any(taken)
            };
            let present = update.new.connectors[connector].encoder.filter(|&encoder| free(encoder));
            let encoder = present.or_else(|| {
                self.topology.connectors[connector].encoders.iter().copied().find(|&encoder| free(encoder))
            });
            update.new.connectors[connector].encoder = Some(encoder.ok_or(Errno::EINVAL)?);
        }
        Ok(modesets)
    }
}

/// `drm_atomic_plane_check`.
fn check_plane(spec: &PlaneSpec, old: &PlaneState, new: &PlaneState) -> Result<(), Errno> {
    let (crtc, fb) = match (new.crtc, &new.fb) {
        (None, None) => return Ok(()),
        (Some(crtc), Some(fb)) => (crtc, fb),
        _ => return Err(Errno::EINVAL),
    };
    if spec.possible_crtcs & 1 << crtc == 0 {
        return Err(Errno::EINVAL);
    }
    let modifier = spec.modifiers.is_empty() || spec.modifiers.contains(&fb.modifier);
    if !spec.formats.contains(&fb.format) || !modifier {
        return Err(Errno::EINVAL);
    }
    check_rects(new, fb)?;
    if let Some(clips) = &new.damage {
        let outside = |clip: &Rect| {
            clip.is_empty() || clip.x1 < 0 || clip.y1 < 0 || clip.x2 as u32 > fb.width || clip.y2 as u32 > fb.height
        };
        if clips.iter().any(outside) {
            return Err(Errno::EINVAL);
        }
    }
    // A plane goes from one CRTC to another by way of none.
    if old.crtc.is_some_and(|old| old != crtc) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// The rectangles are within what can be computed with, and the source within the framebuffer.
fn check_rects(new: &PlaneState, fb: &Framebuffer) -> Result<(), Errno> {
    let max = i32::MAX as u32;
    let fits = |at: i32, size: u32| size <= max && i64::from(at) + i64::from(size) <= i64::from(i32::MAX);
    if !fits(new.crtc_x, new.crtc_w) || !fits(new.crtc_y, new.crtc_h) {
        return Err(Errno::ERANGE);
    }
    let within = |at: u32, size: u32, whole: u32| u64::from(at) + u64::from(size) <= u64::from(whole) << 16;
    if !within(new.src_x, new.src_w, fb.width) || !within(new.src_y, new.src_h, fb.height) {
        return Err(Errno::ENOSPC);
    }
    Ok(())
}

/// `drm_atomic_helper_check_plane_state`: scaling, and whether it covers the CRTC. `clip` is the CRTC's picture.
fn check_place(spec: &PlaneSpec, state: &PlaneState, clip: Rect) -> Result<(), Errno> {
    if !state.visible() {
        return Ok(());
    }
    let scaled = |src: u32, dst: u32| dst != 0 && u64::from(src) != u64::from(dst) << 16;
    if !spec.can_scale && (scaled(state.src_w, state.crtc_w) || scaled(state.src_h, state.crtc_h)) {
        return Err(Errno::ERANGE);
    }
    match state.dst().intersection(&clip) {
        Some(shown) if !spec.can_position && shown != clip => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}
