//! `/scheme/NAME/DEVICE`, where every scheme hangs, and `/proc/scheme/NAME`, what it is doing.
//!
//! The file system type `schemefs` has one instance, which the kernel mounts on `/scheme` of its first root and which may be
//! mounted elsewhere. Its nodes are device nodes like those of devtmpfs, with the owner and mode of their publication.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt::Write;

use fuse_abi::Opcode;
use linux_uapi::raw::general as uapi;
use ursa_hal::sync::{Once, SpinLock};

use super::{Connection, DeviceServer};
use crate::fs::Listing;
use crate::fs::inode::{Entry, FileSystem, FsStat, InodeOps, NewInode, SbFlags, SuperBlockParams, SuperOps, inode_of};
use crate::fs::mount::{self, MountFlags};
use crate::fs::path::lookup_child_locked;
use crate::fs::procfs::node::{FixedDir, GeneratedFile, make};
use crate::fs::procfs::{self, Text};
use crate::fs::{DirSink, File, FileKind, FileOps, Inode, Mount, Path, SuperBlock, dentry, registry};
use crate::{Errno, Result};

/// `statfs`'s number of the type: "urschem" in ASCII.
const MAGIC: u64 = 0x7572_7363;

/// The schemes that have a name, with their directories.
static NAMES: SpinLock<BTreeMap<String, Weak<Connection>>> = SpinLock::new(BTreeMap::new());

struct SchemeSuper;

impl SuperOps for SchemeSuper {
    fn statfs(&self, _sb: &SuperBlock) -> Result<FsStat> {
        Ok(FsStat { magic: MAGIC, block_size: 4096, name_max: 255, ..FsStat::default() })
    }
}

/// A directory whose entries come and go by themselves.
#[derive(Default)]
struct SchemeDir(FixedDir);

impl InodeOps for SchemeDir {
    fn lookup(&self, _dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        self.0.get(name).map(Entry::volatile).ok_or(Errno::ENOENT)
    }

    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Listing::new(|f: &File, pos: &mut u64, sink: &mut dyn DirSink| {
            inode_of(f)?.ops_as::<SchemeDir>().ok_or(Errno::EIO)?.0.list(2, pos, sink);
            Ok(())
        })))
    }
}

fn new_directory() -> Arc<Inode> {
    let sb = instance();
    make(sb, sb.next_ino(), uapi::S_IFDIR | 0o755, Box::new(SchemeDir::default()))
}

/// A device node: opening it is the device's business.
struct DeviceNode;

impl InodeOps for DeviceNode {}

struct SchemeFs;

impl FileSystem for SchemeFs {
    fn name(&self) -> &'static str {
        "schemefs"
    }

    fn mount(&self, _source: &[u8], _flags: SbFlags, _data: &[u8]) -> Result<Arc<SuperBlock>> {
        Ok(instance().clone())
    }
}

fn instance() -> &'static Arc<SuperBlock> {
    static INSTANCE: Once<Arc<SuperBlock>> = Once::new();
    INSTANCE.call_once(|| {
        let params = SuperBlockParams {
            fs_name: "schemefs",
            magic: MAGIC,
            attributes_expire: false,
            cache_negative: false,
            flags: SbFlags::empty(),
        };
        let sb = SuperBlock::new(params, Box::new(SchemeSuper));
        sb.mounts.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        let ino = sb.next_ino();
        sb.set_root(make(&sb, ino, uapi::S_IFDIR | 0o755, Box::new(SchemeDir::default())));
        sb
    })
}

/// Runs `f` on the entries of the root, or of a scheme's directory.
fn with_entries(scheme: Option<&str>, f: impl FnOnce(&FixedDir)) {
    let Some(root) = instance().root().ok().and_then(|dentry| dentry.inode().cloned()) else { return };
    let inode = match scheme {
        None => Some(root),
        Some(name) => root.ops_as::<SchemeDir>().and_then(|dir| dir.0.get(name.as_bytes())),
    };
    if let Some(dir) = inode.as_ref().and_then(|inode| inode.ops_as::<SchemeDir>()) {
        f(&dir.0);
    }
}

/// Registers the type and mounts it on `/scheme`; makes `/proc/scheme`.
///
/// # Errors
/// What making the directory gives.
pub(super) fn init() -> Result {
    registry::register(Arc::new(SchemeFs));
    let mount = Mount::of(instance().clone(), b"scheme", MountFlags::NOSUID | MountFlags::NOEXEC)?;
    mount::attach(&mount, &boot_directory(b"scheme")?)?;
    procfs::register_inode("scheme", uapi::S_IFDIR | 0o555, Box::new(ProcSchemes))
}

/// Finds or makes a directory of the first root.
fn boot_directory(name: &[u8]) -> Result<Path> {
    let mount = mount::root().ok_or(Errno::ENOENT)?;
    let dir = mount.root.inode().ok_or(Errno::ENOENT)?.clone();
    let hash = dentry::hash_name(name);
    let _guard = dir.lock.write();
    let found = match lookup_child_locked(&mount.root, &dir, hash, name)? {
        Some(found) => found,
        None => {
            let new = NewInode { mode: uapi::S_IFDIR | 0o755, uid: 0, gid: 0, rdev: 0 };
            let entry = dir.ops().create(&dir, name, &new)?;
            let inode = entry.inode.ok_or(Errno::EIO)?;
            mount.root.add_child(hash, name, Some(inode), entry.valid_until)
        }
    };
    Ok(Path { mount: mount.clone(), dentry: found })
}

/// Gives a connection its name.
///
/// # Errors
/// `EEXIST`.
pub(super) fn add(connection: &Arc<Connection>) -> Result {
    let name = connection.name();
    {
        let mut names = NAMES.lock();
        if names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        names.insert(name.to_string(), Arc::downgrade(connection));
    }
    with_entries(None, |root| root.insert(name, new_directory()));
    Ok(())
}

/// Shows a mount's connection in `/proc/scheme`, unless its name is taken.
pub(crate) fn add_mount(connection: &Arc<Connection>) {
    NAMES.lock().entry(connection.name().to_string()).or_insert_with(|| Arc::downgrade(connection));
}

/// Takes the name of a connection that has ended back.
pub(crate) fn forget(connection: &Connection) {
    let name = connection.name();
    if !NAMES.lock().get(name).is_some_and(|known| core::ptr::eq(known.as_ptr(), connection)) {
        return;
    }
    // First the directory: the name is free for another afterwards only.
    with_entries(None, |root| drop(root.remove(name)));
    let gone = NAMES.lock().remove(name);
    drop(gone);
}

/// Shows a device in its scheme's directory.
pub(super) fn add_node(scheme: &str, name: &str, mode: u32, dev: u32, uid: u32, gid: u32) {
    with_entries(Some(scheme), |entries| {
        let sb = instance();
        let new = NewInode { mode, uid, gid, rdev: dev };
        entries.insert(name, Inode::new(sb, sb.next_ino(), &new, Box::new(DeviceNode)));
    });
}

/// Takes it away.
pub(super) fn remove_node(scheme: &str, name: &str) {
    with_entries(Some(scheme), |entries| drop(entries.remove(name)));
}

/// `/proc/scheme`: a file for each name.
struct ProcSchemes;

impl InodeOps for ProcSchemes {
    fn lookup(&self, dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        let name = core::str::from_utf8(name).map_err(|_| Errno::ENOENT)?;
        let connection = NAMES.lock().get(name).cloned().ok_or(Errno::ENOENT)?;
        let show = move |out: &mut Text| show(&*connection.upgrade().ok_or(Errno::ENOENT)?, out);
        let file = Box::new(GeneratedFile(Arc::new(show)));
        Ok(Entry::volatile(make(&dir.sb, dir.sb.next_ino(), uapi::S_IFREG | 0o444, file)))
    }

    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Listing::new(|f: &File, pos: &mut u64, sink: &mut dyn DirSink| {
            let names: Vec<String> = NAMES.lock().keys().cloned().collect();
            let ino = inode_of(f)?.ino;
            for (name, at) in names.iter().zip(2u64..).skip(pos.saturating_sub(2) as usize) {
                if !sink.emit(name.as_bytes(), ino, FileKind::Regular.dirent_type(), at + 1) {
                    break;
                }
                *pos = at + 1;
            }
            Ok(())
        })))
    }
}

/// `/proc/scheme/NAME`.
fn show(connection: &Connection, out: &mut Text) -> Result {
    let fail = |_| Errno::EIO;
    if let Some(server) = connection.owner_as::<DeviceServer>() {
        let extensions = server.extensions().bits();
        writeln!(out, "extensions {extensions:#x} resumable {}", u8::from(server.is_resumable())).map_err(fail)?;
    }
    writeln!(out, "answered {}", connection.answered()).map_err(fail)?;
    for (opcode, count) in connection.asked() {
        writeln!(out, "asked {} {count}", Name(opcode)).map_err(fail)?;
    }
    let (retained, bytes) = connection.retained();
    if retained > 0 {
        writeln!(out, "retained {retained} bytes {bytes}").map_err(fail)?;
    }
    writeln!(out, "unique opcode node age_us state caller server").map_err(fail)?;
    for request in connection.snapshot() {
        let state = match (request.sent, request.interrupted) {
            (false, _) => "pending",
            (true, false) => "sent",
            (true, true) => "interrupted",
        };
        write!(out, "{} {} ", request.unique, Name(request.opcode)).map_err(fail)?;
        let (node, age) = (request.node, request.age_ns / 1000);
        writeln!(out, "{node} {age} {state} {} {}", request.caller, request.server).map_err(fail)?;
    }
    for record in connection.last_words() {
        write!(out, "before: {} {} {} ", record.unique, Name(record.opcode), record.node).map_err(fail)?;
        match record.answer {
            Some(error) => writeln!(out, "answered {error}").map_err(fail)?,
            None => writeln!(out, "not answered").map_err(fail)?,
        }
    }
    Ok(())
}

/// A request's name, or its number.
struct Name(u32);

impl core::fmt::Display for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match Opcode::from_raw(self.0) {
            Some(opcode) => write!(f, "{opcode:?}"),
            None => write!(f, "{}", self.0),
        }
    }
}
