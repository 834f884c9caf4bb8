//! Pipes and FIFOs.
//!
//! A [`Pipe`] is a ring of page-sized buffers between two sets of files ([`PipeEnd`]). Bytes are copied once on each side;
//! `splice` moves the frames themselves ([`splice`](super::splice)). A write of at most `PIPE_BUF` bytes needs at most one
//! new buffer, so it goes in whole or waits: that makes it atomic. In packet mode (`O_DIRECT`) each buffer is a packet.
//!
//! Locking: `ring` (sleeping) is held over the copies of one transfer. How full the ring is stands beside it in an atomic,
//! so that sleepers' conditions and `poll` take no lock. Wake-ups happen after the change and without the lock.
//! References: `pipe(7)`, `fifo(7)`, `fs/pipe.c`; poll edges follow Linux's `pipe_read`/`pipe_write`.

mod fifo;
mod ring;

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use linux_uapi::raw::general as uapi;
use linux_uapi::stat::Stat;

use crate::fs::{File, FileOps, Inode, Sink, Source};
use crate::poll::{PollEvents, PollTable};
use crate::process::{Cap, capable, current};
use crate::user::UserPtr;
use crate::wait::{Mutex, WaitQueue};
use crate::{Errno, Result, signal};

pub use fifo::open_fifo;
pub use ring::{Buffer, PAGE, Ring};

/// Buffers of a new pipe (64 KiB).
const DEFAULT_SLOTS: usize = 16;
/// `/proc/sys/fs/pipe-max-size`: larger pipes need `CAP_SYS_RESOURCE`.
pub const MAX_SIZE: usize = 1 << 20;
/// The largest pipe at all: 2 GiB as on Linux would let a privileged mistake pin all memory.
const HARD_MAX_SIZE: usize = 64 << 20;

/// Inode numbers of pipes without a name.
static NEXT_INO: AtomicU64 = AtomicU64::new(1);

/// The shared part of a pipe.
pub struct Pipe {
    pub(super) ring: Mutex<Ring>,
    /// Buffers in use and in all, as of the last change of `ring`.
    used: AtomicUsize,
    slots: AtomicUsize,
    readers: AtomicU32,
    writers: AtomicU32,
    /// Opens so far, for FIFO opens that wait for the other side and for `POLLHUP`.
    reader_opens: AtomicU32,
    writer_opens: AtomicU32,
    read_queue: Arc<WaitQueue>,
    write_queue: Arc<WaitQueue>,
    ino: u64,
    created: i64,
    owner: (u32, u32),
}

/// What an open file of a pipe may do with it.
pub struct PipeEnd {
    pipe: Arc<Pipe>,
    reads: bool,
    writes: bool,
    /// `writer_opens` when a FIFO was opened for reading: no `POLLHUP` before a writer came.
    writer_opens_seen: u32,
    fifo: Option<Arc<Inode>>,
}

impl Pipe {
    fn new() -> Arc<Pipe> {
        Arc::new(Pipe {
            ring: Mutex::new(Ring::new(DEFAULT_SLOTS)),
            used: AtomicUsize::new(0),
            slots: AtomicUsize::new(DEFAULT_SLOTS),
            readers: AtomicU32::new(0),
            writers: AtomicU32::new(0),
            reader_opens: AtomicU32::new(0),
            writer_opens: AtomicU32::new(0),
            read_queue: Arc::new(WaitQueue::new()),
            write_queue: Arc::new(WaitQueue::new()),
            ino: NEXT_INO.fetch_add(1, Ordering::Relaxed),
            created: (ursa_hal::time::realtime_ns() / 1_000_000_000) as i64,
            owner: current().with_cred(|c| (c.fsuid, c.fsgid)),
        })
    }

    /// Whether there is something to read.
    pub(super) fn has_data(&self) -> bool {
        self.used.load(Ordering::SeqCst) > 0
    }

    /// Whether a buffer is free.
    pub(super) fn has_room(&self) -> bool {
        self.used.load(Ordering::SeqCst) < self.slots.load(Ordering::Relaxed)
    }

    pub(super) fn has_readers(&self) -> bool {
        self.readers.load(Ordering::SeqCst) > 0
    }

    pub(super) fn has_writers(&self) -> bool {
        self.writers.load(Ordering::SeqCst) > 0
    }

    /// Makes a change of the ring known; the ring is still locked.
    pub(super) fn publish(&self, ring: &Ring) {
        self.used.store(ring.used(), Ordering::SeqCst);
        self.slots.store(ring.slots(), Ordering::Relaxed);
    }

    /// Tells one reader that there is data (and all pollers).
    pub(super) fn wake_readers(&self) {
        self.read_queue.wake_n(1, PollEvents::READABLE, false);
    }

    /// Tells one writer that there is room (and all pollers).
    pub(super) fn wake_writers(&self) {
        self.write_queue.wake_n(1, PollEvents::WRITABLE, false);
    }

    /// Sleeps until there is data or no writer is left.
    pub(super) fn wait_for_data(&self) -> Result {
        self.read_queue.wait_interruptible(None, || (self.has_data() || !self.has_writers()).then_some(()))
    }

    /// Sleeps until there is room or no reader is left.
    pub(super) fn wait_for_room(&self) -> Result {
        self.write_queue.wait_interruptible(None, || (self.has_room() || !self.has_readers()).then_some(()))
    }

    fn wake_everybody(&self) {
        let all = PollEvents::READABLE | PollEvents::WRITABLE | PollEvents::ALWAYS;
        self.read_queue.wake_events(all);
        self.write_queue.wake_events(all);
    }

    fn open_end(&self, reads: bool, writes: bool) {
        if reads {
            self.readers.fetch_add(1, Ordering::SeqCst);
            self.reader_opens.fetch_add(1, Ordering::SeqCst);
        }
        if writes {
            self.writers.fetch_add(1, Ordering::SeqCst);
            self.writer_opens.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Takes an end back; true when it was the last of both sides.
    fn close_end(&self, reads: bool, writes: bool) -> bool {
        if reads {
            self.readers.fetch_sub(1, Ordering::SeqCst);
        }
        if writes {
            self.writers.fetch_sub(1, Ordering::SeqCst);
        }
        let (readers, writers) = (self.has_readers(), self.has_writers());
        if readers != writers {
            self.wake_everybody();
        }
        !readers && !writers
    }
}

/// Makes a pipe; the files for reading and for writing. `flags`: `O_NONBLOCK`, `O_DIRECT`.
pub fn create(flags: u32) -> (Arc<File>, Arc<File>) {
    let pipe = Pipe::new();
    pipe.open_end(true, true);
    let end =
        |reads: bool| Arc::new(PipeEnd { pipe: pipe.clone(), reads, writes: !reads, writer_opens_seen: 0, fifo: None });
    let reader = File::anon(end(true), "pipe:", uapi::O_RDONLY | flags & !uapi::O_DIRECT);
    let writer = File::anon(end(false), "pipe:", uapi::O_WRONLY | flags);
    (reader, writer)
}

/// Closes the writing end `writer`, which must be the last reference, and sleeps until the readers have closed theirs. A fatal
/// signal ends the wait.
pub fn close_and_wait_for_readers(writer: Arc<File>) {
    let Some(pipe) = writer.ops::<PipeEnd>().map(|end| end.pipe.clone()) else { return };
    // Counted as a reader, so that the last of the others to go wakes us.
    pipe.open_end(true, false);
    drop(writer);
    let alone = || (pipe.readers.load(Ordering::SeqCst) == 1).then_some(());
    let _ = pipe.write_queue.wait_killable(alone);
    pipe.close_end(true, false);
}

impl PipeEnd {
    /// The pipe, if this end reads.
    pub(super) fn readable(&self) -> Option<&Arc<Pipe>> {
        self.reads.then_some(&self.pipe)
    }

    /// The pipe, if this end writes.
    pub(super) fn writable(&self) -> Option<&Arc<Pipe>> {
        self.writes.then_some(&self.pipe)
    }

    fn set_size(&self, size: u64) -> Result<i64> {
        let size = usize::try_from(size).ok().filter(|s| *s <= i32::MAX as usize).ok_or(Errno::EINVAL)?;
        let size = size.max(PAGE).next_power_of_two();
        if size > HARD_MAX_SIZE || (size > MAX_SIZE && !capable(Cap::SysResource)) {
            return Err(Errno::EPERM);
        }
        let mut ring = self.pipe.ring.lock();
        let grew = size / PAGE > ring.slots();
        ring.resize(size / PAGE)?;
        self.pipe.publish(&ring);
        drop(ring);
        if grew {
            self.pipe.write_queue.wake_events(PollEvents::WRITABLE);
        }
        Ok(size as i64)
    }
}

/// Sends `SIGPIPE` to the calling thread.
pub(super) fn broken_pipe() -> Errno {
    signal::send_to_thread(&current(), signal::SigInfo::kernel(linux_uapi::signal::SIGPIPE));
    Errno::EPIPE
}

impl FileOps for PipeEnd {
    fn read(&self, f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        if dst.remaining() == 0 {
            return Ok(0);
        }
        let pipe = &*self.pipe;
        loop {
            if pipe.has_data() {
                let mut ring = pipe.ring.lock();
                let was_full = ring.is_full();
                let outcome = ring.read(dst);
                pipe.publish(&ring);
                let (has_room, more) = (!ring.is_full(), ring.used() > 0);
                drop(ring);
                if was_full && has_room {
                    pipe.wake_writers();
                }
                let n = dst.result(outcome)?;
                if more {
                    pipe.wake_readers();
                }
                if n > 0 {
                    return Ok(n);
                }
                // Somebody else was faster.
            }
            if !pipe.has_writers() {
                // A writer may have written and gone since we looked.
                if pipe.has_data() {
                    continue;
                }
                return Ok(0);
            }
            if f.is_nonblocking() {
                if pipe.has_data() {
                    continue;
                }
                return Err(Errno::EAGAIN);
            }
            pipe.wait_for_data()?;
        }
    }

    fn write(&self, f: &File, src: &mut Source<'_>, _pos: u64) -> Result<usize> {
        if src.remaining() == 0 {
            return Ok(0);
        }
        let pipe = &*self.pipe;
        let mut written = 0;
        loop {
            if !pipe.has_readers() {
                let error = broken_pipe();
                return if written > 0 { Ok(written) } else { Err(error) };
            }
            let mut ring = pipe.ring.lock();
            let outcome = ring.write(src, f.flags() & uapi::O_DIRECT != 0);
            pipe.publish(&ring);
            drop(ring);
            if src.done() > written {
                written = src.done();
                // Also when it was not empty: an edge-triggered epoll sees each write.
                pipe.wake_readers();
            }
            if let Err(error) = outcome {
                return if written > 0 { Ok(written) } else { Err(error) };
            }
            if src.remaining() == 0 {
                if pipe.has_room() {
                    pipe.wake_writers();
                }
                return Ok(written);
            }
            if f.is_nonblocking() {
                return if written > 0 { Ok(written) } else { Err(Errno::EAGAIN) };
            }
            if let Err(error) = pipe.wait_for_room() {
                return if written > 0 { Ok(written) } else { Err(error) };
            }
        }
    }

    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        let pipe = &*self.pipe;
        if let Some(pt) = pt {
            if self.reads {
                pt.register(&pipe.read_queue);
            }
            if self.writes {
                pt.register(&pipe.write_queue);
            }
        }
        let mut events = PollEvents::empty();
        if self.reads {
            if pipe.has_data() {
                events |= PollEvents::READABLE;
            }
            if !pipe.has_writers() && pipe.writer_opens.load(Ordering::Relaxed) != self.writer_opens_seen {
                events |= PollEvents::POLLHUP;
            }
        }
        if self.writes {
            if pipe.has_room() {
                events |= PollEvents::WRITABLE;
            }
            // Linux reports no error to a FIFO's only, nonblocking opener: it is its own reader then.
            if !pipe.has_readers() {
                events |= PollEvents::POLLERR;
            }
        }
        events
    }

    fn set_fasync(&self, _f: &Arc<File>, _on: bool) -> Result {
        Ok(())
    }

    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        match cmd {
            linux_uapi::raw::ioctl::FIONREAD => {
                let bytes = self.pipe.ring.lock().bytes();
                UserPtr::<i32>::new(arg as u64).write(&i32::try_from(bytes).unwrap_or(i32::MAX))?;
                Ok(0)
            }
            // No watch_queue (CONFIG_WATCH_QUEUE).
            _ => Err(Errno::ENOTTY),
        }
    }

    fn fcntl(&self, _f: &File, cmd: u32, arg: u64) -> Option<Result<i64>> {
        match cmd {
            uapi::F_GETPIPE_SZ => Some(Ok((self.pipe.slots.load(Ordering::Relaxed) * PAGE) as i64)),
            uapi::F_SETPIPE_SZ => Some(self.set_size(arg)),
            _ => None,
        }
    }

    fn stat(&self, _f: &File) -> Result<Option<Stat>> {
        if self.fifo.is_some() {
            return Ok(None);
        }
        let (uid, gid) = self.pipe.owner;
        Ok(Some(Stat {
            st_ino: self.pipe.ino,
            st_mode: uapi::S_IFIFO | 0o600,
            st_nlink: 1,
            st_uid: uid,
            st_gid: gid,
            st_blksize: PAGE as i64,
            st_atime: self.pipe.created,
            st_mtime: self.pipe.created,
            st_ctime: self.pipe.created,
            ..Stat::default()
        }))
    }

    fn link_name(&self, _f: &File, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "pipe:[{}]", self.pipe.ino)
    }

    fn reopen(&self, _f: &Arc<File>, flags: u32) -> Result<Arc<dyn FileOps>> {
        fifo::reopen(&self.pipe, flags)
    }

    fn release(&self, _f: &File) {
        match &self.fifo {
            Some(inode) => fifo::close(self, inode),
            None => {
                self.pipe.close_end(self.reads, self.writes);
            }
        }
    }
}
