//! The character device: who has a device open, and the ioctls on it.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use linux_uapi::vfio::{self as abi, AttachPt, BindIommufd, CapHeader, DetachPt, DeviceInfo, IrqInfo, RegionInfo};
use linux_uapi::zerocopy::IntoBytes;
use ursa_hal::sync::SpinLock;

use super::{Backend, SetIrqs};
use crate::device::{Device, DeviceSpec, Devnode};
use crate::fs::dev::{CharDevice, minor, register_chrdev};
use crate::fs::{File, FileOps, Inode, Sink, Source};
use crate::iommu::{Context, Ioas};
use crate::mm::{MapBacking, MapFlags, MapRequest, MemoryObject};
use crate::user::{self, UserAddr, UserPtr};
use crate::wait::Mutex;
use crate::{Errno, Result};

/// Linux gives this major out dynamically, from 511 down.
const MAJOR: u32 = 511;
const MINORS: u32 = 256;
/// What a bound device's driver is called in sysfs, as on Linux.
const DRIVER: &str = "vfio-pci";
/// Bytes of one transfer through the kernel.
const CHUNK: usize = 64;

/// All devices; the index is the minor.
static NODES: SpinLock<Vec<Option<Arc<Node>>>> = SpinLock::new(Vec::new());

/// A device that can be driven.
pub(super) struct Node {
    backend: Arc<dyn Backend>,
    device: Arc<Device>,
    /// Whether somebody drives it.
    taken: Mutex<bool>,
    /// The device was taken away.
    gone: AtomicBool,
}

/// Registers the range of numbers.
pub(super) fn init() -> Result {
    register_chrdev(MAJOR, 0, MINORS, "vfio", Arc::new(Nodes))
}

impl Node {
    pub(super) fn register(backend: Arc<dyn Backend>, device: &Arc<Device>) -> Result {
        let node = Node { backend, device: device.clone(), taken: Mutex::new(false), gone: AtomicBool::new(false) };
        let node = Some(Arc::new(node));
        let number = {
            let mut nodes = NODES.lock();
            match nodes.iter().position(Option::is_none) {
                Some(free) => {
                    nodes[free] = node;
                    free as u32
                }
                None if nodes.len() >= MINORS as usize => return Err(Errno::ENOSPC),
                None => {
                    nodes.push(node);
                    nodes.len() as u32 - 1
                }
            }
        };
        let name = format!("vfio{number}");
        let node = Devnode::char(format!("vfio/devices/{name}"), MAJOR, number, 0o600);
        Device::register(DeviceSpec::class("vfio-dev", name).below(device).node(node)).map(drop)
    }

    /// Takes a device from its driver for good. The nodes in sysfs and devtmpfs are the device model's to remove.
    pub(super) fn retire(device: &Arc<Device>) {
        let found = {
            let mut nodes = NODES.lock();
            let slot = nodes.iter_mut().find(|n| n.as_ref().is_some_and(|n| Arc::ptr_eq(&n.device, device)));
            slot.and_then(Option::take)
        };
        let Some(node) = found else { return };
        node.gone.store(true, Ordering::SeqCst);
        // Who is about to bind it has it by now, or sees that it is gone.
        let taken = node.taken.lock();
        if *taken {
            node.backend.close();
        }
    }
}

struct Nodes;

impl CharDevice for Nodes {
    fn open(&self, inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        let node = NODES.lock().get(minor(inode.rdev) as usize).cloned().flatten().ok_or(Errno::ENODEV)?;
        Ok(Arc::new(VfioFile { node, bound: Mutex::new(None) }))
    }
}

/// What an open file has once it is bound.
struct Bound {
    context: Arc<Context>,
    id: u32,
    attached: Option<Arc<Ioas>>,
}

/// An open VFIO device.
struct VfioFile {
    node: Arc<Node>,
    bound: Mutex<Option<Bound>>,
}

impl VfioFile {
    fn backend(&self) -> &dyn Backend {
        &*self.node.backend
    }

    /// `EINVAL` before the file is bound: nothing can be asked of it; `ENODEV` when the device was taken away.
    fn check_bound(&self) -> Result {
        if self.node.gone.load(Ordering::SeqCst) {
            return Err(Errno::ENODEV);
        }
        if self.bound.lock().is_some() { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn bind(&self, arg: u64) -> Result<i64> {
        let mut argument: BindIommufd = read_argument(arg, size_of::<BindIommufd>())?;
        if argument.flags != 0 || argument.iommufd < 0 {
            return Err(Errno::EINVAL);
        }
        let context = Context::from_fd(argument.iommufd)?;
        let mut bound = self.bound.lock();
        if bound.is_some() {
            return Err(Errno::EINVAL);
        }
        let mut taken = self.node.taken.lock();
        if self.node.gone.load(Ordering::SeqCst) {
            return Err(Errno::ENODEV);
        }
        if *taken {
            // Linux says EINVAL; a driver that comes second is better told why.
            return Err(Errno::EBUSY);
        }
        let id = context.add_device()?;
        argument.out_devid = id;
        let opened = UserPtr::new(arg).write(&argument).and_then(|()| self.backend().open());
        if let Err(error) = opened {
            context.remove_device(id);
            return Err(error);
        }
        *taken = true;
        drop(taken);
        *bound = Some(Bound { context, id, attached: None });
        drop(bound);
        // Only the name: a device that cannot show it works all the same.
        let _ = self.node.device.set_driver(Some(DRIVER));
        Ok(0)
    }

    fn attach(&self, arg: u64) -> Result<i64> {
        let argument: AttachPt = read_argument(arg, size_of::<AttachPt>())?;
        if argument.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let mut bound = self.bound.lock();
        let bound = bound.as_mut().ok_or(Errno::EINVAL)?;
        let ioas = bound.context.ioas(argument.pt_id)?;
        self.backend().attach(Some(&ioas), Arc::as_ptr(&bound.context) as usize)?;
        if bound.attached.is_none() && !ioas.translates() {
            let task = crate::process::current();
            ursa_hal::warn!(
                "VFIO: {} is driven by \"{}\" ({}) without an IOMMU: it is trusted with all memory",
                self.node.device.name(),
                task.log_name(),
                task.process().pid()
            );
        }
        bound.attached = Some(ioas);
        Ok(0)
    }

    fn detach(&self, arg: u64) -> Result<i64> {
        let argument: DetachPt = read_argument(arg, size_of::<DetachPt>())?;
        if argument.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let mut bound = self.bound.lock();
        let bound = bound.as_mut().ok_or(Errno::EINVAL)?;
        self.backend().attach(None, 0)?;
        bound.attached = None;
        Ok(0)
    }

    fn info(&self, arg: u64) -> Result<i64> {
        let (regions, irqs) = self.backend().counts();
        // The fields up to the counts are the structure's first form.
        let argument: DeviceInfo = read_argument(arg, 16)?;
        let told = DeviceInfo {
            argsz: size_of::<DeviceInfo>() as u32,
            flags: self.backend().flags(),
            num_regions: regions,
            num_irqs: irqs,
            ..DeviceInfo::default()
        };
        let len = (argument.argsz as usize).min(size_of::<DeviceInfo>());
        user::write_bytes(UserAddr::new(arg), &told.as_bytes()[..len])?;
        Ok(0)
    }

    fn region_info(&self, arg: u64) -> Result<i64> {
        let argument: RegionInfo = read_argument(arg, size_of::<RegionInfo>())?;
        if argument.index >= self.backend().counts().0 {
            return Err(Errno::EINVAL);
        }
        let region = self.backend().region(argument.index)?;
        let mut told = RegionInfo {
            argsz: size_of::<RegionInfo>() as u32,
            flags: region.flags,
            index: argument.index,
            cap_offset: 0,
            size: region.size,
            offset: abi::region_offset(argument.index),
        };
        if region.msix_table {
            let cap = CapHeader { id: abi::REGION_INFO_CAP_MSIX_MAPPABLE, version: 1, next: 0 };
            told.flags |= abi::REGION_INFO_FLAG_CAPS;
            told.argsz += size_of::<CapHeader>() as u32;
            if argument.argsz >= told.argsz {
                told.cap_offset = size_of::<RegionInfo>() as u32;
                user::write_bytes(UserAddr::new(arg.wrapping_add(size_of::<RegionInfo>() as u64)), cap.as_bytes())?;
            }
        }
        UserPtr::new(arg).write(&told)?;
        Ok(0)
    }

    fn irq_info(&self, arg: u64) -> Result<i64> {
        let argument: IrqInfo = read_argument(arg, size_of::<IrqInfo>())?;
        if argument.index >= self.backend().counts().1 {
            return Err(Errno::EINVAL);
        }
        let (flags, count) = self.backend().irq(argument.index)?;
        UserPtr::new(arg).write(&IrqInfo { flags, count, ..argument })?;
        Ok(0)
    }

    /// Splits a file position into region and offset, and says how much of `len` lies in the region.
    fn locate(&self, pos: u64, len: usize) -> Result<(u32, u64, usize)> {
        let index = u32::try_from(pos >> abi::REGION_SHIFT).map_err(|_| Errno::EINVAL)?;
        if index >= self.backend().counts().0 {
            return Err(Errno::EINVAL);
        }
        let offset = pos & ((1 << abi::REGION_SHIFT) - 1);
        let size = self.backend().region(index)?.size;
        if offset >= size && len != 0 {
            return Err(Errno::EINVAL);
        }
        Ok((index, offset, usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(len)))
    }

    /// The device memory at a file position.
    fn memory(&self, pos: u64) -> Result<(Arc<MemoryObject>, u64)> {
        self.check_bound()?;
        let index = u32::try_from(pos >> abi::REGION_SHIFT).map_err(|_| Errno::EINVAL)?;
        if index >= self.backend().counts().0 {
            return Err(Errno::EINVAL);
        }
        let object = self.backend().memory(index, pos & abi::URSA_MMAP_WC != 0)?;
        Ok((object, pos & (abi::URSA_MMAP_WC - 1)))
    }
}

/// Reads a structure that starts with `argsz`, of which the caller must have at least `min` bytes; the rest reads as zero.
fn read_argument<T: linux_uapi::zerocopy::FromBytes + IntoBytes>(arg: u64, min: usize) -> Result<T> {
    let size = UserPtr::<u32>::new(arg).read()? as usize;
    if size < min {
        return Err(Errno::EINVAL);
    }
    let mut value = T::new_zeroed();
    let bytes = value.as_mut_bytes();
    let len = bytes.len().min(size);
    user::read_bytes(UserAddr::new(arg), &mut bytes[..len])?;
    Ok(value)
}

impl FileOps for VfioFile {
    fn is_stream(&self) -> bool {
        false
    }

    fn seek(&self, _f: &File, _offset: i64, _whence: u32, _pos: u64) -> Result<u64> {
        Err(Errno::ESPIPE)
    }

    fn can_poll(&self) -> bool {
        false
    }

    fn read(&self, _f: &File, dst: &mut Sink<'_>, pos: u64) -> Result<usize> {
        self.check_bound()?;
        let (index, offset, len) = self.locate(pos, dst.remaining())?;
        let mut done = 0;
        while done < len {
            let mut part = [0; CHUNK];
            let want = CHUNK.min(len - done);
            let n = match self.backend().read(index, offset + done as u64, &mut part[..want]) {
                Ok(n) => n,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            };
            match dst.put_all(&part[..n]) {
                Ok(()) => done += n,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
            crate::sched::cond_resched();
        }
        Ok(done)
    }

    fn write(&self, _f: &File, src: &mut Source<'_>, pos: u64) -> Result<usize> {
        self.check_bound()?;
        let (index, offset, len) = self.locate(pos, src.remaining())?;
        let mut done = 0;
        while done < len {
            let mut part = [0; CHUNK];
            let want = CHUNK.min(len - done);
            let taken = src.take_all(&mut part[..want]);
            if let Err(error) = taken {
                return if done > 0 { Ok(done) } else { Err(error) };
            }
            let mut written = 0;
            while written < want {
                match self.backend().write(index, offset + (done + written) as u64, &part[written..want]) {
                    Ok(n) => written += n,
                    Err(_) if done + written > 0 => return Ok(done + written),
                    Err(error) => return Err(error),
                }
            }
            done += want;
            crate::sched::cond_resched();
        }
        Ok(done)
    }

    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        let arg = arg as u64;
        if cmd == abi::DEVICE_BIND_IOMMUFD {
            return self.bind(arg);
        }
        self.check_bound()?;
        match cmd {
            abi::DEVICE_ATTACH_IOMMUFD_PT => self.attach(arg),
            abi::DEVICE_DETACH_IOMMUFD_PT => self.detach(arg),
            abi::DEVICE_GET_INFO => self.info(arg),
            abi::DEVICE_GET_REGION_INFO => self.region_info(arg),
            abi::DEVICE_GET_IRQ_INFO => self.irq_info(arg),
            abi::DEVICE_SET_IRQS => {
                let request = SetIrqs::read(arg, self.backend())?;
                self.backend().set_irqs(&request).map(|()| 0)
            }
            abi::DEVICE_RESET => self.backend().reset().map(|()| 0),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn mmap(&self, _f: &File, req: &mut MapRequest) -> Result {
        if !req.flags.contains(MapFlags::SHARED) {
            return Err(Errno::EINVAL);
        }
        let (object, offset) = self.memory(req.offset)?;
        let len = (req.len as u64).checked_next_multiple_of(ursa_hal::PAGE_SIZE as u64).ok_or(Errno::EINVAL)?;
        if offset.checked_add(len).is_none_or(|end| end > object.size()) {
            return Err(Errno::EINVAL);
        }
        req.backing = MapBacking::Object { object, offset, file: None };
        Ok(())
    }

    fn release(&self, _f: &File) {
        let Some(bound) = self.bound.lock().take() else { return };
        self.backend().close();
        // The device is quiet: now what it could reach may go.
        bound.context.remove_device(bound.id);
        drop(bound);
        let _ = self.node.device.set_driver(None);
        *self.node.taken.lock() = false;
    }
}
