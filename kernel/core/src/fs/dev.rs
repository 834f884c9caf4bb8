//! Device numbers and the registry of character and block devices.
//!
//! Opening a device node looks its number up here; the file that results is the device's own [`FileOps`]. A registration
//! covers a range of minors of one major. `/proc/devices` lists the majors.
//!
//! References: mknod(2), makedev(3), `Documentation/admin-guide/devices.txt`.

use alloc::{collections::BTreeMap, sync::Arc, vec::Vec};

use ursa_hal::sync::{Once, RwSpinLock};

use super::{file::FileOps, inode::Inode};
use crate::{Errno, Result};

/// Joins a device number as the kernel keeps it in 32 bits (`new_encode_dev`).
pub const fn make_dev(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// The major part.
pub const fn major(dev: u32) -> u32 {
    dev >> 8 & 0xfff
}

/// The minor part.
pub const fn minor(dev: u32) -> u32 {
    dev & 0xff | dev >> 12 & 0xfff00
}

/// The C library's 64-bit `dev_t`, as `stat` reports it on x86-64: the same bits.
pub const fn user_dev(dev: u32) -> u64 {
    dev as u64
}

/// A character device (or a family of them).
pub trait CharDevice: Send + Sync {
    /// Opens minor `minor(inode.rdev)`. `flags` are `O_*`.
    ///
    /// # Errors
    /// `ENXIO`, `ENODEV`, `EBUSY`, `EACCES` … as the device has it.
    fn open(&self, inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>>;
}

struct Range {
    first: u32,
    count: u32,
    name: &'static str,
    device: Arc<dyn CharDevice>,
}

type Table = RwSpinLock<BTreeMap<u32, Vec<Range>>>;

static CHAR: Table = RwSpinLock::new(BTreeMap::new());
static BLOCK: Table = RwSpinLock::new(BTreeMap::new());

fn register(table: &Table, major: u32, first: u32, count: u32, name: &'static str, dev: Arc<dyn CharDevice>) -> Result {
    let mut table = table.write();
    let ranges = table.entry(major).or_default();
    if ranges.iter().any(|r| first < r.first + r.count && r.first < first + count) {
        return Err(Errno::EBUSY);
    }
    ranges.push(Range { first, count, name, device: dev });
    Ok(())
}

fn find(table: &Table, dev: u32) -> Option<Arc<dyn CharDevice>> {
    let table = table.read();
    let (major, minor) = (major(dev), minor(dev));
    let range = table.get(&major)?.iter().find(|r| minor >= r.first && minor - r.first < r.count)?;
    Some(range.device.clone())
}

fn unregister(table: &Table, major: u32, first: u32) {
    let mut table = table.write();
    let mut gone = None;
    if let Some(ranges) = table.get_mut(&major) {
        if let Some(i) = ranges.iter().position(|r| r.first == first) {
            gone = Some(ranges.swap_remove(i));
        }
        if ranges.is_empty() {
            table.remove(&major);
        }
    }
    drop(table);
    drop(gone);
}

/// Registers minors `first..first + count` of `major`; `name` is shown in `/proc/devices`.
///
/// # Errors
/// `EBUSY` when a number is taken.
pub fn register_chrdev(major: u32, first: u32, count: u32, name: &'static str, dev: Arc<dyn CharDevice>) -> Result {
    register(&CHAR, major, first, count, name, dev)
}

/// Takes a registration back by its first number.
pub fn unregister_chrdev(major: u32, first: u32) {
    unregister(&CHAR, major, first);
}

/// Registers a block device; opening works as for character devices.
///
/// # Errors
/// `EBUSY` when a number is taken.
pub fn register_blkdev(major: u32, first: u32, count: u32, name: &'static str, dev: Arc<dyn CharDevice>) -> Result {
    register(&BLOCK, major, first, count, name, dev)
}

/// Takes a registration back by its first number.
pub fn unregister_blkdev(major: u32, first: u32) {
    unregister(&BLOCK, major, first);
}

/// The character device with number `dev`.
pub fn chrdev(dev: u32) -> Option<Arc<dyn CharDevice>> {
    find(&CHAR, dev)
}

/// The block device with number `dev`.
pub fn blkdev(dev: u32) -> Option<Arc<dyn CharDevice>> {
    find(&BLOCK, dev)
}

/// Opens a FIFO: given by the pipe code. May block until the other end is opened.
pub type FifoOpen = fn(&Arc<Inode>, u32) -> Result<Arc<dyn FileOps>>;

static FIFO: Once<FifoOpen> = Once::new();

/// Says how FIFOs are opened.
pub fn set_fifo_open(open: FifoOpen) {
    let _ = FIFO.set(open);
}

/// Opens a FIFO.
///
/// # Errors
/// `ENXIO` before the pipe code is there or, as fifo(7) says, for a non-blocking writer without a reader.
pub fn open_fifo(inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>> {
    match FIFO.get() {
        Some(open) => open(inode, flags),
        None => Err(Errno::ENXIO),
    }
}

/// Majors and names for `/proc/devices`: character devices, then block devices.
pub fn list() -> (Vec<(u32, &'static str)>, Vec<(u32, &'static str)>) {
    fn names(table: &Table) -> Vec<(u32, &'static str)> {
        let mut out: Vec<(u32, &'static str)> = Vec::new();
        for (major, ranges) in table.read().iter() {
            for range in ranges {
                if !out.contains(&(*major, range.name)) {
                    out.push((*major, range.name));
                }
            }
        }
        out
    }
    (names(&CHAR), names(&BLOCK))
}
