//! `/dev/vtcon`: between the kernel's virtual terminals, which have state but no pixels, and the daemon that draws them.
//!
//! One process at a time has the device open; it needs `CAP_SYS_TTY_CONFIG`. A `read` gives whole records, each a
//! [`Record`] and `len` bytes; the buffer must have room for at least [`READ_MIN`] bytes:
//!
//! - [`OUTPUT`]: bytes that programs wrote to terminal `vt` (escape sequences and all), in order. A daemon that comes later,
//!   or again, first gets what the kernel kept of each terminal, the last [`HISTORY`] bytes.
//! - [`RESET`]: terminal `vt` was given back; what is on its screen goes.
//! - [`STATE`]: the daemon is told at first, and whenever something changes: a [`State`]. Only the latest is kept. The *next*
//!   `read` says that the daemon has acted on it: only then does a program that takes the display over (`KD_GRAPHICS`, or a
//!   switch to its terminal) hear that it may.
//!
//! `poll` reports `POLLIN` when a record waits. A terminal whose output the daemon does not read blocks its writers, as a
//! slow serial line does; without a daemon writers never block and the oldest bytes are lost.
//!
//! A `write` takes one record: [`INPUT`] types into a terminal, [`SIZE`] says how large the terminals are, [`LEDS`] what
//! the keyboard shows, [`ACTIVATE`] switches. The result is the record's length; less when a terminal took only a part of
//! what was typed, `EAGAIN` when it took nothing.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The device's name under `/dev`.
pub const DEVICE: &str = "vtcon";
/// Terminals: `tty1` … `tty63`.
pub const TERMINALS: u32 = 63;
/// The least room that a `read` needs.
pub const READ_MIN: usize = 64;
/// Bytes of each terminal's output that the kernel keeps.
pub const HISTORY: usize = 64 << 10;
/// The most that one [`INPUT`] takes.
pub const INPUT_MAX: usize = 4096;

/// Record: bytes that programs wrote.
pub const OUTPUT: u16 = 1;
/// Record: a [`State`].
pub const STATE: u16 = 2;
/// Record: the terminal was given back. No payload.
pub const RESET: u16 = 3;

/// Record to the kernel: bytes typed into terminal `vt`, 0 for the one in the foreground; at most [`INPUT_MAX`].
pub const INPUT: u16 = 16;
/// Record to the kernel: a [`Size`] for all terminals, those included that are used later.
pub const SIZE: u16 = 17;
/// Record to the kernel: one byte, the lock state of the keyboard (bit 0 scroll, 1 num, 2 caps), for `KDGKBLED`.
pub const LEDS: u16 = 18;
/// Record to the kernel: switch to terminal `vt`, by the rules of `VT_ACTIVATE`.
pub const ACTIVATE: u16 = 19;

/// What stands before each record's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Record {
    /// [`OUTPUT`], [`STATE`] or [`RESET`].
    pub kind: u16,
    /// Which terminal, from 1; 0 where it has no meaning.
    pub vt: u16,
    /// Bytes that follow.
    pub len: u32,
}

/// What the daemon has to know of the terminals as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct State {
    /// The terminal in the foreground, from 1.
    pub active: u16,
    /// Its `KD_TEXT` (0) or `KD_GRAPHICS` (1): a program draws the screen itself.
    pub mode: u16,
    /// Its keyboard mode: `K_RAW` 0, `K_XLATE` 1, `K_MEDIUMRAW` 2, `K_UNICODE` 3, `K_OFF` 4.
    pub keyboard: u16,
    /// What the keyboard's lights are to show (bit 0 scroll, 1 num, 2 caps).
    pub leds: u16,
    /// Whether a program handles switching (`VT_PROCESS`).
    pub process: u16,
    /// Whether switching is locked (`VT_LOCKSWITCH`).
    pub locked: u16,
    /// Repeat: milliseconds before the first.
    pub repeat_delay: u16,
    /// Repeat: milliseconds between them.
    pub repeat_period: u16,
    /// Which terminals are in use: bit n is terminal n.
    pub in_use: u64,
}

/// The payload of [`SIZE`], a `struct winsize`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Size {
    /// Rows of characters.
    pub rows: u16,
    /// Columns of characters.
    pub columns: u16,
    /// Width in pixels.
    pub width: u16,
    /// Height in pixels.
    pub height: u16,
}

/// Takes `bytes`, as a `read` gave them, apart. Stops at what is cut off.
pub fn records(mut bytes: &[u8]) -> impl Iterator<Item = (Record, &[u8])> {
    core::iter::from_fn(move || {
        let (head, rest) = Record::read_from_prefix(bytes).ok()?;
        let payload = rest.get(..head.len as usize)?;
        bytes = &rest[payload.len()..];
        Some((head, payload))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_apart_and_a_cut_one_is_left() {
        let mut bytes = Vec::new();
        for (vt, text) in [(1, &b"hello"[..]), (2, b""), (3, b"cut")] {
            bytes.extend_from_slice(Record { kind: OUTPUT, vt, len: text.len() as u32 }.as_bytes());
            bytes.extend_from_slice(text);
        }
        bytes.pop();
        let got: Vec<_> = records(&bytes).map(|(r, b)| (r.vt, b.to_vec())).collect();
        assert_eq!(got, [(1, b"hello".to_vec()), (2, Vec::new())]);
        assert_eq!(records(&bytes[..7]).count(), 0);
    }

    #[test]
    fn structures_have_no_holes() {
        assert_eq!((size_of::<Record>(), size_of::<State>(), size_of::<Size>()), (8, 24, 8));
    }
}
