//! A directory of tmpfs: names to inodes, with stable positions for `readdir`.
//!
//! Entries live in slots that never move; a hash table finds the slot of a name. A position in a listing is a slot number,
//! so removing and adding entries neither repeats nor skips one that stays. Freed slots are used again.

use alloc::{boxed::Box, sync::Arc, vec::Vec};

use hashbrown::HashTable;

use crate::fs::{DirSink, dentry::hash_name, inode::Inode};

struct Slot {
    hash: u64,
    name: Box<[u8]>,
    inode: Arc<Inode>,
}

/// The entries of a directory, `.` and `..` excepted.
#[derive(Default)]
pub struct Entries {
    index: HashTable<u32>,
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
}

fn hash_at(slots: &[Option<Slot>], slot: u32) -> u64 {
    slots[slot as usize].as_ref().map_or(0, |s| s.hash)
}

fn is_named(slots: &[Option<Slot>], slot: u32, hash: u64, name: &[u8]) -> bool {
    slots[slot as usize].as_ref().is_some_and(|s| s.hash == hash && *s.name == *name)
}

impl Entries {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether the directory may be removed.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    fn find(&self, name: &[u8]) -> Option<&Slot> {
        let hash = hash_name(name);
        let slot = *self.index.find(hash, |i| is_named(&self.slots, *i, hash, name))?;
        self.slots[slot as usize].as_ref()
    }

    /// The inode called `name`.
    pub fn get(&self, name: &[u8]) -> Option<&Arc<Inode>> {
        self.find(name).map(|s| &s.inode)
    }

    /// Adds an entry that is not there yet.
    pub fn insert(&mut self, name: &[u8], inode: Arc<Inode>) {
        let hash = hash_name(name);
        let entry = Some(Slot { hash, name: Box::from(name), inode });
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = entry;
                slot
            }
            None => {
                self.slots.push(entry);
                (self.slots.len() - 1) as u32
            }
        };
        let slots = &self.slots;
        self.index.insert_unique(hash, slot, |i| hash_at(slots, *i));
    }

    /// Removes an entry; its inode.
    pub fn remove(&mut self, name: &[u8]) -> Option<Arc<Inode>> {
        let hash = hash_name(name);
        let slots = &self.slots;
        let slot = self.index.find_entry(hash, |i| is_named(slots, *i, hash, name)).ok()?.remove().0;
        let entry = self.slots[slot as usize].take()?;
        self.free.push(slot);
        if self.index.is_empty() {
            // Nobody can be in the middle of anything but the end.
            self.slots.clear();
            self.free.clear();
        }
        Some(entry.inode)
    }

    /// Replaces the inode of an existing entry; the old one.
    pub fn replace(&mut self, name: &[u8], inode: Arc<Inode>) -> Option<Arc<Inode>> {
        let hash = hash_name(name);
        let slots = &self.slots;
        let slot = *self.index.find(hash, |i| is_named(slots, *i, hash, name))?;
        let entry = self.slots[slot as usize].as_mut()?;
        Some(core::mem::replace(&mut entry.inode, inode))
    }

    /// Lists from position `pos` on, where 0 and 1 are `.` and `..`, until the sink is full.
    pub fn list(&self, pos: &mut u64, sink: &mut dyn DirSink) {
        let first = usize::try_from(pos.saturating_sub(2)).unwrap_or(usize::MAX);
        for (at, slot) in self.slots.iter().enumerate().skip(first) {
            let Some(Slot { name, inode, .. }) = slot else { continue };
            let next = at as u64 + 3;
            if !sink.emit(name, inode.ino, inode.kind.dirent_type(), next) {
                return;
            }
            *pos = next;
        }
    }

    /// Takes all inodes out, for the end of the file system.
    pub fn drain(&mut self) -> Vec<Arc<Inode>> {
        self.index.clear();
        self.free.clear();
        core::mem::take(&mut self.slots).into_iter().flatten().map(|s| s.inode).collect()
    }
}
