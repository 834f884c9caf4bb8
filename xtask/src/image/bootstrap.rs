//! mmdebstrap: a configured (or only unpacked) Debian as a tar archive, and the list of packages that went in.

use super::lock::{Lock, Package, Packages};
use super::recipe::{Recipe, Variant};
use super::{apt, tree};
use crate::{paths, shell};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files of the build itself: this host's mirror, mmdebstrap's settings, logs with dates.
pub const LEFT_OVERS: &[&str] = &[
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/apt/sources.list",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "etc/resolv.conf",
    "var/log/apt",
    "var/log/dpkg.log",
    "var/log/bootstrap.log",
    "var/log/alternatives.log",
    "var/cache/ldconfig/aux-cache",
    "var/lib/dpkg/available-old",
];

/// Documentation and translations that nothing reads at run time.
const EXCLUDED: &[&str] = &[
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
];

/// No file is newer than this, so that the same packages give the same image: Debian 13's release day.
pub const NEWEST: &str = "1754697600";

/// Makes the archive and says what it holds.
pub fn run(name: &str, recipe: &Recipe, archive: &Path) -> Result<Lock> {
    let locked = Lock::load(name)?.map(|lock| lock.packages);
    let store = Store::open(name, locked.as_ref())?;
    let mut command = store.mmdebstrap(recipe.variant, &recipe.packages)?;
    command.arg(&recipe.suite).arg(archive).arg(apt::source(&recipe.suite));
    shell::run(&mut command).context("mmdebstrap could not make the root")?;
    let status = tree::Tree::from_tar(archive)?.read("var/lib/dpkg/status")?;
    Ok(Lock { packages: store.survey(status)?, ..Lock::default() })
}

/// The packages that were downloaded for a root.
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// Opens the one of this name, with those packages in it that the lock file lists.
    pub fn open(name: &str, locked: Option<&Packages>) -> Result<Store> {
        let folder = paths::cache("debs")?.join(name);
        fs::create_dir_all(&folder)?;
        keep_locked(&folder, locked)?;
        Ok(Store { folder })
    }

    /// An mmdebstrap that takes its packages from here and leaves here what it used. The suite, what to make and the sources
    /// are still to be said.
    pub fn mmdebstrap(&self, variant: Variant, packages: &[String]) -> Result<Command> {
        let mut command = Command::new("mmdebstrap");
        command.args(["--quiet", if shell::is_root() { "--mode=root" } else { "--mode=unshare" }]);
        command.arg(format!("--variant={}", variant.word())).arg("--components=main");
        command.arg(format!("--keyring={}", apt::KEYRING));
        command.arg("--aptopt=APT::Install-Recommends \"false\"").arg("--aptopt=Acquire::Languages \"none\"");
        for option in apt::host_options()? {
            command.arg(format!("--aptopt={option}"));
        }
        for path in EXCLUDED {
            command.arg(format!("--dpkgopt={path}"));
        }
        // Packages already downloaded go in, and all that were used come out again.
        let folder = self.folder.to_str().context("the cache's path is not UTF-8")?;
        command.arg("--setup-hook=mkdir -p \"$1\"/var/cache/apt/archives/partial");
        command.arg(format!("--setup-hook=sync-in \"{folder}\" /var/cache/apt/archives"));
        let after = if variant == Variant::Extract { "extract" } else { "customize" };
        command.arg(format!("--{after}-hook=sync-out /var/cache/apt/archives \"{folder}\""));
        command.args(["--skip=download/empty", "--skip=essential/unlink"]);
        command.arg(format!("--include={}", packages.join(",")));
        command.env("SOURCE_DATE_EPOCH", NEWEST).env_remove("APT_CONFIG").env_remove("TMPDIR");
        Ok(command)
    }

    /// What is here now; of a root with dpkg's status file, what that calls installed.
    pub fn survey(&self, status: Option<Vec<u8>>) -> Result<Packages> {
        let status = status.map(String::from_utf8).transpose().context("dpkg's status is not UTF-8")?;
        let installed = status.map(|status| parse_status(&status)).filter(|list| !list.is_empty());
        let packages = survey(&self.folder, installed.as_deref())?;
        if packages.is_empty() {
            bail!("mmdebstrap left no packages in {}", self.folder.display());
        }
        Ok(packages)
    }
}

/// The files of the packages that an image was made of, by name.
pub fn packages(image: &str) -> Result<Vec<PathBuf>> {
    debs(&paths::cache("debs")?.join(image))
}

/// The packages in a folder, by name.
fn debs(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "deb") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Removes downloads that are not exactly what the lock file lists.
fn keep_locked(store: &Path, locked: Option<&Packages>) -> Result<()> {
    for path in debs(store)? {
        let sum = checksum(&path)?;
        let wanted = locked.is_some_and(|packages| packages.values().any(|package| package.sha256 == sum));
        if !wanted {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// SHA-256 of a file in hexadecimal.
pub fn checksum(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    std::io::copy(&mut fs::File::open(path)?, &mut HashWriter(&mut hash))?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Lists the stored packages; those only that dpkg calls installed, where the image has dpkg's status.
fn survey(store: &Path, installed: Option<&[(String, String)]>) -> Result<Packages> {
    let mut packages = Packages::new();
    for path in debs(store)? {
        let format = "--showformat=${Package}\\n${Version}";
        let shown = shell::output(Command::new("dpkg-deb").args(["--show", format]).arg(&path))?;
        let (name, version) = shown.split_once('\n').with_context(|| format!("{} is no package", path.display()))?;
        let used = installed.is_none_or(|list| list.iter().any(|(n, v)| n == name && v == version));
        if used {
            let package = Package { version: version.to_owned(), sha256: checksum(&path)? };
            packages.insert(name.to_owned(), package);
        } else {
            fs::remove_file(&path)?;
        }
    }
    if let Some(list) = installed
        && let Some((name, version)) = list.iter().find(|(name, _)| !packages.contains_key(name))
    {
        bail!("{name} {version} is installed, but its package was not kept");
    }
    Ok(packages)
}

/// Names and versions of what dpkg's status calls installed.
fn parse_status(status: &str) -> Vec<(String, String)> {
    let field = |paragraph: &str, name: &str| {
        paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
    };
    let paragraphs =
        status.split("\n\n").filter(|text| field(text, "Status").is_some_and(|s| s.ends_with(" installed")));
    paragraphs.filter_map(|text| Some((field(text, "Package")?, field(text, "Version")?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lists_installed_packages_only() {
        let status = "Package: bash\nStatus: install ok installed\nVersion: 5.2-1\nDepends: x\n\n\
                      Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                      Package: libc6\nStatus: install ok installed\nVersion: 2.41\n";
        let expected = [("bash", "5.2-1"), ("libc6", "2.41")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(parse_status(status), expected);
    }
}
