//! Tests of the whole card: clients that make ioctls, a driver that remembers what it was told, and a clock that stands.

mod atomic;
mod buffers;
mod fuzz;
mod legacy;
mod masters;
mod mortal;
mod shown;
mod sync;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use scheme::fake::{FakeChannel, FakeClient, Pending};
use scheme::{Channel, Errno as IoErrno};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::driver::*;
use crate::fence::FenceSource;
use crate::modes::standard;
use crate::uapi::fourcc::*;
use crate::uapi::*;
use crate::{Card, Errno};

/// What the driver was told.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) commits: Vec<Change>,
    pub(super) buffers: BTreeMap<BufferId, u64>,
    pub(super) framebuffers: Vec<FramebufferId>,
    pub(super) refuse: bool,
    /// Commits are reported by events.
    pub(super) pending: bool,
    pub(super) events: Vec<Event>,
    pub(super) disconnected: bool,
    pub(super) edid: Option<Vec<u8>>,
}

pub(super) struct FakeDriver {
    log: Rc<RefCell<Log>>,
    features: Features,
}

impl Driver for FakeDriver {
    fn info(&self) -> Info {
        Info {
            name: "fake",
            desc: "a driver for tests",
            date: "0",
            version: (1, 2, 3),
            bus_id: "pci:0000:00:02.0".into(),
            parent: "/devices/pci0000:00/0000:00:02.0".into(),
        }
    }

    fn features(&self) -> Features {
        self.features.clone()
    }

    fn topology(&self) -> Topology {
        let plane = |kind, crtc: usize, formats: Vec<u32>, free| PlaneSpec {
            kind,
            possible_crtcs: 1 << crtc,
            formats,
            modifiers: vec![DRM_FORMAT_MOD_LINEAR],
            damage_clips: true,
            can_scale: false,
            can_position: free,
        };
        let encoder = |crtc: usize| EncoderSpec { kind: DRM_MODE_ENCODER_VIRTUAL, possible_crtcs: 1 << crtc };
        let connector = |encoder| ConnectorSpec { kind: ConnectorKind::Virtual, encoders: vec![encoder], edid: true };
        let planes = (0..2).flat_map(|crtc| {
            let primary = plane(PlaneKind::Primary, crtc, vec![DRM_FORMAT_XRGB8888, DRM_FORMAT_RGB565], false);
            [primary, plane(PlaneKind::Cursor, crtc, vec![DRM_FORMAT_ARGB8888], true)]
        });
        Topology {
            crtcs: 2,
            planes: planes.collect(),
            encoders: (0..2).map(encoder).collect(),
            connectors: (0..2).map(connector).collect(),
        }
    }

    fn create_dumb(&mut self, buffer: BufferId, request: &DumbRequest) -> Result<Buffer> {
        if request.bpp > 32 {
            return Err(Errno::EINVAL);
        }
        let pitch = request.width * request.bpp.div_ceil(8);
        let size = (u64::from(pitch) * u64::from(request.height)).next_multiple_of(4096);
        let fd = memfd_create("buffer", MemfdFlags::CLOEXEC).map_err(|_| Errno::ENOMEM)?;
        ftruncate(&fd, size).map_err(|_| Errno::ENOMEM)?;
        self.log.borrow_mut().buffers.insert(buffer, size);
        Ok(Buffer { fd, pitch, size, cache: Cache::WriteBack })
    }

    fn import(&mut self, buffer: BufferId, fd: OwnedFd, size: u64) -> Result<Buffer> {
        self.log.borrow_mut().buffers.insert(buffer, size);
        Ok(Buffer { fd, pitch: 0, size, cache: Cache::WriteBack })
    }

    fn restore_buffer(&mut self, id: BufferId, buffer: &Buffer, _request: Option<&DumbRequest>) -> Result<()> {
        self.log.borrow_mut().buffers.insert(id, buffer.size);
        Ok(())
    }

    fn destroy_buffer(&mut self, buffer: BufferId) {
        assert!(self.log.borrow_mut().buffers.remove(&buffer).is_some(), "{buffer:?} was destroyed twice");
    }

    fn create_framebuffer(&mut self, fb: &Framebuffer) -> Result<()> {
        let mut log = self.log.borrow_mut();
        assert!(
            fb.planes.iter().all(|plane| log.buffers.contains_key(&plane.buffer)),
            "a framebuffer of a dead buffer"
        );
        log.framebuffers.push(fb.id);
        Ok(())
    }

    fn destroy_framebuffer(&mut self, fb: FramebufferId) {
        let mut log = self.log.borrow_mut();
        let at = log.framebuffers.iter().position(|&id| id == fb).expect("a framebuffer is destroyed once");
        log.framebuffers.remove(at);
    }

    fn probe(&mut self, connector: usize) -> Probe {
        let log = self.log.borrow();
        Probe {
            connected: connector == 0 && !log.disconnected,
            edid: log.edid.clone(),
            preferred: Some((1024, 768)),
            ..Probe::default()
        }
    }

    fn atomic_check(&self, _change: &Change) -> Result<()> {
        if self.log.borrow().refuse { Err(Errno::EINVAL) } else { Ok(()) }
    }

    fn atomic_commit(&mut self, change: &Change) -> Completion {
        let mut log = self.log.borrow_mut();
        for (_, _, plane) in change.planes() {
            if let Some(fb) = &plane.fb {
                assert!(log.framebuffers.contains(&fb.id), "a dead framebuffer is shown");
            }
        }
        log.commits.push(change.clone());
        if log.pending { Completion::Pending } else { Completion::Done }
    }

    fn service(&mut self, events: &mut Vec<Event>) {
        events.append(&mut self.log.borrow_mut().events);
    }

    fn ioctl_render(&self, nr: u32) -> Option<bool> {
        [Some(true), Some(false)].get(nr as usize).copied().flatten()
    }

    fn ioctl(&mut self, call: &mut DriverIoctl<'_>) -> std::result::Result<i32, IoctlError> {
        if let Some(first) = call.data.first_mut() {
            *first = first.wrapping_add(1);
        }
        Ok(7)
    }
}

impl Drop for FakeFences {
    fn drop(&mut self) {
        // As the kernel does when their timeline is closed.
        self.open.values().for_each(signal);
    }
}

/// Fences that are eventfds: readable means signalled.
#[derive(Default)]
pub(super) struct FakeFences {
    open: BTreeMap<u64, OwnedFd>,
}

impl FenceSource for FakeFences {
    fn create(&mut self) -> std::result::Result<(OwnedFd, u64), Errno> {
        let fd = new_fence();
        let number = self.open.keys().last().map_or(1, |last| last + 1);
        self.open.insert(number, fd.try_clone().expect("a descriptor is free"));
        Ok((fd, number))
    }

    fn signal(&mut self, fence: u64) {
        let fd = self.open.remove(&fence).expect("a fence is signalled once");
        signal(&fd);
    }

    fn is_fence(&self, _fd: &OwnedFd) -> bool {
        true
    }
}

pub(super) fn new_fence() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd is made")
}

pub(super) fn signal(fd: &OwnedFd) {
    rustix::io::write(fd, &1_u64.to_ne_bytes()).expect("an eventfd takes a count");
}

pub(super) fn is_signalled(fd: &OwnedFd) -> bool {
    let mut fds = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
    let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&zero)).expect("poll works") > 0
}

/// A card, its kernel, its clock.
pub(super) struct World {
    pub(super) card: Card,
    pub(super) channel: FakeChannel,
    pub(super) log: Rc<RefCell<Log>>,
    clock: Rc<Cell<u64>>,
    features: Features,
    pub(super) restarts: usize,
}

/// A program with an open file of the card.
pub(super) struct Client {
    pub(super) program: FakeClient,
    pub(super) fh: u64,
}

/// What most tests' card can do.
pub(super) fn features() -> Features {
    Features {
        render: true,
        import: true,
        syncobj: true,
        syncobj_timeline: true,
        modifiers: true,
        vblank: true,
        gamma_size: 4,
        ..Features::default()
    }
}

/// Makes a server of a connection, of which there may have been one before.
fn attach(channel: &FakeChannel, features: &Features, log: &Rc<RefCell<Log>>, clock: &Rc<Cell<u64>>) -> Card {
    let driver = FakeDriver { log: Rc::clone(log), features: features.clone() };
    let time = Rc::clone(clock);
    let kernel: Arc<dyn Channel> = Arc::new(channel.clone());
    let clock = Box::new(move || time.get());
    let mut card = Card::attach_with(Box::new(driver), &kernel, &channel.unanswered(), clock, &|| Some(0))
        .expect("the topology and the record are good");
    card.fence_source = Box::<FakeFences>::default();
    card
}

thread_local! {
    /// The server is killed after every request.
    static MORTAL: Cell<bool> = const { Cell::new(false) };
}

/// Runs a test on a card whose server is killed after every request, whose clients do not notice.
pub(super) fn mortal(test: impl FnOnce()) {
    MORTAL.set(true);
    test();
    MORTAL.set(false);
}

impl World {
    pub(super) fn new() -> World {
        World::with(features())
    }

    pub(super) fn with(features: Features) -> World {
        let (log, clock) = (Rc::<RefCell<Log>>::default(), Rc::new(Cell::new(1_000_000_000)));
        let channel = FakeChannel::new();
        let card = attach(&channel, &features, &log, &clock);
        World { card, channel, log, clock, features, restarts: 0 }
    }

    /// The server is killed, and its successor takes over.
    pub(super) fn restart(&mut self) {
        // The device forgets everything.
        let commits = {
            let mut log = self.log.borrow_mut();
            log.buffers.clear();
            log.framebuffers.clear();
            log.events.clear();
            log.commits.len()
        };
        self.card = attach(&self.channel, &self.features, &self.log, &self.clock);
        // The commit that shows everything again is none that a test counts.
        self.log.borrow_mut().commits.truncate(commits);
        self.restarts += 1;
        self.channel.resend(&mut self.card);
    }

    /// The loop comes around after a request; the server is killed before, if this is such a test.
    pub(super) fn come_around(&mut self) {
        if MORTAL.get() {
            self.restart();
        }
        self.card.progress(&self.channel);
    }

    /// A program of its own opens the card.
    pub(super) fn open(&mut self, pid: u32, uid: u32) -> Client {
        self.open_node(pid, uid, 1)
    }

    pub(super) fn open_node(&mut self, pid: u32, uid: u32, node: u64) -> Client {
        let mut program = self.channel.client(pid);
        program.uid = uid;
        let fh = program.open(&mut self.card, node, 2).expect("the card opens");
        self.come_around();
        Client { program, fh }
    }

    pub(super) fn close(&mut self, mut client: Client) {
        client.program.close(&mut self.card, client.fh);
        self.come_around();
    }

    /// An ioctl that is answered at once or, waiting only for the end of a frame, then.
    pub(super) fn ioctl<T: IntoBytes + FromBytes + Immutable>(
        &mut self,
        client: &mut Client,
        nr: u32,
        value: &mut T,
    ) -> std::result::Result<i32, IoErrno> {
        match self.begin(client, nr, value) {
            Ok(result) => Ok(result),
            Err(Err(errno)) => Err(errno),
            Err(Ok((pending, address))) => {
                self.tick();
                let body = self.late(pending).expect("the frame's end brings the answer")?;
                if body.len() > 16 {
                    client.program.poke(address, &body[16..]).expect("the argument is there");
                }
                let bytes = client.program.peek(address, size_of::<T>()).expect("the argument is there");
                *value = T::read_from_bytes(&bytes).expect("the size is right");
                Ok(0)
            }
        }
    }

    /// An ioctl that may wait: then its number and where its argument is.
    pub(super) fn begin<T: IntoBytes + FromBytes + Immutable>(
        &mut self,
        client: &mut Client,
        nr: u32,
        value: &mut T,
    ) -> std::result::Result<i32, std::result::Result<(Pending, u64), IoErrno>> {
        let address = client.program.alloc(value.as_bytes());
        let cmd = Cmd::new(true, true, nr, size_of::<T>());
        let result = client.program.ioctl_begin(&mut self.card, client.fh, cmd.0, address);
        self.come_around();
        match result {
            Ok((result, _)) => {
                let bytes = client.program.peek(address, size_of::<T>()).expect("the argument is there");
                *value = T::read_from_bytes(&bytes).expect("the size is right");
                Ok(result)
            }
            Err(Ok(pending)) => Err(Ok((pending, address))),
            Err(Err(errno)) => Err(Err(errno)),
        }
    }

    /// The answer to a request that waited, if it has come.
    pub(super) fn late(&self, pending: Pending) -> Option<std::result::Result<Vec<u8>, IoErrno>> {
        let answer = self.channel.take_late(pending.0)?;
        // An ioctl's answer begins with its result; a failure may carry the argument all the same.
        let failed =
            |body: &[u8]| i32::read_from_prefix(body).ok().map(|(result, _)| result).filter(|&result| result < 0);
        Some(answer.and_then(|body| match failed(&body) {
            Some(result) => Err(IoErrno::from_raw_os_error(-result)),
            None => Ok(body),
        }))
    }

    /// Time passes.
    pub(super) fn pass(&mut self, nanoseconds: u64) {
        self.come_around();
        self.clock.set(self.clock.get() + nanoseconds);
        self.card.service_driver();
        self.card.progress(&self.channel);
    }

    /// A frame passes, and the test forgets the commits, which keep alive what they showed.
    pub(super) fn settle(&mut self) {
        self.tick();
        self.log.borrow_mut().commits.clear();
        self.tick();
    }

    /// A frame passes.
    pub(super) fn tick(&mut self) {
        self.pass(17_000_000);
    }

    /// A dumb buffer.
    pub(super) fn dumb(&mut self, client: &mut Client, width: u32, height: u32) -> CreateDumb {
        let mut dumb = CreateDumb { width, height, bpp: 32, ..Default::default() };
        self.ioctl(client, 0xb2, &mut dumb).expect("a buffer is made");
        dumb
    }

    /// A framebuffer of a new buffer, whose handle is closed.
    pub(super) fn fb(&mut self, client: &mut Client, width: u32, height: u32, format: u32) -> u32 {
        let dumb = self.dumb(client, width, height);
        let mut fb = FbCmd2 { width, height, pixel_format: format, ..Default::default() };
        fb.handles[0] = dumb.handle;
        fb.pitches[0] = dumb.pitch;
        self.ioctl(client, 0xb8, &mut fb).expect("a framebuffer is made");
        self.ioctl(client, 0xb4, &mut DestroyDumb { handle: dumb.handle }).expect("a handle is closed");
        fb.fb_id
    }

    /// Says that the client understands atomic commits.
    pub(super) fn go_atomic(&mut self, client: &mut Client) {
        let mut cap = SetClientCap { capability: DRM_CLIENT_CAP_ATOMIC, value: 1 };
        self.ioctl(client, 0x0d, &mut cap).expect("the capability is known");
    }

    pub(super) fn blob(&mut self, client: &mut Client, data: &[u8]) -> u32 {
        let address = client.program.alloc(data);
        let mut blob = CreateBlob { data: address, length: data.len() as u32, blob_id: 0 };
        self.ioctl(client, 0xbd, &mut blob).expect("a blob is made");
        blob.blob_id
    }

    pub(super) fn crtc(&self, index: usize) -> u32 {
        self.card.crtcs[index].id
    }

    pub(super) fn connector(&self, index: usize) -> u32 {
        self.card.connectors[index].id
    }

    pub(super) fn plane(&self, index: usize) -> u32 {
        self.card.planes[index].id
    }

    pub(super) fn property(&self, name: &str) -> u32 {
        self.card.properties.iter().find(|property| property.name == name).expect("the property exists").id
    }

    /// An atomic request from (object, property, value).
    pub(super) fn request(
        &self,
        client: &mut Client,
        props: &[(u32, &str, u64)],
        flags: u32,
        user_data: u64,
    ) -> Atomic {
        let mut objects: Vec<(u32, Vec<(u32, u64)>)> = Vec::new();
        for &(object, name, value) in props {
            let entry = (self.property(name), value);
            match objects.iter_mut().find(|(id, _)| *id == object) {
                Some((_, list)) => list.push(entry),
                None => objects.push((object, vec![entry])),
            }
        }
        let ids: Vec<u32> = objects.iter().map(|(id, _)| *id).collect();
        let counts: Vec<u32> = objects.iter().map(|(_, list)| list.len() as u32).collect();
        let keys: Vec<u32> = objects.iter().flat_map(|(_, list)| list.iter().map(|(key, _)| *key)).collect();
        let values: Vec<u64> = objects.iter().flat_map(|(_, list)| list.iter().map(|(_, value)| *value)).collect();
        Atomic {
            flags,
            count_objs: ids.len() as u32,
            objs_ptr: client.program.alloc(ids.as_bytes()),
            count_props_ptr: client.program.alloc(counts.as_bytes()),
            props_ptr: client.program.alloc(keys.as_bytes()),
            prop_values_ptr: client.program.alloc(values.as_bytes()),
            reserved: 0,
            user_data,
        }
    }

    pub(super) fn atomic(
        &mut self,
        client: &mut Client,
        props: &[(u32, &str, u64)],
        flags: u32,
    ) -> std::result::Result<i32, IoErrno> {
        let mut request = self.request(client, props, flags, 0x5eed);
        self.ioctl(client, 0xbc, &mut request)
    }

    /// The properties that light the first CRTC with a framebuffer.
    pub(super) fn lit(&self, fb: u32, mode_blob: u32) -> Vec<(u32, &'static str, u64)> {
        let (crtc, plane) = (self.crtc(0), self.plane(0));
        let mut props = vec![
            (self.connector(0), "CRTC_ID", crtc.into()),
            (crtc, "ACTIVE", 1),
            (crtc, "MODE_ID", mode_blob.into()),
            (plane, "FB_ID", fb.into()),
            (plane, "CRTC_ID", crtc.into()),
        ];
        props.extend([(plane, "CRTC_X", 0), (plane, "CRTC_Y", 0), (plane, "CRTC_W", 1024), (plane, "CRTC_H", 768)]);
        props.extend([(plane, "SRC_X", 0), (plane, "SRC_Y", 0)]);
        props.extend([(plane, "SRC_W", 1024 << 16), (plane, "SRC_H", 768 << 16)]);
        props
    }

    /// An atomic client with the first CRTC lit at 1024×768: client and framebuffer.
    pub(super) fn lit_client(&mut self) -> (Client, u32) {
        let mut client = self.open(10, 0);
        self.go_atomic(&mut client);
        let fb = self.fb(&mut client, 1024, 768, DRM_FORMAT_XRGB8888);
        let blob = self.blob(&mut client, mode().as_bytes());
        let props = self.lit(fb, blob);
        self.atomic(&mut client, &props, DRM_MODE_ATOMIC_ALLOW_MODESET).expect("the CRTC is lit");
        (client, fb)
    }

    /// The events that a client reads.
    pub(super) fn events(&mut self, client: &mut Client) -> Vec<EventVblank> {
        match client.program.read(&mut self.card, client.fh, 4096) {
            Ok(bytes) => bytes.chunks_exact(32).map(|event| EventVblank::read_from_bytes(event).expect("32")).collect(),
            Err(IoErrno::AGAIN) => Vec::new(),
            Err(errno) => panic!("read: {errno}"),
        }
    }
}

/// 1024×768 at 60 Hz.
pub(super) fn mode() -> Mode {
    standard::find_dmt(1024, 768, 60, false).expect("VESA has it")
}

#[test]
fn a_card_without_primary_planes_is_none() {
    struct Bare;
    impl Driver for Bare {
        fn info(&self) -> Info {
            FakeDriver { log: Rc::default(), features: Features::default() }.info()
        }
        fn features(&self) -> Features {
            Features::default()
        }
        fn topology(&self) -> Topology {
            Topology { crtcs: 1, ..Topology::default() }
        }
        fn create_dumb(&mut self, _: BufferId, _: &DumbRequest) -> Result<Buffer> {
            Err(Errno::ENOMEM)
        }
        fn destroy_buffer(&mut self, _: BufferId) {}
        fn probe(&mut self, _: usize) -> Probe {
            Probe::default()
        }
        fn atomic_commit(&mut self, _: &Change) -> Completion {
            Completion::Done
        }
    }
    assert!(Card::new(Box::new(Bare), 0).is_err());
}
