//! `cargo xtask run`: a login shell on this terminal, and a graphical session in a window.

use crate::machine::accel::Accel;
use crate::machine::{self, Boot, Gpu, Kernel, Options as MachineOptions, Root};
use crate::{hosttools, paths, shell};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What the user is logged in to beside the serial line.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// Nothing: the machine has no display.
    None,
    /// The virtual terminals, drawn on the display.
    Console,
    /// weston with a terminal.
    Weston,
    /// sway with a terminal.
    Sway,
    /// KWin with a terminal.
    Kwin,
    /// KDE's Plasma.
    Plasma,
}

/// Options of `run`.
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    machine: MachineOptions,
    /// The session on the display: Plasma, weston with other images than `plasma`, and none with the small one. Sessions have the
    /// image `wayland`, those of KDE `plasma`.
    #[arg(long, value_enum)]
    session: Option<Session>,
    /// Ask who logs in, and to which session, with Debian's SDDM; the password of `user` is `ursa`. Without it `user` is
    /// logged in.
    #[arg(long, conflicts_with_all = ["session", "no_init"])]
    greeter: bool,
    /// Kill a display or input server every few seconds: nothing but a short pause should be seen.
    #[arg(long, conflicts_with = "no_init")]
    chaos: bool,
    /// Begin with a new disk, instead of going on with that of the last run.
    #[arg(long)]
    fresh: bool,
    /// Keep the root in this file: raw ext4, made when it is not there. Without it each image has one below `target/disks`.
    #[arg(long, value_name = "FILE", conflicts_with = "no_init")]
    root_file: Option<PathBuf>,
    /// Leave Ursa's init out: the agent alone starts the shell.
    #[arg(long)]
    no_init: bool,
}

/// Boots with the console on this terminal, and ends when the guest powers off or the person leaves QEMU.
pub fn run(mut options: Options) -> Result<ExitCode> {
    hosttools::ensure(hosttools::QEMU)?;
    let folder = tempfile::Builder::new().prefix("ursa-run-").tempdir()?;
    let small = options.machine.image == "mini";
    let session = options.session.unwrap_or(match options.machine.image.as_str() {
        _ if options.greeter => Session::Plasma,
        "mini" => Session::None,
        "base" | "plasma" => Session::Plasma,
        _ => Session::Weston,
    });
    let gpu = if session == Session::None { Gpu::None } else { Gpu::Virtio };
    let kde = matches!(session, Session::Kwin | Session::Plasma);
    if gpu != Gpu::None && options.machine.image == "base" {
        options.machine.image = if kde { "plasma" } else { "wayland" }.into();
    }
    // The small image has no agetty, which init's login service needs.
    options.machine.init |= !options.no_init && !small;
    options.machine.append += " ursa.login=ttyS0";
    match session {
        // A terminal with a login would be in its way.
        _ if options.greeter => options.machine.append += " ursa.greeter",
        Session::None => {}
        Session::Console => options.machine.append += " ursa.login=tty1",
        Session::Weston => options.machine.append += " ursa.session=weston ursa.login=tty1",
        Session::Sway => options.machine.append += " ursa.session=sway ursa.login=tty1",
        Session::Kwin => options.machine.append += " ursa.session=kwin ursa.login=tty1",
        Session::Plasma => options.machine.append += " ursa.session=plasma ursa.login=tty1",
    }
    if options.chaos {
        options.machine.append += " ursa.chaos";
    }
    let default = if options.machine.init { Root::Disk } else { Root::Memory };
    let mut in_use = None;
    if *options.machine.root.get_or_insert(default) == Root::Disk {
        let disk = match options.root_file {
            Some(file) => file,
            None => paths::target().join("disks").join(format!("{}.ext4", options.machine.image)),
        };
        std::fs::create_dir_all(disk.parent().context("a disk has a folder")?)?;
        in_use = Some(claim(&disk)?);
        if options.fresh {
            let _ = std::fs::remove_file(&disk);
        }
        let programs = crate::build::programs(crate::build::Noise::Failures)?;
        let image = crate::image::get(&options.machine.image)?;
        // What is added is on the disk then: there is nothing more to add at the boot.
        let additions = std::mem::take(&mut options.machine.additions);
        machine::kept_root(&image, &programs, &additions, &disk)?;
        options.machine.root_file = Some(disk);
    }
    let boot = Boot::prepare(&options.machine, gpu, folder.path())?;
    let mut command = machine::command(&options.machine, &boot, gpu, Accel::choose(boot.kind())?);
    if gpu != Gpu::None {
        show(&mut command)?;
    }
    command.args(["-chardev", "stdio,id=console,mux=on,signal=off", "-serial", "chardev:console"]);
    command.args(["-mon", "chardev=console", "-serial", "null"]);
    let system = if boot.kind() == Kernel::Ursa { "Ursa" } else { "Linux" };
    let end = if options.machine.init { "poweroff" } else { "exit" };
    shell::step(format!("booting {system}; `{end}` ends it, Ctrl-A X leaves at once"));
    let status = command.status().context("cannot start QEMU")?;
    drop(in_use);
    // Raw mode ends with QEMU; a guest's last line may have no end.
    eprintln!();
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes a disk this run's own while the result lives: two machines, or one and whoever writes programs to it, would destroy it.
fn claim(disk: &Path) -> Result<File> {
    let claim = File::create(disk.with_extension("lock"))?;
    if claim.try_lock().is_err() {
        bail!("another run has the disk {}: end that, or start this one with --root memory", disk.display());
    }
    Ok(claim)
}

/// Shows the guest's display: in a window where there is a desktop, else over VNC on the loopback interface.
fn show(command: &mut Command) -> Result<()> {
    let desktop =
        ["WAYLAND_DISPLAY", "DISPLAY"].iter().any(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty()));
    if desktop {
        hosttools::ensure(hosttools::QEMU_WINDOW)?;
        // The guest draws the pointer: an absolute device keeps it under the person's.
        command.args(["-display", "gtk,show-cursor=off,zoom-to-fit=off"]);
    } else {
        let port = free_vnc_port()?;
        command.args(["-vnc", &format!("127.0.0.1:{}", port - VNC_BASE)]);
        shell::step(format!("no desktop here; the display is on VNC at 127.0.0.1:{port}"));
    }
    Ok(())
}

/// Port of VNC display 0.
const VNC_BASE: u16 = 5900;

fn free_vnc_port() -> Result<u16> {
    (VNC_BASE..VNC_BASE + 100)
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .context("no free VNC port")
}
