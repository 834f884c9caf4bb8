//! Extended attributes for the kernel's own use: file capabilities.

use alloc::vec::Vec;

use super::inode::Inode;
use crate::Result;

/// The value of `name`, without permission checks.
///
/// # Errors
/// `ENODATA`, `EOPNOTSUPP`, and what the file system reports.
pub fn get(inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
    inode.ops().getxattr(inode, name)
}
