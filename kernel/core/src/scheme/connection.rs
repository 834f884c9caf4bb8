//! [`Connection`]: the queue between the clients of a server and its threads.
//!
//! Clients [`call`](Connection::call); server threads [`receive`](Connection::receive) and [`answer`](Connection::answer)
//! through their descriptor ([`super::server`]). Every request has a number that is never used twice; an answer is
//! accepted once, for a number that was sent on this very connection and is still open.
//!
//! ## What a server cannot do
//! An answer with a wrong length or error number fails its request with `EIO` and the write with `EINVAL`; an unknown,
//! answered or abandoned number is `ENOENT` (a server that opened something for it takes that back, as libfuse does).
//! A server that never answers keeps its clients waiting until they are killed or it ends: the last close of its
//! descriptors aborts the connection, and everybody gets the owner's [`gone`](Owner::gone) errno at once.
//!
//! ## Signals
//! See [`CallOptions::restartable`](super::CallOptions). A request that the server has read is followed by an `INTERRUPT`; then the
//! wait can be ended by a fatal signal alone.
//!
//! ## Locking
//! `queue` is a spin lock; inside it only a request's `progress` and wait queues are taken. No user memory is touched and
//! nothing is dropped that could call back under either.
//!
//! References: `include/uapi/linux/fuse.h`, Linux `fs/fuse/dev.c`.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use fuse_abi::scheme::Replay;
use fuse_abi::{InHeader, InterruptIn, MIN_READ_BUFFER, NotifyCode, Opcode, OutHeader, UNIQUE_RESEND};
use linux_uapi::zerocopy::{FromBytes, IntoBytes};
use ursa_hal::sync::SpinLock;
use ursa_hal::task::Task;

use super::request::{CallOptions, Message, OnKill, Reply, Request, State};
use super::retain::{self, Retained, Retention};
use crate::fs::{File, Sink, Source};
use crate::poll::{PollEvents, PollTable};
use crate::process::{Pid, try_current};
use crate::sched::{self, SleepState};
use crate::wait::{WaitQueue, WakeTarget};
use crate::{Errno, Result};

/// What a connection serves: a mounted file system, or devices.
pub trait Owner: Any + Send + Sync {
    /// What a call gets when the server is gone.
    fn gone(&self) -> Errno;

    /// What a call gets that is under way when the server ends.
    fn cut_off(&self) -> Errno {
        self.gone()
    }

    /// The server says something by itself.
    ///
    /// # Errors
    /// `EINVAL` for a body that does not fit, `ENOENT` for what is not there.
    fn notify(&self, connection: &Arc<Connection>, code: NotifyCode, body: &[u8]) -> Result;

    /// The connection has ended; runs once.
    fn aborted(&self, connection: &Arc<Connection>);

    /// An ioctl on the server's descriptor that is not one of every connection.
    ///
    /// # Errors
    /// `ENOTTY` for an unknown one.
    fn ioctl(&self, _connection: &Arc<Connection>, _cmd: u32, _arg: usize) -> Result<i64> {
        Err(Errno::ENOTTY)
    }

    /// A request that had been answered was sent to a successor, which failed it.
    fn replay_failed(&self, _request: &Request, _error: Errno) {}
}

/// The bit of `unique` that names the `INTERRUPT` of a request.
const INTERRUPT_BIT: u64 = 1;
/// One past the largest error number of an answer.
const ERRNO_END: i32 = 512;
/// The most bytes of a notification.
const NOTIFY_MAX: usize = 256 << 10;
/// One past the numbers of requests that are counted one by one.
const OPCODES: usize = 64;
/// How many answered requests are remembered.
const HISTORY: usize = 64;

pub(super) struct Queue {
    pub aborted: bool,
    /// A server has read something.
    pub served: bool,
    /// The next number, in steps of 2: the lowest bit is [`INTERRUPT_BIT`]. Numbers rise along `pending`, but for what
    /// comes again.
    pub next_unique: u64,
    pub pending: VecDeque<Arc<Request>>,
    /// Sent and not answered.
    pub processing: BTreeMap<u64, Arc<Request>>,
    /// Whose `INTERRUPT` is to be sent.
    interrupts: VecDeque<Arc<Request>>,
    pub retention: Retention,
    /// The last requests that were answered.
    history: VecDeque<Record>,
    /// The same of the last server that ended.
    last_words: Vec<Record>,
}

/// A connection to a server.
pub struct Connection {
    name: Box<str>,
    owner: Box<dyn Owner>,
    pub(super) queue: SpinLock<Queue>,
    /// What is answered is retained until it is durable.
    retains: AtomicBool,
    /// Callers that wait until less is retained.
    pub(super) room: WaitQueue,
    /// Server threads that wait for requests, and pollers.
    readers: Arc<WaitQueue>,
    /// Open server descriptors.
    servers: AtomicUsize,
    /// The largest `WRITE`; with the headers it sizes the server's buffer.
    max_write: AtomicU32,
    /// The server does not know `INTERRUPT`.
    no_interrupt: AtomicBool,
    /// Requests answered, for `/proc/scheme`.
    answered: AtomicU64,
    /// Requests read by servers, by number; those of devices, which are higher, are not told apart.
    asked: [AtomicU64; OPCODES],
}

/// A request as `/proc/scheme` shows it.
pub struct Snapshot {
    /// Its number.
    pub unique: u64,
    /// What it asks.
    pub opcode: u32,
    /// Node or cookie.
    pub node: u64,
    /// Nanoseconds since it was made.
    pub age_ns: u64,
    /// `pending` or `sent`, and whether the caller was interrupted.
    pub sent: bool,
    /// See `sent`.
    pub interrupted: bool,
    /// The caller's thread number.
    pub caller: u32,
    /// The server's thread that read it, or 0.
    pub server: Pid,
}

/// A request that a server has answered, or had when it ended.
#[derive(Clone, Copy)]
pub struct Record {
    /// Its number.
    pub unique: u64,
    /// What it asked.
    pub opcode: u32,
    /// Node or cookie.
    pub node: u64,
    /// The error number of the answer, 0 or less; none when there was no answer.
    pub answer: Option<i32>,
}

impl Record {
    fn of(request: &Request, answer: Option<i32>) -> Record {
        Record { unique: request.unique(), opcode: request.header.opcode, node: request.header.nodeid, answer }
    }
}

impl Connection {
    /// A connection that no server has opened yet. `name` is for people.
    pub fn new(name: &str, owner: Box<dyn Owner>) -> Arc<Connection> {
        Arc::new(Connection {
            name: Box::from(name),
            owner,
            queue: SpinLock::new(Queue {
                aborted: false,
                served: false,
                next_unique: 2,
                pending: VecDeque::new(),
                processing: BTreeMap::new(),
                interrupts: VecDeque::new(),
                retention: Retention::default(),
                history: VecDeque::new(),
                last_words: Vec::new(),
            }),
            retains: AtomicBool::new(false),
            room: WaitQueue::new(),
            readers: Arc::new(WaitQueue::new()),
            servers: AtomicUsize::new(0),
            max_write: AtomicU32::new(4096),
            no_interrupt: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            asked: [const { AtomicU64::new(0) }; OPCODES],
        })
    }

    /// The name it was made with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The owner if it is a `T`.
    pub fn owner_as<T: Owner>(&self) -> Option<&T> {
        (&*self.owner as &dyn Any).downcast_ref::<T>()
    }

    /// What a call gets after the end.
    pub fn gone(&self) -> Errno {
        self.owner.gone()
    }

    /// Whether the server is gone.
    pub fn is_aborted(&self) -> bool {
        self.queue.lock().aborted
    }

    /// From now on answers are retained until they are durable.
    pub fn set_retains(&self) {
        self.retains.store(true, Ordering::Release);
    }

    /// Whether they are.
    pub(super) fn retains(&self) -> bool {
        self.retains.load(Ordering::Acquire)
    }

    /// Sets what the handshake agreed on.
    pub fn set_max_write(&self, bytes: u32) {
        self.max_write.store(bytes, Ordering::Relaxed);
    }

    /// The largest `WRITE`.
    pub fn max_write(&self) -> usize {
        self.max_write.load(Ordering::Relaxed) as usize
    }

    /// How many requests were answered.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// How many requests of each number servers have read, of those that were read at all.
    pub fn asked(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let counts = self.asked.iter().map(|count| count.load(Ordering::Relaxed));
        (0..).zip(counts).filter(|(_, count)| *count > 0)
    }

    // The client's side.

    /// Asks and waits for the answer. May sleep for as long as the server likes; a fatal signal ends it always.
    ///
    /// # Errors
    /// What the server answers; [`Owner::gone`]; `EIO` for an answer that is none; `ERESTARTSYS`, `EINTR`.
    pub fn call(self: &Arc<Self>, message: Message, options: CallOptions<'_>) -> Result<Reply> {
        let (restartable, patient, mut on_kill) = (options.restartable, options.patient, options.on_kill);
        let changes = self.retains() && message.changes_files();
        if changes {
            self.wait_for_room()?;
            // What a server has read may have had its effect, on which others may build.
            if on_kill == OnKill::Forget {
                on_kill = OnKill::KeepSent;
            }
        }
        let request = self.submit(message, options, true, false)?;
        let mut answer = None;
        if !patient {
            answer = request.done.wait_interruptible(None, || request.take_outcome()).ok();
            if answer.is_none() && restartable && self.take_back(&request) {
                return Err(Errno::ERESTARTSYS);
            }
            if answer.is_none() {
                self.interrupt(&request);
            }
        }
        let answer = match answer {
            Some(outcome) => outcome,
            None => request
                .done
                .wait_killable(|| request.take_outcome())
                .inspect_err(|_| self.abandon(&request, on_kill))?,
        };
        match answer {
            Ok(body) => Ok(Reply { body, connection: self.retains().then(|| self.clone()), request }),
            Err(Errno::EINTR) if restartable && crate::sched::signal_pending() => Err(Errno::ERESTARTSYS),
            Err(error) => Err(error),
        }
    }

    /// Sends a request whose answer only `options.hook` hears, if there is one.
    ///
    /// # Errors
    /// [`Owner::gone`].
    pub fn send(self: &Arc<Self>, message: Message, options: CallOptions<'_>) -> Result {
        self.submit(message, options, false, false).map(drop)
    }

    /// Sends what is never answered: `FORGET`.
    ///
    /// # Errors
    /// [`Owner::gone`].
    pub fn post(self: &Arc<Self>, message: Message) -> Result {
        self.submit(message, CallOptions::new(super::ReplySize::NONE), false, true).map(drop)
    }

    fn submit(&self, message: Message, options: CallOptions<'_>, waits: bool, no_reply: bool) -> Result<Arc<Request>> {
        let request = self.enqueue(message, options, waits, no_reply)?;
        self.wake_reader(waits);
        Ok(request)
    }

    fn enqueue(&self, message: Message, options: CallOptions<'_>, waits: bool, no_reply: bool) -> Result<Arc<Request>> {
        let mut request = Arc::new(Request::new(message, options, waits, no_reply));
        let mut queue = self.queue.lock();
        if queue.aborted {
            drop(queue);
            return Err(self.gone());
        }
        // Under the lock: numbers are in the order in which requests are sent, so that "all up to" means something.
        if let Some(request) = Arc::get_mut(&mut request) {
            request.header.unique = queue.next_unique;
        }
        queue.next_unique += 2;
        queue.pending.push_back(request.clone());
        Ok(request)
    }

    fn wake_reader(&self, handoff: bool) {
        self.readers.wake_n(1, PollEvents::READABLE, handoff);
    }

    /// As [`Connection::post`], but nobody is woken: [`Connection::wake_posted`] does. For callers that hold a spin lock.
    ///
    /// # Errors
    /// [`Owner::gone`].
    pub fn post_quietly(&self, message: Message) -> Result {
        self.enqueue(message, CallOptions::new(super::ReplySize::NONE), false, true).map(drop)
    }

    /// See [`Connection::post_quietly`].
    pub fn wake_posted(&self) {
        self.wake_reader(false);
    }

    /// Takes a request that no server has seen out of the queue. False: it was seen.
    fn take_back(&self, request: &Arc<Request>) -> bool {
        let mut queue = self.queue.lock();
        let found = queue.pending.iter().position(|other| Arc::ptr_eq(other, request));
        // One that a former server had may have had its effect.
        let found = found.filter(|_| !request.progress.lock().was_seen());
        let taken = found.and_then(|index| queue.pending.remove(index));
        drop(queue);
        taken.is_some()
    }

    /// Tells the server that the caller of `request` would rather not wait.
    fn interrupt(&self, request: &Arc<Request>) {
        if self.no_interrupt.load(Ordering::Relaxed) {
            return;
        }
        let mut queue = self.queue.lock();
        let sent = {
            let mut progress = request.progress.lock();
            if progress.state == State::Done || progress.interrupted {
                return;
            }
            progress.interrupted = true;
            progress.state == State::Sent
        };
        // One that is still pending is followed by its interrupt as soon as it is sent.
        if sent {
            queue.interrupts.push_back(request.clone());
            drop(queue);
            self.readers.wake_n(1, PollEvents::READABLE, false);
        }
    }

    /// The caller is being killed: nobody waits for the answer any more.
    fn abandon(self: &Arc<Self>, request: &Arc<Request>, on_kill: OnKill) {
        let mut queue = self.queue.lock();
        let mut progress = request.progress.lock();
        // The server must not reach into a process that goes, nor keep its memory.
        let caller = progress.caller.take();
        let installs = core::mem::take(&mut progress.installs);
        progress.waited = false;
        let unread = progress.outcome.take();
        let seen = progress.was_seen();
        let forget = match on_kill {
            OnKill::Forget => true,
            OnKill::KeepSent => !seen,
            OnKill::Keep => false,
        };
        let hook = if forget { progress.hook.take() } else { None };
        if forget {
            progress.state = State::Done;
        }
        drop(progress);
        let mut processing = None;
        if forget {
            queue.pending.retain(|other| !Arc::ptr_eq(other, request));
            queue.interrupts.retain(|other| !Arc::ptr_eq(other, request));
            processing = queue.processing.remove(&request.unique());
        }
        drop(queue);
        drop((processing, hook, caller, installs));
        if let Some(outcome) = unread {
            self.forget_answer(request, &outcome);
        }
    }

    // The server's side.

    /// An ioctl that is the owner's.
    pub(super) fn owner_ioctl(self: &Arc<Self>, cmd: u32, arg: usize) -> Result<i64> {
        self.owner.ioctl(self, cmd, arg)
    }

    /// Counts a server descriptor.
    pub(super) fn attach_server(&self) {
        self.servers.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives a server descriptor back; the last one ends the connection.
    pub(super) fn detach_server(self: &Arc<Self>) {
        if self.servers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.abort();
        }
    }

    /// Ends the connection: every request fails, now and later.
    pub fn abort(self: &Arc<Self>) {
        let retention;
        let requests: Vec<Arc<Request>> = {
            let mut queue = self.queue.lock();
            if core::mem::replace(&mut queue.aborted, true) {
                return;
            }
            queue.interrupts.clear();
            retention = core::mem::take(&mut queue.retention);
            let pending = core::mem::take(&mut queue.pending);
            let processing = core::mem::take(&mut queue.processing);
            pending.into_iter().chain(processing.into_values()).collect()
        };
        for request in requests {
            self.complete(&request, Err(self.owner.cut_off()), false);
        }
        drop(retention);
        self.room.wake_all();
        self.readers.wake_events(PollEvents::READABLE | PollEvents::ALWAYS);
        self.owner.aborted(self);
    }

    /// Whether a receive would not wait.
    fn has_work(queue: &Queue) -> bool {
        if queue.retention.is_replaying() {
            return queue.aborted || queue.retention.has_next();
        }
        queue.aborted || !queue.interrupts.is_empty() || !queue.pending.is_empty()
    }

    /// Readiness of the server's descriptor.
    pub(super) fn poll_server(&self, pt: Option<&mut crate::poll::PollTable>) -> PollEvents {
        if let Some(pt) = pt {
            pt.register(&self.readers);
        }
        let queue = self.queue.lock();
        if queue.aborted {
            return PollEvents::POLLERR;
        }
        let mut events = PollEvents::WRITABLE;
        if Self::has_work(&queue) {
            events |= PollEvents::READABLE;
        }
        events
    }

    /// Moves the next request to `dst`. Returns its length. `events` is looked at first, so that clients with much to ask
    /// cannot keep a server from its interrupts.
    ///
    /// # Errors
    /// `EINVAL` for a buffer that could not hold every request, `EAGAIN` (nothing waits and `nonblock`, or `events` is
    /// readable), `ERESTARTSYS`, `ENODEV` after the end, `EFAULT`.
    pub(super) fn receive(
        self: &Arc<Self>,
        dst: &mut Sink<'_>,
        nonblock: bool,
        events: Option<&File>,
    ) -> Result<usize> {
        if dst.remaining()
            < MIN_READ_BUFFER.max(self.max_write() + size_of::<InHeader>() + size_of::<fuse_abi::WriteIn>())
        {
            return Err(Errno::EINVAL);
        }
        if events.is_some_and(|file| is_readable(file.poll(None))) {
            return Err(Errno::EAGAIN);
        }
        loop {
            let next = match (self.take_next(), events) {
                (Some(next), _) => next,
                (None, _) if nonblock => return Err(Errno::EAGAIN),
                (None, None) => self.readers.wait_interruptible(None, || self.take_next())?,
                (None, Some(file)) => self.wait_beside(file)?,
            };
            match next? {
                Next::Interrupt(request) => return self.put_interrupt(&request, dst),
                Next::Request(request) => {
                    if let Some(len) = self.put_request(&request, dst)? {
                        return Ok(len);
                    }
                }
                Next::Replay(replay) => {
                    let put = put(&replay.request, true, Some(replay.extension()), dst);
                    return put.inspect_err(|_| self.queue.lock().retention.put_back(replay));
                }
            }
        }
    }

    /// Waits for a request or until `events` is readable, which is `EAGAIN`.
    fn wait_beside(&self, events: &File) -> Result<Result<Next>> {
        let bell = Arc::new(Bell { task: sched::current_task(), rung: AtomicBool::new(false) });
        let mut table = PollTable::new(bell.clone(), PollEvents::READABLE, false, 1);
        let mut ready = events.poll(Some(&mut table));
        loop {
            if is_readable(ready) {
                return Err(Errno::EAGAIN);
            }
            // The file is asked between the waits, not in them: its answer may take a lock that sleeps.
            let woken =
                || self.take_next().map(Some).or_else(|| bell.rung.swap(false, Ordering::SeqCst).then_some(None));
            if let Some(next) = self.readers.wait_interruptible(None, woken)? {
                return Ok(next);
            }
            ready = events.poll(None);
        }
    }

    fn take_next(&self) -> Option<Result<Next>> {
        let mut queue = self.queue.lock();
        if queue.aborted {
            return Some(Err(Errno::ENODEV));
        }
        if queue.retention.is_replaying() {
            // One by one, and nothing else before all are answered.
            return queue.retention.next().map(|replay| Ok(Next::Replay(replay)));
        }
        if let Some(request) = queue.interrupts.pop_front() {
            return Some(Ok(Next::Interrupt(request)));
        }
        let request = queue.pending.pop_front()?;
        queue.served = true;
        if let Some(count) = self.asked.get(request.header.opcode as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let interrupted = {
            let mut progress = request.progress.lock();
            progress.state = State::Sent;
            progress.server = try_current().map_or(0, |thread| thread.tid());
            progress.interrupted
        };
        if !request.no_reply {
            queue.processing.insert(request.unique(), request.clone());
            if interrupted {
                queue.interrupts.push_back(request.clone());
            }
        }
        Some(Ok(Next::Request(request)))
    }

    fn put_interrupt(&self, request: &Request, dst: &mut Sink<'_>) -> Result<usize> {
        let body = InterruptIn { unique: request.unique() };
        let header = InHeader {
            len: (size_of::<InHeader>() + size_of::<InterruptIn>()) as u32,
            opcode: Opcode::Interrupt as u32,
            unique: request.unique() | INTERRUPT_BIT,
            ..InHeader::default()
        };
        dst.put_all(header.as_bytes())?;
        dst.put_all(body.as_bytes())?;
        Ok(header.len as usize)
    }

    /// Copies a request out. `None`: it was failed instead, since it does not fit.
    fn put_request(self: &Arc<Self>, request: &Arc<Request>, dst: &mut Sink<'_>) -> Result<Option<usize>> {
        let (resend, durable) = {
            let progress = request.progress.lock();
            (progress.resend, progress.durable)
        };
        let extension = durable.filter(|_| resend).map(retain::durable);
        let more = extension.map_or(0, |_| size_of::<Replay>());
        if request.header.len as usize + more > dst.remaining() {
            self.fail_sent(request, Errno::EIO);
            return Ok(None);
        }
        match put(request, resend, extension, dst) {
            Ok(len) => Ok(Some(len)),
            Err(error) => {
                self.fail_sent(request, Errno::EIO);
                Err(error)
            }
        }
    }

    /// Fails a request that a server thread took, unless somebody answered it meanwhile.
    fn fail_sent(self: &Arc<Self>, request: &Arc<Request>, error: Errno) {
        let mine = self.queue.lock().processing.remove(&request.unique());
        if mine.is_some() {
            self.complete(request, Err(error), false);
        }
    }

    /// The open request `unique`.
    ///
    /// # Errors
    /// `ENOENT`.
    pub(super) fn open_request(&self, unique: u64) -> Result<Arc<Request>> {
        self.queue.lock().processing.get(&(unique & !UNIQUE_RESEND)).cloned().ok_or(Errno::ENOENT)
    }

    /// Takes one answer or notification: all of `src`. With `handoff` the server thread is about to wait.
    ///
    /// # Errors
    /// `EINVAL` for what is no message, `ENOENT` for a number that is not open, `EFAULT`, `ENODEV` after the end.
    pub(super) fn answer(self: &Arc<Self>, src: &mut Source<'_>, handoff: bool) -> Result<usize> {
        let total = src.remaining();
        if total < size_of::<OutHeader>() {
            return Err(Errno::EINVAL);
        }
        let mut bytes = [0; size_of::<OutHeader>()];
        src.take_all(&mut bytes)?;
        let Ok(header) = OutHeader::read_from_bytes(&bytes) else { return Err(Errno::EINVAL) };
        if header.len as usize != total {
            return Err(Errno::EINVAL);
        }
        if header.unique == 0 {
            return self.take_notification(header.error, src).map(|()| total);
        }
        if header.error > 0 || header.error <= -ERRNO_END {
            return Err(Errno::EINVAL);
        }
        let unique = header.unique & !UNIQUE_RESEND;
        if unique & INTERRUPT_BIT != 0 {
            return self.take_interrupt_answer(unique & !INTERRUPT_BIT, header.error, total);
        }
        let request = {
            let mut queue = self.queue.lock();
            if queue.aborted {
                return Err(Errno::ENODEV);
            }
            if let Some(replay) = queue.retention.finish(unique) {
                drop(queue);
                self.replayed(&replay, header.error);
                return Ok(total);
            }
            let request = queue.processing.remove(&unique).ok_or(Errno::ENOENT)?;
            if queue.history.len() >= HISTORY {
                queue.history.pop_front();
            }
            queue.history.push_back(Record::of(&request, Some(header.error)));
            if !queue.interrupts.is_empty() {
                queue.interrupts.retain(|other| !Arc::ptr_eq(other, &request));
            }
            request
        };
        let (outcome, result) = match self.take_body(&request, header.error, src) {
            Ok(outcome) => (outcome, Ok(total)),
            Err(error) => (Err(Errno::EIO), Err(error)),
        };
        self.answered.fetch_add(1, Ordering::Relaxed);
        if self.retains() {
            self.retain(&request, &outcome);
        }
        self.complete(&request, outcome, handoff);
        result
    }

    /// A request that is retained was done again.
    fn replayed(&self, replay: &Retained, error: i32) {
        if error != 0 {
            self.owner.replay_failed(&replay.request, error_of(error));
        }
        self.readers.wake_events(PollEvents::READABLE);
    }

    /// The outcome that an answer means; an error if it is none.
    fn take_body(&self, request: &Request, error: i32, src: &mut Source<'_>) -> Result<Result<Vec<u8>>> {
        let len = src.remaining();
        if error != 0 {
            return if len == 0 { Ok(Err(error_of(error))) } else { Err(Errno::EINVAL) };
        }
        if !request.reply.allows(len) {
            return Err(Errno::EINVAL);
        }
        let mut body = Vec::new();
        body.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
        body.resize(len, 0);
        src.take_all(&mut body)?;
        Ok(Ok(body))
    }

    fn take_notification(self: &Arc<Self>, code: i32, src: &mut Source<'_>) -> Result {
        let code = u32::try_from(code).ok().and_then(NotifyCode::from_raw).ok_or(Errno::EINVAL)?;
        if self.is_aborted() {
            return Err(Errno::ENODEV);
        }
        let len = src.remaining();
        if len > NOTIFY_MAX {
            return Err(Errno::EINVAL);
        }
        let mut body = Vec::new();
        body.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
        body.resize(len, 0);
        src.take_all(&mut body)?;
        self.owner.notify(self, code, &body)
    }

    /// A server may answer an `INTERRUPT` only to have it again later or never.
    fn take_interrupt_answer(&self, unique: u64, error: i32, total: usize) -> Result<usize> {
        if total != size_of::<OutHeader>() {
            return Err(Errno::EINVAL);
        }
        match error_of(error) {
            Errno::ENOSYS => self.no_interrupt.store(true, Ordering::Relaxed),
            Errno::EAGAIN => {
                let mut queue = self.queue.lock();
                let request = queue.processing.get(&unique).cloned().ok_or(Errno::ENOENT)?;
                // Only one that was interrupted, and once: a server cannot fill the queue.
                let wanted = request.progress.lock().interrupted;
                if wanted && !queue.interrupts.iter().any(|other| Arc::ptr_eq(other, &request)) {
                    queue.interrupts.push_back(request);
                }
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(total)
    }

    /// Ends a request that is in no queue any more.
    fn complete(self: &Arc<Self>, request: &Arc<Request>, outcome: Result<Vec<u8>>, handoff: bool) {
        let (hook, dropped) = {
            let mut progress = request.progress.lock();
            let dropped = if outcome.is_err() { core::mem::take(&mut progress.installs) } else { Vec::new() };
            (progress.hook.take(), (dropped, progress.held.take()))
        };
        drop(dropped);
        if let Some(hook) = hook {
            hook(self, &outcome);
        }
        // A request that is retained must not keep the process that made it.
        let caller;
        let unread = {
            let mut progress = request.progress.lock();
            progress.state = State::Done;
            caller = progress.caller.take();
            // Nobody waits for what was sent without a caller, or whose caller was killed.
            if progress.waited {
                progress.outcome = Some(outcome);
                None
            } else {
                Some(outcome)
            }
        };
        drop(caller);
        if let Some(outcome) = unread {
            self.forget_answer(request, &outcome);
        }
        if handoff {
            request.done.wake_one_handoff();
        } else {
            request.done.wake_one();
        }
    }

    /// Queues what a former server had again: what is retained, in the order of the answers, then what was sent and not
    /// answered, in the order of the numbers; before everything else. Returns how many.
    pub(crate) fn resend(&self) -> usize {
        let mut dropped = Vec::new();
        let count = {
            let mut queue = self.queue.lock();
            let sent = core::mem::take(&mut queue.processing);
            let mut words: Vec<Record> = queue.history.drain(..).collect();
            words.extend(sent.values().map(|request| Record::of(request, None)));
            words.drain(..words.len().saturating_sub(HISTORY));
            queue.last_words = words;
            let count = sent.len() + queue.retention.restart();
            queue.interrupts.clear();
            for request in sent.into_values().rev() {
                {
                    let mut progress = request.progress.lock();
                    progress.state = State::Pending;
                    progress.resend = true;
                    dropped.append(&mut progress.installs);
                }
                queue.pending.push_front(request);
            }
            count
        };
        drop(dropped);
        if count > 0 {
            self.readers.wake_events(PollEvents::READABLE);
        }
        count
    }

    /// The last requests of the last server that ended, oldest first.
    pub fn last_words(&self) -> Vec<Record> {
        self.queue.lock().last_words.clone()
    }

    /// How many requests are retained, and how many bytes they take.
    pub fn retained(&self) -> (usize, usize) {
        self.queue.lock().retention.count()
    }

    /// What is under way, oldest first.
    pub fn snapshot(&self) -> Vec<Snapshot> {
        let now = ursa_hal::time::monotonic_ns();
        let requests: Vec<Arc<Request>> = {
            let queue = self.queue.lock();
            queue.processing.values().chain(queue.pending.iter()).cloned().collect()
        };
        let mut list: Vec<Snapshot> = requests
            .iter()
            .map(|request| {
                let progress = request.progress.lock();
                Snapshot {
                    unique: request.unique(),
                    opcode: request.header.opcode,
                    node: request.header.nodeid,
                    age_ns: now.saturating_sub(request.since),
                    sent: progress.state == State::Sent,
                    interrupted: progress.interrupted,
                    caller: request.header.pid,
                    server: progress.server,
                }
            })
            .collect();
        list.sort_by_key(|entry| entry.unique);
        list
    }
}

/// Whether a server that waits beside a file is to look after it.
fn is_readable(events: PollEvents) -> bool {
    events.intersects(PollEvents::READABLE | PollEvents::ALWAYS)
}

/// Wakes a server thread that waits for requests, when the file that it waits beside has news.
struct Bell {
    task: Arc<Task>,
    rung: AtomicBool,
}

impl WakeTarget for Bell {
    fn wake(&self, events: PollEvents) -> bool {
        if !events.is_empty() && !is_readable(events) {
            return false;
        }
        self.rung.store(true, Ordering::SeqCst);
        sched::wake_with(&self.task, SleepState::ANY_SLEEP, false)
    }
}

/// The error of an answer whose range was checked.
fn error_of(error: i32) -> Errno {
    Errno::from_raw(error.unsigned_abs()).unwrap_or(Errno::EIO)
}

/// Copies a request out.
fn put(request: &Request, resend: bool, extension: Option<Replay>, dst: &mut Sink<'_>) -> Result<usize> {
    let mut header = request.header;
    if resend {
        header.unique |= UNIQUE_RESEND;
    }
    if extension.is_some() {
        header.len += size_of::<Replay>() as u32;
        header.total_extlen = (size_of::<Replay>() / 8) as u16;
    }
    dst.put_all(header.as_bytes())?;
    dst.put_all(&request.body)?;
    if let Some(extension) = extension {
        dst.put_all(extension.as_bytes())?;
    }
    Ok(header.len as usize)
}

/// What a server thread receives.
enum Next {
    Request(Arc<Request>),
    Replay(Arc<Retained>),
    Interrupt(Arc<Request>),
}
