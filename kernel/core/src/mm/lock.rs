//! `mlock`, `munlock`, `mlockall`, `mincore`, `msync`: see their manual pages and Linux's `mm/mlock.c`, `mm/msync.c`.
//!
//! Memory is never swapped here, so a locked page differs from another only in that reclaim and `MADV_DONTNEED` leave it alone, and
//! in that it is there from the start. The limits and errors are Linux's all the same: programs depend on them.

use alloc::sync::Arc;
use alloc::vec::Vec;

use bitflags::bitflags;
use ursa_hal::{USER_END, VirtAddr};

use super::map::{may_mlock, page_len, user_range};
use super::space::AddressSpace;
use super::vma::PAGE;
use super::{MemoryObject, VmFlags, limit};
use crate::process::{Cap, Resource, capable};
use crate::{Errno, Result};

bitflags! {
    /// `MCL_*` of mlockall(2).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct LockAll: u32 {
        /// What is mapped now.
        const CURRENT = 1;
        /// What will be mapped.
        const FUTURE = 2;
        /// Pages when they are touched.
        const ONFAULT = 4;
    }
}

const BOTH: VmFlags = VmFlags::LOCKED.union(VmFlags::LOCKONFAULT);

/// Extends a byte range to pages. `EINVAL` if it wraps.
fn page_range(addr: VirtAddr, len: usize) -> Result<(u64, u64)> {
    let start = addr.page_down().as_u64();
    let len = (len as u64).checked_add(addr.page_offset() as u64).and_then(|len| len.checked_next_multiple_of(PAGE));
    let end = len.and_then(|len| start.checked_add(len)).ok_or(Errno::EINVAL)?;
    Ok((start, end))
}

impl AddressSpace {
    /// Locks a range; `on_fault` is `MLOCK_ONFAULT`.
    ///
    /// # Errors
    /// `EPERM` without any right to lock, `ENOMEM` over the limit or for holes, `EAGAIN` if pages could not be brought in.
    pub fn mlock(&self, addr: VirtAddr, len: usize, on_fault: bool) -> Result {
        if !may_mlock() {
            return Err(Errno::EPERM);
        }
        let (start, end) = page_range(addr, len)?;
        let pages = (end - start) / PAGE;
        {
            let mut inner = self.inner.write();
            let already: u64 = inner
                .vmas
                .overlapping(start, end)
                .filter(|vma| vma.flags.contains(VmFlags::LOCKED))
                .map(|vma| (vma.end.min(end) - vma.start.max(start)) / PAGE)
                .sum();
            let total = (inner.locked + pages).saturating_sub(already);
            if total > limit(Resource::Memlock) / PAGE && !capable(Cap::IpcLock) {
                return Err(Errno::ENOMEM);
            }
            let flags = if on_fault { BOTH } else { VmFlags::LOCKED };
            self.set_lock(&mut inner, start, end, flags)?;
        }
        if on_fault {
            return Ok(());
        }
        self.populate(start, end).map_err(|error| match error {
            Errno::EFAULT => Errno::ENOMEM,
            Errno::ENOMEM => Errno::EAGAIN,
            other => other,
        })
    }

    /// Unlocks a range.
    ///
    /// # Errors
    /// `ENOMEM` for holes.
    pub fn munlock(&self, addr: VirtAddr, len: usize) -> Result {
        let (start, end) = page_range(addr, len)?;
        self.set_lock(&mut self.inner.write(), start, end, VmFlags::empty())
    }

    /// Locks what is mapped and what will be.
    ///
    /// # Errors
    /// `EPERM`, `ENOMEM` over the limit.
    pub fn mlockall(&self, which: LockAll) -> Result {
        if !may_mlock() {
            return Err(Errno::EPERM);
        }
        let flags = if which.contains(LockAll::ONFAULT) { BOTH } else { VmFlags::LOCKED };
        let current = which.contains(LockAll::CURRENT);
        {
            let mut inner = self.inner.write();
            if current && inner.total > limit(Resource::Memlock) / PAGE && !capable(Cap::IpcLock) {
                return Err(Errno::ENOMEM);
            }
            inner.future = if which.contains(LockAll::FUTURE) { flags } else { VmFlags::empty() };
            if current {
                self.change_flags(&mut inner, 0, USER_END, |vma| lock_flags(vma.flags, flags))?;
            }
        }
        if current && !which.contains(LockAll::ONFAULT) {
            // As on Linux, what cannot be brought in is not an error.
            _ = self.populate(0, USER_END);
        }
        Ok(())
    }

    /// Unlocks everything.
    ///
    /// # Errors
    /// None that a caller can cause.
    pub fn munlockall(&self) -> Result {
        let mut inner = self.inner.write();
        inner.future = VmFlags::empty();
        self.change_flags(&mut inner, 0, USER_END, |vma| vma.flags - BOTH)
    }

    fn set_lock(&self, inner: &mut super::space::Inner, start: u64, end: u64, flags: VmFlags) -> Result {
        if start == end {
            return Ok(());
        }
        if end > USER_END {
            return Err(Errno::ENOMEM);
        }
        // Up to the first hole, as Linux.
        let mut covered = start;
        for vma in inner.vmas.overlapping(start, end) {
            if vma.start > covered {
                break;
            }
            covered = vma.end.min(end);
        }
        if covered > start {
            self.change_flags(inner, start, covered, |vma| lock_flags(vma.flags, flags))?;
        }
        if covered < end { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// For each page of the range whether it is in memory (`mincore`): hands runs of bytes to `out`, without locks.
    ///
    /// # Errors
    /// `EINVAL` unaligned, `ENOMEM` for holes, what `out` returns.
    pub fn mincore(&self, addr: VirtAddr, len: usize, mut out: impl FnMut(usize, &[u8]) -> Result) -> Result {
        if !addr.is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        let len = page_len(len).ok_or(Errno::ENOMEM)?;
        let end = user_range(addr, len).ok_or(Errno::ENOMEM)?;
        let start = addr.as_u64();
        let mut at = start;
        while at < end {
            let mut run = [0u8; 256];
            let mut count = 0;
            {
                let inner = self.inner.read();
                let vma = inner.vmas.find(at).ok_or(Errno::ENOMEM)?;
                let stop = vma.end.min(end).min(at + run.len() as u64 * PAGE);
                while at + (count as u64) * PAGE < stop {
                    let va = at + count as u64 * PAGE;
                    let mapped = || self.space.query(VirtAddr::new(va)).is_some();
                    run[count] = match vma.object() {
                        Some(object) => u8::from(object.is_touched(vma.index_of(va)) || mapped()),
                        None => u8::from(mapped()),
                    };
                    count += 1;
                }
            }
            out(((at - start) / PAGE) as usize, &run[..count])?;
            at += count as u64 * PAGE;
        }
        Ok(())
    }

    /// Writes what shared mappings of the range changed to where it belongs. `sync` waits for it (`MS_SYNC`).
    ///
    /// # Errors
    /// `EINVAL` unaligned, `ENOMEM` for holes (after the rest is done), `EBUSY` for `invalidate` over locked memory, `EIO`.
    pub fn msync(&self, addr: VirtAddr, len: usize, sync: bool, invalidate: bool) -> Result {
        if !addr.is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        let start = addr.as_u64();
        let len = page_len(len).ok_or(Errno::ENOMEM)?;
        let end = start.checked_add(len).ok_or(Errno::ENOMEM)?;
        let mut work: Vec<(Arc<MemoryObject>, u64, u64)> = Vec::new();
        let mut result = Ok(());
        {
            let inner = self.inner.read();
            let mut at = start;
            for vma in inner.vmas.overlapping(start, end) {
                if vma.start > at {
                    result = Err(Errno::ENOMEM);
                }
                let (from, to) = (vma.start.max(start), vma.end.min(end));
                if invalidate && vma.flags.contains(VmFlags::LOCKED) {
                    return Err(Errno::EBUSY);
                }
                if let Some(object) = vma.object().filter(|_| sync && vma.flags.contains(VmFlags::SHARED)) {
                    let first = vma.index_of(from);
                    work.push((object.clone(), first, first + (to - from) / PAGE));
                }
                at = to;
            }
            if at < end {
                result = Err(Errno::ENOMEM);
            }
        }
        for (object, first, last) in work {
            object.sync(first, last)?;
        }
        result
    }
}

/// The flags of a mapping after (un)locking; device memory is never locked.
fn lock_flags(old: VmFlags, lock: VmFlags) -> VmFlags {
    if old.intersects(VmFlags::DEVICE | VmFlags::SPECIAL | VmFlags::DROPPABLE) { old } else { (old - BOTH) | lock }
}
