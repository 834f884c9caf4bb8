//! The map of a file: which blocks of the disk hold which of its own.
//!
//! Two primitives change a tree: [`Fs::insert_extent`] adds a run that overlaps nothing, [`Fs::cut`] takes a range out and
//! says what was there. Punching a hole is a cut and freeing, making unwritten blocks written a cut and insertions. Keys of
//! index nodes are always those of their first child.

use std::sync::Arc;

use crate::balloc::Budget;
use crate::cache::Buf;
use crate::csum::BlockSum;
use crate::disk::extent::{self, ENTRY, Extent, Index, MAX_DEPTH};
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::inode::InodeData;
use crate::journal::Handle;

/// What is at a block of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// Nothing, for this many blocks.
    Hole(u64),
    /// Blocks on the disk.
    Run {
        /// The first.
        phys: u64,
        /// How many follow each other.
        len: u32,
        /// They read as zeroes.
        unwritten: bool,
    },
}

impl Mapped {
    /// How many blocks this speaks of.
    pub fn len(&self) -> u64 {
        match *self {
            Mapped::Hole(len) => len,
            Mapped::Run { len, .. } => len.into(),
        }
    }
}

/// A node: the root is in the inode.
#[derive(Clone)]
enum Node {
    Root,
    Block(Arc<Buf>),
}

/// A node and the entry that was taken there; `None` where all keys are greater.
struct Step {
    node: Node,
    at: Option<usize>,
}

impl Fs {
    fn extent_block(&self, data: &InodeData, block: u64, depth: u16) -> Result<Arc<Buf>> {
        if !self.geo.is_inside(block, 1) {
            return Err(Error::Corrupt("extent node's block", block));
        }
        let csum = self.geo.metadata_csum();
        let seed = data.seed;
        let buf = self.cache.get(block, &self.journal, |bytes| {
            extent::check(bytes, block)?;
            let sum = if csum { BlockSum::Extent(seed) } else { BlockSum::None };
            if !sum.verify(bytes) {
                return Err(Error::Corrupt("extent node's checksum", block));
            }
            Ok(sum)
        })?;
        extent::check_header(&buf.read(), Some(depth), block)?;
        Ok(buf)
    }

    fn with_node<T>(&self, data: &InodeData, node: &Node, look: impl FnOnce(&[u8]) -> T) -> T {
        match node {
            Node::Root => look(&data.disk().block),
            Node::Block(buf) => look(&buf.read()),
        }
    }

    fn change_node<T>(
        &self,
        handle: &Handle<'_>,
        data: &mut InodeData,
        node: &Node,
        change: impl FnOnce(&mut [u8]) -> T,
    ) -> T {
        match node {
            Node::Root => change(&mut data.disk_mut().block),
            Node::Block(buf) => change(&mut handle.modify(buf)),
        }
    }

    /// From the root to the leaf where `lblk` is or would be.
    fn path(&self, data: &InodeData, lblk: u32) -> Result<Vec<Step>> {
        extent::check_header(&data.disk().block, None, data.ino.into())?;
        let mut depth = extent::depth(&data.disk().block);
        let mut path = Vec::with_capacity(usize::from(depth) + 1);
        let mut node = Node::Root;
        loop {
            let at = self.with_node(data, &node, |bytes| extent::find(bytes, lblk));
            if depth == 0 {
                path.push(Step { node, at });
                return Ok(path);
            }
            // Before the first key there can be nothing, but insertions go to the first child.
            let index = self.with_node(data, &node, |bytes| extent::get_index(bytes, at.unwrap_or(0)));
            depth -= 1;
            let child = self.extent_block(data, index.child, depth)?;
            path.push(Step { node, at: Some(at.unwrap_or(0)) });
            node = Node::Block(child);
        }
    }

    /// The first key after the path's entry.
    fn next_key(&self, data: &InodeData, path: &[Step]) -> u64 {
        for step in path.iter().rev() {
            let next = step.at.map_or(0, |at| at + 1);
            let key = self
                .with_node(data, &step.node, |bytes| (next < extent::entries(bytes)).then(|| extent::key(bytes, next)));
            if let Some(key) = key {
                return key.into();
            }
        }
        1 << 32
    }

    /// What is at a block of a file.
    pub(crate) fn map(&self, data: &InodeData, lblk: u32) -> Result<Mapped> {
        if !data.has_extents() {
            return self.map_indirect(data, lblk);
        }
        let path = self.path(data, lblk)?;
        let leaf = &path[path.len() - 1];
        if let Some(at) = leaf.at {
            let extent = self.with_node(data, &leaf.node, |bytes| extent::get(bytes, at));
            if u64::from(lblk) < extent.end() {
                let skip = lblk - extent.lblk;
                let (phys, len) = (extent.phys + u64::from(skip), extent.len - skip);
                if !self.geo.is_inside(phys, len.into()) {
                    return Err(Error::Corrupt("extent beyond the end", phys));
                }
                return Ok(Mapped::Run { phys, len, unwritten: extent.unwritten });
            }
        }
        let next = self.next_key(data, &path);
        Ok(Mapped::Hole(next.saturating_sub(lblk.into()).max(1)))
    }

    fn map_indirect(&self, data: &InodeData, lblk: u32) -> Result<Mapped> {
        let mut read = |block| {
            let buf = self.cache.get(block, &self.journal, |_| Ok(BlockSum::None))?;
            let bytes: Arc<[u8]> = Arc::from(&*buf.read());
            Ok(bytes)
        };
        match crate::indirect::lookup(&self.geo, &data.disk().block, lblk, &mut read)? {
            0 => Ok(Mapped::Hole(1)),
            phys => Ok(Mapped::Run { phys, len: 1, unwritten: false }),
        }
    }

    /// The last extent that begins before `end`, with the path to it.
    fn last_before(&self, data: &InodeData, end: u64) -> Result<Option<(Vec<Step>, Extent)>> {
        let Some(mut target) = end.checked_sub(1).map(|last| last.min(u64::from(u32::MAX)) as u32) else {
            return Ok(None);
        };
        loop {
            let path = self.path(data, target)?;
            let leaf = &path[path.len() - 1];
            if let Some(at) = leaf.at {
                let extent = self.with_node(data, &leaf.node, |bytes| extent::get(bytes, at));
                return Ok(Some((path, extent)));
            }
            // All of this leaf comes after: what is before it is in the leaf before.
            let before = path.iter().rev().skip(1).find_map(|step| {
                let at = step.at.filter(|at| *at > 0)?;
                Some(self.with_node(data, &step.node, |bytes| extent::key(bytes, at)))
            });
            match before.and_then(|key| key.checked_sub(1)) {
                Some(key) if key < target => target = key,
                _ => return Ok(None),
            }
        }
    }

    /// Makes the keys above a node's first entry what that is.
    fn fix_keys(&self, handle: &Handle<'_>, data: &mut InodeData, path: &[Step], key: u32) {
        for step in path.iter().rev().skip(1) {
            let at = step.at.unwrap_or(0);
            self.change_node(handle, data, &step.node, |bytes| {
                let index = extent::get_index(bytes, at);
                extent::set_index(bytes, at, &Index { lblk: key, ..index });
            });
            if at > 0 {
                break;
            }
        }
    }

    /// Adds a run that overlaps nothing. The inode is changed and not written.
    pub(crate) fn insert_extent(
        &self,
        handle: &Handle<'_>,
        budget: &mut Budget<'_>,
        data: &mut InodeData,
        new: Extent,
    ) -> Result<()> {
        loop {
            let path = self.path(data, new.lblk)?;
            let leaf = &path[path.len() - 1];
            let at = leaf.at.map_or(0, |at| at + 1);
            let (before, after, has_room) = self.with_node(data, &leaf.node, |bytes| {
                let before = leaf.at.map(|at| extent::get(bytes, at));
                let after = (at < extent::entries(bytes)).then(|| extent::get(bytes, at));
                (before, after, extent::entries(bytes) < extent::max(bytes))
            });
            if before.is_some_and(|before| before.end() > new.lblk.into())
                || after.is_some_and(|after| new.end() > after.lblk.into())
            {
                return Err(Error::Corrupt("extents overlap", data.ino.into()));
            }
            let left = before.filter(|before| before.joins(&new));
            let right = after.filter(|after| new.joins(after));
            match (left, right) {
                (Some(left), right) => {
                    let mut joined = Extent { len: left.len + new.len, ..left };
                    let right = right.filter(|right| joined.joins(right));
                    joined.len += right.map_or(0, |right| right.len);
                    self.change_node(handle, data, &leaf.node, |bytes| {
                        extent::set(bytes, at - 1, &joined);
                        if right.is_some() {
                            extent::close_gap(bytes, at);
                        }
                    });
                    return Ok(());
                }
                (None, Some(right)) => {
                    let joined = Extent { len: new.len + right.len, ..new };
                    self.change_node(handle, data, &leaf.node, |bytes| extent::set(bytes, at, &joined));
                    if at == 0 {
                        self.fix_keys(handle, data, &path, new.lblk);
                    }
                    return Ok(());
                }
                (None, None) if has_room => {
                    self.change_node(handle, data, &leaf.node, |bytes| {
                        extent::open_gap(bytes, at);
                        extent::set(bytes, at, &new);
                    });
                    if at == 0 {
                        self.fix_keys(handle, data, &path, new.lblk);
                    }
                    return Ok(());
                }
                (None, None) => self.make_room(handle, budget, data, &path, new.phys)?,
            }
        }
    }

    fn new_extent_block(
        &self,
        handle: &Handle<'_>,
        budget: &mut Budget<'_>,
        data: &mut InodeData,
        goal: u64,
    ) -> Result<Arc<Buf>> {
        let block = self.take_meta(handle, budget, goal)?;
        data.add_blocks(1, &self.geo);
        let sum = if self.geo.metadata_csum() { BlockSum::Extent(data.seed) } else { BlockSum::None };
        Ok(self.cache.get_new(block, sum))
    }

    /// Splits the highest full node of a path whose parent has room, or makes the tree higher.
    fn make_room(
        &self,
        handle: &Handle<'_>,
        budget: &mut Budget<'_>,
        data: &mut InodeData,
        path: &[Step],
        goal: u64,
    ) -> Result<()> {
        let is_full =
            |step: &Step| self.with_node(data, &step.node, |bytes| extent::entries(bytes) >= extent::max(bytes));
        let Some(with_room) = path.iter().rposition(|step| !is_full(step)) else {
            return self.grow(handle, budget, data, goal);
        };
        let (parent, full) = (&path[with_room], &path[with_room + 1]);
        let (count, depth, at) = self.with_node(data, &full.node, |bytes| {
            (extent::entries(bytes), extent::depth(bytes), full.at.map_or(0, |at| at + 1))
        });
        // Files grow at their end: nodes that will not be touched again stay nearly full.
        let split = if at >= count { count - 1 } else { count / 2 };
        let buf = self.new_extent_block(handle, budget, data, goal)?;
        let moved: Vec<u8> = self.change_node(handle, data, &full.node, |bytes| {
            let moved = bytes[ENTRY * (split + 1)..ENTRY * (count + 1)].to_vec();
            extent::set_entries(bytes, split);
            moved
        });
        let key = {
            let mut bytes = handle.modify(&buf);
            let max = bytes.len() / ENTRY - 1;
            extent::init(&mut bytes, max, depth);
            bytes[ENTRY..ENTRY + moved.len()].copy_from_slice(&moved);
            extent::set_entries(&mut bytes, count - split);
            extent::key(&bytes, 0)
        };
        let at = parent.at.unwrap_or(0) + 1;
        self.change_node(handle, data, &parent.node, |bytes| {
            extent::open_gap(bytes, at);
            extent::set_index(bytes, at, &Index { lblk: key, child: buf.block });
        });
        Ok(())
    }

    /// Moves the root's entries into a block below it.
    fn grow(&self, handle: &Handle<'_>, budget: &mut Budget<'_>, data: &mut InodeData, goal: u64) -> Result<()> {
        let depth = extent::depth(&data.disk().block);
        if depth >= MAX_DEPTH {
            return Err(Error::Corrupt("extent tree is too deep", data.ino.into()));
        }
        let buf = self.new_extent_block(handle, budget, data, goal)?;
        let root = data.disk().block;
        let mut bytes = handle.modify(&buf);
        let (room, count) = (bytes.len() / ENTRY - 1, extent::entries(&root));
        extent::init(&mut bytes, room, depth);
        bytes[ENTRY..ENTRY * (count + 1)].copy_from_slice(&root[ENTRY..ENTRY * (count + 1)]);
        extent::set_entries(&mut bytes, count);
        drop(bytes);
        let key = extent::key(&root, 0);
        let root = &mut data.disk_mut().block;
        extent::init(root, 4, depth + 1);
        extent::set_entries(root, 1);
        extent::set_index(root, 0, &Index { lblk: key, child: buf.block });
        Ok(())
    }

    /// Takes the blocks `from..to` of a file out of its map, from the end, at most `limit` runs; `true` when nothing is left.
    /// The blocks stay taken. The inode is changed and not written.
    pub(crate) fn cut(
        &self,
        handle: &Handle<'_>,
        budget: &mut Budget<'_>,
        data: &mut InodeData,
        (from, to): (u64, u64),
        limit: usize,
    ) -> Result<(Vec<Extent>, bool)> {
        let mut removed = Vec::new();
        while removed.len() < limit {
            let Some((path, extent)) = self.last_before(data, to)? else { return Ok((removed, true)) };
            if extent.end() <= from {
                return Ok((removed, true));
            }
            if extent.len == 0 || !self.geo.is_inside(extent.phys, extent.len.into()) {
                return Err(Error::Corrupt("extent", extent.phys));
            }
            let part = |from: u64, to: u64| Extent {
                lblk: from as u32,
                len: (to - from) as u32,
                phys: extent.phys + (from - u64::from(extent.lblk)),
                unwritten: extent.unwritten,
            };
            let (start, end) = (from.max(extent.lblk.into()), to.min(extent.end()));
            let leaf = &path[path.len() - 1];
            let at = leaf.at.unwrap_or(0);
            match (start > extent.lblk.into(), end < extent.end()) {
                (true, true) => {
                    let left = part(extent.lblk.into(), start);
                    self.change_node(handle, data, &leaf.node, |bytes| extent::set(bytes, at, &left));
                    self.insert_extent(handle, budget, data, part(end, extent.end()))?;
                }
                (true, false) => {
                    let left = part(extent.lblk.into(), start);
                    self.change_node(handle, data, &leaf.node, |bytes| extent::set(bytes, at, &left));
                }
                (false, true) => {
                    let right = part(end, extent.end());
                    self.change_node(handle, data, &leaf.node, |bytes| extent::set(bytes, at, &right));
                    if at == 0 {
                        self.fix_keys(handle, data, &path, right.lblk);
                    }
                }
                (false, false) => self.remove_entry(handle, data, &path)?,
            }
            removed.push(part(start, end));
        }
        Ok((removed, false))
    }

    /// Takes the path's last entry out, and the nodes that become empty by it.
    fn remove_entry(&self, handle: &Handle<'_>, data: &mut InodeData, path: &[Step]) -> Result<()> {
        for level in (0..path.len()).rev() {
            let step = &path[level];
            let at = step.at.unwrap_or(0);
            let (left, key) = self.change_node(handle, data, &step.node, |bytes| {
                extent::close_gap(bytes, at);
                let left = extent::entries(bytes);
                (left, if left > 0 { extent::key(bytes, 0) } else { 0 })
            });
            if left > 0 {
                if at == 0 {
                    self.fix_keys(handle, data, &path[..=level], key);
                }
                break;
            }
            match &step.node {
                Node::Root => extent::init(&mut data.disk_mut().block, 4, 0),
                Node::Block(buf) => {
                    self.free_meta(handle, buf.block)?;
                    data.add_blocks(-1, &self.geo);
                }
            }
        }
        self.shrink(handle, data)
    }

    /// While the root has one child whose entries fit into it, they come up.
    fn shrink(&self, handle: &Handle<'_>, data: &mut InodeData) -> Result<()> {
        loop {
            let root = &data.disk().block;
            let depth = extent::depth(root);
            if depth == 0 || extent::entries(root) != 1 {
                return Ok(());
            }
            let child = extent::get_index(root, 0).child;
            let buf = self.extent_block(data, child, depth - 1)?;
            let bytes = buf.read();
            let count = extent::entries(&bytes);
            if count > 4 {
                return Ok(());
            }
            let moved = bytes[ENTRY..ENTRY * (count + 1)].to_vec();
            drop(bytes);
            let root = &mut data.disk_mut().block;
            extent::init(root, 4, depth - 1);
            extent::set_entries(root, count);
            root[ENTRY..ENTRY + moved.len()].copy_from_slice(&moved);
            self.free_meta(handle, child)?;
            data.add_blocks(-1, &self.geo);
        }
    }

    /// One past the last block that a file's map has.
    pub(crate) fn end_of_map(&self, data: &InodeData) -> Result<u64> {
        Ok(self.last_before(data, 1 << 32)?.map_or(0, |(_, extent)| extent.end()))
    }

    /// How many blocks a file's map may need to take `runs` more, each of which may cut another in three.
    pub(crate) fn map_budget(&self, data: &InodeData, runs: usize) -> u32 {
        let root = &data.disk().block;
        if runs == 0 || extent::depth(root) == 0 && extent::entries(root) + 2 * runs <= 4 { 0 } else { 8 }
    }

    /// Where the blocks of a file after `lblk` should be: behind the ones before.
    pub(crate) fn goal_for(&self, data: &InodeData, lblk: u32) -> Result<u64> {
        if let Some((_, extent)) = self.last_before(data, u64::from(lblk) + 1)? {
            return Ok(extent.phys + u64::from(lblk).saturating_sub(extent.lblk.into()));
        }
        // At the start of the inode's group, at a place that differs from its neighbours'.
        let (group, _) = self.geo.group_of_inode(data.ino);
        let start = self.geo.group_start(group);
        let colour = u64::from(self.geo.blocks_in_group(group)) / 16 * u64::from(data.ino % 16);
        Ok(start + colour)
    }
}
