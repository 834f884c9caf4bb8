//! Memory behind dumb buffers: DMA memory that has a descriptor.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use driver::{Contiguity, Dma, DmaBuffer};
use virtio::{DmaAllocator, DmaMemory, Segment};

/// Memory that the device reads and clients map.
pub trait Backing {
    /// Where the device finds it.
    fn segments(&self) -> Vec<Segment>;
    /// A descriptor of it (a dma-buf) for others to map.
    fn to_fd(&self) -> io::Result<OwnedFd>;
}

/// Where buffers come from.
pub trait BackingAllocator: DmaAllocator {
    /// What is allocated.
    type Backing: Backing;
    /// Allocates `len` bytes (whole pages), zeroed, in any number of segments.
    fn alloc_backing(&self, len: usize) -> io::Result<Self::Backing>;
    /// Makes what [`Backing::to_fd`] gave, in a predecessor of this process, the device's again.
    fn adopt_backing(&self, fd: OwnedFd, len: usize) -> io::Result<Self::Backing>;
}

impl Backing for DmaBuffer {
    fn segments(&self) -> Vec<Segment> {
        DmaMemory::segments(self)
    }
    fn to_fd(&self) -> io::Result<OwnedFd> {
        self.fd().as_fd().try_clone_to_owned()
    }
}

impl BackingAllocator for Dma {
    type Backing = DmaBuffer;
    fn alloc_backing(&self, len: usize) -> io::Result<DmaBuffer> {
        self.alloc(len, Contiguity::Any)
    }
    fn adopt_backing(&self, fd: OwnedFd, len: usize) -> io::Result<DmaBuffer> {
        self.adopt(fd, len)
    }
}
