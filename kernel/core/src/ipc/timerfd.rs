//! `timerfd_create(2)`: a timer that is read.
//!
//! The timer's interrupt counts an expiry and computes the next one from the last, so periods do not drift; expiries that a
//! late interrupt missed count too. Setting the wall clock cancels a timer that asked for it.
//! References: `timerfd_create(2)`, `fs/timerfd.c`.

use alloc::sync::{Arc, Weak};
use core::fmt;

use linux_uapi::raw::{general as uapi, ioctl as io};
use linux_uapi::time::{Itimerspec, Timespec};
use ursa_hal::sync::{IrqLock, SpinLock};

use crate::fs::{File, FileOps, Sink};
use crate::poll::{PollEvents, PollTable};
use crate::process::{Cap, capable};
use crate::time::clock::{WALL_CLOCK_CHANGE, wall_clock_sets};
use crate::time::{ClockBase, Deadline, Timer};
use crate::user::UserPtr;
use crate::wait::{WaitKey, WaitQueue, WakeTarget};
use crate::{Errno, Result};

struct State {
    /// Expiries that nobody has read.
    expired: u64,
    /// When it expires next, while armed. A relative time stays relative though the wall clock be set.
    next: Option<u64>,
    base: ClockBase,
    /// Period; 0 for once.
    interval: u64,
    /// `TFD_TIMER_CANCEL_ON_SET`: how often the wall clock had been set when the program last looked.
    cancel_at: Option<u64>,
    settime_flags: u32,
}

struct Core {
    clock: ClockBase,
    clock_id: i32,
    state: IrqLock<State>,
    queue: Arc<WaitQueue>,
}

/// A timer behind a descriptor.
pub struct TimerFd {
    core: Arc<Core>,
    timer: Arc<Timer>,
    /// Entry in the queue of those who hear that the wall clock was set.
    clock_watch: SpinLock<Option<WaitKey>>,
}

impl Core {
    /// The timer's interrupt.
    fn fire(&self) -> Option<Deadline> {
        let mut state = self.state.lock();
        let due = state.next?;
        let base = state.base;
        let now = base.now();
        if now < due {
            return Some(Deadline { clock: base, ns: due });
        }
        state.expired = state.expired.saturating_add(1);
        // An interval of 0 is no interval: the timer fires once.
        let next = (now - due).checked_div(state.interval).map(|missed| {
            state.expired = state.expired.saturating_add(missed);
            due.saturating_add((missed + 1).saturating_mul(state.interval))
        });
        state.next = next;
        drop(state);
        self.queue.wake_events(PollEvents::POLLIN);
        next.map(|ns| Deadline { clock: base, ns })
    }

    fn was_canceled(state: &State) -> bool {
        state.cancel_at.is_some_and(|sets| sets != wall_clock_sets())
    }

    /// Expiries to report, or that the clock was set.
    fn try_take(&self) -> Option<Result<u64>> {
        let mut state = self.state.lock();
        if Self::was_canceled(&state) {
            state.cancel_at = Some(wall_clock_sets());
            state.expired = 0;
            return Some(Err(Errno::ECANCELED));
        }
        match core::mem::take(&mut state.expired) {
            0 => None,
            n => Some(Ok(n)),
        }
    }

    fn setting(state: &State) -> Itimerspec {
        let left = state.next.map_or(0, |ns| ns.saturating_sub(state.base.now()).max(1));
        Itimerspec { it_interval: Timespec::from_ns(state.interval), it_value: Timespec::from_ns(left) }
    }
}

impl WakeTarget for Core {
    fn wake(&self, _events: PollEvents) -> bool {
        self.queue.wake_events(PollEvents::POLLIN);
        false
    }
}

impl TimerFd {
    /// Sets the timer (`timerfd_settime(2)`) and returns the former setting.
    ///
    /// # Errors
    /// `EINVAL` for a malformed time.
    pub fn set(&self, flags: u32, new: &Itimerspec) -> Result<Itimerspec> {
        let value = new.it_value.to_ns().ok_or(Errno::EINVAL)?;
        let interval = new.it_interval.to_ns().ok_or(Errno::EINVAL)?;
        self.timer.cancel_sync();
        let absolute = flags & uapi::TFD_TIMER_ABSTIME != 0;
        let cancels =
            absolute && flags & uapi::TFD_TIMER_CANCEL_ON_SET != 0 && matches!(self.core.clock, ClockBase::Realtime);
        self.watch_clock(cancels);
        let (old, armed) = {
            let mut state = self.core.state.lock();
            let old = Core::setting(&state);
            state.expired = 0;
            state.interval = interval;
            state.settime_flags = flags;
            state.cancel_at = cancels.then(wall_clock_sets);
            state.base = if absolute { self.core.clock } else { ClockBase::Monotonic };
            state.next = match value {
                0 => None,
                ns if absolute => Some(ns),
                ns => Some(state.base.now().saturating_add(ns).min(i64::MAX as u64)),
            };
            (old, state.next.map(|ns| Deadline { clock: state.base, ns }))
        };
        if let Some(deadline) = armed {
            self.timer.arm(deadline);
        }
        Ok(old)
    }

    /// The present setting (`timerfd_gettime(2)`).
    pub fn get(&self) -> Itimerspec {
        Core::setting(&self.core.state.lock())
    }

    fn watch_clock(&self, on: bool) {
        let mut watch = self.clock_watch.lock();
        if on && watch.is_none() {
            *watch = Some(WALL_CLOCK_CHANGE.add(self.core.clone(), false));
        } else if !on && let Some(key) = watch.take() {
            WALL_CLOCK_CHANGE.remove(key);
        }
    }
}

impl Drop for TimerFd {
    fn drop(&mut self) {
        self.timer.cancel_sync();
        self.watch_clock(false);
    }
}

impl FileOps for TimerFd {
    fn read(&self, f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        if dst.remaining() < 8 {
            return Err(Errno::EINVAL);
        }
        let expired = match self.core.try_take() {
            Some(outcome) => outcome?,
            None if f.is_nonblocking() => return Err(Errno::EAGAIN),
            None => self.core.queue.wait_interruptible(None, || self.core.try_take())??,
        };
        dst.put_all(&expired.to_ne_bytes())?;
        Ok(8)
    }

    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        if let Some(pt) = pt {
            pt.register(&self.core.queue);
        }
        let state = self.core.state.lock();
        if state.expired > 0 || Core::was_canceled(&state) { PollEvents::POLLIN } else { PollEvents::empty() }
    }

    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        if cmd != io::TFD_IOC_SET_TICKS {
            return Err(Errno::ENOTTY);
        }
        let ticks = UserPtr::<u64>::new(arg as u64).read()?;
        if ticks == 0 {
            return Err(Errno::EINVAL);
        }
        self.core.state.lock().expired = ticks;
        self.core.queue.wake_events(PollEvents::POLLIN);
        Ok(0)
    }

    fn fdinfo(&self, _f: &File, out: &mut dyn fmt::Write) -> fmt::Result {
        let (expired, flags, setting) = {
            let state = self.core.state.lock();
            (state.expired, state.settime_flags, Core::setting(&state))
        };
        writeln!(out, "clockid: {}", self.core.clock_id)?;
        writeln!(out, "ticks: {expired}")?;
        writeln!(out, "settime flags: 0{flags:o}")?;
        writeln!(out, "it_value: ({}, {})", setting.it_value.tv_sec, setting.it_value.tv_nsec)?;
        writeln!(out, "it_interval: ({}, {})", setting.it_interval.tv_sec, setting.it_interval.tv_nsec)
    }
}

/// Makes the file of `timerfd_create(2)`.
///
/// # Errors
/// `EINVAL` for unknown clocks and flags, `EPERM` for alarm clocks without `CAP_WAKE_ALARM`.
pub fn create(clock_id: i32, flags: u32) -> Result<Arc<File>> {
    if flags & !(uapi::TFD_CLOEXEC | uapi::TFD_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let known = [
        uapi::CLOCK_REALTIME,
        uapi::CLOCK_MONOTONIC,
        uapi::CLOCK_BOOTTIME,
        uapi::CLOCK_REALTIME_ALARM,
        uapi::CLOCK_BOOTTIME_ALARM,
    ];
    let id = u32::try_from(clock_id).ok().filter(|id| known.contains(id)).ok_or(Errno::EINVAL)?;
    if matches!(id, uapi::CLOCK_REALTIME_ALARM | uapi::CLOCK_BOOTTIME_ALARM) && !capable(Cap::WakeAlarm) {
        return Err(Errno::EPERM);
    }
    let core = Arc::new(Core {
        clock: ClockBase::from_id(clock_id).ok_or(Errno::EINVAL)?,
        clock_id,
        state: IrqLock::new(State {
            expired: 0,
            next: None,
            base: ClockBase::Monotonic,
            interval: 0,
            cancel_at: None,
            settime_flags: 0,
        }),
        queue: Arc::new(WaitQueue::new()),
    });
    let weak: Weak<Core> = Arc::downgrade(&core);
    // The callback must not own the core: the timer would keep what keeps the timer.
    let timer = Timer::new(move || weak.upgrade().and_then(|core| core.fire()));
    let ops = Arc::new(TimerFd { core, timer, clock_watch: SpinLock::new(None) });
    Ok(File::anon(ops, "anon_inode:[timerfd]", uapi::O_RDWR | flags & uapi::TFD_NONBLOCK))
}
