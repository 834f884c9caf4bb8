//! [`FuseDir`]: an open directory.
//!
//! References: readdir(3), Linux `fs/fuse/readdir.c` (`fuse_readdir_uncached`).

use alloc::sync::Arc;

use fuse_abi::{Dirent, FsyncIn, NAME_MAX, Opcode, ReadIn};
use linux_uapi::zerocopy::FromBytes;

use super::file::{ask_ioctl, node_of};
use super::handle::Handle;
use crate::fs::file::seek_from;
use crate::fs::{DirSink, File, FileOps, Sink};
use crate::scheme::{Message, ReplySize};
use crate::{Errno, Result};

/// The bytes of entries that are asked for at a time.
const READDIR_SIZE: usize = 16 << 10;

/// See the module documentation.
pub struct FuseDir {
    handle: Arc<Handle>,
}

impl FuseDir {
    /// The open directory of `handle`.
    pub fn new(handle: Arc<Handle>) -> FuseDir {
        FuseDir { handle }
    }
}

/// The first entry of `bytes`, its name, and what follows; `None` at the end or for a torn entry.
fn next_entry(bytes: &[u8]) -> Result<Option<(Dirent, &[u8], &[u8])>> {
    let Ok((entry, rest)) = Dirent::read_from_prefix(bytes) else { return Ok(None) };
    let len = entry.namelen as usize;
    if len == 0 || len > NAME_MAX {
        return Err(Errno::EIO);
    }
    let padded = (size_of::<Dirent>() + len).next_multiple_of(8) - size_of::<Dirent>();
    if padded > rest.len() {
        return Ok(None);
    }
    let name = &rest[..len];
    if name.contains(&b'/') || name.contains(&0) {
        return Err(Errno::EIO);
    }
    Ok(Some((entry, name, &rest[padded..])))
}

impl FileOps for FuseDir {
    fn read(&self, _f: &File, _dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        Err(Errno::EISDIR)
    }

    fn is_stream(&self) -> bool {
        false
    }

    fn can_poll(&self) -> bool {
        false
    }

    fn seek(&self, f: &File, offset: i64, whence: u32, pos: u64) -> Result<u64> {
        seek_from(offset, whence, pos, Some(f.inode().map_or(0, |inode| inode.len())))
    }

    fn readdir(&self, f: &File, pos: &mut u64, sink: &mut dyn DirSink) -> Result {
        let (_, node) = node_of(f)?;
        let body = ReadIn { fh: self.handle.fh, offset: *pos, size: READDIR_SIZE as u32, ..ReadIn::default() };
        let message = Message::new(Opcode::Readdir, node.id()).with(&body);
        let reply = node.call(message, ReplySize::up_to(READDIR_SIZE))?;
        let mut rest = reply.body();
        while let Some((entry, name, later)) = next_entry(rest)? {
            let kind = u8::try_from(entry.kind & 15).unwrap_or(0);
            if !sink.emit(name, entry.ino, kind, entry.off) {
                break;
            }
            *pos = entry.off;
            rest = later;
        }
        Ok(())
    }

    fn fsync(&self, f: &File, data_only: bool) -> Result {
        let (_, node) = node_of(f)?;
        let body = FsyncIn { fh: self.handle.fh, fsync_flags: data_only.into(), padding: 0 };
        node.client()
            .try_call(Opcode::Fsyncdir, ReplySize::NONE, || Message::new(Opcode::Fsyncdir, node.id()).with(&body))?;
        Ok(())
    }

    fn ioctl(&self, f: &File, cmd: u32, arg: usize) -> Result<i64> {
        ask_ioctl(f, &self.handle, cmd, arg, true)
    }
}
