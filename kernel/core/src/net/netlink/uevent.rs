//! `NETLINK_KOBJECT_UEVENT`: the kernel's messages about devices, and those that a privileged program injects.
//!
//! References: `lib/kobject_uevent.c` (`uevent_net_rcv_skb`, `uevent_net_broadcast`).

use alloc::{sync::Arc, vec::Vec};

use super::{KERNEL, Packet, Protocol};
use crate::{
    Errno, Result,
    device::uevent,
    process::{Cap, capable},
};

/// The kernel's group.
const GROUP: u32 = 1;
/// The longest message that may be injected (`UEVENT_BUFFER_SIZE`), its header and `SEQNUM` included.
const BUFFER_SIZE: usize = 2048;
/// `SEQNUM=`, twenty digits, NUL.
const SEQNUM_MAX: usize = 28;

/// Sends a uevent to the listeners of the kernel's group.
pub fn multicast(data: Vec<u8>) {
    Protocol::Uevent.multicast(&Arc::new(Packet { data, port: 0, group: GROUP, credentials: KERNEL }));
}

/// A program sent `body` to the kernel: it goes to all listeners as if it were the kernel's own, with the next number.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` for a message that is too long.
pub fn inject(body: &[u8], total: usize) -> Result {
    if !capable(Cap::SysAdmin) {
        return Err(Errno::EPERM);
    }
    if total + SEQNUM_MAX > BUFFER_SIZE {
        return Err(Errno::EINVAL);
    }
    uevent::broadcast(body.to_vec());
    Ok(())
}
