//! Native hot-plug of PCI Express: slots of root and downstream ports, what comes into them and what leaves.
//!
//! A slot tells of changes by the port's message interrupt, whose handler only wakes the kernel's task `pciehp`; that reads what is so and
//! acts on it, so that events that come together or twice do no harm. A device that comes gets power, addresses in its port's
//! windows (firmware has reserved them), and is registered as those found at boot are. One that shall leave (the attention button)
//! or has left is taken from its driver first: bus mastering off, blocked at the IOMMU, mappings of its registers gone; then it
//! vanishes from sysfs, and then the slot loses power.
//!
//! References: PCI Express 6.0, 6.7 and 7.5.3.9 to 7.5.3.11; `drivers/pci/hotplug/pciehp_hpc.c`.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use ursa_hal::PhysAddr;
use ursa_hal::irq::{self, Msi};
use ursa_hal::mm::{CacheMode, mmio};
use ursa_hal::pci::{Address, probe};
use ursa_hal::sync::Once;

use super::config::{self, command, reg};
use super::{FUNCTIONS, Function, sleep_ms};
use crate::wait::WaitQueue;
use crate::{Errno, Result, sched};

/// Registers, from the PCI Express capability on.
mod slot {
    pub const CAPS: u16 = 0x02;
    pub const LINK_STATUS: u16 = 0x12;
    pub const SLOT_CAPS: u16 = 0x14;
    pub const CONTROL: u16 = 0x18;
    pub const STATUS: u16 = 0x1a;
    /// The port has a slot (`CAPS`).
    pub const IMPLEMENTED: u16 = 1 << 8;
    /// It can be hot-plugged (`SLOT_CAPS`).
    pub const CAPABLE: u32 = 1 << 6;
    /// There is a power controller (`SLOT_CAPS`).
    pub const POWER_CONTROLLER: u32 = 1 << 1;
    /// Somebody pressed the attention button (`STATUS`).
    pub const BUTTON: u16 = 1 << 0;
    /// Events (`STATUS`), which a one clears: button, power fault, latch, presence, command, link.
    pub const EVENTS: u16 = 0x11f;
    /// Something is in the slot (`STATUS`).
    pub const PRESENT: u16 = 1 << 6;
    /// Interrupts (`CONTROL`): button, presence, hot-plug as such, link.
    pub const INTERRUPTS: u16 = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 12;
    /// Power indicator (`CONTROL`).
    pub const INDICATOR: u16 = 3 << 8;
    pub const INDICATOR_ON: u16 = 1 << 8;
    pub const INDICATOR_OFF: u16 = 3 << 8;
    /// Power off (`CONTROL`).
    pub const POWER_OFF: u16 = 1 << 10;
    /// The link carries data (`LINK_STATUS`).
    pub const LINK_ACTIVE: u16 = 1 << 13;
    /// The port tells when it does (link capabilities, 0x0c).
    pub const LINK_TELLS: u32 = 1 << 20;
}

struct Slot {
    port: Arc<Function>,
    at: u16,
    _msi: Msi,
}

static SLOTS: Once<Vec<Slot>> = Once::new();
/// An interrupt came since the task looked.
static EVENT: AtomicBool = AtomicBool::new(false);
static EVENTS: WaitQueue = WaitQueue::new();

/// Finds the slots, and starts the task that serves them where there are any.
pub(super) fn init(functions: &[Arc<Function>]) {
    let slots: Vec<Slot> = functions.iter().filter_map(Slot::new).collect();
    if slots.is_empty() {
        return;
    }
    ursa_hal::info!("PCI: {} hot-plug slots", slots.len());
    let _ = SLOTS.set(slots);
    EVENT.store(true, Ordering::SeqCst);
    if sched::spawn_kernel("pciehp", serve).is_none() {
        ursa_hal::error!("PCI: nobody serves the hot-plug slots: there is no memory for a task");
    }
}

fn serve() {
    loop {
        EVENTS.wait_until(|| EVENT.swap(false, Ordering::SeqCst).then_some(()));
        for slot in SLOTS.get().into_iter().flatten() {
            slot.look();
        }
    }
}

impl Slot {
    fn new(port: &Arc<Function>) -> Option<Slot> {
        let at = port.express.filter(|_| port.header == 1)?;
        let a = port.address;
        let capable = config::read16(a, at + slot::CAPS) & slot::IMPLEMENTED != 0
            && config::read32(a, at + slot::SLOT_CAPS) & slot::CAPABLE != 0;
        if !capable {
            return None;
        }
        let handler = || {
            EVENT.store(true, Ordering::SeqCst);
            EVENTS.wake_all();
        };
        let msi = match irq::alloc_msi(port.message_source(), Arc::new(handler)) {
            Ok(msi) => msi,
            Err(_) => {
                ursa_hal::warn!("PCI {a}: no interrupt for its slot");
                return None;
            }
        };
        if let Err(error) = send(port, &msi) {
            ursa_hal::warn!("PCI {a}: its slot cannot tell of changes: {error}");
            return None;
        }
        config::write16(a, at + slot::STATUS, slot::EVENTS);
        let control = config::read16(a, at + slot::CONTROL);
        config::write16(a, at + slot::CONTROL, control | slot::INTERRUPTS);
        Some(Slot { port: port.clone(), at, _msi: msi })
    }

    fn bus(&self) -> u8 {
        config::read8(self.port.address, reg::SECONDARY)
    }

    /// What is registered behind the port.
    fn known(&self) -> Vec<Arc<Function>> {
        let behind = |f: &&Arc<Function>| f.parent.as_ref().is_some_and(|p| Arc::ptr_eq(p, &self.port));
        FUNCTIONS.lock().iter().filter(behind).cloned().collect()
    }

    fn control(&self, clear: u16, set: u16) {
        let at = self.at + slot::CONTROL;
        let old = config::read16(self.port.address, at);
        config::write16(self.port.address, at, old & !clear | set);
    }

    fn look(&self) {
        let a = self.port.address;
        let status = config::read16(a, self.at + slot::STATUS);
        config::write16(a, self.at + slot::STATUS, status & slot::EVENTS);
        let present = status & slot::PRESENT != 0;
        let known = self.known();
        // The button asks for the other state: with a device in use, to let it go.
        let leave = !known.is_empty() && (!present || status & slot::BUTTON != 0);
        if leave {
            for function in known.iter().rev() {
                super::remove(function);
            }
            self.power(false);
        } else if known.is_empty()
            && present
            && let Err(error) = self.come()
        {
            ursa_hal::warn!("PCI {a}: what is in its slot cannot be used: {error}");
            self.power(false);
        }
    }

    fn power(&self, on: bool) {
        let has = config::read32(self.port.address, self.at + slot::SLOT_CAPS) & slot::POWER_CONTROLLER != 0;
        let off = if has { slot::POWER_OFF } else { 0 };
        if on {
            self.control(slot::INDICATOR | off, slot::INDICATOR_ON);
        } else {
            self.control(slot::INDICATOR, slot::INDICATOR_OFF | off);
        }
    }

    /// Gives a new device power and addresses, and registers it.
    fn come(&self) -> Result {
        let a = self.port.address;
        self.power(true);
        if config::read32(a, self.at + 0x0c) & slot::LINK_TELLS != 0 {
            // PCI Express 6.0, 6.6.1: a second at most.
            let up = || config::read16(a, self.at + slot::LINK_STATUS) & slot::LINK_ACTIVE != 0;
            for _ in 0..20 {
                if up() {
                    break;
                }
                sleep_ms(50);
            }
        }
        sleep_ms(100);
        let bus = self.bus();
        let at = |function| Address { bus, device: 0, function };
        probe(at(0)).ok_or(Errno::ENXIO)?;
        let multi = config::read8(at(0), reg::HEADER) & 0x80 != 0;
        let mut windows = windows(a);
        for function in 0..if multi { 8 } else { 1 } {
            let Some(found) = probe(at(function)) else { continue };
            if found.header != 0 {
                ursa_hal::warn!("PCI {}: bridges are not plugged", found.address);
                continue;
            }
            place(found.address, &mut windows);
            super::add(found, &self.port)?;
        }
        Ok(())
    }
}

/// Has the port send `msi` for its events, by MSI-X or MSI.
fn send(port: &Function, msi: &Msi) -> Result {
    let a = port.address;
    if let Some(msix) = port.msix {
        let bar = port.bars[usize::from(msix.bar)].ok_or(Errno::ENXIO)?;
        let table = mmio(PhysAddr(bar.base + u64::from(msix.table)), 16 * usize::from(msix.count), CacheMode::Uncached);
        let table = table.ok_or(Errno::ENOMEM)?;
        port.change_command(command::INTX_DISABLE, command::MEMORY | command::MASTER | command::INTX_DISABLE);
        config::write16(a, msix.at + 2, config::read16(a, msix.at + 2) | 1 << 15 | 1 << 14);
        // The vector that the port uses for its slot (capabilities register, bits 9 to 13) is all of them.
        for i in 0..usize::from(msix.count) {
            table.write32(16 * i, msi.address as u32);
            table.write32(16 * i + 4, (msi.address >> 32) as u32);
            table.write32(16 * i + 8, msi.data);
            table.write32(16 * i + 12, 0);
        }
        config::write16(a, msix.at + 2, config::read16(a, msix.at + 2) & !(1 << 14));
        return Ok(());
    }
    port.msi.ok_or(Errno::ENXIO)?;
    port.change_command(0, command::MASTER | command::INTX_DISABLE);
    port.write_msi(msi.address, msi.data);
    Ok(())
}

/// A range that the bridge forwards; what is below `start` is given out.
struct Window {
    start: u64,
    last: u64,
    prefetchable: bool,
}

/// The memory windows of a bridge, empty ones left out.
fn windows(a: Address) -> Vec<Window> {
    let both = |at| config::read32(a, at);
    let bounds = |v: u32| (u64::from(v as u16 & 0xfff0) << 16, u64::from(v >> 16 & 0xfff0) << 16 | 0xf_ffff);
    let (start, last) = bounds(both(0x20));
    let memory = Window { start, last, prefetchable: false };
    let value = both(0x24);
    let (mut start, mut last) = bounds(value);
    if value & 0xf == 1 {
        start |= u64::from(config::read32(a, 0x28)) << 32;
        last |= u64::from(config::read32(a, 0x2c)) << 32;
    }
    let prefetch = Window { start, last, prefetchable: true };
    [prefetch, memory].into_iter().filter(|w| w.start < w.last && w.start != 0).collect()
}

/// Gives the memory BARs of a function places in its port's windows, the largest first. What does not fit stays without; ports are
/// not given out.
fn place(a: Address, windows: &mut [Window]) {
    config::write16(a, reg::COMMAND, 0);
    let mut wanted = Vec::new();
    let mut i = 0;
    while i < super::BARS {
        let at = reg::BAR + 4 * i as u16;
        config::write32(a, at, u32::MAX);
        let mask = config::read32(a, at);
        i += 1;
        if mask == 0 || mask & 1 != 0 {
            config::write32(a, at, 0);
            continue;
        }
        let wide = mask >> 1 & 3 == 2;
        let mut size = u64::from(mask & !0xf) | !u64::from(u32::MAX);
        if wide {
            config::write32(a, at + 4, u32::MAX);
            size = size & u64::from(u32::MAX) | u64::from(config::read32(a, at + 4)) << 32;
            config::write32(a, at + 4, 0);
            i += 1;
        }
        config::write32(a, at, 0);
        wanted.push((size.wrapping_neg(), at, wide, mask & 8 != 0));
    }
    wanted.sort_by_key(|w| core::cmp::Reverse(w.0));
    for (len, at, wide, prefetchable) in wanted {
        let fits = |w: &Window| {
            let start = w.start.checked_next_multiple_of(len)?;
            let last = start.checked_add(len - 1)?;
            let reach = wide || last <= u64::from(u32::MAX);
            (last <= w.last && reach && (prefetchable || !w.prefetchable)).then_some(start)
        };
        // A prefetchable one may also lie in the other window.
        let found = windows.iter_mut().find_map(|w| fits(w).map(|start| (start, w)));
        let Some((start, window)) = found else {
            ursa_hal::warn!("PCI {a}: no place for {len:#x} bytes of registers behind its port");
            continue;
        };
        window.start = start + len;
        config::write32(a, at, start as u32);
        if wide {
            config::write32(a, at + 4, (start >> 32) as u32);
        }
    }
}
