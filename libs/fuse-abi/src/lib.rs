//! The FUSE and CUSE wire format as plain data: structures, numbers, flags, and the framing of messages.
//!
//! A *request* is an [`InHeader`] and its body, a *reply* an [`OutHeader`] and its body, a *notification* an [`OutHeader`]
//! whose `unique` is 0. [`Request::parse`] and [`Reply::parse`] check the framing and nothing else: names and bodies are
//! checked by who reads them. Nothing here allocates, panics on input, or needs `std`, so that kernel, servers and fuzz
//! targets share it.
//!
//! Reference: `include/uapi/linux/fuse.h`, protocol 7.41.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

pub mod description;
mod flags;
mod message;
mod opcode;
pub mod scheme;
mod wire;

pub use flags::*;
pub use message::{FrameError, Reply, Request, dirent_len, split_dirent, split_direntplus, split_name};
pub use opcode::{NotifyCode, Opcode};
pub use wire::*;

/// Major version of the protocol.
pub const KERNEL_VERSION: u32 = 7;
/// Minor version that these definitions are of.
pub const KERNEL_MINOR_VERSION: u32 = 41;
/// Node number of the root.
pub const ROOT_ID: u64 = 1;
/// The least that a server's read buffer must hold, in bytes.
pub const MIN_READ_BUFFER: usize = 8192;
/// `unique` bit that marks a request sent again after the server died (`FUSE_UNIQUE_RESEND`).
pub const UNIQUE_RESEND: u64 = 1 << 63;
/// The longest name in a directory.
pub const NAME_MAX: usize = 1024;
