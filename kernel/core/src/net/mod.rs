//! Sockets.
//!
//! A [`Socket`] is the open file; what it does is its family's [`SocketOps`]. Families: `AF_UNIX` ([`unix`]), `AF_NETLINK`
//! ([`netlink`]); others are refused with `EAFNOSUPPORT` until they come.

mod interface;
mod message;
pub mod netlink;
mod options;
mod pending_error;
pub mod socket;
pub mod syscall;
pub mod unix;

pub use message::{Control, Incoming, Outgoing};
pub use options::Options;
pub use socket::{Socket, SocketOps};
