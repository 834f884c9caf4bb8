//! Readiness: what a file can do without blocking, and waiting for it.
//!
//! Every [`File`](crate::fs) answers `poll(table) -> PollEvents`: its readiness now and, when a [`PollTable`] is given, the
//! wait queues that will be woken when that changes. The rule that makes it race-free: *register first, then look*.
//! Key types: [`PollEvents`] (the readiness mask, Linux's `POLL*`/`EPOLL*` bits), [`PollTable`] (collects registrations).
//! References: `poll(2)`, `epoll(7)`, `include/uapi/asm-generic/poll.h`, `include/uapi/linux/eventpoll.h`.

mod epoll;
mod events;
pub mod syscall;
mod table;
mod wait;

pub use epoll::Epoll;
pub use events::PollEvents;
pub use table::{PollTable, Registrations};
pub use wait::Poller;
