//! `devd`: the device manager, made so that libudev's clients cannot tell it from systemd-udevd.
//!
//! The kernel announces devices on a netlink socket. For each announcement ([`monitor`], [`queue`]) devd applies Debian's udev rules
//! ([`rules`], with the builtins that they call, [`builtin`]), gives the node its owner, mode and links ([`node`]), stores what it
//! found in `/run/udev` ([`record`]) and announces the device again to whoever listens with libudev. `udevadm`
//! talks to it over [`control`]. The files, the socket's messages and the rules' language are systemd's, since
//! every client reads them by itself.
//!
//! The library is the whole machinery over [`device::Paths`], so that tests work on folders of their own; `main.rs` is the daemon.
#![deny(unsafe_code)]

pub mod builtin;
pub mod control;
pub mod daemon;
pub mod device;
pub mod event;
pub mod log;
pub mod monitor;
pub mod node;
pub mod process;
pub mod program;
pub mod queue;
pub mod record;
pub mod rules;
pub mod text;
