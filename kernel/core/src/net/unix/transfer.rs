//! Sending and receiving on local sockets.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use linux_uapi::raw::net as uapi;
use linux_uapi::socket::Ucred;

use super::collect::InFlight;
use super::queue::{Message, PIECE};
use super::{Address, Kind, SHUT_RECEIVE, SHUT_SEND, Unix};
use crate::fs::Source;
use crate::net::message::sender_credentials;
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
        if message.flags & uapi::MSG_OOB != 0 {
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
        let credentials = out.credentials.unwrap_or_else(sender_credentials);
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
            // No more than half the buffer in a piece, so that both ends can work.
            let piece = out.data.remaining().min(PIECE).min((self.charge.limit() / 2).max(1024));
            let data = match take_bytes(out.data, piece) {
                Ok(data) => data,
                Err(error) => return partial(sent, error),
            };
            let Some(peer) = self.peer() else { return partial(sent, Errno::EPIPE) };
            let message = Message::new(data, credentials, files.take(), name.clone(), &self.charge);
            if !peer.deliver(message) {
                return partial(sent, Errno::EPIPE);
            }
            sent += piece;
        }
    }

    /// Puts a message into the queue; false when the socket takes no more.
    fn deliver(&self, message: Arc<Message>) -> bool {
        if self.is_shut(SHUT_RECEIVE) {
            return false;
        }
        let mut received = self.received.lock();
        if received.closed {
            drop(received);
            return false;
        }
        received.push(message);
        drop(received);
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
        let credentials = out.credentials.unwrap_or_else(sender_credentials);
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
        if !target.deliver(message) {
            return Err(if self.kind == Kind::SeqPacket { Errno::EPIPE } else { Errno::ECONNREFUSED });
        }
        Ok(len)
    }

    pub(super) fn receive_message(&self, message: &mut Incoming<'_, '_>) -> Result<usize> {
        if message.flags & uapi::MSG_OOB != 0 {
            return Err(if self.kind == Kind::Stream { Errno::EINVAL } else { Errno::EOPNOTSUPP });
        }
        if self.kind != Kind::Datagram && !self.state.lock().connected {
            return Err(if self.kind == Kind::Stream { Errno::EINVAL } else { Errno::ENOTCONN });
        }
        match self.kind {
            Kind::Stream => self.receive_stream(message),
            _ => self.receive_packet(message),
        }
    }

    /// Waits for a message. `Ok(false)`: there will be none.
    fn wait_for_message(&self, into: &Incoming<'_, '_>, deadline: Option<Deadline>) -> Result<bool> {
        loop {
            if !self.received.lock().entries.is_empty() {
                return Ok(true);
            }
            self.check_error()?;
            if self.is_shut(SHUT_RECEIVE) {
                // A message may have come just before the end.
                return Ok(!self.received.lock().entries.is_empty());
            }
            if into.is_nonblocking() {
                return Err(Errno::EAGAIN);
            }
            wait(&self.read_queue, deadline, || {
                !self.received.lock().entries.is_empty() || self.is_shut(SHUT_RECEIVE) || self.error.is_set()
            })?;
        }
    }

    /// Hands over what travels with a message.
    fn take_extras(&self, message: &Message, into: &mut Incoming<'_, '_>) {
        if self.options.pass_credentials.load(Ordering::Relaxed) {
            into.control.credentials = Some(message.credentials);
        }
        if self.options.pass_pidfd.load(Ordering::Relaxed) {
            into.control.pidfd = Some(message.credentials.pid);
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
        let mut copied = 0;
        let mut peek_skip = 0;
        let mut writer: Option<Ucred> = None;
        let mut guard = self.read_lock.lock();
        loop {
            let front = {
                let received = self.received.lock();
                // While peeking, go on behind what was seen.
                let mut skip = peek_skip;
                received.entries.iter().find_map(|e| {
                    let len = e.message.data.len() - e.offset;
                    if peek && skip >= len {
                        skip -= len;
                        None
                    } else {
                        Some((e.message.clone(), e.offset + if peek { skip } else { 0 }))
                    }
                })
            };
            let Some((message, offset)) = front else {
                if copied >= target.max(1) || (copied > 0 && peek) || wanted == 0 {
                    break;
                }
                drop(guard);
                match self.wait_for_message(into, deadline) {
                    Ok(true) => {}
                    Ok(false) => return Ok(copied),
                    Err(_) if copied > 0 => return Ok(copied),
                    Err(error) => return Err(error),
                }
                guard = self.read_lock.lock();
                continue;
            };
            // Bytes of different senders, or with descriptors, are not mixed.
            let passes = self.options.pass_credentials.load(Ordering::Relaxed);
            if copied > 0 && passes && writer.is_some_and(|w| w != message.credentials) {
                break;
            }
            let has_files = message.files.lock().is_some();
            if copied > 0 && has_files && !into.control.files.is_empty() {
                break;
            }
            if copied == 0 {
                writer = Some(message.credentials);
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
            if peek {
                peek_skip += n;
            } else {
                let used_up = self.received.lock().consume(n);
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
        let message = loop {
            if !self.wait_for_message(into, deadline)? {
                return Ok(0);
            }
            let mut received = self.received.lock();
            let next = if peek { received.entries.front().map(|e| e.message.clone()) } else { received.pop() };
            drop(received);
            if let Some(message) = next {
                break message;
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
        let len = message.data.len();
        let fits = len.min(into.data.remaining());
        into.data.put_all(&message.data[..fits])?;
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
