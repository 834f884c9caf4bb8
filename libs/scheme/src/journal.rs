//! [`Journal`]: what a resumable server records, so that a successor is what it was.
//!
//! The state of a server is a set of *entries*: serialised values under a table and a number. Changes are collected and
//! appended as one *record* to a log in shared memory, which the kernel keeps (`KEEP`); the last store of a record is one word,
//! so a server that is killed at any instruction leaves the record whole or not at all.
//!
//! **Once, and only once.** A record carries the number of the request that it is the effect of, and is written before that
//! request's answer. Whether the answer got out is the kernel's to say: a successor is sent again exactly what was received
//! and not answered. So a successor looks at the last record. If its request comes again, the record is taken back and the
//! request is served anew, on the state that it met the first time; if it does not, its answer was delivered (or whoever
//! asked was killed) and the record stands. Nothing else has to be decided, since a record is written only after the
//! answer of the record before has reached the kernel. What a server does by itself is recorded under number 0 and stands.
//!
//! For that a server keeps three rules, for which [`DeviceServer::before`](crate::DeviceServer::before) and
//! [`after`](crate::DeviceServer::after) are there:
//!
//! - a request's changes are recorded in `after`, in one record;
//! - what it does by itself happens in `before` or between requests, in records of its own; an answer that it
//!   owes to an earlier request is recorded before it is sent, and sent again should that request come again;
//! - what goes out by other ways (readiness, the device's own state) is told anew at every start.
//!
//! A log that is full is written anew, in memory of its own, which then takes its place.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Channel, sys::Memory};

/// Groups entries; its meaning is the server's.
pub type Table = u8;

/// Keys of kept objects from here on are logs; the rest of the key is the log's generation.
const LOGS: u64 = 1 << 63;
/// Begins every log.
const MAGIC: u64 = u64::from_le_bytes(*b"ursajnl1");
/// Where the word is that says up to where the log is written.
const COMMITTED: usize = 8;
/// Where the records begin.
const START: usize = 16;
/// Bytes before the changes of a record: its length, which a multiple of 8 follows, and the request's number.
const RECORD: usize = 16;
/// Bytes before the value of a change: table, whether there is a value, its length, the entry's number.
const CHANGE: usize = 16;
/// A log is at least this long.
const LENGTH_MIN: usize = 256 << 10;
/// The longest log that is believed.
const LENGTH_MAX: u64 = 1 << 30;

type Key = (Table, u64);
type Entries = BTreeMap<Key, Vec<u8>>;

/// See the module's documentation.
pub struct Journal {
    channel: Arc<dyn Channel>,
    generation: u64,
    memory: Memory,
    end: usize,
    entries: Entries,
    /// The changes of the record in the making.
    changes: Vec<u8>,
    /// Bytes of all entries.
    size: usize,
    /// Kept objects that nothing refers to once the record in the making stands, and those of the last one.
    released: Vec<u64>,
    releasing: Vec<u64>,
}

impl Journal {
    /// The journal that a predecessor left with the connection, or an empty one. `unanswered` are the requests that the
    /// kernel sends again.
    ///
    /// # Errors
    /// The kernel's; `InvalidData`: what is kept is no journal.
    pub fn open(channel: Arc<dyn Channel>, unanswered: &BTreeSet<u64>) -> io::Result<Journal> {
        let mut logs: Vec<u64> = channel.keep_list()?.into_iter().filter(|key| key & LOGS != 0).collect();
        logs.sort_unstable();
        // A log is kept when it is complete, so the youngest counts; there are two where its maker died just then.
        let (entries, generation) = match logs.last() {
            Some(&last) => (replay(channel.keep_get(last)?.as_fd(), unanswered)?, last & !LOGS),
            None => (Entries::new(), 0),
        };
        let size = entries.values().map(|value| value.len() + CHANGE).sum();
        let memory = write_log(&*channel, generation + 1, &entries, size)?;
        for old in logs {
            channel.keep_drop(old)?;
        }
        let end = START + RECORD + size.next_multiple_of(8);
        Ok(Journal {
            channel,
            generation: generation + 1,
            memory,
            end,
            entries,
            changes: Vec::new(),
            size,
            released: Vec::new(),
            releasing: Vec::new(),
        })
    }

    /// Whether there was a predecessor: something is recorded.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Counts the servers of this connection, from 1 on: numbers that must not be given twice can begin with it.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// An entry.
    ///
    /// # Errors
    /// `InvalidData`: it is of another type.
    pub fn get<T: DeserializeOwned>(&self, table: Table, id: u64) -> io::Result<Option<T>> {
        self.entries.get(&(table, id)).map(|bytes| decode(bytes)).transpose()
    }

    /// All entries of a table, in the order of their numbers.
    ///
    /// # Errors
    /// As [`Journal::get`].
    pub fn all<T: DeserializeOwned>(&self, table: Table) -> io::Result<Vec<(u64, T)>> {
        let range = self.entries.range((table, 0)..=(table, u64::MAX));
        range.map(|(key, bytes)| Ok((key.1, decode(bytes)?))).collect()
    }

    /// The numbers that a table has.
    pub fn ids(&self, table: Table) -> impl Iterator<Item = u64> + '_ {
        self.entries.range((table, 0)..=(table, u64::MAX)).map(|(key, _)| key.1)
    }

    /// Whether there is an entry.
    pub fn contains(&self, table: Table, id: u64) -> bool {
        self.entries.contains_key(&(table, id))
    }

    /// Sets an entry. One that has this value already costs nothing more.
    ///
    /// # Errors
    /// The value cannot be serialised.
    pub fn put<T: Serialize + ?Sized>(&mut self, table: Table, id: u64, value: &T) -> io::Result<()> {
        // Straight behind its header in the record, and taken back if nothing changes.
        let start = self.changes.len();
        self.changes.resize(start + CHANGE, 0);
        let changes = std::mem::take(&mut self.changes);
        self.changes = postcard::to_extend(value, changes).map_err(io::Error::other)?;
        let value = &self.changes[start + CHANGE..];
        let len = value.len();
        match self.entries.get_mut(&(table, id)) {
            Some(old) if old == value => {
                self.changes.truncate(start);
                return Ok(());
            }
            Some(old) => {
                self.size = self.size - old.len() + len;
                old.clear();
                old.extend_from_slice(value);
            }
            None => {
                self.size += len + CHANGE;
                self.entries.insert((table, id), value.to_vec());
            }
        }
        self.changes[start..start + CHANGE].copy_from_slice(&change(table, id, Some(len)));
        Ok(())
    }

    /// Removes an entry, if there is one.
    pub fn remove(&mut self, table: Table, id: u64) {
        if let Some(old) = self.entries.remove(&(table, id)) {
            self.size -= old.len() + CHANGE;
            self.changes.extend_from_slice(&change(table, id, None));
        }
    }

    /// Has the kernel keep an object, to be named by an entry of the record in the making.
    ///
    /// # Errors
    /// As [`Channel::keep`]; a key of the journal's own is `InvalidInput`.
    pub fn keep(&self, key: u64, fd: BorrowedFd<'_>) -> io::Result<()> {
        if key & LOGS != 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.channel.keep(key, fd)
    }

    /// Nothing that is recorded from now on refers to a kept object. It is dropped when that cannot be taken back any more.
    pub fn release(&mut self, key: u64) {
        self.released.push(key);
    }

    /// Drops the kept objects that `used` does not name: those of a record that was taken back or never written.
    ///
    /// # Errors
    /// The kernel's.
    pub fn retain_kept(&self, used: impl Fn(u64) -> bool) -> io::Result<()> {
        for key in self.channel.keep_list()? {
            if key & LOGS == 0 && !used(key) {
                self.channel.keep_drop(key)?;
            }
        }
        Ok(())
    }

    /// The answer to the request of the last record has reached the kernel: that record stands.
    ///
    /// # Errors
    /// No memory for another log.
    pub fn settle(&mut self) -> io::Result<()> {
        for key in std::mem::take(&mut self.releasing) {
            // It may have been dropped by a predecessor that died right after.
            let _ = self.channel.keep_drop(key);
        }
        // Half of the log is room: each byte is written again once for each that was appended.
        if self.end > START + RECORD + self.size + self.memory.len() / 2 {
            self.renew(0)?;
        }
        Ok(())
    }

    /// Whether changes are collected that [`commit`](Journal::commit) would write.
    pub fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// Writes the record of the collected changes, as the effect of request `unique` (0: of none).
    ///
    /// # Errors
    /// No memory for another log.
    pub fn commit(&mut self, unique: u64) -> io::Result<()> {
        if !self.released.is_empty() {
            self.releasing.append(&mut self.released);
        }
        if self.changes.is_empty() {
            return Ok(());
        }
        let len = self.changes.len();
        let next = self.end + RECORD + len.next_multiple_of(8);
        if next > self.memory.len() {
            // The state before this record, then the record.
            self.renew(len)?;
            return self.append(unique);
        }
        self.append(unique)
    }

    fn append(&mut self, unique: u64) -> io::Result<()> {
        let len = self.changes.len();
        let next = self.end + RECORD + len.next_multiple_of(8);
        let mut header = [0; RECORD];
        header[..8].copy_from_slice(&(len as u64).to_le_bytes());
        header[8..].copy_from_slice(&unique.to_le_bytes());
        self.memory.write(self.end, &header);
        self.memory.write(self.end + RECORD, &self.changes);
        self.memory.publish(COMMITTED, next as u64);
        self.end = next;
        self.changes.clear();
        Ok(())
    }

    /// Writes the log anew, with room for `more` bytes. The entries of a record in the making are not in it.
    fn renew(&mut self, more: usize) -> io::Result<()> {
        let standing;
        let entries = if self.changes.is_empty() {
            &self.entries
        } else {
            // Rare, and it has to be what the log says, not what the record in the making makes of it.
            standing = replay_memory(&self.memory, &BTreeSet::new())?;
            &standing
        };
        let size = entries.values().map(|value| value.len() + CHANGE).sum::<usize>();
        let memory = write_log(&*self.channel, self.generation + 1, entries, size + more)?;
        self.channel.keep_drop(LOGS | self.generation)?;
        self.generation += 1;
        self.memory = memory;
        self.end = START + RECORD + size.next_multiple_of(8);
        Ok(())
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    postcard::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn change(table: Table, id: u64, len: Option<usize>) -> [u8; CHANGE] {
    let mut header = [0; CHANGE];
    header[0] = table;
    header[1] = len.is_some().into();
    header[4..8].copy_from_slice(&(len.unwrap_or(0) as u32).to_le_bytes());
    header[8..].copy_from_slice(&id.to_le_bytes());
    header
}

/// Makes a log of these entries, with as much room again, and has the kernel keep it.
fn write_log(channel: &dyn Channel, generation: u64, entries: &Entries, size: usize) -> io::Result<Memory> {
    let len = (size.max(LENGTH_MIN / 4) * 4).next_multiple_of(4096);
    let fd = memfd_create("journal", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, len as u64)?;
    let mut memory = Memory::map(fd.as_fd(), len)?;
    let mut at = START + RECORD;
    for (&(table, id), value) in entries {
        memory.write(at, &change(table, id, Some(value.len())));
        memory.write(at + CHANGE, value);
        at += CHANGE + value.len();
    }
    memory.write(START, &((at - START - RECORD) as u64).to_le_bytes());
    memory.write(0, &MAGIC.to_le_bytes());
    memory.publish(COMMITTED, at.next_multiple_of(8) as u64);
    channel.keep(LOGS | generation, fd.as_fd())?;
    Ok(memory)
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "what is kept is no journal")
}

/// The entries that a log says, without its last record if that is of an unanswered request.
fn replay(fd: BorrowedFd<'_>, unanswered: &BTreeSet<u64>) -> io::Result<Entries> {
    let len = fstat(fd)?.st_size as u64;
    if len < START as u64 || len > LENGTH_MAX {
        return Err(invalid());
    }
    replay_memory(&Memory::map(fd, len as usize)?, unanswered)
}

fn replay_memory(memory: &Memory, unanswered: &BTreeSet<u64>) -> io::Result<Entries> {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        memory.read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    let committed = usize::try_from(word(COMMITTED)).ok().filter(|end| *end <= memory.len()).ok_or_else(invalid)?;
    if word(0) != MAGIC {
        return Err(invalid());
    }
    let mut entries = Entries::new();
    let mut at = START;
    while at < committed {
        let body = at.checked_add(RECORD).filter(|body| *body <= committed).ok_or_else(invalid)?;
        let len = usize::try_from(word(at)).ok().filter(|len| *len <= committed - body).ok_or_else(invalid)?;
        let next = body + len.next_multiple_of(8);
        if next >= committed && unanswered.contains(&word(at + 8)) {
            break;
        }
        let mut bytes = vec![0; len];
        memory.read(body, &mut bytes);
        apply(&mut entries, &bytes)?;
        at = next;
    }
    Ok(entries)
}

fn apply(entries: &mut Entries, mut changes: &[u8]) -> io::Result<()> {
    while !changes.is_empty() {
        let (header, rest) = changes.split_first_chunk::<CHANGE>().ok_or_else(invalid)?;
        let len = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let (value, rest) = rest.split_at_checked(len).ok_or_else(invalid)?;
        let id = header.last_chunk::<8>().map_or(0, |id| u64::from_le_bytes(*id));
        if header[1] != 0 {
            entries.insert((header[0], id), value.to_vec());
        } else {
            entries.remove(&(header[0], id));
        }
        changes = rest;
    }
    Ok(())
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
