//! Death of threads and processes.
//!
//! ```text
//!  exit, exit_group, fatal signal ─▶ request_exit ─▶ (way back to user mode) ─▶ finish ─▶ the task ends
//! ```
//! A thread never ends in the middle of kernel code: it is asked to ([`Thread::request_exit`], [`Process::exit_group`]) and
//! runs [`finish`] where the user loop would return to user mode, with nothing left on its stack. [`finish`] gives back
//! memory, files and identity; the last thread turns the process into a zombie, hands its children to a new parent, and
//! tells its own. Nothing here needs memory to free memory.
//! References: _exit(2), Linux `kernel/exit.c`.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::*;

use linux_uapi::signal::{SIGCHLD, SIGCONT, SIGHUP, SigInfo};
use ursa_hal::sync::Once;
use ursa_hal::task;

use super::group::ProcessGroup;
use super::pid_namespace::{self, PidNamespace};
use super::process::{Process, tree_lock};
use super::thread::Thread;
use crate::coredump::Gathering;
use crate::fs::{FdTable, FsContext, cgroup};
use crate::mm::AddressSpace;
use crate::sched::{self, SleepState, Work};
use crate::signal;
use crate::user::UserPtr;
use crate::{Result, futex, ptrace};

/// What exited threads hold in place of their own.
static NO_FILES: Once<Arc<FdTable>> = Once::new();
pub(super) static INITIAL_FS: Once<Arc<FsContext>> = Once::new();

impl Thread {
    /// Asks the thread to end with `status` and sees to it that it notices.
    pub(super) fn kill(&self, status: i32) {
        self.request_exit(status);
        if let Some(task) = self.task() {
            sched::ext_of(&task).add_work(Work::KILL);
            sched::kick(&task, SleepState::ANY_SLEEP | SleepState::STOPPED | SleepState::TRACED);
        }
    }
}

impl Process {
    /// Ends every thread with `status` (wait(2)'s encoding) unless an end with another status is already on its way.
    pub fn exit_group(&self, status: i32) {
        let (threads, status) = {
            let mut threads = self.threads.lock();
            let status = *threads.group_exit.get_or_insert(status);
            (threads.list.clone(), status)
        };
        for thread in threads.iter().filter(|t| !t.is_dead()) {
            thread.kill(status);
        }
    }

    /// Begins the dump of a process that dies with `status`: all threads but `dumper` are to end, and park on the way. Returns
    /// whether there is one: not when the process ends already, or executes a program.
    pub(crate) fn begin_core_dump(&self, dump: &Arc<Gathering>, dumper: &Thread, status: i32) -> bool {
        let others = {
            let mut threads = self.threads.lock();
            if threads.group_exit.is_some() || threads.exec.is_some() {
                return false;
            }
            threads.group_exit = Some(status);
            threads.core = Some(dump.clone());
            self.dumping.store(true, Relaxed);
            threads.list.clone()
        };
        for thread in others.iter().filter(|t| !t.is_dead() && !core::ptr::eq(&***t, dumper)) {
            thread.kill(status);
        }
        true
    }

    /// Ends the dump; wait(2)'s status tells if it was `written`.
    pub(crate) fn end_core_dump(&self, written: bool) {
        const WCOREFLAG: i32 = 0x80;
        let dump = {
            let mut threads = self.threads.lock();
            if written {
                threads.group_exit = threads.group_exit.map(|status| status | WCOREFLAG);
            }
            self.dumping.store(false, Relaxed);
            threads.core.take()
        };
        drop(dump);
    }

    /// Returns the core dump under way.
    pub(crate) fn core_dump(&self) -> Option<Arc<Gathering>> {
        self.threads.lock().core.clone()
    }

    /// Sleeps until `cond` holds, which is looked at whenever a thread ends or parks.
    ///
    /// # Errors
    /// `EINTR` when the running thread is to end.
    pub(crate) fn wait_for_threads(&self, cond: impl FnMut() -> Option<()>) -> Result {
        self.exec_wait.wait_killable(cond)
    }

    /// Returns whether all other threads than `thread` have ended.
    fn is_alone(&self, thread: &Arc<Thread>) -> bool {
        self.threads.lock().list.iter().all(|other| other.is_dead() || Arc::ptr_eq(other, thread))
    }

    /// Lets [`Process::wait_for_threads`] look again.
    pub(crate) fn threads_changed(&self) {
        self.exec_wait.wake_all();
    }

    /// Returns the status with which the whole process is to end.
    pub fn group_exit_status(&self) -> Option<i32> {
        self.threads.lock().group_exit
    }
}

/// Ends the running thread. The caller returns to its task's end afterwards and touches nothing of the thread.
pub fn finish(thread: &Arc<Thread>) {
    let status = thread.exit_status().unwrap_or(0);
    let process = thread.process();
    ptrace::exit_event(thread, status);
    let is_last = {
        let mut threads = process.threads.lock();
        threads.live -= 1;
        if threads.live == 0 {
            // From here on the status is settled, and nobody can add a thread.
            let leader = threads.list.iter().find(|t| t.is_leader()).and_then(|t| t.exit_status());
            threads.group_exit.get_or_insert(leader.unwrap_or(status));
        }
        threads.live == 0
    };
    if is_last && process.pid() == 1 {
        init_died(process);
    }
    signal::thread_exits(thread, is_last);
    if is_last {
        super::acct::process_exits(thread);
    }
    release_memory(thread, is_last);
    let files = thread.set_files(NO_FILES.call_once(FdTable::new).clone());
    drop(files);
    if let Some(initial) = INITIAL_FS.get() {
        drop(thread.set_fs(initial.clone()));
    }
    drop(thread.set_namespaces(None));
    if is_last && process.is_session_leader() {
        let session = process.session();
        if let Some(terminal) = session.terminal() {
            terminal.leader_exited(&session);
            drop(session.set_terminal(None));
        }
    }
    if is_last {
        crate::ipc::sysv::sem::process_exits(thread.process());
    }
    if is_last { process_dies(thread) } else { thread_dies(thread) }
}

/// Without its first process the system cannot go on: nobody could end, start or reap anything.
fn init_died(process: &Process) -> ! {
    let status = process.group_exit_status().unwrap_or(0);
    ursa_hal::error!("init ended with status {status:#x}: powering off");
    ursa_hal::power::off()
}

/// What a thread owes to others through its memory: robust futexes, the cleared tid, the vfork parent. Called before the
/// memory goes, at exit and at exec.
pub(super) fn leave_memory(thread: &Thread) {
    futex::exit_robust_list(thread);
    super::rseq::forget(thread);
    let tid_ptr = thread.clear_child_tid.swap(0, Relaxed);
    if tid_ptr != 0 {
        let process = thread.process();
        let vm = process.vm();
        // Only if someone is left to see it: two references are the process's slot and `vm` here.
        let shared = process.live_threads() > 0 || Arc::strong_count(&vm) > 2;
        if shared && UserPtr::<i32>::new(tid_ptr).write(&0).is_ok() {
            futex::wake_user_addr(UserPtr::<u32>::new(tid_ptr).addr());
        }
    }
}

/// Lets the parent that waits for this thread's vfork go on.
pub(super) fn complete_vfork(thread: &Thread) {
    let done = thread.vfork_done.lock().take();
    if let Some(done) = done {
        done.complete();
    }
}

fn release_memory(thread: &Thread, is_last: bool) {
    leave_memory(thread);
    let process = thread.process();
    if is_last {
        let peak = process.vm().peak_rss_pages();
        let mut threads = process.threads.lock();
        threads.dead_usage.max_rss_pages = threads.dead_usage.max_rss_pages.max(peak);
    }
    task::switch_space(AddressSpace::empty().user_space());
    if is_last {
        drop(process.replace_vm(None));
        drop(process.set_executable(None));
    }
    complete_vfork(thread);
}

/// Folds what the thread consumed into its process and takes it off the list.
fn retire(thread: &Arc<Thread>, keep_listed: bool) {
    let removed = {
        let mut threads = thread.process().threads.lock();
        threads.dead_usage.add(&thread.usage.totals());
        thread.set_dead();
        if keep_listed {
            None
        } else {
            let at = threads.list.iter().position(|t| Arc::ptr_eq(t, thread));
            at.map(|at| threads.list.remove(at))
        }
    };
    drop(removed);
}

/// A thread that others survive. A leader stays as the face of its process; the others vanish at once.
fn thread_dies(thread: &Arc<Thread>) {
    let process = thread.process();
    leave_cgroup(thread);
    {
        let _tree = tree_lock();
        let heir = process.find_thread(|t| (!t.is_dead() && !Arc::ptr_eq(t, thread)).then(|| t.tid()));
        let signals = hand_over_children_of_thread(process, thread.tid(), heir.unwrap_or(process.pid()));
        retire(thread, thread.is_leader() || ptrace::is_traced(thread));
        drop(_tree);
        for (child, signo) in signals {
            signal::send_to_process(&child, SigInfo::kernel(signo));
        }
    }
    ptrace::exited(thread, false);
    process.exec_wait.wake_all();
}

/// Takes a thread out of its group, while it is still listed: whoever moves its process counts the threads that are.
fn leave_cgroup(thread: &Arc<Thread>) {
    cgroup::leave(thread);
    // A leader counts as a task until its process is reaped.
    if !thread.is_leader() {
        cgroup::gone(thread);
    }
}

/// Children stay with the process when the thread that made them ends; those that asked for it are told.
fn hand_over_children_of_thread(process: &Process, from: i32, to: i32) -> Vec<(Arc<Process>, u32)> {
    let mut told = Vec::new();
    for child in process.children() {
        let mut links = child.links.lock();
        if links.parent_tid == from {
            links.parent_tid = to;
            drop(links);
            collect_death_signals(&child, &mut told);
        }
    }
    told
}

fn collect_death_signals(child: &Arc<Process>, told: &mut Vec<(Arc<Process>, u32)>) {
    for thread in child.threads() {
        let signo = thread.death_signal.load(Relaxed);
        if signo > 0 {
            told.push((child.clone(), signo as u32));
        }
    }
}

/// The last thread: the process becomes a zombie.
fn process_dies(thread: &Arc<Thread>) {
    let process = thread.process().clone();
    // Who reaps the process may count on the whole of it being gone: files, locks, places in groups.
    process.exec_wait.wait_until(|| process.is_alone(thread).then_some(()));
    leave_cgroup(thread);
    pid_namespace::end_of(&process);
    let mut work = AfterTree::default();
    let tree = tree_lock();
    hand_over_children(&process, &mut work);
    let group = process.group();
    let parent = process.parent();
    if let Some(parent) = &parent
        && parent.group().id() != group.id()
        && parent.session().id() == group.session().id()
    {
        work.check_orphaned(group, Some(&process));
    }
    retire(thread, true);
    let status = PidNamespace::reboot_of(&process).map(|signo| signo as i32);
    process.exit_status.store(status.or(process.group_exit_status()).unwrap_or(0), Release);
    process.zombie.store(true, Release);
    drop(tree);

    ptrace::exited(thread, true);
    work.run();
    notify_parent(&process);
    // Where nobody was to be told, too.
    *process.announced.lock() = true;
    process.exit_wait.wake_all();
}

/// Tells the parent of a zombie; reaps it at once when the parent does not care.
pub(crate) fn notify_parent(process: &Arc<Process>) {
    let Some(parent) = process.parent() else { return };
    if ptrace::holds_zombie(process) {
        return;
    }
    let auto_reap = {
        let mut announced = process.announced.lock();
        let auto_reap = signal::notify_parent_of_exit(process, &parent);
        *announced = true;
        auto_reap
    };
    if auto_reap && claim(process) {
        release(process);
    }
    parent.child_wait.wake_all();
}

/// Signals that exit owes to others; sent when the tree lock is dropped.
#[derive(Default)]
struct AfterTree {
    death_signals: Vec<(Arc<Process>, u32)>,
    orphaned: Vec<Arc<ProcessGroup>>,
    zombies: Vec<Arc<Process>>,
}

impl AfterTree {
    /// Notes `group` if the departure of `leaving` orphans it while members are stopped.
    fn check_orphaned(&mut self, group: Arc<ProcessGroup>, leaving: Option<&Process>) {
        let stopped = group.members().iter().any(|m| m.signals.is_stopped());
        if stopped && group.is_orphaned(leaving) {
            self.orphaned.push(group);
        }
    }

    fn run(self) {
        for (process, signo) in self.death_signals {
            signal::send_to_process(&process, SigInfo::kernel(signo));
        }
        for group in self.orphaned {
            for signo in [SIGHUP, SIGCONT] {
                for member in group.members() {
                    signal::send_to_process(&member, SigInfo::kernel(signo));
                }
            }
        }
        for zombie in self.zombies {
            notify_parent(&zombie);
        }
    }
}

/// Returns who inherits the children of `process`: the nearest living subreaper among the ancestors in its PID namespace, or the
/// first process of that namespace. What the first process itself leaves goes to that of the namespace above.
fn find_reaper(process: &Process) -> Option<Arc<Process>> {
    let namespace = process.pid_namespace();
    if process.has_subreaper.load(Relaxed) {
        let mut ancestor = process.parent();
        while let Some(candidate) = ancestor.filter(|candidate| Arc::ptr_eq(candidate.pid_namespace(), namespace)) {
            if candidate.subreaper.load(Relaxed) && candidate.live_threads() > 0 {
                return Some(candidate);
            }
            ancestor = candidate.parent();
        }
    }
    let reaper = namespace.reaper()?;
    if core::ptr::eq(&*reaper, process) { namespace.parent()?.reaper() } else { Some(reaper) }
}

/// Gives the children of a dying process to their new parent. Under the tree lock.
fn hand_over_children(process: &Arc<Process>, work: &mut AfterTree) {
    let children = core::mem::take(&mut process.links.lock().children);
    if children.is_empty() {
        return;
    }
    let Some(reaper) = find_reaper(process) else { return };
    let group = process.group();
    for child in children.values() {
        {
            let mut links = child.links.lock();
            links.parent = Arc::downgrade(&reaper);
            links.parent_tid = reaper.pid();
        }
        collect_death_signals(child, &mut work.death_signals);
        child.exit_signal.store(SIGCHLD as i32, Relaxed);
        if child.is_zombie() {
            work.zombies.push(child.clone());
        }
        let child_group = child.group();
        if child_group.id() != group.id() && child_group.session().id() == group.session().id() {
            work.check_orphaned(child_group, None);
        }
    }
    reaper.links.lock().children.extend(children);
}

/// Claims a zombie for reaping; of several claimants one wins.
pub(super) fn claim(process: &Process) -> bool {
    process.is_zombie() && !process.reaped.swap(true, AcqRel)
}

/// Removes a claimed zombie from the world. Its numbers come free when the last holder of the objects lets go.
pub(super) fn release(process: &Arc<Process>) {
    let (kept, threads) = {
        let _tree = tree_lock();
        let parent = process.parent();
        let kept = parent.and_then(|p| p.links.lock().children.remove(&process.pid()));
        process.group().leave(process);
        process.number().retract_process();
        (kept, core::mem::take(&mut process.threads.lock().list))
    };
    threads.iter().for_each(|thread| cgroup::gone(thread));
    drop((kept, threads));
    process.exit_wait.wake_all();
}
