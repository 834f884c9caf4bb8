//! Tests inside the kernel: boots it with `ktest` and reads what it says on the serial line.
//!
//! One line a test, `ktest: PASS name` or `ktest: FAIL name: message`, and at the end `ktest: done N passed, M failed`.

use super::Tally;
use crate::build::{self, Profile};
use crate::guest::show_log;
use crate::machine::{Boot, EXIT_TESTS_DONE, Event, Gpu, Kernel, Machine, Options};
use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// For the whole run.
const TIME_LIMIT: Duration = Duration::from_secs(300);

/// The machines that the tests run on: CPUs and memory.
const MACHINES: &[(u32, &str)] = &[(2, "1G"), (1, "256M")];

/// Runs them.
pub fn run(filter: Option<&str>) -> Result<Tally> {
    let kernel = build::kernel(Profile::Kernel, build::Noise::Warnings)?;
    let mut tally = Tally::default();
    for &(smp, mem) in MACHINES {
        println!("kernel tests with {smp} CPUs and {mem}");
        let option = filter.map_or("ktest".to_owned(), |filter| format!("ktest={filter}"));
        let boot = Boot::kernel_only(kernel.clone(), option);
        let options = Options { smp, mem: mem.into(), ..Options::of("mini", Kernel::Ursa) };
        let here = run_on(&options, &boot)?;
        tally.passed += here.passed;
        tally.failed += here.failed;
    }
    Ok(tally)
}

fn run_on(options: &Options, boot: &Boot) -> Result<Tally> {
    let folder = tempfile::Builder::new().prefix("ursa-ktest-").tempdir()?;
    let mut machine = Machine::start(options, boot, Gpu::None, folder.path(), false)?;
    let deadline = Instant::now() + TIME_LIMIT;
    let mut tally = Tally::default();
    loop {
        let rest = deadline.saturating_duration_since(Instant::now());
        match machine.next_event(rest) {
            Some(Event::Console(line)) => match read_line(&line) {
                Some(Line::Test { name, failure }) => {
                    tally.count(failure.is_none());
                    match failure {
                        None => println!("ktest {name} ... ok"),
                        Some(message) => println!("ktest {name} ... FAILED: {message}"),
                    }
                }
                Some(Line::Done { passed, failed }) => {
                    if (passed, failed) != (tally.passed, tally.failed) {
                        show_log(&machine.console());
                        bail!("the kernel counts {passed} passed, {failed} failed; its lines say {tally:?}");
                    }
                    let status = machine.wait(Duration::from_secs(10))?;
                    // After a failure the kernel is as broken as after a panic, and ends as it can.
                    if failed == 0 && status.and_then(|status| status.code()) != Some(EXIT_TESTS_DONE) {
                        bail!("the kernel did not end the machine after its tests: {status:?}");
                    }
                    return Ok(tally);
                }
                None => {}
            },
            Some(Event::Panic(text)) => {
                show_log(&machine.console());
                println!("ktest: the kernel panicked: {text}");
                tally.count(false);
                return Ok(tally);
            }
            Some(Event::Ended) => {
                show_log(&machine.console());
                bail!("the machine ended before the tests did\n{}", machine.qemu_messages().trim());
            }
            None => {
                show_log(&machine.console());
                bail!("the tests did not end within {} seconds", TIME_LIMIT.as_secs());
            }
            Some(_) => {}
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Test { name: &'a str, failure: Option<&'a str> },
    Done { passed: usize, failed: usize },
}

/// Reads a line of the console; it may begin with a time stamp.
fn read_line(line: &str) -> Option<Line<'_>> {
    let (_, text) = line.split_once("ktest: ")?;
    if let Some(name) = text.strip_prefix("PASS ") {
        return Some(Line::Test { name: name.trim(), failure: None });
    }
    if let Some(rest) = text.strip_prefix("FAIL ") {
        let (name, message) = rest.split_once(": ").unwrap_or((rest, ""));
        return Some(Line::Test { name: name.trim(), failure: Some(message) });
    }
    let counts = text.strip_prefix("done ")?;
    let (passed, failed) = counts.split_once(" passed, ")?;
    Some(Line::Done { passed: passed.parse().ok()?, failed: failed.strip_suffix(" failed")?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_and_without_time_stamps() {
        assert_eq!(read_line("ktest: PASS mm::frame"), Some(Line::Test { name: "mm::frame", failure: None }));
        let failed = read_line("[    1.2] ktest: FAIL a::b: left: 1, right: 2");
        assert_eq!(failed, Some(Line::Test { name: "a::b", failure: Some("left: 1, right: 2") }));
        assert_eq!(read_line("ktest: done 12 passed, 1 failed"), Some(Line::Done { passed: 12, failed: 1 }));
        assert_eq!(read_line("ktest: running 12 tests"), None);
    }
}
