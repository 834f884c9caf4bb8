//! `NETLINK_KOBJECT_UEVENT`: the kernel's messages about devices.

use alloc::vec::Vec;

/// Sends a uevent to the listeners of the kernel's group.
pub fn multicast(message: Vec<u8>) {
    drop(message);
}
