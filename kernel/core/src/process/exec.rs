//! Executing a program: execve(2), execveat(2).
//!
//! [`execve`] prepares all it can while the old program still exists: it opens the file, follows `#!` lines, gathers the
//! strings, works out the new credentials and builds the new address space. Then [`commit`] ends the other threads, which
//! is the point of no return, and exchanges what the old program owned. The only failure after that point is a signal
//! that ends the process anyway.
//! References: execve(2), credentials(7), Linux `fs/exec.c`, `fs/binfmt_script.c`.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::*;

use linux_uapi::raw::general::AT_FDCWD;
use linux_uapi::signal::SIGCHLD;
use ursa_hal::trap::UserContext;
use ursa_hal::{fpu, task};

use super::args::ArgBlock;
use super::cred::{Credentials, ExecFile, FileCaps};
use super::executable::{Executable, parse_script};
use super::loader::{self, Loaded};
use super::rlimit::Resource;
use super::thread::Thread;
use super::{Cap, exit};
use crate::fs::FdTable;
use crate::fs::mount::MountFlags;
use crate::fs::permission::{self, MAY_READ};
use crate::user::UserPtr;
use crate::{Errno, Result, ptrace};

/// How many `#!` lines may follow each other.
const SCRIPT_DEPTH: usize = 5;
/// Stack limits beyond this are not used to place things (`_STK_LIM` of setuid programs).
const SECURE_STACK_LIMIT: u64 = 8 << 20;
/// personality(2) bits.
const ADDR_NO_RANDOMIZE: u32 = 0x004_0000;
const ADDR_COMPAT_LAYOUT: u32 = 0x020_0000;
/// What a set-ID program must not inherit (`PER_CLEAR_ON_SETID`).
const PER_CLEAR_ON_SETID: u32 = ADDR_NO_RANDOMIZE | ADDR_COMPAT_LAYOUT | 0x040_0000 | 0x010_0000;

/// Where the program comes from.
pub struct Program<'a> {
    /// Directory descriptor for a relative path, or `AT_FDCWD`.
    pub dirfd: i32,
    /// The path; empty with `AT_EMPTY_PATH` for the file behind `dirfd`.
    pub path: &'a [u8],
    /// `AT_EMPTY_PATH`, `AT_SYMLINK_NOFOLLOW`.
    pub flags: u32,
}

/// Executes `program` in the running thread's process; on success `regs` are those of the new program.
///
/// # Errors
/// As execve(2) lists them.
pub fn execve(
    thread: &Arc<Thread>,
    regs: &mut UserContext,
    program: &Program<'_>,
    argv: UserPtr<u64>,
    envp: UserPtr<u64>,
) -> Result {
    // RLIMIT_NPROC is checked here too: setuid(2) cannot fail for it, so the next exec must.
    let process = thread.process();
    let cred = thread.cred();
    let limit = process.rlimits.soft(Resource::Nproc);
    if cred.user.threads.load(Relaxed) > limit
        && thread.over_nproc.load(Relaxed)
        && cred.uid != 0
        && !cred.has_cap(Cap::SysResource)
        && !cred.has_cap(Cap::SysAdmin)
    {
        return Err(Errno::EAGAIN);
    }
    let executable = Executable::open(thread, program.dirfd, program.path, program.flags)?;
    let mut args = ArgBlock::new(process.rlimits.soft(Resource::Stack));
    args.read_user(argv, envp)?;
    // A script's interpreter opens it by that name, which leads nowhere when the descriptor does not survive.
    let by_name = !is_relative(program) || !thread.files().cloexec(program.dirfd)?;
    execute(thread, regs, executable, exec_fn(program), args, by_name)
}

/// Executes a program on behalf of the kernel (the first process).
///
/// # Errors
/// As [`execve`].
pub(super) fn execute_kernel(
    thread: &Arc<Thread>,
    regs: &mut UserContext,
    path: &[u8],
    argv: &[&[u8]],
    envp: &[&[u8]],
) -> Result {
    let mut args = ArgBlock::new(thread.process().rlimits.soft(Resource::Stack));
    for arg in argv {
        args.args.push(arg)?;
    }
    for env in envp {
        args.envs.push(env)?;
    }
    let executable = Executable::open(thread, AT_FDCWD, path, 0)?;
    execute(thread, regs, executable, path.to_vec(), args, true)
}

/// Whether the program is named relative to a descriptor.
fn is_relative(program: &Program<'_>) -> bool {
    program.dirfd != AT_FDCWD && program.path.first() != Some(&b'/')
}

/// What the program is called (`bprm->filename`): the path, or `/dev/fd/N…` for one relative to a descriptor.
fn exec_fn(program: &Program<'_>) -> Vec<u8> {
    if !is_relative(program) {
        return program.path.to_vec();
    }
    let mut name = alloc::format!("/dev/fd/{}", program.dirfd).into_bytes();
    if !program.path.is_empty() {
        name.push(b'/');
        name.extend_from_slice(program.path);
    }
    name
}

fn execute(
    thread: &Arc<Thread>,
    regs: &mut UserContext,
    mut executable: Arc<Executable>,
    exec_fn: Vec<u8>,
    mut args: ArgBlock,
    by_name: bool,
) -> Result {
    if args.args.count == 0 {
        // An empty argv[0], so that no program runs with argc 0.
        args.args.push(b"")?;
    }
    // The name under which the next interpreter finds what it is to run.
    let mut shown = exec_fn.clone();
    let mut depth = 0;
    let (head, len) = loop {
        let (head, len) = executable.head()?;
        let Some(script) = parse_script(&head[..len])? else { break (head, len) };
        if !by_name {
            return Err(Errno::ENOENT);
        }
        if depth == SCRIPT_DEPTH {
            return Err(Errno::ELOOP);
        }
        depth += 1;
        match script.arg {
            Some(arg) => args.args.replace_first(&[script.interp, arg, &shown])?,
            None => args.args.replace_first(&[script.interp, &shown])?,
        }
        args.check()?;
        executable = Executable::open(thread, AT_FDCWD, script.interp, 0)?;
        shown = script.interp.to_vec();
    };
    if !head[..len].starts_with(b"\x7fELF") {
        return Err(Errno::ENOEXEC);
    }

    let process = thread.process();
    let (cred, secure) = new_credentials(thread, &executable)?;
    let personality = thread.personality.load(Relaxed) & if secure { !PER_CLEAR_ON_SETID } else { !0 };
    let mut stack_limit = process.rlimits.soft(Resource::Stack);
    if secure {
        stack_limit = stack_limit.min(SECURE_STACK_LIMIT);
    }
    let loaded = loader::load(&loader::Request {
        file: executable.file(),
        exec_fn: &exec_fn,
        args: &args,
        stack_limit,
        randomize: personality & ADDR_NO_RANDOMIZE == 0,
        legacy_layout: personality & ADDR_COMPAT_LAYOUT != 0,
        ids: [cred.uid, cred.euid, cred.gid, cred.egid],
        secure,
        open_interp: &|path| Executable::open_interp(thread, path),
    })?;
    drop(args);
    let name = exec_fn.rsplit(|&b| b == b'/').next().unwrap_or(&[]).to_vec();
    let own_files = unshare_files(thread)?;
    end_other_threads(thread)?;
    commit(thread, regs, Commit { loaded, own_files, cred, secure, personality, name, executable });
    Ok(())
}

/// Returns the credentials after the exec, and whether the program runs in secure mode.
fn new_credentials(thread: &Thread, executable: &Executable) -> Result<(Credentials, bool)> {
    let old = thread.cred();
    let inode = executable.inode();
    let attr = inode.attr()?;
    let nosuid = executable.file().path().is_some_and(|p| p.mount.flags().contains(MountFlags::NOSUID));
    // Privilege is not given to a process that others can steer: by ptrace, or through a file-system context that they share.
    let shares_fs = Arc::strong_count(&thread.fs()) > 1 + thread.process().live_threads() as usize;
    let trust = !nosuid && !shares_fs && !ptrace::is_traced_by_unprivileged(thread);
    let caps = match inode.ops().getxattr(inode, b"security.capability") {
        Ok(value) => match FileCaps::decode(&value) {
            Ok(caps) => Some(caps),
            Err(Errno::ENODATA) => None,
            Err(error) => return Err(error),
        },
        Err(_) => None,
    };
    let exec_file = ExecFile { mode: attr.mode, uid: attr.uid, gid: attr.gid, caps };
    let mut new = Credentials::clone(&old);
    let secure = new.apply_exec(&old, &exec_file, trust)?;
    Ok((new, secure))
}

/// Copies the descriptor table if another process shares it: close-on-exec must not reach into that one.
fn unshare_files(thread: &Thread) -> Result<Option<Arc<FdTable>>> {
    let files = thread.files();
    // One reference is `files`, one each of our threads may hold.
    let shared = Arc::strong_count(&files) > 1 + thread.process().live_threads() as usize;
    shared.then(|| files.fork()).transpose()
}

/// Ends all other threads of the process and makes the caller its leader (`de_thread`).
///
/// # Errors
/// `EAGAIN` when the process is already about to end, or another thread executes a program.
fn end_other_threads(thread: &Arc<Thread>) -> Result {
    let process = thread.process();
    let others = {
        let mut threads = process.threads.lock();
        if threads.group_exit.is_some() || threads.exec.is_some() {
            return Err(Errno::EAGAIN);
        }
        threads.exec = Some(thread.clone());
        threads.list.clone()
    };
    for other in others.iter().filter(|t| !Arc::ptr_eq(t, thread) && !t.is_dead()) {
        other.kill(0);
    }
    drop(others);
    let alone = || process.threads.lock().list.iter().all(|t| Arc::ptr_eq(t, thread) || t.is_dead()).then_some(());
    let waited = process.exec_wait.wait_killable(alone);
    let dead_leader = {
        let mut threads = process.threads.lock();
        threads.exec = None;
        if waited.is_err() {
            // Killed while waiting: the whole process ends, this thread among the first.
            return Err(Errno::EAGAIN);
        }
        let mut dead = core::mem::take(&mut threads.list);
        let me = dead.iter().position(|t| Arc::ptr_eq(t, thread)).map(|at| dead.swap_remove(at));
        threads.list.extend(me);
        dead
    };
    if let Some(leader) = dead_leader.iter().find(|t| t.is_leader()) {
        thread.take_number_of(leader);
        ptrace::leader_replaced(thread, leader);
    }
    dead_leader.iter().for_each(|thread| crate::fs::cgroup::gone(thread));
    drop(dead_leader);
    Ok(())
}

struct Commit {
    loaded: Loaded,
    own_files: Option<Arc<FdTable>>,
    cred: Credentials,
    secure: bool,
    personality: u32,
    name: Vec<u8>,
    executable: Arc<Executable>,
}

/// Exchanges the old program for the new one. Nothing here can fail.
fn commit(thread: &Arc<Thread>, regs: &mut UserContext, new: Commit) {
    let process = thread.process();
    let old_cred = thread.cred();

    // Memory.
    exit::leave_memory(thread);
    thread.robust_list.store(0, Relaxed);
    let peak = process.vm().peak_rss_pages();
    {
        let mut threads = process.threads.lock();
        threads.dead_usage.max_rss_pages = threads.dead_usage.max_rss_pages.max(peak);
    }
    new.loaded.vm.set_oom_score_adj(process.oom_score_adj.load(Relaxed));
    let vm = new.loaded.vm.clone();
    let old_vm = process.replace_vm(Some(new.loaded.vm));
    task::switch_space(vm.user_space());
    drop(old_vm);
    drop(process.set_executable(Some(new.executable.clone())));
    exit::complete_vfork(thread);

    // Files. A table that is shared with another process stays theirs.
    if let Some(own) = new.own_files {
        drop(thread.set_files(own));
    }
    // Before descriptors are closed: who sees one go (a parent that reads a pipe) may count on it.
    process.has_execed.store(true, Relaxed);
    thread.files().close_on_exec();

    // Signals.
    process.signals.reset_on_exec();
    thread.signals.reset_on_exec();
    process.set_exit_signal(SIGCHLD);

    // Identity.
    let unreadable = permission::check(new.executable.inode(), MAY_READ, &old_cred).is_err();
    let changed = old_cred.euid != new.cred.euid
        || old_cred.egid != new.cred.egid
        || old_cred.fsuid != new.cred.fsuid
        || old_cred.fsgid != new.cred.fsgid
        || !new.cred.permitted.is_subset(old_cred.permitted);
    let guarded = changed || unreadable || new.cred.euid != new.cred.uid || new.cred.egid != new.cred.gid;
    let dumpable = if guarded { crate::coredump::of_privileged() } else { 1 };
    process.dumpable.store(dumpable, Relaxed);
    if changed || new.secure {
        thread.death_signal.store(0, Relaxed);
    }
    thread.set_cred(new.cred);
    thread.personality.store(new.personality, Relaxed);
    thread.set_name(&new.name);
    thread.timer_slack_ns.store(thread.default_timer_slack_ns.load(Relaxed), Relaxed);
    process.flags.fetch_and(super::process::FLAGS_KEPT_ON_EXEC, Relaxed);

    // Registers.
    thread.dispatch.end();
    fpu::reset();
    *regs = UserContext::start(new.loaded.entry, new.loaded.stack_pointer);
    let current = task::current();
    current.set_fs_base(0);
    current.set_gs_base(0);
    thread.signals.ptrace.clear_breakpoints(&current);
    ptrace::exec_event(thread);
}
