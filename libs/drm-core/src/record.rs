//! What a card records of itself, so that a successor shows the same picture and knows the same numbers.
//!
//! After each request, and after what the card did by itself, everything that a client could tell a difference by is put
//! into a [`Journal`]: what is small always, files and objects when they were touched. Buffers are the clients' pictures and
//! are kept themselves; so are fences and eventfds that somebody waits for. [`crate::restore`] is the way back.
//!
//! Not recorded are the device's own state, which is set up anew, requests that wait and have had no effect, which come
//! again, and the card's own fences, which signal when the process that made them ends.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};

use scheme::{IoctlReply, Journal};
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes;

use crate::card::{Card, Open};
use crate::driver::{BufferId, Cache};
use crate::fence::Fence;
use crate::file::{ClientCaps, Fh, File};
use crate::ioctl::ParkedState;
use crate::state::PlaneState;
use crate::syncobj::Content;
use crate::vblank::Vblank;

/// The tables of the journal.
pub(crate) mod table {
    use scheme::Table;
    pub(crate) const CARD: Table = 0;
    pub(crate) const SCREEN: Table = 1;
    pub(crate) const FILE: Table = 2;
    pub(crate) const GEM: Table = 3;
    pub(crate) const FRAMEBUFFER: Table = 4;
    pub(crate) const BLOB: Table = 5;
    pub(crate) const MASTER: Table = 6;
    pub(crate) const FLIGHT: Table = 7;
    /// Requests whose result is due when a flight is over.
    pub(crate) const COMMIT: Table = 8;
    /// Answers to requests that waited, until it is known that they got out.
    pub(crate) const OWED: Table = 9;
    pub(crate) const SYNCOBJ: Table = 10;
    pub(crate) const EVENTFD: Table = 11;
}

/// Keys of kept objects: what they are, above their number.
pub(crate) const KEY_BUFFER: u64 = 1 << 56;
/// See [`KEY_BUFFER`].
pub(crate) const KEY_FENCE: u64 = 2 << 56;
/// See [`KEY_BUFFER`].
pub(crate) const KEY_EVENTFD: u64 = 3 << 56;

/// The journal, and what is kept besides buffers.
pub(crate) struct Recorder {
    pub(crate) journal: Journal,
    next_kept: u64,
    /// Fences that are kept, until nobody waits for them.
    fences: BTreeMap<u64, Weak<Fence>>,
}

/// What was touched since the last record.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    pub(crate) files: BTreeSet<Fh>,
    /// New buffers, and those that got a name.
    pub(crate) gems: Vec<BufferId>,
    pub(crate) dead_gems: Vec<BufferId>,
    /// New blobs and framebuffers.
    pub(crate) objects: Vec<u32>,
    pub(crate) dead_objects: Vec<u32>,
    pub(crate) syncobjs: bool,
}

impl Touched {
    fn is_empty(&self) -> bool {
        self.files.is_empty()
            && self.gems.is_empty()
            && self.dead_gems.is_empty()
            && self.objects.is_empty()
            && self.dead_objects.is_empty()
            && !self.syncobjs
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct CardRecord {
    pub(crate) index: u32,
    /// How many mode objects there are of each kind: another number means other ids.
    pub(crate) shape: [usize; 5],
    pub(crate) next_buffer: u64,
    pub(crate) next_framebuffer: u64,
    pub(crate) next_offset: u64,
    pub(crate) next_master: u32,
    pub(crate) master: Option<u32>,
    pub(crate) next_flight: u64,
    pub(crate) next_syncobj: u64,
    /// Uevents that are due; told once at least.
    pub(crate) lease_event: bool,
    /// See `lease_event`.
    pub(crate) connectors_changed: Vec<usize>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct CrtcRecord {
    pub(crate) enable: bool,
    pub(crate) active: bool,
    pub(crate) mode: Option<Vec<u8>>,
    pub(crate) mode_blob: u32,
    pub(crate) gamma: Option<Vec<[u16; 3]>>,
    pub(crate) gamma_blob: u32,
    pub(crate) cursor_at: (i32, i32),
    pub(crate) vrr_enabled: bool,
    pub(crate) vblank: Vblank,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct PlaneRecord {
    pub(crate) crtc: Option<usize>,
    pub(crate) fb: u32,
    pub(crate) dst: (i32, i32, u32, u32),
    pub(crate) src: (u32, u32, u32, u32),
    pub(crate) hotspot: (i32, i32),
}

#[derive(Serialize, Deserialize)]
pub(crate) struct ConnectorRecord {
    pub(crate) crtc: Option<usize>,
    pub(crate) encoder: Option<usize>,
    pub(crate) link_bad: bool,
    pub(crate) dpms: u64,
    pub(crate) connected: bool,
    pub(crate) edid: u32,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct ScreenRecord {
    pub(crate) crtcs: Vec<CrtcRecord>,
    pub(crate) planes: Vec<PlaneRecord>,
    pub(crate) connectors: Vec<ConnectorRecord>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct ClientRecord {
    pub(crate) render: bool,
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) master: Option<u32>,
    pub(crate) is_master: bool,
    pub(crate) was_master: bool,
    pub(crate) authenticated: bool,
    pub(crate) magic: u32,
    pub(crate) caps: ClientCaps,
    pub(crate) handles: Vec<(u32, u64)>,
    pub(crate) prime: Vec<(u64, u32)>,
    pub(crate) dumb_bytes: u64,
    pub(crate) framebuffers: Vec<u32>,
    pub(crate) blobs: Vec<u32>,
    pub(crate) syncobjs: Vec<(u32, u64)>,
    pub(crate) events: Vec<Vec<u8>>,
    pub(crate) event_bytes: usize,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum FileRecord {
    Client(ClientRecord),
    Syncobj(u64),
}

#[derive(Serialize, Deserialize)]
pub(crate) struct GemRecord {
    pub(crate) pitch: u32,
    pub(crate) size: u64,
    pub(crate) cache: u8,
    /// Width, height, bits a pixel.
    pub(crate) request: Option<(u32, u32, u32)>,
    pub(crate) map_offset: u64,
    pub(crate) name: u32,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct FramebufferRecord {
    pub(crate) id: u64,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) format: u32,
    pub(crate) modifier: u64,
    pub(crate) flags: u32,
    /// Buffer, pitch, offset.
    pub(crate) planes: Vec<(u64, u32, u32)>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct MasterRecord {
    pub(crate) unique: Option<String>,
    pub(crate) magics: Vec<(u32, Fh)>,
    pub(crate) lessor: Option<u32>,
    pub(crate) lessee_id: u32,
    pub(crate) leased: Vec<u32>,
}

/// A flight: the CRTCs that it is not complete on, and the events that are due there.
#[derive(Serialize, Deserialize)]
pub(crate) struct FlightRecord {
    pub(crate) crtcs: u32,
    pub(crate) signals: Vec<(usize, Option<(Fh, u64)>)>,
}

/// What an ioctl returns and copies out.
#[derive(Serialize, Deserialize)]
pub(crate) struct ReplyRecord {
    /// The flight that it waits for, or 0.
    pub(crate) flight: u64,
    pub(crate) result: i32,
    pub(crate) data: Vec<u8>,
}

/// A sync object: its points, each with the fences that are kept for it; a binary one has one point, 0.
#[derive(Serialize, Deserialize)]
pub(crate) struct SyncobjRecord {
    pub(crate) timeline: bool,
    pub(crate) points: Vec<(u64, Vec<u64>)>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct EventfdRecord {
    pub(crate) syncobj: u64,
    pub(crate) point: u64,
    pub(crate) available: bool,
    pub(crate) owner: Fh,
}

impl Recorder {
    pub(crate) fn new(journal: Journal) -> Recorder {
        // Numbers of the predecessors' are not given again: theirs may still be dropped.
        Recorder { next_kept: journal.generation() << 24, journal, fences: BTreeMap::new() }
    }

    /// Has a new buffer kept.
    pub(crate) fn keep_buffer(&self, id: BufferId, fd: &OwnedFd) -> Result<(), scheme::Errno> {
        let error = |error: io::Error| scheme::Errno::from_io_error(&error).unwrap_or(scheme::Errno::NOMEM);
        self.journal.keep(KEY_BUFFER | id.0, fd.as_fd()).map_err(error)
    }

    /// A fence that is kept already, of a predecessor's number.
    pub(crate) fn adopt_fence(&mut self, number: u64, fence: &Rc<Fence>) {
        fence.number.set(number);
        self.fences.insert(number, Rc::downgrade(fence));
    }

    /// Whether somebody waits for a kept fence.
    pub(crate) fn knows_fence(&self, number: u64) -> bool {
        self.fences.contains_key(&number)
    }

    /// The numbers of the fences that have to signal before a fence does, which are kept from now on.
    fn keep_fence(&mut self, fence: &Rc<Fence>) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for part in fence.unsignalled() {
            if part.number.get() == 0
                && let Some(fd) = part.fd()
            {
                self.next_kept += 1;
                self.journal.keep(KEY_FENCE | self.next_kept, fd)?;
                self.adopt_fence(self.next_kept, &part);
            }
            numbers.push(part.number.get());
        }
        Ok(numbers)
    }

    /// Forgets fences that nobody refers to.
    fn release_fences(&mut self) {
        let journal = &mut self.journal;
        self.fences.retain(|number, fence| {
            let alive = fence.strong_count() != 0;
            if !alive {
                journal.release(KEY_FENCE | number);
            }
            alive
        });
    }

    /// Puts every entry of a table that `entries` has, and removes the others.
    fn replace<T: Serialize>(
        &mut self,
        table: scheme::Table,
        entries: impl Iterator<Item = (u64, T)>,
    ) -> io::Result<()> {
        let mut gone: BTreeSet<u64> = self.journal.ids(table).collect();
        for (id, entry) in entries {
            gone.remove(&id);
            self.journal.put(table, id, &entry)?;
        }
        gone.into_iter().for_each(|id| self.journal.remove(table, id));
        Ok(())
    }
}

fn reply_record(flight: u64, reply: &IoctlReply) -> ReplyRecord {
    ReplyRecord { flight, result: reply.result, data: reply.data.clone() }
}

fn client_record(file: &File) -> ClientRecord {
    ClientRecord {
        render: file.render,
        pid: file.pid,
        uid: file.uid,
        master: file.master,
        is_master: file.is_master,
        was_master: file.was_master,
        authenticated: file.authenticated,
        magic: file.magic,
        caps: file.caps,
        handles: file.handles.iter().map(|(&handle, gem)| (handle, gem.id.0)).collect(),
        prime: {
            // In order, so that the same content is the same record.
            let mut prime: Vec<(u64, u32)> = file.prime.iter().map(|(buffer, &handle)| (buffer.0, handle)).collect();
            prime.sort_unstable();
            prime
        },
        dumb_bytes: file.dumb_bytes,
        framebuffers: file.framebuffers.iter().map(|fb| fb.hold.object).collect(),
        blobs: file.blobs.keys().copied().collect(),
        syncobjs: file.syncobjs.iter().map(|(&handle, syncobj)| (handle, syncobj.id)).collect(),
        events: file.events.iter().cloned().collect(),
        event_bytes: file.event_bytes,
    }
}

fn plane_record(state: &PlaneState) -> PlaneRecord {
    PlaneRecord {
        crtc: state.crtc,
        fb: state.fb.as_ref().map_or(0, |fb| fb.hold.object),
        dst: (state.crtc_x, state.crtc_y, state.crtc_w, state.crtc_h),
        src: (state.src_x, state.src_y, state.src_w, state.src_h),
        hotspot: (state.hotspot_x, state.hotspot_y),
    }
}

impl Card {
    /// The answer to the last request has reached the kernel.
    ///
    /// # Panics
    /// As [`Card::record`].
    pub(crate) fn settle_record(&mut self) {
        if let Some(recorder) = &mut self.recorder
            && let Err(error) = recorder.journal.settle()
        {
            panic!("the journal cannot be written: {error}");
        }
    }

    /// Records what has changed, as the effect of request `unique`, or of none (0).
    ///
    /// # Panics
    /// When it cannot be recorded: a card must not answer for what its successor will not know.
    pub(crate) fn record(&mut self, unique: u64) {
        let touched = std::mem::take(&mut self.touched);
        let Some(mut recorder) = self.recorder.take() else { return };
        let recorded = self.write_record(&mut recorder, touched).and_then(|()| recorder.journal.commit(unique));
        self.recorder = Some(recorder);
        self.unrecorded = false;
        if let Err(error) = recorded {
            panic!("the journal cannot be written: {error}");
        }
    }

    /// Nothing has happened since the last record, by the card's own account; where that is not trusted, in tests, it is looked after.
    pub(crate) fn assert_recorded(&mut self) {
        if cfg!(debug_assertions)
            && let Some(mut recorder) = self.recorder.take()
        {
            let written = self.write_record(&mut recorder, Touched::default());
            assert!(
                written.is_ok() && self.touched.is_empty() && !recorder.journal.has_changes(),
                "a change was not recorded"
            );
            self.recorder = Some(recorder);
        }
    }

    /// How many mode objects there are of each kind.
    pub(crate) fn shape(&self) -> [usize; 5] {
        let objects = (self.properties.len(), self.planes.len(), self.crtcs.len());
        [objects.0, objects.1, objects.2, self.encoders.len(), self.connectors.len()]
    }

    fn write_record(&mut self, recorder: &mut Recorder, touched: Touched) -> io::Result<()> {
        let card = CardRecord {
            index: self.index,
            shape: self.shape(),
            next_buffer: self.next_buffer,
            next_framebuffer: self.next_framebuffer,
            next_offset: self.next_offset,
            next_master: self.next_master,
            master: self.master,
            next_flight: self.next_flight,
            next_syncobj: self.next_syncobj,
            lease_event: self.lease_event,
            connectors_changed: self.connectors_changed.clone(),
        };
        recorder.journal.put(table::CARD, 0, &card)?;
        recorder.journal.put(table::SCREEN, 0, &self.screen_record())?;
        self.record_objects(recorder, &touched)?;
        for &fh in &touched.files {
            match self.files.get(&fh) {
                Some(Open::Client(file)) => {
                    recorder.journal.put(table::FILE, fh, &FileRecord::Client(client_record(file)))?;
                }
                Some(Open::Syncobj(syncobj)) => {
                    recorder.journal.put(table::FILE, fh, &FileRecord::Syncobj(syncobj.id))?;
                }
                None => recorder.journal.remove(table::FILE, fh),
            }
        }
        recorder.replace(
            table::MASTER,
            self.masters.iter().map(|(&id, master)| {
                let record = MasterRecord {
                    unique: master.unique.clone(),
                    magics: master.magics.iter().map(|(&magic, &fh)| (magic, fh)).collect(),
                    lessor: master.lessor,
                    lessee_id: master.lessee_id,
                    leased: master.leased.iter().copied().collect(),
                };
                (id.into(), record)
            }),
        )?;
        recorder.replace(
            table::FLIGHT,
            self.flights.iter().map(|flight| {
                let due = flight.signals.iter().filter(|signal| flight.crtcs & 1 << signal.crtc != 0);
                let signals = due.map(|signal| (signal.crtc, signal.event)).collect();
                (flight.id, FlightRecord { crtcs: flight.crtcs, signals })
            }),
        )?;
        recorder.replace(
            table::COMMIT,
            self.parked.iter().filter_map(|parked| match &parked.state {
                ParkedState::Commit { flight, reply } => Some((parked.unique, reply_record(*flight, reply))),
                ParkedState::Again { .. } => None,
            }),
        )?;
        recorder.replace(table::OWED, self.outbox.iter().map(|(unique, reply)| (*unique, reply_record(0, reply))))?;
        if touched.syncobjs {
            self.record_syncobjs(recorder)?;
        }
        if !self.eventfd_waits.is_empty() || recorder.journal.ids(table::EVENTFD).next().is_some() {
            self.record_eventfds(recorder)?;
        }
        Ok(())
    }

    fn screen_record(&self) -> ScreenRecord {
        let id = |blob: &Option<Rc<crate::object::Blob>>| blob.as_ref().map_or(0, |blob| blob.id);
        ScreenRecord {
            crtcs: std::iter::zip(&self.crtcs, &self.state.crtcs)
                .map(|(crtc, state)| CrtcRecord {
                    enable: state.enable,
                    active: state.active,
                    mode: state.mode.as_ref().map(|mode| mode.as_bytes().to_vec()),
                    mode_blob: id(&state.mode_blob),
                    gamma: state.gamma.as_ref().map(|gamma| gamma.to_vec()),
                    gamma_blob: id(&state.gamma_blob),
                    cursor_at: crtc.cursor_at,
                    vrr_enabled: crtc.vrr_enabled,
                    vblank: crtc.vblank.clone(),
                })
                .collect(),
            planes: self.state.planes.iter().map(plane_record).collect(),
            connectors: std::iter::zip(&self.connectors, &self.state.connectors)
                .map(|(connector, state)| ConnectorRecord {
                    crtc: state.crtc,
                    encoder: state.encoder,
                    link_bad: state.link_bad,
                    dpms: connector.dpms,
                    connected: connector.connected,
                    edid: id(&connector.edid),
                })
                .collect(),
        }
    }

    fn record_objects(&self, recorder: &mut Recorder, touched: &Touched) -> io::Result<()> {
        let journal = &mut recorder.journal;
        // The dead first: their numbers may have been given again.
        for &id in &touched.dead_objects {
            journal.remove(table::BLOB, id.into());
            journal.remove(table::FRAMEBUFFER, id.into());
        }
        for &id in &touched.objects {
            if let Some(blob) = self.blobs.get(&id).and_then(Weak::upgrade) {
                journal.put(table::BLOB, id.into(), &blob.data)?;
            }
            let Some(fb) = self.framebuffers.get(&id).and_then(Weak::upgrade) else { continue };
            let record = FramebufferRecord {
                id: fb.id.0,
                width: fb.width,
                height: fb.height,
                format: fb.format,
                modifier: fb.modifier,
                flags: fb.hold.flags,
                planes: fb.planes.iter().map(|plane| (plane.buffer.0, plane.pitch, plane.offset)).collect(),
            };
            journal.put(table::FRAMEBUFFER, id.into(), &record)?;
        }
        for id in &touched.gems {
            let Some(gem) = self.gems.get(id).and_then(Weak::upgrade) else { continue };
            let record = GemRecord {
                pitch: gem.pitch,
                size: gem.size,
                cache: match gem.cache {
                    Cache::WriteBack => 0,
                    Cache::WriteCombining => 1,
                    Cache::Uncached => 2,
                },
                request: gem.request.map(|request| (request.width, request.height, request.bpp)),
                map_offset: gem.map_offset,
                name: gem.name.get(),
            };
            journal.put(table::GEM, id.0, &record)?;
        }
        for id in &touched.dead_gems {
            journal.remove(table::GEM, id.0);
            journal.release(KEY_BUFFER | id.0);
        }
        Ok(())
    }

    fn record_syncobjs(&self, recorder: &mut Recorder) -> io::Result<()> {
        let mut alive = BTreeMap::new();
        for open in self.files.values() {
            match open {
                Open::Client(file) => alive.extend(file.syncobjs.values().map(|syncobj| (syncobj.id, syncobj))),
                Open::Syncobj(syncobj) => drop(alive.insert(syncobj.id, syncobj)),
            }
        }
        // One that only an eventfd waits for can still signal.
        alive.extend(self.eventfd_waits.iter().map(|wait| (wait.syncobj.id, &wait.syncobj)));
        let mut entries = Vec::new();
        for (id, syncobj) in alive {
            let record = match &*syncobj.content.borrow() {
                Content::Nothing => SyncobjRecord { timeline: false, points: Vec::new() },
                Content::Binary(fence) => {
                    SyncobjRecord { timeline: false, points: vec![(0, recorder.keep_fence(fence)?)] }
                }
                Content::Timeline(points) => {
                    let mut list = Vec::new();
                    for (point, fence) in points {
                        list.push((*point, recorder.keep_fence(fence)?));
                    }
                    SyncobjRecord { timeline: true, points: list }
                }
            };
            entries.push((id, record));
        }
        recorder.replace(table::SYNCOBJ, entries.into_iter())?;
        recorder.release_fences();
        Ok(())
    }

    fn record_eventfds(&mut self, recorder: &mut Recorder) -> io::Result<()> {
        let mut gone: BTreeSet<u64> = recorder.journal.ids(table::EVENTFD).collect();
        for wait in &mut self.eventfd_waits {
            if wait.number == 0 {
                recorder.next_kept += 1;
                wait.number = recorder.next_kept;
                recorder.journal.keep(KEY_EVENTFD | wait.number, wait.eventfd.as_fd())?;
            }
            gone.remove(&wait.number);
            let (syncobj, point) = (wait.syncobj.id, wait.point);
            let record = EventfdRecord { syncobj, point, available: wait.available, owner: wait.owner };
            recorder.journal.put(table::EVENTFD, wait.number, &record)?;
        }
        for number in gone {
            recorder.journal.remove(table::EVENTFD, number);
            recorder.journal.release(KEY_EVENTFD | number);
        }
        Ok(())
    }
}
