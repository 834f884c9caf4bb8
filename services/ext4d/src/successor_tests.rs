//! Servers that are killed at each request in each phase, and their successors, against a kernel that is played here: what
//! clients see is the same as without a kill, and so is the disk.
//!
//! The played kernel follows `kernel/core/src/scheme`: answered changes are retained until they are committed, a successor
//! gets them again one by one before what was not answered, and that before anything new. The disk keeps what was written to
//! it, as it does when a process dies.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use ext4::{Errno, Fs, Ledger, Live, MemDevice, Options, Progress};
use fastrand::Rng;
use fuse_abi::scheme::{EXT_REPLAY, REPLAY_DURABLE, Replay};
use fuse_abi::{
    CreateIn, FallocateIn, ForgetIn, FsyncIn, InHeader, LinkIn, MkdirIn, Opcode, OutHeader, ROOT_ID, ReadIn, RenameIn,
    SetattrIn, SetattrValid, SyncfsIn, UNIQUE_RESEND, WriteIn,
};
use parking_lot::Mutex;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::requests::{ExitAt, Kernel, Requests};
use crate::server::{End, Server};

/// What a client does. Numbers are the client's own for nodes; 0 is the root.
#[derive(Clone, Debug)]
enum Op {
    Mkdir(usize, &'static str, usize),
    Create(usize, &'static str, usize),
    Symlink(usize, &'static str, usize),
    Lookup(usize, &'static str, usize),
    Link(usize, usize, &'static str),
    Unlink(usize, &'static str),
    Rmdir(usize, &'static str),
    Rename(usize, &'static str, usize, &'static str),
    Write(usize, u64, u32),
    Read(usize),
    Truncate(usize, u64),
    Chmod(usize, u32),
    Xattr(usize, &'static str),
    Allocate(usize, u64, u64),
    Readdir(usize),
    Forget(usize),
    Fsync(usize),
}

/// A metadata-heavy life: exclusive creation, links, renames over files and of directories, files that are unlinked while
/// they are open, a directory that is read in the middle of changes, data.
fn life() -> Vec<Op> {
    use Op::*;
    vec![
        Mkdir(0, "a", 1),
        Create(1, "one", 2),
        Create(1, "one", 3),
        Write(2, 0, 9000),
        Mkdir(1, "deep", 4),
        Create(4, "two", 5),
        Write(5, 4096, 100),
        Link(2, 4, "also one"),
        Readdir(1),
        Symlink(4, "link", 6),
        Rename(4, "two", 1, "three"),
        Fsync(5),
        Unlink(1, "one"),
        Read(2),
        Create(1, "one", 3),
        Write(3, 0, 50),
        Rename(1, "one", 4, "also one"),
        Write(2, 20000, 3000),
        Read(2),
        Unlink(4, "nothing"),
        Rmdir(0, "a"),
        Mkdir(0, "b", 7),
        Rename(1, "deep", 7, "deep"),
        Lookup(7, "deep", 4),
        Truncate(5, 10),
        Chmod(5, 0o600),
        Xattr(5, "user.colour"),
        Create(7, "brief", 8),
        Write(8, 0, 5000),
        Unlink(7, "brief"),
        Write(8, 5000, 5000),
        Read(8),
        Forget(8),
        Create(7, "brief", 9),
        Readdir(4),
        Forget(2),
        Allocate(9, 0, 40000),
        Fsync(9),
        Unlink(4, "link"),
        Mkdir(4, "empty", 10),
        Rmdir(4, "empty"),
        Forget(10),
        Create(4, "last", 11),
        Write(11, 0, 12),
        Rename(4, "last", 4, "also one"),
        Read(11),
        Read(3),
        Readdir(4),
    ]
}

/// A request under way, or answered.
#[derive(Clone)]
struct Asked {
    unique: u64,
    opcode: Opcode,
    node: u64,
    body: Vec<u8>,
    seen: bool,
    durable: Option<u64>,
    /// Which of the operations it is; none for what the kernel asks by itself.
    op: Option<usize>,
}

struct State {
    ops: Vec<Op>,
    next: usize,
    unique: u64,
    open: Option<Asked>,
    retained: Vec<(Asked, u64)>,
    again: VecDeque<(Asked, u64)>,
    under_way: Option<u64>,
    nodes: BTreeMap<usize, u64>,
    lookups: BTreeMap<u64, u64>,
    /// What the client saw: error and what counts of the answer.
    seen: Vec<(i32, Vec<u8>)>,
    /// Before which operations the kernel asks for a commit.
    commits: Vec<usize>,
    failed: Vec<String>,
}

struct Fake(Mutex<State>);

fn part(value: &(impl IntoBytes + Immutable)) -> Vec<u8> {
    value.as_bytes().to_vec()
}

fn named(mut body: Vec<u8>, name: &str) -> Vec<u8> {
    body.extend_from_slice(name.as_bytes());
    body.push(0);
    body
}

impl State {
    fn message(&self, op: &Op) -> (Opcode, u64, Vec<u8>) {
        let node = |slot: &usize| self.nodes.get(slot).copied().unwrap_or(u64::MAX >> 1);
        match op {
            Op::Mkdir(dir, name, _) => {
                (Opcode::Mkdir, node(dir), named(part(&MkdirIn { mode: 0o755, umask: 0 }), name))
            }
            Op::Create(dir, name, _) => {
                let create = CreateIn { flags: 2, mode: 0o100644, umask: 0, open_flags: 0 };
                (Opcode::Create, node(dir), named(part(&create), name))
            }
            Op::Symlink(dir, name, _) => (Opcode::Symlink, node(dir), named(named(Vec::new(), name), "somewhere/else")),
            Op::Lookup(dir, name, _) => (Opcode::Lookup, node(dir), named(Vec::new(), name)),
            Op::Link(slot, dir, name) => {
                (Opcode::Link, node(dir), named(part(&LinkIn { oldnodeid: node(slot) }), name))
            }
            Op::Unlink(dir, name) => (Opcode::Unlink, node(dir), named(Vec::new(), name)),
            Op::Rmdir(dir, name) => (Opcode::Rmdir, node(dir), named(Vec::new(), name)),
            Op::Rename(dir, name, to, new) => {
                (Opcode::Rename, node(dir), named(named(part(&RenameIn { newdir: node(to) }), name), new))
            }
            Op::Write(slot, offset, size) => {
                let write = WriteIn { offset: *offset, size: *size, ..WriteIn::default() };
                let data = (0..*size).map(|at| (at.wrapping_mul(31) ^ *slot as u32 ^ *offset as u32) as u8);
                (Opcode::Write, node(slot), part(&write).into_iter().chain(data).collect())
            }
            Op::Read(slot) => (Opcode::Read, node(slot), part(&ReadIn { size: 65536, ..ReadIn::default() })),
            Op::Truncate(slot, size) => {
                let set = SetattrIn { valid: SetattrValid::SIZE.bits(), size: *size, ..SetattrIn::default() };
                (Opcode::Setattr, node(slot), part(&set))
            }
            Op::Chmod(slot, mode) => {
                let set = SetattrIn { valid: SetattrValid::MODE.bits(), mode: *mode, ..SetattrIn::default() };
                (Opcode::Setattr, node(slot), part(&set))
            }
            Op::Xattr(slot, name) => {
                let body = named(part(&[5u32, 0]), name);
                (Opcode::Setxattr, node(slot), [&body[..], b"green"].concat())
            }
            Op::Allocate(slot, offset, length) => {
                let fall = FallocateIn { offset: *offset, length: *length, ..FallocateIn::default() };
                (Opcode::Fallocate, node(slot), part(&fall))
            }
            Op::Readdir(slot) => (Opcode::Readdir, node(slot), part(&ReadIn { size: 4096, ..ReadIn::default() })),
            Op::Forget(slot) => {
                let nlookup = self.lookups.get(&node(slot)).copied().unwrap_or(0);
                (Opcode::Forget, node(slot), part(&ForgetIn { nlookup }))
            }
            Op::Fsync(slot) => (Opcode::Fsync, node(slot), part(&FsyncIn::default())),
        }
    }

    /// The next request to send, and what goes behind it.
    fn take(&mut self) -> Option<(Asked, Option<Replay>)> {
        let ext = |flags, result| Replay {
            size: size_of::<Replay>() as u32,
            kind: EXT_REPLAY,
            flags,
            nsec: 5,
            sec: 1_000_000,
            result,
        };
        if let Some((asked, result)) = self.again.pop_front() {
            assert_eq!(self.under_way.replace(asked.unique), None, "one replay at a time");
            return Some((asked, Some(ext(0, result))));
        }
        if let Some(asked) = &self.open {
            return Some((asked.clone(), asked.durable.map(|result| ext(REPLAY_DURABLE, result))));
        }
        let (op, (opcode, node, body)) = if self.commits.last().is_some_and(|at| *at <= self.next) {
            self.commits.pop();
            (None, (Opcode::Syncfs, ROOT_ID, part(&SyncfsIn::default())))
        } else {
            let op = self.ops.get(self.next)?.clone();
            self.next += 1;
            (Some(self.next - 1), self.message(&op))
        };
        let asked = Asked { unique: self.unique, opcode, node, body, seen: true, durable: None, op };
        self.unique += 2;
        if opcode == Opcode::Forget {
            self.lookups.remove(&node);
            self.seen.push((0, Vec::new()));
            let sent = asked.clone();
            return Some((Asked { seen: false, ..sent }, None));
        }
        self.open = Some(asked.clone());
        Some((Asked { seen: false, ..asked }, None))
    }

    fn answered(&mut self, error: i32, body: &[u8]) {
        let Some(asked) = self.open.take() else { return self.failed.push("an answer to nothing".into()) };
        let entry = u64::read_from_prefix(body).map(|(node, _)| node).ok().filter(|_| asked.opcode.answers_entry());
        if asked.opcode.changes_files() && error == 0 {
            self.retained.push((asked.clone(), entry.unwrap_or(0)));
        }
        let Some(op) = asked.op else { return };
        let mut counts = Vec::new();
        if let Some(node) = entry {
            *self.lookups.entry(node).or_default() += 1;
            if let Op::Mkdir(.., slot) | Op::Create(.., slot) | Op::Symlink(.., slot) | Op::Lookup(.., slot) =
                self.ops[op]
            {
                self.nodes.insert(slot, node);
            }
        } else if asked.opcode == Opcode::Read {
            counts = body.to_vec();
        } else if asked.opcode == Opcode::Readdir {
            // Names and cookies; inode numbers are another matter.
            let mut rest = body;
            while let Some((dirent, name, more)) = fuse_abi::split_dirent(rest) {
                counts.extend_from_slice(name);
                counts.extend_from_slice(&dirent.off.to_le_bytes());
                rest = more;
            }
        }
        self.seen.push((error, counts));
    }

    fn resume(&mut self) {
        self.under_way = None;
        self.again = self.retained.iter().cloned().collect();
    }
}

impl Kernel for Fake {
    fn receive(&self, into: &mut [u8]) -> rustix::io::Result<usize> {
        let mut state = self.0.lock();
        let (asked, extension) = state.take().ok_or(Errno::NODEV)?;
        let extension = extension.map(|extension| part(&extension)).unwrap_or_default();
        let header = InHeader {
            len: (size_of::<InHeader>() + asked.body.len() + extension.len()) as u32,
            opcode: asked.opcode as u32,
            unique: asked.unique | if asked.seen { UNIQUE_RESEND } else { 0 },
            nodeid: asked.node,
            total_extlen: (extension.len() / 8) as u16,
            ..InHeader::default()
        };
        let bytes = [header.as_bytes(), &asked.body, &extension].concat();
        into[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn answer(&self, bytes: &[u8]) -> rustix::io::Result<()> {
        let mut state = self.0.lock();
        let (header, body) = OutHeader::read_from_prefix(bytes).map_err(|_| Errno::INVAL)?;
        let unique = header.unique & !UNIQUE_RESEND;
        if state.under_way == Some(unique) {
            state.under_way = None;
            if header.error != 0 && header.error != -Errno::STALE.raw_os_error() {
                state.failed.push(format!("replay of {unique} failed: {}", header.error));
            }
            return Ok(());
        }
        state.answered(header.error, body);
        Ok(())
    }

    fn committed(&self, progress: &Progress) -> io::Result<()> {
        let mut state = self.0.lock();
        assert!(progress.upto < state.unique);
        let named = |unique| progress.also.iter().find(|done| done.request == unique).map(|done| done.result);
        let result = |unique: u64| named(unique).or_else(|| (unique <= progress.upto).then_some(0));
        if let Some(open) = &mut state.open
            && open.opcode.changes_files()
        {
            open.durable = open.durable.or_else(|| result(open.unique));
        }
        state.retained.retain(|(asked, _)| result(asked.unique).is_none());
        state.again.retain(|(asked, _)| result(asked.unique).is_none());
        Ok(())
    }

    fn outstanding(&self) -> io::Result<Vec<u64>> {
        let state = self.0.lock();
        let open = state.open.iter().filter(|open| open.opcode.changes_files()).map(|open| open.unique);
        Ok(state.retained.iter().map(|(asked, _)| asked.unique).chain(open).collect())
    }
}

fn image() -> Vec<u8> {
    let path =
        std::env::temp_dir().join(format!("ursa-ext4d-{}-{:?}", std::process::id(), std::thread::current().id()));
    std::fs::File::create(&path).unwrap().set_len(6 << 20).unwrap();
    // A small log, so that it goes round.
    let args = ["-q", "-F", "-t", "ext4", "-b", "1024", "-J", "size=1", "-N", "128"];
    let mke2fs = ["/usr/sbin/mke2fs", "/sbin/mke2fs"].into_iter().find(|path| std::path::Path::new(path).exists());
    let status = std::process::Command::new(mke2fs.unwrap_or("mke2fs")).args(args).arg(&path).status();
    assert!(status.expect("mke2fs is not installed").success());
    let image = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    image
}

fn fsck(image: &[u8]) -> Result<(), String> {
    let path =
        std::env::temp_dir().join(format!("ursa-ext4d-fsck-{}-{:?}", std::process::id(), std::thread::current().id()));
    std::fs::write(&path, image).unwrap();
    let e2fsck = ["/usr/sbin/e2fsck", "/sbin/e2fsck"].into_iter().find(|path| std::path::Path::new(path).exists());
    let out = std::process::Command::new(e2fsck.unwrap_or("e2fsck")).arg("-fn").arg(&path).output();
    let out = out.expect("e2fsck is not installed");
    std::fs::remove_file(&path).unwrap();
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stdout).into_owned()) }
}

/// Everything below a directory: names, and what matters of what they lead to.
fn tree(fs: &Fs, dir: &ext4::Inode, path: &str, out: &mut BTreeMap<String, String>) {
    let mut names = Vec::new();
    fs.read_dir(dir, 0, &mut |entry| {
        names.push(entry.name.to_vec());
        true
    })
    .unwrap();
    for name in names.iter().filter(|name| *name != b"." && *name != b"..") {
        let inode = fs.lookup(dir, name).unwrap();
        let stat = inode.stat();
        let path = format!("{path}/{}", String::from_utf8_lossy(name));
        let mut what = format!("{:o} {} {}", stat.mode, stat.nlink, stat.size);
        match stat.mode & ext4::S_IFMT {
            ext4::S_IFDIR => tree(fs, &inode, &path, out),
            ext4::S_IFLNK => what += &format!(" {:?}", fs.read_link(&inode).unwrap()),
            _ => {
                let mut bytes = vec![0; stat.size as usize];
                assert_eq!(fs.read(&inode, 0, &mut bytes).unwrap(), bytes.len());
                let sum = bytes.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
                what += &format!(" {sum:x} {:?}", fs.xattr_names(&inode).unwrap());
            }
        }
        fs.unpin(&inode, 1).unwrap();
        out.insert(path, what);
    }
}

/// What is left: what clients saw, the tree, and free blocks and inodes.
#[derive(PartialEq, Eq, Debug)]
struct Outcome {
    seen: Vec<(i32, Vec<u8>)>,
    tree: BTreeMap<String, String>,
    free: (u64, u64),
}

/// Lives through it with servers that end as `kills` say, one after the other. Returns how many requests the first read.
fn live_through(image: &[u8], kills: &[ExitAt], commits: Vec<usize>) -> Outcome {
    let dev = Arc::new(MemDevice::new(image.to_vec()));
    let state = State {
        ops: life(),
        next: 0,
        unique: 2,
        open: None,
        retained: Vec::new(),
        again: VecDeque::new(),
        under_way: None,
        nodes: BTreeMap::from([(0, ROOT_ID)]),
        lookups: BTreeMap::new(),
        seen: Vec::new(),
        commits,
        failed: Vec::new(),
    };
    let kernel = Arc::new(Fake(Mutex::new(state)));
    let mut kills = kills.iter();
    let mut successor = false;
    loop {
        let requests = Arc::new(Requests::new(kernel.clone(), true, successor, kills.next().copied()));
        let live = {
            let state = kernel.0.lock();
            let of = |(&node, &lookups): (&u64, &u64)| {
                let (ino, generation) = crate::node::inode_of(node);
                Live { ino, generation, lookups }
            };
            state.lookups.iter().map(of).collect()
        };
        let ledger: Arc<dyn Ledger> = requests.clone();
        let options = Options { live, ledger: Some(ledger), ..Options::default() };
        let fs = Arc::new(Fs::mount(dev.clone(), &options).unwrap());
        requests.start(fs.requests_in_a_commit() - 4);
        if successor {
            kernel.0.lock().resume();
        }
        let server = Server::new(fs.clone(), kernel.clone(), requests, true);
        match server.serve().unwrap() {
            End::Killed => successor = true,
            End::Unmounted => {
                let state = kernel.0.lock();
                assert_eq!(state.failed, Vec::<String>::new());
                // What the client has leads where its names lead.
                for (&node, &lookups) in &state.lookups {
                    let (ino, generation) = crate::node::inode_of(node);
                    if let Some(generation) = generation {
                        let inode = fs.inode_by_handle(ino, generation).expect("an inode that somebody has");
                        assert_eq!(inode.pins(), lookups, "look-ups of inode {ino}");
                    }
                }
                let mut found = BTreeMap::new();
                tree(&fs, &fs.root().unwrap(), "", &mut found);
                let seen = state.seen.clone();
                drop(state);
                fs.unmount().unwrap();
                let free = (fs.statfs().free, fs.statfs().free_inodes);
                fsck(&dev.contents()).unwrap_or_else(|text| panic!("{text}"));
                return Outcome { seen, tree: found, free };
            }
        }
    }
}

const PHASES: [&str; 4] = ["received", "done", "before-reply", "after-reply"];

fn at(request: usize, phase: usize) -> ExitAt {
    format!("{request}:{}", PHASES[phase]).parse().unwrap()
}

/// `URSA_KILLS` multiplies the rounds that are drawn.
fn rounds() -> u64 {
    std::env::var("URSA_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

#[test]
fn a_kill_at_any_point_changes_nothing() {
    let image = image();
    let want = live_through(&image, &[], Vec::new());
    let mut rng = Rng::with_seed(1);
    let count = life().len();
    for request in 1..=count {
        for (phase, name) in PHASES.into_iter().enumerate() {
            // In between, commits of the kernel's or of the timer's.
            let mut commits: Vec<usize> = (0..rng.usize(..4)).map(|_| rng.usize(..count)).collect();
            commits.sort_unstable_by(|a, b| b.cmp(a));
            let got = live_through(&image, &[at(request, phase)], commits.clone());
            assert_eq!(got, want, "killed at {request}:{name}, commits before {commits:?}");
        }
    }
}

#[test]
fn servers_that_die_again_and_again_change_nothing() {
    let image = image();
    let want = live_through(&image, &[], Vec::new());
    for seed in 0..150 * rounds() {
        let mut rng = Rng::with_seed(seed);
        let count = life().len();
        let mut commits: Vec<usize> = (0..rng.usize(..6)).map(|_| rng.usize(..count)).collect();
        commits.sort_unstable_by(|a, b| b.cmp(a));
        let kills: Vec<ExitAt> = (0..rng.usize(2..6)).map(|_| at(rng.usize(1..25), rng.usize(..4))).collect();
        let got = live_through(&image, &kills, commits.clone());
        assert_eq!(got, want, "seed {seed}: killed at {kills:?}, commits before {commits:?}");
    }
}
