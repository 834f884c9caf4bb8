//! Descriptors that stand for processes and threads: pidfd_open(2), and what reads them back.
//!
//! A pidfd polls readable when its process (or, with `PIDFD_THREAD`, its thread) has ended, and `POLLHUP` once it is
//! reaped. The object holds the process itself, so it never means another that got the same number.
//! References: pidfd_open(2), pidfd_getfd(2), pidfd_send_signal(2).

use alloc::sync::Arc;
use core::fmt::Write;

use super::process::Process;
use super::thread::{Thread, current};
use crate::fs::{File, FileOps};
use crate::poll::{PollEvents, PollTable};
use crate::{Errno, Result};

/// `PIDFD_THREAD`: the descriptor stands for one thread.
pub const PIDFD_THREAD: u32 = 0o200;
const O_RDWR: u32 = 2;

/// What a pidfd stands for.
pub enum PidFd {
    /// A process.
    Process(Arc<Process>),
    /// One thread of a process.
    Thread(Arc<Thread>),
}

impl PidFd {
    /// Returns the process, that of the thread for a thread's descriptor.
    pub fn process(&self) -> &Arc<Process> {
        match self {
            PidFd::Process(process) => process,
            PidFd::Thread(thread) => thread.process(),
        }
    }

    /// Returns a thread to act on: the thread itself, or one that stands for the process.
    ///
    /// # Errors
    /// `ESRCH` when it has been reaped.
    pub fn thread(&self) -> Result<Arc<Thread>> {
        match self {
            PidFd::Thread(thread) => Ok(thread.clone()),
            PidFd::Process(process) => process.representative().ok_or(Errno::ESRCH),
        }
    }
}

/// Returns a file that stands for `process`; `flags` may have `O_NONBLOCK`.
pub fn open_process(process: &Arc<Process>, flags: u32) -> Arc<File> {
    File::anon(Arc::new(PidFd::Process(process.clone())), "anon_inode:[pidfd]", O_RDWR | flags)
}

/// Returns a file that stands for `thread`.
pub fn open_thread(thread: &Arc<Thread>, flags: u32) -> Arc<File> {
    File::anon(Arc::new(PidFd::Thread(thread.clone())), "anon_inode:[pidfd]", O_RDWR | flags | PIDFD_THREAD)
}

/// Returns what the descriptor `file` stands for.
///
/// # Errors
/// `EBADF` when it is no pidfd.
pub fn of_file(file: &File) -> Result<&PidFd> {
    file.ops::<PidFd>().ok_or(Errno::EBADF)
}

impl FileOps for PidFd {
    fn poll(&self, _file: &File, pt: Option<&mut PollTable>) -> PollEvents {
        let process = self.process();
        if let Some(pt) = pt {
            pt.register(&process.exit_wait);
        }
        let ended = match self {
            PidFd::Process(process) => process.is_announced(),
            PidFd::Thread(thread) => thread.is_dead(),
        };
        let mut events = PollEvents::empty();
        if ended {
            events |= PollEvents::READABLE;
        }
        if process.is_reaped() {
            events |= PollEvents::READABLE | PollEvents::POLLHUP;
        }
        events
    }

    fn fdinfo(&self, _file: &File, out: &mut dyn Write) -> core::fmt::Result {
        let identity = match self {
            PidFd::Process(process) if process.is_reaped() => return writeln!(out, "Pid:\t-1\nNSpid:\t-1"),
            PidFd::Process(process) => process.identity().clone(),
            PidFd::Thread(thread) => thread.identity(),
        };
        let namespace = current().process().pid_namespace().clone();
        write!(out, "Pid:\t{0}\nNSpid:\t{0}", identity.seen_from(&namespace))?;
        // Then as those know it that are nested deeper.
        identity.seen_below(&namespace).skip(1).try_for_each(|number| write!(out, "\t{number}"))?;
        out.write_char('\n')
    }
}
