//! Limits and accounting: getrlimit(2), setrlimit(2), prlimit(2), getrusage(2), times(2).

use alloc::sync::Arc;

use linux_uapi::process::{Rlimit64, Rusage, Tms};
use linux_uapi::time::Timeval;

use crate::process::pid::{Pid, seen_thread};
use crate::process::rlimit::{Limit, Resource};
use crate::process::thread::Thread;
use crate::process::usage::UsageTotals;
use crate::process::{Cap, Process};
use crate::syscall::Cx;
use crate::user::UserPtr;
use crate::{Errno, Result};

const RUSAGE_SELF: i32 = 0;
const RUSAGE_CHILDREN: i32 = -1;
const RUSAGE_THREAD: i32 = 1;
/// Nanoseconds of a tick of times(2).
const TICK_NS: u64 = 10_000_000;
/// Bytes of a block of `ru_inblock`.
const BLOCK: u64 = 512;

/// Returns a limit of the process.
pub fn sys_getrlimit(cx: &mut Cx<'_>, resource: u32, out: UserPtr<Rlimit64>) -> Result {
    let limit = cx.thread.process().rlimits.get(Resource::decode(resource)?);
    out.write(&Rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard })
}

/// Sets a limit of the process.
pub fn sys_setrlimit(cx: &mut Cx<'_>, resource: u32, new: UserPtr<Rlimit64>) -> Result {
    let resource = Resource::decode(resource)?;
    let new = new.read()?;
    let process = cx.thread.process().clone();
    set_limit(cx, &process, resource, new).map(|_| ())
}

fn set_limit(cx: &Cx<'_>, process: &Arc<Process>, resource: Resource, new: Rlimit64) -> Result<Limit> {
    let privileged = cx.thread.with_cred(|c| c.has_cap(Cap::SysResource));
    let old = process.rlimits.set(resource, Limit { soft: new.rlim_cur, hard: new.rlim_max }, privileged)?;
    if resource == Resource::Cpu {
        crate::time::cpu_limit_changed(process);
    }
    Ok(old)
}

/// Gets and sets a limit of a process.
pub fn sys_prlimit64(
    cx: &mut Cx<'_>,
    pid: Pid,
    resource: u32,
    new: UserPtr<Rlimit64>,
    old: UserPtr<Rlimit64>,
) -> Result {
    let resource = Resource::decode(resource)?;
    let new = new.non_null().map(UserPtr::read).transpose()?;
    let process = if pid == 0 {
        cx.thread.process().clone()
    } else {
        let target = seen_thread(pid).ok_or(Errno::ESRCH)?;
        if !Arc::ptr_eq(target.process(), cx.thread.process()) {
            check_access(cx.thread, &target)?;
        }
        target.process().clone()
    };
    let before = match new {
        Some(new) => set_limit(cx, &process, resource, new)?,
        None => process.rlimits.get(resource),
    };
    old.write_if_given(&Rlimit64 { rlim_cur: before.soft, rlim_max: before.hard })
}

/// prlimit's rule: all ids of the target are the caller's real ones, or the caller has `CAP_SYS_RESOURCE`.
fn check_access(caller: &Thread, target: &Thread) -> Result {
    let (me, them) = (caller.cred(), target.cred());
    let same = [them.uid, them.euid, them.suid].iter().all(|id| *id == me.uid)
        && [them.gid, them.egid, them.sgid].iter().all(|id| *id == me.gid);
    if same || me.has_cap(Cap::SysResource) { Ok(()) } else { Err(Errno::EPERM) }
}

/// Returns what was consumed.
pub fn sys_getrusage(cx: &mut Cx<'_>, who: i32, out: UserPtr<Rusage>) -> Result {
    let process = cx.thread.process();
    let totals = match who {
        RUSAGE_SELF => process.usage(),
        RUSAGE_CHILDREN => process.children_usage(),
        RUSAGE_THREAD => {
            let mut totals = cx.thread.usage.totals();
            totals.max_rss_pages = cx.thread.vm().peak_rss_pages();
            totals
        }
        _ => return Err(Errno::EINVAL),
    };
    out.write(&rusage_of(&totals))
}

/// Returns `struct rusage` of a sum.
pub fn rusage_of(totals: &UsageTotals) -> Rusage {
    Rusage {
        ru_utime: Timeval::from_ns(totals.user_ns),
        ru_stime: Timeval::from_ns(totals.system_ns),
        ru_maxrss: totals.max_rss_pages.saturating_mul(4) as i64,
        ru_minflt: totals.minor_faults as i64,
        ru_majflt: totals.major_faults as i64,
        ru_inblock: (totals.storage_read_bytes / BLOCK) as i64,
        ru_oublock: (totals.storage_written_bytes / BLOCK) as i64,
        ru_nvcsw: totals.voluntary_switches as i64,
        ru_nivcsw: totals.involuntary_switches as i64,
        ..Rusage::default()
    }
}

/// Returns processor times in ticks, and the ticks since some point in the past.
pub fn sys_times(cx: &mut Cx<'_>, out: UserPtr<Tms>) -> Result<i64> {
    let process = cx.thread.process();
    if !out.is_null() {
        let (own, children) = (process.usage(), process.children_usage());
        out.write(&Tms {
            tms_utime: (own.user_ns / TICK_NS) as i64,
            tms_stime: (own.system_ns / TICK_NS) as i64,
            tms_cutime: (children.user_ns / TICK_NS) as i64,
            tms_cstime: (children.system_ns / TICK_NS) as i64,
        })?;
    }
    Ok((ursa_hal::time::monotonic_ns() / TICK_NS) as i64)
}
