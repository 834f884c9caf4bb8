//! The loop: a request in, an answer out, in as many threads as there are.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ext4::{Errno, Fs};
use fuse_abi::{Opcode, OutHeader, Request, UNIQUE_RESEND};
use parking_lot::Mutex;
use zerocopy::{FromBytes, IntoBytes};

use crate::requests::{Kernel, Phase, Requests};

/// The most bytes of a write or read.
pub const MAX_DATA: usize = 1 << 20;
/// Room for a request: data, header, arguments, names.
const REQUEST_MAX: usize = MAX_DATA + 4096 * 2;
const HEADER: usize = size_of::<OutHeader>();

/// A connection and what it serves.
pub struct Server {
    pub(crate) fs: Arc<Fs>,
    kernel: Arc<dyn Kernel>,
    pub(crate) requests: Arc<Requests>,
    pub(crate) write_back: bool,
    /// What each thread works on since when; none while it waits for a request.
    busy: Mutex<HashMap<ThreadId, Instant>>,
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The file system was unmounted.
    Unmounted,
    /// A test wants the process to end ([`ExitAt`](crate::requests::ExitAt)).
    Killed,
}

/// Ends the time for which a thread is busy.
struct Busy<'a>(&'a Server);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.lock().remove(&std::thread::current().id());
    }
}

/// An answer that is being made: room for its header, then its body.
pub struct Answer {
    buf: Box<[u8]>,
    len: usize,
}

impl Answer {
    fn new() -> Answer {
        Answer { buf: vec![0; HEADER + MAX_DATA + 4096].into(), len: HEADER }
    }

    /// Adds a structure or bytes to the body.
    pub fn put(&mut self, part: &(impl IntoBytes + zerocopy::Immutable + ?Sized)) {
        let bytes = part.as_bytes();
        self.buf[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Room for so many bytes more; how many of them count is what `fill` says.
    pub fn fill(&mut self, want: usize, fill: impl FnOnce(&mut [u8]) -> ext4::Result<usize>) -> ext4::Result<()> {
        let room = want.min(self.buf.len() - self.len);
        let got = fill(&mut self.buf[self.len..self.len + room])?;
        self.len += got.min(room);
        Ok(())
    }

    /// Takes the body back.
    pub fn clear(&mut self) {
        self.len = HEADER;
    }

    /// Bytes in the body.
    pub fn body_len(&self) -> usize {
        self.len - HEADER
    }
}

impl Server {
    /// Serves `fs` on a connection.
    pub fn new(fs: Arc<Fs>, kernel: Arc<dyn Kernel>, requests: Arc<Requests>, write_back: bool) -> Server {
        Server { fs, kernel, requests, write_back, busy: Mutex::default() }
    }

    /// How long the oldest request has been worked on.
    pub fn longest(&self) -> Duration {
        self.busy.lock().values().map(Instant::elapsed).max().unwrap_or_default()
    }

    /// Answers requests until the file system is unmounted.
    ///
    /// # Errors
    /// The connection fails in a way that nobody expects.
    pub fn serve(&self) -> Result<End> {
        let mut buf = vec![0; REQUEST_MAX];
        let mut answer = Answer::new();
        loop {
            let turn = self.requests.reading();
            let len = match self.kernel.receive(&mut buf) {
                Ok(len) => len,
                // A request that was taken back, or a signal.
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => continue,
                Err(Errno::NODEV) => return Ok(End::Unmounted),
                Err(error) => return Err(error).context("reading a request"),
            };
            let Ok(request) = Request::parse(&buf[..len]) else { continue };
            let unique = request.header.unique & !UNIQUE_RESEND;
            let changes = request.opcode().is_some_and(Opcode::changes_files);
            if changes {
                self.requests.begin(unique);
            }
            drop(turn);
            self.busy.lock().insert(std::thread::current().id(), Instant::now());
            let busy = Busy(self);
            if changes && request.header.unique & UNIQUE_RESEND == 0 {
                self.requests.wait_turn(unique);
            }
            match self.answer_one(&request, unique, changes, &mut answer) {
                Ok(None) => {}
                Ok(Some(end)) => return Ok(end),
                Err(error) => eprintln!("ext4d: answering request {}: {error}", request.header.opcode),
            }
            drop(busy);
        }
    }

    fn answer_one(
        &self,
        request: &Request<'_>,
        unique: u64,
        changes: bool,
        answer: &mut Answer,
    ) -> rustix::io::Result<Option<End>> {
        let count = self.requests.count();
        let killed = |phase| self.requests.reached(count, phase).then_some(End::Killed);
        if let Some(end) = killed(Phase::Received) {
            return Ok(Some(end));
        }
        answer.len = HEADER;
        let result = match changes {
            true => self.requests.work(unique, || self.dispatch(request, answer)),
            false => self.dispatch(request, answer),
        };
        if changes && let Ok(made) = result {
            self.requests.end(unique, made);
        }
        if let Some(end) = killed(Phase::Done) {
            return Ok(Some(end));
        }
        if request.opcode().is_some_and(Opcode::has_no_reply) {
            return Ok(None);
        }
        if let Some(end) = killed(Phase::BeforeReply) {
            return Ok(Some(end));
        }
        let errno = match &result {
            Ok(_) => 0,
            Err(error) => {
                if !error.is_callers() {
                    eprintln!("ext4d: {error}");
                }
                answer.len = HEADER;
                -error.errno().raw_os_error()
            }
        };
        let header = OutHeader { len: answer.len as u32, error: errno, unique: request.header.unique };
        answer.buf[..HEADER].copy_from_slice(header.as_bytes());
        let sent = self.kernel.answer(&answer.buf[..answer.len]);
        if changes {
            self.requests.answered(unique);
        }
        match sent {
            Ok(()) => {}
            // The caller was killed meanwhile: what was looked up for it is in nobody's hands.
            Err(Errno::NOENT) if result.is_ok() && request.opcode().is_some_and(Opcode::answers_entry) => {
                if let Ok((node, _)) = u64::read_from_prefix(&answer.buf[HEADER..answer.len]) {
                    let _ = self.forget(node, 1);
                }
            }
            Err(Errno::NOENT) => {}
            Err(Errno::NODEV) => return Ok(Some(End::Unmounted)),
            Err(error) => return Err(error),
        }
        Ok(killed(Phase::AfterReply))
    }
}
