//! The namespaces of a task: [`Namespaces`].
//!
//! Tasks that a clone(2) without the flags made share one set; what changes is a copy. References: Linux `kernel/nsproxy.c`.

use alloc::sync::Arc;

use ursa_hal::sync::Once;

use super::uts::{self, Uts};
use super::{Claim, Kind, SUPPORTED};
use crate::fs::FsContext;
use crate::fs::mount::namespace as mount;
use crate::ipc::namespace as ipc;
use crate::process::fork::CloneFlags;
use crate::process::{Cap, Credentials, PidNamespace, pid_namespace, try_current};
use crate::{Errno, Result};

/// One namespace of each kind of which there may be several.
#[derive(Clone)]
pub struct Namespaces {
    /// The mounts.
    pub mnt: mount::Hold,
    /// The names of the system.
    pub uts: Arc<Uts>,
    /// System V objects and message queues.
    pub ipc: Arc<ipc::Namespace>,
    /// The process numbers of children; a process's own never change.
    pub pid_for_children: Arc<PidNamespace>,
}

/// Those that the system starts with.
pub fn initial() -> &'static Arc<Namespaces> {
    static INITIAL: Once<Arc<Namespaces>> = Once::new();
    INITIAL.call_once(|| {
        Arc::new(Namespaces {
            mnt: mount::initial_hold().clone(),
            uts: uts::initial().clone(),
            ipc: ipc::initial().clone(),
            pid_for_children: pid_namespace::initial().clone(),
        })
    })
}

impl Namespaces {
    /// The set for a task that unshares what `flags` name. Root and working directory of `context`, which is nobody else's,
    /// go to the copies of their mounts.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` for kinds that cannot be made and for a second PID namespace for children, `ENOSPC` beyond `user.max_*_namespaces`, `ENOMEM`.
    pub fn unshare(
        self: &Arc<Namespaces>,
        flags: CloneFlags,
        cred: &Credentials,
        context: &FsContext,
    ) -> Result<Arc<Namespaces>> {
        let wanted = flags.intersection(CloneFlags::NAMESPACES);
        if wanted.is_empty() {
            return Ok(self.clone());
        }
        // As a Linux without the other kinds: the privilege is checked first, then there is nothing to give.
        if !wanted.contains(CloneFlags::NEWUSER) && !cred.has_cap(Cap::SysAdmin) {
            return Err(Errno::EPERM);
        }
        let supported = SUPPORTED.iter().fold(CloneFlags::empty(), |all, kind| all | kind.flag());
        if !supported.contains(wanted) {
            return Err(Errno::EINVAL);
        }
        let mut new = Namespaces::clone(self);
        if wanted.contains(CloneFlags::NEWNS) {
            new.mnt = crate::fs::mount::copy_namespace(&self.mnt, context, Claim::new(cred, Kind::Mnt)?)?;
        }
        if wanted.contains(CloneFlags::NEWUTS) {
            new.uts = self.uts.copy(Claim::new(cred, Kind::Uts)?);
        }
        if wanted.contains(CloneFlags::NEWIPC) {
            new.ipc = ipc::Namespace::new(Claim::new(cred, Kind::Ipc)?);
        }
        if wanted.contains(CloneFlags::NEWPID) {
            if try_current().is_some_and(|t| !Arc::ptr_eq(t.process().pid_namespace(), &self.pid_for_children)) {
                return Err(Errno::EINVAL);
            }
            new.pid_for_children = self.pid_for_children.nested(Claim::new(cred, Kind::Pid)?)?;
        }
        Ok(Arc::new(new))
    }
}
