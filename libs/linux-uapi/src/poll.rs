//! Structures of `poll(2)`, `select(2)` and `epoll(7)`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct pollfd`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PollFd {
    /// The descriptor; negative ones are passed over.
    pub fd: i32,
    /// What is waited for.
    pub events: u16,
    /// What holds.
    pub revents: u16,
}

/// `struct epoll_event`, which is packed on x86-64.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
pub struct EpollEvent {
    /// `EPOLL*` bits.
    pub events: u32,
    /// The program's own.
    pub data: u64,
}

/// The sixth argument of `pselect6(2)`: a signal mask and its size.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SigsetArg {
    /// Address of the mask, or 0.
    pub addr: u64,
    /// Its size.
    pub size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_linux() {
        assert_eq!(size_of::<PollFd>(), 8);
        assert_eq!(size_of::<EpollEvent>(), 12);
        assert_eq!(core::mem::offset_of!(EpollEvent, data), 4);
        assert_eq!(size_of::<SigsetArg>(), 16);
    }
}
