//! Inodes in memory: loading, storing, the table of those that are in use.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;
use zerocopy::{FromBytes, FromZeros};

use crate::cache::{Buf, read_block};
use crate::csum::{BlockSum, crc32c};
use crate::device::BlockDevice;
use crate::disk::inode::{
    BLOCK_BYTES, CHECKSUM_HI_OFFSET, CHECKSUM_LO_OFFSET, DiskInode, GOOD_OLD_SIZE, InodeFlags, Time,
};
use crate::disk::{extent, le16, put16};
use crate::error::{Error, Result};
use crate::fs::{Fs, Geometry};
use crate::group::Group;
use crate::journal::Handle;

/// The kind bits of a mode.
pub const S_IFMT: u32 = 0o170_000;
/// A FIFO.
pub const S_IFIFO: u32 = 0o010_000;
/// A character device.
pub const S_IFCHR: u32 = 0o020_000;
/// A directory.
pub const S_IFDIR: u32 = 0o040_000;
/// A block device.
pub const S_IFBLK: u32 = 0o060_000;
/// A regular file.
pub const S_IFREG: u32 = 0o100_000;
/// A symbolic link.
pub const S_IFLNK: u32 = 0o120_000;
/// A socket.
pub const S_IFSOCK: u32 = 0o140_000;

/// An inode that is in use.
pub struct Inode {
    /// Its number.
    pub ino: u32,
    pub(crate) lock: RwLock<InodeData>,
    /// How often somebody was given it and has not given it back; while this is not 0 it stays although no name leads to it.
    pub(crate) pins: AtomicU64,
}

/// What is in an inode.
pub struct InodeData {
    pub(crate) ino: u32,
    /// As on the disk; at least the structure's 160 bytes, of which inodes of 128 bytes store the first part only.
    pub(crate) raw: Vec<u8>,
    /// The transaction that changed it last.
    pub(crate) tid: u64,
    /// The transaction that changed what is needed to read its data back last (`fdatasync(2)`).
    pub(crate) data_tid: u64,
    /// It is freed on the disk.
    pub(crate) gone: bool,
    /// The seed of checksums of what belongs to it.
    pub(crate) seed: u32,
}

/// What `stat(2)` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the system call")]
pub struct Stat {
    pub ino: u32,
    pub generation: u32,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub size: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub crtime: Option<Time>,
    /// `i_flags`.
    pub flags: u32,
}

impl Inode {
    /// What `stat(2)` tells.
    pub fn stat(&self) -> Stat {
        self.lock.read().stat()
    }

    /// Number of holders.
    pub fn pins(&self) -> u64 {
        self.pins.load(Ordering::Relaxed)
    }

    /// Holds it once more; [`Fs::unpin`] gives it back.
    pub fn pin(&self) {
        self.pins.fetch_add(1, Ordering::Relaxed);
    }
}

impl InodeData {
    pub(crate) fn disk(&self) -> &DiskInode {
        DiskInode::ref_from_prefix(&self.raw).expect("raw is never shorter").0
    }

    pub(crate) fn disk_mut(&mut self) -> &mut DiskInode {
        DiskInode::mut_from_prefix(&mut self.raw).expect("raw is never shorter").0
    }

    pub(crate) fn mode(&self) -> u32 {
        self.disk().mode.get().into()
    }

    pub(crate) fn kind(&self) -> u32 {
        self.mode() & S_IFMT
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.kind() == S_IFDIR
    }

    pub(crate) fn is_file(&self) -> bool {
        self.kind() == S_IFREG
    }

    pub(crate) fn links(&self) -> u32 {
        self.disk().links_count.get().into()
    }

    pub(crate) fn set_links(&mut self, links: u32) {
        self.disk_mut().links_count.set(links as u16);
    }

    pub(crate) fn flags(&self) -> InodeFlags {
        InodeFlags::from_bits_retain(self.disk().flags.get())
    }

    pub(crate) fn set_flags(&mut self, flags: InodeFlags) {
        self.disk_mut().flags.set(flags.bits());
    }

    pub(crate) fn size(&self) -> u64 {
        let disk = self.disk();
        // The high half of anything else was something different once.
        let high = if self.is_file() || self.is_dir() { disk.size_high.get() } else { 0 };
        u64::from(high) << 32 | u64::from(disk.size_lo.get())
    }

    pub(crate) fn set_size(&mut self, size: u64) {
        let disk = self.disk_mut();
        disk.size_lo.set(size as u32);
        disk.size_high.set((size >> 32) as u32);
    }

    pub(crate) fn uid(&self) -> u32 {
        u32::from(self.disk().uid_high.get()) << 16 | u32::from(self.disk().uid.get())
    }

    pub(crate) fn gid(&self) -> u32 {
        u32::from(self.disk().gid_high.get()) << 16 | u32::from(self.disk().gid.get())
    }

    pub(crate) fn set_owner(&mut self, uid: u32, gid: u32) {
        let disk = self.disk_mut();
        disk.uid.set(uid as u16);
        disk.uid_high.set((uid >> 16) as u16);
        disk.gid.set(gid as u16);
        disk.gid_high.set((gid >> 16) as u16);
    }

    pub(crate) fn set_mode(&mut self, mode: u32) {
        self.disk_mut().mode.set(mode as u16);
    }

    pub(crate) fn generation(&self) -> u32 {
        self.disk().generation.get()
    }

    pub(crate) fn xattr_block(&self) -> u64 {
        u64::from(self.disk().file_acl_high.get()) << 32 | u64::from(self.disk().file_acl_lo.get())
    }

    pub(crate) fn set_xattr_block(&mut self, block: u64) {
        self.disk_mut().file_acl_lo.set(block as u32);
        self.disk_mut().file_acl_high.set((block >> 32) as u16);
    }

    /// Space that it takes, in units of 512 bytes; `block_size` matters for huge files only.
    fn sectors(&self, block_size: u64) -> u64 {
        let disk = self.disk();
        let count = u64::from(disk.blocks_high.get()) << 32 | u64::from(disk.blocks_lo.get());
        if self.flags().contains(InodeFlags::HUGE_FILE) { count * (block_size / 512) } else { count }
    }

    /// Adds blocks to the space that it takes, or takes them away.
    pub(crate) fn add_blocks(&mut self, blocks: i64, geo: &Geometry) {
        let per = (geo.block_size / 512) as i64;
        let sectors = (self.sectors(geo.block_size as u64) as i64).saturating_add(blocks * per).max(0) as u64;
        let mut flags = self.flags();
        // Beyond 48 bits the unit is a block.
        let huge = sectors >= 1 << 48;
        flags.set(InodeFlags::HUGE_FILE, huge);
        let count = if huge { sectors / per as u64 } else { sectors };
        self.set_flags(flags);
        let disk = self.disk_mut();
        disk.blocks_lo.set(count as u32);
        disk.blocks_high.set((count >> 32) as u16);
    }

    /// Whether the inode stores the structure up to this byte.
    fn has_extra(&self, end: usize) -> bool {
        end <= GOOD_OLD_SIZE + usize::from(self.disk().extra_isize.get())
    }

    pub(crate) fn atime(&self) -> Time {
        let extra = if self.has_extra(144) { self.disk().atime_extra.get() } else { 0 };
        Time::decode(self.disk().atime.get(), extra)
    }

    pub(crate) fn mtime(&self) -> Time {
        let extra = if self.has_extra(140) { self.disk().mtime_extra.get() } else { 0 };
        Time::decode(self.disk().mtime.get(), extra)
    }

    pub(crate) fn ctime(&self) -> Time {
        let extra = if self.has_extra(136) { self.disk().ctime_extra.get() } else { 0 };
        Time::decode(self.disk().ctime.get(), extra)
    }

    pub(crate) fn set_atime(&mut self, time: Time) {
        let (has, (sec, extra)) = (self.has_extra(144), time.encode());
        let disk = self.disk_mut();
        if has {
            disk.atime.set(sec);
            disk.atime_extra.set(extra);
        } else {
            disk.atime.set(time.encode_old());
        }
    }

    pub(crate) fn set_mtime(&mut self, time: Time) {
        let (has, (sec, extra)) = (self.has_extra(140), time.encode());
        let disk = self.disk_mut();
        if has {
            disk.mtime.set(sec);
            disk.mtime_extra.set(extra);
        } else {
            disk.mtime.set(time.encode_old());
        }
    }

    pub(crate) fn set_ctime(&mut self, time: Time) {
        let (has, (sec, extra)) = (self.has_extra(136), time.encode());
        let disk = self.disk_mut();
        if has {
            disk.ctime.set(sec);
            disk.ctime_extra.set(extra);
        } else {
            disk.ctime.set(time.encode_old());
        }
        let version = disk.version.get().wrapping_add(1);
        disk.version.set(version);
    }

    pub(crate) fn set_crtime(&mut self, time: Time) {
        if self.has_extra(152) {
            let (sec, extra) = time.encode();
            self.disk_mut().crtime.set(sec);
            self.disk_mut().crtime_extra.set(extra);
        }
    }

    /// `st_rdev` as Linux encodes it for user space (`makedev`'s 32-bit form, as FUSE carries it).
    pub(crate) fn rdev(&self) -> u32 {
        let block = &self.disk().block;
        let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        match (word(0), word(4)) {
            // The old form has 8 bits each.
            (0, new) => new,
            (old, _) => old & 0xffff,
        }
    }

    pub(crate) fn set_rdev(&mut self, rdev: u32) {
        let (major, minor) = (rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xf_ff00);
        let (old, new) = if major < 256 && minor < 256 { (major << 8 | minor, 0) } else { (0, rdev) };
        let block = &mut self.disk_mut().block;
        block[..4].copy_from_slice(&old.to_le_bytes());
        block[4..8].copy_from_slice(&new.to_le_bytes());
    }

    /// Whether a symbolic link's target is in the inode itself.
    pub(crate) fn is_fast_symlink(&self) -> bool {
        self.kind() == crate::S_IFLNK && self.size() < BLOCK_BYTES as u64 && !self.flags().contains(InodeFlags::EXTENTS)
    }

    /// Whether `i_block` is an extent tree's root.
    pub(crate) fn has_extents(&self) -> bool {
        self.flags().contains(InodeFlags::EXTENTS)
    }

    pub(crate) fn stat(&self) -> Stat {
        let is_device = matches!(self.kind(), S_IFCHR | S_IFBLK);
        Stat {
            ino: self.ino,
            generation: self.generation(),
            mode: self.mode(),
            nlink: self.links(),
            uid: self.uid(),
            gid: self.gid(),
            rdev: if is_device { self.rdev() } else { 0 },
            size: self.size(),
            // Files beyond 2^48 sectors are the only ones where the block's size would matter; they count in 4 KiB.
            blocks: self.sectors(4096),
            atime: self.atime(),
            mtime: self.mtime(),
            ctime: self.ctime(),
            crtime: self.has_extra(152).then(|| Time::decode(self.disk().crtime.get(), self.disk().crtime_extra.get())),
            flags: self.flags().bits(),
        }
    }
}

const SHARDS: usize = 16;
/// The most unused inodes that a shard keeps.
const SHARD_LIMIT: usize = 4096;

/// All inodes in memory.
pub struct InodeTable {
    shards: Vec<Mutex<HashMap<u32, Arc<Inode>>>>,
}

impl InodeTable {
    pub(crate) fn new() -> InodeTable {
        InodeTable { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self, ino: u32) -> &Mutex<HashMap<u32, Arc<Inode>>> {
        &self.shards[ino as usize % SHARDS]
    }

    fn get_or_load(&self, ino: u32, load: impl FnOnce() -> Result<InodeData>) -> Result<Arc<Inode>> {
        let mut shard = self.shard(ino).lock();
        if let Some(inode) = shard.get(&ino) {
            return Ok(inode.clone());
        }
        let inode = Arc::new(Inode { ino, lock: RwLock::new(load()?), pins: AtomicU64::new(0) });
        Self::insert_into(&mut shard, &inode);
        Ok(inode)
    }

    fn insert_into(shard: &mut HashMap<u32, Arc<Inode>>, inode: &Arc<Inode>) {
        if shard.len() >= SHARD_LIMIT {
            // What is in use stays. The count of references is exact: others take theirs under the shard's lock.
            shard.retain(|_, inode| Arc::strong_count(inode) > 1 || inode.pins() > 0);
        }
        shard.insert(inode.ino, inode.clone());
    }

    /// Takes in an inode that was just made.
    pub(crate) fn insert(&self, data: InodeData) -> Arc<Inode> {
        let ino = data.ino;
        let inode = Arc::new(Inode { ino, lock: RwLock::new(data), pins: AtomicU64::new(0) });
        Self::insert_into(&mut self.shard(ino).lock(), &inode);
        inode
    }

    /// Forgets one that is freed; a later one of this number is another.
    pub(crate) fn forget(&self, ino: u32) {
        self.shard(ino).lock().remove(&ino);
    }

    /// All that are in memory and that no name leads to.
    pub(crate) fn unlinked(&self) -> Vec<Arc<Inode>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard: Vec<_> = shard.lock().values().cloned().collect();
            all.extend(shard.into_iter().filter(|inode| {
                let data = inode.lock.read();
                data.links() == 0 && !data.gone
            }));
        }
        all
    }
}

impl Geometry {
    /// The seed of checksums of what belongs to an inode.
    pub fn inode_seed(&self, ino: u32, generation: u32) -> u32 {
        crc32c(crc32c(self.csum_seed, &ino.to_le_bytes()), &generation.to_le_bytes())
    }

    /// An inode's checksum; `raw` is cut to what is on the disk.
    fn inode_sum(&self, seed: u32, raw: &[u8]) -> u32 {
        let raw = &raw[..self.inode_size];
        let mut sum = crc32c(crc32c(seed, &raw[..CHECKSUM_LO_OFFSET]), &[0; 2]);
        sum = crc32c(sum, &raw[CHECKSUM_LO_OFFSET + 2..GOOD_OLD_SIZE]);
        if raw.len() > GOOD_OLD_SIZE {
            sum = crc32c(sum, &raw[GOOD_OLD_SIZE..CHECKSUM_HI_OFFSET]);
            if self.has_sum_hi(raw) {
                sum = crc32c(sum, &[0; 2]);
                sum = crc32c(sum, &raw[CHECKSUM_HI_OFFSET + 2..]);
            } else {
                sum = crc32c(sum, &raw[CHECKSUM_HI_OFFSET..]);
            }
        }
        sum
    }

    fn has_sum_hi(&self, raw: &[u8]) -> bool {
        self.inode_size > GOOD_OLD_SIZE && le16(raw, GOOD_OLD_SIZE) >= 4
    }

    fn inode_is_right(&self, seed: u32, raw: &[u8]) -> bool {
        let sum = self.inode_sum(seed, raw);
        let hi = !self.has_sum_hi(raw) || le16(raw, CHECKSUM_HI_OFFSET) == (sum >> 16) as u16;
        le16(raw, CHECKSUM_LO_OFFSET) == sum as u16 && hi
    }

    fn store_inode_sum(&self, seed: u32, raw: &mut [u8]) {
        let sum = self.inode_sum(seed, raw);
        put16(raw, CHECKSUM_LO_OFFSET, sum as u16);
        if self.has_sum_hi(raw) {
            put16(raw, CHECKSUM_HI_OFFSET, (sum >> 16) as u16);
        }
    }

    /// The group of an inode, and its index there.
    pub fn group_of_inode(&self, ino: u32) -> (u32, u32) {
        ((ino - 1) / self.inodes_per_group, (ino - 1) % self.inodes_per_group)
    }

    /// The block of an inode and the byte in it, where its group's table begins at `table`.
    fn inode_place(&self, table: u64, index: u32) -> (u64, usize) {
        let byte = u64::from(index) * self.inode_size as u64;
        (table + (byte >> self.block_bits), byte as usize % self.block_size)
    }
}

impl Fs {
    fn inode_buf(&self, ino: u32) -> Result<(Arc<Buf>, usize)> {
        let (group, index) = self.geo.group_of_inode(ino);
        let table = self.groups[group as usize].state.lock().desc.inode_table();
        let (block, at) = self.geo.inode_place(table, index);
        let buf = self.cache.get(block, &self.journal, |_| Ok(BlockSum::None))?;
        Ok((buf, at))
    }

    fn load_inode(&self, ino: u32) -> Result<InodeData> {
        let (buf, at) = self.inode_buf(ino)?;
        let raw = buf.read()[at..at + self.geo.inode_size].to_vec();
        drop(buf);
        let tid = self.journal.running();
        let data = parse_inode(&self.geo, ino, raw, tid)?;
        if data.links() == 0 && (data.mode() == 0 || !self.orphans.lock().contains(ino)) {
            return Err(Error::Corrupt("name of an inode that is free", ino.into()));
        }
        Ok(data)
    }

    /// The inode of this number, which must be in use; it is not pinned.
    ///
    /// # Errors
    /// [`Error::Corrupt`], or the device's.
    pub fn inode(&self, ino: u32) -> Result<Arc<Inode>> {
        if ino == 0 || ino > self.geo.inodes_count {
            return Err(Error::Corrupt("inode number", ino.into()));
        }
        self.inodes.get_or_load(ino, || self.load_inode(ino))
    }

    /// The inode of this number and generation, from an earlier [`Stat`]; it is not pinned.
    ///
    /// # Errors
    /// `ESTALE` when it is another by now.
    pub fn inode_by_handle(&self, ino: u32, generation: u32) -> Result<Arc<Inode>> {
        if ino == 0 || ino > self.geo.inodes_count {
            return Err(Errno::STALE.into());
        }
        let inode = match self.inode(ino) {
            Ok(inode) => inode,
            Err(Error::Corrupt("name of an inode that is free", _)) => return Err(Errno::STALE.into()),
            Err(error) => return self.noticing(Err(error)),
        };
        let data = inode.lock.read();
        if data.generation() != generation || data.gone {
            return Err(Errno::STALE.into());
        }
        drop(data);
        Ok(inode)
    }

    /// Writes an inode into its block.
    pub(crate) fn write_inode(&self, handle: &Handle<'_>, data: &mut InodeData) -> Result<()> {
        let (buf, at) = self.inode_buf(data.ino)?;
        self.orphan_link(data, |data| {
            if self.geo.metadata_csum() {
                let seed = data.seed;
                self.geo.store_inode_sum(seed, &mut data.raw);
            }
            let size = self.geo.inode_size;
            handle.modify(&buf)[at..at + size].copy_from_slice(&data.raw[..size]);
            data.tid = handle.tid();
            Ok(())
        })
    }

    /// Changes `i_dtime` of an inode that somebody else may have in memory.
    pub(crate) fn patch_dtime(&self, handle: &Handle<'_>, ino: u32, dtime: u32) -> Result<()> {
        let (buf, at) = self.inode_buf(ino)?;
        let mut bytes = handle.modify(&buf);
        let raw = &mut bytes[at..at + self.geo.inode_size];
        crate::disk::put32(raw, 0x14, dtime);
        if self.geo.metadata_csum() {
            let seed = self.geo.inode_seed(ino, crate::disk::le32(raw, 0x64));
            self.geo.store_inode_sum(seed, raw);
        }
        Ok(())
    }

    /// A word of an inode as it lies on the disk.
    pub(crate) fn raw_inode_word(&self, ino: u32, offset: usize) -> Result<u32> {
        let (buf, at) = self.inode_buf(ino)?;
        let word = crate::disk::le32(&buf.read(), at + offset);
        Ok(word)
    }

    /// As [`write_inode`](Fs::write_inode), when what was changed is needed to read the data back.
    pub(crate) fn write_inode_data(&self, handle: &Handle<'_>, data: &mut InodeData) -> Result<()> {
        data.data_tid = handle.tid();
        self.write_inode(handle, data)
    }

    /// A new inode's memory.
    pub(crate) fn blank_inode(&self, ino: u32, generation: u32, tid: u64) -> InodeData {
        let raw = vec![0; self.geo.inode_size.max(size_of::<DiskInode>())];
        let seed = self.geo.inode_seed(ino, generation);
        let mut data = InodeData { ino, raw, tid, data_tid: tid, gone: false, seed };
        data.disk_mut().generation.set(generation);
        if self.geo.inode_size > GOOD_OLD_SIZE {
            data.disk_mut().extra_isize.set(self.geo.want_extra_isize);
        }
        data
    }
}

fn parse_inode(geo: &Geometry, ino: u32, mut raw: Vec<u8>, tid: u64) -> Result<InodeData> {
    let disk = DiskInode::read_from_prefix(&raw).map(|(disk, _)| disk).unwrap_or_else(|_| {
        let mut disk = DiskInode::new_zeroed();
        let bytes = zerocopy::IntoBytes::as_mut_bytes(&mut disk);
        bytes[..raw.len()].copy_from_slice(&raw);
        disk
    });
    let seed = geo.inode_seed(ino, disk.generation.get());
    if geo.metadata_csum() && !geo.inode_is_right(seed, &raw) {
        return Err(Error::Corrupt("inode's checksum", ino.into()));
    }
    let extra = usize::from(disk.extra_isize.get());
    if geo.inode_size > GOOD_OLD_SIZE && (GOOD_OLD_SIZE + extra > geo.inode_size || extra % 4 != 0) {
        return Err(Error::Corrupt("inode's extra size", ino.into()));
    }
    raw.resize(geo.inode_size.max(size_of::<DiskInode>()), 0);
    let data = InodeData { ino, raw, tid, data_tid: tid, gone: false, seed };
    if data.flags().intersects(InodeFlags::INLINE_DATA | InodeFlags::ENCRYPT | InodeFlags::EA_INODE) {
        return Err(Error::Unsupported(format!("inode {ino} with flags {:#x}", data.flags().bits())));
    }
    if data.size() > geo.max_size() {
        return Err(Error::Corrupt("file's size", ino.into()));
    }
    if data.has_extents() {
        extent::check(&data.disk().block, ino.into())?;
    }
    Ok(data)
}

/// Where the journal's blocks lie, read as they are on the disk.
pub(crate) fn journal_runs(
    dev: &dyn BlockDevice,
    geo: &Geometry,
    groups: &[Group],
    ino: u32,
) -> Result<Vec<(u32, u64, u32)>> {
    let bad = |what| Error::Corrupt(what, ino.into());
    if ino > geo.inodes_count {
        return Err(bad("journal's inode number"));
    }
    let (group, index) = geo.group_of_inode(ino);
    let table = groups[group as usize].state.lock().desc.inode_table();
    let (block, at) = geo.inode_place(table, index);
    let bytes = read_block(dev, block, geo.block_size)?;
    let data = parse_inode(geo, ino, bytes[at..at + geo.inode_size].to_vec(), 0)?;
    let mut runs = Vec::new();
    if data.has_extents() {
        collect_extents(dev, geo, &data.disk().block, None, &mut runs, &mut 0)?;
    } else {
        let blocks = data.size() >> geo.block_bits;
        let mut read = |block| Ok(read_block(dev, block, geo.block_size)?);
        for lblk in 0..u32::try_from(blocks).map_err(|_| bad("journal's size"))? {
            let phys = crate::indirect::lookup(geo, &data.disk().block, lblk, &mut read)?;
            match runs.last_mut() {
                Some((_, start, len)) if *start + u64::from(*len) == phys => *len += 1,
                _ => runs.push((lblk, phys, 1)),
            }
        }
    }
    let mut next = 0;
    for &(lblk, phys, len) in &runs {
        if lblk != next || !geo.is_inside(phys, len.into()) {
            return Err(bad("journal's blocks"));
        }
        next += len;
    }
    Ok(runs)
}

fn collect_extents(
    dev: &dyn BlockDevice,
    geo: &Geometry,
    node: &[u8],
    depth: Option<u16>,
    runs: &mut Vec<(u32, u64, u32)>,
    seen: &mut u32,
) -> Result<()> {
    extent::check(node, 0)?;
    extent::check_header(node, depth, 0)?;
    *seen += 1;
    if *seen > 4096 {
        return Err(Error::Corrupt("journal's extents", 0));
    }
    for i in 0..extent::entries(node) {
        if extent::depth(node) == 0 {
            let extent = extent::get(node, i);
            runs.push((extent.lblk, extent.phys, extent.len));
        } else {
            let child = extent::get_index(node, i).child;
            if !geo.is_inside(child, 1) {
                return Err(Error::Corrupt("extent node's block", child));
            }
            let block = read_block(dev, child, geo.block_size)?;
            collect_extents(dev, geo, &block, Some(extent::depth(node) - 1), runs, seen)?;
        }
    }
    Ok(())
}
