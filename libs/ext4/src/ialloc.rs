//! Inodes: allocating and freeing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use rustix::io::Errno;

use crate::balloc::set_bits;
use crate::cache::Buf;
use crate::disk::group::{BLOCK_UNINIT, INODE_UNINIT};
use crate::disk::inode::{InodeFlags, ROOT_INO};
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::group::{Bitmap, Group, GroupState};
use crate::inode::InodeData;
use crate::journal::Handle;

fn free_inodes(group: &Group) -> u32 {
    group.free_inodes.load(Ordering::Relaxed)
}

fn free_blocks(group: &Group) -> u32 {
    group.free_hint.load(Ordering::Relaxed)
}

impl Fs {
    /// Groups in the order in which to try them for a new inode.
    fn group_order(&self, parent: &InodeData, is_dir: bool) -> impl Iterator<Item = u32> + use<> {
        let groups = self.geo.groups;
        let (home, _) = self.geo.group_of_inode(parent.ino);
        let first = if is_dir { self.dir_group(parent, home) } else { self.file_group(home, parent.ino) };
        (0..groups).map(move |step| (first + step) % groups)
    }

    /// Directories spread over the disk where they are roots of trees, and stay near their parents otherwise (Orlov).
    fn dir_group(&self, parent: &InodeData, home: u32) -> u32 {
        let groups = self.groups.len() as u64;
        let average_inodes = self.groups.iter().map(|group| u64::from(free_inodes(group))).sum::<u64>() / groups;
        let average_blocks = self.groups.iter().map(|group| u64::from(free_blocks(group))).sum::<u64>() / groups;
        let is_good = |group: &Group| {
            free_inodes(group) > 0
                && u64::from(free_inodes(group)) >= average_inodes
                && u64::from(free_blocks(group)) >= average_blocks
        };
        if parent.ino == ROOT_INO || parent.flags().contains(InodeFlags::TOPDIR) {
            let good = self.groups.iter().enumerate().filter(|(_, group)| is_good(group));
            let best = good.min_by_key(|(_, group)| group.dirs.load(Ordering::Relaxed));
            return best.map_or(home, |(group, _)| group as u32);
        }
        let near = (0..self.geo.groups).map(|step| (home + step) % self.geo.groups).find(|group| {
            let group = &self.groups[*group as usize];
            let enough = u64::from(free_inodes(group)) > average_inodes / 4 && free_inodes(group) > 0;
            enough && u64::from(free_blocks(group)) > average_blocks / 4
        });
        near.unwrap_or(home)
    }

    /// Files stay with their directory; where that is full, those of one directory go the same way.
    fn file_group(&self, home: u32, parent: u32) -> u32 {
        let groups = self.geo.groups;
        let has_room = |group: u32| {
            let group = &self.groups[group as usize];
            free_inodes(group) > 0 && free_blocks(group) > 0
        };
        if has_room(home) {
            return home;
        }
        let start = (home + parent) % groups;
        let mut step = 1;
        let mut at = start;
        while step < groups {
            at = (at + step) % groups;
            if has_room(at) {
                return at;
            }
            step *= 2;
        }
        home
    }

    /// Takes an inode; its number is the result.
    ///
    /// # Errors
    /// `ENOSPC`, before anything is changed.
    pub(crate) fn alloc_inode(&self, handle: &Handle<'_>, parent: &InodeData, is_dir: bool) -> Result<u32> {
        if self.disk_free_inodes.load(Ordering::Relaxed) <= 0 {
            return Err(Errno::NOSPC.into());
        }
        let made = crate::again::current().and_then(|again| again.made).map(|(ino, _)| ino);
        if let Some(ino) = made {
            return self.take_inode(handle, ino, is_dir);
        }
        for group in self.group_order(parent, is_dir) {
            let this = &self.groups[group as usize];
            if free_inodes(this) == 0 {
                continue;
            }
            let state = this.state.lock();
            let buf = self.inode_bitmap(group, &state)?;
            let per_group = self.geo.inodes_per_group;
            let reserved = if group == 0 { self.geo.first_ino - 1 } else { 0 };
            let Some(index) = Bitmap::new(&buf.read(), per_group).next_clear(reserved) else { continue };
            return self.mark_inode(handle, group, state, &buf, index, is_dir);
        }
        Err(Errno::NOSPC.into())
    }

    /// Takes the inode that was taken when this was done the first time.
    ///
    /// # Errors
    /// `EBUSY` when it is in use, `EINVAL` when it cannot be one of a file.
    fn take_inode(&self, handle: &Handle<'_>, ino: u32, is_dir: bool) -> Result<u32> {
        if ino < self.geo.first_ino || ino > self.geo.inodes_count {
            return Err(Errno::INVAL.into());
        }
        let (group, index) = self.geo.group_of_inode(ino);
        let state = self.groups[group as usize].state.lock();
        let buf = self.inode_bitmap(group, &state)?;
        if Bitmap::new(&buf.read(), self.geo.inodes_per_group).next_clear(index) != Some(index) {
            return Err(Errno::BUSY.into());
        }
        self.mark_inode(handle, group, state, &buf, index, is_dir)
    }

    /// Marks an inode that is free as taken; its number is the result.
    fn mark_inode(
        &self,
        handle: &Handle<'_>,
        group: u32,
        mut state: MutexGuard<'_, GroupState>,
        buf: &Arc<Buf>,
        index: u32,
        is_dir: bool,
    ) -> Result<u32> {
        let this = &self.groups[group as usize];
        let per_group = self.geo.inodes_per_group;
        if set_bits(&mut handle.modify(buf), index, 1, true) != 1 {
            return Err(Error::Corrupt("inode bitmap", group.into()));
        }
        if state.desc.flags.get() & BLOCK_UNINIT != 0 {
            let blocks = self.block_bitmap(group, &mut state)?;
            drop(handle.modify(&blocks));
        }
        let unused = if state.desc.flags.get() & INODE_UNINIT != 0 {
            per_group
        } else {
            state.desc.itable_unused().min(per_group)
        };
        if self.geo.has_desc_sums() && index >= per_group - unused {
            state.desc.set_itable_unused(per_group - index - 1);
        }
        let flags = state.desc.flags.get() & !(INODE_UNINIT | BLOCK_UNINIT);
        state.desc.flags.set(flags);
        let free = state.desc.free_inodes().saturating_sub(1);
        state.desc.set_free_inodes(free);
        this.free_inodes.store(free, Ordering::Relaxed);
        if is_dir {
            let dirs = state.desc.used_dirs() + 1;
            state.desc.set_used_dirs(dirs);
            this.dirs.store(dirs, Ordering::Relaxed);
        }
        drop(state);
        self.dirty_group(group);
        self.disk_free_inodes.fetch_sub(1, Ordering::Relaxed);
        Ok(group * per_group + index + 1)
    }

    /// Frees an inode.
    pub(crate) fn free_inode(&self, handle: &Handle<'_>, ino: u32, is_dir: bool) -> Result<()> {
        let (group, index) = self.geo.group_of_inode(ino);
        let this = &self.groups[group as usize];
        let mut state = this.state.lock();
        let buf = self.inode_bitmap(group, &state)?;
        if set_bits(&mut handle.modify(&buf), index, 1, false) != 1 {
            return Err(Error::Corrupt("inode is free already", ino.into()));
        }
        let free = state.desc.free_inodes() + 1;
        state.desc.set_free_inodes(free);
        this.free_inodes.store(free, Ordering::Relaxed);
        if is_dir {
            let dirs = state.desc.used_dirs().saturating_sub(1);
            state.desc.set_used_dirs(dirs);
            this.dirs.store(dirs, Ordering::Relaxed);
        }
        drop(state);
        self.dirty_group(group);
        self.disk_free_inodes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// A generation for a new inode: another than that of any that had its number before.
    pub(crate) fn next_generation(&self) -> u32 {
        if let Some((_, generation)) = crate::again::current().and_then(|again| again.made) {
            return generation;
        }
        self.generation.fetch_add(1, Ordering::Relaxed) as u32
    }
}
