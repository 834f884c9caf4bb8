//! Master boot records, with chains of extended partitions.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::{Partition, Sectors, u16_at, u32_at};

const ENTRIES: usize = 446;
const ENTRY: usize = 16;
const SIGNATURE: u16 = 0xaa55;
const PROTECTIVE: u8 = 0xee;
/// The most logical partitions, as Linux has it (`state->limit`): a chain in circles ends here too.
const LOGICAL_MAX: u32 = 256;

struct Entry {
    kind: u8,
    start: u32,
    sectors: u32,
}

fn entry(block: &[u8], index: usize) -> Entry {
    let at = ENTRIES + ENTRY * index;
    let kind = block.get(at + 4).copied().unwrap_or(0);
    Entry { kind, start: u32_at(block, at + 8), sectors: u32_at(block, at + 12) }
}

fn is_extended(kind: u8) -> bool {
    matches!(kind, 0x05 | 0x0f | 0x85)
}

/// Whether this is an MBR and no boot sector of a file system, which has the same signature.
pub fn is_mbr(block: &[u8]) -> bool {
    u16_at(block, 510) == SIGNATURE && (0..4).all(|index| matches!(block.get(ENTRIES + ENTRY * index), Some(0 | 0x80)))
}

/// Whether it stands before a GPT.
pub fn is_protective(block: &[u8]) -> bool {
    (0..4).any(|index| entry(block, index).kind == PROTECTIVE)
}

struct Found<'a> {
    id: u32,
    blocks: u64,
    list: &'a mut Vec<Partition>,
}

impl Found<'_> {
    fn add(&mut self, number: u32, start: u64, blocks: u64) {
        // What ends beyond the disk is cut, as Linux does.
        if blocks == 0 || start >= self.blocks {
            return;
        }
        let blocks = blocks.min(self.blocks - start);
        let uuid = format!("{:08x}-{number:02x}", self.id);
        self.list.push(Partition { number, start, blocks, uuid, name: String::new() });
    }
}

/// The partitions of the table in `first`.
pub fn read<S: Sectors>(disk: &mut S, first: &[u8]) -> Result<Vec<Partition>, S::Error> {
    let mut list = Vec::new();
    let mut found = Found { id: u32_at(first, 440), blocks: disk.blocks(), list: &mut list };
    let mut logical = 5;
    for index in 0..4 {
        let part = entry(first, index);
        if part.kind == 0 || part.sectors == 0 {
            continue;
        }
        let (start, blocks) = (u64::from(part.start), u64::from(part.sectors));
        if !is_extended(part.kind) {
            found.add(index as u32 + 1, start, blocks);
            continue;
        }
        // Large enough for a boot loader, as on Linux: the container itself holds no data.
        found.add(index as u32 + 1, start, blocks.min((1024 / disk.block_size() as u64).max(1)));
        extended(disk, start, &mut found, &mut logical)?;
    }
    Ok(list)
}

/// Follows a chain of extended boot records; each has one logical partition and a link to the next.
fn extended<S: Sectors>(disk: &mut S, base: u64, found: &mut Found<'_>, next: &mut u32) -> Result<(), S::Error> {
    let mut at = base;
    let mut block = vec![0; disk.block_size()];
    let mut links = 0;
    while *next < LOGICAL_MAX && links < LOGICAL_MAX && at < disk.blocks() {
        links += 1;
        disk.read(at, &mut block)?;
        if u16_at(&block, 510) != SIGNATURE {
            break;
        }
        let mut link = None;
        for index in 0..4 {
            let part = entry(&block, index);
            if part.sectors == 0 {
                continue;
            }
            if is_extended(part.kind) {
                link = link.or(Some(base.saturating_add(part.start.into())));
            } else if part.kind != 0 {
                found.add(*next, at.saturating_add(part.start.into()), part.sectors.into());
                *next += 1;
            }
        }
        match link {
            // Links lead forwards.
            Some(link) if link > at => at = link,
            _ => break,
        }
    }
    Ok(())
}
