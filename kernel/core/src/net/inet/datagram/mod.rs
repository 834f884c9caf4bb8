//! Sockets of datagrams: UDP and UDP-Lite ([`udp`]), echo requests (`IPPROTO_ICMP` datagrams) and raw IP ([`raw`]).
//!
//! A datagram between two sockets of the machine is one allocation that goes from the sender's call into the receiver's
//! queue; what leaves the machine becomes a packet in [`ip::output`].
//!
//! Locking: `state`, `queue` and the tables of [`Ports`] are leaves, none held while another is taken.
//! References: udp(7), icmp(7), raw(7), `net/ipv4/udp.c`, `net/ipv4/ping.c`, `net/ipv4/raw.c`.

mod message;
pub mod raw;
pub mod udp;

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, Ordering::Relaxed};

use linux_uapi::raw::{ioctl as io, net as uapi};
use linux_uapi::zerocopy::IntoBytes;
use ursa_hal::sync::SpinLock;

use self::message::{Wishes, wishes};
use self::raw::{PING, RAW};
use super::address::{Endpoint, Family, family_of, is_link_local};
use super::icmp::Report;
use super::interface::{self, Way};
use super::ip::{self, Header};
use super::options::{IpOptions, SOL_IP, SOL_IPV6, Switch};
use super::ports::{Binding, Claim, Ports, UNPRIVILEGED};
use super::{Identity, bound_device, wait};
use crate::net::options::BUFFER_DEFAULT;
use crate::net::pending_error::PendingError;
use crate::net::{Incoming, Options, Outgoing, SocketOps};
use crate::poll::{PollEvents, PollTable};
use crate::process::{Cap, capable, current};
use crate::time::realtime_ns;
use crate::user::UserPtr;
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// What a datagram costs beside its bytes: about Linux's `sk_buff`.
const OVERHEAD: usize = 512;
/// The most bytes that a UDP datagram or raw packet over IPv4 carries.
const PACKET_MAX: usize = 65_535;
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;
/// Errors kept for `MSG_ERRQUEUE`.
const ERRORS_MAX: usize = 32;
/// `IPPROTO_RAW`
const PROTOCOL_RAW: u8 = 255;
/// `SOL_RAW`
const SOL_RAW: i32 = 255;
const SOL_UDP: i32 = 17;
/// `SOL_UDPLITE`
const SOL_UDPLITE: i32 = 136;
/// `UDP_CORK`
const UDP_CORK: u32 = 1;
const SHUT_RECEIVE: u8 = 1;
const SHUT_SEND: u8 = 2;

/// How many raw sockets there are: nobody looks for them on the way of each packet.
static RAW_COUNT: AtomicUsize = AtomicUsize::new(0);

/// `net.ipv4.ping_group_range`: who may have echo sockets. The first range has nobody in it.
pub static PING_GROUPS: [AtomicU32; 2] = [AtomicU32::new(1), AtomicU32::new(0)];

/// UDP's counters, for `/proc/net/snmp`.
#[derive(Default)]
pub struct Counters {
    /// Delivered.
    pub received: AtomicU64,
    /// For a port that nobody has.
    pub no_port: AtomicU64,
    /// Malformed, or without room.
    pub errors: AtomicU64,
    /// Sent.
    pub sent: AtomicU64,
}

/// UDP's counters.
pub static COUNTERS: Counters = Counters {
    received: AtomicU64::new(0),
    no_port: AtomicU64::new(0),
    errors: AtomicU64::new(0),
    sent: AtomicU64::new(0),
};

/// What the socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// UDP
    Udp,
    /// UDP-Lite
    UdpLite,
    /// Echo requests and replies.
    Ping,
    /// Any, with its number.
    Raw(u8),
}

impl Protocol {
    /// UDP or its variant, which have ports that programs choose.
    fn is_udp(self) -> bool {
        matches!(self, Protocol::Udp | Protocol::UdpLite)
    }

    /// Its number in IP.
    fn number(self, family: Family) -> u8 {
        match (self, family) {
            (Protocol::Udp, _) => ip::UDP,
            (Protocol::UdpLite, _) => ip::UDPLITE,
            (Protocol::Ping, Family::V4) => ip::ICMP,
            (Protocol::Ping, Family::V6) => ip::ICMPV6,
            (Protocol::Raw(number), _) => number,
        }
    }
}

/// A datagram that has come.
struct Packet {
    data: Vec<u8>,
    from: Endpoint,
    to: IpAddr,
    interface: u32,
    ttl: u8,
    tos: u8,
    time: u64,
}

impl Packet {
    /// What came in under `header`, from [`sender`]'s endpoint.
    fn received(header: &Header, from: Endpoint, data: Vec<u8>) -> Packet {
        Packet {
            data,
            from,
            to: header.destination,
            interface: header.interface.index,
            ttl: header.ttl,
            tos: header.tos,
            time: 0,
        }
    }
}

/// Where a packet came from; a link-local address is one of its interface.
fn sender(header: &Header, port: u16) -> Endpoint {
    let scope = if is_link_local(header.source) { header.interface.index } else { 0 };
    Endpoint { ip: header.source, port, scope }
}

#[derive(Default)]
struct Queue {
    packets: VecDeque<Arc<Packet>>,
    charged: usize,
    closed: bool,
}

#[derive(Default)]
struct State {
    local: Option<Endpoint>,
    binding: Option<Binding<Datagram>>,
    /// Whether `bind` chose the address, as opposed to `connect`.
    bound_address: bool,
    bound_port: bool,
    remote: Option<Endpoint>,
}

/// A socket of datagrams.
pub struct Datagram {
    me: Weak<Datagram>,
    family: Family,
    protocol: Protocol,
    state: SpinLock<State>,
    queue: SpinLock<Queue>,
    errors: SpinLock<VecDeque<(Report, Endpoint)>>,
    drops: AtomicU32,
    readers: Arc<WaitQueue>,
    writers: Arc<WaitQueue>,
    error: PendingError,
    shut: AtomicU8,
    device: AtomicU32,
    send_buffer: AtomicUsize,
    /// `ICMP_FILTER`: types that are not wanted; `ICMP6_FILTER`.
    filter: SpinLock<[u32; 8]>,
    /// `IPV6_CHECKSUM`: where a raw socket's checksum stands.
    checksum_at: SpinLock<Option<usize>>,
    corked: SpinLock<Option<(Endpoint, Vec<u8>)>>,
    cork: AtomicBool,
    coverage: udp::Coverage,
    options: Options,
    ip: IpOptions,
    /// Who made it, for `/proc/net`.
    pub identity: Identity,
}

/// A socket as `/proc/net/udp` shows it.
pub struct Row {
    /// Its own end.
    pub local: Endpoint,
    /// The peer's.
    pub remote: Option<Endpoint>,
    /// Bytes that wait.
    pub queued: usize,
    /// Datagrams lost for want of room.
    pub drops: u32,
    /// Inode and owner.
    pub identity: (u64, u32),
    /// The family.
    pub family: Family,
}

impl Datagram {
    /// Makes a socket.
    ///
    /// # Errors
    /// `EPERM` for raw ones without `CAP_NET_RAW`, `EACCES` for echo sockets outside of the group range.
    pub fn new(family: Family, protocol: Protocol) -> Result<Arc<Datagram>> {
        match protocol {
            Protocol::Udp | Protocol::UdpLite => {}
            Protocol::Ping => {
                let [first, last] = [&PING_GROUPS[0], &PING_GROUPS[1]].map(|g| g.load(Relaxed));
                let cred = current().cred();
                let mut groups = core::iter::once(cred.egid).chain(cred.groups.iter().copied());
                if !groups.any(|g| (first..=last).contains(&g)) {
                    return Err(Errno::EACCES);
                }
            }
            Protocol::Raw(_) if !capable(Cap::NetRaw) => return Err(Errno::EPERM),
            Protocol::Raw(_) => {}
        }
        let ip = IpOptions::new(family);
        if protocol == Protocol::Raw(PROTOCOL_RAW) {
            ip.set(
                if family == Family::V4 { SOL_IP } else { SOL_IPV6 },
                header_included(family),
                &[1, 0, 0, 0],
                false,
                false,
            )?;
        }
        let socket = Arc::new_cyclic(|me| Datagram {
            me: me.clone(),
            family,
            protocol,
            state: SpinLock::new(State::default()),
            queue: SpinLock::new(Queue::default()),
            errors: SpinLock::new(VecDeque::new()),
            drops: AtomicU32::new(0),
            readers: Arc::new(WaitQueue::new()),
            writers: Arc::new(WaitQueue::new()),
            error: PendingError::new(),
            shut: AtomicU8::new(0),
            device: AtomicU32::new(0),
            send_buffer: AtomicUsize::new(BUFFER_DEFAULT),
            filter: SpinLock::new([0; 8]),
            checksum_at: SpinLock::new(None),
            corked: SpinLock::new(None),
            cork: AtomicBool::new(false),
            coverage: udp::Coverage::default(),
            options: Options::new(),
            ip,
            identity: Identity::default(),
        });
        if let Protocol::Raw(_) = protocol {
            RAW.lock().push(Arc::downgrade(&socket));
            RAW_COUNT.fetch_add(1, Relaxed);
        }
        Ok(socket)
    }

    fn table(&self) -> Option<&'static Ports<Datagram>> {
        match self.protocol {
            Protocol::Udp => Some(udp::table(false)),
            Protocol::UdpLite => Some(udp::table(true)),
            Protocol::Ping => Some(&PING),
            Protocol::Raw(_) => None,
        }
    }

    fn claim(&self, ip: IpAddr) -> Claim<Datagram> {
        Claim {
            ip,
            v6_only: self.ip.has(Switch::V6Only),
            device: self.device.load(Relaxed),
            reuse_address: self.options.has(uapi::SO_REUSEADDR),
            reuse_port: self.options.has(uapi::SO_REUSEPORT),
            uid: current().with_cred(|c| c.euid),
            listens: false,
            remote: None,
            owner: self.me.clone(),
        }
    }

    /// Takes a port if the socket has none.
    fn bind_any(&self) -> Result {
        if self.state.lock().binding.is_some() {
            return Ok(());
        }
        let ip = self.state.lock().local.map_or(self.family.any(), |l| l.ip);
        let Some(table) = self.table() else { return Ok(()) };
        let binding = table.bind(0, self.claim(ip)).map_err(|_| Errno::EAGAIN)?;
        let mut state = self.state.lock();
        if state.binding.is_none() {
            state.local = Some(Endpoint { port: binding.port(), ..state.local.unwrap_or(Endpoint::new(ip, 0)) });
            state.binding = Some(binding);
        }
        Ok(())
    }

    /// The way to an endpoint, and the address to send from.
    fn route(&self, to: &Endpoint, wishes: &Wishes) -> Result<(Way, IpAddr)> {
        let mut device = self.device.load(Relaxed);
        if wishes.interface != 0 {
            if device != 0 && device != wishes.interface {
                return Err(Errno::EINVAL);
            }
            device = wishes.interface;
        }
        if device == 0 && to.ip.is_multicast() {
            device = self.ip.multicast_interface.load(Relaxed);
        }
        let way = interface::way(to.ip, device, to.scope)?;
        let bound = self.state.lock().local.map(|l| l.ip).filter(|ip| !ip.is_unspecified() && !ip.is_multicast());
        let bound = bound.filter(|ip| !matches!(ip, IpAddr::V4(v4) if v4.is_broadcast()));
        let source = match wishes.source.or(bound) {
            Some(source) => source,
            None => way.source,
        };
        if source.is_ipv4() != to.ip.is_ipv4() {
            return Err(if to.ip.is_ipv4() { Errno::EINVAL } else { Errno::ENETUNREACH });
        }
        // A packet from this host itself goes nowhere else.
        if source.is_loopback() && !way.is_local {
            return Err(Errno::EINVAL);
        }
        Ok((way, source))
    }

    /// Where a message goes.
    fn destination(&self, address: Option<&[u8]>) -> Result<Endpoint> {
        let Some(bytes) = address else { return self.state.lock().remote.ok_or(Errno::EDESTADDRREQ) };
        let mut to = self.decode(bytes)?;
        if to.port == 0 && self.protocol.is_udp() {
            return Err(Errno::EINVAL);
        }
        if to.ip.is_unspecified() {
            to.ip = loopback_like(to.ip);
        }
        Ok(to)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Endpoint> {
        // An IPv6 socket speaks to IPv4's addresses too, unless it is for IPv6 only.
        if self.family == Family::V6 && family_of(bytes)? == uapi::AF_INET {
            if self.ip.has(Switch::V6Only) || !self.protocol.is_udp() {
                return Err(Errno::ENETUNREACH);
            }
            return Endpoint::decode(bytes, Family::V4);
        }
        // Programs that never set the family: AF_UNSPEC with an address of IPv4, as Linux takes it.
        if self.family == Family::V4 && bytes.len() >= 16 && family_of(bytes)? == uapi::AF_UNSPEC {
            return Ok(Endpoint::new(
                Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]).into(),
                u16::from_be_bytes([bytes[2], bytes[3]]),
            ));
        }
        let endpoint = Endpoint::decode(bytes, self.family)?;
        if endpoint.ip.is_ipv4() && self.family == Family::V6 && self.ip.has(Switch::V6Only) {
            return Err(Errno::ENETUNREACH);
        }
        Ok(endpoint)
    }

    fn offer(&self, packet: Packet) {
        let len = match self.options.admit(&packet.data) {
            Some(len) => len,
            None => return,
        };
        let mut packet = packet;
        packet.data.truncate(len);
        if self.options.stamps_time() {
            packet.time = realtime_ns();
        }
        let cost = packet.data.len() + OVERHEAD;
        let mut queue = self.queue.lock();
        // As on Linux the last one may go over the limit.
        if queue.closed || queue.charged > self.options.rcvbuf.load(Relaxed) {
            drop(queue);
            self.drops.fetch_add(1, Relaxed);
            COUNTERS.errors.fetch_add(1, Relaxed);
            return;
        }
        queue.charged += cost;
        queue.packets.push_back(Arc::new(packet));
        drop(queue);
        self.readers.wake_n(1, PollEvents::READABLE, false);
    }

    /// An error about a packet that this socket sent.
    fn told(&self, report: Report, about: Endpoint) {
        let wants = self.ip.has(if about.ip.is_ipv4() { Switch::ReceiveErrors } else { Switch::ReceiveErrors6 });
        if wants {
            let mut errors = self.errors.lock();
            if errors.len() < ERRORS_MAX {
                errors.push_back((report, about));
            }
        } else if !report.fatal || self.state.lock().remote.is_none() {
            return;
        }
        self.error.set(report.error);
        self.readers.wake_events(PollEvents::POLLERR | PollEvents::READABLE);
    }

    fn take_one(&self, peek: bool) -> Option<Arc<Packet>> {
        let mut queue = self.queue.lock();
        if peek {
            return queue.packets.front().cloned();
        }
        let packet = queue.packets.pop_front()?;
        queue.charged -= packet.data.len() + OVERHEAD;
        Some(packet)
    }

    fn row(&self) -> Row {
        let state = self.state.lock();
        let (local, remote) = (state.local.unwrap_or(Endpoint::new(self.family.any(), 0)), state.remote);
        drop(state);
        Row {
            local,
            remote,
            queued: self.queue.lock().charged,
            drops: self.drops.load(Relaxed),
            identity: self.identity.get(),
            family: self.family,
        }
    }
}

fn header_included(family: Family) -> u32 {
    if family == Family::V4 { uapi::IP_HDRINCL } else { uapi::IPV6_HDRINCL }
}

/// The loopback address of an address's family: what the wildcard means as a destination.
pub fn loopback_like(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

impl SocketOps for Datagram {
    fn domain(&self) -> u32 {
        self.family.number()
    }

    fn kind(&self) -> u32 {
        if let Protocol::Raw(_) = self.protocol { uapi::SOCK_RAW } else { uapi::SOCK_DGRAM }
    }

    fn protocol(&self) -> u32 {
        self.protocol.number(self.family).into()
    }

    fn bind(&self, addr: &[u8]) -> Result {
        let wanted = super::decode_bind(addr, self.family, self.ip.has(Switch::V6Only))?;
        let raw = self.table().is_none();
        super::check_bind(&wanted, &self.ip, self.device.load(Relaxed), true)?;
        if !raw
            && self.protocol.is_udp()
            && (1..UNPRIVILEGED.load(Relaxed)).contains(&u32::from(wanted.port))
            && !capable(Cap::NetBindService)
        {
            return Err(Errno::EACCES);
        }
        if self.state.lock().binding.is_some() {
            return Err(Errno::EINVAL);
        }
        let binding = self.table().map(|table| table.bind(wanted.port, self.claim(wanted.ip))).transpose()?;
        let mut state = self.state.lock();
        if state.binding.is_some() {
            drop(state);
            return Err(Errno::EINVAL);
        }
        let port = binding.as_ref().map_or(0, Binding::port);
        state.local = Some(Endpoint { port, ..wanted });
        state.bound_address = !wanted.ip.is_unspecified();
        state.bound_port = wanted.port != 0;
        state.binding = binding;
        Ok(())
    }

    fn connect(&self, addr: &[u8], _nonblocking: bool) -> Result {
        if family_of(addr)? == uapi::AF_UNSPEC {
            let mut state = self.state.lock();
            state.remote = None;
            // What bind did not choose is open again.
            let (by_bind, port) = (state.bound_address, state.bound_port);
            if !by_bind && let Some(local) = &mut state.local {
                local.ip = self.family.any();
            }
            let ip = state.local.map(|l| l.ip);
            let unbound = if port || by_bind { None } else { state.binding.take() };
            if unbound.is_some() {
                state.local = None;
            }
            let changed = state.binding.as_ref().zip(ip).map(|(b, ip)| {
                b.change(|claim| {
                    claim.remote = None;
                    claim.ip = ip;
                })
            });
            drop(state);
            drop(unbound);
            return changed.unwrap_or(Ok(()));
        }
        let to = self.destination(Some(addr)).or_else(|e| match e {
            // Port 0 can be connected to; only sending there is refused.
            Errno::EINVAL => self.decode(addr),
            other => Err(other),
        })?;
        let to = if to.ip.is_unspecified() { Endpoint { ip: loopback_like(to.ip), ..to } } else { to };
        let (way, source) = self.route(&to, &Wishes::default())?;
        if way.is_broadcast && !self.options.has(uapi::SO_BROADCAST) {
            return Err(Errno::EACCES);
        }
        self.bind_any()?;
        let mut state = self.state.lock();
        let old = state.local.unwrap_or(Endpoint::new(self.family.any(), 0));
        let local = if state.bound_address { old } else { Endpoint { ip: source, ..old } };
        state.local = Some(local);
        state.remote = Some(to);
        if let Some(binding) = &state.binding {
            binding.change(|claim| {
                claim.ip = local.ip;
                claim.remote = (self.protocol.is_udp()).then_some(to);
            })?;
        }
        Ok(())
    }

    fn listen(&self, _backlog: i32) -> Result {
        Err(Errno::EOPNOTSUPP)
    }

    fn accept(&self, _nonblocking: bool) -> Result<(Arc<dyn SocketOps>, Vec<u8>)> {
        Err(Errno::EOPNOTSUPP)
    }

    fn local_address(&self) -> Result<Vec<u8>> {
        let local = self.state.lock().local;
        Ok(local.unwrap_or(Endpoint::new(self.family.any(), 0)).encode(self.family))
    }

    fn peer_address(&self) -> Result<Vec<u8>> {
        let remote = self.state.lock().remote;
        Ok(remote.ok_or(Errno::ENOTCONN)?.encode(self.family))
    }

    fn shutdown(&self, read: bool, write: bool) -> Result {
        // As on Linux: the error says that there is nobody to tell, and the ends are shut all the same.
        let how = if read { SHUT_RECEIVE } else { 0 } | if write { SHUT_SEND } else { 0 };
        self.shut.fetch_or(how, Ordering::SeqCst);
        let all = PollEvents::READABLE | PollEvents::WRITABLE | PollEvents::ALWAYS | PollEvents::POLLRDHUP;
        self.readers.wake_events(all);
        if self.state.lock().remote.is_none() { Err(Errno::ENOTCONN) } else { Ok(()) }
    }

    fn send(&self, message: &mut Outgoing<'_, '_>) -> Result<usize> {
        if message.flags & uapi::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let len = message.data.remaining();
        if len > PACKET_MAX {
            return Err(Errno::EMSGSIZE);
        }
        if let Some(error) = self.take_error() {
            return Err(error);
        }
        if self.shut.load(Ordering::SeqCst) & SHUT_SEND != 0 {
            return Err(Errno::EPIPE);
        }
        let to = self.destination(message.address.as_deref())?;
        let wishes = wishes(&message.control)?;
        let v4 = to.ip.is_ipv4();
        let (header, own) = match self.protocol {
            Protocol::Udp | Protocol::UdpLite => (UDP_HEADER, true),
            Protocol::Ping => (0, true),
            Protocol::Raw(_) => (0, !self.ip.has(Switch::HeaderIncluded)),
        };
        let most = PACKET_MAX - header - if v4 && own { ip::V4_HEADER } else { 0 };
        if len > most {
            return Err(Errno::EMSGSIZE);
        }
        self.bind_any()?;
        let mut data = Vec::new();
        data.try_reserve_exact(len).map_err(|_| Errno::ENOBUFS)?;
        data.resize(len, 0);
        message.data.take_all(&mut data)?;
        let outcome = match self.protocol {
            Protocol::Udp | Protocol::UdpLite => {
                let holds = message.flags & uapi::MSG_MORE != 0 || self.cork.load(Relaxed);
                let (to, data) = {
                    let mut corked = self.corked.lock();
                    let (to, data) = match corked.take() {
                        Some((first, mut before)) => {
                            if before.len() + data.len() > most {
                                return Err(Errno::EMSGSIZE);
                            }
                            before.append(&mut data);
                            (first, before)
                        }
                        None => (to, data),
                    };
                    if holds {
                        *corked = Some((to, data));
                        return Ok(len);
                    }
                    (to, data)
                };
                self.send_udp(&to, data, &wishes)
            }
            Protocol::Ping => self.send_ping(&to, data, &wishes),
            Protocol::Raw(protocol) => self.send_raw(protocol, &to, data, &wishes),
        };
        outcome.map(|()| len)
    }

    fn receive(&self, message: &mut Incoming<'_, '_>) -> Result<usize> {
        if message.flags & uapi::MSG_ERRQUEUE != 0 {
            return self.receive_error(message);
        }
        if message.flags & uapi::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let deadline = self.options.receive_deadline();
        let peek = message.flags & uapi::MSG_PEEK != 0;
        let packet = loop {
            if let Some(error) = self.take_error() {
                return Err(error);
            }
            if let Some(packet) = self.take_one(peek) {
                break packet;
            }
            if self.shut.load(Ordering::SeqCst) & SHUT_RECEIVE != 0 {
                return Ok(0);
            }
            if message.is_nonblocking() {
                return Err(Errno::EAGAIN);
            }
            wait(&self.readers, deadline, || {
                !self.queue.lock().packets.is_empty()
                    || self.error.is_set()
                    || self.shut.load(Ordering::SeqCst) & SHUT_RECEIVE != 0
            })?;
        };
        let len = packet.data.len();
        let fits = len.min(message.data.remaining());
        message.data.put_all(&packet.data[..fits])?;
        if fits < len {
            message.out_flags |= uapi::MSG_TRUNC;
        }
        message.address = packet.from.encode(self.family);
        self.control(&packet, message);
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
        self.send_buffer.load(Relaxed)
    }

    fn set_send_buffer(&self, bytes: usize) {
        self.send_buffer.store(bytes, Relaxed);
    }

    fn get_option(&self, level: i32, name: u32, room: usize) -> Result<Vec<u8>> {
        match (level, name) {
            (l, _) if l == uapi::SOL_SOCKET as i32 => super::get_socket_option(name, &self.device),
            (SOL_IP, _) | (SOL_IPV6, _) if level == SOL_IP || self.family == Family::V6 => {
                self.ip.get(level, name, room, || {
                    let remote = self.state.lock().remote.ok_or(Errno::ENOTCONN)?;
                    let (way, _) = self.route(&remote, &Wishes::default())?;
                    Ok(way.interface.mtu.load(Relaxed))
                })
            }
            (SOL_UDP | SOL_UDPLITE, UDP_CORK) if self.protocol.is_udp() => {
                Ok(i32::from(self.cork.load(Relaxed)).to_ne_bytes().to_vec())
            }
            (SOL_UDP | SOL_UDPLITE, udp::SEND_COVERAGE | udp::RECEIVE_COVERAGE)
                if self.protocol == Protocol::UdpLite =>
            {
                Ok(self.coverage.get(name).to_ne_bytes().to_vec())
            }
            (SOL_RAW, 1) if self.protocol == Protocol::Raw(ip::ICMP) => {
                Ok(self.filter.lock()[0].to_ne_bytes().to_vec())
            }
            (58, 1) if self.protocol == Protocol::Raw(ip::ICMPV6) => Ok(Vec::from(self.filter.lock().as_bytes())),
            _ => Err(Errno::ENOPROTOOPT),
        }
    }

    fn set_option(&self, level: i32, name: u32, value: &[u8]) -> Result {
        let int = || value.first_chunk::<4>().map(|v| i32::from_ne_bytes(*v)).ok_or(Errno::EINVAL);
        match (level, name) {
            (l, _) if l == uapi::SOL_SOCKET as i32 => {
                bound_device(name, value, &self.device)?;
                if let Some(binding) = &self.state.lock().binding {
                    binding.change(|claim| claim.device = self.device.load(Relaxed))?;
                }
                Ok(())
            }
            (SOL_IPV6, uapi::IPV6_CHECKSUM) if matches!(self.protocol, Protocol::Raw(_)) => {
                let at = int()?;
                if at > 0 && at % 2 != 0 {
                    return Err(Errno::EINVAL);
                }
                *self.checksum_at.lock() = usize::try_from(at).ok();
                Ok(())
            }
            (SOL_IP, _) | (SOL_IPV6, _) if level == SOL_IP || self.family == Family::V6 => {
                let is_bound = self.state.lock().binding.is_some();
                self.ip.set(level, name, value, is_bound, false)
            }
            (SOL_UDP | SOL_UDPLITE, UDP_CORK) if self.protocol.is_udp() => {
                let on = int()? != 0;
                self.cork.store(on, Relaxed);
                let held = if on { None } else { self.corked.lock().take() };
                held.map_or(Ok(()), |(to, data)| self.send_udp(&to, data, &Wishes::default()))
            }
            (SOL_UDP | SOL_UDPLITE, udp::SEND_COVERAGE | udp::RECEIVE_COVERAGE)
                if self.protocol == Protocol::UdpLite =>
            {
                self.coverage.set(name, int()?);
                Ok(())
            }
            (SOL_RAW, 1) if self.protocol == Protocol::Raw(ip::ICMP) => {
                self.filter.lock()[0] = int()? as u32;
                Ok(())
            }
            (58, 1) if self.protocol == Protocol::Raw(ip::ICMPV6) => {
                let mut filter = self.filter.lock();
                for (slot, word) in filter.iter_mut().zip(value.as_chunks::<4>().0) {
                    *slot = u32::from_ne_bytes(*word);
                }
                Ok(())
            }
            _ => Err(Errno::ENOPROTOOPT),
        }
    }

    fn poll(&self, pt: Option<&mut PollTable>) -> PollEvents {
        if let Some(pt) = pt {
            pt.register(&self.readers);
            pt.register(&self.writers);
        }
        let mut events = PollEvents::WRITABLE | PollEvents::POLLWRBAND;
        if self.error.is_set() || !self.errors.lock().is_empty() {
            events |= PollEvents::POLLERR;
        }
        if !self.queue.lock().packets.is_empty() {
            events |= PollEvents::READABLE;
        }
        let shut = self.shut.load(Ordering::SeqCst);
        if shut & SHUT_RECEIVE != 0 {
            events |= PollEvents::READABLE | PollEvents::POLLRDHUP;
        }
        if shut == SHUT_RECEIVE | SHUT_SEND {
            events |= PollEvents::POLLHUP;
        }
        events
    }

    fn ioctl(&self, cmd: u32, arg: usize) -> Result<i64> {
        let value = match cmd {
            io::FIONREAD => self.queue.lock().packets.front().map_or(0, |p| p.data.len()),
            // Nothing waits on the way out.
            io::TIOCOUTQ => 0,
            _ => return Err(Errno::ENOTTY),
        };
        UserPtr::<i32>::new(arg as u64).write(&i32::try_from(value).unwrap_or(i32::MAX))?;
        Ok(0)
    }

    fn release(&self) {
        let (binding, packets) = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            queue.charged = 0;
            let packets = core::mem::take(&mut queue.packets);
            drop(queue);
            (self.state.lock().binding.take(), packets)
        };
        drop((binding, packets));
        self.ip.leave_groups();
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

impl Drop for Datagram {
    fn drop(&mut self) {
        if let Protocol::Raw(_) = self.protocol {
            RAW.lock().retain(|s| !s.ptr_eq(&self.me));
            RAW_COUNT.fetch_sub(1, Relaxed);
        }
    }
}
