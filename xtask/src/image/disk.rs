//! The root disk for Debian's kernel: ext4 from a folder with `mke2fs -d`, no loop device.

use crate::shell;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// Free space on the disk beyond its files, in bytes. It costs nothing until it is used.
const ROOM: u64 = 2 << 30;

/// Makes a disk from a tar archive. Without root, fakeroot keeps owners and devices.
pub fn make(tar: &Path, disk: &Path) -> Result<()> {
    shell::step(format!("writing {}", disk.display()));
    let folder = disk.parent().context("a disk file has a folder")?;
    let work = tempfile::tempdir_in(folder)?;
    let (root, unfinished) = (work.path().join("root"), work.path().join("disk"));
    std::fs::create_dir(&root)?;
    let size = (tar.metadata()?.len() * 5 / 4 + ROOM).next_multiple_of(1 << 20) >> 10;
    // One shell, because fakeroot's memory of owners lasts as long as one command. The arguments arrive as $1 to $4.
    let script = "set -e; PATH=$PATH:/usr/sbin:/sbin; tar -xpf \"$1\" -C \"$2\" --numeric-owner; chmod 755 \"$2\"; \
                  mke2fs -q -F -t ext4 -E root_owner=0:0 -d \"$2\" \"$3\" \"$4k\"; rm -rf \"$2\"";
    let mut command = Command::new(if shell::is_root() { "sh" } else { "fakeroot" });
    if !shell::is_root() {
        command.arg("sh");
    }
    command.args(["-c", script, "sh"]).arg(tar).arg(&root).arg(&unfinished).arg(size.to_string());
    shell::run_quietly(&mut command)?;
    std::fs::rename(&unfinished, disk)?;
    Ok(())
}
