//! Socket options that every family has (`SOL_SOCKET`).

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};

use classic_bpf::{Environment, Program};
use linux_uapi::raw::net as uapi;
use ursa_hal::sync::SpinLock;

use crate::time::Deadline;
use crate::{Errno, Result};

/// `net.core.{r,w}mem_default` and `_max`.
pub const BUFFER_DEFAULT: usize = 212_992;
const BUFFER_MAX: usize = 212_992;
/// What even `SO_SNDBUFFORCE` gets at most.
const BUFFER_FORCE_MAX: usize = (i32::MAX / 2) as usize;
const SNDBUF_MIN: usize = 4608;
const RCVBUF_MIN: usize = 2304;

/// The options.
pub struct Options {
    /// `SO_RCVBUF`, doubled as Linux doubles it.
    pub rcvbuf: AtomicUsize,
    /// `SO_PASSCRED`
    pub pass_credentials: AtomicBool,
    /// `SO_PASSPIDFD`
    pub pass_pidfd: AtomicBool,
    /// `SO_RCVTIMEO` in nanoseconds; 0 is none.
    pub receive_timeout_ns: AtomicU64,
    /// `SO_SNDTIMEO` in nanoseconds; 0 is none.
    pub send_timeout_ns: AtomicU64,
    /// `SO_RCVLOWAT`
    pub receive_low_water: AtomicI32,
    /// `SO_PRIORITY`
    pub priority: AtomicI32,
    /// `SO_MARK`
    pub mark: AtomicI32,
    /// Boolean options that are kept and change nothing on a local socket: `SO_REUSEADDR`, `SO_KEEPALIVE`, `SO_BROADCAST` …
    /// by number.
    pub kept: AtomicU64,
    /// `SO_LINGER`: seconds, or -1.
    pub linger: AtomicI32,
    /// `SO_PEEK_OFF`: where the next peek begins, or -1 for always at the front.
    pub peek_offset: AtomicI32,
    /// `SO_ATTACH_FILTER`
    filter: SpinLock<Option<Arc<Program>>>,
    /// Whether there is one: most sockets have none and look no further.
    filtered: AtomicBool,
    /// `SO_LOCK_FILTER`
    filter_locked: AtomicBool,
}

/// What a filter may ask of the machine.
struct Machine;

impl Environment for Machine {
    fn cpu(&self) -> u32 {
        ursa_hal::smp::current_cpu() as u32
    }

    fn random(&self) -> u32 {
        let mut bytes = [0; 4];
        crate::process::rng::fill(&mut bytes);
        u32::from_ne_bytes(bytes)
    }
}

impl Options {
    /// A new socket's options.
    pub fn new() -> Self {
        Options {
            rcvbuf: AtomicUsize::new(BUFFER_DEFAULT),
            pass_credentials: AtomicBool::new(false),
            pass_pidfd: AtomicBool::new(false),
            receive_timeout_ns: AtomicU64::new(0),
            send_timeout_ns: AtomicU64::new(0),
            receive_low_water: AtomicI32::new(1),
            priority: AtomicI32::new(0),
            mark: AtomicI32::new(0),
            kept: AtomicU64::new(0),
            linger: AtomicI32::new(-1),
            peek_offset: AtomicI32::new(-1),
            filter: SpinLock::new(None),
            filtered: AtomicBool::new(false),
            filter_locked: AtomicBool::new(false),
        }
    }

    /// How many bytes of a packet the socket's filter lets in; `None`: it is dropped.
    pub fn admit(&self, packet: &[u8]) -> Option<usize> {
        if !self.filtered.load(Ordering::Acquire) {
            return Some(packet.len());
        }
        let Some(filter) = self.filter.lock().clone() else { return Some(packet.len()) };
        match filter.run(packet, &Machine) {
            0 => None,
            keep => Some(packet.len().min(keep as usize)),
        }
    }

    /// Whether a boolean option is set, by its number.
    pub fn has(&self, name: u32) -> bool {
        self.kept.load(Ordering::Relaxed) & 1 << name != 0
    }

    /// Whether datagrams are stamped with the time (`SO_TIMESTAMP`, `SO_TIMESTAMPNS`).
    pub fn stamps_time(&self) -> bool {
        self.has(uapi::SO_TIMESTAMP) || self.has(uapi::SO_TIMESTAMPNS)
    }

    /// Takes over what a listener's connections inherit.
    pub fn inherit(&self, from: &Options) {
        self.rcvbuf.store(from.rcvbuf.load(Ordering::Relaxed), Ordering::Relaxed);
        self.kept.store(from.kept.load(Ordering::Relaxed), Ordering::Relaxed);
        for (to, from) in [
            (&self.receive_low_water, &from.receive_low_water),
            (&self.priority, &from.priority),
            (&self.mark, &from.mark),
            (&self.linger, &from.linger),
        ] {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        for (to, from) in
            [(&self.receive_timeout_ns, &from.receive_timeout_ns), (&self.send_timeout_ns, &from.send_timeout_ns)]
        {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Attaches a filter in place of another, or detaches it.
    ///
    /// # Errors
    /// `EPERM` when the filter was locked, `ENOENT` when there is none to detach.
    pub fn set_filter(&self, filter: Option<Program>) -> Result {
        if self.filter_locked.load(Ordering::Relaxed) {
            return Err(Errno::EPERM);
        }
        let is_some = filter.is_some();
        let old = core::mem::replace(&mut *self.filter.lock(), filter.map(Arc::new));
        self.filtered.store(is_some, Ordering::Release);
        if !is_some && old.is_none() { Err(Errno::ENOENT) } else { Ok(()) }
    }

    /// `SO_LOCK_FILTER`: what is locked stays so.
    ///
    /// # Errors
    /// `EPERM` for unlocking.
    pub fn lock_filter(&self, on: bool) -> Result {
        if !on && self.filter_locked.load(Ordering::Relaxed) {
            return Err(Errno::EPERM);
        }
        self.filter_locked.store(on, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the filter is locked.
    pub fn is_filter_locked(&self) -> bool {
        self.filter_locked.load(Ordering::Relaxed)
    }

    /// When a receive that starts now gives up.
    pub fn receive_deadline(&self) -> Option<Deadline> {
        deadline(&self.receive_timeout_ns)
    }

    /// When a send that starts now gives up.
    pub fn send_deadline(&self) -> Option<Deadline> {
        deadline(&self.send_timeout_ns)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

fn deadline(timeout: &AtomicU64) -> Option<Deadline> {
    match timeout.load(Ordering::Relaxed) {
        0 => None,
        ns => Some(Deadline::after(ns)),
    }
}

/// The buffer size that a request for `value` bytes gives: twice that, within limits.
pub fn buffer_size(value: i32, force: bool, is_send: bool) -> usize {
    let max = if force { BUFFER_FORCE_MAX } else { BUFFER_MAX };
    let wanted = usize::try_from(value).unwrap_or(if force { 0 } else { max }).min(max);
    (wanted * 2).max(if is_send { SNDBUF_MIN } else { RCVBUF_MIN })
}
