//! Clocks and the per-CPU timer.
//!
//! The clock is the TSC where it can be trusted: its rate is known (CPUID, hypervisor) or was measured with a small bound
//! of error ([`calibrate`]) and agrees with a second reference, it is the same on all CPUs, and it does not stop. Else it is
//! KVM's clock, the HPET or the ACPI PM timer. `clocksource=tsc|kvm-clock|hpet|acpi_pm` overrides.
//!
//! Events come from each CPU's local APIC timer in one-shot mode, or TSC-deadline mode (*unexercised*).
//! Locking: the clock's parameters are a `SeqLock`; reading the time takes no lock and works in any context.
//! References: Intel SDM volume 3, 18.17 (TSC), 11.5.4 (APIC timer); volume 2, CPUID 15h and 16h.

pub mod calibrate;
mod kvm;
pub mod reference;

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use crate::cpu::{Features, cpuid, features, rdtsc};
use crate::irq::lapic;
use crate::percpu::{MAX_CPUS, cpu_id};
use crate::sync::{Once, SeqLock};
use calibrate::{Edge, Rate, difference_ppm, edge, rate};
use reference::Reference;

/// How counter readings become nanoseconds: `base_ns + ((counter - base) * mult >> shift)`, in 128 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TscParams {
    /// Counter value at `base_ns`.
    pub base: u64,
    /// Monotonic time at `base`.
    pub base_ns: u64,
    /// Multiplier.
    pub mult: u64,
    /// Right shift.
    pub shift: u32,
}

const SHIFT: u32 = 32;

impl TscParams {
    fn new(hz: u64, base: u64, base_ns: u64) -> Self {
        Self { base, base_ns, mult: ((1_000_000_000u128 << SHIFT) / u128::from(hz)) as u64, shift: SHIFT }
    }
    /// Time at counter value `tsc`. A reading from before `base` (another CPU's, a hair behind) is `base_ns`.
    #[inline]
    pub fn ns_at(&self, tsc: u64) -> u64 {
        let ticks = tsc.saturating_sub(self.base);
        self.base_ns + ((u128::from(ticks) * u128::from(self.mult)) >> self.shift) as u64
    }
}

static TSC: SeqLock<TscParams> = SeqLock::new(TscParams { base: 0, base_ns: 0, mult: 0, shift: SHIFT });
static TSC_HZ: AtomicU64 = AtomicU64::new(0);
/// The clock is the TSC; else `REFERENCE`.
static USE_TSC: AtomicBool = AtomicBool::new(false);
static RUNNING: AtomicBool = AtomicBool::new(false);
static REFERENCE: Once<&'static Reference> = Once::new();
/// Reference time that is monotonic time 0.
static REFERENCE_BASE: AtomicU64 = AtomicU64::new(0);
/// Realtime minus monotonic.
static WALL_OFFSET: AtomicI64 = AtomicI64::new(0);

/// Local APIC timer ticks a second, with divisor 1.
static LAPIC_HZ: AtomicU64 = AtomicU64::new(0);
static USE_DEADLINE: AtomicBool = AtomicBool::new(false);
/// Each CPU's next deadline; `u64::MAX` is none.
static DEADLINES: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(u64::MAX) }; MAX_CPUS];
/// When each CPU's timer will interrupt; `u64::MAX` when it is stopped. Never later than the deadline. Deadlines move with every
/// task switch, mostly further away, and a write to the APIC costs more than the rare interrupt that comes too early: the
/// timer is only set when it would come too late.
static ARMED: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(u64::MAX) }; MAX_CPUS];

/// Nanoseconds since boot. Never goes back; 0 before the clocks run.
#[inline]
pub fn monotonic_ns() -> u64 {
    if USE_TSC.load(Ordering::Relaxed) {
        return TSC.read().ns_at(rdtsc());
    }
    match REFERENCE.get() {
        Some(r) => r.ns().saturating_sub(REFERENCE_BASE.load(Ordering::Relaxed)),
        None => 0,
    }
}

/// Nanoseconds since boot, suspension included. Ursa does not suspend, so this is [`monotonic_ns`].
pub fn boot_ns() -> u64 {
    monotonic_ns()
}

/// Nanoseconds since 1970-01-01 UTC.
pub fn realtime_ns() -> i64 {
    WALL_OFFSET.load(Ordering::Relaxed) + monotonic_ns() as i64
}

/// Sets the wall clock.
pub fn set_realtime(ns: i64) {
    WALL_OFFSET.store(ns - monotonic_ns() as i64, Ordering::Relaxed);
}

/// Realtime minus monotonic, for the vDSO page.
pub fn wall_offset_ns() -> i64 {
    WALL_OFFSET.load(Ordering::Relaxed)
}

/// For the vDSO page: how user mode can turn RDTSC into monotonic time. `None` when the clock is not the TSC.
pub fn tsc_params() -> Option<TscParams> {
    USE_TSC.load(Ordering::Acquire).then(|| TSC.read())
}

/// Ticks of the TSC a second.
pub fn tsc_hz() -> u64 {
    TSC_HZ.load(Ordering::Relaxed)
}

/// Name of the clock, as Linux's `current_clocksource` has it.
pub fn clock_name() -> &'static str {
    if USE_TSC.load(Ordering::Relaxed) { "tsc" } else { REFERENCE.get().map_or("none", |r| r.name) }
}

/// Resolution of the clock in nanoseconds.
pub fn resolution_ns() -> u64 {
    if USE_TSC.load(Ordering::Relaxed) { 1 } else { REFERENCE.get().map_or(1, |r| r.step_ns) }
}

/// Waits without sleeping; for hardware delays of microseconds.
pub fn spin_ns(ns: u64) {
    if !RUNNING.load(Ordering::Relaxed) {
        // Only a panic comes here before the clocks run: longer than asked on any CPU.
        for _ in 0..ns {
            core::hint::spin_loop();
        }
        return;
    }
    let end = monotonic_ns() + ns;
    while monotonic_ns() < end {
        core::hint::spin_loop();
    }
}

/// Microseconds since boot for log lines.
pub(crate) fn log_us() -> u64 {
    if RUNNING.load(Ordering::Relaxed) { monotonic_ns() / 1000 } else { 0 }
}

/// The rate of the TSC as CPU or hypervisor state it, in Hz. CPUID 15h, the hypervisor's leaf and its clock are *unexercised*
/// under TCG.
fn stated_tsc_hz() -> Option<u64> {
    let l = cpuid(0x15, 0);
    if l.eax != 0 && l.ebx != 0 && l.ecx != 0 {
        return Some(u64::from(l.ecx) * u64::from(l.ebx) / u64::from(l.eax));
    }
    if features().contains(Features::HYPERVISOR) {
        // VMware's timing leaf, which KVM also has: TSC in kHz.
        let khz = cpuid(0x4000_0010, 0).eax;
        if khz != 0 {
            return Some(u64::from(khz) * 1000);
        }
    }
    kvm::clock()?.read().tsc_hz()
}

const INTERVAL_NS: u64 = 10_000_000;
const TRIES: usize = 5;
const GOOD_PPM: u64 = 200;
/// A measured rate counts as right if two references agree to within this.
const AGREE_PPM: u64 = 2_000;

/// Both counters at one end of an interval.
struct Ends {
    tsc: Edge,
    apic: Edge,
}

fn ends(r: &Reference) -> Ends {
    let apic_counter = || u64::from(u32::MAX - lapic::timer_now());
    Ends { tsc: edge(16, rdtsc, || r.ns()), apic: edge(16, apic_counter, || r.ns()) }
}

/// Measures TSC and APIC timer against `r`: the best of several short intervals.
fn measure(r: &Reference) -> (Option<Rate>, Option<Rate>) {
    let (mut tsc, mut apic): (Option<Rate>, Option<Rate>) = (None, None);
    let better = |old: &mut Option<Rate>, new: Option<Rate>| {
        if let Some(n) = new
            && old.is_none_or(|o| n.error_ppm < o.error_ppm)
        {
            *old = Some(n);
        }
    };
    for _ in 0..TRIES {
        lapic::timer_measure();
        let a = ends(r);
        while r.ns() < a.apic.ref_ns + INTERVAL_NS {
            core::hint::spin_loop();
        }
        let b = ends(r);
        better(&mut tsc, rate(a.tsc, b.tsc, r.step_ns));
        // An interval in which the APIC count ran out measures nothing.
        if lapic::timer_now() != 0 {
            better(&mut apic, rate(a.apic, b.apic, r.step_ns));
        }
        let good = |r: Option<Rate>| r.is_some_and(|r| r.error_ppm <= GOOD_PPM);
        if good(tsc) && good(apic) {
            break;
        }
    }
    lapic::timer_enable(USE_DEADLINE.load(Ordering::Relaxed));
    (tsc, apic)
}

/// Starts the clocks on the boot CPU.
pub(crate) fn init() {
    let best = reference::hpet().or_else(reference::pm_timer).unwrap_or_else(reference::pit);
    let (measured, apic) = measure(best);
    let second = [reference::hpet(), reference::pm_timer()].into_iter().flatten().find(|r| !core::ptr::eq(*r, best));
    let second = second.or_else(|| (best.name != "pit").then(reference::pit));

    let stated = stated_tsc_hz();
    let mut trust = true;
    let hz = match (stated, measured) {
        (Some(s), Some(m)) if difference_ppm(s, m.hz) > 10_000 + m.error_ppm => {
            crate::warn!("TSC: stated as {s} Hz, measured as {} Hz: not trusted", m.hz);
            trust = false;
            m.hz
        }
        (Some(s), _) => s,
        (None, Some(m)) => {
            // One reference may be wrong or may have been stopped with the machine: another has to agree.
            if let Some(check) = second.and_then(|r| measure(r).0)
                && difference_ppm(check.hz, m.hz) > AGREE_PPM + check.error_ppm + m.error_ppm
            {
                crate::warn!("TSC: {} Hz by {}, but {} Hz by another clock: not trusted", m.hz, best.name, check.hz);
                trust = false;
            }
            m.hz
        }
        (None, None) => {
            trust = false;
            0
        }
    };
    if hz > 0 {
        TSC_HZ.store(hz, Ordering::Relaxed);
    }
    // Without the invariant bit the TSC may change its rate or stop, except in a virtual machine, where it is the host's.
    if !features().contains(Features::INVARIANT_TSC) && !features().contains(Features::HYPERVISOR) {
        trust = false;
    }
    let reference = match crate::boot::option("clocksource") {
        Some("acpi_pm") => reference::pm_timer().unwrap_or(best),
        Some("hpet") => best,
        // A TSC that may not be used by itself is still good with what the hypervisor says of it.
        _ => reference::kvm_clock().unwrap_or(best),
    };
    match crate::boot::option("clocksource") {
        Some("hpet" | "acpi_pm" | "kvm-clock") => trust = false,
        Some("tsc") if hz > 0 => trust = true,
        _ => {}
    }
    REFERENCE_BASE.store(reference.ns(), Ordering::Relaxed);
    let _ = REFERENCE.set(reference);
    if hz > 0 {
        TSC.write(TscParams::new(hz, rdtsc(), 0));
    }
    USE_TSC.store(trust && hz > 0, Ordering::Release);
    RUNNING.store(true, Ordering::Release);

    let apic_hz = apic.map_or(0, |a| a.hz);
    LAPIC_HZ.store(apic_hz, Ordering::Relaxed);
    assert!(apic_hz > 0, "the local APIC timer does not run");
    USE_DEADLINE.store(trust && features().contains(Features::TSC_DEADLINE), Ordering::Relaxed);
    init_ap();
    crate::info!(
        "clock: {}, TSC {}.{:03} MHz ({}, by {}, to {} ppm), APIC timer {}.{:03} MHz",
        clock_name(),
        hz / 1_000_000,
        hz / 1000 % 1000,
        if stated.is_some() { "stated" } else { "measured" },
        best.name,
        measured.map_or(0, |m| m.error_ppm),
        apic_hz / 1_000_000,
        apic_hz / 1000 % 1000,
    );

    match crate::rtc::read() {
        Some(seconds) => set_realtime(seconds * 1_000_000_000),
        None => crate::warn!("RTC: no valid time"),
    }
}

/// Sets this CPU's timer up, stopped.
pub(crate) fn init_ap() {
    lapic::timer_enable(USE_DEADLINE.load(Ordering::Relaxed));
}

/// Asks for [`crate::Hooks::timer`] on this CPU at monotonic time `at`; `None` for never. Replaces the earlier request.
pub fn set_deadline(at: Option<u64>) {
    let irqs = crate::cpu::irq_save();
    DEADLINES[cpu_id()].store(at.unwrap_or(u64::MAX), Ordering::Relaxed);
    arm(at);
    crate::cpu::irq_restore(irqs);
}

/// Makes this CPU's timer interrupt at `at` or before. Interrupts are off.
fn arm(at: Option<u64>) {
    let armed = &ARMED[cpu_id()];
    let mut target = at.unwrap_or(u64::MAX);
    if target >= armed.load(Ordering::Relaxed) && USE_TSC.load(Ordering::Relaxed) {
        return;
    }
    let now = monotonic_ns();
    // A reference that wraps has to be read now and then, whatever is asked for.
    if !USE_TSC.load(Ordering::Relaxed)
        && let Some(r) = REFERENCE.get()
    {
        target = target.min(now.saturating_add(r.max_gap_ns() / 2));
    }
    if target >= armed.load(Ordering::Relaxed) {
        return;
    }
    let wait = target.saturating_sub(now);
    if USE_DEADLINE.load(Ordering::Relaxed) {
        let ticks = u128::from(wait) * u128::from(tsc_hz()) / 1_000_000_000;
        lapic::timer_deadline(rdtsc().saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX / 2)).max(1));
    } else {
        // Rounded up: an early interrupt would only be armed again. What exceeds the counter is armed again when it ran out.
        let hz = LAPIC_HZ.load(Ordering::Relaxed).max(1);
        let ticks = (u128::from(wait) * u128::from(hz)).div_ceil(1_000_000_000).max(1);
        if ticks > u128::from(u32::MAX) {
            target = now + u64::from(u32::MAX) * 1_000_000_000 / hz;
        }
        lapic::timer_start(u32::try_from(ticks).unwrap_or(u32::MAX));
    }
    armed.store(target, Ordering::Relaxed);
}

/// The local APIC timer's interrupt.
pub(crate) fn timer_interrupt() {
    ARMED[cpu_id()].store(u64::MAX, Ordering::Relaxed);
    let deadline = &DEADLINES[cpu_id()];
    let at = deadline.load(Ordering::Relaxed);
    let now = monotonic_ns();
    if now < at {
        // Armed for less than was asked, or early by the APIC's rounding.
        arm((at != u64::MAX).then_some(at));
        return;
    }
    deadline.store(u64::MAX, Ordering::Relaxed);
    arm(None);
    if let Some(h) = crate::hooks() {
        h.timer();
    }
}
