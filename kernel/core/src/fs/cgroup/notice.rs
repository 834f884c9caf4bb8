//! When listeners hear that a group's file says something else.
//!
//! A file tells of a change at once, and then not again for 10 ms: what changes meanwhile is told together when they are
//! over. So a state that is left as soon as it is entered is one event, as on Linux, whose listeners count on that: they
//! look at the file once they hear of it.
//!
//! References: Linux `kernel/cgroup/cgroup.c` (`cgroup_file_notify`, `CGROUP_FILE_NOTIFY_MIN_INTV`).

use alloc::{collections::BTreeMap, sync::Arc};

use ursa_hal::sync::{Once, SpinLock};

use super::{control::CONTROLS, tree::Cgroup};
use crate::{
    sched,
    time::{self, Deadline},
    wait::WaitQueue,
};

/// The time from one event of a file to the next.
const INTERVAL_NS: u64 = 10_000_000;

/// What has been told of one file.
#[derive(Clone, Copy, Default)]
struct Told {
    /// When it was told of last, on the monotonic clock.
    at_ns: Option<u64>,
    /// It is in the list of what is told later.
    is_listed: bool,
}

/// What has been told of a group's files.
#[derive(Default)]
pub(super) struct Notices(SpinLock<[Told; CONTROLS.len()]>);

/// A group's file that changed soon after it was last told of.
struct Later {
    group: Arc<Cgroup>,
    file: usize,
}

/// What is told later, by the time of that and a running number.
#[derive(Default)]
struct List {
    entries: BTreeMap<(u64, u64), Later>,
    next: u64,
}

static LIST: SpinLock<List> = SpinLock::new(List { entries: BTreeMap::new(), next: 0 });
static WORK: WaitQueue = WaitQueue::new();

/// A file of a group says something else. Not to be called under a spin lock.
pub(super) fn file_changed(group: &Arc<Cgroup>, file: usize) {
    static TASK: Once<bool> = Once::new();
    // Without the task everything is told at once.
    let can_wait = *TASK.call_once(|| sched::spawn_kernel("cgroup", run).is_some());
    let now = time::monotonic_ns();
    let due = {
        let mut told = group.nodes.notices.0.lock();
        let told = &mut told[file];
        if told.is_listed {
            return;
        }
        let due = told.at_ns.map(|last| last + INTERVAL_NS).filter(|due| can_wait && now < *due);
        told.is_listed = due.is_some();
        if due.is_none() {
            told.at_ns = Some(now);
        }
        due
    };
    let Some(due) = due else { return group.nodes.tell(group, file) };
    let mut list = LIST.lock();
    let number = list.next;
    list.next += 1;
    list.entries.insert((due, number), Later { group: group.clone(), file });
    drop(list);
    WORK.wake_all();
}

/// When the first of the list is due.
fn first_due() -> Option<u64> {
    LIST.lock().entries.first_key_value().map(|((due, _), _)| *due)
}

/// The kernel task.
fn run() {
    loop {
        let due = WORK.wait_until(first_due);
        let now = time::monotonic_ns();
        if now < due {
            // Another file may be due before.
            WORK.sleep_until_or(Deadline::monotonic(due), || first_due().is_some_and(|first| first < due));
            continue;
        }
        let Some((_, Later { group, file })) = LIST.lock().entries.pop_first() else { continue };
        {
            let mut told = group.nodes.notices.0.lock();
            told[file] = Told { at_ns: Some(now), is_listed: false };
        }
        if !group.is_dead() {
            group.nodes.tell(&group, file);
        }
    }
}
