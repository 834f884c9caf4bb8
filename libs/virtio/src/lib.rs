//! The driver's side of virtio 1.x: what every virtio driver process shares, whatever its device.
//!
//! ```text
//!   driver (drm-virtio-gpu, virtio-inputd …)
//!     │  Device::negotiate → Device::queue … → Device::start        Virtqueue::add / kick / pop
//!     ▼                                                              ▼
//!   [`Device`]: status and features              [`Virtqueue`]: descriptor table, available and used ring
//!     │                                                              │
//!   [`Transport`] ── [`pci::PciTransport`] over `libs/driver`, or the mock      [`DmaMemory`]: a DMA buffer, or the mock's memory
//! ```
//!
//! Devices are not trusted: what a device writes (used indices, chain heads, lengths, configuration) is checked against the
//! driver's own record before use, and a violation is [`Error::Broken`], never a wrong memory access or a panic. The driver
//! reads descriptors back from no shared memory.
//!
//! Only the modern interface is spoken (`VIRTIO_F_VERSION_1`); `ACCESS_PLATFORM` is accepted when offered, `RING_EVENT_IDX`
//! is used when offered, indirect descriptors are not used: our chains have two to a few members.
//!
//! References: Virtual I/O Device (VIRTIO) Version 1.2, chapters 2 (facilities), 3 (initialization), 4.1 (PCI).
#![deny(unsafe_code)]

mod arena;
mod device;
mod features;
mod memory;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
pub mod pci;
mod queue;
mod transport;

pub use arena::{Arena, Part};
pub use device::Device;
pub use features::Features;
pub use memory::{DmaAllocator, DmaMemory, Segment, VecSegments};
pub use queue::{Buffer, Used, Virtqueue};
pub use transport::{Cause, QueueSetup, Status, Transport};

/// What can go wrong between a driver and its virtio device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device offers no modern interface, or lacks a feature that the driver cannot do without.
    #[error("the device lacks features {0:?}")]
    Features(Features),
    /// The device cleared `FEATURES_OK`.
    #[error("the device refused features {0:?}")]
    Refused(Features),
    /// A queue that the driver needs does not exist, or is too small.
    #[error("queue {0} is missing or too small")]
    NoQueue(u16),
    /// There are too few free descriptors for the chain.
    #[error("the queue is full")]
    QueueFull,
    /// A chain without buffers, of more buffers than the queue has entries, or with a readable buffer after a writable one.
    #[error("the buffer chain is malformed")]
    BadChain,
    /// The device broke the protocol. The driver resets it and gives up or starts anew.
    #[error("the device broke the protocol: {0}")]
    Broken(&'static str),
    /// The transport's capabilities or registers are not as the specification has them.
    #[error("the transport is malformed: {0}")]
    Transport(&'static str),
    /// The operating system refused something.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
