//! One direction of a TCP connection inside this machine: [`Stream`].
//!
//! A connection between two sockets of this machine is two streams, and no packet is ever made: what one end writes lies in
//! frames that the other end reads, with one copy in and one out, no checksum, no timer and no lock common to the two
//! directions. A connection to another machine is two streams as well, whose far ends a TCP engine ([`Pump`]) moves. So all
//! that programs see (waiting, readiness, peeking, half-close, reset) is written once, for streams.
//!
//! ```text
//!  write ──▶ [ segments, in frames ] ──▶ read          FIN: the writer ends          GONE: the reader has closed
//!                                                      RESET: the connection was broken off
//! ```
//! Locking: `read_lock` (sleeping) keeps readers in order; `inner` is a leaf, never held over a copy from or to a program.

mod urgent;

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use ursa_hal::addr::PAGE_SIZE;
use ursa_hal::mm::Frame;
use ursa_hal::sync::{Once, SpinLock};

pub use self::urgent::Policy;
use self::urgent::{Ahead, Urgent};
use crate::fs::{Sink, Source};
use crate::net::pending_error::PendingError;
use crate::poll::PollEvents;
use crate::wait::{Mutex, WaitQueue};
use crate::{Errno, Result};

/// The writer ends: no more bytes will come.
pub const FIN: u32 = 1;
/// The reader has closed: bytes go nowhere.
pub const GONE: u32 = 2;
/// The connection was broken off.
pub const RESET: u32 = 4;

/// Up to so many bytes are copied by way of the stack and gathered in frames.
const SMALL: usize = 1024;
/// Frames that one step of a write or read moves.
const BATCH: usize = 16;
/// Frames kept for reuse, so that a conversation does not allocate.
const SPARE_FRAMES: usize = 2;

/// What moves a stream's far end: told when bytes were written, and when room was made for one that had found none.
pub trait Pump: Send + Sync {
    /// Looks at both streams.
    fn kick(&self);
}

/// Bytes in a frame.
struct Segment {
    frame: Frame,
    offset: usize,
    len: usize,
    /// May be appended to.
    open: bool,
}

#[derive(Default)]
struct Inner {
    segments: VecDeque<Segment>,
    spare: [Option<Frame>; SPARE_FRAMES],
    /// Bytes that the reader has passed, ever.
    taken: usize,
    urgent: Option<Urgent>,
}

/// One direction of a connection.
pub struct Stream {
    inner: SpinLock<Inner>,
    len: AtomicUsize,
    flags: AtomicU32,
    /// What the writer's and the reader's buffer sizes allow, together.
    writer_room: AtomicUsize,
    reader_room: AtomicUsize,
    read_lock: Mutex<()>,
    /// Bytes that have gone in, for `TCP_INFO`.
    written: AtomicUsize,
    /// The reader.
    pub reader: End,
    /// The writer.
    pub writer: End,
    pump: Once<Weak<dyn Pump>>,
}

/// A socket at an end of a stream: where it waits, and where it finds its error.
#[derive(Clone)]
pub struct End {
    /// Who waits for bytes, at the reader's end, or for room, at the writer's.
    pub queue: Arc<WaitQueue>,
    /// `SO_ERROR`
    pub error: Arc<PendingError>,
    /// Its buffer size.
    pub room: usize,
    /// What becomes of urgent data.
    pub urgency: Arc<Policy>,
}

impl Inner {
    fn frame(&mut self) -> Option<Frame> {
        self.spare.iter_mut().find_map(Option::take).or_else(Frame::alloc)
    }

    /// Keeps a used frame; what is not kept is for the caller to drop outside of the lock.
    fn keep(&mut self, frame: Frame) -> Option<Frame> {
        match self.spare.iter_mut().find(|s| s.is_none()) {
            Some(place) if frame.is_unique() => {
                *place = Some(frame);
                None
            }
            _ => Some(frame),
        }
    }
}

impl Stream {
    /// An empty stream between a writer and a reader, with the room that their buffer sizes give.
    pub fn new(writer: End, reader: End) -> Arc<Stream> {
        Arc::new(Stream {
            inner: SpinLock::new(Inner::default()),
            len: AtomicUsize::new(0),
            flags: AtomicU32::new(0),
            writer_room: AtomicUsize::new(writer.room),
            reader_room: AtomicUsize::new(reader.room),
            read_lock: Mutex::new(()),
            written: AtomicUsize::new(0),
            reader,
            writer,
            pump: Once::new(),
        })
    }

    /// Attaches what moves the far end.
    pub fn set_pump(&self, pump: Weak<dyn Pump>) {
        // Set once, where the connection is made.
        let _: core::result::Result<_, _> = self.pump.set(pump);
    }

    /// Whether an engine moves its far end.
    pub fn is_pumped(&self) -> bool {
        self.pump.get().is_some()
    }

    fn kick(&self) {
        if let Some(pump) = self.pump.get().and_then(Weak::upgrade) {
            pump.kick();
        }
    }

    /// Whether any of `flags` is set.
    pub fn has(&self, flags: u32) -> bool {
        self.flags.load(Ordering::SeqCst) & flags != 0
    }

    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::SeqCst)
    }

    /// Bytes that have gone in since it was made.
    pub fn total(&self) -> usize {
        self.written.load(Ordering::Relaxed)
    }

    fn capacity(&self) -> usize {
        self.writer_room.load(Ordering::Relaxed) + self.reader_room.load(Ordering::Relaxed)
    }

    /// Bytes that can be written now.
    pub fn room(&self) -> usize {
        self.capacity().saturating_sub(self.len())
    }

    /// Whether `poll` says writable: a third is free, as `sk_stream_is_writeable` has it.
    pub fn is_writable(&self) -> bool {
        let used = self.len();
        self.capacity().saturating_sub(used) >= (used / 2).max(1)
    }

    /// The writer's buffer size changed.
    pub fn set_writer_room(&self, bytes: usize) {
        self.writer_room.store(bytes, Ordering::Relaxed);
        self.wake_writers();
    }

    /// The reader's buffer size changed.
    pub fn set_reader_room(&self, bytes: usize) {
        self.reader_room.store(bytes, Ordering::Relaxed);
        self.wake_writers();
    }

    fn wake_writers(&self) {
        if self.is_writable() {
            self.writer.queue.wake_events(PollEvents::WRITABLE);
        }
    }

    /// Bytes that the other machine, or the reader's buffer, has not taken over yet (`SIOCOUTQ`).
    pub fn unacknowledged(&self) -> usize {
        let taken = if self.is_pumped() { 0 } else { self.reader_room.load(Ordering::Relaxed) };
        self.len().saturating_sub(taken)
    }

    /// Sets flags and wakes whoever may care: both ends, and the pump.
    pub fn mark(&self, flags: u32) {
        self.mark_quietly(flags);
        self.kick();
    }

    /// As [`mark`](Self::mark), by the pump itself.
    pub fn mark_quietly(&self, flags: u32) {
        self.flags.fetch_or(flags, Ordering::SeqCst);
        let all = PollEvents::READABLE | PollEvents::WRITABLE | PollEvents::ALWAYS | PollEvents::POLLRDHUP;
        self.reader.queue.wake_events(all);
        self.writer.queue.wake_events(all);
    }

    /// Drops what is in it: its reader is gone.
    pub fn clear(&self) {
        let mut inner = self.inner.lock();
        let segments = core::mem::take(&mut inner.segments);
        let gone = segments.iter().map(|s| s.len).sum();
        self.len.fetch_sub(gone, Ordering::SeqCst);
        if inner.pass(gone) {
            self.urgent_passed();
        }
        let spare = core::mem::take(&mut inner.spare);
        drop(inner);
        drop((segments, spare));
        self.wake_writers();
    }

    /// Writes what there is room for, at most one step's worth and `most` bytes: 0 when it is full. Does not wait.
    ///
    /// # Errors
    /// `EFAULT`, `ENOMEM`; nothing was written then.
    pub fn write(&self, src: &mut Source<'_>, most: usize) -> Result<usize> {
        let want = most.min(self.room());
        if want == 0 {
            return Ok(0);
        }
        let written = if want <= SMALL { self.write_small(src, want)? } else { self.write_frames(src, want)? };
        self.written.fetch_add(written, Ordering::Relaxed);
        self.reader.queue.wake_events(PollEvents::READABLE);
        self.kick();
        Ok(written)
    }

    fn write_small(&self, src: &mut Source<'_>, want: usize) -> Result<usize> {
        let mut bytes = [0; SMALL];
        let n = src.take(&mut bytes[..want])?;
        let mut inner = self.inner.lock();
        if let Some(last) = inner.segments.back_mut()
            && last.open
            && last.offset + last.len + n <= PAGE_SIZE
        {
            last.frame.write(last.offset + last.len, &bytes[..n]);
            last.len += n;
        } else {
            let frame = inner.frame().ok_or(Errno::ENOMEM)?;
            frame.write(0, &bytes[..n]);
            inner.segments.push_back(Segment { frame, offset: 0, len: n, open: true });
        }
        self.len.fetch_add(n, Ordering::SeqCst);
        Ok(n)
    }

    fn write_frames(&self, src: &mut Source<'_>, want: usize) -> Result<usize> {
        let mut batch: [Option<Segment>; BATCH] = [const { None }; BATCH];
        let want = want.min(BATCH * PAGE_SIZE);
        let mut done = 0;
        for place in &mut batch {
            if done == want {
                break;
            }
            let frame = match self.inner.lock().frame() {
                Some(frame) => frame,
                None if done > 0 => break,
                None => return Err(Errno::ENOMEM),
            };
            let len = (want - done).min(PAGE_SIZE);
            match src.take_to_frame(&frame, 0, len) {
                Ok(n) => {
                    *place = Some(Segment { frame, offset: 0, len: n, open: true });
                    done += n;
                    if n < len {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        let mut inner = self.inner.lock();
        inner.segments.extend(batch.into_iter().flatten());
        self.len.fetch_add(done, Ordering::SeqCst);
        Ok(done)
    }

    /// Reads into `dst` as the next step of a read that has got `got` bytes before: behind them, without taking anything, when it
    /// `peek`s. 0: there is nothing.
    ///
    /// # Errors
    /// `EFAULT` when nothing could be copied.
    pub fn read(&self, dst: &mut Sink<'_>, peek: bool, got: usize) -> Result<usize> {
        let _order = self.read_lock.lock();
        if peek { self.peek(dst, got) } else { self.take(dst, got > 0, true) }
    }

    /// Drops up to `want` bytes unread: `MSG_TRUNC` on a stream. `begun`: the read has got some before.
    pub fn discard(&self, want: usize, begun: bool) -> usize {
        let _order = self.read_lock.lock();
        let mut nowhere = Nowhere;
        self.take(&mut Sink::pages(&mut nowhere, want), begun, true).unwrap_or(0)
    }

    fn take(&self, dst: &mut Sink<'_>, begun: bool, wakes: bool) -> Result<usize> {
        let mut total = 0;
        loop {
            let mut want = dst.remaining();
            let mut batch: [Option<Segment>; BATCH] = [const { None }; BATCH];
            let mut taken = 0;
            let mut passed_over = None;
            {
                let mut inner = self.inner.lock();
                match inner.ahead(begun || total > 0, self.is_inline()) {
                    Ahead::All => {}
                    Ahead::Bytes(bytes) => want = want.min(bytes),
                    Ahead::Stop => want = 0,
                    Ahead::Over if want > 0 => passed_over = self.pass_over(&mut inner),
                    Ahead::Over => {}
                }
                for place in &mut batch {
                    if taken >= want {
                        break;
                    }
                    let Some(segment) = inner.segments.pop_front() else { break };
                    taken += segment.len;
                    *place = Some(segment);
                }
            }
            drop(passed_over);
            if taken == 0 {
                break;
            }
            let mut copied = 0;
            let mut failure = None;
            for segment in batch.iter_mut().flatten() {
                if failure.is_some() || copied == want {
                    break;
                }
                let len = segment.len.min(want - copied);
                match dst.put_frame(&segment.frame, segment.offset, len) {
                    Ok(n) => {
                        segment.offset += n;
                        segment.len -= n;
                        copied += n;
                        if n < len {
                            failure = Some(Errno::EFAULT);
                        }
                    }
                    Err(error) => failure = Some(error),
                }
            }
            let mut used: [Option<Frame>; BATCH] = [const { None }; BATCH];
            {
                let mut inner = self.inner.lock();
                for (place, slot) in batch.iter_mut().zip(&mut used).rev() {
                    match place.take() {
                        Some(segment) if segment.len > 0 => inner.segments.push_front(segment),
                        Some(segment) => *slot = inner.keep(segment.frame),
                        None => {}
                    }
                }
                self.len.fetch_sub(copied, Ordering::SeqCst);
                if inner.pass(copied) {
                    self.urgent_passed();
                }
            }
            drop(used);
            total += copied;
            match failure {
                Some(error) if total == 0 => return Err(error),
                Some(_) => break,
                None if dst.remaining() == 0 || taken < want => break,
                None => {}
            }
        }
        if total > 0 && wakes {
            self.wake_writers();
            self.kick();
        }
        Ok(total)
    }

    fn peek(&self, dst: &mut Sink<'_>, got: usize) -> Result<usize> {
        let mut total = 0;
        while dst.remaining() > 0 {
            let mut most = dst.remaining();
            let next = {
                let inner = self.inner.lock();
                let mut skip = got + total;
                match inner.ahead(false, self.is_inline()) {
                    // The byte that is passed over is there still.
                    Ahead::Over => skip += 1,
                    Ahead::Bytes(bytes) => most = most.min(bytes.saturating_sub(skip)),
                    Ahead::All | Ahead::Stop => {}
                }
                if most == 0 {
                    break;
                }
                inner.segments.iter().find_map(|s| {
                    if skip >= s.len {
                        skip -= s.len;
                        return None;
                    }
                    Some((s.frame.clone(), s.offset + skip, s.len - skip))
                })
            };
            let Some((frame, offset, len)) = next else { break };
            let len = len.min(most);
            match dst.put_frame(&frame, offset, len) {
                Ok(n) => {
                    total += n;
                    if n < len {
                        break;
                    }
                }
                Err(error) if total == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(total)
    }

    /// Copies bytes out for the pump, without telling it of the room.
    pub fn drain(&self, into: &mut [u8]) -> usize {
        let _order = self.read_lock.lock();
        let taken = self.take(&mut Sink::kernel(into), false, false).unwrap_or(0);
        if taken > 0 {
            self.wake_writers();
        }
        taken
    }

    /// Puts the pump's bytes in, as many as there is room for.
    pub fn fill(&self, bytes: &[u8]) -> usize {
        let mut source = Source::kernel(bytes);
        let mut done = 0;
        while source.remaining() > 0 {
            let want = source.remaining().min(self.room());
            if want == 0 {
                break;
            }
            let step =
                if want <= SMALL { self.write_small(&mut source, want) } else { self.write_frames(&mut source, want) };
            match step {
                Ok(n) if n > 0 => done += n,
                _ => break,
            }
        }
        if done > 0 {
            self.written.fetch_add(done, Ordering::Relaxed);
            self.reader.queue.wake_events(PollEvents::READABLE);
        }
        done
    }
}

/// Takes bytes and keeps none.
struct Nowhere;

impl crate::fs::PageSink for Nowhere {
    fn bytes(&mut self, data: &[u8]) -> Result<usize> {
        Ok(data.len())
    }

    fn frame(&mut self, _frame: &Frame, _offset: usize, len: usize) -> Result<usize> {
        Ok(len)
    }
}
