//! I/O address spaces and the memory that is pinned for them.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use linux_uapi::iommufd::{BusSegment, IOAS_MAP_FIXED_IOVA, IOAS_MAP_READABLE, IOAS_MAP_WRITEABLE, IovaRange};
use ursa_hal::VirtAddr;
use ursa_hal::iommu::{self, Attachment, Domain, Rights};
use ursa_hal::mm::Frame;

use super::faults;
use crate::mm::MemoryObject;
use crate::pci::Function;
use crate::process::{Cap, Resource, UserAccount, capable, current};
use crate::user::UserAddr;
use crate::wait::Mutex;
use crate::{Errno, Result, sched};

const PAGE: u64 = ursa_hal::PAGE_SIZE as u64;
/// The most that one call pins: more is a wrong number.
const PIN_MAX: u64 = 4 << 30;
/// Addresses below are only given out on request: a driver's 0 shall not be somebody's buffer.
const AUTO_MIN: u64 = 1 << 16;
/// Automatic addresses are aligned to the buffer's size up to this, which the IOMMU maps in one entry.
const ALIGN_MAX: u64 = 2 << 20;
/// Pages that are unmapped before others may run: whole large leaves.
const CHUNK: u64 = 8 << 20;
/// Mappings in a space; beyond it is a driver that leaks.
const AREAS_MAX: usize = 1 << 16;

/// Pages that are counted against a user's `RLIMIT_MEMLOCK`.
struct Charge {
    user: Arc<UserAccount>,
    pages: u64,
}

impl Charge {
    fn new(pages: u64) -> Result<Charge> {
        let task = current();
        let user = task.cred().user.clone();
        let before = user.pinned_pages.fetch_add(pages, Relaxed);
        let charge = Charge { user, pages };
        let limit = task.process().rlimits.soft(Resource::Memlock) / PAGE;
        // The privileged are counted and not limited, as with mlock(2).
        if before + pages > limit && !capable(Cap::IpcLock) {
            return Err(Errno::ENOMEM);
        }
        Ok(charge)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.user.pinned_pages.fetch_sub(self.pages, Relaxed);
    }
}

/// Frames that a device may use, in order. They stay where they are while this lives.
pub struct Pin {
    frames: Vec<Frame>,
    charge: Charge,
}

impl Pin {
    /// Pins `len` bytes of `object` from `offset` on.
    ///
    /// # Errors
    /// `EINVAL` for what is not whole pages within the object or has no frames (a BAR); `ENOMEM`, also over `RLIMIT_MEMLOCK`.
    pub fn new(object: Arc<MemoryObject>, offset: u64, len: u64) -> Result<Pin> {
        let end = offset.checked_add(len).filter(|e| *e <= object.size()).ok_or(Errno::EINVAL)?;
        if !offset.is_multiple_of(PAGE) || object.is_device() {
            return Err(Errno::EINVAL);
        }
        let mut pin = Pin::empty(len)?;
        for index in offset / PAGE..end / PAGE {
            pin.frames.push(object.get_page(index, true)?);
            sched::cond_resched();
        }
        Ok(pin)
    }

    /// Room for `len` bytes, which are charged.
    fn empty(len: u64) -> Result<Pin> {
        if len == 0 || len > PIN_MAX || !len.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        let charge = Charge::new(len / PAGE)?;
        let mut frames = Vec::new();
        frames.try_reserve_exact((len / PAGE) as usize).map_err(|_| Errno::ENOMEM)?;
        Ok(Pin { frames, charge })
    }

    /// Pins `len` bytes of the caller's memory, which is a shared mapping that the caller may access as the device shall.
    ///
    /// # Errors
    /// `EFAULT` for memory that is not there or may not be accessed so; `EOPNOTSUPP` for private memory, which would have to be copied
    /// on fork and kept from reclaim; else those of [`Pin::new`].
    pub fn of_user(addr: UserAddr, len: u64, flags: u32) -> Result<Pin> {
        let start = addr.as_u64();
        if !start.is_multiple_of(PAGE) || start.checked_add(len).is_none() {
            return Err(Errno::EINVAL);
        }
        let mut pin = Pin::empty(len)?;
        let task = current();
        let space = task.vm();
        for at in (start..start + len).step_by(PAGE as usize) {
            let write = flags & IOAS_MAP_WRITEABLE != 0;
            let (object, offset) = space.shared_at(VirtAddr::new(at), write)?.ok_or(Errno::EOPNOTSUPP)?;
            if object.is_device() {
                return Err(Errno::EFAULT);
            }
            pin.frames.push(object.get_page(offset / PAGE, true)?);
            sched::cond_resched();
        }
        Ok(pin)
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

/// What one call has mapped.
struct Area {
    last: u64,
    _charge: Charge,
}

#[derive(Default)]
struct Areas {
    /// By first address.
    all: BTreeMap<u64, Area>,
    /// Where addresses are chosen from; anywhere when empty (`IOMMU_IOAS_ALLOW_IOVAS`).
    allowed: Vec<IovaRange>,
}

impl Areas {
    /// Whether something is mapped in the range.
    fn overlaps(&self, start: u64, last: u64) -> bool {
        self.all.range(..=last).next_back().is_some_and(|(_, area)| area.last >= start)
    }

    /// The lowest free address for `len` bytes.
    fn choose(&self, ranges: &[IovaRange], len: u64) -> Option<u64> {
        let align = len.next_power_of_two().min(ALIGN_MAX);
        for range in ranges {
            let mut at = range.start.max(AUTO_MIN).checked_next_multiple_of(align)?;
            // Past the area that begins before, then from one to the next.
            while at.checked_add(len - 1).is_some_and(|last| last <= range.last) {
                match self.all.range(..=at + (len - 1)).next_back() {
                    Some((_, area)) if area.last >= at => at = (area.last + 1).checked_next_multiple_of(align)?,
                    _ => return Some(at),
                }
            }
        }
        None
    }
}

/// An I/O address space.
pub struct Ioas {
    /// What the IOMMU translates by; `None` on a machine without one.
    domain: Option<Arc<Domain>>,
    areas: Mutex<Areas>,
}

/// A function in a space. Dropping it blocks the function.
pub struct Attached {
    attachments: Vec<Attachment>,
    function: Arc<Function>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.attachments.clear();
        if let Some(group) = self.function.group.get() {
            group.release();
        }
    }
}

fn ranges() -> Vec<IovaRange> {
    iommu::ranges().into_iter().map(|r| IovaRange { start: *r.start(), last: *r.end() }).collect()
}

fn within(ranges: &[IovaRange], start: u64, last: u64) -> bool {
    ranges.iter().any(|r| r.start <= start && last <= r.last)
}

impl Ioas {
    pub(super) fn new() -> Result<Ioas> {
        Ok(Ioas { domain: Domain::new(), areas: Mutex::new(Areas::default()) })
    }

    /// Whether an IOMMU translates for the devices that are attached.
    pub fn translates(&self) -> bool {
        self.domain.is_some()
    }

    /// Attaches a function for the iommufd `owner`, under all names that it has at the IOMMU.
    ///
    /// # Errors
    /// `EBUSY` when another iommufd has a function of its group, `ENODEV` when no IOMMU serves it, `ENOMEM`, `EIO`.
    pub fn attach(&self, function: &Arc<Function>, owner: usize) -> Result<Attached> {
        if let Some(group) = function.group.get() {
            group.claim(owner)?;
        }
        let mut attached = Attached { attachments: Vec::new(), function: function.clone() };
        let Some(domain) = &self.domain else { return Ok(attached) };
        let sources = function.sources();
        faults::driven(&sources);
        for source in sources {
            attached.attachments.push(domain.attach(source).map_err(|error| match error {
                iommu::Error::None => Errno::ENODEV,
                iommu::Error::NoMemory => Errno::ENOMEM,
                iommu::Error::Busy => Errno::EBUSY,
                iommu::Error::Dead => Errno::EIO,
            })?);
        }
        Ok(attached)
    }

    /// Addresses that can be mapped.
    ///
    /// # Errors
    /// `EOPNOTSUPP` without an IOMMU.
    pub(super) fn ranges(&self) -> Result<Vec<IovaRange>> {
        if self.translates() { Ok(ranges()) } else { Err(Errno::EOPNOTSUPP) }
    }

    /// Restricts where addresses are chosen.
    ///
    /// # Errors
    /// `EINVAL` for ranges that are empty or overlap, `EADDRINUSE` for what can never be mapped, `EOPNOTSUPP` without an IOMMU.
    pub(super) fn allow(&self, mut wanted: Vec<IovaRange>) -> Result {
        let all = self.ranges()?;
        wanted.sort_by_key(|r| r.start);
        let aligned = |r: &IovaRange| r.start.is_multiple_of(PAGE) && r.last.wrapping_add(1).is_multiple_of(PAGE);
        let sound = wanted.iter().all(|r| r.start < r.last && aligned(r));
        if !sound || wanted.windows(2).any(|pair| pair[0].last >= pair[1].start) {
            return Err(Errno::EINVAL);
        }
        if !wanted.iter().all(|r| within(&all, r.start, r.last)) {
            return Err(Errno::EADDRINUSE);
        }
        self.areas.lock().allowed = wanted;
        Ok(())
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
    ///
    /// # Errors
    /// `EINVAL` for addresses that cannot be mapped, `EEXIST` for those that are, `ENOSPC`, `ENOMEM`.
    pub(super) fn map(&self, pin: Pin, flags: u32, iova: u64) -> Result<u64> {
        let domain = self.domain.as_ref().ok_or(Errno::EOPNOTSUPP)?;
        let len = pin.len();
        let all = ranges();
        let mut areas = self.areas.lock();
        if areas.all.len() >= AREAS_MAX {
            return Err(Errno::ENOMEM);
        }
        let start = if flags & IOAS_MAP_FIXED_IOVA != 0 {
            let last = iova.checked_add(len - 1).ok_or(Errno::EOVERFLOW)?;
            if !iova.is_multiple_of(PAGE) || !within(&all, iova, last) {
                return Err(Errno::EINVAL);
            }
            if areas.overlaps(iova, last) {
                return Err(Errno::EEXIST);
            }
            iova
        } else {
            let from = if areas.allowed.is_empty() { &all } else { &areas.allowed };
            areas.choose(from, len).ok_or(Errno::ENOSPC)?
        };
        let rights = Rights { read: flags & IOAS_MAP_READABLE != 0, write: flags & IOAS_MAP_WRITEABLE != 0 };
        let Pin { frames, charge } = pin;
        domain.map(start, frames, rights).map_err(|_| Errno::ENOMEM)?;
        areas.all.insert(start, Area { last: start + (len - 1), _charge: charge });
        Ok(start)
    }

    /// Unmaps whole areas; returns how many bytes. From 0 for all ones: everything.
    ///
    /// # Errors
    /// `ENOENT` when nothing is mapped there or an area would be cut; then nothing was unmapped.
    pub(super) fn unmap(&self, iova: u64, len: u64) -> Result<u64> {
        let domain = self.domain.as_ref().ok_or(Errno::EOPNOTSUPP)?;
        let all = iova == 0 && len == u64::MAX;
        let last = match len.checked_sub(1).ok_or(Errno::EINVAL)? {
            _ if all => u64::MAX,
            more => iova.checked_add(more).ok_or(Errno::EOVERFLOW)?,
        };
        let mut areas = self.areas.lock();
        let cut_before = areas.all.range(..iova).next_back().is_some_and(|(_, area)| area.last >= iova);
        let cut_after = areas.all.range(iova..=last).next_back().is_some_and(|(_, area)| area.last > last);
        if cut_before || cut_after {
            return Err(Errno::ENOENT);
        }
        let mut done = 0;
        while let Some((&start, area)) = areas.all.range(iova..=last).next() {
            let size = area.last - start + 1;
            let (mut at, end) = (start, start + size);
            while at < end {
                let next = ((at + CHUNK) & !(CHUNK - 1)).min(end);
                domain.unmap(at, (next - at) / PAGE);
                at = next;
                sched::cond_resched();
            }
            done += size;
            areas.all.remove(&start);
        }
        if done == 0 && !all { Err(Errno::ENOENT) } else { Ok(done) }
    }
}

impl Drop for Ioas {
    fn drop(&mut self) {
        // What is mapped goes with the domain, which nothing is attached to; in parts, so that others can run.
        let _ = self.unmap(0, u64::MAX);
    }
}
