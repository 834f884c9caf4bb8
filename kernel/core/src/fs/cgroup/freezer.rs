//! `cgroup.freeze`: the threads of a group and of all below it rest.
//!
//! A thread rests where it would return to user mode, so it never holds anything while it does; a sleep in a system call
//! ends and is begun anew afterwards, as for a signal without a handler. Fatal signals end threads that rest. A process
//! that is stopped by a signal counts as resting, and so does a thread that stands still for its tracer, or waits for the child
//! that has its memory (vfork(2)).

use alloc::{
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::Ordering;

use linux_uapi::signal::SIGSTOP;

use super::{
    control::EVENTS,
    member::{self, group_of, is_home},
    tree::{Cgroup, News, lock},
};
use crate::{
    process::{Process, Thread, tree_lock},
    ptrace,
    sched::{self, SleepState, Work},
    signal,
};

/// Whether no thread of a process at its home can run in user mode before it is let go.
fn is_at_rest(process: &Process) -> bool {
    process.signals.is_stopped() || process.cgroup.resting.load(Ordering::SeqCst) >= process.cgroup.at_home()
}

/// The same of a thread elsewhere.
fn visitor_rests(thread: &Thread) -> bool {
    thread.cgroup.resting.load(Ordering::SeqCst) || thread.process().signals.is_stopped()
}

/// Finds out whether a group is frozen, and those above it. The caller holds the tree's [`lock`].
pub(super) fn settle(group: &Cgroup, news: &mut News) {
    for group in group.upwards() {
        let mut state = group.state.lock();
        // A member's process is alive while the lock is held, so none is dropped here.
        let frozen = group.is_freezing()
            && state.members.values().filter_map(Weak::upgrade).all(|process| is_at_rest(&process))
            && state.visitors.values().filter_map(Weak::upgrade).all(|thread| visitor_rests(&thread))
            && state.children.values().all(|child| child.group.state.lock().frozen);
        if frozen == state.frozen {
            return;
        }
        state.frozen = frozen;
        drop(state);
        news.0.push((group.arc(), EVENTS));
    }
}

/// As [`settle`] for who does not hold the lock.
pub(super) fn settle_with_lock(group: &Cgroup, news: &mut News) {
    let _lock = lock();
    settle(group, news);
}

/// Has a thread rest, or lets it go. The caller holds the tree's [`lock`].
pub(super) fn set_thread(thread: &Thread, freezing: bool) {
    if thread.cgroup.freezing.swap(freezing, Ordering::SeqCst) == freezing {
        return;
    }
    if freezing {
        signal::notify_thread(thread);
    } else if let Some(task) = thread.task() {
        sched::wake(&task, SleepState::INTERRUPTIBLE);
    }
}

/// Sets a group's `cgroup.freeze`.
pub(super) fn set(group: &Arc<Cgroup>, freeze: bool) {
    let mut news = News::default();
    let mut threads = Vec::new();
    {
        // No thread is between its birth and its process's list.
        let _tree = tree_lock();
        let _lock = lock();
        if core::mem::replace(&mut group.state.lock().freeze, freeze) == freeze {
            return;
        }
        let mut changes = false;
        let subtree = group.subtree();
        for group in &subtree {
            let above = group.parent().is_some_and(|parent| parent.is_freezing());
            let freezing = above || group.state.lock().freeze;
            if group.freezing.swap(freezing, Ordering::SeqCst) != freezing {
                changes = true;
                let first = threads.len();
                threads.extend(member::threads_in(group));
                threads[first..].iter().for_each(|thread| set_thread(thread, freezing));
            }
        }
        for group in subtree.iter().rev() {
            settle(group, &mut news);
        }
        if !changes {
            // A group above holds it in its state: who waits for the change hears that there is nothing to wait for.
            news.0.push((group.clone(), EVENTS));
        }
    }
    drop(threads);
    news.tell();
}

/// A stop of the whole process by a signal is complete: its groups may count as frozen now.
pub fn process_rests(process: &Process) {
    let threads = process.threads();
    if !threads.iter().any(|thread| thread.cgroup.is_freezing()) {
        return;
    }
    let mut news = News::default();
    let mut groups: Vec<Arc<Cgroup>> = threads.iter().map(|thread| group_of(thread)).collect();
    groups.dedup_by(|a, b| Arc::ptr_eq(a, b));
    {
        let _lock = lock();
        groups.iter().for_each(|group| settle(group, &mut news));
    }
    drop((groups, threads));
    news.tell();
}

/// The running thread rests from now on, or no longer. One that is to rest again already, after a thaw that it has not noticed, goes
/// on counting as resting: its group would not be frozen for a moment. Returns whether it is as wanted.
#[cold]
fn set_resting(thread: &Thread, rests: bool) -> bool {
    let mut news = News::default();
    let group;
    {
        let _lock = lock();
        if !rests && thread.cgroup.is_freezing() && !sched::fatal_signal_pending() {
            return false;
        }
        group = group_of(thread);
        if thread.cgroup.resting.swap(rests, Ordering::SeqCst) != rests && is_home(thread) {
            let count = &thread.process().cgroup.resting;
            if rests {
                count.fetch_add(1, Ordering::SeqCst)
            } else {
                count.fetch_sub(1, Ordering::SeqCst)
            };
        }
        settle(&group, &mut news);
    }
    drop(group);
    news.tell();
    true
}

/// Whether the thread is to rest now. A fatal signal, a stop of its process and a stop for its tracer come first.
fn is_to_rest(thread: &Thread) -> bool {
    thread.cgroup.is_freezing()
        && !sched::fatal_signal_pending()
        && !signal::is_to_stop(thread)
        && !ptrace::is_asked_to_stop(thread)
}

/// Whether SIGSTOP is pending. A thread takes it before it rests, so that what is stopped before it is frozen is stopped when it is
/// frozen and afterwards, whenever it comes to run.
fn stop_is_pending(thread: &Thread) -> bool {
    thread.signals.pending().union(thread.process().signals.pending()).contains(SIGSTOP)
}

/// Rests while the thread is to. Called by the thread itself on its way to user mode. Returns whether it did: then there may be more
/// to do on that way.
pub fn rest_while_freezing(thread: &Thread) -> bool {
    let mut rested = false;
    loop {
        let rests = thread.cgroup.resting.load(Ordering::SeqCst);
        if is_to_rest(thread) && (rests || !stop_is_pending(thread)) {
            rest(thread);
            rested = true;
        } else if !rests || set_resting(thread, false) {
            return rested;
        } else if !is_to_rest(thread) {
            // It stops, for a signal or its tracer, and goes on resting there.
            return rested;
        }
    }
}

/// Rests until the thread is not to any more.
fn rest(thread: &Thread) {
    set_resting(thread, true);
    loop {
        // What is pending is looked for afterwards in any case, and must not keep the thread awake.
        sched::with_current(|ext| ext.take_work(Work::SIGNAL));
        sched::prepare_to_sleep(SleepState::INTERRUPTIBLE);
        if !is_to_rest(thread) {
            break;
        }
        sched::schedule();
    }
    sched::finish_sleep();
}

/// Runs `f`, in which the running thread sleeps for its tracer or for the child that has its memory: it rests there.
pub fn resting_during<R>(thread: &Thread, f: impl FnOnce() -> R) -> R {
    set_resting(thread, true);
    let result = f();
    if !set_resting(thread, false) {
        // On its way to user mode it sees to that itself, and rests until then.
        sched::with_current(|ext| ext.add_work(Work::SIGNAL));
    }
    result
}
