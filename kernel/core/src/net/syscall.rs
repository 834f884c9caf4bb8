//! Socket system calls.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use classic_bpf::{Instruction, Program};
use linux_uapi::netlink::SockFprog;
use linux_uapi::raw::{general, net as uapi, netlink::NETLINK_LIST_MEMBERSHIPS};
use linux_uapi::socket::{Linger, MMsgHdr, MsgHdr};
use linux_uapi::time::{Timespec, Timeval};
use linux_uapi::zerocopy::{FromBytes, IntoBytes};

use super::inet::{self, address::Family};
use super::message::{Sent, decode_control, deliver_control};
use super::netlink::Netlink;
use super::options::buffer_size;
use super::packet::PacketSocket;
use super::unix::{Kind, Unix};
use super::{Control, Incoming, Outgoing, Socket, SocketOps};
use crate::fs::syscall::rw::import_iovec;
use crate::fs::{File, IoRange, Sink, Source};
use crate::process::{Cap, Resource, capable, current};
use crate::syscall::Cx;
use crate::time::Deadline;
use crate::user::{self, UserAddr, UserPtr};
use crate::{Errno, Result, syscalls};

syscalls! { ROWS;
    41 socket => sys_socket(0, 1, 2);
    42 connect => sys_connect(0, 1, 2);
    43 accept => sys_accept(0, 1, 2);
    44 sendto => sys_sendto(0, 1, 2, 3, 4, 5);
    45 recvfrom => sys_recvfrom(0, 1, 2, 3, 4, 5);
    46 sendmsg => sys_sendmsg(0, 1, 2);
    47 recvmsg => sys_recvmsg(0, 1, 2);
    48 shutdown => sys_shutdown(0, 1);
    49 bind => sys_bind(0, 1, 2);
    50 listen => sys_listen(0, 1);
    51 getsockname => sys_getsockname(0, 1, 2);
    52 getpeername => sys_getpeername(0, 1, 2);
    53 socketpair => sys_socketpair(0, 1, 2, 3);
    54 setsockopt => sys_setsockopt(0, 1, 2, 3, 4);
    55 getsockopt => sys_getsockopt(0, 1, 2, 3, 4);
    288 accept4 => sys_accept4(0, 1, 2, 3);
    299 recvmmsg => sys_recvmmsg(0, 1, 2, 3, 4);
    307 sendmmsg => sys_sendmmsg(0, 1, 2, 3);
}

const SOCK_NONBLOCK: u32 = general::O_NONBLOCK;
const SOCK_CLOEXEC: u32 = general::O_CLOEXEC;
const SOCK_TYPE_MASK: u32 = 0xf;
const AF_MAX: u32 = 46;
/// `recvmmsg`: only the first message is waited for.
const MSG_WAITFORONE: u32 = 0x10000;
/// Bytes of `struct sockaddr_storage`.
const ADDRESS_MAX: usize = 128;

fn socket_of(file: &File) -> Result<&Socket> {
    file.ops::<Socket>().ok_or(Errno::ENOTSOCK)
}

fn read_address(addr: UserAddr, len: u32) -> Result<Vec<u8>> {
    let len = len as usize;
    if len > ADDRESS_MAX {
        return Err(Errno::EINVAL);
    }
    user::read_slice(UserPtr::<u8>::new(addr.as_u64()), len)
}

/// Writes an address as far as the program's buffer goes, and its real length.
fn write_address(bytes: &[u8], addr: UserAddr, len: UserPtr<i32>) -> Result {
    let room = usize::try_from(len.read()?).map_err(|_| Errno::EINVAL)?;
    user::write_bytes(addr, &bytes[..bytes.len().min(room)])?;
    len.write(&(bytes.len() as i32))
}

fn install(ops: Arc<dyn SocketOps>, flags: u32) -> Result<i32> {
    let limit = current().process().rlimits.soft(Resource::Nofile);
    current().files().install(Socket::file(ops, flags), flags & SOCK_CLOEXEC != 0, limit)
}

fn check_flags(kind: u32) -> Result<u32> {
    let flags = kind & !SOCK_TYPE_MASK;
    if flags & !(SOCK_NONBLOCK | SOCK_CLOEXEC) != 0 { Err(Errno::EINVAL) } else { Ok(flags) }
}

/// Checks the arguments of `socket(2)` that no family looks at.
fn check_family(domain: u32, kind: u32) -> Result {
    if domain >= AF_MAX {
        return Err(Errno::EAFNOSUPPORT);
    }
    if kind & SOCK_TYPE_MASK > 10 { Err(Errno::EINVAL) } else { Ok(()) }
}

/// Checks `socket(2)`'s arguments for a local socket.
fn unix_kind(domain: u32, kind: u32, protocol: u32) -> Result<Kind> {
    check_family(domain, kind)?;
    if domain != uapi::AF_UNIX {
        return Err(Errno::EAFNOSUPPORT);
    }
    if protocol != 0 && protocol != uapi::AF_UNIX {
        return Err(Errno::EPROTONOSUPPORT);
    }
    Kind::decode(kind & SOCK_TYPE_MASK)
}

fn ip_family(domain: u32) -> Option<Family> {
    match domain {
        uapi::AF_INET => Some(Family::V4),
        uapi::AF_INET6 => Some(Family::V6),
        _ => None,
    }
}

/// `socket(2)`.
pub fn sys_socket(_cx: &mut Cx<'_>, domain: u32, kind: u32, protocol: u32) -> Result<i32> {
    let flags = check_flags(kind)?;
    let bare = kind & SOCK_TYPE_MASK;
    if let Some(family) = ip_family(domain) {
        check_family(domain, kind)?;
        return install(inet::create(family, bare, protocol)?, flags);
    }
    if domain == uapi::AF_PACKET {
        check_family(domain, kind)?;
        return install(PacketSocket::new(bare, protocol)?, flags);
    }
    if domain == uapi::AF_NETLINK {
        check_family(domain, kind)?;
        return install(Netlink::new(kind & SOCK_TYPE_MASK, protocol)?, flags);
    }
    install(Unix::new(unix_kind(domain, kind, protocol)?), flags)
}

/// `socketpair(2)`.
pub fn sys_socketpair(_cx: &mut Cx<'_>, domain: u32, kind: u32, protocol: u32, fds: UserPtr<[i32; 2]>) -> Result {
    let flags = check_flags(kind)?;
    if domain == uapi::AF_NETLINK {
        // Checked as `socket` does; netlink has no pairs.
        check_family(domain, kind)?;
        Netlink::new(kind & SOCK_TYPE_MASK, protocol)?;
        return Err(Errno::EOPNOTSUPP);
    }
    if let Some(family) = ip_family(domain) {
        check_family(domain, kind)?;
        inet::create(family, kind & SOCK_TYPE_MASK, protocol)?;
        return Err(Errno::EOPNOTSUPP);
    }
    let (a, b) = Unix::pair(unix_kind(domain, kind, protocol)?);
    let files = current().files();
    let limit = current().process().rlimits.soft(Resource::Nofile);
    let cloexec = flags & SOCK_CLOEXEC != 0;
    let first = files.reserve(cloexec, limit)?;
    let second = files.reserve(cloexec, limit)?;
    fds.write(&[first.fd(), second.fd()])?;
    first.commit(Socket::file(a, flags));
    second.commit(Socket::file(b, flags));
    Ok(())
}

/// `bind(2)`.
pub fn sys_bind(cx: &mut Cx<'_>, fd: i32, addr: UserAddr, len: u32) -> Result {
    let file = cx.thread.file(fd)?;
    let socket = socket_of(&file)?;
    socket.ops().bind(&read_address(addr, len)?)
}

/// `connect(2)`.
pub fn sys_connect(cx: &mut Cx<'_>, fd: i32, addr: UserAddr, len: u32) -> Result {
    let file = cx.thread.file(fd)?;
    let socket = socket_of(&file)?;
    socket.ops().connect(&read_address(addr, len)?, file.is_nonblocking())
}

/// `listen(2)`.
pub fn sys_listen(cx: &mut Cx<'_>, fd: i32, backlog: i32) -> Result {
    let file = cx.thread.file(fd)?;
    socket_of(&file)?.ops().listen(backlog)
}

/// `accept(2)`.
pub fn sys_accept(cx: &mut Cx<'_>, fd: i32, addr: UserAddr, len: UserPtr<i32>) -> Result<i32> {
    sys_accept4(cx, fd, addr, len, 0)
}

/// `accept4(2)`.
pub fn sys_accept4(cx: &mut Cx<'_>, fd: i32, addr: UserAddr, len: UserPtr<i32>, flags: u32) -> Result<i32> {
    if flags & !(SOCK_NONBLOCK | SOCK_CLOEXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = cx.thread.file(fd)?;
    let socket = socket_of(&file)?;
    let files = cx.thread.files();
    let limit = cx.thread.process().rlimits.soft(Resource::Nofile);
    // The descriptor first: a connection must not be lost for want of one.
    let new = files.reserve(flags & SOCK_CLOEXEC != 0, limit)?;
    let (ops, peer) = socket.ops().accept(file.is_nonblocking())?;
    let accepted = Socket::file(ops, flags);
    if addr.as_u64() != 0 {
        write_address(&peer, addr, len)?;
    }
    Ok(new.commit(accepted))
}

/// `getsockname(2)`.
pub fn sys_getsockname(cx: &mut Cx<'_>, fd: i32, addr: UserAddr, len: UserPtr<i32>) -> Result {
    let file = cx.thread.file(fd)?;
    write_address(&socket_of(&file)?.ops().local_address()?, addr, len)
}

/// `getpeername(2)`.
pub fn sys_getpeername(cx: &mut Cx<'_>, fd: i32, addr: UserAddr, len: UserPtr<i32>) -> Result {
    let file = cx.thread.file(fd)?;
    write_address(&socket_of(&file)?.ops().peer_address()?, addr, len)
}

/// `shutdown(2)`.
pub fn sys_shutdown(cx: &mut Cx<'_>, fd: i32, how: u32) -> Result {
    let file = cx.thread.file(fd)?;
    let socket = socket_of(&file)?;
    let (read, write) = match how {
        uapi::SHUT_RD => (true, false),
        uapi::SHUT_WR => (false, true),
        uapi::SHUT_RDWR => (true, true),
        _ => return Err(Errno::EINVAL),
    };
    socket.ops().shutdown(read, write)
}

fn with_nonblocking(file: &File, flags: u32) -> u32 {
    flags | if file.is_nonblocking() { uapi::MSG_DONTWAIT } else { 0 }
}

/// A checked buffer of one range.
fn one_range(addr: UserAddr, len: usize) -> Result<[IoRange; 1]> {
    let len = len.min(crate::fs::io::MAX_RW_COUNT);
    if !addr.is_user_range(len as u64) {
        return Err(Errno::EFAULT);
    }
    Ok([IoRange { addr, len }])
}

/// `sendto(2)`.
pub fn sys_sendto(
    cx: &mut Cx<'_>,
    fd: i32,
    buf: UserAddr,
    len: usize,
    flags: u32,
    addr: UserAddr,
    addr_len: u32,
) -> Result<usize> {
    let ranges = one_range(buf, len)?;
    let file = cx.thread.file(fd)?;
    let socket = socket_of(&file)?;
    let address = if addr.as_u64() == 0 { None } else { Some(read_address(addr, addr_len)?) };
    socket.send(&mut Outgoing {
        data: &mut Source::ranges(&ranges),
        address: address.filter(|a| !a.is_empty()),
        flags: with_nonblocking(&file, flags),
        files: Vec::new(),
        credentials: None,
        control: Vec::new(),
    })
}

/// `recvfrom(2)`.
pub fn sys_recvfrom(
    cx: &mut Cx<'_>,
    fd: i32,
    buf: UserAddr,
    len: usize,
    flags: u32,
    addr: UserAddr,
    addr_len: UserPtr<i32>,
) -> Result<usize> {
    let ranges = one_range(buf, len)?;
    let file = cx.thread.file(fd)?;
    let socket = socket_of(&file)?;
    let mut data = Sink::ranges(&ranges);
    let mut message = Incoming {
        data: &mut data,
        flags: with_nonblocking(&file, flags),
        out_flags: 0,
        address: Vec::new(),
        control: Control::default(),
    };
    let n = socket.ops().receive(&mut message)?;
    if addr.as_u64() != 0 {
        let from = reported_address(message.address);
        write_address(&from, addr, addr_len)?;
    }
    Ok(n)
}

/// The sender's address as a receive reports it: none for a sender without a name.
fn reported_address(address: Vec<u8>) -> Vec<u8> {
    let nameless = address.len() <= 2;
    if nameless { Vec::new() } else { address }
}

fn send_one(file: &File, hdr: &MsgHdr, flags: u32) -> Result<usize> {
    let socket = socket_of(file)?;
    let ranges = import_message(hdr)?;
    let address = match (hdr.name, hdr.name_len) {
        (0, _) | (_, 0) => None,
        (_, len) if len < 0 => return Err(Errno::EINVAL),
        (name, len) => Some(read_address(UserAddr::new(name), (len as u32).min(ADDRESS_MAX as u32))?),
    };
    let control_len = usize::try_from(hdr.control_len).map_err(|_| Errno::ENOBUFS)?;
    let control = if hdr.control == 0 { 0 } else { control_len };
    let Sent { files, credentials, other } = decode_control(UserAddr::new(hdr.control), control)?;
    socket.send(&mut Outgoing {
        data: &mut Source::ranges(&ranges),
        address,
        flags: with_nonblocking(file, flags & !uapi::MSG_CMSG_CLOEXEC),
        files,
        credentials,
        control: other,
    })
}

fn import_message(hdr: &MsgHdr) -> Result<Vec<IoRange>> {
    let count = usize::try_from(hdr.iov_len).ok().filter(|n| *n <= general::UIO_MAXIOV as usize);
    import_iovec(UserPtr::new(hdr.iov), count.ok_or(Errno::EMSGSIZE)?)
}

fn receive_one(file: &File, at: UserPtr<MsgHdr>, flags: u32) -> Result<usize> {
    let hdr = at.read()?;
    let socket = socket_of(file)?;
    if hdr.name != 0 && hdr.name_len < 0 {
        return Err(Errno::EINVAL);
    }
    let ranges = import_message(&hdr)?;
    let mut data = Sink::ranges(&ranges);
    let mut message = Incoming {
        data: &mut data,
        flags: with_nonblocking(file, flags),
        out_flags: flags & uapi::MSG_CMSG_CLOEXEC,
        address: Vec::new(),
        control: Control::default(),
    };
    let n = socket.ops().receive(&mut message)?;
    let Incoming { out_flags, address, control, .. } = message;
    let mut out = hdr;
    if hdr.name != 0 {
        let from = reported_address(address);
        let fits = from.len().min(hdr.name_len as usize);
        user::write_bytes(UserAddr::new(hdr.name), &from[..fits])?;
        out.name_len = from.len() as i32;
    }
    let room = if hdr.control == 0 { 0 } else { usize::try_from(hdr.control_len).unwrap_or(usize::MAX) };
    let (written, extra) = deliver_control(control, UserAddr::new(hdr.control), room, flags)?;
    out.control_len = written as u64;
    out.flags = out_flags | extra;
    at.write(&out)?;
    Ok(n)
}

/// `sendmsg(2)`.
pub fn sys_sendmsg(cx: &mut Cx<'_>, fd: i32, message: UserPtr<MsgHdr>, flags: u32) -> Result<usize> {
    let file = cx.thread.file(fd)?;
    send_one(&file, &message.read()?, flags)
}

/// `recvmsg(2)`.
pub fn sys_recvmsg(cx: &mut Cx<'_>, fd: i32, message: UserPtr<MsgHdr>, flags: u32) -> Result<usize> {
    let file = cx.thread.file(fd)?;
    receive_one(&file, message, flags)
}

fn length_field(messages: UserPtr<MMsgHdr>, index: usize) -> UserPtr<u32> {
    UserPtr::new(messages.add(index).addr().as_u64() + core::mem::offset_of!(MMsgHdr, len) as u64)
}

/// `sendmmsg(2)`.
pub fn sys_sendmmsg(cx: &mut Cx<'_>, fd: i32, messages: UserPtr<MMsgHdr>, count: u32, flags: u32) -> Result<usize> {
    let file = cx.thread.file(fd)?;
    socket_of(&file)?;
    let count = count.min(general::UIO_MAXIOV) as usize;
    for i in 0..count {
        let sent = messages.add(i).cast::<MsgHdr>().read().and_then(|hdr| send_one(&file, &hdr, flags));
        let told = sent.and_then(|n| length_field(messages, i).write(&(n as u32)));
        if let Err(error) = told {
            return if i > 0 { Ok(i) } else { Err(error) };
        }
    }
    Ok(count)
}

/// `recvmmsg(2)`.
pub fn sys_recvmmsg(
    cx: &mut Cx<'_>,
    fd: i32,
    messages: UserPtr<MMsgHdr>,
    count: u32,
    flags: u32,
    timeout: UserPtr<Timespec>,
) -> Result<usize> {
    let file = cx.thread.file(fd)?;
    socket_of(&file)?;
    let deadline = match timeout.non_null() {
        None => None,
        Some(timeout) => Some(Deadline::after(timeout.read()?.to_ns().ok_or(Errno::EINVAL)?)),
    };
    let count = count.min(general::UIO_MAXIOV) as usize;
    let mut flags = flags;
    let mut done = 0;
    let mut outcome = Ok(());
    while done < count {
        let received = receive_one(&file, messages.add(done).cast::<MsgHdr>(), flags & !MSG_WAITFORONE);
        match received.and_then(|n| length_field(messages, done).write(&(n as u32))) {
            Ok(()) => done += 1,
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
        if flags & MSG_WAITFORONE != 0 {
            flags |= uapi::MSG_DONTWAIT;
        }
        if deadline.is_some_and(Deadline::has_passed) {
            break;
        }
    }
    if let Some(deadline) = deadline {
        timeout.write(&Timespec::from_ns(deadline.remaining()))?;
    }
    if done > 0 { Ok(done) } else { outcome.map(|()| 0) }
}

/// An option's value that is an `int`.
///
/// # Errors
/// `EINVAL` when it is shorter.
pub fn int(value: &[u8]) -> Result<i32> {
    value.first_chunk::<4>().map(|v| i32::from_ne_bytes(*v)).ok_or(Errno::EINVAL)
}

fn timeout_ns(value: &[u8]) -> Result<u64> {
    let (time, _) = Timeval::read_from_prefix(value).map_err(|_| Errno::EINVAL)?;
    if !(0..1_000_000).contains(&time.tv_usec) {
        return Err(Errno::EDOM);
    }
    // A negative time is one that has passed.
    if time.tv_sec < 0 {
        return Ok(1);
    }
    Ok((time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_usec as u64 * 1000))
}

/// Options that are kept as a flag and change nothing on the sockets that exist.
fn kept_flag(name: u32) -> Option<u64> {
    let kept = [
        uapi::SO_DEBUG,
        uapi::SO_REUSEADDR,
        uapi::SO_DONTROUTE,
        uapi::SO_BROADCAST,
        uapi::SO_KEEPALIVE,
        uapi::SO_OOBINLINE,
        uapi::SO_REUSEPORT,
        uapi::SO_TIMESTAMP,
        uapi::SO_TIMESTAMPNS,
        uapi::SO_RXQ_OVFL,
    ];
    kept.contains(&name).then(|| 1 << name)
}

/// Reads and checks the program of `SO_ATTACH_FILTER`.
fn read_filter(value: &[u8]) -> Result<Program> {
    let given = SockFprog::read_from_bytes(value).map_err(|_| Errno::EINVAL)?;
    if given.len == 0 || usize::from(given.len) > classic_bpf::INSTRUCTIONS_MAX {
        return Err(Errno::EINVAL);
    }
    let instructions: Vec<Instruction> = user::read_slice(UserPtr::new(given.filter), given.len.into())?;
    Program::new(&instructions).map_err(|_| Errno::EINVAL)
}

/// `setsockopt(2)`.
pub fn sys_setsockopt(cx: &mut Cx<'_>, fd: i32, level: i32, name: u32, value: UserAddr, len: i32) -> Result {
    let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
    let file = cx.thread.file(fd)?;
    let ops = socket_of(&file)?.ops();
    let bytes: Vec<u8> = user::read_slice(UserPtr::new(value.as_u64()), len.min(4096))?;
    if level != uapi::SOL_SOCKET as i32 {
        return ops.set_option(level, name, &bytes);
    }
    let options = ops.options();
    match name {
        uapi::SO_SNDBUF | uapi::SO_SNDBUFFORCE => {
            let force = name == uapi::SO_SNDBUFFORCE;
            if force && !capable(Cap::NetAdmin) {
                return Err(Errno::EPERM);
            }
            ops.set_send_buffer(buffer_size(int(&bytes)?, force, true));
        }
        uapi::SO_RCVBUF | uapi::SO_RCVBUFFORCE => {
            let force = name == uapi::SO_RCVBUFFORCE;
            if force && !capable(Cap::NetAdmin) {
                return Err(Errno::EPERM);
            }
            ops.set_receive_buffer(buffer_size(int(&bytes)?, force, false));
        }
        uapi::SO_PASSCRED => options.pass_credentials.store(int(&bytes)? != 0, Ordering::Relaxed),
        uapi::SO_PASSPIDFD => options.pass_pidfd.store(int(&bytes)? != 0, Ordering::Relaxed),
        uapi::SO_RCVTIMEO_OLD | uapi::SO_RCVTIMEO_NEW => {
            options.receive_timeout_ns.store(timeout_ns(&bytes)?, Ordering::Relaxed);
        }
        uapi::SO_SNDTIMEO_OLD | uapi::SO_SNDTIMEO_NEW => {
            options.send_timeout_ns.store(timeout_ns(&bytes)?, Ordering::Relaxed);
        }
        uapi::SO_RCVLOWAT => {
            let n = int(&bytes)?;
            options.receive_low_water.store(if n < 0 { i32::MAX } else { n.max(1) }, Ordering::Relaxed);
        }
        uapi::SO_LINGER => {
            let (linger, _) = Linger::read_from_prefix(&bytes).map_err(|_| Errno::EINVAL)?;
            options.linger.store(if linger.onoff != 0 { linger.linger.max(0) } else { -1 }, Ordering::Relaxed);
        }
        uapi::SO_PRIORITY => {
            let value = int(&bytes)?;
            if !(0..=6).contains(&value) && !capable(Cap::NetAdmin) {
                return Err(Errno::EPERM);
            }
            options.priority.store(value, Ordering::Relaxed);
        }
        uapi::SO_MARK => {
            if !capable(Cap::NetAdmin) {
                return Err(Errno::EPERM);
            }
            options.mark.store(int(&bytes)?, Ordering::Relaxed);
        }
        uapi::SO_ATTACH_FILTER => options.set_filter(Some(read_filter(&bytes)?))?,
        uapi::SO_DETACH_FILTER => options.set_filter(None)?,
        uapi::SO_LOCK_FILTER => options.lock_filter(int(&bytes)? != 0)?,
        uapi::SO_TYPE
        | uapi::SO_PROTOCOL
        | uapi::SO_DOMAIN
        | uapi::SO_COOKIE
        | uapi::SO_ERROR
        | uapi::SO_ACCEPTCONN => {
            return Err(Errno::ENOPROTOOPT);
        }
        _ => {
            let Some(flag) = kept_flag(name) else { return ops.set_option(level, name, &bytes) };
            if int(&bytes)? != 0 {
                options.kept.fetch_or(flag, Ordering::Relaxed);
            } else {
                options.kept.fetch_and(!flag, Ordering::Relaxed);
            }
            ops.flags_changed();
        }
    }
    Ok(())
}

/// The value of a `SOL_SOCKET` option that all families share; `None` when it is the family's.
fn common_option(ops: &dyn SocketOps, name: u32) -> Option<Vec<u8>> {
    let options = ops.options();
    let timeval = |ns: u64| {
        let time = Timeval { tv_sec: (ns / 1_000_000_000) as i64, tv_usec: (ns % 1_000_000_000 / 1000) as i64 };
        Vec::from(time.as_bytes())
    };
    let value = match name {
        uapi::SO_TYPE => ops.kind() as i32,
        uapi::SO_DOMAIN => ops.domain() as i32,
        uapi::SO_PROTOCOL => ops.protocol() as i32,
        uapi::SO_LOCK_FILTER => i32::from(options.is_filter_locked()),
        uapi::SO_ERROR => ops.take_error().map_or(0, |e| e.raw() as i32),
        uapi::SO_ACCEPTCONN => i32::from(ops.is_listening()),
        uapi::SO_SNDBUF => ops.send_buffer() as i32,
        uapi::SO_RCVBUF => options.rcvbuf.load(Ordering::Relaxed) as i32,
        uapi::SO_PASSCRED => i32::from(options.pass_credentials.load(Ordering::Relaxed)),
        uapi::SO_PASSPIDFD => i32::from(options.pass_pidfd.load(Ordering::Relaxed)),
        uapi::SO_RCVLOWAT => options.receive_low_water.load(Ordering::Relaxed),
        uapi::SO_SNDLOWAT => 1,
        uapi::SO_PRIORITY => options.priority.load(Ordering::Relaxed),
        uapi::SO_PEEK_OFF => options.peek_offset.load(Ordering::Relaxed),
        uapi::SO_MARK => options.mark.load(Ordering::Relaxed),
        uapi::SO_RCVTIMEO_OLD | uapi::SO_RCVTIMEO_NEW => {
            return Some(timeval(options.receive_timeout_ns.load(Ordering::Relaxed)));
        }
        uapi::SO_SNDTIMEO_OLD | uapi::SO_SNDTIMEO_NEW => {
            return Some(timeval(options.send_timeout_ns.load(Ordering::Relaxed)));
        }
        uapi::SO_LINGER => {
            let seconds = options.linger.load(Ordering::Relaxed);
            let linger = Linger { onoff: i32::from(seconds >= 0), linger: seconds.max(0) };
            return Some(Vec::from(linger.as_bytes()));
        }
        _ => i32::from(options.kept.load(Ordering::Relaxed) & kept_flag(name)? != 0),
    };
    Some(Vec::from(value.to_ne_bytes()))
}

/// `getsockopt(2)`.
pub fn sys_getsockopt(cx: &mut Cx<'_>, fd: i32, level: i32, name: u32, value: UserAddr, len: UserPtr<i32>) -> Result {
    let file = cx.thread.file(fd)?;
    let socket = socket_of(&file)?;
    let ops = socket.ops();
    let room = usize::try_from(len.read()?).map_err(|_| Errno::EINVAL)?;
    let common = match name {
        _ if level != uapi::SOL_SOCKET as i32 => None,
        uapi::SO_COOKIE if room < size_of::<u64>() => return Err(Errno::EINVAL),
        uapi::SO_COOKIE => Some(Vec::from(socket.cookie().to_ne_bytes())),
        _ => common_option(&**ops, name),
    };
    let bytes = match common {
        Some(bytes) => bytes,
        None => ops.get_option(level, name, room)?,
    };
    // A list that does not fit is not cut: its length is told.
    if name == uapi::SO_PEERGROUPS && level == uapi::SOL_SOCKET as i32 && room < bytes.len() {
        len.write(&(bytes.len() as i32))?;
        return Err(Errno::ERANGE);
    }
    let n = bytes.len().min(room);
    user::write_bytes(value, &bytes[..n])?;
    // A list of groups is cut, and its whole length told, so that programs can ask for it first.
    let is_list = level == super::netlink::SOL_NETLINK && name == NETLINK_LIST_MEMBERSHIPS;
    len.write(&(if is_list { bytes.len() } else { n } as i32))
}
