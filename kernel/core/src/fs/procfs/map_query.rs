//! `PROCMAP_QUERY`: one mapping by its address, asked of an open `/proc/PID/maps`.
//!
//! References: `uapi/linux/fs.h` (`struct procmap_query`), `Documentation/filesystems/proc.rst`, Linux `fs/proc/task_mmu.c`; elf(5) for
//! build ids.

use alloc::{sync::Arc, vec::Vec};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::maps::name_of;
use super::{Text, pid::Target};
use crate::fs::FileKind;
use crate::fs::dev::{major, minor};
use crate::mm::{FileRef, VmFlags, Vma, Vmas};
use crate::user::{self, UserAddr, UserPtr};
use crate::{Errno, Result};

/// `_IOWR('f', 17, struct procmap_query)`
pub(super) const PROCMAP_QUERY: u32 = 0xc068_6611;

const READABLE: u64 = 1;
const WRITABLE: u64 = 2;
const EXECUTABLE: u64 = 4;
const SHARED: u64 = 8;
const COVERING_OR_NEXT: u64 = 0x10;
const FILE_BACKED: u64 = 0x20;
/// Flags of the query, and what they ask of a mapping.
const PERMISSIONS: [(u64, VmFlags); 4] =
    [(READABLE, VmFlags::READ), (WRITABLE, VmFlags::WRITE), (EXECUTABLE, VmFlags::EXEC), (SHARED, VmFlags::MAYSHARE)];
const KNOWN: u64 = READABLE | WRITABLE | EXECUTABLE | SHARED | COVERING_OR_NEXT | FILE_BACKED;

/// The structure's size may be up to a page; `query_addr` is the last field that must be there.
const SIZE_MAX: u64 = 4096;
const SIZE_MIN: u64 = 24;
const PATH_MAX: usize = 4096;

/// `struct procmap_query`.
#[derive(FromBytes, IntoBytes, Immutable, Clone)]
#[repr(C)]
struct Query {
    size: u64,
    flags: u64,
    addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    name_size: u32,
    build_id_size: u32,
    name_addr: u64,
    build_id_addr: u64,
}

/// Answers a query about the mappings of `target`.
///
/// # Errors
/// `ENOENT` when no mapping fits, `EINVAL` for unknown flags and halves of buffers, `E2BIG`, `ENAMETOOLONG` when name or build id do not
/// fit, `ESRCH`, `EFAULT`.
pub(super) fn query(target: &Target, at: UserAddr) -> Result<i64> {
    let size = UserPtr::<u64>::new(at.as_u64()).read()?;
    if size > SIZE_MAX {
        return Err(Errno::E2BIG);
    }
    if size < SIZE_MIN {
        return Err(Errno::EINVAL);
    }
    let mut query: Query = user::read_extensible(at, size as usize)?;
    let is_half = |size: u32, addr: u64| (size == 0) != (addr == 0);
    if query.flags & !KNOWN != 0
        || is_half(query.name_size, query.name_addr)
        || is_half(query.build_id_size, query.build_id_addr)
    {
        return Err(Errno::EINVAL);
    }
    let vm = target.process()?.try_vm().ok_or(Errno::ESRCH)?;
    let mut name = Text::default();
    let file = {
        let vmas = vm.vmas();
        let vma = find(&vmas, &query).ok_or(Errno::ENOENT)?;
        query.describe(vma);
        if query.name_size != 0 {
            name_of(&vmas, vma, &mut name)?;
        }
        vma.file().cloned()
    };
    // Nothing is read from a file while its mapping is locked.
    let file = file.filter(|file| query.build_id_size != 0 && has_contents(file));
    let build_id = file.as_ref().and_then(build_id).unwrap_or_default();
    if build_id.len() > query.build_id_size as usize {
        return Err(Errno::ENAMETOOLONG);
    }
    query.build_id_size = build_id.len() as u32;
    if !name.0.is_empty() {
        name.push('\0');
    }
    if name.0.len() > PATH_MAX.min(query.name_size as usize) {
        return Err(Errno::ENAMETOOLONG);
    }
    query.name_size = name.0.len() as u32;
    user::write_bytes(UserAddr::new(query.name_addr), &name.0)?;
    user::write_bytes(UserAddr::new(query.build_id_addr), &build_id)?;
    let len = size_of::<Query>().min(size as usize);
    user::write_bytes(at, &query.as_bytes()[..len])?;
    Ok(0)
}

/// The mapping that covers the address, or with `COVERING_OR_NEXT` the next one that fits.
fn find<'v>(vmas: &'v Vmas<'_>, query: &Query) -> Option<&'v Vma> {
    let mut addr = query.addr;
    loop {
        let vma = vmas.at_or_above(addr)?;
        let permitted = |(flag, needed): &(u64, VmFlags)| query.flags & flag == 0 || vma.flags.contains(*needed);
        let fits = (query.flags & FILE_BACKED == 0 || vma.file().is_some()) && PERMISSIONS.iter().all(permitted);
        let takes_next = query.flags & COVERING_OR_NEXT != 0;
        if fits && (takes_next || vma.start <= addr) {
            return Some(vma);
        }
        if !takes_next {
            return None;
        }
        addr = vma.end;
    }
}

impl Query {
    fn describe(&mut self, vma: &Vma) {
        (self.vma_start, self.vma_end, self.vma_page_size) = (vma.start, vma.end, 4096);
        let has = |(_, needed): &&(u64, VmFlags)| vma.flags.contains(*needed);
        self.vma_flags = PERMISSIONS.iter().filter(has).map(|(flag, _)| flag).sum();
        let file = vma.file();
        let (dev, ino) = file.and_then(|f| f.inode()).map_or((0, 0), |i| (i.sb.dev, i.ino));
        self.vma_offset = if file.is_some() { vma.pgoff * 4096 } else { 0 };
        (self.dev_major, self.dev_minor, self.inode) = (major(dev), minor(dev), ino);
    }
}

/// The build id of an ELF file: the note `GNU` of type 3 in a segment of its first page, as Linux looks for it.
fn build_id(file: &FileRef) -> Option<Vec<u8>> {
    const PT_NOTE: u32 = 4;
    const NT_GNU_BUILD_ID: u32 = 3;
    const BUILD_ID_MAX: usize = 20;
    const SEGMENT: usize = 56;
    let mut page = alloc::vec![0; 4096];
    let len = file.fill_at(&mut page, 0).ok()?;
    let page = page.get(..len)?;
    let (table, count) = elf_image::Header::parse(page).ok().map(|header| (header.table().0, header.table_count()))?;
    let word = |at: usize| Some(u32::from_le_bytes(*page.get(at..)?.first_chunk()?));
    let long = |at: usize| usize::try_from(u64::from_le_bytes(*page.get(at..)?.first_chunk()?)).ok();
    for index in 0..usize::from(count) {
        let segment = usize::try_from(table).ok()?.checked_add(index * SEGMENT)?;
        if word(segment)? != PT_NOTE {
            continue;
        }
        let (mut at, size) = (long(segment + 8)?, long(segment + 32)?);
        let end = at.checked_add(size)?.min(len);
        while at.checked_add(12)? <= end {
            let (name, desc, kind) = (word(at)? as usize, word(at + 4)? as usize, word(at + 8)?);
            let text = at + 12;
            let value = text.checked_add(name.next_multiple_of(4))?;
            let is_id = kind == NT_GNU_BUILD_ID && page.get(text..text.checked_add(name)?) == Some(b"GNU\0");
            if is_id && (1..=BUILD_ID_MAX).contains(&desc) {
                return page.get(value..value + desc).map(Vec::from);
            }
            at = value.checked_add(desc.next_multiple_of(4))?;
        }
    }
    None
}

/// Whether reading a file tells of nothing but what it holds: no device's, and none that is made as it is read.
fn has_contents(file: &FileRef) -> bool {
    file.inode().is_some_and(|inode| inode.kind == FileKind::Regular && !inode.sb.is_generated())
}

/// `/proc/PID/maps` as a file: its text, and the query.
pub(super) struct MapsFile {
    /// Whose mappings.
    pub target: Target,
}

impl super::Generator for MapsFile {
    fn show(&self, out: &mut Text) -> Result {
        self.target.may_inspect()?;
        super::maps::maps(&self.target, out)
    }

    fn may_open(&self, _write: bool) -> Result {
        self.target.process()?;
        self.target.may_inspect()
    }

    fn ioctl(&self, cmd: u32, arg: usize) -> Result<i64> {
        match cmd {
            PROCMAP_QUERY => {
                // The process may have become somebody else's since the file was opened.
                self.target.may_inspect()?;
                query(&self.target, UserAddr::new(arg as u64))
            }
            _ => Err(Errno::ENOTTY),
        }
    }
}

impl MapsFile {
    /// The inode operations.
    pub fn inode_ops(target: Target) -> alloc::boxed::Box<dyn crate::fs::inode::InodeOps> {
        alloc::boxed::Box::new(super::GeneratedFile(Arc::new(MapsFile { target })))
    }
}
