//! ACPI table contents, from byte slices. Pure and tested on the host.
//!
//! Tables come from firmware, so every read is bounds-checked and a malformed table only loses what it describes. The `acpi`
//! crate was looked at: its table half wants an unstable allocator feature for what is needed here.
//! References: ACPI 6.5, sections 5.2.5 (RSDP), 5.2.6 (headers), 5.2.9 (FADT), 5.2.12 (MADT); IA-PC HPET 1.0a, 3.2.4;
//! PCI firmware 3.3, 4.1.2 (MCFG).

/// Little-endian fields of a table; `None` beyond its end.
pub trait Fields {
    /// The bytes `at..at+N`.
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]>;
    /// One byte.
    fn u8(&self, at: usize) -> Option<u8> {
        self.array::<1>(at).map(|b| b[0])
    }
    /// 16 bits.
    fn u16(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }
    /// 32 bits.
    fn u32(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }
    /// 64 bits.
    fn u64(&self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }
}
impl Fields for [u8] {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.get(at..at.checked_add(N)?)?.try_into().ok()
    }
}

/// Bytes of the header that all system description tables share.
pub const HEADER_LEN: usize = 36;

/// Whether the bytes sum to 0, as ACPI checksums do.
pub fn checksum_ok(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |s, b| s.wrapping_add(*b)) == 0
}

/// Where the RSDP points.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Root {
    /// RSDT: 32-bit pointers.
    Rsdt(u64),
    /// XSDT: 64-bit pointers.
    Xsdt(u64),
}

/// Decodes an RSDP. `None` unless signature and checksum are right.
pub fn rsdp(b: &[u8]) -> Option<Root> {
    if b.array::<8>(0)? != *b"RSD PTR " || !checksum_ok(b.get(..20)?) {
        return None;
    }
    if b.u8(15)? >= 2
        && b.get(..36).is_some_and(checksum_ok)
        && let Some(xsdt) = b.u64(24).filter(|x| *x != 0)
    {
        return Some(Root::Xsdt(xsdt));
    }
    Some(Root::Rsdt(u64::from(b.u32(16)?)))
}

/// One entry of the MADT that Ursa uses.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Madt {
    /// A processor that is enabled, by APIC id.
    Cpu {
        /// Local APIC id (x2APIC id for type 9).
        apic_id: u32,
    },
    /// An I/O APIC.
    IoApic {
        /// Its id.
        id: u8,
        /// Physical address of its registers.
        address: u64,
        /// First global system interrupt it serves.
        gsi_base: u32,
    },
    /// An ISA interrupt that is wired elsewhere.
    Override {
        /// ISA interrupt number.
        irq: u8,
        /// Where it goes.
        gsi: u32,
        /// Active low (else high).
        active_low: bool,
        /// Level-triggered (else edge).
        level: bool,
    },
    /// The local APICs are at another address.
    LapicAddress(u64),
}

/// Physical address of the local APICs as the MADT's header has it.
pub fn madt_lapic(t: &[u8]) -> Option<u64> {
    t.u32(36).map(u64::from)
}

/// The MADT's entries.
pub fn madt(t: &[u8]) -> impl Iterator<Item = Madt> + '_ {
    let mut at = 44;
    core::iter::from_fn(move || {
        loop {
            let (kind, len) = (t.u8(at)?, t.u8(at + 1)? as usize);
            if len < 2 {
                return None;
            }
            let e = t.get(at..at + len)?;
            at += len;
            if let Some(entry) = madt_entry(kind, e) {
                return Some(entry);
            }
        }
    })
}

fn madt_entry(kind: u8, e: &[u8]) -> Option<Madt> {
    Some(match kind {
        // Only enabled processors: "online capable" ones are for hot-plug.
        0 if e.u32(4)? & 1 != 0 => Madt::Cpu { apic_id: u32::from(e.u8(3)?) },
        9 if e.u32(8)? & 1 != 0 => Madt::Cpu { apic_id: e.u32(4)? },
        1 => Madt::IoApic { id: e.u8(2)?, address: u64::from(e.u32(4)?), gsi_base: e.u32(8)? },
        2 => {
            let flags = e.u16(8)?;
            Madt::Override { irq: e.u8(3)?, gsi: e.u32(4)?, active_low: flags & 3 == 3, level: flags >> 2 & 3 == 3 }
        }
        5 => Madt::LapicAddress(e.u64(4)?),
        _ => return None,
    })
}

/// A register in ACPI's generic address form.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Gas {
    /// 0 memory, 1 ports, 2 PCI configuration, …
    pub space: u8,
    /// Address within the space; 0 means there is no such register.
    pub address: u64,
}

impl Gas {
    fn at(t: &[u8], at: usize) -> Option<Self> {
        Some(Self { space: t.u8(at)?, address: t.u64(at + 4)? })
    }
    fn port(port: u32) -> Self {
        Self { space: 1, address: u64::from(port) }
    }
}

/// What Ursa needs of the FADT.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Fadt {
    /// Physical address of the DSDT.
    pub dsdt: u64,
    /// SMI command port, 0 when there is none.
    pub smi_cmd: u32,
    /// Written to `smi_cmd` to take over ACPI.
    pub acpi_enable: u8,
    /// PM1a event block (status, then enable).
    pub pm1a_evt: Gas,
    /// PM1a control.
    pub pm1a_cnt: Gas,
    /// PM1b control; address 0 when there is none.
    pub pm1b_cnt: Gas,
    /// PM timer port; address 0 when there is none.
    pub pm_timer: Gas,
    /// The PM timer has 32 bits rather than 24.
    pub pm_timer_32: bool,
    /// Interrupt of ACPI events.
    pub sci_irq: u16,
    /// Reset register and the value to write.
    pub reset: Option<(Gas, u8)>,
    /// CMOS index of the century, 0 when there is none.
    pub century: u8,
}

/// Decodes the FADT.
pub fn fadt(t: &[u8]) -> Option<Fadt> {
    let flags = t.u32(112)?;
    // The extended fields (revision 2 on) count where they are there and not 0.
    let extended = |at: usize, old: u32| Gas::at(t, at).filter(|g| g.address != 0).unwrap_or(Gas::port(old));
    Some(Fadt {
        dsdt: t.u64(140).filter(|d| *d != 0).unwrap_or(u64::from(t.u32(40)?)),
        smi_cmd: t.u32(48)?,
        acpi_enable: t.u8(52)?,
        pm1a_evt: extended(148, t.u32(56)?),
        pm1a_cnt: extended(172, t.u32(64)?),
        pm1b_cnt: extended(184, t.u32(68)?),
        pm_timer: extended(208, t.u32(76)?),
        pm_timer_32: flags & 1 << 8 != 0,
        sci_irq: t.u16(46)?,
        reset: (flags & 1 << 10 != 0).then(|| Some((Gas::at(t, 116)?, t.u8(128)?))).flatten(),
        century: t.u8(108)?,
    })
}

/// `SLP_TYPa` and `SLP_TYPb` of the `\_S5` object, found by its name in the DSDT's AML.
///
/// A full interpreter is `acpid`'s business; every firmware seen declares `Name (_S5, Package () { a, b, … })`.
pub fn s5(dsdt: &[u8]) -> Option<(u8, u8)> {
    let aml = dsdt.get(HEADER_LEN..)?;
    for at in 0..aml.len().saturating_sub(8) {
        // NameOp, optionally a root prefix, then the name.
        if aml[at..at + 4] != *b"_S5_" || at == 0 {
            continue;
        }
        let named = aml[at - 1] == 0x08 || (at >= 2 && aml[at - 1] == b'\\' && aml[at - 2] == 0x08);
        if !named || aml[at + 4] != 0x12 {
            continue;
        }
        // PackageOp PkgLength NumElements, then integers.
        let mut p = at + 5;
        p += 1 + (*aml.get(p)? >> 6) as usize;
        if *aml.get(p)? < 2 {
            continue;
        }
        p += 1;
        let mut integer = || -> Option<u8> {
            let (v, n) = match *aml.get(p)? {
                v @ (0x00 | 0x01) => (v, 1),
                0x0a => (*aml.get(p + 1)?, 2),
                0x0b => (*aml.get(p + 1)?, 3),
                0x0c => (*aml.get(p + 1)?, 5),
                _ => return None,
            };
            p += n;
            Some(v & 7)
        };
        let a = integer()?;
        return Some((a, integer()?));
    }
    None
}

/// What the HPET table says.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Hpet {
    /// Physical address of the registers.
    pub address: u64,
}

/// Decodes the HPET table. `None` also where the timer is not memory-mapped.
pub fn hpet(t: &[u8]) -> Option<Hpet> {
    let gas = Gas::at(t, 40)?;
    (gas.space == 0 && gas.address != 0).then_some(Hpet { address: gas.address })
}

/// One range of memory-mapped PCI configuration space.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Ecam {
    /// Physical address of bus `0`'s space (not of `first`'s).
    pub base: u64,
    /// PCI segment group.
    pub segment: u16,
    /// First bus.
    pub first: u8,
    /// Last bus.
    pub last: u8,
}

/// The MCFG table's entries.
pub fn mcfg(t: &[u8]) -> impl Iterator<Item = Ecam> + '_ {
    t.get(44..).unwrap_or(&[]).chunks_exact(16).filter_map(|e| {
        let ecam = Ecam { base: e.u64(0)?, segment: e.u16(8)?, first: e.u8(10)?, last: e.u8(11)? };
        (ecam.base != 0 && ecam.first <= ecam.last).then_some(ecam)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(t: &mut [u8], at: usize, b: &[u8]) {
        t[at..at + b.len()].copy_from_slice(b);
    }
    fn fix_checksum(t: &mut [u8], len: usize, at: usize) {
        t[at] = 0;
        t[at] = t[..len].iter().fold(0u8, |s, b| s.wrapping_sub(*b));
    }

    #[test]
    fn rsdp_of_both_revisions() {
        let mut b = [0u8; 36];
        put(&mut b, 0, b"RSD PTR ");
        put(&mut b, 16, &0x1234u32.to_le_bytes());
        fix_checksum(&mut b, 20, 8);
        assert_eq!(rsdp(&b[..20]), Some(Root::Rsdt(0x1234)));
        b[15] = 2;
        put(&mut b, 24, &0x1_0000_5678u64.to_le_bytes());
        fix_checksum(&mut b, 20, 8);
        fix_checksum(&mut b, 36, 32);
        assert_eq!(rsdp(&b), Some(Root::Xsdt(0x1_0000_5678)));
        b[9] ^= 1;
        assert_eq!(rsdp(&b), None);
    }

    #[test]
    fn madt_entries_and_their_malformed_ends() {
        let mut t = vec![0u8; 44];
        put(&mut t, 36, &0xfee0_0000u32.to_le_bytes());
        t.extend([0, 8, 0, 0, 1, 0, 0, 0]);
        t.extend([0, 8, 1, 1, 0, 0, 0, 0]);
        t.extend([1, 12, 7, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        t.extend([2, 10, 0, 9, 9, 0, 0, 0, 0x0f, 0]);
        t.extend([9, 16, 0, 0, 44, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        let got: Vec<_> = madt(&t).collect();
        assert_eq!(
            got,
            [
                Madt::Cpu { apic_id: 0 },
                Madt::IoApic { id: 7, address: 0xfec0_0000, gsi_base: 0 },
                Madt::Override { irq: 9, gsi: 9, active_low: true, level: true },
                Madt::Cpu { apic_id: 300 },
            ]
        );
        for cut in 0..t.len() {
            madt(&t[..cut]).count();
        }
        t.extend([0, 0]);
        assert_eq!(madt(&t).count(), 4);
    }

    #[test]
    fn s5_is_found_by_name_only() {
        let mut t = vec![0u8; HEADER_LEN];
        t.extend(b"x_S5_yy");
        t.extend([0x08]);
        t.extend(b"_S5_");
        t.extend([0x12, 0x07, 0x04, 0x0a, 0x05, 0x01, 0x00, 0x00]);
        assert_eq!(s5(&t), Some((5, 1)));
        for cut in 0..t.len() - 4 {
            assert_eq!(s5(&t[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn fadt_prefers_extended_fields_that_are_set() {
        let mut t = vec![0u8; 244];
        put(&mut t, 40, &0x7000u32.to_le_bytes());
        put(&mut t, 64, &0x604u32.to_le_bytes());
        put(&mut t, 76, &0x608u32.to_le_bytes());
        put(&mut t, 112, &(1u32 << 8 | 1 << 10).to_le_bytes());
        put(&mut t, 116, &[1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0, 0x0f]);
        put(&mut t, 208, &[1, 32, 0, 3, 8, 0xb0, 0, 0, 0, 0, 0, 0]);
        let f = fadt(&t).unwrap();
        assert_eq!(f.dsdt, 0x7000);
        assert_eq!(f.pm1a_cnt, Gas { space: 1, address: 0x604 });
        assert_eq!(f.pm_timer, Gas { space: 1, address: 0xb008 });
        assert_eq!(f.reset, Some((Gas { space: 1, address: 0xcf9 }, 0x0f)));
        assert!(f.pm_timer_32);
        assert!(fadt(&t[..116]).is_some());
        assert!(fadt(&t[..100]).is_none());
    }

    #[test]
    fn mcfg_skips_senseless_ranges() {
        let mut t = vec![0u8; 44];
        t.extend([0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 0]);
        t.extend([0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 9, 3, 0, 0, 0, 0]);
        let all: Vec<_> = mcfg(&t).collect();
        assert_eq!(all, [Ecam { base: 0xb000_0000, segment: 0, first: 0, last: 255 }]);
    }
}
