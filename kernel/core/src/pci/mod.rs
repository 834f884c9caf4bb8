//! PCI functions: what they decode, what they can do, and their place in sysfs.
//!
//! The kernel finds the functions and drives none. It reads their configuration once, with decoding off for the moment in which
//! it learns the sizes of the BARs, keeps what it found in a [`Function`] each, and hands the function to whoever opens its
//! VFIO file ([`crate::vfio`]). What comes later into a slot, and leaves it, is [`mod@hotplug`]'s. Firmware has placed the BARs and set up the bridges; a BAR that it left out does not exist here.
//!
//! Locking: the list of functions (`SpinLock`) is a leaf. A function's command register is changed by the VFIO device that
//! owns it and by its interrupt, so that has an `IrqLock`.
//!
//! References: PCI 3.0, 6; `Documentation/PCI/sysfs-pci.rst`.

pub mod config;
mod groups;
mod hotplug;
mod sysfs;
#[cfg(target_os = "none")]
mod tests;

use alloc::{sync::Arc, vec::Vec};

use ursa_hal::pci::{Address, Width, config_read, config_size, scan};
use ursa_hal::sync::{IrqLock, Once, SpinLock};
use ursa_hal::{PhysAddr, mm};

use self::config::{cap, command, reg};
pub use self::groups::Group;
use crate::device::Device;
use crate::time::{self, Deadline};
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// Base address registers of a function.
pub const BARS: usize = 6;

/// Class and subclass of an IOMMU, which `hal` drives.
const CLASS_IOMMU: u32 = 0x0806;

/// What a BAR decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Port,
    /// Memory.
    Memory {
        /// Reads have no effect.
        prefetchable: bool,
        /// The register takes two slots.
        wide: bool,
    },
}

/// A base address register as firmware set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// Where.
    pub base: u64,
    /// Bytes; a power of two.
    pub len: u64,
    /// What.
    pub kind: BarKind,
}

impl Bar {
    /// What the register reads as, both slots.
    pub fn raw(&self) -> u64 {
        self.base | self.flags()
    }

    /// The low bits of the register.
    pub fn flags(&self) -> u64 {
        match self.kind {
            BarKind::Port => 1,
            BarKind::Memory { prefetchable, wide } => u64::from(prefetchable) << 3 | u64::from(wide) << 2,
        }
    }

    /// Whether its register takes the next slot too.
    pub fn is_wide(&self) -> bool {
        matches!(self.kind, BarKind::Memory { wide: true, .. })
    }
}

/// The MSI-X capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msix {
    /// Offset of the capability.
    pub at: u16,
    /// Vectors.
    pub count: u16,
    /// BAR with the table.
    pub bar: u8,
    /// Offset of the table in it.
    pub table: u32,
}

/// A PCI function.
pub struct Function {
    /// Where.
    pub address: Address,
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device_id: u16,
    /// Subsystem vendor and device.
    pub subsystem: (u16, u16),
    /// Class, subclass, programming interface.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Header type: 0 device, 1 bridge.
    pub header: u8,
    /// What is decoded; the second slot of a wide register is `None`.
    pub bars: [Option<Bar>; BARS],
    /// The expansion ROM.
    pub rom: Option<Bar>,
    /// Interrupt line that firmware routed, when there is a pin.
    pub line: Option<u8>,
    /// MSI capability.
    pub msi: Option<u16>,
    /// MSI-X capability.
    pub msix: Option<Msix>,
    /// PCI Express capability.
    pub express: Option<u16>,
    /// Whether INTx can be turned off at the function (PCI 2.3), which sharing a line needs.
    pub maskable: bool,
    /// Orders changes of the command register.
    command: IrqLock<()>,
    /// The function in sysfs.
    pub device: Once<Arc<Device>>,
    /// The bridge that it is behind.
    pub parent: Option<Arc<Function>>,
    /// It is one of several in its device.
    pub multi: bool,
    /// Its isolation group, where there is an IOMMU.
    pub group: Once<Arc<Group>>,
}

static FUNCTIONS: SpinLock<Vec<Arc<Function>>> = SpinLock::new(Vec::new());

/// All functions, sorted by address.
pub fn functions() -> Vec<Arc<Function>> {
    FUNCTIONS.lock().clone()
}

/// The function at `address`.
pub fn find(address: Address) -> Option<Arc<Function>> {
    FUNCTIONS.lock().iter().find(|f| f.address == address).cloned()
}

/// Finds the functions and registers them in sysfs and with VFIO.
///
/// # Errors
/// What registration says; the functions before it stay.
pub fn init() -> Result {
    let mut found: Vec<Arc<Function>> = Vec::new();
    // Sorted by address, and bridges lead to higher buses: who is behind one finds it.
    for f in scan() {
        let parent = bridge_to(&found, f.address.bus);
        found.push(Arc::new(Function::read(f, parent)));
    }
    *FUNCTIONS.lock() = found.clone();
    ursa_hal::info!("PCI: {} functions", found.len());
    sysfs::register(&found)?;
    for function in &found {
        function.join_group(&found);
    }
    Ok(())
}

/// Lets devices come and go: called when what they are registered with is there.
pub fn watch_slots() {
    hotplug::init(&functions());
}

/// Takes a function in that has come, and that has its addresses.
fn add(found: ursa_hal::pci::Function, parent: &Arc<Function>) -> Result {
    let function = Arc::new(Function::read(found, Some(parent.clone())));
    {
        let mut all = FUNCTIONS.lock();
        let at = all.partition_point(|f| f.address < function.address);
        all.insert(at, function.clone());
    }
    ursa_hal::info!("PCI {}: {:04x}:{:04x} has come", function.address, function.vendor, function.device_id);
    sysfs::register_one(&function)?;
    function.join_group(&functions());
    crate::vfio::add(&function)
}

/// Takes a function out that is gone, or shall go. Its driver has lost it when this returns.
fn remove(function: &Arc<Function>) {
    ursa_hal::info!("PCI {}: {:04x}:{:04x} goes", function.address, function.vendor, function.device_id);
    crate::vfio::remove(function);
    function.leave_group();
    if let Some(device) = function.device.get() {
        device.unregister();
    }
    FUNCTIONS.lock().retain(|f| !Arc::ptr_eq(f, function));
}

/// The bridge to `bus`.
fn bridge_to(functions: &[Arc<Function>], bus: u8) -> Option<Arc<Function>> {
    let leads = |f: &&Arc<Function>| f.header == 1 && bus != 0 && config::read8(f.address, reg::SECONDARY) == bus;
    functions.iter().find(leads).cloned()
}

/// The sizing mask of a register: what can be set of all ones.
fn probe_size(a: Address, at: u16, all: u32) -> (u32, u32) {
    let old = config::read32(a, at);
    config::write32(a, at, all);
    let mask = config::read32(a, at);
    config::write32(a, at, old);
    (old, mask)
}

/// Reads the BARs. The function must not decode meanwhile.
fn read_bars(a: Address, count: usize) -> [Option<Bar>; BARS] {
    let mut bars = [None; BARS];
    let mut i = 0;
    while i < count {
        let slot = i;
        let at = reg::BAR + 4 * i as u16;
        let (old, mask) = probe_size(a, at, u32::MAX);
        i += 1;
        if mask == 0 {
            continue;
        }
        if mask & 1 != 0 {
            // Ports have 16 bits of address here, whatever the register implements.
            let size = (!(mask & 0xfffc) & 0xffff) + 1;
            let base = u64::from(old & 0xfffc);
            if base != 0 && size <= 0x100 && u64::from(size) + base <= 0x1_0000 {
                bars[slot] = Some(Bar { base, len: size.into(), kind: BarKind::Port });
            }
            continue;
        }
        let wide = mask >> 1 & 3 == 2;
        let (mut old, mut mask) = (u64::from(old), u64::from(mask) | !u64::from(u32::MAX));
        if wide && i < count {
            let (high, high_mask) = probe_size(a, at + 4, u32::MAX);
            old |= u64::from(high) << 32;
            mask = mask & u64::from(u32::MAX) | u64::from(high_mask) << 32;
            i += 1;
        }
        let len = (mask & !0xf).wrapping_neg();
        let base = old & !0xf;
        let kind = BarKind::Memory { prefetchable: old & 8 != 0, wide };
        let fits = len.is_power_of_two() && base != 0 && base.is_multiple_of(len) && base.checked_add(len).is_some();
        if !fits {
            ursa_hal::warn!("PCI {a}: BAR {slot} of {len:#x} bytes has no place ({base:#x})");
        } else if mm::overlaps_ram(PhysAddr(base), len) {
            ursa_hal::warn!("PCI {a}: BAR {slot} at {base:#x} lies over memory; it is not used");
        } else {
            bars[slot] = Some(Bar { base, len, kind });
        }
    }
    bars
}

impl Function {
    fn read(f: ursa_hal::pci::Function, parent: Option<Arc<Function>>) -> Function {
        let a = f.address;
        let bridge = f.header == 1;
        let old = config::read16(a, reg::COMMAND);
        // A display must not be cut off for longer than it takes; nothing is driven yet, so nothing else can be harmed.
        config::write16(a, reg::COMMAND, old & !(command::IO | command::MEMORY));
        let bars = match f.header {
            0 => read_bars(a, BARS),
            1 => read_bars(a, 2),
            _ => [None; BARS],
        };
        let rom_at = if bridge { reg::BRIDGE_ROM } else { reg::ROM };
        let (rom, mask) = if f.header <= 1 { probe_size(a, rom_at, !1) } else { (0, 0) };
        let len = u64::from((mask & !0x7ff).wrapping_neg());
        let kind = BarKind::Memory { prefetchable: true, wide: false };
        let base = u64::from(rom & !0x7ff);
        let rom = (mask & !0x7ff != 0 && len.is_power_of_two()).then_some(Bar { base, len, kind });
        // Whether INTx can be turned off is learnt by trying.
        config::write16(a, reg::COMMAND, old & !(command::IO | command::MEMORY) | command::INTX_DISABLE);
        let maskable = config::read16(a, reg::COMMAND) & command::INTX_DISABLE != 0;
        // Firmware may have left the function a bus master (a boot disk, a network card that still receives): its driver,
        // once it has an address space for it, turns that on again. Bridges must go on forwarding.
        let keep = if bridge || f.class >> 16 == 0x06 || f.class >> 8 == CLASS_IOMMU {
            old
        } else {
            old & !command::MASTER | command::INTX_DISABLE
        };
        config::write16(a, reg::COMMAND, keep);

        let capability = |id| config::capabilities(a).find(|c| c.0 == id).map(|c| c.1);
        let msix = capability(cap::MSIX).and_then(|at| {
            let table = config::read32(a, at + 4);
            let found =
                Msix { at, count: (config::read16(a, at + 2) & 0x7ff) + 1, bar: (table & 7) as u8, table: table & !7 };
            let bar = bars.get(usize::from(found.bar)).copied().flatten()?;
            let end = u64::from(found.table) + 16 * u64::from(found.count);
            (matches!(bar.kind, BarKind::Memory { .. }) && end <= bar.len).then_some(found)
        });
        let pin = config::read8(a, reg::INTERRUPT_PIN);
        let line = config::read8(a, reg::INTERRUPT_LINE);
        let subsystem = match f.header {
            0 => (config::read16(a, reg::SUBSYSTEM_VENDOR), config::read16(a, reg::SUBSYSTEM)),
            _ => capability(0x0d).map_or((0, 0), |at| (config::read16(a, at + 4), config::read16(a, at + 6))),
        };
        Function {
            address: a,
            vendor: f.vendor,
            device_id: f.device,
            subsystem,
            class: f.class,
            revision: f.revision,
            header: f.header,
            bars,
            rom,
            line: ((1..=4).contains(&pin) && (1..=15).contains(&line)).then_some(line),
            msi: capability(cap::MSI),
            msix,
            express: capability(cap::EXPRESS),
            maskable,
            command: IrqLock::new(()),
            device: Once::new(),
            parent,
            multi: config::read8(Address { function: 0, ..a }, reg::HEADER) & 0x80 != 0,
            group: Once::new(),
        }
    }

    /// Bytes of configuration space.
    pub fn config_len(&self) -> u16 {
        // Conventional functions answer with 256 bytes even where the host bridge could ask for more.
        if self.express.is_some() { config_size(self.address) } else { 256 }
    }

    /// Clears, then sets bits of the command register; allowed from interrupts.
    pub fn change_command(&self, clear: u16, set: u16) {
        let _command = self.command.lock();
        let old = config::read16(self.address, reg::COMMAND);
        let new = old & !clear | set;
        if new != old {
            config::write16(self.address, reg::COMMAND, new);
        }
    }

    /// Whether the function asks for its INTx and may.
    pub fn intx_pending(&self) -> bool {
        // Command and status in one access.
        let both = config_read(self.address, reg::COMMAND, Width::Dword);
        both & u32::from(command::INTX_DISABLE) == 0 && both >> 16 & u32::from(config::STATUS_INTX) != 0
    }

    /// Whether it is still there.
    pub fn answers(&self) -> bool {
        config::read16(self.address, 0) != 0xffff
    }

    /// Has the function send this message for MSI, and turns it on.
    pub fn write_msi(&self, address: u64, data: u32) {
        let Some(at) = self.msi else { return };
        let a = self.address;
        // One message; 64 bits of address where there are (bit 7).
        let control = config::read16(a, at + 2) & !(1 | 7 << 4);
        config::write16(a, at + 2, control);
        config::write32(a, at + 4, address as u32);
        let place = if control & 1 << 7 != 0 {
            config::write32(a, at + 8, (address >> 32) as u32);
            at + 12
        } else {
            at + 8
        };
        config::write16(a, place, data as u16);
        config::write16(a, at + 2, control | 1);
    }

    /// Keeps the function from DMA and message interrupts, and waits for what is under way.
    pub fn stop_bus_master(&self) {
        if !self.answers() {
            return;
        }
        self.change_command(command::MASTER, 0);
        if let Some(at) = self.express {
            let pending = || config::read16(self.address, at + config::EXPRESS_DEVICE_STATUS) & 1 << 5 != 0;
            // Linux waits as long (pci_wait_for_pending).
            for wait in [0, 100, 200, 400] {
                if wait != 0 {
                    sleep_ms(wait);
                }
                if !pending() {
                    return;
                }
            }
            ursa_hal::warn!("PCI {}: transactions stay pending", self.address);
        } else {
            // A read pushes posted writes out before it.
            let _ = config::read16(self.address, reg::COMMAND);
        }
    }

    /// Whether the function can be reset alone.
    pub fn can_reset(&self) -> bool {
        self.express.is_some_and(|at| config::read32(self.address, at + config::EXPRESS_DEVICE_CAPS) & 1 << 28 != 0)
            || self.advanced_reset().is_some()
    }

    /// The Advanced Features capability, if it has a reset.
    fn advanced_reset(&self) -> Option<u16> {
        let at = config::capabilities(self.address).find(|c| c.0 == cap::ADVANCED)?.1;
        (config::read8(self.address, at + 3) & 3 == 3).then_some(at)
    }

    /// Resets the function, if it can be, and puts its configuration back: BARs, command without bus mastering, interrupts off.
    ///
    /// # Errors
    /// `ENOTTY` when there is no reset.
    pub fn reset(&self) -> Result {
        let a = self.address;
        let flr = self.express.filter(|at| config::read32(a, at + config::EXPRESS_DEVICE_CAPS) & 1 << 28 != 0);
        let advanced = self.advanced_reset();
        if flr.is_none() && advanced.is_none() || !self.answers() {
            return Err(Errno::ENOTTY);
        }
        self.stop_bus_master();
        let saved: Vec<u32> = (0..16).map(|i| config::read32(a, 4 * i)).collect();
        let control = self.express.map(|at| config::read16(a, at + config::EXPRESS_DEVICE_CONTROL));
        if let Some(at) = flr {
            let control = config::read16(a, at + config::EXPRESS_DEVICE_CONTROL);
            config::write16(a, at + config::EXPRESS_DEVICE_CONTROL, control | config::EXPRESS_FLR);
        } else if let Some(at) = advanced {
            config::write8(a, at + 4, 1);
        }
        // PCI Express 6.0, 6.6.2: 100 ms, then it answers again, some later.
        for _ in 0..10 {
            sleep_ms(100);
            if config::read16(a, reg::COMMAND) != 0xffff {
                break;
            }
        }
        if let (Some(at), Some(control)) = (self.express, control) {
            config::write16(a, at + config::EXPRESS_DEVICE_CONTROL, control);
        }
        // The command register (dword 1) last, when the BARs are where they were.
        for i in [3, 4, 5, 6, 7, 8, 9, 12, 15] {
            config::write32(a, 4 * i, saved[usize::from(i)]);
        }
        let old = saved[1] as u16 & !command::MASTER;
        config::write16(a, reg::COMMAND, old | command::INTX_DISABLE);
        Ok(())
    }

    /// Whether drivers may have it: not what the kernel itself needs to reach the others.
    pub fn is_drivable(&self) -> bool {
        self.header == 0 && self.class >> 16 != 0x06 && self.class >> 8 != CLASS_IOMMU
    }
}

/// Sleeps, whatever signals come.
fn sleep_ms(ms: u64) {
    let deadline = Deadline::monotonic(time::monotonic_ns() + ms * 1_000_000);
    WaitQueue::new().sleep_until(deadline);
}
