//! `madvise`. See madvise(2); the set of advices is that of Linux 6.12.

use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_uapi::raw::general as uapi;
use ursa_hal::VirtAddr;
use ursa_hal::trap::Access;

use super::map::{page_len, user_range};
use super::space::AddressSpace;
use super::vma::{PAGE, Vma};
use super::{MemoryObject, VmFlags};
use crate::process::{Cap, capable};
use crate::{Errno, Result};

/// A decoded advice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// Changes flags: set, cleared.
    Flags(VmFlags, VmFlags),
    /// `MADV_DODUMP`, `MADV_DOFORK`: as `Flags`, refused for device memory.
    UnlessDevice(VmFlags),
    /// `MADV_WIPEONFORK`.
    WipeOnFork,
    /// Throw pages away: the next touch finds the file, or zeroes.
    DontNeed,
    /// As DontNeed, at the kernel's leisure, for private anonymous memory.
    Free,
    /// Read ahead.
    WillNeed,
    /// Punch a hole into the object.
    Remove,
    /// Nothing to do here, checked like DontNeed (`MADV_COLD`, `MADV_PAGEOUT`).
    Reclaim,
    /// Fault in for reading.
    PopulateRead,
    /// Fault in for writing.
    PopulateWrite,
}

impl Advice {
    /// Decodes the advice argument; `EINVAL` for unknown ones, `EPERM` for those that only tests of memory failure use.
    pub fn decode(advice: u32) -> Result<Advice> {
        use VmFlags as F;
        let none = F::empty();
        Ok(match advice {
            uapi::MADV_NORMAL => Advice::Flags(none, F::SEQ_READ | F::RAND_READ),
            uapi::MADV_SEQUENTIAL => Advice::Flags(F::SEQ_READ, F::RAND_READ),
            uapi::MADV_RANDOM => Advice::Flags(F::RAND_READ, F::SEQ_READ),
            uapi::MADV_DONTFORK => Advice::Flags(F::DONTCOPY, none),
            uapi::MADV_DOFORK => Advice::UnlessDevice(F::DONTCOPY),
            uapi::MADV_WIPEONFORK => Advice::WipeOnFork,
            uapi::MADV_KEEPONFORK => Advice::Flags(none, F::WIPEONFORK),
            uapi::MADV_DONTDUMP => Advice::Flags(F::DONTDUMP, none),
            uapi::MADV_DODUMP => Advice::UnlessDevice(F::DONTDUMP),
            uapi::MADV_HUGEPAGE => Advice::Flags(F::HUGEPAGE, F::NOHUGEPAGE),
            uapi::MADV_NOHUGEPAGE => Advice::Flags(F::NOHUGEPAGE, F::HUGEPAGE),
            uapi::MADV_MERGEABLE => Advice::Flags(F::MERGEABLE, none),
            uapi::MADV_UNMERGEABLE => Advice::Flags(none, F::MERGEABLE),
            uapi::MADV_DONTNEED | uapi::MADV_DONTNEED_LOCKED => Advice::DontNeed,
            uapi::MADV_FREE => Advice::Free,
            uapi::MADV_WILLNEED => Advice::WillNeed,
            uapi::MADV_REMOVE => Advice::Remove,
            uapi::MADV_COLD | uapi::MADV_PAGEOUT => Advice::Reclaim,
            uapi::MADV_POPULATE_READ => Advice::PopulateRead,
            uapi::MADV_POPULATE_WRITE => Advice::PopulateWrite,
            uapi::MADV_HWPOISON | uapi::MADV_SOFT_OFFLINE if !capable(Cap::SysAdmin) => return Err(Errno::EPERM),
            _ => return Err(Errno::EINVAL),
        })
    }
}

/// What has to be done for a stretch of an object without the mm lock.
enum Later {
    ReadAhead(Arc<MemoryObject>, u64, u64),
    Punch(Arc<MemoryObject>, u64, u64),
}

impl AddressSpace {
    /// Applies `raw` advice to a range.
    ///
    /// # Errors
    /// As madvise(2). A hole in the range is `ENOMEM` after the rest has been done.
    pub fn madvise(&self, addr: VirtAddr, len: usize, raw: u32) -> Result {
        let advice = Advice::decode(raw)?;
        if !addr.is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        let len = page_len(len).ok_or(Errno::EINVAL)?;
        let start = addr.as_u64();
        let end = start.checked_add(len).ok_or(Errno::EINVAL)?;
        if start == end {
            return Ok(());
        }
        // Nothing is mapped beyond user space.
        user_range(addr, len).ok_or(Errno::ENOMEM)?;
        match advice {
            Advice::PopulateRead => self.populate_range(start, end, Access::Read),
            Advice::PopulateWrite => self.populate_range(start, end, Access::Write),
            Advice::Flags(..) | Advice::UnlessDevice(_) | Advice::WipeOnFork => self.advise_flags(start, end, advice),
            _ => self.advise_pages(start, end, advice, raw == uapi::MADV_DONTNEED_LOCKED),
        }
    }

    /// Advice that changes VMAs.
    fn advise_flags(&self, start: u64, end: u64, advice: Advice) -> Result {
        let mut inner = self.inner.write();
        let mut at = start;
        let mut hole = false;
        while at < end {
            let Some(vma) = inner.vmas.find_at_or_above(at).filter(|vma| vma.start < end) else {
                hole = true;
                break;
            };
            hole |= vma.start > at;
            let (from, to) = (vma.start.max(at), vma.end.min(end));
            let flags = match advice {
                Advice::Flags(set, clear) => (vma.flags - clear) | set,
                Advice::UnlessDevice(clear) if vma.flags.intersects(VmFlags::IO | VmFlags::SPECIAL) => {
                    _ = clear;
                    return Err(Errno::EINVAL);
                }
                Advice::UnlessDevice(clear) => vma.flags - clear,
                _ if vma.backing.is_some() || vma.flags.contains(VmFlags::SHARED) => return Err(Errno::EINVAL),
                _ => vma.flags | VmFlags::WIPEONFORK,
            };
            if vma.flags.contains(VmFlags::DROPPABLE) && advice == Advice::Flags(VmFlags::empty(), VmFlags::WIPEONFORK)
            {
                return Err(Errno::EINVAL);
            }
            self.change_flags(&mut inner, from, to, |_| flags)?;
            at = to;
        }
        if hole { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Names private anonymous memory for `/proc/PID/maps` (`PR_SET_VMA_ANON_NAME`); `None` takes the name away. The caller has
    /// checked the characters.
    ///
    /// # Errors
    /// `EINVAL` unaligned, `EBADF` over a file, `ENOMEM` for holes (after the rest has been done).
    pub fn set_anon_name(&self, addr: VirtAddr, len: usize, name: Option<&[u8]>) -> Result {
        if !addr.is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        let len = page_len(len).ok_or(Errno::EINVAL)?;
        let (start, end) = (addr.as_u64(), user_range(addr, len).ok_or(Errno::EINVAL)?);
        if start == end {
            return Ok(());
        }
        let name: Option<Arc<str>> = match name.map(core::str::from_utf8).transpose() {
            Ok(name) => name.map(Arc::from),
            Err(_) => return Err(Errno::EINVAL),
        };
        let mut inner = self.inner.write();
        self.isolate(&mut inner, start, end)?;
        let mut at = start;
        let mut edges = Vec::new();
        let mut result = Ok(());
        for vma in inner.vmas.overlapping_mut(start, end) {
            if vma.start > at {
                result = Err(Errno::ENOMEM);
            }
            if vma.file().is_some() || vma.flags.contains(VmFlags::SPECIAL) {
                result = Err(Errno::EBADF);
                break;
            }
            vma.name = name.clone();
            edges.push(vma.start);
            at = vma.end;
        }
        if at < end && result.is_ok() {
            result = Err(Errno::ENOMEM);
        }
        self.merge(&mut inner, end);
        for at in edges.into_iter().rev() {
            self.merge(&mut inner, at);
        }
        result
    }

    /// Advice about pages: works under the shared lock, as faults do.
    fn advise_pages(&self, start: u64, end: u64, advice: Advice, locked_too: bool) -> Result {
        let mut later = Vec::new();
        let mut result = Ok(());
        {
            let inner = self.inner.read();
            let mut at = start;
            for vma in inner.vmas.overlapping(start, end) {
                if vma.start > at {
                    result = Err(Errno::ENOMEM);
                }
                let (from, to) = (vma.start.max(start), vma.end.min(end));
                self.advise_vma(vma, from, to, advice, locked_too, &mut later)?;
                at = to;
            }
            if at < end {
                result = Err(Errno::ENOMEM);
            }
        }
        for work in later {
            match work {
                Later::Punch(object, offset, len) => object.punch_hole(offset, len)?,
                Later::ReadAhead(object, first, last) => {
                    // A hint: what cannot be read now is reported when it is touched.
                    for index in first..last.min(object.size().div_ceil(PAGE)) {
                        if !object.is_resident(index) && object.bring_in(index).is_err() {
                            break;
                        }
                    }
                }
            }
        }
        result
    }

    fn advise_vma(
        &self,
        vma: &Vma,
        from: u64,
        to: u64,
        advice: Advice,
        locked_too: bool,
        later: &mut Vec<Later>,
    ) -> Result {
        let locked = vma.flags.contains(VmFlags::LOCKED) && !locked_too;
        let device = vma.flags.contains(VmFlags::PFNMAP);
        match advice {
            Advice::DontNeed => {
                if locked || device {
                    return Err(Errno::EINVAL);
                }
                self.unmap_pages(vma, from, to);
            }
            Advice::Free => {
                if !vma.is_anonymous() || locked {
                    return Err(Errno::EINVAL);
                }
                self.unmap_pages(vma, from, to);
            }
            Advice::Reclaim => {
                if locked || device {
                    return Err(Errno::EINVAL);
                }
            }
            Advice::Remove => {
                let object = vma.object().filter(|_| vma.file().is_some() && !locked).ok_or(Errno::EINVAL)?;
                if !vma.flags.contains(VmFlags::SHARED | VmFlags::WRITE) {
                    return Err(Errno::EACCES);
                }
                later.push(Later::Punch(object.clone(), vma.index_of(from) * PAGE, to - from));
            }
            Advice::WillNeed => {
                if let Some(object) = vma.object().filter(|object| object.tracks_dirty()) {
                    later.push(Later::ReadAhead(
                        object.clone(),
                        vma.index_of(from),
                        vma.index_of(from) + (to - from) / PAGE,
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// `MADV_POPULATE_*`: unlike `MAP_POPULATE` it reports what goes wrong.
    fn populate_range(&self, start: u64, end: u64, access: Access) -> Result {
        let mut at = start;
        while at < end {
            let stop = {
                let inner = self.inner.read();
                let vma = inner.vmas.find(at).ok_or(Errno::ENOMEM)?;
                let need = if access == Access::Write { VmFlags::WRITE } else { VmFlags::READ };
                if vma.flags.intersects(VmFlags::IO | VmFlags::PFNMAP) || !vma.flags.contains(need) {
                    return Err(Errno::EINVAL);
                }
                vma.end.min(end)
            };
            while at < stop {
                self.fault_in(at, access)?;
                at += PAGE;
            }
        }
        Ok(())
    }
}
