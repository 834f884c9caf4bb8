//! Open directories.

use super::file::seek_from;
use super::inode::inode_of;
use super::{DirSink, File, FileKind, FileOps};
use crate::{Errno, Result};

/// An open directory: `.`, `..`, then what `F` lists from position 2 on.
pub struct Listing<F> {
    list: F,
    syncs: bool,
}

impl<F: Fn(&File, &mut u64, &mut dyn DirSink) -> Result + Send + Sync + 'static> Listing<F> {
    /// One that has no `fsync` (`EINVAL`).
    pub const fn new(list: F) -> Self {
        Listing { list, syncs: false }
    }

    /// One with nothing to write back.
    pub const fn syncing(list: F) -> Self {
        Listing { list, syncs: true }
    }
}

impl<F: Fn(&File, &mut u64, &mut dyn DirSink) -> Result + Send + Sync + 'static> FileOps for Listing<F> {
    fn is_directory(&self) -> bool {
        true
    }

    fn seek(&self, _f: &File, offset: i64, whence: u32, pos: u64) -> Result<u64> {
        seek_from(offset, whence, pos, None)
    }

    fn readdir(&self, f: &File, pos: &mut u64, sink: &mut dyn DirSink) -> Result {
        let inode = inode_of(f)?;
        let parent =
            f.path().and_then(|p| p.dentry.parent()).and_then(|d| d.inode().map(|i| i.ino)).unwrap_or(inode.ino);
        for (at, name, ino) in [(0, &b"."[..], inode.ino), (1, &b".."[..], parent)] {
            if *pos == at {
                if !sink.emit(name, ino, FileKind::Directory.dirent_type(), at + 1) {
                    return Ok(());
                }
                *pos = at + 1;
            }
        }
        (self.list)(f, pos, sink)
    }

    fn fsync(&self, _f: &File, _data_only: bool) -> Result {
        if self.syncs { Ok(()) } else { Err(Errno::EINVAL) }
    }
}
