//! `/proc/PID/mounts`, `mountinfo`, `mountstats`: the mount tree as seen from the process's root.
//!
//! A poll of an open table reports `POLLERR | POLLPRI` once after the tree has changed. Reference: proc_pid_mountinfo(5).

use alloc::{sync::Arc, vec::Vec};
use core::fmt::Write;

use super::{
    Text,
    node::{Generator, open_text},
    pid::Target,
};
use crate::{
    Errno, Result,
    fs::{
        FileOps,
        dev::{major, minor},
        inode::{Inode, InodeOps, SbFlags},
        mount::{self, Mount, MountFlags, namespace::Hold},
        path::Path,
    },
    namespace::nsfs,
    wait::WaitQueue,
};

/// Which of the tables.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `mounts`
    Mounts,
    /// `mountinfo`
    MountInfo,
    /// `mountstats`
    MountStats,
}

/// A table in a process's directory.
pub struct TableFile {
    /// Whose.
    pub target: Target,
    /// Which.
    pub format: Format,
}

impl InodeOps for TableFile {
    /// An open table shows the namespace and the root that the process had then.
    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        if self.format == Format::MountStats {
            self.target.may_inspect()?;
        }
        let thread = self.target.thread().map_err(|_| Errno::EINVAL)?;
        let namespace = thread.namespaces().ok_or(Errno::EINVAL)?.mnt.clone();
        Ok(open_text(Arc::new(Table { namespace, root: thread.fs().root(), format: self.format })))
    }
}

/// An open table.
struct Table {
    namespace: Hold,
    root: Path,
    format: Format,
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

impl Generator for Table {
    fn show(&self, out: &mut Text) -> Result {
        let mut last = 0;
        while let Some(m) = self.namespace.next_mount(last) {
            last = m.id;
            // Only what can be reached from the root, with the path that it has there.
            let (path, reachable) = m.root_path().display(&self.root);
            if reachable {
                match self.format {
                    Format::Mounts => self.mounts(&m, &path, out)?,
                    Format::MountInfo => self.mountinfo(&m, &path, out)?,
                    Format::MountStats => self.mountstats(&m, &path, out)?,
                }
            }
        }
        Ok(())
    }

    fn generation(&self) -> Option<u64> {
        (self.format != Format::MountStats).then(|| self.namespace.generation())
    }

    fn queue(&self) -> Option<&'static WaitQueue> {
        Some(&mount::CHANGED)
    }
}

impl Table {
    fn mounts(&self, m: &Mount, path: &[u8], out: &mut Text) -> Result {
        let readonly = m.flags().contains(MountFlags::RDONLY) || m.sb.flags().contains(SbFlags::RDONLY);
        field(out, if m.source.is_empty() { b"none" } else { &m.source });
        out.push(' ');
        field(out, path);
        write!(out, " {} {}", FsType(m), rw(readonly))?;
        options(m, out);
        m.sb.ops().show_options(&m.sb, out)?;
        out.push_str(" 0 0\n");
        Ok(())
    }

    fn mountinfo(&self, m: &Arc<Mount>, path: &[u8], out: &mut Text) -> Result {
        let parent = m.mountpoint().map_or(m.id, |p| p.mount.id);
        write!(out, "{} {} {}:{} ", m.id, parent, major(m.sb.dev), minor(m.sb.dev))?;
        field(out, &inner_path(m));
        out.push(' ');
        field(out, path);
        write!(out, " {}", rw(m.flags().contains(MountFlags::RDONLY)))?;
        options(m, out);
        let shown = mount::propagation(m, &self.namespace, &self.root);
        if shown.group != 0 {
            write!(out, " shared:{}", shown.group)?;
        }
        if shown.master != 0 {
            write!(out, " master:{}", shown.master)?;
        }
        if shown.from != 0 && shown.from != shown.master {
            write!(out, " propagate_from:{}", shown.from)?;
        }
        if shown.unbindable {
            out.push_str(" unbindable");
        }
        write!(out, " - {} ", FsType(m))?;
        field(out, if m.source.is_empty() { b"none" } else { &m.source });
        write!(out, " {}", rw(m.sb.flags().contains(SbFlags::RDONLY)))?;
        m.sb.ops().show_options(&m.sb, out)?;
        out.push('\n');
        Ok(())
    }

    fn mountstats(&self, m: &Mount, path: &[u8], out: &mut Text) -> Result {
        if m.source.is_empty() {
            out.push_str("no device");
        } else {
            out.push_str("device ");
            field(out, &m.source);
        }
        out.push_str(" mounted on ");
        field(out, path);
        writeln!(out, " with fstype {}", FsType(m))?;
        Ok(())
    }
}

/// The path of the mount's root within its file system; a namespace's file has its name.
pub(crate) fn inner_path(m: &Arc<Mount>) -> Vec<u8> {
    if nsfs::is_namespace(&m.root) {
        return m.root.name().to_vec();
    }
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
