//! Block devices: what disks have in common, whoever serves them.
//!
//! | module | what |
//! |---|---|
//! | [`request`] | [`Request`]: a transfer on its way, [`Batch`]: who waits for it, [`Backend`]: who carries it out |
//! | [`disk`] | [`Disk`]: name, numbers, limits, partitions; how it comes and goes |
//! | [`volume`] | [`Volume`]: a disk or a partition of it, with its page cache |
//! | [`mod@file`], [`ioctl`] | open device nodes |
//! | [`show`] | what sysfs and `/proc` show |
//! | [`vduse`] | disks that a process serves over virtqueues in shared memory |
//! | [`loopdev`] | files as disks |
//!
//! A read of a device node is answered from the page cache of its [`Volume`], which fills by [`Request`]s of up to
//! [`Limits::max_bytes`]; with `O_DIRECT` the requests go from the caller's call. A request names whole frames, so a backend can
//! carry it out without knowing whose they are. As on Linux a partition's cache is its own: what is written through
//! the whole disk's node is seen through the partition's after the last close or `BLKFLSBUF`.
//!
//! A backend may be a process that dies. Its requests wait for a successor; whoever waits for them can be killed, and then
//! the request goes on without a waiter: it owns its frames.
//!
//! ## Locking
//! `Disk::volumes` (sleeping) orders changes of the partition table and claims; `Volume::writing` (sleeping) writers of one
//! node. Inside either, the page cache's locks and the backend's own are taken.
//!
//! References: Linux `block/`, `include/linux/blkdev.h`, `Documentation/ABI/stable/sysfs-block`.

pub mod disk;
mod file;
mod ioctl;
pub mod loopdev;
pub mod request;
pub mod show;
mod tests;
pub mod vduse;
pub mod volume;

pub use disk::{Disk, Limits, Spec};
pub use request::{Backend, Batch, Op, Request};
pub use volume::{Claim, Volume};

use crate::Result;

/// Bytes of the unit in which sizes and places are told, whatever a device's block size is.
pub const SECTOR: u64 = 512;

/// Registers what makes block devices.
///
/// # Errors
/// `EBUSY`, `EEXIST` when numbers or names are taken.
pub fn init() -> Result {
    loopdev::init()?;
    vduse::init()
}
