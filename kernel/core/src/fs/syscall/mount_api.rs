//! Mounting by descriptors: fsopen(2), fsconfig(2), fsmount(2), fspick(2), open_tree(2), move_mount(2), mount_setattr(2).
//!
//! `statmount` and `listmount` are `ENOSYS`.

use alloc::{sync::Arc, vec::Vec};

use linux_uapi::{raw::general as uapi, stat::MountAttr};

use super::{nofile, resolve};
use crate::{
    Errno, Result,
    fs::{
        File, FileOps,
        file::FileMode,
        mount::{self, Change, Mount, MountFlags, Propagation},
        mount_context::MountContext,
        open::{self, OpenRequest},
        path::{LookupFlags, Path},
        registry,
    },
    process::{Cap, capable, current},
    syscall::Cx,
    user::{self, UserAddr},
};

/// Bytes of an option's name or value, with its NUL.
const OPTION_MAX: usize = 256;

/// The topmost mount of a tree that was never attached. The tree ends with its descriptor, unless it is somewhere by then.
struct DetachedTree(Arc<Mount>);

impl FileOps for DetachedTree {
    fn can_poll(&self) -> bool {
        false
    }
}

impl Drop for DetachedTree {
    fn drop(&mut self) {
        mount::dissolve(&self.0);
    }
}

fn install(file: Arc<File>, cloexec: bool) -> Result<i32> {
    current().files().install(file, cloexec, nofile())
}

fn install_tree(top: Arc<Mount>, cloexec: bool) -> Result<i32> {
    let at = top.root_path();
    let ops = Arc::new(DetachedTree(top));
    let inode = at.inode()?.clone();
    install(File::with_path(ops, at, inode, uapi::O_PATH, FileMode::empty()), cloexec)
}

fn may_mount() -> Result {
    if capable(Cap::SysAdmin) { Ok(()) } else { Err(Errno::EPERM) }
}

/// A string that Linux takes with `strndup_user`: too long is `EINVAL`.
fn string(addr: UserAddr, max: usize) -> Result<Vec<u8>> {
    user::read_cstr(addr, max).map_err(|error| if error == Errno::ENAMETOOLONG { Errno::EINVAL } else { error })
}

pub fn sys_fsopen(_cx: &mut Cx<'_>, name: UserAddr, flags: u32) -> Result<i32> {
    may_mount()?;
    if flags & !uapi::FSOPEN_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    let name = string(name, ursa_hal::PAGE_SIZE)?;
    let fs = registry::find(&name).ok_or(Errno::ENODEV)?;
    let subtype = name.iter().position(|byte| *byte == b'.').map_or(&[][..], |dot| &name[dot + 1..]);
    let file = File::anon(MountContext::create(fs, subtype), "anon_inode:[fscontext]", uapi::O_RDWR);
    install(file, flags & uapi::FSOPEN_CLOEXEC != 0)
}

pub fn sys_fspick(_cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, flags: u32) -> Result<i32> {
    may_mount()?;
    let known =
        uapi::FSPICK_CLOEXEC | uapi::FSPICK_SYMLINK_NOFOLLOW | uapi::FSPICK_NO_AUTOMOUNT | uapi::FSPICK_EMPTY_PATH;
    if flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let mut lookup = LookupFlags::empty();
    lookup.set(LookupFlags::FOLLOW, flags & uapi::FSPICK_SYMLINK_NOFOLLOW == 0);
    lookup.set(LookupFlags::EMPTY, flags & uapi::FSPICK_EMPTY_PATH != 0);
    let at = resolve(dirfd, path, lookup)?;
    if !at.is_mount_root() {
        return Err(Errno::EINVAL);
    }
    let file = File::anon(MountContext::reconfigure(&at.mount.sb), "anon_inode:[fscontext]", uapi::O_RDWR);
    install(file, flags & uapi::FSPICK_CLOEXEC != 0)
}

pub fn sys_fsconfig(_cx: &mut Cx<'_>, fd: i32, cmd: u32, key: UserAddr, value: UserAddr, aux: i32) -> Result {
    use uapi::fsconfig_command as command;
    const CMD_CREATE_EXCL: u32 = 8;
    if fd < 0 {
        return Err(Errno::EINVAL);
    }
    let (has_key, has_value) = (key.as_u64() != 0, value.as_u64() != 0);
    let is = |wanted: command| cmd == wanted as u32;
    let is_path = is(command::FSCONFIG_SET_PATH) || is(command::FSCONFIG_SET_PATH_EMPTY);
    let is_command =
        is(command::FSCONFIG_CMD_CREATE) || is(command::FSCONFIG_CMD_RECONFIGURE) || cmd == CMD_CREATE_EXCL;
    let well_formed = if is(command::FSCONFIG_SET_FLAG) {
        has_key && !has_value && aux == 0
    } else if is(command::FSCONFIG_SET_STRING) {
        has_key && has_value && aux == 0
    } else if is(command::FSCONFIG_SET_BINARY) {
        has_key && has_value && (1..=1 << 20).contains(&aux)
    } else if is_path {
        has_key && has_value && (aux == uapi::AT_FDCWD || aux >= 0)
    } else if is(command::FSCONFIG_SET_FD) {
        has_key && !has_value && aux >= 0
    } else if is_command {
        !has_key && !has_value && aux == 0
    } else {
        return Err(Errno::EOPNOTSUPP);
    };
    if !well_formed {
        return Err(Errno::EINVAL);
    }
    let file = current().files().get(fd)?;
    let context = file.ops::<MountContext>().ok_or(Errno::EINVAL)?;
    if is_command {
        may_mount()?;
        return match () {
            () if is(command::FSCONFIG_CMD_CREATE) => context.make(),
            () if is(command::FSCONFIG_CMD_RECONFIGURE) => context.change(),
            // Whether a super block is found or made is not told apart here.
            () => Err(Errno::EOPNOTSUPP),
        };
    }
    let key = string(key, OPTION_MAX)?;
    if is(command::FSCONFIG_SET_FLAG) {
        context.option(&key, None)
    } else if is(command::FSCONFIG_SET_STRING) {
        context.option(&key, Some(&string(value, OPTION_MAX)?))
    } else if is(command::FSCONFIG_SET_FD) {
        current().files().get_any(aux)?;
        context.option(&key, Some(alloc::format!("{aux}").as_bytes()))
    } else {
        // No file system here has options of these kinds.
        Err(Errno::EINVAL)
    }
}

/// Access times by `MOUNT_ATTR__ATIME`.
fn access_times(attr: u64) -> Result<MountFlags> {
    match attr as u32 & uapi::MOUNT_ATTR__ATIME {
        uapi::MOUNT_ATTR_RELATIME => Ok(MountFlags::RELATIME),
        uapi::MOUNT_ATTR_NOATIME => Ok(MountFlags::NOATIME),
        uapi::MOUNT_ATTR_STRICTATIME => Ok(MountFlags::empty()),
        _ => Err(Errno::EINVAL),
    }
}

/// The other options of `MOUNT_ATTR_*`.
fn options(attr: u64) -> MountFlags {
    let mut flags = MountFlags::empty();
    for (bit, flag) in [
        (uapi::MOUNT_ATTR_RDONLY, MountFlags::RDONLY),
        (uapi::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
        (uapi::MOUNT_ATTR_NODEV, MountFlags::NODEV),
        (uapi::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
        (uapi::MOUNT_ATTR_NODIRATIME, MountFlags::NODIRATIME),
        (uapi::MOUNT_ATTR_NOSYMFOLLOW, MountFlags::NOSYMFOLLOW),
    ] {
        flags.set(flag, attr & u64::from(bit) != 0);
    }
    flags
}

/// What `fsmount` knows, and `mount_setattr` besides identity maps.
const ATTRIBUTES: u32 = uapi::MOUNT_ATTR_RDONLY
    | uapi::MOUNT_ATTR_NOSUID
    | uapi::MOUNT_ATTR_NODEV
    | uapi::MOUNT_ATTR_NOEXEC
    | uapi::MOUNT_ATTR__ATIME
    | uapi::MOUNT_ATTR_NODIRATIME
    | uapi::MOUNT_ATTR_NOSYMFOLLOW;

pub fn sys_fsmount(_cx: &mut Cx<'_>, fd: i32, flags: u32, attributes: u32) -> Result<i32> {
    may_mount()?;
    if flags & !uapi::FSMOUNT_CLOEXEC != 0 || attributes & !ATTRIBUTES != 0 {
        return Err(Errno::EINVAL);
    }
    let mount_flags = options(attributes.into()) | access_times(attributes.into())?;
    let file = current().files().get(fd)?;
    let mount = file.ops::<MountContext>().ok_or(Errno::EINVAL)?.take_mount(mount_flags)?;
    mount::detached(&mount);
    install_tree(mount, flags & uapi::FSMOUNT_CLOEXEC != 0)
}

pub fn sys_open_tree(_cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, flags: u32) -> Result<i32> {
    let clone = flags & uapi::OPEN_TREE_CLONE != 0;
    let recursive = flags & uapi::AT_RECURSIVE != 0;
    let known = uapi::AT_EMPTY_PATH
        | uapi::AT_NO_AUTOMOUNT
        | uapi::AT_RECURSIVE
        | uapi::AT_SYMLINK_NOFOLLOW
        | uapi::OPEN_TREE_CLONE
        | uapi::OPEN_TREE_CLOEXEC;
    let lookup = super::at_flags(flags, known)?;
    if recursive && !clone {
        return Err(Errno::EINVAL);
    }
    if clone {
        may_mount()?;
    }
    let at = resolve(dirfd, path, lookup)?;
    let cloexec = flags & uapi::OPEN_TREE_CLOEXEC != 0;
    if clone {
        return install_tree(mount::copy(&at, recursive)?, cloexec);
    }
    let inode = at.inode()?.clone();
    let thread = current();
    install(open::open_inode(at, inode, &OpenRequest::plain(uapi::O_PATH)?, false, &thread.cred())?, cloexec)
}

pub fn sys_move_mount(_cx: &mut Cx<'_>, from_fd: i32, from: UserAddr, to_fd: i32, to: UserAddr, flags: u32) -> Result {
    may_mount()?;
    let has = |bit: u32| flags & bit != 0;
    let (beneath, group) = (has(uapi::MOVE_MOUNT_BENEATH), has(uapi::MOVE_MOUNT_SET_GROUP));
    if flags & !uapi::MOVE_MOUNT__MASK != 0 || beneath && group {
        return Err(Errno::EINVAL);
    }
    let lookup = |follow: u32, empty: u32| {
        let mut lookup = LookupFlags::empty();
        lookup.set(LookupFlags::FOLLOW, has(follow));
        lookup.set(LookupFlags::EMPTY, has(empty));
        lookup
    };
    let from = resolve(from_fd, from, lookup(uapi::MOVE_MOUNT_F_SYMLINKS, uapi::MOVE_MOUNT_F_EMPTY_PATH))?;
    let to = resolve(to_fd, to, lookup(uapi::MOVE_MOUNT_T_SYMLINKS, uapi::MOVE_MOUNT_T_EMPTY_PATH))?;
    match () {
        () if group => mount::share_group(&from, &to),
        () if beneath => mount::move_beneath(&from, &to),
        () => mount::move_mount(&from, &to),
    }
}

fn change(attr: &MountAttr) -> Result<Option<Change>> {
    if attr.attr_set == 0 && attr.attr_clr == 0 && attr.propagation == 0 {
        return Ok(None);
    }
    let propagation = match u32::try_from(attr.propagation).map_err(|_| Errno::EINVAL)? {
        0 => None,
        uapi::MS_SHARED => Some(Propagation::Shared),
        uapi::MS_SLAVE => Some(Propagation::Slave),
        uapi::MS_PRIVATE => Some(Propagation::Private),
        uapi::MS_UNBINDABLE => Some(Propagation::Unbindable),
        _ => return Err(Errno::EINVAL),
    };
    let atime = u64::from(uapi::MOUNT_ATTR__ATIME);
    let (mut set, mut clear) = (options(attr.attr_set), options(attr.attr_clr));
    // Access times are one of several, so all of them are cleared where one is set.
    match (attr.attr_set & atime, attr.attr_clr & atime) {
        (0, 0) => {}
        (wanted, all) if all == atime => {
            clear |= MountFlags::RELATIME | MountFlags::NOATIME;
            set |= access_times(wanted)?;
        }
        _ => return Err(Errno::EINVAL),
    }
    let known = u64::from(ATTRIBUTES | uapi::MOUNT_ATTR_IDMAP);
    let idmap = u64::from(uapi::MOUNT_ATTR_IDMAP);
    if (attr.attr_set | attr.attr_clr) & !known != 0 || attr.attr_clr & idmap != 0 {
        return Err(Errno::EINVAL);
    }
    if attr.attr_set & idmap != 0 {
        // There are no user name spaces, so no descriptor is one.
        let fd = i32::try_from(attr.userns_fd).map_err(|_| Errno::EINVAL)?;
        current().files().get(fd)?;
        return Err(Errno::EINVAL);
    }
    Ok(Some(Change { clear, set, propagation }))
}

pub fn sys_mount_setattr(
    _cx: &mut Cx<'_>,
    dirfd: i32,
    path: UserAddr,
    flags: u32,
    attr: UserAddr,
    size: usize,
) -> Result {
    let known = uapi::AT_EMPTY_PATH | uapi::AT_RECURSIVE | uapi::AT_SYMLINK_NOFOLLOW | uapi::AT_NO_AUTOMOUNT;
    let lookup = super::at_flags(flags, known)?;
    if size > ursa_hal::PAGE_SIZE {
        return Err(Errno::E2BIG);
    }
    if size < uapi::MOUNT_ATTR_SIZE_VER0 as usize {
        return Err(Errno::EINVAL);
    }
    may_mount()?;
    let Some(change) = change(&user::read_extensible(attr, size)?)? else { return Ok(()) };
    let at: Path = resolve(dirfd, path, lookup)?;
    if !at.is_mount_root() {
        return Err(Errno::EINVAL);
    }
    mount::set_attributes(&at.mount, &change, flags & uapi::AT_RECURSIVE != 0)
}
