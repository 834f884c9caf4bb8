//! `/proc/PID/fd`, `fdinfo` and `ns`.
//!
//! References: proc_pid_fd(5), proc_pid_fdinfo(5), namespaces(7).

use alloc::{boxed::Box, format, sync::Arc};
use core::fmt::Write;

use linux_uapi::raw::general as uapi;

use super::{
    Text,
    node::{GeneratedFile, Generator, Link},
    pid::{Target, fd_ino, ino, jump, make_owned},
};
use crate::fs::Listing;
use crate::{
    Errno, Result,
    fs::{
        anon,
        file::{DirSink, File, FileMode, FileOps},
        inode::{Entry, FileKind, Inode, InodeOps, inode_of},
    },
    namespace::{Kind, nsfs::Namespace},
    process::{self, Thread},
};

/// `fd` (links) or `fdinfo` (texts).
pub struct FdDir {
    /// Whose.
    pub target: Target,
    /// `fdinfo`.
    pub info: bool,
}

fn parse_fd(name: &[u8]) -> Option<i32> {
    if name.is_empty() || name.len() > 10 || name.len() > 1 && name[0] == b'0' || !name.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(name).ok()?.parse().ok()
}

fn file_of(target: &Target, fd: i32) -> Result<Arc<File>> {
    if target.process()?.is_zombie() {
        return Err(Errno::ENOENT);
    }
    target.thread()?.files().get_any(fd).map_err(|_| Errno::ENOENT)
}

impl InodeOps for FdDir {
    fn lookup(&self, dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        let fd = parse_fd(name).ok_or(Errno::ENOENT)?;
        self.target.may_inspect()?;
        let file = file_of(&self.target, fd)?;
        let number = fd_ino(self.target.id(), fd as usize, self.info);
        let target = self.target.clone();
        let (mode, ops): (u32, Box<dyn InodeOps>) = if self.info {
            (uapi::S_IFREG | 0o444, Box::new(GeneratedFile(Arc::new(FdInfo { target, fd }))))
        } else {
            let mut mode = uapi::S_IFLNK;
            if file.mode().contains(FileMode::READ) {
                mode |= 0o500;
            }
            if file.mode().contains(FileMode::WRITE) {
                mode |= 0o300;
            }
            (
                mode,
                Box::new(Link(move || {
                    target.may_inspect()?;
                    jump(anon::path_of(&file_of(&target, fd)?)?)
                })),
            )
        };
        Ok(Entry::volatile(make_owned(&dir.sb, &self.target, number, mode, ops)))
    }

    fn permission(&self, _inode: &Inode, _mask: u32) -> Result {
        Ok(())
    }

    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        self.target.may_inspect()?;
        Ok(Arc::new(Listing::new(|f: &File, pos: &mut u64, sink: &mut dyn DirSink| {
            let dir = inode_of(f)?.ops_as::<FdDir>().ok_or(Errno::EIO)?;
            if dir.target.process().map_err(|_| Errno::ENOENT)?.is_zombie() {
                return Ok(());
            }
            let files = dir.target.thread()?.files();
            let kind = if dir.info { FileKind::Regular } else { FileKind::Symlink };
            let mut from = (*pos - 2) as usize;
            while let Some((fd, _file)) = files.next_from(from) {
                let number = fd_ino(dir.target.id(), fd, dir.info);
                if !sink.emit(format!("{fd}").as_bytes(), number, kind.dirent_type(), fd as u64 + 3) {
                    break;
                }
                *pos = fd as u64 + 3;
                from = fd + 1;
            }
            Ok(())
        })))
    }

    fn fill_attr(&self, _inode: &Inode, attr: &mut crate::fs::inode::Attr) {
        // Since Linux 6.2 the size of `fd` is the number of open files.
        if !self.info
            && let Ok(thread) = self.target.thread()
        {
            attr.size = thread.files().count() as u64;
        }
    }
}

/// `/proc/PID/fdinfo/FD`
struct FdInfo {
    target: Target,
    fd: i32,
}

impl Generator for FdInfo {
    fn show(&self, out: &mut Text) -> Result {
        self.target.may_inspect()?;
        let files = self.target.thread()?.files();
        let file = files.get_any(self.fd).map_err(|_| Errno::ENOENT)?;
        let mut flags = file.flags();
        if files.cloexec(self.fd).unwrap_or(false) {
            flags |= uapi::O_CLOEXEC;
        }
        let pos = if file.mode().intersects(FileMode::STREAM | FileMode::PATH) { 0 } else { *file.pos.lock() };
        let path = anon::path_of(&file)?;
        let number = path.inode().map_or(0, |i| i.ino);
        writeln!(out, "pos:\t{pos}\nflags:\t0{flags:o}\nmnt_id:\t{}\nino:\t{number}", path.mount.id)?;
        if let Some(inode) = file.inode() {
            for (i, lock) in inode.locks.list().iter().enumerate() {
                use crate::fs::lock::{OFFSET_MAX, Owner};
                let (kind, mine) = match lock.owner {
                    Owner::Posix(id) => ("POSIX ", id == files.lock_owner()),
                    Owner::Ofd(id) => ("OFDLCK", id == file.id()),
                    Owner::Flock(id) => ("FLOCK ", id == file.id()),
                };
                if !mine {
                    continue;
                }
                write!(
                    out,
                    "lock:\t{}: {} ADVISORY  {} {} {:02x}:{:02x}:{} {} ",
                    i + 1,
                    kind,
                    if lock.write { "WRITE" } else { "READ " },
                    process::number_seen(lock.pid),
                    crate::fs::dev::major(inode.sb.dev),
                    crate::fs::dev::minor(inode.sb.dev),
                    inode.ino,
                    lock.start
                )?;
                if lock.end == OFFSET_MAX { out.push_str("EOF\n") } else { writeln!(out, "{}", lock.end)? }
            }
        }
        file.file_ops().fdinfo(&file, out)?;
        Ok(())
    }

    fn may_open(&self, _write: bool) -> Result {
        self.target.may_inspect()
    }
}

/// `/proc/PID/ns`: links to the namespaces.
pub struct NsDir {
    /// Whose.
    pub target: Target,
}

/// Finds a namespace of a thread.
type Whose = fn(&Thread, Kind) -> Result<Namespace>;

/// The names, with the kinds of what they lead to.
const NAMESPACES: [(&str, Kind, Whose); 10] = [
    ("net", Kind::Net, Namespace::of),
    ("uts", Kind::Uts, Namespace::of),
    ("ipc", Kind::Ipc, Namespace::of),
    ("pid", Kind::Pid, Namespace::of),
    ("pid_for_children", Kind::Pid, Namespace::for_children),
    ("user", Kind::User, Namespace::of),
    ("mnt", Kind::Mnt, Namespace::of),
    ("cgroup", Kind::Cgroup, Namespace::of),
    ("time", Kind::Time, Namespace::of),
    ("time_for_children", Kind::Time, Namespace::for_children),
];

impl InodeOps for NsDir {
    fn lookup(&self, dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        let found = NAMESPACES.iter().position(|(n, ..)| n.as_bytes() == name).ok_or(Errno::ENOENT)?;
        let target = self.target.clone();
        let ops = Link(move || {
            target.may_inspect()?;
            let (_, kind, whose) = NAMESPACES[found];
            jump(whose(&*target.thread()?, kind)?.path()?)
        });
        let number = ino(self.target.id(), 0x1000 + found as u64);
        Ok(Entry::volatile(make_owned(&dir.sb, &self.target, number, uapi::S_IFLNK | 0o777, Box::new(ops))))
    }

    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        self.target.may_inspect()?;
        Ok(Arc::new(Listing::new(|f: &File, pos: &mut u64, sink: &mut dyn DirSink| {
            let dir = inode_of(f)?.ops_as::<NsDir>().ok_or(Errno::EIO)?;
            for (i, (name, ..)) in NAMESPACES.iter().enumerate().skip((*pos - 2) as usize) {
                let number = ino(dir.target.id(), 0x1000 + i as u64);
                if !sink.emit(name.as_bytes(), number, FileKind::Symlink.dirent_type(), i as u64 + 3) {
                    break;
                }
                *pos = i as u64 + 3;
            }
            Ok(())
        })))
    }
}
