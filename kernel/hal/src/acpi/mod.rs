//! ACPI tables: found once at boot, copied, and kept.
//!
//! Firmware may leave tables in reserved memory outside the direct map; each is mapped, checked and copied to the heap, so
//! that everything later works on plain byte slices. Interpreting AML is the user-space `acpid`'s business.
//! Locking: none; the list is fixed after boot.

pub mod dmar;
pub mod ivrs;
pub mod parse;

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::addr::PhysAddr;
use crate::mm::map_firmware;
use crate::sync::Once;
use parse::{Fields, HEADER_LEN, Root};

/// One table, header included.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Its signature.
    pub signature: [u8; 4],
    /// Where firmware has it.
    pub phys: PhysAddr,
    /// Its bytes.
    pub bytes: &'static [u8],
}

static TABLES: Once<Vec<Table>> = Once::new();
static FADT: Once<parse::Fadt> = Once::new();
/// No sane table is longer.
const TABLE_MAX: u32 = 16 << 20;

/// Copies physical memory.
fn read_phys(at: u64, len: usize) -> Option<Vec<u8>> {
    let m = map_firmware(PhysAddr(at), len)?;
    let mut v = Vec::new();
    v.try_reserve_exact(len).ok()?;
    v.resize(len, 0);
    m.read_bytes(0, &mut v);
    Some(v)
}

/// Reads the table at `at`; `None` where its length or checksum is wrong.
fn load(at: u64) -> Option<Table> {
    let header = read_phys(at, HEADER_LEN)?;
    let signature = header.array(0)?;
    let len = header.u32(4).filter(|l| (HEADER_LEN as u32..=TABLE_MAX).contains(l))?;
    let bytes = read_phys(at, len as usize)?;
    if !parse::checksum_ok(&bytes) {
        // Real firmware ships such tables, and Linux too takes them with a warning.
        crate::warn!("ACPI: {} has a wrong checksum", signature.escape_ascii());
    }
    Some(Table { signature, phys: PhysAddr(at), bytes: Box::leak(bytes.into_boxed_slice()) })
}

/// The root pointer: the loader's, else searched as on BIOS machines (EBDA, then 0xe0000 to 1 MiB).
fn find_root() -> Option<Root> {
    if let Some(at) = crate::boot::info().rsdp
        && let Some(root) = read_phys(at.0, 36).and_then(|b| parse::rsdp(&b))
    {
        return Some(root);
    }
    let ebda = read_phys(0x40e, 2).and_then(|b| b.u16(0)).map_or(0, |s| u64::from(s) << 4);
    let areas = [(ebda, 1024), (0xe_0000, 0x2_0000)];
    areas.into_iter().filter(|a| (0x400..0x10_0000).contains(&a.0)).find_map(|(start, len)| {
        let area = read_phys(start, len)?;
        (0..len - 36).step_by(16).find_map(|i| parse::rsdp(&area[i..i + 36]))
    })
}

/// Finds and copies all tables.
pub(crate) fn init() {
    let mut tables = Vec::new();
    match find_root() {
        None => crate::warn!("ACPI: no root pointer"),
        Some(root) => {
            let (at, width) = match root {
                Root::Rsdt(at) => (at, 4),
                Root::Xsdt(at) => (at, 8),
            };
            if let Some(list) = load(at) {
                for entry in list.bytes[HEADER_LEN..].chunks_exact(width) {
                    let at = if width == 4 { entry.u32(0).map(u64::from) } else { entry.u64(0) };
                    tables.extend(at.filter(|a| *a != 0).and_then(load));
                }
                tables.push(list);
            }
        }
    }
    if let Some(fadt) = tables.iter().find(|t| t.signature == *b"FACP").and_then(|t| parse::fadt(t.bytes)) {
        tables.extend(load(fadt.dsdt));
        let _ = FADT.set(fadt);
    }
    crate::debug!("ACPI: {} tables", tables.len());
    for t in &tables {
        crate::debug!("ACPI: {} {} bytes at {:#x}", t.signature.escape_ascii(), t.bytes.len(), t.phys);
    }
    let _ = TABLES.set(tables);
}

/// All tables, as `/sys/firmware/acpi/tables` shows them.
pub fn tables() -> &'static [Table] {
    TABLES.get().map_or(&[], |t| t)
}

/// The first table with this signature.
pub fn table(signature: &[u8; 4]) -> Option<&'static [u8]> {
    tables().iter().find(|t| t.signature == *signature).map(|t| t.bytes)
}

/// The MADT (interrupt controllers and CPUs).
pub fn madt() -> Option<&'static [u8]> {
    table(b"APIC")
}
/// The MCFG (PCI configuration space).
pub fn mcfg() -> Option<&'static [u8]> {
    table(b"MCFG")
}
/// The HPET table.
pub fn hpet() -> Option<&'static [u8]> {
    table(b"HPET")
}
/// The DMAR (Intel IOMMUs).
pub fn dmar() -> Option<&'static [u8]> {
    table(b"DMAR")
}
/// The IVRS (AMD IOMMUs).
pub fn ivrs() -> Option<&'static [u8]> {
    table(b"IVRS")
}
/// The DSDT.
pub fn dsdt() -> Option<&'static [u8]> {
    table(b"DSDT")
}
/// The FADT, decoded.
pub fn fadt() -> Option<&'static parse::Fadt> {
    FADT.get()
}
/// Physical address of the local APICs.
pub(crate) fn lapic_address() -> Option<u64> {
    let t = madt()?;
    let moved = parse::madt(t).find_map(|e| match e {
        parse::Madt::LapicAddress(a) => Some(a),
        _ => None,
    });
    moved.or_else(|| parse::madt_lapic(t)).filter(|a| *a != 0)
}
