//! devtmpfs: the kernel's own view of `/dev`, and the memory devices.
//!
//! One tmpfs instance that every mount of the type shares. Nodes come and go with the devices of [`crate::device`], which calls
//! [`create_node_owned`] and [`remove_node`]; device managers may rename, link and chown them as in any tmpfs.
//!
//! References: `drivers/base/devtmpfs.c`, `Documentation/admin-guide/devices.txt`.

mod kmsg;
mod mem;

use alloc::sync::Arc;

use linux_uapi::raw::general as uapi;
use ursa_hal::sync::Once;

use super::{
    inode::{Entry, FileSystem, Inode, NewInode, SbFlags, SuperBlock},
    tmpfs::Tmpfs,
};
use crate::{Errno, Result, fs::dentry};

static INSTANCE: Once<Arc<SuperBlock>> = Once::new();

/// The one instance.
fn instance() -> &'static Arc<SuperBlock> {
    INSTANCE.call_once(|| {
        let root = NewInode { mode: uapi::S_IFDIR | 0o755, uid: 0, gid: 0, rdev: 0 };
        let pages = ursa_hal::mm::stats().total as u64 / 2;
        let sb = Tmpfs::create("devtmpfs", pages, pages, &root, SbFlags::empty());
        // The kernel's own reference: it outlives every mount.
        sb.mounts.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        sb
    })
}

/// The type `devtmpfs`.
pub struct DevTmpfs;

impl FileSystem for DevTmpfs {
    fn name(&self) -> &'static str {
        "devtmpfs"
    }

    fn mount(&self, _source: &[u8], _flags: SbFlags, _data: &[u8]) -> Result<Arc<SuperBlock>> {
        Ok(instance().clone())
    }
}

/// Walks to the directory of `name` below `/dev`, making what is missing; gives it with the last component.
fn directory(name: &str, make: bool) -> Result<(Arc<dentry::Dentry>, &[u8])> {
    let mut at = instance().root()?;
    let mut parts = name.split('/').filter(|p| !p.is_empty()).peekable();
    loop {
        let part = parts.next().ok_or(Errno::EINVAL)?;
        if parts.peek().is_none() {
            return Ok((at, part.as_bytes()));
        }
        let hash = dentry::hash_name(part.as_bytes());
        let dir = at.inode().ok_or(Errno::ENOENT)?.clone();
        let found = {
            let _guard = dir.lock.write();
            match super::path::lookup_child_locked(&at, &dir, hash, part.as_bytes())? {
                Some(found) => found,
                None if make => {
                    let new = NewInode { mode: uapi::S_IFDIR | 0o755, uid: 0, gid: 0, rdev: 0 };
                    add(&at, &dir, part.as_bytes(), dir.ops().create(&dir, part.as_bytes(), &new)?)?
                }
                None => return Err(Errno::ENOENT),
            }
        };
        at = found;
    }
}

fn add(at: &Arc<dentry::Dentry>, dir: &Arc<Inode>, name: &[u8], entry: Entry) -> Result<Arc<dentry::Dentry>> {
    let inode = entry.inode.ok_or(Errno::EIO)?;
    let is_dir = inode.is_dir();
    let dentry = at.add_child(dentry::hash_name(name), name, Some(inode), entry.valid_until);
    super::notify::dir_event(dir, super::notify::mask::CREATE, name, is_dir, 0);
    Ok(dentry)
}

/// Makes the node `name` (`null`, `dri/card0`). `mode` has the kind and the permission bits.
///
/// # Errors
/// `EEXIST`.
pub fn create_node(name: &str, mode: u32, dev: u32) -> Result {
    create_node_owned(name, mode, dev, 0, 0)
}

/// As [`create_node`], with an owner.
///
/// # Errors
/// `EEXIST`.
pub fn create_node_owned(name: &str, mode: u32, dev: u32, uid: u32, gid: u32) -> Result {
    let (at, last) = directory(name, true)?;
    let dir = at.inode().ok_or(Errno::ENOENT)?.clone();
    let _guard = dir.lock.write();
    if dir.ops().lookup(&dir, last).is_ok() {
        return Err(Errno::EEXIST);
    }
    let entry = dir.ops().create(&dir, last, &NewInode { mode, uid, gid, rdev: dev })?;
    add(&at, &dir, last, entry).map(|_| ())
}

/// Makes a symbolic link in `/dev`.
///
/// # Errors
/// `EEXIST`.
pub fn create_link(name: &str, target: &str) -> Result {
    let (at, last) = directory(name, true)?;
    let dir = at.inode().ok_or(Errno::ENOENT)?.clone();
    let _guard = dir.lock.write();
    if dir.ops().lookup(&dir, last).is_ok() {
        return Err(Errno::EEXIST);
    }
    let new = NewInode { mode: uapi::S_IFLNK | 0o777, uid: 0, gid: 0, rdev: 0 };
    let entry = dir.ops().symlink(&dir, last, target.as_bytes(), &new)?;
    add(&at, &dir, last, entry).map(|_| ())
}

/// Makes an empty directory in `/dev`: a mount point.
///
/// # Errors
/// `EEXIST`.
pub fn create_dir(name: &str) -> Result {
    let (at, last) = directory(name, true)?;
    let dir = at.inode().ok_or(Errno::ENOENT)?.clone();
    let _guard = dir.lock.write();
    if dir.ops().lookup(&dir, last).is_ok() {
        return Err(Errno::EEXIST);
    }
    let new = NewInode { mode: uapi::S_IFDIR | 0o755, uid: 0, gid: 0, rdev: 0 };
    let entry = dir.ops().create(&dir, last, &new)?;
    add(&at, &dir, last, entry).map(|_| ())
}

/// Removes a node, unless somebody replaced it by something else.
///
/// # Errors
/// `ENOENT`.
pub fn remove_node(name: &str, dev: u32) -> Result {
    let (at, last) = directory(name, false)?;
    let dir = at.inode().ok_or(Errno::ENOENT)?.clone();
    let removed;
    {
        let _guard = dir.lock.write();
        let inode = dir.ops().lookup(&dir, last)?.inode.ok_or(Errno::ENOENT)?;
        if inode.rdev != dev {
            return Err(Errno::ENOENT);
        }
        dir.ops().unlink(&dir, last, &inode)?;
        removed = at.remove_child(dentry::hash_name(last), last, true);
        super::notify::dir_event(&dir, super::notify::mask::DELETE, last, false, 0);
    }
    drop(removed);
    Ok(())
}

/// Registers the memory devices and their nodes, and the links and directories that every `/dev` has.
///
/// # Errors
/// `EBUSY` when a number is taken already.
pub fn init() -> Result {
    mem::init()?;
    create_link("fd", "/proc/self/fd")?;
    create_link("stdin", "/proc/self/fd/0")?;
    create_link("stdout", "/proc/self/fd/1")?;
    create_link("stderr", "/proc/self/fd/2")?;
    create_dir("pts")?;
    create_dir("shm")
}
