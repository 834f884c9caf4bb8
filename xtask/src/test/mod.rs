//! `cargo xtask test`: host unit tests, tests inside the kernel, boots, and tests in guests.
//!
//! The kinds run one after the other ([mod@unit], [`ktest`], [`boot`] with [`power`], [`guest`]), and within boots and guests several
//! machines side by side; all of them run even if one fails, and the last line counts them together.

use crate::machine::Kernel;
use crate::shell::step;
use anyhow::Result;
use clap::ValueEnum;
use std::panic::resume_unwind;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

mod boot;
pub mod cases;
mod deaths;
mod gdb;
pub mod guest;
mod ktest;
pub mod power;
mod unit;

/// Options of `test`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// Run guest tests on Debian's kernel too, where every one of them must pass first.
    #[arg(long)]
    linux: bool,
    /// Run guest tests on these kernels only.
    #[arg(long, value_enum, conflicts_with = "linux")]
    kernel: Vec<Kernel>,
    /// Run just those guest tests for which Ursa is known to lack something, and no others.
    #[arg(long)]
    missing: bool,
    /// Only tests of this kind. May be given several times.
    #[arg(long, value_enum)]
    only: Vec<Kind>,
    /// How many machines run at a time: as many as there are CPUs without it, and as memory holds.
    #[arg(long)]
    jobs: Option<usize>,
}

/// Memory that a machine of a test takes at most, in KiB.
const MACHINE_KIB: usize = 5 << 20;

impl Options {
    fn jobs(&self) -> usize {
        self.jobs.unwrap_or_else(|| {
            let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
                text.lines()
                    .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse().ok())
            });
            let room = memory.map_or(1, |kib: usize| kib / MACHINE_KIB);
            thread::available_parallelism().map_or(1, usize::from).min(room)
        })
    }
}

/// A kind of tests.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Beside the code, on the host.
    Unit,
    /// Inside the kernel.
    Ktest,
    /// Every way to start the kernel.
    Boot,
    /// Programs in a guest.
    Guest,
}

/// How many tests passed and failed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
    /// Not run, because it is known what they lack.
    pub skipped: usize,
}

impl Tally {
    /// Counts one more.
    pub fn count(&mut self, passed: bool) {
        if passed { self.passed += 1 } else { self.failed += 1 }
    }

    /// Says how a test ended, and counts it.
    fn report(&mut self, kind: &str, name: &str, outcome: Result<()>) {
        self.count(outcome.is_ok());
        match outcome {
            Ok(()) => println!("{kind} {name} ... ok"),
            Err(problem) => println!("{kind} {name} ... FAILED: {problem:#}"),
        }
    }

    fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Works through a list with so many workers at a time, and adds up what they count. The first problem that is none of a test's ends
/// the work once those under way are done.
fn side_by_side<T: Sync>(items: &[T], jobs: usize, work: impl Fn(&T) -> Result<Tally> + Sync) -> Result<Tally> {
    let next = AtomicUsize::new(0);
    let worker = || -> Result<Tally> {
        let mut tally = Tally::default();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            tally.add(work(item).inspect_err(|_| next.store(items.len(), Ordering::Relaxed))?);
        }
        Ok(tally)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.clamp(1, items.len().max(1))).map(|_| scope.spawn(worker)).collect();
        let ended = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        ended.collect::<Vec<_>>().into_iter().try_fold(Tally::default(), |mut total, tally| {
            total.add(tally?);
            Ok(total)
        })
    })
}

/// `cargo xtask test`.
pub fn run(options: &Options) -> Result<ExitCode> {
    let (filter, jobs) = (options.filter.as_deref(), options.jobs());
    let kernels = match (options.linux, options.kernel.as_slice()) {
        (true, _) => vec![Kernel::Linux, Kernel::Ursa],
        (false, []) => vec![Kernel::Ursa],
        (false, chosen) => chosen.to_vec(),
    };
    let mut total = Tally::default();
    let wanted = |kind| match options.missing {
        true => kind == Kind::Guest,
        false => options.only.is_empty() || options.only.contains(&kind),
    };
    let mut run = |kind, what: &str, tests: &mut dyn FnMut() -> Result<Tally>| {
        if !wanted(kind) {
            return;
        }
        step(what);
        match tests() {
            Ok(tally) => {
                println!("{what}: {} passed, {} failed", tally.passed, tally.failed);
                total.add(tally);
            }
            Err(problem) => {
                println!("{what}: could not run: {problem:#}");
                total.count(false);
            }
        }
    };
    if wanted(Kind::Guest) {
        guest::make_images_meanwhile(filter, &kernels, options.missing)?;
    }
    run(Kind::Unit, "unit tests on the host", &mut || unit::run(filter));
    run(Kind::Ktest, "tests inside the kernel", &mut || ktest::run(filter));
    run(Kind::Boot, "boots", &mut || {
        let mut tally = boot::run(filter, jobs)?;
        tally.add(power::run(filter));
        Ok(tally)
    });
    run(Kind::Boot, "the debugger", &mut || gdb::run(filter));
    run(Kind::Guest, "tests in guests", &mut || guest::run(filter, &kernels, options.missing, jobs));
    let skipped = if total.skipped == 0 { String::new() } else { format!(", {} skipped", total.skipped) };
    println!("{} passed, {} failed{skipped}", total.passed, total.failed);
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn workers_count_every_item_once() {
        let items: Vec<usize> = (0..100).collect();
        let even = |item: &usize| {
            let mut tally = Tally::default();
            tally.count(item.is_multiple_of(2));
            Ok(tally)
        };
        for jobs in [0, 1, 3, 200] {
            assert_eq!(side_by_side(&items, jobs, even).unwrap(), Tally { passed: 50, failed: 50, skipped: 0 });
        }
        assert_eq!(side_by_side(&[], 4, even).unwrap(), Tally::default());
    }

    #[test]
    fn a_problem_ends_the_work() {
        let done = AtomicUsize::new(0);
        let work = |item: &usize| {
            if *item == 3 {
                bail!("no machine");
            }
            done.fetch_add(1, Ordering::Relaxed);
            Ok(Tally::default())
        };
        assert_eq!(side_by_side(&[0, 1, 2, 3, 4, 5], 1, work).unwrap_err().to_string(), "no machine");
        assert_eq!(done.into_inner(), 3);
    }
}
