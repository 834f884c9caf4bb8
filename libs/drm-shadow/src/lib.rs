//! The common half of display drivers whose card is a frame buffer and nothing more.
//!
//! Clients draw in ordinary memory, and what changed is copied to the frame buffer at each commit: reading and writing video
//! memory in small pieces is slow, copying whole lines to it is not, and a client's buffer can be of any number and size. A
//! driver implements [`Screen`] (where its frame buffer is, its modes); [`Shadow`] makes a leaf of `drm-core` of it, with one
//! CRTC, one primary plane, one encoder and one connector.
//!
//! Commits are done when they return; the core paces the flips.
//!
//! Reference: Linux's `drm_gem_shmem_helper` and `drm_gem_shadow_plane`, which bochs and simpledrm use in the same way.
#![deny(unsafe_code)]

use std::{collections::HashMap, io, os::fd::OwnedFd};

use driver::Shared;
use drm_core::{
    Errno,
    driver::{
        Buffer, BufferId, Cache, Change, Completion, ConnectorKind, ConnectorSpec, Driver, DumbRequest, EncoderSpec,
        Features, Framebuffer, Info, Mode, PlaneKind, PlaneSpec, Probe, Rect, Result, Topology,
    },
};

/// `DRM_FORMAT_XRGB8888`
pub const XRGB8888: u32 = u32::from_le_bytes(*b"XR24");
/// `DRM_FORMAT_BGRX8888`
pub const BGRX8888: u32 = u32::from_le_bytes(*b"BX24");

/// A frame buffer and its modes.
pub trait Screen {
    /// Who the driver is.
    fn info(&self) -> Info;
    /// Limits: sizes, preferred depth.
    fn features(&self) -> Features;
    /// Formats of 32 bits a pixel that [`Screen::write`] takes.
    fn formats(&self) -> Vec<u32>;
    /// Kind of connector and encoder (`DRM_MODE_ENCODER_*`), and whether there may be an EDID.
    fn connector(&self) -> (ConnectorKind, u32, bool);
    /// What is plugged in.
    fn probe(&mut self) -> Probe;
    /// Whether a mode can be shown.
    fn mode_valid(&self, mode: &Mode) -> bool;
    /// Sets a mode, or switches off.
    fn set_mode(&mut self, mode: Option<&Mode>);
    /// Says in which format the next pixels are.
    fn set_format(&mut self, format: u32);
    /// Writes pixels of one line from column `x` on. What lies outside the mode is left out.
    fn write(&mut self, x: u32, y: u32, pixels: &[u8]);
}

/// Makes memory for buffers: a descriptor that clients can map and pass on, and the driver's mapping of it. Zeroed.
pub type Allocate = Box<dyn FnMut(usize) -> io::Result<(OwnedFd, Shared)>>;

/// A [`Screen`] as a leaf of `drm-core`.
pub struct Shadow<S> {
    screen: S,
    allocate: Allocate,
    buffers: HashMap<BufferId, Shared>,
    /// One line on its way.
    line: Vec<u8>,
    format: Option<u32>,
}

impl<S: Screen> Shadow<S> {
    /// Makes the leaf.
    pub fn new(screen: S, allocate: Allocate) -> Self {
        Shadow { screen, allocate, buffers: HashMap::new(), line: Vec::new(), format: None }
    }

    /// The screen.
    pub fn screen(&self) -> &S {
        &self.screen
    }

    /// Copies a rectangle of a framebuffer to where it lies on the CRTC.
    fn copy(&mut self, fb: &Framebuffer, rect: Rect, to: (i32, i32)) {
        let Some(lines) = fb.planes.first() else { return };
        let Some(memory) = self.buffers.get(&lines.buffer) else { return };
        self.line.resize(rect.width() as usize * 4, 0);
        for y in rect.y1..rect.y2 {
            let (x, line) = (rect.x1 as usize, y as usize);
            let from = lines.offset as usize + line * lines.pitch as usize + x * 4;
            if from + self.line.len() > memory.len() {
                return;
            }
            memory.copy_to_slice(from, &mut self.line);
            let (at_x, at_y) = (rect.x1 - to.0, y - to.1);
            if at_x >= 0 && at_y >= 0 {
                self.screen.write(at_x as u32, at_y as u32, &self.line);
            }
        }
    }
}

/// The errno in an error, `ENOMEM` if there is none.
fn errno(error: io::Error) -> Errno {
    error.raw_os_error().and_then(|raw| Errno::from_raw(raw.cast_unsigned())).unwrap_or(Errno::ENOMEM)
}

impl<S: Screen> Driver for Shadow<S> {
    fn info(&self) -> Info {
        self.screen.info()
    }

    fn features(&self) -> Features {
        self.screen.features()
    }

    fn topology(&self) -> Topology {
        let (kind, encoder, edid) = self.screen.connector();
        Topology {
            crtcs: 1,
            planes: vec![PlaneSpec {
                kind: PlaneKind::Primary,
                possible_crtcs: 1,
                formats: self.screen.formats(),
                modifiers: vec![0],
                damage_clips: true,
                can_scale: false,
                can_position: false,
            }],
            encoders: vec![EncoderSpec { kind: encoder, possible_crtcs: 1 }],
            connectors: vec![ConnectorSpec { kind, encoders: vec![0], edid }],
        }
    }

    fn create_dumb(&mut self, buffer: BufferId, request: &DumbRequest) -> Result<Buffer> {
        let pitch = request.width.checked_mul(request.bpp.div_ceil(8)).ok_or(Errno::EINVAL)?;
        let size = (u64::from(pitch) * u64::from(request.height)).next_multiple_of(4096);
        let len = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
        let (fd, memory) = (self.allocate)(len).map_err(errno)?;
        self.buffers.insert(buffer, memory);
        Ok(Buffer { fd, pitch, size, cache: Cache::WriteBack })
    }

    fn restore_buffer(&mut self, id: BufferId, buffer: &Buffer, _request: Option<&DumbRequest>) -> Result<()> {
        let len = usize::try_from(buffer.size).map_err(|_| Errno::EINVAL)?;
        let memory = Shared::map(&buffer.fd, 0, len).map_err(errno)?;
        self.buffers.insert(id, memory);
        Ok(())
    }

    fn destroy_buffer(&mut self, buffer: BufferId) {
        self.buffers.remove(&buffer);
    }

    fn probe(&mut self, _connector: usize) -> Probe {
        self.screen.probe()
    }

    fn mode_valid(&self, _connector: usize, mode: &Mode) -> bool {
        self.screen.mode_valid(mode)
    }

    fn atomic_commit(&mut self, change: &Change) -> Completion {
        for (crtc, _, new) in change.crtcs() {
            if change.modeset(crtc) {
                self.screen.set_mode(new.mode.as_ref().filter(|_| new.active));
                self.format = None;
            }
        }
        for (plane, old, new) in change.planes() {
            let Some(fb) = &new.fb else {
                // A CRTC without a picture is dark.
                if old.visible() && !change.modeset(0) && change.new.crtcs[0].active {
                    self.screen.set_mode(None);
                    self.format = None;
                }
                continue;
            };
            if !change.new.crtcs[0].active {
                continue;
            }
            if !old.visible() && !change.modeset(0) {
                self.screen.set_mode(change.new.crtcs[0].mode.as_ref());
            }
            let format = Some(fb.format);
            let same = std::mem::replace(&mut self.format, format) == format;
            if !same {
                self.screen.set_format(fb.format);
            }
            let src = new.src();
            let clips = if same { change.damage(plane) } else { src.intersection(&fb.rect()).into_iter().collect() };
            for clip in clips {
                self.copy(fb, clip, (src.x1, src.y1));
            }
        }
        Completion::Done
    }
}

#[cfg(test)]
mod tests;
