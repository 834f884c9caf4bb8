//! The mount trees: [`Mount`], the namespaces they are in, and the one table of where things are mounted.
//!
//! A [`Mount`] shows (a part of) a file system at a place; bind mounts show the same super block again. Each mount namespace
//! ([`Namespace`]) has a tree of its own; mounts of peer groups and their slaves repeat what is mounted in one of them.
//!
//! | module | what |
//! |---|---|
//! | [`namespace`] | trees, what is in them, their copies and their end |
//! | `group` | peer groups and slaves |
//! | `propagate` | what a change in one mount does in others |
//! | `copy` | copies of trees |
//! | `change` | attaching, unmounting, moving, options |
//!
//! A dentry with something mounted on it carries a flag, so that a walk looks into the table only there. The table is
//! keyed by (mount, dentry). A tree may also be attached nowhere (`open_tree`, `fsmount`): it is in an *anonymous* namespace
//! of its own, and ends with the descriptor that owns it.
//!
//! Locking: `CHANGES`, a sleeping lock, over every change of a tree, a namespace or a group (Linux's `namespace_sem`), then
//! `TABLE`, a reader-writer spin lock that walks take for reading, then the leaf locks of a mount. No reference that may be the
//! last one to a mount is dropped under them, since that ends file systems.
//!
//! References: mount(2), umount2(2), mount_namespaces(7), `Documentation/filesystems/sharedsubtree.rst`, `fs/namespace.c`.

mod change;
mod copy;
mod group;
pub mod namespace;
mod propagate;
mod tests;

use alloc::{boxed::Box, collections::BTreeMap, sync::Arc, vec::Vec};
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
    Change, attach, bind, dissolve, is_local_mountpoint, move_beneath, move_mount, pivot, set_attributes, share_group,
    unmount, unmount_at,
};
pub use copy::{copy, copy_namespace, detached};
use group::Groups;
pub use namespace::Namespace;

use crate::{
    Errno, Result,
    poll::PollEvents,
    wait::{Mutex, WaitQueue},
};

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

/// Which groups a mount is in, and where it belongs. Changed under `CHANGES`.
#[derive(Default)]
struct Links {
    /// The namespace; `None` for what was unmounted or is not mounted yet.
    namespace: Option<Arc<Namespace>>,
    /// The peer group, 0 when not shared.
    group: u32,
    /// The group that it is a slave of, 0 for none.
    master: u32,
    unbindable: bool,
    /// What is mounted in it, by number, with the dentry it is mounted on.
    children: BTreeMap<u64, Arc<Dentry>>,
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
    writers: AtomicU64,
    attached: SpinLock<Option<Path>>,
    links: SpinLock<Links>,
    expiring: AtomicBool,
}

/// Where things are mounted.
struct Table {
    at: HashMap<(u64, usize), Arc<Mount>, foldhash::fast::FixedState>,
    /// The mounts in which something is mounted on a dentry.
    points: HashMap<usize, Vec<u64>, foldhash::fast::FixedState>,
}

const HASH: foldhash::fast::FixedState = foldhash::fast::FixedState::with_seed(7);
static TABLE: RwSpinLock<Table> =
    RwSpinLock::new(Table { at: HashMap::with_hasher(HASH), points: HashMap::with_hasher(HASH) });
static CHANGES: Mutex<Groups> = Mutex::with_queue(Groups::new(), WaitQueue::new());
static NEXT_ID: AtomicU64 = AtomicU64::new(21);
/// Counts changes of all trees: a walk that has a limit compares it.
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
            writers: AtomicU64::new(0),
            attached: SpinLock::new(None),
            links: SpinLock::new(Links::default()),
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

    /// Sets the options of a mount that nobody uses yet.
    pub fn set_flags(&self, flags: MountFlags) {
        self.flags.store(flags.bits(), Ordering::Relaxed);
    }

    /// The options.
    #[inline]
    pub fn flags(&self) -> MountFlags {
        MountFlags::from_bits_retain(self.flags.load(Ordering::Relaxed))
    }

    /// The peer group's number, 0 when not shared.
    pub fn group(&self) -> u32 {
        self.links.lock().group
    }

    /// The number of the group that it is a slave of, 0 for none.
    pub fn master(&self) -> u32 {
        self.links.lock().master
    }

    /// Its number in statmount(2) and `STATX_MNT_ID_UNIQUE`: of a range that [`Mount::id`] does not reach.
    pub fn unique_id(&self) -> u64 {
        self.id + linux_uapi::mount::MNT_UNIQUE_ID_OFFSET
    }

    /// Whether it cannot be bound elsewhere.
    pub fn is_unbindable(&self) -> bool {
        self.links.lock().unbindable
    }

    /// Where it is mounted; `None` for the root of a tree and for detached mounts.
    pub fn mountpoint(&self) -> Option<Path> {
        self.attached.lock().clone()
    }

    /// The namespace; `None` for what was unmounted or is the kernel's own.
    pub fn namespace(&self) -> Option<Arc<Namespace>> {
        self.links.lock().namespace.clone()
    }

    /// Whether it is in `namespace`.
    pub fn is_in(&self, namespace: &Namespace) -> bool {
        self.links.lock().namespace.as_ref().is_some_and(|own| core::ptr::eq(&**own, namespace))
    }

    /// Whether it is part of the tree that the calling process sees.
    pub fn is_local(&self) -> bool {
        self.is_in(&namespace::current())
    }

    /// Whether it is in a tree that waits to be attached.
    pub fn is_anonymous(&self) -> bool {
        self.links.lock().namespace.as_ref().is_some_and(|own| own.is_anonymous())
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

impl Table {
    fn find(&self, mount: &Mount, dentry: &Dentry) -> Option<&Arc<Mount>> {
        self.at.get(&(mount.id, dentry.id()))
    }

    /// What is mounted in `mount`.
    fn children(&self, mount: &Mount) -> Vec<Arc<Mount>> {
        let links = mount.links.lock();
        links.children.values().filter_map(|on| self.find(mount, on).cloned()).collect()
    }

    /// `top` and everything mounted below it, parents first.
    fn subtree(&self, top: &Arc<Mount>) -> Vec<Arc<Mount>> {
        let mut list = Vec::from([top.clone()]);
        let mut i = 0;
        while i < list.len() {
            list.extend(self.children(&list[i]));
            i += 1;
        }
        list
    }

    /// Notes that `mount` is at `at`, where nothing is.
    fn put(&mut self, mount: &Arc<Mount>, at: Path) {
        let key = at.dentry.id();
        at.dentry.set_mountpoint(true);
        self.at.insert((at.mount.id, key), mount.clone());
        self.points.entry(key).or_default().push(at.mount.id);
        at.mount.links.lock().children.insert(mount.id, at.dentry.clone());
        *mount.attached.lock() = Some(at);
    }

    /// Forgets where `mount` is. The place is given back to be dropped without the lock.
    fn take(&mut self, mount: &Mount) -> Option<Path> {
        let at = mount.attached.lock().take()?;
        let key = at.dentry.id();
        self.at.remove(&(at.mount.id, key));
        at.mount.links.lock().children.remove(&mount.id);
        if let Some(list) = self.points.get_mut(&key) {
            if let Some(found) = list.iter().position(|id| *id == at.mount.id) {
                list.swap_remove(found);
            }
            if list.is_empty() {
                self.points.remove(&key);
                at.dentry.set_mountpoint(false);
            }
        }
        Some(at)
    }

    /// What is mounted on `dentry`, in whatever mount.
    fn on(&self, dentry: &Dentry) -> Vec<Arc<Mount>> {
        let parents = self.points.get(&dentry.id()).map_or(&[][..], Vec::as_slice);
        parents.iter().filter_map(|parent| self.at.get(&(*parent, dentry.id())).cloned()).collect()
    }

    /// Crosses into what is mounted on `path`, under the lock.
    fn cross_down(&self, path: &mut Path) {
        while path.dentry.is_mountpoint() {
            let Some(mount) = self.find(&path.mount, &path.dentry) else { return };
            *path = mount.root_path();
        }
    }
}

/// How `mountinfo` shows what a mount shares.
pub struct Shown {
    /// The peer group, 0 when not shared.
    pub group: u32,
    /// The group that it follows, 0 for none.
    pub master: u32,
    /// The nearest group above that has a member in view, 0 for none.
    pub from: u32,
    /// It cannot be bound.
    pub unbindable: bool,
}

/// What a mount shares, as seen in `namespace` from `root`.
pub fn propagation(mount: &Mount, namespace: &Namespace, root: &Path) -> Shown {
    let read = || {
        let links = mount.links.lock();
        (links.group, links.master, links.unbindable)
    };
    let (group, master, unbindable) = read();
    if master == 0 {
        // Nothing to look up, and nobody to wait for: a reader that sleeps would keep the mount from being unmounted.
        return Shown { group, master, from: 0, unbindable };
    }
    let groups = CHANGES.lock();
    let (group, master, unbindable) = read();
    let mut from = master;
    while from != 0 {
        let in_view = |m: &Arc<Mount>| m.is_in(namespace) && change::is_reachable(&m.root_path(), root);
        if groups.members(from).iter().any(in_view) {
            break;
        }
        from = groups.master_of(from);
    }
    Shown { group, master, from, unbindable }
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

/// Makes `mount` the root of the first namespace.
pub fn set_root(mount: Arc<Mount>) {
    let changes = CHANGES.lock();
    let first = namespace::initial();
    first.add(&mount);
    first.set_root(mount);
    drop(changes);
    changed(first);
}

/// The root of the first namespace's tree.
pub fn root() -> Option<Arc<Mount>> {
    namespace::initial().root()
}

/// The mounts of all namespaces.
pub fn all() -> Vec<Arc<Mount>> {
    namespace::all().iter().flat_map(|namespace| namespace.mounts()).collect()
}

/// Counts changes of all trees.
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

/// Tells those who poll the table of `namespace` that it has changed.
fn changed(namespace: &Namespace) {
    namespace.touch();
    GENERATION.fetch_add(1, Ordering::Release);
    CHANGED.wake_events(PollEvents::POLLERR | PollEvents::POLLPRI);
}
