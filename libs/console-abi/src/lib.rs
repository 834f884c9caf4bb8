//! `/dev/vtcon`: between the kernel's virtual terminals, which have state but no pixels, and the daemon that draws them.
//!
//! One process at a time has the device open; it needs `CAP_SYS_TTY_CONFIG`. A `read` gives whole records, each a
//! [`Record`] and `len` bytes; the buffer must have room for at least [`READ_MIN`] bytes:
//!
//! - [`OUTPUT`]: bytes that programs wrote to terminal `vt` (escape sequences and all), in order. A daemon that comes later,
//!   or again, first gets what the kernel kept of each terminal, the last [`HISTORY`] bytes.
//! - [`RESET`]: terminal `vt` was given back; what is on its screen goes.
//! - [`STATE`]: the daemon is told at first, and whenever something changes: a [`State`]. Only the latest is kept.
//!
//! `poll` reports `POLLIN` when a record waits. A terminal whose output the daemon does not read blocks its writers, as a
//! slow serial line does; without a daemon writers never block and the oldest bytes are lost.
//!
//! `ioctl`s: [`INPUT`] types into a terminal, [`SET_SIZE`] says how large the terminals are, [`SET_LEDS`] what the keyboard shows.
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

/// `ioctl` with an [`Input`]: types bytes into a terminal. Gives how many were taken; `EAGAIN` when there is no room at all.
pub const INPUT: u32 = iow(1, size_of::<Input>());
/// `ioctl` with a [`Size`]: sets the size of all terminals, those included that are used later.
pub const SET_SIZE: u32 = iow(2, size_of::<Size>());
/// `ioctl` with a `u32`: the lock state that the keyboard has now (bit 0 scroll, 1 num, 2 caps), for `KDGKBLED`.
pub const SET_LEDS: u32 = iow(3, size_of::<u32>());

/// `_IOW(0xf6, nr, size)`
const fn iow(nr: u32, size: usize) -> u32 {
    1 << 30 | (size as u32) << 16 | 0xf6 << 8 | nr
}

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

/// The argument of [`INPUT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Input {
    /// Which terminal; 0: the one in the foreground.
    pub vt: u32,
    /// Bytes, at most [`INPUT_MAX`].
    pub len: u32,
    /// Where they are.
    pub addr: u64,
}

/// The argument of [`SET_SIZE`], a `struct winsize`.
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
        assert_eq!((size_of::<Record>(), size_of::<State>(), size_of::<Input>(), size_of::<Size>()), (8, 24, 16, 8));
        assert_eq!(INPUT, 0x4010_f601);
    }
}
