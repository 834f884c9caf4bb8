//! Debian's own kernel, to run the same image beside Ursa: its package in the cache, and the initramfs that finds the root.
//!
//! The initramfs holds the agent as `/init`, the modules that the devices need, and the files that the caller adds; the
//! agent does the rest. The kernel's package is checked against `image/linux.lock` as images are.

use super::bootstrap::checksum;
use super::lock::{Lock, Package};
use super::{apt, cpio};
use crate::archive::{Addition, add_character, add_program, overlay};
use crate::build::Programs;
use crate::{hosttools, paths, shell};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

const SUITE: &str = "trixie";
/// The name of the lock file.
const LOCK: &str = "linux";
/// What the root disk needs. ext4 asks for crc32c by a name that only modprobe would resolve.
const ROOT_MODULES: &[&str] = &["crc32c_generic", "ext4", "virtio_blk"];

/// The unpacked kernel.
#[derive(Debug)]
pub struct Linux {
    folder: PathBuf,
    version: String,
}

impl Linux {
    /// Finds it in the cache or fetches it.
    pub fn get() -> Result<Linux> {
        let cache = paths::cache("linux")?;
        let _lock = paths::lock(&cache.join("fetch"))?;
        let current = cache.join("current");
        if let Ok(version) = fs::read_to_string(&current) {
            return Ok(Linux { folder: cache.join(&version), version });
        }
        hosttools::ensure(hosttools::IMAGE)?;
        hosttools::ensure(hosttools::LINUX)?;
        shell::step("fetching Debian's kernel");
        let work = tempfile::tempdir_in(&cache)?;
        let package = download(work.path())?;
        let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let root = work.path().join("root");
        shell::run_quietly(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&root))?;
        let modules = root.join("usr/lib/modules");
        let entry = fs::read_dir(&modules)?.next().with_context(|| format!("{name} holds no modules"))??;
        let version = entry.file_name().to_string_lossy().into_owned();
        std::os::unix::fs::symlink("usr/lib", root.join("lib"))?;
        let depmod = shell::find_program("depmod").unwrap_or_else(|| "depmod".into());
        shell::run_quietly(Command::new(depmod).arg("-b").arg(&root).arg(&version))?;
        let folder = cache.join(&version);
        let _ = fs::remove_dir_all(&folder);
        fs::rename(&root, &folder)?;
        fs::write(&current, &version)?;
        Ok(Linux { folder, version })
    }

    /// The kernel's boot file.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("boot").join(format!("vmlinuz-{}", self.version))
    }

    /// Writes an initramfs. `modules` are loaded after those of the root disk.
    pub fn initramfs(
        &self,
        programs: &Programs,
        modules: &[&str],
        additions: &[Addition],
        output: &Path,
    ) -> Result<()> {
        let mut tree = overlay(programs, additions, "add")?;
        add_program(&mut tree, Path::new("init"), &programs.agent)?;
        add_character(&mut tree, "dev/console", 0o600, 5, 1);
        add_character(&mut tree, "dev/null", 0o666, 1, 3);
        let mut order = String::new();
        let wanted: Vec<&str> = ROOT_MODULES.iter().chain(modules).copied().collect();
        for path in self.load_order(&wanted)? {
            let file = self.unpacked(&path)?;
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            tree.file(format!("modules/{name}"), 0o644, fs::read(&file)?);
            order += &format!("{name}\n");
        }
        tree.file("modules/order", 0o644, order.into_bytes());
        let mut writer = BufWriter::new(File::create(output)?);
        cpio::write(&tree, &mut writer)?;
        writer.into_inner().map_err(|e| e.into_error())?;
        Ok(())
    }

    /// The files of these modules and all that they need, in the order to load them.
    fn load_order(&self, names: &[&str]) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.modules().join("modules.dep"))?;
        let builtin = fs::read_to_string(self.modules().join("modules.builtin"))?;
        load_order(&text, &builtin, names)
    }

    fn modules(&self) -> PathBuf {
        self.folder.join("usr/lib/modules").join(&self.version)
    }

    /// A module without compression, from the cache.
    fn unpacked(&self, path: &str) -> Result<PathBuf> {
        let name = module_name(path);
        let folder = self.folder.join("unpacked");
        fs::create_dir_all(&folder)?;
        let file = folder.join(format!("{name}.ko"));
        if !file.exists() {
            let source = self.modules().join(path);
            let staging = tempfile::NamedTempFile::new_in(&folder)?;
            let mut command = Command::new(if path.ends_with(".xz") { "xz" } else { "cat" });
            if path.ends_with(".xz") {
                command.arg("-dc");
            }
            let status = command.arg(&source).stdout(staging.reopen()?).status()?;
            if !status.success() {
                bail!("cannot unpack {}", source.display());
            }
            staging.persist(&file)?;
        }
        Ok(file)
    }
}

/// A module's name as modprobe(8) takes it.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

fn load_order(dependencies: &str, builtin: &str, names: &[&str]) -> Result<Vec<String>> {
    let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let by_name: BTreeMap<String, (&str, &str)> =
        lines.map(|(path, needs)| (module_name(path), (path, needs))).collect();
    let mut order: Vec<String> = Vec::new();
    for name in names {
        let Some((path, needs)) = by_name.get(&name.replace('-', "_")) else {
            if builtin.lines().any(|line| module_name(line) == name.replace('-', "_")) {
                continue;
            }
            bail!("Debian's kernel has no module {name}");
        };
        // modules.dep lists what is needed, the deepest last.
        for needed in needs.split_ascii_whitespace().rev().chain(std::iter::once(*path)) {
            if !order.iter().any(|known| known == needed) {
                order.push(needed.to_owned());
            }
        }
    }
    Ok(order)
}

/// Downloads the kernel's package into a folder, with package lists of its own, and checks it.
fn download(folder: &Path) -> Result<PathBuf> {
    let state = folder.join("apt");
    for part in ["lists/partial", "archives/partial", "etc/preferences.d"] {
        fs::create_dir_all(state.join(part))?;
    }
    fs::write(state.join("sources.list"), format!("{}\n", apt::source(SUITE)))?;
    fs::write(state.join("status"), "")?;
    let mut conf = apt::host_options()?.into_iter().map(|option| option + ";\n").collect::<String>();
    let path = |part: &str| state.join(part).display().to_string();
    for (name, value) in [
        ("Dir::State", path("")),
        ("Dir::State::lists", path("lists")),
        ("Dir::State::status", path("status")),
        ("Dir::Cache", path("")),
        ("Dir::Etc", path("etc")),
        ("Dir::Etc::sourcelist", path("sources.list")),
        ("Dir::Etc::sourceparts", "-".into()),
        ("APT::Architecture", "amd64".into()),
        ("APT::Sandbox::User", "root".into()),
        ("Acquire::Languages", "none".into()),
    ] {
        conf += &format!("{name} \"{value}\";\n");
    }
    let conf_file = state.join("apt.conf");
    fs::write(&conf_file, conf)?;
    let apt = |program: &str| {
        let mut command = Command::new(program);
        command.arg("-c").arg(&conf_file).current_dir(folder);
        command
    };
    shell::run_quietly(apt("apt-get").arg("update"))?;
    let depends = shell::output(apt("apt-cache").args(["depends", "linux-image-amd64"]))?;
    let name = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ")?.strip_prefix("linux-image-"));
    let name = format!("linux-image-{}", name.context("linux-image-amd64 depends on no kernel")?);
    shell::run_quietly(apt("apt-get").args(["download", &name]))?;
    let mut files = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let file = files.find(|path| path.extension().is_some_and(|ending| ending == "deb"));
    let file = file.with_context(|| format!("apt-get downloaded no {name}"))?;
    let version = shell::output(Command::new("dpkg-deb").args(["--field"]).arg(&file).arg("Version"))?;
    let package = Package { version, sha256: checksum(&file)? };
    let found = Lock { packages: [(name, package)].into(), ..Lock::default() };
    match Lock::load(LOCK)? {
        Some(old) => old.compare(&found)?.report(LOCK),
        None => found.save(LOCK)?,
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let dependencies = "kernel/fs/ext4/ext4.ko.xz: kernel/lib/crc16.ko.xz kernel/fs/jbd2/jbd2.ko.xz kernel/x-y.ko.xz\n\
                            kernel/lib/crc16.ko.xz:\nkernel/fs/jbd2/jbd2.ko.xz: kernel/x-y.ko.xz\nkernel/x-y.ko.xz:\n";
        let order = load_order(dependencies, "kernel/drivers/virtio.ko\n", &["x_y", "virtio", "ext4"]).unwrap();
        let names: Vec<String> = order.iter().map(|path| module_name(path)).collect();
        assert_eq!(names, ["x_y", "jbd2", "crc16", "ext4"]);
        assert!(load_order(dependencies, "", &["nothing"]).is_err());
    }
}
