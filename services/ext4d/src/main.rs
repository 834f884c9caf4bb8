//! `ext4d`: serves an ext4 file system over FUSE, on Ursa and on Linux.
//!
//! ```text
//! ext4d [-o OPTIONS] [--threads N] [--stdin] [--lock] [--live INO:COUNT,…] [--exit-at K:PHASE] DEVICE [MOUNTPOINT]
//! ```
//!
//! With a mount point it opens `/dev/fuse` and mounts itself there; with `--stdin` it serves a connection that somebody else
//! made and mounted, its standard input; with `--lock` its memory is locked, as it must be where it serves the root. It stays in the foreground, says ready by `sd_notify(3)`, and ends when the file system is unmounted. Options: `ro`,
//! `nowriteback` (every write comes at once), `resumable` (see [`requests`]), `commit=SECONDS`.
//!
//! A node's number is the inode's number and generation, so a successor understands what a dead server gave out. `--live`
//! tells it which inodes somebody still has: those without names are not cleaned up. `--exit-at` is for tests: the process
//! ends at the K-th request, in one of the phases `received`, `done` (the effect is there), `before-reply`, `after-reply`.
#![deny(unsafe_code)]

mod dispatch;
mod node;
mod requests;
mod server;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use ext4::{FileDevice, Fs};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::mount::{MountFlags, mount};

use crate::requests::{ExitAt, Requests};
use crate::server::Server;

/// What the command line says.
#[derive(Debug)]
struct Arguments {
    device: PathBuf,
    mount_point: Option<PathBuf>,
    stdin: bool,
    lock: bool,
    threads: usize,
    live: Vec<(u32, u64)>,
    exit_at: Option<ExitAt>,
    read_only: bool,
    write_back: bool,
    resumable: bool,
    commit: Duration,
}

const USAGE: &str = "usage: ext4d [-o OPTIONS] [--threads N] [--stdin] [--lock] [--live INO:COUNT,…] [--exit-at K:PHASE] DEVICE [MOUNTPOINT]";

fn parse(words: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut args = Arguments {
        device: PathBuf::new(),
        mount_point: None,
        stdin: false,
        lock: false,
        threads: std::thread::available_parallelism().map_or(2, |count| count.get()).clamp(2, 8),
        live: Vec::new(),
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
            "--live" => {
                for one in value()?.split(',').filter(|one| !one.is_empty()) {
                    let (ino, count) = one.split_once(':').context("--live wants INO:COUNT")?;
                    args.live.push((ino.parse()?, count.parse()?));
                }
            }
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

/// Makes a connection and hangs it into the tree.
fn connect(args: &Arguments, read_only: bool) -> Result<OwnedFd> {
    if args.stdin {
        return Ok(std::io::stdin().as_fd().try_clone_to_owned()?);
    }
    let point = args.mount_point.as_ref().context("no mount point")?;
    let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse").context("/dev/fuse")?;
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions\0", fuse.as_raw_fd());
    let data = std::ffi::CStr::from_bytes_with_nul(data.as_bytes())?;
    let flags = MountFlags::NOATIME | if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    mount(&args.device, point, "fuse.ext4", flags, Some(data))
        .with_context(|| format!("mounting on {}", point.display()))?;
    Ok(fuse.into())
}

fn run() -> Result<()> {
    let args = parse(std::env::args().skip(1))?;
    if args.lock
        && let Err(errno) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE)
    {
        eprintln!("ext4d: memory is not locked: {errno}");
    }
    let device = open_device(&args).with_context(|| args.device.display().to_string())?;
    let options = ext4::Options { read_only: args.read_only, live: args.live.clone(), ..ext4::Options::default() };
    let fs = Fs::mount(Arc::new(device), &options).with_context(|| args.device.display().to_string())?;
    let fs = Arc::new(fs);
    if fs.is_read_only() && !args.read_only {
        eprintln!("ext4d: {} is mounted read-only", args.device.display());
    }
    let requests = Arc::new(Requests::new(args.resumable, fs.recovered(), args.exit_at));
    fs.set_requests({
        let requests = requests.clone();
        move || requests.progress()
    });
    let fuse = connect(&args, fs.is_read_only())?;
    let server = Arc::new(Server::new(fs.clone(), fuse, requests, args.write_back));
    start_ticking(&fs, args.commit)?;

    let mut workers = Vec::new();
    for number in 1..args.threads {
        let server = server.clone();
        let worker = std::thread::Builder::new().name(format!("ext4d-{number}"));
        workers.push(worker.spawn(move || server.serve())?);
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let result = server.serve();
    for worker in workers {
        let _ = worker.join();
    }
    fs.unmount().context("unmounting")?;
    result
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
