//! [`Node`]: an inode of a FUSE file system.
//!
//! Every answer that names an inode counts as a look-up, and the server keeps the inode until it is told with `FORGET` how
//! many were dropped: when the kernel's inode goes. One that has become another file under the same number (its kind or
//! generation changed) is left to whoever uses it, marked bad.
//!
//! References: Linux `fs/fuse/inode.c` (`fuse_iget`, `fuse_change_attributes`), `fs/fuse/dir.c`.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use fuse_abi::{
    AccessIn, Attr as WireAttr, AttrOut, CreateIn, EntryOut, ForgetIn, GetattrIn, GetxattrIn, InitFlags, LinkIn,
    MkdirIn, MknodIn, Opcode, OpenFlags, OpenIn, OpenOut, ROOT_ID, Rename2In, RenameIn, SetattrIn, SetattrValid,
};
use linux_uapi::raw::general as uapi;
use linux_uapi::zerocopy::FromBytes;
use ursa_hal::sync::{Once, SpinLock};

use super::client::Client;
use super::dir::{FuseDir, Listing};
use super::file::FuseFile;
use super::handle::{Handle, Opening, Shared, open_out};
use super::names::Names;
use crate::fs::FileOps;
use crate::fs::inode::{
    Attr, Entry, FileKind, Inode, InodeOps, LinkTarget, NewInode, RenameSide, SetAttr, SuperBlock, Time,
};
use crate::fs::permission::{MAY_ACCESS, MAY_EXEC};
use crate::mm::{MAX_OBJECT_SIZE, MemoryObject};
use crate::process::{Pid, current, try_current};
use crate::scheme::{CallOptions, Message, Reply, ReplySize};
use crate::wait::Mutex;
use crate::{Errno, Result};

/// The largest extended attribute, and list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const XATTR_MAX: usize = 65536;
/// The longest target of a symbolic link.
const LINK_MAX: usize = 4095;

/// A file that `CREATE` opened, for the thread that made it.
struct Pending {
    thread: Pid,
    handle: Arc<Handle>,
}

/// See the module documentation.
pub struct Node {
    shared: Arc<Shared>,
    generation: u64,
    lookups: Arc<AtomicU64>,
    /// It became another file.
    bad: AtomicBool,
    /// The version of the attributes; see [`FuseFs::version`](super::client::FuseFs::version).
    version: AtomicU64,
    /// Orders changes of attributes; what the server last said when the contents changed.
    attributes: Mutex<Time>,
    /// What `stat` reports as the number.
    ino: AtomicU64,
    block_size: AtomicU32,
    object: Once<Arc<MemoryObject>>,
    /// The kernel's times are newer than the server's.
    times_changed: AtomicBool,
    /// Until when (monotonic nanoseconds) mode and owner hold, which changes of contents leave alone.
    mode_until: AtomicU64,
    /// Counts changes of a directory's names and of extended attributes: what was asked for before is not kept.
    changes: AtomicU64,
    /// Of a directory: all its names, if they are known.
    listing: SpinLock<Option<Arc<Listing>>>,
    /// Of a directory: the names that it may have, if they are known.
    names: Names,
    /// Of a directory: names were looked up one by one since it was listed.
    looked_up: AtomicBool,
    /// Of a symbolic link: where it leads, if that is known.
    link: SpinLock<Option<Arc<[u8]>>>,
    /// There are no extended attributes.
    no_xattrs: AtomicBool,
    pending: SpinLock<Option<Pending>>,
}

/// Whether what holds until then does.
fn holds(until: &AtomicU64) -> bool {
    let until = until.load(Ordering::Relaxed);
    until == u64::MAX || until > ursa_hal::time::monotonic_ns()
}

/// The kind that attributes say, if they can be.
fn kind_of(attr: &WireAttr) -> Option<FileKind> {
    FileKind::from_mode(attr.mode).filter(|_| attr.size <= MAX_OBJECT_SIZE)
}

/// A name as requests carry it.
fn named(message: Message, name: &[u8]) -> Message {
    message.with_bytes(name).with_bytes(&[0])
}

/// The node of an inode of this file system.
fn node_of(inode: &Inode) -> Result<&Node> {
    inode.ops_as::<Node>().ok_or(Errno::EIO)
}

impl Node {
    fn new(client: &Client, id: u64, generation: u64) -> Node {
        Node {
            shared: Shared::new(client, id),
            generation,
            lookups: Arc::default(),
            bad: AtomicBool::new(false),
            version: AtomicU64::new(0),
            attributes: Mutex::new(Time::default()),
            ino: AtomicU64::new(id),
            block_size: AtomicU32::new(4096),
            object: Once::new(),
            times_changed: AtomicBool::new(false),
            mode_until: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            listing: SpinLock::new(None),
            names: Names::unknown(),
            looked_up: AtomicBool::new(false),
            link: SpinLock::new(None),
            no_xattrs: AtomicBool::new(false),
            pending: SpinLock::new(None),
        }
    }

    /// The root of a mount, of which nothing but the mode is known.
    pub fn root(client: &Client, sb: &Arc<SuperBlock>, mode: u32) -> Arc<Inode> {
        let new = NewInode { mode, uid: 0, gid: 0, rdev: 0 };
        let node = Node::new(client, ROOT_ID, 0);
        let lookups = node.lookups.clone();
        let inode = Inode::new(sb, ROOT_ID, &new, Box::new(node));
        client.fs.enter(ROOT_ID, &inode, &lookups, |_| false)
    }

    /// The server's number.
    pub fn id(&self) -> u64 {
        self.shared.node
    }

    /// The server.
    pub fn client(&self) -> &Client {
        &self.shared.client
    }

    /// The page cache, if anybody has opened the file.
    pub fn cached(&self) -> Option<&Arc<MemoryObject>> {
        self.object.get()
    }

    /// The page cache.
    pub fn object(&self, inode: &Inode) -> &Arc<MemoryObject> {
        self.object.call_once(|| MemoryObject::with_pager(self.shared.clone(), inode.size.load(Ordering::Acquire)))
    }

    /// Asks about this node.
    pub fn call(&self, message: Message, reply: ReplySize) -> Result<Reply> {
        self.check_bad()?;
        self.client().call(message, reply)
    }

    /// As [`Node::call`], with options.
    pub fn call_with(&self, message: Message, options: CallOptions<'_>) -> Result<Reply> {
        self.check_bad()?;
        self.client().call_with(message, options)
    }

    fn try_call(&self, opcode: Opcode, reply: ReplySize, message: impl FnOnce() -> Message) -> Result<Option<Reply>> {
        self.check_bad()?;
        self.client().try_call(opcode, reply, message)
    }

    fn check_bad(&self) -> Result {
        if self.bad.load(Ordering::Relaxed) { Err(Errno::EIO) } else { Ok(()) }
    }

    fn message(&self, opcode: Opcode) -> Message {
        Message::new(opcode, self.id())
    }

    // Attributes.

    /// Nothing that was said about the inode is to be believed any more, its data apart.
    pub fn expire(&self) {
        self.mode_until.store(0, Ordering::Relaxed);
        self.no_xattrs.store(false, Ordering::SeqCst);
        self.names.forget();
        self.names_changed();
    }

    /// Contents, names or links changed: all attributes but mode and owner are to be asked for.
    fn touched(&self) {
        // First the version: an answer that is being taken over finds it changed, or is expired here.
        self.version.store(self.client().fs.next_version(), Ordering::SeqCst);
        self.shared.valid_until.store(0, Ordering::SeqCst);
    }

    /// Names in the directory changed.
    fn names_changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        let old = self.listing.lock().take();
        drop(old);
        self.touched();
    }

    /// A number that is another one when names or extended attributes have changed.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// All names of the directory, if they are known.
    pub fn listing(&self) -> Option<Arc<Listing>> {
        self.listing.lock().clone()
    }

    /// Keeps all names of the directory as they were when it had changed so often; its lock is held.
    pub fn keep_listing(&self, changes: u64, listing: Arc<Listing>) {
        let old = {
            let mut kept = self.listing.lock();
            if self.changes() == changes { kept.replace(listing) } else { None }
        };
        drop(old);
    }

    /// Whether names were looked up one by one since this was last asked.
    pub fn take_looked_up(&self) -> bool {
        self.looked_up.swap(false, Ordering::Relaxed)
    }

    /// The server called attributes and (`offset` not negative) data back; `len` 0 or less: to the end.
    pub fn call_back(&self, offset: i64, len: i64) {
        self.version.store(self.client().fs.next_version(), Ordering::Release);
        self.expire();
        let link = self.link.lock().take();
        drop(link);
        if let Some(object) = self.cached()
            && let Ok(offset) = u64::try_from(offset)
        {
            let page = ursa_hal::PAGE_SIZE as u64;
            let end = if len > 0 { offset.saturating_add(len as u64).div_ceil(page) } else { u64::MAX };
            Self::drop_pages(object, offset / page, end);
        }
    }

    /// Takes pages out of the cache. Stores through mappings reach the server first.
    pub fn drop_pages(object: &MemoryObject, first: u64, end: u64) {
        if object.resident_pages() > 0 {
            // One that cannot be written stays, and stays dirty.
            let _ = object.sync(first, end);
            object.drop_clean(first, end);
        }
    }

    /// Takes over what the server says, unless the inode changed since the question was asked at `version`.
    fn believe(&self, inode: &Inode, attr: &WireAttr, valid: (u64, u32), version: u64) {
        let time = |sec: u64, nsec: u32| Time { sec: sec as i64, nsec: nsec.min(999_999_999) };
        let mtime = time(attr.mtime, attr.mtimensec);
        let stale = {
            let mut seen = self.attributes.lock();
            if self.version.load(Ordering::Acquire) > version {
                return;
            }
            let (first, changed) = (self.version.load(Ordering::Acquire) == 0, *seen != mtime);
            let mine = self.client().fs.next_version();
            self.version.store(mine, Ordering::Release);
            *seen = mtime;
            inode.set_mode(attr.mode);
            inode.set_owner(attr.uid, attr.gid);
            inode.set_nlink(attr.nlink);
            // With a write-back cache the server's size and times lag behind, once the file is in use.
            let ours = !first && self.is_ours(inode);
            inode.update_times(|times| {
                times.atime = time(attr.atime, attr.atimensec);
                if !ours {
                    times.mtime = mtime;
                    times.ctime = time(attr.ctime, attr.ctimensec);
                }
            });
            inode.blocks.store(attr.blocks, Ordering::Relaxed);
            self.ino.store(attr.ino, Ordering::Relaxed);
            self.block_size.store(if attr.blksize != 0 { attr.blksize } else { 4096 }, Ordering::Relaxed);
            let resized = !ours && self.resize(inode, attr.size);
            let until = self.client().deadline(valid.0, valid.1);
            self.mode_until.store(until, Ordering::Relaxed);
            self.shared.valid_until.store(until, Ordering::SeqCst);
            if self.version.load(Ordering::SeqCst) != mine {
                self.shared.valid_until.store(0, Ordering::SeqCst);
            }
            if changed && !first && inode.is_dir() && !self.client().is_sole_writer() {
                self.changes.fetch_add(1, Ordering::SeqCst);
                *self.listing.lock() = None;
            }
            !first && !ours && (changed || resized)
        };
        if stale
            && let Some(object) = self.cached()
            && self.client().terms().is_ok_and(|terms| terms.flags.contains(InitFlags::AUTO_INVAL_DATA))
        {
            Self::drop_pages(object, 0, u64::MAX);
        }
    }

    /// Sets the cached size; whether it was another. The caller holds `attributes`.
    fn resize(&self, inode: &Inode, size: u64) -> bool {
        let old = inode.size.swap(size, Ordering::AcqRel);
        if let Some(object) = self.cached()
            && object.size() != size
        {
            // The kind and the range allow it.
            let _ = object.set_size(size);
        }
        old != size
    }

    /// Whether size and times are the kernel's to know.
    fn is_ours(&self, inode: &Inode) -> bool {
        inode.kind == FileKind::Regular && self.client().writes_back()
    }

    /// The page cache has taken a write; the inode's lock is held.
    pub fn written(&self, inode: &Inode) {
        let _attributes = self.attributes.lock();
        self.version.store(self.client().fs.next_version(), Ordering::Release);
        if let Some(object) = self.cached() {
            inode.size.fetch_max(object.size(), Ordering::AcqRel);
        }
        inode.touch_modified();
        self.times_changed.store(true, Ordering::Release);
    }

    /// Tells the server the times of what was written, after the data.
    ///
    /// # Errors
    /// The server's; it is told again next time.
    pub fn flush_times(&self, inode: &Inode, handle: Option<u64>) -> Result {
        if !self.times_changed.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let times = inode.times();
        let mut valid = SetattrValid::MTIME | SetattrValid::CTIME;
        let mut body = SetattrIn {
            mtime: times.mtime.sec as u64,
            mtimensec: times.mtime.nsec,
            ctime: times.ctime.sec as u64,
            ctimensec: times.ctime.nsec,
            ..SetattrIn::default()
        };
        if let Some(fh) = handle {
            valid |= SetattrValid::FH;
            body.fh = fh;
        }
        body.valid = valid.bits();
        let told = self.call(self.message(Opcode::Setattr).with(&body), ReplySize::of::<AttrOut>());
        if told.is_err() {
            self.times_changed.store(true, Ordering::Release);
        }
        told.map(drop)
    }

    /// The server has taken a write up to `end`.
    pub fn grow(&self, inode: &Inode, end: u64) {
        let _attributes = self.attributes.lock();
        self.version.store(self.client().fs.next_version(), Ordering::Release);
        if end > inode.size.load(Ordering::Acquire) {
            self.resize(inode, end);
        }
        self.touched();
    }

    /// Asks for the attributes.
    fn getattr(&self, inode: &Inode) -> Result {
        let version = self.client().fs.version();
        let reply = self.call(self.message(Opcode::Getattr).with(&GetattrIn::default()), ReplySize::of::<AttrOut>())?;
        let (out, _) = reply.read::<AttrOut>()?;
        if kind_of(&out.attr) != Some(inode.kind) {
            self.bad.store(true, Ordering::Relaxed);
            return Err(Errno::EIO);
        }
        self.believe(inode, &out.attr, (out.attr_valid, out.attr_valid_nsec), version);
        Ok(())
    }

    /// Asks for the attributes if they have expired.
    ///
    /// # Errors
    /// What the server answers.
    pub fn renew(&self, inode: &Inode) -> Result {
        if holds(&self.shared.valid_until) { Ok(()) } else { self.getattr(inode) }
    }

    // Names.

    /// Gives `count` look-ups of `id` back.
    fn forget(client: &Client, id: u64, count: u64) {
        // An error means that the server is gone, and what it knew with it.
        let _ = client.connection.post(Message::new(Opcode::Forget, id).with(&ForgetIn { nlookup: count }));
    }

    /// Gives the look-up in an answer back that is of no use.
    pub fn refuse(&self, out: &EntryOut) {
        if out.nodeid != 0 {
            Self::forget(self.client(), out.nodeid, 1);
        }
    }

    /// The inode that an answer names; the look-up is counted.
    fn inode_of_entry(&self, sb: &Arc<SuperBlock>, out: &EntryOut, version: u64) -> Result<Arc<Inode>> {
        let (client, attr) = (self.client(), &out.attr);
        let kind = kind_of(attr).filter(|_| out.nodeid != 0 && out.nodeid != ROOT_ID);
        let Some(kind) = kind else {
            self.refuse(out);
            return Err(Errno::EIO);
        };
        let is_it = |inode: &Inode| {
            inode.kind == kind
                && inode.rdev == attr.rdev
                && node_of(inode)
                    .is_ok_and(|node| node.generation == out.generation && !node.bad.load(Ordering::Relaxed))
        };
        let known = client.fs.inode(out.nodeid);
        let inode = match known {
            Some(known) if is_it(&known) => known,
            other => {
                if let Some(node) = other.as_ref().and_then(|other| node_of(other).ok()) {
                    node.bad.store(true, Ordering::Relaxed);
                }
                let new = NewInode { mode: attr.mode, uid: attr.uid, gid: attr.gid, rdev: attr.rdev };
                let node = Box::new(Node::new(client, out.nodeid, out.generation));
                let lookups = node.lookups.clone();
                client.fs.enter(out.nodeid, &Inode::new(sb, out.nodeid, &new, node), &lookups, is_it)
            }
        };
        let node = node_of(&inode)?;
        node.lookups.fetch_add(1, Ordering::Relaxed);
        node.believe(&inode, attr, (out.attr_valid, out.attr_valid_nsec), version);
        Ok(inode)
    }

    /// The entry that an answer names in `dir`; the look-up is counted. `version`: of the attributes, before it was asked for.
    ///
    /// # Errors
    /// `EIO` for what cannot be, `ELOOP` for a directory in itself.
    pub fn entry(&self, dir: &Inode, out: &EntryOut, version: u64) -> Result<Entry> {
        let inode = self.inode_of_entry(&dir.sb, out, version)?;
        // A directory in itself: what locks parent before child would wait for itself.
        let above = inode.alias.lock().upgrade();
        let here = dir.alias.lock().upgrade();
        let inside = above.zip(here).is_some_and(|(above, here)| here.is_within(&above));
        if core::ptr::eq(&raw const *inode, dir) || inside {
            return Err(Errno::ELOOP);
        }
        Ok(Entry { inode: Some(inode), valid_until: self.client().deadline(out.entry_valid, out.entry_valid_nsec) })
    }

    /// Makes something of `kind` by a message that has its name.
    fn make(&self, dir: &Inode, message: Message, name: &[u8], kind: FileKind) -> Result<Entry> {
        let version = self.client().fs.version();
        self.names.add(name);
        let reply = self.call(message, ReplySize::of::<EntryOut>())?;
        self.made(dir, &reply.read::<EntryOut>()?.0, version, kind)
    }

    fn made(&self, dir: &Inode, out: &EntryOut, version: u64, kind: FileKind) -> Result<Entry> {
        let entry = self.entry(dir, out, version)?;
        self.names_changed();
        if entry.inode.as_ref().is_none_or(|inode| inode.kind != kind) {
            return Err(Errno::EIO);
        }
        Ok(entry)
    }

    /// A name of `inode` went.
    fn unlinked(inode: &Inode) {
        if inode.nlink() > 0 {
            inode.add_nlink(-1);
        }
        inode.touch_changed();
        if let Ok(node) = node_of(inode) {
            node.touched();
        }
    }

    /// Remembers that there are no extended attributes, unless something changed since `changes`.
    fn found_no_xattrs(&self, changes: u64) {
        if self.client().is_sole_writer() && self.changes() == changes {
            self.no_xattrs.store(true, Ordering::SeqCst);
            // Whoever sets one says so before and after.
            if self.changes() != changes {
                self.no_xattrs.store(false, Ordering::SeqCst);
            }
        }
    }

    fn list_xattrs(&self) -> Result<Vec<u8>> {
        let body = GetxattrIn { size: XATTR_MAX as u32, padding: 0 };
        let message = || self.message(Opcode::Listxattr).with(&body);
        let changes = self.changes();
        let names = self.xattr_call(Opcode::Listxattr, message, ReplySize::up_to(XATTR_MAX))?.body().to_vec();
        if names.is_empty() {
            self.found_no_xattrs(changes);
        }
        Ok(names)
    }

    fn xattr_call(&self, opcode: Opcode, message: impl FnOnce() -> Message, reply: ReplySize) -> Result<Reply> {
        self.client().check_allowed()?;
        self.try_call(opcode, reply, message)?.ok_or(Errno::EOPNOTSUPP)
    }

    /// Asks for the handle that `open` is about.
    fn open_handle(&self, inode: &Inode, flags: u32) -> Result<Arc<Handle>> {
        let mine = {
            let mut pending = self.pending.lock();
            let thread = try_current().map(|thread| thread.tid());
            if pending.as_ref().is_some_and(|pending| Some(pending.thread) == thread) { pending.take() } else { None }
        };
        if let Some(pending) = mine {
            return Ok(pending.handle);
        }
        let (opcode, release, optional) = match inode.kind {
            FileKind::Directory => (Opcode::Opendir, Opcode::Releasedir, InitFlags::NO_OPENDIR_SUPPORT),
            _ => (Opcode::Open, Opcode::Release, InitFlags::NO_OPEN_SUPPORT),
        };
        self.check_bad()?;
        let client = self.client();
        let flags = flags & !(uapi::O_CREAT | uapi::O_EXCL | uapi::O_NOCTTY | uapi::O_TRUNC);
        if client.fs.lacks(opcode) {
            return Ok(Handle::without(client, self.id(), flags));
        }
        let terms = client.terms()?;
        let opening = Opening::new(client, self.id(), flags);
        let options = opening.options(ReplySize::of::<OpenOut>(), release, open_out);
        match client.call_with(self.message(opcode).with(&OpenIn { flags, open_flags: 0 }), options) {
            Ok(_) => opening.take(),
            Err(Errno::ENOSYS) if terms.flags.contains(optional) => {
                client.fs.set_lacks(opcode);
                Ok(Handle::without(client, self.id(), flags))
            }
            Err(error) => Err(error),
        }
    }
}

impl InodeOps for Node {
    fn lookup(&self, dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        if self.names.lack(name) {
            self.client().check_allowed()?;
            return Ok(Entry { inode: None, valid_until: u64::MAX });
        }
        self.looked_up.store(true, Ordering::Relaxed);
        let version = self.client().fs.version();
        let reply = match self.call(named(self.message(Opcode::Lookup), name), ReplySize::of::<EntryOut>()) {
            // How long that holds was not said.
            Err(Errno::ENOENT) => return Ok(Entry { inode: None, valid_until: 0 }),
            other => other?,
        };
        let (out, _) = reply.read::<EntryOut>()?;
        if out.nodeid == 0 {
            let valid_until = self.client().deadline(out.entry_valid, out.entry_valid_nsec);
            return Ok(Entry { inode: None, valid_until });
        }
        self.entry(dir, &out, version)
    }

    fn create(&self, dir: &Arc<Inode>, name: &[u8], new: &NewInode) -> Result<Entry> {
        let kind = FileKind::from_mode(new.mode).ok_or(Errno::EINVAL)?;
        let umask = current().fs().umask();
        let message = if kind == FileKind::Directory {
            self.message(Opcode::Mkdir).with(&MkdirIn { mode: new.mode & 0o7777, umask })
        } else {
            let body = MknodIn { mode: new.mode, rdev: new.rdev, umask, padding: 0 };
            self.message(Opcode::Mknod).with(&body)
        };
        let entry = self.make(dir, named(message, name), name, kind)?;
        if kind == FileKind::Directory
            && self.client().is_sole_writer()
            && let Some(inode) = &entry.inode
        {
            node_of(inode)?.names.begin();
        }
        Ok(entry)
    }

    fn create_open(&self, dir: &Arc<Inode>, name: &[u8], new: &NewInode, flags: u32) -> Result<Entry> {
        let client = self.client();
        if client.fs.lacks(Opcode::Create) {
            return self.create(dir, name, new);
        }
        self.check_bad()?;
        let version = client.fs.version();
        let body =
            CreateIn { flags: flags & !uapi::O_NOCTTY, mode: new.mode, umask: current().fs().umask(), open_flags: 0 };
        let opening = Opening::new(client, 0, flags & !(uapi::O_CREAT | uapi::O_EXCL | uapi::O_NOCTTY | uapi::O_TRUNC));
        let reply = ReplySize {
            min: size_of::<EntryOut>() + size_of::<OpenOut>(),
            ..ReplySize::with_tail::<EntryOut>(size_of::<OpenOut>())
        };
        self.names.add(name);
        let options = opening.options(reply, Opcode::Release, |body, _| {
            let (entry, rest) = EntryOut::read_from_prefix(body).ok()?;
            open_out(rest, entry.nodeid)
        });
        let reply = match client.call_with(named(self.message(Opcode::Create).with(&body), name), options) {
            Err(Errno::ENOSYS) => {
                client.fs.set_lacks(Opcode::Create);
                return self.create(dir, name, new);
            }
            other => other?,
        };
        let handle = opening.take()?;
        let entry = self.made(dir, &reply.read::<EntryOut>()?.0, version, FileKind::Regular)?;
        if let Some(inode) = &entry.inode {
            let pending = Pending { thread: current().tid(), handle };
            let old = node_of(inode)?.pending.lock().replace(pending);
            drop(old);
        }
        Ok(entry)
    }

    fn symlink(&self, dir: &Arc<Inode>, name: &[u8], target: &[u8], _new: &NewInode) -> Result<Entry> {
        self.make(dir, named(named(self.message(Opcode::Symlink), name), target), name, FileKind::Symlink)
    }

    fn link(&self, dir: &Arc<Inode>, name: &[u8], inode: &Arc<Inode>) -> Result {
        let body = LinkIn { oldnodeid: node_of(inode)?.id() };
        // The server may have a number of its own for the new name: then the answer's inode goes at once.
        self.make(dir, named(self.message(Opcode::Link).with(&body), name), name, inode.kind)?;
        node_of(inode)?.touched();
        Ok(())
    }

    fn unlink(&self, _dir: &Arc<Inode>, name: &[u8], inode: &Arc<Inode>) -> Result {
        self.call(named(self.message(Opcode::Unlink), name), ReplySize::NONE)?;
        self.names.remove(name);
        self.names_changed();
        Self::unlinked(inode);
        Ok(())
    }

    fn rmdir(&self, _dir: &Arc<Inode>, name: &[u8], inode: &Arc<Inode>) -> Result {
        self.call(named(self.message(Opcode::Rmdir), name), ReplySize::NONE)?;
        self.names.remove(name);
        self.names_changed();
        inode.set_nlink(0);
        node_of(inode)?.expire();
        Ok(())
    }

    fn rename(&self, old: &RenameSide<'_>, new: &RenameSide<'_>, flags: u32) -> Result {
        let to = node_of(new.dir)?;
        let names = |message| named(named(message, old.name), new.name);
        to.names.add(new.name);
        if flags == 0 {
            let message = self.message(Opcode::Rename).with(&RenameIn { newdir: to.id() });
            self.call(names(message), ReplySize::NONE)?;
        } else {
            let body = Rename2In { newdir: to.id(), flags, padding: 0 };
            let message = || names(self.message(Opcode::Rename2).with(&body));
            self.try_call(Opcode::Rename2, ReplySize::NONE, message)?.ok_or(Errno::EINVAL)?;
        }
        // One that is replaced stays counted, which is no harm.
        if flags & uapi::RENAME_EXCHANGE == 0 {
            self.names.remove(old.name);
        }
        self.names_changed();
        to.names_changed();
        for inode in [old.inode, new.inode].into_iter().flatten() {
            // A directory that moves has another name above it.
            node_of(inode)?.names_changed();
        }
        if let Some(replaced) = new.inode
            && flags & uapi::RENAME_EXCHANGE == 0
        {
            if replaced.is_dir() {
                replaced.set_nlink(0);
            } else {
                Self::unlinked(replaced);
            }
        }
        Ok(())
    }

    fn readlink(&self, _inode: &Arc<Inode>) -> Result<LinkTarget> {
        self.client().check_allowed()?;
        if let Some(known) = &*self.link.lock() {
            return Ok(LinkTarget::Path(known.clone()));
        }
        let changes = self.changes();
        let reply = self.call(self.message(Opcode::Readlink), ReplySize::up_to(LINK_MAX))?;
        if reply.body().contains(&0) {
            return Err(Errno::EIO);
        }
        let target: Arc<[u8]> = Arc::from(reply.body());
        if self.client().flags().contains(InitFlags::CACHE_SYMLINKS) {
            let mut link = self.link.lock();
            if self.changes() == changes {
                *link = Some(target.clone());
            }
        }
        Ok(LinkTarget::Path(target))
    }

    fn refresh_mode(&self, inode: &Inode) -> Result {
        self.client().check_allowed()?;
        if holds(&self.mode_until) { Ok(()) } else { self.renew(inode) }
    }

    fn refresh(&self, inode: &Inode) -> Result {
        self.client().check_allowed()?;
        self.renew(inode)
    }

    fn fill_attr(&self, _inode: &Inode, attr: &mut Attr) {
        attr.ino = self.ino.load(Ordering::Relaxed);
        attr.blksize = self.block_size.load(Ordering::Relaxed);
        attr.btime = None;
    }

    fn setattr(&self, inode: &Arc<Inode>, change: &SetAttr) -> Result {
        self.client().check_allowed()?;
        let mut valid = SetattrValid::empty();
        let mut body = SetattrIn::default();
        let mut set = |flag, slot: &mut u32, value: Option<u32>| {
            if let Some(value) = value {
                valid |= flag;
                *slot = value;
            }
        };
        set(SetattrValid::MODE, &mut body.mode, change.mode.map(|mode| inode.kind as u32 | mode & 0o7777));
        set(SetattrValid::UID, &mut body.uid, change.uid);
        set(SetattrValid::GID, &mut body.gid, change.gid);
        if let Some(time) = change.atime {
            valid |= SetattrValid::ATIME;
            (body.atime, body.atimensec) = (time.sec as u64, time.nsec);
        }
        if let Some(time) = change.mtime {
            valid |= SetattrValid::MTIME;
            (body.mtime, body.mtimensec) = (time.sec as u64, time.nsec);
        }
        if let Some(size) = change.size {
            if inode.kind != FileKind::Regular {
                return Err(Errno::EINVAL);
            }
            valid |= SetattrValid::SIZE;
            body.size = size;
        }
        if valid.is_empty() {
            return Ok(());
        }
        // What is on its way beyond a new end would make the file longer again, and all that is written after this gives the file
        // another modification time. An error is fsync's to tell.
        let written_first = match change.size {
            _ if change.mtime.is_some() => Some(0),
            size => size.map(|size| size / ursa_hal::PAGE_SIZE as u64),
        };
        if let Some(first) = written_first
            && self.is_ours(inode)
            && let Some(object) = self.cached()
        {
            let _ = object.sync(first, u64::MAX);
        }
        body.valid = valid.bits();
        let reply = self.call(self.message(Opcode::Setattr).with(&body), ReplySize::of::<AttrOut>())?;
        let (out, _) = reply.read::<AttrOut>()?;
        if kind_of(&out.attr) != Some(inode.kind) {
            self.bad.store(true, Ordering::Relaxed);
            return Err(Errno::EIO);
        }
        // Answers to what was asked before this are older.
        let version = self.client().fs.next_version();
        self.version.store(version, Ordering::Release);
        self.believe(inode, &out.attr, (out.attr_valid, out.attr_valid_nsec), version);
        if self.is_ours(inode) {
            let _attributes = self.attributes.lock();
            if let Some(size) = change.size {
                self.resize(inode, size);
                inode.touch_modified();
            }
            if let Some(mtime) = change.mtime {
                inode.update_times(|times| times.mtime = mtime);
                self.times_changed.store(false, Ordering::Release);
            }
            inode.touch_changed();
        }
        Ok(())
    }

    fn permission(&self, inode: &Inode, mask: u32) -> Result {
        self.client().check_allowed()?;
        if self.client().fs.options.default_permissions {
            return Ok(());
        }
        if mask & MAY_ACCESS != 0 {
            let body = AccessIn { mask: mask & 7, padding: 0 };
            self.try_call(Opcode::Access, ReplySize::NONE, || self.message(Opcode::Access).with(&body))?;
        } else if mask & MAY_EXEC != 0 && inode.kind == FileKind::Regular {
            self.renew(inode)?;
            if inode.mode() & 0o111 == 0 {
                return Err(Errno::EACCES);
            }
        }
        Ok(())
    }

    fn open(&self, inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>> {
        let handle = self.open_handle(inode, flags)?;
        match inode.kind {
            FileKind::Directory => Ok(Arc::new(FuseDir::new(handle))),
            FileKind::Regular => {
                self.shared.add(&handle);
                if !handle.open.contains(OpenFlags::DIRECT_IO) {
                    let object = self.object(inode);
                    if !handle.open.contains(OpenFlags::KEEP_CACHE) {
                        Self::drop_pages(object, 0, u64::MAX);
                    }
                }
                Ok(FuseFile::new(self.client(), handle))
            }
            _ => Err(Errno::ENXIO),
        }
    }

    fn getxattr(&self, _inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
        // Names of the system's are not kept with the file, and may mean something without being there.
        let plain = name.starts_with(b"security.") || name.starts_with(b"user.");
        if plain && self.no_xattrs.load(Ordering::SeqCst) {
            self.client().check_allowed()?;
            return Err(Errno::ENODATA);
        }
        let body = GetxattrIn { size: XATTR_MAX as u32, padding: 0 };
        let message = || named(self.message(Opcode::Getxattr).with(&body), name);
        match self.xattr_call(Opcode::Getxattr, message, ReplySize::up_to(XATTR_MAX)) {
            Err(Errno::ENODATA) if self.client().is_sole_writer() => {
                // Most files have none at all, and every start of a program asks for one.
                let _ = self.list_xattrs();
                Err(Errno::ENODATA)
            }
            other => Ok(other?.body().to_vec()),
        }
    }

    fn setxattr(&self, _inode: &Inode, name: &[u8], value: &[u8], flags: u32) -> Result {
        // Without SETXATTR_EXT the structure ends after its second field.
        let message = || {
            let head = self.message(Opcode::Setxattr).with(&[value.len() as u32, flags]);
            named(head, name).with_bytes(value)
        };
        self.expire();
        let result = self.xattr_call(Opcode::Setxattr, message, ReplySize::NONE);
        self.expire();
        result.map(drop)
    }

    fn listxattr(&self, _inode: &Inode) -> Result<Vec<u8>> {
        if self.no_xattrs.load(Ordering::SeqCst) {
            self.client().check_allowed()?;
            return Ok(Vec::new());
        }
        let names = self.list_xattrs()?;
        // A list that does not end would run into what follows it at the caller.
        if names.last().is_some_and(|byte| *byte != 0) { Err(Errno::EIO) } else { Ok(names) }
    }

    fn removexattr(&self, _inode: &Inode, name: &[u8]) -> Result {
        let message = || named(self.message(Opcode::Removexattr), name);
        self.xattr_call(Opcode::Removexattr, message, ReplySize::NONE)?;
        self.expire();
        Ok(())
    }

    fn memory_object(&self, _inode: &Inode) -> Option<Arc<MemoryObject>> {
        self.cached().cloned()
    }

    fn evict(&self, inode: &Inode) {
        let client = self.client();
        client.fs.leave(self.id(), inode, &client.connection, self.lookups.load(Ordering::Relaxed));
    }
}
