//! What a netlink socket has received and not yet read, with the account of its memory.

use alloc::{collections::VecDeque, sync::Arc};

use super::Packet;

/// What a message costs beside its bytes: about what Linux's `sk_buff` does, so that a receive buffer holds as many.
const OVERHEAD: usize = 768;

/// The outcome of offering a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It is in the queue, or the socket's filter dropped it.
    Taken,
    /// There is no room.
    Full,
    /// The socket is closed.
    Closed,
}

/// The queue.
#[derive(Default)]
pub struct Queue {
    entries: VecDeque<(Arc<Packet>, usize)>,
    /// What the entries cost.
    charged: usize,
    /// A message was lost: nothing is taken until the queue was read empty, so that the gap is where the error says.
    congested: bool,
    closed: bool,
}

fn cost(len: usize) -> usize {
    OVERHEAD + len
}

impl Queue {
    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a message would be taken (or refused for good), with a receive buffer of `limit` bytes. As on Linux the last
    /// message may go over the limit.
    pub fn has_room(&self, limit: usize) -> bool {
        self.closed || self.charged <= limit && !self.congested
    }

    /// Adds the first `len` bytes of a message.
    pub fn offer(&mut self, packet: &Arc<Packet>, len: usize, limit: usize) -> Offer {
        if self.closed {
            return Offer::Closed;
        }
        if !self.has_room(limit) {
            return Offer::Full;
        }
        self.entries.push_back((packet.clone(), len));
        self.charged += cost(len);
        Offer::Taken
    }

    /// A message was lost; whether it is the first since the queue was empty.
    pub fn congest(&mut self) -> bool {
        !core::mem::replace(&mut self.congested, true)
    }

    /// Takes messages again.
    pub fn relieve(&mut self) {
        self.congested = false;
    }

    /// The oldest message, removed unless `peek`; and whether senders may find room now.
    pub fn take(&mut self, peek: bool) -> (Option<(Arc<Packet>, usize)>, bool) {
        if peek {
            return (self.entries.front().cloned(), false);
        }
        let next = self.entries.pop_front();
        if let Some((_, len)) = &next {
            self.charged -= cost(*len);
        }
        if self.entries.is_empty() {
            self.congested = false;
        }
        (next, !self.congested)
    }

    /// Ends the queue; what is left is for the caller to drop.
    pub fn close(&mut self) -> VecDeque<(Arc<Packet>, usize)> {
        self.closed = true;
        self.charged = 0;
        core::mem::take(&mut self.entries)
    }
}
