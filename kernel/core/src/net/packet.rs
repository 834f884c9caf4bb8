//! Packet sockets (`AF_PACKET`): frames as they come from and go to an interface.
//!
//! References: packet(7), `net/packet/af_packet.c`.

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};

use linux_uapi::raw::{ioctl as io, net as uapi};
use ursa_hal::sync::SpinLock;

use super::inet::interface::{self, Interface, KIND_LOOPBACK};
use super::inet::link::{self, ETHERNET};
use super::options::BUFFER_DEFAULT;
use super::pending_error::PendingError;
use super::{Ancillary, Incoming, Options, Outgoing, SocketOps};
use crate::poll::{PollEvents, PollTable};
use crate::process::{Cap, capable};
use crate::user::UserPtr;
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// `SOL_PACKET`
const SOL_PACKET: i32 = 263;
/// `PACKET_ADD_MEMBERSHIP`, `PACKET_DROP_MEMBERSHIP`, `PACKET_STATISTICS`, `PACKET_AUXDATA`, `PACKET_ORIGDEV`,
/// `PACKET_VERSION`, `PACKET_RESERVE`
const ADD_MEMBERSHIP: u32 = 1;
const DROP_MEMBERSHIP: u32 = 2;
const STATISTICS: u32 = 6;
const AUXDATA: u32 = 8;
const ORIGDEV: u32 = 9;
const VERSION: u32 = 10;
const IGNORE_OUTGOING: u32 = 23;
/// `ETH_P_ALL`
const P_ALL: u16 = 3;
/// `PACKET_HOST`, `PACKET_BROADCAST`, `PACKET_MULTICAST`, `PACKET_OTHERHOST`, `PACKET_OUTGOING`
const TO_HOST: u8 = 0;
const TO_ALL: u8 = 1;
const TO_GROUP: u8 = 2;
const TO_OTHER: u8 = 3;
const OUTGOING: u8 = 4;
/// Bytes of `struct sockaddr_ll`, and as little as a program may pass.
const SOCKADDR_LL: usize = 20;
const SOCKADDR_LL_MIN: usize = 12;
/// What a packet costs beside its bytes.
const OVERHEAD: usize = 512;
const FRAME_MAX: usize = 65_535 + ETHERNET;

static SOCKETS: SpinLock<Vec<Weak<PacketSocket>>> = SpinLock::new(Vec::new());
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A frame that was seen.
struct Seen {
    data: Vec<u8>,
    /// Its length before the filter cut it.
    len: usize,
    address: [u8; SOCKADDR_LL],
    /// Where the network header is, from the beginning of the frame.
    network: usize,
}

#[derive(Default)]
struct Queue {
    packets: VecDeque<Arc<Seen>>,
    charged: usize,
    received: u32,
    dropped: u32,
    closed: bool,
}

/// A packet socket.
pub struct PacketSocket {
    me: Weak<PacketSocket>,
    /// `SOCK_DGRAM`: without the link header.
    cooked: bool,
    /// `ETH_P_*`; 0 takes nothing.
    protocol: AtomicU32,
    /// The interface; 0 for all.
    index: AtomicU32,
    queue: SpinLock<Queue>,
    readers: Arc<WaitQueue>,
    error: PendingError,
    send_buffer: AtomicUsize,
    auxiliary: AtomicBool,
    ignores_outgoing: AtomicBool,
    options: Options,
}

impl PacketSocket {
    /// Makes a socket; `protocol` as `socket(2)` gets it, in network order.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW`, `ESOCKTNOSUPPORT`.
    pub fn new(kind: u32, protocol: u32) -> Result<Arc<PacketSocket>> {
        if !capable(Cap::NetRaw) {
            return Err(Errno::EPERM);
        }
        let cooked = match kind {
            uapi::SOCK_RAW => false,
            uapi::SOCK_DGRAM => true,
            _ => return Err(Errno::ESOCKTNOSUPPORT),
        };
        let socket = Arc::new_cyclic(|me| PacketSocket {
            me: me.clone(),
            cooked,
            protocol: AtomicU32::new(u16::from_be(protocol as u16).into()),
            index: AtomicU32::new(0),
            queue: SpinLock::new(Queue::default()),
            readers: Arc::new(WaitQueue::new()),
            error: PendingError::new(),
            send_buffer: AtomicUsize::new(BUFFER_DEFAULT),
            auxiliary: AtomicBool::new(false),
            ignores_outgoing: AtomicBool::new(false),
            options: Options::new(),
        });
        SOCKETS.lock().push(Arc::downgrade(&socket));
        COUNT.fetch_add(1, Relaxed);
        Ok(socket)
    }

    fn offer(&self, interface: &Interface, frame: &[u8], outgoing: bool) {
        let (protocol, network) = split(interface, frame);
        let wanted = self.protocol.load(Relaxed) as u16;
        let index = self.index.load(Relaxed);
        if wanted == 0 || index != 0 && index != interface.index {
            return;
        }
        // Who asks for one protocol sees what comes; who asks for all sees what goes as well.
        if wanted != P_ALL && (wanted != protocol || outgoing) || outgoing && self.ignores_outgoing.load(Relaxed) {
            return;
        }
        let whole = if self.cooked { &frame[network..] } else { frame };
        let Some(keep) = self.options.admit(whole) else { return };
        let data = whole[..keep].to_vec();
        let mut address = [0; SOCKADDR_LL];
        address[..2].copy_from_slice(&(uapi::AF_PACKET as u16).to_ne_bytes());
        address[2..4].copy_from_slice(&protocol.to_be_bytes());
        address[4..8].copy_from_slice(&interface.index.to_ne_bytes());
        address[8..10].copy_from_slice(&interface.kind.to_ne_bytes());
        address[10] = match frame.first() {
            _ if outgoing => OUTGOING,
            Some(_) if network == 0 => TO_HOST,
            Some(0xff) if frame.starts_with(&[0xff; 6]) => TO_ALL,
            Some(first) if first & 1 != 0 => TO_GROUP,
            _ if frame.starts_with(&interface.mac()) => TO_HOST,
            _ => TO_OTHER,
        };
        if network == ETHERNET {
            address[11] = 6;
            address[12..18].copy_from_slice(&frame[6..12]);
        }
        let network = if self.cooked { 0 } else { network };
        let len = whole.len();
        let cost = data.len() + OVERHEAD;
        let mut queue = self.queue.lock();
        if queue.closed || queue.charged + cost > self.options.rcvbuf.load(Relaxed) {
            queue.dropped += 1;
            return;
        }
        queue.received += 1;
        queue.charged += cost;
        queue.packets.push_back(Arc::new(Seen { data, len, address, network }));
        drop(queue);
        self.readers.wake_n(1, PollEvents::READABLE, false);
    }

    fn take(&self, peek: bool) -> Option<Arc<Seen>> {
        let mut queue = self.queue.lock();
        if peek {
            return queue.packets.front().cloned();
        }
        let packet = queue.packets.pop_front()?;
        queue.charged -= packet.data.len() + OVERHEAD;
        Some(packet)
    }
}

/// The protocol of a frame, and where the network header is.
fn split(interface: &Interface, frame: &[u8]) -> (u16, usize) {
    if (interface.is_ethernet() || interface.kind == KIND_LOOPBACK) && frame.len() >= ETHERNET {
        return (u16::from_be_bytes([frame[12], frame[13]]), ETHERNET);
    }
    let protocol = match frame.first().map(|b| b >> 4) {
        Some(6) => link::P_IPV6,
        _ => link::P_IP,
    };
    (protocol, 0)
}

/// Shows a frame to the sockets.
pub fn tap(interface: &Interface, frame: &[u8], outgoing: bool) {
    if COUNT.load(Relaxed) == 0 {
        return;
    }
    let sockets: Vec<Arc<PacketSocket>> = SOCKETS.lock().iter().filter_map(Weak::upgrade).collect();
    for socket in sockets {
        socket.offer(interface, frame, outgoing);
    }
}

/// Interface, protocol and link address of a `struct sockaddr_ll`.
fn decode(bytes: &[u8]) -> Result<(u32, u16, [u8; 6])> {
    if bytes.len() < SOCKADDR_LL_MIN {
        return Err(Errno::EINVAL);
    }
    if u32::from(u16::from_ne_bytes([bytes[0], bytes[1]])) != uapi::AF_PACKET {
        return Err(Errno::EINVAL);
    }
    let index = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let mut mac = [0; 6];
    if let Some(given) = bytes.get(12..18) {
        mac.copy_from_slice(given);
    }
    Ok((index, u16::from_be_bytes([bytes[2], bytes[3]]), mac))
}

impl SocketOps for PacketSocket {
    fn domain(&self) -> u32 {
        uapi::AF_PACKET
    }

    fn kind(&self) -> u32 {
        if self.cooked { uapi::SOCK_DGRAM } else { uapi::SOCK_RAW }
    }

    fn protocol(&self) -> u32 {
        (self.protocol.load(Relaxed) as u16).to_be().into()
    }

    fn bind(&self, addr: &[u8]) -> Result {
        if addr.len() < SOCKADDR_LL {
            return Err(Errno::EINVAL);
        }
        let (index, protocol, _) = decode(addr)?;
        if index != 0 {
            let interface = interface::by_index(index).ok_or(Errno::ENODEV)?;
            if !interface.is_up() {
                self.error.set(Errno::ENETDOWN);
            }
        }
        self.index.store(index, Relaxed);
        if protocol != 0 {
            self.protocol.store(protocol.into(), Relaxed);
        }
        Ok(())
    }

    fn connect(&self, _addr: &[u8], _nonblocking: bool) -> Result {
        Err(Errno::EOPNOTSUPP)
    }

    fn listen(&self, _backlog: i32) -> Result {
        Err(Errno::EOPNOTSUPP)
    }

    fn accept(&self, _nonblocking: bool) -> Result<(Arc<dyn SocketOps>, Vec<u8>)> {
        Err(Errno::EOPNOTSUPP)
    }

    fn local_address(&self) -> Result<Vec<u8>> {
        let mut bytes = alloc::vec![0; SOCKADDR_LL];
        bytes[..2].copy_from_slice(&(uapi::AF_PACKET as u16).to_ne_bytes());
        bytes[2..4].copy_from_slice(&(self.protocol.load(Relaxed) as u16).to_be_bytes());
        let index = self.index.load(Relaxed);
        bytes[4..8].copy_from_slice(&index.to_ne_bytes());
        if let Some(interface) = interface::by_index(index) {
            bytes[8..10].copy_from_slice(&interface.kind.to_ne_bytes());
            bytes[11] = 6;
            bytes[12..18].copy_from_slice(&interface.mac());
        }
        Ok(bytes)
    }

    fn peer_address(&self) -> Result<Vec<u8>> {
        Err(Errno::EOPNOTSUPP)
    }

    fn shutdown(&self, _read: bool, _write: bool) -> Result {
        Err(Errno::EOPNOTSUPP)
    }

    fn send(&self, message: &mut Outgoing<'_, '_>) -> Result<usize> {
        let len = message.data.remaining();
        let (index, protocol, mac) = match &message.address {
            Some(bytes) => decode(bytes)?,
            None if self.cooked => return Err(Errno::EDESTADDRREQ),
            None => (self.index.load(Relaxed), 0, [0; 6]),
        };
        let index = if index == 0 { self.index.load(Relaxed) } else { index };
        let interface = interface::by_index(index).ok_or(Errno::ENXIO)?;
        if !interface.is_up() {
            return Err(Errno::ENETDOWN);
        }
        let has_header = interface.is_ethernet() || interface.kind == KIND_LOOPBACK;
        let header = if has_header { ETHERNET } else { 0 };
        let mtu = interface.mtu.load(Relaxed) as usize;
        let builds = self.cooked && has_header;
        let most = if self.cooked { mtu } else { mtu + header };
        if len > most || len > FRAME_MAX {
            return Err(Errno::EMSGSIZE);
        }
        if !self.cooked && len < header {
            return Err(Errno::EINVAL);
        }
        let mut frame = Vec::new();
        if builds {
            let protocol = if protocol == 0 { self.protocol.load(Relaxed) as u16 } else { protocol };
            frame.extend_from_slice(&mac);
            frame.extend_from_slice(&interface.mac());
            frame.extend_from_slice(&protocol.to_be_bytes());
        }
        let start = frame.len();
        frame.resize(start + len, 0);
        message.data.take_all(&mut frame[start..])?;
        if interface.kind == KIND_LOOPBACK {
            tap(&interface, &frame, true);
            tap(&interface, &frame, false);
            super::inet::ip::input(&interface, frame.get(ETHERNET..).unwrap_or_default());
        } else {
            link::send(&interface, &frame)?;
        }
        Ok(len)
    }

    fn receive(&self, message: &mut Incoming<'_, '_>) -> Result<usize> {
        let deadline = self.options.receive_deadline();
        let peek = message.flags & uapi::MSG_PEEK != 0;
        let packet = loop {
            if let Some(error) = self.take_error() {
                return Err(error);
            }
            if let Some(packet) = self.take(peek) {
                break packet;
            }
            if message.is_nonblocking() {
                return Err(Errno::EAGAIN);
            }
            super::inet::wait(&self.readers, deadline, || {
                !self.queue.lock().packets.is_empty() || self.error.is_set()
            })?;
        };
        let len = packet.data.len();
        let fits = len.min(message.data.remaining());
        message.data.put_all(&packet.data[..fits])?;
        if fits < len {
            message.out_flags |= uapi::MSG_TRUNC;
        }
        message.address = packet.address.to_vec();
        if self.auxiliary.load(Relaxed) {
            // struct tpacket_auxdata: status (TP_STATUS_USER), length, captured length, link header, network header.
            let mut data = 1u32.to_ne_bytes().to_vec();
            data.extend_from_slice(&(packet.len as u32).to_ne_bytes());
            data.extend_from_slice(&(len as u32).to_ne_bytes());
            data.extend_from_slice(&0u16.to_ne_bytes());
            data.extend_from_slice(&(packet.network as u16).to_ne_bytes());
            data.extend_from_slice(&[0; 4]);
            message.control.other.push(Ancillary { level: SOL_PACKET, kind: AUXDATA as i32, data });
        }
        Ok(if message.flags & uapi::MSG_TRUNC != 0 { packet.len } else { fits })
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

    fn get_option(&self, level: i32, name: u32, _room: usize) -> Result<Vec<u8>> {
        let value = match (level, name) {
            (SOL_PACKET, STATISTICS) => {
                let mut queue = self.queue.lock();
                let (received, dropped) = (core::mem::take(&mut queue.received), core::mem::take(&mut queue.dropped));
                drop(queue);
                let mut data = (received + dropped).to_ne_bytes().to_vec();
                data.extend_from_slice(&dropped.to_ne_bytes());
                return Ok(data);
            }
            (SOL_PACKET, AUXDATA) => i32::from(self.auxiliary.load(Relaxed)),
            (SOL_PACKET, IGNORE_OUTGOING) => i32::from(self.ignores_outgoing.load(Relaxed)),
            (SOL_PACKET, ORIGDEV | VERSION) => 0,
            _ => return Err(Errno::ENOPROTOOPT),
        };
        Ok(value.to_ne_bytes().to_vec())
    }

    fn set_option(&self, level: i32, name: u32, value: &[u8]) -> Result {
        if level != SOL_PACKET {
            return Err(Errno::ENOPROTOOPT);
        }
        let int = value.first_chunk::<4>().map(|v| i32::from_ne_bytes(*v)).ok_or(Errno::EINVAL)?;
        match name {
            AUXDATA => self.auxiliary.store(int != 0, Relaxed),
            IGNORE_OUTGOING => self.ignores_outgoing.store(int != 0, Relaxed),
            // Every frame that a link delivers is shown: there is no hardware filter to open.
            ADD_MEMBERSHIP | DROP_MEMBERSHIP if value.len() >= 16 => {
                interface::by_index(int as u32).ok_or(Errno::ENODEV)?;
            }
            ADD_MEMBERSHIP | DROP_MEMBERSHIP => return Err(Errno::EINVAL),
            ORIGDEV => {}
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }

    fn poll(&self, pt: Option<&mut PollTable>) -> PollEvents {
        if let Some(pt) = pt {
            pt.register(&self.readers);
        }
        let mut events = PollEvents::WRITABLE;
        if self.error.is_set() {
            events |= PollEvents::POLLERR;
        }
        if !self.queue.lock().packets.is_empty() {
            events |= PollEvents::READABLE;
        }
        events
    }

    fn ioctl(&self, cmd: u32, arg: usize) -> Result<i64> {
        if cmd != io::FIONREAD {
            return Err(Errno::ENOTTY);
        }
        let len = self.queue.lock().packets.front().map_or(0, |p| p.data.len());
        UserPtr::<i32>::new(arg as u64).write(&(len as i32))?;
        Ok(0)
    }

    fn release(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        let packets = core::mem::take(&mut queue.packets);
        drop(queue);
        drop(packets);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_arc(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Drop for PacketSocket {
    fn drop(&mut self) {
        SOCKETS.lock().retain(|s| !s.ptr_eq(&self.me));
        COUNT.fetch_sub(1, Relaxed);
    }
}
