//! Service files: what [`Unit`] a TOML file describes, and the order in which units start.
//!
//! One file a service, `NAME.toml`; a file in `/etc/ursa/services` hides the one of the same name in
//! `/usr/lib/ursa/services`. Unknown keys are errors, so that a misspelt limit is not a missing limit.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// When a service counts as started.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// As soon as it runs.
    #[default]
    Simple,
    /// When it has sent `READY=1` (sd_notify(3)).
    Notify,
    /// When it has exited with status 0.
    Oneshot,
}

/// Whether a service that ended is started again.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    Never,
    /// When it ended by a signal, a non-zero status, a time limit or its watchdog.
    #[default]
    OnFailure,
    /// As [`Restart::OnFailure`], once it has been ready: a first start that goes wrong is the last.
    OnceReady,
    /// However it ended.
    Always,
}

/// A file system that a unit serves over FUSE. It is mounted before the unit starts, receives the connection as standard input, and
/// says ready when it can serve.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Served {
    /// The device, as `/proc/mounts` shows it.
    pub source: PathBuf,
    /// Where it is mounted.
    pub at: PathBuf,
    /// The type: `fuse.NAME`.
    pub kind: String,
    /// It is mounted read-only.
    #[serde(default)]
    pub read_only: bool,
}

/// One service as its file describes it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Unit {
    /// One line for people.
    #[serde(default)]
    pub description: String,
    /// Program and arguments.
    pub exec: Vec<String>,
    /// When it counts as started.
    #[serde(default, rename = "type")]
    pub kind: Kind,
    /// Units that must have started before; a unit that is absent is ignored.
    #[serde(default)]
    pub after: Vec<String>,
    /// Like `after`, and this unit fails when one of them fails or is absent.
    #[serde(default)]
    pub requires: Vec<String>,
    /// Start only when this path exists.
    pub condition_path_exists: Option<PathBuf>,
    /// Start only when the kernel command line has this word: `name=value` exactly, or `name` with any value or none.
    pub condition_option: Option<String>,
    /// User to run as; root when absent.
    pub user: Option<String>,
    /// Extra environment.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Working directory.
    pub working_directory: Option<PathBuf>,
    /// Folder under `/run` that is made for its user, mode 0700, before it starts.
    pub runtime_directory: Option<PathBuf>,
    /// Terminal that becomes standard input, output, error and the controlling terminal.
    pub tty: Option<PathBuf>,
    /// What happens when it ends.
    #[serde(default)]
    pub restart: Restart,
    /// First pause before a restart, in milliseconds; doubles with every restart in the interval, anew after a second of service.
    #[serde(default = "default_restart_delay_ms")]
    pub restart_delay_ms: u64,
    /// Longest pause before a restart, in milliseconds.
    #[serde(default = "default_restart_delay_max_ms")]
    pub restart_delay_max_ms: u64,
    /// More starts than this within `restart_interval_s` make the unit fail.
    #[serde(default = "default_restart_burst")]
    pub restart_burst: u32,
    /// See `restart_burst`; seconds.
    #[serde(default = "default_restart_interval_s")]
    pub restart_interval_s: u64,
    /// Longest time between two `WATCHDOG=1` messages, in milliseconds; none when absent.
    pub watchdog_ms: Option<u64>,
    /// Longest time from start to started, in milliseconds.
    #[serde(default = "default_timeout_ms")]
    pub start_timeout_ms: u64,
    /// Longest time from SIGTERM to SIGKILL, in milliseconds.
    #[serde(default = "default_stop_timeout_ms")]
    pub stop_timeout_ms: u64,
    /// How many descriptors it may put into the store (`FDSTORE=1`).
    #[serde(default)]
    pub fd_store_max: usize,
    /// The `scheme.toml` whose granted connection it receives as descriptor `scheme`.
    pub scheme: Option<PathBuf>,
    /// The device whose VFIO file it receives as descriptor `vfio:ADDRESS`: `pci:0000:00:02.0`, `platform:i8042`.
    pub device: Option<String>,
    /// It receives `/dev/iommu` and the DMA heaps.
    #[serde(default)]
    pub dma: bool,
    /// It serves a disk through VDUSE, and receives a control file that is for this device alone, called `NAME-ADDRESS` after this
    /// name and its device's, as descriptor `vduse`.
    pub vduse: Option<String>,
    /// It moves the frames of the network interface of its device, and receives that as descriptor `tap`.
    #[serde(default)]
    pub tap: bool,
    /// Files that it receives open for reading and writing, each named by its last component.
    #[serde(default)]
    pub files: Vec<PathBuf>,
    /// It receives `/dev/fuse` as descriptor `fuse`. What it mounts with it is kept while it is restarted.
    #[serde(default)]
    pub fuse: bool,
    /// It runs in a root of its own with a user id of its own and without capabilities ([`mod@crate::confine`]).
    #[serde(default)]
    pub confined: bool,
    /// Character devices that a confined unit may open.
    #[serde(default)]
    pub nodes: Vec<PathBuf>,
    /// Files and folders that a confined unit sees, read-only.
    #[serde(default)]
    pub view: Vec<PathBuf>,
    /// How much memory a confined unit may lock and pin for its device, in MiB.
    #[serde(default = "default_memlock_mib")]
    pub memlock_mib: u64,
    /// It belongs to the boot set: it runs from the boot archive, which is its root folder, and goes on until the root file system is
    /// unmounted, since that needs it.
    #[serde(default)]
    pub boot: bool,
    /// The file system that it serves.
    pub serves: Option<Served>,
    /// The kernel's OOM score adjustment, -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// The system goes down when this unit ends or fails for good: for sessions that are the purpose of the boot.
    #[serde(default)]
    pub essential: bool,
}

fn default_restart_delay_ms() -> u64 {
    100
}
fn default_restart_delay_max_ms() -> u64 {
    10_000
}
fn default_restart_burst() -> u32 {
    5
}
fn default_restart_interval_s() -> u64 {
    30
}
fn default_memlock_mib() -> u64 {
    16
}
fn default_timeout_ms() -> u64 {
    90_000
}
fn default_stop_timeout_ms() -> u64 {
    10_000
}

impl Unit {
    /// Reads one service file's text.
    ///
    /// # Errors
    /// Malformed TOML, unknown keys, an empty or relative `exec`, an oneshot that restarts always.
    pub fn parse(text: &str) -> Result<Unit> {
        let unit: Unit = toml::from_str(text)?;
        match unit.exec.first() {
            None => bail!("exec is empty"),
            Some(program) if !program.starts_with('/') => bail!("exec: {program:?} is not an absolute path"),
            Some(_) => {}
        }
        if unit.kind == Kind::Oneshot && unit.restart == Restart::Always {
            bail!("a oneshot cannot restart always");
        }
        if unit.runtime_directory.as_ref().is_some_and(|folder| {
            folder.as_os_str().is_empty() || !folder.components().all(|part| matches!(part, Component::Normal(_)))
        }) {
            bail!("runtime-directory must be a relative path without `..`");
        }
        if unit.device.as_ref().is_some_and(|device| !device.contains(':')) {
            bail!("device is not BUS:ADDRESS");
        }
        if unit.confined && (unit.user.is_some() || unit.tty.is_some() || unit.runtime_directory.is_some()) {
            bail!("a confined unit has neither user nor tty nor runtime-directory");
        }
        if !unit.confined && !(unit.nodes.is_empty() && unit.view.is_empty()) {
            bail!("nodes and view are for confined units");
        }
        let paths = unit.scheme.iter().chain(&unit.files).chain(&unit.nodes).chain(&unit.view);
        if let Some(path) = paths
            .into_iter()
            .find(|path| !path.is_absolute() || path.components().any(|part| part == Component::ParentDir))
        {
            bail!("{} is not an absolute path", path.display());
        }
        if unit.confined && unit.serves.is_some() {
            bail!("a confined unit serves no file system");
        }
        if unit.oom_score_adj.is_some_and(|adj| !(-1000..=1000).contains(&adj)) {
            bail!("oom-score-adj is outside -1000..=1000");
        }
        Ok(unit)
    }

    /// The pause before the `restarts`-th restart in a row (from 0).
    pub fn restart_delay(&self, restarts: u32) -> Duration {
        let factor = 1u64.checked_shl(restarts.min(32)).unwrap_or(u64::MAX);
        Duration::from_millis(self.restart_delay_ms.saturating_mul(factor).min(self.restart_delay_max_ms))
    }
}

/// Texts of files, by the name that each stands for, with their paths.
pub type Texts = BTreeMap<String, (PathBuf, String)>;

/// Reads all service files of the given folders; the first folder that has a name wins.
///
/// Files that cannot be read are returned as messages beside the good ones: one broken file must not stop the boot.
pub fn read(folders: &[&Path]) -> (Texts, Vec<String>) {
    let (mut texts, mut problems) = (Texts::new(), Vec::new());
    for folder in folders {
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths.into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "toml")) {
            let Some(name) = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned) else { continue };
            if texts.contains_key(&name) {
                continue;
            }
            match std::fs::read_to_string(&path) {
                Ok(text) => drop(texts.insert(name, (path, text))),
                Err(error) => problems.push(format!("{}: {error}", path.display())),
            }
        }
    }
    (texts, problems)
}

/// The units that these files describe; what is wrong with the others as messages.
pub fn parse_all(texts: &Texts) -> (BTreeMap<String, Unit>, Vec<String>) {
    let (mut units, mut problems) = (BTreeMap::new(), Vec::new());
    for (name, (path, text)) in texts {
        match Unit::parse(text) {
            Ok(unit) => drop(units.insert(name.clone(), unit)),
            Err(error) => problems.push(format!("{}: {error:#}", path.display())),
        }
    }
    (units, problems)
}

/// Orders the units so that each comes after what it names in `after` and `requires`.
///
/// # Errors
/// A cycle; the message names the units in it.
pub fn start_order(units: &BTreeMap<String, Unit>) -> Result<Vec<String>> {
    fn visit<'a>(
        name: &'a str,
        units: &'a BTreeMap<String, Unit>,
        done: &mut BTreeSet<&'a str>,
        path: &mut Vec<&'a str>,
        order: &mut Vec<String>,
    ) -> Result<()> {
        if done.contains(name) {
            return Ok(());
        }
        if let Some(start) = path.iter().position(|on_path| *on_path == name) {
            bail!("units wait for each other: {}", path[start..].join(" → "));
        }
        path.push(name);
        for before in units[name].after.iter().chain(&units[name].requires) {
            if let Some((before, _)) = units.get_key_value(before) {
                visit(before, units, done, path, order).context("")?;
            }
        }
        path.pop();
        done.insert(name);
        order.push(name.to_owned());
        Ok(())
    }

    let mut order = Vec::new();
    let mut done = BTreeSet::new();
    for name in units.keys() {
        visit(name, units, &mut done, &mut Vec::new(), &mut order)
            .map_err(|error| anyhow::anyhow!("{}", error.root_cause()))?;
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(after: &[&str]) -> Unit {
        let mut unit = Unit::parse("exec = ['/bin/true']").unwrap();
        unit.after = after.iter().map(|name| (*name).to_owned()).collect();
        unit
    }

    fn units(list: &[(&str, &[&str])]) -> BTreeMap<String, Unit> {
        list.iter().map(|(name, after)| ((*name).to_owned(), unit(after))).collect()
    }

    #[test]
    fn unknown_keys_and_relative_programs_are_refused() {
        assert!(Unit::parse("exec = ['/bin/true']\nrestrat = 'never'").is_err());
        assert!(Unit::parse("exec = ['true']").is_err());
        assert!(Unit::parse("exec = []").is_err());
        for folder in ["/run", "../etc", ""] {
            assert!(Unit::parse(&format!("exec = ['/bin/true']\nruntime-directory = '{folder}'")).is_err(), "{folder}");
        }
    }

    #[test]
    fn each_unit_follows_what_it_waits_for() {
        let order = start_order(&units(&[("a", &["b"]), ("b", &["c", "absent"]), ("c", &[])])).unwrap();
        assert_eq!(order, ["c", "b", "a"]);
    }

    #[test]
    fn a_cycle_is_named() {
        let error = start_order(&units(&[("a", &["b"]), ("b", &["a"])])).unwrap_err();
        assert!(error.to_string().contains("a → b"), "{error}");
    }

    #[test]
    fn restart_delays_double_up_to_their_maximum() {
        let unit = unit(&[]);
        assert_eq!(unit.restart_delay(0), Duration::from_millis(100));
        assert_eq!(unit.restart_delay(3), Duration::from_millis(800));
        assert_eq!(unit.restart_delay(60), Duration::from_millis(10_000));
    }
}
