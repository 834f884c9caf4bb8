//! A PCI function.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use linux_uapi::vfio;

use crate::dma::{Dma, Ioas};
use crate::irq::Irq;
use crate::mmio::Mmio;
use crate::passed;
use crate::vfio::{Backend, IrqAction, VfioDevice, open_iommufd};

/// Configuration registers.
mod reg {
    pub const COMMAND: u16 = 0x04;
    pub const STATUS: u16 = 0x06;
    pub const BAR: u16 = 0x10;
    pub const CAPABILITIES: u16 = 0x34;
}
const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const BARS: u32 = 6;

/// What a BAR decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports: accessed with [`PciDevice::bar_read`] and `bar_write`.
    Port,
    /// Memory.
    Memory {
        /// Reads have no effect, so it may be mapped write-combining.
        prefetchable: bool,
    },
}

/// A base address register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// Bytes.
    pub len: u64,
    /// Ports or memory.
    pub kind: BarKind,
}

/// A PCI function that this process drives. The kernel takes interrupts and bus mastering away when it is closed.
pub struct PciDevice {
    name: String,
    backend: Arc<dyn Backend>,
    dma: Dma,
}

impl PciDevice {
    /// Opens the function at `address` (`0000:00:02.0`), with the descriptors that `init` passed or as root by name.
    ///
    /// # Errors
    /// `NotFound` when there is none; `EBUSY` when another driver has it; `PermissionDenied`.
    pub fn open(address: &str) -> io::Result<Self> {
        let ioas = Ioas::new(open_iommufd()?)?;
        let device = VfioDevice::open("pci", address, ioas.iommufd())?;
        if device.info.flags & vfio::DEVICE_FLAGS_PCI == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a PCI function"));
        }
        device.attach(ioas.id())?;
        Self::with(address, Arc::new(device), Dma::new(Arc::new(ioas)))
    }

    /// Opens the function that `init` passed.
    ///
    /// # Errors
    /// `NotFound` when it passed none.
    pub fn from_environment() -> io::Result<Self> {
        Self::open(&passed::device().ok_or(io::ErrorKind::NotFound)?)
    }

    /// A function behind other backends (a mock).
    ///
    /// # Errors
    /// The backend's.
    pub fn with(address: &str, backend: Arc<dyn Backend>, dma: Dma) -> io::Result<Self> {
        let device = Self { name: address.to_owned(), backend, dma };
        let command = device.config_read16(reg::COMMAND)?;
        device.config_write16(reg::COMMAND, command | COMMAND_IO | COMMAND_MEMORY)?;
        Ok(device)
    }

    /// The device file, where there is one.
    pub(crate) fn file(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.backend.file()
    }

    /// Addresses of all functions with these ids.
    #[must_use]
    pub fn find(vendor: u16, device: u16) -> Vec<String> {
        Self::find_by(|v, d, _| v == vendor && d == device)
    }

    /// Addresses of all functions whose vendor, device and class (24 bits) `matches` accepts, in order.
    pub fn find_by(mut matches: impl FnMut(u16, u16, u32) -> bool) -> Vec<String> {
        let value = |path: &Path, name| {
            let text = fs::read_to_string(path.join(name)).ok()?;
            u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
        };
        let entries = fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten();
        let mut found: Vec<String> = entries
            .filter(|e| {
                let at = e.path();
                let ids = (value(&at, "vendor"), value(&at, "device"), value(&at, "class"));
                matches!(ids, (Some(v), Some(d), Some(c)) if matches(v as u16, d as u16, c))
            })
            .filter_map(|e| e.file_name().into_string().ok())
            .collect();
        found.sort();
        found
    }

    /// `0000:00:02.0`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.name
    }

    /// Where the function is under `/sys`: `/devices/pci0000:00/0000:00:02.0`.
    #[must_use]
    pub fn sysfs_path(&self) -> PathBuf {
        // Who started the driver may have said so: it may not see sysfs.
        if let Some(told) = std::env::var_os("DEVPATH").map(PathBuf::from).filter(|p| p.ends_with(&self.name)) {
            return told;
        }
        let link = Path::new("/sys/bus/pci/devices").join(&self.name);
        match fs::canonicalize(&link) {
            Ok(at) => Path::new("/").join(at.strip_prefix("/sys").unwrap_or(&at)),
            // Without sysfs (a mock): where it is when no bridge lies between.
            Err(_) => {
                Path::new("/devices").join(format!("pci{}", &self.name[..self.name.len().min(7)])).join(&self.name)
            }
        }
    }

    /// Reads configuration space.
    ///
    /// # Errors
    /// Out of range or misaligned.
    pub fn config_read8(&self, offset: u16) -> io::Result<u8> {
        self.config::<1>(offset).map(u8::from_le_bytes)
    }
    /// Reads configuration space.
    ///
    /// # Errors
    /// Out of range or misaligned.
    pub fn config_read16(&self, offset: u16) -> io::Result<u16> {
        self.config::<2>(offset).map(u16::from_le_bytes)
    }
    /// Reads configuration space.
    ///
    /// # Errors
    /// Out of range or misaligned.
    pub fn config_read32(&self, offset: u16) -> io::Result<u32> {
        self.config::<4>(offset).map(u32::from_le_bytes)
    }
    fn config<const N: usize>(&self, offset: u16) -> io::Result<[u8; N]> {
        let mut to = [0; N];
        self.backend.read(vfio::PCI_CONFIG_REGION, u64::from(offset), &mut to)?;
        Ok(to)
    }
    /// Writes configuration space. The kernel ignores what a driver may not change.
    ///
    /// # Errors
    /// Out of range or misaligned.
    pub fn config_write8(&self, offset: u16, value: u8) -> io::Result<()> {
        self.backend.write(vfio::PCI_CONFIG_REGION, u64::from(offset), &value.to_le_bytes())
    }
    /// Writes configuration space.
    ///
    /// # Errors
    /// As [`Self::config_write8`].
    pub fn config_write16(&self, offset: u16, value: u16) -> io::Result<()> {
        self.backend.write(vfio::PCI_CONFIG_REGION, u64::from(offset), &value.to_le_bytes())
    }
    /// Writes configuration space.
    ///
    /// # Errors
    /// As [`Self::config_write8`].
    pub fn config_write32(&self, offset: u16, value: u32) -> io::Result<()> {
        self.backend.write(vfio::PCI_CONFIG_REGION, u64::from(offset), &value.to_le_bytes())
    }

    /// Capabilities: id and offset of each, in the list's order.
    #[must_use]
    pub fn capabilities(&self) -> Vec<(u8, u16)> {
        let mut found = Vec::new();
        if !self.config_read16(reg::STATUS).is_ok_and(|s| s & STATUS_CAPABILITIES != 0) {
            return found;
        }
        let mut at = self.config_read8(reg::CAPABILITIES).unwrap_or(0) & !3;
        // A list that runs in circles ends after as many as can be.
        while at >= 0x40 && found.len() < 48 {
            let Ok([id, next]) = self.config_read16(at.into()).map(u16::to_le_bytes) else { break };
            found.push((id, u16::from(at)));
            at = next & !3;
        }
        found
    }

    /// What BAR `n` is.
    ///
    /// # Errors
    /// `NotFound` when the function has no such BAR.
    pub fn bar(&self, n: u32) -> io::Result<Bar> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{} has no BAR {n}", self.name));
        if n >= BARS {
            return Err(missing());
        }
        let region = self.backend.region(n)?;
        if region.len == 0 {
            return Err(missing());
        }
        let low = self.config_read32(reg::BAR + 4 * n as u16)?;
        let kind = if low & 1 != 0 { BarKind::Port } else { BarKind::Memory { prefetchable: low & 8 != 0 } };
        Ok(Bar { len: region.len, kind })
    }

    /// Maps BAR `n` uncached.
    ///
    /// # Errors
    /// `EINVAL` for ports; the kernel's.
    pub fn map_bar(&self, n: u32) -> io::Result<Mmio> {
        self.bar(n)?;
        self.backend.map(n, false)
    }

    /// Maps BAR `n`, which has to be prefetchable, write-combining: for frame buffers.
    ///
    /// # Errors
    /// As [`Self::map_bar`].
    pub fn map_bar_write_combining(&self, n: u32) -> io::Result<Mmio> {
        self.bar(n)?;
        self.backend.map(n, true)
    }

    /// Reads 1, 2 or 4 bytes of BAR `n` through the kernel: for ports.
    ///
    /// # Errors
    /// Out of range or misaligned.
    pub fn bar_read(&self, n: u32, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.backend.read(n, offset, to)
    }
    /// Writes 1, 2 or 4 bytes of BAR `n` through the kernel.
    ///
    /// # Errors
    /// Out of range or misaligned.
    pub fn bar_write(&self, n: u32, offset: u64, from: &[u8]) -> io::Result<()> {
        self.backend.write(n, offset, from)
    }

    /// Lets the function reach memory and send message interrupts.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enable_bus_master(&self) -> io::Result<()> {
        let command = self.config_read16(reg::COMMAND)?;
        self.config_write16(reg::COMMAND, command | COMMAND_MASTER)
    }

    /// Resets the function. Its interrupts stay set up; its registers are as after power-on.
    ///
    /// # Errors
    /// `ENOTTY` when it has no reset.
    pub fn reset(&self) -> io::Result<()> {
        self.backend.reset()
    }

    /// Turns MSI-X on with the first `count` vectors.
    ///
    /// # Errors
    /// `EINVAL` when the function has fewer, `EBUSY` when another kind of interrupt is on.
    pub fn enable_msix(&self, count: u32) -> io::Result<Vec<Irq>> {
        Irq::enable(&self.backend, vfio::PCI_MSIX_IRQ, 0, count, false)
    }

    /// How many MSI-X vectors the function has.
    ///
    /// # Errors
    /// The kernel's.
    pub fn msix_count(&self) -> io::Result<u32> {
        self.backend.irq(vfio::PCI_MSIX_IRQ).map(|i| i.0)
    }

    /// Turns MSI on with one vector.
    ///
    /// # Errors
    /// As [`Self::enable_msix`].
    pub fn enable_msi(&self) -> io::Result<Irq> {
        self.one(vfio::PCI_MSI_IRQ, false)
    }

    /// Turns the interrupt line on. It is masked at each interrupt, until [`Irq::unmask`].
    ///
    /// # Errors
    /// As [`Self::enable_msix`].
    pub fn enable_intx(&self) -> io::Result<Irq> {
        self.one(vfio::PCI_INTX_IRQ, true)
    }

    fn one(&self, index: u32, automasked: bool) -> io::Result<Irq> {
        if self.backend.irq(index)?.0 == 0 {
            return Err(rustix::io::Errno::INVAL.into());
        }
        Irq::enable(&self.backend, index, 0, 1, automasked)?.pop().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Turns all interrupts of one kind off again.
    ///
    /// # Errors
    /// The kernel's.
    pub fn disable_msix(&self) -> io::Result<()> {
        self.backend.set_irqs(vfio::PCI_MSIX_IRQ, 0, IrqAction::Disable)
    }

    /// The function's address space.
    #[must_use]
    pub fn dma(&self) -> &Dma {
        &self.dma
    }
}
