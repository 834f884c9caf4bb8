//! CPUID feature flags that the kernel acts on.
//!
//! References: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E.

use core::sync::atomic::{AtomicU64, Ordering};

use super::cpuid;

bitflags::bitflags! {
    /// What the CPU can do. Read once on the boot CPU; all CPUs are taken to be alike.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Features: u64 {
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 0;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 1;
        /// User-mode instruction prevention (SGDT and kin).
        const UMIP = 1 << 2;
        /// RDFSBASE and kin.
        const FSGSBASE = 1 << 3;
        /// XSAVE and XCR0.
        const XSAVE = 1 << 4;
        /// XSAVEOPT.
        const XSAVEOPT = 1 << 5;
        /// Global pages.
        const PGE = 1 << 6;
        /// 1 GiB pages.
        const PAGE_1G = 1 << 7;
        /// Page attribute table.
        const PAT = 1 << 8;
        /// Local APIC in x2APIC mode.
        const X2APIC = 1 << 9;
        /// TSC-deadline mode of the local APIC timer.
        const TSC_DEADLINE = 1 << 10;
        /// TSC runs at one rate in all states.
        const INVARIANT_TSC = 1 << 11;
        /// RDTSCP and TSC_AUX.
        const RDTSCP = 1 << 12;
        /// RDRAND.
        const RDRAND = 1 << 13;
        /// RDSEED.
        const RDSEED = 1 << 14;
        /// Runs under a hypervisor.
        const HYPERVISOR = 1 << 15;
        /// Process-context identifiers.
        const PCID = 1 << 16;
        /// Fast short REP MOVSB.
        const ERMS = 1 << 17;
        /// AVX.
        const AVX = 1 << 18;
        /// The APIC timer keeps running in deep sleep states.
        const ARAT = 1 << 19;
        /// MONITOR and MWAIT.
        const MONITOR = 1 << 20;
        /// RDPID.
        const RDPID = 1 << 21;
        /// Set once the flags have been read.
        const VALID = 1 << 63;
    }
}

static FEATURES: AtomicU64 = AtomicU64::new(0);

/// What this machine's CPUs can do.
pub fn features() -> Features {
    let bits = FEATURES.load(Ordering::Relaxed);
    if bits != 0 {
        return Features::from_bits_retain(bits);
    }
    let f = read();
    FEATURES.store(f.bits(), Ordering::Relaxed);
    f
}

fn read() -> Features {
    let (l1, l7, l13) = (cpuid(1, 0), cpuid(7, 0), cpuid(13, 1));
    let (e1, e7, l6) = (cpuid(0x8000_0001, 0), cpuid(0x8000_0007, 0), cpuid(6, 0));
    let mut f = Features::VALID;
    for (reg, bit, flag) in [
        (l7.ebx, 7, Features::SMEP),
        (l7.ebx, 20, Features::SMAP),
        (l7.ecx, 2, Features::UMIP),
        (l7.ebx, 0, Features::FSGSBASE),
        (l1.ecx, 26, Features::XSAVE),
        (l13.eax, 0, Features::XSAVEOPT),
        (l1.edx, 13, Features::PGE),
        (e1.edx, 26, Features::PAGE_1G),
        (l1.edx, 16, Features::PAT),
        (l1.ecx, 21, Features::X2APIC),
        (l1.ecx, 24, Features::TSC_DEADLINE),
        (e7.edx, 8, Features::INVARIANT_TSC),
        (e1.edx, 27, Features::RDTSCP),
        (l1.ecx, 30, Features::RDRAND),
        (l7.ebx, 18, Features::RDSEED),
        (l1.ecx, 31, Features::HYPERVISOR),
        (l1.ecx, 17, Features::PCID),
        (l7.ebx, 9, Features::ERMS),
        (l1.ecx, 28, Features::AVX),
        (l6.eax, 2, Features::ARAT),
        (l1.ecx, 3, Features::MONITOR),
        (l7.ecx, 22, Features::RDPID),
    ] {
        f.set(flag, reg >> bit & 1 != 0);
    }
    f
}
