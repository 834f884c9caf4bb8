//! The scheduling system calls.
//!
//! References: sched_setscheduler(2), sched_setattr(2), sched_setaffinity(2), sched_yield(2), sched_rr_get_interval(2),
//! getpriority(2).

use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_uapi::raw::general as uapi;
use linux_uapi::sched::{SCHED_ATTR_SIZE_VER0, SchedAttr, SchedParam};
use linux_uapi::time::Timespec;
use linux_uapi::zerocopy::IntoBytes;
use ursa_hal::smp;

use super::policy::{Params, Policy, RR_SLICE_NS};
use super::{ext_of, online_cpus};
use crate::process::rlimit::Resource;
use crate::process::{self, Cap, Process, Thread};
use crate::syscall::Cx;
use crate::user::{self, UserAddr, UserPtr};
use crate::{Errno, Result};

crate::syscalls! { ROWS;
    24 sched_yield => sys_sched_yield;
    140 getpriority => sys_getpriority(0, 1);
    141 setpriority => sys_setpriority(0, 1, 2);
    142 sched_setparam => sys_sched_setparam(0, 1);
    143 sched_getparam => sys_sched_getparam(0, 1);
    144 sched_setscheduler => sys_sched_setscheduler(0, 1, 2);
    145 sched_getscheduler => sys_sched_getscheduler(0);
    146 sched_get_priority_max => sys_sched_get_priority_max(0);
    147 sched_get_priority_min => sys_sched_get_priority_min(0);
    148 sched_rr_get_interval => sys_sched_rr_get_interval(0, 1);
    203 sched_setaffinity => sys_sched_setaffinity(0, 1, 2);
    204 sched_getaffinity => sys_sched_getaffinity(0, 1, 2);
    314 sched_setattr => sys_sched_setattr(0, 1, 2);
    315 sched_getattr => sys_sched_getattr(0, 1, 2, 3);
}

const SCHED_DEADLINE: u32 = uapi::SCHED_DEADLINE;
const RESET_ON_FORK: u32 = uapi::SCHED_RESET_ON_FORK;

/// Lets others run first.
pub fn sys_sched_yield(_cx: &mut Cx<'_>) -> Result {
    super::yield_now();
    Ok(())
}

/// The thread that a number names; 0 is the caller.
fn find(cx: &Cx<'_>, tid: i32) -> Result<Arc<Thread>> {
    match tid {
        ..0 => Err(Errno::EINVAL),
        0 => Ok(cx.thread.arc()),
        _ => process::seen_thread(tid).filter(|thread| !thread.is_dead()).ok_or(Errno::ESRCH),
    }
}

fn params_of(thread: &Thread) -> Result<Params> {
    Ok(ext_of(&*thread.task().ok_or(Errno::ESRCH)?).params())
}

/// Whether the caller may change a thread's scheduling at all: same user, or CAP_SYS_NICE.
fn owns(cx: &Cx<'_>, target: &Thread) -> bool {
    let (uid, euid) = target.with_cred(|cred| (cred.uid, cred.euid));
    cx.thread.with_cred(|cred| cred.euid == uid || cred.euid == euid || cred.has_cap(Cap::SysNice))
}

/// The least nice value that `RLIMIT_NICE` lets a process have.
fn nice_floor(process: &Process) -> i64 {
    20 - process.rlimits.soft(Resource::Nice).min(40) as i64
}

fn may_be_this_nice(process: &Process, nice: i8) -> bool {
    i64::from(nice) >= nice_floor(process)
}

/// Applies new parameters after the checks of sched_setscheduler(2).
fn change(cx: &Cx<'_>, target: &Thread, new: Params) -> Result {
    let task = target.task().ok_or(Errno::ESRCH)?;
    let old = ext_of(&task).params();
    let privileged = cx.thread.with_cred(|cred| cred.has_cap(Cap::SysNice));
    if !privileged {
        let process = target.process();
        let limit = process.rlimits.soft(Resource::Rtprio);
        if new.policy.is_realtime() {
            let raises = u64::from(new.rt_priority) > limit && new.rt_priority > old.rt_priority;
            if raises || limit == 0 && new.policy != old.policy {
                return Err(Errno::EPERM);
            }
        } else if new.nice < old.nice && !may_be_this_nice(process, new.nice) {
            return Err(Errno::EPERM);
        }
        // Leaving SCHED_IDLE is like becoming less nice.
        if old.policy == Policy::Idle && new.policy != Policy::Idle && !may_be_this_nice(process, old.nice) {
            return Err(Errno::EPERM);
        }
        if !owns(cx, target) || old.reset_on_fork && !new.reset_on_fork {
            return Err(Errno::EPERM);
        }
    }
    super::set_params(&task, new);
    Ok(())
}

fn decode_policy(raw: u32) -> Result<Policy> {
    Policy::from_raw(raw).ok_or(Errno::EINVAL)
}

/// Sets policy and priority.
pub fn sys_sched_setscheduler(cx: &mut Cx<'_>, tid: i32, policy: i32, param: UserPtr<SchedParam>) -> Result {
    if policy < 0 {
        return Err(Errno::EINVAL);
    }
    set_scheduler(cx, tid, Some(policy as u32), param)
}

/// Sets the priority.
pub fn sys_sched_setparam(cx: &mut Cx<'_>, tid: i32, param: UserPtr<SchedParam>) -> Result {
    set_scheduler(cx, tid, None, param)
}

fn set_scheduler(cx: &mut Cx<'_>, tid: i32, policy: Option<u32>, param: UserPtr<SchedParam>) -> Result {
    if param.is_null() || tid < 0 {
        return Err(Errno::EINVAL);
    }
    let priority = param.read()?.sched_priority;
    let target = find(cx, tid)?;
    let old = params_of(&target)?;
    let (policy, reset_on_fork) = match policy {
        Some(raw) => (decode_policy(raw & !RESET_ON_FORK)?, raw & RESET_ON_FORK != 0),
        None => (old.policy, old.reset_on_fork),
    };
    let rt_priority = Params::check(policy, priority)?;
    change(cx, &target, Params { policy, rt_priority, reset_on_fork, ..old })
}

/// Returns the policy.
pub fn sys_sched_getscheduler(cx: &mut Cx<'_>, tid: i32) -> Result<u32> {
    let params = params_of(&*find(cx, tid)?)?;
    Ok(params.policy.raw() | if params.reset_on_fork { RESET_ON_FORK } else { 0 })
}

/// Returns the priority.
pub fn sys_sched_getparam(cx: &mut Cx<'_>, tid: i32, param: UserPtr<SchedParam>) -> Result {
    if param.is_null() {
        return Err(Errno::EINVAL);
    }
    let params = params_of(&*find(cx, tid)?)?;
    param.write(&SchedParam { sched_priority: i32::from(params.rt_priority) })
}

fn priority_range(policy: u32) -> Result<(i32, i32)> {
    if policy == SCHED_DEADLINE {
        return Ok((0, 0));
    }
    Ok(if decode_policy(policy)?.is_realtime() { (1, 99) } else { (0, 0) })
}

/// Returns the highest priority of a policy.
pub fn sys_sched_get_priority_max(_cx: &mut Cx<'_>, policy: u32) -> Result<i32> {
    Ok(priority_range(policy)?.1)
}

/// Returns the lowest priority of a policy.
pub fn sys_sched_get_priority_min(_cx: &mut Cx<'_>, policy: u32) -> Result<i32> {
    Ok(priority_range(policy)?.0)
}

/// Returns the slice of a thread.
pub fn sys_sched_rr_get_interval(cx: &mut Cx<'_>, tid: i32, interval: UserPtr<Timespec>) -> Result {
    let params = params_of(&*find(cx, tid)?)?;
    let ns = match params.policy {
        Policy::Fifo => 0,
        Policy::RoundRobin => RR_SLICE_NS,
        _ => params.slice_ns(),
    };
    interval.write(&Timespec::from_ns(ns))
}

/// Sets all parameters.
pub fn sys_sched_setattr(cx: &mut Cx<'_>, tid: i32, attr: UserPtr<SchedAttr>, flags: u32) -> Result {
    const KEEP_POLICY: u64 = uapi::SCHED_FLAG_KEEP_POLICY as u64;
    const KEEP_PARAMS: u64 = uapi::SCHED_FLAG_KEEP_PARAMS as u64;
    const RESET: u64 = uapi::SCHED_FLAG_RESET_ON_FORK as u64;
    const KNOWN: u64 = uapi::SCHED_FLAG_ALL as u64;
    const CLAMPS: u64 = uapi::SCHED_FLAG_UTIL_CLAMP as u64;
    if attr.is_null() || tid < 0 || flags != 0 {
        return Err(Errno::EINVAL);
    }
    let attr = read_attr(attr)?;
    if attr.sched_flags & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    // Utilisation clamps need a governor.
    if attr.sched_flags & CLAMPS != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let target = find(cx, tid)?;
    let old = params_of(&target)?;
    let policy = if attr.sched_flags & KEEP_POLICY != 0 { old.policy } else { decode_policy(attr.sched_policy)? };
    let mut new = Params { policy, reset_on_fork: attr.sched_flags & RESET != 0, ..old };
    if attr.sched_flags & KEEP_PARAMS == 0 {
        let priority = i32::try_from(attr.sched_priority).map_err(|_| Errno::EINVAL)?;
        new.rt_priority = Params::check(policy, priority)?;
        if !policy.is_realtime() {
            if !(-20..=19).contains(&attr.sched_nice) {
                return Err(Errno::EINVAL);
            }
            new.nice = attr.sched_nice as i8;
            new.custom_slice_ns = Params::clamp_slice(attr.sched_runtime);
        }
    }
    change(cx, &target, new)
}

/// Reads an extensible structure that starts with its size (0: that of the first version). Who passes one that is not understood
/// gets the size that is.
fn read_attr(ptr: UserPtr<SchedAttr>) -> Result<SchedAttr> {
    let size = match ptr.cast::<u32>().read()? as usize {
        0 => SCHED_ATTR_SIZE_VER0,
        size => size,
    };
    let result = match size {
        SCHED_ATTR_SIZE_VER0..=ursa_hal::PAGE_SIZE => user::read_extensible(ptr.addr(), size),
        _ => Err(Errno::E2BIG),
    };
    if matches!(result, Err(Errno::E2BIG)) {
        let _ = ptr.cast::<u32>().write(&(size_of::<SchedAttr>() as u32));
    }
    result
}

/// Returns all parameters.
pub fn sys_sched_getattr(cx: &mut Cx<'_>, tid: i32, attr: UserPtr<SchedAttr>, size: u32, flags: u32) -> Result {
    let size = size as usize;
    if attr.is_null() || tid < 0 || flags != 0 || !(SCHED_ATTR_SIZE_VER0..=ursa_hal::PAGE_SIZE).contains(&size) {
        return Err(Errno::EINVAL);
    }
    let params = params_of(&*find(cx, tid)?)?;
    let filled = size.min(size_of::<SchedAttr>());
    let value = SchedAttr {
        size: filled as u32,
        sched_policy: params.policy.raw(),
        sched_flags: if params.reset_on_fork { uapi::SCHED_FLAG_RESET_ON_FORK as u64 } else { 0 },
        sched_nice: if params.policy.is_realtime() { 0 } else { i32::from(params.nice) },
        sched_priority: u32::from(params.rt_priority),
        sched_runtime: if params.policy.is_realtime() { 0 } else { params.slice_ns() },
        sched_util_max: 1024,
        ..SchedAttr::default()
    };
    user::write_bytes(attr.addr(), &value.as_bytes()[..filled])
}

/// Restricts a thread to CPUs.
pub fn sys_sched_setaffinity(cx: &mut Cx<'_>, tid: i32, size: u32, mask: UserAddr) -> Result {
    let mut bytes = [0u8; 8];
    let size = (size as usize).min(bytes.len());
    user::read_bytes(mask, &mut bytes[..size])?;
    let target = find(cx, tid).map_err(|_| Errno::ESRCH)?;
    if !owns(cx, &target) {
        return Err(Errno::EPERM);
    }
    let task = target.task().ok_or(Errno::ESRCH)?;
    super::set_affinity(&task, u64::from_le_bytes(bytes))?;
    // A caller that may not stay here has moved when the call returns.
    super::cond_resched();
    Ok(())
}

/// Returns the CPUs that a thread may use; the result is the number of bytes that hold the mask.
pub fn sys_sched_getaffinity(cx: &mut Cx<'_>, tid: i32, size: u32, mask: UserAddr) -> Result<usize> {
    const MASK_BYTES: usize = size_of::<u64>();
    let size = size as usize;
    if !size.is_multiple_of(MASK_BYTES) || size * 8 < smp::cpu_count() {
        return Err(Errno::EINVAL);
    }
    let task = find(cx, tid).map_err(|_| Errno::ESRCH)?.task().ok_or(Errno::ESRCH)?;
    let cpus = ext_of(&task).affinity() & online_cpus();
    user::write_bytes(mask, &cpus.to_le_bytes()[..size.min(MASK_BYTES)])?;
    Ok(size.min(MASK_BYTES))
}

/// The threads that `which` and `who` of getpriority(2) name.
fn select(cx: &Cx<'_>, which: u32, who: i32) -> Result<Vec<Arc<Thread>>> {
    let threads: Vec<Arc<Thread>> = match which {
        uapi::PRIO_PROCESS => Vec::from_iter(if who == 0 { Some(cx.thread.arc()) } else { process::seen_thread(who) }),
        uapi::PRIO_PGRP => {
            let group = if who == 0 { Some(cx.thread.process().group()) } else { process::seen_group(who) };
            group.iter().flat_map(|group| group.members()).flat_map(|member| member.threads()).collect()
        }
        uapi::PRIO_USER => {
            let uid = if who == 0 { cx.thread.with_cred(|cred| cred.uid) } else { who as u32 };
            let seen = process::processes().into_iter().filter(|process| process.seen_pid() != 0);
            let all = seen.flat_map(|process| process.threads());
            all.filter(|thread| thread.with_cred(|cred| cred.uid) == uid).collect()
        }
        _ => return Err(Errno::EINVAL),
    };
    Ok(threads.into_iter().filter(|thread| !thread.is_dead()).collect())
}

/// Returns the least nice value among some threads, as 20 − nice so that it is never negative.
pub fn sys_getpriority(cx: &mut Cx<'_>, which: u32, who: i32) -> Result<i32> {
    let threads = select(cx, which, who)?;
    let best = threads.iter().filter_map(|thread| Some(20 - i32::from(params_of(thread).ok()?.nice))).max();
    best.ok_or(Errno::ESRCH)
}

/// Sets the nice value of some threads.
pub fn sys_setpriority(cx: &mut Cx<'_>, which: u32, who: i32, nice: i32) -> Result {
    let nice = nice.clamp(-20, 19) as i8;
    let mut outcome = Err(Errno::ESRCH);
    for thread in select(cx, which, who)? {
        let result = set_nice(cx, &thread, nice);
        // One failure is reported, but the others are still changed.
        outcome = match (outcome, result) {
            (Err(Errno::ESRCH), result) => result,
            (outcome, Ok(())) => outcome,
            (_, error) => error,
        };
    }
    outcome
}

fn set_nice(cx: &Cx<'_>, thread: &Thread, nice: i8) -> Result {
    let (uid, euid) = thread.with_cred(|cred| (cred.uid, cred.euid));
    let privileged = cx.thread.with_cred(|cred| cred.has_cap(Cap::SysNice));
    let mine = cx.thread.with_cred(|cred| cred.uid == uid || cred.euid == uid || cred.uid == euid || cred.euid == euid);
    if !mine && !privileged {
        return Err(Errno::EPERM);
    }
    let old = params_of(thread)?;
    if nice < old.nice && !privileged && !may_be_this_nice(thread.process(), nice) {
        return Err(Errno::EACCES);
    }
    let task = thread.task().ok_or(Errno::ESRCH)?;
    super::set_params(&task, Params { nice, ..old });
    Ok(())
}
