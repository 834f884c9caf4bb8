//! CPU time of a process, readable in interrupt context.

use super::Process;
use crate::sched;

impl Process {
    /// User and system nanoseconds of all threads, dead and live, what runs at this moment included.
    pub fn cpu_ns(&self) -> (u64, u64) {
        use core::sync::atomic::Ordering::Relaxed;
        let threads = self.threads.lock();
        let mut sum = (threads.dead_usage.user_ns, threads.dead_usage.system_ns);
        for thread in threads.list.iter().filter(|thread| !thread.is_dead()) {
            sum.0 += thread.usage.user_ns.load(Relaxed);
            sum.1 += thread.usage.system_ns.load(Relaxed);
            if let Some(task) = thread.task() {
                sum.0 += sched::unbooked_run_ns(&task);
            }
        }
        sum
    }
}
