//! The functions in sysfs: `/sys/devices/pci0000:00/0000:00:02.0` and below, buses, attributes.
//!
//! Reference: `drivers/pci/pci-sysfs.c`, `Documentation/ABI/testing/sysfs-bus-pci`.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;

use ursa_hal::pci::Address;
use ursa_hal::sync::SpinLock;

use super::config::{self, command, reg};
use super::{Bar, BarKind, Function};
use crate::device::{Attribute, BinaryAttribute, Device, DeviceSpec, Value};
use crate::process::{Cap, capable};
use crate::{Errno, Result};

/// Bits of a line of `resource` (`include/linux/ioport.h`).
mod flag {
    pub const IO: u64 = 0x100;
    pub const MEMORY: u64 = 0x200;
    pub const PREFETCH: u64 = 0x2000;
    pub const READ_ONLY: u64 = 0x4000;
    pub const SIZE_ALIGN: u64 = 0x4_0000;
    pub const START_ALIGN: u64 = 0x8_0000;
    pub const WIDE: u64 = 0x10_0000;
    pub const WINDOW: u64 = 0x20_0000;
}
/// Resources of a bridge: BARs, ROM, virtual functions' BARs, windows.
const RESOURCES: usize = 17;

/// What a program without privilege reads of configuration space.
const PUBLIC_CONFIG: u64 = 64;
/// Longest name in `driver_override`.
const OVERRIDE_MAX: usize = 4096;

/// Registers all functions, parents first (they are sorted by address, and bridges lead to higher buses).
pub(super) fn register(functions: &[Arc<Function>]) -> Result {
    functions.iter().try_for_each(register_one)
}

/// Registers a function, and its bus if it is the first there.
pub(super) fn register_one(function: &Arc<Function>) -> Result {
    let bus = function.address.bus;
    let parent = match &function.parent {
        Some(bridge) => bridge.device.get().cloned().ok_or(Errno::ENODEV)?,
        None => {
            let name = format!("pci0000:{bus:02x}");
            match Device::find(&format!("/devices/{name}")) {
                Some(root) => root,
                None => Device::register(DeviceSpec { name, ..DeviceSpec::default() })?,
            }
        }
    };
    if Device::find(&format!("{}/pci_bus/0000:{bus:02x}", parent.path())).is_none() {
        add_bus(bus, &parent)?;
    }
    let device = Device::register(spec(function).below(&parent))?;
    let _ = function.device.set(device);
    Ok(())
}

fn add_bus(bus: u8, parent: &Arc<Device>) -> Result {
    let spec = DeviceSpec::class("pci_bus", format!("0000:{bus:02x}")).below(parent);
    Device::register(spec.line("cpuaffinity", "ff").line("cpulistaffinity", "0")).map(drop)
}

/// The alias that modules are matched by.
pub(super) fn modalias(f: &Function) -> String {
    format!(
        "pci:v{:08X}d{:08X}sv{:08X}sd{:08X}bc{:02X}sc{:02X}i{:02x}",
        f.vendor,
        f.device_id,
        f.subsystem.0,
        f.subsystem.1,
        f.class >> 16,
        f.class >> 8 & 0xff,
        f.class & 0xff
    )
}

fn spec(f: &Arc<Function>) -> DeviceSpec {
    let a = f.address;
    let mut spec = DeviceSpec::bus("pci", format!("{a}"))
        .env("PCI_CLASS", format!("{:04X}", f.class))
        .env("PCI_ID", format!("{:04X}:{:04X}", f.vendor, f.device_id))
        .env("PCI_SUBSYS_ID", format!("{:04X}:{:04X}", f.subsystem.0, f.subsystem.1))
        .env("PCI_SLOT_NAME", format!("{a}"))
        .env("MODALIAS", modalias(f))
        .line("vendor", &format!("{:#06x}", f.vendor))
        .line("device", &format!("{:#06x}", f.device_id))
        .line("subsystem_vendor", &format!("{:#06x}", f.subsystem.0))
        .line("subsystem_device", &format!("{:#06x}", f.subsystem.1))
        .line("class", &format!("{:#08x}", f.class))
        .line("revision", &format!("{:#04x}", f.revision))
        .line("irq", &format!("{}", f.line.unwrap_or(0)))
        .line("modalias", &modalias(f))
        .line("numa_node", "-1")
        .line("dma_mask_bits", "32")
        .line("consistent_dma_mask_bits", "32")
        .line("broken_parity_status", "0")
        .line("msi_bus", "1")
        .line("ari_enabled", "0")
        .line("power_state", "unknown")
        .attribute("resource", 0o444, Value::Static(resources(f)))
        .dynamic("enable", 0o444, Arc::new(Enable(a)))
        .dynamic("driver_override", 0o644, Arc::new(DriverOverride(SpinLock::new(String::new()))))
        .binary("config", 0o644, f.config_len().into(), Arc::new(ConfigFile(f.clone())));
    if f.class >> 8 == 0x0300 {
        let boot = config::read16(a, reg::COMMAND) & (command::IO | command::MEMORY) != 0;
        spec = spec.line("boot_vga", if boot { "1" } else { "0" });
    }
    if f.header == 1 {
        spec = spec
            .line("secondary_bus_number", &format!("{}", config::read8(a, reg::SECONDARY)))
            .line("subordinate_bus_number", &format!("{}", config::read8(a, reg::SECONDARY + 1)));
    }
    spec
}

/// The `resource` file: start, end and flags of each.
fn resources(f: &Function) -> Vec<u8> {
    let mut all: Vec<(u64, u64, u64)> = Vec::new();
    for slot in &f.bars {
        all.push(slot.map_or((0, 0, 0), |bar| (bar.base, bar.base + bar.len - 1, bar_flags(&bar))));
    }
    all.push(match f.rom {
        Some(rom) if rom.base != 0 => {
            let flags = flag::MEMORY | flag::PREFETCH | flag::READ_ONLY | flag::SIZE_ALIGN;
            (rom.base, rom.base + rom.len - 1, flags)
        }
        _ => (0, 0, 0),
    });
    if f.header == 1 {
        all.resize(RESOURCES - 4, (0, 0, 0));
        all.extend(windows(f.address));
        all.push((0, 0, 0));
    }
    let mut text = String::new();
    for (start, end, flags) in all {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{start:#018x} {end:#018x} {flags:#018x}");
    }
    text.into_bytes()
}

fn bar_flags(bar: &Bar) -> u64 {
    bar.flags()
        | match bar.kind {
            BarKind::Port => flag::SIZE_ALIGN | flag::IO,
            BarKind::Memory { prefetchable, wide } => {
                let prefetch = if prefetchable { flag::PREFETCH } else { 0 };
                flag::SIZE_ALIGN | flag::MEMORY | prefetch | if wide { flag::WIDE } else { 0 }
            }
        }
}

/// What a bridge forwards: ports, memory, prefetchable memory.
fn windows(a: Address) -> [(u64, u64, u64); 3] {
    let io = config::read16(a, 0x1c);
    let (low, high) = (u64::from(io as u8 & 0xf0) << 8, u64::from(io >> 8 & 0xf0) << 8 | 0xfff);
    let io = if low <= high { (low, high, flag::WINDOW | flag::START_ALIGN | flag::IO) } else { (0, 0, 0) };
    let window = |at| {
        let both = config::read32(a, at);
        (u64::from(both as u16 & 0xfff0) << 16, u64::from(both >> 16 & 0xfff0) << 16 | 0xf_ffff, both as u64 & 0xf)
    };
    let (low, high, _) = window(0x20);
    let base = flag::WINDOW | flag::START_ALIGN | flag::MEMORY;
    let memory = if low <= high { (low, high, base) } else { (0, 0, 0) };
    let (mut low, mut high, kind) = window(0x24);
    let mut flags = base | flag::PREFETCH;
    if kind == 1 {
        low |= u64::from(config::read32(a, 0x28)) << 32;
        high |= u64::from(config::read32(a, 0x2c)) << 32;
        flags |= flag::WIDE | kind;
    }
    let prefetch = if low <= high { (low, high, flags) } else { (0, 0, 0) };
    [io, memory, prefetch]
}

/// Whether the function decodes: `1` while a driver has it enabled.
struct Enable(Address);

impl Attribute for Enable {
    fn show(&self, out: &mut Vec<u8>) -> Result {
        let on = config::read16(self.0, reg::COMMAND) & (command::IO | command::MEMORY) != 0;
        out.extend_from_slice(if on { b"1\n" } else { b"0\n" });
        Ok(())
    }
}

/// The one driver that may have the function, as root says; `init` reads it when it looks for a driver.
struct DriverOverride(SpinLock<String>);

impl Attribute for DriverOverride {
    fn show(&self, out: &mut Vec<u8>) -> Result {
        let name = self.0.lock().clone();
        out.extend_from_slice(if name.is_empty() { b"(null)" } else { name.as_bytes() });
        out.push(b'\n');
        Ok(())
    }

    fn store(&self, value: &[u8]) -> Result {
        if value.len() >= OVERRIDE_MAX {
            return Err(Errno::EINVAL);
        }
        let name = core::str::from_utf8(value).map_err(|_| Errno::EINVAL)?.lines().next().unwrap_or("");
        let new = String::from(name);
        let old = core::mem::replace(&mut *self.0.lock(), new);
        drop(old);
        Ok(())
    }
}

/// Configuration space. It is only read here: who writes it owns the function, through VFIO.
struct ConfigFile(Arc<Function>);

impl BinaryAttribute for ConfigFile {
    fn read(&self, pos: u64, buf: &mut [u8]) -> Result<usize> {
        let len = u64::from(self.0.config_len());
        let end = if capable(Cap::SysAdmin) { len } else { PUBLIC_CONFIG.min(len) };
        let n = end.saturating_sub(pos).min(buf.len() as u64) as usize;
        config::read_bytes(self.0.address, pos as u16, &mut buf[..n]);
        Ok(n)
    }

    fn write(&self, _pos: u64, _data: &[u8]) -> Result<usize> {
        // As a Linux kernel under lockdown: a moved BAR could lie over memory.
        Err(Errno::EPERM)
    }
}
