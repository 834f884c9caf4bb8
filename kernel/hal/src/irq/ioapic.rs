//! I/O APICs: redirection of interrupt lines (GSIs) to vectors.
//!
//! References: Intel 82093AA data sheet; ACPI 6.5, 5.2.12.3 and 5.2.12.5.

use alloc::vec::Vec;

use super::{Polarity, Trigger};
use crate::acpi::parse::Madt;
use crate::addr::PhysAddr;
use crate::mm::{CacheMode, Mmio};
use crate::sync::{IrqLock, Once};

const REG_SELECT: usize = 0x00;
const REG_WINDOW: usize = 0x10;
const INDEX_VERSION: u32 = 0x01;
const INDEX_TABLE: u32 = 0x10;
const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const ACTIVE_LOW: u32 = 1 << 13;

struct IoApic {
    id: u8,
    gsi_base: u32,
    lines: u32,
    /// The select/window pair is one register pair for the whole chip.
    mmio: IrqLock<Mmio>,
}

struct Lines {
    chips: Vec<IoApic>,
    /// ISA interrupts that are not identity-mapped, edge, active high.
    overrides: Vec<(u8, u32, Trigger, Polarity)>,
}
static LINES: Once<Lines> = Once::new();

fn read(m: &Mmio, index: u32) -> u32 {
    m.write32(REG_SELECT, index);
    m.read32(REG_WINDOW)
}
fn write(m: &Mmio, index: u32, v: u32) {
    m.write32(REG_SELECT, index);
    m.write32(REG_WINDOW, v);
}

/// Finds the I/O APICs in the MADT and masks every line.
pub(super) fn init() {
    let mut lines = Lines { chips: Vec::new(), overrides: Vec::new() };
    for entry in crate::acpi::madt().into_iter().flat_map(crate::acpi::parse::madt) {
        match entry {
            Madt::IoApic { id, address, gsi_base } => {
                let Some(mmio) = crate::mm::mmio(PhysAddr(address), 4096, CacheMode::Uncached) else { continue };
                let count = (read(&mmio, INDEX_VERSION) >> 16 & 0xff) + 1;
                for i in 0..count {
                    write(&mmio, INDEX_TABLE + 2 * i, MASKED);
                    write(&mmio, INDEX_TABLE + 2 * i + 1, 0);
                }
                crate::debug!("I/O APIC at {address:#x}: GSI {gsi_base}..{}", gsi_base.saturating_add(count));
                lines.chips.push(IoApic { id, gsi_base, lines: count, mmio: IrqLock::new(mmio) });
            }
            Madt::Override { irq, gsi, active_low, level } => lines.overrides.push((
                irq,
                gsi,
                if level { Trigger::Level } else { Trigger::Edge },
                if active_low { Polarity::Low } else { Polarity::High },
            )),
            _ => {}
        }
    }
    let _ = LINES.set(lines);
}

fn find(gsi: u32) -> Option<(&'static IoApic, u32)> {
    let chip = LINES.get()?.chips.iter().find(|c| gsi.checked_sub(c.gsi_base).is_some_and(|i| i < c.lines))?;
    Some((chip, INDEX_TABLE + 2 * (gsi - chip.gsi_base)))
}

/// The ids of the I/O APICs.
pub(crate) fn ids() -> Vec<u8> {
    LINES.get().map_or(Vec::new(), |l| l.chips.iter().map(|c| c.id).collect())
}

/// Whether some I/O APIC serves `gsi`.
pub fn exists(gsi: u32) -> bool {
    find(gsi).is_some()
}

/// Number of lines: GSIs are below it.
pub fn gsi_end() -> u32 {
    LINES.get().map_or(0, |l| l.chips.iter().map(|c| c.gsi_base + c.lines).max().unwrap_or(0))
}

/// The line of an ISA interrupt and how it signals.
pub fn isa_line(irq: u8) -> (u32, Trigger, Polarity) {
    LINES
        .get()
        .and_then(|l| l.overrides.iter().find(|o| o.0 == irq))
        .map_or((u32::from(irq), Trigger::Edge, Polarity::High), |o| (o.1, o.2, o.3))
}

/// Routes `gsi` to `vector` on the CPU with `apic_id`; the line stays masked.
pub(super) fn route(gsi: u32, vector: u8, trigger: Trigger, polarity: Polarity, apic_id: u32) {
    let Some((chip, index)) = find(gsi) else { return };
    // 8 bits of destination without interrupt remapping; the boot CPU can always be reached.
    let dest = if apic_id < 255 { apic_id } else { crate::smp::apic_id(0) };
    let unmapped = || (u32::from(vector) | if trigger == Trigger::Level { LEVEL } else { 0 }, dest << 24);
    let (mut low, high) = crate::iommu::remap_line(vector, dest, trigger, chip.id).unwrap_or_else(unmapped);
    low |= MASKED;
    if polarity == Polarity::Low {
        low |= ACTIVE_LOW;
    }
    let m = chip.mmio.lock();
    write(&m, index, MASKED);
    write(&m, index + 1, high);
    write(&m, index, low);
}

/// Masks or unmasks `gsi`.
pub(super) fn set_masked(gsi: u32, masked: bool) {
    let Some((chip, index)) = find(gsi) else { return };
    let m = chip.mmio.lock();
    let old = read(&m, index);
    let new = if masked { old | MASKED } else { old & !MASKED };
    if new != old {
        write(&m, index, new);
    }
}
