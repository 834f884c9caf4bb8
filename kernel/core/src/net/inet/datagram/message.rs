//! What goes along with a datagram: control messages of the sender and the receiver, errors about packets.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::sync::atomic::Ordering::Relaxed;

use linux_uapi::raw::net as uapi;
use linux_uapi::time::{Timespec, Timeval};
use linux_uapi::zerocopy::IntoBytes;

use super::super::address::{Endpoint, Family, to_v6, unmap};
use super::super::interface;
use super::super::ip::Wish;
use super::super::options::{SOL_IP, SOL_IPV6, Switch};
use super::{Datagram, Packet};
use crate::net::{Ancillary, Incoming};
use crate::{Errno, Result};

/// What a message says about itself in control messages.
#[derive(Default)]
pub(super) struct Wishes {
    pub(super) ttl: Option<u8>,
    pub(super) tos: Option<u8>,
    pub(super) source: Option<IpAddr>,
    pub(super) interface: u32,
}

/// Decodes them.
///
/// # Errors
/// `EINVAL` for what is malformed or unknown.
pub(super) fn wishes(control: &[Ancillary]) -> Result<Wishes> {
    let mut wishes = Wishes::default();
    for Ancillary { level, kind, data } in control {
        let int = || data.first_chunk::<4>().map(|v| i32::from_ne_bytes(*v)).ok_or(Errno::EINVAL);
        match (*level, *kind as u32) {
            (SOL_IP, uapi::IP_TTL) => {
                wishes.ttl = Some(u8::try_from(int()?).ok().filter(|t| *t > 0).ok_or(Errno::EINVAL)?)
            }
            (SOL_IP, uapi::IP_TOS) => {
                let value = if data.len() == 1 { data[0].into() } else { int()? };
                wishes.tos = Some(u8::try_from(value).map_err(|_| Errno::EINVAL)?);
            }
            (SOL_IP, uapi::IP_PKTINFO) => {
                // struct in_pktinfo: interface, address to send from, and one that is ignored.
                wishes.interface = int()? as u32;
                let ip = data.get(4..8).filter(|_| data.len() >= 12).ok_or(Errno::EINVAL)?;
                let ip = Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]);
                wishes.source = (!ip.is_unspecified()).then_some(ip.into());
            }
            (SOL_IPV6, uapi::IPV6_HOPLIMIT) => {
                let hops = int()?;
                wishes.ttl = if hops == -1 { None } else { Some(u8::try_from(hops).map_err(|_| Errno::EINVAL)?) };
            }
            (SOL_IPV6, uapi::IPV6_TCLASS) => {
                let class = int()?;
                wishes.tos = if class == -1 { None } else { Some(u8::try_from(class).map_err(|_| Errno::EINVAL)?) };
            }
            (SOL_IPV6, uapi::IPV6_PKTINFO) => {
                let octets: [u8; 16] = *data.first_chunk().filter(|_| data.len() >= 20).ok_or(Errno::EINVAL)?;
                let index = data[16..].first_chunk::<4>().map(|v| u32::from_ne_bytes(*v)).ok_or(Errno::EINVAL)?;
                wishes.interface = index;
                let ip = Ipv6Addr::from(octets);
                wishes.source = (!ip.is_unspecified()).then_some(unmap(ip));
            }
            (SOL_IP | SOL_IPV6, _) => return Err(Errno::EINVAL),
            _ => {}
        }
    }
    Ok(wishes)
}

impl Datagram {
    /// `MSG_ERRQUEUE`: the oldest error about a packet.
    pub(super) fn receive_error(&self, message: &mut Incoming<'_, '_>) -> Result<usize> {
        let (report, about) = self.errors.lock().pop_front().ok_or(Errno::EAGAIN)?;
        // struct sock_extended_err, then the offender's address.
        let mut data = Vec::from(report.error.raw().to_ne_bytes());
        let origin = if about.ip.is_ipv4() { 2 } else { 3 };
        data.extend_from_slice(&[origin, report.kind.0, report.kind.1, 0]);
        data.extend_from_slice(&[0; 8]);
        let family = if about.ip.is_ipv4() { Family::V4 } else { Family::V6 };
        data.extend_from_slice(&Endpoint::new(about.ip, 0).encode(family));
        let (level, kind) =
            if about.ip.is_ipv4() { (SOL_IP, uapi::IP_RECVERR) } else { (SOL_IPV6, uapi::IPV6_RECVERR) };
        message.control.other.push(Ancillary { level, kind: kind as i32, data });
        message.address = about.encode(self.family);
        message.out_flags |= uapi::MSG_ERRQUEUE;
        // The next error, if any, is the pending one.
        self.error.take();
        if let Some((next, _)) = self.errors.lock().front() {
            self.error.set(next.error);
        }
        Ok(0)
    }

    /// What was asked to be told of a packet.
    pub(super) fn control(&self, packet: &Packet, message: &mut Incoming<'_, '_>) {
        let other = &mut message.control.other;
        let mut put = |level: i32, kind: u32, data: Vec<u8>| other.push(Ancillary { level, kind: kind as i32, data });
        if packet.time != 0 {
            let (s, ns) = ((packet.time / 1_000_000_000) as i64, (packet.time % 1_000_000_000) as i64);
            if self.options.has(uapi::SO_TIMESTAMPNS) {
                let time = Timespec { tv_sec: s, tv_nsec: ns };
                put(uapi::SOL_SOCKET as i32, uapi::SO_TIMESTAMPNS, Vec::from(time.as_bytes()));
            } else if self.options.has(uapi::SO_TIMESTAMP) {
                let time = Timeval { tv_sec: s, tv_usec: ns / 1000 };
                put(uapi::SOL_SOCKET as i32, uapi::SO_TIMESTAMP, Vec::from(time.as_bytes()));
            }
        }
        if self.options.has(uapi::SO_RXQ_OVFL) && self.drops.load(Relaxed) > 0 {
            put(uapi::SOL_SOCKET as i32, uapi::SO_RXQ_OVFL, self.drops.load(Relaxed).to_ne_bytes().to_vec());
        }
        if let IpAddr::V4(to) = packet.to {
            if self.ip.has(Switch::PacketInfo) {
                let mut data = Vec::from(packet.interface.to_ne_bytes());
                // The address here that it came to, and the one in its header.
                let here = if to.is_multicast() || to.is_broadcast() {
                    interface::addresses_of(packet.interface).iter().find_map(|a| match a.ip {
                        IpAddr::V4(ip) => Some(ip),
                        IpAddr::V6(_) => None,
                    })
                } else {
                    Some(to)
                };
                data.extend_from_slice(&here.unwrap_or(to).octets());
                data.extend_from_slice(&to.octets());
                put(SOL_IP, uapi::IP_PKTINFO, data);
            }
            if self.ip.has(Switch::ReceiveTtl) {
                put(SOL_IP, uapi::IP_TTL, i32::from(packet.ttl).to_ne_bytes().to_vec());
            }
            if self.ip.has(Switch::ReceiveTos) {
                put(SOL_IP, uapi::IP_TOS, alloc::vec![packet.tos]);
            }
            if self.ip.has(Switch::ReceiveDestination) {
                let port = self.state.lock().local.map_or(0, |l| l.port);
                put(SOL_IP, uapi::IP_RECVORIGDSTADDR, Endpoint::new(packet.to, port).encode(Family::V4));
            }
        }
        if self.family == Family::V6 {
            if self.ip.has(Switch::PacketInfo6) {
                let mut data = Vec::from(to_v6(packet.to).octets());
                data.extend_from_slice(&packet.interface.to_ne_bytes());
                put(SOL_IPV6, uapi::IPV6_PKTINFO, data);
            }
            if packet.to.is_ipv6() && self.ip.has(Switch::ReceiveHopLimit) {
                put(SOL_IPV6, uapi::IPV6_HOPLIMIT, i32::from(packet.ttl).to_ne_bytes().to_vec());
            }
            if packet.to.is_ipv6() && self.ip.has(Switch::ReceiveClass) {
                put(SOL_IPV6, uapi::IPV6_TCLASS, i32::from(packet.tos).to_ne_bytes().to_vec());
            }
        }
    }

    /// How a packet to `to` is to look.
    pub(super) fn wish(&self, protocol: u8, to: &Endpoint, wishes: &Wishes, to_many: bool) -> Wish {
        let (ttl, tos) = self.ip.hops_and_class(to.ip, to_many);
        let (discovery, loops) = match to.ip {
            IpAddr::V4(_) => (&self.ip.discovery, Switch::MulticastLoop),
            IpAddr::V6(_) => (&self.ip.discovery6, Switch::MulticastLoop6),
        };
        let whole = matches!(discovery.load(Relaxed), 2 | 3);
        Wish {
            protocol,
            ttl: wishes.ttl.unwrap_or(ttl),
            tos: wishes.tos.unwrap_or(tos),
            whole: whole || to.ip.is_ipv6() && self.ip.has(Switch::DontFragment),
            loops: self.ip.has(loops) || to.ip.is_ipv4() && !to.ip.is_multicast(),
        }
    }
}
