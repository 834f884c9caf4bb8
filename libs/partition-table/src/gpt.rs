//! GUID partition tables: the primary one, or its copy at the end of the disk.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::{Partition, Sectors, guid, u32_at, u64_at};

const SIGNATURE: &[u8] = b"EFI PART";
const HEADER_MIN: usize = 92;
const ENTRY_MIN: usize = 128;
const NAME: core::ops::Range<usize> = 56..128;
/// The most bytes of entries: eight times what any tool writes.
const ENTRIES_MAX: usize = 128 << 10;

/// The partitions of the first table that is whole.
pub fn read<S: Sectors>(disk: &mut S) -> Result<Option<Vec<Partition>>, S::Error> {
    match table(disk, 1)? {
        Some(found) => Ok(Some(found)),
        None => table(disk, disk.blocks() - 1),
    }
}

fn table<S: Sectors>(disk: &mut S, at: u64) -> Result<Option<Vec<Partition>>, S::Error> {
    let (block, blocks) = (disk.block_size(), disk.blocks());
    let mut header = vec![0; block];
    disk.read(at, &mut header)?;
    let size = u32_at(&header, 12) as usize;
    if !header.starts_with(SIGNATURE) || !(HEADER_MIN..=block).contains(&size) || u64_at(&header, 24) != at {
        return Ok(None);
    }
    let sum = u32_at(&header, 16);
    header[16..20].fill(0);
    if crc32fast::hash(&header[..size]) != sum {
        return Ok(None);
    }
    let (first, last) = (u64_at(&header, 40), u64_at(&header, 48));
    let (entries_at, count, entry) = (u64_at(&header, 72), u32_at(&header, 80) as usize, u32_at(&header, 84) as usize);
    let bytes = count.checked_mul(entry).filter(|bytes| (1..=ENTRIES_MAX).contains(bytes));
    let Some(bytes) = bytes.filter(|_| entry >= ENTRY_MIN && first <= last && last < blocks) else { return Ok(None) };
    let whole = bytes.next_multiple_of(block);
    if entries_at.checked_add((whole / block) as u64).is_none_or(|end| end > blocks) {
        return Ok(None);
    }
    let mut entries = vec![0; whole];
    disk.read(entries_at, &mut entries)?;
    if crc32fast::hash(&entries[..bytes]) != u32_at(&header, 88) {
        return Ok(None);
    }
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(entries[..bytes].chunks_exact(entry)) {
        let (start, end) = (u64_at(entry, 32), u64_at(entry, 40));
        if entry[..16].iter().all(|byte| *byte == 0) || start < first || end > last || start > end {
            continue;
        }
        let units = entry[NAME].chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        let name: String = char::decode_utf16(units.take_while(|unit| *unit != 0))
            .map(|c| c.ok().filter(|c| !c.is_control()).unwrap_or('!'))
            .collect();
        found.push(Partition { number, start, blocks: end - start + 1, uuid: guid(&entry[16..32]), name });
    }
    Ok(Some(found))
}
