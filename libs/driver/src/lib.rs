//! What a user-space driver is made of: its device's configuration space, registers, interrupts and DMA memory.
//!
//! A driver is a process. The kernel gives it one device file (VFIO's) and one I/O address space (iommufd's), and takes
//! interrupts and bus mastering away when these are closed, however the process ends ([`handover`] is the exception). This crate
//! is the thin layer over those files: every access is bounds-checked, so that a driver above it needs no `unsafe`.
//!
//! Key types: [`PciDevice`], [`PlatformDevice`]; [`Mmio`], mapped registers; [`Irq`], an interrupt as an eventfd; [`Dma`],
//! which makes [`DmaBuffer`]s. All of them rest on the [`Backend`] trait, so that with the feature `mock` the same driver runs
//! on the host against a device made of callbacks.
//!
//! Where files come from: a driver that `init` starts has them as passed descriptors (`LISTEN_FDNAMES` with
//! `vfio:0000:00:02.0` and `iommufd`); started by hand as root it opens them by name.
//!
//! `unsafe` is confined to `sys` (ioctl, mmap, passed descriptors) and `volatile` (access to mapped memory).
//! References: <linux/vfio.h>, <linux/iommufd.h>, <linux/dma-heap.h>; PCI 3.0.
#![deny(unsafe_code)]

mod dma;
pub mod handover;
mod irq;
mod mmio;
#[cfg(feature = "mock")]
pub mod mock;
mod passed;
mod pci;
mod platform;
mod store;
mod sys;
pub mod vduse;
mod vfio;
mod volatile;

pub use dma::{Contiguity, Dma, DmaBackend, DmaBuffer, DmaMapping, Mapped, Segment, system_buffer};
pub use handover::Handover;
pub use irq::Irq;
pub use mmio::{Mmio, Registers};
pub use pci::{Bar, BarKind, PciDevice};
pub use platform::{PlatformDevice, Port};
pub use store::{forget, store, stored};
pub use vfio::{Backend, IrqAction, RegionInfo};
pub use volatile::Shared;
