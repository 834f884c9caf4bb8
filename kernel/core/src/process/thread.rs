//! [`Thread`], the unit of scheduling and of identity, and [`current`].
//!
//! A thread hangs on the extension of its hal task ([`sched::TaskExt`]), so `current()` is a read of per-CPU data and a
//! downcast, without a reference count. What a thread shares by `clone` flags hangs on it as an `Arc` (files,
//! file-system context, credentials); what all threads of a process share is in [`Process`].
//!
//! Locking: each slot has a short leaf lock; only the thread itself replaces its slots, others read them.
//! References: clone(2), Linux `include/linux/sched.h`.

use alloc::string::String;
use alloc::sync::{Arc, Weak};
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering::*};

use ursa_hal::sync::{Once, SpinLock};
use ursa_hal::task::{self, Task};

use super::cred::{Credentials, UserAccount};
use super::dispatch::UserDispatch;
use super::fork::{ThreadSlot, VforkDone};
use super::pid::{Identity, Pid, PidNumber};
use super::process::Process;
use super::rseq::Rseq;
use super::usage::Usage;
use crate::Result;
use crate::fs::cgroup::Place;
use crate::fs::{FdTable, File, FsContext};
use crate::mm::AddressSpace;
use crate::namespace::Namespaces;
use crate::sched;
use crate::signal::ThreadSignals;

/// The longest thread name, with its NUL (`TASK_COMM_LEN`).
pub const NAME_LEN: usize = 16;

/// A slot that holds a shared object which its owner may replace.
pub(super) struct Slot<T: ?Sized>(SpinLock<Arc<T>>);

impl<T: ?Sized> Slot<T> {
    pub(super) const fn new(value: Arc<T>) -> Slot<T> {
        Slot(SpinLock::new(value))
    }

    pub(super) fn get(&self) -> Arc<T> {
        self.0.lock().clone()
    }

    /// Replaces the value; the former one is returned so that it is dropped out of the lock.
    pub(super) fn replace(&self, value: Arc<T>) -> Arc<T> {
        core::mem::replace(&mut *self.0.lock(), value)
    }

    pub(super) fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        f(&self.0.lock())
    }
}

/// A thread of a process.
pub struct Thread {
    this: Weak<Thread>,
    number: SpinLock<PidNumber>,
    tid: AtomicI32,
    /// The number in its own PID namespace.
    own_tid: AtomicI32,
    process: Arc<Process>,
    task: Once<Weak<Task>>,
    name: SpinLock<[u8; NAME_LEN]>,
    cred: Slot<Credentials>,
    files: Slot<FdTable>,
    fs: Slot<FsContext>,
    /// `None` once the thread has ended.
    namespaces: SpinLock<Option<Arc<Namespaces>>>,
    /// Blocked and pending signals, alternate stack, delivery and tracing state.
    pub signals: ThreadSignals,
    /// What the thread consumed.
    pub usage: Usage,
    /// Where to write 0 and wake a futex at exit (`set_tid_address(2)`), or 0.
    pub clear_child_tid: AtomicU64,
    /// The robust futex list's head (`set_robust_list(2)`), or 0.
    pub robust_list: AtomicU64,
    /// `PR_SET_PDEATHSIG`.
    pub death_signal: AtomicI32,
    /// personality(2).
    pub personality: AtomicU32,
    /// `PR_SET_TIMERSLACK`, in nanoseconds.
    pub timer_slack_ns: AtomicU64,
    /// The slack that a new program starts with.
    pub default_timer_slack_ns: AtomicU64,
    /// `PR_MCE_KILL`.
    pub(super) mce_policy: AtomicU8,
    /// ioprio_set(2).
    pub io_priority: AtomicU32,
    /// The cgroup, and whether the thread is to rest.
    pub cgroup: Place,
    /// `PR_SET_SYSCALL_USER_DISPATCH`.
    pub dispatch: UserDispatch,
    pub(super) rseq: SpinLock<Option<Rseq>>,
    /// That [`Thread::rseq`] is registered: a flag for the way back to user mode.
    pub(super) has_rseq: AtomicBool,
    /// The CPU whose number the area shows.
    pub(super) rseq_cpu: AtomicU32,
    pub(super) vfork_done: SpinLock<Option<Arc<VforkDone>>>,
    account: SpinLock<Arc<UserAccount>>,
    /// That a change of uid went beyond `RLIMIT_NPROC`: the next exec fails.
    pub(super) over_nproc: AtomicBool,
    _slot: ThreadSlot,
    start_ns: u64,
    exit_requested: AtomicBool,
    exit_status: AtomicI32,
    dead: AtomicBool,
}

/// What a new thread starts with.
pub(super) struct ThreadParts {
    pub number: PidNumber,
    pub slot: ThreadSlot,
    pub process: Arc<Process>,
    pub name: [u8; NAME_LEN],
    pub cred: Arc<Credentials>,
    pub files: Arc<FdTable>,
    pub fs: Arc<FsContext>,
    pub namespaces: Arc<Namespaces>,
    pub signals: ThreadSignals,
    pub personality: u32,
    pub timer_slack_ns: u64,
    pub io_priority: u32,
}

impl Thread {
    pub(super) fn new(parts: ThreadParts) -> Arc<Thread> {
        let account = parts.cred.user.clone();
        account.threads.fetch_add(1, Relaxed);
        parts.fs.add_user();
        Arc::new_cyclic(|this| Thread {
            this: this.clone(),
            tid: AtomicI32::new(parts.number.get()),
            own_tid: AtomicI32::new(parts.number.identity().own()),
            number: SpinLock::new(parts.number),
            process: parts.process,
            task: Once::new(),
            name: SpinLock::new(parts.name),
            cred: Slot::new(parts.cred),
            files: Slot::new(parts.files),
            fs: Slot::new(parts.fs),
            namespaces: SpinLock::new(Some(parts.namespaces)),
            signals: parts.signals,
            usage: Usage::default(),
            clear_child_tid: AtomicU64::new(0),
            robust_list: AtomicU64::new(0),
            death_signal: AtomicI32::new(0),
            personality: AtomicU32::new(parts.personality),
            timer_slack_ns: AtomicU64::new(parts.timer_slack_ns),
            default_timer_slack_ns: AtomicU64::new(parts.timer_slack_ns),
            mce_policy: AtomicU8::new(2),
            io_priority: AtomicU32::new(parts.io_priority),
            cgroup: Place::default(),
            dispatch: UserDispatch::default(),
            rseq: SpinLock::new(None),
            has_rseq: AtomicBool::new(false),
            rseq_cpu: AtomicU32::new(u32::MAX),
            vfork_done: SpinLock::new(None),
            account: SpinLock::new(account),
            over_nproc: AtomicBool::new(false),
            _slot: parts.slot,
            start_ns: ursa_hal::time::boot_ns(),
            exit_requested: AtomicBool::new(false),
            exit_status: AtomicI32::new(0),
            dead: AtomicBool::new(false),
        })
    }

    /// Returns the thread's number in the first PID namespace. It changes once, when a thread that is not the leader executes a program.
    pub fn tid(&self) -> Pid {
        self.tid.load(Relaxed)
    }

    /// Returns its number in its own PID namespace: what it knows itself by.
    pub fn own_tid(&self) -> Pid {
        self.own_tid.load(Relaxed)
    }

    /// Returns its numbers in all PID namespaces.
    pub fn identity(&self) -> Arc<Identity> {
        self.number.lock().identity().clone()
    }

    /// Returns the number that the running thread knows it by, 0 when it cannot be seen.
    pub fn seen_tid(&self) -> Pid {
        self.identity().seen()
    }

    /// Returns the process.
    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// Returns a counted reference.
    pub fn arc(&self) -> Arc<Thread> {
        // `self` is only ever seen through an `Arc`, so the count is not zero.
        self.this.upgrade().unwrap_or_else(|| unreachable!("a thread outlives its references"))
    }

    /// Returns whether this is the thread whose number is the process's.
    pub fn is_leader(&self) -> bool {
        self.tid() == self.process.pid()
    }

    /// Returns the hal task, while the thread is not gone.
    pub fn task(&self) -> Option<Arc<Task>> {
        self.task.get()?.upgrade()
    }

    pub(super) fn set_task(&self, task: &Arc<Task>) {
        self.task.call_once(|| Arc::downgrade(task));
    }

    /// Exchanges numbers with `leader` (exec by another thread than the leader).
    pub(super) fn take_number_of(self: &Arc<Thread>, leader: &Arc<Thread>) {
        let mut mine = self.number.lock();
        let mut theirs = leader.number.lock();
        core::mem::swap(&mut *mine, &mut *theirs);
        self.tid.store(mine.get(), Relaxed);
        self.own_tid.store(mine.identity().own(), Relaxed);
        leader.tid.store(theirs.get(), Relaxed);
        leader.own_tid.store(theirs.identity().own(), Relaxed);
        mine.publish_thread(self);
        theirs.publish_thread(leader);
    }

    pub(super) fn publish(self: &Arc<Thread>) {
        self.number.lock().publish_thread(self);
    }

    /// Returns the name, NUL-padded, as `PR_GET_NAME` gives it.
    pub fn comm(&self) -> [u8; NAME_LEN] {
        *self.name.lock()
    }

    /// Returns the name as text (`/proc/PID/comm`), bytes that are not UTF-8 replaced.
    pub fn name(&self) -> String {
        let comm = self.comm();
        let len = comm.iter().position(|&b| b == 0).unwrap_or(NAME_LEN);
        String::from_utf8_lossy(&comm[..len]).into_owned()
    }

    /// Returns the name for the kernel's log: control characters, with which it could forge lines or drive the reader's
    /// terminal, are escaped.
    pub fn log_name(&self) -> String {
        let mut name = String::new();
        for c in self.name().chars() {
            if c.is_control() { name.extend(c.escape_default()) } else { name.push(c) }
        }
        name
    }

    /// Sets the name, cut to 15 bytes.
    pub fn set_name(&self, name: &[u8]) {
        let mut new = [0; NAME_LEN];
        let len = name.iter().position(|&b| b == 0).unwrap_or(name.len()).min(NAME_LEN - 1);
        new[..len].copy_from_slice(&name[..len]);
        *self.name.lock() = new;
    }

    /// Returns the credentials.
    pub fn cred(&self) -> Arc<Credentials> {
        self.cred.get()
    }

    /// Runs `f` on the credentials.
    #[inline]
    pub fn with_cred<R>(&self, f: impl FnOnce(&Credentials) -> R) -> R {
        f(&self.cred.get())
    }

    /// Publishes new credentials; counts move to the account of the new real user.
    pub fn set_cred(&self, cred: Credentials) {
        let new_account = cred.user.clone();
        let old = self.cred.replace(Arc::new(cred));
        let old_account = {
            let mut account = self.account.lock();
            if account.uid() == new_account.uid() {
                None
            } else {
                new_account.threads.fetch_add(1, Relaxed);
                account.threads.fetch_sub(1, Relaxed);
                Some(core::mem::replace(&mut *account, new_account))
            }
        };
        drop((old, old_account));
    }

    /// Returns the descriptor table; an exited thread has an empty one.
    pub fn files(&self) -> Arc<FdTable> {
        self.files.get()
    }

    /// Returns the open file description behind `fd`.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn file(&self, fd: i32) -> Result<Arc<File>> {
        self.files.with(|files| files.get(fd))
    }

    /// Replaces the descriptor table and returns the former one.
    pub fn set_files(&self, files: Arc<FdTable>) -> Arc<FdTable> {
        self.files.replace(files)
    }

    /// Returns the root, working directory and umask; an exited thread has the first process's.
    pub fn fs(&self) -> Arc<FsContext> {
        self.fs.get()
    }

    /// Replaces the file-system context and returns the former one.
    pub fn set_fs(&self, fs: Arc<FsContext>) -> Arc<FsContext> {
        fs.add_user();
        let former = self.fs.replace(fs);
        former.drop_user();
        former
    }

    /// Returns the namespaces; an exited thread has none.
    pub fn namespaces(&self) -> Option<Arc<Namespaces>> {
        self.namespaces.lock().clone()
    }

    /// Replaces the namespaces and returns the former ones.
    pub fn set_namespaces(&self, namespaces: Option<Arc<Namespaces>>) -> Option<Arc<Namespaces>> {
        core::mem::replace(&mut *self.namespaces.lock(), namespaces)
    }

    /// Returns the address space of the process; an exited process has an empty one.
    pub fn vm(&self) -> Arc<AddressSpace> {
        self.process.vm()
    }

    /// Returns when the thread started, in nanoseconds of boot time.
    pub fn start_ns(&self) -> u64 {
        self.start_ns
    }

    /// Called on the thread's own stack whenever it has got a CPU, with interrupts off: its memory becomes the active one.
    /// `preempted`: it had not gone to sleep.
    #[inline]
    pub fn switched_in(&self, preempted: bool) {
        self.process.with_vm(|vm| ursa_hal::task::switch_space(vm.user_space()));
        super::rseq::switched_in(self, preempted);
    }

    /// Asks that the thread end with `status` (in wait(2)'s encoding) at its next way back to user mode; the first
    /// request counts.
    pub fn request_exit(&self, status: i32) {
        if !self.exit_requested.load(Acquire) {
            self.exit_status.store(status, Relaxed);
            self.exit_requested.store(true, Release);
        }
    }

    /// Returns the status when the thread is to end.
    pub fn exit_status(&self) -> Option<i32> {
        self.exit_requested.load(Acquire).then(|| self.exit_status.load(Relaxed))
    }

    /// Returns whether the thread has ended (it may linger as its process's zombie leader).
    pub fn is_dead(&self) -> bool {
        self.dead.load(Acquire)
    }

    pub(super) fn set_dead(&self) {
        self.dead.store(true, Release);
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.fs.with(FsContext::drop_user);
        self.account.lock().threads.fetch_sub(1, Relaxed);
    }
}

/// The running thread. It cannot leave its stack, so it needs no reference count.
pub struct CurrentThread(task::Current);

impl Deref for CurrentThread {
    type Target = Thread;

    #[inline]
    fn deref(&self) -> &Thread {
        thread_of(&self.0).unwrap_or_else(|| panic!("current() in a kernel task"))
    }
}

#[inline]
fn thread_of(task: &Task) -> Option<&Thread> {
    sched::ext_of(task).thread().map(|t| &**t)
}

/// Returns the running thread.
///
/// # Panics
/// In a kernel task, which has no thread: see [`try_current`].
pub fn current() -> CurrentThread {
    CurrentThread(task::current())
}

/// Returns the running thread, or `None` in a kernel task.
pub fn try_current() -> Option<CurrentThread> {
    let current = task::current();
    thread_of(&current)?;
    Some(CurrentThread(current))
}

/// Returns whether the running thread's effective capabilities include `cap`; kernel tasks have all.
pub fn capable(cap: super::Cap) -> bool {
    try_current().is_none_or(|t| t.with_cred(|c| c.has_cap(cap)))
}
