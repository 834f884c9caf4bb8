//! [`Device`]: requests to virtqueues and back; what outlives the server.

use alloc::{
    boxed::Box,
    collections::{BTreeSet, VecDeque},
    format,
    string::String,
    sync::Arc,
    vec::Vec,
};

use linux_uapi::vduse as abi;
use linux_uapi::virtio_blk::{self as blk, feature};
use linux_uapi::zerocopy::FromBytes;
use ursa_hal::PAGE_SIZE;
use ursa_hal::mm::{Frame, FrameRun};
use ursa_hal::sync::{Once, SpinLock};

use super::queue::{self, Broken, Queue};
use crate::block::{Backend, Batch, Disk, Limits, Op, Request, Spec};
use crate::device as model;
use crate::ipc::eventfd::EventFd;
use crate::mm::MemoryObject;
use crate::wait::{Mutex, WaitQueue};
use crate::{Errno, Result, sched};

/// Where the server sees the shared memory: not at 0, which is what a wrong address often is.
pub const IOVA: u64 = 1 << 20;
/// What the kernel, as the driver, makes use of.
const SUPPORTED: u64 = feature::SIZE_MAX
    | feature::SEG_MAX
    | feature::RO
    | feature::BLK_SIZE
    | feature::FLUSH
    | feature::TOPOLOGY
    | feature::MQ
    | feature::DISCARD
    | feature::WRITE_ZEROES
    | feature::VERSION_1
    | feature::ACCESS_PLATFORM;
/// Virtio's device status, step by step.
pub const STATUSES: [u8; 5] = [0, 1, 3, 0xb, 0xf];
const FEATURES_OK: u8 = 0xb;
const DRIVER_OK: u8 = 0xf;
/// Linux's usual number for virtblk.
const MAJOR: u32 = 254;
const MINORS: u32 = 16;
/// More than a machine has disks; and what 12 bits of minors hold.
const DISKS_MAX: u32 = 1 << 12;
/// The most queues that are used.
const QUEUES_USED_MAX: usize = 8;

static TAKEN: SpinLock<BTreeSet<u32>> = SpinLock::new(BTreeSet::new());

/// A queue as the server set it up.
#[derive(Default)]
pub struct Setup {
    /// The most entries; 0: not set up.
    pub max_size: u16,
    /// What the server waits for.
    pub kick: Option<Arc<EventFd>>,
    /// It was to be told while there was nothing to tell it with.
    pub kicked: bool,
}

/// How far the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nobody serves, or not all is set up.
    Idle,
    /// Statuses are being agreed on.
    Starting,
    /// Requests flow.
    Running,
    /// The server broke the protocol: nothing flows until the next one.
    Broken,
}

/// What changes.
pub struct State {
    pub connected: bool,
    /// Being destroyed.
    pub ending: bool,
    pub phase: Phase,
    pub status: u8,
    pub setups: Vec<Setup>,
    pub config: Vec<u8>,
    /// What was agreed on.
    pub features: u64,
    /// The queues in use, from the first attachment on.
    queues: Vec<Queue>,
    object: Option<Arc<MemoryObject>>,
    waiting: VecDeque<Box<Request>>,
    sequence: u64,
    next_queue: usize,
    /// The disk is there, or on its way.
    published: bool,
}

/// A device that a process serves.
pub struct Device {
    pub name: String,
    pub minor: u32,
    offered: u64,
    pub state: Mutex<State>,
    pub messages: SpinLock<super::server::Messages>,
    pub told: Arc<WaitQueue>,
    disk: Mutex<Option<(Arc<Disk>, u32)>>,
    pub shown: Once<Arc<model::Device>>,
    serial: Once<String>,
    me: alloc::sync::Weak<Device>,
}

type Done = Vec<(Box<Request>, Result)>;

impl Device {
    pub fn new(name: &str, minor: u32, config: &abi::DevConfig, space: Vec<u8>) -> Arc<Device> {
        let state = State {
            connected: false,
            ending: false,
            phase: Phase::Idle,
            status: 0,
            setups: (0..config.vq_num).map(|_| Setup::default()).collect(),
            config: space,
            features: 0,
            queues: Vec::new(),
            object: None,
            waiting: VecDeque::new(),
            sequence: 0,
            next_queue: 0,
            published: false,
        };
        Arc::new_cyclic(|me| Device {
            name: name.into(),
            minor,
            offered: config.features,
            state: Mutex::new(state),
            messages: SpinLock::new(super::server::Messages::default()),
            told: Arc::new(WaitQueue::new()),
            disk: Mutex::new(None),
            shown: Once::new(),
            serial: Once::new(),
            me: me.clone(),
        })
    }

    /// The next step towards a running device, when the server has taken the last one.
    pub fn advance(&self, state: &mut State) -> Result {
        let place = match state.phase {
            Phase::Starting => STATUSES.iter().position(|status| *status == state.status).map_or(0, |at| at + 1),
            _ => 0,
        };
        state.phase = Phase::Starting;
        let Some(next) = STATUSES.get(place).copied() else {
            self.run(state);
            return Ok(());
        };
        match next {
            FEATURES_OK => state.features = self.offered & SUPPORTED,
            DRIVER_OK => self.set_up(state)?,
            _ => {}
        }
        self.messages.lock().ask_status(next);
        self.told.wake_all();
        Ok(())
    }

    /// Makes the memory if there is none, and the rings empty.
    fn set_up(&self, state: &mut State) -> Result {
        if state.queues.is_empty() {
            let config = blk_config(&state.config);
            let many = if state.features & feature::MQ != 0 { usize::from(config.num_queues).max(1) } else { 1 };
            let used = many.min(state.setups.len()).min(ursa_hal::smp::cpu_count() as usize).clamp(1, QUEUES_USED_MAX);
            let frames = memory(used * queue::PAGES)?;
            for (index, pages) in frames.chunks(queue::PAGES).enumerate() {
                let size = state.setups[index].max_size.min(queue::SIZE_MAX);
                let size = 1 << size.max(1).ilog2();
                if size < queue::SIZE_MIN {
                    state.queues.clear();
                    return Err(Errno::EINVAL);
                }
                let base = IOVA + (index * queue::PAGES * PAGE_SIZE) as u64;
                state.queues.push(Queue::new(base, pages.to_vec(), size));
            }
            state.object = Some(MemoryObject::fixed(frames));
        }
        // Whoever served before has stopped: what it left undone is done again, in its order, before all else.
        let mut again: Vec<(u64, Box<Request>)> = state.queues.iter_mut().flat_map(Queue::reset).collect();
        again.sort_by_key(|(sequence, _)| *sequence);
        if !again.is_empty() {
            ursa_hal::info!("{}: {} requests are sent again", self.name, again.len());
        }
        for (_, request) in again.into_iter().rev() {
            state.waiting.push_front(request);
        }
        Ok(())
    }

    fn run(&self, state: &mut State) {
        state.phase = Phase::Running;
        if !state.published {
            state.published = true;
            let me = self.me.upgrade();
            // The server's own thread must be free to answer while partitions are read.
            let started = me.is_some_and(|me| sched::spawn_kernel("vduse", move || me.publish()).is_some());
            state.published = started;
        }
        self.pump(state);
    }

    fn ask_serial(&self) -> Option<String> {
        let frame = crate::mm::reclaim::alloc_zeroed().ok()?;
        let batch = Batch::new();
        let bytes = blk::ID_BYTES as u64;
        self.submit(Request::new(Op::Identify, 0, bytes, alloc::vec![frame.clone()], &batch, Vec::new()));
        batch.wait().ok()?;
        let mut id = [0; blk::ID_BYTES];
        frame.read(0, &mut id);
        let end = id.iter().position(|byte| *byte == 0).unwrap_or(id.len());
        let text = String::from_utf8_lossy(&id[..end]).replace(char::is_control, "");
        (!text.is_empty()).then_some(text)
    }

    fn publish(self: Arc<Self>) {
        let spec = {
            let state = self.state.lock();
            let (config, features) = (blk_config(&state.config), state.features);
            let entries = state.queues.iter().map(Queue::size).min().unwrap_or(queue::SIZE_MIN);
            Limits::of(&config, features, entries).map(|limits| (config.sectors(), limits))
        };
        let Some((sectors, limits)) = spec else {
            ursa_hal::error!("vduse: {}: its configuration is that of no disk", self.name);
            return;
        };
        if let Some(serial) = self.ask_serial() {
            self.serial.call_once(|| serial);
        }
        let number = {
            let mut taken = TAKEN.lock();
            let free = (0..DISKS_MAX).find(|number| !taken.contains(number));
            if let Some(free) = free {
                taken.insert(free);
            }
            free
        };
        let Some(number) = number else { return };
        let spec = Spec {
            name: disk_name(number),
            major: MAJOR,
            minor: number * MINORS,
            minors: MINORS,
            family: "virtblk",
            sectors,
            limits,
            backend: self.clone(),
        };
        match Disk::publish(spec) {
            Ok(disk) => {
                ursa_hal::info!("{}: {} MiB, served as {}", disk.name(), sectors >> 11, self.name);
                let mut slot = self.disk.lock();
                if self.state.lock().ending {
                    drop(slot);
                    disk.remove();
                    TAKEN.lock().remove(&number);
                } else {
                    *slot = Some((disk, number));
                }
            }
            Err(error) => {
                ursa_hal::error!("vduse: {}: no disk can be made of it: {error}", self.name);
                TAKEN.lock().remove(&number);
            }
        }
    }

    /// The memory that the server sees, once there is any.
    pub fn object(state: &State) -> Option<&Arc<MemoryObject>> {
        state.object.as_ref()
    }

    /// Queue `index`, if it is in use.
    pub fn queue(state: &State, index: usize) -> Option<&Queue> {
        state.queues.get(index)
    }

    /// Gives the server as much as it has room for.
    fn pump(&self, state: &mut State) {
        if state.phase != Phase::Running {
            return;
        }
        let mut touched = [false; QUEUES_USED_MAX];
        'requests: while let Some(request) = state.waiting.pop_front() {
            // Order matters where both touch one place: then nothing passes by.
            if state.queues.iter().any(|queue| queue.conflicts(&request)) {
                state.waiting.push_front(request);
                break;
            }
            let mut request = request;
            for _ in 0..state.queues.len() {
                let index = state.next_queue % state.queues.len();
                match state.queues[index].add(request, state.sequence) {
                    Ok(()) => {
                        state.sequence += 1;
                        touched[index] = true;
                        // A queue's neighbour has a CPU of its own at the server, if it likes.
                        state.next_queue = index + 1;
                        continue 'requests;
                    }
                    Err(back) => {
                        request = back;
                        state.next_queue = index + 1;
                    }
                }
            }
            state.waiting.push_front(request);
            break;
        }
        for (index, queue) in state.queues.iter().enumerate().filter(|(index, _)| touched[*index]) {
            if queue.publish() {
                match &state.setups[index].kick {
                    Some(kick) => kick.signal(1),
                    None => state.setups[index].kicked = true,
                }
            }
        }
    }

    /// The server says that it has used entries of queue `index`.
    ///
    /// # Errors
    /// `EINVAL` for a queue that is not in use.
    pub fn interrupt(&self, index: usize) -> Result {
        let mut done = Done::new();
        {
            let mut state = self.state.lock();
            if index >= state.setups.len() || state.phase == Phase::Idle {
                return Err(Errno::EINVAL);
            }
            if state.phase != Phase::Running || index >= state.queues.len() {
                return Ok(());
            }
            loop {
                match state.queues[index].take_used() {
                    Ok(Some(used)) => done.push(used),
                    Ok(None) => break,
                    Err(Broken(what)) => {
                        ursa_hal::warn!("vduse: {}: the server broke the protocol: {what}", self.name);
                        state.phase = Phase::Broken;
                        break;
                    }
                }
            }
            self.pump(&mut state);
        }
        for (request, result) in done {
            request.complete(result);
        }
        Ok(())
    }

    /// The server changed the configuration: the size may be another.
    ///
    /// # Errors
    /// `EINVAL` before the device runs.
    pub fn config_changed(&self) -> Result {
        let sectors = {
            let state = self.state.lock();
            if state.phase != Phase::Running {
                return Err(Errno::EINVAL);
            }
            blk_config(&state.config).sectors()
        };
        if let Some((disk, _)) = &*self.disk.lock() {
            disk.set_sectors(sectors);
        }
        Ok(())
    }

    /// The server is gone. What it had waits for the next.
    pub fn disconnect(&self) {
        let mut state = self.state.lock();
        state.connected = false;
        state.phase = Phase::Idle;
        state.status = 0;
        for setup in &mut state.setups {
            *setup = Setup::default();
        }
        let left: usize = state.queues.iter().map(|queue| usize::from(queue.flights())).sum();
        if state.published && !state.ending {
            ursa_hal::info!("vduse: {}: the server is gone, {left} requests wait for the next", self.name);
        }
        // Before anybody else can connect.
        *self.messages.lock() = super::server::Messages::default();
    }

    /// The first half of destroying: nobody connects any more.
    ///
    /// # Errors
    /// `EBUSY` while it is served.
    pub fn begin_end(&self) -> Result {
        let mut state = self.state.lock();
        if state.connected {
            return Err(Errno::EBUSY);
        }
        state.ending = true;
        Ok(())
    }

    /// The second half: the disk goes, and all requests fail.
    pub fn end(&self) {
        let requests = {
            let mut state = self.state.lock();
            let mut requests: Vec<Box<Request>> = state.waiting.drain(..).collect();
            requests.extend(state.queues.iter_mut().flat_map(Queue::reset).map(|(_, request)| request));
            requests
        };
        drop(requests);
        if let Some((disk, number)) = self.disk.lock().take() {
            disk.remove();
            TAKEN.lock().remove(&number);
        }
        if let Some(shown) = self.shown.get() {
            shown.unregister();
        }
    }
}

impl Backend for Device {
    fn submit(&self, request: Box<Request>) {
        let mut state = self.state.lock();
        if state.ending {
            drop(state);
            return request.complete(Err(Errno::EIO));
        }
        state.waiting.push_back(request);
        self.pump(&mut state);
    }

    fn serial(&self) -> Option<String> {
        self.serial.get().cloned()
    }
}

/// The device's configuration, as far as there is one; the rest is zeroes.
pub fn blk_config(space: &[u8]) -> blk::Config {
    let mut bytes = [0; size_of::<blk::Config>()];
    let n = space.len().min(bytes.len());
    bytes[..n].copy_from_slice(&space[..n]);
    blk::Config::read_from_bytes(&bytes).unwrap_or_default()
}

/// `vda` … `vdz`, `vdaa` …
fn disk_name(number: u32) -> String {
    let (mut letters, mut left) = (Vec::new(), number + 1);
    while left > 0 {
        letters.push(char::from(b'a' + ((left - 1) % 26) as u8));
        left = (left - 1) / 26;
    }
    format!("vd{}", letters.into_iter().rev().collect::<String>())
}

/// `pages` zeroed frames, in long runs where there are some.
fn memory(pages: usize) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    frames.try_reserve_exact(pages).map_err(|_| Errno::ENOMEM)?;
    let mut run = 128;
    while frames.len() < pages {
        run = run.min(pages - frames.len());
        match FrameRun::alloc_zeroed(run, 1, None) {
            Some(found) => frames.extend(found.into_frames()),
            None if run > 1 => run /= 2,
            None => return Err(Errno::ENOMEM),
        }
    }
    Ok(frames)
}

impl Limits {
    /// What a virtio block device says of itself. `None` for what cannot be. `entries`: of its smallest queue.
    fn of(config: &blk::Config, features: u64, entries: u16) -> Option<Limits> {
        let has = |bit: u64| features & bit != 0;
        let block = if has(feature::BLK_SIZE) { config.blk_size } else { 512 };
        if !block.is_power_of_two() || !(512..=PAGE_SIZE as u32).contains(&block) {
            return None;
        }
        let topology = has(feature::TOPOLOGY);
        let exponent = if topology { u32::from(config.physical_block_exp).min(8) } else { 0 };
        let page = PAGE_SIZE as u64;
        // As many pages as have a descriptor each when memory is in pieces, beside header and status.
        let mut pages = u64::from(entries - 2).min(64);
        if has(feature::SEG_MAX) && config.seg_max > 0 {
            pages = pages.min(config.seg_max.into());
        }
        let mut max_bytes = pages * page;
        if has(feature::SIZE_MAX) {
            // A segment may be a run of pages: then the whole request has to fit into one.
            max_bytes = max_bytes.min(u64::from(config.size_max) / page * page);
        }
        if max_bytes < page {
            return None;
        }
        let sectors = u64::from(block) / 512;
        let whole = |limit: u32| u64::from(limit) / sectors * sectors;
        Some(Limits {
            logical_block: block,
            physical_block: block << exponent,
            io_min: if topology { u32::from(config.min_io_size).max(1).saturating_mul(block) } else { block },
            io_opt: if topology { config.opt_io_size.saturating_mul(block) } else { 0 },
            max_bytes,
            max_discard: if has(feature::DISCARD) { whole(config.max_discard_sectors) } else { 0 },
            discard_granularity: match has(feature::DISCARD) {
                true => config.discard_sector_alignment.saturating_mul(512).max(block),
                false => 0,
            },
            max_write_zeroes: if has(feature::WRITE_ZEROES) { whole(config.max_write_zeroes_sectors) } else { 0 },
            write_cache: has(feature::FLUSH),
            read_only: has(feature::RO),
        })
    }
}
