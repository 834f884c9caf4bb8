//! Netlink sockets (`AF_NETLINK`).

pub mod uevent;
