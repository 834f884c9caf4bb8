//! File locks: `flock`, POSIX record locks and open-file-description locks.
//!
//! An inode's locks are ranges with an owner: a descriptor table for POSIX locks, an open file description for OFD locks
//! and `flock` (two separate spaces, as on Linux). Waiters sleep on one queue of the inode and look again when anything is
//! released. A POSIX lock that would close a circle of waiting owners fails with `EDEADLK`.
//!
//! Nothing is allocated for an inode that was never locked. Locking: the list is a leaf spin lock; the graph of waiting
//! owners is one global spin lock, taken inside it.
//!
//! References: fcntl(2) "Advisory record locking", flock(2), `fs/locks.c`.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, Ordering};

use ursa_hal::sync::{Lazy, SpinLock};

use super::{file::File, inode::Inode};
use crate::{Errno, Result, wait::WaitQueue};

/// Which of the two spaces a lock is in, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A descriptor table ([`super::FdTable::lock_owner`]).
    Posix(u64),
    /// An open file description, by [`File::id`].
    Ofd(usize),
    /// An open file description's `flock`.
    Flock(usize),
}

impl Owner {
    fn same_space(self, other: Owner) -> bool {
        matches!(self, Owner::Flock(_)) == matches!(other, Owner::Flock(_))
    }
}

/// A lock that is held.
#[derive(Clone, Copy, Debug)]
pub struct Lock {
    /// Whose it is.
    pub owner: Owner,
    /// Exclusive.
    pub write: bool,
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive; `u64::MAX >> 1` means the end of the file, however far.
    pub end: u64,
    /// Process that took it, for `F_GETLK` and `/proc/locks`.
    pub pid: i32,
}

impl Lock {
    fn conflicts(&self, other: &Lock) -> bool {
        self.owner.same_space(other.owner)
            && self.owner != other.owner
            && (self.write || other.write)
            && self.start <= other.end
            && other.start <= self.end
    }
}

/// The largest file offset: end of a lock to the end of the file.
pub const OFFSET_MAX: u64 = i64::MAX as u64;

struct State {
    list: SpinLock<Vec<Lock>>,
    queue: WaitQueue,
}

/// The locks on an inode.
pub struct InodeLocks {
    /// Whether `state` was ever made: the check of every close.
    used: AtomicBool,
    state: SpinLock<Option<Arc<State>>>,
}

/// Who waits for whom among POSIX owners.
static WAITING: Lazy<SpinLock<Vec<(Owner, Owner)>>> = Lazy::new(|| SpinLock::new(Vec::new()));

impl InodeLocks {
    /// No locks.
    pub const fn new() -> Self {
        Self { used: AtomicBool::new(false), state: SpinLock::new(None) }
    }

    fn existing(&self) -> Option<Arc<State>> {
        if !self.used.load(Ordering::Acquire) {
            return None;
        }
        self.state.lock().clone()
    }

    fn state(&self) -> Arc<State> {
        if let Some(state) = self.existing() {
            return state;
        }
        let new = Arc::new(State { list: SpinLock::new(Vec::new()), queue: WaitQueue::new() });
        let mut slot = self.state.lock();
        let state = slot.get_or_insert(new).clone();
        self.used.store(true, Ordering::Release);
        state
    }

    /// The first lock that keeps `wanted` from being taken (`F_GETLK`).
    pub fn test(&self, wanted: &Lock) -> Option<Lock> {
        let state = self.existing()?;
        let list = state.list.lock();
        list.iter().find(|l| l.conflicts(wanted)).copied()
    }

    /// The locks held now, for `/proc/locks` and fdinfo.
    pub fn list(&self) -> Vec<Lock> {
        self.existing().map(|s| s.list.lock().clone()).unwrap_or_default()
    }

    /// Takes `wanted`, replacing what its owner holds in that range.
    ///
    /// # Errors
    /// `EAGAIN` without `wait` when another owner's lock is in the way, `EDEADLK` when waiting would never end,
    /// `ERESTARTSYS` on a signal.
    pub fn lock(&self, wanted: Lock, wait: bool) -> Result {
        let state = self.state();
        let attempt = || -> core::result::Result<(), Owner> {
            let mut list = state.list.lock();
            if let Some(other) = list.iter().find(|l| l.conflicts(&wanted)) {
                return Err(other.owner);
            }
            replace(&mut list, wanted.owner, wanted.start, wanted.end, Some(wanted));
            Ok(())
        };
        match attempt() {
            Ok(()) => {
                // A downgrade may let others in.
                state.queue.wake_all();
                return Ok(());
            }
            Err(_) if !wait => return Err(Errno::EAGAIN),
            Err(_) => {}
        }
        let posix = matches!(wanted.owner, Owner::Posix(_));
        let res = state.queue.wait_interruptible(None, || match attempt() {
            Ok(()) => Some(Ok(())),
            Err(other) if posix => {
                let mut waiting = WAITING.lock();
                waiting.retain(|(w, _)| *w != wanted.owner);
                if would_deadlock(&waiting, wanted.owner, other) {
                    return Some(Err(Errno::EDEADLK));
                }
                waiting.push((wanted.owner, other));
                None
            }
            Err(_) => None,
        });
        if posix {
            WAITING.lock().retain(|(w, _)| *w != wanted.owner);
        }
        state.queue.wake_all();
        res?
    }

    /// Gives up `start..=end` of what `owner` holds.
    pub fn unlock(&self, owner: Owner, start: u64, end: u64) {
        let Some(state) = self.existing() else { return };
        let changed = {
            let mut list = state.list.lock();
            let had = list.iter().any(|l| l.owner == owner);
            if had {
                replace(&mut list, owner, start, end, None);
            }
            had
        };
        if changed {
            state.queue.wake_all();
        }
    }
}

impl Default for InodeLocks {
    fn default() -> Self {
        Self::new()
    }
}

/// Follows who waits for whom from `blocker`; true when that leads back to `me`.
fn would_deadlock(waiting: &[(Owner, Owner)], me: Owner, blocker: Owner) -> bool {
    let mut at = blocker;
    for _ in 0..=waiting.len() {
        if at == me {
            return true;
        }
        match waiting.iter().find(|(w, _)| *w == at) {
            Some((_, next)) => at = *next,
            None => return false,
        }
    }
    false
}

/// Cuts `start..=end` out of what `owner` holds, then adds `new`, joined with neighbours of its own kind.
fn replace(list: &mut Vec<Lock>, owner: Owner, start: u64, end: u64, new: Option<Lock>) {
    let mut kept = Vec::with_capacity(list.len() + 2);
    for lock in list.drain(..) {
        if lock.owner != owner || lock.start > end || lock.end < start {
            kept.push(lock);
            continue;
        }
        if lock.start < start {
            kept.push(Lock { end: start - 1, ..lock });
        }
        if lock.end > end {
            kept.push(Lock { start: end + 1, ..lock });
        }
    }
    if let Some(mut new) = new {
        kept.retain(|l| {
            let joins = l.owner == owner
                && l.write == new.write
                && l.start <= new.end.saturating_add(1)
                && new.start <= l.end.saturating_add(1);
            if joins {
                new.start = new.start.min(l.start);
                new.end = new.end.max(l.end);
            }
            !joins
        });
        let at = kept.iter().position(|l| l.start > new.start).unwrap_or(kept.len());
        kept.insert(at, new);
    }
    *list = kept;
}

/// The last reference to `file` is gone: its `flock` and OFD locks go.
pub fn release_file(file: &File, inode: &Inode) {
    if inode.locks.used.load(Ordering::Acquire) {
        inode.locks.unlock(Owner::Ofd(file.id()), 0, OFFSET_MAX);
        inode.locks.unlock(Owner::Flock(file.id()), 0, OFFSET_MAX);
    }
}

/// A descriptor of the table `owner` on `inode` was closed: all its POSIX locks there go.
#[inline]
pub fn release_posix(inode: &Inode, owner: u64) {
    if inode.locks.used.load(Ordering::Acquire) {
        inode.locks.unlock(Owner::Posix(owner), 0, OFFSET_MAX);
    }
}
