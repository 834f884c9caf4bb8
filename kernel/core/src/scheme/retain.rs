//! Retention: what a resumable connection remembers of requests that were answered and are not durable yet.
//!
//! A request that changes files is retained when it is answered, with what its answer made and when, until the server has
//! said that it is durable. When the server ends, its successor gets what is retained once more, one request at a time and in
//! the order of the answers, before anything else: whoever depended on an effect asked after its answer, so this order has
//! every effect before what was built on it.
//!
//! Bounded: beyond [`SOFT`] the server is asked to commit, beyond [`HARD`] callers wait ([`Connection::wait_for_room`]).
//!
//! Answers that name an inode count as a look-up at the server at once, and at the client when it has taken the answer;
//! until then the node is *unclaimed*, so that a successor is told of it ([`Connection::take_over`]).

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use fuse_abi::scheme::{EXT_REPLAY, REPLAY_DURABLE, Replay};
use fuse_abi::{ForgetIn, InHeader, Opcode, SyncfsIn, split_direntplus};
use linux_uapi::zerocopy::FromBytes;

use super::connection::Connection;
use super::request::{CallOptions, Message, ReplySize, Request};
use crate::{Errno, Result};

/// Requests and bytes from which on the server is asked to commit.
const SOFT: (usize, usize) = (1024, 8 << 20);
/// Requests and bytes beyond which callers wait.
const HARD: (usize, usize) = (4096, 24 << 20);

/// A request that was answered, and what is needed to have it done again.
pub(super) struct Retained {
    pub request: Arc<Request>,
    /// The node that it made.
    result: u64,
    /// When it was answered, by the clock.
    time: u64,
}

impl Retained {
    fn size(&self) -> usize {
        size_of::<Request>() + self.request.body.len()
    }

    /// What goes out behind the request.
    pub fn extension(&self) -> Replay {
        replay(0, self.result, self.time)
    }
}

fn replay(flags: u32, result: u64, time: u64) -> Replay {
    let (sec, nsec) = ((time / 1_000_000_000) as i64, (time % 1_000_000_000) as u32);
    Replay { size: size_of::<Replay>() as u32, kind: EXT_REPLAY, flags, nsec, sec, result }
}

/// The extension of a request that was never answered although it is durable.
pub(super) fn durable(result: u64) -> Replay {
    replay(REPLAY_DURABLE, result, crate::time::realtime_ns())
}

/// What a connection retains; part of its queue.
#[derive(Default)]
pub(super) struct Retention {
    /// In the order of the answers.
    list: VecDeque<Arc<Retained>>,
    bytes: usize,
    /// What is still to be sent to a successor.
    again: VecDeque<Arc<Retained>>,
    /// What was sent to it and is not answered.
    under_way: Option<Arc<Retained>>,
    /// The server was asked to commit and has not answered.
    asked: bool,
    /// Nodes in answers that nobody has taken, by request.
    unclaimed: BTreeMap<u64, Vec<u64>>,
}

impl Retention {
    fn exceeds(&self, (count, bytes): (usize, usize)) -> bool {
        self.list.len() >= count || self.bytes >= bytes
    }

    /// Whether nothing but replays may be sent.
    pub fn is_replaying(&self) -> bool {
        self.under_way.is_some() || !self.again.is_empty()
    }

    /// Whether the next replay may be sent.
    pub fn has_next(&self) -> bool {
        self.under_way.is_none() && !self.again.is_empty()
    }

    /// The next replay, which is under way then.
    pub fn next(&mut self) -> Option<Arc<Retained>> {
        if self.under_way.is_some() {
            return None;
        }
        self.under_way = self.again.pop_front();
        self.under_way.clone()
    }

    /// A replay did not reach the server: it stays the next.
    pub fn put_back(&mut self, replay: Arc<Retained>) {
        if self.under_way.take_if(|other| Arc::ptr_eq(other, &replay)).is_some() {
            self.again.push_front(replay);
        }
    }

    /// The replay `unique` was answered.
    pub fn finish(&mut self, unique: u64) -> Option<Arc<Retained>> {
        self.under_way.take_if(|replay| replay.request.unique() == unique)
    }

    fn push(&mut self, retained: Arc<Retained>) {
        self.bytes += retained.size();
        self.list.push_back(retained);
    }

    /// Everything from the start, for a new successor. Returns how many.
    pub fn restart(&mut self) -> usize {
        self.under_way = None;
        self.again = self.list.clone();
        self.list.len()
    }

    /// Numbers that are retained.
    pub fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.list.iter().map(|retained| retained.request.unique())
    }

    /// How many, and how many bytes.
    pub fn count(&self) -> (usize, usize) {
        (self.list.len(), self.bytes)
    }

    /// Takes out what `durable` says; it is to be dropped without the queue's lock.
    pub fn release(&mut self, durable: impl Fn(u64) -> bool) -> Vec<Arc<Retained>> {
        let mut gone = Vec::new();
        self.list.retain(|retained| {
            let goes = durable(retained.request.unique());
            if goes {
                gone.push(retained.clone());
            }
            !goes
        });
        self.again.retain(|retained| !durable(retained.request.unique()));
        self.bytes -= gone.iter().map(|retained| retained.size()).sum::<usize>();
        gone
    }
}

/// The nodes that an answer names: one at its front, or one with each entry of `READDIRPLUS`.
fn nodes_in(request: &Request, outcome: &Result<Vec<u8>>) -> Vec<u64> {
    let (Some(opcode), Ok(body)) = (Opcode::from_raw(request.header.opcode), outcome) else { return Vec::new() };
    let mut nodes = Vec::new();
    if opcode == Opcode::Readdirplus {
        let mut rest = body.as_slice();
        while let Some((entry, _, _, later)) = split_direntplus(rest) {
            nodes.push(entry.nodeid);
            rest = later;
        }
    } else if opcode.answers_entry() {
        nodes.push(u64::read_from_prefix(body).map_or(0, |(node, _)| node));
    }
    nodes.retain(|node| *node != 0);
    nodes
}

/// Whether a request is retained after its answer.
pub(super) fn changes(request: &InHeader) -> bool {
    Opcode::from_raw(request.opcode).is_some_and(Opcode::changes_files)
}

impl Connection {
    /// Waits until there is room to retain one request more.
    ///
    /// # Errors
    /// `EINTR` for a thread that is to die.
    pub(super) fn wait_for_room(&self) -> Result {
        let has_room = || {
            let queue = self.queue.lock();
            (queue.aborted || !queue.retention.exceeds(HARD)).then_some(())
        };
        if has_room().is_some() { Ok(()) } else { self.room.wait_killable(has_room) }
    }

    /// `request` is being answered with `outcome`: before anybody hears of it.
    pub(super) fn retain(self: &Arc<Self>, request: &Arc<Request>, outcome: &Result<Vec<u8>>) {
        let nodes = nodes_in(request, outcome);
        let retains = changes(&request.header) && outcome.is_ok();
        if !retains && nodes.is_empty() {
            return;
        }
        let (result, time) = (nodes.first().copied().unwrap_or(0), crate::time::realtime_ns());
        let retained = retains.then(|| Arc::new(Retained { request: request.clone(), result, time }));
        let ask = {
            let mut queue = self.queue.lock();
            let retention = &mut queue.retention;
            if !nodes.is_empty() {
                retention.unclaimed.insert(request.unique(), nodes);
            }
            if let Some(retained) = retained {
                retention.push(retained);
            }
            let ask = !retention.asked && retention.exceeds(SOFT);
            retention.asked |= ask;
            ask
        };
        if ask {
            self.ask_to_commit();
        }
    }

    fn ask_to_commit(self: &Arc<Self>) {
        let hook = alloc::boxed::Box::new(|connection: &Arc<Connection>, _: &Result<Vec<u8>>| {
            connection.queue.lock().retention.asked = false;
        });
        let options = CallOptions { hook: Some(hook), ..CallOptions::new(ReplySize::NONE) };
        // It fails when the connection has ended, and nobody waits for room then.
        let _ = self.send(Message::new(Opcode::Syncfs, fuse_abi::ROOT_ID).with(&SyncfsIn::default()), options);
    }

    /// The answer of request `unique` was taken, and the look-up in it counted.
    pub(super) fn claim(&self, unique: u64) {
        let claimed = self.queue.lock().retention.unclaimed.remove(&unique);
        drop(claimed);
    }

    /// The answer of `request` reaches nobody: look-ups in it are given back.
    pub(super) fn forget_answer(self: &Arc<Self>, request: &Request, outcome: &Result<Vec<u8>>) {
        let nodes = nodes_in(request, outcome);
        if !nodes.is_empty() {
            self.claim(request.unique());
        }
        for node in nodes {
            // An error means that the server is gone, and what it knew with it.
            let _ = self.post(Message::new(Opcode::Forget, node).with(&ForgetIn { nlookup: 1 }));
        }
    }

    /// A successor begins: takes back the `FORGET`s that no server has read, and returns the nodes of answers that nobody has
    /// taken. The caller holds the lock of the look-up counts; it drops the requests without it.
    ///
    /// # Errors
    /// `ENODATA` when nobody has served the connection yet.
    pub(crate) fn take_over(&self) -> Result<(Vec<u64>, Vec<Arc<Request>>)> {
        let mut queue = self.queue.lock();
        if !queue.served {
            drop(queue);
            return Err(Errno::ENODATA);
        }
        let mut forgets = Vec::new();
        queue.pending.retain(|request| {
            let forgets_one = request.header.opcode == Opcode::Forget as u32;
            if forgets_one {
                forgets.push(request.clone());
            }
            !forgets_one
        });
        Ok((queue.retention.unclaimed.values().flatten().copied().collect(), forgets))
    }

    /// The server says that all requests up to `upto` are durable, and those in `also` (sorted; with what they made).
    ///
    /// # Errors
    /// `EINVAL` for numbers that were never given out.
    pub(crate) fn committed(&self, upto: u64, also: &[(u64, u64)]) -> Result {
        let gone = {
            let mut queue = self.queue.lock();
            let end = queue.next_unique;
            if upto >= end || also.iter().any(|(unique, _)| *unique >= end) {
                drop(queue);
                return Err(Errno::EINVAL);
            }
            let result = |unique: u64| match also.binary_search_by_key(&unique, |(unique, _)| *unique) {
                Ok(at) => Some(also[at].1),
                Err(_) => (unique <= upto).then_some(0),
            };
            // What was done and never answered comes again, and must not be done again.
            for request in queue.processing.values().chain(queue.pending.iter()).filter(|r| changes(&r.header)) {
                let mut progress = request.progress.lock();
                if progress.was_seen()
                    && progress.durable.is_none()
                    && let Some(result) = result(request.unique())
                {
                    progress.durable = Some(result);
                }
            }
            queue.retention.release(|unique| result(unique).is_some())
        };
        if !gone.is_empty() {
            self.room.wake_all();
        }
        drop(gone);
        Ok(())
    }

    /// The numbers of requests that change files and that a successor hears of.
    pub(crate) fn outstanding(&self) -> Vec<u64> {
        let queue = self.queue.lock();
        let sent = queue.processing.values().chain(queue.pending.iter());
        let sent = sent.filter(|request| changes(&request.header) && request.progress.lock().was_seen());
        queue.retention.numbers().chain(sent.map(|request| request.unique())).collect()
    }
}
