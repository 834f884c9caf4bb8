//! Block groups: descriptors and the bitmaps that the allocators search.
//!
//! The *disk's* bitmap of blocks is a buffer like any other and changes with a handle. The *allocator's* is a plain copy in
//! which also those blocks are taken that nobody may have yet: reserved for data that is being written, or freed by a
//! transaction that is not on the disk. A search touches the copy alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use zerocopy::{FromZeros, IntoBytes};

use crate::cache::Buf;
use crate::csum::{BlockSum, crc16, crc32c};
use crate::disk::group::{BLOCK_UNINIT, CHECKSUM_OFFSET, GroupDesc, INODE_UNINIT};
use crate::disk::superblock::{Incompat, RoCompat};
use crate::error::{Error, Result};
use crate::fs::{Fs, Geometry};
use crate::journal::Handle;

/// One group.
pub struct Group {
    pub(crate) state: Mutex<GroupState>,
    /// Free blocks for the allocator, to pass full groups by without a lock.
    pub(crate) free_hint: AtomicU32,
    /// Free inodes and directories, for the choice of a group without a lock.
    pub(crate) free_inodes: AtomicU32,
    pub(crate) dirs: AtomicU32,
}

pub(crate) struct GroupState {
    pub desc: GroupDesc,
    /// The allocator's bitmap; made when first needed.
    pub map: Option<Bitmap>,
}

impl Group {
    pub(crate) fn new(desc: GroupDesc) -> Group {
        Group {
            free_hint: AtomicU32::new(desc.free_blocks()),
            free_inodes: AtomicU32::new(desc.free_inodes()),
            dirs: AtomicU32::new(desc.used_dirs()),
            state: Mutex::new(GroupState { desc, map: None }),
        }
    }
}

/// Bits in words, with the number that are clear.
#[derive(Debug)]
pub struct Bitmap {
    words: Vec<u64>,
    len: u32,
    free: u32,
}

impl Bitmap {
    /// From a bitmap block; bits beyond `len` count as set.
    pub fn new(bytes: &[u8], len: u32) -> Bitmap {
        let mut words = vec![!0u64; (len as usize).div_ceil(64)];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut le = [0xff; 8];
            le[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_le_bytes(le);
        }
        if !len.is_multiple_of(64)
            && let Some(last) = words.last_mut()
        {
            *last |= !0 << (len % 64);
        }
        let free = words.iter().map(|word| word.count_zeros()).sum();
        Bitmap { words, len, free }
    }

    /// Number of clear bits.
    pub fn free(&self) -> u32 {
        self.free
    }

    fn mask(word: usize, start: u32, end: u32) -> u64 {
        let base = word as u32 * 64;
        let (from, to) = (start.max(base) - base, end.min(base + 64) - base);
        let upto = |bits: u32| if bits == 64 { !0 } else { (1u64 << bits) - 1 };
        upto(to) & !upto(from)
    }

    /// Sets the bits of a range; the result is how many were clear.
    pub fn set(&mut self, start: u32, len: u32) -> u32 {
        let mut changed = 0;
        for word in start / 64..(start + len).div_ceil(64) {
            let mask = Self::mask(word as usize, start, start + len);
            changed += (mask & !self.words[word as usize]).count_ones();
            self.words[word as usize] |= mask;
        }
        self.free -= changed;
        changed
    }

    /// Clears the bits of a range; the result is how many were set.
    pub fn clear(&mut self, start: u32, len: u32) -> u32 {
        let mut changed = 0;
        for word in start / 64..(start + len).div_ceil(64) {
            let mask = Self::mask(word as usize, start, start + len);
            changed += (mask & self.words[word as usize]).count_ones();
            self.words[word as usize] &= !mask;
        }
        self.free += changed;
        changed
    }

    /// The first clear bit from `from` on.
    pub fn next_clear(&self, from: u32) -> Option<u32> {
        self.next(from, true)
    }

    fn next_set(&self, from: u32) -> u32 {
        self.next(from, false).unwrap_or(self.len)
    }

    fn next(&self, from: u32, clear: bool) -> Option<u32> {
        let mut word = (from / 64) as usize;
        let mut skip = !0u64 << (from % 64);
        while word < self.words.len() {
            let bits = if clear { !self.words[word] } else { self.words[word] } & skip;
            if bits != 0 {
                let at = word as u32 * 64 + bits.trailing_zeros();
                return (at < self.len).then_some(at);
            }
            skip = !0;
            word += 1;
        }
        None
    }

    /// The run of clear bits at or after `from`, cut to `want`.
    fn run_from(&self, from: u32, want: u32) -> Option<(u32, u32)> {
        let start = self.next_clear(from)?;
        let end = self.next_set(start).min(start.saturating_add(want));
        Some((start, end - start))
    }

    /// A run for `want` blocks: at `goal` if that is clear, else the first that is long enough, else the longest.
    pub fn find(&self, goal: u32, want: u32) -> Option<(u32, u32)> {
        if self.free == 0 {
            return None;
        }
        if let Some((start, len)) = self.run_from(goal, want)
            && (start == goal || len == want)
        {
            return Some((start, len));
        }
        let mut best: Option<(u32, u32)> = None;
        let mut at = 0;
        while let Some((start, len)) = self.run_from(at, want) {
            if len == want {
                return Some((start, len));
            }
            if best.is_none_or(|(_, best)| len > best) {
                best = Some((start, len));
            }
            at = start + len;
        }
        best
    }
}

impl Geometry {
    /// Whether a group has a copy of the superblock.
    pub fn has_super(&self, group: u32) -> bool {
        if group <= 1 || !self.ro_compat.contains(RoCompat::SPARSE_SUPER) {
            return true;
        }
        if self.sparse_super2 {
            return self.backup_groups.contains(&group);
        }
        let power_of = |base: u32| {
            let mut power = u64::from(base);
            while power < u64::from(group) {
                power *= u64::from(base);
            }
            power == u64::from(group)
        };
        group % 2 == 1 && (power_of(3) || power_of(5) || power_of(7))
    }

    /// The block where the descriptor block `index` lies.
    pub fn desc_block(&self, index: u64) -> u64 {
        if !self.incompat.contains(Incompat::META_BG) || index < u64::from(self.first_meta_bg) {
            return u64::from(self.first_data_block) + 1 + index;
        }
        let group = (index * u64::from(self.descs_per_block())) as u32;
        let super_blocks = u64::from(self.has_super(group));
        self.group_start(group) + super_blocks
    }

    /// Descriptors in a block.
    pub fn descs_per_block(&self) -> u32 {
        (self.block_size / self.desc_size) as u32
    }

    /// Blocks at the start of a group that hold superblock, descriptors and room for more of these.
    fn base_meta_blocks(&self, group: u32) -> u32 {
        let has_super = self.has_super(group);
        let per = self.descs_per_block();
        if self.incompat.contains(Incompat::META_BG) && group / per >= self.first_meta_bg {
            let first = group / per * per;
            let descs = group == first || group == first + 1 || group == first + per - 1;
            return u32::from(has_super) + u32::from(descs);
        }
        if !has_super {
            return 0;
        }
        let all = self.groups.div_ceil(per);
        let descs = if self.incompat.contains(Incompat::META_BG) { self.first_meta_bg.min(all) } else { all };
        1 + descs + u32::from(self.reserved_gdt_blocks)
    }

    /// The bitmap of a group that was never written.
    fn fresh_bitmap(&self, group: u32, desc: &GroupDesc) -> Vec<u8> {
        let mut bytes = vec![0u8; self.block_size];
        let start = self.group_start(group);
        let len = self.blocks_in_group(group);
        let mut set = |block: u64| {
            if let Some(bit) = block.checked_sub(start).filter(|bit| *bit < u64::from(len)) {
                bytes[bit as usize / 8] |= 1 << (bit % 8);
            }
        };
        (0..u64::from(self.base_meta_blocks(group))).for_each(|i| set(start + i));
        set(desc.block_bitmap());
        set(desc.inode_bitmap());
        (0..self.itable_blocks()).for_each(|i| set(desc.inode_table().saturating_add(i)));
        for bit in len as usize..self.block_size * 8 {
            bytes[bit / 8] |= 1 << (bit % 8);
        }
        bytes
    }

    /// A descriptor's checksum.
    pub fn desc_sum(&self, group: u32, desc: &GroupDesc) -> u16 {
        let bytes = &desc.as_bytes()[..self.desc_size.min(size_of::<GroupDesc>())];
        let after = bytes.get(CHECKSUM_OFFSET + 2..).unwrap_or(&[]);
        if self.metadata_csum() {
            let sum = crc32c(crc32c(self.csum_seed, &group.to_le_bytes()), &bytes[..CHECKSUM_OFFSET]);
            crc32c(crc32c(sum, &[0; 2]), after) as u16
        } else {
            let sum = crc16(crc16(!0, &self.uuid), &group.to_le_bytes());
            let sum = crc16(sum, &bytes[..CHECKSUM_OFFSET]);
            if self.incompat.contains(Incompat::BIT64) { crc16(sum, after) } else { sum }
        }
    }

    fn bitmap_sum(&self, bytes: &[u8], bits: u32) -> u32 {
        crc32c(self.csum_seed, &bytes[..(bits as usize / 8).min(bytes.len())])
    }

    /// Whether a bitmap's checksum is the one in the descriptor (of which there may be 16 bits only).
    fn bitmap_is_right(&self, bytes: &[u8], bits: u32, lo: u16, hi: u16) -> bool {
        if !self.metadata_csum() {
            return true;
        }
        let sum = self.bitmap_sum(bytes, bits);
        sum as u16 == lo && (self.desc_size < 64 || (sum >> 16) as u16 == hi)
    }
}

impl Fs {
    /// Reads all group descriptors.
    pub(crate) fn read_groups(
        geo: &Geometry,
        mut read: impl FnMut(u64) -> Result<Arc<[u8]>>,
        check: bool,
    ) -> Result<Vec<Group>> {
        let per = geo.descs_per_block();
        let mut groups = Vec::with_capacity(geo.groups as usize);
        for index in 0..u64::from(geo.groups.div_ceil(per)) {
            let block = read(geo.desc_block(index))?;
            for bytes in block.chunks_exact(geo.desc_size).take((geo.groups - groups.len() as u32).min(per) as usize) {
                let group = groups.len() as u32;
                let mut desc = GroupDesc::new_zeroed();
                let len = geo.desc_size.min(size_of::<GroupDesc>());
                desc.as_mut_bytes()[..len].copy_from_slice(&bytes[..len]);
                if check && geo.has_desc_sums() && desc.checksum.get() != geo.desc_sum(group, &desc) {
                    return Err(Error::Corrupt("group descriptor's checksum", group.into()));
                }
                let inside = |block: u64, len: u64| geo.is_inside(block, len);
                if !inside(desc.block_bitmap(), 1)
                    || !inside(desc.inode_bitmap(), 1)
                    || !inside(desc.inode_table(), geo.itable_blocks())
                {
                    return Err(Error::Corrupt("group descriptor", group.into()));
                }
                if !geo.has_desc_sums() {
                    // These flags mean nothing without checksums.
                    desc.flags.set(0);
                }
                groups.push(Group::new(desc));
            }
        }
        Ok(groups)
    }

    /// The disk's bitmap of blocks of a group.
    pub(crate) fn block_bitmap(&self, group: u32, state: &mut GroupState) -> Result<Arc<Buf>> {
        let block = state.desc.block_bitmap();
        if state.desc.flags.get() & BLOCK_UNINIT != 0 {
            let fresh = self.geo.fresh_bitmap(group, &state.desc);
            let buf = self.cache.get_new(block, BlockSum::None);
            Arc::make_mut(&mut buf.lock().data).copy_from_slice(&fresh);
            return Ok(buf);
        }
        let (lo, hi) = (state.desc.block_bitmap_csum_lo.get(), state.desc.block_bitmap_csum_hi.get());
        let geo = &self.geo;
        self.cache.get(block, &self.journal, |bytes| {
            // The sum covers whole groups even where the last is shorter.
            if !geo.bitmap_is_right(bytes, geo.blocks_per_group, lo, hi) {
                return Err(Error::Corrupt("block bitmap's checksum", group.into()));
            }
            Ok(BlockSum::None)
        })
    }

    /// The allocator's bitmap of a group, made if it is not there.
    pub(crate) fn load_map<'a>(&self, group: u32, state: &'a mut GroupState) -> Result<&'a mut Bitmap> {
        if state.map.is_none() {
            let buf = self.block_bitmap(group, state)?;
            let map = Bitmap::new(&buf.read(), self.geo.blocks_in_group(group));
            self.groups[group as usize].free_hint.store(map.free(), Ordering::Relaxed);
            state.map = Some(map);
        }
        state.map.as_mut().ok_or(Error::Corrupt("bitmap", group.into()))
    }

    /// The bitmap of inodes of a group.
    pub(crate) fn inode_bitmap(&self, group: u32, state: &GroupState) -> Result<Arc<Buf>> {
        let block = state.desc.inode_bitmap();
        if state.desc.flags.get() & INODE_UNINIT != 0 {
            let buf = self.cache.get_new(block, BlockSum::None);
            let per_group = self.geo.inodes_per_group as usize;
            let mut inner = buf.lock();
            let bytes = Arc::make_mut(&mut inner.data);
            for bit in per_group..bytes.len() * 8 {
                bytes[bit / 8] |= 1 << (bit % 8);
            }
            drop(inner);
            return Ok(buf);
        }
        let (lo, hi) = (state.desc.inode_bitmap_csum_lo.get(), state.desc.inode_bitmap_csum_hi.get());
        let geo = &self.geo;
        self.cache.get(block, &self.journal, |bytes| {
            if !geo.bitmap_is_right(bytes, geo.inodes_per_group, lo, hi) {
                return Err(Error::Corrupt("inode bitmap's checksum", group.into()));
            }
            Ok(BlockSum::None)
        })
    }

    /// Writes changed descriptors into their blocks, with the sums of their bitmaps.
    pub(crate) fn seal_groups(&self, handle: &Handle<'_>) -> Result<()> {
        let dirty = std::mem::take(&mut *self.dirty_groups.lock());
        let geo = &self.geo;
        for group in dirty {
            let mut state = self.groups[group as usize].state.lock();
            if geo.metadata_csum() {
                if state.desc.flags.get() & BLOCK_UNINIT == 0 {
                    let buf = self.block_bitmap(group, &mut state)?;
                    let sum = geo.bitmap_sum(&buf.read(), geo.blocks_per_group);
                    state.desc.block_bitmap_csum_lo.set(sum as u16);
                    state.desc.block_bitmap_csum_hi.set((sum >> 16) as u16);
                }
                if state.desc.flags.get() & INODE_UNINIT == 0 {
                    let buf = self.inode_bitmap(group, &state)?;
                    let sum = geo.bitmap_sum(&buf.read(), geo.inodes_per_group);
                    state.desc.inode_bitmap_csum_lo.set(sum as u16);
                    state.desc.inode_bitmap_csum_hi.set((sum >> 16) as u16);
                }
            }
            if geo.has_desc_sums() {
                let sum = geo.desc_sum(group, &state.desc);
                state.desc.checksum.set(sum);
            }
            let per = geo.descs_per_block();
            let block = geo.desc_block(u64::from(group / per));
            let buf = self.cache.get(block, &self.journal, |_| Ok(BlockSum::None))?;
            let at = (group % per) as usize * geo.desc_size;
            let len = geo.desc_size.min(size_of::<GroupDesc>());
            handle.modify(&buf)[at..at + len].copy_from_slice(&state.desc.as_bytes()[..len]);
        }
        Ok(())
    }

    /// Notes that a descriptor has to be written with the running transaction.
    pub(crate) fn dirty_group(&self, group: u32) {
        self.dirty_groups.lock().insert(group);
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::*;

    #[test]
    fn runs_are_found() {
        let mut map = Bitmap::new(&[0xff, 0x0f, 0, 0xf0, 0, 0, 0, 0, 0, 0], 77);
        assert_eq!(map.free(), 4 + 8 + 4 + 32 + 13);
        assert_eq!(map.find(0, 4), Some((12, 4)));
        assert_eq!(map.find(20, 100), Some((20, 8)), "the goal is clear");
        assert_eq!(map.find(28, 100), Some((32, 45)), "else the longest");
        assert_eq!(map.set(60, 10), 10);
        assert_eq!(map.set(60, 10), 0);
        assert_eq!(map.find(65, 7), Some((70, 7)));
        assert_eq!(map.clear(64, 3), 3);
        assert_eq!(map.find(64, 5), Some((64, 3)));
        assert_eq!(map.set(0, 77), map.len - 12 - 4 - 7);
        assert_eq!((map.free(), map.find(3, 1)), (0, None));
    }

    #[test]
    fn a_descriptor_is_64_bytes() {
        assert!(GroupDesc::read_from_bytes(&[0; 64]).is_ok());
    }
}
