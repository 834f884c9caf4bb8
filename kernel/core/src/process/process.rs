//! [`Process`]: what all threads of a thread group share.
//!
//! ```text
//!  new ──publish──▶ running ──last thread exits──▶ zombie ──reaped by wait──▶ gone
//!                      └────────── parent ignores SIGCHLD ──────────────────────▲
//! ```
//! A process owns its threads; the pid table owns the process until it is reaped. Parent and children hold each other
//! through [`Links`]: children strongly, the parent weakly.
//!
//! Locking: [`tree_lock`] serialises every change of the family tree and of group membership (Linux's
//! `tasklist_lock`); within it the `links` lock of one process at a time. `threads` is an interrupt-safe leaf lock.
//! Order: tree, links, threads.
//! References: credentials(7), wait(2), Linux `include/linux/sched/signal.h`.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering::*};

use ursa_hal::sync::{IrqLock, SpinLock, SpinLockGuard};

use super::executable::Executable;
use super::group::{ProcessGroup, Session};
use super::pid::{Identity, Pid, PidNumber};
use super::pid_namespace::PidNamespace;
use super::rlimit::Rlimits;
use super::thread::{Slot, Thread};
use super::usage::UsageTotals;
use crate::coredump::Gathering;
use crate::fs::cgroup::{Cgroup, Membership};
use crate::mm::AddressSpace;
use crate::signal::ProcessSignals;
use crate::wait::WaitQueue;

/// The threads of a process and how it ends.
#[derive(Default)]
pub(super) struct Threads {
    /// In order of creation; the leader stays (dead or not) until the process is reaped.
    pub list: Vec<Arc<Thread>>,
    /// How many have not exited.
    pub live: u32,
    /// The status when the whole process is to end.
    pub group_exit: Option<i32>,
    /// The thread that executes a program and waits for the others to end.
    pub exec: Option<Arc<Thread>>,
    /// What exited threads consumed.
    pub dead_usage: UsageTotals,
    /// The core dump under way.
    pub core: Option<Arc<Gathering>>,
}

/// The place of a process in the family tree.
pub(super) struct Links {
    pub parent: Weak<Process>,
    /// The thread of the parent that created this process, for `__WNOTHREAD` and `PR_SET_PDEATHSIG`.
    pub parent_tid: Pid,
    pub children: BTreeMap<Pid, Arc<Process>>,
    pub group: Arc<ProcessGroup>,
    /// The process gave up its session's terminal on its own (`TIOCNOTTY`).
    pub left_terminal: bool,
}

/// A process.
pub struct Process {
    number: PidNumber,
    /// Signal actions, shared pending signals, job-control stop state.
    pub signals: ProcessSignals,
    pub(super) threads: IrqLock<Threads>,
    pub(super) links: SpinLock<Links>,
    vm: Slot<AddressSpace>,
    has_vm: AtomicBool,
    executable: SpinLock<Option<Arc<Executable>>>,
    /// Resource limits.
    pub rlimits: Rlimits,
    /// The cgroup that its threads are in, unless they were moved by themselves.
    pub cgroup: Membership,
    /// The parent's threads wait here for their children's changes.
    pub child_wait: WaitQueue,
    /// Woken when the process becomes a zombie and when it is reaped (pidfds).
    pub exit_wait: Arc<WaitQueue>,
    /// A thread that executes a program waits here for the others to end.
    pub(super) exec_wait: WaitQueue,
    pub(super) zombie: AtomicBool,
    /// The zombie's parent has been told: from now on wait(2) reports it and its pidfds are readable. Not before, so that who hears of
    /// an end in these ways finds SIGCHLD pending already.
    /// Held while the parent is told, so that who hears of it by the signal waits for the rest.
    pub(super) announced: SpinLock<bool>,
    pub(super) reaped: AtomicBool,
    /// wait(2)'s status of a zombie.
    pub(super) exit_status: AtomicI32,
    /// A core dump is under way: of signals only SIGKILL counts.
    pub(super) dumping: AtomicBool,
    /// What the parent is sent at exit; 0 for nothing. exec sets it to SIGCHLD.
    pub(super) exit_signal: AtomicI32,
    /// `PR_SET_CHILD_SUBREAPER`.
    pub(super) subreaper: AtomicBool,
    /// An ancestor is or was a subreaper: the walk at reparenting is worth it.
    pub(super) has_subreaper: AtomicBool,
    /// The process executed a program since its fork: setpgid(2) by its parent fails.
    pub(super) has_execed: AtomicBool,
    /// `PR_SET_DUMPABLE`: 0, 1 or 2 (`suid_dumpable`).
    pub(super) dumpable: AtomicU8,
    /// `/proc/PID/oom_score_adj`.
    pub oom_score_adj: AtomicI32,
    /// `/proc/PID/coredump_filter`.
    pub coredump_filter: AtomicU32,
    /// Bits of `PR_SET_MDWE`, `PR_SET_THP_DISABLE` and the membarrier registrations.
    pub(super) flags: AtomicU32,
    pub(super) children_usage: SpinLock<UsageTotals>,
    start_ns: AtomicU64,
}

/// What a new process starts with.
pub(super) struct ProcessParts {
    pub number: PidNumber,
    pub signals: ProcessSignals,
    pub parent: Weak<Process>,
    pub parent_tid: Pid,
    pub group: Arc<ProcessGroup>,
    pub vm: Arc<AddressSpace>,
    pub executable: Option<Arc<Executable>>,
    pub rlimits: Rlimits,
    pub cgroup: Arc<Cgroup>,
    pub exit_signal: i32,
    pub has_subreaper: bool,
    pub dumpable: u8,
    pub oom_score_adj: i32,
    pub coredump_filter: u32,
    pub flags: u32,
}

/// Bits of [`Process::flags`]: membarrier's registrations, then `PR_SET_MDWE`'s, then `PR_SET_THP_DISABLE`.
pub(super) mod process_flags {
    pub const MEMBARRIER_GLOBAL_EXPEDITED: u32 = 1;
    pub const MEMBARRIER_PRIVATE_EXPEDITED: u32 = 2;
    pub const MEMBARRIER_SYNC_CORE: u32 = 4;
    pub const THP_DISABLE: u32 = 16;
}

/// The flags that a new program inherits.
pub(super) const FLAGS_KEPT_ON_EXEC: u32 = process_flags::THP_DISABLE;

static TREE: SpinLock<()> = SpinLock::new(());

/// Locks the family tree and group membership: no process appears, and none changes its group.
pub fn tree_lock() -> SpinLockGuard<'static, ()> {
    TREE.lock()
}

impl Process {
    pub(super) fn new(parts: ProcessParts) -> Process {
        Process {
            number: parts.number,
            signals: parts.signals,
            threads: IrqLock::new(Threads::default()),
            links: SpinLock::new(Links {
                parent: parts.parent,
                parent_tid: parts.parent_tid,
                children: BTreeMap::new(),
                group: parts.group,
                left_terminal: false,
            }),
            vm: Slot::new(parts.vm),
            has_vm: AtomicBool::new(true),
            executable: SpinLock::new(parts.executable),
            rlimits: parts.rlimits,
            cgroup: Membership::new(parts.cgroup),
            child_wait: WaitQueue::new(),
            exit_wait: Arc::new(WaitQueue::new()),
            exec_wait: WaitQueue::new(),
            zombie: AtomicBool::new(false),
            announced: SpinLock::new(false),
            reaped: AtomicBool::new(false),
            exit_status: AtomicI32::new(0),
            dumping: AtomicBool::new(false),
            exit_signal: AtomicI32::new(parts.exit_signal),
            subreaper: AtomicBool::new(false),
            has_subreaper: AtomicBool::new(parts.has_subreaper),
            has_execed: AtomicBool::new(false),
            dumpable: AtomicU8::new(parts.dumpable),
            oom_score_adj: AtomicI32::new(parts.oom_score_adj),
            coredump_filter: AtomicU32::new(parts.coredump_filter),
            flags: AtomicU32::new(parts.flags),
            children_usage: SpinLock::new(UsageTotals::default()),
            start_ns: AtomicU64::new(ursa_hal::time::boot_ns()),
        }
    }

    /// Returns the process's number, which is its leader thread's, in the first PID namespace.
    pub fn pid(&self) -> Pid {
        self.number.get()
    }

    /// Returns its numbers in all PID namespaces.
    pub fn identity(&self) -> &Arc<Identity> {
        self.number.identity()
    }

    /// Returns the PID namespace that it was born in.
    pub fn pid_namespace(&self) -> &Arc<PidNamespace> {
        self.identity().namespace()
    }

    /// Returns its number in a PID namespace, 0 where it cannot be seen.
    pub fn seen_from(&self, namespace: &PidNamespace) -> Pid {
        self.identity().seen_from(namespace)
    }

    /// Returns the number that the running thread knows it by, 0 when it cannot be seen.
    pub fn seen_pid(&self) -> Pid {
        self.identity().seen()
    }

    /// Returns whether it is the first process of its PID namespace.
    pub fn is_first(&self) -> bool {
        self.identity().own() == 1
    }

    pub(super) fn number(&self) -> &PidNumber {
        &self.number
    }

    /// Returns the parent, unless this is the first process.
    pub fn parent(&self) -> Option<Arc<Process>> {
        self.links.lock().parent.upgrade()
    }

    /// Returns the parent's number, 0 for the first process.
    pub fn parent_pid(&self) -> Pid {
        self.parent().map_or(0, |p| p.pid())
    }

    /// Returns the parent's number in a PID namespace, 0 where it cannot be seen.
    pub fn parent_seen_from(&self, namespace: &PidNamespace) -> Pid {
        self.parent().map_or(0, |parent| parent.seen_from(namespace))
    }

    /// Returns the children, zombies included.
    pub fn children(&self) -> Vec<Arc<Process>> {
        self.links.lock().children.values().cloned().collect()
    }

    /// Returns the process group.
    pub fn group(&self) -> Arc<ProcessGroup> {
        self.links.lock().group.clone()
    }

    /// Returns the session.
    pub fn session(&self) -> Arc<Session> {
        self.links.lock().group.session().clone()
    }

    /// Returns whether the process leads its session.
    pub fn is_session_leader(&self) -> bool {
        self.links.lock().group.session().id() == self.pid()
    }

    /// Returns the controlling terminal.
    pub fn terminal(&self) -> Option<Arc<dyn super::ControllingTerminal>> {
        let links = self.links.lock();
        if links.left_terminal { None } else { links.group.session().terminal() }
    }

    /// Gives up (`true`) or takes again the session's terminal for this process alone (`TIOCNOTTY` of a process that is
    /// not the leader).
    pub fn set_left_terminal(&self, left: bool) {
        self.links.lock().left_terminal = left;
    }

    /// Returns the threads, a dead leader included.
    pub fn threads(&self) -> Vec<Arc<Thread>> {
        self.threads.lock().list.clone()
    }

    /// Calls `f` on each thread until it returns a value. Interrupts are off meanwhile: `f` must be short and must not
    /// drop the last reference of anything.
    pub fn find_thread<R>(&self, f: impl FnMut(&Arc<Thread>) -> Option<R>) -> Option<R> {
        self.threads.lock().list.iter().find_map(f)
    }

    /// Returns how many threads have not exited.
    pub fn live_threads(&self) -> u32 {
        self.threads.lock().live
    }

    /// Returns the leader thread, unless the process is reaped.
    pub fn leader(&self) -> Option<Arc<Thread>> {
        let pid = self.pid();
        self.find_thread(|t| (t.tid() == pid).then(|| t.clone()))
    }

    /// Returns the thread whose identity stands for the process: the leader, or while it is dead another one.
    pub fn representative(&self) -> Option<Arc<Thread>> {
        self.find_thread(|t| (!t.is_dead()).then(|| t.clone())).or_else(|| self.leader())
    }

    /// Returns the address space, or an empty one when the process has exited.
    pub fn vm(&self) -> Arc<AddressSpace> {
        self.vm.get()
    }

    /// Runs `f`, which must be short, on the address space.
    #[inline]
    pub fn with_vm<R>(&self, f: impl FnOnce(&AddressSpace) -> R) -> R {
        self.vm.with(f)
    }

    /// Returns the address space, unless the process has exited.
    pub fn try_vm(&self) -> Option<Arc<AddressSpace>> {
        self.has_vm.load(Acquire).then(|| self.vm.get())
    }

    /// Replaces the address space and returns the former one; `None` leaves an empty one.
    pub(super) fn replace_vm(&self, vm: Option<Arc<AddressSpace>>) -> Arc<AddressSpace> {
        self.has_vm.store(vm.is_some(), Release);
        self.vm.replace(vm.unwrap_or_else(AddressSpace::empty))
    }

    /// Returns what the process executes.
    pub fn executable(&self) -> Option<Arc<Executable>> {
        self.executable.lock().clone()
    }

    /// Replaces what the process executes and returns the former.
    pub(super) fn set_executable(&self, executable: Option<Arc<Executable>>) -> Option<Arc<Executable>> {
        core::mem::replace(&mut *self.executable.lock(), executable)
    }

    /// Returns whether every thread has exited.
    pub fn is_zombie(&self) -> bool {
        self.zombie.load(Acquire)
    }

    /// Returns whether wait(2) has consumed the process.
    pub fn is_reaped(&self) -> bool {
        self.reaped.load(Acquire)
    }

    /// Returns whether it is a zombie whose parent has been told.
    pub fn is_announced(&self) -> bool {
        self.is_zombie() && *self.announced.lock()
    }

    /// Returns wait(2)'s status of a zombie.
    pub fn exit_status(&self) -> i32 {
        self.exit_status.load(Acquire)
    }

    /// Returns the signal that the parent gets at exit, 0 for none.
    pub fn exit_signal(&self) -> i32 {
        self.exit_signal.load(Relaxed)
    }

    /// Returns whether the whole process is about to end.
    pub fn is_exiting(&self) -> bool {
        self.threads.lock().group_exit.is_some()
    }

    /// Returns whether it wants no transparent huge pages (`PR_SET_THP_DISABLE`).
    pub fn wants_no_huge_pages(&self) -> bool {
        self.flags.load(Relaxed) & process_flags::THP_DISABLE != 0
    }

    /// Returns whether a core file of the process is being written: then only `SIGKILL` reaches it.
    pub fn is_dumping(&self) -> bool {
        self.dumping.load(Relaxed)
    }

    /// Returns `PR_GET_DUMPABLE`'s value.
    pub fn dumpable(&self) -> u8 {
        self.dumpable.load(Relaxed)
    }

    /// Returns whether the process executed a program since it was forked.
    pub fn has_execed(&self) -> bool {
        self.has_execed.load(Relaxed)
    }

    /// Returns when the process started, in nanoseconds of boot time.
    pub fn start_ns(&self) -> u64 {
        self.start_ns.load(Relaxed)
    }

    /// Returns what the process's threads, dead and live, consumed (`RUSAGE_SELF`).
    pub fn usage(&self) -> UsageTotals {
        let mut total = {
            let threads = self.threads.lock();
            let mut total = threads.dead_usage;
            for t in threads.list.iter().filter(|t| !t.is_dead()) {
                total.add(&t.usage.totals());
            }
            total
        };
        if let Some(vm) = self.try_vm() {
            total.max_rss_pages = total.max_rss_pages.max(vm.peak_rss_pages());
        }
        total
    }

    /// Returns what the reaped children consumed (`RUSAGE_CHILDREN`).
    pub fn children_usage(&self) -> UsageTotals {
        *self.children_usage.lock()
    }
}
