//! Copies of trees: for bind mounts, `open_tree`, propagation and new namespaces.
//!
//! References: `fs/namespace.c` (`copy_tree`, `clone_mnt`, `copy_mnt_ns`).

use alloc::{sync::Arc, vec::Vec};

use super::{
    CHANGES, Mount, TABLE, change,
    group::Groups,
    namespace::{self, Hold, Namespace},
};
use crate::{
    Errno, Result,
    fs::{FsContext, dentry::Dentry, path::Path},
    namespace::{Claim, nsfs},
};

/// In which groups the copies are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// In those of what is copied.
    Same,
    /// As [`Mode::Same`], for a new namespace: what cannot be bound is copied too.
    Namespace,
    /// Slaves of what is copied, which is shared.
    Slave,
    /// Slaves of what is copied, each in a group of its own.
    SharedSlave,
}

/// Roughly what a mount costs, with its place in the tables.
const MOUNT_COST: usize = 1024;

/// Checks that `count` mounts can be made without using up what memory there is.
///
/// # Errors
/// `ENOMEM`.
fn check_memory(count: usize) -> Result {
    let free = ursa_hal::mm::stats().free as usize * ursa_hal::PAGE_SIZE;
    if count > 64 && count.saturating_mul(MOUNT_COST) > free / 4 { Err(Errno::ENOMEM) } else { Ok(()) }
}

fn copy_one(groups: &mut Groups, from: &Arc<Mount>, root: Arc<Dentry>, mode: Mode) -> Arc<Mount> {
    let new = Mount::new(from.sb.clone(), root, &from.source, from.flags());
    let (group, master, unbindable) = {
        let links = from.links.lock();
        (links.group, links.master, links.unbindable)
    };
    match mode {
        Mode::Same | Mode::Namespace => {
            groups.follow(&new, master);
            if group != 0 {
                groups.join(&new, group);
            }
            new.links.lock().unbindable = unbindable;
        }
        Mode::Slave => groups.follow(&new, group),
        Mode::SharedSlave => {
            groups.follow(&new, group);
            groups.make_shared(&new);
        }
    }
    new
}

/// A copy of `top` from `root` on, with what is mounted below, in no namespace; the pairs of what was copied and its copy, parents
/// first. `bindings`: whether bound files of mount namespaces are copied.
pub(super) fn copy_tree(
    groups: &mut Groups,
    top: &Arc<Mount>,
    root: &Arc<Dentry>,
    mode: Mode,
    bindings: bool,
) -> Result<Vec<(Arc<Mount>, Arc<Mount>)>> {
    let tree = TABLE.read().subtree(top);
    check_memory(tree.len())?;
    let mut pairs: Vec<(Arc<Mount>, Arc<Mount>)> = Vec::new();
    pairs.try_reserve_exact(tree.len()).map_err(|_| Errno::ENOMEM)?;
    pairs.push((top.clone(), copy_one(groups, top, root.clone(), mode)));
    // By the number of what was copied, since the tree is walked parents first.
    let mut copies = alloc::collections::BTreeMap::from([(top.id, pairs[0].1.clone())]);
    for mount in &tree[1..] {
        let Some(at) = mount.mountpoint() else { continue };
        let Some(parent) = copies.get(&at.mount.id).cloned() else { continue };
        let hidden = Arc::ptr_eq(&at.mount, top) && !at.dentry.is_within(root)
            || mode != Mode::Namespace && mount.is_unbindable()
            || !bindings && nsfs::is_mount_namespace(&mount.root);
        if hidden {
            continue;
        }
        let new = copy_one(groups, mount, mount.root.clone(), mode);
        TABLE.write().put(&new, Path { mount: parent, dentry: at.dentry });
        copies.insert(mount.id, new.clone());
        pairs.push((mount.clone(), new));
        if pairs.len().is_multiple_of(256) {
            crate::sched::cond_resched();
        }
    }
    Ok(pairs)
}

/// Takes a tree apart, without regard to followers.
pub(super) fn discard(groups: &mut Groups, top: &Arc<Mount>, gone: &mut change::Gone) {
    let mut table = TABLE.write();
    for mount in table.subtree(top).iter().rev() {
        change::remove(groups, &mut table, mount, gone);
        gone.mounts.push(mount.clone());
    }
}

/// A copy of what `from` shows for a bind mount, in no namespace.
///
/// # Errors
/// `EINVAL` for an unbindable source and for one outside of the process's tree that is no namespace's file.
pub(super) fn copy_for_bind(groups: &mut Groups, from: &Path, recursive: bool) -> Result<Arc<Mount>> {
    if from.mount.is_unbindable() || !from.mount.is_local() && !nsfs::is_namespace(&from.dentry) {
        return Err(Errno::EINVAL);
    }
    if !recursive {
        return Ok(copy_one(groups, &from.mount, from.dentry.clone(), Mode::Same));
    }
    let mut pairs = copy_tree(groups, &from.mount, &from.dentry, Mode::Same, true)?;
    Ok(pairs.swap_remove(0).1)
}

/// A copy of what `from` shows (and of what is mounted below when `recursive`), in an anonymous namespace (`OPEN_TREE_CLONE`).
///
/// # Errors
/// Those of a bind mount.
pub fn copy(from: &Path, recursive: bool) -> Result<Arc<Mount>> {
    let mut groups = CHANGES.lock();
    let top = copy_for_bind(&mut groups, from, recursive)?;
    set_apart(&top);
    drop(groups);
    Ok(top)
}

/// Puts a new mount into an anonymous namespace (`fsmount`).
pub fn detached(top: &Arc<Mount>) {
    let _changes = CHANGES.lock();
    set_apart(top);
}

/// Puts a new tree into an anonymous namespace. Under `CHANGES`.
fn set_apart(top: &Arc<Mount>) {
    let namespace = Namespace::anonymous();
    for mount in TABLE.read().subtree(top) {
        namespace.add(&mount);
    }
    namespace.set_root(top.clone());
}

/// A namespace with a copy of the tree of `from` (`CLONE_NEWNS`). Root and working directory of `context` go to the copies.
///
/// # Errors
/// `ENOMEM`.
pub fn copy_namespace(from: &Namespace, context: &FsContext, claim: Claim) -> Result<Hold> {
    let mut groups = CHANGES.lock();
    let root = from.root().ok_or(Errno::EINVAL)?;
    let pairs = copy_tree(&mut groups, &root, &root.root, Mode::Namespace, false)?;
    let new = Namespace::new(claim);
    for (_, copy) in &pairs {
        new.add(copy);
    }
    new.set_root(pairs[0].1.clone());
    drop(groups);
    let (root, cwd) = context.dirs();
    let moved = |path: &Path| {
        let copy = pairs.iter().find(|(old, _)| Arc::ptr_eq(old, &path.mount));
        copy.map(|(_, new)| Path { mount: new.clone(), dentry: path.dentry.clone() })
    };
    if let Some(root) = moved(&root) {
        context.set_root(root);
    }
    if let Some(cwd) = moved(&cwd) {
        context.set_cwd(cwd);
    }
    Ok(Hold::new(new))
}

/// Whether binding `dentry` in the process's tree could make a tree hold itself: it is the file of a mount namespace that is
/// not younger.
pub(super) fn would_loop(dentry: &Dentry) -> bool {
    nsfs::mount_namespace(dentry).is_some_and(|theirs| !namespace::current().is_older_than(&theirs))
}
