//! Devices on no bus: the keyboard controller, the boot framebuffer.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use linux_uapi::vfio;

use crate::irq::Irq;
use crate::mmio::Mmio;
use crate::vfio::{Backend, VfioDevice, open_iommufd};

/// A platform device: numbered regions and interrupts.
pub struct PlatformDevice {
    name: String,
    backend: Arc<dyn Backend>,
}

impl PlatformDevice {
    /// Opens `name` (`i8042`, `ursa-fb`), with the descriptors that `init` passed or as root by name.
    ///
    /// # Errors
    /// `NotFound` when there is none; `EBUSY` when another driver has it; `PermissionDenied`.
    pub fn open(name: &str) -> io::Result<Self> {
        let iommufd = open_iommufd()?;
        let device = VfioDevice::open("platform", name, std::os::fd::AsFd::as_fd(&iommufd))?;
        if device.info.flags & vfio::DEVICE_FLAGS_PLATFORM == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a platform device"));
        }
        Ok(Self::with(name, Arc::new(device)))
    }

    /// A device behind another backend (a mock).
    #[must_use]
    pub fn with(name: &str, backend: Arc<dyn Backend>) -> Self {
        Self { name: name.to_owned(), backend }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Region `index` as one port of a byte.
    #[must_use]
    pub fn port(&self, index: u32) -> Port {
        Port { backend: self.backend.clone(), index }
    }

    /// Turns interrupt `index` on. A level-triggered one is masked at each interrupt, until [`Irq::unmask`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn irq(&self, index: u32) -> io::Result<Irq> {
        let (_, automasked) = self.backend.irq(index)?;
        Irq::enable(&self.backend, index, 0, 1, automasked)?.pop().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Maps the first `len` bytes of region `index`, write-combining where the kernel allows it.
    ///
    /// # Errors
    /// `InvalidInput` when the region is shorter; the kernel's.
    pub fn map_region(&self, index: u32, len: usize) -> io::Result<Mmio> {
        let all = self.backend.map(index, true)?;
        all.window(0, len).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Bytes of region `index`.
    ///
    /// # Errors
    /// `EINVAL` when there is none.
    pub fn region_len(&self, index: u32) -> io::Result<u64> {
        self.backend.region(index).map(|r| r.len)
    }

    /// A sysfs attribute of the device (`width` of `ursa-fb`), without the newline.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn attribute(&self, name: &str) -> io::Result<String> {
        let at = Path::new("/sys/devices/platform").join(&self.name).join(name);
        Ok(fs::read_to_string(at)?.trim_end().to_owned())
    }
}

/// An I/O port.
#[derive(Clone)]
pub struct Port {
    backend: Arc<dyn Backend>,
    index: u32,
}

impl Port {
    /// Reads the port.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(&self) -> io::Result<u8> {
        let mut to = [0];
        self.backend.read(self.index, 0, &mut to)?;
        Ok(to[0])
    }
    /// Writes the port.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&self, value: u8) -> io::Result<()> {
        self.backend.write(self.index, 0, &[value])
    }
}
