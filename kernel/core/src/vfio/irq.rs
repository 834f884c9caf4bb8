//! Interrupts of a PCI function: the line, MSI, MSI-X.
//!
//! A line is masked at the function (its INTx disable bit) by the interrupt itself and stays so until the driver unmasks it;
//! so it can be shared, and a driver that does nothing stops only itself. Messages go straight to the eventfd; where they go
//! is the kernel's to say: the driver never writes an address.
//!
//! References: PCI 3.0, 6.8; `drivers/vfio/pci/vfio_pci_intrs.c`.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ursa_hal::PhysAddr;
use ursa_hal::irq::{self, IrqError, IrqHandle, Msi};
use ursa_hal::mm::{CacheMode, Mmio, mmio};
use ursa_hal::sync::IrqLock;

use super::Trigger;
use crate::pci::config::{self, command};
use crate::pci::{Function, Msix};
use crate::{Errno, Result};

/// Bits of a line of the MSI-X table.
const ENTRY: usize = 16;
const ENTRY_DATA: usize = 8;
const ENTRY_CONTROL: usize = 12;
const ENTRY_MASKED: u32 = 1;
/// MSI-X control.
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK_ALL: u16 = 1 << 14;
/// MSI control.
const MSI_ENABLE: u16 = 1;
const MSI_MULTIPLE: u16 = 7 << 4;

fn errno(error: IrqError) -> Errno {
    match error {
        IrqError::NoSuchLine => Errno::EINVAL,
        IrqError::Busy => Errno::EBUSY,
        IrqError::NoVector => Errno::ENOSPC,
    }
}

/// What a function's interrupts are set to.
pub(super) enum Irqs {
    /// None are on.
    Off,
    /// The line.
    Line(Line),
    /// One message.
    Msi(Vector),
    /// Messages by table.
    Msix(Table),
}

/// A message interrupt and its eventfd; `None` for a vector without.
pub(super) struct Vector {
    trigger: Option<Trigger>,
    msi: Option<Msi>,
}

impl Vector {
    const EMPTY: Vector = Vector { trigger: None, msi: None };

    fn new(function: &Function, trigger: Trigger) -> Result<Vector> {
        let target = trigger.clone();
        let msi = irq::alloc_msi(function.message_source(), Arc::new(move || target.signal(1))).map_err(errno)?;
        Ok(Vector { trigger: Some(trigger), msi: Some(msi) })
    }

    /// Signals as the device would.
    pub(super) fn signal(&self) {
        if let Some(trigger) = &self.trigger {
            trigger.signal(1);
        }
    }
}

struct LineState {
    trigger: Option<Trigger>,
    masked: bool,
}

struct LineShared {
    function: Arc<Function>,
    state: IrqLock<LineState>,
}

impl LineShared {
    /// The handler.
    fn interrupt(&self) {
        let mut state = self.state.lock();
        if state.masked || !self.function.intx_pending() {
            return;
        }
        self.function.change_command(0, command::INTX_DISABLE);
        state.masked = true;
        if let Some(trigger) = &state.trigger {
            trigger.signal(1);
        }
    }
}

/// INTx of a function.
pub(super) struct Line {
    shared: Arc<LineShared>,
    /// Dropped first of all: then the handler no longer runs.
    handle: Option<IrqHandle>,
}

impl Line {
    /// Turns the line on, unmasked.
    pub(super) fn new(function: &Arc<Function>, trigger: Trigger) -> Result<Line> {
        let line = function.line.filter(|_| function.maskable).ok_or(Errno::EINVAL)?;
        let state = LineState { trigger: Some(trigger), masked: false };
        let shared = Arc::new(LineShared { function: function.clone(), state: IrqLock::new(state) });
        let handler = shared.clone();
        // Firmware wrote the line for the 8259s; the I/O APIC gets the same lines, level-triggered as PCI's are.
        let (gsi, _, polarity) = irq::ioapic::isa_line(line);
        let handle = irq::request_gsi(gsi, irq::Trigger::Level, polarity, Arc::new(move || handler.interrupt()));
        let line = Line { shared, handle: Some(handle.map_err(errno)?) };
        function.change_command(command::INTX_DISABLE, 0);
        Ok(line)
    }

    /// Replaces the eventfd.
    pub(super) fn set_trigger(&self, trigger: Option<Trigger>) {
        let old = core::mem::replace(&mut self.shared.state.lock().trigger, trigger);
        drop(old);
    }

    /// Signals as the device would.
    pub(super) fn signal(&self) {
        let trigger = self.shared.state.lock().trigger.clone();
        if let Some(trigger) = trigger {
            trigger.signal(1);
        }
    }

    /// Masks or unmasks. A line that is still asserted interrupts again at once.
    pub(super) fn set_masked(&self, masked: bool) {
        let mut state = self.shared.state.lock();
        if state.masked == masked {
            return;
        }
        state.masked = masked;
        let (clear, set) = if masked { (0, command::INTX_DISABLE) } else { (command::INTX_DISABLE, 0) };
        self.shared.function.change_command(clear, set);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.set_masked(true);
        self.handle = None;
        self.set_trigger(None);
    }
}

/// Turns MSI on with one vector.
pub(super) fn enable_msi(f: &Function, trigger: Trigger) -> Result<Vector> {
    let vector = Vector::new(f, trigger)?;
    program_msi(f, &vector);
    Ok(vector)
}

/// Writes the message where the function sends it, and turns it on.
pub(super) fn program_msi(f: &Function, vector: &Vector) {
    if let Some(msi) = &vector.msi {
        f.write_msi(msi.address, msi.data);
    }
}

/// Turns MSI off.
pub(super) fn disable_msi(f: &Function) {
    if let Some(at) = f.msi {
        config::write16(f.address, at + 2, config::read16(f.address, at + 2) & !(MSI_ENABLE | MSI_MULTIPLE));
    }
}

/// An MSI-X table that is on.
pub(super) struct Table {
    function: Arc<Function>,
    msix: Msix,
    lines: Mmio,
    vectors: Vec<Vector>,
}

impl Table {
    /// Turns MSI-X on for `count` vectors, none of which has an eventfd yet.
    pub(super) fn new(function: &Arc<Function>, count: usize) -> Result<Table> {
        let msix = function.msix.ok_or(Errno::EINVAL)?;
        let bar = function.bars[usize::from(msix.bar)].ok_or(Errno::EINVAL)?;
        let at = PhysAddr(bar.base + u64::from(msix.table));
        let lines = mmio(at, ENTRY * usize::from(msix.count), CacheMode::Uncached).ok_or(Errno::ENOMEM)?;
        let mut vectors = Vec::new();
        vectors.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
        vectors.resize_with(count, || Vector::EMPTY);
        let table = Table { function: function.clone(), msix, lines, vectors };
        table.program();
        Ok(table)
    }

    /// Vectors.
    pub(super) fn len(&self) -> usize {
        self.vectors.len()
    }

    /// The vector `i`.
    pub(super) fn vector(&self, i: usize) -> Option<&Vector> {
        self.vectors.get(i)
    }

    fn control(&self, clear: u16, set: u16) {
        let at = self.msix.at + 2;
        let old = config::read16(self.function.address, at);
        config::write16(self.function.address, at, old & !clear | set);
    }

    /// Writes the whole table anew and turns it on: at first and after a reset.
    pub(super) fn program(&self) {
        // The table can only be written while memory is decoded.
        self.function.change_command(0, command::MEMORY);
        self.control(0, MSIX_ENABLE | MSIX_MASK_ALL);
        for i in 0..usize::from(self.msix.count) {
            self.write_line(i);
        }
        self.control(MSIX_MASK_ALL, 0);
    }

    fn write_line(&self, i: usize) {
        let at = i * ENTRY;
        let control = self.lines.read32(at + ENTRY_CONTROL);
        self.lines.write32(at + ENTRY_CONTROL, control | ENTRY_MASKED);
        if let Some(msi) = self.vectors.get(i).and_then(|v| v.msi.as_ref()) {
            self.lines.write32(at, msi.address as u32);
            self.lines.write32(at + 4, (msi.address >> 32) as u32);
            self.lines.write32(at + ENTRY_DATA, msi.data);
            self.lines.write32(at + ENTRY_CONTROL, control & !ENTRY_MASKED);
        }
    }

    /// Sets the eventfds of vectors from `start` on. An error leaves those before it set.
    pub(super) fn set(&mut self, start: usize, triggers: Vec<Option<Trigger>>) -> Result {
        self.function.change_command(0, command::MEMORY);
        for (i, trigger) in (start..).zip(triggers) {
            let vector = match trigger {
                Some(trigger) => Vector::new(&self.function, trigger)?,
                None => Vector::EMPTY,
            };
            let slot = self.vectors.get_mut(i).ok_or(Errno::EINVAL)?;
            let old = core::mem::replace(slot, vector);
            self.write_line(i);
            // The device no longer uses the old message.
            drop(old);
        }
        Ok(())
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.control(MSIX_ENABLE, MSIX_MASK_ALL);
    }
}
