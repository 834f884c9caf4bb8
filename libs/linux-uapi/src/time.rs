//! Time structures of `linux/time_types.h`, `linux/time.h` and `linux/timex.h`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Nanoseconds in a second.
pub const NSEC_PER_SEC: u64 = 1_000_000_000;
/// Microseconds in a second.
pub const USEC_PER_SEC: u64 = 1_000_000;

/// `struct __kernel_timespec`: seconds and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Timespec {
    /// Whole seconds.
    pub tv_sec: i64,
    /// Nanoseconds, 0..10^9 in a valid value.
    pub tv_nsec: i64,
}

impl Timespec {
    /// Splits a count of nanoseconds.
    pub const fn from_ns(ns: u64) -> Self {
        Timespec { tv_sec: (ns / NSEC_PER_SEC) as i64, tv_nsec: (ns % NSEC_PER_SEC) as i64 }
    }

    /// Splits a signed count of nanoseconds; the nanosecond part is never negative.
    pub const fn from_signed_ns(ns: i64) -> Self {
        Timespec { tv_sec: ns.div_euclid(NSEC_PER_SEC as i64), tv_nsec: ns.rem_euclid(NSEC_PER_SEC as i64) }
    }

    /// `timespec64_valid`: non-negative, normalised nanoseconds.
    pub const fn is_valid(&self) -> bool {
        self.tv_sec >= 0 && self.tv_nsec >= 0 && self.tv_nsec < NSEC_PER_SEC as i64
    }

    /// Returns the count of nanoseconds, saturated at `i64::MAX` as `timespec64_to_ktime` does; `None` if not valid.
    pub fn to_ns(&self) -> Option<u64> {
        if !self.is_valid() {
            return None;
        }
        let ns = (self.tv_sec as u64).saturating_mul(NSEC_PER_SEC).saturating_add(self.tv_nsec as u64);
        Some(ns.min(i64::MAX as u64))
    }
}

/// `struct __kernel_old_timeval`: seconds and microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Timeval {
    /// Whole seconds.
    pub tv_sec: i64,
    /// Microseconds, 0..10^6 in a valid value.
    pub tv_usec: i64,
}

impl Timeval {
    /// Splits a count of nanoseconds, rounding down to microseconds.
    pub const fn from_ns(ns: u64) -> Self {
        Timeval { tv_sec: (ns / NSEC_PER_SEC) as i64, tv_usec: (ns % NSEC_PER_SEC / 1000) as i64 }
    }

    /// Returns the count of nanoseconds, saturated at `i64::MAX`; `None` if negative or not normalised.
    pub fn to_ns(&self) -> Option<u64> {
        if self.tv_sec < 0 || self.tv_usec < 0 || self.tv_usec >= USEC_PER_SEC as i64 {
            return None;
        }
        Timespec { tv_sec: self.tv_sec, tv_nsec: self.tv_usec * 1000 }.to_ns()
    }
}

/// `struct timezone`; kept and returned, without effect.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Timezone {
    /// Minutes west of Greenwich.
    pub tz_minuteswest: i32,
    /// Type of daylight saving.
    pub tz_dsttime: i32,
}

/// `struct __kernel_itimerspec`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Itimerspec {
    /// Period after the first expiry; zero for a one-shot timer.
    pub it_interval: Timespec,
    /// First expiry; zero disarms.
    pub it_value: Timespec,
}

/// `struct __kernel_old_itimerval`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Itimerval {
    /// Period after the first expiry; zero for a one-shot timer.
    pub it_interval: Timeval,
    /// First expiry; zero disarms.
    pub it_value: Timeval,
}

/// `struct tms` of times(2), in clock ticks of 1/100 s.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Tms {
    /// User time of the caller.
    pub tms_utime: i64,
    /// System time of the caller.
    pub tms_stime: i64,
    /// User time of waited-for children.
    pub tms_cutime: i64,
    /// System time of waited-for children.
    pub tms_cstime: i64,
}

/// `struct __kernel_timex` of adjtimex(2).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are those of adjtimex(2)")]
pub struct Timex {
    pub modes: u32,
    pub pad0: u32,
    pub offset: i64,
    pub freq: i64,
    pub maxerror: i64,
    pub esterror: i64,
    pub status: i32,
    pub pad1: u32,
    pub constant: i64,
    pub precision: i64,
    pub tolerance: i64,
    pub time: Timeval,
    pub tick: i64,
    pub ppsfreq: i64,
    pub jitter: i64,
    pub shift: i32,
    pub pad2: u32,
    pub stabil: i64,
    pub jitcnt: i64,
    pub calcnt: i64,
    pub errcnt: i64,
    pub stbcnt: i64,
    pub tai: i32,
    pub reserved: [u32; 11],
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layouts_are_those_of_linux() {
        assert_eq!(size_of::<Timespec>(), 16);
        assert_eq!(size_of::<Itimerspec>(), 32);
        assert_eq!(size_of::<Itimerval>(), 32);
        assert_eq!(size_of::<Tms>(), 32);
        assert_eq!(size_of::<Timex>(), 208);
        assert_eq!(offset_of!(Timex, time), 72);
        assert_eq!(offset_of!(Timex, tai), 160);
    }

    #[test]
    fn conversion_saturates_and_rejects() {
        assert_eq!(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }.to_ns(), Some(i64::MAX as u64));
        assert_eq!(Timespec { tv_sec: -1, tv_nsec: 0 }.to_ns(), None);
        assert_eq!(Timespec { tv_sec: 0, tv_nsec: 1_000_000_000 }.to_ns(), None);
        assert_eq!(Timespec::from_signed_ns(-1), Timespec { tv_sec: -1, tv_nsec: 999_999_999 });
        assert_eq!(Timeval { tv_sec: 1, tv_usec: 1 }.to_ns(), Some(1_000_001_000));
    }
}
