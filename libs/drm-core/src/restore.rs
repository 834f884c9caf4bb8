//! How a card comes back: [`Card::attach`] makes it of what a predecessor recorded ([`crate::record`]).
//!
//! Buffers are taken out of the kernel's keeping and given to the driver, which knows nothing of them; framebuffers, blobs,
//! masters and files get the numbers that clients know. Then the whole state is committed in one piece, so that the screen
//! shows what it showed, and flips that were on their way end with the next frame, each with its event. A client notices
//! that an ioctl took longer than usual.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use linux_uapi::Errno;
use scheme::{Channel, Connection, Cx, IoctlReply, Journal, Ready};
use zerocopy::FromBytes;

use crate::card::{Card, Clock, Open, monotonic};
use crate::commit::{Flight, Signal};
use crate::driver::{
    Buffer, BufferId, Cache, Change, Driver, DumbRequest, Framebuffer, FramebufferId, FramebufferPlane, Mode,
};
use crate::error::{Error, Ids};
use crate::fence::Fence;
use crate::file::File;
use crate::ioctl::{Parked, ParkedState};
use crate::master::Master;
use crate::object::{Blob, Gem, Hold};
use crate::record::{
    CardRecord, ClientRecord, EventfdRecord, FileRecord, FlightRecord, FramebufferRecord, GemRecord, KEY_BUFFER,
    KEY_EVENTFD, KEY_FENCE, MasterRecord, Recorder, ReplyRecord, ScreenRecord, SyncobjRecord, table,
};
use crate::state::{CrtcState, State};
use crate::syncobj::{Content, EventfdWait, Syncobj};
use crate::sysfs::free_index;

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the record of a card is none: {what}"))
}

fn io_error(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.raw() as i32)
}

/// What is looked up while the tables are filled.
#[derive(Default)]
struct Found {
    gems: HashMap<u64, Rc<Gem>>,
    framebuffers: BTreeMap<u32, Rc<Framebuffer>>,
    blobs: BTreeMap<u32, Rc<Blob>>,
    syncobjs: BTreeMap<u64, Rc<Syncobj>>,
}

impl Card {
    /// The card of a connection: the one that a predecessor served, as it was, its screens showing what they showed; or a new
    /// one, which gets the lowest number that is free and is published.
    ///
    /// # Errors
    /// The kernel's; `InvalidData`: what a predecessor recorded is not of this card.
    pub fn attach(driver: Box<dyn Driver>, connection: &Connection) -> io::Result<Card> {
        let channel: Arc<dyn Channel> = Arc::new(connection.clone());
        Card::attach_with(driver, &channel, &connection.unanswered(), Box::new(monotonic), &free_index)
    }

    pub(crate) fn attach_with(
        driver: Box<dyn Driver>,
        channel: &Arc<dyn Channel>,
        unanswered: &BTreeSet<u64>,
        clock: Clock,
        free_index: &dyn Fn() -> Option<u32>,
    ) -> io::Result<Card> {
        let journal = match Journal::open(Arc::clone(channel), unanswered) {
            // A connection that keeps nothing: the card ends with its process.
            Err(error) if error.raw_os_error() == Some(Errno::EPERM.raw() as i32) => None,
            journal => Some(journal?),
        };
        let record: Option<CardRecord> = match &journal {
            Some(journal) => journal.get(table::CARD, 0)?,
            None => None,
        };
        let index = match &record {
            Some(record) => record.index,
            None => free_index().ok_or_else(|| io_error(Errno::ENOSPC))?,
        };
        let mut card = Card::bare(driver, index, clock).map_err(io_error)?;
        if let Some(journal) = journal {
            // A number that was given and taken back is not given again: the kernel may still say that it is closed.
            card.next_fh = journal.generation() << 32 | 1;
            card.recorder = Some(Recorder::new(journal));
        }
        match record {
            // What it published is there as long as the connection is.
            Some(record) => card.restore(&record, &**channel)?,
            None => {
                card.probe_first();
                card.unpublish(&**channel);
                card.publish(&**channel)?;
            }
        }
        card.record(0);
        for &fh in card.files.keys() {
            let readable = card.file(fh).is_ok_and(File::has_events);
            let _ = channel.ready(fh, if readable { Ready::IN } else { Ready::empty() });
        }
        Ok(card)
    }

    /// Whether a request that comes again needs nothing done: its effect is recorded, and its answer under way.
    pub(crate) fn is_resumed(&self, cx: &Cx<'_>) -> bool {
        cx.resent && self.resumed.contains(&cx.unique)
    }

    fn restore(&mut self, record: &CardRecord, channel: &dyn Channel) -> io::Result<()> {
        if record.shape != self.shape() {
            return Err(invalid("it has other mode objects"));
        }
        self.next_buffer = record.next_buffer;
        self.next_framebuffer = record.next_framebuffer;
        self.next_offset = record.next_offset;
        self.next_master = record.next_master;
        self.master = record.master;
        self.next_flight = record.next_flight;
        self.next_syncobj = record.next_syncobj;
        self.lease_event = record.lease_event;
        let known = |index: &&usize| **index < self.connectors.len();
        self.connectors_changed = record.connectors_changed.iter().filter(known).copied().collect();
        let Some(mut recorder) = self.recorder.take() else { return Ok(()) };
        let restored = self.restore_from(&mut recorder, channel);
        self.recorder = Some(recorder);
        restored
    }

    fn restore_from(&mut self, recorder: &mut Recorder, channel: &dyn Channel) -> io::Result<()> {
        let mut found = Found::default();
        self.restore_blobs(&recorder.journal, &mut found)?;
        self.restore_gems(&recorder.journal, channel, &mut found)?;
        self.restore_framebuffers(&recorder.journal, &mut found)?;
        self.object_ids =
            Ids::of(self.objects.keys().chain(self.blobs.keys()).chain(self.framebuffers.keys()).copied());
        restore_syncobjs(recorder, channel, &mut found)?;
        for (id, record) in recorder.journal.all::<MasterRecord>(table::MASTER)? {
            let master = Master {
                unique: record.unique,
                magics: record.magics.into_iter().collect(),
                lessor: record.lessor,
                lessee_id: record.lessee_id,
                leased: record.leased.into_iter().collect(),
                ..Master::default()
            };
            self.masters.insert(id as u32, master);
        }
        let lent: Vec<(u32, u32)> =
            self.masters.values().filter_map(|master| Some((master.lessor?, master.lessee_id))).collect();
        for (id, master) in &mut self.masters {
            master.lessee_ids = Ids::of(lent.iter().filter(|(lessor, _)| lessor == id).map(|&(_, lessee)| lessee));
        }
        for (fh, record) in recorder.journal.all::<FileRecord>(table::FILE)? {
            let open = match record {
                FileRecord::Client(record) => Open::Client(Box::new(self.restore_file(record, &found)?)),
                FileRecord::Syncobj(id) => {
                    Open::Syncobj(Rc::clone(found.syncobjs.get(&id).ok_or_else(|| invalid("a sync object"))?))
                }
            };
            self.files.insert(fh, open);
        }
        for (id, master) in &mut self.masters {
            let magics = self.files.values().filter_map(|open| match open {
                Open::Client(file) if file.master == Some(*id) => Some(file.magic),
                _ => None,
            });
            master.magic_ids = Ids::of(magics);
        }
        for (number, record) in recorder.journal.all::<EventfdRecord>(table::EVENTFD)? {
            let syncobj = found.syncobjs.get(&record.syncobj).ok_or_else(|| invalid("a sync object"))?;
            self.eventfd_waits.push(EventfdWait {
                syncobj: Rc::clone(syncobj),
                point: record.point,
                available: record.available,
                eventfd: channel.keep_get(KEY_EVENTFD | number)?,
                owner: record.owner,
                number,
            });
        }
        let screen: ScreenRecord =
            recorder.journal.get(table::SCREEN, 0)?.ok_or_else(|| invalid("it has no screen"))?;
        self.restore_screen(screen, &found)?;
        self.restore_flights(&recorder.journal)?;
        let used = |key: u64| {
            let number = key & (KEY_BUFFER - 1);
            match key & !(KEY_BUFFER - 1) {
                KEY_BUFFER => recorder.journal.contains(table::GEM, number),
                KEY_EVENTFD => recorder.journal.contains(table::EVENTFD, number),
                KEY_FENCE => recorder.knows_fence(number),
                _ => false,
            }
        };
        recorder.journal.retain_kept(used)
    }

    fn restore_blobs(&mut self, journal: &Journal, found: &mut Found) -> io::Result<()> {
        for (id, data) in journal.all::<Vec<u8>>(table::BLOB)? {
            let id = id as u32;
            // Those of the card itself are there already.
            if self.blobs.contains_key(&id) {
                continue;
            }
            let blob = Rc::new(Blob { id, data, grave: Rc::clone(&self.grave) });
            self.blobs.insert(id, Rc::downgrade(&blob));
            found.blobs.insert(id, blob);
        }
        Ok(())
    }

    fn restore_gems(&mut self, journal: &Journal, channel: &dyn Channel, found: &mut Found) -> io::Result<()> {
        let mut names = Vec::new();
        for (id, record) in journal.all::<GemRecord>(table::GEM)? {
            let fd = channel.keep_get(KEY_BUFFER | id)?;
            let request = record.request.map(|(width, height, bpp)| DumbRequest { width, height, bpp });
            let cache = match record.cache {
                0 => Cache::WriteBack,
                1 => Cache::WriteCombining,
                _ => Cache::Uncached,
            };
            let buffer = Buffer { fd, pitch: record.pitch, size: record.size, cache };
            self.driver.restore_buffer(BufferId(id), &buffer, request.as_ref()).map_err(io_error)?;
            let gem = self.enter_gem(BufferId(id), buffer, request, record.map_offset, record.name);
            let gem = gem.map_err(|error| match error {
                Error::Errno(errno) => io_error(errno),
                _ => invalid("a buffer"),
            })?;
            if record.name != 0 {
                self.gem_names.insert(record.name, Rc::downgrade(&gem));
                names.push(record.name);
            }
            found.gems.insert(id, gem);
        }
        self.gem_name_ids = Ids::of(names);
        Ok(())
    }

    fn restore_framebuffers(&mut self, journal: &Journal, found: &mut Found) -> io::Result<()> {
        for (object, record) in journal.all::<FramebufferRecord>(table::FRAMEBUFFER)? {
            let (object, id) = (object as u32, FramebufferId(record.id));
            let gem = |&(buffer, ..): &(u64, u32, u32)| found.gems.get(&buffer).cloned();
            let buffers: Option<Vec<Rc<Gem>>> = record.planes.iter().map(gem).collect();
            let buffers = buffers.ok_or_else(|| invalid("a framebuffer without its buffer"))?;
            let plane = |&(buffer, pitch, offset): &(u64, u32, u32)| FramebufferPlane {
                buffer: BufferId(buffer),
                pitch,
                offset,
            };
            let framebuffer = Framebuffer {
                id,
                width: record.width,
                height: record.height,
                format: record.format,
                modifier: record.modifier,
                planes: record.planes.iter().map(plane).collect(),
                hold: Hold::default(),
            };
            self.driver.create_framebuffer(&framebuffer).map_err(io_error)?;
            let hold = Hold::new(object, record.flags, buffers, &self.grave, id);
            let framebuffer = Rc::new(Framebuffer { hold, ..framebuffer });
            self.framebuffers.insert(object, Rc::downgrade(&framebuffer));
            found.framebuffers.insert(object, framebuffer);
        }
        Ok(())
    }

    fn restore_file(&mut self, record: ClientRecord, found: &Found) -> io::Result<File> {
        let mut file = File {
            render: record.render,
            pid: record.pid,
            uid: record.uid,
            master: record.master,
            is_master: record.is_master,
            was_master: record.was_master,
            authenticated: record.authenticated,
            magic: record.magic,
            caps: record.caps,
            prime: record.prime.into_iter().map(|(buffer, handle)| (BufferId(buffer), handle)).collect(),
            dumb_bytes: record.dumb_bytes,
            handle_ids: Ids::of(record.handles.iter().map(|&(handle, _)| handle)),
            syncobj_ids: Ids::of(record.syncobjs.iter().map(|&(handle, _)| handle)),
            events: record.events.into(),
            event_bytes: record.event_bytes,
            ..File::default()
        };
        for (handle, buffer) in record.handles {
            let gem = found.gems.get(&buffer).ok_or_else(|| invalid("a handle of no buffer"))?;
            file.handles.insert(handle, Rc::clone(gem));
        }
        for id in record.framebuffers {
            let fb = found.framebuffers.get(&id).ok_or_else(|| invalid("a framebuffer"))?;
            file.framebuffers.push(Rc::clone(fb));
        }
        for id in record.blobs {
            let blob = found.blobs.get(&id).ok_or_else(|| invalid("a blob"))?;
            file.blobs.insert(id, Rc::clone(blob));
        }
        for (handle, id) in record.syncobjs {
            let syncobj = found.syncobjs.get(&id).ok_or_else(|| invalid("a sync object"))?;
            file.syncobjs.insert(handle, Rc::clone(syncobj));
        }
        if let Some(master) = record.master {
            self.masters.get_mut(&master).ok_or_else(|| invalid("a master"))?.files += 1;
        }
        Ok(file)
    }

    /// The mode objects' state, and what is plugged in: user space hears of what is not as it was.
    fn restore_screen(&mut self, screen: ScreenRecord, found: &Found) -> io::Result<()> {
        let blob = |id: u32| found.blobs.get(&id).cloned();
        for (index, record) in screen.connectors.into_iter().enumerate() {
            let state = &mut self.state.connectors[index];
            (state.crtc, state.encoder, state.link_bad) = (record.crtc, record.encoder, record.link_bad);
            let connector = &mut self.connectors[index];
            connector.edid = blob(record.edid);
            connector.dpms = record.dpms;
            let before = connector.edid.as_ref().map(|blob| blob.id);
            self.probe(index);
            let connector = &self.connectors[index];
            if connector.connected != record.connected || connector.edid.as_ref().map(|blob| blob.id) != before {
                self.connectors_changed.push(index);
            }
        }
        for (index, record) in screen.crtcs.into_iter().enumerate() {
            let mode = match record.mode {
                Some(bytes) => Some(Mode::read_from_bytes(&bytes).map_err(|_| invalid("a mode"))?),
                None => None,
            };
            self.state.crtcs[index] = CrtcState {
                enable: record.enable,
                active: record.active,
                mode,
                gamma: record.gamma.map(Rc::from),
                mode_blob: blob(record.mode_blob),
                gamma_blob: blob(record.gamma_blob),
            };
            let crtc = &mut self.crtcs[index];
            crtc.cursor_at = record.cursor_at;
            crtc.vrr_enabled = record.vrr_enabled;
            // The clock is the system's, so the frames go on counting as if nothing had been.
            crtc.vblank = record.vblank;
        }
        for (index, record) in screen.planes.into_iter().enumerate() {
            let state = &mut self.state.planes[index];
            state.crtc = record.crtc;
            if record.fb != 0 {
                let fb = found.framebuffers.get(&record.fb).ok_or_else(|| invalid("a framebuffer"))?;
                state.fb = Some(Rc::clone(fb));
            }
            (state.crtc_x, state.crtc_y, state.crtc_w, state.crtc_h) = record.dst;
            (state.src_x, state.src_y, state.src_w, state.src_h) = record.src;
            (state.hotspot_x, state.hotspot_y) = record.hotspot;
        }
        Ok(())
    }

    /// Shows the whole state, and sends what was under way to its end.
    fn restore_flights(&mut self, journal: &Journal) -> io::Result<()> {
        let blank = State {
            crtcs: vec![CrtcState::default(); self.state.crtcs.len()],
            planes: vec![Default::default(); self.state.planes.len()],
            connectors: vec![Default::default(); self.state.connectors.len()],
        };
        let mask = |on: &dyn Fn(usize) -> bool, count: usize| {
            (0..count).filter(|&index| on(index)).fold(0u64, |mask, index| mask | 1 << index)
        };
        let enabled = mask(&|crtc| self.state.crtcs[crtc].enable, self.state.crtcs.len()) as u32;
        let planes = mask(&|plane| self.state.planes[plane].visible(), self.state.planes.len());
        // Nobody waits for this one: clients' own commits go ahead at once.
        let change =
            Change { old: blank, new: self.state.clone(), crtcs: enabled, modesets: enabled, planes, unpaced: true };
        let change = Rc::new(change);
        if enabled != 0 {
            self.driver.atomic_commit(&change);
        }
        let now = self.now();
        for (id, record) in journal.all::<FlightRecord>(table::FLIGHT)? {
            let crtcs: Vec<usize> = (0..self.crtcs.len()).filter(|&crtc| record.crtcs & 1 << crtc != 0).collect();
            let due = crtcs.iter().map(|&crtc| (crtc, self.crtcs[crtc].vblank.next(now))).collect();
            let signal = |(crtc, event)| Signal { crtc, event, fence: None };
            self.flights.push(Flight {
                id,
                change: Rc::clone(&change),
                fences: Vec::new(),
                launched: true,
                crtcs: crtcs.iter().fold(0, |mask, &crtc| mask | 1 << crtc),
                device: 0,
                due,
                signals: record.signals.into_iter().map(signal).collect(),
            });
        }
        for (unique, record) in journal.all::<ReplyRecord>(table::COMMIT)? {
            let reply = IoctlReply { result: record.result, data: record.data };
            let state = ParkedState::Commit { flight: record.flight, reply };
            self.parked.push(Parked { unique, pid: 0, uid: 0, gid: 0, fh: 0, state });
            self.resumed.insert(unique);
        }
        for (unique, record) in journal.all::<ReplyRecord>(table::OWED)? {
            self.outbox.push((unique, IoctlReply { result: record.result, data: record.data }));
            self.resumed.insert(unique);
        }
        Ok(())
    }
}

fn restore_syncobjs(recorder: &mut Recorder, channel: &dyn Channel, found: &mut Found) -> io::Result<()> {
    let mut fences: BTreeMap<u64, Rc<Fence>> = BTreeMap::new();
    for (id, record) in recorder.journal.all::<SyncobjRecord>(table::SYNCOBJ)? {
        let mut points = Vec::new();
        for (point, numbers) in record.points {
            let mut parts = Vec::new();
            for number in numbers {
                let fence = match fences.get(&number) {
                    Some(fence) => Rc::clone(fence),
                    None => {
                        let fence = Fence::of(channel.keep_get(KEY_FENCE | number)?);
                        recorder.adopt_fence(number, &fence);
                        fences.insert(number, Rc::clone(&fence));
                        fence
                    }
                };
                parts.push(fence);
            }
            points.push((point, Fence::all(parts)));
        }
        let content = match (record.timeline, points.pop()) {
            (false, None) => Content::Nothing,
            (false, Some((_, fence))) => Content::Binary(fence),
            (true, last) => {
                points.extend(last);
                Content::Timeline(points)
            }
        };
        found.syncobjs.insert(id, Rc::new(Syncobj { id, content: content.into() }));
    }
    Ok(())
}
