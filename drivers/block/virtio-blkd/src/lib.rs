//! Driver of virtio block devices: what QEMU's virtio-blk-pci is.
//!
//! The kernel is a virtio driver too, of the device that this process serves to it through VDUSE. So a request is not
//! taken apart here: its chain of descriptors, whose addresses lie in the memory that VDUSE shares, becomes a chain of bus
//! addresses of the same memory ([`Translation`]) and goes to the device, which reads headers and data there and writes data and
//! status. The driver touches none of them.
//!
//! What is in flight is the kernel's to know: when this process dies, the kernel sends it to the next one again.
//!
//! The device is not trusted: what it returns is looked up in our own record ([`virtio::Virtqueue`]).
//!
//! References: VIRTIO 1.2, 5.2 (block device).
#![deny(unsafe_code)]

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use driver::vduse::Part;
use linux_uapi::virtio_blk::{Config, DEVICE_TYPE, feature};
use linux_uapi::zerocopy::{FromZeros, IntoBytes};
use virtio::{Buffer, Device, DmaAllocator, Error, Features, Result, Transport, Virtqueue};

/// Features that are passed on to the kernel.
const PASSED: u64 = feature::SIZE_MAX
    | feature::SEG_MAX
    | feature::RO
    | feature::BLK_SIZE
    | feature::FLUSH
    | feature::TOPOLOGY
    | feature::MQ
    | feature::DISCARD
    | feature::WRITE_ZEROES;
/// Entries of a queue: of a request of 256 KiB in single pages several fit.
const QUEUE_SIZE: u16 = 256;
/// The most queues; one process serves them all.
const QUEUES_MAX: u16 = 4;

/// Where the pages of a memory are for the device: runs of it, each as long as it can be.
pub struct Translation {
    /// Offset in the memory, address, bytes; in order and without gaps.
    runs: Vec<(u64, u64, u64)>,
}

impl Translation {
    /// From the runs of a mapping, in the memory's order.
    pub fn new(segments: impl IntoIterator<Item = (u64, u64)>) -> Translation {
        let mut runs: Vec<(u64, u64, u64)> = Vec::new();
        let mut offset = 0;
        for (address, len) in segments {
            match runs.last_mut() {
                Some(run) if run.1 + run.2 == address => run.2 += len,
                _ => runs.push((offset, address, len)),
            }
            offset += len;
        }
        Translation { runs }
    }

    /// Appends the buffers that `part` is for the device.
    ///
    /// # Errors
    /// It is not all in the memory.
    pub fn append(&self, part: &Part, to: &mut Vec<Buffer>) -> Result<()> {
        let (mut offset, mut left) = (part.offset, u64::from(part.len));
        let mut at = self.runs.partition_point(|run| run.0 <= offset).saturating_sub(1);
        while left > 0 {
            let run = self.runs.get(at).filter(|run| run.0 <= offset && offset < run.0 + run.2);
            let &(start, address, len) = run.ok_or(Error::Transport("an address outside of the shared memory"))?;
            let within = offset - start;
            let now = left.min(len - within);
            to.push(Buffer { address: address + within, len: now as u32, writable: part.writable });
            (offset, left, at) = (offset + now, left - now, at + 1);
        }
        Ok(())
    }
}

struct Queue<A: DmaAllocator> {
    ring: Virtqueue<A::Memory, u16>,
    /// Chains for which there was no room.
    waiting: VecDeque<(u16, Vec<Buffer>)>,
}

/// A running device.
pub struct Disk<T: Transport, A: DmaAllocator> {
    // Dropped first, which resets the device: then nothing writes to the memory below any more.
    device: Device<T>,
    queues: Vec<Queue<A>>,
    config: Config,
    features: u64,
}

impl<T: Transport, A: DmaAllocator> Disk<T, A> {
    /// Brings the device up with up to `queues` queues; it does nothing before the first request.
    ///
    /// # Errors
    /// It is no block device, or breaks the protocol.
    pub fn new(transport: T, dma: &A, queues: u16) -> Result<Self> {
        if u32::from(transport.device_type()) != DEVICE_TYPE {
            return Err(Error::Transport("not a block device"));
        }
        let mut device = Device::negotiate(transport, Features::empty(), Features::from_bits_retain(PASSED))?;
        let features = device.features().bits() & PASSED;
        let mut config = Config::new_zeroed();
        device.config_bytes(0, config.as_mut_bytes())?;
        let many = if features & feature::MQ != 0 { config.num_queues } else { 1 };
        let count = many.min(queues).min(device.transport().queue_count()).clamp(1, QUEUES_MAX);
        config.num_queues = count;
        let mut made = Vec::new();
        for index in 0..count {
            made.push(Queue { ring: device.queue(dma, index, QUEUE_SIZE)?, waiting: VecDeque::new() });
        }
        device.start()?;
        Ok(Disk { device, queues: made, config, features })
    }

    /// What the kernel is told.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Features that the kernel is offered.
    pub fn features(&self) -> u64 {
        self.features | feature::VERSION_1 | feature::ACCESS_PLATFORM
    }

    /// Queues.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Entries of the smallest queue.
    pub fn queue_size(&self) -> u16 {
        self.queues.iter().map(|queue| queue.ring.size()).min().unwrap_or(0)
    }

    /// Takes a chain of queue `index`; the device hears of it at the next [`Disk::kick`].
    ///
    /// # Errors
    /// A chain that no device takes.
    pub fn submit(&mut self, index: usize, head: u16, buffers: Vec<Buffer>) -> Result<()> {
        let queue = &mut self.queues[index];
        if !queue.waiting.is_empty() || buffers.len() > queue.ring.free().into() {
            if buffers.len() > queue.ring.size().into() {
                return Err(Error::BadChain);
            }
            queue.waiting.push_back((head, buffers));
            return Ok(());
        }
        queue.ring.add(&buffers, head)
    }

    /// Tells the device of what was taken.
    pub fn kick(&mut self) {
        for queue in &mut self.queues {
            self.device.kick(&mut queue.ring);
        }
    }

    /// Hands each chain that the device is done with to `done`: queue, number, bytes written.
    ///
    /// # Errors
    /// It broke the protocol.
    pub fn take(&mut self, mut done: impl FnMut(usize, u16, u32)) -> Result<()> {
        for (index, queue) in self.queues.iter_mut().enumerate() {
            while let Some(used) = queue.ring.pop()? {
                done(index, used.token, used.written);
            }
            while queue.waiting.front().is_some_and(|(_, buffers)| buffers.len() <= queue.ring.free().into()) {
                if let Some((head, buffers)) = queue.waiting.pop_front() {
                    queue.ring.add(&buffers, head)?;
                }
            }
        }
        self.kick();
        Ok(())
    }

    /// The descriptors to wait for.
    pub fn interrupt_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.device.transport().interrupt_fds()
    }

    /// Takes interrupt `index`. Whether the configuration changed.
    ///
    /// # Errors
    /// The device asks to be reset.
    pub fn interrupt(&mut self, index: usize) -> Result<bool> {
        let cause = self.device.transport_mut().interrupt(index)?;
        if !cause.config {
            return Ok(false);
        }
        if self.device.needs_reset() {
            return Err(Error::Broken("the device asks to be reset"));
        }
        let queues = self.config.num_queues;
        self.device.config_bytes(0, self.config.as_mut_bytes())?;
        self.config.num_queues = queues;
        Ok(true)
    }
}
