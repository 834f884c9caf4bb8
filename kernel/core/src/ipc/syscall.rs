//! System calls of pipes and of the descriptors that wake.

use linux_uapi::raw::general as uapi;

use super::{pipe, splice};
use crate::process::{Resource, current};
use crate::syscall::Cx;
use crate::user::UserPtr;
use crate::{Errno, Result, syscalls};

syscalls! { ROWS;
    22 pipe => sys_pipe(0);
    275 splice => sys_splice(0, 1, 2, 3, 4, 5);
    276 tee => sys_tee(0, 1, 2, 3);
    293 pipe2 => sys_pipe2(0, 1);
}

/// `pipe(2)`.
pub fn sys_pipe(cx: &mut Cx<'_>, fds: UserPtr<[i32; 2]>) -> Result {
    sys_pipe2(cx, fds, 0)
}

/// `pipe2(2)`.
pub fn sys_pipe2(_cx: &mut Cx<'_>, fds: UserPtr<[i32; 2]>, flags: u32) -> Result {
    // O_NOTIFICATION_PIPE (O_EXCL) needs CONFIG_WATCH_QUEUE: refused as a kernel without it does.
    if flags & uapi::O_EXCL != 0 && flags & !(uapi::O_CLOEXEC | uapi::O_NONBLOCK | uapi::O_DIRECT | uapi::O_EXCL) == 0 {
        return Err(Errno::ENOPKG);
    }
    if flags & !(uapi::O_CLOEXEC | uapi::O_NONBLOCK | uapi::O_DIRECT) != 0 {
        return Err(Errno::EINVAL);
    }
    let files = current().files();
    let limit = current().process().rlimits.soft(Resource::Nofile);
    let cloexec = flags & uapi::O_CLOEXEC != 0;
    let reader_fd = files.reserve(cloexec, limit)?;
    let writer_fd = files.reserve(cloexec, limit)?;
    // The numbers go out before the descriptors open: a fault then leaves nothing behind.
    fds.write(&[reader_fd.fd(), writer_fd.fd()])?;
    let (reader, writer) = pipe::create(flags & (uapi::O_NONBLOCK | uapi::O_DIRECT));
    reader_fd.commit(reader);
    writer_fd.commit(writer);
    Ok(())
}

/// `splice(2)`.
pub fn sys_splice(
    cx: &mut Cx<'_>,
    fd_in: i32,
    off_in: UserPtr<i64>,
    fd_out: i32,
    off_out: UserPtr<i64>,
    len: usize,
    flags: u32,
) -> Result<usize> {
    if len == 0 {
        return Ok(0);
    }
    if flags & !splice::FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let from = cx.thread.file(fd_in)?;
    let to = cx.thread.file(fd_out)?;
    let position = |ptr: UserPtr<i64>| -> Result<Option<u64>> {
        let Some(ptr) = ptr.non_null() else { return Ok(None) };
        u64::try_from(ptr.read()?).map(Some).map_err(|_| Errno::EINVAL)
    };
    let mut in_pos = position(off_in)?;
    let mut out_pos = position(off_out)?;
    let n = splice::splice(&from, in_pos.as_mut(), &to, out_pos.as_mut(), len, flags)?;
    if let Some(pos) = in_pos {
        off_in.write(&(pos as i64))?;
    }
    if let Some(pos) = out_pos {
        off_out.write(&(pos as i64))?;
    }
    Ok(n)
}

/// `tee(2)`.
pub fn sys_tee(cx: &mut Cx<'_>, fd_in: i32, fd_out: i32, len: usize, flags: u32) -> Result<usize> {
    if flags & !splice::FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    let from = cx.thread.file(fd_in)?;
    let to = cx.thread.file(fd_out)?;
    splice::tee(&from, &to, len, flags)
}
