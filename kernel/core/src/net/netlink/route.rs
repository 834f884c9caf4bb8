//! `NETLINK_ROUTE`: interfaces, addresses, routes and neighbours, told, changed, and announced to the groups.
//!
//! References: rtnetlink(7), `net/core/rtnetlink.c`, `net/ipv4/devinet.c`, `net/ipv4/fib_frontend.c`, `net/core/neighbour.c`.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::sync::atomic::Ordering::Relaxed;

use linux_uapi::netlink::{IfInfoMsg, NlMsgHdr};
use linux_uapi::raw::{net as uapi, netlink as nl};
use linux_uapi::zerocopy::{FromBytes, IntoBytes};

use super::attributes::{Attributes, put, put_ip, put_u32};
use super::{HEADER, KERNEL, Netlink, Packet, Protocol};
use crate::net::inet::interface::{
    self, Address, Interface, LOOPBACK, Route, TABLE_LOCAL, TABLE_MAIN, flag, mask, scope,
};
use crate::net::inet::link;
use crate::process::{Cap, capable};
use crate::{Errno, Result};

/// The four messages of each kind of object come in this order: new, delete, get, set.
const KIND_GET: u16 = 2;
const RTM_BASE: u16 = 16;
const RTM_MAX: u16 = 123;
/// `RTM_NEWLINK`
pub const NEWLINK: u16 = 16;
/// `RTM_DELLINK`
pub const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const SETLINK: u16 = 19;
/// `RTM_NEWADDR`
pub const NEWADDR: u16 = 20;
/// `RTM_DELADDR`
pub const DELADDR: u16 = 21;
const GETADDR: u16 = 22;
/// `RTM_NEWROUTE`
pub const NEWROUTE: u16 = 24;
/// `RTM_DELROUTE`
pub const DELROUTE: u16 = 25;
const GETROUTE: u16 = 26;
const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;
const GETNEIGH: u16 = 30;
const NEWRULE: u16 = 32;
const GETRULE: u16 = 34;

/// `RTNLGRP_LINK`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`
const GROUP_LINK: u32 = 1;
const GROUP_V4_ADDRESS: u32 = 5;
const GROUP_V4_ROUTE: u32 = 7;
const GROUP_V6_ADDRESS: u32 = 9;
const GROUP_V6_ROUTE: u32 = 11;

// rtattr kinds that are an enum of their own in the header: RTA_*, NDA_*, IFA_*, FRA_*.
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_CACHEINFO: u16 = 12;
const RTA_TABLE: u16 = 15;
const RTA_PREF: u16 = 20;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_CACHEINFO: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_PROTOCOL: u16 = 21;
const LINKINFO_KIND: u16 = 1;
/// `FR_ACT_TO_TBL`
const RULE_TO_TABLE: u8 = 1;
/// `RT_TABLE_DEFAULT`
const TABLE_DEFAULT: u32 = 253;

const FAMILY_V4: u8 = uapi::AF_INET as u8;
const FAMILY_V6: u8 = uapi::AF_INET6 as u8;

/// Messages of a dump share datagrams of at most so many bytes, which every reader has room for.
const DATAGRAM: usize = 3776;

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 }
}

/// The body of `RTM_NEWLINK`.
fn link_body(interface: &Interface, change: u32) -> Vec<u8> {
    let info = IfInfoMsg {
        family: uapi::AF_UNSPEC as u8,
        pad: 0,
        kind: interface.kind,
        index: interface.index as i32,
        flags: interface.flags(),
        change,
    };
    let mut body = Vec::from(info.as_bytes());
    put(&mut body, nl::IFLA_IFNAME as u16, &[interface.name().as_bytes(), b"\0"].concat());
    put_u32(&mut body, nl::IFLA_TXQLEN as u16, interface.queue_len.load(Relaxed));
    put(&mut body, nl::IFLA_OPERSTATE as u16, &[interface.operational_state().0]);
    put(&mut body, nl::IFLA_LINKMODE as u16, &[0]);
    put_u32(&mut body, nl::IFLA_MTU as u16, interface.mtu.load(Relaxed));
    put_u32(&mut body, nl::IFLA_MIN_MTU as u16, if interface.index == LOOPBACK { 0 } else { 68 });
    put_u32(&mut body, nl::IFLA_MAX_MTU as u16, if interface.index == LOOPBACK { 0 } else { 65521 });
    put_u32(&mut body, nl::IFLA_GROUP as u16, 0);
    put_u32(&mut body, nl::IFLA_PROMISCUITY as u16, u32::from(interface.flags() & flag::PROMISC != 0));
    put_u32(&mut body, nl::IFLA_NUM_TX_QUEUES as u16, 1);
    put_u32(&mut body, nl::IFLA_NUM_RX_QUEUES as u16, 1);
    put(&mut body, nl::IFLA_CARRIER as u16, &[u8::from(interface.has_carrier())]);
    let discipline: &[u8] = match (interface.index == LOOPBACK || !interface.is_ethernet(), interface.is_up()) {
        (_, false) => b"noop\0",
        (true, true) => b"noqueue\0",
        (false, true) => b"pfifo_fast\0",
    };
    put(&mut body, nl::IFLA_QDISC as u16, discipline);
    if interface.kind != interface::KIND_NONE {
        put(&mut body, nl::IFLA_ADDRESS as u16, &interface.mac());
        let all = if interface.index == LOOPBACK { [0; 6] } else { [0xff; 6] };
        put(&mut body, nl::IFLA_BROADCAST as u16, &all);
    }
    let s = &interface.statistics;
    let counters = [
        &s.rx_packets,
        &s.tx_packets,
        &s.rx_bytes,
        &s.tx_bytes,
        &s.rx_errors,
        &s.tx_dropped,
        &s.rx_dropped,
        &s.tx_dropped,
        &s.multicast,
    ];
    // struct rtnl_link_stats64 has 25 counters, struct rtnl_link_stats 24 of half the size. tx_errors is none here.
    let mut values: Vec<u64> = counters.iter().map(|c| c.load(Relaxed)).collect();
    values[5] = 0;
    values.resize(25, 0);
    put(&mut body, nl::IFLA_STATS64 as u16, values.as_bytes());
    let short: Vec<u32> = values[..24].iter().map(|v| *v as u32).collect();
    put(&mut body, nl::IFLA_STATS as u16, short.as_bytes());
    if let Some(link) = &interface.link {
        let mut info = Vec::new();
        put(&mut info, LINKINFO_KIND, link.kind().as_bytes());
        put(&mut body, nl::IFLA_LINKINFO as u16, &info);
    }
    body
}

/// The body of `RTM_NEWADDR`.
fn address_body(address: &Address) -> Vec<u8> {
    let mut body = alloc::vec![family(address.ip), address.prefix, address.flags as u8, address.scope];
    body.extend_from_slice(&address.index.to_ne_bytes());
    put_ip(&mut body, nl::IFA_ADDRESS as u16, address.peer.unwrap_or(address.ip));
    if address.ip.is_ipv4() || address.peer.is_some() {
        put_ip(&mut body, nl::IFA_LOCAL as u16, address.ip);
    }
    if let Some(broadcast) = address.broadcast {
        put_ip(&mut body, nl::IFA_BROADCAST as u16, broadcast.into());
    }
    if address.ip.is_ipv4() {
        let name = interface::by_index(address.index).map(|i| i.name()).unwrap_or_default();
        let label = if address.label.is_empty() { &name } else { &address.label };
        put(&mut body, nl::IFA_LABEL as u16, &[label.as_bytes(), b"\0"].concat());
    }
    put_u32(&mut body, nl::IFA_FLAGS as u16, address.flags);
    // struct ifa_cacheinfo: preferred and valid seconds, times of making and change.
    let cache = [address.lifetime.1, address.lifetime.0, 0, 0];
    put(&mut body, nl::IFA_CACHEINFO as u16, cache.as_bytes());
    body
}

/// The body of `RTM_NEWROUTE`.
fn route_body(route: &Route, flags: u32) -> Vec<u8> {
    let table = if route.table > 255 { 0 } else { route.table as u8 };
    let mut body =
        alloc::vec![family(route.destination), route.prefix, 0, 0, table, route.protocol, route.scope, route.kind];
    body.extend_from_slice(&flags.to_ne_bytes());
    put_u32(&mut body, RTA_TABLE, route.table);
    if route.prefix > 0 {
        put_ip(&mut body, RTA_DST, route.destination);
    }
    if let Some(source) = route.source {
        put_ip(&mut body, RTA_PREFSRC, source);
    }
    if route.metric != 0 || route.destination.is_ipv6() {
        put_u32(&mut body, RTA_PRIORITY, route.metric);
    }
    if let Some(gateway) = route.gateway {
        put_ip(&mut body, RTA_GATEWAY, gateway);
    }
    put_u32(&mut body, RTA_OIF, route.index);
    if route.destination.is_ipv6() {
        put(&mut body, RTA_CACHEINFO, &[0; 32]);
        put(&mut body, RTA_PREF, &[0]);
    }
    body
}

/// The body of `RTM_NEWNEIGH`.
fn neighbour_body(index: u32, ip: IpAddr, mac: [u8; 6], state: u16) -> Vec<u8> {
    // struct ndmsg: family, padding, interface, state, flags, type.
    let mut body = alloc::vec![family(ip), 0, 0, 0];
    body.extend_from_slice(&index.to_ne_bytes());
    body.extend_from_slice(&state.to_ne_bytes());
    body.extend_from_slice(&[0, nl::RTN_UNICAST as u8]);
    put_ip(&mut body, NDA_DST, ip);
    // NUD_INCOMPLETE and NUD_FAILED have none.
    if state & 0x21 == 0 {
        put(&mut body, NDA_LLADDR, &mac);
    }
    put(&mut body, NDA_CACHEINFO, &[0; 16]);
    body
}

/// The body of `RTM_NEWRULE` for one of the three rules that there are.
fn rule_body(family: u8, priority: u32, table: u32) -> Vec<u8> {
    let mut body = alloc::vec![family, 0, 0, 0, table as u8, 0, 0, RULE_TO_TABLE];
    body.extend_from_slice(&0u32.to_ne_bytes());
    put_u32(&mut body, FRA_TABLE, table);
    put_u32(&mut body, FRA_SUPPRESS_PREFIXLEN, u32::MAX);
    put(&mut body, FRA_PROTOCOL, &[2]);
    if priority != 0 {
        put_u32(&mut body, FRA_PRIORITY, priority);
    }
    body
}

/// Tells a group of a change.
fn notify(group: u32, kind: u16, body: &[u8]) {
    let len = HEADER + body.len();
    let header = NlMsgHdr { len: len as u32, kind, flags: 0, seq: 0, pid: 0 };
    let mut data = Vec::from(header.as_bytes());
    data.extend_from_slice(body);
    Protocol::Route.multicast(&Arc::new(Packet { data, port: 0, group, credentials: KERNEL }));
}

/// An interface came, changed or went (`RTM_NEWLINK`, `RTM_DELLINK`).
pub fn notify_link(interface: &Interface, kind: u16) {
    notify(GROUP_LINK, kind, &link_body(interface, u32::MAX));
}

/// An address came or went.
pub fn notify_address(address: &Address, kind: u16) {
    let group = if address.ip.is_ipv4() { GROUP_V4_ADDRESS } else { GROUP_V6_ADDRESS };
    notify(group, kind, &address_body(address));
}

/// A route came or went.
pub fn notify_route(route: &Route, kind: u16) {
    let group = if route.destination.is_ipv4() { GROUP_V4_ROUTE } else { GROUP_V6_ROUTE };
    notify(group, kind, &route_body(route, 0));
}

/// The interface that a request names, by index or by name.
fn named(body: &[u8]) -> Result<Arc<Interface>> {
    let (info, rest) = IfInfoMsg::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
    if info.index > 0 {
        return interface::by_index(info.index as u32).ok_or(Errno::ENODEV);
    }
    let attributes = Attributes::parse(rest)?;
    let name = attributes.text(nl::IFLA_IFNAME as u16)?.or(attributes.text(nl::IFLA_ALT_IFNAME as u16)?);
    interface::by_name(name.ok_or(Errno::EINVAL)?).ok_or(Errno::ENODEV)
}

/// Handles a request (`rtnetlink_rcv_msg`).
///
/// # Errors
/// `EPERM` for a change without `CAP_NET_ADMIN`, `EOPNOTSUPP` for what is not there, `ENODEV`, `EINVAL`, `EEXIST` …
pub fn handle(socket: &Netlink, request: &NlMsgHdr, body: &[u8]) -> Result {
    if request.kind > RTM_MAX {
        return Err(Errno::EOPNOTSUPP);
    }
    // Every message begins with a family; without one there is nothing to do.
    let Some(&wanted) = body.first() else { return Ok(()) };
    let is_get = (request.kind - RTM_BASE) & 3 == KIND_GET;
    if !is_get && !capable(Cap::NetAdmin) {
        return Err(Errno::EPERM);
    }
    let flags = u32::from(request.flags);
    if is_get && flags & nl::NLM_F_DUMP != 0 {
        let (kind, bodies) = dump(request.kind, wanted, body)?;
        list(socket, request, kind, &bodies);
        return Ok(());
    }
    match request.kind {
        GETLINK => {
            let found = named(body)?;
            socket.answer(socket.message(request, NEWLINK.into(), 0, &link_body(&found, 0)));
            Ok(())
        }
        GETROUTE => {
            let route = look_up(body)?;
            socket.answer(socket.message(request, NEWROUTE.into(), 0, &route_body(&route, nl::RTM_F_CLONED)));
            Ok(())
        }
        NEWLINK | SETLINK => change_link(body, request.kind == NEWLINK && flags & nl::NLM_F_CREATE != 0),
        DELLINK => {
            named(body)?;
            // Only what made an interface takes it away.
            Err(Errno::EOPNOTSUPP)
        }
        NEWADDR | DELADDR => change_address(request, body),
        NEWROUTE | DELROUTE => change_route(request, body),
        NEWNEIGH | DELNEIGH => change_neighbour(request.kind == NEWNEIGH, body),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// Objects of a kind, as the bodies of messages.
fn dump(kind: u16, wanted: u8, body: &[u8]) -> Result<(u16, Vec<Vec<u8>>)> {
    let is_wanted = |ip: IpAddr| wanted == 0 || wanted == family(ip);
    let number_at = |at: usize| body.get(at..).and_then(|b| b.first_chunk::<4>()).map_or(0, |b| u32::from_ne_bytes(*b));
    match kind {
        GETLINK => Ok((NEWLINK, interface::all().iter().map(|i| link_body(i, 0)).collect())),
        GETADDR => {
            // A strict request names the interface in its struct ifaddrmsg.
            let index = if body.len() >= 8 { number_at(4) } else { 0 };
            let addresses = interface::addresses().into_iter().filter(|a| is_wanted(a.ip));
            Ok((NEWADDR, addresses.filter(|a| index == 0 || a.index == index).map(|a| address_body(&a)).collect()))
        }
        GETROUTE => {
            let attributes = Attributes::parse(body.get(12..).unwrap_or_default())?;
            let table = attributes.u32(RTA_TABLE)?.unwrap_or_else(|| body.get(4).copied().unwrap_or(0).into());
            let index = attributes.u32(RTA_OIF)?;
            let routes = interface::local_routes().into_iter().chain(interface::routes());
            let fits = routes.filter(|r| {
                is_wanted(r.destination) && (table == 0 || r.table == table) && index.is_none_or(|i| r.index == i)
            });
            Ok((NEWROUTE, fits.map(|r| route_body(&r, 0)).collect()))
        }
        GETNEIGH => {
            let index = if body.len() >= 12 { number_at(4) } else { 0 };
            let mut bodies = Vec::new();
            for interface in interface::all().iter().filter(|i| index == 0 || i.index == index) {
                let known = interface.neighbours.all().into_iter().filter(|(ip, ..)| is_wanted(*ip));
                bodies.extend(known.map(|(ip, mac, s)| neighbour_body(interface.index, ip, mac, s.number())));
            }
            Ok((NEWNEIGH, bodies))
        }
        GETRULE => {
            let rules = [(0, TABLE_LOCAL), (32766, TABLE_MAIN), (32767, TABLE_DEFAULT)];
            let mut bodies = Vec::new();
            for family in [FAMILY_V4, FAMILY_V6].into_iter().filter(|f| wanted == 0 || wanted == *f) {
                let of_family = rules.iter().filter(|(_, table)| family == FAMILY_V4 || *table != TABLE_DEFAULT);
                bodies.extend(of_family.map(|(priority, table)| rule_body(family, *priority, *table)));
            }
            Ok((NEWRULE, bodies))
        }
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// Answers with a list.
pub(super) fn list(socket: &Netlink, request: &NlMsgHdr, kind: u16, bodies: &[Vec<u8>]) {
    let mut datagram = Vec::new();
    for body in bodies {
        let message = socket.message(request, kind.into(), nl::NLM_F_MULTI, body);
        if !datagram.is_empty() && datagram.len() + message.len() > DATAGRAM {
            socket.answer(core::mem::take(&mut datagram));
        }
        datagram.extend_from_slice(&message);
    }
    if !datagram.is_empty() {
        socket.answer(datagram);
    }
    socket.answer(socket.message(request, nl::NLMSG_DONE, nl::NLM_F_MULTI, &0i32.to_ne_bytes()));
}

/// `RTM_GETROUTE` of one destination: the way a packet would go.
fn look_up(body: &[u8]) -> Result<Route> {
    let attributes = Attributes::parse(body.get(12..).ok_or(Errno::EINVAL)?)?;
    let any = if body[0] == FAMILY_V6 { Ipv6Addr::UNSPECIFIED.into() } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let destination = attributes.ip(RTA_DST)?.unwrap_or(any);
    let way = interface::way(destination, attributes.u32(RTA_OIF)?.unwrap_or(0), 0)?;
    let width = if destination.is_ipv4() { 32 } else { 128 };
    let kind = match (way.is_local, way.is_broadcast) {
        (true, _) => nl::RTN_LOCAL as u8,
        (_, true) => nl::RTN_BROADCAST as u8,
        _ if destination.is_multicast() => nl::RTN_MULTICAST as u8,
        _ => nl::RTN_UNICAST as u8,
    };
    Ok(Route {
        destination,
        prefix: width,
        gateway: (way.next_hop != destination).then_some(way.next_hop),
        index: way.interface.index,
        source: Some(way.source),
        metric: 0,
        protocol: 0,
        scope: scope::UNIVERSE,
        kind,
        table: if way.is_local { TABLE_LOCAL } else { TABLE_MAIN },
    })
}

fn change_link(body: &[u8], creates: bool) -> Result {
    let (info, rest) = IfInfoMsg::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
    let attributes = Attributes::parse(rest)?;
    let interface = match named(body) {
        // Kinds of interfaces that netlink makes: none yet.
        Err(Errno::ENODEV) if creates => return Err(Errno::EOPNOTSUPP),
        other => other?,
    };
    if let Some(mtu) = attributes.u32(nl::IFLA_MTU as u16)? {
        interface.set_mtu(mtu)?;
    }
    if let Some(len) = attributes.u32(nl::IFLA_TXQLEN as u16)? {
        interface.queue_len.store(len, Relaxed);
    }
    if let Some(mac) = attributes.mac(nl::IFLA_ADDRESS as u16)? {
        if !interface.is_ethernet() {
            return Err(Errno::EOPNOTSUPP);
        }
        if mac[0] & 1 != 0 {
            return Err(Errno::EADDRNOTAVAIL);
        }
        interface.set_mac(mac);
    }
    if info.index > 0
        && let Some(name) = attributes.text(nl::IFLA_IFNAME as u16)?
        && name != interface.name()
    {
        interface.rename(name)?;
    }
    // Without a mask the flags are all meant, if any is set.
    let changed = if info.change != 0 {
        info.change
    } else if info.flags != 0 {
        u32::MAX
    } else {
        0
    };
    interface.change_flags(info.flags, changed);
    Ok(())
}

fn change_address(request: &NlMsgHdr, body: &[u8]) -> Result {
    // struct ifaddrmsg: family, prefix, flags, scope, interface.
    let (head, rest) = body.split_first_chunk::<8>().ok_or(Errno::EINVAL)?;
    let index = u32::from_ne_bytes([head[4], head[5], head[6], head[7]]);
    let attributes = Attributes::parse(rest)?;
    let local = attributes.ip(nl::IFA_LOCAL as u16)?;
    let named = attributes.ip(nl::IFA_ADDRESS as u16)?;
    let ip = local.or(named).ok_or(Errno::EINVAL)?;
    if family(ip) != head[0] {
        return Err(Errno::EINVAL);
    }
    let width = if ip.is_ipv4() { 32 } else { 128 };
    if head[1] > width {
        return Err(Errno::EINVAL);
    }
    interface::by_index(index).ok_or(Errno::ENODEV)?;
    if request.kind == DELADDR {
        return interface::remove_address(index, ip, Some(head[1]));
    }
    let mut address = Address::new(index, ip, head[1]);
    address.peer = named.filter(|n| *n != ip);
    address.scope =
        if head[3] != 0 || address.scope == scope::HOST { head[3].max(address.scope) } else { address.scope };
    let flags = attributes.u32(nl::IFA_FLAGS as u16)?.unwrap_or_else(|| head[2].into());
    address.flags |=
        flags & (nl::IFA_F_NOPREFIXROUTE | nl::IFA_F_NODAD | nl::IFA_F_HOMEADDRESS | nl::IFA_F_MANAGETEMPADDR);
    if let Some(IpAddr::V4(broadcast)) = attributes.ip(nl::IFA_BROADCAST as u16)? {
        address.broadcast = Some(broadcast);
    }
    if let Some(label) = attributes.text(nl::IFA_LABEL as u16)? {
        address.label = label.into();
    }
    if let Some(cache) = attributes.get(nl::IFA_CACHEINFO as u16) {
        let word = |at: usize| cache.get(at..).and_then(|c| c.first_chunk::<4>()).map_or(0, |c| u32::from_ne_bytes(*c));
        let (preferred, valid) = (word(0), word(4));
        if valid == 0 || preferred > valid {
            return Err(Errno::EINVAL);
        }
        // Whoever gives an address for a time renews it or takes it back: DHCP clients do both.
        address.lifetime = (valid, preferred);
        if valid != u32::MAX {
            address.flags &= !nl::IFA_F_PERMANENT;
        }
    }
    let replaces = u32::from(request.flags) & nl::NLM_F_REPLACE != 0;
    let prefix = address.prefix;
    match interface::add_address(address.clone()) {
        Err(Errno::EEXIST) if replaces => {
            interface::remove_address(index, ip, Some(prefix))?;
            interface::add_address(address)
        }
        other => other,
    }
}

fn change_route(request: &NlMsgHdr, body: &[u8]) -> Result {
    // struct rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags.
    let (head, rest) = body.split_first_chunk::<12>().ok_or(Errno::EINVAL)?;
    let [family_number, prefix, source_prefix, _tos, table, protocol, route_scope, kind, ..] = *head;
    let attributes = Attributes::parse(rest)?;
    let any = match family_number {
        FAMILY_V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        FAMILY_V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return Err(Errno::EOPNOTSUPP),
    };
    let width = if any.is_ipv4() { 32 } else { 128 };
    if prefix > width || source_prefix != 0 {
        return Err(Errno::EINVAL);
    }
    let destination = attributes.ip(RTA_DST)?.unwrap_or(any);
    let gateway = attributes.ip(RTA_GATEWAY)?;
    if destination.is_ipv4() != any.is_ipv4() || gateway.is_some_and(|g| g.is_ipv4() != any.is_ipv4()) {
        return Err(Errno::EINVAL);
    }
    let table = attributes.u32(RTA_TABLE)?.unwrap_or(table.into());
    let table = if table == 0 { TABLE_MAIN } else { table };
    let metric = attributes.u32(RTA_PRIORITY)?;
    let index = attributes.u32(RTA_OIF)?;
    let destination = mask(destination, prefix);
    if request.kind == DELROUTE {
        return interface::remove_route(|r| {
            (r.destination, r.prefix, r.table) == (destination, prefix, table)
                && gateway.is_none_or(|g| r.gateway == Some(g))
                && index.is_none_or(|i| r.index == i)
                && metric.is_none_or(|m| r.metric == m)
                && (protocol == 0 || r.protocol == protocol)
        });
    }
    let index = match (index, gateway) {
        (Some(index), _) => index,
        (None, Some(gateway)) => interface::way(gateway, 0, 0)?.interface.index,
        // What leads nowhere leads there by way of the loopback interface.
        (None, None) if kind != nl::RTN_UNICAST as u8 => LOOPBACK,
        (None, None) => return Err(Errno::ENODEV),
    };
    if let Some(gateway) = gateway {
        // RTNH_F_ONLINK: the caller knows that the gateway is there.
        let flags = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]);
        let way = interface::way(gateway, index, index);
        if flags & nl::RTNH_F_ONLINK == 0 && way.is_ok_and(|w| w.next_hop != gateway || w.is_local) {
            return Err(Errno::ENETUNREACH);
        }
    }
    let flags = u32::from(request.flags);
    if flags & nl::NLM_F_CREATE == 0 && flags & nl::NLM_F_REPLACE == 0 {
        return Err(Errno::ENOENT);
    }
    let default_metric = if any.is_ipv4() { 0 } else { 1024 };
    let route = Route {
        destination,
        prefix,
        gateway,
        index,
        source: attributes.ip(RTA_PREFSRC)?,
        metric: metric.unwrap_or(default_metric),
        protocol,
        scope: route_scope,
        kind,
        table,
    };
    interface::add_route(route, flags & nl::NLM_F_REPLACE != 0)
}

fn change_neighbour(adds: bool, body: &[u8]) -> Result {
    let (head, rest) = body.split_first_chunk::<12>().ok_or(Errno::EINVAL)?;
    let index = u32::from_ne_bytes([head[4], head[5], head[6], head[7]]);
    let state = u16::from_ne_bytes([head[8], head[9]]);
    let attributes = Attributes::parse(rest)?;
    let interface = interface::by_index(index).ok_or(Errno::ENODEV)?;
    let ip = attributes.ip(NDA_DST)?.ok_or(Errno::EINVAL)?;
    if !adds {
        return if interface.neighbours.remove(ip) { Ok(()) } else { Err(Errno::ENOENT) };
    }
    let mac = attributes.mac(NDA_LLADDR)?.ok_or(Errno::EINVAL)?;
    link::set_neighbour(&interface, ip, mac, u32::from(state) & nl::NUD_PERMANENT != 0);
    Ok(())
}
