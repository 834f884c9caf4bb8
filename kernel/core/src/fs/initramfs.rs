//! Unpacks the boot archive into the root file system.
//!
//! File contents that start on a page in the archive are not copied: the pages become the file's pages
//! ([`BootModule::take_frame`]). The image tools align them so. The rest of a last page, and files that are not aligned,
//! are copied. Pages that no file took are given back when all is unpacked.
//!
//! Reference: `Documentation/driver-api/early-userspace/buffer-format.rst`.

use alloc::{collections::BTreeMap, string::ToString, sync::Arc, vec::Vec};

use cpio::{Entry, Input, Reader};
use linux_uapi::raw::general as uapi;
use ursa_hal::{PAGE_SIZE, boot::BootModule};

use super::{
    dentry::{self, Dentry},
    dev,
    inode::{FileKind, Inode, NewInode, Time},
    mount,
    path::lookup_child_locked,
};
use crate::{Errno, Result, mm::MemoryObject};

struct Module<'a>(&'a BootModule);

impl Input for Module<'_> {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        self.0.read(offset, buf)
    }
}

/// What an unpacking did, for the log.
#[derive(Default)]
struct Totals {
    files: u64,
    adopted: u64,
    copied: u64,
}

/// Unpacks all archives in `module` over the root file system; later ones replace files of earlier ones.
///
/// # Errors
/// A sentence that says what is wrong with the archive. What came before the fault stays.
pub fn unpack(module: BootModule) -> core::result::Result<(), alloc::string::String> {
    let mut totals = Totals::default();
    let result = unpack_all(&module, &mut totals);
    ursa_hal::info!(
        "boot archive: {} files, {} pages in place, {} KiB copied",
        totals.files,
        totals.adopted,
        totals.copied / 1024
    );
    module.release_rest();
    result
}

fn unpack_all(module: &BootModule, totals: &mut Totals) -> core::result::Result<(), alloc::string::String> {
    let root = mount::root().ok_or("there is no root file system")?.root.clone();
    let input = Module(module);
    // Further names of a file, by archive and inode number.
    let mut links: BTreeMap<(u32, u32, (u32, u32)), Arc<Inode>> = BTreeMap::new();
    // Directories get their times last, since entries in them change those.
    let mut directories: Vec<(Arc<Inode>, u32)> = Vec::new();
    let mut result = Ok(());
    for entry in Reader::new(&input) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                result = Err(error.to_string());
                break;
            }
        };
        match unpack_entry(&root, module, &entry, &mut links, totals) {
            Ok(inode) if inode.is_dir() => directories.push((inode, entry.mtime)),
            Ok(inode) => set_time(&inode, entry.mtime),
            Err(Errno::ENOSPC | Errno::ENOMEM) => {
                result = Err("memory is too small for what is in it".to_string());
                break;
            }
            Err(errno) => {
                let name = alloc::string::String::from_utf8_lossy(&entry.name).into_owned();
                ursa_hal::warn!("boot archive: cannot make /{name}: {errno}");
            }
        }
        totals.files += 1;
    }
    for (inode, mtime) in directories {
        set_time(&inode, mtime);
    }
    result
}

fn set_time(inode: &Inode, mtime: u32) {
    let time = Time { sec: i64::from(mtime), nsec: 0 };
    inode.update_times(|t| {
        t.mtime = time;
        t.atime = time;
    });
}

/// Finds or makes the directory of `name`; gives it with the last component.
fn directory<'n>(root: &Arc<Dentry>, name: &'n [u8]) -> Result<(Arc<Dentry>, &'n [u8])> {
    let mut at = root.clone();
    let mut rest = name;
    while let Some(slash) = rest.iter().position(|b| *b == b'/') {
        let part = &rest[..slash];
        rest = &rest[slash + 1..];
        let dir = at.inode().ok_or(Errno::ENOENT)?.clone();
        if !dir.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        let hash = dentry::hash_name(part);
        let guard = dir.lock.write();
        let next = match lookup_child_locked(&at, &dir, hash, part)? {
            Some(next) => next,
            None => {
                let new = NewInode { mode: uapi::S_IFDIR | 0o755, uid: 0, gid: 0, rdev: 0 };
                let made = dir.ops().create(&dir, part, &new)?.inode;
                at.add_child(hash, part, made, u64::MAX)
            }
        };
        drop(guard);
        at = next;
    }
    Ok((at, rest))
}

fn unpack_entry(
    root: &Arc<Dentry>,
    module: &BootModule,
    entry: &Entry,
    links: &mut BTreeMap<(u32, u32, (u32, u32)), Arc<Inode>>,
    totals: &mut Totals,
) -> Result<Arc<Inode>> {
    let kind = FileKind::from_mode(entry.mode).ok_or(Errno::EINVAL)?;
    if entry.name.is_empty() {
        let inode = root.inode().ok_or(Errno::ENOENT)?.clone();
        inode.set_mode(entry.mode);
        inode.set_owner(entry.uid, entry.gid);
        return Ok(inode);
    }
    let (at, name) = directory(root, &entry.name)?;
    let dir = at.inode().ok_or(Errno::ENOENT)?.clone();
    if !dir.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    if name.len() > dir.sb.name_max {
        return Err(Errno::ENAMETOOLONG);
    }
    let hash = dentry::hash_name(name);
    let _guard = dir.lock.write();
    if let Some(old) = lookup_child_locked(&at, &dir, hash, name)? {
        let inode = old.inode().ok_or(Errno::ENOENT)?.clone();
        if inode.is_dir() && kind == FileKind::Directory {
            inode.set_mode(entry.mode);
            inode.set_owner(entry.uid, entry.gid);
            return Ok(inode);
        }
        if inode.is_dir() {
            dir.ops().rmdir(&dir, name, &inode)?;
        } else {
            dir.ops().unlink(&dir, name, &inode)?;
        }
        drop(at.remove_child(hash, name, true));
    }
    let key = (entry.archive, entry.ino, entry.dev);
    let shared = entry.nlink > 1 && kind != FileKind::Directory;
    let known = if shared { links.get(&key).cloned() } else { None };
    let inode = match known {
        Some(inode) => {
            dir.ops().link(&dir, name, &inode)?;
            inode
        }
        None => {
            let new = NewInode {
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                rdev: dev::make_dev(entry.rdev.0, entry.rdev.1),
            };
            let made = match kind {
                FileKind::Symlink => {
                    let mut target = alloc::vec![0; usize::try_from(entry.size.min(4096)).unwrap_or(0)];
                    module.read(entry.data, &mut target);
                    while target.last() == Some(&0) {
                        target.pop();
                    }
                    dir.ops().symlink(&dir, name, &target, &new)?
                }
                _ => dir.ops().create(&dir, name, &new)?,
            };
            let inode = made.inode.ok_or(Errno::EIO)?;
            if shared {
                links.insert(key, inode.clone());
            }
            inode
        }
    };
    at.add_child(hash, name, Some(inode.clone()), u64::MAX);
    // Of several names of a file, the one that has the contents may come first or last.
    if kind == FileKind::Regular && entry.size > 0 {
        let object = inode.ops().memory_object(&inode).ok_or(Errno::EIO)?;
        fill(&object, module, entry, totals)?;
    }
    Ok(inode)
}

/// Gives the file its contents: whole aligned pages by adoption, the rest by copy.
fn fill(object: &Arc<MemoryObject>, module: &BootModule, entry: &Entry, totals: &mut Totals) -> Result {
    const PAGE: u64 = PAGE_SIZE as u64;
    object.set_size(entry.size)?;
    let mut done = 0;
    if entry.data.is_multiple_of(PAGE) {
        let first = entry.data / PAGE;
        while done + PAGE <= entry.size {
            let Some(frame) = module.take_frame(first + done / PAGE) else { break };
            object.insert_page(done / PAGE, frame)?;
            totals.adopted += 1;
            done += PAGE;
        }
    }
    let mut buf = alloc::vec![0u8; PAGE_SIZE];
    while done < entry.size {
        let want = (entry.size - done).min(PAGE) as usize;
        let n = module.read(entry.data + done, &mut buf[..want]);
        if n == 0 {
            break;
        }
        object.write(done, &mut super::io::Source::kernel(&buf[..n]))?;
        totals.copied += n as u64;
        done += n as u64;
    }
    Ok(())
}
