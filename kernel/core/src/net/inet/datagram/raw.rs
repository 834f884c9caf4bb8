//! Echo requests (`IPPROTO_ICMP` datagrams) and raw IP.
//!
//! References: icmp(7), raw(7), `net/ipv4/ping.c`, `net/ipv4/raw.c`.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::IpAddr;
use core::sync::atomic::Ordering::Relaxed;

use linux_uapi::raw::net as uapi;
use ursa_hal::sync::SpinLock;

use super::super::address::{Endpoint, Family};
use super::super::icmp;
use super::super::ip::{self, Header};
use super::super::options::Switch;
use super::super::ports::Ports;
use super::message::Wishes;
use super::{Datagram, ICMP_HEADER, PACKET_MAX, Packet, Protocol, RAW_COUNT, Row, sender};
use crate::{Errno, Result};

pub(super) static PING: Ports<Datagram> = Ports::new(false);
pub(super) static RAW: SpinLock<Vec<Weak<Datagram>>> = SpinLock::new(Vec::new());

impl Datagram {
    pub(super) fn send_ping(&self, to: &Endpoint, mut data: Vec<u8>, wishes: &Wishes) -> Result {
        let request = if to.ip.is_ipv4() { 8 } else { 128 };
        if data.len() < ICMP_HEADER || data[0] != request || data[1] != 0 {
            return Err(Errno::EINVAL);
        }
        let (way, source) = self.route(to, wishes)?;
        if way.is_broadcast && !self.options.has(uapi::SO_BROADCAST) {
            return Err(Errno::EACCES);
        }
        let id = self.state.lock().local.map_or(0, |l| l.port);
        data[4..6].copy_from_slice(&id.to_be_bytes());
        icmp::seal(&mut data, source, to.ip);
        let protocol = if to.ip.is_ipv4() { ip::ICMP } else { ip::ICMPV6 };
        let wish = self.wish(protocol, to, wishes, way.is_broadcast || to.ip.is_multicast());
        ip::output(&way, source, to.ip, &wish, &data)
    }

    pub(super) fn send_raw(&self, protocol: u8, to: &Endpoint, mut data: Vec<u8>, wishes: &Wishes) -> Result {
        let (way, source) = self.route(to, wishes)?;
        if way.is_broadcast && !self.options.has(uapi::SO_BROADCAST) {
            return Err(Errno::EACCES);
        }
        if self.ip.has(Switch::HeaderIncluded) {
            if to.ip.is_ipv4() {
                // What the kernel fills in: the length, the checksum, and where they are zero, source and number.
                if data.len() < ip::V4_HEADER || usize::from(data[0] & 15) * 4 > data.len() || data[0] & 15 < 5 {
                    return Err(Errno::EINVAL);
                }
                let len = data.len() as u16;
                data[2..4].copy_from_slice(&len.to_be_bytes());
                if let IpAddr::V4(source) = source
                    && data[12..16] == [0; 4]
                {
                    data[12..16].copy_from_slice(&source.octets());
                }
                data[10..12].fill(0);
                let header = usize::from(data[0] & 15) * 4;
                let checksum = ip::fold(ip::sum(&data[..header], 0));
                data[10..12].copy_from_slice(&checksum.to_be_bytes());
            } else if data.len() < ip::V6_HEADER {
                return Err(Errno::EINVAL);
            }
            return ip::output_raw(&way, &data);
        }
        let at = if protocol == ip::ICMPV6 && to.ip.is_ipv6() { Some(2) } else { *self.checksum_at.lock() };
        if let Some(at) = at.filter(|_| to.ip.is_ipv6()) {
            if at + 2 > data.len() {
                return Err(Errno::EINVAL);
            }
            data[at..at + 2].fill(0);
            let checksum = ip::fold(ip::sum(&data, ip::pseudo(source, to.ip, protocol, data.len())));
            data[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        let wish = self.wish(protocol, to, wishes, way.is_broadcast || to.ip.is_multicast());
        ip::output(&way, source, to.ip, &wish, &data)
    }

    /// Whether a raw socket takes a packet.
    fn takes_raw(&self, header: &Header, payload: &[u8]) -> bool {
        let Protocol::Raw(protocol) = self.protocol else { return false };
        let family = if header.destination.is_ipv4() { Family::V4 } else { Family::V6 };
        if protocol != header.protocol || family != self.family {
            return false;
        }
        let device = self.device.load(Relaxed);
        if device != 0 && device != header.interface.index {
            return false;
        }
        let state = self.state.lock();
        if state.local.is_some_and(|l| !l.ip.is_unspecified() && l.ip != header.destination)
            || state.remote.is_some_and(|r| r.ip != header.source)
        {
            return false;
        }
        drop(state);
        if header.destination.is_multicast() && !self.ip.takes_group(header.destination, header.interface.index) {
            return false;
        }
        let filter = self.filter.lock();
        match (protocol, payload.first()) {
            (ip::ICMP, Some(kind)) if *kind < 32 => filter[0] & 1 << kind == 0,
            (ip::ICMPV6, Some(kind)) => filter[usize::from(kind >> 5)] & 1 << (kind & 31) == 0,
            _ => true,
        }
    }
}

/// All raw sockets, with their protocols.
pub fn sockets() -> Vec<(u8, Row)> {
    let sockets: Vec<Arc<Datagram>> = RAW.lock().iter().filter_map(Weak::upgrade).collect();
    let protocol = |s: &Datagram| if let Protocol::Raw(number) = s.protocol { number } else { 0 };
    sockets.iter().map(|s| (protocol(s), s.row())).collect()
}

/// An echo reply came in.
pub fn deliver_ping(header: &Header, message: &[u8]) {
    let id = u16::from_be_bytes([message[4], message[5]]);
    let index = header.interface.index;
    let from = sender(header, 0);
    if let Some(socket) = PING.find(header.destination, id, &from, index, false) {
        socket.offer(Packet::received(header, from, message.to_vec()));
    }
}

/// Shows a packet to the raw sockets; whether any took it.
pub fn deliver_raw(header: &Header, payload: &[u8]) -> bool {
    if RAW_COUNT.load(Relaxed) == 0 {
        return false;
    }
    let sockets: Vec<Arc<Datagram>> = RAW.lock().iter().filter_map(Weak::upgrade).collect();
    let mut taken = false;
    for socket in sockets.iter().filter(|s| s.takes_raw(header, payload)) {
        // IPv4's come with their header.
        let data = if header.source.is_ipv4() { ip::quote(header, payload, PACKET_MAX) } else { payload.to_vec() };
        taken = true;
        socket.offer(Packet::received(header, sender(header, 0), data));
    }
    taken
}
