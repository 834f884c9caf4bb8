//! What PID 1 has to do before commands can run: the kernel's file systems, and on Linux the way from the initramfs to
//! the real root.
//!
//! On Ursa the root is already there (the kernel unpacked the archive), so only missing mounts are made. On Linux the
//! initramfs holds this program, `/modules` with an `order` file, and `/add` with files to lay over the root.

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The value of `name=value` on the kernel's command line; empty for a bare `name`.
pub fn option(name: &str) -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    line.split_ascii_whitespace().find_map(|word| {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        (key == name).then(|| value.to_owned())
    })
}

/// Mounts the kernel's file systems where they are missing; on Linux, moves into the real root first.
pub fn prepare() -> Result<(), String> {
    attach("proc", "/proc", "proc", MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, None);
    attach("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, Some("mode=0755"));
    if Path::new("/modules/order").exists() {
        enter_root()?;
    }
    attach("sysfs", "/sys", "sysfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, None);
    attach("devpts", "/dev/pts", "devpts", MsFlags::MS_NOSUID, Some("gid=5,mode=620,ptmxmode=666"));
    attach("tmpfs", "/dev/shm", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=1777"));
    attach("tmpfs", "/run", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"));
    attach("tmpfs", "/tmp", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=1777"));
    attach("cgroup2", "/sys/fs/cgroup", "cgroup2", MsFlags::MS_NOSUID, None);
    for (target, link) in
        [("/proc/self/fd", "/dev/fd"), ("fd/0", "/dev/stdin"), ("fd/1", "/dev/stdout"), ("fd/2", "/dev/stderr")]
    {
        if fs::symlink_metadata(link).is_err() {
            let _ = symlink(target, link);
        }
    }
    for folder in ["/run/lock", "/run/user"] {
        let _ = fs::create_dir_all(folder);
    }
    let _ = nix::unistd::sethostname("ursa");
    // Tests of sockets want the loopback interface. Nothing else here depends on it.
    let _ = loopback::up();
    Ok(())
}

/// Mounts a file system unless one is there. A kernel that lacks it only costs a line in the log.
fn attach(source: &str, target: &str, kind: &str, flags: MsFlags, data: Option<&str>) {
    if is_mount_point(target) {
        return;
    }
    let _ = fs::create_dir_all(target);
    match mount(Some(source), target, Some(kind), flags, data) {
        Ok(()) | Err(Errno::EBUSY) => {}
        Err(errno) => eprintln!("ursa-agent: no {kind} on {target}: {errno}"),
    }
}

/// Whether something is mounted there: the device number changes below the parent.
fn is_mount_point(path: &str) -> bool {
    let Ok(here) = fs::metadata(path) else { return false };
    let Ok(parent) = fs::metadata(format!("{path}/..")) else { return false };
    here.dev() != parent.dev()
}

/// From the initramfs to the root disk: modules, mount, added files, change of root, and the program that `init=` names, or this
/// one once more.
fn enter_root() -> Result<(), String> {
    for name in fs::read_to_string("/modules/order").map_err(|e| format!("/modules/order: {e}"))?.lines() {
        let file = fs::File::open(format!("/modules/{name}")).map_err(|e| format!("module {name}: {e}"))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(format!("module {name}: {errno}")),
        }
    }
    let disk = "/dev/vda";
    let patience = Instant::now();
    while !Path::new(disk).exists() {
        if patience.elapsed() > Duration::from_secs(30) {
            return Err(format!("{disk} does not appear"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let root = "/newroot";
    let _ = fs::create_dir_all(root);
    mount(Some(disk), root, Some("ext4"), MsFlags::MS_NOATIME, None::<&str>).map_err(|e| format!("{disk}: {e}"))?;
    if Path::new("/add").exists() {
        copy_tree(Path::new("/add"), Path::new(root)).map_err(|e| format!("adding files: {e}"))?;
    }
    for folder in ["dev", "proc", "run"] {
        let _ = fs::create_dir_all(format!("{root}/{folder}"));
    }
    let run = format!("{root}/run");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), run.as_str(), Some("tmpfs"), flags, Some("mode=0755")).map_err(|e| format!("/run: {e}"))?;
    let program = format!("{root}{}", super::INSTALLED);
    fs::copy("/init", &program).map_err(|e| format!("{program}: {e}"))?;
    mount(Some("/dev"), format!("{root}/dev").as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(|e| format!("moving /dev: {e}"))?;
    let next = option("init").unwrap_or_else(|| super::INSTALLED.to_owned());
    umount2("/proc", MntFlags::MNT_DETACH).map_err(|e| format!("/proc: {e}"))?;
    std::env::set_current_dir(root).map_err(|e| format!("{root}: {e}"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(|e| format!("moving the root: {e}"))?;
    nix::unistd::chroot(".").map_err(|e| format!("chroot: {e}"))?;
    let failure = Command::new(&next).exec();
    Err(format!("{next}: {failure}"))
}

/// Lays a tree over another: folders merge, all else replaces what was there. Modes, owners and links are kept.
fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let data = fs::symlink_metadata(&source)?;
        let existing = fs::metadata(&target).ok();
        if data.is_dir() {
            // A folder that exists (perhaps through a link, as /bin does) keeps its own mode and owner.
            if !existing.is_some_and(|there| there.is_dir()) {
                fs::create_dir(&target)?;
                chown(&target, Some(data.uid()), Some(data.gid()))?;
                fs::set_permissions(&target, fs::Permissions::from_mode(data.mode() & 0o7777))?;
            }
            copy_tree(&source, &target)?;
            continue;
        }
        match fs::remove_file(&target) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        if data.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
            lchown(&target, Some(data.uid()), Some(data.gid()))?;
        } else {
            fs::copy(&source, &target)?;
            chown(&target, Some(data.uid()), Some(data.gid()))?;
            fs::set_permissions(&target, fs::Permissions::from_mode(data.mode() & 0o7777))?;
        }
    }
    Ok(())
}

/// Writes everything back and switches the machine off. Returns only if the kernel cannot.
pub fn end() {
    nix::unistd::sync();
    let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("ursa-agent: cannot power off: {errno}");
}
