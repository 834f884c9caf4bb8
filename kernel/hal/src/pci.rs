//! PCI configuration space: access and enumeration.
//!
//! Memory-mapped (ECAM) where the MCFG table says so, each bus mapped when it is first touched; else, and for buses outside it, the
//! old port pair, which reaches the first 256 bytes. hal only finds functions; what they are is `core`'s.
//! Locking: the port pair has an `IrqLock`.
//! References: PCI 3.0, 3.2.2.3.2 and 6; PCI Express 6.0, 7.2.2; PCI firmware 3.3, 4.1.

use alloc::vec::Vec;
use core::fmt;

use crate::acpi::parse;
use crate::addr::PhysAddr;
use crate::mm::{CacheMode, Mmio, mmio};
use crate::pio::{inb, inl, inw, outb, outl, outw};
use crate::sync::{IrqLock, Once};

/// Where a function is. Ursa uses segment 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Bus.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// Size of a configuration access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
}

impl Width {
    /// Bytes.
    pub const fn bytes(self) -> u16 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
        }
    }
    /// What a read gives where nothing answers.
    const fn ones(self) -> u32 {
        match self {
            Self::Byte => 0xff,
            Self::Word => 0xffff,
            Self::Dword => u32::MAX,
        }
    }
}

const BUS_SIZE: usize = 1 << 20;
/// One mapped bus each; `None` where there is no ECAM.
static BUSES: [Once<Option<Mmio>>; 256] = [const { Once::new() }; 256];
/// CONFIG_ADDRESS and CONFIG_DATA are one pair for the machine.
static PORTS: IrqLock<()> = IrqLock::new(());

fn ecam(bus: u8) -> Option<&'static Mmio> {
    BUSES[bus as usize]
        .call_once(|| {
            let entry =
                parse::mcfg(crate::acpi::mcfg()?).find(|e| e.segment == 0 && (e.first..=e.last).contains(&bus))?;
            let at = entry.base.checked_add(u64::from(bus) << 20)?;
            mmio(PhysAddr(at), BUS_SIZE, CacheMode::Uncached)
        })
        .as_ref()
}

/// Bytes of configuration space that can be reached: 4096 through ECAM, else 256.
pub fn config_size(a: Address) -> u16 {
    if ecam(a.bus).is_some() { 4096 } else { 256 }
}

/// Whether an access is aligned and in range. Callers pass offsets from programs, so this is an answer and no assertion.
fn reachable(a: Address, offset: u16, width: Width) -> bool {
    a.device < 32 && a.function < 8 && offset.is_multiple_of(width.bytes()) && offset < config_size(a)
}

fn port_address(a: Address, offset: u16) -> u32 {
    1 << 31 | u32::from(a.bus) << 16 | u32::from(a.device) << 11 | u32::from(a.function) << 8 | u32::from(offset & 0xfc)
}

/// Reads configuration space; all ones where nothing answers, or for an access that is misaligned or out of range.
pub fn config_read(a: Address, offset: u16, width: Width) -> u32 {
    if !reachable(a, offset, width) {
        return width.ones();
    }
    if let Some(m) = ecam(a.bus) {
        let at = usize::from(a.device) << 15 | usize::from(a.function) << 12 | usize::from(offset);
        return match width {
            Width::Byte => u32::from(m.read8(at)),
            Width::Word => u32::from(m.read16(at)),
            Width::Dword => m.read32(at),
        };
    }
    let _ports = PORTS.lock();
    // SAFETY: the configuration port pair, held together by the lock; a read has no effect on memory.
    unsafe {
        outl(0xcf8, port_address(a, offset));
        let data = 0xcfc + (offset & 3);
        match width {
            Width::Byte => u32::from(inb(data)),
            Width::Word => u32::from(inw(data)),
            Width::Dword => inl(data),
        }
    }
}

/// Writes configuration space; ignored where misaligned or out of range.
///
/// A device that is made a bus master can reach memory: callers write the command register only for devices that an
/// IOMMU holds or that are trusted.
pub fn config_write(a: Address, offset: u16, width: Width, v: u32) {
    if !reachable(a, offset, width) {
        return;
    }
    if let Some(m) = ecam(a.bus) {
        let at = usize::from(a.device) << 15 | usize::from(a.function) << 12 | usize::from(offset);
        match width {
            Width::Byte => m.write8(at, v as u8),
            Width::Word => m.write16(at, v as u16),
            Width::Dword => m.write32(at, v),
        }
        return;
    }
    let _ports = PORTS.lock();
    // SAFETY: as for reads; what the device does then is the caller's affair (see above).
    unsafe {
        outl(0xcf8, port_address(a, offset));
        let data = 0xcfc + (offset & 3);
        match width {
            Width::Byte => outb(data, v as u8),
            Width::Word => outw(data, v as u16),
            Width::Dword => outl(data, v),
        }
    }
}

/// A function that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function {
    /// Where.
    pub address: Address,
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Class, subclass and programming interface, as in `class` of sysfs.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Header type without the multi-function bit: 0 device, 1 PCI bridge.
    pub header: u8,
}

const VENDOR: u16 = 0x00;
const DEVICE: u16 = 0x02;
const CLASS_REVISION: u16 = 0x08;
const HEADER_TYPE: u16 = 0x0e;
pub(crate) const SECONDARY_BUS: u16 = 0x19;

/// The function at `address`, if one answers.
pub fn probe(address: Address) -> Option<Function> {
    let vendor = config_read(address, VENDOR, Width::Word) as u16;
    if vendor == 0xffff {
        return None;
    }
    let class = config_read(address, CLASS_REVISION, Width::Dword);
    Some(Function {
        address,
        vendor,
        device: config_read(address, DEVICE, Width::Word) as u16,
        class: class >> 8,
        revision: class as u8,
        header: config_read(address, HEADER_TYPE, Width::Byte) as u8 & 0x7f,
    })
}

/// Finds all functions, by following bridges from the host bridges on bus 0. Sorted by address.
pub fn scan() -> Vec<Function> {
    let mut found = Vec::new();
    let mut visited = [false; 256];
    let mut buses = Vec::from([0u8]);
    // A multi-function host bridge has one root bus for each function.
    let multi = |a: Address| config_read(a, HEADER_TYPE, Width::Byte) & 0x80 != 0;
    let host = Address { bus: 0, device: 0, function: 0 };
    if probe(host).is_some() && multi(host) {
        buses
            .extend((1..8).filter(|f| probe(Address { function: *f, ..host }).is_some_and(|p| p.class >> 8 == 0x0600)));
    }
    while let Some(bus) = buses.pop() {
        if core::mem::replace(&mut visited[bus as usize], true) {
            continue;
        }
        for device in 0..32 {
            let first = Address { bus, device, function: 0 };
            if probe(first).is_none() {
                continue;
            }
            let functions = if multi(first) { 8 } else { 1 };
            for f in (0..functions).filter_map(|function| probe(Address { function, ..first })) {
                if f.header == 1 {
                    buses.push(config_read(f.address, SECONDARY_BUS, Width::Byte) as u8);
                }
                found.push(f);
            }
        }
    }
    found.sort_unstable_by_key(|f| f.address);
    found
}
