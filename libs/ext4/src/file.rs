//! The contents of files: reading, writing, sizes, holes.

use std::sync::Arc;

use rustix::io::Errno;

use crate::balloc::Run;
use crate::disk::extent::{Extent, MAX_LEN};
use crate::disk::inode::{BLOCK_BYTES, InodeFlags, Time};
use crate::error::{Error, Result};
use crate::extent::Mapped;
use crate::fs::{Caller, Fs};
use crate::inode::{Inode, InodeData, S_IFDIR, S_IFLNK, S_IFREG};

/// `fallocate(2)`: the size stays.
pub const FALLOC_KEEP_SIZE: u32 = 1;
/// `fallocate(2)`: a hole.
pub const FALLOC_PUNCH_HOLE: u32 = 2;
/// `fallocate(2)`: zeroes.
pub const FALLOC_ZERO_RANGE: u32 = 0x10;

/// Runs that one handle takes out of a map.
const CUT_LIMIT: usize = 16;
/// Blocks that it may change: bitmaps of each run, the way down the tree, a split.
const CUT_CREDITS: usize = CUT_LIMIT * 3 + 16;
/// Runs that one handle puts into a map.
const PUT_LIMIT: usize = 16;
const PUT_CREDITS: usize = PUT_LIMIT * 3 + 24;
/// What a change of a map may take for its own blocks.
const MAP_BUDGET: u32 = 8;

/// A change of times: explicit, now, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetTime {
    /// As it is.
    #[default]
    Keep,
    /// Now.
    Now,
    /// This.
    To(Time),
}

/// What `setattr` changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of stat(2)")]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: SetTime,
    pub mtime: SetTime,
    pub ctime: SetTime,
}

impl Fs {
    fn offset_of(&self, block: u64) -> u64 {
        block << self.geo.block_bits
    }

    /// Reads from a file; fewer bytes than asked for are there only at its end.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL`, the device's.
    pub fn read(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let data = inode.lock.read();
        match data.kind() {
            S_IFREG => {}
            S_IFDIR => return Err(Errno::ISDIR.into()),
            _ => return Err(Errno::INVAL.into()),
        }
        self.noticing(self.read_data(&data, offset, buf))
    }

    fn read_data(&self, data: &InodeData, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let size = data.size();
        if offset >= size {
            return Ok(0);
        }
        let len = (size - offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (lblk, skip) = ((at >> self.geo.block_bits) as u32, at % self.geo.block_size as u64);
            let mapped = self.map(data, lblk)?;
            let here =
                (mapped.len().saturating_mul(self.geo.block_size as u64) - skip).min((len - done) as u64) as usize;
            let part = &mut buf[done..done + here];
            match mapped {
                Mapped::Run { phys, unwritten: false, .. } => self.read_run(phys, skip, part)?,
                _ => part.fill(0),
            }
            done += here;
        }
        Ok(len)
    }

    fn read_run(&self, phys: u64, skip: u64, part: &mut [u8]) -> Result<()> {
        let offset = self.offset_of(phys) + skip;
        self.dev.read_at(offset, part)?;
        Ok(())
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` for what is none.
    pub fn read_link(&self, inode: &Inode) -> Result<Vec<u8>> {
        let data = inode.lock.read();
        if data.kind() != S_IFLNK {
            return Err(Errno::INVAL.into());
        }
        let size = data.size();
        if size == 0 || size >= self.geo.block_size as u64 {
            return self.noticing(Err(Error::Corrupt("symbolic link's size", inode.ino.into())));
        }
        if data.is_fast_symlink() {
            return Ok(data.disk().block[..size as usize].to_vec());
        }
        let mut target = vec![0; size as usize];
        let len = self.noticing(self.read_data(&data, 0, &mut target))?;
        target.truncate(len);
        Ok(target)
    }

    /// Writes to a file. All of it is written, or an error says why not; a part may have been then.
    ///
    /// # Errors
    /// `ENOSPC`, `EFBIG`, `EROFS`, the device's.
    pub fn write(&self, inode: &Inode, offset: u64, bytes: &[u8], caller: Caller) -> Result<()> {
        if self.is_read_only() {
            return Err(Errno::ROFS.into());
        }
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= self.geo.max_size());
        let end = end.ok_or(Errno::FBIG)?;
        if bytes.is_empty() {
            return Ok(());
        }
        if self.noticing(self.overwrite(inode, offset, bytes, end))? {
            return Ok(());
        }
        let mut data = inode.lock.write();
        self.check_writable(&data)?;
        self.noticing(self.write_data(&mut data, offset, bytes, caller))
    }

    fn check_writable(&self, data: &InodeData) -> Result<()> {
        if data.gone {
            return Err(Errno::STALE.into());
        }
        match data.kind() {
            S_IFREG => {}
            S_IFDIR => return Err(Errno::ISDIR.into()),
            _ => return Err(Errno::INVAL.into()),
        }
        if data.flags().contains(InodeFlags::IMMUTABLE) {
            return Err(Errno::PERM.into());
        }
        if !data.has_extents() {
            return Err(Errno::OPNOTSUPP.into());
        }
        Ok(())
    }

    /// Writes over blocks that are there, while others read and write the file too; `false` where it takes more than that.
    fn overwrite(&self, inode: &Inode, offset: u64, bytes: &[u8], end: u64) -> Result<bool> {
        let data = inode.lock.read();
        // Times go by ticks of 4 ms, as in Linux: within one nothing is to be changed in the inode.
        let now = Time::now();
        let is_recent = data.mtime().sec == now.sec && now.nsec.abs_diff(data.mtime().nsec) < 4_000_000;
        if end > data.size() || !is_recent || self.check_writable(&data).is_err() {
            return Ok(false);
        }
        let bits = self.geo.block_bits;
        let (first, last) = (offset >> bits, (end - 1) >> bits);
        let mut pieces = Vec::new();
        let mut lblk = first;
        while lblk <= last {
            let Mapped::Run { phys, len, unwritten: false } = self.map(&data, lblk as u32)? else { return Ok(false) };
            let count = u64::from(len).min(last + 1 - lblk);
            pieces.push((lblk, phys, count));
            lblk += count;
        }
        for (lblk, phys, count) in pieces {
            let from = offset.max(lblk << bits);
            let to = end.min((lblk + count) << bits);
            let place = self.offset_of(phys) + (from - (lblk << bits));
            self.dev.write_at(place, &bytes[(from - offset) as usize..(to - offset) as usize])?;
        }
        Ok(true)
    }

    fn write_data(&self, data: &mut InodeData, offset: u64, bytes: &[u8], caller: Caller) -> Result<()> {
        let end = offset + bytes.len() as u64;
        let privileged = self.is_privileged(caller);
        if offset > data.size() {
            self.zero_tail(data, offset)?;
        }
        let mut at = offset;
        while at < end {
            // What one handle will put in: written to the disk first.
            let mut put = Vec::new();
            let result = self.write_some(data, (at, end), offset, bytes, privileged, &mut put);
            let (reached, failed) = match result {
                Ok(reached) => (reached, None),
                Err((reached, error)) => (reached, Some(error)),
            };
            let size = data.size().max(reached);
            if reached > at || !put.is_empty() {
                self.put(data, &put, Some(size), privileged)?;
            }
            if let Some(error) = failed {
                return Err(error);
            }
            at = reached;
        }
        Ok(())
    }

    /// Writes data from `at` on until `end`, or until there is enough for a handle: how far it came. New runs are collected.
    fn write_some(
        &self,
        data: &InodeData,
        (mut at, end): (u64, u64),
        base: u64,
        bytes: &[u8],
        privileged: bool,
        put: &mut Vec<Put>,
    ) -> std::result::Result<u64, (u64, Error)> {
        let bits = self.geo.block_bits;
        let size = self.geo.block_size as u64;
        let mut goal = None;
        while at < end && put.len() < PUT_LIMIT {
            let lblk = (at >> bits) as u32;
            let last = (end - 1) >> bits;
            let mapped = self.map(data, lblk).map_err(|error| (at, error))?;
            let count = mapped.len().min(last + 1 - u64::from(lblk));
            let slice = |from: u64, to: u64| &bytes[(from - base) as usize..(to - base) as usize];
            let (phys, count, kind) = match mapped {
                Mapped::Run { phys, unwritten: false, .. } => (phys, count, None),
                Mapped::Run { phys, unwritten: true, .. } => (phys, count, Some(PutKind::Convert)),
                Mapped::Hole(_) => {
                    let wanted = match goal {
                        Some(goal) => goal,
                        None => self.goal_for(data, lblk).map_err(|error| (at, error))?,
                    };
                    let want = count.min(MAX_LEN.into()) as u32;
                    let run = self.reserve(wanted, want, privileged).map_err(|error| (at, error))?;
                    goal = Some(run.start + u64::from(run.len));
                    (run.start, run.len.into(), Some(PutKind::New))
                }
            };
            let to = end.min((u64::from(lblk) + count) << bits);
            let place = self.offset_of(phys) + at % size;
            let written = (|| {
                self.dev.write_at(place, slice(at, to))?;
                if kind.is_some() {
                    // What of the first and last block is not written is zero.
                    self.write_zeroes(self.offset_of(phys), at % size)?;
                    self.write_zeroes(place + (to - at), to.next_multiple_of(size) - to)?;
                }
                Ok(())
            })();
            if let Some(kind) = kind {
                put.push(Put { kind, lblk, run: Run { start: phys, len: count as u32 } });
            }
            written.map_err(|error| (at, error))?;
            at = to;
        }
        Ok(at)
    }

    fn write_zeroes(&self, place: u64, len: u64) -> Result<()> {
        if len > 0 {
            self.dev.write_at(place, &vec![0; len as usize])?;
        }
        Ok(())
    }

    /// Makes zero what of the last block lies beyond the end, before the end moves to `upto`.
    fn zero_tail(&self, data: &InodeData, upto: u64) -> Result<()> {
        let size = data.size();
        let block = self.geo.block_size as u64;
        if size.is_multiple_of(block) {
            return Ok(());
        }
        if let Mapped::Run { phys, unwritten: false, .. } = self.map(data, (size >> self.geo.block_bits) as u32)? {
            let to = size.next_multiple_of(block).min(upto);
            self.write_zeroes(self.offset_of(phys) + size % block, to - size)?;
        }
        Ok(())
    }

    /// Puts runs whose data are written into a file's map, and sets its size.
    fn put(&self, data: &mut InodeData, runs: &[Put], size: Option<u64>, privileged: bool) -> Result<()> {
        let changes_map = !runs.is_empty();
        let mut budget = match self.budget(self.map_budget(data, runs.len()), privileged) {
            Ok(budget) => budget,
            Err(error) => {
                for put in runs.iter().filter(|put| put.kind != PutKind::Convert) {
                    self.unreserve(put.run);
                }
                return Err(error);
            }
        };
        let handle = self.begin(PUT_CREDITS)?;
        for put in runs {
            let unwritten = put.kind == PutKind::Unwritten;
            let new = Extent { lblk: put.lblk, len: put.run.len, phys: put.run.start, unwritten };
            if put.kind == PutKind::Convert {
                let range = (u64::from(put.lblk), new.end());
                self.cut(&handle, &mut budget, data, range, usize::MAX)?;
            } else {
                self.claim(&handle, put.run)?;
                data.add_blocks(put.run.len.into(), &self.geo);
            }
            let max = if unwritten { MAX_LEN - 1 } else { MAX_LEN };
            let mut rest = new;
            while rest.len > 0 {
                let len = rest.len.min(max);
                self.insert_extent(&handle, &mut budget, data, Extent { len, ..rest })?;
                rest = Extent {
                    lblk: rest.lblk.wrapping_add(len),
                    len: rest.len - len,
                    phys: rest.phys + u64::from(len),
                    ..rest
                };
            }
        }
        let grows = size.is_some_and(|size| size != data.size());
        if let Some(size) = size {
            data.set_size(size);
        }
        let now = Time::now();
        data.set_mtime(now);
        data.set_ctime(now);
        if changes_map || grows { self.write_inode_data(&handle, data) } else { self.write_inode(&handle, data) }
    }

    /// Takes the blocks from `from` on out of a file and frees them, in as many transactions as it takes. The caller has
    /// made sure that it is finished after a power cut.
    pub(crate) fn truncate_blocks(&self, data: &mut InodeData, from: u64) -> Result<()> {
        self.cut_and_free(data, (from, 1 << 32), true)
    }

    fn cut_and_free(&self, data: &mut InodeData, range: (u64, u64), privileged: bool) -> Result<()> {
        let is_meta = data.is_dir();
        let nothing_splits = range.1 >= 1 << 32;
        loop {
            let mut budget = self.budget(if nothing_splits { 0 } else { MAP_BUDGET }, privileged)?;
            let handle = self.begin(CUT_CREDITS)?;
            let (cut, done) = self.cut(&handle, &mut budget, data, range, CUT_LIMIT)?;
            for extent in &cut {
                self.free_blocks(&handle, extent.phys, extent.len)?;
                data.add_blocks(-i64::from(extent.len), &self.geo);
                if is_meta {
                    for block in extent.phys..extent.phys + u64::from(extent.len) {
                        handle.revoke(block);
                        self.cache.forget(block);
                    }
                }
            }
            self.write_inode_data(&handle, data)?;
            if done {
                return Ok(());
            }
        }
    }

    fn set_file_size(&self, data: &mut InodeData, size: u64) -> Result<()> {
        self.check_writable(data)?;
        if size > self.geo.max_size() {
            return Err(Errno::FBIG.into());
        }
        let old = data.size();
        let block = self.geo.block_size as u64;
        if size > old {
            self.zero_tail(data, size)?;
        }
        let shrinks = size < old;
        let first_gone = size.div_ceil(block);
        let handle = self.begin(8)?;
        data.set_size(size);
        let now = Time::now();
        data.set_mtime(now);
        data.set_ctime(now);
        let has_blocks = shrinks || self.end_of_map(data)? > first_gone;
        if has_blocks {
            self.orphan_add(&handle, data)?;
        }
        self.write_inode_data(&handle, data)?;
        drop(handle);
        if has_blocks {
            self.finish(data)?;
        }
        Ok(())
    }

    /// Frees what lies beyond a file's end and takes it off the record of orphans.
    fn finish(&self, data: &mut InodeData) -> Result<()> {
        let block = self.geo.block_size as u64;
        let size = data.size();
        self.truncate_blocks(data, size.div_ceil(block))?;
        // What was behind the end in the last block must not come back when the file grows.
        self.zero_tail(data, u64::MAX)?;
        if data.links() > 0 {
            let handle = self.begin(8)?;
            self.orphan_del(&handle, data)?;
            self.write_inode(&handle, data)?;
        }
        Ok(())
    }

    /// Goes on with a truncation that a power cut stopped.
    pub(crate) fn finish_truncation(&self, inode: &Arc<Inode>) -> Result<()> {
        let mut data = inode.lock.write();
        if data.has_extents() && data.is_file() {
            return self.finish(&mut data);
        }
        let handle = self.begin(8)?;
        self.orphan_del(&handle, &mut data)?;
        self.write_inode(&handle, &mut data)
    }

    /// Changes attributes.
    ///
    /// # Errors
    /// `EROFS`, `EFBIG`, `EISDIR` or `EINVAL` for the size of what is no file, `EPERM`.
    pub fn set_attr(&self, inode: &Inode, set: &SetAttr) -> Result<()> {
        let mut data = inode.lock.write();
        if data.gone {
            return Err(Errno::STALE.into());
        }
        self.noticing(self.set_attr_locked(&mut data, set))
    }

    fn set_attr_locked(&self, data: &mut InodeData, set: &SetAttr) -> Result<()> {
        if let Some(size) = set.size {
            self.set_file_size(data, size)?;
        }
        let rest = SetAttr { size: None, ..*set };
        if rest == SetAttr::default() {
            return Ok(());
        }
        let handle = self.begin(8)?;
        if let Some(mode) = set.mode {
            let mode = data.kind() | mode & 0o7777;
            data.set_mode(mode);
        }
        if set.uid.is_some() || set.gid.is_some() {
            let (uid, gid) = (set.uid.unwrap_or(data.uid()), set.gid.unwrap_or(data.gid()));
            data.set_owner(uid, gid);
        }
        let now = Time::now();
        let time = |set: SetTime| match set {
            SetTime::Keep => None,
            SetTime::Now => Some(now),
            SetTime::To(time) => Some(time),
        };
        if let Some(atime) = time(set.atime) {
            data.set_atime(atime);
        }
        if let Some(mtime) = time(set.mtime) {
            data.set_mtime(mtime);
        }
        data.set_ctime(time(set.ctime).unwrap_or(now));
        self.write_inode(&handle, data)
    }

    /// `fallocate(2)`.
    ///
    /// # Errors
    /// `ENOSPC`, `EFBIG`, `EOPNOTSUPP` for modes that are not known.
    pub fn allocate(&self, inode: &Inode, mode: u32, offset: u64, len: u64, caller: Caller) -> Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= self.geo.max_size()).ok_or(Errno::FBIG)?;
        if len == 0 {
            return Err(Errno::INVAL.into());
        }
        if self.is_read_only() {
            return Err(Errno::ROFS.into());
        }
        let mut data = inode.lock.write();
        self.check_writable(&data)?;
        let privileged = self.is_privileged(caller);
        let keep = mode & FALLOC_KEEP_SIZE != 0;
        let result = match mode & !FALLOC_KEEP_SIZE {
            0 => self.preallocate(&mut data, offset, end, keep, privileged),
            FALLOC_PUNCH_HOLE if keep => self.punch(&mut data, offset, end, privileged),
            FALLOC_ZERO_RANGE => self.zero_range(&mut data, offset, end, keep, privileged),
            _ => Err(Errno::OPNOTSUPP.into()),
        };
        self.noticing(result)
    }

    fn preallocate(&self, data: &mut InodeData, offset: u64, end: u64, keep: bool, privileged: bool) -> Result<()> {
        let bits = self.geo.block_bits;
        if !keep && end > data.size() {
            self.zero_tail(data, end)?;
        }
        let (mut lblk, last) = (offset >> bits, (end - 1) >> bits);
        while lblk <= last {
            let mut put = Vec::new();
            let mut failed = None;
            let mut goal = None;
            while lblk <= last && put.len() < PUT_LIMIT {
                let mapped = self.map(data, lblk as u32)?;
                let count = mapped.len().min(last + 1 - lblk);
                if matches!(mapped, Mapped::Run { .. }) {
                    lblk += count;
                    continue;
                }
                let wanted = match goal {
                    Some(goal) => goal,
                    None => self.goal_for(data, lblk as u32)?,
                };
                match self.reserve(wanted, count.min(u64::from(MAX_LEN) - 1) as u32, privileged) {
                    Ok(run) => {
                        put.push(Put { kind: PutKind::Unwritten, lblk: lblk as u32, run });
                        lblk += u64::from(run.len);
                        goal = Some(run.start + u64::from(run.len));
                    }
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
            let reached = end.min(lblk << bits);
            let size = (!keep && reached > data.size()).then_some(reached);
            if !put.is_empty() || size.is_some() {
                self.put(data, &put, size, privileged)?;
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
        if !keep && end > data.size() {
            self.put(data, &[], Some(end), privileged)?;
        }
        Ok(())
    }

    fn punch(&self, data: &mut InodeData, offset: u64, end: u64, privileged: bool) -> Result<()> {
        let block = self.geo.block_size as u64;
        let (first, last) = (offset.div_ceil(block), end / block);
        // Parts of blocks are zeroed; whole ones go.
        if first > last {
            self.zero_in_block(data, offset, end)?;
        } else {
            self.zero_in_block(data, offset, first * block)?;
            self.zero_in_block(data, last * block, end)?;
        }
        if first < last {
            self.cut_and_free(data, (first, last), privileged)?;
        }
        let handle = self.begin(8)?;
        let now = Time::now();
        data.set_mtime(now);
        data.set_ctime(now);
        self.write_inode_data(&handle, data)
    }

    /// Zeroes bytes of one block, if it is there.
    fn zero_in_block(&self, data: &InodeData, from: u64, to: u64) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        if let Mapped::Run { phys, unwritten: false, .. } = self.map(data, (from >> self.geo.block_bits) as u32)? {
            self.write_zeroes(self.offset_of(phys) + from % self.geo.block_size as u64, to - from)?;
        }
        Ok(())
    }

    fn zero_range(&self, data: &mut InodeData, offset: u64, end: u64, keep: bool, privileged: bool) -> Result<()> {
        self.punch(data, offset, end, privileged)?;
        self.preallocate(data, offset, end, keep, privileged)
    }

    /// `lseek(2)` with `SEEK_DATA` or `SEEK_HOLE`.
    ///
    /// # Errors
    /// `ENXIO` beyond the end, or where there are no more data.
    pub fn seek(&self, inode: &Inode, offset: u64, hole: bool) -> Result<u64> {
        let data = inode.lock.read();
        let size = data.size();
        if offset >= size {
            return Err(Errno::NXIO.into());
        }
        let bits = self.geo.block_bits;
        let mut lblk = offset >> bits;
        while lblk << bits < size {
            let mapped = self.noticing(self.map(&data, lblk as u32))?;
            let is_hole = !matches!(mapped, Mapped::Run { unwritten: false, .. });
            if is_hole == hole {
                return Ok(offset.max(lblk << bits));
            }
            lblk += mapped.len();
        }
        if hole { Ok(size) } else { Err(Errno::NXIO.into()) }
    }

    /// Makes a file's contents and attributes durable (`fsync(2)`); with `data_only` only what reading the contents takes.
    ///
    /// # Errors
    /// The device's; `EROFS` after an earlier error.
    pub fn fsync(&self, inode: &Inode, data_only: bool) -> Result<()> {
        if self.journal.has_failed() {
            return Err(Errno::ROFS.into());
        }
        if self.is_read_only() {
            return Ok(());
        }
        let tid = {
            let data = inode.lock.read();
            if data_only { data.data_tid } else { data.tid }
        };
        if tid > self.journal.last_committed() {
            return self.commit(tid);
        }
        // Data may have been written over in place since.
        let flushed = self.dev.flush().map_err(Error::from);
        self.noticing(flushed)
    }

    /// Stores a long symbolic link's target, as the only block of a new inode.
    pub(crate) fn reserve_target(&self, parent: &InodeData, target: &[u8], privileged: bool) -> Result<Option<Run>> {
        if target.len() < BLOCK_BYTES {
            return Ok(None);
        }
        let run = self.reserve(self.goal_for_meta(parent), 1, privileged)?;
        let mut block = vec![0; self.geo.block_size];
        block[..target.len()].copy_from_slice(target);
        match self.dev.write_at(self.offset_of(run.start), &block) {
            Ok(()) => Ok(Some(run)),
            Err(error) => {
                self.unreserve(run);
                Err(error.into())
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PutKind {
    /// Reserved blocks whose data are written.
    New,
    /// Reserved blocks that shall read as zeroes.
    Unwritten,
    /// Blocks of the file that were unwritten and have data now.
    Convert,
}

#[derive(Clone, Copy, Debug)]
struct Put {
    kind: PutKind,
    lblk: u32,
    run: Run,
}
