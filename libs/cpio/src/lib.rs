//! Reads the cpio archives that boot archives are made of: format *newc* (`070701`) and its checksummed twin (`070702`),
//! several archives one behind the other, padding of zeroes between and behind them.
//!
//! [`Reader`] walks over anything that can give bytes at an offset ([`Input`]), so that the kernel need not have the archive
//! in one slice. It yields headers with the place of the contents; it copies only names. Every length is checked against
//! the end of the input, so malformed input gives an [`Error`] with its offset, never a panic.
//!
//! Reference: `Documentation/driver-api/early-userspace/buffer-format.rst`, cpio(5).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::{vec, vec::Vec};
use core::fmt;

/// Where the bytes come from.
pub trait Input {
    /// Number of bytes.
    fn len(&self) -> u64;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `buf` from `offset`; the number of bytes, fewer only at the end.
    fn read(&self, offset: u64, buf: &mut [u8]) -> usize;
}

impl Input for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(<[u8]>::len(self));
        let n = buf.len().min(<[u8]>::len(self) - start);
        buf[..n].copy_from_slice(&self[start..start + n]);
        n
    }
}

/// Bytes of a header.
const HEADER: usize = 110;
/// The longest name that is taken, with its NUL (`PATH_MAX`).
const NAME_MAX: u32 = 4096;
/// The name of an archive's last entry.
const TRAILER: &[u8] = b"TRAILER!!!";

/// One file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Inode number in the archive: entries with the same one and `nlink > 1` are one file.
    pub ino: u32,
    /// Kind and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links.
    pub nlink: u32,
    /// Seconds since 1970.
    pub mtime: u32,
    /// Device that the file was on.
    pub dev: (u32, u32),
    /// Device number of a device node: major, minor.
    pub rdev: (u32, u32),
    /// The path, without a leading `/` or `./`; empty for the root directory.
    pub name: Vec<u8>,
    /// Where the contents start in the input.
    pub data: u64,
    /// Bytes of contents.
    pub size: u64,
    /// Which archive of the input this is in, from 0.
    pub archive: u32,
}

/// What is wrong with the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no `070701` where a header has to be.
    Magic {
        /// Where in the input.
        offset: u64,
    },
    /// A compressed archive: its name.
    Compressed(&'static str),
    /// A field of a header is not hexadecimal.
    Number {
        /// Where in the input.
        offset: u64,
    },
    /// A name is empty, too long or not ended by a NUL.
    Name {
        /// Where in the input.
        offset: u64,
    },
    /// A name has `..` in it.
    Escapes {
        /// Where in the input.
        offset: u64,
    },
    /// The input ends inside an entry.
    Truncated {
        /// Where in the input.
        offset: u64,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Magic { offset } => write!(f, "no cpio header (newc) at byte {offset}"),
            Error::Compressed(kind) => write!(f, "it is compressed with {kind}; it has to be a plain cpio archive"),
            Error::Number { offset } => write!(f, "a number in the header at byte {offset} is not hexadecimal"),
            Error::Name { offset } => write!(f, "the name in the entry at byte {offset} is not valid"),
            Error::Escapes { offset } => write!(f, "the name in the entry at byte {offset} has \"..\" in it"),
            Error::Truncated { offset } => write!(f, "it ends inside the entry at byte {offset}"),
        }
    }
}

impl core::error::Error for Error {}

/// Walks over the entries of all archives of an input.
pub struct Reader<'a, I: Input + ?Sized> {
    input: &'a I,
    at: u64,
    archive: u32,
    failed: bool,
}

/// The name of a compression whose magic number `head` has.
fn compression(head: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&[u8], &str); 6] = [
        (b"\x1f\x8b", "gzip"),
        (b"\xfd7zXZ", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh", "bzip2"),
        (b"\x02\x21\x4c\x18", "lz4"),
        (b"\x89LZO", "lzo"),
    ];
    MAGICS.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, name)| *name)
}

fn hex(field: &[u8]) -> Option<u32> {
    let mut value = 0u32;
    for digit in field {
        value = value << 4 | char::from(*digit).to_digit(16)?;
    }
    Some(value)
}

fn pad4(at: u64) -> u64 {
    at.next_multiple_of(4)
}

impl<'a, I: Input + ?Sized> Reader<'a, I> {
    /// Starts at the beginning of `input`.
    pub fn new(input: &'a I) -> Self {
        Self { input, at: 0, archive: 0, failed: false }
    }

    /// How far the walk has come.
    pub fn offset(&self) -> u64 {
        self.at
    }

    /// Skips zero bytes between archives; false at the end of the input.
    fn skip_zeros(&mut self) -> bool {
        let mut buf = [0u8; 512];
        loop {
            let n = self.input.read(self.at, &mut buf);
            if n == 0 {
                return false;
            }
            match buf[..n].iter().position(|b| *b != 0) {
                Some(i) => {
                    self.at += i as u64;
                    return true;
                }
                None => self.at += n as u64,
            }
        }
    }

    fn entry(&mut self) -> Result<Option<Entry>, Error> {
        loop {
            if !self.skip_zeros() {
                return Ok(None);
            }
            let start = self.at;
            let mut head = [0u8; HEADER];
            let n = self.input.read(start, &mut head);
            if !head.starts_with(b"070701") && !head.starts_with(b"070702") {
                return Err(compression(&head[..n]).map_or(Error::Magic { offset: start }, Error::Compressed));
            }
            if n < HEADER {
                return Err(Error::Truncated { offset: start });
            }
            let mut fields = [0u32; 13];
            for (i, field) in fields.iter_mut().enumerate() {
                let from = 6 + i * 8;
                *field = hex(&head[from..from + 8]).ok_or(Error::Number { offset: start })?;
            }
            let [ino, mode, uid, gid, nlink, mtime, size, dev_major, dev_minor, rdev_major, rdev_minor, name_len, _] =
                fields;
            if name_len == 0 || name_len > NAME_MAX {
                return Err(Error::Name { offset: start });
            }
            let mut name = vec![0; name_len as usize];
            let name_at = start + HEADER as u64;
            if self.input.read(name_at, &mut name) < name.len() {
                return Err(Error::Truncated { offset: start });
            }
            // More NULs may follow the one that ends the name: that is how a writer aligns the data behind it.
            let end = name.iter().position(|byte| *byte == 0).ok_or(Error::Name { offset: start })?;
            if name[end..].iter().any(|byte| *byte != 0) {
                return Err(Error::Name { offset: start });
            }
            name.truncate(end);
            // Headers are aligned to the archive's start, which the padding between archives keeps a multiple of four.
            let data = pad4(name_at + u64::from(name_len));
            let end = data + u64::from(size);
            if end > self.input.len() {
                return Err(Error::Truncated { offset: start });
            }
            self.at = pad4(end).min(self.input.len());
            if name == TRAILER {
                self.archive += 1;
                continue;
            }
            if name.split(|b| *b == b'/').any(|part| part == b"..") {
                return Err(Error::Escapes { offset: start });
            }
            let mut clean = Vec::with_capacity(name.len());
            for part in name.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".") {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(part);
            }
            return Ok(Some(Entry {
                ino,
                mode,
                uid,
                gid,
                nlink,
                mtime,
                dev: (dev_major, dev_minor),
                rdev: (rdev_major, rdev_minor),
                name: clean,
                data,
                size: u64::from(size),
                archive: self.archive,
            }));
        }
    }
}

impl<I: Input + ?Sized> Iterator for Reader<'_, I> {
    type Item = Result<Entry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let entry = self.entry();
        self.failed = entry.is_err();
        entry.transpose()
    }
}

#[cfg(test)]
mod tests;
