//! `/proc/PID/mounts`, `mountinfo`, `mountstats`: the mount tree as seen from the process's root.
//!
//! A poll of an open table reports `POLLERR | POLLPRI` once after the tree has changed. Reference: proc_pid_mountinfo(5).

use alloc::{sync::Arc, vec::Vec};
use core::fmt::Write;

use super::{Text, node::Generator, pid::Target};
use crate::{
    Result,
    fs::{
        dev::{major, minor},
        inode::SbFlags,
        mount::{self, Mount, MountFlags, Propagation},
        path::Path,
    },
    wait::WaitQueue,
};

/// One of the tables.
pub struct Table {
    /// From whose root.
    pub target: Target,
    /// `mountinfo`.
    pub long: bool,
}

/// Appends a field with what separates fields escaped in octal.
fn field(out: &mut Text, bytes: &[u8]) {
    for byte in bytes {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => {
                let _ = write!(out, "\\{byte:03o}");
            }
            byte => out.push_bytes(&[*byte]),
        }
    }
}

fn options(mount: &Mount, out: &mut Text) {
    let flags = mount.flags();
    for (flag, name) in [
        (MountFlags::NOSUID, ",nosuid"),
        (MountFlags::NODEV, ",nodev"),
        (MountFlags::NOEXEC, ",noexec"),
        (MountFlags::NOATIME, ",noatime"),
        (MountFlags::NODIRATIME, ",nodiratime"),
        (MountFlags::RELATIME, ",relatime"),
        (MountFlags::NOSYMFOLLOW, ",nosymfollow"),
    ] {
        if flags.contains(flag) {
            out.push_str(name);
        }
    }
}

/// The type of a mount's file system, with its subtype.
struct FsType<'a>(&'a Mount);

impl core::fmt::Display for FsType<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.0.sb.fs_name)?;
        match self.0.sb.ops().subtype() {
            "" => Ok(()),
            subtype => write!(f, ".{subtype}"),
        }
    }
}

fn rw(readonly: bool) -> &'static str {
    if readonly { "ro" } else { "rw" }
}

/// The mounts that can be reached from `root`, with the path that they have there.
fn visible(root: &Path) -> Vec<(Arc<Mount>, Vec<u8>)> {
    let mut out = Vec::new();
    for m in mount::all() {
        let (path, reachable) = m.root_path().display(root);
        if reachable {
            out.push((m, path));
        }
    }
    out
}

impl Generator for Table {
    fn show(&self, out: &mut Text) -> Result {
        let root = self.target.thread()?.fs().root();
        for (m, path) in visible(&root) {
            let readonly = m.flags().contains(MountFlags::RDONLY);
            let sb_readonly = m.sb.flags().contains(SbFlags::RDONLY);
            let source: &[u8] = if m.source.is_empty() { b"none" } else { &m.source };
            if self.long {
                let parent = m.mountpoint().map_or(m.id, |p| p.mount.id);
                write!(out, "{} {} {}:{} ", m.id, parent, major(m.sb.dev), minor(m.sb.dev))?;
                let inner = inner_path(&m);
                field(out, &inner);
                out.push(' ');
                field(out, &path);
                write!(out, " {}", rw(readonly))?;
                options(&m, out);
                match m.propagation() {
                    Propagation::Shared => write!(out, " shared:{}", m.group())?,
                    Propagation::Unbindable => out.push_str(" unbindable"),
                    Propagation::Private | Propagation::Slave => {}
                }
                write!(out, " - {} ", FsType(&m))?;
                field(out, source);
                write!(out, " {}", rw(sb_readonly))?;
                m.sb.ops().show_options(&m.sb, out)?;
            } else {
                field(out, source);
                out.push(' ');
                field(out, &path);
                write!(out, " {} {}", FsType(&m), rw(readonly || sb_readonly))?;
                options(&m, out);
                m.sb.ops().show_options(&m.sb, out)?;
                out.push_str(" 0 0");
            }
            out.push('\n');
        }
        Ok(())
    }

    fn generation(&self) -> Option<u64> {
        Some(mount::generation())
    }

    fn queue(&self) -> Option<&'static WaitQueue> {
        Some(&mount::CHANGED)
    }
}

/// The path of the mount's root within its file system.
pub(crate) fn inner_path(m: &Arc<Mount>) -> Vec<u8> {
    let mut parts = Vec::new();
    let mut at = m.root.clone();
    while let (Some(parent), name) = at.place() {
        parts.push(name);
        at = parent;
    }
    let mut out = Vec::new();
    for part in parts.iter().rev() {
        out.push(b'/');
        out.extend_from_slice(part);
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

/// `/proc/PID/mountstats`
pub fn mountstats(target: &Target, out: &mut Text) -> Result {
    let root = target.thread()?.fs().root();
    for (m, path) in visible(&root) {
        if m.source.is_empty() {
            out.push_str("no device");
        } else {
            out.push_str("device ");
            field(out, &m.source);
        }
        out.push_str(" mounted on ");
        field(out, &path);
        writeln!(out, " with fstype {}", FsType(&m))?;
    }
    Ok(())
}
