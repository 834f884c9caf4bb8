//! The journal: transactions, commits, checkpoints.
//!
//! An operation takes a [`Handle`], changes blocks through it and lets it go. All handles of one time belong to one
//! *running* transaction. [`Journal::commit`] closes it when its last handle is gone, freezes its blocks, lets the next one
//! run, and writes: copies of the blocks, flush, commit block, flush. Data blocks are written by operations before they
//! take the handle that makes them part of a file, so the first flush makes them durable too (ordered mode).
//!
//! Committed copies go home at a *checkpoint*, which empties the log. Until then they are found here ([`Overlay`]).
//!
//! A block that was freed stays taken until the transaction that freed it has committed ([`Hooks::committed`]): until then
//! its old contents may be needed again. A freed block of metadata is *revoked*, so that a replay does not write an old copy
//! over what it has become.
//!
//! Who waits for a commit makes it: there is no thread here. Whoever waits behind finds that theirs was in it as well.
//!
//! Locking: `log`, then `state`, then a block. Inodes are locked before a handle is taken, never while one is held.

mod commit;
mod log;
mod replay;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, MappedRwLockWriteGuard, Mutex, RwLock, RwLockWriteGuard};
use rustix::io::Errno;

use crate::cache::{Buf, Overlay};
use crate::device::BlockDevice;
use crate::error::Result;
pub(crate) use commit::done_room;
pub use log::Log;
pub(crate) use replay::{Recovered, recover};

/// A request that a commit contains although not all before it are done: its number, and what its answer said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The request's sequence number.
    pub request: u64,
    /// What its owner needs to answer it again (a node number, a count).
    pub result: u64,
}

/// How far a sequence of requests is on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// All effects of requests up to this one are there.
    pub upto: u64,
    /// So are those of these.
    pub also: Vec<Done>,
}

/// Keeps account of requests, so that a commit can say which are in it.
pub trait Ledger: Send + Sync {
    /// What was found on the disk at mount, before anything is written.
    fn recovered(&self, progress: &Progress);

    /// How far requests are. No operation is changing anything.
    fn progress(&self) -> Progress;

    /// The operation that this thread does has had all of its effect, which is in the running transaction: the caller has
    /// a handle. `made`: number and generation of an inode.
    fn done(&self, made: Option<(u32, u32)>);

    /// So much is durable.
    fn committed(&self, progress: &Progress);
}

/// What the file system does around a commit.
pub trait Hooks {
    /// Writes what is kept outside of blocks (counters, group descriptors) into blocks. No other handle is open.
    ///
    /// # Errors
    /// Any ends the journal.
    fn seal(&self, handle: &Handle<'_>) -> Result<()>;

    /// How far requests are. No handle is open.
    fn progress(&self) -> Progress;

    /// The runs of blocks that the transaction freed may be used again, and so much is durable.
    fn committed(&self, freed: &[(u64, u32)], progress: &Progress);
}

/// A transaction that collects changes.
#[derive(Debug)]
struct Transaction {
    tid: u64,
    blocks: HashMap<u64, Arc<Buf>>,
    revoked: HashSet<u64>,
    freed: Vec<(u64, u32)>,
}

impl Transaction {
    fn new(tid: u64) -> Transaction {
        Transaction { tid, blocks: HashMap::new(), revoked: HashSet::new(), freed: Vec::new() }
    }

    fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.revoked.is_empty() && self.freed.is_empty()
    }
}

#[derive(Debug)]
struct State {
    running: Transaction,
    /// A commit waits for the running transaction's handles; no new ones.
    locked: bool,
    active: usize,
    /// Blocks that active handles may still change.
    credits: usize,
    /// The last transaction on the disk.
    committed: u64,
    /// The one that is being committed has freed blocks, which are not given back yet.
    freeing: bool,
}

/// A committed copy of a block that is not at home yet.
type Copies = HashMap<u64, Arc<[u8]>>;

/// The journal of a mounted file system.
pub struct Journal {
    dev: Arc<dyn BlockDevice>,
    block_size: usize,
    state: Mutex<State>,
    changed: Condvar,
    /// Held through a commit or a checkpoint. `None` where the file system has no journal: transactions then go straight home.
    log: Mutex<Option<Log>>,
    copies: RwLock<Copies>,
    /// Something could not be written: nothing is any more.
    failed: AtomicBool,
    /// The most blocks of a transaction.
    max: usize,
}

impl Overlay for Journal {
    fn committed(&self, block: u64) -> Option<Arc<[u8]>> {
        self.copies.read().get(&block).cloned()
    }
}

/// Why there is no handle.
pub enum NoHandle {
    /// This transaction must be committed first.
    Full(u64),
    /// The journal has failed.
    Failed,
}

impl Journal {
    /// A journal whose next transaction is `tid`. `copies` are blocks that cannot be written home.
    pub fn new(dev: Arc<dyn BlockDevice>, block_size: usize, log: Option<Log>, tid: u64, copies: Copies) -> Journal {
        let max = log.as_ref().map_or(8192, |log| log.capacity() as usize / 4);
        Journal {
            dev,
            block_size,
            state: Mutex::new(State {
                running: Transaction::new(tid),
                locked: false,
                active: 0,
                credits: 0,
                committed: tid - 1,
                freeing: false,
            }),
            changed: Condvar::new(),
            log: Mutex::new(log),
            copies: RwLock::new(copies),
            failed: AtomicBool::new(false),
            max,
        }
    }

    /// Takes a handle for an operation that changes at most `credits` blocks.
    ///
    /// # Errors
    /// [`NoHandle`].
    pub fn start(&self, credits: usize) -> std::result::Result<Handle<'_>, NoHandle> {
        let mut state = self.state.lock();
        loop {
            if self.has_failed() {
                return Err(NoHandle::Failed);
            }
            if state.locked {
                self.changed.wait(&mut state);
                continue;
            }
            let taken = state.running.blocks.len() + state.credits;
            if taken > 0 && taken + credits > self.max {
                return Err(NoHandle::Full(state.running.tid));
            }
            state.active += 1;
            state.credits += credits;
            return Ok(Handle { journal: self, tid: state.running.tid, credits });
        }
    }

    /// The number of the running transaction.
    pub fn running(&self) -> u64 {
        self.state.lock().running.tid
    }

    /// The number of the last transaction that is on the disk.
    pub fn last_committed(&self) -> u64 {
        self.state.lock().committed
    }

    /// Whether the running transaction has freed blocks, or the one before, whose commit is under way: a commit of the running
    /// one makes both usable.
    pub fn holds_freed_blocks(&self) -> bool {
        let state = self.state.lock();
        state.freeing || !state.running.freed.is_empty()
    }

    /// Whether nothing is written any more.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Stops writing: what the disk has now is the last that is known to be good.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
        // Under the lock, so that nobody misses it between a look at `failed` and going to sleep.
        let _state = self.state.lock();
        self.changed.notify_all();
    }
}

/// The right to change blocks as part of the running transaction.
pub struct Handle<'a> {
    journal: &'a Journal,
    tid: u64,
    credits: usize,
}

impl Handle<'_> {
    /// The transaction that it belongs to.
    pub fn tid(&self) -> u64 {
        self.tid
    }

    /// A block's bytes, to change them.
    pub fn modify<'b>(&self, buf: &'b Arc<Buf>) -> MappedRwLockWriteGuard<'b, [u8]> {
        let mut inner = buf.lock();
        if inner.tid != self.tid {
            inner.tid = self.tid;
            self.journal.state.lock().running.blocks.insert(buf.block, buf.clone());
        }
        RwLockWriteGuard::map(inner, |inner| Arc::make_mut(&mut inner.data))
    }

    /// A block of metadata ends: its copies in the journal mean nothing any more.
    pub fn revoke(&self, block: u64) {
        let mut state = self.journal.state.lock();
        state.running.blocks.remove(&block);
        state.running.revoked.insert(block);
    }

    /// A run of blocks is free once this transaction is on the disk.
    pub fn freed(&self, start: u64, len: u32) {
        self.journal.state.lock().running.freed.push((start, len));
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        let mut state = self.journal.state.lock();
        state.active -= 1;
        state.credits -= self.credits;
        if state.locked && state.active == 0 {
            self.journal.changed.notify_all();
        }
    }
}

impl From<NoHandle> for Errno {
    fn from(_: NoHandle) -> Errno {
        Errno::ROFS
    }
}
