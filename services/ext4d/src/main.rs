//! `ext4d`: serves an ext4 file system over FUSE, on Ursa and on Linux.
//!
//! ```text
//! ext4d [-o OPTIONS] [--threads N] [--stdin] [--lock] [--exit-at K:PHASE] DEVICE [MOUNTPOINT]
//! ext4d --table FILE
//! ```
//!
//! With a mount point it opens `/dev/fuse` and mounts itself there; with `--stdin` it serves a connection that somebody else
//! made and mounted, its standard input; with `--lock` its memory is locked, as it must be where it serves the root. It stays in the foreground, says ready by `sd_notify(3)`, and ends when the file system is unmounted. Options: `ro`,
//! `nowriteback` (every write comes at once), `resumable` (see [`requests`]), `commit=SECONDS`.
//!
//! The arguments may also stand in a file, in one line. When init passes a descriptor `fuse` (sd_listen_fds(3)) it is used to
//! mount; when something is mounted with it already, this server is the *successor* of one that died: it takes over what the
//! kernel has and goes on. A node's number is the inode's number and generation, so a successor understands what a dead server
//! gave out. `--exit-at` is for tests: a server that is no successor ends at the K-th request, in one of the phases `received`,
//! `done` (the effect is there), `before-reply`, `after-reply`.
//!
//! Under a watchdog (`WATCHDOG_USEC`) it is silent as soon as one request takes half of that time.
#![deny(unsafe_code)]

mod dispatch;
mod node;
mod requests;
mod server;
#[cfg(test)]
mod successor_tests;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use ext4::{FileDevice, Fs, Ledger, Live, Progress};
use fuse_abi::scheme::Done;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::mount::{MountFlags, mount};
use scheme::{Before, MountConnection};

use crate::requests::{ExitAt, Kernel, Requests};
use crate::server::{End, Server};

/// What the command line says.
#[derive(Debug)]
struct Arguments {
    device: PathBuf,
    mount_point: Option<PathBuf>,
    stdin: bool,
    lock: bool,
    threads: usize,
    exit_at: Option<ExitAt>,
    read_only: bool,
    write_back: bool,
    resumable: bool,
    commit: Duration,
}

const USAGE: &str = "usage: ext4d [-o OPTIONS] [--threads N] [--stdin] [--lock] [--exit-at K:PHASE] DEVICE [MOUNTPOINT]
       ext4d --table FILE";

fn parse(words: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut args = Arguments {
        device: PathBuf::new(),
        mount_point: None,
        stdin: false,
        lock: false,
        threads: std::thread::available_parallelism().map_or(2, |count| count.get()).clamp(2, 8),
        exit_at: None,
        read_only: false,
        write_back: true,
        resumable: false,
        commit: Duration::from_secs(5),
    };
    let mut places = Vec::new();
    let mut words = words;
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match word.as_str() {
            "-o" => options(&mut args, &value()?)?,
            "--stdin" => args.stdin = true,
            "--lock" => args.lock = true,
            "--threads" => args.threads = value()?.parse::<usize>().context("--threads")?.clamp(1, 64),
            "--exit-at" => args.exit_at = Some(value()?.parse().map_err(|text: &str| anyhow!(text))?),
            other if other.starts_with('-') => bail!("{other}: unknown\n{USAGE}"),
            _ => places.push(PathBuf::from(word)),
        }
    }
    let mut places = places.into_iter();
    args.device = places.next().context(USAGE)?;
    args.mount_point = places.next();
    if places.next().is_some() || args.mount_point.is_none() && !args.stdin {
        bail!("{USAGE}");
    }
    Ok(args)
}

fn options(args: &mut Arguments, text: &str) -> Result<()> {
    for option in text.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("ro", "") => args.read_only = true,
            ("rw", "") => args.read_only = false,
            ("nowriteback", "") => args.write_back = false,
            ("resumable", "") => args.resumable = true,
            ("commit", seconds) => args.commit = Duration::from_secs(seconds.parse::<u64>().context("commit=")?.max(1)),
            // What mount(8) passes on and what is so anyway.
            (
                "defaults" | "noatime" | "relatime" | "errors" | "suid" | "dev" | "exec" | "async" | "nouser" | "auto",
                _,
            ) => {}
            _ => bail!("option {option} is unknown"),
        }
    }
    Ok(())
}

fn open_device(args: &Arguments) -> Result<FileDevice> {
    let writable =
        if args.read_only { None } else { OpenOptions::new().read(true).write(true).open(&args.device).ok() };
    let read_only = writable.is_none();
    let file = match writable {
        Some(file) => file,
        None => File::open(&args.device)?,
    };
    Ok(FileDevice::new(file, read_only)?)
}

/// The words of the command line, or of the file that `--table` names.
fn words() -> Result<Vec<String>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &words[..] {
        [option, path] if option == "--table" => {
            let text = std::fs::read_to_string(path).with_context(|| path.clone())?;
            Ok(text.split_whitespace().map(str::to_owned).collect())
        }
        _ => Ok(words),
    }
}

/// A descriptor of `/dev/fuse` as [`Kernel`].
struct Fuse(MountConnection);

impl Kernel for Fuse {
    fn receive(&self, into: &mut [u8]) -> rustix::io::Result<usize> {
        rustix::io::read(&self.0, into)
    }

    fn answer(&self, bytes: &[u8]) -> rustix::io::Result<()> {
        rustix::io::write(&self.0, bytes).map(drop)
    }

    fn committed(&self, progress: &Progress) -> std::io::Result<()> {
        let also = progress.also.iter().map(|done| Done { unique: done.request, result: done.result });
        self.0.committed(progress.upto, &also.collect::<Vec<_>>())
    }

    fn outstanding(&self) -> std::io::Result<Vec<u64>> {
        self.0.outstanding()
    }
}

/// The connection that was passed, or a new one.
fn connection(args: &Arguments) -> Result<MountConnection> {
    if args.stdin {
        return Ok(std::io::stdin().as_fd().try_clone_to_owned()?.into());
    }
    if let Some(passed) = MountConnection::from_environment() {
        return Ok(passed);
    }
    let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse").context("/dev/fuse")?;
    Ok(OwnedFd::from(fuse).into())
}

/// Hangs the connection into the tree.
fn mount_at(args: &Arguments, fuse: &Fuse, resumable: bool, read_only: bool) -> Result<()> {
    let point = args.mount_point.as_ref().context("no mount point")?;
    let resumable = if resumable { ",resumable" } else { "" };
    let fd = fuse.0.as_fd().as_raw_fd();
    let data = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions{resumable}");
    let data = std::ffi::CString::new(data)?;
    let flags = MountFlags::NOATIME | if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    mount(&args.device, point, "fuse.ext4", flags, Some(&*data))
        .with_context(|| format!("mounting on {}", point.display()))
}

/// What the kernel has of inodes.
fn live_of(inodes: Vec<fuse_abi::scheme::Live>) -> Vec<Live> {
    let of = |live: fuse_abi::scheme::Live| {
        let (ino, generation) = node::inode_of(live.node);
        Live { ino, generation, lookups: live.lookups }
    };
    inodes.into_iter().map(of).collect()
}

fn run() -> Result<()> {
    let mut args = parse(words()?.into_iter())?;
    if args.lock
        && let Err(errno) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE)
    {
        eprintln!("ext4d: memory is not locked: {errno}");
    }
    let fuse = Arc::new(Fuse(connection(&args)?));
    let before = if args.resumable { fuse.0.take_over().context("taking over")? } else { Before::Nothing };
    let mounted = args.stdin || before != Before::Nothing;
    let (successor, live) = match before {
        Before::Served(live) => (true, live_of(live)),
        _ => (false, Vec::new()),
    };
    if successor {
        args.exit_at = None;
    }
    let device = open_device(&args).with_context(|| args.device.display().to_string())?;
    let requests = Arc::new(Requests::new(fuse.clone(), args.resumable, successor, args.exit_at));
    let options = ext4::Options {
        read_only: args.read_only,
        live,
        ledger: args.resumable.then(|| requests.clone() as Arc<dyn Ledger>),
        ..ext4::Options::default()
    };
    let fs = Fs::mount(Arc::new(device), &options).with_context(|| args.device.display().to_string())?;
    let fs = Arc::new(fs);
    if fs.is_read_only() && !args.read_only {
        eprintln!("ext4d: {} is mounted read-only", args.device.display());
    }
    if args.resumable && !fs.has_journal() {
        eprintln!("ext4d: {} has no journal: nobody can go on where this server stops", args.device.display());
        requests.give_up();
    }
    requests.start(fs.requests_in_a_commit().saturating_sub(2 * args.threads).max(1));
    if successor {
        let count = fuse.0.resume().context("taking over")?;
        eprintln!("ext4d: {}: went on where another stopped, {count} requests to repeat", args.device.display());
    } else if !mounted {
        mount_at(&args, &fuse, requests.is_resumable(), fs.is_read_only())?;
    }
    let server = Arc::new(Server::new(fs.clone(), fuse, requests, args.write_back));
    start_ticking(&fs, args.commit)?;
    start_watchdog(&server)?;

    let mut workers = Vec::new();
    for number in 1..args.threads {
        let server = server.clone();
        let worker = std::thread::Builder::new().name(format!("ext4d-{number}"));
        workers.push(worker.spawn(move || serve(&server))?);
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let result = serve(&server);
    for worker in workers {
        let _ = worker.join();
    }
    fs.unmount().context("unmounting")?;
    result
}

/// Serves in one thread. Where a test wants the process to end it ends, with everything that is in memory.
fn serve(server: &Server) -> Result<()> {
    match server.serve()? {
        End::Unmounted => Ok(()),
        End::Killed => std::process::exit(86),
    }
}

/// Tells init that requests are answered, as long as they are.
fn start_watchdog(server: &Arc<Server>) -> Result<()> {
    let Some(limit) = sd_notify::watchdog_enabled() else { return Ok(()) };
    let server = Arc::downgrade(server);
    std::thread::Builder::new().name("ext4d-watchdog".into()).spawn(move || {
        while let Some(server) = server.upgrade() {
            if server.longest() < limit / 2 {
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            }
            drop(server);
            std::thread::sleep(limit / 4);
        }
    })?;
    Ok(())
}

/// Commits what has collected every few seconds.
fn start_ticking(fs: &Arc<Fs>, every: Duration) -> Result<()> {
    let fs = Arc::downgrade(fs);
    std::thread::Builder::new().name("ext4d-commit".into()).spawn(move || {
        loop {
            std::thread::sleep(every);
            let Some(fs) = fs.upgrade() else { return };
            if let Err(error) = fs.tick() {
                eprintln!("ext4d: {error}; nothing is written any more");
                return;
            }
        }
    })?;
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        eprintln!("ext4d: {error:#}");
        std::process::exit(1);
    }
}
