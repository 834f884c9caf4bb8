//! Birth of threads and processes: clone, clone3, fork, vfork.
//!
//! [`clone`] checks the flags, gathers what the child gets (shared or copied), and publishes it in one step under the
//! tree lock; all that can fail comes before. Everything gathered is owned by values that undo themselves, so an
//! error leaves nothing behind.
//! `CLONE_IO` has nothing to share. References: clone(2), vfork(2), Linux `kernel/fork.c`.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};

use bitflags::bitflags;
use linux_uapi::signal::{NSIG, SIGCHLD};
use ursa_hal::trap::UserContext;

use super::cred::Credentials;
use super::pid::{PID_MAX, Pid, PidNumber};
use super::process::{Process, ProcessParts, tree_lock};
use super::rlimit::Resource;
use super::thread::{Thread, ThreadParts, current};
use super::{Cap, pidfd};
use crate::fs::cgroup::{self, Cgroup};
use crate::sched::{self, Work};
use crate::user::UserPtr;
use crate::wait::WaitQueue;
use crate::{Errno, Result};

bitflags! {
    /// `CLONE_*` (`linux/sched.h`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct CloneFlags: u64 {
        /// `CLONE_VM`
        const VM = 0x100;
        /// `CLONE_FS`
        const FS = 0x200;
        /// `CLONE_FILES`
        const FILES = 0x400;
        /// `CLONE_SIGHAND`
        const SIGHAND = 0x800;
        /// `CLONE_PIDFD`
        const PIDFD = 0x1000;
        /// `CLONE_PTRACE`
        const PTRACE = 0x2000;
        /// `CLONE_VFORK`
        const VFORK = 0x4000;
        /// `CLONE_PARENT`
        const PARENT = 0x8000;
        /// `CLONE_THREAD`
        const THREAD = 0x1_0000;
        /// `CLONE_NEWNS`
        const NEWNS = 0x2_0000;
        /// `CLONE_SYSVSEM`
        const SYSVSEM = 0x4_0000;
        /// `CLONE_SETTLS`
        const SETTLS = 0x8_0000;
        /// `CLONE_PARENT_SETTID`
        const PARENT_SETTID = 0x10_0000;
        /// `CLONE_CHILD_CLEARTID`
        const CHILD_CLEARTID = 0x20_0000;
        /// `CLONE_DETACHED`
        const DETACHED = 0x40_0000;
        /// `CLONE_UNTRACED`
        const UNTRACED = 0x80_0000;
        /// `CLONE_CHILD_SETTID`
        const CHILD_SETTID = 0x100_0000;
        /// `CLONE_NEWCGROUP`
        const NEWCGROUP = 0x200_0000;
        /// `CLONE_NEWUTS`
        const NEWUTS = 0x400_0000;
        /// `CLONE_NEWIPC`
        const NEWIPC = 0x800_0000;
        /// `CLONE_NEWUSER`
        const NEWUSER = 0x1000_0000;
        /// `CLONE_NEWPID`
        const NEWPID = 0x2000_0000;
        /// `CLONE_NEWNET`
        const NEWNET = 0x4000_0000;
        /// `CLONE_IO`
        const IO = 0x8000_0000;
        /// `CLONE_CLEAR_SIGHAND`
        const CLEAR_SIGHAND = 0x1_0000_0000;
        /// `CLONE_INTO_CGROUP`
        const INTO_CGROUP = 0x2_0000_0000;
        /// `CLONE_NEWTIME`
        const NEWTIME = 0x80;
    }
}

impl CloneFlags {
    /// The flags that make namespaces.
    pub const NAMESPACES: CloneFlags = CloneFlags::NEWNS
        .union(CloneFlags::NEWCGROUP)
        .union(CloneFlags::NEWUTS)
        .union(CloneFlags::NEWIPC)
        .union(CloneFlags::NEWUSER)
        .union(CloneFlags::NEWPID)
        .union(CloneFlags::NEWNET)
        .union(CloneFlags::NEWTIME);
}

/// A decoded request.
pub struct CloneRequest {
    /// What is shared and set.
    pub flags: CloneFlags,
    /// What the parent is sent at exit, 0 for nothing.
    pub exit_signal: i32,
    /// The child's stack pointer, or 0 to keep the parent's.
    pub stack_pointer: u64,
    /// The thread pointer for `SETTLS`.
    pub tls: u64,
    /// Where the parent gets the child's number.
    pub parent_tid: UserPtr<i32>,
    /// Where the child gets its number, or has it cleared at exit.
    pub child_tid: UserPtr<i32>,
    /// Where the parent gets the pidfd.
    pub pidfd: UserPtr<i32>,
    /// The numbers to take, that of the innermost PID namespace first (`set_tid`).
    pub set_tid: Vec<Pid>,
    /// The group to be born in (`INTO_CGROUP`).
    pub cgroup: Option<Arc<Cgroup>>,
}

/// A vfork parent's wait: over when the child has given up the parent's memory.
pub struct VforkDone {
    done: AtomicBool,
    wait: WaitQueue,
}

impl VforkDone {
    /// Lets the parent go on.
    pub fn complete(&self) {
        self.done.store(true, Release);
        self.wait.wake_all();
    }
}

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// The most threads that may exist at once (`kernel.threads-max`): as on Linux, an eighth of memory for their stacks.
pub fn threads_max() -> usize {
    let frames = ursa_hal::mm::stats().total as usize;
    // A thread costs its 32 KiB stack and about a page of objects.
    (frames / 9 / 8).clamp(64, PID_MAX as usize)
}

/// Returns how many threads exist.
pub fn thread_count() -> usize {
    THREADS.load(Relaxed)
}

/// A claim on one of [`threads_max`] threads.
pub(super) struct ThreadSlot(());

impl ThreadSlot {
    pub(super) fn claim() -> Result<ThreadSlot> {
        if THREADS.fetch_add(1, Relaxed) >= threads_max() {
            THREADS.fetch_sub(1, Relaxed);
            return Err(Errno::EAGAIN);
        }
        Ok(ThreadSlot(()))
    }
}

impl Drop for ThreadSlot {
    fn drop(&mut self) {
        THREADS.fetch_sub(1, Relaxed);
    }
}

fn check(request: &CloneRequest, parent: &Thread) -> Result {
    use CloneFlags as F;
    let flags = request.flags;
    let has = |f: F| flags.contains(f);
    if has(F::FS) && flags.intersects(F::NEWNS | F::NEWUSER)
        || has(F::THREAD) && !has(F::SIGHAND)
        || has(F::SIGHAND) && !has(F::VM)
        || has(F::SIGHAND) && has(F::CLEAR_SIGHAND)
        || has(F::THREAD) && flags.intersects(F::NEWUSER | F::NEWPID)
        || has(F::PARENT) && parent.process().is_first()
        || has(F::PIDFD) && has(F::DETACHED)
        || has(F::NEWIPC) && has(F::SYSVSEM)
    {
        return Err(Errno::EINVAL);
    }
    if request.exit_signal < 0 || request.exit_signal > NSIG as i32 {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// `RLIMIT_NPROC`: root and the privileged are exempt.
fn check_user_limit(parent: &Thread, cred: &Credentials) -> Result {
    let limit = parent.process().rlimits.soft(Resource::Nproc);
    let over = cred.user.threads.load(Relaxed) >= limit;
    if over && cred.uid != 0 && !cred.has_cap(Cap::SysResource) && !cred.has_cap(Cap::SysAdmin) {
        return Err(Errno::EAGAIN);
    }
    Ok(())
}

/// Makes a thread or process as `request` says; returns its number to the parent.
///
/// # Errors
/// As clone(2) lists them.
pub fn clone(parent: &Thread, regs: &UserContext, request: &CloneRequest) -> Result<Pid> {
    use CloneFlags as F;
    check(request, parent)?;
    let flags = request.flags;
    let has = |f: F| flags.contains(f);
    let cred = parent.cred();
    check_user_limit(parent, &cred)?;
    let slot = ThreadSlot::claim()?;
    if sched::signal_pending() {
        // What is pending must be delivered to the parent alone, not to a copy of it.
        return Err(Errno::ERESTARTNOINTR);
    }

    let files = if has(F::FILES) { parent.files() } else { parent.files().fork()? };
    let fs = if has(F::FS) { parent.fs() } else { parent.fs().fork() };
    let old_namespaces = parent.namespaces().ok_or(Errno::ESRCH)?;
    let namespaces = old_namespaces.unshare(flags, &cred, &fs)?;
    // Threads are born where their process is, whatever its children are to be in.
    let elsewhere = !Arc::ptr_eq(&namespaces.pid_for_children, parent.process().pid_namespace());
    if elsewhere && has(F::THREAD) {
        return Err(Errno::EINVAL);
    }
    let number = PidNumber::allocate(&namespaces.pid_for_children, &request.set_tid)?;
    let identity = number.identity().clone();
    let pid = identity.seen();
    let signals = parent.signals.for_child(has(F::VM) && !has(F::VFORK));

    let (process, is_new) = if has(F::THREAD) {
        (parent.process().clone(), false)
    } else {
        (Arc::new(new_process(parent, request, &number)?), true)
    };
    let thread = Thread::new(ThreadParts {
        number,
        slot,
        process: process.clone(),
        name: parent.comm(),
        cred,
        files,
        fs,
        namespaces,
        signals,
        personality: parent.personality.load(Relaxed),
        timer_slack_ns: parent.timer_slack_ns.load(Relaxed),
        io_priority: parent.io_priority.load(Relaxed),
    });
    if has(F::CHILD_CLEARTID) {
        thread.clear_child_tid.store(request.child_tid.addr().as_u64(), Relaxed);
    }
    if !has(F::VM) {
        super::rseq::inherit(parent, &thread);
    } else if !has(F::VFORK) {
        super::rseq::memory_is_shared(parent);
    }
    let vfork_done =
        has(F::VFORK).then(|| Arc::new(VforkDone { done: AtomicBool::new(false), wait: WaitQueue::new() }));
    *thread.vfork_done.lock() = vfork_done.clone();

    let mut child_regs = regs.clone();
    let registers = child_regs.regs_mut();
    registers.rax = 0;
    if request.stack_pointer != 0 {
        registers.rsp = request.stack_pointer;
    }
    let child_tid = has(F::CHILD_SETTID).then_some(request.child_tid);
    let body = move || {
        if let Some(ptr) = child_tid {
            // As Linux: a bad pointer is the child's own problem.
            let _ = ptr.write(&current().own_tid());
        }
        super::run::user_loop(child_regs);
    };
    let fpu = ursa_hal::fpu::copy_current_for_child().ok_or(Errno::ENOMEM)?;
    let task = sched::new_task(&thread.name(), Some(thread.clone()), Some(fpu), Box::new(body)).ok_or(Errno::ENOMEM)?;
    let unstarted = Unstarted(Some(&task));
    thread.set_task(&task);
    let me = ursa_hal::task::current();
    if !task.set_fs_base(if has(F::SETTLS) { request.tls } else { me.fs_base() }) {
        return Err(Errno::EPERM);
    }
    task.set_gs_base(me.gs_base());

    let files = parent.files();
    let pidfd = if has(F::PIDFD) {
        let limit = parent.process().rlimits.soft(Resource::Nofile);
        let reserved = files.reserve(true, limit)?;
        request.pidfd.write(&reserved.fd())?;
        Some(reserved)
    } else {
        None
    };

    let mut news = cgroup::News::default();
    let published = publish(parent, request, &thread, is_new, &mut news);
    news.tell();
    published?;
    core::mem::forget(unstarted);
    if let Some(reserved) = pidfd {
        reserved.commit(if is_new { pidfd::open_process(&process, 0) } else { pidfd::open_thread(&thread, 0) });
    }
    if has(F::PARENT_SETTID) {
        let _ = request.parent_tid.write(&pid);
    }
    crate::ptrace::cloned(parent, &thread, request);
    sched::wake_new(&task);
    crate::ptrace::event_stop_of_clone(parent, regs, request, &identity);

    if let Some(done) = vfork_done {
        // A fatal signal ends the wait; the child then goes on alone with the memory.
        let wait = || done.wait.wait_killable(|| done.done.load(Acquire).then_some(()));
        let _ = cgroup::resting_during(parent, wait);
    }
    Ok(pid)
}

/// Takes a task back that was never started.
struct Unstarted<'a>(Option<&'a Arc<ursa_hal::task::Task>>);

impl Drop for Unstarted<'_> {
    fn drop(&mut self) {
        if let Some(task) = self.0 {
            sched::discard_new(task);
        }
    }
}

fn new_process(parent: &Thread, request: &CloneRequest, number: &PidNumber) -> Result<Process> {
    use CloneFlags as F;
    let old = parent.process();
    let has = |f: F| request.flags.contains(f);
    let vm = if has(F::VM) { parent.vm() } else { parent.vm().fork()? };
    let (father, father_tid, exit_signal) = if has(F::PARENT) {
        // A sibling: the same parent, told with the same signal.
        let links = old.links.lock();
        (links.parent.clone(), links.parent_tid, old.exit_signal())
    } else {
        (Arc::downgrade(old), parent.tid(), request.exit_signal)
    };
    Ok(Process::new(ProcessParts {
        number: number.clone(),
        signals: old.signals.fork(has(F::SIGHAND), has(F::CLEAR_SIGHAND)),
        parent: father,
        parent_tid: father_tid,
        group: old.group(),
        vm,
        executable: old.executable(),
        rlimits: old.rlimits.fork(),
        // Settled when it is born.
        cgroup: old.cgroup.group(),
        exit_signal,
        has_subreaper: old.has_subreaper.load(Relaxed) || old.subreaper.load(Relaxed),
        dumpable: old.dumpable(),
        oom_score_adj: old.oom_score_adj.load(Relaxed),
        coredump_filter: old.coredump_filter.load(Relaxed),
        flags: old.flags.load(Relaxed),
    }))
}

/// Makes the child visible. Fails when the parent is about to die or has a signal that came meanwhile.
fn publish(
    parent: &Thread,
    request: &CloneRequest,
    thread: &Arc<Thread>,
    is_new: bool,
    news: &mut cgroup::News,
) -> Result {
    let process = thread.process();
    let tree = tree_lock();
    if sched::signal_pending() {
        return Err(Errno::ERESTARTNOINTR);
    }
    if is_new {
        process.pid_namespace().admits(process.identity())?;
    }
    {
        let threads = process.threads.lock();
        if threads.group_exit.is_some() || threads.exec.is_some() {
            return Err(Errno::ERESTARTNOINTR);
        }
    }
    cgroup::join(thread, is_new, Some(parent), request.cgroup.as_ref(), news)?;
    {
        let mut threads = process.threads.lock();
        if threads.group_exit.is_some() || threads.exec.is_some() {
            drop(threads);
            cgroup::unjoin(thread, news);
            return Err(Errno::ERESTARTNOINTR);
        }
        threads.list.push(thread.clone());
        threads.live += 1;
    }
    thread.publish();
    if thread.cgroup.is_freezing()
        && let Some(task) = thread.task()
    {
        // Whoever freezes the group from now on finds the thread listed and tells it so.
        sched::ext_of(&task).add_work(Work::SIGNAL);
    }
    if !is_new {
        return Ok(());
    }
    // The group may have changed since the copy, under the lock that is held now.
    let group = parent.process().group();
    let former = core::mem::replace(&mut process.links.lock().group, group.clone());
    group.join(process);
    let left = parent.process().links.lock().left_terminal;
    process.links.lock().left_terminal = left;
    let mut father = process.parent();
    if request.flags.contains(CloneFlags::PARENT) {
        // The parent's parent may have died since: then its heir is ours.
        let links = parent.process().links.lock();
        let (now, tid) = (links.parent.clone(), links.parent_tid);
        drop(links);
        father = now.upgrade();
        let mut links = process.links.lock();
        (links.parent, links.parent_tid) = (now, tid);
    }
    if let Some(father) = father {
        father.links.lock().children.insert(process.pid(), process.clone());
    }
    process.number().publish_process(process);
    drop(tree);
    drop(former);
    Ok(())
}

/// Decodes what the legacy calls put into one word.
pub(super) fn legacy_request(
    flags: u64,
    stack_pointer: u64,
    parent_tid: u64,
    child_tid: u64,
    tls: u64,
) -> CloneRequest {
    CloneRequest {
        flags: CloneFlags::from_bits_truncate(flags & 0xffff_ff00),
        exit_signal: (flags & 0xff) as i32,
        stack_pointer,
        tls,
        parent_tid: UserPtr::new(parent_tid),
        child_tid: UserPtr::new(child_tid),
        pidfd: UserPtr::new(parent_tid),
        set_tid: Vec::new(),
        cgroup: None,
    }
}

/// What fork(2) asks for.
pub(super) fn fork_request(flags: CloneFlags) -> CloneRequest {
    legacy_request(flags.bits() | SIGCHLD as u64, 0, 0, 0, 0)
}
