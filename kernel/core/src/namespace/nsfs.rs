//! Namespaces as files: what `/proc/PID/ns/*` leads to, and what keeps a namespace without a task in it.
//!
//! A file of this file system has the namespace's number as its inode, and holds the namespace while it is open or bound
//! somewhere. References: namespaces(7), ioctl_ns(2), Linux `fs/nsfs.c`.

use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;

use linux_uapi::raw::general as uapi;

use super::Kind;
use super::uts::Uts;
use crate::fs::mount::{Namespace as MountNamespace, namespace::Hold};
use crate::fs::open::{OpenRequest, open_inode};
use crate::fs::{Dentry, File, FileOps, Inode, InodeOps, Path, anon};
use crate::ipc::namespace::Namespace as IpcNamespace;
use crate::process::{Cap, Pid, PidNamespace, Resource, Thread, capable, current, lookup_tid, seen_thread};
use crate::user::UserPtr;
use crate::{Errno, Result};

const NS_GET_USERNS: u32 = 0xb701;
const NS_GET_PARENT: u32 = 0xb702;
const NS_GET_NSTYPE: u32 = 0xb703;
const NS_GET_OWNER_UID: u32 = 0xb704;
const NS_GET_MNTNS_ID: u32 = 0x8008_b705;
const NS_GET_PID_FROM_PIDNS: u32 = 0x8004_b706;
const NS_GET_TGID_FROM_PIDNS: u32 = 0x8004_b707;
const NS_GET_PID_IN_PIDNS: u32 = 0x8004_b708;
const NS_GET_TGID_IN_PIDNS: u32 = 0x8004_b709;
/// `_IOR(0xb7, 10, struct mnt_ns_info)`; the size in it may be larger, here and in the next two.
const NS_MNT_GET_INFO: u32 = 0x8000_b70a;
const NS_MNT_GET_NEXT: u32 = 0x8000_b70b;
const NS_MNT_GET_PREV: u32 = 0x8000_b70c;
const MNT_NS_INFO_SIZE: u32 = 16;

/// A namespace of any kind.
#[derive(Clone)]
pub enum Namespace {
    /// A tree of mounts.
    Mnt(Hold),
    /// Names of the system.
    Uts(Arc<Uts>),
    /// System V objects and message queues.
    Ipc(Arc<IpcNamespace>),
    /// Process numbers.
    Pid(Arc<PidNamespace>),
    /// The only one of its kind.
    Only(Kind),
}

impl Namespace {
    /// That of a thread.
    ///
    /// # Errors
    /// `ENOENT` when the thread has left its namespaces at its end.
    pub fn of(thread: &Thread, kind: Kind) -> Result<Namespace> {
        let set = thread.namespaces().ok_or(Errno::ENOENT);
        Ok(match kind {
            Kind::Mnt => Namespace::Mnt(set?.mnt.clone()),
            Kind::Uts => Namespace::Uts(set?.uts.clone()),
            Kind::Ipc => Namespace::Ipc(set?.ipc.clone()),
            Kind::Pid => Namespace::Pid(thread.process().pid_namespace().clone()),
            only => Namespace::Only(only),
        })
    }

    /// That of the thread's children to be.
    ///
    /// # Errors
    /// `ENOENT` as [`Namespace::of`], and for a PID namespace whose first process has not been born.
    pub fn for_children(thread: &Thread, kind: Kind) -> Result<Namespace> {
        if kind != Kind::Pid {
            return Namespace::of(thread, kind);
        }
        let namespace = thread.namespaces().ok_or(Errno::ENOENT)?.pid_for_children.clone();
        if namespace.has_begun() { Ok(Namespace::Pid(namespace)) } else { Err(Errno::ENOENT) }
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        match self {
            Namespace::Mnt(_) => Kind::Mnt,
            Namespace::Uts(_) => Kind::Uts,
            Namespace::Ipc(_) => Kind::Ipc,
            Namespace::Pid(_) => Kind::Pid,
            Namespace::Only(kind) => *kind,
        }
    }

    /// The inode number.
    pub fn number(&self) -> u32 {
        match self {
            Namespace::Mnt(hold) => hold.number(),
            Namespace::Uts(uts) => uts.number(),
            Namespace::Ipc(ipc) => ipc.number(),
            Namespace::Pid(pid) => pid.number(),
            Namespace::Only(kind) => kind.initial_number(),
        }
    }

    /// The one that it is nested in.
    ///
    /// # Errors
    /// `EPERM` when the caller cannot see that one, `EINVAL` for kinds that are not nested.
    fn parent(&self) -> Result<Namespace> {
        match self {
            Namespace::Pid(namespace) => {
                let parent = namespace.parent().ok_or(Errno::EPERM)?;
                let seen = parent.has_ancestor(current().process().pid_namespace());
                if seen { Ok(Namespace::Pid(parent.clone())) } else { Err(Errno::EPERM) }
            }
            Namespace::Only(Kind::User) => Err(Errno::EPERM),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Its file.
    ///
    /// # Errors
    /// Those of [`anon::namespace_path`].
    pub fn path(self) -> Result<Path> {
        let (kind, number) = (self.kind(), self.number());
        anon::namespace_path(&format!("{}:[{number}]", kind.name()), number.into(), Box::new(Node(self)))
    }

    /// Opens its file for the calling thread, with a descriptor that exec closes.
    fn open(self) -> Result<i64> {
        let at = self.path()?;
        let inode = at.inode()?.clone();
        let thread = current();
        let file = open_inode(at, inode, &OpenRequest::plain(uapi::O_RDONLY)?, false, &thread.cred())?;
        let limit = thread.process().rlimits.soft(Resource::Nofile);
        thread.files().install(file, true, limit).map(i64::from)
    }
}

/// The inode of a namespace.
struct Node(Namespace);

impl InodeOps for Node {
    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Opened(self.0.clone())))
    }
}

/// An open file of a namespace.
struct Opened(Namespace);

impl FileOps for Opened {
    fn can_poll(&self) -> bool {
        false
    }

    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        let kind = self.0.kind();
        match cmd {
            // The first user namespace owns all others, and nobody owns it.
            NS_GET_USERNS if kind == Kind::User => Err(Errno::EPERM),
            NS_GET_USERNS => Namespace::Only(Kind::User).open(),
            NS_GET_PARENT => self.0.parent()?.open(),
            NS_GET_PID_FROM_PIDNS | NS_GET_TGID_FROM_PIDNS | NS_GET_PID_IN_PIDNS | NS_GET_TGID_IN_PIDNS => {
                self.translate(cmd, arg as Pid).map(i64::from)
            }
            NS_GET_NSTYPE => Ok(kind.flag().bits() as i64),
            NS_GET_OWNER_UID if kind == Kind::User => {
                UserPtr::<u32>::new(arg as u64).write(&0)?;
                Ok(0)
            }
            NS_GET_OWNER_UID => Err(Errno::EINVAL),
            NS_GET_MNTNS_ID => {
                let Namespace::Mnt(namespace) = &self.0 else { return Err(Errno::EINVAL) };
                UserPtr::<u64>::new(arg as u64).write(&namespace.id())?;
                Ok(0)
            }
            _ => self.about_mounts(cmd & 0xc000_ffff, cmd >> 16 & 0x3fff, arg),
        }
    }
}

impl Opened {
    /// The number of a thread or process, in the namespace from the caller's or the other way round.
    fn translate(&self, cmd: u32, number: Pid) -> Result<Pid> {
        let Namespace::Pid(namespace) = &self.0 else { return Err(Errno::EINVAL) };
        let from_there = matches!(cmd, NS_GET_PID_FROM_PIDNS | NS_GET_TGID_FROM_PIDNS);
        let thread = if from_there { namespace.look(number, lookup_tid) } else { seen_thread(number) };
        let thread = thread.ok_or(Errno::ESRCH)?;
        let identity = match cmd {
            NS_GET_PID_FROM_PIDNS | NS_GET_PID_IN_PIDNS => thread.identity(),
            _ => thread.process().identity().clone(),
        };
        let found = if from_there { identity.seen() } else { identity.seen_from(namespace) };
        if found == 0 { Err(Errno::ESRCH) } else { Ok(found) }
    }

    /// The commands with a `struct mnt_ns_info` of `size` bytes.
    fn about_mounts(&self, cmd: u32, size: u32, arg: usize) -> Result<i64> {
        let steps = matches!(cmd, NS_MNT_GET_NEXT | NS_MNT_GET_PREV);
        if !steps && cmd != NS_MNT_GET_INFO {
            return Err(Errno::ENOTTY);
        }
        if steps && !capable(Cap::SysAdmin) {
            return Err(Errno::EPERM);
        }
        let Namespace::Mnt(namespace) = &self.0 else { return Err(Errno::EINVAL) };
        if size < MNT_NS_INFO_SIZE || !steps && arg == 0 {
            return Err(Errno::EINVAL);
        }
        if !steps {
            return mount_info(namespace, arg).map(|()| 0);
        }
        let found = namespace.neighbour(cmd == NS_MNT_GET_NEXT).ok_or(Errno::ENOENT)?;
        if arg != 0 {
            mount_info(&found, arg)?;
        }
        Namespace::Mnt(found).open()
    }
}

/// Writes a `struct mnt_ns_info`: size, number of mounts without the root, identity.
fn mount_info(namespace: &Hold, to: usize) -> Result {
    let mounts = u32::try_from(namespace.count()).unwrap_or(u32::MAX).saturating_sub(1);
    UserPtr::<[u32; 2]>::new(to as u64).write(&[MNT_NS_INFO_SIZE, mounts])?;
    UserPtr::<u64>::new(to as u64 + 8).write(&namespace.id())
}

fn node_of(dentry: &Dentry) -> Option<&Namespace> {
    Some(&dentry.inode()?.ops_as::<Node>()?.0)
}

/// The namespace that an open file keeps; `None` for other files.
pub fn of_file(file: &File) -> Option<&Namespace> {
    Some(&file.ops::<Opened>()?.0)
}

/// The mount namespace that an open file keeps.
pub fn mount_namespace_of(file: &File) -> Option<Hold> {
    match of_file(file)? {
        Namespace::Mnt(hold) => Some(hold.clone()),
        _ => None,
    }
}

/// Whether `dentry` is the file of a namespace.
pub fn is_namespace(dentry: &Dentry) -> bool {
    node_of(dentry).is_some()
}

/// The mount namespace whose file `dentry` is.
pub fn mount_namespace(dentry: &Dentry) -> Option<Arc<MountNamespace>> {
    match node_of(dentry)? {
        Namespace::Mnt(hold) => Some(hold.namespace().clone()),
        _ => None,
    }
}

/// Whether `dentry` is the file of a mount namespace.
pub fn is_mount_namespace(dentry: &Dentry) -> bool {
    matches!(node_of(dentry), Some(Namespace::Mnt(_)))
}
