//! Ursa's extensions to CUSE: what a *granted* connection can do beyond Linux's protocol.
//!
//! A device server holds a connection that `SCHEME_IOC_CREATE` on `/dev/scheme` made. It reads requests and writes
//! replies as any FUSE server does; what it asks of the kernel by itself are the ioctls here, all synchronous, with an
//! errno as result. Each needs its bit of [`Extensions`] in the grant (`EPERM` without); [`SCHEME_IOC_PUBLISH`],
//! [`SCHEME_IOC_UNPUBLISH`], [`SCHEME_IOC_UEVENT`], [`SCHEME_IOC_ATTR`] and [`SCHEME_IOC_REPLY_WAIT`] need none.
//!
//! Device requests are plain FUSE ones whose `nodeid` is the *cookie* that the server gave the device node, and the new
//! opcodes [`Opcode::SchemeMmap`](crate::Opcode::SchemeMmap) … with the structures here.
//!
//! # Resumable file systems
//!
//! A mount with the option `resumable` (`CAP_SYS_ADMIN`) is offered [`InitFlags::RESUMABLE`](crate::InitFlags). When the
//! server takes it, its clients outlive it as long as somebody holds a descriptor of the connection. Requests that
//! [change files](crate::Opcode::changes_files) are then retained after their answer until the server has said with
//! [`SCHEME_IOC_COMMITTED`] that they are durable. A successor
//!
//! 1. asks for the look-up counts that the kernel has ([`SCHEME_IOC_LIVE`]), before it cleans up anything;
//! 2. says what its predecessor had made durable ([`SCHEME_IOC_COMMITTED`]);
//! 3. asks which numbers it is still to hear of ([`SCHEME_IOC_OUTSTANDING`]);
//! 4. has them sent again ([`SCHEME_IOC_RESUME`]): first, one by one and in the order of their answers, what was answered
//!    and is not durable; then what was never answered; then all else. Each of the first two has [`UNIQUE_RESEND`](crate::UNIQUE_RESEND) in
//!    its number, and those of the first kind (and those of the second that [`Committed::also`] named) carry a [`Replay`]
//!    extension.
//!
//! The kernel asks for a commit with `SYNCFS` when it retains much, and lets callers wait when it retains too much.
//!
//! The numbers are private to Ursa: magic 0xF5, opcodes from 6000 on, the top two `FOPEN_` bits, extension 0x5552,
//! `INIT` flags 61 and 62.

use bitflags::bitflags;

use crate::wire::wire;

/// The device on which a connection is created.
pub const SCHEME_DEVICE: &str = "/dev/scheme";
/// The character device number of [`SCHEME_DEVICE`]: major.
pub const SCHEME_MAJOR: u32 = 10;
/// The character device number of [`SCHEME_DEVICE`]: minor.
pub const SCHEME_MINOR: u32 = 249;
/// The longest description text that [`SCHEME_IOC_PUBLISH`] takes, in bytes.
pub const DESCRIPTION_MAX: usize = 64 << 10;
/// The most device number ranges of one grant.
pub const RANGES_MAX: usize = 64;
/// The most bytes that an `IOCTL` request or reply carries inline (`_IOC_SIZE`'s 14 bits).
pub const INLINE_MAX: usize = 16 << 10;
/// The most ranges that an `IOCTL` may ask to be made resident before it is sent again (`FUSE_IOCTL_MAX_IOV`).
pub const RETRY_MAX: usize = 256;
/// The most bytes that one [`SCHEME_IOC_COPY`] moves; a longer one is cut to this.
pub const COPY_MAX: usize = 1 << 20;

/// `MmapIn::fh` and `Revoke::fh` that mean every open file of the connection.
pub const ALL_FILES: u64 = u64::MAX;

bitflags! {
    /// What a connection was granted (`Create::ext_mask`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Extensions: u32 {
        /// [`SCHEME_IOC_COPY`].
        const COPY = 1 << 0;
        /// [`SCHEME_IOC_INSTALL_FD`], [`SCHEME_IOC_INSTALL_FILE`], [`SCHEME_IOC_GRAB_FD`].
        const FILES = 1 << 1;
        /// Answers to `SCHEME_MMAP` and `SCHEME_FAULT`.
        const MMAP = 1 << 2;
        /// [`SCHEME_IOC_REVOKE`].
        const REVOKE = 1 << 3;
        /// [`SCHEME_IOC_READY`] and [`OpenFlags::READY`](crate::OpenFlags::READY).
        const READY = 1 << 4;
        /// [`SCHEME_IOC_KEEP`] and its relatives.
        const KEEP = 1 << 5;
    }
}

bitflags! {
    /// `Create::flags`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct CreateFlags: u32 {
        /// The clients outlive the server: requests wait for a successor on the same connection.
        const RESUMABLE = 1 << 0;
    }
}

bitflags! {
    /// `ReplyWait::flags`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ReplyWaitFlags: u32 {
        /// `EAGAIN` when no request waits; the reply has been taken all the same.
        const NONBLOCK = 1 << 0;
        /// `EAGAIN` also when the descriptor `ReplyWait::events` is readable, before a request is taken: a server of a device
        /// waits for its requests and its interrupts in one call.
        const EVENTS = 1 << 1;
    }
}

bitflags! {
    /// `MmapOut::flags`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct MmapFlags: u32 {
        /// No object now: the pages are asked for with `SCHEME_FAULT` as they are touched.
        const FAULT = 1 << 0;
    }
}

/// `IoctlIn::flags`: the open file has `O_NONBLOCK`.
pub const IOCTL_NONBLOCK: u32 = 1 << 31;

/// `Copy::dir`: from the caller's memory to the server's.
pub const COPY_FROM_CALLER: u32 = 0;
/// `Copy::dir`: from the server's memory to the caller's.
pub const COPY_TO_CALLER: u32 = 1;

/// `MmapOut::cache`: write-back, ordinary memory.
pub const CACHE_WRITE_BACK: u32 = 0;
/// `MmapOut::cache`: write-combining.
pub const CACHE_WRITE_COMBINING: u32 = 1;
/// `MmapOut::cache`: uncached.
pub const CACHE_UNCACHED: u32 = 2;

wire! {
    /// [`SCHEME_IOC_CREATE`]. `name` is NUL-padded: letters, digits, `-`, `_`, `.`; `ranges` points to `nranges` [`Range`]s.
    struct Create(56) { name: [u8; 32], ext_mask: u32, flags: u32, ranges: u64, nranges: u32, padding: u32 }

    /// Device numbers that the connection may publish: `count` minors of `major` from `first_minor` on.
    struct Range(16) { major: u32, first_minor: u32, count: u32, padding: u32 }

    /// [`SCHEME_IOC_REPLY_WAIT`]. `reply_len` may be 0: only wait. `events` matters with [`ReplyWaitFlags::EVENTS`] only.
    struct ReplyWait(40) { reply: u64, reply_len: u64, recv: u64, recv_len: u64, flags: u32, events: i32 }

    /// [`SCHEME_IOC_PUBLISH`]: a description, records `key=value` that each end in NUL.
    struct Publish(16) { desc: u64, desc_len: u64 }

    /// [`SCHEME_IOC_UNPUBLISH`].
    struct Unpublish(8) { cookie: u64 }

    /// [`SCHEME_IOC_UEVENT`] (text: `ACTION`, then `KEY=VALUE`s) and [`SCHEME_IOC_ATTR`] (text: `name=VALUE`); each record ends in NUL.
    struct DeviceText(24) { cookie: u64, text: u64, text_len: u64 }

    /// [`SCHEME_IOC_READY`]: `mask` is a set of `POLL…` bits.
    struct Ready(16) { fh: u64, mask: u32, padding: u32 }

    /// [`SCHEME_IOC_COPY`].
    struct Copy(40) { unique: u64, addr: u64, buf: u64, len: u64, dir: u32, padding: u32 }

    /// [`SCHEME_IOC_INSTALL_FD`]: `flags` is 0 or `O_CLOEXEC`.
    struct InstallFd(16) { unique: u64, fd: i32, flags: u32 }

    /// [`SCHEME_IOC_INSTALL_FILE`]: `open_flags` and `ready` as in `OpenOut`, `o_flags` as in open(2).
    struct InstallFile(40) { unique: u64, cookie: u64, fh: u64, open_flags: u32, ready: u32, o_flags: u32, padding: u32 }

    /// [`SCHEME_IOC_GRAB_FD`]: with `EXDEV`, `fh` is filled in.
    struct GrabFd(24) { unique: u64, fd: i32, padding: u32, fh: u64 }

    /// [`SCHEME_IOC_REVOKE`].
    struct Revoke(24) { fh: u64, offset: u64, len: u64 }

    /// [`SCHEME_IOC_KEEP`]; [`SCHEME_IOC_KEEP_GET`] and [`SCHEME_IOC_KEEP_DROP`] use `key` alone.
    struct Keep(16) { key: u64, fd: i32, padding: u32 }

    /// [`SCHEME_IOC_KEEP_LIST`]: room for `count` keys at `keys`; the result of the ioctl is how many there are.
    struct KeepList(16) { keys: u64, count: u64 }

    /// [`SCHEME_IOC_COMMITTED`]: the effects of all requests up to number `upto` are durable, and those of `count` others
    /// ([`Done`]) at `also`.
    struct Committed(24) { upto: u64, also: u64, count: u64 }

    /// A request that is durable before one with a lower number is. `result`: the node that it made, or 0.
    struct Done(16) { unique: u64, result: u64 }

    /// [`SCHEME_IOC_LIVE`] and [`SCHEME_IOC_OUTSTANDING`]: room for `count` entries at `at`; the result of the ioctl is how
    /// many there are.
    struct Room(16) { at: u64, count: u64 }

    /// An inode that the kernel has: how often it has looked it up.
    struct Live(16) { node: u64, lookups: u64 }

    /// Extension of a request that was done before ([`EXT_REPLAY`]). `result`: the node that it made, or 0. `sec` and
    /// `nsec`: when it was answered, by the clock.
    struct Replay(32) { size: u32, kind: u32, flags: u32, nsec: u32, sec: i64, result: u64 }

    /// `SCHEME_MMAP`: `prot` and `flags` as in mmap(2).
    struct MmapIn(32) { fh: u64, offset: u64, len: u64, prot: u32, flags: u32 }

    /// Reply to `SCHEME_MMAP`: `fd` is a descriptor of the server, `offset` the byte in it that the mapping begins with.
    struct MmapOut(24) { fd: i32, cache: u32, offset: u64, flags: u32, padding: u32 }

    /// `SCHEME_FAULT`: `offset` is one of the mapping's own, a multiple of the page size.
    struct FaultIn(32) { fh: u64, offset: u64, len: u64, write: u32, padding: u32 }

    /// Reply to `SCHEME_FAULT`: `len` bytes of `fd` from `offset` on stand where the fault was.
    struct FaultOut(24) { fd: i32, cache: u32, offset: u64, len: u64 }

    /// `ATTR_SHOW` (`size`: the most bytes to answer) and `ATTR_STORE` (followed by `size` bytes).
    struct AttrIn(16) { attr: u64, size: u32, padding: u32 }
}

/// [`Replay::kind`]
pub const EXT_REPLAY: u32 = 0x5552;
/// [`Replay::flags`]: the effect is durable; nothing is to be done but to answer.
pub const REPLAY_DURABLE: u32 = 1;
/// The most entries of [`Committed::also`].
pub const ALSO_MAX: usize = 4096;

/// The letter of every ioctl here.
pub const SCHEME_IOC_MAGIC: u8 = 0xf5;

/// `_IOC` of `<asm-generic/ioctl.h>`; `dir` 1 = `_IOW`, 2 = `_IOR`, 3 = both.
const fn ioc<T>(dir: u32, nr: u32) -> u32 {
    dir << 30 | (size_of::<T>() as u32) << 16 | (SCHEME_IOC_MAGIC as u32) << 8 | nr
}

/// On [`SCHEME_DEVICE`]: makes a connection; the result is its descriptor (close-on-exec). Needs `CAP_SYS_ADMIN`.
pub const SCHEME_IOC_CREATE: u32 = ioc::<Create>(1, 0x00);
/// Answers a request and waits for the next one; the result is the number of bytes received.
pub const SCHEME_IOC_REPLY_WAIT: u32 = ioc::<ReplyWait>(1, 0x01);
/// Adds a device. `EPERM` for a number outside the grant, `EEXIST` for a name or cookie in use.
pub const SCHEME_IOC_PUBLISH: u32 = ioc::<Publish>(1, 0x02);
/// Removes a device.
pub const SCHEME_IOC_UNPUBLISH: u32 = ioc::<Unpublish>(1, 0x03);
/// Sends a uevent for a device.
pub const SCHEME_IOC_UEVENT: u32 = ioc::<DeviceText>(1, 0x04);
/// Changes the value of a static attribute and wakes who polls it.
pub const SCHEME_IOC_ATTR: u32 = ioc::<DeviceText>(1, 0x05);
/// Says what an open file is ready for.
pub const SCHEME_IOC_READY: u32 = ioc::<Ready>(1, 0x06);
/// Copies from or to the memory of a request's caller; the result is the number of bytes.
pub const SCHEME_IOC_COPY: u32 = ioc::<Copy>(1, 0x07);
/// Gives the caller a descriptor when the request is answered without error; the result is its number.
pub const SCHEME_IOC_INSTALL_FD: u32 = ioc::<InstallFd>(1, 0x08);
/// Gives the caller a new open file of this connection; the result is its number.
pub const SCHEME_IOC_INSTALL_FILE: u32 = ioc::<InstallFile>(1, 0x09);
/// Takes a duplicate of a descriptor of the caller; the result is its number in the server.
pub const SCHEME_IOC_GRAB_FD: u32 = ioc::<GrabFd>(3, 0x0a);
/// Unmaps pages of mappings that answer `SCHEME_FAULT`.
pub const SCHEME_IOC_REVOKE: u32 = ioc::<Revoke>(1, 0x0b);
/// Attaches an open file to the connection under a key.
pub const SCHEME_IOC_KEEP: u32 = ioc::<Keep>(1, 0x0c);
/// The result is a new descriptor of what was kept under a key.
pub const SCHEME_IOC_KEEP_GET: u32 = ioc::<Keep>(1, 0x0d);
/// Lists the keys.
pub const SCHEME_IOC_KEEP_LIST: u32 = ioc::<KeepList>(1, 0x0e);
/// Forgets what was kept under a key.
pub const SCHEME_IOC_KEEP_DROP: u32 = ioc::<Keep>(1, 0x0f);
/// Sends what was received but not answered again, with `UNIQUE_RESEND`; the result is how many requests. No argument.
pub const SCHEME_IOC_RESUME: u32 = (SCHEME_IOC_MAGIC as u32) << 8 | 0x10;
/// On a resumable mount: requests are durable. `EINVAL` for numbers that were never sent.
pub const SCHEME_IOC_COMMITTED: u32 = ioc::<Committed>(1, 0x11);
/// On a resumable mount: takes over; `ENODATA` when no server has read anything yet. Lists [`Live`] inodes; `FORGET`s that no server has read are in the counts.
pub const SCHEME_IOC_LIVE: u32 = ioc::<Room>(1, 0x12);
/// On a resumable mount: lists the numbers (`u64`) of requests that change files and come again.
pub const SCHEME_IOC_OUTSTANDING: u32 = ioc::<Room>(1, 0x13);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ioctl_numbers_are_fixed() {
        // A C program computes the same with _IOW and _IOWR; tests/abi/scheme has them in C.
        assert_eq!(SCHEME_IOC_CREATE, 0x4038_f500);
        assert_eq!(SCHEME_IOC_REPLY_WAIT, 0x4028_f501);
        assert_eq!(SCHEME_IOC_COPY, 0x4028_f507);
        assert_eq!(SCHEME_IOC_GRAB_FD, 0xc018_f50a);
        assert_eq!(SCHEME_IOC_RESUME, 0xf510);
    }
}
