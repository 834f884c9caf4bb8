//! Time, which the caller brings.

/// Nanoseconds.
pub type Nanos = u64;

/// The clocks of events.
pub trait Clock {
    /// `CLOCK_MONOTONIC` now.
    fn monotonic(&self) -> Nanos;
    /// What to add to `CLOCK_MONOTONIC` for `CLOCK_REALTIME`.
    fn realtime_offset(&self) -> i64;
    /// What to add to `CLOCK_MONOTONIC` for `CLOCK_BOOTTIME`.
    fn boottime_offset(&self) -> i64;
}
