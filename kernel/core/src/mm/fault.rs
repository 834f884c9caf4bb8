//! Page faults: demand paging, copy on write, fault-around, stack growth.
//!
//! [`AddressSpace::handle_fault`] runs for user mode faults and, through hal's hook, for faults of the kernel's own copies to and
//! from user memory. It works under the shared mm lock and touches three things at most: the VMA, the object's page tree, the
//! page table. Whatever may sleep (reading from a pager, waiting for memory, growing a stack) is a [`Step`] that is taken after
//! the lock is released, then the fault starts over.
//!
//! What keeps faults few:
//! - A read of a file maps the pages around it that are present (16 pages, as Linux), in one go.
//! - A store to private anonymous memory that follows the last one maps ahead, doubling up to [`AHEAD_MAX`] pages. So
//!   touching memory in order costs a fault per 128 KiB. Where a mapping covers a block of 2 MiB of which nothing is there, the
//!   first store brings all of it ([`super::huge`]).
//! - A store to a page that only this mapping holds makes it writable in place. Reads of untouched anonymous memory share one
//!   page of zeroes.

use core::sync::atomic::Ordering::Relaxed;

use alloc::sync::Arc;

use linux_uapi::raw::general as uapi;
use ursa_hal::mm::{BLOCK_SIZE, Frame, MapError, WriteFault};
use ursa_hal::sync::Once;
use ursa_hal::trap::Access;
use ursa_hal::{USER_END, VirtAddr};

use super::account::PageKind;
use super::object::MemoryObject;
use super::space::{AddressSpace, Inner};
use super::vma::{PAGE, STACK_GUARD_GAP, Vma};
use super::{TAG_ANON, TAG_ZERO, VmFlags, account, limit, reclaim};
use crate::process::Resource;
use crate::{Errno, Result};

/// Pages that a read fault on an object maps at most, and to which multiple it is aligned (`fault_around_bytes`).
const AROUND: u64 = 16;
/// Pages that a run of stores to anonymous memory maps at most per fault.
const AHEAD_MAX: u64 = 32;

/// The signal that a fault ends in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// `SIGSEGV`, `SIGBUS`, or `SIGKILL` when the thread is to die for want of memory.
    pub signo: u32,
    /// `si_code`.
    pub code: i32,
    /// `si_addr`.
    pub addr: VirtAddr,
}

/// How a fault goes on.
enum Step {
    Done,
    /// Ends in `signo` with `code`.
    Fail(u32, i32),
    /// A page of the object has to be brought in first.
    Fetch(Arc<MemoryObject>, u64),
    /// The VMA above may be a stack that grows.
    Grow,
    NoMemory,
}

const MAPERR: Step = Step::Fail(uapi::SIGSEGV, uapi::SEGV_MAPERR as i32);
const ACCERR: Step = Step::Fail(uapi::SIGSEGV, uapi::SEGV_ACCERR as i32);
const PAST_END: Step = Step::Fail(uapi::SIGBUS, uapi::BUS_ADRERR as i32);

/// The page of zeroes that untouched anonymous memory reads from.
pub(super) fn zero_frame() -> &'static Frame {
    static ZERO: Once<Frame> = Once::new();
    ZERO.call_once(|| {
        let frame = Frame::alloc_zeroed().expect("memory for the page of zeroes");
        frame.set_tag(TAG_ZERO);
        frame
    })
}

impl AddressSpace {
    /// Makes the page at `addr` accessible as asked, or says which signal the access deserves. May sleep.
    pub fn handle_fault(&self, addr: VirtAddr, access: Access) -> core::result::Result<(), Fault> {
        let fault = |signo: u32, code: i32| Err(Fault { signo, code, addr });
        let va = addr.as_u64() & !(PAGE - 1);
        if va >= USER_END {
            return fault(uapi::SIGSEGV, uapi::SEGV_MAPERR as i32);
        }
        loop {
            let step = {
                let inner = self.inner.read();
                self.fault_step(&inner, va, access)
            };
            match step {
                Step::Done => return Ok(()),
                Step::Fail(signo, code) => return fault(signo, code),
                Step::Grow => {
                    if self.grow_stack(va).is_err() {
                        return fault(uapi::SIGSEGV, uapi::SEGV_MAPERR as i32);
                    }
                }
                Step::Fetch(object, index) => match object.bring_around(index) {
                    Ok(()) => {}
                    // Waiting for the pager was cut short by a fatal signal, or memory ran out and this thread must die.
                    Err(Errno::EINTR | Errno::ENOMEM | Errno::ERESTARTSYS) => {
                        return fault(uapi::SIGKILL, 0);
                    }
                    Err(_) => return fault(uapi::SIGBUS, uapi::BUS_ADRERR as i32),
                },
                Step::NoMemory => {
                    if reclaim::make_room().is_err() {
                        return fault(uapi::SIGKILL, 0);
                    }
                }
            }
        }
    }

    fn fault_step(&self, inner: &Inner, va: u64, access: Access) -> Step {
        let Some(vma) = inner.vmas.find(va) else {
            return match inner.vmas.find_at_or_above(va) {
                Some(above) if above.flags.contains(VmFlags::GROWSDOWN) => Step::Grow,
                _ => MAPERR,
            };
        };
        let allowed = match access {
            Access::Write => vma.flags.contains(VmFlags::WRITE),
            Access::Exec => vma.flags.contains(VmFlags::EXEC),
            Access::Read => vma.flags.intersects(VmFlags::ACCESS),
        };
        if !allowed {
            return ACCERR;
        }
        self.fault_vma(vma, va, access == Access::Write)
    }

    /// Provides the page at `va` for a read or a store that is allowed, or forced by a debugger.
    fn fault_vma(&self, vma: &Vma, va: u64, write: bool) -> Step {
        match vma.object() {
            None if write => self.write_anon(vma, va),
            None => self.read_anon(vma, va),
            Some(object) if object.is_device() => self.map_device(vma, object, va),
            Some(object) if !write => self.read_object(vma, object, va),
            Some(object) if vma.flags.contains(VmFlags::SHARED) => self.write_shared(vma, object, va),
            Some(object) => self.write_private(vma, object, va),
        }
    }

    fn read_anon(&self, vma: &Vma, va: u64) -> Step {
        let prot = vma.flags.prot() - ursa_hal::mm::Prot::W;
        match self.space.map(VirtAddr::new(va), zero_frame().clone(), prot, Default::default()) {
            Ok(()) | Err(MapError::AlreadyMapped) => Step::Done,
            Err(MapError::NoMemory) => Step::NoMemory,
        }
    }

    fn write_anon(&self, vma: &Vma, va: u64) -> Step {
        if !vma.has_anon.load(Relaxed) {
            vma.has_anon.store(true, Relaxed);
        }
        match self.space.write_fault(VirtAddr::new(va), TAG_ANON, vma.flags.prot()) {
            WriteFault::Done => Step::Done,
            WriteFault::Shared(frame) => self.copy_page(vma, va, frame),
            WriteFault::NotMapped => {
                if self.write_block(vma, va) {
                    return Step::Done;
                }
                let window = ahead(vma, va);
                let mut made = 0;
                let frames = (0..window).map_while(|i| {
                    let frame = reclaim::try_alloc()?;
                    frame.zero();
                    frame.set_tag(TAG_ANON);
                    made += 1;
                    Some((VirtAddr::new(va + i * PAGE), frame))
                });
                let mapped = self.space.map_many(vma.flags.prot(), Default::default(), frames);
                if mapped > 0 {
                    vma.ahead.store((va + made * PAGE) | (window.trailing_zeros() as u64 + 1), Relaxed);
                    self.counters.add(PageKind::Anon, mapped as i64);
                    return Step::Done;
                }
                // Nothing mapped: someone else was faster, or there is no frame or no page table.
                if made > 0 && self.space.query(VirtAddr::new(va)).is_some() { Step::Done } else { Step::NoMemory }
            }
        }
    }

    /// Breaks copy on write: `old` is mapped read-only at `va` and others hold it, too.
    fn copy_page(&self, vma: &Vma, va: u64, old: Frame) -> Step {
        let from_zero = old.tag() == TAG_ZERO;
        let Some(new) = reclaim::try_alloc() else { return Step::NoMemory };
        if from_zero {
            new.zero();
        } else {
            new.copy_from(&old);
        }
        new.set_tag(TAG_ANON);
        // Fails if someone else was faster; then the access is tried again and finds what it needs.
        if self.space.replace_if(VirtAddr::new(va), &old, new, vma.flags.prot()) {
            if from_zero {
                self.counters.add(PageKind::Anon, 1);
            } else if old.tag() != TAG_ANON {
                self.counters.add(PageKind::Anon, 1);
                self.counters.add(vma.object().map_or(PageKind::File, |o| o.page_kind()), -1);
            }
        }
        Step::Done
    }

    fn write_private(&self, vma: &Vma, object: &Arc<MemoryObject>, va: u64) -> Step {
        if !vma.has_anon.load(Relaxed) {
            vma.has_anon.store(true, Relaxed);
        }
        match self.space.write_fault(VirtAddr::new(va), TAG_ANON, vma.flags.prot()) {
            WriteFault::Done => Step::Done,
            WriteFault::Shared(frame) => self.copy_page(vma, va, frame),
            WriteFault::NotMapped => {
                let index = vma.index_of(va);
                let Some(new) = reclaim::try_alloc() else { return Step::NoMemory };
                // Mapped under the tree's lock, so that truncation finds the copy or keeps it from being made.
                let pages = object.pages.read();
                if index >= object.size().div_ceil(PAGE) {
                    return PAST_END;
                }
                let Some(source) = pages.get(index) else {
                    drop(pages);
                    return Step::Fetch(object.clone(), index);
                };
                new.copy_from(source);
                new.set_tag(TAG_ANON);
                match self.space.map(VirtAddr::new(va), new, vma.flags.prot(), Default::default()) {
                    Ok(()) => {
                        self.counters.add(PageKind::Anon, 1);
                        Step::Done
                    }
                    Err(MapError::AlreadyMapped) => Step::Done,
                    Err(MapError::NoMemory) => Step::NoMemory,
                }
            }
        }
    }

    fn read_object(&self, vma: &Vma, object: &Arc<MemoryObject>, va: u64) -> Step {
        let index = vma.index_of(va);
        let size = object.size().div_ceil(PAGE);
        if index >= size {
            return PAST_END;
        }
        // A store has to be noticed if the page has to be copied or written back.
        let mut prot = vma.flags.prot();
        if !vma.flags.contains(VmFlags::SHARED) || object.tracks_dirty() {
            prot -= ursa_hal::mm::Prot::W;
        }
        self.map_around(vma, object, va, index, size, prot)
    }

    /// Maps the page at `va` and those around it that are present and inside the VMA, under the page tree's lock.
    fn map_around(
        &self,
        vma: &Vma,
        object: &Arc<MemoryObject>,
        va: u64,
        index: u64,
        size: u64,
        prot: ursa_hal::mm::Prot,
    ) -> Step {
        let block = va & !(AROUND * PAGE - 1);
        let start = block.max(vma.start);
        let end = (block + AROUND * PAGE).min(vma.end).min(va + (size - index) * PAGE);
        let first = vma.index_of(start);
        let mut pages = object.pages.read();
        if pages.get_touched(index).is_none() && pages.get(index).is_some() {
            // Allocated ahead of use: this is the use. Its neighbours stay as they are.
            drop(pages);
            object.touch(index);
            pages = object.pages.read();
        }
        if pages.get_touched(index).is_none() {
            drop(pages);
            return Step::Fetch(object.clone(), index);
        }
        let mut at = first;
        let last = first + (end - start) / PAGE;
        let frames = core::iter::from_fn(|| {
            while at < last {
                at += 1;
                if let Some(frame) = pages.get_touched(at - 1) {
                    return Some((VirtAddr::new(start + (at - 1 - first) * PAGE), frame.clone()));
                }
            }
            None
        });
        let mapped = self.space.map_many(prot, Default::default(), frames);
        drop(pages);
        if mapped > 0 {
            self.counters.add(object.page_kind(), mapped as i64);
        } else if self.space.query(VirtAddr::new(va)).is_none() {
            return Step::NoMemory;
        }
        Step::Done
    }

    fn write_shared(&self, vma: &Vma, object: &Arc<MemoryObject>, va: u64) -> Step {
        let index = vma.index_of(va);
        let size = object.size().div_ceil(PAGE);
        if index >= size {
            return PAST_END;
        }
        let prot = vma.flags.prot();
        if object.tracks_dirty() {
            // Under the tree's lock, so that a write-back sees either neither the mark nor the right to write, or both.
            let mut pages = object.pages.write();
            let Some(frame) = pages.get(index).cloned() else {
                drop(pages);
                return Step::Fetch(object.clone(), index);
            };
            object.mark_dirty(&mut pages, index);
            return match self.space.map(VirtAddr::new(va), frame, prot, Default::default()) {
                Ok(()) => {
                    self.counters.add(PageKind::File, 1);
                    Step::Done
                }
                Err(MapError::AlreadyMapped) => self.allow_write(va, prot),
                Err(MapError::NoMemory) => Step::NoMemory,
            };
        }
        match self.map_around(vma, object, va, index, size, prot) {
            // Mapped read-only before an mprotect, or just now by someone else.
            Step::Done => self.allow_write(va, prot),
            other => other,
        }
    }

    /// Gives a page of a shared mapping the right to be written.
    fn allow_write(&self, va: u64, prot: ursa_hal::mm::Prot) -> Step {
        self.space.protect_all(VirtAddr::new(va)..VirtAddr::new(va + PAGE), |_| prot);
        Step::Done
    }

    fn map_device(&self, vma: &Vma, object: &MemoryObject, va: u64) -> Step {
        // Held over the mapping: what is retired meanwhile is found by its unmapping.
        let _pages = object.pages.read();
        let Some((phys, cache)) = object.device_page(vma.index_of(va)) else { return PAST_END };
        match self.space.map_phys(VirtAddr::new(va), phys, vma.flags.prot(), cache) {
            Ok(()) => Step::Done,
            Err(MapError::AlreadyMapped) => self.allow_write(va, vma.flags.prot()),
            Err(MapError::NoMemory) => Step::NoMemory,
        }
    }

    /// The page at `va` for someone who is not the CPU: another process, a debugger, the kernel. `force` ignores what `mprotect` set
    /// and obeys what it could set; a forced store to a private mapping makes a private copy (`FOLL_FORCE`). May sleep.
    ///
    /// # Errors
    /// `EFAULT` where an access would be a signal, and for device memory; `ENOMEM`.
    pub fn page_for(&self, va: VirtAddr, write: bool, force: bool) -> Result<Frame> {
        let va = va.page_down().as_u64();
        if va >= USER_END {
            return Err(Errno::EFAULT);
        }
        loop {
            let step = {
                let inner = self.inner.read();
                match inner.vmas.find(va) {
                    None => match inner.vmas.find_at_or_above(va) {
                        Some(above) if above.flags.contains(VmFlags::GROWSDOWN) => Step::Grow,
                        _ => MAPERR,
                    },
                    Some(vma) if !may_touch(vma.flags, write, force) => ACCERR,
                    Some(vma) => {
                        let mapped = self.space.query(VirtAddr::new(va));
                        if let Some(frame) = mapped.as_ref().and_then(|m| m.frame.as_ref()) {
                            let writable = mapped.as_ref().is_some_and(|m| m.prot.contains(ursa_hal::mm::Prot::W));
                            // Two references: the page table's and ours.
                            let own = frame.tag() == TAG_ANON && frame.ref_count() == 2;
                            if !write || writable || own {
                                return Ok(frame.clone());
                            }
                        }
                        self.fault_vma(vma, va, write)
                    }
                }
            };
            match step {
                Step::Done => {}
                Step::Fail(..) => return Err(Errno::EFAULT),
                Step::Grow => self.grow_stack(va).map_err(|_| Errno::EFAULT)?,
                Step::Fetch(object, index) => object.bring_in(index)?,
                Step::NoMemory => reclaim::make_room()?,
            }
        }
    }

    /// As [`AddressSpace::page_for`] without force, but never brings a page in or copies one: for who must not wait.
    ///
    /// # Errors
    /// `EFAULT` where an access would be a signal, and for device memory; `EAGAIN` where it would be a fault that succeeds.
    pub fn page_if_present(&self, va: VirtAddr, write: bool) -> Result<Frame> {
        let va = va.page_down().as_u64();
        if va >= USER_END {
            return Err(Errno::EFAULT);
        }
        let inner = self.inner.read();
        let Some(vma) = inner.vmas.find(va) else {
            let grows = inner.vmas.find_at_or_above(va).is_some_and(|above| above.flags.contains(VmFlags::GROWSDOWN));
            return Err(if grows { Errno::EAGAIN } else { Errno::EFAULT });
        };
        if !may_touch(vma.flags, write, false) {
            return Err(Errno::EFAULT);
        }
        let mapped = self.space.query(VirtAddr::new(va)).filter(|m| !write || m.prot.contains(ursa_hal::mm::Prot::W));
        mapped.and_then(|m| m.frame).ok_or(Errno::EAGAIN)
    }

    /// Brings the pages of a range in for the running thread, whose own space this is, as its accesses would.
    ///
    /// # Errors
    /// `EFAULT` where an access would be a signal, `ENOMEM`, `EINTR` for a thread that is to die.
    pub fn fault_in_range(&self, addr: VirtAddr, len: u64, write: bool) -> Result {
        let end = addr.as_u64().checked_add(len).filter(|&end| end <= USER_END).ok_or(Errno::EFAULT)?;
        let access = if write { Access::Write } else { Access::Read };
        let mut at = addr.page_down().as_u64();
        while at < end {
            self.fault_in(at, access)?;
            at += PAGE;
        }
        Ok(())
    }

    /// Extends the stack above `va` down to it (`expand_stack`).
    pub(super) fn grow_stack(&self, va: u64) -> Result {
        let mut inner = self.inner.write();
        let Some(above) = inner.vmas.find_at_or_above(va) else { return Err(Errno::ENOMEM) };
        if above.start <= va {
            // Someone else was faster.
            return Ok(());
        }
        if !above.flags.contains(VmFlags::GROWSDOWN) || va < super::layout::MMAP_MIN_ADDR {
            return Err(Errno::ENOMEM);
        }
        let (start, end, flags) = (above.start, above.end, above.flags);
        // Whatever is accessible below keeps its distance, except another stack.
        let blocked = inner.vmas.find_below(start).is_some_and(|below| {
            let near = va.saturating_sub(below.end) < STACK_GUARD_GAP;
            let guarded = !below.flags.contains(VmFlags::GROWSDOWN) && below.flags.intersects(VmFlags::ACCESS);
            below.end > va || guarded && near
        });
        if blocked {
            return Err(Errno::ENOMEM);
        }
        let grow = (start - va) / PAGE;
        if end - va > limit(Resource::Stack) {
            return Err(Errno::ENOMEM);
        }
        if !inner.may_expand(flags, grow) || !inner.may_lock(flags, grow) {
            return Err(Errno::ENOMEM);
        }
        if flags.contains(VmFlags::ACCOUNT) {
            account::commit(grow)?;
        }
        inner.vmas.set_start(start, va);
        let stand_in = Vma::new(0, 0, flags, None, 0);
        inner.count(&stand_in, grow, 1);
        if let Some(vma) = inner.vmas.find(va) {
            super::rmap::update(vma);
        }
        Ok(())
    }
}

/// How many pages a store to anonymous memory at `va` maps: one, or more if it continues a run of such faults.
fn ahead(vma: &Vma, va: u64) -> u64 {
    let hint = vma.ahead.load(Relaxed);
    let run = hint & (PAGE - 1);
    if hint & !(PAGE - 1) != va || run == 0 {
        return 1;
    }
    // Not into the next block, which may come whole.
    let end = vma.end.min((va & !(BLOCK_SIZE - 1)) + BLOCK_SIZE);
    (1 << run).min(AHEAD_MAX).min((end - va) / PAGE)
}

impl Inner {
    /// Whether `pages` more of a mapping with `flags` stay within `RLIMIT_AS` and `RLIMIT_DATA`.
    pub(super) fn may_expand(&self, flags: VmFlags, pages: u64) -> bool {
        if self.total + pages > limit(Resource::As) / PAGE {
            return false;
        }
        let data = flags & (VmFlags::WRITE | VmFlags::SHARED | VmFlags::GROWSDOWN) == VmFlags::WRITE;
        !data || self.data + pages <= limit(Resource::Data) / PAGE
    }

    /// Whether `pages` more of a mapping with `flags` stay within `RLIMIT_MEMLOCK`.
    pub(super) fn may_lock(&self, flags: VmFlags, pages: u64) -> bool {
        !flags.contains(VmFlags::LOCKED)
            || self.locked + pages <= limit(Resource::Memlock) / PAGE
            || crate::process::capable(crate::process::Cap::IpcLock)
    }
}

/// Whether someone else than the CPU may read or write a mapping (`check_vma_flags`).
fn may_touch(flags: VmFlags, write: bool, force: bool) -> bool {
    if flags.intersects(VmFlags::IO | VmFlags::PFNMAP) {
        return false;
    }
    if write {
        flags.contains(VmFlags::WRITE) || force && flags.is_cow()
    } else {
        flags.contains(VmFlags::READ) || force && flags.contains(VmFlags::MAYREAD)
    }
}

/// Resolves a fault of the kernel on user memory (copies of system calls). False: the copy fails with `EFAULT`.
pub fn handle_kernel_fault(addr: VirtAddr, access: Access) -> bool {
    crate::process::try_current().is_some_and(|thread| thread.vm().handle_fault(addr, access).is_ok())
}
