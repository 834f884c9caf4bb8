//! FIFOs: pipes with a name.
//!
//! The pipe hangs on the inode while anybody has it open. An open for one side waits for the other.
//! References: `fifo(7)`, `fifo_open` in `fs/pipe.c`.

use alloc::sync::Arc;
use core::any::Any;
use core::sync::atomic::Ordering;

use linux_uapi::raw::general as uapi;

use super::{Pipe, PipeEnd};
use crate::fs::{FileOps, Inode};
use crate::poll::PollEvents;
use crate::{Errno, Result};

/// Opens a FIFO. `flags` are `O_*`.
///
/// # Errors
/// `ENXIO` for a nonblocking writer without reader, `EINVAL` for access mode 3, `ERESTARTSYS`.
pub fn open_fifo(inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>> {
    let (reads, writes) = sides(flags)?;
    let nonblocking = flags & uapi::O_NONBLOCK != 0;
    let fresh = Pipe::new();
    let (pipe, absent_since) = {
        let mut special = inode.special.lock();
        let present = special.clone().and_then(|any| any.downcast::<Pipe>().ok());
        let pipe = present.unwrap_or_else(|| {
            *special = Some(fresh.clone() as Arc<dyn Any + Send + Sync>);
            fresh.clone()
        });
        if nonblocking && writes && !reads && !pipe.has_readers() {
            if Arc::ptr_eq(&pipe, &fresh) {
                *special = None;
            }
            return Err(Errno::ENXIO);
        }
        let absent_since = count_in(&pipe, reads, writes);
        (pipe, absent_since)
    };
    pipe.wake_everybody();
    let end = PipeEnd {
        writer_opens_seen: if reads && nonblocking && !pipe.has_writers() {
            pipe.writer_opens.load(Ordering::SeqCst)
        } else {
            // Any value that the counter has left: a hang-up shows once the last writer goes.
            pipe.writer_opens.load(Ordering::SeqCst).wrapping_sub(1)
        },
        pipe,
        reads,
        writes,
        fifo: Some(inode.clone()),
    };
    let partner = match absent_since {
        Some(opens) if !nonblocking => wait_for_partner(&end, opens),
        _ => Ok(()),
    };
    if let Err(error) = partner {
        close(&end, inode);
        return Err(error);
    }
    Ok(Arc::new(end))
}

/// Opens a pipe without a name again, through `/proc/PID/fd/N`. `flags` are `O_*`.
///
/// As on Linux (`is_pipe` in `fifo_open`) nobody waits for a partner: one that is gone from such a pipe may never come
/// back, and what it has written is there to be read.
///
/// # Errors
/// `EINVAL` for access mode 3.
pub(super) fn reopen(pipe: &Arc<Pipe>, flags: u32) -> Result<Arc<dyn FileOps>> {
    let (reads, writes) = sides(flags)?;
    pipe.open_end(reads, writes);
    pipe.wake_everybody();
    Ok(Arc::new(PipeEnd { pipe: pipe.clone(), reads, writes, writer_opens_seen: 0, fifo: None }))
}

/// Counts a new end. When there is no partner: how often its side had been opened before.
///
/// The look comes first: a partner that is here already, and waits for us, may do its work and leave as soon as we are
/// counted; one that comes later moves the counter.
fn count_in(pipe: &Pipe, reads: bool, writes: bool) -> Option<u32> {
    let opens = if reads { &pipe.writer_opens } else { &pipe.reader_opens }.load(Ordering::SeqCst);
    let present = if reads { pipe.has_writers() } else { pipe.has_readers() };
    pipe.open_end(reads, writes);
    (!present && !(reads && writes)).then_some(opens)
}

/// Which sides an access mode opens.
fn sides(flags: u32) -> Result<(bool, bool)> {
    match flags & uapi::O_ACCMODE {
        uapi::O_RDONLY => Ok((true, false)),
        uapi::O_WRONLY => Ok((false, true)),
        uapi::O_RDWR => Ok((true, true)),
        _ => Err(Errno::EINVAL),
    }
}

/// Sleeps until the other side was opened once more than `before`.
fn wait_for_partner(end: &PipeEnd, before: u32) -> Result {
    let pipe = &end.pipe;
    let (queue, opens) =
        if end.reads { (&pipe.read_queue, &pipe.writer_opens) } else { (&pipe.write_queue, &pipe.reader_opens) };
    queue.wait_interruptible(None, || (opens.load(Ordering::SeqCst) != before).then_some(()))
}

/// Takes an end back; the pipe leaves the inode with the last one.
pub(super) fn close(end: &PipeEnd, inode: &Arc<Inode>) {
    let gone = {
        let mut special = inode.special.lock();
        if end.pipe.close_end(end.reads, end.writes) { special.take() } else { None }
    };
    drop(gone);
    if !end.pipe.has_readers() || !end.pipe.has_writers() {
        end.pipe.read_queue.wake_events(PollEvents::READABLE | PollEvents::ALWAYS);
        end.pipe.write_queue.wake_events(PollEvents::WRITABLE | PollEvents::ALWAYS);
    }
}
