//! `cargo xtask build`: the kernel, and the static programs of the boot archive.

use crate::toolchain::{KERNEL_TARGET, PROGRAM_TARGET, Toolchain, program_cargo};
use crate::{hosttools, paths, shell};
use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Options of `build`.
#[derive(clap::Args, Debug, Clone)]
pub struct Options {
    /// How the kernel is optimised.
    #[arg(long, value_enum, default_value_t = Profile::Kernel)]
    pub profile: Profile,
}

/// A cargo profile for the kernel.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// As it is developed and tested: quick to build, overflow checks.
    Kernel,
    /// As it is measured and given away.
    Dist,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Profile::Kernel => "kernel",
            Profile::Dist => "dist",
        }
    }
}

/// What of the compiler's words is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noise {
    /// Warnings too.
    Warnings,
    /// Nothing, unless the build fails: standard error belongs to the guest.
    Failures,
}

impl Noise {
    fn run(self, command: &mut std::process::Command) -> Result<()> {
        match self {
            Noise::Warnings => shell::run(command),
            Noise::Failures => shell::run_quietly(command),
        }
    }
}

/// What a build gives.
#[derive(Debug, Clone)]
pub struct Built {
    /// The kernel's ELF file.
    pub kernel: PathBuf,
    /// The programs.
    pub programs: Programs,
}

/// The static programs that go into the boot archive.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Runs commands for the host; also `/init` where nothing else is chosen.
    pub agent: PathBuf,
    /// All of them, the agent too.
    pub all: Vec<Program>,
}

/// A program of this checkout that goes into the guest.
#[derive(Debug, Clone)]
pub struct Program {
    /// The executable on the host.
    pub binary: PathBuf,
    /// Its package's folder.
    pub folder: PathBuf,
    /// Where it goes, and what goes with it.
    pub install: Install,
}

/// `[package.metadata.ursa]` of a program: where it goes in the guest. Paths there have no leading slash.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Install {
    /// Whether it belongs to the boot set: what a root on a disk needs.
    #[serde(default)]
    pub boot: bool,
    /// The executable.
    pub install: PathBuf,
    /// Symbolic links to it.
    #[serde(default)]
    pub links: Vec<PathBuf>,
    /// Files of the package's folder, and where they go.
    #[serde(default)]
    pub files: BTreeMap<PathBuf, PathBuf>,
}

/// `cargo xtask build`.
pub fn run(options: &Options) -> Result<Built> {
    let noise = Noise::Warnings;
    let built = Built { kernel: kernel(options.profile, noise)?, programs: programs(noise)? };
    println!("kernel  {}", built.kernel.display());
    for program in &built.programs.all {
        println!("program {}", program.binary.display());
    }
    Ok(built)
}

/// Builds the kernel, once a run for each profile: tests start many machines.
pub fn kernel(profile: Profile, noise: Noise) -> Result<PathBuf> {
    static BUILT: Mutex<Option<(Profile, PathBuf)>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, kernel)) = built.as_ref().filter(|(of, _)| *of == profile) {
        return Ok(kernel.clone());
    }
    let kernel = build_kernel(profile, noise)?;
    *built = Some((profile, kernel.clone()));
    Ok(kernel)
}

fn build_kernel(profile: Profile, noise: Noise) -> Result<PathBuf> {
    let toolchain = Toolchain::find()?;
    shell::step(format!("building the kernel (profile {})", profile.name()));
    let mut command = toolchain.cargo("build");
    command.args(["--quiet", "--package", "ursa-kernel", "--profile", profile.name()]);
    noise.run(&mut command)?;
    let built = paths::target().join(KERNEL_TARGET).join(profile.name()).join("ursa-kernel");
    let kernel = paths::target().join("ursa-kernel");
    // Put in place at once, so that a machine that is booting from the old one is not disturbed.
    let staging = tempfile::NamedTempFile::new_in(paths::target())?;
    fs::copy(&built, staging.path()).with_context(|| format!("cannot copy {}", built.display()))?;
    crate::ksyms::embed(staging.path())?;
    staging.persist(&kernel)?;
    Ok(kernel)
}

/// Builds the programs of the boot archive, once a run: every package under `services` and `drivers` that says where it is
/// installed.
pub fn programs(noise: Noise) -> Result<Programs> {
    static BUILT: Mutex<Option<Programs>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(programs) = built.as_ref() {
        return Ok(programs.clone());
    }
    let programs = build_programs(noise)?;
    *built = Some(programs.clone());
    Ok(programs)
}

fn build_programs(noise: Noise) -> Result<Programs> {
    hosttools::ensure(hosttools::COMPILER)?;
    let packages = installed_packages()?;
    shell::step("building the programs of the boot archive");
    let mut command = program_cargo();
    command.args(["--quiet", "--release"]);
    for (name, _, _) in &packages {
        command.args(["--package", name]);
    }
    noise.run(&mut command)?;
    let built = paths::target().join(PROGRAM_TARGET).join("release");
    let all = packages
        .into_iter()
        .map(|(name, folder, install)| Program { binary: built.join(name), folder, install })
        .collect();
    Ok(Programs { agent: built.join("ursa-agent"), all })
}

/// Name, folder and destination of each program, in the order of the folders.
fn installed_packages() -> Result<Vec<(String, PathBuf, Install)>> {
    #[derive(Deserialize)]
    struct Manifest {
        package: Package,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        #[serde(default)]
        metadata: Metadata,
    }
    #[derive(Default, Deserialize)]
    struct Metadata {
        ursa: Option<Install>,
    }
    let mut packages = Vec::new();
    for pattern in ["services/*/Cargo.toml", "drivers/*/*/Cargo.toml"] {
        let pattern = paths::root().join(pattern);
        for manifest in glob::glob(pattern.to_str().context("the path of the checkout is not UTF-8")?)? {
            let manifest = manifest?;
            let text = fs::read_to_string(&manifest)?;
            let parsed: Manifest = toml::from_str(&text).with_context(|| manifest.display().to_string())?;
            if let Some(install) = parsed.package.metadata.ursa {
                let folder = manifest.parent().context("a manifest has a folder")?.to_owned();
                packages.push((parsed.package.name, folder, install));
            }
        }
    }
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_and_init_are_installed_and_all_their_files_exist() {
        let packages = installed_packages().unwrap();
        for wanted in ["ursa-agent", "ursa-init"] {
            assert!(packages.iter().any(|(name, _, _)| name == wanted), "{wanted}");
        }
        for (name, folder, install) in packages {
            assert!(install.install.is_relative(), "{name}");
            for file in install.files.keys() {
                assert!(folder.join(file).is_file(), "{name}: {}", file.display());
            }
        }
    }
}
