//! The clocks of events.

use input_core::{Clock, Nanos};
use rustix::time::{ClockId, clock_gettime};

/// The system's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

fn read(id: ClockId) -> Nanos {
    let time = clock_gettime(id);
    // Before 1970 no event happens.
    (time.tv_sec.max(0) as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec.max(0) as u64)
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Nanos {
        read(ClockId::Monotonic)
    }

    fn realtime_offset(&self) -> i64 {
        read(ClockId::Realtime).wrapping_sub(self.monotonic()) as i64
    }

    fn boottime_offset(&self) -> i64 {
        read(ClockId::Boottime).wrapping_sub(self.monotonic()) as i64
    }
}
