//! What socket calls do with a TCP socket.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{Ordering, Ordering::Relaxed};

use linux_uapi::raw::{ioctl as io, net as uapi};

use super::super::address::{Endpoint, Family, family_of};
use super::super::interface;
use super::super::options::{SOL_IP, SOL_IPV6, Switch};
use super::super::ports::UNPRIVILEGED;
use super::super::stream::{FIN, GONE, RESET};
use super::super::{bound_device, check_bind, decode_bind, get_socket_option, ip};
use super::options::SOL_TCP;
use super::{
    Attempt, BACKLOG_MAX, Listener, Phase, SEND_CONNECTED, SEND_DEFAULT, SIOCOUTQNSD, TCP, Tcp, hand_over, remote,
};
use crate::fs::owner::SharedOwner;
use crate::net::{Incoming, Options, Outgoing, SocketOps};
use crate::poll::{PollEvents, PollTable};
use crate::process::{Cap, capable, current};
use crate::user::UserPtr;
use crate::{Errno, Result};

impl SocketOps for Tcp {
    fn domain(&self) -> u32 {
        self.family.number()
    }

    fn kind(&self) -> u32 {
        uapi::SOCK_STREAM
    }

    fn protocol(&self) -> u32 {
        ip::TCP.into()
    }

    fn bind(&self, addr: &[u8]) -> Result {
        let wanted = decode_bind(addr, self.family, self.ip.has(Switch::V6Only))?;
        check_bind(&wanted, &self.ip, self.device.load(Relaxed), false)?;
        if (1..UNPRIVILEGED.load(Relaxed)).contains(&u32::from(wanted.port)) && !capable(Cap::NetBindService) {
            return Err(Errno::EACCES);
        }
        {
            let state = self.state.lock();
            if state.binding.is_some() || !matches!(state.phase, Phase::Closed) {
                return Err(Errno::EINVAL);
            }
        }
        let binding = TCP.bind(wanted.port, self.claim(wanted.ip, current().with_cred(|c| c.euid)))?;
        let mut state = self.state.lock();
        if state.binding.is_some() {
            drop(state);
            return Err(Errno::EINVAL);
        }
        state.local = Some(Endpoint { port: binding.port(), ..wanted });
        state.bound_address = !wanted.ip.is_unspecified();
        state.bound_port = true;
        state.binding = Some(binding);
        Ok(())
    }

    fn connect(&self, addr: &[u8], nonblocking: bool) -> Result {
        let family = family_of(addr)?;
        if family == uapi::AF_UNSPEC {
            self.disconnect();
            return Ok(());
        }
        {
            let mut state = self.state.lock();
            match state.phase {
                Phase::Connected if state.unreported => {
                    state.unreported = false;
                    return Ok(());
                }
                Phase::Connected | Phase::Listening(_) => return Err(Errno::EISCONN),
                Phase::Connecting if nonblocking => return Err(Errno::EALREADY),
                Phase::Connecting => {
                    drop(state);
                    return self.wait_connected();
                }
                Phase::Failed => {
                    drop(state);
                    return Err(self.collect_failure());
                }
                Phase::Closed => {}
            }
        }
        let to = if self.family == Family::V6 && family == uapi::AF_INET && !self.ip.has(Switch::V6Only) {
            Endpoint::decode(addr, Family::V4)?
        } else {
            Endpoint::decode(addr, self.family)?
        };
        if to.ip.is_ipv4() && self.family == Family::V6 && self.ip.has(Switch::V6Only) {
            return Err(Errno::ENETUNREACH);
        }
        let attempt = self.start(to)?;
        if nonblocking {
            // Also where all is over: the answer is collected by poll and SO_ERROR, as it is from the network's.
            let mut state = self.state.lock();
            state.unreported = true;
            return Err(Errno::EINPROGRESS);
        }
        match attempt {
            Attempt::Done => Ok(()),
            Attempt::Failed(_) => Err(self.collect_failure()),
            Attempt::Waits => {
                self.state.lock().unreported = true;
                self.wait_connected()
            }
        }
    }

    fn listen(&self, backlog: i32) -> Result {
        let most = BACKLOG_MAX.load(Relaxed) as usize;
        let backlog = usize::try_from(backlog).unwrap_or(usize::MAX).min(most);
        {
            let mut state = self.state.lock();
            match &mut state.phase {
                Phase::Listening(listener) => {
                    listener.backlog = backlog;
                    return Ok(());
                }
                Phase::Closed | Phase::Failed => {}
                _ => return Err(Errno::EINVAL),
            }
        }
        if self.state.lock().binding.is_none() {
            let ip = self.family.any();
            let binding = TCP.bind(0, self.claim(ip, current().with_cred(|c| c.euid)))?;
            let mut state = self.state.lock();
            if state.binding.is_none() {
                state.local = Some(Endpoint::new(ip, binding.port()));
                state.binding = Some(binding);
                state.bound_port = true;
            }
        }
        let mut state = self.state.lock();
        let (address, port) = (self.options.has(uapi::SO_REUSEADDR), self.options.has(uapi::SO_REUSEPORT));
        if let Some(binding) = &state.binding {
            binding.change(|claim| {
                claim.listens = true;
                claim.reuse_address = address;
                claim.reuse_port = port;
            })?;
        }
        state.phase =
            Phase::Listening(Listener { backlog, ready: VecDeque::new(), waiting: VecDeque::new(), embryos: 0 });
        Ok(())
    }

    fn accept(&self, nonblocking: bool) -> Result<(Arc<dyn SocketOps>, Vec<u8>)> {
        let take = || -> Option<Result<(Arc<Tcp>, Option<Arc<Tcp>>)>> {
            let mut state = self.state.lock();
            let Phase::Listening(listener) = &mut state.phase else { return Some(Err(Errno::EINVAL)) };
            let child = listener.ready.pop_front()?;
            let next = core::iter::from_fn(|| listener.waiting.pop_front()).find_map(|w| w.upgrade());
            Some(Ok((child, next)))
        };
        let (child, next) = match take() {
            Some(outcome) => outcome?,
            None if nonblocking => return Err(Errno::EAGAIN),
            None => {
                let deadline = self.options.receive_deadline();
                match self.readers.wait_interruptible(deadline, take) {
                    Err(Errno::ETIMEDOUT) => return Err(Errno::EAGAIN),
                    Err(Errno::ERESTARTSYS) if deadline.is_some() => return Err(Errno::EINTR),
                    other => other??,
                }
            }
        };
        if let (Some(client), Some(me)) = (next, self.me.upgrade()) {
            let ends = {
                let state = client.state.lock();
                state.local.zip(state.remote).filter(|_| matches!(state.phase, Phase::Connecting))
            };
            if let Some((local, to)) = ends
                && let Attempt::Failed(error) = hand_over(&client, &me, local, to)
            {
                client.fail(error);
            }
        }
        let remote = child.state.lock().remote;
        let address = remote.unwrap_or(Endpoint::new(self.family.any(), 0)).encode(self.family);
        Ok((child, address))
    }

    fn local_address(&self) -> Result<Vec<u8>> {
        let local = self.state.lock().local;
        Ok(local.unwrap_or(Endpoint::new(self.family.any(), 0)).encode(self.family))
    }

    fn peer_address(&self) -> Result<Vec<u8>> {
        let state = self.state.lock();
        let over = state.link.as_ref().is_none_or(|l| l.is_over());
        match state.remote {
            Some(remote) if !over => Ok(remote.encode(self.family)),
            _ => Err(Errno::ENOTCONN),
        }
    }

    fn shutdown(&self, read: bool, write: bool) -> Result {
        let link = {
            let mut state = self.state.lock();
            match &state.phase {
                Phase::Listening(_) if read => {
                    drop(state);
                    self.stop_listening();
                    return Ok(());
                }
                Phase::Listening(_) => return Ok(()),
                Phase::Connecting => {
                    drop(state);
                    self.disconnect();
                    return Ok(());
                }
                Phase::Closed | Phase::Failed => return Err(Errno::ENOTCONN),
                Phase::Connected => {}
            }
            let link = state.link.clone().filter(|l| !l.is_over()).ok_or(Errno::ENOTCONN)?;
            state.receive_shut |= read;
            link
        };
        if write {
            link.finish();
        }
        self.wake_all();
        Ok(())
    }

    fn send(&self, message: &mut Outgoing<'_, '_>) -> Result<usize> {
        self.send_message(message)
    }

    fn receive(&self, message: &mut Incoming<'_, '_>) -> Result<usize> {
        self.receive_message(message)
    }

    fn flags_changed(&self) {
        self.urgency.inline.store(self.options.has(uapi::SO_OOBINLINE), Relaxed);
    }

    fn set_owner(&self, owner: &SharedOwner) {
        self.urgency.owner.call_once(|| owner.clone());
    }

    fn options(&self) -> &Options {
        &self.options
    }

    fn take_error(&self) -> Option<Errno> {
        self.error.take()
    }

    fn is_listening(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Listening(_))
    }

    fn send_buffer(&self) -> usize {
        match self.send_buffer.load(Relaxed) {
            0 if self.link().is_some() => SEND_CONNECTED,
            0 => SEND_DEFAULT,
            bytes => bytes,
        }
    }

    fn set_send_buffer(&self, bytes: usize) {
        self.send_buffer.store(bytes, Relaxed);
        if let Some(link) = self.link() {
            link.tx.set_writer_room(bytes);
        }
    }

    fn set_receive_buffer(&self, bytes: usize) {
        self.options.rcvbuf.store(bytes, Relaxed);
        if let Some(link) = self.link() {
            link.rx.set_reader_room(bytes);
        }
    }

    fn get_option(&self, level: i32, name: u32, room: usize) -> Result<Vec<u8>> {
        match level {
            l if l == uapi::SOL_SOCKET as i32 => get_socket_option(name, &self.device),
            SOL_TCP => self.tcp.get(name, || self.info()),
            SOL_IPV6 if self.family == Family::V4 => Err(Errno::ENOPROTOOPT),
            SOL_IP | SOL_IPV6 => self.ip.get(level, name, room, || {
                let remote = self.state.lock().remote.ok_or(Errno::ENOTCONN)?;
                let way = interface::way(remote.ip, self.device.load(Relaxed), remote.scope)?;
                Ok(way.interface.mtu.load(Relaxed))
            }),
            _ => Err(Errno::ENOPROTOOPT),
        }
    }

    fn set_option(&self, level: i32, name: u32, value: &[u8]) -> Result {
        match level {
            l if l == uapi::SOL_SOCKET as i32 => {
                bound_device(name, value, &self.device)?;
                match &self.state.lock().binding {
                    Some(binding) => binding.change(|claim| claim.device = self.device.load(Relaxed)),
                    None => Ok(()),
                }
            }
            SOL_TCP => {
                self.tcp.set(name, value)?;
                remote::options_changed(self);
                Ok(())
            }
            SOL_IPV6 if self.family == Family::V4 => Err(Errno::ENOPROTOOPT),
            SOL_IP | SOL_IPV6 => {
                let is_bound = self.state.lock().binding.is_some();
                self.ip.set(level, name, value, is_bound, true)
            }
            _ => Err(Errno::ENOPROTOOPT),
        }
    }

    fn poll(&self, pt: Option<&mut PollTable>) -> PollEvents {
        if let Some(pt) = pt {
            pt.register(&self.readers);
            pt.register(&self.writers);
        }
        let mut events = PollEvents::empty();
        let (link, receive_shut) = {
            let state = self.state.lock();
            match &state.phase {
                Phase::Listening(listener) => {
                    return if listener.ready.is_empty() { events } else { PollEvents::READABLE };
                }
                Phase::Connecting => return events,
                Phase::Failed => {
                    events |= PollEvents::READABLE | PollEvents::WRITABLE | PollEvents::POLLHUP | PollEvents::POLLRDHUP;
                }
                Phase::Closed => events |= PollEvents::WRITABLE | PollEvents::POLLHUP,
                Phase::Connected => {}
            }
            (state.link.clone(), state.receive_shut)
        };
        if let Some(link) = link {
            let reset = link.tx.has(RESET);
            let (ends, ended) = (link.rx.has(FIN) || receive_shut || reset, link.tx.has(FIN) || reset);
            if ends && ended {
                events |= PollEvents::POLLHUP;
            }
            if ends {
                events |= PollEvents::READABLE | PollEvents::POLLRDHUP;
            }
            let least = self.options.receive_low_water.load(Relaxed).max(1) as usize;
            // The urgent byte that is next is passed over by a read.
            if link.rx.len() >= least + usize::from(link.rx.passes_over()) {
                events |= PollEvents::READABLE;
            }
            if link.rx.has_urgent() {
                events |= PollEvents::POLLPRI;
            }
            if ended || link.tx.is_writable() {
                events |= PollEvents::WRITABLE;
            }
        }
        if self.error.is_set() {
            events |= PollEvents::POLLERR;
        }
        events
    }

    fn ioctl(&self, cmd: u32, arg: usize) -> Result<i64> {
        let listens = self.is_listening();
        let link = self.link();
        let value = match cmd {
            io::FIONREAD | io::TIOCOUTQ | SIOCOUTQNSD if listens => return Err(Errno::EINVAL),
            io::FIONREAD => link.map_or(0, |l| l.rx.readable()),
            io::TIOCOUTQ | SIOCOUTQNSD => link.map_or(0, |l| l.tx.unacknowledged()),
            io::SIOCATMARK => usize::from(link.is_some_and(|l| l.rx.is_at_urgent(0))),
            _ => return Err(Errno::ENOTTY),
        };
        UserPtr::<i32>::new(arg as u64).write(&i32::try_from(value).unwrap_or(i32::MAX))?;
        Ok(0)
    }

    fn release(&self) {
        self.stop_listening();
        let (link, binding) = {
            let mut state = self.state.lock();
            state.closed = true;
            self.unregister(&state);
            state.phase = Phase::Closed;
            (state.link.take(), state.binding.take())
        };
        self.ip.leave_groups();
        let Some(link) = link else {
            remote::abandon(self);
            return;
        };
        if link.tx.has(RESET) {
            link.rx.mark(GONE);
            return;
        }
        let linger = self.options.linger.load(Relaxed);
        if linger == 0 || link.rx.len() > 0 {
            link.reset();
            return;
        }
        let was_over = link.is_over();
        link.rx.mark(GONE);
        link.finish();
        if linger > 0 {
            remote::linger(&link, linger);
        }
        if !was_over
            && link.ended_first.load(Ordering::SeqCst)
            && let Some(binding) = binding
        {
            TCP.wait_out(binding);
        }
    }

    fn identify(&self, ino: u64, uid: u32) {
        self.identity.set(ino, uid);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_arc(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
