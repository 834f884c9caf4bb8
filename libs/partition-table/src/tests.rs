//! Tables made by hand, whole and damaged. That Debian's tools make the same ones is tested in guests.

use super::*;

const DISK: usize = 1 << 20;
const LAST: u64 = (DISK / 512 - 1) as u64;

struct Memory {
    bytes: Vec<u8>,
    block: usize,
}

impl Sectors for Memory {
    type Error = ();
    fn block_size(&self) -> usize {
        self.block
    }
    fn blocks(&self) -> u64 {
        (self.bytes.len() / self.block) as u64
    }
    fn read(&mut self, first: u64, into: &mut [u8]) -> Result<(), ()> {
        let at = first as usize * self.block;
        into.copy_from_slice(self.bytes.get(at..at + into.len()).ok_or(())?);
        Ok(())
    }
}

impl Memory {
    fn new() -> Memory {
        Memory { bytes: vec![0; DISK], block: 512 }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Entry `index` of the boot record at `block`.
    fn mbr(&mut self, block: usize, index: usize, kind: u8, start: u32, size: u32) {
        self.put(block * 512 + 510, &[0x55, 0xaa]);
        let entry = block * 512 + 446 + 16 * index;
        self.put(entry + 4, &[kind]);
        self.put(entry + 8, &start.to_le_bytes());
        self.put(entry + 12, &size.to_le_bytes());
    }

    /// A header at `at` for the entries at `entries`.
    fn gpt_header(&mut self, at: u64, entries: u64) {
        let base = at as usize * 512;
        self.put(base, b"EFI PART");
        for (offset, value) in [(8, 0x10000_u32), (12, 92), (16, 0), (80, 128), (84, 128)] {
            self.put(base + offset, &value.to_le_bytes());
        }
        for (offset, value) in [(24, at), (32, LAST + 1 - at), (40, 34), (48, LAST - 33), (72, entries)] {
            self.put(base + offset, &value.to_le_bytes());
        }
        let from = entries as usize * 512;
        let sum = crc32fast::hash(&self.bytes[from..from + 128 * 128]);
        self.put(base + 88, &sum.to_le_bytes());
        let sum = crc32fast::hash(&self.bytes[base..base + 92]);
        self.put(base + 16, &sum.to_le_bytes());
    }

    fn gpt_entry(&mut self, at: usize, uuid: [u8; 16], first: u64, last: u64, name: &str) {
        self.put(at, &[0xaf; 16]);
        self.put(at + 16, &uuid);
        self.put(at + 32, &first.to_le_bytes());
        self.put(at + 40, &last.to_le_bytes());
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        self.put(at + 56, &name);
    }
}

fn gpt() -> Memory {
    let mut disk = Memory::new();
    disk.mbr(0, 0, 0xee, 1, LAST as u32);
    let uuid = [0x11, 0x11, 0x11, 0x11, 0x22, 0x22, 0x33, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb];
    for entries in [2, LAST - 32] {
        let at = entries as usize * 512;
        disk.gpt_entry(at, uuid, 64, 1063, "root");
        disk.gpt_entry(at + 2 * 128, [1; 16], 1064, 1163, "");
        // Beyond what the header allows.
        disk.gpt_entry(at + 3 * 128, [2; 16], 1164, LAST, "bad");
    }
    disk.gpt_header(1, 2);
    disk.gpt_header(LAST, LAST - 32);
    disk
}

#[test]
fn gpt_is_read() {
    let (kind, found) = read(&mut gpt()).unwrap().unwrap();
    assert_eq!(kind, Kind::Gpt);
    assert_eq!((found[0].number, found[0].start, found[0].blocks), (1, 64, 1000));
    assert_eq!((found[0].name.as_str(), found[0].uuid.as_str()), ("root", "11111111-2222-3333-4455-66778899aabb"));
    assert_eq!((found[1].number, found[1].start, found[1].blocks), (3, 1064, 100));
    assert_eq!(found.len(), 2);
}

#[test]
fn the_copy_stands_in_for_a_damaged_table() {
    let mut disk = gpt();
    let whole = read(&mut disk).unwrap();
    disk.bytes[512 + 60] ^= 1;
    assert_eq!(read(&mut disk).unwrap(), whole);
    disk.bytes[LAST as usize * 512 + 60] ^= 1;
    assert_eq!(read(&mut disk).unwrap(), None);
}

#[test]
fn mbr_with_logical_partitions_is_read() {
    let mut disk = Memory::new();
    disk.put(440, &0x1234_5678_u32.to_le_bytes());
    disk.mbr(0, 0, 0x83, 64, 1000);
    disk.mbr(0, 1, 5, 1100, 900);
    disk.mbr(1100, 0, 0x83, 10, 100);
    disk.mbr(1100, 1, 5, 300, 200);
    disk.mbr(1400, 0, 0x83, 10, 5000);
    let (kind, found) = read(&mut disk).unwrap().unwrap();
    assert_eq!(kind, Kind::Mbr);
    let seen: Vec<_> = found.iter().map(|p| (p.number, p.start, p.blocks)).collect();
    assert_eq!(seen, [(1, 64, 1000), (2, 1100, 2), (5, 1110, 100), (6, 1410, LAST + 1 - 1410)]);
    assert_eq!(found[0].uuid, "12345678-01");
}

#[test]
fn no_table_is_none() {
    let mut disk = Memory::new();
    assert_eq!(read(&mut disk).unwrap(), None);
    // A FAT boot sector has the signature and no table.
    disk.put(510, &[0x55, 0xaa]);
    disk.bytes[446] = 0x72;
    assert_eq!(read(&mut disk).unwrap(), None);
}

#[test]
fn extended_partitions_in_circles_end() {
    let mut disk = Memory::new();
    disk.mbr(0, 0, 5, 10, 100);
    disk.mbr(10, 0, 5, 0, 100);
    let (_, found) = read(&mut disk).unwrap().unwrap();
    assert_eq!(found.len(), 1);
}

#[test]
fn damage_anywhere_never_panics() {
    let whole = gpt();
    let mut seed = 1_u32;
    for _ in 0..2000 {
        let mut disk = Memory { bytes: whole.bytes.clone(), block: 512 };
        for _ in 0..4 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (seed >> 8) as usize % (34 * 512);
            disk.bytes[at] = (seed >> 3) as u8;
        }
        let _ = read(&mut disk);
    }
}
