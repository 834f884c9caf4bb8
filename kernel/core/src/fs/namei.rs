//! Operations on names: making, removing, moving them.
//!
//! Each function finds the directory, locks it, looks at the name, checks permissions in the order Linux does (the order
//! decides which errno a program sees), lets the file system act, and brings the dentry cache and inotify up to date.
//!
//! References: mkdir(2), mknod(2), link(2), symlink(2), unlink(2), rmdir(2), rename(2); `fs/namei.c`.

use alloc::{borrow::Cow, sync::Arc};
use core::sync::atomic::Ordering;

use linux_uapi::raw::general as uapi;

use super::{
    acl,
    dentry::{self, Dentry},
    inode::{Entry, FileKind, Inode, NewInode, RenameSide},
    mount,
    notify::{self, mask},
    path::{Last, Lookup, LookupFlags, Path, Start, lookup_child_locked},
    permission::{self, MAY_WRITE},
};
use crate::{
    Errno, Result,
    process::{Cap, Credentials, current},
};

/// Walks to the directory of the last component.
fn parent<'p>(start: &Start, path: &'p [u8], cred: &Credentials) -> Result<(Path, Last<'p>, bool)> {
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    Lookup::new(cred, start, LookupFlags::empty()).parent(path)
}

/// Looks a name up in a locked directory.
fn child(dir: &Path, inode: &Arc<Inode>, name: &[u8]) -> Result<Option<Arc<Dentry>>> {
    if name.len() > inode.sb.name_max {
        return Err(Errno::ENAMETOOLONG);
    }
    lookup_child_locked(&dir.dentry, inode, dentry::hash_name(name), name)
}

/// Owner, group and mode of a new file in `dir`: umask or default access control list, and set-group-ID directory applied.
pub fn new_inode(dir: &Inode, mode: u32, rdev: u32, cred: &Credentials) -> NewInode {
    let mut mode = if mode & uapi::S_IFMT == uapi::S_IFLNK {
        mode
    } else {
        acl::inherited_mode(dir, mode).unwrap_or_else(|| mode & !current().fs().umask())
    };
    let mut gid = cred.fsgid;
    if dir.mode() & uapi::S_ISGID != 0 {
        gid = dir.gid();
        if mode & uapi::S_IFMT == uapi::S_IFDIR {
            mode |= uapi::S_ISGID;
        } else if mode & (uapi::S_ISGID | uapi::S_IXGRP) == uapi::S_ISGID | uapi::S_IXGRP
            && !cred.in_group(gid)
            && !cred.has_cap(Cap::Fsetid)
        {
            mode &= !uapi::S_ISGID;
        }
    }
    NewInode { mode, uid: cred.fsuid, gid, rdev }
}

/// Enters a new name into the dentry cache.
pub fn cache_new(dir: &Path, name: &[u8], entry: Entry) -> Result<Arc<Dentry>> {
    let inode = entry.inode.ok_or(Errno::EIO)?;
    let hash = dentry::hash_name(name);
    // A negative entry makes room.
    drop(dir.dentry.remove_child(hash, name, false));
    if entry.valid_until == 0 {
        return Ok(Dentry::new_detached(&dir.dentry, name, inode, false));
    }
    Ok(dir.dentry.add_child(hash, name, Some(inode), entry.valid_until))
}

/// Gives what was just made in `dir` what it inherits.
pub fn inherit(dir: &Inode, entry: &Entry) {
    if let Some(made) = &entry.inode {
        acl::inherit(dir, made);
    }
}

/// Makes a name by `make`, with everything around it.
fn create_with(
    start: &Start,
    path: &[u8],
    is_dir: bool,
    cred: &Credentials,
    make: impl FnOnce(&Arc<Inode>, &[u8], &Path) -> Result<Entry>,
) -> Result {
    let (dir, last, slash) = parent(start, path, cred)?;
    let Last::Name(name) = last else { return Err(Errno::EEXIST) };
    let inode = dir.inode()?;
    let _guard = inode.lock.write();
    if child(&dir, inode, &name)?.is_some() {
        return Err(Errno::EEXIST);
    }
    if slash && !is_dir {
        return Err(Errno::ENOENT);
    }
    dir.mount.check_writable()?;
    permission::may_create(inode, cred)?;
    let entry = make(inode, &name, &dir)?;
    inherit(inode, &entry);
    cache_new(&dir, &name, entry)?;
    notify::dir_event(inode, mask::CREATE, &name, is_dir, 0);
    Ok(())
}

/// `mkdirat(2)`.
///
/// # Errors
/// As mkdir(2).
pub fn mkdir(start: &Start, path: &[u8], mode: u32) -> Result {
    let thread = current();
    let cred = thread.cred();
    let mode = uapi::S_IFDIR | mode & 0o1777;
    create_with(start, path, true, &cred, |dir, name, _| {
        if dir.nlink() >= u32::MAX - 1 {
            return Err(Errno::EMLINK);
        }
        dir.ops().create(dir, name, &new_inode(dir, mode, 0, &cred))
    })
}

/// `mknodat(2)`; `mode` without a kind makes a regular file.
///
/// # Errors
/// As mknod(2).
pub fn mknod(start: &Start, path: &[u8], mode: u32, rdev: u32) -> Result {
    let thread = current();
    let cred = thread.cred();
    let mode = if mode & uapi::S_IFMT == 0 { mode | uapi::S_IFREG } else { mode };
    let kind = match FileKind::from_mode(mode) {
        Some(FileKind::Directory) => return Err(Errno::EPERM),
        Some(FileKind::Symlink) | None => return Err(Errno::EINVAL),
        Some(kind) => kind,
    };
    let device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
    let mode = mode & (uapi::S_IFMT | 0o7777);
    create_with(start, path, false, &cred, |dir, name, _| {
        // A character device 0:0 is overlayfs's whiteout, which anybody may make.
        let whiteout = kind == FileKind::CharDevice && rdev == 0;
        if device && !whiteout && !cred.has_cap(Cap::Mknod) {
            return Err(Errno::EPERM);
        }
        dir.ops().create(dir, name, &new_inode(dir, mode, if device { rdev } else { 0 }, &cred))
    })
}

/// `symlinkat(2)`.
///
/// # Errors
/// As symlink(2).
pub fn symlink(target: &[u8], start: &Start, path: &[u8]) -> Result {
    if target.is_empty() {
        return Err(Errno::ENOENT);
    }
    let cred = current().cred();
    create_with(start, path, false, &cred, |dir, name, _| {
        dir.ops().symlink(dir, name, target, &new_inode(dir, uapi::S_IFLNK | 0o777, 0, &cred))
    })
}

/// `linkat(2)` after `old` was found.
///
/// # Errors
/// As link(2).
pub fn link(old: &Path, start: &Start, path: &[u8]) -> Result {
    let cred = current().cred();
    let inode = old.inode()?.clone();
    create_with(start, path, false, &cred, |dir, name, at| {
        if !Arc::ptr_eq(&at.mount, &old.mount) {
            return Err(Errno::EXDEV);
        }
        permission::may_link(&inode, &cred)?;
        if inode.is_dir() {
            return Err(Errno::EPERM);
        }
        if inode.nlink() == 0 && !inode.linkable.load(Ordering::Relaxed) {
            return Err(Errno::ENOENT);
        }
        if inode.nlink() >= u32::MAX - 1 {
            return Err(Errno::EMLINK);
        }
        dir.ops().link(dir, name, &inode)?;
        notify::inode_event(&inode, mask::ATTRIB);
        // How long the name may be used is for its first lookup to say.
        let valid_until = if inode.sb.attributes_expire { 1 } else { u64::MAX };
        Ok(Entry { inode: Some(inode.clone()), valid_until })
    })
}

/// `unlink(2)`.
///
/// # Errors
/// As unlink(2).
pub fn unlink(start: &Start, path: &[u8]) -> Result {
    unlink_as(&current().cred(), start, path)
}

/// As [`unlink`], with given credentials.
///
/// # Errors
/// As unlink(2).
pub fn unlink_as(cred: &Credentials, start: &Start, path: &[u8]) -> Result {
    let (dir, last, slash) = parent(start, path, cred)?;
    let Last::Name(name) = last else { return Err(Errno::EISDIR) };
    dir.mount.check_writable()?;
    let inode = dir.inode()?;
    // Outlives the guard: the last reference may free the file's pages.
    let victim;
    let removed;
    {
        let _guard = inode.lock.write();
        victim = child(&dir, inode, &name)?.ok_or(Errno::ENOENT)?;
        let target = victim.inode().ok_or(Errno::ENOENT)?;
        if slash {
            return Err(if target.is_dir() { Errno::EISDIR } else { Errno::ENOTDIR });
        }
        permission::may_delete(inode, target, false, cred)?;
        if mount::is_local_mountpoint(&victim) {
            return Err(Errno::EBUSY);
        }
        inode.ops().unlink(inode, &name, target)?;
        removed = dir.dentry.remove_child(dentry::hash_name(&name), &name, true);
        notify::inode_event(target, mask::ATTRIB);
        notify::dir_event(inode, mask::DELETE, &name, false, 0);
        if target.nlink() == 0 {
            notify::inode_event(target, mask::DELETE_SELF);
        }
    }
    mount::unmount_at(&victim);
    drop(removed);
    drop(victim);
    Ok(())
}

/// `rmdir(2)`.
///
/// # Errors
/// As rmdir(2).
pub fn rmdir(start: &Start, path: &[u8]) -> Result {
    let cred = current().cred();
    let (dir, last, _) = parent(start, path, &cred)?;
    let name = match last {
        Last::Name(name) => name,
        Last::Dot => return Err(Errno::EINVAL),
        Last::DotDot => return Err(Errno::ENOTEMPTY),
        Last::Root => return Err(Errno::EBUSY),
    };
    dir.mount.check_writable()?;
    let inode = dir.inode()?;
    let victim;
    let removed;
    {
        let _guard = inode.lock.write();
        victim = child(&dir, inode, &name)?.ok_or(Errno::ENOENT)?;
        let target = victim.inode().ok_or(Errno::ENOENT)?;
        permission::may_delete(inode, target, true, &cred)?;
        if mount::is_local_mountpoint(&victim) {
            return Err(Errno::EBUSY);
        }
        let _inner = target.lock.write();
        inode.ops().rmdir(inode, &name, target)?;
        target.dead.store(true, Ordering::Relaxed);
        removed = dir.dentry.remove_child(dentry::hash_name(&name), &name, true);
        victim.forget_tree();
        notify::dir_event(inode, mask::DELETE, &name, true, 0);
        notify::inode_event(target, mask::DELETE_SELF);
    }
    mount::unmount_at(&victim);
    drop(removed);
    drop(victim);
    Ok(())
}

/// One side of a rename as it was named.
struct Side<'p> {
    dir: Path,
    name: Cow<'p, [u8]>,
    slash: bool,
}

fn side<'p>(start: &Start, path: &'p [u8], cred: &Credentials, not_a_name: Errno) -> Result<Side<'p>> {
    let (dir, last, slash) = parent(start, path, cred)?;
    match last {
        Last::Name(name) => Ok(Side { dir, name, slash }),
        _ => Err(not_a_name),
    }
}

/// `renameat2(2)`.
///
/// # Errors
/// As rename(2).
pub fn rename(old_start: &Start, old_path: &[u8], new_start: &Start, new_path: &[u8], flags: u32) -> Result {
    let exchange = flags & uapi::RENAME_EXCHANGE != 0;
    let noreplace = flags & uapi::RENAME_NOREPLACE != 0;
    if flags & !(uapi::RENAME_EXCHANGE | uapi::RENAME_NOREPLACE) != 0 || exchange && noreplace {
        return Err(Errno::EINVAL);
    }
    let cred = current().cred();
    let old = side(old_start, old_path, &cred, Errno::EBUSY)?;
    let new = side(new_start, new_path, &cred, if noreplace { Errno::EEXIST } else { Errno::EBUSY })?;
    if !Arc::ptr_eq(&old.dir.mount, &new.dir.mount) {
        return Err(Errno::EXDEV);
    }
    old.dir.mount.check_writable()?;
    let (old_dir, new_dir) = (old.dir.inode()?.clone(), new.dir.inode()?.clone());
    let same_dir = Arc::ptr_eq(&old_dir, &new_dir);
    let sb = old_dir.sb.clone();
    // Outlive the guards.
    let source;
    let target;
    {
        let _rename = (!same_dir).then(|| sb.rename_lock.lock());
        // The directory further up first; unrelated ones by number.
        let new_first = !same_dir
            && (old.dir.dentry.is_within(&new.dir.dentry)
                || !new.dir.dentry.is_within(&old.dir.dentry) && new_dir.ino < old_dir.ino);
        let (first, second) = if new_first { (&new_dir, &old_dir) } else { (&old_dir, &new_dir) };
        let _first = first.lock.write();
        let _second = (!same_dir).then(|| second.lock.write());

        source = child(&old.dir, &old_dir, &old.name)?.ok_or(Errno::ENOENT)?;
        target = child(&new.dir, &new_dir, &new.name)?;
        if noreplace && target.is_some() {
            return Err(Errno::EEXIST);
        }
        if exchange && target.is_none() {
            return Err(Errno::ENOENT);
        }
        let moved = source.inode().ok_or(Errno::ENOENT)?;
        let replaced = target.as_ref().and_then(|t| t.inode());
        if exchange && replaced.is_some_and(|r| !r.is_dir()) && new.slash {
            return Err(Errno::ENOTDIR);
        }
        if !moved.is_dir() && (old.slash || !exchange && new.slash) {
            return Err(Errno::ENOTDIR);
        }
        if moved.is_dir() && new.dir.dentry.is_within(&source) {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = &target
            && target.inode().is_some_and(|i| i.is_dir())
            && old.dir.dentry.is_within(target)
        {
            return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        if replaced.is_some_and(|r| Arc::ptr_eq(r, moved)) {
            // Two names of one file: nothing happens.
            return Ok(());
        }
        permission::may_delete(&old_dir, moved, moved.is_dir(), &cred)?;
        match replaced {
            None => permission::may_create(&new_dir, &cred)?,
            Some(r) if exchange => permission::may_delete(&new_dir, r, r.is_dir(), &cred)?,
            Some(r) => permission::may_delete(&new_dir, r, moved.is_dir(), &cred)?,
        }
        // A directory that changes its parent has its `..` written.
        if !same_dir {
            if moved.is_dir() {
                permission::check(moved, MAY_WRITE, &cred)?;
            }
            if exchange && let Some(r) = replaced.filter(|r| r.is_dir()) {
                permission::check(r, MAY_WRITE, &cred)?;
            }
        }
        if mount::is_local_mountpoint(&source) || target.as_ref().is_some_and(|t| mount::is_local_mountpoint(t)) {
            return Err(Errno::EBUSY);
        }
        // Nothing may appear in a directory while it is being replaced.
        let _victim = replaced.filter(|r| r.is_dir() && !exchange).map(|r| r.lock.write());
        let old_side = RenameSide { dir: &old_dir, name: &old.name, inode: Some(moved) };
        let new_side = RenameSide { dir: &new_dir, name: &new.name, inode: replaced };
        old_dir.ops().rename(&old_side, &new_side, flags)?;

        let cookie = notify::cookie();
        if exchange {
            if let Some(target) = &target {
                Dentry::exchange(&source, target);
            }
            if let Some(r) = replaced {
                notify::dir_event(&new_dir, mask::MOVED_FROM, &new.name, r.is_dir(), cookie);
                notify::dir_event(&old_dir, mask::MOVED_TO, &old.name, r.is_dir(), cookie);
                notify::inode_event(r, mask::MOVE_SELF);
            }
        } else {
            source.move_to(&new.dir.dentry, dentry::hash_name(&new.name), &new.name);
            if let Some(r) = replaced {
                if r.is_dir() {
                    r.dead.store(true, Ordering::Relaxed);
                    if let Some(target) = &target {
                        target.forget_tree();
                    }
                }
                notify::inode_event(r, mask::ATTRIB);
                if r.nlink() == 0 {
                    notify::inode_event(r, mask::DELETE_SELF);
                }
            }
        }
        let cookie = if exchange { notify::cookie() } else { cookie };
        notify::dir_event(&old_dir, mask::MOVED_FROM, &old.name, moved.is_dir(), cookie);
        notify::dir_event(&new_dir, mask::MOVED_TO, &new.name, moved.is_dir(), cookie);
        notify::inode_event(moved, mask::MOVE_SELF);
    }
    if !exchange && let Some(target) = &target {
        mount::unmount_at(target);
    }
    drop(target);
    drop(source);
    Ok(())
}
