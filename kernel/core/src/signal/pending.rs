//! Pending signals: a set, and the queued information behind it.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use linux_uapi::signal::{SI_USER, SIGRTMIN, SigInfo, SigSet};

use crate::process::cred::UserAccount;
use crate::time::posix_timer::PosixTimer;

/// One queued signal.
pub(super) struct Queued {
    pub info: SigInfo,
    /// Whose `RLIMIT_SIGPENDING` it counts against.
    account: Option<Arc<UserAccount>>,
    /// The timer that sent it: it counts overruns until then and goes on afterwards.
    pub timer: Option<Arc<PosixTimer>>,
}

impl Queued {
    pub(super) fn new(info: SigInfo, account: Option<Arc<UserAccount>>) -> Queued {
        Queued { info, account, timer: None }
    }

    pub(super) fn from_timer(info: SigInfo, timer: Arc<PosixTimer>) -> Queued {
        Queued { info, account: None, timer: Some(timer) }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if let Some(account) = &self.account {
            account.pending_signals.fetch_sub(1, Relaxed);
        }
    }
}

/// The pending signals of a thread, or those of a process that any of its threads may take.
#[derive(Default)]
pub(super) struct Pending {
    set: SigSet,
    queue: VecDeque<Queued>,
}

/// What became of a signal that was to be queued.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Insert {
    /// It is pending now.
    Done,
    /// It was pending already and does not queue.
    Merged,
}

impl Pending {
    pub(super) fn set(&self) -> SigSet {
        self.set
    }

    /// Adds a signal; `queued` is `None` when its information could not be kept (limit, memory).
    pub(super) fn insert(&mut self, signo: u32, queued: Option<Queued>) -> Insert {
        if signo < SIGRTMIN && self.set.contains(signo) {
            return Insert::Merged;
        }
        self.set.insert(signo);
        if let Some(queued) = queued
            && self.queue.try_reserve(1).is_ok()
        {
            self.queue.push_back(queued);
        }
        Insert::Done
    }

    /// The signal that would be taken next: of `wanted` the synchronous ones first, then from low to high.
    pub(super) fn next(&self, wanted: SigSet) -> Option<u32> {
        let ready = self.set.intersection(wanted);
        ready.intersection(SigSet::SYNCHRONOUS).first().or_else(|| ready.first())
    }

    /// The information that was queued at a place in the order of arrival.
    pub(super) fn peek(&self, index: usize) -> Option<SigInfo> {
        self.queue.get(index).map(|queued| queued.info)
    }

    /// Takes one instance of a signal.
    pub(super) fn take(&mut self, signo: u32) -> Queued {
        let index = self.queue.iter().position(|queued| queued.info.signo() == signo);
        let Some(index) = index else {
            self.set.remove(signo);
            // The sender's identity was not kept.
            return Queued::new(SigInfo::user(signo, SI_USER, 0, 0), None);
        };
        let another = self.queue.iter().skip(index + 1).any(|queued| queued.info.signo() == signo);
        if !another {
            self.set.remove(signo);
        }
        match self.queue.remove(index) {
            Some(queued) => queued,
            None => Queued::new(SigInfo::user(signo, SI_USER, 0, 0), None),
        }
    }

    /// Takes all instances of the signals of a set out; drop the result without a lock held.
    #[must_use]
    pub(super) fn flush(&mut self, signals: SigSet) -> VecDeque<Queued> {
        if self.set.intersection(signals).is_empty() {
            return VecDeque::new();
        }
        self.set = self.set.difference(signals);
        let (gone, kept) = core::mem::take(&mut self.queue).into_iter().partition(|q| signals.contains(q.info.signo()));
        self.queue = kept;
        gone
    }

    /// Takes the queued signal of a timer out, if it is still here.
    pub(super) fn remove_timer(&mut self, timer: &PosixTimer) -> Option<Queued> {
        let index = self.queue.iter().position(|q| q.timer.as_deref().is_some_and(|t| core::ptr::eq(t, timer)))?;
        let queued = self.queue.remove(index)?;
        let signo = queued.info.signo();
        if !self.queue.iter().any(|q| q.info.signo() == signo) {
            self.set.remove(signo);
        }
        Some(queued)
    }
}
