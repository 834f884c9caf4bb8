//! Which tasks are in which group: births, deaths, moves.
//!
//! A process has a group, its *home*; those of its threads that were moved to another threaded group of the same domain are
//! *visitors* there. Everything here changes under the tree's [`lock`], and moves under the process tree's lock as well, so that no
//! thread is between its birth and its place in the list meanwhile.

use alloc::{
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ursa_hal::sync::SpinLock;

use super::{
    freezer, pids,
    tree::{Cgroup, News, State, lock, may_move, may_write_procs},
};
use crate::{
    Errno, Result,
    process::{Process, Thread, tree_lock},
};

/// The place of a process in the tree.
pub struct Membership {
    home: SpinLock<Arc<Cgroup>>,
    /// Living threads that are at home, and those of them that rest.
    at_home: AtomicU32,
    pub(super) resting: AtomicU32,
}

impl Membership {
    /// For a process that is not born yet.
    pub fn new(home: Arc<Cgroup>) -> Membership {
        Membership { home: SpinLock::new(home), at_home: AtomicU32::new(0), resting: AtomicU32::new(0) }
    }

    /// The group: after its end the one it was in.
    pub fn group(&self) -> Arc<Cgroup> {
        self.home.lock().clone()
    }

    pub(super) fn at_home(&self) -> u32 {
        self.at_home.load(Ordering::Relaxed)
    }

    fn replace(&self, home: Arc<Cgroup>) -> Arc<Cgroup> {
        core::mem::replace(&mut *self.home.lock(), home)
    }
}

/// The place of a thread.
#[derive(Default)]
pub struct Place {
    /// Where it counts as a task; `None` before its birth and when it is gone.
    group: SpinLock<Option<Arc<Cgroup>>>,
    /// It lives.
    counted: AtomicBool,
    /// It is to rest.
    pub(super) freezing: AtomicBool,
    /// It does.
    pub(super) resting: AtomicBool,
}

impl Place {
    /// Whether the thread is to rest.
    #[inline]
    pub fn is_freezing(&self) -> bool {
        self.freezing.load(Ordering::SeqCst)
    }

    fn replace(&self, group: Option<Arc<Cgroup>>) -> Option<Arc<Cgroup>> {
        core::mem::replace(&mut *self.group.lock(), group)
    }
}

/// The group of a thread.
pub fn group_of(thread: &Thread) -> Arc<Cgroup> {
    let own = thread.cgroup.group.lock().clone();
    own.unwrap_or_else(|| thread.process().cgroup.group())
}

/// Whether a thread is where its process is. For callers that hold [`lock`].
pub(super) fn is_home(thread: &Thread) -> bool {
    Arc::ptr_eq(&group_of(thread), &thread.process().cgroup.group())
}

/// Names a thread among visitors.
fn key(thread: &Thread) -> usize {
    core::ptr::from_ref(thread).addr()
}

/// Changes who is in a group, and tells those above if it became empty or is so no more.
fn change_tasks(group: &Arc<Cgroup>, news: &mut News, change: impl FnOnce(&mut State)) {
    let step = |group: &Cgroup, change: &mut dyn FnMut(&mut State)| {
        let mut state = group.state.lock();
        let was = state.populated();
        change(&mut state);
        (state.populated() != was).then_some((!was, state.threaded))
    };
    let mut change = Some(change);
    let mut changed = step(group, &mut |state| {
        if let Some(change) = change.take() {
            change(state);
        }
    });
    let mut at = group;
    while let Some((populated, threaded)) = changed {
        news.0.push((at.clone(), super::control::EVENTS));
        let Some(parent) = at.parent() else { break };
        changed = step(parent, &mut |state| {
            let count =
                if threaded { &mut state.populated_threaded_children } else { &mut state.populated_domain_children };
            *count = count.wrapping_add_signed(if populated { 1 } else { -1 });
        });
        at = parent;
    }
}

/// Puts a living thread into a group: at home if that is its process's.
fn enter(thread: &Arc<Thread>, group: &Arc<Cgroup>, news: &mut News) {
    let process = thread.process();
    if Arc::ptr_eq(group, &process.cgroup.group()) {
        if process.cgroup.at_home.fetch_add(1, Ordering::Relaxed) == 0 {
            let member = Arc::downgrade(process);
            change_tasks(group, news, |state| drop(state.members.insert(process.pid(), member)));
        }
        let rests = thread.cgroup.resting.load(Ordering::SeqCst);
        process.cgroup.resting.fetch_add(rests.into(), Ordering::SeqCst);
    } else {
        let visitor = Arc::downgrade(thread);
        change_tasks(group, news, |state| drop(state.visitors.insert(key(thread), visitor)));
    }
}

/// Takes a living thread out of the group that it is in.
fn leave_group(thread: &Thread, group: &Arc<Cgroup>, news: &mut News) {
    let process = thread.process();
    if Arc::ptr_eq(group, &process.cgroup.group()) {
        let rests = thread.cgroup.resting.load(Ordering::SeqCst);
        process.cgroup.resting.fetch_sub(rests.into(), Ordering::SeqCst);
        if process.cgroup.at_home.fetch_sub(1, Ordering::Relaxed) == 1 {
            change_tasks(group, news, |state| drop(state.members.remove(&process.pid())));
        }
    } else {
        change_tasks(group, news, |state| drop(state.visitors.remove(&key(thread))));
    }
}

/// A thread is born, the first of a new process if `is_new`: in `into`, or where `parent` is now. The caller holds the process
/// tree's lock.
///
/// # Errors
/// `ENODEV` when `into` was removed, `EAGAIN` beyond a limit, those of [`Cgroup::check_destination`].
pub fn join(
    thread: &Arc<Thread>,
    is_new: bool,
    parent: Option<&Thread>,
    into: Option<&Arc<Cgroup>>,
    news: &mut News,
) -> Result {
    let process = thread.process();
    let former = {
        let _lock = lock();
        let group = match (into, parent) {
            (Some(group), _) if group.is_dead() => return Err(Errno::ENODEV),
            (Some(group), _) => {
                group.check_destination()?;
                group.clone()
            }
            (None, Some(parent)) => group_of(parent),
            (None, None) => process.cgroup.group(),
        };
        pids::try_charge(&group, news)?;
        let former = is_new.then(|| process.cgroup.replace(group.clone()));
        thread.cgroup.counted.store(true, Ordering::Relaxed);
        thread.cgroup.freezing.store(group.is_freezing(), Ordering::SeqCst);
        // Where it is to rest it will before it runs: a frozen group stays frozen meanwhile (Linux, `cgroup_post_fork`).
        enter(thread, &group, news);
        thread.cgroup.replace(Some(group));
        former
    };
    drop(former);
    Ok(())
}

/// A thread ends. It counts as a task until [`gone`].
pub fn leave(thread: &Thread) {
    let mut news = News::default();
    let group = group_of(thread);
    {
        let _lock = lock();
        if thread.cgroup.counted.swap(false, Ordering::Relaxed) {
            // It may have been moved since.
            let group = group_of(thread);
            leave_group(thread, &group, &mut news);
            freezer::settle(&group, &mut news);
        }
    }
    drop(group);
    news.tell();
}

/// Takes back what [`join`] did for a thread that is not born after all. The caller holds the process tree's lock.
pub fn unjoin(thread: &Thread, news: &mut News) {
    let group = group_of(thread);
    {
        let _lock = lock();
        thread.cgroup.counted.store(false, Ordering::Relaxed);
        leave_group(thread, &group, news);
        freezer::settle(&group, news);
    }
    gone(thread);
}

/// A thread that has ended is a task no more.
pub fn gone(thread: &Thread) {
    if let Some(group) = thread.cgroup.replace(None) {
        pids::uncharge(&group, 1);
        // What `/proc` shows of the process until it is gone, too, is its home.
        drop(group);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(group) = self.group.get_mut().take() {
            pids::uncharge(&group, 1);
        }
    }
}

/// Moves a living thread; the caller holds the locks, and gets what to drop without them.
fn move_thread(thread: &Arc<Thread>, to: &Arc<Cgroup>, touched: &mut Vec<Arc<Cgroup>>) {
    if let Some(from) = thread.cgroup.replace(Some(to.clone())) {
        if !Arc::ptr_eq(&from, to) {
            pids::charge(to, 1);
            pids::uncharge(&from, 1);
        }
        if !touched.iter().any(|group| Arc::ptr_eq(group, &from)) {
            touched.push(from);
        }
    }
    freezer::set_thread(thread, to.is_freezing());
}

/// Moves a process to another group, all its threads.
///
/// # Errors
/// `ENODEV` when the group was removed, `ESRCH` when the process has ended, those of [`Cgroup::check_destination`].
pub(super) fn attach(process: &Arc<Process>, to: &Arc<Cgroup>) -> Result {
    let mut news = News::default();
    let mut touched = Vec::new();
    let threads;
    let former = {
        let _tree = tree_lock();
        threads = process.threads();
        let _lock = lock();
        if to.is_dead() {
            return Err(Errno::ENODEV);
        }
        to.check_destination()?;
        let living = || threads.iter().filter(|thread| thread.cgroup.counted.load(Ordering::Relaxed));
        if living().next().is_none() {
            return Err(Errno::ESRCH);
        }
        let home = process.cgroup.group();
        if Arc::ptr_eq(&home, to) && living().all(|thread| Arc::ptr_eq(&group_of(thread), to)) {
            return Ok(());
        }
        // In before out, so that what is above both does not become empty in between.
        let (member, pid) = (Arc::downgrade(process), process.pid());
        change_tasks(to, &mut news, |state| drop(state.members.insert(pid, member)));
        let mut resting = 0;
        for thread in living() {
            let from = group_of(thread);
            if !Arc::ptr_eq(&from, &home) {
                change_tasks(&from, &mut news, |state| drop(state.visitors.remove(&key(thread))));
            }
            resting += u32::from(thread.cgroup.resting.load(Ordering::SeqCst));
            move_thread(thread, to, &mut touched);
        }
        if process.cgroup.at_home() > 0 && !Arc::ptr_eq(&home, to) {
            change_tasks(&home, &mut news, |state| drop(state.members.remove(&pid)));
        }
        process.cgroup.at_home.store(living().count() as u32, Ordering::Relaxed);
        process.cgroup.resting.store(resting, Ordering::SeqCst);
        let former = process.cgroup.replace(to.clone());
        touched.iter().for_each(|group| freezer::settle(group, &mut news));
        freezer::settle(to, &mut news);
        former
    };
    drop((former, touched, threads));
    news.tell();
    Ok(())
}

/// Moves one thread between groups of one domain.
///
/// # Errors
/// As [`attach`]; `EOPNOTSUPP` to another domain.
pub(super) fn attach_thread(thread: &Arc<Thread>, to: &Arc<Cgroup>) -> Result {
    let mut news = News::default();
    let mut touched = Vec::new();
    {
        let _tree = tree_lock();
        let _lock = lock();
        if to.is_dead() {
            return Err(Errno::ENODEV);
        }
        to.check_destination()?;
        if !thread.cgroup.counted.load(Ordering::Relaxed) {
            return Err(Errno::ESRCH);
        }
        let from = group_of(thread);
        if !core::ptr::eq(from.domain(), to.domain()) {
            return Err(Errno::EOPNOTSUPP);
        }
        if Arc::ptr_eq(&from, to) {
            return Ok(());
        }
        enter(thread, to, &mut news);
        leave_group(thread, &from, &mut news);
        move_thread(thread, to, &mut touched);
        touched.push(from);
        touched.iter().for_each(|group| freezer::settle(group, &mut news));
        freezer::settle(to, &mut news);
    }
    drop(touched);
    news.tell();
    Ok(())
}

/// Whether `thread` may make a child, a thread of its own process if `is_thread`, in `group` (`CLONE_INTO_CGROUP`).
///
/// # Errors
/// `ENOENT` when the group was removed, `EACCES`, those of [`Cgroup::check_destination`], `EOPNOTSUPP` for a thread in another domain.
pub fn may_fork_into(thread: &Thread, group: &Arc<Cgroup>, is_thread: bool) -> Result {
    if group.is_dead() {
        return Err(Errno::ENOENT);
    }
    let from = group_of(thread);
    let cred = thread.cred();
    may_write_procs(group, &cred)?;
    may_move(&from, group, &cred)?;
    let _lock = lock();
    group.check_destination()?;
    if is_thread && !core::ptr::eq(from.domain(), group.domain()) { Err(Errno::EOPNOTSUPP) } else { Ok(()) }
}

/// The living processes at home in a group.
pub(super) fn processes_in(group: &Cgroup) -> Vec<Arc<Process>> {
    group.state.lock().members.values().filter_map(Weak::upgrade).collect()
}

/// The living threads that visit a group.
pub(super) fn visitors_in(group: &Cgroup) -> Vec<Arc<Thread>> {
    group.state.lock().visitors.values().filter_map(Weak::upgrade).collect()
}

/// The living threads in a group.
pub(super) fn threads_in(group: &Arc<Cgroup>) -> Vec<Arc<Thread>> {
    let mut threads = visitors_in(group);
    for process in processes_in(group) {
        let here = |thread: &Arc<Thread>| !thread.is_dead() && Arc::ptr_eq(&group_of(thread), group);
        threads.extend(process.threads().into_iter().filter(here));
    }
    threads
}

/// The processes that a domain has as a whole: those at home in it or in its threaded groups, by number.
pub(super) fn processes_of_domain(domain: &Arc<Cgroup>) -> Vec<Arc<Process>> {
    let _lock = lock();
    let (mut groups, mut next, mut all) = (alloc::vec![domain.clone()], 0, Vec::new());
    while next < groups.len() {
        let group = groups[next].clone();
        next += 1;
        all.extend(processes_in(&group));
        all.extend(visitors_in(&group).iter().map(|thread| thread.process().clone()));
        let below: Vec<Arc<Cgroup>> = group.state.lock().children.values().map(|child| child.group.clone()).collect();
        groups.extend(below.into_iter().filter(|group| group.is_threaded()));
    }
    all.sort_unstable_by_key(|process| process.pid());
    all.dedup_by_key(|process| process.pid());
    all
}
