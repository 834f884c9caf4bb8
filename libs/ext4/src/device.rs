//! Where a file system lies: a block device, an image file, memory.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, FileTypeExt};

use parking_lot::RwLock;

/// A device of bytes with a volatile cache.
///
/// What was written is durable once a later [`flush`](BlockDevice::flush) has returned, and in no particular order before.
/// Offsets and lengths need not be multiples of anything. All methods may be called from several threads at once.
pub trait BlockDevice: Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Whether it refuses writes.
    fn read_only(&self) -> bool {
        false
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// What the device reports; reading beyond its end is an error.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes `buf` at `offset`.
    ///
    /// # Errors
    /// What the device reports; writing beyond its end is an error.
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Writes several pieces one after the other from `offset` on.
    ///
    /// # Errors
    /// As [`write_at`](BlockDevice::write_at).
    fn write_vectored_at(&self, mut offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        for piece in pieces {
            self.write_at(offset, piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Makes everything that was written before durable.
    ///
    /// # Errors
    /// What the device reports.
    fn flush(&self) -> io::Result<()>;

    /// Says that a range will be read soon.
    fn read_ahead(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }
}

/// The most pieces that one `pwritev(2)` takes (`UIO_MAXIOV`).
const IOV_MAX: usize = 1024;

/// A block device node or an image file.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    size: u64,
    read_only: bool,
}

impl FileDevice {
    /// Takes an open file.
    ///
    /// # Errors
    /// The file is neither a regular file nor a block device, or its size cannot be found out.
    pub fn new(file: File, read_only: bool) -> io::Result<FileDevice> {
        let metadata = file.metadata()?;
        let size = if metadata.file_type().is_block_device() {
            use std::io::{Seek, SeekFrom};
            (&file).seek(SeekFrom::End(0))?
        } else if metadata.is_file() {
            metadata.len()
        } else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a block device nor a file"));
        };
        Ok(FileDevice { file, size, read_only })
    }
}

impl BlockDevice for FileDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        // A file would grow where a device says no.
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.file.write_all_at(buf, offset)
    }

    fn write_vectored_at(&self, mut offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        for pieces in pieces.chunks(IOV_MAX) {
            let total: usize = pieces.iter().map(|piece| piece.len()).sum();
            let mut done = rustix::io::pwritev(&self.file, pieces, offset)?;
            if done < total {
                // A short write: the rest piece by piece.
                let mut at = offset + done as u64;
                for piece in pieces {
                    if done >= piece.len() {
                        done -= piece.len();
                        continue;
                    }
                    self.write_at(at, &piece[done..])?;
                    at += (piece.len() - done) as u64;
                    done = 0;
                }
            }
            offset += total as u64;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn read_ahead(&self, offset: u64, len: u64) {
        let len = std::num::NonZeroU64::new(len);
        let _ = rustix::fs::fadvise(&self.file, offset, len, rustix::fs::Advice::WillNeed);
    }
}

/// A device in memory, for tests and tools.
#[derive(Debug)]
pub struct MemDevice {
    bytes: RwLock<Vec<u8>>,
}

impl MemDevice {
    /// A device with these contents.
    pub fn new(bytes: Vec<u8>) -> MemDevice {
        MemDevice { bytes: RwLock::new(bytes) }
    }

    /// Its contents.
    pub fn contents(&self) -> Vec<u8> {
        self.bytes.read().clone()
    }
}

impl BlockDevice for MemDevice {
    fn size(&self) -> u64 {
        self.bytes.read().len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.read();
        let from = usize::try_from(offset).ok().and_then(|at| bytes.get(at..at.checked_add(buf.len())?));
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes.write();
        let to = usize::try_from(offset).ok().and_then(|at| bytes.get_mut(at..at.checked_add(buf.len())?));
        to.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(buf);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
