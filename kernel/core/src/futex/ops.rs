//! Waiting, waking, moving.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ursa_hal::user::{self, RmwOp};

use super::{ANY, GONE, Kind, Queue, Waiter, bucket_of, fault_in, fault_in_writable, key_at, lock, lock_two, peek};
use crate::mm::FutexKey;
use crate::sched::{self, SleepState};
use crate::time::{Deadline, SleepTimer};
use crate::user::UserAddr;
use crate::{Errno, Result};

/// How a sleep ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Woken,
    TimedOut,
    Interrupted,
}

/// Sleeps until one of the waiters is woken.
pub(super) fn sleep(waiters: &[Arc<Waiter>], deadline: Option<Deadline>) -> Outcome {
    let timer = deadline.map(SleepTimer::start);
    let outcome = loop {
        sched::prepare_to_sleep(SleepState::INTERRUPTIBLE);
        if waiters.iter().any(|waiter| waiter.is_woken()) {
            break Outcome::Woken;
        }
        if timer.as_ref().is_some_and(SleepTimer::has_fired) {
            break Outcome::TimedOut;
        }
        if sched::signal_pending() {
            break Outcome::Interrupted;
        }
        sched::schedule();
    };
    sched::finish_sleep();
    outcome
}

/// `FUTEX_WAIT`: sleeps if the word holds `expected`.
///
/// # Errors
/// `EAGAIN` when it does not, `ETIMEDOUT`, `ERESTARTSYS` on a signal.
pub(super) fn wait(addr: UserAddr, private: bool, expected: u32, deadline: Option<Deadline>, bitset: u32) -> Result {
    if bitset == 0 {
        return Err(Errno::EINVAL);
    }
    let key = key_at(addr, private)?;
    let waiter = Waiter::new(key.clone(), bitset, Kind::Plain);
    enter_if_equal(addr, &key, expected, &waiter)?;
    let outcome = sleep(core::slice::from_ref(&waiter), deadline);
    // A wake-up that came together with the time-out or the signal is ours: the waker counted it.
    if outcome == Outcome::Woken || !waiter.leave() {
        return Ok(());
    }
    Err(if outcome == Outcome::TimedOut { Errno::ETIMEDOUT } else { Errno::ERESTARTSYS })
}

pub(super) fn enter_if_equal(addr: UserAddr, key: &FutexKey, expected: u32, waiter: &Arc<Waiter>) -> Result {
    let index = bucket_of(key);
    loop {
        let mut queue = lock(index);
        match peek(addr) {
            Some(value) if value == expected => return waiter.enter(index, &mut queue),
            Some(_) => return Err(Errno::EAGAIN),
            None => {
                drop(queue);
                fault_in(addr)?;
            }
        }
    }
}

/// Takes up to `count` matching plain waiters out of a bucket. PI waiters are never woken this way.
fn take_matching(queue: &mut Queue, key: &FutexKey, bitset: u32, count: usize, taken: &mut Vec<Arc<Waiter>>) -> Result {
    let mut index = 0;
    let mut found = 0;
    while found < count && index < queue.len() {
        let waiter = &queue[index];
        if waiter.bitset & bitset == 0 || !waiter.is_on(key) {
            index += 1;
            continue;
        }
        if !waiter.is_plain() {
            return Err(Errno::EINVAL);
        }
        if taken.try_reserve(1).is_err() {
            break;
        }
        if let Some(waiter) = queue.remove(index) {
            waiter.bucket.store(GONE, Ordering::Relaxed);
            taken.push(waiter);
            found += 1;
        }
    }
    Ok(())
}

fn wake_taken(taken: Vec<Arc<Waiter>>) -> usize {
    for waiter in &taken {
        waiter.wake();
    }
    taken.len()
}

/// `FUTEX_WAKE`: wakes up to `count` waiters.
///
/// # Errors
/// `EINVAL` for a PI futex, `EFAULT` for an address that is not mapped.
pub(super) fn wake(addr: UserAddr, private: bool, count: usize, bitset: u32) -> Result<usize> {
    if bitset == 0 {
        return Err(Errno::EINVAL);
    }
    wake_key(&key_at(addr, private)?, count, bitset)
}

fn wake_key(key: &FutexKey, count: usize, bitset: u32) -> Result<usize> {
    let mut taken = Vec::new();
    let mut queue = lock(bucket_of(key));
    let result = take_matching(&mut queue, key, bitset, count, &mut taken);
    drop(queue);
    let woken = wake_taken(taken);
    result.map(|()| woken)
}

/// Wakes one waiter on a word of the calling process, shared or private: for `CLONE_CHILD_CLEARTID`.
pub fn wake_user_addr(addr: UserAddr) {
    for private in [false, true] {
        // A bad address is the program's own loss.
        if let Ok(key) = key_at(addr, private) {
            let _ = wake_key(&key, 1, ANY);
            if matches!(key, FutexKey::Private(..)) {
                return;
            }
        }
    }
}

/// `FUTEX_REQUEUE` and `FUTEX_CMP_REQUEUE`: wakes `wake_count` waiters and moves up to `move_count` others to another word.
///
/// # Errors
/// `EAGAIN` when the word does not hold `expected`, `EINVAL` for waiters that ask for a PI futex.
pub(super) fn requeue(
    from: (UserAddr, bool),
    to: (UserAddr, bool),
    wake_count: usize,
    move_count: usize,
    expected: Option<u32>,
) -> Result<usize> {
    let (from_key, to_key) = (key_at(from.0, from.1)?, key_at(to.0, to.1)?);
    let (from_index, to_index) = (bucket_of(&from_key), bucket_of(&to_key));
    let mut taken = Vec::new();
    let moved = loop {
        let (mut source, mut target) = lock_two(from_index, to_index);
        if let Some(expected) = expected {
            match peek(from.0) {
                Some(value) if value == expected => {}
                Some(_) => return Err(Errno::EAGAIN),
                None => {
                    drop((source, target));
                    fault_in(from.0)?;
                    continue;
                }
            }
        }
        if let Err(error) = take_matching(&mut source, &from_key, ANY, wake_count, &mut taken) {
            drop((source, target));
            wake_taken(taken);
            return Err(error);
        }
        break move_waiters(&mut source, target.as_deref_mut(), (&from_key, &to_key), to_index, move_count);
    };
    let woken = wake_taken(taken);
    Ok(woken + moved?)
}

fn move_waiters(
    source: &mut Queue,
    mut target: Option<&mut Queue>,
    (from_key, to_key): (&FutexKey, &FutexKey),
    to_index: usize,
    count: usize,
) -> Result<usize> {
    let mut moved = 0;
    if from_key == to_key {
        // Nothing changes place; as on Linux they count.
        return Ok(source.iter().filter(|waiter| waiter.is_plain() && waiter.is_on(from_key)).count().min(count));
    }
    let mut index = 0;
    let mut left = source.len();
    while moved < count && left > 0 && index < source.len() {
        left -= 1;
        if !source[index].is_on(from_key) {
            index += 1;
            continue;
        }
        // Those for a PI futex are moved by its own operation only.
        if !source[index].is_plain() {
            return Err(Errno::EINVAL);
        }
        let room = target.as_deref_mut().is_none_or(|target| target.try_reserve(1).is_ok());
        if !room {
            break;
        }
        let Some(waiter) = source.remove(index) else { break };
        *waiter.key.lock() = to_key.clone();
        waiter.bucket.store(to_index, Ordering::Relaxed);
        match target.as_deref_mut() {
            Some(target) => target.push_back(waiter),
            // The same bucket under another key: to the end of the line.
            None => source.push_back(waiter),
        }
        moved += 1;
    }
    Ok(moved)
}

/// The operation of `FUTEX_WAKE_OP`, decoded.
#[derive(Clone, Copy)]
pub(super) struct WakeOp {
    op: RmwOp,
    operand: u32,
    compare: u32,
    against: i32,
}

impl WakeOp {
    /// Decodes `FUTEX_OP(op, oparg, cmp, cmparg)`.
    ///
    /// # Errors
    /// `ENOSYS` for an unknown operation or comparison.
    pub(super) fn decode(raw: u32) -> Result<WakeOp> {
        const OPARG_SHIFT: u32 = 8;
        let field12 = |value: u32| ((value << 20) as i32) >> 20;
        let mut operand = field12(raw >> 12) as u32;
        let op = raw >> 28;
        if op & OPARG_SHIFT != 0 {
            // A shift beyond the word is masked, as Linux does for old programs.
            operand = 1 << (operand & 31);
        }
        let op = match op & 7 {
            0 => RmwOp::Set,
            1 => RmwOp::Add,
            2 => RmwOp::Or,
            3 => RmwOp::AndNot,
            4 => RmwOp::Xor,
            _ => return Err(Errno::ENOSYS),
        };
        let compare = raw >> 24 & 15;
        if compare > 5 {
            return Err(Errno::ENOSYS);
        }
        Ok(WakeOp { op, operand, compare, against: field12(raw) })
    }

    fn holds(&self, old: u32) -> bool {
        let old = old as i32;
        match self.compare {
            0 => old == self.against,
            1 => old != self.against,
            2 => old < self.against,
            3 => old <= self.against,
            4 => old > self.against,
            _ => old >= self.against,
        }
    }
}

/// `FUTEX_WAKE_OP`: changes the second word, wakes waiters on the first, and on the second if its old value compares true.
pub(super) fn wake_op(
    first: UserAddr,
    second: UserAddr,
    private: bool,
    counts: (usize, usize),
    op: WakeOp,
) -> Result<usize> {
    let (first_key, second_key) = (key_at(first, private)?, key_at(second, private)?);
    let (first_index, second_index) = (bucket_of(&first_key), bucket_of(&second_key));
    let mut taken = Vec::new();
    loop {
        let (mut first_queue, mut second_queue) = lock_two(first_index, second_index);
        let Ok(old) = user::nofault(|| user::atomic_rmw_u32(second, op.op, op.operand)) else {
            drop((first_queue, second_queue));
            fault_in_writable(second)?;
            continue;
        };
        let mut result = take_matching(&mut first_queue, &first_key, ANY, counts.0, &mut taken);
        if result.is_ok() && op.holds(old) {
            let queue = second_queue.as_deref_mut().unwrap_or(&mut first_queue);
            result = take_matching(queue, &second_key, ANY, counts.1, &mut taken);
        }
        drop((first_queue, second_queue));
        let woken = wake_taken(taken);
        return result.map(|()| woken);
    }
}

/// One element of futex_waitv(2), decoded.
pub(super) struct WaitSpec {
    pub addr: UserAddr,
    pub private: bool,
    pub expected: u32,
}

/// futex_waitv(2): sleeps until one of several words is woken; the result is its index.
pub(super) fn wait_many(specs: &[WaitSpec], deadline: Option<Deadline>) -> Result<usize> {
    let mut waiters: Vec<Arc<Waiter>> = Vec::new();
    waiters.try_reserve_exact(specs.len()).map_err(|_| Errno::ENOMEM)?;
    let mut failure = None;
    for spec in specs {
        let entered = key_at(spec.addr, spec.private).and_then(|key| {
            let waiter = Waiter::new(key.clone(), ANY, Kind::Plain);
            enter_if_equal(spec.addr, &key, spec.expected, &waiter).map(|()| waiter)
        });
        match entered {
            Ok(waiter) => waiters.push(waiter),
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    let outcome = if failure.is_none() { sleep(&waiters, deadline) } else { Outcome::Interrupted };
    let mut woken = None;
    for (index, waiter) in waiters.iter().enumerate() {
        if !waiter.leave() {
            woken = Some(index);
        }
    }
    // As on Linux, a wake-up that came while a later word was found changed wins.
    match (woken, failure, outcome) {
        (Some(index), ..) => Ok(index),
        (None, Some(error), _) => Err(error),
        (None, None, Outcome::TimedOut) => Err(Errno::ETIMEDOUT),
        (None, None, _) => Err(Errno::ERESTARTSYS),
    }
}
