//! The agent's loop: one thread, one `poll` over the serial line and the pipes of all jobs.
//!
//! A command counts as ended when it has been waited for and what its pipes held then is sent. Processes that it left
//! behind may keep the pipes open; they do not delay the answer. SIGCHLD arrives through a pipe; while jobs run, `poll`
//! also has a time limit, so that a kernel without working signals only makes the answer late.

use crate::boot;
use crate::job::{Job, read_piece, session_command};
use guest_protocol::{Decoder, Event, STDIN_WINDOW, Status, ToGuest, ToHost, VERSION, WINDOW, encode};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::Pid;
use rustix::process::WaitOptions;
use std::fs::{File, OpenOptions};
use std::io::{PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

/// How long `poll` waits, in milliseconds, while a job runs whose end might be missed.
const SAFETY_NET_MS: u8 = 200;
/// The same while an ended job's pipe has closed but the kernel has not given its status yet.
const CLOSING_MS: u8 = 5;
/// The most that a job's pipe can hold when it ends, pipe(7).
const PIPE_CAPACITY: usize = 64 * 1024;

/// The agent's state.
pub struct Server {
    line: File,
    decoder: Decoder<ToGuest>,
    received: u64,
    reported: u64,
    jobs: Vec<Job>,
    children: Option<PipeReader>,
    login: Option<(String, Pid)>,
}

/// What a ready descriptor belongs to.
#[derive(Clone, Copy)]
enum Source {
    Line,
    Children,
    Stdout(usize),
    Stderr(usize),
    Stdin(usize),
}

impl Server {
    /// Opens the line in raw mode, and starts a login shell on the terminal named `login`.
    pub fn open(path: &str, login: Option<String>) -> Result<Server, String> {
        let no_ctty = nix::fcntl::OFlag::O_NOCTTY.bits();
        let line = OpenOptions::new().read(true).write(true).custom_flags(no_ctty).open(path);
        let line = line.map_err(|e| format!("{path}: {e}"))?;
        let mut mode = tcgetattr(&line).map_err(|e| format!("{path}: tcgetattr: {e}"))?;
        cfmakeraw(&mut mode);
        tcsetattr(&line, SetArg::TCSANOW, &mode).map_err(|e| format!("{path}: tcsetattr: {e}"))?;
        let children = std::io::pipe().ok().and_then(|(reader, writer)| {
            signal_hook::low_level::pipe::register(Signal::SIGCHLD as i32, writer).ok()?;
            Some(reader)
        });
        let mut server = Server {
            line,
            decoder: Decoder::default(),
            received: 0,
            reported: 0,
            jobs: Vec::new(),
            children,
            login: None,
        };
        if let Some(terminal) = login {
            let terminal = if terminal.is_empty() { "ttyS0".to_owned() } else { terminal };
            server.start_login(terminal);
        }
        Ok(server)
    }

    fn start_login(&mut self, terminal: String) {
        let mut command = session_command("root", None, &format!("/dev/{terminal}"));
        command.env("TERM", if terminal.starts_with("ttyS") { "xterm-256color" } else { "linux" });
        match command.args(["bash", "-l"]).spawn() {
            Ok(child) => self.login = Some((terminal, Pid::from_raw(child.id() as i32))),
            Err(e) => eprintln!("ursa-agent: no login shell on {terminal}: {e}"),
        }
    }

    /// Serves until the line closes or the host wants the machine off.
    pub fn run(mut self) -> Result<(), String> {
        self.hello(0)?;
        loop {
            let ready = self.wait()?;
            self.reap()?;
            // The line comes last (it was added first): a new host may end jobs, which would make the other places stale.
            for (source, flags) in ready.into_iter().rev() {
                match source {
                    Source::Line => self.read_line()?,
                    Source::Children => self.drain_children(),
                    Source::Stdout(at) => self.forward(at, false).map(|_| ())?,
                    Source::Stderr(at) => self.forward(at, true).map(|_| ())?,
                    Source::Stdin(at) => self.feed(at, flags)?,
                }
            }
            self.finish_jobs()?;
        }
    }

    fn hello(&mut self, nonce: u32) -> Result<(), String> {
        let kernel = nix::sys::utsname::uname().map_or_else(
            |e| format!("unknown ({e})"),
            |name| [name.sysname(), name.release(), name.version()].map(|part| part.to_string_lossy()).join(" "),
        );
        self.send(&ToHost::Hello { version: VERSION, nonce, kernel })
    }

    fn send(&mut self, message: &ToHost) -> Result<(), String> {
        self.line.write_all(&encode(message)).map_err(|e| format!("writing to the host: {e}"))
    }

    /// Waits until something can be done.
    fn wait(&self) -> Result<Vec<(Source, PollFlags)>, String> {
        let mut sources = vec![Source::Line];
        let mut fds = vec![PollFd::new(self.line.as_fd(), PollFlags::POLLIN)];
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::new(fd, flags));
        };
        if let Some(pipe) = &self.children {
            add(Source::Children, pipe.as_fd(), PollFlags::POLLIN);
        }
        let mut timeout = if self.login.is_some() { PollTimeout::from(SAFETY_NET_MS) } else { PollTimeout::NONE };
        for (at, job) in self.jobs.iter().enumerate() {
            timeout = PollTimeout::from(SAFETY_NET_MS);
            if let Some(pipe) = &job.stdout {
                add(Source::Stdout(at), pipe.as_fd(), PollFlags::POLLIN);
            }
            if let Some(pipe) = &job.stderr {
                add(Source::Stderr(at), pipe.as_fd(), PollFlags::POLLIN);
            }
            if let (Some(pipe), true) = (&job.stdin, job.wants_to_write()) {
                add(Source::Stdin(at), pipe.as_fd(), PollFlags::POLLOUT);
            }
        }
        if self.jobs.iter().any(|job| job.stdout.is_none() && job.stderr.is_none()) {
            timeout = PollTimeout::from(CLOSING_MS);
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(format!("poll: {errno}")),
        }
        let ready = sources.into_iter().zip(&fds).filter_map(|(source, fd)| {
            let flags = fd.revents()?;
            (!flags.is_empty()).then_some((source, flags))
        });
        Ok(ready.collect())
    }

    fn drain_children(&mut self) {
        if let Some(pipe) = &mut self.children {
            // One byte a signal; left-over bytes only cost another round.
            let _ = pipe.read(&mut [0; 64]);
        }
    }

    fn read_line(&mut self) -> Result<(), String> {
        let mut buffer = [0; 4096];
        match self.line.read(&mut buffer) {
            Ok(0) => return Err("the line to the host was closed".into()),
            Ok(count) => {
                self.received += count as u64;
                self.decoder.push(&buffer[..count]);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(format!("reading from the host: {e}")),
        }
        while let Some(event) = self.decoder.next_event() {
            match event {
                Event::Message(message) => self.obey(message)?,
                Event::Garbled => self.send(&ToHost::Garbled)?,
            }
        }
        if self.received - self.reported >= (WINDOW / 4) as u64 {
            self.reported = self.received;
            self.send(&ToHost::Received { total: self.received })?;
        }
        Ok(())
    }

    fn obey(&mut self, message: ToGuest) -> Result<(), String> {
        match message {
            ToGuest::Attach { version, nonce } => {
                for job in self.jobs.drain(..) {
                    job.signal(Signal::SIGKILL as i32);
                }
                (self.received, self.reported) = (0, 0);
                if version != VERSION {
                    eprintln!("ursa-agent: the host speaks version {version}, this agent {VERSION}");
                }
                self.hello(nonce)
            }
            ToGuest::Spawn(spawn) => match Job::start(&spawn) {
                Ok(job) => {
                    self.jobs.push(job);
                    Ok(())
                }
                Err(e) => {
                    let (job, errno) = (spawn.job, e.raw_os_error().unwrap_or(0));
                    self.send(&ToHost::SpawnFailed { job, errno, what: e.to_string() })
                }
            },
            ToGuest::Stdin { job, data } => self.take_stdin(job, &data),
            ToGuest::Signal { job, signal } => {
                if let Some(job) = self.jobs.iter().find(|known| known.id == job) {
                    job.signal(signal);
                }
                Ok(())
            }
            ToGuest::PowerOff => {
                boot::end();
                Ok(())
            }
        }
    }

    fn take_stdin(&mut self, id: u32, data: &[u8]) -> Result<(), String> {
        let job = self.jobs.iter_mut().find(|job| job.id == id);
        match job {
            Some(job) if job.stdin.is_some() && job.pending.len() + data.len() <= 2 * STDIN_WINDOW => {
                job.pending.extend(data);
                job.stdin_ended |= data.is_empty();
                Ok(())
            }
            // Ended, or no longer reading: the bytes count as taken, so that the host does not wait.
            _ => self.send(&ToHost::StdinTaken { job: id, bytes: data.len() as u32 }),
        }
    }

    /// Sends a piece of a job's output.
    fn forward(&mut self, at: usize, stderr: bool) -> Result<usize, String> {
        let mut buffer = [0; 8192];
        let job = &mut self.jobs[at];
        let id = job.id;
        let read = if stderr {
            job.stderr.as_mut().and_then(|pipe| read_piece(pipe, &mut buffer))
        } else {
            job.stdout.as_mut().and_then(|pipe| read_piece(pipe, &mut buffer))
        };
        let Some(count) = read else {
            if stderr {
                job.stderr = None;
            } else {
                job.stdout = None;
            }
            return Ok(0);
        };
        if count > 0 {
            let data = buffer[..count].to_vec();
            self.send(&if stderr { ToHost::Stderr { job: id, data } } else { ToHost::Stdout { job: id, data } })?;
        }
        Ok(count)
    }

    fn feed(&mut self, at: usize, flags: PollFlags) -> Result<(), String> {
        let job = &mut self.jobs[at];
        if flags.contains(PollFlags::POLLERR) && !flags.contains(PollFlags::POLLOUT) {
            job.stdin = None;
        }
        let taken = job.write_pending();
        let id = job.id;
        if taken > 0 { self.send(&ToHost::StdinTaken { job: id, bytes: taken as u32 }) } else { Ok(()) }
    }

    /// Waits for ended children: jobs, the login shell and, as PID 1, orphans. With rustix's call, since nix's loses a child
    /// that a real-time signal ended.
    fn reap(&mut self) -> Result<(), String> {
        loop {
            let (pid, ended) = match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, ended))) => (Pid::from_raw(pid.as_raw_nonzero().get()), ended),
                Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(()),
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(format!("wait4: {errno}")),
            };
            let status = match (ended.exit_status(), ended.terminating_signal()) {
                (Some(code), _) => Status::Exited(code),
                (None, Some(signal)) => Status::Signaled(signal),
                // A stop, which a job that made us its tracer reports unasked.
                (None, None) => continue,
            };
            if let Some(job) = self.jobs.iter_mut().find(|job| job.pid == pid) {
                job.status = Some(status);
            } else if self.login.as_ref().is_some_and(|&(_, shell)| shell == pid) {
                // The end of the login shell is the end of the machine: the user has left.
                boot::end();
                self.login = None;
            }
        }
    }

    /// Sends the rest of ended jobs' output, and their status.
    fn finish_jobs(&mut self) -> Result<(), String> {
        while let Some(at) = self.jobs.iter().position(|job| job.status.is_some()) {
            for stderr in [false, true] {
                let mut rest = PIPE_CAPACITY;
                while rest > 0 {
                    match self.forward(at, stderr)? {
                        0 => break,
                        count => rest = rest.saturating_sub(count),
                    }
                }
            }
            let job = self.jobs.swap_remove(at);
            if let Some(status) = job.status {
                self.send(&ToHost::Exit { job: job.id, status })?;
            }
        }
        Ok(())
    }
}
