//! Micro-measures: programs of `tests/bench`, one CPU, guest time that counts instructions.
//!
//! QEMU counts each iteration of a `rep` instruction, so a kernel that clears pages with `rep stosb` looks worse than it is on
//! hardware. Whoever quotes figures of page faults says so.

use super::{Measure, Subject};
use crate::archive::Addition;
use crate::build::Profile;
use crate::guest::agent_of;
use crate::machine::link::{Outcome, Output, Request};
use crate::machine::{Boot, Gpu, Machine, Options, Root};
use crate::{hosttools, paths, shell};
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// For all measures on one kernel.
const TIME_LIMIT: Duration = Duration::from_secs(1200);

/// A program of measures, and the machine that it needs.
struct Program {
    /// `tests/bench/NAME.c`.
    name: &'static str,
    /// Whether drivers and servers run: Ursa's init starts them.
    init: bool,
    gpu: Gpu,
    root: Root,
    /// Whether it measures what Debian's kernel has as well.
    on_linux: bool,
    /// For Debian's kernel.
    modules: &'static [&'static str],
    /// Names of its measures, for whoever asks for one by name.
    measures: &'static [&'static str],
}

const PROGRAMS: [Program; 4] = [
    Program {
        name: "micro",
        init: false,
        gpu: Gpu::None,
        root: Root::Memory,
        on_linux: true,
        modules: &[],
        measures: &[
            "getppid",
            "read-1",
            "write-1",
            "open-close",
            "stat",
            "read-4k",
            "create-delete",
            "pipe",
            "switch-2",
            "switch-16",
            "futex-hand-off",
            "page-fault",
            "mmap-touch-64m",
            "fork-exit",
            "fork-exec",
            "thread-create",
            "signal",
            "epoll-1000",
        ],
    },
    Program {
        name: "devices",
        init: true,
        gpu: Gpu::None,
        root: Root::Memory,
        on_linux: true,
        modules: &["cuse", "uinput", "evdev"],
        measures: &["process-hand-off-2", "device-ioctl", "device-ioctl-switches", "key-to-read"],
    },
    Program {
        name: "drm",
        init: true,
        gpu: Gpu::Virtio,
        root: Root::Memory,
        on_linux: true,
        modules: &[],
        measures: &["drm-get-cap", "drm-buffer-life", "drm-test-commit", "drm-damage-whole", "drm-damage-64"],
    },
    Program {
        name: "restart",
        init: true,
        gpu: Gpu::Virtio,
        root: Root::Disk,
        on_linux: false,
        modules: &[],
        measures: &["restart-ext4d", "restart-virtio-blkd", "restart-drm-virtio-gpu", "restart-evdevd"],
    },
];

type Figures = BTreeMap<String, f64>;

/// Measures on all kernels.
pub fn run(names: &[String], profile: Profile) -> Result<Vec<Measure>> {
    let mut measures = Vec::new();
    for program in &PROGRAMS {
        let wanted: Vec<&str> =
            program.measures.iter().copied().filter(|measure| names.iter().any(|name| name == measure)).collect();
        if names.is_empty() || !wanted.is_empty() {
            measures.extend(run_program(program, &wanted, profile)?);
        }
    }
    Ok(measures)
}

fn run_program(program: &Program, names: &[&str], profile: Profile) -> Result<Vec<Measure>> {
    let compiled = compile(program.name)?;
    let mut figures = Vec::new();
    for subject in Subject::ALL {
        if subject != Subject::Ursa && !program.on_linux {
            figures.push(Figures::new());
            continue;
        }
        shell::step(format!("{} on {subject:?}", program.name));
        figures.push(measure(subject, profile, program, &compiled, names).unwrap_or_else(|problem| {
            eprintln!("{subject:?}: {problem:#}");
            Figures::new()
        }));
    }
    let [ursa, linux, shipped] = figures.as_slice() else { bail!("three kernels were to be measured") };
    let mut all: Vec<&String> = linux.keys().chain(ursa.keys()).collect();
    all.sort();
    all.dedup();
    let get = |of: &Figures, name: &String| of.get(name).copied();
    let unit = |name: &String| match name {
        name if name.ends_with("-switches") => "context switches",
        name if name.contains("-time") => "nanoseconds",
        _ => "instructions",
    };
    let row = |name: &String| Measure::new(name, unit(name), get(ursa, name), get(linux, name), get(shipped, name));
    Ok(all.into_iter().map(row).collect())
}

fn compile(name: &str) -> Result<PathBuf> {
    hosttools::ensure(hosttools::COMPILER)?;
    let folder = paths::target().join("bench");
    std::fs::create_dir_all(&folder)?;
    let program = folder.join(name);
    let mut command = Command::new("cc");
    command.args(["-O2", "-static", "-pthread", "-o"]).arg(&program);
    command.arg(paths::root().join("tests/bench").join(format!("{name}.c")));
    shell::run(&mut command)?;
    Ok(program)
}

fn measure(subject: Subject, profile: Profile, program: &Program, compiled: &Path, names: &[&str]) -> Result<Figures> {
    let guest = format!("/usr/bin/{}", program.name);
    let options = Options {
        additions: vec![Addition { host: compiled.to_owned(), guest: guest.clone().into() }],
        smp: 1,
        counted: true,
        init: program.init,
        root: Some(program.root),
        modules: program.modules.iter().map(|name| (*name).to_owned()).collect(),
        ..subject.machine("mini", profile)
    };
    let folder = tempfile::Builder::new().prefix("ursa-bench-").tempdir()?;
    let boot = Boot::prepare(&options, program.gpu, folder.path())?;
    let machine = Machine::start(&options, &boot, program.gpu, folder.path(), false)?;
    let mut link = agent_of(&machine)?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut collect = |output, data: &[u8]| match output {
        Output::Stdout => stdout.extend_from_slice(data),
        Output::Stderr => stderr.extend_from_slice(data),
    };
    // Where drivers run, so does the console, which is master of the card until a program takes the terminal.
    let first = if program.init { "initctl stop console >&2; " } else { "" };
    let script = format!("{first}exec {guest} \"$@\"");
    let argv = ["bash", "-c", &script, program.name].into_iter().chain(names.iter().copied());
    let request = Request {
        argv: argv.map(|word| word.as_bytes().to_vec()).collect(),
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
