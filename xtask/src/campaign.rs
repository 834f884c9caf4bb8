//! `cargo xtask campaign NAME`: what takes too long for every day.
//!
//! A campaign is a file of `tests/guest` with all its cases, the long ones too. Its result is printed as a row for
//! `docs/results.md`; that of `packages` is a page of its own. One is none of a file: `power-cuts` switches machines off while they write.

use crate::machine::Kernel;
use crate::packages;
use crate::shell;
use crate::test::{Tally, cases, guest, power};
use anyhow::{Result, bail};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// The campaign of machines that are switched off, and its length.
const POWER_CUTS: &str = "power-cuts";
const ROUNDS: u32 = 50;

/// Options of `campaign`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Which; all are listed without one.
    name: Option<String>,
    /// On which kernels.
    #[arg(long, value_enum, default_values_t = [Kernel::Ursa])]
    kernel: Vec<Kernel>,
}

/// `cargo xtask campaign`.
pub fn run(options: &Options) -> Result<ExitCode> {
    let files = cases::load()?;
    let Some(name) = &options.name else {
        for file in files.iter().filter(|file| file.cases.iter().any(|case| case.long)) {
            println!("{} ({} cases)", file.name, file.cases.len());
        }
        println!("{POWER_CUTS} ({ROUNDS} rounds)");
        return Ok(ExitCode::SUCCESS);
    };
    let date = shell::output(Command::new("date").args(["-u", "+%F"]))?;
    if name == POWER_CUTS {
        let start = Instant::now();
        let passed = power::report(ROUNDS);
        let (minutes, result) = (start.elapsed().as_secs_f64() / 60.0, if passed { "passed" } else { "failed" });
        println!("\n| {date} | `cargo xtask campaign {name}` | {ROUNDS} rounds, {result} | {minutes:.0} min |");
        return Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let Some(file) = files.iter().find(|file| file.name == *name) else { bail!("there is no tests/guest/{name}.toml") };
    let mut failed = 0;
    let mut rows = String::new();
    for &kernel in &options.kernel {
        let (start, mut tally) = (Instant::now(), Tally::default());
        let failures = guest::run_file(file, kernel, &|_, _| true, &mut tally)?;
        if packages::is_list(file) {
            packages::record(file, kernel, date.trim(), &failures)?;
        }
        failed += tally.failed;
        let (Tally { passed, failed, .. }, minutes) = (tally, start.elapsed().as_secs_f64() / 60.0);
        let command = format!("cargo xtask campaign {name} --kernel {}", kernel.name());
        rows += &format!("| {date} | `{command}` | {passed} passed, {failed} failed | {minutes:.0} min |\n");
    }
    print!("\n{rows}");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
