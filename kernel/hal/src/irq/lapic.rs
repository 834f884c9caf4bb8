//! The local APIC of each CPU: end of interrupt, interprocessor interrupts, timer registers.
//!
//! xAPIC through memory is what is used unless the firmware left the APICs in x2APIC mode, an APIC id does not fit 8 bits, or the
//! command line has `x2apic`. The x2APIC paths are *unexercised*: QEMU's TCG has none.
//! References: Intel SDM volume 3, chapter 11.

use crate::addr::PhysAddr;
use crate::cpu::{Features, features, irq_restore, irq_save, rdmsr, wrmsr};
use crate::mm::{CacheMode, Mmio};
use crate::sync::Once;

const MSR_APIC_BASE: u32 = 0x1b;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;
const MSR_X2APIC: u32 = 0x800;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// Register offsets (xAPIC); the x2APIC register is `MSR_X2APIC + offset / 16`.
mod reg {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const SVR: u32 = 0xf0;
    pub const ESR: u32 = 0x280;
    pub const ICR_LOW: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_THERMAL: u32 = 0x330;
    pub const LVT_PMC: u32 = 0x340;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const TIMER_INIT: u32 = 0x380;
    pub const TIMER_NOW: u32 = 0x390;
    pub const TIMER_DIV: u32 = 0x3e0;
}
const LVT_MASKED: u32 = 1 << 16;
const LVT_NMI: u32 = 4 << 8;
const LVT_TSC_DEADLINE: u32 = 2 << 17;
const ICR_PENDING: u32 = 1 << 12;
const ICR_ASSERT: u32 = 1 << 14;
const ICR_LEVEL: u32 = 1 << 15;
const MODE_NMI: u32 = 4 << 8;
const MODE_INIT: u32 = 5 << 8;
const MODE_STARTUP: u32 = 6 << 8;

enum Mode {
    XApic(Mmio),
    X2Apic,
}
static MODE: Once<Mode> = Once::new();

fn mode() -> &'static Mode {
    MODE.get().expect("local APIC before irq::init")
}

fn read(reg: u32) -> u32 {
    match mode() {
        Mode::XApic(m) => m.read32(reg as usize),
        // SAFETY: the APIC is in x2APIC mode, and `reg` is one of the architectural registers above.
        Mode::X2Apic => unsafe { rdmsr(MSR_X2APIC + reg / 16) as u32 },
    }
}

fn write(reg: u32, v: u32) {
    match mode() {
        Mode::XApic(m) => m.write32(reg as usize, v),
        // SAFETY: as in `read`; the values written here are those the SDM allows.
        Mode::X2Apic => unsafe { wrmsr(MSR_X2APIC + reg / 16, u64::from(v)) },
    }
}

/// Chooses the mode and enables the boot CPU's APIC.
pub(super) fn init() {
    // SAFETY: every x86-64 CPU has IA32_APIC_BASE.
    let base = unsafe { rdmsr(MSR_APIC_BASE) };
    let x2 = features().contains(Features::X2APIC)
        && (base & BASE_X2APIC != 0 || crate::smp::max_apic_id() >= 255 || crate::boot::option("x2apic").is_some());
    let phys = crate::acpi::lapic_address().unwrap_or(base & 0x000f_ffff_ffff_f000);
    let _ = MODE.set(if x2 {
        Mode::X2Apic
    } else {
        Mode::XApic(
            crate::mm::mmio(PhysAddr(phys), 4096, CacheMode::Uncached).expect("no memory to map the local APIC"),
        )
    });
    crate::debug!("local APIC: {} at {phys:#x}", if x2 { "x2APIC" } else { "xAPIC" });
    init_cpu();
}

/// Whether the APICs are in x2APIC mode.
pub(crate) fn is_x2apic() -> bool {
    matches!(mode(), Mode::X2Apic)
}

/// Enables this CPU's APIC with everything masked but NMI.
pub(crate) fn init_cpu() {
    // SAFETY: enabling the APIC (and x2APIC mode where `init` chose it) is legal from the state firmware or INIT leaves.
    unsafe {
        let base = rdmsr(MSR_APIC_BASE) | BASE_ENABLE;
        wrmsr(MSR_APIC_BASE, base);
        if matches!(mode(), Mode::X2Apic) {
            wrmsr(MSR_APIC_BASE, base | BASE_X2APIC);
        }
    }
    write(reg::TPR, 0);
    write(reg::LVT_TIMER, LVT_MASKED);
    write(reg::LVT_LINT0, LVT_MASKED);
    write(reg::LVT_LINT1, LVT_NMI);
    let max_lvt = read(reg::VERSION) >> 16 & 0xff;
    if max_lvt >= 4 {
        write(reg::LVT_PMC, LVT_MASKED);
    }
    if max_lvt >= 5 {
        write(reg::LVT_THERMAL, LVT_MASKED);
    }
    write(reg::LVT_ERROR, u32::from(super::vector::ERROR));
    if matches!(mode(), Mode::XApic(_)) {
        write(reg::LDR, 0);
    }
    write(reg::ESR, 0);
    write(reg::TIMER_DIV, 0b1011); // divide by 1
    write(reg::SVR, 0x100 | u32::from(super::vector::SPURIOUS));
    // An interrupt left in service by firmware would block all below it for ever.
    for _ in 0..8 {
        eoi();
    }
}

/// This CPU's APIC id.
pub(crate) fn id() -> u32 {
    match mode() {
        Mode::XApic(_) => read(reg::ID) >> 24,
        Mode::X2Apic => read(reg::ID),
    }
}

/// Ends the interrupt in service.
#[inline]
pub(crate) fn eoi() {
    write(reg::EOI, 0);
}

/// The error status register; reading it also clears it.
pub(super) fn error_status() -> u32 {
    write(reg::ESR, 0);
    read(reg::ESR)
}

fn icr(dest: u32, low: u32) {
    match mode() {
        // SAFETY: a legal ICR value; what it starts on the other CPU is the caller's business within this crate.
        Mode::X2Apic => unsafe {
            // The MSR write does not order earlier stores, which the receiver must see.
            core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags));
            wrmsr(MSR_X2APIC + reg::ICR_LOW / 16, u64::from(dest) << 32 | u64::from(low));
        },
        Mode::XApic(_) => {
            // Two writes: an interrupt between them that also sends would change the destination.
            let irqs = irq_save();
            while read(reg::ICR_LOW) & ICR_PENDING != 0 {
                core::hint::spin_loop();
            }
            write(reg::ICR_HIGH, dest << 24);
            write(reg::ICR_LOW, low);
            irq_restore(irqs);
        }
    }
}

/// Sends a fixed interrupt.
pub(crate) fn send_ipi(dest: u32, vector: u8) {
    icr(dest, ICR_ASSERT | u32::from(vector));
}
/// Sends an NMI.
pub(crate) fn send_nmi(dest: u32) {
    icr(dest, ICR_ASSERT | MODE_NMI);
}
/// Resets a CPU to wait-for-SIPI.
pub(crate) fn send_init(dest: u32) {
    icr(dest, ICR_ASSERT | ICR_LEVEL | MODE_INIT);
}
/// Starts a CPU at physical address `page << 12` in real mode.
pub(crate) fn send_startup(dest: u32, page: u8) {
    icr(dest, ICR_ASSERT | MODE_STARTUP | u32::from(page));
}

/// Puts the timer, stopped, into TSC-deadline or one-shot mode, to interrupt with [`super::vector::TIMER`].
pub(crate) fn timer_enable(deadline: bool) {
    write(reg::TIMER_INIT, 0);
    let mode = if deadline { LVT_TSC_DEADLINE } else { 0 };
    write(reg::LVT_TIMER, mode | u32::from(super::vector::TIMER));
    // SAFETY: orders the LVT write, in xAPIC mode a store to memory, before MSR writes of deadlines (SDM 11.5.4.1).
    unsafe { core::arch::asm!("mfence", options(nostack, preserves_flags)) };
}
/// One-shot mode: counts down from `count` to 0, then interrupts once; 0 stops the timer.
#[inline]
pub(crate) fn timer_start(count: u32) {
    write(reg::TIMER_INIT, count);
}
/// Starts the timer for measuring: counts down from the top, no interrupt.
pub(crate) fn timer_measure() {
    write(reg::LVT_TIMER, LVT_MASKED);
    write(reg::TIMER_INIT, u32::MAX);
}
/// The timer's current count.
pub(crate) fn timer_now() -> u32 {
    read(reg::TIMER_NOW)
}
/// TSC-deadline mode: interrupts when the TSC reaches `tsc`; 0 stops. *Unexercised*: QEMU's TCG does not have it.
pub(crate) fn timer_deadline(tsc: u64) {
    // SAFETY: only called when the CPU has TSC-deadline mode, which brings the register.
    unsafe { wrmsr(MSR_TSC_DEADLINE, tsc) };
}
