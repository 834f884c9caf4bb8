//! Memory that driver and device both see.

/// A stretch of memory as the device addresses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Bus address, or I/O virtual address where an IOMMU translates.
    pub address: u64,
    /// Bytes.
    pub len: u64,
}

/// Memory shared with a device. The other side may change it at any moment, so every access is a copy; the 16 and 32 bit
/// accessors are single accesses (offsets aligned).
///
/// An access outside the buffer is a bug of the driver and panics: offsets never come from the device.
pub trait DmaMemory {
    /// Where the device finds it, in order.
    fn segments(&self) -> VecSegments;
    /// Bytes.
    fn len(&self) -> usize;
    /// One 16-bit load.
    fn read_u16(&self, offset: usize) -> u16;
    /// One 32-bit load.
    fn read_u32(&self, offset: usize) -> u32;
    /// One 16-bit store.
    fn write_u16(&self, offset: usize, value: u16);
    /// One 32-bit store.
    fn write_u32(&self, offset: usize, value: u32);
    /// Copies out.
    fn read(&self, offset: usize, into: &mut [u8]);
    /// Copies in.
    fn write(&self, offset: usize, from: &[u8]);
}

/// Segments of a buffer.
pub type VecSegments = Vec<Segment>;

/// Where queues and buffers come from.
pub trait DmaAllocator {
    /// What is allocated.
    type Memory: DmaMemory;
    /// Allocates at least `len` bytes, zeroed, mapped for the device, in one segment.
    fn alloc_contiguous(&self, len: usize) -> std::io::Result<Self::Memory>;
}
