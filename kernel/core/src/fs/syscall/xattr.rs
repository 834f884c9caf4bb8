//! Extended attributes. References: xattr(7), setxattr(2), getxattr(2), listxattr(2), removexattr(2).

use alloc::{sync::Arc, vec::Vec};

use linux_uapi::{
    raw::general as uapi,
    zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout},
};

use super::{at_flags, resolve};
use crate::{
    Errno, Result,
    fs::{
        acl,
        inode::{FileKind, Inode},
        mount::Mount,
        notify::{self, mask},
        path::LookupFlags,
        permission::{self, MAY_READ, MAY_WRITE},
    },
    process::{Cap, capable, current},
    syscall::Cx,
    user::{self, UserAddr, UserPtr},
};

const NAME_MAX: usize = 255;
const SIZE_MAX: usize = 65536;
const LIST_MAX: usize = 65536;

/// What the calls work on: an inode through a mount, if it was reached by one.
struct Target {
    inode: Arc<Inode>,
    mount: Option<Arc<Mount>>,
}

fn by_path(path: UserAddr, follow: bool) -> Result<Target> {
    let flags = if follow { LookupFlags::FOLLOW } else { LookupFlags::empty() };
    let at = resolve(uapi::AT_FDCWD, path, flags)?;
    Ok(Target { inode: at.inode()?.clone(), mount: Some(at.mount) })
}

fn by_fd(cx: &Cx<'_>, fd: i32) -> Result<Target> {
    let file = cx.thread.file(fd)?;
    let inode = file.inode().ok_or(Errno::EOPNOTSUPP)?.clone();
    Ok(Target { inode, mount: file.path().map(|p| p.mount.clone()) })
}

fn by_at(dirfd: i32, path: UserAddr, flags: u32) -> Result<Target> {
    let lookup = at_flags(flags, uapi::AT_SYMLINK_NOFOLLOW | uapi::AT_EMPTY_PATH)?;
    let at = resolve(dirfd, path, lookup)?;
    Ok(Target { inode: at.inode()?.clone(), mount: Some(at.mount) })
}

fn read_name(addr: UserAddr) -> Result<Vec<u8>> {
    let name =
        user::read_cstr(addr, NAME_MAX + 1).map_err(|e| if e == Errno::ENAMETOOLONG { Errno::ERANGE } else { e })?;
    if name.is_empty() {
        return Err(Errno::ERANGE);
    }
    Ok(name)
}

/// Whether the caller may use attribute `name`, by its name space.
fn check(target: &Target, name: &[u8], write: bool) -> Result {
    if write && let Some(mount) = &target.mount {
        mount.check_writable()?;
    }
    let inode = &target.inode;
    if name.starts_with(b"security.") {
        if write && name == b"security.capability" && !capable(Cap::Setfcap) {
            return Err(Errno::EPERM);
        }
        if write && name != b"security.capability" && !capable(Cap::SysAdmin) {
            return Err(Errno::EPERM);
        }
        return Ok(());
    }
    if acl::is_kept(inode, name) {
        // Who sees the file sees its lists.
        return if write && !permission::owner_or_capable(inode, &current().cred()) {
            Err(Errno::EPERM)
        } else {
            Ok(())
        };
    }
    if name.starts_with(b"system.") {
        return Err(Errno::EOPNOTSUPP);
    }
    if name.starts_with(b"trusted.") {
        if !capable(Cap::SysAdmin) {
            return Err(if write { Errno::EPERM } else { Errno::ENODATA });
        }
        return Ok(());
    }
    if !name.starts_with(b"user.") {
        return Err(Errno::EOPNOTSUPP);
    }
    if !matches!(inode.kind, FileKind::Regular | FileKind::Directory) {
        return Err(if write { Errno::EPERM } else { Errno::ENODATA });
    }
    let cred = current().cred();
    if inode.is_dir() && inode.mode() & uapi::S_ISVTX != 0 && write && !permission::owner_or_capable(inode, &cred) {
        return Err(Errno::EPERM);
    }
    permission::check(inode, if write { MAY_WRITE } else { MAY_READ }, &cred)
}

fn set_acl(target: &Target, name: &[u8], value: &[u8]) -> Result {
    let cred = current().cred();
    acl::set(&target.inode, name, value, cred.in_group(target.inode.gid()) || cred.has_cap(Cap::Fsetid))
}

fn set(target: &Target, name: UserAddr, value: UserAddr, size: usize, flags: u32) -> Result {
    if flags & !(uapi::XATTR_CREATE | uapi::XATTR_REPLACE) != 0 {
        return Err(Errno::EINVAL);
    }
    let name = read_name(name)?;
    if size > SIZE_MAX {
        return Err(Errno::E2BIG);
    }
    let mut data = alloc::vec![0; size];
    user::read_bytes(value, &mut data)?;
    check(target, &name, true)?;
    let _guard = target.inode.lock.write();
    if acl::is_kept(&target.inode, &name) {
        set_acl(target, &name, &data)?;
    } else {
        target.inode.ops().setxattr(&target.inode, &name, &data, flags)?;
    }
    notify::inode_event(&target.inode, mask::ATTRIB);
    Ok(())
}

fn get(target: &Target, name: UserAddr, value: UserAddr, size: usize) -> Result<usize> {
    let name = read_name(name)?;
    check(target, &name, false)?;
    let data = if acl::is_kept(&target.inode, &name) {
        acl::get(&target.inode, &name)?
    } else {
        target.inode.ops().getxattr(&target.inode, &name)?
    };
    if size == 0 {
        return Ok(data.len());
    }
    if data.len() > size {
        return Err(Errno::ERANGE);
    }
    user::write_bytes(value, &data)?;
    Ok(data.len())
}

fn list(target: &Target, out: UserAddr, size: usize) -> Result<usize> {
    let mut names = target.inode.ops().listxattr(&target.inode)?;
    acl::append_names(&target.inode, &mut names);
    if !capable(Cap::SysAdmin) {
        let mut visible = Vec::with_capacity(names.len());
        for name in names.split_inclusive(|b| *b == 0).filter(|n| !n.starts_with(b"trusted.")) {
            visible.extend_from_slice(name);
        }
        names = visible;
    }
    if size == 0 {
        return Ok(names.len());
    }
    if names.len() > LIST_MAX {
        return Err(Errno::E2BIG);
    }
    if names.len() > size {
        return Err(Errno::ERANGE);
    }
    user::write_bytes(out, &names)?;
    Ok(names.len())
}

fn remove(target: &Target, name: UserAddr) -> Result {
    let name = read_name(name)?;
    check(target, &name, true)?;
    let _guard = target.inode.lock.write();
    if acl::is_kept(&target.inode, &name) {
        set_acl(target, &name, &[])?;
    } else {
        target.inode.ops().removexattr(&target.inode, &name)?;
    }
    notify::inode_event(&target.inode, mask::ATTRIB);
    Ok(())
}

pub fn sys_setxattr(
    _cx: &mut Cx<'_>,
    path: UserAddr,
    name: UserAddr,
    value: UserAddr,
    size: usize,
    flags: u32,
) -> Result {
    set(&by_path(path, true)?, name, value, size, flags)
}

pub fn sys_lsetxattr(
    _cx: &mut Cx<'_>,
    path: UserAddr,
    name: UserAddr,
    value: UserAddr,
    size: usize,
    flags: u32,
) -> Result {
    set(&by_path(path, false)?, name, value, size, flags)
}

pub fn sys_fsetxattr(cx: &mut Cx<'_>, fd: i32, name: UserAddr, value: UserAddr, size: usize, flags: u32) -> Result {
    set(&by_fd(cx, fd)?, name, value, size, flags)
}

pub fn sys_getxattr(_cx: &mut Cx<'_>, path: UserAddr, name: UserAddr, value: UserAddr, size: usize) -> Result<usize> {
    get(&by_path(path, true)?, name, value, size)
}

pub fn sys_lgetxattr(_cx: &mut Cx<'_>, path: UserAddr, name: UserAddr, value: UserAddr, size: usize) -> Result<usize> {
    get(&by_path(path, false)?, name, value, size)
}

pub fn sys_fgetxattr(cx: &mut Cx<'_>, fd: i32, name: UserAddr, value: UserAddr, size: usize) -> Result<usize> {
    get(&by_fd(cx, fd)?, name, value, size)
}

pub fn sys_listxattr(_cx: &mut Cx<'_>, path: UserAddr, out: UserAddr, size: usize) -> Result<usize> {
    list(&by_path(path, true)?, out, size)
}

pub fn sys_llistxattr(_cx: &mut Cx<'_>, path: UserAddr, out: UserAddr, size: usize) -> Result<usize> {
    list(&by_path(path, false)?, out, size)
}

pub fn sys_flistxattr(cx: &mut Cx<'_>, fd: i32, out: UserAddr, size: usize) -> Result<usize> {
    list(&by_fd(cx, fd)?, out, size)
}

pub fn sys_removexattr(_cx: &mut Cx<'_>, path: UserAddr, name: UserAddr) -> Result {
    remove(&by_path(path, true)?, name)
}

pub fn sys_lremovexattr(_cx: &mut Cx<'_>, path: UserAddr, name: UserAddr) -> Result {
    remove(&by_path(path, false)?, name)
}

pub fn sys_fremovexattr(cx: &mut Cx<'_>, fd: i32, name: UserAddr) -> Result {
    remove(&by_fd(cx, fd)?, name)
}

/// `struct xattr_args` of `setxattrat` and `getxattrat`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

fn read_args(args: UserPtr<XattrArgs>, size: usize) -> Result<XattrArgs> {
    if size < size_of::<XattrArgs>() {
        return Err(Errno::EINVAL);
    }
    if size > size_of::<XattrArgs>() {
        // A longer structure of a newer program is fine when what we do not know is zero.
        if size > 4096 {
            return Err(Errno::E2BIG);
        }
        let rest = user::read_slice(args.add(1).cast::<u8>(), size - size_of::<XattrArgs>())?;
        if rest.iter().any(|b| *b != 0) {
            return Err(Errno::E2BIG);
        }
    }
    args.read()
}

pub fn sys_setxattrat(
    _cx: &mut Cx<'_>,
    dirfd: i32,
    path: UserAddr,
    at: u32,
    name: UserAddr,
    args: UserPtr<XattrArgs>,
    size: usize,
) -> Result {
    let args = read_args(args, size)?;
    set(&by_at(dirfd, path, at)?, name, UserAddr::new(args.value), args.size as usize, args.flags)
}

pub fn sys_getxattrat(
    _cx: &mut Cx<'_>,
    dirfd: i32,
    path: UserAddr,
    at: u32,
    name: UserAddr,
    args: UserPtr<XattrArgs>,
    size: usize,
) -> Result<usize> {
    let args = read_args(args, size)?;
    if args.flags != 0 {
        return Err(Errno::EINVAL);
    }
    get(&by_at(dirfd, path, at)?, name, UserAddr::new(args.value), args.size as usize)
}

pub fn sys_listxattrat(
    _cx: &mut Cx<'_>,
    dirfd: i32,
    path: UserAddr,
    at: u32,
    out: UserAddr,
    size: usize,
) -> Result<usize> {
    list(&by_at(dirfd, path, at)?, out, size)
}

pub fn sys_removexattrat(_cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, at: u32, name: UserAddr) -> Result {
    remove(&by_at(dirfd, path, at)?, name)
}
