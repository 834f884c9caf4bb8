//! File handles: numbers that name a file of a file system, also when its path has changed.
//!
//! A handle has the type and shape that Linux gives it ([`HandleKind`]). The memory file systems here have no table of their inodes by
//! number, and need none: a handle of theirs means something only as long as the system runs, so every one that does was made
//! here, and what it was made for is remembered ([`MADE`]). Weakly: a file that is gone is `ESTALE`.
//!
//! Locking: `MADE` is a leaf spin lock; nothing that it names is dropped under it.
//! References: name_to_handle_at(2), open_by_handle_at(2), Linux `fs/fhandle.c`, `include/linux/exportfs.h`.

use alloc::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec::Vec,
};

use ursa_hal::sync::SpinLock;

use super::{
    dentry::Dentry,
    inode::{Inode, SuperBlock},
    mount::Mount,
    path::Path,
};
use crate::{Errno, Result};

/// `MAX_HANDLE_SZ`
pub const MAX_LEN: usize = 128;
/// Remembered files beyond which those that are gone are looked for first.
const PRUNE_FROM: usize = 1024;

/// How a file system's handles look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandleKind {
    /// tmpfs: `FILEID_INO32_GEN` with the generation and both halves of the number.
    Shmem,
    /// sysfs and cgroup2: `FILEID_KERNFS` with the number.
    Kernfs,
    /// Of any other, to compare with and not to open: `FILEID_INO64_GEN`.
    Other,
}

impl HandleKind {
    fn file_id(self) -> i32 {
        match self {
            HandleKind::Shmem => 1,
            HandleKind::Kernfs => 0xfe,
            HandleKind::Other => 0x81,
        }
    }

    fn bytes(self, ino: u64) -> Vec<u8> {
        // Numbers are not used again here, so all are of the first generation.
        const GENERATION: [u8; 4] = [0; 4];
        match self {
            HandleKind::Shmem => [&GENERATION[..], &ino.to_ne_bytes()].concat(),
            HandleKind::Kernfs => ino.to_ne_bytes().to_vec(),
            HandleKind::Other => [&ino.to_ne_bytes()[..], &GENERATION].concat(),
        }
    }

    fn ino(self, bytes: &[u8]) -> Option<u64> {
        let number = match self {
            HandleKind::Shmem => bytes.get(4..12)?,
            HandleKind::Kernfs => bytes.get(..8)?,
            HandleKind::Other => return None,
        };
        number.try_into().ok().map(u64::from_ne_bytes)
    }
}

struct Made {
    inode: Weak<Inode>,
    dentry: Weak<Dentry>,
}

/// Files with a handle, by device and number.
static MADE: SpinLock<BTreeMap<(u32, u64), Made>> = SpinLock::new(BTreeMap::new());

/// Makes the handle of what is at `path`: its type and bytes. `only_compared`: nobody will open by it (`AT_HANDLE_FID`).
///
/// # Errors
/// `EOPNOTSUPP` for a file system whose files cannot be opened so.
pub fn make(path: &Path, only_compared: bool) -> Result<(i32, Vec<u8>)> {
    let inode = path.inode()?;
    let kind = match inode.sb.ops().handle_kind() {
        Some(kind) => kind,
        None if only_compared => HandleKind::Other,
        None => return Err(Errno::EOPNOTSUPP),
    };
    if !only_compared {
        remember(inode, &path.dentry);
    }
    Ok((kind.file_id(), kind.bytes(inode.ino)))
}

fn remember(inode: &Arc<Inode>, dentry: &Arc<Dentry>) {
    let made = Made { inode: Arc::downgrade(inode), dentry: Arc::downgrade(dentry) };
    let mut gone = Vec::new();
    {
        let mut map = MADE.lock();
        // Each look over all pays for as many that are added.
        if map.len() >= PRUNE_FROM && map.len().is_power_of_two() {
            let dead: Vec<(u32, u64)> =
                map.iter().filter(|(_, made)| made.inode.strong_count() == 0).map(|(key, _)| *key).collect();
            gone.extend(dead.iter().filter_map(|key| map.remove(key)));
        }
        gone.extend(map.insert((inode.sb.dev, inode.ino), made));
    }
    drop(gone);
}

/// Finds the file that a handle names in the file system of `mount`.
///
/// # Errors
/// `ESTALE` when it names none, or none any more.
pub fn find(mount: &Arc<Mount>, file_id: i32, bytes: &[u8]) -> Result<Path> {
    let sb: &Arc<SuperBlock> = &mount.sb;
    let kind = sb.ops().handle_kind().filter(|kind| kind.file_id() == file_id).ok_or(Errno::ESTALE)?;
    let ino = kind.ino(bytes).ok_or(Errno::ESTALE)?;
    let (inode, dentry) = {
        let map = MADE.lock();
        let made = map.get(&(sb.dev, ino)).ok_or(Errno::ESTALE)?;
        (made.inode.upgrade(), made.dentry.upgrade())
    };
    let inode = inode.filter(|inode| Arc::ptr_eq(&inode.sb, sb)).ok_or(Errno::ESTALE)?;
    let dentry = match dentry {
        Some(dentry) => dentry,
        // Its name is not in the cache any more, or it has another: it is found without.
        None => Dentry::new_detached(&mount.root, b"", inode, false),
    };
    Ok(Path { mount: mount.clone(), dentry })
}
