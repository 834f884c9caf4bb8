//! `/proc/net`: sockets, interfaces, routes and counters in Linux's formats. Reference: proc_pid_net(5).

use alloc::string::String;
use core::fmt::Write;
use core::net::{IpAddr, Ipv6Addr};
use core::sync::atomic::Ordering::Relaxed;

use linux_uapi::raw::netlink as nl;

use super::address::{Endpoint, Family, to_v6};
use super::datagram::{self, COUNTERS};
use super::interface::{self, flag};
use super::tcp;
use crate::Result;
use crate::fs::procfs::{Text, register_net};

/// Registers the files.
pub fn init() -> Result {
    register_net("tcp", |out| tcp_table(out, Family::V4))?;
    register_net("tcp6", |out| tcp_table(out, Family::V6))?;
    register_net("udp", |out| udp_table(out, false, Family::V4))?;
    register_net("udp6", |out| udp_table(out, false, Family::V6))?;
    register_net("udplite", |out| udp_table(out, true, Family::V4))?;
    register_net("udplite6", |out| udp_table(out, true, Family::V6))?;
    register_net("raw", |out| raw_table(out, Family::V4))?;
    register_net("raw6", |out| raw_table(out, Family::V6))?;
    register_net("dev", devices)?;
    register_net("route", routes)?;
    register_net("ipv6_route", routes6)?;
    register_net("if_inet6", addresses6)?;
    register_net("arp", neighbours)?;
    register_net("sockstat", counts)?;
    register_net("sockstat6", counts6)?;
    register_net("snmp", counters)?;
    register_net("protocols", |out| {
        out.push_str("protocol  size sockets  memory press maxhdr  slab module     cl co di ac io in de sh ss gs se re sp bi br ha uh gp em\n");
        Ok(())
    })?;
    register_net("unix", crate::net::unix::table)?;
    register_net("packet", |out| {
        out.push_str("sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n");
        Ok(())
    })
}

/// An endpoint as the tables write it: the words of the address as this machine stores them.
fn endpoint(end: &Endpoint, family: Family) -> String {
    let mut text = String::new();
    match (family, end.ip) {
        (Family::V4, IpAddr::V4(ip)) => {
            let _ = write!(text, "{:08X}", u32::from_ne_bytes(ip.octets()));
        }
        (_, ip) => {
            for word in to_v6(ip).octets().as_chunks::<4>().0 {
                let _ = write!(text, "{:08X}", u32::from_ne_bytes(*word));
            }
        }
    }
    let _ = write!(text, ":{:04X}", end.port);
    text
}

fn header(out: &mut Text, family: Family, tail: &str) {
    out.push_str(match family {
        Family::V4 => "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
        Family::V6 => {
            "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
        }
    });
    out.push_str(tail);
    out.push('\n');
}

fn tcp_table(out: &mut Text, family: Family) -> Result {
    let pad = if family == Family::V4 { "                                                     " } else { "" };
    header(out, family, pad);
    for (n, row) in tcp::sockets().iter().filter(|row| row.family == family).enumerate() {
        let nowhere = Endpoint::new(family.any(), 0);
        let (local, remote) = (endpoint(&row.local, family), endpoint(&row.remote.unwrap_or(nowhere), family));
        let (ino, uid) = row.identity;
        let (tx, rx) = if row.state == tcp::state::LISTEN { (0, row.queued.1) } else { row.queued };
        writeln!(
            out,
            "{n:4}: {local} {remote} {:02X} {tx:08X}:{rx:08X} 00:00000000 00000000 {uid:5}        0 {ino} 1 0000000000000000 100 0 0 10 0",
            row.state,
        )?;
    }
    Ok(())
}

fn datagram_row(out: &mut Text, n: u32, row: &datagram::Row, family: Family) -> Result {
    let nowhere = Endpoint::new(family.any(), 0);
    let (local, remote) = (endpoint(&row.local, family), endpoint(&row.remote.unwrap_or(nowhere), family));
    let (ino, uid) = row.identity;
    let state = if row.remote.is_some() { tcp::state::ESTABLISHED } else { tcp::state::CLOSE };
    writeln!(
        out,
        "{n:5}: {local} {remote} {state:02X} 00000000:{:08X} 00:00000000 00000000 {uid:5}        0 {ino} 2 0000000000000000 {}",
        row.queued, row.drops,
    )?;
    Ok(())
}

fn udp_table(out: &mut Text, lite: bool, family: Family) -> Result {
    header(out, family, " ref pointer drops");
    for row in datagram::udp::sockets(lite).iter().filter(|row| row.family == family) {
        datagram_row(out, row.local.port.into(), row, family)?;
    }
    Ok(())
}

fn raw_table(out: &mut Text, family: Family) -> Result {
    header(out, family, " ref pointer drops");
    for (protocol, row) in datagram::raw::sockets().iter().filter(|(_, row)| row.family == family) {
        let with_protocol =
            datagram::Row { local: Endpoint { port: (*protocol).into(), ..row.local }, remote: row.remote, ..*row };
        datagram_row(out, (*protocol).into(), &with_protocol, family)?;
    }
    Ok(())
}

fn devices(out: &mut Text) -> Result {
    out.push_str("Inter-|   Receive                                                |  Transmit\n");
    out.push_str(" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n");
    for interface in interface::all() {
        let s = &interface.statistics;
        let get = |counter: &core::sync::atomic::AtomicU64| counter.load(Relaxed);
        writeln!(
            out,
            "{:>6}: {:7} {:7} {:4} {:4} {:4} {:5} {:10} {:9} {:8} {:7} {:4} {:4} {:4} {:5} {:7} {:10}",
            interface.name(),
            get(&s.rx_bytes),
            get(&s.rx_packets),
            get(&s.rx_errors),
            get(&s.rx_dropped),
            0,
            0,
            0,
            get(&s.multicast),
            get(&s.tx_bytes),
            get(&s.tx_packets),
            0,
            get(&s.tx_dropped),
            0,
            0,
            0,
            0,
        )?;
    }
    Ok(())
}

fn name_of(index: u32) -> String {
    interface::by_index(index).map_or_else(|| "*".into(), |i| i.name())
}

fn routes(out: &mut Text) -> Result {
    writeln!(out, "{:<127}", "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT")?;
    for route in interface::routes() {
        let IpAddr::V4(destination) = route.destination else { continue };
        let gateway = match route.gateway {
            Some(IpAddr::V4(gateway)) => u32::from_ne_bytes(gateway.octets()),
            _ => 0,
        };
        // RTF_UP, RTF_GATEWAY, RTF_HOST.
        let flags = 1 | if gateway != 0 { 2 } else { 0 } | if route.prefix == 32 { 4 } else { 0 };
        let mask = u32::MAX.checked_shl(32 - u32::from(route.prefix)).unwrap_or(0).to_be();
        let line = alloc::format!(
            "{}\t{:08X}\t{gateway:08X}\t{flags:04X}\t0\t0\t{}\t{mask:08X}\t0\t0\t0",
            name_of(route.index),
            u32::from_ne_bytes(destination.octets()),
            route.metric,
        );
        writeln!(out, "{line:<127}")?;
    }
    Ok(())
}

fn hex6(ip: Ipv6Addr) -> String {
    ip.octets().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn routes6(out: &mut Text) -> Result {
    for route in interface::routes().into_iter().chain(interface::local_routes()) {
        let IpAddr::V6(destination) = route.destination else { continue };
        let gateway = match route.gateway {
            Some(IpAddr::V6(gateway)) => gateway,
            _ => Ipv6Addr::UNSPECIFIED,
        };
        let is_local = u32::from(route.kind) == nl::RTN_LOCAL as u32;
        let flags: u32 = 1 | if route.gateway.is_some() { 2 } else { 0 } | if is_local { 0x8020_0000 } else { 0 };
        writeln!(
            out,
            "{} {:02x} {} 00 {} {:08x} {:08x} {:08x} {flags:08x} {:>8}",
            hex6(destination),
            route.prefix,
            hex6(Ipv6Addr::UNSPECIFIED),
            hex6(gateway),
            route.metric,
            1,
            0,
            name_of(route.index),
        )?;
    }
    Ok(())
}

fn addresses6(out: &mut Text) -> Result {
    for address in interface::addresses() {
        let IpAddr::V6(ip) = address.ip else { continue };
        let scope = match address.scope {
            interface::scope::HOST => 0x10,
            interface::scope::LINK => 0x20,
            _ => 0,
        };
        writeln!(
            out,
            "{} {:02x} {:02x} {scope:02x} {:02x} {:>8}",
            hex6(ip),
            address.index,
            address.prefix,
            address.flags & 0xff,
            name_of(address.index),
        )?;
    }
    Ok(())
}

fn neighbours(out: &mut Text) -> Result {
    out.push_str("IP address       HW type     Flags       HW address            Mask     Device\n");
    for interface in interface::all().iter().filter(|i| i.flags() & flag::NOARP == 0) {
        for (ip, mac, state) in interface.neighbours.all() {
            let IpAddr::V4(ip) = ip else { continue };
            // ATF_COM, ATF_PERM.
            let flags = match state.number() {
                0x80 => 6,
                1 | 0x20 => 0,
                _ => 2,
            };
            let [a, b, c, d, e, f] = mac;
            let mac = alloc::format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
            let ip = alloc::format!("{ip}");
            writeln!(
                out,
                "{ip:<16} 0x1         {:<10}  {mac}     *        {}",
                alloc::format!("0x{flags:x}"),
                interface.name()
            )?;
        }
    }
    Ok(())
}

fn counts(out: &mut Text) -> Result {
    let (tcp, udp, raw) = (tcp::sockets(), datagram::udp::sockets(false), datagram::raw::sockets());
    let v4 = |family: Family| family == Family::V4;
    let tcp4 = tcp.iter().filter(|row| v4(row.family)).count();
    let udp4 = udp.iter().filter(|row| v4(row.family)).count();
    let raw4 = raw.iter().filter(|(_, row)| v4(row.family)).count();
    writeln!(out, "sockets: used {}", tcp.len() + udp.len() + raw.len() + crate::net::unix::count())?;
    writeln!(out, "TCP: inuse {tcp4} orphan 0 tw {} alloc {} mem 0", tcp::waiting(), tcp.len())?;
    writeln!(out, "UDP: inuse {udp4} mem 0")?;
    let lite4 = datagram::udp::sockets(true).iter().filter(|row| v4(row.family)).count();
    writeln!(out, "UDPLITE: inuse {lite4}")?;
    writeln!(out, "RAW: inuse {raw4}")?;
    writeln!(out, "FRAG: inuse 0 memory 0")?;
    Ok(())
}

fn counts6(out: &mut Text) -> Result {
    let v6 = |family: Family| family == Family::V6;
    writeln!(out, "TCP6: inuse {}", tcp::sockets().iter().filter(|row| v6(row.family)).count())?;
    writeln!(out, "UDP6: inuse {}", datagram::udp::sockets(false).iter().filter(|row| v6(row.family)).count())?;
    writeln!(out, "UDPLITE6: inuse {}", datagram::udp::sockets(true).iter().filter(|row| v6(row.family)).count())?;
    writeln!(out, "RAW6: inuse {}", datagram::raw::sockets().iter().filter(|(_, row)| v6(row.family)).count())?;
    writeln!(out, "FRAG6: inuse 0 memory 0")?;
    Ok(())
}

fn counters(out: &mut Text) -> Result {
    let established = tcp::sockets().iter().filter(|row| row.state == tcp::state::ESTABLISHED).count();
    out.push_str("Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs RetransSegs InErrs OutRsts InCsumErrors\n");
    writeln!(out, "Tcp: 1 200 120000 -1 0 0 0 0 {established} 0 0 0 0 0 0")?;
    out.push_str("Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors\n");
    let get = |counter: &core::sync::atomic::AtomicU64| counter.load(Relaxed);
    writeln!(
        out,
        "Udp: {} {} {} {} 0 0 0 0 0",
        get(&COUNTERS.received),
        get(&COUNTERS.no_port),
        get(&COUNTERS.errors),
        get(&COUNTERS.sent),
    )?;
    Ok(())
}
