//! Schemes: how the kernel asks processes to do what is otherwise a driver's or a file system's work.
//!
//! | module | what |
//! |---|---|
//! | [`request`] | one question and its answer |
//! | [`connection`] | [`Connection`]: the queue between clients and server threads; signals, abort, hostile answers |
//! | [`server`] | [`ServerFile`]: the server's descriptor (`/dev/fuse`, `/dev/scheme`) |
//! | [`device`] | [`DeviceServer`]: a connection that publishes devices; grants and handshake |
//! | [`publish`] | what a device is in the system: number, node, sysfs |
//! | [`file`] | [`OpenFile`]: a client's open file of such a device |
//! | [`extension`] | the ioctls of a granted connection |
//! | [`tree`] | `/scheme` and `/proc/scheme` |
//!
//! The wire is FUSE's (`libs/fuse-abi`); what Ursa adds to it for devices is in `fuse_abi::scheme`. A file system's
//! mount uses [`Connection`] alone, with an [`Owner`] of its own.
//!
//! References: `include/uapi/linux/fuse.h`; Linux `fs/fuse/dev.c`, `fs/fuse/cuse.c`.

pub mod connection;
pub mod device;
mod extension;
pub mod file;
mod publish;
pub mod request;
pub mod server;
mod tree;

use alloc::sync::Arc;

use fuse_abi::scheme::{SCHEME_MAJOR, SCHEME_MINOR};
use linux_uapi::raw::general as uapi;

pub use connection::{Connection, Owner, Snapshot};
pub use device::DeviceServer;
pub use file::OpenFile;
pub use request::{CallOptions, Message, OnKill, Reply, ReplySize};
pub use server::ServerFile;

use crate::Result;
use crate::fs::dev::{CharDevice, make_dev, register_chrdev};
use crate::fs::{File, FileOps, Inode, devfs};
use crate::{dmabuf, ipc, mm};

/// The minor of `/dev/fuse` among the miscellaneous devices.
const FUSE_MINOR: u32 = 229;

struct FuseDevice;

impl CharDevice for FuseDevice {
    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(ServerFile::default()))
    }
}

/// Registers `/dev/fuse` and `/dev/scheme`, and mounts `/scheme`.
///
/// # Errors
/// `EBUSY` when a number is taken, `EEXIST` when a name is.
pub fn init() -> Result {
    register_chrdev(SCHEME_MAJOR, FUSE_MINOR, 1, "misc", Arc::new(FuseDevice))?;
    devfs::create_node("fuse", uapi::S_IFCHR | 0o666, make_dev(SCHEME_MAJOR, FUSE_MINOR))?;
    register_chrdev(SCHEME_MAJOR, SCHEME_MINOR, 1, "misc", Arc::new(device::SchemeDevice))?;
    devfs::create_node("scheme", uapi::S_IFCHR | 0o600, make_dev(SCHEME_MAJOR, SCHEME_MINOR))?;
    tree::init()
}

/// Whether a descriptor of `file` may go from a server to a caller or back: memory and what signals, nothing that leads
/// to further rights.
fn is_passable(file: &File) -> bool {
    mm::memfd::is_memfd(file)
        || file.ops::<ipc::eventfd::EventFd>().is_some()
        || file.ops::<dmabuf::DmaBuf>().is_some()
        || file.ops::<dmabuf::SyncFile>().is_some()
}
