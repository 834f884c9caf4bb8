//! `linux/dma-heap.h`: buffers for devices, as dma-bufs.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `DMA_HEAP_IOCTL_ALLOC`: `_IOWR('H', 0, struct dma_heap_allocation_data)`.
pub const ALLOC: u32 = 3 << 30 | (size_of::<AllocationData>() as u32) << 16 | (b'H' as u32) << 8;

/// `struct dma_heap_allocation_data`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AllocationData {
    /// Bytes; rounded up to pages.
    pub len: u64,
    /// The dma-buf's descriptor, filled in.
    pub fd: u32,
    /// `O_CLOEXEC` and the access mode.
    pub fd_flags: u32,
    /// Zero.
    pub heap_flags: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_headers() {
        assert_eq!(size_of::<AllocationData>(), 24);
        assert_eq!(ALLOC, 0xc018_4800);
    }
}
