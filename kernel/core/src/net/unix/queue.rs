//! Messages between local sockets, and what they cost the sender.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use linux_uapi::socket::Ucred;
use ursa_hal::sync::SpinLock;

use super::Address;
use super::collect::InFlight;
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
    pub credentials: Ucred,
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
        credentials: Ucred,
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

/// A socket's received messages.
#[derive(Default)]
pub struct Received {
    /// Oldest first.
    pub entries: VecDeque<Entry>,
    /// Bytes that can be read (`FIONREAD` of a stream).
    pub bytes: usize,
    /// The socket is closed: nothing more is taken.
    pub closed: bool,
}

impl Received {
    /// Appends a message.
    pub fn push(&mut self, message: Arc<Message>) {
        self.bytes += message.data.len();
        self.entries.push_back(Entry { message, offset: 0 });
    }

    /// Removes the oldest message.
    pub fn pop(&mut self) -> Option<Arc<Message>> {
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.message.data.len() - entry.offset;
        Some(entry.message)
    }

    /// Marks `n` bytes of the oldest message as read; returns it once it is used up.
    pub fn consume(&mut self, n: usize) -> Option<Arc<Message>> {
        let front = self.entries.front_mut()?;
        front.offset += n;
        self.bytes -= n;
        if front.offset < front.message.data.len() {
            return None;
        }
        self.entries.pop_front().map(|e| e.message)
    }
}
