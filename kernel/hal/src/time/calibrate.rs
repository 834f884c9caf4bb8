//! Measuring one counter against another, for hosts that stop the machine at any moment.
//!
//! Under an emulator the virtual CPU can be descheduled for milliseconds between any two instructions, while the TSC and
//! the reference both run on. A fixed delay loop is then wrong by any factor. Instead each end of the interval is a *sandwich*:
//! counter, reference, counter. The narrowest of several sandwiches tells when the reference was read to within its
//! width, whatever happened outside it, so the result comes with a bound of its error. The interval with the best bound
//! wins. Pure code, tested on the host with a simulated hostile clock.

/// One end of an interval.
#[derive(Debug, Clone, Copy)]
pub struct Edge {
    /// Counter in the middle of the sandwich.
    pub counter: u64,
    /// Width of the sandwich in counter ticks.
    pub width: u64,
    /// Reference value in nanoseconds.
    pub ref_ns: u64,
}

/// The narrowest of `tries` sandwiches.
pub fn edge(tries: usize, mut counter: impl FnMut() -> u64, mut reference: impl FnMut() -> u64) -> Edge {
    let mut best = Edge { counter: 0, width: u64::MAX, ref_ns: 0 };
    for _ in 0..tries.max(1) {
        let a = counter();
        let r = reference();
        let b = counter();
        let width = b.wrapping_sub(a);
        if width < best.width {
            best = Edge { counter: a.wrapping_add(width / 2), width, ref_ns: r };
        }
    }
    best
}

/// A frequency with its bound of error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Ticks a second.
    pub hz: u64,
    /// The true value differs by at most this many millionths.
    pub error_ppm: u64,
}

/// The rate between two edges. `None` when no reference time passed or the counter did not run. `ref_step_ns` is the
/// resolution of the reference.
pub fn rate(start: Edge, end: Edge, ref_step_ns: u64) -> Option<Rate> {
    let ns = end.ref_ns.checked_sub(start.ref_ns).filter(|n| *n > 0)?;
    let ticks = end.counter.checked_sub(start.counter).filter(|t| *t > 0)?;
    let hz = u64::try_from(u128::from(ticks) * 1_000_000_000 / u128::from(ns)).ok().filter(|h| *h > 0)?;
    let doubt = u128::from(start.width / 2 + end.width / 2) * 1_000_000 / u128::from(ticks);
    let step = u128::from(ref_step_ns) * 1_000_000 / u128::from(ns);
    Some(Rate { hz, error_ppm: u64::try_from(doubt + step).unwrap_or(u64::MAX) })
}

/// Difference of two rates in millionths of the second.
pub fn difference_ppm(a: u64, b: u64) -> u64 {
    u64::try_from(u128::from(a.abs_diff(b)) * 1_000_000 / u128::from(b.max(1))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A 2.5 GHz counter and a nanosecond reference on a host that stalls the reader.
    struct Host {
        ns: Cell<u64>,
        seed: Cell<u64>,
        /// One call in this many is stalled for up to 20 ms.
        stall_one_in: u64,
    }
    impl Host {
        fn step(&self) {
            let mut s = self.seed.get();
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            self.seed.set(s);
            let stall = if s.is_multiple_of(self.stall_one_in) { s % 20_000_000 } else { 300 };
            self.ns.set(self.ns.get() + stall);
        }
        fn tsc(&self) -> u64 {
            self.step();
            self.ns.get() * 5 / 2
        }
        fn reference(&self) -> u64 {
            self.step();
            self.ns.get()
        }
    }

    #[test]
    fn stalls_do_not_move_the_result_beyond_its_bound() {
        for seed in 1..200 {
            let h = Host { ns: Cell::new(1), seed: Cell::new(seed * 0x9e37_79b9), stall_one_in: 4 };
            let a = edge(16, || h.tsc(), || h.reference());
            while h.ns.get() < a.ref_ns + 10_000_000 {
                h.step();
            }
            let b = edge(16, || h.tsc(), || h.reference());
            let r = rate(a, b, 10).unwrap();
            assert!(r.error_ppm < 1000, "{r:?}");
            assert!(difference_ppm(r.hz, 2_500_000_000) <= r.error_ppm + 1, "{r:?}");
        }
    }

    #[test]
    fn a_dead_counter_gives_nothing() {
        let e = |counter, ref_ns| Edge { counter, width: 1, ref_ns };
        assert_eq!(rate(e(5, 0), e(5, 100), 1), None);
        assert_eq!(rate(e(5, 100), e(6, 100), 1), None);
        assert_eq!(rate(e(5, 100), e(6, 90), 1), None);
    }
}
