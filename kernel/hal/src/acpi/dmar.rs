//! The DMAR table: Intel's IOMMUs, what they serve, and what firmware keeps for itself.
//!
//! Reference: Intel Virtualization Technology for Directed I/O, revision 4.1, chapter 8.

use alloc::vec::Vec;

use super::parse::Fields;

/// Kinds of a device scope (8.3.1).
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum ScopeKind {
    /// A PCI function.
    Endpoint,
    /// A PCI bridge and all below.
    Bridge,
    /// An I/O APIC.
    IoApic,
    /// An HPET that sends messages.
    Hpet,
    /// Something that ACPI names.
    Namespace,
}

/// A device, by its path from a root bus.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Scope {
    /// What it is.
    pub kind: ScopeKind,
    /// Enumeration id, of I/O APICs and HPETs.
    pub id: u8,
    /// Bus that the path starts on.
    pub bus: u8,
    /// Device and function of each step; at least one.
    pub path: Vec<(u8, u8)>,
}

/// A structure of the table that Ursa uses.
#[derive(Debug, PartialEq, Eq, Clone)]
pub enum Dmar {
    /// An IOMMU (DRHD).
    Unit {
        /// PCI segment.
        segment: u16,
        /// Its registers.
        base: u64,
        /// It serves whatever no other does.
        all: bool,
        /// What it serves.
        scopes: Vec<Scope>,
    },
    /// Memory that firmware lets devices use (RMRR).
    Reserved {
        /// PCI segment.
        segment: u16,
        /// First byte.
        start: u64,
        /// Last byte.
        last: u64,
        /// Which devices.
        scopes: Vec<Scope>,
    },
}

/// The header's flags: interrupts can be remapped.
pub const FLAG_INTR_REMAP: u8 = 1 << 0;
/// The header's flags: firmware does not want x2APIC mode.
pub const FLAG_X2APIC_OPT_OUT: u8 = 1 << 1;

/// The flags of the header.
pub fn flags(t: &[u8]) -> u8 {
    t.u8(37).unwrap_or(0)
}

/// The table's structures; what is malformed ends the list.
pub fn structures(t: &[u8]) -> impl Iterator<Item = Dmar> + '_ {
    let mut at = 48;
    core::iter::from_fn(move || {
        loop {
            let (kind, len) = (t.u16(at)?, usize::from(t.u16(at + 2)?));
            if len < 4 {
                return None;
            }
            let e = t.get(at..at + len)?;
            at += len;
            if let Some(found) = structure(kind, e) {
                return Some(found);
            }
        }
    })
}

fn structure(kind: u16, e: &[u8]) -> Option<Dmar> {
    Some(match kind {
        0 => Dmar::Unit {
            segment: e.u16(6)?,
            base: e.u64(8).filter(|b| *b != 0)?,
            all: e.u8(4)? & 1 != 0,
            scopes: scopes(e.get(16..)?),
        },
        1 => Dmar::Reserved {
            segment: e.u16(6)?,
            start: e.u64(8)?,
            last: e.u64(16).filter(|last| Some(*last) > e.u64(8))?,
            scopes: scopes(e.get(24..)?),
        },
        _ => return None,
    })
}

fn scopes(mut rest: &[u8]) -> Vec<Scope> {
    let mut found = Vec::new();
    while let (Some(kind), Some(len)) = (rest.u8(0), rest.u8(1)) {
        let len = usize::from(len);
        let Some(e) = rest.get(..len).filter(|_| len >= 8) else { break };
        rest = &rest[len..];
        let kind = match kind {
            1 => ScopeKind::Endpoint,
            2 => ScopeKind::Bridge,
            3 => ScopeKind::IoApic,
            4 => ScopeKind::Hpet,
            5 => ScopeKind::Namespace,
            _ => continue,
        };
        let path = e[6..].chunks_exact(2).map(|p| (p[0], p[1])).collect();
        found.push(Scope { kind, id: e[4], bus: e[5], path });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Vec<u8> {
        let mut t = vec![0u8; 48];
        t[36] = 38;
        t[37] = FLAG_INTR_REMAP;
        // A unit for all, with an I/O APIC at 00:1e.1.
        t.extend([0, 0, 24, 0, 1, 0, 0, 0]);
        t.extend(0xfed9_0000u64.to_le_bytes());
        t.extend([3, 8, 0, 0, 7, 0, 0x1e, 1]);
        // A kind that nobody knows.
        t.extend([9, 0, 4, 0]);
        // Memory of a device behind a bridge.
        t.extend([1, 0, 34, 0, 0, 0, 0, 0]);
        t.extend(0x7000_0000u64.to_le_bytes());
        t.extend(0x7000_0fffu64.to_le_bytes());
        t.extend([1, 10, 0, 0, 0, 0, 0x1c, 0, 2, 1]);
        t
    }

    #[test]
    fn units_and_reserved_memory_are_read() {
        let t = table();
        assert_eq!(flags(&t), FLAG_INTR_REMAP);
        let all: Vec<_> = structures(&t).collect();
        let apic = Scope { kind: ScopeKind::IoApic, id: 7, bus: 0, path: vec![(0x1e, 1)] };
        let behind = Scope { kind: ScopeKind::Endpoint, id: 0, bus: 0, path: vec![(0x1c, 0), (2, 1)] };
        assert_eq!(
            all,
            [
                Dmar::Unit { segment: 0, base: 0xfed9_0000, all: true, scopes: vec![apic] },
                Dmar::Reserved { segment: 0, start: 0x7000_0000, last: 0x7000_0fff, scopes: vec![behind] },
            ]
        );
    }

    #[test]
    fn malformed_tables_end_the_list() {
        let t = table();
        for cut in 0..t.len() {
            structures(&t[..cut]).count();
        }
        let mut zero = t.clone();
        zero[50..52].fill(0);
        assert_eq!(structures(&zero).count(), 0);
        for at in 48..t.len() {
            let mut odd = t.clone();
            odd[at] = 0xff;
            structures(&odd).count();
        }
    }
}
