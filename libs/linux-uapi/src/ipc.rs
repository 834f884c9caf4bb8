//! Structures of `signalfd(2)` and `inotify(7)`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct signalfd_siginfo`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields are those of signalfd(2)")]
pub struct SignalFdInfo {
    pub ssi_signo: u32,
    pub ssi_errno: i32,
    pub ssi_code: i32,
    pub ssi_pid: u32,
    pub ssi_uid: u32,
    pub ssi_fd: i32,
    pub ssi_tid: u32,
    pub ssi_band: u32,
    pub ssi_overrun: u32,
    pub ssi_trapno: u32,
    pub ssi_status: i32,
    pub ssi_int: i32,
    pub ssi_ptr: u64,
    pub ssi_utime: u64,
    pub ssi_stime: u64,
    pub ssi_addr: u64,
    pub ssi_addr_lsb: u16,
    pub pad2: u16,
    pub ssi_syscall: i32,
    pub ssi_call_addr: u64,
    pub ssi_arch: u32,
    pub pad: [u8; 28],
}

impl Default for SignalFdInfo {
    fn default() -> Self {
        zerocopy::FromZeros::new_zeroed()
    }
}

/// `struct inotify_event` without its name.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InotifyEvent {
    /// The watch; -1 for an overflow.
    pub wd: i32,
    /// What happened.
    pub mask: u32,
    /// Joins the halves of a rename.
    pub cookie: u32,
    /// Bytes of the name that follows, padding included.
    pub len: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_linux() {
        assert_eq!(size_of::<SignalFdInfo>(), 128);
        assert_eq!(core::mem::offset_of!(SignalFdInfo, ssi_ptr), 48);
        assert_eq!(core::mem::offset_of!(SignalFdInfo, ssi_arch), 96);
        assert_eq!(size_of::<InotifyEvent>(), 16);
    }
}
