//! Extended attributes, behind the inode and in a block of their own.
//!
//! A change reads all attributes of a file, and writes all of them again: behind the inode as far as they fit, the rest in
//! the block. Attributes are few.

use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::cache::Buf;
use crate::csum::{BlockSum, crc32c};
use crate::disk::inode::{GOOD_OLD_SIZE, Time};
use crate::disk::xattr::{CHECKSUM_OFFSET, Entry, Header, MAGIC, PREFIXES};
use crate::disk::{le16, le32, put32};
use crate::error::{Error, Result};
use crate::fs::{Caller, Fs};
use crate::inode::{Inode, InodeData};
use crate::journal::Handle;

/// The largest value that Linux passes on (`XATTR_SIZE_MAX`); a block ends sooner.
const VALUE_MAX: usize = 65536;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Attr {
    index: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

/// Whether an attribute must, or must not, be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Either.
    Any,
    /// `XATTR_CREATE`.
    Refused,
    /// `XATTR_REPLACE`.
    Required,
}

/// Splits a name into the number of its prefix and the rest.
fn split(name: &[u8]) -> Result<(u8, &[u8])> {
    let (index, rest) = PREFIXES
        .iter()
        .find_map(|(index, prefix)| name.strip_prefix(*prefix).map(|rest| (*index, rest)))
        .ok_or(Errno::OPNOTSUPP)?;
    match index {
        // ACLs and what else the system keeps are not supported.
        1 | 4 | 6 if rest.is_empty() => Err(Errno::INVAL.into()),
        1 | 4 | 6 if rest.len() > 255 => Err(Errno::RANGE.into()),
        1 | 4 | 6 => Ok((index, rest)),
        _ => Err(Errno::OPNOTSUPP.into()),
    }
}

fn pad(len: usize) -> usize {
    (len + 3) & !3
}

impl Attr {
    fn entry_len(&self) -> usize {
        size_of::<Entry>() + pad(self.name.len())
    }

    fn len(&self) -> usize {
        self.entry_len() + pad(self.value.len())
    }

    /// `e_hash`: of name and value.
    fn hash(&self) -> u32 {
        let mut hash = 0u32;
        for &byte in &self.name {
            hash = hash.rotate_left(5) ^ u32::from(byte);
        }
        for word in self.value.chunks(4) {
            let mut le = [0; 4];
            le[..word.len()].copy_from_slice(word);
            hash = hash.rotate_left(16) ^ u32::from_le_bytes(le);
        }
        hash
    }

    /// The order in a block: by prefix, length of name, name.
    fn key(&self) -> (u8, usize, &[u8]) {
        (self.index, self.name.len(), &self.name)
    }
}

/// Reads entries from `first` on; their values' offsets count from `base`.
fn parse(bytes: &[u8], first: usize, base: usize, where_: u64) -> Result<Vec<Attr>> {
    let bad = || Error::Corrupt("extended attributes", where_);
    let mut attrs = Vec::new();
    let mut at = first;
    while at + 4 <= bytes.len() && le32(bytes, at) != 0 {
        let (entry, rest) = Entry::ref_from_prefix(&bytes[at..]).map_err(|_| bad())?;
        let name = rest.get(..entry.name_len.into()).ok_or_else(bad)?;
        let size = entry.value_size.get() as usize;
        if entry.value_inum.get() != 0 || size > VALUE_MAX {
            return Err(bad());
        }
        let from = base + usize::from(entry.value_offs.get());
        let value = if size == 0 { &[][..] } else { bytes.get(from..from + size).ok_or_else(bad)? };
        attrs.push(Attr { index: entry.name_index, name: name.to_vec(), value: value.to_vec() });
        at += size_of::<Entry>() + pad(name.len());
    }
    Ok(attrs)
}

/// Writes entries from `first` on and values from the end; their offsets count from `base`.
fn store(bytes: &mut [u8], first: usize, base: usize, attrs: &[Attr], with_hash: bool) {
    bytes[first..].fill(0);
    let mut at = first;
    let mut end = bytes.len();
    for attr in attrs {
        let mut offset = 0;
        if !attr.value.is_empty() {
            end -= pad(attr.value.len());
            bytes[end..end + attr.value.len()].copy_from_slice(&attr.value);
            offset = end - base;
        }
        let entry = Entry {
            name_len: attr.name.len() as u8,
            name_index: attr.index,
            value_offs: (offset as u16).into(),
            value_inum: 0.into(),
            value_size: (attr.value.len() as u32).into(),
            hash: if with_hash { attr.hash() } else { 0 }.into(),
        };
        bytes[at..at + size_of::<Entry>()].copy_from_slice(entry.as_bytes());
        let name = at + size_of::<Entry>();
        bytes[name..name + attr.name.len()].copy_from_slice(&attr.name);
        at += attr.entry_len();
    }
}

impl Fs {
    fn block_sum(&self, block: u64, bytes: &[u8]) -> u32 {
        let sum = crc32c(self.geo.csum_seed, &block.to_le_bytes());
        let sum = crc32c(crc32c(sum, &bytes[..CHECKSUM_OFFSET]), &[0; 4]);
        crc32c(sum, &bytes[CHECKSUM_OFFSET + 4..])
    }

    fn xattr_buf(&self, block: u64) -> Result<Arc<Buf>> {
        if !self.geo.is_inside(block, 1) {
            return Err(Error::Corrupt("attributes' block", block));
        }
        let buf = self.cache.get(block, &self.journal, |bytes| {
            if self.geo.metadata_csum() && le32(bytes, CHECKSUM_OFFSET) != self.block_sum(block, bytes) {
                return Err(Error::Corrupt("attributes' checksum", block));
            }
            Ok(BlockSum::None)
        })?;
        let bytes = buf.read();
        if le32(&bytes, 0) != MAGIC || le32(&bytes, 8) != 1 {
            return Err(Error::Corrupt("attributes' header", block));
        }
        drop(bytes);
        Ok(buf)
    }

    /// Where attributes behind the inode begin, if there is room for any.
    fn inline_area(&self, data: &InodeData) -> Option<usize> {
        if self.geo.inode_size <= GOOD_OLD_SIZE {
            return None;
        }
        let start = GOOD_OLD_SIZE + usize::from(le16(&data.raw, GOOD_OLD_SIZE));
        (start + 8 <= self.geo.inode_size && start >= GOOD_OLD_SIZE + 4).then_some(start)
    }

    fn inline_attrs(&self, data: &InodeData) -> Result<Vec<Attr>> {
        match self.inline_area(data) {
            Some(start) if le32(&data.raw, start) == MAGIC => {
                // Values' offsets count from the first entry.
                parse(&data.raw[..self.geo.inode_size], start + 4, start + 4, data.ino.into())
            }
            _ => Ok(Vec::new()),
        }
    }

    fn block_attrs(&self, data: &InodeData) -> Result<Vec<Attr>> {
        match data.xattr_block() {
            0 => Ok(Vec::new()),
            block => parse(&self.xattr_buf(block)?.read(), size_of::<Header>(), 0, block),
        }
    }

    /// The value of an attribute.
    ///
    /// # Errors
    /// `ENODATA`, `EOPNOTSUPP`.
    pub fn xattr(&self, inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
        let (index, name) = split(name)?;
        let data = inode.lock.read();
        let is_it = |attr: &Attr| attr.index == index && attr.name == name;
        let found = match self.noticing(self.inline_attrs(&data))?.into_iter().find(is_it) {
            Some(attr) => Some(attr),
            None => self.noticing(self.block_attrs(&data))?.into_iter().find(is_it),
        };
        Ok(found.ok_or(Errno::NODATA)?.value)
    }

    /// The names of all attributes, each ended by NUL.
    ///
    /// # Errors
    /// What the device reports, [`Error::Corrupt`].
    pub fn xattr_names(&self, inode: &Inode) -> Result<Vec<u8>> {
        let data = inode.lock.read();
        let mut attrs = self.noticing(self.inline_attrs(&data))?;
        attrs.extend(self.noticing(self.block_attrs(&data))?);
        let mut names = Vec::new();
        for attr in attrs {
            if let Some((_, prefix)) = PREFIXES.iter().find(|(index, _)| *index == attr.index) {
                names.extend_from_slice(prefix);
                names.extend_from_slice(&attr.name);
                names.push(0);
            }
        }
        Ok(names)
    }

    /// Sets an attribute, or removes it (`None`).
    ///
    /// # Errors
    /// `EEXIST`, `ENODATA`, `ENOSPC` when inode and block cannot hold them all, `EOPNOTSUPP`.
    pub fn set_xattr(
        &self,
        inode: &Inode,
        name: &[u8],
        value: Option<&[u8]>,
        existing: Existing,
        caller: Caller,
    ) -> Result<()> {
        let (index, name) = split(name)?;
        if value.is_some_and(|value| value.len() > VALUE_MAX) {
            return Err(Errno::TOOBIG.into());
        }
        let mut data = inode.lock.write();
        let inline = self.noticing(self.inline_attrs(&data))?;
        let mut attrs = inline;
        attrs.extend(self.noticing(self.block_attrs(&data))?);
        let before = attrs.iter().position(|attr| attr.index == index && attr.name == name);
        match (before, existing, value) {
            (Some(_), Existing::Refused, Some(_)) => return Err(Errno::EXIST.into()),
            (None, Existing::Required, _) | (None, _, None) => return Err(Errno::NODATA.into()),
            _ => {}
        }
        if let Some(at) = before {
            if value == Some(&attrs[at].value) {
                return Ok(());
            }
            attrs.remove(at);
        }
        if let Some(value) = value {
            attrs.push(Attr { index, name: name.to_vec(), value: value.to_vec() });
        }
        // Small ones first: most end up behind the inode.
        attrs.sort_by_key(Attr::len);
        let room = self.inline_area(&data).map_or(0, |start| self.geo.inode_size - start - 8);
        let mut used = 0;
        let split = attrs.iter().position(|attr| {
            used += attr.len();
            used > room
        });
        let mut in_block = attrs.split_off(split.unwrap_or(attrs.len()));
        in_block.sort_by(|a, b| a.key().cmp(&b.key()));
        let need: usize = in_block.iter().map(Attr::len).sum();
        if need + size_of::<Header>() + 4 > self.geo.block_size {
            return Err(Errno::NOSPC.into());
        }
        let mut budget = self.budget(u32::from(!in_block.is_empty()), self.is_privileged(caller))?;
        let result = (|| {
            let handle = self.begin(10)?;
            if let Some(start) = self.inline_area(&data) {
                let end = self.geo.inode_size;
                put32(&mut data.raw, start, if attrs.is_empty() { 0 } else { MAGIC });
                store(&mut data.raw[..end], start + 4, start + 4, &attrs, false);
            }
            let shared = match data.xattr_block() {
                0 => true,
                block => le32(&self.xattr_buf(block)?.read(), 4) != 1,
            };
            if in_block.is_empty() || shared {
                self.drop_xattr_block(&handle, &mut data)?;
            }
            if !in_block.is_empty() {
                let buf = match data.xattr_block() {
                    0 => {
                        let goal = self.goal_for_meta(&data);
                        let block = self.take_meta(&handle, &mut budget, goal)?;
                        data.set_xattr_block(block);
                        data.add_blocks(1, &self.geo);
                        self.cache.get_new(block, BlockSum::None)
                    }
                    block => self.xattr_buf(block)?,
                };
                self.store_block(&handle, &buf, &in_block);
            }
            data.set_ctime(Time::now());
            self.write_inode(&handle, &mut data)
        })();
        self.noticing(result)
    }

    fn store_block(&self, handle: &Handle<'_>, buf: &Arc<Buf>, attrs: &[Attr]) {
        let mut bytes = handle.modify(buf);
        store(&mut bytes, size_of::<Header>(), 0, attrs, true);
        let hash = attrs.iter().fold(0u32, |hash, attr| hash.rotate_left(16) ^ attr.hash());
        let header = Header {
            magic: MAGIC.into(),
            refcount: 1.into(),
            blocks: 1.into(),
            hash: hash.into(),
            checksum: 0.into(),
            reserved: [0.into(); 3],
        };
        bytes[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        if self.geo.metadata_csum() {
            let sum = self.block_sum(buf.block, &bytes);
            put32(&mut bytes, CHECKSUM_OFFSET, sum);
        }
    }

    pub(crate) fn goal_for_meta(&self, data: &InodeData) -> u64 {
        self.geo.group_start(self.geo.group_of_inode(data.ino).0)
    }

    /// Gives up an inode's block of attributes, which others may share. The caller writes the inode.
    pub(crate) fn drop_xattr_block(&self, handle: &Handle<'_>, data: &mut InodeData) -> Result<()> {
        let block = data.xattr_block();
        if block == 0 {
            return Ok(());
        }
        let buf = self.xattr_buf(block)?;
        let shared = {
            let mut bytes = handle.modify(&buf);
            let count = le32(&bytes, 4);
            if count > 1 {
                put32(&mut bytes, 4, count - 1);
                if self.geo.metadata_csum() {
                    let sum = self.block_sum(block, &bytes);
                    put32(&mut bytes, CHECKSUM_OFFSET, sum);
                }
            }
            count > 1
        };
        if !shared {
            self.free_meta(handle, block)?;
        }
        data.set_xattr_block(0);
        data.add_blocks(-1, &self.geo);
        Ok(())
    }
}
