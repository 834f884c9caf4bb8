//! The journal's place on the disk: a file whose blocks are used in a circle.

use std::io::{self, IoSlice};
use std::sync::Arc;

use zerocopy::{FromBytes, IntoBytes};

use crate::csum::crc32c;
use crate::device::BlockDevice;
use crate::disk::journal::{
    CHECKSUM_CRC32C, COMPAT_CHECKSUM, Incompat, MAGIC, SEQUENCE_MAGIC, SUPERBLOCK_CHECKSUM_OFFSET, SUPERBLOCK_V1,
    SUPERBLOCK_V2, Superblock,
};
use crate::error::{Error, Result};

/// The journal's blocks and superblock.
pub struct Log {
    /// Where its blocks lie: first block in the file, first on the disk, number. Without gaps, in order.
    pub(super) runs: Vec<(u32, u64, u32)>,
    pub(super) block_size: usize,
    pub(super) sb: Superblock,
    pub(super) first: u32,
    /// One past the last block of the circle.
    pub(super) end: u32,
    /// The next block to write.
    pub(super) head: u32,
    /// Blocks that hold nothing that is needed.
    pub(super) free: u32,
    /// The last transaction in it.
    pub(super) last: Option<Last>,
    /// All requests up to this one are in the log or at home.
    pub(super) upto: u64,
}

/// Where a transaction lies in the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Last {
    pub tid: u64,
    pub start: u32,
    pub len: u32,
}

impl Log {
    /// Reads the superblock of a journal that lies in these runs.
    ///
    /// # Errors
    /// It is damaged, or has features that are not known.
    pub fn open(dev: &dyn BlockDevice, block_size: usize, runs: Vec<(u32, u64, u32)>) -> Result<Log> {
        let bad = |what| Error::Corrupt(what, 0);
        let total: u32 = runs.iter().map(|run| run.2).sum();
        let (_, start, _) = *runs.first().ok_or(bad("journal without blocks"))?;
        let mut bytes = vec![0; block_size];
        dev.read_at(start * block_size as u64, &mut bytes)?;
        let (sb, _) = Superblock::read_from_prefix(&bytes).map_err(|_| bad("journal's superblock"))?;
        let kind = sb.header.blocktype.get();
        if sb.header.magic.get() != MAGIC || !(kind == SUPERBLOCK_V1 || kind == SUPERBLOCK_V2) {
            return Err(bad("journal's magic number"));
        }
        if sb.blocksize.get() as usize != block_size {
            return Err(bad("journal's block size"));
        }
        let mut log = Log { runs, block_size, sb, first: 0, end: 0, head: 0, free: 0, last: None, upto: 0 };
        if kind == SUPERBLOCK_V1 {
            // The first version has no features; what follows its fields means nothing.
            log.sb.as_mut_bytes()[0x24..].fill(0);
        }
        let features = log.features();
        if features.bits() & !Incompat::all().bits() != 0 || sb.feature_ro_compat.get() != 0 {
            return Err(Error::Unsupported(format!("journal features {features:?}")));
        }
        if log.has_checksums() && sb.checksum.get() != log.superblock_sum() {
            return Err(bad("journal superblock's checksum"));
        }
        let fast = if features.contains(Incompat::FAST_COMMIT) { sb.num_fc_blocks.get().max(256) } else { 0 };
        log.first = sb.first.get();
        log.end = sb.maxlen.get().min(total).saturating_sub(fast);
        if log.first == 0 || log.first >= log.end || log.end - log.first < 64 || sb.maxlen.get() > total {
            return Err(bad("journal's size"));
        }
        if sb.start.get() != 0 && !(log.first..log.end).contains(&sb.start.get()) {
            return Err(bad("journal's start"));
        }
        (log.head, log.free, log.upto) = (log.first, log.capacity(), log.recorded_sequence());
        Ok(log)
    }

    /// Number of blocks in the circle.
    pub fn capacity(&self) -> u32 {
        self.end - self.first
    }

    /// Number of blocks that the journal takes on the disk.
    pub fn blocks(&self) -> u32 {
        self.runs.iter().map(|run| run.2).sum()
    }

    pub(crate) fn features(&self) -> Incompat {
        Incompat::from_bits_retain(self.sb.feature_incompat.get())
    }

    /// Whether there is something to replay.
    pub fn needs_recovery(&self) -> bool {
        self.sb.start.get() != 0
    }

    pub(super) fn has_checksums(&self) -> bool {
        self.features().intersects(Incompat::CSUM_V2 | Incompat::CSUM_V3)
    }

    pub(super) fn seed(&self) -> u32 {
        crc32c(!0, &self.sb.uuid)
    }

    /// Bytes of a tag.
    pub(super) fn tag_len(&self) -> usize {
        let features = self.features();
        if features.contains(Incompat::CSUM_V3) {
            return 16;
        }
        let long = if features.contains(Incompat::CSUM_V2) { 14 } else { 12 };
        if features.contains(Incompat::BIT64) { long } else { long - 4 }
    }

    fn superblock_sum(&self) -> u32 {
        let mut sb = self.sb;
        sb.as_mut_bytes()[SUPERBLOCK_CHECKSUM_OFFSET..SUPERBLOCK_CHECKSUM_OFFSET + 4].fill(0);
        crc32c(!0, sb.as_bytes())
    }

    /// The block on the disk of a block of the journal.
    pub(super) fn place(&self, block: u32) -> Option<u64> {
        let (lblk, phys, len) = *self.runs.iter().rev().find(|run| run.0 <= block)?;
        (block - lblk < len).then(|| phys + u64::from(block - lblk))
    }

    /// The block after this one in the circle.
    pub(super) fn next(&self, block: u32) -> u32 {
        if block + 1 >= self.end { self.first } else { block + 1 }
    }

    /// Turns on what this library writes, as Linux does when it mounts for writing.
    pub fn choose_features(&mut self, checksums: bool, wide: bool) {
        let mut features = self.features() | Incompat::REVOKE;
        features.remove(Incompat::CSUM_V2 | Incompat::CSUM_V3 | Incompat::ASYNC_COMMIT | Incompat::FAST_COMMIT);
        features.set(Incompat::CSUM_V3, checksums);
        features.set(Incompat::BIT64, wide);
        self.sb.header.blocktype.set(SUPERBLOCK_V2);
        self.sb.feature_incompat.set(features.bits());
        let compat = self.sb.feature_compat.get() & !COMPAT_CHECKSUM;
        self.sb.feature_compat.set(compat);
        self.sb.checksum_type = if checksums { CHECKSUM_CRC32C } else { 0 };
        if self.sb.nr_users.get() == 0 {
            self.sb.nr_users.set(1);
        }
    }

    /// Writes the superblock: replays start at `start` (0: nothing to replay) with transaction `tid`.
    /// Durable when this returns.
    ///
    /// # Errors
    /// The device's.
    pub fn write_superblock(&mut self, dev: &dyn BlockDevice, start: u32, tid: u64) -> io::Result<()> {
        self.sb.start.set(start);
        self.sb.sequence.set(tid as u32);
        self.sb.head.set(self.head);
        self.sb.ursa_magic.set(SEQUENCE_MAGIC);
        self.sb.ursa_sequence.set(self.upto);
        let sum = if self.has_checksums() { self.superblock_sum() } else { 0 };
        self.sb.checksum.set(sum);
        let place = self.runs[0].1 * self.block_size as u64;
        dev.write_at(place, self.sb.as_bytes())?;
        dev.flush()
    }

    /// The highest request that the superblock knows to be on the disk.
    pub fn recorded_sequence(&self) -> u64 {
        if self.sb.ursa_magic.get() == SEQUENCE_MAGIC { self.sb.ursa_sequence.get() } else { 0 }
    }

    /// Writes blocks from the head on and moves it.
    ///
    /// # Errors
    /// The device's.
    pub(super) fn append(&mut self, dev: &dyn BlockDevice, blocks: &[Arc<[u8]>]) -> Result<()> {
        let mut blocks = blocks;
        while !blocks.is_empty() {
            let place = self.place(self.head).ok_or(Error::Corrupt("journal's block", self.head.into()))?;
            // As far as the journal lies in one piece.
            let mut count = 0;
            let mut at = self.head;
            while count < blocks.len() && self.place(at) == Some(place + count as u64) {
                count += 1;
                at = self.next(at);
                if at == self.first {
                    break;
                }
            }
            let pieces: Vec<IoSlice<'_>> = blocks[..count].iter().map(|block| IoSlice::new(block)).collect();
            dev.write_vectored_at(place * self.block_size as u64, &pieces)?;
            self.head = at;
            self.free -= count as u32;
            blocks = &blocks[count..];
        }
        Ok(())
    }
}
