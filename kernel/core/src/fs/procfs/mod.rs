//! procfs: processes and the system as files.
//!
//! | module | what |
//! |---|---|
//! | [`node`] | directories, generated files, links |
//! | `pid` | `/proc/PID` and `/proc/PID/task/TID`: a directory that is made anew at each look |
//! | `status`, `maps`, `map_query`, `map_files`, `fds` | what it holds |
//! | `system` | `/proc/meminfo`, `cpuinfo`, `stat` … |
//! | `sysctl` | `/proc/sys` |
//! | `mounts` | the mount tables |
//! | `instance` | what each mount shows |
//!
//! Others add files with [`register`], [`register_link`] and [`register_dir`]. Formats are Linux's, byte for byte where
//! programs parse them.
//!
//! References: proc(5), `Documentation/filesystems/proc.rst`.

mod fds;
mod inside;
mod instance;
mod map_files;
mod map_query;
mod maps;
pub(crate) mod mounts;
pub mod node;
mod pid;
mod resources;
mod status;
mod sysctl;
mod system;

use alloc::{boxed::Box, format, sync::Arc};

use linux_uapi::raw::general as uapi;
use node::{FixedDir, GeneratedFile, Link, make, text_target};
pub use node::{Generator, Text};
pub use pid::process_of;
use ursa_hal::sync::Once;

use super::{
    file::{DirSink, File, FileOps},
    inode::{Entry, FileKind, FileSystem, Inode, InodeOps, SbFlags, SuperBlock},
};
use crate::fs::Listing;
use crate::{
    Errno, Result,
    process::{self, Pid, current},
};

/// `PROC_SUPER_MAGIC`
const MAGIC: u64 = 0x9fa0;
/// Positions from here on list processes.
const PIDS_FROM: u64 = 0x1_0000;

/// The top directory: fixed entries, then a directory for each process.
struct Root {
    fixed: Arc<FixedDir>,
}

/// The entries that `subset=pid` leaves.
const PID_ONLY: [&[u8]; 2] = [b"self", b"thread-self"];

impl InodeOps for Root {
    fn lookup(&self, dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        let options = instance::options(dir);
        let namespace = options.namespace();
        if let Some(inode) = self.fixed.get(name).filter(|_| !options.is_pid_only() || PID_ONLY.contains(&name)) {
            // Where the caller is found depends on the instance.
            let is_link = PID_ONLY.contains(&name) && !Arc::ptr_eq(&inode.sb, &dir.sb);
            let shown = match is_link {
                true => self_link(&dir.sb, inode.ino, name == b"self"),
                false => instance::proxy(&dir.sb, inode),
            };
            return Ok(Entry::stable(shown));
        }
        let id = parse_pid(name).ok_or(Errno::ENOENT)?;
        let thread = namespace.look(id, process::lookup_tid).ok_or(Errno::ENOENT)?;
        if !options.shows(&pid::Target::new(&thread, namespace, false)) {
            return Err(Errno::ENOENT);
        }
        // A thread that is not a leader is found by its number, but not listed, as on Linux.
        Ok(Entry::volatile(pid::directory(&dir.sb, &thread, false)))
    }

    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Listing::new(|f: &File, pos: &mut u64, sink: &mut dyn DirSink| {
            let inode = super::inode::inode_of(f)?;
            let root = inode.ops_as::<Root>().ok_or(Errno::EIO)?;
            let options = instance::options(inode);
            if *pos < PIDS_FROM {
                let shown = |name: &str| !options.is_pid_only() || PID_ONLY.contains(&name.as_bytes());
                if !root.fixed.list_some(2, pos, sink, shown) {
                    return Ok(());
                }
                *pos = PIDS_FROM;
            }
            let mut from = (*pos - PIDS_FROM) as Pid;
            let namespace = options.namespace();
            while let Some((id, process)) = namespace.next_process(from) {
                let next = PIDS_FROM + id as u64 + 1;
                if process.representative().is_some_and(|t| !options.shows(&pid::Target::new(&t, namespace, false))) {
                    from = id + 1;
                    continue;
                }
                let ino = pid::ino(process.pid(), 0);
                if !sink.emit(format!("{id}").as_bytes(), ino, FileKind::Directory.dirent_type(), next) {
                    return Ok(());
                }
                *pos = next;
                from = id + 1;
            }
            Ok(())
        })))
    }

    fn fill_attr(&self, inode: &Inode, attr: &mut super::inode::Attr) {
        attr.nlink = (instance::options(inode).namespace().process_count() + 2) as u32;
    }
}

/// `self`, or else `thread-self`: where the caller is found in the instance, if it is seen there.
fn self_link(sb: &Arc<SuperBlock>, ino: u64, is_self: bool) -> Arc<Inode> {
    let namespace = instance::namespace(sb).clone();
    let target = move || {
        let thread = current();
        match (thread.process().seen_from(&namespace), is_self) {
            (0, _) => Err(Errno::ENOENT),
            (pid, true) => text_target(&format!("{pid}")),
            (pid, false) => text_target(&format!("{pid}/task/{}", thread.identity().seen_from(&namespace))),
        }
    };
    make(sb, ino, uapi::S_IFLNK | 0o777, Box::new(Link(target)))
}

/// A decimal number without leading zeroes.
fn parse_pid(name: &[u8]) -> Option<Pid> {
    if name.is_empty() || name.len() > 10 || name[0] == b'0' || !name.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(name).ok()?.parse().ok()
}

/// The first instance, in which files are registered.
fn instance() -> &'static Arc<SuperBlock> {
    static INSTANCE: Once<Arc<SuperBlock>> = Once::new();
    INSTANCE.call_once(|| {
        let sb = instance::new_super(&Arc::default(), instance::ProcSuper::default(), SbFlags::empty());
        sb.mounts.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        sb
    })
}

/// The type `proc`.
pub struct ProcFs;

impl FileSystem for ProcFs {
    fn name(&self) -> &'static str {
        "proc"
    }

    fn mount(&self, _source: &[u8], flags: SbFlags, data: &[u8]) -> Result<Arc<SuperBlock>> {
        instance::mount(flags, data)
    }
}

/// Finds or makes the directory that `path` is in; the last component.
fn with_parent(path: &str, add: impl FnOnce(&FixedDir, &str, &Arc<SuperBlock>)) -> Result {
    let sb = instance();
    let root = sb.root()?;
    let root = root.inode().ok_or(Errno::EIO)?;
    let (dirs, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut at: Option<Arc<Inode>> = None;
    for part in dirs.split('/').filter(|p| !p.is_empty()) {
        let dir = fixed_of(at.as_ref().unwrap_or(root))?;
        let next = match dir.get(part.as_bytes()) {
            Some(next) => next,
            None => {
                let next = make(sb, sb.next_ino(), uapi::S_IFDIR | 0o555, Box::new(FixedDir::default()));
                dir.insert(part, next.clone());
                next
            }
        };
        at = Some(next);
    }
    add(fixed_of(at.as_ref().unwrap_or(root))?, name, sb);
    Ok(())
}

fn fixed_of(inode: &Inode) -> Result<&FixedDir> {
    if let Some(root) = inode.ops_as::<Root>() {
        return Ok(&root.fixed);
    }
    inode.ops_as::<FixedDir>().ok_or(Errno::ENOTDIR)
}

/// Adds a file: `register("pressure/cpu", 0o444, generator)`. Directories on the way are made.
///
/// # Errors
/// `ENOTDIR` when a component is a file already.
pub fn register(path: &str, mode: u32, generator: impl Generator + 'static) -> Result {
    with_parent(path, |dir, name, sb| {
        let ops = Box::new(GeneratedFile(Arc::new(generator)));
        dir.insert(name, make(sb, sb.next_ino(), uapi::S_IFREG | mode & 0o777, ops));
    })
}

/// Adds a file with a text that `show` makes.
///
/// # Errors
/// As [`register`].
pub fn register_text(path: &str, show: impl Fn(&mut Text) -> Result + Send + Sync + 'static) -> Result {
    register(path, 0o444, show)
}

/// Adds a symbolic link.
///
/// # Errors
/// As [`register`].
pub fn register_link(path: &str, target: &'static str) -> Result {
    with_parent(path, |dir, name, sb| {
        let ops = Box::new(Link(move || text_target(target)));
        dir.insert(name, make(sb, sb.next_ino(), uapi::S_IFLNK | 0o777, ops));
    })
}

/// Adds a file with a text to every process's `net`.
///
/// # Errors
/// `ENOTDIR` when the directory is not what it should be.
pub fn register_net(name: &str, show: impl Fn(&mut Text) -> Result + Send + Sync + 'static) -> Result {
    let dir = pid::net()?;
    let sb = instance();
    let ops = Box::new(GeneratedFile(Arc::new(show)));
    fixed_of(&dir)?.insert(name, make(sb, sb.next_ino(), uapi::S_IFREG | 0o444, ops));
    Ok(())
}

/// Adds an empty directory: a mount point.
///
/// # Errors
/// As [`register`].
pub fn register_dir(path: &str) -> Result {
    with_parent(path, |dir, name, sb| {
        if dir.get(name.as_bytes()).is_none() {
            dir.insert(name, make(sb, sb.next_ino(), uapi::S_IFDIR | 0o555, Box::new(FixedDir::default())));
        }
    })
}

/// Adds a file or directory with operations of its own.
///
/// # Errors
/// As [`register`].
pub fn register_inode(path: &str, mode: u32, ops: Box<dyn InodeOps>) -> Result {
    with_parent(path, |dir, name, sb| dir.insert(name, make(sb, sb.next_ino(), mode, ops)))
}

/// Takes an entry away.
///
/// # Errors
/// As [`register`].
pub fn unregister(path: &str) -> Result {
    with_parent(path, |dir, name, _| drop(dir.remove(name)))
}

/// Fills the tree.
///
/// # Errors
/// As [`register`].
pub fn init() -> Result {
    for name in PID_ONLY {
        let name = core::str::from_utf8(name).map_err(|_| Errno::EINVAL)?;
        with_parent(name, |dir, name, sb| dir.insert(name, self_link(sb, sb.next_ino(), name == "self")))?;
    }
    register_link("mounts", "self/mounts")?;
    register_link("net", "self/net")?;
    system::init()?;
    resources::init()?;
    sysctl::init()
}
