//! A running machine, its console and its end.
//!
//! QEMU connects to two sockets of ours as a client, so that not a byte is lost before we listen. One thread reads each;
//! what they find becomes an [`Event`] on a channel, so that whoever drives the machine waits in one place.

use super::{Boot, Gpu, Options, accel::Accel, screens};
use crate::{hosttools, shell};
use anyhow::{Context, Result, bail};
use guest_protocol::{Decoder, Event as Decoded, ToHost};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long the console is read on after a panic message, for its backtrace.
const AFTER_PANIC: Duration = Duration::from_millis(1500);

/// What a machine does.
#[derive(Debug)]
pub enum Event {
    /// The agent says something.
    Agent(ToHost),
    /// Bytes from the agent's line did not form a frame.
    AgentGarbled,
    /// A line appeared on the console.
    Console(String),
    /// The kernel has panicked; the console was read to its end.
    Panic(String),
    /// QEMU has ended (or at least closed the console).
    Ended,
    /// Bytes from this process's standard input; none at its end.
    Input(Vec<u8>),
}

/// A running machine. QEMU is killed when it is dropped.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    agent: UnixStream,
    events: Receiver<Event>,
    sender: Sender<Event>,
    console: Arc<Mutex<Vec<u8>>>,
    errors: PathBuf,
}

impl Machine {
    /// Starts QEMU. Sockets and logs go into `folder`; `echo` also prints the console on standard error.
    pub fn start(options: &Options, boot: &Boot, gpu: Gpu, folder: &Path, echo: bool) -> Result<Machine> {
        hosttools::ensure(hosttools::QEMU)?;
        let accel = Accel::choose(boot.kind())?;
        let (console_path, agent_path) = (folder.join("console.sock"), folder.join("agent.sock"));
        let console_listener = UnixListener::bind(&console_path)?;
        let agent_listener = UnixListener::bind(&agent_path)?;
        let qemu = super::command(options, boot, gpu, accel);
        // QEMU must not outlive us, however we end.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(qemu.get_program()).args(qemu.get_args());
        for (name, path) in [("console", &console_path), ("agent", &agent_path)] {
            command.arg("-chardev").arg(format!("socket,id={name},path={}", path.display()));
            command.arg("-serial").arg(format!("chardev:{name}"));
        }
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", folder.join("qmp.sock").display()));
        command.args(screens::arguments(options, gpu, folder));
        let errors = folder.join("qemu.log");
        command.stdin(Stdio::null()).stdout(File::create(&errors)?).stderr(File::options().append(true).open(&errors)?);
        if std::env::var_os("URSA_SHOW_QEMU").is_some() {
            eprintln!("{}", shell::describe(&command));
        }
        let mut child = command.spawn().context("cannot start QEMU")?;
        let console_stream = accept(&console_listener, &mut child, &errors)?;
        let agent = accept(&agent_listener, &mut child, &errors)?;
        let (sender, events) = channel();
        let console = Arc::new(Mutex::new(Vec::new()));
        let (log, events_of_console) = (Arc::clone(&console), sender.clone());
        let marker = boot.kind().panic_marker();
        std::thread::spawn(move || read_console(console_stream, &log, &events_of_console, marker, echo));
        let (stream, events_of_agent) = (agent.try_clone()?, sender.clone());
        std::thread::spawn(move || read_agent(stream, &events_of_agent));
        Ok(Machine { child, agent, events, sender, console, errors })
    }

    /// Waits for the next event; `None` when the time is over.
    pub fn next_event(&self, timeout: Duration) -> Option<Event> {
        match self.events.recv_timeout(timeout) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Event::Ended),
        }
    }

    /// For other sources of events.
    pub fn sender(&self) -> Sender<Event> {
        self.sender.clone()
    }

    /// The line to the agent.
    pub fn agent(&self) -> &UnixStream {
        &self.agent
    }

    /// QEMU's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All the console has printed.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&self.console.lock().unwrap_or_else(|e| e.into_inner())).into_owned()
    }

    /// What QEMU itself has printed.
    pub fn qemu_messages(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// User and system time that QEMU has used, proc_pid_stat(5).
    pub fn cpu_seconds(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let after_name = text.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<f64> = after_name.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect();
        let (Some(user), Some(system)) = (fields.get(11), fields.get(12)) else { bail!("/proc/PID/stat is cut off") };
        // USER_HZ is 100 on all that QEMU runs on here.
        Ok((user + system) / 100.0)
    }

    /// Waits for QEMU's end, and kills it when the time is over.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        let start = Instant::now();
        while start.elapsed() < timeout {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.stop();
        Ok(None)
    }

    /// Pulls the plug.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits for QEMU to connect, or to fail.
fn accept(listener: &UnixListener, child: &mut Child, errors: &Path) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e.into()),
        }
        if let Some(status) = child.try_wait()? {
            bail!("QEMU ended at once ({status}): {}", std::fs::read_to_string(errors).unwrap_or_default().trim());
        }
        if start.elapsed() > Duration::from_secs(60) {
            let _ = child.kill();
            bail!("QEMU does not open its serial lines");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read_console(mut stream: UnixStream, log: &Mutex<Vec<u8>>, events: &Sender<Event>, marker: &str, echo: bool) {
    let mut buffer = [0; 4096];
    let mut line: Vec<u8> = Vec::new();
    let mut panicked: Option<(String, Instant)> = None;
    loop {
        if let Some((_, since)) = &panicked {
            let rest = AFTER_PANIC.saturating_sub(since.elapsed()).max(Duration::from_millis(1));
            let _ = stream.set_read_timeout(Some(rest));
        }
        let count = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(_) => break,
        };
        let bytes = &buffer[..count];
        log.lock().unwrap_or_else(|e| e.into_inner()).extend_from_slice(bytes);
        if echo {
            let _ = std::io::stderr().write_all(bytes);
        }
        for &byte in bytes {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            let text = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            line.clear();
            if panicked.is_none() && text.contains(marker) {
                panicked = Some((text.clone(), Instant::now()));
            }
            let _ = events.send(Event::Console(text));
        }
        if panicked.as_ref().is_some_and(|(_, since)| since.elapsed() > AFTER_PANIC) {
            break;
        }
    }
    if !line.is_empty() {
        let text = String::from_utf8_lossy(&line).into_owned();
        if panicked.is_none() && text.contains(marker) {
            panicked = Some((text.clone(), Instant::now()));
        }
        let _ = events.send(Event::Console(text));
    }
    let _ = events.send(match panicked {
        Some((text, _)) => Event::Panic(text),
        None => Event::Ended,
    });
}

fn read_agent(mut stream: UnixStream, events: &Sender<Event>) {
    let mut decoder = Decoder::<ToHost>::default();
    let mut buffer = [0; 16384];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        decoder.push(&buffer[..count]);
        while let Some(event) = decoder.next_event() {
            let event = match event {
                Decoded::Message(message) => Event::Agent(message),
                Decoded::Garbled => Event::AgentGarbled,
            };
            if events.send(event).is_err() {
                return;
            }
        }
    }
}
