//! Mounting and file system statistics. References: mount(2), umount2(2), pivot_root(2), statfs(2), ustat(2), quotactl(2).
//!
//! The calls that mount by descriptors are in [`super::mount_api`].

use alloc::{sync::Arc, vec::Vec};

use linux_uapi::{
    raw::general as uapi,
    stat::{Statfs, Ustat},
};

use super::{UserPath, resolve};
use crate::{
    Errno, Result,
    fs::{
        inode::{SbFlags, SuperBlock},
        mount::{self, Change, Mount, MountFlags, Propagation},
        mount_context,
        path::LookupFlags,
        registry,
    },
    process::{Cap, capable, current},
    syscall::Cx,
    user::{self, UserAddr, UserPtr},
};

/// `ST_VALID`: the flags field of `statfs` means something.
const ST_VALID: i64 = 0x20;
const ST_RELATIME: i64 = 0x1000;
const ST_NOSYMFOLLOW: i64 = 0x2000;

fn statfs(sb: &Arc<SuperBlock>, mount: Option<&Mount>) -> Result<Statfs> {
    let stat = sb.ops().statfs(sb)?;
    let mut flags = ST_VALID;
    let mount_flags = mount.map_or(MountFlags::empty(), |m| m.flags());
    for (flag, bit) in [
        (MountFlags::RDONLY, 1),
        (MountFlags::NOSUID, 2),
        (MountFlags::NODEV, 4),
        (MountFlags::NOEXEC, 8),
        (MountFlags::NOATIME, 0x400),
        (MountFlags::NODIRATIME, 0x800),
        (MountFlags::RELATIME, ST_RELATIME),
        (MountFlags::NOSYMFOLLOW, ST_NOSYMFOLLOW),
    ] {
        if mount_flags.contains(flag) {
            flags |= bit;
        }
    }
    if sb.flags().contains(SbFlags::RDONLY) {
        flags |= 1;
    }
    Ok(Statfs {
        f_type: stat.magic as i64,
        f_bsize: stat.block_size as i64,
        f_blocks: stat.blocks,
        f_bfree: stat.free,
        f_bavail: stat.available,
        f_files: stat.files,
        f_ffree: stat.files_free,
        f_fsid: [sb.dev as i32, 0],
        f_namelen: stat.name_max as i64,
        f_frsize: stat.block_size as i64,
        f_flags: flags,
        ..Statfs::default()
    })
}

pub fn sys_statfs(_cx: &mut Cx<'_>, path: UserAddr, out: UserPtr<Statfs>) -> Result {
    let at = resolve(uapi::AT_FDCWD, path, LookupFlags::FOLLOW)?;
    out.write(&statfs(&at.inode()?.sb, Some(&at.mount))?)
}

pub fn sys_fstatfs(_cx: &mut Cx<'_>, fd: i32, out: UserPtr<Statfs>) -> Result {
    let file = current().files().get_any(fd)?;
    let at = crate::fs::anon::path_of(&file)?;
    out.write(&statfs(&at.inode()?.sb, Some(&at.mount))?)
}

pub fn sys_ustat(_cx: &mut Cx<'_>, dev: u32, out: UserPtr<Ustat>) -> Result {
    let m = mount::all().into_iter().find(|m| m.sb.dev == dev).ok_or(Errno::EINVAL)?;
    let stat = m.sb.ops().statfs(&m.sb)?;
    out.write(&Ustat { f_tfree: stat.free as i32, f_tinode: stat.files_free, ..Ustat::default() })
}

/// The per-mount part of `mount(2)`'s flags.
fn mount_flags(flags: u64) -> MountFlags {
    let mut out = MountFlags::from_bits_truncate(flags as u32);
    // Relatime is the default; strictatime switches it off.
    if !out.contains(MountFlags::NOATIME) {
        out |= MountFlags::RELATIME;
    }
    if flags & u64::from(uapi::MS_STRICTATIME) != 0 {
        out -= MountFlags::NOATIME | MountFlags::RELATIME;
    }
    out
}

pub fn sys_mount(
    _cx: &mut Cx<'_>,
    source: UserAddr,
    target: UserAddr,
    fs_type: UserAddr,
    flags: u64,
    data: UserAddr,
) -> Result {
    let optional =
        |addr: UserAddr| -> Result<Vec<u8>> { if addr.as_u64() == 0 { Ok(Vec::new()) } else { user::read_path(addr) } };
    let kind = optional(fs_type)?;
    let source = optional(source)?;
    let data = if data.as_u64() == 0 { Vec::new() } else { read_data(data)? };
    let mut flags = flags;
    if flags & 0xffff_0000 == 0xc0ed_0000 {
        flags &= 0xffff;
    }
    let at = resolve(uapi::AT_FDCWD, target, LookupFlags::FOLLOW)?;
    if !capable(Cap::SysAdmin) {
        return Err(Errno::EPERM);
    }
    let has = |bit: u32| flags & u64::from(bit) != 0;
    let recursive = has(uapi::MS_REC);
    if has(uapi::MS_REMOUNT) {
        if !at.is_mount_root() {
            return Err(Errno::EINVAL);
        }
        if has(uapi::MS_BIND) {
            return mount::set_attributes(&at.mount, &Change::options(mount_flags(flags)), false);
        }
        return remount(&at.mount, flags, &data);
    }
    if has(uapi::MS_BIND) {
        if source.is_empty() {
            return Err(Errno::EINVAL);
        }
        let from = crate::fs::path::lookup_at(uapi::AT_FDCWD, &source, LookupFlags::FOLLOW)?;
        return mount::bind(&from, &at, recursive);
    }
    let propagation = uapi::MS_SHARED | uapi::MS_PRIVATE | uapi::MS_SLAVE | uapi::MS_UNBINDABLE;
    if has(propagation) {
        let bits = flags as u32 & propagation;
        let rest = flags as u32 & !(propagation | uapi::MS_REC | uapi::MS_SILENT);
        if !bits.is_power_of_two() || rest != 0 || !at.is_mount_root() {
            return Err(Errno::EINVAL);
        }
        let kind = match bits {
            uapi::MS_SHARED => Propagation::Shared,
            uapi::MS_SLAVE => Propagation::Slave,
            uapi::MS_UNBINDABLE => Propagation::Unbindable,
            _ => Propagation::Private,
        };
        mount::set_attributes(&at.mount, &Change::propagation(kind), recursive)?;
        return Ok(());
    }
    if has(uapi::MS_MOVE) {
        let from = crate::fs::path::lookup_at(uapi::AT_FDCWD, &source, LookupFlags::FOLLOW)?;
        return mount::move_mount(&from, &at);
    }
    let fs = registry::find(&kind).ok_or(Errno::ENODEV)?;
    let sb_flags = SbFlags::from_bits_truncate(flags as u32 & uapi::MS_RDONLY);
    let subtype = kind.iter().position(|byte| *byte == b'.').map_or(&[][..], |dot| &kind[dot + 1..]);
    let sb = fs.mount_subtype(subtype, &source, sb_flags, &data)?;
    let new = Mount::of(sb, &source, mount_flags(flags) - MountFlags::RDONLY)?;
    mount::attach(&new, &at)
}

/// Mount data: up to a page, ending at a NUL or where memory ends.
fn read_data(addr: UserAddr) -> Result<Vec<u8>> {
    match user::read_cstr(addr, 4096) {
        // Data without a NUL in its page is cut there.
        Err(Errno::ENAMETOOLONG) => user::read_slice(UserPtr::<u8>::new(addr.as_u64()), 4095),
        other => other,
    }
}

fn remount(m: &Arc<Mount>, flags: u64, data: &[u8]) -> Result {
    mount_context::reconfigure(&m.sb, flags & u64::from(uapi::MS_RDONLY) != 0, data)?;
    mount::set_attributes(m, &Change::options(mount_flags(flags) - MountFlags::RDONLY), false)
}

pub fn sys_umount2(_cx: &mut Cx<'_>, target: UserAddr, flags: u32) -> Result {
    const FORCE: u32 = 1;
    const DETACH: u32 = 2;
    const EXPIRE: u32 = 4;
    const NOFOLLOW: u32 = 8;
    if flags & !(FORCE | DETACH | EXPIRE | NOFOLLOW) != 0 || flags & EXPIRE != 0 && flags & (FORCE | DETACH) != 0 {
        return Err(Errno::EINVAL);
    }
    let lookup = if flags & NOFOLLOW != 0 { LookupFlags::empty() } else { LookupFlags::FOLLOW };
    let mut at = resolve(uapi::AT_FDCWD, target, lookup)?;
    // `.` too is the topmost mount there.
    mount::cross_down(&mut at);
    if !capable(Cap::SysAdmin) {
        return Err(Errno::EPERM);
    }
    if !at.is_mount_root() {
        return Err(Errno::EINVAL);
    }
    if flags & FORCE != 0 {
        at.mount.sb.ops().force_end(&at.mount.sb);
    }
    let lazy = flags & DETACH != 0;
    if !lazy && Arc::ptr_eq(&at.mount, &current().fs().root().mount) {
        // Nobody can do without a root: it becomes read-only instead.
        if flags & EXPIRE != 0 {
            return Err(Errno::EINVAL);
        }
        return mount_context::reconfigure(&at.mount.sb, true, &[]);
    }
    // One reference is the path's.
    mount::unmount(&at.mount, lazy, flags & EXPIRE != 0, 1)
}

pub fn sys_pivot_root(_cx: &mut Cx<'_>, new_root: UserAddr, put_old: UserAddr) -> Result {
    if !capable(Cap::SysAdmin) {
        return Err(Errno::EPERM);
    }
    let flags = LookupFlags::FOLLOW | LookupFlags::DIRECTORY;
    let new_root = resolve(uapi::AT_FDCWD, new_root, flags)?;
    let put_old = resolve(uapi::AT_FDCWD, put_old, flags)?;
    let old_root = current().fs().root();
    mount::pivot(&new_root, &put_old, &old_root)?;
    for process in crate::process::processes() {
        for thread in process.threads() {
            thread.fs().replace(&old_root, &new_root);
        }
    }
    Ok(())
}

pub fn sys_quotactl(_cx: &mut Cx<'_>, _cmd: u32, special: UserAddr, _id: u32, _addr: UserAddr) -> Result {
    // No file system here has quotas; a name that does not exist is told apart, as quota tools expect.
    if special.as_u64() != 0 {
        let path = UserPath::read(special)?;
        crate::fs::path::lookup_at(uapi::AT_FDCWD, path.bytes(), LookupFlags::FOLLOW)?;
    }
    Err(Errno::ENOSYS)
}
