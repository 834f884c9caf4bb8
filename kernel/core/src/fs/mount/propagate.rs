//! What a change in one mount does in its peers and slaves.
//!
//! Mounting: each follower of the place's mount gets a copy of the new tree. The copies in the place's own peers are peers of what
//! is mounted; those in a group of slaves are peers of each other and slaves of what the masters got. Unmounting: what is mounted
//! at the same place in a follower goes too, unless something is left in it.
//!
//! References: `Documentation/filesystems/sharedsubtree.rst`, `fs/pnode.c` (`propagate_mnt`, `propagate_umount`).

use alloc::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    vec::Vec,
};

use super::{
    Mount, TABLE, Table,
    change::Gone,
    copy::{self, Mode},
    group::Groups,
    namespace::Namespace,
};
use crate::{Result, fs::path::Path};

/// Trees for the followers, with their places, which are not attached yet.
#[derive(Default)]
pub(super) struct Copies {
    trees: Vec<(Arc<Mount>, Path)>,
    reserved: Vec<(Arc<Namespace>, usize)>,
}

/// One mounting that is repeated.
struct Repeat<'a> {
    groups: &'a mut Groups,
    at: &'a Path,
    copies: Copies,
}

/// Whether the place shows in `mount`, which is one that takes part: neither new nor in a tree that is attached nowhere.
fn shows(mount: &Arc<Mount>, at: &Path) -> bool {
    let attached = mount.namespace().is_some_and(|namespace| !namespace.is_anonymous());
    attached && !Arc::ptr_eq(mount, &at.mount) && at.dentry.is_within(&mount.root)
}

/// Copies of `source`, whose mounts are shared by now, for all followers of the place's mount.
///
/// # Errors
/// `ENOSPC` beyond a namespace's limit, `ENOMEM`. What was copied is in `gone` then.
pub(super) fn repeat(groups: &mut Groups, at: &Path, source: &Arc<Mount>, gone: &mut Gone) -> Result<Copies> {
    let mut repeat = Repeat { groups, at, copies: Copies::default() };
    let result = repeat.run(source);
    let copies = repeat.copies;
    match result {
        Ok(()) => Ok(copies),
        Err(error) => {
            for (tree, _) in copies.trees.iter().rev() {
                copy::discard(groups, tree, gone);
            }
            copies.settle();
            Err(error)
        }
    }
}

impl Repeat<'_> {
    fn run(&mut self, source: &Arc<Mount>) -> Result {
        let first = self.at.mount.group();
        for peer in self.groups.members(first) {
            self.copy(&peer, source, Mode::Same)?;
        }
        let mut work = Vec::from([(first, source.clone())]);
        while let Some((group, source)) = work.pop() {
            let mut done = BTreeSet::new();
            for slave in self.groups.slaves(group) {
                let own = slave.group();
                if own == 0 {
                    self.copy(&slave, &source, Mode::Slave)?;
                } else if done.insert(own) {
                    let mut first: Option<Arc<Mount>> = None;
                    for member in self.groups.members(own) {
                        let (from, mode) = match &first {
                            None => (&source, Mode::SharedSlave),
                            Some(first) => (first, Mode::Same),
                        };
                        let copy = self.copy(&member, from, mode)?;
                        first = first.or(copy);
                    }
                    work.push((own, first.unwrap_or_else(|| source.clone())));
                }
            }
        }
        Ok(())
    }

    /// Makes a copy of `source` for `target`, if the place shows there.
    fn copy(&mut self, target: &Arc<Mount>, source: &Arc<Mount>, mode: Mode) -> Result<Option<Arc<Mount>>> {
        let Some(namespace) = target.namespace().filter(|_| shows(target, self.at)) else { return Ok(None) };
        let mut pairs = copy::copy_tree(self.groups, source, &source.root, mode, true)?;
        let count = pairs.len();
        let top = pairs.swap_remove(0).1;
        self.copies.trees.push((top.clone(), Path { mount: target.clone(), dentry: self.at.dentry.clone() }));
        crate::sched::cond_resched();
        namespace.reserve(count)?;
        self.copies.reserved.push((namespace, count));
        Ok(Some(top))
    }
}

impl Copies {
    fn settle(&self) {
        for (namespace, count) in &self.reserved {
            namespace.settle(*count);
        }
    }

    /// Attaches the copies. What was mounted at a place already then lies on the copy.
    pub(super) fn commit(self, gone: &mut Gone) {
        self.settle();
        for (top, at) in self.trees {
            let Some(namespace) = at.mount.namespace() else { continue };
            for mount in TABLE.read().subtree(&top) {
                namespace.add(&mount);
            }
            let mut table = TABLE.write();
            match table.find(&at.mount, &at.dentry).cloned() {
                Some(covered) => {
                    gone.places.extend(table.take(&covered));
                    table.put(&top, at);
                    table.put(&covered, top.root_path());
                }
                None => table.put(&top, at),
            }
            drop(table);
            gone.namespaces.push(namespace);
        }
    }
}

/// What goes together.
pub(super) struct Going {
    /// Those that were asked for.
    pub requested: BTreeMap<u64, Arc<Mount>>,
    /// Those at the same places in followers.
    pub following: BTreeMap<u64, Arc<Mount>>,
}

impl Going {
    fn has(&self, mount: &Mount) -> bool {
        self.requested.contains_key(&mount.id) || self.following.contains_key(&mount.id)
    }

    /// Those of `mount`'s children that would be left, apart from one that lies on its root.
    fn is_blocked(&self, table: &Table, mount: &Mount) -> bool {
        let on_root = table.find(mount, &mount.root).map(|topper| topper.id);
        table.children(mount).iter().any(|child| Some(child.id) != on_root && !self.has(child))
    }

    /// Moves what lies on the roots of mounts that go, and stays, to where those were.
    pub(super) fn restore_toppers(&self, table: &mut Table, gone: &mut Gone) {
        for mount in self.following.values() {
            let Some(topper) = table.find(mount, &mount.root).cloned().filter(|topper| !self.has(topper)) else {
                continue;
            };
            let mut place = mount.mountpoint();
            while let Some(at) = place.as_ref().filter(|at| self.has(&at.mount)) {
                place = at.mount.mountpoint();
            }
            let Some(at) = place else { continue };
            gone.places.extend(table.take(&topper));
            if let Some(covered) = table.find(&at.mount, &at.dentry).cloned() {
                gone.places.extend(table.take(&covered));
            }
            table.put(&topper, at);
        }
    }
}

/// All that goes with `requested`: with its followers, if they have nothing in them that stays.
pub(super) fn going(groups: &Groups, table: &Table, requested: &[Arc<Mount>]) -> Going {
    let mut going = Going {
        requested: requested.iter().map(|mount| (mount.id, mount.clone())).collect(),
        following: BTreeMap::new(),
    };
    // A group's followers are looked at once for a dentry, however many of its mounts are asked for.
    let mut seen: BTreeSet<(u32, usize)> = BTreeSet::new();
    for mount in requested {
        let Some(at) = mount.mountpoint() else { continue };
        let group = at.mount.group();
        if group == 0 || !seen.insert((group, at.dentry.id())) {
            continue;
        }
        for follower in groups.followers(&at.mount, |group| seen.insert((group, at.dentry.id()))) {
            if let Some(child) = table.find(&follower, &at.dentry)
                && !going.requested.contains_key(&child.id)
            {
                going.following.insert(child.id, child.clone());
            }
        }
    }
    let blocked = |going: &Going| -> Vec<Arc<Mount>> {
        going.following.values().filter(|mount| going.is_blocked(table, mount)).cloned().collect()
    };
    // One that stays keeps the one that it is mounted in.
    let mut work = blocked(&going);
    while let Some(mount) = work.pop() {
        if going.following.remove(&mount.id).is_none() {
            continue;
        }
        if let Some(at) = mount.mountpoint()
            && at.dentry.id() != at.mount.root.id()
            && going.following.contains_key(&at.mount.id)
        {
            work.push(at.mount);
        }
    }
    going
}

/// Whether a mount in `from` at `at` would be repeated on the root of `to`.
pub(super) fn would_cover(groups: &Groups, from: &Mount, to: &Arc<Mount>, at: &Path) -> bool {
    from.group() != 0
        && to.root.id() == at.dentry.id()
        && groups.followers(from, |_| true).iter().any(|follower| Arc::ptr_eq(follower, to))
}
