//! [`BlockFile`]: an open block device node.
//!
//! References: Linux `block/fops.c`, `block/bdev.c`.

use alloc::sync::Arc;

use linux_uapi::raw::general as uapi;
use ursa_hal::PAGE_SIZE;

use super::{Claim, Op, Volume, ioctl};
use crate::fs::file::seek_object;
use crate::fs::{File, FileOps, Sink, Source};
use crate::mm::{MapBacking, MapRequest, MemoryObject, writeback};
use crate::{Errno, Result};

/// See the module documentation.
pub struct BlockFile {
    volume: Arc<Volume>,
    _claim: Option<Claim>,
}

impl BlockFile {
    /// Opens `volume` with `O_*` flags; `O_EXCL` claims it.
    ///
    /// # Errors
    /// `EBUSY` for one that is claimed, `ENXIO` for one that is gone.
    pub fn open(volume: Arc<Volume>, flags: u32) -> Result<Arc<dyn FileOps>> {
        if volume.disk.is_gone() {
            return Err(Errno::ENXIO);
        }
        let claim = if flags & uapi::O_EXCL != 0 { Some(Claim::new(&volume)?) } else { None };
        volume.opened();
        Ok(Arc::new(BlockFile { volume, _claim: claim }))
    }

    /// What it is a file of.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    fn check_alive(&self) -> Result {
        if self.volume.disk.is_gone() { Err(Errno::ENODEV) } else { Ok(()) }
    }
}

impl Drop for BlockFile {
    fn drop(&mut self) {
        self.volume.closed();
    }
}

impl FileOps for BlockFile {
    fn is_stream(&self) -> bool {
        false
    }

    fn can_poll(&self) -> bool {
        false
    }

    fn read(&self, f: &File, dst: &mut Sink<'_>, pos: u64) -> Result<usize> {
        self.check_alive()?;
        if f.flags() & uapi::O_DIRECT != 0 {
            return self.volume.read_direct(pos, dst);
        }
        self.volume.object().read(pos, dst)
    }

    fn write(&self, f: &File, src: &mut Source<'_>, pos: u64) -> Result<usize> {
        self.check_alive()?;
        let volume = &self.volume;
        if volume.is_read_only() {
            return Err(Errno::EPERM);
        }
        if src.remaining() == 0 {
            return Ok(0);
        }
        let room = volume.len().checked_sub(pos).filter(|room| *room > 0).ok_or(Errno::ENOSPC)?;
        src.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        let done = {
            let _writing = volume.writing.lock();
            if f.flags() & uapi::O_DIRECT != 0 {
                volume.write_direct(pos, src)?
            } else {
                volume.object().write(pos, src)?
            }
        };
        writeback::balance(volume.object());
        if f.flags() & uapi::O_DSYNC != 0 {
            let page = PAGE_SIZE as u64;
            volume.object().sync(pos / page, (pos + done as u64).div_ceil(page))?;
            volume.flush()?;
        }
        Ok(done)
    }

    fn append(&self, f: &File, src: &mut Source<'_>) -> Result<(u64, usize)> {
        // A device has no end to append at: it is full.
        self.write(f, src, self.volume.len()).map(|n| (self.volume.len(), n))
    }

    fn seek(&self, _f: &File, offset: i64, whence: u32, pos: u64) -> Result<u64> {
        let to = seek_object(self.volume.object(), offset, whence, pos)?;
        // Linux's `fixed_size_llseek`.
        if to > self.volume.len() { Err(Errno::EINVAL) } else { Ok(to) }
    }

    fn mmap(&self, _f: &File, req: &mut MapRequest) -> Result {
        self.check_alive()?;
        req.backing = MapBacking::Object { object: self.volume.object().clone(), offset: req.offset, file: None };
        Ok(())
    }

    fn cache(&self, _f: &File) -> Option<Arc<MemoryObject>> {
        Some(self.volume.object().clone())
    }

    fn fsync(&self, _f: &File, _data_only: bool) -> Result {
        self.check_alive()?;
        self.volume.sync()
    }

    fn fallocate(&self, f: &File, mode: u32, offset: u64, len: u64) -> Result {
        self.check_alive()?;
        f.check_write()?;
        let end = offset.checked_add(len).ok_or(Errno::EINVAL)?;
        let size = self.volume.len();
        if offset >= size || end > size && mode & uapi::FALLOC_FL_KEEP_SIZE == 0 {
            return Err(Errno::EINVAL);
        }
        let len = end.min(size) - offset;
        if !(offset | len).is_multiple_of(u64::from(self.volume.disk.limits.logical_block)) {
            return Err(Errno::EINVAL);
        }
        let zero = uapi::FALLOC_FL_ZERO_RANGE;
        let punch = uapi::FALLOC_FL_PUNCH_HOLE | uapi::FALLOC_FL_KEEP_SIZE;
        match mode {
            mode if mode == zero || mode == zero | uapi::FALLOC_FL_KEEP_SIZE => {
                self.volume.clear(Op::WriteZeroes { unmap: false }, offset, len)
            }
            mode if mode == punch && self.volume.disk.limits.max_write_zeroes > 0 => {
                self.volume.clear(Op::WriteZeroes { unmap: true }, offset, len)
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    fn ioctl(&self, f: &File, cmd: u32, arg: usize) -> Result<i64> {
        self.check_alive()?;
        ioctl::ioctl(&self.volume, f, cmd, arg)
    }
}
