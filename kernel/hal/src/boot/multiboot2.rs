//! Parser of multiboot2 boot information.
//!
//! A bounds-checked walk over a byte slice, tested on the host. The `multiboot2` crate was looked at: it panics on malformed tags
//! and brings six dependencies for what is a loop over tags here.
//! References: multiboot2 specification 2.0, section 3.6.

use super::memmap::{Map, MemoryKind};
use super::{ColourField, Framebuffer, ModuleRange, Raw};
use crate::addr::PhysAddr;

/// Value of eax at entry.
pub const MAGIC: u32 = 0x36d7_6289;

const TAG_END: u32 = 0;
const TAG_CMDLINE: u32 = 1;
const TAG_LOADER: u32 = 2;
const TAG_MODULE: u32 = 3;
const TAG_MMAP: u32 = 6;
const TAG_FRAMEBUFFER: u32 = 8;
const TAG_RSDP_V1: u32 = 14;
const TAG_RSDP_V2: u32 = 15;

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at.checked_add(4)?)?.try_into().ok()?))
}
fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(b.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
fn until_nul(b: &[u8]) -> &[u8] {
    b.split(|c| *c == 0).next().unwrap_or(b)
}

/// Parses `mbi`, the whole boot information at physical address `base`. Malformed tags are skipped.
pub(super) fn parse(mbi: &[u8], base: u64) -> Raw<'_> {
    let mut raw = Raw {
        cmdline: b"",
        loader: b"multiboot2",
        module: None,
        framebuffer: None,
        rsdp: None,
        memory: Map::default(),
    };
    let mut at = 8;
    while let (Some(kind), Some(size)) = (u32_at(mbi, at), u32_at(mbi, at + 4)) {
        let size = size as usize;
        if kind == TAG_END || size < 8 {
            break;
        }
        let Some(tag) = mbi.get(at..at.saturating_add(size)) else { break };
        match kind {
            TAG_CMDLINE => raw.cmdline = until_nul(&tag[8..]),
            TAG_LOADER => raw.loader = until_nul(&tag[8..]),
            TAG_MODULE if raw.module.is_none() => raw.module = module(tag),
            TAG_MMAP => memory(tag, &mut raw.memory),
            TAG_FRAMEBUFFER => raw.framebuffer = framebuffer(tag),
            // The tag holds a copy of the RSDP; version 2 is preferred.
            TAG_RSDP_V2 if size >= 8 + 36 => raw.rsdp = Some(PhysAddr(base + at as u64 + 8)),
            TAG_RSDP_V1 if size >= 8 + 20 && raw.rsdp.is_none() => raw.rsdp = Some(PhysAddr(base + at as u64 + 8)),
            _ => {}
        }
        at = at.saturating_add(size).next_multiple_of(8);
    }
    raw
}

fn module(tag: &[u8]) -> Option<ModuleRange> {
    let (start, end) = (u32_at(tag, 8)? as u64, u32_at(tag, 12)? as u64);
    (end > start).then(|| ModuleRange { start: PhysAddr(start), len: end - start })
}

fn memory(tag: &[u8], map: &mut Map) {
    let Some(entry_size) = u32_at(tag, 8).map(|s| s as usize).filter(|s| *s >= 24) else { return };
    for entry in tag.get(16..).unwrap_or(&[]).chunks_exact(entry_size) {
        if let (Some(start), Some(len), Some(kind)) = (u64_at(entry, 0), u64_at(entry, 8), u32_at(entry, 16)) {
            map.add(start, len, MemoryKind::from_e820(kind));
        }
    }
}

fn framebuffer(tag: &[u8]) -> Option<Framebuffer> {
    let [bpp, kind] = *tag.get(28..30)? else { return None };
    let field = |i: usize| Some(ColourField { shift: *tag.get(32 + 2 * i)?, bits: *tag.get(33 + 2 * i)? });
    let fb = Framebuffer {
        phys: PhysAddr(u64_at(tag, 8)?),
        pitch: u32_at(tag, 16)?,
        width: u32_at(tag, 20)?,
        height: u32_at(tag, 24)?,
        bpp,
        masks: [field(0)?, field(1)?, field(2)?],
    };
    // Type 1 is direct RGB; 0 (palette) and 2 (EGA text) have no linear pixels for us.
    (kind == 1 && fb.is_sane()).then_some(fb)
}

impl Framebuffer {
    /// Whether rows fit their pitch and fields their pixel.
    fn is_sane(&self) -> bool {
        let bytes = u32::from(self.bpp).div_ceil(8);
        matches!(self.bpp, 15 | 16 | 24 | 32)
            && (1..=16384).contains(&self.width)
            && (1..=16384).contains(&self.height)
            && self.pitch >= self.width * bytes
            && self.pitch <= 1 << 20
            && self.masks.iter().all(|m| m.bits <= 16 && m.shift as u32 + m.bits as u32 <= 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut t = [kind.to_le_bytes(), (8 + body.len() as u32).to_le_bytes()].concat();
        t.extend_from_slice(body);
        t.resize(t.len().next_multiple_of(8), 0);
        t
    }
    fn words(w: &[u32]) -> Vec<u8> {
        w.iter().flat_map(|w| w.to_le_bytes()).collect()
    }
    fn sample() -> Vec<u8> {
        let mut mbi = vec![0; 8];
        mbi.extend(tag(1, b"panic=exit x\0"));
        mbi.extend(tag(2, b"GRUB 2.06\0"));
        mbi.extend(tag(3, &[words(&[0x100_0000, 0x100_1234]), b"initramfs\0".to_vec()].concat()));
        mbi.extend(tag(6, &words(&[24, 0, 0, 0, 0x9fc00, 0, 1, 0, 0x10_0000, 0, 0x1ff0_0000, 0, 1, 0])));
        mbi.extend(tag(8, &[words(&[0xfd00_0000, 0, 4096, 1024, 768]), vec![32, 1, 0, 0, 16, 8, 8, 8, 0, 8]].concat()));
        mbi.extend(tag(14, &[7; 20]));
        mbi.extend(tag(15, &[8; 36]));
        mbi.extend(tag(0, &[]));
        mbi
    }

    #[test]
    fn every_tag_is_understood() {
        let mbi = sample();
        let raw = parse(&mbi, 0x9000);
        assert_eq!(raw.cmdline, b"panic=exit x");
        assert_eq!(raw.loader, b"GRUB 2.06");
        assert_eq!(raw.module, Some(ModuleRange { start: PhysAddr(0x100_0000), len: 0x1234 }));
        let fb = raw.framebuffer.unwrap();
        assert_eq!((fb.phys.0, fb.pitch, fb.width, fb.height, fb.bpp), (0xfd00_0000, 4096, 1024, 768, 32));
        assert_eq!(fb.masks[0], ColourField { shift: 16, bits: 8 });
        let at = (raw.rsdp.unwrap().0 - 0x9000) as usize;
        assert_eq!(mbi[at], 8);
    }

    #[test]
    fn truncated_and_corrupt_information_never_panics() {
        let mbi = sample();
        for cut in 0..mbi.len() {
            parse(&mbi[..cut], 0);
        }
        for i in 8..mbi.len() {
            for v in [0, 1, 7, 0x7f, 0xff] {
                let mut bad = mbi.clone();
                bad[i] = v;
                parse(&bad, 0);
            }
        }
    }
}
