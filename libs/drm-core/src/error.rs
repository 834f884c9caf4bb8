//! How a request ends when it does not end well: [`Error`], and the numbers that are handed out ([`Ids`]).

use std::collections::BTreeSet;
use std::rc::Rc;

use linux_uapi::Errno;
use scheme::{Failure, Range};

use crate::driver::{IoctlError, MemoryError};
use crate::fence::Fence;

/// Why an ioctl has no result, or none yet.
#[derive(Debug)]
pub(crate) enum Error {
    /// It fails.
    Errno(Errno),
    /// The caller's pages have to be brought in first; the kernel sends the same request again.
    Retry(Vec<Range>),
    /// It has had no effect, and is to be made again when this has come about.
    Park(Wake),
    /// It has had its effect, and its result is due when this commit is complete.
    Commit(u64),
}

/// What a parked request waits for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wake {
    /// One of these CRTCs has no commit under way any more.
    pub(crate) crtcs: u32,
    /// One of these fences has signalled.
    pub(crate) fences: Vec<Rc<Fence>>,
    /// Some sync object has changed.
    pub(crate) syncobj: bool,
    /// It is this late, in nanoseconds of the monotonic clock.
    pub(crate) deadline: Option<u64>,
    /// The argument to make it with, if it is another: what was relative to now is absolute then.
    pub(crate) argument: Option<Vec<u8>>,
}

pub(crate) type Outcome<T> = Result<T, Error>;

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Error::Errno(errno)
    }
}

impl From<scheme::Errno> for Error {
    fn from(errno: scheme::Errno) -> Self {
        Error::Errno(from_io(errno))
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Errno(errno) => errno.into(),
            Failure::Retry(ranges) => Error::Retry(ranges),
        }
    }
}

/// The same number in the other crate's type.
pub(crate) fn from_io(errno: scheme::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error().unsigned_abs()).unwrap_or(Errno::EIO)
}

/// The same number in the other crate's type.
pub(crate) fn to_io(errno: Errno) -> scheme::Errno {
    scheme::Errno::from_raw_os_error(errno.raw() as i32)
}

/// Small numbers from 1 on, the lowest free one first, as Linux's IDR gives them.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    used: u32,
    free: BTreeSet<u32>,
}

impl Ids {
    /// A new number. `ENOSPC` past `limit`.
    pub(crate) fn allocate(&mut self, limit: u32) -> Result<u32, Errno> {
        if let Some(id) = self.free.pop_first() {
            return Ok(id);
        }
        if self.used >= limit {
            return Err(Errno::ENOSPC);
        }
        self.used += 1;
        Ok(self.used)
    }

    /// What gave exactly these numbers and has not taken them back.
    pub(crate) fn of(given: impl IntoIterator<Item = u32>) -> Ids {
        let given: BTreeSet<u32> = given.into_iter().filter(|id| *id != 0).collect();
        let used = given.last().copied().unwrap_or(0);
        // The gaps are few: numbers are given from the lowest on.
        Ids { used, free: (1..=used).filter(|id| !given.contains(id)).collect() }
    }

    /// Takes a number back that [`Ids::allocate`] gave.
    pub(crate) fn release(&mut self, id: u32) {
        self.free.insert(id);
        while self.used > 0 && self.free.remove(&self.used) {
            self.used -= 1;
        }
    }
}

/// What a driver's own ioctl failed with. The ranges come from where the memory was asked for.
pub(crate) fn from_driver(error: IoctlError, missing: Option<Range>) -> Error {
    match error {
        IoctlError::Errno(errno) => Error::Errno(errno),
        IoctlError::Memory(MemoryError::Fault) => Error::Errno(Errno::EFAULT),
        IoctlError::Memory(MemoryError::Retry) => match missing {
            Some(range) => Error::Retry(vec![range]),
            None => Error::Errno(Errno::EFAULT),
        },
    }
}
