//! Signals: state, sending, delivery, job control.
//!
//! ```text
//!  send ──▶ pending (thread or process) ──way back to user mode──▶ take ──▶ handler frame │ default action │ tracer
//! ```
//! [`send`] decides what must happen at once and wakes a thread; [mod@deliver] takes signals where a thread returns to user mode,
//! builds handler frames ([`frame`]) and restarts interrupted calls; [`job`] stops and continues processes. [`ThreadSignals`]
//! and [`ProcessSignals`] hang on threads and processes.
//!
//! Locking: the queues (`ThreadSignals::pending`, `ProcessSignals::shared`), the actions and the job state are leaf locks that
//! disable interrupts, since timers send signals. Order: job, thread list, queues. A sender stores the signal before it
//! reads the blocked mask, a thread stores its mask before it reads the queues: one of them sees the other.
//! References: signal(7), sigaction(2), Linux `kernel/signal.c`, `arch/x86/kernel/signal.c`.

mod deliver;
mod frame;
mod job;
mod mask;
mod pending;
mod send;
mod state;
pub mod syscall;

use linux_uapi::raw::general as uapi;

pub use crate::ptrace;
pub(crate) use deliver::{deliver, die, wants_delivery};
pub use deliver::{force_fault, force_signal, signalfd_take, thread_exits};
pub use frame::min_stack_size;
pub(crate) use job::is_to_stop;
pub(crate) use mask::set_blocked_of_tracee;
pub use mask::{restore_mask_later, set_blocked, with_temporary_mask};
pub use send::{check_permission, notify_parent_of_exit, send_to_group, send_to_process, send_to_thread};
pub(crate) use send::{forget_timer, notify_thread, send_from_timer};
pub use state::{ProcessSignals, RestartBlock, SigActions, ThreadSignals};

pub use linux_uapi::signal::{SigInfo, SigSet};

const SA_NOCLDSTOP: u64 = uapi::SA_NOCLDSTOP as u64;
const SA_NOCLDWAIT: u64 = uapi::SA_NOCLDWAIT as u64;
const SA_SIGINFO: u64 = uapi::SA_SIGINFO as u64;
const SA_ONSTACK: u64 = uapi::SA_ONSTACK as u64;
const SA_RESTART: u64 = uapi::SA_RESTART as u64;
const SA_NODEFER: u64 = uapi::SA_NODEFER as u64;
const SA_RESETHAND: u64 = uapi::SA_RESETHAND as u64;
const SA_RESTORER: u64 = uapi::SA_RESTORER as u64;
const SA_EXPOSE_TAGBITS: u64 = 0x800;
const SS_ONSTACK: i32 = uapi::SS_ONSTACK as i32;
const SS_DISABLE: i32 = uapi::SS_DISABLE as i32;
const SS_AUTODISARM: i32 = 1 << 31;
