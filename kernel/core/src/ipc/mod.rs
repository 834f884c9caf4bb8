//! Pipes, and the descriptors that wake: eventfd, timerfd, signalfd, inotify.

pub mod eventfd;
pub mod inotify;
pub mod pipe;
pub mod signalfd;
pub mod splice;
pub mod syscall;
pub mod timerfd;

/// Tells the VFS how FIFOs are opened.
pub fn init() {
    crate::fs::dev::set_fifo_open(pipe::open_fifo);
}
