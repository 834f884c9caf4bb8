//! Hardware abstraction: the only kernel crate with `unsafe`.
//!
//! Everything the kernel above needs from the machine, as safe types: boot information, frames and page tables, traps and
//! user mode, tasks, per-CPU data, locks, interrupts, CPUs, clocks, serial ports, firmware tables, PCI configuration.
//! Misuse of what is public here gives a panic at worst, never undefined behaviour.
//!
//! Boot, on the boot CPU: `boot/entry.s` → [`boot`]`::start` → [`cpu`] features → [`boot::BootInfo`] → `mm::init` (final page
//! tables, heap) → `trap`, `percpu` → [`acpi`], `irq`, [`time`], [`serial`] → `kernel_main`, which `kernel/main` defines. The
//! other CPUs are started by `smp::start_aps`.
//!
//! The parsers of firmware and loader data are pure functions over byte slices, so that they are tested on the host.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod addr;
pub mod boot;
pub mod cpu;
pub mod fpu;
#[macro_use]
pub mod log;
pub mod mm;
pub mod panic;
pub mod percpu;
pub mod pio;
pub mod power;
pub mod serial;
pub mod sync;
pub mod task;
pub mod trap;
pub mod user;

pub use addr::{PAGE_SHIFT, PAGE_SIZE, PhysAddr, USER_END, VirtAddr};

// Until the boot half of this crate brings these: what the memory and trap half calls.
pub(crate) mod irq {
    pub(crate) fn dispatch(vector: u8) {
        panic!("interrupt {vector} before the interrupt controllers are set up");
    }
}
pub(crate) mod smp {
    pub(crate) enum Ipi {
        TlbFlush,
        Reschedule,
    }
    pub(crate) fn send_ipi(_: crate::percpu::CpuSet, _: Ipi) {
        unreachable!("there is one CPU");
    }
}
pub(crate) mod hooks {
    pub(crate) trait Hooks {
        fn user_fault(&self, addr: crate::VirtAddr, access: crate::trap::Access) -> bool;
    }
    pub(crate) fn hooks() -> Option<&'static dyn Hooks> {
        None
    }
}
