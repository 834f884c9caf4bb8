//! The host's end of the line to the agent: sends within the window, runs one command at a time.

use guest_protocol::{STDIN_WINDOW, Spawn, Status, ToGuest, ToHost, WINDOW, encode};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use super::Event;

/// How much of standard input is read at once. So many pieces fit the agent's window.
const PIECE: usize = 1024;

/// Which of a command's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a command ended, or why it could not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ended by itself.
    Ended(Status),
    /// The agent could not start it.
    NotStarted(String),
    /// The time was over. The machine may still be of use if the command could be killed.
    TimedOut {
        /// Whether the command was killed.
        killed: bool,
    },
    /// The kernel panicked.
    Panicked(String),
    /// The machine ended before the command.
    MachineEnded,
    /// Bytes were lost or changed on the line.
    LineBroken,
}

/// Where events come from: a machine that this process started, or a socket of one that runs on its own.
pub trait EventSource {
    /// Waits for the next event; `None` when the time is over.
    fn next_event(&self, timeout: Duration) -> Option<Event>;
    /// For other sources of events.
    fn sender(&self) -> Sender<Event>;
}

impl EventSource for super::Machine {
    fn next_event(&self, timeout: Duration) -> Option<Event> {
        super::Machine::next_event(self, timeout)
    }

    fn sender(&self) -> Sender<Event> {
        super::Machine::sender(self)
    }
}

/// The line.
#[derive(Debug)]
pub struct Link<W> {
    line: W,
    queue: VecDeque<u8>,
    sent: u64,
    received: u64,
    next_job: u32,
}

/// A command for [`Link::run`].
pub struct Request<'a> {
    /// Program and arguments.
    pub argv: Vec<Vec<u8>>,
    /// Variables.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Who runs it.
    pub user: Option<String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Standard input.
    pub stdin: Option<Box<dyn Read + Send>>,
    /// How long it may take.
    pub timeout: Duration,
    /// Takes its output.
    pub output: &'a mut dyn FnMut(Output, &[u8]),
}

impl<'a> Request<'a> {
    /// A script for bash, run by root in `/tmp` with nothing to read.
    pub fn script(script: &str, timeout: Duration, output: &'a mut dyn FnMut(Output, &[u8])) -> Self {
        let argv = ["bash", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec();
        Request { argv, env: Vec::new(), user: None, cwd: Some("/tmp".into()), stdin: None, timeout, output }
    }
}

impl<W: Write> Link<W> {
    /// A line to an agent that has just said hello.
    pub fn new(line: W) -> Self {
        Link { line, queue: VecDeque::new(), sent: 0, received: 0, next_job: 1 }
    }

    /// Queues a message and sends what the window allows.
    pub fn send(&mut self, message: &ToGuest) -> io::Result<()> {
        self.queue.extend(encode(message));
        self.pump()
    }

    fn pump(&mut self) -> io::Result<()> {
        let room = (WINDOW as u64).saturating_sub(self.sent - self.received) as usize;
        let count = room.min(self.queue.len());
        if count > 0 {
            let piece: Vec<u8> = self.queue.drain(..count).collect();
            self.line.write_all(&piece)?;
            self.sent += count as u64;
        }
        Ok(())
    }

    /// Runs a command to its end.
    pub fn run(&mut self, events: &impl EventSource, request: Request) -> io::Result<Outcome> {
        let job = self.next_job;
        self.next_job += 1;
        let spawn = Spawn {
            job,
            argv: request.argv,
            env: request.env,
            cwd: request.cwd.map(String::into_bytes),
            user: request.user,
            stdin: request.stdin.is_some(),
        };
        self.send(&ToGuest::Spawn(spawn))?;
        let permits = request.stdin.map(|stdin| read_input(stdin, events.sender()));
        let mut deadline = Instant::now() + request.timeout;
        let mut killing = false;
        let mut consumed = 0;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                if killing {
                    return Ok(Outcome::TimedOut { killed: false });
                }
                killing = true;
                deadline = Instant::now() + Duration::from_secs(5);
                self.send(&ToGuest::Signal { job, signal: 9 })?;
                continue;
            }
            let Some(event) = events.next_event(rest) else { continue };
            match event {
                Event::Agent(ToHost::Received { total }) => {
                    self.received = total;
                    self.pump()?;
                }
                Event::Agent(ToHost::Stdout { job: of, data }) if of == job => (request.output)(Output::Stdout, &data),
                Event::Agent(ToHost::Stderr { job: of, data }) if of == job => (request.output)(Output::Stderr, &data),
                Event::Agent(ToHost::Exit { job: of, status }) if of == job => {
                    return Ok(if killing { Outcome::TimedOut { killed: true } } else { Outcome::Ended(status) });
                }
                Event::Agent(ToHost::SpawnFailed { job: of, what, .. }) if of == job => {
                    return Ok(Outcome::NotStarted(what));
                }
                Event::Agent(ToHost::StdinTaken { job: of, bytes }) if of == job => {
                    consumed += bytes as usize;
                    while consumed >= PIECE {
                        consumed -= PIECE;
                        let _ = permits.as_ref().map(|permits| permits.send(()));
                    }
                }
                Event::Agent(ToHost::Garbled) | Event::AgentGarbled => return Ok(Outcome::LineBroken),
                // Left over from an earlier command.
                Event::Agent(_) | Event::Console(_) => {}
                Event::Input(data) => {
                    // A short piece gives back at once what it did not use of its permit.
                    if !data.is_empty() {
                        consumed += PIECE - data.len();
                    }
                    self.send(&ToGuest::Stdin { job, data })?;
                }
                Event::Panic(text) => return Ok(Outcome::Panicked(text)),
                Event::Ended => return Ok(Outcome::MachineEnded),
            }
        }
    }
}

/// Reads input in pieces on a thread of its own, one for each permit, and sends them as events.
fn read_input(mut input: Box<dyn Read + Send>, events: Sender<Event>) -> Sender<()> {
    let (permits, allowed) = channel();
    for _ in 0..STDIN_WINDOW / PIECE {
        let _ = permits.send(());
    }
    std::thread::spawn(move || {
        for () in allowed {
            let mut buffer = [0; PIECE];
            let count = loop {
                match input.read(&mut buffer) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    other => break other.unwrap_or(0),
                }
            };
            if events.send(Event::Input(buffer[..count].to_vec())).is_err() || count == 0 {
                return;
            }
        }
    });
    permits
}
