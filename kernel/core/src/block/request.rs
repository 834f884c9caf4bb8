//! Transfers on their way: [`Request`], [`Batch`], [`Backend`].

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use ursa_hal::mm::Frame;

use super::SECTOR;
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fill the frames.
    Read,
    /// Store the frames.
    Write,
    /// Fill the frame with the device's serial number.
    Identify,
    /// Make durable what has been written and answered.
    Flush,
    /// The contents are not needed any more.
    Discard,
    /// Store zeroes. `unmap`: space may be given back.
    WriteZeroes {
        /// See above.
        unmap: bool,
    },
}

impl Op {
    /// Whether the frames' contents go to the device, or its contents change.
    pub fn changes(self) -> bool {
        !matches!(self, Op::Read | Op::Identify | Op::Flush)
    }
}

/// Counters of one device, as `stat` in sysfs shows them.
#[derive(Default)]
pub struct Statistics {
    /// Completed, by kind: read, write, discard, flush.
    pub count: [AtomicU64; 4],
    /// Sectors, by kind.
    pub sectors: [AtomicU64; 4],
    /// Nanoseconds that requests took, by kind.
    pub time: [AtomicU64; 4],
    /// On their way: reads, all others.
    pub in_flight: [AtomicU32; 2],
}

fn kind(op: Op) -> usize {
    match op {
        Op::Read | Op::Identify => 0,
        Op::Write | Op::WriteZeroes { .. } => 1,
        Op::Discard => 2,
        Op::Flush => 3,
    }
}

/// Requests that one caller waits for together.
#[derive(Default)]
pub struct Batch {
    pending: AtomicU32,
    /// The first error's number.
    error: AtomicU32,
    done: WaitQueue,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Arc<Batch> {
        Arc::default()
    }

    fn finish(&self, result: Result) {
        if let Err(error) = result {
            let _ = self.error.compare_exchange(0, error.raw(), SeqCst, SeqCst);
        }
        if self.pending.fetch_sub(1, SeqCst) == 1 {
            self.done.wake_all();
        }
    }

    /// Waits until all requests are done.
    ///
    /// # Errors
    /// The first that a request ended with; `EINTR` for a thread that is to die: then the requests go on alone.
    pub fn wait(&self) -> Result {
        self.done.wait_killable(|| (self.pending.load(SeqCst) == 0).then_some(()))?;
        match self.error.load(SeqCst) {
            0 => Ok(()),
            raw => Err(Errno::from_raw(raw as _).unwrap_or(Errno::EIO)),
        }
    }
}

/// One transfer. It owns its frames until it is done; one that is dropped ends with `EIO`.
pub struct Request {
    /// What.
    pub op: Op,
    /// First sector of the disk.
    pub sector: u64,
    /// Bytes, a multiple of the logical block size. With `Read` and `Write` they fill `frames` from the first byte of the first.
    pub bytes: u64,
    /// The memory.
    pub frames: Vec<Frame>,
    batch: Option<Arc<Batch>>,
    statistics: Vec<Arc<Statistics>>,
    begun: u64,
}

impl Request {
    /// A request of `batch`, counted in `statistics`.
    pub(super) fn new(
        op: Op,
        sector: u64,
        bytes: u64,
        frames: Vec<Frame>,
        batch: &Arc<Batch>,
        statistics: Vec<Arc<Statistics>>,
    ) -> Box<Request> {
        batch.pending.fetch_add(1, SeqCst);
        for statistics in &statistics {
            statistics.in_flight[usize::from(op != Op::Read)].fetch_add(1, Relaxed);
        }
        let begun = ursa_hal::time::monotonic_ns();
        Box::new(Request { op, sector, bytes, frames, batch: Some(batch.clone()), statistics, begun })
    }

    /// The end of it.
    pub fn complete(mut self, result: Result) {
        self.end(result);
    }

    fn end(&mut self, result: Result) {
        let Some(batch) = self.batch.take() else { return };
        let (kind, time) = (kind(self.op), ursa_hal::time::monotonic_ns().saturating_sub(self.begun));
        for statistics in &self.statistics {
            statistics.in_flight[usize::from(self.op != Op::Read)].fetch_sub(1, Relaxed);
            statistics.count[kind].fetch_add(1, Relaxed);
            statistics.sectors[kind].fetch_add(self.bytes / SECTOR, Relaxed);
            statistics.time[kind].fetch_add(time, Relaxed);
        }
        batch.finish(result);
    }

    /// Sectors behind the last one.
    pub fn end_sector(&self) -> u64 {
        self.sector + self.bytes / SECTOR
    }

    /// Whether both touch the same place and one of them changes it: then their order matters.
    pub fn conflicts(&self, other: &Request) -> bool {
        (self.op.changes() || other.op.changes())
            && self.sector < other.end_sector()
            && other.sector < self.end_sector()
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.end(Err(Errno::EIO));
    }
}

/// Who carries requests out.
pub trait Backend: Send + Sync {
    /// Takes a request; its end may come before this returns, or much later, from any thread. May sleep for locks, never
    /// for the request itself.
    fn submit(&self, request: Box<Request>);

    /// An ioctl that not every block device knows.
    ///
    /// # Errors
    /// `ENOTTY` for one that is not known here either, and the backend's own.
    fn ioctl(&self, _f: &crate::fs::File, _cmd: u32, _arg: usize) -> Result<i64> {
        Err(Errno::ENOTTY)
    }

    /// The last file of a volume was closed.
    fn closed(&self) {}

    /// The disk's serial number, if it has one.
    fn serial(&self) -> Option<alloc::string::String> {
        None
    }
}
