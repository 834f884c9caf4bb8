//! A device that goes on while its driver's process is replaced.
//!
//! The last close of a device's files stops the device. A driver of one that brings what nobody can ask for again (a
//! keyboard) puts these files, the memory that the device writes to and a record of its own into the service manager's store:
//! then the device goes on writing to memory that stays where it is, and a successor takes all of it over and reads what was
//! written meanwhile. Whoever has trouble with its device calls [`end`] before it ends itself; then the manager closes
//! everything, the device is stopped, and the successor starts it anew.
//!
//! The record is a page that the device does not reach: where the memory is, and one number of the driver's, its progress.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};

use crate::dma::{Dma, DmaBuffer, Ioas, Mapped, PAGE, Segment};
use crate::passed;
use crate::pci::PciDevice;
use crate::store::{forget, store, stored};
use crate::vfio::VfioDevice;
use crate::volatile::Shared;

/// The iommufd's name, in the store and as `init` passes it.
pub const IOMMUFD: &str = "iommufd";
const MEMORY: &str = "memory";
const RECORD: &str = "record";
/// The name that `init` knows it by: it passes it as the device, instead of opening the device anew. Stored last, so that where
/// it is all else is.
pub const DEVICE: &str = "device";

/// Version of the record's layout.
const VERSION: u32 = 1;
/// A device that was taken over as often as this and brought no progress is started anew.
const ATTEMPTS: u32 = 3;

/// Places in the record.
mod at {
    pub const VERSION: usize = 0;
    pub const IOAS: usize = 4;
    pub const ATTEMPTS: usize = 8;
    pub const ADDRESS: usize = 16;
    pub const LEN: usize = 24;
    pub const MAPPING: usize = 32;
    pub const PROGRESS: usize = 64;
}

/// The record of a device that is handed over.
pub struct Handover {
    record: Shared,
}

impl Handover {
    /// Has the device handed over to a successor from now on, with `memory`, which is all that it reaches, and the driver's
    /// first `progress`.
    ///
    /// # Errors
    /// The store's, the kernel's; `Unsupported` for a device of callbacks.
    pub fn begin(pci: &PciDevice, memory: &DmaBuffer, progress: u64) -> io::Result<Self> {
        let (Some(device), Some((iommufd, ioas))) = (pci.file(), pci.dma().space()) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let [Segment { address, .. }] = memory.segments() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let file = rustix::fs::memfd_create(RECORD, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, PAGE as u64)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let record = Shared::map(&file, 0, PAGE)?;
        record.write_u32(at::VERSION, VERSION);
        record.write_u32(at::IOAS, ioas);
        record.write_u64(at::ADDRESS, *address);
        record.write_u64(at::LEN, memory.len() as u64);
        record.write_u64(at::MAPPING, memory.mapped().id);
        record.write_u64(at::PROGRESS, progress);
        // Of a predecessor that did not come as far as storing the device.
        end()?;
        store(IOMMUFD, iommufd)?;
        store(MEMORY, memory.fd())?;
        store(RECORD, file.as_fd())?;
        store(DEVICE, device)?;
        Ok(Self { record })
    }

    /// Takes over what a predecessor handed over, if one did. The device runs meanwhile.
    ///
    /// # Errors
    /// It cannot be taken over: then [`end`] it and let a successor start it anew.
    pub fn resume() -> io::Result<Option<(Self, PciDevice, DmaBuffer)>> {
        let (Some(memory), Some(record)) = (stored(MEMORY)?, stored(RECORD)?) else { return Ok(None) };
        let Some(address) = passed::device() else { return Ok(None) };
        let (device, iommufd) = (passed::take(&format!("vfio:{address}")), passed::take(IOMMUFD));
        let (Some(device), Some(iommufd)) = (device, iommufd) else { return Ok(None) };
        Self::resume_from(&address, device?, iommufd?, memory, record).map(Some)
    }

    fn resume_from(
        address: &str,
        device: OwnedFd,
        iommufd: OwnedFd,
        memory: OwnedFd,
        record: OwnedFd,
    ) -> io::Result<(Self, PciDevice, DmaBuffer)> {
        let record = Shared::map(&record, 0, PAGE)?;
        let attempts = record.read_u32(at::ATTEMPTS);
        if record.read_u32(at::VERSION) != VERSION || attempts >= ATTEMPTS {
            return Err(io::Error::other("what was handed over is of no use"));
        }
        record.write_u32(at::ATTEMPTS, attempts + 1);
        let len = usize::try_from(record.read_u64(at::LEN)).map_err(|_| io::ErrorKind::InvalidData)?;
        let segments = vec![Segment { address: record.read_u64(at::ADDRESS), len: len as u64 }];
        let mapped = Mapped { segments, id: record.read_u64(at::MAPPING) };
        let space = Ioas::existing(iommufd, record.read_u32(at::IOAS))?;
        let dma = Dma::new(Arc::new(space));
        let memory = dma.take_over(memory, len, mapped)?;
        let device = VfioDevice::bound(File::from(device))?;
        Ok((Self { record }, PciDevice::with(address, Arc::new(device), dma)?, memory))
    }

    /// How far the driver was.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.record.read_u64(at::PROGRESS)
    }

    /// Records how far the driver is. One store: a successor finds this or what was before, whenever the process ends.
    pub fn advance(&self, progress: u64) {
        self.record.write_u64(at::PROGRESS, progress);
        self.record.write_u32(at::ATTEMPTS, 0);
    }
}

/// Ends the handing over: the device is stopped when this process has ended, and its successor starts it anew.
///
/// # Errors
/// The manager does not listen.
pub fn end() -> io::Result<()> {
    [DEVICE, RECORD, MEMORY, IOMMUFD].into_iter().try_for_each(forget)
}
