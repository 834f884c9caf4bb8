//! Network interfaces: the loopback interface, as a machine has it before anything was configured.
//!
//! There is no IP stack behind it yet: it is down and has no address. What netlink ([`super::netlink`]) and the ioctls that
//! any socket takes ([`ioctl`]) tell of it comes from here.
//!
//! References: netdevice(7), `net/core/dev_ioctl.c`.

use linux_uapi::raw::ioctl as io;

use crate::{
    Errno, Result,
    process::{Cap, capable},
    user::UserPtr,
};

/// An interface.
pub struct Interface {
    /// Its number.
    pub index: i32,
    /// Its name.
    pub name: &'static [u8],
    /// `ARPHRD_*`
    pub kind: u16,
    /// `IFF_*`
    pub flags: u32,
    /// Longest packet.
    pub mtu: u32,
    /// Packets that wait to be sent, at most.
    pub queue_len: u32,
}

/// The loopback interface: `ARPHRD_LOOPBACK`, `IFF_LOOPBACK`.
pub const LOOPBACK: Interface = Interface { index: 1, name: b"lo", kind: 772, flags: 8, mtu: 65536, queue_len: 1000 };

/// Bytes of a name in `struct ifreq`, and of the structure.
const NAME: usize = 16;
const IFREQ: usize = 40;
/// Requests that change an interface and are known to Linux for any socket.
const CHANGES: [u32; 6] =
    [io::SIOCSIFFLAGS, io::SIOCSIFMTU, io::SIOCSIFHWADDR, io::SIOCSIFTXQLEN, io::SIOCSIFNAME, io::SIOCSIFMETRIC];

/// The requests about interfaces that sockets of every family take. `ENOTTY`: it is none of them.
///
/// # Errors
/// `ENODEV` for an interface that is not there, `EFAULT`, `EPERM` and `EOPNOTSUPP` for changes.
pub fn ioctl(cmd: u32, arg: usize) -> Result<i64> {
    if CHANGES.contains(&cmd) {
        return Err(if capable(Cap::NetAdmin) { Errno::EOPNOTSUPP } else { Errno::EPERM });
    }
    let is_known = matches!(
        cmd,
        io::SIOCGIFNAME
            | io::SIOCGIFINDEX
            | io::SIOCGIFFLAGS
            | io::SIOCGIFMTU
            | io::SIOCGIFHWADDR
            | io::SIOCGIFTXQLEN
            | io::SIOCGIFMETRIC
    );
    if !is_known {
        return Err(Errno::ENOTTY);
    }
    let pointer = UserPtr::<[u8; IFREQ]>::new(arg as u64);
    let mut request = pointer.read()?;
    let lo = &LOOPBACK;
    if cmd == io::SIOCGIFNAME {
        if request[NAME..NAME + 4] != lo.index.to_ne_bytes() {
            return Err(Errno::ENODEV);
        }
        request[..NAME].fill(0);
        request[..lo.name.len()].copy_from_slice(lo.name);
    } else {
        let len = request[..NAME].iter().position(|b| *b == 0).unwrap_or(NAME);
        if request[..len] != *lo.name {
            return Err(Errno::ENODEV);
        }
        let value = &mut request[NAME..];
        match cmd {
            io::SIOCGIFINDEX => value[..4].copy_from_slice(&lo.index.to_ne_bytes()),
            io::SIOCGIFFLAGS => value[..2].copy_from_slice(&(lo.flags as u16).to_ne_bytes()),
            io::SIOCGIFMTU => value[..4].copy_from_slice(&lo.mtu.to_ne_bytes()),
            io::SIOCGIFTXQLEN => value[..4].copy_from_slice(&lo.queue_len.to_ne_bytes()),
            io::SIOCGIFMETRIC => value[..4].fill(0),
            // A `struct sockaddr`: the kind as family, then the address, which is zero.
            _ => {
                value[..16].fill(0);
                value[..2].copy_from_slice(&lo.kind.to_ne_bytes());
            }
        }
    }
    pointer.write(&request)?;
    Ok(0)
}
