//! `open` in its forms, `close`, `dup`. References: open(2), openat2(2), close(2), close_range(2), dup(2).

use linux_uapi::{raw::general as uapi, stat::OpenHow};

use super::{UserPath, nofile, start};
use crate::{
    Errno, Result,
    fs::{
        fdtable::wants_cloexec,
        open::{self, OpenRequest},
        path::LookupFlags,
    },
    process::current,
    syscall::Cx,
    user::{self, UserAddr},
};

fn do_open(dirfd: i32, path: UserAddr, req: &OpenRequest) -> Result<i32> {
    let path = UserPath::read(path)?;
    let start = start(dirfd, &path)?;
    let thread = current();
    let file = open::open(&start, path.bytes(), req)?;
    thread.files().install(file, wants_cloexec(req.flags), nofile())
}

pub fn sys_open(_cx: &mut Cx<'_>, path: UserAddr, flags: u32, mode: u32) -> Result<i32> {
    do_open(uapi::AT_FDCWD, path, &OpenRequest::new(flags, mode, LookupFlags::empty(), false)?)
}

pub fn sys_openat(_cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, flags: u32, mode: u32) -> Result<i32> {
    do_open(dirfd, path, &OpenRequest::new(flags, mode, LookupFlags::empty(), false)?)
}

pub fn sys_creat(_cx: &mut Cx<'_>, path: UserAddr, mode: u32) -> Result<i32> {
    let flags = uapi::O_CREAT | uapi::O_WRONLY | uapi::O_TRUNC;
    do_open(uapi::AT_FDCWD, path, &OpenRequest::new(flags, mode, LookupFlags::empty(), false)?)
}

/// Reads `struct open_how` of any size: what is longer than ours must be zero.
fn read_how(addr: UserAddr, size: usize) -> Result<OpenHow> {
    let known = size_of::<OpenHow>();
    if size < known {
        return Err(Errno::EINVAL);
    }
    if size > 4096 {
        return Err(Errno::E2BIG);
    }
    user::read_extensible(addr, size)
}

pub fn sys_openat2(_cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, how: UserAddr, size: usize) -> Result<i32> {
    let how = read_how(how, size)?;
    let mut lookup = LookupFlags::empty();
    for (bit, flag) in [
        (uapi::RESOLVE_NO_XDEV, LookupFlags::NO_XDEV),
        (uapi::RESOLVE_NO_MAGICLINKS, LookupFlags::NO_MAGICLINKS),
        (uapi::RESOLVE_NO_SYMLINKS, LookupFlags::NO_SYMLINKS),
        (uapi::RESOLVE_BENEATH, LookupFlags::BENEATH),
        (uapi::RESOLVE_IN_ROOT, LookupFlags::IN_ROOT),
        (uapi::RESOLVE_CACHED, LookupFlags::CACHED),
    ] {
        if how.resolve & u64::from(bit) != 0 {
            lookup |= flag;
        }
    }
    let known = uapi::RESOLVE_NO_XDEV
        | uapi::RESOLVE_NO_MAGICLINKS
        | uapi::RESOLVE_NO_SYMLINKS
        | uapi::RESOLVE_BENEATH
        | uapi::RESOLVE_IN_ROOT
        | uapi::RESOLVE_CACHED;
    if how.resolve & !u64::from(known) != 0 || lookup.contains(LookupFlags::BENEATH | LookupFlags::IN_ROOT) {
        return Err(Errno::EINVAL);
    }
    let flags = u32::try_from(how.flags).map_err(|_| Errno::EINVAL)?;
    let mode = u32::try_from(how.mode).map_err(|_| Errno::EINVAL)?;
    if lookup.contains(LookupFlags::CACHED) && flags & (uapi::O_TRUNC | uapi::O_CREAT | uapi::O_TMPFILE) != 0 {
        return Err(Errno::EAGAIN);
    }
    let mut req = OpenRequest::new(flags, mode, lookup, true)?;
    // Linux sets O_LARGEFILE itself for open and openat on 64-bit systems, not for openat2.
    req.flags &= !uapi::O_LARGEFILE | flags;
    do_open(dirfd, path, &req)
}

pub fn sys_close(_cx: &mut Cx<'_>, fd: i32) -> Result {
    // A close that was interrupted is never restarted: the descriptor is gone.
    match current().files().close(fd) {
        Err(Errno::ERESTARTSYS | Errno::ERESTARTNOINTR | Errno::ERESTARTNOHAND | Errno::ERESTART_RESTARTBLOCK) => {
            Err(Errno::EINTR)
        }
        other => other,
    }
}

pub fn sys_close_range(_cx: &mut Cx<'_>, first: u32, last: u32, flags: u32) -> Result {
    const UNSHARE: u32 = 2;
    const CLOEXEC: u32 = 4;
    if flags & !(UNSHARE | CLOEXEC) != 0 || first > last {
        return Err(Errno::EINVAL);
    }
    let thread = current();
    let mut files = thread.files();
    // One reference is the thread's own, one ours.
    if flags & UNSHARE != 0 && alloc::sync::Arc::strong_count(&files) > 2 {
        let copy =
            if flags & CLOEXEC == 0 && last == u32::MAX { files.fork_below(first as usize)? } else { files.fork()? };
        drop(thread.set_files(copy.clone()));
        files = copy;
    }
    files.close_range(first, last, flags & CLOEXEC != 0);
    Ok(())
}

pub fn sys_dup(_cx: &mut Cx<'_>, fd: i32) -> Result<i32> {
    let files = current().files();
    let file = files.get_any(fd)?;
    files.install(file, false, nofile())
}

pub fn sys_dup2(_cx: &mut Cx<'_>, old: i32, new: i32) -> Result<i32> {
    let files = current().files();
    let file = files.get_any(old)?;
    if old == new {
        return Ok(new);
    }
    files.replace(new, file, false, nofile())
}

pub fn sys_dup3(_cx: &mut Cx<'_>, old: i32, new: i32, flags: u32) -> Result<i32> {
    if flags & !uapi::O_CLOEXEC != 0 || old == new {
        return Err(Errno::EINVAL);
    }
    let files = current().files();
    let file = files.get_any(old)?;
    files.replace(new, file, wants_cloexec(flags), nofile())
}
