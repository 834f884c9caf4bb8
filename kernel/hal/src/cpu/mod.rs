//! The CPU at hand: features, control instructions, halting.
use core::arch::asm;
pub mod features;

use core::arch::x86_64::{__cpuid, __cpuid_count, _rdtsc, CpuidResult};
pub use features::{Features, features};

const RFLAGS_IF: u64 = 1 << 9;

/// CPUID leaf, zeroes where the CPU does not have it.
pub fn cpuid(leaf: u32, sub: u32) -> CpuidResult {
    let max = __cpuid(leaf & 0xf000_0000).eax;
    if leaf > max || max & 0xf000_0000 != leaf & 0xf000_0000 {
        return CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    }
    __cpuid_count(leaf, sub)
}

/// The brand string, or the vendor where there is none.
pub fn brand() -> BrandString {
    let mut s = BrandString([0; 48]);
    if __cpuid(0x8000_0000).eax >= 0x8000_0004 {
        for i in 0..3 {
            let r = cpuid(0x8000_0002 + i, 0);
            for (j, w) in [r.eax, r.ebx, r.ecx, r.edx].into_iter().enumerate() {
                let at = i as usize * 16 + j * 4;
                s.0[at..at + 4].copy_from_slice(&w.to_le_bytes());
            }
        }
    } else {
        let r = cpuid(0, 0);
        for (j, w) in [r.ebx, r.edx, r.ecx].into_iter().enumerate() {
            s.0[j * 4..j * 4 + 4].copy_from_slice(&w.to_le_bytes());
        }
    }
    s
}

/// Text from CPUID.
pub struct BrandString([u8; 48]);
impl core::fmt::Display for BrandString {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for b in self.0.iter().take_while(|b| **b != 0) {
            write!(f, "{}", if b.is_ascii_graphic() || *b == b' ' { *b as char } else { '?' })?;
        }
        Ok(())
    }
}

/// Reads a model-specific register.
///
/// # Safety
/// The register must exist (else #GP).
pub(crate) unsafe fn rdmsr(msr: u32) -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: passed on to the caller.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") lo, out("edx") hi, options(nomem, nostack, preserves_flags)) };
    u64::from(hi) << 32 | u64::from(lo)
}

/// Writes a model-specific register.
///
/// # Safety
/// The register must exist, the value be legal, and its effect leave memory safety intact.
pub(crate) unsafe fn wrmsr(msr: u32, v: u64) {
    // SAFETY: passed on to the caller. Not `nomem`: some registers change how memory is seen.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") v as u32, in("edx") (v >> 32) as u32, options(nostack, preserves_flags))
    };
}

/// The time-stamp counter.
pub fn rdtsc() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC; CR4.TSD only matters in user mode.
    unsafe { _rdtsc() }
}

/// Whether interrupts are on.
pub fn irqs_on() -> bool {
    let flags: u64;
    // SAFETY: reads RFLAGS through the stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    flags & RFLAGS_IF != 0
}

/// Turns interrupts off.
pub fn irq_disable() {
    // SAFETY: masking interrupts breaks no invariant. Not `nomem`: a compiler barrier.
    unsafe { asm!("cli", options(nostack)) };
}

/// Turns interrupts on.
pub(crate) fn irq_enable() {
    // SAFETY: called where hal is ready for interrupts.
    unsafe { asm!("sti", options(nostack)) };
}

/// Turns interrupts off and returns whether they were on.
pub(crate) fn irq_save() -> bool {
    let on = irqs_on();
    irq_disable();
    on
}

/// Undoes [`irq_save`].
pub(crate) fn irq_restore(on: bool) {
    if on {
        irq_enable();
    }
}

/// The APIC id that CPUID gives, for before the APIC is mapped.
pub(crate) fn initial_apic_id() -> u32 {
    let topology = cpuid(0x0b, 0);
    if topology.ebx != 0 { topology.edx } else { cpuid(1, 0).ebx >> 24 }
}

/// Waits for an interrupt, with interrupts on afterwards.
pub fn wait_for_interrupt() {
    halt_if(|| true);
}

/// Halts until an interrupt comes, unless `cond` says not to. Between the check and the halt no interrupt is lost: interrupts are
/// off during `cond`, and STI takes effect only after the HLT behind it. Interrupts are on afterwards.
pub fn halt_if(cond: impl FnOnce() -> bool) {
    irq_disable();
    if cond() {
        // SAFETY: waits with interrupts on; the caller is in task context of an initialised CPU.
        unsafe { asm!("sti", "hlt", options(nostack)) };
    } else {
        irq_enable();
    }
}

/// Halts this CPU for good.
pub fn halt_forever() -> ! {
    loop {
        irq_disable();
        // SAFETY: halting with interrupts off stops this CPU only.
        unsafe { asm!("hlt", options(nomem, nostack, preserves_flags)) };
    }
}

/// `AT_HWCAP` of x86-64 (getauxval(3)): the EDX word of CPUID leaf 1.
pub fn hwcap() -> u32 {
    cpuid(1, 0).edx
}

/// `AT_HWCAP2` of x86-64: bit 1 says that programs may use RDFSBASE and its kin.
pub fn hwcap2() -> u32 {
    const HWCAP2_FSGSBASE: u32 = 1 << 1;
    const CR4_FSGSBASE: u64 = 1 << 16;
    let cr4: u64;
    // SAFETY: reading CR4 has no effect.
    unsafe { core::arch::asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack, preserves_flags)) };
    if cr4 & CR4_FSGSBASE != 0 { HWCAP2_FSGSBASE } else { 0 }
}
