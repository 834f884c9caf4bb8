//! Path resolution: [`Path`], [`Lookup`].
//!
//! [`Lookup`] walks a path component by component over the dentry cache, crossing mounts and following symbolic links
//! without recursion: the rest of a path waits on a small stack while a link's body is walked. A walk over cached
//! entries allocates nothing.
//!
//! Calls that create or remove a name stop before the last component ([`Lookup::parent`]) and get it as [`Last`].
//!
//! References: path_resolution(7), openat2(2), `Documentation/filesystems/path-lookup.rst`.

use alloc::{borrow::Cow, sync::Arc, vec::Vec};

use bitflags::bitflags;

use super::{
    dentry::{self, Dentry},
    inode::{FileKind, Inode, LinkTarget},
    mount::{self, Mount, MountFlags},
    permission,
};
use crate::{
    Errno, Result,
    process::{self, Credentials},
};

/// A place in the tree: a dentry as seen through a mount.
#[derive(Clone)]
pub struct Path {
    /// The mount.
    pub mount: Arc<Mount>,
    /// The dentry in its file system.
    pub dentry: Arc<Dentry>,
}

impl Path {
    /// The inode. A path that a lookup returned always has one.
    ///
    /// # Errors
    /// `ENOENT` for a negative entry.
    #[inline]
    pub fn inode(&self) -> Result<&Arc<Inode>> {
        self.dentry.inode().ok_or(Errno::ENOENT)
    }

    /// Whether it is where its mount begins.
    #[inline]
    pub fn is_mount_root(&self) -> bool {
        Dentry::same(&self.dentry, &self.mount.root)
    }

    /// The absolute path as seen from `root`, as `getcwd` and `/proc` show it.
    ///
    /// The second value tells whether the path is reachable from `root`.
    pub fn display(&self, root: &Path) -> (Vec<u8>, bool) {
        let mut parts: Vec<Arc<[u8]>> = Vec::new();
        let mut reachable = true;
        {
            let _guard = dentry::RENAME.read();
            let mut at = self.clone();
            loop {
                if at == *root {
                    break;
                }
                if at.is_mount_root() {
                    match at.mount.mountpoint() {
                        Some(point) => {
                            at = point;
                            continue;
                        }
                        None => {
                            reachable = false;
                            break;
                        }
                    }
                }
                let (parent, name) = at.dentry.place();
                let Some(parent) = parent else {
                    reachable = false;
                    break;
                };
                parts.push(name);
                at.dentry = parent;
            }
        }
        let mut out = Vec::with_capacity(parts.iter().map(|p| p.len() + 1).sum::<usize>().max(1));
        for part in parts.iter().rev() {
            out.push(b'/');
            out.extend_from_slice(part);
        }
        if out.is_empty() {
            out.push(b'/');
        }
        (out, reachable)
    }

    /// The path as `/proc/PID/fd` shows it: from the caller's root, with " (deleted)" when the name is gone.
    pub fn display_link(&self, root: &Path) -> Vec<u8> {
        if super::anon::is_anon(self) {
            return self.dentry.name().to_vec();
        }
        let (mut out, _) = self.display(root);
        if self.dentry.is_deleted() {
            out.extend_from_slice(b" (deleted)");
        }
        out
    }
}

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.dentry, &other.dentry) && Arc::ptr_eq(&self.mount, &other.mount)
    }
}

impl core::fmt::Debug for Path {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Path(mount {}, {:?})", self.mount.id, alloc::string::String::from_utf8_lossy(&self.dentry.name()))
    }
}

bitflags! {
    /// How a lookup treats the last component, and `openat2`'s `RESOLVE_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct LookupFlags: u32 {
        /// Follow a symbolic link in the last component.
        const FOLLOW = 1;
        /// The result must be a directory.
        const DIRECTORY = 2;
        /// An empty path means the starting point itself (`AT_EMPTY_PATH`).
        const EMPTY = 4;
        /// `RESOLVE_NO_XDEV`
        const NO_XDEV = 0x10;
        /// `RESOLVE_NO_MAGICLINKS`
        const NO_MAGICLINKS = 0x20;
        /// `RESOLVE_NO_SYMLINKS`
        const NO_SYMLINKS = 0x40;
        /// `RESOLVE_BENEATH`
        const BENEATH = 0x80;
        /// `RESOLVE_IN_ROOT`
        const IN_ROOT = 0x100;
        /// `RESOLVE_CACHED`
        const CACHED = 0x200;
    }
}

/// The last component of a path, when the walk stopped before it.
#[derive(Debug)]
pub enum Last<'p> {
    /// An ordinary name.
    Name(Cow<'p, [u8]>),
    /// `.`, or an empty rest.
    Dot,
    /// `..`
    DotDot,
    /// The path was `/`.
    Root,
}

/// How many symbolic links one walk follows.
const MAX_LINKS: u32 = 40;

/// Where a relative path starts.
#[derive(Clone)]
pub enum Start {
    /// The working directory (`AT_FDCWD`).
    Cwd,
    /// This directory.
    At(Path),
}

/// Decodes the directory descriptor of an `*at` call. A descriptor is looked at only for a relative path.
///
/// # Errors
/// `EBADF`, `ENOTDIR`.
pub fn start_at(dirfd: i32, path: &[u8]) -> Result<Start> {
    if dirfd == linux_uapi::raw::general::AT_FDCWD || path.first() == Some(&b'/') {
        return Ok(Start::Cwd);
    }
    let file = process::current().files().get_any(dirfd)?;
    let at = file.path().ok_or(Errno::ENOTDIR)?.clone();
    if !path.is_empty() && !at.inode()?.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    Ok(Start::At(at))
}

enum Segment<'p> {
    Given(&'p [u8]),
    Link(Arc<[u8]>),
}

impl Segment<'_> {
    #[inline]
    fn bytes(&self) -> &[u8] {
        match self {
            Segment::Given(b) => b,
            Segment::Link(b) => b,
        }
    }
}

/// A walk in progress.
pub struct Lookup<'c> {
    cred: &'c Credentials,
    /// What `/` and the limit of `..` are.
    root: Path,
    /// Where the walk is.
    cur: Path,
    flags: LookupFlags,
    links: u32,
    /// A trailing slash was seen: the result must be a directory.
    must_dir: bool,
    /// The last component came out of a magic link.
    jumped: bool,
    /// Renames and mounts when a walk began that has a limit: a `..` after another one may lead out.
    began: (u64, u64),
}

impl<'c> Lookup<'c> {
    /// Begins a walk of `path` from `start`.
    ///
    /// # Errors
    /// `EXDEV` for an absolute path under `RESOLVE_BENEATH`.
    pub fn new(cred: &'c Credentials, start: &Start, flags: LookupFlags) -> Lookup<'c> {
        let fs = process::current().fs();
        let (mut root, cwd) = fs.dirs();
        let cur = match start {
            Start::Cwd => cwd,
            Start::At(path) => path.clone(),
        };
        let mut began = (0, 0);
        if flags.intersects(LookupFlags::BENEATH | LookupFlags::IN_ROOT) {
            root = cur.clone();
            began = (dentry::settled_renames(), mount::generation());
        }
        Lookup { cred, root, cur, flags, links: 0, must_dir: false, jumped: false, began }
    }

    /// Begins a walk with explicit root and start, for kernel users.
    pub fn with_root(cred: &'c Credentials, root: Path, cur: Path, flags: LookupFlags) -> Lookup<'c> {
        Lookup { cred, root, cur, flags, links: 0, must_dir: false, jumped: false, began: (0, 0) }
    }

    /// Walks the whole path.
    ///
    /// # Errors
    /// As path_resolution(7): `ENOENT`, `ENOTDIR`, `EACCES`, `ELOOP`, `ENAMETOOLONG`; `EXDEV`, `EAGAIN` for `RESOLVE_*`.
    pub fn resolve(mut self, path: &[u8]) -> Result<Path> {
        let follow = self.flags.contains(LookupFlags::FOLLOW);
        let mut link: Option<Arc<[u8]>> = None;
        loop {
            let last = match link.take() {
                None => self.walk_parent(Segment::Given(path))?,
                Some(body) => self.walk_parent(Segment::Link(body))?,
            };
            match last {
                Last::Root | Last::Dot => return self.finish(),
                Last::DotDot => {
                    self.dot_dot()?;
                    return self.finish();
                }
                Last::Name(name) => {
                    let want_follow = follow || self.must_dir;
                    match self.step(&name, want_follow)? {
                        None => return self.finish(),
                        Some(body) => link = Some(body),
                    }
                }
            }
        }
    }

    /// Walks all but the last component; the directory and the last name.
    ///
    /// # Errors
    /// As [`Lookup::resolve`].
    pub fn parent<'p>(mut self, path: &'p [u8]) -> Result<(Path, Last<'p>, bool)> {
        let last = self.walk_parent(Segment::Given(path))?;
        self.check_beneath()?;
        Ok((self.cur, last, self.must_dir))
    }

    /// Walks all but the last component and keeps the walk, for `open`, which may follow the last one.
    ///
    /// # Errors
    /// As [`Lookup::resolve`].
    pub fn to_last<'p>(&mut self, path: &'p [u8]) -> Result<Last<'p>> {
        self.walk_parent(Segment::Given(path))
    }

    /// Goes on into the body of a symbolic link that was the last component.
    ///
    /// # Errors
    /// As [`Lookup::resolve`].
    pub fn follow_last(&mut self, body: Arc<[u8]>) -> Result<Last<'static>> {
        self.walk_parent(Segment::Link(body))
    }

    /// Where the walk is.
    pub fn at(&self) -> &Path {
        &self.cur
    }

    /// Whether a trailing slash asked for a directory.
    pub fn must_dir(&self) -> bool {
        self.must_dir
    }

    /// Whether the result came out of a magic link (`/proc/PID/fd/N`): further symlink and write checks differ.
    pub fn jumped(&self) -> bool {
        self.jumped
    }

    /// Goes to the parent directory: a last component `..`.
    ///
    /// # Errors
    /// `EXDEV` out of a `RESOLVE_*` limit, `EAGAIN` when that cannot be told for a rename meanwhile.
    pub fn up(&mut self) -> Result {
        self.dot_dot()
    }

    /// The result of a walk for `open`, which checks the kind itself.
    ///
    /// # Errors
    /// `EXDEV` when it left `RESOLVE_BENEATH`.
    pub fn finish_open(self) -> Result<Path> {
        self.check_beneath()?;
        Ok(self.cur)
    }

    /// The result of a finished walk.
    ///
    /// # Errors
    /// `ENOTDIR` when a directory was asked for, `EXDEV` when it left `RESOLVE_BENEATH`.
    pub fn finish(self) -> Result<Path> {
        if (self.must_dir || self.flags.contains(LookupFlags::DIRECTORY)) && !self.cur.inode()?.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        // What is mounted on `/`, `.` or the target of a magic link meanwhile is not entered: the caller stands below it.
        self.check_beneath()?;
        Ok(self.cur)
    }

    /// Under `RESOLVE_BENEATH` and `RESOLVE_IN_ROOT` a concurrent rename may have carried the walk out: checked once more.
    fn check_beneath(&self) -> Result {
        if !self.flags.intersects(LookupFlags::BENEATH | LookupFlags::IN_ROOT) || self.cur == self.root {
            return Ok(());
        }
        if self.cur.display(&self.root).1 || reaches(&self.cur, &self.root) { Ok(()) } else { Err(Errno::EXDEV) }
    }

    /// Walks to the last component, which is left unwalked.
    fn walk_parent<'p>(&mut self, first: Segment<'p>) -> Result<Last<'p>> {
        let mut seg = first;
        let mut pos = 0;
        // What remains of the paths that led to the links being walked.
        let mut stack: Vec<(Segment<'p>, usize)> = Vec::new();
        if seg.bytes().first() == Some(&b'/') {
            // An absolute path as it was given starts nowhere else.
            self.jump_root(matches!(seg, Segment::Given(_)))?;
        }
        let mut any = false;
        loop {
            let bytes = seg.bytes();
            while bytes.get(pos) == Some(&b'/') {
                pos += 1;
            }
            if pos == bytes.len() {
                match stack.pop() {
                    Some((s, p)) => {
                        seg = s;
                        pos = p;
                        continue;
                    }
                    None => return Ok(if any { Last::Dot } else { Last::Root }),
                }
            }
            any = true;
            // Every directory that is walked through must be searchable.
            self.search_permission()?;
            let mut end = pos;
            while end < bytes.len() && bytes[end] != b'/' {
                end += 1;
            }
            let mut rest = end;
            while bytes.get(rest) == Some(&b'/') {
                rest += 1;
            }
            let last = rest == bytes.len() && stack.is_empty();
            if last && rest > end {
                self.must_dir = true;
            }
            let name = &bytes[pos..end];
            match name {
                b"." => {
                    if last {
                        return Ok(Last::Dot);
                    }
                }
                b".." => {
                    if last {
                        return Ok(Last::DotDot);
                    }
                    self.dot_dot()?;
                }
                _ if last => {
                    return Ok(Last::Name(match seg {
                        Segment::Given(b) => Cow::Borrowed(&b[pos..end]),
                        Segment::Link(b) => Cow::Owned(b[pos..end].to_vec()),
                    }));
                }
                _ => match self.step(name, true)? {
                    None => {
                        let inode = self.cur.inode()?;
                        if !inode.is_dir() {
                            return Err(Errno::ENOTDIR);
                        }
                    }
                    Some(body) => {
                        let absolute = body.first() == Some(&b'/');
                        if rest < bytes.len() {
                            stack.push((seg, rest));
                        }
                        if absolute {
                            self.jump_root(false)?;
                        }
                        seg = Segment::Link(body);
                        pos = 0;
                        continue;
                    }
                },
            }
            pos = rest;
        }
    }

    #[inline]
    fn search_permission(&self) -> Result {
        let inode = self.cur.inode()?;
        if !inode.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        permission::check_search(inode, self.cred)
    }

    fn jump_root(&mut self, begins: bool) -> Result {
        if self.flags.contains(LookupFlags::BENEATH) {
            return Err(Errno::EXDEV);
        }
        let crosses = !begins && !Arc::ptr_eq(&self.cur.mount, &self.root.mount);
        if self.flags.contains(LookupFlags::NO_XDEV) && crosses {
            return Err(Errno::EXDEV);
        }
        self.cur = self.root.clone();
        Ok(())
    }

    fn dot_dot(&mut self) -> Result {
        let start_mount = self.cur.mount.clone();
        loop {
            if self.cur == self.root {
                if self.flags.contains(LookupFlags::BENEATH) {
                    return Err(Errno::EXDEV);
                }
                break;
            }
            if self.cur.is_mount_root() {
                match self.cur.mount.mountpoint() {
                    Some(point) => self.cur = point,
                    None => break,
                }
                continue;
            }
            if let Some(parent) = self.cur.dentry.parent() {
                self.cur.dentry = parent;
            }
            break;
        }
        mount::cross_down(&mut self.cur);
        // The directory that this came from may have been carried out of the limit, and then the limit is not on the way up.
        if self.flags.intersects(LookupFlags::BENEATH | LookupFlags::IN_ROOT)
            && (dentry::renames(), mount::generation()) != self.began
        {
            return Err(Errno::EAGAIN);
        }
        if self.flags.contains(LookupFlags::NO_XDEV) && !Arc::ptr_eq(&start_mount, &self.cur.mount) {
            return Err(Errno::EXDEV);
        }
        Ok(())
    }

    /// Moves to the child `name`. Gives the body when it is a symbolic link that is to be followed: the walk then stands
    /// in the directory of the link still.
    pub fn step(&mut self, name: &[u8], follow: bool) -> Result<Option<Arc<[u8]>>> {
        let dentry = self.child(name)?;
        let Some(inode) = dentry.inode() else { return Err(Errno::ENOENT) };
        if inode.kind == FileKind::Symlink && follow {
            let inode = inode.clone();
            return self.read_link(&inode);
        }
        self.enter(dentry)?;
        Ok(None)
    }

    /// Moves to a found child, crossing into what is mounted on it.
    #[inline]
    pub fn enter(&mut self, dentry: Arc<Dentry>) -> Result {
        let crossing = dentry.is_mountpoint();
        self.cur.dentry = dentry;
        if crossing && mount::cross_down(&mut self.cur) && self.flags.contains(LookupFlags::NO_XDEV) {
            return Err(Errno::EXDEV);
        }
        Ok(())
    }

    /// The body of a link in the current directory; `None` after a magic link moved the walk to its target.
    pub fn read_link(&mut self, inode: &Arc<Inode>) -> Result<Option<Arc<[u8]>>> {
        self.links += 1;
        if self.links > MAX_LINKS || self.flags.contains(LookupFlags::NO_SYMLINKS) {
            return Err(Errno::ELOOP);
        }
        if self.cur.mount.flags().contains(MountFlags::NOSYMFOLLOW) {
            return Err(Errno::ELOOP);
        }
        permission::may_follow_link(self.cur.inode()?, inode, self.cred)?;
        match inode.ops().readlink(inode)? {
            LinkTarget::Path(body) => {
                if body.is_empty() {
                    return Err(Errno::ENOENT);
                }
                Ok(Some(body))
            }
            // It can be read, stated by `lstat`, but not walked through.
            LinkTarget::Name(_) => Err(Errno::ENOENT),
            LinkTarget::Jump(path) => {
                if self.flags.contains(LookupFlags::NO_MAGICLINKS) {
                    return Err(Errno::ELOOP);
                }
                if self.flags.intersects(LookupFlags::BENEATH | LookupFlags::IN_ROOT)
                    || self.flags.contains(LookupFlags::NO_XDEV) && !Arc::ptr_eq(&path.mount, &self.cur.mount)
                {
                    return Err(Errno::EXDEV);
                }
                self.cur = path;
                self.jumped = true;
                Ok(None)
            }
        }
    }

    /// Finds the child `name` of the current directory, in the cache or in the file system.
    #[inline]
    fn child(&mut self, name: &[u8]) -> Result<Arc<Dentry>> {
        let hash = dentry::hash_name(name);
        if let Some(found) = self.cur.dentry.child(hash, name)
            && !found.expired(ursa_hal::time::monotonic_ns)
        {
            return Ok(found);
        }
        if self.flags.contains(LookupFlags::CACHED) {
            return Err(Errno::EAGAIN);
        }
        lookup_child(&self.cur.dentry, hash, name)
    }
}

/// Asks the file system for a child that is not in the cache, or whose entry expired.
///
/// # Errors
/// `ENOENT`, `ENAMETOOLONG`, and what the file system reports.
pub fn lookup_child(dir: &Arc<Dentry>, hash: u64, name: &[u8]) -> Result<Arc<Dentry>> {
    let inode = dir.inode().ok_or(Errno::ENOENT)?;
    if name.len() > inode.sb.name_max {
        return Err(Errno::ENAMETOOLONG);
    }
    let _guard = inode.lock.read();
    lookup_child_locked(dir, inode, hash, name)?.ok_or(Errno::ENOENT)
}

/// As [`lookup_child`] with the directory locked; `None` when there is no such name.
///
/// # Errors
/// What the file system reports.
pub fn lookup_child_locked(
    dir: &Arc<Dentry>,
    inode: &Arc<Inode>,
    hash: u64,
    name: &[u8],
) -> Result<Option<Arc<Dentry>>> {
    let cached = dir.child(hash, name);
    if let Some(found) = &cached
        && !found.expired(ursa_hal::time::monotonic_ns)
    {
        return Ok(found.inode().is_some().then(|| found.clone()));
    }
    let entry = match inode.ops().lookup(inode, name) {
        Err(Errno::ENOENT) => super::inode::Entry { inode: None, valid_until: u64::MAX },
        other => other?,
    };
    Ok(note_child(dir, hash, name, cached, entry))
}

/// Takes a file system's answer about `name` into the cache, where `cached` was found before: the child, if there is one. The caller
/// holds the directory's lock.
pub fn note_child(
    dir: &Arc<Dentry>,
    hash: u64,
    name: &[u8],
    cached: Option<Arc<Dentry>>,
    entry: super::inode::Entry,
) -> Option<Arc<Dentry>> {
    if let Some(old) = cached {
        let same = match (old.inode(), &entry.inode) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        if same && entry.valid_until > 0 {
            old.set_valid_until(entry.valid_until);
            return old.inode().is_some().then_some(old);
        }
        dir.remove_child(hash, name, !same);
    }
    match entry.inode {
        Some(found) if entry.valid_until == 0 => Some(Dentry::new_detached(dir, name, found, false)),
        Some(found) => Some(dir.add_child(hash, name, Some(found), entry.valid_until)),
        None => {
            if dir.inode().is_some_and(|inode| inode.sb.cache_negative) && entry.valid_until > 0 {
                dir.add_child(hash, name, None, entry.valid_until);
            }
            None
        }
    }
}

/// Whether `root` is found by going up from `path`.
fn reaches(path: &Path, root: &Path) -> bool {
    let mut at = path.clone();
    loop {
        if at == *root {
            return true;
        }
        if at.is_mount_root() {
            match at.mount.mountpoint() {
                Some(point) => at = point,
                None => return false,
            }
            continue;
        }
        match at.dentry.parent() {
            Some(parent) => at.dentry = parent,
            None => return false,
        }
    }
}

/// Resolves `path` for the current thread.
///
/// # Errors
/// As [`Lookup::resolve`]; `ENOENT` for an empty path without [`LookupFlags::EMPTY`].
pub fn lookup(start: &Start, path: &[u8], flags: LookupFlags) -> Result<Path> {
    let cred = process::current().cred();
    lookup_as(&cred, start, path, flags)
}

/// As [`lookup`], with given credentials (`access` uses the real ids).
///
/// # Errors
/// As [`lookup`].
pub fn lookup_as(cred: &Credentials, start: &Start, path: &[u8], flags: LookupFlags) -> Result<Path> {
    if path.is_empty() {
        if !flags.contains(LookupFlags::EMPTY) {
            return Err(Errno::ENOENT);
        }
        return Ok(match start {
            Start::Cwd => process::current().fs().cwd(),
            Start::At(path) => path.clone(),
        });
    }
    Lookup::new(cred, start, flags).resolve(path)
}

/// Resolves `path` with a directory descriptor.
///
/// # Errors
/// As [`lookup`]; `EBADF`, `ENOTDIR` for the descriptor.
pub fn lookup_at(dirfd: i32, path: &[u8], flags: LookupFlags) -> Result<Path> {
    let start = start_at(dirfd, path)?;
    lookup(&start, path, flags)
}
