//! A network driver's side of `/dev/net/tun`: an Ethernet interface whose frames a process moves.
//!
//! [`Tap::attach`] makes the interface, or takes over the one that a predecessor left: a persistent interface keeps its
//! addresses and routes when its driver dies, and only its carrier goes. Each frame has a virtio header in front
//! ([`HEADER`] bytes), which a virtio driver passes on as it is.
//!
//! Reference: `Documentation/networking/tuntap.rst`.
#![deny(unsafe_code)]

mod sys;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linux_uapi::raw::{if_tun, ioctl};
use rustix::fs::{Mode, OFlags};

/// Bytes of `struct virtio_net_hdr_v1` in front of each frame.
pub const HEADER: usize = 12;
/// Longest name of an interface, without NUL.
pub const NAME_MAX: usize = 15;
const NAME: usize = 16;
/// `ARPHRD_ETHER`
const ETHER: u16 = 1;

/// The name of the interface of the PCI function at `address`, after its place: `0000:00:04.0` is `enp0s4`
/// (systemd.net-naming-scheme(7)).
pub fn name_by_place(address: &str) -> Option<String> {
    let (rest, function) = address.rsplit_once('.')?;
    let mut parts = rest.rsplit(':');
    let slot = u8::from_str_radix(parts.next()?, 16).ok()?;
    let bus = u8::from_str_radix(parts.next()?, 16).ok()?;
    let function: u8 = function.parse().ok()?;
    Some(if function == 0 { format!("enp{bus}s{slot}") } else { format!("enp{bus}s{slot}f{function}") })
}

/// An interface, while this process moves its frames.
pub struct Tap {
    fd: OwnedFd,
    name: String,
}

impl Tap {
    /// Makes the interface `name`, or takes it over. It has no carrier before [`Tap::set_carrier`].
    ///
    /// # Errors
    /// `EPERM`, `EBUSY` while another process has it, `EINVAL` for what is no name.
    pub fn attach(name: &str) -> io::Result<Tap> {
        Tap::attach_to(rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?, name)
    }

    /// As [`Tap::attach`], through an open `/dev/net/tun`.
    ///
    /// # Errors
    /// As [`Tap::attach`].
    pub fn attach_to(fd: OwnedFd, name: &str) -> io::Result<Tap> {
        if name.len() > NAME_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        let mut request = [0; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        let flags = if_tun::IFF_TAP | if_tun::IFF_NO_PI | if_tun::IFF_VNET_HDR | if_tun::IFF_NO_CARRIER;
        request[NAME..NAME + 2].copy_from_slice(&(flags as u16).to_ne_bytes());
        sys::request(fd.as_fd(), ioctl::TUNSETIFF, &mut request)?;
        sys::int(fd.as_fd(), ioctl::TUNSETVNETHDRSZ, HEADER as i32)?;
        let end = request[..NAME].iter().position(|b| *b == 0).unwrap_or(NAME);
        let name = String::from_utf8_lossy(&request[..end]).into_owned();
        Ok(Tap { fd, name })
    }

    /// The interface that `fd`, which came from whoever started this process, is attached to.
    ///
    /// # Errors
    /// `EBADFD` when it is attached to none.
    pub fn adopt(fd: OwnedFd) -> io::Result<Tap> {
        let mut request = [0; 40];
        sys::request(fd.as_fd(), ioctl::TUNGETIFF, &mut request)?;
        let end = request[..NAME].iter().position(|b| *b == 0).unwrap_or(NAME);
        let name = String::from_utf8_lossy(&request[..end]).into_owned();
        Ok(Tap { fd, name })
    }

    /// The descriptor, to be passed on.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets the interface outlive this process.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_persistent(&self, on: bool) -> io::Result<()> {
        sys::value(self.fd.as_fd(), ioctl::TUNSETPERSIST, on.into())
    }

    /// Sets the link address.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` for what is no station's address.
    pub fn set_mac(&self, mac: [u8; 6]) -> io::Result<()> {
        let mut request = [0; 40];
        request[NAME..NAME + 2].copy_from_slice(&ETHER.to_ne_bytes());
        request[NAME + 2..NAME + 8].copy_from_slice(&mac);
        sys::request(self.fd.as_fd(), ioctl::SIOCSIFHWADDR, &mut request)
    }

    /// Says whether there is something at the other end.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_carrier(&self, on: bool) -> io::Result<()> {
        sys::int(self.fd.as_fd(), ioctl::TUNSETCARRIER, on.into())
    }

    /// The next frame that the system sends, header in front; `None`: there is none now.
    ///
    /// # Errors
    /// What read(2) says.
    pub fn receive(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.fd, into) {
            Ok(len) => Ok(Some(len)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the system a frame that came, header in front. False: it does not want it (the interface is down).
    ///
    /// # Errors
    /// What write(2) says.
    pub fn send(&self, frame: &[u8]) -> io::Result<bool> {
        match rustix::io::write(&self.fd, frame) {
            Ok(_) => Ok(true),
            // EIO: down. EINVAL: malformed, which came from outside and is nobody's fault here.
            Err(rustix::io::Errno::IO | rustix::io::Errno::INVAL) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::name_by_place;

    #[test]
    fn names_come_from_the_place_on_the_bus() {
        assert_eq!(name_by_place("0000:00:04.0").as_deref(), Some("enp0s4"));
        assert_eq!(name_by_place("0000:01:1f.2").as_deref(), Some("enp1s31f2"));
        assert_eq!(name_by_place("nowhere"), None);
    }
}
