//! Changes of the mount trees: attaching, unmounting, moving, options and propagation types.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::Ordering;

use super::{
    CHANGES, Mount, MountFlags, Propagation, TABLE, Table, changed,
    copy::{self, copy_for_bind},
    group::Groups,
    namespace::{self, Namespace},
    propagate,
};
use crate::{
    Errno, Result,
    fs::{dentry::Dentry, path::Path},
};

fn is_dir(dentry: &Arc<Dentry>) -> bool {
    dentry.inode().is_some_and(|inode| inode.is_dir())
}

/// What a change leaves behind, to be dropped without any lock: the last references end file systems and namespaces.
#[derive(Default)]
pub(super) struct Gone {
    pub mounts: Vec<Arc<Mount>>,
    pub places: Vec<Path>,
    /// The namespaces that changed.
    pub namespaces: Vec<Arc<Namespace>>,
}

impl Gone {
    /// Tells who watches the namespaces, and lets go of the rest.
    fn finish(mut self) {
        self.namespaces.sort_unstable_by_key(|namespace| namespace.id());
        self.namespaces.dedup_by_key(|namespace| namespace.id());
        for namespace in &self.namespaces {
            changed(namespace);
        }
    }
}

/// Runs a change under the lock, and lets go of what it leaves without.
fn with_changes<R>(change: impl FnOnce(&mut Groups, &mut Gone) -> R) -> R {
    let mut gone = Gone::default();
    let result = change(&mut CHANGES.lock(), &mut gone);
    gone.finish();
    result
}

/// Takes a mount out of its place, its namespace and its groups.
pub(super) fn remove(groups: &mut Groups, table: &mut Table, mount: &Arc<Mount>, gone: &mut Gone) {
    gone.places.extend(table.take(mount));
    let namespace = mount.links.lock().namespace.take();
    if let Some(namespace) = namespace {
        let (own, root) = namespace.forget(mount);
        gone.mounts.extend(own.into_iter().chain(root));
        gone.namespaces.push(namespace);
    }
    groups.make_private(mount, false);
}

/// Attaches the tree of `source` at `at`, where nothing is: one that is new, or in a namespace already, which it leaves. `below`:
/// the mount at `at` that the tree comes below.
///
/// # Errors
/// `ENOSPC` beyond a namespace's limit, `ENOMEM`.
fn insert(groups: &mut Groups, source: &Arc<Mount>, at: Path, below: Option<&Arc<Mount>>, gone: &mut Gone) -> Result {
    let namespace = at.mount.namespace().ok_or(Errno::EINVAL)?;
    let tree = TABLE.read().subtree(source);
    let moves = source.is_in(&namespace);
    let room = if moves { 0 } else { tree.len() };
    namespace.reserve(room)?;
    let mut copies = propagate::Copies::default();
    if at.mount.group() != 0 {
        let alone: Vec<_> = tree.iter().filter(|m| m.group() == 0).map(|m| (m, m.is_unbindable())).collect();
        alone.iter().for_each(|(mount, _)| groups.make_shared(mount));
        match propagate::repeat(groups, &at, source, gone) {
            Ok(list) => copies = list,
            Err(error) => {
                for (mount, unbindable) in alone {
                    groups.make_slave(mount);
                    mount.links.lock().unbindable = unbindable;
                }
                namespace.settle(room);
                return Err(error);
            }
        }
    }
    if !moves {
        tree.iter().for_each(|mount| namespace.add(mount));
    }
    namespace.settle(room);
    let mut table = TABLE.write();
    gone.places.extend(table.take(source));
    if let Some(top) = below {
        gone.places.extend(table.take(top));
        table.put(source, at);
        table.put(top, source.root_path());
    } else {
        table.put(source, at);
    }
    drop(table);
    copies.commit(gone);
    gone.namespaces.push(namespace);
    gone.mounts.extend(tree);
    Ok(())
}

/// The topmost place at `at`, where something is to be mounted.
///
/// # Errors
/// `ENOENT` when it was removed, `EINVAL` outside of the process's namespace.
fn place(at: &Path) -> Result<Path> {
    let mut at = at.clone();
    TABLE.read().cross_down(&mut at);
    if at.dentry.is_deleted() {
        return Err(Errno::ENOENT);
    }
    if at.mount.is_local() { Ok(at) } else { Err(Errno::EINVAL) }
}

fn graft(groups: &mut Groups, mount: &Arc<Mount>, at: &Path, gone: &mut Gone) -> Result {
    let at = place(at)?;
    if is_dir(&mount.root) != is_dir(&at.dentry) {
        return Err(Errno::ENOTDIR);
    }
    insert(groups, mount, at, None, gone)
}

/// Attaches a new mount at `at`.
///
/// # Errors
/// `ENOENT` when the directory was removed meanwhile, `ENOTDIR`, `EBUSY` when the file system is already mounted right there,
/// `EINVAL` outside of the process's namespace, `ENOSPC` beyond its limit.
pub fn attach(mount: &Arc<Mount>, at: &Path) -> Result {
    with_changes(|groups, gone| {
        let top = place(at)?;
        if Arc::ptr_eq(&top.mount.sb, &mount.sb) && top.is_mount_root() && Arc::ptr_eq(&top.dentry, &mount.root) {
            return Err(Errno::EBUSY);
        }
        graft(groups, mount, at, gone)
    })
}

/// A bind mount of `from` (and what is mounted below when `recursive`) at `to`.
///
/// # Errors
/// `EINVAL` for a source that cannot be bound, and those of [`attach`].
pub fn bind(from: &Path, to: &Path, recursive: bool) -> Result {
    with_changes(|groups, gone| {
        if copy::would_loop(&from.dentry) {
            return Err(Errno::EINVAL);
        }
        place(to)?;
        let top = copy_for_bind(groups, from, recursive)?;
        let result = graft(groups, &top, to, gone);
        if result.is_err() {
            copy::discard(groups, &top, gone);
        }
        gone.mounts.push(top);
        result
    })
}

/// References to a mount that is in a tree: the table's and the namespace's.
const OWN_REFERENCES: usize = 2;

/// Detaches `mount`, and what follows it in peers and slaves. `lazy`: also when in use, with everything mounted below. `held`:
/// how many references the caller has.
///
/// # Errors
/// `EINVAL` when it is not mounted in the process's namespace (or its root), `EBUSY` while used, `EAGAIN` for the first
/// `MNT_EXPIRE`.
pub fn unmount(mount: &Arc<Mount>, lazy: bool, expire: bool, held: usize) -> Result {
    with_changes(|groups, gone| {
        if !mount.is_local() || mount.mountpoint().is_none() {
            return Err(Errno::EINVAL);
        }
        // Held to the end, so that nobody who walks in between keeps a reference to what was found unused.
        let mut table = TABLE.write();
        if !lazy && (!table.children(mount).is_empty() || Arc::strong_count(mount) > OWN_REFERENCES + held) {
            return Err(Errno::EBUSY);
        }
        if expire && !mount.expiring.swap(true, Ordering::Relaxed) {
            return Err(Errno::EAGAIN);
        }
        let requested = if lazy { table.subtree(mount) } else { Vec::from([mount.clone()]) };
        let going = propagate::going(groups, &table, &requested);
        if !lazy {
            for follower in going.following.values() {
                // One more reference is `going`'s, and one that of what lies on it.
                let topper = usize::from(table.find(follower, &follower.root).is_some());
                if Arc::strong_count(follower) > OWN_REFERENCES + 1 + topper {
                    return Err(Errno::EBUSY);
                }
            }
        }
        going.restore_toppers(&mut table, gone);
        for mount in going.following.values().rev().chain(requested.iter().rev()) {
            remove(groups, &mut table, mount, gone);
        }
        gone.mounts.extend(requested);
        gone.mounts.extend(going.following.into_values());
        gone.mounts.extend(going.requested.into_values());
        Ok(())
    })
}

/// Ends a tree that was never attached: its descriptor was closed. Does nothing to one that is somewhere by now.
pub fn dissolve(top: &Arc<Mount>) {
    with_changes(|groups, gone| {
        if top.is_anonymous() {
            copy::discard(groups, top, gone);
        }
    });
}

/// Whether something is mounted on `dentry` in the process's namespace: it cannot be removed or replaced then.
pub fn is_local_mountpoint(dentry: &Dentry) -> bool {
    if !dentry.is_mountpoint() {
        return false;
    }
    let namespace = namespace::current();
    TABLE.read().on(dentry).iter().any(|mount| mount.is_in(&namespace))
}

/// Unmounts what other namespaces have on `dentry`, whose name is gone.
pub fn unmount_at(dentry: &Dentry) {
    if !dentry.is_mountpoint() {
        return;
    }
    with_changes(|groups, gone| {
        let list = TABLE.read().on(dentry);
        for mount in &list {
            copy::discard(groups, mount, gone);
        }
        gone.mounts.extend(list);
    });
}

/// Moves a mount to `to` (`MS_MOVE`, `move_mount`): one of the process's tree, or the top of a tree that is attached nowhere yet.
///
/// # Errors
/// `EINVAL` for what cannot be moved or moved there, `ELOOP` into itself, `ENOENT` when the place was removed.
pub fn move_mount(from: &Path, to: &Path) -> Result {
    with_changes(|groups, gone| {
        let at = place(to)?;
        check_move(from, &at, &at.mount)?;
        insert(groups, &from.mount, at, None, gone)
    })
}

/// Moves a mount below the topmost one at `to`, which then lies on the root of the moved one (`MOVE_MOUNT_BENEATH`).
///
/// # Errors
/// Those of [`move_mount`]; `EINVAL` when there is nothing mounted at `to`, something on the root of what is moved, or copies of it
/// would cover it or what it comes below.
pub fn move_beneath(from: &Path, to: &Path) -> Result {
    let root = crate::process::current().fs().root();
    with_changes(|groups, gone| {
        let top = place(to)?;
        let mount = &from.mount;
        let at = top.mount.mountpoint().filter(|_| top.is_mount_root()).ok_or(Errno::EINVAL)?;
        check_move(from, &top, &at.mount)?;
        let covered = TABLE.read().find(mount, &mount.root).is_some();
        let is_root = Arc::ptr_eq(&top.mount, &root.mount)
            || namespace::current().root().is_some_and(|root| Arc::ptr_eq(&root, &at.mount));
        if covered
            || is_root
            || is_inside(mount, &top.mount)
            || propagate::would_cover(groups, &at.mount, &top.mount, &at)
            || mount.is_local() && propagate::would_cover(groups, &at.mount, mount, &at)
        {
            return Err(Errno::EINVAL);
        }
        insert(groups, mount, at, Some(&top.mount), gone)
    })
}

/// Whether `mount` is `top` or mounted somewhere below it.
fn is_inside(mount: &Arc<Mount>, top: &Arc<Mount>) -> bool {
    let mut mount = mount.clone();
    loop {
        if Arc::ptr_eq(&mount, top) {
            return true;
        }
        match mount.mountpoint() {
            Some(at) => mount = at.mount,
            None => return false,
        }
    }
}

/// What a move of `from` over or below `at` asks, `parent` being the mount that it comes into.
fn check_move(from: &Path, at: &Path, parent: &Arc<Mount>) -> Result {
    let mount = &from.mount;
    let movable = match mount.mountpoint() {
        // Out of a shared parent, its peers would have to follow.
        Some(point) => mount.is_local() && point.mount.group() == 0,
        None => mount.is_anonymous(),
    };
    if !movable || !from.is_mount_root() || is_dir(&from.dentry) != is_dir(&at.dentry) {
        return Err(Errno::EINVAL);
    }
    let tree = TABLE.read().subtree(mount);
    if parent.group() != 0 && tree.iter().any(|mount| mount.is_unbindable()) {
        return Err(Errno::EINVAL);
    }
    let loops = is_inside(parent, mount) || tree.iter().any(|mount| copy::would_loop(&mount.root));
    if loops { Err(Errno::ELOOP) } else { Ok(()) }
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

/// Changes a mount of the process's namespace or of a tree that is attached nowhere, and all that is mounted below when
/// `recursive`: all of them or none.
///
/// # Errors
/// `EBUSY` for read-only while files are open for writing, `EINVAL` for other mounts.
pub fn set_attributes(mount: &Arc<Mount>, change: &Change, recursive: bool) -> Result {
    with_changes(|groups, gone| {
        let namespace = mount.namespace().ok_or(Errno::EINVAL)?;
        if !mount.is_local() && !namespace.is_anonymous() {
            return Err(Errno::EINVAL);
        }
        let list = if recursive { TABLE.read().subtree(mount) } else { Vec::from([mount.clone()]) };
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
        for mount in &list {
            match change.propagation {
                Some(Propagation::Shared) => groups.make_shared(mount),
                Some(Propagation::Slave) => groups.make_slave(mount),
                Some(Propagation::Private) => groups.make_private(mount, false),
                Some(Propagation::Unbindable) => groups.make_private(mount, true),
                None => {}
            }
        }
        gone.namespaces.push(namespace);
        gone.mounts.extend(list);
        Ok(())
    })
}

/// Makes `to` a peer of `from`, or a slave where `from` is one (`MOVE_MOUNT_SET_GROUP`).
///
/// # Errors
/// `EINVAL` unless both are mounts of one file system, `from` not private and `to` private, and `to` shows no more than `from`.
pub fn share_group(from: &Path, to: &Path) -> Result {
    with_changes(|groups, gone| {
        let (source, target) = (&from.mount, &to.mount);
        let namespace = target.namespace().ok_or(Errno::EINVAL)?;
        if !from.is_mount_root()
            || !to.is_mount_root()
            || source.namespace().is_none()
            || !Arc::ptr_eq(&source.sb, &target.sb)
            || !target.root.is_within(&source.root)
            || target.group() != 0
            || target.master() != 0
            || source.group() == 0 && source.master() == 0
        {
            return Err(Errno::EINVAL);
        }
        groups.follow(target, source.master());
        if source.group() != 0 {
            groups.join(target, source.group());
            target.links.lock().unbindable = false;
        }
        gone.namespaces.push(namespace);
        Ok(())
    })
}

/// Whether `path` is reached going down from `root`, through mounts.
pub(super) fn is_reachable(path: &Path, root: &Path) -> bool {
    let mut at = path.clone();
    while !Arc::ptr_eq(&at.mount, &root.mount) {
        match at.mount.mountpoint() {
            Some(point) => at = point,
            None => return false,
        }
    }
    at.dentry.is_within(&root.dentry)
}

/// `pivot_root`: `new_root`'s mount takes the place of the process's root, which is attached at `put_old`.
///
/// # Errors
/// `EINVAL` when the arguments are not mounts as pivot_root(2) asks, `EBUSY` when they are on the current root, `ENOENT`.
pub fn pivot(new_root: &Path, put_old: &Path, root: &Path) -> Result {
    with_changes(|_, gone| {
        let mut old = put_old.clone();
        TABLE.read().cross_down(&mut old);
        let (new, root_mount) = (&new_root.mount, &root.mount);
        let (new_at, root_at) = (new.mountpoint(), root_mount.mountpoint());
        let shared = |at: &Option<Path>| at.as_ref().is_some_and(|at| at.mount.group() != 0);
        if old.mount.group() != 0 || shared(&new_at) || shared(&root_at) || !root_mount.is_local() || !new.is_local() {
            return Err(Errno::EINVAL);
        }
        if new_root.dentry.is_deleted() || old.dentry.is_deleted() {
            return Err(Errno::ENOENT);
        }
        if Arc::ptr_eq(new, root_mount) || Arc::ptr_eq(&old.mount, root_mount) {
            return Err(Errno::EBUSY);
        }
        let (Some(_), Some(root_at)) = (new_at, root_at) else { return Err(Errno::EINVAL) };
        if !root.is_mount_root()
            || !new_root.is_mount_root()
            || !is_reachable(&old, new_root)
            || !is_reachable(new_root, root)
        {
            return Err(Errno::EINVAL);
        }
        let mut table = TABLE.write();
        gone.places.extend(table.take(new));
        gone.places.extend(table.take(root_mount));
        table.put(root_mount, old);
        table.put(new, root_at);
        drop(table);
        gone.namespaces.extend(new.namespace());
        Ok(())
    })
}
