//! Pipes, the descriptors that wake (eventfd, timerfd, signalfd, inotify), POSIX message queues and System V IPC.

pub mod eventfd;
pub mod inotify;
pub mod mqueue;
pub mod namespace;
pub mod pipe;
pub mod signalfd;
pub mod splice;
pub mod syscall;
pub mod sysv;
pub mod timerfd;

/// Tells the VFS how FIFOs are opened, and shows System V's tables in procfs.
///
/// # Errors
/// Those of [`crate::fs::procfs::register`].
pub fn init() -> crate::Result {
    crate::fs::dev::set_fifo_open(pipe::open_fifo);
    mqueue::init();
    sysv::init()
}
