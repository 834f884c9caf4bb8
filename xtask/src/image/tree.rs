//! A file tree in memory: read from a tar archive, changed, written as cpio or tar.
//!
//! Only names and attributes are held; contents stay in the archive until they are written. Hard links are kept as such:
//! names refer to inodes.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What kind of thing an inode is.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A regular file.
    File(Data),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device, major and minor number.
    Character(u32, u32),
    /// A block device, major and minor number.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// Contents of a file.
#[derive(Debug, Clone)]
pub enum Data {
    /// In memory.
    Bytes(Arc<[u8]>),
    /// A range of a file on the host.
    Range {
        /// The file.
        file: Arc<File>,
        /// Where it starts.
        offset: u64,
        /// How long it is.
        length: u64,
    },
}

impl Data {
    /// How many bytes.
    pub fn len(&self) -> u64 {
        match self {
            Data::Bytes(bytes) => bytes.len() as u64,
            Data::Range { length, .. } => *length,
        }
    }

    /// A reader over the contents.
    pub fn reader(&self) -> DataReader<'_> {
        DataReader { data: self, position: 0 }
    }
}

/// Reads [`Data`].
pub struct DataReader<'a> {
    data: &'a Data,
    position: u64,
}

impl Read for DataReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(self.data.len() - self.position).unwrap_or(usize::MAX);
        let want = buffer.len().min(rest);
        let count = match self.data {
            Data::Bytes(bytes) => {
                let start = self.position as usize;
                buffer[..want].copy_from_slice(&bytes[start..start + want]);
                want
            }
            Data::Range { file, offset, .. } => file.read_at(&mut buffer[..want], offset + self.position)?,
        };
        self.position += count as u64;
        Ok(count)
    }
}

/// An inode: attributes and contents.
#[derive(Debug, Clone)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last change of the contents, seconds since 1970.
    pub mtime: u64,
    /// How many names it has.
    pub links: u32,
}

/// The tree. Paths are relative, without `.` and `..`.
#[derive(Debug, Default)]
pub struct Tree {
    names: BTreeMap<PathBuf, usize>,
    inodes: Vec<Inode>,
    newest: u64,
}

impl Tree {
    /// Reads a tar archive. Contents stay in the file, which must not change while the tree is in use.
    pub fn from_tar(path: &Path) -> Result<Tree> {
        let file = Arc::new(File::open(path).with_context(|| path.display().to_string())?);
        let mut tree = Tree::default();
        for entry in tar::Archive::new(&*file).entries()? {
            let entry = entry?;
            let Some(name) = clean(&entry.path()?)? else { continue };
            let header = entry.header();
            let device = || -> Result<(u32, u32)> {
                Ok((header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0)))
            };
            let target = || -> Result<PathBuf> {
                Ok(entry.link_name()?.with_context(|| format!("{} links to nothing", name.display()))?.into_owned())
            };
            let kind = match header.entry_type() {
                tar::EntryType::Directory => Kind::Folder,
                tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                    let (offset, length) = (entry.raw_file_position(), entry.size());
                    Kind::File(Data::Range { file: Arc::clone(&file), offset, length })
                }
                tar::EntryType::Symlink => Kind::Symlink(target()?.as_os_str().as_bytes().to_vec()),
                tar::EntryType::Char => device().map(|(major, minor)| Kind::Character(major, minor))?,
                tar::EntryType::Block => device().map(|(major, minor)| Kind::Block(major, minor))?,
                tar::EntryType::Fifo => Kind::Fifo,
                tar::EntryType::Link => {
                    let target = clean(&target()?)?.context("a hard link to the root")?;
                    let Some(&inode) = tree.names.get(&target) else {
                        bail!("{} is a hard link to {}, which is not there", name.display(), target.display());
                    };
                    tree.inodes[inode].links += 1;
                    tree.names.insert(name, inode);
                    continue;
                }
                other => bail!("{} is of a kind that this program does not know: {other:?}", name.display()),
            };
            let (uid, gid) = (header.uid()? as u32, header.gid()? as u32);
            let (mode, mtime) = (header.mode()? & 0o7777, header.mtime()?);
            tree.insert(name, Inode { kind, mode, uid, gid, mtime, links: 1 });
        }
        Ok(tree)
    }

    /// Adds an inode under a name, with the folders above it.
    pub fn insert(&mut self, name: impl Into<PathBuf>, inode: Inode) {
        let name = name.into();
        if let Some(parent) = name.parent().filter(|parent| !parent.as_os_str().is_empty())
            && !self.names.contains_key(parent)
        {
            self.folder(parent, 0o755, 0, 0);
        }
        self.newest = self.newest.max(inode.mtime);
        // A folder that is already there keeps its names and only takes on the attributes.
        self.unlink(&name);
        self.inodes.push(inode);
        self.names.insert(name, self.inodes.len() - 1);
    }

    fn add(&mut self, name: &Path, kind: Kind, mode: u32, uid: u32, gid: u32) {
        let mtime = self.newest;
        self.insert(name, Inode { kind, mode, uid, gid, mtime, links: 1 });
    }

    /// Adds a folder.
    pub fn folder(&mut self, name: impl AsRef<Path>, mode: u32, uid: u32, gid: u32) {
        self.add(name.as_ref(), Kind::Folder, mode, uid, gid);
    }

    /// Adds a file of root's.
    pub fn file(&mut self, name: impl AsRef<Path>, mode: u32, contents: Vec<u8>) {
        self.add(name.as_ref(), Kind::File(Data::Bytes(contents.into())), mode, 0, 0);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, name: impl AsRef<Path>, target: &str) {
        self.add(name.as_ref(), Kind::Symlink(target.as_bytes().to_vec()), 0o777, 0, 0);
    }

    /// Adds a file or a whole folder from the host, as root's.
    pub fn add_from_host(&mut self, name: &Path, source: &Path) -> Result<()> {
        let data = source.metadata().with_context(|| format!("cannot add {}", source.display()))?;
        let attributes = |kind, data: &std::fs::Metadata| Inode {
            kind,
            mode: data.mode() & 0o7777,
            uid: 0,
            gid: 0,
            mtime: u64::try_from(data.mtime()).unwrap_or(0),
            links: 1,
        };
        if data.is_dir() {
            self.insert(name, attributes(Kind::Folder, &data));
            for entry in source.read_dir()? {
                let entry = entry?;
                let (path, inside) = (entry.path(), name.join(entry.file_name()));
                let data = path.symlink_metadata()?;
                if data.is_symlink() {
                    let target = std::fs::read_link(&path)?.as_os_str().as_bytes().to_vec();
                    self.insert(inside, attributes(Kind::Symlink(target), &data));
                } else {
                    self.add_from_host(&inside, &path)?;
                }
            }
        } else if data.is_file() {
            let file = Arc::new(File::open(source).with_context(|| format!("cannot read {}", source.display()))?);
            let kind = Kind::File(Data::Range { file, offset: 0, length: data.len() });
            self.insert(name, attributes(kind, &data));
        } else {
            bail!("{} is neither a file nor a folder", source.display());
        }
        Ok(())
    }

    /// The same tree as it is to be laid over another: folders that are there keep their attributes, and names that lead
    /// through links of the other tree lead to where those point.
    pub fn laid_over(self, under: &Tree) -> Tree {
        let mut result = Tree { newest: self.newest, ..Tree::default() };
        for (name, number) in self.names {
            let inode = self.inodes[number].clone();
            let place = under.follow_folders(&name);
            for above in place.ancestors().skip(1) {
                if let (false, Some(&folder)) = (result.names.contains_key(above), under.names.get(above)) {
                    result.names.insert(above.to_owned(), result.inodes.len());
                    result.inodes.push(under.inodes[folder].clone());
                }
            }
            let there = under.names.get(&place).map(|&at| &under.inodes[at]);
            match (&inode.kind, there.map(|there| (there, &there.kind))) {
                (Kind::Folder, Some((there, Kind::Folder))) => result.insert(place, there.clone()),
                // A folder that is there as a link: what is in it goes to where the link points.
                (Kind::Folder, Some((_, Kind::Symlink(_)))) => {}
                _ => result.insert(place, Inode { links: 1, ..inode }),
            }
        }
        result
    }

    /// Takes in what another tree has below a folder, laid over what is here.
    pub fn take_in(&mut self, other: Tree, below: &Path) {
        let name =
            |name: &Path| name.strip_prefix(below).ok().filter(|rest| !rest.as_os_str().is_empty()).map(Path::to_owned);
        let names = other.names.iter().filter_map(|(path, &inode)| Some((name(path)?, inode))).collect();
        let laid = Tree { names, ..other }.laid_over(self);
        for (name, inode) in &laid.names {
            self.insert(name, laid.inodes[*inode].clone());
        }
    }

    /// Where a name leads when links in the folders above it are followed. The last part is not.
    fn follow_folders(&self, name: &Path) -> PathBuf {
        let mut place = PathBuf::new();
        let mut rest: Vec<std::ffi::OsString> = name.iter().rev().map(ToOwned::to_owned).collect();
        // As many links as path_resolution(7) follows; a loop then just stays as it is.
        let mut patience = 40;
        while let Some(part) = rest.pop() {
            if part == ".." {
                place.pop();
                continue;
            }
            place.push(&part);
            let link = self.names.get(&place).and_then(|&at| match &self.inodes[at].kind {
                Kind::Symlink(target) => Some(PathBuf::from(std::ffi::OsStr::from_bytes(target))),
                _ => None,
            });
            if let Some(target) = link
                && !rest.is_empty()
                && patience > 0
            {
                patience -= 1;
                place.pop();
                if target.is_absolute() {
                    place = PathBuf::new();
                }
                let parts = target
                    .components()
                    .filter(|c| !matches!(c, std::path::Component::RootDir | std::path::Component::CurDir));
                let parts: Vec<_> = parts.map(|c| c.as_os_str().to_owned()).collect();
                rest.extend(parts.into_iter().rev());
            }
        }
        place
    }

    /// Changes the owner of what has this name.
    pub fn set_owner(&mut self, name: impl AsRef<Path>, uid: u32, gid: u32) {
        if let Some(&inode) = self.names.get(name.as_ref()) {
            (self.inodes[inode].uid, self.inodes[inode].gid) = (uid, gid);
        }
    }

    /// Removes a name and all below it.
    pub fn remove(&mut self, name: impl AsRef<Path>) {
        let doomed: Vec<PathBuf> = self.names.keys().filter(|path| path.starts_with(name.as_ref())).cloned().collect();
        for path in doomed {
            self.unlink(&path);
        }
    }

    fn unlink(&mut self, name: &Path) {
        if let Some(inode) = self.names.remove(name) {
            self.inodes[inode].links -= 1;
        }
    }

    /// Whether the name is taken.
    pub fn contains(&self, name: impl AsRef<Path>) -> bool {
        self.names.contains_key(name.as_ref())
    }

    /// The contents of a regular file of this very name (links are not followed).
    pub fn read(&self, name: impl AsRef<Path>) -> Result<Option<Vec<u8>>> {
        let Some(&inode) = self.names.get(name.as_ref()) else { return Ok(None) };
        let Kind::File(data) = &self.inodes[inode].kind else { return Ok(None) };
        let mut contents = Vec::new();
        data.reader().read_to_end(&mut contents)?;
        Ok(Some(contents))
    }

    /// All names in order, folders before what they hold, with the inode's number and the inode.
    pub fn entries(&self) -> impl Iterator<Item = (&Path, usize, &Inode)> {
        self.names.iter().map(|(name, &inode)| (name.as_path(), inode, &self.inodes[inode]))
    }

    /// Writes the tree as a tar archive.
    pub fn to_tar(&self, path: &Path) -> Result<()> {
        let mut archive = tar::Builder::new(io::BufWriter::new(File::create(path)?));
        let mut first_names: BTreeMap<usize, &Path> = BTreeMap::new();
        for (name, number, inode) in self.entries() {
            let mut header = tar::Header::new_gnu();
            header.set_mode(inode.mode);
            header.set_uid(inode.uid.into());
            header.set_gid(inode.gid.into());
            header.set_mtime(inode.mtime);
            header.set_size(0);
            if let Some(first) = first_names.get(&number) {
                header.set_entry_type(tar::EntryType::Link);
                archive.append_link(&mut header, name, first)?;
                continue;
            }
            if inode.links > 1 {
                first_names.insert(number, name);
            }
            let mut device = |kind, major, minor| -> Result<()> {
                header.set_entry_type(kind);
                header.set_device_major(major)?;
                header.set_device_minor(minor)?;
                Ok(archive.append_data(&mut header, name, io::empty())?)
            };
            match &inode.kind {
                Kind::Character(major, minor) => device(tar::EntryType::Char, *major, *minor)?,
                Kind::Block(major, minor) => device(tar::EntryType::Block, *major, *minor)?,
                Kind::Fifo => device(tar::EntryType::Fifo, 0, 0)?,
                Kind::Folder => device(tar::EntryType::Directory, 0, 0)?,
                Kind::Symlink(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    archive.append_link(&mut header, name, Path::new(std::ffi::OsStr::from_bytes(target)))?;
                }
                Kind::File(data) => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_size(data.len());
                    archive.append_data(&mut header, name, data.reader())?;
                }
            }
        }
        archive.into_inner()?.flush()?;
        Ok(())
    }
}

/// A name without a leading `./` or `/`. `None` is the root itself.
fn clean(path: &Path) -> Result<Option<PathBuf>> {
    let mut name = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(part) => name.push(part),
            std::path::Component::CurDir | std::path::Component::RootDir => {}
            _ => bail!("{} leads out of the tree", path.display()),
        }
    }
    Ok((!name.as_os_str().is_empty()).then_some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Tree {
        let mut tree = Tree::default();
        tree.file("usr/bin/tool", 0o4755, b"#!".to_vec());
        tree.set_owner("usr/bin/tool", 7, 8);
        tree.symlink("bin", "usr/bin");
        let device = Inode { kind: Kind::Character(5, 1), mode: 0o600, uid: 0, gid: 5, mtime: 12, links: 1 };
        tree.insert("dev/console", device);
        tree
    }

    #[test]
    fn tar_and_back_keeps_everything() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut tree = sample();
        let &inode = tree.names.get(Path::new("usr/bin/tool")).unwrap();
        tree.names.insert("usr/bin/alias".into(), inode);
        tree.inodes[inode].links = 2;
        tree.to_tar(file.path()).unwrap();
        let back = Tree::from_tar(file.path()).unwrap();
        let names: Vec<_> = back.entries().map(|(name, ..)| name.to_str().unwrap().to_owned()).collect();
        let expected = ["bin", "dev", "dev/console", "usr", "usr/bin", "usr/bin/alias", "usr/bin/tool"];
        assert_eq!(names, expected);
        let find = |wanted: &str| back.entries().find(|(name, ..)| *name == Path::new(wanted)).unwrap();
        let (_, first, alias) = find("usr/bin/alias");
        let (_, second, _) = find("usr/bin/tool");
        assert_eq!((first, alias.links, alias.mode, alias.uid, alias.gid), (second, 2, 0o4755, 7, 8));
        assert_eq!(back.read("usr/bin/tool").unwrap().unwrap(), b"#!");
        assert!(matches!(find("dev/console").2.kind, Kind::Character(5, 1)));
        assert!(matches!(&find("bin").2.kind, Kind::Symlink(target) if target == b"usr/bin"));
    }

    #[test]
    fn replaced_and_removed_names_are_gone() {
        let mut tree = sample();
        tree.file("usr/bin/tool", 0o755, b"new".to_vec());
        assert_eq!(tree.read("usr/bin/tool").unwrap().unwrap(), b"new");
        tree.remove("usr");
        assert!(!tree.contains("usr/bin/tool") && !tree.contains("usr") && tree.contains("bin"));
    }

    #[test]
    fn tree_laid_over_another_spares_folders_and_follows_links() {
        let mut under = Tree::default();
        under.folder("tmp", 0o1777, 0, 0);
        under.folder("usr/bin", 0o755, 0, 0);
        under.symlink("bin", "usr/bin");
        under.symlink("a", "/usr/../tmp");
        let mut over = Tree::default();
        over.file("bin/x", 0o755, b"x".to_vec());
        over.file("tmp/y", 0o644, b"y".to_vec());
        over.file("a/z", 0o644, b"z".to_vec());
        over.file("new/w", 0o644, b"w".to_vec());
        let laid = over.laid_over(&under);
        let names: Vec<_> =
            laid.entries().map(|(name, _, inode)| (name.to_str().unwrap().to_owned(), inode.mode)).collect();
        let expected = [
            ("new", 0o755),
            ("new/w", 0o644),
            ("tmp", 0o1777),
            ("tmp/y", 0o644),
            ("tmp/z", 0o644),
            ("usr", 0o755),
            ("usr/bin", 0o755),
            ("usr/bin/x", 0o755),
        ];
        assert_eq!(names, expected.map(|(name, mode)| (name.to_owned(), mode)));
    }

    #[test]
    fn taken_in_is_what_lies_below_a_folder() {
        let mut tree = sample();
        let mut other = Tree::default();
        other.file("out/bin/made", 0o755, b"made".to_vec());
        other.file("out/usr/bin/tool", 0o755, b"new".to_vec());
        other.file("elsewhere", 0o644, b"".to_vec());
        tree.take_in(other, Path::new("out"));
        let names: Vec<_> = tree.entries().map(|(name, ..)| name.to_str().unwrap().to_owned()).collect();
        assert_eq!(names, ["bin", "dev", "dev/console", "usr", "usr/bin", "usr/bin/made", "usr/bin/tool"]);
        assert_eq!(tree.read("usr/bin/tool").unwrap().unwrap(), b"new");
    }

    #[test]
    fn names_that_leave_the_tree_are_refused() {
        assert!(clean(Path::new("../etc/passwd")).is_err());
        assert_eq!(clean(Path::new("./a/b")).unwrap(), Some("a/b".into()));
        assert_eq!(clean(Path::new("./")).unwrap(), None);
    }
}
