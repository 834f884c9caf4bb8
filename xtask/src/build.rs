//! `cargo xtask build`: the kernel, and the static programs of the boot archive.

use crate::toolchain::{KERNEL_TARGET, PROGRAM_TARGET, Toolchain, program_cargo};
use crate::{hosttools, paths, shell};
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::fs;
use std::path::PathBuf;

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
    /// Runs commands for the host.
    pub agent: PathBuf,
    /// PID 1, once there is one.
    pub init: Option<PathBuf>,
}

/// `cargo xtask build`.
pub fn run(options: &Options) -> Result<Built> {
    let noise = Noise::Warnings;
    let built = Built { kernel: kernel(options.profile, noise)?, programs: programs(noise)? };
    println!("kernel  {}", built.kernel.display());
    println!("agent   {}", built.programs.agent.display());
    if let Some(init) = &built.programs.init {
        println!("init    {}", init.display());
    }
    Ok(built)
}

/// Builds the kernel.
pub fn kernel(profile: Profile, noise: Noise) -> Result<PathBuf> {
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

/// Builds the programs of the boot archive.
pub fn programs(noise: Noise) -> Result<Programs> {
    hosttools::ensure(hosttools::COMPILER)?;
    let has_init = paths::root().join("services/init/Cargo.toml").exists();
    shell::step("building the programs of the boot archive");
    let mut command = program_cargo();
    command.args(["--quiet", "--release", "--package", "ursa-agent"]);
    if has_init {
        command.args(["--package", "ursa-init"]);
    }
    noise.run(&mut command)?;
    let folder = paths::target().join(PROGRAM_TARGET).join("release");
    Ok(Programs { agent: folder.join("ursa-agent"), init: has_init.then(|| folder.join("ursa-init")) })
}
