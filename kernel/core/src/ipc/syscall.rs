//! System calls of pipes and of the descriptors that wake.

use alloc::sync::Arc;

use linux_uapi::raw::general as uapi;
use linux_uapi::signal::SigSet;
use linux_uapi::time::Itimerspec;

use super::inotify::{self, Inotify};
use super::mqueue::syscall as mqueue;
use super::signalfd::{self, SignalFd};
use super::sysv::{msg, sem, shm};
use super::timerfd::{self, TimerFd};
use super::{eventfd, pipe, splice};
use crate::fs::{File, FileKind, LookupFlags, permission};
use crate::process::{Resource, current};
use crate::syscall::Cx;
use crate::user::{self, UserAddr, UserPtr};
use crate::{Errno, Result, syscalls};

syscalls! { ROWS;
    22 pipe => sys_pipe(0);
    29 shmget => shm::sys_shmget(0, 1, 2);
    30 shmat => shm::sys_shmat(0, 1, 2);
    31 shmctl => shm::sys_shmctl(0, 1, 2);
    64 semget => sem::sys_semget(0, 1, 2);
    65 semop => sem::sys_semop(0, 1, 2);
    66 semctl => sem::sys_semctl(0, 1, 2, 3);
    67 shmdt => shm::sys_shmdt(0);
    68 msgget => msg::sys_msgget(0, 1);
    69 msgsnd => msg::sys_msgsnd(0, 1, 2, 3);
    70 msgrcv => msg::sys_msgrcv(0, 1, 2, 3, 4);
    71 msgctl => msg::sys_msgctl(0, 1, 2);
    220 semtimedop => sem::sys_semtimedop(0, 1, 2, 3);
    240 mq_open => mqueue::sys_mq_open(0, 1, 2, 3);
    241 mq_unlink => mqueue::sys_mq_unlink(0);
    242 mq_timedsend => mqueue::sys_mq_timedsend(0, 1, 2, 3, 4);
    243 mq_timedreceive => mqueue::sys_mq_timedreceive(0, 1, 2, 3, 4);
    244 mq_notify => mqueue::sys_mq_notify(0, 1);
    245 mq_getsetattr => mqueue::sys_mq_getsetattr(0, 1, 2);
    253 inotify_init => sys_inotify_init();
    254 inotify_add_watch => sys_inotify_add_watch(0, 1, 2);
    255 inotify_rm_watch => sys_inotify_rm_watch(0, 1);
    275 splice => sys_splice(0, 1, 2, 3, 4, 5);
    276 tee => sys_tee(0, 1, 2, 3);
    278 vmsplice => sys_vmsplice(0, 1, 2, 3);
    282 signalfd => sys_signalfd(0, 1, 2);
    283 timerfd_create => sys_timerfd_create(0, 1);
    284 eventfd => sys_eventfd(0);
    286 timerfd_settime => sys_timerfd_settime(0, 1, 2, 3);
    287 timerfd_gettime => sys_timerfd_gettime(0, 1);
    289 signalfd4 => sys_signalfd4(0, 1, 2, 3);
    290 eventfd2 => sys_eventfd2(0, 1);
    293 pipe2 => sys_pipe2(0, 1);
    294 inotify_init1 => sys_inotify_init1(0);
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

/// `vmsplice(2)`: a gift is copied (see [`splice`]).
pub fn sys_vmsplice(cx: &mut Cx<'_>, fd: i32, iov: UserAddr, count: usize, flags: u32) -> Result<usize> {
    if flags & !splice::FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let file = cx.thread.file(fd)?;
    splice::vmsplice(&file, iov, count, flags)
}

/// Gives the calling process a descriptor for a new file.
fn install(file: Arc<File>, cloexec: bool) -> Result<i32> {
    current().files().install(file, cloexec, current().process().rlimits.soft(Resource::Nofile))
}

/// `eventfd(2)`.
pub fn sys_eventfd(cx: &mut Cx<'_>, initial: u32) -> Result<i32> {
    sys_eventfd2(cx, initial, 0)
}

/// `eventfd2(2)`.
pub fn sys_eventfd2(_cx: &mut Cx<'_>, initial: u32, flags: u32) -> Result<i32> {
    install(eventfd::create(initial, flags)?, flags & uapi::EFD_CLOEXEC != 0)
}

/// `timerfd_create(2)`.
pub fn sys_timerfd_create(_cx: &mut Cx<'_>, clock: i32, flags: u32) -> Result<i32> {
    install(timerfd::create(clock, flags)?, flags & uapi::TFD_CLOEXEC != 0)
}

/// `timerfd_settime(2)`.
pub fn sys_timerfd_settime(
    cx: &mut Cx<'_>,
    fd: i32,
    flags: u32,
    new: UserPtr<Itimerspec>,
    old: UserPtr<Itimerspec>,
) -> Result {
    let setting = new.read()?;
    if flags & !(uapi::TFD_TIMER_ABSTIME | uapi::TFD_TIMER_CANCEL_ON_SET) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = cx.thread.file(fd)?;
    let former = file.ops::<TimerFd>().ok_or(Errno::EINVAL)?.set(flags, &setting)?;
    old.write_if_given(&former)
}

/// `timerfd_gettime(2)`.
pub fn sys_timerfd_gettime(cx: &mut Cx<'_>, fd: i32, current: UserPtr<Itimerspec>) -> Result {
    let file = cx.thread.file(fd)?;
    current.write(&file.ops::<TimerFd>().ok_or(Errno::EINVAL)?.get())
}

/// `signalfd(2)`.
pub fn sys_signalfd(cx: &mut Cx<'_>, fd: i32, mask: UserPtr<[u8; 8]>, size: usize) -> Result<i32> {
    sys_signalfd4(cx, fd, mask, size, 0)
}

/// `signalfd4(2)`.
pub fn sys_signalfd4(cx: &mut Cx<'_>, fd: i32, mask: UserPtr<[u8; 8]>, size: usize, flags: u32) -> Result<i32> {
    if size != size_of::<u64>() {
        return Err(Errno::EINVAL);
    }
    let wanted = SigSet(u64::from_ne_bytes(mask.read()?));
    if flags & !(uapi::O_CLOEXEC | uapi::O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    if fd == -1 {
        return install(signalfd::create(wanted, flags), flags & uapi::O_CLOEXEC != 0);
    }
    let file = cx.thread.file(fd)?;
    file.ops::<SignalFd>().ok_or(Errno::EINVAL)?.set(wanted);
    Ok(fd)
}

/// `inotify_init(2)`.
pub fn sys_inotify_init(cx: &mut Cx<'_>) -> Result<i32> {
    sys_inotify_init1(cx, 0)
}

/// `inotify_init1(2)`.
pub fn sys_inotify_init1(_cx: &mut Cx<'_>, flags: u32) -> Result<i32> {
    if flags & !(uapi::IN_CLOEXEC | uapi::IN_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = File::anon(Inotify::new()?, "anon_inode:inotify", uapi::O_RDONLY | flags & uapi::IN_NONBLOCK);
    install(file, flags & uapi::IN_CLOEXEC != 0)
}

/// `inotify_add_watch(2)`.
pub fn sys_inotify_add_watch(cx: &mut Cx<'_>, fd: i32, path: UserAddr, wanted: u32) -> Result<i32> {
    inotify::check_mask(wanted)?;
    let file = cx.thread.file(fd)?;
    let instance = file.ops::<Inotify>().ok_or(Errno::EINVAL)?;
    let mut flags = LookupFlags::empty();
    if wanted & uapi::IN_DONT_FOLLOW == 0 {
        flags |= LookupFlags::FOLLOW;
    }
    if wanted & uapi::IN_ONLYDIR != 0 {
        flags |= LookupFlags::DIRECTORY;
    }
    let path = crate::fs::path::lookup_at(uapi::AT_FDCWD, &user::read_path(path)?, flags)?;
    let inode = path.inode()?;
    if wanted & uapi::IN_ONLYDIR != 0 && inode.kind != FileKind::Directory {
        return Err(Errno::ENOTDIR);
    }
    cx.thread.with_cred(|cred| permission::check(inode, permission::MAY_READ, cred))?;
    instance.add(inode, wanted)
}

/// `inotify_rm_watch(2)`.
pub fn sys_inotify_rm_watch(cx: &mut Cx<'_>, fd: i32, wd: i32) -> Result {
    let file = cx.thread.file(fd)?;
    file.ops::<Inotify>().ok_or(Errno::EINVAL)?.remove(wd)
}
