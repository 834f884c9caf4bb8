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
    let pipe = {
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
        pipe.open_end(reads, writes);
        pipe
    };
    enter(pipe, (reads, writes), nonblocking, Some(inode.clone()))
}

/// Opens a pipe without a name again, through `/proc/PID/fd/N`. `flags` are `O_*`.
///
/// # Errors
/// As [`open_fifo`].
pub(super) fn reopen(pipe: &Arc<Pipe>, flags: u32) -> Result<Arc<dyn FileOps>> {
    let (reads, writes) = sides(flags)?;
    let nonblocking = flags & uapi::O_NONBLOCK != 0;
    if nonblocking && writes && !reads && !pipe.has_readers() {
        return Err(Errno::ENXIO);
    }
    pipe.open_end(reads, writes);
    enter(pipe.clone(), (reads, writes), nonblocking, None)
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

/// Makes the end whose sides are already counted, and waits for a partner.
fn enter(
    pipe: Arc<Pipe>,
    (reads, writes): (bool, bool),
    nonblocking: bool,
    fifo: Option<Arc<Inode>>,
) -> Result<Arc<dyn FileOps>> {
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
        fifo,
    };
    if let Err(error) = wait_for_partner(&end, nonblocking) {
        end.close();
        return Err(error);
    }
    Ok(Arc::new(end))
}

fn wait_for_partner(end: &PipeEnd, nonblocking: bool) -> Result {
    let pipe = &end.pipe;
    if (end.reads && end.writes) || nonblocking {
        return Ok(());
    }
    // A partner that came and went in the meantime counts.
    if end.reads {
        let before = pipe.writer_opens.load(Ordering::SeqCst);
        let came = || pipe.has_writers() || pipe.writer_opens.load(Ordering::SeqCst) != before;
        pipe.read_queue.wait_interruptible(None, || came().then_some(()))
    } else {
        let before = pipe.reader_opens.load(Ordering::SeqCst);
        let came = || pipe.has_readers() || pipe.reader_opens.load(Ordering::SeqCst) != before;
        pipe.write_queue.wait_interruptible(None, || came().then_some(()))
    }
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
