//! Directories: finding, adding and removing names. The hash tree is in [`crate::htree`].

use std::sync::Arc;

use rustix::io::Errno;

use crate::balloc::Budget;
use crate::cache::Buf;
use crate::csum::BlockSum;
use crate::disk::dir::{self, NODE_ENTRIES, ROOT_ENTRIES, TAIL};
use crate::disk::extent::Extent;
use crate::disk::inode::InodeFlags;
use crate::disk::superblock::{Compat, Incompat};
use crate::error::{Error, Result};
use crate::extent::Mapped;
use crate::fs::Fs;
use crate::inode::{InodeData, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK};
use crate::journal::Handle;

/// What adding a name may take: a leaf, a node, and what their places in the map take.
pub(crate) const INSERT_BUDGET: u32 = 8;
/// Blocks that adding a name may change.
pub(crate) const INSERT_CREDITS: usize = 20;

/// A name that was found.
pub(crate) struct Found {
    pub buf: Arc<Buf>,
    pub at: usize,
    pub ino: u32,
}

/// What a block of a directory is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DirBlock {
    Leaf,
    Root,
    Node,
}

/// The kind of an inode as directories tell it (`EXT4_FT_…`).
pub(crate) fn kind_of(mode: u32) -> u8 {
    match mode & S_IFMT {
        S_IFREG => 1,
        S_IFDIR => 2,
        S_IFCHR => 3,
        S_IFBLK => 4,
        S_IFIFO => 5,
        S_IFSOCK => 6,
        S_IFLNK => 7,
        _ => 0,
    }
}

/// The kind as `getdents(2)` tells it (`DT_…`).
pub fn dirent_type(kind: u8) -> u8 {
    match kind {
        1 => 8,
        2 => 4,
        3 => 2,
        4 => 6,
        5 => 1,
        6 => 12,
        7 => 10,
        _ => 0,
    }
}

impl Fs {
    /// The kind byte to store with a name.
    pub(crate) fn stored_kind(&self, mode: u32) -> u8 {
        if self.geo.incompat.contains(Incompat::FILETYPE) { kind_of(mode) } else { 0 }
    }

    /// Number of blocks of a directory.
    pub(crate) fn dir_blocks(&self, data: &InodeData) -> u32 {
        (data.size() >> self.geo.block_bits).min(u32::MAX.into()) as u32
    }

    /// Whether names are found by their hashes.
    pub(crate) fn is_indexed(&self, data: &InodeData) -> bool {
        data.flags().contains(InodeFlags::INDEX) && self.geo.compat.contains(Compat::DIR_INDEX)
    }

    /// Bytes at the end of a leaf that hold its checksum.
    pub(crate) fn tail_len(&self) -> usize {
        if self.geo.metadata_csum() { TAIL } else { 0 }
    }

    pub(crate) fn dir_sum(&self, data: &InodeData, kind: DirBlock) -> BlockSum {
        if !self.geo.metadata_csum() {
            return BlockSum::None;
        }
        match kind {
            DirBlock::Leaf => BlockSum::DirLeaf(data.seed),
            DirBlock::Root => BlockSum::DirNode(data.seed, ROOT_ENTRIES),
            DirBlock::Node => BlockSum::DirNode(data.seed, NODE_ENTRIES),
        }
    }

    /// A block of a directory. `kind` is `None` where that is to be found out from the block.
    pub(crate) fn dir_block(&self, data: &InodeData, lblk: u32, kind: Option<DirBlock>) -> Result<Arc<Buf>> {
        let phys = match self.map(data, lblk)? {
            Mapped::Run { phys, unwritten: false, .. } => phys,
            _ => return Err(Error::Corrupt("directory with a hole", data.ino.into())),
        };
        self.cache.get(phys, &self.journal, |bytes| {
            let kind = kind.unwrap_or_else(|| {
                let is_node = dir::entry(bytes, 0).is_ok_and(|entry| entry.ino == 0 && entry.rec_len == bytes.len());
                match is_node && self.is_indexed(data) {
                    true => DirBlock::Node,
                    false if lblk == 0 && self.is_indexed(data) => DirBlock::Root,
                    false => DirBlock::Leaf,
                }
            });
            let sum = self.dir_sum(data, kind);
            if !sum.verify(bytes) {
                return Err(Error::Corrupt("directory block's checksum", phys));
            }
            Ok(sum)
        })
    }

    fn find_in_block(&self, buf: &Arc<Buf>, name: &[u8]) -> Result<Option<Found>> {
        let bytes = buf.read();
        Ok(dir::find(&bytes, name)?.map(|entry| Found { buf: buf.clone(), at: entry.at, ino: entry.ino }))
    }

    /// Looks a name up in a directory, which may be `.` or `..`.
    pub(crate) fn find_name(&self, data: &InodeData, name: &[u8]) -> Result<Option<Found>> {
        if name.len() > dir::NAME_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        if name == b"." || name == b".." {
            return if self.dir_blocks(data) == 0 {
                Ok(None)
            } else {
                self.find_in_block(&self.dir_block(data, 0, None)?, name)
            };
        }
        if self.is_indexed(data) {
            let mut walk = self.dx_walk(data, name)?;
            loop {
                let leaf = self.dir_block(data, walk.leaf()?, Some(DirBlock::Leaf))?;
                if let Some(found) = self.find_in_block(&leaf, name)? {
                    return Ok(Some(found));
                }
                // Equal hashes may go on in the next leaf.
                if !self.dx_continues(data, &mut walk)? {
                    return Ok(None);
                }
            }
        }
        for lblk in 0..self.dir_blocks(data) {
            if let Some(found) = self.find_in_block(&self.dir_block(data, lblk, None)?, name)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Adds a block at a directory's end: its number in the directory, and the block, zeroed.
    pub(crate) fn append_dir_block(
        &self,
        handle: &Handle<'_>,
        budget: &mut Budget<'_>,
        data: &mut InodeData,
        kind: DirBlock,
    ) -> Result<(u32, Arc<Buf>)> {
        let lblk = self.dir_blocks(data);
        let goal = self.goal_for(data, lblk)?;
        let phys = self.take_meta(handle, budget, goal)?;
        self.insert_extent(handle, budget, data, Extent { lblk, len: 1, phys, unwritten: false })?;
        data.add_blocks(1, &self.geo);
        data.set_size(u64::from(lblk + 1) << self.geo.block_bits);
        Ok((lblk, self.cache.get_new(phys, self.dir_sum(data, kind))))
    }

    /// Makes a block an empty leaf.
    pub(crate) fn clear_leaf(&self, bytes: &mut [u8]) {
        bytes.fill(0);
        let tail = self.tail_len();
        let len = bytes.len() - tail;
        dir::put_entry(bytes, 0, 0, len, 0, b"");
        if tail > 0 {
            dir::put_tail(bytes);
        }
    }

    /// Adds a name that is not there. The inode is changed and not written.
    pub(crate) fn add_name(
        &self,
        handle: &Handle<'_>,
        budget: &mut Budget<'_>,
        data: &mut InodeData,
        name: &[u8],
        ino: u32,
        kind: u8,
    ) -> Result<()> {
        if name.len() > dir::NAME_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        if self.is_indexed(data) {
            return self.dx_insert(handle, budget, data, name, ino, kind);
        }
        let blocks = self.dir_blocks(data);
        for lblk in 0..blocks {
            let buf = self.dir_block(data, lblk, None)?;
            // Looked at first, so that full blocks do not become part of the transaction.
            let room = dir::room(&buf.read(), name)?;
            if let Some(room) = room {
                dir::insert(&mut handle.modify(&buf), room, ino, kind, name);
                return Ok(());
            }
        }
        if blocks == 1 && self.geo.compat.contains(Compat::DIR_INDEX) {
            self.dx_make_root(handle, budget, data)?;
            return self.dx_insert(handle, budget, data, name, ino, kind);
        }
        let (_, buf) = self.append_dir_block(handle, budget, data, DirBlock::Leaf)?;
        let mut bytes = handle.modify(&buf);
        self.clear_leaf(&mut bytes);
        let room = dir::room(&bytes, name)?.ok_or(Error::Corrupt("empty leaf without room", data.ino.into()))?;
        dir::insert(&mut bytes, room, ino, kind, name);
        Ok(())
    }

    /// Takes a name out.
    pub(crate) fn remove_name(&self, handle: &Handle<'_>, found: &Found) -> Result<()> {
        dir::remove(&mut handle.modify(&found.buf), found.at)
    }

    /// Lets a name lead elsewhere.
    pub(crate) fn set_name(&self, handle: &Handle<'_>, found: &Found, ino: u32, kind: u8) {
        let mut bytes = handle.modify(&found.buf);
        crate::disk::put32(&mut bytes, found.at, ino);
        if self.geo.incompat.contains(Incompat::FILETYPE) {
            bytes[found.at + 7] = kind;
        }
    }

    /// Whether a directory has nothing but `.` and `..`.
    pub(crate) fn dir_is_empty(&self, data: &InodeData) -> Result<bool> {
        for lblk in 0..self.dir_blocks(data) {
            let buf = self.dir_block(data, lblk, None)?;
            for entry in dir::walk(&buf.read()) {
                let entry = entry?;
                if entry.ino != 0 && entry.name != b"." && entry.name != b".." {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Gives a new directory its first block, with `.` and `..`.
    pub(crate) fn init_dir(
        &self,
        handle: &Handle<'_>,
        budget: &mut Budget<'_>,
        data: &mut InodeData,
        parent: u32,
    ) -> Result<()> {
        let (_, buf) = self.append_dir_block(handle, budget, data, DirBlock::Leaf)?;
        let kind = self.stored_kind(S_IFDIR);
        let mut bytes = handle.modify(&buf);
        let tail = self.tail_len();
        let len = bytes.len() - tail;
        dir::put_entry(&mut bytes, 0, data.ino, 12, kind, b".");
        dir::put_entry(&mut bytes, 12, parent, len - 12, kind, b"..");
        if tail > 0 {
            dir::put_tail(&mut bytes);
        }
        Ok(())
    }
}
