//! The loop: a request in, an answer out, in as many threads as there are.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use ext4::{Errno, Fs};
use fuse_abi::{Opcode, OutHeader, Request, UNIQUE_RESEND};
use zerocopy::IntoBytes;

use crate::requests::{Phase, Requests};

/// The most bytes of a write or read.
pub const MAX_DATA: usize = 1 << 20;
/// Room for a request: data, header, arguments, names.
const REQUEST_MAX: usize = MAX_DATA + 4096 * 2;
const HEADER: usize = size_of::<OutHeader>();

/// A connection and what it serves.
pub struct Server {
    pub(crate) fs: Arc<Fs>,
    fuse: OwnedFd,
    pub(crate) requests: Arc<Requests>,
    pub(crate) write_back: bool,
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

    /// Bytes in the body.
    pub fn body_len(&self) -> usize {
        self.len - HEADER
    }
}

impl Server {
    /// Serves `fs` on a connection.
    pub fn new(fs: Arc<Fs>, fuse: OwnedFd, requests: Arc<Requests>, write_back: bool) -> Server {
        Server { fs, fuse, requests, write_back }
    }

    /// Answers requests until the file system is unmounted.
    ///
    /// # Errors
    /// The connection fails in a way that nobody expects.
    pub fn serve(&self) -> Result<()> {
        let mut buf = vec![0; REQUEST_MAX];
        let mut answer = Answer::new();
        loop {
            let turn = self.requests.reading();
            let len = match rustix::io::read(&self.fuse, &mut buf[..]) {
                Ok(len) => len,
                // A request that was taken back, or a signal.
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => continue,
                Err(Errno::NODEV) => return Ok(()),
                Err(error) => return Err(error).context("reading a request"),
            };
            let Ok(request) = Request::parse(&buf[..len]) else { continue };
            let unique = request.header.unique & !UNIQUE_RESEND;
            let changes = request.opcode().is_some_and(changes_something);
            if changes {
                self.requests.begin(unique);
            }
            drop(turn);
            let count = self.requests.count();
            self.requests.reached(count, Phase::Received);

            answer.len = HEADER;
            let done_before = (changes && request.header.unique & UNIQUE_RESEND != 0)
                .then(|| self.requests.done_before(unique))
                .flatten();
            let result = self.dispatch(&request, &mut answer, done_before);
            if changes {
                self.requests.end(unique, *result.as_ref().unwrap_or(&0));
            }
            self.requests.reached(count, Phase::Done);
            if request.opcode().is_some_and(Opcode::has_no_reply) {
                continue;
            }
            self.requests.reached(count, Phase::BeforeReply);
            let errno = match result {
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
            match rustix::io::write(&self.fuse, &answer.buf[..answer.len]) {
                // The caller was killed meanwhile.
                Ok(_) | Err(Errno::NOENT) => {}
                Err(Errno::NODEV) => return Ok(()),
                Err(error) => eprintln!("ext4d: answering request {}: {error}", request.header.opcode),
            }
            self.requests.reached(count, Phase::AfterReply);
        }
    }
}

/// Whether a request may change what is on the disk.
fn changes_something(opcode: Opcode) -> bool {
    use Opcode::*;
    matches!(
        opcode,
        Setattr
            | Symlink
            | Mknod
            | Mkdir
            | Unlink
            | Rmdir
            | Rename
            | Rename2
            | Link
            | Write
            | Setxattr
            | Removexattr
            | Create
            | Tmpfile
            | Fallocate
    )
}
