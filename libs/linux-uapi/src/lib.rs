//! Linux's x86-64 user ABI as plain data: error numbers, constants and structures.
//!
//! Constants come from `linux-raw-sys` and are re-exported as [`raw`]. Structures that cross the user boundary are
//! `#[repr(C)]` types of our own that derive zerocopy's traits, so that they can be copied without `unsafe`; each has a
//! test of its size and of the offsets of its fields. One file per uapi header family.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

mod errno;

pub mod block;
pub mod dma_heap;
pub mod dmabuf;
pub mod input;
pub mod iommufd;
pub mod ipc;
pub mod mount;
pub mod netlink;
pub mod poll;
pub mod process;
pub mod ptrace;
pub mod sched;
pub mod signal;
pub mod socket;
pub mod stat;
pub mod sysv;
pub mod time;
pub mod tty;
pub mod vduse;
pub mod vfio;
pub mod virtio_blk;
pub mod vt;

pub use errno::Errno;
pub use linux_raw_sys as raw;
pub use zerocopy;
