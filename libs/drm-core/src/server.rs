//! The card as a device server: open files, reads, mappings, and the loop that all events go through.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};
use scheme::{
    Answer, Channel, Connection, Cx, DeviceServer, Failure, Ioctl, IoctlReply, MmapBacking, MmapRequest, Opened, Ready,
    Reply,
};

use crate::card::{Card, Open};
use crate::driver::{Event, FileId};
use crate::error::to_io;
use crate::file::{Fh, File};
use crate::ioctl::{answer, is_question};
use crate::sysfs::{CARD, RENDER};

/// `O_EXCL`, with which a card cannot be opened.
const O_EXCL: u32 = 0o200;

/// A time to wake at, as a descriptor.
struct Alarm {
    timer: OwnedFd,
    /// For when the timer is set.
    set_for: Option<u64>,
}

impl Alarm {
    fn new() -> io::Result<Alarm> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        Ok(Alarm { timer, set_for: None })
    }

    /// Rings at `deadline`, in nanoseconds of the monotonic clock; not at all for `None`.
    fn set(&mut self, deadline: Option<u64>) -> io::Result<()> {
        if deadline == self.set_for {
            return Ok(());
        }
        // Zero would turn it off.
        let at = deadline.map_or(0, |at| at.max(1));
        let it_value = Timespec { tv_sec: (at / 1_000_000_000) as i64, tv_nsec: (at % 1_000_000_000) as i64 };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &Itimerspec { it_interval, it_value })?;
        self.set_for = deadline;
        Ok(())
    }
}

impl Card {
    /// Publishes the card and serves it until the connection ends.
    ///
    /// # Errors
    /// Whatever the connection says.
    pub fn run(&mut self, connection: &Connection) -> io::Result<()> {
        self.publish(connection)?;
        self.serve(connection)
    }

    /// Serves the card, which is published, until the connection ends.
    ///
    /// # Errors
    /// Whatever the connection says.
    pub fn serve(&mut self, connection: &Connection) -> io::Result<()> {
        match self.serve_all(connection) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(()),
            other => other,
        }
    }

    fn serve_all(&mut self, connection: &Connection) -> io::Result<()> {
        connection.start_watchdog()?;
        let mut alarm = Alarm::new()?;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for fd in self.driver.event_fds().into_iter().chain([alarm.timer.as_fd()]) {
            epoll::add(&events, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        }
        loop {
            self.service_driver();
            self.progress(connection);
            // At least what waits already, so that a descriptor which stays readable keeps nobody waiting for ever.
            connection.serve_pending(self)?;
            if self.has_watched_fences() {
                if !self.has_work() {
                    self.wait_for_fences(connection)?;
                }
                continue;
            }
            let mut failed = Ok(());
            connection.serve_beside(self, events.as_fd(), |card| {
                failed = alarm.set(card.deadline());
                failed.is_ok() && !card.has_watched_fences() && !card.has_work()
            })?;
            failed?;
        }
    }

    /// Sleeps until a request comes, the driver has something to do, time is over, or a fence is signalled. Fences come and
    /// go with each commit, so they are named anew each time.
    fn wait_for_fences(&mut self, connection: &Connection) -> io::Result<()> {
        let fences = self.watched_fences();
        let mut fds = vec![PollFd::new(connection, PollFlags::IN)];
        let of_driver = self.driver.event_fds();
        fds.extend(of_driver.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        let of_fences: Vec<_> = fences.iter().filter_map(|fence| fence.fd()).collect();
        fds.extend(of_fences.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        let timeout = self.timeout();
        match connection.rest(|| poll(&mut fds, timeout.as_ref())) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Until the next thing that is due by time. `None`: nothing is.
    fn timeout(&self) -> Option<Timespec> {
        let due = self.deadline()?.saturating_sub(self.now());
        // At least a moment, so that a clock that is read a little early does not make the loop spin.
        let due = due.max(1000);
        Some(Timespec { tv_sec: (due / 1_000_000_000) as i64, tv_nsec: (due % 1_000_000_000) as i64 })
    }

    /// When [`Card::progress`] is due, in nanoseconds of the monotonic clock, for a loop of one's own.
    pub fn deadline(&self) -> Option<u64> {
        [self.flight_deadline(), self.vblank_deadline(), self.parked_deadline()].into_iter().flatten().min()
    }

    /// Whether something is to be told to user space.
    fn has_news(&self) -> bool {
        !self.outbox.is_empty() || !self.readable.is_empty() || !self.connectors_changed.is_empty() || self.lease_event
    }

    /// Whether nothing has happened since [`Card::progress`] brought everything as far as it was, and nothing is under way. Most requests
    /// are questions that find and leave the card so.
    fn is_at_rest(&self) -> bool {
        !self.unrecorded
            && self.flights.is_empty()
            && self.parked.is_empty()
            && self.eventfd_waits.is_empty()
            && self.watched.is_empty()
            && !self.has_work()
    }

    /// Whether [`Card::progress`] has something to do at once, which the last request left behind.
    fn has_work(&self) -> bool {
        self.has_news()
            || !self.grave.is_empty()
            || self.syncobj_changed
            || self.deadline().is_some_and(|deadline| deadline <= self.now())
    }

    /// Takes in what the driver's device has to say.
    pub fn service_driver(&mut self) {
        let mut events = Vec::new();
        self.driver.service(&mut events);
        self.unrecorded |= !events.is_empty();
        for event in events {
            match event {
                Event::FlipDone { crtc } => self.flip_done(crtc),
                Event::Hotplug => {
                    self.probe_all();
                }
            }
        }
    }

    /// Brings everything as far as it is: commits, events, waiting requests, what is to be told to user space.
    pub fn progress(&mut self, channel: &dyn Channel) {
        self.settle_record();
        if self.recorder.is_some() && self.is_at_rest() {
            self.assert_recorded();
            return;
        }
        self.settle();
        self.serve_eventfds();
        self.retry_parked(channel);
        self.send_vblank_events();
        self.bury();
        self.record(0);
        // What is told from here on is recorded, that it was told is not.
        self.unrecorded = self.has_news();
        for (unique, reply) in std::mem::take(&mut self.outbox) {
            answer(channel, unique, Ok(reply));
        }
        for fh in std::mem::take(&mut self.readable) {
            // The file may be closed already.
            let _ = channel.ready(fh, Ready::IN);
        }
        self.tell_changes(channel);
    }

    fn open_client(&mut self, cx: &Cx<'_>, node: u64, flags: u32) -> Result<Fh, Failure> {
        let render = match node {
            CARD => false,
            RENDER if self.features.render => true,
            _ => return Err(scheme::Errno::NXIO.into()),
        };
        if flags & O_EXCL != 0 {
            return Err(scheme::Errno::BUSY.into());
        }
        let file = File { render, pid: cx.pid, uid: cx.uid, authenticated: cx.uid == 0, ..File::default() };
        let fh = self.add_file(Open::Client(Box::new(file)));
        if !render && let Err(errno) = self.master_open(fh) {
            self.remove_file(fh);
            return Err(to_io(errno).into());
        }
        Ok(fh)
    }

    /// A client is gone: its framebuffers leave the screen, its blobs, handles and leases end (`drm_file_free`).
    fn close_client(&mut self, channel: &dyn Channel, fh: Fh) {
        self.drop_parked(channel, fh);
        self.drop_vblank_waits(fh);
        self.drop_eventfds(fh);
        let Ok(file) = self.file_mut(fh) else { return };
        let render = file.render;
        for fb in std::mem::take(&mut file.framebuffers) {
            self.remove_from_screen(&fb);
        }
        if !render {
            self.master_release(fh);
        }
        self.remove_file(fh);
        self.driver.file_closed(FileId(fh));
    }
}

impl DeviceServer for Card {
    fn open(&mut self, cx: &Cx<'_>, node: u64, flags: u32) -> Result<Opened, Failure> {
        self.unrecorded = true;
        let fh = self.open_client(cx, node, flags)?;
        Ok(Opened::new(fh, Ready::empty()))
    }

    fn release(&mut self, cx: &Cx<'_>, fh: u64) {
        self.unrecorded = true;
        match self.files.get(&fh) {
            Some(Open::Client(_)) => self.close_client(cx.channel, fh),
            _ => {
                self.touched.syncobjs = true;
                self.remove_file(fh);
            }
        }
    }

    fn read(&mut self, cx: &Cx<'_>, fh: u64, size: usize, _nonblock: bool) -> Reply<Vec<u8>> {
        self.unrecorded = true;
        let file = self.file_mut(fh).map_err(|_| scheme::Errno::INVAL)?;
        let events = file.read_events(size);
        if !file.has_events() {
            // Nothing more to read; the next event wakes the reader again.
            let _ = cx.channel.ready(fh, Ready::empty());
            if events.is_empty() {
                return Err(scheme::Errno::AGAIN.into());
            }
        }
        Ok(Answer::Now(events))
    }

    fn ioctl(&mut self, cx: &Cx<'_>, call: &Ioctl<'_>) -> Reply<IoctlReply> {
        if self.is_resumed(cx) {
            return Ok(Answer::Later);
        }
        self.unrecorded |= !is_question(call);
        let reply = match self.files.get(&call.fh) {
            Some(Open::Client(_)) => self.client_ioctl(cx, call),
            Some(Open::Syncobj(_)) => Err(scheme::Errno::NOTTY.into()),
            None => Err(scheme::Errno::BADF.into()),
        };
        self.unrecorded |= matches!(reply, Ok(Answer::Later));
        reply
    }

    fn mmap(&mut self, _cx: &Cx<'_>, fh: u64, request: &MmapRequest) -> Reply<MmapBacking> {
        self.unrecorded = true;
        self.map(fh, request)
    }

    fn attr_show(&mut self, _cx: &Cx<'_>, node: u64, attr: u64) -> Result<Vec<u8>, Failure> {
        self.unrecorded = true;
        Ok(self.show_attr(node, attr)?)
    }

    fn attr_store(&mut self, cx: &Cx<'_>, node: u64, attr: u64, data: &[u8]) -> Result<(), Failure> {
        let _ = cx;
        self.unrecorded = true;
        Ok(self.store_attr(node, attr, data)?)
    }

    fn interrupt(&mut self, cx: &Cx<'_>, unique: u64) {
        self.unrecorded = true;
        self.interrupt_parked(cx.channel, unique);
    }

    fn before(&mut self, channel: &dyn Channel) {
        self.progress(channel);
    }

    fn after(&mut self, channel: &dyn Channel, unique: u64) {
        if self.recorder.is_some() {
            if self.unrecorded {
                self.record(unique);
            } else {
                self.assert_recorded();
            }
        } else {
            // Nobody comes after it: the order does not matter, and what is due is done at once.
            self.progress(channel);
        }
    }
}
