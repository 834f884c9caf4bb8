//! The device file, and the trait that stands for it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use linux_uapi::vfio::{self, AttachPt, BindIommufd, DeviceInfo, IrqSet};
use linux_uapi::zerocopy::IntoBytes;

use crate::mmio::Mmio;
use crate::volatile::Shared;
use crate::{passed, sys};

/// A region as the device file describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionInfo {
    /// Bytes; 0 when there is no such region.
    pub len: u64,
    /// Whether it can be mapped (else it is read and written through calls: port regions).
    pub mappable: bool,
}

/// What to do with a range of interrupts of one index.
#[derive(Debug, Clone, Copy)]
pub enum IrqAction<'a> {
    /// Signal these eventfds from now on.
    Trigger(&'a [BorrowedFd<'a>]),
    /// Signal none any more: turns the whole index off.
    Disable,
    /// Stop the interrupt at `start`.
    Mask,
    /// Let the interrupt at `start` come again.
    Unmask,
}

/// All that the crate asks of a device.
pub trait Backend: Send + Sync {
    /// A region's size and kind.
    ///
    /// # Errors
    /// `EINVAL` when there is no such index.
    fn region(&self, index: u32) -> io::Result<RegionInfo>;
    /// Reads from a region, at most 8 bytes where it has registers.
    ///
    /// # Errors
    /// The kernel's; an incomplete read is `UnexpectedEof`.
    fn read(&self, index: u32, offset: u64, to: &mut [u8]) -> io::Result<()>;
    /// Writes to a region.
    ///
    /// # Errors
    /// The kernel's.
    fn write(&self, index: u32, offset: u64, from: &[u8]) -> io::Result<()>;
    /// Maps a whole region, uncached or write-combining.
    ///
    /// # Errors
    /// The kernel's.
    fn map(&self, index: u32, write_combining: bool) -> io::Result<Mmio>;
    /// How many interrupts `index` has, and whether they mask themselves.
    ///
    /// # Errors
    /// `EINVAL` when there is no such index.
    fn irq(&self, index: u32) -> io::Result<(u32, bool)>;
    /// Changes interrupts.
    ///
    /// # Errors
    /// The kernel's.
    fn set_irqs(&self, index: u32, start: u32, action: IrqAction<'_>) -> io::Result<()>;
    /// Resets the device.
    ///
    /// # Errors
    /// `ENOTTY` when it cannot be reset.
    fn reset(&self) -> io::Result<()>;
    /// The device file, where there is one.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// An open VFIO device, bound to an iommufd.
pub(crate) struct VfioDevice {
    file: File,
    pub(crate) info: DeviceInfo,
}

impl VfioDevice {
    /// Takes the descriptor passed as `vfio:NAME`, else opens the device file that sysfs names for `bus`'s device `name`.
    pub(crate) fn open(bus: &str, name: &str, iommufd: BorrowedFd<'_>) -> io::Result<Self> {
        let file = match passed::take(&format!("vfio:{name}")) {
            Some(fd) => File::from(fd?),
            None => open_node(&Path::new("/sys/bus").join(bus).join("devices").join(name))?,
        };
        let mut bind =
            BindIommufd { argsz: size_of::<BindIommufd>() as u32, iommufd: iommufd.as_raw_fd(), ..Default::default() };
        sys::ioctl(&file, vfio::DEVICE_BIND_IOMMUFD, &mut bind)?;
        Self::bound(file)
    }

    /// A device file that is bound already.
    pub(crate) fn bound(file: File) -> io::Result<Self> {
        let mut info = DeviceInfo { argsz: size_of::<DeviceInfo>() as u32, ..Default::default() };
        sys::ioctl(&file, vfio::DEVICE_GET_INFO, &mut info)?;
        Ok(Self { file, info })
    }

    /// Attaches the device to an address space, which lets it be a bus master.
    pub(crate) fn attach(&self, ioas: u32) -> io::Result<()> {
        let mut attach = AttachPt { argsz: size_of::<AttachPt>() as u32, flags: 0, pt_id: ioas };
        sys::ioctl(&self.file, vfio::DEVICE_ATTACH_IOMMUFD_PT, &mut attach).map(drop)
    }

    fn info_of(&self, index: u32) -> io::Result<vfio::RegionInfo> {
        let mut info = vfio::RegionInfo { argsz: size_of::<vfio::RegionInfo>() as u32, index, ..Default::default() };
        sys::ioctl(&self.file, vfio::DEVICE_GET_REGION_INFO, &mut info)?;
        Ok(info)
    }
}

/// Opens `/dev/vfio/devices/vfioN`, N from the device's sysfs directory.
fn open_node(sysfs: &Path) -> io::Result<File> {
    let entry = std::fs::read_dir(sysfs.join("vfio-dev"))?
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the device has no VFIO file"))??;
    OpenOptions::new().read(true).write(true).open(Path::new("/dev/vfio/devices").join(entry.file_name()))
}

/// The passed `iommufd`, else `/dev/iommu`.
pub(crate) fn open_iommufd() -> io::Result<OwnedFd> {
    match passed::take(crate::handover::IOMMUFD) {
        Some(fd) => fd,
        None => Ok(OpenOptions::new().read(true).write(true).open("/dev/iommu")?.into()),
    }
}

impl Backend for VfioDevice {
    fn region(&self, index: u32) -> io::Result<RegionInfo> {
        let info = self.info_of(index)?;
        Ok(RegionInfo { len: info.size, mappable: info.flags & vfio::REGION_INFO_FLAG_MMAP != 0 })
    }

    fn read(&self, index: u32, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(to, vfio::region_offset(index) + offset)
    }

    fn write(&self, index: u32, offset: u64, from: &[u8]) -> io::Result<()> {
        self.file.write_all_at(from, vfio::region_offset(index) + offset)
    }

    fn map(&self, index: u32, write_combining: bool) -> io::Result<Mmio> {
        let info = self.info_of(index)?;
        let len = usize::try_from(info.size).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if write_combining {
            // Linux does not know the extension: there the mapping is uncached.
            match Shared::map(&self.file, info.offset | vfio::URSA_MMAP_WC, len) {
                Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {}
                done => return done.map(Mmio::mapped),
            }
        }
        Shared::map(&self.file, info.offset, len).map(Mmio::mapped)
    }

    fn irq(&self, index: u32) -> io::Result<(u32, bool)> {
        let mut info = vfio::IrqInfo { argsz: size_of::<vfio::IrqInfo>() as u32, index, ..Default::default() };
        sys::ioctl(&self.file, vfio::DEVICE_GET_IRQ_INFO, &mut info)?;
        Ok((info.count, info.flags & vfio::IRQ_INFO_AUTOMASKED != 0))
    }

    fn set_irqs(&self, index: u32, start: u32, action: IrqAction<'_>) -> io::Result<()> {
        let (flags, count, fds): (u32, u32, &[BorrowedFd<'_>]) = match action {
            IrqAction::Trigger(fds) => {
                (vfio::IRQ_SET_DATA_EVENTFD | vfio::IRQ_SET_ACTION_TRIGGER, fds.len() as u32, fds)
            }
            IrqAction::Disable => (vfio::IRQ_SET_DATA_NONE | vfio::IRQ_SET_ACTION_TRIGGER, 0, &[]),
            IrqAction::Mask => (vfio::IRQ_SET_DATA_NONE | vfio::IRQ_SET_ACTION_MASK, 1, &[]),
            IrqAction::Unmask => (vfio::IRQ_SET_DATA_NONE | vfio::IRQ_SET_ACTION_UNMASK, 1, &[]),
        };
        let argsz = (size_of::<IrqSet>() + 4 * fds.len()) as u32;
        let mut argument = IrqSet { argsz, flags, index, start, count }.as_bytes().to_vec();
        for fd in fds {
            argument.extend(fd.as_raw_fd().to_ne_bytes());
        }
        sys::sized(&self.file, vfio::DEVICE_SET_IRQS, &mut argument).map(drop)
    }

    fn reset(&self) -> io::Result<()> {
        sys::bare(&self.file, vfio::DEVICE_RESET).map(drop)
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

impl AsFd for VfioDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
