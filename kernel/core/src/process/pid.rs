//! Process, thread, group and session numbers: allocation and lookup.
//!
//! One number space serves all four (a thread's tid, its process's pid, a group's and a session's id can be the same
//! number). An owner holds a [`PidNumber`]; the number is free for reuse when the last holder drops it, so a group
//! outlives the process it is named after without a stranger taking the number (Linux's `struct pid`).
//!
//! Why this shape: lookup by number happens at every `kill`, `/proc` access and `wait`, from all CPUs, and allocation
//! at every fork. Shards by the low bits keep both to one short lock on a small ordered map, and the order gives
//! `/proc` its directory walk.
//! Locking: a shard lock is a leaf. No reference to a table object is dropped under it.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering::Relaxed};

use ursa_hal::sync::RwSpinLock;

use super::{Process, ProcessGroup, Session, Thread};
use crate::{Errno, Result};

/// A process, thread, group or session number.
pub type Pid = i32;

/// One more than the largest number (`kernel.pid_max`, 64-bit Linux's limit).
pub const PID_MAX: Pid = 1 << 22;
/// Where allocation starts again after a wrap (`RESERVED_PIDS`).
const RESERVED: Pid = 300;
const SHARDS: usize = 64;

#[derive(Default)]
struct Entry {
    holders: u32,
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

/// A claim on a number.
#[derive(Debug)]
pub struct PidNumber(Pid);

impl PidNumber {
    /// Claims the next free number.
    ///
    /// # Errors
    /// `EAGAIN` when every number is in use.
    pub fn allocate() -> Result<PidNumber> {
        for _ in 0..PID_MAX {
            let pid = NEXT.fetch_update(Relaxed, Relaxed, |n| Some(if n + 1 >= PID_MAX { RESERVED } else { n + 1 }));
            let pid = pid.unwrap_or(RESERVED);
            if let Ok(number) = Self::claim(pid) {
                LAST.store(pid, Relaxed);
                return Ok(number);
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Claims the number `pid` (`clone3`'s `set_tid`).
    ///
    /// # Errors
    /// `EINVAL` outside of the number space, `EEXIST` when in use.
    pub fn claim(pid: Pid) -> Result<PidNumber> {
        if !(1..PID_MAX).contains(&pid) {
            return Err(Errno::EINVAL);
        }
        let mut map = shard(pid).write();
        if map.contains_key(&pid) {
            return Err(Errno::EEXIST);
        }
        map.insert(pid, Entry { holders: 1, ..Entry::default() });
        Ok(PidNumber(pid))
    }

    /// Returns the number.
    pub fn get(&self) -> Pid {
        self.0
    }

    pub(super) fn publish_thread(&self, thread: &Arc<Thread>) {
        self.edit(|e| core::mem::replace(&mut e.thread, Arc::downgrade(thread)));
    }

    pub(super) fn publish_process(&self, process: &Arc<Process>) {
        self.edit(|e| e.process.replace(process.clone()));
        PROCESSES.fetch_add(1, Relaxed);
    }

    pub(super) fn retract_process(&self) {
        self.edit(|e| e.process.take());
        PROCESSES.fetch_sub(1, Relaxed);
    }

    pub(super) fn publish_group(&self, group: &Arc<ProcessGroup>) {
        self.edit(|e| core::mem::replace(&mut e.group, Arc::downgrade(group)));
    }

    pub(super) fn publish_session(&self, session: &Arc<Session>) {
        self.edit(|e| core::mem::replace(&mut e.session, Arc::downgrade(session)));
    }

    /// Edits the entry; what the edit displaces is returned out of the lock before it is dropped.
    fn edit<R>(&self, f: impl FnOnce(&mut Entry) -> R) {
        let displaced = {
            let mut map = shard(self.0).write();
            map.get_mut(&self.0).map(f)
        };
        drop(displaced);
    }
}

impl Clone for PidNumber {
    fn clone(&self) -> PidNumber {
        self.edit(|e| e.holders += 1);
        PidNumber(self.0)
    }
}

impl Drop for PidNumber {
    fn drop(&mut self) {
        let dead = {
            let mut map = shard(self.0).write();
            let last = map.get_mut(&self.0).is_some_and(|e| {
                e.holders -= 1;
                e.holders == 0
            });
            if last { map.remove(&self.0) } else { None }
        };
        drop(dead);
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
