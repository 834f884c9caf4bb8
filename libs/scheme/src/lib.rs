//! Server side of a scheme: what a process links to serve character devices to unmodified programs.
//!
//! A *device server* has one [`Connection`] to the kernel. It [publishes](Channel::publish) any number of [`Device`]s (a
//! directory in sysfs, a node in `/dev`, a uevent) and implements [`DeviceServer`], whose methods are the requests that
//! programs' system calls become. Everything that a server asks of the kernel in turn is in the trait [`Channel`], so that
//! a server's whole logic runs on the host against [`fake::FakeChannel`], with [`fake::FakeClient`] in a program's place.
//!
//! A method answers at once ([`Answer::Now`]), keeps the request for later ([`Answer::Later`], then [`Channel::reply`] with
//! the request's `unique`), or fails ([`Failure`]): with an errno, or with a request to bring pages of the caller in and to
//! send the same request again. `?` works in it from [`Errno`] and from the methods of [`Cx`] that touch the caller's
//! memory.
//!
//! ```no_run
//! # use scheme::*;
//! struct Zero;
//! impl DeviceServer for Zero {
//!     fn open(&mut self, _: &Cx<'_>, _node: u64, _flags: u32) -> Result<Opened, Failure> {
//!         Ok(Opened::new(1, Ready::IN))
//!     }
//!     fn read(&mut self, _: &Cx<'_>, _fh: u64, size: usize, _nonblock: bool) -> Reply<Vec<u8>> {
//!         Ok(Answer::Now(vec![0; size]))
//!     }
//! }
//! let grant = Grant::load("/usr/lib/ursa/zero/scheme.toml".as_ref())?;
//! let connection = Connection::from_environment_or_create(&grant)?;
//! connection.publish(&Device::new(1, "zero1").class("misc").node(NodeKind::Char, 10, 200, 0o666, "zero1"))?;
//! connection.run(&mut Zero)?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! The wire is FUSE's and CUSE's with the extensions of [`fuse_abi::scheme`]. `unsafe` stands in `sys.rs` alone, which makes
//! the extension ioctls.
//!
//! References: `fuse(4)`, `include/uapi/linux/fuse.h`, Linux's `Documentation/filesystems/fuse.rst`.

#![deny(unsafe_code)]

mod channel;
mod connection;
mod device;
mod dispatch;
pub mod fake;
mod grant;
mod journal;
mod mount;
mod server;
mod sys;
mod watchdog;

pub use channel::{Channel, FileToInstall, Grabbed, Outcome};
pub use connection::Connection;
pub use device::{Device, NodeKind, Parent};
pub use dispatch::Dispatched;
pub use fuse_abi::OpenFlags;
pub use grant::{Extensions, Grant, NumberRange};
pub use journal::{Journal, Table};
pub use mount::{Before, MountConnection};
pub use rustix::io::Errno;
pub use server::{
    Answer, Cache, Cx, DeviceServer, Failure, FaultRequest, Ioctl, IoctlReply, MmapBacking, MmapRequest, Opened, Range,
    Ready, Reply,
};
