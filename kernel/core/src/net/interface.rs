//! The requests about interfaces, addresses and routes that sockets of every family take: [`ioctl`].
//!
//! References: netdevice(7), `net/core/dev_ioctl.c`, `net/ipv4/devinet.c`.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};
use core::sync::atomic::Ordering::Relaxed;

use linux_uapi::raw::{ioctl as io, net as uapi, netlink as nl};

use super::inet::interface::{self, Address, Interface, LOOPBACK, NAME_MAX, Route, TABLE_MAIN, scope};
use crate::process::{Cap, capable};
use crate::user::{self, UserAddr, UserPtr};
use crate::{Errno, Result};

/// Bytes of `struct ifreq`, and of `struct rtentry`.
const IFREQ: usize = 40;
const RTENTRY: usize = 120;
/// Requests that change something.
const CHANGES: [u32; 13] = [
    io::SIOCSIFFLAGS,
    io::SIOCSIFMTU,
    io::SIOCSIFHWADDR,
    io::SIOCSIFTXQLEN,
    io::SIOCSIFNAME,
    io::SIOCSIFMETRIC,
    io::SIOCSIFADDR,
    io::SIOCSIFNETMASK,
    io::SIOCSIFBRDADDR,
    io::SIOCSIFDSTADDR,
    io::SIOCDIFADDR,
    io::SIOCADDRT,
    io::SIOCDELRT,
];

fn sockaddr(ip: Ipv4Addr) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&(uapi::AF_INET as u16).to_ne_bytes());
    bytes[4..8].copy_from_slice(&ip.octets());
    bytes
}

/// The IPv4 address in a `struct sockaddr`.
fn v4_of(bytes: &[u8]) -> Result<Ipv4Addr> {
    if u32::from(u16::from_ne_bytes([bytes[0], bytes[1]])) != uapi::AF_INET {
        return Err(Errno::EINVAL);
    }
    Ok(Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]))
}

fn v4(address: &Address) -> Option<Ipv4Addr> {
    match address.ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

fn netmask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0))
}

/// The first IPv4 address of an interface.
fn first_v4(interface: &Interface) -> Option<Address> {
    interface::addresses_of(interface.index).into_iter().find(|a| a.ip.is_ipv4())
}

/// `SIOCGIFCONF`: a `struct ifreq` for each IPv4 address.
fn list(arg: usize) -> Result<i64> {
    let pointer = UserPtr::<[u8; 16]>::new(arg as u64);
    let mut request = pointer.read()?;
    let room = usize::try_from(i32::from_ne_bytes([request[0], request[1], request[2], request[3]])).unwrap_or(0);
    let buffer = u64::from_ne_bytes(request[8..].try_into().map_err(|_| Errno::EINVAL)?);
    let mut bytes = Vec::new();
    for address in interface::addresses() {
        let (Some(ip), Some(interface)) = (v4(&address), interface::by_index(address.index)) else { continue };
        let mut entry = [0; IFREQ];
        let name = if address.label.is_empty() { interface.name() } else { address.label.clone() };
        entry[..name.len().min(NAME_MAX - 1)].copy_from_slice(&name.as_bytes()[..name.len().min(NAME_MAX - 1)]);
        entry[16..32].copy_from_slice(&sockaddr(ip));
        bytes.extend_from_slice(&entry);
    }
    let len = if buffer == 0 { bytes.len() } else { bytes.len().min(room / IFREQ * IFREQ) };
    if buffer != 0 {
        user::write_bytes(UserAddr::new(buffer), &bytes[..len])?;
    }
    request[..4].copy_from_slice(&(len as i32).to_ne_bytes());
    pointer.write(&request)?;
    Ok(0)
}

/// `SIOCADDRT`, `SIOCDELRT`: a `struct rtentry`.
fn route(cmd: u32, arg: usize) -> Result<i64> {
    let entry: Vec<u8> = user::read_slice(UserPtr::<u8>::new(arg as u64), RTENTRY)?;
    let destination = v4_of(&entry[8..24])?;
    let gateway = v4_of(&entry[24..40]).ok().filter(|ip| !ip.is_unspecified());
    let flags = u16::from_ne_bytes([entry[56], entry[57]]);
    // RTF_HOST.
    let prefix =
        if flags & 4 != 0 { 32 } else { v4_of(&entry[40..56]).map_or(0, |m| m.to_bits().leading_ones() as u8) };
    let metric = u16::from_ne_bytes([entry[80], entry[81]]);
    let device = u64::from_ne_bytes(entry[88..96].try_into().map_err(|_| Errno::EINVAL)?);
    let index = if device == 0 {
        None
    } else {
        let name = user::read_cstr(UserAddr::new(device), NAME_MAX)?;
        let name = core::str::from_utf8(&name).map_err(|_| Errno::ENODEV)?;
        Some(interface::by_name(name).ok_or(Errno::ENODEV)?.index)
    };
    let network = interface::mask(destination.into(), prefix);
    if cmd == io::SIOCDELRT {
        interface::remove_route(|r| {
            (r.destination, r.prefix) == (network, prefix)
                && index.is_none_or(|i| r.index == i)
                && gateway.is_none_or(|g| r.gateway == Some(g.into()))
        })?;
        return Ok(0);
    }
    let index = match (index, gateway) {
        (Some(index), _) => index,
        (None, Some(gateway)) => {
            let way = interface::way(gateway.into(), 0, 0)?;
            if way.next_hop == IpAddr::V4(gateway) { way.interface.index } else { return Err(Errno::ENETUNREACH) }
        }
        (None, None) => return Err(Errno::ENODEV),
    };
    interface::add_route(
        Route {
            destination: network,
            prefix,
            gateway: gateway.map(IpAddr::V4),
            index,
            source: None,
            // The field counts from one.
            metric: u32::from(metric.saturating_sub(1)),
            protocol: nl::RTPROT_BOOT as u8,
            scope: if gateway.is_some() { scope::UNIVERSE } else { scope::LINK },
            kind: nl::RTN_UNICAST as u8,
            table: TABLE_MAIN,
        },
        false,
    )?;
    Ok(0)
}

/// Changes the first IPv4 address of an interface by replacing it.
fn replace(interface: &Interface, change: impl FnOnce(&mut Address)) -> Result {
    let old = first_v4(interface).ok_or(Errno::EADDRNOTAVAIL)?;
    let mut new = old.clone();
    change(&mut new);
    if new == old {
        return Ok(());
    }
    interface::remove_address(old.index, old.ip, Some(old.prefix))?;
    interface::add_address(new)
}

/// The requests about interfaces that sockets of every family take. `ENOTTY`: it is none of them.
///
/// # Errors
/// `ENODEV` for an interface that is not there, `EADDRNOTAVAIL` for an address, `EFAULT`, `EPERM` for changes.
pub fn ioctl(cmd: u32, arg: usize) -> Result<i64> {
    if CHANGES.contains(&cmd) && !capable(Cap::NetAdmin) {
        return Err(Errno::EPERM);
    }
    match cmd {
        io::SIOCGIFCONF => return list(arg),
        io::SIOCADDRT | io::SIOCDELRT => return route(cmd, arg),
        _ => {}
    }
    let is_known = CHANGES.contains(&cmd)
        || matches!(
            cmd,
            io::SIOCGIFNAME
                | io::SIOCGIFINDEX
                | io::SIOCGIFFLAGS
                | io::SIOCGIFMTU
                | io::SIOCGIFHWADDR
                | io::SIOCGIFTXQLEN
                | io::SIOCGIFMETRIC
                | io::SIOCGIFADDR
                | io::SIOCGIFNETMASK
                | io::SIOCGIFBRDADDR
                | io::SIOCGIFDSTADDR
                | io::SIOCGIFMAP
        );
    if !is_known {
        return Err(Errno::ENOTTY);
    }
    let pointer = UserPtr::<[u8; IFREQ]>::new(arg as u64);
    let mut request = pointer.read()?;
    let int = |request: &[u8; IFREQ]| i32::from_ne_bytes([request[16], request[17], request[18], request[19]]);
    if cmd == io::SIOCGIFNAME {
        let interface = interface::by_index(int(&request) as u32).ok_or(Errno::ENODEV)?;
        let name = interface.name();
        request[..NAME_MAX].fill(0);
        request[..name.len()].copy_from_slice(name.as_bytes());
        pointer.write(&request)?;
        return Ok(0);
    }
    let len = request[..NAME_MAX].iter().position(|b| *b == 0).unwrap_or(NAME_MAX - 1);
    let name = core::str::from_utf8(&request[..len]).map_err(|_| Errno::ENODEV)?;
    // An alias names an address of the interface before the colon.
    let base = name.split(':').next().unwrap_or(name);
    let interface = interface::by_name(base).ok_or(Errno::ENODEV)?;
    let address = || {
        let addresses = interface::addresses_of(interface.index);
        let labelled = addresses.iter().find(|a| a.ip.is_ipv4() && a.label == name && name != base).cloned();
        labelled.or_else(|| first_v4(&interface)).ok_or(Errno::EADDRNOTAVAIL)
    };
    let mut answer = [0u8; 16];
    let number = |answer: &mut [u8; 16], value: u32| answer[..4].copy_from_slice(&value.to_ne_bytes());
    match cmd {
        io::SIOCGIFINDEX => number(&mut answer, interface.index),
        io::SIOCGIFFLAGS => answer[..2].copy_from_slice(&(interface.flags() as u16).to_ne_bytes()),
        io::SIOCGIFMTU => number(&mut answer, interface.mtu.load(Relaxed)),
        io::SIOCGIFTXQLEN => number(&mut answer, interface.queue_len.load(Relaxed)),
        io::SIOCGIFMETRIC | io::SIOCGIFMAP => {}
        io::SIOCGIFHWADDR => {
            // A struct sockaddr: the kind as family, then the address.
            answer[..2].copy_from_slice(&interface.kind.to_ne_bytes());
            answer[2..8].copy_from_slice(&interface.mac());
        }
        io::SIOCGIFADDR => answer = sockaddr(v4(&address()?).ok_or(Errno::EADDRNOTAVAIL)?),
        io::SIOCGIFNETMASK => answer = sockaddr(netmask(address()?.prefix)),
        io::SIOCGIFBRDADDR => answer = sockaddr(address()?.broadcast.unwrap_or(Ipv4Addr::UNSPECIFIED)),
        io::SIOCGIFDSTADDR => answer = sockaddr(v4(&address()?).ok_or(Errno::EADDRNOTAVAIL)?),
        io::SIOCSIFFLAGS => {
            let flags = u32::from(u16::from_ne_bytes([request[16], request[17]]));
            interface.change_flags(flags, u32::from(u16::MAX));
            return Ok(0);
        }
        io::SIOCSIFMTU => {
            interface.set_mtu(u32::try_from(int(&request)).map_err(|_| Errno::EINVAL)?)?;
            return Ok(0);
        }
        io::SIOCSIFTXQLEN => {
            interface.queue_len.store(u32::try_from(int(&request)).map_err(|_| Errno::EINVAL)?, Relaxed);
            return Ok(0);
        }
        io::SIOCSIFHWADDR => {
            if interface.index == LOOPBACK || !interface.is_ethernet() {
                return Err(Errno::EOPNOTSUPP);
            }
            let mac: [u8; 6] = core::array::from_fn(|i| request[18 + i]);
            if mac[0] & 1 != 0 || mac == [0; 6] {
                return Err(Errno::EADDRNOTAVAIL);
            }
            interface.set_mac(mac);
            return Ok(0);
        }
        io::SIOCSIFNAME => {
            let end = request[16..32].iter().position(|b| *b == 0).ok_or(Errno::EINVAL)?;
            let new = core::str::from_utf8(&request[16..16 + end]).map_err(|_| Errno::EINVAL)?;
            if interface.is_up() && interface.index == LOOPBACK {
                return Err(Errno::EBUSY);
            }
            interface.rename(new)?;
            return Ok(0);
        }
        io::SIOCSIFADDR => {
            let ip = v4_of(&request[16..32])?;
            if let Some(old) = first_v4(&interface) {
                interface::remove_address(old.index, old.ip, Some(old.prefix))?;
            }
            if !ip.is_unspecified() {
                // The network that the address's class gives, until SIOCSIFNETMASK says otherwise.
                let prefix = match ip.octets()[0] {
                    0..=127 => 8,
                    128..=191 => 16,
                    _ => 24,
                };
                let mut address = Address::new(interface.index, ip.into(), prefix);
                if interface.index != LOOPBACK {
                    address.broadcast = Some(Ipv4Addr::from_bits(ip.to_bits() | !netmask(prefix).to_bits()));
                }
                interface::add_address(address)?;
                // Giving an address brings the interface up.
                interface.change_flags(interface::flag::UP, interface::flag::UP);
            }
            return Ok(0);
        }
        io::SIOCSIFNETMASK => {
            let mask = v4_of(&request[16..32])?.to_bits();
            if mask.leading_ones() + mask.trailing_zeros() < 32 {
                return Err(Errno::EINVAL);
            }
            let prefix = mask.leading_ones() as u8;
            replace(&interface, |address| {
                address.prefix = prefix;
                if let (IpAddr::V4(ip), Some(_)) = (address.ip, address.broadcast) {
                    address.broadcast = Some(Ipv4Addr::from_bits(ip.to_bits() | !netmask(prefix).to_bits()));
                }
            })?;
            return Ok(0);
        }
        io::SIOCSIFBRDADDR => {
            let broadcast = v4_of(&request[16..32])?;
            replace(&interface, |address| address.broadcast = Some(broadcast))?;
            return Ok(0);
        }
        _ => return Err(Errno::EOPNOTSUPP),
    }
    request[16..32].copy_from_slice(&answer);
    pointer.write(&request)?;
    Ok(0)
}
