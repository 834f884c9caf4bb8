//! Who is told about asynchronous readiness of a file: `F_SETOWN`, `F_SETOWN_EX`, `F_SETSIG`, `O_ASYNC`.
//!
//! References: fcntl(2), "Managing signals".

use alloc::boxed::Box;

use ursa_hal::sync::SpinLock;

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

/// An open file's owner; nothing is allocated until one is set.
pub struct FileOwner(SpinLock<Option<Box<Owner>>>);

impl FileOwner {
    /// Nobody.
    pub const fn new() -> Self {
        Self(SpinLock::new(None))
    }

    /// The present owner.
    pub fn get(&self) -> Option<Owner> {
        self.0.lock().as_deref().copied()
    }

    /// Changes the owner, starting from nobody.
    pub fn update(&self, change: impl FnOnce(&mut Owner)) {
        let mut owner = self.get().unwrap_or(Owner { kind: OwnerKind::Pid, id: 0, signal: 0, uid: 0, euid: 0 });
        change(&mut owner);
        let boxed = Box::new(owner);
        *self.0.lock() = Some(boxed);
    }
}

impl Default for FileOwner {
    fn default() -> Self {
        Self::new()
    }
}
