//! The daemon: one thread that receives announcements and requests and keeps the queue, and workers that do the events.
//!
//! Start: rules, static nodes, then every device that is there already is asked to announce itself ("coldplug"), by a thread
//! of its own so that the kernel's socket is read meanwhile. devd is ready when the last of these events is done.
//! All state is in `/run/udev`; after a restart devices that are known are announced as `change`, others as `add`, and records
//! of devices that are gone are thrown away.
//!
//! `/run/udev/queue` exists while there are events; `udevadm settle` watches it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::{
    control::{Client, Listener, Request},
    device::{self, Device, Paths, Properties},
    log,
    monitor::{Announcer, KernelSocket, Received},
    node,
    process::{self, Setup},
    queue::Queue,
    record::absent_is_fine,
    rules::{FOLDERS, Rules},
};

/// How often at most the rule folders are looked at for changes.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);
/// How long events may go on after a request to end.
const END_PATIENCE: Duration = Duration::from_secs(30);

struct Job {
    number: u64,
    properties: Properties,
    setup: Arc<Setup>,
}

/// The threads that do events; started as they are needed.
struct Workers {
    jobs: Sender<Job>,
    waiting: Arc<Mutex<Receiver<Job>>>,
    done: Receiver<u64>,
    report: Sender<u64>,
    wake: Arc<OwnedFd>,
    announcer: Arc<Announcer>,
    threads: usize,
    limit: usize,
}

impl Workers {
    fn new(limit: usize) -> io::Result<Workers> {
        let (jobs, waiting) = channel();
        let (report, done) = channel();
        Ok(Workers {
            jobs,
            waiting: Arc::new(Mutex::new(waiting)),
            done,
            report,
            wake: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
            announcer: Arc::new(Announcer::open()?),
            threads: 0,
            limit,
        })
    }

    /// Hands a job to a worker; `running` jobs are theirs already.
    fn give(&mut self, job: Job, running: usize) -> io::Result<()> {
        if running > self.threads && self.threads < self.limit {
            self.start_thread()?;
        }
        self.jobs.send(job).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn start_thread(&mut self) -> io::Result<()> {
        let (waiting, report, wake) = (self.waiting.clone(), self.report.clone(), self.wake.clone());
        let announcer = self.announcer.clone();
        thread::Builder::new().name("event".into()).spawn(move || {
            loop {
                // The lock is held while waiting: one worker waits for a job, the others for the lock.
                let job = waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).recv();
                let Ok(job) = job else { return };
                let path = job.properties.get("DEVPATH").cloned().unwrap_or_default();
                let work = || process::process(&job.setup, job.properties, Some(&announcer));
                // An event that goes wrong shall not hold up those after it.
                if catch_unwind(AssertUnwindSafe(work)).is_err() {
                    log::error(format_args!("{path}: the event failed (message above)"));
                }
                if report.send(job.number).is_err() {
                    return;
                }
                wake_up(&wake);
            }
        })?;
        self.threads += 1;
        Ok(())
    }
}

fn wake_up(wake: &OwnedFd) {
    // Full means that it is awake.
    let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
}

/// The daemon.
pub struct Daemon {
    paths: Arc<Paths>,
    folders: Vec<PathBuf>,
    setup: Arc<Setup>,
    loaded: Option<std::time::SystemTime>,
    looked: Instant,
    kernel: KernelSocket,
    listener: Listener,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    queue: Queue<Properties>,
    has_queue_file: bool,
    workers: Workers,
    stopped: bool,
    ending: Option<Instant>,
    env: BTreeMap<String, String>,
    coldplugged: Arc<AtomicBool>,
    ready: bool,
}

impl Daemon {
    /// Opens the sockets, reads the rules, and begins with the devices that are there.
    ///
    /// # Errors
    /// A socket cannot be opened, `/run/udev` cannot be written.
    pub fn start(paths: Paths) -> Result<Daemon> {
        let paths = Arc::new(paths);
        let run = paths.store.folder().to_owned();
        let is_restart = run.join("data").exists();
        for name in ["data", "links", "tags", "static_node-tags"] {
            fs::create_dir_all(run.join(name)).with_context(|| format!("cannot make {}", run.join(name).display()))?;
        }
        clean_up(&run);
        let folders: Vec<PathBuf> = FOLDERS.iter().map(PathBuf::from).collect();
        let kernel = KernelSocket::open().context("cannot listen to the kernel's events")?;
        let listener = Listener::open(&run.join("control")).context("cannot make the control socket")?;
        let loaded = Rules::newest(&folders);
        let setup = Arc::new(process::load(&paths, &folders, Vec::new()));
        node::static_nodes(&paths, &setup.rules);
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let daemon = Daemon {
            paths: paths.clone(),
            folders,
            setup,
            loaded,
            looked: Instant::now(),
            kernel,
            listener,
            clients: BTreeMap::new(),
            next_client: 0,
            queue: Queue::default(),
            has_queue_file: false,
            workers: Workers::new(default_limit(processors))?,
            stopped: false,
            ending: None,
            env: BTreeMap::new(),
            coldplugged: Arc::default(),
            ready: false,
        };
        daemon.coldplug(is_restart)?;
        Ok(daemon)
    }

    /// Lets every device announce itself.
    fn coldplug(&self, is_restart: bool) -> io::Result<()> {
        let (paths, wake, done) = (self.paths.clone(), self.workers.wake.clone(), self.coldplugged.clone());
        done.store(false, Ordering::Release);
        thread::Builder::new().name("coldplug".into()).spawn(move || {
            if is_restart {
                forget_absent(&paths);
            }
            let count = trigger(&paths, is_restart);
            log::info(format_args!("{count} devices are there"));
            done.store(true, Ordering::Release);
            wake_up(&wake);
        })?;
        Ok(())
    }

    /// Serves until it is asked to end. `signals` becomes readable when a signal came; what came is read from it: a byte `h`
    /// for reading the rules again, any other for the end.
    ///
    /// # Errors
    /// The kernel's socket or poll(2) failed.
    pub fn run(mut self, mut signals: impl AsFd + io::Read) -> Result<()> {
        loop {
            self.work()?;
            if self.ending.is_some_and(|since| self.queue.running() == 0 || since.elapsed() > END_PATIENCE) {
                break;
            }
            self.wait(&signals)?;
            let _ = rustix::io::read(&*self.workers.wake, &mut [0; 8]);
            let mut byte = [0];
            while matches!(signals.read(&mut byte), Ok(1)) {
                if byte[0] == b'h' { self.reload() } else { self.end() }
            }
            self.receive()?;
            while let Ok(number) = self.workers.done.try_recv() {
                self.queue.done(number);
            }
            // After the kernel's socket: what was announced before a request is queued before it is answered.
            self.serve_clients();
        }
        self.listener.close();
        Ok(())
    }

    fn wait(&self, signals: &impl AsFd) -> io::Result<()> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.workers.wake.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.kernel.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN),
        ];
        fds.extend(self.clients.values().map(|client| PollFd::from_borrowed_fd(client.as_fd(), PollFlags::IN)));
        let limit = self.ending.map(|since| {
            let left = END_PATIENCE.saturating_sub(since.elapsed());
            Timespec { tv_sec: left.as_secs() as i64 + 1, tv_nsec: 0 }
        });
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes all announcements that wait.
    fn receive(&mut self) -> Result<()> {
        loop {
            match self.kernel.receive().context("cannot read the kernel's events")? {
                Received::Event(properties) => {
                    if self.ending.is_some() {
                        continue;
                    }
                    self.mark_queue(true);
                    self.queue.push(process::subject(&self.paths, &properties), properties);
                }
                Received::Ignored => {}
                Received::Empty => return Ok(()),
                Received::Lost => {
                    log::error(format_args!("announcements of devices were lost; all are asked again"));
                    self.coldplug(true)?;
                }
            }
        }
    }

    /// Starts what can be started, and says when there is nothing left.
    fn work(&mut self) -> Result<()> {
        if !self.queue.is_empty() && self.looked.elapsed() > LOOK_INTERVAL {
            self.looked = Instant::now();
            if Rules::newest(&self.folders) != self.loaded {
                self.reload();
            }
        }
        while !self.stopped && self.ending.is_none() && self.queue.running() < self.workers.limit {
            let Some((number, properties)) = self.queue.start() else { break };
            let job = Job { number, properties, setup: self.setup.clone() };
            self.workers.give(job, self.queue.running()).context("cannot start an event")?;
        }
        if self.queue.is_empty() {
            // The flag first, then the socket: what the last device announced has been sent when the flag is set.
            let all_asked = self.coldplugged.load(Ordering::Acquire);
            if !self.ready && all_asked {
                self.receive()?;
                if !self.queue.is_empty() {
                    return self.work();
                }
                self.ready = true;
                log::info(format_args!("all devices are set up"));
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
            }
            self.mark_queue(false);
        }
        Ok(())
    }

    fn mark_queue(&mut self, busy: bool) {
        if busy == self.has_queue_file {
            return;
        }
        let path = self.paths.store.folder().join("queue");
        let result = if busy { fs::write(&path, "") } else { absent_is_fine(fs::remove_file(&path)) };
        match result {
            Ok(()) => self.has_queue_file = busy,
            Err(error) => log::error(format_args!("{}: {error}", path.display())),
        }
    }

    fn reload(&mut self) {
        self.loaded = Rules::newest(&self.folders);
        let env = self.env.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        self.setup = Arc::new(process::load(&self.paths, &self.folders, env));
    }

    fn end(&mut self) {
        self.ending.get_or_insert_with(Instant::now);
    }

    fn serve_clients(&mut self) {
        while let Ok(Some(client)) = self.listener.accept() {
            self.clients.insert(self.next_client, client);
            self.next_client += 1;
        }
        let ids: Vec<u64> = self.clients.keys().copied().collect();
        for id in ids {
            let ends = loop {
                match self.clients[&id].receive() {
                    Ok(Some(Request::End)) | Err(_) => break true,
                    Ok(Some(request)) => self.obey(request),
                    Ok(None) => break false,
                }
            };
            if ends {
                self.clients.remove(&id);
            }
        }
    }

    fn obey(&mut self, request: Request) {
        match request {
            Request::End | Request::Ping => {}
            Request::LogLevel(level) => log::set_level(level.clamp(0, 7) as u8),
            Request::Stop => self.stopped = true,
            Request::Start => self.stopped = false,
            Request::Reload => self.reload(),
            Request::Env(key, Some(value)) => {
                self.env.insert(key, value);
                self.reload();
            }
            Request::Env(key, None) => {
                self.env.remove(&key);
                self.reload();
            }
            Request::Workers(limit) => {
                let processors = thread::available_parallelism().map_or(1, usize::from);
                self.workers.limit =
                    usize::try_from(limit).ok().filter(|&limit| limit > 0).unwrap_or(default_limit(processors));
            }
            Request::Exit => self.end(),
        }
    }
}

/// Workers wait for programs and attributes more than they compute.
fn default_limit(processors: usize) -> usize {
    (processors * 4).clamp(4, 64)
}

/// Removes what a daemon that was killed was about to rename.
fn clean_up(run: &Path) {
    for entry in fs::read_dir(run.join("data")).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(b".#devd-") {
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_file(run.join("queue"));
}

/// Forgets devices that went while nobody looked.
fn forget_absent(paths: &Arc<Paths>) {
    let interfaces: BTreeSet<String> = fs::read_dir(paths.sys.join("class/net"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| device::read_attribute(&entry.path().join("ifindex")))
        .collect();
    for id in paths.store.ids() {
        let is_there = match (id.chars().next(), id.get(1..)) {
            (Some('c'), Some(number)) => paths.sys.join("dev/char").join(number).exists(),
            (Some('b'), Some(number)) => paths.sys.join("dev/block").join(number).exists(),
            (Some('n'), Some(index)) => interfaces.contains(index),
            (Some('+'), Some(rest)) => match rest.split_once(':') {
                Some((subsystem, name)) => device::by_subsystem(paths, subsystem, name).is_some(),
                None => false,
            },
            _ => continue,
        };
        if !is_there && let Some(record) = paths.store.read(&id) {
            node::forget(paths, &id, record.links.iter().cloned());
            let _ = paths.store.index_tags(&id, &record.tags, &Default::default());
            let _ = paths.store.remove(&id);
        }
    }
}

/// All devices that sysfs shows: first what sorts them (buses, drivers, modules, classes), then the others, parents first.
#[must_use]
pub fn all_devices(paths: &Paths) -> Vec<PathBuf> {
    let list = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let mut sorting: BTreeSet<PathBuf> = BTreeSet::new();
    let mut devices: BTreeSet<PathBuf> = BTreeSet::new();
    let resolved = |paths: Vec<PathBuf>| paths.into_iter().filter_map(|path| fs::canonicalize(path).ok());
    sorting.extend(list(&paths.sys.join("module")));
    for bus in list(&paths.sys.join("bus")) {
        sorting.extend(list(&bus.join("drivers")));
        devices.extend(resolved(list(&bus.join("devices"))));
        sorting.insert(bus);
    }
    for class in list(&paths.sys.join("class")) {
        devices.extend(resolved(list(&class)));
    }
    let has_uevent = |path: &PathBuf| path.join("uevent").exists();
    sorting.into_iter().chain(devices).filter(has_uevent).collect()
}

/// Asks all devices to announce themselves; how many did.
fn trigger(paths: &Arc<Paths>, is_restart: bool) -> usize {
    let mut count = 0;
    for path in all_devices(paths) {
        let is_known = || Device::at(paths, &path).is_some_and(|device| device.record().is_some());
        let action = if is_restart && is_known() { "change" } else { "add" };
        match device::write_existing(&path.join("uevent"), action) {
            Ok(()) => count += 1,
            // It has gone meanwhile, or will not be asked.
            Err(error) => log::debug(format_args!("{}: {error}", path.display())),
        }
    }
    count
}
