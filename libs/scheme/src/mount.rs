//! [`MountConnection`]: what the server of a mounted file system holds.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use fuse_abi::scheme::{Done, Live};

use crate::{Errno, connection::passed_descriptor, sys};

/// The name under which init passes it.
const PASSED_NAME: &str = "fuse";

/// A descriptor of `/dev/fuse`, mounted or not. The calls are those of a *resumable* mount (`fuse_abi::scheme`); on others
/// and elsewhere than on Ursa they fail.
#[derive(Debug)]
pub struct MountConnection(OwnedFd);

/// What has happened to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing is mounted with it, or nothing that can be resumed.
    Nothing,
    /// It is mounted, and nobody has served it.
    Mounted,
    /// A server ended. These inodes the kernel has.
    Served(Vec<Live>),
}

impl MountConnection {
    /// The one that init passed, if it passed one.
    pub fn from_environment() -> Option<MountConnection> {
        passed_descriptor(PASSED_NAME, &|name| std::env::var(name).ok()).map(|fd| MountConnection(sys::passed(fd)))
    }

    /// Takes over from a server that ended, if there was one.
    ///
    /// # Errors
    /// `ENODEV` when the mount is gone.
    pub fn take_over(&self) -> io::Result<Before> {
        match sys::live(self.0.as_fd()) {
            Ok(live) => Ok(Before::Served(live)),
            Err(Errno::NODATA) => Ok(Before::Mounted),
            Err(Errno::NOTTY | Errno::PERM) => Ok(Before::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// All requests up to `upto` are durable, and these.
    ///
    /// # Errors
    /// `EINVAL` for numbers that were never given out, `ENODEV` when the mount is gone.
    pub fn committed(&self, upto: u64, also: &[Done]) -> io::Result<()> {
        Ok(sys::committed(self.0.as_fd(), upto, also)?)
    }

    /// The numbers of the requests that come again and may change something.
    ///
    /// # Errors
    /// `ENODEV` when the mount is gone.
    pub fn outstanding(&self) -> io::Result<Vec<u64>> {
        Ok(sys::outstanding(self.0.as_fd())?)
    }

    /// Has them sent again; how many come.
    ///
    /// # Errors
    /// `ENODEV` when the mount is gone.
    pub fn resume(&self) -> io::Result<usize> {
        sys::resume(self.0.as_fd())
    }
}

impl From<OwnedFd> for MountConnection {
    fn from(fd: OwnedFd) -> MountConnection {
        MountConnection(fd)
    }
}

impl AsFd for MountConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
