//! The Ursa kernel above the hardware: everything that a program can see.
//!
//! Layers inside: `syscall` (decode) → `process`, `fs`, `mm`, `ipc`, `tty`, `net`, `signal` (objects) → `sched`, `wait`,
//! `time` → `ursa_hal`. No unsafe code: what is missing below becomes a safe operation of `ursa_hal`.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

pub mod block;
pub mod boot;
mod coredump;
pub mod device;
pub mod dmabuf;
pub mod fs;
pub mod futex;
mod hooks;
pub mod iommu;
pub mod ipc;
pub mod mm;
pub mod namespace;
pub mod net;
pub mod pci;
pub mod poll;
pub mod process;
pub mod ptrace;
pub mod sched;
pub mod scheme;
pub mod signal;
pub mod syscall;
pub mod syslog;
pub mod time;
pub mod tty;
pub mod user;
pub mod vfio;
pub mod wait;

pub use linux_uapi::Errno;

/// What every fallible kernel operation returns.
pub type Result<T = ()> = core::result::Result<T, Errno>;
