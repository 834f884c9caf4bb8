//! Recovery: what committed transactions left in the log goes home.
//!
//! Three passes, as in Linux's `fs/jbd2/recovery.c`: find the end of the log, collect revocations, take the copies. Journals
//! that Linux wrote are read with any of its checksums; the copies are collected in memory, so that a device that cannot be
//! written can be mounted too.

use std::collections::HashMap;
use std::sync::Arc;

use zerocopy::FromBytes;

use super::commit::{read_progress, write_home};
use super::{Copies, Log, Progress};
use crate::csum::crc32c;
use crate::device::BlockDevice;
use crate::disk::journal::{
    COMMIT, COMMIT_CHECKSUM_OFFSET, DESCRIPTOR, Header, Incompat, MAGIC, REVOKE, REVOKE_HEADER, TAG_ESCAPE, TAG_LAST,
    TAG_SAME_UUID, Tag, Tag3,
};
use crate::error::{Error, Result};

/// What a log holds.
pub(crate) struct Recovered {
    /// The newest copy of each block.
    pub copies: Copies,
    /// The number for the next transaction.
    pub next: u64,
    /// What the last commit says about requests.
    pub progress: Progress,
}

/// Reads the log. Nothing is written.
///
/// # Errors
/// The device's, or [`Error::Corrupt`] where a copy that was committed is damaged.
pub(crate) fn recover(dev: &dyn BlockDevice, log: &Log, blocks_count: u64) -> Result<Recovered> {
    let first = u64::from(log.sb.sequence.get());
    let mut progress = Progress { upto: log.recorded_sequence(), also: Vec::new() };
    if !log.needs_recovery() {
        return Ok(Recovered { copies: Copies::new(), next: first.max(1), progress });
    }
    if log.features().contains(Incompat::FAST_COMMIT) {
        return Err(Error::Unsupported("a journal with fast commits that was not closed: run e2fsck first".into()));
    }
    let mut scan = Scan { dev, log, blocks_count };
    let (end, last) = scan.find_end()?;
    if let Some(last) = last {
        progress = last;
    }
    let mut revoked = HashMap::new();
    scan.pass(end, |tid, item| {
        if let Item::Revoke(block) = item {
            revoked.insert(block, tid);
        }
        Ok(())
    })?;
    let mut copies = Copies::new();
    scan.pass(end, |tid, item| {
        if let Item::Copy { block, data } = item
            && revoked.get(&block).is_none_or(|revoked| before(*revoked, tid))
        {
            copies.insert(block, data);
        }
        Ok(())
    })?;
    // One number is left out, so that what a half-written transaction left in the log is never taken for a new one.
    Ok(Recovered { copies, next: u64::from(end.wrapping_add(1)).max(1), progress })
}

impl Recovered {
    /// Writes the copies home.
    ///
    /// # Errors
    /// The device's.
    pub fn write(&self, dev: &dyn BlockDevice, block_size: usize) -> Result<()> {
        let mut blocks: Vec<_> = self.copies.iter().map(|(&block, data)| (block, data.clone())).collect();
        blocks.sort_unstable_by_key(|(block, _)| *block);
        write_home(dev, block_size, &blocks)?;
        dev.flush()?;
        Ok(())
    }
}

/// Whether transaction `a` came before `b`; numbers wrap around.
fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

enum Item {
    Copy { block: u64, data: Arc<[u8]> },
    Revoke(u64),
}

struct Scan<'a> {
    dev: &'a dyn BlockDevice,
    log: &'a Log,
    blocks_count: u64,
}

struct ParsedTag {
    block: u64,
    flags: u32,
    sum: u32,
}

impl Scan<'_> {
    fn read(&self, block: u32) -> Result<Arc<[u8]>> {
        let place = self.log.place(block).ok_or(Error::Corrupt("journal's block", block.into()))?;
        Ok(crate::cache::read_block(self.dev, place, self.log.block_size)?)
    }

    /// The number after the last transaction that is whole, and what its commit says about requests.
    fn find_end(&mut self) -> Result<(u32, Option<Progress>)> {
        let mut tid = self.log.sb.sequence.get();
        let mut at = self.log.sb.start.get();
        let mut left = self.log.capacity();
        let mut progress = None;
        // The checksums of the copies of the transaction that is being read.
        let mut whole = true;
        loop {
            let block = self.read(at)?;
            let Some(kind) = self.header(&block, tid) else { break };
            let mut skip = 1;
            match kind {
                DESCRIPTOR => {
                    if !self.tail_is_right(&block) {
                        whole = false;
                    }
                    let tags = self.tags(&block);
                    skip += tags.len() as u32;
                    if skip > left {
                        break;
                    }
                    if self.log.has_checksums() {
                        let mut copy = at;
                        for tag in &tags {
                            copy = self.log.next(copy);
                            whole &= self.copy_is_right(tag, tid, &self.read(copy)?);
                        }
                    }
                }
                REVOKE => whole &= self.tail_is_right(&block),
                COMMIT => {
                    if !whole || !self.commit_is_right(&block) {
                        break;
                    }
                    progress = read_progress(&block).or(progress);
                    tid = tid.wrapping_add(1);
                    whole = true;
                }
                _ => break,
            }
            if skip >= left {
                break;
            }
            left -= skip;
            for _ in 0..skip {
                at = self.log.next(at);
            }
        }
        Ok((tid, progress))
    }

    /// Walks all transactions before `end`.
    fn pass(&mut self, end: u32, mut each: impl FnMut(u32, Item) -> Result<()>) -> Result<()> {
        let mut tid = self.log.sb.sequence.get();
        let mut at = self.log.sb.start.get();
        let mut left = self.log.capacity();
        while tid != end && left > 0 {
            let block = self.read(at)?;
            let kind =
                self.header(&block, tid).ok_or(Error::Corrupt("journal changed while it was read", at.into()))?;
            let mut used = 1;
            match kind {
                DESCRIPTOR => {
                    for tag in self.tags(&block) {
                        at = self.log.next(at);
                        used += 1;
                        if tag.block >= self.blocks_count {
                            return Err(Error::Corrupt("journal speaks of a block beyond the end", tag.block));
                        }
                        let mut data = self.read(at)?;
                        if tag.flags & TAG_ESCAPE != 0 {
                            Arc::make_mut(&mut data)[..4].copy_from_slice(&MAGIC.to_be_bytes());
                        }
                        each(tid, Item::Copy { block: tag.block, data })?;
                    }
                }
                REVOKE => {
                    for block in self.revocations(&block) {
                        each(tid, Item::Revoke(block))?;
                    }
                }
                COMMIT => tid = tid.wrapping_add(1),
                _ => return Err(Error::Corrupt("journal block's kind", at.into())),
            }
            left = left.saturating_sub(used);
            at = self.log.next(at);
        }
        Ok(())
    }

    /// The kind of a block, if it is a block of this transaction's.
    fn header(&self, block: &[u8], tid: u32) -> Option<u32> {
        let (header, _) = Header::ref_from_prefix(block).ok()?;
        (header.magic.get() == MAGIC && header.sequence.get() == tid).then(|| header.blocktype.get())
    }

    fn tail_is_right(&self, block: &[u8]) -> bool {
        if !self.log.has_checksums() {
            return true;
        }
        let end = block.len() - 4;
        let sum = crc32c(crc32c(self.log.seed(), &block[..end]), &[0; 4]);
        block[end..] == sum.to_be_bytes()
    }

    fn commit_is_right(&self, block: &[u8]) -> bool {
        if !self.log.has_checksums() {
            return true;
        }
        let (front, rest) = block.split_at(COMMIT_CHECKSUM_OFFSET);
        let sum = crc32c(crc32c(crc32c(self.log.seed(), front), &[0; 4]), &rest[4..]);
        rest[..4] == sum.to_be_bytes()
    }

    fn copy_is_right(&self, tag: &ParsedTag, tid: u32, data: &[u8]) -> bool {
        let sum = crc32c(crc32c(self.log.seed(), &tid.to_be_bytes()), data);
        if self.log.features().contains(Incompat::CSUM_V3) { sum == tag.sum } else { sum as u16 == tag.sum as u16 }
    }

    fn tags(&self, block: &[u8]) -> Vec<ParsedTag> {
        let tag_len = self.log.tag_len();
        let end = block.len() - if self.log.has_checksums() { 4 } else { 0 };
        let wide = self.log.features().contains(Incompat::BIT64);
        let mut at = size_of::<Header>();
        let mut tags = Vec::new();
        while at + tag_len <= end {
            let parsed = if self.log.features().contains(Incompat::CSUM_V3) {
                Tag3::read_from_prefix(&block[at..])
                    .ok()
                    .map(|(tag, _)| (tag.blocknr.get(), tag.blocknr_high.get(), tag.flags.get(), tag.checksum.get()))
            } else {
                // Without the high half the last tag may end before the structure does.
                let mut bytes = [0; size_of::<Tag>()];
                let len = tag_len.min(bytes.len());
                bytes[..len].copy_from_slice(&block[at..at + len]);
                Tag::read_from_prefix(&bytes).ok().map(|(tag, _)| {
                    (tag.blocknr.get(), tag.blocknr_high.get(), tag.flags.get().into(), tag.checksum.get().into())
                })
            };
            let Some((low, high, flags, sum)) = parsed else { break };
            let high = if wide { high } else { 0 };
            tags.push(ParsedTag { block: u64::from(high) << 32 | u64::from(low), flags, sum });
            at += tag_len;
            if flags & TAG_SAME_UUID == 0 {
                at += 16;
            }
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        tags
    }

    fn revocations(&self, block: &[u8]) -> Vec<u64> {
        let record = if self.log.features().contains(Incompat::BIT64) { 8 } else { 4 };
        let used = u32::from_be_bytes([block[12], block[13], block[14], block[15]]) as usize;
        let used = used.clamp(REVOKE_HEADER, block.len());
        let records = block[REVOKE_HEADER..used].chunks_exact(record);
        records.map(|record| record.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))).collect()
    }
}
