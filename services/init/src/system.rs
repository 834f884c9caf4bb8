//! The system around the services: file systems that programs expect, their links, host name, and the way down.
//!
//! The first process works in the folder that it was started in, the root of the boot archive, and names its own files from
//! there, without a leading slash. Its *root* becomes the disk's when there is one, as everybody's: so a path from the root may
//! wait for the root's server, and only helpers use such.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill},
    },
    unistd::{Pid, sync},
};
use serde::{Deserialize, Serialize};

use crate::{
    drivers,
    unit::{self, Texts},
};

/// Where drivers are described.
pub const DRIVERS: &str = "usr/lib/ursa/drivers";
/// Where services are, the more important first.
const UNIT_FOLDERS: [&str; 2] = ["etc/ursa/services", "usr/lib/ursa/services"];

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
    Mount { what: "proc", at: "proc", kind: "proc", flags: QUIET, options: "", optional: false },
    Mount { what: "dev", at: "dev", kind: "devtmpfs", flags: MsFlags::MS_NOSUID, options: "mode=755", optional: false },
    Mount { what: "sysfs", at: "sys", kind: "sysfs", flags: QUIET, options: "", optional: true },
    Mount {
        what: "devpts",
        at: "dev/pts",
        kind: "devpts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        options: "gid=5,mode=620,ptmxmode=666",
        optional: true,
    },
    Mount { what: "tmpfs", at: "dev/shm", kind: "tmpfs", flags: NODEV, options: "mode=1777", optional: true },
    Mount { what: "tmpfs", at: "run", kind: "tmpfs", flags: NODEV, options: "mode=755", optional: false },
    Mount { what: "cgroup2", at: "sys/fs/cgroup", kind: "cgroup2", flags: QUIET, options: "", optional: true },
];

const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
];

/// Folders that Debian's boot scripts or tmpfiles would make.
const FOLDERS: &[(&str, u32)] = &[("run/dbus", 0o755), ("run/lock", 0o1777), ("run/user", 0o755), ("run/ursa", 0o755)];
/// The same in the root file system.
const ROOT_FOLDERS: &[(&str, u32)] = &[("tmp", 0o1777), ("tmp/.X11-unix", 0o1777), ("tmp/.ICE-unix", 0o1777)];

/// Mounts the kernel's file systems and makes links and folders in them; returns a message for each thing that failed but is
/// not vital.
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
    make_folders(FOLDERS, &mut problems);
    if let Err(error) = loopback::up() {
        problems.push(format!("loopback interface: {error}"));
    }
    Ok(problems)
}

fn make_folders(folders: &[(&str, u32)], problems: &mut Vec<String>) {
    for (folder, mode) in folders {
        let made = fs::create_dir_all(folder)
            .and_then(|()| fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(*mode)));
        if let Err(error) = made {
            problems.push(format!("/{folder}: {error}"));
        }
    }
}

/// Shows the kernel's file systems below `root` too.
///
/// # Errors
/// One that programs cannot do without.
pub fn show_below(root: &Path) -> anyhow::Result<()> {
    let none: Option<&str> = None;
    for name in ["dev", "proc", "sys", "run", "scheme"] {
        if !Path::new(name).exists() {
            continue;
        }
        let at = root.join(name);
        // On a root that is read-only the folder is there or nothing helps.
        let _ = fs::create_dir_all(&at);
        let done = mount(Some(name), &at, none, MsFlags::MS_BIND | MsFlags::MS_REC, none);
        done.with_context(|| format!("/{name} cannot be shown on the root file system"))?;
    }
    // What programs leave there is of one boot, as Debian 13 has it.
    let at = root.join("tmp");
    let _ = fs::create_dir_all(&at);
    mount(Some("tmpfs"), &at, Some("tmpfs"), NODEV, Some("mode=1777")).context("/tmp")
}

/// What the root file system says about the system.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Loaded {
    /// Service files.
    pub units: Texts,
    /// `driver.toml` files.
    pub drivers: Texts,
    /// `scheme.toml` files that these name.
    pub schemes: BTreeMap<PathBuf, String>,
    /// What went wrong, for people.
    pub problems: Vec<String>,
}

/// Prepares the root file system and reads what is on it: a helper's work. Its working directory is the root.
pub fn load() -> Loaded {
    let (units, mut problems) = unit::read(&UNIT_FOLDERS.map(Path::new));
    let drivers = drivers::read(Path::new(DRIVERS));
    let mut schemes = BTreeMap::new();
    // What is wrong with a file is said by who takes it.
    let of_units = unit::parse_all(&units).0.into_values().filter_map(|unit| unit.scheme);
    let of_drivers = drivers::parse_all(&drivers).0.into_values();
    for path in of_units.chain(of_drivers.filter_map(|driver| driver.scheme().map(Path::to_owned))) {
        if let Ok(text) = fs::read_to_string(&path) {
            schemes.insert(path, text);
        }
    }
    make_folders(ROOT_FOLDERS, &mut problems);
    if let Err(error) = make_machine_id(Path::new("/etc/machine-id")) {
        problems.push(format!("/etc/machine-id: {error}"));
    }
    let name = fs::read_to_string("/etc/hostname").unwrap_or_default();
    let name = if name.trim().is_empty() { "ursa" } else { name.trim() };
    if let Err(error) = rustix::system::sethostname(name.as_bytes()) {
        problems.push(format!("host name: {error}"));
    }
    Loaded { units, drivers, schemes, problems }
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
    let line = fs::read_to_string("proc/cmdline").unwrap_or_default();
    line.split_whitespace().any(|option| match option.split_once('=') {
        Some((name, _)) => option == word || name == word,
        None => option == word,
    })
}

/// Value of `name=` on the kernel's command line.
pub fn option(name: &str) -> Option<String> {
    let line = fs::read_to_string("proc/cmdline").ok()?;
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

/// Goes down at once. Returns only if the kernel refuses.
pub fn go_down(how: Down) -> nix::Error {
    sync();
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

/// The processes that are there, but for the first.
pub fn processes() -> Vec<i32> {
    let entries = fs::read_dir("proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| *pid > 1).collect()
}

/// Sends a signal; one who is gone is as good.
pub fn send(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// Mount points, outermost first, without `root` and those in memory that the system itself has.
fn mount_points(root: Option<&str>) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let ours =
        |at: &str| ["proc", "dev", "sys", "run", "scheme", ""].contains(&at.split('/').nth(1).unwrap_or_default());
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    points.filter(|at| Some(*at) != root && !ours(at)).map(unescaped).collect()
}

/// A field of `/proc/mounts`, in which blanks are octal.
fn unescaped(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\043", "#"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Writes everything back and unmounts all but `root` and what the kernel itself needs: a helper's work. What is in use is told.
pub fn unmount_all(root: Option<&Path>) {
    sync();
    let root = root.and_then(Path::to_str);
    for at in mount_points(root).iter().rev() {
        // What is shown on the root a second time is in use by nobody who is left.
        let flags =
            if root.is_some_and(|root| at.starts_with(root)) { MntFlags::MNT_DETACH } else { MntFlags::empty() };
        if let Err(error) = umount2(Path::new(at), flags)
            && error != Errno::EINVAL
        {
            eprintln!("init: {at} cannot be unmounted: {error}");
        }
    }
}

/// How often and how long after another the root is tried to be unmounted.
const ATTEMPTS: (u32, Duration) = (40, Duration::from_millis(100));

/// Unmounts the root file system: a helper's work. What cannot be unmounted is made read-only.
///
/// # Errors
/// It stays writable.
pub fn unmount_root(root: &Path) -> anyhow::Result<()> {
    let (attempts, pause) = ATTEMPTS;
    for _ in 0..attempts {
        match umount2(root, MntFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(Errno::EBUSY) => std::thread::sleep(pause),
            Err(error) => bail!("the root file system cannot be unmounted: {error}"),
        }
    }
    let none: Option<&str> = None;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOATIME;
    let done = mount(none, root, none, flags, none);
    sync();
    done.context("the root file system is in use and stays writable")?;
    bail!("the root file system is in use and is read-only now")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_mount_points_are_unescaped() {
        assert_eq!(unescaped("/a\\040b\\134c"), "/a b\\c");
    }
}
