//! PCI functions behind VFIO files.

use alloc::sync::Arc;

use linux_uapi::vfio as abi;
use ursa_hal::mm::{CacheMode, mmio};
use ursa_hal::pci::Width;
use ursa_hal::port::PortRange;
use ursa_hal::{PAGE_SIZE, PhysAddr};

use super::config::{Config, Effect};
use super::irq::{self, Irqs, Line, Table};
use super::{Backend, IrqAction, IrqData, Region, SetIrqs};
use crate::iommu::{Attached, Ioas};
use crate::mm::MemoryObject;
use crate::pci::config::{self, command, reg};
use crate::pci::{BARS, Bar, BarKind, Function};
use crate::wait::Mutex;
use crate::{Errno, Result};

const PAGE: u64 = PAGE_SIZE as u64;
const READ_WRITE: u32 = abi::REGION_INFO_FLAG_READ | abi::REGION_INFO_FLAG_WRITE;

/// What there is while a driver has the function.
struct Open {
    config: Config,
    irqs: Irqs,
    /// The address space that the function is in.
    attached: Option<Attached>,
    ports: [Option<PortRange>; BARS],
    /// What was mapped of each BAR, uncached and write-combining.
    memory: [[Option<Arc<MemoryObject>>; 2]; BARS],
}

/// A PCI function.
pub(super) struct PciBackend {
    function: Arc<Function>,
    open: Mutex<Option<Open>>,
}

impl PciBackend {
    pub(super) fn new(function: Arc<Function>) -> Self {
        Self { function, open: Mutex::new(None) }
    }

    fn bar(&self, index: u32) -> Option<Bar> {
        self.function.bars.get(index as usize).copied().flatten()
    }

    /// Whether programs can map it: whole pages that hold nothing else.
    fn mappable(bar: &Bar) -> bool {
        matches!(bar.kind, BarKind::Memory { .. }) && bar.base.is_multiple_of(PAGE) && bar.len.is_multiple_of(PAGE)
    }

    /// The BAR, while it is decoded, with how an access of `len` bytes at `offset` has to be made.
    fn access(&self, index: u32, offset: u64, len: usize) -> Result<(Bar, Width)> {
        let bar = self.bar(index).ok_or(Errno::EINVAL)?;
        let decodes = match bar.kind {
            BarKind::Port => command::IO,
            BarKind::Memory { .. } => command::MEMORY,
        };
        if config::read16(self.function.address, reg::COMMAND) & decodes == 0 {
            return Err(Errno::EIO);
        }
        // Only the alignment matters.
        Ok((bar, config::natural((offset & 3) as u16, len)))
    }

    fn reset_open(&self, open: &mut Open) -> Result {
        let before = config::read16(self.function.address, reg::COMMAND);
        if let Irqs::Line(line) = &open.irqs {
            line.set_masked(true);
        }
        self.function.reset()?;
        match &open.irqs {
            Irqs::Off => {}
            Irqs::Line(line) => line.set_masked(false),
            Irqs::Msi(vector) => irq::program_msi(&self.function, vector),
            Irqs::Msix(table) => table.program(),
        }
        if open.attached.is_some() {
            self.function.change_command(0, before & command::MASTER);
        }
        Ok(())
    }

    fn set_line(&self, open: &mut Open, request: &SetIrqs) -> Result {
        let turn_off = request.action == IrqAction::Trigger && request.count == 0;
        if turn_off {
            if matches!(open.irqs, Irqs::Line(_)) {
                open.irqs = Irqs::Off;
                return Ok(());
            }
            return Err(Errno::EINVAL);
        }
        if request.start != 0 || request.count != 1 {
            return Err(Errno::EINVAL);
        }
        let on = match (&open.irqs, &request.data, request.action) {
            (Irqs::Off, IrqData::Eventfds(fds), IrqAction::Trigger) => {
                let trigger = SetIrqs::triggers(fds)?.pop().flatten();
                if let Some(trigger) = trigger {
                    open.irqs = Irqs::Line(Line::new(&self.function, trigger)?);
                }
                return Ok(());
            }
            (Irqs::Line(line), _, _) => line,
            _ => return Err(Errno::EINVAL),
        };
        match (request.action, &request.data) {
            (IrqAction::Trigger, IrqData::Eventfds(fds)) => on.set_trigger(SetIrqs::triggers(fds)?.pop().flatten()),
            // Masking by an eventfd is not offered.
            (_, IrqData::Eventfds(_)) => return Err(Errno::ENOTTY),
            (action, _) => {
                for _ in request.chosen() {
                    match action {
                        IrqAction::Trigger => on.signal(),
                        IrqAction::Mask => on.set_masked(true),
                        IrqAction::Unmask => on.set_masked(false),
                    }
                }
            }
        }
        Ok(())
    }

    fn set_messages(&self, open: &mut Open, request: &SetIrqs) -> Result {
        if request.action != IrqAction::Trigger {
            return Err(Errno::ENOTTY);
        }
        let msix = request.index == abi::PCI_MSIX_IRQ;
        let on = match open.irqs {
            Irqs::Msi(_) => !msix,
            Irqs::Msix(_) => msix,
            Irqs::Off => false,
            Irqs::Line(_) => return Err(Errno::EINVAL),
        };
        if !on && !matches!(open.irqs, Irqs::Off) {
            return Err(Errno::EINVAL);
        }
        if request.count == 0 {
            if !on {
                return Err(Errno::EINVAL);
            }
            irq::disable_msi(&self.function);
            open.irqs = Irqs::Off;
            return Ok(());
        }
        let IrqData::Eventfds(fds) = &request.data else {
            for i in request.chosen() {
                match &open.irqs {
                    Irqs::Msi(vector) => vector.signal(),
                    Irqs::Msix(table) => table.vector(i as usize).into_iter().for_each(|v| v.signal()),
                    _ => return Err(Errno::EINVAL),
                }
            }
            return Ok(());
        };
        let mut triggers = SetIrqs::triggers(fds)?;
        let end = (request.start + request.count) as usize;
        if !msix {
            irq::disable_msi(&self.function);
            open.irqs = Irqs::Off;
            if let Some(trigger) = triggers.pop().flatten() {
                open.irqs = Irqs::Msi(irq::enable_msi(&self.function, trigger)?);
            }
            return Ok(());
        }
        match &mut open.irqs {
            // Vectors beyond what was turned on at first: Linux says so, too.
            Irqs::Msix(table) if end > table.len() => Err(Errno::EINVAL),
            Irqs::Msix(table) => table.set(request.start as usize, triggers),
            _ => {
                let mut table = Table::new(&self.function, end)?;
                table.set(request.start as usize, triggers)?;
                open.irqs = Irqs::Msix(table);
                Ok(())
            }
        }
    }

    /// Whether the boot framebuffer lies in one of the BARs.
    fn has_boot_framebuffer(&self) -> bool {
        let Some(fb) = ursa_hal::boot::info().framebuffer else { return false };
        self.function.bars.iter().flatten().any(|bar| (bar.base..bar.base + bar.len).contains(&fb.phys.as_u64()))
    }
}

impl Backend for PciBackend {
    fn flags(&self) -> u32 {
        abi::DEVICE_FLAGS_PCI | if self.function.can_reset() { abi::DEVICE_FLAGS_RESET } else { 0 }
    }

    fn counts(&self) -> (u32, u32) {
        (abi::PCI_NUM_REGIONS, abi::PCI_NUM_IRQS)
    }

    fn region(&self, index: u32) -> Result<Region> {
        Ok(match index {
            0..abi::PCI_ROM_REGION => match self.bar(index) {
                Some(bar) => Region {
                    flags: READ_WRITE | if Self::mappable(&bar) { abi::REGION_INFO_FLAG_MMAP } else { 0 },
                    size: bar.len,
                    msix_table: self.function.msix.is_some_and(|m| u32::from(m.bar) == index),
                },
                None => Region::default(),
            },
            abi::PCI_ROM_REGION => Region::default(),
            abi::PCI_CONFIG_REGION => {
                Region { flags: READ_WRITE, size: self.function.config_len().into(), msix_table: false }
            }
            _ => return Err(Errno::EINVAL),
        })
    }

    fn irq(&self, index: u32) -> Result<(u32, u32)> {
        let f = &self.function;
        Ok(match index {
            abi::PCI_INTX_IRQ => (
                abi::IRQ_INFO_EVENTFD | abi::IRQ_INFO_MASKABLE | abi::IRQ_INFO_AUTOMASKED,
                u32::from(f.line.is_some() && f.maskable),
            ),
            abi::PCI_MSI_IRQ => (abi::IRQ_INFO_EVENTFD | abi::IRQ_INFO_NORESIZE, u32::from(f.msi.is_some())),
            abi::PCI_MSIX_IRQ => {
                (abi::IRQ_INFO_EVENTFD | abi::IRQ_INFO_NORESIZE, f.msix.map_or(0, |m| u32::from(m.count)))
            }
            _ => return Err(Errno::EINVAL),
        })
    }

    fn open(&self) -> Result {
        let f = &self.function;
        let mut open = self.open.lock();
        if open.is_some() {
            return Err(Errno::EBUSY);
        }
        let mut ports = [const { None }; BARS];
        for (slot, bar) in ports.iter_mut().zip(&f.bars) {
            if let Some(Bar { base, len, kind: BarKind::Port }) = bar {
                *slot = Some(PortRange::claim(*base as u16, *len as u32).ok_or(Errno::EBUSY)?);
            }
        }
        if self.has_boot_framebuffer() {
            ursa_hal::console::suspend();
        }
        f.change_command(command::MASTER, command::IO | command::MEMORY | command::INTX_DISABLE);
        *open = Some(Open {
            config: Config::new(f),
            irqs: Irqs::Off,
            attached: None,
            ports,
            memory: [const { [const { None }; 2] }; BARS],
        });
        Ok(())
    }

    fn close(&self) {
        let Some(mut open) = self.open.lock().take() else { return };
        // In this order: nothing new is started, nothing under way arrives, nobody is interrupted, nobody reaches the registers.
        self.function.stop_bus_master();
        // A function that goes on all the same reaches nothing any more.
        open.attached = None;
        irq::disable_msi(&self.function);
        open.irqs = Irqs::Off;
        for object in open.memory.iter().flatten().flatten() {
            object.retire();
        }
        // A function without a reset is quiet by now all the same.
        let _ = self.function.reset();
        self.function.change_command(command::IO | command::MASTER, command::INTX_DISABLE);
    }

    fn attach(&self, ioas: Option<&Arc<Ioas>>, owner: usize) -> Result {
        let mut open = self.open.lock();
        let open = open.as_mut().ok_or(Errno::EINVAL)?;
        if ioas.is_none() {
            self.function.stop_bus_master();
        }
        // Between two spaces it reaches nothing.
        open.attached = None;
        let Some(ioas) = ioas else { return Ok(()) };
        let attached = ioas.attach(&self.function, owner);
        if attached.is_err() {
            self.function.stop_bus_master();
        }
        open.attached = Some(attached?);
        Ok(())
    }

    fn read(&self, index: u32, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let open = self.open.lock();
        let open = open.as_ref().ok_or(Errno::EINVAL)?;
        if index == abi::PCI_CONFIG_REGION {
            open.config.read(&self.function, offset as u16, buf);
            return Ok(buf.len());
        }
        let (bar, width) = self.access(index, offset, buf.len())?;
        let value = match bar.kind {
            BarKind::Port => {
                let ports = open.ports[index as usize].as_ref().ok_or(Errno::EINVAL)?;
                ports.read(offset as u32, width)
            }
            BarKind::Memory { .. } => {
                let window = mmio(PhysAddr(bar.base + offset), width.bytes().into(), CacheMode::Uncached);
                let window = window.ok_or(Errno::ENOMEM)?;
                match width {
                    Width::Byte => window.read8(0).into(),
                    Width::Word => window.read16(0).into(),
                    Width::Dword => window.read32(0),
                }
            }
        };
        let n = usize::from(width.bytes());
        buf[..n].copy_from_slice(&value.to_le_bytes()[..n]);
        Ok(n)
    }

    fn write(&self, index: u32, offset: u64, data: &[u8]) -> Result<usize> {
        let mut open = self.open.lock();
        let open = open.as_mut().ok_or(Errno::EINVAL)?;
        if index == abi::PCI_CONFIG_REGION {
            if open.config.write(&self.function, offset as u16, data, open.attached.is_some()) == Effect::Reset {
                // The write itself has no answer to a function that cannot be reset.
                let _ = self.reset_open(open);
            }
            return Ok(data.len());
        }
        let (bar, width) = self.access(index, offset, data.len())?;
        let n = usize::from(width.bytes());
        let mut value = [0; 4];
        value[..n].copy_from_slice(&data[..n]);
        let value = u32::from_le_bytes(value);
        match bar.kind {
            BarKind::Port => {
                let ports = open.ports[index as usize].as_ref().ok_or(Errno::EINVAL)?;
                ports.write(offset as u32, width, value);
            }
            BarKind::Memory { .. } => {
                let window = mmio(PhysAddr(bar.base + offset), n, CacheMode::Uncached).ok_or(Errno::ENOMEM)?;
                match width {
                    Width::Byte => window.write8(0, value as u8),
                    Width::Word => window.write16(0, value as u16),
                    Width::Dword => window.write32(0, value),
                }
            }
        }
        Ok(n)
    }

    fn memory(&self, index: u32, write_combining: bool) -> Result<Arc<MemoryObject>> {
        let bar = self.bar(index).filter(Self::mappable).ok_or(Errno::EINVAL)?;
        if write_combining && !matches!(bar.kind, BarKind::Memory { prefetchable: true, .. }) {
            return Err(Errno::EINVAL);
        }
        let mut open = self.open.lock();
        let open = open.as_mut().ok_or(Errno::EINVAL)?;
        let slot = &mut open.memory[index as usize][usize::from(write_combining)];
        if let Some(object) = slot {
            return Ok(object.clone());
        }
        let cache = if write_combining { CacheMode::WriteCombining } else { CacheMode::Uncached };
        let object = MemoryObject::device(PhysAddr(bar.base), bar.len, cache)?;
        *slot = Some(object.clone());
        Ok(object)
    }

    fn set_irqs(&self, request: &SetIrqs) -> Result {
        let mut open = self.open.lock();
        let open = open.as_mut().ok_or(Errno::EINVAL)?;
        match request.index {
            abi::PCI_INTX_IRQ => self.set_line(open, request),
            _ => self.set_messages(open, request),
        }
    }

    fn reset(&self) -> Result {
        let mut open = self.open.lock();
        let open = open.as_mut().ok_or(Errno::EINVAL)?;
        self.reset_open(open)
    }
}
