//! Writing transactions: to the log, and home.

use std::io::IoSlice;
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::log::Last;
use super::{Done, Handle, Hooks, Journal, Log, Progress, Transaction};
use crate::csum::crc32c;
use crate::device::BlockDevice;
use crate::disk::inode::Time;
use crate::disk::journal::{
    CHECKSUM_CRC32C, COMMIT, COMMIT_CHECKSUM_OFFSET, Commit, DESCRIPTOR, Header, Incompat, MAGIC, REVOKE,
    REVOKE_HEADER, SEQUENCE_MAGIC, TAG_ESCAPE, TAG_LAST, TAG_SAME_UUID, Tag, Tag3,
};
use crate::error::{Error, Result};

/// Bytes of one [`Done`] in a commit block; their number is the word before the first.
const DONE: usize = 16;

/// A closed transaction and its blocks in order.
type Frozen = (Transaction, Vec<(u64, Arc<[u8]>)>);

impl Journal {
    /// Makes transaction `target` and all before it durable.
    ///
    /// # Errors
    /// `EROFS` when the journal has failed before; otherwise why it failed now.
    pub fn commit(&self, target: u64, hooks: &dyn Hooks) -> Result<()> {
        let mut log = self.log.lock();
        if self.last_committed() >= target {
            return Ok(());
        }
        if self.has_failed() {
            return Err(Errno::ROFS.into());
        }
        let (frozen, progress) = self.freeze(hooks).inspect_err(|_| self.fail())?;
        let Some((transaction, frozen)) = frozen else {
            // Nothing to commit, but data may have been written over in place.
            self.dev.flush().inspect_err(|_| self.fail())?;
            hooks.committed(&[], &progress);
            return Ok(());
        };
        self.write(&mut log, &transaction, &frozen, &progress).inspect_err(|_| self.fail())?;
        self.state.lock().committed = transaction.tid;
        hooks.committed(&transaction.freed, &progress);
        self.state.lock().freeing = false;
        if let Some(log) = log.as_mut()
            && log.free < log.capacity() / 4
        {
            self.checkpoint_log(log).inspect_err(|_| self.fail())?;
        }
        Ok(())
    }

    /// Closes the running transaction and takes its blocks as they are now, with what requests are in it and those before;
    /// `None` when there is nothing in it. It keeps its number then: a replay stops at a number that is missing.
    fn freeze(&self, hooks: &dyn Hooks) -> Result<(Option<Frozen>, Progress)> {
        let mut state = self.state.lock();
        state.locked = true;
        while state.active > 0 {
            self.changed.wait(&mut state);
        }
        if state.running.is_empty() {
            let progress = hooks.progress();
            state.locked = false;
            self.changed.notify_all();
            return Ok((None, progress));
        }
        let tid = state.running.tid;
        // The handle that seals counts as active, so that its end finds what it expects.
        state.active = 1;
        drop(state);
        let handle = Handle { journal: self, tid, credits: 0 };
        let sealed = hooks.seal(&handle);
        let progress = hooks.progress();
        drop(handle);

        let mut state = self.state.lock();
        let transaction = std::mem::replace(&mut state.running, Transaction::new(tid + 1));
        state.freeing = !transaction.freed.is_empty();
        drop(state);
        // Handles stay away until every block is frozen.
        let mut frozen: Vec<_> = transaction
            .blocks
            .iter()
            .map(|(&block, buf)| {
                let mut inner = buf.lock();
                let sum = inner.sum;
                sum.store(Arc::make_mut(&mut inner.data));
                (block, inner.data.clone())
            })
            .collect();
        let mut state = self.state.lock();
        state.locked = false;
        self.changed.notify_all();
        drop(state);
        frozen.sort_unstable_by_key(|(block, _)| *block);
        sealed?;
        Ok((Some((transaction, frozen)), progress))
    }

    fn write(
        &self,
        log: &mut Option<Log>,
        transaction: &Transaction,
        frozen: &[(u64, Arc<[u8]>)],
        progress: &Progress,
    ) -> Result<()> {
        let Some(log) = log.as_mut() else {
            write_home(&*self.dev, self.block_size, frozen)?;
            self.dev.flush()?;
            return Ok(());
        };
        let mut blocks = revoke_blocks(log, transaction);
        blocks.extend(descriptors_and_copies(log, transaction.tid, frozen));
        let need = blocks.len() as u32 + 1;
        if need > log.free {
            self.checkpoint_log(log)?;
        }
        if need > log.free {
            return Err(Error::Errno(Errno::NOSPC));
        }
        let start = log.head;
        log.append(&*self.dev, &blocks)?;
        // Data, copies and descriptors before the block that makes them count.
        self.dev.flush()?;
        let commit = commit_block(log, transaction.tid, progress);
        log.append(&*self.dev, &[commit])?;
        self.dev.flush()?;
        log.last = Some(Last { tid: transaction.tid, start, len: need });
        log.upto = progress.upto;
        let mut copies = self.copies.write();
        for block in &transaction.revoked {
            copies.remove(block);
        }
        copies.extend(frozen.iter().cloned());
        Ok(())
    }

    /// Brings every committed block home and empties the log.
    ///
    /// # Errors
    /// The device's; the journal has then failed.
    pub fn checkpoint(&self) -> Result<()> {
        let mut log = self.log.lock();
        if self.has_failed() {
            return Err(Errno::ROFS.into());
        }
        match log.as_mut() {
            Some(log) => self.checkpoint_log(log).inspect_err(|_| self.fail()),
            None => Ok(()),
        }
    }

    /// The last transaction stays in the log: its commit block says how far requests are.
    fn checkpoint_log(&self, log: &mut Log) -> Result<()> {
        let mut copies: Vec<_> = self.copies.read().iter().map(|(&block, data)| (block, data.clone())).collect();
        let kept = log.last.map_or(0, |last| last.len);
        if copies.is_empty() && log.free + kept == log.capacity() {
            return Ok(());
        }
        copies.sort_unstable_by_key(|(block, _)| *block);
        write_home(&*self.dev, self.block_size, &copies)?;
        self.dev.flush()?;
        let (start, tid) = match log.last {
            Some(last) => (last.start, last.tid),
            None => (log.head, self.last_committed() + 1),
        };
        log.write_superblock(&*self.dev, start, tid)?;
        log.free = log.capacity() - kept;
        // Commits wait for the log, so nothing newer can have come.
        self.copies.write().clear();
        Ok(())
    }

    /// Says in the log's superblock that the log is in use: from here on a crash needs a replay.
    ///
    /// # Errors
    /// The device's.
    pub fn open_log(&self) -> Result<()> {
        if let Some(log) = self.log.lock().as_mut() {
            let (head, next) = (log.head, self.last_committed() + 1);
            log.write_superblock(&*self.dev, head, next)?;
        }
        Ok(())
    }

    /// Ends the journal cleanly: everything is home, there is nothing to replay.
    ///
    /// # Errors
    /// The device's, or `EROFS` when it has failed.
    pub fn close(&self) -> Result<()> {
        self.checkpoint()?;
        if let Some(log) = self.log.lock().as_mut() {
            let next = self.last_committed() + 1;
            log.write_superblock(&*self.dev, 0, next)?;
        }
        Ok(())
    }

    /// What recovery found out about requests.
    pub(crate) fn set_progress(&self, progress: &Progress) {
        if let Some(log) = self.log.lock().as_mut() {
            log.upto = progress.upto;
        }
    }

    /// Whether the log is so full that a checkpoint now saves an operation from waiting for one.
    pub fn wants_checkpoint(&self) -> bool {
        self.log.try_lock().is_some_and(|log| log.as_ref().is_some_and(|log| log.free < log.capacity() / 2))
    }
}

/// Writes blocks, which are in order, to their places; neighbours go together.
pub(super) fn write_home(dev: &dyn BlockDevice, block_size: usize, blocks: &[(u64, Arc<[u8]>)]) -> Result<()> {
    let mut rest = blocks;
    while let Some(&(start, _)) = rest.first() {
        let run = rest.iter().enumerate().take_while(|(i, (block, _))| *block == start + *i as u64).count();
        let pieces: Vec<IoSlice<'_>> = rest[..run].iter().map(|(_, data)| IoSlice::new(data)).collect();
        dev.write_vectored_at(start * block_size as u64, &pieces)?;
        rest = &rest[run..];
    }
    Ok(())
}

fn new_block(log: &Log, kind: u32, tid: u64) -> Vec<u8> {
    let mut block = vec![0; log.block_size];
    let header = Header { magic: MAGIC.into(), blocktype: kind.into(), sequence: (tid as u32).into() };
    block[..size_of::<Header>()].copy_from_slice(header.as_bytes());
    block
}

/// Stores the checksum that ends descriptor and revoke blocks.
fn seal_tail(log: &Log, block: &mut [u8]) {
    if log.has_checksums() {
        let sum = crc32c(log.seed(), block);
        let at = block.len() - 4;
        block[at..].copy_from_slice(&sum.to_be_bytes());
    }
}

fn revoke_blocks(log: &Log, transaction: &Transaction) -> Vec<Arc<[u8]>> {
    let wide = log.features().contains(Incompat::BIT64);
    let record = if wide { 8 } else { 4 };
    let tail = if log.has_checksums() { 4 } else { 0 };
    let room = (log.block_size - REVOKE_HEADER - tail) / record;
    let revoked: Vec<u64> = transaction.revoked.iter().copied().collect();
    let blocks = revoked.chunks(room).map(|revoked| {
        let mut block = new_block(log, REVOKE, transaction.tid);
        let used = REVOKE_HEADER + revoked.len() * record;
        block[12..16].copy_from_slice(&(used as u32).to_be_bytes());
        for (place, number) in block[REVOKE_HEADER..used].chunks_mut(record).zip(revoked) {
            place.copy_from_slice(&number.to_be_bytes()[8 - record..]);
        }
        seal_tail(log, &mut block);
        block.into()
    });
    blocks.collect()
}

fn descriptors_and_copies(log: &Log, tid: u64, frozen: &[(u64, Arc<[u8]>)]) -> Vec<Arc<[u8]>> {
    let tag_len = log.tag_len();
    let tail = if log.has_checksums() { 4 } else { 0 };
    // The first tag is followed by the journal's UUID.
    let room = (log.block_size - size_of::<Header>() - 16 - tail) / tag_len;
    let seed = crc32c(log.seed(), &(tid as u32).to_be_bytes());
    let mut out = Vec::with_capacity(frozen.len() + frozen.len() / room + 1);
    for frozen in frozen.chunks(room) {
        let mut block = new_block(log, DESCRIPTOR, tid);
        let mut at = size_of::<Header>();
        let mut copies = Vec::with_capacity(frozen.len());
        for (i, (number, data)) in frozen.iter().enumerate() {
            let mut flags = if i > 0 { TAG_SAME_UUID } else { 0 };
            if i + 1 == frozen.len() {
                flags |= TAG_LAST;
            }
            let copy = if data[..4] == MAGIC.to_be_bytes() {
                flags |= TAG_ESCAPE;
                let mut escaped = data.to_vec();
                escaped[..4].fill(0);
                escaped.into()
            } else {
                data.clone()
            };
            let (low, high) = ((*number as u32).into(), ((*number >> 32) as u32).into());
            let sum = if log.has_checksums() { crc32c(seed, &copy) } else { 0 };
            if log.features().contains(Incompat::CSUM_V3) {
                let tag = Tag3 { blocknr: low, flags: flags.into(), blocknr_high: high, checksum: sum.into() };
                block[at..at + tag_len].copy_from_slice(tag.as_bytes());
            } else {
                let (checksum, flags) = ((sum as u16).into(), (flags as u16).into());
                let tag = Tag { blocknr: low, checksum, flags, blocknr_high: high };
                let len = tag_len.min(size_of::<Tag>());
                block[at..at + len].copy_from_slice(&tag.as_bytes()[..len]);
            }
            at += tag_len;
            if i == 0 {
                block[at..at + 16].copy_from_slice(&log.sb.uuid);
                at += 16;
            }
            copies.push(copy);
        }
        seal_tail(log, &mut block);
        out.push(block.into());
        out.append(&mut copies);
    }
    out
}

fn commit_block(log: &Log, tid: u64, progress: &Progress) -> Arc<[u8]> {
    let mut block = new_block(log, COMMIT, tid);
    let now = Time::now();
    if let Ok((commit, rest)) = Commit::mut_from_prefix(&mut block) {
        commit.commit_sec.set(now.sec as u64);
        commit.commit_nsec.set(now.nsec);
        commit.ursa_magic.set(SEQUENCE_MAGIC);
        commit.ursa_sequence.set(progress.upto);
        if log.has_checksums() && log.features().contains(Incompat::CSUM_V2) {
            (commit.chksum_type, commit.chksum_size) = (CHECKSUM_CRC32C, 4);
        }
        let also = &progress.also[..progress.also.len().min(done_room(log.block_size))];
        rest[..8].copy_from_slice(&(also.len() as u64).to_be_bytes());
        for (place, done) in rest[8..].chunks_mut(DONE).zip(also) {
            place[..8].copy_from_slice(&done.request.to_be_bytes());
            place[8..].copy_from_slice(&done.result.to_be_bytes());
        }
    }
    if log.has_checksums() {
        let sum = crc32c(log.seed(), &block);
        block[COMMIT_CHECKSUM_OFFSET..COMMIT_CHECKSUM_OFFSET + 4].copy_from_slice(&sum.to_be_bytes());
    }
    block.into()
}

/// How many [`Done`]s a commit block has room for.
pub fn done_room(block_size: usize) -> usize {
    (block_size - size_of::<Commit>() - 8) / DONE
}

/// What a commit block says about requests.
pub(super) fn read_progress(block: &[u8]) -> Option<Progress> {
    let (commit, rest) = Commit::ref_from_prefix(block).ok()?;
    if commit.ursa_magic.get() != SEQUENCE_MAGIC {
        return None;
    }
    let word = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).unwrap_or(0);
    let count = word(&rest[..8]).min(done_room(block.len()) as u64) as usize;
    let also = rest[8..].chunks_exact(DONE).take(count);
    let also = also.map(|done| Done { request: word(&done[..8]), result: word(&done[8..]) }).collect();
    Some(Progress { upto: commit.ursa_sequence.get(), also })
}
