//! The terminal line discipline, Linux's `N_TTY`, as a pure state machine.
//!
//! What it does: turns the bytes that arrive from a terminal into what `read(2)` returns (line editing, control characters,
//! flow control), produces the echo, and post-processes what programs write. What it leaves to its user: blocking, signals,
//! job control, the device. So it has no locks, no waiting and no clock, and the same code runs in the kernel and in a test
//! that compares it byte for byte with Linux's own pseudo-terminals (`tests/differential.rs`).
//!
//! ```text
//!  device ── receive() ──▶ input ring ── read() ──▶ program          program ── output() ──▶ device
//!                └──────▶ echo queue ── drain_echo() ──────────────────────────────────────▶ device
//! ```
//!
//! [`LineDiscipline::receive`] stops at a byte that asks for something that it cannot do itself and returns it as an
//! [`Action`]; the caller acts and calls again with the rest. Thus a `^C` flushes exactly what came before it.
//! References: `termios(3)`, `ioctl_tty(2)`, POSIX.1-2017 chapter 11. The corner cases that POSIX leaves open follow
//! Linux: 4,096-byte input ring, overwriting its last byte when a line outgrows it, `IUTF8` erase, tab erase, `EXTPROC`.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

mod echo;
mod input;
mod output;
mod read;
mod termios;

pub use output::OutputSink;
pub use read::Line;
pub use termios::{DISABLED_CHAR, default_termios, encode_speed, speed_of, termios_from_user};

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use linux_uapi::raw::general as c;
use linux_uapi::tty::Termios2;

/// Size of the input ring in bytes (`N_TTY_BUF_SIZE`).
pub const RING: usize = 4096;

/// Most bytes of echo that wait for room in the device; what comes beyond is dropped, as an overrun echo buffer does.
const ECHO_LIMIT: usize = 8192;

/// What [`LineDiscipline::receive`] asks its caller to do before it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this signal to the foreground process group.
    Signal {
        /// Which signal.
        signal: Signal,
        /// Output that is queued at the device, and for packet mode the peer's view, is to be flushed (`NOFLSH` unset).
        flush: bool,
        /// Output that `^S` had stopped runs again.
        restarted: bool,
    },
    /// Output stopped (`^S`).
    Stop,
    /// Output may run again (`^Q`, `IXANY`).
    Start,
}

/// Signals that come from the keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// `SIGINT`, from `VINTR` or a break.
    Interrupt,
    /// `SIGQUIT`, from `VQUIT`.
    Quit,
    /// `SIGTSTP`, from `VSUSP`.
    Suspend,
}

/// The state of one terminal's line discipline.
pub struct LineDiscipline {
    termios: Termios2,
    /// Bytes that need more than a plain copy in [`receive`](Self::receive); rebuilt when the modes change.
    special: [u64; 4],
    /// No processing of input at all: bytes are copied.
    raw: bool,
    ring: Box<[u8; RING]>,
    /// Marks the ring positions that end a line.
    line_ends: [u64; RING / 64],
    /// Free-running positions: `head - tail <= RING`; when input is read by lines also `tail <= canon_head <= head`
    /// (otherwise `canon_head` stands where canonical mode was left).
    head: usize,
    canon_head: usize,
    tail: usize,
    /// The next byte is taken literally (after `VLNEXT`).
    literal_next: bool,
    /// Inside an `ECHOPRT` erasure `\…/`.
    erasing: bool,
    /// Canonical mode was switched on with input pending: that input counts as a line without an end.
    pushed: bool,
    /// Output column, and the column where the current input line began.
    column: u32,
    canon_column: u32,
    echo: VecDeque<u8>,
    /// The two columns before the echo that is queued, for when it is discarded.
    columns_before_echo: (u32, u32),
    /// Output is stopped by `^S` (or by `TCOOFF`, which only `TCOON` undoes).
    stopped: bool,
    stopped_by_ioctl: bool,
}

impl LineDiscipline {
    /// Makes a line discipline with these modes and nothing buffered.
    pub fn new(termios: Termios2) -> Self {
        let mut this = LineDiscipline {
            termios,
            special: [0; 4],
            raw: false,
            ring: Box::new([0; RING]),
            line_ends: [0; RING / 64],
            head: 0,
            canon_head: 0,
            tail: 0,
            literal_next: false,
            erasing: false,
            pushed: false,
            column: 0,
            canon_column: 0,
            echo: VecDeque::new(),
            columns_before_echo: (0, 0),
            stopped: false,
            stopped_by_ioctl: false,
        };
        this.rebuild();
        this
    }

    /// The current modes.
    pub fn termios(&self) -> &Termios2 {
        &self.termios
    }

    /// Sets the modes. Returns true when output that `^S` had stopped runs again because `IXON` was switched off.
    ///
    /// Switching between canonical and other input keeps what is buffered: it becomes readable at once.
    #[must_use]
    pub fn set_termios(&mut self, new: Termios2) -> bool {
        let old = core::mem::replace(&mut self.termios, new);
        if (old.lflag ^ new.lflag) & (c::ICANON | c::EXTPROC) != 0 {
            self.line_ends = [0; RING / 64];
            if !self.is_canonical() || self.head == self.tail {
                self.canon_head = self.tail;
                self.pushed = false;
            } else {
                self.mark_line_end(self.head.wrapping_sub(1));
                self.canon_head = self.head;
                self.pushed = true;
            }
            self.erasing = false;
            self.literal_next = false;
        }
        self.rebuild();
        if old.iflag & c::IXON != 0 && new.iflag & c::IXON == 0 && self.stopped && !self.stopped_by_ioctl {
            self.stopped = false;
            return true;
        }
        false
    }

    /// Returns whether output is stopped.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Stops output as `TCXONC` with `TCOOFF` does. Returns whether it ran before.
    pub fn stop_by_ioctl(&mut self) -> bool {
        let changed = !self.stopped;
        self.stopped_by_ioctl = true;
        self.stopped = true;
        changed
    }

    /// Lets output run again as `TCXONC` with `TCOON` does, if `TCOOFF` had stopped it. Returns whether it was.
    pub fn start_by_ioctl(&mut self) -> bool {
        if !core::mem::take(&mut self.stopped_by_ioctl) {
            return false;
        }
        core::mem::take(&mut self.stopped)
    }

    /// Returns whether a `TCOOFF` holds the output.
    pub fn is_stopped_by_ioctl(&self) -> bool {
        self.stopped_by_ioctl
    }

    /// Lets output run whoever stopped it (hang-up). Returns whether it was stopped.
    pub fn start(&mut self) -> bool {
        self.stopped_by_ioctl = false;
        core::mem::take(&mut self.stopped)
    }

    /// Discards all input (`TCFLSH`, hang-up, a signal character).
    pub fn flush_input(&mut self) {
        self.head = 0;
        self.canon_head = 0;
        self.tail = 0;
        self.line_ends = [0; RING / 64];
        self.erasing = false;
        self.literal_next = false;
        self.pushed = false;
    }

    /// Discards echo that has not reached the device.
    pub fn flush_echo(&mut self) {
        if !self.echo.is_empty() {
            (self.column, self.canon_column) = self.columns_before_echo;
            self.echo.clear();
        }
    }

    /// `VMIN` and `VTIME` as [`read`](Self::read) outside canonical mode uses them.
    pub fn min_time(&self) -> (u8, u8) {
        (self.termios.cc[c::VMIN as usize], self.termios.cc[c::VTIME as usize])
    }

    /// Returns whether input is read by lines here (canonical, and not processed elsewhere).
    pub fn reads_lines(&self) -> bool {
        self.is_canonical() && !self.lflag(c::EXTPROC)
    }

    fn is_canonical(&self) -> bool {
        self.lflag(c::ICANON)
    }

    fn iflag(&self, flag: u32) -> bool {
        self.termios.iflag & flag != 0
    }

    fn oflag(&self, flag: u32) -> bool {
        self.termios.oflag & flag != 0
    }

    fn lflag(&self, flag: u32) -> bool {
        self.termios.lflag & flag != 0
    }

    fn cc(&self, index: u32) -> u8 {
        self.termios.cc[index as usize]
    }

    /// Recomputes which bytes need attention, as `n_tty_set_termios` does.
    fn rebuild(&mut self) {
        let i = self.termios.iflag;
        let l = self.termios.lflag;
        self.special = [0; 4];
        self.raw = i & (c::ISTRIP | c::IUCLC | c::IGNCR | c::ICRNL | c::INLCR | c::IXON | c::PARMRK) == 0
            && l & (c::ICANON | c::ISIG | c::ECHO) == 0;
        let mut add = |byte: u8| self.special[byte as usize / 64] |= 1 << (byte % 64);
        let cc = |index: u32| self.termios.cc[index as usize];
        if i & (c::IGNCR | c::ICRNL) != 0 {
            add(b'\r');
        }
        if i & c::INLCR != 0 {
            add(b'\n');
        }
        if l & c::ICANON != 0 {
            for byte in [cc(c::VERASE), cc(c::VKILL), cc(c::VEOF), b'\n', cc(c::VEOL)] {
                add(byte);
            }
            if l & c::IEXTEN != 0 {
                add(cc(c::VWERASE));
                add(cc(c::VLNEXT));
                add(cc(c::VEOL2));
                if l & c::ECHO != 0 {
                    add(cc(c::VREPRINT));
                }
            }
        }
        if i & c::IXON != 0 {
            add(cc(c::VSTART));
            add(cc(c::VSTOP));
        }
        if l & c::ISIG != 0 {
            add(cc(c::VINTR));
            add(cc(c::VQUIT));
            add(cc(c::VSUSP));
        }
        self.special[0] &= !(1 << DISABLED_CHAR);
    }

    fn is_special(&self, byte: u8) -> bool {
        self.special[byte as usize / 64] & 1 << (byte % 64) != 0
    }

    /// Whether `byte` continues a multi-byte character.
    fn is_continuation(&self, byte: u8) -> bool {
        self.iflag(c::IUTF8) && byte & 0xc0 == 0x80
    }

    fn at(&self, position: usize) -> u8 {
        self.ring[position % RING]
    }

    fn mark_line_end(&mut self, position: usize) {
        let p = position % RING;
        self.line_ends[p / 64] |= 1 << (p % 64);
    }

    fn is_line_end(&self, position: usize) -> bool {
        let p = position % RING;
        self.line_ends[p / 64] & 1 << (p % 64) != 0
    }

    fn clear_line_end(&mut self, position: usize) {
        let p = position % RING;
        self.line_ends[p / 64] &= !(1 << (p % 64));
    }
}

/// ASCII control characters, in the sense of the kernel's `iscntrl`.
fn is_control(byte: u8) -> bool {
    byte < 0x20 || byte == 0x7f
}

/// Letters and digits of Latin-1, in the sense of the kernel's `isalnum`.
fn is_alnum(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || (byte >= 0xc0 && byte != 0xd7 && byte != 0xf7)
}

/// Latin-1 lower case, the kernel's `tolower`.
fn to_lower(byte: u8) -> u8 {
    match byte {
        b'A'..=b'Z' | 0xc0..=0xd6 | 0xd8..=0xde => byte + 0x20,
        _ => byte,
    }
}

/// Latin-1 upper case, the kernel's `toupper` (which also moves 0xdf and 0xff).
fn to_upper(byte: u8) -> u8 {
    match byte {
        b'a'..=b'z' | 0xdf..=0xf6 | 0xf8..=0xff => byte - 0x20,
        _ => byte,
    }
}
