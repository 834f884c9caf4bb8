//! Bringing a device up.

use crate::{Buffer, DmaAllocator, Error, Features, Result, Status, Transport, Virtqueue};

/// A virtio device on its way from reset to `DRIVER_OK`, and after.
///
/// Steps as VIRTIO 1.2, 3.1.1 numbers them: [`Device::negotiate`] does 1 to 6, [`Device::queue`] is 7, [`Device::start`] is 8.
/// Dropping it resets the device, so that it writes no memory that is about to be freed.
pub struct Device<T: Transport> {
    transport: T,
    features: Features,
}

impl<T: Transport> Device<T> {
    /// Resets the device and agrees on features: all of `required`, what the device offers of `optional`, and the transport's
    /// own (`VERSION_1`, `ACCESS_PLATFORM` if offered or if an IOMMU translates, `EVENT_IDX` if offered).
    pub fn negotiate(transport: T, required: Features, optional: Features) -> Result<Self> {
        let mut device = Device { transport, features: Features::empty() };
        let transport = &mut device.transport;
        transport.set_status(Status::empty())?;
        transport.set_status(Status::ACKNOWLEDGE)?;
        transport.set_status(Status::ACKNOWLEDGE | Status::DRIVER)?;
        let offered = transport.device_features();
        let mut required = required | Features::VERSION_1;
        if transport.is_translated() {
            // Such a device would take the addresses for those of memory: with the IOMMU in its way nothing works, without it
            // everything is written over.
            required |= Features::ACCESS_PLATFORM;
        }
        let optional = optional | Features::ACCESS_PLATFORM | Features::EVENT_IDX;
        if !offered.contains(required) {
            device.fail();
            return Err(Error::Features(required - offered));
        }
        let agreed = required | (offered & optional);
        transport.set_driver_features(agreed);
        transport.set_status(Status::ACKNOWLEDGE | Status::DRIVER | Status::FEATURES_OK)?;
        if !transport.status().contains(Status::FEATURES_OK) {
            device.fail();
            return Err(Error::Refused(agreed));
        }
        device.features = agreed;
        Ok(device)
    }

    /// Takes over a device that runs: one that a predecessor brought up and that was not reset since. Its queues are taken over
    /// by [`Device::resume_filled`] and [`Device::resume_idle`], in the order in which they were set up and from the same memory.
    ///
    /// # Errors
    /// [`Error::Broken`] when it does not run (any more).
    pub fn resume(mut transport: T) -> Result<Self> {
        let running = Status::ACKNOWLEDGE | Status::DRIVER | Status::FEATURES_OK | Status::DRIVER_OK;
        if transport.status() != running {
            return Err(Error::Broken("the device does not run"));
        }
        let features = transport.driver_features();
        let mut required = Features::VERSION_1;
        if transport.is_translated() {
            required |= Features::ACCESS_PLATFORM;
        }
        if !features.contains(required) {
            return Err(Error::Broken("the device runs without the features that were agreed on"));
        }
        Ok(Device { transport, features })
    }

    /// What was agreed on.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Sets up a queue of at most `max_size` entries.
    pub fn queue<A: DmaAllocator, K>(&mut self, dma: &A, queue: u16, max_size: u16) -> Result<Virtqueue<A::Memory, K>> {
        let (size, event_idx) = self.shape(queue, max_size)?;
        let made = Virtqueue::new(dma, queue, size, event_idx)?;
        self.transport.enable_queue(queue, &made.setup())?;
        Ok(made)
    }

    /// A queue's entries, and whether it has event indices.
    fn shape(&mut self, queue: u16, max_size: u16) -> Result<(u16, bool)> {
        if queue >= self.transport.queue_count() {
            return Err(Error::NoQueue(queue));
        }
        // Split queues have a power of two of entries; a device that names another number gets the next smaller one.
        let size = self.transport.queue_max_size(queue).min(max_size).min(32768);
        let size = if size == 0 { return Err(Error::NoQueue(queue)) } else { 1 << size.ilog2() };
        Ok((size, self.features.contains(Features::EVENT_IDX)))
    }

    /// Takes over a queue that [`Virtqueue::fill`] filled, of which the predecessor was done with `taken` used entries in all.
    ///
    /// # Errors
    /// [`Error::Broken`] when it is not as the predecessor left it.
    pub fn resume_filled<A: DmaAllocator>(
        &mut self,
        dma: &A,
        queue: u16,
        max_size: u16,
        taken: u16,
        buffer: impl Fn(u16) -> Buffer,
    ) -> Result<Virtqueue<A::Memory, u16>> {
        let (size, event_idx) = self.shape(queue, max_size)?;
        let found = Virtqueue::resume_filled(dma, queue, size, event_idx, taken, buffer)?;
        self.transport.resume_queue(queue, &found.setup())?;
        Ok(found)
    }

    /// Takes over a queue that has room again once the device is done with what is in it.
    ///
    /// # Errors
    /// [`Error::Broken`] when it is not as the predecessor left it.
    pub fn resume_idle<A: DmaAllocator, K>(
        &mut self,
        dma: &A,
        queue: u16,
        max_size: u16,
    ) -> Result<Virtqueue<A::Memory, K>> {
        let (size, event_idx) = self.shape(queue, max_size)?;
        let found = Virtqueue::resume_idle(dma, queue, size, event_idx)?;
        self.transport.resume_queue(queue, &found.setup())?;
        Ok(found)
    }

    /// Lets the device run.
    pub fn start(&mut self) -> Result<()> {
        self.transport.set_status(Status::ACKNOWLEDGE | Status::DRIVER | Status::FEATURES_OK | Status::DRIVER_OK)
    }

    /// Tells the device about new buffers of `queue` if it wants to hear.
    pub fn kick<M: crate::DmaMemory, K>(&self, queue: &mut Virtqueue<M, K>) {
        if queue.needs_kick() {
            self.transport.notify(queue.index());
        }
    }

    /// Whether the device asks to be reset.
    pub fn needs_reset(&self) -> bool {
        self.transport.status().contains(Status::NEEDS_RESET)
    }

    /// The transport: configuration, interrupts.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// The transport, to change something.
    pub fn transport_mut(&mut self) -> &mut T {
        &mut self.transport
    }

    /// Reads `N` bytes of configuration that belong together: again if the device changed them meanwhile.
    pub fn config<const N: usize>(&self, offset: usize) -> Result<[u8; N]> {
        // A device that changes its configuration faster than we read it is not a device.
        for _ in 0..64 {
            let before = self.transport.config_generation();
            let mut bytes = [0; N];
            self.transport.config_read(offset, &mut bytes);
            if self.transport.config_generation() == before {
                return Ok(bytes);
            }
        }
        Err(Error::Broken("the configuration never holds still"))
    }

    /// Reads an array of bytes of the configuration, byte by byte: a device whose configuration ends in the middle of a word
    /// answers a wider read of its end with ones.
    pub fn config_bytes(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        for _ in 0..64 {
            let before = self.transport.config_generation();
            for (at, byte) in into.iter_mut().enumerate() {
                self.transport.config_read(offset + at, core::slice::from_mut(byte));
            }
            if self.transport.config_generation() == before {
                return Ok(());
            }
        }
        Err(Error::Broken("the configuration never holds still"))
    }

    /// Reads a 32-bit field of the configuration.
    pub fn config_u32(&self, offset: usize) -> Result<u32> {
        Ok(u32::from_le_bytes(self.config(offset)?))
    }

    fn fail(&mut self) {
        let status = self.transport.status();
        let _ = self.transport.set_status(status | Status::FAILED);
    }
}

impl<T: Transport> Drop for Device<T> {
    fn drop(&mut self) {
        let _ = self.transport.set_status(Status::empty());
    }
}
