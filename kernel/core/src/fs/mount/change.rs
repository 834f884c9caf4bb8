//! Changes of the mount tree: attaching, detaching, moving, copying, options and propagation types.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::Ordering;

use super::{Mount, MountFlags, Propagation, TABLE, Table, changed, cross_down};
use crate::{
    Errno, Result,
    fs::{dentry::Dentry, path::Path},
};

fn is_dir(dentry: &Arc<Dentry>) -> bool {
    dentry.inode().is_some_and(|inode| inode.is_dir())
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

    /// Notes that `mount` is at `at`, where nothing is.
    fn put(&mut self, mount: &Arc<Mount>, at: Path) {
        at.dentry.set_mountpoint(true);
        self.at.insert((at.mount.id, at.dentry.id()), mount.clone());
        *mount.attached.lock() = Some(at);
        mount.detached.store(false, Ordering::Relaxed);
        mount.anonymous.store(false, Ordering::Relaxed);
        // A tree that was made elsewhere comes as a whole, parents still before children.
        let tree = self.subtree(mount);
        self.all.retain(|m| !tree.iter().any(|of_tree| Arc::ptr_eq(m, of_tree)));
        self.all.extend(tree);
    }

    /// Forgets where `mount` is. The place is given back to be dropped without the lock.
    fn take(&mut self, mount: &Arc<Mount>) -> Option<Path> {
        let at = mount.attached.lock().take();
        if let Some(at) = &at {
            self.at.remove(&(at.mount.id, at.dentry.id()));
            if !self.at.keys().any(|(_, d)| *d == at.dentry.id()) {
                at.dentry.set_mountpoint(false);
            }
        }
        at
    }

    fn detach(&mut self, mount: &Arc<Mount>) -> Option<Path> {
        let at = self.take(mount);
        self.all.retain(|m| !Arc::ptr_eq(m, mount));
        mount.detached.store(true, Ordering::Relaxed);
        at
    }
}

/// Attaches `mount`, with what is mounted in it, at `at`, which the caller has walked to with mounts crossed.
///
/// # Errors
/// `ENOENT` when the directory was removed meanwhile, `ENOTDIR`, `EBUSY` when that mount is already there.
pub fn attach(mount: &Arc<Mount>, at: &Path) -> Result {
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
    table.put(mount, at);
    drop(table);
    changed();
    Ok(())
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

/// Ends a tree that was never attached: its descriptor was closed. Does nothing to one that is somewhere by now.
pub fn dissolve(top: &Arc<Mount>) {
    let mut dropped = Vec::new();
    let mut table = TABLE.write();
    if !top.anonymous.swap(false, Ordering::Relaxed) {
        return;
    }
    let tree = table.subtree(top);
    for mount in tree.iter().rev() {
        dropped.push(table.detach(mount));
    }
    drop(table);
    // The last references go without the lock: they end file systems.
    drop(dropped);
    drop(tree);
}

/// Moves a mount to `to` (`MS_MOVE`, `move_mount`): one of the tree, or the top of a tree that is attached nowhere yet.
///
/// # Errors
/// `EINVAL` for what cannot be moved or moved there, `ELOOP` into itself, `ENOENT` when the place was removed.
pub fn move_mount(from: &Path, to: &Path) -> Result {
    let mut at = to.clone();
    cross_down(&mut at);
    check_move(from, &at)?;
    let mount = &from.mount;
    let old;
    {
        let mut table = TABLE.write();
        check_ours(mount, &at.mount)?;
        if table.subtree(mount).iter().any(|m| Arc::ptr_eq(m, &at.mount)) {
            return Err(Errno::ELOOP);
        }
        if table.at.contains_key(&(at.mount.id, at.dentry.id())) {
            return Err(Errno::EBUSY);
        }
        old = table.take(mount);
        table.put(mount, at);
    }
    changed();
    drop(old);
    Ok(())
}

/// Moves a mount below the topmost one at `to`, which then lies on the root of the moved one (`MOVE_MOUNT_BENEATH`).
///
/// # Errors
/// Those of [`move_mount`]; `EINVAL` when there is nothing mounted at `to`, or something on the root of what is moved.
pub fn move_beneath(from: &Path, to: &Path) -> Result {
    let mut top = to.clone();
    cross_down(&mut top);
    check_move(from, &top)?;
    if !top.is_mount_root() {
        return Err(Errno::EINVAL);
    }
    let mount = &from.mount;
    let old;
    {
        let mut table = TABLE.write();
        check_ours(mount, &top.mount)?;
        let covered = table.at.contains_key(&(mount.id, mount.root.id()));
        if covered || Arc::ptr_eq(mount, &top.mount) || table.subtree(&top.mount).iter().any(|m| Arc::ptr_eq(m, mount))
        {
            return Err(Errno::EINVAL);
        }
        let Some(at) = top.mount.mountpoint() else { return Err(Errno::EINVAL) };
        if table.subtree(mount).iter().any(|m| Arc::ptr_eq(m, &at.mount)) {
            return Err(Errno::ELOOP);
        }
        let old_top = table.take(&top.mount);
        old = (table.take(mount), old_top);
        table.put(mount, at);
        table.put(&top.mount, from.mount.root_path());
    }
    changed();
    drop(old);
    Ok(())
}

/// What a move asks of its ends before the table is locked.
fn check_move(from: &Path, at: &Path) -> Result {
    if !from.is_mount_root() || is_dir(&from.dentry) != is_dir(&at.dentry) {
        return Err(Errno::EINVAL);
    }
    if at.dentry.is_deleted() {
        return Err(Errno::ENOENT);
    }
    Ok(())
}

/// Whether `mount` may be moved, and to a place in `to`.
fn check_ours(mount: &Arc<Mount>, to: &Arc<Mount>) -> Result {
    let movable = match mount.mountpoint() {
        // Out of a shared parent, its peers would have to follow.
        Some(at) => mount.in_tree() && at.mount.propagation() != Propagation::Shared,
        None => mount.is_anonymous(),
    };
    if movable && to.in_tree() { Ok(()) } else { Err(Errno::EINVAL) }
}

/// A copy of what `from` shows (and of what is mounted below when `recursive`), attached nowhere.
///
/// # Errors
/// `EINVAL` for an unbindable source and for one outside of the tree.
pub fn copy(from: &Path, recursive: bool) -> Result<Arc<Mount>> {
    if from.mount.propagation() == Propagation::Unbindable || !from.mount.in_tree() {
        return Err(Errno::EINVAL);
    }
    let one = |m: &Arc<Mount>, root: Arc<Dentry>| Mount::new(m.sb.clone(), root, &m.source, m.flags());
    let top = one(&from.mount, from.dentry.clone());
    if !recursive {
        return Ok(top);
    }
    let mut table = TABLE.write();
    let mut pairs = Vec::from([(from.mount.clone(), top.clone())]);
    for m in &table.subtree(&from.mount)[1..] {
        let Some(at) = m.mountpoint() else { continue };
        let Some((_, parent)) = pairs.iter().find(|(orig, _)| Arc::ptr_eq(orig, &at.mount)) else { continue };
        if m.propagation() == Propagation::Unbindable || Arc::ptr_eq(parent, &top) && !at.dentry.is_within(&from.dentry)
        {
            continue;
        }
        let new = one(m, m.root.clone());
        table.put(&new, Path { mount: parent.clone(), dentry: at.dentry.clone() });
        pairs.push((m.clone(), new));
    }
    Ok(top)
}

/// A bind mount of `from` (and what is mounted below when `recursive`) at `to`.
///
/// # Errors
/// Those of [`copy`] and [`attach`].
pub fn bind(from: &Path, to: &Path, recursive: bool) -> Result {
    let top = copy(from, recursive)?;
    attach(&top, to).inspect_err(|_| dissolve(&top))
}

/// What is changed of a mount.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Options to clear, before others are set.
    pub clear: MountFlags,
    /// Options to set.
    pub set: MountFlags,
    /// The propagation type, if that changes.
    pub propagation: Option<Propagation>,
}

impl Change {
    /// To these options and no others (`MS_REMOUNT | MS_BIND`).
    pub fn options(flags: MountFlags) -> Change {
        Change { clear: MountFlags::all(), set: flags, propagation: None }
    }

    /// To a propagation type.
    pub fn propagation(kind: Propagation) -> Change {
        Change { clear: MountFlags::empty(), set: MountFlags::empty(), propagation: Some(kind) }
    }
}

/// Changes a mount, and all that is mounted below when `recursive`: all of them or none.
///
/// # Errors
/// `EBUSY` for read-only while files are open for writing.
pub fn set_attributes(mount: &Arc<Mount>, change: &Change, recursive: bool) -> Result {
    let table = TABLE.write();
    let list = if recursive { table.subtree(mount) } else { Vec::from([mount.clone()]) };
    let mut done: Vec<(&Arc<Mount>, MountFlags)> = Vec::new();
    for m in &list {
        let flags = (m.flags() - change.clear) | change.set;
        let old = MountFlags::from_bits_retain(m.flags.swap(flags.bits(), Ordering::SeqCst));
        done.push((m, old));
        let becomes_readonly = !old.contains(MountFlags::RDONLY) && flags.contains(MountFlags::RDONLY);
        if becomes_readonly && m.writers.load(Ordering::SeqCst) > 0 {
            for (m, old) in done {
                m.flags.store(old.bits(), Ordering::SeqCst);
            }
            return Err(Errno::EBUSY);
        }
    }
    if let Some(kind) = change.propagation {
        list.iter().for_each(|m| m.set_propagation(kind));
    }
    drop(table);
    changed();
    Ok(())
}

/// Makes `to` a peer of `from` (`MOVE_MOUNT_SET_GROUP`).
///
/// # Errors
/// `EINVAL` unless both are mounts of one file system, `from` shared and `to` private, and `to` shows no more than `from`.
pub fn share_group(from: &Path, to: &Path) -> Result {
    let table = TABLE.write();
    if !from.is_mount_root()
        || !to.is_mount_root()
        || !from.mount.in_tree()
        || !to.mount.in_tree()
        || !Arc::ptr_eq(&from.mount.sb, &to.mount.sb)
        || !to.mount.root.is_within(&from.mount.root)
        || to.mount.propagation() != Propagation::Private
        || from.mount.propagation() != Propagation::Shared
    {
        return Err(Errno::EINVAL);
    }
    to.mount.group.store(from.mount.group(), Ordering::Relaxed);
    to.mount.set_propagation(Propagation::Shared);
    drop(table);
    changed();
    Ok(())
}

/// `pivot_root`: `new_root`'s mount becomes the root of the tree, the old root is attached at `put_old`.
///
/// # Errors
/// `EINVAL` when the arguments are not mounts as pivot_root(2) asks, `EBUSY` when they are the current root.
pub fn pivot(new_root: &Path, put_old: &Path, old_root: &Arc<Mount>) -> Result {
    let mut table = TABLE.write();
    if !new_root.is_mount_root() {
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
    let Some(at) = table.take(&new_root.mount) else { return Err(Errno::EINVAL) };
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
