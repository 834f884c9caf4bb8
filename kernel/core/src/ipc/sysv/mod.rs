//! System V IPC: shared memory, semaphores, message queues.
//!
//! [`Table`] numbers objects and finds them by key; [`Perm`] says who may. [`shm`], [`sem`] and [`msg`] are the kinds. Each IPC
//! namespace has tables of its own ([`Objects`]).
//!
//! Locking: a table's lock (sleeping) over which objects there are; an object's own locks inside. Neither is held across
//! copies to and from the program.
//!
//! References: svipc(7), `ipc/util.c`.

pub mod msg;
pub mod sem;
pub mod shm;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicI32, Ordering::Relaxed};

use linux_uapi::raw::general as uapi;
use linux_uapi::sysv::{IPC_64, IPC_CREAT, IPC_EXCL, IPC_PRIVATE, IpcPerm};

use super::namespace;
use crate::fs::procfs::{self, Text, node::open_text};
use crate::fs::{FileOps, Inode, InodeOps};
use crate::process::{Cap, capable, current};
use crate::time;
use crate::wait::Mutex;
use crate::{Errno, Result};

/// The identifier that the next object of a kind is to get, or -1: `/proc/sys/kernel/{shm,sem,msg}_next_id`, with which a
/// checkpoint is restored.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub enum NextId {
    /// Shared memory.
    Shm,
    /// Semaphores.
    Sem,
    /// Message queues.
    Msg,
}

impl NextId {
    /// The identifier in the calling process's namespace, or -1.
    pub fn get(self) -> i32 {
        namespace::current().sysv.next_ids[self as usize].load(Relaxed)
    }

    /// Asks for an identifier, or for none.
    ///
    /// # Errors
    /// `EINVAL` for a negative one.
    pub fn set(self, id: i32) -> Result {
        if id < 0 {
            return Err(Errno::EINVAL);
        }
        namespace::current().sysv.next_ids[self as usize].store(id, Relaxed);
        Ok(())
    }
}

type NextIds = Arc<[AtomicI32; 3]>;

/// The objects of an IPC namespace.
pub struct Objects {
    shm: Mutex<Table<shm::Segment>>,
    sem: Mutex<Table<sem::Set>>,
    msg: Mutex<Table<msg::Queue>>,
    next_ids: NextIds,
}

impl Objects {
    /// No objects.
    pub(super) fn new() -> Objects {
        let next_ids: NextIds = Arc::new([const { AtomicI32::new(-1) }; 3]);
        Objects {
            shm: Mutex::new(Table::new(shm::SHMMNI, NextId::Shm, &next_ids)),
            sem: Mutex::new(Table::new(sem::SEMMNI, NextId::Sem, &next_ids)),
            msg: Mutex::new(Table::new(msg::MSGMNI, NextId::Msg, &next_ids)),
            next_ids,
        }
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        sem::end(&self.sem);
    }
}

/// Objects of one kind (`SHMMNI`; `SEMMNI` is 32,000, which the numbers below allow too).
const INDEX_BITS: u32 = 15;
/// The bits of a mode that say who may.
const MODE: u32 = 0o777;

/// Whose an object is, and who may use it.
#[derive(Clone, Copy)]
struct Perm {
    key: i32,
    uid: u32,
    gid: u32,
    cuid: u32,
    cgid: u32,
    /// Permissions, and flags of the kind above them.
    mode: u32,
}

impl Perm {
    fn new(key: i32, flags: u32) -> Perm {
        let (uid, gid) = current().with_cred(|cred| (cred.euid, cred.egid));
        Perm { key, uid, gid, cuid: uid, cgid: gid, mode: flags & MODE }
    }

    /// Whether the caller may do what the bits of `wanted` (in any of the three places) say (`ipcperms`).
    fn check(&self, wanted: u32) -> Result {
        let wanted = (wanted >> 6 | wanted >> 3 | wanted) & 0o7;
        let granted = current().with_cred(|cred| {
            if cred.euid == self.uid || cred.euid == self.cuid {
                self.mode >> 6
            } else if [self.gid, self.cgid]
                .iter()
                .any(|&gid| cred.egid == gid || cred.groups.binary_search(&gid).is_ok())
            {
                self.mode >> 3
            } else {
                self.mode
            }
        });
        if wanted & !granted & 0o7 == 0 || capable(Cap::IpcOwner) { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// Whether the caller may change or remove the object.
    fn check_owner(&self) -> Result {
        let owner = current().with_cred(|cred| cred.euid == self.uid || cred.euid == self.cuid);
        if owner || capable(Cap::SysAdmin) { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// `IPC_SET`.
    fn set(&mut self, to: &IpcPerm) -> Result {
        if to.uid == u32::MAX || to.gid == u32::MAX {
            return Err(Errno::EINVAL);
        }
        (self.uid, self.gid) = (to.uid, to.gid);
        self.mode = self.mode & !MODE | to.mode & MODE;
        Ok(())
    }

    fn report(&self, id: i32) -> IpcPerm {
        IpcPerm {
            key: self.key,
            uid: self.uid,
            gid: self.gid,
            cuid: self.cuid,
            cgid: self.cgid,
            mode: self.mode,
            seq: (id >> INDEX_BITS) as u16,
            ..IpcPerm::default()
        }
    }
}

/// What a table holds.
trait Object {
    /// The key it was made with; `IPC_PRIVATE` once it is to go.
    fn perm(&self) -> Perm;
}

/// The objects of one kind, by identifier: a sequence number above an index, so that a number is not soon used again.
struct Table<T> {
    objects: BTreeMap<i32, Arc<T>>,
    last_index: i32,
    sequence: i32,
    limit: usize,
    next_id: NextId,
    next_ids: NextIds,
}

impl<T: Object> Table<T> {
    fn new(limit: usize, next_id: NextId, next_ids: &NextIds) -> Table<T> {
        Table { objects: BTreeMap::new(), last_index: -1, sequence: 0, limit, next_id, next_ids: next_ids.clone() }
    }

    fn get(&self, id: i32) -> Result<Arc<T>> {
        self.objects.get(&id).cloned().ok_or(Errno::EINVAL)
    }

    /// The object with the index `index`, whatever its sequence (`SHM_STAT`).
    fn at_index(&self, index: i32) -> Result<(i32, Arc<T>)> {
        let mask = (1 << INDEX_BITS) - 1;
        let found = self.objects.iter().find(|(id, _)| **id & mask == index & mask && index >= 0);
        found.map(|(id, object)| (*id, object.clone())).ok_or(Errno::EINVAL)
    }

    /// The largest index in use, for `IPC_INFO`; 0 when there is none.
    fn highest_index(&self) -> i32 {
        self.objects.keys().map(|id| id & ((1 << INDEX_BITS) - 1)).max().unwrap_or(0)
    }

    /// The `get` call of a kind: the object with `key`, checked by `fits`, or a new one made by `create` with its identifier.
    fn find_or_create(
        &mut self,
        key: i32,
        flags: u32,
        fits: impl FnOnce(&T) -> Result,
        create: impl FnOnce(i32) -> Result<Arc<T>>,
    ) -> Result<i32> {
        if key != IPC_PRIVATE
            && let Some((id, object)) = self.objects.iter().find(|(_, object)| object.perm().key == key)
        {
            if flags & (IPC_CREAT | IPC_EXCL) == IPC_CREAT | IPC_EXCL {
                return Err(Errno::EEXIST);
            }
            fits(object)?;
            object.perm().check(flags & MODE)?;
            return Ok(*id);
        }
        if key != IPC_PRIVATE && flags & IPC_CREAT == 0 {
            return Err(Errno::ENOENT);
        }
        if self.objects.len() >= self.limit {
            return Err(Errno::ENOSPC);
        }
        let mask = (1 << INDEX_BITS) - 1;
        // The next free index after the last one; there is one, since the limit is below their number.
        let used = |index: i32| self.objects.keys().any(|id| id & mask == index);
        let wanted = self.next_ids[self.next_id as usize].swap(-1, Relaxed);
        let id = if wanted >= 0 {
            // Somebody else may have the index: then the next one, as on Linux, and whoever asked looks at the number.
            let free = (0..=mask).map(|n| (wanted + n) & mask).find(|&index| !used(index)).ok_or(Errno::ENOSPC)?;
            wanted & !mask | free
        } else {
            let mut index = self.last_index;
            loop {
                index = (index + 1) & mask;
                if index == 0 && self.last_index >= 0 {
                    self.sequence = (self.sequence + 1) & 0x7fff;
                }
                if !used(index) {
                    break;
                }
            }
            self.last_index = index;
            self.sequence << INDEX_BITS | index
        };
        let object = create(id)?;
        self.objects.insert(id, object);
        Ok(id)
    }
}

/// A table in `/proc/sysvipc`: an open one shows the namespace that the process had then.
struct TableFile(fn(&Objects, &mut Text));

impl InodeOps for TableFile {
    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        let (namespace, show) = (namespace::current(), self.0);
        Ok(open_text(Arc::new(move |out: &mut Text| {
            show(&namespace.sysv, out);
            Ok(())
        })))
    }
}

fn register(path: &str, show: fn(&Objects, &mut Text)) -> Result {
    procfs::register_inode(path, uapi::S_IFREG | 0o444, Box::new(TableFile(show)))
}

/// The command of a `ctl` call without the bit that old C libraries set.
fn command(cmd: u32) -> u32 {
    cmd & !IPC_64
}

/// Seconds since 1970.
fn now() -> i64 {
    (time::realtime_ns() / 1_000_000_000) as i64
}

/// Shows the tables in `/proc/sysvipc`.
///
/// # Errors
/// Those of [`crate::fs::procfs::register`].
pub fn init() -> Result {
    shm::init()?;
    sem::init()?;
    msg::init()
}
