//! [`Server`]: the open files and the devices, and which module a request is for.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    sync::Arc,
};

use input_core::{ClientId, Clock, Description, Device, Nanos, ReadError};
use linux_uapi::{
    input::{
        InputEvent,
        codes::{EV_SYN, SYN_REPORT},
    },
    zerocopy::{FromBytes, IntoBytes},
};
use scheme::{
    Answer, Channel, Cx, DeviceServer, Errno, Failure, Ioctl, IoctlReply, Journal, Opened, Parent, Ready, Reply,
};
use serde::{Deserialize, Serialize};

use crate::{
    effects::{Owed, Waiting},
    record::Touched,
    sysfs::{self, ATTR_INHIBITED},
    uinput::Uinput,
};

/// Cookie of `/dev/uinput`.
const UINPUT: u64 = 1;
/// Cookies of `inputN` begin here.
const INPUTS: u64 = 1 << 32;
/// Cookies of `eventN` begin here.
const EVENTS: u64 = 2 << 32;
/// Bytes of an event.
pub(crate) const EVENT: usize = size_of::<InputEvent>();

/// Number of a device: the N of `inputN`. Never used twice.
pub(crate) type DeviceId = u64;

/// A device and who it is known to.
#[derive(Serialize, Deserialize)]
pub(crate) struct Published {
    pub(crate) device: Device,
    minor: u32,
    /// The open file of `/dev/uinput` that it belongs to; `None` once that let go of it.
    pub(crate) driver: Option<u64>,
    /// How many events its driver has written: where a successor of the driver goes on.
    pub(crate) written: u32,
}

/// One open file.
#[derive(Serialize, Deserialize)]
pub(crate) enum File {
    Uinput(Box<Uinput>),
    Event(DeviceId),
}

/// The server.
pub struct Server {
    pub(crate) channel: Arc<dyn Channel>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) files: HashMap<u64, File>,
    pub(crate) devices: BTreeMap<DeviceId, Published>,
    /// Requests for force feedback that wait for a driver.
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) next_file: u64,
    pub(crate) next_device: DeviceId,
    pub(crate) journal: Journal,
    pub(crate) touched: Touched,
    pub(crate) outbox: Vec<Owed>,
    /// Requests of before the start whose answer is due without their being made again.
    pub(crate) resumed: BTreeSet<u64>,
}

/// The number of an error of the kernel's.
pub(crate) fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Server {
    /// The server of a connection: what its predecessor was, or one without devices, which publishes `/dev/uinput`.
    /// `unanswered` are the requests that come again.
    ///
    /// # Errors
    /// The kernel refuses it; `InvalidData`: what a predecessor recorded is no such server.
    pub fn new(channel: Arc<dyn Channel>, clock: Arc<dyn Clock>, unanswered: &BTreeSet<u64>) -> io::Result<Server> {
        let journal = Journal::open(channel.clone(), unanswered)?;
        let mut server = Server {
            channel,
            clock,
            files: HashMap::new(),
            devices: BTreeMap::new(),
            waiting: Vec::new(),
            // A number that was given and taken back is not given again.
            next_file: journal.generation() << 32 | 1,
            next_device: 0,
            journal,
            touched: Touched::default(),
            outbox: Vec::new(),
            resumed: BTreeSet::new(),
        };
        if !server.restore()? {
            // One that died before it had recorded anything may have left it.
            let _ = server.channel.unpublish(UINPUT);
            server.channel.publish(&sysfs::uinput(UINPUT))?;
        }
        // Of a device whose making was taken back.
        for cookie in [EVENTS + server.next_device, INPUTS + server.next_device] {
            let _ = server.channel.unpublish(cookie);
        }
        server.record(0);
        server.send_owed();
        server.tell_readiness();
        Ok(server)
    }

    /// Tells the kernel what each open file is ready for.
    fn tell_readiness(&self) {
        for (&fh, file) in &self.files {
            let ready = match file {
                File::Event(id) => match self.devices.get(id) {
                    Some(published) => readiness(&published.device, ClientId(fh)),
                    None => Ready::HUP | Ready::ERR,
                },
                File::Uinput(uinput) => {
                    let device = uinput.created().and_then(|id| self.devices.get(&id));
                    let idle = device.is_some_and(|published| !published.device.has_for_driver());
                    if idle { Ready::OUT } else { Ready::OUT | Ready::IN }
                }
            };
            let _ = self.channel.ready(fh, ready);
        }
    }

    /// A request on this file is served.
    fn touch(&mut self, fh: u64) {
        self.touched.files.insert(fh);
        self.touched.devices.extend(match self.files.get(&fh) {
            Some(File::Event(id)) => Some(*id),
            Some(File::Uinput(uinput)) => uinput.created(),
            None => None,
        });
    }

    /// When [`Server::tick`] has something to do, in `CLOCK_MONOTONIC`.
    pub fn deadline(&self) -> Option<Nanos> {
        let repeats = self.devices.values().filter_map(|published| published.device.next_repeat());
        repeats.chain(self.waiting.iter().map(|waiting| waiting.deadline)).min()
    }

    /// Repeats keys that are held, and gives up on drivers that do not answer.
    pub fn tick(&mut self) {
        let now = self.clock.monotonic();
        let due = |published: &Published| published.device.next_repeat().is_some_and(|deadline| deadline <= now);
        let ids: Vec<DeviceId> =
            self.devices.iter().filter(|(_, published)| due(published)).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(published) = self.devices.get_mut(&id) {
                published.device.repeat(&*self.clock);
            }
            self.wake(id);
        }
        self.expire(now);
        self.record(0);
        self.send_owed();
    }

    /// Tells the kernel who has something to read.
    pub(crate) fn wake(&mut self, id: DeviceId) {
        self.touched.devices.insert(id);
        let Some(published) = self.devices.get_mut(&id) else { return };
        for client in published.device.take_woken() {
            self.push(id, client);
        }
        self.push_driver(id);
    }

    /// Pushes the readiness of a reader.
    pub(crate) fn push(&self, id: DeviceId, client: ClientId) {
        let Some(published) = self.devices.get(&id) else { return };
        // An open file that is just being closed is not known any more.
        let _ = self.channel.ready(client.0, readiness(&published.device, client));
    }

    /// Pushes the readiness of a device's driver.
    pub(crate) fn push_driver(&self, id: DeviceId) {
        if let Some(Published { device, driver: Some(driver), .. }) = self.devices.get(&id)
            && device.has_for_driver()
        {
            let _ = self.channel.ready(*driver, Ready::OUT | Ready::IN);
        }
    }

    /// Makes a device: its directories, its node, its uevents.
    pub(crate) fn create(
        &mut self,
        description: Description,
        parent: &Parent,
        driver: u64,
    ) -> Result<DeviceId, Failure> {
        let device = Device::new(description).ok_or(Errno::INVAL)?;
        let taken = |minor: u32| self.devices.values().any(|published| published.minor == minor);
        let minor = sysfs::minors().find(|minor| !taken(*minor)).ok_or(Errno::NFILE)?;
        let id = self.next_device;
        let input = sysfs::input(INPUTS + id, &sysname(id), parent, device.description());
        self.channel.publish(&input).map_err(|error| errno(&error))?;
        if let Err(error) = self.channel.publish(&sysfs::event(EVENTS + id, minor, INPUTS + id)) {
            let _ = self.channel.unpublish(INPUTS + id);
            return Err(errno(&error).into());
        }
        self.next_device += 1;
        self.touched.devices.insert(id);
        self.devices.insert(id, Published { device, minor, driver: Some(driver), written: 0 });
        Ok(id)
    }

    /// Removes a device. Its readers keep their open files, which are dead.
    pub(crate) fn destroy(&mut self, id: DeviceId) {
        self.touched.devices.insert(id);
        let Some(published) = self.devices.get_mut(&id) else { return };
        published.driver = None;
        published.device.disconnect();
        let clients: Vec<ClientId> = published.device.clients().collect();
        self.fail_waiting(id);
        // The readers first: who no longer finds the node does not read "try again" from the file either.
        for client in &clients {
            self.push(id, *client);
        }
        let _ = self.channel.unpublish(EVENTS + id);
        let _ = self.channel.unpublish(INPUTS + id);
        self.forget(id);
    }

    /// Drops a device that neither a driver nor a reader has.
    fn forget(&mut self, id: DeviceId) {
        if self
            .devices
            .get(&id)
            .is_some_and(|published| published.driver.is_none() && published.device.clients().next().is_none())
        {
            self.devices.remove(&id);
        }
    }

    fn file(&mut self) -> u64 {
        let fh = self.next_file;
        self.next_file += 1;
        self.touched.files.insert(fh);
        fh
    }

    fn uinput_ioctl(&mut self, cx: &Cx<'_>, call: &Ioctl<'_>) -> Reply<IoctlReply> {
        // Taken out, so that the request can change the server as well.
        let Some(File::Uinput(mut uinput)) = self.files.remove(&call.fh) else { return Err(Errno::BADF.into()) };
        let result = uinput.ioctl(self, cx, call);
        self.files.insert(call.fh, File::Uinput(uinput));
        result
    }
}

/// The name of `inputN`.
pub(crate) fn sysname(id: DeviceId) -> String {
    format!("input{id}")
}

/// What a reader's open file is ready for.
fn readiness(device: &Device, client: ClientId) -> Ready {
    let mut ready = if device.is_alive(client) { Ready::OUT } else { Ready::HUP | Ready::ERR };
    if device.client(client).is_some_and(input_core::Client::is_readable) {
        ready |= Ready::IN;
    }
    ready
}

/// The events that bytes are; what is left over is ignored.
pub(crate) fn events(data: &[u8]) -> impl Iterator<Item = InputEvent> + '_ {
    data.chunks_exact(EVENT).filter_map(|bytes| InputEvent::read_from_bytes(bytes).ok())
}

impl DeviceServer for Server {
    fn open(&mut self, _: &Cx<'_>, node: u64, _: u32) -> Result<Opened, Failure> {
        let fh = self.file();
        if node == UINPUT {
            self.files.insert(fh, File::Uinput(Box::default()));
            // Readable, so that a read before there is a device fails rather than waits.
            return Ok(Opened::new(fh, Ready::OUT | Ready::IN));
        }
        let id = node.checked_sub(EVENTS).ok_or(Errno::NXIO)?;
        let published = self.devices.get_mut(&id).filter(|published| published.driver.is_some()).ok_or(Errno::NODEV)?;
        published.device.open(ClientId(fh));
        self.touched.devices.insert(id);
        self.files.insert(fh, File::Event(id));
        Ok(Opened::new(fh, Ready::OUT))
    }

    fn release(&mut self, _: &Cx<'_>, fh: u64) {
        self.touch(fh);
        match self.files.remove(&fh) {
            Some(File::Uinput(uinput)) => {
                if let Some(id) = uinput.created() {
                    self.destroy(id);
                }
            }
            Some(File::Event(id)) => {
                self.erase_effects(id, ClientId(fh));
                if let Some(published) = self.devices.get_mut(&id) {
                    published.device.close(ClientId(fh));
                }
                self.push_driver(id);
                self.forget(id);
            }
            None => {}
        }
    }

    fn read(&mut self, _: &Cx<'_>, fh: u64, size: usize, _nonblock: bool) -> Reply<Vec<u8>> {
        if size != 0 && size < EVENT {
            return Err(Errno::INVAL.into());
        }
        self.touch(fh);
        let max = size / EVENT;
        let events = match self.files.get(&fh).ok_or(Errno::BADF)? {
            File::Uinput(uinput) => {
                let id = uinput.created().ok_or(Errno::NODEV)?;
                let device = &mut self.devices.get_mut(&id).ok_or(Errno::NODEV)?.device;
                let events = device.take_for_driver(max);
                if !device.has_for_driver() {
                    let _ = self.channel.ready(fh, Ready::OUT);
                }
                events
            }
            File::Event(id) => {
                let id = *id;
                let device = &mut self.devices.get_mut(&id).ok_or(Errno::NODEV)?.device;
                let events = match device.read(ClientId(fh), max) {
                    Ok(events) => events,
                    Err(ReadError::Gone) => return Err(Errno::NODEV.into()),
                    Err(ReadError::Empty) => Vec::new(),
                };
                if !device.client(ClientId(fh)).is_some_and(input_core::Client::is_readable) {
                    self.push(id, ClientId(fh));
                }
                events
            }
        };
        if events.is_empty() && size != 0 {
            // Not before the next push, whether the caller waits or not.
            return Err(Errno::AGAIN.into());
        }
        Ok(Answer::Now(events.as_bytes().to_vec()))
    }

    fn write(&mut self, _: &Cx<'_>, fh: u64, data: &[u8], _nonblock: bool) -> Reply<usize> {
        self.touch(fh);
        let Some(file) = self.files.get_mut(&fh) else { return Err(Errno::BADF.into()) };
        let id = match file {
            File::Uinput(uinput) => match uinput.created() {
                Some(id) => id,
                None if data.is_empty() => return Ok(Answer::Now(0)),
                None => return uinput.describe_by_write(data).map(Answer::Now),
            },
            File::Event(id) => *id,
        };
        let from_driver = matches!(file, File::Uinput(_));
        let Published { device, written, .. } = self.devices.get_mut(&id).ok_or(Errno::NODEV)?;
        if !from_driver && !device.is_alive(ClientId(fh)) {
            return Err(Errno::NODEV.into());
        }
        if data.is_empty() {
            return Ok(Answer::Now(0));
        }
        if data.len() < EVENT {
            return Err(Errno::INVAL.into());
        }
        for event in events(data) {
            // Asked for at the end of a packet only: most drivers leave the time to us.
            if from_driver
                && event.kind == EV_SYN
                && event.code == SYN_REPORT
                && let Some(time) = crate::uinput::valid_time(&event, &*self.clock)
            {
                device.set_time(time);
            }
            if from_driver {
                device.report(event.kind, event.code, event.value, &*self.clock);
                *written = written.wrapping_add(1);
            } else {
                device.event(event.kind, event.code, event.value, &*self.clock);
            }
        }
        self.wake(id);
        Ok(Answer::Now(data.len() / EVENT * EVENT))
    }

    fn ioctl(&mut self, cx: &Cx<'_>, call: &Ioctl<'_>) -> Reply<IoctlReply> {
        if cx.resent && self.resumed.contains(&cx.unique) {
            return Ok(Answer::Later);
        }
        self.touch(call.fh);
        match self.files.get(&call.fh) {
            Some(File::Uinput(_)) => self.uinput_ioctl(cx, call),
            Some(File::Event(id)) => {
                let id = *id;
                self.event_ioctl(id, cx, call)
            }
            None => Err(Errno::BADF.into()),
        }
    }

    fn attr_show(&mut self, _: &Cx<'_>, node: u64, attr: u64) -> Result<Vec<u8>, Failure> {
        let published = node.checked_sub(INPUTS).and_then(|id| self.devices.get(&id)).ok_or(Errno::NODEV)?;
        match attr {
            ATTR_INHIBITED => Ok(format!("{}\n", u8::from(published.device.is_inhibited())).into_bytes()),
            _ => Err(Errno::IO.into()),
        }
    }

    fn attr_store(&mut self, _: &Cx<'_>, node: u64, attr: u64, data: &[u8]) -> Result<(), Failure> {
        let id = node.checked_sub(INPUTS).ok_or(Errno::NODEV)?;
        let published = self.devices.get_mut(&id).ok_or(Errno::NODEV)?;
        if attr != ATTR_INHIBITED {
            return Err(Errno::IO.into());
        }
        // The words that the kernel's `kstrtobool` takes.
        let inhibited = match data {
            [b'y' | b'Y' | b't' | b'T' | b'1', ..] | [b'o' | b'O', b'n' | b'N', ..] => true,
            [b'n' | b'N' | b'f' | b'F' | b'0', ..] | [b'o' | b'O', b'f' | b'F', ..] => false,
            _ => return Err(Errno::INVAL.into()),
        };
        published.device.inhibit(inhibited, &*self.clock);
        self.wake(id);
        Ok(())
    }

    fn interrupt(&mut self, _: &Cx<'_>, unique: u64) {
        self.give_up(unique);
    }

    fn before(&mut self, _: &dyn Channel) {
        self.settle_record();
    }

    fn after(&mut self, _: &dyn Channel, unique: u64) {
        self.record(unique);
        self.send_owed();
    }
}
