//! Peer groups: mounts that repeat each other's changes, and slaves that follow.
//!
//! Linux links peers in rings and gives each slave a mount as its master; here a group has a number, its members and the mounts
//! that are slaves of it. That says the same, since a slave follows all of a group alike: members of one group share their
//! master, and when the last member leaves, the group's slaves pass to the group's own master.
//!
//! The groups are what `CHANGES` protects, so whoever has them may change trees. References:
//! `Documentation/filesystems/sharedsubtree.rst`, `fs/pnode.c`.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    vec::Vec,
};

use super::Mount;

/// Mounts by number. All are in a namespace or belong to the change under way, so the references live.
type Members = BTreeMap<u64, Weak<Mount>>;

#[derive(Default)]
struct Group {
    members: Members,
    slaves: Members,
}

/// All groups, by number.
pub(super) struct Groups {
    table: BTreeMap<u32, Group>,
    last: u32,
}

fn living(members: &Members) -> Vec<Arc<Mount>> {
    members.values().filter_map(Weak::upgrade).collect()
}

impl Groups {
    pub(super) const fn new() -> Groups {
        Groups { table: BTreeMap::new(), last: 0 }
    }

    fn group(&mut self, number: u32) -> &mut Group {
        self.table.entry(number).or_default()
    }

    /// The mounts of a group.
    pub(super) fn members(&self, number: u32) -> Vec<Arc<Mount>> {
        self.table.get(&number).map_or_else(Vec::new, |group| living(&group.members))
    }

    /// The mounts that follow a group directly.
    pub(super) fn slaves(&self, number: u32) -> Vec<Arc<Mount>> {
        self.table.get(&number).map_or_else(Vec::new, |group| living(&group.slaves))
    }

    /// The group that a group's members are slaves of, 0 for none.
    pub(super) fn master_of(&self, number: u32) -> u32 {
        let members = self.table.get(&number).map(|group| &group.members);
        members.and_then(|list| list.values().find_map(Weak::upgrade)).map_or(0, |mount| mount.master())
    }

    /// A number that no group has, after the one that was given last.
    fn new_number(&mut self) -> u32 {
        loop {
            self.last = if self.last >= i32::MAX as u32 { 1 } else { self.last + 1 };
            if !self.table.contains_key(&self.last) {
                return self.last;
            }
        }
    }

    /// Makes a mount shared (`MS_SHARED`), in a group of its own unless it has one.
    pub(super) fn make_shared(&mut self, mount: &Arc<Mount>) {
        mount.links.lock().unbindable = false;
        if mount.group() == 0 {
            let number = self.new_number();
            self.join(mount, number);
        }
    }

    /// Makes a mount, which is in no group, a member of one.
    pub(super) fn join(&mut self, mount: &Arc<Mount>, number: u32) {
        self.group(number).members.insert(mount.id, Arc::downgrade(mount));
        mount.links.lock().group = number;
    }

    /// Makes a mount a slave of a group, and of no other; 0 for none.
    pub(super) fn follow(&mut self, mount: &Arc<Mount>, master: u32) {
        let former = core::mem::replace(&mut mount.links.lock().master, master);
        if former != 0 && former != master {
            self.group(former).slaves.remove(&mount.id);
        }
        if master != 0 {
            self.group(master).slaves.insert(mount.id, Arc::downgrade(mount));
        }
    }

    /// Takes a mount out of its peer group, as a slave of those that remain (`MS_SLAVE`), or of the group's own master.
    pub(super) fn make_slave(&mut self, mount: &Arc<Mount>) {
        let number = core::mem::take(&mut mount.links.lock().group);
        if number == 0 {
            return;
        }
        let group = self.group(number);
        group.members.remove(&mount.id);
        if !group.members.is_empty() {
            return self.follow(mount, number);
        }
        let slaves = living(&group.slaves);
        let master = mount.master();
        for slave in &slaves {
            self.follow(slave, master);
        }
        self.table.remove(&number);
    }

    /// Takes a mount out of all groups (`MS_PRIVATE`, `MS_UNBINDABLE`).
    pub(super) fn make_private(&mut self, mount: &Arc<Mount>, unbindable: bool) {
        self.make_slave(mount);
        self.follow(mount, 0);
        mount.links.lock().unbindable = unbindable;
    }

    /// All mounts that repeat what happens in `mount`, without itself: its peers, their slaves, and so on. `enter` says whether
    /// a group of slaves is to be looked at.
    pub(super) fn followers(&self, mount: &Mount, mut enter: impl FnMut(u32) -> bool) -> Vec<Arc<Mount>> {
        let first = mount.group();
        let mut found = Vec::new();
        let mut seen = BTreeSet::from([first]);
        let mut work = if first == 0 { Vec::new() } else { Vec::from([first]) };
        while let Some(number) = work.pop() {
            found.extend(self.members(number).into_iter().filter(|peer| !core::ptr::eq(&**peer, mount)));
            for slave in self.slaves(number) {
                match slave.group() {
                    0 => found.push(slave),
                    group if seen.insert(group) && enter(group) => work.push(group),
                    _ => {}
                }
            }
        }
        found
    }
}
