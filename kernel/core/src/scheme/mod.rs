//! Schemes: how the kernel asks processes to do what is otherwise a driver's or a file system's work.
//!
//! | module | what |
//! |---|---|
//! | [`request`] | one question and its answer |
//! | [`connection`] | [`Connection`]: the queue between clients and server threads; signals, abort, hostile answers |
//! | `retain` | what was answered and is not durable yet; replays for a successor |
//! | [`server`] | [`ServerFile`]: the server's descriptor (`/dev/fuse`, `/dev/scheme`) |
//! | [`device`] | [`DeviceServer`]: a connection that publishes devices; grants and handshake |
//! | [`publish`] | what a device is in the system: number, node, sysfs |
//! | [`mod@file`] | [`OpenFile`]: a client's open file of such a device |
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
mod retain;
pub mod server;
mod tests;
pub(crate) mod tree;

use alloc::sync::Arc;

use fuse_abi::scheme::SCHEME_MINOR;

pub use connection::{Connection, Owner, Snapshot};
pub use device::DeviceServer;
pub use file::OpenFile;
pub use request::{CallOptions, Message, OnKill, Reply, ReplySize, Request};
pub use server::ServerFile;

use crate::Result;
use crate::device::register_misc;
use crate::fs::dev::CharDevice;
use crate::fs::{File, FileOps, Inode};
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
    // As device managers leave it; whether a file system may be mounted is decided by mount(2).
    register_misc("fuse", FUSE_MINOR, 0o666, Arc::new(FuseDevice))?;
    register_misc("scheme", SCHEME_MINOR, 0, Arc::new(device::SchemeDevice))?;
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
