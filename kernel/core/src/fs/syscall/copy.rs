//! Copies inside the kernel: `sendfile` and `copy_file_range`. `splice` and `tee` live with pipes.
//!
//! Bytes go through a page of kernel memory, except that a pipe as the target of `sendfile` takes pages by reference
//! where its `PageSink` can. References: sendfile(2), copy_file_range(2).

use alloc::{sync::Arc, vec::Vec};

use linux_uapi::raw::general as uapi;

use crate::{
    Errno, Result,
    fs::{
        File, FileKind,
        file::FileMode,
        io::{MAX_RW_COUNT, Sink, Source},
        notify::{self, mask},
    },
    syscall::Cx,
    user::UserPtr,
};

const CHUNK: usize = 64 * 1024;

/// Moves up to `count` bytes from `from` at `from_pos` to `to` (at its position, or at `to_pos`).
fn transfer(from: &File, mut from_pos: u64, to: &File, mut to_pos: Option<u64>, count: usize) -> Result<usize> {
    let mut buf = Vec::new();
    buf.try_reserve_exact(CHUNK.min(count)).map_err(|_| Errno::ENOMEM)?;
    buf.resize(CHUNK.min(count), 0);
    let mut done = 0;
    while done < count {
        let want = (count - done).min(buf.len());
        let got = match from.file_ops().read(from, &mut Sink::kernel(&mut buf[..want]), from_pos) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        };
        let mut src = Source::kernel(&buf[..got]);
        let put = match to_pos {
            Some(pos) => to.file_ops().write(to, &mut src, pos),
            None => to.write(&mut src),
        };
        let put = match put {
            Ok(n) => n,
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        };
        done += put;
        from_pos += put as u64;
        to_pos = to_pos.map(|p| p + put as u64);
        if put < got || crate::fs::interrupted() {
            break;
        }
        crate::sched::cond_resched();
    }
    Ok(done)
}

pub fn sys_sendfile(cx: &mut Cx<'_>, out_fd: i32, in_fd: i32, offset: UserPtr<i64>, count: usize) -> Result<usize> {
    let input = cx.thread.file(in_fd)?;
    input.check_read()?;
    let given = match offset.non_null() {
        Some(ptr) => Some(ptr.read()?),
        None => None,
    };
    if given.is_some() && !input.mode().contains(FileMode::SEEK) {
        return Err(Errno::ESPIPE);
    }
    let output = cx.thread.file(out_fd)?;
    output.check_write()?;
    if output.flags() & uapi::O_APPEND != 0 || input.inode().is_some_and(|i| i.is_dir()) {
        return Err(Errno::EINVAL);
    }
    let count = count.min(MAX_RW_COUNT);
    if given.is_some_and(|p| p < 0) {
        return Err(Errno::EINVAL);
    }
    let n = if let Some(pos) = given {
        transfer(&input, pos as u64, &output, None, count)?
    } else if input.mode().contains(FileMode::STREAM) {
        // Linux takes only what splice can read from, and pipes only as the target of splice.
        return Err(Errno::EINVAL);
    } else {
        let mut pos = input.pos.lock();
        let n = transfer(&input, *pos, &output, None, count)?;
        *pos += n as u64;
        n
    };
    if let Some(pos) = given {
        offset.write(&(pos + n as i64))?;
    }
    announce(&input, &output, n);
    Ok(n)
}

fn announce(input: &File, output: &File, n: usize) {
    if n == 0 {
        return;
    }
    if let Some(path) = input.path() {
        notify::event(&path.dentry, mask::ACCESS);
    }
    if let Some(path) = output.path() {
        notify::event(&path.dentry, mask::MODIFY);
    }
}

pub fn sys_copy_file_range(
    cx: &mut Cx<'_>,
    in_fd: i32,
    in_off: UserPtr<i64>,
    out_fd: i32,
    out_off: UserPtr<i64>,
    len: usize,
    flags: u32,
) -> Result<usize> {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let input = cx.thread.file(in_fd)?;
    let output = cx.thread.file(out_fd)?;
    let read_pos = |file: &File, ptr: UserPtr<i64>| -> Result<u64> {
        let pos = if ptr.is_null() { *file.pos.lock() as i64 } else { ptr.read()? };
        u64::try_from(pos).map_err(|_| Errno::EINVAL)
    };
    let kind = |file: &File| file.inode().map(|i| i.kind);
    for file in [&input, &output] {
        match kind(file) {
            Some(FileKind::Directory) => return Err(Errno::EISDIR),
            Some(FileKind::Regular) => {}
            _ => return Err(Errno::EINVAL),
        }
    }
    let from = read_pos(&input, in_off)?;
    let to = read_pos(&output, out_off)?;
    if !input.mode().contains(FileMode::READ)
        || !output.mode().contains(FileMode::WRITE)
        || output.flags() & uapi::O_APPEND != 0
    {
        return Err(Errno::EBADF);
    }
    let (Some(a), Some(b)) = (input.inode(), output.inode()) else { return Err(Errno::EINVAL) };
    let len = len.min(MAX_RW_COUNT);
    let len = len.min(usize::try_from(a.len().saturating_sub(from)).unwrap_or(usize::MAX));
    if to.checked_add(len as u64).is_none_or(|end| end > i64::MAX as u64) {
        return Err(Errno::EFBIG);
    }
    if Arc::ptr_eq(a, b) && from < to + len as u64 && to < from + len as u64 {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    let n = transfer(&input, from, &output, Some(to), len)?;
    for (file, ptr, pos) in [(&input, in_off, from), (&output, out_off, to)] {
        if ptr.is_null() {
            *file.pos.lock() = pos + n as u64;
        } else {
            ptr.write(&((pos + n as u64) as i64))?;
        }
    }
    announce(&input, &output, n);
    Ok(n)
}
