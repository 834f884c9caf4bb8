//! Memory that a device can reach.
//!
//! Buffers come from the kernel's DMA heaps as dma-bufs, so that they can also be handed on: mapped by a client, imported by
//! another driver. With an IOMMU a buffer gets one range of I/O virtual addresses, however its pages lie. Without one the
//! addresses are those of the bus: a buffer is as many segments as it has physical runs, and only heap buffers can be used.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use linux_uapi::dma_heap::{self, AllocationData};
use linux_uapi::iommufd::{self, BusAddresses, BusSegment, Destroy, IoasAlloc, IoasMapFile, IoasUnmap, IovaRanges};

use crate::volatile::Shared;
use crate::{passed, sys};

pub(crate) const PAGE: usize = 4096;

/// Whether a buffer must be one run of addresses for the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contiguity {
    /// Any number of segments.
    Any,
    /// One segment.
    Contiguous,
}

/// A run of addresses that the device uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First address.
    pub address: u64,
    /// Bytes.
    pub len: u64,
}

/// What a backend made of a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// Where the device sees it.
    pub segments: Vec<Segment>,
    /// The backend's name for the mapping.
    pub id: u64,
}

/// Where buffers come from and how devices see them. [`Dma`] is built on it.
pub trait DmaBackend: Send + Sync {
    /// A zeroed dma-buf of `len` bytes, a multiple of the page size.
    ///
    /// # Errors
    /// `ENOMEM`.
    fn allocate(&self, len: usize, contiguity: Contiguity) -> io::Result<OwnedFd>;
    /// Lets the device reach `len` bytes of `fd`.
    ///
    /// # Errors
    /// The kernel's.
    fn map(&self, fd: BorrowedFd<'_>, len: usize) -> io::Result<Mapped>;
    /// Takes that back. The device must not use the addresses any more.
    fn unmap(&self, mapped: &Mapped);
    /// Whether addresses are translated by an IOMMU.
    fn translated(&self) -> bool;
    /// The iommufd and the number of the address space in it, where there is one.
    fn space(&self) -> Option<(BorrowedFd<'_>, u32)> {
        None
    }
}

/// A device's address space.
#[derive(Clone)]
pub struct Dma {
    backend: Arc<dyn DmaBackend>,
}

impl Dma {
    pub(crate) fn new(backend: Arc<dyn DmaBackend>) -> Self {
        Self { backend }
    }

    /// Whether an IOMMU translates. A virtio device then has to be told to use it (`VIRTIO_F_ACCESS_PLATFORM`).
    #[must_use]
    pub fn translated(&self) -> bool {
        self.backend.translated()
    }

    /// A zeroed buffer of at least `len` bytes (whole pages), mapped for the device and for the caller.
    ///
    /// # Errors
    /// `ENOMEM`, or `EINVAL` for a length of 0.
    pub fn alloc(&self, len: usize, contiguity: Contiguity) -> io::Result<DmaBuffer> {
        let len = len.checked_next_multiple_of(PAGE).filter(|l| *l != 0).ok_or(io::ErrorKind::InvalidInput)?;
        let fd = self.backend.allocate(len, contiguity)?;
        let shared = Shared::map(&fd, 0, len)?;
        let mapping = self.map(fd.as_fd(), len)?;
        if contiguity == Contiguity::Contiguous && mapping.segments().len() != 1 {
            return Err(io::Error::other("the contiguous heap gave scattered memory"));
        }
        Ok(DmaBuffer { mapping, shared, fd })
    }

    /// A buffer that an earlier process of the same driver had allocated, with what it holds, mapped for the device and for
    /// the caller.
    ///
    /// # Errors
    /// The kernel's.
    pub fn adopt(&self, fd: OwnedFd, len: usize) -> io::Result<DmaBuffer> {
        let shared = Shared::map(&fd, 0, len)?;
        let mapping = self.map(fd.as_fd(), len)?;
        Ok(DmaBuffer { mapping, shared, fd })
    }

    /// The iommufd and the number of the address space in it, where there is one.
    pub(crate) fn space(&self) -> Option<(BorrowedFd<'_>, u32)> {
        self.backend.space()
    }

    /// A buffer that this address space holds already, mapped for the caller.
    pub(crate) fn take_over(&self, fd: OwnedFd, len: usize, mapped: Mapped) -> io::Result<DmaBuffer> {
        let shared = Shared::map(&fd, 0, len)?;
        Ok(DmaBuffer { mapping: DmaMapping { mapped, backend: self.backend.clone() }, shared, fd })
    }

    /// Lets the device reach `len` bytes of a dma-buf (with an IOMMU: or memfd) that somebody else made.
    ///
    /// # Errors
    /// The kernel's.
    pub fn map(&self, fd: BorrowedFd<'_>, len: usize) -> io::Result<DmaMapping> {
        let len = len.checked_next_multiple_of(PAGE).filter(|l| *l != 0).ok_or(io::ErrorKind::InvalidInput)?;
        let mapped = self.backend.map(fd, len)?;
        Ok(DmaMapping { mapped, backend: self.backend.clone() })
    }
}

/// A buffer as the device sees it. Dropping it unmaps: only when the device is done with it.
pub struct DmaMapping {
    mapped: Mapped,
    backend: Arc<dyn DmaBackend>,
}

impl DmaMapping {
    /// The runs of addresses, in the buffer's order.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.mapped.segments
    }

    /// Address of the byte at `offset`, and how many bytes follow in the same run.
    #[must_use]
    pub fn address_of(&self, offset: u64) -> Option<Segment> {
        let mut start = 0;
        for s in &self.mapped.segments {
            if offset - start < s.len {
                let within = offset - start;
                return Some(Segment { address: s.address + within, len: s.len - within });
            }
            start += s.len;
        }
        None
    }
}

impl Drop for DmaMapping {
    fn drop(&mut self) {
        self.backend.unmap(&self.mapped);
    }
}

/// Memory that both the device and the driver reach.
pub struct DmaBuffer {
    // Dropped first: the device loses the pages before they can be freed.
    mapping: DmaMapping,
    shared: Shared,
    fd: OwnedFd,
}

impl DmaBuffer {
    /// Bytes: whole pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.len()
    }
    /// The runs of addresses that the device uses.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        self.mapping.segments()
    }
    pub(crate) fn mapped(&self) -> &Mapped {
        &self.mapping.mapped
    }
    /// The address of the first byte; of the whole buffer when it is contiguous.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.segments().first().map_or(0, |s| s.address)
    }
    /// Address of the byte at `offset`, and how many bytes follow in the same run.
    #[must_use]
    pub fn address_of(&self, offset: u64) -> Option<Segment> {
        self.mapping.address_of(offset)
    }
    /// The memory, for the driver.
    #[must_use]
    pub fn as_region(&self) -> &Shared {
        &self.shared
    }
    /// The dma-buf.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Memory that no device reaches and that can be handed on: a dma-buf of at least `len` bytes (whole pages), zeroed, and the
/// driver's mapping of it.
///
/// # Errors
/// `ENOMEM`, or `EINVAL` for a length of 0.
pub fn system_buffer(len: usize) -> io::Result<(OwnedFd, Shared)> {
    let len = len.checked_next_multiple_of(PAGE).filter(|l| *l != 0).ok_or(io::ErrorKind::InvalidInput)?;
    let fd = heap("system", len)?;
    let shared = Shared::map(&fd, 0, len)?;
    Ok((fd, shared))
}

/// A dma-buf of the DMA heap `name`.
fn heap(name: &str, len: usize) -> io::Result<OwnedFd> {
    let heap: OwnedFd = match passed::borrow(&format!("dma_heap:{name}")) {
        Some(fd) => fd?,
        None => OpenOptions::new().read(true).write(true).open(format!("/dev/dma_heap/{name}"))?.into(),
    };
    let fd_flags = (rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC).bits();
    let mut data = AllocationData { len: len as u64, fd_flags, ..Default::default() };
    sys::encoded(&heap, dma_heap::ALLOC, &mut data)?;
    Ok(sys::installed(data.fd))
}

/// An I/O address space of the kernel's iommufd.
pub(crate) struct Ioas {
    iommufd: OwnedFd,
    id: u32,
    translated: bool,
}

impl Ioas {
    pub(crate) fn new(iommufd: OwnedFd) -> io::Result<Self> {
        let mut alloc = IoasAlloc { size: size_of::<IoasAlloc>() as u32, ..Default::default() };
        sys::ioctl(&iommufd, iommufd::IOAS_ALLOC, &mut alloc)?;
        Self::existing(iommufd, alloc.out_ioas_id)
    }

    /// The address space `id` that a predecessor made.
    pub(crate) fn existing(iommufd: OwnedFd, id: u32) -> io::Result<Self> {
        // With no room for ranges the kernel says EMSGSIZE, having told how many there are; without translation EOPNOTSUPP.
        let mut ranges = IovaRanges { size: size_of::<IovaRanges>() as u32, ioas_id: id, ..Default::default() };
        let translated = match sys::ioctl(&iommufd, iommufd::IOAS_IOVA_RANGES, &mut ranges) {
            Err(e) if is(&e, rustix::io::Errno::OPNOTSUPP) => false,
            Err(e) if !is(&e, rustix::io::Errno::MSGSIZE) => return Err(e),
            _ => true,
        };
        Ok(Self { iommufd, id, translated })
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn iommufd(&self) -> BorrowedFd<'_> {
        self.iommufd.as_fd()
    }

    fn bus_addresses(&self, fd: BorrowedFd<'_>, len: usize) -> io::Result<Mapped> {
        // One run is the common case; when that is not enough the kernel tells what is.
        let mut found = vec![BusSegment::default(); 1];
        loop {
            let mut argument = BusAddresses {
                size: size_of::<BusAddresses>() as u32,
                ioas_id: self.id,
                fd: fd.as_raw_fd(),
                length: len as u64,
                nsegs: found.len() as u32,
                ..Default::default()
            };
            match sys::with_array(
                &self.iommufd,
                iommufd::URSA_BUS_ADDRESSES,
                &mut argument,
                |a| &mut a.segs,
                &mut found,
            ) {
                Err(e) if is(&e, rustix::io::Errno::OVERFLOW) && argument.nsegs as usize > found.len() => {
                    found.resize(argument.nsegs as usize, BusSegment::default());
                }
                Err(e) => return Err(e),
                Ok(_) => {
                    found.truncate(argument.nsegs as usize);
                    let segments = found.iter().map(|s| Segment { address: s.address, len: s.len }).collect();
                    return Ok(Mapped { segments, id: u64::from(argument.out_id) });
                }
            }
        }
    }
}

fn is(e: &io::Error, errno: rustix::io::Errno) -> bool {
    e.raw_os_error() == Some(errno.raw_os_error())
}

impl DmaBackend for Ioas {
    fn allocate(&self, len: usize, contiguity: Contiguity) -> io::Result<OwnedFd> {
        // Translated addresses are contiguous whatever the memory is.
        heap(if contiguity == Contiguity::Any || self.translated { "system" } else { "contiguous" }, len)
    }

    fn map(&self, fd: BorrowedFd<'_>, len: usize) -> io::Result<Mapped> {
        if !self.translated {
            return self.bus_addresses(fd, len);
        }
        let mut map = IoasMapFile {
            size: size_of::<IoasMapFile>() as u32,
            flags: iommufd::IOAS_MAP_READABLE | iommufd::IOAS_MAP_WRITEABLE,
            ioas_id: self.id,
            fd: fd.as_raw_fd(),
            length: len as u64,
            ..Default::default()
        };
        sys::ioctl(&self.iommufd, iommufd::IOAS_MAP_FILE, &mut map)?;
        Ok(Mapped { segments: vec![Segment { address: map.iova, len: len as u64 }], id: map.iova })
    }

    fn unmap(&self, mapped: &Mapped) {
        // Both can only fail for a mapping that is not there; then there is nothing to take back.
        let _ = if self.translated {
            let length = mapped.segments.iter().map(|s| s.len).sum();
            let mut unmap =
                IoasUnmap { size: size_of::<IoasUnmap>() as u32, ioas_id: self.id, iova: mapped.id, length };
            sys::ioctl(&self.iommufd, iommufd::IOAS_UNMAP, &mut unmap)
        } else {
            let mut destroy = Destroy { size: size_of::<Destroy>() as u32, id: mapped.id as u32 };
            sys::ioctl(&self.iommufd, iommufd::DESTROY, &mut destroy)
        };
    }

    fn translated(&self) -> bool {
        self.translated
    }

    fn space(&self) -> Option<(BorrowedFd<'_>, u32)> {
        Some((self.iommufd(), self.id))
    }
}
