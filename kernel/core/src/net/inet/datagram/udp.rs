//! UDP, and UDP-Lite: the same, with a checksum that may leave the end of a datagram out.
//!
//! References: udp(7), udplite(7), RFC 3828, `net/ipv4/udp.c`, `include/net/udplite.h`.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};

use linux_uapi::raw::net as uapi;

use super::super::address::{Endpoint, is_link_local};
use super::super::icmp::{self, Report, Unreachable};
use super::super::interface;
use super::super::ip::{self, Header};
use super::super::ports::Ports;
use super::message::Wishes;
use super::{COUNTERS, Datagram, Packet, Protocol, RAW_COUNT, Row, UDP_HEADER, sender};
use crate::{Errno, Result};

static UDP: Ports<Datagram> = Ports::new(false);
static UDPLITE: Ports<Datagram> = Ports::new(false);

/// The sockets by port.
pub(super) fn table(lite: bool) -> &'static Ports<Datagram> {
    if lite { &UDPLITE } else { &UDP }
}

/// Counts for UDP; UDP-Lite's counters are not kept.
fn count_udp(lite: bool, counter: &AtomicU64) {
    if !lite {
        counter.fetch_add(1, Relaxed);
    }
}

/// How much of a datagram a UDP-Lite socket's checksums cover, in bytes with the header; 0 is all.
#[derive(Default)]
pub(super) struct Coverage {
    send: AtomicU16,
    receive: AtomicU16,
}

/// `UDPLITE_SEND_CSCOV`
pub(super) const SEND_COVERAGE: u32 = 10;
/// `UDPLITE_RECV_CSCOV`
pub(super) const RECEIVE_COVERAGE: u32 = 11;

impl Coverage {
    fn value(&self, option: u32) -> &AtomicU16 {
        if option == SEND_COVERAGE { &self.send } else { &self.receive }
    }

    /// What getsockopt(2) shows.
    pub(super) fn get(&self, option: u32) -> i32 {
        self.value(option).load(Relaxed).into()
    }

    /// At least the header is covered.
    pub(super) fn set(&self, option: u32, bytes: i32) {
        let bytes = if bytes == 0 { 0 } else { bytes.clamp(UDP_HEADER as i32, u16::MAX.into()) as u16 };
        self.value(option).store(bytes, Relaxed);
    }

    /// How much of `total` bytes a sender covers.
    fn sent(&self, total: usize) -> usize {
        match usize::from(self.send.load(Relaxed)) {
            0 => total,
            some => some.min(total),
        }
    }

    /// Whether a receiver takes a datagram: one that is covered in part only if it asked for that, and for no more.
    fn accepts(&self, covered: usize, total: usize) -> bool {
        let least = usize::from(self.receive.load(Relaxed));
        covered == total || least != 0 && covered >= least
    }
}

impl Datagram {
    pub(super) fn send_udp(&self, to: &Endpoint, data: Vec<u8>, wishes: &Wishes) -> Result {
        let (way, source) = self.route(to, wishes)?;
        if way.is_broadcast && !self.options.has(uapi::SO_BROADCAST) {
            return Err(Errno::EACCES);
        }
        let port = self.state.lock().local.map_or(0, |l| l.port);
        let wish = self.wish(self.protocol.number(self.family), to, wishes, way.is_broadcast || to.ip.is_multicast());
        let lite = self.protocol == Protocol::UdpLite;
        let count = |counter: &AtomicU64| count_udp(lite, counter);
        count(&COUNTERS.sent);
        let total = UDP_HEADER + data.len();
        let covered = if lite { self.coverage.sent(total) } else { total };
        if way.is_local && !way.is_broadcast && !to.ip.is_multicast() && RAW_COUNT.load(Relaxed) == 0 {
            // Straight into the other socket's queue.
            let scope = if is_link_local(source) { way.interface.index } else { 0 };
            let from = Endpoint { ip: source, port, scope };
            let Some(target) = table(lite).find(to.ip, to.port, &from, way.interface.index, false) else {
                count(&COUNTERS.no_port);
                let kind = if to.ip.is_ipv4() { (3, 3) } else { (1, 4) };
                self.told(Report { error: Errno::ECONNREFUSED, fatal: true, kind }, *to);
                return Ok(());
            };
            if lite && !target.coverage.accepts(covered, total) {
                return Ok(());
            }
            count(&COUNTERS.received);
            let index = way.interface.index;
            target.offer(Packet { data, from, to: to.ip, interface: index, ttl: wish.ttl, tos: wish.tos, time: 0 });
            return Ok(());
        }
        let mut packet = Vec::with_capacity(total);
        packet.extend_from_slice(&port.to_be_bytes());
        packet.extend_from_slice(&to.port.to_be_bytes());
        // UDP-Lite has the checksum's coverage here, 0 for all; its length is the packet's.
        let length = if lite && covered == total { 0 } else { covered as u16 };
        packet.extend_from_slice(&length.to_be_bytes());
        packet.extend_from_slice(&[0, 0]);
        packet.extend_from_slice(&data);
        let checksum = ip::fold(ip::sum(&packet[..covered], ip::pseudo(source, to.ip, wish.protocol, total)));
        let checksum = if checksum == 0 { 0xffff } else { checksum };
        packet[6..8].copy_from_slice(&checksum.to_be_bytes());
        ip::output(&way, source, to.ip, &wish, &packet)
    }
}

/// All sockets of UDP, or of UDP-Lite, that have a port.
pub fn sockets(lite: bool) -> Vec<Row> {
    table(lite).all().into_iter().map(|(_, socket)| socket.row()).collect()
}

/// A packet of UDP, or of UDP-Lite, came in.
pub fn deliver_udp(header: &Header, payload: &[u8]) {
    let lite = header.protocol == ip::UDPLITE;
    let count = |counter: &AtomicU64| count_udp(lite, counter);
    let Some((head, _)) = payload.split_first_chunk::<UDP_HEADER>() else {
        count(&COUNTERS.errors);
        return;
    };
    let field = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let (len, covered) = match (lite, usize::from(field(4))) {
        (false, len) => (len, len),
        (true, 0) => (payload.len(), payload.len()),
        (true, covered) => (payload.len(), covered),
    };
    let local = header.interface.index == interface::LOOPBACK;
    if len < UDP_HEADER || len > payload.len() || covered < UDP_HEADER || covered > len {
        count(&COUNTERS.errors);
        return;
    }
    let payload = &payload[..len];
    // Zero means none over IPv4; what never left the machine is not looked at.
    let has_checksum = field(6) != 0 || header.source.is_ipv6() || lite;
    if has_checksum && !local {
        let pseudo = ip::pseudo(header.source, header.destination, header.protocol, len);
        if ip::fold(ip::sum(&payload[..covered], pseudo)) != 0 {
            count(&COUNTERS.errors);
            return;
        }
    }
    let index = header.interface.index;
    let from = sender(header, field(0));
    let packet = || Packet::received(header, from, payload[UDP_HEADER..].to_vec());
    if header.to_many {
        for socket in table(lite).find_all(header.destination, field(2), &from, index) {
            if lite && !socket.coverage.accepts(covered, len) {
                continue;
            }
            if !header.destination.is_multicast() || socket.ip.takes_group(header.destination, index) {
                count(&COUNTERS.received);
                socket.offer(packet());
            }
        }
        return;
    }
    match table(lite).find(header.destination, field(2), &from, index, false) {
        Some(socket) if lite && !socket.coverage.accepts(covered, len) => {}
        Some(socket) => {
            count(&COUNTERS.received);
            socket.offer(packet());
        }
        None => {
            count(&COUNTERS.no_port);
            icmp::unreachable(header, payload, Unreachable::Port);
        }
    }
}

/// An error about a packet of UDP, or of UDP-Lite, from `local` to `remote`.
pub fn report(lite: bool, local: &Endpoint, remote: &Endpoint, report: Report) {
    if let Some(socket) = table(lite).find(local.ip, local.port, remote, 0, false) {
        socket.told(report, *remote);
    }
}
