//! Pipes, and the descriptors that wake: eventfd, timerfd, signalfd, inotify.

pub mod pipe;
pub mod splice;
pub mod syscall;

/// Tells the VFS how FIFOs are opened.
pub fn init() {
    crate::fs::dev::set_fifo_open(pipe::open_fifo);
}
