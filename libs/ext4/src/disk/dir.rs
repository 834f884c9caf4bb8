//! Directory blocks: linear entries, and the nodes of the hash tree.

use super::{le16, le32, put16, put32};
use crate::error::{Error, Result};

/// The longest name.
pub const NAME_MAX: usize = 255;
/// Bytes of an entry before its name.
pub const ENTRY_HEADER: usize = 8;
/// Bytes of the entry that hides a leaf's checksum.
pub const TAIL: usize = 12;
/// `file_type` of that entry.
const TAIL_TYPE: u8 = 0xde;
/// Where a root's `dx_root_info` lies.
pub const ROOT_INFO: usize = 24;
/// Where a root's count and limit lie.
pub const ROOT_ENTRIES: usize = 32;
/// Where an inner node's count and limit lie.
pub const NODE_ENTRIES: usize = 8;

/// Bytes that an entry with a name of this length takes.
pub const fn entry_len(name_len: usize) -> usize {
    (ENTRY_HEADER + name_len + 3) & !3
}

/// One entry of a block.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Where it lies in the block.
    pub at: usize,
    /// The inode; 0 for none.
    pub ino: u32,
    /// Bytes to the next entry.
    pub rec_len: usize,
    /// The kind (`EXT4_FT_…`).
    pub kind: u8,
    /// The name.
    pub name: &'a [u8],
}

/// A record length from the disk: blocks of 64 KiB use the low bits, which are otherwise 0.
#[inline(always)]
fn decode_len(raw: u16, block_size: usize) -> usize {
    let raw = usize::from(raw);
    if block_size < 65536 {
        raw
    } else if raw == 65535 || raw == 0 {
        block_size
    } else {
        raw & 65532 | (raw & 3) << 16
    }
}

/// A record length for the disk.
pub fn encode_len(len: usize, block_size: usize) -> u16 {
    if len < 65536 {
        len as u16
    } else if len == block_size {
        65535
    } else {
        (len & 65532 | len >> 16 & 3) as u16
    }
}

/// Walks the entries of a block, checking each.
#[inline(always)]
pub fn walk(block: &[u8]) -> impl Iterator<Item = Result<Entry<'_>>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= block.len() {
            return None;
        }
        let here = at;
        let entry = entry(block, here);
        at = match &entry {
            Ok(entry) => here + entry.rec_len,
            Err(_) => block.len(),
        };
        Some(entry)
    })
}

/// The entry at a place. A name's creation looks at some hundred entries, so this becomes part of each loop over them.
///
/// # Errors
/// [`Error::Corrupt`].
#[inline(always)]
pub fn entry(block: &[u8], at: usize) -> Result<Entry<'_>> {
    let bad = || Error::Corrupt("directory entry", at as u64);
    if at + ENTRY_HEADER > block.len() {
        return Err(bad());
    }
    let rec_len = decode_len(le16(block, at + 4), block.len());
    let name_len = usize::from(block[at + 6]);
    if !rec_len.is_multiple_of(4) || rec_len < entry_len(name_len) || at + rec_len > block.len() {
        // A hole of the least size has no room for a name.
        return Err(bad());
    }
    let name = &block[at + ENTRY_HEADER..at + ENTRY_HEADER + name_len];
    Ok(Entry { at, ino: le32(block, at), rec_len, kind: block[at + 7], name })
}

/// Stores an entry.
pub fn put_entry(block: &mut [u8], at: usize, ino: u32, rec_len: usize, kind: u8, name: &[u8]) {
    let size = block.len();
    put32(block, at, ino);
    put16(block, at + 4, encode_len(rec_len, size));
    block[at + 6] = name.len() as u8;
    block[at + 7] = kind;
    block[at + ENTRY_HEADER..at + ENTRY_HEADER + name.len()].copy_from_slice(name);
}

/// Changes an entry's record length.
pub fn set_rec_len(block: &mut [u8], at: usize, rec_len: usize) {
    let size = block.len();
    put16(block, at + 4, encode_len(rec_len, size));
}

/// Writes the entry that hides the checksum at the end of a leaf.
pub fn put_tail(block: &mut [u8]) {
    let at = block.len() - TAIL;
    block[at..].fill(0);
    put16(block, at + 4, TAIL as u16);
    block[at + 7] = TAIL_TYPE;
}

/// Whether a block ends in a checksum.
pub fn has_tail(block: &[u8]) -> bool {
    let at = block.len() - TAIL;
    le32(block, at) == 0 && le16(block, at + 4) as usize == TAIL && block[at + 6] == 0 && block[at + 7] == TAIL_TYPE
}

/// The entry of a name, where it is in the block.
///
/// # Errors
/// [`Error::Corrupt`].
pub fn find<'a>(block: &'a [u8], name: &[u8]) -> Result<Option<Entry<'a>>> {
    for entry in walk(block) {
        let entry = entry?;
        if entry.name.len() == name.len() && entry.ino != 0 && entry.name == name {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Where an entry can be added: behind what another one uses of its record.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    at: usize,
    used: usize,
    rec_len: usize,
}

/// Room for a name, where the block has some.
///
/// # Errors
/// [`Error::Corrupt`].
pub fn room(block: &[u8], name: &[u8]) -> Result<Option<Room>> {
    let need = entry_len(name.len());
    for entry in walk(block) {
        let entry = entry?;
        let used = if entry.ino == 0 { 0 } else { entry_len(entry.name.len()) };
        let is_tail = || entry.ino == 0 && entry.kind == TAIL_TYPE && entry.name.is_empty() && entry.rec_len == TAIL;
        if entry.rec_len - used >= need && !is_tail() {
            return Ok(Some(Room { at: entry.at, used, rec_len: entry.rec_len }));
        }
    }
    Ok(None)
}

/// Adds an entry where [`room`] has found some in the same block.
pub fn insert(block: &mut [u8], room: Room, ino: u32, kind: u8, name: &[u8]) {
    let Room { at, used, rec_len } = room;
    if used > 0 {
        set_rec_len(block, at, used);
    }
    put_entry(block, at + used, ino, rec_len - used, kind, name);
}

/// Takes the entry at a place out.
///
/// # Errors
/// [`Error::Corrupt`].
pub fn remove(block: &mut [u8], at: usize) -> Result<()> {
    let mut previous = None;
    let mut found = None;
    for entry in walk(block) {
        let entry = entry?;
        if entry.at == at {
            found = Some(entry.rec_len);
            break;
        }
        previous = Some((entry.at, entry.rec_len));
    }
    let rec_len = found.ok_or(Error::Corrupt("directory entry that is gone", at as u64))?;
    match previous {
        Some((before, before_len)) => set_rec_len(block, before, before_len + rec_len),
        None => put32(block, at, 0),
    }
    Ok(())
}

/// The nodes of a hash tree, at `base` (`ROOT_ENTRIES` or `NODE_ENTRIES`) of their block.
pub mod dx {
    use super::*;

    /// Number of entries, the first of which has no hash.
    pub fn count(block: &[u8], base: usize) -> usize {
        usize::from(le16(block, base + 2))
    }

    /// Room for entries.
    pub fn limit(block: &[u8], base: usize) -> usize {
        usize::from(le16(block, base))
    }

    /// Sets both.
    pub fn set_count_limit(block: &mut [u8], base: usize, count: usize, limit: usize) {
        put16(block, base, limit as u16);
        put16(block, base + 2, count as u16);
    }

    /// The least hash below entry `i`.
    pub fn hash(block: &[u8], base: usize, i: usize) -> u32 {
        if i == 0 { 0 } else { le32(block, base + 8 * i) }
    }

    /// The block in the directory of entry `i`.
    pub fn child(block: &[u8], base: usize, i: usize) -> u32 {
        // The upper bits are reserved for hints.
        le32(block, base + 8 * i + 4) & 0x0fff_ffff
    }

    /// Stores entry `i`; the hash of entry 0 is not stored.
    pub fn set(block: &mut [u8], base: usize, i: usize, hash: u32, child: u32) {
        if i > 0 {
            put32(block, base + 8 * i, hash);
        }
        put32(block, base + 8 * i + 4, child);
    }

    /// Adds an entry at `i` ≥ 1, for which there is room.
    pub fn insert(block: &mut [u8], base: usize, i: usize, hash: u32, child: u32) {
        let count = count(block, base);
        block.copy_within(base + 8 * i..base + 8 * count, base + 8 * (i + 1));
        let limit = limit(block, base);
        set_count_limit(block, base, count + 1, limit);
        set(block, base, i, hash, child);
    }

    /// Checks count and limit; `room` is what the limit must be at most.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn check(block: &[u8], base: usize, room: usize, where_: u64) -> Result<()> {
        let (count, limit) = (count(block, base), limit(block, base));
        if limit > room || count > limit || count == 0 {
            return Err(Error::Corrupt("hash tree node's count", where_));
        }
        Ok(())
    }

    /// The last entry whose hash is not beyond `hash`.
    pub fn find(block: &[u8], base: usize, hash_: u32) -> usize {
        let (mut low, mut high) = (1, count(block, base));
        while low < high {
            let middle = (low + high) / 2;
            if hash(block, base, middle) <= hash_ { low = middle + 1 } else { high = middle }
        }
        low - 1
    }
}
