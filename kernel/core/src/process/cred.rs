//! Credentials: who a thread is and what it may do.
//!
//! [`Credentials`] is immutable once published: a change copies the value, edits the copy and stores it in the thread
//! ([`Thread::set_cred`](super::Thread::set_cred)), so that a reader that holds an `Arc` sees one consistent identity
//! (Linux's copy-on-write `struct cred`). Each value holds the [`UserAccount`] of its real uid, which counts what
//! `RLIMIT_NPROC` and its likes limit per user; counts move with the credentials.
//!
//! The rules here are pure functions over the value; the system calls are in [`super::syscall::cred`].
//! References: credentials(7), capabilities(7), Linux `security/commoncap.c`.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicU32, AtomicU64};

use bitflags::bitflags;
use ursa_hal::sync::SpinLock;

use super::caps::{Cap, CapSet};
use crate::{Errno, Result};

bitflags! {
    /// `PR_SET_SECUREBITS` flags (`linux/securebits.h`).
    #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
    pub struct SecureBits: u32 {
        /// uid 0 gains no capability at exec.
        const NOROOT = 1;
        /// Locks `NOROOT`.
        const NOROOT_LOCKED = 1 << 1;
        /// Changing uids moves no capability.
        const NO_SETUID_FIXUP = 1 << 2;
        /// Locks `NO_SETUID_FIXUP`.
        const NO_SETUID_FIXUP_LOCKED = 1 << 3;
        /// Permitted capabilities survive leaving uid 0.
        const KEEP_CAPS = 1 << 4;
        /// Locks `KEEP_CAPS`.
        const KEEP_CAPS_LOCKED = 1 << 5;
        /// The ambient set cannot be raised.
        const NO_CAP_AMBIENT_RAISE = 1 << 6;
        /// Locks `NO_CAP_AMBIENT_RAISE`.
        const NO_CAP_AMBIENT_RAISE_LOCKED = 1 << 7;
    }
}

impl SecureBits {
    /// The lock bits.
    pub const LOCKS: SecureBits = SecureBits::NOROOT_LOCKED
        .union(SecureBits::NO_SETUID_FIXUP_LOCKED)
        .union(SecureBits::KEEP_CAPS_LOCKED)
        .union(SecureBits::NO_CAP_AMBIENT_RAISE_LOCKED);
}

/// What is counted per real user id.
#[derive(Debug)]
pub struct UserAccount {
    uid: u32,
    /// Threads, for `RLIMIT_NPROC`.
    pub threads: AtomicU64,
    /// Queued signals, for `RLIMIT_SIGPENDING`.
    pub pending_signals: AtomicU64,
    /// Pages held by pipes, for `fs.pipe-user-pages-soft`.
    pub pipe_pages: AtomicU64,
    /// What message queues may hold, for `RLIMIT_MSGQUEUE`.
    pub message_queue_bytes: AtomicU64,
    /// inotify instances.
    pub inotify_instances: AtomicU64,
    /// Descriptors in flight over Unix sockets.
    pub inflight_fds: AtomicU64,
    /// Pages pinned for devices, for `RLIMIT_MEMLOCK`.
    pub pinned_pages: AtomicU64,
    /// Namespaces by kind, for `user.max_*_namespaces`.
    pub namespaces: [AtomicU32; crate::namespace::KINDS],
}

static ACCOUNTS: SpinLock<BTreeMap<u32, Weak<UserAccount>>> = SpinLock::new(BTreeMap::new());

impl UserAccount {
    /// Returns the account of `uid`, making it when it is not in use.
    pub fn of(uid: u32) -> Arc<UserAccount> {
        let mut table = ACCOUNTS.lock();
        if let Some(account) = table.get(&uid).and_then(Weak::upgrade) {
            return account;
        }
        let account = Arc::new(UserAccount {
            uid,
            threads: AtomicU64::new(0),
            pending_signals: AtomicU64::new(0),
            pipe_pages: AtomicU64::new(0),
            message_queue_bytes: AtomicU64::new(0),
            inotify_instances: AtomicU64::new(0),
            inflight_fds: AtomicU64::new(0),
            pinned_pages: AtomicU64::new(0),
            namespaces: [const { AtomicU32::new(0) }; crate::namespace::KINDS],
        });
        table.insert(uid, Arc::downgrade(&account));
        account
    }

    /// Returns the user id.
    pub fn uid(&self) -> u32 {
        self.uid
    }
}

impl Drop for UserAccount {
    fn drop(&mut self) {
        let mut table = ACCOUNTS.lock();
        // A new account may have taken the place between the last drop of the `Arc` and here.
        if table.get(&self.uid).is_some_and(|w| w.strong_count() == 0) {
            table.remove(&self.uid);
        }
    }
}

/// The largest number of supplementary groups (`NGROUPS_MAX`).
pub const NGROUPS_MAX: usize = 65536;

/// The identity and privileges of a thread.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Real user id.
    pub uid: u32,
    /// Effective user id.
    pub euid: u32,
    /// Saved user id.
    pub suid: u32,
    /// User id for file access.
    pub fsuid: u32,
    /// Real group id.
    pub gid: u32,
    /// Effective group id.
    pub egid: u32,
    /// Saved group id.
    pub sgid: u32,
    /// Group id for file access.
    pub fsgid: u32,
    /// Supplementary groups, sorted.
    pub groups: Arc<[u32]>,
    /// The account of the real user.
    pub user: Arc<UserAccount>,
    /// What may be made effective.
    pub permitted: CapSet,
    /// What is checked.
    pub effective: CapSet,
    /// What an executed file with matching file capabilities may keep.
    pub inheritable: CapSet,
    /// The limit of what exec can give.
    pub bounding: CapSet,
    /// What an executed file without privileges keeps.
    pub ambient: CapSet,
    /// How uid 0 and capabilities relate.
    pub securebits: SecureBits,
    /// `PR_SET_NO_NEW_PRIVS`: exec gives no privilege any more.
    pub no_new_privs: bool,
}

impl Credentials {
    /// Returns the credentials of the first process: root with everything.
    pub fn root() -> Credentials {
        Credentials {
            uid: 0,
            euid: 0,
            suid: 0,
            fsuid: 0,
            gid: 0,
            egid: 0,
            sgid: 0,
            fsgid: 0,
            groups: Arc::from([]),
            user: UserAccount::of(0),
            permitted: CapSet::ALL,
            effective: CapSet::ALL,
            inheritable: CapSet::EMPTY,
            bounding: CapSet::ALL,
            ambient: CapSet::EMPTY,
            securebits: SecureBits::empty(),
            no_new_privs: false,
        }
    }

    /// Returns whether `cap` is effective.
    pub fn has_cap(&self, cap: Cap) -> bool {
        self.effective.has(cap)
    }

    /// Fails with `EPERM` unless `cap` is effective.
    pub fn require(&self, cap: Cap) -> Result {
        if self.has_cap(cap) { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// Returns whether file access counts `gid` as one of the thread's groups (`in_group_p`).
    pub fn in_group(&self, gid: u32) -> bool {
        gid == self.fsgid || self.groups.binary_search(&gid).is_ok()
    }

    /// Moves capabilities after `setuid`, `setreuid` or `setresuid` (`cap_emulate_setxuid`).
    pub fn fix_after_setuid(&mut self, old: &Credentials) {
        if self.securebits.contains(SecureBits::NO_SETUID_FIXUP) {
            return;
        }
        let had_root = old.uid == 0 || old.euid == 0 || old.suid == 0;
        let has_root = self.uid == 0 || self.euid == 0 || self.suid == 0;
        if had_root && !has_root {
            if !self.securebits.contains(SecureBits::KEEP_CAPS) {
                self.permitted = CapSet::EMPTY;
                self.effective = CapSet::EMPTY;
            }
            // Pre-ambient programs expect that leaving root ends all inheritance.
            self.ambient = CapSet::EMPTY;
        }
        if old.euid == 0 && self.euid != 0 {
            self.effective = CapSet::EMPTY;
        }
        if old.euid != 0 && self.euid == 0 {
            self.effective = self.permitted;
        }
    }

    /// Moves capabilities after `setfsuid`.
    pub fn fix_after_setfsuid(&mut self, old: &Credentials) {
        if self.securebits.contains(SecureBits::NO_SETUID_FIXUP) {
            return;
        }
        if old.fsuid == 0 && self.fsuid != 0 {
            self.effective = self.effective & !CapSet::FS;
        }
        if old.fsuid != 0 && self.fsuid == 0 {
            self.effective = self.effective | (self.permitted & CapSet::FS);
        }
    }

    /// Applies what executing a file does to identity and capabilities; returns whether the program must run in secure
    /// mode (`AT_SECURE`). `trust` is false where no privilege may be gained (no_new_privs, an unprivileged tracer, a
    /// `nosuid` mount, a shared fs context).
    ///
    /// # Errors
    /// `EPERM` when the file demands (legacy effective bit) capabilities that the bounding set denies.
    pub fn apply_exec(&mut self, old: &Credentials, file: &ExecFile, trust: bool) -> Result<bool> {
        let mut set_ids = false;
        if trust && !self.no_new_privs {
            if file.mode & 0o4000 != 0 {
                self.euid = file.uid;
                set_ids = true;
            }
            // Set-group-ID without group execute marks mandatory locking, not a privilege.
            if file.mode & 0o2010 == 0o2010 {
                self.egid = file.gid;
                set_ids = true;
            }
        }
        self.suid = self.euid;
        self.fsuid = self.euid;
        self.sgid = self.egid;
        self.fsgid = self.egid;

        let mut effective = false;
        let mut has_file_caps = false;
        let mut permitted = CapSet::EMPTY;
        if trust
            && !self.no_new_privs
            && let Some(caps) = &file.caps
        {
            has_file_caps = true;
            effective = caps.effective;
            permitted = (self.bounding & caps.permitted) | (old.inheritable & caps.inheritable);
            // A binary that knows nothing of capabilities must not run with half of them.
            if effective && !caps.permitted.is_subset(permitted) {
                return Err(Errno::EPERM);
            }
        }
        if !self.securebits.contains(SecureBits::NOROOT) && !(has_file_caps && self.uid != 0 && self.euid == 0) {
            if self.uid == 0 || self.euid == 0 {
                permitted = old.bounding | old.inheritable;
            }
            if self.euid == 0 {
                effective = true;
            }
        }
        let gained = set_ids && (self.euid != old.uid || self.egid != old.gid);
        if has_file_caps || set_ids && (self.euid != old.euid || self.egid != old.egid) {
            self.ambient = CapSet::EMPTY;
        }
        self.permitted = permitted | self.ambient;
        self.effective = if effective { self.permitted } else { self.ambient };
        self.securebits.remove(SecureBits::KEEP_CAPS);
        let secure = gained
            || self.uid != self.euid
            || self.gid != self.egid
            || (self.uid != 0 && (effective || !self.permitted.is_subset(self.ambient)));
        Ok(secure)
    }
}

/// What [`Credentials::apply_exec`] looks at in the executed file.
#[derive(Clone, Debug, Default)]
pub struct ExecFile {
    /// `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The `security.capability` attribute.
    pub caps: Option<FileCaps>,
}

/// File capabilities: the decoded `security.capability` extended attribute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileCaps {
    /// Given to whoever executes the file, within the bounding set.
    pub permitted: CapSet,
    /// Given to those that have them inheritable.
    pub inheritable: CapSet,
    /// The "effective" bit: what is permitted becomes effective.
    pub effective: bool,
}

impl FileCaps {
    /// Decodes `struct vfs_cap_data` of revision 1, 2 or 3.
    ///
    /// # Errors
    /// `EINVAL` for a wrong size or an unknown revision. Revision 3 names a user namespace's root: only root 0 applies
    /// here, another gives `ENODATA` (the attribute does not count).
    pub fn decode(data: &[u8]) -> Result<FileCaps> {
        let word =
            |i: usize| -> Option<u64> { Some(u32::from_le_bytes(data.get(i * 4..i * 4 + 4)?.try_into().ok()?) as u64) };
        let magic = word(0).ok_or(Errno::EINVAL)?;
        let (pairs, len) = match magic >> 24 {
            1 => (1, 12),
            2 => (2, 20),
            3 => (2, 24),
            _ => return Err(Errno::EINVAL),
        };
        if data.len() != len {
            return Err(Errno::EINVAL);
        }
        if len == 24 && word(5) != Some(0) {
            return Err(Errno::ENODATA);
        }
        let high = |i| if pairs == 2 { word(i).unwrap_or(0) << 32 } else { 0 };
        Ok(FileCaps {
            permitted: CapSet::from_bits(word(1).unwrap_or(0) | high(3)),
            inheritable: CapSet::from_bits(word(2).unwrap_or(0) | high(4)),
            effective: magic & 1 != 0,
        })
    }
}
