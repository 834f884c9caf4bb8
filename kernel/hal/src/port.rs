//! I/O ports for drivers: ranges that are claimed, and nothing that the kernel itself drives.
//!
//! A port can do anything to the machine (start a DMA, route interrupts, reset), so a range is given out only where no
//! platform device of hal's lies: the keyboard controller's two ports, and what is above the ISA range, where PCI BARs are.
//! Locking: the list of claims is a leaf.

use alloc::vec::Vec;

use crate::pci::Width;
use crate::pio::{inb, inl, inw, outb, outl, outw};
use crate::sync::SpinLock;

/// First port that a PCI function may decode (below are the ISA devices and their aliases).
const PCI_FIRST: u32 = 0x1000;
/// Ports below that can be claimed: data and command of the keyboard controller.
const ISA_ALLOWED: [u16; 2] = [0x60, 0x64];
/// The ACPI registers of a chipset lie in one block of this size.
const ACPI_BLOCK: u32 = 0x80;

static CLAIMED: SpinLock<Vec<(u32, u32)>> = SpinLock::new(Vec::new());

/// Ports that one driver has. Dropping it gives them back.
#[derive(Debug)]
pub struct PortRange {
    base: u16,
    len: u32,
}

fn overlaps(a: (u32, u32), b: (u32, u32)) -> bool {
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1
}

fn allowed(base: u16, len: u32) -> bool {
    let range = (u32::from(base), len);
    if len == 0 || range.0 + len > 0x1_0000 {
        return false;
    }
    if range.0 < PCI_FIRST {
        return len == 1 && ISA_ALLOWED.contains(&base);
    }
    let acpi = crate::acpi::fadt().map(|f| f.pm1a_cnt).filter(|g| g.space == 1);
    acpi.is_none_or(|g| !overlaps(range, (g.address as u32 & !(ACPI_BLOCK - 1), ACPI_BLOCK)))
}

impl PortRange {
    /// Claims `len` ports from `base` on; `None` when the kernel drives one of them or somebody has claimed one.
    pub fn claim(base: u16, len: u32) -> Option<Self> {
        if !allowed(base, len) {
            return None;
        }
        let mut claimed = CLAIMED.lock();
        if claimed.iter().any(|c| overlaps(*c, (base.into(), len))) {
            return None;
        }
        claimed.try_reserve(1).ok()?;
        claimed.push((base.into(), len));
        Some(Self { base, len })
    }

    /// Number of ports.
    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> u32 {
        self.len
    }

    #[track_caller]
    fn at(&self, offset: u32, width: Width) -> u16 {
        let bytes = u32::from(width.bytes());
        assert!(offset.is_multiple_of(bytes) && offset <= self.len && bytes <= self.len - offset, "port out of range");
        self.base + offset as u16
    }

    /// Reads a port. Panics outside of the range or when not aligned.
    #[track_caller]
    pub fn read(&self, offset: u32, width: Width) -> u32 {
        let port = self.at(offset, width);
        // SAFETY: the range belongs to the claimer's device alone; a port read moves no memory.
        unsafe {
            match width {
                Width::Byte => inb(port).into(),
                Width::Word => inw(port).into(),
                Width::Dword => inl(port),
            }
        }
    }

    /// Writes a port. Panics outside of the range or when not aligned.
    #[track_caller]
    pub fn write(&self, offset: u32, width: Width, value: u32) {
        let port = self.at(offset, width);
        // SAFETY: the range is the claimer's device alone, none that hal drives. What the device does then is bounded as for
        // its registers: it reaches memory only as a bus master, which is decided elsewhere.
        unsafe {
            match width {
                Width::Byte => outb(port, value as u8),
                Width::Word => outw(port, value as u16),
                Width::Dword => outl(port, value),
            }
        }
    }
}

impl Drop for PortRange {
    fn drop(&mut self) {
        let mine = (u32::from(self.base), self.len);
        CLAIMED.lock().retain(|c| *c != mine);
    }
}
