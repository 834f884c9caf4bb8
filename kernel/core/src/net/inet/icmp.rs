//! ICMP and ICMPv6: answers to echo requests, errors to and from sockets.
//!
//! References: RFC 792, RFC 4443, icmp(7), `net/ipv4/icmp.c` (`icmp_err_convert`).

use alloc::vec::Vec;
use core::net::IpAddr;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

use super::address::Endpoint;
use super::ip::{self, Header, Wish};
use super::{datagram, interface, link, tcp};
use crate::time::monotonic_ns;
use crate::{Errno, Result};

/// What could not be reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// Nobody speaks the protocol.
    Protocol,
    /// Nobody has the port.
    Port,
}

/// Bytes of a packet that an IPv4 error quotes at most, and an IPv6 one.
const QUOTE_V4: usize = 548;
const QUOTE_V6: usize = 1232;
/// Errors that are sent in a second to other machines.
const ERRORS_PER_SECOND: u64 = 1000;

/// An error about a packet: what a socket is told, and whether it ends what the socket is doing.
#[derive(Clone, Copy)]
pub struct Report {
    /// The error.
    pub error: Errno,
    /// A connected socket is told even if it did not ask (`IP_RECVERR`).
    pub fatal: bool,
    /// `ICMP` type and code, for `MSG_ERRQUEUE`.
    pub kind: (u8, u8),
}

/// The checksum of an IPv4 ICMP message, in its place.
fn seal_v4(message: &mut [u8]) {
    message[2..4].fill(0);
    let checksum = ip::fold(ip::sum(message, 0));
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
}

/// The checksum of an ICMPv6 message, in its place.
pub fn seal_v6(message: &mut [u8], source: IpAddr, destination: IpAddr) {
    message[2..4].fill(0);
    let checksum = ip::fold(ip::sum(message, ip::pseudo(source, destination, ip::ICMPV6, message.len())));
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
}

/// Puts the checksum into a message that a socket sends.
pub fn seal(message: &mut [u8], source: IpAddr, destination: IpAddr) {
    if source.is_ipv4() { seal_v4(message) } else { seal_v6(message, source, destination) }
}

/// Sends a message back to where a packet came from.
fn answer(header: &Header, mut message: Vec<u8>) {
    let protocol = if header.source.is_ipv4() { ip::ICMP } else { ip::ICMPV6 };
    let scope = if super::address::is_link_local(header.source) { header.interface.index } else { 0 };
    let Ok(way) = interface::way(header.source, 0, scope) else { return };
    let source = if header.to_many { way.source } else { header.destination };
    seal(&mut message, source, header.source);
    let wish = Wish { tos: header.tos, ..Wish::new(protocol) };
    // Who cannot be answered is not.
    let _: Result = ip::output(&way, source, header.source, &wish, &message);
}

/// An ICMP message came in.
pub fn input_v4(header: &Header, message: &[u8]) {
    if message.len() < 8 || ip::fold(ip::sum(message, 0)) != 0 {
        return;
    }
    match message[0] {
        8 if !header.to_many => {
            let mut reply = message.to_vec();
            reply[0] = 0;
            answer(header, reply);
        }
        0 => datagram::raw::deliver_ping(header, message),
        kind @ (3 | 11 | 12) => {
            let fatal = kind == 12 || kind == 3 && matches!(message[1], 2 | 3);
            let error = match (kind, message[1]) {
                (3, 0 | 6) => Errno::ENETUNREACH,
                (3, 2) => Errno::ENOPROTOOPT,
                (3, 3) => Errno::ECONNREFUSED,
                (3, 4) => Errno::EMSGSIZE,
                (12, _) => Errno::EPROTO,
                _ => Errno::EHOSTUNREACH,
            };
            let Ok(quoted) = Ipv4Packet::new_checked(&message[8..]).or_else(|_| {
                // The quote is cut: its length field says more than there is.
                let quote = &message[8..];
                if quote.len() < ip::V4_HEADER {
                    Err(smoltcp::wire::Error)
                } else {
                    Ok(Ipv4Packet::new_unchecked(quote))
                }
            }) else {
                return;
            };
            let start = usize::from(quoted.header_len());
            let Some(payload) = message[8..].get(start..) else { return };
            report(
                quoted.src_addr().into(),
                quoted.dst_addr().into(),
                quoted.next_header().into(),
                payload,
                Report { error, fatal, kind: (kind, message[1]) },
            );
        }
        _ => {}
    }
}

/// An ICMPv6 message came in.
pub fn input_v6(header: &Header, message: &[u8]) {
    let pseudo = ip::pseudo(header.source, header.destination, ip::ICMPV6, message.len());
    if message.len() < 8 || ip::fold(ip::sum(message, pseudo)) != 0 {
        return;
    }
    match message[0] {
        128 => {
            let mut reply = message.to_vec();
            reply[0] = 129;
            answer(header, reply);
        }
        129 => datagram::raw::deliver_ping(header, message),
        135 | 136 => link::neighbour_input(header, message),
        kind @ 1..=4 => {
            let (error, fatal) = match (kind, message[1]) {
                (1, 0) => (Errno::ENETUNREACH, false),
                (1, 1) => (Errno::EACCES, true),
                (1, 4) => (Errno::ECONNREFUSED, true),
                (2, _) => (Errno::EMSGSIZE, false),
                (4, _) => (Errno::EPROTO, true),
                _ => (Errno::EHOSTUNREACH, false),
            };
            let quote = &message[8..];
            if quote.len() < ip::V6_HEADER {
                return;
            }
            let quoted = Ipv6Packet::new_unchecked(quote);
            report(
                quoted.src_addr().into(),
                quoted.dst_addr().into(),
                quoted.next_header().into(),
                &quote[ip::V6_HEADER..],
                Report { error, fatal, kind: (kind, message[1]) },
            );
        }
        _ => {}
    }
}

/// Tells the socket that sent a packet what became of it.
fn report(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8], report: Report) {
    let Some(&[a, b, c, d]) = payload.first_chunk::<4>() else { return };
    let local = Endpoint::new(source, u16::from_be_bytes([a, b]));
    let remote = Endpoint::new(destination, u16::from_be_bytes([c, d]));
    match protocol {
        ip::UDP | ip::UDPLITE => datagram::udp::report(protocol == ip::UDPLITE, &local, &remote, report),
        ip::TCP => tcp::remote::report(&local, &remote, report),
        _ => {}
    }
}

/// Tells the sender of a packet that nobody here takes it.
pub fn unreachable(header: &Header, payload: &[u8], what: Unreachable) {
    let code = match (what, header.source.is_ipv4()) {
        (Unreachable::Protocol, true) => 2,
        (Unreachable::Port, true) => 3,
        // An IPv6 header's next header that is not known is a parameter problem (type 4, code 1).
        (Unreachable::Protocol, false) => 1,
        (Unreachable::Port, false) => 4,
    };
    if interface::is_own(header.source) {
        // The sender is here: no packet need be made to tell it.
        let (error, kind) = match (what, header.source.is_ipv4()) {
            (Unreachable::Port, true) => (Errno::ECONNREFUSED, 3),
            (Unreachable::Port, false) => (Errno::ECONNREFUSED, 1),
            (Unreachable::Protocol, true) => (Errno::ENOPROTOOPT, 3),
            (Unreachable::Protocol, false) => (Errno::EPROTO, 4),
        };
        let told = Report { error, fatal: true, kind: (kind, code) };
        report(header.source, header.destination, header.protocol, payload, told);
        return;
    }
    if header.to_many || header.source.is_unspecified() || !may_send_error() {
        return;
    }
    let (kind, max) = match (header.source.is_ipv4(), what) {
        (true, _) => (3, QUOTE_V4),
        (false, Unreachable::Port) => (1, QUOTE_V6),
        (false, Unreachable::Protocol) => (4, QUOTE_V6),
    };
    let mut message = alloc::vec![kind, code, 0, 0, 0, 0, 0, 0];
    if kind == 4 {
        // Where the next header field stands.
        message[7] = 6;
    }
    message.extend_from_slice(&ip::quote(header, payload, max));
    answer(header, message);
}

/// Keeps a flood of bad packets from becoming a flood of errors (`icmp_msgs_per_sec`).
fn may_send_error() -> bool {
    static SECOND: AtomicU64 = AtomicU64::new(0);
    static SENT: AtomicU64 = AtomicU64::new(0);
    let second = monotonic_ns() / 1_000_000_000;
    if SECOND.swap(second, Relaxed) != second {
        SENT.store(0, Relaxed);
    }
    SENT.fetch_add(1, Relaxed) < ERRORS_PER_SECOND
}
