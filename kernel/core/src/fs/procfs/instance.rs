//! Instances of procfs: each mount has options of its own, and inodes of its own.
//!
//! The files that do not belong to a process are registered once, in the first instance, which the first mount shows. Others show
//! them by a [`Proxy`] with the instance's own inode. References: `Documentation/filesystems/proc.rst` ("Configuring procfs"),
//! Linux `fs/proc/root.c`, `fs/proc/base.c` (`has_pid_permissions`).

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};

use super::node::{FixedDir, make};
use super::pid::Target;
use super::{MAGIC, Root};
use crate::fs::inode::{
    Attr, Entry, FsStat, Inode, InodeOps, LinkTarget, NewInode, SbFlags, SetAttr, SuperBlock, SuperBlockParams,
    SuperOps, inode_of,
};
use crate::fs::{DirSink, File, FileOps, Listing};
use crate::process::{PidNamespace, current, pid_namespace, try_current};
use crate::{Errno, Result};

/// Directories of other users' processes cannot be entered.
const NO_ACCESS: u8 = 1;
/// They are not shown either.
const INVISIBLE: u8 = 2;
/// Only what may be traced is shown, whatever the group.
const PTRACEABLE: u8 = 4;

/// The options of an instance.
#[derive(Default)]
pub(super) struct ProcSuper {
    hide_pid: AtomicU8,
    /// Members see all.
    gid: AtomicU32,
    pid_only: AtomicBool,
    /// Whose processes it shows, and by which numbers; `None` is the first.
    namespace: Option<Arc<PidNamespace>>,
}

impl ProcSuper {
    /// Takes the options of a mount or remount; those that are not named stay.
    ///
    /// # Errors
    /// `EINVAL`.
    fn apply(&self, data: &[u8]) -> Result {
        for option in data.split(|b| *b == b',').filter(|o| !o.is_empty()) {
            let text = core::str::from_utf8(option).map_err(|_| Errno::EINVAL)?;
            let (key, value) = text.split_once('=').ok_or(Errno::EINVAL)?;
            match (key, value) {
                ("hidepid", "0" | "off") => self.hide_pid.store(0, Relaxed),
                ("hidepid", "1" | "noaccess") => self.hide_pid.store(NO_ACCESS, Relaxed),
                ("hidepid", "2" | "invisible") => self.hide_pid.store(INVISIBLE, Relaxed),
                ("hidepid", "4" | "ptraceable") => self.hide_pid.store(PTRACEABLE, Relaxed),
                ("gid", gid) => self.gid.store(gid.parse().map_err(|_| Errno::EINVAL)?, Relaxed),
                ("subset", "pid") => self.pid_only.store(true, Relaxed),
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(())
    }

    /// The PID namespace that it shows.
    pub(super) fn namespace(&self) -> &Arc<PidNamespace> {
        self.namespace.as_ref().unwrap_or_else(|| pid_namespace::initial())
    }

    /// Whether only processes are shown (`subset=pid`).
    pub(super) fn is_pid_only(&self) -> bool {
        self.pid_only.load(Relaxed)
    }

    fn allows(&self, target: &Target, from: u8) -> bool {
        let hide = self.hide_pid.load(Relaxed);
        if hide < from {
            return true;
        }
        let gid = self.gid.load(Relaxed);
        let in_group = || current().with_cred(|cred| cred.fsgid == gid || cred.groups.binary_search(&gid).is_ok());
        hide != PTRACEABLE && in_group() || target.may_inspect().is_ok()
    }

    /// Whether the caller finds the process, in a listing or by its number. (Linux finds invisible ones by number, and then refuses
    /// all that can be done with them with the same error.)
    pub(super) fn shows(&self, target: &Target) -> bool {
        self.allows(target, INVISIBLE)
    }

    /// Whether the caller may enter the process's directory.
    ///
    /// # Errors
    /// `EPERM`; `ENOENT` where it is not even shown.
    pub(super) fn may_enter(&self, target: &Target) -> Result {
        match self.hide_pid.load(Relaxed) {
            _ if self.allows(target, NO_ACCESS) => Ok(()),
            INVISIBLE => Err(Errno::ENOENT),
            _ => Err(Errno::EPERM),
        }
    }
}

impl SuperOps for ProcSuper {
    fn statfs(&self, _sb: &SuperBlock) -> Result<FsStat> {
        Ok(FsStat { magic: MAGIC, block_size: 4096, name_max: 255, ..FsStat::default() })
    }

    fn show_options(&self, _sb: &SuperBlock, out: &mut dyn Write) -> fmt::Result {
        let gid = self.gid.load(Relaxed);
        if gid != 0 {
            write!(out, ",gid={gid}")?;
        }
        match self.hide_pid.load(Relaxed) {
            NO_ACCESS => out.write_str(",hidepid=noaccess")?,
            INVISIBLE => out.write_str(",hidepid=invisible")?,
            PTRACEABLE => out.write_str(",hidepid=ptraceable")?,
            _ => {}
        }
        if self.is_pid_only() { out.write_str(",subset=pid") } else { Ok(()) }
    }

    fn remount(&self, _sb: &SuperBlock, data: &[u8]) -> Result {
        self.apply(data)
    }
}

/// The options of the instance that `inode` is in.
pub(super) fn options(inode: &Inode) -> &ProcSuper {
    static NONE: ProcSuper = ProcSuper {
        hide_pid: AtomicU8::new(0),
        gid: AtomicU32::new(0),
        pid_only: AtomicBool::new(false),
        namespace: None,
    };
    inode.sb.ops_as::<ProcSuper>().unwrap_or(&NONE)
}

/// The PID namespace that an instance shows.
pub(super) fn namespace(sb: &SuperBlock) -> &Arc<PidNamespace> {
    sb.ops_as::<ProcSuper>().map_or_else(|| pid_namespace::initial(), ProcSuper::namespace)
}

/// A super block whose root has the entries of `fixed`.
pub(super) fn new_super(fixed: &Arc<FixedDir>, options: ProcSuper, flags: SbFlags) -> Arc<SuperBlock> {
    let params =
        SuperBlockParams { fs_name: "proc", magic: MAGIC, attributes_expire: false, cache_negative: false, flags };
    let sb = SuperBlock::new(params, Box::new(options));
    let ino = sb.next_ino();
    let mode = linux_uapi::raw::general::S_IFDIR | 0o555;
    sb.set_root(make(&sb, ino, mode, Box::new(Root { fixed: fixed.clone() })));
    sb
}

/// What a mount shows: the first instance for the first one, then a new one each.
///
/// # Errors
/// `EINVAL` for options that are not known.
pub(super) fn mount(flags: SbFlags, data: &[u8]) -> Result<Arc<SuperBlock>> {
    static FIRST_IS_SHOWN: AtomicBool = AtomicBool::new(false);
    let namespace = try_current().map(|thread| thread.process().pid_namespace().clone());
    let is_nested = namespace.as_ref().is_some_and(|namespace| namespace.level() > 0);
    let options = ProcSuper { namespace, ..ProcSuper::default() };
    options.apply(data)?;
    let first = super::instance();
    if !is_nested && !FIRST_IS_SHOWN.swap(true, Relaxed) {
        first.ops().remount(first, data)?;
        return Ok(first.clone());
    }
    let root = first.root()?;
    let fixed = root.inode().and_then(|inode| inode.ops_as::<Root>()).ok_or(Errno::EIO)?;
    Ok(new_super(&fixed.fixed, options, flags))
}

/// An inode of the first instance, shown in another.
struct Proxy(Arc<Inode>);

/// `inode` of the first instance as an inode of `sb`.
pub(super) fn proxy(sb: &Arc<SuperBlock>, inode: Arc<Inode>) -> Arc<Inode> {
    if Arc::ptr_eq(&inode.sb, sb) {
        return inode;
    }
    let new = NewInode { mode: inode.mode(), uid: 0, gid: 0, rdev: 0 };
    Inode::new(sb, inode.ino, &new, Box::new(Proxy(inode)))
}

impl InodeOps for Proxy {
    fn lookup(&self, dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        let mut entry = self.0.ops().lookup(&self.0, name)?;
        entry.inode = entry.inode.map(|inode| proxy(&dir.sb, inode));
        Ok(entry)
    }

    fn readlink(&self, _inode: &Arc<Inode>) -> Result<LinkTarget> {
        self.0.ops().readlink(&self.0)
    }

    fn fill_attr(&self, _inode: &Inode, attr: &mut Attr) {
        self.0.ops().fill_attr(&self.0, attr);
    }

    fn setattr(&self, inode: &Arc<Inode>, change: &SetAttr) -> Result {
        self.0.ops().setattr(inode, change)
    }

    fn permission(&self, _inode: &Inode, mask: u32) -> Result {
        self.0.ops().permission(&self.0, mask)
    }

    fn open(&self, _inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>> {
        if self.0.ops_as::<FixedDir>().is_none() {
            return self.0.ops().open(&self.0, flags);
        }
        Ok(Arc::new(Listing::new(|f: &File, pos: &mut u64, sink: &mut dyn DirSink| {
            let proxy = inode_of(f)?.ops_as::<Proxy>().ok_or(Errno::EIO)?;
            proxy.0.ops_as::<FixedDir>().ok_or(Errno::EIO)?.list(2, pos, sink);
            Ok(())
        })))
    }
}
