//! Options of the levels `IPPROTO_IP` and `IPPROTO_IPV6`: [`IpOptions`]. References: ip(7), ipv6(7).

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::Relaxed};

use linux_uapi::raw::net as uapi;
use ursa_hal::sync::SpinLock;

use super::address::Family;
use super::interface::{self, Interface};
use super::ip::DEFAULT_TTL;
use crate::process::{Cap, capable};
use crate::{Errno, Result};

/// `SOL_IP`
pub const SOL_IP: i32 = 0;
/// `SOL_IPV6`
pub const SOL_IPV6: i32 = 41;
/// Groups that one socket may join (`net.ipv4.igmp_max_memberships`).
const MEMBERSHIPS_MAX: usize = 20;
/// `MCAST_JOIN_GROUP`, `MCAST_LEAVE_GROUP`
const MCAST_JOIN_GROUP: u32 = 42;
const MCAST_LEAVE_GROUP: u32 = 45;

/// Switches, by bit.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Switch {
    /// `IP_PKTINFO`
    PacketInfo,
    /// `IP_RECVTTL`
    ReceiveTtl,
    /// `IP_RECVTOS`
    ReceiveTos,
    /// `IP_RECVERR`
    ReceiveErrors,
    /// `IP_RECVORIGDSTADDR`
    ReceiveDestination,
    /// `IP_HDRINCL`, `IPV6_HDRINCL`
    HeaderIncluded,
    /// `IP_FREEBIND`, `IPV6_FREEBIND`
    FreeBind,
    /// `IP_TRANSPARENT`
    Transparent,
    /// `IP_BIND_ADDRESS_NO_PORT`
    BindNoPort,
    /// `IP_MULTICAST_LOOP`
    MulticastLoop,
    /// `IP_MULTICAST_ALL`
    MulticastAll,
    /// `IPV6_V6ONLY`
    V6Only,
    /// `IPV6_RECVPKTINFO`
    PacketInfo6,
    /// `IPV6_RECVHOPLIMIT`
    ReceiveHopLimit,
    /// `IPV6_RECVTCLASS`
    ReceiveClass,
    /// `IPV6_RECVERR`
    ReceiveErrors6,
    /// `IPV6_MULTICAST_LOOP`
    MulticastLoop6,
    /// `IPV6_MULTICAST_ALL`
    MulticastAll6,
    /// `IPV6_DONTFRAG`
    DontFragment,
    /// `IPV6_AUTOFLOWLABEL`
    AutoFlowLabel,
    /// `IPV6_FLOWINFO_SEND`
    FlowInfoSend,
}

/// The options.
pub struct IpOptions {
    family: Family,
    switches: AtomicU64,
    /// `IP_TTL`; -1 is the system's.
    pub ttl: AtomicI32,
    /// `IP_TOS`
    pub tos: AtomicI32,
    /// `IPV6_UNICAST_HOPS`
    pub hops: AtomicI32,
    /// `IPV6_TCLASS`
    pub class: AtomicI32,
    /// `IP_MULTICAST_TTL`
    pub multicast_ttl: AtomicI32,
    /// `IPV6_MULTICAST_HOPS`
    pub multicast_hops: AtomicI32,
    /// `IP_MULTICAST_IF`, `IPV6_MULTICAST_IF`: the interface's number.
    pub multicast_interface: AtomicU32,
    multicast_source: SpinLock<Ipv4Addr>,
    /// `IP_MTU_DISCOVER`
    pub discovery: AtomicI32,
    /// `IPV6_MTU_DISCOVER`
    pub discovery6: AtomicI32,
    /// `IP_UNICAST_IF`, in host order.
    pub unicast_interface: AtomicU32,
    /// `IP_MINTTL`, `IPV6_MINHOPCOUNT`
    pub min_ttl: AtomicI32,
    /// Groups, with the interface.
    memberships: SpinLock<Vec<(u32, IpAddr)>>,
}

/// An option's value as a number: an `int`, or a single byte, which IPv4's options also take.
fn number(value: &[u8], short: bool) -> Result<i32> {
    match value {
        [a, b, c, d, ..] => Ok(i32::from_ne_bytes([*a, *b, *c, *d])),
        [a, ..] if short => Ok((*a).into()),
        _ => Err(Errno::EINVAL),
    }
}

fn v4_at(value: &[u8], at: usize) -> Option<Ipv4Addr> {
    value.get(at..at + 4).map(|b| Ipv4Addr::new(b[0], b[1], b[2], b[3]))
}

fn int_at(value: &[u8], at: usize) -> Option<i32> {
    value.get(at..).and_then(|v| v.first_chunk::<4>()).map(|v| i32::from_ne_bytes(*v))
}

impl IpOptions {
    /// A new socket's.
    pub fn new(family: Family) -> IpOptions {
        let on = 1 << Switch::MulticastLoop as u8
            | 1 << Switch::MulticastAll as u8
            | 1 << Switch::MulticastLoop6 as u8
            | 1 << Switch::MulticastAll6 as u8
            | 1 << Switch::AutoFlowLabel as u8;
        IpOptions {
            family,
            switches: AtomicU64::new(on),
            ttl: AtomicI32::new(-1),
            tos: AtomicI32::new(0),
            hops: AtomicI32::new(-1),
            class: AtomicI32::new(0),
            multicast_ttl: AtomicI32::new(1),
            multicast_hops: AtomicI32::new(1),
            multicast_interface: AtomicU32::new(0),
            multicast_source: SpinLock::new(Ipv4Addr::UNSPECIFIED),
            discovery: AtomicI32::new(uapi::IP_PMTUDISC_WANT as i32),
            discovery6: AtomicI32::new(uapi::IPV6_PMTUDISC_WANT as i32),
            unicast_interface: AtomicU32::new(0),
            min_ttl: AtomicI32::new(0),
            memberships: SpinLock::new(Vec::new()),
        }
    }

    /// Takes over what a listener's connections inherit.
    pub fn inherit(&self, from: &IpOptions) {
        self.switches.store(from.switches.load(Relaxed), Relaxed);
        for (to, from) in
            [(&self.ttl, &from.ttl), (&self.tos, &from.tos), (&self.hops, &from.hops), (&self.class, &from.class)]
        {
            to.store(from.load(Relaxed), Relaxed);
        }
    }

    /// Whether a switch is on.
    pub fn has(&self, switch: Switch) -> bool {
        self.switches.load(Relaxed) & 1 << switch as u8 != 0
    }

    fn set_switch(&self, switch: Switch, on: bool) {
        let bit = 1 << switch as u8;
        if on {
            self.switches.fetch_or(bit, Relaxed);
        } else {
            self.switches.fetch_and(!bit, Relaxed);
        }
    }

    /// The hops and the type of service of packets to an address.
    pub fn hops_and_class(&self, to: IpAddr, to_many: bool) -> (u8, u8) {
        let (unicast, many, class) = match to {
            IpAddr::V4(_) => (&self.ttl, &self.multicast_ttl, &self.tos),
            IpAddr::V6(_) => (&self.hops, &self.multicast_hops, &self.class),
        };
        let hops = if to_many && to.is_multicast() { many } else { unicast }.load(Relaxed);
        let hops = if hops < 0 { DEFAULT_TTL.load(Relaxed) as i32 } else { hops };
        (hops as u8, class.load(Relaxed).max(0) as u8)
    }

    fn switch_of(level: i32, name: u32) -> Option<Switch> {
        Some(match (level, name) {
            (SOL_IP, uapi::IP_PKTINFO) => Switch::PacketInfo,
            (SOL_IP, uapi::IP_RECVTTL) => Switch::ReceiveTtl,
            (SOL_IP, uapi::IP_RECVTOS) => Switch::ReceiveTos,
            (SOL_IP, uapi::IP_RECVERR) => Switch::ReceiveErrors,
            (SOL_IP, uapi::IP_RECVORIGDSTADDR) => Switch::ReceiveDestination,
            (SOL_IP, uapi::IP_HDRINCL) | (SOL_IPV6, uapi::IPV6_HDRINCL) => Switch::HeaderIncluded,
            (SOL_IP, uapi::IP_FREEBIND) | (SOL_IPV6, uapi::IPV6_FREEBIND) => Switch::FreeBind,
            (SOL_IP, uapi::IP_TRANSPARENT) | (SOL_IPV6, uapi::IPV6_TRANSPARENT) => Switch::Transparent,
            (SOL_IP, uapi::IP_BIND_ADDRESS_NO_PORT) => Switch::BindNoPort,
            (SOL_IP, uapi::IP_MULTICAST_LOOP) => Switch::MulticastLoop,
            (SOL_IP, uapi::IP_MULTICAST_ALL) => Switch::MulticastAll,
            (SOL_IPV6, uapi::IPV6_V6ONLY) => Switch::V6Only,
            (SOL_IPV6, uapi::IPV6_RECVPKTINFO) => Switch::PacketInfo6,
            (SOL_IPV6, uapi::IPV6_RECVHOPLIMIT) => Switch::ReceiveHopLimit,
            (SOL_IPV6, uapi::IPV6_RECVTCLASS) => Switch::ReceiveClass,
            (SOL_IPV6, uapi::IPV6_RECVERR) => Switch::ReceiveErrors6,
            (SOL_IPV6, uapi::IPV6_MULTICAST_LOOP) => Switch::MulticastLoop6,
            (SOL_IPV6, uapi::IPV6_MULTICAST_ALL) => Switch::MulticastAll6,
            (SOL_IPV6, uapi::IPV6_DONTFRAG) => Switch::DontFragment,
            (SOL_IPV6, uapi::IPV6_AUTOFLOWLABEL) => Switch::AutoFlowLabel,
            (SOL_IPV6, uapi::IPV6_FLOWINFO_SEND) => Switch::FlowInfoSend,
            _ => return None,
        })
    }

    /// Sets an option.
    ///
    /// # Errors
    /// `ENOPROTOOPT` for one that is not known, `EINVAL`, `EPERM`, and those of joining groups.
    pub fn set(&self, level: i32, name: u32, value: &[u8], is_bound: bool, is_stream: bool) -> Result {
        let short = level == SOL_IP;
        if let Some(switch) = Self::switch_of(level, name) {
            let on = number(value, short)?;
            match switch {
                Switch::V6Only if is_bound => return Err(Errno::EINVAL),
                Switch::Transparent if on != 0 && !capable(Cap::NetAdmin) && !capable(Cap::NetRaw) => {
                    return Err(Errno::EPERM);
                }
                Switch::HeaderIncluded if is_stream => return Err(Errno::ENOPROTOOPT),
                Switch::MulticastLoop6 | Switch::MulticastAll6 if !(0..=1).contains(&on) => return Err(Errno::EINVAL),
                _ => {}
            }
            self.set_switch(switch, on != 0);
            return Ok(());
        }
        match (level, name) {
            (SOL_IP, uapi::IP_TTL) => {
                let ttl = number(value, true)?;
                if ttl != -1 && !(1..=255).contains(&ttl) {
                    return Err(Errno::EINVAL);
                }
                self.ttl.store(ttl, Relaxed);
            }
            (SOL_IP, uapi::IP_TOS) => {
                self.tos.store(number(value, true)? & 0xff & if is_stream { !3 } else { !0 }, Relaxed)
            }
            (SOL_IP, uapi::IP_MULTICAST_TTL) => {
                let ttl = match number(value, true)? {
                    -1 => 1,
                    ttl @ 0..=255 if !is_stream => ttl,
                    _ => return Err(Errno::EINVAL),
                };
                self.multicast_ttl.store(ttl, Relaxed);
            }
            (SOL_IP, uapi::IP_MTU_DISCOVER) => {
                let how = number(value, true)?;
                if !(0..=5).contains(&how) {
                    return Err(Errno::EINVAL);
                }
                self.discovery.store(how, Relaxed);
            }
            (SOL_IP, uapi::IP_MINTTL) | (SOL_IPV6, uapi::IPV6_MINHOPCOUNT) => {
                let ttl = number(value, short)?;
                if !(0..=255).contains(&ttl) {
                    return Err(Errno::EINVAL);
                }
                self.min_ttl.store(ttl, Relaxed);
            }
            (SOL_IP, uapi::IP_UNICAST_IF) | (SOL_IPV6, uapi::IPV6_UNICAST_IF) => {
                let index = u32::from_be(number(value, false)? as u32);
                if index != 0 && interface::by_index(index).is_none() {
                    return Err(Errno::EADDRNOTAVAIL);
                }
                self.unicast_interface.store(index, Relaxed);
            }
            (SOL_IP, uapi::IP_MULTICAST_IF) => self.set_multicast_interface(value)?,
            (SOL_IPV6, uapi::IPV6_MULTICAST_IF) => {
                let index = number(value, false)? as u32;
                if index != 0 && interface::by_index(index).is_none() {
                    return Err(Errno::ENODEV);
                }
                self.multicast_interface.store(index, Relaxed);
            }
            (SOL_IP, uapi::IP_ADD_MEMBERSHIP | uapi::IP_DROP_MEMBERSHIP) => {
                let group = v4_at(value, 0).ok_or(Errno::EINVAL)?;
                let local = v4_at(value, 4).ok_or(Errno::EINVAL)?;
                let index = int_at(value, 8).unwrap_or(0);
                self.change_membership(name == uapi::IP_ADD_MEMBERSHIP, group.into(), index as u32, Some(local))?;
            }
            (SOL_IPV6, uapi::IPV6_ADD_MEMBERSHIP | uapi::IPV6_DROP_MEMBERSHIP) => {
                let octets: [u8; 16] = *value.first_chunk().ok_or(Errno::EINVAL)?;
                let index = int_at(value, 16).ok_or(Errno::EINVAL)?;
                let group = Ipv6Addr::from(octets);
                self.change_membership(name == uapi::IPV6_ADD_MEMBERSHIP, group.into(), index as u32, None)?;
            }
            (SOL_IP | SOL_IPV6, MCAST_JOIN_GROUP | MCAST_LEAVE_GROUP) => {
                // struct group_req: the interface, then a sockaddr_storage at 8.
                let index = int_at(value, 0).ok_or(Errno::EINVAL)?;
                let family = if level == SOL_IP { Family::V4 } else { Family::V6 };
                let group = super::address::Endpoint::decode(value.get(8..).unwrap_or_default(), family)?.ip;
                self.change_membership(name == MCAST_JOIN_GROUP, group, index as u32, None)?;
            }
            (SOL_IPV6, uapi::IPV6_UNICAST_HOPS) => {
                let hops = number(value, false)?;
                if !(-1..=255).contains(&hops) {
                    return Err(Errno::EINVAL);
                }
                self.hops.store(hops, Relaxed);
            }
            (SOL_IPV6, uapi::IPV6_MULTICAST_HOPS) => {
                let hops = number(value, false)?;
                if is_stream {
                    return Err(Errno::ENOPROTOOPT);
                }
                if !(-1..=255).contains(&hops) {
                    return Err(Errno::EINVAL);
                }
                self.multicast_hops.store(if hops == -1 { 1 } else { hops }, Relaxed);
            }
            (SOL_IPV6, uapi::IPV6_TCLASS) => {
                let class = number(value, false)?;
                if !(-1..=255).contains(&class) {
                    return Err(Errno::EINVAL);
                }
                self.class.store(class.max(0), Relaxed);
            }
            (SOL_IPV6, uapi::IPV6_MTU_DISCOVER) => {
                let how = number(value, false)?;
                if !(0..=5).contains(&how) {
                    return Err(Errno::EINVAL);
                }
                self.discovery6.store(how, Relaxed);
            }
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }

    fn set_multicast_interface(&self, value: &[u8]) -> Result {
        // struct ip_mreqn, struct ip_mreq or an address alone.
        let (local, index) = match value.len() {
            12.. => (v4_at(value, 4), int_at(value, 8).unwrap_or(0) as u32),
            8.. => (v4_at(value, 4), 0),
            _ => (v4_at(value, 0), 0),
        };
        let local = local.ok_or(Errno::EINVAL)?;
        let index = if index != 0 {
            interface::by_index(index).ok_or(Errno::EADDRNOTAVAIL)?.index
        } else if local.is_unspecified() {
            0
        } else {
            let address = interface::addresses().into_iter().find(|a| a.ip == IpAddr::V4(local));
            address.ok_or(Errno::EADDRNOTAVAIL)?.index
        };
        self.multicast_interface.store(index, Relaxed);
        *self.multicast_source.lock() = local;
        Ok(())
    }

    fn group_interface(group: IpAddr, index: u32, local: Option<Ipv4Addr>) -> Result<alloc::sync::Arc<Interface>> {
        if index != 0 {
            return interface::by_index(index).ok_or(Errno::ENODEV);
        }
        if let Some(local) = local.filter(|l| !l.is_unspecified()) {
            let address = interface::addresses().into_iter().find(|a| a.ip == IpAddr::V4(local));
            return address.and_then(|a| interface::by_index(a.index)).ok_or(Errno::ENODEV);
        }
        interface::way(group, 0, 0).map(|way| way.interface).map_err(|_| Errno::ENODEV)
    }

    fn change_membership(&self, joins: bool, group: IpAddr, index: u32, local: Option<Ipv4Addr>) -> Result {
        if !group.is_multicast() {
            return Err(Errno::EINVAL);
        }
        let wanted = (index != 0 || local.is_some_and(|l| !l.is_unspecified()))
            .then(|| Self::group_interface(group, index, local))
            .transpose()?;
        if joins {
            let interface = match wanted {
                Some(interface) => interface,
                None => Self::group_interface(group, 0, None)?,
            };
            let mut memberships = self.memberships.lock();
            if memberships.contains(&(interface.index, group)) {
                return Err(Errno::EADDRINUSE);
            }
            if memberships.len() >= MEMBERSHIPS_MAX {
                return Err(Errno::ENOBUFS);
            }
            memberships.push((interface.index, group));
            interface.join(group);
            return Ok(());
        }
        let mut memberships = self.memberships.lock();
        let fits = |(i, g): &(u32, IpAddr)| *g == group && wanted.as_ref().is_none_or(|w| w.index == *i);
        let at = memberships.iter().position(fits).ok_or(Errno::EADDRNOTAVAIL)?;
        let (index, _) = memberships.swap_remove(at);
        drop(memberships);
        if let Some(interface) = interface::by_index(index) {
            interface.leave(group);
        }
        Ok(())
    }

    /// Whether a group's packet that came in on an interface is for the socket.
    pub fn takes_group(&self, group: IpAddr, index: u32) -> bool {
        let memberships = self.memberships.lock();
        if memberships.iter().any(|(i, g)| *g == group && *i == index) {
            return true;
        }
        let all = if group.is_ipv4() { Switch::MulticastAll } else { Switch::MulticastAll6 };
        self.has(all) && !memberships.iter().any(|(_, g)| *g == group)
    }

    /// Leaves all groups: the socket closes.
    pub fn leave_groups(&self) {
        let memberships = core::mem::take(&mut *self.memberships.lock());
        for (index, group) in memberships {
            if let Some(interface) = interface::by_index(index) {
                interface.leave(group);
            }
        }
    }

    /// An option's value.
    ///
    /// # Errors
    /// `ENOPROTOOPT` for one that is not known.
    pub fn get(&self, level: i32, name: u32, room: usize, mtu: impl FnOnce() -> Result<u32>) -> Result<Vec<u8>> {
        let value = if let Some(switch) = Self::switch_of(level, name) {
            i32::from(self.has(switch))
        } else {
            match (level, name) {
                (SOL_IP, uapi::IP_TTL) => match self.ttl.load(Relaxed) {
                    -1 => DEFAULT_TTL.load(Relaxed) as i32,
                    ttl => ttl,
                },
                (SOL_IP, uapi::IP_TOS) => self.tos.load(Relaxed),
                (SOL_IP, uapi::IP_MULTICAST_TTL) => self.multicast_ttl.load(Relaxed),
                (SOL_IP, uapi::IP_MTU_DISCOVER) => self.discovery.load(Relaxed),
                (SOL_IP, uapi::IP_MINTTL) | (SOL_IPV6, uapi::IPV6_MINHOPCOUNT) => self.min_ttl.load(Relaxed),
                (SOL_IP, uapi::IP_UNICAST_IF) | (SOL_IPV6, uapi::IPV6_UNICAST_IF) => {
                    self.unicast_interface.load(Relaxed).to_be() as i32
                }
                (SOL_IP, uapi::IP_MTU) | (SOL_IPV6, uapi::IPV6_MTU) => mtu()? as i32,
                (SOL_IP, uapi::IP_MULTICAST_IF) => {
                    return Ok(self.multicast_source.lock().octets().to_vec());
                }
                // No IP options are kept.
                (SOL_IP, uapi::IP_OPTIONS) => return Ok(Vec::new()),
                (SOL_IPV6, uapi::IPV6_MULTICAST_IF) => self.multicast_interface.load(Relaxed) as i32,
                (SOL_IPV6, uapi::IPV6_UNICAST_HOPS) => match self.hops.load(Relaxed) {
                    -1 => DEFAULT_TTL.load(Relaxed) as i32,
                    hops => hops,
                },
                (SOL_IPV6, uapi::IPV6_MULTICAST_HOPS) => self.multicast_hops.load(Relaxed),
                (SOL_IPV6, uapi::IPV6_TCLASS) => self.class.load(Relaxed),
                (SOL_IPV6, uapi::IPV6_MTU_DISCOVER) => self.discovery6.load(Relaxed),
                (SOL_IPV6, uapi::IPV6_ADDRFORM) => self.family.number() as i32,
                _ => return Err(Errno::ENOPROTOOPT),
            }
        };
        // A single byte is answered with one, where it says it all.
        if level == SOL_IP && (1..4).contains(&room) && (0..=255).contains(&value) {
            return Ok(alloc::vec![value as u8]);
        }
        Ok(value.to_ne_bytes().to_vec())
    }
}
