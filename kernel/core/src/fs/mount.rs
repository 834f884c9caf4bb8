//! The mount tree: [`Mount`] and the one table of where things are mounted.
//!
//! A [`Mount`] shows (a part of) a file system at a place; bind mounts show the same super block again. There is one
//! mount tree for all processes; propagation types are kept and shown, and since nothing is ever copied to another
//! namespace they have no further effect.
//!
//! A dentry with something mounted on it carries a flag, so that a walk looks into the table only there. The table is
//! keyed by (mount, dentry). Locking: the table is a reader-writer spin lock; changes are few and short.
//!
//! References: mount(2), umount2(2), mount_namespaces(7), `Documentation/filesystems/sharedsubtree.rst`.

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

    /// Where it is mounted; `None` for the root of the tree and for detached mounts.
    pub fn mountpoint(&self) -> Option<Path> {
        self.attached.lock().clone()
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

/// Attaches `mount` at `at`, which the caller has walked to with mounts crossed.
///
/// # Errors
/// `ENOENT` when the directory was removed meanwhile, `ENOTDIR`, `EBUSY` when that mount is already there.
pub fn attach(mount: &Arc<Mount>, at: &Path) -> Result {
    let is_dir = |d: &Arc<Dentry>| d.inode().is_some_and(|i| i.is_dir());
    if is_dir(&mount.root) != is_dir(&at.dentry) {
        return Err(Errno::ENOTDIR);
    }
    if at.dentry.is_deleted() {
        return Err(Errno::ENOENT);
    }
    let mut at = at.clone();
    cross_down(&mut at);
    let mut table = TABLE.write();
    if table.at.contains_key(&(at.mount.id, at.dentry.id())) {
        return Err(Errno::EBUSY);
    }
    at.dentry.set_mountpoint(true);
    table.at.insert((at.mount.id, at.dentry.id()), mount.clone());
    *mount.attached.lock() = Some(at);
    mount.detached.store(false, Ordering::Relaxed);
    table.all.push(mount.clone());
    drop(table);
    changed();
    Ok(())
}

impl Table {
    fn children<'a>(&'a self, mount: &'a Arc<Mount>) -> impl Iterator<Item = &'a Arc<Mount>> {
        self.all.iter().filter(move |m| m.attached.lock().as_ref().is_some_and(|p| Arc::ptr_eq(&p.mount, mount)))
    }

    /// `mount` and everything mounted below it, parents first.
    fn subtree(&self, mount: &Arc<Mount>) -> Vec<Arc<Mount>> {
        let mut list = Vec::from([mount.clone()]);
        let mut i = 0;
        while i < list.len() {
            let children: Vec<_> = self.children(&list[i]).cloned().collect();
            list.extend(children);
            i += 1;
        }
        list
    }

    fn detach(&mut self, mount: &Arc<Mount>) -> Option<Path> {
        let at = mount.attached.lock().take();
        if let Some(at) = &at {
            self.at.remove(&(at.mount.id, at.dentry.id()));
            if !self.at.keys().any(|(_, d)| *d == at.dentry.id()) {
                at.dentry.set_mountpoint(false);
            }
        }
        self.all.retain(|m| !Arc::ptr_eq(m, mount));
        mount.detached.store(true, Ordering::Relaxed);
        at
    }
}

/// Detaches `mount`. `lazy`: also when in use, with everything mounted below. `held`: how many references the caller has.
///
/// # Errors
/// `EINVAL` when it is not mounted (or the root of the tree), `EBUSY` while used, `EAGAIN` for the first `MNT_EXPIRE`.
pub fn unmount(mount: &Arc<Mount>, lazy: bool, expire: bool, held: usize) -> Result {
    let mut dropped = Vec::new();
    let mut table = TABLE.write();
    if mount.attached.lock().is_none() {
        return Err(Errno::EINVAL);
    }
    if !lazy {
        // Two references are the table's own.
        if table.children(mount).next().is_some() || Arc::strong_count(mount) > 2 + held {
            return Err(Errno::EBUSY);
        }
        if expire && !mount.expiring.swap(true, Ordering::Relaxed) {
            return Err(Errno::EAGAIN);
        }
        dropped.push(table.detach(mount));
    } else {
        for m in table.subtree(mount).iter().rev() {
            dropped.push(table.detach(m));
        }
    }
    drop(table);
    changed();
    drop(dropped);
    Ok(())
}

/// Moves an attached mount to `to` (`MS_MOVE`).
///
/// # Errors
/// `EINVAL` when it is not attached, `ELOOP` into itself, and those of [`attach`].
pub fn move_mount(mount: &Arc<Mount>, to: &Path) -> Result {
    let mut at = to.clone();
    cross_down(&mut at);
    let is_dir = |d: &Arc<Dentry>| d.inode().is_some_and(|i| i.is_dir());
    if is_dir(&mount.root) != is_dir(&at.dentry) {
        return Err(Errno::ENOTDIR);
    }
    let old;
    {
        let mut table = TABLE.write();
        if mount.attached.lock().is_none() {
            return Err(Errno::EINVAL);
        }
        if table.subtree(mount).iter().any(|m| Arc::ptr_eq(m, &at.mount)) {
            return Err(Errno::ELOOP);
        }
        old = mount.attached.lock().take();
        if let Some(old) = &old {
            table.at.remove(&(old.mount.id, old.dentry.id()));
            if !table.at.keys().any(|(_, d)| *d == old.dentry.id()) {
                old.dentry.set_mountpoint(false);
            }
        }
        at.dentry.set_mountpoint(true);
        table.at.insert((at.mount.id, at.dentry.id()), mount.clone());
        *mount.attached.lock() = Some(at);
    }
    changed();
    drop(old);
    Ok(())
}

/// A bind mount of `from` (and what is mounted below when `recursive`) at `to`.
///
/// # Errors
/// `EINVAL` for an unbindable source, and those of [`attach`].
pub fn bind(from: &Path, to: &Path, recursive: bool) -> Result {
    if from.mount.propagation() == Propagation::Unbindable {
        return Err(Errno::EINVAL);
    }
    let copy = |m: &Arc<Mount>, root: Arc<Dentry>| Mount::new(m.sb.clone(), root, &m.source, m.flags());
    let top = copy(&from.mount, from.dentry.clone());
    let mut pairs = Vec::from([(from.mount.clone(), top.clone())]);
    let mut below = Vec::new();
    if recursive {
        let list = TABLE.read().subtree(&from.mount);
        for m in &list[1..] {
            let Some(at) = m.mountpoint() else { continue };
            let Some((_, parent)) = pairs.iter().find(|(orig, _)| Arc::ptr_eq(orig, &at.mount)) else { continue };
            if m.propagation() == Propagation::Unbindable
                || Arc::ptr_eq(parent, &top) && !at.dentry.is_within(&from.dentry)
            {
                continue;
            }
            let new = copy(m, m.root.clone());
            below.push((new.clone(), Path { mount: parent.clone(), dentry: at.dentry.clone() }));
            pairs.push((m.clone(), new));
        }
    }
    attach(&top, to)?;
    for (mount, at) in below {
        attach(&mount, &at)?;
    }
    Ok(())
}

/// Changes the options of one mount (`MS_REMOUNT | MS_BIND`).
///
/// # Errors
/// `EBUSY` for read-only while files are open for writing.
pub fn set_flags(mount: &Mount, flags: MountFlags) -> Result {
    let old = mount.flags.swap(flags.bits(), Ordering::SeqCst);
    if flags.contains(MountFlags::RDONLY) && old & 1 == 0 && mount.writers.load(Ordering::SeqCst) > 0 {
        mount.flags.store(old, Ordering::SeqCst);
        return Err(Errno::EBUSY);
    }
    changed();
    Ok(())
}

/// Changes the propagation type, of the whole subtree when `recursive`.
pub fn set_propagation(mount: &Arc<Mount>, kind: Propagation, recursive: bool) {
    let list = if recursive { TABLE.read().subtree(mount) } else { Vec::from([mount.clone()]) };
    for m in list {
        m.set_propagation(kind);
    }
    changed();
}

/// `pivot_root`: `new_root`'s mount becomes the root of the tree, the old root is attached at `put_old`.
///
/// # Errors
/// `EINVAL` when the arguments are not mounts as pivot_root(2) asks, `EBUSY` when they are the current root.
pub fn pivot(new_root: &Path, put_old: &Path, old_root: &Arc<Mount>) -> Result {
    let mut table = TABLE.write();
    if !Dentry::same(&new_root.dentry, &new_root.mount.root) {
        return Err(Errno::EINVAL);
    }
    if Arc::ptr_eq(&new_root.mount, old_root) || Arc::ptr_eq(&put_old.mount, old_root) {
        return Err(Errno::EBUSY);
    }
    if !table.subtree(&new_root.mount).iter().any(|m| Arc::ptr_eq(m, &put_old.mount))
        || !put_old.dentry.is_within(&put_old.mount.root)
    {
        return Err(Errno::EINVAL);
    }
    let Some(at) = new_root.mount.attached.lock().take() else { return Err(Errno::EINVAL) };
    table.at.remove(&(at.mount.id, at.dentry.id()));
    if !table.at.keys().any(|(_, d)| *d == at.dentry.id()) {
        at.dentry.set_mountpoint(false);
    }
    put_old.dentry.set_mountpoint(true);
    table.at.insert((put_old.mount.id, put_old.dentry.id()), old_root.clone());
    *old_root.attached.lock() = Some(put_old.clone());
    table.all.retain(|m| !Arc::ptr_eq(m, &new_root.mount));
    table.all.insert(0, new_root.mount.clone());
    drop(table);
    changed();
    drop(at);
    Ok(())
}
