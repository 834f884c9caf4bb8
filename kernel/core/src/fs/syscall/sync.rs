//! Durability and advice. References: fsync(2), sync(2), sync_file_range(2), posix_fadvise(2), readahead(2).

use alloc::vec::Vec;

use linux_uapi::raw::general as uapi;

use crate::{
    Errno, Result,
    fs::{FileKind, file::FileMode, mount},
    syscall::Cx,
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
