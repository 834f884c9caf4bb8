//! Extent tree nodes: a header of 12 bytes and entries of 12 bytes, in an inode or in a block.

use super::{le16, le32, put16, put32};
use crate::error::{Error, Result};

/// `eh_magic`.
pub const MAGIC: u16 = 0xf30a;
/// Size of the header and of each entry.
pub const ENTRY: usize = 12;
/// The longest written extent, in blocks; unwritten ones are one shorter.
pub const MAX_LEN: u32 = 32768;
/// The deepest tree.
pub const MAX_DEPTH: u16 = 5;

/// A run of blocks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block in the file.
    pub lblk: u32,
    /// Number of blocks.
    pub len: u32,
    /// First block on the disk.
    pub phys: u64,
    /// Allocated, reads as zeroes.
    pub unwritten: bool,
}

impl Extent {
    /// One past the last block in the file.
    pub fn end(&self) -> u64 {
        u64::from(self.lblk) + u64::from(self.len)
    }

    /// Whether `next` continues this in the file and on the disk, and both fit one entry.
    pub fn joins(&self, next: &Extent) -> bool {
        let max = if self.unwritten { MAX_LEN - 1 } else { MAX_LEN };
        self.unwritten == next.unwritten
            && self.end() == u64::from(next.lblk)
            && self.phys + u64::from(self.len) == next.phys
            && self.len + next.len <= max
    }
}

/// An entry of an index node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index {
    /// First block in the file that the child covers.
    pub lblk: u32,
    /// The child's block.
    pub child: u64,
}

/// Number of entries.
pub fn entries(node: &[u8]) -> usize {
    usize::from(le16(node, 2))
}

/// Room for entries.
pub fn max(node: &[u8]) -> usize {
    usize::from(le16(node, 4))
}

/// Levels below; 0 for a leaf.
pub fn depth(node: &[u8]) -> u16 {
    le16(node, 6)
}

/// Sets the number of entries.
pub fn set_entries(node: &mut [u8], count: usize) {
    put16(node, 2, count as u16);
}

/// Writes an empty node's header.
pub fn init(node: &mut [u8], max: usize, depth: u16) {
    put16(node, 0, MAGIC);
    put16(node, 2, 0);
    put16(node, 4, max as u16);
    put16(node, 6, depth);
    put32(node, 8, 0);
}

/// Checks a header against the room that there is: after this nothing reads beyond the node.
///
/// # Errors
/// [`Error::Corrupt`].
pub fn check_header(node: &[u8], expected_depth: Option<u16>, where_: u64) -> Result<()> {
    let bad = |what| Err(Error::Corrupt(what, where_));
    if le16(node, 0) != MAGIC {
        return bad("extent node's magic number");
    }
    let room = node.len() / ENTRY - 1;
    if max(node) > room || max(node) == 0 || entries(node) > max(node) || depth(node) > MAX_DEPTH {
        return bad("extent node's header");
    }
    if expected_depth.is_some_and(|expected| expected != depth(node)) {
        return bad("extent node's depth");
    }
    if depth(node) > 0 && entries(node) == 0 {
        return bad("empty index node");
    }
    Ok(())
}

/// Checks a node as a whole, with its entries' order.
///
/// # Errors
/// [`Error::Corrupt`].
pub fn check(node: &[u8], where_: u64) -> Result<()> {
    check_header(node, None, where_)?;
    let mut end = 0;
    for i in 0..entries(node) {
        let (from, to) = if depth(node) == 0 {
            let extent = get(node, i);
            if extent.len == 0 || extent.end() > 1 << 32 {
                return Err(Error::Corrupt("extent's length", where_));
            }
            (u64::from(extent.lblk), extent.end())
        } else {
            let lblk = u64::from(get_index(node, i).lblk);
            (lblk, lblk + 1)
        };
        if from < end {
            return Err(Error::Corrupt("extents' order", where_));
        }
        end = to;
    }
    Ok(())
}

/// The leaf's entry `i`.
pub fn get(node: &[u8], i: usize) -> Extent {
    let at = ENTRY * (i + 1);
    let len = u32::from(le16(node, at + 4));
    let unwritten = len > MAX_LEN;
    Extent {
        lblk: le32(node, at),
        len: if unwritten { len - MAX_LEN } else { len },
        phys: u64::from(le16(node, at + 6)) << 32 | u64::from(le32(node, at + 8)),
        unwritten,
    }
}

/// Stores the leaf's entry `i`.
pub fn set(node: &mut [u8], i: usize, extent: &Extent) {
    let at = ENTRY * (i + 1);
    put32(node, at, extent.lblk);
    put16(node, at + 4, (extent.len + if extent.unwritten { MAX_LEN } else { 0 }) as u16);
    put16(node, at + 6, (extent.phys >> 32) as u16);
    put32(node, at + 8, extent.phys as u32);
}

/// The index node's entry `i`.
pub fn get_index(node: &[u8], i: usize) -> Index {
    let at = ENTRY * (i + 1);
    Index { lblk: le32(node, at), child: u64::from(le16(node, at + 8)) << 32 | u64::from(le32(node, at + 4)) }
}

/// Stores the index node's entry `i`.
pub fn set_index(node: &mut [u8], i: usize, index: &Index) {
    let at = ENTRY * (i + 1);
    put32(node, at, index.lblk);
    put32(node, at + 4, index.child as u32);
    put16(node, at + 8, (index.child >> 32) as u16);
    put16(node, at + 10, 0);
}

/// The first block in the file of entry `i` of any node.
pub fn key(node: &[u8], i: usize) -> u32 {
    le32(node, ENTRY * (i + 1))
}

/// Makes room for an entry at `i`, which the caller then stores.
pub fn open_gap(node: &mut [u8], i: usize) {
    let count = entries(node);
    node.copy_within(ENTRY * (i + 1)..ENTRY * (count + 1), ENTRY * (i + 2));
    set_entries(node, count + 1);
}

/// Removes the entry at `i`.
pub fn close_gap(node: &mut [u8], i: usize) {
    let count = entries(node);
    node.copy_within(ENTRY * (i + 2)..ENTRY * (count + 1), ENTRY * (i + 1));
    set_entries(node, count - 1);
}

/// The entry that covers `lblk` if one does: the last whose key is not beyond it.
pub fn find(node: &[u8], lblk: u32) -> Option<usize> {
    let (mut low, mut high) = (0, entries(node));
    while low < high {
        let middle = (low + high) / 2;
        if key(node, middle) <= lblk { low = middle + 1 } else { high = middle }
    }
    low.checked_sub(1)
}
