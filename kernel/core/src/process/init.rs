//! The first process: [`spawn_init`].
//!
//! The thread of process 1 exists before its program does: it waits for a path to execute, tries, and answers, so that the
//! boot sequence can offer one candidate after the other and the program starts with a whole context around it.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use linux_uapi::raw::general::O_RDWR;
use linux_uapi::signal::SIGCHLD;
use ursa_hal::fpu::FpuState;
use ursa_hal::sync::{Once, SpinLock};
use ursa_hal::task;
use ursa_hal::trap::UserContext;

use super::cred::Credentials;
use super::fork::{self, ThreadSlot};
use super::group::{ProcessGroup, Session};
use super::pid::PidNumber;
use super::process::{Process, ProcessParts};
use super::rlimit::Rlimits;
use super::thread::{NAME_LEN, Thread, ThreadParts, current};
use super::{exec, exit, pid_namespace, run};
use crate::fs::open::{OpenRequest, open};
use crate::fs::path::Start;
use crate::fs::{self, FdTable, FsContext};
use crate::mm::AddressSpace;
use crate::namespace;
use crate::sched;
use crate::signal::{ProcessSignals, ThreadSignals};
use crate::wait::WaitQueue;
use crate::{Errno, Result};

const INITIAL_UMASK: u32 = 0o022;
const DEFAULT_SLACK_NS: u64 = 50_000;

/// A program to try, and how it went.
enum Attempt {
    Idle,
    Try { path: String, argv: Vec<String>, envp: Vec<String> },
    Done(Result),
}

static ATTEMPT: SpinLock<Attempt> = SpinLock::new(Attempt::Idle);
static CHANGED: WaitQueue = WaitQueue::new();
static STARTED: Once<Result> = Once::new();

/// Prepares the module. Nothing to do: its tables are static, and the random number generator seeds itself.
pub fn init() {}

/// Executes `path` as the first process. The caller may sleep. May be called again after an error.
///
/// # Errors
/// As execve(2).
pub fn spawn_init(path: &str, argv: &[&str], envp: &[&str]) -> Result {
    (*STARTED.call_once(start_thread))?;
    let own = |list: &[&str]| list.iter().map(|s| String::from(*s)).collect();
    *ATTEMPT.lock() = Attempt::Try { path: path.into(), argv: own(argv), envp: own(envp) };
    CHANGED.wake_all();
    CHANGED.wait_until(|| {
        let mut attempt = ATTEMPT.lock();
        match &*attempt {
            Attempt::Done(result) => {
                let result = *result;
                *attempt = Attempt::Idle;
                Some(result)
            }
            _ => None,
        }
    })
}

fn start_thread() -> Result {
    let number = PidNumber::allocate(pid_namespace::initial(), &[1])?;
    let root = fs::mount::root().ok_or(Errno::ENOENT)?;
    let context = FsContext::new(root.root_path(), INITIAL_UMASK);
    // Exited threads have one of their own, so that the first process's does not count as shared.
    exit::INITIAL_FS.call_once(|| context.fork());
    let session = Session::new(number.clone());
    let group = ProcessGroup::new(number.clone(), session);
    let process = Arc::new(Process::new(ProcessParts {
        number: number.clone(),
        signals: ProcessSignals::new(),
        parent: Weak::new(),
        parent_tid: 0,
        group: group.clone(),
        vm: AddressSpace::empty(),
        executable: None,
        rlimits: Rlimits::initial(fork::threads_max() as u64),
        cgroup: fs::cgroup::root().clone(),
        exit_signal: SIGCHLD as i32,
        has_subreaper: false,
        dumpable: 1,
        oom_score_adj: 0,
        coredump_filter: 0x33,
        flags: 0,
    }));
    let mut name = [0; NAME_LEN];
    name[..4].copy_from_slice(b"init");
    let thread = Thread::new(ThreadParts {
        number,
        slot: ThreadSlot::claim()?,
        process: process.clone(),
        name,
        cred: Arc::new(Credentials::root()),
        files: FdTable::new(),
        fs: context,
        namespaces: namespace::set::initial().clone(),
        signals: ThreadSignals::new(),
        personality: 0,
        timer_slack_ns: DEFAULT_SLACK_NS,
        io_priority: 0,
    });
    let fpu = FpuState::new().ok_or(Errno::ENOMEM)?;
    let task = sched::new_task("init", Some(thread.clone()), Some(fpu), Box::new(body)).ok_or(Errno::ENOMEM)?;
    thread.set_task(&task);
    {
        let mut threads = process.threads.lock();
        threads.list.push(thread.clone());
        threads.live = 1;
    }
    thread.publish();
    group.join(&process);
    let mut news = fs::cgroup::News::default();
    fs::cgroup::join(&thread, true, None, None, &mut news)?;
    news.tell();
    process.number().publish_process(&process);
    sched::wake_new(&task);
    Ok(())
}

/// What the first thread does until a program runs.
fn body() {
    let thread = current().arc();
    task::switch_space(thread.vm().user_space());
    let context = loop {
        let (path, argv, envp) = CHANGED.wait_until(|| {
            let mut attempt = ATTEMPT.lock();
            match core::mem::replace(&mut *attempt, Attempt::Idle) {
                Attempt::Try { path, argv, envp } => Some((path, argv, envp)),
                other => {
                    *attempt = other;
                    None
                }
            }
        });
        let mut context = UserContext::new();
        let result = execute(&thread, &mut context, &path, &argv, &envp);
        *ATTEMPT.lock() = Attempt::Done(result);
        CHANGED.wake_all();
        if result.is_ok() {
            break context;
        }
    };
    // The loop keeps no reference of its own: what is on this stack when the task ends is never dropped.
    drop(thread);
    run::user_loop(context);
}

fn execute(thread: &Arc<Thread>, context: &mut UserContext, path: &str, argv: &[String], envp: &[String]) -> Result {
    let bytes = |list: &[String]| -> Vec<Vec<u8>> { list.iter().map(|s| s.as_bytes().to_vec()).collect() };
    let (argv, envp) = (bytes(argv), bytes(envp));
    let argv: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
    let envp: Vec<&[u8]> = envp.iter().map(Vec::as_slice).collect();
    open_console(thread);
    exec::execute_kernel(thread, context, path.as_bytes(), &argv, &envp)
}

/// Gives the first process the console as its standard descriptors, once.
fn open_console(thread: &Thread) {
    let files = thread.files();
    if files.get(0).is_ok() {
        return;
    }
    let console = OpenRequest::plain(O_RDWR).and_then(|how| open(&Start::Cwd, b"/dev/console", &how));
    match console {
        Ok(file) => {
            for _ in 0..3 {
                // An empty table has room for three.
                let _ = files.install(file.clone(), false, 3);
            }
        }
        Err(error) => ursa_hal::warn!("the first program has no console: {error}"),
    }
}
