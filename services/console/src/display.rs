//! The screen: a DRM card with something connected, one dumb buffer on it.
//!
//! Master is taken for each drawing and given back after it, so that whoever wants the display only has to become master.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use drm::{
    Device as _,
    buffer::{Buffer, DrmFourcc},
    control::{ClipRect, Device as _, Mode, ModeTypeFlags, connector, crtc, dumbbuffer::DumbBuffer, framebuffer},
};

use crate::render::Damage;

/// Where cards are.
pub const CARDS: &str = "/dev/dri";
/// Damage beyond this many rectangles is sent as a whole.
const CLIPS_MAX: usize = 16;

/// An open card.
#[derive(Debug)]
pub struct Card(File);

impl AsFd for Card {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl drm::Device for Card {}
impl drm::control::Device for Card {}

/// What is shown where.
pub struct Display {
    card: Card,
    connector: connector::Handle,
    crtc: crtc::Handle,
    mode: Mode,
    buffer: DumbBuffer,
    framebuffer: framebuffer::Handle,
}

/// The cards that there are, in order.
pub fn cards() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(CARDS).into_iter().flatten().flatten();
    let mut cards: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("card")))
        .collect();
    cards.sort();
    cards
}

impl Display {
    /// Opens `path` and prepares its first connected connector.
    ///
    /// # Errors
    /// When there is none, or the card cannot do dumb buffers.
    pub fn open(path: &Path) -> Result<Display> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let card = Card(file);
        // The first opener becomes master by opening.
        let _ = card.release_master_lock();
        let resources = card.resource_handles().context("its resources")?;
        let connected = resources.connectors().iter().filter_map(|&handle| card.get_connector(handle, true).ok());
        let Some(connector) = connected.into_iter().find(|c| c.state() == connector::State::Connected) else {
            bail!("nothing is connected");
        };
        let preferred = connector.modes().iter().find(|mode| mode.mode_type().contains(ModeTypeFlags::PREFERRED));
        let Some(&mode) = preferred.or(connector.modes().first()) else { bail!("the screen has no modes") };
        let encoders = connector.encoders().iter().filter_map(|&handle| card.get_encoder(handle).ok());
        let crtc = encoders.flat_map(|encoder| resources.filter_crtcs(encoder.possible_crtcs())).next();
        let crtc = crtc.context("no CRTC reaches the screen")?;
        let (width, height) = mode.size();
        let buffer = card.create_dumb_buffer((width.into(), height.into()), DrmFourcc::Xrgb8888, 32)?;
        let framebuffer = match card.add_framebuffer(&buffer, 24, 32) {
            Ok(framebuffer) => framebuffer,
            Err(error) => {
                let _ = card.destroy_dumb_buffer(buffer);
                return Err(error.into());
            }
        };
        Ok(Display { card, connector: connector.handle(), crtc, mode, buffer, framebuffer })
    }

    /// Pixels.
    pub fn size(&self) -> (usize, usize) {
        let (width, height) = self.mode.size();
        (width.into(), height.into())
    }

    /// Bytes from one row to the next.
    pub fn pitch(&self) -> usize {
        self.buffer.pitch() as usize
    }

    /// Maps the buffer and lets `f` work with it, for as long as that takes.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn with_pixels<R>(&self, f: impl FnOnce(&mut [u8]) -> R) -> io::Result<R> {
        let mut buffer = self.buffer;
        let mut pixels = self.card.map_dumb_buffer(&mut buffer)?;
        Ok(f(&mut pixels))
    }

    /// Whether the buffer is on the screen.
    fn is_shown(&self) -> bool {
        self.card.get_crtc(self.crtc).is_ok_and(|crtc| crtc.framebuffer() == Some(self.framebuffer))
    }

    /// Brings `damage` to the screen, and the buffer if it is not there.
    ///
    /// # Errors
    /// `EBUSY`, `EACCES`, `EPERM`: somebody else has the display. Others: the card is gone.
    pub fn show(&self, damage: &[Damage]) -> io::Result<()> {
        self.card.acquire_master_lock()?;
        let shown = self.show_as_master(damage);
        let released = self.card.release_master_lock();
        shown.and(released)
    }

    fn show_as_master(&self, damage: &[Damage]) -> io::Result<()> {
        if !self.is_shown() {
            self.card.set_crtc(self.crtc, Some(self.framebuffer), (0, 0), &[self.connector], Some(self.mode))?;
        }
        let mut clips: Vec<ClipRect> = damage.iter().map(|d| ClipRect::new(d.x1, d.y1, d.x2, d.y2)).collect();
        if clips.len() > CLIPS_MAX {
            let (width, height) = self.mode.size();
            clips = vec![ClipRect::new(0, 0, width, height)];
        }
        match self.card.dirty_framebuffer(self.framebuffer, &clips) {
            // A card that scans the buffer out itself needs no telling.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOSYS.raw_os_error()) => Ok(()),
            other => other,
        }
    }
}

/// Whether an error of [`Display::show`] says that somebody else has the display.
pub fn is_taken(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error();
    [Errno::BUSY, Errno::ACCESS, Errno::PERM, Errno::INVAL].iter().any(|e| errno == Some(e.raw_os_error()))
}

impl Drop for Display {
    fn drop(&mut self) {
        // A card that is gone has forgotten both already.
        let _ = self.card.destroy_framebuffer(self.framebuffer);
        let _ = self.card.destroy_dumb_buffer(self.buffer);
    }
}
