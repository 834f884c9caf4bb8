//! [`Channel`]: what a server asks of the kernel.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use crate::{Device, Errno, Failure, IoctlReply, MmapBacking, OpenFlags, Opened, Ready};

/// What a descriptor of the caller turned out to be.
#[derive(Debug)]
pub enum Grabbed {
    /// An object of a granted type (memfd, dma-buf, sync_file, eventfd), now also the server's.
    Fd(OwnedFd),
    /// An open file of this very server.
    Own {
        /// The server's number of it.
        fh: u64,
    },
}

/// A new open file of the server, to be installed in the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileToInstall {
    /// The node whose open file it will look like.
    pub node: u64,
    /// The server's number of the open file, flags and first readiness.
    pub opened: Opened,
    /// `O_RDWR`, `O_CLOEXEC`, `O_NONBLOCK`…
    pub o_flags: u32,
}

/// The result of a request that is answered later.
#[derive(Debug)]
pub enum Outcome {
    /// Of `READ` and `ATTR_SHOW`.
    Data(Vec<u8>),
    /// Of `WRITE`: bytes taken.
    Written(usize),
    /// Of `IOCTL`.
    Ioctl(IoctlReply),
    /// Of `SCHEME_MMAP`.
    Mmap(MmapBacking),
    /// Of `SCHEME_FAULT`.
    Fault(MmapBacking),
    /// Of `OPEN`.
    Open(Opened),
    /// Of requests without a result.
    Done,
}

/// Everything that a server asks of the kernel: a [`Connection`](crate::Connection), or a
/// [`FakeChannel`](crate::fake::FakeChannel) in tests. The methods may be called from any thread.
pub trait Channel: Send + Sync {
    /// Adds a device.
    ///
    /// # Errors
    /// `EPERM`: a number outside the grant; `EEXIST`: a name or cookie that exists; `EINVAL`: a description that is none;
    /// `ENOENT`: a parent that is not there.
    fn publish(&self, device: &Device) -> io::Result<()>;

    /// Removes a device: uevent "remove", then no new opens.
    ///
    /// # Errors
    /// `ENOENT`.
    fn unpublish(&self, cookie: u64) -> io::Result<()>;

    /// Sends a uevent for a device.
    ///
    /// # Errors
    /// `ENOENT`, `EINVAL`.
    fn uevent(&self, cookie: u64, action: &str, env: &[(&str, &str)]) -> io::Result<()>;

    /// Changes a static attribute, and wakes who polls it.
    ///
    /// # Errors
    /// `ENOENT`.
    fn set_attr(&self, cookie: u64, name: &str, value: &[u8]) -> io::Result<()>;

    /// Says what an open file is ready for, and wakes who waits for it.
    ///
    /// # Errors
    /// `ENOENT`: there is no such open file.
    fn ready(&self, fh: u64, mask: Ready) -> Result<(), Errno>;

    /// Reads memory of a request's caller; the result is how many bytes.
    ///
    /// # Errors
    /// `EAGAIN`: not resident; `EFAULT`; `ENOENT`: the request is not open.
    fn copy_in(&self, unique: u64, addr: u64, into: &mut [u8]) -> Result<usize, Errno>;

    /// Writes memory of a request's caller; the result is how many bytes.
    ///
    /// # Errors
    /// As [`Channel::copy_in`].
    fn copy_out(&self, unique: u64, addr: u64, data: &[u8]) -> Result<usize, Errno>;

    /// Gives the caller a descriptor, which appears when the request is answered without error. The result is its number
    /// in the caller.
    ///
    /// # Errors
    /// `EMFILE`, `EINVAL` (a type that is not granted), `ENOENT`.
    fn install_fd(&self, unique: u64, fd: BorrowedFd<'_>, cloexec: bool) -> Result<i32, Errno>;

    /// Gives the caller a new open file of this server, as [`Channel::install_fd`] does.
    ///
    /// # Errors
    /// As [`Channel::install_fd`].
    fn install_file(&self, unique: u64, file: &FileToInstall) -> Result<i32, Errno>;

    /// Takes a descriptor of the caller.
    ///
    /// # Errors
    /// `EBADF`, `EINVAL` (a type that is not granted), `ENOENT`.
    fn grab_fd(&self, unique: u64, fd: i32) -> Result<Grabbed, Errno>;

    /// Unmaps pages of faulting mappings; the next touch asks again. `fh` `None` means all open files.
    ///
    /// # Errors
    /// `EPERM`, `EINVAL`.
    fn revoke(&self, fh: Option<u64>, offset: u64, len: u64) -> Result<(), Errno>;

    /// Attaches an object to the connection, for a successor of this server.
    ///
    /// # Errors
    /// `EEXIST`, `EINVAL`, `ENOSPC`.
    fn keep(&self, key: u64, fd: BorrowedFd<'_>) -> io::Result<()>;

    /// A new descriptor of what was kept.
    ///
    /// # Errors
    /// `ENOENT`.
    fn keep_get(&self, key: u64) -> io::Result<OwnedFd>;

    /// The keys of what was kept.
    ///
    /// # Errors
    /// `EPERM`.
    fn keep_list(&self) -> io::Result<Vec<u64>>;

    /// Forgets what was kept.
    ///
    /// # Errors
    /// `ENOENT`.
    fn keep_drop(&self, key: u64) -> io::Result<()>;

    /// Answers a request that a method left for [`Answer::Later`](crate::Answer::Later).
    ///
    /// # Errors
    /// `ENOENT`: the caller is gone (killed), which a server may ignore.
    fn reply(&self, unique: u64, result: Result<Outcome, Failure>) -> io::Result<()>;
}

impl Opened {
    /// The same with other flags.
    pub fn with_flags(self, flags: OpenFlags) -> Opened {
        Opened { flags, ..self }
    }
}
