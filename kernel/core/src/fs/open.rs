//! Opening: from a path, flags and a mode to an open file.
//!
//! References: open(2), openat2(2); `do_open` and `may_open` in `fs/namei.c`, `build_open_flags` in `fs/open.c`.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use linux_uapi::raw::general as uapi;
use ursa_hal::sync::Once;

use super::{
    acl, anon,
    dentry::{self, Dentry},
    dev::{self, CharDevice},
    file::{File, FileMode, FileOps},
    inode::{FileKind, Inode, SbFlags, SetAttr},
    lease, namei,
    notify::{self, mask},
    path::{Last, Lookup, LookupFlags, Path, Start, lookup_child, lookup_child_locked},
    permission::{self, MAY_EXEC, MAY_READ, MAY_WRITE},
};
use crate::{
    Errno, Result,
    process::{Credentials, current},
};

/// `__O_TMPFILE`, the bit that `O_TMPFILE` has besides `O_DIRECTORY`.
const TMPFILE_BIT: u32 = uapi::O_TMPFILE & !uapi::O_DIRECTORY;

/// All flags that `open` knows.
pub const VALID_FLAGS: u32 = uapi::O_ACCMODE
    | uapi::O_CREAT
    | uapi::O_EXCL
    | uapi::O_NOCTTY
    | uapi::O_TRUNC
    | uapi::O_APPEND
    | uapi::O_NONBLOCK
    | uapi::O_SYNC
    | uapi::O_DSYNC
    | uapi::FASYNC
    | uapi::O_DIRECT
    | uapi::O_LARGEFILE
    | uapi::O_DIRECTORY
    | uapi::O_NOFOLLOW
    | uapi::O_NOATIME
    | uapi::O_CLOEXEC
    | uapi::O_PATH
    | TMPFILE_BIT;

/// A decoded request to open.
#[derive(Clone, Copy, Debug)]
pub struct OpenRequest {
    /// `O_*`, cleaned up.
    pub flags: u32,
    /// Permission bits for a new file, before the umask.
    pub mode: u32,
    /// `RESOLVE_*` and how the last component is treated.
    pub lookup: LookupFlags,
    access: u32,
}

impl OpenRequest {
    /// Checks and completes flags as Linux does. `strict`: `openat2`, which refuses what `open` ignores.
    ///
    /// # Errors
    /// `EINVAL`.
    pub fn new(flags: u32, mode: u32, lookup: LookupFlags, strict: bool) -> Result<OpenRequest> {
        let mut flags = flags;
        let mut mode = mode;
        if flags & !VALID_FLAGS != 0 {
            if strict {
                return Err(Errno::EINVAL);
            }
            flags &= VALID_FLAGS;
        }
        let creates = flags & (uapi::O_CREAT | TMPFILE_BIT) != 0;
        if creates {
            if strict && mode & !0o7777 != 0 {
                return Err(Errno::EINVAL);
            }
            mode &= 0o7777;
        } else {
            if strict && mode != 0 {
                return Err(Errno::EINVAL);
            }
            mode = 0;
        }
        if flags & (uapi::O_CREAT | uapi::O_DIRECTORY) == uapi::O_CREAT | uapi::O_DIRECTORY {
            return Err(Errno::EINVAL);
        }
        // Access mode 3 checks for reading and writing and then allows neither: for ioctl.
        let mut access = match flags & uapi::O_ACCMODE {
            uapi::O_RDONLY => MAY_READ,
            uapi::O_WRONLY => MAY_WRITE,
            _ => MAY_READ | MAY_WRITE,
        };
        if flags & TMPFILE_BIT != 0 && (flags & uapi::O_DIRECTORY == 0 || access & MAY_WRITE == 0) {
            return Err(Errno::EINVAL);
        }
        if flags & uapi::O_PATH != 0 {
            let kept = uapi::O_DIRECTORY | uapi::O_NOFOLLOW | uapi::O_PATH | uapi::O_CLOEXEC;
            if strict && flags & !kept != 0 {
                return Err(Errno::EINVAL);
            }
            flags &= kept;
            access = 0;
        }
        if flags & uapi::O_SYNC == uapi::O_SYNC {
            flags |= uapi::O_DSYNC;
        }
        if flags & uapi::O_TRUNC != 0 {
            access |= MAY_WRITE;
        }
        let mut lookup = lookup;
        if flags & uapi::O_NOFOLLOW == 0 && flags & (uapi::O_CREAT | uapi::O_EXCL) != uapi::O_CREAT | uapi::O_EXCL {
            lookup |= LookupFlags::FOLLOW;
        }
        Ok(OpenRequest { flags, mode, lookup, access })
    }

    /// A plain `open(path, flags)` of the kernel's own.
    ///
    /// # Errors
    /// `EINVAL`.
    pub fn plain(flags: u32) -> Result<OpenRequest> {
        Self::new(flags, 0, LookupFlags::empty(), false)
    }
}

/// Opens `path` for the current thread.
///
/// # Errors
/// As open(2).
pub fn open(start: &Start, path: &[u8], req: &OpenRequest) -> Result<Arc<File>> {
    let thread = current();
    let cred = thread.cred();
    open_as(&cred, start, path, req)
}

/// Opens `path` with given credentials.
///
/// # Errors
/// As open(2).
pub fn open_as(cred: &Credentials, start: &Start, path: &[u8], req: &OpenRequest) -> Result<Arc<File>> {
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    let mut walk = Lookup::new(cred, start, req.lookup);
    let follow = req.lookup.contains(LookupFlags::FOLLOW);
    let create = req.flags & uapi::O_CREAT != 0;
    let mut created = false;
    let mut parent: Option<Arc<Inode>> = None;
    let mut last = walk.to_last(path)?;
    loop {
        let name = match last {
            Last::Name(name) => name,
            Last::Root | Last::Dot | Last::DotDot => {
                if create {
                    return Err(Errno::EISDIR);
                }
                if matches!(last, Last::DotDot) {
                    walk.up()?;
                }
                break;
            }
        };
        if create && walk.must_dir() {
            return Err(Errno::EISDIR);
        }
        let (dentry, made) = find_or_create(&walk, &name, req, cred)?;
        created = made;
        let inode = dentry.inode().ok_or(Errno::ENOENT)?;
        if inode.kind == FileKind::Symlink && !made && (follow || walk.must_dir()) {
            if create && req.flags & uapi::O_EXCL != 0 {
                return Err(Errno::EEXIST);
            }
            let inode = inode.clone();
            match walk.read_link(&inode)? {
                Some(body) => {
                    last = walk.follow_last(body)?;
                    continue;
                }
                None => break,
            }
        }
        if create {
            parent = walk.at().dentry.inode().cloned();
        }
        walk.enter(dentry)?;
        break;
    }
    let must_dir = walk.must_dir() || req.flags & uapi::O_DIRECTORY != 0;
    let at = walk.finish_open()?;
    let inode = at.inode()?.clone();
    if create && !created {
        if inode.is_dir() {
            return Err(Errno::EISDIR);
        }
        if let Some(dir) = &parent {
            permission::may_create_in_sticky(dir, &inode, cred)?;
        }
    }
    if must_dir && !inode.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    if req.flags & TMPFILE_BIT != 0 {
        return open_tmpfile(&at, &inode, req, cred);
    }
    open_inode(at, inode, req, created, cred)
}

/// The last component, made if asked for and missing. The second value tells that it was made.
fn find_or_create(
    walk: &Lookup<'_>,
    name: &[u8],
    req: &OpenRequest,
    cred: &Credentials,
) -> Result<(Arc<Dentry>, bool)> {
    let hash = dentry::hash_name(name);
    let dir = walk.at();
    if let Some(found) = dir.dentry.child(hash, name)
        && !found.expired(ursa_hal::time::monotonic_ns)
    {
        match found.inode() {
            Some(_) if req.flags & (uapi::O_CREAT | uapi::O_EXCL) == uapi::O_CREAT | uapi::O_EXCL => {
                return Err(Errno::EEXIST);
            }
            Some(_) => return Ok((found, false)),
            None if req.flags & uapi::O_CREAT == 0 => return Err(Errno::ENOENT),
            None => {}
        }
    }
    if req.lookup.contains(LookupFlags::CACHED) {
        return Err(Errno::EAGAIN);
    }
    if req.flags & uapi::O_CREAT == 0 {
        return Ok((lookup_child(&dir.dentry, hash, name)?, false));
    }
    let inode = dir.inode()?;
    if name.len() > inode.sb.name_max {
        return Err(Errno::ENAMETOOLONG);
    }
    let _guard = inode.lock.write();
    if let Some(found) = lookup_child_locked(&dir.dentry, inode, hash, name)? {
        if req.flags & uapi::O_EXCL != 0 {
            return Err(Errno::EEXIST);
        }
        return Ok((found, false));
    }
    dir.mount.check_writable()?;
    permission::may_create(inode, cred)?;
    let mode = uapi::S_IFREG | req.mode;
    let entry = inode.ops().create_open(inode, name, &namei::new_inode(inode, mode, 0, cred), req.flags)?;
    namei::inherit(inode, &entry);
    let dentry = namei::cache_new(dir, name, entry)?;
    notify::dir_event(inode, mask::CREATE, name, false, 0);
    Ok((dentry, true))
}

fn open_tmpfile(dir: &Path, inode: &Arc<Inode>, req: &OpenRequest, cred: &Credentials) -> Result<Arc<File>> {
    dir.mount.check_writable()?;
    permission::check(inode, MAY_WRITE | MAY_EXEC, cred)?;
    let mode = uapi::S_IFREG | req.mode;
    let made = inode.ops().tmpfile(inode, &namei::new_inode(inode, mode, 0, cred))?;
    acl::inherit(inode, &made);
    made.linkable.store(req.flags & uapi::O_EXCL == 0, Ordering::Relaxed);
    let name = alloc::format!("#{}", made.ino);
    let dentry = Dentry::new_detached(&dir.dentry, name.as_bytes(), made.clone(), true);
    let at = Path { mount: dir.mount.clone(), dentry };
    let flags = OpenRequest { flags: req.flags & !(TMPFILE_BIT | uapi::O_DIRECTORY | uapi::O_EXCL), ..*req };
    let file = open_inode(at, made, &flags, true, cred)?;
    file.update_flags(uapi::O_TMPFILE, req.flags & uapi::O_TMPFILE);
    Ok(file)
}

/// Opens what a walk found. `created`: by this very call, so no permission is asked and nothing truncated.
///
/// # Errors
/// As open(2).
pub fn open_inode(
    at: Path,
    inode: Arc<Inode>,
    req: &OpenRequest,
    created: bool,
    cred: &Credentials,
) -> Result<Arc<File>> {
    let mut flags = req.flags;
    if flags & uapi::O_PATH != 0 {
        let ops = PATH_OPS.call_once(|| Arc::new(PathOnly)).clone();
        return Ok(File::with_path(ops, at, inode, flags, FileMode::empty()));
    }
    let access = if created { 0 } else { req.access };
    match inode.kind {
        FileKind::Symlink => return Err(Errno::ELOOP),
        FileKind::Directory if req.access & MAY_WRITE != 0 => return Err(Errno::EISDIR),
        FileKind::CharDevice | FileKind::BlockDevice => {
            if !at.mount.allows_devices() {
                return Err(Errno::EACCES);
            }
            flags &= !uapi::O_TRUNC;
        }
        FileKind::Fifo | FileKind::Socket => flags &= !uapi::O_TRUNC,
        _ => {}
    }
    let stored = matches!(inode.kind, FileKind::Regular | FileKind::Directory);
    if access & MAY_WRITE != 0 && stored && inode.sb.flags().contains(SbFlags::RDONLY) {
        return Err(Errno::EROFS);
    }
    permission::check(&inode, access, cred)?;
    if flags & uapi::O_NOATIME != 0 && !permission::owner_or_capable(&inode, cred) {
        return Err(Errno::EPERM);
    }
    let (ops, mut extra) = open_object(&at, &inode, flags, created)?;
    extra.set(FileMode::CREATED, created && flags & uapi::O_CREAT != 0);
    let file = File::with_path(ops, at, inode, flags, extra);
    if let Some(path) = file.path() {
        notify::event(&path.dentry, mask::OPEN);
    }
    Ok(file)
}

/// The object behind the new file, truncated if asked, with write access counted if it is open for writing.
fn open_object(at: &Path, inode: &Arc<Inode>, flags: u32, created: bool) -> Result<(Arc<dyn FileOps>, FileMode)> {
    if let Some(reopened) = anon::reopen(inode, flags) {
        return Ok((reopened?, FileMode::empty()));
    }
    let writes = matches!(flags & uapi::O_ACCMODE, uapi::O_WRONLY | uapi::O_RDWR);
    let claim = match inode.kind {
        FileKind::Regular if writes || flags & uapi::O_TRUNC != 0 => Some(WriteClaim::new(at, inode)?),
        FileKind::CharDevice => return Ok((open_device(dev::chrdev(inode.rdev), inode, flags)?, FileMode::empty())),
        FileKind::BlockDevice => return Ok((open_device(dev::blkdev(inode.rdev), inode, flags)?, FileMode::empty())),
        FileKind::Fifo => return Ok((dev::open_fifo(inode, flags)?, FileMode::empty())),
        FileKind::Socket => return Err(Errno::ENXIO),
        _ => None,
    };
    let ops = inode.ops().open(inode, flags)?;
    let reader = (!writes && inode.kind == FileKind::Regular).then(|| ReadClaim::new(inode));
    lease::break_for(inode, flags)?;
    if flags & uapi::O_TRUNC != 0 && !created {
        let _guard = inode.lock.write();
        permission::drop_set_id(inode);
        inode.ops().setattr(inode, &SetAttr { size: Some(0), ..SetAttr::default() })?;
        inode.touch_modified();
        notify::event(&at.dentry, mask::MODIFY);
    }
    match claim {
        Some(claim) if writes => {
            claim.keep();
            Ok((ops, FileMode::WRITER))
        }
        _ => Ok((ops, reader.map_or(FileMode::empty(), ReadClaim::keep))),
    }
}

fn open_device(device: Option<Arc<dyn CharDevice>>, inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>> {
    device.ok_or(Errno::ENXIO)?.open(inode, flags)
}

/// Write access to inode and mount, given back unless kept by the file.
struct WriteClaim<'a> {
    at: &'a Path,
    inode: &'a Arc<Inode>,
}

impl<'a> WriteClaim<'a> {
    fn new(at: &'a Path, inode: &'a Arc<Inode>) -> Result<Self> {
        at.mount.begin_write()?;
        inode.get_write_access().inspect_err(|_| at.mount.end_write())?;
        Ok(Self { at, inode })
    }

    fn keep(self) {
        core::mem::forget(self);
    }
}

impl Drop for WriteClaim<'_> {
    fn drop(&mut self) {
        self.inode.put_write_access();
        self.at.mount.end_write();
    }
}

/// A place among the readers of an inode, given back unless kept by the file.
struct ReadClaim<'a>(&'a Inode);

impl<'a> ReadClaim<'a> {
    fn new(inode: &'a Inode) -> Self {
        inode.readers.fetch_add(1, Ordering::SeqCst);
        Self(inode)
    }

    fn keep(self) -> FileMode {
        core::mem::forget(self);
        FileMode::READER
    }
}

impl Drop for ReadClaim<'_> {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::SeqCst);
    }
}

static PATH_OPS: Once<Arc<PathOnly>> = Once::new();

/// An `O_PATH` file: a name that other calls start from.
struct PathOnly;

impl FileOps for PathOnly {
    fn can_poll(&self) -> bool {
        false
    }
}
