//! The address space: [`AddressSpace`] and what it counts.
//!
//! Threads of a process share one (`CLONE_VM`). It owns the page tables (`UserSpace` of hal), the VMAs, the layout and
//! the counters. The other files of this module add the operations: `fault`, `map`, `protect`, `remap`, `advise`, `fork`,
//! `exec`, `remote`.
//!
//! ## Locking
//! `inner` is the mm lock (Linux's `mmap_lock`), a sleeping reader-writer lock. Faults take it shared: two that race on a page
//! are settled by the page table lock (the loser's page is dropped and it looks again). Everything that changes VMAs takes it
//! exclusive. Rules that keep it free of deadlock:
//! - User memory is never touched with it held (a fault would take it again), and no input from a pager is waited for: the
//!   fault path remembers object and index, lets go, waits, and starts over.
//! - Order: inode lock → mm lock → reverse map → page tree → page table lock. `FileOps::mmap` runs before it is taken.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU64, Ordering::Relaxed};

use ursa_hal::mm::UserSpace;
use ursa_hal::sync::{Once, RwLockReadGuard};
use ursa_hal::{USER_END, VirtAddr};

use super::account::{self, Charge, PageKind};
use super::edit::Removed;
use super::layout::Layout;
use super::vma::{PAGE, Vma, VmaSet};
use super::{FileRef, VmFlags, rmap};
use crate::wait::{KernelPark, RwLock};
use crate::{Errno, Result};

/// Resident pages of an address space, by kind. Signed, since a counter may be decreased before its increase is seen.
#[derive(Debug, Default)]
pub struct Counters {
    anon: AtomicI64,
    file: AtomicI64,
    shmem: AtomicI64,
    peak_rss: AtomicI64,
}

impl Counters {
    pub(super) fn add(&self, kind: PageKind, count: i64) {
        if count < 0 {
            // Only a decrease can hide a peak.
            self.peak_rss.fetch_max(self.rss(), Relaxed);
        }
        match kind {
            PageKind::Anon => &self.anon,
            PageKind::File => &self.file,
            PageKind::Shmem => &self.shmem,
        }
        .fetch_add(count, Relaxed);
    }

    fn rss(&self) -> i64 {
        self.anon.load(Relaxed) + self.file.load(Relaxed) + self.shmem.load(Relaxed)
    }
}

/// A snapshot of the counters of an address space, in pages (`/proc/PID/status`, `statm`).
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the names are those of the fields of /proc/PID/status")]
pub struct Usage {
    pub vm_size: u64,
    pub vm_peak: u64,
    pub vm_lck: u64,
    pub vm_hwm: u64,
    pub rss_anon: u64,
    pub rss_file: u64,
    pub rss_shmem: u64,
    pub vm_data: u64,
    pub vm_stk: u64,
    pub vm_exe: u64,
    /// Of the program's code, whether or not it is still mapped.
    pub code: u64,
    pub vm_lib: u64,
    pub vm_pte: u64,
}

impl Usage {
    /// Resident pages.
    pub fn rss(&self) -> u64 {
        self.rss_anon + self.rss_file + self.rss_shmem
    }
}

/// The file that is being executed; writers are refused while it is.
pub(super) struct Executable(FileRef);

impl Executable {
    fn new(file: FileRef) -> Result<Executable> {
        if let Some(inode) = file.inode() {
            inode.deny_write()?;
        }
        Ok(Executable(file))
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        if let Some(inode) = self.0.inode() {
            inode.allow_write();
        }
    }
}

/// What the mm lock protects.
pub(super) struct Inner {
    pub vmas: VmaSet,
    pub layout: Layout,
    /// Pages mapped, in all and by use, for limits and `/proc`.
    pub total: u64,
    pub peak: u64,
    pub locked: u64,
    pub data: u64,
    pub stack: u64,
    pub exec: u64,
    /// Flags that `mlockall(MCL_FUTURE)` gives to new mappings.
    pub future: VmFlags,
    /// The executable (`/proc/PID/exe`), shared with forked children.
    pub exe: Option<Arc<Executable>>,
    /// The auxiliary vector as the program got it (`/proc/PID/auxv`).
    pub auxv: Vec<u8>,
}

/// Whose pages a limit counts (`is_data_mapping`, `is_stack_mapping`, `is_exec_mapping`).
fn classify(vma: &Vma) -> (bool, bool, bool) {
    use VmFlags as F;
    let stack = vma.flags.contains(F::GROWSDOWN);
    let data = vma.flags & (F::WRITE | F::SHARED | F::GROWSDOWN) == F::WRITE;
    let exec = vma.flags & (F::EXEC | F::WRITE | F::GROWSDOWN) == F::EXEC;
    (data, stack, exec)
}

impl Inner {
    /// Adds (`sign` 1) or takes away (-1) the pages of `vma` in the totals.
    pub fn count(&mut self, vma: &Vma, pages: u64, sign: i64) {
        let (data, stack, exec) = classify(vma);
        let add = |total: &mut u64| *total = total.wrapping_add_signed(sign * pages as i64);
        add(&mut self.total);
        if data {
            add(&mut self.data);
        }
        if stack {
            add(&mut self.stack);
        }
        if exec {
            add(&mut self.exec);
        }
        if vma.flags.contains(VmFlags::LOCKED) {
            add(&mut self.locked);
        }
        self.peak = self.peak.max(self.total);
    }
}

/// The memory of a process. See the module documentation.
pub struct AddressSpace {
    id: u64,
    pub(super) space: Arc<UserSpace>,
    pub(super) inner: RwLock<Inner>,
    pub(super) counters: Arc<Counters>,
    /// Shmem that this process created and that lives.
    charge: Arc<Charge>,
    /// `oom_score_adj`, -1000..=1000.
    oom_score_adj: AtomicI32,
    /// For [`AddressSpace::has_threads`].
    has_threads: AtomicBool,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl AddressSpace {
    /// An empty address space, laid out as `layout` says.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new(layout: Layout) -> Result<Arc<AddressSpace>> {
        let space = Arc::new(UserSpace::new().ok_or(Errno::ENOMEM)?);
        Ok(Arc::new(Self::around(space, layout)))
    }

    pub(super) fn around(space: Arc<UserSpace>, layout: Layout) -> AddressSpace {
        AddressSpace {
            id: NEXT_ID.fetch_add(1, Relaxed),
            space,
            inner: RwLock::new(Inner {
                vmas: VmaSet::default(),
                layout,
                total: 0,
                peak: 0,
                locked: 0,
                data: 0,
                stack: 0,
                exec: 0,
                future: VmFlags::empty(),
                exe: None,
                auxv: Vec::new(),
            }),
            counters: Arc::default(),
            charge: Arc::default(),
            oom_score_adj: AtomicI32::new(0),
            has_threads: AtomicBool::new(false),
        }
    }

    /// The address space of whoever has none: kernel threads, and processes that gave theirs up in `exit`. Nothing can be mapped in it.
    pub fn empty() -> Arc<AddressSpace> {
        static EMPTY: Once<Arc<AddressSpace>> = Once::new();
        EMPTY
            .call_once(|| {
                let space = UserSpace::new().expect("memory for the first page table");
                Arc::new(Self::around(Arc::new(space), Layout::default()))
            })
            .clone()
    }

    /// A number that no other address space ever has: with the address it is the key of a private futex.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The page tables, to switch to.
    pub fn user_space(&self) -> &Arc<UserSpace> {
        &self.space
    }

    /// What shmem made by this process is charged to.
    pub fn charge(&self) -> &Arc<Charge> {
        &self.charge
    }

    /// `/proc/PID/oom_score_adj`.
    pub fn oom_score_adj(&self) -> i32 {
        self.oom_score_adj.load(Relaxed)
    }

    /// Sets `/proc/PID/oom_score_adj`; the caller has checked the range and the right.
    pub fn set_oom_score_adj(&self, value: i32) {
        self.oom_score_adj.store(value, Relaxed);
    }

    /// The landmarks (`/proc/PID/stat`).
    pub fn layout(&self) -> Layout {
        self.inner.read().layout
    }

    /// Changes landmarks (exec, `prctl(PR_SET_MM)`).
    pub fn update_layout(&self, f: impl FnOnce(&mut Layout)) {
        f(&mut self.inner.write().layout);
    }

    /// The executable.
    pub fn exe(&self) -> Option<FileRef> {
        self.inner.read().exe.as_ref().map(|exe| exe.0.clone())
    }

    /// Sets the executable. Its file cannot be written while any address space runs it.
    ///
    /// # Errors
    /// `ETXTBSY` while somebody has it open for writing.
    pub fn set_exe(&self, file: Option<FileRef>) -> Result {
        let exe = file.map(Executable::new).transpose()?.map(Arc::new);
        let old = core::mem::replace(&mut self.inner.write().exe, exe);
        drop(old);
        Ok(())
    }

    /// The auxiliary vector.
    pub fn auxv(&self) -> Vec<u8> {
        self.inner.read().auxv.clone()
    }

    /// Remembers the auxiliary vector.
    pub fn set_auxv(&self, auxv: Vec<u8>) {
        self.inner.write().auxv = auxv;
    }

    /// The VMAs, to look at while the guard lives (`/proc/PID/maps`, core dumps). Do not touch user memory meanwhile.
    pub fn vmas(&self) -> Vmas<'_> {
        Vmas(self.inner.read())
    }

    /// Counters for `/proc` and `getrusage`.
    pub fn usage(&self) -> Usage {
        let pages = |n: &AtomicI64| n.load(Relaxed).max(0) as u64;
        let rss = self.counters.rss();
        let inner = self.inner.read();
        let exe_pages = inner.layout.end_code.saturating_sub(inner.layout.start_code & !(PAGE - 1)).div_ceil(PAGE);
        Usage {
            vm_size: inner.total,
            vm_peak: inner.peak.max(inner.total),
            vm_lck: inner.locked,
            vm_hwm: self.counters.peak_rss.load(Relaxed).max(rss).max(0) as u64,
            rss_anon: pages(&self.counters.anon),
            rss_file: pages(&self.counters.file),
            rss_shmem: pages(&self.counters.shmem),
            vm_data: inner.data,
            vm_stk: inner.stack,
            vm_exe: exe_pages.min(inner.exec),
            code: exe_pages,
            vm_lib: inner.exec - exe_pages.min(inner.exec),
            vm_pte: self.space.table_frames() as u64,
        }
    }

    /// Whether more than one thread has run on this memory at a time.
    pub fn has_threads(&self) -> bool {
        self.has_threads.load(Relaxed)
    }

    /// From now on there may be several. Returns whether that is news.
    pub fn set_has_threads(&self) -> bool {
        !self.has_threads.swap(true, Relaxed)
    }

    /// Most pages that were ever resident (`ru_maxrss`).
    pub fn peak_rss_pages(&self) -> u64 {
        self.counters.peak_rss.load(Relaxed).max(self.counters.rss()).max(0) as u64
    }

    /// Forgets the peaks (`/proc/PID/clear_refs`, 5).
    pub fn reset_peak_rss(&self) {
        self.counters.peak_rss.store(self.counters.rss(), Relaxed);
    }

    /// Resident pages, without taking the lock (the OOM killer).
    pub fn rss_pages(&self) -> u64 {
        self.counters.rss().max(0) as u64
    }

    /// Pages that would come back if this went away: what it maps privately, its tables, and its shmem.
    pub(super) fn weight(&self) -> u64 {
        self.rss_pages() + self.space.table_frames() as u64 + self.charge.pages()
    }

    /// Unmaps everything at once: the last thread leaves, or the OOM killer wants the memory now.
    pub fn clear(&self) {
        let mut inner = self.inner.write();
        self.clear_locked(&mut inner);
    }

    /// Unmaps what is private, for somebody who wants a dying process's memory before it has ended by itself. What its threads
    /// still touch of it is a fault; shared memory stays, for what they owe to others there.
    ///
    /// # Errors
    /// `EAGAIN` if something could not be unmapped.
    pub fn reap(&self) -> Result {
        let mut removed = Removed::default();
        let mut inner = self.inner.write();
        let kept = VmFlags::SHARED | VmFlags::PFNMAP | VmFlags::SPECIAL;
        let private = inner.vmas.iter().filter(|vma| !vma.flags.intersects(kept)).map(|vma| (vma.start, vma.end));
        let mut ranges = Vec::new();
        for range in private {
            ranges.try_reserve(1).map_err(|_| Errno::EAGAIN)?;
            ranges.push(range);
        }
        for (start, end) in ranges {
            self.remove_range(&mut inner, start, end, &mut removed).map_err(|_| Errno::EAGAIN)?;
        }
        drop(inner);
        drop(removed);
        Ok(())
    }

    fn clear_locked(&self, inner: &mut Inner) {
        // Peak before the pages go.
        self.counters.peak_rss.fetch_max(self.counters.rss(), Relaxed);
        self.space.unmap(VirtAddr::new(0)..VirtAddr::new(USER_END), |_, _, _| {});
        let vmas = core::mem::take(&mut inner.vmas);
        for mut vma in vmas.into_vmas() {
            rmap::detach(&mut vma);
            if vma.flags.contains(VmFlags::ACCOUNT) {
                account::uncommit(vma.pages());
            }
        }
        for n in [&self.counters.anon, &self.counters.file, &self.counters.shmem] {
            n.store(0, Relaxed);
        }
        (inner.total, inner.locked, inner.data, inner.stack, inner.exec) = (0, 0, 0, 0, 0);
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        // The page tables free their pages themselves when the last CPU has left them; here only the books are closed.
        let inner = self.inner.get_mut();
        for mut vma in core::mem::take(&mut inner.vmas).into_vmas() {
            rmap::detach(&mut vma);
            if vma.flags.contains(VmFlags::ACCOUNT) {
                account::uncommit(vma.pages());
            }
        }
    }
}

/// The VMAs of an address space that is locked for reading.
pub struct Vmas<'a>(pub(super) RwLockReadGuard<'a, Inner, KernelPark>);

impl Vmas<'_> {
    /// All, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Vma> {
        self.0.vmas.iter()
    }

    /// The first that ends above `va`.
    pub fn at_or_above(&self, va: u64) -> Option<&Vma> {
        self.0.vmas.find_at_or_above(va)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.vmas.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.vmas.is_empty()
    }

    /// The name that `/proc/PID/maps` shows for a mapping without file: `[heap]`, `[stack]`, `[vdso]`, `[anon:name]`.
    pub fn label<'v>(&self, vma: &'v Vma) -> Option<(&'static str, &'v str)> {
        let layout = &self.0.layout;
        if let Some(name) = &vma.name {
            let kind = if vma.flags.contains(VmFlags::SPECIAL) {
                ""
            } else if vma.is_anonymous() {
                "anon"
            } else {
                "anon_shmem"
            };
            return Some((kind, name));
        }
        if vma.file().is_some() {
            return None;
        }
        if vma.start < layout.brk && vma.end > layout.start_brk && layout.brk > layout.start_brk {
            return Some(("", "[heap]"));
        }
        vma.contains(layout.start_stack).then_some(("", "[stack]"))
    }
}
