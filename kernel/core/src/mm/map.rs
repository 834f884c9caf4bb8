//! `mmap`, `munmap`, `mprotect`, `brk`: making, removing and changing mappings.
//!
//! Each operation decodes first (the system call files), then works under the exclusive mm lock; what has to be dropped or
//! faulted in comes after it. Errors and their order follow Linux's `mm/mmap.c` and `mm/mprotect.c`; see mmap(2), brk(2).

use alloc::sync::Arc;

use linux_uapi::raw::general as uapi;
use ursa_hal::mm::{BLOCK_SIZE, Prot};
use ursa_hal::trap::Access;
use ursa_hal::{USER_END, VirtAddr};

use super::edit::{MAX_MAP_COUNT, Removed};
use super::layout::{LOW_END, MMAP_MIN_ADDR};
use super::object::Seals;
use super::space::{AddressSpace, Inner};
use super::vma::{Backing, PAGE, Vma};
use super::{FileRef, MapFlags, MemoryObject, VmFlags, account, limit};
use crate::process::{Cap, Resource, capable};
use crate::{Errno, Result};

/// What a new mapping shows.
#[derive(Clone, Default)]
pub enum MapBacking {
    /// Zeroes: private, or (with [`MapFlags::SHARED`]) an object of its own.
    #[default]
    Anonymous,
    /// An object from a byte offset on, a multiple of the page size.
    Object {
        /// The pages.
        object: Arc<MemoryObject>,
        /// Where the mapping starts in it.
        offset: u64,
        /// What to show in `/proc/PID/maps` and keep open.
        file: Option<FileRef>,
    },
}

/// The arguments of a new mapping. A file's `mmap` operation gets one with its own `offset`, and sets `backing`.
#[derive(Clone)]
pub struct MapRequest {
    /// Where, or where if possible.
    pub addr: VirtAddr,
    /// Bytes; rounded up to pages.
    pub len: usize,
    /// Of [`VmFlags::ACCESS`]: what is allowed at first.
    pub prot: VmFlags,
    /// How.
    pub flags: MapFlags,
    /// The offset argument of `mmap`, in bytes.
    pub offset: u64,
    /// What. Set by the file's `mmap` operation.
    pub backing: MapBacking,
    /// The file to name although the memory is private and anonymous: a mapping of `/dev/zero`.
    pub zeroes_of: Option<FileRef>,
    /// Flags that the file adds (device memory: [`VmFlags::IO`], [`VmFlags::DONTEXPAND`], [`VmFlags::DONTDUMP`]).
    pub extra: VmFlags,
    /// Rights that `mprotect` may never give: [`VmFlags::MAYWRITE`] for a shared mapping of a file open for reading only.
    pub denied: VmFlags,
}

impl MapRequest {
    /// A private anonymous mapping of `len` bytes, anywhere.
    pub fn anonymous(len: usize, prot: VmFlags) -> MapRequest {
        MapRequest {
            addr: VirtAddr::new(0),
            len,
            prot,
            flags: MapFlags::ANONYMOUS,
            offset: 0,
            backing: MapBacking::Anonymous,
            zeroes_of: None,
            extra: VmFlags::empty(),
            denied: VmFlags::empty(),
        }
    }
}

impl MapRequest {
    /// Names `file` as what is mapped, unless its `mmap` operation named another one.
    pub fn keep_open(&mut self, file: &FileRef) {
        match &mut self.backing {
            MapBacking::Object { file: slot, .. } => drop(slot.get_or_insert_with(|| file.clone())),
            MapBacking::Anonymous => self.zeroes_of = Some(file.clone()),
        }
    }
}

/// What happened to the address of a request: the range it got.
struct Placed {
    start: u64,
    end: u64,
}

/// The length of a range in whole pages; `None` if that overflows.
pub(super) fn page_len(len: usize) -> Option<u64> {
    (len as u64).checked_next_multiple_of(PAGE)
}

/// Checks a page range argument of `munmap`, `mprotect`, `madvise`…: aligned, within user space. Returns its end.
pub(super) fn user_range(start: VirtAddr, len: u64) -> Option<u64> {
    let start = start.as_u64();
    (start.is_multiple_of(PAGE) && len <= USER_END && start <= USER_END - len).then(|| start + len)
}

impl AddressSpace {
    /// Makes a mapping. Returns its address.
    ///
    /// # Errors
    /// As mmap(2): `ENOMEM` for limits and missing room, `EINVAL`, `EEXIST`, `EPERM`, `EAGAIN` for locked memory.
    pub fn mmap(&self, req: &MapRequest) -> Result<VirtAddr> {
        let len = page_len(req.len).filter(|&len| len > 0).ok_or(Errno::ENOMEM)?;
        let mut removed = Removed::default();
        let (placed, flags) = {
            let mut inner = self.inner.write();
            self.mmap_locked(&mut inner, req, len, &mut removed)?
        };
        drop(removed);
        let populate = req.flags.contains(MapFlags::POPULATE) && !req.flags.contains(MapFlags::NONBLOCK);
        if populate || flags & (VmFlags::LOCKED | VmFlags::LOCKONFAULT) == VmFlags::LOCKED {
            // As on Linux the mapping stands even if it cannot be filled.
            _ = self.populate(placed.start, placed.end);
        }
        Ok(VirtAddr::new(placed.start))
    }

    fn mmap_locked(
        &self,
        inner: &mut Inner,
        req: &MapRequest,
        len: u64,
        removed: &mut Removed,
    ) -> Result<(Placed, VmFlags)> {
        if inner.vmas.len() > MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        let start = place(inner, req, len)?;
        let end = start + len;
        let pages = len / PAGE;

        let mut flags = req.prot | VmFlags::MAYACCESS | req.extra | inner.future;
        flags -= req.denied;
        if req.flags.contains(MapFlags::GROWSDOWN) {
            flags |= VmFlags::GROWSDOWN;
        }
        if req.flags.contains(MapFlags::LOCKED) {
            if !may_mlock() {
                return Err(Errno::EPERM);
            }
            flags |= VmFlags::LOCKED;
        }
        if req.flags.contains(MapFlags::DROPPABLE) {
            // Contents may vanish: the pages are wiped in a child and not in dumps.
            flags = (flags - (VmFlags::LOCKED | VmFlags::LOCKONFAULT))
                | VmFlags::DROPPABLE
                | VmFlags::WIPEONFORK
                | VmFlags::DONTDUMP;
        }
        if !inner.may_lock(flags, pages) {
            return Err(Errno::EAGAIN);
        }
        let shared = req.flags.contains(MapFlags::SHARED);
        if shared {
            flags |= VmFlags::MAYSHARE | VmFlags::SHARED;
        }
        if let MapBacking::Object { object, offset, .. } = &req.backing {
            if !offset.is_multiple_of(PAGE) || offset.checked_add(len).is_none() {
                return Err(Errno::EINVAL);
            }
            if shared && object.seals().intersects(Seals::WRITE | Seals::FUTURE_WRITE) {
                if flags.contains(VmFlags::WRITE) {
                    return Err(Errno::EPERM);
                }
                flags -= VmFlags::MAYWRITE;
            }
            if object.is_device() {
                flags |= VmFlags::PFNMAP | VmFlags::IO | VmFlags::DONTEXPAND | VmFlags::DONTDUMP;
            }
        }
        if shared && !flags.contains(VmFlags::MAYWRITE) {
            // A shared mapping that can never be written is like a private one that always shows the file.
            flags -= VmFlags::SHARED;
        }
        if req.flags.contains(MapFlags::STACK) {
            // A thread's stack is as good as empty; Linux 6.7 and newer see it so.
            flags |= VmFlags::NOHUGEPAGE;
        }
        if req.flags.contains(MapFlags::NORESERVE)
            && account::OVERCOMMIT.load(core::sync::atomic::Ordering::Relaxed) != 2
        {
            flags |= VmFlags::NORESERVE;
        }

        // What FIXED replaces does not count against the limit.
        let replaced: u64 =
            inner.vmas.overlapping(start, end).map(|v| (v.end.min(end) - v.start.max(start)) / PAGE).sum();
        if !inner.may_expand(flags, pages.saturating_sub(replaced)) {
            return Err(Errno::ENOMEM);
        }
        self.remove_range(inner, start, end, removed)?;

        let backing = match &req.backing {
            MapBacking::Anonymous if shared => {
                let object = MemoryObject::new_shmem_charged(len, Some(self.charge().clone()), None);
                if !flags.contains(VmFlags::NORESERVE) {
                    object.commit(pages)?;
                }
                Some((object, 0, None))
            }
            MapBacking::Anonymous => None,
            MapBacking::Object { object, offset, file } => Some((object.clone(), offset / PAGE, file.clone())),
        };
        let accountable = flags & (VmFlags::NORESERVE | VmFlags::SHARED | VmFlags::WRITE) == VmFlags::WRITE;
        if accountable {
            account::commit(pages)?;
            flags |= VmFlags::ACCOUNT;
        }
        let mut vma = match (backing, &req.zeroes_of) {
            (Some((object, pgoff, file)), _) => {
                Vma::new(start, end, flags, Some(Arc::new(Backing { object, file })), pgoff)
            }
            (None, Some(_)) => Vma::new(start, end, flags, None, req.offset / PAGE),
            (None, None) => Vma::new(start, end, flags, None, start / PAGE),
        };
        if vma.backing.is_none() {
            vma.zeroes_of = req.zeroes_of.clone();
        }
        self.link(inner, vma);
        Ok((Placed { start, end }, flags))
    }

    /// Removes all mappings of a range (`munmap`).
    ///
    /// # Errors
    /// `EINVAL` for a range that is not one, `ENOMEM` if splitting makes too many mappings.
    pub fn munmap(&self, addr: VirtAddr, len: usize) -> Result {
        let len = page_len(len).filter(|&len| len > 0).ok_or(Errno::EINVAL)?;
        let end = user_range(addr, len).ok_or(Errno::EINVAL)?;
        let mut removed = Removed::default();
        let mut inner = self.inner.write();
        let result = self.remove_range(&mut inner, addr.as_u64(), end, &mut removed);
        drop(inner);
        drop(removed);
        result
    }

    /// Changes what is allowed in a range (`mprotect`); `prot` of [`VmFlags::ACCESS`]. `grows` is `PROT_GROWSDOWN`.
    ///
    /// # Errors
    /// `EINVAL` unaligned, `ENOMEM` for holes (what comes before is changed) and limits, `EACCES` for rights the mapping
    /// may not have.
    pub fn mprotect(&self, addr: VirtAddr, len: usize, prot: VmFlags, grows: bool) -> Result {
        let mut start = addr.as_u64();
        if !start.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        if len == 0 {
            return Ok(());
        }
        let len = page_len(len).ok_or(Errno::ENOMEM)?;
        let end = start.checked_add(len).filter(|&end| end <= USER_END).ok_or(Errno::ENOMEM)?;
        let mut inner = self.inner.write();
        let first = inner.vmas.find_at_or_above(start).ok_or(Errno::ENOMEM)?;
        if grows {
            if first.start >= end {
                return Err(Errno::ENOMEM);
            }
            if !first.flags.contains(VmFlags::GROWSDOWN) {
                return Err(Errno::EINVAL);
            }
            start = first.start;
        } else if first.start > start {
            return Err(Errno::ENOMEM);
        }
        let mut at = start;
        while at < end {
            let Some(vma) = inner.vmas.find(at) else { return Err(Errno::ENOMEM) };
            let stop = vma.end.min(end);
            self.protect_one(&mut inner, at, stop, prot)?;
            at = stop;
        }
        Ok(())
    }

    /// Changes the rights of a range inside one VMA.
    fn protect_one(&self, inner: &mut Inner, start: u64, end: u64, prot: VmFlags) -> Result {
        let Some(vma) = inner.vmas.find(start) else { return Err(Errno::ENOMEM) };
        let old = vma.flags;
        let mut new = (old - VmFlags::ACCESS) | prot;
        if new == old {
            return Ok(());
        }
        // VM_MAYx is VM_x shifted by four.
        let may = VmFlags::from_bits_truncate((new.bits() >> 4) & VmFlags::ACCESS.bits());
        if !may.contains(prot) {
            return Err(Errno::EACCES);
        }
        let pages = (end - start) / PAGE;
        let private_write = VmFlags::WRITE | VmFlags::SHARED | VmFlags::GROWSDOWN;
        if new & private_write == VmFlags::WRITE && old & private_write != VmFlags::WRITE {
            if inner.data + pages > limit(Resource::Data) / PAGE {
                return Err(Errno::ENOMEM);
            }
            if !old.intersects(VmFlags::ACCOUNT | VmFlags::NORESERVE) {
                account::commit(pages)?;
                new |= VmFlags::ACCOUNT;
            }
        }
        let shared = old.contains(VmFlags::SHARED);
        if let Err(error) = self.change_flags(inner, start, end, |_| new) {
            if new.contains(VmFlags::ACCOUNT) && !old.contains(VmFlags::ACCOUNT) {
                account::uncommit(pages);
            }
            return Err(error);
        }
        // Rights that are added come with the next fault, which knows about copies and dirty pages, except to pages that had them;
        // what is taken away is taken now. A page without any right keeps its place in the tables.
        let allowed = new.prot();
        self.space.protect(VirtAddr::new(start)..VirtAddr::new(end), |_, frame, had| {
            let mut page = allowed;
            if !had.contains(Prot::W) && (shared || frame.tag() != super::TAG_ANON || !frame.is_unique()) {
                page -= Prot::W;
            }
            page
        });
        Ok(())
    }

    /// Moves the end of the heap (`brk`). Returns where it is then: unchanged if it could not be moved.
    pub fn brk(&self, to: VirtAddr) -> VirtAddr {
        let to = to.as_u64();
        let mut removed = Removed::default();
        let mut inner = self.inner.write();
        let (start, old) = (inner.layout.start_brk, inner.layout.brk);
        let done = to >= start && to <= USER_END && self.move_brk(&mut inner, old, to, &mut removed).is_ok();
        if done {
            inner.layout.brk = to;
        }
        let (now, locked) = (inner.layout.brk, inner.future.contains(VmFlags::LOCKED));
        drop(inner);
        drop(removed);
        if done && locked && to > old {
            _ = self.populate(old.next_multiple_of(PAGE), to.next_multiple_of(PAGE));
        }
        VirtAddr::new(now)
    }

    fn move_brk(&self, inner: &mut Inner, old: u64, to: u64, removed: &mut Removed) -> Result {
        let layout = &inner.layout;
        let data = (to - layout.start_brk).saturating_add(layout.end_data.saturating_sub(layout.start_data));
        if data > limit(Resource::Data) {
            return Err(Errno::ENOMEM);
        }
        let (old, new) = (old.next_multiple_of(PAGE), to.next_multiple_of(PAGE));
        if new < old {
            return self.remove_range(inner, new, old, removed);
        }
        if new == old {
            return Ok(());
        }
        // One page stays free above the heap.
        if !inner.vmas.is_free_guarded(old, new + PAGE) || inner.vmas.len() > MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        let pages = (new - old) / PAGE;
        let flags = VmFlags::READ | VmFlags::WRITE | VmFlags::MAYACCESS | VmFlags::ACCOUNT | inner.future;
        if !inner.may_lock(flags, pages) {
            return Err(Errno::EAGAIN);
        }
        if !inner.may_expand(flags, pages) {
            return Err(Errno::ENOMEM);
        }
        account::commit(pages)?;
        let vma = Vma::new(old, new, flags, None, old / PAGE);
        // The usual case extends the heap in place: no new entry, nothing to merge.
        let below = inner.vmas.find_below(old).filter(|below| below.continued_by(&vma)).map(|below| below.start);
        match below {
            Some(start) => {
                inner.vmas.set_end(start, new);
                inner.count(&vma, pages, 1);
                self.merge(inner, new);
            }
            None => self.link(inner, vma),
        }
        Ok(())
    }

    /// Faults a range in as its rights allow: a store where it is writable, unless that would only copy (`MAP_POPULATE`, `mlock`).
    pub(super) fn populate(&self, start: u64, end: u64) -> Result {
        let mut at = start;
        while at < end {
            let (stop, access) = {
                let inner = self.inner.read();
                let Some(vma) = inner.vmas.find_at_or_above(at).filter(|vma| vma.start < end) else { break };
                at = at.max(vma.start);
                let access = if vma.flags & (VmFlags::WRITE | VmFlags::SHARED) == VmFlags::WRITE {
                    Some(Access::Write)
                } else if vma.flags.intersects(VmFlags::ACCESS) {
                    Some(Access::Read)
                } else {
                    None
                };
                (vma.end.min(end), access.filter(|_| !vma.flags.intersects(VmFlags::IO | VmFlags::PFNMAP)))
            };
            let Some(access) = access else {
                at = stop;
                continue;
            };
            while at < stop {
                self.fault_in(at, access)?;
                at += PAGE;
            }
        }
        Ok(())
    }

    /// One page of [`AddressSpace::populate`]; skips the fault if the page is there already.
    pub(super) fn fault_in(&self, va: u64, access: Access) -> Result {
        let there = self
            .space
            .query(VirtAddr::new(va))
            .is_some_and(|m| m.prot.contains(if access == Access::Write { Prot::W } else { Prot::R }));
        if there {
            return Ok(());
        }
        if super::is_dying() {
            return Err(Errno::EINTR);
        }
        self.handle_fault(VirtAddr::new(va), access).map_err(|fault| match fault.signo {
            uapi::SIGKILL => Errno::ENOMEM,
            _ => Errno::EFAULT,
        })
    }

    /// Maps a page-aligned range of the kernel's own (vDSO, vvar) that programs cannot resize or unlock.
    pub fn map_special(
        &self,
        addr: VirtAddr,
        object: &Arc<MemoryObject>,
        len: u64,
        prot: VmFlags,
        name: &'static str,
    ) -> Result {
        let end = user_range(addr, len).ok_or(Errno::EINVAL)?;
        let mut inner = self.inner.write();
        if inner.vmas.overlapping(addr.as_u64(), end).next().is_some() {
            return Err(Errno::EEXIST);
        }
        let flags = prot | VmFlags::MAYREAD | VmFlags::MAYEXEC | VmFlags::DONTEXPAND | VmFlags::SPECIAL;
        let flags = if prot.contains(VmFlags::EXEC) { flags | VmFlags::MAYWRITE } else { flags | VmFlags::DONTDUMP };
        let backing = Arc::new(Backing { object: object.clone(), file: None });
        let mut vma = Vma::new(addr.as_u64(), end, flags, Some(backing), 0);
        vma.name = Some(name.into());
        self.link(&mut inner, vma);
        Ok(())
    }

    /// A free range of `len` bytes in the mmap area, for the vDSO and the like.
    pub fn find_free(&self, len: u64) -> Result<VirtAddr> {
        let mut inner = self.inner.write();
        search(&mut inner, len, None).map(VirtAddr::new)
    }

    pub(super) fn place_for_remap(&self, inner: &mut Inner, len: u64) -> Result<u64> {
        search(inner, len, None)
    }
}

/// Whether the caller may lock memory at all (`can_do_mlock`).
pub(super) fn may_mlock() -> bool {
    limit(Resource::Memlock) != 0 || capable(Cap::IpcLock)
}

/// Finds the address for a request (`get_unmapped_area`).
fn place(inner: &mut Inner, req: &MapRequest, len: u64) -> Result<u64> {
    if len > USER_END {
        return Err(Errno::ENOMEM);
    }
    let mut addr = req.addr.as_u64();
    if req.flags.contains(MapFlags::FIXED) {
        if addr > USER_END - len {
            return Err(Errno::ENOMEM);
        }
        if !addr.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        if addr < MMAP_MIN_ADDR && !capable(Cap::SysRawio) {
            return Err(Errno::EPERM);
        }
        if req.flags.contains(MapFlags::FIXED_NOREPLACE) && inner.vmas.overlapping(addr, addr + len).next().is_some() {
            return Err(Errno::EEXIST);
        }
        return Ok(addr);
    }
    if req.flags.contains(MapFlags::BIT32) {
        return search(inner, len, Some(LOW_END));
    }
    if addr != 0 {
        // A hint: rounded as Linux does, and kept off the lowest pages.
        addr = (addr.checked_next_multiple_of(PAGE).unwrap_or(0)).max(MMAP_MIN_ADDR);
        if addr <= USER_END - len && inner.vmas.is_free_guarded(addr, addr + len) {
            return Ok(addr);
        }
    }
    let blocks = matches!(req.backing, MapBacking::Anonymous)
        && !req.flags.contains(MapFlags::SHARED)
        && len.is_multiple_of(BLOCK_SIZE)
        && !inner.layout.legacy;
    if blocks {
        // Whole blocks begin at one, so that they can be mapped as such.
        let (low, high) = inner.layout.search_area();
        if let Some(at) = inner.vmas.gap_top_down(len + BLOCK_SIZE, low, high) {
            return Ok((at + BLOCK_SIZE) & !(BLOCK_SIZE - 1));
        }
    }
    search(inner, len, None)
}

fn search(inner: &mut Inner, len: u64, below: Option<u64>) -> Result<u64> {
    let (low, high) = inner.layout.search_area();
    if let Some(end) = below {
        // MAP_32BIT: bottom up in the second GiB.
        return inner.vmas.gap_bottom_up(len, 0x4000_0000, end).ok_or(Errno::ENOMEM);
    }
    if inner.layout.legacy {
        return inner.vmas.gap_bottom_up(len, low, high).ok_or(Errno::ENOMEM);
    }
    if let Some(at) = inner.vmas.gap_top_down(len, low, high) {
        return Ok(at);
    }
    // The area below is full: try above it, as Linux's fallback does.
    inner.vmas.gap_bottom_up(len, USER_END / 3, USER_END).ok_or(Errno::ENOMEM)
}
