//! [`Client`] and [`FuseFs`]: a connection as a mount uses it.
//!
//! References: Linux `fs/fuse/inode.c` (`process_init_reply`), `fs/fuse/dev.c` (`fuse_notify`), `fs/fuse/dir.c`
//! (`fuse_allow_current_process`).

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fuse_abi::scheme::{self as abi, Live};
use fuse_abi::{
    ForgetIn, InitFlags, InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION, Kstatfs, NotifyCode, NotifyDeleteOut,
    NotifyInvalEntryOut, NotifyInvalInodeOut, NotifyPollWakeupOut, Opcode, ROOT_ID, StatfsOut,
};
use linux_uapi::zerocopy::{FromBytes, Immutable, IntoBytes};
use ursa_hal::error;
use ursa_hal::sync::{Once, SpinLock};

use super::Options;
use super::file::FuseFile;
use super::node::Node;
use super::space::Space;
use crate::fs::dentry::hash_name;
use crate::fs::inode::Inode;
use crate::mm::{MemoryObject, writeback};
use crate::process::{Cap, try_current};
use crate::scheme::{CallOptions, Connection, Message, Owner, Reply, ReplySize, Request, tree};
use crate::user::{self, UserAddr, UserPtr};
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// The most pages of one `READ` or `WRITE`: what `MAX_PAGES` is granted up to.
const PAGES_MAX: usize = 256;
/// The same without `MAX_PAGES`.
const PAGES_DEFAULT: usize = 32;
/// The oldest minor version with today's attributes and entries.
const MINOR_MIN: u32 = 9;
/// What the kernel can do.
const OFFERED: InitFlags = InitFlags::ASYNC_READ
    .union(InitFlags::BIG_WRITES)
    .union(InitFlags::HAS_IOCTL_DIR)
    .union(InitFlags::AUTO_INVAL_DATA)
    .union(InitFlags::EXPLICIT_INVAL_DATA)
    .union(InitFlags::ASYNC_DIO)
    .union(InitFlags::NO_OPEN_SUPPORT)
    .union(InitFlags::NO_OPENDIR_SUPPORT)
    .union(InitFlags::PARALLEL_DIROPS)
    .union(InitFlags::DO_READDIRPLUS)
    .union(InitFlags::READDIRPLUS_AUTO)
    .union(InitFlags::CACHE_SYMLINKS)
    .union(InitFlags::WRITEBACK_CACHE)
    .union(InitFlags::MAX_PAGES)
    .union(InitFlags::INIT_EXT)
    .union(InitFlags::HAS_EXPIRE_ONLY);

/// What kernel and server agreed on.
#[derive(Clone, Copy)]
pub struct Terms {
    /// The most bytes of one `READ`.
    pub max_read: usize,
    /// The most bytes of one `WRITE`.
    pub max_write: usize,
    /// What both can do.
    pub flags: InitFlags,
}

impl Terms {
    /// Checks the answer to `INIT`. Older servers send less of it.
    fn of(body: &[u8], max_read: u32, offered: InitFlags) -> Option<Terms> {
        let mut out = InitOut::default();
        out.as_mut_bytes().get_mut(..body.len())?.copy_from_slice(body);
        if out.major != KERNEL_VERSION || out.minor < MINOR_MIN {
            return None;
        }
        let mut flags = InitFlags::from_bits_retain(u64::from(out.flags));
        if flags.contains(InitFlags::INIT_EXT) {
            flags |= InitFlags::from_bits_retain(u64::from(out.flags2) << 32);
        }
        let flags = flags & offered;
        let pages = match flags.contains(InitFlags::MAX_PAGES) {
            true => usize::from(out.max_pages).clamp(1, PAGES_MAX),
            false => PAGES_DEFAULT,
        };
        let most = pages * ursa_hal::PAGE_SIZE;
        let whole = |bytes: u32| (bytes as usize).clamp(4096, most);
        Some(Terms { max_read: whole(max_read) & !4095, max_write: whole(out.max_write), flags })
    }
}

/// An inode that the server knows.
struct Known {
    inode: Weak<Inode>,
    /// How often it was looked up. Counted here as well while the inode is going.
    lookups: Arc<AtomicU64>,
}

/// A mount's state, shared by the super block, the inodes and the connection.
pub struct FuseFs {
    pub(super) options: Options,
    terms: Once<Terms>,
    /// The server's answer to `INIT` was none.
    refused: AtomicBool,
    started: WaitQueue,
    inodes: SpinLock<BTreeMap<u64, Known>>,
    /// What the page cache may take.
    pub(super) space: Space,
    /// A change that had been answered was lost with a server; said to the next `fsync` or `sync`.
    lost: AtomicBool,
    /// Counts changes of attributes: an answer that is older than the last change is not believed.
    version: AtomicU64,
    /// Requests that the server does not know, by number.
    unknown: AtomicU64,
    /// Open files that are polled, by their number.
    polled: SpinLock<BTreeMap<u64, Weak<FuseFile>>>,
}

impl FuseFs {
    pub(super) fn new(options: Options) -> FuseFs {
        FuseFs {
            options,
            terms: Once::new(),
            refused: AtomicBool::new(false),
            started: WaitQueue::new(),
            inodes: SpinLock::new(BTreeMap::new()),
            space: Space::default(),
            lost: AtomicBool::new(false),
            version: AtomicU64::new(1),
            unknown: AtomicU64::new(0),
            polled: SpinLock::new(BTreeMap::new()),
        }
    }

    /// Whether the server has answered `INIT`.
    pub fn is_started(&self) -> bool {
        self.terms.get().is_some()
    }

    /// What is offered. Who may mount a resumable file system is believed that nobody else changes it.
    fn offered(&self) -> InitFlags {
        if self.options.resumable { OFFERED | InitFlags::RESUMABLE | InitFlags::SOLE_WRITER } else { OFFERED }
    }

    fn is_resumable(&self) -> bool {
        self.terms.get().is_some_and(|terms| terms.flags.contains(InitFlags::RESUMABLE))
    }

    /// The present version of attributes.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// A new version.
    pub fn next_version(&self) -> u64 {
        self.version.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Whether the server said that it does not know `opcode`.
    pub fn lacks(&self, opcode: Opcode) -> bool {
        self.unknown.load(Ordering::Relaxed) & 1 << (opcode as u32 & 63) != 0
    }

    /// It just said so.
    pub fn set_lacks(&self, opcode: Opcode) {
        self.unknown.fetch_or(1 << (opcode as u32 & 63), Ordering::Relaxed);
    }

    /// The inode that is known as `id`.
    pub fn inode(&self, id: u64) -> Option<Arc<Inode>> {
        self.inodes.lock().get(&id).and_then(|known| known.inode.upgrade())
    }

    /// Calls `f` for each inode that is known and has a page cache, without locks.
    pub fn for_each_cached(&self, mut f: impl FnMut(&Inode, &Node, &MemoryObject)) {
        let inodes: Vec<Arc<Inode>> = self.inodes.lock().values().filter_map(|known| known.inode.upgrade()).collect();
        for inode in inodes {
            if let Some(node) = inode.ops_as::<Node>()
                && let Some(object) = node.cached()
            {
                f(&inode, node, object);
            }
        }
    }

    /// Writes what is dirty to the server. What cannot be written stays dirty.
    fn write_back(&self) {
        self.for_each_cached(|_, _, object| {
            let _ = object.sync(0, u64::MAX);
        });
    }

    /// Makes `inode` known, unless `keep` likes the one that is known as `id`; the one that is known then.
    pub fn enter(
        &self,
        id: u64,
        inode: &Arc<Inode>,
        lookups: &Arc<AtomicU64>,
        keep: impl FnOnce(&Inode) -> bool,
    ) -> Arc<Inode> {
        let mut inodes = self.inodes.lock();
        let known = inodes.get(&id).and_then(|known| known.inode.upgrade());
        let mut replaced = None;
        let chosen = match &known {
            Some(known) if keep(known) => known.clone(),
            _ => {
                let new = Known { inode: Arc::downgrade(inode), lookups: lookups.clone() };
                replaced = inodes.insert(id, new);
                inode.clone()
            }
        };
        // Dropped without the lock: the last reference of an inode takes it.
        drop(inodes);
        drop((known, replaced));
        chosen
    }

    /// `inode` is going: its `count` look-ups are given back.
    pub fn leave(&self, id: u64, inode: &Inode, connection: &Connection, count: u64) {
        let gone = {
            let mut inodes = self.inodes.lock();
            // With the lock: a successor of the server counts the inode, or gets the message.
            if count > 0 {
                // An error means that the server is gone, and what it knew with it.
                let _ = connection.post_quietly(Message::new(Opcode::Forget, id).with(&ForgetIn { nlookup: count }));
            }
            let is_it = inodes.get(&id).is_some_and(|known| core::ptr::eq(known.inode.as_ptr(), inode));
            is_it.then(|| inodes.remove(&id))
        };
        drop(gone);
        if count > 0 {
            connection.wake_posted();
        }
    }

    /// What a successor of the server must know: inodes with their look-ups. What is on its way of either is in it. An
    /// answer that is being taken at this moment may count twice, which keeps an inode longer than need be.
    fn live(&self, connection: &Connection) -> Result<Vec<Live>> {
        let (live, forgets) = {
            let inodes = self.inodes.lock();
            let (unclaimed, forgets) = connection.take_over()?;
            let mut live: BTreeMap<u64, u64> =
                inodes.iter().map(|(id, known)| (*id, known.lookups.load(Ordering::Acquire))).collect();
            for node in unclaimed {
                *live.entry(node).or_default() += 1;
            }
            (live, forgets)
        };
        drop(forgets);
        let live = live.into_iter().filter(|(_, lookups)| *lookups > 0);
        Ok(live.map(|(node, lookups)| Live { node, lookups }).collect())
    }

    /// Whether answered changes were lost since the last time that this was asked.
    pub fn take_lost(&self) -> Result {
        if self.lost.load(Ordering::Relaxed) && self.lost.swap(false, Ordering::AcqRel) {
            Err(Errno::EIO)
        } else {
            Ok(())
        }
    }

    /// Registers a file for poll notifications.
    pub fn watch(&self, number: u64, file: Weak<FuseFile>) {
        self.polled.lock().insert(number, file);
    }

    /// Ends that.
    pub fn unwatch(&self, number: u64) {
        self.polled.lock().remove(&number);
    }

    fn wake_polled(&self, number: Option<u64>) -> Result {
        let files: Vec<Arc<FuseFile>> = {
            let polled = self.polled.lock();
            let wanted = polled.iter().filter(|(key, _)| number.is_none_or(|number| number == **key));
            wanted.filter_map(|(_, file)| file.upgrade()).collect()
        };
        // Linux says nothing about a number that it does not know: the file may just have been closed.
        for file in files {
            file.wake();
        }
        Ok(())
    }
}

/// A mount's way to its server.
#[derive(Clone)]
pub struct Client {
    /// The queue.
    pub connection: Arc<Connection>,
    /// The mount's state.
    pub fs: Arc<FuseFs>,
}

impl Client {
    /// Sends `INIT`.
    ///
    /// # Errors
    /// `ENOTCONN` when the descriptor was closed already.
    pub fn begin(&self) -> Result {
        let offered = self.fs.offered();
        let flags = offered.bits();
        let body = InitIn {
            major: KERNEL_VERSION,
            minor: KERNEL_MINOR_VERSION,
            max_readahead: (PAGES_DEFAULT * ursa_hal::PAGE_SIZE) as u32,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            ..InitIn::default()
        };
        let fs = self.fs.clone();
        let hook = Box::new(move |connection: &Arc<Connection>, outcome: &Result<Vec<u8>>| {
            match outcome.as_ref().ok().and_then(|body| Terms::of(body, fs.options.max_read, offered)) {
                Some(terms) => {
                    if terms.flags.contains(InitFlags::RESUMABLE) {
                        connection.set_retains();
                    }
                    connection.set_max_write(terms.max_write as u32);
                    fs.terms.call_once(|| terms);
                }
                None => {
                    fs.refused.store(true, Ordering::Release);
                    connection.abort();
                }
            }
            fs.started.wake_all();
        });
        let reply = ReplySize { min: 8, max: size_of::<InitOut>() };
        let options = CallOptions { hook: Some(hook), ..CallOptions::new(reply) };
        self.connection.send(Message::new(Opcode::Init, 0).with(&body), options)
    }

    /// What was agreed on; waits for it.
    ///
    /// # Errors
    /// `ENOTCONN`, `ECONNREFUSED`, `EINTR` for a thread that is to die.
    pub fn terms(&self) -> Result<Terms> {
        if let Some(terms) = self.fs.terms.get() {
            return Ok(*terms);
        }
        self.fs.started.wait_killable(|| match self.fs.terms.get() {
            Some(terms) => Some(Ok(*terms)),
            None if self.connection.is_aborted() => Some(Err(self.connection.gone())),
            None => None,
        })?
    }

    /// What both can do; nothing before that is known.
    pub fn flags(&self) -> InitFlags {
        self.fs.terms.get().map_or(InitFlags::empty(), |terms| terms.flags)
    }

    /// Whether nothing changes but by requests of this mount (`SOLE_WRITER`).
    pub fn is_sole_writer(&self) -> bool {
        self.flags().contains(InitFlags::SOLE_WRITER)
    }

    /// Until when an answer holds. Never 0 (not even for this use); `u64::MAX` (for ever) where nobody else changes anything.
    pub fn deadline(&self, sec: u64, nsec: u32) -> u64 {
        if sec == 0 && nsec == 0 {
            return 1;
        }
        if self.is_sole_writer() {
            return u64::MAX;
        }
        let span = sec.saturating_mul(1_000_000_000).saturating_add(u64::from(nsec.min(999_999_999)));
        ursa_hal::time::monotonic_ns().saturating_add(span).min(u64::MAX - 1)
    }

    /// Sets aside room for `pages` that are going to be written into the page cache. `Some`: there may be none, and so many are
    /// to be written through to the server at a time.
    ///
    /// # Errors
    /// `EINTR`; `ENOTCONN` and the like when the server is gone.
    pub fn reserve(&self, pages: u64) -> Result<Option<u64>> {
        let space = &self.fs.space;
        if space.take(pages) {
            return Ok(None);
        }
        loop {
            let message = || Message::new(Opcode::Statfs, ROOT_ID);
            let stat = match self.try_call(Opcode::Statfs, ReplySize::of::<StatfsOut>(), message)? {
                Some(reply) => reply.read::<StatfsOut>()?.0.st,
                None => Kstatfs::default(),
            };
            match space.count(&stat, writeback::dirty_pages(), pages) {
                Ok(()) => return Ok(None),
                Err(step) if !space.begin_scarcity() => return Ok(Some(step)),
                // What is in the cache already comes before what goes past it.
                Err(_) => self.fs.write_back(),
            }
        }
    }

    /// Whether written data stay in the page cache, and sizes and times are the kernel's to know (`WRITEBACK_CACHE`).
    pub fn writes_back(&self) -> bool {
        self.flags().contains(InitFlags::WRITEBACK_CACHE)
    }

    /// Asks and waits.
    ///
    /// # Errors
    /// What the server answers; `ENOTCONN` when it is gone; `EINTR`.
    pub fn call(&self, message: Message, reply: ReplySize) -> Result<Reply> {
        self.call_with(message, CallOptions::new(reply))
    }

    /// As [`Client::call`].
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn call_with(&self, message: Message, options: CallOptions<'_>) -> Result<Reply> {
        self.terms()?;
        self.connection.call(message, options).map_err(|error| match error {
            // Restarting is for the kernel to decide.
            error if error.raw() >= 512 => Errno::EINTR,
            error => error,
        })
    }

    /// As [`Client::call`] for a request that servers may not know. `None`: this one does not.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn try_call(
        &self,
        opcode: Opcode,
        reply: ReplySize,
        message: impl FnOnce() -> Message,
    ) -> Result<Option<Reply>> {
        if self.fs.lacks(opcode) {
            return Ok(None);
        }
        match self.call(message(), reply) {
            Err(Errno::ENOSYS) => {
                self.fs.set_lacks(opcode);
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// Whether the running thread may use the mount at all.
    ///
    /// # Errors
    /// `EACCES`.
    pub fn check_allowed(&self) -> Result {
        let options = &self.fs.options;
        if options.allow_other {
            return Ok(());
        }
        let Some(thread) = try_current() else { return Ok(()) };
        // A server may trace and stop whom it serves; a program with set-ID must not become its prey.
        let allowed = thread.with_cred(|cred| {
            [cred.uid, cred.euid, cred.suid].iter().all(|uid| *uid == options.user_id)
                && [cred.gid, cred.egid, cred.sgid].iter().all(|gid| *gid == options.group_id)
        });
        if allowed { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// Whether a write leaves set-ID bits alone.
    pub fn keeps_set_id() -> bool {
        try_current().is_none_or(|thread| thread.with_cred(|cred| cred.has_cap(Cap::Fsetid)))
    }
}

/// The connection's owner.
pub struct Mounted(pub Arc<FuseFs>);

/// Writes as many of `entries` as there is room for; how many there are.
fn list<T: IntoBytes + Immutable>(at: u64, entries: &[T]) -> Result<i64> {
    let room = UserPtr::<abi::Room>::new(at).read()?;
    let count = entries.len().min(usize::try_from(room.count).unwrap_or(usize::MAX));
    user::write_bytes(UserAddr::new(room.at), entries[..count].as_bytes())?;
    Ok(entries.len() as i64)
}

/// Splits a notification into its structure and the name that follows, which ends with a NUL.
fn named<T: FromBytes>(body: &[u8], len: impl FnOnce(&T) -> u32) -> Result<(T, &[u8])> {
    let (out, rest) = T::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
    let len = len(&out) as usize;
    if len > fuse_abi::NAME_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    match rest.split_last() {
        Some((0, name)) if name.len() == len && len > 0 => Ok((out, name)),
        _ => Err(Errno::EINVAL),
    }
}

impl Mounted {
    fn invalidate_inode(&self, out: &NotifyInvalInodeOut) -> Result {
        let inode = self.0.inode(out.ino).ok_or(Errno::ENOENT)?;
        let node = inode.ops_as::<Node>().ok_or(Errno::EIO)?;
        node.call_back(out.off, out.len);
        Ok(())
    }

    fn invalidate_entry(&self, parent: u64, name: &[u8], gone: Option<u64>) -> Result {
        let dir = self.0.inode(parent).ok_or(Errno::ENOENT)?;
        if !dir.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        if let Some(node) = dir.ops_as::<Node>() {
            node.expire();
        }
        let dentry = dir.alias.lock().upgrade().ok_or(Errno::ENOENT)?;
        let hash = hash_name(name);
        let child = dentry.child(hash, name).ok_or(Errno::ENOENT)?;
        // Used again only after the server was asked: `1` is long past.
        child.set_valid_until(1);
        if let Some(inode) = child.inode()
            && let Some(node) = inode.ops_as::<Node>()
        {
            if gone.is_some_and(|id| id != node.id()) {
                return Err(Errno::ENOENT);
            }
            node.expire();
        }
        Ok(())
    }
}

impl Owner for Mounted {
    fn gone(&self) -> Errno {
        if self.0.is_resumable() {
            return Errno::EIO;
        }
        if self.0.refused.load(Ordering::Acquire) { Errno::ECONNREFUSED } else { Errno::ENOTCONN }
    }

    fn cut_off(&self) -> Errno {
        if self.0.is_resumable() { Errno::EIO } else { Errno::ECONNABORTED }
    }

    fn notify(&self, _connection: &Arc<Connection>, code: NotifyCode, body: &[u8]) -> Result {
        match code {
            NotifyCode::Poll => {
                let out = NotifyPollWakeupOut::read_from_bytes(body).map_err(|_| Errno::EINVAL)?;
                self.0.wake_polled(Some(out.kh))
            }
            NotifyCode::InvalInode => {
                let out = NotifyInvalInodeOut::read_from_bytes(body).map_err(|_| Errno::EINVAL)?;
                self.invalidate_inode(&out)
            }
            NotifyCode::InvalEntry => {
                let (out, name) = named(body, |out: &NotifyInvalEntryOut| out.namelen)?;
                self.invalidate_entry(out.parent, name, None)
            }
            NotifyCode::Delete => {
                let (out, name) = named(body, |out: &NotifyDeleteOut| out.namelen)?;
                self.invalidate_entry(out.parent, name, Some(out.child))
            }
            NotifyCode::Store | NotifyCode::Retrieve | NotifyCode::Resend => Err(Errno::EINVAL),
        }
    }

    fn ioctl(&self, connection: &Arc<Connection>, cmd: u32, arg: usize) -> Result<i64> {
        if !self.0.options.resumable {
            return Err(Errno::ENOTTY);
        }
        if connection.is_aborted() {
            return Err(Errno::ENODEV);
        }
        let at = arg as u64;
        match cmd {
            abi::SCHEME_IOC_COMMITTED => {
                let call = UserPtr::<abi::Committed>::new(at).read()?;
                let count = usize::try_from(call.count).ok().filter(|count| *count <= abi::ALSO_MAX);
                let also = user::read_slice(UserPtr::<abi::Done>::new(call.also), count.ok_or(Errno::E2BIG)?)?;
                let mut also: Vec<(u64, u64)> = also.iter().map(|done| (done.unique, done.result)).collect();
                also.sort_unstable();
                connection.committed(call.upto, &also).map(|()| 0)
            }
            abi::SCHEME_IOC_LIVE => list(at, &self.0.live(connection)?),
            abi::SCHEME_IOC_OUTSTANDING => list(at, &connection.outstanding()),
            abi::SCHEME_IOC_RESUME => Ok(connection.resend() as i64),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn replay_failed(&self, request: &Request, error: Errno) {
        // What the file that it was about has gone since changes nothing.
        if error != Errno::ESTALE {
            let (unique, opcode) = (request.unique(), request.opcode());
            error!("fuse: request {unique} ({opcode}) was answered by a server that ended, and fails now: {error}");
            self.0.lost.store(true, Ordering::Release);
        }
    }

    fn aborted(&self, connection: &Arc<Connection>) {
        if self.0.options.resumable {
            tree::forget(connection);
        }
        self.0.started.wake_all();
        let _ = self.0.wake_polled(None);
    }
}
