//! `/dev/dma_heap/{system,contiguous}`: memory for devices, as dma-bufs.
//!
//! `system` takes frames wherever they are, in runs as long as can be had, since a device without an IOMMU sees every gap.
//! `contiguous` gives one run or nothing. Both give zeroes.
//! Reference: `drivers/dma-buf/dma-heap.c`, `heaps/{system,cma}_heap.c`.

use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_uapi::dma_heap::{self as abi, AllocationData};
use linux_uapi::raw::general as uapi;
use ursa_hal::PAGE_SIZE;
use ursa_hal::mm::{Frame, FrameRun};

use super::buffer::DmaBuf;
use crate::device::{Device, DeviceSpec, Devnode};
use crate::fs::dev::{CharDevice, minor, register_chrdev};
use crate::fs::{File, FileOps, Inode};
use crate::mm::MemoryObject;
use crate::process::{Resource, current};
use crate::user::UserPtr;
use crate::{Errno, Result, sched};

/// Linux gives this major out dynamically.
const MAJOR: u32 = 251;
/// By minor.
const HEAPS: [&str; 2] = ["system", "contiguous"];
const CONTIGUOUS: u32 = 1;
/// Frames of the longest run that the system heap asks for (1 MiB, as Linux's first order).
const RUN: usize = 256;
/// The largest contiguous buffer.
const CONTIGUOUS_MAX: u64 = 64 << 20;

/// Registers the heaps.
///
/// # Errors
/// `EBUSY`, `EEXIST` when a number or a name is taken.
pub(super) fn init() -> Result {
    register_chrdev(MAJOR, 0, HEAPS.len() as u32, "dma_heap", Arc::new(Heaps))?;
    for (minor, name) in (0..).zip(HEAPS) {
        let node = Devnode::char(alloc::format!("dma_heap/{name}"), MAJOR, minor, 0o600);
        Device::register(DeviceSpec::class("dma_heap", name).node(node))?;
    }
    Ok(())
}

struct Heaps;

impl CharDevice for Heaps {
    fn open(&self, inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Heap { contiguous: minor(inode.rdev) == CONTIGUOUS }))
    }
}

struct Heap {
    contiguous: bool,
}

impl Heap {
    fn name(&self) -> &'static str {
        HEAPS[usize::from(self.contiguous)]
    }

    fn alloc(&self, arg: UserPtr<AllocationData>) -> Result<i64> {
        let mut data = arg.read()?;
        let valid = uapi::O_CLOEXEC | uapi::O_ACCMODE;
        if data.fd != 0 || data.fd_flags & !valid != 0 || data.heap_flags != 0 {
            return Err(Errno::EINVAL);
        }
        let len = data.len.checked_next_multiple_of(PAGE_SIZE as u64).filter(|l| *l != 0).ok_or(Errno::EINVAL)?;
        let half = ursa_hal::mm::stats().total as u64 / 2 * PAGE_SIZE as u64;
        let limit = if self.contiguous { CONTIGUOUS_MAX } else { half };
        if len > limit {
            return Err(Errno::ENOMEM);
        }
        let count = (len / PAGE_SIZE as u64) as usize;
        let frames = if self.contiguous { one_run(count)? } else { runs(count)? };
        let file = DmaBuf::with_flags(MemoryObject::fixed(frames), self.name(), data.fd_flags);
        let files = current().files();
        let limit = current().process().rlimits.soft(Resource::Nofile);
        let slot = files.reserve(data.fd_flags & uapi::O_CLOEXEC != 0, limit)?;
        data.fd = slot.fd() as u32;
        // A fault here leaves no descriptor behind.
        arg.write(&data)?;
        slot.commit(file);
        Ok(0)
    }
}

/// One run, aligned to its size up to 2 MiB.
fn one_run(count: usize) -> Result<Vec<Frame>> {
    let align = count.next_power_of_two().min(512);
    let mut frames = Vec::new();
    frames.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
    let run = FrameRun::alloc(count, align, None).ok_or(Errno::ENOMEM)?;
    for frame in run.into_frames() {
        frame.zero();
        frames.push(frame);
        sched::cond_resched();
    }
    Ok(frames)
}

/// As few runs as memory has.
fn runs(count: usize) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    frames.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
    let mut size = RUN;
    while frames.len() < count {
        size = size.min((count - frames.len()).next_power_of_two());
        let want = size.min(count - frames.len());
        if want == 1 {
            // Single frames come from reclaim, too.
            frames.push(crate::mm::reclaim::alloc_zeroed()?);
        } else if let Some(run) = FrameRun::alloc(want, 1, None) {
            for frame in run.into_frames() {
                frame.zero();
                frames.push(frame);
            }
        } else {
            size /= 2;
        }
        sched::cond_resched();
    }
    Ok(frames)
}

impl FileOps for Heap {
    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        match cmd {
            abi::ALLOC => self.alloc(UserPtr::new(arg as u64)),
            _ => Err(Errno::ENOTTY),
        }
    }
}
