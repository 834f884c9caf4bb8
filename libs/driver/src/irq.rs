//! Interrupts as eventfds.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use crate::vfio::{Backend, IrqAction};

/// One interrupt. Its descriptor is readable when the device interrupted.
pub struct Irq {
    event: OwnedFd,
    /// Set for a line that the kernel masks at each interrupt.
    masked: Option<Masked>,
}

struct Masked {
    backend: Arc<dyn Backend>,
    index: u32,
    start: u32,
}

impl Irq {
    /// Makes the eventfds for `count` interrupts of `index` and has them triggered.
    pub(crate) fn enable(
        backend: &Arc<dyn Backend>,
        index: u32,
        start: u32,
        count: u32,
        automasked: bool,
    ) -> io::Result<Vec<Self>> {
        let events = (0..count)
            .map(|_| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK))
            .collect::<Result<Vec<_>, _>>()?;
        let fds: Vec<_> = events.iter().map(AsFd::as_fd).collect();
        backend.set_irqs(index, start, IrqAction::Trigger(&fds))?;
        drop(fds);
        Ok((start..)
            .zip(events)
            .map(|(start, event)| Self {
                event,
                masked: automasked.then(|| Masked { backend: backend.clone(), index, start }),
            })
            .collect())
    }

    /// How often the device interrupted since the last call; 0 when it did not. Never waits.
    ///
    /// # Errors
    /// read(2)'s.
    pub fn take(&self) -> io::Result<u64> {
        let mut count = [0; 8];
        match rustix::io::read(&self.event, &mut count) {
            Ok(_) => Ok(u64::from_ne_bytes(count)),
            Err(rustix::io::Errno::AGAIN) => Ok(0),
            Err(e) => Err(e.into()),
        }
    }

    /// Lets a line (INTx, a platform interrupt) interrupt again, after the driver has silenced the device. Message interrupts
    /// are never masked, for them this does nothing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unmask(&self) -> io::Result<()> {
        self.masked.as_ref().map_or(Ok(()), |m| m.backend.set_irqs(m.index, m.start, IrqAction::Unmask))
    }
}

impl AsFd for Irq {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
