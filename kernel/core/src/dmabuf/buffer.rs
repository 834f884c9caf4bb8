//! dma-bufs: [`DmaBuf`], a memory object behind a descriptor, and the fences of those who use it.
//!
//! Implicit synchronisation works as on Linux: users attach fences with `DMA_BUF_IOCTL_IMPORT_SYNC_FILE`, as readers or as
//! a writer; `poll`, `DMA_BUF_IOCTL_SYNC` and `DMA_BUF_IOCTL_EXPORT_SYNC_FILE` wait for them. A reader waits for writers, a
//! writer for everybody. References: `drivers/dma-buf/{dma-buf,dma-resv}.c`.

use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use linux_uapi::dmabuf as abi;
use linux_uapi::raw::general as uapi;
use linux_uapi::stat::Stat;
use ursa_hal::sync::{Once, SpinLock};

use super::fence::Fence;
use super::sync_file::SyncFile;
use crate::fs::{File, FileOps};
use crate::mm::{MapBacking, MapFlags, MapRequest, MemoryObject};
use crate::poll::{PollEvents, PollTable};
use crate::user::{self, UserAddr, UserPtr};
use crate::wait::{WaitKey, WaitQueue, WakeTarget};
use crate::{Errno, Result};

/// How many fences an object keeps at least before it looks for those that have happened.
const TIDY_FROM: usize = 8;

/// How somebody uses a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Reads it.
    Read,
    /// Writes it.
    Write,
}

/// A buffer that programs and devices share.
pub struct DmaBuf {
    object: Arc<MemoryObject>,
    /// Who made it: `udmabuf`, `system`, …
    exporter: &'static str,
    /// What `DMA_BUF_SET_NAME` called it.
    name: SpinLock<Option<String>>,
    ino: u64,
    /// The fences of its users (Linux's reservation object).
    fences: SpinLock<Vec<Use>>,
    /// Woken by each of them: pollers stay on it while fences come and go.
    changed: Arc<WaitQueue>,
    /// For the `count` line of fdinfo.
    file: Once<Weak<File>>,
}

/// A fence of somebody who uses a buffer.
struct Use {
    fence: Arc<Fence>,
    usage: Usage,
    /// Entry in the fence's queue that wakes the buffer's.
    key: WaitKey,
}

impl Drop for Use {
    fn drop(&mut self) {
        self.fence.queue().remove(self.key);
    }
}

/// Passes a fence's wake-up on to the pollers of a buffer.
struct Forward(Arc<WaitQueue>);

impl WakeTarget for Forward {
    fn wake(&self, events: PollEvents) -> bool {
        self.0.wake_events(events);
        true
    }
}

/// The memory behind `file` if it is a dma-buf.
pub fn object_of(file: &File) -> Option<Arc<MemoryObject>> {
    file.ops::<DmaBuf>().map(|buffer| buffer.object.clone())
}

impl DmaBuf {
    /// Makes a buffer of all of `object`, open for reading and writing; `exporter` is shown as `exp_name`.
    pub fn export(object: Arc<MemoryObject>, exporter: &'static str) -> Arc<File> {
        Self::with_flags(object, exporter, uapi::O_RDWR)
    }

    /// As [`DmaBuf::export`]; `flags` are the access mode that the descriptor gets.
    pub fn with_flags(object: Arc<MemoryObject>, exporter: &'static str, flags: u32) -> Arc<File> {
        static NEXT_INO: AtomicU64 = AtomicU64::new(1);
        let buffer = Arc::new(DmaBuf {
            object,
            exporter,
            name: SpinLock::new(None),
            ino: NEXT_INO.fetch_add(1, Ordering::Relaxed),
            fences: SpinLock::new(Vec::new()),
            changed: Arc::new(WaitQueue::new()),
            file: Once::new(),
        });
        let file = File::anon(buffer.clone(), "/dmabuf:", flags & uapi::O_ACCMODE);
        let _ = buffer.file.set(Arc::downgrade(&file));
        file
    }

    /// The memory.
    pub fn object(&self) -> &Arc<MemoryObject> {
        &self.object
    }

    /// Attaches `fence`: whoever uses the buffer after it in a way that conflicts with `usage` waits for it. It replaces an earlier
    /// one of the same timeline and usage.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn add_fence(&self, fence: &Arc<Fence>, usage: Usage) -> Result {
        let key = fence.queue().add(Arc::new(Forward(self.changed.clone())), false);
        let new = Use { fence: fence.clone(), usage, key };
        // What goes, goes without the lock: the last reference to a fence may be among it.
        let mut dropped = Vec::new();
        {
            let mut fences = self.fences.lock();
            fences.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            dropped.try_reserve(fences.len() + 1).map_err(|_| Errno::ENOMEM)?;
            if fences.len() >= TIDY_FROM {
                let mut i = 0;
                while i < fences.len() {
                    if fences[i].fence.is_signalled() {
                        dropped.push(fences.swap_remove(i));
                    } else {
                        i += 1;
                    }
                }
            }
            match fences.iter_mut().find(|known| known.usage == usage && known.fence.context == fence.context) {
                Some(known) if known.fence.is_later_than(fence) => dropped.push(new),
                Some(slot) => dropped.push(core::mem::replace(slot, new)),
                None => fences.push(new),
            }
        }
        drop(dropped);
        Ok(())
    }

    /// The fences that somebody who wants `usage` has to wait for.
    pub fn conflicts(&self, usage: Usage) -> Vec<Arc<Fence>> {
        let fences = self.fences.lock();
        let conflicts = |how: Usage| usage == Usage::Write || how == Usage::Write;
        fences.iter().filter(|known| conflicts(known.usage)).map(|known| known.fence.clone()).collect()
    }

    fn sync(&self, flags: u64) -> Result {
        if flags & !(abi::DMA_BUF_SYNC_RW | abi::DMA_BUF_SYNC_END) != 0 || flags & abi::DMA_BUF_SYNC_RW == 0 {
            return Err(Errno::EINVAL);
        }
        if flags & abi::DMA_BUF_SYNC_END != 0 {
            // x86's caches are coherent with devices: nothing to write back.
            return Ok(());
        }
        let usage = if flags & abi::DMA_BUF_SYNC_WRITE != 0 { Usage::Write } else { Usage::Read };
        self.conflicts(usage).iter().try_for_each(|fence| fence.wait())
    }

    fn set_name(&self, addr: UserAddr) -> Result {
        let name = user::read_cstr(addr, abi::DMA_BUF_NAME_LEN).map_err(|error| match error {
            Errno::ENAMETOOLONG => Errno::EINVAL,
            other => other,
        })?;
        let name = String::from_utf8_lossy(&name).into_owned();
        let old = self.name.lock().replace(name);
        drop(old);
        Ok(())
    }

    fn export_sync_file(&self, arg: UserPtr<abi::DmaBufSyncFile>) -> Result {
        let mut data = arg.read()?;
        let usage = direction(data.flags)?;
        let file = SyncFile::merged(&self.conflicts(usage))?;
        super::install_published(file, |fd| {
            data.fd = fd;
            arg.write(&data)
        })
    }

    fn import_sync_file(&self, arg: UserPtr<abi::DmaBufSyncFile>) -> Result {
        let data = arg.read()?;
        let usage = direction(data.flags)?;
        let file = SyncFile::from_fd(data.fd)?;
        file.fences().iter().filter(|fence| !fence.is_signalled()).try_for_each(|fence| self.add_fence(fence, usage))
    }
}

/// What `DMA_BUF_SYNC_*` bits of a sync_file call mean.
fn direction(flags: u32) -> Result<Usage> {
    let flags = u64::from(flags);
    if flags & !abi::DMA_BUF_SYNC_RW != 0 || flags == 0 {
        return Err(Errno::EINVAL);
    }
    Ok(if flags & abi::DMA_BUF_SYNC_WRITE != 0 { Usage::Write } else { Usage::Read })
}

impl FileOps for DmaBuf {
    fn is_stream(&self) -> bool {
        false
    }

    fn seek(&self, _f: &File, offset: i64, whence: u32, _pos: u64) -> Result<u64> {
        // Only to learn the size; there is no position.
        match whence {
            uapi::SEEK_END if offset == 0 => Ok(self.object.size()),
            uapi::SEEK_SET if offset == 0 => Ok(0),
            _ => Err(Errno::EINVAL),
        }
    }

    fn mmap(&self, _f: &File, req: &mut MapRequest) -> Result {
        let end = req.offset.checked_add(req.len as u64).ok_or(Errno::EOVERFLOW)?;
        if end > self.object.size() || !req.flags.contains(MapFlags::SHARED) {
            return Err(Errno::EINVAL);
        }
        req.backing = MapBacking::Object { object: self.object.clone(), offset: req.offset, file: None };
        Ok(())
    }

    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        // Writable when nobody uses it, readable when nobody writes it.
        if let Some(pt) = pt {
            pt.register(&self.changed);
        }
        let free = |usage| self.conflicts(usage).iter().all(|fence| fence.is_signalled());
        let mut events = PollEvents::empty();
        if free(Usage::Write) {
            events |= PollEvents::POLLIN | PollEvents::POLLOUT;
        } else if free(Usage::Read) {
            events |= PollEvents::POLLIN;
        }
        events
    }

    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        let arg = arg as u64;
        match cmd {
            abi::DMA_BUF_IOCTL_SYNC => self.sync(UserPtr::<u64>::new(arg).read()?)?,
            abi::DMA_BUF_SET_NAME_A | abi::DMA_BUF_SET_NAME_B => self.set_name(UserAddr::new(arg))?,
            abi::DMA_BUF_IOCTL_EXPORT_SYNC_FILE => self.export_sync_file(UserPtr::new(arg))?,
            abi::DMA_BUF_IOCTL_IMPORT_SYNC_FILE => self.import_sync_file(UserPtr::new(arg))?,
            _ => return Err(Errno::ENOTTY),
        }
        Ok(0)
    }

    fn stat(&self, _f: &File) -> Result<Option<Stat>> {
        Ok(Some(Stat {
            st_ino: self.ino,
            st_nlink: 1,
            st_mode: 0o600,
            st_blksize: 4096,
            st_blocks: (self.object.size() / 512) as i64,
            ..Stat::default()
        }))
    }

    fn fdinfo(&self, _f: &File, out: &mut dyn fmt::Write) -> fmt::Result {
        let holders = self.file.get().map_or(0, Weak::strong_count);
        // Without the reference that this very read holds.
        writeln!(out, "size:\t{}\ncount:\t{}", self.object.size(), holders.saturating_sub(1))?;
        writeln!(out, "exp_name:\t{}", self.exporter)?;
        match &*self.name.lock() {
            Some(name) => writeln!(out, "name:\t{name}"),
            None => Ok(()),
        }
    }

    fn link_name(&self, f: &File, out: &mut dyn fmt::Write) -> fmt::Result {
        out.write_str(f.name)?;
        match &*self.name.lock() {
            Some(name) => out.write_str(name),
            None => Ok(()),
        }
    }
}
