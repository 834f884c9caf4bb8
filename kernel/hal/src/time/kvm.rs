//! KVM's paravirtual clock: what the hypervisor says of the TSC, and a reference counter made of it.
//!
//! The hypervisor writes into a page of ours how a TSC reading becomes nanoseconds, and keeps it true when the machine is
//! stopped or moved. One page, the boot CPU's, serves all CPUs; so the clock is a [`Reference`](super::reference::Reference)
//! only where the hypervisor says that the TSCs are in step. *Unexercised*: TCG has no such clock.
//!
//! References: Linux `Documentation/virt/kvm/x86/msr.rst` (`MSR_KVM_SYSTEM_TIME_NEW`), `cpuid.rst`; `arch/x86/include/asm/pvclock-abi.h`.

use core::sync::atomic::{Ordering, fence};

use crate::addr::PhysAddr;
use crate::cpu::{Features, cpuid, features, rdtsc, wrmsr};
use crate::mm::Frame;
use crate::sync::Once;

const LEAF_SIGNATURE: u32 = 0x4000_0000;
const LEAF_FEATURES: u32 = 0x4000_0001;
/// `KVM_FEATURE_CLOCKSOURCE2`
const FEATURE_CLOCK: u32 = 1 << 3;
/// `KVM_FEATURE_CLOCKSOURCE_STABLE_BIT`
const FEATURE_STABLE_BIT: u32 = 1 << 24;
const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;
/// `PVCLOCK_TSC_STABLE_BIT`
const TSC_STABLE: u8 = 1;

/// `struct pvclock_vcpu_time_info`, read as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct TimeInfo {
    /// Odd while the hypervisor writes.
    version: u32,
    pad: u32,
    tsc_timestamp: u64,
    system_time: u64,
    mul: u32,
    shift: i8,
    flags: u8,
    pad2: [u8; 2],
}

impl TimeInfo {
    /// Nanoseconds at the TSC reading `tsc`.
    pub(super) fn ns_at(&self, tsc: u64) -> u64 {
        let ticks = u128::from(tsc.saturating_sub(self.tsc_timestamp));
        let by = u32::from(self.shift.unsigned_abs()).min(31);
        let scaled = if self.shift >= 0 { ticks << by } else { ticks >> by };
        self.system_time.wrapping_add(((scaled * u128::from(self.mul)) >> 32) as u64)
    }

    /// Ticks of the TSC a second. `None` when the hypervisor has not said.
    pub(super) fn tsc_hz(&self) -> Option<u64> {
        if self.mul == 0 || !(-31..=31).contains(&self.shift) {
            return None;
        }
        let hz = (1_000_000_000u128 << 32) / u128::from(self.mul);
        let hz = if self.shift >= 0 { hz >> self.shift } else { hz << self.shift.unsigned_abs() };
        u64::try_from(hz).ok().filter(|hz| *hz > 0)
    }
}

/// The hypervisor's page.
pub(super) struct Clock(Frame);

static CLOCK: Once<Option<Clock>> = Once::new();

/// The clock, switched on; `None` where there is no KVM or it has none. The boot CPU calls first.
pub(super) fn clock() -> Option<&'static Clock> {
    CLOCK.call_once(start).as_ref()
}

fn start() -> Option<Clock> {
    if !features().contains(Features::HYPERVISOR) {
        return None;
    }
    let signature = cpuid(LEAF_SIGNATURE, 0);
    let name = [signature.ebx, signature.ecx, signature.edx].map(u32::to_le_bytes);
    if name.as_flattened() != b"KVMKVMKVM\0\0\0" || cpuid(LEAF_FEATURES, 0).eax & FEATURE_CLOCK == 0 {
        return None;
    }
    let frame = Frame::alloc_zeroed()?;
    let PhysAddr(page) = frame.phys();
    // SAFETY: the feature bit says that the register exists. The hypervisor writes the first 32 bytes of a page that nothing else
    // uses and that is never given back.
    unsafe { wrmsr(MSR_SYSTEM_TIME, page | 1) };
    Some(Clock(frame))
}

impl Clock {
    /// What the hypervisor says now.
    pub(super) fn read(&self) -> TimeInfo {
        let at = self.0.ptr().cast::<TimeInfo>();
        loop {
            // SAFETY: the start of a frame that lives for ever; volatile, since the hypervisor writes it. Every bit pattern is a
            // `TimeInfo`.
            let (before, info) = unsafe {
                let before = (&raw const (*at).version).read_volatile();
                fence(Ordering::Acquire);
                (before, at.read_volatile())
            };
            fence(Ordering::Acquire);
            // SAFETY: as above.
            let after = unsafe { (&raw const (*at).version).read_volatile() };
            if before == after && before & 1 == 0 {
                return info;
            }
            core::hint::spin_loop();
        }
    }

    /// Whether all CPUs may use this page.
    pub(super) fn is_shared(&self) -> bool {
        cpuid(LEAF_FEATURES, 0).eax & FEATURE_STABLE_BIT != 0 && self.read().flags & TSC_STABLE != 0
    }

    /// Nanoseconds since the hypervisor's clock started.
    pub(super) fn ns(&self) -> u64 {
        self.read().ns_at(rdtsc())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(mul: u32, shift: i8) -> TimeInfo {
        TimeInfo { version: 2, pad: 0, tsc_timestamp: 1_000, system_time: 50, mul, shift, flags: 1, pad2: [0; 2] }
    }

    #[test]
    fn a_tick_of_half_a_nanosecond_counts_two_a_nanosecond() {
        let clock = info(1 << 31, 0);
        assert_eq!(clock.tsc_hz(), Some(2_000_000_000));
        assert_eq!(clock.ns_at(1_000), 50);
        assert_eq!(clock.ns_at(3_000), 1_050);
    }

    #[test]
    fn shifts_of_both_signs_scale_before_the_multiplication() {
        assert_eq!(info(1 << 31, -1).tsc_hz(), Some(4_000_000_000));
        assert_eq!(info(1 << 31, -1).ns_at(5_000), 50 + 1_000);
        assert_eq!(info(1 << 31, 1).tsc_hz(), Some(1_000_000_000));
        assert_eq!(info(1 << 31, 1).ns_at(2_000), 50 + 1_000);
    }

    #[test]
    fn readings_from_before_the_page_was_written_and_empty_pages_are_harmless() {
        assert_eq!(info(1 << 31, 0).ns_at(10), 50);
        assert_eq!(info(0, 0).tsc_hz(), None);
        assert_eq!(info(1, 127).tsc_hz(), None);
        // Far beyond any real reading: no overflow on the way.
        let _ = info(u32::MAX, 31).ns_at(u64::MAX);
    }
}
