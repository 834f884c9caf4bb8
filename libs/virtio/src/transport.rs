//! What every transport (PCI, the mock) offers.

use std::os::fd::BorrowedFd;

use bitflags::bitflags;

use crate::{Features, Result};

bitflags! {
    /// The device status field, VIRTIO 1.2, 2.1.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u8 {
        /// The guest has noticed the device.
        const ACKNOWLEDGE = 1;
        /// It knows how to drive it.
        const DRIVER = 2;
        /// It is ready to drive it.
        const DRIVER_OK = 4;
        /// Features are agreed.
        const FEATURES_OK = 8;
        /// The device met an error from which it cannot recover without a reset.
        const NEEDS_RESET = 64;
        /// The driver has given up.
        const FAILED = 128;
    }
}

/// Where a queue lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Entries, a power of two.
    pub size: u16,
    /// Descriptor table, for the device.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}

/// Why an interrupt came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// The configuration changed (or the device needs a reset: look at the status).
    pub config: bool,
    /// Queues that may have used buffers, bit n for queue n.
    pub queues: u64,
}

impl Cause {
    /// Whether queue `index` is concerned.
    pub fn queue(self, index: u16) -> bool {
        index < 64 && self.queues & (1 << index) != 0
    }
}

/// A way to reach a virtio device.
pub trait Transport {
    /// Virtio device type: 16 is a GPU, 18 an input device.
    fn device_type(&self) -> u16;
    /// Whether the addresses that the driver gives are an IOMMU's: a device that knows only those of the bus is then of no use.
    fn is_translated(&self) -> bool {
        false
    }
    /// The device status.
    fn status(&self) -> Status;
    /// Writes the status; empty resets the device, and the call returns when that is done.
    fn set_status(&mut self, status: Status) -> Result<()>;
    /// What the device offers.
    fn device_features(&mut self) -> Features;
    /// What the driver accepts.
    fn set_driver_features(&mut self, features: Features);
    /// What the driver, or its predecessor, has accepted.
    fn driver_features(&mut self) -> Features;
    /// How many queues the device has.
    fn queue_count(&self) -> u16;
    /// The largest size of a queue, 0 if it does not exist.
    fn queue_max_size(&mut self, queue: u16) -> u16;
    /// Tells the device where the queue is, ties its interrupt, and enables it.
    fn enable_queue(&mut self, queue: u16, setup: &QueueSetup) -> Result<()>;
    /// Finds a queue that a predecessor enabled, and ties its interrupt to this transport's.
    ///
    /// # Errors
    /// [`crate::Error::Broken`] when the device has it elsewhere or not at all.
    fn resume_queue(&mut self, queue: u16, setup: &QueueSetup) -> Result<()>;
    /// Tells the device that a queue has new buffers.
    fn notify(&self, queue: u16);
    /// Changes whenever the configuration space changes.
    fn config_generation(&self) -> u8;
    /// Bytes of device configuration.
    fn config_len(&self) -> usize;
    /// Reads device configuration; bytes outside read as zero. Fields of 16 and 32 bits are read whole.
    fn config_read(&self, offset: usize, into: &mut [u8]);
    /// Writes device configuration.
    fn config_write(&mut self, offset: usize, from: &[u8]) -> Result<()>;
    /// The descriptors to poll, each readable when [`Transport::interrupt`] has something to say about it.
    fn interrupt_fds(&self) -> Vec<BorrowedFd<'_>>;
    /// Takes interrupt `index` (its place in [`Transport::interrupt_fds`]): clears it, and says what it was about.
    fn interrupt(&mut self, index: usize) -> Result<Cause>;
}
