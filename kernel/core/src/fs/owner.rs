//! Who is told about asynchronous readiness of a file: `F_SETOWN`, `F_SETOWN_EX`, `F_SETSIG`, `O_ASYNC`.
//!
//! References: fcntl(2), "Managing signals".

use alloc::boxed::Box;
use alloc::sync::Arc;

use ursa_hal::sync::{Once, SpinLock};

use super::sigio::Watch;

/// The kind of receiver of `F_SETOWN_EX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerKind {
    /// One thread.
    Tid,
    /// A process.
    Pid,
    /// A process group.
    Pgrp,
}

/// Receiver, signal and the credentials of who set it.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// What `id` names.
    pub kind: OwnerKind,
    /// Thread, process or group id; 0 is nobody.
    pub id: i32,
    /// `F_SETSIG`: 0 means `SIGIO` without details.
    pub signal: i32,
    /// Real and effective user of the setter, for the permission check when the signal is sent.
    pub uid: u32,
    /// See `uid`.
    pub euid: u32,
}

impl Owner {
    const NOBODY: Self = Owner { kind: OwnerKind::Pid, id: 0, signal: 0, uid: 0, euid: 0 };
}

/// An owner that its file shares with whoever signals it, so that signalling never holds the file open.
pub type SharedOwner = Arc<SpinLock<Owner>>;

/// An open file's owner; nothing is allocated until one is set.
pub struct FileOwner {
    owner: Once<SharedOwner>,
    /// While the file has `O_ASYNC`.
    watch: SpinLock<Option<Box<Watch>>>,
}

impl FileOwner {
    /// Nobody.
    pub const fn new() -> Self {
        Self { owner: Once::new(), watch: SpinLock::new(None) }
    }

    /// The present owner, if one was ever set; its `id` may be 0 again.
    pub fn get(&self) -> Option<Owner> {
        self.owner.get().map(|owner| *owner.lock())
    }

    /// The owner, nobody at first.
    pub fn shared(&self) -> &SharedOwner {
        self.owner.call_once(|| Arc::new(SpinLock::new(Owner::NOBODY)))
    }

    /// Changes the owner, starting from nobody.
    pub fn update(&self, change: impl FnOnce(&mut Owner)) {
        change(&mut self.shared().lock());
    }

    /// Makes the calling process the owner if nobody is.
    pub fn claim_for_current_process(&self) {
        let thread = crate::process::current();
        let (uid, euid) = thread.with_cred(|cred| (cred.uid, cred.euid));
        self.update(|owner| {
            if owner.id == 0 {
                *owner = Owner { kind: OwnerKind::Pid, id: thread.process().pid(), uid, euid, ..*owner };
            }
        });
    }

    /// Begins or ends to tell the owner of the file's readiness.
    pub fn set_watch(&self, watch: Option<Watch>) {
        let watch = watch.map(Box::new);
        let former = core::mem::replace(&mut *self.watch.lock(), watch);
        // Leaves wait queues: outside the lock.
        drop(former);
    }
}

impl Default for FileOwner {
    fn default() -> Self {
        Self::new()
    }
}
