//! What a POSIX file system does, in memory, and random operations on both.

use std::collections::BTreeMap;
use std::sync::Arc;

use ext4::{
    Errno, Existing, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, Fs, Inode, RENAME_EXCHANGE,
    RENAME_NOREPLACE, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, SetAttr, SetTime, Time,
};
use fastrand::Rng;

use super::{ROOT, list};

pub type Id = usize;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File(Vec<u8>),
    Dir(BTreeMap<Vec<u8>, Id>),
    Symlink(Vec<u8>),
    Fifo,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub kind: Kind,
    pub links: u32,
    pub mode: u32,
    pub uid: u32,
    pub mtime: Option<Time>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub parent: Id,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub nodes: Vec<Option<Node>>,
}

/// Files stay below this.
const SIZE_MAX: u64 = 3 << 20;

impl Model {
    pub fn new() -> Model {
        Model { nodes: vec![Some(Node::new(Kind::Dir(BTreeMap::new()), 0o755))] }
    }

    pub fn node(&self, id: Id) -> &Node {
        self.nodes[id].as_ref().unwrap()
    }

    fn node_mut(&mut self, id: Id) -> &mut Node {
        self.nodes[id].as_mut().unwrap()
    }

    pub fn dir(&self, id: Id) -> &BTreeMap<Vec<u8>, Id> {
        match &self.node(id).kind {
            Kind::Dir(names) => names,
            _ => panic!("no directory"),
        }
    }

    fn dir_mut(&mut self, id: Id) -> &mut BTreeMap<Vec<u8>, Id> {
        match &mut self.node_mut(id).kind {
            Kind::Dir(names) => names,
            _ => panic!("no directory"),
        }
    }

    fn is_dir(&self, id: Id) -> bool {
        matches!(self.node(id).kind, Kind::Dir(_))
    }

    /// All that names lead to, with one path each.
    pub fn walk(&self) -> Vec<(Id, String)> {
        let mut all = vec![(0, String::new())];
        let mut at = 0;
        while at < all.len() {
            let (id, path) = all[at].clone();
            if self.is_dir(id) {
                for (name, child) in self.dir(id) {
                    all.push((*child, format!("{path}/{}", String::from_utf8_lossy(name))));
                }
            }
            at += 1;
        }
        all
    }

    fn is_above(&self, above: Id, mut id: Id) -> bool {
        loop {
            if id == above {
                return true;
            }
            if id == 0 {
                return false;
            }
            id = self.node(id).parent;
        }
    }

    fn subdirs(&self, id: Id) -> u32 {
        self.dir(id).values().filter(|child| self.is_dir(**child)).count() as u32
    }
}

impl Node {
    fn new(kind: Kind, mode: u32) -> Node {
        Node { kind, links: 1, mode, uid: 0, mtime: None, xattrs: BTreeMap::new(), parent: 0 }
    }
}

/// A file system and the model that says what it should hold.
pub struct Pair {
    pub model: Model,
    pub rng: Rng,
    /// Files that are held open, with names or without.
    pub held: Vec<(Id, Arc<Inode>)>,
    /// Names come from a set of this size.
    pub names: u32,
    pub ops: BTreeMap<&'static str, u32>,
}

type Outcome = Result<(), Errno>;

impl Pair {
    pub fn new(seed: u64) -> Pair {
        Pair { model: Model::new(), rng: Rng::with_seed(seed), held: Vec::new(), names: 40, ops: BTreeMap::new() }
    }

    fn name(&mut self) -> Vec<u8> {
        let number = self.rng.u32(..self.names);
        let long = number.is_multiple_of(5);
        format!("n{number}{}", if long { "-long".repeat(40) } else { String::new() }).into_bytes()
    }

    fn pick(&mut self, want: impl Fn(&Node) -> bool) -> Option<(Id, String)> {
        let all: Vec<_> = self.model.walk().into_iter().filter(|(id, _)| want(self.model.node(*id))).collect();
        (!all.is_empty()).then(|| all[self.rng.usize(..all.len())].clone())
    }

    fn inode(&self, fs: &Fs, path: &str) -> Arc<Inode> {
        super::resolve(fs, path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// One random operation on both. What the disk was too full for is not done in the model either.
    pub fn step(&mut self, fs: &Fs) {
        let op = self.rng.u32(..100);
        let (what, outcome) = match op {
            0..16 => ("create", self.create(fs)),
            16..22 => ("mkdir", self.mkdir(fs)),
            22..27 => ("symlink", self.symlink(fs)),
            27..32 => ("link", self.link(fs)),
            32..44 => ("unlink", self.unlink(fs)),
            44..47 => ("rmdir", self.rmdir(fs)),
            47..57 => ("rename", self.rename(fs)),
            57..74 => ("write", self.write(fs)),
            74..80 => ("truncate", self.truncate(fs)),
            80..86 => ("fallocate", self.fallocate(fs)),
            86..91 => ("xattr", self.xattr(fs)),
            91..94 => ("setattr", self.setattr(fs)),
            94..97 => ("hold", self.hold(fs)),
            97..98 => ("tmpfile", self.tmpfile(fs)),
            _ => ("release", self.release(fs)),
        };
        let _ = outcome;
        *self.ops.entry(what).or_default() += 1;
    }

    /// Compares what an operation did with what it should have done; `true` when the model shall follow.
    fn follow<T>(&self, what: &str, got: &ext4::Result<T>, want: Outcome) -> bool {
        match (got, want) {
            (Ok(_), Ok(())) => true,
            (Err(error), Ok(())) if error.errno() == Errno::NOSPC => false,
            (Err(error), Err(errno)) if error.errno() == errno => false,
            // A full disk may be found out first.
            (Err(error), Err(_)) if error.errno() == Errno::NOSPC => false,
            (Ok(_), Err(errno)) => panic!("{what}: done, should have been {errno:?}"),
            (Err(error), want) => panic!("{what}: {error}, should have been {want:?}"),
        }
    }

    fn add(&mut self, dir: Id, name: Vec<u8>, mut node: Node) -> Id {
        node.parent = dir;
        self.model.nodes.push(Some(node));
        let id = self.model.nodes.len() - 1;
        self.model.dir_mut(dir).insert(name, id);
        id
    }

    fn create(&mut self, fs: &Fs) -> Outcome {
        let (dir, path) = self.pick(|node| matches!(node.kind, Kind::Dir(_))).unwrap();
        let name = self.name();
        let want = if self.model.dir(dir).contains_key(&name) { Err(Errno::EXIST) } else { Ok(()) };
        let mode = 0o600 | self.rng.u32(..0o100);
        let (kind, format) =
            if self.rng.u32(..10) == 0 { (Kind::Fifo, S_IFIFO) } else { (Kind::File(Vec::new()), S_IFREG) };
        let got = fs.create(&self.inode(fs, &path), &name, format | mode, 0, ROOT);
        if self.follow("create", &got, want) {
            fs.unpin(&got.unwrap(), 1).unwrap();
            self.add(dir, name, Node::new(kind, mode));
        }
        Ok(())
    }

    fn mkdir(&mut self, fs: &Fs) -> Outcome {
        let (dir, path) = self.pick(|node| matches!(node.kind, Kind::Dir(_))).unwrap();
        let name = self.name();
        let want = if self.model.dir(dir).contains_key(&name) { Err(Errno::EXIST) } else { Ok(()) };
        let got = fs.mkdir(&self.inode(fs, &path), &name, 0o755, ROOT);
        if self.follow("mkdir", &got, want) {
            fs.unpin(&got.unwrap(), 1).unwrap();
            let inherited = self.model.node(dir).mode & 0o2000;
            self.add(dir, name, Node::new(Kind::Dir(BTreeMap::new()), 0o755 | inherited));
        }
        Ok(())
    }

    fn symlink(&mut self, fs: &Fs) -> Outcome {
        let (dir, path) = self.pick(|node| matches!(node.kind, Kind::Dir(_))).unwrap();
        let name = self.name();
        let want = if self.model.dir(dir).contains_key(&name) { Err(Errno::EXIST) } else { Ok(()) };
        let target = vec![b'a' + self.rng.u8(..26); self.rng.usize(1..=120)];
        let got = fs.symlink(&self.inode(fs, &path), &name, &target, ROOT);
        if self.follow("symlink", &got, want) {
            fs.unpin(&got.unwrap(), 1).unwrap();
            self.add(dir, name, Node::new(Kind::Symlink(target), 0o777));
        }
        Ok(())
    }

    fn link(&mut self, fs: &Fs) -> Outcome {
        let Some((file, from)) = self.pick(|node| !matches!(node.kind, Kind::Dir(_))) else { return Ok(()) };
        let (dir, path) = self.pick(|node| matches!(node.kind, Kind::Dir(_))).unwrap();
        let name = self.name();
        let want = if self.model.dir(dir).contains_key(&name) { Err(Errno::EXIST) } else { Ok(()) };
        let inode = self.inode(fs, &from);
        let got = fs.link(&inode, &self.inode(fs, &path), &name, ROOT);
        if self.follow("link", &got, want) {
            fs.unpin(&inode, 1).unwrap();
            self.model.node_mut(file).links += 1;
            self.model.dir_mut(dir).insert(name, file);
        }
        Ok(())
    }

    fn drop_link(&mut self, id: Id) {
        let node = self.model.node_mut(id);
        node.links -= 1;
        if node.links == 0 && !self.held.iter().any(|(held, _)| *held == id) {
            self.model.nodes[id] = None;
        }
    }

    fn unlink(&mut self, fs: &Fs) -> Outcome {
        let (dir, path) = self.pick(|node| matches!(node.kind, Kind::Dir(_))).unwrap();
        let name = self.name();
        let there = self.model.dir(dir).get(&name).copied();
        let want = match there {
            None => Err(Errno::NOENT),
            Some(id) if self.model.is_dir(id) => Err(Errno::ISDIR),
            Some(_) => Ok(()),
        };
        let got = fs.unlink(&self.inode(fs, &path), &name);
        if self.follow("unlink", &got, want) {
            self.model.dir_mut(dir).remove(&name);
            self.drop_link(there.unwrap());
        }
        Ok(())
    }

    fn rmdir(&mut self, fs: &Fs) -> Outcome {
        let (dir, path) = self.pick(|node| matches!(node.kind, Kind::Dir(_))).unwrap();
        let name = self.name();
        let there = self.model.dir(dir).get(&name).copied();
        let want = match there {
            None => Err(Errno::NOENT),
            Some(id) if !self.model.is_dir(id) => Err(Errno::NOTDIR),
            Some(id) if !self.model.dir(id).is_empty() => Err(Errno::NOTEMPTY),
            Some(_) => Ok(()),
        };
        let got = fs.rmdir(&self.inode(fs, &path), &name);
        if self.follow("rmdir", &got, want) {
            self.model.dir_mut(dir).remove(&name);
            self.model.nodes[there.unwrap()] = None;
        }
        Ok(())
    }

    fn rename(&mut self, fs: &Fs) -> Outcome {
        let (from, from_path) =
            self.pick(|node| matches!(&node.kind, Kind::Dir(names) if !names.is_empty())).unwrap_or((0, String::new()));
        let (to, to_path) = self.pick(|node| matches!(node.kind, Kind::Dir(_))).unwrap();
        let name = match self.model.dir(from).keys().nth(self.rng.usize(..self.model.dir(from).len().max(1))) {
            Some(name) => name.clone(),
            None => self.name(),
        };
        let new_name = self.name();
        let flags = [0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE][self.rng.usize(..5)];
        let source = self.model.dir(from).get(&name).copied();
        let target = self.model.dir(to).get(&new_name).copied();
        let exchange = flags == RENAME_EXCHANGE;
        let want = match (source, target) {
            (None, _) => Err(Errno::NOENT),
            (Some(source), _) if from != to && self.model.is_dir(source) && self.model.is_above(source, to) => {
                Err(Errno::INVAL)
            }
            (Some(_), None) if exchange => Err(Errno::NOENT),
            (Some(_), None) => Ok(()),
            (Some(_), Some(target))
                if exchange && from != to && self.model.is_dir(target) && self.model.is_above(target, from) =>
            {
                Err(Errno::INVAL)
            }
            (Some(_), Some(_)) if flags == RENAME_NOREPLACE => Err(Errno::EXIST),
            (Some(source), Some(target)) if source == target || exchange => Ok(()),
            (Some(_), Some(target)) if target == from => Err(Errno::NOTEMPTY),
            (Some(source), Some(target)) => match (self.model.is_dir(source), self.model.is_dir(target)) {
                (true, false) => Err(Errno::NOTDIR),
                // What holds the source is not empty, whatever comes first.
                (false, true) => Err(Errno::ISDIR),
                (true, true) if !self.model.dir(target).is_empty() => Err(Errno::NOTEMPTY),
                _ => Ok(()),
            },
        };
        let got = fs.rename(&self.inode(fs, &from_path), &name, &self.inode(fs, &to_path), &new_name, flags, ROOT);
        if !self.follow("rename", &got, want) {
            return Ok(());
        }
        let source = source.unwrap();
        if target == Some(source) {
            return Ok(());
        }
        if exchange {
            let target = target.unwrap();
            self.model.dir_mut(from).insert(name, target);
            self.model.dir_mut(to).insert(new_name, source);
            self.model.node_mut(target).parent = from;
            self.model.node_mut(source).parent = to;
            return Ok(());
        }
        self.model.dir_mut(from).remove(&name);
        self.model.dir_mut(to).insert(new_name, source);
        self.model.node_mut(source).parent = to;
        if let Some(target) = target {
            if self.model.is_dir(target) {
                self.model.nodes[target] = None;
            } else {
                self.drop_link(target);
            }
        }
        Ok(())
    }

    /// A file by name or one that is held.
    fn some_file(&mut self, fs: &Fs) -> Option<(Id, Arc<Inode>)> {
        let held: Vec<_> =
            self.held.iter().filter(|(id, _)| matches!(self.model.node(*id).kind, Kind::File(_))).cloned().collect();
        if !held.is_empty() && self.rng.u32(..3) == 0 {
            return Some(held[self.rng.usize(..held.len())].clone());
        }
        let (id, path) = self.pick(|node| matches!(node.kind, Kind::File(_)))?;
        Some((id, self.inode(fs, &path)))
    }

    fn contents(&mut self, id: Id) -> &mut Vec<u8> {
        match &mut self.model.node_mut(id).kind {
            Kind::File(bytes) => bytes,
            _ => panic!("no file"),
        }
    }

    fn offset(&mut self) -> u64 {
        match self.rng.u32(..4) {
            0 => self.rng.u64(..SIZE_MAX / 2),
            1 => self.rng.u64(..200_000),
            2 => self.rng.u64(..20) * 4096,
            _ => self.rng.u64(..5000),
        }
    }

    fn len(&mut self) -> u64 {
        match self.rng.u32(..4) {
            0 => self.rng.u64(1..300_000),
            1 => self.rng.u64(1..9) * 4096,
            _ => self.rng.u64(1..9000),
        }
    }

    fn write(&mut self, fs: &Fs) -> Outcome {
        let Some((id, inode)) = self.some_file(fs) else { return Ok(()) };
        let size = self.contents(id).len() as u64;
        let offset = if self.rng.u32(..2) == 0 { size.min(SIZE_MAX) } else { self.offset() };
        let len = self.len();
        let byte = self.rng.u8(1..);
        let bytes: Vec<u8> = (0..len).map(|i| byte.wrapping_add((i / 100) as u8) | 1).collect();
        let got = fs.write(&inode, offset, &bytes, ROOT);
        let done = self.follow("write", &got, Ok(()));
        self.model.node_mut(id).mtime = None;
        let contents = self.contents(id);
        let end = (offset + len) as usize;
        if contents.len() < end {
            contents.resize(end, 0);
        }
        contents[offset as usize..end].copy_from_slice(&bytes);
        if !done {
            // A part may be there: what is there is read, and the rest must be as it was.
            let now = inode.stat().size as usize;
            assert!(now as u64 >= size && now <= end.max(size as usize), "a failed write moved the end");
            let mut real = vec![0; now];
            fs.read(&inode, 0, &mut real).unwrap();
            *self.contents(id) = real;
        }
        Ok(())
    }

    fn truncate(&mut self, fs: &Fs) -> Outcome {
        let Some((id, inode)) = self.some_file(fs) else { return Ok(()) };
        let size = if self.rng.u32(..3) == 0 { 0 } else { self.offset() };
        let got = fs.set_attr(&inode, &SetAttr { size: Some(size), ..SetAttr::default() });
        if self.follow("truncate", &got, Ok(())) {
            self.model.node_mut(id).mtime = None;
            self.contents(id).resize(size as usize, 0);
        }
        Ok(())
    }

    fn fallocate(&mut self, fs: &Fs) -> Outcome {
        let Some((id, inode)) = self.some_file(fs) else { return Ok(()) };
        let (offset, len) = (self.offset(), self.len());
        let keep = self.rng.bool();
        let keep_flag = if keep { FALLOC_KEEP_SIZE } else { 0 };
        let mode = match self.rng.u32(..3) {
            0 => keep_flag,
            1 => FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE,
            _ => FALLOC_ZERO_RANGE | keep_flag,
        };
        let got = fs.allocate(&inode, mode, offset, len, ROOT);
        let done = self.follow("fallocate", &got, Ok(()));
        self.model.node_mut(id).mtime = None;
        let contents = self.contents(id);
        let before = contents.len() as u64;
        let end = (offset + len).min(before) as usize;
        if mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE) != 0 && (offset as usize) < end && done {
            contents[offset as usize..end].fill(0);
        }
        if done && mode & FALLOC_KEEP_SIZE == 0 && offset + len > before {
            contents.resize((offset + len) as usize, 0);
        }
        if !done {
            let now = inode.stat().size as usize;
            let mut real = vec![0; now];
            fs.read(&inode, 0, &mut real).unwrap();
            *self.contents(id) = real;
        }
        Ok(())
    }

    fn xattr(&mut self, fs: &Fs) -> Outcome {
        let (id, path) = self.pick(|_| true).unwrap();
        let inode = self.inode(fs, &path);
        let prefix = ["user.", "trusted.", "security."][self.rng.usize(..3)];
        let name = format!("{prefix}{}", self.rng.u32(..6)).into_bytes();
        let there = self.model.node(id).xattrs.contains_key(&name);
        if self.rng.u32(..3) == 0 {
            let want = if there { Ok(()) } else { Err(Errno::NODATA) };
            let got = fs.set_xattr(&inode, &name, None, Existing::Any, ROOT);
            if self.follow("removexattr", &got, want) {
                self.model.node_mut(id).xattrs.remove(&name);
            }
            return Ok(());
        }
        let max = if self.rng.bool() { 20 } else { 300 };
        let value = vec![self.rng.u8(..); self.rng.usize(..max)];
        let (existing, want) = match self.rng.u32(..3) {
            0 => (Existing::Any, Ok(())),
            1 => (Existing::Refused, if there { Err(Errno::EXIST) } else { Ok(()) }),
            _ => (Existing::Required, if there { Ok(()) } else { Err(Errno::NODATA) }),
        };
        let got = fs.set_xattr(&inode, &name, Some(&value), existing, ROOT);
        if self.follow("setxattr", &got, want) {
            self.model.node_mut(id).xattrs.insert(name, value);
        }
        Ok(())
    }

    fn setattr(&mut self, fs: &Fs) -> Outcome {
        let (id, path) = self.pick(|_| true).unwrap();
        if id == 0 {
            return Ok(());
        }
        let inode = self.inode(fs, &path);
        let time = Time { sec: self.rng.i64(-1_000_000..8_000_000_000), nsec: self.rng.u32(..1_000_000_000) };
        let (mode, uid) = (self.rng.u32(..0o10000), self.rng.u32(..));
        let set = SetAttr { mode: Some(mode), uid: Some(uid), mtime: SetTime::To(time), ..SetAttr::default() };
        let got = fs.set_attr(&inode, &set);
        if self.follow("setattr", &got, Ok(())) {
            let node = self.model.node_mut(id);
            (node.mode, node.uid) = (mode, uid);
            // Times of directories change with their names.
            node.mtime = (!matches!(node.kind, Kind::Dir(_))).then_some(time);
        }
        Ok(())
    }

    fn hold(&mut self, fs: &Fs) -> Outcome {
        let Some((id, path)) = self.pick(|node| matches!(node.kind, Kind::File(_))) else { return Ok(()) };
        let (dir, name) = path.rsplit_once('/').unwrap();
        let inode = fs.lookup(&self.inode(fs, dir), name.as_bytes()).unwrap();
        self.held.push((id, inode));
        Ok(())
    }

    fn tmpfile(&mut self, fs: &Fs) -> Outcome {
        let got = fs.tmpfile(&fs.root().unwrap(), 0o600, ROOT);
        if self.follow("tmpfile", &got, Ok(())) {
            let mut node = Node::new(Kind::File(Vec::new()), 0o600);
            node.links = 0;
            self.model.nodes.push(Some(node));
            self.held.push((self.model.nodes.len() - 1, got.unwrap()));
        }
        Ok(())
    }

    fn release(&mut self, fs: &Fs) -> Outcome {
        if self.held.is_empty() {
            return Ok(());
        }
        let (id, inode) = self.held.swap_remove(self.rng.usize(..self.held.len()));
        fs.unpin(&inode, 1).unwrap();
        if self.model.node(id).links == 0 && !self.held.iter().any(|(held, _)| *held == id) {
            self.model.nodes[id] = None;
        }
        Ok(())
    }

    pub fn release_all(&mut self, fs: &Fs) {
        while !self.held.is_empty() {
            self.release(fs).unwrap();
        }
    }

    /// Everything is as the model says.
    pub fn compare(&self, fs: &Fs) {
        for (id, inode) in &self.held {
            self.compare_node(fs, *id, inode, "held");
        }
        let mut todo = vec![(0, fs.root().unwrap(), String::from("/"))];
        while let Some((id, inode, path)) = todo.pop() {
            self.compare_node(fs, id, &inode, &path);
            if !self.model.is_dir(id) {
                continue;
            }
            let names = list(fs, &inode);
            let mut names: BTreeMap<_, _> = {
                let count = names.len();
                let map: BTreeMap<_, _> = names.into_iter().collect();
                assert_eq!(map.len(), count, "{path} lists a name twice");
                map
            };
            names.remove(&b"."[..]).unwrap();
            names.remove(&b".."[..]).unwrap();
            if id == 0 {
                names.remove(&b"lost+found"[..]);
            }
            let want: Vec<_> = self.model.dir(id).keys().cloned().collect();
            assert_eq!(names.into_keys().collect::<Vec<_>>(), want, "names in {path}");
            for (name, child) in self.model.dir(id) {
                let child_path = format!("{path}{}/", String::from_utf8_lossy(name));
                let child_inode = fs.lookup(&inode, name).unwrap_or_else(|error| panic!("{child_path}: {error}"));
                fs.unpin(&child_inode, 1).unwrap();
                todo.push((*child, child_inode, child_path));
            }
        }
    }

    fn compare_node(&self, fs: &Fs, id: Id, inode: &Arc<Inode>, path: &str) {
        let node = self.model.node(id);
        let stat = inode.stat();
        let (kind, links) = match &node.kind {
            Kind::File(bytes) => {
                let mut real = vec![0x55; bytes.len() + 1];
                let len = fs.read(inode, 0, &mut real).unwrap();
                assert_eq!((len, stat.size), (bytes.len(), bytes.len() as u64), "size of {path}");
                if let Some(at) = (0..len).find(|at| real[*at] != bytes[*at]) {
                    panic!("{path}: byte {at} of {len} is {} instead of {}", real[at], bytes[at]);
                }
                (S_IFREG, node.links)
            }
            Kind::Dir(_) => (S_IFDIR, 2 + self.model.subdirs(id) + u32::from(id == 0)),
            Kind::Symlink(target) => {
                assert_eq!(&fs.read_link(inode).unwrap(), target, "{path}");
                (S_IFLNK, node.links)
            }
            Kind::Fifo => (S_IFIFO, node.links),
        };
        assert_eq!((stat.mode & S_IFMT, stat.nlink), (kind, links), "{path}");
        if id != 0 {
            assert_eq!((stat.mode & 0o7777, stat.uid), (node.mode, node.uid), "{path}");
        }
        if let Some(mtime) = node.mtime
            && fs.geometry().inode_size > 128
        {
            assert_eq!(stat.mtime, mtime, "{path}");
        }
        for (name, value) in &node.xattrs {
            assert_eq!(&fs.xattr(inode, name).unwrap(), value, "{path} {}", String::from_utf8_lossy(name));
        }
        let names = fs.xattr_names(inode).unwrap();
        assert_eq!(names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).count(), node.xattrs.len());
    }
}
