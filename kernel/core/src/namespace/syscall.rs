//! unshare(2) and setns(2).

use alloc::sync::Arc;

use super::nsfs::{self, Namespace};
use super::{Kind, Namespaces};
use crate::fs::Path;
use crate::fs::mount::cross_down;
use crate::ipc::sysv::sem;
use crate::process::fork::CloneFlags;
use crate::process::{Cap, Credentials, Thread, pidfd};
use crate::syscall::Cx;
use crate::{Errno, Result};

/// Gives the thread its own copy of what it shares.
pub fn sys_unshare(cx: &mut Cx<'_>, flags: u64) -> Result {
    use CloneFlags as F;
    let allowed = F::THREAD | F::FS | F::FILES | F::SIGHAND | F::VM | F::SYSVSEM | F::NAMESPACES;
    let mut flags = F::from_bits(flags).filter(|f| allowed.contains(*f)).ok_or(Errno::EINVAL)?;
    // Each of these shares or shows what the next keeps.
    for (flag, implied) in
        [(F::NEWUSER, F::THREAD | F::FS), (F::VM, F::SIGHAND), (F::SIGHAND, F::THREAD), (F::NEWNS, F::FS)]
    {
        if flags.contains(flag) {
            flags |= implied;
        }
    }
    let thread = cx.thread;
    if flags.intersects(F::THREAD) && thread.process().live_threads() > 1 {
        return Err(Errno::EINVAL);
    }
    if flags.intersects(F::VM) && Arc::strong_count(&thread.vm()) > 2 {
        return Err(Errno::EINVAL);
    }
    let fs = flags.contains(F::FS).then(|| thread.fs().fork());
    let files = if flags.contains(F::FILES) { Some(thread.files().fork()?) } else { None };
    let old = thread.namespaces().ok_or(Errno::ESRCH)?;
    let context = fs.clone().unwrap_or_else(|| thread.fs());
    let namespaces = old.unshare(flags, &thread.cred(), &context)?;
    if flags.intersects(F::NEWIPC | F::SYSVSEM) {
        leave_semaphores(thread);
    }
    if !Arc::ptr_eq(&namespaces, &old) {
        drop(thread.set_namespaces(Some(namespaces)));
    }
    if let Some(fs) = fs {
        drop(thread.set_fs(fs));
    }
    if let Some(files) = files {
        drop(thread.set_files(files));
    }
    Ok(())
}

/// Undoes what the process's `SEM_UNDO` operations did, as if it ended; threads that share the debts go on with them.
fn leave_semaphores(thread: &Thread) {
    let process = thread.process();
    if process.live_threads() == 1 {
        sem::process_exits(process);
    }
}

/// What a thread is about to join.
struct Joining<'a> {
    thread: &'a Thread,
    cred: Arc<Credentials>,
    set: Namespaces,
    /// The new root and working directory.
    root: Option<Path>,
    /// What `SEM_UNDO` owes is paid in the namespace that it is owed in.
    leaves_ipc: bool,
    /// Only the mounts are changed, so that the thread's root must not be shared.
    only_mounts: bool,
}

impl Joining<'_> {
    /// Joins one namespace.
    ///
    /// # Errors
    /// As setns(2).
    fn install(&mut self, namespace: Namespace) -> Result {
        let privileged = self.cred.has_cap(Cap::SysAdmin);
        match namespace {
            // One that the thread is in already.
            Namespace::Only(Kind::User) => Err(Errno::EINVAL),
            _ if !privileged => Err(Errno::EPERM),
            Namespace::Only(_) => Ok(()),
            Namespace::Uts(uts) => {
                self.set.uts = uts;
                Ok(())
            }
            Namespace::Ipc(ipc) => {
                self.leaves_ipc = true;
                self.set.ipc = ipc;
                Ok(())
            }
            Namespace::Pid(namespace) => {
                // Only downwards: no process makes children that it could not see.
                if !namespace.has_ancestor(self.thread.process().pid_namespace()) {
                    return Err(Errno::EINVAL);
                }
                self.set.pid_for_children = namespace;
                Ok(())
            }
            Namespace::Mnt(namespace) => {
                self.cred.require(Cap::SysChroot)?;
                if self.only_mounts && self.thread.fs().users() != 1 {
                    return Err(Errno::EINVAL);
                }
                let mut root = namespace.root().ok_or(Errno::EINVAL)?.root_path();
                cross_down(&mut root);
                self.root = Some(root);
                self.set.mnt = namespace;
                Ok(())
            }
        }
    }

    fn commit(self) {
        if self.leaves_ipc {
            leave_semaphores(self.thread);
        }
        drop(self.thread.set_namespaces(Some(Arc::new(self.set))));
        if let Some(root) = self.root {
            let fs = self.thread.fs();
            fs.set_cwd(root.clone());
            fs.set_root(root);
        }
    }
}

/// Joins the namespace of a file, or those of the process that a pidfd stands for.
pub fn sys_setns(cx: &mut Cx<'_>, fd: i32, kinds: i32) -> Result {
    let thread = cx.thread;
    let file = thread.file(fd)?;
    let flags = CloneFlags::from_bits(kinds as u32 as u64);
    let current = thread.namespaces().ok_or(Errno::ESRCH)?;
    let mut joining = Joining {
        thread,
        cred: thread.cred(),
        set: Namespaces::clone(&current),
        root: None,
        leaves_ipc: false,
        only_mounts: true,
    };
    if let Some(namespace) = nsfs::of_file(&file) {
        if kinds != 0 && flags != Some(namespace.kind().flag()) {
            return Err(Errno::EINVAL);
        }
        joining.install(namespace.clone())?;
    } else if let Ok(target) = pidfd::of_file(&file) {
        let flags = flags.filter(|flags| !flags.is_empty() && CloneFlags::NAMESPACES.contains(*flags));
        let flags = flags.ok_or(Errno::EINVAL)?;
        let target = target.thread()?;
        crate::ptrace::check_access(thread, &target)?;
        joining.only_mounts = flags == CloneFlags::NEWNS;
        if target.namespaces().is_none() {
            return Err(Errno::ESRCH);
        }
        for kind in [Kind::User, Kind::Mnt, Kind::Uts, Kind::Ipc, Kind::Pid, Kind::Cgroup, Kind::Net, Kind::Time] {
            if flags.contains(kind.flag()) {
                joining.install(Namespace::of(&target, kind).map_err(|_| Errno::ESRCH)?)?;
            }
        }
    } else {
        return Err(Errno::EINVAL);
    }
    joining.commit();
    Ok(())
}
