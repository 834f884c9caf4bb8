//! Timings against those that VESA's documents print, and an EDID as QEMU makes it.

use super::edid::Edid;
use super::standard::*;
use super::*;

fn numbers(mode: &Mode) -> [u32; 9] {
    [
        mode.clock,
        mode.hdisplay.into(),
        mode.hsync_start.into(),
        mode.hsync_end.into(),
        mode.htotal.into(),
        mode.vdisplay.into(),
        mode.vsync_start.into(),
        mode.vsync_end.into(),
        mode.vtotal.into(),
    ]
}

#[test]
fn the_formula_gives_the_lists_numbers() {
    let cases = [
        (cvt(1280, 800, 60, false), [83500, 1280, 1352, 1480, 1680, 800, 803, 809, 831]),
        (cvt(1280, 800, 60, true), [71000, 1280, 1328, 1360, 1440, 800, 803, 809, 823]),
        (cvt(1400, 1050, 75, false), [156_000, 1400, 1504, 1648, 1896, 1050, 1053, 1057, 1099]),
        (cvt(1440, 900, 60, false), [106_500, 1440, 1520, 1672, 1904, 900, 903, 909, 934]),
        (cvt(1680, 1050, 85, false), [214_750, 1680, 1808, 1984, 2288, 1050, 1053, 1059, 1105]),
        (cvt(1920, 1200, 60, true), [154_000, 1920, 1968, 2000, 2080, 1200, 1203, 1209, 1235]),
        (cvt(1920, 1200, 60, false), [193_250, 1920, 2056, 2256, 2592, 1200, 1203, 1209, 1245]),
        (cvt(2560, 1600, 60, true), [268_500, 2560, 2608, 2640, 2720, 1600, 1603, 1609, 1646]),
        (cvt(1280, 768, 120, true), [140_250, 1280, 1328, 1360, 1440, 768, 771, 778, 813]),
    ];
    for (mode, expected) in cases {
        assert_eq!(numbers(&mode.expect("the formula takes it")), expected);
    }
    for (width, height, rate) in
        [(0, 0, 60), (7, 600, 60), (800, 0, 60), (800, 600, u32::MAX), (u16::MAX, u16::MAX, 1000)]
    {
        // Whatever it is, no panic, and if a mode then a sane one.
        assert!(cvt(width, height, rate, false).is_none_or(|mode| mode.is_sane()), "{width} {height} {rate}");
        assert!(cvt(width, height, rate, true).is_none_or(|mode| mode.is_sane()), "{width} {height} {rate}");
    }
}

#[test]
fn the_list_is_whole_and_sane() {
    let list = dmt();
    assert_eq!(list.len(), 88 - 1, "all of VESA's but the interlaced one");
    for entry in &list {
        assert!(entry.mode.is_sane(), "{:?}", entry.mode);
        assert!((43..=120).contains(&entry.mode.vrefresh), "{:?}", entry.mode);
        assert!(!entry.mode.name().is_empty());
    }
    for (width, height, rate, reduced) in ESTABLISHED_3 {
        assert!(find_dmt(width, height, rate, reduced).is_some(), "{width}x{height}@{rate} {reduced}");
    }
    for bit in (0..17).filter(|bit| *bit != 11) {
        assert!(established(bit).is_some(), "bit {bit}");
    }
    assert!(no_edid_modes(1024, 768).iter().all(|mode| mode.hdisplay <= 1024 && mode.vrefresh <= 61));
    assert!(no_edid_modes(8192, 8192).iter().any(|mode| mode.name() == "2560x1600"));
}

#[test]
fn rates_and_checks() {
    let mode = find_dmt(1024, 768, 60, false).unwrap();
    assert_eq!(mode.refresh(), 60);
    assert_eq!(Mode { flags: DRM_MODE_FLAG_INTERLACE, ..mode }.refresh(), 120);
    assert!(mode.checked().is_ok());
    for bad in [
        Mode { clock: 0, ..mode },
        Mode { htotal: 1000, ..mode },
        Mode { vsync_end: 700, ..mode },
        Mode { flags: 1 << 30, ..mode },
        Mode { flags: 5 << 19, ..mode },
    ] {
        assert_eq!(bad.checked(), Err(Errno::EINVAL));
    }
    assert_eq!(Mode { clock: u32::MAX, ..mode }.checked(), Err(Errno::ERANGE));
    assert_eq!(Mode::default().refresh(), 0);
}

/// An EDID of 1024×768, with some established and standard timings and a CTA extension with 1080p60.
fn sample() -> Vec<u8> {
    let mut edid = vec![0; 256];
    edid[..8].copy_from_slice(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    (edid[18], edid[19], edid[20], edid[21], edid[22], edid[24]) = (1, 4, 0xa5, 26, 19, 6);
    // 640x480@60, 800x600@60, 1024x768@60.
    (edid[35], edid[36]) = (0x21, 0x08);
    for code in edid[38..54].chunks_exact_mut(2) {
        code.copy_from_slice(&[1, 1]);
    }
    // 1280x1024@60 (5:4); the rest is empty.
    edid[38..40].copy_from_slice(&[0x81, 0x80]);
    edid[54..72].copy_from_slice(&[
        0x64, 0x19, 0x00, 0x40, 0x41, 0x00, 0x26, 0x30, 0x18, 0x88, 0x36, 0x00, 4, 195, 0x10, 0, 0, 0x18,
    ]);
    edid[126] = 1;
    edid[128..134].copy_from_slice(&[2, 3, 7, 0, 0x42, 16]);
    edid[134] = 4;
    for block in [0, 128] {
        let sum = edid[block..block + 127].iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
        edid[block + 127] = sum.wrapping_neg();
    }
    edid
}

#[test]
fn an_edid_is_read() {
    let edid = Edid::parse(&sample()).expect("it is one");
    assert_eq!(edid.millimetres(), (260, 190));
    let modes = edid.modes();
    let has = |name: &str, rate: u32| modes.iter().filter(|m| m.name() == name && m.refresh() == rate).count();
    let first = &modes[0];
    assert_eq!(numbers(first), [65000, 1024, 1048, 1184, 1344, 768, 771, 777, 806]);
    assert_ne!(first.kind & DRM_MODE_TYPE_PREFERRED, 0);
    assert_eq!(modes.iter().filter(|mode| mode.kind & DRM_MODE_TYPE_PREFERRED != 0).count(), 1);
    assert!(has("640x480", 60) >= 1 && has("800x600", 60) == 1 && has("1280x1024", 60) == 1);
    assert!(has("1280x720", 60) >= 1, "from the extension");
    let clocks: Vec<u32> = modes.iter().filter(|m| m.name() == "1920x1080").map(|m| m.clock).collect();
    assert!(clocks.contains(&148_500) && clocks.contains(&148_352), "both rates: {clocks:?}");
}

#[test]
fn broken_edids_are_none_or_less() {
    assert!(Edid::parse(&[]).is_none());
    assert!(Edid::parse(&[0; 128]).is_none());
    let mut broken = sample();
    broken[60] ^= 1;
    assert!(Edid::parse(&broken).is_none(), "the sum is wrong");
    let mut half = sample();
    half[140] ^= 1;
    let edid = Edid::parse(&half).expect("the base block is good");
    assert_eq!((edid.raw().len(), edid.raw()[126]), (128, 0));
    assert!(Edid::parse(edid.raw()).is_some(), "what is kept is an EDID");
    // Any bytes with right sums.
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..3000 {
        let mut edid = sample();
        for _ in 0..rng.usize(1..60) {
            let at = rng.usize(20..256);
            edid[at] = rng.u8(..);
        }
        for block in [0, 128] {
            let sum = edid[block..block + 127].iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
            edid[block + 127] = sum.wrapping_neg();
        }
        if let Some(edid) = Edid::parse(&edid) {
            let _ = edid.modes();
        }
    }
}
