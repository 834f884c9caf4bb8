//! Sending and receiving on local sockets.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use linux_uapi::raw::net as uapi;

use super::collect::{self, InFlight};
use super::queue::{Front, Message, PIECE};
use super::{Address, Kind, SHUT_RECEIVE, SHUT_SEND, Unix};
use crate::fs::{Source, sigio};
use crate::net::message::{Sender, sender_credentials};
use crate::net::{Incoming, Outgoing};
use crate::poll::PollEvents;
use crate::time::Deadline;
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// Waits as a socket call does: a time-out is `EAGAIN`.
fn wait(queue: &WaitQueue, deadline: Option<Deadline>, done: impl Fn() -> bool) -> Result {
    match queue.wait_interruptible(deadline, || done().then_some(())) {
        Err(Errno::ETIMEDOUT) => Err(Errno::EAGAIN),
        // With a time limit set a call is not restarted (signal(7)).
        Err(Errno::ERESTARTSYS) if deadline.is_some() => Err(Errno::EINTR),
        other => other,
    }
}

fn take_bytes(source: &mut Source<'_>, len: usize) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    data.try_reserve_exact(len).map_err(|_| Errno::ENOBUFS)?;
    data.resize(len, 0);
    source.take_all(&mut data)?;
    Ok(data)
}

impl Unix {
    pub(super) fn send_message(&self, message: &mut Outgoing<'_, '_>) -> Result<usize> {
        // Only a stream has an urgent byte, and only if there is one.
        let urgent = message.flags & uapi::MSG_OOB != 0;
        if urgent && (self.kind != Kind::Stream || message.data.remaining() == 0) {
            return Err(Errno::EOPNOTSUPP);
        }
        match self.kind {
            Kind::Stream => self.send_stream(message),
            _ => self.send_packet(message),
        }
    }

    /// Waits until the sender's account allows another message.
    fn wait_for_room(&self, nonblocking: bool, deadline: Option<Deadline>) -> Result {
        loop {
            self.check_error()?;
            if self.is_shut(SHUT_SEND) {
                return Err(Errno::EPIPE);
            }
            if self.charge.has_room() {
                return Ok(());
            }
            if nonblocking {
                return Err(Errno::EAGAIN);
            }
            wait(&self.charge.queue, deadline, || {
                self.charge.has_room() || self.is_shut(SHUT_SEND) || self.error.is_set()
            })?;
        }
    }

    fn send_stream(&self, out: &mut Outgoing<'_, '_>) -> Result<usize> {
        if out.address.is_some() {
            return Err(if self.state.lock().connected { Errno::EISCONN } else { Errno::EOPNOTSUPP });
        }
        if !self.state.lock().connected {
            return Err(Errno::ENOTCONN);
        }
        let nonblocking = out.flags & uapi::MSG_DONTWAIT != 0;
        let deadline = self.options.send_deadline();
        let credentials = out.credentials.clone().unwrap_or_else(sender_credentials);
        let mut files = InFlight::new(core::mem::take(&mut out.files))?;
        let name = self.state.lock().address.clone();
        let mut sent = 0;
        let partial = |sent: usize, error: Errno| if sent > 0 { Ok(sent) } else { Err(error) };
        loop {
            if out.data.remaining() == 0 {
                return Ok(sent);
            }
            if let Err(error) = self.wait_for_room(nonblocking, deadline) {
                return partial(sent, error);
            }
            // The last byte is the urgent one, and goes by itself.
            let ordinary = out.data.remaining() - usize::from(out.flags & uapi::MSG_OOB != 0);
            let urgent = ordinary == 0;
            // No more than half the buffer in a piece, so that both ends can work.
            let piece = ordinary.min(PIECE).min((self.charge.limit() / 2).max(1024)).max(1);
            let data = match take_bytes(out.data, piece) {
                Ok(data) => data,
                Err(error) => return partial(sent, error),
            };
            let Some(peer) = self.peer() else { return partial(sent, Errno::EPIPE) };
            let message = Message::new(data, credentials.clone(), files.take(), name.clone(), &self.charge);
            if !peer.deliver(message, urgent) {
                return partial(sent, Errno::EPIPE);
            }
            sent += piece;
        }
    }

    /// Puts a message into the queue, as the urgent one or not; false when the socket takes no more.
    fn deliver(&self, message: Arc<Message>, urgent: bool) -> bool {
        if self.is_shut(SHUT_RECEIVE) {
            return false;
        }
        let mut received = self.received.lock();
        if received.closed {
            drop(received);
            return false;
        }
        let former = if urgent { received.urgent.replace(message.clone()) } else { None };
        received.push(message);
        drop(received);
        drop(former);
        if urgent {
            if let Some(owner) = self.owner.get() {
                sigio::urgent(owner);
            }
            self.read_queue.wake_events(PollEvents::POLLPRI);
        }
        self.read_queue.wake_n(1, PollEvents::READABLE, false);
        true
    }

    /// Where a datagram or packet goes.
    fn target(&self, address: Option<&[u8]>) -> Result<Arc<Unix>> {
        let to_peer = |s: &Unix| match s.peer() {
            Some(peer) => Ok(peer),
            None if s.state.lock().peer.take().is_some() => Err(Errno::ECONNREFUSED),
            None => Err(Errno::ENOTCONN),
        };
        if self.kind == Kind::SeqPacket {
            if !self.state.lock().connected {
                return Err(Errno::ENOTCONN);
            }
            // An address is ignored on a connected socket of packets.
            return self.peer().ok_or(Errno::EPIPE);
        }
        match address {
            Some(bytes) => {
                let address = Address::decode(bytes)?.ok_or(Errno::EINVAL)?;
                let target = self.find(&address)?;
                let taken =
                    target.state.lock().peer.as_ref().is_some_and(|p| !p.ptr_eq(&self.me) && p.strong_count() > 0);
                if taken { Err(Errno::EPERM) } else { Ok(target) }
            }
            None => to_peer(self),
        }
    }

    fn send_packet(&self, out: &mut Outgoing<'_, '_>) -> Result<usize> {
        let nonblocking = out.flags & uapi::MSG_DONTWAIT != 0;
        let deadline = self.options.send_deadline();
        let len = out.data.remaining();
        self.check_error()?;
        if self.is_shut(SHUT_SEND) {
            return Err(Errno::EPIPE);
        }
        let mut target = self.target(out.address.as_deref())?;
        if len > self.charge.limit().saturating_sub(32) {
            return Err(Errno::EMSGSIZE);
        }
        let credentials = out.credentials.clone().unwrap_or_else(sender_credentials);
        let files = InFlight::new(core::mem::take(&mut out.files))?;
        self.wait_for_room(nonblocking, deadline)?;
        let mut data = take_bytes(out.data, len)?;
        match target.options.admit(&data) {
            Some(keep) => data.truncate(keep),
            // The sender does not learn that the receiver's filter dropped it.
            None => return Ok(len),
        }
        let name = self.state.lock().address.clone();
        let message = Message::new(data, credentials, files, name, &self.charge);
        loop {
            if target.closed.load(Ordering::SeqCst) {
                if self.kind == Kind::SeqPacket {
                    return Err(Errno::EPIPE);
                }
                return Err(Errno::ECONNREFUSED);
            }
            if target.is_shut(SHUT_RECEIVE) {
                return Err(Errno::EPIPE);
            }
            if !target.is_full_for(self) {
                break;
            }
            if nonblocking {
                return Err(Errno::EAGAIN);
            }
            // The receiver wakes its senders here when it takes a message.
            let receiver = target.clone();
            wait(&receiver.charge.queue, deadline, || {
                !receiver.is_full_for(self) || receiver.closed.load(Ordering::SeqCst)
            })?;
            target = receiver;
        }
        if !target.deliver(message, false) {
            return Err(if self.kind == Kind::SeqPacket { Errno::EPIPE } else { Errno::ECONNREFUSED });
        }
        Ok(len)
    }

    pub(super) fn receive_message(&self, message: &mut Incoming<'_, '_>) -> Result<usize> {
        if message.flags & uapi::MSG_OOB != 0 && self.kind != Kind::Stream {
            return Err(Errno::EOPNOTSUPP);
        }
        if self.kind != Kind::Datagram && !self.state.lock().connected {
            return Err(if self.kind == Kind::Stream { Errno::EINVAL } else { Errno::ENOTCONN });
        }
        match self.kind {
            Kind::Stream if message.flags & uapi::MSG_OOB != 0 => self.receive_urgent(message),
            Kind::Stream => self.receive_stream(message),
            _ => self.receive_packet(message),
        }
    }

    /// Waits for a message beyond the first `seen` ones that ever came. `Ok(false)`: there will be none.
    fn wait_for_message(&self, seen: u64, into: &Incoming<'_, '_>, deadline: Option<Deadline>) -> Result<bool> {
        let arrived = || self.received.lock().arrived != seen;
        loop {
            if arrived() {
                return Ok(true);
            }
            self.check_error()?;
            if self.is_shut(SHUT_RECEIVE) {
                // A message may have come just before the end.
                return Ok(arrived());
            }
            if into.is_nonblocking() {
                return Err(Errno::EAGAIN);
            }
            wait(&self.read_queue, deadline, || arrived() || self.is_shut(SHUT_RECEIVE) || self.error.is_set())?;
        }
    }

    /// Reads the urgent byte out of band.
    fn receive_urgent(&self, into: &mut Incoming<'_, '_>) -> Result<usize> {
        let _guard = self.read_lock.lock();
        if self.options.has(uapi::SO_OOBINLINE) {
            return Err(Errno::EINVAL);
        }
        let mut removed = Vec::new();
        let urgent = self.received.lock().take_urgent(into.flags & uapi::MSG_PEEK != 0, &mut removed);
        collect::bury(removed.into_iter());
        into.data.put_all(&urgent.ok_or(Errno::EINVAL)?.data)?;
        into.out_flags |= uapi::MSG_OOB;
        Ok(1)
    }

    /// How many bytes a peek passes over (`SO_PEEK_OFF`).
    fn peek_offset(&self) -> usize {
        usize::try_from(self.options.peek_offset.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Moves where the next peek begins: on by what was peeked at, back by what was taken.
    fn move_peek_offset(&self, n: usize, peek: bool) {
        let n = i32::try_from(n).unwrap_or(i32::MAX);
        let moved = |at: i32| (at >= 0).then(|| if peek { at.saturating_add(n) } else { (at - n).max(0) });
        let _ = self.options.peek_offset.fetch_update(Ordering::Relaxed, Ordering::Relaxed, moved);
    }

    /// Hands over what travels with a message.
    fn take_extras(&self, message: &Message, into: &mut Incoming<'_, '_>) {
        if self.options.pass_credentials.load(Ordering::Relaxed) {
            into.control.credentials = Some(message.credentials.clone());
        }
        if self.options.pass_pidfd.load(Ordering::Relaxed) {
            into.control.pidfd = Some(message.credentials.clone());
        }
        let peek = into.flags & uapi::MSG_PEEK != 0;
        let files = if peek {
            message.files.lock().as_ref().map(InFlight::peek)
        } else {
            let in_flight = message.files.lock().take();
            in_flight.map(InFlight::land)
        };
        into.control.files.extend(files.into_iter().flatten());
    }

    fn receive_stream(&self, into: &mut Incoming<'_, '_>) -> Result<usize> {
        let deadline = self.options.receive_deadline();
        let peek = into.flags & uapi::MSG_PEEK != 0;
        let wanted = into.data.remaining();
        let wait_all = into.flags & uapi::MSG_WAITALL != 0;
        let low_water = self.options.receive_low_water.load(Ordering::Relaxed).max(1) as usize;
        let target = if wait_all { wanted } else { low_water.min(wanted) };
        let inline = self.options.has(uapi::SO_OOBINLINE);
        let mut copied = 0;
        // While peeking, go on behind what was seen.
        let mut place = 0;
        let mut skip = if peek { self.peek_offset() } else { 0 };
        let mut writer: Option<Sender> = None;
        let mut guard = self.read_lock.lock();
        loop {
            let mut removed = Vec::new();
            let mut received = self.received.lock();
            let front = received.front(place, skip, peek, copied > 0, inline, &mut removed);
            let seen = received.arrived;
            drop(received);
            collect::bury(removed.into_iter());
            let (index, message, offset) = match front {
                Front::Data(index, message, offset) => (index, message, offset),
                Front::Mark => break,
                Front::End if copied >= target.max(1) || (copied > 0 && peek) || wanted == 0 => break,
                Front::End => {
                    drop(guard);
                    match self.wait_for_message(seen, into, deadline) {
                        Ok(true) => {}
                        Ok(false) => return Ok(copied),
                        Err(_) if copied > 0 => return Ok(copied),
                        Err(error) => return Err(error),
                    }
                    guard = self.read_lock.lock();
                    continue;
                }
            };
            // Bytes of different senders, or with descriptors, are not mixed.
            let passes = self.options.pass_credentials.load(Ordering::Relaxed);
            if copied > 0 && passes && writer.as_ref().is_some_and(|w| *w != message.credentials) {
                break;
            }
            let has_files = message.files.lock().is_some();
            if copied > 0 && has_files && !into.control.files.is_empty() {
                break;
            }
            if copied == 0 {
                writer = Some(message.credentials.clone());
                into.address = Address::encode(message.from.as_deref());
            }
            let rest = &message.data[offset..];
            let n = match into.data.put(rest) {
                Ok(n) => n,
                Err(_) if copied > 0 => break,
                Err(error) => return Err(error),
            };
            copied += n;
            if copied == n || has_files {
                self.take_extras(&message, into);
            }
            self.move_peek_offset(n, peek);
            if peek {
                place = index + 1;
                skip = 0;
            } else {
                let used_up = self.received.lock().consume(index, n);
                drop(used_up);
            }
            if has_files || into.data.remaining() == 0 {
                break;
            }
        }
        Ok(copied)
    }

    fn receive_packet(&self, into: &mut Incoming<'_, '_>) -> Result<usize> {
        let deadline = self.options.receive_deadline();
        let peek = into.flags & uapi::MSG_PEEK != 0;
        let (message, skip) = loop {
            let mut received = self.received.lock();
            let next = if peek { received.peek_packet(self.peek_offset()) } else { received.pop().map(|m| (m, 0)) };
            let seen = received.arrived;
            drop(received);
            if let Some(next) = next {
                break next;
            }
            if !self.wait_for_message(seen, into, deadline)? {
                return Ok(0);
            }
        };
        if !peek {
            // Senders that found the queue full, and pollers that wait to send here.
            self.charge.queue.wake_events(PollEvents::WRITABLE | PollEvents::POLLWRBAND);
            if let Some(peer) = self.peer() {
                peer.charge.queue.wake_events(PollEvents::WRITABLE);
            }
        }
        into.address = Address::encode(message.from.as_deref());
        let data = &message.data[skip..];
        let len = data.len();
        let fits = len.min(into.data.remaining());
        into.data.put_all(&data[..fits])?;
        self.move_peek_offset(if peek { fits } else { message.data.len() }, peek);
        if fits < len {
            into.out_flags |= uapi::MSG_TRUNC;
        }
        if self.kind == Kind::SeqPacket {
            into.out_flags |= uapi::MSG_EOR & into.flags;
        }
        self.take_extras(&message, into);
        Ok(if into.flags & uapi::MSG_TRUNC != 0 { len } else { fits })
    }
}
