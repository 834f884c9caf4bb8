//! Interval timers (setitimer(2), alarm(2)) and the collection of a process's timers.
//!
//! `ITIMER_REAL` is a high-resolution timer. After it has sent SIGALRM it rests until the signal is taken, so that a period of a
//! nanosecond does not become an interrupt storm. `ITIMER_VIRTUAL` and `ITIMER_PROF` are looked at by the tick.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use linux_uapi::signal::{SIGALRM, SigInfo};
use ursa_hal::sync::{IrqLock, Once, SpinLock};

use super::clock;
use super::cpu_timers::CpuTimers;
use super::posix_timer::PosixTimer;
use super::timer::{Deadline, Timer};
use crate::process::Process;

/// The timers of a process.
#[derive(Default)]
pub struct ProcessTimers {
    real: Once<Arc<Timer>>,
    real_state: IrqLock<RealState>,
    pub(super) cpu: IrqLock<CpuTimers>,
    /// Whether the tick has anything to look at.
    pub(super) cpu_armed: AtomicBool,
    pub(super) posix: SpinLock<BTreeMap<i32, Arc<PosixTimer>>>,
    pub(super) next_id: AtomicU64,
}

#[derive(Clone, Copy, Default)]
struct RealState {
    interval: u64,
    /// The last expiry, from which the period counts; `None` while the timer is disarmed.
    last: Option<u64>,
}

/// Time left and period, in nanoseconds; zero left means disarmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Setting {
    pub value: u64,
    pub interval: u64,
}

impl ProcessTimers {
    /// Describes the POSIX timers for `/proc/PID/timers`, the newest first.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn show(&self, process: &Process, out: &mut impl Write) -> crate::Result {
        let timers: Vec<Arc<PosixTimer>> = self.posix.lock().values().rev().cloned().collect();
        for timer in timers {
            timer.show(process, out)?;
        }
        Ok(())
    }

    fn real(&self, process: &Arc<Process>) -> &Arc<Timer> {
        self.real.call_once(|| {
            let process: Weak<Process> = Arc::downgrade(process);
            Timer::new(move || {
                if let Some(process) = process.upgrade() {
                    crate::signal::send_to_process(&process, SigInfo::kernel(SIGALRM));
                }
                None
            })
        })
    }

    /// `ITIMER_REAL`'s state.
    pub(super) fn get_real(&self) -> Setting {
        let state = *self.real_state.lock();
        let deadline = self.real.get().and_then(|timer| timer.deadline());
        // A timer that has just expired but whose signal is not taken yet shows a microsecond, as on Linux.
        let value = match deadline {
            Some(deadline) => deadline.remaining().max(1000),
            None => 0,
        };
        Setting { value, interval: state.interval }
    }

    /// Sets `ITIMER_REAL` and returns its former state.
    pub(super) fn set_real(&self, process: &Arc<Process>, new: Setting) -> Setting {
        let former = self.get_real();
        let timer = self.real(process);
        timer.cancel_sync();
        let mut state = self.real_state.lock();
        if new.value == 0 {
            *state = RealState::default();
            return former;
        }
        let deadline = Deadline::after(new.value);
        *state = RealState { interval: new.interval, last: Some(deadline.ns) };
        drop(state);
        timer.arm(deadline);
        former
    }

    /// SIGALRM was taken: the next period begins.
    pub(crate) fn alarm_was_taken(&self) {
        let Some(timer) = self.real.get() else { return };
        if timer.deadline().is_some() {
            return;
        }
        let mut state = self.real_state.lock();
        let Some(last) = state.last.filter(|_| state.interval != 0) else {
            state.last = None;
            return;
        };
        let next = forward(last, state.interval, clock::monotonic_ns()).0;
        state.last = Some(next);
        drop(state);
        timer.arm(Deadline::monotonic(next));
    }

    /// `RLIMIT_CPU` was changed: SIGXCPU is due again as soon as the new limit is passed.
    pub(super) fn forget_cpu_warning(&self) {
        self.cpu.lock().forget_warning();
    }

    /// execve(2): POSIX timers go, interval timers stay.
    pub fn delete_posix_timers(&self) {
        let timers = core::mem::take(&mut *self.posix.lock());
        for timer in timers.values() {
            timer.delete();
        }
    }

    /// The process ends.
    pub fn delete_all(&self, _process: &Process) {
        self.delete_posix_timers();
        if let Some(timer) = self.real.get() {
            timer.cancel_sync();
        }
        self.cpu_armed.store(false, Relaxed);
    }
}

/// The first `last + n·interval` after `now`, and how many periods before it are over.
pub(super) fn forward(last: u64, interval: u64, now: u64) -> (u64, u64) {
    if interval == 0 {
        return (last, 0);
    }
    let periods = if now < last { 0 } else { (now - last) / interval + 1 };
    (last.saturating_add(interval.saturating_mul(periods)), periods)
}
