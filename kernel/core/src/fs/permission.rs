//! Who may do what to a file: mode bits, capabilities, sticky directories, protected links.
//!
//! Checks use the file-system ids (`fsuid`, `fsgid`) of the given credentials. The owner, group and other bits decide in
//! that order; `CAP_DAC_OVERRIDE` and `CAP_DAC_READ_SEARCH` override as in Linux. The protections of links, FIFOs and
//! regular files in world-writable sticky directories are those that Debian switches on.
//!
//! References: path_resolution(7), capabilities(7), `/proc/sys/fs/protected_*` in proc_sys_fs(5).

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use linux_uapi::raw::general as uapi;

use super::inode::{FileKind, Inode};
use crate::{
    Errno, Result,
    process::{Cap, Credentials},
};

/// Search a directory, execute a file.
pub const MAY_EXEC: u32 = 1;
/// Write.
pub const MAY_WRITE: u32 = 2;
/// Read.
pub const MAY_READ: u32 = 4;

/// Asked for its own sake (access(2), chdir(2)) and not on the way to an operation that is checked again.
pub const MAY_ACCESS: u32 = 0x10;

/// `/proc/sys/fs/protected_symlinks`
pub static PROTECTED_SYMLINKS: AtomicU32 = AtomicU32::new(1);
/// `/proc/sys/fs/protected_hardlinks`
pub static PROTECTED_HARDLINKS: AtomicU32 = AtomicU32::new(1);
/// `/proc/sys/fs/protected_fifos`
pub static PROTECTED_FIFOS: AtomicU32 = AtomicU32::new(1);
/// `/proc/sys/fs/protected_regular`
pub static PROTECTED_REGULAR: AtomicU32 = AtomicU32::new(2);

/// Checks that `inode` allows `mask` (`MAY_*`) to `cred`.
///
/// # Errors
/// `EACCES`, and what the file system reports.
pub fn check(inode: &Inode, mask: u32, cred: &Credentials) -> Result {
    if !inode.sb.own_permissions {
        if inode.sb.attributes_expire {
            inode.ops().refresh_mode(inode)?;
        }
        check_mode(inode, mask & !MAY_ACCESS, cred)?;
    }
    inode.ops().permission(inode, mask)
}

/// As [`check`] with search permission for a directory: the step of every path component.
#[inline]
pub fn check_search(inode: &Inode, cred: &Credentials) -> Result {
    // Most directories let everybody search.
    if inode.mode() & 0o111 == 0o111 && !inode.sb.attributes_expire && !inode.acls.any() {
        return Ok(());
    }
    check(inode, MAY_EXEC, cred)
}

fn check_mode(inode: &Inode, mask: u32, cred: &Credentials) -> Result {
    let mode = inode.mode();
    let owner = cred.fsuid == inode.uid();
    // Without group bits the list's mask is empty: the list denies, or it says what the other bits say.
    let list = if owner || mode & 0o070 == 0 { None } else { inode.acls.access() };
    let bits = if owner {
        mode >> 6
    } else if let Some(list) = list {
        if list.allows(mask, inode.gid(), cred) { 7 } else { 0 }
    } else if mode & 0o070 != (mode & 0o007) << 3 && cred.in_group(inode.gid()) {
        mode >> 3
    } else {
        mode
    };
    if mask & !bits & 7 == 0 {
        return Ok(());
    }
    let dir = inode.is_dir();
    if (mask & MAY_WRITE == 0 && (dir || mask == MAY_READ)) && cred.has_cap(Cap::DacReadSearch) {
        return Ok(());
    }
    // Executing needs one execute bit even for the privileged.
    if (dir || mask & MAY_EXEC == 0 || mode & 0o111 != 0) && cred.has_cap(Cap::DacOverride) {
        return Ok(());
    }
    Err(Errno::EACCES)
}

/// Whether `cred` owns `inode` or may act as if.
#[inline]
pub fn owner_or_capable(inode: &Inode, cred: &Credentials) -> bool {
    cred.fsuid == inode.uid() || cred.has_cap(Cap::Fowner)
}

/// Whether the sticky bit of `dir` keeps `cred` from removing or renaming `inode`.
fn sticky(dir: &Inode, inode: &Inode, cred: &Credentials) -> bool {
    dir.mode() & uapi::S_ISVTX != 0
        && inode.uid() != cred.fsuid
        && dir.uid() != cred.fsuid
        && !cred.has_cap(Cap::Fowner)
}

/// Checks that a name may be made in `dir`.
///
/// # Errors
/// `ENOENT` in a removed directory, `EACCES`.
pub fn may_create(dir: &Inode, cred: &Credentials) -> Result {
    if dir.dead.load(Ordering::Relaxed) {
        return Err(Errno::ENOENT);
    }
    check(dir, MAY_WRITE | MAY_EXEC, cred)
}

/// Checks that the name of `inode` may be removed from `dir`.
///
/// # Errors
/// `EACCES`, `EPERM` in a sticky directory, `ENOTDIR`/`EISDIR` for the wrong kind.
pub fn may_delete(dir: &Inode, inode: &Inode, want_dir: bool, cred: &Credentials) -> Result {
    check(dir, MAY_WRITE | MAY_EXEC, cred)?;
    if sticky(dir, inode, cred) {
        return Err(Errno::EPERM);
    }
    if want_dir && !inode.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    if !want_dir && inode.is_dir() {
        return Err(Errno::EISDIR);
    }
    if dir.dead.load(Ordering::Relaxed) {
        return Err(Errno::ENOENT);
    }
    Ok(())
}

/// Whether a symbolic link in `dir` may be followed (`protected_symlinks`).
///
/// # Errors
/// `EACCES`.
pub fn may_follow_link(dir: &Inode, link: &Inode, cred: &Credentials) -> Result {
    if PROTECTED_SYMLINKS.load(Ordering::Relaxed) == 0
        || link.uid() == cred.fsuid
        || dir.mode() & (uapi::S_ISVTX | uapi::S_IWOTH) != uapi::S_ISVTX | uapi::S_IWOTH
        || dir.uid() == link.uid()
    {
        return Ok(());
    }
    Err(Errno::EACCES)
}

/// Whether a further name may be made for `inode` (`protected_hardlinks`).
///
/// # Errors
/// `EPERM`.
pub fn may_link(inode: &Arc<Inode>, cred: &Credentials) -> Result {
    if PROTECTED_HARDLINKS.load(Ordering::Relaxed) == 0 || owner_or_capable(inode, cred) {
        return Ok(());
    }
    let mode = inode.mode();
    let safe = inode.kind == FileKind::Regular
        && mode & uapi::S_ISUID == 0
        && mode & (uapi::S_ISGID | uapi::S_IXGRP) != uapi::S_ISGID | uapi::S_IXGRP
        && check(inode, MAY_READ | MAY_WRITE, cred).is_ok();
    if safe { Ok(()) } else { Err(Errno::EPERM) }
}

/// Whether `O_CREAT` may open an existing file in a sticky directory (`protected_fifos`, `protected_regular`).
///
/// # Errors
/// `EACCES`.
pub fn may_create_in_sticky(dir: &Inode, inode: &Inode, cred: &Credentials) -> Result {
    let level = match inode.kind {
        FileKind::Fifo => PROTECTED_FIFOS.load(Ordering::Relaxed),
        FileKind::Regular => PROTECTED_REGULAR.load(Ordering::Relaxed),
        _ => 0,
    };
    let dir_mode = dir.mode();
    if level == 0 || dir_mode & uapi::S_ISVTX == 0 || inode.uid() == dir.uid() || inode.uid() == cred.fsuid {
        return Ok(());
    }
    if dir_mode & uapi::S_IWOTH != 0 || dir_mode & uapi::S_IWGRP != 0 && level >= 2 {
        return Err(Errno::EACCES);
    }
    Ok(())
}

/// A write by the unprivileged takes the set-ID bits from the file.
pub fn drop_set_id(inode: &Inode) {
    let privileged = crate::process::try_current().is_none_or(|t| t.with_cred(|c| c.has_cap(Cap::Fsetid)));
    if privileged {
        return;
    }
    let mode = inode.mode();
    let mut new = mode & !uapi::S_ISUID;
    if mode & uapi::S_IXGRP != 0 {
        new &= !uapi::S_ISGID;
    }
    inode.set_mode(new);
}
