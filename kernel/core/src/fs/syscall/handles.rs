//! File handles. References: name_to_handle_at(2), open_by_handle_at(2).

use alloc::vec;

use linux_uapi::{raw::general as uapi, stat::FileHandleHeader};

use super::{nofile, resolve};
use crate::{
    Errno, Result,
    fs::{
        anon,
        fdtable::wants_cloexec,
        handle,
        inode::FileKind,
        open::{self, OpenRequest},
        path::LookupFlags,
    },
    process::{Cap, capable, current},
    syscall::Cx,
    user::{self, UserAddr, UserPtr},
};

const AT_HANDLE_FID: u32 = 0x200;
const AT_HANDLE_MNT_ID_UNIQUE: u32 = 1;

pub fn sys_name_to_handle_at(
    _cx: &mut Cx<'_>,
    dirfd: i32,
    path: UserAddr,
    to: UserPtr<FileHandleHeader>,
    mount_id: UserAddr,
    flags: u32,
) -> Result {
    let known = uapi::AT_SYMLINK_FOLLOW | uapi::AT_EMPTY_PATH | AT_HANDLE_FID | AT_HANDLE_MNT_ID_UNIQUE;
    if flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let mut lookup = LookupFlags::empty();
    lookup.set(LookupFlags::FOLLOW, flags & uapi::AT_SYMLINK_FOLLOW != 0);
    lookup.set(LookupFlags::EMPTY, flags & uapi::AT_EMPTY_PATH != 0);
    let at = resolve(dirfd, path, lookup)?;
    let (handle_type, bytes) = handle::make(&at, flags & AT_HANDLE_FID != 0)?;
    let room = to.read()?.handle_bytes as usize;
    if room > handle::MAX_LEN {
        return Err(Errno::EINVAL);
    }
    if flags & AT_HANDLE_MNT_ID_UNIQUE != 0 {
        UserPtr::<u64>::new(mount_id.as_u64()).write(&at.mount.unique_id())?;
    } else {
        UserPtr::<i32>::new(mount_id.as_u64()).write(&(at.mount.id as i32))?;
    }
    // Linux counts in words.
    let fits = bytes.len() <= room & !3;
    const FILEID_INVALID: i32 = 0xff;
    let handle_type = if fits { handle_type } else { FILEID_INVALID };
    to.write(&FileHandleHeader { handle_bytes: bytes.len() as u32, handle_type })?;
    if !fits {
        return Err(Errno::EOVERFLOW);
    }
    user::write_bytes(to.add(1).addr(), &bytes)
}

pub fn sys_open_by_handle_at(
    cx: &mut Cx<'_>,
    mount_fd: i32,
    from: UserPtr<FileHandleHeader>,
    flags: u32,
) -> Result<i32> {
    let mount = if mount_fd == uapi::AT_FDCWD {
        cx.thread.fs().cwd().mount
    } else {
        anon::path_of(&cx.thread.files().get_any(mount_fd)?)?.mount
    };
    if !capable(Cap::DacReadSearch) {
        return Err(Errno::EPERM);
    }
    let FileHandleHeader { handle_bytes, handle_type } = from.read()?;
    let len = handle_bytes as usize;
    if len == 0 || len > handle::MAX_LEN {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; len];
    user::read_bytes(from.add(1).addr(), &mut bytes)?;
    let at = handle::find(&mount, handle_type, &bytes)?;
    let files = cx.thread.files();
    let reserved = files.reserve(wants_cloexec(flags), nofile())?;
    let request = OpenRequest::new(flags & !uapi::O_CREAT, 0, LookupFlags::empty(), false)?;
    let inode = at.inode()?.clone();
    if request.flags & uapi::O_DIRECTORY != 0 && inode.kind != FileKind::Directory {
        return Err(Errno::ENOTDIR);
    }
    let file = open::open_inode(at, inode, &request, false, &current().cred())?;
    Ok(reserved.commit(file))
}
