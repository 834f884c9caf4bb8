//! `/proc/PID/map_files`: a link to the file of each mapping that has one, named by its addresses. Reference: proc_pid_map_files(5).

use alloc::{boxed::Box, format, sync::Arc, vec::Vec};

use linux_uapi::raw::general as uapi;

use super::{
    node::Link,
    pid::{Target, ino, jump, make_owned},
};
use crate::fs::Listing;
use crate::{
    Errno, Result,
    fs::{
        anon,
        file::{DirSink, File, FileMode, FileOps},
        inode::{Entry, FileKind, Inode, InodeOps, inode_of},
    },
};

/// The directory.
pub struct MapFilesDir {
    /// Whose.
    pub target: Target,
}

/// An address as the names have it: hexadecimal, lower case, without leading zeroes.
fn address(text: &str) -> Option<u64> {
    let value = u64::from_str_radix(text, 16).ok()?;
    (format!("{value:x}") == text).then_some(value)
}

fn parse(name: &[u8]) -> Option<(u64, u64)> {
    let (start, end) = core::str::from_utf8(name).ok()?.split_once('-')?;
    Some((address(start)?, address(end)?))
}

/// The file of the mapping from `start` to `end`.
fn file_of(target: &Target, start: u64, end: u64) -> Result<Arc<File>> {
    let vm = target.process()?.try_vm().ok_or(Errno::ENOENT)?;
    let vmas = vm.vmas();
    let found = vmas.iter().find(|vma| (vma.start, vma.end) == (start, end));
    found.and_then(|vma| vma.file().cloned()).ok_or(Errno::ENOENT)
}

/// A number for the link of the mapping at `start`.
fn number(target: &Target, start: u64) -> u64 {
    ino(target.id(), 0) ^ start << 12
}

impl InodeOps for MapFilesDir {
    fn lookup(&self, dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        self.target.may_inspect()?;
        let (start, end) = parse(name).ok_or(Errno::ENOENT)?;
        let file = file_of(&self.target, start, end)?;
        let mut mode = uapi::S_IFLNK;
        for (bit, bits) in [(FileMode::READ, 0o400), (FileMode::WRITE, 0o200)] {
            if file.mode().contains(bit) {
                mode |= bits;
            }
        }
        let target = self.target.clone();
        let ops = Link(move || {
            target.may_inspect()?;
            jump(anon::path_of(&file_of(&target, start, end)?)?)
        });
        Ok(Entry::volatile(make_owned(&dir.sb, &self.target, number(&self.target, start), mode, Box::new(ops))))
    }

    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        self.target.may_inspect()?;
        Ok(Arc::new(Listing::new(|f: &File, pos: &mut u64, sink: &mut dyn DirSink| {
            let dir = inode_of(f)?.ops_as::<MapFilesDir>().ok_or(Errno::EIO)?;
            let Some(vm) = dir.target.process().map_err(|_| Errno::ENOENT)?.try_vm() else { return Ok(()) };
            // The list goes to the program, whose pages may have to be brought in, only when the address space is free again.
            let vmas = vm.vmas();
            let mapped: Vec<(u64, u64)> =
                vmas.iter().filter(|vma| vma.file().is_some()).map(|vma| (vma.start, vma.end)).collect();
            drop(vmas);
            // Positions are addresses, so that mappings that come and go between two reads do not repeat or skip others.
            let from = *pos;
            for (start, end) in mapped.into_iter().filter(|(start, _)| start + 2 >= from) {
                let name = format!("{start:x}-{end:x}");
                let ino = number(&dir.target, start);
                if !sink.emit(name.as_bytes(), ino, FileKind::Symlink.dirent_type(), start + 3) {
                    break;
                }
                *pos = start + 3;
            }
            Ok(())
        })))
    }
}
