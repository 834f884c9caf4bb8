//! The boot archive: an image's root, this checkout's programs over it, and files that the caller adds.
//!
//! For Ursa these are cpio archives one behind the other, as the kernel's `-initrd`; later entries replace earlier ones.
//! For Linux the programs and added files are the initramfs, and the agent lays them over the root disk.

use crate::build::{Program, Programs};
use crate::image::tree::{Inode, Kind, Tree};
use crate::image::{Image, cpio};
use crate::paths;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A file or folder to put into the guest: `HOST:GUEST`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addition {
    /// On the host.
    pub host: PathBuf,
    /// In the guest, absolute.
    pub guest: PathBuf,
}

impl FromStr for Addition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, guest) = text.rsplit_once(':').ok_or("must be HOST:GUEST")?;
        if host.is_empty() || !guest.starts_with('/') || guest.split('/').any(|part| part == "..") {
            return Err("HOST must not be empty and GUEST must be an absolute path without `..`".into());
        }
        let mut guest = guest.to_owned();
        if guest.ends_with('/') {
            let name = Path::new(host).file_name().ok_or("HOST has no file name to put into the folder GUEST")?;
            guest += &name.to_string_lossy();
        }
        Ok(Addition { host: host.into(), guest: guest.into() })
    }
}

/// The boot archive for a root on a disk: the boot set, and a shell for rescue. It holds nothing of the root.
pub fn write_boot_set(image: &Image, programs: &Programs, output: &Path) -> Result<()> {
    let mut tree = Tree::default();
    programs.all.iter().filter(|program| program.install.boot).try_for_each(|program| add(&mut tree, "", program))?;
    let root = Tree::from_tar(&image.tar())?;
    let busybox = root.read("usr/bin/busybox")?.context("the rescue shell needs the package busybox-static")?;
    tree.file("usr/bin/busybox", 0o755, busybox);
    for folder in ["bin", "sbin"] {
        tree.symlink(folder, &format!("usr/{folder}"));
    }
    for folder in ["dev", "proc", "run", "sys", "sysroot"] {
        tree.folder(folder, 0o755, 0, 0);
    }
    crate::image::add_busybox_links(&mut tree)?;
    add_character(&mut tree, "dev/console", 0o600, 5, 1);
    add_character(&mut tree, "dev/null", 0o666, 1, 3);
    tree.symlink("init", "/usr/sbin/ursa-init");
    write(&tree, output)
}

fn write(tree: &Tree, output: &Path) -> Result<()> {
    let staging = tempfile::NamedTempFile::new_in(output.parent().context("an archive has a folder")?)?;
    let mut writer = BufWriter::new(staging.as_file());
    cpio::write(tree, &mut writer)?;
    writer.into_inner().map_err(|e| e.into_error())?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    staging.as_file().set_permissions(readable)?;
    staging.persist(output).with_context(|| format!("cannot write {}", output.display()))?;
    Ok(())
}

/// Adds a program with its links and files.
fn add(tree: &mut Tree, prefix: &str, program: &Program) -> Result<()> {
    let to = &program.install.install;
    add_program(tree, &Path::new(prefix).join(to), &program.binary)?;
    for link in &program.install.links {
        tree.symlink(Path::new(prefix).join(link), &format!("/{}", to.display()));
    }
    for (file, to) in &program.install.files {
        tree.file(Path::new(prefix).join(to), 0o644, fs::read(program.folder.join(file))?);
    }
    Ok(())
}

/// Settings in `services/units` that Debian's programs look for elsewhere.
const SETTINGS: &[(&str, &str)] = &[("usr/lib/sddm/sddm.conf.d/ursa.conf", "/usr/lib/ursa/services/sddm.conf")];

/// The tree of programs and additions. `prefix` is where it begins: empty for Ursa, `add` in Linux's initramfs.
pub fn overlay(programs: &Programs, additions: &[Addition], prefix: &str) -> Result<Tree> {
    let mut tree = Tree::default();
    for program in &programs.all {
        add(&mut tree, prefix, program)?;
    }
    tree.add_from_host(&Path::new(prefix).join("usr/lib/ursa/services"), &paths::root().join("services/units"))?;
    for (name, setting) in SETTINGS {
        tree.symlink(Path::new(prefix).join(name), setting);
    }
    for addition in additions {
        let guest = addition.guest.strip_prefix("/").unwrap_or(&addition.guest);
        if guest.as_os_str().is_empty() {
            bail!("{} cannot replace the guest's root", addition.host.display());
        }
        tree.add_from_host(&Path::new(prefix).join(guest), &addition.host)?;
    }
    Ok(tree)
}

/// Adds a program as root's, executable.
pub fn add_program(tree: &mut Tree, name: &Path, program: &Path) -> Result<()> {
    let contents = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    tree.file(name, 0o755, contents);
    Ok(())
}

/// Adds a device node of root's.
pub fn add_character(tree: &mut Tree, name: &str, mode: u32, major: u32, minor: u32) {
    tree.insert(name, Inode { kind: Kind::Character(major, minor), mode, uid: 0, gid: 0, mtime: 0, links: 1 });
}

/// What is laid over an image's root.
pub fn root_overlay(image: &Image, programs: &Programs, additions: &[Addition]) -> Result<Tree> {
    Ok(overlay(programs, additions, "")?.laid_over(&Tree::from_tar(&image.tar())?))
}

/// Writes Ursa's boot archive.
pub fn write_for_ursa(image: &Image, programs: &Programs, additions: &[Addition], output: &Path) -> Result<()> {
    let mut tree = root_overlay(image, programs, additions)?;
    // What the kernel starts if its command line does not say `init=/usr/sbin/ursa-init`: the least that runs a command.
    tree.symlink("init", "/usr/sbin/ursa-agent");
    let staging = tempfile::NamedTempFile::new_in(output.parent().context("an archive has a folder")?)?;
    io::copy(&mut File::open(image.archive())?, &mut staging.as_file())?;
    let mut writer = BufWriter::new(staging.as_file());
    cpio::write(&tree, &mut writer)?;
    writer.into_inner().map_err(|e| e.into_error())?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    staging.as_file().set_permissions(readable)?;
    staging.persist(output).with_context(|| format!("cannot write {}", output.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_name_both_sides() {
        let addition: Addition = "a/b:/usr/c".parse().unwrap();
        assert_eq!((addition.host, addition.guest), ("a/b".into(), "/usr/c".into()));
        let addition: Addition = "a/b:/tmp/".parse().unwrap();
        assert_eq!(addition.guest, Path::new("/tmp/b"));
        for bad in ["a", "a:b", ":/b", "a:/../b"] {
            assert!(bad.parse::<Addition>().is_err(), "{bad}");
        }
    }
}
