//! Plasma as a person meets it: from QEMU's start to SDDM's greeter, through a first and a second login, at rest, and in use.
//!
//! One machine a run goes through all of it, with real keys; when something is there is seen on its screen. CPU seconds are the
//! QEMU process's, both kernels' spent on the same way. Frame times are KWin's own record (`KWIN_LOG_PERFORMANCE_DATA`), from when it begins to draw
//! a frame to when the frame is on the screen: information, since an emulator's clock is the host's.

use super::whole::{CPU_SECONDS, Runs, USED_MEMORY};
use super::{Measure, Subject};
use crate::build::Profile;
use crate::guest::agent_of;
use crate::machine::link::Link;
use crate::machine::qmp::Qmp;
use crate::machine::{self, Boot, Gpu, Machine};
use crate::vm::{input, screen};
use anyhow::{Context, Result, bail};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const MILLISECONDS: &str = "ms";
/// All measures, and what they count.
pub const MEASURES: &[(&str, &str)] = &[
    // From QEMU's start.
    ("plasma-to-greeter", CPU_SECONDS),
    ("plasma-to-first-frame", CPU_SECONDS),
    ("plasma-to-idle", CPU_SECONDS),
    // From the password to the desktop.
    ("plasma-first-login", CPU_SECONDS),
    ("plasma-second-login", CPU_SECONDS),
    // What of the memory is neither free nor files, at rest.
    ("plasma-memory", "MiB"),
    // A minute at rest.
    ("plasma-rest-60s", CPU_SECONDS),
    // From the command to Kate's window with its page.
    ("plasma-kate-start", CPU_SECONDS),
    ("plasma-frame-median", MILLISECONDS),
    ("plasma-frame-95", MILLISECONDS),
    ("plasma-frame-99", MILLISECONDS),
];

/// How long any step may take.
const PATIENCE: Duration = Duration::from_secs(900);
/// The screen is looked at this often: each look costs QEMU some CPU time, on both kernels the same.
const LOOK: Duration = Duration::from_millis(500);
/// The desktop is at rest when QEMU uses less than this share of a CPU for as long as [`REST`].
const REST_SHARE: f64 = 0.2;
const REST: Duration = Duration::from_secs(10);

const GREETER: &[&str] = &["640 476 ffffff"];
/// The wallpaper, and the panel over it.
const DESKTOP: &[&str] = &["640 100 8a45a4", "700 400 de9688", "700 770 efe2e1"];
/// Kate's tool bar and its page.
const KATE: &[&str] = &["640 111 dee0e2", "600 400 ffffff"];

/// KWin tells of its frames in the user's home.
const SET_UP: &str = "d=/home/user/.config/plasma-workspace/env; install -d -o user -g user /home/user/.config /home/user/.config/plasma-workspace $d; \
     echo export KWIN_LOG_PERFORMANCE_DATA=1 | install -o user -g user -m 755 /dev/stdin $d/frames.sh";
const START_KATE: &str = "env=$(tr '\\0' '\\n' < /proc/$(pgrep -x plasmashell)/environ | grep -E '^(DBUS_SESSION|WAYLAND|XDG_RUNTIME)' | tr '\\n' ' '); \
     (setsid su user -c \"env $env QT_QPA_PLATFORM=wayland kate /home/user/letter.txt\" > /dev/null 2>&1 < /dev/null &)";
const END_KATE: &str = "pkill -x kate; while pgrep -x kate > /dev/null; do sleep 0.2; done";
const LOG_OUT: &str = "bus=$(tr '\\0' '\\n' < /proc/$(pgrep -x plasmashell)/environ | grep ^DBUS_SESSION_BUS_ADDRESS=); \
     su user -c \"env $bus dbus-send --session --print-reply --dest=org.kde.Shutdown /Shutdown org.kde.Shutdown.logout\" > /dev/null; \
     while pgrep -u user > /dev/null; do sleep 0.2; done; until pgrep -u sddm -x sddm-greeter-qt > /dev/null; do sleep 0.2; done";
/// Milliseconds from each frame's beginning to its flip, one a line: the record's second and third columns, in nanoseconds.
const FRAMES: &str =
    "cat /home/user/'kwin perf statistics '*.csv | awk -F, '$2 > $3 && $3 > 0 { print ($2 - $3) / 1000000 }'";

struct Desktop<'a> {
    machine: &'a Machine,
    link: Link<&'a UnixStream>,
    folder: &'a Path,
}

impl Desktop<'_> {
    /// Has root run a script; what it printed.
    fn ask(&mut self, script: &str) -> Result<String> {
        super::ask(&mut self.link, self.machine, script, None, PATIENCE)
    }

    fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.folder.join("qmp.sock"))
    }

    /// Waits until the screen shows these pixels; QEMU's CPU seconds then.
    fn see(&self, pixels: &[&str]) -> Result<f64> {
        let pixels: Vec<String> = pixels.iter().map(|&pixel| pixel.to_owned()).collect();
        let start = Instant::now();
        while let Some(complaint) = screen::complaint(&mut self.qmp()?, self.folder, &pixels)? {
            if start.elapsed() > PATIENCE {
                bail!("the screen is not what was waited for: {complaint}");
            }
            std::thread::sleep(LOOK);
        }
        self.machine.cpu_seconds()
    }

    /// Types the password at the greeter; CPU seconds until the desktop is there.
    fn log_in(&self) -> Result<f64> {
        self.see(GREETER)?;
        // It fades in, and takes keys when that is over.
        std::thread::sleep(Duration::from_secs(5));
        let before = self.machine.cpu_seconds()?;
        input::type_text(&mut self.qmp()?, "ursa\n")?;
        Ok(self.see(DESKTOP)? - before)
    }

    /// Waits until the machine is at rest; QEMU's CPU seconds when it began to be.
    fn rest(&self) -> Result<f64> {
        let start = Instant::now();
        loop {
            let before = self.machine.cpu_seconds()?;
            std::thread::sleep(REST);
            if self.machine.cpu_seconds()? - before < REST_SHARE * REST.as_secs_f64() {
                return Ok(before);
            }
            if start.elapsed() > PATIENCE {
                bail!("the desktop does not come to rest");
            }
        }
    }

    /// Something to draw: the pointer wanders, the launcher opens and closes.
    fn use_it(&self) -> Result<()> {
        let mut qmp = self.qmp()?;
        let size = screen::size(&mut qmp, self.folder)?;
        for round in 0..5 {
            for step in 0..40 {
                input::move_to(&mut qmp, (100 + 20 * step, 100 + 10 * ((step * 7 + round) % 40)), size)?;
                std::thread::sleep(Duration::from_millis(30));
            }
            input::press(&mut qmp, "meta_l")?;
            std::thread::sleep(Duration::from_secs(2));
            input::press(&mut qmp, "esc")?;
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    }
}

/// One run on one kernel. What was measured before something failed counts.
pub fn one_run(subject: Subject, profile: Profile, runs: &mut Runs) -> Result<()> {
    let options = machine::Options {
        init: true,
        // Mesa's vector code under an emulator that lacks the vectors is slow and, at times, wrong.
        cpu: "Nehalem".into(),
        mem: "5G".into(),
        append: "ursa.greeter".into(),
        ..subject.machine("plasma", profile)
    };
    let folder = tempfile::Builder::new().prefix("ursa-bench-").tempdir()?;
    let boot = Boot::prepare(&options, Gpu::Virtio, folder.path())?;
    let machine = Machine::start(&options, &boot, Gpu::Virtio, folder.path(), false)?;
    let link = agent_of(&machine)?;
    let mut desktop = Desktop { machine: &machine, link, folder: folder.path() };
    let mut note = |name, value| runs.entry((name, subject)).or_default().push(value);

    desktop.ask(SET_UP)?;
    note("plasma-to-greeter", desktop.see(GREETER)?);
    note("plasma-first-login", desktop.log_in()?);
    note("plasma-to-first-frame", machine.cpu_seconds()?);
    note("plasma-to-idle", desktop.rest()?);
    let kibibytes: f64 = desktop.ask(USED_MEMORY)?.parse()?;
    note("plasma-memory", kibibytes / 1024.0);
    let before = machine.cpu_seconds()?;
    std::thread::sleep(Duration::from_secs(60));
    note("plasma-rest-60s", machine.cpu_seconds()? - before);

    let before = machine.cpu_seconds()?;
    desktop.ask(START_KATE)?;
    note("plasma-kate-start", desktop.see(KATE)? - before);
    desktop.rest()?;
    desktop.use_it()?;
    desktop.ask(END_KATE)?;
    desktop.ask(LOG_OUT)?;
    let mut frames = Vec::new();
    for line in desktop.ask(FRAMES)?.lines() {
        frames.push(line.parse::<f64>().with_context(|| line.to_owned())?);
    }
    frames.sort_by(f64::total_cmp);
    for (name, part) in [("plasma-frame-median", 0.5), ("plasma-frame-95", 0.95), ("plasma-frame-99", 0.99)] {
        if let Some(value) = percentile(&frames, part) {
            note(name, value);
        }
    }
    note("plasma-second-login", desktop.log_in()?);
    Ok(())
}

/// Of sorted values: the smallest that is not below this part of them.
fn percentile(values: &[f64], part: f64) -> Option<f64> {
    let rank = (part * values.len() as f64).ceil() as usize;
    values.get(rank.max(1) - 1).copied()
}

/// The measures that are wanted, from all runs.
pub fn measures(runs: &Runs, wanted: impl Fn(&str) -> bool) -> Vec<Measure> {
    let wanted = MEASURES.iter().filter(|(name, _)| wanted(name));
    wanted.map(|(name, unit)| super::whole::summary(name, unit, runs)).collect()
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([0.5, 0.95, 0.99].map(|part| percentile(&values, part)), [Some(50.0), Some(95.0), Some(99.0)]);
        assert_eq!(percentile(&[7.0], 0.99), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
