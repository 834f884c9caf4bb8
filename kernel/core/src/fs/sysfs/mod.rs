//! sysfs: the kernel's objects as a tree of directories, links and attributes.
//!
//! A plain tree: names, links, attribute files and their poll events, no policy. [`Directory`] is a directory that its owner
//! fills and empties ([`tree`]); [`File`] an attribute file ([`mod@file`]). Devices put themselves into it through
//! [`crate::device`]; what only the
//! kernel knows (processors, memory, its own state) is put there by [`cpu`] and [`system`]. One instance, which
//! every mount shares.
//!
//! Programs may read and write attributes as their modes say, and change mode and owner, as on Linux; they create and
//! remove nothing.
//!
//! Locking: a directory's entries are under its inode's sleeping lock for changes (so that a lookup sees either the old or the
//! new state, in the cache of names too) and a spin lock for the table itself. Attribute owners are called without locks.
//!
//! References: sysfs(5), `Documentation/filesystems/sysfs.rst`, `fs/kernfs/`.

pub mod cpu;
mod file;
pub mod system;
mod tree;

use alloc::{boxed::Box, sync::Arc};

pub use file::{Attribute, BinaryAttribute, File, Value};
pub use tree::Directory;
use ursa_hal::sync::Once;

use super::handle::HandleKind;
use super::inode::{FileSystem, FsStat, SbFlags, SuperBlock, SuperBlockParams, SuperOps};
use crate::{Errno, Result};

/// `SYSFS_MAGIC`
pub const MAGIC: u64 = 0x6265_6572;

/// The longest text of an attribute, and the size that `stat` reports for it.
pub const ATTRIBUTE_SIZE: usize = 4096;

struct Sys {
    sb: Arc<SuperBlock>,
    root: Arc<Directory>,
}

fn instance() -> &'static Sys {
    static INSTANCE: Once<Sys> = Once::new();
    INSTANCE.call_once(|| {
        let params = SuperBlockParams {
            fs_name: "sysfs",
            magic: MAGIC,
            attributes_expire: false,
            cache_negative: false,
            flags: SbFlags::NOEXEC,
        };
        let sb = SuperBlock::new(params, Box::new(SysSuper));
        // The kernel's own reference: it outlives every mount.
        sb.mounts.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        let (root, inode) = Directory::new_root(&sb);
        sb.set_root(inode);
        Sys { sb, root }
    })
}

/// The root directory.
pub fn root() -> &'static Arc<Directory> {
    &instance().root
}

/// The root's entry in the cache of names; for tests.
///
/// # Errors
/// None: the file system never ends.
pub(crate) fn root_dentry() -> Result<Arc<super::Dentry>> {
    instance().sb.root()
}

/// The directory at `path` below the mount point (`devices/system/cpu`), made with all above it where it is missing.
///
/// # Errors
/// `ENOTDIR` when a component is a file or a link.
pub fn directory(path: &str) -> Result<Arc<Directory>> {
    path.split('/').filter(|part| !part.is_empty()).try_fold(root().clone(), |at, part| at.make_or_find(part))
}

/// The directory at `path`, if it is there.
pub fn find(path: &str) -> Option<Arc<Directory>> {
    path.split('/').filter(|part| !part.is_empty()).try_fold(root().clone(), |at, part| at.directory(part))
}

struct SysSuper;

impl SuperOps for SysSuper {
    fn handle_kind(&self) -> Option<HandleKind> {
        Some(HandleKind::Kernfs)
    }

    fn statfs(&self, _sb: &SuperBlock) -> Result<FsStat> {
        Ok(FsStat { magic: MAGIC, block_size: ATTRIBUTE_SIZE as u64, name_max: 255, ..FsStat::default() })
    }
}

/// The type `sysfs`.
pub struct SysFs;

impl FileSystem for SysFs {
    fn name(&self) -> &'static str {
        "sysfs"
    }

    fn mount(&self, _source: &[u8], _flags: SbFlags, data: &[u8]) -> Result<Arc<SuperBlock>> {
        // It has no options of its own.
        if data.iter().any(|b| *b != 0 && *b != b',') {
            return Err(Errno::EINVAL);
        }
        Ok(instance().sb.clone())
    }
}

/// Registers the type and makes the directories that every `/sys` has.
///
/// # Errors
/// None in practice: the tree is empty.
pub fn init() -> Result {
    super::registry::register(Arc::new(SysFs));
    for path in ["block", "bus", "class", "dev/block", "dev/char", "devices", "firmware", "fs/cgroup", "module"] {
        directory(path)?;
    }
    for path in ["kernel", "power", "devices/virtual", "devices/system"] {
        directory(path)?;
    }
    system::init()
}
