//! iommufd: the address spaces of devices (`/dev/iommu`).
//!
//! An open `/dev/iommu` is a [`Context`]; in it live I/O address spaces ([`Ioas`]) by number. A VFIO device is bound to a context
//! and attached to one of its spaces, and only then may it be a bus master.
//!
//! Where there is an IOMMU ([`ursa_hal::iommu`]) a device reaches what was mapped in its space, and nothing else; what it tries besides
//! is logged with its driver's name ([`mod@faults`]).
//!
//! Without an IOMMU nothing can be translated. `IOMMU_IOAS_MAP` and its kin then fail with `EOPNOTSUPP`, and the extension
//! `IOMMU_URSA_BUS_ADDRESSES` pins a dma-buf and tells where its pages are on the bus. A driver that uses it can reach all
//! of memory; the log names it when its device is attached.
//!
//! What a device can reach is never freed before the device is quiet: a pin is a reference to every frame, a context keeps its pins,
//! and a bound device keeps its context until VFIO has stopped its bus mastering.
//!
//! Locking: `Context::objects` (sleeping) is a leaf.
//!
//! References: `Documentation/userspace-api/iommufd.rst`, `drivers/iommu/iommufd/`.

mod faults;
mod ioas;

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_uapi::iommufd::{
    self as abi, AllowIovas, BusAddresses, Destroy, IoasAlloc, IoasMap, IoasMapFile, IoasUnmap, IovaRange, IovaRanges,
};
use linux_uapi::zerocopy::{FromBytes, IntoBytes};

pub use ioas::{Attached, Ioas, Pin};

use crate::device;
use crate::fs::dev::CharDevice;
use crate::fs::{File, FileOps, Inode};
use crate::process::current;
use crate::user::{self, UserAddr, UserPtr};
use crate::wait::Mutex;
use crate::{Errno, Result};

/// In the range that Linux gives out dynamically.
const MINOR: u32 = 122;
/// Objects in a context; beyond it is a driver that leaks.
const OBJECTS_MAX: usize = 1 << 16;

/// Ranges in one `IOMMU_IOAS_ALLOW_IOVAS`.
const RANGES_MAX: usize = 1 << 16;

/// Registers `/dev/iommu`.
///
/// # Errors
/// `EBUSY`, `EEXIST` when its number or name is taken.
pub fn init() -> Result {
    faults::init();
    device::register_misc("iommu", MINOR, 0o660, Arc::new(Node)).map(drop)
}

struct Node;

impl CharDevice for Node {
    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Context { objects: Mutex::new(Objects { next: 1, all: BTreeMap::new() }) }))
    }
}

enum Object {
    Ioas(Arc<Ioas>),
    Pin {
        _pin: Pin,
        ioas: Arc<Ioas>,
    },
    /// A bound device: its number is taken while it is bound.
    Device,
}

struct Objects {
    next: u32,
    all: BTreeMap<u32, Object>,
}

impl Objects {
    fn add(&mut self, object: Object) -> Result<u32> {
        if self.all.len() >= OBJECTS_MAX {
            return Err(Errno::ENOMEM);
        }
        while self.next == 0 || self.all.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.all.insert(id, object);
        Ok(id)
    }

    fn ioas(&self, id: u32) -> Result<Arc<Ioas>> {
        match self.all.get(&id) {
            Some(Object::Ioas(ioas)) => Ok(ioas.clone()),
            _ => Err(Errno::ENOENT),
        }
    }
}

/// An open `/dev/iommu`.
pub struct Context {
    objects: Mutex<Objects>,
}

impl Context {
    /// The context behind descriptor `fd`, and the file, which keeps it.
    ///
    /// # Errors
    /// `EBADF`; `EBADFD` for another kind of file.
    pub fn from_fd(fd: i32) -> Result<Arc<Context>> {
        current().files().get(fd)?.ops_shared::<Context>().ok_or(Errno::EBADFD)
    }

    /// Takes a number for a bound device.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn add_device(&self) -> Result<u32> {
        self.objects.lock().add(Object::Device)
    }

    /// Gives the number back.
    pub fn remove_device(&self, id: u32) {
        self.objects.lock().all.remove(&id);
    }

    /// The space with this number.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn ioas(&self, id: u32) -> Result<Arc<Ioas>> {
        self.objects.lock().ioas(id)
    }

    fn alloc(&self, arg: u64) -> Result<i64> {
        let mut argument: IoasAlloc = read_sized(arg)?;
        if argument.flags != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut objects = self.objects.lock();
        let id = objects.add(Object::Ioas(Arc::new(Ioas::new()?)))?;
        drop(objects);
        argument.out_ioas_id = id;
        let told = UserPtr::new(arg).write(&argument);
        if told.is_err() {
            let gone = self.objects.lock().all.remove(&id);
            drop(gone);
        }
        told.map(|()| 0)
    }

    fn destroy(&self, arg: u64) -> Result<i64> {
        let argument: Destroy = read_sized(arg)?;
        let mut objects = self.objects.lock();
        let busy = match objects.all.get(&argument.id).ok_or(Errno::ENOENT)? {
            // Attached, or with buffers pinned for it.
            Object::Ioas(ioas) => Arc::strong_count(ioas) > 1,
            Object::Pin { .. } => false,
            Object::Device => true,
        };
        if busy {
            return Err(Errno::EBUSY);
        }
        let gone = objects.all.remove(&argument.id);
        drop(objects);
        drop(gone);
        Ok(0)
    }

    fn bus_addresses(&self, arg: u64) -> Result<i64> {
        let mut argument: BusAddresses = read_sized(arg)?;
        if argument.flags != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let ioas = self.ioas(argument.ioas_id)?;
        if ioas.translates() {
            return Err(Errno::EOPNOTSUPP);
        }
        let file = current().files().get(argument.fd)?;
        let object = crate::dmabuf::object_of(&file).ok_or(Errno::EINVAL)?;
        let pin = Pin::new(object, argument.offset, argument.length)?;
        let room = argument.nsegs as usize;
        let segments = pin.segments();
        argument.nsegs = u32::try_from(segments.len()).map_err(|_| Errno::EOVERFLOW)?;
        if segments.len() > room {
            UserPtr::new(arg).write(&argument)?;
            return Err(Errno::EOVERFLOW);
        }
        user::write_slice(UserPtr::new(argument.segs), &segments)?;
        let id = self.objects.lock().add(Object::Pin { _pin: pin, ioas })?;
        argument.out_id = id;
        let told = UserPtr::new(arg).write(&argument);
        if told.is_err() {
            let gone = self.objects.lock().all.remove(&id);
            drop(gone);
        }
        told.map(|()| 0)
    }

    fn ranges(&self, arg: u64) -> Result<i64> {
        let mut argument: IovaRanges = read_sized(arg)?;
        if argument.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let ioas = self.ioas(argument.ioas_id)?;
        let ranges = ioas.ranges()?;
        let room = argument.num_iovas as usize;
        argument.num_iovas = ranges.len() as u32;
        argument.out_iova_alignment = ursa_hal::PAGE_SIZE as u64;
        user::write_slice(UserPtr::new(argument.allowed_iovas), &ranges[..ranges.len().min(room)])?;
        UserPtr::new(arg).write(&argument)?;
        if room < ranges.len() { Err(Errno::EMSGSIZE) } else { Ok(0) }
    }

    fn allow(&self, arg: u64) -> Result<i64> {
        let argument: AllowIovas = read_sized(arg)?;
        if argument.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let ioas = self.ioas(argument.ioas_id)?;
        let count = usize::try_from(argument.num_iovas).ok().filter(|n| *n <= RANGES_MAX).ok_or(Errno::ENOMEM)?;
        let ranges = user::read_slice(UserPtr::<IovaRange>::new(argument.allowed_iovas), count)?;
        ioas.allow(ranges).map(|()| 0)
    }

    fn map_file(&self, arg: u64) -> Result<i64> {
        let mut argument: IoasMapFile = read_sized(arg)?;
        let ioas = self.ioas(argument.ioas_id)?;
        ioas.check_map(argument.flags)?;
        let file = current().files().get(argument.fd)?;
        let memfd = || file.inode().and_then(|inode| inode.ops().memory_object(inode)).filter(|o| o.is_shmem());
        let object = crate::dmabuf::object_of(&file).or_else(memfd).ok_or(Errno::EINVAL)?;
        let pin = Pin::new(object, argument.start, argument.length)?;
        argument.iova = ioas.map(pin, argument.flags, argument.iova)?;
        let told = UserPtr::new(arg).write(&argument);
        if told.is_err() {
            // The caller does not know where it is.
            let _ = ioas.unmap(argument.iova, argument.length);
        }
        told.map(|()| 0)
    }

    fn map(&self, arg: u64) -> Result<i64> {
        let mut argument: IoasMap = read_sized(arg)?;
        if argument.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let ioas = self.ioas(argument.ioas_id)?;
        ioas.check_map(argument.flags)?;
        let pin = Pin::of_user(UserAddr::new(argument.user_va), argument.length, argument.flags)?;
        argument.iova = ioas.map(pin, argument.flags, argument.iova)?;
        let told = UserPtr::new(arg).write(&argument);
        if told.is_err() {
            let _ = ioas.unmap(argument.iova, argument.length);
        }
        told.map(|()| 0)
    }

    fn unmap(&self, arg: u64) -> Result<i64> {
        let mut argument: IoasUnmap = read_sized(arg)?;
        let ioas = self.ioas(argument.ioas_id)?;
        argument.length = ioas.unmap(argument.iova, argument.length)?;
        UserPtr::new(arg).write(&argument)?;
        Ok(0)
    }
}

impl FileOps for Context {
    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        let arg = arg as u64;
        match cmd {
            abi::DESTROY => self.destroy(arg),
            abi::IOAS_ALLOC => self.alloc(arg),
            abi::IOAS_IOVA_RANGES => self.ranges(arg),
            abi::IOAS_ALLOW_IOVAS => self.allow(arg),
            abi::IOAS_MAP => self.map(arg),
            abi::IOAS_MAP_FILE => self.map_file(arg),
            abi::IOAS_UNMAP => self.unmap(arg),
            abi::URSA_BUS_ADDRESSES => self.bus_addresses(arg),
            _ => Err(Errno::ENOTTY),
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Pins before the spaces they are for.
        let all = core::mem::take(&mut self.objects.get_mut().all);
        let (pins, rest): (Vec<_>, Vec<_>) = all.into_values().partition(|o| matches!(o, Object::Pin { .. }));
        for pin in pins {
            if let Object::Pin { ioas, .. } = &pin {
                debug_assert!(!ioas.translates());
            }
            drop(pin);
        }
        drop(rest);
    }
}

/// Reads an extensible structure that starts with its size, which is all of it at least.
///
/// # Errors
/// `EINVAL` when it is too short, `E2BIG` for what is not known, `EFAULT`.
fn read_sized<T: FromBytes + IntoBytes>(arg: u64) -> Result<T> {
    let size = UserPtr::<u32>::new(arg).read()? as usize;
    if size < size_of::<T>() {
        return Err(Errno::EINVAL);
    }
    if size > ursa_hal::PAGE_SIZE {
        return Err(Errno::E2BIG);
    }
    user::read_extensible(UserAddr::new(arg), size)
}
