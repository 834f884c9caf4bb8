//! Files that can be executed: [`Executable`], and the `#!` line ([`parse_script`]).
//!
//! While an [`Executable`] lives nobody can open its file for writing (`ETXTBSY`). The process keeps that of its program,
//! children share it, so a running program's file stays as it is until the last one that runs it is gone.
//! References: execve(2), Linux `fs/exec.c` (`do_open_execat`), `fs/binfmt_script.c`.

use alloc::sync::Arc;

use linux_uapi::raw::general::{AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, O_RDONLY};

use super::thread::Thread;
use crate::fs::path::{self, LookupFlags};
use crate::fs::permission::{self, MAY_EXEC};
use crate::fs::{File, FileKind, FileMode, Inode, Path, Sink};
use crate::{Errno, Result};

/// Bytes of a file that decide how it is executed (`BINPRM_BUF_SIZE`).
pub const HEAD_LEN: usize = 256;

/// A file that is being executed.
pub struct Executable {
    file: Arc<File>,
    inode: Arc<Inode>,
}

impl Executable {
    /// Opens the file at `path` for execution; `flags` are execveat's.
    ///
    /// # Errors
    /// `EACCES` for what is not an executable regular file, `ETXTBSY`, `ELOOP`, and what the path walk reports.
    pub fn open(thread: &Thread, dirfd: i32, path: &[u8], flags: u32) -> Result<Arc<Executable>> {
        let (at, inode) = find(thread, dirfd, path, flags)?;
        let file = open_checked(thread, at, &inode)?;
        inode.deny_write()?;
        Ok(Arc::new(Executable { file, inode }))
    }

    /// Opens an interpreter: checked in the same way, but not guarded against writers once it is mapped.
    ///
    /// # Errors
    /// As [`Executable::open`].
    pub fn open_interp(thread: &Thread, path: &[u8]) -> Result<Arc<File>> {
        let (at, inode) = find(thread, AT_FDCWD, path, 0)?;
        open_checked(thread, at, &inode)
    }

    /// Returns the open file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Returns the inode.
    pub fn inode(&self) -> &Arc<Inode> {
        &self.inode
    }

    /// Reads the start of the file; returns how much of it there is.
    ///
    /// # Errors
    /// What reading reports.
    pub fn head(&self) -> Result<([u8; HEAD_LEN], usize)> {
        let mut head = [0; HEAD_LEN];
        let mut sink = Sink::kernel(&mut head);
        while sink.remaining() > 0 {
            let at = sink.done() as u64;
            if self.file.file_ops().read(&self.file, &mut sink, at)? == 0 {
                break;
            }
        }
        let len = sink.done();
        Ok((head, len))
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        self.inode.allow_write();
    }
}

/// Walks to the file. One behind a descriptor may have no path (memfd).
fn find(thread: &Thread, dirfd: i32, path: &[u8], flags: u32) -> Result<(Option<Path>, Arc<Inode>)> {
    if path.is_empty() && flags & AT_EMPTY_PATH != 0 && dirfd != AT_FDCWD {
        let file = thread.files().get_any(dirfd)?;
        let inode = file.inode().ok_or(Errno::EACCES)?.clone();
        return Ok((file.path().cloned(), inode));
    }
    let mut lookup = LookupFlags::empty();
    lookup.set(LookupFlags::FOLLOW, flags & AT_SYMLINK_NOFOLLOW == 0);
    lookup.set(LookupFlags::EMPTY, flags & AT_EMPTY_PATH != 0);
    let at = path::lookup_at(dirfd, path, lookup)?;
    let inode = at.inode()?.clone();
    Ok((Some(at), inode))
}

fn open_checked(thread: &Thread, at: Option<Path>, inode: &Arc<Inode>) -> Result<Arc<File>> {
    match inode.kind {
        FileKind::Regular => {}
        FileKind::Symlink => return Err(Errno::ELOOP),
        _ => return Err(Errno::EACCES),
    }
    if at.as_ref().is_some_and(|at| !at.mount.allows_exec()) {
        return Err(Errno::EACCES);
    }
    permission::check(inode, MAY_EXEC, &thread.cred())?;
    let ops = inode.ops().open(inode, O_RDONLY)?;
    Ok(match at {
        Some(at) => File::with_path(ops, at, inode.clone(), O_RDONLY, FileMode::empty()),
        None => File::with_inode(ops, inode.clone(), "memfd", O_RDONLY),
    })
}

/// A parsed `#!` line.
#[derive(PartialEq, Eq, Debug)]
pub struct Script<'a> {
    /// The interpreter's path.
    pub interp: &'a [u8],
    /// Its one argument.
    pub arg: Option<&'a [u8]>,
}

/// Parses a `#!` line as Linux does: blanks around, an optional single argument, no truncated interpreter path.
///
/// # Errors
/// `ENOEXEC` for a line (with its end) without interpreter, or with one that goes on beyond `head`.
pub fn parse_script(head: &[u8]) -> Result<Option<Script<'_>>> {
    let Some(rest) = head.strip_prefix(b"#!") else { return Ok(None) };
    let is_blank = |b: &u8| *b == b' ' || *b == b'\t';
    let end = rest.iter().position(|&b| b == b'\n' || b == 0);
    // A file shorter than what was read ends its line, too.
    let whole_line = end.is_some() || head.len() < HEAD_LEN;
    let line = &rest[..end.unwrap_or(rest.len())];
    let line = &line[line.iter().position(|b| !is_blank(b)).unwrap_or(line.len())..];
    let line = &line[..line.iter().rposition(|b| !is_blank(b)).map_or(0, |i| i + 1)];
    if line.is_empty() {
        // At the end of the file Linux takes nothing for a name, which no file has: `ENOENT`. A line's end makes it no script.
        let at_end = whole_line && end.is_none_or(|end| rest[end] == 0);
        return if at_end { Ok(Some(Script { interp: b"", arg: None })) } else { Err(Errno::ENOEXEC) };
    }
    let split = line.iter().position(is_blank);
    if split.is_none() && !whole_line {
        return Err(Errno::ENOEXEC);
    }
    let (interp, arg) = line.split_at(split.unwrap_or(line.len()));
    let arg = &arg[arg.iter().position(|b| !is_blank(b)).unwrap_or(arg.len())..];
    Ok(Some(Script { interp, arg: (!arg.is_empty()).then_some(arg) }))
}
