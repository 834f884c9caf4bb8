//! POSIX timers: timer_create(2) and its family.
//!
//! A timer that has queued its signal rests; expiries meanwhile are counted when the signal is taken (`si_overrun`) and the timer is
//! armed for the next period only then. So no period, however short, floods the kernel.
//! Locking: a timer's `state`, a leaf that disables interrupts.

use alloc::sync::{Arc, Weak};
use core::fmt::Write;

use linux_uapi::signal::SigInfo;
use ursa_hal::sync::{IrqLock, Once};

use super::clock::ClockBase;
use super::cpu_clock::CpuClock;
use super::cpu_timers;
use super::itimer::{Setting, forward};
use super::timer::{Deadline, Timer};
use crate::process::{Process, Thread};
use crate::signal;
use crate::{Errno, Result};

/// What drives a timer.
#[derive(Clone)]
pub(super) enum Source {
    Clock(ClockBase),
    Cpu(CpuClock),
}

/// What an expiry does.
#[derive(Clone)]
pub(super) enum Notify {
    /// `SIGEV_NONE`.
    Nothing,
    /// `SIGEV_SIGNAL`.
    Process { signo: u32 },
    /// `SIGEV_THREAD_ID`.
    Thread { signo: u32, thread: Weak<Thread> },
}

#[derive(Default)]
struct State {
    interval: u64,
    /// The next expiry on the timer's clock; `None` while disarmed.
    next: Option<u64>,
    /// Its signal is queued: the timer rests.
    queued: bool,
    overrun: i32,
    deleted: bool,
}

/// A POSIX timer.
pub struct PosixTimer {
    pub(super) id: i32,
    value: u64,
    source: Source,
    notify: Notify,
    process: Weak<Process>,
    timer: Once<Arc<Timer>>,
    state: IrqLock<State>,
}

impl PosixTimer {
    pub(super) fn new(id: i32, process: &Arc<Process>, source: Source, notify: Notify, value: u64) -> Arc<PosixTimer> {
        let timer = Arc::new(PosixTimer {
            id,
            value,
            source,
            notify,
            process: Arc::downgrade(process),
            timer: Once::new(),
            state: IrqLock::new(State::default()),
        });
        if let Source::Clock(_) = timer.source {
            let this = Arc::downgrade(&timer);
            timer.timer.call_once(|| Timer::new(move || this.upgrade().and_then(|timer| timer.expired())));
        }
        timer
    }

    /// A paragraph of `/proc/PID/timers` (proc_pid_timers(5)).
    pub(super) fn show(&self, process: &Process, out: &mut impl Write) -> Result {
        let (signo, kind, whose, id) = match &self.notify {
            Notify::Nothing => (0, "none", "pid", process.seen_pid()),
            Notify::Process { signo } => (*signo, "signal", "pid", process.seen_pid()),
            Notify::Thread { signo, thread } => {
                (*signo, "signal", "tid", thread.upgrade().map_or(0, |thread| thread.seen_tid()))
            }
        };
        let clock = match &self.source {
            Source::Clock(clock) => clock.id(),
            Source::Cpu(clock) => clock.id(),
        };
        writeln!(out, "ID: {}\nsignal: {signo}/{:016x}", self.id, self.value)?;
        writeln!(out, "notify: {kind}/{whose}.{id}\nClockID: {clock}")?;
        Ok(())
    }

    fn now(&self) -> Result<u64> {
        match &self.source {
            Source::Clock(clock) => Ok(clock.now()),
            Source::Cpu(clock) => clock.now(),
        }
    }

    /// `ns` from now on the timer's clock.
    pub(super) fn after(&self, ns: u64) -> Result<u64> {
        Ok(self.now()?.saturating_add(ns).min(i64::MAX as u64))
    }

    /// Time left and period. A timer that rests or sends nothing shows its coming expiry all the same.
    pub(super) fn get(&self) -> Setting {
        let Ok(now) = self.now() else { return Setting::default() };
        let state = self.state.lock();
        let Some(next) = state.next else { return Setting { value: 0, interval: state.interval } };
        let silent = matches!(self.notify, Notify::Nothing);
        if next <= now && state.interval == 0 && (silent || state.queued) {
            return Setting { value: 0, interval: 0 };
        }
        let next = if next <= now { forward(next, state.interval, now).0 } else { next };
        Setting { value: next.saturating_sub(now).max(1), interval: state.interval }
    }

    /// Arms or disarms the timer; `at` is on its clock.
    pub(super) fn set(self: &Arc<Self>, at: Option<u64>, interval: u64) -> Result {
        self.stop();
        let process = self.process.upgrade().ok_or(Errno::EINVAL)?;
        // A signal of the former setting that is still queued does not count for the new one.
        signal::forget_timer(&process, self);
        {
            let mut state = self.state.lock();
            let deleted = state.deleted;
            *state = State { interval: if at.is_some() { interval } else { 0 }, next: at, deleted, ..State::default() };
        }
        if let Some(at) = at {
            self.start(&process, at)?;
        }
        Ok(())
    }

    fn start(self: &Arc<Self>, process: &Process, at: u64) -> Result {
        match &self.source {
            Source::Clock(clock) => {
                if !matches!(self.notify, Notify::Nothing)
                    && let Some(timer) = self.timer.get()
                {
                    timer.arm(Deadline { clock: *clock, ns: at });
                }
                Ok(())
            }
            Source::Cpu(_) => {
                if cpu_timers::add(&process.signals.timers, self) {
                    Ok(())
                } else {
                    Err(Errno::ENOMEM)
                }
            }
        }
    }

    fn stop(&self) {
        if let Some(timer) = self.timer.get() {
            timer.cancel_sync();
        }
        if let (Source::Cpu(_), Some(process)) = (&self.source, self.process.upgrade()) {
            cpu_timers::remove(&process.signals.timers, self);
        }
    }

    /// timer_delete(2), exec, exit.
    pub(super) fn delete(&self) {
        self.state.lock().deleted = true;
        self.stop();
        if let Some(process) = self.process.upgrade() {
            signal::forget_timer(&process, self);
        }
    }

    pub(super) fn overrun(&self) -> i32 {
        self.state.lock().overrun
    }

    /// In interrupt context: the deadline has passed. Returns when to look again.
    fn expired(self: &Arc<Self>) -> Option<Deadline> {
        let Source::Clock(clock) = self.source else { return None };
        if self.notify_now() {
            return None;
        }
        // Nobody listens: go on in silence, at a measured pace.
        const QUIET_PERIOD_NS: u64 = 1_000_000;
        let mut state = self.state.lock();
        if state.interval == 0 || state.deleted {
            return None;
        }
        let next = forward(state.next?, state.interval, clock.now().saturating_add(QUIET_PERIOD_NS)).0;
        state.next = Some(next);
        Some(Deadline { clock, ns: next })
    }

    /// Sends the signal. Returns whether the timer rests now until it is taken.
    fn notify_now(self: &Arc<Self>) -> bool {
        let Some(process) = self.process.upgrade() else { return true };
        let (signo, thread) = match &self.notify {
            Notify::Nothing => return true,
            Notify::Process { signo } => (*signo, None),
            Notify::Thread { signo, thread } => match thread.upgrade() {
                Some(thread) => (*signo, Some(thread)),
                None => return true,
            },
        };
        {
            let mut state = self.state.lock();
            if state.deleted || state.queued {
                return true;
            }
            state.queued = true;
        }
        let info = SigInfo::timer(signo, self.id, 0, self.value);
        let sent = signal::send_from_timer(&process, thread.as_deref(), info, self.clone());
        if !sent {
            self.state.lock().queued = false;
        }
        sent
    }

    /// The tick: fires if the CPU-time clock has reached the expiry.
    pub(super) fn check_cpu_clock(self: &Arc<Self>) {
        let Ok(now) = self.now() else { return };
        let due = self.state.lock().next.is_some_and(|next| now >= next);
        if due && !self.notify_now() {
            let mut state = self.state.lock();
            state.next = match state.next {
                Some(next) if state.interval != 0 => Some(forward(next, state.interval, now).0),
                _ => None,
            };
        }
    }

    /// The signal was taken: counts what was missed and goes on with the next period.
    pub(crate) fn taken(self: &Arc<Self>, mut info: SigInfo) -> SigInfo {
        let Ok(now) = self.now() else { return info };
        let mut state = self.state.lock();
        state.queued = false;
        let Some(last) = state.next.filter(|_| !state.deleted) else { return info };
        if state.interval == 0 {
            state.next = None;
            return info;
        }
        let (next, periods) = forward(last, state.interval, now);
        state.next = Some(next);
        state.overrun = i32::try_from(periods.saturating_sub(1)).unwrap_or(i32::MAX);
        info.set_overrun(state.overrun);
        drop(state);
        if let Source::Clock(clock) = &self.source
            && let Some(timer) = self.timer.get()
        {
            timer.arm(Deadline { clock: *clock, ns: next });
        }
        info
    }
}
