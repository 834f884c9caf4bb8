//! Resource limits: [`Rlimits`], a process's table of soft and hard limits.
//!
//! Reads are lock-free (limits are read on hot paths: descriptor installation, stack growth); a change replaces a pair
//! under a lock so that two changers cannot mix halves. References: getrlimit(2), `asm-generic/resource.h`.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ursa_hal::sync::SpinLock;

use crate::fs::fdtable::NR_OPEN;
use crate::{Errno, Result};

/// No limit.
pub const RLIM_INFINITY: u64 = u64::MAX;

/// A limited resource.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are those of getrlimit(2)")]
pub enum Resource {
    Cpu = 0,
    Fsize = 1,
    Data = 2,
    Stack = 3,
    Core = 4,
    Rss = 5,
    Nproc = 6,
    Nofile = 7,
    Memlock = 8,
    As = 9,
    Locks = 10,
    Sigpending = 11,
    Msgqueue = 12,
    Nice = 13,
    Rtprio = 14,
    Rttime = 15,
}

/// How many resources there are.
pub const RLIM_NLIMITS: usize = 16;

impl Resource {
    /// Every resource, in number order.
    pub const ALL: [Resource; RLIM_NLIMITS] = [
        Resource::Cpu,
        Resource::Fsize,
        Resource::Data,
        Resource::Stack,
        Resource::Core,
        Resource::Rss,
        Resource::Nproc,
        Resource::Nofile,
        Resource::Memlock,
        Resource::As,
        Resource::Locks,
        Resource::Sigpending,
        Resource::Msgqueue,
        Resource::Nice,
        Resource::Rtprio,
        Resource::Rttime,
    ];

    /// Decodes the system call's argument.
    pub fn decode(n: u32) -> Result<Resource> {
        Self::ALL.get(n as usize).copied().ok_or(Errno::EINVAL)
    }
}

/// A soft and a hard limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    /// What is enforced.
    pub soft: u64,
    /// How far an unprivileged process may raise `soft`.
    pub hard: u64,
}

/// The limits of a process.
#[derive(Debug)]
pub struct Rlimits {
    soft: [AtomicU64; RLIM_NLIMITS],
    hard: [AtomicU64; RLIM_NLIMITS],
    change: SpinLock<()>,
}

impl Rlimits {
    /// Returns the limits of the first process, as Linux sets them; `threads_max` bounds processes and queued signals.
    pub fn initial(threads_max: u64) -> Rlimits {
        const INF: u64 = RLIM_INFINITY;
        let pair = |r: Resource| match r {
            Resource::Stack => (8 << 20, INF),
            Resource::Core => (0, INF),
            Resource::Nproc | Resource::Sigpending => (threads_max / 2, threads_max / 2),
            Resource::Nofile => (1024, 4096),
            Resource::Memlock => (8 << 20, 8 << 20),
            Resource::Msgqueue => (819_200, 819_200),
            Resource::Nice | Resource::Rtprio => (0, 0),
            _ => (INF, INF),
        };
        Rlimits {
            soft: core::array::from_fn(|i| AtomicU64::new(pair(Resource::ALL[i]).0)),
            hard: core::array::from_fn(|i| AtomicU64::new(pair(Resource::ALL[i]).1)),
            change: SpinLock::new(()),
        }
    }

    /// Returns a copy for a child process.
    pub fn fork(&self) -> Rlimits {
        let _change = self.change.lock();
        Rlimits {
            soft: core::array::from_fn(|i| AtomicU64::new(self.soft[i].load(Relaxed))),
            hard: core::array::from_fn(|i| AtomicU64::new(self.hard[i].load(Relaxed))),
            change: SpinLock::new(()),
        }
    }

    /// Returns the soft limit of `r`.
    pub fn soft(&self, r: Resource) -> u64 {
        self.soft[r as usize].load(Relaxed)
    }

    /// Returns the hard limit of `r`.
    pub fn hard(&self, r: Resource) -> u64 {
        self.hard[r as usize].load(Relaxed)
    }

    /// Returns both limits of `r`, consistent with each other.
    pub fn get(&self, r: Resource) -> Limit {
        let _change = self.change.lock();
        Limit { soft: self.soft(r), hard: self.hard(r) }
    }

    /// Sets the limits of `r` and returns the former ones; `privileged` is `CAP_SYS_RESOURCE`.
    ///
    /// # Errors
    /// `EINVAL` when the soft limit exceeds the hard one, `EPERM` when the hard limit would rise without privilege or
    /// `RLIMIT_NOFILE` exceeds `fs.nr_open`.
    pub fn set(&self, r: Resource, new: Limit, privileged: bool) -> Result<Limit> {
        if new.soft > new.hard {
            return Err(Errno::EINVAL);
        }
        if r == Resource::Nofile && new.hard > u64::from(NR_OPEN.load(Relaxed)) {
            return Err(Errno::EPERM);
        }
        let _change = self.change.lock();
        let old = Limit { soft: self.soft(r), hard: self.hard(r) };
        if new.hard > old.hard && !privileged {
            return Err(Errno::EPERM);
        }
        self.soft[r as usize].store(new.soft, Relaxed);
        self.hard[r as usize].store(new.hard, Relaxed);
        Ok(old)
    }
}
