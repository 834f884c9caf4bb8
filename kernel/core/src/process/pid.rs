//! Process, thread, group and session numbers: allocation and lookup.
//!
//! One number space serves all four (a thread's tid, its process's pid, a group's and a session's id can be the same
//! number). An owner holds a [`PidNumber`]; the number is free for reuse when the last holder drops it, so a group
//! outlives the process it is named after without a stranger taking the number (Linux's `struct pid`).
//!
//! The kernel itself goes by the numbers of the first PID namespace alone ([`Process::pid`], [`lookup_pid`] …). What programs
//! say and hear is translated where it comes in and goes out: [`seen_process`] and its kin find what a number means to the running
//! thread, an [`Identity`] knows its number in each [`PidNamespace`] from its own upwards.
//!
//! Why this shape: lookup by number happens at every `kill`, `/proc` access and `wait`, from all CPUs, and allocation
//! at every fork. Shards by the low bits keep both to one short lock on a small ordered map, and the order gives
//! `/proc` its directory walk.
//! Locking: a shard lock is a leaf; a namespace's table may be locked around it. No reference to a table object is dropped under
//! either.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering::Relaxed};

use ursa_hal::sync::RwSpinLock;

use super::pid_namespace::{self, LocalClaim, PidNamespace};
use super::{Process, ProcessGroup, Session, Thread, try_current};
use crate::{Errno, Result};

/// A process, thread, group or session number.
pub type Pid = i32;

/// One more than the largest number (`kernel.pid_max`, 64-bit Linux's limit).
pub const PID_MAX: Pid = 1 << 22;
/// Where allocation starts again after a wrap (`RESERVED_PIDS`).
pub(super) const RESERVED: Pid = 300;
const SHARDS: usize = 64;

#[derive(Default)]
struct Entry {
    identity: Weak<Identity>,
    thread: Weak<Thread>,
    process: Option<Arc<Process>>,
    group: Weak<ProcessGroup>,
    session: Weak<Session>,
}

type Shard = RwSpinLock<BTreeMap<Pid, Entry>>;

static TABLE: [Shard; SHARDS] = [const { RwSpinLock::new(BTreeMap::new()) }; SHARDS];
static NEXT: AtomicI32 = AtomicI32::new(1);
static LAST: AtomicI32 = AtomicI32::new(0);
static PROCESSES: AtomicUsize = AtomicUsize::new(0);

fn shard(pid: Pid) -> &'static Shard {
    &TABLE[pid as usize % SHARDS]
}

/// What a process, thread, group or session is called in each PID namespace that sees it. It says so also when it is gone.
pub struct Identity {
    global: Pid,
    namespace: Arc<PidNamespace>,
    /// In the second namespace, and so on to its own; empty for those of the first.
    nested: Vec<Pid>,
}

impl Identity {
    /// The number in the first namespace.
    pub fn global(&self) -> Pid {
        self.global
    }

    /// The namespace that it was made in.
    pub fn namespace(&self) -> &Arc<PidNamespace> {
        &self.namespace
    }

    /// The number in its own namespace.
    pub fn own(&self) -> Pid {
        self.nested.last().copied().unwrap_or(self.global)
    }

    /// The number in `namespace`, 0 where it cannot be seen.
    pub fn seen_from(&self, namespace: &PidNamespace) -> Pid {
        match namespace.level() {
            0 => self.global,
            level if self.namespace.has_ancestor(namespace) => self.nested[level - 1],
            _ => 0,
        }
    }

    /// The number that the running thread knows it by, 0 when it cannot be seen; kernel tasks see all.
    pub fn seen(&self) -> Pid {
        try_current().map_or(self.global, |thread| self.seen_from(thread.process().pid_namespace()))
    }

    /// The process that has it, a zombie included.
    pub fn process(&self) -> Option<Arc<Process>> {
        lookup_pid(self.global).filter(|process| core::ptr::eq(&**process.identity(), self))
    }

    /// The numbers in `namespace` and in each further one down to its own (`NSpid` of a pidfd's `fdinfo`); none where it cannot be seen.
    pub fn seen_below(&self, namespace: &PidNamespace) -> impl Iterator<Item = Pid> + '_ {
        let skipped = if self.namespace.has_ancestor(namespace) { namespace.level() } else { usize::MAX };
        core::iter::once(self.global).chain(self.nested.iter().copied()).skip(skipped)
    }
}

/// A number of the first namespace that is taken.
struct GlobalClaim(Pid);

impl GlobalClaim {
    fn next() -> Result<GlobalClaim> {
        for _ in 0..PID_MAX {
            let pid = NEXT.fetch_update(Relaxed, Relaxed, |n| Some(if n + 1 >= PID_MAX { RESERVED } else { n + 1 }));
            let pid = pid.unwrap_or(RESERVED);
            if let Ok(claim) = Self::of(pid) {
                LAST.store(pid, Relaxed);
                return Ok(claim);
            }
        }
        Err(Errno::EAGAIN)
    }

    fn of(pid: Pid) -> Result<GlobalClaim> {
        if !(1..PID_MAX).contains(&pid) {
            return Err(Errno::EINVAL);
        }
        let mut map = shard(pid).write();
        if map.contains_key(&pid) {
            return Err(Errno::EEXIST);
        }
        map.insert(pid, Entry::default());
        Ok(GlobalClaim(pid))
    }
}

impl Drop for GlobalClaim {
    fn drop(&mut self) {
        let gone = shard(self.0).write().remove(&self.0);
        drop(gone);
    }
}

/// A number in each namespace; given back from the innermost outwards, so that a nested table never leads to a stranger.
struct Registered {
    identity: Arc<Identity>,
    _nested: Vec<LocalClaim>,
    _global: GlobalClaim,
}

/// A claim on a number.
#[derive(Clone)]
pub struct PidNumber(Arc<Registered>);

impl PidNumber {
    /// Claims a number in `namespace` and in each that it is nested in: those of `wanted`, which begins with the innermost, or the next
    /// free ones (`clone3`'s `set_tid`).
    ///
    /// # Errors
    /// `EAGAIN` when every number is in use, `EEXIST` when a wanted one is, `EINVAL` for one outside of the number space or that is not
    /// the first of a new namespace, `ENOMEM` when the namespace's first process has ended.
    pub fn allocate(namespace: &Arc<PidNamespace>, wanted: &[Pid]) -> Result<PidNumber> {
        let level = namespace.level();
        let wanted_at = |at: usize| wanted.get(level - at).copied();
        let global = match wanted_at(0) {
            Some(pid) => GlobalClaim::of(pid)?,
            None => GlobalClaim::next()?,
        };
        let mut nested = Vec::with_capacity(level);
        let mut numbers = Vec::with_capacity(level);
        for (at, ancestor) in namespace.path().iter().enumerate().skip(1) {
            let claim = LocalClaim::new(ancestor, global.0, wanted_at(at))?;
            numbers.push(claim.number());
            nested.push(claim);
        }
        let identity = Arc::new(Identity { global: global.0, namespace: namespace.clone(), nested: numbers });
        let number = PidNumber(Arc::new(Registered { identity, _nested: nested, _global: global }));
        number.edit(|e| e.identity = Arc::downgrade(number.identity()));
        Ok(number)
    }

    /// The number in the first namespace.
    pub fn get(&self) -> Pid {
        self.0.identity.global
    }

    /// Its numbers in all namespaces.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.0.identity
    }

    pub(super) fn publish_thread(&self, thread: &Arc<Thread>) {
        self.edit(|e| core::mem::replace(&mut e.thread, Arc::downgrade(thread)));
    }

    pub(super) fn publish_process(&self, process: &Arc<Process>) {
        self.edit(|e| e.process.replace(process.clone()));
        PROCESSES.fetch_add(1, Relaxed);
        pid_namespace::entered(process);
    }

    pub(super) fn retract_process(&self) {
        self.edit(|e| e.process.take());
        PROCESSES.fetch_sub(1, Relaxed);
        pid_namespace::left(self.identity());
    }

    pub(super) fn publish_group(&self, group: &Arc<ProcessGroup>) {
        self.edit(|e| core::mem::replace(&mut e.group, Arc::downgrade(group)));
    }

    pub(super) fn publish_session(&self, session: &Arc<Session>) {
        self.edit(|e| core::mem::replace(&mut e.session, Arc::downgrade(session)));
    }

    /// Edits the entry; what the edit displaces is returned out of the lock before it is dropped.
    fn edit<R>(&self, f: impl FnOnce(&mut Entry) -> R) {
        let pid = self.get();
        let displaced = {
            let mut map = shard(pid).write();
            map.get_mut(&pid).map(f)
        };
        drop(displaced);
    }
}

/// Returns the process numbered `pid`, a zombie included.
pub fn lookup_pid(pid: Pid) -> Option<Arc<Process>> {
    shard(pid).read().get(&pid)?.process.clone()
}

/// Returns the thread numbered `tid`.
pub fn lookup_tid(tid: Pid) -> Option<Arc<Thread>> {
    shard(tid).read().get(&tid)?.thread.upgrade()
}

/// Returns the process group numbered `pgid`.
pub fn process_group(pgid: Pid) -> Option<Arc<ProcessGroup>> {
    shard(pgid).read().get(&pgid)?.group.upgrade()
}

/// Returns the session numbered `sid`.
pub fn session(sid: Pid) -> Option<Arc<Session>> {
    shard(sid).read().get(&sid)?.session.upgrade()
}

/// Returns the process with the lowest pid that is at least `from` (the walk of `/proc`).
pub fn next_process(from: Pid) -> Option<Arc<Process>> {
    let mut best: Option<(Pid, Arc<Process>)> = None;
    for s in &TABLE {
        let map = s.read();
        let limit = best.as_ref().map_or(PID_MAX, |b| b.0);
        if from >= limit {
            break;
        }
        let found = map.range(from..limit).find_map(|(pid, e)| Some((*pid, e.process.clone()?)));
        drop(map);
        if found.is_some() {
            best = found;
        }
    }
    best.map(|b| b.1)
}

/// Returns every process, ordered by pid.
pub fn processes() -> Vec<Arc<Process>> {
    let mut all = Vec::with_capacity(process_count());
    for s in &TABLE {
        all.extend(s.read().values().filter_map(|e| e.process.clone()));
    }
    all.sort_unstable_by_key(|p| p.pid());
    all
}

/// Returns how many processes there are.
pub fn process_count() -> usize {
    PROCESSES.load(Relaxed)
}

/// Returns the number given out last (`/proc/loadavg`).
pub fn last_pid() -> Pid {
    LAST.load(Relaxed)
}

/// Looks a number up as the running thread knows it.
fn seen<R>(number: Pid, look: impl FnOnce(Pid) -> Option<R>) -> Option<R> {
    match try_current() {
        Some(thread) => thread.process().pid_namespace().look(number, look),
        None => look(number),
    }
}

/// Returns the process that the running thread knows by the number `pid`, a zombie included.
pub fn seen_process(pid: Pid) -> Option<Arc<Process>> {
    seen(pid, lookup_pid)
}

/// Returns the thread that the running thread knows by the number `tid`.
pub fn seen_thread(tid: Pid) -> Option<Arc<Thread>> {
    seen(tid, lookup_tid)
}

/// Returns the process group that the running thread knows by the number `pgid`.
pub fn seen_group(pgid: Pid) -> Option<Arc<ProcessGroup>> {
    seen(pgid, process_group)
}

/// Returns the number in the first namespace of what the running thread knows by `number`; of nothing, a number that nothing has.
pub fn number_meant(number: Pid) -> Pid {
    const NOTHING: Pid = 0;
    seen(number, Some).unwrap_or(NOTHING)
}

/// Returns the number by which the running thread knows what has the number `global` in the first namespace; 0 when it cannot see it,
/// or in a nested namespace when that is gone.
pub fn number_seen(global: Pid) -> Pid {
    let Some(thread) = try_current() else { return global };
    let namespace = thread.process().pid_namespace();
    if namespace.level() == 0 || global <= 0 {
        return global;
    }
    identity_of(global).map_or(0, |identity| identity.seen_from(namespace))
}

/// Returns who has the number `global` in the first namespace.
pub fn identity_of(global: Pid) -> Option<Arc<Identity>> {
    shard(global).read().get(&global)?.identity.upgrade()
}
