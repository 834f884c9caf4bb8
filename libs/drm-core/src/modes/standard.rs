//! Standard timings: VESA's DMT list, the CVT formula that most of it follows, and CTA-861's video codes.
//!
//! References: VESA DMT 1.13, VESA CVT 1.2, CTA-861-G. Interlaced formats are left out: no card here makes them.

use crate::uapi::*;

/// Polarities of the sync pulses.
const PP: u32 = DRM_MODE_FLAG_PHSYNC | DRM_MODE_FLAG_PVSYNC;
const PN: u32 = DRM_MODE_FLAG_PHSYNC | DRM_MODE_FLAG_NVSYNC;
const NP: u32 = DRM_MODE_FLAG_NHSYNC | DRM_MODE_FLAG_PVSYNC;
const NN: u32 = DRM_MODE_FLAG_NHSYNC | DRM_MODE_FLAG_NVSYNC;

/// Blanking of a line or a frame, as the standards tabulate it: front porch, sync, total.
type Blanking = (u16, u16, u16);

/// A timing with all its numbers: kHz, width and blanking, height and blanking, polarities.
fn exact(clock: u32, width: u16, h: Blanking, height: u16, v: Blanking, flags: u32) -> Mode {
    let mut mode = Mode {
        clock,
        hdisplay: width,
        hsync_start: width + h.0,
        hsync_end: width + h.0 + h.1,
        htotal: h.2,
        vdisplay: height,
        vsync_start: height + v.0,
        vsync_end: height + v.0 + v.1,
        vtotal: v.2,
        flags,
        kind: DRM_MODE_TYPE_DRIVER,
        ..Mode::default()
    };
    mode.vrefresh = mode.refresh();
    mode.named()
}

/// A timing by VESA's Coordinated Video Timings formula; `reduced` is its version for digital displays. `None`: a size or
/// rate that the formula is not made for.
pub fn cvt(width: u16, height: u16, refresh: u32, reduced: bool) -> Option<Mode> {
    // The formula counts in thousandths of a microsecond; lines are at least this short or the result is no timing.
    const FACTOR: u64 = 1000;
    let rate = u64::from(if refresh == 0 { 60 } else { refresh });
    let width = u64::from(width - width % 8);
    let lines = u64::from(height);
    if width == 0 || lines == 0 || rate > 1000 {
        return None;
    }
    let ratio = |numerator: u64, denominator: u64| lines * numerator == width * denominator;
    let vsync = match () {
        () if ratio(4, 3) => 4,
        () if ratio(16, 9) => 5,
        () if ratio(16, 10) => 6,
        () if ratio(5, 4) || ratio(15, 9) => 7,
        () => 10,
    };
    let (period, htotal, hsync_start, hsync_end, vtotal);
    if reduced {
        let time = (FACTOR * 1_000_000).checked_sub(460 * FACTOR * rate)?;
        period = time / (lines * rate);
        let blank = (460 * FACTOR).checked_div(period)? + 1;
        vtotal = lines + blank.max(3 + vsync + 6);
        htotal = width + 160;
        hsync_end = width + 80;
        hsync_start = hsync_end - 32;
    } else {
        let time = (FACTOR * 1_000_000).checked_sub(550 * FACTOR * rate)?;
        period = time * 2 / ((lines + 3) * 2 * rate);
        let back = (550 * FACTOR).checked_div(period)? + 1;
        vtotal = lines + back.max(vsync + 3) + 3;
        // Blanking takes 30 % less 300 % of the line's time in milliseconds, but at least a fifth.
        let percent = (30 * FACTOR).saturating_sub(300 * period / 1000).max(20 * FACTOR);
        let blank = width * percent / (100 * FACTOR - percent);
        let blank = blank - blank % 16;
        htotal = width + blank;
        hsync_end = width + blank / 2;
        // 8 % of the line, in whole cells of 8.
        let sync = htotal * 8 / 100;
        hsync_start = hsync_end - (sync - sync % 8);
    }
    let clock = htotal * FACTOR * 1000 / period;
    let clock = clock - clock % 250;
    let mut mode = Mode {
        clock: u32::try_from(clock).ok()?,
        hdisplay: u16::try_from(width).ok()?,
        hsync_start: u16::try_from(hsync_start).ok()?,
        hsync_end: u16::try_from(hsync_end).ok()?,
        htotal: u16::try_from(htotal).ok()?,
        vdisplay: height,
        vsync_start: u16::try_from(lines + 3).ok()?,
        vsync_end: u16::try_from(lines + 3 + vsync).ok()?,
        vtotal: u16::try_from(vtotal).ok()?,
        flags: if reduced { PN } else { NP },
        kind: DRM_MODE_TYPE_DRIVER,
        ..Mode::default()
    };
    mode.vrefresh = mode.refresh();
    Some(mode.named())
}

/// A timing of VESA's list, and whether it is one with reduced blanking.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dmt {
    pub(crate) mode: Mode,
    pub(crate) reduced: bool,
}

/// VESA's Display Monitor Timings, smallest first. What the list takes from the CVT formula is computed.
pub(crate) fn dmt() -> Vec<Dmt> {
    let mut list = Vec::new();
    let mut fixed = |mode: Mode| list.push(Dmt { mode, reduced: false });
    fixed(exact(31500, 640, (32, 64, 832), 350, (32, 3, 445), PN));
    fixed(exact(31500, 640, (32, 64, 832), 400, (1, 3, 445), NP));
    fixed(exact(35500, 720, (36, 72, 936), 400, (1, 3, 446), NP));
    fixed(exact(25175, 640, (16, 96, 800), 480, (10, 2, 525), NN));
    fixed(exact(31500, 640, (24, 40, 832), 480, (9, 3, 520), NN));
    fixed(exact(31500, 640, (16, 64, 840), 480, (1, 3, 500), NN));
    fixed(exact(36000, 640, (56, 56, 832), 480, (1, 3, 509), NN));
    fixed(exact(36000, 800, (24, 72, 1024), 600, (1, 2, 625), PP));
    fixed(exact(40000, 800, (40, 128, 1056), 600, (1, 4, 628), PP));
    fixed(exact(50000, 800, (56, 120, 1040), 600, (37, 6, 666), PP));
    fixed(exact(49500, 800, (16, 80, 1056), 600, (1, 3, 625), PP));
    fixed(exact(56250, 800, (32, 64, 1048), 600, (1, 3, 631), PP));
    fixed(exact(33750, 848, (16, 112, 1088), 480, (6, 8, 517), PP));
    fixed(exact(65000, 1024, (24, 136, 1344), 768, (3, 6, 806), NN));
    fixed(exact(75000, 1024, (24, 136, 1328), 768, (3, 6, 806), NN));
    fixed(exact(78750, 1024, (16, 96, 1312), 768, (1, 3, 800), PP));
    fixed(exact(94500, 1024, (48, 96, 1376), 768, (1, 3, 808), PP));
    fixed(exact(108000, 1152, (64, 128, 1600), 864, (1, 3, 900), PP));
    fixed(exact(74250, 1280, (110, 40, 1650), 720, (5, 5, 750), PP));
    fixed(exact(108000, 1280, (96, 112, 1800), 960, (1, 3, 1000), PP));
    fixed(exact(148500, 1280, (64, 160, 1728), 960, (1, 3, 1011), PP));
    fixed(exact(108000, 1280, (48, 112, 1688), 1024, (1, 3, 1066), PP));
    fixed(exact(135000, 1280, (16, 144, 1688), 1024, (1, 3, 1066), PP));
    fixed(exact(157500, 1280, (64, 160, 1728), 1024, (1, 3, 1072), PP));
    fixed(exact(85500, 1360, (64, 112, 1792), 768, (3, 6, 795), PP));
    fixed(exact(85500, 1366, (70, 143, 1792), 768, (3, 3, 798), PP));
    for clock in [162_000, 175_500, 189_000, 202_500, 229_500] {
        fixed(exact(clock, 1600, (64, 192, 2160), 1200, (1, 3, 1250), PP));
    }
    fixed(exact(204_750, 1792, (128, 200, 2448), 1344, (1, 3, 1394), NP));
    fixed(exact(261_000, 1792, (96, 216, 2456), 1344, (1, 3, 1417), NP));
    fixed(exact(218_250, 1856, (96, 224, 2528), 1392, (1, 3, 1439), NP));
    fixed(exact(288_000, 1856, (128, 224, 2560), 1392, (1, 3, 1500), NP));
    // VESA says positive polarities; clients know what Linux's list says.
    fixed(exact(148_500, 1920, (88, 44, 2200), 1080, (4, 5, 1125), NN));
    fixed(exact(234_000, 1920, (128, 208, 2600), 1440, (1, 3, 1500), NP));
    fixed(exact(297_000, 1920, (144, 224, 2640), 1440, (1, 3, 1500), NP));
    for (width, height) in
        [(1280, 768), (1280, 800), (1400, 1050), (1440, 900), (1680, 1050), (1920, 1200), (2560, 1600)]
    {
        for rate in [60, 75, 85] {
            list.extend(cvt(width, height, rate, false).map(|mode| Dmt { mode, reduced: false }));
        }
        list.extend(cvt(width, height, 60, true).map(|mode| Dmt { mode, reduced: true }));
    }
    let mut reduced = |mode: Mode| list.push(Dmt { mode, reduced: true });
    reduced(exact(72000, 1366, (14, 56, 1500), 768, (1, 3, 800), PP));
    reduced(exact(108_000, 1600, (24, 80, 1800), 900, (1, 3, 1000), PP));
    reduced(exact(162_000, 2048, (26, 80, 2250), 1152, (1, 3, 1200), PP));
    reduced(exact(556_744, 4096, (8, 32, 4176), 2160, (48, 8, 2222), PN));
    reduced(exact(556_188, 4096, (8, 32, 4176), 2160, (48, 8, 2222), PN));
    reduced(exact(148_250, 1360, (48, 32, 1520), 768, (3, 5, 813), PN));
    for (width, height) in [
        (800, 600),
        (1024, 768),
        (1280, 768),
        (1280, 800),
        (1280, 960),
        (1280, 1024),
        (1400, 1050),
        (1440, 900),
        (1600, 1200),
        (1680, 1050),
        (1792, 1344),
        (1856, 1392),
        (1920, 1200),
        (1920, 1440),
        (2560, 1600),
    ] {
        list.extend(cvt(width, height, 120, true).map(|mode| Dmt { mode, reduced: true }));
    }
    list.sort_by_key(|entry| (entry.mode.hdisplay, entry.mode.vdisplay, entry.mode.vrefresh));
    list
}

/// The timing of VESA's list with this size and rate.
pub(crate) fn find_dmt(width: u16, height: u16, refresh: u32, reduced: bool) -> Option<Mode> {
    let fits = |entry: &&Dmt| {
        let mode = &entry.mode;
        (mode.hdisplay, mode.vdisplay, mode.vrefresh) == (width, height, refresh) && entry.reduced == reduced
    };
    dmt().iter().find(fits).map(|entry| entry.mode)
}

/// The modes of a display that says nothing: VESA's list up to a size, at ordinary rates (`drm_add_modes_noedid`).
pub fn no_edid_modes(max_width: u32, max_height: u32) -> Vec<Mode> {
    let fits = |mode: &Mode| {
        u32::from(mode.hdisplay) <= max_width && u32::from(mode.vdisplay) <= max_height && mode.vrefresh <= 61
    };
    dmt().into_iter().map(|entry| entry.mode).filter(fits).collect()
}

/// Prefers the modes of this size (`drm_set_preferred_mode`).
pub fn prefer(modes: &mut [Mode], width: u32, height: u32) {
    for mode in modes {
        if (u32::from(mode.hdisplay), u32::from(mode.vdisplay)) == (width, height) {
            mode.kind |= DRM_MODE_TYPE_PREFERRED;
        }
    }
}

/// A mode of this size at 60 Hz that is preferred, for a virtual screen that takes any size.
pub fn preferred_cvt(width: u16, height: u16) -> Option<Mode> {
    let mut mode = cvt(width, height, 60, false)?;
    mode.kind |= DRM_MODE_TYPE_PREFERRED;
    Some(mode)
}

/// The progressive format of a CTA-861 video code, with its picture's aspect ratio.
pub(crate) fn cta(code: u8) -> Option<Mode> {
    const WIDE: u32 = DRM_MODE_FLAG_PIC_AR_16_9;
    const OLD: u32 = DRM_MODE_FLAG_PIC_AR_4_3;
    const ULTRA: u32 = DRM_MODE_FLAG_PIC_AR_64_27;
    const CINEMA: u32 = DRM_MODE_FLAG_PIC_AR_256_135;
    let cinema = |clock, front, total| exact(clock, 4096, (front, 88, total), 2160, (8, 10, 2250), PP | CINEMA);
    let p720 = |clock, front, total| exact(clock, 1280, (front, 40, total), 720, (5, 5, 750), PP | WIDE);
    let p1080 = |clock, front, total| exact(clock, 1920, (front, 44, total), 1080, (4, 5, 1125), PP | WIDE);
    let p2160 = |clock, front, total| exact(clock, 3840, (front, 88, total), 2160, (8, 10, 2250), PP | WIDE);
    Some(match code {
        1 => exact(25175, 640, (16, 96, 800), 480, (10, 2, 525), NN | OLD),
        2 => exact(27000, 720, (16, 62, 858), 480, (9, 6, 525), NN | OLD),
        3 => exact(27000, 720, (16, 62, 858), 480, (9, 6, 525), NN | WIDE),
        4 => p720(74250, 110, 1650),
        16 => p1080(148_500, 88, 2200),
        17 => exact(27000, 720, (12, 64, 864), 576, (5, 5, 625), NN | OLD),
        18 => exact(27000, 720, (12, 64, 864), 576, (5, 5, 625), NN | WIDE),
        19 => p720(74250, 440, 1980),
        31 => p1080(148_500, 528, 2640),
        32 => p1080(74250, 638, 2750),
        33 => p1080(74250, 528, 2640),
        34 => p1080(74250, 88, 2200),
        41 => p720(148_500, 440, 1980),
        47 => p720(148_500, 110, 1650),
        60 => p720(59400, 1760, 3300),
        61 => p720(74250, 2420, 3960),
        62 => p720(74250, 1760, 3300),
        63 => p1080(297_000, 88, 2200),
        64 => p1080(297_000, 528, 2640),
        93 => p2160(297_000, 1276, 5500),
        94 => p2160(297_000, 1056, 5280),
        95 => p2160(297_000, 176, 4400),
        96 => p2160(594_000, 1056, 5280),
        97 => p2160(594_000, 176, 4400),
        89 => exact(185_625, 2560, (548, 44, 3300), 1080, (4, 5, 1125), PP | ULTRA),
        90 => exact(198_000, 2560, (248, 44, 3000), 1080, (4, 5, 1100), PP | ULTRA),
        98 => cinema(297_000, 1020, 5500),
        99 => cinema(297_000, 968, 5280),
        100 => cinema(297_000, 88, 4400),
        101 => cinema(594_000, 968, 5280),
        102 => cinema(594_000, 88, 4400),
        126 => exact(742_500, 5120, (1096, 88, 6600), 2160, (8, 10, 2250), PP | ULTRA),
        127 => exact(742_500, 5120, (164, 88, 5500), 2160, (8, 10, 2250), PP | ULTRA),
        _ => return None,
    })
}

/// The clock of a CTA-861 format's other rate: 60 Hz formats come at 59.94 Hz, too, and the old sizes the other way round.
pub(crate) fn cta_other_clock(mode: &Mode) -> u32 {
    if !mode.refresh().is_multiple_of(6) {
        return mode.clock;
    }
    let scale = |numerator: u32, denominator: u32| {
        ((u64::from(mode.clock) * u64::from(numerator) + u64::from(denominator) / 2) / u64::from(denominator)) as u32
    };
    if mode.vdisplay == 240 || mode.vdisplay == 480 { scale(1001, 1000) } else { scale(1000, 1001) }
}

/// The timings of an EDID's first three established-timing bytes, by bit from the first byte's most significant on.
pub(crate) fn established(bit: usize) -> Option<Mode> {
    Some(match bit {
        0 => exact(28320, 720, (18, 108, 900), 400, (12, 2, 449), NP),
        1 => exact(35500, 720, (18, 108, 900), 400, (21, 2, 449), NN),
        2 => find_dmt(640, 480, 60, false)?,
        3 => exact(30240, 640, (64, 64, 864), 480, (3, 3, 525), NN),
        4 => find_dmt(640, 480, 73, false)?,
        5 => find_dmt(640, 480, 75, false)?,
        6 => find_dmt(800, 600, 56, false)?,
        7 => find_dmt(800, 600, 60, false)?,
        8 => find_dmt(800, 600, 72, false)?,
        9 => find_dmt(800, 600, 75, false)?,
        10 => exact(57284, 832, (32, 64, 1152), 624, (1, 3, 667), NN),
        // 11 is interlaced.
        12 => find_dmt(1024, 768, 60, false)?,
        13 => find_dmt(1024, 768, 70, false)?,
        14 => find_dmt(1024, 768, 75, false)?,
        15 => find_dmt(1280, 1024, 75, false)?,
        16 => find_dmt(1152, 864, 75, false)?,
        _ => return None,
    })
}

/// Size, rate and reduced blanking of the third list of established timings, in the order of its bits.
pub(crate) const ESTABLISHED_3: [(u16, u16, u32, bool); 44] = [
    (640, 350, 85, false),
    (640, 400, 85, false),
    (720, 400, 85, false),
    (640, 480, 85, false),
    (848, 480, 60, false),
    (800, 600, 85, false),
    (1024, 768, 85, false),
    (1152, 864, 75, false),
    (1280, 768, 60, true),
    (1280, 768, 60, false),
    (1280, 768, 75, false),
    (1280, 768, 85, false),
    (1280, 960, 60, false),
    (1280, 960, 85, false),
    (1280, 1024, 60, false),
    (1280, 1024, 85, false),
    (1360, 768, 60, false),
    (1440, 900, 60, true),
    (1440, 900, 60, false),
    (1440, 900, 75, false),
    (1440, 900, 85, false),
    (1400, 1050, 60, true),
    (1400, 1050, 60, false),
    (1400, 1050, 75, false),
    (1400, 1050, 85, false),
    (1680, 1050, 60, true),
    (1680, 1050, 60, false),
    (1680, 1050, 75, false),
    (1680, 1050, 85, false),
    (1600, 1200, 60, false),
    (1600, 1200, 65, false),
    (1600, 1200, 70, false),
    (1600, 1200, 75, false),
    (1600, 1200, 85, false),
    (1792, 1344, 60, false),
    (1792, 1344, 75, false),
    (1856, 1392, 60, false),
    (1856, 1392, 75, false),
    (1920, 1200, 60, true),
    (1920, 1200, 60, false),
    (1920, 1200, 75, false),
    (1920, 1200, 85, false),
    (1920, 1440, 60, false),
    (1920, 1440, 75, false),
];
