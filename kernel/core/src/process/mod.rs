//! Processes and threads: identity, family, credentials, birth, execution and death.
//!
//! Key types: [`Process`] (a thread group), [`Thread`] (a schedulable unit), [`Credentials`], [`ProcessGroup`],
//! [`Session`], [`Rlimits`]. [`current`] is the running thread.
//! Flow: [`fork`] makes threads and processes, [`exec`] replaces the program, [`exit`] ends them, [`wait`] reaps. The loop
//! that runs a thread in user mode is [`run`].
//! Signals, scheduling and memory are their own modules; this one tells them when a thread is born, execs and dies.
//! Locking: see [`process`] for the family tree and [`pid`] for the number space.

pub mod acct;
pub mod args;
pub mod caps;
mod cpu_time;
pub mod cred;
pub mod dispatch;
pub mod exec;
pub mod executable;
pub mod exit;
pub mod fork;
pub mod group;
pub mod helper;
mod init;
mod loader;
pub mod pid;
pub mod pid_namespace;
pub mod pidfd;
pub mod process;
pub mod rlimit;
pub mod rng;
pub mod rseq;
pub mod run;
pub mod syscall;
pub mod thread;
pub mod usage;
pub mod wait;

pub use caps::{Cap, CapSet};
pub use cred::{Credentials, UserAccount};
pub use group::{ControllingTerminal, ProcessGroup, Session};
pub use init::{init, spawn_init};
pub use pid::{
    Pid, last_pid, lookup_pid, lookup_tid, number_meant, number_seen, process_count, process_group, processes,
    seen_group, seen_process, seen_thread, session,
};
pub use pid_namespace::PidNamespace;
pub use process::{Process, tree_lock};
pub use rlimit::{Limit, RLIM_INFINITY, Resource, Rlimits};
pub use thread::{CurrentThread, Thread, capable, current, try_current};
