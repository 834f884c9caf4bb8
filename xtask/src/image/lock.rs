//! Lock files: `image/NAME.lock` lists every package of an image with its version and the SHA-256 of its `.deb`, and those of the
//! root in which programs were built for it; source packages (`src:NAME`) with the SHA-256 of their `.dsc`, which has those of
//! all their files.
//!
//! A Debian mirror keeps only the newest version of a package, so an old lock cannot be rebuilt from it for ever. What the
//! lock guarantees is that *the same version* has the same contents; that newer versions came is reported, and is an error
//! only where asked for.

use crate::paths;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// One package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Version.
    pub version: String,
    /// SHA-256 of the `.deb` file in hexadecimal.
    pub sha256: String,
}

/// Packages by name.
pub type Packages = BTreeMap<String, Package>;

/// All packages of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// By name.
    pub packages: Packages,
    /// Those that built what the image holds besides, and the sources of it.
    #[serde(default)]
    pub build: Packages,
}

/// How two locks differ, where that is no error in itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference(Vec<String>);

impl Lock {
    fn path(name: &str) -> PathBuf {
        paths::root().join("image").join(format!("{name}.lock"))
    }

    /// The committed lock of an image, if there is one yet.
    pub fn load(name: &str) -> Result<Option<Lock>> {
        let path = Self::path(name);
        if path.exists() { Self::read(&path).map(Some) } else { Ok(None) }
    }

    /// Reads a lock from any file.
    pub fn read(path: &Path) -> Result<Lock> {
        toml::from_str(&fs::read_to_string(path)?).with_context(|| path.display().to_string())
    }

    /// Replaces the committed lock.
    pub fn save(&self, name: &str) -> Result<()> {
        self.write(&Self::path(name))
    }

    /// Writes it to any file, a line a package, so that a change shows as such.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text =
            String::from("# Written by `cargo xtask image --update`: what the image was made of.\n[packages]\n");
        let list = |text: &mut String, packages: &Packages| {
            packages.iter().try_for_each(|(name, Package { version, sha256 })| {
                writeln!(text, "\"{name}\" = {{ version = \"{version}\", sha256 = \"{sha256}\" }}")
            })
        };
        list(&mut text, &self.packages)?;
        if !self.build.is_empty() {
            text.push_str("[build]\n");
            list(&mut text, &self.build)?;
        }
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Compares what was found with this lock. The same version with other contents is an error.
    pub fn compare(&self, found: &Lock) -> Result<Difference> {
        let mut lines = compare(&self.packages, &found.packages)?;
        lines.extend(compare(&self.build, &found.build)?.into_iter().map(|line| format!("build: {line}")));
        Ok(Difference(lines))
    }
}

/// How two lists of packages differ.
fn compare(old: &Packages, found: &Packages) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for (name, package) in found {
        match old.get(name) {
            None => lines.push(format!("{name} {} is new", package.version)),
            Some(old) if old.version != package.version => {
                lines.push(format!("{name} is {}, was {}", package.version, old.version));
            }
            Some(old) if old.sha256 != package.sha256 => bail!(
                "{name} {} has the checksum {}, but the lock file says {}: the mirror or the lock was tampered with",
                package.version,
                package.sha256,
                old.sha256
            ),
            Some(_) => {}
        }
    }
    let gone = old.keys().filter(|name| !found.contains_key(*name));
    lines.extend(gone.map(|name| format!("{name} is no longer part")));
    Ok(lines)
}

impl Difference {
    /// Says what differs.
    pub fn report(&self, image: &str) {
        if !self.0.is_empty() {
            eprintln!("note: Debian has moved on since image/{image}.lock was written:\n  {}", self.0.join("\n  "));
            eprintln!("note: `cargo xtask image {image} --update` renews it");
        }
    }

    /// Turns any difference into an error.
    pub fn refuse(&self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { bail!("not what the lock file says:\n  {}", self.0.join("\n  ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(packages: &[(&str, &str, &str)]) -> Lock {
        let package = |&(name, version, sha256): &(&str, &str, &str)| {
            (name.to_owned(), Package { version: version.into(), sha256: sha256.into() })
        };
        Lock { packages: packages.iter().map(package).collect(), build: Packages::new() }
    }

    #[test]
    fn written_lock_reads_back_the_same() {
        let mut lock = lock(&[("gcc-14-base", "14.2.0-19", "ab"), ("libc6", "1:2.41~rc+1", "cd")]);
        lock.build.insert("src:wayland".into(), Package { version: "1.23.1-3".into(), sha256: "ef".into() });
        let file = tempfile::NamedTempFile::new().unwrap();
        lock.write(file.path()).unwrap();
        assert_eq!(Lock::read(file.path()).unwrap(), lock);
    }

    #[test]
    fn newer_version_is_a_difference_but_changed_contents_are_an_error() {
        let old = lock(&[("bash", "5.2", "aa"), ("dash", "0.5", "bb")]);
        let newer = old.compare(&lock(&[("bash", "5.3", "cc"), ("dash", "0.5", "bb")])).unwrap();
        assert_eq!(newer, Difference(vec!["bash is 5.3, was 5.2".into()]));
        assert!(newer.refuse().is_err());
        assert!(old.compare(&lock(&[("bash", "5.2", "cc"), ("dash", "0.5", "bb")])).is_err());
        assert!(old.compare(&old).unwrap().refuse().is_ok());
        let built = |sum: &str| Lock { build: lock(&[("src:wayland", "1.23", sum)]).packages, ..old.clone() };
        assert_eq!(old.compare(&built("ab")).unwrap(), Difference(vec!["build: src:wayland 1.23 is new".into()]));
        assert!(built("ab").compare(&built("ac")).is_err());
    }
}
