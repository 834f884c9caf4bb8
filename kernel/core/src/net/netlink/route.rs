//! `NETLINK_ROUTE`, the least of it: the loopback interface ([`crate::net`]'s `interface`).
//!
//! There is no IP stack yet, so dumps of addresses and routes are empty, and every change is refused with `EOPNOTSUPP`. It exists because the C library's resolver, `ip` and device managers ask.
//!
//! References: rtnetlink(7), `net/core/rtnetlink.c`.

use alloc::vec::Vec;

use linux_uapi::netlink::{IfInfoMsg, NlMsgHdr};
use linux_uapi::raw::{net as uapi, netlink as nl};
use linux_uapi::zerocopy::{FromBytes, IntoBytes};

use super::super::interface::LOOPBACK;
use super::{HEADER, Netlink};
use crate::{
    Errno, Result,
    process::{Cap, capable},
};

/// `IF_OPER_DOWN`
const OPER_DOWN: u8 = 2;
/// The four messages of each kind of object come in this order: new, delete, get, set.
const KIND_GET: u16 = 2;

const RTM_BASE: u16 = 16;
const RTM_MAX: u16 = 123;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;

fn attribute(message: &mut Vec<u8>, kind: u32, value: &[u8]) {
    message.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    message.extend_from_slice(&(kind as u16).to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The body of `RTM_NEWLINK` for the loopback interface.
fn loopback() -> Vec<u8> {
    let info = IfInfoMsg {
        family: uapi::AF_UNSPEC as u8,
        pad: 0,
        kind: LOOPBACK.kind,
        index: LOOPBACK.index,
        flags: LOOPBACK.flags,
        change: 0,
    };
    let mut body = Vec::from(info.as_bytes());
    attribute(&mut body, nl::IFLA_IFNAME as u32, &[LOOPBACK.name, b"\0"].concat());
    attribute(&mut body, nl::IFLA_TXQLEN as u32, &LOOPBACK.queue_len.to_ne_bytes());
    attribute(&mut body, nl::IFLA_OPERSTATE as u32, &[OPER_DOWN]);
    attribute(&mut body, nl::IFLA_LINKMODE as u32, &[0]);
    attribute(&mut body, nl::IFLA_MTU as u32, &LOOPBACK.mtu.to_ne_bytes());
    attribute(&mut body, nl::IFLA_GROUP as u32, &0u32.to_ne_bytes());
    attribute(&mut body, nl::IFLA_PROMISCUITY as u32, &0u32.to_ne_bytes());
    attribute(&mut body, nl::IFLA_CARRIER as u32, &[1]);
    attribute(&mut body, nl::IFLA_QDISC as u32, b"noop\0");
    attribute(&mut body, nl::IFLA_ADDRESS as u32, &[0; 6]);
    attribute(&mut body, nl::IFLA_BROADCAST as u32, &[0; 6]);
    body
}

/// Whether a request for one interface means the loopback interface, by index or by name.
fn names_loopback(body: &[u8]) -> Result<bool> {
    let (info, mut rest) = IfInfoMsg::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
    if info.index > 0 {
        return Ok(info.index == LOOPBACK.index);
    }
    while let Some(&[a, b, c, d]) = rest.first_chunk::<4>() {
        let (len, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]) & 0x3fff);
        let value = rest.get(4..len).ok_or(Errno::EINVAL)?;
        if u32::from(kind) == nl::IFLA_IFNAME as u32 {
            return Ok(value.strip_suffix(b"\0").unwrap_or(value) == LOOPBACK.name);
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Err(Errno::EINVAL)
}

/// Handles a request (`rtnetlink_rcv_msg`).
///
/// # Errors
/// `EPERM` for a change without `CAP_NET_ADMIN`, `EOPNOTSUPP` for what is not there, `ENODEV`, `EINVAL`.
pub fn handle(socket: &Netlink, request: &NlMsgHdr, body: &[u8]) -> Result {
    if request.kind > RTM_MAX {
        return Err(Errno::EOPNOTSUPP);
    }
    // Every message begins with a family; without one there is nothing to do.
    if body.is_empty() {
        return Ok(());
    }
    if (request.kind - RTM_BASE) & 3 != KIND_GET {
        return Err(if capable(Cap::NetAdmin) { Errno::EOPNOTSUPP } else { Errno::EPERM });
    }
    let dumps = u32::from(request.flags) & nl::NLM_F_DUMP == nl::NLM_F_DUMP;
    match request.kind {
        RTM_GETLINK if dumps => dump(socket, request, Some(loopback())),
        RTM_GETADDR | RTM_GETROUTE if dumps => dump(socket, request, None),
        RTM_GETLINK => {
            if !names_loopback(body)? {
                return Err(Errno::ENODEV);
            }
            socket.answer(socket.message(request, u32::from(RTM_NEWLINK), 0, &loopback()));
        }
        // No address was configured, so no way leads anywhere.
        RTM_GETROUTE => return Err(Errno::ENETUNREACH),
        _ => return Err(Errno::EOPNOTSUPP),
    }
    Ok(())
}

/// Answers with a list of at most one object.
fn dump(socket: &Netlink, request: &NlMsgHdr, object: Option<Vec<u8>>) {
    if let Some(object) = object {
        socket.answer(socket.message(request, u32::from(RTM_NEWLINK), nl::NLM_F_MULTI, &object));
    }
    let done = socket.message(request, nl::NLMSG_DONE, nl::NLM_F_MULTI, &0i32.to_ne_bytes());
    debug_assert_eq!(done.len(), HEADER + 4);
    socket.answer(done);
}
