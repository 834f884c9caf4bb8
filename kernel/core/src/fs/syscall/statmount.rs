//! What mounts there are, by number: statmount(2), listmount(2).
//!
//! Numbers here are the unique ones, which begin above [`MNT_UNIQUE_ID_OFFSET`], so that they are never taken for those of
//! `/proc/PID/mountinfo`; both count the same mounts, for none is given out twice. A caller sees what can be reached from its root,
//! and with `CAP_SYS_ADMIN` the whole tree, and those of other namespaces. Reference: Linux `fs/namespace.c`.

use alloc::{sync::Arc, vec::Vec};
use core::fmt::Write;

use linux_uapi::{mount::*, raw::general as uapi, zerocopy::FromZeros, zerocopy::IntoBytes};
use ursa_hal::addr::VirtAddr;

use crate::{
    Errno, Result,
    fs::{
        dev::{major, minor},
        inode::SbFlags,
        mount::{self, Mount, MountFlags, Shown, namespace::Hold},
        path::Path,
        procfs::{Text, mounts::inner_path},
    },
    namespace::nsfs,
    process::{Cap, capable},
    syscall::Cx,
    user::{self, UserAddr, UserPtr},
};

/// The most mounts that one call lists.
const LIST_MAX: usize = 1_000_000;
/// What needs room behind the fixed part.
const STRINGS: u64 = STATMOUNT_MNT_ROOT | STATMOUNT_MNT_POINT | STATMOUNT_FS_TYPE | STATMOUNT_MNT_OPTS;

/// Reads a request.
///
/// # Errors
/// `EFAULT`, `E2BIG`, `EINVAL`.
fn read_request(req: UserAddr) -> Result<MntIdReq> {
    let size = UserPtr::<u32>::new(req.as_u64()).read()? as usize;
    if size > ursa_hal::PAGE_SIZE {
        return Err(Errno::E2BIG);
    }
    if size < MntIdReq::SIZE_VER0 {
        return Err(Errno::EINVAL);
    }
    let request: MntIdReq = user::read_extensible(req, size)?;
    if request.mnt_ns_fd != 0 && request.mnt_ns_id != 0 || request.mnt_id <= MNT_UNIQUE_ID_OFFSET {
        return Err(Errno::EINVAL);
    }
    Ok(request)
}

/// The namespace that a request names, or the caller's, and the root from which it is looked at.
///
/// # Errors
/// `ENOENT` for one that is gone or not the caller's to see, `EBADF`, `EINVAL` for a descriptor of something else.
fn view(cx: &Cx<'_>, request: &MntIdReq) -> Result<(Hold, Path)> {
    let own = cx.thread.namespaces().ok_or(Errno::ENOENT)?.mnt.clone();
    let named = if request.mnt_ns_id != 0 {
        Hold::find(request.mnt_ns_id).ok_or(Errno::ENOENT)?
    } else if request.mnt_ns_fd != 0 {
        let file = cx.thread.file(request.mnt_ns_fd as i32)?;
        nsfs::mount_namespace_of(&file).ok_or(Errno::EINVAL)?
    } else {
        own.clone()
    };
    if named.id() == own.id() {
        return Ok((own, cx.thread.fs().root()));
    }
    if !capable(Cap::SysAdmin) {
        return Err(Errno::ENOENT);
    }
    let mut root = named.root().ok_or(Errno::ENOENT)?.root_path();
    mount::cross_down(&mut root);
    Ok((named, root))
}

/// The mount with a number, if it is in the namespace.
fn find(namespace: &Hold, unique: u64) -> Result<Arc<Mount>> {
    namespace.mounts().into_iter().find(|m| m.unique_id() == unique).ok_or(Errno::ENOENT)
}

fn check_reachable(at: &Path, root: &Path) -> Result {
    if at.display(root).1 || capable(Cap::SysAdmin) { Ok(()) } else { Err(Errno::EPERM) }
}

fn attributes(mount: &Mount) -> u64 {
    let flags = mount.flags();
    let mut bits = 0;
    for (flag, bit) in [
        (MountFlags::RDONLY, uapi::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, uapi::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, uapi::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, uapi::MOUNT_ATTR_NOEXEC),
        (MountFlags::NODIRATIME, uapi::MOUNT_ATTR_NODIRATIME),
        (MountFlags::NOSYMFOLLOW, uapi::MOUNT_ATTR_NOSYMFOLLOW),
    ] {
        if flags.contains(flag) {
            bits |= u64::from(bit);
        }
    }
    bits | u64::from(if flags.contains(MountFlags::NOATIME) {
        uapi::MOUNT_ATTR_NOATIME
    } else if flags.contains(MountFlags::RELATIME) {
        uapi::MOUNT_ATTR_RELATIME
    } else {
        uapi::MOUNT_ATTR_STRICTATIME
    })
}

fn propagation(shown: &Shown) -> u64 {
    let bits = [
        (shown.group != 0, uapi::MS_SHARED),
        (shown.master != 0, uapi::MS_SLAVE),
        (shown.unbindable, uapi::MS_UNBINDABLE),
    ];
    let all = bits.iter().filter(|(is, _)| *is).fold(0, |all, (_, bit)| all | bit);
    u64::from(if all == 0 { uapi::MS_PRIVATE } else { all })
}

/// The structure and, behind it, the strings: an empty one first, for those that are not asked for.
fn describe(mount: &Arc<Mount>, mask: u64, room: usize, (namespace, root): &(Hold, Path)) -> Result<(Statmount, Text)> {
    let mut out = Statmount::new_zeroed();
    let mut strings = Text::default();
    if mask & STATMOUNT_SB_BASIC != 0 {
        out.mask |= STATMOUNT_SB_BASIC;
        out.sb_dev_major = major(mount.sb.dev);
        out.sb_dev_minor = minor(mount.sb.dev);
        out.sb_magic = mount.sb.magic;
        out.sb_flags = (mount.sb.flags() & SbFlags::RDONLY).bits();
    }
    if mask & STATMOUNT_MNT_BASIC != 0 {
        let parent = mount.mountpoint().map_or_else(|| mount.clone(), |at| at.mount);
        out.mask |= STATMOUNT_MNT_BASIC;
        out.mnt_id = mount.unique_id();
        out.mnt_parent_id = parent.unique_id();
        out.mnt_id_old = mount.id as u32;
        out.mnt_parent_id_old = parent.id as u32;
        out.mnt_attr = attributes(mount);
        let shown = mount::propagation(mount, namespace, root);
        out.mnt_propagation = propagation(&shown);
        out.mnt_peer_group = shown.group.into();
        out.mnt_master = shown.master.into();
    }
    if mask & STATMOUNT_PROPAGATE_FROM != 0 {
        out.mask |= STATMOUNT_PROPAGATE_FROM;
        out.propagate_from = mount::propagation(mount, namespace, root).from.into();
    }
    if mask & STATMOUNT_MNT_NS_ID != 0 {
        out.mask |= STATMOUNT_MNT_NS_ID;
        out.mnt_ns_id = namespace.id();
    }
    for flag in [STATMOUNT_FS_TYPE, STATMOUNT_MNT_ROOT, STATMOUNT_MNT_POINT, STATMOUNT_MNT_OPTS] {
        if mask & flag == 0 {
            continue;
        }
        if strings.0.is_empty() {
            strings.push('\0');
        }
        let start = strings.0.len();
        let place = match flag {
            STATMOUNT_FS_TYPE => {
                strings.write_str(mount.sb.fs_name)?;
                &mut out.fs_type
            }
            STATMOUNT_MNT_ROOT => {
                strings.push_bytes(&inner_path(mount));
                &mut out.mnt_root
            }
            STATMOUNT_MNT_POINT => {
                // Empty for who sees it only by privilege.
                let (path, reachable) = mount.root_path().display(root);
                if reachable {
                    strings.push_bytes(&path);
                }
                &mut out.mnt_point
            }
            _ => {
                mount.sb.ops().show_options(&mount.sb, &mut strings)?;
                if strings.0.get(start) == Some(&b',') {
                    strings.0.remove(start);
                }
                &mut out.mnt_opts
            }
        };
        *place = start as u32;
        if size_of::<Statmount>() + strings.0.len() >= room {
            return Err(Errno::EOVERFLOW);
        }
        strings.push('\0');
        out.mask |= flag;
    }
    Ok((out, strings))
}

/// statmount(2): one mount.
pub fn sys_statmount(cx: &mut Cx<'_>, req: UserAddr, buf: UserAddr, bufsize: usize, flags: u32) -> Result {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let request = read_request(req)?;
    let view = view(cx, &request)?;
    if !VirtAddr::new(buf.as_u64()).is_user_range(bufsize as u64) {
        return Err(Errno::EFAULT);
    }
    let fixed = size_of::<Statmount>();
    if request.param & STRINGS != 0 && bufsize <= fixed {
        return Err(Errno::EOVERFLOW);
    }
    let mount = find(&view.0, request.mnt_id)?;
    check_reachable(&mount.root_path(), &view.1)?;
    let (mut out, strings) = describe(&mount, request.param, bufsize, &view)?;
    let copied = bufsize.min(fixed);
    out.size = (copied + strings.0.len()) as u32;
    if !strings.0.is_empty() {
        user::write_bytes(UserAddr::new(buf.as_u64() + fixed as u64), &strings.0)?;
    }
    user::write_bytes(buf, &out.as_bytes()[..copied])
}

/// listmount(2): the numbers of the mounts below one.
pub fn sys_listmount(cx: &mut Cx<'_>, req: UserAddr, ids: UserPtr<u64>, count: usize, flags: u32) -> Result<usize> {
    if flags & !LISTMOUNT_REVERSE != 0 {
        return Err(Errno::EINVAL);
    }
    if count > LIST_MAX {
        return Err(Errno::EOVERFLOW);
    }
    if !ids.addr().is_user_range(count as u64 * 8) {
        return Err(Errno::EFAULT);
    }
    let request = read_request(req)?;
    let after = request.param;
    if after != 0 && after <= MNT_UNIQUE_ID_OFFSET {
        return Err(Errno::EINVAL);
    }
    let (namespace, root) = view(cx, &request)?;
    let from = if request.mnt_id == LSMT_ROOT { root.clone() } else { find(&namespace, request.mnt_id)?.root_path() };
    check_reachable(&from, &root)?;
    let reverse = flags & LISTMOUNT_REVERSE != 0;
    let wanted = |id: u64| match (after, reverse) {
        (0, _) => id != request.mnt_id,
        (_, false) => id > after && id != request.mnt_id,
        (_, true) => id < after && id != request.mnt_id,
    };
    // In the order of their numbers.
    let mut mounts = namespace.mounts();
    mounts.retain(|m| wanted(m.unique_id()));
    if reverse {
        mounts.reverse();
    }
    let below = mounts.iter().filter(|m| m.root_path().display(&from).1).map(|m| m.unique_id());
    let found: Vec<u64> = below.take(count).collect();
    user::write_slice(ids, &found)?;
    Ok(found.len())
}
