//! Processes and threads: identity, family, credentials, birth, execution and death.
//!
//! Key types: [`Process`] (a thread group), [`Thread`] (a schedulable unit), [`Credentials`], [`ProcessGroup`],
//! [`Session`], [`Rlimits`]. [`current`] is the running thread.
//! Flow: [`fork`] makes threads and processes, [`exec`] replaces the program, [`exit`] ends them, [`wait`] reaps. The loop
//! that runs a thread in user mode is [`run`].
//! Signals, scheduling and memory are their own modules; this one tells them when a thread is born, execs and dies.
//! Locking: see [`process`] for the family tree and [`pid`] for the number space.

pub mod caps;

pub use caps::{Cap, CapSet};
