//! VFIO: devices as files of the processes that drive them.
//!
//! Every PCI function that can be driven, and a few platform devices, have a character device `/dev/vfio/devices/vfioN`, as on
//! Linux since 6.6. A driver opens it, binds it to an open `/dev/iommu`, attaches it to an address space there, and then
//! reads and writes regions, maps BARs and has interrupts signalled to eventfds. What a driver may not do by writing to its
//! device (move BARs, choose interrupt messages, master the bus unattached) the kernel does or refuses.
//!
//! The last close, however it comes, makes the device quiet: bus mastering off, interrupts freed, mapped BARs taken away,
//! reset where there is one. Only then the address space goes, and with it the pages that the device could reach.
//!
//! | module | what |
//! |---|---|
//! | [`mod@file`] | the character device: the state of an open file, ioctls |
//! | [`pci`] | PCI functions; [`config`]: their configuration space; [`irq`]: INTx, MSI, MSI-X |
//! | [`platform`] | the keyboard controller and the boot framebuffer |
//!
//! Key types: [`Backend`], what the file asks of a device; [`SetIrqs`], a checked `VFIO_DEVICE_SET_IRQS`.
//!
//! Locking: `file`'s state (sleeping) → a backend's own state (sleeping) → `Function`'s command lock and an interrupt's
//! trigger (both IRQ). Interrupt handlers take only the last two.
//!
//! References: <linux/vfio.h>; `Documentation/driver-api/vfio.rst`; `drivers/vfio/`.

mod config;
mod file;
mod irq;
mod pci;
mod platform;
#[cfg(target_os = "none")]
mod tests;

use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_uapi::vfio as abi;

use crate::device::Device;
use crate::iommu::Ioas;
use crate::ipc::eventfd::EventFd;
use crate::mm::MemoryObject;
use crate::process::current;
use crate::user::{self, UserAddr};
use crate::{Errno, Result};

/// A region as `VFIO_DEVICE_GET_REGION_INFO` tells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Region {
    /// `REGION_INFO_FLAG_*`.
    pub flags: u32,
    /// Bytes.
    pub size: u64,
    /// Whether the page of the MSI-X table lies in it.
    pub msix_table: bool,
}

/// The kinds of device, by what is special about them.
pub trait Backend: Send + Sync {
    /// `DEVICE_FLAGS_*`.
    fn flags(&self) -> u32;
    /// How many regions and interrupt indexes there are.
    fn counts(&self) -> (u32, u32);
    /// Region `index`.
    ///
    /// # Errors
    /// `EINVAL` when there is no such index.
    fn region(&self, index: u32) -> Result<Region>;
    /// Flags and number of interrupts of `index`.
    ///
    /// # Errors
    /// `EINVAL` when there is no such index.
    fn irq(&self, index: u32) -> Result<(u32, u32)>;
    /// A driver takes the device.
    ///
    /// # Errors
    /// `EBUSY` when something that it needs is taken.
    fn open(&self) -> Result;
    /// The driver is gone: the device is quiet when this returns.
    fn close(&self);
    /// Attaches the device to an address space of the iommufd `owner`, or to another one, or to none.
    ///
    /// # Errors
    /// `ENODEV` for a device that does no DMA, `EBUSY` when its group has another owner, `ENOMEM`, `EIO`.
    fn attach(&self, ioas: Option<&Arc<Ioas>>, owner: usize) -> Result;
    /// Reads from a region; at least one byte, at most `buf`. The range lies within the region.
    ///
    /// # Errors
    /// `EINVAL` where an access of this size cannot be, `EIO` while the device does not decode.
    fn read(&self, index: u32, offset: u64, buf: &mut [u8]) -> Result<usize>;
    /// Writes to a region, likewise.
    ///
    /// # Errors
    /// As [`Backend::read`].
    fn write(&self, index: u32, offset: u64, data: &[u8]) -> Result<usize>;
    /// The memory of a region that can be mapped.
    ///
    /// # Errors
    /// `EINVAL` for another region, or for write combining where that is not allowed.
    fn memory(&self, index: u32, write_combining: bool) -> Result<Arc<MemoryObject>>;
    /// Changes interrupts.
    ///
    /// # Errors
    /// `EINVAL`, `ENOTTY`, `EBUSY`, `ENOSPC`, `EBADF` as Linux has them.
    fn set_irqs(&self, request: &SetIrqs) -> Result;
    /// Resets the device.
    ///
    /// # Errors
    /// `ENOTTY` when it cannot be.
    fn reset(&self) -> Result;
}

/// What an interrupt does.
pub type Trigger = Arc<EventFd>;

/// The data of a `VFIO_DEVICE_SET_IRQS`.
#[derive(Debug, Clone)]
pub enum IrqData {
    /// For all interrupts of the range.
    None,
    /// For those that are true.
    Bool(Vec<u8>),
    /// Descriptors of eventfds; negative is none.
    Eventfds(Vec<i32>),
}

/// The action of a `VFIO_DEVICE_SET_IRQS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrqAction {
    /// Mask.
    Mask,
    /// Unmask.
    Unmask,
    /// Set eventfds, or signal them; none at all turns the index off.
    Trigger,
}

/// A `VFIO_DEVICE_SET_IRQS` whose range lies within the index.
#[derive(Debug, Clone)]
pub struct SetIrqs {
    /// Which index.
    pub index: u32,
    /// First interrupt.
    pub start: u32,
    /// How many.
    pub count: u32,
    /// What to do.
    pub action: IrqAction,
    /// With what.
    pub data: IrqData,
}

impl SetIrqs {
    /// Reads and checks the argument (`vfio_set_irqs_validate_and_prepare`).
    fn read(arg: u64, backend: &dyn Backend) -> Result<SetIrqs> {
        let header: abi::IrqSet = user::UserPtr::new(arg).read()?;
        let data_kinds = abi::IRQ_SET_DATA_NONE | abi::IRQ_SET_DATA_BOOL | abi::IRQ_SET_DATA_EVENTFD;
        let actions = abi::IRQ_SET_ACTION_MASK | abi::IRQ_SET_ACTION_UNMASK | abi::IRQ_SET_ACTION_TRIGGER;
        let bad = (header.argsz as usize) < size_of::<abi::IrqSet>()
            || header.index >= backend.counts().1
            || header.flags & !(data_kinds | actions) != 0;
        if bad {
            return Err(Errno::EINVAL);
        }
        let action = match header.flags & actions {
            abi::IRQ_SET_ACTION_MASK => IrqAction::Mask,
            abi::IRQ_SET_ACTION_UNMASK => IrqAction::Unmask,
            abi::IRQ_SET_ACTION_TRIGGER => IrqAction::Trigger,
            _ => return Err(Errno::EINVAL),
        };
        let (_, max) = backend.irq(header.index)?;
        let end = header.start.checked_add(header.count).filter(|end| *end <= max);
        if header.start >= max || end.is_none() {
            return Err(Errno::EINVAL);
        }
        let size = match header.flags & data_kinds {
            abi::IRQ_SET_DATA_NONE => 0,
            abi::IRQ_SET_DATA_BOOL => 1,
            abi::IRQ_SET_DATA_EVENTFD => 4,
            _ => return Err(Errno::EINVAL),
        };
        // At most 2048 interrupts of 4 bytes: the count was checked above.
        let len = header.count as usize * size;
        if header.argsz as usize - size_of::<abi::IrqSet>() < len {
            return Err(Errno::EINVAL);
        }
        let at = arg.wrapping_add(size_of::<abi::IrqSet>() as u64);
        let data = match size {
            0 => IrqData::None,
            // An eventfd of nothing at all is no way to say "off".
            _ if header.count == 0 => return Err(Errno::EINVAL),
            1 => IrqData::Bool(user::read_slice(user::UserPtr::<u8>::new(at), len)?),
            _ => {
                // The array follows a header of 20 bytes, so it may lie at any multiple of 4.
                let mut bytes = alloc::vec![0; len];
                user::read_bytes(UserAddr::new(at), &mut bytes)?;
                IrqData::Eventfds(bytes.as_chunks::<4>().0.iter().map(|b| i32::from_ne_bytes(*b)).collect())
            }
        };
        Ok(SetIrqs { index: header.index, start: header.start, count: header.count, action, data })
    }

    /// The eventfds of the data, `None` for a negative descriptor.
    ///
    /// # Errors
    /// `EBADF`; `EINVAL` for another kind of file.
    fn triggers(fds: &[i32]) -> Result<Vec<Option<Trigger>>> {
        let one = |fd: i32| current().files().get(fd)?.ops_shared::<EventFd>().ok_or(Errno::EINVAL);
        fds.iter().map(|&fd| if fd < 0 { Ok(None) } else { one(fd).map(Some) }).collect()
    }

    /// Which interrupts of the range the data names, for actions without eventfds.
    fn chosen(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.count)
            .filter(|&i| match &self.data {
                IrqData::None => true,
                IrqData::Bool(flags) => flags.get(i as usize).is_some_and(|f| *f != 0),
                IrqData::Eventfds(_) => false,
            })
            .map(|i| self.start + i)
    }
}

/// Registers all devices.
///
/// # Errors
/// `EBUSY`, `EEXIST` when a number or a name is taken.
pub fn init() -> Result {
    file::init()?;
    for function in crate::pci::functions().iter().filter(|f| f.is_drivable()) {
        if let Some(device) = function.device.get() {
            register(Arc::new(pci::PciBackend::new(function.clone())), device)?;
        }
    }
    platform::init()?;
    crate::pci::watch_slots();
    Ok(())
}

/// Gives a function that has come its file, if drivers may have it.
///
/// # Errors
/// `ENOSPC` when there are too many devices, and those of registration.
pub fn add(function: &Arc<crate::pci::Function>) -> Result {
    match function.device.get() {
        Some(device) if function.is_drivable() => register(Arc::new(pci::PciBackend::new(function.clone())), device),
        _ => Ok(()),
    }
}

/// Takes a function from its driver, whose file answers `ENODEV` from then on. Its mappings of the registers fault.
pub fn remove(function: &crate::pci::Function) {
    if let Some(device) = function.device.get() {
        file::Node::retire(device);
    }
}

/// Gives `device` a VFIO file.
fn register(backend: Arc<dyn Backend>, device: &Arc<Device>) -> Result {
    file::Node::register(backend, device)
}
