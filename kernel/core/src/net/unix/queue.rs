//! Messages between local sockets, and what they cost the sender.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use ursa_hal::sync::SpinLock;

use super::Address;
use super::collect::InFlight;
use crate::net::message::Sender;
use crate::poll::PollEvents;
use crate::wait::WaitQueue;

/// Bytes of one piece of a stream.
pub const PIECE: usize = 32 << 10;

/// What a socket's sent and unreceived messages cost it: `SO_SNDBUF`'s account.
pub struct Charge {
    used: AtomicUsize,
    limit: AtomicUsize,
    /// The sender waits here for room.
    pub queue: Arc<WaitQueue>,
}

impl Charge {
    /// An empty account.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Charge {
            used: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            queue: Arc::new(WaitQueue::new()),
        })
    }

    /// `SO_SNDBUF`
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Sets `SO_SNDBUF`.
    pub fn set_limit(&self, bytes: usize) {
        self.limit.store(bytes, Ordering::Relaxed);
        self.queue.wake_events(PollEvents::WRITABLE);
    }

    /// What is charged now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether a send may go on: Linux lets the last one overdraw.
    pub fn has_room(&self) -> bool {
        self.used() < self.limit()
    }

    /// Whether `poll` says writable: at most a quarter is used.
    pub fn is_writable(&self) -> bool {
        self.used() * 4 <= self.limit()
    }

    fn take(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::SeqCst);
        if self.is_writable() {
            self.queue.wake_events(PollEvents::WRITABLE | PollEvents::POLLWRBAND);
        }
    }
}

/// What a message of `len` bytes is charged: about Linux's `truesize`, so that as many small ones fit.
pub fn cost(len: usize) -> usize {
    const BUFFER: usize = 256;
    const SHARED_INFO: usize = 320;
    match len + SHARED_INFO {
        head @ ..=4096 => BUFFER + head.next_power_of_two().max(512),
        _ => BUFFER + 512 + len.next_multiple_of(4096),
    }
}

/// A message, or a piece of a stream.
pub struct Message {
    /// Its bytes.
    pub data: Vec<u8>,
    /// Who sent it.
    pub credentials: Sender,
    /// Descriptors that travel with it.
    pub files: SpinLock<Option<InFlight>>,
    /// The sender's name.
    pub from: Option<Arc<Address>>,
    charge: Arc<Charge>,
    cost: usize,
}

impl Message {
    /// Makes a message at the sender's expense.
    pub fn new(
        data: Vec<u8>,
        credentials: Sender,
        files: Option<InFlight>,
        from: Option<Arc<Address>>,
        charge: &Arc<Charge>,
    ) -> Arc<Message> {
        let cost = cost(data.len());
        charge.take(cost);
        Arc::new(Message { data, credentials, files: SpinLock::new(files), from, charge: charge.clone(), cost })
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        self.charge.give(self.cost);
    }
}

/// A message in a queue, with how much of it is read.
pub struct Entry {
    /// The message.
    pub message: Arc<Message>,
    /// Bytes that are read already (streams).
    pub offset: usize,
}

impl Entry {
    /// Bytes that are left.
    fn len(&self) -> usize {
        self.message.data.len() - self.offset
    }

    /// A byte that was read out of band leaves an entry without bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A socket's received messages.
#[derive(Default)]
pub struct Received {
    /// Oldest first.
    pub entries: VecDeque<Entry>,
    /// Bytes that can be read (`FIONREAD` of a stream).
    pub bytes: usize,
    /// The socket is closed: nothing more is taken.
    pub closed: bool,
    /// The last urgent byte (`MSG_OOB`) that came, as long as nobody has read it. Once read out of band it stays in the queue as an
    /// empty entry: the mark.
    pub urgent: Option<Arc<Message>>,
    /// Messages that ever came: whoever waits for another one looks at this.
    pub arrived: u64,
}

/// Where a reader of a stream stands.
pub enum Front {
    /// At these bytes: place in the queue, message, first byte.
    Data(usize, Arc<Message>, usize),
    /// At the end; more may come.
    End,
    /// At the urgent mark, or behind the bytes before it: a read ends here.
    Mark,
}

impl Received {
    /// Appends a message.
    pub fn push(&mut self, message: Arc<Message>) {
        self.bytes += message.data.len();
        self.arrived += 1;
        self.entries.push_back(Entry { message, offset: 0 });
    }

    /// Removes the oldest message.
    pub fn pop(&mut self) -> Option<Arc<Message>> {
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.message.data.len() - entry.offset;
        Some(entry.message)
    }

    fn is_urgent(&self, message: &Arc<Message>) -> bool {
        self.urgent.as_ref().is_some_and(|urgent| Arc::ptr_eq(urgent, message))
    }

    /// The packet that holds the byte `skip` of all that wait, and where in it that is.
    pub fn peek_packet(&self, mut skip: usize) -> Option<(Arc<Message>, usize)> {
        for Entry { message, .. } in &self.entries {
            let len = message.data.len();
            // An empty packet is seen once, at the beginning.
            if skip == 0 || skip < len {
                return Some((message.clone(), skip));
            }
            skip -= len;
        }
        None
    }

    /// Whether the reader stands at the urgent mark (`SIOCATMARK`).
    pub fn is_at_mark(&self) -> bool {
        let Some(front) = self.entries.front() else { return false };
        if self.is_urgent(&front.message) {
            return true;
        }
        let next_is_urgent = || self.entries.get(1).is_some_and(|next| self.is_urgent(&next.message));
        front.is_empty() && (self.urgent.is_none() || next_is_urgent())
    }

    /// Whether nothing but a mark that was read is left.
    pub fn is_used_up(&self) -> bool {
        let mark = self.entries.front().is_some_and(Entry::is_empty);
        self.entries.len() <= usize::from(mark)
    }

    /// Takes the urgent byte out of band; its mark stays, and replaces one just before it.
    pub fn take_urgent(&mut self, peek: bool, removed: &mut Vec<Arc<Message>>) -> Option<Arc<Message>> {
        if peek {
            return self.urgent.clone();
        }
        let urgent = self.urgent.take()?;
        if let Some(index) = self.entries.iter().position(|e| Arc::ptr_eq(&e.message, &urgent)) {
            let entry = &mut self.entries[index];
            self.bytes -= entry.len();
            entry.offset = entry.message.data.len();
            if index > 0 && self.entries[index - 1].is_empty() {
                self.remove(index - 1, removed);
            }
        }
        Some(urgent)
    }

    fn remove(&mut self, index: usize, removed: &mut Vec<Arc<Message>>) {
        if let Some(entry) = self.entries.remove(index) {
            self.bytes -= entry.len();
            removed.push(entry.message);
        }
    }

    /// What a reader of the stream gets next at entry `index`, `skip` bytes on, after it `copied` something or not. An urgent byte
    /// ends a read that has bytes already, and is passed over (`inline`: read) by the next one; the mark that it left when it was
    /// read out of band ends a read, too. What is passed over without `peek` is gone, and put to `removed` for the caller to
    /// drop outside of the lock. (Linux `manage_oob`.)
    pub fn front(
        &mut self,
        mut index: usize,
        mut skip: usize,
        peek: bool,
        copied: bool,
        inline: bool,
        removed: &mut Vec<Arc<Message>>,
    ) -> Front {
        let none = if copied { Front::Mark } else { Front::End };
        if let Some(entry) = self.entries.get(index) {
            if entry.is_empty() {
                if copied && (self.urgent.is_none() || self.is_urgent(&entry.message)) {
                    return Front::Mark;
                }
                if peek { index += 1 } else { self.remove(index, removed) }
            }
            let Some(entry) = self.entries.get(index) else { return none };
            if self.is_urgent(&entry.message) {
                if copied {
                    return Front::Mark;
                }
                match (peek, inline) {
                    (true, false) => index += 1,
                    (true, true) => {}
                    (false, _) => {
                        self.urgent = None;
                        if !inline {
                            self.remove(index, removed);
                        }
                    }
                }
                if index >= self.entries.len() {
                    return none;
                }
            }
        }
        while let Some(entry) = self.entries.get(index) {
            if skip < entry.len() {
                return Front::Data(index, entry.message.clone(), entry.offset + skip);
            }
            skip -= entry.len();
            index += 1;
        }
        Front::End
    }

    /// Marks `n` bytes of the message at `index` as read; returns it once it is used up.
    pub fn consume(&mut self, index: usize, n: usize) -> Option<Arc<Message>> {
        let entry = self.entries.get_mut(index)?;
        entry.offset += n;
        self.bytes -= n;
        if !entry.is_empty() {
            return None;
        }
        self.entries.remove(index).map(|e| e.message)
    }
}
