//! Whole programs, and the boot: CPU seconds of the QEMU process, which a busy host lengthens less than wall time.
//!
//! The kernels take turns, so that a change of the host's load meets all of them.

use super::{Measure, Subject, desktop};
use crate::build::Profile;
use crate::guest::agent_of;
use crate::machine::link::{Outcome, Output, Request};
use crate::machine::{self, Boot, Gpu, Machine, Root};
use crate::shell;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::time::Duration;

pub const CPU_SECONDS: &str = "QEMU CPU seconds";

const TIME_LIMIT: Duration = Duration::from_secs(600);

/// The name of the measure that needs no program: from QEMU's start to an agent that answers.
const BOOT: &str = "boot";

/// Programs: name, and a script for bash.
const PROGRAMS: &[(&str, &str)] = &[
    (
        "shell-script",
        "for i in $(seq 300); do echo $i | tr 0-9 a-j | (read x; test -n \"$x\"); done; x=0; \
         for ((i=0;i<100000;i++)); do ((x+=i)); done; echo $x > /tmp/x",
    ),
    (
        "gcc",
        "cd /tmp; { for i in $(seq 200); do echo \"int f$i(int a) { int s = 0; for (int i = 0; i < a; i++) s += i * $i; \
         return s; }\"; done; echo '#include <stdio.h>'; echo 'int main(void) { printf(\"%d\\n\", f7(9)); }'; } > t.c; \
         gcc -O2 -o t t.c && ./t",
    ),
    ("python-start", "for i in 1 2 3 4 5; do python3 -c 'import json, subprocess, asyncio'; done"),
    ("find", "for i in 1 2 3; do find / -xdev > /dev/null; done"),
];

/// The same on a root on a disk: virtio, which Ursa's `virtio-blkd` and `ext4d` serve and Linux's kernel itself. In this order, for
/// what was not used since the start is cold.
const DISK_PROGRAMS: &[(&str, &str)] = &[
    ("disk-find-cold", "find / -xdev > /dev/null"),
    ("disk-find-warm", "for i in 1 2 3 4 5; do find / -xdev > /dev/null; done"),
    ("disk-find-size-warm", "for i in 1 2 3 4 5; do find / -xdev -size +100M > /dev/null; done"),
    ("disk-python-cold", "python3 -c 'import json, subprocess, asyncio'"),
    ("disk-python-warm", "for i in 1 2 3 4 5; do python3 -c 'import json, subprocess, asyncio'; done"),
    ("disk-gcc-cold", "cd /var/tmp; echo 'int main(void) { return 0; }' > t.c; gcc -O2 -o t t.c"),
    ("disk-gcc-warm", "cd /var/tmp; for i in 1 2 3 4 5; do gcc -O2 -o t t.c; done"),
    ("disk-write", "cd /var/tmp; dd if=/dev/zero of=big bs=1M count=128 conv=fsync status=none"),
    ("disk-read-cold", "cd /var/tmp; echo 3 > /proc/sys/vm/drop_caches; dd if=big of=/dev/null bs=1M status=none"),
    ("disk-read-warm", "cd /var/tmp; for i in 1 2 3 4 5; do dd if=big of=/dev/null bs=1M status=none; done"),
    (
        "disk-random-read-cold",
        "cd /var/tmp; echo 3 > /proc/sys/vm/drop_caches; exec python3 -c '\nimport os, random\nrandom.seed(1)\n\
         f = os.open(\"big\", os.O_RDONLY)\nfor i in range(2000): os.pread(f, 4096, random.randrange(32768) * 4096)'",
    ),
    (
        "disk-random-write",
        "cd /var/tmp; exec python3 -c '\nimport os, random\nrandom.seed(2)\nf = os.open(\"big\", os.O_WRONLY)\n\
         for i in range(2000): os.pwrite(f, b\"x\" * 4096, random.randrange(32768) * 4096)\nos.fsync(f)'",
    ),
    (
        "disk-fsync-100",
        "cd /var/tmp; exec python3 -c '\nimport os\nf = os.open(\"log\", os.O_WRONLY | os.O_CREAT)\n\
         for i in range(100): os.write(f, b\"line\"); os.fsync(f)'",
    ),
    (
        "disk-create-10000",
        "cd /var/tmp; mkdir d; exec python3 -c '\nfor i in range(10000):\n  with open(\"d/%d\" % i, \"w\") as f: f.write(\"x\")'",
    ),
    ("disk-delete-10000", "cd /var/tmp; rm -r d; sync"),
];

/// From QEMU's start to a desktop with a terminal.
const WESTON: &str = "weston-start";
/// What of the memory is neither free nor files, with that desktop.
const MEMORY: &str = "weston-memory";
/// 600 frames of Mesa's software renderer in a window of it.
const FRAMES: &str = "egl-600-frames";

/// The kernels that sessions are measured on: as shipped Linux is no faster, and each run takes minutes.
const SESSION_SUBJECTS: [Subject; 2] = [Subject::Ursa, Subject::Linux];

/// Until the desktop is there.
const DESKTOP: &str =
    "until [ -S /run/user/1000/wayland-1 ] && pgrep -u user weston-terminal; do sleep 0.2; done > /dev/null; sleep 2";

/// How much memory is in use, in KiB: without what files hold, since on Ursa these are the root itself.
pub const USED_MEMORY: &str =
    "awk '/^MemTotal/ { m = $2 } /^(MemFree|Buffers|Cached|SReclaimable)/ { m -= $2 } END { print m }' /proc/meminfo";

/// Prints how many frames were drawn, at least 600.
const EGL: &str = "export XDG_RUNTIME_DIR=/run/user/1000 WAYLAND_DISPLAY=wayland-1; \
     stdbuf -oL weston-simple-egl > /tmp/egl 2>&1 & \
     frames() { awk '/ frames in / { n += $1 } END { print n + 0 }' /tmp/egl; }; \
     until [ $(frames) -ge 600 ]; do sleep 0.5; kill -0 $! || exit 1; done; frames; kill -INT $!; wait $!; true";

/// Results of all runs: for each measure and kernel.
pub type Runs = BTreeMap<(&'static str, Subject), Vec<f64>>;

/// Measures on all kernels.
pub fn run(names: &[String], times: usize, profile: Profile) -> Result<Vec<Measure>> {
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    let programs: Vec<_> = PROGRAMS.iter().filter(|(name, _)| wanted(name)).copied().collect();
    let on_disk: Vec<_> = DISK_PROGRAMS.iter().filter(|(name, _)| wanted(name)).copied().collect();
    let mut runs = Runs::new();
    let mut measures = Vec::new();
    if [WESTON, MEMORY, FRAMES].into_iter().any(wanted) {
        take_turns("a session", times, &SESSION_SUBJECTS, |subject| {
            one_session((subject, profile), wanted(FRAMES), &mut runs)
        });
        let units = [(WESTON, CPU_SECONDS), (MEMORY, "MiB"), (FRAMES, CPU_SECONDS)];
        measures
            .extend(units.into_iter().filter(|(name, _)| wanted(name)).map(|(name, unit)| summary(name, unit, &runs)));
    }
    if desktop::MEASURES.iter().any(|(name, _)| wanted(name)) {
        take_turns("Plasma", times, &SESSION_SUBJECTS, |subject| desktop::one_run(subject, profile, &mut runs));
        measures.extend(desktop::measures(&runs, wanted));
    }
    if !on_disk.is_empty() {
        take_turns("a root on a disk", times, &SESSION_SUBJECTS, |subject| {
            let options = machine::Options { root: Some(Root::Disk), ..subject.machine("base", profile) };
            one_run(subject, &options, &on_disk, &mut runs)
        });
        measures.extend(on_disk.iter().map(|(name, _)| summary(name, CPU_SECONDS, &runs)));
    }
    if programs.is_empty() && !wanted(BOOT) {
        return Ok(measures);
    }
    take_turns("whole programs", times, &Subject::ALL, |subject| {
        one_run(subject, &subject.machine("base", profile), &programs, &mut runs)
    });
    let names = programs.iter().map(|(name, _)| *name).chain(wanted(BOOT).then_some(BOOT));
    measures.extend(names.map(|name| summary(name, CPU_SECONDS, &runs)));
    Ok(measures)
}

/// Has the kernels take turns. What goes wrong in a run is said, and the others go on.
fn take_turns(what: &str, times: usize, subjects: &[Subject], mut one: impl FnMut(Subject) -> Result<()>) {
    for turn in 1..=times {
        for &subject in subjects {
            shell::step(format!("{what} on {subject:?}, run {turn} of {times}"));
            if let Err(problem) = one(subject) {
                eprintln!("{subject:?}: {problem:#}");
            }
        }
    }
}

fn one_session((subject, profile): (Subject, Profile), frames: bool, runs: &mut Runs) -> Result<()> {
    let options = machine::Options {
        init: true,
        // Mesa's vector code under an emulator that lacks the vectors is slow and, at times, wrong.
        cpu: "Nehalem".into(),
        append: "ursa.session=weston".into(),
        ..subject.machine("wayland", profile)
    };
    let folder = tempfile::Builder::new().prefix("ursa-bench-").tempdir()?;
    let boot = Boot::prepare(&options, Gpu::Virtio, folder.path())?;
    let machine = Machine::start(&options, &boot, Gpu::Virtio, folder.path(), false)?;
    let mut link = agent_of(&machine)?;
    let mut ask = |script: &str, user: Option<&str>| -> Result<f64> {
        let text = super::ask(&mut link, &machine, script, user, TIME_LIMIT)?;
        text.parse().with_context(|| text.clone())
    };
    let kibibytes = ask(&format!("{DESKTOP}; {USED_MEMORY}"), None)?;
    let start = machine.cpu_seconds()?;
    runs.entry((WESTON, subject)).or_default().push(start);
    runs.entry((MEMORY, subject)).or_default().push(kibibytes / 1024.0);
    if frames {
        let drawn = ask(EGL, Some("user"))?;
        runs.entry((FRAMES, subject)).or_default().push((machine.cpu_seconds()? - start) * 600.0 / drawn);
    }
    Ok(())
}

fn one_run(
    subject: Subject,
    options: &machine::Options,
    programs: &[(&'static str, &str)],
    runs: &mut Runs,
) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("ursa-bench-").tempdir()?;
    let boot = Boot::prepare(options, Gpu::None, folder.path())?;
    let machine = Machine::start(options, &boot, Gpu::None, folder.path(), false)?;
    let mut link = agent_of(&machine)?;
    // The other way to boot is another measure.
    if options.root != Some(Root::Disk) {
        runs.entry((BOOT, subject)).or_default().push(machine.cpu_seconds()?);
    }
    for (name, script) in programs {
        let before = machine.cpu_seconds()?;
        let mut errors = Vec::new();
        let mut collect = |output, data: &[u8]| {
            if output == Output::Stderr {
                errors.extend_from_slice(data);
            }
        };
        match link.run(&machine, Request::script(script, TIME_LIMIT, &mut collect))? {
            Outcome::Ended(status) if status.shell_code() == 0 => {
                runs.entry((name, subject)).or_default().push(machine.cpu_seconds()? - before);
            }
            Outcome::Ended(status) => {
                let text = String::from_utf8_lossy(&errors).into_owned();
                eprintln!("{subject:?}: {name} failed with status {}: {}", status.shell_code(), text.trim());
            }
            other => bail!("{name}: {other:?}"),
        }
    }
    Ok(())
}

pub fn summary(name: &'static str, unit: &'static str, runs: &Runs) -> Measure {
    let of = |subject| runs.get(&(name, subject)).map(|values| sorted(values)).unwrap_or_default();
    let [ursa, linux, shipped] = Subject::ALL.map(of);
    let spread = |values: &[f64]| values.first().copied().zip(values.last().copied());
    Measure {
        ursa_spread: spread(&ursa),
        linux_spread: spread(&linux),
        ..Measure::new(name, unit, median(&ursa), median(&linux), median(&shipped))
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

/// Of sorted values.
fn median(values: &[f64]) -> Option<f64> {
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median(&sorted(&[3.0, 1.0, 2.0])), Some(2.0));
        assert_eq!(median(&sorted(&[4.0, 1.0, 2.0, 3.0])), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
