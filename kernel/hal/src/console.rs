//! The kernel log on the boot framebuffer.
//!
//! A plain text grid in one 8×16 font, until the user-space console takes the framebuffer ([`suspend`]); a panic takes it
//! back. The screen is never read (it may be slow, uncached memory): the grid remembers what is shown, and scrolling jumps by a
//! quarter of the screen and redraws only cells that changed.
//! Locking: one `IrqLock`, a leaf below the log's.

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use spleen_font::FONT_8X16;

use crate::boot::Framebuffer;
use crate::mm::{CacheMode, Mmio, mmio};
use crate::sync::IrqLock;

const GLYPH_WIDTH: usize = 8;
const GLYPH_HEIGHT: usize = 16;
const FIRST: u8 = b' ';
const GLYPHS: usize = 95;
const TAB: usize = 8;

static SCREEN: IrqLock<Option<Screen>> = IrqLock::new(None);
static SUSPENDED: AtomicBool = AtomicBool::new(false);

struct Screen {
    fb: Framebuffer,
    memory: Mmio,
    glyphs: [[u8; GLYPH_HEIGHT]; GLYPHS],
    columns: usize,
    rows: usize,
    /// What is wanted, row by row.
    cells: Vec<u8>,
    /// What is on the screen; 0 where that is not known.
    shown: Vec<u8>,
    row: usize,
    column: usize,
    foreground: [u8; 4],
    background: [u8; 4],
}

/// Pixel value of 8-bit red, green and blue, in memory order.
fn pixel(fb: &Framebuffer, rgb: [u8; 3]) -> [u8; 4] {
    let field = |(value, mask): (u8, &crate::boot::ColourField)| {
        let wide = u32::from(value) * 0x0101;
        wide.checked_shr(16 - u32::from(mask.bits.min(16))).unwrap_or(0).checked_shl(u32::from(mask.shift)).unwrap_or(0)
    };
    rgb.into_iter().zip(&fb.masks).map(field).fold(0, |a, b| a | b).to_le_bytes()
}

/// The rows of an ASCII character, leftmost pixel in the highest bit.
///
/// The font is a PSF1 file: 4 bytes of header, then 16 bytes a glyph, ASCII in its place. Only the file is taken from the crate:
/// its reader swaps two header fields of PSF1 (version 0.2.0).
fn glyph(c: u8) -> Option<[u8; GLYPH_HEIGHT]> {
    let at = 4 + usize::from(c) * GLYPH_HEIGHT;
    FONT_8X16.get(at..at + GLYPH_HEIGHT)?.try_into().ok()
}

/// Draws the log so far and from now on, if the loader left a framebuffer.
pub(crate) fn init() {
    let Some(fb) = crate::boot::info().framebuffer else { return };
    let Some(memory) = mmio(fb.phys, fb.pitch as usize * fb.height as usize, CacheMode::WriteCombining) else { return };
    let (columns, rows) = (fb.width as usize / GLYPH_WIDTH, fb.height as usize / GLYPH_HEIGHT);
    if columns == 0 || rows < 2 {
        return;
    }
    let mut glyphs = [[0; GLYPH_HEIGHT]; GLYPHS];
    for (c, bits) in (FIRST..).zip(&mut glyphs) {
        if let Some(glyph) = glyph(c) {
            *bits = glyph;
        }
    }
    let mut screen = Screen {
        fb,
        memory,
        glyphs,
        columns,
        rows,
        cells: vec![b' '; columns * rows],
        shown: vec![0; columns * rows],
        row: 0,
        column: 0,
        foreground: pixel(&fb, [0xd0, 0xd0, 0xd0]),
        background: pixel(&fb, [0, 0, 0]),
    };
    screen.clear();
    *SCREEN.lock() = Some(screen);
    crate::info!("console: framebuffer {}x{}x{} at {:#x}", fb.width, fb.height, fb.bpp, fb.phys);
    crate::log::replay(write);
}

/// Writes log text; any context.
pub(crate) fn write(text: &[u8]) {
    if SUSPENDED.load(Ordering::Relaxed) {
        return;
    }
    let screen = if crate::panic::in_progress() { SCREEN.try_lock() } else { Some(SCREEN.lock()) };
    if let Some(mut guard) = screen
        && let Some(screen) = guard.as_mut()
    {
        screen.write(text);
    }
}

/// Leaves the framebuffer to another user.
pub fn suspend() {
    SUSPENDED.store(true, Ordering::Relaxed);
}

/// Draws again, over whatever is there: after the other user is gone, or for a panic.
pub fn resume() {
    if SUSPENDED.swap(false, Ordering::Relaxed)
        && let Some(mut guard) = SCREEN.try_lock()
        && let Some(screen) = guard.as_mut()
    {
        screen.shown.fill(0);
        screen.redraw();
    }
}

impl Screen {
    /// Black everywhere, also beside and below the grid.
    fn clear(&mut self) {
        let line = vec![0u8; self.fb.pitch as usize];
        for y in 0..self.fb.height as usize {
            self.memory.write_bytes(y * line.len(), &line);
        }
        self.shown.fill(b' ');
    }

    fn write(&mut self, text: &[u8]) {
        for c in text {
            match *c {
                b'\n' => self.new_line(),
                b'\t' => self.column = (self.column / TAB + 1) * TAB,
                c => {
                    if self.column >= self.columns {
                        self.new_line();
                    }
                    let at = self.row * self.columns + self.column;
                    self.cells[at] = if (FIRST..FIRST + GLYPHS as u8).contains(&c) { c } else { b'?' };
                    self.draw(at);
                    self.column += 1;
                }
            }
        }
    }

    fn new_line(&mut self) {
        self.column = 0;
        self.row += 1;
        if self.row == self.rows {
            let jump = (self.rows / 4).max(1);
            self.cells.copy_within(jump * self.columns.., 0);
            self.row -= jump;
            self.cells[self.row * self.columns..].fill(b' ');
            self.redraw();
        }
    }

    fn redraw(&mut self) {
        for at in 0..self.cells.len() {
            self.draw(at);
        }
    }

    /// Brings one cell to the screen if it differs.
    fn draw(&mut self, at: usize) {
        let c = self.cells[at];
        if self.shown[at] == c {
            return;
        }
        self.shown[at] = c;
        let bytes = usize::from(self.fb.bpp).div_ceil(8);
        let (x, y) = (at % self.columns * GLYPH_WIDTH, at / self.columns * GLYPH_HEIGHT);
        for (line, bits) in self.glyphs[(c - FIRST) as usize].iter().enumerate() {
            let mut row = [0u8; GLYPH_WIDTH * 4];
            for (i, out) in row.chunks_exact_mut(bytes).take(GLYPH_WIDTH).enumerate() {
                let colour = if bits & 0x80 >> i != 0 { &self.foreground } else { &self.background };
                out.copy_from_slice(&colour[..bytes]);
            }
            self.memory.write_bytes((y + line) * self.fb.pitch as usize + x * bytes, &row[..GLYPH_WIDTH * bytes]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::ColourField;

    #[test]
    fn pixels_follow_the_masks() {
        let field = |shift, bits| ColourField { shift, bits };
        let mut fb = Framebuffer {
            phys: crate::PhysAddr(0),
            width: 1,
            height: 1,
            pitch: 4,
            bpp: 32,
            masks: [field(16, 8), field(8, 8), field(0, 8)],
        };
        assert_eq!(pixel(&fb, [1, 2, 3]), [3, 2, 1, 0]);
        fb.masks = [field(11, 5), field(5, 6), field(0, 5)];
        assert_eq!(pixel(&fb, [0xff, 0, 0xff]), 0xf81fu32.to_le_bytes());
        fb.masks = [field(0, 0); 3];
        assert_eq!(pixel(&fb, [0xff; 3]), [0; 4]);
    }

    #[test]
    fn the_font_has_all_of_ascii() {
        // Behind the 512 bitmaps comes for each the characters it stands for, ended by 0xffff.
        let units = FONT_8X16[4 + 512 * GLYPH_HEIGHT..].chunks_exact(2).map(|u| u16::from_le_bytes([u[0], u[1]]));
        let units: Vec<u16> = units.collect();
        let records: Vec<&[u16]> = units.split(|u| *u == 0xffff).collect();
        for c in FIRST..FIRST + GLYPHS as u8 {
            assert!(records[usize::from(c)].contains(&u16::from(c)), "{}", c as char);
            let ink: u32 = glyph(c).unwrap().iter().map(|row| row.count_ones()).sum();
            assert_eq!(ink == 0, c == b' ', "{}", c as char);
        }
    }
}
