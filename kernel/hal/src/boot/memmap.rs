//! The physical memory map: sorted, page-aligned, without overlap.
//!
//! Firmware maps overlap, come unsorted and do not end on pages. [`Map::finish`] resolves them: where two entries overlap the
//! more restrictive kind wins; usable ranges shrink to whole pages, all others grow.

use crate::addr::{PAGE_SIZE, PhysAddr};

/// What a range of physical memory is for. Ordered: in an overlap the greater wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemoryKind {
    /// Free RAM.
    Usable,
    /// RAM holding ACPI tables.
    AcpiReclaimable,
    /// RAM below 1 MiB: firmware data and the APs' start page; never handed out.
    Low,
    /// RAM that the boot module occupies.
    Module,
    /// RAM that the kernel image occupies.
    Kernel,
    /// RAM for the firmware's own use.
    AcpiNvs,
    /// Not RAM, or not ours.
    Reserved,
    /// Broken RAM.
    Bad,
}

impl MemoryKind {
    /// Kind of an E820 / multiboot2 / PVH memory type.
    pub(super) fn from_e820(kind: u32) -> Self {
        match kind {
            1 => Self::Usable,
            3 => Self::AcpiReclaimable,
            4 => Self::AcpiNvs,
            5 => Self::Bad,
            _ => Self::Reserved,
        }
    }
    /// Whether the range is RAM that the direct map covers.
    pub fn is_ram(self) -> bool {
        matches!(self, Self::Usable | Self::AcpiReclaimable | Self::Low | Self::Module | Self::Kernel)
    }
}

/// One range of physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRegion {
    /// First byte, page-aligned.
    pub start: PhysAddr,
    /// Length in bytes, a multiple of the page size.
    pub len: u64,
    /// What it is for.
    pub kind: MemoryKind,
}

impl MemoryRegion {
    /// First address behind.
    pub fn end(&self) -> PhysAddr {
        self.start + self.len
    }
}

/// Most entries a map may have; further ones are dropped (and a dropped usable range is only lost memory).
pub const MAX_REGIONS: usize = 128;
/// End of the memory that belongs to firmware tables and AP start-up.
const LOW_END: u64 = 0x10_0000;
/// Highest physical address considered: what the architecture allows at most (52 bits).
const PHYS_END: u64 = 1 << 52;

/// Entries as the firmware gave them, page-rounded.
#[derive(Debug)]
pub struct Map {
    entries: [(u64, u64, MemoryKind); MAX_REGIONS],
    len: usize,
    /// Entries that did not fit.
    pub dropped: usize,
}

impl Default for Map {
    fn default() -> Self {
        Self { entries: [(0, 0, MemoryKind::Reserved); MAX_REGIONS], len: 0, dropped: 0 }
    }
}

impl Map {
    /// Adds `[start, start + len)`. Usable ranges shrink to whole pages, others grow. Usable memory below 1 MiB becomes
    /// [`MemoryKind::Low`].
    pub fn add(&mut self, start: u64, len: u64, kind: MemoryKind) {
        if kind == MemoryKind::Usable && start < LOW_END {
            let end = start.saturating_add(len);
            self.add_range(start, end.min(LOW_END) - start, MemoryKind::Low);
            self.add_range(LOW_END, end.saturating_sub(LOW_END), kind);
        } else {
            self.add_range(start, len, kind);
        }
    }

    fn add_range(&mut self, start: u64, len: u64, kind: MemoryKind) {
        let mask = PAGE_SIZE as u64 - 1;
        let end = start.saturating_add(len).min(PHYS_END);
        let (start, end) = match kind {
            MemoryKind::Usable | MemoryKind::Low => (start.saturating_add(mask) & !mask, end & !mask),
            _ => (start & !mask, (end + mask) & !mask),
        };
        if start >= end {
            return;
        }
        if self.len == MAX_REGIONS {
            self.dropped += 1;
            return;
        }
        self.entries[self.len] = (start, end, kind);
        self.len += 1;
    }

    /// Writes the resolved map to `out` and returns how many regions there are.
    ///
    /// Between two neighbouring borders the greatest kind that covers the span wins; equal neighbours are joined.
    pub fn finish(&self, out: &mut [MemoryRegion; MAX_REGIONS]) -> usize {
        let entries = &self.entries[..self.len];
        let mut n = 0;
        let mut at = 0;
        loop {
            // The next border above `at`, and the kind of the span up to it.
            let borders = entries.iter().flat_map(|e| [e.0, e.1]);
            let Some(next) = borders.filter(|b| *b > at).min() else { return n };
            let kind = entries.iter().filter(|e| e.0 <= at && next <= e.1).map(|e| e.2).max();
            if let Some(kind) = kind {
                match out[..n].last_mut() {
                    Some(last) if last.kind == kind && last.end().0 == at => last.len += next - at,
                    _ if n < MAX_REGIONS => {
                        out[n] = MemoryRegion { start: PhysAddr(at), len: next - at, kind };
                        n += 1;
                    }
                    _ => return n,
                }
            }
            at = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(list: &[(u64, u64, MemoryKind)]) -> Vec<(u64, u64, MemoryKind)> {
        let mut map = Map::default();
        for e in list {
            map.add(e.0, e.1, e.2);
        }
        let mut out = [MemoryRegion { start: PhysAddr(0), len: 0, kind: MemoryKind::Bad }; MAX_REGIONS];
        let n = map.finish(&mut out);
        out[..n].iter().map(|r| (r.start.0, r.len, r.kind)).collect()
    }

    #[test]
    fn restrictive_kinds_win_and_usable_shrinks_to_pages() {
        use MemoryKind::*;
        let got = resolve(&[
            (0x10_0000, 0x100_0000, Usable),
            (0, 0x9fc00, Usable),
            (0x9fc00, 0x400, Reserved),
            (0x20_0000, 0x12_3456, Kernel),
        ]);
        assert_eq!(
            got,
            [
                (0, 0x9f000, Low),
                (0x9f000, 0x1000, Reserved),
                (0x10_0000, 0x10_0000, Usable),
                (0x20_0000, 0x12_4000, Kernel),
                (0x32_4000, 0x110_0000 - 0x32_4000, Usable)
            ]
        );
    }

    #[test]
    fn neighbours_are_joined_and_nonsense_is_ignored() {
        use MemoryKind::*;
        let got = resolve(&[
            (0x100_1000, 0x1000, Usable),
            (0x100_2000, 0x1000, Usable),
            (u64::MAX - 5, u64::MAX, Usable),
            (0x5000, 0, Reserved),
            (0x100_8100, 0x100, Usable),
        ]);
        assert_eq!(got, [(0x100_1000, 0x2000, Usable)]);
    }

    #[test]
    fn too_many_entries_are_counted() {
        let mut map = Map::default();
        for i in 0..200 {
            map.add(i << 20, 4096, MemoryKind::Usable);
        }
        assert_eq!(map.dropped, 200 - MAX_REGIONS);
    }
}
