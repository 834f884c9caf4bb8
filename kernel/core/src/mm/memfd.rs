//! `memfd_create` and the seals of `fcntl`.
//!
//! A memfd is a regular file of a tmpfs that is mounted nowhere, with no name in it: it can be read, written, truncated,
//! mapped, stat'ed and opened again through `/proc/PID/fd` like any other. See memfd_create(2), fcntl(2).

use linux_uapi::raw::general as uapi;
use ursa_hal::sync::Once;

use alloc::sync::Arc;

use super::{MemoryObject, Seals};
use crate::fs::inode::{NewInode, SbFlags};
use crate::fs::mount::MountFlags;
use crate::fs::tmpfs::{TmpNode, Tmpfs};
use crate::fs::{Dentry, File, FileMode, Mount, Path};
use crate::process::Resource;
use crate::syscall::Cx;
use crate::user::{self, UserAddr};
use crate::{Errno, Result};

const MFD_NOEXEC_SEAL: u32 = 8;
const MFD_EXEC: u32 = 0x10;
const F_ADD_SEALS: u32 = 1033;
const F_GET_SEALS: u32 = 1034;
/// The longest name, without its NUL: 255 less `memfd:`.
const NAME_MAX: usize = 249;

/// The mount that all memfds are on.
fn mount() -> Result<Arc<Mount>> {
    static MOUNT: Once<Result<Arc<Mount>>> = Once::new();
    MOUNT
        .call_once(|| {
            let root = NewInode { mode: uapi::S_IFDIR | 0o777, uid: 0, gid: 0, rdev: 0 };
            Mount::of(Tmpfs::create("tmpfs", 0, 0, &root, SbFlags::empty()), b"tmpfs", MountFlags::empty())
        })
        .clone()
}

/// Whether `file` is one that [`sys_memfd_create`] made, or a further opening of it.
pub fn is_memfd(file: &File) -> bool {
    file.path().zip(mount().ok()).is_some_and(|(path, mount)| Arc::ptr_eq(&path.mount, &mount))
}

/// memfd_create(2). `vm.memfd_noexec` (`Documentation/admin-guide/sysctl/vm.rst`) says what a file is that names neither `MFD_EXEC` nor
/// `MFD_NOEXEC_SEAL`, and whether it may be executable.
pub(super) fn sys_memfd_create(cx: &mut Cx<'_>, name: UserAddr, flags: u32) -> Result<i32> {
    let known = uapi::MFD_CLOEXEC | uapi::MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL | MFD_EXEC;
    if flags & uapi::MFD_HUGETLB != 0 {
        let sized = known | uapi::MFD_HUGETLB | 0x3f << 26;
        // There is no pool of huge pages.
        return Err(if flags & !sized != 0 { Errno::EINVAL } else { Errno::ENOSYS });
    }
    if flags & !known != 0 || flags & (MFD_EXEC | MFD_NOEXEC_SEAL) == MFD_EXEC | MFD_NOEXEC_SEAL {
        return Err(Errno::EINVAL);
    }
    let scope = cx.thread.process().pid_namespace().memfd_noexec();
    let noexec = flags & MFD_NOEXEC_SEAL != 0 || flags & MFD_EXEC == 0 && scope > 0;
    if !noexec && scope > 1 {
        return Err(Errno::EACCES);
    }
    let name = user::read_cstr(name, NAME_MAX + 1).map_err(|error| match error {
        Errno::EFAULT => Errno::EFAULT,
        _ => Errno::EINVAL,
    })?;
    if name.len() > NAME_MAX {
        return Err(Errno::EINVAL);
    }
    let (uid, gid) = cx.thread.with_cred(|cred| (cred.fsuid, cred.fsgid));
    let mount = mount()?;
    let mode = uapi::S_IFREG | if noexec { 0o666 } else { 0o777 };
    let inode = TmpNode::make(&mount.sb, &NewInode { mode, uid, gid, rdev: 0 }, None)?;
    inode.set_nlink(0);
    if let Some(object) = inode.ops().memory_object(&inode) {
        object.set_owner(cx.thread.vm().charge().clone());
        if noexec || flags & uapi::MFD_ALLOW_SEALING != 0 {
            object.allow_sealing();
        }
        if noexec {
            object.add_seals(Seals::EXEC)?;
        }
    }
    let label = [b"memfd:", name.as_slice()].concat();
    let dentry = Dentry::new_detached(&mount.root, &label, inode.clone(), true);
    let ops = inode.ops().open(&inode, uapi::O_RDWR)?;
    let path = Path { mount, dentry };
    let file = File::with_path(ops, path, inode, uapi::O_RDWR | uapi::O_LARGEFILE, FileMode::empty());
    let limit = cx.thread.process().rlimits.soft(Resource::Nofile);
    cx.thread.files().install(file, flags & uapi::MFD_CLOEXEC != 0, limit)
}

/// `F_ADD_SEALS` and `F_GET_SEALS` on a file of `object`; `None` for other commands.
pub fn fcntl_seals(object: &MemoryObject, file: &File, cmd: u32, arg: u64) -> Option<Result<i64>> {
    match cmd {
        F_GET_SEALS => Some(Ok(i64::from(object.seals().bits()))),
        F_ADD_SEALS => Some(add_seals(object, file, arg).map(|()| 0)),
        _ => None,
    }
}

fn add_seals(object: &MemoryObject, file: &File, arg: u64) -> Result {
    if !file.mode().contains(FileMode::WRITE) {
        return Err(Errno::EPERM);
    }
    let mut seals = u32::try_from(arg).ok().and_then(Seals::from_bits).ok_or(Errno::EINVAL)?;
    if seals.contains(Seals::EXEC) && file.inode().is_some_and(|inode| inode.mode() & 0o111 != 0) {
        // An executable file that may not change its mode may not change its contents either (Linux 6.3).
        seals |= Seals::SHRINK | Seals::GROW | Seals::WRITE | Seals::FUTURE_WRITE;
    }
    object.add_seals(seals)
}
