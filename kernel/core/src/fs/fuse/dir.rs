//! [`FuseDir`]: an open directory.
//!
//! Where the server allows it (`FOPEN_CACHE_DIR`, or no `OPENDIR` at all) the names that were read from the start on are kept
//! as long as the file is open and nothing changes in the directory, and all of them, once the end was reached, with the
//! inode ([`Listing`]). With `DO_READDIRPLUS` the first names of a directory, and all where names are being looked up,
//! come with their inodes, which saves the look-ups that mostly follow.
//!
//! References: readdir(3), Linux `fs/fuse/readdir.c`.

use alloc::sync::Arc;
use alloc::vec::Vec;

use fuse_abi::{Dirent, EntryOut, FsyncIn, InitFlags, NAME_MAX, Opcode, OpenFlags, ReadIn, split_dirent};
use linux_uapi::zerocopy::{FromBytes, IntoBytes};

use super::file::{ask_ioctl, node_of};
use super::handle::Handle;
use super::node::Node;
use crate::fs::dentry::hash_name;
use crate::fs::file::seek_from;
use crate::fs::inode::Inode;
use crate::fs::path::note_child;
use crate::fs::{DirSink, File, FileOps};
use crate::scheme::{CallOptions, Message, OnKill, ReplySize};
use crate::wait::Mutex;
use crate::{Errno, Result};

/// The bytes of entries that are asked for at a time.
const READDIR_SIZE: usize = 16 << 10;
/// The same with inodes.
const READDIRPLUS_SIZE: usize = 64 << 10;
/// The most bytes of entries of one directory that are kept.
const LISTING_MAX: usize = 512 << 10;

/// All names of a directory: entries as `READDIR` answers them, all whole.
pub struct Listing(Vec<u8>);

/// Entries from the start of the directory on.
enum Entries {
    /// As far as this file has read.
    Own(Vec<u8>),
    /// All.
    All(Arc<Listing>),
}

/// What an open directory has been told.
struct Reading {
    /// [`Node::changes`] when it began.
    changes: u64,
    entries: Entries,
    /// A position (an entry's `off`), and where in the entries it goes on there.
    at: (u64, usize),
}

impl Reading {
    fn begin(node: &Node) -> Reading {
        let changes = node.changes();
        let entries = node.listing().map_or_else(|| Entries::Own(Vec::new()), Entries::All);
        Reading { changes, entries, at: (0, 0) }
    }

    fn bytes(&self) -> &[u8] {
        match &self.entries {
            Entries::Own(bytes) => bytes,
            Entries::All(listing) => &listing.0,
        }
    }

    /// Where it goes on at position `pos`, if that is known.
    fn find(&self, pos: u64) -> Option<usize> {
        if self.at.0 == pos {
            return Some(self.at.1);
        }
        if pos == 0 {
            return Some(0);
        }
        let (all, mut rest) = (self.bytes(), self.bytes());
        loop {
            let (entry, _, later) = next_entry(rest).ok()??;
            rest = later;
            if entry.off == pos {
                return Some(all.len() - rest.len());
            }
        }
    }

    /// Passes what is known from `pos` on to `sink`. `None`: the position is not known. False: the sink is full.
    fn emit(&mut self, pos: &mut u64, sink: &mut dyn DirSink) -> Result<Option<bool>> {
        let Some(start) = self.find(*pos) else { return Ok(None) };
        let (rest, whole) = emit(&self.bytes()[start..], pos, sink)?;
        self.at = (*pos, self.bytes().len() - rest);
        Ok(Some(whole))
    }
}

/// Passes entries to `sink`; how many bytes of them are left, and whether all whole ones were taken.
fn emit(bytes: &[u8], pos: &mut u64, sink: &mut dyn DirSink) -> Result<(usize, bool)> {
    let mut rest = bytes;
    while let Some((entry, name, later)) = next_entry(rest)? {
        let kind = u8::try_from(entry.kind & 15).unwrap_or(0);
        if !sink.emit(name, entry.ino, kind, entry.off) {
            return Ok((rest.len(), false));
        }
        *pos = entry.off;
        rest = later;
    }
    Ok((rest.len(), true))
}

/// The whole entries at the front of `bytes`.
fn whole_entries(bytes: &[u8]) -> Result<&[u8]> {
    let mut rest = bytes;
    while let Some((_, _, later)) = next_entry(rest)? {
        rest = later;
    }
    Ok(&bytes[..bytes.len() - rest.len()])
}

/// See the module documentation.
pub struct FuseDir {
    handle: Arc<Handle>,
    reading: Mutex<Option<Reading>>,
}

impl FuseDir {
    /// The open directory of `handle`.
    pub fn new(handle: Arc<Handle>) -> FuseDir {
        FuseDir { handle, reading: Mutex::new(None) }
    }

    /// Asks for the entries from `pos` on: whole ones, none at the end. The directory's lock is held.
    fn ask(&self, f: &File, inode: &Arc<Inode>, node: &Node, pos: u64) -> Result<Vec<u8>> {
        let flags = node.client().flags();
        let plus = flags.contains(InitFlags::DO_READDIRPLUS)
            && !node.client().fs.lacks(Opcode::Readdirplus)
            && (!flags.contains(InitFlags::READDIRPLUS_AUTO) || node.take_looked_up() || pos == 0);
        let (opcode, size) =
            if plus { (Opcode::Readdirplus, READDIRPLUS_SIZE) } else { (Opcode::Readdir, READDIR_SIZE) };
        let version = node.client().fs.version();
        let body = ReadIn { fh: self.handle.fh, offset: pos, size: size as u32, ..ReadIn::default() };
        // The look-ups in an answer are given back even if the caller has been killed.
        let options = CallOptions { on_kill: OnKill::KeepSent, ..CallOptions::new(ReplySize::up_to(size)) };
        let reply = match node.call_with(Message::new(opcode, node.id()).with(&body), options) {
            Err(Errno::ENOSYS) if plus => {
                node.client().fs.set_lacks(opcode);
                return self.ask(f, inode, node, pos);
            }
            other => other?,
        };
        if plus { take_plus(f, inode, node, reply.body(), version) } else { Ok(whole_entries(reply.body())?.to_vec()) }
    }
}

/// Takes the inodes of a `READDIRPLUS` into the caches; the plain entries.
fn take_plus(f: &File, inode: &Arc<Inode>, node: &Node, bytes: &[u8], version: u64) -> Result<Vec<u8>> {
    let mut plain = Vec::with_capacity(bytes.len() / 4);
    let mut rest = bytes;
    let mut result = Ok(());
    while let Ok((out, after)) = EntryOut::read_from_prefix(rest) {
        // Each look-up has to be counted, whatever is wrong with the others.
        let (entry, name, later) = match next_entry(after) {
            Ok(Some(found)) => found,
            Ok(None) => break,
            Err(error) => {
                node.refuse(&out);
                result = Err(error);
                break;
            }
        };
        plain.extend_from_slice(entry.as_bytes());
        plain.extend_from_slice(name);
        plain.resize(plain.len().next_multiple_of(8), 0);
        rest = later;
        if out.nodeid == 0 {
            continue;
        }
        if name == b"." || name == b".." {
            node.refuse(&out);
        } else if let Ok(entry) = node.entry(inode, &out, version)
            && let Some(at) = f.path()
        {
            let hash = hash_name(name);
            note_child(&at.dentry, hash, name, at.dentry.child(hash, name), entry);
        }
    }
    result.map(|()| plain)
}

/// The first entry of `bytes`, its name, and what follows; `None` at the end or for a torn entry.
fn next_entry(bytes: &[u8]) -> Result<Option<(Dirent, &[u8], &[u8])>> {
    let len = Dirent::read_from_prefix(bytes).map(|(entry, _)| entry.namelen as usize);
    if len.is_ok_and(|len| len == 0 || len > NAME_MAX) {
        return Err(Errno::EIO);
    }
    let found = split_dirent(bytes);
    if found.is_some_and(|(_, name, _)| name.contains(&b'/') || name.contains(&0)) {
        return Err(Errno::EIO);
    }
    Ok(found)
}

impl FileOps for FuseDir {
    fn is_directory(&self) -> bool {
        true
    }

    fn seek(&self, f: &File, offset: i64, whence: u32, pos: u64) -> Result<u64> {
        seek_from(offset, whence, pos, Some(f.inode().map_or(0, |inode| inode.len())))
    }

    fn readdir(&self, f: &File, pos: &mut u64, sink: &mut dyn DirSink) -> Result {
        let (inode, node) = node_of(f)?;
        if !self.handle.open.contains(OpenFlags::CACHE_DIR) {
            return emit(&self.ask(f, inode, node, *pos)?, pos, sink).map(drop);
        }
        node.client().check_allowed()?;
        if *pos == 0 && !node.client().is_sole_writer() {
            // A changed time of modification takes the known names away.
            node.renew(inode)?;
        }
        let mut kept = self.reading.lock();
        let mut reading = match kept.take() {
            Some(reading) if *pos != 0 && reading.changes == node.changes() => reading,
            _ => Reading::begin(node),
        };
        loop {
            match reading.emit(pos, sink)? {
                // From somewhere in the middle, after a change: the server knows its positions.
                None => {
                    emit(&self.ask(f, inode, node, *pos)?, pos, sink)?;
                    return Ok(());
                }
                Some(false) => break,
                Some(true) => {}
            }
            let Entries::Own(bytes) = &mut reading.entries else { break };
            let more = self.ask(f, inode, node, *pos)?;
            if bytes.len() + more.len() > LISTING_MAX {
                return emit(&more, pos, sink).map(drop);
            }
            bytes.extend_from_slice(&more);
            if more.is_empty() {
                let listing = Arc::new(Listing(core::mem::take(bytes)));
                node.keep_listing(reading.changes, listing.clone());
                reading.entries = Entries::All(listing);
                break;
            }
        }
        *kept = Some(reading);
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
