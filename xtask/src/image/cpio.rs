//! Writes cpio archives in "newc" format whose file contents all start on a page border.
//!
//! Ursa's kernel takes such an archive's pages over as the pages of its root file system, without copying them. newc has
//! no padding before contents but one: a name may be followed by any number of NULs, which count as part of it. Linux's
//! initramfs reader accepts this, its `gen_init_cpio` has an option for it, and GNU cpio reads it as well. Linux takes names
//! of at most `PATH_MAX` bytes; where the padding would be longer, an entry for `.` goes in between.
//!
//! The last page of a file also holds the header of the next one; a reader that takes pages over reads all headers first
//! and then clears what is behind each file's end.
//!
//! References: Linux `Documentation/driver-api/early-userspace/buffer-format.rst`, `init/initramfs.c`.

use super::tree::{Inode, Kind, Tree};
use anyhow::{Context, Result, bail};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;

/// Contents start at a multiple of this, from the start of the archive.
pub const ALIGNMENT: u64 = 4096;

const HEADER: u64 = 110;
/// The longest name, with its NULs, that Linux reads.
const NAME_MAX: u64 = 4096;

const S_IFIFO: u32 = 0o010000;
const S_IFCHR: u32 = 0o020000;
const S_IFDIR: u32 = 0o040000;
const S_IFBLK: u32 = 0o060000;
const S_IFREG: u32 = 0o100000;
const S_IFLNK: u32 = 0o120000;

/// Writes a tree. The archive's length is a multiple of [`ALIGNMENT`], so that another may follow.
pub fn write(tree: &Tree, output: &mut impl Write) -> Result<()> {
    let mut archive = Writer { output, position: 0 };
    let mut written = std::collections::BTreeSet::new();
    archive.entry(&root(), 1, b".", 2, 0)?;
    for (name, number, inode) in tree.entries() {
        let name = name.as_os_str().as_bytes();
        // Inode 1 is the root's; numbers only have to be distinct.
        let ino = number as u64 + 2;
        match &inode.kind {
            // The first name of a file with several carries the contents, later ones are empty and only link.
            Kind::File(data) if data.len() > 0 && written.insert(number) => {
                let padded = archive.name_space(name)?;
                archive.entry(inode, ino, name, padded, data.len())?;
                let copied = io::copy(&mut data.reader(), archive.output)?;
                if copied != data.len() {
                    bail!("{} became shorter while it was read", String::from_utf8_lossy(name));
                }
                archive.position += copied;
                archive.pad(4)?;
            }
            Kind::Symlink(target) => {
                archive.entry(inode, ino, name, name.len() as u64 + 1, target.len() as u64)?;
                archive.bytes(target)?;
                archive.pad(4)?;
            }
            _ => archive.entry(inode, ino, name, name.len() as u64 + 1, 0)?,
        }
    }
    let trailer = Inode { kind: Kind::Fifo, mode: 0, uid: 0, gid: 0, mtime: 0, links: 1 };
    archive.header(&trailer, 0, 0, b"TRAILER!!!", 11, 0)?;
    archive.pad(ALIGNMENT)?;
    archive.output.flush()?;
    Ok(())
}

fn root() -> Inode {
    Inode { kind: Kind::Folder, mode: 0o755, uid: 0, gid: 0, mtime: 0, links: 1 }
}

struct Writer<'a, W> {
    output: &'a mut W,
    position: u64,
}

impl<W: Write> Writer<'_, W> {
    /// How long the name must be, with its NULs, for the contents to start on a page border.
    fn name_space(&mut self, name: &[u8]) -> Result<u64> {
        loop {
            let least = self.position + HEADER + name.len() as u64 + 1;
            let space = name.len() as u64 + 1 + (least.next_multiple_of(ALIGNMENT) - least);
            if space <= NAME_MAX {
                return Ok(space);
            }
            // The root once more, to get past the border.
            self.entry(&root(), 1, b".", 2, 0)?;
        }
    }

    fn entry(&mut self, inode: &Inode, ino: u64, name: &[u8], name_space: u64, size: u64) -> Result<()> {
        let kind = match inode.kind {
            Kind::Folder => S_IFDIR,
            Kind::File(_) => S_IFREG,
            Kind::Symlink(_) => S_IFLNK,
            Kind::Character(..) => S_IFCHR,
            Kind::Block(..) => S_IFBLK,
            Kind::Fifo => S_IFIFO,
        };
        self.header(inode, ino, kind | inode.mode, name, name_space, size)
    }

    fn header(&mut self, inode: &Inode, ino: u64, mode: u32, name: &[u8], name_space: u64, size: u64) -> Result<()> {
        let (major, minor) = match inode.kind {
            Kind::Character(major, minor) | Kind::Block(major, minor) => (major, minor),
            _ => (0, 0),
        };
        let small = |value: u64, what: &str| -> Result<u32> {
            u32::try_from(value)
                .with_context(|| format!("{}: {what} is too large for cpio", String::from_utf8_lossy(name)))
        };
        let fields = [
            small(ino, "the inode number")?,
            mode,
            inode.uid,
            inode.gid,
            if matches!(inode.kind, Kind::Folder) { 2 } else { inode.links },
            small(inode.mtime, "the time")?,
            small(size, "the file")?,
            0,
            0,
            major,
            minor,
            small(name_space, "the name")?,
            0,
        ];
        let mut text = String::from("070701");
        for field in fields {
            text += &format!("{field:08X}");
        }
        self.bytes(text.as_bytes())?;
        self.bytes(name)?;
        let nuls = name_space - name.len() as u64;
        self.zeros(nuls)?;
        self.pad(4)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn zeros(&mut self, count: u64) -> Result<()> {
        io::copy(&mut io::Read::take(io::repeat(0), count), self.output)?;
        self.position += count;
        Ok(())
    }

    fn pad(&mut self, alignment: u64) -> Result<()> {
        self.zeros(self.position.next_multiple_of(alignment) - self.position)
    }
}

#[cfg(test)]
#[path = "cpio_tests.rs"]
mod tests;
