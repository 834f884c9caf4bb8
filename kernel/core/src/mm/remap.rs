//! `mremap`: resizing and moving mappings. See mremap(2) and Linux's `mm/mremap.c` for the order of the checks.

use bitflags::bitflags;
use core::sync::atomic::Ordering::Relaxed;
use ursa_hal::{USER_END, VirtAddr};

use super::edit::{MAX_MAP_COUNT, Removed};
use super::map::{page_len, user_range};
use super::space::{AddressSpace, Inner};
use super::vma::{PAGE, Vma};
use super::{VmFlags, account, rmap};
use crate::{Errno, Result};

bitflags! {
    /// `MREMAP_*`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct RemapFlags: u32 {
        /// The mapping may move.
        const MAYMOVE = 1;
        /// To exactly the given address; what is there goes.
        const FIXED = 2;
        /// Pages move, the old mapping stays (empty).
        const DONTUNMAP = 4;
    }
}

/// A decoded call.
#[derive(Clone, Copy)]
struct Remap {
    addr: u64,
    old_len: u64,
    new_len: u64,
    flags: RemapFlags,
    new_addr: u64,
}

impl AddressSpace {
    /// Resizes or moves the mapping at `addr`. Returns where it is then.
    ///
    /// # Errors
    /// `EINVAL`, `EFAULT` if the old range is not one mapping, `ENOMEM`, `EAGAIN` for locked memory.
    pub fn mremap(
        &self,
        addr: VirtAddr,
        old_len: usize,
        new_len: usize,
        flags: RemapFlags,
        new_addr: VirtAddr,
    ) -> Result<VirtAddr> {
        let moves = flags.contains(RemapFlags::MAYMOVE);
        if flags.contains(RemapFlags::FIXED) && !moves
            || flags.contains(RemapFlags::DONTUNMAP) && (!moves || old_len != new_len)
            || !addr.is_page_aligned()
        {
            return Err(Errno::EINVAL);
        }
        let old_len = page_len(old_len).ok_or(Errno::EINVAL)?;
        let new_len = page_len(new_len).filter(|&len| len > 0).ok_or(Errno::EINVAL)?;
        let call = Remap { addr: addr.as_u64(), old_len, new_len, flags, new_addr: new_addr.as_u64() };
        let mut removed = Removed::default();
        let (at, fill) = {
            let mut inner = self.inner.write();
            let at = self.remap_locked(&mut inner, call, &mut removed)?;
            let locked = inner.vmas.find(at).is_some_and(|vma| {
                vma.flags & (VmFlags::LOCKED | VmFlags::LOCKONFAULT) == VmFlags::LOCKED && new_len > old_len
            });
            (at, locked)
        };
        drop(removed);
        if fill {
            _ = self.populate(at + old_len, at + new_len);
        }
        Ok(VirtAddr::new(at))
    }

    fn remap_locked(&self, inner: &mut Inner, call: Remap, removed: &mut Removed) -> Result<u64> {
        let Remap { addr, mut old_len, new_len, flags, new_addr } = call;
        inner.vmas.find(addr).ok_or(Errno::EFAULT)?;
        let fixed = flags.contains(RemapFlags::FIXED);
        if fixed || flags.contains(RemapFlags::DONTUNMAP) {
            if fixed {
                let end = user_range(VirtAddr::new(new_addr), new_len).ok_or(Errno::EINVAL)?;
                if addr < end && new_addr < addr.saturating_add(old_len) {
                    return Err(Errno::EINVAL);
                }
                if new_addr < super::layout::MMAP_MIN_ADDR && !crate::process::capable(crate::process::Cap::SysRawio) {
                    return Err(Errno::EPERM);
                }
            }
            if inner.vmas.len() + 2 >= MAX_MAP_COUNT - 3 {
                return Err(Errno::ENOMEM);
            }
            if fixed {
                self.remove_range(inner, new_addr, new_addr + new_len, removed)?;
            }
            if old_len > new_len {
                let end = user_range(VirtAddr::new(addr), old_len).ok_or(Errno::EINVAL)?;
                self.remove_range(inner, addr + new_len, end, removed)?;
                old_len = new_len;
            }
            self.check_resize(inner, addr, old_len, new_len, flags)?;
            if flags.contains(RemapFlags::DONTUNMAP) {
                let vma = inner.vmas.find(addr).ok_or(Errno::EFAULT)?;
                if !inner.may_expand(vma.flags, old_len / PAGE) {
                    return Err(Errno::ENOMEM);
                }
            }
            let to = if fixed { new_addr } else { self.place_near(inner, new_addr, new_len)? };
            return self.move_mapping(inner, addr, old_len, new_len, to, flags, removed);
        }
        if old_len >= new_len {
            let end = addr.checked_add(old_len).filter(|&end| end <= USER_END).ok_or(Errno::EINVAL)?;
            self.remove_range(inner, addr + new_len, end, removed)?;
            return Ok(addr);
        }
        self.check_resize(inner, addr, old_len, new_len, flags)?;
        let vma = inner.vmas.find(addr).ok_or(Errno::EFAULT)?;
        if old_len > 0 && addr + old_len == vma.end && self.extend_in_place(inner, addr, old_len, new_len)? {
            return Ok(addr);
        }
        if !flags.contains(RemapFlags::MAYMOVE) {
            return Err(Errno::ENOMEM);
        }
        let to = self.place_for_remap(inner, new_len)?;
        self.move_mapping(inner, addr, old_len, new_len, to, flags, removed)
    }

    /// For `DONTUNMAP` without `FIXED`: the given address is a hint.
    fn place_near(&self, inner: &mut Inner, hint: u64, len: u64) -> Result<u64> {
        if hint != 0
            && hint >= super::layout::MMAP_MIN_ADDR
            && user_range(VirtAddr::new(hint), len).is_some_and(|end| inner.vmas.is_free_guarded(hint, end))
        {
            return Ok(hint);
        }
        self.place_for_remap(inner, len)
    }

    /// Whether the mapping may take this size (`vma_to_resize`).
    fn check_resize(&self, inner: &Inner, addr: u64, old_len: u64, new_len: u64, flags: RemapFlags) -> Result {
        let vma = inner.vmas.find(addr).ok_or(Errno::EFAULT)?;
        let fixed_size = VmFlags::DONTEXPAND | VmFlags::PFNMAP;
        if old_len == 0 && !vma.flags.contains(VmFlags::MAYSHARE) {
            return Err(Errno::EINVAL);
        }
        if flags.contains(RemapFlags::DONTUNMAP) && vma.flags.intersects(fixed_size) {
            return Err(Errno::EINVAL);
        }
        if old_len > vma.end - addr {
            return Err(Errno::EFAULT);
        }
        if new_len == old_len {
            return Ok(());
        }
        if vma.index_of(addr).checked_add(new_len / PAGE).is_none_or(|end| end > u64::MAX / PAGE) {
            return Err(Errno::EINVAL);
        }
        if vma.flags.intersects(fixed_size) {
            return Err(Errno::EFAULT);
        }
        let more = (new_len - old_len) / PAGE;
        if !inner.may_lock(vma.flags, more) {
            return Err(Errno::EAGAIN);
        }
        if !inner.may_expand(vma.flags, more) {
            return Err(Errno::ENOMEM);
        }
        Ok(())
    }

    /// Grows a mapping where it is, if what follows is free.
    fn extend_in_place(&self, inner: &mut Inner, addr: u64, old_len: u64, new_len: u64) -> Result<bool> {
        let Some(vma) = inner.vmas.find(addr) else { return Err(Errno::EFAULT) };
        let (start, old_end, flags) = (vma.start, vma.end, vma.flags);
        let Some(end) = addr.checked_add(new_len).filter(|&end| end <= USER_END) else { return Ok(false) };
        if !inner.vmas.is_free_guarded(old_end, end) {
            return Ok(false);
        }
        let more = (new_len - old_len) / PAGE;
        if flags.contains(VmFlags::ACCOUNT) {
            account::commit(more)?;
        }
        inner.vmas.set_end(start, end);
        inner.count(&Vma::new(0, 0, flags, None, 0), more, 1);
        if let Some(vma) = inner.vmas.find(start) {
            rmap::update(vma);
        }
        self.merge(inner, end);
        Ok(true)
    }

    /// Moves (or, for a length of 0, duplicates) a mapping to a free range.
    #[expect(clippy::too_many_arguments, reason = "the arguments of mremap")]
    fn move_mapping(
        &self,
        inner: &mut Inner,
        addr: u64,
        old_len: u64,
        new_len: u64,
        to: u64,
        flags: RemapFlags,
        removed: &mut Removed,
    ) -> Result<u64> {
        if inner.vmas.len() + 3 >= MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        let vma = inner.vmas.find(addr).ok_or(Errno::EFAULT)?;
        let mut copy = vma.duplicate();
        copy.pgoff = vma.index_of(addr);
        (copy.start, copy.end) = (to, to + new_len);
        let pages = new_len / PAGE;
        if copy.flags.contains(VmFlags::ACCOUNT) {
            account::commit(pages)?;
        }
        // The new place is in the reverse map before pages arrive, and no one walks the map while they are under way.
        rmap::attach(self, &mut copy);
        let object = copy.object().cloned();
        let moved = {
            let _map = object.as_ref().map(|object| object.rmap.lock());
            self.space.move_range(VirtAddr::new(addr), VirtAddr::new(to), old_len)
        };
        if moved.is_err() {
            rmap::detach(&mut copy);
            if copy.flags.contains(VmFlags::ACCOUNT) {
                account::uncommit(pages);
            }
            return Err(Errno::ENOMEM);
        }
        self.link(inner, copy);
        if flags.contains(RemapFlags::DONTUNMAP) {
            // What stays is empty, and not locked.
            let end = addr + old_len;
            self.change_flags(inner, addr, end, |vma| vma.flags - (VmFlags::LOCKED | VmFlags::LOCKONFAULT))?;
            if let Some(vma) = inner.vmas.find(addr).filter(|vma| vma.start == addr && vma.end == end) {
                vma.has_anon.store(false, Relaxed);
            }
        } else if old_len > 0 {
            self.remove_range(inner, addr, addr + old_len, removed)?;
        }
        Ok(to)
    }
}
