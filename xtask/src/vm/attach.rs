//! The line to the agent of a machine that runs already: other commands have used it before.

use crate::machine::Event;
use crate::machine::link::{EventSource, Link};
use anyhow::{Context, Result, bail};
use guest_protocol::{Decoder, Event as Decoded, ToGuest, ToHost, VERSION, WINDOW, encode};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// How long one attempt waits for the agent's answer.
const ATTEMPT: Duration = Duration::from_secs(2);

/// A line whose agent has answered.
#[derive(Debug)]
pub struct Attached {
    stream: UnixStream,
    events: Receiver<Event>,
    sender: Sender<Event>,
}

impl Attached {
    /// Connects, and calls until the agent answers. `alive` may end the waiting.
    pub fn open(path: &Path, patience: Duration, mut alive: impl FnMut() -> Result<()>) -> Result<Attached> {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(e) if start.elapsed() > Duration::from_secs(10) => {
                    return Err(e).with_context(|| format!("cannot connect to {}", path.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
            alive()?;
        };
        let (sender, events) = channel();
        let (mut reader, events_of_line) = (stream.try_clone()?, sender.clone());
        std::thread::spawn(move || {
            let mut decoder = Decoder::<ToHost>::default();
            let mut buffer = [0; 16384];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                decoder.push(&buffer[..count]);
                while let Some(event) = decoder.next_event() {
                    let event = match event {
                        Decoded::Message(message) => Event::Agent(message),
                        Decoded::Garbled => Event::AgentGarbled,
                    };
                    if events_of_line.send(event).is_err() {
                        return;
                    }
                }
            }
            let _ = events_of_line.send(Event::Ended);
        });
        let attached = Attached { stream, events, sender };
        attached.call(start, patience, alive)?;
        Ok(attached)
    }

    /// Only the answer to the last call counts: an earlier one may still wait in a buffer, and would end our command.
    fn call(&self, start: Instant, patience: Duration, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        let first = std::process::id() | 1;
        for nonce in (first..).step_by(2) {
            if start.elapsed() > patience {
                bail!("the guest does not answer after {} seconds", patience.as_secs());
            }
            // An earlier command may have ended in the middle of a frame: zeros complete it.
            let mut call = vec![0; WINDOW / 2];
            call.extend(encode(&ToGuest::Attach { version: VERSION, nonce }));
            (&self.stream).write_all(&call)?;
            let attempt = Instant::now();
            while let Some(rest) = ATTEMPT.checked_sub(attempt.elapsed()) {
                match self.events.recv_timeout(rest) {
                    Ok(Event::Agent(ToHost::Hello { version, nonce: heard, .. })) if heard == nonce => {
                        if version != VERSION {
                            bail!("the agent in the guest speaks version {version}, this program {VERSION}");
                        }
                        return Ok(());
                    }
                    Ok(Event::Ended) => bail!("the machine ended"),
                    _ => {}
                }
            }
            alive()?;
        }
        Ok(())
    }

    /// For commands.
    pub fn link(&self) -> Link<&UnixStream> {
        Link::new(&self.stream)
    }
}

impl EventSource for Attached {
    fn next_event(&self, timeout: Duration) -> Option<Event> {
        self.events.recv_timeout(timeout).ok()
    }

    fn sender(&self) -> Sender<Event> {
        self.sender.clone()
    }
}
