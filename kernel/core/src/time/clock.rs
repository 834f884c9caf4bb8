//! Clocks: reading, setting and converting.
//!
//! Everything derives from hal's monotonic counter. The wall clock is that plus an offset; `CLOCK_TAI` adds the leap seconds
//! that adjtimex(2) was told; `CLOCK_BOOTTIME` equals the monotonic clock, since Ursa does not suspend. The CPU-time clocks
//! are in [`super::cpu_clock`].

use core::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};

use linux_uapi::raw::general as uapi;

use crate::{Errno, Result};

/// Seconds between TAI and UTC as adjtimex(2) set it.
pub(super) static TAI_OFFSET: AtomicI32 = AtomicI32::new(0);
/// Moves whenever the wall clock is set; timerfd's `TFD_TIMER_CANCEL_ON_SET` compares it.
static WALL_CLOCK_SETS: AtomicU64 = AtomicU64::new(0);
/// Those who want to know when the wall clock is set (timerfd).
pub static WALL_CLOCK_CHANGE: crate::wait::WaitQueue = crate::wait::WaitQueue::new();

/// The period of Linux's tick, which the coarse clocks report as their resolution.
pub const COARSE_RESOLUTION_NS: u64 = 4_000_000;

/// A clock that a timer can be bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockBase {
    /// Time since boot that nobody can set.
    Monotonic,
    /// The wall clock, UTC.
    Realtime,
    /// Time since boot, suspended time included.
    Boottime,
    /// International atomic time.
    Tai,
}

impl ClockBase {
    /// The `CLOCK_*` number.
    pub(crate) fn id(self) -> i32 {
        match self {
            ClockBase::Monotonic => uapi::CLOCK_MONOTONIC as i32,
            ClockBase::Realtime => uapi::CLOCK_REALTIME as i32,
            ClockBase::Boottime => uapi::CLOCK_BOOTTIME as i32,
            ClockBase::Tai => uapi::CLOCK_TAI as i32,
        }
    }
}

/// Nanoseconds of the monotonic clock.
#[inline]
pub fn monotonic_ns() -> u64 {
    ursa_hal::time::monotonic_ns()
}

/// Nanoseconds since 1970 of the wall clock.
#[inline]
pub fn realtime_ns() -> u64 {
    // A clock that is set to before 1970 reads as 1970.
    u64::try_from(ursa_hal::time::realtime_ns()).unwrap_or(0)
}

impl ClockBase {
    /// Decodes the clocks on which timers run: `CLOCK_REALTIME`, `MONOTONIC`, `BOOTTIME`, `TAI` and the alarm variants.
    pub fn from_id(id: i32) -> Option<ClockBase> {
        Some(match u32::try_from(id).ok()? {
            uapi::CLOCK_REALTIME | uapi::CLOCK_REALTIME_ALARM => ClockBase::Realtime,
            uapi::CLOCK_MONOTONIC => ClockBase::Monotonic,
            uapi::CLOCK_BOOTTIME | uapi::CLOCK_BOOTTIME_ALARM => ClockBase::Boottime,
            uapi::CLOCK_TAI => ClockBase::Tai,
            _ => return None,
        })
    }

    /// The clock's value.
    pub fn now(self) -> u64 {
        match self {
            ClockBase::Monotonic | ClockBase::Boottime => monotonic_ns(),
            ClockBase::Realtime => realtime_ns(),
            ClockBase::Tai => realtime_ns().saturating_add_signed(tai_ns()),
        }
    }

    /// When the monotonic clock stands where this clock stands at `ns`, as things are now.
    pub fn to_monotonic(self, ns: u64) -> u64 {
        match self {
            ClockBase::Monotonic | ClockBase::Boottime => ns,
            ClockBase::Realtime | ClockBase::Tai => {
                let (now, wall) = (monotonic_ns(), self.now());
                if ns >= wall { now.saturating_add(ns - wall) } else { now.saturating_sub(wall - ns) }
            }
        }
    }

    /// Whether setting the wall clock moves this clock.
    pub const fn follows_wall_clock(self) -> bool {
        matches!(self, ClockBase::Realtime | ClockBase::Tai)
    }
}

fn tai_ns() -> i64 {
    i64::from(TAI_OFFSET.load(Relaxed)) * 1_000_000_000
}

/// How often the wall clock was set.
pub fn wall_clock_sets() -> u64 {
    WALL_CLOCK_SETS.load(Relaxed)
}

/// Sets the wall clock.
///
/// # Errors
/// `EINVAL` for a time before the machine's boot (the monotonic clock would be ahead of it) or beyond what Linux takes.
pub fn set_realtime(ns: u64) -> Result {
    const MAX_SETTABLE_NS: u64 = (i64::MAX as u64 / 1_000_000_000 - 30 * 365 * 24 * 3600) * 1_000_000_000;
    if ns < monotonic_ns() || ns > MAX_SETTABLE_NS {
        return Err(Errno::EINVAL);
    }
    ursa_hal::time::set_realtime(ns as i64);
    wall_clock_changed();
    Ok(())
}

/// Tells everyone who depends on the wall clock.
pub(super) fn wall_clock_changed() {
    WALL_CLOCK_SETS.fetch_add(1, Relaxed);
    super::vdso::update();
    super::timer::wall_clock_was_set();
    WALL_CLOCK_CHANGE.wake_all();
}
