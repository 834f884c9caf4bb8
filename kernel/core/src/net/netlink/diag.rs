//! `NETLINK_SOCK_DIAG`: the sockets of the machine, which `ss` shows.
//!
//! One request, `SOCK_DIAG_BY_FAMILY`, asks for a list or for one socket of a family. A list of IP sockets may come with a program that
//! chooses among them ([`Filter`]). Cookies, which tell a socket from a later one with the same numbers, are inode numbers: those
//! of sockets are never used again.
//!
//! References: sock_diag(7), `linux/inet_diag.h`, `net/core/sock_diag.c`, `net/ipv4/inet_diag.c`, `net/unix/diag.c`.

use alloc::vec::Vec;
use core::net::IpAddr;

use linux_uapi::netlink::NlMsgHdr;
use linux_uapi::raw::{net as uapi, netlink as nl};
use linux_uapi::zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::attributes::{Attributes, put, put_u32};
use super::{Netlink, route};
use crate::net::inet::address::{Endpoint, Family, to_v6};
use crate::net::inet::{datagram, tcp};
use crate::net::unix;
use crate::{Errno, Result};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Families there are on Linux.
const AF_MAX: u32 = 46;

/// `struct inet_diag_sockid`; ports and addresses are in network order.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SockId {
    source_port: [u8; 2],
    destination_port: [u8; 2],
    source: [u8; 16],
    destination: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct inet_diag_req_v2`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct InetRequest {
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: SockId,
}

/// `struct inet_diag_msg`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct InetMessage {
    family: u8,
    state: u8,
    timer: u8,
    retransmits: u8,
    id: SockId,
    expires: u32,
    read_queue: u32,
    write_queue: u32,
    uid: u32,
    inode: u32,
}

/// `struct unix_diag_req`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct UnixRequest {
    family: u8,
    protocol: u8,
    pad: u16,
    states: u32,
    inode: u32,
    show: u32,
    cookie: [u32; 2],
}

/// `struct unix_diag_msg`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct UnixMessage {
    family: u8,
    kind: u8,
    state: u8,
    pad: u8,
    inode: u32,
    cookie: [u32; 2],
}

/// `INET_DIAG_REQ_BYTECODE`
const REQUEST_BYTECODE: u16 = 1;
/// `INET_DIAG_PROTOCOL`
const INET_PROTOCOL: u16 = 10;
const UNIX_NAME: u16 = 0;
const UNIX_PEER: u16 = 2;
const UNIX_WAITING: u16 = 3;
const UNIX_QUEUES: u16 = 4;
const UNIX_SHUTDOWN: u16 = 6;
const UNIX_UID: u16 = 7;

/// Handles a request.
///
/// # Errors
/// `EINVAL` for one that is too short or unknown, `ENOENT` when there is no such socket or the family is not told of, `EOPNOTSUPP` for
/// ending sockets, `ESTALE` for another socket's cookie.
pub fn handle(socket: &Netlink, request: &NlMsgHdr, body: &[u8]) -> Result {
    let [family, protocol, ..] = *body else { return Err(Errno::EINVAL) };
    if !matches!(request.kind, SOCK_DIAG_BY_FAMILY | SOCK_DESTROY) {
        return Err(Errno::EINVAL);
    }
    let bodies = match u32::from(family) {
        uapi::AF_INET | uapi::AF_INET6 | uapi::AF_UNIX if request.kind == SOCK_DESTROY => {
            return Err(Errno::EOPNOTSUPP);
        }
        uapi::AF_UNIX => unix_sockets(request, body)?,
        uapi::AF_INET | uapi::AF_INET6 => inet_sockets(request, body, protocol)?,
        AF_MAX.. => return Err(Errno::EINVAL),
        _ => return Err(Errno::ENOENT),
    };
    if is_dump(request) {
        route::list(socket, request, SOCK_DIAG_BY_FAMILY, &bodies);
    } else {
        let body = bodies.first().ok_or(Errno::ENOENT)?;
        socket.answer(socket.message(request, SOCK_DIAG_BY_FAMILY.into(), 0, body));
    }
    Ok(())
}

fn is_dump(request: &NlMsgHdr) -> bool {
    u32::from(request.flags) & nl::NLM_F_DUMP == nl::NLM_F_DUMP
}

fn cookie(inode: u64) -> [u32; 2] {
    [inode as u32, (inode >> 32) as u32]
}

/// Whether a request's cookie is the socket's, or says that it does not matter.
fn is_cookie(asked: [u32; 2], inode: u64) -> bool {
    asked == [u32::MAX; 2] || asked == cookie(inode)
}

fn unix_sockets(request: &NlMsgHdr, body: &[u8]) -> Result<Vec<Vec<u8>>> {
    let (asked, _) = UnixRequest::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
    let rows = unix::diag::rows();
    if is_dump(request) {
        let chosen = rows.iter().filter(|row| asked.states & 1 << row.state != 0);
        return Ok(chosen.map(|row| unix_body(row, asked.show)).collect());
    }
    if asked.inode == 0 {
        return Err(Errno::EINVAL);
    }
    let found = rows.iter().find(|row| row.ino == asked.inode).ok_or(Errno::ENOENT)?;
    if !is_cookie(asked.cookie, found.ino.into()) {
        return Err(Errno::ESTALE);
    }
    Ok(Vec::from([unix_body(found, asked.show)]))
}

fn unix_body(row: &unix::diag::Row, show: u32) -> Vec<u8> {
    const SHOW_NAME: u32 = 1;
    const SHOW_PEER: u32 = 4;
    const SHOW_WAITING: u32 = 8;
    const SHOW_QUEUES: u32 = 0x10;
    const SHOW_UID: u32 = 0x40;
    let head = UnixMessage {
        family: uapi::AF_UNIX as u8,
        kind: row.kind,
        state: row.state,
        pad: 0,
        inode: row.ino,
        cookie: cookie(row.ino.into()),
    };
    let mut body = Vec::from(head.as_bytes());
    if let Some(name) = row.name.as_ref().filter(|_| show & SHOW_NAME != 0) {
        put(&mut body, UNIX_NAME, name);
    }
    if let Some(peer) = row.peer.filter(|_| show & SHOW_PEER != 0) {
        put_u32(&mut body, UNIX_PEER, peer);
    }
    if let Some(waiting) = row.waiting.as_ref().filter(|_| show & SHOW_WAITING != 0) {
        put(&mut body, UNIX_WAITING, waiting.as_bytes());
    }
    if show & SHOW_QUEUES != 0 {
        put(&mut body, UNIX_QUEUES, [row.queued.0, row.queued.1].as_bytes());
    }
    put(&mut body, UNIX_SHUTDOWN, &[row.shut]);
    if show & SHOW_UID != 0 {
        put_u32(&mut body, UNIX_UID, row.uid);
    }
    body
}

/// An IP socket of any protocol.
struct Row {
    family: Family,
    state: u8,
    local: Endpoint,
    remote: Endpoint,
    read_queue: usize,
    write_queue: usize,
    inode: u64,
    uid: u32,
    /// A raw socket's own protocol.
    raw: Option<u8>,
}

impl Row {
    fn stream(row: tcp::Row) -> Row {
        Row {
            family: row.family,
            state: row.state,
            local: row.local,
            remote: row.remote.unwrap_or(Endpoint::new(row.family.any(), 0)),
            read_queue: row.queued.1,
            write_queue: row.queued.0,
            inode: row.identity.0,
            uid: row.identity.1,
            raw: None,
        }
    }

    fn datagram(row: datagram::Row) -> Row {
        Row {
            family: row.family,
            state: if row.remote.is_some() { tcp::state::ESTABLISHED } else { tcp::state::CLOSE },
            local: row.local,
            remote: row.remote.unwrap_or(Endpoint::new(row.family.any(), 0)),
            read_queue: row.queued,
            write_queue: 0,
            inode: row.identity.0,
            uid: row.identity.1,
            raw: None,
        }
    }

    fn id(&self) -> SockId {
        SockId {
            source_port: self.local.port.to_be_bytes(),
            destination_port: self.remote.port.to_be_bytes(),
            source: octets(self.local.ip, self.family),
            destination: octets(self.remote.ip, self.family),
            interface: self.local.scope,
            cookie: cookie(self.inode),
        }
    }

    fn body(&self) -> Vec<u8> {
        let head = InetMessage {
            family: self.family.number() as u8,
            state: self.state,
            timer: 0,
            retransmits: 0,
            id: self.id(),
            expires: 0,
            read_queue: self.read_queue as u32,
            write_queue: self.write_queue as u32,
            uid: self.uid,
            inode: self.inode as u32,
        };
        let mut body = Vec::from(head.as_bytes());
        if let Some(protocol) = self.raw {
            put(&mut body, INET_PROTOCOL, &[protocol]);
        }
        body
    }
}

/// An address as it stands in messages of a family.
fn octets(ip: IpAddr, family: Family) -> [u8; 16] {
    let mut octets = [0; 16];
    match (family, ip) {
        (Family::V4, IpAddr::V4(ip)) => octets[..4].copy_from_slice(&ip.octets()),
        (_, ip) => octets = to_v6(ip).octets(),
    }
    octets
}

fn inet_sockets(request: &NlMsgHdr, body: &[u8], protocol: u8) -> Result<Vec<Vec<u8>>> {
    const TCP: u8 = uapi::IPPROTO_TCP as u8;
    const UDP: u8 = uapi::IPPROTO_UDP as u8;
    const UDPLITE: u8 = uapi::IPPROTO_UDPLITE as u8;
    const RAW: u8 = uapi::IPPROTO_RAW as u8;
    let (asked, rest) = InetRequest::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
    let mut rows: Vec<Row> = match protocol {
        TCP => tcp::sockets().into_iter().map(Row::stream).collect(),
        UDP | UDPLITE => datagram::udp::sockets(protocol == UDPLITE).into_iter().map(Row::datagram).collect(),
        RAW => {
            let with_protocol = |(number, row)| Row { raw: Some(number), ..Row::datagram(row) };
            datagram::raw::sockets().into_iter().map(with_protocol).collect()
        }
        _ => return Err(Errno::ENOENT),
    };
    rows.retain(|row| row.family.number() == u32::from(asked.family));
    let is_port = |asked: [u8; 2], port: u16| asked == [0; 2] || asked == port.to_be_bytes();
    if is_dump(request) {
        let attributes = Attributes::parse(rest)?;
        let filter = attributes.get(REQUEST_BYTECODE).map(Filter::new).transpose()?;
        rows.retain(|row| {
            asked.states & 1 << row.state != 0
                && is_port(asked.id.source_port, row.local.port)
                && is_port(asked.id.destination_port, row.remote.port)
                && filter.as_ref().is_none_or(|filter| filter.takes(row))
        });
        return Ok(rows.iter().map(Row::body).collect());
    }
    let (source, destination) = (asked.id.source, asked.id.destination);
    let found = rows.iter().find(|row| {
        let id = row.id();
        let is_peer = (id.destination, id.destination_port) == (destination, asked.id.destination_port);
        let is_open = row.remote.port == 0 && row.state != tcp::state::ESTABLISHED;
        let is_here = id.source == source || is_open && row.local.ip.is_unspecified();
        id.source_port == asked.id.source_port && is_here && (is_peer || is_open)
    });
    let found = found.filter(|row| is_cookie(asked.id.cookie, row.inode)).ok_or(Errno::ENOENT)?;
    Ok(Vec::from([found.body()]))
}

/// The program of `INET_DIAG_REQ_BYTECODE`: operations of four bytes or more, each with how far to go on if it holds and if not.
/// Whoever comes to the very end is taken.
struct Filter<'a>(&'a [u8]);

/// `struct inet_diag_bc_op`
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Operation {
    code: u8,
    yes: u8,
    no: u16,
}

impl Operation {
    const SIZE: usize = size_of::<Operation>();
    const NOP: u8 = 0;
    const JUMP: u8 = 1;
    const SOURCE_AT_LEAST: u8 = 2;
    const SOURCE_AT_MOST: u8 = 3;
    const DESTINATION_AT_LEAST: u8 = 4;
    const DESTINATION_AT_MOST: u8 = 5;
    const AUTOMATIC: u8 = 6;
    const SOURCE: u8 = 7;
    const DESTINATION: u8 = 8;
    const DEVICE: u8 = 9;
    const SOURCE_IS: u8 = 11;
    const DESTINATION_IS: u8 = 12;

    /// Bytes of the operation with its operand.
    fn len(self, rest: &[u8]) -> Result<usize> {
        Ok(match self.code {
            Self::NOP | Self::JUMP | Self::AUTOMATIC => Self::SIZE,
            Self::SOURCE | Self::DESTINATION => {
                let address = match u32::from(*rest.get(Self::SIZE).ok_or(Errno::EINVAL)?) {
                    uapi::AF_UNSPEC => 0,
                    uapi::AF_INET => 4,
                    uapi::AF_INET6 => 16,
                    _ => return Err(Errno::EINVAL),
                };
                Self::SIZE + HOST_HEADER + address
            }
            Self::SOURCE_AT_LEAST
            | Self::SOURCE_AT_MOST
            | Self::DESTINATION_AT_LEAST
            | Self::DESTINATION_AT_MOST
            | Self::DEVICE
            | Self::SOURCE_IS
            | Self::DESTINATION_IS => 2 * Self::SIZE,
            // Marks and control groups are not kept with a socket.
            _ => return Err(Errno::EINVAL),
        })
    }
}

/// Bytes of `struct inet_diag_hostcond` before its address: family, length of the prefix, port.
const HOST_HEADER: usize = 8;

impl<'a> Filter<'a> {
    /// Checks a program: operations lie within it one behind the other, and nothing leads back.
    fn new(program: &'a [u8]) -> Result<Filter<'a>> {
        let mut at = 0;
        while at < program.len() {
            let rest = &program[at..];
            let (operation, _) = Operation::read_from_prefix(rest).map_err(|_| Errno::EINVAL)?;
            let len = operation.len(rest)?;
            let (yes, no) = (usize::from(operation.yes), usize::from(operation.no));
            let leads_on = |by: usize| by >= len && by <= rest.len() + Operation::SIZE && by.is_multiple_of(4);
            if rest.len() < len || !leads_on(yes) || operation.code != Operation::NOP && !leads_on(no) {
                return Err(Errno::EINVAL);
            }
            at += yes;
        }
        if at == program.len() { Ok(Filter(program)) } else { Err(Errno::EINVAL) }
    }

    fn takes(&self, row: &Row) -> bool {
        let mut at = 0;
        while let Some(rest) = self.0.get(at..).filter(|rest| !rest.is_empty()) {
            // A branch may lead into the midst of an operand: what makes no sense there takes nothing.
            let Ok((operation, operand)) = Operation::read_from_prefix(rest) else { return false };
            let Ok(len) = operation.len(rest) else { return false };
            let Some(operand) = operand.get(..len - Operation::SIZE) else { return false };
            let holds = Self::holds(operation.code, operand, row);
            let by = if holds { operation.yes.into() } else { usize::from(operation.no) };
            if by < len {
                return false;
            }
            at += by;
        }
        at == self.0.len()
    }

    fn holds(code: u8, operand: &[u8], row: &Row) -> bool {
        let word = operand.first_chunk::<4>().map_or(0, |w| u32::from_ne_bytes(*w));
        let port = (word >> 16) as u16;
        match code {
            Operation::NOP => true,
            Operation::SOURCE_AT_LEAST => row.local.port >= port,
            Operation::SOURCE_AT_MOST => row.local.port <= port,
            Operation::SOURCE_IS => row.local.port == port,
            Operation::DESTINATION_AT_LEAST => row.remote.port >= port,
            Operation::DESTINATION_AT_MOST => row.remote.port <= port,
            Operation::DESTINATION_IS => row.remote.port == port,
            Operation::SOURCE => Self::is_host(operand, &row.local, row.family),
            Operation::DESTINATION => Self::is_host(operand, &row.remote, row.family),
            Operation::DEVICE => word == row.local.scope,
            // A port that the kernel chose: not remembered, as no socket is bound to it explicitly.
            _ => false,
        }
    }

    fn is_host(condition: &[u8], end: &Endpoint, family: Family) -> bool {
        let (Some(head), Some(address)) = (condition.first_chunk::<HOST_HEADER>(), condition.get(HOST_HEADER..)) else {
            return false;
        };
        let port = i32::from_ne_bytes([head[4], head[5], head[6], head[7]]);
        if port != -1 && port != i32::from(end.port) {
            return false;
        }
        let whole = octets(end.ip, family);
        let ours: &[u8] = match (address.len(), end.ip) {
            (0, _) => return true,
            (4, IpAddr::V4(ip)) => &ip.octets(),
            (16, _) if family == Family::V6 => &whole,
            _ => return false,
        };
        let bits = usize::from(head[1]).min(address.len() * 8);
        let (bytes, left) = (bits / 8, bits % 8);
        let mask = !(0xff_u8 >> left);
        ours[..bytes] == address[..bytes] && (left == 0 || (ours[bytes] ^ address[bytes]) & mask == 0)
    }
}
