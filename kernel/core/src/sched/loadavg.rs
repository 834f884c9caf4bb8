//! Load averages: exponentially damped counts of runnable tasks over 1, 5 and 15 minutes, as `/proc/loadavg` and
//! sysinfo(2) give them (fixed point, 11 fraction bits).

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Fraction bits of a load average.
pub const LOAD_FRACTION_BITS: u32 = 11;
const FIXED_1: u64 = 1 << LOAD_FRACTION_BITS;
const INTERVAL_NS: u64 = 5_000_000_000;
/// `FIXED_1 · e^(−5 s / T)` for T of 1, 5 and 15 minutes.
const DECAY: [u64; 3] = [1884, 2014, 2037];

static AVERAGES: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
static NEXT: AtomicU64 = AtomicU64::new(INTERVAL_NS);

/// The three averages with 11 fraction bits.
pub fn load_averages() -> [u64; 3] {
    // An idle system does not tick: catch up when somebody looks.
    update(ursa_hal::time::monotonic_ns());
    [0, 1, 2].map(|i| AVERAGES[i].load(Relaxed))
}

/// Takes the samples that are due.
pub(super) fn update(now: u64) {
    let due = NEXT.load(Relaxed);
    if now < due || NEXT.compare_exchange(due, due + INTERVAL_NS, Relaxed, Relaxed).is_err() {
        return;
    }
    let missed = (now - due) / INTERVAL_NS;
    NEXT.fetch_add(missed * INTERVAL_NS, Relaxed);
    let active = super::runnable() as u64 * FIXED_1;
    for (average, decay) in AVERAGES.iter().zip(DECAY) {
        let mut value = average.load(Relaxed);
        // Samples that nobody took are from a time when every CPU was idle.
        for _ in 0..missed.min(1000) {
            value = value * decay / FIXED_1;
        }
        average.store((value * decay + active * (FIXED_1 - decay)) / FIXED_1, Relaxed);
    }
}
