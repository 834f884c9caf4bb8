//! `ursa-init`: the first process. It sets the system up, starts and watches the services, reaps orphans, and takes the
//! system down in order.
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
mod manager;
mod notify;
mod spawn;
mod supervisor;
mod system;
mod uevent;
mod unit;

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::Result;

use system::Down;

const RUN: &str = "/run/ursa";
const DRIVERS: &str = "/usr/lib/ursa/drivers";
const UNIT_FOLDERS: [&str; 2] = ["/etc/ursa/services", "/usr/lib/ursa/services"];

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
    match control::ask(&Path::new(RUN).join("init.sock"), &line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Boots, supervises, and returns how the machine shall go down.
fn boot() -> Result<Down> {
    let problems = system::set_up()?;
    if system::has_option("rescue") {
        anyhow::bail!("the boot option \"rescue\" is given");
    }
    let (mut units, broken) = unit::load(&UNIT_FOLDERS.map(Path::new));
    let (drivers, broken_drivers) = drivers::load(Path::new(DRIVERS));
    // On another kernel (Linux, in comparisons) the drivers are that kernel's.
    let ours = Path::new("/dev/scheme").exists();
    if ours {
        units.extend(drivers::services(&drivers, &drivers::devices(Path::new("/sys"))));
    }
    for message in problems.iter().chain(&broken).chain(&broken_drivers) {
        eprintln!("init: {message}");
    }
    if units.is_empty() {
        anyhow::bail!("no service files in {}", UNIT_FOLDERS.join(" or "));
    }
    for word in system::option("mask").unwrap_or_default().split(',') {
        units.remove(word);
    }
    let order = unit::start_order(&units)?;
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    let mut supervisor = supervisor::Supervisor::new(Path::new(RUN), program, units, order)?;
    if ours && let Err(error) = supervisor.watch_devices(drivers) {
        eprintln!("init: devices that are plugged in get no driver: {error:#}");
    }
    Ok(supervisor.run())
}

/// Replaces the supervisor by a shell on the console, so that a person can mend the system.
fn rescue(reason: &str) -> ExitCode {
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
