//! Inodes of tmpfs and their open files.

use alloc::{boxed::Box, sync::Arc, vec::Vec};

use linux_uapi::raw::general as uapi;
use ursa_hal::sync::{Once, SpinLock};

use super::{PAGE, Tmpfs, dir::Entries, fs_of, xattr::Xattrs};
use crate::{
    Errno, Result,
    fs::{
        Listing,
        file::{DirSink, File, FileOps},
        inode::{Entry, FileKind, Inode, InodeOps, LinkTarget, NewInode, RenameSide, SetAttr, SuperBlock, inode_of},
        io::{Sink, Source},
        permission,
    },
    mm::{MapBacking, MapRequest, MemoryObject, Seals},
};

/// What Linux's tmpfs counts for each entry in a directory's size.
const DIRENT_SIZE: u64 = 20;

enum Data {
    /// Made when first opened, written or sized.
    Regular {
        file: Once<Arc<TmpFile>>,
        quota: Arc<crate::mm::Charge>,
    },
    Directory(SpinLock<Entries>),
    Symlink(Arc<[u8]>),
    /// Device node, FIFO, socket.
    Special,
}

/// The tmpfs side of an inode.
pub struct TmpNode {
    data: Data,
    xattrs: Xattrs,
}

impl TmpNode {
    /// Makes an inode; `target` for a symbolic link.
    ///
    /// # Errors
    /// `ENOSPC` when the file system's limit of inodes is reached.
    pub fn make(sb: &Arc<SuperBlock>, new: &NewInode, target: Option<&[u8]>) -> Result<Arc<Inode>> {
        let fs = sb.ops_as::<Tmpfs>().ok_or(Errno::EIO)?;
        fs.take_inode()?;
        let data = match FileKind::from_mode(new.mode).unwrap_or(FileKind::Regular) {
            FileKind::Regular => Data::Regular { file: Once::new(), quota: fs.charge.clone() },
            FileKind::Directory => Data::Directory(SpinLock::new(Entries::default())),
            FileKind::Symlink => Data::Symlink(Arc::from(target.unwrap_or_default())),
            _ => Data::Special,
        };
        Ok(Inode::new(sb, sb.next_ino(), new, Box::new(TmpNode { data, xattrs: Xattrs::new() })))
    }

    fn entries(&self) -> Result<&SpinLock<Entries>> {
        match &self.data {
            Data::Directory(entries) => Ok(entries),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn file(&self) -> Option<&Arc<TmpFile>> {
        match &self.data {
            Data::Regular { file, quota } => Some(file.call_once(|| {
                Arc::new(TmpFile { object: MemoryObject::new_shmem_charged(0, None, Some(quota.clone())) })
            })),
            _ => None,
        }
    }

    /// Adds a made inode under `name`.
    fn add(dir: &Arc<Inode>, name: &[u8], inode: Arc<Inode>) -> Result<Entry> {
        let node = dir.ops_as::<TmpNode>().ok_or(Errno::EIO)?;
        if inode.is_dir() {
            dir.add_nlink(1);
        }
        node.entries()?.lock().insert(name, inode.clone());
        dir.touch_modified();
        Ok(Entry::stable(inode))
    }
}

fn node(inode: &Inode) -> Result<&TmpNode> {
    inode.ops_as::<TmpNode>().ok_or(Errno::EXDEV)
}

impl InodeOps for TmpNode {
    fn lookup(&self, _dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        match self.entries()?.lock().get(name) {
            Some(inode) => Ok(Entry::stable(inode.clone())),
            None => Err(Errno::ENOENT),
        }
    }

    fn create(&self, dir: &Arc<Inode>, name: &[u8], new: &NewInode) -> Result<Entry> {
        TmpNode::add(dir, name, TmpNode::make(&dir.sb, new, None)?)
    }

    fn symlink(&self, dir: &Arc<Inode>, name: &[u8], target: &[u8], new: &NewInode) -> Result<Entry> {
        TmpNode::add(dir, name, TmpNode::make(&dir.sb, new, Some(target))?)
    }

    fn link(&self, dir: &Arc<Inode>, name: &[u8], inode: &Arc<Inode>) -> Result {
        inode.add_nlink(1);
        inode.touch_changed();
        TmpNode::add(dir, name, inode.clone())?;
        Ok(())
    }

    fn unlink(&self, dir: &Arc<Inode>, name: &[u8], inode: &Arc<Inode>) -> Result {
        let removed = self.entries()?.lock().remove(name);
        dir.touch_modified();
        inode.add_nlink(-1);
        inode.touch_changed();
        drop(removed);
        Ok(())
    }

    fn rmdir(&self, dir: &Arc<Inode>, name: &[u8], inode: &Arc<Inode>) -> Result {
        if !node(inode)?.entries()?.lock().is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        let removed = self.entries()?.lock().remove(name);
        dir.add_nlink(-1);
        dir.touch_modified();
        inode.set_nlink(0);
        inode.touch_changed();
        drop(removed);
        Ok(())
    }

    fn rename(&self, old: &RenameSide<'_>, new: &RenameSide<'_>, flags: u32) -> Result {
        let moved = old.inode.ok_or(Errno::ENOENT)?;
        let from = self.entries()?;
        let to = node(new.dir)?.entries()?;
        let cross = !Arc::ptr_eq(old.dir, new.dir);
        if flags & uapi::RENAME_EXCHANGE != 0 {
            let other = new.inode.ok_or(Errno::ENOENT)?;
            let a = from.lock().replace(old.name, other.clone());
            let b = to.lock().replace(new.name, moved.clone());
            if cross && moved.is_dir() != other.is_dir() {
                let (gains, loses) = if moved.is_dir() { (new.dir, old.dir) } else { (old.dir, new.dir) };
                gains.add_nlink(1);
                loses.add_nlink(-1);
            }
            other.touch_changed();
            drop((a, b));
        } else {
            if let Some(replaced) = new.inode {
                if replaced.is_dir() {
                    if !node(replaced)?.entries()?.lock().is_empty() {
                        return Err(Errno::ENOTEMPTY);
                    }
                    replaced.set_nlink(0);
                    new.dir.add_nlink(-1);
                } else {
                    replaced.add_nlink(-1);
                }
                replaced.touch_changed();
            }
            let source = from.lock().remove(old.name);
            let target = {
                let mut to = to.lock();
                match to.replace(new.name, moved.clone()) {
                    Some(target) => Some(target),
                    None => {
                        to.insert(new.name, moved.clone());
                        None
                    }
                }
            };
            drop((source, target));
            if moved.is_dir() && cross {
                old.dir.add_nlink(-1);
                new.dir.add_nlink(1);
            }
        }
        old.dir.touch_modified();
        if cross {
            new.dir.touch_modified();
        }
        moved.touch_changed();
        Ok(())
    }

    fn tmpfile(&self, dir: &Arc<Inode>, new: &NewInode) -> Result<Arc<Inode>> {
        let inode = TmpNode::make(&dir.sb, new, None)?;
        inode.set_nlink(0);
        Ok(inode)
    }

    fn readlink(&self, _inode: &Arc<Inode>) -> Result<LinkTarget> {
        match &self.data {
            Data::Symlink(target) => Ok(LinkTarget::Path(target.clone())),
            _ => Err(Errno::EINVAL),
        }
    }

    fn size(&self, _inode: &Inode) -> (u64, u64) {
        match &self.data {
            Data::Regular { file, .. } => match file.get() {
                Some(file) => (file.object.size(), file.object.resident_pages() as u64 * (PAGE / 512)),
                None => (0, 0),
            },
            Data::Directory(entries) => ((entries.lock().len() as u64 + 2) * DIRENT_SIZE, 0),
            Data::Symlink(target) => (target.len() as u64, 0),
            Data::Special => (0, 0),
        }
    }

    fn setattr(&self, inode: &Arc<Inode>, change: &SetAttr) -> Result {
        // `F_SEAL_EXEC`: who may execute a sealed file stays as it is.
        if change.mode.is_some_and(|mode| (mode ^ inode.mode()) & 0o111 != 0)
            && let Data::Regular { file, .. } = &self.data
            && file.get().is_some_and(|file| file.object.seals().contains(Seals::EXEC))
        {
            return Err(Errno::EPERM);
        }
        if let Some(size) = change.size {
            let file = self.file().ok_or(Errno::EINVAL)?;
            if file.object.size() != size {
                file.object.set_size(size)?;
            }
        }
        inode.apply(change);
        Ok(())
    }

    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        match &self.data {
            Data::Regular { .. } => self.file().map(|f| f.clone() as Arc<dyn FileOps>).ok_or(Errno::EIO),
            Data::Directory(_) => {
                static OPEN: Once<Arc<dyn FileOps>> = Once::new();
                Ok(OPEN.call_once(|| Arc::new(Listing::syncing(list))).clone())
            }
            _ => Err(Errno::ENXIO),
        }
    }

    fn memory_object(&self, _inode: &Inode) -> Option<Arc<MemoryObject>> {
        self.file().map(|f| f.object.clone())
    }

    fn getxattr(&self, _inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
        self.xattrs.get(name)
    }

    fn setxattr(&self, inode: &Inode, name: &[u8], value: &[u8], flags: u32) -> Result {
        self.xattrs.set(name, value, flags)?;
        inode.touch_changed();
        Ok(())
    }

    fn listxattr(&self, _inode: &Inode) -> Result<Vec<u8>> {
        Ok(self.xattrs.list())
    }

    fn removexattr(&self, inode: &Inode, name: &[u8]) -> Result {
        self.xattrs.remove(name)?;
        inode.touch_changed();
        Ok(())
    }

    fn evict(&self, inode: &Inode) {
        if let Ok(fs) = fs_of(inode) {
            fs.put_inode();
        }
    }
}

impl Drop for TmpNode {
    fn drop(&mut self) {
        // A tree may be deeper than the kernel stack allows to recurse: taken apart level by level.
        let Data::Directory(entries) = &mut self.data else { return };
        let mut work = entries.get_mut().drain();
        while let Some(inode) = work.pop() {
            if Arc::strong_count(&inode) == 1
                && let Some(TmpNode { data: Data::Directory(below), .. }) = inode.ops_as::<TmpNode>()
            {
                let mut children = below.lock().drain();
                work.append(&mut children);
            }
        }
    }
}

/// Lists an open directory.
fn list(f: &File, pos: &mut u64, sink: &mut dyn DirSink) -> Result {
    let inode = inode_of(f)?;
    // The sink writes to kernel memory, so the entries may be visited under their lock.
    node(inode)?.entries()?.lock().list(pos, sink);
    if let Some(path) = f.path() {
        inode.accessed(&path.mount, f.flags());
    }
    Ok(())
}

/// The contents of a regular file, shared by all who have it open.
pub struct TmpFile {
    object: Arc<MemoryObject>,
}

impl TmpFile {
    /// What follows a successful write: times, and the set-ID bits go.
    fn written(inode: &Inode) {
        inode.touch_modified();
        if inode.mode() & (uapi::S_ISUID | uapi::S_ISGID) != 0 {
            permission::drop_set_id(inode);
        }
    }
}

impl FileOps for TmpFile {
    fn read(&self, f: &File, dst: &mut Sink<'_>, pos: u64) -> Result<usize> {
        let n = self.object.read(pos, dst)?;
        if let (Some(inode), Some(path)) = (f.inode(), f.path()) {
            inode.accessed(&path.mount, f.flags());
        }
        Ok(n)
    }

    fn write(&self, f: &File, src: &mut Source<'_>, pos: u64) -> Result<usize> {
        let inode = inode_of(f)?;
        let _guard = inode.lock.write();
        let n = self.object.write(pos, src)?;
        if n > 0 {
            Self::written(inode);
        }
        Ok(n)
    }

    fn append(&self, f: &File, src: &mut Source<'_>) -> Result<(u64, usize)> {
        let inode = inode_of(f)?;
        let _guard = inode.lock.write();
        let end = self.object.size();
        let n = self.object.write(end, src)?;
        if n > 0 {
            Self::written(inode);
        }
        Ok((end + n as u64, n))
    }

    fn fcntl(&self, f: &File, cmd: u32, arg: u64) -> Option<Result<i64>> {
        crate::mm::memfd::fcntl_seals(&self.object, f, cmd, arg)
    }

    fn is_stream(&self) -> bool {
        false
    }

    fn can_poll(&self) -> bool {
        false
    }

    fn mmap(&self, f: &File, req: &mut MapRequest) -> Result {
        if let (Some(inode), Some(path)) = (f.inode(), f.path()) {
            inode.accessed(&path.mount, f.flags());
        }
        req.backing = MapBacking::Object { object: self.object.clone(), offset: req.offset, file: None };
        Ok(())
    }

    fn seek(&self, _f: &File, offset: i64, whence: u32, pos: u64) -> Result<u64> {
        crate::fs::file::seek_object(&self.object, offset, whence, pos)
    }

    fn fsync(&self, _f: &File, _data_only: bool) -> Result {
        Ok(())
    }

    fn fallocate(&self, f: &File, mode: u32, offset: u64, len: u64) -> Result {
        let inode = inode_of(f)?;
        let _guard = inode.lock.write();
        let keep = mode & uapi::FALLOC_FL_KEEP_SIZE != 0;
        match mode & !uapi::FALLOC_FL_KEEP_SIZE {
            0 => self.object.allocate(offset, len, keep)?,
            uapi::FALLOC_FL_PUNCH_HOLE if keep => self.object.punch_hole(offset, len)?,
            _ => return Err(Errno::EOPNOTSUPP),
        }
        Self::written(inode);
        Ok(())
    }
}
