//! The mount tree: [`Mount`] and the one table of where things are mounted.
//!
//! A [`Mount`] shows (a part of) a file system at a place; bind mounts show the same super block again. There is one
//! mount tree for all processes; propagation types are kept and shown, and since nothing is ever copied to another
//! namespace they have no further effect.
//!
//! A dentry with something mounted on it carries a flag, so that a walk looks into the table only there. The table is
//! keyed by (mount, dentry). Locking: the table is a reader-writer spin lock; changes are few and short.
//!
//! [`change`] holds what alters the tree. A tree may also be attached nowhere (`open_tree`, `fsmount`): its mounts are in the
//! table like all others, but nothing leads to them save the descriptor that owns the topmost one.
//!
//! References: mount(2), umount2(2), mount_namespaces(7), `Documentation/filesystems/sharedsubtree.rst`.

mod change;

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use bitflags::bitflags;
use hashbrown::HashMap;
use ursa_hal::sync::{RwSpinLock, SpinLock};

use super::{
    dentry::Dentry,
    inode::{SbFlags, SuperBlock},
    path::Path,
};
pub use change::{
    Change, attach, bind, copy, dissolve, move_beneath, move_mount, pivot, set_attributes, share_group, unmount,
};

use crate::{Errno, Result, poll::PollEvents, wait::WaitQueue};

bitflags! {
    /// Per-mount options: `MNT_*`, with the values of `mount(2)`'s `MS_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MountFlags: u32 {
        /// Read-only here.
        const RDONLY = 1;
        /// Set-user-ID bits and file capabilities have no effect.
        const NOSUID = 2;
        /// Device nodes are not opened.
        const NODEV = 4;
        /// Nothing is executed.
        const NOEXEC = 8;
        /// Symbolic links are not followed.
        const NOSYMFOLLOW = 256;
        /// Access times are not kept.
        const NOATIME = 1024;
        /// Access times of directories are not kept.
        const NODIRATIME = 2048;
        /// Access times are kept when older than the modification or a day.
        const RELATIME = 1 << 21;
    }
}

/// Propagation type of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Propagation {
    /// `MS_PRIVATE`
    Private,
    /// `MS_SHARED`
    Shared,
    /// `MS_SLAVE`
    Slave,
    /// `MS_UNBINDABLE`
    Unbindable,
}

/// A place where a file system shows.
pub struct Mount {
    /// Its number in `/proc/self/mountinfo` and `statx`.
    pub id: u64,
    /// The file system.
    pub sb: Arc<SuperBlock>,
    /// What of it shows here.
    pub root: Arc<Dentry>,
    /// What was named as the source.
    pub source: Box<[u8]>,
    flags: AtomicU32,
    propagation: AtomicU32,
    /// The peer group's number when shared.
    group: AtomicU32,
    writers: AtomicU64,
    attached: SpinLock<Option<Path>>,
    /// Unmounted lazily or not mounted yet.
    pub(super) detached: AtomicBool,
    /// The top of a tree that is attached nowhere yet, and can be: made by `fsmount` or `open_tree`.
    anonymous: AtomicBool,
    expiring: AtomicBool,
}

struct Table {
    at: HashMap<(u64, usize), Arc<Mount>, foldhash::fast::FixedState>,
    /// In the order of mounting, parents before children.
    all: Vec<Arc<Mount>>,
}

static TABLE: RwSpinLock<Table> =
    RwSpinLock::new(Table { at: HashMap::with_hasher(foldhash::fast::FixedState::with_seed(7)), all: Vec::new() });
static NEXT_ID: AtomicU64 = AtomicU64::new(21);
static NEXT_GROUP: AtomicU32 = AtomicU32::new(1);
/// Counts changes of the tree: a poll of `/proc/self/mounts` compares it.
static GENERATION: AtomicU64 = AtomicU64::new(0);
/// Who polls the tables of mounts.
pub static CHANGED: WaitQueue = WaitQueue::new();

impl Mount {
    /// A mount of `root` in `sb`, not attached anywhere.
    pub fn new(sb: Arc<SuperBlock>, root: Arc<Dentry>, source: &[u8], flags: MountFlags) -> Arc<Mount> {
        sb.mounts.fetch_add(1, Ordering::AcqRel);
        Arc::new(Mount {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            sb,
            root,
            source: Box::from(source),
            flags: AtomicU32::new(flags.bits()),
            propagation: AtomicU32::new(Propagation::Private as u32),
            group: AtomicU32::new(0),
            writers: AtomicU64::new(0),
            attached: SpinLock::new(None),
            detached: AtomicBool::new(true),
            anonymous: AtomicBool::new(true),
            expiring: AtomicBool::new(false),
        })
    }

    /// A further mount of `sb`'s own root.
    ///
    /// # Errors
    /// `ENODEV` when the file system has ended.
    pub fn of(sb: Arc<SuperBlock>, source: &[u8], flags: MountFlags) -> Result<Arc<Mount>> {
        let root = sb.root()?;
        Ok(Self::new(sb, root, source, flags))
    }

    /// The options.
    #[inline]
    pub fn flags(&self) -> MountFlags {
        MountFlags::from_bits_retain(self.flags.load(Ordering::Relaxed))
    }

    /// The propagation type.
    pub fn propagation(&self) -> Propagation {
        match self.propagation.load(Ordering::Relaxed) {
            1 => Propagation::Shared,
            2 => Propagation::Slave,
            3 => Propagation::Unbindable,
            _ => Propagation::Private,
        }
    }

    /// The peer group's number, 0 when not shared.
    pub fn group(&self) -> u32 {
        self.group.load(Ordering::Relaxed)
    }

    fn set_propagation(&self, kind: Propagation) {
        self.propagation.store(kind as u32, Ordering::Relaxed);
        match kind {
            Propagation::Shared => {
                let _ = self.group.compare_exchange(
                    0,
                    NEXT_GROUP.fetch_add(1, Ordering::Relaxed),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
            }
            _ => self.group.store(0, Ordering::Relaxed),
        }
    }

    /// Its number in statmount(2) and `STATX_MNT_ID_UNIQUE`: of a range that [`Mount::id`] does not reach.
    pub fn unique_id(&self) -> u64 {
        self.id + linux_uapi::mount::MNT_UNIQUE_ID_OFFSET
    }

    /// Where it is mounted; `None` for the root of the tree and for detached mounts.
    pub fn mountpoint(&self) -> Option<Path> {
        self.attached.lock().clone()
    }

    /// Whether it is part of the tree that processes see, and not of one that was detached or never attached.
    pub fn in_tree(self: &Arc<Self>) -> bool {
        let mut mount = self.clone();
        while let Some(at) = mount.mountpoint() {
            mount = at.mount;
        }
        !mount.detached.load(Ordering::Relaxed)
    }

    /// Whether it is the top of a tree that waits to be attached.
    pub fn is_anonymous(&self) -> bool {
        self.anonymous.load(Ordering::Relaxed)
    }

    /// Its root as a path.
    pub fn root_path(self: &Arc<Self>) -> Path {
        Path { mount: self.clone(), dentry: self.root.clone() }
    }

    /// `EROFS` when nothing may be changed through this mount.
    #[inline]
    pub fn check_writable(&self) -> Result {
        if self.flags().contains(MountFlags::RDONLY) || self.sb.flags().contains(SbFlags::RDONLY) {
            return Err(Errno::EROFS);
        }
        Ok(())
    }

    /// Counts an open for writing, which holds off a remount to read-only.
    ///
    /// # Errors
    /// `EROFS`.
    pub fn begin_write(&self) -> Result {
        self.writers.fetch_add(1, Ordering::SeqCst);
        self.sb.writers.fetch_add(1, Ordering::SeqCst);
        self.check_writable().inspect_err(|_| self.end_write())
    }

    /// Ends what [`Mount::begin_write`] began.
    pub fn end_write(&self) {
        self.writers.fetch_sub(1, Ordering::SeqCst);
        self.sb.writers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether device nodes here may be opened.
    pub fn allows_devices(&self) -> bool {
        !self.flags().contains(MountFlags::NODEV) && !self.sb.flags().contains(SbFlags::NODEV)
    }

    /// Whether files here may be executed.
    pub fn allows_exec(&self) -> bool {
        !self.flags().contains(MountFlags::NOEXEC) && !self.sb.flags().contains(SbFlags::NOEXEC)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The last mount of a file system ends it. The tree of inodes holds the super block too, so mounts are counted.
        if self.sb.mounts.fetch_sub(1, Ordering::AcqRel) == 1 {
            crate::process::acct::file_system_ends(&self.sb);
            self.sb.shutdown();
        }
    }
}

/// What is mounted on `path`, the topmost of a stack.
#[inline]
pub fn cross_down(path: &mut Path) -> bool {
    let mut crossed = false;
    while path.dentry.is_mountpoint() {
        let found = TABLE.read().at.get(&(path.mount.id, path.dentry.id())).cloned();
        let Some(mount) = found else { break };
        path.dentry = mount.root.clone();
        path.mount = mount;
        crossed = true;
    }
    crossed
}

/// Whether `dentry` is a mount point in any mount: it cannot be removed or replaced.
pub fn is_any_mountpoint(dentry: &Dentry) -> bool {
    dentry.is_mountpoint()
}

/// Makes `mount` the root of the tree.
pub fn set_root(mount: Arc<Mount>) {
    mount.detached.store(false, Ordering::Relaxed);
    mount.anonymous.store(false, Ordering::Relaxed);
    TABLE.write().all.insert(0, mount);
    changed();
}

/// The root of the mount tree.
pub fn root() -> Option<Arc<Mount>> {
    TABLE.read().all.first().cloned()
}

/// All mounts, parents before children.
pub fn all() -> Vec<Arc<Mount>> {
    TABLE.read().all.clone()
}

/// Counts changes of the tree.
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

fn changed() {
    GENERATION.fetch_add(1, Ordering::Release);
    CHANGED.wake_events(PollEvents::POLLERR | PollEvents::POLLPRI);
}
