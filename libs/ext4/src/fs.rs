//! A mounted file system: mounting, sealing transactions, unmounting.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::cache::{Buf, Cache, Overlay, read_block};
use crate::csum::{BlockSum, crc32c};
use crate::device::BlockDevice;
use crate::disk::inode::{GOOD_OLD_SIZE, ROOT_INO, Time};
use crate::disk::superblock::{
    self, CHECKSUM_CRC32C, Compat, FLAG_UNSIGNED_HASH, Incompat, RoCompat, STATE_ERROR, STATE_VALID, Superblock,
};
use crate::error::{Error, Result};
use crate::group::Group;
use crate::inode::{Inode, InodeData, InodeTable};
use crate::journal::{Handle, Hooks, Journal, Ledger, Log, NoHandle, Progress, Recovered, done_room, recover};
use crate::orphan::Orphans;

/// What of the superblock never changes while mounted.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are the superblock's")]
pub struct Geometry {
    pub block_size: usize,
    pub block_bits: u32,
    pub blocks_count: u64,
    pub reserved_blocks: u64,
    pub first_data_block: u32,
    pub blocks_per_group: u32,
    pub inodes_per_group: u32,
    pub inodes_count: u32,
    pub groups: u32,
    pub inode_size: usize,
    pub desc_size: usize,
    pub first_ino: u32,
    pub first_meta_bg: u32,
    pub reserved_gdt_blocks: u16,
    pub compat: Compat,
    pub incompat: Incompat,
    pub ro_compat: RoCompat,
    pub sparse_super2: bool,
    pub backup_groups: [u32; 2],
    pub csum_seed: u32,
    pub uuid: [u8; 16],
    pub hash_seed: [u32; 4],
    pub hash_version: u8,
    pub hash_unsigned: bool,
    pub want_extra_isize: u16,
    pub flex_groups: u32,
    pub resuid: u32,
    /// Blocks that hold no files: what `statfs` leaves out of the total.
    pub overhead: u64,
}

impl Geometry {
    fn new(sb: &Superblock, device_size: u64) -> Result<Geometry> {
        let bad = |what| Err(Error::Corrupt(what, 0));
        if sb.magic.get() != superblock::MAGIC {
            return Err(Error::Unsupported("no ext4 file system here (wrong magic number)".into()));
        }
        if sb.rev_level.get() > 1 {
            return Err(Error::Unsupported(format!("revision {}", sb.rev_level.get())));
        }
        let unknown = sb.incompat().difference(Incompat::KNOWN);
        if !unknown.is_empty() {
            return Err(Error::Unsupported(format!("incompatible features {unknown:?}")));
        }
        let log = sb.log_block_size.get();
        if log > 6 {
            return bad("block size");
        }
        let block_bits = 10 + log;
        let block_size = 1usize << block_bits;
        let old = sb.rev_level.get() == 0;
        let inode_size = if old { GOOD_OLD_SIZE } else { sb.inode_size.get().into() };
        if inode_size < GOOD_OLD_SIZE || inode_size > block_size || !inode_size.is_power_of_two() {
            return bad("inode size");
        }
        let desc_size = if sb.incompat().contains(Incompat::BIT64) { sb.desc_size.get().into() } else { 32 };
        if desc_size < 32 || desc_size > block_size || !usize::is_power_of_two(desc_size) {
            return bad("group descriptor's size");
        }
        let (blocks_per_group, inodes_per_group) = (sb.blocks_per_group.get(), sb.inodes_per_group.get());
        let bits = block_size as u32 * 8;
        if blocks_per_group == 0 || blocks_per_group > bits || !blocks_per_group.is_multiple_of(8) {
            return bad("blocks per group");
        }
        let per_block = (block_size / inode_size) as u32;
        if inodes_per_group < per_block || inodes_per_group > bits || !inodes_per_group.is_multiple_of(per_block) {
            return bad("inodes per group");
        }
        let first_data_block = sb.first_data_block.get();
        let bigalloc = sb.ro_compat().contains(RoCompat::BIGALLOC);
        if !bigalloc && first_data_block != u32::from(block_size == 1024) {
            return bad("first data block");
        }
        let blocks_count =
            if sb.incompat().contains(Incompat::BIT64) { sb.blocks_count() } else { sb.blocks_count_lo.get().into() };
        if blocks_count <= u64::from(first_data_block) + 1 || blocks_count > device_size >> block_bits {
            return bad("block count");
        }
        let groups = (blocks_count - u64::from(first_data_block)).div_ceil(blocks_per_group.into());
        let Ok(groups) = u32::try_from(groups) else { return bad("number of groups") };
        let inodes_count = sb.inodes_count.get();
        if u64::from(groups) * u64::from(inodes_per_group) != u64::from(inodes_count) {
            return bad("inode count");
        }
        if sb.checksum_type != CHECKSUM_CRC32C && sb.ro_compat().contains(RoCompat::METADATA_CSUM) {
            return Err(Error::Unsupported(format!("checksum type {}", sb.checksum_type)));
        }
        let seed =
            if sb.incompat().contains(Incompat::CSUM_SEED) { sb.checksum_seed.get() } else { crc32c(!0, &sb.uuid) };
        let mut geo = Geometry {
            block_size,
            block_bits,
            blocks_count,
            reserved_blocks: sb.reserved_blocks().min(blocks_count),
            first_data_block,
            blocks_per_group,
            inodes_per_group,
            inodes_count,
            groups,
            inode_size,
            desc_size,
            first_ino: if old { 11 } else { sb.first_ino.get().max(11) },
            first_meta_bg: sb.first_meta_bg.get(),
            reserved_gdt_blocks: sb.reserved_gdt_blocks.get(),
            compat: sb.compat(),
            incompat: sb.incompat(),
            ro_compat: sb.ro_compat(),
            sparse_super2: sb.compat().contains(Compat::SPARSE_SUPER2),
            backup_groups: sb.backup_bgs.map(|group| group.get()),
            csum_seed: seed,
            uuid: sb.uuid,
            hash_seed: sb.hash_seed.map(|word| word.get()),
            hash_version: sb.def_hash_version,
            hash_unsigned: sb.flags.get() & FLAG_UNSIGNED_HASH != 0,
            want_extra_isize: sb.want_extra_isize.get().clamp(32, (inode_size.max(160) - 128) as u16),
            flex_groups: 1 << u32::from(sb.log_groups_per_flex).min(16),
            resuid: sb.def_resuid.get().into(),
            overhead: 0,
        };
        let per_group = |group| u64::from(geo.super_and_descs(group)) + 2 + geo.itable_blocks();
        let overhead: u64 = (0..groups).map(per_group).sum();
        geo.overhead = (u64::from(first_data_block) + overhead).min(blocks_count);
        Ok(geo)
    }

    fn super_and_descs(&self, group: u32) -> u32 {
        if self.has_super(group) { 1 + self.groups.div_ceil(self.descs_per_block()) } else { 0 }
    }

    /// Whether metadata have CRC-32C checksums.
    pub fn metadata_csum(&self) -> bool {
        self.ro_compat.contains(RoCompat::METADATA_CSUM)
    }

    /// Whether group descriptors have any checksum, which makes their flags count.
    pub fn has_desc_sums(&self) -> bool {
        self.ro_compat.intersects(RoCompat::METADATA_CSUM | RoCompat::GDT_CSUM)
    }

    /// First block of a group.
    pub fn group_start(&self, group: u32) -> u64 {
        u64::from(self.first_data_block) + u64::from(group) * u64::from(self.blocks_per_group)
    }

    /// Number of blocks in a group; the last may be shorter.
    pub fn blocks_in_group(&self, group: u32) -> u32 {
        (self.blocks_count - self.group_start(group)).min(self.blocks_per_group.into()) as u32
    }

    /// The group of a block, and its bit there.
    pub fn group_of_block(&self, block: u64) -> (u32, u32) {
        let index = block - u64::from(self.first_data_block);
        let per = u64::from(self.blocks_per_group);
        ((index / per) as u32, (index % per) as u32)
    }

    /// Whether a run of blocks lies within the file system.
    pub fn is_inside(&self, start: u64, len: u64) -> bool {
        start >= u64::from(self.first_data_block)
            && start.checked_add(len).is_some_and(|end| end <= self.blocks_count)
            && start != 0
    }

    /// The parts of a run by group: group, first bit, number.
    pub fn split_by_group(&self, start: u64, len: u32) -> impl Iterator<Item = (u32, u32, u32)> {
        let mut at = start;
        let end = start + u64::from(len);
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let (group, bit) = self.group_of_block(at);
                let here = (end - at).min(u64::from(self.blocks_per_group - bit)) as u32;
                at += u64::from(here);
                (group, bit, here)
            })
        })
    }

    /// Blocks of a group's inode table.
    pub fn itable_blocks(&self) -> u64 {
        u64::from(self.inodes_per_group) * self.inode_size as u64 / self.block_size as u64
    }

    /// The largest size of a file in bytes.
    pub fn max_size(&self) -> u64 {
        // Block numbers in a file have 32 bits, and the last one is not used.
        (0xffff_ffffu64 << self.block_bits).min(i64::MAX as u64)
    }
}

/// An inode that somebody has open or has looked up, although the server that gave it out is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Its number.
    pub ino: u32,
    /// Its generation; none for the root.
    pub generation: Option<u32>,
    /// How often it was looked up.
    pub lookups: u64,
}

/// How to mount.
#[derive(Clone)]
pub struct Options {
    /// Write nothing.
    pub read_only: bool,
    /// Bytes of metadata to keep in memory.
    pub cache_bytes: usize,
    /// A server died and this is its successor: these are not cleaned up although no name leads to them. Some of them may
    /// not be there yet, but be made again.
    pub live: Vec<Live>,
    /// Who keeps account of requests.
    pub ledger: Option<Arc<dyn Ledger>>,
}

impl Default for Options {
    fn default() -> Options {
        Options { read_only: false, cache_bytes: 64 << 20, live: Vec::new(), ledger: None }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What `statfs(2)` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the system call")]
pub struct StatFs {
    pub block_size: u32,
    pub blocks: u64,
    pub free: u64,
    pub available: u64,
    pub inodes: u64,
    pub free_inodes: u64,
}

/// A mounted file system. Everything may be called from several threads at once.
pub struct Fs {
    pub(crate) dev: Arc<dyn BlockDevice>,
    pub(crate) geo: Geometry,
    pub(crate) sb: Mutex<Superblock>,
    pub(crate) groups: Vec<Group>,
    pub(crate) cache: Cache,
    pub(crate) journal: Journal,
    pub(crate) inodes: InodeTable,
    pub(crate) orphans: Mutex<Orphans>,
    pub(crate) dirty_groups: Mutex<BTreeSet<u32>>,
    /// Free blocks that nobody has set aside.
    pub(crate) available: AtomicI64,
    /// Free blocks and inodes by the bitmaps of the running transaction.
    pub(crate) disk_free_blocks: AtomicI64,
    pub(crate) disk_free_inodes: AtomicI64,
    /// One rename that moves directories at a time: nobody makes a loop.
    pub(crate) rename: Mutex<()>,
    pub(crate) generation: AtomicU64,
    read_only: AtomicBool,
    ledger: Option<Arc<dyn Ledger>>,
    /// The inodes of [`Options::live`], by number.
    pub(crate) live: HashMap<u32, Live>,
    /// What was on the disk at mount.
    recovered: Progress,
}

impl Fs {
    /// Mounts what lies on a device.
    ///
    /// A journal that was not closed is replayed first; on a device that cannot be written the replay stays in memory.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the reason, [`Error::Corrupt`], or the device's.
    pub fn mount(dev: Arc<dyn BlockDevice>, options: &Options) -> Result<Fs> {
        let mut sb = read_superblock(&*dev, None)?;
        let mut geo = Geometry::new(&sb, dev.size())?;
        let mut read_only = options.read_only || dev.read_only();
        let unknown = sb.ro_compat().difference(RoCompat::KNOWN);
        let has_journal = geo.compat.contains(Compat::HAS_JOURNAL);
        if !unknown.is_empty() || !geo.incompat.contains(Incompat::EXTENTS) {
            read_only = true;
        }
        if !has_journal && sb.incompat().contains(Incompat::RECOVER) {
            return Err(Error::Corrupt("a journal is to be replayed and there is none", 0));
        }

        let mut log = if has_journal { Some(open_log(&dev, &geo, &sb)?) } else { None };
        let mut recovered = match &log {
            Some(log) => recover(&*dev, log, geo.blocks_count)?,
            None => Recovered { copies: Default::default(), next: 1, progress: Progress::default() },
        };
        if !recovered.copies.is_empty() {
            if !dev.read_only() {
                recovered.write(&*dev, geo.block_size)?;
            }
            let overlay = recovered.copies.get(&(superblock::OFFSET / geo.block_size as u64));
            sb = read_superblock(&*dev, overlay.map(|data| &**data))?;
            geo = Geometry::new(&sb, dev.size())?;
        }
        // Only now: a power cut may have come between its two sectors, and the replay mends that.
        check_superblock(&sb)?;
        if !dev.read_only() {
            recovered.copies.clear();
        }
        if let Some(ledger) = &options.ledger {
            ledger.recovered(&recovered.progress);
        }
        if let Some(log) = log.as_mut()
            && !read_only
        {
            log.choose_features(geo.metadata_csum(), geo.incompat.contains(Incompat::BIT64));
        }
        geo.overhead = (geo.overhead + log.as_ref().map_or(0, |log| u64::from(log.blocks()))).min(geo.blocks_count);
        let journal = Journal::new(dev.clone(), geo.block_size, log, recovered.next, recovered.copies);
        journal.set_progress(&recovered.progress);
        let read = |block| match journal.committed(block) {
            Some(data) => Ok(data),
            None => Ok(read_block(&*dev, block, geo.block_size)?),
        };
        let groups = Fs::read_groups(&geo, read, true)?;
        let free_blocks: i64 = groups.iter().map(|group| i64::from(group.state.lock().desc.free_blocks())).sum();
        let free_inodes: i64 = groups.iter().map(|group| i64::from(group.state.lock().desc.free_inodes())).sum();
        let fs = Fs {
            cache: Cache::new(dev.clone(), geo.block_size, options.cache_bytes),
            inodes: InodeTable::new(),
            orphans: Mutex::new(Orphans::new()),
            dirty_groups: Mutex::default(),
            available: free_blocks.into(),
            disk_free_blocks: free_blocks.into(),
            disk_free_inodes: free_inodes.into(),
            rename: Mutex::new(()),
            generation: AtomicU64::new(Time::now().sec as u64 ^ u64::from(Time::now().nsec)),
            read_only: AtomicBool::new(read_only),
            ledger: options.ledger.clone(),
            live: options.live.iter().map(|live| (live.ino, *live)).collect(),
            recovered: recovered.progress,
            dev,
            geo,
            sb: Mutex::new(sb),
            groups,
            journal,
        };
        if !fs.is_read_only() {
            fs.open_for_writing()?;
            fs.load_orphans()?;
        }
        let root = fs.inode(ROOT_INO)?;
        if !root.lock.read().is_dir() {
            return Err(Error::Corrupt("the root is not a directory", ROOT_INO.into()));
        }
        Ok(fs)
    }

    fn open_for_writing(&self) -> Result<()> {
        // The log begins where it is empty: nothing of an older one may follow on.
        self.journal.open_log()?;
        let mut sb = self.sb.lock();
        if self.geo.compat.contains(Compat::HAS_JOURNAL) {
            let incompat = sb.incompat() | Incompat::RECOVER;
            sb.feature_incompat.set(incompat.bits());
        } else {
            // Whoever finds this knows that the end was not clean.
            let state = sb.state.get() & !STATE_VALID;
            sb.state.set(state);
        }
        let now = Time::now().sec as u32;
        sb.mtime.set(now);
        let count = sb.mnt_count.get().wrapping_add(1);
        sb.mnt_count.set(count);
        drop(sb);
        self.log_superblock()?;
        // Linux and e2fsprogs replay a journal only where the superblock itself says that there is something to replay.
        self.noticing(self.journal.checkpoint())
    }

    /// Commits the superblock. It has two sectors and is never written without a copy in the log: a power cut may come
    /// between them.
    fn log_superblock(&self) -> Result<()> {
        let handle = self.begin(4)?;
        let (buf, _) = self.superblock_buf()?;
        drop(handle.modify(&buf));
        let tid = handle.tid();
        drop(handle);
        // Every transaction takes the superblock as it is when it is sealed.
        self.commit(tid)
    }

    fn superblock_buf(&self) -> Result<(Arc<Buf>, usize)> {
        let size = self.geo.block_size as u64;
        let buf = self.cache.get(superblock::OFFSET / size, &self.journal, |_| Ok(BlockSum::None))?;
        Ok((buf, (superblock::OFFSET % size) as usize))
    }

    fn fill_superblock(&self, sb: &mut Superblock) {
        sb.wtime.set(Time::now().sec as u32);
        sb.set_free_blocks(self.disk_free_blocks.load(Ordering::Relaxed).max(0) as u64);
        sb.free_inodes_count.set(self.disk_free_inodes.load(Ordering::Relaxed).max(0) as u32);
        if self.geo.metadata_csum() {
            let sum = superblock_sum(sb);
            sb.checksum.set(sum);
        }
    }

    /// What is fixed about the file system.
    pub fn geometry(&self) -> &Geometry {
        &self.geo
    }

    /// The volume's label, without padding.
    pub fn label(&self) -> Vec<u8> {
        let name = self.sb.lock().volume_name;
        name.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
    }

    /// Whether nothing can be written: mounted so, or an error made it so.
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed) || self.journal.has_failed()
    }

    /// How far requests were on the disk when this was mounted.
    pub fn recovered(&self) -> &Progress {
        &self.recovered
    }

    /// Whether there is a journal, which a commit needs to say how far requests are.
    pub fn has_journal(&self) -> bool {
        self.geo.compat.contains(Compat::HAS_JOURNAL)
    }

    /// How many requests a commit can name beside those up to a number ([`Progress::also`]).
    pub fn requests_in_a_commit(&self) -> usize {
        done_room(self.geo.block_size)
    }

    /// The operation of this thread has had all of its effect; the caller has the handle of it.
    pub(crate) fn done(&self, _handle: &Handle<'_>, made: Option<&InodeData>) {
        if let Some(ledger) = &self.ledger {
            ledger.done(made.map(|data| (data.ino, data.generation())));
        }
    }

    /// Pins an inode that was just made, or those who have it already do.
    pub(crate) fn pin_made(&self, inode: &Inode) {
        if crate::again::current().is_none() {
            inode.pin();
        } else {
            let generation = inode.lock.read().generation();
            inode.pins.store(self.live_lookups(inode.ino, generation), Ordering::Relaxed);
        }
    }

    /// How often an inode was looked up from a server that is gone.
    pub(crate) fn live_lookups(&self, ino: u32, generation: u32) -> u64 {
        let live = self.live.get(&ino).filter(|live| live.generation.is_none_or(|wanted| wanted == generation));
        live.map_or(0, |live| live.lookups)
    }

    /// Takes a handle.
    ///
    /// # Errors
    /// `EROFS`; whatever a commit that has to come first reports.
    pub(crate) fn begin(&self, credits: usize) -> Result<Handle<'_>> {
        if self.is_read_only() {
            return Err(Errno::ROFS.into());
        }
        loop {
            match self.journal.start(credits) {
                Ok(handle) => return Ok(handle),
                Err(NoHandle::Failed) => return Err(Errno::ROFS.into()),
                Err(NoHandle::Full(tid)) => self.commit(tid)?,
            }
        }
    }

    /// Makes a transaction durable.
    pub(crate) fn commit(&self, tid: u64) -> Result<()> {
        self.noticing(self.journal.commit(tid, self))
    }

    /// Looks at a result: an error that is the disk's fault ends writing.
    pub(crate) fn noticing<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && !error.is_callers()
        {
            self.stop_writing(error);
        }
        result
    }

    fn stop_writing(&self, _error: &Error) {
        if self.is_read_only() {
            return;
        }
        self.journal.fail();
        // So that the next check finds out; it matters little if this does not arrive.
        let mut sb = self.sb.lock();
        let state = sb.state.get() | STATE_ERROR;
        sb.state.set(state);
        let mut on_disk = match read_superblock(&*self.dev, None) {
            Ok(on_disk) => on_disk,
            Err(_) => return,
        };
        let state = on_disk.state.get() | STATE_ERROR;
        on_disk.state.set(state);
        if self.geo.metadata_csum() {
            let sum = superblock_sum(&on_disk);
            on_disk.checksum.set(sum);
        }
        let _ = self.dev.write_at(superblock::OFFSET, on_disk.as_bytes());
    }

    /// Makes everything that was done before durable (`syncfs(2)`).
    ///
    /// # Errors
    /// What the device reports; `EROFS` after an earlier error.
    pub fn sync(&self) -> Result<()> {
        if self.is_read_only() {
            return if self.journal.has_failed() { Err(Errno::ROFS.into()) } else { Ok(()) };
        }
        self.commit(self.journal.running())?;
        // An empty transaction flushes nothing, and data may have been written over in place.
        self.dev.flush().map_err(|error| {
            self.journal.fail();
            error.into()
        })
    }

    /// Commits what has collected and empties the log before it is full; called every few seconds.
    ///
    /// # Errors
    /// As [`sync`](Fs::sync).
    pub fn tick(&self) -> Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        self.commit(self.journal.running())?;
        if self.journal.wants_checkpoint() {
            self.noticing(self.journal.checkpoint())?;
        }
        Ok(())
    }

    /// Ends cleanly: everything is at home, nothing to replay. The file system is read-only afterwards.
    ///
    /// # Errors
    /// What the device reports.
    pub fn unmount(&self) -> Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        // What nobody has open any more and no name leads to.
        self.drop_orphans()?;
        let mut sb = self.sb.lock();
        let mut incompat = sb.incompat();
        incompat.remove(Incompat::RECOVER);
        sb.feature_incompat.set(incompat.bits());
        if !self.orphans.lock().in_file() {
            let mut ro_compat = sb.ro_compat();
            ro_compat.remove(RoCompat::ORPHAN_PRESENT);
            sb.feature_ro_compat.set(ro_compat.bits());
        }
        let state = sb.state.get() | STATE_VALID;
        sb.state.set(state);
        drop(sb);
        self.log_superblock()?;
        self.noticing(self.journal.close())?;
        self.read_only.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// `statfs(2)`.
    pub fn statfs(&self) -> StatFs {
        let free = self.available.load(Ordering::Relaxed).max(0) as u64;
        StatFs {
            block_size: self.geo.block_size as u32,
            blocks: self.geo.blocks_count - self.geo.overhead,
            free,
            available: free.saturating_sub(self.geo.reserved_blocks),
            inodes: self.geo.inodes_count.into(),
            free_inodes: self.disk_free_inodes.load(Ordering::Relaxed).max(0) as u64,
        }
    }

    /// The root directory.
    ///
    /// # Errors
    /// As [`inode`](Fs::inode).
    pub fn root(&self) -> Result<Arc<Inode>> {
        self.inode(ROOT_INO)
    }

    /// Whether a caller may use the blocks that are kept back.
    pub(crate) fn is_privileged(&self, caller: Caller) -> bool {
        caller.uid == 0 || caller.uid == self.geo.resuid
    }
}

impl Hooks for Fs {
    fn seal(&self, handle: &Handle<'_>) -> Result<()> {
        self.seal_groups(handle)?;
        let mut sb = self.sb.lock();
        self.fill_superblock(&mut sb);
        let (buf, at) = self.superblock_buf()?;
        handle.modify(&buf)[at..at + superblock::SIZE].copy_from_slice(sb.as_bytes());
        Ok(())
    }

    fn progress(&self) -> Progress {
        self.ledger.as_ref().map(|ledger| ledger.progress()).unwrap_or_default()
    }

    fn committed(&self, freed: &[(u64, u32)], progress: &Progress) {
        self.release_freed(freed);
        if let Some(ledger) = &self.ledger {
            ledger.committed(progress);
        }
    }
}

fn superblock_sum(sb: &Superblock) -> u32 {
    crc32c(!0, &sb.as_bytes()[..superblock::SIZE - 4])
}

fn read_superblock(dev: &dyn BlockDevice, overlay: Option<&[u8]>) -> Result<Superblock> {
    let mut bytes = [0; superblock::SIZE];
    match overlay {
        Some(block) => {
            let at = superblock::OFFSET as usize % block.len();
            bytes.copy_from_slice(&block[at..at + superblock::SIZE]);
        }
        None => dev.read_at(superblock::OFFSET, &mut bytes)?,
    }
    Superblock::read_from_bytes(&bytes).map_err(|_| Error::Corrupt("superblock", 0))
}

fn check_superblock(sb: &Superblock) -> Result<()> {
    if sb.ro_compat().contains(RoCompat::METADATA_CSUM) && sb.checksum.get() != superblock_sum(sb) {
        return Err(Error::Corrupt("superblock's checksum", 0));
    }
    Ok(())
}

/// Finds the journal's blocks and opens it.
fn open_log(dev: &Arc<dyn BlockDevice>, geo: &Geometry, sb: &Superblock) -> Result<Log> {
    let ino = sb.journal_inum.get();
    if ino == 0 || sb.journal_dev.get() != 0 {
        return Err(Error::Unsupported("a journal on another device".into()));
    }
    // The journal's own inode is read as it lies on the disk: it never is in the journal.
    let groups = Fs::read_groups(geo, |block| Ok(read_block(&**dev, block, geo.block_size)?), false)?;
    let runs = crate::inode::journal_runs(&**dev, geo, &groups, ino)?;
    Log::open(&**dev, geo.block_size, runs)
}
