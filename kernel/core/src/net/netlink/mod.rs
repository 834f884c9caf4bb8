//! Netlink sockets (`AF_NETLINK`): datagrams between programs and parts of the kernel, and among programs.
//!
//! A [`Netlink`] socket belongs to a [`Protocol`], has a port of its own there (0 is the kernel) and may be in multicast
//! groups. What is sent to port 0 is handled at once, in the sender's call: [`route`] answers for network interfaces, [`uevent`]
//! passes injected device events on. What is sent to a group goes to all its members but the sender; a member whose queue
//! is full loses the message and learns it from `ENOBUFS`, as netlink promises no more.
//!
//! | protocol | kernel end | groups |
//! |---|---|---|
//! | `NETLINK_ROUTE` | [`route`]: interfaces, addresses, routes, neighbours | interfaces, addresses and routes that change |
//! | `NETLINK_USERSOCK` | none | programs' own |
//! | `NETLINK_SOCK_DIAG` | [`diag`]: lists of sockets | none that anything comes to |
//! | `NETLINK_KOBJECT_UEVENT` | [`uevent`] | 1: the kernel's uevents; 2: those of the device manager, with its properties |
//!
//! Locking, all spin locks: the table of a protocol, then a socket's `state`; `queue` is a leaf. Filters run and wake-ups
//! happen outside of them. Messages are shared by all receivers.
//!
//! References: netlink(7), `net/netlink/af_netlink.c`.

mod attributes;
mod diag;
mod queue;
pub mod route;
pub mod uevent;

use alloc::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use linux_uapi::netlink::{NlMsgHdr, SockAddrNl};
use linux_uapi::raw::{net as uapi, netlink as nl};
use linux_uapi::zerocopy::{FromBytes, IntoBytes};
use ursa_hal::sync::SpinLock;

use self::queue::{Offer, Queue};
use super::message::{Sender, sender_credentials};
use super::options::BUFFER_DEFAULT;
use super::pending_error::PendingError;
use super::{Incoming, Options, Outgoing, SocketOps};
use crate::poll::{PollEvents, PollTable};
use crate::process::{Cap, capable, current};
use crate::time::Deadline;
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// `SOL_NETLINK`
pub const SOL_NETLINK: i32 = 270;
/// Ports that are given out when the process's own is taken lie below.
const AUTO_PORT_MAX: i32 = -4097;
const HEADER: usize = size_of::<NlMsgHdr>();

/// The protocols that exist here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `NETLINK_ROUTE`
    Route,
    /// `NETLINK_USERSOCK`
    UserSock,
    /// `NETLINK_KOBJECT_UEVENT`
    Uevent,
    /// `NETLINK_SOCK_DIAG`
    SockDiag,
}

impl Protocol {
    /// The protocol with a number.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT`.
    pub fn decode(number: u32) -> Result<Protocol> {
        match number {
            nl::NETLINK_ROUTE => Ok(Protocol::Route),
            nl::NETLINK_USERSOCK => Ok(Protocol::UserSock),
            nl::NETLINK_KOBJECT_UEVENT => Ok(Protocol::Uevent),
            nl::NETLINK_SOCK_DIAG => Ok(Protocol::SockDiag),
            _ => Err(Errno::EPROTONOSUPPORT),
        }
    }

    fn number(self) -> u32 {
        match self {
            Protocol::Route => nl::NETLINK_ROUTE,
            Protocol::UserSock => nl::NETLINK_USERSOCK,
            Protocol::Uevent => nl::NETLINK_KOBJECT_UEVENT,
            Protocol::SockDiag => nl::NETLINK_SOCK_DIAG,
        }
    }

    /// How many groups there are: at least those that an address can name.
    fn groups(self) -> u32 {
        match self {
            Protocol::Route => 36,
            _ => 32,
        }
    }

    /// Whether anybody may send to ports and groups (`NL_CFG_F_NONROOT_SEND`).
    fn anyone_sends(self) -> bool {
        self == Protocol::UserSock
    }

    /// Whether anybody may join groups (`NL_CFG_F_NONROOT_RECV`).
    fn anyone_listens(self) -> bool {
        self != Protocol::UserSock
    }

    fn table(self) -> &'static SpinLock<Table> {
        static TABLES: [SpinLock<Table>; 4] = [const { SpinLock::new(Table::new()) }; 4];
        &TABLES[self as usize]
    }

    /// The sockets that are in `group`.
    fn members(self, group: u32) -> Vec<Arc<Netlink>> {
        let sockets: Vec<Arc<Netlink>> = self.table().lock().sockets.iter().filter_map(Weak::upgrade).collect();
        sockets.into_iter().filter(|socket| socket.is_member(group)).collect()
    }

    /// Sends a message to a group; a sender does not hear itself.
    fn multicast(self, packet: &Arc<Packet>) {
        for socket in self.members(packet.group) {
            if packet.port == 0 || socket.port() != packet.port {
                socket.deliver_or_overrun(packet);
            }
        }
    }
}

/// The sockets of a protocol.
struct Table {
    sockets: Vec<Weak<Netlink>>,
    ports: BTreeMap<u32, Weak<Netlink>>,
}

impl Table {
    const fn new() -> Table {
        Table { sockets: Vec::new(), ports: BTreeMap::new() }
    }
}

/// A message on its way.
struct Packet {
    data: Vec<u8>,
    /// The sender's port; 0 is the kernel.
    port: u32,
    /// The group that it was sent to; 0 for one receiver.
    group: u32,
    credentials: Sender,
}

/// Who the kernel is.
const KERNEL: Sender = Sender { process: None, uid: 0, gid: 0 };

#[derive(Default)]
struct State {
    port: u32,
    bound: bool,
    /// Group `n` is bit `n - 1`.
    groups: u64,
    peer_port: u32,
    peer_group: u32,
}

/// A netlink socket.
pub struct Netlink {
    me: Weak<Netlink>,
    kind: u32,
    protocol: Protocol,
    state: SpinLock<State>,
    queue: SpinLock<Queue>,
    read_queue: Arc<WaitQueue>,
    /// Senders that wait for room in `queue`.
    write_queue: Arc<WaitQueue>,
    error: PendingError,
    send_buffer: AtomicU32,
    options: Options,
    /// `NETLINK_PKTINFO`
    packet_info: AtomicBool,
    /// `NETLINK_CAP_ACK`
    short_acks: AtomicBool,
    /// `NETLINK_NO_ENOBUFS`
    silent_overruns: AtomicBool,
    /// Options that are kept and change nothing here, by number.
    kept: AtomicU32,
}

fn group_bit(group: u32) -> u64 {
    if group == 0 || group > 64 { 0 } else { 1 << (group - 1) }
}

/// The group that an address names: the lowest of its bits.
fn group_of(mask: u32) -> u32 {
    if mask == 0 { 0 } else { mask.trailing_zeros() + 1 }
}

fn address(port: u32, groups: u32) -> Vec<u8> {
    let address = SockAddrNl { family: uapi::AF_NETLINK as u16, pad: 0, pid: port, groups };
    Vec::from(address.as_bytes())
}

fn decode_address(bytes: &[u8]) -> Result<SockAddrNl> {
    let (address, _) = SockAddrNl::read_from_prefix(bytes).map_err(|_| Errno::EINVAL)?;
    if u32::from(address.family) != uapi::AF_NETLINK { Err(Errno::EINVAL) } else { Ok(address) }
}

impl Netlink {
    /// Makes a socket, checking the arguments of `socket(2)`.
    ///
    /// # Errors
    /// `ESOCKTNOSUPPORT`, `EPROTONOSUPPORT`.
    pub fn new(kind: u32, protocol: u32) -> Result<Arc<Netlink>> {
        if kind != uapi::SOCK_RAW && kind != uapi::SOCK_DGRAM {
            return Err(Errno::ESOCKTNOSUPPORT);
        }
        let protocol = Protocol::decode(protocol)?;
        let socket = Arc::new_cyclic(|me| Netlink {
            me: me.clone(),
            kind,
            protocol,
            state: SpinLock::new(State::default()),
            queue: SpinLock::new(Queue::default()),
            read_queue: Arc::new(WaitQueue::new()),
            write_queue: Arc::new(WaitQueue::new()),
            error: PendingError::new(),
            send_buffer: AtomicU32::new(BUFFER_DEFAULT as u32),
            options: Options::new(),
            packet_info: AtomicBool::new(false),
            short_acks: AtomicBool::new(false),
            silent_overruns: AtomicBool::new(false),
            kept: AtomicU32::new(0),
        });
        protocol.table().lock().sockets.push(Arc::downgrade(&socket));
        Ok(socket)
    }

    fn port(&self) -> u32 {
        self.state.lock().port
    }

    fn is_member(&self, group: u32) -> bool {
        self.state.lock().groups & group_bit(group) != 0
    }

    /// Takes a port; `None`: the process's number, or a free one.
    fn take_port(&self, wanted: Option<u32>) -> Result {
        let pid = current().process().seen_pid() as u32;
        let mut table = self.protocol.table().lock();
        let is_free = |table: &Table, port: u32| !table.ports.contains_key(&port);
        let port = match wanted {
            Some(port) if is_free(&table, port) => port,
            Some(_) => return Err(Errno::EADDRINUSE),
            None if is_free(&table, pid) => pid,
            None => {
                let free = (i32::MIN..=AUTO_PORT_MAX).rev().find(|port| is_free(&table, *port as u32));
                free.ok_or(Errno::EADDRINUSE)? as u32
            }
        };
        {
            // Order: the table of the protocol, then a socket's state.
            let mut state = self.state.lock();
            if state.bound {
                return if wanted.is_none_or(|port| port == state.port) { Ok(()) } else { Err(Errno::EINVAL) };
            }
            state.bound = true;
            state.port = port;
        }
        table.ports.insert(port, self.me.clone());
        Ok(())
    }

    fn may_send(&self) -> bool {
        self.protocol.anyone_sends() || capable(Cap::NetAdmin)
    }

    fn may_listen(&self) -> bool {
        self.protocol.anyone_listens() || capable(Cap::NetAdmin)
    }

    fn set_error(&self, error: Errno) {
        self.error.set(error);
        self.read_queue.wake_events(PollEvents::POLLERR | PollEvents::READABLE);
    }

    /// Puts a message into the queue, as much of it as the socket's filter lets through.
    fn offer(&self, packet: &Arc<Packet>) -> Offer {
        let Some(len) = self.options.admit(&packet.data) else { return Offer::Taken };
        let limit = self.options.rcvbuf.load(Ordering::Relaxed);
        let offer = self.queue.lock().offer(packet, len, limit);
        if offer == Offer::Taken {
            self.read_queue.wake_events(PollEvents::READABLE);
        }
        offer
    }

    /// A multicast message: who has no room for it loses it, and is told once.
    fn deliver_or_overrun(&self, packet: &Arc<Packet>) {
        if self.offer(packet) != Offer::Full || self.silent_overruns.load(Ordering::Relaxed) {
            return;
        }
        if self.queue.lock().congest() {
            self.set_error(Errno::ENOBUFS);
        }
    }

    /// The kernel's answer to this socket. An answer that finds no room is lost, as on Linux.
    pub fn answer(&self, data: Vec<u8>) {
        let packet = Arc::new(Packet { data, port: 0, group: 0, credentials: KERNEL });
        self.deliver_or_overrun(&packet);
    }

    /// A message to one socket, which may have to be waited for.
    fn send_to(&self, port: u32, packet: &Arc<Packet>, nonblocking: bool) -> Result {
        let deadline = self.options.send_deadline();
        loop {
            let found = self.protocol.table().lock().ports.get(&port).and_then(Weak::upgrade);
            let target = found.ok_or(Errno::ECONNREFUSED)?;
            match target.offer(packet) {
                Offer::Taken => return Ok(()),
                Offer::Closed => return Err(Errno::ECONNREFUSED),
                Offer::Full if nonblocking => return Err(Errno::EAGAIN),
                Offer::Full => {
                    let limit = target.options.rcvbuf.load(Ordering::Relaxed);
                    wait(&target.write_queue, deadline, || target.queue.lock().has_room(limit))?;
                }
            }
        }
    }

    /// Handles what was sent to the kernel.
    fn request(&self, data: &[u8]) -> Result {
        match self.protocol {
            Protocol::Route => self.for_each_request(data, |header, body| route::handle(self, header, body)),
            Protocol::SockDiag => self.for_each_request(data, |header, body| diag::handle(self, header, body)),
            Protocol::Uevent => self.for_each_request(data, |_, body| uevent::inject(body, data.len())),
            // No one listens at the other end.
            Protocol::UserSock => return Err(Errno::ECONNREFUSED),
        }
        Ok(())
    }

    /// Goes through the messages of a datagram and acknowledges them (`netlink_rcv_skb`).
    fn for_each_request(&self, data: &[u8], mut handle: impl FnMut(&NlMsgHdr, &[u8]) -> Result) {
        let mut rest = data;
        while let Ok((header, _)) = NlMsgHdr::read_from_prefix(rest) {
            let len = header.len as usize;
            if len < HEADER || len > rest.len() {
                return;
            }
            let flags = u32::from(header.flags);
            let is_request = flags & nl::NLM_F_REQUEST != 0 && u32::from(header.kind) >= nl::NLMSG_MIN_TYPE;
            let outcome = if is_request { handle(&header, &rest[HEADER..len]) } else { Ok(()) };
            if outcome.is_err() || flags & nl::NLM_F_ACK != 0 {
                self.acknowledge(&header, &rest[..len], outcome);
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
    }

    /// `NLMSG_ERROR` with the error and the request it answers.
    fn acknowledge(&self, request: &NlMsgHdr, message: &[u8], outcome: Result) {
        let whole = outcome.is_err() && !self.short_acks.load(Ordering::Relaxed);
        let echoed = if whole { message } else { &message[..HEADER] };
        let flags = if whole { 0 } else { nl::NLM_F_CAPPED };
        let error = outcome.map_or_else(|e| -(e.raw() as i32), |()| 0);
        let mut body = Vec::from(error.to_ne_bytes());
        body.extend_from_slice(echoed);
        self.answer(self.message(request, nl::NLMSG_ERROR, flags, &body));
    }

    /// A message that answers `request`.
    fn message(&self, request: &NlMsgHdr, kind: u32, flags: u32, body: &[u8]) -> Vec<u8> {
        let len = HEADER + body.len();
        let header =
            NlMsgHdr { len: len as u32, kind: kind as u16, flags: flags as u16, seq: request.seq, pid: self.port() };
        let mut message = Vec::from(header.as_bytes());
        message.extend_from_slice(body);
        message.resize(len.next_multiple_of(4), 0);
        message
    }

    /// Leaves the table: nobody finds the socket any more.
    fn leave(&self) {
        let mut table = self.protocol.table().lock();
        table.sockets.retain(|socket| !socket.ptr_eq(&self.me));
        let port = self.state.lock().port;
        if table.ports.get(&port).is_some_and(|socket| socket.ptr_eq(&self.me)) {
            table.ports.remove(&port);
        }
    }

    fn set_membership(&self, group: u32, joins: bool) -> Result {
        if !self.may_listen() {
            return Err(Errno::EPERM);
        }
        if group == 0 || group > self.protocol.groups() {
            return Err(Errno::EINVAL);
        }
        let mut state = self.state.lock();
        if joins {
            state.groups |= group_bit(group);
        } else {
            state.groups &= !group_bit(group);
        }
        Ok(())
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        // A socket that never became a file was never released.
        self.leave();
    }
}

/// Waits as a socket call does: a time-out is `EAGAIN`.
fn wait(queue: &WaitQueue, deadline: Option<Deadline>, done: impl Fn() -> bool) -> Result {
    match queue.wait_interruptible(deadline, || done().then_some(())) {
        Err(Errno::ETIMEDOUT) => Err(Errno::EAGAIN),
        Err(Errno::ERESTARTSYS) if deadline.is_some() => Err(Errno::EINTR),
        other => other,
    }
}

impl SocketOps for Netlink {
    fn domain(&self) -> u32 {
        uapi::AF_NETLINK
    }

    fn kind(&self) -> u32 {
        self.kind
    }

    fn protocol(&self) -> u32 {
        self.protocol.number()
    }

    fn bind(&self, addr: &[u8]) -> Result {
        let wanted = decode_address(addr)?;
        if wanted.groups != 0 && !self.may_listen() {
            return Err(Errno::EPERM);
        }
        let (bound, port) = {
            let state = self.state.lock();
            (state.bound, state.port)
        };
        if bound {
            if wanted.pid != port {
                return Err(Errno::EINVAL);
            }
        } else {
            self.take_port((wanted.pid != 0).then_some(wanted.pid))?;
        }
        let mut state = self.state.lock();
        state.groups = state.groups & !u64::from(u32::MAX) | u64::from(wanted.groups);
        Ok(())
    }

    fn connect(&self, addr: &[u8], _nonblocking: bool) -> Result {
        let family = addr.first_chunk::<2>().map(|f| u32::from(u16::from_ne_bytes(*f)));
        if family == Some(uapi::AF_UNSPEC) {
            let mut state = self.state.lock();
            state.peer_port = 0;
            state.peer_group = 0;
            return Ok(());
        }
        let peer = decode_address(addr)?;
        if (peer.groups != 0 || peer.pid != 0) && !self.may_send() {
            return Err(Errno::EPERM);
        }
        self.take_port(None)?;
        let mut state = self.state.lock();
        state.peer_port = peer.pid;
        state.peer_group = group_of(peer.groups);
        Ok(())
    }

    fn listen(&self, _backlog: i32) -> Result {
        Err(Errno::EOPNOTSUPP)
    }

    fn accept(&self, _nonblocking: bool) -> Result<(Arc<dyn SocketOps>, Vec<u8>)> {
        Err(Errno::EOPNOTSUPP)
    }

    fn local_address(&self) -> Result<Vec<u8>> {
        let state = self.state.lock();
        Ok(address(state.port, state.groups as u32))
    }

    fn peer_address(&self) -> Result<Vec<u8>> {
        let state = self.state.lock();
        Ok(address(state.peer_port, group_bit(state.peer_group) as u32))
    }

    fn shutdown(&self, _read: bool, _write: bool) -> Result {
        Err(Errno::EOPNOTSUPP)
    }

    fn send(&self, message: &mut Outgoing<'_, '_>) -> Result<usize> {
        if message.flags & uapi::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let len = message.data.remaining();
        if len == 0 {
            return Err(Errno::ENODATA);
        }
        // Descriptors travel through local sockets only.
        if !message.files.is_empty() {
            return Err(Errno::EINVAL);
        }
        let (port, group) = match &message.address {
            Some(bytes) => {
                let target = decode_address(bytes)?;
                if (target.groups != 0 || target.pid != 0) && !self.may_send() {
                    return Err(Errno::EPERM);
                }
                (target.pid, group_of(target.groups))
            }
            None => {
                let state = self.state.lock();
                (state.peer_port, state.peer_group)
            }
        };
        self.take_port(None)?;
        if len > self.send_buffer().saturating_sub(32) {
            return Err(Errno::EMSGSIZE);
        }
        let mut data = Vec::new();
        data.try_reserve_exact(len).map_err(|_| Errno::ENOBUFS)?;
        data.resize(len, 0);
        message.data.take_all(&mut data)?;
        let credentials = message.credentials.clone().unwrap_or_else(sender_credentials);
        let packet = Arc::new(Packet { data, port: self.port(), group, credentials });
        if group != 0 {
            self.protocol.multicast(&packet);
        }
        // As on Linux a multicast goes to one port as well: the kernel's, if none is named.
        if port == 0 {
            self.request(&packet.data)?;
        } else {
            self.send_to(port, &packet, message.flags & uapi::MSG_DONTWAIT != 0)?;
        }
        Ok(len)
    }

    fn receive(&self, message: &mut Incoming<'_, '_>) -> Result<usize> {
        if message.flags & uapi::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let deadline = self.options.receive_deadline();
        let peek = message.flags & uapi::MSG_PEEK != 0;
        let (packet, len) = loop {
            if let Some(error) = self.take_error() {
                return Err(error);
            }
            let (next, drained) = self.queue.lock().take(peek);
            if drained {
                self.write_queue.wake_events(PollEvents::WRITABLE);
            }
            if let Some(next) = next {
                break next;
            }
            if message.is_nonblocking() {
                return Err(Errno::EAGAIN);
            }
            wait(&self.read_queue, deadline, || !self.queue.lock().is_empty() || self.error.is_set())?;
        };
        let fits = len.min(message.data.remaining());
        message.data.put_all(&packet.data[..fits])?;
        if fits < len {
            message.out_flags |= uapi::MSG_TRUNC;
        }
        message.address = address(packet.port, group_bit(packet.group) as u32);
        if self.options.pass_credentials.load(Ordering::Relaxed) {
            message.control.credentials = Some(packet.credentials.clone());
        }
        if self.packet_info.load(Ordering::Relaxed) {
            message.control.packet_group = Some(packet.group);
        }
        Ok(if message.flags & uapi::MSG_TRUNC != 0 { len } else { fits })
    }

    fn options(&self) -> &Options {
        &self.options
    }

    fn take_error(&self) -> Option<Errno> {
        self.error.take()
    }

    fn is_listening(&self) -> bool {
        false
    }

    fn send_buffer(&self) -> usize {
        self.send_buffer.load(Ordering::Relaxed) as usize
    }

    fn set_send_buffer(&self, bytes: usize) {
        self.send_buffer.store(u32::try_from(bytes).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    fn get_option(&self, level: i32, name: u32, room: usize) -> Result<Vec<u8>> {
        if level != SOL_NETLINK {
            return Err(Errno::ENOPROTOOPT);
        }
        if name == nl::NETLINK_LIST_MEMBERSHIPS {
            let groups = self.state.lock().groups;
            return Ok(Vec::from(&groups.to_ne_bytes()[..if self.protocol.groups() > 32 { 8 } else { 4 }]));
        }
        if room < 4 {
            return Err(Errno::EINVAL);
        }
        let value = match name {
            nl::NETLINK_PKTINFO => self.packet_info.load(Ordering::Relaxed),
            nl::NETLINK_CAP_ACK => self.short_acks.load(Ordering::Relaxed),
            nl::NETLINK_NO_ENOBUFS => self.silent_overruns.load(Ordering::Relaxed),
            nl::NETLINK_BROADCAST_ERROR | nl::NETLINK_EXT_ACK | nl::NETLINK_GET_STRICT_CHK => {
                self.kept.load(Ordering::Relaxed) & 1 << name != 0
            }
            _ => return Err(Errno::ENOPROTOOPT),
        };
        Ok(Vec::from(i32::from(value).to_ne_bytes()))
    }

    fn set_option(&self, level: i32, name: u32, value: &[u8]) -> Result {
        if level != SOL_NETLINK {
            return Err(Errno::ENOPROTOOPT);
        }
        let value = value.first_chunk::<4>().map(|v| u32::from_ne_bytes(*v)).ok_or(Errno::EINVAL)?;
        let on = value != 0;
        match name {
            nl::NETLINK_ADD_MEMBERSHIP => self.set_membership(value, true)?,
            nl::NETLINK_DROP_MEMBERSHIP => self.set_membership(value, false)?,
            nl::NETLINK_PKTINFO => self.packet_info.store(on, Ordering::Relaxed),
            nl::NETLINK_CAP_ACK => self.short_acks.store(on, Ordering::Relaxed),
            nl::NETLINK_NO_ENOBUFS => {
                self.silent_overruns.store(on, Ordering::Relaxed);
                if on {
                    self.queue.lock().relieve();
                    self.write_queue.wake_events(PollEvents::WRITABLE);
                }
            }
            // Errors here carry no attributes, requests are always checked strictly, and a lost multicast is nobody's error.
            nl::NETLINK_BROADCAST_ERROR | nl::NETLINK_EXT_ACK | nl::NETLINK_GET_STRICT_CHK => {
                let bit = 1 << name;
                if on {
                    self.kept.fetch_or(bit, Ordering::Relaxed);
                } else {
                    self.kept.fetch_and(!bit, Ordering::Relaxed);
                }
            }
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }

    fn poll(&self, pt: Option<&mut PollTable>) -> PollEvents {
        if let Some(pt) = pt {
            pt.register(&self.read_queue);
        }
        // Sending waits for room at the receiver's end only, whoever that will be.
        let mut events = PollEvents::WRITABLE;
        if self.error.is_set() {
            events |= PollEvents::POLLERR;
        }
        if !self.queue.lock().is_empty() {
            events |= PollEvents::READABLE;
        }
        events
    }

    fn ioctl(&self, _cmd: u32, _arg: usize) -> Result<i64> {
        Err(Errno::ENOTTY)
    }

    fn release(&self) {
        self.leave();
        let left = self.queue.lock().close();
        drop(left);
        self.write_queue.wake_events(PollEvents::WRITABLE);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_arc(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
