//! futex(2) and its successors futex_waitv(2), futex_wake(2), futex_wait(2), futex_requeue(2).

use alloc::boxed::Box;

use linux_uapi::raw::general as uapi;
use linux_uapi::time::Timespec;
use linux_uapi::zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::ops::{self, WaitSpec, WakeOp};
use super::{ANY, pi, requeue_pi};
use crate::syscall::{Cx, SysRet};
use crate::time::{ClockBase, Deadline};
use crate::user::{self, UserAddr, UserPtr};
use crate::{Errno, Result};

crate::syscalls! { ROWS;
    202 futex => sys_futex(0, 1, 2, 3, 4, 5);
    449 futex_waitv => sys_futex_waitv(0, 1, 2, 3, 4);
    454 futex_wake => sys_futex_wake(0, 1, 2, 3);
    455 futex_wait => sys_futex_wait(0, 1, 2, 3, 4, 5);
    456 futex_requeue => sys_futex_requeue(0, 1, 2, 3);
}

/// The time limit of an operation: relative for `FUTEX_WAIT`, absolute for the others.
fn deadline(timeout: UserPtr<Timespec>, clock: ClockBase, relative: bool) -> Result<Option<Deadline>> {
    let Some(timeout) = timeout.non_null() else { return Ok(None) };
    let ns = timeout.read()?.to_ns().ok_or(Errno::EINVAL)?;
    Ok(Some(if relative { Deadline::after(ns) } else { Deadline { clock, ns } }))
}

/// The multiplexed futex call.
pub fn sys_futex(
    cx: &mut Cx<'_>,
    addr: UserAddr,
    op: u32,
    value: u32,
    timeout: u64,
    addr2: UserAddr,
    value3: u32,
) -> Result<usize> {
    let private = op & uapi::FUTEX_PRIVATE_FLAG != 0;
    let command = op & !(uapi::FUTEX_PRIVATE_FLAG | uapi::FUTEX_CLOCK_REALTIME);
    let realtime = op & uapi::FUTEX_CLOCK_REALTIME != 0;
    let takes_clock = [uapi::FUTEX_WAIT, uapi::FUTEX_WAIT_BITSET, uapi::FUTEX_WAIT_REQUEUE_PI, uapi::FUTEX_LOCK_PI2];
    if realtime && !takes_clock.contains(&command) {
        return Err(Errno::ENOSYS);
    }
    let clock = if realtime { ClockBase::Realtime } else { ClockBase::Monotonic };
    let time = UserPtr::<Timespec>::new(timeout);
    // The same register is a second count for the operations that have no time limit.
    let count2 = timeout as u32;
    match command {
        uapi::FUTEX_WAIT => wait(cx, addr, private, value, deadline(time, clock, true)?, ANY),
        uapi::FUTEX_WAIT_BITSET => wait(cx, addr, private, value, deadline(time, clock, false)?, value3),
        uapi::FUTEX_WAKE => ops::wake(addr, private, legacy_count(value), ANY),
        uapi::FUTEX_WAKE_BITSET => ops::wake(addr, private, legacy_count(value), value3),
        uapi::FUTEX_REQUEUE => ops::requeue((addr, private), (addr2, private), count(value)?, count(count2)?, None),
        uapi::FUTEX_CMP_REQUEUE => {
            ops::requeue((addr, private), (addr2, private), count(value)?, count(count2)?, Some(value3))
        }
        uapi::FUTEX_WAKE_OP => {
            let counts = (legacy_count(value), legacy_count(count2));
            ops::wake_op(addr, addr2, private, counts, WakeOp::decode(value3)?)
        }
        // The oldest PI operation counts on the wall clock.
        uapi::FUTEX_LOCK_PI => {
            pi::lock_pi(addr, private, deadline(time, ClockBase::Realtime, false)?, false).map(|()| 0)
        }
        uapi::FUTEX_LOCK_PI2 => pi::lock_pi(addr, private, deadline(time, clock, false)?, false).map(|()| 0),
        uapi::FUTEX_TRYLOCK_PI => pi::lock_pi(addr, private, None, true).map(|()| 0),
        uapi::FUTEX_UNLOCK_PI => pi::unlock_pi(addr, private).map(|()| 0),
        uapi::FUTEX_WAIT_REQUEUE_PI => {
            let limit = deadline(time, clock, false)?;
            requeue_pi::wait((addr, private), (addr2, private), value, limit).map(|()| 0)
        }
        uapi::FUTEX_CMP_REQUEUE_PI => {
            let counts = (count(value)?, count(count2)?);
            requeue_pi::requeue((addr, private), (addr2, private), counts, value3)
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// `FUTEX_WAKE` wakes at least one, whatever it is asked.
fn legacy_count(raw: u32) -> usize {
    (raw as i32).max(1) as usize
}

fn count(raw: u32) -> Result<usize> {
    usize::try_from(raw as i32).map_err(|_| Errno::EINVAL)
}

/// A wait with the restart that Linux gives it: with a time limit through restart_syscall(2), so that the limit stands.
fn wait(
    cx: &mut Cx<'_>,
    addr: UserAddr,
    private: bool,
    value: u32,
    deadline: Option<Deadline>,
    bitset: u32,
) -> Result<usize> {
    match ops::wait(addr, private, value, deadline, bitset) {
        Err(Errno::ERESTARTSYS) if deadline.is_some() => {
            let again = move |cx: &mut Cx<'_>| wait(cx, addr, private, value, deadline, bitset).map(SysRet::from);
            cx.thread.signals.set_restart(Box::new(again));
            Err(Errno::ERESTART_RESTARTBLOCK)
        }
        result => result.map(|()| 0),
    }
}

/// `struct futex_waitv`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WaitV {
    value: u64,
    addr: u64,
    flags: u32,
    reserved: u32,
}

const FUTEX2_SIZE_MASK: u32 = 3;
const FUTEX2_SIZE_U32: u32 = 2;
const FUTEX2_PRIVATE: u32 = 128;

/// Decodes `FUTEX2_*` flags: the size must be 32 bits, only `FUTEX2_PRIVATE` may be added.
fn decode_flags2(flags: u32) -> Result<bool> {
    if flags & !(FUTEX2_SIZE_MASK | FUTEX2_PRIVATE) != 0 || flags & FUTEX2_SIZE_MASK != FUTEX2_SIZE_U32 {
        return Err(Errno::EINVAL);
    }
    Ok(flags & FUTEX2_PRIVATE != 0)
}

fn decode_clock2(clock: i32) -> Result<ClockBase> {
    match ClockBase::from_id(clock) {
        Some(clock @ (ClockBase::Monotonic | ClockBase::Realtime)) => Ok(clock),
        _ => Err(Errno::EINVAL),
    }
}

fn decode_waitv(entry: &WaitV) -> Result<WaitSpec> {
    if entry.reserved != 0 {
        return Err(Errno::EINVAL);
    }
    let private = decode_flags2(entry.flags)?;
    let expected = u32::try_from(entry.value).map_err(|_| Errno::EINVAL)?;
    Ok(WaitSpec { addr: UserAddr::new(entry.addr), private, expected })
}

/// Waits on up to 128 words at once.
pub fn sys_futex_waitv(
    _cx: &mut Cx<'_>,
    waiters: UserPtr<WaitV>,
    count: u32,
    flags: u32,
    timeout: UserPtr<Timespec>,
    clock: i32,
) -> Result<usize> {
    if flags != 0 || count == 0 || count > uapi::FUTEX_WAITV_MAX || waiters.is_null() {
        return Err(Errno::EINVAL);
    }
    let limit = match timeout.non_null() {
        Some(_) => deadline(timeout, decode_clock2(clock)?, false)?,
        None => None,
    };
    let entries = user::read_slice(waiters, count as usize)?;
    let specs = entries.iter().map(decode_waitv).collect::<Result<alloc::vec::Vec<_>>>()?;
    ops::wait_many(&specs, limit)
}

/// Wakes waiters whose bit set meets `mask`.
pub fn sys_futex_wake(_cx: &mut Cx<'_>, addr: UserAddr, mask: u64, number: i32, flags: u32) -> Result<usize> {
    let private = decode_flags2(flags)?;
    let mask = u32::try_from(mask).map_err(|_| Errno::EINVAL)?;
    let number = usize::try_from(number).map_err(|_| Errno::EINVAL)?;
    if number == 0 {
        return Ok(0);
    }
    ops::wake(addr, private, number, mask)
}

/// Waits on a word with an absolute time limit.
pub fn sys_futex_wait(
    cx: &mut Cx<'_>,
    addr: UserAddr,
    value: u64,
    mask: u64,
    flags: u32,
    timeout: UserPtr<Timespec>,
    clock: i32,
) -> Result<usize> {
    let private = decode_flags2(flags)?;
    let value = u32::try_from(value).map_err(|_| Errno::EINVAL)?;
    let mask = u32::try_from(mask).map_err(|_| Errno::EINVAL)?;
    let limit = match timeout.non_null() {
        Some(_) => deadline(timeout, decode_clock2(clock)?, false)?,
        None => None,
    };
    wait(cx, addr, private, value, limit, mask)
}

/// Wakes and moves waiters from the first word of a pair to the second.
pub fn sys_futex_requeue(_cx: &mut Cx<'_>, pair: UserPtr<WaitV>, flags: u32, wake: i32, requeue: i32) -> Result<usize> {
    if flags != 0 || pair.is_null() {
        return Err(Errno::EINVAL);
    }
    let (wake, requeue) = (count(wake as u32)?, count(requeue as u32)?);
    let entries = user::read_slice(pair, 2)?;
    let (from, to) = (decode_waitv(&entries[0])?, decode_waitv(&entries[1])?);
    ops::requeue((from.addr, from.private), (to.addr, to.private), wake, requeue, Some(from.expected))
}
