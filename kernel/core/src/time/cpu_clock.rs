//! CPU-time clocks of processes and threads, with the clock numbers that name other processes' clocks.
//!
//! A number `(!pid << 3) | per_thread << 2 | which` names a clock of a process or thread (clock_getcpuclockid(3),
//! pthread_getcpuclockid(3)); `CLOCK_PROCESS_CPUTIME_ID` and `CLOCK_THREAD_CPUTIME_ID` name the caller's.

use alloc::sync::{Arc, Weak};

use linux_uapi::raw::general as uapi;

use crate::process::{self, Process, Thread};
use crate::{Errno, Result};

/// What a CPU-time clock counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counts {
    /// User and system time (`CPUCLOCK_PROF`) or the scheduler's exact sum (`CPUCLOCK_SCHED`); the same here.
    Total,
    /// User time (`CPUCLOCK_VIRT`).
    User,
}

/// A CPU-time clock.
#[derive(Clone)]
pub(super) enum CpuClock {
    Process(Weak<Process>, Counts),
    Thread(Weak<Thread>, Counts),
}

impl CpuClock {
    /// Decodes a clock number as seen by `thread`; `None` when it is not a CPU-time clock.
    ///
    /// # Errors
    /// `EINVAL` for a malformed number or a process or thread that is not there.
    pub(super) fn from_id(thread: &Thread, id: i32) -> Option<Result<CpuClock>> {
        match id as u32 {
            uapi::CLOCK_PROCESS_CPUTIME_ID => {
                return Some(Ok(CpuClock::Process(Arc::downgrade(thread.process()), Counts::Total)));
            }
            uapi::CLOCK_THREAD_CPUTIME_ID => {
                return Some(Ok(CpuClock::Thread(Arc::downgrade(&thread.arc()), Counts::Total)));
            }
            _ if id >= 0 => return None,
            _ => {}
        }
        Some(decode_dynamic(thread, id))
    }

    /// The clock's number, as it names the clock to any process.
    pub(super) fn id(&self) -> i32 {
        const SCHED: i32 = 2;
        const PER_THREAD: i32 = 4;
        let which = |counts: &Counts| if *counts == Counts::User { 1 } else { SCHED };
        match self {
            CpuClock::Process(process, counts) => {
                !process.upgrade().map_or(0, |process| process.seen_pid()) << 3 | which(counts)
            }
            CpuClock::Thread(thread, counts) => {
                !thread.upgrade().map_or(0, |thread| thread.seen_tid()) << 3 | PER_THREAD | which(counts)
            }
        }
    }

    /// Whether it counts this thread alone, which would sleep for ever on it.
    pub(super) fn is_of(&self, thread: &Thread) -> bool {
        matches!(self, CpuClock::Thread(counted, _) if core::ptr::eq(counted.as_ptr(), thread))
    }

    /// The clock's value.
    ///
    /// # Errors
    /// `EINVAL` when what it belongs to is gone.
    pub(super) fn now(&self) -> Result<u64> {
        match self {
            CpuClock::Process(process, counts) => {
                let process = process.upgrade().filter(|process| !process.is_reaped()).ok_or(Errno::EINVAL)?;
                let (user, system) = process.cpu_ns();
                Ok(if *counts == Counts::User { user } else { user + system })
            }
            CpuClock::Thread(thread, counts) => {
                let thread = thread.upgrade().filter(|thread| !thread.is_dead()).ok_or(Errno::EINVAL)?;
                Ok(thread_ns(&thread, *counts))
            }
        }
    }
}

fn thread_ns(thread: &Thread, counts: Counts) -> u64 {
    let (user, system) = thread.cpu_ns();
    if counts == Counts::User { user } else { user + system }
}

fn decode_dynamic(thread: &Thread, id: i32) -> Result<CpuClock> {
    const PER_THREAD: i32 = 4;
    let counts = match id & 3 {
        0 | 2 => Counts::Total,
        1 => Counts::User,
        _ => return Err(Errno::EINVAL),
    };
    let number = !(id >> 3);
    if id & PER_THREAD != 0 {
        let target = if number == 0 { Some(thread.arc()) } else { process::seen_thread(number) };
        // Only threads of one's own process.
        let target = target.filter(|target| Arc::ptr_eq(target.process(), thread.process())).ok_or(Errno::EINVAL)?;
        Ok(CpuClock::Thread(Arc::downgrade(&target), counts))
    } else {
        let target = if number == 0 { Some(thread.process().clone()) } else { process::seen_process(number) };
        Ok(CpuClock::Process(Arc::downgrade(&target.ok_or(Errno::EINVAL)?), counts))
    }
}
