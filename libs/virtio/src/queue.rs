//! Split virtqueues.
//!
//! One contiguous buffer holds descriptor table, available ring and used ring. [`Virtqueue`] keeps its own record of which
//! descriptors are in flight and how long each chain is: the shared table is written and never read, so a device that
//! scribbles over it can harm nobody but itself.
//!
//! Locking: a queue belongs to one thread. Order between the two sides is made by fences around the ring indices.
//!
//! References: VIRTIO 1.2, 2.7 (split virtqueues), 2.7.7 to 2.7.10 (suppression of notifications).

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use crate::{DmaAllocator, DmaMemory, Error, QueueSetup, Result};

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT`
const NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`
const NO_NOTIFY: u16 = 1;
const DESC_SIZE: usize = 16;

/// One member of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where the device finds it.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device writes it (else it reads it).
    pub writable: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    pub fn readable(address: u64, len: u32) -> Self {
        Buffer { address, len, writable: false }
    }

    /// A buffer that the device writes.
    pub fn writable(address: u64, len: u32) -> Self {
        Buffer { address, len, writable: true }
    }
}

/// A chain that came back.
#[derive(Debug, PartialEq, Eq)]
pub struct Used<K> {
    /// What [`Virtqueue::add`] was given.
    pub token: K,
    /// Bytes the device says it wrote, at most what the chain has room for.
    pub written: u32,
}

struct InFlight<K> {
    token: K,
    /// Descriptors in the chain, and its last one.
    count: u16,
    last: u16,
    writable: u32,
}

/// A split virtqueue whose chains carry a token of type `K`.
pub struct Virtqueue<M: DmaMemory, K> {
    memory: M,
    index: u16,
    size: u16,
    event_idx: bool,
    /// Next of each descriptor, in chains and in the free list.
    next: Vec<u16>,
    free_head: u16,
    free: u16,
    in_flight: Vec<Option<InFlight<K>>>,
    chains: u16,
    available: u16,
    /// The available index when the device was last told.
    kicked: u16,
    last_used: u16,
    wants_interrupts: bool,
    batched: bool,
    /// Chains that the device is done with and that wait for [`Virtqueue::give_back`], by their heads.
    held: VecDeque<(u16, InFlight<K>)>,
    /// Taken over while the device had chains that nobody remembers: nothing is added until it is done with them.
    settling: bool,
}

impl<M: DmaMemory, K> Virtqueue<M, K> {
    pub(crate) fn new<A: DmaAllocator<Memory = M>>(dma: &A, index: u16, size: u16, event_idx: bool) -> Result<Self> {
        let memory = Self::allocate(dma, size)?;
        memory.write(0, &vec![0; Self::bytes(size)]);
        Ok(Self::empty(memory, index, size, event_idx))
    }

    fn allocate<A: DmaAllocator<Memory = M>>(dma: &A, size: u16) -> Result<M> {
        assert!(size.is_power_of_two() && size <= 32768, "queue sizes are powers of two");
        let memory = dma.alloc_contiguous(Self::bytes(size))?;
        match memory.segments()[..] {
            [segment] if segment.len >= Self::bytes(size) as u64 && segment.address.is_multiple_of(16) => Ok(memory),
            _ => Err(Error::Transport("the queue's memory is not contiguous or not aligned")),
        }
    }

    /// The driver's own record of a queue that has nothing in it.
    fn empty(memory: M, index: u16, size: u16, event_idx: bool) -> Self {
        Virtqueue {
            memory,
            index,
            size,
            event_idx,
            next: (0..size).map(|descriptor| descriptor.wrapping_add(1)).collect(),
            free_head: 0,
            free: size,
            in_flight: std::iter::repeat_with(|| None).take(size.into()).collect(),
            chains: 0,
            available: 0,
            kicked: 0,
            last_used: 0,
            wants_interrupts: true,
            batched: false,
            held: VecDeque::new(),
            settling: false,
        }
    }

    fn available_offset(size: u16) -> usize {
        usize::from(size) * DESC_SIZE
    }

    fn used_offset(size: u16) -> usize {
        (Self::available_offset(size) + 6 + 2 * usize::from(size)).next_multiple_of(4)
    }

    fn bytes(size: u16) -> usize {
        Self::used_offset(size) + 6 + 8 * usize::from(size)
    }

    /// Where the device finds the parts.
    pub fn setup(&self) -> QueueSetup {
        let address = self.memory.segments()[0].address;
        QueueSetup {
            size: self.size,
            descriptors: address,
            available: address + Self::available_offset(self.size) as u64,
            used: address + Self::used_offset(self.size) as u64,
        }
    }

    /// Number of the queue in its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Free descriptors.
    pub fn free(&self) -> u16 {
        if self.settling { 0 } else { self.free }
    }

    /// Chains that the device has.
    pub fn pending(&self) -> u16 {
        self.chains
    }

    /// Gives the device a chain: buffers it reads first, then those it writes. It hears of it at the next kick.
    ///
    /// # Errors
    /// [`Error::QueueFull`] and [`Error::BadChain`]; the token is dropped with the error.
    pub fn add(&mut self, buffers: &[Buffer], token: K) -> Result<()> {
        let Ok(count) = u16::try_from(buffers.len()) else { return Err(Error::BadChain) };
        let in_order = buffers.is_sorted_by_key(|buffer| buffer.writable);
        let Some(writable) =
            buffers.iter().filter(|buffer| buffer.writable).try_fold(0_u32, |sum, buffer| sum.checked_add(buffer.len))
        else {
            return Err(Error::BadChain);
        };
        if count == 0 || count > self.size || !in_order || buffers.iter().any(|buffer| buffer.len == 0) {
            return Err(Error::BadChain);
        }
        if count > self.free() {
            return Err(Error::QueueFull);
        }
        let head = self.free_head;
        let mut descriptor = head;
        let mut last = head;
        for (place, buffer) in buffers.iter().enumerate() {
            let follows = place + 1 < buffers.len();
            let next = self.next[usize::from(descriptor)];
            self.describe(descriptor, buffer, follows.then_some(next));
            last = descriptor;
            descriptor = next;
        }
        self.free_head = descriptor;
        self.free -= count;
        self.publish(head, InFlight { token, count, last, writable });
        Ok(())
    }

    /// Writes a descriptor.
    fn describe(&self, descriptor: u16, buffer: &Buffer, next: Option<u16>) {
        let mut bytes = [0; DESC_SIZE];
        bytes[0..8].copy_from_slice(&buffer.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&buffer.len.to_le_bytes());
        let flags = next.map_or(0, |_| DESC_NEXT) | if buffer.writable { DESC_WRITE } else { 0 };
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..16].copy_from_slice(&next.unwrap_or(0).to_le_bytes());
        self.memory.write(usize::from(descriptor) * DESC_SIZE, &bytes);
    }

    /// Gives the device the chain that starts at `head`.
    fn publish(&mut self, head: u16, chain: InFlight<K>) {
        self.chains += 1;
        self.in_flight[usize::from(head)] = Some(chain);
        self.memory.write_u16(self.available_entry(self.available), head);
        self.available = self.available.wrapping_add(1);
        self.tell_used_event();
        // The chain is written before the index that gives it away.
        fence(Ordering::Release);
        self.memory.write_u16(Self::available_offset(self.size) + 2, self.available);
    }

    /// Where entry `index` of the available ring lies.
    fn available_entry(&self, index: u16) -> usize {
        Self::available_offset(self.size) + 4 + 2 * usize::from(index & (self.size - 1))
    }

    /// Where entry `index` of the used ring lies.
    fn used_entry(&self, index: u16) -> usize {
        Self::used_offset(self.size) + 4 + 8 * usize::from(index & (self.size - 1))
    }

    /// The device's index of the used ring.
    fn used(&self) -> u16 {
        self.memory.read_u16(Self::used_offset(self.size) + 2)
    }

    /// Whether the device wants to be told of what was added since the last time this said so.
    pub fn needs_kick(&mut self) -> bool {
        if self.available == self.kicked {
            return false;
        }
        // The index is visible before we look whether the device sleeps.
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.kicked, self.available);
        if self.event_idx {
            let event = self.memory.read_u16(Self::used_offset(self.size) + 4 + 8 * usize::from(self.size));
            // vring_need_event(): is `event` one of the entries that became available?
            self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(old)
        } else {
            self.memory.read_u16(Self::used_offset(self.size)) & NO_NOTIFY == 0
        }
    }

    /// The next chain that the device is done with.
    ///
    /// # Errors
    /// [`Error::Broken`] when the device returns what it does not have.
    pub fn pop(&mut self) -> Result<Option<Used<K>>> {
        if self.settling && !self.settle()? {
            return Ok(None);
        }
        let Some((head, chain, written)) = self.take_used()? else { return Ok(None) };
        self.next[usize::from(chain.last)] = self.free_head;
        self.free_head = head;
        self.free += chain.count;
        Ok(Some(Used { token: chain.token, written }))
    }

    /// Takes the next entry of the used ring: head, chain, bytes written.
    fn take_used(&mut self) -> Result<Option<(u16, InFlight<K>, u32)>> {
        let waiting = self.used().wrapping_sub(self.last_used);
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > self.chains {
            return Err(Error::Broken("more buffers used than there are"));
        }
        // The entry is read after the index that promised it.
        fence(Ordering::Acquire);
        let entry = self.used_entry(self.last_used);
        let head = self.memory.read_u32(entry);
        let written = self.memory.read_u32(entry + 4);
        let Some(chain) = usize::try_from(head).ok().and_then(|head| self.in_flight.get_mut(head)?.take()) else {
            return Err(Error::Broken("a buffer used that the device does not have"));
        };
        self.chains -= 1;
        self.last_used = self.last_used.wrapping_add(1);
        self.tell_used_event();
        fence(Ordering::SeqCst);
        // Lengths beyond the chain are a device's lie or an old bug; the driver must not read what nobody wrote.
        let written = written.min(chain.writable);
        Ok(Some((head as u16, chain, written)))
    }

    /// With `true` one interrupt tells of all chains that the device has, not of the first one: for queues whose device works
    /// in order and whose driver waits for the last of a batch. It needs `EVENT_IDX`, and is a hint in any case.
    pub fn set_batched(&mut self, batched: bool) {
        self.batched = batched;
        self.tell_used_event();
    }

    /// Writes after which used entry the device should interrupt. Written before the entry can be used: by [`Self::add`]
    /// ahead of the available index, so that no interrupt is lost.
    fn tell_used_event(&self) {
        if self.event_idx && self.wants_interrupts {
            let later = if self.batched { self.chains.saturating_sub(1) } else { 0 };
            self.memory.write_u16(self.used_event_offset(), self.last_used.wrapping_add(later));
        }
    }

    fn used_event_offset(&self) -> usize {
        Self::available_offset(self.size) + 4 + 2 * usize::from(self.size)
    }

    /// Asks the device to interrupt no more for used buffers. It may still do so.
    pub fn disable_interrupts(&mut self) {
        self.wants_interrupts = false;
        if self.event_idx {
            // An entry that is as far away as can be.
            self.memory.write_u16(self.used_event_offset(), self.last_used.wrapping_sub(1));
        } else {
            self.memory.write_u16(Self::available_offset(self.size), NO_INTERRUPT);
        }
    }

    /// Asks for interrupts again. True when buffers were used meanwhile: then pop them, there may be no interrupt for them.
    pub fn enable_interrupts(&mut self) -> bool {
        self.wants_interrupts = true;
        self.tell_used_event();
        if !self.event_idx {
            self.memory.write_u16(Self::available_offset(self.size), 0);
        }
        fence(Ordering::SeqCst);
        self.used() != self.last_used
    }

    /// Takes back what the device still has. Only after a reset of the device.
    pub fn drain(&mut self) -> impl Iterator<Item = K> + '_ {
        self.in_flight.iter_mut().filter_map(|slot| slot.take().map(|chain| chain.token))
    }
}

mod handover;

#[cfg(test)]
mod tests;
