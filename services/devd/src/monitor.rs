//! Announcements of devices: the kernel's, and devd's own in libudev's form.
//!
//! Both travel over netlink (NETLINK_KOBJECT_UEVENT): the kernel sends to group 1, devd to group 2. Only what the
//! kernel itself sent is believed. An announcement of devd begins with a header that holds hashes of subsystem, kind and tags,
//! so that listeners' socket filters can leave messages out without waking anybody.
//!
//! References: netlink(7), the kernel's `lib/kobject_uevent.c`, systemd's `monitor-netlink`.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessageOwned, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, UnixCredentials,
        bind, recvmsg, sendto, setsockopt, socket, sockopt,
    },
};

use crate::{device::Properties, event::Event, text};

/// The kernel's group.
const KERNEL_GROUP: u32 = 1;
/// The group that libudev listens on.
const UDEV_GROUP: u32 = 2;
/// Room for the announcements of a whole start.
const RECEIVE_BUFFER: usize = 128 << 20;
/// The kernel's messages are at most 2 KiB of properties and a path.
const MESSAGE_LIMIT: usize = 16 << 10;
const MAGIC: u32 = 0xfeed_cafe;
const HEADER_SIZE: u32 = 40;

fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkKObjectUEvent)?)
}

/// What came from the kernel's socket.
#[derive(Debug)]
pub enum Received {
    /// An announcement.
    Event(Properties),
    /// A message that is none, or that somebody else sent.
    Ignored,
    /// Nothing is waiting.
    Empty,
    /// There was no room: announcements are lost.
    Lost,
}

/// The socket on which the kernel announces devices.
#[derive(Debug)]
pub struct KernelSocket(OwnedFd);

impl KernelSocket {
    /// Opens it.
    ///
    /// # Errors
    /// What the system calls give.
    pub fn open() -> io::Result<KernelSocket> {
        let socket = open()?;
        // A kernel without it, or a process without the right, has its usual room.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        setsockopt(&socket, sockopt::PassCred, &true)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        Ok(KernelSocket(socket))
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// What recvmsg(2) gives, but for what [`Received`] has.
    pub fn receive(&self) -> io::Result<Received> {
        let mut buffer = [0; MESSAGE_LIMIT];
        let mut control = cmsg_space!(UnixCredentials);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let message = match recvmsg::<NetlinkAddr>(
            self.0.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Ok(Received::Empty),
            Err(Errno::EINTR) => return Ok(Received::Ignored),
            Err(Errno::ENOBUFS) => return Ok(Received::Lost),
            Err(error) => return Err(error.into()),
        };
        let from_kernel = message.address.is_some_and(|address| address.pid() == 0 && address.groups() == KERNEL_GROUP);
        let by_root = message.cmsgs().is_ok_and(|mut all| {
            all.any(|one| matches!(one, ControlMessageOwned::ScmCredentials(who) if who.uid() == 0))
        });
        let (length, whole) = (message.bytes, !message.flags.contains(MsgFlags::MSG_TRUNC));
        if !from_kernel || !by_root || !whole {
            return Ok(Received::Ignored);
        }
        Ok(parse(&buffer[..length]).map_or(Received::Ignored, Received::Event))
    }
}

impl AsFd for KernelSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Reads the kernel's form: `ACTION@DEVPATH`, then properties, each with a NUL at its end.
#[must_use]
pub fn parse(message: &[u8]) -> Option<Properties> {
    let mut strings = message.split(|&byte| byte == 0).filter(|part| !part.is_empty());
    let head = text::lossy(strings.next()?);
    let (action, path) = head.split_once('@')?;
    let mut properties = Properties::new();
    for part in strings {
        if let Some((key, value)) = text::lossy(part).split_once('=') {
            properties.insert(key.to_owned(), value.to_owned());
        }
    }
    // The head is a summary of what follows; a message that contradicts itself is none.
    let agrees = |key: &str, value: &str| properties.get(key).is_some_and(|given| given == value);
    (agrees("ACTION", action) && agrees("DEVPATH", path)).then_some(properties)
}

/// Announces devices to libudev's listeners.
#[derive(Debug)]
pub struct Announcer(OwnedFd);

impl Announcer {
    /// Opens a socket to announce on.
    ///
    /// # Errors
    /// What socket(2) gives.
    pub fn open() -> io::Result<Announcer> {
        Ok(Announcer(open()?))
    }

    /// Announces an event that rules have been applied to.
    ///
    /// # Errors
    /// What sendto(2) gives, but for nobody listening.
    pub fn announce(&self, event: &Event) -> io::Result<()> {
        match sendto(self.0.as_raw_fd(), &packet(event), &NetlinkAddr::new(0, UDEV_GROUP), MsgFlags::empty()) {
            Ok(_) | Err(Errno::ECONNREFUSED) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// An event in libudev's form.
#[must_use]
pub fn packet(event: &Event) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in event.environment() {
        body.extend_from_slice(key.as_bytes());
        body.push(b'=');
        body.extend_from_slice(value.as_bytes());
        body.push(0);
    }
    let subsystem = event.device.subsystem().map_or(0, |name| hash(name.as_bytes()));
    let devtype = event.device.devtype().map_or(0, |name| hash(name.as_bytes()));
    let bloom = event.record.current_tags.iter().fold(0, |bits, tag| bits | bloom(tag));
    let mut packet = b"libudev\0".to_vec();
    // The magic number and the hashes are for socket filters, which load big-endian words.
    packet.extend_from_slice(&MAGIC.to_be_bytes());
    packet.extend_from_slice(&HEADER_SIZE.to_ne_bytes());
    packet.extend_from_slice(&HEADER_SIZE.to_ne_bytes());
    packet.extend_from_slice(&(body.len() as u32).to_ne_bytes());
    packet.extend_from_slice(&subsystem.to_be_bytes());
    packet.extend_from_slice(&devtype.to_be_bytes());
    packet.extend_from_slice(&((bloom >> 32) as u32).to_be_bytes());
    packet.extend_from_slice(&(bloom as u32).to_be_bytes());
    packet.extend_from_slice(&body);
    packet
}

/// The bits that a tag sets in the header.
fn bloom(tag: &str) -> u64 {
    let hash = hash(tag.as_bytes());
    (0..4).fold(0, |bits, part| bits | 1 << (hash >> (6 * part) & 63))
}

/// MurmurHash2, 32 bits, seed 0, on little-endian words: what libudev compares with.
fn hash(bytes: &[u8]) -> u32 {
    const FACTOR: u32 = 0x5bd1_e995;
    let mut hash = bytes.len() as u32;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        let mut value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(FACTOR);
        value ^= value >> 24;
        hash = hash.wrapping_mul(FACTOR) ^ value.wrapping_mul(FACTOR);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (at, &byte) in rest.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * at);
        }
        hash = hash.wrapping_mul(FACTOR);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(FACTOR);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::device::Paths;

    #[test]
    fn the_kernels_messages_are_read() {
        let message =
            b"add@/devices/virtual/input/input3\0ACTION=add\0DEVPATH=/devices/virtual/input/input3\0SUBSYSTEM=input\0\
            NAME=\"a=b\"\0EMPTY=\0SEQNUM=12\0";
        let properties = parse(message).unwrap();
        assert_eq!(properties["NAME"], "\"a=b\"");
        assert_eq!(properties["EMPTY"], "");
        assert_eq!(properties["SEQNUM"], "12");
        for bad in [
            &b""[..],
            b"\0",
            b"add",
            b"add@/x\0ACTION=remove\0DEVPATH=/x\0",
            b"libudev\0\xfe\xed\xca\xfe",
            b"\xff\xff@\xff",
        ] {
            assert!(parse(bad).is_none());
        }
    }

    #[test]
    fn hashes_are_murmurs() {
        // Values of the reference implementation.
        assert_eq!(hash(b""), 0);
        assert_eq!(hash(b"a"), 0x92685f5e);
        assert_eq!(hash(b"abcd"), 0x2687_3021);
    }

    #[test]
    fn the_header_is_libudevs() {
        let text = b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=input\0DEVTYPE=t\0SEQNUM=1\0";
        let mut event = Event::new(&Arc::new(Paths::default()), parse(text).unwrap()).unwrap();
        event.record.current_tags.insert("seat".into());
        event.record.tags.insert("seat".into());
        let packet = packet(&event);
        assert_eq!(&packet[..12], b"libudev\0\xfe\xed\xca\xfe");
        let word = |at: usize| u32::from_ne_bytes(packet[at..at + 4].try_into().unwrap());
        assert_eq!((word(12), word(16), word(20)), (40, 40, packet.len() as u32 - 40));
        assert_eq!(packet[24..28], hash(b"input").to_be_bytes());
        let body = text::lossy(&packet[40..]);
        assert!(body.starts_with("ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=input\0DEVTYPE=t\0SEQNUM=1\0"));
        assert!(body.ends_with("TAGS=:seat:\0CURRENT_TAGS=:seat:\0"));
    }
}
