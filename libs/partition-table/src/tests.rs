//! Tables as sfdisk writes them, and damaged ones.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

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

/// A disk of 8 MiB with a table by sfdisk; `None` where there is no sfdisk.
fn sfdisk(script: &str) -> Option<Memory> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("partition-table-{}-{number}", std::process::id()));
    std::fs::write(&file, vec![0; 8 << 20]).unwrap();
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let child = Command::new("sfdisk")
        .env("PATH", path)
        .arg("-q")
        .arg(&file)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn();
    let bytes = child.ok().map(|mut child| {
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "sfdisk");
        std::fs::read(&file).unwrap()
    });
    std::fs::remove_file(&file).unwrap();
    Some(Memory { bytes: bytes?, block: 512 })
}

fn gpt() -> Option<Memory> {
    sfdisk(
        "label: gpt\nstart=2048, size=2048, name=\"root\", uuid=11111111-2222-3333-4455-66778899aabb\nstart=4096, size=100\n",
    )
}

#[test]
fn gpt_is_read() {
    let Some(mut disk) = gpt() else { return };
    let (kind, found) = read(&mut disk).unwrap().unwrap();
    assert_eq!(kind, Kind::Gpt);
    assert_eq!((found[0].number, found[0].start, found[0].blocks), (1, 2048, 2048));
    assert_eq!((found[0].name.as_str(), found[0].uuid.as_str()), ("root", "11111111-2222-3333-4455-66778899aabb"));
    assert_eq!((found[1].number, found[1].start, found[1].blocks), (2, 4096, 100));
    assert_eq!(found.len(), 2);
}

#[test]
fn the_copy_stands_in_for_a_damaged_table() {
    let Some(mut disk) = gpt() else { return };
    let whole = read(&mut disk).unwrap();
    disk.bytes[512 + 60] ^= 1;
    assert_eq!(read(&mut disk).unwrap(), whole);
    let end = disk.bytes.len();
    disk.bytes[end - 512 + 60] ^= 1;
    assert_eq!(read(&mut disk).unwrap(), None);
}

#[test]
fn mbr_with_logical_partitions_is_read() {
    let script = "label: dos\nlabel-id: 0x12345678\nstart=2048, size=1024, type=83\nstart=4096, type=5\nstart=4200, size=100, type=83\nstart=4400, size=200, type=83\n";
    let Some(mut disk) = sfdisk(script) else { return };
    let (kind, found) = read(&mut disk).unwrap().unwrap();
    assert_eq!(kind, Kind::Mbr);
    let seen: Vec<_> = found.iter().map(|p| (p.number, p.start, p.blocks)).collect();
    assert_eq!(seen, [(1, 2048, 1024), (2, 4096, 2), (5, 4200, 100), (6, 4400, 200)]);
    assert_eq!(found[0].uuid, "12345678-01");
}

#[test]
fn no_table_is_none() {
    let mut disk = Memory { bytes: vec![0; 1 << 20], block: 512 };
    assert_eq!(read(&mut disk).unwrap(), None);
    // A FAT boot sector has the signature and no table.
    disk.bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk.bytes[446] = 0x72;
    assert_eq!(read(&mut disk).unwrap(), None);
}

#[test]
fn extended_partitions_in_circles_end() {
    let mut disk = Memory { bytes: vec![0; 1 << 20], block: 512 };
    let mut put = |at: usize, kind: u8, start: u32, size: u32| {
        disk.bytes[at * 512 + 510..at * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
        let entry = at * 512 + 446;
        disk.bytes[entry + 4] = kind;
        disk.bytes[entry + 8..entry + 12].copy_from_slice(&start.to_le_bytes());
        disk.bytes[entry + 12..entry + 16].copy_from_slice(&size.to_le_bytes());
    };
    put(0, 5, 10, 100);
    put(10, 5, 0, 100);
    let (_, found) = read(&mut disk).unwrap().unwrap();
    assert_eq!(found.len(), 1);
}

#[test]
fn damage_anywhere_never_panics() {
    let Some(whole) = gpt() else { return };
    let mut seed = 1_u32;
    for _ in 0..3000 {
        let mut disk = Memory { bytes: whole.bytes.clone(), block: 512 };
        for _ in 0..4 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (seed >> 8) as usize % (34 * 512);
            disk.bytes[at] = (seed >> 3) as u8;
        }
        let _ = read(&mut disk);
    }
}
