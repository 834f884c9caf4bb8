//! Extended attributes of a tmpfs inode: a sorted list, made when the first is set.

use alloc::{boxed::Box, vec::Vec};

use linux_uapi::raw::general as uapi;
use ursa_hal::sync::SpinLock;

use crate::{Errno, Result};

/// All attributes of one inode may hold this many bytes, names included (as ext4's block).
const MAX_BYTES: usize = 64 * 1024;

type List = Vec<(Box<[u8]>, Box<[u8]>)>;

/// The attributes of an inode.
pub struct Xattrs(SpinLock<List>);

impl Xattrs {
    /// None.
    pub const fn new() -> Self {
        Self(SpinLock::new(Vec::new()))
    }

    /// The value of `name`.
    pub fn get(&self, name: &[u8]) -> Result<Vec<u8>> {
        let list = self.0.lock();
        let at = list.binary_search_by(|(n, _)| (**n).cmp(name)).map_err(|_| Errno::ENODATA)?;
        Ok(list[at].1.to_vec())
    }

    /// Sets `name`, within the meaning of `XATTR_CREATE` and `XATTR_REPLACE`.
    pub fn set(&self, name: &[u8], value: &[u8], flags: u32) -> Result {
        let new: (Box<[u8]>, Box<[u8]>) = (Box::from(name), Box::from(value));
        let mut list = self.0.lock();
        let used: usize = list.iter().map(|(n, v)| n.len() + v.len()).sum();
        let old = match list.binary_search_by(|(n, _)| (**n).cmp(name)) {
            Ok(_) if flags & uapi::XATTR_CREATE != 0 => return Err(Errno::EEXIST),
            Ok(at) => {
                if used - list[at].1.len() + value.len() > MAX_BYTES {
                    return Err(Errno::ENOSPC);
                }
                Some(core::mem::replace(&mut list[at], new))
            }
            Err(_) if flags & uapi::XATTR_REPLACE != 0 => return Err(Errno::ENODATA),
            Err(at) => {
                if used + name.len() + value.len() > MAX_BYTES {
                    return Err(Errno::ENOSPC);
                }
                list.insert(at, new);
                None
            }
        };
        drop(list);
        drop(old);
        Ok(())
    }

    /// The names, each with a NUL behind.
    pub fn list(&self) -> Vec<u8> {
        let list = self.0.lock();
        let mut out = Vec::new();
        for (name, _) in list.iter() {
            out.extend_from_slice(name);
            out.push(0);
        }
        out
    }

    /// Removes `name`.
    pub fn remove(&self, name: &[u8]) -> Result {
        let mut list = self.0.lock();
        let at = list.binary_search_by(|(n, _)| (**n).cmp(name)).map_err(|_| Errno::ENODATA)?;
        let old = list.remove(at);
        drop(list);
        drop(old);
        Ok(())
    }
}
