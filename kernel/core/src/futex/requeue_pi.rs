//! From a plain word to a PI futex: `FUTEX_WAIT_REQUEUE_PI` and `FUTEX_CMP_REQUEUE_PI`.
//!
//! A condition variable whose mutex inherits priority waits on a plain word and must come back as the mutex's owner. The waiter
//! says beforehand which PI futex it will claim; the requeue takes that futex for the best waiter if it is free, and makes
//! the others its claimants, so that nobody wakes only to wait again.
//!
//! References: futex(2), Linux `Documentation/locking/futex-requeue-pi.rst`, `kernel/futex/requeue.c`.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use linux_uapi::raw::general::{FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS};

use super::ops::{Outcome, enter_if_equal, sleep};
use super::pi::{self, Claim};
use super::{ANY, GONE, Kind, Queue, Waiter, bucket_of, fault_in, fault_in_writable, key_at, lock_two, peek};
use crate::mm::FutexKey;
use crate::process::{current, seen_thread};
use crate::time::Deadline;
use crate::user::UserAddr;
use crate::{Errno, Result};

/// What a waiter of `FUTEX_WAIT_REQUEUE_PI` agreed to.
pub(super) struct Move {
    target: FutexKey,
    moved: AtomicBool,
    /// Counts from the move on.
    claim: Claim,
}

impl Move {
    pub(super) fn claim_if_moved(&self) -> Option<&Claim> {
        self.moved.load(Ordering::Acquire).then_some(&self.claim)
    }
}

/// `FUTEX_WAIT_REQUEUE_PI`: sleeps if the word holds `expected`, until the caller owns the PI futex `to`.
///
/// # Errors
/// `EINVAL` for one and the same word, `EAGAIN` when the word holds something else or a signal came after the move, `ETIMEDOUT`,
/// `ERESTARTNOINTR` for a signal before the move.
pub(super) fn wait(from: (UserAddr, bool), to: (UserAddr, bool), expected: u32, deadline: Option<Deadline>) -> Result {
    if from.0 == to.0 {
        return Err(Errno::EINVAL);
    }
    let (key, target) = (key_at(from.0, from.1)?, key_at(to.0, to.1)?);
    if key == target {
        return Err(Errno::EINVAL);
    }
    let claim = Claim::of_current(current().arc());
    let planned = Move { target, moved: AtomicBool::new(false), claim };
    let waiter = Waiter::new(key.clone(), ANY, Kind::Requeue(planned));
    enter_if_equal(from.0, &key, expected, &waiter)?;
    let outcome = sleep(core::slice::from_ref(&waiter), deadline);
    // Nothing wakes such a waiter but its ownership.
    if outcome == Outcome::Woken || !waiter.leave() {
        return Ok(());
    }
    pi::withdraw(&waiter);
    Err(match outcome {
        Outcome::TimedOut => Errno::ETIMEDOUT,
        _ if waiter.claim().is_some() => Errno::EAGAIN,
        _ => Errno::ERESTARTNOINTR,
    })
}

/// How an attempt ended that holds the locks of both buckets.
enum Step {
    /// So many were woken or moved.
    Done(usize),
    /// The target word changed meanwhile.
    Again,
    FaultInSource,
    FaultInTarget,
}

/// `FUTEX_CMP_REQUEUE_PI`: gives the PI futex `to` to the best waiter if it is free, and makes up to `counts.1` others wait for it.
/// The result counts both.
///
/// # Errors
/// `EINVAL` unless `counts.0` is 1 and the waiters agreed to `to`, `EAGAIN` when the word does not hold `expected`, `EDEADLK` when
/// a waiter is the owner of `to`, `ESRCH` when `to` names nobody, `ENOMEM`.
pub(super) fn requeue(
    from: (UserAddr, bool),
    to: (UserAddr, bool),
    counts: (usize, usize),
    expected: u32,
) -> Result<usize> {
    if from.0 == to.0 || counts.0 != 1 {
        return Err(Errno::EINVAL);
    }
    let (from_key, to_key) = (key_at(from.0, from.1)?, key_at(to.0, to.1)?);
    if from_key == to_key {
        return Err(Errno::EINVAL);
    }
    loop {
        let mut told = Told::default();
        let step = step((from.0, &from_key), (to.0, &to_key), counts.1, expected, &mut told);
        told.tell();
        match step? {
            Step::Done(count) => return Ok(count),
            Step::Again => {}
            Step::FaultInSource => fault_in(from.0)?,
            Step::FaultInTarget => fault_in_writable(to.0)?,
        }
    }
}

/// Who hears of a requeue, once the locks are free.
#[derive(Default)]
struct Told {
    owner: Option<Arc<Waiter>>,
    claimants: Vec<Arc<Waiter>>,
}

impl Told {
    fn tell(self) {
        for claim in self.claimants.iter().filter_map(|waiter| waiter.claim()) {
            claim.lend_to_owner();
        }
        if let Some(owner) = self.owner {
            owner.wake();
        }
    }
}

/// The places in `queue` of those who wait on `key`, best rank first, and of one rank the first.
///
/// # Errors
/// `EINVAL` when one of them did not agree to `target`, `ENOMEM`.
fn candidates(queue: &Queue, key: &FutexKey, target: &FutexKey) -> Result<Vec<Arc<Waiter>>> {
    let mut found: Vec<Arc<Waiter>> = Vec::new();
    for waiter in queue.iter().filter(|waiter| waiter.is_on(key)) {
        match &waiter.kind {
            Kind::Requeue(planned) if planned.target == *target => {}
            _ => return Err(Errno::EINVAL),
        }
        found.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        found.push(waiter.clone());
    }
    // Stable: of one rank the first stays the first.
    found.sort_by_key(|waiter| core::cmp::Reverse(planned(waiter).map(|planned| planned.claim.rank())));
    Ok(found)
}

fn planned(waiter: &Waiter) -> Option<&Move> {
    match &waiter.kind {
        Kind::Requeue(planned) => Some(planned),
        _ => None,
    }
}

fn step(
    (from, from_key): (UserAddr, &FutexKey),
    (to, to_key): (UserAddr, &FutexKey),
    move_count: usize,
    expected: u32,
    told: &mut Told,
) -> Result<Step> {
    let to_index = bucket_of(to_key);
    let (mut source, mut target) = lock_two(bucket_of(from_key), to_index);
    match peek(from) {
        Some(value) if value == expected => {}
        Some(_) => return Err(Errno::EAGAIN),
        None => return Ok(Step::FaultInSource),
    }
    let waiters = candidates(&source, from_key, to_key)?;
    let Some(best) = waiters.first() else { return Ok(Step::Done(0)) };
    let Some(value) = peek(to) else { return Ok(Step::FaultInTarget) };
    let is_free = value & FUTEX_TID_MASK == 0;
    let moving = waiters.len().min(move_count.saturating_add(1));
    // Room first: nothing may fail after the word is changed.
    let room = match target.as_deref_mut() {
        Some(target) => target.try_reserve(moving),
        None => Ok(()),
    };
    room.map_err(|_| Errno::ENOMEM)?;
    told.claimants.try_reserve(moving).map_err(|_| Errno::ENOMEM)?;
    let there = target.as_deref().unwrap_or(&source);
    if there.iter().any(|waiter| waiter.claim().is_none() && waiter.is_on(to_key)) {
        return Err(Errno::EINVAL);
    }
    let owner_tid = match is_free {
        true => planned(best).map_or(0, |planned| planned.claim.tid()),
        false => value & FUTEX_TID_MASK,
    };
    let owner = seen_thread(owner_tid as i32).filter(|owner| !owner.is_dead()).ok_or(Errno::ESRCH)?;
    let claimants = &waiters[usize::from(is_free)..moving];
    if claimants.iter().filter_map(|waiter| planned(waiter)).any(|planned| planned.claim.tid() == owner_tid) {
        return Err(Errno::EDEADLK);
    }
    let waiting = there.iter().any(|waiter| waiter.claim().is_some() && waiter.is_on(to_key));
    let mark = if waiting || !claimants.is_empty() { FUTEX_WAITERS } else { 0 };
    let new = if is_free { owner_tid | value & FUTEX_OWNER_DIED | mark } else { value | mark };
    match pi::cmpxchg(to, value, new) {
        Some(true) => {}
        Some(false) => return Ok(Step::Again),
        None => return Ok(Step::FaultInTarget),
    }
    source.retain(|waiter| !waiters[..moving].iter().any(|moved| Arc::ptr_eq(moved, waiter)));
    if is_free {
        best.bucket.store(GONE, Ordering::Relaxed);
        told.owner = Some(best.clone());
        // Who waited there already waits for the new owner now.
        let there = target.as_deref().unwrap_or(&source);
        for claim in there.iter().filter(|waiter| waiter.is_on(to_key)).filter_map(|waiter| waiter.claim()) {
            claim.set_owner(&owner);
        }
    }
    for waiter in claimants {
        if let Some(planned) = planned(waiter) {
            planned.claim.set_owner(&owner);
            planned.moved.store(true, Ordering::Release);
        }
        *waiter.key.lock() = to_key.clone();
        waiter.bucket.store(to_index, Ordering::Relaxed);
        target.as_deref_mut().unwrap_or(&mut source).push_back(waiter.clone());
        told.claimants.push(waiter.clone());
    }
    Ok(Step::Done(moving))
}
