//! `ursa-agent`: runs commands in a guest for `cargo xtask guest`, `vm exec` and the guest tests.
//!
//! The same static binary serves on Ursa and on Debian's kernel, and has three callers:
//! - the kernel, as PID 1, where the system has no other init: [`boot`] mounts what is missing, then [`serve`] runs;
//! - `init`, as an ordinary service: [`serve`] alone;
//! - itself, for each command: [`session`] makes the session, takes the user's identity and executes the command.
//!
//! It is made to run on a kernel that can do little yet: no threads, no epoll, no sockets, and a poll time-out behind
//! every signal it waits for.
#![deny(unsafe_code)]

mod accounts;
mod boot;
mod job;
mod serve;
mod session;

use std::process::ExitCode;

/// Where the agent puts itself when it leaves the initramfs, so that it can execute itself later.
const INSTALLED: &str = "/run/ursa-agent";

/// Where the agent's program may be, most particular place first.
const PROGRAM_PATHS: [&str; 3] = [INSTALLED, "/usr/sbin/ursa-agent", "/init"];

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(verb) if verb == "session" => session::run(arguments),
        _ => match agent() {
            Ok(()) => ExitCode::SUCCESS,
            Err(problem) => {
                eprintln!("ursa-agent: {problem}");
                if std::process::id() == 1 {
                    boot::end();
                }
                ExitCode::FAILURE
            }
        },
    }
}

fn agent() -> Result<(), String> {
    let first = std::process::id() == 1;
    if first {
        boot::prepare()?;
    }
    let line = boot::option("ursa.agent").unwrap_or_else(|| "ttyS1".to_owned());
    let login = if first { boot::option("ursa.login") } else { None };
    serve::Server::open(&format!("/dev/{line}"), login)?.run()
}
