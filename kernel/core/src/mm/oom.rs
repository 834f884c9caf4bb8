//! The OOM killer: when no frame can be had, one process ends, so that the others and the kernel go on.
//!
//! The victim is the process with the largest weight: resident pages, page tables and the shmem it made, shifted by
//! `oom_score_adj` thousandths of memory, as Linux's `oom_badness`. −1000 exempts; so is the init process. One victim at a
//! time: while it is dying others wait for its memory a little and try again.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use linux_uapi::raw::general as uapi;
use ursa_hal::time;

use super::AddressSpace;
use crate::process::{self, Process};
use crate::signal::SigInfo;
use crate::time::Deadline;
use crate::wait::{Mutex, WaitQueue};
use crate::{Errno, Result};

/// The `oom_score_adj` of a process that is never chosen.
pub(super) const EXEMPT: i32 = -1000;
/// The smallest and largest `oom_score_adj`.
pub const SCORE_ADJ_RANGE: core::ops::RangeInclusive<i32> = -1000..=1000;

/// How long one victim gets before another is chosen: it may wait for a lock that someone holds who waits for memory.
const PATIENCE_NS: u64 = 5_000_000_000;
/// How long a waiter sleeps before it tries again.
const RETRY_NS: u64 = 10_000_000;

struct Victim {
    /// True when its memory is back.
    freed: Arc<AtomicBool>,
    since_ns: u64,
}

impl Victim {
    /// Whether its memory may still come back by itself.
    fn is_ending(&self, now: u64) -> bool {
        !self.freed.load(Ordering::Acquire) && now.wrapping_sub(self.since_ns) < PATIENCE_NS
    }
}

/// Held while a victim is chosen, so that two who run out at once choose one.
static VICTIM: Mutex<Option<Victim>> = Mutex::with_queue(None, WaitQueue::new());
/// Nobody wakes who waits here: to know of each freed frame would cost everybody, and this is rare.
static RETRY: WaitQueue = WaitQueue::new();

/// The weight that decides who ends; `None` for the exempt. `total` is memory in pages.
fn badness(vm: &AddressSpace, total: u64) -> Option<i64> {
    let adj = i64::from(vm.oom_score_adj());
    (adj != -1000).then(|| vm.weight() as i64 + adj * (total as i64 / 1000))
}

/// `/proc/PID/oom_score`: 0..=2000 as Linux scales it.
pub fn score(vm: &AddressSpace) -> u64 {
    let total = ursa_hal::mm::stats().total as i64;
    match badness(vm, total as u64) {
        Some(points) => ((1000 + points * 1000 / total.max(1)) * 2 / 3).max(0) as u64,
        None => 0,
    }
}

/// Ends a process to free memory, or waits for the one that is ending.
///
/// # Errors
/// `ENOMEM` if the caller is dying itself and has to give up what it wanted.
pub(super) fn out_of_memory() -> Result {
    if process::try_current().is_none() || super::is_dying() {
        return Err(Errno::ENOMEM);
    }
    let now = time::monotonic_ns();
    let mut last = VICTIM.lock();
    if !last.as_ref().is_some_and(|victim| victim.is_ending(now)) {
        let Some((victim, vm)) = choose() else {
            ursa_hal::error!("out of memory and nothing to end");
            return Err(Errno::ENOMEM);
        };
        *last = Some(Victim { freed: vm.user_space().freed(), since_ns: now });
        ursa_hal::error!(
            "Out of memory: Killed process {} ({}) rss:{}kB shmem:{}kB oom_score_adj:{}",
            victim.pid(),
            victim.leader().map(|t| t.log_name()).unwrap_or_default(),
            vm.rss_pages() * 4,
            vm.charge().pages() * 4,
            vm.oom_score_adj()
        );
        drop(vm);
        crate::signal::send_to_process(&victim, SigInfo::kernel(uapi::SIGKILL));
        if super::is_dying() {
            return Err(Errno::ENOMEM);
        }
    }
    drop(last);
    // Interrupted by a fatal signal: give up; by the time: try again.
    let deadline = Deadline::after(RETRY_NS);
    match RETRY.wait_killable_until(Some(deadline), || (!ursa_hal::mm::low()).then_some(())) {
        Err(Errno::EINTR) => Err(Errno::ENOMEM),
        _ => Ok(()),
    }
}

/// The process whose end frees most.
fn choose() -> Option<(Arc<Process>, Arc<AddressSpace>)> {
    let total = ursa_hal::mm::stats().total as u64;
    let mut worst: Option<(i64, Arc<Process>, Arc<AddressSpace>)> = None;
    for process in process::processes() {
        if process.pid() == 1 || process.is_zombie() {
            continue;
        }
        let Some(vm) = process.try_vm() else { continue };
        if let Some(points) = badness(&vm, total)
            && worst.as_ref().is_none_or(|(most, ..)| points > *most)
        {
            worst = Some((points, process, vm));
        }
    }
    worst.map(|(_, process, vm)| (process, vm))
}
