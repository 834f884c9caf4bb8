//! Attributes and access checks. References: stat(2), statx(2), access(2).

use linux_uapi::{
    raw::general as uapi,
    stat::{Stat, Statx, StatxTimestamp},
};

use super::{UserPath, at_flags, resolve};
use crate::{
    Errno, Result,
    fs::{
        anon,
        dev::{major, minor, user_dev},
        file::File,
        inode::{Attr, FileKind, Time},
        path::{self, LookupFlags, Path},
        permission,
    },
    process::{CapSet, cred::SecureBits, current},
    syscall::Cx,
    user::{UserAddr, UserPtr},
};

fn to_stat(attr: &Attr, dev: u32) -> Stat {
    Stat {
        st_dev: user_dev(dev),
        st_ino: attr.ino,
        st_nlink: u64::from(attr.nlink),
        st_mode: attr.mode,
        st_uid: attr.uid,
        st_gid: attr.gid,
        st_rdev: user_dev(attr.rdev),
        st_size: attr.size as i64,
        st_blksize: i64::from(attr.blksize),
        st_blocks: attr.blocks as i64,
        st_atime: attr.atime.sec,
        st_atime_nsec: i64::from(attr.atime.nsec),
        st_mtime: attr.mtime.sec,
        st_mtime_nsec: i64::from(attr.mtime.nsec),
        st_ctime: attr.ctime.sec,
        st_ctime_nsec: i64::from(attr.ctime.nsec),
        ..Stat::default()
    }
}

fn path_stat(path: &Path) -> Result<Stat> {
    let inode = path.inode()?;
    Ok(to_stat(&inode.attr()?, inode.sb.dev))
}

/// The inode number that all anonymous files without one of their own share.
const ANON_INO: u64 = 1;

/// Attributes of an open file.
pub fn file_stat(file: &File) -> Result<Stat> {
    if let Some(stat) = file.file_ops().stat(file)? {
        // The number that a path to it (`/proc/self/fd/N`) shows too: programs compare the two.
        return Ok(Stat { st_dev: user_dev(anon::device_of(stat.st_mode)), ..stat });
    }
    match file.inode() {
        Some(inode) => Ok(to_stat(&inode.attr()?, inode.sb.dev)),
        None => Ok(Stat {
            st_dev: user_dev(anon::device_of(0)),
            st_ino: ANON_INO,
            st_nlink: 1,
            st_mode: 0o600,
            st_blksize: 4096,
            ..Stat::default()
        }),
    }
}

pub fn sys_stat(_cx: &mut Cx<'_>, path: UserAddr, out: UserPtr<Stat>) -> Result {
    out.write(&path_stat(&resolve(uapi::AT_FDCWD, path, LookupFlags::FOLLOW)?)?)
}

pub fn sys_lstat(_cx: &mut Cx<'_>, path: UserAddr, out: UserPtr<Stat>) -> Result {
    out.write(&path_stat(&resolve(uapi::AT_FDCWD, path, LookupFlags::empty())?)?)
}

pub fn sys_fstat(_cx: &mut Cx<'_>, fd: i32, out: UserPtr<Stat>) -> Result {
    let file = current().files().get_any(fd)?;
    out.write(&file_stat(&file)?)
}

const STAT_FLAGS: u32 = uapi::AT_SYMLINK_NOFOLLOW | uapi::AT_NO_AUTOMOUNT | uapi::AT_EMPTY_PATH;

pub fn sys_newfstatat(_cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, out: UserPtr<Stat>, flags: u32) -> Result {
    let lookup = at_flags(flags, STAT_FLAGS)?;
    let path = UserPath::read_or_empty(path, flags & uapi::AT_EMPTY_PATH != 0)?;
    if path.bytes().is_empty() && flags & uapi::AT_EMPTY_PATH != 0 && dirfd >= 0 {
        let file = current().files().get_any(dirfd)?;
        return out.write(&file_stat(&file)?);
    }
    out.write(&path_stat(&path::lookup_at(dirfd, path.bytes(), lookup)?)?)
}

fn stamp(time: Time) -> StatxTimestamp {
    StatxTimestamp { tv_sec: time.sec, tv_nsec: time.nsec, reserved: 0 }
}

pub fn sys_statx(_cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, flags: u32, wanted: u32, out: UserPtr<Statx>) -> Result {
    if wanted & uapi::STATX__RESERVED != 0 || flags & uapi::AT_STATX_SYNC_TYPE == uapi::AT_STATX_SYNC_TYPE {
        return Err(Errno::EINVAL);
    }
    let lookup = at_flags(flags & !uapi::AT_STATX_SYNC_TYPE, STAT_FLAGS)?;
    let path = UserPath::read_or_empty(path, flags & uapi::AT_EMPTY_PATH != 0)?;
    let mut statx = Statx::default();
    let mut btime = None;
    let found;
    let stat = if path.bytes().is_empty() && flags & uapi::AT_EMPTY_PATH != 0 && dirfd >= 0 {
        let file = current().files().get_any(dirfd)?;
        let stat = file_stat(&file)?;
        btime = file.inode().and_then(|i| i.attr().ok()).and_then(|a| a.btime);
        found = file.path().cloned();
        stat
    } else {
        let at = path::lookup_at(dirfd, path.bytes(), lookup)?;
        let inode = at.inode()?;
        let attr = inode.attr()?;
        btime = attr.btime.or(btime);
        let stat = to_stat(&attr, inode.sb.dev);
        found = Some(at);
        stat
    };
    statx.stx_mask = uapi::STATX_BASIC_STATS;
    statx.stx_blksize = stat.st_blksize as u32;
    statx.stx_nlink = stat.st_nlink as u32;
    statx.stx_uid = stat.st_uid;
    statx.stx_gid = stat.st_gid;
    statx.stx_mode = stat.st_mode as u16;
    statx.stx_ino = stat.st_ino;
    statx.stx_size = stat.st_size as u64;
    statx.stx_blocks = stat.st_blocks as u64;
    statx.stx_atime = StatxTimestamp { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as u32, reserved: 0 };
    statx.stx_mtime = StatxTimestamp { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as u32, reserved: 0 };
    statx.stx_ctime = StatxTimestamp { tv_sec: stat.st_ctime, tv_nsec: stat.st_ctime_nsec as u32, reserved: 0 };
    if let Some(btime) = btime {
        statx.stx_btime = stamp(btime);
        statx.stx_mask |= uapi::STATX_BTIME;
    }
    statx.stx_rdev_major = major(stat.st_rdev as u32);
    statx.stx_rdev_minor = minor(stat.st_rdev as u32);
    statx.stx_dev_major = major(stat.st_dev as u32);
    statx.stx_dev_minor = minor(stat.st_dev as u32);
    statx.stx_attributes_mask = u64::from(uapi::STATX_ATTR_MOUNT_ROOT);
    if let Some(at) = &found {
        if wanted & uapi::STATX_MNT_ID_UNIQUE != 0 {
            statx.stx_mnt_id = at.mount.unique_id();
            statx.stx_mask |= uapi::STATX_MNT_ID_UNIQUE;
        } else {
            statx.stx_mnt_id = at.mount.id;
            statx.stx_mask |= uapi::STATX_MNT_ID;
        }
        if at.is_mount_root() {
            statx.stx_attributes |= u64::from(uapi::STATX_ATTR_MOUNT_ROOT);
        }
    }
    out.write(&statx)
}

fn do_access(dirfd: i32, path: UserAddr, mode: u32, flags: u32) -> Result {
    if mode & !7 != 0 {
        return Err(Errno::EINVAL);
    }
    let lookup = at_flags(flags & !uapi::AT_EACCESS, uapi::AT_SYMLINK_NOFOLLOW | uapi::AT_EMPTY_PATH)?;
    let mut cred = current().cred();
    if flags & uapi::AT_EACCESS == 0 && (cred.fsuid != cred.uid || cred.fsgid != cred.gid || !cred.effective.is_empty())
    {
        // The question is what the real user may do.
        let mut real = (*cred).clone();
        real.fsuid = real.uid;
        real.fsgid = real.gid;
        if !real.securebits.contains(SecureBits::NO_SETUID_FIXUP) {
            real.effective = if real.uid == 0 { real.permitted } else { CapSet::EMPTY };
        }
        cred = alloc::sync::Arc::new(real);
    }
    let path = UserPath::read_or_empty(path, flags & uapi::AT_EMPTY_PATH != 0)?;
    let start = path::start_at(dirfd, path.bytes())?;
    let at = path::lookup_as(&cred, &start, path.bytes(), lookup)?;
    let inode = at.inode()?;
    if mode & permission::MAY_EXEC != 0 && inode.kind == FileKind::Regular && !at.mount.allows_exec() {
        return Err(Errno::EACCES);
    }
    permission::check(inode, mode | permission::MAY_ACCESS, &cred)?;
    let special =
        matches!(inode.kind, FileKind::CharDevice | FileKind::BlockDevice | FileKind::Fifo | FileKind::Socket);
    if mode & permission::MAY_WRITE != 0 && !special {
        at.mount.check_writable()?;
    }
    Ok(())
}

pub fn sys_access(_cx: &mut Cx<'_>, path: UserAddr, mode: u32) -> Result {
    do_access(uapi::AT_FDCWD, path, mode, 0)
}

pub fn sys_faccessat(_cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, mode: u32) -> Result {
    do_access(dirfd, path, mode, 0)
}

pub fn sys_faccessat2(_cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, mode: u32, flags: u32) -> Result {
    do_access(dirfd, path, mode, flags)
}
