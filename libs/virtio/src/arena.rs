//! One stretch of DMA memory for all that a driver shares with its device.

use std::{cell::Cell, rc::Rc};

use crate::{DmaAllocator, DmaMemory, Segment, VecSegments};

/// Each part begins at a cache line of its own.
const ALIGNMENT: usize = 64;

/// Hands out parts of one buffer, one after another. Who asks for the same parts in the same order gets them at the same
/// places, with what they hold: so a successor finds its predecessor's queues.
pub struct Arena<M> {
    memory: Rc<M>,
    next: Cell<usize>,
}

impl<M: DmaMemory> Arena<M> {
    /// Begins with the buffer's first byte.
    pub fn new(memory: Rc<M>) -> Self {
        Arena { memory, next: Cell::new(0) }
    }
}

impl<M: DmaMemory> DmaAllocator for Arena<M> {
    type Memory = Part<M>;

    /// Fails with `OutOfMemory` when the buffer is used up, and with `InvalidInput` when it is scattered.
    fn alloc_contiguous(&self, len: usize) -> std::io::Result<Part<M>> {
        let [whole] = self.memory.segments()[..] else { return Err(std::io::ErrorKind::InvalidInput.into()) };
        let at = self.next.get();
        let end = at.checked_add(len).filter(|end| *end <= self.memory.len() && *end as u64 <= whole.len);
        let end = end.ok_or(std::io::ErrorKind::OutOfMemory)?;
        self.next.set(end.next_multiple_of(ALIGNMENT));
        let segment = Segment { address: whole.address + at as u64, len: len as u64 };
        Ok(Part { memory: self.memory.clone(), at, segment })
    }
}

/// A part of an [`Arena`]'s buffer, which lives as long as its last part.
pub struct Part<M> {
    memory: Rc<M>,
    at: usize,
    segment: Segment,
}

impl<M: DmaMemory> Part<M> {
    /// Where `len` bytes at `offset` of the part lie in the buffer.
    fn place(&self, offset: usize, len: usize) -> usize {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len()), "access outside of a part");
        self.at + offset
    }
}

impl<M: DmaMemory> DmaMemory for Part<M> {
    fn segments(&self) -> VecSegments {
        vec![self.segment]
    }
    fn len(&self) -> usize {
        self.segment.len as usize
    }
    fn read_u16(&self, offset: usize) -> u16 {
        self.memory.read_u16(self.place(offset, 2))
    }
    fn read_u32(&self, offset: usize) -> u32 {
        self.memory.read_u32(self.place(offset, 4))
    }
    fn write_u16(&self, offset: usize, value: u16) {
        self.memory.write_u16(self.place(offset, 2), value);
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.memory.write_u32(self.place(offset, 4), value);
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        self.memory.read(self.place(offset, into.len()), into);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        self.memory.write(self.place(offset, from.len()), from);
    }
}
