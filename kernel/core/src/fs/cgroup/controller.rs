//! Controllers: which a group hands on to those below it (`cgroup.subtree_control`), and where processes may be then.
//!
//! A group is a *domain* or *threaded*. Threads of one process may be spread over threaded groups, whose domain, the nearest
//! group above that is none, has the process as a whole. What may be where follows from what is known of a group; nothing of it is
//! stored but that it is threaded. All here is asked and changed under the tree's [`lock`].
//!
//! Reference: Linux `Documentation/admin-guide/cgroup-v2.rst` ("Controlling Controllers", "Threads"), `kernel/cgroup/cgroup.c`.

use alloc::sync::Arc;

use super::tree::{Cgroup, lock};
use crate::{Errno, Result, fs::procfs::Text};

bitflags::bitflags! {
    /// A set of controllers.
    #[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
    pub struct Controllers: u32 {
        /// `pids`: [`super::pids`].
        const PIDS = 1;
    }
}

impl Controllers {
    /// Those that share out between the threads of a process, too.
    const THREADED: Controllers = Controllers::PIDS;
    const NAMES: [(Controllers, &'static str); 1] = [(Controllers::PIDS, "pids")];

    /// Appends the names, separated by blanks, as a line; nothing if there are none.
    pub fn show(self, out: &mut Text) {
        let mut first = true;
        for (_, name) in Self::NAMES.iter().filter(|(controller, _)| self.contains(*controller)) {
            if !core::mem::take(&mut first) {
                out.push(' ');
            }
            out.push_str(name);
        }
        if !first {
            out.push('\n');
        }
    }

    /// Reads `+NAME` and `-NAME`, separated by blanks; of one that is named twice the last counts. Returns what to switch on, and off.
    ///
    /// # Errors
    /// `EINVAL`.
    pub fn parse_change(text: &str) -> Result<(Controllers, Controllers)> {
        let (mut on, mut off) = (Controllers::empty(), Controllers::empty());
        for word in text.trim().split(' ').filter(|word| !word.is_empty()) {
            let (sign, name) = word.split_at_checked(1).ok_or(Errno::EINVAL)?;
            let &(controller, _) = Self::NAMES.iter().find(|(_, known)| *known == name).ok_or(Errno::EINVAL)?;
            let (to, from) = match sign {
                "+" => (&mut on, &mut off),
                "-" => (&mut off, &mut on),
                _ => return Err(Errno::EINVAL),
            };
            *to |= controller;
            *from -= controller;
        }
        Ok((on, off))
    }
}

impl Cgroup {
    fn is_root(&self) -> bool {
        self.parent().is_none()
    }

    /// The controllers that may be used here (`cgroup.controllers`).
    pub fn controllers(&self) -> Controllers {
        self.parent().map_or(Controllers::all(), |parent| parent.subtree_control())
    }

    /// Those that groups right below may use (`cgroup.subtree_control`).
    pub fn subtree_control(&self) -> Controllers {
        self.state.lock().control
    }

    /// Whether threads are here, and not processes as a whole.
    pub fn is_threaded(&self) -> bool {
        self.state.lock().threaded
    }

    /// The group that has the processes of threads here as a whole.
    pub(super) fn domain(&self) -> &Cgroup {
        self.upwards().find(|group| !group.is_threaded()).unwrap_or(self)
    }

    /// Whether it is the domain of threaded groups, or shares out between its own threads and groups below.
    fn is_thread_root(&self) -> bool {
        let state = self.state.lock();
        !state.threaded
            && (state.threaded_children > 0 || state.has_tasks() && state.control.intersects(Controllers::THREADED))
    }

    /// Whether it may become one.
    fn can_be_thread_root(&self) -> bool {
        let state = self.state.lock();
        self.is_root()
            || !state.threaded
                && state.populated_domain_children == 0
                && (state.control - Controllers::THREADED).is_empty()
    }

    /// Whether processes can be here: not below what is threaded.
    fn is_valid_domain(&self) -> bool {
        !self.is_threaded()
            && self.upwards().skip(1).all(|above| (above.is_root() || !above.is_thread_root()) && !above.is_threaded())
    }

    /// The text of `cgroup.type`.
    pub(super) fn kind(&self) -> &'static str {
        let _lock = lock();
        if self.is_threaded() {
            "threaded"
        } else if !self.is_valid_domain() {
            "domain invalid"
        } else if self.is_thread_root() {
            "domain threaded"
        } else {
            "domain"
        }
    }

    /// Whether tasks may come here (`cgroup_migrate_vet_dst`).
    ///
    /// # Errors
    /// `EOPNOTSUPP` in an invalid domain, `EBUSY` where resources are shared out between groups below.
    pub(super) fn check_destination(&self) -> Result {
        if !self.domain().is_valid_domain() {
            return Err(Errno::EOPNOTSUPP);
        }
        if self.can_be_thread_root() || self.is_threaded() || self.subtree_control().is_empty() {
            return Ok(());
        }
        Err(Errno::EBUSY)
    }

    /// Whether controllers may be switched on for groups below (`cgroup_vet_subtree_control_enable`).
    fn check_control(&self, on: Controllers) -> Result {
        if on.is_empty() {
            return Ok(());
        }
        if !self.domain().is_valid_domain() {
            return Err(Errno::EOPNOTSUPP);
        }
        if self.is_root() {
            return Ok(());
        }
        if !(on - Controllers::THREADED).is_empty() {
            if self.is_thread_root() || self.is_threaded() {
                return Err(Errno::EOPNOTSUPP);
            }
        } else if self.can_be_thread_root() || self.is_threaded() {
            return Ok(());
        }
        // Else the tasks here would compete with whole groups.
        if self.state.lock().has_tasks() { Err(Errno::EBUSY) } else { Ok(()) }
    }

    /// Changes `cgroup.subtree_control`: all of it or nothing.
    ///
    /// # Errors
    /// `ENODEV` when the group was removed, `ENOENT` for what it may not use itself, `EBUSY` for what a group below hands on, or
    /// when there are processes here, `EOPNOTSUPP` among threads.
    pub(super) fn change_control(&self, on: Controllers, off: Controllers) -> Result {
        let _lock = lock();
        let (dead, control) = {
            let state = self.state.lock();
            (state.dead, state.control)
        };
        if dead {
            return Err(Errno::ENODEV);
        }
        let (on, off) = (on - control, off & control);
        if !self.controllers().contains(on) {
            return Err(Errno::ENOENT);
        }
        let children: alloc::vec::Vec<Arc<Cgroup>> =
            self.state.lock().children.values().map(|child| child.group.clone()).collect();
        if children.iter().any(|child| child.subtree_control().intersects(off)) {
            return Err(Errno::EBUSY);
        }
        self.check_control(on)?;
        self.state.lock().control = (control | on) - off;
        if off.contains(Controllers::PIDS) {
            children.iter().for_each(|child| child.pids.forget());
        }
        Ok(())
    }

    /// Makes the group threaded (`cgroup.type`).
    ///
    /// # Errors
    /// `ENODEV` when it was removed, `EOPNOTSUPP` with processes, or where its domain cannot have threaded groups.
    pub(super) fn make_threaded(&self) -> Result {
        let _lock = lock();
        let parent = self.parent().ok_or(Errno::EOPNOTSUPP)?;
        {
            let state = self.state.lock();
            if state.dead {
                return Err(Errno::ENODEV);
            }
            if state.threaded {
                return Ok(());
            }
            if state.populated() || !(state.control - Controllers::THREADED).is_empty() {
                return Err(Errno::EOPNOTSUPP);
            }
        }
        let domain = parent.domain();
        if !domain.is_valid_domain() || !domain.can_be_thread_root() {
            return Err(Errno::EOPNOTSUPP);
        }
        self.state.lock().threaded = true;
        parent.state.lock().threaded_children += 1;
        Ok(())
    }
}
