//! execve(2), execveat(2).

use linux_uapi::raw::general::{AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW};

use crate::process::exec::{self, Program};
use crate::syscall::Cx;
use crate::user::{self, UserAddr, UserPtr};
use crate::{Errno, Result};

/// Replaces the program.
pub fn sys_execve(cx: &mut Cx<'_>, path: UserAddr, argv: UserPtr<u64>, envp: UserPtr<u64>) -> Result {
    execute(cx, AT_FDCWD, path, argv, envp, 0)
}

/// Replaces the program by one relative to a descriptor.
pub fn sys_execveat(
    cx: &mut Cx<'_>,
    dirfd: i32,
    path: UserAddr,
    argv: UserPtr<u64>,
    envp: UserPtr<u64>,
    flags: u32,
) -> Result {
    if flags & !(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL);
    }
    execute(cx, dirfd, path, argv, envp, flags)
}

fn execute(cx: &mut Cx<'_>, dirfd: i32, path: UserAddr, argv: UserPtr<u64>, envp: UserPtr<u64>, flags: u32) -> Result {
    let path = user::read_path(path)?;
    if path.is_empty() && flags & AT_EMPTY_PATH == 0 {
        return Err(Errno::ENOENT);
    }
    let thread = cx.thread.arc();
    exec::execve(&thread, cx.regs, &Program { dirfd, path: &path, flags }, argv, envp)?;
    cx.keep_rax();
    Ok(())
}
