//! `cgroup.freeze`: the threads of a group and of all below it rest.
//!
//! A thread rests where it would return to user mode, so it never holds anything while it does; a sleep in a system call
//! ends and is begun anew afterwards, as for a signal without a handler. Fatal signals end threads that rest. A process
//! that is stopped by a signal counts as resting.

use alloc::sync::{Arc, Weak};
use core::sync::atomic::Ordering;

use super::tree::{Cgroup, News, lock};
use crate::{
    process::{Process, Thread},
    sched::{self, SleepState, Work},
    signal,
};

/// Whether no thread of a process can run in user mode before it is let go.
fn is_at_rest(process: &Process) -> bool {
    process.signals.is_stopped() || process.cgroup.resting.load(Ordering::SeqCst) >= process.live_threads()
}

/// Finds out whether a group is frozen, and those above it. The caller holds the tree's [`lock`].
pub(super) fn settle(group: &Cgroup, news: &mut News) {
    for group in group.upwards() {
        let mut state = group.state.lock();
        // A member's process is alive while the lock is held, so none is dropped here.
        let frozen = group.is_freezing()
            && state.members.values().filter_map(Weak::upgrade).all(|process| is_at_rest(&process))
            && state.children.values().all(|child| child.group.state.lock().frozen);
        if frozen == state.frozen {
            return;
        }
        state.frozen = frozen;
        drop(state);
        news.0.push(group.arc());
    }
}

/// As [`settle`] for who does not hold the lock.
pub(super) fn settle_with_lock(group: &Cgroup, news: &mut News) {
    let _lock = lock();
    settle(group, news);
}

/// Has the threads of a process rest, or lets them go. The caller holds the tree's [`lock`].
pub(super) fn set_process(process: &Process, freezing: bool) {
    if process.cgroup.freezing.swap(freezing, Ordering::SeqCst) == freezing {
        return;
    }
    for thread in process.threads() {
        if freezing {
            signal::notify_thread(&thread);
        } else if let Some(task) = thread.task() {
            sched::wake(&task, SleepState::INTERRUPTIBLE);
        }
    }
}

/// Sets a group's `cgroup.freeze`.
pub(super) fn set(group: &Arc<Cgroup>, freeze: bool) {
    let mut news = News::default();
    {
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
                for process in group.members() {
                    set_process(&process, freezing);
                }
            }
        }
        for group in subtree.iter().rev() {
            settle(group, &mut news);
        }
        if !changes {
            // A group above holds it in its state: who waits for the change hears that there is nothing to wait for.
            news.0.push(group.clone());
        }
    }
    news.tell();
}

/// Something happened that may let the process's group count as frozen, or no longer.
#[cold]
fn look_again(process: &Process) {
    let mut news = News::default();
    {
        let _lock = lock();
        settle(&process.cgroup.group(), &mut news);
    }
    news.tell();
}

/// A stop of the whole process by a signal is complete.
pub fn process_rests(process: &Process) {
    if process.cgroup.is_freezing() {
        look_again(process);
    }
}

/// A thread that others survive is gone.
pub fn thread_exits(process: &Process) {
    if process.cgroup.is_freezing() {
        look_again(process);
    }
}

/// Rests while the process is to. Called by the thread itself on its way to user mode; comes back early when the thread
/// is to end or its process to stop.
pub fn rest_while_freezing(thread: &Thread) {
    let process = thread.process();
    let over = || !process.cgroup.is_freezing() || sched::fatal_signal_pending() || process.signals.is_stopping();
    if over() {
        return;
    }
    process.cgroup.resting.fetch_add(1, Ordering::SeqCst);
    look_again(process);
    loop {
        // What is pending is looked for afterwards in any case, and must not keep the thread awake.
        sched::with_current(|ext| ext.take_work(Work::SIGNAL));
        sched::prepare_to_sleep(SleepState::INTERRUPTIBLE);
        if over() {
            break;
        }
        sched::schedule();
    }
    sched::finish_sleep();
    process.cgroup.resting.fetch_sub(1, Ordering::SeqCst);
    look_again(process);
}
