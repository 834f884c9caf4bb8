//! Runs guest tests: those of `tests/guest` through one machine a file, and those of this program itself.
//!
//! Files run side by side, since most cases keep one CPU busy at a time. A machine is kept from case to case. When a case breaks it
//! (panic, time limit without a kill, lost line), the next case gets a new one.

use super::cases::{self, Case, File};
use super::{Tally, deaths, power, side_by_side, unit};
use crate::build::{self, Noise};
use crate::guest::{agent_of, show_log};
use crate::machine::link::{Link, Outcome, Output, Request};
use crate::machine::qmp::Qmp;
use crate::machine::{self, Boot, Event, Gpu, Kernel, Machine, Options, Root, screens};
use crate::toolchain::host_cargo;
use crate::vm::film::Film;
use crate::vm::{input, screen};
use crate::{image, paths};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::Cursor;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The cargo test targets that hold the tests of `cargo xtask guest` and `run` themselves.
const OWN_TESTS: [&str; 2] = ["guest", "run"];

/// Which cases of a run are to be run, and which are only named because Ursa lacks something.
struct Choice<'a> {
    filter: Option<&'a str>,
    missing: bool,
}

impl Choice<'_> {
    fn lacks(case: &Case, kernel: Kernel) -> bool {
        kernel == Kernel::Ursa && case.missing.is_some()
    }

    fn fits(&self, case: &Case, name: &str) -> bool {
        !case.long && self.filter.is_none_or(|filter| name.contains(filter))
    }

    fn runs(&self, case: &Case, name: &str, kernel: Kernel) -> bool {
        self.fits(case, name) && Choice::lacks(case, kernel) == self.missing
    }
}

fn full_name(file: &File, case: &Case) -> String {
    format!("{}::{}", file.name, case.name)
}

/// Makes the images that the tests will need while others run: the first time that takes one CPU minutes, and compilers leave one
/// idle. What fails is told by whoever needs the image.
pub fn make_images_meanwhile(filter: Option<&str>, kernels: &[Kernel], missing: bool) -> Result<()> {
    let choice = Choice { filter, missing };
    let needs = |file: &File, kernel: Kernel| {
        let runs = |case: &Case| case.runs_on(kernel) && choice.runs(case, &full_name(file, case), kernel);
        file.cases.iter().any(runs)
    };
    let mut names = Vec::new();
    for file in cases::load()? {
        if kernels.iter().any(|&kernel| needs(&file, kernel)) {
            names.extend(
                [file.image].into_iter().chain(file.mirror).filter(|name| !names.contains(name)).collect::<Vec<_>>(),
            );
        }
    }
    std::thread::spawn(move || names.iter().for_each(|name| drop(image::get(name))));
    Ok(())
}

/// Runs them, with `jobs` machines at a time.
pub fn run(filter: Option<&str>, kernels: &[Kernel], missing: bool, jobs: usize) -> Result<Tally> {
    let choice = Choice { filter, missing };
    let files = cases::load()?;
    let runs: Vec<(&File, Kernel)> =
        files.iter().flat_map(|file| kernels.iter().map(move |&kernel| (file, kernel))).collect();
    let mut tally = side_by_side(&runs, jobs, |&(file, kernel)| {
        let mut tally = Tally::default();
        run_file(file, kernel, &|case, name| choice.runs(case, name, kernel), &mut tally)?;
        for case in file.cases.iter().filter(|case| !missing && case.runs_on(kernel)) {
            let name = full_name(file, case);
            if Choice::lacks(case, kernel) && choice.fits(case, &name) {
                tally.skipped += 1;
                let lack = case.missing.as_deref().unwrap_or_default();
                println!("guest {} {name} ... skipped: {lack}", kernel.name());
            }
        }
        Ok(tally)
    })?;
    if !missing {
        tally.add(run_own_tests(filter, kernels)?);
    }
    Ok(tally)
}

/// The tests of `cargo xtask guest` and `run`. They are marked as ignored, so that they only run here, one after the other.
fn run_own_tests(filter: Option<&str>, kernels: &[Kernel]) -> Result<Tally> {
    let mut command = host_cargo("test");
    command.args(["--package", "xtask"]).args(OWN_TESTS.iter().flat_map(|target| ["--test", target]));
    command.args(["--", "--ignored", "--test-threads=1"]);
    let names: Vec<&str> = kernels.iter().map(|kernel| kernel.name()).collect();
    command.env("URSA_TEST_KERNELS", names.join(",")).args(filter);
    unit::run_and_count(&mut command)
}

/// Runs the cases of a file that `wanted` chooses by the case and its full name. Returns the names of those that failed.
pub fn run_file(
    file: &File,
    kernel: Kernel,
    wanted: &dyn Fn(&Case, &str) -> bool,
    tally: &mut Tally,
) -> Result<Vec<String>> {
    let mut failed = Vec::new();
    let full = |case: &Case| full_name(file, case);
    let chosen = |case: &&Case| case.runs_on(kernel) && wanted(case, &full(case));
    let wanted: Vec<&Case> = file.cases.iter().filter(chosen).collect();
    if wanted.is_empty() {
        return Ok(failed);
    }
    let folder = tempfile::Builder::new().prefix("ursa-test-").tempdir()?;
    let additions = file.additions()?;
    // What is switched off in order leaves a disk that can be checked.
    let root_file = match file.root == Root::Disk && wanted.iter().any(|case| case.powers_off) {
        true => {
            let path = folder.path().join("root.ext4");
            machine::new_root(&image::get(&file.image)?, &build::programs(Noise::Failures)?, &additions, &path)?;
            Some(path)
        }
        false => None,
    };
    let options = Options {
        additions,
        smp: file.smp,
        mem: file.mem.clone(),
        cpu: file.cpu.clone(),
        init: file.init,
        root: Some(file.root),
        root_file,
        loader: file.loader,
        net: file.net,
        mirror: file.mirror.clone(),
        outputs: file.outputs,
        screen: file.screen.clone(),
        modules: file.modules.clone(),
        disks: file.disks.clone(),
        append: file.append.clone(),
        iommu: file.iommu,
        qemu: file.qemu.clone(),
        ..Options::of(&file.image, kernel)
    };
    let boot = Boot::prepare(&options, file.gpu, folder.path())?;
    let (alone, shared): (Vec<&Case>, Vec<&Case>) = wanted.into_iter().partition(|case| case.alone);
    for batch in std::iter::once(shared).chain(alone.into_iter().map(|case| vec![case])) {
        let mut rest = batch.as_slice();
        while !rest.is_empty() {
            let done = run_batch(&options, &boot, file, rest, |case, problem, time| {
                let name = format!("{} {}", kernel.name(), full(case));
                tally.count(problem.is_none());
                match problem {
                    None => println!("guest {name} ... ok ({:.1} s)", time.as_secs_f64()),
                    Some(problem) => {
                        failed.push(case.name.clone());
                        println!("guest {name} ... FAILED: {problem}");
                    }
                }
            });
            match done {
                Ok(done) => rest = &rest[done..],
                Err(problem) => {
                    for case in rest {
                        tally.count(false);
                        failed.push(case.name.clone());
                        println!("guest {} {} ... FAILED: no machine: {problem:#}", kernel.name(), full(case));
                    }
                    break;
                }
            }
        }
    }
    Ok(failed)
}

/// Runs cases in one machine until they are done or the machine is of no more use. Returns how many were run.
fn run_batch(
    options: &Options,
    boot: &Boot,
    file: &File,
    cases: &[&Case],
    mut report: impl FnMut(&Case, Option<String>, Duration),
) -> Result<usize> {
    let folder = tempfile::Builder::new().prefix("ursa-test-").tempdir()?;
    let machine = Machine::start(options, boot, file.gpu, folder.path(), false)?;
    let mut link = agent_of(&machine)?;
    let mut film = None;
    for (number, case) in cases.iter().enumerate() {
        let start = Instant::now();
        let (mut problem, mut usable) = (None, true);
        for action in &case.input {
            if problem.is_none() {
                (problem, usable) = match action.split_once(' ').unwrap_or((action, "")) {
                    ("film", name) => {
                        film = Some(Film::start(folder.path(), picture(name)));
                        (None, true)
                    }
                    ("cut", _) => (film.take().and_then(|film| film.cut().err()).map(|e| format!("{e:#}")), true),
                    _ => act(&machine, &mut link, folder.path(), file, case, action)?,
                };
            }
        }
        if problem.is_none() {
            (problem, usable) = run_case(&machine, &mut link, file, case)?;
        }
        if problem.is_none() {
            problem = wait_for_screen(folder.path(), case)?;
        }
        if let (None, true, Some(disk)) = (&problem, case.powers_off, &options.root_file) {
            problem = power::is_clean(disk).err().map(|problem| format!("{problem:#}"));
        }
        if let Some(problem) = &mut problem {
            if !usable {
                show_log(&machine.console());
            }
            if file.gpu != Gpu::None
                && let Ok(shown) = save_screen(folder.path(), 0, &format!("failed-{}-{}", file.name, case.name))
            {
                *problem += &format!("\n      the screen then: {}", shown.display());
            }
        }
        report(case, problem, start.elapsed());
        if !usable {
            return Ok(number + 1);
        }
    }
    Ok(cases.len())
}

/// Saves what a screen shows, and says where.
fn save_screen(folder: &Path, head: u32, name: &str) -> Result<PathBuf> {
    let to = picture(name);
    fs::create_dir_all(to.parent().context("no folder for pictures")?)?;
    screen::save(&mut Qmp::connect(&folder.join("qmp.sock"))?, folder, head, &to)?;
    Ok(to)
}

/// Does one action of a case's input: what is wrong, and whether the machine can take another.
fn act(
    machine: &Machine,
    link: &mut Link<&UnixStream>,
    folder: &Path,
    file: &File,
    case: &Case,
    action: &str,
) -> Result<(Option<String>, bool)> {
    if let Some(condition) = action.strip_prefix("wait").filter(|rest| rest.starts_with(char::is_whitespace)) {
        let waiting = Case {
            run: format!("until {}; do sleep 0.2; done > /dev/null 2>&1", condition.trim()),
            status: 0,
            stdout: None,
            stderr: None,
            stdout_has: Vec::new(),
            stderr_has: Vec::new(),
            powers_off: false,
            ..case.clone()
        };
        let (problem, usable) = run_case(machine, link, file, &waiting)?;
        return Ok((problem.map(|problem| format!("{action:?}: {problem}")), usable));
    }
    if let Some(arguments) = action.strip_prefix("deaths ") {
        return Ok((deaths::run(machine, link, folder, file, case, arguments)?, true));
    }
    if let Some(pixel) = action.strip_prefix("see ") {
        let problem = until_shown(case, || {
            let mut qmp = Qmp::connect(&folder.join("qmp.sock"))?;
            screen::complaint(&mut qmp, folder, &[pixel.to_owned()])
        })?;
        return Ok((problem.map(|problem| format!("{action:?}: {problem}")), true));
    }
    if let Some(name) = action.strip_prefix("picture ") {
        let (name, head) = name.split_once(' ').unwrap_or((name, "0"));
        save_screen(folder, head.parse()?, name)?;
        return Ok((None, true));
    }
    let mut qmp = Qmp::connect(&folder.join("qmp.sock"))?;
    if let Some((command, arguments)) = action.strip_prefix("qmp ").map(|a| a.split_once(' ').unwrap_or((a, "{}"))) {
        qmp.execute(command, serde_json::from_str(arguments)?)?;
        return Ok((None, true));
    }
    if let Some(arguments) = action.strip_prefix("plug ") {
        let numbers = arguments.split(' ').map(str::parse).collect::<Result<Vec<u16>, _>>()?;
        let [head, width, height] = numbers[..] else { bail!("{action:?}: three numbers are needed") };
        screens::plug(folder, head.into(), (width, height))?;
        return Ok((None, true));
    }
    input::perform(&mut qmp, action, |qmp| screen::size(qmp, folder))?;
    Ok((None, true))
}

/// Waits until the screen shows a case's picture and pixels: what is wrong when its time is over.
fn wait_for_screen(folder: &Path, case: &Case) -> Result<Option<String>> {
    if case.picture.is_none() && case.pixels.is_empty() {
        return Ok(None);
    }
    until_shown(case, || screen_complaint(folder, case))
}

/// Where a picture that a case makes goes.
fn picture(name: &str) -> PathBuf {
    paths::target().join("pictures").join(name).with_extension("png")
}

/// Waits until nothing is wrong with the screen any more, within the case's time.
fn until_shown(case: &Case, mut complaint: impl FnMut() -> Result<Option<String>>) -> Result<Option<String>> {
    let start = Instant::now();
    loop {
        let complaint = complaint()?;
        if complaint.is_none() || start.elapsed() > Duration::from_secs(case.timeout) {
            return Ok(complaint);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn screen_complaint(folder: &Path, case: &Case) -> Result<Option<String>> {
    let mut qmp = Qmp::connect(&folder.join("qmp.sock"))?;
    if let Some(expected) = &case.picture {
        let shown = screen::digest(&mut qmp, folder)?;
        if shown != *expected {
            return Ok(Some(format!("the screen shows {shown:?}, not {expected:?}")));
        }
    }
    screen::complaint(&mut qmp, folder, &case.pixels)
}

/// Waits for the machine to power off after a command's outcome: what is wrong.
fn powers_off(machine: &Machine, outcome: &Outcome, seconds: u64) -> Option<String> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let mut ended = matches!(outcome, Outcome::MachineEnded);
    while !ended && Instant::now() < deadline {
        match machine.next_event(Duration::from_secs(1)) {
            Some(Event::Ended) => ended = true,
            Some(Event::Panic(text)) => return Some(format!("the kernel panicked: {text}")),
            _ => {}
        }
    }
    (!ended).then(|| format!("the machine still runs after {seconds} s"))
}

/// Runs one case: what is wrong with it, and whether the machine can take another.
fn run_case(
    machine: &Machine,
    link: &mut Link<&UnixStream>,
    file: &File,
    case: &Case,
) -> Result<(Option<String>, bool)> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut collect = |output, data: &[u8]| match output {
        Output::Stdout => stdout.extend_from_slice(data),
        Output::Stderr => stderr.extend_from_slice(data),
    };
    let request = Request {
        env: file.environment(),
        user: case.user.clone(),
        stdin: case.stdin.clone().map(|text| Box::new(Cursor::new(text)) as Box<dyn std::io::Read + Send>),
        ..Request::script(&case.run, Duration::from_secs(case.timeout), &mut collect)
    };
    let outcome = link.run(machine, request).context("the line to the guest broke")?;
    let shown = || {
        let tail = |bytes: &[u8]| String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2000)..]).into_owned();
        format!("\n      stdout: {}\n      stderr: {}", tail(&stdout), tail(&stderr))
    };
    if case.powers_off {
        return Ok((powers_off(machine, &outcome, case.timeout), false));
    }
    Ok(match outcome {
        Outcome::Ended(status) => {
            let complaints = case.judge(status, &stdout, &stderr);
            ((!complaints.is_empty()).then(|| complaints.join("\n      ")), true)
        }
        Outcome::NotStarted(what) => (Some(format!("could not be started: {what}")), true),
        Outcome::TimedOut { killed } => (Some(format!("took more than {} s{}", case.timeout, shown())), killed),
        Outcome::Panicked(text) => (Some(format!("the kernel panicked: {text}")), false),
        Outcome::MachineEnded => (Some(format!("the machine ended{}", shown())), false),
        Outcome::LineBroken => (Some("bytes were lost on the line".into()), false),
    })
}
