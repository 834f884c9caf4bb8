//! The device side of a virtual terminal, [`Terminal`]: it keeps the last output for the daemon that draws it.

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};

use console_abi::HISTORY;
use ursa_hal::sync::{Once, SpinLock};

use super::super::{Tty, TtyDriver};
use super::{daemon, ioctl};
use crate::Result;

/// What a terminal takes at a time when nobody draws it: any amount, the oldest is lost.
const UNDRAWN_ROOM: usize = 4096;

/// Output: the last [`HISTORY`] bytes, of which the daemon has had `seen`.
#[derive(Default)]
struct Stream {
    bytes: VecDeque<u8>,
    /// How many of `bytes`, from the front, the daemon has read.
    seen: usize,
}

/// The driver of one terminal.
pub(super) struct Terminal {
    /// Its number, and the terminal above.
    tty: Once<(u32, Weak<Tty>)>,
    stream: SpinLock<Stream>,
}

impl Terminal {
    pub fn new() -> Arc<Terminal> {
        Arc::new(Terminal { tty: Once::new(), stream: SpinLock::new(Stream::default()) })
    }

    pub fn set_tty(&self, number: u32, tty: &Arc<Tty>) {
        let _ = self.tty.set((number, Arc::downgrade(tty)));
    }

    /// The next bytes for the daemon, up to `max`, appended to `out`; how many.
    pub fn read(&self, max: usize, out: &mut alloc::vec::Vec<u8>) -> usize {
        let mut stream = self.stream.lock();
        let seen = stream.seen;
        let n = (stream.bytes.len() - seen).min(max);
        let (front, back) = stream.bytes.as_slices();
        let first = front.get(seen..).unwrap_or(&[]);
        let from_front = n.min(first.len());
        out.extend_from_slice(&first[..from_front]);
        let skip = seen.saturating_sub(front.len());
        out.extend_from_slice(&back[skip..skip + n - from_front]);
        stream.seen += n;
        n
    }

    /// Bytes that the daemon has not read.
    pub fn unread(&self) -> usize {
        let stream = self.stream.lock();
        stream.bytes.len() - stream.seen
    }

    /// A new daemon reads from the oldest byte that is kept.
    pub fn rewind(&self) {
        self.stream.lock().seen = 0;
    }
}

impl TtyDriver for Terminal {
    fn room(&self) -> usize {
        if daemon::is_attached() { HISTORY - self.unread().min(HISTORY) } else { UNDRAWN_ROOM }
    }

    fn write(&self, bytes: &[u8]) {
        let mut stream = self.stream.lock();
        let lost = (stream.bytes.len() + bytes.len()).saturating_sub(HISTORY).min(stream.bytes.len());
        stream.bytes.drain(..lost);
        stream.seen = stream.seen.saturating_sub(lost);
        stream.bytes.extend(bytes);
    }

    fn output_written(&self) {
        if self.unread() > 0 {
            daemon::output_waits();
        }
    }

    fn last_closed(&self) {
        // As Linux's TTY_DRIVER_RESET_TERMIOS: the next program finds fresh modes.
        if let Some(tty) = self.tty.get().and_then(|(_, tty)| tty.upgrade())
            && tty.session().is_none()
        {
            tty.discard_input();
            let initial = tty.initial;
            tty.set_modes(|_| initial);
        }
    }

    fn ioctl(&self, tty: &Arc<Tty>, cmd: u32, arg: usize) -> Option<Result<i64>> {
        ioctl::ioctl(tty, cmd, arg)
    }
}
