//! What sysfs tells of the machine and the kernel itself, beside devices.

use alloc::{format, vec::Vec};

use super::{Value, directory};
use crate::{Result, device::uevent};

/// Fills the tree.
///
/// # Errors
/// None in practice: the names are free.
pub fn init() -> Result {
    let kernel = directory("kernel")?;
    let seqnum = |out: &mut Vec<u8>| {
        out.extend_from_slice(format!("{}\n", uevent::sequence()).as_bytes());
        Ok(())
    };
    kernel.add_file("uevent_seqnum", 0o444, Value::text(seqnum))?;
    Ok(())
}
