//! The kernel's messages about devices, as far as `init` needs them: that some device came or went.
//!
//! What came is then read from sysfs, so a message that was lost or forged costs nothing but a look.
//! References: netlink(7), NETLINK_KOBJECT_UEVENT.

use std::{
    io::Result,
    os::fd::{AsFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind,
    netlink::{self, SocketAddrNetlink},
    recv, socket_with,
};

/// Group of the kernel's own messages.
const KERNEL: u32 = 1;
/// Longer than any uevent.
const MESSAGE_MAX: usize = 8192;

/// Opens a socket that hears of devices.
///
/// # Errors
/// Those of socket(2) and bind(2).
pub fn open() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::KOBJECT_UEVENT))?;
    bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
    Ok(socket)
}

/// Reads what has come; whether a device that a driver may have came or went.
pub fn device_changes(socket: impl AsFd) -> bool {
    let mut changes = false;
    let mut buffer = [0u8; MESSAGE_MAX];
    loop {
        match recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((len, _)) => changes |= concerns(&buffer[..len]),
            Err(rustix::io::Errno::INTR) => {}
            // Messages were lost: look for yourself.
            Err(rustix::io::Errno::NOBUFS) => changes = true,
            Err(_) => return changes,
        }
    }
}

/// Whether a message is about a driver's file or a device of a bus, coming or going.
fn concerns(message: &[u8]) -> bool {
    let has = |line: &str| message.split(|byte| *byte == 0).any(|part| part == line.as_bytes());
    // A device can be driven when its file is there.
    has("ACTION=add") && has("SUBSYSTEM=vfio-dev")
        || has("ACTION=remove") && (has("SUBSYSTEM=pci") || has("SUBSYSTEM=platform"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_driven_counts() {
        assert!(concerns(b"add@/devices/x\0ACTION=add\0SUBSYSTEM=vfio-dev\0SEQNUM=1\0"));
        assert!(concerns(b"remove@/devices/x\0ACTION=remove\0SUBSYSTEM=pci\0"));
        assert!(!concerns(b"add@/devices/x\0ACTION=add\0SUBSYSTEM=pci\0"));
        assert!(!concerns(b"add@/devices/x\0ACTION=add\0SUBSYSTEM=input\0"));
        assert!(!concerns(b""));
    }
}
