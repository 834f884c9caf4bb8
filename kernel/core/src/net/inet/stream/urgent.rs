//! Urgent data: the byte that `MSG_OOB` sends lies in the stream like all others, and the reader is told where.
//!
//! There is one urgent byte at a time, the last that came. A read ends before it; one that begins at it passes it over, unless it is
//! wanted in line (`SO_OOBINLINE`). `MSG_OOB` fetches it once, from wherever the reader is; its place stays marked until the reader has passed it.
//! References: tcp(7), RFC 6093; Linux `tcp_check_urg`, `tcp_recv_urg`, `tcp_recvmsg_locked`.

use core::sync::atomic::{AtomicBool, Ordering};

use ursa_hal::mm::Frame;
use ursa_hal::sync::Once;

use super::{Inner, Segment, Stream};
use crate::fs::owner::SharedOwner;
use crate::fs::{Source, sigio};
use crate::poll::PollEvents;
use crate::{Errno, Result};

/// In the flags of a stream: there is an urgent byte, read out of band or not, that the reader has not passed.
pub(super) const URGENT: u32 = 8;

/// What the reader's socket says of urgent data.
#[derive(Default)]
pub struct Policy {
    /// Whom `SIGURG` is for.
    pub owner: Once<SharedOwner>,
    /// `SO_OOBINLINE`
    pub inline: AtomicBool,
}

/// The urgent byte.
pub(super) struct Urgent {
    /// Its place in the stream, counted as [`Inner::taken`] is.
    at: usize,
    byte: u8,
    /// It was read out of band.
    read: bool,
}

/// What a reader may do at its place.
pub(super) enum Ahead {
    /// So many bytes.
    Bytes(usize),
    /// Whatever there is.
    All,
    /// Nothing more in this read: the urgent byte is next.
    Stop,
    /// All, behind the urgent byte that is next.
    Over,
}

impl Inner {
    /// Bytes between the reader and the urgent byte.
    pub(super) fn until_urgent(&self) -> Option<usize> {
        self.urgent.as_ref().map(|urgent| urgent.at.wrapping_sub(self.taken))
    }

    /// How far a read may go that has `begun` or not.
    pub(super) fn ahead(&self, begun: bool, inline: bool) -> Ahead {
        match self.until_urgent() {
            None => Ahead::All,
            Some(0) if begun => Ahead::Stop,
            Some(0) if inline => Ahead::All,
            Some(0) => Ahead::Over,
            Some(bytes) => Ahead::Bytes(bytes),
        }
    }

    /// The reader has passed `n` bytes; whether the urgent one was among them.
    pub(super) fn pass(&mut self, n: usize) -> bool {
        let passed = self.until_urgent().is_some_and(|until| until < n);
        if passed {
            self.urgent = None;
        }
        self.taken = self.taken.wrapping_add(n);
        passed
    }

    /// Drops the first byte; what is left of it is for the caller to drop outside of the lock.
    fn drop_first(&mut self) -> Option<Frame> {
        let first = self.segments.front_mut()?;
        first.offset += 1;
        first.len -= 1;
        if first.len > 0 {
            return None;
        }
        let frame = self.segments.pop_front()?.frame;
        self.keep(frame)
    }
}

impl Stream {
    pub(super) fn is_inline(&self) -> bool {
        self.reader.urgency.inline.load(Ordering::Relaxed)
    }

    pub(super) fn urgent_passed(&self) {
        self.flags.fetch_and(!URGENT, Ordering::SeqCst);
    }

    /// The reader stands at the urgent byte and does not want it.
    pub(super) fn pass_over(&self, inner: &mut Inner) -> Option<Frame> {
        let frame = inner.drop_first();
        self.len.fetch_sub(1, Ordering::SeqCst);
        if inner.pass(1) {
            self.urgent_passed();
        }
        frame
    }

    /// Writes the byte that is left as the urgent one: 0 when there is no room.
    ///
    /// # Errors
    /// `EFAULT`, `ENOMEM`; nothing was written then.
    pub fn write_urgent(&self, src: &mut Source<'_>) -> Result<usize> {
        if self.room() == 0 {
            return Ok(0);
        }
        let mut byte = [0];
        src.take_all(&mut byte)?;
        let mut dropped = None;
        {
            let mut inner = self.inner.lock();
            // Room that is used by another writer meanwhile is exceeded by this one byte.
            let frame = inner.frame().ok_or(Errno::ENOMEM)?;
            frame.write(0, &byte);
            if inner.until_urgent() == Some(0) && !self.is_inline() {
                // The reader stands at the former one, which is not data now either.
                dropped = self.pass_over(&mut inner);
            }
            let at = inner.taken.wrapping_add(self.len());
            inner.segments.push_back(Segment { frame, offset: 0, len: 1, open: false });
            inner.urgent = Some(Urgent { at, byte: byte[0], read: false });
            self.len.fetch_add(1, Ordering::SeqCst);
            self.flags.fetch_or(URGENT, Ordering::SeqCst);
        }
        drop(dropped);
        self.written.fetch_add(1, Ordering::Relaxed);
        if let Some(owner) = self.reader.urgency.owner.get() {
            sigio::urgent(owner);
        }
        self.reader.queue.wake_events(PollEvents::READABLE | PollEvents::POLLPRI);
        Ok(1)
    }

    /// Reads the urgent byte out of band.
    ///
    /// # Errors
    /// `EINVAL` when there is none, or it was read.
    pub fn take_urgent(&self, peek: bool) -> Result<u8> {
        let mut inner = self.inner.lock();
        let urgent = inner.urgent.as_mut().filter(|urgent| !urgent.read).ok_or(Errno::EINVAL)?;
        urgent.read = !peek;
        Ok(urgent.byte)
    }

    /// Whether an urgent byte waits to be read out of band (`POLLPRI`).
    pub fn has_urgent(&self) -> bool {
        self.has(URGENT) && self.inner.lock().urgent.as_ref().is_some_and(|urgent| !urgent.read)
    }

    /// Whether the next byte is the urgent one (`SIOCATMARK`), `skip` bytes from here.
    pub fn is_at_urgent(&self, skip: usize) -> bool {
        self.has(URGENT) && self.inner.lock().until_urgent() == Some(skip)
    }

    /// Whether a read that begins now passes the urgent byte over: it is next, and not wanted in line.
    pub fn passes_over(&self) -> bool {
        self.is_at_urgent(0) && !self.is_inline()
    }

    /// Bytes that the next read can get (`FIONREAD`).
    pub fn readable(&self) -> usize {
        if !self.has(URGENT) || self.is_inline() {
            return self.len();
        }
        let until = self.inner.lock().until_urgent();
        until.unwrap_or_else(|| self.len())
    }
}
