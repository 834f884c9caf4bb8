//! IP sockets (`AF_INET`, `AF_INET6`).
//!
//! ```text
//!  socket calls ─▶ tcp ─▶ stream ────────────────▶ (the other socket)            inside the machine: no packets
//!                   └─▶ tcp::remote (smoltcp) ─┐
//!                  datagram (UDP, ping, raw) ──┴▶ ip ─▶ link (Ethernet, ARP) ─▶ /dev/net/tun ─▶ a driver's process
//!  netlink, ioctls ─▶ interface (addresses, routes)      neighbour      icmp      fragment      worker (timers)
//! ```
//! References: ip(7), ipv6(7), tcp(7), udp(7), raw(7), netdevice(7).

pub mod address;
pub mod datagram;
mod fragment;
mod icmp;
pub mod interface;
pub mod ip;
pub mod link;
mod neighbour;
mod options;
pub mod ports;
mod proc;
mod stream;
mod sysfs;
pub mod tcp;
mod worker;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use linux_uapi::raw::net as uapi;

use self::address::{Endpoint, Family, family_of};
use self::datagram::{Datagram, Protocol};
use self::options::{IpOptions, Switch};
use self::tcp::Tcp;
use super::SocketOps;
use crate::process::{Cap, capable};
use crate::time::Deadline;
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// `IPPROTO_MAX`: numbers from here on are no protocols.
const PROTOCOL_MAX: u32 = 263;

/// Who made a socket, for `/proc/net`: its inode and user.
#[derive(Default)]
pub struct Identity {
    ino: AtomicU64,
    uid: AtomicU32,
}

impl Identity {
    /// Sets both.
    pub fn set(&self, ino: u64, uid: u32) {
        self.ino.store(ino, Relaxed);
        self.uid.store(uid, Relaxed);
    }

    /// Inode and user.
    pub fn get(&self) -> (u64, u32) {
        (self.ino.load(Relaxed), self.uid.load(Relaxed))
    }
}

/// Makes a socket (`socket(2)`); `kind` without flags.
///
/// # Errors
/// `ESOCKTNOSUPPORT`, `EPROTONOSUPPORT`, `EINVAL`, `EPERM`, `EACCES`.
pub fn create(family: Family, kind: u32, protocol: u32) -> Result<Arc<dyn SocketOps>> {
    if protocol >= PROTOCOL_MAX {
        return Err(Errno::EINVAL);
    }
    let ping = match family {
        Family::V4 => u32::from(ip::ICMP),
        Family::V6 => u32::from(ip::ICMPV6),
    };
    match kind {
        uapi::SOCK_STREAM => match protocol {
            0 | 6 => Ok(Tcp::new(family)),
            _ => Err(Errno::EPROTONOSUPPORT),
        },
        uapi::SOCK_DGRAM => match protocol {
            0 | 17 => Ok(Datagram::new(family, Protocol::Udp)?),
            136 => Ok(Datagram::new(family, Protocol::UdpLite)?),
            p if p == ping => Ok(Datagram::new(family, Protocol::Ping)?),
            _ => Err(Errno::EPROTONOSUPPORT),
        },
        uapi::SOCK_RAW => match protocol {
            0 => Err(Errno::EPROTONOSUPPORT),
            p => Ok(Datagram::new(family, Protocol::Raw(u8::try_from(p).map_err(|_| Errno::EPROTONOSUPPORT)?))?),
        },
        _ => Err(Errno::ESOCKTNOSUPPORT),
    }
}

/// Waits as a socket call does: a time-out is `EAGAIN`, and with a time limit set a call is not restarted (signal(7)).
pub fn wait(queue: &WaitQueue, deadline: Option<Deadline>, done: impl Fn() -> bool) -> Result {
    match queue.wait_interruptible(deadline, || done().then_some(())) {
        Err(Errno::ETIMEDOUT) => Err(Errno::EAGAIN),
        Err(Errno::ERESTARTSYS) if deadline.is_some() => Err(Errno::EINTR),
        other => other,
    }
}

/// Decodes the address of `bind(2)`.
///
/// # Errors
/// `EINVAL`, `EAFNOSUPPORT`; `EADDRNOTAVAIL` for an IPv4 address on a socket for IPv6 only.
fn decode_bind(bytes: &[u8], family: Family, v6_only: bool) -> Result<Endpoint> {
    // Old programs leave the family out with the wildcard.
    if family == Family::V4 && bytes.len() >= 16 && family_of(bytes)? == uapi::AF_UNSPEC {
        if bytes[4..8] != [0; 4] {
            return Err(Errno::EAFNOSUPPORT);
        }
        return Ok(Endpoint::new(family.any(), u16::from_be_bytes([bytes[2], bytes[3]])));
    }
    let wanted = Endpoint::decode(bytes, family)?;
    if family == Family::V6 && wanted.ip.is_ipv4() && v6_only {
        return Err(Errno::EINVAL);
    }
    Ok(wanted)
}

/// Whether a socket may have an address.
///
/// # Errors
/// `EADDRNOTAVAIL` when it is not this machine's; `EINVAL` for a link-local one without its interface.
fn check_bind(wanted: &Endpoint, options: &IpOptions, device: u32, many_ok: bool) -> Result {
    if wanted.ip.is_unspecified() {
        return Ok(());
    }
    let is_many = wanted.ip.is_multicast() || matches!(wanted.ip, IpAddr::V4(ip) if ip.is_broadcast());
    if is_many && many_ok {
        return Ok(());
    }
    if matches!(wanted.ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) && wanted.scope == 0 && device == 0 {
        return Err(Errno::EINVAL);
    }
    let free = options.has(Switch::FreeBind) || options.has(Switch::Transparent);
    let broadcast = many_ok && interface::way(wanted.ip, 0, 0).is_ok_and(|w| w.is_broadcast);
    if free || broadcast || interface::is_own(wanted.ip) { Ok(()) } else { Err(Errno::EADDRNOTAVAIL) }
}

/// `SO_BINDTODEVICE` and `SO_BINDTOIFINDEX`.
///
/// # Errors
/// `ENODEV`, `EPERM`; `ENOPROTOOPT` for other options.
fn bound_device(name: u32, value: &[u8], device: &AtomicU32) -> Result {
    let index = match name {
        uapi::SO_BINDTODEVICE => {
            let end = value.iter().position(|b| *b == 0).unwrap_or(value.len()).min(interface::NAME_MAX - 1);
            match core::str::from_utf8(&value[..end]).map_err(|_| Errno::ENODEV)? {
                "" => 0,
                name => interface::by_name(name).ok_or(Errno::ENODEV)?.index,
            }
        }
        uapi::SO_BINDTOIFINDEX => {
            let index = value.first_chunk::<4>().map(|v| i32::from_ne_bytes(*v)).ok_or(Errno::EINVAL)?;
            let index = u32::try_from(index).map_err(|_| Errno::EINVAL)?;
            if index != 0 && interface::by_index(index).is_none() {
                return Err(Errno::ENODEV);
            }
            index
        }
        // Taken, without effect here.
        uapi::SO_NO_CHECK | uapi::SO_BUSY_POLL | uapi::SO_INCOMING_CPU | uapi::SO_MAX_PACING_RATE => return Ok(()),
        _ => return Err(Errno::ENOPROTOOPT),
    };
    // Unbinding takes a right, binding a socket that is free does not.
    if device.load(Relaxed) != 0 && !capable(Cap::NetRaw) {
        return Err(Errno::EPERM);
    }
    device.store(index, Relaxed);
    Ok(())
}

/// Options of `SOL_SOCKET` that IP sockets alone have.
///
/// # Errors
/// `ENOPROTOOPT`.
fn get_socket_option(name: u32, device: &AtomicU32) -> Result<Vec<u8>> {
    let index = device.load(Relaxed);
    match name {
        uapi::SO_BINDTODEVICE => {
            let name = interface::by_index(index).map(|i| i.name());
            Ok(name.map_or(Vec::new(), |name| [name.as_bytes(), b"\0"].concat()))
        }
        uapi::SO_BINDTOIFINDEX => Ok(index.to_ne_bytes().to_vec()),
        uapi::SO_NO_CHECK | uapi::SO_BUSY_POLL => Ok(0i32.to_ne_bytes().to_vec()),
        uapi::SO_INCOMING_CPU => Ok((-1i32).to_ne_bytes().to_vec()),
        uapi::SO_PEERCRED => {
            // struct ucred of nobody.
            let mut nobody = 0u32.to_ne_bytes().to_vec();
            nobody.extend_from_slice(&[0xff; 8]);
            Ok(nobody)
        }
        _ => Err(Errno::ENOPROTOOPT),
    }
}

/// Makes the loopback interface, the files in `/proc/net`, and the task that keeps time.
///
/// # Errors
/// `ENOMEM`, and those of registering files.
pub fn init() -> Result {
    interface::init();
    worker::init()?;
    proc::init()
}
