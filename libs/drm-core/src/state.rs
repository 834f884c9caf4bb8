//! The state of a card's mode objects, as values: what is shown, and what a commit changes.
//!
//! A [`State`] is small (a few dozen words a plane) and is cloned for every check; framebuffers and blobs are shared. So a
//! refused or tested change is just dropped, and a commit that waits for a fence owns all that it needs.

use std::rc::Rc;

use crate::driver::{BufferId, FramebufferId};
use crate::object::{Blob, Hold};
use crate::uapi::Mode;

/// A rectangle, the right and lower edge excluded, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rect {
    /// Left edge.
    pub x1: i32,
    /// Upper edge.
    pub y1: i32,
    /// Right edge, excluded.
    pub x2: i32,
    /// Lower edge, excluded.
    pub y2: i32,
}

impl Rect {
    /// A rectangle from its corner and size.
    pub fn new(x: i32, y: i32, width: u32, height: u32) -> Rect {
        let end = |start: i32, size: u32| (i64::from(start) + i64::from(size)).min(i64::from(i32::MAX)) as i32;
        Rect { x1: x, y1: y, x2: end(x, width), y2: end(y, height) }
    }

    /// Width in pixels, 0 if empty.
    pub fn width(&self) -> u32 {
        (i64::from(self.x2) - i64::from(self.x1)).max(0) as u32
    }

    /// Height in pixels, 0 if empty.
    pub fn height(&self) -> u32 {
        (i64::from(self.y2) - i64::from(self.y1)).max(0) as u32
    }

    /// It has no pixel.
    pub fn is_empty(&self) -> bool {
        self.x1 >= self.x2 || self.y1 >= self.y2
    }

    /// What both have in common.
    pub fn intersection(&self, other: &Rect) -> Option<Rect> {
        let both = Rect {
            x1: self.x1.max(other.x1),
            y1: self.y1.max(other.y1),
            x2: self.x2.min(other.x2),
            y2: self.y2.min(other.y2),
        };
        (!both.is_empty()).then_some(both)
    }

    /// The smallest rectangle around both.
    pub fn union(&self, other: &Rect) -> Rect {
        Rect {
            x1: self.x1.min(other.x1),
            y1: self.y1.min(other.y1),
            x2: self.x2.max(other.x2),
            y2: self.y2.max(other.y2),
        }
    }
}

/// A framebuffer: how pixels lie in one or more buffers. It never changes.
#[derive(Debug)]
pub struct Framebuffer {
    /// Its name to the driver.
    pub id: FramebufferId,
    /// Pixels a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// `DRM_FORMAT_*`.
    pub format: u32,
    /// Modifier; linear if the client gave none.
    pub modifier: u64,
    /// Memory planes, one for packed formats.
    pub planes: Vec<FramebufferPlane>,
    /// What it keeps alive, and whom to tell when it goes.
    pub(crate) hold: Hold,
}

impl Framebuffer {
    /// A framebuffer that no client has: for a driver's own use and its tests.
    pub fn new(
        id: FramebufferId,
        width: u32,
        height: u32,
        format: u32,
        modifier: u64,
        planes: Vec<FramebufferPlane>,
    ) -> Framebuffer {
        Framebuffer { id, width, height, format, modifier, planes, hold: Hold::default() }
    }

    /// The whole of it.
    pub fn rect(&self) -> Rect {
        Rect::new(0, 0, self.width, self.height)
    }
}

/// A framebuffer's memory plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramebufferPlane {
    /// The buffer it lies in.
    pub buffer: BufferId,
    /// Bytes from a line to the next.
    pub pitch: u32,
    /// Bytes before the first line.
    pub offset: u32,
}

/// A plane's state.
#[derive(Clone, Debug, Default)]
pub struct PlaneState {
    /// The CRTC that shows it. `Some` exactly when `fb` is.
    pub crtc: Option<usize>,
    /// What it shows.
    pub fb: Option<Rc<Framebuffer>>,
    /// Where on the CRTC.
    pub crtc_x: i32,
    /// See `crtc_x`.
    pub crtc_y: i32,
    /// Size on the CRTC.
    pub crtc_w: u32,
    /// See `crtc_w`.
    pub crtc_h: u32,
    /// Which part of the framebuffer, in 1/65536 pixels.
    pub src_x: u32,
    /// See `src_x`.
    pub src_y: u32,
    /// See `src_x`.
    pub src_w: u32,
    /// See `src_x`.
    pub src_h: u32,
    /// Cursor: the point of the picture that points.
    pub hotspot_x: i32,
    /// See `hotspot_x`.
    pub hotspot_y: i32,
    /// `FB_DAMAGE_CLIPS` of this commit, in framebuffer pixels. It is of one commit only.
    pub damage: Option<Rc<[Rect]>>,
}

impl PlaneState {
    /// The part of the framebuffer that is shown, in whole pixels (outwards).
    pub fn src(&self) -> Rect {
        let end = |at: u32, size: u32| (u64::from(at) + u64::from(size)).div_ceil(65536).min(i32::MAX as u64) as i32;
        Rect {
            x1: (self.src_x >> 16) as i32,
            y1: (self.src_y >> 16) as i32,
            x2: end(self.src_x, self.src_w),
            y2: end(self.src_y, self.src_h),
        }
    }

    /// Where it lies on the CRTC.
    pub fn dst(&self) -> Rect {
        Rect::new(self.crtc_x, self.crtc_y, self.crtc_w, self.crtc_h)
    }

    /// It shows something.
    pub fn visible(&self) -> bool {
        self.crtc.is_some() && self.fb.is_some()
    }
}

/// A CRTC's state.
#[derive(Clone, Debug, Default)]
pub struct CrtcState {
    /// It has a mode and is set up. Without `active` it sleeps (DPMS off).
    pub enable: bool,
    /// It scans out.
    pub active: bool,
    /// Its mode. `Some` exactly when `enable`.
    pub mode: Option<Mode>,
    /// Gamma table: red, green, blue a step; `None` is the identity.
    pub gamma: Option<Rc<[[u16; 3]]>>,
    /// What `MODE_ID` names.
    pub(crate) mode_blob: Option<Rc<Blob>>,
    /// What `GAMMA_LUT` names.
    pub(crate) gamma_blob: Option<Rc<Blob>>,
}

/// A connector's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectorState {
    /// The CRTC that feeds it.
    pub crtc: Option<usize>,
    /// The encoder between, chosen by the core.
    pub encoder: Option<usize>,
    /// `link-status` is bad: a modeset is due.
    pub link_bad: bool,
}

/// The state of all mode objects, by index.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// CRTCs.
    pub crtcs: Vec<CrtcState>,
    /// Planes.
    pub planes: Vec<PlaneState>,
    /// Connectors.
    pub connectors: Vec<ConnectorState>,
}

/// A change from one state to another: what is checked, and what is committed.
#[derive(Clone, Debug)]
pub struct Change {
    /// Before.
    pub old: State,
    /// After.
    pub new: State,
    /// Bit n: CRTC n, or a plane or connector on it, is part of the change.
    pub crtcs: u32,
    /// Bit n: CRTC n is set anew (`drm_atomic_crtc_needs_modeset`): mode, connectors or activity change.
    pub modesets: u32,
    /// Bit n: plane n is part of the change.
    pub planes: u64,
    /// No flip to wait for: a cursor move, dirty rectangles, or a framebuffer that was removed.
    pub unpaced: bool,
}

impl Change {
    /// The planes of the change: index, state before, state after.
    pub fn planes(&self) -> impl Iterator<Item = (usize, &PlaneState, &PlaneState)> {
        (0..self.new.planes.len())
            .filter(|&plane| self.planes & 1 << plane != 0)
            .map(|plane| (plane, &self.old.planes[plane], &self.new.planes[plane]))
    }

    /// The CRTCs of the change: index, state before, state after.
    pub fn crtcs(&self) -> impl Iterator<Item = (usize, &CrtcState, &CrtcState)> {
        (0..self.new.crtcs.len())
            .filter(|&crtc| self.crtcs & 1 << crtc != 0)
            .map(|crtc| (crtc, &self.old.crtcs[crtc], &self.new.crtcs[crtc]))
    }

    /// Whether this CRTC is set anew.
    pub fn modeset(&self, crtc: usize) -> bool {
        self.modesets & 1 << crtc != 0
    }

    /// A plane shows another framebuffer than before. A driver that keeps a copy of each framebuffer has to bring the new
    /// one's over whole: damage clips tell of the picture, not of the buffer.
    pub fn fb_changed(&self, plane: usize) -> bool {
        let id = |state: &State| state.planes[plane].fb.as_ref().map(|fb| fb.id);
        id(&self.old) != id(&self.new)
    }

    /// What changed of a plane's picture, in framebuffer pixels: the damage clips within the source, or the whole source if
    /// there are none, the source moved, or the CRTC is set anew (`drm_atomic_helper_damage_iter`). Empty if nothing shows.
    pub fn damage(&self, plane: usize) -> Vec<Rect> {
        let (old, new) = (&self.old.planes[plane], &self.new.planes[plane]);
        let (Some(fb), Some(crtc)) = (&new.fb, new.crtc) else { return Vec::new() };
        let Some(whole) = new.src().intersection(&fb.rect()) else { return Vec::new() };
        match &new.damage {
            Some(clips) if old.visible() && old.src() == new.src() && !self.modeset(crtc) => {
                clips.iter().filter_map(|clip| clip.intersection(&whole)).collect()
            }
            _ => vec![whole],
        }
    }

    /// The smallest rectangle around [`Change::damage`].
    pub fn merged_damage(&self, plane: usize) -> Option<Rect> {
        self.damage(plane).into_iter().reduce(|a, b| a.union(&b))
    }
}
