//! Starting a service's program: the supervisor's half and the child's half.
//!
//! The supervisor starts *itself* again with [`CHILD_ARG`] and the unit in the environment; that child sets up the
//! session, terminal, user and limits with safe calls in an ordinary single-threaded process, and then becomes the
//! service by execve(2). It costs one more exec than setting things up between fork and exec, and needs no `unsafe`.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
        unix::process::CommandExt,
    },
    path::{Component, Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use command_fds::{CommandFdExt, FdMapping};
use nix::{
    sys::signal::SigSet,
    unistd::{Gid, Uid, User, initgroups, setgid, setuid},
};

use crate::{
    confine::{self, Jail},
    grants::STDIN,
    manager::{PASSED_OVER_STATUS, Pid},
    unit::Unit,
};

/// Variables of the supervisor's that a confined unit sees.
const PASSED_ON: [&str; 5] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_FDNAMES", "DEVPATH"];
/// Where the child finds its jail, as TOML, when it has one.
const JAIL_VARIABLE: &str = "URSA_INIT_JAIL";
/// First argument of the supervisor's own program when it is to become a service.
pub const CHILD_ARG: &str = "--become-service";
/// Where the child finds its unit, as TOML.
const UNIT_VARIABLE: &str = "URSA_INIT_UNIT";
/// The first descriptor that a service receives, `SD_LISTEN_FDS_START`.
const FIRST_FD: i32 = 3;

/// Starts the unit's program with the `passed` descriptors from number 3 on (the one named [`STDIN`] is its standard input), in
/// `jail` if it is confined; returns the number of its process.
///
/// # Errors
/// When no process can be made. A program that cannot be executed shows as an exit with status 203 to 206.
pub fn spawn(
    program: &Path,
    name: &str,
    unit: &Unit,
    notify: &Path,
    passed: &[(String, OwnedFd)],
    jail: Option<&Jail>,
) -> Result<Pid> {
    let mut command = Command::new(program);
    command.arg(CHILD_ARG).arg(name).env(UNIT_VARIABLE, toml::to_string(unit)?);
    let stdin = match passed.iter().find(|(name, _)| name == STDIN) {
        Some((_, fd)) => fd.try_clone()?,
        None => File::open("dev/null").context("/dev/null")?.into(),
    };
    command.env("NOTIFY_SOCKET", Path::new("/").join(notify)).stdin(stdin);
    let passed: Vec<&(String, OwnedFd)> = passed.iter().filter(|(name, _)| name != STDIN).collect();
    if let Some(ms) = unit.watchdog_ms {
        command.env("WATCHDOG_USEC", (ms * 1000).to_string());
    }
    if let Some(jail) = jail {
        command.env(JAIL_VARIABLE, toml::to_string(jail)?);
    }
    if let Some(path) = unit.device.as_deref().and_then(device_path) {
        // As in uevents: where the device is in sysfs, which a confined driver cannot look up.
        command.env("DEVPATH", path);
    }
    let mut mappings = Vec::new();
    for (number, (_, fd)) in (FIRST_FD..).zip(&passed) {
        mappings.push(FdMapping { parent_fd: fd.try_clone()?, child_fd: number });
    }
    if !passed.is_empty() {
        let names: Vec<&str> = passed.iter().map(|(name, _)| name.as_str()).collect();
        command.env("LISTEN_FDS", passed.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    }
    command.fd_mappings(mappings)?;
    let child = command.spawn().with_context(|| format!("{}", program.display()))?;
    Ok(child.id() as Pid)
}

/// The path below `/sys` of `BUS:NAME`.
fn device_path(device: &str) -> Option<PathBuf> {
    let (bus, name) = device.split_once(':')?;
    // A link up to the root of sysfs and down again.
    let link = std::fs::read_link(Path::new("sys/bus").join(bus).join("devices").join(name)).ok()?;
    let down = link.components().filter(|part| matches!(part, Component::Normal(_)));
    Some(Path::new("/").join(down.collect::<PathBuf>()))
}

/// The child's half: becomes the service. Returns only on failure, with the exit status that says in which step
/// (the numbers are those of systemd.exec(5)).
pub fn become_service() -> (anyhow::Error, i32) {
    let unit = std::env::var(UNIT_VARIABLE).context("no unit").and_then(|text| Unit::parse(&text));
    let unit = match unit {
        Ok(unit) => unit,
        Err(error) => return (error, 205),
    };
    let name = std::env::args().nth(2).unwrap_or_default();
    match prepare(&name, &unit) {
        Err(error) => (error, 206),
        Ok(mut command) => {
            let error = command.exec();
            (anyhow::Error::new(error).context(unit.exec[0].clone()), 203)
        }
    }
}

/// Takes back that the supervisor blocks what it reads from its signal descriptor: execve(2) keeps the mask.
pub fn unblock_signals() -> Result<()> {
    SigSet::empty().thread_set_mask().context("signal mask")
}

fn prepare(name: &str, unit: &Unit) -> Result<Command> {
    rustix::process::setsid()?;
    unblock_signals()?;
    if unit.boot {
        // The supervisor works in the boot archive, whatever its root is by now.
        rustix::process::chroot(".").context("chroot")?;
    }
    rustix::process::chdir("/").context("chdir")?;
    if unit.condition_path_exists.as_ref().is_some_and(|path| !path.exists()) {
        // Not the supervisor's to see: the path may be on a file system whose server it has to restart.
        std::process::exit(PASSED_OVER_STATUS);
    }
    if let Some(adj) = unit.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", adj.to_string()).context("oom_score_adj")?;
    }
    let mut command = Command::new(&unit.exec[0]);
    command.args(&unit.exec[1..]).env_remove(UNIT_VARIABLE);
    if std::env::var_os("LISTEN_FDS").is_some() {
        command.env("LISTEN_PID", std::process::id().to_string());
    }
    if unit.watchdog_ms.is_some() {
        command.env("WATCHDOG_PID", std::process::id().to_string());
    }
    if let Some(path) = &unit.tty {
        let tty =
            OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("{}", path.display()))?;
        rustix::process::ioctl_tiocsctty(&tty).with_context(|| format!("{}: TIOCSCTTY", path.display()))?;
        command.stdin(tty.try_clone()?).stdout(tty.try_clone()?).stderr(tty);
        command.env("TERM", std::env::var("TERM").unwrap_or_else(|_| "linux".to_owned()));
    }
    let user = match &unit.user {
        Some(name) => Some(User::from_name(name)?.with_context(|| format!("no user {name}"))?),
        None => None,
    };
    if let Some(folder) = &unit.runtime_directory {
        make_runtime_directory(&Path::new("/run").join(folder), user.as_ref())?;
    }
    if let Some(user) = &user {
        drop_to(user)?;
        let name = &user.name;
        command.env("USER", name).env("LOGNAME", name).env("HOME", &user.dir).env("SHELL", &user.shell);
    }
    if let Some(folder) = &unit.working_directory {
        command.current_dir(folder);
    }
    command.envs(&unit.environment);
    if let Ok(jail) = std::env::var(JAIL_VARIABLE) {
        // Nothing of the supervisor's environment, but for what tells the unit of its descriptors and its supervisor.
        let own: Vec<_> = command.get_envs().map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned))).collect();
        command.env_clear();
        for name in PASSED_ON {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command.envs(own.into_iter().filter_map(|(name, value)| Some((name, value?))));
        command.current_dir("/");
        let jail: Jail = toml::from_str(&jail).context("jail")?;
        let notify = std::env::var_os("NOTIFY_SOCKET").context("no notification socket")?;
        let root = confine::make(name, unit, &jail, Path::new(&notify)).context("its jail")?;
        confine::enter(&jail, &root)?;
    }
    Ok(command)
}

/// Makes a folder that only its user may enter; one that is there is kept with what it holds.
fn make_runtime_directory(folder: &Path, user: Option<&User>) -> Result<()> {
    let what = || format!("{}", folder.display());
    std::fs::create_dir_all(folder).with_context(what)?;
    nix::unistd::chown(folder, user.map(|user| user.uid), user.map(|user| user.gid)).with_context(what)?;
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o700)).with_context(what)
}

fn drop_to(user: &User) -> Result<()> {
    let (uid, gid): (Uid, Gid) = (user.uid, user.gid);
    initgroups(&CString::new(user.name.as_str())?, gid).context("initgroups")?;
    setgid(gid).context("setgid")?;
    setuid(uid).context("setuid")
}

/// Opens the console for people; `None` when there is none.
pub fn console() -> Option<std::fs::File> {
    OpenOptions::new().write(true).open("dev/console").ok().filter(|file| rustix::termios::isatty(file.as_fd()))
}
