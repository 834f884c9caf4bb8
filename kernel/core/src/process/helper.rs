//! Programs that the kernel starts on its own: [`start`].
//!
//! Such a program is a child of the first process, which reaps it; it is root's, in a session of its own, and its standard
//! input is what the kernel has for it. References: Linux `kernel/umh.c`, core(5) ("Piping core dumps to a program").

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_uapi::signal::SIGCHLD;
use ursa_hal::fpu::FpuState;
use ursa_hal::sync::SpinLock;
use ursa_hal::task;
use ursa_hal::trap::UserContext;

use super::cred::Credentials;
use super::fork::{self, ThreadSlot};
use super::group::{ProcessGroup, Session};
use super::pid::{PidNumber, lookup_pid};
use super::process::{Process, ProcessParts, tree_lock};
use super::rlimit::{Limit, Resource, Rlimits};
use super::thread::{NAME_LEN, Thread, ThreadParts, current};
use super::{exec, pid_namespace, run};
use crate::fs::{self, FdTable, File, FsContext};
use crate::mm::AddressSpace;
use crate::sched;
use crate::signal::{ProcessSignals, ThreadSignals};
use crate::wait::WaitQueue;
use crate::{Errno, Result};

const UMASK: u32 = 0o022;
const DEFAULT_SLACK_NS: u64 = 50_000;
/// The program's own death is not dumped into another one.
const CORE_LIMIT: Limit = Limit { soft: 1, hard: 1 };

/// How the start went, for who waits for it.
#[derive(Default)]
struct Started {
    result: SpinLock<Option<Result>>,
    wait: WaitQueue,
}

/// Starts the program `args[0]` with `args` and an empty environment, `stdin` as its standard input, and waits until it runs.
///
/// # Errors
/// As execve(2) and fork(2); `EINTR` when the caller is killed meanwhile (the program may run then).
pub fn start(args: &[Vec<u8>], stdin: Arc<File>) -> Result {
    let mut own = Vec::new();
    own.try_reserve_exact(args.len()).map_err(|_| Errno::ENOMEM)?;
    own.extend_from_slice(args);
    let parent = lookup_pid(1).ok_or(Errno::ESRCH)?;
    let number = PidNumber::allocate(pid_namespace::initial(), &[])?;
    // As the first process sees it, which may have gone from the boot archive to a disk.
    let first = parent.representative().ok_or(Errno::ESRCH)?;
    let root = first.fs().root();
    let namespaces = first.namespaces().ok_or(Errno::ESRCH)?;
    let session = Session::new(number.clone());
    let group = ProcessGroup::new(number.clone(), session);
    let rlimits = Rlimits::initial(fork::threads_max() as u64);
    rlimits.set(Resource::Core, CORE_LIMIT, true)?;
    let process = Arc::new(Process::new(ProcessParts {
        number: number.clone(),
        signals: ProcessSignals::new(),
        parent: Arc::downgrade(&parent),
        parent_tid: parent.pid(),
        group: group.clone(),
        vm: AddressSpace::empty(),
        executable: None,
        rlimits,
        cgroup: fs::cgroup::root().clone(),
        exit_signal: SIGCHLD as i32,
        has_subreaper: false,
        dumpable: 1,
        oom_score_adj: 0,
        coredump_filter: 0x33,
        flags: 0,
    }));
    let files = FdTable::new();
    files.install(stdin, false, 1)?;
    let mut name = [0; NAME_LEN];
    name[..6].copy_from_slice(b"helper");
    let thread = Thread::new(ThreadParts {
        number,
        slot: ThreadSlot::claim()?,
        process: process.clone(),
        name,
        cred: Arc::new(Credentials::root()),
        files,
        fs: FsContext::new(root, UMASK),
        namespaces,
        signals: ThreadSignals::new(),
        personality: 0,
        timer_slack_ns: DEFAULT_SLACK_NS,
        io_priority: 0,
    });
    let started = Arc::new(Started::default());
    let tell = started.clone();
    let fpu = FpuState::new().ok_or(Errno::ENOMEM)?;
    let body = Box::new(move || body(own, &tell));
    let task = sched::new_task("helper", Some(thread.clone()), Some(fpu), body).ok_or(Errno::ENOMEM)?;
    thread.set_task(&task);
    let mut news = fs::cgroup::News::default();
    {
        let _tree = tree_lock();
        fs::cgroup::join(&thread, true, None, None, &mut news)?;
        let mut threads = process.threads.lock();
        threads.list.push(thread.clone());
        threads.live = 1;
        drop(threads);
        thread.publish();
        group.join(&process);
        parent.links.lock().children.insert(process.pid(), process.clone());
        process.number().publish_process(&process);
    }
    news.tell();
    sched::wake_new(&task);
    started.wait.wait_killable(|| *started.result.lock())?
}

/// What the new thread does until the program runs, or does not.
fn body(args: Vec<Vec<u8>>, started: &Started) {
    let thread = current().arc();
    task::switch_space(thread.vm().user_space());
    let mut context = UserContext::new();
    let result = match args.first() {
        Some(path) => {
            let argv: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
            exec::execute_kernel(&thread, &mut context, path, &argv, &[])
        }
        None => Err(Errno::ENOENT),
    };
    drop(args);
    *started.result.lock() = Some(result);
    started.wait.wake_all();
    if result.is_err() {
        const EXIT_FAILURE: i32 = 1;
        thread.process().exit_group(EXIT_FAILURE << 8);
    }
    // The loop keeps no reference of its own: what is on this stack when the task ends is never dropped.
    drop(thread);
    run::user_loop(context);
}
