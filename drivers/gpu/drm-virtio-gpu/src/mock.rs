//! A virtio-gpu in memory: resources with pixels, scanouts, a cursor, and the errors of the real one.

use std::collections::BTreeMap;

use virtio::{DmaAllocator, mock::*};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    abi::{self, Header, kind},
    memory::{Backing, BackingAllocator},
};

const ERR_UNSPEC: u32 = 0x1200;
const ERR_INVALID_RESOURCE: u32 = 0x1203;
const ERR_INVALID_PARAMETER: u32 = 0x1205;

/// Memory for the driver under test: buffers come in scattered pages.
pub struct TestDma(pub MockBus);

pub struct TestBacking(MockMemory);

impl DmaAllocator for TestDma {
    type Memory = MockMemory;
    fn alloc_contiguous(&self, len: usize) -> std::io::Result<MockMemory> {
        self.0.alloc_contiguous(len)
    }
}

impl BackingAllocator for TestDma {
    type Backing = TestBacking;
    fn alloc_backing(&self, len: usize) -> std::io::Result<TestBacking> {
        if len > 1 << 30 {
            return Err(std::io::Error::from_raw_os_error(12));
        }
        Ok(TestBacking(self.0.alloc_pieces(len, 4096)))
    }
    fn adopt_backing(&self, _fd: std::os::fd::OwnedFd, len: usize) -> std::io::Result<TestBacking> {
        // The mock device's memory has no descriptors that name it: what it held is lost.
        self.alloc_backing(len)
    }
}

impl Backing for TestBacking {
    fn segments(&self) -> Vec<virtio::Segment> {
        virtio::DmaMemory::segments(&self.0)
    }
    fn to_fd(&self) -> std::io::Result<std::os::fd::OwnedFd> {
        Ok(rustix::fs::memfd_create("buffer", rustix::fs::MemfdFlags::CLOEXEC)?)
    }
}

pub struct Resource {
    pub width: u32,
    pub height: u32,
    pub pixels: Vec<u32>,
    pub backing: Vec<(u64, u32)>,
}

pub struct FakeGpu {
    pub bus: MockBus,
    pub displays: Vec<abi::Display>,
    pub edid: Vec<u8>,
    pub resources: BTreeMap<u32, Resource>,
    pub scanouts: BTreeMap<u32, (u32, abi::Rect)>,
    /// What a person sees.
    pub screens: BTreeMap<u32, Vec<u32>>,
    pub cursors: Vec<abi::UpdateCursor>,
    /// Kinds of the commands that came, and pixels that were brought over.
    pub log: Vec<u32>,
    pub transferred: u64,
    pub errors: u32,
    /// Fenced commands stay unanswered.
    pub hold_fences: bool,
    /// Garbage instead of answers.
    pub garbage: Option<Vec<u8>>,
}

impl FakeGpu {
    pub fn new(bus: &MockBus, sizes: &[(u32, u32)]) -> Self {
        let display = |&(width, height): &(u32, u32)| abi::Display {
            r: abi::Rect { x: 0, y: 0, width, height },
            enabled: u32::from(width > 0),
            flags: 0,
        };
        FakeGpu {
            bus: bus.clone(),
            displays: sizes.iter().map(display).collect(),
            edid: vec![0xed; 256],
            resources: BTreeMap::new(),
            scanouts: BTreeMap::new(),
            screens: BTreeMap::new(),
            cursors: Vec::new(),
            log: Vec::new(),
            transferred: 0,
            errors: 0,
            hold_fences: false,
            garbage: None,
        }
    }

    /// Runs of addresses in a resource's backing.
    fn walk(&self, resource: u32, mut offset: u64, mut len: usize, mut each: impl FnMut(u64, usize)) -> bool {
        for &(address, part) in &self.resources[&resource].backing {
            if offset >= u64::from(part) {
                offset -= u64::from(part);
                continue;
            }
            let run = len.min((u64::from(part) - offset) as usize);
            each(address + offset, run);
            (offset, len) = (0, len - run);
            if len == 0 {
                return true;
            }
        }
        len == 0
    }

    /// A client draws: pixels in the backing of a resource.
    pub fn draw(&self, resource: u32, offset: u64, pixels: &[u32]) {
        let bytes = pixels.as_bytes();
        let mut done = 0;
        let fits = self.walk(resource, offset, bytes.len(), |address, len| {
            self.bus.device_write(address, &bytes[done..done + len]);
            done += len;
        });
        assert!(fits, "the client draws outside its buffer");
    }

    /// A pixel in the backing of a resource.
    pub fn drawn(&self, resource: u32, offset: u64) -> u32 {
        let mut bytes = Vec::new();
        assert!(self.walk(resource, offset, 4, |address, len| bytes.extend(self.bus.device_read(address, len))));
        u32::from_le_bytes(bytes.try_into().unwrap())
    }

    fn control(&mut self, input: &[u8]) -> Result<Vec<u8>, u32> {
        let (header, _) = Header::read_from_prefix(input).unwrap();
        fn body<T: FromBytes>(input: &[u8]) -> T {
            T::read_from_prefix(input).unwrap().0
        }
        match header.kind {
            kind::GET_DISPLAY_INFO => {
                let mut info = abi::DisplayInfo { header: Header::new(0x1101), displays: Default::default() };
                info.displays[..self.displays.len()].copy_from_slice(&self.displays);
                return Ok(info.as_bytes().to_vec());
            }
            kind::GET_EDID => {
                let mut answer = Header::new(0x1104).as_bytes().to_vec();
                answer.extend((self.edid.len() as u32).to_le_bytes());
                answer.extend([0; 4]);
                answer.extend(&self.edid);
                answer.resize(abi::EDID_LEN, 0);
                return Ok(answer);
            }
            kind::RESOURCE_CREATE_2D => {
                let command: abi::ResourceCreate2d = body(input);
                let (width, height) = (command.width, command.height);
                if command.resource_id == 0 || self.resources.contains_key(&command.resource_id) {
                    return Err(ERR_INVALID_RESOURCE);
                }
                let pixels = vec![0; width as usize * height as usize];
                self.resources.insert(command.resource_id, Resource { width, height, pixels, backing: Vec::new() });
            }
            kind::RESOURCE_ATTACH_BACKING => {
                let command: abi::AttachBacking = body(input);
                let entries = &input[size_of::<abi::AttachBacking>()..];
                assert_eq!(entries.len(), command.nr_entries as usize * 16);
                let resource = self.resources.get_mut(&command.resource_id).ok_or(ERR_INVALID_RESOURCE)?;
                for entry in entries.chunks(16) {
                    let entry: abi::MemEntry = body(entry);
                    resource.backing.push((entry.address, entry.length));
                }
            }
            kind::RESOURCE_UNREF => {
                let command: abi::ResourceUnref = body(input);
                self.resources.remove(&command.resource_id).ok_or(ERR_INVALID_RESOURCE)?;
                self.scanouts.retain(|_, (shown, _)| *shown != command.resource_id);
            }
            kind::SET_SCANOUT => {
                let command: abi::SetScanout = body(input);
                if command.scanout_id as usize >= self.displays.len() {
                    return Err(ERR_UNSPEC);
                }
                if command.resource_id == 0 {
                    self.scanouts.remove(&command.scanout_id);
                    self.screens.remove(&command.scanout_id);
                } else {
                    let resource = self.resources.get(&command.resource_id).ok_or(ERR_INVALID_RESOURCE)?;
                    let r = command.r;
                    if r.width < 16 || r.x + r.width > resource.width || r.y + r.height > resource.height {
                        return Err(ERR_INVALID_PARAMETER);
                    }
                    self.scanouts.insert(command.scanout_id, (command.resource_id, r));
                    self.refresh(command.resource_id);
                }
            }
            kind::TRANSFER_TO_HOST_2D => {
                let command: abi::TransferToHost2d = body(input);
                let resource = self.resources.get(&command.resource_id).ok_or(ERR_INVALID_RESOURCE)?;
                let (stride, r) = (resource.width, command.r);
                if r.x + r.width > stride || r.y + r.height > resource.height {
                    return Err(ERR_INVALID_PARAMETER);
                }
                self.transferred += u64::from(r.width) * u64::from(r.height);
                for line in 0..r.height {
                    let mut bytes = Vec::new();
                    let offset = command.offset + u64::from(line * stride * 4);
                    let fits = self.walk(command.resource_id, offset, r.width as usize * 4, |address, len| {
                        bytes.extend(self.bus.device_read(address, len));
                    });
                    assert!(fits, "a transfer from outside the backing");
                    let at = ((r.y + line) * stride + r.x) as usize;
                    let resource = self.resources.get_mut(&command.resource_id).unwrap();
                    for (pixel, bytes) in resource.pixels[at..].iter_mut().zip(bytes.chunks(4)) {
                        *pixel = u32::from_le_bytes(bytes.try_into().unwrap());
                    }
                }
            }
            kind::RESOURCE_FLUSH => {
                let command: abi::ResourceFlush = body(input);
                self.resources.get(&command.resource_id).ok_or(ERR_INVALID_RESOURCE)?;
                self.refresh(command.resource_id);
            }
            _ => return Err(ERR_UNSPEC),
        }
        Ok(Header::new(kind::RESP_OK_NODATA).as_bytes().to_vec())
    }

    fn refresh(&mut self, resource: u32) {
        for (&scanout, &(shown, r)) in self.scanouts.iter().filter(|(_, shown)| shown.0 == resource) {
            let resource = &self.resources[&shown];
            let line = |y: u32| {
                let at = (y * resource.width + r.x) as usize;
                resource.pixels[at..at + r.width as usize].iter().copied()
            };
            self.screens.insert(scanout, (r.y..r.y + r.height).flat_map(line).collect());
        }
    }
}

impl Model for FakeGpu {
    fn chain(&mut self, queue: u16, input: &[u8], room: usize) -> Option<Vec<u8>> {
        let (header, _) = Header::read_from_prefix(input).unwrap();
        if queue == abi::CURSOR_QUEUE {
            assert_eq!(room, 0);
            self.cursors.push(abi::UpdateCursor::read_from_bytes(input).unwrap());
            return (!self.hold_fences).then(Vec::new);
        }
        self.log.push(header.kind);
        if let Some(garbage) = &self.garbage {
            return Some(garbage[..garbage.len().min(room)].to_vec());
        }
        let mut answer = self.control(input).unwrap_or_else(|error| {
            self.errors += 1;
            Header::new(error).as_bytes().to_vec()
        });
        answer.truncate(room);
        (!(self.hold_fences && header.flags & abi::FLAG_FENCE != 0)).then_some(answer)
    }

    fn config_written(&mut self, config: &mut Vec<u8>) {
        let clear = u32::from_le_bytes(config[4..8].try_into().unwrap());
        let events = u32::from_le_bytes(config[0..4].try_into().unwrap()) & !clear;
        config[0..4].copy_from_slice(&events.to_le_bytes());
        config[4..8].fill(0);
    }
}

/// A device with these displays, and its bus.
pub fn device(sizes: &[(u32, u32)], features: virtio::Features, queue: u16) -> (MockDevice<FakeGpu>, MockBus) {
    let bus = MockBus::new();
    let mut config = vec![0; 16];
    config[8] = sizes.len() as u8;
    (MockDevice::new(&bus, FakeGpu::new(&bus, sizes), features, config, &[queue, 16]), bus)
}
