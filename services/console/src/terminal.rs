//! One virtual terminal: the [`vt100`] emulator, and what `TERM=linux` has besides.

use std::num::NonZeroU16;

use vt100::{Callbacks, Parser, Screen};

/// Lines that can be scrolled back to.
const SCROLLBACK: usize = 2000;

/// What programs ask the terminal, answered as Linux's console does.
#[derive(Default)]
struct Replies(Vec<u8>);

impl Callbacks for Replies {
    fn unhandled_csi(&mut self, screen: &mut Screen, i1: Option<u8>, _i2: Option<u8>, params: &[&[u16]], c: char) {
        let first = params.first().and_then(|p| p.first()).copied().unwrap_or(0);
        match (i1, c, first) {
            // DSR: all is well; where the cursor is.
            (None, 'n', 5) => self.0.extend_from_slice(b"\x1b[0n"),
            (None, 'n', 6) => {
                let (row, column) = screen.cursor_position();
                self.0.extend_from_slice(format!("\x1b[{};{}R", row + 1, column + 1).as_bytes());
            }
            // DA: a VT102.
            (None, 'c', 0) => self.0.extend_from_slice(b"\x1b[?6c"),
            _ => {}
        }
    }
}

/// Takes the console's palette sequences out: `ESC ] R` and `ESC ] P nrrggbb` have no end, so that a parser of the standard's OSC
/// would swallow all that follows.
#[derive(Default)]
enum PaletteFilter {
    #[default]
    Text,
    Escape,
    Osc,
    /// So many digits are still to come.
    Digits(u8),
}

impl PaletteFilter {
    fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for &byte in bytes {
            *self = match (&self, byte) {
                (Self::Text, 0x1b) => Self::Escape,
                (Self::Escape, b']') => Self::Osc,
                (Self::Osc, b'R') => Self::Text,
                (Self::Osc, b'P') => Self::Digits(7),
                (Self::Digits(n), byte) if byte.is_ascii_hexdigit() && *n > 1 => Self::Digits(n - 1),
                (Self::Digits(1), byte) if byte.is_ascii_hexdigit() => Self::Text,
                (held, byte) => {
                    match held {
                        Self::Escape => out.push(0x1b),
                        Self::Osc => out.extend_from_slice(b"\x1b]"),
                        Self::Text | Self::Digits(_) => {}
                    }
                    if byte == 0x1b {
                        Self::Escape
                    } else {
                        out.push(byte);
                        Self::Text
                    }
                }
            };
        }
    }
}

/// A virtual terminal's screen.
pub struct Terminal {
    parser: Parser<Replies>,
    filter: PaletteFilter,
}

impl Terminal {
    /// An empty screen.
    pub fn new(rows: NonZeroU16, columns: NonZeroU16) -> Terminal {
        Terminal {
            parser: Parser::new_with_callbacks(rows, columns, SCROLLBACK, Replies::default()),
            filter: PaletteFilter::default(),
        }
    }

    /// Takes output of programs. Gives what the terminal answers: input for the program.
    pub fn write(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(bytes.len());
        self.filter.pass(bytes, &mut text);
        self.parser.process(&text);
        // New output shows: a view into the past ends.
        self.parser.screen_mut().set_scrollback(0);
        std::mem::take(&mut self.parser.callbacks_mut().0)
    }

    /// The screen is of another size now.
    pub fn resize(&mut self, rows: NonZeroU16, columns: NonZeroU16) {
        self.parser.set_size(rows, columns);
    }

    /// Looks `lines` further back (or, negative, forward).
    pub fn scroll(&mut self, lines: isize) {
        let now = self.parser.screen().scrollback();
        self.parser.screen_mut().set_scrollback(now.saturating_add_signed(lines));
    }

    /// Back to the present.
    pub fn end_scroll(&mut self) {
        self.parser.screen_mut().set_scrollback(0);
    }

    /// What is to be drawn.
    pub fn screen(&self) -> &Screen {
        self.parser.screen()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terminal() -> Terminal {
        Terminal::new(NonZeroU16::new(5).unwrap(), NonZeroU16::new(20).unwrap())
    }

    #[test]
    fn questions_are_answered_as_on_linux() {
        let mut t = terminal();
        assert_eq!(t.write(b"ab\r\ncd\x1b[6n"), b"\x1b[2;3R");
        assert_eq!(t.write(b"\x1b[5n\x1b[c"), b"\x1b[0n\x1b[?6c");
        assert_eq!(t.write(b"\x1b[1;31mred"), b"");
    }

    #[test]
    fn palette_sequences_swallow_nothing_even_in_pieces() {
        let mut t = terminal();
        t.write(b"\x1b]Rone\x1b");
        t.write(b"]P1ff");
        t.write(b"0000two\x1b]0;title\x07 three");
        assert_eq!(t.screen().contents().trim_end(), "onetwo three");
    }

    #[test]
    fn output_ends_a_look_back() {
        let mut t = terminal();
        for n in 0..30 {
            t.write(format!("line {n}\r\n").as_bytes());
        }
        t.scroll(10);
        assert!(t.screen().contents().starts_with("line 16"));
        t.write(b"x");
        assert!(t.screen().contents().starts_with("line 26"));
    }
}
