//! The hash tree of a directory: a root in its first block, one level of inner nodes at most, leaves that are ordinary blocks.

use std::sync::Arc;

use rustix::io::Errno;

use crate::balloc::Budget;
use crate::cache::Buf;
use crate::dir::DirBlock;
use crate::disk::dir::{self, NODE_ENTRIES, ROOT_ENTRIES, ROOT_INFO, dx};
use crate::disk::inode::InodeFlags;
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::hash::{HashKind, name_hash};
use crate::inode::InodeData;
use crate::journal::Handle;

/// Levels below the root, without the `large_dir` feature.
const MAX_LEVELS: u8 = 1;

/// A node on the way, and the entry taken there.
struct Frame {
    buf: Arc<Buf>,
    base: usize,
    at: usize,
}

/// The way from the root to a leaf.
pub(crate) struct DxWalk {
    frames: Vec<Frame>,
    hash: u32,
    pub kind: HashKind,
}

impl DxWalk {
    /// The leaf's number in the directory.
    pub(crate) fn leaf(&self) -> Result<u32> {
        let frame = self.frames.last().ok_or(Error::Corrupt("hash tree", 0))?;
        Ok(dx::child(&frame.buf.read(), frame.base, frame.at))
    }
}

impl Fs {
    /// How names of a new tree are hashed.
    pub(crate) fn default_hash(&self) -> HashKind {
        HashKind { version: self.geo.hash_version.min(2), unsigned: self.geo.hash_unsigned }
    }

    /// Room for entries in a node.
    fn dx_room(&self, base: usize) -> usize {
        let tail = if self.geo.metadata_csum() { 8 } else { 0 };
        (self.geo.block_size - base - tail) / 8
    }

    fn hash_name(&self, kind: HashKind, name: &[u8]) -> (u32, u32) {
        name_hash(kind, &self.geo.hash_seed, name)
    }

    pub(crate) fn dx_walk(&self, data: &InodeData, name: &[u8]) -> Result<DxWalk> {
        self.dx_walk_to(data, |fs, kind| fs.hash_name(kind, name).0)
    }

    /// From the root to the leaf of a hash.
    pub(crate) fn dx_walk_to(&self, data: &InodeData, hash: impl FnOnce(&Fs, HashKind) -> u32) -> Result<DxWalk> {
        let bad = |what| Error::Corrupt(what, data.ino.into());
        let buf = self.dir_block(data, 0, Some(DirBlock::Root))?;
        let (version, levels) = {
            let bytes = buf.read();
            if bytes[ROOT_INFO + 5] != 8 || bytes[ROOT_INFO + 4] > 2 {
                return Err(bad("hash tree's root"));
            }
            (bytes[ROOT_INFO + 4], bytes[ROOT_INFO + 6])
        };
        if levels > MAX_LEVELS {
            return Err(bad("hash tree is too high"));
        }
        let kind = HashKind { version, unsigned: self.geo.hash_unsigned };
        let hash = hash(self, kind);
        let mut walk = DxWalk { frames: Vec::with_capacity(2), hash, kind };
        let (mut buf, mut base) = (buf, ROOT_ENTRIES);
        for level in 0..=levels {
            let bytes = buf.read();
            dx::check(&bytes, base, self.dx_room(base), buf.block)?;
            let at = dx::find(&bytes, base, hash);
            let child = dx::child(&bytes, base, at);
            drop(bytes);
            walk.frames.push(Frame { buf, base, at });
            if level == levels {
                break;
            }
            buf = self.dir_block(data, child, Some(DirBlock::Node))?;
            base = NODE_ENTRIES;
        }
        Ok(walk)
    }

    /// Goes to the next leaf; its least hash, or `None` at the end.
    pub(crate) fn dx_next(&self, data: &InodeData, walk: &mut DxWalk) -> Result<Option<u32>> {
        let Some(level) = walk.frames.iter().rposition(|frame| frame.at + 1 < dx::count(&frame.buf.read(), frame.base))
        else {
            return Ok(None);
        };
        walk.frames[level].at += 1;
        let (hash, mut child) = {
            let frame = &walk.frames[level];
            let bytes = frame.buf.read();
            (dx::hash(&bytes, frame.base, frame.at), dx::child(&bytes, frame.base, frame.at))
        };
        for below in level + 1..walk.frames.len() {
            let buf = self.dir_block(data, child, Some(DirBlock::Node))?;
            dx::check(&buf.read(), NODE_ENTRIES, self.dx_room(NODE_ENTRIES), buf.block)?;
            child = dx::child(&buf.read(), NODE_ENTRIES, 0);
            walk.frames[below] = Frame { buf, base: NODE_ENTRIES, at: 0 };
        }
        Ok(Some(hash))
    }

    /// Goes to the next leaf if names of this hash go on there.
    pub(crate) fn dx_continues(&self, data: &InodeData, walk: &mut DxWalk) -> Result<bool> {
        let hash = walk.hash;
        // The lowest bit of a leaf's hash says so.
        Ok(self.dx_next(data, walk)?.is_some_and(|next| next == hash | 1))
    }

    /// Makes a directory of one block a tree of a root and that block.
    pub(crate) fn dx_make_root(
        &self,
        handle: &Handle<'_>,
        budget: &mut Budget<'_>,
        data: &mut InodeData,
    ) -> Result<()> {
        let root = self.dir_block(data, 0, None)?;
        let (dot_dot, kept) = {
            let bytes = root.read();
            let dot = dir::entry(&bytes, 0)?;
            let dot_dot = dir::entry(&bytes, dot.rec_len)?;
            if dot.name != b"." || dot_dot.name != b".." {
                return Err(Error::Corrupt("directory without . and ..", data.ino.into()));
            }
            (dot_dot.ino, self.collect(&bytes, dot.rec_len + dot_dot.rec_len)?)
        };
        let (lblk, leaf) = self.append_dir_block(handle, budget, data, DirBlock::Leaf)?;
        self.pack(&mut handle.modify(&leaf), &kept);
        let kind = self.stored_kind(crate::S_IFDIR);
        let hash = self.default_hash();
        let limit = self.dx_room(ROOT_ENTRIES);
        let mut bytes = handle.modify(&root);
        bytes.fill(0);
        let len = bytes.len();
        dir::put_entry(&mut bytes, 0, data.ino, 12, kind, b".");
        dir::put_entry(&mut bytes, 12, dot_dot, len - 12, kind, b"..");
        bytes[ROOT_INFO + 4] = hash.version;
        bytes[ROOT_INFO + 5] = 8;
        dx::set_count_limit(&mut bytes, ROOT_ENTRIES, 1, limit);
        dx::set(&mut bytes, ROOT_ENTRIES, 0, 0, lblk);
        drop(bytes);
        root.lock().sum = self.dir_sum(data, DirBlock::Root);
        let flags = data.flags() | InodeFlags::INDEX;
        data.set_flags(flags);
        Ok(())
    }

    /// The names in a leaf from `from` on.
    fn collect(&self, bytes: &[u8], from: usize) -> Result<Vec<(u32, u8, Vec<u8>)>> {
        let mut kept = Vec::new();
        for entry in dir::walk(bytes) {
            let entry = entry?;
            if entry.at >= from && entry.ino != 0 {
                kept.push((entry.ino, entry.kind, entry.name.to_vec()));
            }
        }
        Ok(kept)
    }

    /// Makes a leaf of names.
    fn pack(&self, bytes: &mut [u8], names: &[(u32, u8, Vec<u8>)]) {
        self.clear_leaf(bytes);
        let end = bytes.len() - self.tail_len();
        let mut at = 0;
        for (i, (ino, kind, name)) in names.iter().enumerate() {
            let len = if i + 1 == names.len() { end - at } else { dir::entry_len(name.len()) };
            dir::put_entry(bytes, at, *ino, len, *kind, name);
            at += len;
        }
    }

    pub(crate) fn dx_insert(
        &self,
        handle: &Handle<'_>,
        budget: &mut Budget<'_>,
        data: &mut InodeData,
        name: &[u8],
        ino: u32,
        kind: u8,
    ) -> Result<()> {
        // Each round inserts, or splits one node.
        for _ in 0..8 {
            let walk = self.dx_walk(data, name)?;
            let leaf = self.dir_block(data, walk.leaf()?, Some(DirBlock::Leaf))?;
            let room = dir::room(&leaf.read(), name)?;
            if let Some(room) = room {
                dir::insert(&mut handle.modify(&leaf), room, ino, kind, name);
                return Ok(());
            }
            let frame = walk.frames.last().ok_or(Error::Corrupt("hash tree", data.ino.into()))?;
            let is_full = {
                let bytes = frame.buf.read();
                dx::count(&bytes, frame.base) >= dx::limit(&bytes, frame.base)
            };
            if is_full {
                self.dx_split_node(handle, budget, data, &walk)?;
            } else {
                self.dx_split_leaf(handle, budget, data, &walk, &leaf)?;
            }
        }
        Err(Errno::NOSPC.into())
    }

    fn dx_split_node(
        &self,
        handle: &Handle<'_>,
        budget: &mut Budget<'_>,
        data: &mut InodeData,
        walk: &DxWalk,
    ) -> Result<()> {
        let root = &walk.frames[0];
        let read = |frame: &Frame| {
            let bytes = frame.buf.read();
            let count = dx::count(&bytes, frame.base);
            (0..count).map(|i| (dx::hash(&bytes, frame.base, i), dx::child(&bytes, frame.base, i))).collect::<Vec<_>>()
        };
        let write = |bytes: &mut [u8], base: usize, entries: &[(u32, u32)]| {
            let limit = self.dx_room(base);
            dx::set_count_limit(bytes, base, entries.len(), limit);
            for (i, (hash, child)) in entries.iter().enumerate() {
                dx::set(bytes, base, i, *hash, *child);
            }
        };
        if walk.frames.len() == 1 {
            // A level more: the root's entries go down.
            let entries = read(root);
            let (lblk, node) = self.append_dir_block(handle, budget, data, DirBlock::Node)?;
            let mut bytes = handle.modify(&node);
            let len = bytes.len();
            dir::put_entry(&mut bytes, 0, 0, len, 0, b"");
            write(&mut bytes, NODE_ENTRIES, &entries);
            drop(bytes);
            let mut bytes = handle.modify(&root.buf);
            bytes[ROOT_INFO + 6] = 1;
            write(&mut bytes, ROOT_ENTRIES, &[(0, lblk)]);
            return Ok(());
        }
        let root_is_full = {
            let bytes = root.buf.read();
            dx::count(&bytes, root.base) >= dx::limit(&bytes, root.base)
        };
        if root_is_full {
            // Linux says the same of a directory that is as large as its tree can be.
            return Err(Errno::NOSPC.into());
        }
        let full = &walk.frames[1];
        let entries = read(full);
        let (lower, upper) = entries.split_at(entries.len() / 2);
        let (lblk, node) = self.append_dir_block(handle, budget, data, DirBlock::Node)?;
        let mut bytes = handle.modify(&node);
        let len = bytes.len();
        dir::put_entry(&mut bytes, 0, 0, len, 0, b"");
        write(&mut bytes, NODE_ENTRIES, upper);
        drop(bytes);
        write(&mut handle.modify(&full.buf), NODE_ENTRIES, lower);
        dx::insert(&mut handle.modify(&root.buf), ROOT_ENTRIES, root.at + 1, upper[0].0, lblk);
        Ok(())
    }

    fn dx_split_leaf(
        &self,
        handle: &Handle<'_>,
        budget: &mut Budget<'_>,
        data: &mut InodeData,
        walk: &DxWalk,
        leaf: &Arc<Buf>,
    ) -> Result<()> {
        let mut names: Vec<_> = self.collect(&leaf.read(), 0)?;
        let hash = |name: &(u32, u8, Vec<u8>)| self.hash_name(walk.kind, &name.2).0;
        names.sort_by_cached_key(hash);
        // Half of the bytes.
        let total: usize = names.iter().map(|name| dir::entry_len(name.2.len())).sum();
        let mut size = 0;
        let split = names.iter().position(|name| {
            size += dir::entry_len(name.2.len());
            size > total / 2
        });
        let split = split.unwrap_or(0).max(1);
        if split >= names.len() {
            return Err(Error::Corrupt("leaf that is full of one name", leaf.block));
        }
        let (lower, upper) = names.split_at(split);
        let first = hash(&upper[0]);
        let continued = u32::from(lower.last().map(hash) == Some(first));
        let (lblk, new) = self.append_dir_block(handle, budget, data, DirBlock::Leaf)?;
        self.pack(&mut handle.modify(&new), upper);
        self.pack(&mut handle.modify(leaf), lower);
        let parent = &walk.frames[walk.frames.len() - 1];
        dx::insert(&mut handle.modify(&parent.buf), parent.base, parent.at + 1, first | continued, lblk);
        Ok(())
    }
}
