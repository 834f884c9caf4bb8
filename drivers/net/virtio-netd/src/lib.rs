//! Driver of virtio network devices.
//!
//! Two queues of fixed buffers, one for what comes and one for what goes ([`Net`]). A buffer holds a virtio header and a
//! frame, which is also what a TAP interface reads and writes, so that neither is looked at here: no offload is negotiated,
//! and what the device says of a frame is passed on and checked by the kernel.
//!
//! The device is not trusted: a buffer that it returns is looked up in our own record, and lengths are cut to what there is.
//!
//! References: VIRTIO 1.2, 5.1 (network device).
#![deny(unsafe_code)]

#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;

use virtio::{Buffer, Device, DmaAllocator, DmaMemory, Error, Features, Result, Transport, Virtqueue};

/// Virtio device type.
pub const DEVICE_TYPE: u16 = 1;

const RECEIVE_QUEUE: u16 = 0;
const TRANSMIT_QUEUE: u16 = 1;
/// Frames under way at once, in each direction.
const FRAMES: u16 = 128;
/// Bytes of a buffer: header, Ethernet header and the longest packet, 1500 bytes, fit well.
pub const FRAME: usize = 2048;
/// `VIRTIO_NET_F_MAC`, `VIRTIO_NET_F_STATUS`
const MAC: Features = Features::device(5);
const STATUS: Features = Features::device(16);
/// `struct virtio_net_config`
const CONFIG_STATUS: usize = 6;
/// `VIRTIO_NET_S_LINK_UP`
const LINK_UP: u8 = 1;
/// The header in front of each frame.
const HEADER: usize = 12;

/// A running device.
pub struct Net<T: Transport, A: DmaAllocator> {
    // Dropped first, which resets the device: then nothing writes to the memory below any more.
    device: Device<T>,
    receive: Virtqueue<A::Memory, u16>,
    transmit: Virtqueue<A::Memory, u16>,
    receive_memory: A::Memory,
    transmit_memory: A::Memory,
    free: Vec<u16>,
}

/// The address of one buffer of a memory that is an array of them.
fn address<M: DmaMemory>(memory: &M, slot: u16) -> Result<u64> {
    match memory.segments()[..] {
        [segment] if segment.len >= u64::from(FRAMES) * FRAME as u64 => {
            Ok(segment.address + u64::from(slot) * FRAME as u64)
        }
        _ => Err(Error::Transport("the frames' memory is not contiguous")),
    }
}

impl<T: Transport, A: DmaAllocator> Net<T, A> {
    /// Brings the device up; it moves nothing before [`Net::start`].
    ///
    /// # Errors
    /// It is no network device, or breaks the protocol.
    pub fn new(transport: T, dma: &A) -> Result<Self> {
        if transport.device_type() != DEVICE_TYPE {
            return Err(Error::Transport("not a network device"));
        }
        let mut device = Device::negotiate(transport, Features::empty(), MAC | STATUS | Features::EVENT_IDX)?;
        let receive = device.queue(dma, RECEIVE_QUEUE, FRAMES)?;
        let transmit = device.queue(dma, TRANSMIT_QUEUE, FRAMES)?;
        let bytes = usize::from(FRAMES) * FRAME;
        let free = (0..transmit.size().min(FRAMES)).collect();
        Ok(Net {
            device,
            receive,
            transmit,
            receive_memory: dma.alloc_contiguous(bytes)?,
            transmit_memory: dma.alloc_contiguous(bytes)?,
            free,
        })
    }

    /// Lets the device receive.
    ///
    /// # Errors
    /// It breaks the protocol.
    pub fn start(&mut self) -> Result<()> {
        for slot in 0..self.receive.size().min(FRAMES) {
            self.offer(slot)?;
        }
        self.device.start()?;
        self.device.kick(&mut self.receive);
        Ok(())
    }

    fn offer(&mut self, slot: u16) -> Result<()> {
        let at = address(&self.receive_memory, slot)?;
        self.receive.add(&[Buffer::writable(at, FRAME as u32)], slot)
    }

    /// The device's link address, if it has one of its own.
    ///
    /// # Errors
    /// Its configuration does not hold still.
    pub fn mac(&self) -> Result<Option<[u8; 6]>> {
        if self.device.features().contains(MAC) { self.device.config::<6>(0).map(Some) } else { Ok(None) }
    }

    /// Whether there is something at the other end. A device that cannot tell is taken to be connected.
    ///
    /// # Errors
    /// Its configuration does not hold still.
    pub fn has_link(&self) -> Result<bool> {
        if !self.device.features().contains(STATUS) {
            return Ok(true);
        }
        Ok(self.device.config::<2>(CONFIG_STATUS)?[0] & LINK_UP != 0)
    }

    /// The descriptors to wait for.
    pub fn interrupt_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.device.transport().interrupt_fds()
    }

    /// Takes an interrupt; whether the configuration changed.
    ///
    /// # Errors
    /// It asks to be reset.
    pub fn interrupt(&mut self, index: usize) -> Result<bool> {
        let cause = self.device.transport_mut().interrupt(index)?;
        if cause.config && self.device.needs_reset() {
            return Err(Error::Broken("the device asks to be reset"));
        }
        Ok(cause.config)
    }

    /// Hands all that has come to `take`, header in front, and gives the buffers back in one go.
    ///
    /// # Errors
    /// The device breaks the protocol.
    pub fn received(&mut self, mut take: impl FnMut(&[u8])) -> Result<()> {
        let mut frame = [0; FRAME];
        while let Some(used) = self.receive.pop()? {
            let len = (used.written as usize).min(FRAME);
            if len > HEADER {
                self.receive_memory.read(usize::from(used.token) * FRAME, &mut frame[..len]);
                take(&frame[..len]);
            }
            self.offer(used.token)?;
        }
        self.device.kick(&mut self.receive);
        Ok(())
    }

    /// Whether a frame can be sent now.
    ///
    /// # Errors
    /// The device breaks the protocol.
    pub fn has_room(&mut self) -> Result<bool> {
        while let Some(used) = self.transmit.pop()? {
            self.free.push(used.token);
        }
        Ok(!self.free.is_empty() && self.transmit.free() > 0)
    }

    /// Puts a frame, header in front, into the queue; [`Net::flush`] lets it go. False: there is no room, or it is too long.
    ///
    /// # Errors
    /// The device breaks the protocol.
    pub fn send(&mut self, frame: &[u8]) -> Result<bool> {
        if frame.len() <= HEADER || frame.len() > FRAME || !self.has_room()? {
            return Ok(false);
        }
        let Some(slot) = self.free.pop() else { return Ok(false) };
        self.transmit_memory.write(usize::from(slot) * FRAME, frame);
        let at = address(&self.transmit_memory, slot)?;
        self.transmit.add(&[Buffer::readable(at, frame.len() as u32)], slot)?;
        Ok(true)
    }

    /// Tells the device of what was put into the queue.
    pub fn flush(&mut self) {
        self.device.kick(&mut self.transmit);
    }
}
