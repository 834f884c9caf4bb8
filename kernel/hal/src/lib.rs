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

pub mod acpi;
pub mod addr;
pub mod boot;
pub mod console;
pub mod cpu;
pub mod debug;
pub mod fpu;
mod hooks;
pub mod iommu;
pub mod irq;
#[macro_use]
pub mod ktest;
#[cfg(target_os = "none")]
mod ktests;
#[macro_use]
pub mod log;
pub mod mm;
pub mod panic;
pub mod pci;
pub mod percpu;
pub(crate) mod pio;
pub mod port;
pub mod power;
pub mod rand;
pub mod rtc;
pub mod serial;
pub mod smp;
pub mod sync;
pub mod task;
pub mod time;
pub mod trap;
pub mod user;

pub use addr::{PAGE_SHIFT, PAGE_SIZE, PhysAddr, USER_END, VirtAddr};
pub use hooks::{Hooks, hooks, set_hooks};
