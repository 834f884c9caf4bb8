//! Reading and writing in all forms, and `lseek`. References: read(2), readv(2), pread(2), lseek(2).

use alloc::vec::Vec;

use linux_uapi::{raw::general as uapi, stat::Iovec};

use crate::{
    Errno, Result,
    fs::{
        file::{File, FileMode},
        io::{IoRange, MAX_RW_COUNT, Sink, Source},
        notify::{self, mask},
    },
    process::{Resource, current},
    syscall::Cx,
    user::{self, UserAddr, UserPtr},
};

/// Checks a user buffer as `access_ok` does and clips it to what one call moves.
#[inline]
fn buffer(addr: UserAddr, len: usize) -> Result<usize> {
    if (len as i64) < 0 {
        return Err(Errno::EINVAL);
    }
    if !addr.is_user_range(len as u64) {
        return Err(Errno::EFAULT);
    }
    Ok(len.min(MAX_RW_COUNT))
}

#[inline]
fn announce(file: &File, n: usize, what: u32) {
    if n > 0
        && let Some(path) = file.path()
    {
        notify::event(&path.dentry, what);
    }
}

/// Clips a write of a regular file to `RLIMIT_FSIZE`; sends `SIGXFSZ` and fails when nothing fits.
fn limit_size(file: &File, src: &mut Source<'_>, pos: Option<u64>) -> Result {
    if src.remaining() == 0 || file.mode().contains(FileMode::STREAM) {
        return Ok(());
    }
    let Some(inode) = file.inode().filter(|i| i.kind == crate::fs::FileKind::Regular) else { return Ok(()) };
    let thread = current();
    let limit = thread.process().rlimits.soft(Resource::Fsize);
    if limit == u64::MAX {
        return Ok(());
    }
    let at = if file.flags() & uapi::O_APPEND != 0 { inode.len() } else { pos.unwrap_or_else(|| *file.pos.lock()) };
    if at >= limit {
        crate::fs::signal_limit();
        return Err(Errno::EFBIG);
    }
    src.truncate(usize::try_from(limit - at).unwrap_or(usize::MAX));
    Ok(())
}

fn write_file(file: &File, src: &mut Source<'_>) -> Result<usize> {
    limit_size(file, src, None)?;
    let n = file.write(src)?;
    announce(file, n, mask::MODIFY);
    Ok(n)
}

fn write_file_at(file: &File, src: &mut Source<'_>, pos: u64) -> Result<usize> {
    limit_size(file, src, Some(pos))?;
    let n = file.write_at(src, pos)?;
    announce(file, n, mask::MODIFY);
    Ok(n)
}

fn read_file(file: &File, dst: &mut Sink<'_>) -> Result<usize> {
    let n = file.read(dst)?;
    announce(file, n, mask::ACCESS);
    Ok(n)
}

fn read_file_at(file: &File, dst: &mut Sink<'_>, pos: u64) -> Result<usize> {
    let n = file.read_at(dst, pos)?;
    announce(file, n, mask::ACCESS);
    Ok(n)
}

pub fn sys_read(cx: &mut Cx<'_>, fd: i32, buf: UserAddr, len: usize) -> Result<usize> {
    let file = cx.thread.file(fd)?;
    file.check_read()?;
    let len = buffer(buf, len)?;
    read_file(&file, &mut Sink::user(buf, len))
}

pub fn sys_write(cx: &mut Cx<'_>, fd: i32, buf: UserAddr, len: usize) -> Result<usize> {
    let file = cx.thread.file(fd)?;
    file.check_write()?;
    let len = buffer(buf, len)?;
    write_file(&file, &mut Source::user(buf, len))
}

fn position(pos: i64) -> Result<u64> {
    u64::try_from(pos).map_err(|_| Errno::EINVAL)
}

fn check_seekable(file: &File) -> Result {
    if file.mode().contains(FileMode::SEEK) { Ok(()) } else { Err(Errno::ESPIPE) }
}

/// The position of `preadv2` and `pwritev2`: `None` for -1, the file's own.
fn position_or_current(file: &File, pos: i64) -> Result<Option<u64>> {
    if pos == -1 {
        return Ok(None);
    }
    let pos = position(pos)?;
    check_seekable(file)?;
    Ok(Some(pos))
}

pub fn sys_pread64(cx: &mut Cx<'_>, fd: i32, buf: UserAddr, len: usize, pos: i64) -> Result<usize> {
    let pos = position(pos)?;
    let file = cx.thread.file(fd)?;
    check_seekable(&file)?;
    file.check_read()?;
    let len = buffer(buf, len)?;
    read_file_at(&file, &mut Sink::user(buf, len), pos)
}

pub fn sys_pwrite64(cx: &mut Cx<'_>, fd: i32, buf: UserAddr, len: usize, pos: i64) -> Result<usize> {
    let pos = position(pos)?;
    let file = cx.thread.file(fd)?;
    check_seekable(&file)?;
    file.check_write()?;
    let len = buffer(buf, len)?;
    write_file_at(&file, &mut Source::user(buf, len), pos)
}

/// Copies and checks an array of `iovec`s (`import_iovec`).
///
/// # Errors
/// `EINVAL` for too many or a negative length, `EFAULT`.
pub fn import_iovec(vec: UserPtr<Iovec>, count: usize) -> Result<Vec<IoRange>> {
    if count > uapi::UIO_MAXIOV as usize {
        return Err(Errno::EINVAL);
    }
    let list = user::read_slice(vec, count)?;
    let mut total = 0usize;
    let mut out = Vec::with_capacity(count);
    for iov in &list {
        if (iov.iov_len as i64) < 0 {
            return Err(Errno::EINVAL);
        }
        let addr = UserAddr::new(iov.iov_base);
        if !addr.is_user_range(iov.iov_len) {
            return Err(Errno::EFAULT);
        }
        let len = (iov.iov_len as usize).min(MAX_RW_COUNT - total);
        total += len;
        out.push(IoRange { addr, len });
    }
    Ok(out)
}

pub fn sys_readv(cx: &mut Cx<'_>, fd: i32, vec: UserPtr<Iovec>, count: usize) -> Result<usize> {
    let file = cx.thread.file(fd)?;
    file.check_read()?;
    let ranges = import_iovec(vec, count)?;
    read_file(&file, &mut Sink::ranges(&ranges))
}

pub fn sys_writev(cx: &mut Cx<'_>, fd: i32, vec: UserPtr<Iovec>, count: usize) -> Result<usize> {
    let file = cx.thread.file(fd)?;
    file.check_write()?;
    let ranges = import_iovec(vec, count)?;
    write_file(&file, &mut Source::ranges(&ranges))
}

pub fn sys_preadv(cx: &mut Cx<'_>, fd: i32, vec: UserPtr<Iovec>, count: usize, lo: u64, _hi: u64) -> Result<usize> {
    let pos = position(lo as i64)?;
    let file = cx.thread.file(fd)?;
    check_seekable(&file)?;
    file.check_read()?;
    let ranges = import_iovec(vec, count)?;
    read_file_at(&file, &mut Sink::ranges(&ranges), pos)
}

pub fn sys_pwritev(cx: &mut Cx<'_>, fd: i32, vec: UserPtr<Iovec>, count: usize, lo: u64, _hi: u64) -> Result<usize> {
    let pos = position(lo as i64)?;
    let file = cx.thread.file(fd)?;
    check_seekable(&file)?;
    file.check_write()?;
    let ranges = import_iovec(vec, count)?;
    write_file_at(&file, &mut Source::ranges(&ranges), pos)
}

/// `RWF_APPEND`: at the end, whatever the file's own flag.
const RWF_APPEND: u32 = 0x10;
/// `RWF_NOAPPEND`: where it says, whatever the file's own flag.
const RWF_NOAPPEND: u32 = 0x20;

/// Checks the `RWF_*` flags. `RWF_HIPRI`, `RWF_DSYNC` and `RWF_SYNC` ask for no more than always happens to files in
/// memory; `RWF_NOWAIT` is refused where a file may block.
fn rw_flags(file: &File, flags: u32, write: bool) -> Result<u32> {
    const HIPRI: u32 = 1;
    const DSYNC: u32 = 2;
    const SYNC: u32 = 4;
    const NOWAIT: u32 = 8;
    let mut known = HIPRI | DSYNC | SYNC | NOWAIT;
    if write {
        known |= RWF_APPEND | RWF_NOAPPEND;
    }
    if flags & !known != 0 || flags & (RWF_APPEND | RWF_NOAPPEND) == RWF_APPEND | RWF_NOAPPEND {
        return Err(Errno::EOPNOTSUPP);
    }
    let regular = file.inode().is_some_and(|i| i.kind == crate::fs::FileKind::Regular);
    if flags & NOWAIT != 0 && !regular {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(flags & (RWF_APPEND | RWF_NOAPPEND))
}

pub fn sys_preadv2(
    cx: &mut Cx<'_>,
    fd: i32,
    vec: UserPtr<Iovec>,
    count: usize,
    lo: i64,
    _hi: u64,
    flags: u32,
) -> Result<usize> {
    let file = cx.thread.file(fd)?;
    let at = position_or_current(&file, lo)?;
    file.check_read()?;
    let ranges = import_iovec(vec, count)?;
    rw_flags(&file, flags, false)?;
    let mut dst = Sink::ranges(&ranges);
    match at {
        None => read_file(&file, &mut dst),
        Some(pos) => read_file_at(&file, &mut dst, pos),
    }
}

pub fn sys_pwritev2(
    cx: &mut Cx<'_>,
    fd: i32,
    vec: UserPtr<Iovec>,
    count: usize,
    lo: i64,
    _hi: u64,
    flags: u32,
) -> Result<usize> {
    let file = cx.thread.file(fd)?;
    let at = position_or_current(&file, lo)?;
    file.check_write()?;
    let ranges = import_iovec(vec, count)?;
    let special = rw_flags(&file, flags, true)?;
    let mut src = Source::ranges(&ranges);
    limit_size(&file, &mut src, at)?;
    let n = match (special, at) {
        (RWF_APPEND, _) => {
            let (end, n) = file.file_ops().append(&file, &mut src)?;
            if at.is_none() && !file.mode().contains(FileMode::STREAM) {
                *file.pos.lock() = end;
            }
            n
        }
        (RWF_NOAPPEND, Some(pos)) => file.file_ops().write(&file, &mut src, pos)?,
        (RWF_NOAPPEND, None) if !file.mode().contains(FileMode::STREAM) => {
            let mut pos = file.pos.lock();
            let n = file.file_ops().write(&file, &mut src, *pos)?;
            *pos += n as u64;
            n
        }
        (_, None) => file.write(&mut src)?,
        (_, Some(pos)) => file.write_at(&mut src, pos)?,
    };
    announce(&file, n, mask::MODIFY);
    Ok(n)
}

pub fn sys_lseek(cx: &mut Cx<'_>, fd: i32, offset: i64, whence: u32) -> Result<u64> {
    let file = cx.thread.file(fd)?;
    if whence > uapi::SEEK_HOLE {
        return Err(Errno::EINVAL);
    }
    if file.mode().contains(FileMode::STREAM) {
        return file.file_ops().seek(&file, offset, whence, 0);
    }
    let mut pos = file.pos.lock();
    let new = file.file_ops().seek(&file, offset, whence, *pos)?;
    *pos = new;
    Ok(new)
}
