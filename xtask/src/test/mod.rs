//! `cargo xtask test`: host unit tests, tests inside the kernel, boots, and tests in guests.
//!
//! The kinds run one after the other ([mod@unit], [`ktest`], [`boot`] with [`power`], [`guest`]); all of them run even if one fails, and the
//! last line counts them together.

use crate::machine::Kernel;
use crate::shell::step;
use anyhow::Result;
use clap::ValueEnum;
use std::process::ExitCode;

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

/// `cargo xtask test`.
pub fn run(options: &Options) -> Result<ExitCode> {
    let filter = options.filter.as_deref();
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
        let mut tally = boot::run(filter)?;
        tally.add(power::run(filter));
        Ok(tally)
    });
    run(Kind::Boot, "the debugger", &mut || gdb::run(filter));
    run(Kind::Guest, "tests in guests", &mut || guest::run(filter, &kernels, options.missing));
    let skipped = if total.skipped == 0 { String::new() } else { format!(", {} skipped", total.skipped) };
    println!("{} passed, {} failed{skipped}", total.passed, total.failed);
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
