//! Confinement: a driver has its descriptors, a user id that nobody else has, and a root folder that is as good as empty.
//!
//! The root of a confined unit is in `/run/ursa/jail`, a tmpfs of its own: its program and the
//! notification socket, bound from where they are; the device nodes that its file lists under `nodes`, which belong to it; and
//! what is listed under `view`, bound read-only. It gets no capability, cannot gain any, may lock no more memory and start no more
//! threads than its file says, and sees nothing of the environment but what is meant for it.
//!
//! A driver that is taken over by its device, or by a client, can then misuse its device (which the IOMMU holds), its own
//! scheme's clients, and nothing else.
//! References: capabilities(7), systemd.exec(5) for the idea of each key.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sys::{
        resource::{Resource, setrlimit},
        stat::{Mode, SFlag, mknod},
    },
    unistd::{Gid, Uid, chown, setgroups, setresgid, setresuid},
};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set, set_no_new_privs};
use serde::{Deserialize, Serialize};

use crate::unit::Unit;

/// User ids for confined units: those that systemd gives to dynamic users.
const UIDS: std::ops::Range<u32> = 61184..65520;
/// Threads of a confined unit, with all its processes.
const TASKS_MAX: u64 = 64;

/// Where jails are.
const FOLDER: &str = "/run/ursa/jail";

/// How a unit is confined, as the child that becomes it is told.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Jail {
    /// Its user and group id.
    pub uid: u32,
    /// How much memory it may lock and pin for its device, in bytes.
    pub memlock: u64,
}

/// The jails of all units.
#[derive(Default)]
pub struct Jails {
    uids: BTreeMap<String, u32>,
}

impl Jails {
    /// The user id of `name`: the same for every start, and nobody else's.
    fn uid(&mut self, name: &str) -> Result<u32> {
        if let Some(uid) = self.uids.get(name) {
            return Ok(*uid);
        }
        let mut taken: Vec<u32> = self.uids.values().copied().collect();
        taken.sort_unstable();
        let uid = UIDS.clone().find(|uid| taken.binary_search(uid).is_err()).context("no user id is free")?;
        self.uids.insert(name.to_owned(), uid);
        Ok(uid)
    }

    /// The jail of `unit`.
    ///
    /// # Errors
    /// Every user id is taken.
    pub fn assign(&mut self, name: &str, unit: &Unit) -> Result<Jail> {
        Ok(Jail { uid: self.uid(name)?, memlock: unit.memlock_mib.saturating_mul(1 << 20) })
    }
}

/// The root of a jail, made at the unit's first start. By the child, since what is bound may be on a file system whose server the
/// first process has to restart.
///
/// # Errors
/// Names the part that could not be made.
pub fn make(name: &str, unit: &Unit, jail: &Jail, notify: &Path) -> Result<PathBuf> {
    for number in 1.. {
        let root = Path::new(FOLDER).join(format!("{name}.{number}"));
        let made = root.with_added_extension("made");
        if made.exists() {
            return Ok(root);
        }
        // What went wrong half-way is not used again.
        if root.exists() {
            continue;
        }
        fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some("tmpfs"), &root, Some("tmpfs"), flags, Some("mode=755")).context("a tmpfs")?;
        fill(&root, jail, unit, notify)?;
        fs::File::create(&made).with_context(|| made.display().to_string())?;
        return Ok(root);
    }
    bail!("too many jails");
}

fn fill(root: &Path, jail: &Jail, unit: &Unit, notify: &Path) -> Result<()> {
    bind(root, Path::new(&unit.exec[0]))?;
    bind(root, notify)?;
    for path in &unit.view {
        bind(root, path)?;
    }
    for path in &unit.nodes {
        let at = inside(root, path)?;
        let data = fs::metadata(path).with_context(|| path.display().to_string())?;
        let kind = SFlag::from_bits_truncate(data.mode() & SFlag::S_IFMT.bits());
        if kind != SFlag::S_IFCHR {
            bail!("nodes: {} is no character device", path.display());
        }
        parents(&at)?;
        mknod(&at, kind, Mode::from_bits_truncate(0o600), data.rdev()).with_context(|| at.display().to_string())?;
        chown(&at, Some(Uid::from_raw(jail.uid)), Some(Gid::from_raw(jail.uid)))?;
    }
    Ok(())
}

/// Where `path` is in a jail.
fn inside(root: &Path, path: &Path) -> Result<PathBuf> {
    let below = path.strip_prefix("/").with_context(|| format!("{} is not an absolute path", path.display()))?;
    Ok(root.join(below))
}

fn parents(at: &Path) -> Result<()> {
    let above = at.parent().context("a path has no folder")?;
    fs::create_dir_all(above).with_context(|| above.display().to_string())
}

/// Shows `path` in the jail, read-only.
fn bind(root: &Path, path: &Path) -> Result<()> {
    let at = inside(root, path)?;
    let what = || format!("{} in {}", path.display(), root.display());
    if fs::metadata(path).with_context(what)?.is_dir() {
        fs::create_dir_all(&at).with_context(what)?;
    } else {
        parents(&at)?;
        fs::File::create(&at).with_context(what)?;
    }
    let none: Option<&str> = None;
    mount(Some(path), &at, none, MsFlags::MS_BIND, none).with_context(what)?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
    mount(none, &at, none, flags, none).with_context(what)
}

/// The child's half: goes into the jail and gives up everything that is left.
///
/// # Errors
/// Names the step; the caller must not go on.
pub fn enter(jail: &Jail, root: &Path) -> Result<()> {
    for (resource, limit) in [
        (Resource::RLIMIT_MEMLOCK, jail.memlock),
        (Resource::RLIMIT_NPROC, TASKS_MAX),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
    ] {
        setrlimit(resource, limit, limit).with_context(|| format!("{resource:?}"))?;
    }
    rustix::process::chroot(root).context("chroot")?;
    rustix::process::chdir("/").context("chdir")?;
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // One that this kernel does not have.
            Err(rustix::io::Errno::INVAL) => {}
            done => done.context("the capability bounding set")?,
        }
    }
    setgroups(&[]).context("setgroups")?;
    let (uid, gid) = (Uid::from_raw(jail.uid), Gid::from_raw(jail.uid));
    setresgid(gid, gid, gid).context("setresgid")?;
    setresuid(uid, uid, uid).context("setresuid")?;
    set_no_new_privs(true).context("no_new_privs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_keeps_a_user_id_of_its_own() {
        let mut jails = Jails::default();
        let a = jails.uid("a").unwrap();
        let b = jails.uid("b").unwrap();
        assert!(a != b && UIDS.contains(&a) && UIDS.contains(&b));
        assert_eq!(jails.uid("a").unwrap(), a);
    }

    #[test]
    fn paths_stay_inside() {
        assert_eq!(inside(Path::new("/jail"), Path::new("/dev/x")).unwrap(), Path::new("/jail/dev/x"));
        assert!(inside(Path::new("/jail"), Path::new("dev/x")).is_err());
    }
}
