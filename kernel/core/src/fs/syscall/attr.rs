//! Changing attributes: mode, owner, times, size. References: chmod(2), chown(2), utimensat(2), truncate(2), fallocate(2).

use alloc::sync::Arc;

use linux_uapi::{raw::general as uapi, time::Timespec};

use super::{at_flags, resolve};
use crate::{
    Errno, Result,
    fs::{
        File, acl,
        file::FileMode,
        inode::{FileKind, Inode, SetAttr, Time},
        lease,
        mount::Mount,
        notify::{self, mask},
        path::LookupFlags,
        permission::{self, MAY_WRITE},
    },
    process::{Cap, Resource, current},
    syscall::Cx,
    user::{UserAddr, UserPtr},
};

fn chmod(inode: &Arc<Inode>, mount: Option<&Arc<Mount>>, mode: u32) -> Result {
    if let Some(mount) = mount {
        mount.check_writable()?;
    }
    if inode.kind == FileKind::Symlink {
        return Err(Errno::EOPNOTSUPP);
    }
    let cred = current().cred();
    if !inode.sb.own_permissions && !permission::owner_or_capable(inode, &cred) {
        return Err(Errno::EPERM);
    }
    let mut mode = mode & 0o7777;
    if !cred.in_group(inode.gid()) && !cred.has_cap(Cap::Fsetid) {
        mode &= !uapi::S_ISGID;
    }
    let _guard = inode.lock.write();
    inode.ops().setattr(inode, &SetAttr { mode: Some(mode), ..SetAttr::default() })?;
    acl::mode_changed(inode, mode);
    notify::inode_event(inode, mask::ATTRIB);
    Ok(())
}

pub fn sys_fchmodat2(_cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, mode: u32, flags: u32) -> Result {
    let lookup = at_flags(flags, uapi::AT_SYMLINK_NOFOLLOW | uapi::AT_EMPTY_PATH)?;
    let at = resolve(dirfd, path, lookup)?;
    chmod(at.inode()?, Some(&at.mount), mode)
}

pub fn sys_fchmodat(cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, mode: u32) -> Result {
    sys_fchmodat2(cx, dirfd, path, mode, 0)
}

pub fn sys_chmod(cx: &mut Cx<'_>, path: UserAddr, mode: u32) -> Result {
    sys_fchmodat2(cx, uapi::AT_FDCWD, path, mode, 0)
}

/// The inode and mount of a descriptor; anonymous files have attributes that cannot be changed.
fn file_inode(file: &File) -> Result<(&Arc<Inode>, Option<&Arc<Mount>>)> {
    Ok((file.inode().ok_or(Errno::EPERM)?, file.path().map(|p| &p.mount)))
}

pub fn sys_fchmod(cx: &mut Cx<'_>, fd: i32, mode: u32) -> Result {
    let file = cx.thread.file(fd)?;
    let (inode, mount) = file_inode(&file)?;
    chmod(inode, mount, mode)
}

fn chown(inode: &Arc<Inode>, mount: Option<&Arc<Mount>>, uid: u32, gid: u32) -> Result {
    if let Some(mount) = mount {
        mount.check_writable()?;
    }
    let uid = (uid != u32::MAX).then_some(uid);
    let gid = (gid != u32::MAX).then_some(gid);
    let cred = current().cred();
    let owner = cred.fsuid == inode.uid();
    if !inode.sb.own_permissions && !cred.has_cap(Cap::Chown) {
        if uid.is_some_and(|uid| !(owner && uid == inode.uid())) {
            return Err(Errno::EPERM);
        }
        if gid.is_some_and(|gid| !(owner && (cred.in_group(gid) || gid == inode.gid()))) {
            return Err(Errno::EPERM);
        }
    }
    let _guard = inode.lock.write();
    let mut change = SetAttr { uid, gid, ..SetAttr::default() };
    if !inode.is_dir() {
        let mode = inode.mode();
        let mut new = mode & !uapi::S_ISUID;
        if mode & uapi::S_IXGRP != 0 || !cred.in_group(inode.gid()) && !cred.has_cap(Cap::Fsetid) {
            new &= !uapi::S_ISGID;
        }
        if new != mode {
            change.mode = Some(new & 0o7777);
        }
        // File capabilities do not survive a change of owner.
        match inode.ops().removexattr(inode, b"security.capability") {
            Ok(()) | Err(_) => {}
        }
    }
    inode.ops().setattr(inode, &change)?;
    notify::inode_event(inode, mask::ATTRIB);
    Ok(())
}

pub fn sys_fchownat(_cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, uid: u32, gid: u32, flags: u32) -> Result {
    let lookup = at_flags(flags, uapi::AT_SYMLINK_NOFOLLOW | uapi::AT_EMPTY_PATH)?;
    let at = resolve(dirfd, path, lookup)?;
    chown(at.inode()?, Some(&at.mount), uid, gid)
}

pub fn sys_chown(cx: &mut Cx<'_>, path: UserAddr, uid: u32, gid: u32) -> Result {
    sys_fchownat(cx, uapi::AT_FDCWD, path, uid, gid, 0)
}

pub fn sys_lchown(cx: &mut Cx<'_>, path: UserAddr, uid: u32, gid: u32) -> Result {
    sys_fchownat(cx, uapi::AT_FDCWD, path, uid, gid, uapi::AT_SYMLINK_NOFOLLOW)
}

pub fn sys_fchown(cx: &mut Cx<'_>, fd: i32, uid: u32, gid: u32) -> Result {
    let file = cx.thread.file(fd)?;
    let (inode, mount) = file_inode(&file)?;
    chown(inode, mount, uid, gid)
}

/// What is to become of one of the two times.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NewTime {
    Now,
    Omit,
    At(Time),
}

fn decode_time(ts: &Timespec) -> Result<NewTime> {
    match ts.tv_nsec {
        n if n == i64::from(uapi::UTIME_NOW) => Ok(NewTime::Now),
        n if n == i64::from(uapi::UTIME_OMIT) => Ok(NewTime::Omit),
        n @ 0..=999_999_999 => Ok(NewTime::At(Time { sec: ts.tv_sec, nsec: n as u32 })),
        _ => Err(Errno::EINVAL),
    }
}

fn set_times(inode: &Arc<Inode>, mount: Option<&Arc<Mount>>, atime: NewTime, mtime: NewTime) -> Result {
    if atime == NewTime::Omit && mtime == NewTime::Omit {
        return Ok(());
    }
    if let Some(mount) = mount {
        mount.check_writable()?;
    }
    let cred = current().cred();
    if !inode.sb.own_permissions && !permission::owner_or_capable(inode, &cred) {
        if atime != NewTime::Now || mtime != NewTime::Now {
            return Err(Errno::EPERM);
        }
        permission::check(inode, MAY_WRITE, &cred)?;
    }
    let now = Time::now();
    let pick = |t| match t {
        NewTime::Now => Some(now),
        NewTime::Omit => None,
        NewTime::At(t) => Some(t),
    };
    let _guard = inode.lock.write();
    let change = SetAttr { atime: pick(atime), mtime: pick(mtime), ..SetAttr::default() };
    inode.ops().setattr(inode, &change)?;
    notify::inode_event(inode, mask::ATTRIB);
    Ok(())
}

fn set_times_at(dirfd: i32, path: UserAddr, times: [NewTime; 2], flags: u32) -> Result {
    if path.as_u64() == 0 && dirfd != uapi::AT_FDCWD {
        if flags & !uapi::AT_EMPTY_PATH != 0 {
            return Err(Errno::EINVAL);
        }
        let file = current().file(dirfd)?;
        let (inode, mount) = file_inode(&file)?;
        return set_times(inode, mount, times[0], times[1]);
    }
    let lookup = at_flags(flags, uapi::AT_SYMLINK_NOFOLLOW | uapi::AT_EMPTY_PATH)?;
    let at = resolve(dirfd, path, lookup)?;
    set_times(at.inode()?, Some(&at.mount), times[0], times[1])
}

pub fn sys_utimensat(_cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, times: UserPtr<Timespec>, flags: u32) -> Result {
    let mut new = [NewTime::Now; 2];
    if !times.is_null() {
        new = [decode_time(&times.read()?)?, decode_time(&times.add(1).read()?)?];
        if new == [NewTime::Omit; 2] {
            return Ok(());
        }
    }
    set_times_at(dirfd, path, new, flags)
}

/// Two `timeval`s (`utimes`, `futimesat`): seconds and microseconds.
fn read_timevals(times: UserPtr<[i64; 2]>) -> Result<[NewTime; 2]> {
    let mut new = [NewTime::Now; 2];
    if !times.is_null() {
        for (i, slot) in new.iter_mut().enumerate() {
            let [sec, usec] = times.add(i).read()?;
            if !(0..1_000_000).contains(&usec) {
                return Err(Errno::EINVAL);
            }
            *slot = NewTime::At(Time { sec, nsec: usec as u32 * 1000 });
        }
    }
    Ok(new)
}

pub fn sys_futimesat(_cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, times: UserPtr<[i64; 2]>) -> Result {
    set_times_at(dirfd, path, read_timevals(times)?, 0)
}

pub fn sys_utimes(_cx: &mut Cx<'_>, path: UserAddr, times: UserPtr<[i64; 2]>) -> Result {
    set_times_at(uapi::AT_FDCWD, path, read_timevals(times)?, 0)
}

pub fn sys_utime(_cx: &mut Cx<'_>, path: UserAddr, times: UserPtr<[i64; 2]>) -> Result {
    let mut new = [NewTime::Now; 2];
    if !times.is_null() {
        let secs = times.read()?;
        new = secs.map(|sec| NewTime::At(Time { sec, nsec: 0 }));
    }
    set_times_at(uapi::AT_FDCWD, path, new, 0)
}

fn new_size(size: i64) -> Result<u64> {
    let size = u64::try_from(size).map_err(|_| Errno::EINVAL)?;
    let thread = current();
    if size > thread.process().rlimits.soft(Resource::Fsize) {
        crate::fs::signal_limit();
        return Err(Errno::EFBIG);
    }
    Ok(size)
}

fn set_size(inode: &Arc<Inode>, size: u64) -> Result {
    let _guard = inode.lock.write();
    permission::drop_set_id(inode);
    inode.ops().setattr(inode, &SetAttr { size: Some(size), ..SetAttr::default() })?;
    inode.touch_modified();
    notify::inode_event(inode, mask::MODIFY);
    Ok(())
}

pub fn sys_truncate(_cx: &mut Cx<'_>, path: UserAddr, size: i64) -> Result {
    if size < 0 {
        return Err(Errno::EINVAL);
    }
    let at = resolve(uapi::AT_FDCWD, path, LookupFlags::FOLLOW)?;
    let inode = at.inode()?;
    match inode.kind {
        FileKind::Regular => {}
        FileKind::Directory => return Err(Errno::EISDIR),
        _ => return Err(Errno::EINVAL),
    }
    at.mount.check_writable()?;
    let cred = current().cred();
    permission::check(inode, MAY_WRITE, &cred)?;
    let size = new_size(size)?;
    lease::break_for(inode, uapi::O_WRONLY)?;
    inode.get_write_access()?;
    let res = set_size(inode, size);
    inode.put_write_access();
    res
}

pub fn sys_ftruncate(cx: &mut Cx<'_>, fd: i32, size: i64) -> Result {
    if size < 0 {
        return Err(Errno::EINVAL);
    }
    let file = cx.thread.file(fd)?;
    if !file.mode().contains(FileMode::WRITE) {
        return Err(Errno::EINVAL);
    }
    match file.inode() {
        Some(inode) if inode.kind == FileKind::Regular => set_size(inode, new_size(size)?),
        Some(_) => Err(Errno::EINVAL),
        None => file.file_ops().truncate(&file, new_size(size)?),
    }
}

pub fn sys_fallocate(cx: &mut Cx<'_>, fd: i32, mode: u32, offset: i64, len: i64) -> Result {
    let file = cx.thread.file(fd)?;
    let (Ok(offset), Ok(len)) = (u64::try_from(offset), u64::try_from(len)) else { return Err(Errno::EINVAL) };
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    const KEEP: u32 = uapi::FALLOC_FL_KEEP_SIZE;
    const PUNCH: u32 = uapi::FALLOC_FL_PUNCH_HOLE;
    let known = KEEP
        | PUNCH
        | uapi::FALLOC_FL_COLLAPSE_RANGE
        | uapi::FALLOC_FL_ZERO_RANGE
        | uapi::FALLOC_FL_INSERT_RANGE
        | uapi::FALLOC_FL_UNSHARE_RANGE;
    if mode & !known != 0 || mode & PUNCH != 0 && mode & KEEP == 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    file.check_write()?;
    if file.mode().contains(FileMode::STREAM) && file.inode().is_none_or(|i| i.kind == FileKind::Fifo) {
        return Err(Errno::ESPIPE);
    }
    match file.inode().map(|i| i.kind) {
        Some(FileKind::Directory) => return Err(Errno::EISDIR),
        Some(FileKind::Regular) | None => {}
        Some(_) => return Err(Errno::ENODEV),
    }
    if offset.checked_add(len).is_none_or(|end| end > i64::MAX as u64) {
        return Err(Errno::EFBIG);
    }
    if mode & KEEP == 0 {
        new_size((offset + len) as i64)?;
    }
    file.file_ops().fallocate(&file, mode, offset, len)?;
    if let Some(path) = file.path() {
        notify::event(&path.dentry, mask::MODIFY);
    }
    Ok(())
}
