//! Job control: the controlling terminal, its session and foreground group, hang-up.
//!
//! References: `credentials(7)`, `drivers/tty/tty_jobctrl.c`; POSIX.1-2024 chapter 11.1.

use alloc::sync::{Arc, Weak};
use core::any::Any;
use core::sync::atomic::Ordering;

use linux_uapi::signal::{SIG_IGN, SIGCONT, SIGHUP, SIGTTIN, SIGTTOU};

use super::Tty;
use crate::poll::PollEvents;
use crate::process::{Cap, ControllingTerminal, Pid, Process, ProcessGroup, Session, capable, current, seen_group};
use crate::signal::{self, SigInfo};
use crate::{Errno, Result};

impl Tty {
    /// Whether this is the controlling terminal of the calling process.
    pub(super) fn is_controlling(&self) -> bool {
        current()
            .process()
            .terminal()
            .is_some_and(|t| t.as_any().downcast_ref::<Tty>().is_some_and(|t| core::ptr::eq(t, self)))
    }

    /// What a background process meets when it reads (`SIGTTIN`), or writes and changes modes (`SIGTTOU`).
    ///
    /// # Errors
    /// `ERESTARTSYS` after the signal was sent to its group; `EIO` when nobody could continue it, and for reading also when
    /// the signal is ignored or blocked.
    pub(super) fn check_foreground(&self, signo: u32) -> Result {
        if !self.is_controlling() {
            return Ok(());
        }
        let group = current().process().group();
        match self.foreground() {
            Some(foreground) if !Arc::ptr_eq(&foreground, &group) => {}
            _ => return Ok(()),
        }
        let ignored =
            current().signals.blocked().contains(signo) || current().process().signals.action(signo).handler == SIG_IGN;
        if ignored {
            return if signo == SIGTTIN { Err(Errno::EIO) } else { Ok(()) };
        }
        if group.is_orphaned(None) {
            return Err(Errno::EIO);
        }
        signal::send_to_group(group.id(), SigInfo::kernel(signo));
        Err(Errno::ERESTARTSYS)
    }

    /// As [`check_foreground`](Self::check_foreground) for what changes the terminal.
    pub(super) fn check_change(&self) -> Result {
        self.check_foreground(SIGTTOU)
    }

    /// Makes this the controlling terminal of the calling process's session.
    fn adopt(self: &Arc<Self>, session: &Arc<Session>) {
        let group = current().process().group();
        {
            let mut control = self.control.lock();
            control.session = Arc::downgrade(session);
            control.foreground = Arc::downgrade(&group);
        }
        drop(session.set_terminal(Some(self.clone())));
        current().process().set_left_terminal(false);
    }

    /// What opening does for a session leader without a terminal, unless `O_NOCTTY` was given.
    pub(super) fn adopt_on_open(self: &Arc<Self>) {
        let process = current().process().clone();
        let session = process.session();
        if process.is_session_leader() && session.terminal().is_none() && self.session().is_none() {
            self.adopt(&session);
        }
    }

    /// `TIOCSCTTY`: becomes the controlling terminal; `steal` takes it from another session, for root.
    ///
    /// # Errors
    /// `EPERM` unless the caller leads a session without terminal, or when another session has this one.
    pub(super) fn set_controlling(self: &Arc<Self>, steal: bool, readable: bool) -> Result {
        let process = current().process().clone();
        let session = process.session();
        let owner = self.session();
        let is_ours = owner.as_ref().is_some_and(|s| Arc::ptr_eq(s, &session));
        if process.is_session_leader() && is_ours {
            return Ok(());
        }
        if !process.is_session_leader() || session.terminal().is_some() {
            return Err(Errno::EPERM);
        }
        if let Some(owner) = owner {
            if !steal || !capable(Cap::SysAdmin) {
                return Err(Errno::EPERM);
            }
            drop(owner.set_terminal(None));
        }
        if !readable && !capable(Cap::SysAdmin) {
            return Err(Errno::EPERM);
        }
        self.adopt(&session);
        Ok(())
    }

    /// `TIOCNOTTY`: the caller gives up its controlling terminal; a session leader takes it from all.
    ///
    /// # Errors
    /// `ENOTTY` when it is not the caller's.
    pub(super) fn give_up(&self) -> Result {
        if !self.is_controlling() {
            return Err(Errno::ENOTTY);
        }
        let process = current().process().clone();
        if process.is_session_leader() {
            let session = process.session();
            ControllingTerminal::leader_exited(self, &session);
            drop(session.set_terminal(None));
        } else {
            process.set_left_terminal(true);
        }
        Ok(())
    }

    /// `TIOCGPGRP`. On a pseudo-terminal's master it asks for the slave's without having to be the controlling terminal.
    ///
    /// # Errors
    /// `ENOTTY` when it is not the caller's terminal.
    pub(super) fn foreground_id(&self, from_master: bool) -> Result<Pid> {
        if !from_master && !self.is_controlling() {
            return Err(Errno::ENOTTY);
        }
        Ok(self.foreground().map_or(0, |g| g.identity().seen()))
    }

    /// `TIOCSPGRP`.
    ///
    /// # Errors
    /// `ENOTTY` when it is not the caller's terminal, `ESRCH` for no group, `EPERM` for one of another session.
    pub(super) fn set_foreground(&self, id: Pid, from_master: bool) -> Result {
        match self.check_change() {
            Err(Errno::EIO) => return Err(Errno::ENOTTY),
            other => other?,
        }
        let session = current().process().session();
        let owned = self.session().is_some_and(|s| Arc::ptr_eq(&s, &session));
        if !owned || (!from_master && !self.is_controlling()) {
            return Err(Errno::ENOTTY);
        }
        if id < 0 {
            return Err(Errno::EINVAL);
        }
        let group = seen_group(id).ok_or(Errno::ESRCH)?;
        if !Arc::ptr_eq(group.session(), &session) {
            return Err(Errno::EPERM);
        }
        self.control.lock().foreground = Arc::downgrade(&group);
        Ok(())
    }

    /// `TIOCGSID`.
    ///
    /// # Errors
    /// `ENOTTY` when it is not the caller's terminal or nobody's.
    pub(super) fn session_id(&self, from_master: bool) -> Result<Pid> {
        if !from_master && !self.is_controlling() {
            return Err(Errno::ENOTTY);
        }
        self.session().map(|s| s.identity().seen()).ok_or(Errno::ENOTTY)
    }

    /// Hangs the terminal up: its open files are dead from now on, its session loses it, leader and foreground hear of it.
    pub(super) fn hang_up_now(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        let (session, foreground) = {
            let mut control = self.control.lock();
            (core::mem::take(&mut control.session).upgrade(), core::mem::take(&mut control.foreground).upgrade())
        };
        self.backlog.lock().clear();
        {
            let mut line = self.line.lock();
            line.flush_input();
            line.flush_echo();
            line.start();
            let _ = line.set_termios(self.initial);
        }
        if let Some(session) = &session {
            drop(session.set_terminal(None));
            if let Some(leader) = leader_of(session) {
                signal::send_to_process(&leader, SigInfo::kernel(SIGHUP));
                signal::send_to_process(&leader, SigInfo::kernel(SIGCONT));
            }
        }
        if let Some(group) = foreground {
            signal::send_to_group(group.id(), SigInfo::kernel(SIGHUP));
            signal::send_to_group(group.id(), SigInfo::kernel(SIGCONT));
        }
        let all = PollEvents::READABLE | PollEvents::WRITABLE | PollEvents::ALWAYS;
        self.read_queue.wake_events(all);
        self.write_queue.wake_events(all);
    }
}

fn leader_of(session: &Session) -> Option<Arc<Process>> {
    crate::process::lookup_pid(session.id())
}

impl ControllingTerminal for Tty {
    fn device_number(&self) -> u64 {
        crate::fs::dev::user_dev(self.dev)
    }

    fn foreground_group(&self) -> Option<Arc<ProcessGroup>> {
        self.foreground()
    }

    fn leader_exited(&self, session: &Session) {
        let foreground = {
            let mut control = self.control.lock();
            if !control.session.upgrade().is_some_and(|s| core::ptr::eq(&*s, session)) {
                return;
            }
            control.session = Weak::new();
            core::mem::take(&mut control.foreground).upgrade()
        };
        if let Some(group) = foreground {
            signal::send_to_group(group.id(), SigInfo::kernel(SIGHUP));
            signal::send_to_group(group.id(), SigInfo::kernel(SIGCONT));
        }
    }

    fn hang_up(&self) {
        self.hang_up_now();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
