//! Who may trace or look into whom.

use alloc::sync::Arc;

use crate::process::{Cap, Thread};
use crate::{Errno, Result};

/// Checks that a thread may look into another and steer it (`PTRACE_MODE_ATTACH_REALCREDS`).
///
/// # Errors
/// `EPERM`.
pub fn check_access(thread: &Thread, target: &Thread) -> Result {
    if Arc::ptr_eq(thread.process(), target.process()) {
        return Ok(());
    }
    let theirs = target.cred();
    let allowed = thread.with_cred(|cred| {
        let same = [theirs.uid, theirs.euid, theirs.suid].iter().all(|&uid| uid == cred.uid)
            && [theirs.gid, theirs.egid, theirs.sgid].iter().all(|&gid| gid == cred.gid);
        cred.has_cap(Cap::SysPtrace)
            || same && target.process().dumpable() == 1 && theirs.permitted.is_subset(cred.permitted)
    });
    if allowed { Ok(()) } else { Err(Errno::EPERM) }
}

/// Whether the thread has a tracer that lacks the privilege to steer a more privileged program.
pub fn is_traced_by_unprivileged(thread: &Thread) -> bool {
    thread.signals.ptrace.is_traced() && !thread.signals.ptrace.state.lock().privileged
}
