//! `ursa-init`: the first process. It sets the system up, starts and watches the services, reaps orphans, and takes the
//! system down in order.
//!
//! The root file system is the boot archive, or with `root=` a disk, whose driver and server are the *boot set*: they run from
//! the boot archive, as this program does ([`root`], [`startup`]). What could wait for them, children do ([`helper`]).
//!
//! Run as process 1 it boots; under the names `initctl`, `poweroff`, `reboot` and `halt` it is the client of the running
//! one. Services are TOML files ([mod@unit]), decisions are made in [`manager`], effects in [`supervisor`]. What goes wrong
//! before services can run ends in a rescue shell on the console, never in a dead machine.
//!
//! References: sd_notify(3), systemd.service(5) for the meaning of the keys, bootup(7).
#![deny(unsafe_code)]

mod confine;
mod control;
mod drivers;
mod grants;
mod helper;
mod manager;
mod notify;
mod root;
mod spawn;
mod startup;
mod supervisor;
mod system;
mod uevent;
mod unit;

use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::Result;

use system::Down;

const RUN: &str = "run/ursa";
/// This program, as the first process finds it without looking at the root file system.
const PROGRAM: &str = "proc/self/exe";

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    let name = Path::new(&name).file_name().and_then(|name| name.to_str()).unwrap_or("init").to_owned();
    let arguments: Vec<String> = arguments.collect();
    if arguments.first().is_some_and(|first| first == spawn::CHILD_ARG) {
        let (error, status) = spawn::become_service();
        eprintln!("init: {}: {error:#}", arguments.get(1).map_or("service", String::as_str));
        return ExitCode::from(status as u8);
    }
    if arguments.first().is_some_and(|first| first == helper::HELPER_ARG) {
        return match helper::run(arguments.into_iter().skip(1)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("init: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    if std::process::id() != 1 {
        return client(&name, &arguments);
    }
    // A broken supervisor must leave a person something to work with.
    let ended = std::panic::catch_unwind(boot);
    let reason = match ended {
        Ok(Ok(how)) => format!("the kernel refused to go down: {}", system::go_down(how)),
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => "the supervisor has a bug (message above)".to_owned(),
    };
    rescue(&reason)
}

fn client(name: &str, arguments: &[String]) -> ExitCode {
    let line = match name {
        "poweroff" | "reboot" | "halt" => name.to_owned(),
        _ if arguments.is_empty() => "status".to_owned(),
        _ => arguments.join(" "),
    };
    match control::ask(&Path::new("/").join(RUN).join("init.sock"), &line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Boots, supervises, and returns how the machine shall go down.
fn boot() -> Result<Down> {
    std::env::set_current_dir("/")?;
    let problems = system::set_up()?;
    for message in &problems {
        eprintln!("init: {message}");
    }
    if system::has_option("rescue") {
        anyhow::bail!("the boot option \"rescue\" is given");
    }
    // Pages of this program must not be what memory is waited for.
    if let Err(errno) = rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT | rustix::mm::MlockAllFlags::FUTURE) {
        eprintln!("init: memory is not locked: {errno}");
    }
    // On another kernel (Linux, in comparisons) the drivers and the root are that kernel's.
    let ours = Path::new("dev/scheme").exists();
    let mut supervisor = supervisor::Supervisor::new(Path::new(RUN), Path::new(PROGRAM).into(), ours)?;
    supervisor.start()?;
    supervisor.run()
}

/// Replaces the supervisor by a shell on the console, so that a person can mend the system.
fn rescue(reason: &str) -> ExitCode {
    // Back to the boot archive, and to signals.
    let _ = rustix::process::chroot(".");
    let _ = spawn::unblock_signals();
    eprintln!("init: {reason}\ninit: rescue shell; leave it with \"exec /sbin/init\" or \"poweroff -f\"");
    // The console becomes the terminal of a session's leader only. Ursa's first process is one; where it is not, it becomes one
    // here, since busybox's `setsid` would go on in a child and end the first process.
    let _ = rustix::process::setsid();
    let shells: [(&str, &[&str]); 4] =
        [("/bin/busybox", &["cttyhack", "sh"]), ("/bin/bash", &["-l"]), ("/bin/sh", &[]), ("/bin/busybox", &["sh"])];
    for (shell, arguments) in shells {
        // `exec` returns only when the shell could not be executed.
        let error = Command::new(shell).args(arguments).exec();
        eprintln!("init: {shell}: {error}");
    }
    eprintln!("init: no shell could be started: the system powers off");
    eprintln!("init: {}", system::go_down(Down::PowerOff));
    ExitCode::FAILURE
}
