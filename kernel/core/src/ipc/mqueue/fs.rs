//! The file system `mqueue`: one flat directory of queues, the same wherever it is mounted.
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
use crate::process::current;
use crate::{Errno, Result};

/// `MQUEUE_MAGIC`
const MAGIC: u64 = 0x1980_0202;
/// The size that every queue shows.
pub const FILE_SIZE: u64 = 80;
const DIRENT_SIZE: u64 = 20;

/// `/proc/sys/fs/mqueue/queues_max`.
pub static QUEUES_MAX: AtomicU32 = AtomicU32::new(256);
/// `/proc/sys/fs/mqueue/msg_max`: messages that a queue may be made for.
pub static MSG_MAX: AtomicU32 = AtomicU32::new(10);
/// `/proc/sys/fs/mqueue/msgsize_max`: bytes of a message that a queue may be made for.
pub static MSGSIZE_MAX: AtomicU32 = AtomicU32::new(8192);
/// `/proc/sys/fs/mqueue/msg_default`.
pub static MSG_DEFAULT: AtomicU32 = AtomicU32::new(10);
/// `/proc/sys/fs/mqueue/msgsize_default`.
pub static MSGSIZE_DEFAULT: AtomicU32 = AtomicU32::new(8192);
static QUEUES: AtomicU32 = AtomicU32::new(0);

impl Limits {
    /// Those of a queue that is made without attributes.
    fn default_for_new() -> Limits {
        Limits {
            messages: MSG_DEFAULT.load(Relaxed).min(MSG_MAX.load(Relaxed)) as usize,
            size: MSGSIZE_DEFAULT.load(Relaxed).min(MSGSIZE_MAX.load(Relaxed)) as usize,
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
            (MSG_MAX.load(Relaxed).into(), MSGSIZE_MAX.load(Relaxed).into())
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

fn instance() -> &'static Arc<SuperBlock> {
    static INSTANCE: Once<Arc<SuperBlock>> = Once::new();
    INSTANCE.call_once(|| {
        let params = SuperBlockParams {
            fs_name: "mqueue",
            magic: MAGIC,
            attributes_expire: false,
            cache_negative: false,
            flags: SbFlags::empty(),
        };
        let sb = SuperBlock::new(params, Box::new(Super));
        let root = NewInode { mode: uapi::S_IFDIR | 0o1777, uid: 0, gid: 0, rdev: 0 };
        let inode = Inode::new(&sb, sb.next_ino(), &root, Box::new(Directory(SpinLock::new(Entries::default()))));
        sb.set_root(inode);
        sb
    })
}

/// The directory, on a mount that nobody sees.
///
/// # Errors
/// `ENODEV`, which the kernel's own mount keeps from happening.
pub(super) fn root() -> Result<Path> {
    static MOUNT: Once<Result<Arc<Mount>>> = Once::new();
    let mount = MOUNT.call_once(|| Mount::of(instance().clone(), b"mqueue", MountFlags::empty()));
    mount.as_ref().map(Mount::root_path).map_err(|error| *error)
}

impl FileSystem for MqueueFs {
    fn name(&self) -> &'static str {
        "mqueue"
    }

    fn mount(&self, _source: &[u8], _flags: SbFlags, _data: &[u8]) -> Result<Arc<SuperBlock>> {
        // The kernel's own mount keeps it alive when a program's goes.
        root()?;
        Ok(instance().clone())
    }
}

/// The directory of queues.
struct Directory(SpinLock<Entries>);

/// A queue's inode.
struct Node {
    queue: Arc<Queue>,
    _count: Counted,
}

/// One of [`QUEUES_MAX`].
struct Counted;

impl Counted {
    fn claim() -> Result<Counted> {
        let room = |count: u32| (count < QUEUES_MAX.load(Relaxed) || is_privileged()).then_some(count + 1);
        QUEUES.fetch_update(Relaxed, Relaxed, room).map(|_| Counted).map_err(|_| Errno::ENOSPC)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        QUEUES.fetch_sub(1, Relaxed);
    }
}

impl Directory {
    fn add(&self, dir: &Arc<Inode>, name: &[u8], new: &NewInode, limits: Limits) -> Result<Entry> {
        let count = Counted::claim()?;
        let queue = Queue::new(limits)?;
        let inode = Inode::new(&dir.sb, dir.sb.next_ino(), new, Box::new(Node { queue, _count: count }));
        self.0.lock().insert(name, inode.clone());
        dir.touch_modified();
        Ok(Entry::stable(inode))
    }
}

impl InodeOps for Directory {
    fn lookup(&self, _dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        self.0.lock().get(name).cloned().map(Entry::stable).ok_or(Errno::ENOENT)
    }

    fn create(&self, dir: &Arc<Inode>, name: &[u8], new: &NewInode) -> Result<Entry> {
        if new.mode & uapi::S_IFMT != uapi::S_IFREG {
            return Err(Errno::EPERM);
        }
        self.add(dir, name, new, Limits::default_for_new())
    }

    fn unlink(&self, dir: &Arc<Inode>, name: &[u8], inode: &Arc<Inode>) -> Result {
        let removed = self.0.lock().remove(name);
        dir.touch_modified();
        inode.add_nlink(-1);
        inode.touch_changed();
        drop(removed);
        Ok(())
    }

    fn size(&self, _inode: &Inode) -> (u64, u64) {
        ((self.0.lock().len() as u64 + 2) * DIRENT_SIZE, 0)
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
    directory.0.lock().list(pos, sink);
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
                let limits = limits.unwrap_or_else(Limits::default_for_new);
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
