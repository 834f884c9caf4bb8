//! Block maps of ext2 and ext3: twelve blocks, then one, two and three levels of blocks of numbers. Read only.

use std::sync::Arc;

use rustix::io::Errno;

use crate::disk::le32;
use crate::error::{Error, Result};
use crate::fs::Geometry;

/// The block on the disk of a file's block; 0 for a hole.
///
/// # Errors
/// [`Error::Corrupt`], `EFBIG`, or what `read` reports.
pub(crate) fn lookup(
    geo: &Geometry,
    i_block: &[u8; 60],
    lblk: u32,
    read: &mut dyn FnMut(u64) -> Result<Arc<[u8]>>,
) -> Result<u64> {
    let per = geo.block_size as u64 / 4;
    let mut index = u64::from(lblk);
    let (mut slot, mut levels) = (index as usize, 0);
    if index >= 12 {
        index -= 12;
        let mut span = per;
        (slot, levels) = (12, 1);
        while index >= span {
            index -= span;
            span *= per;
            slot += 1;
            levels += 1;
        }
        if levels > 3 {
            return Err(Errno::FBIG.into());
        }
    }
    let mut block = u64::from(le32(i_block, slot * 4));
    for level in (0..levels).rev() {
        if block == 0 {
            return Ok(0);
        }
        if !geo.is_inside(block, 1) {
            return Err(Error::Corrupt("indirect block", block));
        }
        let at = index / per.pow(level) % per;
        block = le32(&read(block)?, at as usize * 4).into();
    }
    if block != 0 && !geo.is_inside(block, 1) {
        return Err(Error::Corrupt("block number", block));
    }
    Ok(block)
}
