//! CPU time of a process, readable in interrupt context.

use core::sync::atomic::Ordering::Relaxed;

use super::{Process, Thread};
use crate::sched;

impl Thread {
    /// User and system nanoseconds, what runs at this moment included.
    pub fn cpu_ns(&self) -> (u64, u64) {
        let booked = || (self.usage.user_ns.load(Relaxed), self.usage.system_ns.load(Relaxed));
        match self.task() {
            Some(task) => sched::with_cpu_time(&task, |unbooked| {
                let (user, system) = booked();
                if sched::ext_of(&task).last_sample_was_user() {
                    (user + unbooked, system)
                } else {
                    (user, system + unbooked)
                }
            }),
            None => booked(),
        }
    }
}

impl Process {
    /// Takes a dead thread off the list that was kept there for its tracer.
    pub(crate) fn forget_dead_thread(&self, thread: &Thread) {
        let removed = {
            let mut threads = self.threads.lock();
            let at = threads.list.iter().position(|other| core::ptr::eq(&**other, thread));
            at.map(|at| threads.list.remove(at))
        };
        drop(removed);
    }

    /// User and system nanoseconds of all threads, dead and live, what runs at this moment included.
    pub fn cpu_ns(&self) -> (u64, u64) {
        let threads = self.threads.lock();
        let mut sum = (threads.dead_usage.user_ns, threads.dead_usage.system_ns);
        for thread in threads.list.iter().filter(|thread| !thread.is_dead()) {
            let (user, system) = thread.cpu_ns();
            sum.0 += user;
            sum.1 += system;
        }
        sum
    }
}
