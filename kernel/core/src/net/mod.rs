//! Sockets.
//!
//! A [`Socket`] is the open file; what it does is its family's [`SocketOps`]. Families: `AF_UNIX` ([`unix`]), `AF_INET` and
//! `AF_INET6` ([`inet`]), `AF_NETLINK` ([`netlink`]), `AF_PACKET` ([`packet`]); others are refused with `EAFNOSUPPORT`.

pub mod inet;
mod interface;
mod message;
pub mod netlink;
mod options;
pub mod packet;
mod pending_error;
pub mod socket;
pub mod syscall;
mod tun;
pub mod unix;

pub use message::{Ancillary, Control, Incoming, Outgoing};
pub use options::Options;
pub use socket::{Socket, SocketOps};

use crate::Result;

/// Makes the loopback interface, the network's files in `/proc` and `/sys`, and `/dev/net/tun`.
///
/// # Errors
/// Those of registering files and devices.
pub fn init() -> Result {
    inet::init()?;
    tun::init()
}
