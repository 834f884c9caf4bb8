//! I/O address spaces and the memory that is pinned for them.

use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_uapi::iommufd::{BusSegment, IOAS_MAP_FIXED_IOVA, IOAS_MAP_READABLE, IOAS_MAP_WRITEABLE, IovaRange};
use ursa_hal::mm::Frame;

use crate::mm::MemoryObject;
use crate::user::UserAddr;
use crate::{Errno, Result, sched};

const PAGE: u64 = ursa_hal::PAGE_SIZE as u64;
/// The most that one call pins: more is a wrong number.
const PIN_MAX: u64 = 4 << 30;

/// Frames that a device may use, in order. They stay where they are while this lives.
pub struct Pin {
    frames: Vec<Frame>,
}

impl Pin {
    /// Pins `len` bytes of `object` from `offset` on.
    ///
    /// # Errors
    /// `EINVAL` for what is not whole pages within the object or has no frames (a BAR); `ENOMEM`.
    pub fn new(object: Arc<MemoryObject>, offset: u64, len: u64) -> Result<Pin> {
        let end = offset.checked_add(len).filter(|e| *e <= object.size()).ok_or(Errno::EINVAL)?;
        if len == 0 || len > PIN_MAX || !offset.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) || object.is_device()
        {
            return Err(Errno::EINVAL);
        }
        let mut frames = Vec::new();
        frames.try_reserve_exact((len / PAGE) as usize).map_err(|_| Errno::ENOMEM)?;
        for index in offset / PAGE..end / PAGE {
            frames.push(object.get_page(index, true)?);
            sched::cond_resched();
        }
        Ok(Pin { frames })
    }

    /// Pins `len` bytes of the caller's memory.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: private memory would have to be copied on fork and kept from reclaim; drivers use dma-bufs.
    pub fn of_user(_addr: UserAddr, _len: u64, _flags: u32) -> Result<Pin> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Runs of bus addresses.
    pub fn segments(&self) -> Vec<BusSegment> {
        let mut runs: Vec<BusSegment> = Vec::new();
        for frame in &self.frames {
            let address = frame.phys().as_u64();
            match runs.last_mut() {
                Some(run) if run.address + run.len == address => run.len += PAGE,
                _ => runs.push(BusSegment { address, len: PAGE }),
            }
        }
        runs
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.frames.len() as u64 * PAGE
    }
}

/// An I/O address space.
pub struct Ioas {
    _private: (),
}

impl Ioas {
    pub(super) fn new() -> Result<Ioas> {
        Ok(Ioas { _private: () })
    }

    /// Whether an IOMMU translates for the devices that are attached.
    pub fn translates(&self) -> bool {
        false
    }

    /// Addresses that can be mapped.
    ///
    /// # Errors
    /// `EOPNOTSUPP` without an IOMMU.
    pub(super) fn ranges(&self) -> Result<Vec<IovaRange>> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Checks what does not need the memory.
    pub(super) fn check_map(&self, flags: u32) -> Result {
        if flags & !(IOAS_MAP_FIXED_IOVA | IOAS_MAP_WRITEABLE | IOAS_MAP_READABLE) != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if flags & (IOAS_MAP_WRITEABLE | IOAS_MAP_READABLE) == 0 {
            return Err(Errno::EINVAL);
        }
        if self.translates() { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
    }

    /// Maps `pin` at `iova`, or where there is room; returns where.
    pub(super) fn map(&self, _pin: Pin, _flags: u32, _iova: u64) -> Result<u64> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Unmaps whole mappings; returns how many bytes.
    pub(super) fn unmap(&self, _iova: u64, _len: u64) -> Result<u64> {
        Err(Errno::EOPNOTSUPP)
    }
}
