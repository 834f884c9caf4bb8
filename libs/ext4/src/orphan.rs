//! Orphans: inodes that are to be freed or cut at the next mount if the system stops before it is done.
//!
//! They are recorded in the *orphan file*, whose blocks are arrays of numbers, or, where there is none or it is full, in a
//! list that begins in the superblock and goes through `i_dtime`.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cache::Buf;
use crate::csum::{BlockSum, crc32c};
use crate::disk::inode::Time;
use crate::disk::superblock::{Compat, RoCompat};
use crate::disk::{le32, put32};
use crate::error::{Error, Result};
use crate::extent::Mapped;
use crate::fs::Fs;
use crate::inode::{Inode, InodeData};
use crate::journal::Handle;

/// Last word but one of each block of the orphan file.
const MAGIC: u32 = 0x0b10_ca04;

/// Those that are recorded.
pub(crate) struct Orphans {
    /// From the superblock's on.
    list: Vec<u32>,
    file: Option<OrphanFile>,
}

struct OrphanFile {
    /// The seed of its blocks' checksums.
    seed: u32,
    blocks: Vec<u64>,
    /// Slots in all blocks; those in use.
    slots: usize,
    used: HashMap<u32, usize>,
    /// Where to look for a free slot.
    free: Vec<usize>,
}

impl Orphans {
    pub(crate) fn new() -> Orphans {
        Orphans { list: Vec::new(), file: None }
    }

    pub(crate) fn contains(&self, ino: u32) -> bool {
        self.list.contains(&ino) || self.file.as_ref().is_some_and(|file| file.used.contains_key(&ino))
    }

    /// Whether the orphan file has any.
    pub(crate) fn in_file(&self) -> bool {
        self.file.as_ref().is_some_and(|file| !file.used.is_empty())
    }

    /// What `i_dtime` of one in the list is.
    fn next(&self, ino: u32) -> Option<u32> {
        let at = self.list.iter().position(|other| *other == ino)?;
        Some(self.list.get(at + 1).copied().unwrap_or(0))
    }

    fn all(&self) -> Vec<u32> {
        let in_file = self.file.iter().flat_map(|file| file.used.keys());
        self.list.iter().chain(in_file).copied().collect()
    }
}

impl Fs {
    fn slots_per_block(&self) -> usize {
        (self.geo.block_size - 8) / 4
    }

    fn orphan_block(&self, file: &OrphanFile, slot: usize) -> Result<(Arc<Buf>, usize)> {
        let per = self.slots_per_block();
        let block = file.blocks[slot / per];
        let csum = self.geo.metadata_csum();
        let buf = self.cache.get(block, &self.journal, |bytes| {
            let at = bytes.len() - 8;
            if le32(bytes, at) != MAGIC {
                return Err(Error::Corrupt("orphan file's magic number", block));
            }
            if csum && le32(bytes, at + 4) != orphan_sum(file.seed, block, bytes) {
                return Err(Error::Corrupt("orphan file's checksum", block));
            }
            Ok(BlockSum::None)
        })?;
        Ok((buf, slot % per))
    }

    fn set_orphan_slot(&self, handle: &Handle<'_>, file: &OrphanFile, slot: usize, ino: u32) -> Result<()> {
        let (buf, at) = self.orphan_block(file, slot)?;
        let mut bytes = handle.modify(&buf);
        put32(&mut bytes, at * 4, ino);
        if self.geo.metadata_csum() {
            let sum = orphan_sum(file.seed, buf.block, &bytes);
            let at = bytes.len() - 4;
            put32(&mut bytes, at, sum);
        }
        Ok(())
    }

    /// Records an inode. The caller writes the inode afterwards.
    pub(crate) fn orphan_add(&self, handle: &Handle<'_>, data: &mut InodeData) -> Result<()> {
        let mut orphans = self.orphans.lock();
        if orphans.contains(data.ino) {
            return Ok(());
        }
        if let Some(file) = orphans.file.as_mut()
            && let Some(slot) = file.free.pop()
        {
            self.set_orphan_slot(handle, file, slot, data.ino)?;
            file.used.insert(data.ino, slot);
            let mut sb = self.sb.lock();
            let features = sb.ro_compat() | RoCompat::ORPHAN_PRESENT;
            sb.feature_ro_compat.set(features.bits());
            return Ok(());
        }
        let mut sb = self.sb.lock();
        data.disk_mut().dtime.set(sb.last_orphan.get());
        sb.last_orphan.set(data.ino);
        orphans.list.insert(0, data.ino);
        // The superblock goes with every transaction; this one must not be empty, and it is not: the inode follows.
        Ok(())
    }

    /// Takes an inode off the record. The caller writes the inode afterwards.
    pub(crate) fn orphan_del(&self, handle: &Handle<'_>, data: &mut InodeData) -> Result<()> {
        let mut orphans = self.orphans.lock();
        if let Some(file) = orphans.file.as_mut()
            && let Some(slot) = file.used.remove(&data.ino)
        {
            self.set_orphan_slot(handle, file, slot, 0)?;
            file.free.push(slot);
            return Ok(());
        }
        let Some(at) = orphans.list.iter().position(|ino| *ino == data.ino) else { return Ok(()) };
        let next = orphans.list.get(at + 1).copied().unwrap_or(0);
        data.disk_mut().dtime.set(0);
        match at.checked_sub(1) {
            None => self.sb.lock().last_orphan.set(next),
            // Whoever writes that inode next takes the word from the list as well (`orphan_link`).
            Some(before) => self.patch_dtime(handle, orphans.list[before], next)?,
        }
        orphans.list.remove(at);
        Ok(())
    }

    /// Before an inode is written: its place in the list may have changed since it was read.
    pub(crate) fn orphan_link(
        &self,
        data: &mut InodeData,
        write: impl FnOnce(&mut InodeData) -> Result<()>,
    ) -> Result<()> {
        if data.links() > 0 && self.geo.compat.contains(Compat::ORPHAN_FILE) {
            return write(data);
        }
        let orphans = self.orphans.lock();
        if let Some(next) = orphans.next(data.ino) {
            data.disk_mut().dtime.set(next);
        }
        write(data)
    }

    /// Reads the record at mount and finishes what it speaks of, except what is live.
    pub(crate) fn load_orphans(&self) -> Result<()> {
        self.load_orphan_file()?;
        self.load_orphan_list()?;
        let all = self.orphans.lock().all();
        for ino in all {
            let Ok(inode) = self.inode(ino) else {
                self.forget_orphan(ino)?;
                continue;
            };
            if self.pin_live(&inode) {
                continue;
            }
            let links = inode.lock.read().links();
            if links == 0 {
                self.evict(&inode)?;
            } else {
                self.finish_truncation(&inode)?;
            }
        }
        for &ino in self.live.keys() {
            // One that was not committed is made again later.
            if let Ok(inode) = self.inode(ino) {
                self.pin_live(&inode);
            }
        }
        Ok(())
    }

    /// Gives an inode the look-ups that somebody has of it; whether there are any.
    fn pin_live(&self, inode: &Inode) -> bool {
        let pins = self.live_lookups(inode.ino, inode.lock.read().generation());
        inode.pins.store(pins, std::sync::atomic::Ordering::Relaxed);
        pins > 0
    }

    fn load_orphan_list(&self) -> Result<()> {
        let mut next = self.sb.lock().last_orphan.get();
        let mut list = Vec::new();
        while next != 0 {
            if next > self.geo.inodes_count || next < self.geo.first_ino || list.contains(&next) || list.len() > 1 << 16
            {
                return Err(Error::Corrupt("orphan list", next.into()));
            }
            list.push(next);
            // Read as it is on the disk: whether it is in use is what the record says.
            next = self.raw_inode_word(next, 0x14)?;
        }
        self.orphans.lock().list = list;
        Ok(())
    }

    fn load_orphan_file(&self) -> Result<()> {
        let ino = self.sb.lock().orphan_file_inum.get();
        if !self.geo.compat.contains(Compat::ORPHAN_FILE) || ino == 0 {
            return Ok(());
        }
        let inode = self.inode(ino)?;
        let data = inode.lock.read();
        let count = data.size() >> self.geo.block_bits;
        if count > 512 {
            return Err(Error::Corrupt("orphan file's size", ino.into()));
        }
        let mut file =
            OrphanFile { seed: data.seed, blocks: Vec::new(), slots: 0, used: HashMap::new(), free: Vec::new() };
        for lblk in 0..count as u32 {
            match self.map(&data, lblk)? {
                Mapped::Run { phys, unwritten: false, .. } => file.blocks.push(phys),
                _ => return Err(Error::Corrupt("orphan file's blocks", ino.into())),
            }
        }
        file.slots = file.blocks.len() * self.slots_per_block();
        for slot in (0..file.slots).rev() {
            let (buf, at) = self.orphan_block(&file, slot)?;
            match le32(&buf.read(), at * 4) {
                0 => file.free.push(slot),
                ino if ino <= self.geo.inodes_count && !file.used.contains_key(&ino) => {
                    file.used.insert(ino, slot);
                }
                ino => return Err(Error::Corrupt("orphan file", ino.into())),
            }
        }
        self.orphans.lock().file = Some(file);
        Ok(())
    }

    /// Takes one off the record that is no inode at all.
    fn forget_orphan(&self, ino: u32) -> Result<()> {
        let handle = self.begin(4)?;
        let mut blank = self.blank_inode(ino, 0, handle.tid());
        self.orphan_del(&handle, &mut blank)
    }

    /// Frees what no name leads to any more although somebody still has it.
    pub(crate) fn drop_orphans(&self) -> Result<()> {
        for inode in self.inodes.unlinked() {
            inode.pins.store(0, std::sync::atomic::Ordering::Relaxed);
            self.evict(&inode)?;
        }
        Ok(())
    }

    /// Frees an inode if no name leads to it and nobody has it.
    pub(crate) fn evict(&self, inode: &Arc<Inode>) -> Result<()> {
        let mut data = inode.lock.write();
        if data.links() > 0 || data.gone || inode.pins() > 0 {
            return Ok(());
        }
        if data.has_extents() {
            self.truncate_blocks(&mut data, 0)?;
        }
        let handle = self.begin(12)?;
        self.drop_xattr_block(&handle, &mut data)?;
        self.orphan_del(&handle, &mut data)?;
        data.set_size(0);
        let now = Time::now();
        data.disk_mut().dtime.set(now.sec as u32);
        self.write_inode_data(&handle, &mut data)?;
        let is_dir = data.is_dir();
        // From here on another may have the number, and must find its own inode.
        data.gone = true;
        self.inodes.forget(inode.ino);
        self.free_inode(&handle, inode.ino, is_dir)
    }
}

fn orphan_sum(seed: u32, block: u64, bytes: &[u8]) -> u32 {
    crc32c(crc32c(seed, &block.to_le_bytes()), &bytes[..bytes.len() - 8])
}
