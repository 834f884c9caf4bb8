//! `/proc/PID` and `/proc/PID/task/TID`.
//!
//! The directory and its files name their thread weakly and are made at each look-up, never cached: a number that is used
//! again leads to the new process, a file that was open before says `ESRCH`. What others may not see (memory, environment,
//! descriptors) follows the rules of ptrace(2)'s "read" access.

use alloc::{
    boxed::Box,
    format,
    sync::{Arc, Weak},
};

use linux_uapi::raw::general as uapi;

use super::{
    fds, inside, map_files, map_query, maps, mounts,
    node::{GeneratedFile, Generator, Text, make},
    status,
};
use crate::fs::Listing;
use crate::{
    Errno, Result,
    fs::{
        file::{DirSink, File, FileOps},
        inode::{Entry, FileKind, Inode, InodeOps, LinkTarget, NewInode, SuperBlock, inode_of},
        path::Path,
    },
    process::{Cap, Pid, PidNamespace, Process, Thread, current, lookup_tid, pid::Identity},
};

/// The thread that a directory is about; for `/proc/PID`, the process through its leader.
#[derive(Clone)]
pub struct Target {
    thread: Weak<Thread>,
    process: Weak<Process>,
    identity: Arc<Identity>,
    /// Of the instance: its numbers are shown.
    namespace: Arc<PidNamespace>,
    /// `/proc/PID/task/TID`: one thread's own figures.
    pub is_task: bool,
}

impl Target {
    /// About a thread, or the process that it leads, in an instance that shows `namespace`.
    pub fn new(thread: &Arc<Thread>, namespace: &Arc<PidNamespace>, is_task: bool) -> Target {
        Target {
            thread: Arc::downgrade(thread),
            process: Arc::downgrade(thread.process()),
            identity: thread.identity(),
            namespace: namespace.clone(),
            is_task,
        }
    }

    /// The process.
    ///
    /// # Errors
    /// `ESRCH` when it was reaped.
    pub fn process(&self) -> Result<Arc<Process>> {
        self.process.upgrade().filter(|p| !p.is_reaped()).ok_or(Errno::ESRCH)
    }

    /// The thread; for a process any that is alive when the leader has ended.
    ///
    /// # Errors
    /// `ESRCH` when it is gone.
    pub fn thread(&self) -> Result<Arc<Thread>> {
        let process = self.process()?;
        match self.thread.upgrade() {
            Some(thread) => Ok(thread),
            None if !self.is_task => process.representative().ok_or(Errno::ESRCH),
            None => Err(Errno::ESRCH),
        }
    }

    /// What inode numbers are made of.
    pub fn id(&self) -> Pid {
        self.identity.global()
    }

    /// The number in the directory's name.
    pub fn shown_id(&self) -> Pid {
        self.identity.seen_from(&self.namespace)
    }

    /// The PID namespace whose numbers are shown.
    pub fn namespace(&self) -> &Arc<PidNamespace> {
        &self.namespace
    }

    /// Checks that the caller may look into the process (`PTRACE_MODE_READ_FSCREDS`).
    ///
    /// # Errors
    /// `EACCES`, `ESRCH`.
    pub fn may_inspect(&self) -> Result {
        let process = self.process()?;
        let me = current();
        if Arc::ptr_eq(me.process(), &process) {
            return Ok(());
        }
        let cred = me.cred();
        if cred.has_cap(Cap::SysPtrace) {
            return Ok(());
        }
        let theirs = self.thread()?.cred();
        let same = [theirs.uid, theirs.euid, theirs.suid].iter().all(|id| *id == cred.fsuid)
            && [theirs.gid, theirs.egid, theirs.sgid].iter().all(|id| *id == cred.fsgid);
        if same && process.dumpable() == 1 && theirs.permitted.is_subset(cred.permitted) {
            return Ok(());
        }
        Err(Errno::EACCES)
    }
}

/// A number for file `index` of process `pid`.
pub fn ino(pid: Pid, index: u64) -> u64 {
    1 << 48 | (pid as u64) << 24 | index
}

/// A number for descriptor `fd` in directory `kind`.
pub fn fd_ino(pid: Pid, fd: usize, info: bool) -> u64 {
    (2 + u64::from(info)) << 48 | (pid as u64) << 24 | fd as u64 & 0xff_ffff
}

/// Who owns the files of a process: its effective ids, root when it is not dumpable.
fn owner(thread: &Thread, always: bool) -> (u32, u32) {
    if thread.process().dumpable() == 1 || always { thread.with_cred(|c| (c.euid, c.egid)) } else { (0, 0) }
}

/// Makes an inode that belongs to the process.
pub fn make_owned(sb: &Arc<SuperBlock>, target: &Target, ino: u64, mode: u32, ops: Box<dyn InodeOps>) -> Arc<Inode> {
    // The directories themselves belong to the process even when it may not be dumped.
    let always = mode == uapi::S_IFDIR | 0o555;
    let (uid, gid) = target.thread().map_or((0, 0), |t| owner(&t, always));
    Inode::new(sb, ino, &NewInode { mode, uid, gid, rdev: 0 }, ops)
}

/// The directory of a thread, or of the process that it leads.
pub fn directory(sb: &Arc<SuperBlock>, thread: &Arc<Thread>, is_task: bool) -> Arc<Inode> {
    let target = Target::new(thread, super::instance::namespace(sb), is_task);
    let number = ino(target.id(), u64::from(is_task));
    make_owned(sb, &target, number, uapi::S_IFDIR | 0o555, Box::new(PidDir { target: target.clone() }))
}

type Show = fn(&Target, &mut Text) -> Result;
type Store = fn(&Target, &str) -> Result;
type Follow = fn(&Target) -> Result<LinkTarget>;

/// What stands behind a name.
enum What {
    /// Text.
    Text(Show),
    /// Text that only those may read who may trace the process.
    Private(Show),
    /// Text that can be written.
    Writable(Show, Store),
    /// A link.
    Link(Follow),
    /// A directory.
    Dir(fn(Target) -> Box<dyn InodeOps>),
    /// A file with operations of its own.
    Special(fn(Target) -> Box<dyn InodeOps>),
}

struct Item {
    name: &'static str,
    mode: u32,
    what: What,
    /// Not in `task/TID`.
    process_only: bool,
}

const fn item(name: &'static str, mode: u32, what: What) -> Item {
    Item { name, mode, what, process_only: false }
}

const fn process_item(name: &'static str, mode: u32, what: What) -> Item {
    Item { name, mode, what, process_only: true }
}

static ITEMS: &[Item] = &[
    process_item("task", 0o555, What::Dir(|t| Box::new(TaskDir { target: t }))),
    item("fd", 0o500, What::Dir(|t| Box::new(fds::FdDir { target: t, info: false }))),
    process_item("map_files", 0o500, What::Dir(|t| Box::new(map_files::MapFilesDir { target: t }))),
    item("fdinfo", 0o555, What::Dir(|t| Box::new(fds::FdDir { target: t, info: true }))),
    item("ns", 0o511, What::Dir(|t| Box::new(fds::NsDir { target: t }))),
    item("net", 0o555, What::Dir(|_| Box::new(NetDir))),
    item("environ", 0o400, What::Private(status::environ)),
    item("auxv", 0o400, What::Special(|t| Box::new(status::Auxv { target: t }))),
    item("status", 0o444, What::Text(status::status)),
    item("personality", 0o400, What::Private(status::personality)),
    item("limits", 0o444, What::Text(status::limits)),
    item("sched", 0o644, What::Text(status::sched)),
    item("comm", 0o644, What::Writable(status::comm, status::set_comm)),
    item("syscall", 0o400, What::Private(inside::syscall)),
    item("cmdline", 0o444, What::Text(status::cmdline)),
    item("stat", 0o444, What::Text(status::stat)),
    item("statm", 0o444, What::Text(status::statm)),
    item("maps", 0o444, What::Special(map_query::MapsFile::inode_ops)),
    item("mem", 0o600, What::Special(|t| Box::new(maps::MemFile { target: t }))),
    item("cwd", 0o777, What::Link(status::cwd)),
    item("root", 0o777, What::Link(status::root)),
    item("exe", 0o777, What::Link(status::exe)),
    item("mounts", 0o444, What::Special(|t| Box::new(mounts::TableFile { target: t, format: mounts::Format::Mounts }))),
    item(
        "mountinfo",
        0o444,
        What::Special(|t| Box::new(mounts::TableFile { target: t, format: mounts::Format::MountInfo })),
    ),
    process_item(
        "mountstats",
        0o400,
        What::Special(|t| Box::new(mounts::TableFile { target: t, format: mounts::Format::MountStats })),
    ),
    item("smaps", 0o444, What::Private(maps::smaps)),
    item("smaps_rollup", 0o444, What::Private(maps::smaps_rollup)),
    item("wchan", 0o444, What::Text(inside::wchan)),
    item("stack", 0o400, What::Private(inside::stack)),
    item("schedstat", 0o444, What::Text(status::schedstat)),
    item(
        "cpuset",
        0o444,
        What::Text(|_, out| {
            out.push_str("/\n");
            Ok(())
        }),
    ),
    item("cgroup", 0o444, What::Text(status::cgroup)),
    item("oom_score", 0o444, What::Text(status::oom_score)),
    item("oom_adj", 0o644, What::Writable(status::oom_adj, status::set_oom_adj)),
    item("oom_score_adj", 0o644, What::Writable(status::oom_score_adj, status::set_oom_score_adj)),
    item("loginuid", 0o644, What::Writable(status::loginuid, status::set_loginuid)),
    item("sessionid", 0o444, What::Text(status::sessionid)),
    process_item("coredump_filter", 0o644, What::Writable(status::coredump_filter, status::set_coredump_filter)),
    item("io", 0o400, What::Private(status::io)),
    item("uid_map", 0o644, What::Text(status::id_map)),
    item("gid_map", 0o644, What::Text(status::id_map)),
    item(
        "setgroups",
        0o644,
        What::Text(|_, out| {
            out.push_str("allow\n");
            Ok(())
        }),
    ),
    process_item("timers", 0o444, What::Text(status::timers)),
    process_item("timerslack_ns", 0o666, What::Private(status::timerslack)),
    item("clear_refs", 0o200, What::Writable(|_, _| Err(Errno::EINVAL), maps::clear_refs)),
    item("children", 0o444, What::Text(status::children)),
];

/// Text about a process.
struct PidText {
    target: Target,
    show: Show,
    store: Option<Store>,
    private: bool,
}

impl Generator for PidText {
    fn show(&self, out: &mut Text) -> Result {
        if self.private {
            self.target.may_inspect()?;
        }
        (self.show)(&self.target, out)
    }

    fn store(&self, text: &str) -> Result {
        (self.store.ok_or(Errno::EIO)?)(&self.target, text)
    }

    fn may_open(&self, _write: bool) -> Result {
        self.target.process()?;
        if self.private { self.target.may_inspect() } else { Ok(()) }
    }
}

/// A link out of a process's directory.
struct PidLink {
    target: Target,
    follow: Follow,
}

impl InodeOps for PidLink {
    fn readlink(&self, _inode: &Arc<Inode>) -> Result<LinkTarget> {
        self.target.may_inspect()?;
        (self.follow)(&self.target)
    }
}

/// Makes a link target of a path.
pub fn jump(path: Path) -> Result<LinkTarget> {
    Ok(LinkTarget::Jump(path))
}

struct PidDir {
    target: Target,
}

impl PidDir {
    fn make(&self, sb: &Arc<SuperBlock>, index: usize, item: &Item) -> Arc<Inode> {
        let text = |show: Show, store: Option<Store>, private: bool| -> Box<dyn InodeOps> {
            Box::new(GeneratedFile(Arc::new(PidText { target: self.target.clone(), show, store, private })))
        };
        let (kind, ops): (u32, Box<dyn InodeOps>) = match &item.what {
            What::Text(show) => (uapi::S_IFREG, text(*show, None, false)),
            What::Private(show) => (uapi::S_IFREG, text(*show, None, true)),
            What::Writable(show, store) => (uapi::S_IFREG, text(*show, Some(*store), false)),
            What::Link(follow) => (uapi::S_IFLNK, Box::new(PidLink { target: self.target.clone(), follow: *follow })),
            What::Dir(new) => (uapi::S_IFDIR, new(self.target.clone())),
            What::Special(new) => (uapi::S_IFREG, new(self.target.clone())),
        };
        let number = ino(self.target.id(), 2 + 2 * index as u64 + u64::from(self.target.is_task));
        make_owned(sb, &self.target, number, kind | item.mode, ops)
    }
}

impl InodeOps for PidDir {
    fn permission(&self, inode: &Inode, _mask: u32) -> Result {
        super::instance::options(inode).may_enter(&self.target)
    }

    fn lookup(&self, dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        self.target.process().map_err(|_| Errno::ENOENT)?;
        let found = ITEMS.iter().enumerate().find(|(_, i)| i.name.as_bytes() == name);
        let (index, item) = found.ok_or(Errno::ENOENT)?;
        if item.process_only && self.target.is_task || item.name == "children" && !self.target.is_task {
            return Err(Errno::ENOENT);
        }
        Ok(Entry::volatile(self.make(&dir.sb, index, item)))
    }

    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Listing::new(|f: &File, pos: &mut u64, sink: &mut dyn DirSink| {
            let dir = inode_of(f)?.ops_as::<PidDir>().ok_or(Errno::EIO)?;
            dir.target.process().map_err(|_| Errno::ENOENT)?;
            for (index, item) in ITEMS.iter().enumerate() {
                let at = index as u64 + 2;
                if at < *pos {
                    continue;
                }
                let hidden = item.process_only && dir.target.is_task || item.name == "children" && !dir.target.is_task;
                if !hidden {
                    let kind = match item.what {
                        What::Link(_) => FileKind::Symlink,
                        What::Dir(_) => FileKind::Directory,
                        _ => FileKind::Regular,
                    };
                    let number = ino(dir.target.id(), 2 + 2 * index as u64 + u64::from(dir.target.is_task));
                    if !sink.emit(item.name.as_bytes(), number, kind.dirent_type(), at + 1) {
                        return Ok(());
                    }
                }
                *pos = at + 1;
            }
            Ok(())
        })))
    }
}

/// The process that an open directory `/proc/PID` is about; `None` for any other file.
pub fn process_of(file: &File) -> Option<Result<Arc<Process>>> {
    let target = &file.inode()?.ops_as::<PidDir>()?.target;
    (!target.is_task).then(|| target.process())
}

/// `/proc/PID/task`.
struct TaskDir {
    target: Target,
}

impl InodeOps for TaskDir {
    fn lookup(&self, dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        let process = self.target.process().map_err(|_| Errno::ENOENT)?;
        let tid = super::parse_pid(name).ok_or(Errno::ENOENT)?;
        let found = self.target.namespace.look(tid, lookup_tid);
        let thread = found.filter(|thread| Arc::ptr_eq(thread.process(), &process)).ok_or(Errno::ENOENT)?;
        Ok(Entry::volatile(directory(&dir.sb, &thread, true)))
    }

    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Listing::new(|f: &File, pos: &mut u64, sink: &mut dyn DirSink| {
            let dir = inode_of(f)?.ops_as::<TaskDir>().ok_or(Errno::EIO)?;
            let process = dir.target.process().map_err(|_| Errno::ENOENT)?;
            let mut tids: alloc::vec::Vec<Pid> =
                process.threads().iter().map(|t| t.identity().seen_from(&dir.target.namespace)).collect();
            tids.sort_unstable();
            for tid in tids {
                // Positions are thread ids, so that ends and births between two reads do not repeat or skip others.
                let at = tid as u64 + 2;
                if at < *pos {
                    continue;
                }
                let kind = FileKind::Directory.dirent_type();
                if !sink.emit(format!("{tid}").as_bytes(), ino(tid, 1), kind, at + 1) {
                    return Ok(());
                }
                *pos = at + 1;
            }
            Ok(())
        })))
    }

    fn fill_attr(&self, _inode: &Inode, attr: &mut crate::fs::inode::Attr) {
        if let Ok(process) = self.target.process() {
            attr.nlink = process.live_threads() + 2;
        }
    }
}

/// `/proc/PID/net`: the one network's files, kept in a fixed directory.
struct NetDir;

impl InodeOps for NetDir {
    fn lookup(&self, _dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        net()?.ops_as::<super::FixedDir>().and_then(|d| d.get(name)).map(Entry::stable).ok_or(Errno::ENOENT)
    }

    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Listing::new(|_: &File, pos: &mut u64, sink: &mut dyn DirSink| {
            let net = net()?;
            net.ops_as::<super::FixedDir>().ok_or(Errno::EIO)?.list(2, pos, sink);
            Ok(())
        })))
    }
}

/// The directory whose entries every process's `net` shows.
pub fn net() -> Result<Arc<Inode>> {
    static NET: ursa_hal::sync::Once<Arc<Inode>> = ursa_hal::sync::Once::new();
    let sb = super::instance();
    Ok(NET.call_once(|| make(sb, sb.next_ino(), uapi::S_IFDIR | 0o555, Box::new(super::FixedDir::default()))).clone())
}
