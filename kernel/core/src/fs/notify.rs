//! Where file changes are announced: the hooks that inotify listens on.
//!
//! Each inode has [`Marks`]; an inotify watch adds itself as a [`NotifyMark`]. With no watch anywhere an event costs one
//! load. The VFS calls [`event`] for a file with its path (the parent hears it with the name) and [`dir_event`] for a
//! change of a directory.
//!
//! References: inotify(7), `fs/notify/fsnotify.c`.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use ursa_hal::sync::SpinLock;

use super::{dentry::Dentry, inode::Inode};

/// `IN_ACCESS` …: the bits of `<linux/inotify.h>`.
pub mod mask {
    /// File was read.
    pub const ACCESS: u32 = 0x1;
    /// File was written.
    pub const MODIFY: u32 = 0x2;
    /// Attributes changed.
    pub const ATTRIB: u32 = 0x4;
    /// A file open for writing was closed.
    pub const CLOSE_WRITE: u32 = 0x8;
    /// A file not open for writing was closed.
    pub const CLOSE_NOWRITE: u32 = 0x10;
    /// File was opened.
    pub const OPEN: u32 = 0x20;
    /// Renamed away from the directory.
    pub const MOVED_FROM: u32 = 0x40;
    /// Renamed into the directory.
    pub const MOVED_TO: u32 = 0x80;
    /// Created in the directory.
    pub const CREATE: u32 = 0x100;
    /// Removed from the directory.
    pub const DELETE: u32 = 0x200;
    /// The watched file itself was removed.
    pub const DELETE_SELF: u32 = 0x400;
    /// The watched file itself was renamed.
    pub const MOVE_SELF: u32 = 0x800;
    /// The file system was unmounted.
    pub const UNMOUNT: u32 = 0x2000;
    /// The subject is a directory.
    pub const ISDIR: u32 = 0x4000_0000;
}

/// A listener on one inode.
pub trait NotifyMark: Send + Sync {
    /// Something happened; `name` is set when it happened to an entry of the watched directory. `cookie` joins the two
    /// halves of a rename. Called without spin locks held; must not sleep for long.
    fn event(&self, mask: u32, cookie: u32, name: Option<&[u8]>);
}

/// The listeners of an inode.
pub struct Marks {
    /// Union of what the listeners want.
    mask: AtomicU32,
    list: SpinLock<Vec<(u32, Arc<dyn NotifyMark>)>>,
}

/// How many marks exist on all inodes.
static MARKS: AtomicUsize = AtomicUsize::new(0);
static COOKIE: AtomicU32 = AtomicU32::new(0);

impl Marks {
    /// No listeners.
    pub const fn new() -> Self {
        Self { mask: AtomicU32::new(0), list: SpinLock::new(Vec::new()) }
    }

    /// Adds a listener, or changes what it wants.
    pub fn set(&self, mark: &Arc<dyn NotifyMark>, wanted: u32) {
        let mut list = self.list.lock();
        match list.iter_mut().find(|(_, m)| Arc::ptr_eq(m, mark)) {
            Some(entry) => entry.0 = wanted,
            None => {
                list.push((wanted, mark.clone()));
                MARKS.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.mask.store(list.iter().fold(0, |acc, (m, _)| acc | m), Ordering::Relaxed);
    }

    /// Removes a listener.
    pub fn remove(&self, mark: &Arc<dyn NotifyMark>) {
        let mut list = self.list.lock();
        let before = list.len();
        let mut gone = Vec::new();
        let mut i = 0;
        while i < list.len() {
            if Arc::ptr_eq(&list[i].1, mark) {
                gone.push(list.swap_remove(i));
            } else {
                i += 1;
            }
        }
        MARKS.fetch_sub(before - list.len(), Ordering::Relaxed);
        self.mask.store(list.iter().fold(0, |acc, (m, _)| acc | m), Ordering::Relaxed);
        drop(list);
        drop(gone);
    }

    fn send(&self, mask: u32, cookie: u32, name: Option<&[u8]>) {
        if self.mask.load(Ordering::Relaxed) & mask == 0 {
            return;
        }
        let listeners: Vec<_> = {
            let list = self.list.lock();
            list.iter().filter(|(wanted, _)| wanted & mask & !mask::ISDIR != 0).map(|(_, m)| m.clone()).collect()
        };
        for mark in listeners {
            mark.event(mask, cookie, name);
        }
    }
}

impl Default for Marks {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        MARKS.fetch_sub(self.list.get_mut().len(), Ordering::Relaxed);
    }
}

#[inline]
fn idle() -> bool {
    MARKS.load(Ordering::Relaxed) == 0
}

/// Something happened to the file behind `dentry`: it and its directory hear of it.
#[inline]
pub fn event(dentry: &Arc<Dentry>, what: u32) {
    if !idle() {
        event_slow(dentry, what);
    }
}

#[cold]
fn event_slow(dentry: &Arc<Dentry>, what: u32) {
    let Some(inode) = dentry.inode() else { return };
    let what = if inode.is_dir() { what | mask::ISDIR } else { what };
    let (parent, name) = dentry.place();
    if let Some(dir) = parent.as_ref().and_then(|p| p.inode()) {
        dir.marks.send(what, 0, Some(&name));
    }
    inode.marks.send(what, 0, None);
}

/// Something happened to an inode whose name does not matter.
#[inline]
pub fn inode_event(inode: &Inode, what: u32) {
    if !idle() {
        inode.marks.send(if inode.is_dir() { what | mask::ISDIR } else { what }, 0, None);
    }
}

/// The entry `name` of `dir` was created, removed or moved.
#[inline]
pub fn dir_event(dir: &Inode, what: u32, name: &[u8], is_dir: bool, cookie: u32) {
    if !idle() {
        dir.marks.send(if is_dir { what | mask::ISDIR } else { what }, cookie, Some(name));
    }
}

/// A number that joins the halves of a rename.
pub fn cookie() -> u32 {
    if idle() { 0 } else { COOKIE.fetch_add(1, Ordering::Relaxed).wrapping_add(1) }
}
