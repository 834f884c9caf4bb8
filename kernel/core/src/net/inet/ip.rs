//! Packets in and out: addresses checked, headers made and read, fragments made and joined.
//!
//! Nothing of this is on the way of a connection inside the machine, nor of a datagram between two of its sockets:
//! [`output`] hands what stays here to [`deliver`] with its header still a [`Header`].
//!
//! References: RFC 791, RFC 8200, RFC 1122 section 3.2.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};

use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

use super::interface::{self, Interface, Way};
use super::neighbour::Resolution;
use super::{datagram, fragment, icmp, link, tcp};
use crate::{Errno, Result};

/// `IPPROTO_ICMP`
pub const ICMP: u8 = 1;
/// `IPPROTO_TCP`
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`
pub const UDP: u8 = 17;
/// `IPPROTO_UDPLITE`
pub const UDPLITE: u8 = 136;
/// `IPPROTO_ICMPV6`
pub const ICMPV6: u8 = 58;

/// `net.ipv4.ip_default_ttl`
pub static DEFAULT_TTL: AtomicU32 = AtomicU32::new(64);

/// Bytes of an IPv4 header without options.
pub const V4_HEADER: usize = 20;
/// Bytes of an IPv6 header.
pub const V6_HEADER: usize = 40;
/// The fragment header of IPv6.
const FRAGMENT_HEADER: usize = 8;
const NEXT_FRAGMENT: u8 = 44;
/// Headers that may stand before a packet's own protocol.
const EXTENSIONS_MAX: usize = 8;

/// What a packet's header says.
#[derive(Clone)]
pub struct Header {
    /// Sender.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
    /// `IPPROTO_*`
    pub protocol: u8,
    /// Hops that are left.
    pub ttl: u8,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// The interface that it came in on.
    pub interface: Arc<Interface>,
    /// To everybody, or to a group.
    pub to_many: bool,
}

/// What a sender asks of a packet.
#[derive(Clone, Copy)]
pub struct Wish {
    /// `IPPROTO_*`
    pub protocol: u8,
    /// Hops.
    pub ttl: u8,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// Not to be cut in fragments: `EMSGSIZE`.
    pub whole: bool,
    /// A group's packet is for this machine's members too.
    pub loops: bool,
}

impl Wish {
    /// The usual.
    pub fn new(protocol: u8) -> Wish {
        Wish { protocol, ttl: DEFAULT_TTL.load(Relaxed) as u8, tos: 0, whole: false, loops: true }
    }
}

/// The Internet checksum of `data`, added to `sum`.
pub fn sum(data: &[u8], mut sum: u32) -> u32 {
    let (pairs, rest) = data.as_chunks::<2>();
    for pair in pairs {
        sum += u32::from(u16::from_be_bytes(*pair));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    if let [last] = rest {
        sum += u32::from(*last) << 8;
    }
    sum
}

/// Folds a sum into the checksum field's value.
pub fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The sum of the pseudo header of `len` bytes.
pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u32 {
    let addresses = match (source, destination) {
        (IpAddr::V4(a), IpAddr::V4(b)) => sum(&b.octets(), sum(&a.octets(), 0)),
        (IpAddr::V6(a), IpAddr::V6(b)) => sum(&b.octets(), sum(&a.octets(), 0)),
        _ => 0,
    };
    addresses + u32::from(protocol) + (len as u32 & 0xffff) + (len as u32 >> 16)
}

/// An IPv4 header of `len` bytes of payload.
pub fn v4_header(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    wish: &Wish,
    len: usize,
    id: u16,
    offset_field: u16,
) -> [u8; V4_HEADER] {
    let mut header = [0; V4_HEADER];
    header[0] = 0x45;
    header[1] = wish.tos;
    header[2..4].copy_from_slice(&((V4_HEADER + len) as u16).to_be_bytes());
    header[4..6].copy_from_slice(&id.to_be_bytes());
    header[6..8].copy_from_slice(&offset_field.to_be_bytes());
    header[8] = wish.ttl;
    header[9] = wish.protocol;
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
    let checksum = fold(sum(&header, 0));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

fn v6_header(source: Ipv6Addr, destination: Ipv6Addr, wish: &Wish, next: u8, len: usize) -> [u8; V6_HEADER] {
    let mut header = [0; V6_HEADER];
    header[0] = 0x60 | wish.tos >> 4;
    header[1] = wish.tos << 4;
    header[4..6].copy_from_slice(&(len as u16).to_be_bytes());
    header[6] = next;
    header[7] = wish.ttl;
    header[8..24].copy_from_slice(&source.octets());
    header[24..40].copy_from_slice(&destination.octets());
    header
}

/// Sends a payload from `source` on its way: to this machine's own sockets, or out.
///
/// # Errors
/// `EMSGSIZE` for what must not be cut, `EINVAL` for addresses of different families, `ENETDOWN`, `ENOBUFS`.
pub fn output(way: &Way, source: IpAddr, destination: IpAddr, wish: &Wish, payload: &[u8]) -> Result {
    let to_many = way.is_broadcast || destination.is_multicast();
    let header = |interface: &Arc<Interface>| Header {
        source,
        destination,
        protocol: wish.protocol,
        ttl: wish.ttl,
        tos: wish.tos,
        interface: interface.clone(),
        to_many,
    };
    if way.is_local {
        let statistics = &way.interface.statistics;
        for (packets, bytes) in
            [(&statistics.tx_packets, &statistics.tx_bytes), (&statistics.rx_packets, &statistics.rx_bytes)]
        {
            packets.fetch_add(1, Relaxed);
            bytes.fetch_add((payload.len() + V4_HEADER) as u64, Relaxed);
        }
        deliver(&header(&way.interface), payload);
        return Ok(());
    }
    if to_many && wish.loops && (way.is_broadcast || way.interface.is_member(destination)) {
        deliver(&header(&way.interface), payload);
    }
    if to_many && wish.ttl == 0 {
        return Ok(());
    }
    let mtu = way.interface.mtu.load(Relaxed) as usize;
    match (source, destination) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            static NEXT_ID: AtomicU16 = AtomicU16::new(1);
            let room = mtu.saturating_sub(V4_HEADER);
            if payload.len() <= room {
                let dont_fragment = if wish.whole { 0x4000 } else { 0 };
                let id = if wish.whole { 0 } else { NEXT_ID.fetch_add(1, Relaxed) };
                let head = v4_header(a, b, wish, payload.len(), id, dont_fragment);
                return transmit(way, &[&head, payload]);
            }
            if wish.whole {
                return Err(Errno::EMSGSIZE);
            }
            let id = NEXT_ID.fetch_add(1, Relaxed);
            let step = (room & !7).max(8);
            for (index, piece) in payload.chunks(step).enumerate() {
                let more = if (index + 1) * step < payload.len() { 0x2000 } else { 0 };
                let head = v4_header(a, b, wish, piece.len(), id, (index * step / 8) as u16 | more);
                transmit(way, &[&head, piece])?;
            }
            Ok(())
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            static NEXT_ID: AtomicU32 = AtomicU32::new(1);
            let room = mtu.saturating_sub(V6_HEADER);
            if payload.len() <= room {
                return transmit(way, &[&v6_header(a, b, wish, wish.protocol, payload.len()), payload]);
            }
            if wish.whole {
                return Err(Errno::EMSGSIZE);
            }
            let id = NEXT_ID.fetch_add(1, Relaxed);
            let step = (room.saturating_sub(FRAGMENT_HEADER) & !7).max(8);
            for (index, piece) in payload.chunks(step).enumerate() {
                let more = u16::from((index + 1) * step < payload.len());
                let mut extension = [0; FRAGMENT_HEADER];
                extension[0] = wish.protocol;
                extension[2..4].copy_from_slice(&((index * step) as u16 | more).to_be_bytes());
                extension[4..8].copy_from_slice(&id.to_be_bytes());
                let head = v6_header(a, b, wish, NEXT_FRAGMENT, FRAGMENT_HEADER + piece.len());
                transmit(way, &[&head, &extension, piece])?;
            }
            Ok(())
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Sends a packet whose IP header is made already.
///
/// # Errors
/// As [`output`].
pub fn output_raw(way: &Way, packet: &[u8]) -> Result {
    if way.is_local {
        input(&way.interface, packet);
        return Ok(());
    }
    if packet.len() > way.interface.mtu.load(Relaxed) as usize {
        return Err(Errno::EMSGSIZE);
    }
    transmit(way, &[packet])
}

/// Sends a packet to the next hop, once its link address is known.
fn transmit(way: &Way, parts: &[&[u8]]) -> Result {
    let interface = &way.interface;
    if !interface.is_ethernet() {
        return link::send(interface, &parts.concat());
    }
    let mac = match link::group_mac(way.next_hop, way.is_broadcast) {
        Some(mac) => mac,
        None => {
            match interface.neighbours.resolve(way.next_hop, || link::frame(interface, [0; 6], way.next_hop, parts)) {
                Resolution::Known(mac, ask) => {
                    if ask {
                        link::ask(interface, way.next_hop, Some(mac));
                    }
                    mac
                }
                Resolution::Kept(ask) => {
                    if ask {
                        link::ask(interface, way.next_hop, None);
                    }
                    return Ok(());
                }
            }
        }
    };
    link::send(interface, &link::frame(interface, mac, way.next_hop, parts))
}

/// A packet came in. What is malformed or not for this machine is dropped and counted.
pub fn input(interface: &Arc<Interface>, packet: &[u8]) {
    let outcome = match packet.first().map(|b| b >> 4) {
        Some(4) => input_v4(interface, packet),
        Some(6) => input_v6(interface, packet),
        _ => None,
    };
    if outcome.is_none() {
        interface.statistics.rx_errors.fetch_add(1, Relaxed);
    }
}

/// Whether a packet to `destination` is for this machine; and whether it is for many.
fn is_ours(interface: &Interface, destination: IpAddr) -> Option<bool> {
    match destination {
        _ if interface::is_own(destination) => Some(false),
        IpAddr::V4(ip) if ip.is_broadcast() => Some(true),
        _ if destination.is_multicast() => interface.is_member(destination).then_some(true),
        _ => {
            let way = interface::way(destination, interface.index, 0).ok()?;
            // Before an interface has an address, a DHCP client hears answers with AF_PACKET.
            way.is_broadcast.then_some(true)
        }
    }
}

/// A sender that no packet may come from.
fn is_bad_source(source: IpAddr, interface: &Interface) -> bool {
    source.is_multicast()
        || matches!(source, IpAddr::V4(ip) if ip.is_broadcast())
        || source.is_loopback() && interface.index != interface::LOOPBACK
}

fn input_v4(interface: &Arc<Interface>, packet: &[u8]) -> Option<()> {
    let view = Ipv4Packet::new_checked(packet).ok()?;
    if view.version() != 4 || usize::from(view.header_len()) < V4_HEADER || !view.verify_checksum() {
        return None;
    }
    let (source, destination) = (IpAddr::V4(view.src_addr()), IpAddr::V4(view.dst_addr()));
    if is_bad_source(source, interface) || destination.is_loopback() && interface.index != interface::LOOPBACK {
        return None;
    }
    let Some(to_many) = is_ours(interface, destination) else {
        interface.statistics.rx_dropped.fetch_add(1, Relaxed);
        return Some(());
    };
    let header = Header {
        source,
        destination,
        protocol: view.next_header().into(),
        ttl: view.hop_limit(),
        tos: view.dscp() << 2 | view.ecn(),
        interface: interface.clone(),
        to_many,
    };
    let payload = view.payload();
    if view.more_frags() || view.frag_offset() != 0 {
        let key = fragment::Key { source, destination, protocol: header.protocol, id: view.ident().into() };
        let whole = interface.fragments.add(key, view.frag_offset().into(), view.more_frags(), payload);
        if let Some(whole) = whole {
            deliver(&header, &whole);
        }
        return Some(());
    }
    deliver(&header, payload);
    Some(())
}

fn input_v6(interface: &Arc<Interface>, packet: &[u8]) -> Option<()> {
    let view = Ipv6Packet::new_checked(packet).ok()?;
    let (source, destination) = (IpAddr::V6(view.src_addr()), IpAddr::V6(view.dst_addr()));
    if is_bad_source(source, interface) || destination.is_loopback() && interface.index != interface::LOOPBACK {
        return None;
    }
    let Some(to_many) = is_ours(interface, destination) else {
        interface.statistics.rx_dropped.fetch_add(1, Relaxed);
        return Some(());
    };
    let mut header = Header {
        source,
        destination,
        protocol: view.next_header().into(),
        ttl: view.hop_limit(),
        tos: view.traffic_class(),
        interface: interface.clone(),
        to_many,
    };
    let mut payload = view.payload();
    for _ in 0..EXTENSIONS_MAX {
        match header.protocol {
            // Hop-by-hop and destination options say nothing that we heed; a routing header is for nodes on the way.
            0 | 43 | 60 => {
                let len = 8 + usize::from(*payload.get(1)?) * 8;
                if header.protocol == 43 && *payload.get(3)? != 0 {
                    return None;
                }
                header.protocol = payload[0];
                payload = payload.get(len..)?;
            }
            NEXT_FRAGMENT => {
                let (fixed, rest) = payload.split_first_chunk::<FRAGMENT_HEADER>()?;
                let field = u16::from_be_bytes([fixed[2], fixed[3]]);
                let id = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
                header.protocol = fixed[0];
                let key = fragment::Key { source, destination, protocol: header.protocol, id };
                let whole = if field & !6 == 0 {
                    // A fragment that is all there is.
                    Some(rest.to_vec())
                } else {
                    interface.fragments.add(key, usize::from(field & !7), field & 1 != 0, rest)
                };
                if let Some(whole) = whole {
                    deliver(&header, &whole);
                }
                return Some(());
            }
            _ => break,
        }
    }
    deliver(&header, payload);
    Some(())
}

/// Gives a packet to whom it is for.
pub fn deliver(header: &Header, payload: &[u8]) {
    let raw = datagram::raw::deliver_raw(header, payload);
    match header.protocol {
        UDP | UDPLITE => datagram::udp::deliver_udp(header, payload),
        TCP => tcp::remote::deliver(header, payload),
        ICMP if header.destination.is_ipv4() => icmp::input_v4(header, payload),
        ICMPV6 if header.destination.is_ipv6() => icmp::input_v6(header, payload),
        // Protocol unreachable.
        _ if !raw && !header.to_many => icmp::unreachable(header, payload, icmp::Unreachable::Protocol),
        _ => {}
    }
}

/// The first bytes of a packet as it came, for errors about it.
pub fn quote(header: &Header, payload: &[u8], max: usize) -> Vec<u8> {
    let wish = Wish { protocol: header.protocol, ttl: header.ttl, tos: header.tos, whole: false, loops: false };
    let mut bytes = match (header.source, header.destination) {
        (IpAddr::V4(a), IpAddr::V4(b)) => v4_header(a, b, &wish, payload.len(), 0, 0).to_vec(),
        (IpAddr::V6(a), IpAddr::V6(b)) => v6_header(a, b, &wish, header.protocol, payload.len()).to_vec(),
        _ => Vec::new(),
    };
    let room = max.saturating_sub(bytes.len()).min(payload.len());
    bytes.extend_from_slice(&payload[..room]);
    bytes
}
