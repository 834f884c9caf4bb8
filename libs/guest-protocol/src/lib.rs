//! What `cargo xtask` and the agent inside a guest say to each other over a serial line.
//!
//! A serial line is a byte stream without message borders, without flow control and possibly with noise before both ends
//! have put it into raw mode. So every message travels in a frame
//!
//! ```text
//! magic (4)  length of the payload (4, little endian)  CRC-32 of length and payload (4)  payload (postcard)
//! ```
//!
//! and [`Decoder`] skips whatever is not one. The host keeps at most [`WINDOW`] bytes on the line that the agent has not
//! reported as [`ToHost::Received`], because a tty drops what its buffer cannot hold. The other direction needs no window:
//! the host always reads, and a write to a tty blocks.
//!
//! Key types: [`ToGuest`], [`ToHost`], [`Decoder`], [`encode`].
#![deny(unsafe_code)]

use serde::{Deserialize, Serialize, de::DeserializeOwned};

mod decode;
pub use decode::{Decoder, Event};

/// The version both ends must speak; raised on every incompatible change.
pub const VERSION: u32 = 1;

/// Starts every frame. Not valid UTF-8, so no console text holds it.
pub const MAGIC: [u8; 4] = [0xf5, b'u', b'r', 0xfa];

/// The largest payload of a frame.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// Frame bytes before the payload.
pub const HEADER: usize = 12;

/// Bytes that the host may have under way to the guest. Half of what the line discipline of Linux's ttys buffers.
pub const WINDOW: usize = 2048;

/// Standard input of a job that may be under way or buffered in the agent.
pub const STDIN_WINDOW: usize = 32 * 1024;

/// Names a command that the host started. The host chooses it.
pub type JobId = u32;

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// How later messages name it.
    pub job: JobId,
    /// Program (looked up in `PATH`) and arguments, as bytes: Linux arguments need not be UTF-8.
    pub argv: Vec<Vec<u8>>,
    /// Variables beyond the agent's default environment.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Working directory; the user's home without one.
    pub cwd: Option<Vec<u8>>,
    /// A name from the guest's `/etc/passwd`; root without one.
    pub user: Option<String>,
    /// Whether standard input is a pipe that [`ToGuest::Stdin`] fills. `/dev/null` otherwise.
    pub stdin: bool,
}

/// From the host to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest {
    /// A host is there now: kill what an earlier one left, answer [`ToHost::Hello`].
    Attach {
        /// The host's [`VERSION`].
        version: u32,
        /// Comes back in the answer, so that the host knows which of several attempts was heard.
        nonce: u32,
    },
    /// Run a command.
    Spawn(Spawn),
    /// Bytes for the standard input of a job; none closes it.
    Stdin {
        /// Which job.
        job: JobId,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Send a signal to the job's process group.
    Signal {
        /// Which job.
        job: JobId,
        /// Signal number.
        signal: i32,
    },
    /// Sync and power off.
    PowerOff,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// It called `exit`.
    Exited(i32),
    /// A signal ended it.
    Signaled(i32),
}

impl Status {
    /// The status as a shell reports it: 128 and the signal's number for a signal.
    pub fn shell_code(self) -> i32 {
        match self {
            Status::Exited(code) => code & 0xff,
            Status::Signaled(signal) => 128 + signal,
        }
    }
}

/// From the guest to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost {
    /// The agent runs: sent at its start, and as the answer to [`ToGuest::Attach`].
    Hello {
        /// The agent's [`VERSION`].
        version: u32,
        /// That of the [`ToGuest::Attach`] that this answers; 0 at the agent's start.
        nonce: u32,
        /// `uname`: system, release and version.
        kernel: String,
    },
    /// How many bytes the agent has read since its start or since the last [`ToGuest::Attach`].
    Received {
        /// The count.
        total: u64,
    },
    /// A job could not be started.
    SpawnFailed {
        /// Which job.
        job: JobId,
        /// `errno` of the step that failed.
        errno: i32,
        /// What failed.
        what: String,
    },
    /// Standard output.
    Stdout {
        /// Which job.
        job: JobId,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Standard error.
    Stderr {
        /// Which job.
        job: JobId,
        /// The bytes.
        data: Vec<u8>,
    },
    /// So many bytes of standard input have been written to the job (or thrown away, once it no longer reads).
    StdinTaken {
        /// Which job.
        job: JobId,
        /// The count.
        bytes: u32,
    },
    /// The job has ended and all its output has been sent.
    Exit {
        /// Which job.
        job: JobId,
        /// How.
        status: Status,
    },
    /// A frame arrived damaged. The host ends with an error: bytes were lost.
    Garbled,
}

/// Puts a message into a frame.
///
/// # Panics
/// If the payload is larger than [`MAX_PAYLOAD`]: senders cut their data.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let payload = postcard::to_stdvec(message).expect("messages hold nothing that postcard cannot write");
    assert!(payload.len() <= MAX_PAYLOAD, "a message of {} bytes does not fit a frame", payload.len());
    let length = (payload.len() as u32).to_le_bytes();
    let mut crc = crc32fast::Hasher::new();
    crc.update(&length);
    crc.update(&payload);
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&length);
    frame.extend_from_slice(&crc.finalize().to_le_bytes());
    frame.extend_from_slice(&payload);
    frame
}

/// Reads a payload.
pub(crate) fn parse<T: DeserializeOwned>(payload: &[u8]) -> Option<T> {
    postcard::from_bytes(payload).ok()
}
