//! PID namespaces: [`PidNamespace`].
//!
//! A process has a number in its own namespace and in each that this one is nested in; those are the ones that see it. A namespace
//! lives as its first process does: that one inherits the orphans, and its end is the end of all others ([`end_of`]). Nobody is born
//! in it afterwards. The first namespace has no table here: its numbers are those that the kernel goes by ([`super::pid`]).
//!
//! Locking: that nobody is born while a namespace ends is decided under the tree lock. A table's lock is a leaf but for the lock of a
//! shard of [`super::pid`].
//! References: pid_namespaces(7), Linux `kernel/pid_namespace.c`, `kernel/pid.c`.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::*};

use linux_uapi::signal::{SIGCHLD, SIGKILL, SigInfo};
use ursa_hal::sync::{Once, RwSpinLock, SpinLock};

use super::exit;
use super::pid::{self, Identity, PID_MAX, Pid, RESERVED};
use super::process::{Process, tree_lock};
use crate::namespace::{Claim, Kind, Number};
use crate::{Errno, Result, ptrace, signal};

/// How deep namespaces may be nested (`MAX_PID_NS_LEVEL`).
const DEEPEST: usize = 32;

/// A space of process numbers.
pub struct PidNamespace {
    /// How many it is nested in.
    level: usize,
    parent: Option<Arc<PidNamespace>>,
    number: Number,
    _claim: Option<Claim>,
    table: RwSpinLock<Table>,
    /// The first process, which inherits orphans.
    reaper: SpinLock<Weak<Process>>,
    /// The first process has ended.
    ended: AtomicBool,
    /// What the first process is said to have died of, once somebody in here has called reboot(2): SIGHUP or SIGINT; else 0.
    reboot: AtomicU32,
    /// Processes in it and in those nested in it, zombies included.
    processes: AtomicUsize,
    /// `vm.memfd_noexec`, as it was set here; see [`PidNamespace::memfd_noexec`].
    memfd_noexec: AtomicU32,
}

/// The numbers of a nested namespace.
struct Table {
    /// What they are in the first.
    global: BTreeMap<Pid, Pid>,
    next: Pid,
    last: Pid,
}

/// The namespace that the system starts with.
pub fn initial() -> &'static Arc<PidNamespace> {
    static INITIAL: Once<Arc<PidNamespace>> = Once::new();
    INITIAL.call_once(|| Arc::new(PidNamespace::with(0, None, Number::initial(Kind::Pid), None)))
}

impl PidNamespace {
    fn with(level: usize, parent: Option<Arc<PidNamespace>>, number: Number, claim: Option<Claim>) -> PidNamespace {
        PidNamespace {
            level,
            parent,
            number,
            _claim: claim,
            table: RwSpinLock::new(Table { global: BTreeMap::new(), next: 1, last: 0 }),
            reaper: SpinLock::new(Weak::new()),
            ended: AtomicBool::new(false),
            reboot: AtomicU32::new(0),
            processes: AtomicUsize::new(0),
            memfd_noexec: AtomicU32::new(0),
        }
    }

    /// A new one, nested in this one.
    ///
    /// # Errors
    /// `ENOSPC` beyond the deepest.
    pub fn nested(self: &Arc<PidNamespace>, claim: Claim) -> Result<Arc<PidNamespace>> {
        if self.level == DEEPEST {
            return Err(Errno::ENOSPC);
        }
        let number = Number::allocate();
        let nested = PidNamespace::with(self.level + 1, Some(self.clone()), number, Some(claim));
        // It stays as strict as it began when this one is relaxed.
        nested.memfd_noexec.store(self.memfd_noexec(), Relaxed);
        Ok(Arc::new(nested))
    }

    /// How many namespaces it is nested in.
    pub fn level(&self) -> usize {
        self.level
    }

    /// The one that it is nested in.
    pub fn parent(&self) -> Option<&Arc<PidNamespace>> {
        self.parent.as_ref()
    }

    /// `vm.memfd_noexec` as it holds here: 1 when memfds that say neither are not executable, 2 when none may be. It is the strictest
    /// of what was set here and in those that this one is nested in.
    pub fn memfd_noexec(&self) -> u32 {
        let above = core::iter::successors(Some(self), |namespace| namespace.parent.as_deref());
        above.map(|namespace| namespace.memfd_noexec.load(Relaxed)).max().unwrap_or(0)
    }

    /// Sets `vm.memfd_noexec` here.
    ///
    /// # Errors
    /// `EINVAL` above 2 and below what holds where this one is nested.
    pub fn set_memfd_noexec(&self, value: u32) -> Result {
        let least = self.parent.as_ref().map_or(0, |parent| parent.memfd_noexec());
        if !(least..=2).contains(&value) {
            return Err(Errno::EINVAL);
        }
        self.memfd_noexec.store(value, Relaxed);
        Ok(())
    }

    /// The inode number of its file.
    pub fn number(&self) -> u32 {
        self.number.get()
    }

    /// It and those that it is nested in, the first one first.
    pub fn path(self: &Arc<PidNamespace>) -> Vec<&Arc<PidNamespace>> {
        let mut path: Vec<_> = core::iter::successors(Some(self), |namespace| namespace.parent.as_ref()).collect();
        path.reverse();
        path
    }

    /// Whether it is `other` or nested in it.
    pub fn has_ancestor(&self, other: &PidNamespace) -> bool {
        let mut at = self;
        while at.level > other.level {
            match &at.parent {
                Some(parent) => at = parent,
                None => return false,
            }
        }
        core::ptr::eq(at, other)
    }

    /// Calls `look` with what the number `local` of this namespace is in the first one; what has it keeps it meanwhile.
    pub fn look<R>(&self, local: Pid, look: impl FnOnce(Pid) -> Option<R>) -> Option<R> {
        if self.level == 0 {
            return look(local);
        }
        let table = self.table.read();
        look(*table.global.get(&local)?)
    }

    /// The process with the lowest number of this namespace that is at least `from`, and that number.
    pub fn next_process(&self, mut from: Pid) -> Option<(Pid, Arc<Process>)> {
        if self.level == 0 {
            let process = pid::next_process(from)?;
            return Some((process.pid(), process));
        }
        loop {
            let table = self.table.read();
            let (local, global) = table.global.range(from..).next().map(|(local, global)| (*local, *global))?;
            let found = pid::lookup_pid(global);
            drop(table);
            match found {
                Some(process) => return Some((local, process)),
                None => from = local + 1,
            }
        }
    }

    /// The number given out last (`/proc/loadavg`).
    pub fn last_pid(&self) -> Pid {
        if self.level == 0 { pid::last_pid() } else { self.table.read().last }
    }

    /// How many processes it has, those of nested ones included.
    pub fn process_count(&self) -> usize {
        if self.level == 0 { pid::process_count() } else { self.processes.load(Relaxed) }
    }

    /// Whether its first process was born.
    pub fn has_begun(&self) -> bool {
        self.level == 0 || self.ended.load(Relaxed) || self.reaper.lock().strong_count() > 0
    }

    /// Who inherits its orphans.
    pub(super) fn reaper(&self) -> Option<Arc<Process>> {
        if self.level == 0 { pid::lookup_pid(1) } else { self.reaper.lock().upgrade() }
    }

    /// Ends a nested namespace as reboot(2) says: its first process is killed, and seems to have died of `signal`.
    pub(super) fn reboot(&self, signal: u32) {
        self.reboot.store(signal, Release);
        if let Some(first) = self.reaper() {
            signal::send_to_process(&first, SigInfo::kernel(SIGKILL));
        }
    }

    /// What `process` died of, if it was the first of a namespace that somebody in there has rebooted.
    pub(super) fn reboot_of(process: &Process) -> Option<u32> {
        let namespace = process.pid_namespace();
        let signal = namespace.reboot.load(Acquire);
        (signal != 0 && process.is_first()).then_some(signal)
    }

    /// Checks that a process may be born in it. Under the tree lock.
    ///
    /// # Errors
    /// `ENOMEM` when its first process has ended, or is still to come and is not this one.
    pub(super) fn admits(&self, newcomer: &Identity) -> Result {
        let mut at = self;
        while let Some(parent) = &at.parent {
            let is_first = newcomer.seen_from(at) == 1;
            if at.ended.load(Relaxed) || !is_first && !at.has_begun() {
                return Err(Errno::ENOMEM);
            }
            at = parent;
        }
        Ok(())
    }
}

/// A number of a nested namespace that is taken.
pub(super) struct LocalClaim {
    namespace: Arc<PidNamespace>,
    number: Pid,
}

impl LocalClaim {
    /// Takes a number, `wanted` or the next free one, for what has `global` in the first namespace.
    ///
    /// # Errors
    /// As [`pid::PidNumber::allocate`].
    pub fn new(namespace: &Arc<PidNamespace>, global: Pid, wanted: Option<Pid>) -> Result<LocalClaim> {
        if namespace.ended.load(Relaxed) {
            return Err(Errno::ENOMEM);
        }
        let is_empty = !namespace.has_begun();
        let mut table = namespace.table.write();
        let number = match wanted {
            Some(number) if !(1..PID_MAX).contains(&number) || is_empty && number != 1 => return Err(Errno::EINVAL),
            Some(number) if table.global.contains_key(&number) => return Err(Errno::EEXIST),
            Some(number) => number,
            None => table.next_free()?,
        };
        table.global.insert(number, global);
        Ok(LocalClaim { namespace: namespace.clone(), number })
    }

    /// The number.
    pub fn number(&self) -> Pid {
        self.number
    }
}

impl Drop for LocalClaim {
    fn drop(&mut self) {
        let mut table = self.namespace.table.write();
        table.global.remove(&self.number);
        if table.global.is_empty() {
            // The first process was not born after all: the next attempt is to be the first again.
            table.next = 1;
        }
    }
}

impl Table {
    fn next_free(&mut self) -> Result<Pid> {
        for _ in 0..PID_MAX {
            let number = self.next;
            self.next = if number + 1 >= PID_MAX { RESERVED } else { number + 1 };
            if !self.global.contains_key(&number) {
                self.last = number;
                return Ok(number);
            }
        }
        Err(Errno::EAGAIN)
    }
}

/// The nested namespaces that see `identity`.
fn seeing(identity: &Identity) -> impl Iterator<Item = &Arc<PidNamespace>> {
    let nested = |namespace: &&Arc<PidNamespace>| namespace.level > 0;
    core::iter::successors(Some(identity.namespace()), |namespace| namespace.parent.as_ref()).take_while(nested)
}

/// A process is born. Under the tree lock.
pub(super) fn entered(process: &Arc<Process>) {
    let identity = process.identity();
    for namespace in seeing(identity) {
        namespace.processes.fetch_add(1, Relaxed);
    }
    if identity.own() == 1 && identity.namespace().level > 0 {
        *identity.namespace().reaper.lock() = Arc::downgrade(process);
    }
}

/// A process was reaped. Under the tree lock.
pub(super) fn left(identity: &Identity) {
    for namespace in seeing(identity) {
        namespace.processes.fetch_sub(1, Release);
        if namespace.ended.load(Relaxed)
            && let Some(reaper) = namespace.reaper.lock().upgrade()
        {
            reaper.child_wait.wake_all();
        }
    }
}

/// The last thread of `process` ends: if it is the first of a nested namespace, all others of it are killed, and waited for.
/// One whose parent is outside is waited for until that one has reaped it, as on Linux.
pub(super) fn end_of(process: &Arc<Process>) {
    let namespace = process.pid_namespace();
    if namespace.level == 0 || !process.is_first() {
        return;
    }
    // What it traces must not wait for it.
    ptrace::release_tracees(process);
    // Its children are reaped as they end.
    process.signals.actions().ignore(SIGCHLD);
    let others = {
        let _tree = tree_lock();
        namespace.ended.store(true, Relaxed);
        let mut others = pid::processes();
        others.retain(|other| other.seen_from(namespace) > 1 && !other.is_zombie());
        others
    };
    for other in &others {
        signal::send_to_process(other, SigInfo::kernel(SIGKILL));
    }
    drop(others);
    process.child_wait.wait_until(|| {
        for child in process.children() {
            if !ptrace::holds_zombie(&child) && exit::claim(&child) {
                exit::release(&child);
            }
        }
        (namespace.processes.load(Acquire) <= 1).then_some(())
    });
}
