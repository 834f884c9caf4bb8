//! Pipes, the descriptors that wake (eventfd, timerfd, signalfd, inotify), and System V shared memory and semaphores.

pub mod eventfd;
pub mod inotify;
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
    sysv::init()
}
