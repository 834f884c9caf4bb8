//! PI futexes: locks whose word names the owner, handed over by the kernel, with priority inheritance.
//!
//! A waiter sets `FUTEX_WAITERS` in the word and queues; so the owner must enter the kernel to unlock, where the lock passes to the
//! waiter of the highest priority: the word is written for it before it wakes. While a real-time or less nice waiter waits,
//! the owner runs with its parameters. Inheritance goes one link far: an owner that waits for another PI futex does not pass
//! the priority on (see CAVEATS.md).

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use linux_uapi::raw::general::{FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS};
use ursa_hal::user;

use super::ops::{Outcome, sleep};
use super::{ANY, BUCKETS, GONE, Kind, Queue, Waiter, bucket_of, fault_in_writable, is_owner, key_at, lock};
use crate::mm::FutexKey;
use crate::process::{Thread, current, seen_thread};
use crate::sched::{self, Params};
use crate::time::Deadline;
use crate::user::UserAddr;
use crate::{Errno, Result};

/// A wait for ownership.
pub(super) struct Claim {
    tid: u32,
    params: Params,
    /// Who owned the lock when the wait began or changed hands last.
    owner: ursa_hal::sync::SpinLock<Arc<Thread>>,
}

impl Claim {
    /// The calling thread's claim on what `owner` has.
    pub(super) fn of_current(owner: Arc<Thread>) -> Claim {
        let params = sched::with_current(|ext| ext.params());
        Claim { tid: current().own_tid() as u32, params, owner: ursa_hal::sync::SpinLock::new(owner) }
    }

    pub(super) fn tid(&self) -> u32 {
        self.tid
    }

    pub(super) fn rank(&self) -> (u8, i8) {
        rank(&self.params)
    }

    /// Names the present owner, who inherits once [`lend_to_owner`](Self::lend_to_owner) is called.
    pub(super) fn set_owner(&self, owner: &Arc<Thread>) {
        let former = core::mem::replace(&mut *self.owner.lock(), owner.clone());
        drop(former);
    }

    /// Gives the owner the claimant's priority if it is higher.
    pub(super) fn lend_to_owner(&self) {
        let owner = self.owner.lock().clone();
        lend_params(&owner, &self.params);
    }
}

/// Rank among waiters, higher first: real-time priority, then nice value.
fn rank(params: &Params) -> (u8, i8) {
    (params.rt_priority, -params.nice)
}

pub(super) fn cmpxchg(addr: UserAddr, old: u32, new: u32) -> Option<bool> {
    user::nofault(|| user::cmpxchg_u32(addr, old, new)).ok().map(|outcome| outcome.is_ok())
}

enum Step {
    Acquired,
    Queued(Arc<Waiter>),
    Again,
    FaultIn,
}

/// `FUTEX_LOCK_PI` and `FUTEX_TRYLOCK_PI`: takes the lock, waiting for it unless `try_only`.
///
/// # Errors
/// `EDEADLK` when the caller has it, `EAGAIN` when it is taken and `try_only`, `ESRCH` when the word names nobody,
/// `ETIMEDOUT`, `ERESTARTNOINTR` on a signal.
pub(super) fn lock_pi(addr: UserAddr, private: bool, deadline: Option<Deadline>, try_only: bool) -> Result {
    let key = key_at(addr, private)?;
    let waiter = loop {
        match try_step(addr, &key, try_only)? {
            Step::Acquired => return Ok(()),
            Step::Queued(waiter) => break waiter,
            Step::Again => {}
            Step::FaultIn => fault_in_writable(addr)?,
        }
    };
    let outcome = sleep(core::slice::from_ref(&waiter), deadline);
    if outcome == Outcome::Woken || !waiter.leave() {
        return Ok(());
    }
    withdraw(&waiter);
    Err(if outcome == Outcome::TimedOut { Errno::ETIMEDOUT } else { Errno::ERESTARTNOINTR })
}

/// A waiter has left without the lock: its owner no longer inherits from it.
pub(super) fn withdraw(waiter: &Waiter) {
    if let Some(claim) = waiter.claim() {
        let owner = claim.owner.lock().clone();
        restore_params(&owner);
    }
}

fn try_step(addr: UserAddr, key: &FutexKey, try_only: bool) -> Result<Step> {
    let me = current();
    let index = bucket_of(key);
    let mut queue = lock(index);
    let Some(value) = super::peek(addr) else { return Ok(Step::FaultIn) };
    if is_owner(value, &me) {
        return Err(Errno::EDEADLK);
    }
    let tid = me.own_tid() as u32;
    if value & FUTEX_TID_MASK == 0 {
        // Free, or its owner died: the mark stays for the new owner to see. Those who wait already are still to be told.
        let waiting =
            if queue.iter().any(|waiter| waiter.claim().is_some() && waiter.is_on(key)) { FUTEX_WAITERS } else { 0 };
        return Ok(match cmpxchg(addr, value, tid | value & FUTEX_OWNER_DIED | waiting) {
            Some(true) => Step::Acquired,
            Some(false) => Step::Again,
            None => Step::FaultIn,
        });
    }
    if try_only {
        return Err(Errno::EAGAIN);
    }
    if queue.iter().any(|waiter| waiter.claim().is_none() && waiter.is_on(key)) {
        return Err(Errno::EINVAL);
    }
    let owner = seen_thread((value & FUTEX_TID_MASK) as i32).filter(|owner| !owner.is_dead()).ok_or(Errno::ESRCH)?;
    if value & FUTEX_WAITERS == 0 {
        match cmpxchg(addr, value, value | FUTEX_WAITERS) {
            Some(true) => {}
            Some(false) => return Ok(Step::Again),
            None => return Ok(Step::FaultIn),
        }
    }
    let claim = Claim::of_current(owner.clone());
    let params = claim.params;
    let waiter = Waiter::new(key.clone(), ANY, Kind::Owner(claim));
    waiter.enter(index, &mut queue)?;
    drop(queue);
    lend_params(&owner, &params);
    Ok(Step::Queued(waiter))
}

fn lend_params(owner: &Thread, params: &Params) {
    if let Some(task) = owner.task()
        && rank(params) > rank(&sched::ext_of(&task).effective_params())
    {
        sched::boost(&task, Some(*params));
    }
}

/// Sets a thread's inherited parameters to what the waiters for its locks justify now.
fn restore_params(owner: &Arc<Thread>) {
    let Some(task) = owner.task() else { return };
    if !sched::ext_of(&task).is_boosted() {
        return;
    }
    let mut best: Option<Params> = None;
    for index in 0..BUCKETS {
        for waiter in lock(index).iter() {
            let Some(claim) = waiter.claim() else { continue };
            if Arc::ptr_eq(&claim.owner.lock(), owner) && best.is_none_or(|best| rank(&claim.params) > rank(&best)) {
                best = Some(claim.params);
            }
        }
    }
    let own = sched::ext_of(&task).params();
    sched::boost(&task, best.filter(|best| rank(best) > rank(&own)));
}

/// Takes the best waiter for `key` out; also says whether others remain.
fn take_best(queue: &mut Queue, key: &FutexKey) -> Option<(Arc<Waiter>, bool)> {
    let mut best: Option<(usize, (u8, i8))> = None;
    let mut count = 0;
    for (index, waiter) in queue.iter().enumerate() {
        let Some(claim) = waiter.claim().filter(|_| waiter.is_on(key)) else { continue };
        count += 1;
        // Among equals the first comes first.
        if best.is_none_or(|(_, best)| rank(&claim.params) > best) {
            best = Some((index, rank(&claim.params)));
        }
    }
    let waiter = queue.remove(best?.0)?;
    Some((waiter, count > 1))
}

/// The remaining waiters wait for a new owner.
fn change_owner(queue: &Queue, key: &FutexKey, owner: &Arc<Thread>) {
    for waiter in queue.iter().filter(|waiter| waiter.is_on(key)) {
        if let Some(claim) = waiter.claim() {
            claim.set_owner(owner);
        }
    }
}

/// `FUTEX_UNLOCK_PI`: gives the lock to the best waiter, or frees it.
///
/// # Errors
/// `EPERM` when the caller does not own it.
pub(super) fn unlock_pi(addr: UserAddr, private: bool) -> Result {
    let key = key_at(addr, private)?;
    let me = current();
    let index = bucket_of(&key);
    loop {
        let mut queue = lock(index);
        let Some(value) = super::peek(addr) else {
            drop(queue);
            fault_in_writable(addr)?;
            continue;
        };
        if !is_owner(value, &me) {
            return Err(Errno::EPERM);
        }
        match hand_over(addr, &key, &mut queue, value, 0) {
            Some(Handed::Done(heir)) => {
                drop(queue);
                if let Some(heir) = heir {
                    heir.wake();
                }
                restore_params(&me.arc());
                return Ok(());
            }
            Some(Handed::Changed) => {}
            None => {
                drop(queue);
                fault_in_writable(addr)?;
            }
        }
    }
}

enum Handed {
    Done(Option<Arc<Waiter>>),
    /// The word changed meanwhile.
    Changed,
}

/// Writes the next owner into the word. `None` when the word must be brought in.
fn hand_over(addr: UserAddr, key: &FutexKey, queue: &mut Queue, value: u32, mark: u32) -> Option<Handed> {
    let Some((heir, more)) = take_best(queue, key) else {
        return Some(if cmpxchg(addr, value, mark)? { Handed::Done(None) } else { Handed::Changed });
    };
    let tid = heir.claim().map_or(0, |claim| claim.tid);
    let new = tid | mark | if more { FUTEX_WAITERS } else { 0 };
    match cmpxchg(addr, value, new) {
        Some(true) => {
            heir.bucket.store(GONE, Ordering::Relaxed);
            if more && let Some(owner) = seen_thread(tid as i32) {
                change_owner(queue, key, &owner);
            }
            Some(Handed::Done(Some(heir)))
        }
        outcome => {
            // Back to the head: it was the best.
            queue.push_front(heir);
            outcome.map(|_| Handed::Changed)
        }
    }
}

/// A dying owner's lock goes to the best waiter, marked so that it knows. Without waiters the word is marked and free.
pub(super) fn owner_died(addr: UserAddr, tid: u32) {
    for _ in 0..64 {
        let Ok(key) = key_at(addr, false) else { return };
        let private = current().vm().futex_key(addr, true);
        let keys = core::iter::once(key.clone()).chain(private.ok().filter(|private| *private != key));
        let mut again = false;
        for key in keys {
            let mut queue = lock(bucket_of(&key));
            let Some(value) = super::peek(addr) else {
                drop(queue);
                if fault_in_writable(addr).is_err() {
                    return;
                }
                again = true;
                break;
            };
            if value & FUTEX_TID_MASK != tid {
                return;
            }
            match hand_over(addr, &key, &mut queue, value, FUTEX_OWNER_DIED) {
                Some(Handed::Done(heir)) => {
                    drop(queue);
                    if let Some(heir) = heir {
                        heir.wake();
                    }
                    return;
                }
                Some(Handed::Changed) | None => again = true,
            }
        }
        if !again {
            return;
        }
    }
}
