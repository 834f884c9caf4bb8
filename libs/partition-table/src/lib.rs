//! GPT and MBR partition tables, as Linux reads them.
//!
//! What a disk says is not trusted: every number is checked against the disk's size, tables have a largest size, chains
//! of extended partitions an end. The caller brings the sectors ([`Sectors`]).
//!
//! References: UEFI 2.10, 5.2 and 5.3; Linux `block/partitions/{efi,msdos}.c`.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

mod gpt;
mod mbr;
#[cfg(test)]
mod tests;

/// A disk to read from.
pub trait Sectors {
    /// What reading can fail with.
    type Error;
    /// Bytes of a logical block: a power of two, at least 512.
    fn block_size(&self) -> usize;
    /// Logical blocks on the disk.
    fn blocks(&self) -> u64;
    /// Reads whole blocks from block `first` on.
    ///
    /// # Errors
    /// The disk's.
    fn read(&mut self, first: u64, into: &mut [u8]) -> Result<(), Self::Error>;
}

/// The kind of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// GUID partition table.
    Gpt,
    /// Master boot record.
    Mbr,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// First logical block.
    pub start: u64,
    /// Logical blocks.
    pub blocks: u64,
    /// `PARTUUID` as Linux writes it.
    pub uuid: String,
    /// Its name (GPT).
    pub name: String,
}

/// Reads the disk's table; `None` when there is none.
///
/// # Errors
/// The disk's.
pub fn read<S: Sectors>(disk: &mut S) -> Result<Option<(Kind, Vec<Partition>)>, S::Error> {
    if disk.blocks() < 2 || disk.block_size() < 512 {
        return Ok(None);
    }
    let mut first = vec![0; disk.block_size()];
    disk.read(0, &mut first)?;
    if !mbr::is_mbr(&first) {
        return Ok(None);
    }
    if mbr::is_protective(&first) {
        return Ok(gpt::read(disk)?.map(|partitions| (Kind::Gpt, partitions)));
    }
    let partitions = mbr::read(disk, &first)?;
    Ok((!partitions.is_empty()).then_some((Kind::Mbr, partitions)))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// A GUID in its text form, from its mixed-endian bytes.
fn guid(bytes: &[u8]) -> String {
    let tail: String = bytes.get(8..16).unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect();
    let (clock, node) = tail.split_at(tail.len().min(4));
    format!("{:08x}-{:04x}-{:04x}-{clock}-{node}", u32_at(bytes, 0), u16_at(bytes, 4), u16_at(bytes, 6))
}
