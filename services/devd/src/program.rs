//! Programs that rules run: with the event's properties as their whole environment, within the event's time limit.
//!
//! A program runs in a process group of its own, so that a limit that is over ends what it started too. It counts as ended when
//! its process ends, even if a child of it keeps its standard output open.

use std::{
    io::{self, Read},
    os::{fd::AsFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

use crate::{event::Event, text};

/// As much of a program's output is kept; the rest is read and thrown away.
const OUTPUT_LIMIT: usize = 64 << 10;

/// Where programs without a path are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The folder.
    pub folder: PathBuf,
}

impl Default for Programs {
    fn default() -> Programs {
        Programs { folder: "/usr/lib/udev".into() }
    }
}

/// How a program ended.
#[derive(Debug)]
pub struct Outcome {
    /// Whether with status 0.
    pub success: bool,
    /// What it printed.
    pub output: Vec<u8>,
}

/// Runs a command line of a rule.
///
/// # Errors
/// It cannot be started, or its time is over (`TimedOut`).
pub fn run(command: &str, event: &Event, programs: &Programs) -> io::Result<Outcome> {
    let words = text::words(command);
    let (name, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let path = if name.starts_with('/') { PathBuf::from(name) } else { programs.folder.join(name) };
    let mut child = Command::new(path)
        .args(arguments)
        .env_clear()
        .envs(event.extra_env.iter().map(|(key, value)| (key.as_str(), value.as_str())))
        .envs(event.environment().map(|(key, value)| (key.into_owned(), value.into_owned())))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let result = watch(&mut child, event.deadline);
    if result.is_err() {
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        let _ = child.wait();
    }
    result
}

fn watch(child: &mut Child, deadline: Instant) -> io::Result<Outcome> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let mut pipe = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    rustix::fs::fcntl_setfl(&pipe, rustix::fs::OFlags::NONBLOCK)?;
    let mut output = Vec::new();
    let mut open = true;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = vec![PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
        if open {
            fds.push(PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, Some(&left)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let ended = !fds[0].revents().is_empty();
        if open {
            open = drain(&mut pipe, &mut output)?;
        }
        if ended {
            let status = child.wait()?;
            return Ok(Outcome { success: status.success(), output });
        }
    }
}

/// Reads what is there; false at the end.
fn drain(pipe: &mut impl Read, output: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => {
                let room = OUTPUT_LIMIT.saturating_sub(output.len());
                output.extend_from_slice(&buffer[..length.min(room)]);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::device::{Paths, Properties};

    fn event() -> Event {
        let properties: Properties = [("ACTION", "add"), ("DEVPATH", "/devices/x"), ("SUBSYSTEM", "s"), ("A", "b c")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        Event::new(&Arc::new(Paths::default()), properties).unwrap()
    }

    fn run(command: &str, event: &Event) -> io::Result<Outcome> {
        super::run(command, event, &Programs::default())
    }

    #[test]
    fn output_status_and_environment_are_seen() {
        let event = event();
        let outcome = run("/bin/sh -c 'echo \"$A-$HOME-$1\"' x 'two words'", &event).unwrap();
        assert!(outcome.success);
        assert_eq!(outcome.output, b"b c--two words\n");
        assert!(!run("/bin/sh -c 'exit 3'", &event).unwrap().success);
        assert!(run("does-not-exist", &event).is_err());
        assert!(run("", &event).is_err());
    }

    #[test]
    fn a_long_output_is_cut() {
        let outcome = run("/bin/sh -c 'yes | head -c 300000'", &event()).unwrap();
        assert!(outcome.success);
        assert_eq!(outcome.output.len(), OUTPUT_LIMIT);
    }

    #[test]
    fn a_child_that_keeps_the_output_open_is_not_waited_for() {
        let start = Instant::now();
        assert_eq!(run("/bin/sh -c 'sleep 20 & echo done'", &event()).unwrap().output, b"done\n");
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn the_time_limit_ends_it() {
        let mut event = event();
        event.deadline = Instant::now() + Duration::from_millis(200);
        let start = Instant::now();
        assert_eq!(run("/bin/sh -c 'sleep 20; echo x'", &event).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
