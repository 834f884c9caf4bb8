//! Descriptor tables: [`FdTable`] maps small numbers to open files.
//!
//! The table is an array with a two-level bitmap of used slots, so that a lookup is an index and finding the lowest free
//! descriptor looks at a few words. A short spin lock guards it; under it nothing sleeps, allocates large arrays or drops
//! a file (a dropped file may sleep in `release`: removed files are handed out of the lock first).
//!
//! References: open(2), dup(2), close_range(2), `fs/file.c`.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU32, Ordering};

use linux_uapi::raw::general as uapi;
use ursa_hal::sync::SpinLock;

use super::{file::File, lock};
use crate::{Errno, Result};

/// How many descriptors a table can have (`/proc/sys/fs/nr_open`). One that has more, from before a change, keeps them.
pub static NR_OPEN: AtomicU32 = AtomicU32::new(1 << 20);

fn nr_open() -> usize {
    NR_OPEN.load(Ordering::Relaxed) as usize
}

#[derive(Default)]
struct Slots {
    files: Vec<Option<Arc<File>>>,
    /// One bit per slot: taken or reserved.
    used: Vec<u64>,
    /// One bit per slot: close on exec.
    cloexec: Vec<u64>,
    /// One bit per word of `used`: all 64 taken.
    full: Vec<u64>,
    /// No free slot lies below this one.
    next: usize,
}

impl Slots {
    /// The lowest free slot at or above `min`, which may lie past the end of the arrays.
    fn lowest_free(&self, min: usize) -> usize {
        let min = min.max(self.next);
        let mut word = min / 64;
        if word >= self.used.len() {
            return min;
        }
        let first = !self.used[word] & (u64::MAX << (min % 64));
        if first != 0 {
            return word * 64 + first.trailing_zeros() as usize;
        }
        word += 1;
        while word < self.used.len() {
            // Skip groups of 64 full words at once.
            let group = !self.full[word / 64] & (u64::MAX << (word % 64));
            if group == 0 {
                word = (word / 64 + 1) * 64;
                continue;
            }
            word = word / 64 * 64 + group.trailing_zeros() as usize;
            if word >= self.used.len() {
                break;
            }
            return word * 64 + (!self.used[word]).trailing_zeros() as usize;
        }
        self.used.len() * 64
    }

    /// Makes room for slot `fd`.
    fn grow(&mut self, fd: usize) -> Result {
        if fd < self.files.len() {
            return Ok(());
        }
        let len = (fd + 1).next_power_of_two().max(64);
        self.files.try_reserve_exact(len - self.files.len()).map_err(|_| Errno::EMFILE)?;
        self.used.try_reserve(len / 64).map_err(|_| Errno::EMFILE)?;
        self.cloexec.try_reserve(len / 64).map_err(|_| Errno::EMFILE)?;
        self.full.try_reserve(len / 4096 + 1).map_err(|_| Errno::EMFILE)?;
        self.files.resize_with(len, || None);
        self.used.resize(len / 64, 0);
        self.cloexec.resize(len / 64, 0);
        self.full.resize(len.div_ceil(4096), 0);
        Ok(())
    }

    fn mark(&mut self, fd: usize, cloexec: bool) {
        let (word, bit) = (fd / 64, 1u64 << (fd % 64));
        self.used[word] |= bit;
        if self.used[word] == u64::MAX {
            self.full[word / 64] |= 1 << (word % 64);
        }
        if cloexec {
            self.cloexec[word] |= bit;
        } else {
            self.cloexec[word] &= !bit;
        }
        if fd == self.next {
            self.next = fd + 1;
        }
    }

    fn unmark(&mut self, fd: usize) {
        let (word, bit) = (fd / 64, 1u64 << (fd % 64));
        self.used[word] &= !bit;
        self.cloexec[word] &= !bit;
        self.full[word / 64] &= !(1 << (word % 64));
        self.next = self.next.min(fd);
    }

    fn allocate(&mut self, min: usize, limit: usize, cloexec: bool) -> Result<usize> {
        let fd = self.lowest_free(min);
        if fd >= limit.min(nr_open()) {
            return Err(Errno::EMFILE);
        }
        self.grow(fd)?;
        self.mark(fd, cloexec);
        Ok(fd)
    }

    /// Takes the file out of a slot; `None` for a free or merely reserved one.
    fn take(&mut self, fd: usize) -> Option<Arc<File>> {
        let file = self.files.get_mut(fd)?.take()?;
        self.unmark(fd);
        Some(file)
    }
}

/// A process's descriptors; shared by threads and `CLONE_FILES` children.
pub struct FdTable {
    slots: SpinLock<Slots>,
}

/// A descriptor number that is taken but has no file yet; given back when dropped without [`Reservation::commit`].
pub struct Reservation<'a> {
    table: &'a FdTable,
    fd: usize,
}

impl Reservation<'_> {
    /// The number.
    pub fn fd(&self) -> i32 {
        self.fd as i32
    }

    /// Puts `file` there.
    pub fn commit(self, file: Arc<File>) -> i32 {
        self.table.slots.lock().files[self.fd] = Some(file);
        let fd = self.fd as i32;
        core::mem::forget(self);
        fd
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.table.slots.lock().unmark(self.fd);
    }
}

/// As [`Reservation`], for who fills it in later and from another thread: it keeps its table.
pub struct OwnedReservation {
    table: Arc<FdTable>,
    fd: usize,
    filled: bool,
}

impl OwnedReservation {
    /// The number.
    pub fn fd(&self) -> i32 {
        self.fd as i32
    }

    /// Puts `file` there.
    pub fn commit(mut self, file: Arc<File>) -> i32 {
        self.filled = true;
        self.table.slots.lock().files[self.fd] = Some(file);
        self.fd as i32
    }
}

impl Drop for OwnedReservation {
    fn drop(&mut self) {
        if !self.filled {
            self.table.slots.lock().unmark(self.fd);
        }
    }
}

impl FdTable {
    /// An empty table.
    pub fn new() -> Arc<FdTable> {
        Arc::new(FdTable { slots: SpinLock::new(Slots::default()) })
    }

    /// The file behind `fd`, also one opened with `O_PATH`.
    ///
    /// # Errors
    /// `EBADF`.
    #[inline]
    pub fn get_any(&self, fd: i32) -> Result<Arc<File>> {
        let slots = self.slots.lock();
        match slots.files.get(fd as u32 as usize) {
            Some(Some(file)) => Ok(file.clone()),
            _ => Err(Errno::EBADF),
        }
    }

    /// The file behind `fd`; an `O_PATH` one is not for reading, writing and the like.
    ///
    /// # Errors
    /// `EBADF`.
    #[inline]
    pub fn get(&self, fd: i32) -> Result<Arc<File>> {
        let file = self.get_any(fd)?;
        if file.mode().contains(super::file::FileMode::PATH) {
            return Err(Errno::EBADF);
        }
        Ok(file)
    }

    /// Puts `file` at the lowest free descriptor below `limit` (`RLIMIT_NOFILE`).
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn install(&self, file: Arc<File>, cloexec: bool, limit: u64) -> Result<i32> {
        self.install_from(0, file, cloexec, limit)
    }

    /// As [`FdTable::install`], at or above `min` (`F_DUPFD`).
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn install_from(&self, min: usize, file: Arc<File>, cloexec: bool, limit: u64) -> Result<i32> {
        let mut slots = self.slots.lock();
        let fd = slots.allocate(min, usize::try_from(limit).unwrap_or(usize::MAX), cloexec)?;
        slots.files[fd] = Some(file);
        Ok(fd as i32)
    }

    /// Takes the lowest free number without a file, for calls that must know it before they act.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn reserve(&self, cloexec: bool, limit: u64) -> Result<Reservation<'_>> {
        let fd = self.slots.lock().allocate(0, usize::try_from(limit).unwrap_or(usize::MAX), cloexec)?;
        Ok(Reservation { table: self, fd })
    }

    /// As [`FdTable::reserve`], not bound to the caller's stack.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn reserve_owned(self: &Arc<Self>, cloexec: bool, limit: u64) -> Result<OwnedReservation> {
        let fd = self.slots.lock().allocate(0, usize::try_from(limit).unwrap_or(usize::MAX), cloexec)?;
        Ok(OwnedReservation { table: self.clone(), fd, filled: false })
    }

    /// Puts `file` at `fd`, closing what was there: `dup2`, `dup3`.
    ///
    /// # Errors
    /// `EBADF` outside the limit, `EBUSY` while another thread is opening that very number.
    pub fn replace(&self, fd: i32, file: Arc<File>, cloexec: bool, limit: u64) -> Result<i32> {
        let slot = fd as u32 as usize;
        if slot as u64 >= limit.min(nr_open() as u64) {
            return Err(Errno::EBADF);
        }
        let old = {
            let mut slots = self.slots.lock();
            slots.grow(slot)?;
            let used = slots.used[slot / 64] & 1 << (slot % 64) != 0;
            if used && slots.files[slot].is_none() {
                return Err(Errno::EBUSY);
            }
            slots.mark(slot, cloexec);
            slots.files[slot].replace(file)
        };
        if let Some(old) = old {
            // dup2 does not report what the implied close says.
            let _ = self.closed(old);
        }
        Ok(fd)
    }

    /// Closes `fd`. The descriptor is free even when an error is returned.
    ///
    /// # Errors
    /// `EBADF`; what the file's `flush` reports.
    pub fn close(&self, fd: i32) -> Result {
        let file = self.slots.lock().take(fd as u32 as usize).ok_or(Errno::EBADF)?;
        self.closed(file)
    }

    /// What follows the removal of a descriptor: POSIX locks of the table on that inode go, `flush` runs.
    fn closed(&self, file: Arc<File>) -> Result {
        if file.mode().contains(super::file::FileMode::PATH) {
            return Ok(());
        }
        let res = file.file_ops().flush(&file);
        if let Some(inode) = file.inode() {
            lock::release_posix(inode, self.lock_owner());
        }
        res
    }

    /// Closes or marks all descriptors in `first..=last` (`close_range`).
    pub fn close_range(&self, first: u32, last: u32, only_mark: bool) {
        let mut fd = first as usize;
        loop {
            // In batches, so that the lock is never held for long and files drop outside it.
            let mut batch = Vec::new();
            {
                let mut slots = self.slots.lock();
                let end = slots.files.len().min(last as usize + 1);
                while fd < end && batch.len() < 64 {
                    if slots.used[fd / 64] == 0 && fd.is_multiple_of(64) {
                        fd += 64;
                        continue;
                    }
                    if only_mark {
                        if slots.files[fd].is_some() {
                            slots.cloexec[fd / 64] |= 1 << (fd % 64);
                        }
                    } else if let Some(file) = slots.take(fd) {
                        batch.push(file);
                    }
                    fd += 1;
                }
                if fd >= end && batch.is_empty() {
                    return;
                }
            }
            for file in batch {
                let _ = self.closed(file);
            }
        }
    }

    /// Closes the descriptors marked close-on-exec.
    pub fn close_on_exec(&self) {
        let mut word = 0;
        loop {
            let mut batch = Vec::new();
            {
                let mut slots = self.slots.lock();
                if word >= slots.cloexec.len() {
                    return;
                }
                let mut bits = slots.cloexec[word];
                while bits != 0 {
                    let fd = word * 64 + bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    if let Some(file) = slots.take(fd) {
                        batch.push(file);
                    }
                }
            }
            for file in batch {
                let _ = self.closed(file);
            }
            word += 1;
        }
    }

    /// Whether `fd` is marked close-on-exec.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn cloexec(&self, fd: i32) -> Result<bool> {
        let slots = self.slots.lock();
        let slot = fd as u32 as usize;
        slots.files.get(slot).and_then(Option::as_ref).ok_or(Errno::EBADF)?;
        Ok(slots.cloexec[slot / 64] & 1 << (slot % 64) != 0)
    }

    /// Marks or unmarks `fd` close-on-exec (`FD_CLOEXEC`).
    ///
    /// # Errors
    /// `EBADF`.
    pub fn set_cloexec(&self, fd: i32, on: bool) -> Result {
        let mut slots = self.slots.lock();
        let slot = fd as u32 as usize;
        slots.files.get(slot).and_then(Option::as_ref).ok_or(Errno::EBADF)?;
        let bit = 1 << (slot % 64);
        if on {
            slots.cloexec[slot / 64] |= bit;
        } else {
            slots.cloexec[slot / 64] &= !bit;
        }
        Ok(())
    }

    /// A copy for `fork` or `unshare(CLONE_FILES)`: the same open files at the same numbers.
    ///
    /// # Errors
    /// `ENOMEM`; `EMFILE` for more than a table can have by now.
    pub fn fork(&self) -> Result<Arc<FdTable>> {
        self.fork_below(usize::MAX)
    }

    /// As [`FdTable::fork`], without the descriptors from `end` on (`close_range` with `CLOSE_RANGE_UNSHARE`).
    ///
    /// # Errors
    /// As [`FdTable::fork`].
    pub fn fork_below(&self, end: usize) -> Result<Arc<FdTable>> {
        let mut copy = Slots::default();
        {
            let slots = self.slots.lock();
            let top = slots.used.iter().rposition(|w| *w != 0).map_or(0, |w| (w + 1) * 64).min(end);
            if top > nr_open() {
                return Err(Errno::EMFILE);
            }
            if top > 0 {
                copy.grow(top - 1).map_err(|_| Errno::ENOMEM)?;
            }
            for (fd, file) in slots.files.iter().enumerate().take(top) {
                if let Some(file) = file {
                    copy.files[fd] = Some(file.clone());
                    copy.mark(fd, slots.cloexec[fd / 64] & 1 << (fd % 64) != 0);
                }
            }
            copy.next = copy.lowest_free_from_start();
        }
        Ok(Arc::new(FdTable { slots: SpinLock::new(copy) }))
    }

    /// The first open descriptor at or above `from`, with its file: how procfs walks the table.
    pub fn next_from(&self, from: usize) -> Option<(usize, Arc<File>)> {
        let slots = self.slots.lock();
        slots.files.iter().enumerate().skip(from).find_map(|(fd, f)| Some((fd, f.clone()?)))
    }

    /// The open descriptors with their files at this moment.
    pub fn iter(&self) -> impl Iterator<Item = (usize, Arc<File>)> + '_ {
        let mut from = 0;
        core::iter::from_fn(move || {
            let (fd, file) = self.next_from(from)?;
            from = fd + 1;
            Some((fd, file))
        })
    }

    /// How many slots the array has (`FDSize` in `/proc/PID/status`).
    pub fn capacity(&self) -> usize {
        self.slots.lock().files.len().max(64)
    }

    /// The number of open descriptors.
    pub fn count(&self) -> usize {
        self.slots.lock().used.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// What owns this table's POSIX record locks.
    pub fn lock_owner(&self) -> u64 {
        core::ptr::from_ref(self).addr() as u64
    }
}

impl Slots {
    fn lowest_free_from_start(&mut self) -> usize {
        self.next = 0;
        self.lowest_free(0)
    }
}

impl Drop for FdTable {
    fn drop(&mut self) {
        let files = core::mem::take(&mut self.slots.get_mut().files);
        for file in files.into_iter().flatten() {
            let _ = self.closed(file);
        }
    }
}

/// Descriptor flags of `open`, `dup3`, `pipe2` …: whether `O_CLOEXEC` is among them.
#[inline]
pub fn wants_cloexec(flags: u32) -> bool {
    flags & uapi::O_CLOEXEC != 0
}
