//! `cargo xtask run`: a login shell on this terminal.

use crate::machine::accel::Accel;
use crate::machine::{self, Boot, Gpu, Kernel, Options as MachineOptions};
use crate::{hosttools, shell};
use anyhow::{Context, Result};
use std::process::ExitCode;

/// Options of `run`.
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    machine: MachineOptions,
    /// Leave Ursa's init out: the agent alone starts the shell.
    #[arg(long)]
    no_init: bool,
}

/// Boots with the console on this terminal, and ends when the guest powers off or the person leaves QEMU.
pub fn run(mut options: Options) -> Result<ExitCode> {
    hosttools::ensure(hosttools::QEMU)?;
    let folder = tempfile::Builder::new().prefix("ursa-run-").tempdir()?;
    // The small image has no agetty, which init's login service needs.
    options.machine.init |= !options.no_init && options.machine.image != "mini";
    options.machine.append += " ursa.login=ttyS0";
    let boot = Boot::prepare(&options.machine, Gpu::None, folder.path())?;
    let mut command = machine::command(&options.machine, &boot, Gpu::None, Accel::choose(boot.kind())?);
    command.args(["-chardev", "stdio,id=console,mux=on,signal=off", "-serial", "chardev:console"]);
    command.args(["-mon", "chardev=console", "-serial", "null"]);
    let system = if boot.kind() == Kernel::Ursa { "Ursa" } else { "Linux" };
    let end = if options.machine.init { "poweroff" } else { "exit" };
    shell::step(format!("booting {system}; `{end}` ends it, Ctrl-A X leaves at once"));
    let status = command.status().context("cannot start QEMU")?;
    // Raw mode ends with QEMU; a guest's last line may have no end.
    eprintln!();
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
