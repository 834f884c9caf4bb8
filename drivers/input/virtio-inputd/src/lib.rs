//! Driver of virtio input devices: what QEMU's virtio-keyboard, -mouse, -tablet and -multitouch are.
//!
//! Such a device is a stream of evdev events already. Its configuration says what it is ([`describe`]); its event queue
//! brings events, eight bytes each, which [`Input`] collects into packets; its status queue takes LEDs.
//!
//! The device is not trusted: a buffer that it returns is looked up in our own record, and what it claims to be is cut to
//! what evdev has.
//!
//! References: VIRTIO 1.2, 5.8 (input device).
#![deny(unsafe_code)]

#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;

use linux_uapi::input::{
    AbsInfo, BUS_VIRTUAL, InputEvent, InputId,
    codes::{ABS_CNT, EV_ABS, EV_KEY, EV_LED, EV_MSC, EV_REL, EV_REP, EV_SND, EV_SW},
};
use uinput::{Blueprint, Packets};
use virtio::{Buffer, Device, DmaAllocator, DmaMemory, Error, Features, Result, Transport, Virtqueue};

/// Virtio device type.
pub const DEVICE_TYPE: u16 = 18;

const EVENT_QUEUE: u16 = 0;
const STATUS_QUEUE: u16 = 1;
/// Events under way at once, in each direction.
const EVENTS: u16 = 64;
/// `struct virtio_input_event`
const EVENT_SIZE: usize = 8;
/// A packet that the device never ends is dropped at this length.
const PACKET_MAX: usize = 1024;

/// `struct virtio_input_config`
mod config {
    pub const SELECT: usize = 0;
    pub const SIZE: usize = 2;
    pub const DATA: usize = 8;
    pub const DATA_LEN: usize = 128;

    pub const NAME: u8 = 0x01;
    pub const SERIAL: u8 = 0x02;
    pub const IDS: u8 = 0x03;
    pub const PROPERTIES: u8 = 0x10;
    pub const EVENT_BITS: u8 = 0x11;
    pub const ABS_INFO: u8 = 0x12;
}

/// Asks the device about itself.
fn ask<T: Transport>(device: &mut Device<T>, select: u8, subselect: u8) -> Result<Vec<u8>> {
    device.transport_mut().config_write(config::SELECT, &[select])?;
    device.transport_mut().config_write(config::SELECT + 1, &[subselect])?;
    let [size] = device.config::<1>(config::SIZE)?;
    // No more than there is: beyond its end a device's configuration reads as ones.
    let mut data = vec![0; usize::from(size).min(config::DATA_LEN)];
    device.config_bytes(config::DATA, &mut data)?;
    Ok(data)
}

/// The bits that are set in a bitmap, below a limit.
fn bits(bitmap: &[u8], below: u16) -> Vec<u16> {
    let set = |code: &u16| bitmap.get(usize::from(code / 8)).is_some_and(|byte| byte >> (code % 8) & 1 != 0);
    (0..below).filter(set).collect()
}

/// What the device is. `address` is its place on the bus, `parent` its folder below `/sys`.
///
/// # Errors
/// [`Error::Broken`]: its configuration does not hold still.
pub fn describe<T: Transport>(device: &mut Device<T>, address: &str, parent: &str) -> Result<Blueprint> {
    let text = |bytes: Vec<u8>| {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    };
    let mut name = text(ask(device, config::NAME, 0)?);
    // uinput's limit.
    while name.len() > 79 {
        name.pop();
    }
    if name.is_empty() {
        name = "Virtio input device".to_owned();
    }
    let uniq = text(ask(device, config::SERIAL, 0)?);
    let ids = ask(device, config::IDS, 0)?;
    let field = |at: usize| ids.get(at..at + 2).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    let id = if ids.len() >= 8 {
        InputId { bustype: field(0), vendor: field(2), product: field(4), version: field(6) }
    } else {
        InputId { bustype: BUS_VIRTUAL, ..InputId::default() }
    };
    let properties = bits(&ask(device, config::PROPERTIES, 0)?, linux_uapi::input::codes::INPUT_PROP_CNT);
    let mut codes = Vec::new();
    for (kind, count) in [
        (EV_KEY, linux_uapi::input::codes::KEY_CNT),
        (EV_REL, linux_uapi::input::codes::REL_CNT),
        (EV_ABS, ABS_CNT),
        (EV_MSC, linux_uapi::input::codes::MSC_CNT),
        (EV_LED, linux_uapi::input::codes::LED_CNT),
        (EV_SND, linux_uapi::input::codes::SND_CNT),
        (EV_SW, linux_uapi::input::codes::SW_CNT),
        // Delay and period are ours to keep; that the device answers at all asks for repetition.
        (EV_REP, 0),
    ] {
        let bitmap = ask(device, config::EVENT_BITS, kind as u8)?;
        if bitmap.iter().any(|byte| *byte != 0) || kind == EV_REP && !bitmap.is_empty() {
            codes.push((kind, bits(&bitmap, count)));
        }
    }
    let mut axes = Vec::new();
    let absolute: Vec<u16> =
        codes.iter().find(|(kind, _)| *kind == EV_ABS).map_or(Vec::new(), |(_, codes)| codes.clone());
    for axis in absolute {
        let info = ask(device, config::ABS_INFO, axis as u8)?;
        let field =
            |at: usize| info.get(at * 4..at * 4 + 4).map_or(0, |b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let info = AbsInfo {
            value: 0,
            minimum: field(0),
            maximum: field(1),
            fuzz: field(2),
            flat: field(3),
            resolution: field(4),
        };
        axes.push((axis, info));
    }
    Ok(Blueprint {
        name,
        phys: format!("virtio-{address}/input0"),
        uniq,
        parent: Some(parent.to_owned()),
        id,
        properties,
        codes,
        axes,
    })
}

/// A running device.
pub struct Input<T: Transport, A: DmaAllocator> {
    // Dropped first, which resets the device: then nothing writes to the memory below any more.
    device: Device<T>,
    events: Virtqueue<A::Memory, u16>,
    status: Virtqueue<A::Memory, u16>,
    event_memory: A::Memory,
    status_memory: A::Memory,
    free_status: Vec<u16>,
}

/// One buffer of a memory that is an array of events.
fn buffer<M: DmaMemory>(memory: &M, slot: u16) -> Result<u64> {
    match memory.segments()[..] {
        [segment] if segment.len >= u64::from(EVENTS) * EVENT_SIZE as u64 => {
            Ok(segment.address + u64::from(slot) * EVENT_SIZE as u64)
        }
        _ => Err(Error::Transport("the events' memory is not contiguous")),
    }
}

impl<T: Transport, A: DmaAllocator> Input<T, A> {
    /// Brings the device up and asks it what it is; it reports nothing before [`Input::start`].
    ///
    /// # Errors
    /// It is no input device, or breaks the protocol.
    pub fn new(transport: T, dma: &A, address: &str, parent: &str) -> Result<(Self, Blueprint)> {
        if transport.device_type() != DEVICE_TYPE {
            return Err(Error::Transport("not an input device"));
        }
        let mut device = Device::negotiate(transport, Features::empty(), Features::empty())?;
        let blueprint = describe(&mut device, address, parent)?;
        let events = device.queue(dma, EVENT_QUEUE, EVENTS)?;
        let status = device.queue(dma, STATUS_QUEUE, EVENTS)?;
        let bytes = usize::from(EVENTS) * EVENT_SIZE;
        let input = Input {
            device,
            events,
            status,
            event_memory: dma.alloc_contiguous(bytes)?,
            status_memory: dma.alloc_contiguous(bytes)?,
            free_status: (0..EVENTS).collect(),
        };
        Ok((input, blueprint))
    }

    /// Lets the device report.
    ///
    /// # Errors
    /// It breaks the protocol.
    pub fn start(&mut self) -> Result<()> {
        for slot in 0..self.events.size().min(EVENTS) {
            self.offer(slot)?;
        }
        self.device.start()?;
        self.device.kick(&mut self.events);
        Ok(())
    }

    fn offer(&mut self, slot: u16) -> Result<()> {
        let address = buffer(&self.event_memory, slot)?;
        self.events.add(&[Buffer::writable(address, EVENT_SIZE as u32)], slot)
    }

    /// The descriptors to wait for.
    pub fn interrupt_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.device.transport().interrupt_fds()
    }

    /// Takes an interrupt, and what the device has reported.
    ///
    /// # Errors
    /// It breaks the protocol.
    pub fn interrupt(&mut self, index: usize, packets: &mut Packets) -> Result<()> {
        let cause = self.device.transport_mut().interrupt(index)?;
        if cause.config && self.device.needs_reset() {
            return Err(Error::Broken("the device asks to be reset"));
        }
        self.take(packets)
    }

    /// Takes what the device has reported and the LEDs it has set.
    ///
    /// # Errors
    /// It breaks the protocol.
    pub fn take(&mut self, packets: &mut Packets) -> Result<()> {
        while let Some(used) = self.status.pop()? {
            self.free_status.push(used.token);
        }
        while let Some(used) = self.events.pop()? {
            let mut event = [0; EVENT_SIZE];
            self.event_memory.read(usize::from(used.token) * EVENT_SIZE, &mut event);
            self.offer(used.token)?;
            if used.written < EVENT_SIZE as u32 {
                continue;
            }
            let [k0, k1, c0, c1, value @ ..] = event;
            packets.push(u16::from_le_bytes([k0, k1]), u16::from_le_bytes([c0, c1]), i32::from_le_bytes(value));
            if packets.len() > PACKET_MAX {
                packets.sync();
            }
        }
        self.device.kick(&mut self.events);
        Ok(())
    }

    /// Passes on what a program asks of the device (LEDs). Says whether there was room.
    ///
    /// # Errors
    /// It breaks the protocol.
    pub fn send(&mut self, event: &InputEvent) -> Result<bool> {
        while let Some(used) = self.status.pop()? {
            self.free_status.push(used.token);
        }
        if self.status.free() == 0 {
            return Ok(false);
        }
        let Some(slot) = self.free_status.pop() else { return Ok(false) };
        let mut bytes = [0; EVENT_SIZE];
        bytes[..2].copy_from_slice(&event.kind.to_le_bytes());
        bytes[2..4].copy_from_slice(&event.code.to_le_bytes());
        bytes[4..].copy_from_slice(&event.value.to_le_bytes());
        self.status_memory.write(usize::from(slot) * EVENT_SIZE, &bytes);
        let address = buffer(&self.status_memory, slot)?;
        self.status.add(&[Buffer::readable(address, EVENT_SIZE as u32)], slot)?;
        self.device.kick(&mut self.status);
        Ok(true)
    }
}
