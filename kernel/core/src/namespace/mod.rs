//! Namespaces: what a task sees of the system, apart from others.
//!
//! | module | what |
//! |---|---|
//! | [`set`] | the namespaces of a task, and how they are shared, copied and replaced |
//! | [`nsfs`] | namespaces as files: `/proc/PID/ns`, what keeps them, what they tell |
//! | [`syscall`] | unshare(2) and setns(2) |
//! | [`uts`] | UTS namespaces |
//!
//! A kind of namespace is written where its objects are (mount namespaces in [`crate::fs::mount`], IPC namespaces in [`crate::ipc`], PID namespaces in
//! [`crate::process::pid_namespace`]). Kinds of which there is only
//! one have their files, too, and cannot be made.
//!
//! References: namespaces(7), Linux `kernel/nsproxy.c`, `kernel/ucount.c`.

pub mod nsfs;
pub mod set;
pub mod syscall;
pub mod uts;

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use core::fmt::Write;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use ursa_hal::sync::SpinLock;

pub use set::Namespaces;

use crate::fs::procfs::{self, Generator, Text};
use crate::process::fork::CloneFlags;
use crate::process::{Cap, Credentials, UserAccount, capable, fork};
use crate::{Errno, Result};

/// A kind of namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Kind {
    /// Mounts: mount_namespaces(7).
    Mnt,
    /// Names of the system: uts_namespaces(7).
    Uts,
    /// System V objects and POSIX message queues: ipc_namespaces(7).
    Ipc,
    /// Process numbers: pid_namespaces(7).
    Pid,
    /// Users and capabilities: user_namespaces(7).
    User,
    /// Networks: network_namespaces(7).
    Net,
    /// Control groups: cgroup_namespaces(7).
    Cgroup,
    /// Clocks: time_namespaces(7).
    Time,
}

/// How many kinds there are.
pub const KINDS: usize = 8;

impl Kind {
    /// The name before the inode number.
    pub fn name(self) -> &'static str {
        ["mnt", "uts", "ipc", "pid", "user", "net", "cgroup", "time"][self as usize]
    }

    /// The flag of clone(2).
    pub fn flag(self) -> CloneFlags {
        use CloneFlags as F;
        [F::NEWNS, F::NEWUTS, F::NEWIPC, F::NEWPID, F::NEWUSER, F::NEWNET, F::NEWCGROUP, F::NEWTIME][self as usize]
    }

    /// The inode number of the kind's first namespace, as on Linux 6.12.
    pub fn initial_number(self) -> u32 {
        const NUMBERS: [u32; KINDS] =
            [0xf000_0001, 0xefff_fffe, 0xefff_ffff, 0xefff_fffc, 0xefff_fffd, 0xf000_0000, 0xefff_fffb, 0xefff_fffa];
        NUMBERS[self as usize]
    }
}

/// The kinds that can be made.
pub const SUPPORTED: [Kind; 4] = [Kind::Mnt, Kind::Uts, Kind::Ipc, Kind::Pid];

/// The first inode number for namespaces that are made (`PROC_DYNAMIC_FIRST`, after the first mount and network namespaces).
const FIRST_NUMBER: u32 = 0xf000_0002;

struct Numbers {
    used: BTreeSet<u32>,
    last: u32,
}

static NUMBERS: SpinLock<Numbers> = SpinLock::new(Numbers { used: BTreeSet::new(), last: FIRST_NUMBER - 1 });

/// The inode number of a namespace, which no other has meanwhile.
pub struct Number(u32);

impl Number {
    /// That of a first namespace.
    pub fn initial(kind: Kind) -> Number {
        Number(kind.initial_number())
    }

    /// Takes a free one.
    pub fn allocate() -> Number {
        let mut numbers = NUMBERS.lock();
        loop {
            numbers.last = if numbers.last == u32::MAX { FIRST_NUMBER } else { numbers.last + 1 };
            let number = numbers.last;
            if numbers.used.insert(number) {
                return Number(number);
            }
        }
    }

    /// The number.
    pub fn get(&self) -> u32 {
        self.0
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        if self.0 >= FIRST_NUMBER {
            NUMBERS.lock().used.remove(&self.0);
        }
    }
}

/// `user.max_*_namespaces`: how many of a kind a user may have made.
static LIMITS: [AtomicU32; KINDS] = [const { AtomicU32::new(0) }; KINDS];

/// A namespace's count against the user who made it.
pub struct Claim {
    account: Arc<UserAccount>,
    kind: Kind,
}

impl Claim {
    /// Counts one more namespace of the kind.
    ///
    /// # Errors
    /// `ENOSPC` beyond the limit.
    pub fn new(cred: &Credentials, kind: Kind) -> Result<Claim> {
        let account = UserAccount::of(cred.euid);
        let limit = LIMITS[kind as usize].load(Relaxed);
        let room = |count: u32| (count < limit).then_some(count + 1);
        account.namespaces[kind as usize].fetch_update(Relaxed, Relaxed, room).map_err(|_| Errno::ENOSPC)?;
        Ok(Claim { account, kind })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.account.namespaces[self.kind as usize].fetch_sub(1, Relaxed);
    }
}

/// A limit's file.
struct Limit(Kind);

impl Generator for Limit {
    fn show(&self, out: &mut Text) -> Result {
        writeln!(out, "{}", LIMITS[self.0 as usize].load(Relaxed))?;
        Ok(())
    }

    fn store(&self, text: &str) -> Result {
        let value: u32 = text.trim().parse().map_err(|_| Errno::EINVAL)?;
        if value > i32::MAX as u32 {
            return Err(Errno::EINVAL);
        }
        LIMITS[self.0 as usize].store(value, Relaxed);
        Ok(())
    }

    fn may_open(&self, write: bool) -> Result {
        if write && !capable(Cap::SysResource) { Err(Errno::EACCES) } else { Ok(()) }
    }
}

/// Shows the limits in `/proc/sys/user`.
///
/// # Errors
/// Those of [`procfs::register`].
pub fn init() -> Result {
    let most = u32::try_from(fork::threads_max() / 2).unwrap_or(u32::MAX);
    for kind in SUPPORTED {
        LIMITS[kind as usize].store(most, Relaxed);
        procfs::register(&alloc::format!("sys/user/max_{}_namespaces", kind.name()), 0o644, Limit(kind))?;
    }
    Ok(())
}
