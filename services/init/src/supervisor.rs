//! The event loop: carries out what the [`Manager`] decides.

use std::{
    collections::{BTreeMap, VecDeque},
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixDatagram, UnixListener},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    sys::{
        signal::{SigSet, Signal, killpg},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::WaitOptions;

use crate::{
    confine::Jails,
    control,
    drivers::{self, Driver},
    grants::Grants,
    helper::Helper,
    manager::{Action, Ending, Event, ExitKind, Manager, Pid, Spawned, State},
    notify::{self, StoreRequest},
    spawn,
    startup::Stage,
    system::Down,
    unit::Unit,
};

/// Everything that the loop owns.
pub struct Supervisor {
    pub(crate) manager: Manager,
    pub(crate) program: PathBuf,
    notify_path: PathBuf,
    notify: UnixDatagram,
    control: UnixListener,
    signals: SignalFd,
    stores: BTreeMap<String, Vec<(String, OwnedFd)>>,
    pub(crate) grants: Grants,
    pub(crate) jails: Jails,
    pub(crate) going: Option<Down>,
    console: Option<std::fs::File>,
    /// How far the system is, up or down.
    pub(crate) stage: Stage,
    pub(crate) helper: Option<Helper>,
    /// Whether the kernel is Ursa, where drivers are processes.
    pub(crate) ours: bool,
    /// Where the kernel tells of devices; none where drivers are the kernel's.
    uevents: Option<OwnedFd>,
    /// Who drives which device.
    pub(crate) drivers: BTreeMap<String, Driver>,
}

/// Signals that the loop takes in through a descriptor.
const SIGNALS: [Signal; 5] = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR, Signal::SIGUSR2];

impl Supervisor {
    /// Opens the sockets under `run`; nothing starts yet.
    ///
    /// # Errors
    /// When a socket or the signal descriptor cannot be made.
    pub fn new(run: &Path, program: PathBuf, ours: bool) -> Result<Supervisor> {
        std::fs::create_dir_all(run)?;
        let mask: SigSet = SIGNALS.into_iter().collect();
        mask.thread_block()?;
        let signals =
            SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context("signalfd")?;
        let notify_path = run.join("notify");
        let notify = notify::bind(&notify_path).context("notification socket")?;
        let control = control::bind(&run.join("init.sock")).context("control socket")?;
        Ok(Supervisor {
            manager: Manager::new(BTreeMap::new(), Vec::new()),
            program,
            notify_path,
            notify,
            control,
            signals,
            stores: BTreeMap::new(),
            grants: Grants::default(),
            jails: Jails::default(),
            going: None,
            console: spawn::console(),
            stage: Stage::Begin,
            helper: None,
            ours,
            uevents: None,
            drivers: BTreeMap::new(),
        })
    }

    /// Starts and stops drivers as devices come and go, from now on.
    pub fn watch_devices(&mut self) {
        match crate::uevent::open() {
            Ok(uevents) => self.uevents = Some(uevents),
            Err(error) => self.say(&format!("devices that are plugged in get no driver: {error}")),
        }
        self.match_drivers();
    }

    /// Looks which devices are there, starts drivers of new ones and stops those whose device is gone.
    pub(crate) fn match_drivers(&mut self) {
        let wanted = drivers::services(&self.drivers, &drivers::devices(Path::new("sys")));
        let masked = crate::system::option("mask").unwrap_or_default();
        let running = |service: &crate::manager::Service| service.is_wanted();
        let services = self.manager.services();
        let gone: Vec<String> = services
            .iter()
            .filter(|(name, service)| drivers::is_driver(name) && running(service) && !wanted.contains_key(*name))
            .map(|(name, _)| name.clone())
            .collect();
        let come: Vec<(String, Unit)> = wanted
            .into_iter()
            .filter(|(name, _)| !services.get(name).is_some_and(running) && !masked.split(',').any(|word| word == name))
            .collect();
        for name in gone {
            self.say(&format!("{name}: its device is gone"));
            self.feed(Event::Stop(name));
        }
        for (name, unit) in come {
            self.feed(Event::Add(name, Box::new(unit)));
        }
    }

    /// Runs until the system shall go down and everything has ended; returns how.
    ///
    /// # Errors
    /// The system cannot be started; why.
    pub fn run(mut self) -> Result<Down> {
        self.feed(Event::Tick);
        loop {
            self.advance()?;
            if self.stage == Stage::Down {
                return Ok(self.going.unwrap_or(Down::PowerOff));
            }
            self.wait();
            self.take_signals();
            self.reap();
            self.take_messages();
            while let Ok((stream, _)) = self.control.accept() {
                if let Some(request) = control::read_request(&stream) {
                    let answer = self.request(request);
                    control::answer(stream, &answer);
                }
            }
            if self.going.is_none() && self.uevents.as_ref().is_some_and(crate::uevent::device_changes) {
                self.match_drivers();
            }
            self.feed(Event::Tick);
            if let Some(name) = self.manager.essential_gone().map(str::to_owned)
                && self.going.is_none()
            {
                self.say(&format!("{name} has ended: the system goes down"));
                self.go(Down::PowerOff);
            }
        }
    }

    pub(crate) fn say(&mut self, line: &str) {
        if let Some(console) = &mut self.console {
            let _ = writeln!(console, "init: {line}\r");
        } else {
            eprintln!("init: {line}");
        }
    }

    fn wait(&self) {
        let deadlines = self.manager.next_deadline().into_iter().chain(self.stage.next_look());
        let timeout = deadlines.min().map(|deadline| {
            // Rounded up: a wake-up just before the deadline would find nothing to do.
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(1);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        let sources = [self.signals.as_fd(), self.notify.as_fd(), self.control.as_fd()];
        let more = self.uevents.as_ref().map(AsFd::as_fd).into_iter();
        let more = more.chain(self.helper.as_ref().and_then(Helper::output));
        let mut fds: Vec<PollFd<'_>> =
            sources.into_iter().chain(more).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        // An interruption is an event like any other: the caller looks at everything in any case.
        let _ = poll(&mut fds, timeout.as_ref());
    }

    fn take_signals(&mut self) {
        if let Some(helper) = &mut self.helper {
            helper.listen();
        }
        while let Ok(Some(info)) = self.signals.read_signal() {
            match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGINT) => self.go(Down::Reboot), // Ctrl-Alt-Del
                Ok(Signal::SIGTERM | Signal::SIGPWR) => self.go(Down::PowerOff),
                Ok(Signal::SIGUSR2) => {
                    let status = self.status();
                    self.say(&status);
                }
                _ => {}
            }
        }
    }

    fn take_messages(&mut self) {
        while let Some(message) = notify::receive(&self.notify) {
            if let Some(request) = message.store {
                self.store(message.pid, request);
            }
            self.feed(Event::Notify(message.pid, message.notice));
        }
    }

    /// Reaps every child that has ended, services and orphans alike. With rustix's call, since nix's loses a child that a
    /// real-time signal ended.
    fn reap(&mut self) {
        loop {
            let (pid, ended) = match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, ended))) => (pid.as_raw_nonzero().get(), ended),
                Ok(None) | Err(rustix::io::Errno::CHILD) => return,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return self.say(&format!("wait4: {error}")),
            };
            let how = match (ended.exit_status(), ended.terminating_signal()) {
                (Some(status), _) => ExitKind::Status(status),
                (None, Some(signal)) => ExitKind::Signal(signal),
                // A stop, which a child that made us its tracer reports unasked.
                (None, None) => continue,
            };
            if self.helper.as_ref().is_some_and(|helper| helper.pid == pid)
                && let Some(helper) = self.helper.take()
            {
                let (task, answer) = (helper.task, helper.finish(how));
                self.helped(task, answer);
                continue;
            }
            // What it had to say is there by now, and is said before it is gone: what it forgets is not passed on.
            self.take_messages();
            // What the service left behind in its process group goes with it.
            if self.manager.service_of(pid).is_some() {
                let _ = killpg(unistd::Pid::from_raw(pid), Signal::SIGKILL);
            }
            self.feed(Event::Exited(pid, how));
        }
    }

    pub(crate) fn feed(&mut self, event: Event) {
        let now = Instant::now();
        let mut actions: VecDeque<Action> = self.manager.handle(now, event).into();
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Spawn(name) => {
                    let outcome = self.spawn(&name).unwrap_or_else(|error| Spawned::Failed(format!("{error:#}")));
                    actions.extend(self.manager.spawned(now, &name, outcome));
                }
                Action::Signal(pid, kill) => {
                    let signal = match kill {
                        Ending::Term => Signal::SIGTERM,
                        Ending::Kill => Signal::SIGKILL,
                        Ending::Abort => Signal::SIGABRT,
                    };
                    // The child leads a session, and so a group, of its own as soon as it has set itself up.
                    let pid = unistd::Pid::from_raw(pid);
                    if killpg(pid, signal).is_err() {
                        let _ = nix::sys::signal::kill(pid, signal);
                    }
                    // One that hangs because it was stopped would keep the signal for later.
                    if kill == Ending::Abort {
                        let _ = killpg(pid, Signal::SIGCONT);
                    }
                }
                Action::Log(line) => self.say(&line),
                Action::AllStopped => self.services_stopped(),
            }
        }
        let over = |name: &str| self.manager.is_over(name);
        self.grants.release(over);
        self.stores.retain(|name, _| !over(name));
    }

    /// Starts a unit's program, if its conditions hold.
    fn spawn(&mut self, name: &str) -> Result<Spawned> {
        let unit = &self.manager.services()[name].unit;
        if unit.condition_option.as_ref().is_some_and(|word| !crate::system::has_option(word)) {
            return Ok(Spawned::PassedOver);
        }
        let stored = self.stores.get(name).map_or(&[][..], Vec::as_slice);
        let passed = self.grants.open(name, unit, stored)?;
        let jail = match unit.confined {
            true => Some(self.jails.assign(name, unit).context("its jail")?),
            false => None,
        };
        spawn::spawn(&self.program, name, unit, &self.notify_path, &passed, jail.as_ref()).map(Spawned::Runs)
    }

    fn store(&mut self, pid: Pid, request: StoreRequest) {
        let Some(name) = self.manager.service_of(pid).map(str::to_owned) else { return };
        let max = self.manager.services()[&name].unit.fd_store_max;
        let store = self.stores.entry(name).or_default();
        match request {
            StoreRequest::Keep(fd_name, fds) => {
                let room = max.saturating_sub(store.len());
                store.extend(fds.into_iter().take(room).map(|fd| (fd_name.clone(), fd)));
            }
            StoreRequest::Remove(fd_name) => store.retain(|(stored, _)| *stored != fd_name),
        }
    }

    fn go(&mut self, how: Down) {
        if self.going.is_none() {
            self.going = Some(how);
            self.feed(Event::Shutdown);
        }
    }

    fn request(&mut self, request: control::Request) -> String {
        let known = |name: &str| self.manager.services().contains_key(name);
        match request {
            control::Request::Status => self.status(),
            control::Request::Start(name) if known(&name) => {
                self.feed(Event::Start(name));
                "ok\n".to_owned()
            }
            control::Request::Stop(name) if known(&name) => {
                self.feed(Event::Stop(name));
                "ok\n".to_owned()
            }
            control::Request::Start(name) | control::Request::Stop(name) => format!("error: no service {name}\n"),
            control::Request::Down(how) => {
                self.go(how);
                "ok\n".to_owned()
            }
        }
    }

    fn status(&self) -> String {
        let mut text = String::new();
        for (name, service) in self.manager.services() {
            let state = match &service.state {
                State::Inactive => "inactive".to_owned(),
                State::Spawning => "spawning".to_owned(),
                State::Starting { pid, .. } => format!("starting (process {pid})"),
                State::Running { pid, .. } => format!("running (process {pid})"),
                State::Done => "done".to_owned(),
                State::Stopping { pid, .. } => format!("stopping (process {pid})"),
                State::Backoff { .. } => "waits before its next start".to_owned(),
                State::Failed(reason) => format!("failed: {reason}"),
            };
            text += &format!("{name}: {state} {}\n", service.status);
        }
        text
    }
}
