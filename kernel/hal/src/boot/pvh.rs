//! Parser of the PVH start information (`struct hvm_start_info`).
//!
//! The structures lie anywhere below 4 GiB, so the parser takes a reader of physical memory rather than one slice.
//! References: xen/include/public/arch-x86/hvm/start_info.h; QEMU pc-bios/optionrom/pvh_main.c.

use super::memmap::{Map, MemoryKind};
use super::{ModuleRange, Raw};
use crate::addr::PhysAddr;

/// `XEN_HVM_START_MAGIC_VALUE`.
pub const MAGIC: u32 = 0x336e_c578;
/// Most memory map entries read.
const MAX_ENTRIES: u32 = 512;
const CMDLINE_MAX: usize = 4096;

/// Parses the start information at `at`; `read(addr, len)` gives physical memory, or `None` where there is none.
/// Returns `None` if the magic is not there.
pub(super) fn parse<'a>(at: u64, read: impl Fn(u64, usize) -> Option<&'a [u8]>) -> Option<Raw<'a>> {
    let u32_at = |a: u64| Some(u32::from_le_bytes(read(a, 4)?.try_into().ok()?));
    let u64_at = |a: u64| Some(u64::from_le_bytes(read(a, 8)?.try_into().ok()?));
    if u32_at(at)? != MAGIC {
        return None;
    }
    let version = u32_at(at + 4)?;
    let modules = u32_at(at + 12)?;
    let modlist = u64_at(at + 16)?;
    let cmdline = u64_at(at + 24)?;
    let rsdp = u64_at(at + 32)?;
    let mut raw = Raw {
        cmdline: b"",
        loader: b"PVH",
        module: None,
        framebuffer: None,
        rsdp: (rsdp != 0).then_some(PhysAddr(rsdp)),
        memory: Map::default(),
    };
    if cmdline != 0 {
        let len = (0..CMDLINE_MAX)
            .find(|i| read(cmdline.wrapping_add(*i as u64), 1).is_none_or(|b| b[0] == 0))
            .unwrap_or(CMDLINE_MAX);
        raw.cmdline = read(cmdline, len).unwrap_or(b"");
    }
    if modules > 0 && modlist != 0 {
        let (start, len) = (u64_at(modlist)?, u64_at(modlist + 8)?);
        if len > 0 && start.checked_add(len).is_some() {
            raw.module = Some(ModuleRange { start: PhysAddr(start), len });
        }
    }
    // Version 1 added the memory map.
    if version >= 1 {
        let (map, entries) = (u64_at(at + 40)?, u32_at(at + 48)?);
        for i in 0..u64::from(entries.min(MAX_ENTRIES)) {
            let e = map.wrapping_add(i * 24);
            raw.memory.add(u64_at(e)?, u64_at(e.wrapping_add(8))?, MemoryKind::from_e820(u32_at(e.wrapping_add(16))?));
        }
    }
    Some(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Start info at 0, command line at 100, module list at 200, memory map at 300.
    fn sample() -> Vec<u8> {
        let mut m = vec![0u8; 400];
        let mut put = |at: usize, b: &[u8]| m[at..at + b.len()].copy_from_slice(b);
        put(0, &MAGIC.to_le_bytes());
        put(4, &1u32.to_le_bytes());
        put(12, &1u32.to_le_bytes());
        put(16, &200u64.to_le_bytes());
        put(24, &100u64.to_le_bytes());
        put(32, &0xf5a0u64.to_le_bytes());
        put(40, &300u64.to_le_bytes());
        put(48, &2u32.to_le_bytes());
        put(100, b"ktest=1\0");
        put(200, &0x200_0000u64.to_le_bytes());
        put(208, &5000u64.to_le_bytes());
        put(308, &0xa0000u64.to_le_bytes());
        put(316, &1u32.to_le_bytes());
        put(324, &0x10_0000u64.to_le_bytes());
        put(332, &0x10_0000u64.to_le_bytes());
        put(340, &1u32.to_le_bytes());
        m
    }
    fn run(m: &[u8]) -> Option<Raw<'_>> {
        parse(0, |at, len| m.get(at as usize..(at as usize).checked_add(len)?))
    }

    #[test]
    fn start_information_is_understood() {
        let m = sample();
        let raw = run(&m).unwrap();
        assert_eq!(raw.cmdline, b"ktest=1");
        assert_eq!(raw.module, Some(ModuleRange { start: PhysAddr(0x200_0000), len: 5000 }));
        assert_eq!(raw.rsdp, Some(PhysAddr(0xf5a0)));
        assert_eq!(raw.memory.dropped, 0);
    }

    #[test]
    fn truncation_gives_none_and_never_panics() {
        let m = sample();
        for cut in 0..m.len() {
            run(&m[..cut]);
        }
        assert!(run(&m[1..]).is_none());
    }
}
