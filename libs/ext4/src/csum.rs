//! Checksums of metadata.
//!
//! ext4's CRC-32C is the bare register: no inversion at either end. The library that computes it (with the processor's
//! instruction where there is one) inverts at both, so both are undone here.

/// The CRC-32C register after `bytes`, from `seed`.
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !::crc32c::crc32c_append(!seed, bytes)
}

/// The CRC-16 (polynomial 0x8005, reflected) of group descriptors before `metadata_csum`.
pub fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |crc, &byte| {
        (0..8).fold(crc ^ u16::from(byte), |crc, _| if crc & 1 != 0 { crc >> 1 ^ 0xa001 } else { crc >> 1 })
    })
}

/// What to compute when a block is about to be written: checksums inside blocks are brought up to date once a transaction,
/// not once a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockSum {
    /// Nothing, or it is kept by who changes the block.
    None,
    /// A leaf of a directory, or a block of one without a tree; the seed of its inode.
    DirLeaf(u32),
    /// A node of a directory's hash tree, with the offset of its entries.
    DirNode(u32, usize),
    /// A node of an extent tree.
    Extent(u32),
}

impl BlockSum {
    /// Stores the checksum.
    pub fn store(self, block: &mut [u8]) {
        if let Some((at, sum)) = self.compute(block) {
            block[at..at + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }

    /// Whether the checksum is right.
    pub fn verify(self, block: &[u8]) -> bool {
        match self.compute(block) {
            Some((at, sum)) => block[at..at + 4] == sum.to_le_bytes(),
            None => matches!(self, BlockSum::None),
        }
    }

    /// Where the checksum belongs and what it is; `None` where there is none or the block has no place for it.
    fn compute(self, block: &[u8]) -> Option<(usize, u32)> {
        use crate::disk::{dir, extent};
        match self {
            BlockSum::None => None,
            BlockSum::DirLeaf(seed) => {
                let end = block.len() - dir::TAIL;
                dir::has_tail(block).then(|| (block.len() - 4, crc32c(seed, &block[..end])))
            }
            BlockSum::DirNode(seed, base) => {
                let tail = base + 8 * dir::dx::limit(block, base);
                let end = base + 8 * dir::dx::count(block, base);
                if tail + 8 > block.len() || end > tail {
                    return None;
                }
                let sum = crc32c(crc32c(seed, &block[..end]), &block[tail..tail + 4]);
                Some((tail + 4, crc32c(sum, &[0; 4])))
            }
            BlockSum::Extent(seed) => {
                let end = extent::ENTRY * (extent::max(block) + 1);
                (end + 4 <= block.len()).then(|| (end, crc32c(seed, &block[..end])))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_bare() {
        // The check value of CRC-32C is 0xe3069283, with both inversions.
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        // CRC-16/ARC.
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }
}
