//! From cells to pixels: [`Renderer`] draws what changed since the last time and says where that was.

use crate::font::Font;
use spleen_font::{FONT_8X16, FONT_16X32};
use vt100::{Color, Screen};

/// From this width on, the small font cannot be read.
const LARGE_FROM: usize = 2560;

/// The sixteen colours of Linux's console.
const PALETTE: [u32; 16] = [
    0x00_00_00, 0xaa_00_00, 0x00_aa_00, 0xaa_55_00, 0x00_00_aa, 0xaa_00_aa, 0x00_aa_aa, 0xaa_aa_aa, //
    0x55_55_55, 0xff_55_55, 0x55_ff_55, 0xff_ff_55, 0x55_55_ff, 0xff_55_ff, 0x55_ff_ff, 0xff_ff_ff,
];
const FOREGROUND: u8 = 7;

/// Where pixels go: 32 bits each, red at bit 16.
pub struct Canvas<'a> {
    /// All rows.
    pub pixels: &'a mut [u8],
    /// Bytes from one row to the next.
    pub pitch: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// A rectangle of pixels that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// First column.
    pub x1: u16,
    /// First row.
    pub y1: u16,
    /// Column after the last.
    pub x2: u16,
    /// Row after the last.
    pub y2: u16,
}

/// How a cell looks.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Look {
    character: char,
    foreground: u32,
    background: u32,
    underline: bool,
    /// The right half of a wide character, which its left half draws.
    covered: bool,
}

/// Draws a screen of fixed size.
pub struct Renderer {
    font: Font,
    columns: usize,
    rows: usize,
    shown: Vec<Option<Look>>,
}

impl Renderer {
    /// A renderer for a canvas of `width` by `height` pixels; `None` when not even one character fits.
    pub fn new(width: usize, height: usize) -> Option<Renderer> {
        let font = Font::parse(if width >= LARGE_FROM { FONT_16X32 } else { FONT_8X16 })?;
        let (columns, rows) = (width / font.width, height / font.height);
        if columns == 0 || rows == 0 || width > u16::MAX.into() || height > u16::MAX.into() {
            return None;
        }
        Some(Renderer { font, columns, rows, shown: vec![None; columns * rows] })
    }

    /// Rows and columns of characters.
    pub fn size(&self) -> (u16, u16) {
        (self.rows as u16, self.columns as u16)
    }

    /// Somebody else has drawn: everything has to be drawn again.
    pub fn forget(&mut self) {
        self.shown.fill(None);
    }

    /// Draws what differs from the last time; one rectangle for each run of rows.
    pub fn draw(&mut self, screen: &Screen, canvas: &mut Canvas<'_>) -> Vec<Damage> {
        let mut damage: Vec<Damage> = Vec::new();
        let cursor = (!screen.hide_cursor() && screen.scrollback() == 0).then(|| screen.cursor_position());
        for row in 0..self.rows {
            let mut span: Option<(usize, usize)> = None;
            for column in 0..self.columns {
                let at_cursor = cursor == Some((row as u16, column as u16));
                let look = look(screen, row as u16, column as u16, at_cursor);
                let shown = &mut self.shown[row * self.columns + column];
                if *shown == Some(look) {
                    continue;
                }
                *shown = Some(look);
                if !look.covered {
                    self.cell(canvas, row, column, look);
                }
                span = Some(span.map_or((column, column + 1), |(first, _)| (first, column + 1)));
            }
            let Some((first, end)) = span else { continue };
            let (w, h) = (self.font.width, self.font.height);
            let new = Damage {
                x1: (first * w) as u16,
                y1: (row * h) as u16,
                // A wide character reaches one cell further.
                x2: ((end + 1).min(self.columns) * w) as u16,
                y2: ((row + 1) * h) as u16,
            };
            match damage.last_mut().filter(|last| last.y2 == new.y1) {
                Some(last) => {
                    (last.x1, last.x2, last.y2) = (last.x1.min(new.x1), last.x2.max(new.x2), new.y2);
                }
                None => damage.push(new),
            }
        }
        damage
    }

    fn cell(&mut self, canvas: &mut Canvas<'_>, row: usize, column: usize, look: Look) {
        let (w, h) = (self.font.width, self.font.height);
        let (x, y) = (column * w, row * h);
        let mut bits = [0u32; 64];
        match self.font.glyph(look.character) {
            Some(glyph) => {
                for (line, row) in bits.iter_mut().zip(glyph) {
                    *line = row.iter().rev().fold(0, |line, byte| line << 8 | u32::from(byte.reverse_bits()));
                }
            }
            None if look.character == ' ' => {}
            // What the font lacks is a box.
            None => {
                let full = ((1 << (w - 2)) - 1) << 1;
                bits[2..h - 3].fill(1 << 1 | 1 << (w - 2));
                (bits[2], bits[h - 4]) = (full, full);
            }
        }
        if look.underline {
            bits[h - 2] = u32::MAX;
        }
        for (line, bits) in bits.iter().enumerate().take(h) {
            let start = (y + line) * canvas.pitch + x * 4;
            let Some(pixels) = canvas.pixels.get_mut(start..start + w * 4) else { return };
            for (i, pixel) in pixels.chunks_exact_mut(4).enumerate() {
                let color = if bits >> i & 1 != 0 { look.foreground } else { look.background };
                pixel.copy_from_slice(&color.to_le_bytes());
            }
        }
    }
}

fn look(screen: &Screen, row: u16, column: u16, at_cursor: bool) -> Look {
    let Some(cell) = screen.cell(row, column) else {
        let (foreground, background) = (PALETTE[usize::from(FOREGROUND)], PALETTE[0]);
        return Look { character: ' ', foreground, background, underline: false, covered: false };
    };
    let bold = cell.bold();
    let mut foreground = color(cell.fgcolor(), FOREGROUND, bold);
    let mut background = color(cell.bgcolor(), 0, false);
    if cell.dim() {
        foreground = foreground >> 1 & 0x7f_7f_7f;
    }
    if cell.inverse() != at_cursor {
        (foreground, background) = (background, foreground);
    }
    Look {
        character: cell.contents().chars().next().unwrap_or(' '),
        foreground,
        background,
        underline: cell.underline(),
        covered: cell.is_wide_continuation(),
    }
}

/// The pixel of a colour; bold makes the first eight bright, as on a VGA.
fn color(color: Color, default: u8, bold: bool) -> u32 {
    match color {
        Color::Rgb(r, g, b) => u32::from_be_bytes([0, r, g, b]),
        Color::Idx(i @ 0..8) if bold => PALETTE[usize::from(i) + 8],
        Color::Idx(i @ 0..16) => PALETTE[usize::from(i)],
        Color::Idx(i @ 16..232) => {
            // A cube of six levels of each colour.
            let level = |n: u8| if n == 0 { 0 } else { 55 + 40 * u32::from(n) };
            let i = i - 16;
            level(i / 36) << 16 | level(i / 6 % 6) << 8 | level(i % 6)
        }
        Color::Idx(i) => (8 + 10 * u32::from(i - 232)) * 0x01_01_01,
        Color::Default if bold => PALETTE[usize::from(default) + 8],
        Color::Default => PALETTE[usize::from(default)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::Terminal;
    use std::num::NonZeroU16;

    const WIDTH: usize = 80;
    const HEIGHT: usize = 48;

    struct Picture(Vec<u8>);

    impl Picture {
        fn draw(&mut self, renderer: &mut Renderer, terminal: &Terminal) -> Vec<Damage> {
            let mut canvas = Canvas { pixels: &mut self.0, pitch: WIDTH * 4, width: WIDTH, height: HEIGHT };
            renderer.draw(terminal.screen(), &mut canvas)
        }

        /// The cell as rows of text: `#` where it has `color`.
        fn cell(&self, row: usize, column: usize, color: u32) -> Vec<String> {
            let pixel = |x: usize, y: usize| {
                let at = (y * WIDTH + x) * 4;
                u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
            };
            let line = |y| (0..8).map(|x| if pixel(column * 8 + x, y) == color { '#' } else { '.' }).collect();
            (row * 16..row * 16 + 16).map(line).collect()
        }
    }

    fn setup() -> (Renderer, Terminal, Picture) {
        let renderer = Renderer::new(WIDTH, HEIGHT).unwrap();
        assert_eq!(renderer.size(), (3, 10));
        let terminal = Terminal::new(NonZeroU16::new(3).unwrap(), NonZeroU16::new(10).unwrap());
        (renderer, terminal, Picture(vec![0xee; WIDTH * HEIGHT * 4]))
    }

    #[test]
    fn only_what_changed_is_drawn() {
        let (mut renderer, mut terminal, mut picture) = setup();
        let all = Damage { x1: 0, y1: 0, x2: 80, y2: 48 };
        assert_eq!(picture.draw(&mut renderer, &terminal), [all]);
        assert!(picture.draw(&mut renderer, &terminal).is_empty());
        terminal.write(b"\x1b[2;4Hx");
        // The character, the cursor after it, and in the first row the cell that the cursor left.
        let changed = [Damage { x1: 0, y1: 0, x2: 48, y2: 32 }];
        assert_eq!(picture.draw(&mut renderer, &terminal), changed);
        renderer.forget();
        assert_eq!(picture.draw(&mut renderer, &terminal), [all]);
    }

    #[test]
    fn glyphs_colours_and_the_cursor_are_where_they_belong() {
        let (mut renderer, mut terminal, mut picture) = setup();
        terminal.write("\x1b[31mI\x1b[0;1mI\x1b[0;7m \x1b[0;38;5;21mI\x1b[0m\u{4e2d}".as_bytes());
        picture.draw(&mut renderer, &terminal);
        let red = picture.cell(0, 0, 0xaa_00_00);
        assert!(red.iter().filter(|line| line.contains('#')).count() >= 8, "a whole letter");
        assert_eq!(red, picture.cell(0, 1, 0xff_ff_ff), "bold is bright, of the same shape");
        assert!(picture.cell(0, 2, 0xaa_aa_aa).iter().all(|line| line == "########"), "inverse blank");
        assert_eq!(red, picture.cell(0, 3, 0x00_00_ff), "the cube");
        let boxed = picture.cell(0, 4, 0xaa_aa_aa);
        assert_eq!((boxed[2].as_str(), boxed[3].as_str()), (".######.", ".#....#."), "what the font lacks");
        assert!(picture.cell(0, 6, 0xaa_aa_aa).iter().all(|line| line == "########"), "the cursor");
        terminal.write(b"\x1b[?25l");
        picture.draw(&mut renderer, &terminal);
        assert!(picture.cell(0, 6, 0xaa_aa_aa).iter().all(|line| line == "........"), "a hidden cursor");
    }

    #[test]
    fn a_canvas_that_is_too_small_has_no_renderer() {
        assert!(Renderer::new(7, 100).is_none());
        assert!(Renderer::new(100_000, 100).is_none());
        assert_eq!(Renderer::new(3840, 2160).unwrap().size(), (67, 240));
    }
}
