//! Display driver for virtio-gpu (PCI 1af4:1050), in two dimensions.
//!
//! ```text
//!   clients ──ioctl──▶ drm-core ──[drm_core::Driver]──▶ [`VirtioGpu`]   buffers, scanouts, damage, cursor, hot-plug
//!                                                          │
//!                                                        [`Gpu`]        commands, answers, fences        (commands.rs)
//!                                                          │
//!                                                 libs/virtio · libs/driver (VFIO, DMA)
//! ```
//!
//! A dumb buffer is DMA memory that the client maps, with a *resource* in the device that has it as its backing. Showing it
//! is: transfer the damaged rectangles, point the scanout at the resource if it is another one, flush. The device works
//! on these in order, and the flip is complete when the fence of the last one comes back.
//!
//! What Linux 6.12's driver presents on a device without `VIRTIO_GPU_F_VIRGL` is what this one presents: names, limits,
//! formats, properties, `VIRTGPU_GETPARAM`. It goes further in one thing: see [`leaf`] on damage and double buffering.
//!
//! References: VIRTIO 1.2, 5.7; Linux `Documentation/gpu/`.
#![deny(unsafe_code)]

pub mod abi;
pub mod commands;
pub mod leaf;
mod memory;
#[cfg(test)]
mod mock;

pub use commands::Gpu;
pub use leaf::VirtioGpu;
pub use memory::{Backing, BackingAllocator};
