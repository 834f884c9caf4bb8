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
use crate::fs::{File, FileKind, FileMode, Inode, Path};
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
        let len = self.file.fill_at(&mut head, 0)?;
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

/// Parses a `#!` line as Linux does (`load_script`): of the file's first [`HEAD_LEN`] bytes, with zeroes where it has fewer; blanks
/// around, an optional single argument, no interpreter's path that may be cut off.
///
/// # Errors
/// `ENOEXEC` for a line without interpreter, or with one that may go on beyond those bytes.
pub fn parse_script(head: &[u8]) -> Result<Option<Script<'_>>> {
    const LAST: usize = HEAD_LEN - 1;
    if !head.starts_with(b"#!") {
        return Ok(None);
    }
    let at = |i: usize| head.get(i).copied().unwrap_or(0);
    let is_blank = |i: usize| matches!(at(i), b' ' | b'\t');
    let word_ends = |i: &usize| is_blank(*i) || at(*i) == 0;
    let first_of_word = |from: usize, to: usize| (from..=to).find(|i| !is_blank(*i));

    let newline = (2..HEAD_LEN).find(|i| matches!(at(*i), b'\n' | 0)).filter(|i| at(*i) == b'\n');
    let mut end = match newline {
        Some(end) => end,
        None => {
            let name = first_of_word(2, LAST).ok_or(Errno::ENOEXEC)?;
            (name..=LAST).find(word_ends).ok_or(Errno::ENOEXEC)?;
            LAST
        }
    };
    while is_blank(end - 1) {
        end -= 1;
    }
    let name = first_of_word(2, end).filter(|name| *name != end).ok_or(Errno::ENOEXEC)?;
    let name_end = (name..=end).find(word_ends).unwrap_or(end);
    let arg = if at(name_end) == 0 { None } else { first_of_word(name_end, end).filter(|arg| *arg < end) };
    // Both are strings: a zero ends them. Beyond the file there are only zeroes.
    let string = |from: usize, to: usize| {
        let text = head.get(from..to.min(head.len())).unwrap_or_default();
        &text[..text.iter().position(|b| *b == 0).unwrap_or(text.len())]
    };
    Ok(Some(Script { interp: string(name, name_end), arg: arg.map(|arg| string(arg, end)) }))
}
