//! The virtual file system: from descriptors to files, from paths to inodes, and the file systems of the kernel itself.
//!
//! | module | what |
//! |---|---|
//! | [`fdtable`] | descriptor → open file |
//! | [mod@file], [`io`], [`owner`] | open file descriptions, what implements them, where bytes come from and go to |
//! | [`inode`], [`dentry`], [`mount`], [`listing`] | files, names and where file systems show; open directories |
//! | [`path`], [`permission`], [`context`] | from a path to a dentry, and who may |
//! | [`cgroup`] | processes kept together, as a file system |
//! | [`lock`], [`notify`] | file locks, inotify's hooks |
//! | [`dev`] | device numbers and their drivers |
//!
//! A system call decodes its arguments in `fs::syscall`, finds a [`File`] or a [`Path`], and calls one method.

pub mod acl;
pub mod anon;
pub mod cgroup;
pub mod context;
pub mod dentry;
pub mod dev;
pub mod devfs;
pub mod fdtable;
pub mod file;
pub mod fuse;
pub mod handle;
pub mod initramfs;
pub mod inode;
pub mod io;
pub mod lease;
pub mod listing;
pub mod lock;
pub mod mount;
pub mod mount_context;
pub mod namei;
pub mod notify;
pub mod open;
pub mod owner;
pub mod path;
pub mod permission;
pub mod procfs;
pub mod registry;
pub mod sigio;
pub mod syscall;
pub mod sysfs;
pub mod tmpfs;
pub mod xattr;

use alloc::sync::Arc;

use crate::{Errno, Result};

pub use context::FsContext;
pub use dentry::Dentry;
pub use fdtable::FdTable;
pub use file::{DirSink, File, FileMode, FileOps, ReleaseHook};
pub use inode::{Attr, FileKind, FileSystem, Inode, InodeOps, SuperBlock};
pub use io::{IoRange, PageSink, PageSource, Sink, Source};
pub use listing::Listing;
pub use mount::Mount;
pub use path::{LookupFlags, Path};

/// A write or a new size beyond `RLIMIT_FSIZE`: the thread gets `SIGXFSZ`.
pub(crate) fn signal_limit() {
    let thread = crate::process::current();
    crate::signal::send_to_thread(&thread, crate::signal::SigInfo::kernel(linux_uapi::raw::general::SIGXFSZ));
}

/// Brings the file systems up: an empty root, devtmpfs with the memory devices, the types that `mount` knows.
pub fn init() {
    let mut seed = [0; 32];
    ursa_hal::rand::seed_bytes(&mut seed);
    dentry::seed_hash(seed.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes)));
    // One entry for every 8 KiB of memory: what a desktop's working set of names needs, 3 % of memory at most.
    dentry::set_cache_limit((ursa_hal::mm::stats().total as usize / 2).max(1 << 14));
    registry::register(Arc::new(tmpfs::TmpfsType));
    registry::register(Arc::new(tmpfs::RamfsType));
    registry::register(Arc::new(devfs::DevTmpfs));
    registry::register(Arc::new(procfs::ProcFs));
    registry::register(Arc::new(fuse::FuseType::FUSE));
    registry::register(Arc::new(fuse::FuseType::FUSEBLK));
    cgroup::init();
    let root = inode::NewInode { mode: 0o040_755, uid: 0, gid: 0, rdev: 0 };
    let pages = ursa_hal::mm::stats().total as u64;
    let sb = tmpfs::Tmpfs::create("rootfs", pages, 0, &root, inode::SbFlags::empty());
    let flags = mount::MountFlags::empty();
    let started = Mount::of(sb, b"rootfs", flags)
        .map(mount::set_root)
        .and_then(|()| sysfs::init())
        .and_then(|()| devfs::init())
        .and_then(|()| procfs::init());
    if let Err(errno) = started {
        panic!("the root file system cannot be made: {errno}");
    }
}

/// The root directory of the mount tree: what the first process starts in.
///
/// # Errors
/// `ENOENT` before [`init`].
pub fn root_path() -> Result<Path> {
    Ok(mount::root().ok_or(Errno::ENOENT)?.root_path())
}

/// Whether a long transfer should end early because a signal waits for the thread.
pub(crate) fn interrupted() -> bool {
    crate::process::try_current().is_some_and(|thread| crate::signal::wants_delivery(&thread))
}
