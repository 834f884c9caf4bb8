//! The supervisor's decisions under a made-up clock.

use super::*;
use crate::unit::start_order;

struct Bench {
    manager: Manager,
    now: Instant,
    next_pid: Pid,
    log: Vec<String>,
    signals: Vec<(Pid, Ending)>,
    all_stopped: bool,
}

impl Bench {
    fn new(files: &[(&str, &str)]) -> Bench {
        let units: BTreeMap<String, Unit> = files
            .iter()
            .map(|(name, rest)| ((*name).to_owned(), Unit::parse(&format!("exec = ['/bin/x']\n{rest}")).unwrap()))
            .collect();
        let order = start_order(&units).unwrap();
        let mut bench = Bench {
            manager: Manager::new(units, order),
            now: Instant::now(),
            next_pid: 100,
            log: Vec::new(),
            signals: Vec::new(),
            all_stopped: false,
        };
        bench.send(Event::Tick);
        bench
    }

    fn send(&mut self, event: Event) {
        let mut actions: VecDeque<Action> = self.manager.handle(self.now, event).into();
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Spawn(name) => {
                    self.next_pid += 1;
                    actions.extend(self.manager.spawned(self.now, &name, Spawned::Runs(self.next_pid)));
                }
                Action::Signal(pid, kill) => self.signals.push((pid, kill)),
                Action::Log(line) => self.log.push(line),
                Action::AllStopped => self.all_stopped = true,
            }
        }
    }

    fn after(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        self.send(Event::Tick);
    }

    fn pid(&self, name: &str) -> Pid {
        self.manager.services()[name].pid().unwrap_or_else(|| panic!("{name} does not run"))
    }

    fn state(&self, name: &str) -> &State {
        &self.manager.services()[name].state
    }
}

fn ready() -> Notice {
    Notice { ready: true, ..Notice::default() }
}

#[test]
fn a_unit_waits_for_readiness_of_what_it_comes_after() {
    let mut bench = Bench::new(&[("bus", "type = 'notify'"), ("app", "after = ['bus']")]);
    assert_eq!(*bench.state("app"), State::Inactive);
    bench.send(Event::Notify(bench.pid("bus"), ready()));
    assert!(matches!(bench.state("app"), State::Running { .. }));
}

#[test]
fn readiness_from_a_foreign_process_counts_for_nothing() {
    let mut bench = Bench::new(&[("bus", "type = 'notify'")]);
    bench.send(Event::Notify(9999, ready()));
    assert!(matches!(bench.state("bus"), State::Starting { .. }));
}

#[test]
fn a_oneshot_is_started_when_it_has_succeeded() {
    let mut bench = Bench::new(&[("setup", "type = 'oneshot'"), ("app", "requires = ['setup']")]);
    assert_eq!(*bench.state("app"), State::Inactive);
    bench.send(Event::Exited(bench.pid("setup"), ExitKind::Status(0)));
    assert!(matches!(bench.state("app"), State::Running { .. }));
}

#[test]
fn a_unit_fails_with_what_it_requires() {
    let mut bench = Bench::new(&[("setup", "type = 'oneshot'\nrestart = 'never'"), ("app", "requires = ['setup']")]);
    bench.send(Event::Exited(bench.pid("setup"), ExitKind::Status(3)));
    assert!(matches!(bench.state("app"), State::Failed(reason) if reason.contains("setup")));
}

#[test]
fn a_crash_restarts_after_a_growing_pause_and_gives_up_at_the_limit() {
    let mut bench = Bench::new(&[("app", "restart-burst = 3")]);
    for delay in [100, 200] {
        bench.send(Event::Exited(bench.pid("app"), ExitKind::Signal(11)));
        bench.after(delay - 1);
        assert!(matches!(bench.state("app"), State::Backoff { .. }));
        bench.after(1);
        assert!(matches!(bench.state("app"), State::Running { .. }));
    }
    bench.send(Event::Exited(bench.pid("app"), ExitKind::Signal(11)));
    bench.after(400);
    assert!(matches!(bench.state("app"), State::Failed(_)), "{:?}", bench.state("app"));
    bench.send(Event::Start("app".into()));
    assert!(matches!(bench.state("app"), State::Running { .. }));
}

#[test]
fn a_crash_after_a_while_of_service_restarts_after_the_first_pause() {
    let mut bench = Bench::new(&[("app", "restart-burst = 10")]);
    for (served, delay) in [(0, 100), (999, 200), (1000, 100), (0, 200), (5000, 100)] {
        bench.after(served);
        bench.send(Event::Exited(bench.pid("app"), ExitKind::Signal(9)));
        bench.after(delay - 1);
        assert!(matches!(bench.state("app"), State::Backoff { .. }), "{served} {delay}");
        bench.after(1);
        assert!(matches!(bench.state("app"), State::Running { .. }), "{served} {delay}");
    }
}

#[test]
fn a_clean_exit_is_not_a_failure() {
    let mut bench = Bench::new(&[("app", "essential = true")]);
    bench.send(Event::Exited(bench.pid("app"), ExitKind::Status(0)));
    bench.after(60_000);
    assert_eq!(*bench.state("app"), State::Inactive);
    assert_eq!(bench.manager.essential_gone(), Some("app"));
}

#[test]
fn a_missed_watchdog_aborts_and_restarts() {
    let mut bench = Bench::new(&[("app", "watchdog-ms = 1000")]);
    let pid = bench.pid("app");
    bench.after(900);
    bench.send(Event::Notify(pid, Notice { watchdog: true, ..Notice::default() }));
    bench.after(900);
    assert!(bench.signals.is_empty());
    bench.after(100);
    assert_eq!(bench.signals, [(pid, Ending::Abort)]);
    bench.send(Event::Exited(pid, ExitKind::Signal(6)));
    bench.after(100);
    assert_ne!(bench.pid("app"), pid);
}

#[test]
fn a_start_that_takes_too_long_is_ended_and_counts_as_a_failure() {
    let mut bench =
        Bench::new(&[("app", "type = 'notify'\nstart-timeout-ms = 50\nstop-timeout-ms = 20\nrestart = 'never'")]);
    let pid = bench.pid("app");
    bench.after(50);
    bench.after(20);
    assert_eq!(bench.signals, [(pid, Ending::Term), (pid, Ending::Kill)]);
    bench.send(Event::Exited(pid, ExitKind::Signal(9)));
    assert!(matches!(bench.state("app"), State::Failed(reason) if reason.contains("not ready")));
}

#[test]
fn shutdown_stops_in_reverse_order() {
    let mut bench = Bench::new(&[("bus", ""), ("app", "after = ['bus']")]);
    let (bus, app) = (bench.pid("bus"), bench.pid("app"));
    bench.send(Event::Shutdown);
    assert_eq!(bench.signals, [(app, Ending::Term)]);
    bench.send(Event::Exited(app, ExitKind::Signal(15)));
    assert_eq!(bench.signals, [(app, Ending::Term), (bus, Ending::Term)]);
    assert!(!bench.all_stopped);
    bench.send(Event::Exited(bus, ExitKind::Status(0)));
    assert!(bench.all_stopped);
}

#[test]
fn a_service_in_back_off_does_not_hold_up_shutdown() {
    let mut bench = Bench::new(&[("app", "restart-delay-ms = 5000")]);
    bench.send(Event::Exited(bench.pid("app"), ExitKind::Status(1)));
    bench.send(Event::Shutdown);
    assert!(bench.all_stopped);
    bench.after(10_000);
    assert_eq!(*bench.state("app"), State::Inactive);
}

#[test]
fn deadlines_are_what_the_caller_waits_for() {
    let bench = Bench::new(&[("app", "watchdog-ms = 1000"), ("slow", "type = 'notify'\nstart-timeout-ms = 500")]);
    assert_eq!(bench.manager.next_deadline(), Some(bench.now + Duration::from_millis(500)));
}

#[test]
fn a_unit_whose_conditions_do_not_hold_counts_as_started() {
    let mut bench = Bench::new(&[("bus", "type = 'notify'\nrestart = 'always'"), ("app", "requires = ['bus']")]);
    bench.send(Event::Exited(bench.pid("bus"), PASSED_OVER));
    assert_eq!(*bench.state("bus"), State::Done);
    assert!(matches!(bench.state("app"), State::Running { .. }));
}

#[test]
fn the_boot_set_outlives_the_others_and_is_restarted_meanwhile() {
    let mut bench = Bench::new(&[("disk", "boot = true\nrestart = 'always'"), ("app", "after = ['disk']")]);
    let app = bench.pid("app");
    bench.send(Event::Shutdown);
    assert_eq!(bench.signals, [(app, Ending::Term)]);
    bench.send(Event::Exited(app, ExitKind::Signal(15)));
    assert!(bench.all_stopped);
    bench.send(Event::Exited(bench.pid("disk"), ExitKind::Signal(9)));
    bench.after(100);
    let disk = bench.pid("disk");
    bench.manager.let_end("disk");
    bench.send(Event::Exited(disk, ExitKind::Status(0)));
    assert_eq!(*bench.state("disk"), State::Inactive);
}

#[test]
fn units_that_come_later_start_and_known_ones_stay() {
    let mut bench = Bench::new(&[("disk", "")]);
    let disk = bench.pid("disk");
    let unit = |rest: &str| Unit::parse(&format!("exec = ['/bin/x']\n{rest}")).unwrap();
    let units =
        BTreeMap::from([("app".to_owned(), unit("after = ['disk']")), ("disk".to_owned(), unit("after = ['app']"))]);
    bench.manager.add_all(units, vec!["disk".into(), "app".into()]);
    bench.send(Event::Tick);
    assert_eq!(bench.pid("disk"), disk);
    assert!(matches!(bench.state("app"), State::Running { .. }));
}

#[test]
fn a_service_that_is_restarted_once_ready_may_not_fail_before() {
    let unit = "type = 'notify'\nrestart = 'once-ready'";
    let mut bench = Bench::new(&[("a", unit), ("b", unit)]);
    let (a, b) = (bench.pid("a"), bench.pid("b"));
    bench.send(Event::Notify(b, ready()));
    for pid in [a, b] {
        bench.send(Event::Exited(pid, ExitKind::Signal(9)));
    }
    bench.after(1000);
    assert!(matches!(bench.state("a"), State::Failed(_)));
    // One that was ready is started again, also when a successor is not ready at once.
    let next = bench.pid("b");
    assert_ne!(next, b);
    bench.send(Event::Exited(next, ExitKind::Status(1)));
    bench.after(1000);
    assert_ne!(bench.pid("b"), next);
}
