//! Paths for files that have none: pipes, sockets, epoll, memfds … as `/proc/PID/fd/N` leads to them.
//!
//! Such a file gets a dentry outside every directory, on a mount that is attached nowhere. Its inode reports the file's
//! own attributes and opens it again where that has a meaning (a pipe through `/dev/stdin`).

use alloc::{boxed::Box, string::String, sync::Arc};
use core::fmt::Write;

use ursa_hal::sync::Once;

use super::{
    dentry::Dentry,
    file::{File, FileOps},
    inode::{Attr, FsStat, Inode, InodeOps, NewInode, SbFlags, SuperBlock, SuperBlockParams, SuperOps, Time},
    mount::{Mount, MountFlags},
    path::Path,
    syscall::file_stat,
};
use crate::{Errno, Result};

/// `ANON_INODE_FS_MAGIC`
const ANON_MAGIC: u64 = 0x0904_1934;
/// `PIPEFS_MAGIC`
const PIPE_MAGIC: u64 = 0x5049_5045;
/// `SOCKFS_MAGIC`
const SOCK_MAGIC: u64 = 0x534f_434b;

struct AnonFs(u64);

impl SuperOps for AnonFs {
    fn statfs(&self, _sb: &SuperBlock) -> Result<FsStat> {
        Ok(FsStat { magic: self.0, block_size: 4096, name_max: 255, ..FsStat::default() })
    }
}

/// The inode of a file without one.
struct AnonNode {
    file: Arc<File>,
}

impl InodeOps for AnonNode {
    fn fill_attr(&self, _inode: &Inode, attr: &mut Attr) {
        let Ok(stat) = file_stat(&self.file) else { return };
        attr.ino = stat.st_ino;
        attr.mode = stat.st_mode;
        attr.nlink = stat.st_nlink as u32;
        attr.uid = stat.st_uid;
        attr.gid = stat.st_gid;
        attr.size = stat.st_size as u64;
        attr.blocks = stat.st_blocks as u64;
        attr.btime = None;
        for (to, sec, nsec) in [
            (&mut attr.atime, stat.st_atime, stat.st_atime_nsec),
            (&mut attr.mtime, stat.st_mtime, stat.st_mtime_nsec),
            (&mut attr.ctime, stat.st_ctime, stat.st_ctime_nsec),
        ] {
            *to = Time { sec, nsec: nsec as u32 };
        }
    }
}

/// Opens a file without a path again.
///
/// # Errors
/// `ENXIO` where that has no meaning: sockets, epoll …
pub fn reopen(inode: &Inode, flags: u32) -> Option<Result<Arc<dyn FileOps>>> {
    let node = inode.ops_as::<AnonNode>()?;
    Some(node.file.file_ops().reopen(&node.file, flags))
}

fn mount_of(kind: u32) -> &'static Arc<Mount> {
    static MOUNTS: [Once<Arc<Mount>>; 3] = [Once::new(), Once::new(), Once::new()];
    let (slot, name, magic) = match kind & 0o170_000 {
        0o010_000 => (0, "pipefs", PIPE_MAGIC),
        0o140_000 => (1, "sockfs", SOCK_MAGIC),
        _ => (2, "anon_inodefs", ANON_MAGIC),
    };
    MOUNTS[slot].call_once(|| new_mount(name, magic))
}

/// A mount that is attached nowhere, of a file system that nothing is looked up in.
fn new_mount(name: &'static str, magic: u64) -> Arc<Mount> {
    struct Empty;
    impl InodeOps for Empty {}
    let params = SuperBlockParams {
        fs_name: name,
        magic,
        attributes_expire: false,
        cache_negative: false,
        flags: SbFlags::empty(),
    };
    let sb = SuperBlock::new(params, Box::new(AnonFs(magic)));
    let root = NewInode { mode: 0o040_555, uid: 0, gid: 0, rdev: 0 };
    let root = Dentry::new_root(Inode::new(&sb, 1, &root, Box::new(Empty)));
    Mount::new(sb, root, name.as_bytes(), MountFlags::empty())
}

/// The device number of files without a path, by their kind (`S_IFMT`).
pub fn device_of(kind: u32) -> u32 {
    mount_of(kind).sb.dev
}

/// The path of an open file; one without gets a path of its own.
///
/// # Errors
/// What the file's `stat` reports.
pub fn path_of(file: &Arc<File>) -> Result<Path> {
    if let Some(path) = file.path() {
        return Ok(path.clone());
    }
    let stat = file_stat(file)?;
    let mount = mount_of(stat.st_mode).clone();
    let mut name = String::new();
    file.file_ops().link_name(file, &mut name).map_err(|_| Errno::EIO)?;
    // `pipe:`, `socket:`; a dma-buf without a name of its own stays `/dmabuf:`.
    if name.ends_with(':') && !name.starts_with('/') {
        let _ = write!(name, "[{}]", stat.st_ino);
    }
    let inode = match file.inode() {
        Some(inode) => inode.clone(),
        None => {
            let new = NewInode { mode: stat.st_mode, uid: stat.st_uid, gid: stat.st_gid, rdev: 0 };
            Inode::new(&mount.sb, stat.st_ino, &new, Box::new(AnonNode { file: file.clone() }))
        }
    };
    let dentry = Dentry::new_detached(&mount.root, name.as_bytes(), inode, false);
    Ok(Path { mount, dentry })
}

/// `NSFS_MAGIC`
const NS_MAGIC: u64 = 0x6e73_6673;

/// The path of a namespace's file: `kind:[number]` on a mount of its own.
///
/// # Errors
/// None now; the file system behind it may come to have some.
pub fn namespace_path(name: &str, number: u64, ops: Box<dyn InodeOps>) -> Result<Path> {
    static MOUNT: Once<Arc<Mount>> = Once::new();
    let mount = MOUNT.call_once(|| new_mount("nsfs", NS_MAGIC)).clone();
    let new = NewInode { mode: 0o100_444, uid: 0, gid: 0, rdev: 0 };
    let inode = Inode::new(&mount.sb, number, &new, ops);
    let dentry = Dentry::new_detached(&mount.root, name.as_bytes(), inode, false);
    Ok(Path { mount, dentry })
}

/// Whether `path` is one that [`path_of`] made: it is shown by its name alone.
pub fn is_anon(path: &Path) -> bool {
    // A namespace's file that is bound somewhere is shown by that path.
    matches!(path.mount.sb.fs_name, "pipefs" | "sockfs" | "anon_inodefs" | "nsfs") && !path.is_mount_root()
}
