//! Placement: which CPU a waking task goes to, what an idle CPU pulls, and the periodic evening-out.
//!
//! A task never enters another CPU's queue while it is still on the stack of the one that it left (`is_on_cpu`): two CPUs
//! that wait for each other's outgoing task would deadlock in the switch. Such a task stays with its CPU.

use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use ursa_hal::smp;
use ursa_hal::task::Task;

use super::entity::TaskExt;
use super::{CPUS, IDLE, enqueue_on, online_cpus};

/// Chooses a CPU for a task that woke. Interrupts are off.
pub(super) fn select_cpu(task: &Arc<Task>, ext: &TaskExt, handoff: bool) -> usize {
    let former = ext.cpu();
    let allowed = ext.affinity() & online_cpus();
    if task.is_on_cpu() {
        return former;
    }
    if allowed == 0 {
        // Only before the first CPU schedules, or after every CPU of the mask went away: any will do.
        return if online_cpus() >> former & 1 != 0 { former } else { online_cpus().trailing_zeros().min(63) as usize };
    }
    let here = smp::current_cpu();
    let may_use = |cpu: usize| allowed >> cpu & 1 != 0;
    let idle = IDLE.load(Relaxed) & allowed;
    if handoff && may_use(here) && CPUS.on(here).runnable.load(Relaxed) <= 1 {
        return here;
    }
    if idle >> former & 1 != 0 {
        return former;
    }
    if idle != 0 {
        return idle.trailing_zeros() as usize;
    }
    let least = bits(allowed).min_by_key(|&cpu| CPUS.on(cpu).load.load(Relaxed)).unwrap_or(former);
    let gain = |cpu: usize| CPUS.on(cpu).load.load(Relaxed);
    // Stay where the caches are warm unless that CPU is clearly busier.
    if may_use(former) && gain(former) <= gain(least) + gain(least) / 4 { former } else { least }
}

fn bits(mut set: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let cpu = (set != 0).then(|| set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(cpu)
    })
}

/// Takes a task for a CPU that has none.
pub(super) fn pull_for_idle(cpu: usize) -> Option<Arc<Task>> {
    let busiest = bits(online_cpus() & !(1 << cpu)).max_by_key(|&other| CPUS.on(other).runnable.load(Relaxed))?;
    if CPUS.on(busiest).runnable.load(Relaxed) < 2 {
        return None;
    }
    steal(busiest, cpu)
}

fn steal(from: usize, to: usize) -> Option<Arc<Task>> {
    let other = CPUS.on(from);
    let mut queue = other.queue.lock();
    let task = queue.steal_for(to)?;
    other.publish(&queue);
    Some(task)
}

const BALANCE_INTERVAL_NS: u64 = 64_000_000;

/// Called at ticks: pulls from a clearly busier CPU. One task too many rotates, so that three equal tasks share two CPUs evenly.
pub(super) fn periodic(now: u64) {
    let here = smp::current_cpu();
    let this = CPUS.get();
    if now < this.balance_at.load(Relaxed) {
        return;
    }
    this.balance_at.store(now + BALANCE_INTERVAL_NS, Relaxed);
    let Some(busiest) = bits(online_cpus() & !(1 << here)).max_by_key(|&cpu| CPUS.on(cpu).load.load(Relaxed)) else {
        return;
    };
    let (mine, theirs) = (this.load.load(Relaxed), CPUS.on(busiest).load.load(Relaxed));
    if theirs > mine + mine / 4
        && CPUS.on(busiest).runnable.load(Relaxed) > 1
        && let Some(task) = steal(busiest, here)
    {
        enqueue_on(here, task, false);
    }
}
