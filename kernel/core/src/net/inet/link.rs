//! Below IP: Ethernet frames, ARP and neighbour discovery.
//!
//! References: RFC 826, RFC 894, RFC 2464, RFC 4861.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::sync::atomic::Ordering::Relaxed;

use super::interface::{self, Interface};
use super::ip::{self, Wish};
use super::worker::{self, Work};
use crate::net::packet;
use crate::time::monotonic_ns;
use crate::{Errno, Result};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// `ETH_P_IP`
pub const P_IP: u16 = 0x0800;
/// `ETH_P_ARP`
pub const P_ARP: u16 = 0x0806;
/// `ETH_P_IPV6`
pub const P_IPV6: u16 = 0x86dd;
const BROADCAST: [u8; 6] = [0xff; 6];
/// Bytes of an ARP packet about IPv4 over Ethernet.
const ARP: usize = 28;
const RETRY_NS: u64 = 1_000_000_000;

/// An Ethernet frame to `mac` with an IP packet.
pub fn frame(interface: &Interface, mac: [u8; 6], next_hop: IpAddr, parts: &[&[u8]]) -> Vec<u8> {
    let protocol = if next_hop.is_ipv4() { P_IP } else { P_IPV6 };
    let mut frame = Vec::with_capacity(ETHERNET + parts.iter().map(|p| p.len()).sum::<usize>());
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&interface.mac());
    frame.extend_from_slice(&protocol.to_be_bytes());
    for part in parts {
        frame.extend_from_slice(part);
    }
    frame
}

/// The link address of a group, which nobody need be asked for.
pub fn group_mac(ip: IpAddr, is_broadcast: bool) -> Option<[u8; 6]> {
    match ip {
        _ if is_broadcast => Some(BROADCAST),
        IpAddr::V4(ip) if ip.is_multicast() => {
            let [_, b, c, d] = ip.octets();
            Some([1, 0, 0x5e, b & 0x7f, c, d])
        }
        IpAddr::V6(ip) if ip.is_multicast() => {
            let octets = ip.octets();
            Some([0x33, 0x33, octets[12], octets[13], octets[14], octets[15]])
        }
        _ => None,
    }
}

/// Hands a packet to the interface's link.
///
/// # Errors
/// `ENETDOWN`, `ENOBUFS`.
pub fn send(interface: &Arc<Interface>, packet: &[u8]) -> Result {
    let link = interface.link.as_ref().filter(|_| interface.is_up()).ok_or(Errno::ENETDOWN)?;
    packet::tap(interface, packet, true);
    let sent = link.transmit(packet);
    let statistics = &interface.statistics;
    match sent {
        Ok(()) => {
            statistics.tx_packets.fetch_add(1, Relaxed);
            statistics.tx_bytes.fetch_add(packet.len() as u64, Relaxed);
        }
        Err(_) => {
            statistics.tx_dropped.fetch_add(1, Relaxed);
        }
    }
    // A queue that is full loses the packet, as networks do; the sender is not told.
    Ok(())
}

/// A packet came in from the interface's link.
pub fn input(interface: &Arc<Interface>, packet: &[u8]) {
    let statistics = &interface.statistics;
    statistics.rx_packets.fetch_add(1, Relaxed);
    statistics.rx_bytes.fetch_add(packet.len() as u64, Relaxed);
    packet::tap(interface, packet, false);
    if !interface.is_ethernet() {
        ip::input(interface, packet);
        return;
    }
    let Some((header, payload)) = packet.split_first_chunk::<ETHERNET>() else {
        statistics.rx_errors.fetch_add(1, Relaxed);
        return;
    };
    let is_group = header[0] & 1 != 0;
    if is_group {
        statistics.multicast.fetch_add(1, Relaxed);
    } else if header[..6] != interface.mac() {
        // For somebody else: an interface that is promiscuous shows it to AF_PACKET only.
        return;
    }
    match u16::from_be_bytes([header[12], header[13]]) {
        P_IP | P_IPV6 => ip::input(interface, payload),
        P_ARP => arp_input(interface, payload),
        _ => {
            statistics.rx_dropped.fetch_add(1, Relaxed);
        }
    }
}

/// Asks who has `ip`: everybody, or the one who had it.
pub fn ask(interface: &Arc<Interface>, ip: IpAddr, known: Option<[u8; 6]>) {
    let Ok(way) = interface::way(ip, interface.index, interface.index) else { return };
    match ip {
        IpAddr::V4(target) => {
            let IpAddr::V4(source) = way.source else { return };
            let packet = arp(1, interface.mac(), source, [0; 6], target);
            let _: Result = send(interface, &arp_frame(known.unwrap_or(BROADCAST), interface.mac(), &packet));
        }
        IpAddr::V6(target) => {
            let own = link_local(interface);
            let source = match (own, way.source) {
                (Some(own), _) => own,
                (None, IpAddr::V6(source)) => source,
                (None, IpAddr::V4(_)) => return,
            };
            let to = known.map_or(solicited_node(target), |_| target);
            let mac = known.or_else(|| group_mac(to.into(), false)).unwrap_or(BROADCAST);
            neighbour_message(interface, 135, 0, source, to, mac, target, 1);
        }
    }
    schedule(interface);
}

fn link_local(interface: &Interface) -> Option<Ipv6Addr> {
    interface::addresses_of(interface.index).iter().find_map(|a| match a.ip {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some(ip),
        _ => None,
    })
}

fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., b, c, d] = ip.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, b, c, d])
}

/// Looks after an interface's neighbours in a second.
fn schedule(interface: &Arc<Interface>) {
    worker::at(monotonic_ns() + RETRY_NS, Work::Neighbours(Arc::downgrade(interface)));
}

/// Asks again whom an answer is due from.
pub fn work(interface: &Arc<Interface>) {
    let (again, failed, more) = interface.neighbours.due();
    for ip in again {
        ask(interface, ip, None);
    }
    for ip in failed {
        super::tcp::remote::unreachable(ip);
    }
    if more {
        schedule(interface);
    }
}

/// Sends packets that waited for a link address.
fn flush(interface: &Arc<Interface>, mac: [u8; 6], packets: Vec<Vec<u8>>) {
    for mut packet in packets {
        packet[..6].copy_from_slice(&mac);
        let _: Result = send(interface, &packet);
    }
}

/// Enters a neighbour by hand (`ip neigh`).
pub fn set_neighbour(interface: &Arc<Interface>, ip: IpAddr, mac: [u8; 6], permanent: bool) {
    let waiting = interface.neighbours.set(ip, mac, permanent);
    flush(interface, mac, waiting);
}

fn arp(operation: u8, mac: [u8; 6], ip: Ipv4Addr, target_mac: [u8; 6], target: Ipv4Addr) -> [u8; ARP] {
    let mut packet = [0; ARP];
    packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, operation]);
    packet[8..14].copy_from_slice(&mac);
    packet[14..18].copy_from_slice(&ip.octets());
    packet[18..24].copy_from_slice(&target_mac);
    packet[24..28].copy_from_slice(&target.octets());
    packet
}

fn arp_frame(to: [u8; 6], from: [u8; 6], packet: &[u8]) -> Vec<u8> {
    [&to[..], &from, &P_ARP.to_be_bytes(), packet].concat()
}

fn arp_input(interface: &Arc<Interface>, packet: &[u8]) {
    let Some(packet) = packet.first_chunk::<ARP>() else { return };
    if packet[..6] != [0, 1, 8, 0, 6, 4] {
        return;
    }
    let address = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    let mac: [u8; 6] = core::array::from_fn(|i| packet[8 + i]);
    let (sender, target) = (address(14), address(24));
    let for_us = interface::addresses_of(interface.index).iter().any(|a| a.ip == IpAddr::V4(target));
    // A sender of 0.0.0.0 looks whether its address is free, and is not to be learnt.
    if !sender.is_unspecified() && !sender.is_multicast() && mac[0] & 1 == 0 {
        let waiting = interface.neighbours.learn(sender.into(), mac, packet[7] == 2, for_us);
        flush(interface, mac, waiting);
    }
    if packet[7] == 1 && for_us {
        let answer = arp(2, interface.mac(), target, mac, sender);
        let _: Result = send(interface, &arp_frame(mac, interface.mac(), &answer));
    }
}

/// Sends a neighbour solicitation (135) or advertisement (136) with our link address.
#[allow(clippy::too_many_arguments, reason = "the fields of one packet")]
fn neighbour_message(
    interface: &Arc<Interface>,
    kind: u8,
    flags: u8,
    source: Ipv6Addr,
    to: Ipv6Addr,
    mac: [u8; 6],
    target: Ipv6Addr,
    option: u8,
) {
    let mut body = [0; 32];
    body[0] = kind;
    body[4] = flags;
    body[8..24].copy_from_slice(&target.octets());
    body[24] = option;
    body[25] = 1;
    body[26..32].copy_from_slice(&interface.mac());
    let checksum = ip::fold(ip::sum(&body, ip::pseudo(source.into(), to.into(), ip::ICMPV6, body.len())));
    body[2..4].copy_from_slice(&checksum.to_be_bytes());
    let wish = Wish { ttl: 255, ..Wish::new(ip::ICMPV6) };
    let mut header = [0; ip::V6_HEADER];
    header[0] = 0x60;
    header[5] = body.len() as u8;
    header[6] = ip::ICMPV6;
    header[7] = wish.ttl;
    header[8..24].copy_from_slice(&source.octets());
    header[24..40].copy_from_slice(&to.octets());
    let packet = frame(interface, mac, to.into(), &[&header, &body]);
    let _: Result = send(interface, &packet);
}

/// A neighbour discovery message came in, checked to be from this link.
pub fn neighbour_input(header: &ip::Header, body: &[u8]) {
    let interface = &header.interface;
    let (IpAddr::V6(source), Some(target)) = (header.source, body.get(8..24)) else { return };
    if header.ttl != 255 || body[1] != 0 || !interface.is_ethernet() {
        return;
    }
    let octets: [u8; 16] = core::array::from_fn(|i| target[i]);
    let target = Ipv6Addr::from(octets);
    let mut options = &body[24..];
    let mut mac = None;
    while let [kind, len, ..] = *options {
        let len = usize::from(len) * 8;
        if len == 0 || len > options.len() {
            return;
        }
        if matches!((body[0], kind), (135, 1) | (136, 2)) && len == 8 {
            mac = Some(core::array::from_fn(|i| options[2 + i]));
        }
        options = &options[len..];
    }
    let ours = interface::addresses_of(interface.index).iter().any(|a| a.ip == IpAddr::V6(target));
    match body[0] {
        135 if ours => {
            if let Some(mac) = mac.filter(|_| !source.is_unspecified()) {
                let waiting = interface.neighbours.learn(source.into(), mac, false, true);
                flush(interface, mac, waiting);
            }
            let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            let to = if source.is_unspecified() { all_nodes } else { source };
            let to_mac = group_mac(to.into(), false).or(mac).unwrap_or(BROADCAST);
            // Solicited (unless from nobody), override.
            let flags = if source.is_unspecified() { 0x20 } else { 0x60 };
            neighbour_message(interface, 136, flags, target, to, to_mac, target, 2);
        }
        136 => {
            if let Some(mac) = mac {
                let waiting = interface.neighbours.learn(target.into(), mac, body[4] & 0x40 != 0, false);
                flush(interface, mac, waiting);
            }
        }
        _ => {}
    }
}
