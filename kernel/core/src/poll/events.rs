//! The readiness mask, [`PollEvents`].

use bitflags::bitflags;

bitflags! {
    /// Readiness of a file: the `POLL*` bits of `poll(2)`, which are also epoll's, and epoll's input flags.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PollEvents: u32 {
        /// Data can be read (or a connection accepted) without blocking.
        const POLLIN = 0x0001;
        /// Something exceptional: out-of-band data, a changed attribute, a packet-mode status.
        const POLLPRI = 0x0002;
        /// A write would not block.
        const POLLOUT = 0x0004;
        /// An error is pending, or the other end of a pipe is gone. Always reported.
        const POLLERR = 0x0008;
        /// The other end hung up. Always reported.
        const POLLHUP = 0x0010;
        /// Not an open descriptor (`poll` only).
        const POLLNVAL = 0x0020;
        /// Normal data can be read.
        const POLLRDNORM = 0x0040;
        /// Priority band data can be read.
        const POLLRDBAND = 0x0080;
        /// Normal data can be written.
        const POLLWRNORM = 0x0100;
        /// Priority band data can be written.
        const POLLWRBAND = 0x0200;
        /// Unused by Linux; accepted.
        const POLLMSG = 0x0400;
        /// Unused by Linux; accepted.
        const POLLREMOVE = 0x1000;
        /// The peer closed its writing half.
        const POLLRDHUP = 0x2000;
        /// The file goes away: epoll forgets it (kernel-internal).
        const POLLFREE = 0x4000;
        /// epoll: wake only one of the exclusive waiters.
        const EPOLLEXCLUSIVE = 1 << 28;
        /// epoll: keep the system awake while the event is handled.
        const EPOLLWAKEUP = 1 << 29;
        /// epoll: disable after one report.
        const EPOLLONESHOT = 1 << 30;
        /// epoll: edge triggered.
        const EPOLLET = 1 << 31;

        /// What a readable file reports.
        const READABLE = Self::POLLIN.bits() | Self::POLLRDNORM.bits();
        /// What a writable file reports.
        const WRITABLE = Self::POLLOUT.bits() | Self::POLLWRNORM.bits();
        /// What is reported whether asked for or not.
        const ALWAYS = Self::POLLERR.bits() | Self::POLLHUP.bits();
        /// What a file without a `poll` of its own reports (Linux's `DEFAULT_POLLMASK`): never blocks.
        const DEFAULT = Self::READABLE.bits() | Self::WRITABLE.bits();
        /// epoll's input flags, which are not events.
        const EPOLL_FLAGS = Self::EPOLLEXCLUSIVE.bits()
            | Self::EPOLLWAKEUP.bits()
            | Self::EPOLLONESHOT.bits()
            | Self::EPOLLET.bits();
    }
}
