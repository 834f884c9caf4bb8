//! devpts: the file system whose files are the slaves of pseudo-terminals.
//!
//! Each mount is an instance of its own with its own numbers and its own `ptmx`; `/dev/ptmx` outside of a devpts uses the
//! oldest instance. Options: `mode`, `uid`, `gid`, `ptmxmode`, `max`, `newinstance` (always).
//! Locking: `slaves` is a leaf. References: `Documentation/filesystems/devpts.rst`, `fs/devpts/inode.c`.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use linux_uapi::raw::general as uapi;
use ursa_hal::sync::{Once, SpinLock};

use super::{Tty, pty};
use crate::fs::inode::{Entry, FsStat, NewInode, SbFlags, SuperBlockParams, SuperOps};
use crate::fs::open::{OpenRequest, open_inode};
use crate::fs::path::Lookup;
use crate::fs::{self, DirSink, File, FileOps, FileSystem, Inode, InodeOps, LookupFlags, SuperBlock, mount};
use crate::process::current;
use crate::{Errno, Result};

const MAGIC: u64 = 0x1cd1;
const ROOT_INO: u64 = 1;
const PTMX_INO: u64 = 2;
/// Inode number of slave 0.
const FIRST_SLAVE_INO: u64 = 3;
/// Most pseudo-terminals of an instance (`kernel.pty.max`).
const MAX: u32 = 4096;
/// `DT_CHR`, `DT_DIR`
const DT_CHR: u8 = 2;
const DT_DIR: u8 = 4;

/// Mount options.
#[derive(Clone, Copy)]
struct Options {
    mode: u32,
    uid: Option<u32>,
    gid: Option<u32>,
    ptmxmode: u32,
    max: u32,
}

/// One mounted devpts.
pub struct Instance {
    options: SpinLock<Options>,
    sb: Once<Weak<SuperBlock>>,
    ptmx: Once<Arc<Inode>>,
    /// By number; `None` while a pair is being made.
    slaves: SpinLock<BTreeMap<u32, Option<(Arc<Tty>, Arc<Inode>)>>>,
    count: AtomicU32,
}

static INSTANCES: SpinLock<Vec<Weak<Instance>>> = SpinLock::new(Vec::new());

impl Instance {
    /// Takes the lowest free number.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub fn reserve(&self) -> Result<u32> {
        let max = self.options.lock().max;
        let mut slaves = self.slaves.lock();
        let index = (0..).zip(slaves.keys()).find(|(i, k)| i != *k).map_or(slaves.len() as u32, |(i, _)| i);
        if index >= max {
            return Err(Errno::ENOSPC);
        }
        slaves.insert(index, None);
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok(index)
    }

    /// Makes a slave appear under its number, owned by the calling process.
    pub fn publish(&self, index: u32, slave: &Arc<Tty>) {
        let Some(sb) = self.sb.get().and_then(Weak::upgrade) else { return };
        let options = *self.options.lock();
        let (uid, gid) = current().with_cred(|c| (c.fsuid, c.fsgid));
        let new = NewInode {
            mode: uapi::S_IFCHR | options.mode,
            uid: options.uid.unwrap_or(uid),
            gid: options.gid.unwrap_or(gid),
            rdev: slave.dev,
        };
        let inode = Inode::new(&sb, FIRST_SLAVE_INO + index as u64, &new, Box::new(Node));
        self.slaves.lock().insert(index, Some((slave.clone(), inode)));
    }

    /// Frees a number; the slave's name is gone.
    pub fn remove(&self, index: u32) {
        let gone = self.slaves.lock().remove(&index);
        self.count.fetch_sub(1, Ordering::Relaxed);
        drop(gone);
    }

    fn slave(&self, index: u32) -> Option<(Arc<Tty>, Arc<Inode>)> {
        self.slaves.lock().get(&index).cloned().flatten()
    }

    /// Opens a slave by number for `TIOCGPTPEER`, whatever its name's permissions.
    ///
    /// # Errors
    /// `EIO` when it is gone or locked.
    pub fn open_slave(&self, index: u32, flags: u32) -> Result<Arc<File>> {
        let (tty, inode) = self.slave(index).ok_or(Errno::EIO)?;
        let sb = self.sb.get().and_then(Weak::upgrade).ok_or(Errno::EIO)?;
        let cred = current().cred();
        let named = mount::all().into_iter().find(|m| Arc::ptr_eq(&m.sb, &sb)).and_then(|m| {
            let root = m.root_path();
            Lookup::with_root(&cred, root.clone(), root, LookupFlags::empty())
                .resolve(format!("{index}").as_bytes())
                .ok()
        });
        match named {
            Some(path) => open_inode(path, inode, &OpenRequest::plain(flags)?, true, &cred),
            None => Ok(File::with_inode(pty::open_slave(&tty, flags)?, inode, "pts", flags)),
        }
    }
}

/// The instance that a `ptmx` node belongs to: its own, or the oldest one for a node outside of devpts.
pub fn instance_for(inode: &Inode) -> Option<Arc<Instance>> {
    if let Some(own) = inode.sb.ops_as::<DevPts>() {
        return Some(own.0.clone());
    }
    let mut instances = INSTANCES.lock();
    instances.retain(|i| i.strong_count() > 0);
    instances.iter().find_map(Weak::upgrade)
}

/// The slave behind a devpts inode.
pub fn slave_of(inode: &Inode) -> Option<Arc<Tty>> {
    let instance = &inode.sb.ops_as::<DevPts>()?.0;
    let index = u32::try_from(inode.ino.checked_sub(FIRST_SLAVE_INO)?).ok()?;
    instance.slave(index).map(|(tty, _)| tty)
}

/// The super block's operations.
struct DevPts(Arc<Instance>);

impl SuperOps for DevPts {
    fn statfs(&self, _sb: &SuperBlock) -> Result<FsStat> {
        Ok(FsStat { magic: MAGIC, block_size: 4096, name_max: 255, ..FsStat::default() })
    }

    fn show_options(&self, _sb: &SuperBlock, out: &mut dyn fmt::Write) -> fmt::Result {
        let options = *self.0.options.lock();
        if let Some(uid) = options.uid {
            write!(out, ",uid={uid}")?;
        }
        if let Some(gid) = options.gid {
            write!(out, ",gid={gid}")?;
        }
        write!(out, ",mode={:03o},ptmxmode={:03o}", options.mode, options.ptmxmode)?;
        if options.max < MAX {
            write!(out, ",max={}", options.max)?;
        }
        Ok(())
    }

    fn remount(&self, _sb: &SuperBlock, data: &[u8]) -> Result {
        let options = parse(data)?;
        *self.0.options.lock() = options;
        if let Some(ptmx) = self.0.ptmx.get() {
            ptmx.set_mode(options.ptmxmode);
        }
        Ok(())
    }
}

/// A device node.
struct Node;

impl InodeOps for Node {}

/// The root directory.
struct Root(Arc<Instance>);

impl InodeOps for Root {
    fn lookup(&self, _dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        if name == b"ptmx"
            && let Some(ptmx) = self.0.ptmx.get()
        {
            return Ok(Entry::stable(ptmx.clone()));
        }
        let index = core::str::from_utf8(name).ok().and_then(|n| n.parse::<u32>().ok());
        let canonical = index.filter(|i| format!("{i}").as_bytes() == name);
        match canonical.and_then(|i| self.0.slave(i)) {
            Some((_, inode)) => Ok(Entry::volatile(inode)),
            None => Ok(Entry { inode: None, valid_until: 0 }),
        }
    }

    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Directory(self.0.clone())))
    }
}

/// The open root directory.
struct Directory(Arc<Instance>);

impl FileOps for Directory {
    fn is_stream(&self) -> bool {
        false
    }

    fn can_poll(&self) -> bool {
        false
    }

    fn read(&self, _f: &File, _dst: &mut fs::Sink<'_>, _pos: u64) -> Result<usize> {
        Err(Errno::EISDIR)
    }

    fn seek(&self, _f: &File, offset: i64, whence: u32, pos: u64) -> Result<u64> {
        let base = match whence {
            uapi::SEEK_SET => 0,
            uapi::SEEK_CUR => pos as i64,
            _ => return Err(Errno::EINVAL),
        };
        base.checked_add(offset).and_then(|p| u64::try_from(p).ok()).ok_or(Errno::EINVAL)
    }

    fn readdir(&self, _f: &File, pos: &mut u64, sink: &mut dyn DirSink) -> Result {
        // Position 0, 1, 2: ".", "..", "ptmx"; slave N: 3 + N.
        let fixed: [(&[u8], u64, u8); 3] =
            [(b".", ROOT_INO, DT_DIR), (b"..", ROOT_INO, DT_DIR), (b"ptmx", PTMX_INO, DT_CHR)];
        while let Some((name, ino, kind)) = fixed.get(*pos as usize) {
            if !sink.emit(name, *ino, *kind, *pos + 1) {
                return Ok(());
            }
            *pos += 1;
        }
        loop {
            let from = (*pos - 3) as u32;
            let next = self.0.slaves.lock().range(from..).find(|(_, s)| s.is_some()).map(|(i, _)| *i);
            let Some(index) = next else { return Ok(()) };
            let ino = FIRST_SLAVE_INO + index as u64;
            if !sink.emit(format!("{index}").as_bytes(), ino, DT_CHR, index as u64 + 4) {
                return Ok(());
            }
            *pos = index as u64 + 4;
        }
    }
}

fn parse(data: &[u8]) -> Result<Options> {
    let mut options = Options { mode: 0o600, uid: None, gid: None, ptmxmode: 0, max: MAX };
    for option in data.split(|b| *b == b',').filter(|o| !o.is_empty()) {
        let text = core::str::from_utf8(option).map_err(|_| Errno::EINVAL)?;
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        let number = |radix| u32::from_str_radix(value, radix).map_err(|_| Errno::EINVAL);
        match key {
            "mode" => options.mode = number(8)? & 0o777,
            "uid" => options.uid = Some(number(10)?),
            "gid" => options.gid = Some(number(10)?),
            "ptmxmode" => options.ptmxmode = number(8)? & 0o777,
            "max" => options.max = number(10)?.min(MAX),
            "newinstance" => {}
            _ => return Err(Errno::EINVAL),
        }
    }
    Ok(options)
}

struct DevPtsType;

impl FileSystem for DevPtsType {
    fn name(&self) -> &'static str {
        "devpts"
    }

    fn mount(&self, _source: &[u8], flags: SbFlags, data: &[u8]) -> Result<Arc<SuperBlock>> {
        let options = parse(data)?;
        let instance = Arc::new(Instance {
            options: SpinLock::new(options),
            sb: Once::new(),
            ptmx: Once::new(),
            slaves: SpinLock::new(BTreeMap::new()),
            count: AtomicU32::new(0),
        });
        let params = SuperBlockParams {
            fs_name: "devpts",
            magic: MAGIC,
            attributes_expire: false,
            cache_negative: false,
            flags,
        };
        let sb = SuperBlock::new(params, Box::new(DevPts(instance.clone())));
        let _ = instance.sb.set(Arc::downgrade(&sb));
        let node = |mode, rdev| NewInode { mode, uid: 0, gid: 0, rdev };
        let root = Inode::new(&sb, ROOT_INO, &node(uapi::S_IFDIR | 0o755, 0), Box::new(Root(instance.clone())));
        let ptmx_dev = fs::dev::make_dev(5, 2);
        let ptmx = Inode::new(&sb, PTMX_INO, &node(uapi::S_IFCHR | options.ptmxmode, ptmx_dev), Box::new(Node));
        let _ = instance.ptmx.set(ptmx);
        sb.set_root(root);
        INSTANCES.lock().push(Arc::downgrade(&instance));
        Ok(sb)
    }
}

/// Makes the file system type known.
pub fn register() {
    fs::registry::register(Arc::new(DevPtsType));
}
