//! Queues that a device goes on with while their driver is dead.
//!
//! The rings lie in memory that outlives the driver's process, and the device fills what it was given. A successor knows how
//! many used entries its predecessor was done with (it keeps that count where the device does not reach), and finds the rest
//! in the rings:
//!
//! ```text
//!   used ring        … done │ used, not looked at │
//!   available ring   … done │ the device's own … │ missing: done, and not yet given back
//!                           taken                available        taken + size
//! ```
//!
//! That works for a queue that is always full: every descriptor is a chain of its own, one buffer that the device writes, and
//! goes back to the device as it was ([`Virtqueue::fill`], [`Virtqueue::hold`], [`Virtqueue::give_back`]). Of any other
//! queue a successor waits until the device has nothing more ([`Virtqueue::resume_idle`]).
//!
//! The device can write to its rings, so what is found there is checked as ever.

use std::sync::atomic::{Ordering, fence};

use super::{Buffer, InFlight, Used, Virtqueue};
use crate::{DmaAllocator, DmaMemory, Error, Result};

impl<M: DmaMemory> Virtqueue<M, u16> {
    /// Gives an empty queue one writable buffer for each of its entries; the token is the buffer's number.
    ///
    /// # Errors
    /// [`Error::BadChain`] for a buffer of no bytes, [`Error::QueueFull`] when the queue was not empty.
    pub fn fill(&mut self, buffer: impl Fn(u16) -> Buffer) -> Result<()> {
        (0..self.size).try_for_each(|number| self.add(&[buffer(number)], number))
    }

    /// The next chain that the device is done with. It stays out of the queue until [`Virtqueue::give_back`].
    ///
    /// # Errors
    /// [`Error::Broken`] when the device returns what it does not have.
    pub fn hold(&mut self) -> Result<Option<Used<u16>>> {
        let Some((head, chain, written)) = self.take_used()? else { return Ok(None) };
        let used = Used { token: chain.token, written };
        self.held.push_back((head, chain));
        Ok(Some(used))
    }

    /// Gives the device the chain that is held longest, as it was. It hears of it at the next kick.
    pub fn give_back(&mut self) {
        if let Some((head, chain)) = self.held.pop_front() {
            self.publish(head, chain);
        }
    }

    /// How many chains are held.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes over a queue that was filled, of which a predecessor was done with `taken` used entries in all.
    pub(crate) fn resume_filled<A: DmaAllocator<Memory = M>>(
        dma: &A,
        index: u16,
        size: u16,
        event_idx: bool,
        taken: u16,
        buffer: impl Fn(u16) -> Buffer,
    ) -> Result<Self> {
        let mut queue = Self::empty(Self::allocate(dma, size)?, index, size, event_idx);
        let full = taken.wrapping_add(size);
        let available = queue.memory.read_u16(Self::available_offset(size) + 2);
        let missing = full.wrapping_sub(available);
        if missing > size || queue.used().wrapping_sub(taken) > size - missing {
            return Err(Error::Broken("the rings do not fit what was done with them"));
        }
        fence(Ordering::Acquire);
        // Entry n of the available ring is what entry n - size of the used ring gave back.
        for n in 0..missing {
            let entry = available.wrapping_add(n);
            let head = queue.memory.read_u32(queue.used_entry(entry));
            queue.memory.write_u16(queue.available_entry(entry), head.try_into().unwrap_or(u16::MAX));
        }
        for n in 0..size {
            let head = queue.memory.read_u16(queue.available_entry(taken.wrapping_add(n)));
            let writable = buffer(head).len;
            match queue.in_flight.get_mut(usize::from(head)) {
                Some(slot @ None) => *slot = Some(InFlight { token: head, count: 1, last: head, writable }),
                _ => return Err(Error::Broken("a buffer is in the queue twice, or is none")),
            }
        }
        (0..size).for_each(|number| queue.describe(number, &buffer(number), None));
        queue.free = 0;
        queue.chains = size;
        queue.available = full;
        queue.last_used = taken;
        // Of what was published the device may not have been told.
        queue.kicked = taken;
        queue.enable_interrupts();
        fence(Ordering::Release);
        queue.memory.write_u16(Self::available_offset(size) + 2, full);
        Ok(queue)
    }
}

impl<M: DmaMemory, K> Virtqueue<M, K> {
    /// Takes over a queue whose chains nobody remembers. It takes new ones once the device is done with those
    /// ([`Virtqueue::pop`] looks).
    pub(crate) fn resume_idle<A: DmaAllocator<Memory = M>>(
        dma: &A,
        index: u16,
        size: u16,
        event_idx: bool,
    ) -> Result<Self> {
        let mut queue = Self::empty(Self::allocate(dma, size)?, index, size, event_idx);
        queue.available = queue.memory.read_u16(Self::available_offset(size) + 2);
        queue.kicked = queue.available.wrapping_sub(1);
        queue.settling = true;
        queue.settle()?;
        queue.enable_interrupts();
        Ok(queue)
    }

    /// Whether the device is done with all that was in the queue when it was taken over.
    pub(super) fn settle(&mut self) -> Result<bool> {
        let used = self.used();
        if self.available.wrapping_sub(used) > self.size {
            return Err(Error::Broken("more buffers used than there are"));
        }
        self.last_used = used;
        self.settling = used != self.available;
        Ok(!self.settling)
    }
}
