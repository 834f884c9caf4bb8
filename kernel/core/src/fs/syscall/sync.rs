//! Durability and advice. References: fsync(2), sync(2), sync_file_range(2), posix_fadvise(2), readahead(2),
//! cachestat(2).

use alloc::vec::Vec;

use linux_uapi::{
    raw::general as uapi,
    stat::{Cachestat, CachestatRange},
};

use crate::{
    Errno, Result,
    fs::{
        File, FileKind,
        file::FileMode,
        mount,
        permission::{self, MAY_WRITE},
    },
    process::current,
    syscall::Cx,
    user::UserPtr,
};

pub fn sys_fsync(cx: &mut Cx<'_>, fd: i32) -> Result {
    let file = cx.thread.file(fd)?;
    file.file_ops().fsync(&file, false)
}

pub fn sys_fdatasync(cx: &mut Cx<'_>, fd: i32) -> Result {
    let file = cx.thread.file(fd)?;
    file.file_ops().fsync(&file, true)
}

pub fn sys_sync(_cx: &mut Cx<'_>) -> Result {
    let mut seen: Vec<u32> = Vec::new();
    for m in mount::all() {
        if !seen.contains(&m.sb.dev) {
            seen.push(m.sb.dev);
            // sync(2) reports nothing.
            let _ = m.sb.ops().sync(&m.sb, true);
        }
    }
    Ok(())
}

pub fn sys_syncfs(cx: &mut Cx<'_>, fd: i32) -> Result {
    let file = cx.thread.file(fd)?;
    match file.inode() {
        Some(inode) => inode.sb.ops().sync(&inode.sb, true),
        None => Ok(()),
    }
}

pub fn sys_sync_file_range(cx: &mut Cx<'_>, fd: i32, offset: i64, len: i64, flags: u32) -> Result {
    let file = cx.thread.file(fd)?;
    if flags & !7 != 0 || offset < 0 || len < 0 || offset.checked_add(len).is_none() {
        return Err(Errno::EINVAL);
    }
    match file.inode().map(|i| i.kind) {
        Some(FileKind::Regular | FileKind::BlockDevice | FileKind::Directory | FileKind::Symlink) => {
            file.file_ops().fsync(&file, true)
        }
        _ => Err(Errno::ESPIPE),
    }
}

pub fn sys_fadvise64(cx: &mut Cx<'_>, fd: i32, _offset: i64, len: i64, advice: u32) -> Result {
    let file = cx.thread.file(fd)?;
    if file.mode().contains(FileMode::STREAM) && file.inode().is_none_or(|i| i.kind == FileKind::Fifo) {
        return Err(Errno::ESPIPE);
    }
    if len < 0 || advice > uapi::POSIX_FADV_NOREUSE {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

pub fn sys_readahead(cx: &mut Cx<'_>, fd: i32, _offset: i64, _count: usize) -> Result {
    let file = cx.thread.file(fd)?;
    file.check_read()?;
    match file.inode().map(|i| i.kind) {
        Some(FileKind::Regular | FileKind::BlockDevice) => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

/// Whether the caller may know what of a file is cached: who can write it, or could (as mincore(2)), since it tells what others read.
fn may_see_cache(file: &File) -> bool {
    let Some(inode) = file.inode() else { return true };
    let cred = current().cred();
    file.mode().contains(FileMode::WRITE)
        || permission::owner_or_capable(inode, &cred)
        || permission::check(inode, MAY_WRITE, &cred).is_ok()
}

/// Counts the cached pages of a range of a file. Pages are not remembered once they are gone: none counts as evicted.
pub fn sys_cachestat(
    cx: &mut Cx<'_>,
    fd: i32,
    range: UserPtr<CachestatRange>,
    out: UserPtr<Cachestat>,
    flags: u32,
) -> Result {
    const PAGE: u64 = ursa_hal::PAGE_SIZE as u64;
    let file = cx.thread.file(fd)?;
    let CachestatRange { off, len } = range.read()?;
    if !may_see_cache(&file) {
        return Err(Errno::EPERM);
    }
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let end = if len == 0 { u64::MAX } else { off.wrapping_add(len - 1) / PAGE + 1 };
    let tally = file.file_ops().cache(&file).map(|object| object.tally(off / PAGE, end)).unwrap_or_default();
    out.write(&Cachestat {
        nr_cache: tally.present,
        nr_dirty: tally.dirty,
        nr_writeback: tally.writeback,
        ..Cachestat::default()
    })
}
