//! Futexes: sleeping on a word of user memory.
//!
//! A futex is known by its key: address space and address, or memory object and offset in shared memory. Keys hash to buckets;
//! each holds its waiters in order of arrival. The rule that loses no wake-up: a waiter compares the word and enters its bucket
//! under the bucket's lock, a waker changes the word before and looks into the bucket under that lock after.
//!
//! Modules: [`ops`] (wait, wake, requeue, wake-op, waitv), [`pi`] (priority inheritance), [`requeue_pi`] (from a plain word to a
//! PI futex), [`robust`] (what a dying thread held), [`syscall`].
//!
//! Locking: bucket locks are spin locks, taken two at a time in index order. User memory is touched under them with page
//! faults off ([`ursa_hal::user::nofault`]); on a fault the lock is dropped, the page brought in, and the operation tried again.
//! References: futex(2), Linux `kernel/futex/`.

mod ops;
mod pi;
mod requeue_pi;
mod robust;
pub mod syscall;

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::hash::{Hash, Hasher};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ursa_hal::sync::{SpinLock, SpinLockGuard};
use ursa_hal::task::Task;
use ursa_hal::user;

use crate::mm::FutexKey;
use crate::process::{Thread, current};
use crate::sched::{self, SleepState};
use crate::user::UserAddr;
use crate::{Errno, Result};

pub use ops::wake_user_addr;
pub use robust::exit_robust_list;

const BUCKETS: usize = 256;
/// Matches every waiter (`FUTEX_BITSET_MATCH_ANY`).
const ANY: u32 = !0;

/// One wait of a task on one word.
struct Waiter {
    key: SpinLock<FutexKey>,
    bitset: u32,
    task: Arc<Task>,
    /// The bucket that holds it, or [`GONE`]. Changes under that bucket's lock.
    bucket: AtomicUsize,
    woken: AtomicBool,
    kind: Kind,
}

/// What a waiter waits for.
enum Kind {
    /// A wake-up.
    Plain,
    /// The ownership of a PI futex.
    Owner(pi::Claim),
    /// To be moved to a PI futex, and then its ownership.
    Requeue(requeue_pi::Move),
}

const GONE: usize = usize::MAX;

type Queue = VecDeque<Arc<Waiter>>;

static TABLE: [SpinLock<Queue>; BUCKETS] = [const { SpinLock::new(VecDeque::new()) }; BUCKETS];

/// FNV-1a over the key's words: they are counters and addresses, whose low bits must spread.
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0 ^ word ^ word >> 12).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }
}

fn bucket_of(key: &FutexKey) -> usize {
    let mut hasher = KeyHasher(0xcbf2_9ce4_8422_2325);
    key.hash(&mut hasher);
    (hasher.finish() >> 16) as usize % BUCKETS
}

fn lock(bucket: usize) -> SpinLockGuard<'static, Queue> {
    TABLE[bucket].lock()
}

/// Two buckets locked in order; the second is `None` when they are the same.
fn lock_two(a: usize, b: usize) -> (SpinLockGuard<'static, Queue>, Option<SpinLockGuard<'static, Queue>>) {
    match a.cmp(&b) {
        core::cmp::Ordering::Equal => (lock(a), None),
        core::cmp::Ordering::Less => {
            let first = lock(a);
            (first, Some(lock(b)))
        }
        core::cmp::Ordering::Greater => {
            let second = lock(b);
            (lock(a), Some(second))
        }
    }
}

/// The key of a word of the calling process.
///
/// # Errors
/// `EINVAL` for an unaligned address, `EFAULT` for one that is not mapped.
fn key_at(addr: UserAddr, private: bool) -> Result<FutexKey> {
    if !addr.as_u64().is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    if addr.as_u64() >= ursa_hal::USER_END {
        return Err(Errno::EFAULT);
    }
    current().vm().futex_key(addr, private)
}

/// Reads the word under a lock; `None` when its page must be brought in first.
fn peek(addr: UserAddr) -> Option<u32> {
    user::nofault(|| user::load_u32(addr)).ok()
}

/// Brings the word's page in.
fn fault_in(addr: UserAddr) -> Result {
    user::load_u32(addr).map(|_| ()).map_err(|_| Errno::EFAULT)
}

/// Brings the word's page in for writing, without changing it.
fn fault_in_writable(addr: UserAddr) -> Result {
    user::atomic_rmw_u32(addr, user::RmwOp::Or, 0).map(|_| ()).map_err(|_| Errno::EFAULT)
}

impl Waiter {
    fn new(key: FutexKey, bitset: u32, kind: Kind) -> Arc<Waiter> {
        Arc::new(Waiter {
            bucket: AtomicUsize::new(GONE),
            key: SpinLock::new(key),
            bitset,
            task: sched::current_task(),
            woken: AtomicBool::new(false),
            kind,
        })
    }

    /// The claim on the PI futex that it waits for now. Changes under the bucket's lock.
    fn claim(&self) -> Option<&pi::Claim> {
        match &self.kind {
            Kind::Plain => None,
            Kind::Owner(claim) => Some(claim),
            Kind::Requeue(planned) => planned.claim_if_moved(),
        }
    }

    fn is_plain(&self) -> bool {
        matches!(self.kind, Kind::Plain)
    }

    fn is_on(&self, key: &FutexKey) -> bool {
        *self.key.lock() == *key
    }

    fn is_woken(&self) -> bool {
        self.woken.load(Ordering::Acquire)
    }

    /// Marks the wait as over and wakes the task. The waiter has been taken out of its bucket.
    fn wake(&self) {
        self.bucket.store(GONE, Ordering::Relaxed);
        self.woken.store(true, Ordering::Release);
        sched::wake(&self.task, SleepState::ANY_SLEEP);
    }

    /// Enters a locked bucket.
    fn enter(self: &Arc<Self>, index: usize, queue: &mut Queue) -> Result {
        queue.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        self.bucket.store(index, Ordering::Relaxed);
        queue.push_back(self.clone());
        Ok(())
    }

    /// Leaves whatever bucket it is in. False when it was taken out before: a wake-up came.
    fn leave(self: &Arc<Self>) -> bool {
        loop {
            let index = self.bucket.load(Ordering::Relaxed);
            if index == GONE {
                return !self.is_woken() && self.wait_for_waker();
            }
            let mut queue = lock(index);
            if self.bucket.load(Ordering::Relaxed) != index {
                continue;
            }
            let at = queue.iter().position(|other| Arc::ptr_eq(other, self));
            let removed = at.and_then(|at| queue.remove(at));
            self.bucket.store(GONE, Ordering::Relaxed);
            drop(queue);
            return removed.is_some();
        }
    }

    /// The waker takes waiters out first and marks them a moment later; it does not sleep in between.
    fn wait_for_waker(&self) -> bool {
        while !self.is_woken() {
            core::hint::spin_loop();
        }
        false
    }
}

/// Whether a thread's word value names it as the owner.
fn is_owner(value: u32, thread: &Thread) -> bool {
    value & linux_uapi::raw::general::FUTEX_TID_MASK == thread.own_tid() as u32
}
