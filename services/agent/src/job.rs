//! A command that the host started: its process, its pipes and the input that waits for it.

use crate::accounts::User;
use guest_protocol::{JobId, Spawn, Status};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, Stdio};

/// What a write to a pipe that `poll` calls writable can always take, pipe(7).
const PIPE_BUF: usize = 4096;

/// A running command.
#[derive(Debug)]
pub struct Job {
    /// The host's name for it.
    pub id: JobId,
    /// Process, session and process group.
    pub pid: Pid,
    /// Its standard output until the end of file.
    pub stdout: Option<ChildStdout>,
    /// Its standard error until the end of file.
    pub stderr: Option<ChildStderr>,
    /// Its standard input until the host or the command closes it.
    pub stdin: Option<ChildStdin>,
    /// Bytes for its standard input.
    pub pending: VecDeque<u8>,
    /// The host has sent the last byte.
    pub stdin_ended: bool,
    /// How it ended, once it has.
    pub status: Option<Status>,
}

/// The command that executes this program as `session`.
pub fn session_command(user: &str, cwd: Option<&[u8]>, terminal: &str) -> Command {
    let program = crate::PROGRAM_PATHS.into_iter().find(|path| Path::new(path).exists()).unwrap_or("/proc/self/exe");
    let mut command = Command::new(program);
    command.arg("session").arg(user).arg(cwd.map_or(OsStr::new("-"), OsStr::from_bytes)).arg(terminal);
    command.env_clear();
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("LANG", "C.UTF-8");
    command
}

impl Job {
    /// Starts a command.
    pub fn start(spawn: &Spawn) -> Result<Job, io::Error> {
        if spawn.argv.is_empty() {
            return Err(io::Error::from_raw_os_error(Errno::EINVAL as i32));
        }
        if let Some(user) = &spawn.user
            && User::find(user).is_none()
        {
            return Err(io::Error::other(format!("no user {user} in /etc/passwd")));
        }
        let mut command = session_command(spawn.user.as_deref().unwrap_or("root"), spawn.cwd.as_deref(), "-");
        command.args(spawn.argv.iter().map(|word| OsStr::from_bytes(word)));
        command.envs(spawn.env.iter().map(|(name, value)| (os(name), os(value))));
        command.stdin(if spawn.stdin { Stdio::piped() } else { Stdio::null() });
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        for fd in [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)].into_iter().flatten() {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Job {
            id: spawn.job,
            pid: Pid::from_raw(child.id() as i32),
            stdout,
            stderr,
            stdin: child.stdin.take(),
            pending: VecDeque::new(),
            stdin_ended: false,
            status: None,
        })
    }

    /// Sends a signal to all its processes. One that has ended is not an error.
    pub fn signal(&self, number: i32) {
        if let Ok(signal) = Signal::try_from(number) {
            let _ = killpg(self.pid, signal);
        }
    }

    /// Whether standard input has something to write, or to close.
    pub fn wants_to_write(&self) -> bool {
        self.stdin.is_some() && (!self.pending.is_empty() || self.stdin_ended)
    }

    /// Writes a piece of the pending input to a pipe that is ready. Returns how much is no longer pending.
    pub fn write_pending(&mut self) -> usize {
        let Some(stdin) = &mut self.stdin else { return self.discard_pending() };
        if !self.pending.is_empty() {
            let (piece, _) = self.pending.as_slices();
            match stdin.write(&piece[..piece.len().min(PIPE_BUF)]) {
                Ok(written) => {
                    self.pending.drain(..written);
                    return written;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => return 0,
                // It closed its input: what it did not want is gone, as in a shell's pipeline.
                Err(_) => {
                    self.stdin = None;
                    return self.discard_pending();
                }
            }
        }
        if self.stdin_ended {
            self.stdin = None;
        }
        0
    }

    fn discard_pending(&mut self) -> usize {
        let count = self.pending.len();
        self.pending.clear();
        count
    }
}

fn os(bytes: &[u8]) -> OsString {
    OsStr::from_bytes(bytes).to_owned()
}

/// Reads what a non-blocking pipe holds, at most one buffer. `None` means end of file: the pipe is to be dropped.
pub fn read_piece(pipe: &mut impl Read, buffer: &mut [u8]) -> Option<usize> {
    loop {
        match pipe.read(buffer) {
            Ok(0) => return None,
            Ok(count) => return Some(count),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Some(0),
            Err(_) => return None,
        }
    }
}
