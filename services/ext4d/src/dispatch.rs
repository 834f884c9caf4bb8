//! From a request to the operation that it asks for.

use std::sync::Arc;

use ext4::{Again, Caller, Errno, Error, Existing, Inode, SetAttr, SetTime, Time};
use fuse_abi::scheme::REPLAY_DURABLE;
use fuse_abi::{
    AttrOut, BatchForgetIn, CreateIn, Dirent, EntryOut, FallocateIn, ForgetIn, ForgetOne, FsyncIn, GetxattrIn,
    GetxattrOut, InitFlags, InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION, Kstatfs, LinkIn, LseekIn, LseekOut,
    MkdirIn, MknodIn, Opcode, OpenOut, ReadIn, Rename2In, RenameIn, Request, SetattrIn, SetattrValid, StatfsOut,
    WriteIn, WriteOut, dirent_len, split_name,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::node::{VALID, attr_of, entry_of, inode_of, node_of};
use crate::server::{Answer, MAX_DATA, Server};

/// The number of what was made, for [`Done`](ext4::Done), or 0.
type Outcome = ext4::Result<u64>;

/// A write that the kernel makes for its own cache, long after whoever wrote it.
const WRITE_CACHE: u32 = 1;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;
const XATTR_CREATE: u32 = 1;
const XATTR_REPLACE: u32 = 2;

fn args<'a, T: FromBytes>(request: &Request<'a>) -> ext4::Result<(T, &'a [u8])> {
    request.args().ok_or(Error::Errno(Errno::INVAL))
}

fn name(bytes: &[u8]) -> ext4::Result<(&[u8], &[u8])> {
    split_name(bytes).ok_or(Error::Errno(Errno::INVAL))
}

/// Text that ends in NUL, which may have slashes.
fn text(bytes: &[u8]) -> ext4::Result<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
    Ok((&bytes[..end], &bytes[end + 1..]))
}

impl Server {
    fn inode(&self, node: u64) -> ext4::Result<Arc<Inode>> {
        match inode_of(node) {
            (_, None) => self.fs.root(),
            (ino, Some(generation)) => self.fs.inode_by_handle(ino, generation),
        }
    }

    fn block_size(&self) -> u32 {
        self.fs.geometry().block_size as u32
    }

    /// Answers a request, also one that a server before has done or even answered.
    ///
    /// # Errors
    /// What its caller gets.
    pub fn dispatch(&self, request: &Request<'_>, answer: &mut Answer) -> Outcome {
        let opcode = request.opcode().ok_or(Errno::NOSYS)?;
        match request.replay() {
            Some(replay) if replay.flags & REPLAY_DURABLE != 0 => {
                self.answer_again(opcode, request, answer, replay.result)
            }
            Some(replay) => {
                let made = match inode_of(replay.result) {
                    (ino, Some(generation)) if replay.result != 0 => Some((ino, generation)),
                    _ => None,
                };
                let now = Time { sec: replay.sec, nsec: replay.nsec };
                let result = ext4::again(Again { made, now }, || self.work(opcode, request, answer));
                // The answer was given long ago.
                answer.clear();
                result
            }
            None => self.work(opcode, request, answer),
        }
    }

    fn work(&self, opcode: Opcode, request: &Request<'_>, answer: &mut Answer) -> Outcome {
        let node = request.header.nodeid;
        let caller = Caller { uid: request.header.uid, gid: request.header.gid };
        let fs = &*self.fs;
        match opcode {
            Opcode::Init => self.init(request, answer)?,
            Opcode::Destroy => fs.sync()?,
            Opcode::Lookup => {
                let (name, _) = name(request.body)?;
                match fs.lookup(&*self.inode(node)?, name) {
                    Ok(inode) => answer.put(&entry_of(&inode.stat(), self.block_size())),
                    // A name that is not there may be remembered as such; the error itself says nothing of how long.
                    Err(Error::Errno(Errno::NOENT)) => {
                        answer.put(&EntryOut { entry_valid: VALID, ..EntryOut::default() });
                    }
                    Err(error) => return Err(error),
                }
            }
            Opcode::Forget => {
                let (forget, _): (ForgetIn, _) = args(request)?;
                self.forget(node, forget.nlookup)?;
            }
            Opcode::BatchForget => {
                let (batch, mut rest): (BatchForgetIn, _) = args(request)?;
                for _ in 0..batch.count {
                    let (one, more) = ForgetOne::read_from_prefix(rest).map_err(|_| Errno::INVAL)?;
                    let _ = self.forget(one.nodeid, one.nlookup);
                    rest = more;
                }
            }
            Opcode::Getattr => self.put_attr(&*self.inode(node)?, answer),
            Opcode::Setattr => {
                let (set, _): (SetattrIn, _) = args(request)?;
                let inode = self.inode(node)?;
                fs.set_attr(&inode, &set_attr(&set, inode.stat().mode))?;
                self.put_attr(&inode, answer);
            }
            Opcode::Readlink => {
                let target = fs.read_link(&*self.inode(node)?)?;
                answer.put(&*target);
            }
            Opcode::Symlink => {
                let (name, rest) = name(request.body)?;
                let (target, _) = text(rest)?;
                return self.made(fs.symlink(&*self.inode(node)?, name, target, caller)?, answer, false);
            }
            Opcode::Mknod => {
                let (make, rest): (MknodIn, _) = args(request)?;
                let (name, _) = name(rest)?;
                return self.made(fs.create(&*self.inode(node)?, name, make.mode, make.rdev, caller)?, answer, false);
            }
            Opcode::Mkdir => {
                let (make, rest): (MkdirIn, _) = args(request)?;
                let (name, _) = name(rest)?;
                return self.made(fs.mkdir(&*self.inode(node)?, name, make.mode, caller)?, answer, false);
            }
            Opcode::Create => {
                let (create, rest): (CreateIn, _) = args(request)?;
                let (name, _) = name(rest)?;
                return self.made(fs.create(&*self.inode(node)?, name, create.mode, 0, caller)?, answer, true);
            }
            Opcode::Tmpfile => {
                let (create, _): (CreateIn, _) = args(request)?;
                return self.made(fs.tmpfile(&*self.inode(node)?, create.mode, caller)?, answer, true);
            }
            Opcode::Link => {
                let (link, rest): (LinkIn, _) = args(request)?;
                let (name, _) = name(rest)?;
                let inode = self.inode(link.oldnodeid)?;
                fs.link(&inode, &*self.inode(node)?, name, caller)?;
                return self.made(inode, answer, false);
            }
            Opcode::Unlink => fs.unlink(&*self.inode(node)?, name(request.body)?.0)?,
            Opcode::Rmdir => fs.rmdir(&*self.inode(node)?, name(request.body)?.0)?,
            Opcode::Rename => {
                let (rename, rest): (RenameIn, _) = args(request)?;
                self.rename(node, rename.newdir, 0, rest, caller)?;
            }
            Opcode::Rename2 => {
                let (rename, rest): (Rename2In, _) = args(request)?;
                self.rename(node, rename.newdir, rename.flags, rest, caller)?;
            }
            // Nothing is kept for an open file: the kernel need not ask.
            Opcode::Open | Opcode::Opendir | Opcode::Flush => return Err(Errno::NOSYS.into()),
            Opcode::Release | Opcode::Releasedir => {}
            Opcode::Read => {
                let (read, _): (ReadIn, _) = args(request)?;
                let inode = self.inode(node)?;
                answer.fill(read.size as usize, |buf| fs.read(&inode, read.offset, buf))?;
            }
            Opcode::Write => {
                let (write, data): (WriteIn, _) = args(request)?;
                let data = data.get(..write.size as usize).ok_or(Errno::INVAL)?;
                let caller = if write.write_flags & WRITE_CACHE != 0 { Caller::default() } else { caller };
                fs.write(&*self.inode(node)?, write.offset, data, caller)?;
                answer.put(&WriteOut { size: write.size, padding: 0 });
            }
            Opcode::Fsync | Opcode::Fsyncdir => {
                let (sync, _): (FsyncIn, _) = args(request)?;
                fs.fsync(&*self.inode(node)?, sync.fsync_flags & 1 != 0)?;
            }
            Opcode::Syncfs => fs.sync()?,
            Opcode::Statfs => self.statfs(answer),
            Opcode::Readdir => self.read_dir(node, request, answer)?,
            Opcode::Readdirplus => self.read_dir_plus(node, request, answer)?,
            Opcode::Setxattr => self.set_xattr(node, request, caller)?,
            Opcode::Getxattr => {
                let (get, rest): (GetxattrIn, _) = args(request)?;
                let value = fs.xattr(&*self.inode(node)?, text(rest)?.0)?;
                sized(answer, get.size, &value)?;
            }
            Opcode::Listxattr => {
                let (get, _): (GetxattrIn, _) = args(request)?;
                let names = fs.xattr_names(&*self.inode(node)?)?;
                sized(answer, get.size, &names)?;
            }
            Opcode::Removexattr => {
                fs.set_xattr(&*self.inode(node)?, text(request.body)?.0, None, Existing::Required, caller)?;
            }
            Opcode::Fallocate => {
                let (fall, _): (FallocateIn, _) = args(request)?;
                fs.allocate(&*self.inode(node)?, fall.mode, fall.offset, fall.length, caller)?;
            }
            Opcode::Lseek => {
                let (seek, _): (LseekIn, _) = args(request)?;
                let hole = match seek.whence {
                    SEEK_DATA => false,
                    SEEK_HOLE => true,
                    _ => return Err(Errno::INVAL.into()),
                };
                answer.put(&LseekOut { offset: fs.seek(&*self.inode(node)?, seek.offset, hole)? });
            }
            // Operations are short: there is nothing to interrupt.
            Opcode::Interrupt => return Err(Errno::NOSYS.into()),
            _ => return Err(Errno::NOSYS.into()),
        }
        Ok(0)
    }

    fn init(&self, request: &Request<'_>, answer: &mut Answer) -> ext4::Result<()> {
        let (init, _): (InitIn, _) = args(request)?;
        if init.major != KERNEL_VERSION {
            return Err(Errno::PROTO.into());
        }
        let offered = InitFlags::from_bits_retain(u64::from(init.flags) | u64::from(init.flags2) << 32);
        let mut want = InitFlags::ASYNC_READ
            | InitFlags::BIG_WRITES
            | InitFlags::EXPORT_SUPPORT
            | InitFlags::DO_READDIRPLUS
            | InitFlags::READDIRPLUS_AUTO
            | InitFlags::PARALLEL_DIROPS
            | InitFlags::MAX_PAGES
            | InitFlags::CACHE_SYMLINKS
            | InitFlags::NO_OPEN_SUPPORT
            | InitFlags::NO_OPENDIR_SUPPORT
            | InitFlags::INIT_EXT
            | InitFlags::SOLE_WRITER;
        if self.write_back {
            want |= InitFlags::WRITEBACK_CACHE;
        }
        if self.requests.is_resumable() {
            want |= InitFlags::RESUMABLE;
        }
        let flags = (want & offered).bits();
        answer.put(&InitOut {
            major: KERNEL_VERSION,
            minor: KERNEL_MINOR_VERSION.min(init.minor),
            max_readahead: init.max_readahead.min(MAX_DATA as u32),
            flags: flags as u32,
            max_background: 64,
            congestion_threshold: 48,
            max_write: MAX_DATA as u32,
            time_gran: 1,
            max_pages: (MAX_DATA / 4096) as u16,
            map_alignment: 0,
            flags2: (flags >> 32) as u32,
            unused: [0; 7],
        });
        Ok(())
    }

    pub(crate) fn forget(&self, node: u64, count: u64) -> ext4::Result<()> {
        match inode_of(node) {
            (_, None) => Ok(()),
            _ => self.fs.unpin(&self.inode(node)?, count),
        }
    }

    fn put_attr(&self, inode: &Inode, answer: &mut Answer) {
        let attr = attr_of(&inode.stat(), self.block_size());
        answer.put(&AttrOut { attr_valid: VALID, attr_valid_nsec: 0, dummy: 0, attr });
    }

    /// Answers with a new entry.
    fn made(&self, inode: Arc<Inode>, answer: &mut Answer, open: bool) -> Outcome {
        let stat = inode.stat();
        answer.put(&entry_of(&stat, self.block_size()));
        if open {
            answer.put(&OpenOut { fh: 0, open_flags: fuse_abi::OpenFlags::KEEP_CACHE.bits(), padding: 0 });
        }
        Ok(node_of(&stat))
    }

    /// Answers a request that the server before had done.
    fn answer_again(&self, opcode: Opcode, request: &Request<'_>, answer: &mut Answer, result: u64) -> Outcome {
        match opcode {
            Opcode::Symlink | Opcode::Mknod | Opcode::Mkdir | Opcode::Create | Opcode::Tmpfile | Opcode::Link
                if result != 0 =>
            {
                let inode = self.inode(result)?;
                inode.pin();
                self.made(inode, answer, matches!(opcode, Opcode::Create | Opcode::Tmpfile))
            }
            Opcode::Write => {
                let (write, _): (WriteIn, _) = args(request)?;
                answer.put(&WriteOut { size: write.size, padding: 0 });
                Ok(result)
            }
            Opcode::Setattr => {
                self.put_attr(&*self.inode(request.header.nodeid)?, answer);
                Ok(result)
            }
            _ => Ok(result),
        }
    }

    fn rename(&self, node: u64, to: u64, flags: u32, names: &[u8], caller: Caller) -> ext4::Result<()> {
        let (old, rest) = name(names)?;
        let (new, _) = name(rest)?;
        self.fs.rename(&self.inode(node)?, old, &self.inode(to)?, new, flags, caller)
    }

    fn statfs(&self, answer: &mut Answer) {
        let stat = self.fs.statfs();
        let st = Kstatfs {
            blocks: stat.blocks,
            bfree: stat.free,
            bavail: stat.available,
            files: stat.inodes,
            ffree: stat.free_inodes,
            bsize: stat.block_size,
            namelen: 255,
            frsize: stat.block_size,
            padding: 0,
            spare: [0; 6],
        };
        answer.put(&StatfsOut { st });
    }

    fn read_dir(&self, node: u64, request: &Request<'_>, answer: &mut Answer) -> ext4::Result<()> {
        let (read, _): (ReadIn, _) = args(request)?;
        let room = (read.size as usize).min(MAX_DATA);
        self.fs.read_dir(&*self.inode(node)?, read.offset, &mut |entry| {
            let len = dirent_len(entry.name.len());
            let fits = answer.body_len() + len <= room;
            if fits {
                put_dirent(answer, entry.ino, entry.next, entry.kind, entry.name);
            }
            fits
        })
    }

    fn read_dir_plus(&self, node: u64, request: &Request<'_>, answer: &mut Answer) -> ext4::Result<()> {
        let (read, _): (ReadIn, _) = args(request)?;
        let room = (read.size as usize).min(MAX_DATA);
        let mut used = 0;
        // Attributes are read afterwards: no inode is locked while the directory is.
        let mut entries = Vec::new();
        let mut failed = None;
        self.fs.read_dir(&*self.inode(node)?, read.offset, &mut |entry| {
            let len = size_of::<EntryOut>() + dirent_len(entry.name.len());
            if used + len > room {
                return false;
            }
            used += len;
            let inode = match entry.name {
                b"." | b".." => None,
                _ => match self.fs.inode(entry.ino) {
                    Ok(inode) => {
                        inode.pin();
                        Some(inode)
                    }
                    Err(error) => {
                        failed = Some(error);
                        None
                    }
                },
            };
            entries.push((inode, entry.ino, entry.next, entry.kind, entry.name.to_vec()));
            true
        })?;
        if let Some(error) = failed {
            eprintln!("ext4d: {error}");
        }
        for (inode, ino, next, kind, name) in entries {
            let out = match inode {
                Some(inode) => entry_of(&inode.stat(), self.block_size()),
                None => EntryOut::default(),
            };
            answer.put(&out);
            put_dirent(answer, ino, next, kind, &name);
        }
        Ok(())
    }

    fn set_xattr(&self, node: u64, request: &Request<'_>, caller: Caller) -> ext4::Result<()> {
        // Size and flags; the longer form is not asked for.
        let ([size, flags], rest): ([u32; 2], _) = args(request)?;
        let (name, value) = text(rest)?;
        let value = value.get(..size as usize).ok_or(Errno::INVAL)?;
        let existing = match flags {
            0 => Existing::Any,
            XATTR_CREATE => Existing::Refused,
            XATTR_REPLACE => Existing::Required,
            _ => return Err(Errno::INVAL.into()),
        };
        self.fs.set_xattr(&*self.inode(node)?, name, Some(value), existing, caller)
    }
}

fn put_dirent(answer: &mut Answer, ino: u32, next: u64, kind: u8, name: &[u8]) {
    let dirent =
        Dirent { ino: ino.into(), off: next, namelen: name.len() as u32, kind: ext4::dirent_type(kind).into() };
    answer.put(&dirent);
    answer.put(name);
    let padding = dirent_len(name.len()) - size_of::<Dirent>() - name.len();
    answer.put(&[0u8; 8][..padding]);
}

/// Answers with bytes, or with how many there are.
fn sized(answer: &mut Answer, room: u32, bytes: &[u8]) -> ext4::Result<()> {
    if room == 0 {
        answer.put(GetxattrOut { size: bytes.len() as u32, padding: 0 }.as_bytes());
        return Ok(());
    }
    if bytes.len() > room as usize {
        return Err(Errno::RANGE.into());
    }
    answer.put(bytes);
    Ok(())
}

fn set_attr(set: &SetattrIn, mode: u32) -> SetAttr {
    let valid = SetattrValid::from_bits_retain(set.valid);
    let time = |to: SetattrValid, now: SetattrValid, sec: u64, nsec: u32| match () {
        () if !now.is_empty() && valid.contains(now) => SetTime::Now,
        () if valid.contains(to) => SetTime::To(Time { sec: sec as i64, nsec: nsec.min(999_999_999) }),
        () => SetTime::Keep,
    };
    let mut new_mode = valid.contains(SetattrValid::MODE).then_some(set.mode);
    if valid.contains(SetattrValid::KILL_SUIDGID) {
        new_mode = Some(new_mode.unwrap_or(mode) & !0o6000);
    }
    SetAttr {
        mode: new_mode,
        uid: valid.contains(SetattrValid::UID).then_some(set.uid),
        gid: valid.contains(SetattrValid::GID).then_some(set.gid),
        size: valid.contains(SetattrValid::SIZE).then_some(set.size),
        atime: time(SetattrValid::ATIME, SetattrValid::ATIME_NOW, set.atime, set.atimensec),
        mtime: time(SetattrValid::MTIME, SetattrValid::MTIME_NOW, set.mtime, set.mtimensec),
        ctime: time(SetattrValid::CTIME, SetattrValid::empty(), set.ctime, set.ctimensec),
    }
}
