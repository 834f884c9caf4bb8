//! Semaphores: `semget`, `semop`, `semtimedop`, `semctl`.
//!
//! A set's operations are done together or not at all, under its lock; who cannot go on sleeps on the set and tries again
//! whenever a value changed. What `SEM_UNDO` owes is kept per process and paid when it ends.
//!
//! References: semop(2), semctl(2), semget(2), `ipc/sem.c`.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicUsize, Ordering};

use linux_uapi::raw::general::__kernel_timespec;
use linux_uapi::sysv::{
    GETALL, GETNCNT, GETPID, GETVAL, GETZCNT, IPC_INFO, IPC_NOWAIT, IPC_PRIVATE, IPC_RMID, IPC_SET, IPC_STAT, SEM_INFO,
    SEM_STAT, SEM_STAT_ANY, SEM_UNDO, SETALL, SETVAL, SemInfo, Sembuf, SemidDs,
};
use ursa_hal::sync::SpinLock;

use super::{Object, Perm, Table, command, now};
use crate::ipc::namespace;
use crate::process::{Pid, Process, number_seen};
use crate::syscall::Cx;
use crate::time::Deadline;
use crate::user::{self, UserPtr};
use crate::wait::{Mutex, WaitQueue};
use crate::{Errno, Result};

/// `SEMMNI`, `SEMMSL`, `SEMOPM`, `SEMVMX` are Linux's.
pub(super) const SEMMNI: usize = 32_000;
const SEMMSL: usize = 32_000;
const SEMOPM: usize = 500;
const SEMVMX: i32 = 32_767;
/// `SEMMNS`: semaphores in all. Linux's is a thousand times that, and more than its memory holds.
const SEMMNS: usize = 1_024_000;

/// Semaphores there are.
static TOTAL: AtomicUsize = AtomicUsize::new(0);
/// Which sets a process owes something: what each has of it is in the set.
static DEBTORS: SpinLock<BTreeMap<Pid, Vec<Arc<Set>>>> = SpinLock::new(BTreeMap::new());

#[derive(Clone, Copy, Default)]
struct Semaphore {
    value: i32,
    /// Who changed it last.
    pid: Pid,
    /// Threads that wait for it to grow, and to become zero.
    growing: u32,
    zero: u32,
}

struct State {
    perm: Perm,
    semaphores: Vec<Semaphore>,
    /// What each process's end adds to each semaphore.
    undo: BTreeMap<(Pid, u16), i32>,
    otime: i64,
    ctime: i64,
    removed: bool,
}

/// A set of semaphores.
pub(super) struct Set {
    id: i32,
    state: SpinLock<State>,
    changed: WaitQueue,
    _share: Share,
}

/// A set's part of [`TOTAL`].
struct Share(usize);

impl Drop for Share {
    fn drop(&mut self) {
        TOTAL.fetch_sub(self.0, Ordering::Relaxed);
    }
}

impl Object for Set {
    fn perm(&self) -> Perm {
        self.state.lock().perm
    }
}

/// Why operations cannot be done now.
enum Blocked {
    /// The one with this index waits.
    Wait(usize),
    /// It never can be.
    Never(Errno),
}

impl State {
    /// Does all of `ops` or none of them.
    fn attempt(&mut self, ops: &[Sembuf], pid: Pid) -> core::result::Result<(), Blocked> {
        for (at, op) in ops.iter().enumerate() {
            // In range: checked before the first attempt, and a set never changes its size.
            let value = self.semaphores[op.num as usize].value;
            let new = value + i32::from(op.op);
            let blocked = match op.op {
                0 if value != 0 => Some(Blocked::Wait(at)),
                op if op < 0 && new < 0 => Some(Blocked::Wait(at)),
                op if op > 0 && new > SEMVMX => Some(Blocked::Never(Errno::ERANGE)),
                _ => None,
            };
            let debt = self.undo.get(&(pid, op.num)).copied().unwrap_or(0) - i32::from(op.op);
            let too_much = u32::from(op.flags) & SEM_UNDO != 0 && debt.abs() > SEMVMX + 1;
            let blocked = blocked.or(too_much.then_some(Blocked::Never(Errno::ERANGE)));
            if let Some(blocked) = blocked {
                for done in &ops[..at] {
                    self.semaphores[done.num as usize].value -= i32::from(done.op);
                    self.owe(pid, done, 1);
                }
                return Err(blocked);
            }
            self.semaphores[op.num as usize].value = new;
            self.owe(pid, op, -1);
        }
        for op in ops {
            self.semaphores[op.num as usize].pid = pid;
        }
        Ok(())
    }

    /// Notes what the process's end has to undo of `op`.
    fn owe(&mut self, pid: Pid, op: &Sembuf, sign: i32) {
        if u32::from(op.flags) & SEM_UNDO == 0 || op.op == 0 {
            return;
        }
        let debt = self.undo.entry((pid, op.num)).or_insert(0);
        *debt += sign * i32::from(op.op);
        if *debt == 0 {
            self.undo.remove(&(pid, op.num));
        }
    }

    fn count_waiter(&mut self, op: &Sembuf, by: i32) {
        let semaphore = &mut self.semaphores[op.num as usize];
        let counter = if op.op == 0 { &mut semaphore.zero } else { &mut semaphore.growing };
        *counter = counter.saturating_add_signed(by);
    }
}

/// semget(2).
pub fn sys_semget(_cx: &mut Cx<'_>, key: i32, count: i32, flags: u32) -> Result<i32> {
    let count = usize::try_from(count).ok().filter(|&n| n <= SEMMSL).ok_or(Errno::EINVAL)?;
    let fits = |set: &Set| if set.state.lock().semaphores.len() < count { Err(Errno::EINVAL) } else { Ok(()) };
    let create = |id: i32| {
        if count == 0 {
            return Err(Errno::EINVAL);
        }
        let room = |total: usize| total.checked_add(count).filter(|&sum| sum <= SEMMNS);
        TOTAL.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).map_err(|_| Errno::ENOSPC)?;
        let share = Share(count);
        let mut semaphores = Vec::new();
        semaphores.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
        semaphores.resize(count, Semaphore::default());
        let state = State {
            perm: Perm::new(key, flags),
            semaphores,
            undo: BTreeMap::new(),
            otime: 0,
            ctime: now(),
            removed: false,
        };
        Ok(Arc::new(Set { id, state: SpinLock::new(state), changed: WaitQueue::new(), _share: share }))
    };
    namespace::current().sysv.sem.lock().find_or_create(key, flags, fits, create)
}

/// semop(2).
pub fn sys_semop(cx: &mut Cx<'_>, id: i32, ops: UserPtr<Sembuf>, count: u32) -> Result {
    operate(cx, id, ops, count, None)
}

/// semtimedop(2).
pub fn sys_semtimedop(
    cx: &mut Cx<'_>,
    id: i32,
    ops: UserPtr<Sembuf>,
    count: u32,
    timeout: UserPtr<[i64; 2]>,
) -> Result {
    const _: () = assert!(size_of::<__kernel_timespec>() == size_of::<[i64; 2]>());
    let deadline = match timeout.non_null() {
        Some(timeout) => {
            let [sec, nsec] = timeout.read()?;
            if sec < 0 || !(0..1_000_000_000).contains(&nsec) {
                return Err(Errno::EINVAL);
            }
            Some(Deadline::after((sec as u64).saturating_mul(1_000_000_000).saturating_add(nsec as u64)))
        }
        None => None,
    };
    operate(cx, id, ops, count, deadline)
}

fn operate(cx: &mut Cx<'_>, id: i32, ops: UserPtr<Sembuf>, count: u32, deadline: Option<Deadline>) -> Result {
    if count == 0 || id < 0 {
        return Err(Errno::EINVAL);
    }
    if count as usize > SEMOPM {
        return Err(Errno::E2BIG);
    }
    let ops = user::read_slice(ops, count as usize)?;
    let set = namespace::current().sysv.sem.lock().get(id)?;
    if ops.iter().any(|op| usize::from(op.num) >= set.state.lock().semaphores.len()) {
        return Err(Errno::EFBIG);
    }
    let alters = ops.iter().any(|op| op.op != 0);
    set.perm().check(if alters { 0o222 } else { 0o444 })?;
    let process = cx.thread.process();
    let pid = process.pid();
    if ops.iter().any(|op| u32::from(op.flags) & SEM_UNDO != 0) {
        register_debtor(pid, &set)?;
    }
    // What it waits for, while it counts as a waiter.
    let mut waits_for: Option<usize> = None;
    let attempt = || {
        let mut state = set.state.lock();
        if let Some(at) = waits_for.take() {
            state.count_waiter(&ops[at], -1);
        }
        if state.removed {
            return Some(Err(Errno::EIDRM));
        }
        match state.attempt(&ops, pid) {
            Ok(()) => {
                state.otime = now();
                Some(Ok(()))
            }
            Err(Blocked::Never(error)) => Some(Err(error)),
            Err(Blocked::Wait(at)) if u32::from(ops[at].flags) & IPC_NOWAIT != 0 => Some(Err(Errno::EAGAIN)),
            Err(Blocked::Wait(at)) => {
                state.count_waiter(&ops[at], 1);
                waits_for = Some(at);
                None
            }
        }
    };
    let outcome = set.changed.wait_interruptible(deadline, attempt);
    if let Some(at) = waits_for.take() {
        set.state.lock().count_waiter(&ops[at], -1);
    }
    match outcome {
        Ok(done) => {
            done?;
            if alters {
                set.changed.wake_all();
            }
            Ok(())
        }
        Err(Errno::ETIMEDOUT) => Err(Errno::EAGAIN),
        // semop(2): never restarted after a signal handler.
        Err(_) => Err(Errno::EINTR),
    }
}

fn register_debtor(pid: Pid, set: &Arc<Set>) -> Result {
    let mut debtors = DEBTORS.lock();
    let sets = debtors.entry(pid).or_default();
    if !sets.iter().any(|known| Arc::ptr_eq(known, set)) {
        sets.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        sets.push(set.clone());
    }
    Ok(())
}

/// A process ends: what its `SEM_UNDO` operations did is undone (`exit_sem`).
pub fn process_exits(process: &Process) {
    let pid = process.pid();
    let Some(sets) = DEBTORS.lock().remove(&pid) else { return };
    for set in sets {
        {
            let mut state = set.state.lock();
            let debts: Vec<(u16, i32)> =
                state.undo.range((pid, 0)..=(pid, u16::MAX)).map(|(&(_, num), &debt)| (num, debt)).collect();
            for (num, debt) in debts {
                state.undo.remove(&(pid, num));
                if let Some(semaphore) = state.semaphores.get_mut(num as usize) {
                    semaphore.value = (semaphore.value + debt).clamp(0, SEMVMX);
                    semaphore.pid = pid;
                }
            }
            state.otime = now();
        }
        set.changed.wake_all();
    }
}

/// semctl(2).
pub fn sys_semctl(cx: &mut Cx<'_>, id: i32, num: i32, cmd: u32, arg: u64) -> Result<i32> {
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    let namespace = namespace::current();
    let table = &namespace.sysv.sem;
    match command(cmd) {
        cmd @ (IPC_INFO | SEM_INFO) => {
            let (highest, info) = info(table, cmd == SEM_INFO);
            UserPtr::new(arg).write(&info)?;
            Ok(highest)
        }
        cmd @ (IPC_STAT | SEM_STAT | SEM_STAT_ANY) => {
            let (number, set) = match cmd {
                IPC_STAT => (0, table.lock().get(id)?),
                _ => table.lock().at_index(id)?,
            };
            if cmd != SEM_STAT_ANY {
                set.perm().check(0o444)?;
            }
            UserPtr::new(arg).write(&report(&set))?;
            Ok(number)
        }
        IPC_SET => {
            let new = UserPtr::<SemidDs>::new(arg).read()?;
            let set = table.lock().get(id)?;
            set.perm().check_owner()?;
            let mut state = set.state.lock();
            state.perm.set(&new.perm)?;
            state.ctime = now();
            Ok(0)
        }
        IPC_RMID => {
            let set = {
                let mut sets = table.lock();
                let set = sets.get(id)?;
                set.perm().check_owner()?;
                sets.objects.remove(&id);
                set
            };
            {
                let mut state = set.state.lock();
                state.removed = true;
                state.perm.key = IPC_PRIVATE;
                state.undo.clear();
            }
            set.changed.wake_all();
            forget_set(&set);
            Ok(0)
        }
        cmd @ (GETVAL | GETPID | GETNCNT | GETZCNT) => {
            let set = table.lock().get(id)?;
            set.perm().check(0o444)?;
            let state = set.state.lock();
            let semaphore = usize::try_from(num).ok().and_then(|num| state.semaphores.get(num)).ok_or(Errno::EINVAL)?;
            Ok(match cmd {
                GETVAL => semaphore.value,
                GETPID => number_seen(semaphore.pid),
                GETNCNT => semaphore.growing as i32,
                _ => semaphore.zero as i32,
            })
        }
        GETALL => {
            let set = table.lock().get(id)?;
            set.perm().check(0o444)?;
            let values: Vec<u16> = set.state.lock().semaphores.iter().map(|s| s.value as u16).collect();
            user::write_slice(UserPtr::new(arg), &values)?;
            Ok(0)
        }
        SETVAL => {
            // An int in a union: the low half of the register.
            let value = arg as i32;
            if !(0..=SEMVMX).contains(&value) {
                return Err(Errno::ERANGE);
            }
            let set = table.lock().get(id)?;
            set.perm().check(0o222)?;
            {
                let mut state = set.state.lock();
                let num = usize::try_from(num).ok().filter(|&n| n < state.semaphores.len()).ok_or(Errno::EINVAL)?;
                state.undo.retain(|(_, n), _| usize::from(*n) != num);
                state.semaphores[num].value = value;
                state.semaphores[num].pid = cx.thread.process().pid();
                state.ctime = now();
            }
            set.changed.wake_all();
            Ok(0)
        }
        SETALL => {
            let set = table.lock().get(id)?;
            set.perm().check(0o222)?;
            let count = set.state.lock().semaphores.len();
            let values = user::read_slice(UserPtr::<u16>::new(arg), count)?;
            if values.iter().any(|&value| i32::from(value) > SEMVMX) {
                return Err(Errno::ERANGE);
            }
            {
                let mut state = set.state.lock();
                if state.removed {
                    return Err(Errno::EIDRM);
                }
                state.undo.clear();
                for (semaphore, value) in state.semaphores.iter_mut().zip(values) {
                    semaphore.value = value.into();
                    semaphore.pid = cx.thread.process().pid();
                }
                state.ctime = now();
            }
            set.changed.wake_all();
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// The namespace of these sets ends.
pub(super) fn end(table: &Mutex<Table<Set>>) {
    let sets = core::mem::take(&mut table.lock().objects);
    for set in sets.values() {
        set.state.lock().removed = true;
        forget_set(set);
    }
}

/// Nobody owes a removed set anything.
fn forget_set(set: &Arc<Set>) {
    let mut dropped = Vec::new();
    let mut debtors = DEBTORS.lock();
    debtors.retain(|_, sets| {
        if let Some(at) = sets.iter().position(|known| Arc::ptr_eq(known, set)) {
            dropped.push(sets.swap_remove(at));
        }
        !sets.is_empty()
    });
    drop(debtors);
}

fn report(set: &Set) -> SemidDs {
    let state = set.state.lock();
    SemidDs {
        perm: state.perm.report(set.id),
        otime: state.otime,
        ctime: state.ctime,
        nsems: state.semaphores.len() as u64,
        ..SemidDs::default()
    }
}

/// The highest index in use, and the limits; `SEM_INFO` has how much is in use in two of the fields.
fn info(table: &Mutex<Table<Set>>, in_use: bool) -> (i32, SemInfo) {
    let sets = table.lock();
    let semmns = SEMMNS as i32;
    let mut info = SemInfo {
        semmap: semmns,
        semmni: SEMMNI as i32,
        semmns,
        semmnu: semmns,
        semmsl: SEMMSL as i32,
        semopm: SEMOPM as i32,
        semume: SEMOPM as i32,
        semusz: 20,
        semvmx: SEMVMX,
        semaem: SEMVMX,
    };
    if in_use {
        info.semusz = sets.objects.len() as i32;
        info.semaem = sets.objects.values().map(|set| set.state.lock().semaphores.len()).sum::<usize>() as i32;
    }
    (sets.highest_index(), info)
}

/// `/proc/sysvipc/sem`.
pub(super) fn init() -> Result {
    super::register("sysvipc/sem", |objects, out| {
        let _ = writeln!(out, "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime");
        let sets: Vec<_> = objects.sem.lock().objects.values().cloned().collect();
        for set in sets {
            let SemidDs { perm, otime, ctime, nsems, .. } = report(&set);
            let _ = writeln!(
                out,
                "{:10} {:10}  {:4o} {nsems:10} {:5} {:5} {:5} {:5} {otime:10} {ctime:10}",
                perm.key, set.id, perm.mode, perm.uid, perm.gid, perm.cuid, perm.cgid
            );
        }
    })
}
