//! Requests: what a client asks of a server, from its submission to its answer.
//!
//! A [`Message`] is a request in the making: opcode, node and body. [`Connection::call`](super::Connection::call) turns it
//! into a [`Request`], which client and server threads share. Its way is `Pending` (in the queue) → `Sent` (a server
//! thread has read it) → `Done`; [`Progress`] is guarded by a short leaf lock.
//!
//! What a server attaches to a request while it is open (descriptors for the caller) hangs on it until the client takes
//! it with the [`Reply`], and is dropped with it otherwise.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use fuse_abi::{InHeader, Opcode};
use linux_uapi::zerocopy::{FromBytes, Immutable, IntoBytes};
use ursa_hal::sync::SpinLock;

use super::Connection;
use crate::fs::fdtable::OwnedReservation;
use crate::fs::inode::Inode;
use crate::fs::{File, Path, Source};
use crate::mm::{AddressSpace, Charge};
use crate::process::{Pid, Thread, try_current};
use crate::user::{self, UserAddr};
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// The most descriptors that a server gives a caller with one answer.
const INSTALLS_MAX: usize = 64;

/// A request before it is sent.
#[derive(Clone, Default)]
pub struct Message {
    opcode: u32,
    node: u64,
    body: Vec<u8>,
}

impl Message {
    /// A request without a body.
    pub fn new(opcode: Opcode, node: u64) -> Message {
        Message { opcode: opcode as u32, node, body: Vec::new() }
    }

    /// Appends a structure.
    pub fn with<T: IntoBytes + Immutable>(mut self, value: &T) -> Message {
        self.body.extend_from_slice(value.as_bytes());
        self
    }

    /// Appends bytes: a name with its NUL, a value.
    pub fn with_bytes(mut self, bytes: &[u8]) -> Message {
        self.body.extend_from_slice(bytes);
        self
    }

    /// Appends up to `len` bytes of `src`, in one copy. Returns how many there were.
    ///
    /// # Errors
    /// `EFAULT` when there was none although there should be, `ENOMEM`.
    pub fn take(&mut self, src: &mut Source<'_>, len: usize) -> Result<usize> {
        let at = self.body.len();
        let want = len.min(src.remaining());
        self.body.try_reserve_exact(want).map_err(|_| Errno::ENOMEM)?;
        self.body.resize(at + want, 0);
        let taken = src.take(&mut self.body[at..]);
        self.body.truncate(at + *taken.as_ref().unwrap_or(&0));
        taken
    }

    /// Appends `len` bytes of the running program's memory, in one copy. Nothing is appended on an error.
    ///
    /// # Errors
    /// `EFAULT`, `ENOMEM`.
    pub fn read_user(&mut self, addr: UserAddr, len: usize) -> Result {
        let at = self.body.len();
        self.body.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
        self.body.resize(at + len, 0);
        user::read_bytes(addr, &mut self.body[at..]).inspect_err(|_| self.body.truncate(at))
    }

    /// Whether it may change what a file system keeps.
    pub(super) fn changes_files(&self) -> bool {
        Opcode::from_raw(self.opcode).is_some_and(Opcode::changes_files)
    }

    /// Changes the structure at the front of the body.
    pub fn update<T: FromBytes + IntoBytes + linux_uapi::zerocopy::KnownLayout>(
        &mut self,
        change: impl FnOnce(&mut T),
    ) {
        if let Ok((value, _)) = T::mut_from_prefix(&mut self.body) {
            change(value);
        }
    }
}

/// How many bytes an answer's body may have.
#[derive(Clone, Copy, Debug)]
pub struct ReplySize {
    /// At least.
    pub min: usize,
    /// At most.
    pub max: usize,
}

impl ReplySize {
    /// Nothing but the header.
    pub const NONE: ReplySize = ReplySize { min: 0, max: 0 };

    /// Exactly a `T`.
    pub const fn of<T>() -> ReplySize {
        ReplySize { min: size_of::<T>(), max: size_of::<T>() }
    }

    /// A `T` and up to `more` bytes.
    pub const fn with_tail<T>(more: usize) -> ReplySize {
        ReplySize { min: size_of::<T>(), max: size_of::<T>() + more }
    }

    /// Up to `max` bytes.
    pub const fn up_to(max: usize) -> ReplySize {
        ReplySize { min: 0, max }
    }

    pub(super) fn allows(self, len: usize) -> bool {
        self.min <= len && len <= self.max
    }
}

/// Runs on the server's thread as it answers, before the client hears of it.
pub type Hook = Box<dyn FnOnce(&Arc<Connection>, &Result<Vec<u8>>) + Send + Sync>;

/// What becomes of a request whose caller is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnKill {
    /// The server learns with its answer (`ENOENT`) that nobody waits.
    Forget,
    /// What no server has seen is forgotten; otherwise the answer is taken, for the sake of its hook (`OPEN`: what was
    /// opened is released).
    KeepSent,
    /// It reaches the server all the same (`FLUSH`).
    Keep,
}

/// How a request is made.
pub struct CallOptions<'a> {
    /// What the answer may be.
    pub reply: ReplySize,
    /// A signal takes a request that no server has seen back (`ERESTARTSYS`), and an answer of `EINTR` restarts the call
    /// as a driver's `ERESTARTSYS` would: devices. File systems wait for the answer unless the signal is fatal.
    pub restartable: bool,
    /// Signals that are not fatal are left pending and the server is not told: page faults, which cannot return.
    pub patient: bool,
    /// What becomes of the request when the caller is killed.
    pub on_kill: OnKill,
    /// See [`Hook`].
    pub hook: Option<Hook>,
    /// The open file that the call is on, for descriptors that clone it.
    pub origin: Option<&'a File>,
}

impl CallOptions<'_> {
    /// An ordinary request with this answer.
    pub const fn new(reply: ReplySize) -> Self {
        CallOptions { reply, restartable: false, patient: false, on_kill: OnKill::Forget, hook: None, origin: None }
    }
}

/// The thread that waits for the answer, and what of it the server may reach meanwhile.
pub(super) struct Caller {
    pub thread: Arc<Thread>,
    pub vm: Arc<AddressSpace>,
    /// Path and inode of [`CallOptions::origin`].
    pub origin: Option<(Path, Arc<Inode>)>,
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Pending,
    Sent,
    Done,
}

/// What changes while a request is under way.
pub(super) struct Progress {
    pub state: State,
    /// A signal came for the caller, and an `INTERRUPT` is queued or was sent.
    pub interrupted: bool,
    /// It goes out for a second time, after a server's end.
    pub resend: bool,
    /// The thread that read it.
    pub server: Pid,
    pub outcome: Option<Result<Vec<u8>>>,
    pub hook: Option<Hook>,
    pub installs: Vec<Install>,
    /// None: nobody waits (background, or the caller was killed), or it has no answer at all.
    pub caller: Option<Arc<Caller>>,
    /// Somebody waits for the answer: the caller, or a task of the kernel's.
    pub waited: bool,
    /// A former server made it durable and did not answer: what it made.
    pub durable: Option<u64>,
    /// Until the answer.
    pub held: Option<Held>,
}

impl Progress {
    /// Whether a server has read it, so that it may have had its effect.
    pub fn was_seen(&self) -> bool {
        self.state != State::Pending || self.resend
    }
}

/// A descriptor that the caller gets with the answer.
pub(super) struct Install {
    pub slot: OwnedReservation,
    pub file: Arc<File>,
}

/// Pages that a large request takes, on its caller's account.
pub(super) struct Held {
    charge: Arc<Charge>,
    pages: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.charge.sub(self.pages);
    }
}

/// A request under way.
pub struct Request {
    pub(super) header: InHeader,
    pub(super) body: Vec<u8>,
    pub(super) reply: ReplySize,
    /// That it is never answered (`FORGET`).
    pub(super) no_reply: bool,
    /// When it was made, in nanoseconds of the monotonic clock.
    pub(super) since: u64,
    pub(super) progress: SpinLock<Progress>,
    pub(super) done: WaitQueue,
}

impl Request {
    /// Makes a request of the running thread. Its number comes when it is queued.
    pub(super) fn new(message: Message, options: CallOptions<'_>, waits: bool, no_reply: bool) -> Request {
        let current = try_current();
        let (mut uid, mut gid, mut pid) = (0, 0, 0);
        if let Some(thread) = &current {
            (uid, gid) = thread.with_cred(|cred| (cred.fsuid, cred.fsgid));
            pid = thread.tid() as u32;
        }
        let caller = current.as_ref().filter(|_| waits).map(|thread| {
            Arc::new(Caller {
                thread: thread.arc(),
                vm: thread.vm(),
                origin: options.origin.and_then(|file| Some((file.path()?.clone(), file.inode()?.clone()))),
            })
        });
        let pages = (message.body.len() / ursa_hal::PAGE_SIZE) as u64;
        let held = caller.as_ref().filter(|_| pages > 0).map(|caller| {
            let charge = caller.vm.charge().clone();
            charge.add(pages);
            Held { charge, pages }
        });
        let header = InHeader {
            len: (size_of::<InHeader>() + message.body.len()) as u32,
            opcode: message.opcode,
            nodeid: message.node,
            uid,
            gid,
            pid,
            ..InHeader::default()
        };
        Request {
            header,
            body: message.body,
            reply: options.reply,
            no_reply,
            since: ursa_hal::time::monotonic_ns(),
            progress: SpinLock::new(Progress {
                state: State::Pending,
                interrupted: false,
                resend: false,
                server: 0,
                outcome: None,
                hook: options.hook,
                installs: Vec::new(),
                caller,
                waited: waits,
                durable: None,
                held,
            }),
            done: WaitQueue::new(),
        }
    }

    /// The number that the server answers with.
    pub fn unique(&self) -> u64 {
        self.header.unique
    }

    /// What it asks, as a number.
    pub fn opcode(&self) -> u32 {
        self.header.opcode
    }

    /// The answer, once.
    pub(super) fn take_outcome(&self) -> Option<Result<Vec<u8>>> {
        self.progress.lock().outcome.take()
    }

    /// The waiting caller.
    ///
    /// # Errors
    /// `EINVAL` when nobody waits.
    pub(super) fn caller(&self) -> Result<Arc<Caller>> {
        self.progress.lock().caller.clone().ok_or(Errno::EINVAL)
    }

    /// Attaches a descriptor for the caller.
    pub(super) fn attach(&self, install: Install) -> Result {
        let mut progress = self.progress.lock();
        if progress.state != State::Sent || progress.caller.is_none() {
            drop(progress);
            return Err(Errno::ENOENT);
        }
        if progress.installs.len() >= INSTALLS_MAX {
            drop(progress);
            return Err(Errno::EMFILE);
        }
        progress.installs.push(install);
        Ok(())
    }
}

/// An answer without error.
pub struct Reply {
    pub(super) body: Vec<u8>,
    /// Where a look-up in it counts as unclaimed while this lives.
    pub(super) connection: Option<Arc<Connection>>,
    pub(super) request: Arc<Request>,
}

impl Reply {
    /// What follows the header.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body of the request that this answers.
    pub fn sent(&self) -> &[u8] {
        &self.request.body
    }

    /// The structure at the front of the body, and the rest.
    ///
    /// # Errors
    /// `EIO` when the body is shorter; [`CallOptions::reply`] normally saw to that.
    pub fn read<T: FromBytes>(&self) -> Result<(T, &[u8])> {
        T::read_from_prefix(&self.body).map_err(|_| Errno::EIO)
    }

    /// Gives the caller the descriptors that the server attached; without it they are dropped.
    pub fn install(&self) {
        let installs = core::mem::take(&mut self.request.progress.lock().installs);
        for Install { slot, file } in installs {
            slot.commit(file);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection
            && Opcode::from_raw(self.request.header.opcode).is_some_and(Opcode::counts_lookups)
        {
            connection.claim(self.request.unique());
        }
    }
}
