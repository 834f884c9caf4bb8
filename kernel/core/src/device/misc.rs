//! Miscellaneous devices: character devices of major 10 with a minor number each, of class "misc".
//!
//! References: `drivers/char/misc.c`, `Documentation/admin-guide/devices.txt`.

use alloc::sync::Arc;

use super::{Device, DeviceSpec, Devnode};
use crate::{
    Result,
    fs::dev::{self, CharDevice},
};

// Minors in the range that Linux gives out dynamically: 125 udmabuf, 124 sw_sync, 122 iommu, 121 vtcon.

/// The major number.
pub const MISC_MAJOR: u32 = 10;

/// Registers a miscellaneous device: its number, `/sys/devices/virtual/misc/NAME` and `/dev/NAME`. Mode 0: for root alone.
///
/// # Errors
/// `EBUSY` when the number is taken, and those of [`Device::register`].
pub fn register_misc(name: &str, minor: u32, mode: u32, device: Arc<dyn CharDevice>) -> Result<Arc<Device>> {
    dev::register_chrdev(MISC_MAJOR, minor, 1, "misc", device)?;
    let node = Devnode::char(name, MISC_MAJOR, minor, mode);
    Device::register(DeviceSpec::class("misc", name).node(node))
        .inspect_err(|_| dev::unregister_chrdev(MISC_MAJOR, minor))
}
