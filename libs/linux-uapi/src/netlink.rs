//! Netlink structures: `linux/netlink.h`, `linux/rtnetlink.h`, `linux/if_addr.h`, and the filter of `linux/filter.h`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct sockaddr_nl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SockAddrNl {
    /// `AF_NETLINK`
    pub family: u16,
    /// Padding.
    pub pad: u16,
    /// Port; 0 is the kernel.
    pub pid: u32,
    /// Groups 1 to 32 as bits.
    pub groups: u32,
}

/// `struct nlmsghdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NlMsgHdr {
    /// Bytes, this header included.
    pub len: u32,
    /// Kind of message.
    pub kind: u16,
    /// `NLM_F_*`
    pub flags: u16,
    /// Number that an answer repeats.
    pub seq: u32,
    /// Port of the sender.
    pub pid: u32,
}

/// `struct ifinfomsg`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IfInfoMsg {
    /// `AF_*`
    pub family: u8,
    /// Padding.
    pub pad: u8,
    /// `ARPHRD_*`
    pub kind: u16,
    /// Index of the interface.
    pub index: i32,
    /// `IFF_*`
    pub flags: u32,
    /// Which flags change.
    pub change: u32,
}

/// `struct sock_fprog` of a 64-bit program.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SockFprog {
    /// Number of instructions.
    pub len: u16,
    /// Padding.
    pub pad: [u16; 3],
    /// Address of `struct sock_filter[len]`.
    pub filter: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layouts_are_those_of_linux() {
        assert_eq!(size_of::<SockAddrNl>(), 12);
        assert_eq!(offset_of!(SockAddrNl, pid), 4);
        assert_eq!(size_of::<NlMsgHdr>(), 16);
        assert_eq!(offset_of!(NlMsgHdr, flags), 6);
        assert_eq!(size_of::<IfInfoMsg>(), 16);
        assert_eq!(offset_of!(IfInfoMsg, index), 4);
        assert_eq!(size_of::<SockFprog>(), 16);
        assert_eq!(offset_of!(SockFprog, filter), 8);
    }
}
