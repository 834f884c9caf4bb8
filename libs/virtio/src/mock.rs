//! A virtio device and DMA memory in plain memory, for the tests of drivers.
//!
//! A test writes a [`Model`] (what the device does with a chain), makes a [`MockDevice`] of it and hands
//! [`MockDevice::transport`] to its driver. The device acts when the driver rings the doorbell, or when the test calls
//! [`MockDevice::run`] and [`MockDevice::complete`]. It walks rings and descriptors as a real device does, so a driver's
//! malformed chain fails the test.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

use rustix::event::{EventfdFlags, eventfd};

use crate::{
    Cause, DmaAllocator, DmaMemory, Error, Features, QueueSetup, Result, Segment, Status, Transport, VecSegments,
};

type Data = Rc<RefCell<Vec<u8>>>;

struct View {
    data: Data,
    at: usize,
    len: usize,
}

#[derive(Default)]
struct Space {
    views: BTreeMap<u64, View>,
    next: u64,
}

/// The address space that driver and device share.
#[derive(Clone, Default)]
pub struct MockBus(Rc<RefCell<Space>>);

impl MockBus {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Memory as an allocator with scattered pages gives it: every `piece` bytes elsewhere.
    pub fn alloc_pieces(&self, len: usize, piece: usize) -> MockMemory {
        let data: Data = Rc::new(RefCell::new(vec![0; len]));
        let mut space = self.0.borrow_mut();
        let mut segments = Vec::new();
        for at in (0..len).step_by(piece) {
            let part = piece.min(len - at);
            // A hole after each piece, so that an access that runs over its end is found.
            let address = space.next + 0x1_0000;
            space.next = (address + part as u64).next_multiple_of(4096);
            space.views.insert(address, View { data: data.clone(), at, len: part });
            segments.push(Segment { address, len: part as u64 });
        }
        MockMemory { bus: self.clone(), data, segments }
    }

    fn with<R>(&self, address: u64, len: usize, act: impl FnOnce(&mut [u8]) -> R) -> R {
        let space = self.0.borrow();
        let found = space.views.range(..=address).next_back();
        let (&start, view) = found.unwrap_or_else(|| panic!("device access to unmapped address {address:#x}"));
        let offset = (address - start) as usize;
        assert!(offset + len <= view.len, "device access to {address:#x} of {len} bytes leaves its buffer");
        act(&mut view.data.borrow_mut()[view.at + offset..view.at + offset + len])
    }

    /// What the device sees at an address.
    pub fn device_read(&self, address: u64, len: usize) -> Vec<u8> {
        self.with(address, len, |bytes| bytes.to_vec())
    }

    /// The device writes memory.
    pub fn device_write(&self, address: u64, from: &[u8]) {
        self.with(address, from.len(), |bytes| bytes.copy_from_slice(from));
    }

    fn u16(&self, address: u64) -> u16 {
        self.with(address, 2, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    }
}

impl DmaAllocator for MockBus {
    type Memory = MockMemory;
    fn alloc_contiguous(&self, len: usize) -> std::io::Result<MockMemory> {
        Ok(self.alloc_pieces(len, len.max(1)))
    }
}

/// Memory that driver and device share. The device cannot reach it any more once it is dropped.
pub struct MockMemory {
    bus: MockBus,
    data: Data,
    segments: VecSegments,
}

impl Drop for MockMemory {
    fn drop(&mut self) {
        let mut space = self.bus.0.borrow_mut();
        for segment in &self.segments {
            space.views.remove(&segment.address);
        }
    }
}

impl DmaMemory for MockMemory {
    fn segments(&self) -> VecSegments {
        self.segments.clone()
    }
    fn len(&self) -> usize {
        self.data.borrow().len()
    }
    fn read_u16(&self, offset: usize) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }
    fn read_u32(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }
    fn write_u16(&self, offset: usize, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.data.borrow()[offset..offset + into.len()]);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        self.data.borrow_mut()[offset..offset + from.len()].copy_from_slice(from);
    }
}

/// What a device does.
pub trait Model {
    /// Virtio device type.
    fn device_type(&self) -> u16 {
        0
    }
    /// A chain arrived: `input` is what the device reads, `room` how much it may write. The answer completes the chain;
    /// `None` keeps it until the test calls [`MockDevice::complete`].
    fn chain(&mut self, queue: u16, input: &[u8], room: usize) -> Option<Vec<u8>>;
    /// The driver wrote to the configuration, which is already changed.
    fn config_written(&mut self, _config: &mut Vec<u8>) {}
}

/// A chain that the device holds.
#[derive(Clone, Debug)]
struct Held {
    head: u16,
    writable: Vec<(u64, u32)>,
}

struct QueueState {
    setup: QueueSetup,
    seen: u16,
    used: u16,
    held: VecDeque<Held>,
}

struct State<D> {
    bus: MockBus,
    model: D,
    features: Features,
    accepted: Features,
    status: Status,
    generation: u8,
    config: Vec<u8>,
    sizes: Vec<u16>,
    queues: Vec<Option<QueueState>>,
    pending: Cause,
    resets: u32,
    doorbells: u32,
    /// What `FEATURES_OK` may not be set with.
    refuse: bool,
    /// Whether its addresses are an IOMMU's.
    translated: bool,
}

/// The device's side, held by the test.
pub struct MockDevice<D: Model>(Rc<RefCell<State<D>>>, Rc<OwnedFd>);

impl<D: Model> Clone for MockDevice<D> {
    fn clone(&self) -> Self {
        MockDevice(self.0.clone(), self.1.clone())
    }
}

/// The driver's side.
pub struct MockTransport<D: Model>(MockDevice<D>);

impl<D: Model> MockDevice<D> {
    /// A device with the given features (`VERSION_1` is added), configuration and queue sizes.
    pub fn new(bus: &MockBus, model: D, features: Features, config: Vec<u8>, sizes: &[u16]) -> Self {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("eventfd");
        let state = State {
            bus: bus.clone(),
            model,
            features: features | Features::VERSION_1,
            accepted: Features::empty(),
            status: Status::empty(),
            generation: 0,
            config,
            sizes: sizes.to_vec(),
            queues: sizes.iter().map(|_| None).collect(),
            pending: Cause::default(),
            resets: 0,
            doorbells: 0,
            refuse: false,
            translated: false,
        };
        MockDevice(Rc::new(RefCell::new(state)), Rc::new(event))
    }

    /// The transport for the driver.
    pub fn transport(&self) -> MockTransport<D> {
        MockTransport(self.clone())
    }

    /// The model, to look at or to change.
    pub fn model<R>(&self, act: impl FnOnce(&mut D) -> R) -> R {
        act(&mut self.0.borrow_mut().model)
    }

    /// Lets the device refuse the features it is offered.
    pub fn refuse_features(&self) {
        self.0.borrow_mut().refuse = true;
    }

    /// Puts the device behind an IOMMU.
    pub fn translate(&self) {
        self.0.borrow_mut().translated = true;
    }

    /// Features that the driver accepted.
    pub fn accepted(&self) -> Features {
        self.0.borrow().accepted
    }

    /// The status as the driver set it.
    pub fn status(&self) -> Status {
        self.0.borrow().status
    }

    /// How often the driver rang.
    pub fn doorbells(&self) -> u32 {
        self.0.borrow().doorbells
    }

    /// How often the driver reset the device.
    pub fn resets(&self) -> u32 {
        self.0.borrow().resets
    }

    /// Changes the configuration and says so.
    pub fn change_config(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.0.borrow_mut();
        change(&mut state.config);
        state.generation = state.generation.wrapping_add(1);
        state.pending.config = true;
        drop(state);
        self.signal();
    }

    /// Where a queue is.
    pub fn setup(&self, queue: u16) -> QueueSetup {
        self.0.borrow().queues[usize::from(queue)].as_ref().expect("the queue is enabled").setup
    }

    /// Chains that the device holds of a queue.
    pub fn held(&self, queue: u16) -> usize {
        self.0.borrow().queues[usize::from(queue)].as_ref().map_or(0, |queue| queue.held.len())
    }

    /// Takes what the driver made available, as after a doorbell.
    pub fn run(&self, queue: u16) {
        while let Some((held, input)) = self.take(queue) {
            let room = held.writable.iter().map(|&(_, len)| len as usize).sum();
            let answer = self.0.borrow_mut().model.chain(queue, &input, room);
            let mut state = self.0.borrow_mut();
            let Some(there) = state.queues[usize::from(queue)].as_mut() else { return };
            match answer {
                // Completed in order behind what is held would be allowed; the mock completes at once.
                Some(bytes) => {
                    drop(state);
                    self.finish(queue, &held, &bytes);
                }
                None => there.held.push_back(held),
            }
        }
    }

    /// Completes the oldest chain that the device holds with `bytes`. False when it holds none.
    pub fn complete(&self, queue: u16, bytes: &[u8]) -> bool {
        let held = self.0.borrow_mut().queues[usize::from(queue)].as_mut().and_then(|queue| queue.held.pop_front());
        let Some(held) = held else { return false };
        self.finish(queue, &held, bytes);
        true
    }

    /// Puts any entry into the used ring, as a broken device may, and counts the index up by `by`.
    pub fn forge_used(&self, queue: u16, id: u32, len: u32, by: u16) {
        let mut state = self.0.borrow_mut();
        let bus = state.bus.clone();
        let there = state.queues[usize::from(queue)].as_mut().expect("the queue is enabled");
        push_used(&bus, there, id, len);
        there.used = there.used.wrapping_add(by.wrapping_sub(1));
        bus.device_write(there.setup.used + 2, &there.used.to_le_bytes());
        state.pending.queues |= 1 << queue;
        drop(state);
        self.signal();
    }

    fn signal(&self) {
        rustix::io::write(&*self.1, &1_u64.to_ne_bytes()).expect("eventfd");
    }

    fn take(&self, queue: u16) -> Option<(Held, Vec<u8>)> {
        let mut state = self.0.borrow_mut();
        if !state.status.contains(Status::DRIVER_OK) {
            return None;
        }
        let bus = state.bus.clone();
        let there = state.queues.get_mut(usize::from(queue))?.as_mut()?;
        let setup = there.setup;
        if bus.u16(setup.available + 2) == there.seen {
            return None;
        }
        let slot = u64::from(there.seen & (setup.size - 1));
        let head = bus.u16(setup.available + 4 + 2 * slot);
        there.seen = there.seen.wrapping_add(1);
        // Without EVENT_IDX nobody reads this; with it the device asks to hear of the very next entry.
        bus.device_write(setup.used + 4 + 8 * u64::from(setup.size), &there.seen.to_le_bytes());
        let (mut input, mut writable, mut at) = (Vec::new(), Vec::new(), head);
        for length in 0.. {
            assert!(length < setup.size && at < setup.size, "the chain has a loop or leaves the table");
            let descriptor = bus.device_read(setup.descriptors + 16 * u64::from(at), 16);
            let address = u64::from_le_bytes(descriptor[0..8].try_into().expect("8"));
            let len = u32::from_le_bytes(descriptor[8..12].try_into().expect("4"));
            let flags = u16::from_le_bytes([descriptor[12], descriptor[13]]);
            if flags & 2 != 0 {
                writable.push((address, len));
            } else {
                assert!(writable.is_empty(), "a readable buffer after a writable one");
                input.extend(bus.device_read(address, len as usize));
            }
            if flags & 1 == 0 {
                break;
            }
            at = u16::from_le_bytes([descriptor[14], descriptor[15]]);
        }
        Some((Held { head, writable }, input))
    }

    fn finish(&self, queue: u16, held: &Held, mut bytes: &[u8]) {
        let len = bytes.len() as u32;
        let mut state = self.0.borrow_mut();
        let bus = state.bus.clone();
        for &(address, room) in &held.writable {
            let part = bytes.len().min(room as usize);
            bus.device_write(address, &bytes[..part]);
            bytes = &bytes[part..];
        }
        assert!(bytes.is_empty(), "the model's answer is longer than the driver's buffer");
        let there = state.queues[usize::from(queue)].as_mut().expect("the queue is enabled");
        push_used(&bus, there, u32::from(held.head), len);
        state.pending.queues |= 1 << queue;
        drop(state);
        self.signal();
    }
}

fn push_used(bus: &MockBus, queue: &mut QueueState, id: u32, len: u32) {
    let slot = u64::from(queue.used & (queue.setup.size - 1));
    let mut entry = [0; 8];
    entry[..4].copy_from_slice(&id.to_le_bytes());
    entry[4..].copy_from_slice(&len.to_le_bytes());
    bus.device_write(queue.setup.used + 4 + 8 * slot, &entry);
    queue.used = queue.used.wrapping_add(1);
    bus.device_write(queue.setup.used + 2, &queue.used.to_le_bytes());
}

impl<D: Model> Transport for MockTransport<D> {
    fn device_type(&self) -> u16 {
        self.0.0.borrow().model.device_type()
    }

    fn is_translated(&self) -> bool {
        self.0.0.borrow().translated
    }

    fn status(&self) -> Status {
        self.0.status()
    }

    fn set_status(&mut self, status: Status) -> Result<()> {
        let mut state = self.0.0.borrow_mut();
        if status.is_empty() {
            state.resets += 1;
            state.queues.iter_mut().for_each(|queue| *queue = None);
            state.accepted = Features::empty();
        }
        let refused = state.refuse && status.contains(Status::FEATURES_OK);
        state.status = if refused { status - Status::FEATURES_OK } else { status };
        Ok(())
    }

    fn device_features(&mut self) -> Features {
        self.0.0.borrow().features
    }

    fn set_driver_features(&mut self, features: Features) {
        let mut state = self.0.0.borrow_mut();
        assert!(state.features.contains(features), "the driver accepts what was not offered");
        state.accepted = features;
    }

    fn driver_features(&mut self) -> Features {
        self.0.accepted()
    }

    fn queue_count(&self) -> u16 {
        self.0.0.borrow().sizes.len() as u16
    }

    fn queue_max_size(&mut self, queue: u16) -> u16 {
        self.0.0.borrow().sizes[usize::from(queue)]
    }

    fn enable_queue(&mut self, queue: u16, setup: &QueueSetup) -> Result<()> {
        let mut state = self.0.0.borrow_mut();
        assert!(state.status.contains(Status::FEATURES_OK), "queues come after the features");
        assert!(!state.status.contains(Status::DRIVER_OK), "queues come before DRIVER_OK");
        state.queues[usize::from(queue)] = Some(QueueState { setup: *setup, seen: 0, used: 0, held: VecDeque::new() });
        Ok(())
    }

    fn resume_queue(&mut self, queue: u16, setup: &QueueSetup) -> Result<()> {
        match &self.0.0.borrow().queues[usize::from(queue)] {
            Some(there) if there.setup == *setup => Ok(()),
            _ => Err(Error::Broken("the device has its queue elsewhere")),
        }
    }

    fn notify(&self, queue: u16) {
        self.0.0.borrow_mut().doorbells += 1;
        self.0.run(queue);
    }

    fn config_generation(&self) -> u8 {
        self.0.0.borrow().generation
    }

    fn config_len(&self) -> usize {
        self.0.0.borrow().config.len()
    }

    fn config_read(&self, offset: usize, into: &mut [u8]) {
        let state = self.0.0.borrow();
        for (place, byte) in into.iter_mut().enumerate() {
            *byte = state.config.get(offset + place).copied().unwrap_or(0);
        }
    }

    fn config_write(&mut self, offset: usize, from: &[u8]) -> Result<()> {
        let mut state = self.0.0.borrow_mut();
        let State { config, model, .. } = &mut *state;
        let Some(field) = config.get_mut(offset..offset + from.len()) else {
            return Err(Error::Transport("no such configuration field"));
        };
        field.copy_from_slice(from);
        model.config_written(config);
        Ok(())
    }

    fn interrupt_fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.0.1.as_fd()]
    }

    fn interrupt(&mut self, _index: usize) -> Result<Cause> {
        let _ = rustix::io::read(&*self.0.1, &mut [0_u8; 8]);
        Ok(std::mem::take(&mut self.0.0.borrow_mut().pending))
    }
}
