//! Addresses of IP sockets: `struct sockaddr_in` and `sockaddr_in6` as [`Endpoint`]s.
//!
//! An IPv4 address that an IPv6 socket writes as `::ffff:a.b.c.d` is an IPv4 address everywhere below: whether a socket is of
//! one family or the other matters only where addresses come in and go out. References: ip(7), ipv6(7).

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use linux_uapi::raw::net as uapi;

use crate::{Errno, Result};

/// Bytes of `struct sockaddr_in`.
const SOCKADDR_IN: usize = 16;
/// Bytes of `struct sockaddr_in6` without its scope, which is what old programs pass (`SIN6_LEN_RFC2133`).
const SOCKADDR_IN6_MIN: usize = 24;
const SOCKADDR_IN6: usize = 28;

/// The family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `AF_INET`
    V4,
    /// `AF_INET6`
    V6,
}

impl Family {
    /// `AF_*`
    pub fn number(self) -> u32 {
        match self {
            Family::V4 => uapi::AF_INET,
            Family::V6 => uapi::AF_INET6,
        }
    }

    /// The wildcard address.
    pub fn any(self) -> IpAddr {
        match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

/// An address, a port, and the interface that a link-local address is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The address.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// Interface of a link-local address, or 0.
    pub scope: u32,
}

impl Endpoint {
    /// An endpoint without scope.
    pub const fn new(ip: IpAddr, port: u16) -> Endpoint {
        Endpoint { ip, port, scope: 0 }
    }

    /// Decodes a socket address of a socket of `family`.
    ///
    /// # Errors
    /// `EINVAL` for a short address, `EAFNOSUPPORT` for another family.
    pub fn decode(bytes: &[u8], family: Family) -> Result<Endpoint> {
        let number = family_of(bytes)?;
        let port = || u16::from_be_bytes([bytes[2], bytes[3]]);
        match family {
            Family::V4 => {
                if bytes.len() < SOCKADDR_IN {
                    return Err(Errno::EINVAL);
                }
                if number != uapi::AF_INET {
                    return Err(Errno::EAFNOSUPPORT);
                }
                let ip = Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]);
                Ok(Endpoint::new(ip.into(), port()))
            }
            Family::V6 => {
                if bytes.len() < SOCKADDR_IN6_MIN {
                    return Err(Errno::EINVAL);
                }
                if number != uapi::AF_INET6 {
                    return Err(Errno::EAFNOSUPPORT);
                }
                let octets: [u8; 16] = *bytes[8..].first_chunk().ok_or(Errno::EINVAL)?;
                let scope = bytes.get(24..28).and_then(|s| s.first_chunk::<4>()).map_or(0, |s| u32::from_ne_bytes(*s));
                let ip = unmap(Ipv6Addr::from(octets));
                Ok(Endpoint { ip, port: port(), scope: if is_link_local(ip) { scope } else { 0 } })
            }
        }
    }

    /// The socket address as a socket of `family` shows it.
    pub fn encode(&self, family: Family) -> Vec<u8> {
        match (family, self.ip) {
            (Family::V4, IpAddr::V4(ip)) => {
                let mut bytes = Vec::with_capacity(SOCKADDR_IN);
                bytes.extend_from_slice(&(uapi::AF_INET as u16).to_ne_bytes());
                bytes.extend_from_slice(&self.port.to_be_bytes());
                bytes.extend_from_slice(&ip.octets());
                bytes.resize(SOCKADDR_IN, 0);
                bytes
            }
            (_, ip) => {
                let mut bytes = Vec::with_capacity(SOCKADDR_IN6);
                bytes.extend_from_slice(&(uapi::AF_INET6 as u16).to_ne_bytes());
                bytes.extend_from_slice(&self.port.to_be_bytes());
                bytes.extend_from_slice(&[0; 4]);
                bytes.extend_from_slice(&to_v6(ip).octets());
                bytes.extend_from_slice(&self.scope.to_ne_bytes());
                bytes
            }
        }
    }
}

/// The family that a socket address names.
///
/// # Errors
/// `EINVAL` for one that is too short to name any.
pub fn family_of(bytes: &[u8]) -> Result<u32> {
    bytes.first_chunk::<2>().map(|f| u32::from(u16::from_ne_bytes(*f))).ok_or(Errno::EINVAL)
}

/// An IPv4-mapped address as the IPv4 address it is. `::` stays what it is.
pub fn unmap(ip: Ipv6Addr) -> IpAddr {
    match ip.to_ipv4_mapped() {
        Some(ip) => IpAddr::V4(ip),
        None => IpAddr::V6(ip),
    }
}

/// The address in IPv6's form: an IPv4 address is mapped.
pub fn to_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// Whether the address means a link, and only together with its interface.
pub fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.octets()[0] == 0xff && matches!(ip.octets()[1] & 15, 1 | 2),
    }
}

/// Whether `ip` lies in the network `net`/`prefix`.
pub fn in_network(ip: IpAddr, net: IpAddr, prefix: u8) -> bool {
    fn same(a: &[u8], b: &[u8], bits: usize) -> bool {
        let (whole, rest) = (bits / 8, bits % 8);
        a[..whole] == b[..whole] && (rest == 0 || (a[whole] ^ b[whole]) >> (8 - rest) == 0)
    }
    match (ip, net) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(&a.octets(), &b.octets(), usize::from(prefix.min(32))),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(&a.octets(), &b.octets(), usize::from(prefix.min(128))),
        _ => false,
    }
}
