//! Micro-measures: `tests/bench/micro.c`, one CPU, guest time that counts instructions.
//!
//! QEMU counts each iteration of a `rep` instruction, so a kernel that clears pages with `rep stosb` looks worse than it is on
//! hardware. Whoever quotes figures of page faults says so.

use super::{Measure, Subject};
use crate::archive::Addition;
use crate::guest::agent_of;
use crate::machine::link::{Outcome, Output, Request};
use crate::machine::{Boot, Gpu, Machine, Options};
use crate::{hosttools, paths, shell};
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// For all measures on one kernel.
const TIME_LIMIT: Duration = Duration::from_secs(1200);

type Figures = BTreeMap<String, f64>;

/// Measures on all kernels.
pub fn run(names: &[String]) -> Result<Vec<Measure>> {
    let program = compile()?;
    let mut figures = Vec::new();
    for subject in Subject::ALL {
        shell::step(format!("micro-measures on {subject:?}"));
        figures.push(measure(subject, &program, names).unwrap_or_else(|problem| {
            eprintln!("{subject:?}: {problem:#}");
            Figures::new()
        }));
    }
    let [ursa, linux, shipped] = figures.as_slice() else { bail!("three kernels were to be measured") };
    let mut all: Vec<&String> = linux.keys().chain(ursa.keys()).collect();
    all.sort();
    all.dedup();
    let get = |of: &Figures, name: &String| of.get(name).copied();
    let row = |name: &String| Measure::new(name, "instructions", get(ursa, name), get(linux, name), get(shipped, name));
    Ok(all.into_iter().map(row).collect())
}

fn compile() -> Result<PathBuf> {
    hosttools::ensure(hosttools::COMPILER)?;
    let folder = paths::target().join("bench");
    std::fs::create_dir_all(&folder)?;
    let program = folder.join("micro");
    let mut command = Command::new("cc");
    command.args(["-O2", "-static", "-pthread", "-o"]).arg(&program).arg(paths::root().join("tests/bench/micro.c"));
    shell::run(&mut command)?;
    Ok(program)
}

fn measure(subject: Subject, program: &Path, names: &[String]) -> Result<Figures> {
    let options = Options {
        additions: vec![Addition { host: program.to_owned(), guest: "/usr/bin/micro".into() }],
        smp: 1,
        counted: true,
        ..subject.machine("mini")
    };
    let folder = tempfile::Builder::new().prefix("ursa-bench-").tempdir()?;
    let boot = Boot::prepare(&options, Gpu::None, folder.path())?;
    let machine = Machine::start(&options, &boot, Gpu::None, folder.path(), false)?;
    let mut link = agent_of(&machine)?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut collect = |output, data: &[u8]| match output {
        Output::Stdout => stdout.extend_from_slice(data),
        Output::Stderr => stderr.extend_from_slice(data),
    };
    let argv = std::iter::once(b"/usr/bin/micro".to_vec()).chain(names.iter().map(|name| name.clone().into_bytes()));
    let request = Request {
        argv: argv.collect(),
        env: Vec::new(),
        user: None,
        cwd: None,
        stdin: None,
        timeout: TIME_LIMIT,
        output: &mut collect,
    };
    let outcome = link.run(&machine, request)?;
    if !matches!(outcome, Outcome::Ended(status) if status.shell_code() == 0) {
        // What was measured before is worth reporting.
        eprintln!("{subject:?}: the measures ended early ({outcome:?}): {}", String::from_utf8_lossy(&stderr).trim());
    }
    Ok(parse(&String::from_utf8_lossy(&stdout)))
}

fn parse(text: &str) -> Figures {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_without_a_figure_are_passed_over() {
        let figures = parse("getppid 312.0\nnoise\npipe abc\nstat 900\n");
        assert_eq!(figures.into_iter().collect::<Vec<_>>(), [("getppid".into(), 312.0), ("stat".into(), 900.0)]);
    }
}
