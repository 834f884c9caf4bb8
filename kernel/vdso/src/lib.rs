//! The vDSO: code of the kernel's that runs in user mode, so that clocks, the CPU's number and random bytes need no system
//! call.
//!
//! The crate has two faces. As an ordinary crate it gives the kernel [`Data`], the layout of the page that the kernel
//! writes and the code reads. With `--cfg vdso_image` its entry points are compiled too: `kernel/core/build.rs` links them
//! into a shared object that the kernel maps into every program. That object has no relocations, no writable data and no
//! panics: nothing could handle them.
//!
//! References: vdso(7), Linux `lib/vdso/gettimeofday.c`, `lib/vdso/getrandom.c`.
#![no_std]

#[cfg(test)]
extern crate std;

use core::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering, fence};

pub mod chacha;
#[cfg(vdso_image)]
mod image;

/// The selector whose limit is the CPU's number (bits 0 to 11) and node (above): Linux's `__CPUNODE_SEG`.
pub const CPU_SELECTOR: u16 = 0x7b;

/// How many bits counter times multiplier is shifted to the right.
pub const SHIFT: u32 = 32;

/// What the kernel tells the code: one page, mapped read-only just before it.
///
/// Written by the kernel alone, under its lock: `sequence` is odd meanwhile.
#[repr(C)]
#[derive(Debug)]
pub struct Data {
    /// Odd while the fields below change.
    pub sequence: AtomicU32,
    /// Whether the clock is the time-stamp counter; else every clock call goes to the kernel.
    pub counter_is_clock: AtomicU32,
    /// Counter value at `base_ns`.
    pub base: AtomicU64,
    /// Monotonic nanoseconds at `base`.
    pub base_ns: AtomicU64,
    /// Nanoseconds a tick, shifted to the left by [`SHIFT`].
    pub multiplier: AtomicU64,
    /// Wall clock minus monotonic clock, nanoseconds.
    pub wall_offset_ns: AtomicI64,
    /// Seconds that TAI is ahead of UTC.
    pub tai_offset: AtomicI32,
    /// The resolution of the coarse clocks, nanoseconds.
    pub coarse_ns: AtomicU32,
    /// Moves when programs shall draw new keys; 0 before the kernel's generator is seeded. Not under `sequence`.
    pub random_generation: AtomicU64,
}

/// What [`Data::read`] gives: one consistent look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds of the monotonic clock.
    pub monotonic_ns: u64,
    /// Wall clock minus monotonic clock.
    pub wall_offset_ns: i64,
    /// Seconds of TAI over UTC.
    pub tai_offset: i32,
    /// The resolution of the coarse clocks.
    pub coarse_ns: u32,
}

impl Data {
    /// Reads the clock; `None` when programs must ask the kernel. `counter` reads the time-stamp counter, in order with
    /// what stands around it.
    #[inline]
    pub fn read(&self, mut counter: impl FnMut() -> u64) -> Option<Now> {
        loop {
            let sequence = self.sequence.load(Ordering::Acquire);
            if sequence & 1 == 0 {
                if self.counter_is_clock.load(Ordering::Relaxed) == 0 {
                    return None;
                }
                let ticks = counter().saturating_sub(self.base.load(Ordering::Relaxed));
                let elapsed = (u128::from(ticks) * u128::from(self.multiplier.load(Ordering::Relaxed))) >> SHIFT;
                let now = Now {
                    monotonic_ns: self.base_ns.load(Ordering::Relaxed).wrapping_add(elapsed as u64),
                    wall_offset_ns: self.wall_offset_ns.load(Ordering::Relaxed),
                    tai_offset: self.tai_offset.load(Ordering::Relaxed),
                    coarse_ns: self.coarse_ns.load(Ordering::Relaxed),
                };
                fence(Ordering::Acquire);
                if self.sequence.load(Ordering::Relaxed) == sequence {
                    return Some(now);
                }
            }
            core::hint::spin_loop();
        }
    }
}

impl Now {
    /// Nanoseconds of the clock `id` (`CLOCK_*` of `<linux/time.h>`); `None` for clocks that only the kernel knows.
    #[inline]
    pub fn clock(&self, id: i32) -> Option<u64> {
        const REALTIME: i32 = 0;
        const MONOTONIC: i32 = 1;
        const MONOTONIC_RAW: i32 = 4;
        const REALTIME_COARSE: i32 = 5;
        const MONOTONIC_COARSE: i32 = 6;
        const BOOTTIME: i32 = 7;
        const TAI: i32 = 11;
        // A wall clock before 1970 reads as 1970, as the kernel has it.
        let wall = |more: i64| {
            let offset = self.wall_offset_ns.wrapping_add(more);
            (self.monotonic_ns as i64).checked_add(offset).map_or(u64::MAX, |ns| if ns < 0 { 0 } else { ns as u64 })
        };
        let coarse = |ns: u64| match self.coarse_ns as u64 {
            0 => ns,
            step => ns - ns % step,
        };
        Some(match id {
            REALTIME => wall(0),
            MONOTONIC | MONOTONIC_RAW | BOOTTIME => self.monotonic_ns,
            REALTIME_COARSE => coarse(wall(0)),
            MONOTONIC_COARSE => coarse(self.monotonic_ns),
            TAI => wall(self.tai_offset as i64 * 1_000_000_000),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Data {
        Data {
            sequence: AtomicU32::new(4),
            counter_is_clock: AtomicU32::new(1),
            base: AtomicU64::new(1_000),
            base_ns: AtomicU64::new(50),
            multiplier: AtomicU64::new(1 << (SHIFT - 1)),
            wall_offset_ns: AtomicI64::new(1_000_000),
            tai_offset: AtomicI32::new(37),
            coarse_ns: AtomicU32::new(100),
            random_generation: AtomicU64::new(1),
        }
    }

    #[test]
    fn ticks_become_nanoseconds_of_each_clock() {
        let now = data().read(|| 1_300).unwrap();
        assert_eq!(now.clock(1), Some(200));
        assert_eq!(now.clock(0), Some(1_000_200));
        assert_eq!(now.clock(6), Some(200));
        assert_eq!(now.clock(11), Some(1_000_200 + 37_000_000_000));
        assert_eq!(now.clock(2), None, "CPU time is the kernel's");
    }

    #[test]
    fn a_counter_behind_the_base_reads_as_the_base() {
        assert_eq!(data().read(|| 10).unwrap().monotonic_ns, 50);
    }

    #[test]
    fn a_change_in_the_middle_is_read_again() {
        let data = data();
        let mut reads = 0;
        let now = data.read(|| {
            reads += 1;
            if reads == 1 {
                data.sequence.store(6, Ordering::Relaxed);
                data.base_ns.store(1_050, Ordering::Relaxed);
            }
            1_300
        });
        assert_eq!((reads, now.unwrap().monotonic_ns), (2, 1_200));
    }

    #[test]
    fn without_a_counter_the_kernel_is_asked() {
        let data = data();
        data.counter_is_clock.store(0, Ordering::Relaxed);
        assert_eq!(data.read(|| unreachable!()), None);
    }
}
