//! The IVRS table: AMD's IOMMUs, what they serve, and what firmware keeps for itself.
//!
//! Firmware describes one IOMMU up to three times, in formats that know more and more; only the newest that is there counts.
//! A device that speaks under another's name (alias) is served under both.
//!
//! Reference: AMD I/O Virtualization Technology (IOMMU) Specification, revision 3.10, 5.2.2.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use super::parse::Fields;

/// Requesters: bus, device, function as they stand in a request.
pub type Sources = Vec<RangeInclusive<u16>>;

/// An IOMMU (IVHD).
#[derive(Debug, PartialEq, Eq, Clone, Default)]
pub struct Unit {
    /// PCI segment.
    pub segment: u16,
    /// The PCI function that it is.
    pub function: u16,
    /// Where its capability lies in that function's configuration.
    pub capability: u16,
    /// Its registers.
    pub base: u64,
    /// How its control register is to be set: `FLAG_*`.
    pub flags: u8,
    /// Whom it serves.
    pub sources: Sources,
    /// It serves whatever no other does.
    pub all: bool,
    /// Id and requester of the I/O APICs.
    pub apics: Vec<(u8, u16)>,
}

/// A structure of the table that Ursa uses.
#[derive(Debug, PartialEq, Eq, Clone)]
pub enum Ivrs {
    /// An IOMMU.
    Unit(Unit),
    /// Memory that firmware lets devices use (IVMD).
    Reserved {
        /// Which devices.
        sources: Sources,
        /// First byte.
        start: u64,
        /// Last byte.
        last: u64,
    },
}

/// `Unit::flags`: HyperTransport tunnel translation, PassPW, ResPassPW, isochronous: the control register's bits of these names.
pub const FLAG_CONTROL: u8 = 0xf;

/// Newest first.
const UNIT_KINDS: [u8; 3] = [0x40, 0x11, 0x10];

/// Blocks of the table: kind and bytes; what is malformed ends the list.
fn blocks(t: &[u8]) -> impl Iterator<Item = (u8, &[u8])> + '_ {
    let mut at = 48;
    core::iter::from_fn(move || {
        let (kind, len) = (t.u8(at)?, usize::from(t.u16(at + 2)?));
        let block = t.get(at..at + len).filter(|_| len >= 4)?;
        at += len;
        Some((kind, block))
    })
}

/// The table's structures.
pub fn structures(t: &[u8]) -> impl Iterator<Item = Ivrs> + '_ {
    let newest = UNIT_KINDS.into_iter().find(|kind| blocks(t).any(|(k, _)| k == *kind));
    blocks(t).filter_map(move |(kind, b)| match kind {
        0x20..=0x22 => memory(kind, b),
        _ if Some(kind) == newest => unit(kind, b).map(Ivrs::Unit),
        _ => None,
    })
}

fn memory(kind: u8, b: &[u8]) -> Option<Ivrs> {
    let (first, second) = (b.u16(4)?, b.u16(6)?);
    let sources = match kind {
        0x20 => 0..=u16::MAX,
        0x21 => first..=first,
        _ => first..=second,
    };
    let (start, len) = (b.u64(16)?, b.u64(24)?);
    let last = start.checked_add(len.checked_sub(1)?)?;
    Some(Ivrs::Reserved { sources: Vec::from([sources]), start, last })
}

fn unit(kind: u8, b: &[u8]) -> Option<Unit> {
    let mut unit = Unit {
        flags: b.u8(1)?,
        function: b.u16(4)?,
        capability: b.u16(6)?,
        base: b.u64(8).filter(|base| *base != 0)?,
        segment: b.u16(16)?,
        ..Unit::default()
    };
    let mut rest = b.get(if kind == 0x10 { 24 } else { 40 }..)?;
    let mut start = None;
    while let Some(kind) = rest.u8(0) {
        let len = match kind {
            // A name of ACPI, with an identifier of its own length behind it.
            0xf0 => 22 + usize::from(rest.u8(21)?),
            _ => 4 << (kind >> 6),
        };
        // What is cut off ends the list.
        let Some(e) = rest.get(..len) else { break };
        rest = &rest[len..];
        let device = e.u16(1)?;
        match kind {
            1 => unit.all = true,
            2 | 0x46 => unit.sources.push(device..=device),
            0x42 => {
                let alias = e.u16(5)?;
                unit.sources.extend([device..=device, alias..=alias]);
            }
            3 | 0x47 => start = Some(device),
            0x43 => {
                start = Some(device);
                let alias = e.u16(5)?;
                unit.sources.push(alias..=alias);
            }
            4 => unit.sources.extend(start.take().filter(|start| *start <= device).map(|start| start..=device)),
            0x48 => {
                let (handle, source, variety) = (e.u8(4)?, e.u16(5)?, e.u8(7)?);
                unit.sources.push(source..=source);
                if variety == 1 {
                    unit.apics.push((handle, source));
                }
            }
            _ => {}
        }
    }
    Some(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
        let mut b = vec![kind, flags, 0, 0];
        b.extend(body);
        let len = (b.len() as u16).to_le_bytes();
        b[2..4].copy_from_slice(&len);
        b
    }

    fn header(kind: u8) -> Vec<u8> {
        let mut body = vec![0x02, 0, 0x40, 0];
        body.extend(0xfed8_0000u64.to_le_bytes());
        body.resize(if kind == 0x10 { 20 } else { 36 }, 0);
        body
    }

    #[test]
    fn the_newest_description_counts() {
        let mut t = vec![0; 48];
        let mut old = header(0x10);
        old.extend([1, 0, 0, 0]);
        t.extend(block(0x10, 3, &old));
        let mut new = header(0x11);
        // Padding, a device, a range, an alias, the I/O APIC with id 5, and what is cut off.
        new.extend([0, 0, 0, 0, 2, 0x18, 0, 0, 3, 0, 1, 0, 4, 0xff, 1, 0]);
        new.extend([0x42, 0x20, 0, 0, 0, 0x28, 0, 0]);
        new.extend([0x48, 0, 0, 0, 5, 0xa0, 0, 1]);
        new.extend([0x48, 0, 0]);
        t.extend(block(0x11, 3, &new));
        let found: Vec<Ivrs> = structures(&t).collect();
        let [Ivrs::Unit(unit)] = &found[..] else { panic!("{found:?}") };
        assert_eq!((unit.function, unit.capability, unit.base, unit.flags), (2, 0x40, 0xfed8_0000, 3));
        assert_eq!(unit.sources, [0x18..=0x18, 0x100..=0x1ff, 0x20..=0x20, 0x28..=0x28, 0xa0..=0xa0]);
        assert_eq!(unit.apics, [(5, 0xa0)]);
        assert!(!unit.all);
    }

    #[test]
    fn memory_and_nonsense() {
        let mut t = vec![0; 48];
        let mut body = vec![0x10, 0, 0x1f, 0];
        body.resize(12, 0);
        body.extend(0x7000_0000u64.to_le_bytes());
        body.extend(0x1000u64.to_le_bytes());
        t.extend(block(0x22, 0, &body));
        t.extend([0x10, 0, 2, 0]);
        let found: Vec<Ivrs> = structures(&t).collect();
        assert_eq!(found, [Ivrs::Reserved { sources: vec![0x10..=0x1f], start: 0x7000_0000, last: 0x7000_0fff }]);
        // Every prefix of a table is a table.
        for len in 0..t.len() {
            structures(&t[..len]).count();
        }
    }
}
