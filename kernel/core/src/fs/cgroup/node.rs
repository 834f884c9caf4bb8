//! Inodes and listings of the tree.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU32, Ordering};

use linux_uapi::raw::general as uapi;
use ursa_hal::sync::{Once, SpinLock};

use super::{
    control::{self, CONTROLS, OpenControl},
    notice::Notices,
    tree::{Cgroup, root},
};
use crate::{
    Errno, Result,
    fs::{
        file::{DirSink, File, FileOps},
        handle::HandleKind,
        inode::{
            Entry, FileKind, FileSystem, FsStat, Inode, InodeOps, NewInode, SbFlags, SetAttr, SuperBlock,
            SuperBlockParams, SuperOps, inode_of,
        },
        listing::Listing,
        notify, registry,
        tmpfs::xattr::Xattrs,
    },
    poll::PollEvents,
    process::{Credentials, current},
    wait::WaitQueue,
};

/// `CGROUP2_SUPER_MAGIC`
const MAGIC: u64 = 0x6367_7270;

/// Options of a mount that change nothing without controllers and namespaces, but that service managers pass.
const OPTIONS: &[&[u8]] = &[b"nsdelegate", b"favordynmods", b"memory_localevents", b"memory_recursiveprot"];

struct CgroupSuper;

impl SuperOps for CgroupSuper {
    fn handle_kind(&self) -> Option<HandleKind> {
        Some(HandleKind::Kernfs)
    }

    fn statfs(&self, _sb: &SuperBlock) -> Result<FsStat> {
        Ok(FsStat { magic: MAGIC, block_size: 4096, name_max: 255, ..FsStat::default() })
    }
}

fn instance() -> &'static Arc<SuperBlock> {
    static INSTANCE: Once<Arc<SuperBlock>> = Once::new();
    INSTANCE.call_once(|| {
        let params = SuperBlockParams {
            fs_name: "cgroup2",
            magic: MAGIC,
            attributes_expire: false,
            cache_negative: false,
            flags: SbFlags::empty(),
        };
        let sb = SuperBlock::new(params, Box::new(CgroupSuper));
        // Never ends, whether or not it is mounted.
        sb.mounts.fetch_add(1, Ordering::Relaxed);
        let new = NewInode { mode: uapi::S_IFDIR | 0o755, uid: 0, gid: 0, rdev: 0 };
        sb.set_root(build_directory(&sb, root(), &new));
        sb
    })
}

/// The type `cgroup2`.
struct Cgroup2;

impl FileSystem for Cgroup2 {
    fn name(&self) -> &'static str {
        "cgroup2"
    }

    fn mount(&self, _source: &[u8], _flags: SbFlags, data: &[u8]) -> Result<Arc<SuperBlock>> {
        let mut options = data.split(|b| *b == b',').filter(|option| !option.is_empty());
        if !options.all(|option| OPTIONS.contains(&option)) {
            return Err(Errno::EINVAL);
        }
        Ok(instance().clone())
    }
}

/// Registers the type.
pub fn init() {
    registry::register(Arc::new(Cgroup2));
}

/// What a group has in the file system.
#[derive(Default)]
pub(super) struct Nodes {
    directory: Once<alloc::sync::Weak<Inode>>,
    /// Who made it: the files are that user's and group's until somebody says otherwise.
    owner: Once<(u32, u32)>,
    /// Files that somebody has looked for. They are kept, since their owner and mode can be changed.
    files: SpinLock<[Option<Arc<Inode>>; CONTROLS.len()]>,
    /// Counts the changes of each.
    changes: [AtomicU32; CONTROLS.len()],
    queue: Once<Arc<WaitQueue>>,
    /// What listeners have heard of them.
    pub notices: Notices,
}

impl Nodes {
    /// The number of changes of a file so far.
    pub fn changes(&self, at: usize) -> u32 {
        self.changes[at].load(Ordering::SeqCst)
    }

    /// Who waits for such a change.
    pub fn queue(&self) -> &Arc<WaitQueue> {
        self.queue.call_once(|| Arc::new(WaitQueue::new()))
    }

    fn wake(&self) {
        if let Some(queue) = self.queue.get() {
            queue.wake_events(PollEvents::POLLPRI | PollEvents::POLLERR);
        }
    }

    /// Tells that a file says something else: pollers see `POLLPRI`, inotify's listeners a change of the file.
    pub fn tell(&self, group: &Cgroup, at: usize) {
        let control = &CONTROLS[at];
        if !control.is_in(group) {
            return;
        }
        self.changes[at].fetch_add(1, Ordering::SeqCst);
        self.wake();
        let file = self.files.lock()[at].clone();
        if let Some(file) = file {
            notify::inode_event(&file, notify::mask::MODIFY);
        }
        if let Some(directory) = self.directory.get().and_then(alloc::sync::Weak::upgrade) {
            notify::dir_event(&directory, notify::mask::MODIFY, control.name.as_bytes(), false, 0);
        }
    }

    /// The group was removed.
    pub fn end(&self) {
        let files = core::mem::take(&mut *self.files.lock());
        self.wake();
        for file in files.iter().flatten() {
            notify::inode_event(file, notify::mask::DELETE_SELF);
        }
    }
}

struct Directory {
    group: Arc<Cgroup>,
    xattrs: Xattrs,
}

struct ControlFile {
    group: Arc<Cgroup>,
    /// Its place in [`CONTROLS`].
    at: usize,
    xattrs: Xattrs,
}

fn build_directory(sb: &Arc<SuperBlock>, group: &Arc<Cgroup>, new: &NewInode) -> Arc<Inode> {
    let ops = Directory { group: group.clone(), xattrs: Xattrs::new() };
    let inode = Inode::new(sb, group.id(), new, Box::new(ops));
    group.nodes.directory.call_once(|| Arc::downgrade(&inode));
    group.nodes.owner.call_once(|| (new.uid, new.gid));
    inode
}

/// Makes a new group's directory.
pub(super) fn make_directory(group: &Arc<Cgroup>, new: &NewInode) -> Arc<Inode> {
    build_directory(instance(), group, new)
}

/// The inode of a group's file.
fn file(group: &Arc<Cgroup>, at: usize) -> Result<Arc<Inode>> {
    let control = &CONTROLS[at];
    if let Some(inode) = &group.nodes.files.lock()[at] {
        return Ok(inode.clone());
    }
    let &(uid, gid) = group.nodes.owner.get().ok_or(Errno::ENODEV)?;
    let new = NewInode { mode: uapi::S_IFREG | control.mode, uid, gid, rdev: 0 };
    let ops = ControlFile { group: group.clone(), at, xattrs: Xattrs::new() };
    let inode = Inode::new(instance(), group.id() + 1 + at as u64, &new, Box::new(ops));
    let mut files = group.nodes.files.lock();
    if group.is_dead() {
        // It would keep the group, which would keep it.
        return Err(Errno::ENODEV);
    }
    Ok(files[at].get_or_insert(inode).clone())
}

/// The inode of a group's `cgroup.procs`.
pub(super) fn procs_inode(group: &Arc<Cgroup>) -> Result<Arc<Inode>> {
    file(group, control::PROCS)
}

/// The group that an open directory of the tree stands for, for `CLONE_INTO_CGROUP`.
///
/// # Errors
/// `EBADF` when it is none.
pub fn of_file(file: &File) -> Result<Arc<Cgroup>> {
    let inode = file.inode().ok_or(Errno::EBADF)?;
    Ok(inode.ops_as::<Directory>().ok_or(Errno::EBADF)?.group.clone())
}

impl InodeOps for Directory {
    fn lookup(&self, _dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        if self.group.is_dead() {
            return Err(Errno::ENOENT);
        }
        if let Some(at) = control::find(&self.group, name) {
            // One of a controller goes when that is switched off.
            let entry = if CONTROLS[at].is_lasting() { Entry::stable } else { Entry::volatile };
            return file(&self.group, at).map(entry);
        }
        self.group.child(name).map(|child| Entry::stable(child.inode)).ok_or(Errno::ENOENT)
    }

    fn create(&self, dir: &Arc<Inode>, name: &[u8], new: &NewInode) -> Result<Entry> {
        match FileKind::from_mode(new.mode) {
            Some(FileKind::Directory) => {}
            Some(FileKind::Regular) => return Err(Errno::EACCES),
            _ => return Err(Errno::EPERM),
        }
        if name.contains(&b'\n') {
            // `/proc/PID/cgroup` has a line for a path.
            return Err(Errno::EINVAL);
        }
        let inode = self.group.create_child(name, new)?;
        dir.add_nlink(1);
        dir.touch_modified();
        Ok(Entry::stable(inode))
    }

    fn rmdir(&self, dir: &Arc<Inode>, name: &[u8], inode: &Arc<Inode>) -> Result {
        let child = inode.ops_as::<Directory>().ok_or(Errno::ENOTDIR)?;
        self.group.remove_child(name, &child.group)?;
        dir.add_nlink(-1);
        dir.touch_modified();
        inode.set_nlink(0);
        Ok(())
    }

    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Listing::new(|f: &File, pos: &mut u64, sink: &mut dyn DirSink| {
            let directory = inode_of(f)?.ops_as::<Directory>().ok_or(Errno::EIO)?;
            directory.list(pos, sink);
            Ok(())
        })))
    }

    fn getxattr(&self, _inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
        self.xattrs.get(name)
    }

    fn setxattr(&self, _inode: &Inode, name: &[u8], value: &[u8], flags: u32) -> Result {
        self.xattrs.set(name, value, flags)
    }

    fn listxattr(&self, _inode: &Inode) -> Result<Vec<u8>> {
        Ok(self.xattrs.list())
    }

    fn removexattr(&self, _inode: &Inode, name: &[u8]) -> Result {
        self.xattrs.remove(name)
    }
}

impl Directory {
    /// Lists from `pos` on: files at 2 and following, groups at their ids, which are larger.
    fn list(&self, pos: &mut u64, sink: &mut dyn DirSink) {
        const FILES_AT: u64 = 2;
        for (at, control) in CONTROLS.iter().enumerate() {
            let here = FILES_AT + at as u64;
            if here < *pos || !control.is_in(&self.group) {
                continue;
            }
            let ino = self.group.id() + 1 + at as u64;
            if !sink.emit(control.name.as_bytes(), ino, FileKind::Regular.dirent_type(), here + 1) {
                return;
            }
            *pos = here + 1;
        }
        let state = self.group.state.lock();
        for (id, child) in state.children.range(*pos..) {
            if !sink.emit(child.group.name(), *id, FileKind::Directory.dirent_type(), id + 1) {
                return;
            }
            *pos = id + 1;
        }
    }
}

impl InodeOps for ControlFile {
    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        if self.group.is_dead() || !CONTROLS[self.at].is_in(&self.group) {
            return Err(Errno::ENODEV);
        }
        let opener: Arc<Credentials> = current().cred();
        Ok(Arc::new(OpenControl::new(self.group.clone(), self.at, opener)))
    }

    fn setattr(&self, inode: &Arc<Inode>, change: &SetAttr) -> Result {
        // A size is accepted and means nothing: shells truncate before they write.
        inode.apply(change);
        Ok(())
    }

    fn getxattr(&self, _inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
        self.xattrs.get(name)
    }

    fn setxattr(&self, _inode: &Inode, name: &[u8], value: &[u8], flags: u32) -> Result {
        self.xattrs.set(name, value, flags)
    }

    fn listxattr(&self, _inode: &Inode) -> Result<Vec<u8>> {
        Ok(self.xattrs.list())
    }

    fn removexattr(&self, _inode: &Inode, name: &[u8]) -> Result {
        self.xattrs.remove(name)
    }
}
