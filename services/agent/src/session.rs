//! `ursa-agent session USER CWD TERMINAL PROGRAM ARGUMENT…`: becomes the command.
//!
//! A process of its own between agent and command, because all of this must happen after `fork` and before `execve`:
//! new session, controlling terminal, groups, user, working directory. `-` stands for "none" in CWD and TERMINAL.

use crate::accounts::User;
use nix::unistd::{Gid, Uid, setgid, setgroups, setsid, setuid};
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

/// Does not return if all goes well. Otherwise the exit status is a shell's: 127 for a program that does not exist, 126
/// for anything else that keeps it from running.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let [user, cwd, terminal, program, rest @ ..] = arguments.as_slice() else {
        eprintln!("ursa-agent session: too few arguments");
        return ExitCode::from(126);
    };
    let (problem, kind) = become_command(&user.to_string_lossy(), cwd, &terminal.to_string_lossy(), program, rest);
    eprintln!("ursa-agent: {}: {problem}", program.to_string_lossy());
    ExitCode::from(if kind == ErrorKind::NotFound { 127 } else { 126 })
}

fn become_command(
    user: &str,
    cwd: &OsString,
    terminal: &str,
    program: &OsString,
    rest: &[OsString],
) -> (String, ErrorKind) {
    let failed = |what: &str, errno: nix::errno::Errno| (format!("{what}: {errno}"), ErrorKind::Other);
    let Some(user) = User::find(user) else { return (format!("no user {user} in /etc/passwd"), ErrorKind::Other) };
    if let Err(errno) = setsid() {
        return failed("setsid", errno);
    }
    let mut command = Command::new(program);
    if terminal != "-" {
        // The first terminal that a session leader opens becomes its controlling terminal.
        let opened = OpenOptions::new().read(true).write(true).open(terminal);
        match opened.and_then(|file| Ok((file.try_clone()?, file.try_clone()?, file))) {
            Ok((a, b, c)) => command.stdin(Stdio::from(a)).stdout(Stdio::from(b)).stderr(Stdio::from(c)),
            Err(e) => return (format!("{terminal}: {e}"), ErrorKind::Other),
        };
    }
    if user.uid != 0 || user.gid != 0 {
        let groups: Vec<Gid> = user.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
        let changed = setgroups(&groups)
            .and_then(|()| setgid(Gid::from_raw(user.gid)))
            .and_then(|()| setuid(Uid::from_raw(user.uid)));
        if let Err(errno) = changed {
            return failed("taking the user's identity", errno);
        }
    }
    if cwd != "-" {
        if let Err(e) = std::env::set_current_dir(cwd) {
            return (format!("{}: {e}", cwd.to_string_lossy()), ErrorKind::Other);
        }
    } else if std::env::set_current_dir(&user.home).is_err() {
        let _ = std::env::set_current_dir("/");
    }
    // The job's own variables are already in the environment and win.
    for (name, value) in [("HOME", &user.home), ("USER", &user.name), ("LOGNAME", &user.name), ("SHELL", &user.shell)] {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    let error = command.args(rest).exec();
    (error.to_string(), error.kind())
}
