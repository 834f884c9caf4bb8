//! Root disks: ext4 from a folder with `mke2fs -d`, no loop device; and trees laid over what is on one.
//!
//! One disk serves both kernels. Debian's own tools make the file system, so that what `ext4d` mounts is what a person's disk
//! holds; programs of this checkout are laid over it by `libs/ext4`, the library under `ext4d`, which also replays the journal of
//! a disk whose machine was switched off.

use super::tree::{Kind, Tree};
use crate::shell;
use anyhow::{Context, Result, bail};
use ext4::{BlockDevice, Caller, Fs, Inode, SetAttr, SetTime, Time};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Free space on the disk beyond its files, in bytes. It costs nothing until it is used.
const ROOM: u64 = 2 << 30;

/// Makes a disk from a tar archive. Without root, fakeroot keeps owners and devices.
pub fn make(tar: &Path, disk: &Path) -> Result<()> {
    shell::step(format!("writing {}", disk.display()));
    let folder = disk.parent().context("a disk file has a folder")?;
    let work = tempfile::tempdir_in(folder)?;
    let (root, unfinished) = (work.path().join("root"), work.path().join("disk"));
    std::fs::create_dir(&root)?;
    let size = (tar.metadata()?.len() * 5 / 4 + ROOM).next_multiple_of(1 << 20) >> 10;
    // One shell, because fakeroot's memory of owners lasts as long as one command. The arguments arrive as $1 to $4.
    let script = "set -e; PATH=$PATH:/usr/sbin:/sbin; tar -xpf \"$1\" -C \"$2\" --numeric-owner; chmod 755 \"$2\"; \
                  mke2fs -q -F -t ext4 -E root_owner=0:0 -d \"$2\" \"$3\" \"$4k\"; rm -rf \"$2\"";
    let mut command = Command::new(if shell::is_root() { "sh" } else { "fakeroot" });
    if !shell::is_root() {
        command.arg("sh");
    }
    command.args(["-c", script, "sh"]).arg(tar).arg(&root).arg(&unfinished).arg(size.to_string());
    shell::run_quietly(&mut command)?;
    std::fs::rename(&unfinished, disk)?;
    Ok(())
}

/// Copies a disk with its holes, and lays a tree over it.
pub fn derive(from: &Path, tree: &Tree, to: &Path) -> Result<()> {
    let folder = to.parent().context("a disk file has a folder")?;
    let staging = tempfile::NamedTempFile::new_in(folder)?;
    let mut copy = Command::new("cp");
    copy.args(["--sparse=always", "--reflink=auto"]).arg(from).arg(staging.path());
    shell::run_quietly(&mut copy)?;
    lay_over(staging.path(), tree)?;
    staging.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    staging.persist(to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(())
}

/// Lays a tree over the file system on a disk: folders that are there keep their attributes, all else replaces what is there.
pub fn lay_over(disk: &Path, tree: &Tree) -> Result<()> {
    let lay = || -> Result<()> {
        let device = Image(File::options().read(true).write(true).open(disk)?);
        let fs = Fs::mount(Arc::new(device), &ext4::Options::default())?;
        if fs.is_read_only() {
            bail!("it has features that cannot be written");
        }
        let mut layer = Layer { fs: &fs, folders: HashMap::from([(PathBuf::new(), fs.root()?)]) };
        for (name, _, inode) in tree.entries() {
            layer.put(name, inode).with_context(|| name.display().to_string())?;
        }
        fs.unmount()?;
        Ok(())
    };
    lay().with_context(|| disk.display().to_string())
}

/// The UUID of the ext4 on a disk, in its text form.
pub fn uuid(disk: &Path) -> Result<String> {
    let mut superblock = [0; 1024];
    File::open(disk)?.read_exact_at(&mut superblock, 1024).with_context(|| disk.display().to_string())?;
    if superblock[56..58] != [0x53, 0xef] {
        bail!("{} holds no ext4", disk.display());
    }
    let hex: String = superblock[104..120].iter().map(|byte| format!("{byte:02x}")).collect();
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

/// A disk's file. What is flushed is not waited for: when the host fails, it is made anew.
struct Image(File);

impl BlockDevice for Image {
    fn size(&self) -> u64 {
        self.0.metadata().map_or(0, |data| data.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }

    fn write_vectored_at(&self, mut offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        for piece in pieces {
            self.0.write_all_at(piece, offset)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// How much of a file is written at once.
const PIECE: usize = 1 << 20;

struct Layer<'a> {
    fs: &'a Fs,
    folders: HashMap<PathBuf, Arc<Inode>>,
}

impl Layer<'_> {
    fn put(&mut self, name: &Path, inode: &super::tree::Inode) -> Result<()> {
        let above = name.parent().unwrap_or(Path::new(""));
        let dir = self.folders.get(above).context("its folder is missing")?.clone();
        let last = name.file_name().context("it has no name")?.as_bytes();
        let caller = Caller { uid: inode.uid, gid: inode.gid };
        let there = match self.fs.lookup(&dir, last) {
            Ok(there) => Some(there),
            Err(error) if error.errno() == ext4::Errno::NOENT => None,
            Err(error) => return Err(error.into()),
        };
        if let (Kind::Folder, Some(there)) = (&inode.kind, &there) {
            if there.stat().mode & ext4::S_IFMT != ext4::S_IFDIR {
                bail!("it is there and no folder");
            }
            self.folders.insert(name.to_owned(), there.clone());
            return Ok(());
        }
        if let Some(there) = there {
            self.fs.unlink(&dir, last)?;
            self.fs.unpin(&there, 1)?;
        }
        let mode = inode.mode & 0o7777;
        let device = |major, minor| rustix::fs::makedev(major, minor) as u32;
        let made = match &inode.kind {
            Kind::Folder => self.fs.mkdir(&dir, last, mode, caller)?,
            Kind::Symlink(target) => self.fs.symlink(&dir, last, target, caller)?,
            Kind::File(_) => self.fs.create(&dir, last, ext4::S_IFREG | mode, 0, caller)?,
            Kind::Fifo => self.fs.create(&dir, last, ext4::S_IFIFO | mode, 0, caller)?,
            Kind::Character(major, minor) => {
                self.fs.create(&dir, last, ext4::S_IFCHR | mode, device(*major, *minor), caller)?
            }
            Kind::Block(major, minor) => {
                self.fs.create(&dir, last, ext4::S_IFBLK | mode, device(*major, *minor), caller)?
            }
        };
        if let Kind::File(data) = &inode.kind {
            let (mut reader, mut piece, mut at) = (data.reader(), vec![0; PIECE], 0);
            loop {
                let count = reader.read(&mut piece)?;
                if count == 0 {
                    break;
                }
                self.fs.write(&made, at, &piece[..count], caller)?;
                at += count as u64;
            }
        }
        let mtime = SetTime::To(Time { sec: inode.mtime as i64, nsec: 0 });
        self.fs.set_attr(&made, &SetAttr { mtime, ..SetAttr::default() })?;
        if matches!(inode.kind, Kind::Folder) {
            self.folders.insert(name.to_owned(), made);
        } else {
            self.fs.unpin(&made, 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_laid_over_a_disk_replaces_files_and_e2fsck_is_content() {
        let folder = tempfile::tempdir().unwrap();
        let (root, disk) = (folder.path().join("root"), folder.path().join("disk"));
        std::fs::create_dir_all(root.join("usr/bin")).unwrap();
        std::fs::write(root.join("usr/bin/old"), "old").unwrap();
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let tool = |name: &str| {
            let mut command = Command::new(name);
            command.env("PATH", &path);
            command
        };
        shell::run_quietly(tool("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&root).arg(&disk).arg("16M")).unwrap();
        let mut tree = Tree::default();
        tree.file("usr/bin/old", 0o755, b"new".to_vec());
        tree.file("usr/bin/large", 0o644, vec![7; 3 << 20]);
        tree.symlink("usr/bin/link", "old");
        tree.folder("etc/x", 0o700, 5, 6);
        for _ in 0..2 {
            lay_over(&disk, &tree).unwrap();
            shell::run_quietly(tool("e2fsck").arg("-fn").arg(&disk)).unwrap();
        }
        let cat = |what: &str| shell::output(tool("debugfs").args(["-R", what]).arg(&disk)).unwrap();
        assert_eq!(cat("cat /usr/bin/old"), "new");
        assert_eq!(cat("cat /usr/bin/large").len(), 3 << 20);
        assert!(cat("stat /etc/x").contains("Mode:  0700"));
        assert_eq!(uuid(&disk).unwrap().len(), 36);
    }
}
