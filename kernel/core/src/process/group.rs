//! Process groups and sessions: [`ProcessGroup`], [`Session`].
//!
//! A group belongs to one session for its life. Processes hold their group, a group holds its session, and the pid
//! table knows both weakly, so each disappears with its last member. The controlling terminal hangs on the session.
//!
//! Locking: membership changes under `super::process`'s tree lock (see [`super`]); `members` is an interrupt-safe leaf
//! lock of its own, so that a signal can be sent to a group from a terminal's interrupt.
//! References: setpgid(2), setsid(2), credentials(7), POSIX.1-2017 3.264 (orphaned process group).

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;

use ursa_hal::sync::{IrqLock, SpinLock};

use super::Process;
use super::pid::{Identity, Pid, PidNumber};

/// A process group.
pub struct ProcessGroup {
    number: PidNumber,
    session: Arc<Session>,
    members: IrqLock<BTreeMap<Pid, Weak<Process>>>,
}

impl ProcessGroup {
    /// Makes a group without members, known under `number`.
    pub(super) fn new(number: PidNumber, session: Arc<Session>) -> Arc<ProcessGroup> {
        let group = Arc::new(ProcessGroup { number, session, members: IrqLock::new(BTreeMap::new()) });
        group.number.publish_group(&group);
        group
    }

    /// Returns the group's id in the first PID namespace.
    pub fn id(&self) -> Pid {
        self.number.get()
    }

    /// Returns its numbers in all PID namespaces.
    pub fn identity(&self) -> &Arc<Identity> {
        self.number.identity()
    }

    /// Returns the session that the group is in.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Returns the members, zombies included.
    pub fn members(&self) -> Vec<Arc<Process>> {
        self.members.lock().values().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn join(&self, process: &Arc<Process>) {
        self.members.lock().insert(process.pid(), Arc::downgrade(process));
    }

    pub(super) fn leave(&self, process: &Process) {
        let gone = self.members.lock().remove(&process.pid());
        drop(gone);
    }

    /// Returns whether no member has a parent in another group of the same session that could continue it when it
    /// stops. `ignoring` is a process that counts as gone already.
    pub fn is_orphaned(&self, ignoring: Option<&Process>) -> bool {
        !self.members().iter().any(|member| {
            if ignoring.is_some_and(|p| core::ptr::eq(p, &**member)) || member.is_zombie() {
                return false;
            }
            let Some(parent) = member.parent() else { return false };
            if parent.pid() == 1 {
                return false;
            }
            let group = parent.group();
            group.id() != self.id() && group.session().id() == self.session.id()
        })
    }
}

/// A terminal as its session sees it; implemented by the terminal layer.
pub trait ControllingTerminal: Any + Send + Sync {
    /// Returns the terminal's device number (`tty_nr` in `/proc/PID/stat`), as `makedev` encodes it.
    fn device_number(&self) -> u64;
    /// Returns the foreground group (`tpgid`).
    fn foreground_group(&self) -> Option<Arc<ProcessGroup>>;
    /// Ends the association from the terminal's side: hang-up signals to the foreground group, then no session and
    /// no foreground group any more. Called when the session leader exits.
    fn leader_exited(&self, session: &Session);
    /// vhangup(2): hangs the terminal up for everyone.
    fn hang_up(&self);
    /// For the terminal layer's own downcast.
    fn as_any(&self) -> &dyn Any;
}

/// A session.
pub struct Session {
    number: PidNumber,
    terminal: SpinLock<Option<Arc<dyn ControllingTerminal>>>,
}

impl Session {
    /// Makes a session without terminal, known under `number`.
    pub(super) fn new(number: PidNumber) -> Arc<Session> {
        let session = Arc::new(Session { number, terminal: SpinLock::new(None) });
        session.number.publish_session(&session);
        session
    }

    /// Returns the session's id, which is its leader's pid, in the first PID namespace.
    pub fn id(&self) -> Pid {
        self.number.get()
    }

    /// Returns its numbers in all PID namespaces.
    pub fn identity(&self) -> &Arc<Identity> {
        self.number.identity()
    }

    /// Returns the controlling terminal.
    pub fn terminal(&self) -> Option<Arc<dyn ControllingTerminal>> {
        self.terminal.lock().clone()
    }

    /// Sets or clears the controlling terminal and returns the former one.
    pub fn set_terminal(&self, terminal: Option<Arc<dyn ControllingTerminal>>) -> Option<Arc<dyn ControllingTerminal>> {
        core::mem::replace(&mut *self.terminal.lock(), terminal)
    }
}
