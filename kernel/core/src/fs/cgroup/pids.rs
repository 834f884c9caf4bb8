//! The `pids` controller: how many tasks there may be in a group and all below it.
//!
//! Tasks are counted in every group, whether the controller is switched on there or not; a limit exists only while it is. A task
//! counts from its birth until it is gone, a process's zombie therefore until it was waited for. Only births are refused:
//! what is moved in may go beyond the limit.
//!
//! Reference: Linux `kernel/cgroup/pids.c`.

use alloc::sync::Arc;
use core::{
    fmt::Write,
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
};

use super::{
    control,
    tree::{Cgroup, News},
};
use crate::{
    Errno, Result,
    fs::procfs::Text,
    process::{Credentials, pid::PID_MAX},
};

/// One more than there can be: no limit.
const NO_LIMIT: i64 = PID_MAX as i64 + 1;

/// The counts of a group.
pub(super) struct Pids {
    count: AtomicI64,
    peak: AtomicI64,
    limit: AtomicI64,
    /// Births that the limit here refused: of this group's own, and of all below as well.
    refused_here: AtomicU64,
    refused: AtomicU64,
}

impl Pids {
    pub fn new() -> Pids {
        Pids {
            count: AtomicI64::new(0),
            peak: AtomicI64::new(0),
            limit: AtomicI64::new(NO_LIMIT),
            refused_here: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// The controller is switched off here.
    pub fn forget(&self) {
        self.limit.store(NO_LIMIT, Relaxed);
        self.peak.store(self.count.load(Relaxed), Relaxed);
        self.refused_here.store(0, Relaxed);
        self.refused.store(0, Relaxed);
    }

    /// Counts tasks if that stays within `limit`.
    fn add(&self, tasks: i64, limit: i64) -> bool {
        let now = self.count.fetch_add(tasks, Relaxed) + tasks;
        if now > limit {
            self.count.fetch_sub(tasks, Relaxed);
            return false;
        }
        self.peak.fetch_max(now, Relaxed);
        true
    }
}

/// The group and those above it that have counts: all but the root.
fn counted(group: &Cgroup) -> impl Iterator<Item = &Cgroup> {
    group.upwards().filter(|group| group.parent().is_some())
}

/// Counts a task that is to be born.
///
/// # Errors
/// `EAGAIN` beyond a limit; `news` has who is to hear of it.
pub(super) fn try_charge(group: &Cgroup, news: &mut News) -> Result {
    for at in counted(group) {
        if at.pids.add(1, at.pids.limit.load(Relaxed)) {
            continue;
        }
        for undone in counted(group).take_while(|group| !core::ptr::eq(*group, at)) {
            undone.pids.count.fetch_sub(1, Relaxed);
        }
        at.pids.refused_here.fetch_add(1, Relaxed);
        news.0.push((at.arc(), control::PIDS_EVENTS_LOCAL));
        for above in counted(at) {
            above.pids.refused.fetch_add(1, Relaxed);
            news.0.push((above.arc(), control::PIDS_EVENTS));
        }
        return Err(Errno::EAGAIN);
    }
    Ok(())
}

/// Counts tasks that are there already.
pub(super) fn charge(group: &Cgroup, tasks: u32) {
    for group in counted(group) {
        group.pids.add(i64::from(tasks), i64::MAX);
    }
}

/// Counts tasks no more.
pub(super) fn uncharge(group: &Cgroup, tasks: u32) {
    for group in counted(group) {
        group.pids.count.fetch_sub(i64::from(tasks), Relaxed);
    }
}

pub(super) fn show_current(group: &Arc<Cgroup>, out: &mut Text) -> Result {
    writeln!(out, "{}", group.pids.count.load(Relaxed))?;
    Ok(())
}

pub(super) fn show_peak(group: &Arc<Cgroup>, out: &mut Text) -> Result {
    writeln!(out, "{}", group.pids.peak.load(Relaxed))?;
    Ok(())
}

pub(super) fn show_events(group: &Arc<Cgroup>, out: &mut Text) -> Result {
    writeln!(out, "max {}", group.pids.refused.load(Relaxed))?;
    Ok(())
}

pub(super) fn show_events_local(group: &Arc<Cgroup>, out: &mut Text) -> Result {
    writeln!(out, "max {}", group.pids.refused_here.load(Relaxed))?;
    Ok(())
}

pub(super) fn show_max(group: &Arc<Cgroup>, out: &mut Text) -> Result {
    match group.pids.limit.load(Relaxed) {
        NO_LIMIT => out.push_str("max\n"),
        limit => writeln!(out, "{limit}")?,
    }
    Ok(())
}

pub(super) fn store_max(group: &Arc<Cgroup>, text: &str, _opener: &Credentials) -> Result {
    let limit = match text.trim() {
        "max" => NO_LIMIT,
        number => {
            let limit: i64 = number.parse().map_err(|_| Errno::EINVAL)?;
            Some(limit).filter(|limit| (0..NO_LIMIT).contains(limit)).ok_or(Errno::EINVAL)?
        }
    };
    group.pids.limit.store(limit, Relaxed);
    Ok(())
}
