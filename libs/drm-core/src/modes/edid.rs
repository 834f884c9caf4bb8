//! What a display says of itself: EDID 1.3 and 1.4 with CTA-861 extensions (`drm_edid.c`).
//!
//! Only what a screen without sound needs: timings and size. Whatever the bytes hold, the result is a list of modes.
//! DisplayID extensions are not read.

use crate::modes::standard::{self, ESTABLISHED_3, cta, cta_other_clock, cvt, find_dmt};
use crate::uapi::*;

const BLOCK: usize = 128;
const HEADER: [u8; 8] = [0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0];
/// The most blocks that are kept.
const MAX_BLOCKS: usize = 256;

/// A checked EDID.
#[derive(Debug, Clone)]
pub(crate) struct Edid {
    raw: Vec<u8>,
}

/// What a range descriptor allows.
struct Ranges {
    vertical: (u32, u32),
    /// In kHz.
    horizontal: (u32, u32),
    /// In kHz, 0 = unlimited.
    clock: u32,
}

impl Edid {
    /// Checks header and sums. Broken extensions are left out.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Edid> {
        let sums = |block: &[u8]| block.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)) == 0;
        let base = bytes.get(..BLOCK)?;
        if base[..8] != HEADER || !sums(base) || base[18] != 1 {
            return None;
        }
        let mut raw = base.to_vec();
        let announced = usize::from(base[126]).min(MAX_BLOCKS - 1);
        for block in bytes[BLOCK..].chunks_exact(BLOCK).take(announced).filter(|block| sums(block)) {
            raw.extend_from_slice(block);
        }
        let kept = raw.len() / BLOCK - 1;
        if kept != usize::from(base[126]) {
            // As Linux does for clients: the number of extensions is what is there.
            raw[127] = raw[127].wrapping_add(raw[126].wrapping_sub(kept as u8));
            raw[126] = kept as u8;
        }
        Some(Edid { raw })
    }

    /// Its bytes, for the `EDID` property and sysfs.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Size of the screen, in the centimetres' precision that Linux reports.
    pub(crate) fn millimetres(&self) -> (u32, u32) {
        (u32::from(self.raw[21]) * 10, u32::from(self.raw[22]) * 10)
    }

    fn revision(&self) -> u8 {
        self.raw[19]
    }

    /// The display takes any timing within its ranges.
    fn continuous(&self) -> bool {
        self.raw[24] & 1 != 0
    }

    /// The four descriptors of the base block.
    fn descriptors(&self) -> impl Iterator<Item = &[u8]> {
        self.raw[54..126].chunks_exact(18)
    }

    /// Display descriptors of a kind.
    fn tagged(&self, tag: u8) -> impl Iterator<Item = &[u8]> {
        self.descriptors().filter(move |d| d[..3] == [0, 0, 0] && d[3] == tag)
    }

    fn cta_extensions(&self) -> impl Iterator<Item = &[u8]> {
        self.raw.chunks_exact(BLOCK).skip(1).filter(|block| block[0] == 2)
    }

    /// All modes, the display's favourite marked; the same timing may come twice.
    pub(crate) fn modes(&self) -> Vec<Mode> {
        let mut modes = self.detailed();
        for descriptor in self.tagged(0xf8) {
            modes.extend(descriptor[6..].chunks_exact(3).flat_map(cvt_code));
        }
        let standard = self.raw[38..54].chunks_exact(2);
        let more = self.tagged(0xfa).flat_map(|descriptor| descriptor[5..17].chunks_exact(2));
        modes.extend(standard.chain(more).filter_map(|code| self.standard(code)));
        let bits = |byte: usize, bit: usize| self.raw[byte] & 0x80 >> bit != 0;
        let early = (0..17).filter(|bit| bits(35 + bit / 8, bit % 8));
        modes.extend(early.filter_map(standard::established));
        for descriptor in self.tagged(0xf7) {
            let set = |bit: &usize| descriptor[6 + bit / 8] & 0x80 >> (bit % 8) != 0;
            let find = |(width, height, rate, reduced)| find_dmt(width, height, rate, reduced);
            modes.extend((0..ESTABLISHED_3.len()).filter(set).filter_map(|bit| find(ESTABLISHED_3[bit])));
        }
        for block in self.cta_extensions() {
            modes.extend(cta_codes(block).filter_map(cta));
        }
        if self.cta_extensions().next().is_some() {
            let others: Vec<Mode> = modes.iter().filter_map(other_rate).collect();
            modes.extend(others);
        }
        if self.continuous() {
            modes.extend(self.inferred());
        }
        modes
    }

    /// Detailed timings of the base block and of extensions. The first is the favourite.
    fn detailed(&self) -> Vec<Mode> {
        let preferred = self.revision() >= 4 || self.raw[24] & 2 != 0;
        let mut modes: Vec<Mode> = Vec::new();
        for (index, descriptor) in self.descriptors().enumerate() {
            if let Some(mut mode) = detailed_timing(descriptor) {
                if index == 0 && preferred {
                    mode.kind |= DRM_MODE_TYPE_PREFERRED;
                }
                modes.push(mode);
            }
        }
        for block in self.cta_extensions() {
            let start = usize::from(block[2]);
            if (4..BLOCK - 1).contains(&start) {
                modes.extend(block[start..BLOCK - 1].chunks_exact(18).map_while(detailed_timing));
            }
        }
        modes
    }

    /// A two-byte standard timing.
    fn standard(&self, code: &[u8]) -> Option<Mode> {
        if matches!(code, [0, 0] | [1, 1] | [0x20, 0x20]) {
            return None;
        }
        let width = (u16::from(code[0]) + 31) * 8;
        let height = match code[1] >> 6 {
            0 if self.revision() < 3 => width,
            0 => width * 10 / 16,
            1 => width * 3 / 4,
            2 => width * 4 / 5,
            _ => width * 9 / 16,
        };
        let refresh = u32::from(code[1] & 0x3f) + 60;
        // 1366 is no multiple of 8: what displays say instead.
        if (width, height, refresh) == (1360, 765, 60) {
            return find_dmt(1366, 768, 60, false);
        }
        let listed = find_dmt(width, height, refresh, false).or_else(|| find_dmt(width, height, refresh, true));
        listed.or_else(|| {
            if self.revision() >= 4 && self.continuous() { cvt(width, height, refresh, false) } else { None }
        })
    }

    fn ranges(&self) -> Option<Ranges> {
        let descriptor = self.tagged(0xfd).next()?;
        let offset = |bit: u8| if self.revision() >= 4 && descriptor[4] & bit != 0 { 255 } else { 0 };
        Some(Ranges {
            vertical: (u32::from(descriptor[5]) + offset(1), u32::from(descriptor[6]) + offset(2)),
            horizontal: (u32::from(descriptor[7]) + offset(4), u32::from(descriptor[8]) + offset(8)),
            clock: u32::from(descriptor[9]) * 10_000,
        })
    }

    /// VESA's timings that lie in the display's ranges.
    fn inferred(&self) -> Vec<Mode> {
        let Some(ranges) = self.ranges() else { return Vec::new() };
        let within = |mode: &Mode| {
            let lines = mode.clock.checked_div(u32::from(mode.htotal)).unwrap_or(0);
            (ranges.vertical.0..=ranges.vertical.1).contains(&mode.vrefresh)
                && (ranges.horizontal.0..=ranges.horizontal.1).contains(&lines)
                && (ranges.clock == 0 || mode.clock <= ranges.clock)
        };
        standard::dmt().into_iter().filter(|entry| !entry.reduced).map(|entry| entry.mode).filter(within).collect()
    }
}

/// An 18-byte detailed timing. `None`: another descriptor, or nothing that can be shown.
fn detailed_timing(d: &[u8]) -> Option<Mode> {
    let clock = u32::from(u16::from_le_bytes([d[0], d[1]])) * 10;
    let wide = |low: u8, high: u8| u16::from(low) | u16::from(high) << 8;
    let (hactive, hblank) = (wide(d[2], d[4] >> 4), wide(d[3], d[4] & 15));
    let (vactive, vblank) = (wide(d[5], d[7] >> 4), wide(d[6], d[7] & 15));
    let hfront = wide(d[8], d[11] >> 6);
    let hsync = wide(d[9], d[11] >> 4 & 3);
    let vfront = u16::from(d[10] >> 4 | (d[11] >> 2 & 3) << 4);
    let vsync = u16::from(d[10] & 15 | (d[11] & 3) << 4);
    // A stereo picture has its bits in 5, 6 and 0.
    if clock == 0 || hactive < 64 || vactive < 64 || hsync == 0 || vsync == 0 || d[17] & 0x60 != 0 {
        return None;
    }
    let mut flags = if d[17] & 0x80 != 0 { DRM_MODE_FLAG_INTERLACE } else { 0 };
    if d[17] >> 3 & 3 == 3 {
        flags |= if d[17] & 4 != 0 { DRM_MODE_FLAG_PVSYNC } else { DRM_MODE_FLAG_NVSYNC };
        flags |= if d[17] & 2 != 0 { DRM_MODE_FLAG_PHSYNC } else { DRM_MODE_FLAG_NHSYNC };
    }
    let mut mode = Mode {
        clock,
        hdisplay: hactive,
        hsync_start: hactive + hfront,
        hsync_end: hactive + hfront + hsync,
        htotal: hactive + hblank,
        vdisplay: vactive,
        vsync_start: vactive + vfront,
        vsync_end: vactive + vfront + vsync,
        vtotal: vactive + vblank,
        flags,
        kind: DRM_MODE_TYPE_DRIVER,
        ..Mode::default()
    };
    // Some displays' blanking is shorter than what has to fit in it.
    mode.htotal = mode.htotal.max(mode.hsync_end + 1);
    mode.vtotal = mode.vtotal.max(mode.vsync_end + 1);
    mode.vrefresh = mode.refresh();
    Some(mode.named())
}

/// The modes of a three-byte CVT code.
fn cvt_code(code: &[u8]) -> Vec<Mode> {
    if code == [0, 0, 0] {
        return Vec::new();
    }
    let height = (u16::from(code[0]) | u16::from(code[1] & 0xf0) << 4) * 2 + 2;
    let width = match code[1] >> 2 & 3 {
        0 => u32::from(height) * 4 / 3,
        1 => u32::from(height) * 16 / 9,
        2 => u32::from(height) * 16 / 10,
        _ => u32::from(height) * 15 / 9,
    };
    let Ok(width) = u16::try_from(width) else { return Vec::new() };
    let rates = [(0x10, 50, false), (0x08, 60, false), (0x04, 75, false), (0x02, 85, false), (0x01, 60, true)];
    rates
        .into_iter()
        .filter(|(bit, ..)| code[2] & bit != 0)
        .filter_map(|(_, rate, reduced)| cvt(width, height, rate, reduced))
        .collect()
}

/// The video codes of a CTA extension's data blocks.
fn cta_codes(block: &[u8]) -> impl Iterator<Item = u8> {
    let end = match usize::from(block[2]) {
        0 => BLOCK - 1,
        end => end.min(BLOCK - 1),
    };
    // Data blocks came with the third revision.
    let mut at = if block[1] >= 3 { 4 } else { end };
    let mut codes = Vec::new();
    while at < end {
        let (tag, len) = (block[at] >> 5, usize::from(block[at] & 0x1f));
        let body = &block[(at + 1).min(end)..(at + 1 + len).min(end)];
        if tag == 2 {
            // The first 64 have a bit that says that they are native.
            codes.extend(body.iter().map(|&code| if (129..=192).contains(&code) { code & 0x7f } else { code }));
        }
        at += 1 + len;
    }
    codes.into_iter()
}

/// The other of 60 and 59.94 Hz of a mode that is one of CTA-861's.
fn other_rate(mode: &Mode) -> Option<Mode> {
    let strip = |mode: &Mode| {
        let flags = mode.flags & !DRM_MODE_FLAG_PIC_AR_MASK;
        Mode { clock: 0, flags, ..*mode }
    };
    let matches = |format: &Mode| {
        let other = cta_other_clock(format);
        strip(format).same_timing(&strip(mode)) && (mode.clock == format.clock || mode.clock == other)
    };
    let mut format = (1..=127).filter_map(cta).find(matches)?;
    let other = cta_other_clock(&format);
    if other == format.clock {
        return None;
    }
    if mode.clock == format.clock {
        format.clock = other;
    }
    format.vrefresh = format.refresh();
    Some(format)
}
