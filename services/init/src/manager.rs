//! The supervisor's decisions: [`Manager`] turns what happened ([`Event`]) into what to do ([`Action`]).
//!
//! It owns no process, descriptor or clock: the caller passes the time in and carries the actions out, so every path is
//! tested with a made-up clock. A service's life:
//!
//! ```text
//!            start                    ready                      ends, restart wanted
//! Inactive ─────────► Starting ───────────────► Running ─────────────────────────────► Backoff ──► Starting
//!     ▲                  │ time limit, ends        │ stop, watchdog                        │ too many starts
//!     │                  ▼                         ▼                                       ▼
//!     └────────────── Stopping (SIGTERM, later SIGKILL) ────────────────────────────────► Failed
//! ```
//!
//! Between a state and Starting lies Spawning, while the caller starts the program. A oneshot that exits with status 0 goes from Starting to Done, which counts as started.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use crate::unit::{Kind, Restart, Unit};

/// A process number.
pub type Pid = i32;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A child was reaped.
    Exited(Pid, ExitKind),
    /// A service's process sent an sd_notify(3) message.
    Notify(Pid, Notice),
    /// An operator asks for a service to start.
    Start(String),
    /// An operator asks for a service to stop.
    Stop(String),
    /// A unit has come: a driver for a device that was plugged in. One of this name that was there is replaced.
    Add(String, Box<Unit>),
    /// The whole system goes down: stop everything, last started first.
    Shutdown,
    /// Nothing but the passing of time.
    Tick,
}

/// A service that has run so long since its start has served: its end is no failure to start.
const STEADY: Duration = Duration::from_secs(1);

/// How a child ends that was to become a service and found that the unit's conditions do not hold: it counts as done. The status
/// is none that programs use (they stay below 200), nor one of systemd.exec(5).
pub const PASSED_OVER: ExitKind = ExitKind::Status(PASSED_OVER_STATUS);
/// The status of [`PASSED_OVER`].
pub const PASSED_OVER_STATUS: i32 = 250;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// exit(2) with this status.
    Status(i32),
    /// Killed by this signal.
    Signal(i32),
}

impl ExitKind {
    fn is_success(self) -> bool {
        self == ExitKind::Status(0)
    }
}

/// The part of an sd_notify(3) message that the supervisor acts on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notice {
    /// `READY=1`
    pub ready: bool,
    /// `STOPPING=1`
    pub stopping: bool,
    /// `WATCHDOG=1`
    pub watchdog: bool,
    /// `WATCHDOG=trigger`: the service itself asks to be treated as hung.
    pub watchdog_trigger: bool,
    /// `STATUS=…`
    pub status: Option<String>,
    /// `EXTEND_TIMEOUT_USEC=…`
    pub extend_timeout: Option<Duration>,
    /// `MAINPID=…`
    pub main_pid: Option<Pid>,
}

/// What the caller must do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Start the service's program, then report the outcome to [`Manager::spawned`].
    Spawn(String),
    /// Send a signal to the process group of this process.
    Signal(Pid, Ending),
    /// Tell people.
    Log(String),
    /// All services have stopped after [`Event::Shutdown`], but for the boot set.
    AllStopped,
}

/// The signals that end a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM: please end.
    Term,
    /// SIGKILL: the time for that is over.
    Kill,
    /// SIGABRT: a hung service shall leave a core dump.
    Abort,
}

/// What came of an [`Action::Spawn`].
#[derive(Clone, Debug, PartialEq)]
pub enum Spawned {
    /// The program runs as this process.
    Runs(Pid),
    /// The kernel was not told the unit's option: it counts as done without having run.
    PassedOver,
    /// No process could be made, for this reason.
    Failed(String),
}

/// Where a service is in its life.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Not started, or waiting for what it comes after.
    Inactive,
    /// [`Action::Spawn`] was asked for and its outcome is not known yet.
    Spawning,
    /// Runs, but does not count as started.
    Starting {
        /// Its main process.
        pid: Pid,
        /// When patience ends.
        deadline: Instant,
    },
    /// Runs.
    Running {
        /// Its main process.
        pid: Pid,
        /// When the next `WATCHDOG=1` is overdue.
        watchdog: Option<Instant>,
    },
    /// A oneshot that succeeded.
    Done,
    /// Told to end.
    Stopping {
        /// Its main process.
        pid: Pid,
        /// When SIGKILL follows.
        deadline: Instant,
        /// What happens when it is gone.
        then: Then,
    },
    /// Waits before the next start.
    Backoff {
        /// When that is.
        until: Instant,
    },
    /// Given up.
    Failed(String),
}

/// What follows a stop.
#[derive(Clone, Debug, PartialEq)]
pub enum Then {
    /// Stay down.
    Rest,
    /// Treat as a failure for this reason (restart or give up).
    Fail(String),
}

/// One service with its history.
#[derive(Debug)]
pub struct Service {
    /// What its file says.
    pub unit: Unit,
    /// Where it is in its life.
    pub state: State,
    /// Its own last `STATUS=` text.
    pub status: String,
    /// Whether it should run.
    wanted: bool,
    starts: VecDeque<Instant>,
    restarts: u32,
    /// It has said ready.
    was_ready: bool,
}

impl Service {
    fn new(unit: Unit) -> Service {
        let (starts, status) = (VecDeque::new(), String::new());
        Service { unit, state: State::Inactive, status, wanted: true, starts, restarts: 0, was_ready: false }
    }

    /// Whether those that come after it may start.
    fn is_started(&self) -> bool {
        matches!(self.state, State::Running { .. } | State::Done)
    }

    /// Whether it should run.
    pub fn is_wanted(&self) -> bool {
        self.wanted
    }

    fn is_failed(&self) -> bool {
        matches!(self.state, State::Failed(_))
    }

    /// Whether nothing but an operator starts it again.
    fn is_over(&self) -> bool {
        self.is_failed() || (self.state == State::Inactive && !self.wanted)
    }

    /// Its main process, if it has one now.
    pub fn pid(&self) -> Option<Pid> {
        match self.state {
            State::Starting { pid, .. } | State::Running { pid, .. } | State::Stopping { pid, .. } => Some(pid),
            _ => None,
        }
    }
}

/// All services and what is to happen to them.
#[derive(Debug)]
pub struct Manager {
    services: BTreeMap<String, Service>,
    order: Vec<String>,
    shutting_down: bool,
    all_stopped_said: bool,
}

impl Manager {
    /// Makes a manager of the given units; `order` is from [`crate::unit::start_order`]. All are wanted.
    pub fn new(units: BTreeMap<String, Unit>, order: Vec<String>) -> Manager {
        let services = units.into_iter().map(|(name, unit)| (name, Service::new(unit))).collect();
        Manager { services, order, shutting_down: false, all_stopped_said: false }
    }

    /// The services by name.
    pub fn services(&self) -> &BTreeMap<String, Service> {
        &self.services
    }

    /// The service whose main process this is.
    pub fn service_of(&self, pid: Pid) -> Option<&str> {
        self.services.iter().find(|(_, service)| service.pid() == Some(pid)).map(|(name, _)| name.as_str())
    }

    /// Whether nobody comes after the service's last process: what is held for a successor can go. While the system goes
    /// down, that is of no use to anybody.
    pub fn is_over(&self, name: &str) -> bool {
        !self.shutting_down && self.services.get(name).is_none_or(Service::is_over)
    }

    /// Whether an essential unit has ended for good.
    pub fn essential_gone(&self) -> Option<&str> {
        let gone = |service: &Service| service.unit.essential && service.is_over();
        self.services.iter().find(|(_, service)| gone(service)).map(|(name, _)| name.as_str())
    }

    /// The earliest moment at which [`Event::Tick`] would change something.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.services
            .values()
            .filter_map(|service| match service.state {
                State::Starting { deadline, .. } | State::Stopping { deadline, .. } => Some(deadline),
                State::Running { watchdog, .. } => watchdog,
                State::Backoff { until } => Some(until),
                _ => None,
            })
            .min()
    }

    /// Takes the outcome of an [`Action::Spawn`] in.
    pub fn spawned(&mut self, now: Instant, name: &str, outcome: Spawned) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Some(service) = self.services.get_mut(name) {
            match outcome {
                Spawned::Runs(pid) if service.unit.kind == Kind::Simple => {
                    service.state = State::Running { pid, watchdog: first_watchdog(&service.unit, now) };
                }
                Spawned::Runs(pid) => {
                    let deadline = now + Duration::from_millis(service.unit.start_timeout_ms);
                    service.state = State::Starting { pid, deadline };
                }
                Spawned::PassedOver => service.state = State::Done,
                Spawned::Failed(reason) => {
                    service.ended_badly(now, name, &format!("could not be started: {reason}"), &mut actions);
                }
            }
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Takes more units in, in the order of their starts; those that are there already stay as they are.
    pub fn add_all(&mut self, units: BTreeMap<String, Unit>, order: Vec<String>) {
        for name in order {
            let Some(unit) = units.get(&name) else { continue };
            if !self.services.contains_key(&name) {
                self.services.insert(name.clone(), Service::new(unit.clone()));
                self.order.push(name);
            }
        }
    }

    /// Lets a service end by itself: it is not started again.
    pub fn let_end(&mut self, name: &str) {
        if let Some(service) = self.services.get_mut(name) {
            service.wanted = false;
        }
    }

    /// Takes one event in.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Exited(pid, how) => {
                if let Some(name) = self.service_of(pid).map(str::to_owned) {
                    let service = self.services.get_mut(&name).expect("just found");
                    service.exited(now, &name, how, &mut actions);
                }
            }
            Event::Notify(pid, notice) => {
                if let Some(name) = self.service_of(pid).map(str::to_owned) {
                    let service = self.services.get_mut(&name).expect("just found");
                    service.notified(now, &name, notice, &mut actions);
                }
            }
            Event::Start(name) => {
                if let Some(service) = self.services.get_mut(&name) {
                    service.wanted = true;
                    service.starts.clear();
                    service.restarts = 0;
                    if service.is_failed() || service.state == State::Done {
                        service.state = State::Inactive;
                    }
                }
            }
            Event::Stop(name) => {
                if let Some(service) = self.services.get_mut(&name) {
                    service.wanted = false;
                    service.stop(now, Then::Rest, &mut actions);
                }
            }
            Event::Add(name, unit) => {
                let fresh = Service::new(*unit);
                match self.services.get_mut(&name) {
                    // It is on its way down still: then it starts again with what is new.
                    Some(service) if service.pid().is_some() => {
                        service.unit = fresh.unit;
                        service.wanted = true;
                    }
                    Some(service) => *service = fresh,
                    None => {
                        self.order.push(name.clone());
                        self.services.insert(name, fresh);
                    }
                }
            }
            Event::Shutdown => {
                self.shutting_down = true;
                // The boot set goes on, and is started again where it must: the root is still to be unmounted.
                let others = self.services.values_mut().filter(|service| !service.unit.boot);
                others.for_each(|service| service.wanted = false);
            }
            Event::Tick => {}
        }
        for (name, service) in &mut self.services {
            service.check_deadlines(now, name, &mut actions);
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Starts what can start now, or when going down stops what nobody needs any more.
    fn settle(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.shutting_down {
            self.settle_shutdown(now, actions);
        }
        for name in self.order.clone() {
            let service = &self.services[&name];
            if self.shutting_down && !service.unit.boot {
                continue;
            }
            let due = match service.state {
                State::Inactive => service.wanted,
                State::Backoff { until } => until <= now,
                _ => false,
            };
            if !due {
                continue;
            }
            if let Some(lost) =
                service.unit.requires.iter().find(|on| self.services.get(*on).is_none_or(Service::is_failed))
            {
                let reason = format!("requires {lost}, which failed or is absent");
                actions.push(Action::Log(format!("{name}: {reason}")));
                self.services.get_mut(&name).expect("ordered names exist").state = State::Failed(reason);
                continue;
            }
            if !self.is_startable(&name) {
                continue;
            }
            let service = self.services.get_mut(&name).expect("ordered names exist");
            service.begin(now, &name, actions);
        }
    }

    /// Whether a wanted, inactive unit has nothing to wait for.
    fn is_startable(&self, name: &str) -> bool {
        let service = &self.services[name];
        let settled =
            |on: &String| self.services.get(on).is_none_or(|on| on.is_started() || on.is_failed() || !on.wanted);
        service.wanted
            && matches!(service.state, State::Inactive | State::Backoff { .. })
            && service.unit.after.iter().chain(&service.unit.requires).all(settled)
    }

    /// A unit stops once everything that comes after it is down.
    fn settle_shutdown(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for name in self.order.clone().into_iter().rev() {
            if self.services[&name].unit.boot {
                continue;
            }
            let needed = self.services.iter().any(|(_, other)| {
                other.pid().is_some() && other.unit.after.iter().chain(&other.unit.requires).any(|on| *on == name)
            });
            if !needed {
                let service = self.services.get_mut(&name).expect("ordered names exist");
                service.stop(now, Then::Rest, actions);
            }
        }
        if !self.all_stopped_said
            && self
                .services
                .values()
                .all(|service| service.unit.boot || service.pid().is_none() && service.state != State::Spawning)
        {
            self.all_stopped_said = true;
            actions.push(Action::AllStopped);
        }
    }
}

fn first_watchdog(unit: &Unit, now: Instant) -> Option<Instant> {
    unit.watchdog_ms.map(|ms| now + Duration::from_millis(ms))
}

impl Service {
    /// Asks for the program to be started, unless it was started too often lately.
    fn begin(&mut self, now: Instant, name: &str, actions: &mut Vec<Action>) {
        let interval = Duration::from_secs(self.unit.restart_interval_s);
        while self.starts.front().is_some_and(|start| now.duration_since(*start) > interval) {
            self.starts.pop_front();
        }
        if self.starts.len() >= self.unit.restart_burst.max(1) as usize {
            let reason = format!("started {} times within {} s", self.starts.len(), self.unit.restart_interval_s);
            actions.push(Action::Log(format!("{name}: gives up: {reason}")));
            self.state = State::Failed(reason);
            return;
        }
        if self.starts.is_empty() {
            self.restarts = 0;
        }
        self.starts.push_back(now);
        self.state = State::Spawning;
        actions.push(Action::Spawn(name.to_owned()));
    }

    fn exited(&mut self, now: Instant, name: &str, how: ExitKind, actions: &mut Vec<Action>) {
        let state = std::mem::replace(&mut self.state, State::Inactive);
        // One that has served and is killed or hits a rare fault starts soon, however often that was; the pause grows for one that does
        // not get anywhere.
        let ran = self.starts.back().map_or(Duration::ZERO, |start| now.duration_since(*start));
        if matches!(state, State::Running { .. }) && ran >= STEADY {
            self.restarts = 0;
        }
        match state {
            State::Stopping { then: Then::Rest, .. } => actions.push(Action::Log(format!("{name}: stopped"))),
            State::Stopping { then: Then::Fail(reason), .. } => self.ended_badly(now, name, &reason, actions),
            _ if how == PASSED_OVER => self.state = State::Done,
            State::Starting { .. } if self.unit.kind == Kind::Oneshot && how.is_success() => self.state = State::Done,
            State::Starting { .. } => {
                self.ended_badly(now, name, &format!("ended before it was ready: {}", describe(how)), actions);
            }
            _ if how.is_success() && self.unit.restart != Restart::Always => {
                self.wanted = false;
                actions.push(Action::Log(format!("{name}: ended")));
            }
            _ => self.ended_badly(now, name, &describe(how), actions),
        }
    }

    /// Decides between another start and giving up.
    fn ended_badly(&mut self, now: Instant, name: &str, reason: &str, actions: &mut Vec<Action>) {
        if !self.wanted {
            self.state = State::Inactive;
        } else if match self.unit.restart {
            Restart::Never => true,
            Restart::OnceReady => !self.was_ready,
            Restart::OnFailure | Restart::Always => false,
        } {
            actions.push(Action::Log(format!("{name}: failed: {reason}")));
            self.state = State::Failed(reason.to_owned());
        } else {
            let delay = self.unit.restart_delay(self.restarts);
            self.restarts = self.restarts.saturating_add(1);
            actions.push(Action::Log(format!("{name}: {reason}; starts again in {} ms", delay.as_millis())));
            self.state = State::Backoff { until: now + delay };
        }
    }

    fn notified(&mut self, now: Instant, name: &str, notice: Notice, actions: &mut Vec<Action>) {
        if let Some(status) = notice.status {
            self.status = status;
        }
        if let (Some(extra), State::Starting { deadline, .. } | State::Stopping { deadline, .. }) =
            (notice.extend_timeout, &mut self.state)
        {
            *deadline = (*deadline).max(now + extra);
        }
        if let (Some(main), State::Starting { pid, .. } | State::Running { pid, .. }) =
            (notice.main_pid, &mut self.state)
        {
            *pid = main;
        }
        if notice.ready
            && let State::Starting { pid, .. } = self.state
            && self.unit.kind == Kind::Notify
        {
            self.state = State::Running { pid, watchdog: first_watchdog(&self.unit, now) };
            self.was_ready = true;
            actions.push(Action::Log(format!("{name}: ready")));
        }
        if let State::Running { pid, watchdog } = &mut self.state {
            if notice.watchdog && watchdog.is_some() {
                *watchdog = first_watchdog(&self.unit, now);
            }
            if notice.watchdog_trigger {
                let pid = *pid;
                self.abort(now, pid, "asked to be treated as hung", actions);
            } else if notice.stopping {
                *watchdog = None;
            }
        }
    }

    fn check_deadlines(&mut self, now: Instant, name: &str, actions: &mut Vec<Action>) {
        match self.state {
            State::Starting { deadline, .. } if deadline <= now => {
                let reason = format!("not ready after {} ms", self.unit.start_timeout_ms);
                actions.push(Action::Log(format!("{name}: {reason}")));
                self.stop(now, Then::Fail(reason), actions);
            }
            State::Running { pid, watchdog: Some(watchdog) } if watchdog <= now => {
                self.abort(now, pid, "hung: its watchdog message did not come", actions);
            }
            State::Stopping { pid, ref mut deadline, .. } if *deadline <= now => {
                // A process in an uninterruptible wait may outlive several of these.
                *deadline = now + Duration::from_millis(self.unit.stop_timeout_ms.max(1));
                actions.push(Action::Log(format!("{name}: killed: it did not stop in time")));
                actions.push(Action::Signal(pid, Ending::Kill));
            }
            _ => {}
        }
    }

    fn abort(&mut self, now: Instant, pid: Pid, reason: &str, actions: &mut Vec<Action>) {
        actions.push(Action::Signal(pid, Ending::Abort));
        let deadline = now + Duration::from_millis(self.unit.stop_timeout_ms);
        self.state = State::Stopping { pid, deadline, then: Then::Fail(reason.to_owned()) };
    }

    fn stop(&mut self, now: Instant, then: Then, actions: &mut Vec<Action>) {
        match self.state {
            State::Starting { pid, .. } | State::Running { pid, .. } => {
                actions.push(Action::Signal(pid, Ending::Term));
                let deadline = now + Duration::from_millis(self.unit.stop_timeout_ms);
                self.state = State::Stopping { pid, deadline, then };
            }
            State::Stopping { then: ref mut old, .. } if then == Then::Rest => *old = Then::Rest,
            State::Backoff { .. } => self.state = State::Inactive,
            _ => {}
        }
    }
}

fn describe(how: ExitKind) -> String {
    match how {
        ExitKind::Status(status) => format!("exited with status {status}"),
        ExitKind::Signal(signal) => format!("killed by signal {signal}"),
    }
}

#[cfg(test)]
mod tests;
