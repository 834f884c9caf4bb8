//! Driver of virtio input devices: what QEMU's virtio-keyboard, -mouse, -tablet and -multitouch are.
//!
//! Such a device is a stream of evdev events already. Its configuration says what it is ([`describe`]); its event queue
//! brings events, eight bytes each, which [`Input`] collects into packets; its status queue takes LEDs.
//!
//! A driver may be killed at any moment, and no event is lost or doubled by that: the device goes on filling its queue, and the
//! successor takes it over ([`Input::resume`]). An event's buffer goes back to the device only when the event's whole packet is
//! with uinput and [`Progress`] says so; the successor begins there, and passes over what uinput tells it to have already.
//!
//! The device is not trusted: a buffer that it returns is looked up in our own record, and what it claims to be is cut to
//! what evdev has.
//!
//! References: VIRTIO 1.2, 5.8 (input device).
#![deny(unsafe_code)]

#[cfg(test)]
mod tests;

use std::{os::fd::BorrowedFd, rc::Rc};

use linux_uapi::input::{
    AbsInfo, BUS_VIRTUAL, InputEvent, InputId,
    codes::{ABS_CNT, EV_ABS, EV_KEY, EV_LED, EV_MSC, EV_REL, EV_REP, EV_SND, EV_SW, EV_SYN, SYN_REPORT},
};
use uinput::{Blueprint, Packets};
use virtio::{
    Arena, Buffer, Device, DmaAllocator, DmaMemory, Error, Features, Part, Result, Transport, Used, Virtqueue,
};

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

/// Bytes of memory that the device and its driver share: two queues, two arrays of events.
pub const MEMORY_LEN: usize = 8192;

/// How far a driver is with its device's reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entries of the event queue that are done with, modulo 2³².
    taken: u32,
    /// Events that uinput had been given by then, modulo 2³².
    written: u32,
}

impl Progress {
    /// As one number, for a record that is written with one store.
    pub fn pack(self) -> u64 {
        u64::from(self.taken) << 32 | u64::from(self.written)
    }

    /// From that number.
    pub fn unpack(packed: u64) -> Self {
        Progress { taken: (packed >> 32) as u32, written: packed as u32 }
    }
}

/// A running device.
pub struct Input<T: Transport, M: DmaMemory> {
    // Dropped first, which resets the device: then nothing writes to the memory below any more.
    device: Device<T>,
    events: Virtqueue<Part<M>, u16>,
    status: Virtqueue<Part<M>, u16>,
    event_memory: Part<M>,
    status_memory: Part<M>,
    free_status: Vec<u16>,
    /// Up to where the buffers are the device's again.
    done: Progress,
    /// Up to where packets are complete.
    complete: Progress,
    /// Up to where the queue was read.
    seen: Progress,
    /// Events that a predecessor has written and that are read again.
    skip: u32,
}

/// One buffer of a memory that is an array of events: a number below [`EVENTS`].
fn address<M: DmaMemory>(memory: &M, slot: u16) -> u64 {
    memory.segments()[0].address + u64::from(slot) * EVENT_SIZE as u64
}

fn event_buffer<M: DmaMemory>(memory: &M, slot: u16) -> Buffer {
    Buffer::writable(address(memory, slot), EVENT_SIZE as u32)
}

/// The memory of the events in both directions, which is the arena's first.
fn event_memories<M: DmaMemory>(arena: &Arena<M>) -> Result<(Part<M>, Part<M>)> {
    let bytes = usize::from(EVENTS) * EVENT_SIZE;
    Ok((arena.alloc_contiguous(bytes)?, arena.alloc_contiguous(bytes)?))
}

impl<T: Transport, M: DmaMemory> Input<T, M> {
    /// Brings the device up and asks it what it is; it reports nothing before [`Input::start`]. `memory` has at least
    /// [`MEMORY_LEN`] bytes in one segment.
    ///
    /// # Errors
    /// It is no input device, or breaks the protocol.
    pub fn new(transport: T, memory: Rc<M>, address: &str, parent: &str) -> Result<(Self, Blueprint)> {
        if transport.device_type() != DEVICE_TYPE {
            return Err(Error::Transport("not an input device"));
        }
        let mut device = Device::negotiate(transport, Features::empty(), Features::empty())?;
        let blueprint = describe(&mut device, address, parent)?;
        let arena = Arena::new(memory);
        let (event_memory, status_memory) = event_memories(&arena)?;
        let events = device.queue(&arena, EVENT_QUEUE, EVENTS)?;
        let status = device.queue(&arena, STATUS_QUEUE, EVENTS)?;
        Ok((Self::with(device, events, status, event_memory, status_memory), blueprint))
    }

    fn with(
        device: Device<T>,
        events: Virtqueue<Part<M>, u16>,
        status: Virtqueue<Part<M>, u16>,
        event_memory: Part<M>,
        status_memory: Part<M>,
    ) -> Self {
        Input {
            device,
            free_status: (0..status.size()).collect(),
            events,
            status,
            event_memory,
            status_memory,
            done: Progress::default(),
            complete: Progress::default(),
            seen: Progress::default(),
            skip: 0,
        }
    }

    /// Takes over a device that runs, and the memory that it runs with. `progress` is what the predecessor recorded last, and
    /// `written` how many events uinput has really been given.
    ///
    /// # Errors
    /// It does not run any more, or not as the predecessor left it.
    pub fn resume(transport: T, memory: Rc<M>, progress: Progress, written: u32) -> Result<Self> {
        if transport.device_type() != DEVICE_TYPE {
            return Err(Error::Transport("not an input device"));
        }
        let mut device = Device::resume(transport)?;
        let arena = Arena::new(memory);
        let (event_memory, status_memory) = event_memories(&arena)?;
        let buffer = |slot| event_buffer(&event_memory, slot);
        let events = device.resume_filled(&arena, EVENT_QUEUE, EVENTS, progress.taken as u16, buffer)?;
        let status = device.resume_idle(&arena, STATUS_QUEUE, EVENTS)?;
        let mut input = Self::with(device, events, status, event_memory, status_memory);
        (input.done, input.complete, input.seen) = (progress, progress, progress);
        // Fewer than recorded: of a packet longer than the queue, whose beginning is lost.
        let ahead = written.wrapping_sub(progress.written) as i32;
        input.skip = ahead.max(0).cast_unsigned();
        input.device.kick(&mut input.events);
        input.device.kick(&mut input.status);
        Ok(input)
    }

    /// Lets the device report; `written` is how many events uinput has been given already.
    ///
    /// # Errors
    /// It breaks the protocol.
    pub fn start(&mut self, written: u32) -> Result<Progress> {
        let memory = &self.event_memory;
        self.events.fill(|slot| event_buffer(memory, slot))?;
        self.done.written = written;
        (self.complete, self.seen) = (self.done, self.done);
        self.device.start()?;
        self.device.kick(&mut self.events);
        Ok(self.done)
    }

    /// The device's transport.
    pub fn transport(&self) -> &T {
        self.device.transport()
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

    /// Takes what the device has reported and the LEDs it has set. The complete packets are to be sent, and then
    /// [`Input::delivered`] is to be called.
    ///
    /// # Errors
    /// It breaks the protocol.
    pub fn take(&mut self, packets: &mut Packets) -> Result<()> {
        self.take_status()?;
        while let Some(used) = self.events.hold()? {
            self.seen.taken = self.seen.taken.wrapping_add(1);
            self.collect(&used, packets);
            // A packet that is longer than the queue goes on only when its beginning is given back.
            if self.events.held() == usize::from(self.events.size()) {
                self.complete = self.seen;
            }
        }
        Ok(())
    }

    fn collect(&mut self, used: &Used<u16>, packets: &mut Packets) {
        let mut event = [0; EVENT_SIZE];
        self.event_memory.read(usize::from(used.token) * EVENT_SIZE, &mut event);
        if used.written < EVENT_SIZE as u32 {
            return;
        }
        let [k0, k1, c0, c1, value @ ..] = event;
        let (kind, code) = (u16::from_le_bytes([k0, k1]), u16::from_le_bytes([c0, c1]));
        self.seen.written = self.seen.written.wrapping_add(1);
        match self.skip.checked_sub(1) {
            Some(left) => self.skip = left,
            None => packets.push(kind, code, i32::from_le_bytes(value)),
        }
        let mut ends = kind == EV_SYN && code == SYN_REPORT;
        if packets.len() > PACKET_MAX {
            packets.sync();
            self.seen.written = self.seen.written.wrapping_add(1);
            ends = true;
        }
        if ends {
            self.complete = self.seen;
        }
    }

    /// The complete packets are with uinput: gives their buffers back, once `record` has recorded the progress where a
    /// successor finds it.
    pub fn delivered(&mut self, record: impl FnOnce(Progress)) {
        if self.complete == self.done {
            return;
        }
        record(self.complete);
        for _ in 0..self.complete.taken.wrapping_sub(self.done.taken) {
            self.events.give_back();
        }
        self.done = self.complete;
        self.device.kick(&mut self.events);
    }

    fn take_status(&mut self) -> Result<()> {
        while let Some(used) = self.status.pop()? {
            self.free_status.push(used.token);
        }
        Ok(())
    }

    /// Passes on what a program asks of the device (LEDs). Says whether there was room.
    ///
    /// # Errors
    /// It breaks the protocol.
    pub fn send(&mut self, event: &InputEvent) -> Result<bool> {
        self.take_status()?;
        if self.status.free() == 0 {
            return Ok(false);
        }
        let Some(slot) = self.free_status.pop() else { return Ok(false) };
        let mut bytes = [0; EVENT_SIZE];
        bytes[..2].copy_from_slice(&event.kind.to_le_bytes());
        bytes[2..4].copy_from_slice(&event.code.to_le_bytes());
        bytes[4..].copy_from_slice(&event.value.to_le_bytes());
        self.status_memory.write(usize::from(slot) * EVENT_SIZE, &bytes);
        let buffer = Buffer::readable(address(&self.status_memory, slot), EVENT_SIZE as u32);
        self.status.add(&[buffer], slot)?;
        self.device.kick(&mut self.status);
        Ok(true)
    }
}
