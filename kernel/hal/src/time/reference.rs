//! Reference counters of known frequency: HPET, ACPI PM timer, PIT, KVM's clock.
//!
//! Used to calibrate the TSC, and as the clock itself where the TSC cannot be trusted.
//! References: IA-PC HPET 1.0a, 2.3; ACPI 6.5, 4.8.2.1; Intel 8254 data sheet.

use core::sync::atomic::{AtomicU64, Ordering};

use super::kvm;
use crate::addr::PhysAddr;
use crate::mm::{CacheMode, Mmio};
use crate::pio::{inb, inl, outb};
use crate::sync::{IrqLock, Once};

/// A counter extended to 64 bits of nanoseconds.
pub struct Reference {
    /// The name that Linux has for it.
    pub name: &'static str,
    /// Resolution in nanoseconds, rounded up.
    pub step_ns: u64,
    source: Source,
}

enum Source {
    Hpet { mmio: Mmio, period_fs: u64, high: Extend },
    Pm { port: u16, high: Extend },
    Pit(IrqLock<PitState>),
    Kvm(&'static kvm::Clock),
}

/// Extends a counter of few bits to 64, if it is read at least once a wrap.
struct Extend {
    bits: u32,
    last: AtomicU64,
}

impl Extend {
    /// Starts at the reading `first`.
    fn new(bits: u32, first: u64) -> Self {
        Self { bits, last: AtomicU64::new(first & ((1 << bits) - 1)) }
    }
    /// The 64-bit value for a reading of the low bits. A reading that lies behind the newest one by less than half a wrap was
    /// overtaken by another CPU's.
    fn update(&self, reading: u64) -> u64 {
        let mask = (1u64 << self.bits) - 1;
        let last = self.last.load(Ordering::Acquire);
        let ahead = reading.wrapping_sub(last) & mask;
        if ahead > mask / 2 {
            return last;
        }
        self.last.fetch_max(last + ahead, Ordering::AcqRel).max(last + ahead)
    }
}

const HPET_CONFIG: usize = 0x10;
const HPET_COUNTER: usize = 0xf0;
const PIT_HZ: u64 = 1_193_182;
const PM_HZ: u64 = 3_579_545;

struct PitState {
    last: u16,
    ticks: u64,
}

impl Reference {
    /// Nanoseconds since some start; never goes back.
    pub fn ns(&self) -> u64 {
        match &self.source {
            Source::Hpet { mmio, period_fs, high } => {
                let ticks = high.update(u64::from(mmio.read32(HPET_COUNTER)));
                (u128::from(ticks) * u128::from(*period_fs) / 1_000_000) as u64
            }
            Source::Pm { port, high } => {
                // SAFETY: the FADT says that the PM timer is there; reading it has no side effect.
                let ticks = high.update(u64::from(unsafe { inl(*port) }));
                (u128::from(ticks) * 1_000_000_000 / u128::from(PM_HZ)) as u64
            }
            Source::Pit(state) => {
                let mut s = state.lock();
                // SAFETY: latches and reads channel 0, which hal set to count down from 65536; the lock keeps the bytes together.
                let now = unsafe {
                    outb(0x43, 0);
                    u16::from_le_bytes([inb(0x40), inb(0x40)])
                };
                s.ticks += u64::from(s.last.wrapping_sub(now));
                s.last = now;
                (u128::from(s.ticks) * 1_000_000_000 / u128::from(PIT_HZ)) as u64
            }
            Source::Kvm(clock) => clock.ns(),
        }
    }

    /// The counter must be read at least this often (half its wrap) to be right.
    pub fn max_gap_ns(&self) -> u64 {
        match &self.source {
            Source::Hpet { period_fs, .. } => (u128::from(*period_fs) * (1 << 31) / 1_000_000) as u64,
            Source::Pm { high, .. } => 1_000_000_000 * (1u64 << (high.bits - 1)) / PM_HZ,
            Source::Pit(_) => 25_000_000,
            Source::Kvm(_) => u64::MAX,
        }
    }
}

static HPET: Once<Option<Reference>> = Once::new();
static KVM: Once<Option<Reference>> = Once::new();
static PM: Once<Option<Reference>> = Once::new();
static PIT: Once<Reference> = Once::new();

/// The HPET's main counter, started.
pub fn hpet() -> Option<&'static Reference> {
    HPET.call_once(|| {
        let table = crate::acpi::parse::hpet(crate::acpi::hpet()?)?;
        let mmio = crate::mm::mmio(PhysAddr(table.address), 1024, CacheMode::Uncached)?;
        let period_fs = u64::from(mmio.read32(4));
        // The specification allows at most 100 ns.
        if !(1..=100_000_000).contains(&period_fs) {
            return None;
        }
        // Run; legacy replacement off, so that PIT and RTC interrupts stay theirs.
        mmio.write32(HPET_CONFIG, mmio.read32(HPET_CONFIG) & !2 | 1);
        // Only the low half is read: a 64-bit read is not one access everywhere.
        let high = Extend::new(32, u64::from(mmio.read32(HPET_COUNTER)));
        let source = Source::Hpet { mmio, period_fs, high };
        Some(Reference { name: "hpet", step_ns: period_fs.div_ceil(1_000_000), source })
    })
    .as_ref()
}

/// KVM's clock, where one page of it is right for all CPUs.
pub fn kvm_clock() -> Option<&'static Reference> {
    KVM.call_once(|| {
        let clock = kvm::clock().filter(|clock| clock.is_shared())?;
        Some(Reference { name: "kvm-clock", step_ns: 1, source: Source::Kvm(clock) })
    })
    .as_ref()
}

/// The ACPI power management timer.
pub fn pm_timer() -> Option<&'static Reference> {
    PM.call_once(|| {
        let fadt = crate::acpi::fadt()?;
        let port = u16::try_from(fadt.pm_timer.address).ok().filter(|p| *p != 0 && fadt.pm_timer.space == 1)?;
        // SAFETY: reading the port the FADT names.
        let sample = || unsafe { inl(port) };
        // A missing timer reads as all ones or does not move.
        let first = sample();
        if !(0..100_000).any(|_| sample() != first) {
            return None;
        }
        let source =
            Source::Pm { port, high: Extend::new(if fadt.pm_timer_32 { 32 } else { 24 }, u64::from(sample())) };
        Some(Reference { name: "acpi_pm", step_ns: 280, source })
    })
    .as_ref()
}

/// The PIT's channel 0, free-running. Always there on a PC, slow to read, and wraps every 55 ms.
pub fn pit() -> &'static Reference {
    PIT.call_once(|| {
        // SAFETY: sets channel 0 to mode 2, reload 65536; its interrupt is masked at every controller.
        unsafe {
            outb(0x43, 0x34);
            outb(0x40, 0);
            outb(0x40, 0);
        }
        Reference { name: "pit", step_ns: 839, source: Source::Pit(IrqLock::new(PitState { last: 0, ticks: 0 })) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extension_counts_wraps_and_ignores_overtaken_readings() {
        let e = Extend::new(24, 0xff_fff0);
        assert_eq!(e.update(0xff_fffe), 0xff_fffe);
        assert_eq!(e.update(0x5), 0x100_0005);
        assert_eq!(e.update(0xff_ffff), 0x100_0005);
        assert_eq!(e.update(0x80_0000), 0x180_0000);
        assert_eq!(e.update(0xc0_0000), 0x1c0_0000);
        assert_eq!(e.update(0x6), 0x200_0006);
    }
}
