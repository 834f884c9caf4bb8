//! Blocks: reserving, claiming, freeing.
//!
//! Data blocks are *reserved* in memory, written, and only then *claimed* in the transaction that puts them into a file: a
//! power cut in between leaves nothing behind, and nobody ever reads what was in a block before. Metadata blocks are taken
//! inside a handle, where failing is too late: what an operation may need is set aside first as a [`Budget`].

use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::disk::group::BLOCK_UNINIT;
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::journal::Handle;

/// A run of blocks on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First block.
    pub start: u64,
    /// Number of blocks.
    pub len: u32,
}

/// Blocks that are set aside for metadata, without places yet. What is left goes back when it is dropped.
pub struct Budget<'a> {
    fs: &'a Fs,
    left: u32,
}

impl Drop for Budget<'_> {
    fn drop(&mut self) {
        self.fs.available.fetch_add(i64::from(self.left), Ordering::Relaxed);
    }
}

impl Fs {
    /// Sets blocks aside for metadata.
    ///
    /// # Errors
    /// `ENOSPC`, after a commit if that would have helped.
    pub(crate) fn budget(&self, blocks: u32, privileged: bool) -> Result<Budget<'_>> {
        self.take_available(blocks, blocks, privileged)?;
        Ok(Budget { fs: self, left: blocks })
    }

    /// Takes at least `least` and at most `want` from what is available. No handle may be held.
    fn take_available(&self, least: u32, want: u32, privileged: bool) -> Result<u32> {
        let floor = if privileged { 0 } else { self.geo.reserved_blocks };
        for attempt in 0..2 {
            // Asked first: what a commit gives back in between is seen below.
            let more_to_come = self.journal.holds_freed_blocks();
            let mut taken = 0;
            let done = self.available.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |available| {
                let room = (available - floor as i64).clamp(0, i64::from(want)) as u32;
                taken = room;
                (room >= least).then(|| available - i64::from(room))
            });
            if done.is_ok() {
                return Ok(taken);
            }
            if attempt == 0 && more_to_come {
                self.commit(self.journal.running())?;
            }
        }
        Err(Errno::NOSPC.into())
    }

    /// Reserves a run of up to `want` blocks, near `goal`. No handle may be held.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub(crate) fn reserve(&self, goal: u64, want: u32, privileged: bool) -> Result<Run> {
        let want = self.take_available(1, want.max(1), privileged)?;
        match self.take_run(goal, want) {
            Ok(run) => {
                self.available.fetch_add(i64::from(want - run.len), Ordering::Relaxed);
                Ok(run)
            }
            Err(error) => {
                self.available.fetch_add(want.into(), Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// Gives back a reserved run that is not used.
    pub(crate) fn unreserve(&self, run: Run) {
        self.release(run.start, run.len);
    }

    /// Marks a run that is accounted for as taken, in the allocator's bitmaps.
    fn take_run(&self, goal: u64, want: u32) -> Result<Run> {
        let geo = &self.geo;
        let goal = if geo.is_inside(goal, 1) { goal } else { geo.first_data_block.into() };
        let (first, bit) = geo.group_of_block(goal);
        // Twice: first only where all of it is likely to fit in one run.
        for least in [want, 1] {
            for step in 0..geo.groups {
                let group = (first + step) % geo.groups;
                let this = &self.groups[group as usize];
                if this.free_hint.load(Ordering::Relaxed) < least {
                    continue;
                }
                let mut state = this.state.lock();
                let map = self.load_map(group, &mut state)?;
                let Some((start, len)) = map.find(if step == 0 { bit } else { 0 }, want) else { continue };
                // In the goal's group a shorter run will do if it goes on from the goal.
                let continues = step == 0 && start == bit && len >= want.min(8);
                if len < least && !continues {
                    continue;
                }
                map.set(start, len);
                this.free_hint.store(map.free(), Ordering::Relaxed);
                return Ok(Run { start: geo.group_start(group) + u64::from(start), len });
            }
            if want == 1 {
                break;
            }
        }
        // The counters said that there are some.
        Err(Error::Corrupt("free block counts", 0))
    }

    /// Marks blocks as free for the allocator.
    fn release(&self, start: u64, len: u32) {
        for (group, bit, len) in self.geo.split_by_group(start, len) {
            let mut state = self.groups[group as usize].state.lock();
            // Without a bitmap in memory they were taken on the disk only; it will be read when it is needed.
            let cleared = match state.map.as_mut() {
                Some(map) => {
                    let cleared = map.clear(bit, len);
                    self.groups[group as usize].free_hint.store(map.free(), Ordering::Relaxed);
                    cleared
                }
                None => len,
            };
            self.available.fetch_add(cleared.into(), Ordering::Relaxed);
        }
    }

    /// Blocks that a committed transaction freed can be used.
    pub(crate) fn release_freed(&self, freed: &[(u64, u32)]) {
        for &(start, len) in freed {
            self.release(start, len);
        }
    }

    /// Puts a reserved run into use on the disk.
    pub(crate) fn claim(&self, handle: &Handle<'_>, run: Run) -> Result<()> {
        for (group, bit, len) in self.geo.split_by_group(run.start, run.len) {
            let mut state = self.groups[group as usize].state.lock();
            let buf = self.block_bitmap(group, &mut state)?;
            let flags = state.desc.flags.get();
            let changed = set_bits(&mut handle.modify(&buf), bit, len, true);
            if changed != len {
                return Err(Error::Corrupt("block is taken already", run.start));
            }
            state.desc.flags.set(flags & !BLOCK_UNINIT);
            let free = state.desc.free_blocks().saturating_sub(len);
            state.desc.set_free_blocks(free);
            drop(state);
            self.dirty_group(group);
        }
        self.disk_free_blocks.fetch_sub(run.len.into(), Ordering::Relaxed);
        Ok(())
    }

    /// Takes one block for metadata out of a budget.
    pub(crate) fn take_meta(&self, handle: &Handle<'_>, budget: &mut Budget<'_>, goal: u64) -> Result<u64> {
        if budget.left == 0 {
            return Err(Errno::NOSPC.into());
        }
        let run = self.take_run(goal, 1)?;
        budget.left -= 1;
        self.claim(handle, run)?;
        Ok(run.start)
    }

    /// Frees blocks: on the disk now, for the allocator when the transaction is there.
    pub(crate) fn free_blocks(&self, handle: &Handle<'_>, start: u64, len: u32) -> Result<()> {
        if !self.geo.is_inside(start, len.into()) {
            return Err(Error::Corrupt("freed block beyond the end", start));
        }
        for (group, bit, len) in self.geo.split_by_group(start, len) {
            let mut state = self.groups[group as usize].state.lock();
            // The allocator's bitmap is made from the disk's before that says these blocks are free.
            self.load_map(group, &mut state)?;
            let buf = self.block_bitmap(group, &mut state)?;
            let flags = state.desc.flags.get();
            let changed = set_bits(&mut handle.modify(&buf), bit, len, false);
            if changed != len {
                return Err(Error::Corrupt("block is free already", start));
            }
            state.desc.flags.set(flags & !BLOCK_UNINIT);
            let free = state.desc.free_blocks() + len;
            state.desc.set_free_blocks(free);
            drop(state);
            self.dirty_group(group);
        }
        self.disk_free_blocks.fetch_add(len.into(), Ordering::Relaxed);
        handle.freed(start, len);
        Ok(())
    }

    /// Frees a block of metadata.
    pub(crate) fn free_meta(&self, handle: &Handle<'_>, block: u64) -> Result<()> {
        self.free_blocks(handle, block, 1)?;
        handle.revoke(block);
        self.cache.forget(block);
        Ok(())
    }
}

/// Sets or clears bits of a bitmap block; the result is how many changed.
pub(crate) fn set_bits(bytes: &mut [u8], start: u32, len: u32, value: bool) -> u32 {
    let mut changed = 0;
    let mut at = start;
    while at < start + len {
        let byte = &mut bytes[(at / 8) as usize];
        let to = (start + len).min(at / 8 * 8 + 8);
        let mask = (((1u16 << (to - at)) - 1) << (at % 8)) as u8;
        let before = *byte;
        *byte = if value { before | mask } else { before & !mask };
        changed += (before ^ *byte).count_ones();
        at = to;
    }
    changed
}
