//! A device made of callbacks, for tests of drivers on the host.
//!
//! The device's side of a test implements [`Registers`] for each BAR and gets a [`Host`], through which it raises interrupts
//! and reads and writes the driver's DMA buffers at the addresses that the driver told it, as a real device would. Scattered
//! buffers are given as single pages with gaps between, so that a driver that takes them for contiguous fails.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use linux_uapi::vfio as uapi;
use rustix::io::Errno;

use crate::dma::{Contiguity, Dma, DmaBackend, Mapped, Segment};
use crate::mmio::{Mmio, Registers};
use crate::pci::PciDevice;
use crate::platform::PlatformDevice;
use crate::vfio::{Backend, IrqAction, RegionInfo};
use crate::volatile::Shared;

const PAGE: u64 = 4096;

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Run {
    memory: Arc<Shared>,
    offset: usize,
    len: usize,
    id: u64,
}

#[derive(Default)]
struct Interrupts {
    /// Eventfd by index and number.
    events: BTreeMap<(u32, u32), OwnedFd>,
    /// Masked, and whether one came meanwhile.
    masked: BTreeMap<(u32, u32), bool>,
}

/// The machine around a mock device: its interrupts and the memory it can reach.
#[derive(Default)]
pub struct Host {
    interrupts: Mutex<Interrupts>,
    /// Runs by bus address.
    memory: Mutex<BTreeMap<u64, Run>>,
    next: Mutex<u64>,
    /// Buffers of [`Contiguity::Contiguous`] that wait to be mapped, by device and inode number.
    contiguous: Mutex<Vec<(u64, u64)>>,
    resets: Mutex<u32>,
}

impl Host {
    /// A machine.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Raises MSI-X vector `n`. Returns whether the driver has it enabled.
    pub fn msix(&self, n: u32) -> bool {
        self.raise(uapi::PCI_MSIX_IRQ, n, false)
    }

    /// Raises the MSI.
    pub fn msi(&self) -> bool {
        self.raise(uapi::PCI_MSI_IRQ, 0, false)
    }

    /// Raises the line; while the driver has not unmasked it, it is held until then.
    pub fn intx(&self) -> bool {
        self.raise(uapi::PCI_INTX_IRQ, 0, true)
    }

    /// Raises interrupt `index` of a platform device.
    pub fn irq(&self, index: u32) -> bool {
        self.raise(index, 0, false)
    }

    fn raise(&self, index: u32, n: u32, automask: bool) -> bool {
        let mut i = lock(&self.interrupts);
        let key = (index, n);
        if !i.events.contains_key(&key) {
            return false;
        }
        if let Some(pending) = i.masked.get_mut(&key) {
            *pending = true;
            return true;
        }
        if automask {
            i.masked.insert(key, false);
        }
        signal(&i.events[&key])
    }

    /// Reads memory as the device.
    ///
    /// # Errors
    /// The address that the driver never mapped.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<(), u64> {
        self.each(address, to.len(), |run, at, range| run.memory.copy_to_slice(at, &mut to[range]))
    }

    /// Writes memory as the device.
    ///
    /// # Errors
    /// The address that the driver never mapped.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), u64> {
        self.each(address, from.len(), |run, at, range| run.memory.copy_from_slice(at, &from[range]))
    }

    fn each(
        &self,
        address: u64,
        len: usize,
        mut f: impl FnMut(&Run, usize, std::ops::Range<usize>),
    ) -> Result<(), u64> {
        let memory = lock(&self.memory);
        let mut done = 0;
        while done < len {
            let at = address.wrapping_add(done as u64);
            let (start, run) = memory.range(..=at).next_back().ok_or(at)?;
            let within = (at - start) as usize;
            if within >= run.len {
                return Err(at);
            }
            let n = (run.len - within).min(len - done);
            f(run, run.offset + within, done..done + n);
            done += n;
        }
        Ok(())
    }

    /// How often the driver reset the device.
    pub fn resets(&self) -> u32 {
        *lock(&self.resets)
    }

    /// How many runs of memory the device can reach: 0 once the driver has given back everything.
    pub fn mapped_runs(&self) -> usize {
        lock(&self.memory).len()
    }
}

fn signal(event: &OwnedFd) -> bool {
    rustix::io::write(event, &1u64.to_ne_bytes()).is_ok()
}

fn identity(fd: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

impl DmaBackend for Host {
    fn allocate(&self, len: usize, contiguity: Contiguity) -> io::Result<OwnedFd> {
        let fd = rustix::fs::memfd_create("dma", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        if contiguity == Contiguity::Contiguous {
            lock(&self.contiguous).push(identity(fd.as_fd())?);
        }
        Ok(fd)
    }

    fn map(&self, fd: BorrowedFd<'_>, len: usize) -> io::Result<Mapped> {
        let memory = Arc::new(Shared::map(fd, 0, len)?);
        let contiguous = lock(&self.contiguous).contains(&identity(fd)?);
        let mut next = lock(&self.next);
        // Above 4 GiB, so that a driver that cuts addresses off fails.
        let mut at = (*next).max(0x1_0000_0000);
        let id = at;
        let step = if contiguous { len } else { PAGE as usize };
        let mut segments = Vec::new();
        for offset in (0..len).step_by(step) {
            let n = step.min(len - offset);
            lock(&self.memory).insert(at, Run { memory: memory.clone(), offset, len: n, id });
            segments.push(Segment { address: at, len: n as u64 });
            at += n as u64 + PAGE;
        }
        *next = at;
        Ok(Mapped { segments, id })
    }

    fn unmap(&self, mapped: &Mapped) {
        lock(&self.memory).retain(|_, r| r.id != mapped.id);
    }

    fn translated(&self) -> bool {
        false
    }
}

struct Region {
    registers: Arc<dyn Registers>,
    len: usize,
}

/// Describes a device; `build` makes it.
pub struct Builder {
    host: Arc<Host>,
    config: Vec<u8>,
    regions: BTreeMap<u32, Region>,
    irqs: BTreeMap<u32, (u32, bool)>,
    last_capability: usize,
    free: usize,
}

impl Builder {
    /// A device on `host`.
    #[must_use]
    pub fn new(host: &Arc<Host>) -> Self {
        Self {
            host: host.clone(),
            config: vec![0; 4096],
            regions: BTreeMap::new(),
            irqs: BTreeMap::new(),
            last_capability: 0x34,
            free: 0x40,
        }
    }

    /// Sets the PCI ids: vendor, device, class (24 bits).
    #[must_use]
    pub fn ids(mut self, vendor: u16, device: u16, class: u32) -> Self {
        self.config[0..2].copy_from_slice(&vendor.to_le_bytes());
        self.config[2..4].copy_from_slice(&device.to_le_bytes());
        self.config[8..12].copy_from_slice(&(class << 8).to_le_bytes());
        self
    }

    /// Sets bytes of configuration space.
    #[must_use]
    pub fn config(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.config[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Adds a capability; `body` is what follows the id and the next pointer.
    #[must_use]
    pub fn capability(mut self, id: u8, body: &[u8]) -> Self {
        let at = self.free;
        self.config[6] |= 1 << 4;
        self.config[self.last_capability] = at as u8;
        self.config[at] = id;
        self.config[at + 2..at + 2 + body.len()].copy_from_slice(body);
        self.last_capability = at + 1;
        self.free = (at + 2 + body.len()).next_multiple_of(4);
        self
    }

    /// Adds a region: a memory BAR of a PCI function, a port or registers of a platform device.
    #[must_use]
    pub fn region(mut self, index: u32, len: usize, registers: Arc<dyn Registers>) -> Self {
        self.regions.insert(index, Region { registers, len });
        self
    }

    /// Gives a PCI function MSI-X vectors.
    #[must_use]
    pub fn msix(self, count: u32) -> Self {
        self.irqs(uapi::PCI_MSIX_IRQ, count, false)
    }

    /// Gives the device `count` interrupts of `index`.
    #[must_use]
    pub fn irqs(mut self, index: u32, count: u32, automasked: bool) -> Self {
        self.irqs.insert(index, (count, automasked));
        self
    }

    fn device(self) -> (Arc<Host>, Arc<Device>) {
        let device =
            Device { host: self.host.clone(), config: Mutex::new(self.config), regions: self.regions, irqs: self.irqs };
        (self.host, Arc::new(device))
    }

    /// The function, as a driver opens it.
    ///
    /// # Errors
    /// None in fact.
    pub fn build(self) -> io::Result<PciDevice> {
        let (host, device) = self.device();
        PciDevice::with("0000:00:02.0", device, Dma::new(host))
    }

    /// The platform device, as a driver opens it.
    #[must_use]
    pub fn build_platform(self, name: &str) -> PlatformDevice {
        PlatformDevice::with(name, self.device().1)
    }
}

struct Device {
    host: Arc<Host>,
    config: Mutex<Vec<u8>>,
    regions: BTreeMap<u32, Region>,
    irqs: BTreeMap<u32, (u32, bool)>,
}

impl Device {
    fn at(&self, index: u32, offset: u64, len: usize) -> io::Result<(&Region, usize)> {
        let region = self.regions.get(&index).ok_or(Errno::INVAL)?;
        let offset = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
        if !offset.checked_add(len).is_some_and(|e| e <= region.len) || !matches!(len, 1 | 2 | 4 | 8) {
            return Err(Errno::INVAL.into());
        }
        Ok((region, offset))
    }
}

impl Backend for Device {
    fn region(&self, index: u32) -> io::Result<RegionInfo> {
        Ok(RegionInfo { len: self.regions.get(&index).map_or(0, |r| r.len as u64), mappable: true })
    }

    fn read(&self, index: u32, offset: u64, to: &mut [u8]) -> io::Result<()> {
        if index == uapi::PCI_CONFIG_REGION {
            let config = lock(&self.config);
            let from = config.get(offset as usize..offset as usize + to.len()).ok_or(Errno::INVAL)?;
            to.copy_from_slice(from);
            return Ok(());
        }
        let (region, offset) = self.at(index, offset, to.len())?;
        let value = region.registers.read(offset, to.len());
        to.copy_from_slice(&value.to_le_bytes()[..to.len()]);
        Ok(())
    }

    fn write(&self, index: u32, offset: u64, from: &[u8]) -> io::Result<()> {
        if index == uapi::PCI_CONFIG_REGION {
            let mut config = lock(&self.config);
            config.get_mut(offset as usize..offset as usize + from.len()).ok_or(Errno::INVAL)?.copy_from_slice(from);
            return Ok(());
        }
        let (region, offset) = self.at(index, offset, from.len())?;
        let mut value = [0; 8];
        value[..from.len()].copy_from_slice(from);
        region.registers.write(offset, from.len(), u64::from_le_bytes(value));
        Ok(())
    }

    fn map(&self, index: u32, _: bool) -> io::Result<Mmio> {
        let region = self.regions.get(&index).ok_or(Errno::INVAL)?;
        Ok(Mmio::called(region.registers.clone(), region.len))
    }

    fn irq(&self, index: u32) -> io::Result<(u32, bool)> {
        Ok(self.irqs.get(&index).copied().unwrap_or((0, false)))
    }

    fn set_irqs(&self, index: u32, start: u32, action: IrqAction<'_>) -> io::Result<()> {
        let mut i = lock(&self.host.interrupts);
        match action {
            IrqAction::Trigger(fds) => {
                let (count, _) = self.irqs.get(&index).copied().ok_or(Errno::INVAL)?;
                if start as usize + fds.len() > count as usize {
                    return Err(Errno::INVAL.into());
                }
                for (n, fd) in (start..).zip(fds) {
                    i.events.insert((index, n), fd.try_clone_to_owned()?);
                }
            }
            IrqAction::Disable => {
                i.events.retain(|k, _| k.0 != index);
                i.masked.retain(|k, _| k.0 != index);
            }
            IrqAction::Mask => {
                i.masked.entry((index, start)).or_insert(false);
            }
            IrqAction::Unmask => {
                if i.masked.remove(&(index, start)) == Some(true) {
                    // The line is still up: it interrupts again, and masks itself again.
                    i.masked.insert((index, start), false);
                    if let Some(event) = i.events.get(&(index, start)) {
                        signal(event);
                    }
                }
            }
        }
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        *lock(&self.host.resets) += 1;
        Ok(())
    }
}
