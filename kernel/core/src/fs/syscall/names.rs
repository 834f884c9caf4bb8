//! Names and directories. References: mkdir(2), rename(2), link(2), unlink(2), readlink(2), getdents(2), getcwd(2),
//! chdir(2), chroot(2), umask(2).

use alloc::vec::Vec;

use linux_uapi::{
    raw::general as uapi,
    stat::{Dirent, Dirent64},
    zerocopy::IntoBytes,
};

use super::{UserPath, resolve, start};
use crate::{
    Errno, Result,
    fs::{
        dev,
        file::{DirSink, FileMode},
        inode::{FileKind, LinkTarget},
        namei,
        path::{self, LookupFlags, Path},
        permission::{self, MAY_EXEC},
    },
    process::{Cap, capable, current},
    syscall::Cx,
    user::{self, PATH_MAX, UserAddr},
};

pub fn sys_mkdirat(_cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, mode: u32) -> Result {
    let path = UserPath::read(path)?;
    namei::mkdir(&start(dirfd, &path)?, path.bytes(), mode)
}

pub fn sys_mkdir(cx: &mut Cx<'_>, path: UserAddr, mode: u32) -> Result {
    sys_mkdirat(cx, uapi::AT_FDCWD, path, mode)
}

pub fn sys_mknodat(_cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, mode: u32, rdev: u32) -> Result {
    let path = UserPath::read(path)?;
    let rdev = dev::make_dev(dev::major(rdev), dev::minor(rdev));
    namei::mknod(&start(dirfd, &path)?, path.bytes(), mode, rdev)
}

pub fn sys_mknod(cx: &mut Cx<'_>, path: UserAddr, mode: u32, rdev: u32) -> Result {
    sys_mknodat(cx, uapi::AT_FDCWD, path, mode, rdev)
}

pub fn sys_symlinkat(_cx: &mut Cx<'_>, target: UserAddr, dirfd: i32, path: UserAddr) -> Result {
    let target = UserPath::read(target)?;
    let path = UserPath::read(path)?;
    namei::symlink(target.bytes(), &start(dirfd, &path)?, path.bytes())
}

pub fn sys_symlink(cx: &mut Cx<'_>, target: UserAddr, path: UserAddr) -> Result {
    sys_symlinkat(cx, target, uapi::AT_FDCWD, path)
}

pub fn sys_linkat(
    _cx: &mut Cx<'_>,
    old_dirfd: i32,
    old: UserAddr,
    new_dirfd: i32,
    new: UserAddr,
    flags: u32,
) -> Result {
    if flags & !(uapi::AT_SYMLINK_FOLLOW | uapi::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let mut lookup = LookupFlags::empty();
    if flags & uapi::AT_SYMLINK_FOLLOW != 0 {
        lookup |= LookupFlags::FOLLOW;
    }
    if flags & uapi::AT_EMPTY_PATH != 0 {
        lookup |= LookupFlags::EMPTY;
    }
    let old_path = UserPath::read(old)?;
    // Naming a file by its descriptor alone would give it a name that its directory's permissions withheld.
    if old_path.bytes().is_empty() && flags & uapi::AT_EMPTY_PATH != 0 && !capable(Cap::DacReadSearch) {
        return Err(Errno::ENOENT);
    }
    let found = path::lookup_at(old_dirfd, old_path.bytes(), lookup)?;
    let path = UserPath::read(new)?;
    namei::link(&found, &start(new_dirfd, &path)?, path.bytes())
}

pub fn sys_link(cx: &mut Cx<'_>, old: UserAddr, new: UserAddr) -> Result {
    sys_linkat(cx, uapi::AT_FDCWD, old, uapi::AT_FDCWD, new, 0)
}

pub fn sys_unlinkat(_cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, flags: u32) -> Result {
    if flags & !uapi::AT_REMOVEDIR != 0 {
        return Err(Errno::EINVAL);
    }
    let path = UserPath::read(path)?;
    let start = start(dirfd, &path)?;
    if flags & uapi::AT_REMOVEDIR != 0 {
        namei::rmdir(&start, path.bytes())
    } else {
        namei::unlink(&start, path.bytes())
    }
}

pub fn sys_unlink(cx: &mut Cx<'_>, path: UserAddr) -> Result {
    sys_unlinkat(cx, uapi::AT_FDCWD, path, 0)
}

pub fn sys_rmdir(cx: &mut Cx<'_>, path: UserAddr) -> Result {
    sys_unlinkat(cx, uapi::AT_FDCWD, path, uapi::AT_REMOVEDIR)
}

pub fn sys_renameat2(
    _cx: &mut Cx<'_>,
    old_dirfd: i32,
    old: UserAddr,
    new_dirfd: i32,
    new: UserAddr,
    flags: u32,
) -> Result {
    let old = UserPath::read(old)?;
    let new = UserPath::read(new)?;
    namei::rename(&start(old_dirfd, &old)?, old.bytes(), &start(new_dirfd, &new)?, new.bytes(), flags)
}

pub fn sys_renameat(cx: &mut Cx<'_>, old_dirfd: i32, old: UserAddr, new_dirfd: i32, new: UserAddr) -> Result {
    sys_renameat2(cx, old_dirfd, old, new_dirfd, new, 0)
}

pub fn sys_rename(cx: &mut Cx<'_>, old: UserAddr, new: UserAddr) -> Result {
    sys_renameat2(cx, uapi::AT_FDCWD, old, uapi::AT_FDCWD, new, 0)
}

pub fn sys_readlinkat(_cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, buf: UserAddr, size: i32) -> Result<usize> {
    let size = usize::try_from(size).ok().filter(|s| *s > 0).ok_or(Errno::EINVAL)?;
    let path = UserPath::read(path)?;
    // An empty path reads the link that an O_PATH descriptor stands for.
    let empty = path.bytes().is_empty();
    let at = path::lookup_at(dirfd, path.bytes(), LookupFlags::EMPTY)?;
    let inode = at.inode()?;
    if inode.kind != FileKind::Symlink || empty && dirfd < 0 {
        return Err(if empty { Errno::ENOENT } else { Errno::EINVAL });
    }
    let target = match inode.ops().readlink(inode)? {
        LinkTarget::Path(body) => body.to_vec(),
        LinkTarget::Jump(path) => path.display_link(&current().fs().root()),
        LinkTarget::Name(name) => name,
    };
    inode.accessed(&at.mount, 0);
    let n = target.len().min(size);
    user::write_bytes(buf, &target[..n])?;
    Ok(n)
}

pub fn sys_readlink(cx: &mut Cx<'_>, path: UserAddr, buf: UserAddr, size: i32) -> Result<usize> {
    sys_readlinkat(cx, uapi::AT_FDCWD, path, buf, size)
}

pub fn sys_getcwd(_cx: &mut Cx<'_>, buf: UserAddr, size: usize) -> Result<usize> {
    let (root, cwd) = current().fs().dirs();
    if cwd.dentry.is_deleted() {
        return Err(Errno::ENOENT);
    }
    let (path, reachable) = cwd.display(&root);
    let mut out = Vec::with_capacity(path.len() + 16);
    if !reachable {
        out.extend_from_slice(b"(unreachable)");
    }
    out.extend_from_slice(&path);
    out.push(0);
    if out.len() > PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    if out.len() > size {
        return Err(Errno::ERANGE);
    }
    user::write_bytes(buf, &out)?;
    Ok(out.len())
}

fn searchable(path: &Path) -> Result {
    current().with_cred(|cred| permission::check(path.inode()?, MAY_EXEC | permission::MAY_ACCESS, cred))
}

pub fn sys_chdir(_cx: &mut Cx<'_>, path: UserAddr) -> Result {
    let at = resolve(uapi::AT_FDCWD, path, LookupFlags::FOLLOW | LookupFlags::DIRECTORY)?;
    searchable(&at)?;
    current().fs().set_cwd(at);
    Ok(())
}

pub fn sys_fchdir(_cx: &mut Cx<'_>, fd: i32) -> Result {
    let file = current().files().get_any(fd)?;
    let at = file.path().ok_or(Errno::ENOTDIR)?;
    if !at.inode()?.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    searchable(at)?;
    current().fs().set_cwd(at.clone());
    Ok(())
}

pub fn sys_chroot(_cx: &mut Cx<'_>, path: UserAddr) -> Result {
    let at = resolve(uapi::AT_FDCWD, path, LookupFlags::FOLLOW | LookupFlags::DIRECTORY)?;
    searchable(&at)?;
    if !capable(Cap::SysChroot) {
        return Err(Errno::EPERM);
    }
    current().fs().set_root(at);
    Ok(())
}

pub fn sys_umask(_cx: &mut Cx<'_>, mask: u32) -> Result<u32> {
    Ok(current().fs().set_umask(mask))
}

/// Collects entries in the form of `getdents64` or `getdents`; they are copied out when the directory is unlocked.
struct Entries {
    out: Vec<u8>,
    room: usize,
    old_form: bool,
}

impl DirSink for Entries {
    fn emit(&mut self, name: &[u8], ino: u64, kind: u8, next: u64) -> bool {
        let fixed = if self.old_form { size_of::<Dirent>() + 1 } else { size_of::<Dirent64>() };
        let len = (fixed + name.len() + 1).next_multiple_of(8);
        if self.out.len() + len > self.room {
            return false;
        }
        let start = self.out.len();
        if self.old_form {
            let head = Dirent { d_ino: ino, d_off: next as i64, d_reclen: len as u16 };
            self.out.extend_from_slice(head.as_bytes());
        } else {
            let head = Dirent64 { d_ino: ino, d_off: next as i64, d_reclen: len as u16, d_type: kind };
            self.out.extend_from_slice(head.as_bytes());
        }
        self.out.extend_from_slice(name);
        self.out.resize(start + len, 0);
        if self.old_form {
            self.out[start + len - 1] = kind;
        }
        true
    }
}

fn list(fd: i32, buf: UserAddr, size: u32, old_form: bool) -> Result<usize> {
    let file = current().files().get(fd)?;
    let inode = file.inode().filter(|i| i.is_dir()).ok_or(Errno::ENOTDIR)?;
    if !file.mode().contains(FileMode::READ) {
        return Err(Errno::EBADF);
    }
    let room = (size as usize).min(1 << 18);
    let mut sink = Entries { out: Vec::new(), room, old_form };
    sink.out.try_reserve(room.min(32 * 1024)).map_err(|_| Errno::ENOMEM)?;
    let mut pos = file.pos.lock();
    let mut next = *pos;
    {
        let _guard = inode.lock.read();
        if inode.dead.load(core::sync::atomic::Ordering::Relaxed) {
            return Err(Errno::ENOENT);
        }
        file.file_ops().readdir(&file, &mut next, &mut sink)?;
    }
    if sink.out.is_empty() && next == *pos && size < 24 {
        return Err(Errno::EINVAL);
    }
    if sink.out.is_empty() {
        // Either the end, or the buffer cannot hold even one entry.
        let mut probe = Entries { out: Vec::new(), room: usize::MAX, old_form };
        let mut again = *pos;
        file.file_ops().readdir(&file, &mut again, &mut OneEntry(&mut probe))?;
        if !probe.out.is_empty() {
            return Err(Errno::EINVAL);
        }
    }
    user::write_bytes(buf, &sink.out)?;
    *pos = next;
    Ok(sink.out.len())
}

/// Takes a single entry.
struct OneEntry<'a>(&'a mut Entries);

impl DirSink for OneEntry<'_> {
    fn emit(&mut self, name: &[u8], ino: u64, kind: u8, next: u64) -> bool {
        self.0.out.is_empty() && self.0.emit(name, ino, kind, next)
    }
}

pub fn sys_getdents64(_cx: &mut Cx<'_>, fd: i32, buf: UserAddr, size: u32) -> Result<usize> {
    list(fd, buf, size, false)
}

pub fn sys_getdents(_cx: &mut Cx<'_>, fd: i32, buf: UserAddr, size: u32) -> Result<usize> {
    list(fd, buf, size, true)
}
