//! adjtimex(2): the state of the wall clock's discipline.
//!
//! Steps (`ADJ_SETOFFSET`) and the TAI offset take effect. Offsets are applied at once, not slewed, and a frequency is kept and
//! reported but not applied: nothing on Ursa disciplines the clock by frequency yet (see CAVEATS.md).

use core::sync::atomic::{AtomicI32, AtomicI64, Ordering::Relaxed};

use linux_uapi::time::{Timeval, Timex};

use super::clock::{self, TAI_OFFSET};
use crate::process::{Cap, capable};
use crate::{Errno, Result};

const ADJ_OFFSET: u32 = 0x0001;
const ADJ_FREQUENCY: u32 = 0x0002;
const ADJ_MAXERROR: u32 = 0x0004;
const ADJ_ESTERROR: u32 = 0x0008;
const ADJ_STATUS: u32 = 0x0010;
const ADJ_TIMECONST: u32 = 0x0020;
const ADJ_TAI: u32 = 0x0080;
const ADJ_SETOFFSET: u32 = 0x0100;
const ADJ_MICRO: u32 = 0x1000;
const ADJ_NANO: u32 = 0x2000;
const ADJ_TICK: u32 = 0x4000;
const ADJ_OFFSET_SINGLESHOT: u32 = 0x8001;
const ADJ_OFFSET_SS_READ: u32 = 0xa001;

const STA_UNSYNC: i32 = 0x0040;
const STA_NANO: i32 = 0x2000;
/// Bits that only the kernel sets.
const STA_RONLY: i32 = 0xff00;
const TIME_OK: i32 = 0;
const TIME_ERROR: i32 = 5;
const MAX_FREQUENCY: i64 = 500 << 16;
const MAX_OFFSET_US: i64 = 500_000;
const USER_TICK: i64 = 10_000;

static FREQUENCY: AtomicI64 = AtomicI64::new(0);
static MAX_ERROR: AtomicI64 = AtomicI64::new(16_000_000);
static EST_ERROR: AtomicI64 = AtomicI64::new(16_000_000);
static STATUS: AtomicI32 = AtomicI32::new(STA_UNSYNC);
static TIME_CONSTANT: AtomicI64 = AtomicI64::new(2);

/// Applies what `timex.modes` asks for and fills the structure; the result is the clock's state (`TIME_*`).
///
/// # Errors
/// `EPERM` without CAP_SYS_TIME when something is to change, `EINVAL` for values out of range.
pub(super) fn adjust(timex: &mut Timex) -> Result<i32> {
    let modes = timex.modes;
    if modes & 0x8000 != 0 {
        if modes != ADJ_OFFSET_SINGLESHOT && modes != ADJ_OFFSET_SS_READ {
            return Err(Errno::EINVAL);
        }
        if modes == ADJ_OFFSET_SINGLESHOT {
            require_capability()?;
            step(timex.offset.saturating_mul(1000))?;
        }
        // Nothing is left of an offset that is applied at once.
        timex.offset = 0;
    } else if modes != 0 {
        require_capability()?;
        apply(timex)?;
        timex.offset = 0;
    } else {
        timex.offset = 0;
    }
    fill(timex);
    Ok(if STATUS.load(Relaxed) & STA_UNSYNC != 0 { TIME_ERROR } else { TIME_OK })
}

fn require_capability() -> Result {
    if capable(Cap::SysTime) { Ok(()) } else { Err(Errno::EPERM) }
}

fn apply(timex: &Timex) -> Result {
    let modes = timex.modes;
    if modes & ADJ_TICK != 0 && !(USER_TICK * 9 / 10..=USER_TICK * 11 / 10).contains(&timex.tick) {
        return Err(Errno::EINVAL);
    }
    let mut offset_ns = None;
    if modes & ADJ_SETOFFSET != 0 {
        let unit = if modes & ADJ_NANO != 0 { 1 } else { 1000 };
        let limit = 1_000_000_000 / unit;
        if !(0..limit).contains(&timex.time.tv_usec) {
            return Err(Errno::EINVAL);
        }
        let ns = timex.time.tv_sec.checked_mul(1_000_000_000).and_then(|s| s.checked_add(timex.time.tv_usec * unit));
        offset_ns = Some(ns.ok_or(Errno::EINVAL)?);
    }
    if modes & ADJ_STATUS != 0 {
        STATUS.store(STATUS.load(Relaxed) & STA_RONLY | timex.status & !STA_RONLY, Relaxed);
    }
    if modes & ADJ_NANO != 0 {
        STATUS.fetch_or(STA_NANO, Relaxed);
    }
    if modes & ADJ_MICRO != 0 {
        STATUS.fetch_and(!STA_NANO, Relaxed);
    }
    if modes & ADJ_FREQUENCY != 0 {
        FREQUENCY.store(timex.freq.clamp(-MAX_FREQUENCY, MAX_FREQUENCY), Relaxed);
    }
    if modes & ADJ_MAXERROR != 0 {
        MAX_ERROR.store(timex.maxerror, Relaxed);
    }
    if modes & ADJ_ESTERROR != 0 {
        EST_ERROR.store(timex.esterror, Relaxed);
    }
    if modes & ADJ_TIMECONST != 0 {
        TIME_CONSTANT.store(timex.constant.clamp(0, 10), Relaxed);
    }
    if modes & ADJ_TAI != 0 && (0..=100_000).contains(&timex.constant) {
        TAI_OFFSET.store(timex.constant as i32, Relaxed);
        super::vdso::update();
        clock::wall_clock_changed();
    }
    if modes & ADJ_OFFSET != 0 {
        let unit = if STATUS.load(Relaxed) & STA_NANO != 0 { 1 } else { 1000 };
        let limit = MAX_OFFSET_US * 1000 / unit;
        step(timex.offset.clamp(-limit, limit) * unit)?;
    }
    offset_ns.map_or(Ok(()), step)
}

fn step(ns: i64) -> Result {
    if ns == 0 {
        return Ok(());
    }
    let target = clock::realtime_ns().checked_add_signed(ns).ok_or(Errno::EINVAL)?;
    clock::set_realtime(target)
}

fn fill(timex: &mut Timex) {
    let now = clock::realtime_ns();
    let nano = STATUS.load(Relaxed) & STA_NANO != 0;
    timex.freq = FREQUENCY.load(Relaxed);
    timex.maxerror = MAX_ERROR.load(Relaxed);
    timex.esterror = EST_ERROR.load(Relaxed);
    timex.status = STATUS.load(Relaxed);
    timex.constant = TIME_CONSTANT.load(Relaxed);
    timex.precision = 1;
    timex.tolerance = MAX_FREQUENCY;
    timex.tick = USER_TICK;
    timex.tai = TAI_OFFSET.load(Relaxed);
    timex.time = Timeval::from_ns(now);
    if nano {
        timex.time.tv_usec = (now % 1_000_000_000) as i64;
    }
    (timex.ppsfreq, timex.jitter, timex.shift, timex.stabil) = (0, 0, 0, 0);
    (timex.jitcnt, timex.calcnt, timex.errcnt, timex.stbcnt) = (0, 0, 0, 0);
}
