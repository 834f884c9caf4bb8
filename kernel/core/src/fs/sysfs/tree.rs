//! Directories of sysfs and the links between them: [`Directory`].

use alloc::{
    boxed::Box,
    collections::BTreeMap,
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::Ordering;

use linux_uapi::raw::general as uapi;
use ursa_hal::sync::{Once, SpinLock};

use super::{File, Value, file::FileInode};
use crate::{
    Errno, Result,
    fs::{
        dentry::{Dentry, hash_name},
        file::{DirSink, File as OpenFile, FileOps},
        inode::{Entry, Inode, InodeOps, LinkTarget, NewInode, SuperBlock, inode_of},
        listing::Listing,
        procfs::node::make,
    },
};

/// What a name means. A directory and a file belong to their entry; their owners keep references for themselves.
#[derive(Clone)]
enum Kind {
    Directory(Arc<Directory>),
    File(Arc<File>),
    Link,
}

struct Named {
    /// Its place in listings, also the inode number: a listing neither repeats nor skips what stays.
    number: u64,
    kind: Kind,
    inode: Arc<Inode>,
}

#[derive(Default)]
struct Entries {
    names: BTreeMap<Box<str>, Named>,
    order: BTreeMap<u64, Box<str>>,
    /// The directory was removed: nothing is added any more.
    removed: bool,
}

/// A directory. Its owner adds and removes entries; programs only look.
pub struct Directory {
    me: Weak<Directory>,
    name: Box<str>,
    parent: Weak<Directory>,
    sb: Weak<SuperBlock>,
    inode: Once<Weak<Inode>>,
    entries: SpinLock<Entries>,
}

impl Directory {
    /// Makes the root of a file system.
    pub(super) fn new_root(sb: &Arc<SuperBlock>) -> (Arc<Directory>, Arc<Inode>) {
        Self::build(sb, "", Weak::new())
    }

    fn build(sb: &Arc<SuperBlock>, name: &str, parent: Weak<Directory>) -> (Arc<Directory>, Arc<Inode>) {
        let directory = Arc::new_cyclic(|me| Directory {
            me: me.clone(),
            name: Box::from(name),
            parent,
            sb: Arc::downgrade(sb),
            inode: Once::new(),
            entries: SpinLock::new(Entries::default()),
        });
        let inode = make(sb, sb.next_ino(), uapi::S_IFDIR | 0o755, Box::new(DirectoryOps(directory.clone())));
        directory.inode.call_once(|| Arc::downgrade(&inode));
        (directory, inode)
    }

    /// The name in the directory above; empty for the root.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory above, unless it was removed or this is the root.
    pub fn parent(&self) -> Option<Arc<Directory>> {
        self.parent.upgrade()
    }

    /// The path below the mount point, with a leading slash: `/devices/virtual/tty/tty0`. The root's is empty.
    pub fn path(&self) -> String {
        let mut names = Vec::new();
        let mut at = self.me.upgrade();
        while let Some(directory) = at {
            names.push(directory.name.clone());
            at = directory.parent();
        }
        // The root has no name and comes last.
        let mut path = String::new();
        for name in names.iter().rev().filter(|name| !name.is_empty()) {
            path.push('/');
            path.push_str(name);
        }
        path
    }

    fn find(&self, name: &str) -> Option<Kind> {
        self.entries.lock().names.get(name).map(|named| named.kind.clone())
    }

    /// The directory called `name`.
    pub fn directory(&self, name: &str) -> Option<Arc<Directory>> {
        match self.find(name)? {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// The attribute file called `name`.
    pub fn file(&self, name: &str) -> Option<Arc<File>> {
        match self.find(name)? {
            Kind::File(file) => Some(file),
            _ => None,
        }
    }

    /// Whether there is an entry `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.lock().names.contains_key(name)
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.lock().names.is_empty()
    }

    /// Adds what `build` makes, under the inode's lock, so that nobody has looked in vain meanwhile.
    fn add(&self, name: &str, build: impl FnOnce(&Arc<SuperBlock>) -> (Kind, Arc<Inode>)) -> Result {
        if name.is_empty() || name.len() > 255 || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(Errno::EINVAL);
        }
        let sb = self.sb.upgrade().ok_or(Errno::ENOENT)?;
        let own = self.inode.get().and_then(Weak::upgrade).ok_or(Errno::ENOENT)?;
        let _guard = own.lock.write();
        if self.contains(name) {
            return Err(Errno::EEXIST);
        }
        let (kind, inode) = build(&sb);
        let is_directory = matches!(kind, Kind::Directory(_));
        {
            let mut entries = self.entries.lock();
            if entries.removed {
                return Err(Errno::ENOENT);
            }
            entries.order.insert(inode.ino, Box::from(name));
            entries.names.insert(Box::from(name), Named { number: inode.ino, kind, inode });
        }
        if is_directory {
            own.add_nlink(1);
        }
        own.touch_modified();
        Ok(())
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// `EEXIST`, `EINVAL` for what is no name, `ENOENT` when this directory was removed.
    pub fn make_directory(&self, name: &str) -> Result<Arc<Directory>> {
        let mut made = None;
        self.add(name, |sb| {
            let (directory, inode) = Self::build(sb, name, self.me.clone());
            made = Some(directory.clone());
            (Kind::Directory(directory), inode)
        })?;
        made.ok_or(Errno::ENOENT)
    }

    /// The directory called `name`, made when it is missing.
    ///
    /// # Errors
    /// `ENOTDIR` when the name is taken by something else, and those of [`Directory::make_directory`].
    pub fn make_or_find(&self, name: &str) -> Result<Arc<Directory>> {
        match self.make_directory(name) {
            Err(Errno::EEXIST) => self.directory(name).ok_or(Errno::ENOTDIR),
            other => other,
        }
    }

    /// Adds an attribute file with the permission bits `mode`.
    ///
    /// # Errors
    /// As [`Directory::make_directory`].
    pub fn add_file(&self, name: &str, mode: u32, value: Value) -> Result<Arc<File>> {
        let file = File::new(value);
        self.add(name, |sb| {
            let inode = make(sb, sb.next_ino(), uapi::S_IFREG | mode & 0o777, Box::new(FileInode(file.clone())));
            (Kind::File(file.clone()), inode)
        })?;
        Ok(file)
    }

    /// Adds a symbolic link to `target`, relative as Linux makes it (`kernfs_get_target_path`).
    ///
    /// # Errors
    /// As [`Directory::make_directory`].
    pub fn add_link(&self, name: &str, target: &Directory) -> Result {
        let body: Arc<[u8]> = Arc::from(relative(&self.path(), &target.path()).as_bytes());
        self.add(name, |sb| {
            let new = NewInode { mode: uapi::S_IFLNK | 0o777, uid: 0, gid: 0, rdev: 0 };
            (Kind::Link, Inode::new(sb, sb.next_ino(), &new, Box::new(LinkOps(body))))
        })
    }

    /// Removes an entry, a directory with all that is in it. Who has an attribute open gets `ENODEV` from then on.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn remove(&self, name: &str) -> Result {
        let own = self.inode.get().and_then(Weak::upgrade).ok_or(Errno::ENOENT)?;
        let (named, dentry);
        {
            let _guard = own.lock.write();
            {
                let mut entries = self.entries.lock();
                named = entries.names.remove(name).ok_or(Errno::ENOENT)?;
                entries.order.remove(&named.number);
            }
            // Looked up under the lock: nobody adds to the cache meanwhile.
            dentry = self.dentry().and_then(|d| d.remove_child(hash_name(name.as_bytes()), name.as_bytes(), true));
            if matches!(named.kind, Kind::Directory(_)) {
                own.add_nlink(-1);
            }
            own.touch_modified();
        }
        let mut work = alloc::vec![named];
        while let Some(named) = work.pop() {
            match &named.kind {
                Kind::Directory(directory) => {
                    let _guard = named.inode.lock.write();
                    named.inode.dead.store(true, Ordering::Release);
                    let mut entries = directory.entries.lock();
                    entries.removed = true;
                    entries.order.clear();
                    work.extend(core::mem::take(&mut entries.names).into_values());
                }
                Kind::File(file) => file.end(),
                Kind::Link => {}
            }
            named.inode.set_nlink(0);
        }
        if let Some(dentry) = dentry {
            dentry.forget_tree();
        }
        Ok(())
    }

    /// The entry of the name cache for this directory, if it is there.
    fn dentry(&self) -> Option<Arc<Dentry>> {
        let sb = self.sb.upgrade()?;
        let path = self.path();
        path.split('/')
            .filter(|part| !part.is_empty())
            .try_fold(sb.root().ok()?, |at, part| at.child(hash_name(part.as_bytes()), part.as_bytes()))
    }

    fn list(&self, pos: &mut u64, sink: &mut dyn DirSink) {
        let entries = self.entries.lock();
        for (number, name) in entries.order.range(pos.saturating_sub(2)..) {
            let Some(named) = entries.names.get(name) else { continue };
            let next = number + 3;
            if !sink.emit(name.as_bytes(), named.inode.ino, named.inode.kind.dirent_type(), next) {
                return;
            }
            *pos = next;
        }
    }
}

/// The way from directory `from` to `to`: up to the nearest directory above both, then down; `to` itself does not count as
/// above itself, so that a link always ends in its target's name.
pub(super) fn relative(from: &str, to: &str) -> String {
    let from: Vec<&str> = from.split('/').filter(|p| !p.is_empty()).collect();
    let to: Vec<&str> = to.split('/').filter(|p| !p.is_empty()).collect();
    let above = to.len().saturating_sub(1);
    let common = from.iter().zip(&to[..above]).take_while(|(a, b)| a == b).count();
    let mut path = "../".repeat(from.len() - common);
    path.push_str(&to[common..].join("/"));
    path
}

struct DirectoryOps(Arc<Directory>);

impl InodeOps for DirectoryOps {
    fn lookup(&self, _dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        let name = core::str::from_utf8(name).map_err(|_| Errno::ENOENT)?;
        let entries = self.0.entries.lock();
        entries.names.get(name).map(|named| Entry::stable(named.inode.clone())).ok_or(Errno::ENOENT)
    }

    fn create(&self, _dir: &Arc<Inode>, _name: &[u8], new: &NewInode) -> Result<Entry> {
        // Directories and nodes are refused in other words than files, as on Linux.
        Err(if new.mode & uapi::S_IFMT == uapi::S_IFREG { Errno::EACCES } else { Errno::EPERM })
    }

    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Listing::new(|f: &OpenFile, pos: &mut u64, sink: &mut dyn DirSink| {
            let directory = &inode_of(f)?.ops_as::<DirectoryOps>().ok_or(Errno::EIO)?.0;
            directory.list(pos, sink);
            Ok(())
        })))
    }
}

struct LinkOps(Arc<[u8]>);

impl InodeOps for LinkOps {
    fn readlink(&self, _inode: &Arc<Inode>) -> Result<LinkTarget> {
        Ok(LinkTarget::Path(self.0.clone()))
    }
}
