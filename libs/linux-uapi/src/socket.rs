//! Socket structures: `linux/socket.h`, `linux/un.h`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct msghdr` (`user_msghdr`).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MsgHdr {
    /// Address buffer.
    pub name: u64,
    /// Its length.
    pub name_len: i32,
    /// Padding.
    pub pad: u32,
    /// Array of `struct iovec`.
    pub iov: u64,
    /// Its length.
    pub iov_len: u64,
    /// Control messages.
    pub control: u64,
    /// Their length in bytes.
    pub control_len: u64,
    /// `MSG_*` on return.
    pub flags: u32,
    /// Padding.
    pub pad2: u32,
}

/// `struct mmsghdr`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MMsgHdr {
    /// The message.
    pub hdr: MsgHdr,
    /// Bytes that were moved.
    pub len: u32,
    /// Padding.
    pub pad: u32,
}

/// `struct cmsghdr`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CMsgHdr {
    /// Bytes, this header included.
    pub len: u64,
    /// Originating protocol.
    pub level: i32,
    /// Kind.
    pub kind: i32,
}

/// `struct ucred`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ucred {
    /// Process.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// `struct linger`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Linger {
    /// Whether to linger.
    pub onoff: i32,
    /// Seconds.
    pub linger: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_linux() {
        assert_eq!(size_of::<MsgHdr>(), 56);
        assert_eq!(core::mem::offset_of!(MsgHdr, control), 32);
        assert_eq!(size_of::<MMsgHdr>(), 64);
        assert_eq!(size_of::<CMsgHdr>(), 16);
        assert_eq!(size_of::<Ucred>(), 12);
    }
}
