//! `signalfd(2)`: signals that are read.
//!
//! A read takes signals of the *reading* thread and its process; readiness is asked for the thread that polls.
//! References: `signalfd(2)`, `fs/signalfd.c`.

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use linux_uapi::ipc::SignalFdInfo;
use linux_uapi::raw::general as uapi;
use linux_uapi::signal::{SI_KERNEL, SI_TIMER, SIGCHLD, SIGIO, SigInfo, SigSet};
use linux_uapi::zerocopy::IntoBytes;

use crate::fs::{File, FileOps, Sink};
use crate::poll::{PollEvents, PollTable};
use crate::process::current;
use crate::signal::signalfd_take;
use crate::{Errno, Result};

/// A set of signals behind a descriptor.
pub struct SignalFd {
    wanted: AtomicU64,
}

impl SignalFd {
    fn wanted(&self) -> SigSet {
        SigSet(self.wanted.load(Ordering::Relaxed))
    }

    /// Changes the set.
    pub fn set(&self, wanted: SigSet) {
        self.wanted.store(wanted.difference(SigSet::UNBLOCKABLE).0, Ordering::Relaxed);
        current().process().signals.signalfd_wait.wake_all();
    }
}

impl FileOps for SignalFd {
    fn read(&self, f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        let room = dst.remaining() / size_of::<SignalFdInfo>();
        if room == 0 {
            return Err(Errno::EINVAL);
        }
        let thread = current();
        let take = || signalfd_take(&thread, self.wanted());
        let mut next = match take() {
            Some(info) => Some(info),
            None if f.is_nonblocking() => return Err(Errno::EAGAIN),
            None => {
                let queue = thread.process().signals.signalfd_wait.clone();
                Some(queue.wait_interruptible(None, take)?)
            }
        };
        while let Some(info) = next {
            let outcome = dst.put_all(converted(&info).as_bytes());
            if outcome.is_err() {
                return dst.result(outcome);
            }
            next = if dst.remaining() >= size_of::<SignalFdInfo>() { take() } else { None };
        }
        Ok(dst.done())
    }

    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        let thread = current();
        if let Some(pt) = pt {
            pt.register(&thread.process().signals.signalfd_wait);
        }
        let pending = thread.signals.pending().union(thread.process().signals.pending());
        if pending.intersection(self.wanted()).is_empty() { PollEvents::empty() } else { PollEvents::POLLIN }
    }

    fn fdinfo(&self, _f: &File, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "sigmask:\t{:016x}", self.wanted().0)
    }
}

/// `siginfo_t` as signalfd lays it out (`signalfd_copyinfo`).
fn converted(info: &SigInfo) -> SignalFdInfo {
    let mut out = SignalFdInfo {
        ssi_signo: info.si_signo as u32,
        ssi_errno: info.si_errno,
        ssi_code: info.si_code,
        ..SignalFdInfo::default()
    };
    let [first, second, third, fourth] = info.fields;
    let signo = info.si_signo as u32;
    match info.si_code {
        SI_TIMER => {
            out.ssi_tid = first as u32;
            out.ssi_overrun = (first >> 32) as u32;
            out.ssi_int = second as i32;
            out.ssi_ptr = second;
        }
        code if code < 0 => {
            out.ssi_pid = first as u32;
            out.ssi_uid = (first >> 32) as u32;
            out.ssi_int = second as i32;
            out.ssi_ptr = second;
        }
        code if code != SI_KERNEL && signo == SIGCHLD => {
            out.ssi_pid = first as u32;
            out.ssi_uid = (first >> 32) as u32;
            out.ssi_status = second as i32;
            out.ssi_utime = third;
            out.ssi_stime = fourth;
        }
        code if code != SI_KERNEL && signo == SIGIO => {
            out.ssi_band = first as u32;
            out.ssi_fd = second as i32;
        }
        code if code > 0 && code != SI_KERNEL => out.ssi_addr = first,
        _ => {
            out.ssi_pid = first as u32;
            out.ssi_uid = (first >> 32) as u32;
        }
    }
    out
}

/// Makes the file of `signalfd4(2)`.
pub fn create(wanted: SigSet, flags: u32) -> Arc<File> {
    let ops = Arc::new(SignalFd { wanted: AtomicU64::new(wanted.difference(SigSet::UNBLOCKABLE).0) });
    File::anon(ops, "anon_inode:[signalfd]", uapi::O_RDWR | flags & uapi::O_NONBLOCK)
}
