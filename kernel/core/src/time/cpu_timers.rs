//! Timers on CPU time: `ITIMER_VIRTUAL`, `ITIMER_PROF`, POSIX timers on CPU-time clocks, `RLIMIT_CPU`.
//!
//! The tick of a CPU that runs a thread compares; so the resolution is the tick's, as on Linux. Runs in interrupt context.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use linux_uapi::signal::{SIGKILL, SIGPROF, SIGVTALRM, SIGXCPU, SigInfo};

use super::itimer::{ProcessTimers, Setting};
use super::posix_timer::PosixTimer;
use crate::process::rlimit::Resource;
use crate::process::{Process, Thread};

/// State of the interval timers on CPU time.
#[derive(Default)]
pub(super) struct CpuTimers {
    virtual_timer: CpuItimer,
    profile_timer: CpuItimer,
    /// Armed POSIX timers on CPU-time clocks.
    posix: Vec<Arc<PosixTimer>>,
    /// Seconds of CPU time at which the next SIGXCPU is due, once `RLIMIT_CPU` has been passed.
    next_xcpu: u64,
}

#[derive(Clone, Copy, Default)]
struct CpuItimer {
    /// CPU time of the next expiry, 0 while disarmed.
    at: u64,
    interval: u64,
}

/// Which interval timer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Virtual,
    Profile,
}

impl CpuTimers {
    pub(super) fn forget_warning(&mut self) {
        self.next_xcpu = 0;
    }

    fn itimer(&mut self, which: Which) -> &mut CpuItimer {
        match which {
            Which::Virtual => &mut self.virtual_timer,
            Which::Profile => &mut self.profile_timer,
        }
    }
}

fn clock_of(process: &Process, which: Which) -> u64 {
    let (user, system) = process.cpu_ns();
    if which == Which::Virtual { user } else { user + system }
}

/// The state of `ITIMER_VIRTUAL` or `ITIMER_PROF`.
pub(super) fn get(process: &Process, which: Which) -> Setting {
    let now = clock_of(process, which);
    let timer = *process.signals.timers.cpu.lock().itimer(which);
    let value = if timer.at == 0 { 0 } else { timer.at.saturating_sub(now).max(1000) };
    Setting { value, interval: timer.interval }
}

/// Sets one and returns its former state.
pub(super) fn set(process: &Process, which: Which, new: Setting) -> Setting {
    let former = get(process, which);
    let now = clock_of(process, which);
    let at = if new.value == 0 { 0 } else { now.saturating_add(new.value) };
    *process.signals.timers.cpu.lock().itimer(which) = CpuItimer { at, interval: new.interval };
    if at != 0 {
        process.signals.timers.cpu_armed.store(true, Relaxed);
    }
    former
}

/// Enters a POSIX timer. False when memory is short.
pub(super) fn add(timers: &ProcessTimers, timer: &Arc<PosixTimer>) -> bool {
    let mut cpu = timers.cpu.lock();
    if !cpu.posix.iter().any(|other| Arc::ptr_eq(other, timer)) {
        if cpu.posix.try_reserve(1).is_err() {
            return false;
        }
        cpu.posix.push(timer.clone());
    }
    timers.cpu_armed.store(true, Relaxed);
    true
}

/// Takes a POSIX timer out.
pub(super) fn remove(timers: &ProcessTimers, timer: &PosixTimer) {
    let mut cpu = timers.cpu.lock();
    let index = cpu.posix.iter().position(|other| core::ptr::eq(&**other, timer));
    let removed = index.map(|index| cpu.posix.swap_remove(index));
    drop(cpu);
    drop(removed);
}

/// The tick found `thread` running.
pub(crate) fn tick(thread: &Thread) {
    let process = thread.process();
    let limit = process.rlimits.soft(Resource::Cpu);
    let timers = &process.signals.timers;
    if !timers.cpu_armed.load(Relaxed) && limit == u64::MAX {
        return;
    }
    let (user, system) = process.cpu_ns();
    check_itimer(process, Which::Virtual, user, SIGVTALRM);
    check_itimer(process, Which::Profile, user + system, SIGPROF);
    if limit != u64::MAX {
        check_limit(process, limit, (user + system) / 1_000_000_000);
    }
    // Few processes have any; each is looked at outside the lock, since firing takes it.
    let count = timers.cpu.lock().posix.len();
    for index in 0..count {
        let timer = timers.cpu.lock().posix.get(index).cloned();
        if let Some(timer) = timer {
            timer.check_cpu_clock();
        }
    }
}

fn check_itimer(process: &Process, which: Which, now: u64, signo: u32) {
    let expired = {
        let mut cpu = process.signals.timers.cpu.lock();
        let timer = cpu.itimer(which);
        let expired = timer.at != 0 && now >= timer.at;
        if expired {
            timer.at = if timer.interval == 0 { 0 } else { super::itimer::forward(timer.at, timer.interval, now).0 };
        }
        expired
    };
    if expired {
        crate::signal::send_to_process(process, SigInfo::kernel(signo));
    }
}

fn check_limit(process: &Process, soft: u64, used: u64) {
    if used < soft {
        return;
    }
    if used >= process.rlimits.hard(Resource::Cpu) {
        crate::signal::send_to_process(process, SigInfo::kernel(SIGKILL));
        return;
    }
    let due = {
        let mut cpu = process.signals.timers.cpu.lock();
        let due = used >= cpu.next_xcpu;
        if due {
            cpu.next_xcpu = used + 1;
        }
        due
    };
    if due {
        crate::signal::send_to_process(process, SigInfo::kernel(SIGXCPU));
    }
}
