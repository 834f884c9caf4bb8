//! The system around the services: file systems that programs expect, their links, host name, and the way down.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::symlink,
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, sync},
};

/// A file system that is mounted before any service starts.
struct Mount {
    what: &'static str,
    at: &'static str,
    kind: &'static str,
    flags: MsFlags,
    options: &'static str,
    /// The boot goes on without it.
    optional: bool,
}

const NODEV: MsFlags = MsFlags::MS_NODEV.union(MsFlags::MS_NOSUID);
const QUIET: MsFlags = NODEV.union(MsFlags::MS_NOEXEC);

const MOUNTS: &[Mount] = &[
    Mount { what: "proc", at: "/proc", kind: "proc", flags: QUIET, options: "", optional: false },
    Mount {
        what: "dev",
        at: "/dev",
        kind: "devtmpfs",
        flags: MsFlags::MS_NOSUID,
        options: "mode=755",
        optional: false,
    },
    Mount { what: "sysfs", at: "/sys", kind: "sysfs", flags: QUIET, options: "", optional: true },
    Mount {
        what: "devpts",
        at: "/dev/pts",
        kind: "devpts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        options: "gid=5,mode=620,ptmxmode=666",
        optional: true,
    },
    Mount { what: "tmpfs", at: "/dev/shm", kind: "tmpfs", flags: NODEV, options: "mode=1777", optional: true },
    Mount { what: "tmpfs", at: "/run", kind: "tmpfs", flags: NODEV, options: "mode=755", optional: false },
    Mount { what: "cgroup2", at: "/sys/fs/cgroup", kind: "cgroup2", flags: QUIET, options: "", optional: true },
];

const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Folders that Debian's boot scripts or tmpfiles would make.
const FOLDERS: &[(&str, u32)] = &[
    ("/run/dbus", 0o755),
    ("/run/lock", 0o1777),
    ("/run/user", 0o755),
    ("/run/ursa", 0o755),
    ("/tmp", 0o1777),
    ("/tmp/.X11-unix", 0o1777),
    ("/tmp/.ICE-unix", 0o1777),
];

/// Mounts the file systems and makes links and folders; returns a message for each thing that failed but is not vital.
///
/// # Errors
/// When a vital file system cannot be mounted.
pub fn set_up() -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    for entry in MOUNTS {
        let _ = fs::create_dir_all(entry.at);
        let options = (!entry.options.is_empty()).then_some(entry.options);
        match mount(Some(entry.what), entry.at, Some(entry.kind), entry.flags, options) {
            // EBUSY: somebody mounted it before us (the kernel, an initramfs).
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) if entry.optional => problems.push(format!("{} on {}: {error}", entry.kind, entry.at)),
            Err(error) => anyhow::bail!("{} cannot be mounted on {}: {error}", entry.kind, entry.at),
        }
    }
    for (target, link) in LINKS {
        if fs::symlink_metadata(link).is_err()
            && let Err(error) = symlink(target, link)
        {
            problems.push(format!("{link}: {error}"));
        }
    }
    for (folder, mode) in FOLDERS {
        let made = fs::create_dir_all(folder)
            .and_then(|()| fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(*mode)));
        if let Err(error) = made {
            problems.push(format!("{folder}: {error}"));
        }
    }
    if let Err(error) = make_machine_id(Path::new("/etc/machine-id")) {
        problems.push(format!("/etc/machine-id: {error}"));
    }
    let name = fs::read_to_string("/etc/hostname").unwrap_or_default();
    let name = if name.trim().is_empty() { "ursa" } else { name.trim() };
    if let Err(error) = rustix::system::sethostname(name.as_bytes()) {
        problems.push(format!("host name: {error}"));
    }
    if let Err(error) = loopback::up() {
        problems.push(format!("loopback interface: {error}"));
    }
    Ok(problems)
}

/// Gives the system the number by which it knows itself, machine-id(5), if it has none yet.
fn make_machine_id(path: &Path) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|id| id.trim().len() == 32) {
        return Ok(());
    }
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    // Version 4 and the usual variant, as if the id were a UUID.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(path, text + "\n")
}

/// Whether the kernel's command line has this word (`name` or `name=value`).
pub fn has_option(word: &str) -> bool {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    line.split_whitespace().any(|option| match option.split_once('=') {
        Some((name, _)) => option == word || name == word,
        None => option == word,
    })
}

/// Value of `name=` on the kernel's command line.
pub fn option(name: &str) -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    line.split_whitespace().find_map(|option| Some(option.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

/// How the machine goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down {
    /// Power off.
    PowerOff,
    /// Start anew.
    Reboot,
    /// Stop without power-off.
    Halt,
}

/// Ends every process that is left, unmounts, writes back, and goes down. Returns only if the kernel refuses.
pub fn go_down(how: Down) -> nix::Error {
    end_everyone();
    sync();
    for at in mount_points().iter().rev() {
        let _ = umount2(Path::new(at), MntFlags::empty());
    }
    let mode = match how {
        Down::PowerOff => RebootMode::RB_POWER_OFF,
        Down::Reboot => RebootMode::RB_AUTOBOOT,
        Down::Halt => RebootMode::RB_HALT_SYSTEM,
    };
    match reboot(mode) {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

/// SIGTERM to all, five seconds, SIGKILL to the rest.
fn end_everyone() {
    let all = Pid::from_raw(-1);
    for (signal, patience) in [(Signal::SIGTERM, Duration::from_secs(5)), (Signal::SIGKILL, Duration::from_secs(2))] {
        if kill(all, signal).is_err() {
            return;
        }
        let end = std::time::Instant::now() + patience;
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Err(Errno::ECHILD) => return,
                Ok(WaitStatus::StillAlive) if std::time::Instant::now() >= end => break,
                Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(20)),
                _ => {}
            }
        }
    }
}

/// Mount points of real file systems, outermost first.
fn mount_points() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let keep = ["/", "/proc", "/dev", "/sys", "/run"];
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|at| !keep.contains(at))
        .map(str::to_owned)
        .collect()
}
