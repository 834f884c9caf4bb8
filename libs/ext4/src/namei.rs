//! Operations on names: making, linking, removing, renaming.
//!
//! Everything that can fail because of the caller, or of a full disk, is found out before the first change; from there on
//! only a disk that contradicts itself fails.
//!
//! Locks: `rename`, directories, other inodes in the order of their numbers, then a handle. Whoever locks more than one
//! directory holds `rename`; whoever holds one waits for no other.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::balloc::{Budget, Run};
use crate::dir::{INSERT_BUDGET, INSERT_CREDITS};
use crate::disk::dir::NAME_MAX;
use crate::disk::extent::{self, Extent};
use crate::disk::inode::{InodeFlags, LINK_MAX, ROOT_INO, Time};
use crate::disk::superblock::RoCompat;
use crate::error::{Error, Result};
use crate::fs::{Caller, Fs};
use crate::inode::{Inode, InodeData, S_IFBLK, S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use crate::journal::Handle;

/// The set-group-ID bit, which on a directory is handed down with its group.
const S_ISGID: u32 = 0o2000;
/// The longest path that a symbolic link may hold, with its NUL.
const PATH_MAX: usize = 4096;

/// `renameat2(2)`: fail with `EEXIST` rather than replace.
pub const RENAME_NOREPLACE: u32 = 1;
/// `renameat2(2)`: both names change places.
pub const RENAME_EXCHANGE: u32 = 2;

/// What a new inode is.
enum New<'a> {
    /// A file, device, FIFO or socket.
    Node {
        mode: u32,
        rdev: u32,
    },
    Dir {
        mode: u32,
    },
    Symlink(&'a [u8]),
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() {
        return Err(Errno::NOENT.into());
    }
    if name.len() > NAME_MAX {
        return Err(Errno::NAMETOOLONG.into());
    }
    if name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(Errno::INVAL.into());
    }
    Ok(())
}

fn is_dots(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

fn touch(data: &mut InodeData, now: Time) {
    data.set_mtime(now);
    data.set_ctime(now);
}

impl Fs {
    /// Looks a name up. The inode that comes back is pinned: [`unpin`](Fs::unpin) it.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENAMETOOLONG`.
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Arc<Inode>> {
        let data = dir.lock.read();
        if !data.is_dir() {
            return Err(Errno::NOTDIR.into());
        }
        let found = self.noticing(self.find_name(&data, name))?.ok_or(Errno::NOENT)?;
        let inode = self.noticing(self.inode(found.ino))?;
        // While the directory is locked the name stays, so the inode does until it is pinned.
        inode.pin();
        Ok(inode)
    }

    /// Gives back what [`lookup`](Fs::lookup) and its like pinned, `count` times.
    ///
    /// # Errors
    /// Those of freeing it, when it was the last reference to an inode without names.
    pub fn unpin(&self, inode: &Arc<Inode>, count: u64) -> Result<()> {
        let before =
            inode.pins.fetch_update(Ordering::AcqRel, Ordering::Acquire, |pins| Some(pins.saturating_sub(count)));
        if before.unwrap_or(0) <= count {
            self.drop_if_unlinked(inode)?;
        }
        Ok(())
    }

    fn drop_if_unlinked(&self, inode: &Arc<Inode>) -> Result<()> {
        let unlinked = inode.lock.read().links() == 0;
        if unlinked && inode.pins() == 0 && !self.is_read_only() { self.noticing(self.evict(inode)) } else { Ok(()) }
    }

    /// Locks a directory for a change.
    fn check_dir(&self, data: &InodeData) -> Result<()> {
        if !data.is_dir() {
            return Err(Errno::NOTDIR.into());
        }
        if data.gone || data.links() == 0 {
            return Err(Errno::NOENT.into());
        }
        if data.flags().contains(InodeFlags::IMMUTABLE) {
            return Err(Errno::PERM.into());
        }
        if !data.has_extents() {
            // A directory of ext3: what is in it can be read.
            return Err(Errno::OPNOTSUPP.into());
        }
        Ok(())
    }

    fn check_writing(&self) -> Result<()> {
        if self.is_read_only() { Err(Errno::ROFS.into()) } else { Ok(()) }
    }

    /// Makes a file, device, FIFO or socket; pinned.
    ///
    /// # Errors
    /// `EEXIST`, `ENOSPC`, `EROFS`, `EINVAL` for another kind.
    pub fn create(&self, dir: &Inode, name: &[u8], mode: u32, rdev: u32, caller: Caller) -> Result<Arc<Inode>> {
        if matches!(mode & S_IFMT, S_IFDIR | S_IFLNK | 0) {
            return Err(Errno::INVAL.into());
        }
        self.make(dir, name, &New::Node { mode, rdev }, caller)
    }

    /// Makes a directory; pinned.
    ///
    /// # Errors
    /// As [`create`](Fs::create), and `EMLINK`.
    pub fn mkdir(&self, dir: &Inode, name: &[u8], mode: u32, caller: Caller) -> Result<Arc<Inode>> {
        self.make(dir, name, &New::Dir { mode: mode & 0o7777 | S_IFDIR }, caller)
    }

    /// Makes a symbolic link; pinned.
    ///
    /// # Errors
    /// As [`create`](Fs::create), and `ENAMETOOLONG` for the target.
    pub fn symlink(&self, dir: &Inode, name: &[u8], target: &[u8], caller: Caller) -> Result<Arc<Inode>> {
        if target.is_empty() {
            return Err(Errno::NOENT.into());
        }
        if target.len() >= self.geo.block_size.min(PATH_MAX) {
            return Err(Errno::NAMETOOLONG.into());
        }
        self.make(dir, name, &New::Symlink(target), caller)
    }

    /// Makes a file without a name; pinned.
    ///
    /// # Errors
    /// As [`create`](Fs::create).
    pub fn tmpfile(&self, dir: &Inode, mode: u32, caller: Caller) -> Result<Arc<Inode>> {
        self.check_writing()?;
        let parent = dir.lock.read();
        if !parent.is_dir() {
            return Err(Errno::NOTDIR.into());
        }
        let result = (|| {
            let handle = self.begin(12)?;
            let ino = self.alloc_inode(&handle, &parent, false)?;
            let mut data = self.new_inode(&handle, &parent, ino, mode & 0o7777 | S_IFREG, caller);
            data.set_links(0);
            self.orphan_add(&handle, &mut data)?;
            self.write_inode_data(&handle, &mut data)?;
            self.done(&handle, Some(&data));
            let inode = self.inodes.insert(data);
            self.pin_made(&inode);
            Ok(inode)
        })();
        self.noticing(result)
    }

    fn make(&self, dir: &Inode, name: &[u8], new: &New<'_>, caller: Caller) -> Result<Arc<Inode>> {
        self.check_writing()?;
        check_name(name)?;
        let mut parent = dir.lock.write();
        self.check_dir(&parent)?;
        if is_dots(name) || self.noticing(self.find_name(&parent, name))?.is_some() {
            return Err(Errno::EXIST.into());
        }
        let is_dir = matches!(new, New::Dir { .. });
        if is_dir && parent.links() >= LINK_MAX && !self.geo.ro_compat.contains(RoCompat::DIR_NLINK) {
            return Err(Errno::MLINK.into());
        }
        let privileged = self.is_privileged(caller);
        let mut budget = self.budget(INSERT_BUDGET + u32::from(is_dir), privileged)?;
        let target = match new {
            New::Symlink(target) => self.noticing(self.reserve_target(&parent, target, privileged))?,
            _ => None,
        };
        let result = self.make_locked(&mut parent, name, new, target, &mut budget, caller);
        if let (Err(error), Some(run)) = (&result, target)
            && error.is_callers()
        {
            self.unreserve(run);
        }
        self.noticing(result)
    }

    fn make_locked(
        &self,
        parent: &mut InodeData,
        name: &[u8],
        new: &New<'_>,
        target: Option<Run>,
        budget: &mut Budget<'_>,
        caller: Caller,
    ) -> Result<Arc<Inode>> {
        let mode = match *new {
            New::Node { mode, .. } | New::Dir { mode } => mode,
            New::Symlink(_) => S_IFLNK | 0o777,
        };
        let is_dir = mode & S_IFMT == S_IFDIR;
        let handle = self.begin(INSERT_CREDITS + 16)?;
        let ino = self.alloc_inode(&handle, parent, is_dir)?;
        if let Err(error) = self.add_name(&handle, budget, parent, name, ino, self.stored_kind(mode)) {
            // The tree of names is as large as it can be: nothing but the inode is to be undone, and the parent may have
            // got a block.
            self.free_inode(&handle, ino, is_dir)?;
            self.write_inode_data(&handle, parent)?;
            return Err(error);
        }
        let mut data = self.new_inode(&handle, parent, ino, mode, caller);
        match new {
            New::Dir { .. } => {
                self.init_dir(&handle, budget, &mut data, parent.ino)?;
                data.set_links(2);
                self.count_subdir(parent);
            }
            New::Symlink(bytes) => {
                match target {
                    Some(run) => {
                        self.claim(&handle, run)?;
                        let extent = Extent { lblk: 0, len: 1, phys: run.start, unwritten: false };
                        self.insert_extent(&handle, budget, &mut data, extent)?;
                        data.add_blocks(1, &self.geo);
                    }
                    None => {
                        data.set_flags(data.flags().difference(InodeFlags::EXTENTS));
                        let block = &mut data.disk_mut().block;
                        block.fill(0);
                        block[..bytes.len()].copy_from_slice(bytes);
                    }
                }
                data.set_size(bytes.len() as u64);
            }
            New::Node { mode, rdev } => {
                if matches!(mode & S_IFMT, S_IFCHR | S_IFBLK) {
                    data.set_rdev(*rdev);
                }
            }
        }
        self.write_inode_data(&handle, &mut data)?;
        touch(parent, data.ctime());
        self.write_inode_data(&handle, parent)?;
        self.done(&handle, Some(&data));
        let inode = self.inodes.insert(data);
        self.pin_made(&inode);
        Ok(inode)
    }

    /// A new inode with one link; files and directories have an empty extent tree.
    fn new_inode(&self, handle: &Handle<'_>, parent: &InodeData, ino: u32, mode: u32, caller: Caller) -> InodeData {
        let mut data = self.blank_inode(ino, self.next_generation(), handle.tid());
        let kind = mode & S_IFMT;
        let mut mode = mode;
        let mut gid = caller.gid;
        if parent.mode() & S_ISGID != 0 {
            gid = parent.gid();
            if kind == S_IFDIR {
                mode |= S_ISGID;
            }
        }
        data.set_mode(mode);
        data.set_owner(caller.uid, gid);
        data.set_links(1);
        let mut flags = parent.flags() & InodeFlags::INHERITED;
        if kind != S_IFDIR {
            flags.remove(InodeFlags::DIRSYNC);
        }
        if matches!(kind, S_IFREG | S_IFDIR | S_IFLNK) {
            flags |= InodeFlags::EXTENTS;
            extent::init(&mut data.disk_mut().block, 4, 0);
        } else {
            flags &= InodeFlags::NODUMP | InodeFlags::NOATIME;
        }
        // Data of new files are never journalled here.
        flags.remove(InodeFlags::JOURNAL_DATA);
        data.set_flags(flags);
        let now = Time::now();
        data.set_atime(now);
        data.set_mtime(now);
        data.set_ctime(now);
        data.set_crtime(now);
        data
    }

    /// Counts one subdirectory more; too many to count is 1.
    fn count_subdir(&self, parent: &mut InodeData) {
        let links = match parent.links() {
            1 => 1,
            links if links >= LINK_MAX => 1,
            links => links + 1,
        };
        parent.set_links(links);
    }

    fn uncount_subdir(&self, parent: &mut InodeData) {
        if parent.links() > 2 {
            let links = parent.links() - 1;
            parent.set_links(links);
        }
    }

    /// Gives a file another name; it is pinned once more.
    ///
    /// # Errors
    /// `EEXIST`, `EPERM` for directories, `EMLINK`, `ENOSPC`.
    pub fn link(&self, inode: &Arc<Inode>, dir: &Inode, name: &[u8], caller: Caller) -> Result<()> {
        self.check_writing()?;
        check_name(name)?;
        if inode.ino == dir.ino {
            return Err(Errno::PERM.into());
        }
        let mut parent = dir.lock.write();
        self.check_dir(&parent)?;
        if is_dots(name) || self.noticing(self.find_name(&parent, name))?.is_some() {
            return Err(Errno::EXIST.into());
        }
        let mut budget = self.budget(INSERT_BUDGET, self.is_privileged(caller))?;
        {
            // Directories are never locked after directories here.
            let data = inode.lock.try_read();
            if data.is_none_or(|data| data.is_dir()) && self.is_dir(inode) {
                return Err(Errno::PERM.into());
            }
        }
        let mut data = inode.lock.write();
        if data.gone {
            return Err(Errno::STALE.into());
        }
        if data.links() >= LINK_MAX {
            return Err(Errno::MLINK.into());
        }
        let result = (|| {
            let handle = self.begin(INSERT_CREDITS + 10)?;
            let kind = self.stored_kind(data.mode());
            self.add_name(&handle, &mut budget, &mut parent, name, inode.ino, kind).or_else(|error| {
                self.write_inode_data(&handle, &mut parent)?;
                Err(error)
            })?;
            let now = Time::now();
            if data.links() == 0 {
                self.orphan_del(&handle, &mut data)?;
            }
            let links = data.links() + 1;
            data.set_links(links);
            data.set_ctime(now);
            self.write_inode_data(&handle, &mut data)?;
            touch(&mut parent, now);
            self.write_inode_data(&handle, &mut parent)?;
            self.done(&handle, Some(&data));
            Ok(())
        })();
        self.noticing(result)?;
        if crate::again::current().is_none() {
            inode.pin();
        }
        Ok(())
    }

    /// Whether an inode is a directory: what it is never changes, so the disk's word is good enough.
    fn is_dir(&self, inode: &Inode) -> bool {
        self.raw_inode_word(inode.ino, 0).is_ok_and(|word| word & S_IFMT == S_IFDIR)
    }

    /// Removes a name of what is no directory.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`, `EPERM`.
    pub fn unlink(&self, dir: &Inode, name: &[u8]) -> Result<()> {
        self.check_writing()?;
        check_name(name)?;
        let mut parent = dir.lock.write();
        self.check_dir(&parent)?;
        if is_dots(name) {
            return Err(Errno::ISDIR.into());
        }
        let found = self.noticing(self.find_name(&parent, name))?.ok_or(Errno::NOENT)?;
        let inode = self.noticing(self.inode(found.ino))?;
        if inode.ino == dir.ino || self.is_dir(&inode) {
            return Err(Errno::ISDIR.into());
        }
        let mut data = inode.lock.write();
        if data.flags().intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND) {
            return Err(Errno::PERM.into());
        }
        let result = (|| {
            let handle = self.begin(12)?;
            self.remove_name(&handle, &found)?;
            let now = Time::now();
            touch(&mut parent, now);
            self.write_inode_data(&handle, &mut parent)?;
            self.drop_link(&handle, &mut data, now)?;
            self.done(&handle, None);
            Ok(())
        })();
        self.noticing(result)?;
        drop(data);
        drop(parent);
        self.drop_if_unlinked(&inode)
    }

    /// Takes one link away; without any the inode becomes an orphan.
    fn drop_link(&self, handle: &Handle<'_>, data: &mut InodeData, now: Time) -> Result<()> {
        let links = if data.is_dir() { 0 } else { data.links().saturating_sub(1) };
        data.set_links(links);
        data.set_ctime(now);
        if links == 0 {
            self.orphan_add(handle, data)?;
        }
        self.write_inode_data(handle, data)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`.
    pub fn rmdir(&self, dir: &Inode, name: &[u8]) -> Result<()> {
        self.check_writing()?;
        check_name(name)?;
        if is_dots(name) {
            return Err(if name == b"." { Errno::INVAL } else { Errno::NOTEMPTY }.into());
        }
        let rename = self.rename.lock();
        let mut parent = dir.lock.write();
        self.check_dir(&parent)?;
        let found = self.noticing(self.find_name(&parent, name))?.ok_or(Errno::NOENT)?;
        let inode = self.noticing(self.inode(found.ino))?;
        if inode.ino == dir.ino || inode.ino == ROOT_INO {
            return self.noticing(Err(Error::Corrupt("directory that contains itself", dir.ino.into())));
        }
        if !self.is_dir(&inode) {
            return Err(Errno::NOTDIR.into());
        }
        let mut data = inode.lock.write();
        if !self.noticing(self.dir_is_empty(&data))? {
            return Err(Errno::NOTEMPTY.into());
        }
        let result = (|| {
            let handle = self.begin(12)?;
            self.remove_name(&handle, &found)?;
            let now = Time::now();
            self.uncount_subdir(&mut parent);
            touch(&mut parent, now);
            self.write_inode_data(&handle, &mut parent)?;
            self.drop_link(&handle, &mut data, now)?;
            self.done(&handle, None);
            Ok(())
        })();
        self.noticing(result)?;
        drop(data);
        drop(parent);
        drop(rename);
        self.drop_if_unlinked(&inode)
    }

    /// Whether `inode` is `dir` or above it. The caller holds `rename`, so that no directory moves.
    fn is_above(&self, inode: u32, dir: &Arc<Inode>) -> Result<bool> {
        let mut at = dir.clone();
        for _ in 0..self.geo.inodes_count {
            if at.ino == inode {
                return Ok(true);
            }
            if at.ino == ROOT_INO {
                return Ok(false);
            }
            let up = self.find_name(&at.lock.read(), b"..")?;
            let up = up.ok_or(Error::Corrupt("directory without ..", at.ino.into()))?.ino;
            at = self.inode(up)?;
        }
        Err(Error::Corrupt("directories in a circle", dir.ino.into()))
    }

    /// Renames, or exchanges names (`renameat2(2)`).
    ///
    /// # Errors
    /// Those of the system call.
    pub fn rename(
        &self,
        from: &Arc<Inode>,
        name: &[u8],
        to: &Arc<Inode>,
        new_name: &[u8],
        flags: u32,
        caller: Caller,
    ) -> Result<()> {
        self.check_writing()?;
        check_name(name)?;
        check_name(new_name)?;
        if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE) != 0 || flags == RENAME_NOREPLACE | RENAME_EXCHANGE {
            return Err(Errno::INVAL.into());
        }
        if is_dots(name) || is_dots(new_name) {
            return Err(Errno::BUSY.into());
        }
        let lock = self.rename.lock();
        let replaced = self.noticing(self.rename_locked(from, name, to, new_name, flags, caller))?;
        drop(lock);
        match replaced {
            Some(inode) => self.drop_if_unlinked(&inode),
            None => Ok(()),
        }
    }

    fn rename_locked(
        &self,
        from: &Arc<Inode>,
        name: &[u8],
        to: &Arc<Inode>,
        new_name: &[u8],
        flags: u32,
        caller: Caller,
    ) -> Result<Option<Arc<Inode>>> {
        let same_dir = from.ino == to.ino;
        let exchange = flags & RENAME_EXCHANGE != 0;
        // What moves, for the question whether it would move below itself; asked again once it is locked.
        let moved = {
            let data = from.lock.read();
            self.check_dir(&data)?;
            self.find_name(&data, name)?.ok_or(Errno::NOENT)?.ino
        };
        let source = self.inode(moved)?;
        if !same_dir && self.is_dir(&source) && self.is_above(moved, to)? {
            return Err(Errno::INVAL.into());
        }
        if exchange && !same_dir {
            let there = {
                let data = to.lock.read();
                self.check_dir(&data)?;
                self.find_name(&data, new_name)?.ok_or(Errno::NOENT)?.ino
            };
            let there_inode = self.inode(there)?;
            if self.is_dir(&there_inode) && self.is_above(there, from)? {
                return Err(Errno::INVAL.into());
            }
        }

        let (mut first, mut second) = match same_dir {
            true => (from.lock.write(), None),
            false if from.ino < to.ino => {
                let first = from.lock.write();
                (first, Some(to.lock.write()))
            }
            false => {
                let second = to.lock.write();
                (from.lock.write(), Some(second))
            }
        };
        self.check_dir(&first)?;
        if let Some(second) = &second {
            self.check_dir(second)?;
        }
        let found = self.find_name(&first, name)?.ok_or(Errno::NOENT)?;
        if found.ino != moved {
            // Somebody was quicker, which a kernel above does not allow.
            return Err(Errno::AGAIN.into());
        }
        let target = self.find_name(second.as_ref().unwrap_or(&first), new_name)?;
        let Some(target) = target else {
            if exchange {
                return Err(Errno::NOENT.into());
            }
            self.rename_to_new(&mut first, second.as_deref_mut(), name, new_name, &source, caller)?;
            return Ok(None);
        };
        if flags & RENAME_NOREPLACE != 0 {
            return Err(Errno::EXIST.into());
        }
        if target.ino == source.ino {
            return Ok(None);
        }
        let victim = self.inode(target.ino)?;
        for inode in [&source, &victim] {
            if inode.ino == from.ino || inode.ino == to.ino {
                // The only honest case: what contains the source cannot be replaced by it.
                return Err(Errno::NOTEMPTY.into());
            }
        }
        let (mut moving, mut other) = if source.ino < victim.ino {
            let moving = source.lock.write();
            (moving, victim.lock.write())
        } else {
            let other = victim.lock.write();
            (source.lock.write(), other)
        };
        if !exchange {
            match (moving.is_dir(), other.is_dir()) {
                (true, false) => return Err(Errno::NOTDIR.into()),
                (false, true) => return Err(Errno::ISDIR.into()),
                (true, true) if !self.dir_is_empty(&other)? => return Err(Errno::NOTEMPTY.into()),
                _ => {}
            }
        }
        let handle = self.begin(INSERT_CREDITS + 20)?;
        let now = Time::now();
        self.set_name(&handle, &target, source.ino, self.stored_kind(moving.mode()));
        if exchange {
            self.set_name(&handle, &found, victim.ino, self.stored_kind(other.mode()));
        } else {
            self.remove_name(&handle, &found)?;
        }
        if moving.is_dir() {
            self.move_dir(&handle, &mut moving, &mut first, second.as_deref_mut())?;
        }
        moving.set_ctime(now);
        self.write_inode_data(&handle, &mut moving)?;
        if exchange {
            if other.is_dir()
                && let Some(second) = second.as_deref_mut()
            {
                self.move_dir(&handle, &mut other, second, Some(&mut first))?;
            }
            other.set_ctime(now);
            self.write_inode_data(&handle, &mut other)?;
        } else {
            if other.is_dir() {
                self.uncount_subdir(second.as_deref_mut().unwrap_or(&mut first));
            }
            self.drop_link(&handle, &mut other, now)?;
        }
        touch(&mut first, now);
        self.write_inode_data(&handle, &mut first)?;
        if let Some(second) = second.as_deref_mut() {
            touch(second, now);
            self.write_inode_data(&handle, second)?;
        }
        self.done(&handle, None);
        drop(other);
        Ok((!exchange).then_some(victim))
    }

    /// Renames to a name that is not there.
    fn rename_to_new(
        &self,
        first: &mut InodeData,
        mut second: Option<&mut InodeData>,
        name: &[u8],
        new_name: &[u8],
        source: &Arc<Inode>,
        caller: Caller,
    ) -> Result<()> {
        if source.ino == first.ino || second.as_ref().is_some_and(|second| second.ino == source.ino) {
            return Err(Errno::INVAL.into());
        }
        let mut moving = source.lock.write();
        if moving.is_dir()
            && second.as_ref().is_some_and(|second| second.links() >= LINK_MAX)
            && !self.geo.ro_compat.contains(RoCompat::DIR_NLINK)
        {
            return Err(Errno::MLINK.into());
        }
        let mut budget = self.budget(INSERT_BUDGET, self.is_privileged(caller))?;
        let handle = self.begin(INSERT_CREDITS + 20)?;
        let kind = self.stored_kind(moving.mode());
        let to = second.as_deref_mut().unwrap_or(first);
        if let Err(error) = self.add_name(&handle, &mut budget, to, new_name, source.ino, kind) {
            self.write_inode_data(&handle, to)?;
            return Err(error);
        }
        // The new name may have moved the old one.
        let found = self.find_name(first, name)?.ok_or(Error::Corrupt("name that is gone", first.ino.into()))?;
        self.remove_name(&handle, &found)?;
        let now = Time::now();
        if moving.is_dir() {
            self.move_dir(&handle, &mut moving, first, second.as_deref_mut())?;
        }
        moving.set_ctime(now);
        self.write_inode_data(&handle, &mut moving)?;
        touch(first, now);
        self.write_inode_data(&handle, first)?;
        if let Some(second) = second {
            touch(second, now);
            self.write_inode_data(&handle, second)?;
        }
        self.done(&handle, None);
        Ok(())
    }

    /// A directory goes from `from` to `to`, if that is another.
    fn move_dir(
        &self,
        handle: &Handle<'_>,
        moving: &mut InodeData,
        from: &mut InodeData,
        to: Option<&mut InodeData>,
    ) -> Result<()> {
        let Some(to) = to else { return Ok(()) };
        let up = self.find_name(moving, b"..")?.ok_or(Error::Corrupt("directory without ..", moving.ino.into()))?;
        let kind = self.stored_kind(S_IFDIR);
        self.set_name(handle, &up, to.ino, kind);
        self.uncount_subdir(from);
        self.count_subdir(to);
        Ok(())
    }
}
