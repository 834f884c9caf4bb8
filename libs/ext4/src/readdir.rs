//! Listing directories.
//!
//! A position must stay right while names come and go and leaves split, also for a successor that has never seen the
//! directory. So names come in the order of their hashes, and a position is a hash, as in Linux; one block has no tree yet
//! and is listed as if it had one. Only directories that cannot get a tree are listed in the order of their bytes.

use crate::dir::DirBlock;
use crate::disk::dir;
use crate::disk::superblock::Compat;
use crate::error::Result;
use crate::fs::Fs;
use crate::hash::{HashKind, name_hash};
use crate::inode::{Inode, InodeData};

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// The inode.
    pub ino: u32,
    /// The kind as directories store it (`EXT4_FT_…`, 0 unknown).
    pub kind: u8,
    /// The name.
    pub name: &'a [u8],
    /// The position after it.
    pub next: u64,
}

/// The first position after `.` and `..`.
const FIRST: u64 = 2;

struct Listed {
    position: u64,
    ino: u32,
    kind: u8,
    name: Vec<u8>,
}

impl Fs {
    /// Lists a directory from a position on (0: the start) until `each` says `false`, which means that it did not take the
    /// entry.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt), or the device's.
    pub fn read_dir(&self, dir: &Inode, from: u64, each: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let data = dir.lock.read();
        self.noticing(self.list(&data, from, each))
    }

    fn list(&self, data: &InodeData, from: u64, each: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        for (position, name) in [(0, &b"."[..]), (1, b"..")] {
            if from <= position {
                let Some(found) = self.find_name(data, name)? else { continue };
                if !each(DirEntry { ino: found.ino, kind: 2, name, next: position + 1 }) {
                    return Ok(());
                }
            }
        }
        let from = from.max(FIRST);
        let blocks = self.dir_blocks(data);
        if self.geo.compat.contains(Compat::DIR_INDEX) && (self.is_indexed(data) || blocks <= 1) {
            self.list_by_hash(data, from, each)
        } else {
            self.list_by_place(data, from, each)
        }
    }

    fn position(&self, kind: HashKind, name: &[u8]) -> u64 {
        let (hash, minor) = name_hash(kind, &self.geo.hash_seed, name);
        (u64::from(hash >> 1) << 32 | u64::from(minor)).max(FIRST)
    }

    /// The names of a block with positions from `from` on, in order.
    fn sorted(&self, data: &InodeData, lblk: u32, hash: HashKind, from: u64, out: &mut Vec<Listed>) -> Result<()> {
        let kind = if self.is_indexed(data) { Some(DirBlock::Leaf) } else { None };
        let buf = self.dir_block(data, lblk, kind)?;
        for entry in dir::walk(&buf.read()) {
            let entry = entry?;
            if entry.ino == 0 || entry.name == b"." || entry.name == b".." {
                continue;
            }
            let position = self.position(hash, entry.name);
            if position >= from {
                out.push(Listed { position, ino: entry.ino, kind: entry.kind, name: entry.name.to_vec() });
            }
        }
        out.sort_by(|a, b| (a.position, &a.name).cmp(&(b.position, &b.name)));
        Ok(())
    }

    fn list_by_hash(&self, data: &InodeData, from: u64, each: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let mut names = Vec::new();
        if !self.is_indexed(data) {
            if self.dir_blocks(data) > 0 {
                self.sorted(data, 0, self.default_hash(), from, &mut names)?;
                give(&names, each);
            }
            return Ok(());
        }
        let hash = ((from >> 32) as u32) << 1;
        let mut walk = self.dx_walk_to(data, |_, _| hash)?;
        loop {
            self.sorted(data, walk.leaf()?, walk.kind, from, &mut names)?;
            let next = self.dx_next(data, &mut walk)?;
            // Names of one hash that lie in two leaves must be sorted together.
            if next.is_some_and(|next| next & 1 != 0) {
                continue;
            }
            if !give(&names, each) || next.is_none() {
                return Ok(());
            }
            names.clear();
        }
    }

    fn list_by_place(&self, data: &InodeData, from: u64, each: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        // Positions 0 and 1 are taken by what is at the first bytes.
        let start = from.saturating_sub(FIRST);
        let bits = self.geo.block_bits;
        for lblk in (start >> bits) as u32..self.dir_blocks(data) {
            let buf = self.dir_block(data, lblk, None)?;
            let base = u64::from(lblk) << bits;
            for entry in dir::walk(&buf.read()) {
                let entry = entry?;
                if entry.ino == 0 || base + (entry.at as u64) < start || entry.name == b"." || entry.name == b".." {
                    continue;
                }
                let next = base + (entry.at + entry.rec_len) as u64 + FIRST;
                if !each(DirEntry { ino: entry.ino, kind: entry.kind, name: entry.name, next }) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Hands names out; those of one position share what comes after, so that a reader who stops between them gets all again.
fn give(names: &[Listed], each: &mut dyn FnMut(DirEntry<'_>) -> bool) -> bool {
    for (i, name) in names.iter().enumerate() {
        let more_here = names.get(i + 1).is_some_and(|next| next.position == name.position);
        let next = if more_here { name.position } else { name.position + 1 };
        if !each(DirEntry { ino: name.ino, kind: name.kind, name: &name.name, next }) {
            return false;
        }
    }
    true
}
