//! [`Card`]: a card with its mode objects, open files and what is under way, and the look-up of objects.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};

use linux_uapi::Errno;
use scheme::IoctlReply;

use crate::commit::Flight;
use crate::connector::Connector;
use crate::driver::{Buffer, BufferId, Driver, DumbRequest, Features, FramebufferId, Info, PlaneKind, Topology};
use crate::error::{Ids, Outcome};
use crate::fence::{Fence, FenceSource, SwSyncFences};
use crate::file::{Fh, File};
use crate::ioctl::Parked;
use crate::master::Master;
use crate::object::{Blob, Dead, Gem, Graveyard};
use crate::property::{self, Key, Property};
use crate::record::{Recorder, Touched};
use crate::state::{Framebuffer, PlaneState, State};
use crate::syncobj::{EventfdWait, Syncobj};
use crate::uapi::*;
use crate::vblank::Vblank;

/// The most CRTCs that a card may have: masks of them are 32 bits in the UAPI.
pub const MAX_CRTCS: usize = 32;
/// Numbers that mode objects, blobs and framebuffers may take.
pub(crate) const OBJECT_LIMIT: u32 = 1 << 24;
/// Offsets of mappable buffers begin here, past what a 32-bit client could take for an address (`drm_vma_manager.h`).
const MAP_START: u64 = 1 << 32;

/// What a number of a mode object names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    Crtc(usize),
    Connector(usize),
    Encoder(usize),
    Plane(usize),
    Property(usize),
}

impl Object {
    /// `DRM_MODE_OBJECT_*`.
    pub(crate) fn kind(self) -> u32 {
        match self {
            Object::Crtc(_) => DRM_MODE_OBJECT_CRTC,
            Object::Connector(_) => DRM_MODE_OBJECT_CONNECTOR,
            Object::Encoder(_) => DRM_MODE_OBJECT_ENCODER,
            Object::Plane(_) => DRM_MODE_OBJECT_PLANE,
            Object::Property(_) => DRM_MODE_OBJECT_PROPERTY,
        }
    }

    /// A lease hands out objects of this kind (`drm_mode_object_lease_required`).
    pub(crate) fn leasable(self) -> bool {
        matches!(self, Object::Crtc(_) | Object::Connector(_) | Object::Plane(_))
    }
}

/// A CRTC: what does not change of it, and its frame counter.
#[derive(Debug)]
pub(crate) struct Crtc {
    pub(crate) id: u32,
    pub(crate) properties: Vec<Key>,
    pub(crate) primary: usize,
    pub(crate) cursor: Option<usize>,
    /// Where the legacy interface put the cursor, shown or not.
    pub(crate) cursor_at: (i32, i32),
    pub(crate) vblank: Vblank,
    /// `VRR_ENABLED` as it was set; no driver varies the rate yet.
    pub(crate) vrr_enabled: bool,
}

/// A plane.
#[derive(Debug)]
pub(crate) struct Plane {
    pub(crate) id: u32,
    pub(crate) properties: Vec<Key>,
    /// The contents of `IN_FORMATS`.
    pub(crate) in_formats: Option<Rc<Blob>>,
}

/// What an open file of the scheme connection is.
pub(crate) enum Open {
    /// Of the card or its render node.
    Client(Box<File>),
    /// A sync object that was made a descriptor.
    Syncobj(Rc<Syncobj>),
}

/// The clock that flips and waits go by: nanoseconds, monotonic.
pub(crate) type Clock = Box<dyn Fn() -> u64>;

/// A card: the device server of its nodes.
pub struct Card {
    pub(crate) driver: Box<dyn Driver>,
    pub(crate) info: Info,
    pub(crate) features: Features,
    pub(crate) topology: Topology,
    /// `card0` is 0.
    pub(crate) index: u32,
    pub(crate) clock: Clock,
    pub(crate) fence_source: Box<dyn FenceSource>,

    pub(crate) objects: HashMap<u32, Object>,
    pub(crate) object_ids: Ids,
    pub(crate) properties: Vec<Property>,
    pub(crate) crtcs: Vec<Crtc>,
    pub(crate) planes: Vec<Plane>,
    pub(crate) encoders: Vec<u32>,
    pub(crate) connectors: Vec<Connector>,
    pub(crate) blobs: BTreeMap<u32, Weak<Blob>>,
    pub(crate) framebuffers: BTreeMap<u32, Weak<Framebuffer>>,

    /// What user space has set; the screen follows when commits complete.
    pub(crate) state: State,
    pub(crate) flights: Vec<Flight>,
    pub(crate) next_flight: u64,

    pub(crate) grave: Rc<Graveyard>,
    pub(crate) gems: HashMap<BufferId, Weak<Gem>>,
    pub(crate) gem_by_file: HashMap<(u64, u64), Weak<Gem>>,
    pub(crate) gem_by_offset: BTreeMap<u64, Weak<Gem>>,
    pub(crate) gem_names: BTreeMap<u32, Weak<Gem>>,
    pub(crate) gem_name_ids: Ids,
    pub(crate) next_buffer: u64,
    pub(crate) next_framebuffer: u64,
    pub(crate) next_offset: u64,

    pub(crate) files: BTreeMap<Fh, Open>,
    pub(crate) next_fh: Fh,
    pub(crate) masters: BTreeMap<u32, Master>,
    pub(crate) next_master: u32,
    /// Who may set modes now.
    pub(crate) master: Option<u32>,

    pub(crate) parked: Vec<Parked>,
    pub(crate) syncobj_changed: bool,
    /// Files that have become readable.
    pub(crate) readable: Vec<Fh>,
    /// A lease ended: a uevent is due.
    pub(crate) lease_event: bool,
    /// Connectors whose sysfs attributes have to be told, and user space with them.
    pub(crate) connectors_changed: Vec<usize>,
    pub(crate) eventfd_waits: Vec<EventfdWait>,
    pub(crate) watched: Vec<Weak<Fence>>,

    /// Answers to requests that waited, to be sent when what they tell of is recorded.
    pub(crate) outbox: Vec<(u64, IoctlReply)>,
    pub(crate) recorder: Option<Recorder>,
    /// Requests of before the start whose answer is under way already.
    pub(crate) resumed: BTreeSet<u64>,
    /// What a record is due for.
    pub(crate) touched: Touched,
    /// Something has happened since the last record that may have changed what is recorded.
    pub(crate) unrecorded: bool,
    pub(crate) next_syncobj: u64,
}

impl Card {
    /// A card over a driver; `index` is the number in `card0`. Connectors are probed.
    ///
    /// # Errors
    /// `EINVAL`: the driver's topology is none: a CRTC without a primary plane, an index out of range, too many objects.
    pub fn new(driver: Box<dyn Driver>, index: u32) -> Result<Card, Errno> {
        let mut card = Card::bare(driver, index, Box::new(monotonic))?;
        card.probe_first();
        Ok(card)
    }

    /// The number in `card0`.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// A card that nobody has looked at.
    pub(crate) fn bare(driver: Box<dyn Driver>, index: u32, clock: Clock) -> Result<Card, Errno> {
        let (info, features, topology) = (driver.info(), driver.features(), driver.topology());
        check_topology(&topology)?;
        let mut card = Card {
            driver,
            info,
            features,
            topology,
            index,
            clock,
            fence_source: Box::new(SwSyncFences::default()),
            objects: HashMap::new(),
            object_ids: Ids::default(),
            properties: Vec::new(),
            crtcs: Vec::new(),
            planes: Vec::new(),
            encoders: Vec::new(),
            connectors: Vec::new(),
            blobs: BTreeMap::new(),
            framebuffers: BTreeMap::new(),
            state: State::default(),
            flights: Vec::new(),
            next_flight: 1,
            grave: Rc::default(),
            gems: HashMap::new(),
            gem_by_file: HashMap::new(),
            gem_by_offset: BTreeMap::new(),
            gem_names: BTreeMap::new(),
            gem_name_ids: Ids::default(),
            next_buffer: 1,
            next_framebuffer: 1,
            next_offset: MAP_START,
            files: BTreeMap::new(),
            next_fh: 1,
            masters: BTreeMap::new(),
            next_master: 1,
            master: None,
            parked: Vec::new(),
            syncobj_changed: false,
            readable: Vec::new(),
            lease_event: false,
            connectors_changed: Vec::new(),
            eventfd_waits: Vec::new(),
            watched: Vec::new(),
            outbox: Vec::new(),
            recorder: None,
            resumed: BTreeSet::new(),
            touched: Touched::default(),
            unrecorded: true,
            next_syncobj: 1,
        };
        card.create_objects()?;
        Ok(card)
    }

    /// The first look at what is plugged in.
    pub(crate) fn probe_first(&mut self) {
        for connector in 0..self.connectors.len() {
            self.probe(connector);
        }
    }

    fn create_objects(&mut self) -> Result<(), Errno> {
        let ids = &mut self.object_ids;
        let mut failed = false;
        self.properties = property::create(
            || {
                ids.allocate(OBJECT_LIMIT).unwrap_or_else(|_| {
                    failed = true;
                    0
                })
            },
            &self.features,
            &self.topology,
        );
        if failed {
            return Err(Errno::ENOSPC);
        }
        for (index, property) in self.properties.iter().enumerate() {
            self.objects.insert(property.id, Object::Property(index));
        }
        // In the order in which Linux's drivers make them: each CRTC's planes before it.
        let mut plane_ids = vec![0; self.topology.planes.len()];
        let mut crtc_ids = Vec::new();
        for crtc in 0..self.topology.crtcs {
            for (plane, id) in plane_ids.iter_mut().enumerate() {
                let spec = &self.topology.planes[plane];
                if *id == 0 && spec.possible_crtcs.trailing_zeros() as usize == crtc {
                    *id = self.object_ids.allocate(OBJECT_LIMIT)?;
                    self.objects.insert(*id, Object::Plane(plane));
                }
            }
            let id = self.object_ids.allocate(OBJECT_LIMIT)?;
            self.objects.insert(id, Object::Crtc(crtc));
            crtc_ids.push(id);
        }
        for (plane, spec) in self.topology.planes.clone().iter().enumerate() {
            let in_formats = if self.features.modifiers && !spec.modifiers.is_empty() {
                Some(self.new_blob(property::in_formats(spec))?)
            } else {
                None
            };
            let properties = property::of_plane(spec, &self.features);
            self.planes.push(Plane { id: plane_ids[plane], properties, in_formats });
            self.state.planes.push(PlaneState::default());
        }
        for (crtc, id) in crtc_ids.into_iter().enumerate() {
            let of_kind = |kind| {
                let reaches =
                    |spec: &crate::driver::PlaneSpec| spec.kind == kind && spec.possible_crtcs & 1 << crtc != 0;
                self.topology.planes.iter().position(reaches)
            };
            let primary = of_kind(PlaneKind::Primary).ok_or(Errno::EINVAL)?;
            let cursor = of_kind(PlaneKind::Cursor);
            let properties = property::of_crtc(&self.features);
            self.crtcs.push(Crtc {
                id,
                properties,
                primary,
                cursor,
                cursor_at: (0, 0),
                vblank: Vblank::default(),
                vrr_enabled: false,
            });
            self.state.crtcs.push(Default::default());
        }
        for encoder in 0..self.topology.encoders.len() {
            let id = self.new_object(Object::Encoder(encoder))?;
            self.encoders.push(id);
        }
        let mut numbers = HashMap::new();
        for connector in 0..self.topology.connectors.len() {
            let id = self.new_object(Object::Connector(connector))?;
            let spec = self.topology.connectors[connector].clone();
            let number = numbers.entry(spec.kind as u32).and_modify(|number| *number += 1).or_insert(1);
            self.connectors.push(Connector::new(id, &spec, *number));
            self.state.connectors.push(Default::default());
        }
        Ok(())
    }

    fn new_object(&mut self, object: Object) -> Result<u32, Errno> {
        let id = self.object_ids.allocate(OBJECT_LIMIT)?;
        self.objects.insert(id, object);
        Ok(id)
    }

    /// A new blob.
    pub(crate) fn new_blob(&mut self, data: Vec<u8>) -> Result<Rc<Blob>, Errno> {
        let id = self.object_ids.allocate(OBJECT_LIMIT)?;
        let blob = Rc::new(Blob { id, data, grave: Rc::clone(&self.grave) });
        self.blobs.insert(id, Rc::downgrade(&blob));
        self.touched.objects.push(id);
        Ok(blob)
    }

    /// A blob by its number.
    pub(crate) fn blob(&self, id: u32) -> Result<Rc<Blob>, Errno> {
        self.blobs.get(&id).and_then(Weak::upgrade).ok_or(Errno::ENOENT)
    }

    /// A framebuffer by its number.
    pub(crate) fn framebuffer(&self, id: u32) -> Result<Rc<Framebuffer>, Errno> {
        self.framebuffers.get(&id).and_then(Weak::upgrade).ok_or(Errno::ENOENT)
    }

    /// Numbers for a framebuffer: the client's and the driver's.
    pub(crate) fn framebuffer_ids(&mut self) -> Result<(u32, FramebufferId), Errno> {
        let object = self.object_ids.allocate(OBJECT_LIMIT)?;
        let id = FramebufferId(self.next_framebuffer);
        self.next_framebuffer += 1;
        Ok((object, id))
    }

    pub(crate) fn buffer_id(&mut self) -> BufferId {
        let id = BufferId(self.next_buffer);
        self.next_buffer += 1;
        id
    }

    /// Puts a buffer into the card's tables.
    pub(crate) fn new_gem(&mut self, id: BufferId, buffer: Buffer, request: Option<DumbRequest>) -> Outcome<Rc<Gem>> {
        let map_offset = self.next_offset;
        self.next_offset += buffer.size.next_multiple_of(4096);
        if let Some(recorder) = &self.recorder
            && let Err(error) = recorder.keep_buffer(id, &buffer.fd)
        {
            self.driver.destroy_buffer(id);
            return Err(error.into());
        }
        self.touched.gems.push(id);
        self.enter_gem(id, buffer, request, map_offset, 0)
    }

    /// Puts a buffer into the tables that has its place already.
    pub(crate) fn enter_gem(
        &mut self,
        id: BufferId,
        buffer: Buffer,
        request: Option<DumbRequest>,
        map_offset: u64,
        name: u32,
    ) -> Outcome<Rc<Gem>> {
        let key = file_key(&buffer.fd)?;
        let Buffer { fd, pitch, size, cache } = buffer;
        let (name, grave) = (std::cell::Cell::new(name), Rc::clone(&self.grave));
        let gem = Rc::new(Gem { id, fd, pitch, size, cache, request, map_offset, key, name, grave });
        self.gems.insert(id, Rc::downgrade(&gem));
        self.gem_by_file.insert(key, Rc::downgrade(&gem));
        self.gem_by_offset.insert(map_offset, Rc::downgrade(&gem));
        Ok(gem)
    }

    /// A mode object by its number, as this file sees it: what a lease does not hold is not there.
    pub(crate) fn object(&self, file: Fh, id: u32) -> Result<Object, Errno> {
        let object = *self.objects.get(&id).ok_or(Errno::ENOENT)?;
        if object.leasable() && !self.lease_held(file, id) {
            return Err(Errno::ENOENT);
        }
        Ok(object)
    }

    pub(crate) fn crtc_by_id(&self, file: Fh, id: u32) -> Result<usize, Errno> {
        match self.object(file, id)? {
            Object::Crtc(crtc) => Ok(crtc),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(crate) fn plane_by_id(&self, file: Fh, id: u32) -> Result<usize, Errno> {
        match self.object(file, id)? {
            Object::Plane(plane) => Ok(plane),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(crate) fn connector_by_id(&self, file: Fh, id: u32) -> Result<usize, Errno> {
        match self.object(file, id)? {
            Object::Connector(connector) => Ok(connector),
            _ => Err(Errno::ENOENT),
        }
    }

    /// An open client file.
    pub(crate) fn file(&self, fh: Fh) -> Result<&File, Errno> {
        match self.files.get(&fh) {
            Some(Open::Client(file)) => Ok(file),
            _ => Err(Errno::EBADF),
        }
    }

    /// An open client file.
    pub(crate) fn file_mut(&mut self, fh: Fh) -> Result<&mut File, Errno> {
        self.touched.files.insert(fh);
        match self.files.get_mut(&fh) {
            Some(Open::Client(file)) => Ok(file),
            _ => Err(Errno::EBADF),
        }
    }

    /// Takes a file in and gives it a number.
    pub(crate) fn add_file(&mut self, open: Open) -> Fh {
        let fh = self.next_fh;
        self.next_fh += 1;
        self.files.insert(fh, open);
        self.touched.files.insert(fh);
        fh
    }

    /// Lets a file go.
    pub(crate) fn remove_file(&mut self, fh: Fh) {
        self.files.remove(&fh);
        self.touched.files.insert(fh);
    }

    /// Nanoseconds of the monotonic clock.
    pub(crate) fn now(&self) -> u64 {
        (self.clock)()
    }

    /// Forgets what nobody refers to any more, and tells the driver.
    pub(crate) fn bury(&mut self) {
        loop {
            let dead = self.grave.take();
            if dead.is_empty() {
                return;
            }
            for dead in dead {
                match dead {
                    Dead::Object(id) => {
                        self.blobs.remove(&id);
                        self.framebuffers.remove(&id);
                        self.object_ids.release(id);
                        self.touched.dead_objects.push(id);
                    }
                    Dead::Framebuffer(id) => self.driver.destroy_framebuffer(id),
                    Dead::Buffer { id, key, map_offset, name } => {
                        self.gems.remove(&id);
                        self.gem_by_offset.remove(&map_offset);
                        if name != 0 {
                            self.gem_names.remove(&name);
                            self.gem_name_ids.release(name);
                        }
                        // An imported object of the same file may have taken the place meanwhile.
                        if self.gem_by_file.get(&key).is_some_and(|gem| gem.strong_count() == 0) {
                            self.gem_by_file.remove(&key);
                        }
                        self.driver.destroy_buffer(id);
                        self.touched.dead_gems.push(id);
                    }
                }
            }
        }
    }
}

/// Device and inode number: what two descriptors of one dma-buf share.
pub(crate) fn file_key(fd: &OwnedFd) -> Outcome<(u64, u64)> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

pub(crate) fn monotonic() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

fn check_topology(topology: &Topology) -> Result<(), Errno> {
    let crtcs = topology.crtcs;
    let within = |mask: u32| mask != 0 && u64::from(mask) >> crtcs == 0;
    let good = (1..=MAX_CRTCS).contains(&crtcs)
        && topology.planes.len() <= 64
        && topology.encoders.len() <= 32
        && topology.connectors.len() <= 32
        && topology.planes.iter().all(|plane| within(plane.possible_crtcs) && !plane.formats.is_empty())
        && topology.encoders.iter().all(|encoder| within(encoder.possible_crtcs))
        && topology.connectors.iter().all(|connector| {
            !connector.encoders.is_empty()
                && connector.encoders.iter().all(|&encoder| encoder < topology.encoders.len())
        });
    if good { Ok(()) } else { Err(Errno::EINVAL) }
}
