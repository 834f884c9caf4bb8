//! The root on a disk, and machines that are switched off: in order, and in the middle of writing.
//!
//! A guest writes files, says which are durable (fsync(2) of the file and of its folder have returned), and is killed with QEMU while
//! two more processes make and remove files. What Debian's e2fsck finds then, on a copy, must be no more than a journal to
//! replay; the next boot replays it with `ext4d` and must find every file that was durable, with its contents.

use super::Tally;
use crate::guest::agent_of;
use crate::machine::link::{Link, Outcome, Output, Request};
use crate::machine::{self, Boot, Gpu, Kernel, Machine, Options, Root};
use crate::{build, image, paths, shell};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The case's name.
pub const NAME: &str = "root_survives_power_cuts_and_power_off";
/// Rounds of every day.
const ROUNDS: u32 = 3;
const IMAGE: &str = "mini";
const PATIENCE: Duration = Duration::from_secs(300);
const VERIFY: &str = r#"
cd /var/load 2>/dev/null || { [ -z "$ROUND" ] || [ "$ROUND" = 1 ]; exit; }
while read -r name sum; do
    found=$(md5sum < "$name") && [ "${found%% *}" = "$sum" ] || { echo "$name is lost or wrong"; bad=1; }
done
exit ${bad:-0}
"#;
const LOAD: &str = r#"
mkdir -p /var/load /var/churn; cd /var/load || exit
churn() {
    while :; do
        mkdir "/var/churn/$1"
        for i in 1 2 3 4 5 6; do echo $RANDOM > "/var/churn/$1/$i"; mv "/var/churn/$1/$i" "/var/churn/$1.$i"; done
        rm -r "/var/churn/$1" "/var/churn/$1".*
    done
}
rm -rf /var/churn/*; churn a & churn b &
for ((n = 1; ; n++)); do
    name=$ROUND.$n
    head -c $((RANDOM * 2)) /dev/urandom > "new.$name"
    sync "new.$name" && mv "new.$name" "$name" && sync . || exit
    sum=$(md5sum < "$name"); echo "$name ${sum%% *}"
done
"#;

/// Runs the case.
pub fn run(filter: Option<&str>) -> Tally {
    let mut tally = Tally::default();
    if filter.is_none_or(|filter| NAME.contains(filter)) {
        tally.count(report(ROUNDS));
    }
    tally
}

/// Runs so many rounds; whether all went well.
pub fn report(rounds: u32) -> bool {
    let start = Instant::now();
    match cut(rounds) {
        Ok(files) => {
            let seconds = start.elapsed().as_secs_f64();
            println!("power {NAME} ... ok ({rounds} cuts, {files} durable files, {seconds:.0} s)");
            true
        }
        Err(problem) => {
            println!("power {NAME} ... FAILED: {problem:#}");
            false
        }
    }
}

fn cut(rounds: u32) -> Result<usize> {
    let folder = tempfile::Builder::new().prefix("ursa-power-").tempdir_in(paths::target())?;
    let disk = folder.path().join("root.ext4");
    let programs = build::programs(build::Noise::Failures)?;
    machine::kept_root(&image::get(IMAGE)?, &programs, &[], &disk)?;
    let options = Options { root: Some(Root::Disk), root_file: Some(disk.clone()), ..Options::of(IMAGE, Kernel::Ursa) };
    let boot = Boot::prepare(&options, Gpu::None, folder.path())?;
    let mut durable = BTreeMap::new();
    for round in 1..=rounds {
        let sockets = tempfile::Builder::new().prefix("ursa-power-").tempdir()?;
        let mut machine = Machine::start(&options, &boot, Gpu::None, sockets.path(), false)?;
        let mut guest = Guest { link: agent_of(&machine)?, machine: &machine };
        guest.verify(round, &durable).with_context(|| format!("after {} cuts", round - 1))?;
        guest.load(round, &mut durable).with_context(|| format!("in round {round}"))?;
        machine.stop();
        judge(&disk, folder.path()).with_context(|| format!("after cut {round}"))?;
        if rounds > ROUNDS {
            // So that a campaign that is ended early has said something.
            shell::step(format!(
                "cut {round} of {rounds}: e2fsck finds no fault, {} durable files so far",
                durable.len()
            ));
        }
    }
    let sockets = tempfile::Builder::new().prefix("ursa-power-").tempdir()?;
    let mut machine = Machine::start(&options, &boot, Gpu::None, sockets.path(), false)?;
    let mut guest = Guest { link: agent_of(&machine)?, machine: &machine };
    guest.verify(0, &durable)?;
    let ended = guest.run(0, "poweroff; sleep 300", "", &mut |_| {})?;
    if ended != Outcome::MachineEnded || machine.wait(PATIENCE)?.is_none_or(|status| !status.success()) {
        bail!("the machine was not switched off: {ended:?}\n{}", machine.console());
    }
    is_clean(&disk).with_context(|| machine.console())?;
    Ok(durable.len())
}

/// Whether a disk was left in order: e2fsck has nothing to do, not even a journal to replay.
///
/// # Errors
/// What it would do.
pub fn is_clean(disk: &Path) -> Result<()> {
    let found = check(&["-fn"], disk)?;
    if found.contains("recovery") {
        bail!("the journal was not closed:\n{found}");
    }
    Ok(())
}

/// A machine that runs.
struct Guest<'a> {
    machine: &'a Machine,
    link: Link<&'a UnixStream>,
}

impl Guest<'_> {
    /// Whether all that is durable is there.
    fn verify(&mut self, round: u32, durable: &BTreeMap<String, String>) -> Result<()> {
        let list: String = durable.iter().map(|(name, sum)| format!("{name} {sum}\n")).collect();
        let mut said = String::new();
        match self.run(round, VERIFY, &list, &mut |text| said += text)? {
            Outcome::Ended(status) if status.shell_code() == 0 => Ok(()),
            other => bail!("{other:?}: {said}\n{}", self.machine.console()),
        }
    }

    /// Lets the guest write, and pulls the plug at some moment after so many files.
    fn load(&mut self, round: u32, durable: &mut BTreeMap<String, String>) -> Result<()> {
        let (pid, until) = (self.machine.pid(), 8 + round as usize * 7 % 13);
        let (mut line, mut count) = (String::new(), 0);
        let outcome = self.run(round, LOAD, "", &mut |text| {
            line += text;
            while let Some((whole, rest)) = line.split_once('\n') {
                if let Some((name, sum)) = whole.split_once(' ') {
                    durable.insert(name.to_owned(), sum.to_owned());
                    count += 1;
                }
                line = rest.to_owned();
            }
            if count >= until {
                // Not always just after an fsync.
                std::thread::sleep(Duration::from_millis(u64::from(round * 13 % 50)));
                let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
            }
        })?;
        if count < until {
            bail!("the load ended after {count} files: {outcome:?}\n{}", self.machine.console());
        }
        Ok(())
    }

    fn run(&mut self, round: u32, script: &str, stdin: &str, said: &mut dyn FnMut(&str)) -> Result<Outcome> {
        let mut collect = |_: Output, data: &[u8]| said(&String::from_utf8_lossy(data));
        let request = Request {
            env: vec![(b"ROUND".to_vec(), round.to_string().into_bytes())],
            cwd: None,
            stdin: Some(Box::new(Cursor::new(stdin.to_owned()))),
            ..Request::script(script, PATIENCE, &mut collect)
        };
        Ok(self.link.run(self.machine, request)?)
    }
}

/// What e2fsck makes of a disk after a cut, on a copy: the journal is replayed, and nothing else is to be done.
fn judge(disk: &Path, folder: &Path) -> Result<()> {
    let copy = folder.join("copy.ext4");
    shell::run_quietly(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(disk).arg(&copy))?;
    check(&["-p"], &copy)?;
    check(&["-fn"], &copy).map(drop)
}

/// What e2fsck says, if it finds nothing wrong.
fn check(arguments: &[&str], disk: &Path) -> Result<String> {
    let program = shell::find_program("e2fsck").unwrap_or_else(|| PathBuf::from("/usr/sbin/e2fsck"));
    let done = Command::new(program).args(arguments).arg(disk).output().context("e2fsck")?;
    let text = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    // Status 1: a journal was replayed, or what it asks for after that was done.
    if !(done.status.success() || done.status.code() == Some(1) && arguments == ["-p"]) {
        bail!("e2fsck {}: {text}", arguments.join(" "));
    }
    Ok(text)
}
