//! `eventfd(2)`: a counter that wakes.
//!
//! [`EventFd::signal`] may be called from interrupt context: drivers' interrupts arrive as eventfds.
//! References: `eventfd(2)`, `fs/eventfd.c`.

use alloc::sync::Arc;
use core::fmt;

use linux_uapi::raw::general as uapi;
use ursa_hal::sync::IrqLock;

use crate::fs::{File, FileOps, Sink, Source};
use crate::poll::{PollEvents, PollTable};
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// The counter's largest value; adding beyond it waits.
const MAX: u64 = u64::MAX - 1;

/// A counter behind a descriptor.
pub struct EventFd {
    count: IrqLock<u64>,
    /// Each read takes one (`EFD_SEMAPHORE`).
    semaphore: bool,
    queue: Arc<WaitQueue>,
}

impl EventFd {
    /// Makes a counter that starts at `initial`.
    pub fn new(initial: u32, semaphore: bool) -> Arc<Self> {
        Arc::new(EventFd { count: IrqLock::new(initial.into()), semaphore, queue: Arc::new(WaitQueue::new()) })
    }

    /// Adds `n`, never waiting; an overflow sticks at the maximum, which polls as an error.
    pub fn signal(&self, n: u64) {
        let mut count = self.count.lock();
        *count = count.saturating_add(n);
        drop(count);
        self.queue.wake_events(PollEvents::READABLE);
    }

    fn try_take(&self) -> Option<u64> {
        let mut count = self.count.lock();
        let taken = match *count {
            0 => return None,
            _ if self.semaphore => 1,
            n => n,
        };
        *count -= taken;
        Some(taken)
    }

    fn try_add(&self, n: u64) -> Option<()> {
        let mut count = self.count.lock();
        if *count > MAX || n > MAX - *count {
            return None;
        }
        *count += n;
        Some(())
    }
}

impl FileOps for EventFd {
    fn read(&self, f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        if dst.remaining() < 8 {
            return Err(Errno::EINVAL);
        }
        let value = match self.try_take() {
            Some(value) => value,
            None if f.is_nonblocking() => return Err(Errno::EAGAIN),
            None => self.queue.wait_interruptible(None, || self.try_take())?,
        };
        self.queue.wake_events(PollEvents::WRITABLE);
        dst.put_all(&value.to_ne_bytes())?;
        Ok(8)
    }

    fn write(&self, f: &File, src: &mut Source<'_>, _pos: u64) -> Result<usize> {
        if src.remaining() < 8 {
            return Err(Errno::EINVAL);
        }
        let mut bytes = [0; 8];
        src.take_all(&mut bytes)?;
        let n = u64::from_ne_bytes(bytes);
        if n == u64::MAX {
            return Err(Errno::EINVAL);
        }
        match self.try_add(n) {
            Some(()) => {}
            None if f.is_nonblocking() => return Err(Errno::EAGAIN),
            None => self.queue.wait_interruptible(None, || self.try_add(n))?,
        }
        self.queue.wake_events(PollEvents::READABLE);
        Ok(8)
    }

    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        if let Some(pt) = pt {
            pt.register(&self.queue);
        }
        let count = *self.count.lock();
        let mut events = PollEvents::empty();
        if count > 0 {
            events |= PollEvents::POLLIN;
        }
        if count == u64::MAX {
            events |= PollEvents::POLLERR;
        }
        if count < MAX {
            events |= PollEvents::POLLOUT;
        }
        events
    }

    fn fdinfo(&self, _f: &File, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "eventfd-count: {:16x}", *self.count.lock())?;
        writeln!(out, "eventfd-semaphore: {}", u8::from(self.semaphore))
    }
}

/// Makes the file of `eventfd2(2)`.
///
/// # Errors
/// `EINVAL` for unknown flags.
pub fn create(initial: u32, flags: u32) -> Result<Arc<File>> {
    if flags & !(uapi::EFD_CLOEXEC | uapi::EFD_NONBLOCK | uapi::EFD_SEMAPHORE) != 0 {
        return Err(Errno::EINVAL);
    }
    let counter = EventFd::new(initial, flags & uapi::EFD_SEMAPHORE != 0);
    Ok(File::anon(counter, "anon_inode:[eventfd]", uapi::O_RDWR | flags & uapi::EFD_NONBLOCK))
}
