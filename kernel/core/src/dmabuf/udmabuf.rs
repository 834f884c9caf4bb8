//! `/dev/udmabuf`: a dma-buf of pages of memfds that can no longer shrink.
//!
//! The buffer is an object of the memfd's very frames: both see the same bytes, and the pages stay as long as either does.
//! Reference: `drivers/dma-buf/udmabuf.c`.

use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_uapi::dmabuf::{
    UDMABUF_CREATE, UDMABUF_CREATE_LIST, UDMABUF_FLAGS_CLOEXEC, UdmabufCreate, UdmabufCreateList,
};
use ursa_hal::mm::Frame;

use super::buffer::DmaBuf;
use crate::fs::dev::CharDevice;
use crate::fs::{File, FileOps, Inode};
use crate::mm::{MemoryObject, Seals};
use crate::process::current;
use crate::user::{self, UserPtr};
use crate::{Errno, Result, sched};

/// Linux's defaults of the module parameters `list_limit` and `size_limit_mb`.
const LIST_LIMIT: u32 = 1024;
const SIZE_LIMIT: u64 = 64 << 20;
const PAGE: u64 = ursa_hal::PAGE_SIZE as u64;

pub(super) struct Device;

impl CharDevice for Device {
    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Maker))
    }
}

struct Maker;

impl FileOps for Maker {
    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        let fd = match cmd {
            UDMABUF_CREATE => {
                let item = UserPtr::<UdmabufCreate>::new(arg as u64).read()?;
                create(&[item], item.flags)?
            }
            UDMABUF_CREATE_LIST => {
                let head = UserPtr::<UdmabufCreateList>::new(arg as u64);
                let UdmabufCreateList { flags, count } = head.read()?;
                if count > LIST_LIMIT {
                    return Err(Errno::EINVAL);
                }
                let items = user::read_slice(head.add(1).cast::<UdmabufCreate>(), count as usize)?;
                create(&items, flags)?
            }
            _ => return Err(Errno::ENOTTY),
        };
        Ok(fd.into())
    }
}

/// Joins the pages that `items` name to one buffer.
fn create(items: &[UdmabufCreate], flags: u32) -> Result<i32> {
    let aligned = |n: u64| n.is_multiple_of(PAGE);
    let mut total = 0u64;
    for item in items {
        if !aligned(item.offset) || !aligned(item.size) {
            return Err(Errno::EINVAL);
        }
        total = total.checked_add(item.size).filter(|&n| n <= SIZE_LIMIT).ok_or(Errno::EINVAL)?;
    }
    if total == 0 {
        return Err(Errno::EINVAL);
    }
    let mut frames: Vec<Frame> = Vec::new();
    frames.try_reserve_exact((total / PAGE) as usize).map_err(|_| Errno::ENOMEM)?;
    for item in items {
        let object = sealed_memfd(item.memfd as i32)?;
        let end = item.offset.checked_add(item.size).filter(|&end| end <= object.size()).ok_or(Errno::EINVAL)?;
        for index in item.offset / PAGE..end / PAGE {
            frames.push(object.get_page(index, true)?);
            sched::cond_resched();
        }
    }
    let file = DmaBuf::export(MemoryObject::fixed(frames), "udmabuf");
    super::install(file, flags & UDMABUF_FLAGS_CLOEXEC != 0)
}

/// The memory behind a memfd whose seals promise that it never shrinks and may be written.
fn sealed_memfd(fd: i32) -> Result<Arc<MemoryObject>> {
    // A descriptor that is not open is refused like one of the wrong kind.
    let file = current().files().get(fd).map_err(|_| Errno::EBADFD)?;
    let object = file.inode().and_then(|inode| inode.ops().memory_object(inode)).filter(|object| object.is_shmem());
    let object = object.ok_or(Errno::EBADFD)?;
    let seals = object.seals();
    if !seals.contains(Seals::SHRINK) || seals.contains(Seals::WRITE) {
        return Err(Errno::EINVAL);
    }
    Ok(object)
}
