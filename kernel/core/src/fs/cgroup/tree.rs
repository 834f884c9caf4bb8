//! Groups. Who is in them is in [`super::member`].
//!
//! Locking: [`lock`] serialises every change of the tree, of membership and of the freezer's state; within it the `state`
//! of one group at a time. Order: process tree lock, [`lock`], a group's `state`, then a process's job and thread locks.
//! Who listens is told when all locks are dropped ([`News`]).

use alloc::{
    boxed::Box,
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ursa_hal::sync::{Once, SpinLock, SpinLockGuard};

use super::{controller::Controllers, freezer, member, node::Nodes, notice, pids::Pids};
use crate::{
    Errno, Result,
    fs::{
        inode::{Inode, NewInode},
        permission::{self, MAY_WRITE},
    },
    process::{Credentials, Pid, Process, Thread},
};

/// Groups that may exist at once: as many as Linux numbers for its controllers.
const GROUPS_MAX: u32 = 65_535;
/// Groups below one another: what walks up the tree under a spin lock stays short.
const DEPTH_MAX: u32 = 256;
/// The numbers from one group's id to the next: the group's files are numbered in between.
pub(super) const ID_STEP: u64 = 32;

static LOCK: SpinLock<()> = SpinLock::new(());
static NEXT_ID: AtomicU64 = AtomicU64::new(1);
static GROUPS: AtomicU32 = AtomicU32::new(0);

/// Locks the tree, membership and the freezer.
pub(super) fn lock() -> SpinLockGuard<'static, ()> {
    LOCK.lock()
}

/// A group.
pub struct Cgroup {
    me: Weak<Cgroup>,
    id: u64,
    name: Box<[u8]>,
    parent: Option<Arc<Cgroup>>,
    depth: u32,
    pub(super) state: SpinLock<State>,
    /// Its own `cgroup.freeze` or one above says so.
    pub(super) freezing: AtomicBool,
    pub(super) nodes: Nodes,
    pub(super) pids: Pids,
}

/// A group below another.
#[derive(Clone)]
pub(super) struct Child {
    pub group: Arc<Cgroup>,
    pub inode: Arc<Inode>,
}

/// What changes about a group.
#[derive(Default)]
pub(super) struct State {
    /// By id, so that a listing neither repeats nor skips what stays.
    pub children: BTreeMap<u64, Child>,
    names: BTreeMap<Box<[u8]>, u64>,
    /// Processes at home here with a living thread that is.
    pub members: BTreeMap<Pid, Weak<Process>>,
    /// Living threads whose process is at home in another group.
    pub visitors: BTreeMap<usize, Weak<Thread>>,
    /// Groups right below with a task in them or below them: domains, and threaded ones.
    pub populated_domain_children: u32,
    pub populated_threaded_children: u32,
    /// It is not a domain: see [`super::controller`].
    pub threaded: bool,
    pub threaded_children: u32,
    /// `cgroup.subtree_control`
    pub control: Controllers,
    pub descendants: u32,
    /// `cgroup.freeze`
    pub freeze: bool,
    /// All processes here and below rest.
    pub frozen: bool,
    pub dead: bool,
    /// `cgroup.max.depth`; `None` is `max`.
    pub max_depth: Option<u32>,
    /// `cgroup.max.descendants`
    pub max_descendants: Option<u32>,
}

impl State {
    pub fn has_tasks(&self) -> bool {
        !self.members.is_empty() || !self.visitors.is_empty()
    }

    pub fn populated(&self) -> bool {
        self.has_tasks() || self.populated_domain_children > 0 || self.populated_threaded_children > 0
    }
}

/// Groups with the file of each ([`super::control`]) that says something else now. Told when no lock is held any more.
#[derive(Default)]
#[must_use = "listeners are to be told"]
pub struct News(pub(super) Vec<(Arc<Cgroup>, usize)>);

impl News {
    /// Wakes pollers and inotify's listeners. No spin lock may be held.
    pub fn tell(self) {
        for (group, file) in self.0 {
            notice::file_changed(&group, file);
        }
    }
}

/// How many groups there are, the root among them.
pub fn count() -> u32 {
    GROUPS.load(Ordering::Relaxed) + 1
}

/// The group at the root, in which every process starts.
pub fn root() -> &'static Arc<Cgroup> {
    static ROOT: Once<Arc<Cgroup>> = Once::new();
    ROOT.call_once(|| Cgroup::build(b"", None))
}

impl Cgroup {
    fn build(name: &[u8], parent: Option<Arc<Cgroup>>) -> Arc<Cgroup> {
        let (depth, freezing) = parent.as_ref().map_or((0, false), |p| (p.depth + 1, p.is_freezing()));
        Arc::new_cyclic(|me| Cgroup {
            me: me.clone(),
            id: NEXT_ID.fetch_add(ID_STEP, Ordering::Relaxed),
            name: Box::from(name),
            parent,
            depth,
            state: SpinLock::new(State { frozen: freezing, ..State::default() }),
            freezing: AtomicBool::new(freezing),
            nodes: Nodes::default(),
            pids: Pids::new(),
        })
    }

    /// A counted reference.
    pub(super) fn arc(&self) -> Arc<Cgroup> {
        // `self` is only ever seen through an `Arc`, so the count is not zero.
        self.me.upgrade().unwrap_or_else(|| unreachable!("a group outlives its references"))
    }

    /// Its number, also its directory's inode number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its name in the group above.
    pub(super) fn name(&self) -> &[u8] {
        &self.name
    }

    /// The group above; the root has none.
    pub fn parent(&self) -> Option<&Arc<Cgroup>> {
        self.parent.as_ref()
    }

    /// Whether it was removed.
    pub fn is_dead(&self) -> bool {
        self.state.lock().dead
    }

    /// Whether its processes are to rest.
    pub fn is_freezing(&self) -> bool {
        self.freezing.load(Ordering::SeqCst)
    }

    /// The path from the root, with a leading slash, as `/proc/PID/cgroup` shows it.
    pub fn path(&self) -> Vec<u8> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = self;
        while let Some(parent) = &at.parent {
            names.push(&at.name);
            at = parent;
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        if path.is_empty() {
            path.push(b'/');
        }
        path
    }

    /// The group right below called `name`.
    pub(super) fn child(&self, name: &[u8]) -> Option<Child> {
        let state = self.state.lock();
        state.children.get(state.names.get(name)?).cloned()
    }

    /// Makes a group below this one; its directory. The directory's lock is held.
    ///
    /// # Errors
    /// `ENODEV` when this one was removed, `EAGAIN` beyond a limit of its own or of one above, `ENOSPC` beyond the system's.
    pub(super) fn create_child(self: &Arc<Self>, name: &[u8], new: &NewInode) -> Result<Arc<Inode>> {
        if GROUPS.fetch_add(1, Ordering::Relaxed) >= GROUPS_MAX {
            GROUPS.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::ENOSPC);
        }
        // From here on the group's end gives its place back.
        let group = Cgroup::build(name, Some(self.clone()));
        let inode = super::node::make_directory(&group, new);
        let _lock = lock();
        if self.depth >= DEPTH_MAX {
            return Err(Errno::EAGAIN);
        }
        for (above, level) in self.upwards().zip(1..) {
            let state = above.state.lock();
            if state.dead {
                return Err(Errno::ENODEV);
            }
            if state.max_descendants.is_some_and(|max| state.descendants >= max)
                || state.max_depth.is_some_and(|max| level > max)
            {
                return Err(Errno::EAGAIN);
            }
        }
        // It may have been built before a freeze of this one that is over by now, or the other way round.
        let freezing = self.is_freezing();
        group.freezing.store(freezing, Ordering::SeqCst);
        group.state.lock().frozen = freezing;
        for above in self.upwards() {
            above.state.lock().descendants += 1;
        }
        let mut state = self.state.lock();
        state.names.insert(Box::from(name), group.id);
        state.children.insert(group.id, Child { group, inode: inode.clone() });
        Ok(inode)
    }

    /// Removes the group `child`, whose name in this one is `name`. The locks of both directories are held.
    ///
    /// # Errors
    /// `EBUSY` while it has processes or groups.
    pub(super) fn remove_child(&self, name: &[u8], child: &Arc<Cgroup>) -> Result {
        let removed = {
            let _lock = lock();
            {
                let mut state = child.state.lock();
                if state.populated() || !state.children.is_empty() {
                    return Err(Errno::EBUSY);
                }
                state.dead = true;
                if state.threaded {
                    drop(state);
                    self.state.lock().threaded_children -= 1;
                }
            }
            for above in self.upwards() {
                above.state.lock().descendants -= 1;
            }
            let mut state = self.state.lock();
            state.names.remove(name);
            state.children.remove(&child.id)
        };
        drop(removed);
        let mut news = News::default();
        freezer::settle_with_lock(self, &mut news);
        news.tell();
        child.nodes.end();
        Ok(())
    }

    /// This group and those above it, the root last.
    pub(super) fn upwards(&self) -> impl Iterator<Item = &Cgroup> {
        core::iter::successors(Some(self), |group| group.parent.as_deref())
    }

    /// This group and all below it, each before those below it. For callers that hold [`lock`].
    pub(super) fn subtree(&self) -> Vec<Arc<Cgroup>> {
        let mut groups = alloc::vec![self.arc()];
        let mut next = 0;
        while next < groups.len() {
            let group = groups[next].clone();
            groups.extend(group.state.lock().children.values().map(|child| child.group.clone()));
            next += 1;
        }
        groups
    }

    /// The living processes with a task here or below, for a caller that keeps the process tree locked until it is done with
    /// them: none is born and none is added meanwhile.
    pub(super) fn processes_of_subtree(&self) -> Vec<Arc<Process>> {
        let _lock = lock();
        let mut all = Vec::new();
        for group in self.subtree() {
            all.extend(member::processes_in(&group));
            all.extend(member::visitors_in(&group).iter().map(|thread| thread.process().clone()));
        }
        all.sort_unstable_by_key(|process| process.pid());
        all.dedup_by_key(|process| process.pid());
        all
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.parent.is_some() {
            GROUPS.fetch_sub(1, Ordering::Relaxed);
        }
        // Groups above that only this one held end here, one after the other: no recursion as deep as the tree was.
        let mut above = self.parent.take();
        while let Some(mut group) = above.and_then(Arc::into_inner) {
            above = group.parent.take();
            if above.is_some() {
                GROUPS.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// Whether `cred` may move processes from one group to another: it must be able to write `cgroup.procs` of the group
/// under which both lie, so that nobody moves what was not delegated to him.
///
/// # Errors
/// `EACCES`.
pub(super) fn may_move(from: &Arc<Cgroup>, to: &Arc<Cgroup>, cred: &Credentials) -> Result {
    let (mut a, mut b) = (from, to);
    while !Arc::ptr_eq(a, b) {
        let deeper = if a.depth >= b.depth { &mut a } else { &mut b };
        let Some(parent) = &deeper.parent else { break };
        *deeper = parent;
    }
    may_write_procs(a, cred)
}

/// Whether `cred` may write a group's `cgroup.procs`.
///
/// # Errors
/// `EACCES`.
pub(super) fn may_write_procs(group: &Arc<Cgroup>, cred: &Credentials) -> Result {
    permission::check(&*super::node::procs_inode(group)?, MAY_WRITE, cred)
}
