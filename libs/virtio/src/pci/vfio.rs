//! `libs/driver` as what the PCI transport and the queues need.

use std::io;

use driver::{Contiguity, Dma, DmaBuffer, Irq, Mmio, PciDevice};

use super::{Interrupt, PciFunction, Registers};
use crate::{DmaAllocator, DmaMemory, Segment, VecSegments};

impl Registers for Mmio {
    fn len(&self) -> u64 {
        Mmio::len(self) as u64
    }
    fn read8(&self, offset: usize) -> u8 {
        Mmio::read8(self, offset)
    }
    fn read16(&self, offset: usize) -> u16 {
        Mmio::read16(self, offset)
    }
    fn read32(&self, offset: usize) -> u32 {
        Mmio::read32(self, offset)
    }
    fn write8(&self, offset: usize, value: u8) {
        Mmio::write8(self, offset, value);
    }
    fn write16(&self, offset: usize, value: u16) {
        Mmio::write16(self, offset, value);
    }
    fn write32(&self, offset: usize, value: u32) {
        Mmio::write32(self, offset, value);
    }
}

impl Interrupt for Irq {
    fn take(&mut self) -> io::Result<u64> {
        Irq::take(self)
    }
    fn unmask(&mut self) -> io::Result<()> {
        Irq::unmask(self)
    }
}

impl PciFunction for PciDevice {
    type Registers = Mmio;
    type Interrupt = Irq;
    fn config_read32(&self, offset: u16) -> io::Result<u32> {
        PciDevice::config_read32(self, offset)
    }
    fn capabilities(&self) -> io::Result<Vec<(u8, u16)>> {
        Ok(PciDevice::capabilities(self))
    }
    fn map_bar(&self, bar: u8) -> io::Result<Mmio> {
        PciDevice::map_bar(self, bar.into())
    }
    fn is_translated(&self) -> bool {
        self.dma().translated()
    }
    fn enable_bus_master(&self) -> io::Result<()> {
        PciDevice::enable_bus_master(self)
    }
    fn enable_msix(&self, count: usize) -> io::Result<Vec<Irq>> {
        match u32::try_from(count) {
            Ok(count) if count <= self.msix_count()? => PciDevice::enable_msix(self, count),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    fn enable_intx(&self) -> io::Result<Irq> {
        PciDevice::enable_intx(self)
    }
}

impl DmaMemory for DmaBuffer {
    fn segments(&self) -> VecSegments {
        let segment = |segment: &driver::Segment| Segment { address: segment.address, len: segment.len };
        DmaBuffer::segments(self).iter().map(segment).collect()
    }
    fn len(&self) -> usize {
        DmaBuffer::len(self)
    }
    fn read_u16(&self, offset: usize) -> u16 {
        self.as_region().read_u16(offset)
    }
    fn read_u32(&self, offset: usize) -> u32 {
        self.as_region().read_u32(offset)
    }
    fn write_u16(&self, offset: usize, value: u16) {
        self.as_region().write_u16(offset, value);
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.as_region().write_u32(offset, value);
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        self.as_region().copy_to_slice(offset, into);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        self.as_region().copy_from_slice(offset, from);
    }
}

impl DmaAllocator for Dma {
    type Memory = DmaBuffer;
    fn alloc_contiguous(&self, len: usize) -> io::Result<DmaBuffer> {
        self.alloc(len, Contiguity::Contiguous)
    }
}
