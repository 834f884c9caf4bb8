//! Parsers of what firmware, disks, displays, the network and administrators say.

use std::collections::BTreeMap;

use partition_table::Sectors;

use crate::Target;
use crate::elsewhere::attributes::{Attributes, put, put_u32};
use crate::elsewhere::unit::{Unit, start_order};
use crate::elsewhere::{dmar, parse};

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "acpi", seeds: acpi_seeds, parse: acpi },
    Target { name: "dmar", seeds: dmar_seeds, parse: dmar_table },
    Target { name: "partitions", seeds: disk_seeds, parse: partitions },
    Target { name: "edid", seeds: edid_seeds, parse: edid },
    Target { name: "netlink", seeds: netlink_seeds, parse: netlink },
    Target { name: "uevent", seeds: uevent_seeds, parse: uevent },
    Target { name: "udev-rules", seeds: rules_seeds, parse: rules },
    Target { name: "udev-record", seeds: record_seeds, parse: record },
    Target { name: "pattern", seeds: pattern_seeds, parse: pattern },
    Target { name: "unit", seeds: unit_seeds, parse: unit },
];

/// A table: signature, length, and what follows the header.
fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table = vec![0; parse::HEADER_LEN];
    table[..4].copy_from_slice(signature);
    table.extend_from_slice(body);
    let len = table.len() as u32;
    table[4..8].copy_from_slice(&len.to_le_bytes());
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = 0_u8.wrapping_sub(sum);
    table
}

fn acpi_seeds() -> Vec<Vec<u8>> {
    // Two processors, an I/O APIC, an override.
    let madt = [
        &0xfee0_0000_u32.to_le_bytes()[..],
        &[1, 0, 0, 0],
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 1, 1, 0, 0, 0],
        &[1, 12, 2, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        &[2, 10, 0, 0, 2, 0, 0, 0, 13, 0],
    ]
    .concat();
    let mut mcfg = vec![0; 8];
    mcfg.extend_from_slice(&0xb000_0000_u64.to_le_bytes());
    mcfg.extend_from_slice(&[0, 0, 0, 255, 0, 0, 0, 0]);
    let hpet = [&[1, 0xa2, 0x86, 0x80, 0, 64, 0, 0][..], &0xfed0_0000_u64.to_le_bytes(), &[0; 4]].concat();
    let s5 = b"\x10\x10\x08_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00rest";
    let mut rsdp = b"RSD PTR \0URSA  \x02".to_vec();
    rsdp.extend_from_slice(&0x7fe0_0000_u32.to_le_bytes());
    rsdp.extend_from_slice(&36_u32.to_le_bytes());
    rsdp.extend_from_slice(&0x7fe0_1000_u64.to_le_bytes());
    rsdp.resize(36, 0);
    vec![
        table(b"APIC", &madt),
        table(b"MCFG", &mcfg),
        table(b"HPET", &hpet),
        table(b"DSDT", s5),
        table(b"FACP", &[3; 208]),
        rsdp,
    ]
}

/// Every reader looks at every table: which is which is only the signature's word.
fn acpi(bytes: &[u8]) {
    let _ = (parse::rsdp(bytes), parse::fadt(bytes), parse::hpet(bytes), parse::madt_lapic(bytes));
    if let Some((a, b)) = parse::s5(bytes) {
        assert!(a < 8 && b < 8);
    }
    // Entries take up bytes, so there is an end.
    assert!(parse::madt(bytes).count() <= bytes.len());
    for range in parse::mcfg(bytes) {
        assert!(range.base != 0 && range.first <= range.last);
    }
}

fn dmar_seeds() -> Vec<Vec<u8>> {
    let unit = [&[0, 0, 24, 0, 1, 0, 0, 0][..], &0xfed9_0000_u64.to_le_bytes(), &[3, 8, 0, 0, 0, 0xff, 0, 0]].concat();
    let reserved = [
        &[1, 0, 32, 0, 0, 0, 0, 0][..],
        &0x7000_0000_u64.to_le_bytes(),
        &0x7000_ffff_u64.to_le_bytes(),
        &[1, 8, 0, 0, 0, 0, 2, 0],
    ]
    .concat();
    vec![table(b"DMAR", &[&[39, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &unit, &reserved].concat())]
}

fn dmar_table(bytes: &[u8]) {
    let _ = dmar::flags(bytes);
    let mut scoped = 0;
    for structure in dmar::structures(bytes) {
        let scopes = match structure {
            dmar::Dmar::Unit { base, scopes, .. } => {
                assert!(base != 0);
                scopes
            }
            dmar::Dmar::Reserved { start, last, scopes, .. } => {
                assert!(start < last);
                scopes
            }
        };
        assert!(scopes.iter().all(|scope| !scope.path.is_empty()));
        scoped += scopes.len();
    }
    assert!(scoped <= bytes.len());
}

/// A disk of 512-byte blocks: 64 whose content is given, and more that read as zeroes.
struct Disk<'a> {
    bytes: &'a [u8],
    reads: usize,
}

const DISK_BLOCKS: u64 = 4096;

impl Sectors for Disk<'_> {
    type Error = std::convert::Infallible;

    fn block_size(&self) -> usize {
        512
    }

    fn blocks(&self) -> u64 {
        DISK_BLOCKS
    }

    fn read(&mut self, first: u64, into: &mut [u8]) -> Result<(), Self::Error> {
        assert!(into.len().is_multiple_of(512) && first + into.len() as u64 / 512 <= DISK_BLOCKS);
        self.reads += 1;
        into.fill(0);
        let from = usize::try_from(first).map_or(usize::MAX, |first| first * 512);
        if let Some(there) = self.bytes.get(from..) {
            let len = there.len().min(into.len());
            into[..len].copy_from_slice(&there[..len]);
        }
        Ok(())
    }
}

fn disk_seeds() -> Vec<Vec<u8>> {
    let entry = |kind: u8, start: u32, blocks: u32| {
        [&[0, 0, 2, 0, kind, 0, 0, 0][..], &start.to_le_bytes(), &blocks.to_le_bytes()].concat()
    };
    let mut mbr = vec![0; 512 * 40];
    mbr[446..462].copy_from_slice(&entry(0x83, 2, 8));
    mbr[462..478].copy_from_slice(&entry(0x05, 16, 24));
    mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
    // A chain of two logical partitions.
    let link = 16 * 512;
    mbr[link + 446..link + 462].copy_from_slice(&entry(0x83, 2, 4));
    mbr[link + 462..link + 478].copy_from_slice(&entry(0x05, 8, 8));
    mbr[link + 510..link + 512].copy_from_slice(&[0x55, 0xaa]);
    let next = 24 * 512;
    mbr[next + 446..next + 462].copy_from_slice(&entry(0x83, 1, 4));
    mbr[next + 510..next + 512].copy_from_slice(&[0x55, 0xaa]);
    let mut gpt = vec![0; 512 * 34];
    gpt[446..462].copy_from_slice(&entry(0xee, 1, 4095));
    gpt[510..512].copy_from_slice(&[0x55, 0xaa]);
    let entries = 2 * 512;
    gpt[entries..entries + 32].fill(0x5a);
    gpt[entries + 32..entries + 40].copy_from_slice(&40_u64.to_le_bytes());
    gpt[entries + 40..entries + 48].copy_from_slice(&99_u64.to_le_bytes());
    gpt[entries + 56..entries + 60].copy_from_slice(b"r\0o\0");
    let sum = crc32(&gpt[entries..entries + 128 * 128]);
    let header = 512;
    gpt[header..header + 8].copy_from_slice(b"EFI PART");
    gpt[header + 8..header + 16].copy_from_slice(&[0, 0, 1, 0, 92, 0, 0, 0]);
    for (at, value) in [(24, 1), (32, DISK_BLOCKS - 1), (40, 34), (48, DISK_BLOCKS - 34), (72, 2)] {
        gpt[header + at..header + at + 8].copy_from_slice(&u64::to_le_bytes(value));
    }
    for (at, value) in [(80, 128), (84, 128), (88, sum)] {
        gpt[header + at..header + at + 4].copy_from_slice(&u32::to_le_bytes(value));
    }
    let sum = crc32(&gpt[header..header + 92]);
    gpt[header + 16..header + 20].copy_from_slice(&sum.to_le_bytes());
    vec![mbr, gpt]
}

/// The checksum of a GPT.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum: u32, _| sum >> 1 ^ if sum & 1 != 0 { 0xedb8_8320 } else { 0 })
    })
}

fn partitions(bytes: &[u8]) {
    let mut disk = Disk { bytes, reads: 0 };
    let Ok(found) = partition_table::read(&mut disk);
    // A chain that goes in circles ends.
    assert!(disk.reads < 2000);
    for partition in found.iter().flat_map(|(_, partitions)| partitions) {
        assert!(partition.number > 0 && partition.blocks > 0);
        assert!(partition.start.checked_add(partition.blocks).is_some_and(|end| end <= DISK_BLOCKS), "{partition:?}");
    }
}

fn edid_seeds() -> Vec<Vec<u8>> {
    let mut base = vec![0; 256];
    base[..8].copy_from_slice(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    base[18..24].copy_from_slice(&[1, 4, 0x95, 52, 32, 0x78]);
    base[35..40].copy_from_slice(&[0x21, 0x08, 0, 0xd1, 0xc0]);
    // 1920x1080 at 60 Hz, limits, a name.
    base[54..72].copy_from_slice(&[
        0x02, 0x3a, 0x80, 0x18, 0x71, 0x38, 0x2d, 0x40, 0x58, 0x2c, 0x45, 0, 0xfd, 0x1e, 0x11, 0, 0, 0x1e,
    ]);
    base[72..90].copy_from_slice(&[0, 0, 0, 0xfd, 0, 50, 75, 30, 83, 17, 0, 10, 32, 32, 32, 32, 32, 32]);
    base[90..108].copy_from_slice(b"\0\0\0\xfc\0ursa\n        ");
    base[126] = 1;
    base[128..136].copy_from_slice(&[2, 3, 8, 0, 0x43, 0x90, 0x04, 0x03]);
    vec![base]
}

fn edid(bytes: &[u8]) {
    // With the sums made right, or hardly any mutation would get beyond them.
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(128) {
        let sum = block[..127].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        block[127] = 0_u8.wrapping_sub(sum);
    }
    for mode in drm_core::modes::of_edid(&bytes).unwrap_or_default() {
        assert!(mode.hdisplay > 0 && mode.vdisplay > 0 && mode.clock > 0, "{mode:?}");
        assert!(
            mode.hdisplay <= mode.hsync_start && mode.hsync_start <= mode.hsync_end && mode.hsync_end <= mode.htotal
        );
        assert!(
            mode.vdisplay <= mode.vsync_start && mode.vsync_start <= mode.vsync_end && mode.vsync_end <= mode.vtotal
        );
    }
}

fn netlink_seeds() -> Vec<Vec<u8>> {
    let mut message = Vec::new();
    put(&mut message, 1_u16, &[10, 0, 2, 15]);
    put(&mut message, 3_u16, b"eth0\0");
    put_u32(&mut message, 4_u16, 2);
    put(&mut message, 5_u16, &[0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    put(&mut message, 6_u16, &[0; 16]);
    vec![message]
}

fn netlink(bytes: &[u8]) {
    let Ok(attributes) = Attributes::parse(bytes) else { return };
    let mut held = 0;
    for kind in 0..16_u16 {
        held += attributes.get(kind).map_or(0, <[u8]>::len);
        let _ = (attributes.u32(kind), attributes.text(kind), attributes.ip(kind), attributes.mac(kind));
    }
    assert!(held <= bytes.len());
}

fn uevent_seeds() -> Vec<Vec<u8>> {
    let message = "add@/devices/a\0ACTION=add\0DEVPATH=/devices/a\0SUBSYSTEM=input\0SEQNUM=7\0MAJOR=13\0";
    vec![message.into()]
}

fn uevent(bytes: &[u8]) {
    if let Some(properties) = devd::monitor::parse(bytes) {
        assert!(properties.get("ACTION").is_some() && properties.get("DEVPATH").is_some());
    }
}

fn rules_seeds() -> Vec<Vec<u8>> {
    let rules = concat!(
        "ACTION==\"remove\", GOTO=\"end\"\n",
        "SUBSYSTEM==\"input\", ATTRS{name}==\"*[Mm]ouse*|track?all\", \\\n  ENV{ID_INPUT_MOUSE}=\"1\", TAG+=\"seat\"\n",
        "KERNEL==\"sd[a-z]*\", IMPORT{builtin}=\"path_id\", SYMLINK+=\"disk/by-path/$env{ID_PATH}-part%n\"\n",
        "TEST{0644}==\"uevent\", PROGRAM=\"/bin/true %k\", RESULT==\"x\", MODE=\"0660\", OWNER=\"root\", RUN+=\"/bin/sync\"\n",
        "ENV{A}!=\"?*\", ENV{B}==e\"\\x41\\n\", OPTIONS+=\"static_node=snd/seq, link_priority=-50\"\n",
        "LABEL=\"end\"\n",
    );
    vec![rules.into()]
}

fn rules(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (rules, problems) = devd::rules::parse::parse(&text);
    let lines = text.lines().count();
    assert!(rules.len() <= lines && problems.len() <= 2 * lines);
    for (at, rule) in rules.iter().enumerate() {
        // Only forwards, or a device's rules would never end.
        assert!(rule.goto.is_none_or(|to| to >= at && to < rules.len()));
    }
}

fn record_seeds() -> Vec<Vec<u8>> {
    vec![b"S:disk/by-id/x\nL:-50\nI:1234567\nE:ID_INPUT=1\nE:A=b=c\nG:seat\nQ:seat\nV:1\n".to_vec()]
}

fn record(bytes: &[u8]) {
    // A carriage return ends a line, too: values never hold one.
    let text = String::from_utf8_lossy(bytes).replace('\r', "\n");
    let read = devd::record::Record::parse(&text).text(true);
    // What was understood is understood the same again.
    assert_eq!(devd::record::Record::parse(&read).text(true), read);
}

fn pattern_seeds() -> Vec<Vec<u8>> {
    vec![
        b"*[a-cx]?\\*[!0-9]*\0input/event12".to_vec(),
        b"[[:alpha:]]*\0abc".to_vec(),
        b"\"a b\" c\\td\0\\x41\\101\\u00e4".to_vec(),
    ]
}

/// A pattern and a text, and the strings of rules.
fn pattern(bytes: &[u8]) {
    let at = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (pattern, text) = (&bytes[..at.min(64)], bytes.get(at + 1..).unwrap_or_default());
    let text = &text[..text.len().min(256)];
    if devd::text::fnmatch(pattern, text, false) {
        assert!(devd::text::fnmatch(pattern, text, true) || text.iter().any(u8::is_ascii_uppercase));
    }
    let pattern = String::from_utf8_lossy(pattern);
    let _ = (devd::text::words(&pattern), devd::text::unescape(&pattern), devd::text::encode(&pattern));
}

fn unit_seeds() -> Vec<Vec<u8>> {
    vec![
        b"exec = [\"/usr/bin/a\", \"-x\"]\nafter = [\"b\", \"devd\"]\nrequires = [\"b\"]\nrestart = \"always\"\n"
            .to_vec(),
        b"exec = [\"/b\"]\nkind = \"oneshot\"\noom-score-adj = -500\nrestart-delay-ms = 100\n".to_vec(),
    ]
}

fn unit(bytes: &[u8]) {
    let Ok(unit) = Unit::parse(&String::from_utf8_lossy(bytes)) else { return };
    assert!(unit.exec[0].starts_with('/'));
    let delay = unit.restart_delay(0);
    assert!((1..64).all(|restarts| unit.restart_delay(restarts) >= delay));
    let units: BTreeMap<String, Unit> = ["b", "devd", "self"].map(|name| (name.to_owned(), unit.clone())).into();
    if let Ok(order) = start_order(&units) {
        assert_eq!(order.len(), units.len());
    }
}
