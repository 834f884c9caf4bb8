//! Attributes of netlink messages: `struct nlattr`. Reference: netlink(7), rtnetlink(7).

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Errno, Result};

const HEADER: usize = 4;
/// The kind's bits, without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const KIND_MASK: u16 = 0x3fff;

/// Appends an attribute.
pub fn put(message: &mut Vec<u8>, kind: impl TryInto<u16>, value: &[u8]) {
    message.extend_from_slice(&((HEADER + value.len()) as u16).to_ne_bytes());
    message.extend_from_slice(&kind.try_into().unwrap_or(0).to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// Appends a number.
pub fn put_u32(message: &mut Vec<u8>, kind: impl TryInto<u16>, value: u32) {
    put(message, kind, &value.to_ne_bytes());
}

/// Appends an address.
pub fn put_ip(message: &mut Vec<u8>, kind: impl TryInto<u16>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => put(message, kind, &ip.octets()),
        IpAddr::V6(ip) => put(message, kind, &ip.octets()),
    }
}

/// The attributes of a request.
pub struct Attributes<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Attributes<'a> {
    /// Reads them.
    ///
    /// # Errors
    /// `EINVAL` for a length that cannot be.
    pub fn parse(mut rest: &'a [u8]) -> Result<Attributes<'a>> {
        let mut list = Vec::new();
        while let Some(&[a, b, c, d]) = rest.first_chunk::<HEADER>() {
            let (len, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]) & KIND_MASK);
            list.push((kind, rest.get(HEADER..len).ok_or(Errno::EINVAL)?));
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(Attributes(list))
    }

    /// The value of the first of a kind.
    pub fn get(&self, kind: impl TryInto<u16>) -> Option<&'a [u8]> {
        let kind = kind.try_into().ok()?;
        self.0.iter().find(|(k, _)| *k == kind).map(|(_, value)| *value)
    }

    /// A number.
    ///
    /// # Errors
    /// `EINVAL` for one that is too short.
    pub fn u32(&self, kind: impl TryInto<u16>) -> Result<Option<u32>> {
        let number = |v: &[u8]| v.first_chunk::<4>().map(|v| u32::from_ne_bytes(*v)).ok_or(Errno::EINVAL);
        self.get(kind).map(number).transpose()
    }

    /// A text, without its NUL.
    ///
    /// # Errors
    /// `EINVAL` for what is no text.
    pub fn text(&self, kind: impl TryInto<u16>) -> Result<Option<&'a str>> {
        let text = |v: &'a [u8]| core::str::from_utf8(v.strip_suffix(b"\0").unwrap_or(v)).map_err(|_| Errno::EINVAL);
        self.get(kind).map(text).transpose()
    }

    /// An address, of the family that its length says.
    ///
    /// # Errors
    /// `EINVAL` for another length.
    pub fn ip(&self, kind: impl TryInto<u16>) -> Result<Option<IpAddr>> {
        let ip = |v: &[u8]| match *v {
            [a, b, c, d] => Ok(IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
            _ => <[u8; 16]>::try_from(v).map(|o| IpAddr::V6(Ipv6Addr::from(o))).map_err(|_| Errno::EINVAL),
        };
        self.get(kind).map(ip).transpose()
    }

    /// A link address.
    ///
    /// # Errors
    /// `EINVAL` for another length.
    pub fn mac(&self, kind: impl TryInto<u16>) -> Result<Option<[u8; 6]>> {
        self.get(kind).map(|v| <[u8; 6]>::try_from(v).map_err(|_| Errno::EINVAL)).transpose()
    }
}
