//! Why an operation failed.

use rustix::io::Errno;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the caller asked cannot be done; the number is what Linux's ext4 would give.
    #[error("{0}")]
    Errno(Errno),
    /// The device failed.
    #[error("device: {0}")]
    Io(#[from] std::io::Error),
    /// What is on the disk contradicts itself (`EUCLEAN`). The file system becomes read-only.
    #[error("corrupt: {0} ({1})")]
    Corrupt(&'static str, u64),
    /// The file system uses something that this library does not know (`EINVAL` at mount).
    #[error("unsupported: {0}")]
    Unsupported(String),
}

/// The result of an operation.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The error number that a program sees.
    pub fn errno(&self) -> Errno {
        match self {
            Error::Errno(errno) => *errno,
            Error::Io(error) => Errno::from_io_error(error).unwrap_or(Errno::IO),
            Error::Corrupt(..) => Errno::UCLEAN,
            Error::Unsupported(_) => Errno::INVAL,
        }
    }

    /// Whether the caller, rather than the disk, is the reason.
    pub fn is_callers(&self) -> bool {
        matches!(self, Error::Errno(_))
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Error {
        Error::Errno(errno)
    }
}
