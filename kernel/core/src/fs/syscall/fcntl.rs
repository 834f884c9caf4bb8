//! `fcntl`, `flock` and the generic part of `ioctl`. References: fcntl(2), flock(2), ioctl(2), ioctl_fat(2).

use linux_uapi::{
    raw::{general as uapi, ioctl as ioc},
    stat::{FOwnerEx, Flock},
};

use super::nofile;
use crate::{
    Errno, Result,
    fs::{
        File, FileKind,
        fdtable::FdTable,
        file::{FileMode, SETFL_MASK},
        lease,
        lock::{Lock, OFFSET_MAX, Owner as LockOwner},
        owner::OwnerKind,
        permission, sigio,
    },
    process::{self, Pid, current},
    syscall::Cx,
    user::{self, UserAddr, UserPtr},
};

const F_GETOWN_EX: u32 = 16;
const F_SETOWN_EX: u32 = 15;
const F_GETOWNER_UIDS: u32 = 17;
const F_OFD_GETLK: u32 = 36;
const F_OFD_SETLK: u32 = 37;
const F_OFD_SETLKW: u32 = 38;
const F_LINUX_BASE: u32 = 1024;
const F_SETLEASE: u32 = F_LINUX_BASE;
const F_GETLEASE: u32 = F_LINUX_BASE + 1;
const F_NOTIFY: u32 = F_LINUX_BASE + 2;
const F_DUPFD_QUERY: u32 = F_LINUX_BASE + 3;
const F_CREATED_QUERY: u32 = F_LINUX_BASE + 4;
const F_DUPFD_CLOEXEC: u32 = F_LINUX_BASE + 6;
const F_GET_RW_HINT: u32 = F_LINUX_BASE + 11;
const F_SET_RW_HINT: u32 = F_LINUX_BASE + 12;
const F_GET_FILE_RW_HINT: u32 = F_LINUX_BASE + 13;
const F_SET_FILE_RW_HINT: u32 = F_LINUX_BASE + 14;

/// fcntl(2).
pub fn sys_fcntl(_cx: &mut Cx<'_>, fd: i32, cmd: u32, arg: u64) -> Result<i64> {
    let thread = current();
    let files = thread.files();
    let file = files.get_any(fd)?;
    let path_only = file.mode().contains(FileMode::PATH);
    match cmd {
        uapi::F_DUPFD | F_DUPFD_CLOEXEC => {
            let limit = nofile();
            if arg >= limit {
                return Err(Errno::EINVAL);
            }
            return Ok(i64::from(files.install_from(arg as usize, file, cmd == F_DUPFD_CLOEXEC, limit)?));
        }
        uapi::F_GETFD => return Ok(i64::from(files.cloexec(fd)?)),
        uapi::F_SETFD => {
            files.set_cloexec(fd, arg & u64::from(uapi::FD_CLOEXEC) != 0)?;
            return Ok(0);
        }
        uapi::F_GETFL => return Ok(i64::from(file.flags())),
        F_DUPFD_QUERY => {
            let other = files.get_any(arg as i32)?;
            return Ok(i64::from(alloc::sync::Arc::ptr_eq(&file, &other)));
        }
        _ if path_only => return Err(Errno::EBADF),
        _ => {}
    }
    match cmd {
        uapi::F_SETFL => set_flags(&file, fd, arg as u32).map(|()| 0),
        uapi::F_GETLK => get_lock(&file, arg, LockOwner::Posix(files.lock_owner())).map(|()| 0),
        uapi::F_SETLK => set_lock(&file, &files, fd, arg, LockOwner::Posix(files.lock_owner()), false).map(|()| 0),
        uapi::F_SETLKW => set_lock(&file, &files, fd, arg, LockOwner::Posix(files.lock_owner()), true).map(|()| 0),
        F_OFD_GETLK => get_lock(&file, arg, LockOwner::Ofd(file.id())).map(|()| 0),
        F_OFD_SETLK => set_lock(&file, &files, fd, arg, LockOwner::Ofd(file.id()), false).map(|()| 0),
        F_OFD_SETLKW => set_lock(&file, &files, fd, arg, LockOwner::Ofd(file.id()), true).map(|()| 0),
        uapi::F_GETOWN => Ok(i64::from(owner_number(&file))),
        uapi::F_SETOWN => set_owner_number(&file, arg as i32).map(|()| 0),
        F_SETOWN_EX => {
            let ex = UserPtr::<FOwnerEx>::new(arg).read()?;
            let kind = match ex.kind {
                0 => OwnerKind::Tid,
                1 => OwnerKind::Pid,
                2 => OwnerKind::Pgrp,
                _ => return Err(Errno::EINVAL),
            };
            set_owner(&file, kind, ex.pid).map(|()| 0)
        }
        F_GETOWN_EX => {
            let ex = match file.owner.get() {
                Some(owner) => FOwnerEx {
                    kind: match owner.kind {
                        OwnerKind::Tid => 0,
                        OwnerKind::Pid => 1,
                        OwnerKind::Pgrp => 2,
                    },
                    pid: process::number_seen(owner.id),
                },
                None => FOwnerEx { kind: 1, pid: 0 },
            };
            UserPtr::new(arg).write(&ex).map(|()| 0)
        }
        F_GETOWNER_UIDS => {
            let ids = file.owner.get().map_or([0, 0], |o| [o.uid, o.euid]);
            UserPtr::new(arg).write(&ids).map(|()| 0)
        }
        uapi::F_GETSIG => Ok(file.owner.get().map_or(0, |o| i64::from(o.signal))),
        uapi::F_SETSIG => {
            if arg > 64 {
                return Err(Errno::EINVAL);
            }
            file.owner.update(|o| o.signal = arg as i32);
            Ok(0)
        }
        F_GETLEASE => Ok(lease::get(&file)),
        F_SETLEASE => lease::set(&file, fd, arg as u32).map(|()| 0),
        F_NOTIFY => {
            if file.inode().is_some_and(|i| i.is_dir()) {
                Err(Errno::EINVAL)
            } else {
                Err(Errno::ENOTDIR)
            }
        }
        F_CREATED_QUERY => Ok(i64::from(file.mode().contains(FileMode::CREATED))),
        F_GET_RW_HINT | F_GET_FILE_RW_HINT => UserPtr::new(arg).write(&0u64).map(|()| 0),
        F_SET_RW_HINT | F_SET_FILE_RW_HINT => {
            if UserPtr::<u64>::new(arg).read()? > 5 {
                Err(Errno::EINVAL)
            } else {
                Ok(0)
            }
        }
        _ => file.file_ops().fcntl(&file, cmd, arg).unwrap_or(Err(Errno::EINVAL)),
    }
}

/// Begins or ends to signal the file's owner; `fd` is what the signal will tell.
fn set_async(file: &alloc::sync::Arc<File>, fd: i32, on: bool) -> Result {
    file.file_ops().set_fasync(file, on)?;
    file.owner.set_watch(if on { Some(sigio::watch(file, fd)?) } else { None });
    Ok(())
}

/// `F_SETFL`: changes what may change, tells the object.
fn set_flags(file: &alloc::sync::Arc<File>, fd: i32, new: u32) -> Result {
    let old = file.flags();
    if new & uapi::O_NOATIME != 0 && old & uapi::O_NOATIME == 0 {
        let owner =
            file.inode().is_none_or(|inode| current().with_cred(|cred| permission::owner_or_capable(inode, cred)));
        if !owner {
            return Err(Errno::EPERM);
        }
    }
    if (old ^ new) & uapi::FASYNC != 0 {
        match set_async(file, fd, new & uapi::FASYNC != 0) {
            // Files without asynchronous readiness keep the flag all the same.
            Ok(()) | Err(Errno::ENOTTY) => {}
            Err(e) => return Err(e),
        }
    }
    file.file_ops().set_flags(file, new & SETFL_MASK)?;
    file.update_flags(SETFL_MASK, new);
    Ok(())
}

/// A file's owner as `F_GETOWN` tells it: a process, or a group as a negative number.
pub fn owner_number(file: &File) -> i32 {
    match file.owner.get() {
        Some(owner) if owner.kind == OwnerKind::Pgrp => -process::number_seen(owner.id),
        Some(owner) => process::number_seen(owner.id),
        None => 0,
    }
}

/// Sets a file's owner as `F_SETOWN` takes it.
///
/// # Errors
/// `ESRCH`, `EINVAL` for the number without a positive counterpart.
pub fn set_owner_number(file: &File, who: i32) -> Result {
    match who {
        i32::MIN => Err(Errno::EINVAL),
        who if who < 0 => set_owner(file, OwnerKind::Pgrp, -who),
        who => set_owner(file, OwnerKind::Pid, who),
    }
}

fn set_owner(file: &File, kind: OwnerKind, id: i32) -> Result {
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    let exists = id == 0
        || match kind {
            OwnerKind::Tid | OwnerKind::Pid => process::seen_thread(id as Pid).is_some(),
            OwnerKind::Pgrp => process::seen_group(id as Pid).is_some(),
        };
    if !exists {
        return Err(Errno::ESRCH);
    }
    let id = process::number_meant(id);
    let (uid, euid) = current().with_cred(|c| (c.uid, c.euid));
    file.owner.update(|owner| {
        owner.kind = kind;
        owner.id = id;
        owner.uid = uid;
        owner.euid = euid;
    });
    file.file_ops().owner_set(file);
    Ok(())
}

/// Turns a `struct flock` into a range; `None` as owner of an unlock request's kind.
fn decode_range(file: &File, flock: &Flock) -> Result<(u64, u64)> {
    let base = match flock.l_whence as u32 {
        uapi::SEEK_SET => 0,
        uapi::SEEK_CUR if file.mode().contains(FileMode::STREAM) => 0,
        uapi::SEEK_CUR => *file.pos.lock() as i64,
        uapi::SEEK_END => file.inode().map_or(0, |i| i.len()) as i64,
        _ => return Err(Errno::EINVAL),
    };
    let start = base.checked_add(flock.l_start).ok_or(Errno::EOVERFLOW)?;
    if start < 0 {
        return Err(Errno::EINVAL);
    }
    let (start, end) = match flock.l_len {
        0 => (start, OFFSET_MAX as i64),
        len if len > 0 => (start, start.checked_add(len - 1).ok_or(Errno::EOVERFLOW)?),
        len => {
            let from = start.checked_add(len).ok_or(Errno::EINVAL)?;
            if from < 0 {
                return Err(Errno::EINVAL);
            }
            (from, start - 1)
        }
    };
    Ok((start as u64, end as u64))
}

fn decode_lock(file: &File, flock: &Flock, owner: LockOwner) -> Result<Lock> {
    let (start, end) = decode_range(file, flock)?;
    let write = flock.l_type as u32 == uapi::F_WRLCK;
    let pid = if matches!(owner, LockOwner::Ofd(_)) { -1 } else { current().process().pid() };
    Ok(Lock { owner, write, start, end, pid })
}

fn get_lock(file: &File, arg: u64, owner: LockOwner) -> Result {
    let ptr = UserPtr::<Flock>::new(arg);
    let mut flock = ptr.read()?;
    let kind = flock.l_type as u32;
    if kind != uapi::F_RDLCK && kind != uapi::F_WRLCK || matches!(owner, LockOwner::Ofd(_)) && flock.l_pid != 0 {
        return Err(Errno::EINVAL);
    }
    let wanted = decode_lock(file, &flock, owner)?;
    match file.inode().and_then(|i| i.locks.test(&wanted)) {
        None => flock.l_type = uapi::F_UNLCK as i16,
        Some(found) => {
            flock.l_type = if found.write { uapi::F_WRLCK } else { uapi::F_RDLCK } as i16;
            flock.l_whence = uapi::SEEK_SET as i16;
            flock.l_start = found.start as i64;
            flock.l_len = if found.end == OFFSET_MAX { 0 } else { (found.end - found.start + 1) as i64 };
            flock.l_pid = process::number_seen(found.pid);
        }
    }
    ptr.write(&flock)
}

fn set_lock(file: &alloc::sync::Arc<File>, files: &FdTable, fd: i32, arg: u64, owner: LockOwner, wait: bool) -> Result {
    let flock = UserPtr::<Flock>::new(arg).read()?;
    if matches!(owner, LockOwner::Ofd(_)) && flock.l_pid != 0 {
        return Err(Errno::EINVAL);
    }
    let wanted = decode_lock(file, &flock, owner)?;
    let inode = file.inode().ok_or(Errno::EBADF)?;
    match flock.l_type as u32 {
        uapi::F_RDLCK => file.check_read()?,
        uapi::F_WRLCK => file.check_write()?,
        uapi::F_UNLCK => {
            inode.locks.unlock(owner, wanted.start, wanted.end);
            return Ok(());
        }
        _ => return Err(Errno::EINVAL),
    }
    inode.locks.lock(wanted, wait)?;
    // Another thread may have closed the descriptor while this one waited: its locks went then, this one must go too.
    if matches!(owner, LockOwner::Posix(_)) && !files.get_any(fd).is_ok_and(|now| alloc::sync::Arc::ptr_eq(&now, file))
    {
        inode.locks.unlock(owner, wanted.start, wanted.end);
        return Err(Errno::EBADF);
    }
    Ok(())
}

/// flock(2).
pub fn sys_flock(cx: &mut Cx<'_>, fd: i32, op: u32) -> Result {
    // Mandatory locks were never more than a flag, and since Linux 5.17 not even that.
    const LOCK_MAND: u32 = 32;
    if op & LOCK_MAND != 0 {
        return Ok(());
    }
    let wait = op & uapi::LOCK_NB == 0;
    let kind = op & !uapi::LOCK_NB;
    if !matches!(kind, uapi::LOCK_SH | uapi::LOCK_EX | uapi::LOCK_UN) {
        return Err(Errno::EINVAL);
    }
    let file = cx.thread.file(fd)?;
    let inode = file.inode().ok_or(Errno::EBADF)?;
    let owner = LockOwner::Flock(file.id());
    if kind == uapi::LOCK_UN {
        inode.locks.unlock(owner, 0, OFFSET_MAX);
        return Ok(());
    }
    if !file.mode().intersects(FileMode::READ | FileMode::WRITE) {
        return Err(Errno::EBADF);
    }
    let pid = current().process().pid();
    let lock = Lock { owner, write: kind == uapi::LOCK_EX, start: 0, end: OFFSET_MAX, pid };
    // Changing the kind gives the old lock up first, as Linux does.
    let held = inode.locks.list().iter().any(|l| l.owner == owner && l.write != lock.write);
    if held {
        inode.locks.unlock(owner, 0, OFFSET_MAX);
    }
    inode.locks.lock(lock, wait)
}

/// ioctl(2): what every file has; the rest is the file's own.
pub fn sys_ioctl(_cx: &mut Cx<'_>, fd: i32, cmd: u32, arg: usize) -> Result<i64> {
    let files = current().files();
    let file = files.get(fd)?;
    let ptr = UserAddr::new(arg as u64);
    match cmd {
        ioc::FIOCLEX => files.set_cloexec(fd, true).map(|()| 0),
        ioc::FIONCLEX => files.set_cloexec(fd, false).map(|()| 0),
        ioc::FIONBIO => {
            let on = UserPtr::<i32>::new(arg as u64).read()? != 0;
            let bit = if on { uapi::O_NONBLOCK } else { 0 };
            file.file_ops().set_flags(&file, file.flags() & SETFL_MASK & !uapi::O_NONBLOCK | bit)?;
            file.update_flags(uapi::O_NONBLOCK, bit);
            Ok(0)
        }
        ioc::FIOASYNC => {
            let on = UserPtr::<i32>::new(arg as u64).read()? != 0;
            if on != (file.flags() & uapi::FASYNC != 0) {
                set_async(&file, fd, on)?;
                file.update_flags(uapi::FASYNC, if on { uapi::FASYNC } else { 0 });
            }
            Ok(0)
        }
        ioc::FIOQSIZE => {
            let inode = file.inode().ok_or(Errno::ENOTTY)?;
            match inode.kind {
                FileKind::Regular | FileKind::Directory | FileKind::Symlink => {
                    user::write_bytes(ptr, &inode.len().to_ne_bytes()).map(|()| 0)
                }
                _ => Err(Errno::ENOTTY),
            }
        }
        ioc::FIONREAD if file.inode().is_some_and(|i| i.kind == FileKind::Regular) => {
            let size = file.inode().map_or(0, |i| i.len());
            let left = (size as i64 - *file.pos.lock() as i64).clamp(i32::MIN.into(), i32::MAX.into()) as i32;
            user::write_bytes(ptr, &left.to_ne_bytes()).map(|()| 0)
        }
        ioc::FIGETBSZ if file.inode().is_some() => {
            let size = file.inode().map_or(4096, |i| i.sb.block_size) as i32;
            user::write_bytes(ptr, &size.to_ne_bytes()).map(|()| 0)
        }
        ioc::FICLONE | ioc::FICLONERANGE | ioc::FIDEDUPERANGE => Err(Errno::EOPNOTSUPP),
        _ => file.file_ops().ioctl(&file, cmd, arg),
    }
}
