//! The way up and the way down: the stages between the kernel's start of this program and the last word.
//!
//! ```text
//!            root=                    device found               server ready
//! Begin ───────────► FindingRoot ───────────────► StartingRoot ───────────────┐
//!   │ the boot archive is the root                                            ▼
//!   └─────────────────────────────────────────────────────────────────► LoadingSystem ──► Up
//!
//! Up ──► StoppingServices ──► EndingEveryone ──► Unmounting ──► UnmountingRoot ──► EndingServers ──► Down
//!        all but the boot set  whoever is left   what is not    its server then    the drivers
//!                                                the root       ends by itself
//! ```
//!
//! With a disk the boot archive stays what it was: the boot set (`boot = true`: the disk's driver and the root's server) has
//! its root and its files there. Everybody else's root is [`root::PLACE`], where the disk is mounted, this process's too, whose
//! working directory stays outside (see [`system`]). While the root is used, written back and unmounted, a member of the boot set
//! that dies is started again, as always.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::{
    drivers,
    helper::{Helper, Task},
    manager::{Event, State},
    root,
    supervisor::Supervisor,
    system::{self, Loaded},
    unit,
};

/// How far the system is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Nothing was done yet.
    #[default]
    Begin,
    /// The drivers of disks start, a helper waits for the disk.
    FindingRoot,
    /// The root's server starts.
    StartingRoot,
    /// A helper reads the files of services and drivers.
    LoadingSystem,
    /// All services are known; on the way down: they are being stopped.
    Up,
    /// What is wrong: the system cannot go up.
    Broken(String),
    /// Processes that are no services are told to end.
    EndingEveryone {
        /// When it began.
        since: Instant,
        /// When to look again.
        look: Instant,
        /// Who was told.
        told: BTreeSet<i32>,
    },
    /// A helper writes back and unmounts.
    Unmounting(Instant),
    /// A helper unmounts the root.
    UnmountingRoot(Instant),
    /// The root's server writes what it must, then drivers end.
    EndingServers {
        /// When patience ends.
        deadline: Instant,
        /// Whether they were told, after the root's server had ended.
        told: bool,
    },
    /// The machine can go down.
    Down,
}

/// From SIGTERM to SIGKILL for who is no service, and how long then to wait.
const TERM_PATIENCE: Duration = Duration::from_secs(5);
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked who is left.
const LOOK: Duration = Duration::from_millis(40);
/// How long writing back and unmounting may take.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(180);
/// The same for the root's server's end, and for each driver's.
const SERVER_PATIENCE: Duration = Duration::from_secs(60);

impl Stage {
    /// When there is something to do although nothing happens.
    pub fn next_look(&self) -> Option<Instant> {
        match self {
            Stage::EndingEveryone { look, .. } => Some(*look),
            Stage::Unmounting(deadline) | Stage::UnmountingRoot(deadline) | Stage::EndingServers { deadline, .. } => {
                Some(*deadline)
            }
            _ => None,
        }
    }
}

impl Supervisor {
    /// Begins the way up.
    ///
    /// # Errors
    /// A helper cannot be started.
    pub fn start(&mut self) -> Result<()> {
        if !self.ours || !root::is_wanted() {
            return self.load_system();
        }
        let texts = drivers::read(Path::new(system::DRIVERS));
        let (mut drivers, problems) = drivers::parse_all(&texts);
        problems.iter().for_each(|problem| self.say(problem));
        // The archive may hold more than the boot set. The others come with the root.
        drivers.retain(|_, driver| driver.is_boot());
        self.drivers = drivers;
        self.stage = Stage::FindingRoot;
        self.help(Task::FindRoot, None)?;
        self.watch_devices();
        Ok(())
    }

    fn help(&mut self, task: Task, argument: Option<&Path>) -> Result<()> {
        self.helper = Some(Helper::start(&self.program, task, argument)?);
        Ok(())
    }

    fn has_disk(&self) -> bool {
        self.manager.services().contains_key(root::SERVICE)
    }

    fn load_system(&mut self) -> Result<()> {
        self.stage = Stage::LoadingSystem;
        self.help(Task::LoadSystem, self.has_disk().then_some(Path::new(root::PLACE)))
    }

    /// Takes what a helper found out.
    pub(crate) fn helped(&mut self, task: Task, answer: Result<String>) {
        let done = match (task, &self.stage) {
            (Task::FindRoot, Stage::FindingRoot) => {
                answer.context("there is no root file system").and_then(|answer| self.found(&answer))
            }
            (Task::LoadSystem, Stage::LoadingSystem) => {
                answer.context("the system cannot be loaded").and_then(|answer| self.loaded(&answer))
            }
            (Task::Unmount, Stage::Unmounting(_)) => self.unmounted(),
            (Task::UnmountRoot, Stage::UnmountingRoot(_)) => {
                // It said what it could not do. Its data are written in any case.
                self.end_servers();
                Ok(())
            }
            // The system goes down meanwhile.
            _ => Ok(()),
        };
        if let Err(error) = done {
            self.stage = Stage::Broken(format!("{error:#}"));
        }
    }

    fn found(&mut self, answer: &str) -> Result<()> {
        let found: root::Found = toml::from_str(answer)?;
        let unit = root::unit(&found)?;
        self.say(&format!("the root is {} on {}", found.kind, found.device.display()));
        self.stage = Stage::StartingRoot;
        self.feed(Event::Add(root::SERVICE.to_owned(), Box::new(unit)));
        Ok(())
    }

    fn loaded(&mut self, answer: &str) -> Result<()> {
        let loaded: Loaded = toml::from_str(answer)?;
        if self.has_disk() {
            let place = Path::new(root::PLACE).strip_prefix("/")?;
            rustix::process::chroot(place).context("the root cannot be entered")?;
        }
        let (mut units, problems) = unit::parse_all(&loaded.units);
        let (drivers, more) = drivers::parse_all(&loaded.drivers);
        loaded.problems.iter().chain(&problems).chain(&more).for_each(|problem| self.say(problem));
        self.grants.learn(loaded.schemes);
        for (name, driver) in drivers {
            // The boot set's are the boot archive's.
            self.drivers.entry(name).or_insert(driver);
        }
        if self.ours {
            units.extend(drivers::services(&self.drivers, &drivers::devices(Path::new("sys"))));
        }
        if units.is_empty() {
            bail!("there are no service files on the root file system");
        }
        for word in system::option("mask").unwrap_or_default().split(',') {
            units.remove(word);
        }
        let order = unit::start_order(&units)?;
        self.stage = Stage::Up;
        self.manager.add_all(units, order);
        self.feed(Event::Tick);
        if self.ours {
            self.watch_devices();
        }
        Ok(())
    }

    /// Goes on to the next stage, if it is time.
    ///
    /// # Errors
    /// The system cannot be started.
    pub(crate) fn advance(&mut self) -> Result<()> {
        let now = Instant::now();
        match &mut self.stage {
            Stage::Broken(reason) => {
                let reason = std::mem::take(reason);
                bail!(reason);
            }
            Stage::StartingRoot => match self.manager.services().get(root::SERVICE).map(|root| &root.state) {
                Some(State::Running { .. }) => self.load_system()?,
                Some(State::Failed(reason)) => bail!("the root file system is not served: {reason}"),
                _ => {}
            },
            Stage::EndingEveryone { since, look, told } if *look <= now => {
                let ours = self.manager.services().values().filter(|service| service.unit.boot);
                let ours: Vec<i32> = ours.filter_map(|service| service.pid()).collect();
                let left: Vec<i32> = system::processes().into_iter().filter(|pid| !ours.contains(pid)).collect();
                let kill = since.elapsed() > TERM_PATIENCE;
                for pid in &left {
                    if kill {
                        system::send(*pid, Signal::SIGKILL);
                    } else if told.insert(*pid) {
                        system::send(*pid, Signal::SIGTERM);
                        // One that is stopped takes it when it goes on.
                        system::send(*pid, Signal::SIGCONT);
                    }
                }
                let over = since.elapsed() > TERM_PATIENCE + KILL_PATIENCE;
                *look = now + LOOK;
                if over && !left.is_empty() {
                    self.say(&format!("processes do not end: {left:?}"));
                }
                if over || left.is_empty() {
                    self.unmount()?;
                }
            }
            Stage::Unmounting(deadline) | Stage::UnmountingRoot(deadline) if *deadline <= now => {
                self.say("unmounting takes too long; the system goes down without");
                self.end_servers();
            }
            Stage::EndingServers { deadline, told } => {
                let services = self.manager.services();
                let servers = services.values().any(|service| service.unit.serves.is_some() && service.pid().is_some());
                let anybody = services.values().any(|service| service.pid().is_some());
                let over = *deadline <= now;
                if !anybody || over && *told {
                    self.stage = Stage::Down;
                } else if (!servers || over) && !*told {
                    (*told, *deadline) = (true, now + SERVER_PATIENCE);
                    let names: Vec<String> = services.keys().cloned().collect();
                    names.into_iter().for_each(|name| self.feed(Event::Stop(name)));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// All services but the boot set have stopped.
    pub(crate) fn services_stopped(&mut self) {
        // A helper of the way up is one of those that are told to end.
        self.helper = None;
        let now = Instant::now();
        self.stage = Stage::EndingEveryone { since: now, look: now, told: BTreeSet::new() };
    }

    fn unmount(&mut self) -> Result<()> {
        // Out of the root, which is unmounted, to where this process works.
        rustix::process::chroot(".").context("chroot")?;
        self.stage = Stage::Unmounting(Instant::now() + UNMOUNT_PATIENCE);
        self.help(Task::Unmount, self.has_disk().then_some(Path::new(root::PLACE)))
    }

    fn unmounted(&mut self) -> Result<()> {
        if !self.has_disk() {
            self.end_servers();
            return Ok(());
        }
        // Without requests its server ends.
        self.manager.let_end(root::SERVICE);
        self.stage = Stage::UnmountingRoot(Instant::now() + UNMOUNT_PATIENCE);
        self.help(Task::UnmountRoot, Some(Path::new(root::PLACE)))
    }

    fn end_servers(&mut self) {
        self.stage = Stage::EndingServers { deadline: Instant::now() + SERVER_PATIENCE, told: false };
    }
}
