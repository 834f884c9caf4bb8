//! The command layer: virtio-gpu's commands over its two queues.
//!
//! [`Gpu`] turns method calls into commands, keeps order, and turns answers into [`Done`] records. Commands of the control
//! queue run in the order of the calls; the device works on them while the driver goes on, and only those that carry a
//! fence are reported. What does not fit in the queue waits in a backlog, so a call never blocks and never fails.
//!
//! Commands and answers lie in slots of one DMA buffer; the few that are longer (many backing segments, display
//! information, EDID) get a buffer of their own. Memory behind a resource is held by the command that gives it up until
//! the device has answered it.

use std::{
    collections::VecDeque,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio::{Buffer, Device, DmaAllocator, DmaMemory, Features, Segment, Transport, Virtqueue};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::abi::{self, Display, Header, Rect, kind};

const SLOT: usize = 128;
const REQUEST_MAX: usize = 64;
const ANSWER: usize = size_of::<Header>();
/// How many errors of the device are logged.
const ERRORS_LOGGED: u32 = 20;

/// A resource of the device. Never 0, and never used for two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceId(pub u32);

/// What the device has done.
#[derive(Debug, PartialEq, Eq)]
pub enum Done {
    /// A command with this fence.
    Fence(u64),
    /// What is plugged in at each scanout, after [`Gpu::get_display_info`]; empty if the device failed to say.
    Displays(Vec<Display>),
    /// A scanout's EDID, after [`Gpu::get_edid`]; empty if there is none.
    Edid(u32, Vec<u8>),
    /// The configuration changed: the displays did.
    DisplaysChanged,
}

/// What is to happen when a command is answered.
enum Then<K> {
    Nothing,
    Fence(u64),
    Displays,
    Edid(u32),
    /// Let go of what the device does not use any more.
    Release {
        _held: K,
    },
}

enum Place<M> {
    Slot(u16),
    Own { memory: M, answer_at: usize },
}

/// A command in the device's hands.
struct Command<M, K> {
    kind: u32,
    place: Place<M>,
    answer_len: usize,
    then: Then<K>,
}

/// A command that waits for room.
struct Waiting<K> {
    request: Vec<u8>,
    answer_len: usize,
    then: Then<K>,
}

/// Slots of one queue in one DMA buffer.
struct Slots<M> {
    memory: M,
    address: u64,
    free: Vec<u16>,
}

impl<M: DmaMemory> Slots<M> {
    fn new<A: DmaAllocator<Memory = M>>(dma: &A, count: u16) -> virtio::Result<Self> {
        let memory = dma.alloc_contiguous(usize::from(count) * SLOT)?;
        let Some(&Segment { address, .. }) = memory.segments().first() else {
            return Err(virtio::Error::Transport("the command buffer has no address"));
        };
        Ok(Slots { memory, address, free: (0..count).rev().collect() })
    }
}

/// A virtio-gpu. `K` is what keeps the memory behind a resource alive.
pub struct Gpu<T: Transport, A: DmaAllocator, K> {
    // The device is reset, by being dropped, before any memory that it may reach goes.
    device: Device<T>,
    dma: A,
    control: Virtqueue<A::Memory, Command<A::Memory, K>>,
    cursor: Virtqueue<A::Memory, u16>,
    control_slots: Slots<A::Memory>,
    cursor_slots: Slots<A::Memory>,
    backlog: VecDeque<Waiting<K>>,
    scanouts: u32,
    next_resource: u32,
    next_fence: u64,
    errors: u32,
}

impl<T: Transport, A: DmaAllocator, K> Gpu<T, A, K> {
    /// Brings the device up.
    ///
    /// # Errors
    /// Those of [`virtio`]; a device without scanouts, or with more than 16, is broken.
    pub fn new(transport: T, dma: A) -> virtio::Result<Self> {
        let mut device = Device::negotiate(transport, Features::empty(), abi::F_EDID)?;
        let scanouts = device.config_u32(abi::config::NUM_SCANOUTS)?;
        if !(1..=abi::MAX_SCANOUTS as u32).contains(&scanouts) {
            return Err(virtio::Error::Broken("not 1 to 16 scanouts"));
        }
        let mut control = device.queue(&dma, abi::CONTROL_QUEUE, 256)?;
        let cursor = device.queue(&dma, abi::CURSOR_QUEUE, 16)?;
        if control.size() < 2 || cursor.size() < 2 {
            return Err(virtio::Error::NoQueue(abi::CONTROL_QUEUE));
        }
        // A frame is several commands, and the last one is what somebody waits for.
        control.set_batched(true);
        let control_slots = Slots::new(&dma, control.size() / 2)?;
        let cursor_slots = Slots::new(&dma, cursor.size() / 2)?;
        device.start()?;
        Ok(Gpu {
            device,
            dma,
            control,
            cursor,
            control_slots,
            cursor_slots,
            backlog: VecDeque::new(),
            scanouts,
            next_resource: 1,
            next_fence: 1,
            errors: 0,
        })
    }

    /// How many scanouts there are.
    pub fn scanouts(&self) -> u32 {
        self.scanouts
    }

    /// Whether the device knows EDIDs.
    pub fn has_edid(&self) -> bool {
        self.device.features().contains(abi::F_EDID)
    }

    /// How many commands wait for room in the queue.
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// Where memory comes from.
    pub fn dma(&self) -> &A {
        &self.dma
    }

    /// Descriptors that are readable when [`Gpu::service`] has something to do.
    pub fn event_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.device.transport().interrupt_fds()
    }

    /// Makes a picture of `width` by `height` in the device, of a 32-bit format.
    pub fn create_2d(&mut self, format: u32, width: u32, height: u32) -> ResourceId {
        let resource_id = self.next_resource;
        // Four thousand million buffers later the first is long gone; 0 means "none".
        self.next_resource = self.next_resource.checked_add(1).unwrap_or(1);
        let header = Header::new(kind::RESOURCE_CREATE_2D);
        let command = abi::ResourceCreate2d { header, resource_id, format, width, height };
        self.submit(command.as_bytes(), ANSWER, Then::Nothing);
        ResourceId(resource_id)
    }

    /// Tells the device where in memory the resource's pixels are.
    pub fn attach_backing(&mut self, resource: ResourceId, segments: &[Segment]) {
        // An entry's length has 32 bits.
        let part = 1_u64 << 31;
        let entries: Vec<abi::MemEntry> = segments
            .iter()
            .flat_map(|segment| {
                (0..segment.len.div_ceil(part)).map(move |place| abi::MemEntry {
                    address: segment.address + place * part,
                    length: (segment.len - place * part).min(part) as u32,
                    padding: 0,
                })
            })
            .collect();
        let header = Header::new(kind::RESOURCE_ATTACH_BACKING);
        let command = abi::AttachBacking { header, resource_id: resource.0, nr_entries: entries.len() as u32 };
        let mut request = command.as_bytes().to_vec();
        request.extend_from_slice(entries.as_bytes());
        self.submit(&request, ANSWER, Then::Nothing);
    }

    /// Gives a resource up; `held` is dropped when the device has.
    pub fn unref(&mut self, resource: ResourceId, held: K) {
        let header = Header::new(kind::RESOURCE_UNREF);
        let command = abi::ResourceUnref { header, resource_id: resource.0, padding: 0 };
        self.submit(command.as_bytes(), ANSWER, Then::Release { _held: held });
    }

    /// Shows part of a resource on a scanout, or nothing.
    pub fn set_scanout(&mut self, scanout: u32, shown: Option<(ResourceId, Rect)>) {
        let (resource_id, r) = shown.map_or((0, Rect::default()), |(resource, r)| (resource.0, r));
        let header = Header::new(kind::SET_SCANOUT);
        let command = abi::SetScanout { header, r, scanout_id: scanout, resource_id };
        self.submit(command.as_bytes(), ANSWER, Then::Nothing);
    }

    /// Brings a rectangle of a resource over from memory; `offset` is where its first pixel lies in the backing.
    pub fn transfer(&mut self, resource: ResourceId, r: Rect, offset: u64) {
        let header = Header::new(kind::TRANSFER_TO_HOST_2D);
        let command = abi::TransferToHost2d { header, r, offset, resource_id: resource.0, padding: 0 };
        self.submit(command.as_bytes(), ANSWER, Then::Nothing);
    }

    /// Brings a rectangle over as [`Gpu::transfer`], and reports when it is there.
    pub fn transfer_fenced(&mut self, resource: ResourceId, r: Rect, offset: u64) -> u64 {
        let (header, fence) = self.fenced(kind::TRANSFER_TO_HOST_2D);
        let command = abi::TransferToHost2d { header, r, offset, resource_id: resource.0, padding: 0 };
        self.submit(command.as_bytes(), ANSWER, Then::Fence(fence));
        fence
    }

    /// Brings a rectangle of a resource to the screens that show it.
    pub fn flush(&mut self, resource: ResourceId, r: Rect) {
        let header = Header::new(kind::RESOURCE_FLUSH);
        let command = abi::ResourceFlush { header, r, resource_id: resource.0, padding: 0 };
        self.submit(command.as_bytes(), ANSWER, Then::Nothing);
    }

    /// Brings a rectangle to the screens as [`Gpu::flush`], and reports when that, and all before it, is done.
    pub fn flush_fenced(&mut self, resource: ResourceId, r: Rect) -> u64 {
        let (header, fence) = self.fenced(kind::RESOURCE_FLUSH);
        let command = abi::ResourceFlush { header, r, resource_id: resource.0, padding: 0 };
        self.submit(command.as_bytes(), ANSWER, Then::Fence(fence));
        fence
    }

    /// Shows nothing on a scanout as [`Gpu::set_scanout`] does, and reports when that is done.
    pub fn disable_scanout_fenced(&mut self, scanout: u32) -> u64 {
        let (header, fence) = self.fenced(kind::SET_SCANOUT);
        let command = abi::SetScanout { header, r: Rect::default(), scanout_id: scanout, resource_id: 0 };
        self.submit(command.as_bytes(), ANSWER, Then::Fence(fence));
        fence
    }

    /// Asks what is plugged in.
    pub fn get_display_info(&mut self) {
        let header = Header::new(kind::GET_DISPLAY_INFO);
        self.submit(header.as_bytes(), size_of::<abi::DisplayInfo>(), Then::Displays);
    }

    /// Asks for a scanout's EDID.
    pub fn get_edid(&mut self, scanout: u32) {
        let command = abi::GetEdid { header: Header::new(kind::GET_EDID), scanout, padding: 0 };
        self.submit(command.as_bytes(), abi::EDID_LEN, Then::Edid(scanout));
    }

    /// Sets a cursor's picture and place, or only its place. False when the cursor queue is full: try again after the next
    /// [`Gpu::service`].
    pub fn cursor(&mut self, mut command: abi::UpdateCursor, moved_only: bool) -> bool {
        let Some(slot) = self.cursor_slots.free.pop() else { return false };
        command.header = Header::new(if moved_only { kind::MOVE_CURSOR } else { kind::UPDATE_CURSOR });
        let at = usize::from(slot) * SLOT;
        self.cursor_slots.memory.write(at, command.as_bytes());
        let address = self.cursor_slots.address + at as u64;
        // Cursor commands have no answer.
        let chain = [Buffer::readable(address, size_of::<abi::UpdateCursor>() as u32)];
        if self.cursor.add(&chain, slot).is_err() {
            self.cursor_slots.free.push(slot);
            return false;
        }
        true
    }

    /// Tells the device of all that was asked since the last time.
    pub fn kick(&mut self) {
        self.device.kick(&mut self.control);
        self.device.kick(&mut self.cursor);
    }

    /// Takes in what the device has done.
    ///
    /// # Errors
    /// The device broke the protocol or asks for a reset; it is of no more use.
    pub fn service(&mut self, done: &mut Vec<Done>) -> virtio::Result<()> {
        for index in 0..self.device.transport().interrupt_fds().len() {
            let cause = self.device.transport_mut().interrupt(index)?;
            if cause.config {
                self.config_changed(done)?;
            }
        }
        // Both rings are looked at whatever the cause was: that is two loads, and a lost cause would be a lost frame.
        while let Some(used) = self.control.pop()? {
            self.answered(used.token, used.written as usize, done);
        }
        while let Some(used) = self.cursor.pop()? {
            self.cursor_slots.free.push(used.token);
        }
        while let Some(waiting) = self.backlog.pop_front() {
            if let Err(waiting) = self.start(waiting) {
                self.backlog.push_front(waiting);
                break;
            }
        }
        self.kick();
        Ok(())
    }

    /// Takes in what the device does until `enough` says so, for the time of start-up when nobody else waits.
    ///
    /// # Errors
    /// As [`Gpu::service`], and `TimedOut`.
    pub fn wait(&mut self, timeout: Duration, mut enough: impl FnMut(&[Done]) -> bool) -> virtio::Result<Vec<Done>> {
        let end = Instant::now() + timeout;
        let mut done = Vec::new();
        self.kick();
        loop {
            self.service(&mut done)?;
            if enough(&done) {
                return Ok(done);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
            }
            let fds = self.event_fds();
            let mut polled: Vec<PollFd<'_>> =
                fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut polled, Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(std::io::Error::from(error).into()),
            }
        }
    }

    fn fenced(&mut self, kind: u32) -> (Header, u64) {
        let fence_id = self.next_fence;
        self.next_fence += 1;
        (Header { kind, flags: abi::FLAG_FENCE, fence_id, ..Default::default() }, fence_id)
    }

    fn config_changed(&mut self, done: &mut Vec<Done>) -> virtio::Result<()> {
        if self.device.needs_reset() {
            return Err(virtio::Error::Broken("the device asks for a reset"));
        }
        let events = self.device.config_u32(abi::config::EVENTS_READ)?;
        if events & abi::config::EVENT_DISPLAY != 0 {
            let clear = abi::config::EVENT_DISPLAY.to_le_bytes();
            self.device.transport_mut().config_write(abi::config::EVENTS_CLEAR, &clear)?;
            done.push(Done::DisplaysChanged);
        }
        Ok(())
    }

    fn submit(&mut self, request: &[u8], answer_len: usize, then: Then<K>) {
        let waiting = Waiting { request: request.to_vec(), answer_len, then };
        if !self.backlog.is_empty() {
            self.backlog.push_back(waiting);
        } else if let Err(waiting) = self.start(waiting) {
            self.backlog.push_back(waiting);
        }
    }

    /// Puts a command into the queue, or gives it back if there is no room.
    fn start(&mut self, waiting: Waiting<K>) -> Result<(), Waiting<K>> {
        if self.control.free() < 2 {
            return Err(waiting);
        }
        let Waiting { request, answer_len, then } = waiting;
        let kind = request.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let (place, out, back) = if request.len() <= REQUEST_MAX && answer_len <= SLOT - REQUEST_MAX {
            let Some(slot) = self.control_slots.free.pop() else { return Err(Waiting { request, answer_len, then }) };
            let at = usize::from(slot) * SLOT;
            self.control_slots.memory.write(at, &request);
            // What the device leaves unwritten is no answer.
            self.control_slots.memory.write(at + REQUEST_MAX, &[0; ANSWER]);
            let address = self.control_slots.address + at as u64;
            (Place::Slot(slot), address, address + REQUEST_MAX as u64)
        } else {
            let answer_at = request.len().next_multiple_of(8);
            let memory = match self.dma.alloc_contiguous(answer_at + answer_len) {
                Ok(memory) => memory,
                Err(error) => {
                    // The command is lost: a picture may be missing, and the log says why.
                    self.failed(format_args!("no memory for command {kind:#x}: {error}"));
                    return Ok(());
                }
            };
            memory.write(0, &request);
            let address = memory.segments().first().map_or(0, |segment| segment.address);
            (Place::Own { memory, answer_at }, address, address + answer_at as u64)
        };
        let chain = [Buffer::readable(out, request.len() as u32), Buffer::writable(back, answer_len as u32)];
        let command = Command { kind, place, answer_len, then };
        if let Err(error) = self.control.add(&chain, command) {
            self.failed(format_args!("command {kind:#x}: {error}"));
        }
        Ok(())
    }

    fn answered(&mut self, command: Command<A::Memory, K>, written: usize, done: &mut Vec<Done>) {
        let written = written.min(command.answer_len);
        let mut answer = vec![0; written];
        match command.place {
            Place::Slot(slot) => {
                self.control_slots.memory.read(usize::from(slot) * SLOT + REQUEST_MAX, &mut answer);
                self.control_slots.free.push(slot);
            }
            Place::Own { memory, answer_at } => memory.read(answer_at, &mut answer),
        }
        let header = Header::read_from_prefix(&answer).map_or_else(|_| Header::new_zeroed(), |(header, _)| header);
        let expected = match command.then {
            Then::Displays => kind::RESP_OK_DISPLAY_INFO,
            Then::Edid(_) => kind::RESP_OK_EDID,
            _ => kind::RESP_OK_NODATA,
        };
        let fine = header.kind == expected;
        if !fine {
            self.failed(format_args!("the device answers {:#x} to command {:#x}", header.kind, command.kind));
        }
        match command.then {
            Then::Nothing | Then::Release { .. } => {}
            // An error is an end as well: whoever waits would wait for ever.
            Then::Fence(fence) => done.push(Done::Fence(fence)),
            Then::Displays => {
                let info = abi::DisplayInfo::read_from_prefix(&answer).ok().filter(|_| fine);
                let displays = info.map_or(Vec::new(), |(info, _)| info.displays[..self.scanouts as usize].to_vec());
                done.push(Done::Displays(displays));
            }
            Then::Edid(scanout) => done.push(Done::Edid(scanout, if fine { edid_of(&answer) } else { Vec::new() })),
        }
    }

    fn failed(&mut self, what: std::fmt::Arguments<'_>) {
        self.errors += 1;
        if self.errors <= ERRORS_LOGGED {
            eprintln!("drm-virtio-gpu: {what}");
        }
    }
}

/// The EDID in an answer: as long as the answer says, and no longer than it is.
fn edid_of(answer: &[u8]) -> Vec<u8> {
    let Some((size, rest)) = answer.get(ANSWER..).and_then(|rest| rest.split_first_chunk::<4>()) else {
        return Vec::new();
    };
    let bytes = rest.get(4..).unwrap_or_default();
    bytes[..bytes.len().min(u32::from_le_bytes(*size) as usize)].to_vec()
}
