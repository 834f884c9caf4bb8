//! The file system `mqueue`: one flat directory of queues for each IPC namespace, the same wherever it is mounted.
//!
//! References: mq_overview(7) ("Mounting the message queue filesystem"), Linux `ipc/mqueue.c`.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use linux_uapi::raw::general as uapi;
use ursa_hal::sync::{Once, SpinLock};

use super::{HARD_MESSAGES, HARD_SIZE, Limits, Queue, is_privileged};
use crate::fs::inode::{
    Attr, Entry, FileSystem, FsStat, NewInode, SbFlags, SuperBlock, SuperBlockParams, SuperOps, inode_of,
};
use crate::fs::mount::MountFlags;
use crate::fs::open::{OpenRequest, open_inode};
use crate::fs::path::lookup_child_locked;
use crate::fs::tmpfs::dir::Entries;
use crate::fs::{DirSink, File, FileOps, Inode, InodeOps, Listing, Mount, Path, dentry, namei, permission};
use crate::ipc::namespace;
use crate::process::current;
use crate::{Errno, Result};

/// `MQUEUE_MAGIC`
const MAGIC: u64 = 0x1980_0202;
/// The size that every queue shows.
pub const FILE_SIZE: u64 = 80;
const DIRENT_SIZE: u64 = 20;

/// `/proc/sys/fs/mqueue`, and how many queues there are.
pub struct Tunables {
    /// Queues that there may be.
    pub queues_max: AtomicU32,
    /// Messages that a queue may be made for.
    pub msg_max: AtomicU32,
    /// Bytes of a message that a queue may be made for.
    pub msgsize_max: AtomicU32,
    /// Messages of a queue that is made without attributes.
    pub msg_default: AtomicU32,
    /// Bytes of its messages.
    pub msgsize_default: AtomicU32,
    queues: AtomicU32,
}

/// The queues of an IPC namespace.
pub struct Space {
    /// The limits.
    pub tunables: Arc<Tunables>,
    /// The directory, on a mount that nobody sees and that keeps the file system when a program's goes.
    mount: Once<Result<Arc<Mount>>>,
}

impl Space {
    /// No queues.
    pub(in crate::ipc) fn new() -> Space {
        let number = AtomicU32::new;
        let tunables = Tunables {
            queues_max: number(256),
            msg_max: number(10),
            msgsize_max: number(8192),
            msg_default: number(10),
            msgsize_default: number(8192),
            queues: number(0),
        };
        Space { tunables: Arc::new(tunables), mount: Once::new() }
    }

    /// The directory.
    ///
    /// # Errors
    /// `ENODEV`, which the mount keeps from happening.
    fn root(&self) -> Result<Path> {
        let mount = self.mount.call_once(|| Mount::of(instance(&self.tunables), b"mqueue", MountFlags::empty()));
        mount.as_ref().map(Mount::root_path).map_err(|error| *error)
    }
}

impl Limits {
    /// Those of a queue that is made without attributes.
    fn default_for_new(of: &Tunables) -> Limits {
        Limits {
            messages: of.msg_default.load(Relaxed).min(of.msg_max.load(Relaxed)) as usize,
            size: of.msgsize_default.load(Relaxed).min(of.msgsize_max.load(Relaxed)) as usize,
        }
    }

    /// Checks what a program asked for.
    ///
    /// # Errors
    /// `EINVAL`.
    pub(super) fn checked(messages: i64, size: i64) -> Result<Limits> {
        let (most, longest) = if is_privileged() {
            (HARD_MESSAGES, HARD_SIZE)
        } else {
            let of = namespace::current().mqueue.tunables.clone();
            (of.msg_max.load(Relaxed).into(), of.msgsize_max.load(Relaxed).into())
        };
        if !(1..=most).contains(&messages) || !(1..=longest).contains(&size) {
            return Err(Errno::EINVAL);
        }
        Ok(Limits { messages: messages as usize, size: size as usize })
    }
}

/// The type `mqueue`.
pub struct MqueueFs;

struct Super;

impl SuperOps for Super {
    fn statfs(&self, _sb: &SuperBlock) -> Result<FsStat> {
        Ok(FsStat { magic: MAGIC, block_size: 4096, name_max: 255, ..FsStat::default() })
    }
}

fn instance(tunables: &Arc<Tunables>) -> Arc<SuperBlock> {
    let params = SuperBlockParams {
        fs_name: "mqueue",
        magic: MAGIC,
        attributes_expire: false,
        cache_negative: false,
        flags: SbFlags::empty(),
    };
    let sb = SuperBlock::new(params, Box::new(Super));
    let root = NewInode { mode: uapi::S_IFDIR | 0o1777, uid: 0, gid: 0, rdev: 0 };
    let directory = Directory { entries: SpinLock::new(Entries::default()), tunables: tunables.clone() };
    let inode = Inode::new(&sb, sb.next_ino(), &root, Box::new(directory));
    sb.set_root(inode);
    sb
}

/// The directory of the calling process's namespace.
fn root() -> Result<Path> {
    namespace::current().mqueue.root()
}

impl FileSystem for MqueueFs {
    fn name(&self) -> &'static str {
        "mqueue"
    }

    fn mount(&self, _source: &[u8], _flags: SbFlags, _data: &[u8]) -> Result<Arc<SuperBlock>> {
        Ok(root()?.mount.sb.clone())
    }
}

/// The directory of queues.
struct Directory {
    entries: SpinLock<Entries>,
    tunables: Arc<Tunables>,
}

/// A queue's inode.
struct Node {
    queue: Arc<Queue>,
    _count: Counted,
}

/// One of [`Tunables::queues_max`].
struct Counted(Arc<Tunables>);

impl Counted {
    fn claim(of: &Arc<Tunables>) -> Result<Counted> {
        let room = |count: u32| (count < of.queues_max.load(Relaxed) || is_privileged()).then_some(count + 1);
        of.queues.fetch_update(Relaxed, Relaxed, room).map(|_| Counted(of.clone())).map_err(|_| Errno::ENOSPC)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.queues.fetch_sub(1, Relaxed);
    }
}

impl Directory {
    fn add(&self, dir: &Arc<Inode>, name: &[u8], new: &NewInode, limits: Limits) -> Result<Entry> {
        let count = Counted::claim(&self.tunables)?;
        let queue = Queue::new(limits)?;
        let inode = Inode::new(&dir.sb, dir.sb.next_ino(), new, Box::new(Node { queue, _count: count }));
        self.entries.lock().insert(name, inode.clone());
        dir.touch_modified();
        Ok(Entry::stable(inode))
    }
}

impl InodeOps for Directory {
    fn lookup(&self, _dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        self.entries.lock().get(name).cloned().map(Entry::stable).ok_or(Errno::ENOENT)
    }

    fn create(&self, dir: &Arc<Inode>, name: &[u8], new: &NewInode) -> Result<Entry> {
        if new.mode & uapi::S_IFMT != uapi::S_IFREG {
            return Err(Errno::EPERM);
        }
        self.add(dir, name, new, Limits::default_for_new(&self.tunables))
    }

    fn unlink(&self, dir: &Arc<Inode>, name: &[u8], inode: &Arc<Inode>) -> Result {
        let removed = self.entries.lock().remove(name);
        dir.touch_modified();
        inode.add_nlink(-1);
        inode.touch_changed();
        drop(removed);
        Ok(())
    }

    fn size(&self, _inode: &Inode) -> (u64, u64) {
        ((self.entries.lock().len() as u64 + 2) * DIRENT_SIZE, 0)
    }

    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        static OPEN: Once<Arc<dyn FileOps>> = Once::new();
        Ok(OPEN.call_once(|| Arc::new(Listing::syncing(list))).clone())
    }
}

impl InodeOps for Node {
    fn fill_attr(&self, _inode: &Inode, attr: &mut Attr) {
        attr.size = FILE_SIZE;
    }

    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(self.queue.clone())
    }
}

/// Lists an open directory.
fn list(f: &File, pos: &mut u64, sink: &mut dyn DirSink) -> Result {
    let directory = inode_of(f)?.ops_as::<Directory>().ok_or(Errno::ENOTDIR)?;
    // The sink writes to kernel memory, so the entries may be visited under their lock.
    directory.entries.lock().list(pos, sink);
    Ok(())
}

/// A name that is one component.
fn check_name(name: &[u8]) -> Result {
    if name.is_empty() || name.contains(&b'/') || name == b"." || name == b".." {
        return Err(Errno::EACCES);
    }
    if name.len() > 255 { Err(Errno::ENAMETOOLONG) } else { Ok(()) }
}

/// Opens the queue called `name`, or makes it with `limits` where the request says so.
///
/// # Errors
/// As mq_open(3).
pub(super) fn open(name: &[u8], request: &OpenRequest, limits: Option<Limits>) -> Result<Arc<File>> {
    check_name(name)?;
    let thread = current();
    let cred = thread.cred();
    let root = root()?;
    let dir = root.inode()?;
    let creates = request.flags & uapi::O_CREAT != 0;
    let (dentry, created) = {
        let _guard = dir.lock.write();
        match lookup_child_locked(&root.dentry, dir, dentry::hash_name(name), name)? {
            Some(_) if creates && request.flags & uapi::O_EXCL != 0 => return Err(Errno::EEXIST),
            Some(found) => (found, false),
            None if !creates => return Err(Errno::ENOENT),
            None => {
                permission::may_create(dir, &cred)?;
                let mode = uapi::S_IFREG | request.mode & 0o777;
                let new = namei::new_inode(dir, mode, 0, &cred);
                let directory = dir.ops_as::<Directory>().ok_or(Errno::EIO)?;
                let limits = limits.unwrap_or_else(|| Limits::default_for_new(&directory.tunables));
                let entry = directory.add(dir, name, &new, limits)?;
                (namei::cache_new(&root, name, entry)?, true)
            }
        }
    };
    let inode = dentry.inode().ok_or(Errno::ENOENT)?.clone();
    let at = Path { mount: root.mount.clone(), dentry };
    open_inode(at, inode, request, created, &cred)
}

/// Removes the name of a queue.
///
/// # Errors
/// As mq_unlink(3).
pub(super) fn unlink(name: &[u8]) -> Result {
    check_name(name)?;
    namei::unlink(&crate::fs::path::Start::At(root()?), name)
}
