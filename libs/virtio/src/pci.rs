//! Virtio over PCI, the modern interface.
//!
//! The device says in vendor-specific capabilities in which BAR its structures lie ([`Window`]); all of them are checked
//! against the BARs' real lengths. Interrupts are MSI-X, one vector for the configuration and one for each queue; a device
//! with too few vectors gets one for all queues, one without MSI-X is driven by INTx and its ISR status.
//!
//! [`PciFunction`], [`Registers`] and [`Interrupt`] are what this needs of `libs/driver`, so that tests can play the device.
//!
//! References: VIRTIO 1.2, 4.1.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use crate::{Cause, Error, Features, QueueSetup, Result, Status, Transport};

/// PCI capability identifier "vendor specific".
const CAP_VENDOR: u8 = 0x09;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
/// PCI vendor of all virtio devices.
pub const VENDOR: u16 = 0x1af4;
/// PCI device identifiers of modern devices are this plus the device type.
const MODERN_BASE: u16 = 0x1040;
const NO_VECTOR: u16 = 0xffff;

/// `struct virtio_pci_common_cfg`
mod common {
    pub const DEVICE_FEATURE_SELECT: usize = 0;
    pub const DEVICE_FEATURE: usize = 4;
    pub const DRIVER_FEATURE_SELECT: usize = 8;
    pub const DRIVER_FEATURE: usize = 12;
    pub const CONFIG_MSIX_VECTOR: usize = 16;
    pub const NUM_QUEUES: usize = 18;
    pub const DEVICE_STATUS: usize = 20;
    pub const CONFIG_GENERATION: usize = 21;
    pub const QUEUE_SELECT: usize = 22;
    pub const QUEUE_SIZE: usize = 24;
    pub const QUEUE_MSIX_VECTOR: usize = 26;
    pub const QUEUE_ENABLE: usize = 28;
    pub const QUEUE_NOTIFY_OFF: usize = 30;
    pub const QUEUE_DESC: usize = 32;
    pub const QUEUE_DRIVER: usize = 40;
    pub const QUEUE_DEVICE: usize = 48;
    pub const LEN: u64 = 56;
}

/// A mapped BAR. Accesses outside it are the caller's bug and may panic; this module checks first.
pub trait Registers {
    /// Bytes.
    fn len(&self) -> u64;
    /// One load.
    fn read8(&self, offset: usize) -> u8;
    /// One load.
    fn read16(&self, offset: usize) -> u16;
    /// One load.
    fn read32(&self, offset: usize) -> u32;
    /// One store.
    fn write8(&self, offset: usize, value: u8);
    /// One store.
    fn write16(&self, offset: usize, value: u16);
    /// One store.
    fn write32(&self, offset: usize, value: u32);
}

/// An interrupt as a descriptor.
pub trait Interrupt: AsFd {
    /// Clears the descriptor; how often the interrupt came since the last time.
    fn take(&mut self) -> io::Result<u64>;
    /// Lets a level-triggered interrupt come again.
    fn unmask(&mut self) -> io::Result<()>;
}

/// A PCI function that this process drives.
pub trait PciFunction {
    /// A mapped BAR.
    type Registers: Registers;
    /// An interrupt.
    type Interrupt: Interrupt;
    /// Reads configuration space.
    fn config_read32(&self, offset: u16) -> io::Result<u32>;
    /// Identifier and offset of each capability.
    fn capabilities(&self) -> io::Result<Vec<(u8, u16)>>;
    /// Maps a BAR.
    fn map_bar(&self, bar: u8) -> io::Result<Self::Registers>;
    /// Whether an IOMMU translates the addresses that it is given.
    fn is_translated(&self) -> bool;
    /// Lets the function reach memory.
    fn enable_bus_master(&self) -> io::Result<()>;
    /// Turns MSI-X on with `count` vectors.
    fn enable_msix(&self, count: usize) -> io::Result<Vec<Self::Interrupt>>;
    /// Turns the pin interrupt on.
    fn enable_intx(&self) -> io::Result<Self::Interrupt>;
}

/// One structure of the device inside one of its BARs.
#[derive(Clone, Copy, Debug)]
struct Window {
    bar: usize,
    offset: usize,
    len: usize,
}

enum Interrupts<I> {
    /// Vector 0 for the configuration, vector 1 + n for queue n, or vector 1 for all when `shared`.
    Msix {
        vectors: Vec<I>,
        shared: bool,
    },
    Intx(I),
}

/// A virtio device on PCI.
pub struct PciTransport<P: PciFunction> {
    function: P,
    device_type: u16,
    bars: Vec<Option<P::Registers>>,
    common: Window,
    notify: Window,
    notify_multiplier: u32,
    isr: Window,
    config: Option<Window>,
    queues: u16,
    /// Offset of each enabled queue's doorbell in the notify window's BAR.
    doorbells: Vec<Option<usize>>,
    interrupts: Interrupts<P::Interrupt>,
}

impl<P: PciFunction> PciTransport<P> {
    /// Finds the device's structures, takes its interrupts and lets it be bus master.
    ///
    /// # Errors
    /// [`Error::Transport`] for a function that is no modern virtio device or whose capabilities point nowhere.
    pub fn new(function: P) -> Result<Self> {
        let id = function.config_read32(0)?;
        let (vendor, device) = (id as u16, (id >> 16) as u16);
        if vendor != VENDOR || !(0x1000..=0x107f).contains(&device) {
            return Err(Error::Transport("not a virtio device"));
        }
        // Transitional devices have the type in the subsystem identifier.
        let device_type = match device.checked_sub(MODERN_BASE) {
            Some(device_type) => device_type,
            None => (function.config_read32(0x2c)? >> 16) as u16,
        };
        let mut bars: Vec<Option<P::Registers>> = (0..6).map(|_| None).collect();
        let (mut common, mut notify, mut isr, mut config) = (None, None, None, None);
        let mut notify_multiplier = 0;
        for (_, at) in function.capabilities()?.into_iter().filter(|&(id, _)| id == CAP_VENDOR) {
            let Some((kind, window)) = read_window(&function, at, &mut bars)? else { continue };
            // "The driver SHOULD use the first instance of each."
            match kind {
                CFG_COMMON if common.is_none() && window.len as u64 >= common::LEN => common = Some(window),
                CFG_NOTIFY if notify.is_none() && window.len >= 2 => {
                    notify = Some(window);
                    notify_multiplier = function.config_read32(at + 16)?;
                }
                CFG_ISR if isr.is_none() && window.len >= 1 => isr = Some(window),
                CFG_DEVICE if config.is_none() => config = Some(window),
                _ => {}
            }
        }
        let (Some(common), Some(notify), Some(isr)) = (common, notify, isr) else {
            return Err(Error::Transport("no modern virtio capabilities"));
        };
        let Some(registers) = bars[common.bar].as_ref() else { return Err(Error::Transport("no common BAR")) };
        let queues = registers.read16(common.offset + common::NUM_QUEUES);
        function.enable_bus_master()?;
        let interrupts = enable_interrupts(&function, queues)?;
        let doorbells = vec![None; queues.into()];
        Ok(PciTransport {
            function,
            device_type,
            bars,
            common,
            notify,
            notify_multiplier,
            isr,
            config,
            queues,
            doorbells,
            interrupts,
        })
    }

    /// The function underneath, for what is not virtio: DMA, sysfs path.
    pub fn function(&self) -> &P {
        &self.function
    }

    fn bar(&self, window: Window) -> &P::Registers {
        self.bars[window.bar].as_ref().expect("the BAR of a window is mapped")
    }

    fn common(&self) -> &P::Registers {
        self.bar(self.common)
    }

    fn read16(&self, field: usize) -> u16 {
        self.common().read16(self.common.offset + field)
    }

    fn read32(&self, field: usize) -> u32 {
        self.common().read32(self.common.offset + field)
    }

    fn read64(&self, field: usize) -> u64 {
        u64::from(self.read32(field)) | u64::from(self.read32(field + 4)) << 32
    }

    fn write16(&self, field: usize, value: u16) {
        self.common().write16(self.common.offset + field, value);
    }

    fn write32(&self, field: usize, value: u32) {
        self.common().write32(self.common.offset + field, value);
    }

    fn write64(&self, field: usize, value: u64) {
        self.write32(field, value as u32);
        self.write32(field + 4, (value >> 32) as u32);
    }

    /// Both halves of a set of features.
    fn features(&self, select: usize, field: usize) -> Features {
        let half = |number| {
            self.write32(select, number);
            u64::from(self.read32(field))
        };
        Features::from_bits_retain(half(0) | half(1) << 32)
    }

    /// Selects a queue; where its doorbell lies.
    fn doorbell(&self, queue: u16) -> Result<usize> {
        if queue >= self.queues {
            return Err(Error::NoQueue(queue));
        }
        self.select_queue(queue);
        let doorbell = u64::from(self.read16(common::QUEUE_NOTIFY_OFF)) * u64::from(self.notify_multiplier);
        if doorbell + 2 > self.notify.len as u64 || !(self.notify.offset as u64 + doorbell).is_multiple_of(2) {
            return Err(Error::Transport("a queue's doorbell lies outside its window or at an odd address"));
        }
        Ok(self.notify.offset + doorbell as usize)
    }

    /// Ties the selected queue's interrupt.
    fn tie_vector(&self, queue: u16) -> Result<()> {
        let vector = match self.interrupts {
            Interrupts::Msix { shared: true, .. } => 1,
            Interrupts::Msix { .. } => queue + 1,
            Interrupts::Intx(_) => NO_VECTOR,
        };
        self.set_vector(common::QUEUE_MSIX_VECTOR, vector)
    }

    fn select_queue(&self, queue: u16) {
        self.write16(common::QUEUE_SELECT, queue);
    }

    /// Writes a vector register, which reads back as "none" when the device could not tie it.
    fn set_vector(&self, field: usize, vector: u16) -> Result<()> {
        self.write16(field, vector);
        if vector != NO_VECTOR && self.read16(field) != vector {
            return Err(Error::Transport("the device refused an interrupt vector"));
        }
        Ok(())
    }
}

/// Reads the capability at `at` and maps the BAR that it names. `None` for those that name none.
fn read_window<P: PciFunction>(
    function: &P,
    at: u16,
    bars: &mut [Option<P::Registers>],
) -> Result<Option<(u8, Window)>> {
    let kind = (function.config_read32(at)? >> 24) as u8;
    let bar = usize::from(function.config_read32(at + 4)? as u8);
    if !(CFG_COMMON..=CFG_DEVICE).contains(&kind) || bar > 5 {
        return Ok(None);
    }
    let offset = function.config_read32(at + 8)?;
    let len = function.config_read32(at + 12)?;
    if bars[bar].is_none() {
        bars[bar] = Some(function.map_bar(bar as u8)?);
    }
    let whole = bars[bar].as_ref().map_or(0, Registers::len);
    let alignment = if kind == CFG_COMMON || kind == CFG_DEVICE { 4 } else { 1 };
    if u64::from(offset) + u64::from(len) > whole || !offset.is_multiple_of(alignment) {
        return Err(Error::Transport("a capability points outside its BAR"));
    }
    Ok(Some((kind, Window { bar, offset: offset as usize, len: len as usize })))
}

fn enable_interrupts<P: PciFunction>(function: &P, queues: u16) -> Result<Interrupts<P::Interrupt>> {
    for (count, shared) in [(usize::from(queues) + 1, false), (2, true)] {
        if let Ok(vectors) = function.enable_msix(count)
            && vectors.len() == count
        {
            return Ok(Interrupts::Msix { vectors, shared });
        }
    }
    Ok(Interrupts::Intx(function.enable_intx()?))
}

impl<P: PciFunction> Transport for PciTransport<P> {
    fn device_type(&self) -> u16 {
        self.device_type
    }

    fn is_translated(&self) -> bool {
        self.function.is_translated()
    }

    fn status(&self) -> Status {
        Status::from_bits_truncate(self.common().read8(self.common.offset + common::DEVICE_STATUS))
    }

    fn set_status(&mut self, status: Status) -> Result<()> {
        if status.contains(Status::DRIVER_OK) && matches!(self.interrupts, Interrupts::Msix { .. }) {
            self.set_vector(common::CONFIG_MSIX_VECTOR, 0)?;
        }
        self.common().write8(self.common.offset + common::DEVICE_STATUS, status.bits());
        if status.is_empty() {
            self.doorbells.fill(None);
            // The reset is done when the status reads back as 0 (4.1.4.3.2).
            let mut waited = Duration::ZERO;
            while self.common().read8(self.common.offset + common::DEVICE_STATUS) != 0 {
                if waited > Duration::from_secs(2) {
                    return Err(Error::Broken("the device does not finish its reset"));
                }
                std::thread::sleep(Duration::from_millis(1));
                waited += Duration::from_millis(1);
            }
        }
        Ok(())
    }

    fn device_features(&mut self) -> Features {
        self.features(common::DEVICE_FEATURE_SELECT, common::DEVICE_FEATURE)
    }

    fn driver_features(&mut self) -> Features {
        self.features(common::DRIVER_FEATURE_SELECT, common::DRIVER_FEATURE)
    }

    fn set_driver_features(&mut self, features: Features) {
        for select in 0..2 {
            self.write32(common::DRIVER_FEATURE_SELECT, select);
            self.write32(common::DRIVER_FEATURE, (features.bits() >> (32 * select)) as u32);
        }
    }

    fn queue_count(&self) -> u16 {
        self.queues
    }

    fn queue_max_size(&mut self, queue: u16) -> u16 {
        self.select_queue(queue);
        self.read16(common::QUEUE_SIZE)
    }

    fn enable_queue(&mut self, queue: u16, setup: &QueueSetup) -> Result<()> {
        let doorbell = self.doorbell(queue)?;
        self.write16(common::QUEUE_SIZE, setup.size);
        self.write64(common::QUEUE_DESC, setup.descriptors);
        self.write64(common::QUEUE_DRIVER, setup.available);
        self.write64(common::QUEUE_DEVICE, setup.used);
        self.tie_vector(queue)?;
        self.write16(common::QUEUE_ENABLE, 1);
        self.doorbells[usize::from(queue)] = Some(doorbell);
        Ok(())
    }

    fn resume_queue(&mut self, queue: u16, setup: &QueueSetup) -> Result<()> {
        let doorbell = self.doorbell(queue)?;
        let found = QueueSetup {
            size: self.read16(common::QUEUE_SIZE),
            descriptors: self.read64(common::QUEUE_DESC),
            available: self.read64(common::QUEUE_DRIVER),
            used: self.read64(common::QUEUE_DEVICE),
        };
        if self.read16(common::QUEUE_ENABLE) != 1 || found != *setup {
            return Err(Error::Broken("the device has its queue elsewhere"));
        }
        self.tie_vector(queue)?;
        self.doorbells[usize::from(queue)] = Some(doorbell);
        Ok(())
    }

    fn notify(&self, queue: u16) {
        if let Some(&Some(doorbell)) = self.doorbells.get(usize::from(queue)) {
            self.bar(self.notify).write16(doorbell, queue);
        }
    }

    fn config_generation(&self) -> u8 {
        self.common().read8(self.common.offset + common::CONFIG_GENERATION)
    }

    fn config_len(&self) -> usize {
        self.config.map_or(0, |window| window.len)
    }

    fn config_read(&self, offset: usize, into: &mut [u8]) {
        into.fill(0);
        let Some(window) = self.config else { return };
        let registers = self.bar(window);
        let mut at = 0;
        while at < into.len() && offset + at < window.len {
            let field = offset + at;
            let left = (into.len() - at).min(window.len - field);
            let base = window.offset + field;
            // Fields are read in their own width (4.1.3.1), which their alignment and the caller's length show.
            at += if left >= 4 && field.is_multiple_of(4) {
                into[at..at + 4].copy_from_slice(&registers.read32(base).to_le_bytes());
                4
            } else if left >= 2 && field.is_multiple_of(2) {
                into[at..at + 2].copy_from_slice(&registers.read16(base).to_le_bytes());
                2
            } else {
                into[at] = registers.read8(base);
                1
            };
        }
    }

    fn config_write(&mut self, offset: usize, from: &[u8]) -> Result<()> {
        let Some(window) = self.config.filter(|window| offset.saturating_add(from.len()) <= window.len) else {
            return Err(Error::Transport("no such configuration field"));
        };
        let registers = self.bar(window);
        let base = window.offset + offset;
        match *from {
            [a, b, c, d] if offset.is_multiple_of(4) => registers.write32(base, u32::from_le_bytes([a, b, c, d])),
            [a, b] if offset.is_multiple_of(2) => registers.write16(base, u16::from_le_bytes([a, b])),
            _ => from.iter().enumerate().for_each(|(place, &byte)| registers.write8(base + place, byte)),
        }
        Ok(())
    }

    fn interrupt_fds(&self) -> Vec<BorrowedFd<'_>> {
        match &self.interrupts {
            Interrupts::Msix { vectors, .. } => vectors.iter().map(AsFd::as_fd).collect(),
            Interrupts::Intx(interrupt) => vec![interrupt.as_fd()],
        }
    }

    fn interrupt(&mut self, index: usize) -> Result<Cause> {
        match &mut self.interrupts {
            Interrupts::Msix { vectors, shared } => {
                let Some(vector) = vectors.get_mut(index) else { return Ok(Cause::default()) };
                if vector.take()? == 0 {
                    return Ok(Cause::default());
                }
                Ok(match index {
                    0 => Cause { config: true, queues: 0 },
                    _ if *shared => Cause { config: false, queues: !0 },
                    _ => Cause { config: false, queues: 1_u64.checked_shl(index as u32 - 1).unwrap_or(0) },
                })
            }
            Interrupts::Intx(interrupt) => {
                if interrupt.take()? == 0 {
                    return Ok(Cause::default());
                }
                // Reading the status lowers the pin, so it comes before the interrupt is unmasked.
                let window = self.isr;
                let isr = self.bars[window.bar].as_ref().map_or(0, |bar| bar.read8(window.offset));
                interrupt.unmask()?;
                Ok(Cause { config: isr & 2 != 0, queues: if isr & 1 != 0 { !0 } else { 0 } })
            }
        }
    }
}

mod vfio;

#[cfg(test)]
mod tests;
