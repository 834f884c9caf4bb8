//! Guest tests as files: `tests/guest/NAME.toml`.
//!
//! ```toml
//! image = "mini"              # for all cases of the file; so are smp, mem, cpu, append and add
//! [[case]]
//! name = "pipe_passes_bytes"
//! run = "echo a | cat"        # a script for bash
//! stdout = "a\n"              # what must come out; without it, anything may
//! ```

use crate::archive::Addition;
use crate::machine::{Gpu, Iommu, Kernel, Loader, Root};
use crate::paths;
use anyhow::{Context, Result, bail};
use guest_protocol::Status;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// A file of cases, and the machine they share.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct File {
    /// The file's name without its ending.
    #[serde(skip)]
    pub name: String,
    /// The image.
    pub image: String,
    /// CPUs.
    #[serde(default = "two")]
    pub smp: u32,
    /// Memory.
    #[serde(default = "gigabytes")]
    pub mem: String,
    /// CPU model.
    #[serde(default = "max")]
    pub cpu: String,
    /// Whether to boot through Ursa's init.
    #[serde(default)]
    pub init: bool,
    /// Where Ursa's root file system is.
    #[serde(default)]
    pub root: Root,
    /// Who loads Ursa's kernel.
    #[serde(default)]
    pub loader: Loader,
    /// Words for the kernel's command line.
    #[serde(default)]
    pub append: String,
    /// Its display device.
    #[serde(default)]
    pub gpu: Gpu,
    /// Whether it has a network card.
    #[serde(default)]
    pub net: bool,
    /// The image whose packages that network serves as a Debian mirror.
    #[serde(default)]
    pub mirror: Option<String>,
    /// Virtio disks: files relative to the checkout, or sizes (`64M`) of empty ones. All cases see the same.
    #[serde(default)]
    pub disks: Vec<String>,
    /// Its IOMMU.
    #[serde(default)]
    pub iommu: Iommu,
    /// Screens that its virtio-gpu can have.
    #[serde(default = "one")]
    pub outputs: u32,
    /// The size that its display device asks for, `WIDTHxHEIGHT`.
    #[serde(default = "screen")]
    pub screen: String,
    /// Modules for Debian's kernel, beside those of the display and input devices.
    #[serde(default)]
    pub modules: Vec<String>,
    /// More words for QEMU.
    #[serde(default)]
    pub qemu: Vec<String>,
    /// Files to put in, relative to the checkout.
    #[serde(default)]
    pub add: Vec<String>,
    /// Variables for all its commands.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Other files whose cases are run on this machine too, in its campaign.
    #[serde(default)]
    pub cases_of: Vec<String>,
    /// The cases.
    #[serde(rename = "case", default)]
    pub cases: Vec<Case>,
}

fn one() -> u32 {
    1
}

fn screen() -> String {
    "1280x800".into()
}

fn two() -> u32 {
    2
}

fn gigabytes() -> String {
    "4G".into()
}

fn max() -> String {
    "max".into()
}

/// One test.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Case {
    /// After behaviour and outcome.
    pub name: String,
    /// The script.
    pub run: String,
    /// Who runs it.
    #[serde(default)]
    pub user: Option<String>,
    /// Standard input.
    #[serde(default)]
    pub stdin: Option<String>,
    /// The exit status as a shell gives it.
    #[serde(default)]
    pub status: i32,
    /// All of standard output.
    #[serde(default)]
    pub stdout: Option<String>,
    /// All of standard error.
    #[serde(default)]
    pub stderr: Option<String>,
    /// What standard output must hold.
    #[serde(default)]
    pub stdout_has: Vec<String>,
    /// What standard error must hold.
    #[serde(default)]
    pub stderr_has: Vec<String>,
    /// What the screen shows in the end, `WIDTHxHEIGHT DIGEST`: it is waited for. The digest is the first 16 digits of the
    /// SHA-256 of the pixels, three bytes each.
    #[serde(default)]
    pub picture: Option<String>,
    /// What a person does before the command runs, in order: `type TEXT`, `burst TEXT` (200 keys a second), `key COMBO`,
    /// `move X Y`, `click [BUTTON]`,
    /// `drag X Y X Y`, `qmp COMMAND JSON` (to QEMU), `wait SHELL` (until a command of the guest succeeds), `see X Y RRGGBB`
    /// (until the screen shows this pixel), `picture NAME` (the screen into `target/pictures/NAME.png`), `film NAME` and `cut`
    /// (all that happens between them, as an animated picture), `plug N WIDTH HEIGHT` (screen N, from 1, is plugged in, or out if
    /// its size is `0 0`), `deaths …` (see [`deaths`](super::deaths)). Where there are several screens `see` and `picture` take the
    /// number of one behind the rest.
    #[serde(default)]
    pub input: Vec<String>,
    /// Pixels that the screen shows in the end, `X Y RRGGBB`: they are waited for.
    #[serde(default)]
    pub pixels: Vec<String>,
    /// Seconds.
    #[serde(default = "minute")]
    pub timeout: u64,
    /// Whether it has a machine of its own, because it harms its surroundings.
    #[serde(default)]
    pub alone: bool,
    /// Whether the machine must power itself off within the time; what the command says is then nobody's business.
    #[serde(default)]
    pub powers_off: bool,
    /// Too long for every day: `cargo xtask campaign FILE` runs it, `cargo xtask test` does not.
    #[serde(default)]
    pub long: bool,
    /// The Debian package that it tries, where the file is a list of packages (`docs/packages.md`).
    #[serde(default)]
    pub package: Option<String>,
    /// That package's priority in Debian's archive, deb-control(5).
    #[serde(default)]
    pub priority: Option<String>,
    /// What Ursa still lacks for it. On Ursa the case is then skipped, said so, and counted as skipped; it has a line in
    /// `CAVEATS.md`. `cargo xtask test --missing` runs these cases alone, to see which can lose this key.
    #[serde(default)]
    pub missing: Option<String>,
    /// On which kernels: both without it.
    #[serde(default)]
    pub kernels: Option<Vec<KernelName>>,
}

fn minute() -> u64 {
    60
}

/// A kernel's name in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelName {
    /// Ours.
    Ursa,
    /// Debian's.
    Linux,
}

impl File {
    /// The variables for its commands, as the agent takes them.
    pub fn environment(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.env.iter().map(|(name, value)| (name.clone().into_bytes(), value.clone().into_bytes())).collect()
    }

    /// The files to put in.
    pub fn additions(&self) -> Result<Vec<Addition>> {
        let parse = |text: &String| {
            let mut addition: Addition = text.parse().map_err(|e| anyhow::anyhow!("{}: {text:?} {e}", self.name))?;
            addition.host = paths::root().join(addition.host);
            Ok(addition)
        };
        self.add.iter().map(parse).collect()
    }
}

impl Case {
    /// Whether it is meant for this kernel.
    pub fn runs_on(&self, kernel: Kernel) -> bool {
        let name = if kernel == Kernel::Ursa { KernelName::Ursa } else { KernelName::Linux };
        self.kernels.as_ref().is_none_or(|kernels| kernels.contains(&name))
    }

    /// What is wrong with a result; nothing if it is as expected.
    pub fn judge(&self, status: Status, stdout: &[u8], stderr: &[u8]) -> Vec<String> {
        let (out, err) = (String::from_utf8_lossy(stdout), String::from_utf8_lossy(stderr));
        let mut complaints = Vec::new();
        if status.shell_code() != self.status {
            complaints.push(format!("exit status {} (expected {})", status.shell_code(), self.status));
        }
        for (what, found, expected) in [("stdout", &out, &self.stdout), ("stderr", &err, &self.stderr)] {
            if let Some(expected) = expected
                && found.as_ref() != expected
            {
                complaints.push(format!("{what} differs; expected:\n{}", indent(expected)));
            }
        }
        for (what, found, parts) in [("stdout", &out, &self.stdout_has), ("stderr", &err, &self.stderr_has)] {
            for part in parts.iter().filter(|part| !found.contains(*part)) {
                complaints.push(format!("{what} does not hold {part:?}"));
            }
        }
        if !complaints.is_empty() {
            complaints.push(format!("stdout was:\n{}", indent(&out)));
            complaints.push(format!("stderr was:\n{}", indent(&err)));
        }
        complaints
    }
}

/// The last lines of a text, set in.
fn indent(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| format!("        {line}")).collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// Reads all files.
pub fn load() -> Result<Vec<File>> {
    let folder = paths::root().join("tests/guest");
    let mut files = Vec::new();
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|ending| ending != "toml") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let mut file: File = toml::from_str(&text).with_context(|| path.display().to_string())?;
        file.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for case in &file.cases {
            if !names.insert(format!("{}::{}", file.name, case.name)) {
                bail!("{}: two cases are called {}", path.display(), case.name);
            }
        }
        files.push(file);
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let own: BTreeMap<String, Vec<Case>> = files.iter().map(|file| (file.name.clone(), file.cases.clone())).collect();
    for file in &mut files {
        let mut cases = Vec::new();
        for other in &file.cases_of {
            let of = own.get(other).with_context(|| format!("{}: there is no {other}", file.name))?;
            cases.extend(of.iter().map(|case| Case { long: true, ..case.clone() }));
        }
        file.cases.extend(cases);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_in_the_tree_parses() {
        for file in load().unwrap() {
            file.additions().unwrap();
            assert!(!file.cases.is_empty(), "{} has no cases", file.name);
        }
    }

    #[test]
    fn results_are_judged_by_all_that_is_expected() {
        let file: File = toml::from_str(
            "image = 'mini'\n[[case]]\nname = 'x'\nrun = 'x'\nstatus = 3\nstdout = \"a\\n\"\nstderr-has = ['bad']\n",
        )
        .unwrap();
        let case = &file.cases[0];
        assert!(case.judge(Status::Exited(3), b"a\n", b"too bad\n").is_empty());
        assert!(!case.judge(Status::Exited(0), b"a\n", b"bad").is_empty());
        assert!(!case.judge(Status::Exited(3), b"a", b"bad").is_empty());
        assert!(!case.judge(Status::Exited(3), b"a\n", b"good").is_empty());
        assert!(!case.judge(Status::Signaled(3), b"a\n", b"bad").is_empty());
    }
}
