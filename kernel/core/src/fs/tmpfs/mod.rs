//! tmpfs: files in memory objects, directories in hash tables.
//!
//! Mount options: `size`, `nr_blocks`, `nr_inodes`, `mode`, `uid`, `gid`, `huge` (accepted). The root file system that the
//! initramfs is unpacked into is a tmpfs without limits, and devtmpfs is one with node creation from the kernel. So is ramfs, which has
//! the option `mode` alone.
//!
//! References: tmpfs(5), `Documentation/filesystems/tmpfs.rst`.

pub mod dir;
mod node;
pub(super) mod xattr;

use alloc::{boxed::Box, sync::Arc};
use core::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
};

use linux_uapi::raw::general as uapi;
pub use node::TmpNode;

use super::handle::HandleKind;
use super::inode::{FileSystem, FsStat, Inode, NewInode, SbFlags, SuperBlock, SuperBlockParams, SuperOps};
use crate::{Errno, Result, mm::Charge};

/// `TMPFS_MAGIC`
pub const MAGIC: u64 = 0x0102_1994;
/// `RAMFS_MAGIC`
const RAMFS_MAGIC: u64 = 0x8584_58f6;
const RAMFS_NAME: &str = "ramfs";

const PAGE: u64 = 4096;

/// Limits and counters of one tmpfs.
pub struct Tmpfs {
    /// Pages in use, with the limit.
    pub(super) charge: Arc<Charge>,
    /// Pages allowed; 0 is no limit.
    max_pages: AtomicU64,
    inodes: AtomicU64,
    /// Inodes allowed; 0 is no limit.
    max_inodes: AtomicU64,
    root_mode: u32,
    is_ramfs: bool,
}

/// Mount options.
#[derive(Clone, Copy, Debug, Default)]
struct Options {
    size: Option<u64>,
    inodes: Option<u64>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
}

/// A number with a `k`, `m`, `g`, `t` suffix, or a percentage of memory for sizes.
fn parse_size(text: &[u8], percent_of: Option<u64>) -> Result<u64> {
    let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let value: u64 = text[..digits].parse().map_err(|_| Errno::EINVAL)?;
    let shift = match &text[digits..] {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "%" => {
            let total = percent_of.ok_or(Errno::EINVAL)?;
            return Ok(total / 100 * value);
        }
        _ => return Err(Errno::EINVAL),
    };
    value.checked_mul(1 << shift).ok_or(Errno::EINVAL)
}

fn parse_number(text: &[u8], radix: u32) -> Result<u32> {
    let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
    u32::from_str_radix(text, radix).map_err(|_| Errno::EINVAL)
}

fn parse_options(data: &[u8]) -> Result<Options> {
    let mut options = Options::default();
    let memory = ursa_hal::mm::stats().total as u64 * PAGE;
    for option in data.split(|b| *b == b',').filter(|o| !o.is_empty()) {
        let split = option.iter().position(|b| *b == b'=');
        let (key, value) = split.map_or((option, &[][..]), |at| (&option[..at], &option[at + 1..]));
        match key {
            b"size" => options.size = Some(parse_size(value, Some(memory))?),
            b"nr_blocks" => options.size = Some(parse_size(value, None)?.checked_mul(PAGE).ok_or(Errno::EINVAL)?),
            b"nr_inodes" => options.inodes = Some(parse_size(value, None)?),
            b"mode" => options.mode = Some(parse_number(value, 8)? & 0o7777),
            b"uid" => options.uid = Some(parse_number(value, 10)?),
            b"gid" => options.gid = Some(parse_number(value, 10)?),
            b"huge" | b"mpol" | b"inode64" | b"inode32" | b"noswap" => {}
            _ => return Err(Errno::EINVAL),
        }
    }
    Ok(options)
}

impl Tmpfs {
    /// Makes a tmpfs with an empty root directory. Zero limits mean none.
    pub fn create(
        fs_name: &'static str,
        max_pages: u64,
        max_inodes: u64,
        root: &NewInode,
        flags: SbFlags,
    ) -> Arc<SuperBlock> {
        let limit = if max_pages == 0 { u64::MAX } else { max_pages };
        let ops = Box::new(Tmpfs {
            charge: Arc::new(Charge::with_limit(limit)),
            max_pages: AtomicU64::new(max_pages),
            inodes: AtomicU64::new(0),
            max_inodes: AtomicU64::new(max_inodes),
            root_mode: root.mode & 0o7777,
            is_ramfs: fs_name == RAMFS_NAME,
        });
        let magic = if fs_name == RAMFS_NAME { RAMFS_MAGIC } else { MAGIC };
        let params = SuperBlockParams { fs_name, magic, attributes_expire: false, cache_negative: false, flags };
        let sb = SuperBlock::new(params, ops);
        let inode = TmpNode::make(&sb, root, None).unwrap_or_else(|_| unreachable!("the first inode fits any limit"));
        sb.set_root(inode);
        sb
    }

    /// Counts a new inode.
    fn take_inode(&self) -> Result {
        let max = self.max_inodes.load(Ordering::Relaxed);
        let limit = if max == 0 { u64::MAX } else { max };
        self.inodes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then_some(n + 1))
            .map(|_| ())
            .map_err(|_| Errno::ENOSPC)
    }

    fn put_inode(&self) {
        self.inodes.fetch_sub(1, Ordering::Relaxed);
    }
}

impl SuperOps for Tmpfs {
    fn handle_kind(&self) -> Option<HandleKind> {
        Some(HandleKind::Shmem)
    }

    fn has_acls(&self) -> bool {
        !self.is_ramfs
    }

    fn statfs(&self, _sb: &SuperBlock) -> Result<FsStat> {
        let max = self.max_pages.load(Ordering::Relaxed);
        let used = self.charge.pages();
        let (blocks, free) = if max == 0 { (0, 0) } else { (max, max.saturating_sub(used)) };
        let max_inodes = self.max_inodes.load(Ordering::Relaxed);
        Ok(FsStat {
            magic: if self.is_ramfs { RAMFS_MAGIC } else { MAGIC },
            block_size: PAGE,
            blocks,
            free,
            available: free,
            files: max_inodes,
            files_free: max_inodes.saturating_sub(self.inodes.load(Ordering::Relaxed)),
            name_max: 255,
        })
    }

    fn show_options(&self, sb: &SuperBlock, out: &mut dyn Write) -> core::fmt::Result {
        if self.is_ramfs {
            return if self.root_mode == 0o755 { Ok(()) } else { write!(out, ",mode={:o}", self.root_mode) };
        }
        let max = self.max_pages.load(Ordering::Relaxed);
        if max != 0 {
            write!(out, ",size={}k", max * (PAGE / 1024))?;
        }
        let inodes = self.max_inodes.load(Ordering::Relaxed);
        if inodes != 0 {
            write!(out, ",nr_inodes={inodes}")?;
        }
        if self.root_mode != 0o1777 {
            write!(out, ",mode={:03o}", self.root_mode)?;
        }
        if let Ok(root) = sb.root()
            && let Some(inode) = root.inode()
        {
            if inode.uid() != 0 {
                write!(out, ",uid={}", inode.uid())?;
            }
            if inode.gid() != 0 {
                write!(out, ",gid={}", inode.gid())?;
            }
        }
        out.write_str(",inode64")
    }

    fn remount(&self, _sb: &SuperBlock, data: &[u8]) -> Result {
        if self.is_ramfs {
            return Ok(());
        }
        let options = parse_options(data)?;
        if let Some(size) = options.size {
            let pages = size.div_ceil(PAGE);
            if pages != 0 && pages < self.charge.pages() {
                return Err(Errno::EINVAL);
            }
            self.max_pages.store(pages, Ordering::Relaxed);
            self.charge.set_limit(if pages == 0 { u64::MAX } else { pages });
        }
        if let Some(inodes) = options.inodes {
            if inodes != 0 && inodes < self.inodes.load(Ordering::Relaxed) {
                return Err(Errno::EINVAL);
            }
            self.max_inodes.store(inodes, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The type `tmpfs`.
pub struct TmpfsType;

impl FileSystem for TmpfsType {
    fn name(&self) -> &'static str {
        "tmpfs"
    }

    fn mount(&self, _source: &[u8], flags: SbFlags, data: &[u8]) -> Result<Arc<SuperBlock>> {
        let options = parse_options(data)?;
        let half = ursa_hal::mm::stats().total as u64 / 2;
        let (uid, gid) = crate::process::current().with_cred(|c| (c.fsuid, c.fsgid));
        let root = NewInode {
            mode: uapi::S_IFDIR | options.mode.unwrap_or(0o1777),
            uid: options.uid.unwrap_or(uid),
            gid: options.gid.unwrap_or(gid),
            rdev: 0,
        };
        let pages = options.size.map_or(half, |s| s.div_ceil(PAGE));
        Ok(Tmpfs::create("tmpfs", pages, options.inodes.unwrap_or(half), &root, flags))
    }
}

/// The type `ramfs`: a tmpfs without limits. Options that it does not know are ignored, as on Linux.
pub struct RamfsType;

impl FileSystem for RamfsType {
    fn name(&self) -> &'static str {
        RAMFS_NAME
    }

    fn mount(&self, _source: &[u8], flags: SbFlags, data: &[u8]) -> Result<Arc<SuperBlock>> {
        let mut mode = 0o755;
        for option in data.split(|b| *b == b',') {
            if let Some(value) = option.strip_prefix(b"mode=") {
                mode = parse_number(value, 8)? & 0o7777;
            }
        }
        let (uid, gid) = crate::process::current().with_cred(|c| (c.fsuid, c.fsgid));
        let root = NewInode { mode: uapi::S_IFDIR | mode, uid, gid, rdev: 0 };
        Ok(Tmpfs::create(RAMFS_NAME, 0, 0, &root, flags))
    }
}

/// The limits of the tmpfs that `inode` lives in.
fn fs_of(inode: &Inode) -> Result<&Tmpfs> {
    inode.sb.ops_as::<Tmpfs>().ok_or(Errno::EIO)
}
