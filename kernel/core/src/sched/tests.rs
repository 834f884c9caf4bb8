//! Tests of the scheduler's parts on the machine.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ursa_hal::ktest;

use super::heap::{Heap, HeapItem, Position};
use super::{Params, SleepState, TaskExt};
use crate::time::{Deadline, SleepTimer, Timer, monotonic_ns};
use crate::wait::WaitQueue;

struct Item {
    value: u64,
    position: Position,
}

impl HeapItem for Arc<Item> {
    fn position(&self) -> &Position {
        &self.position
    }
}

/// A small generator: tests must be the same each time.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn wait_for(what: impl Fn() -> bool) {
    let queue = WaitQueue::new();
    let limit = Deadline::after(10_000_000_000);
    while !what() {
        assert!(!limit.has_passed(), "waited for ten seconds");
        let _ = queue.wait_killable_until(Some(Deadline::after(1_000_000)), || None::<()>);
    }
}

ktest! {
    /// Elements come out in order, whichever were taken out of the middle before.
    fn heap_gives_elements_in_order_after_removals() {
        let mut heap = Heap::new();
        let mut seed = 88172645463325252;
        let items: Vec<Arc<Item>> = (0..500)
            .map(|_| Arc::new(Item { value: next(&mut seed) % 1000, position: Position::new() }))
            .collect();
        for item in &items {
            heap.push(item.value, item.clone());
        }
        let mut expected: Vec<u64> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            if index % 3 == 0 {
                let (_, removed) = heap.remove_at_position(&item.position).expect("it is there");
                assert!(Arc::ptr_eq(&removed, item) && !item.position.is_queued());
                assert!(heap.remove_at_position(&item.position).is_none());
            } else {
                expected.push(item.value);
            }
        }
        expected.sort_unstable();
        let popped: Vec<u64> = core::iter::from_fn(|| heap.pop().map(|(key, _)| key)).collect();
        assert_eq!(popped, expected);
    }

    /// Of two tasks that always run, one of nice 0 and one of nice 5, the virtual times stay together.
    fn fair_queue_divides_time_by_weight() {
        let mut queue = super::fair::FairQueue::new();
        let heavy = TaskExt::new(None, Params::DEFAULT, !0);
        let light = TaskExt::new(None, Params { nice: 5, ..Params::DEFAULT }, !0);
        queue.join(&heavy);
        queue.join(&light);
        let mut ran = [0u64; 2];
        for _ in 0..10_000 {
            // What `pop` does with two tasks: the eligible one of the earlier deadline.
            let eligible = |ext: &TaskExt| queue.is_eligible(ext);
            let deadline = |ext: &TaskExt| ext.deadline.load(Ordering::Relaxed);
            let choose_heavy = match (eligible(&heavy), eligible(&light)) {
                (true, false) => true,
                (false, true) => false,
                _ => deadline(&heavy) <= deadline(&light),
            };
            let (chosen, slot) = if choose_heavy { (&heavy, 0) } else { (&light, 1) };
            queue.charge(chosen, 1_000_000);
            ran[slot] += 1;
        }
        // The weights are 1024 and 335.
        let share = ran[0] * 1000 / (ran[0] + ran[1]);
        assert!((740..=768).contains(&share), "nice 0 got {share} of 1000 against nice 5");
    }

    /// A task that leaves with a lag comes back with it.
    fn fair_queue_keeps_lag_over_a_sleep() {
        let mut queue = super::fair::FairQueue::new();
        let (a, b) = (TaskExt::new(None, Params::DEFAULT, !0), TaskExt::new(None, Params::DEFAULT, !0));
        queue.join(&a);
        queue.join(&b);
        queue.charge(&a, 2_000_000);
        queue.leave(&a);
        let lag = a.lag.load(Ordering::Relaxed);
        assert!(lag < 0, "who ran ahead owes");
        queue.charge(&b, 1_000_000);
        queue.join(&a);
        assert!(!queue.is_eligible(&a) && queue.is_eligible(&b));
        queue.leave(&a);
        assert!((a.lag.load(Ordering::Relaxed) - lag).abs() < 1000, "the lag is what it was");
    }

    /// Timers fire in the order of their deadlines, cancelled ones not at all.
    fn timers_fire_in_order_and_not_when_cancelled() {
        static ORDER: AtomicU64 = AtomicU64::new(0);
        static FIRED: AtomicUsize = AtomicUsize::new(0);
        ORDER.store(0, Ordering::Relaxed);
        FIRED.store(0, Ordering::Relaxed);
        let now = monotonic_ns();
        // The last one is far off, so that it cannot have fired on however slow a machine.
        let timers: Vec<Arc<Timer>> = [30u64, 10, 20, 100_000]
            .into_iter()
            .map(|ms| {
                let timer = Timer::new(move || {
                    ORDER.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |order| Some(order * 100 + ms)).ok();
                    FIRED.fetch_add(1, Ordering::Release);
                    None
                });
                timer.arm(Deadline::monotonic(now + ms * 1_000_000));
                timer
            })
            .collect();
        assert!(timers[3].cancel_sync() && !timers[3].cancel_sync());
        wait_for(|| FIRED.load(Ordering::Acquire) == 3);
        assert_eq!(ORDER.load(Ordering::Relaxed), 10_20_30);
    }

    /// A periodic timer goes on until it is cancelled, from outside its callback.
    fn periodic_timer_stops_when_cancelled() {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let timer = Timer::new(move || {
            counted.fetch_add(1, Ordering::Release);
            Some(Deadline::after(500_000))
        });
        timer.arm(Deadline::after(500_000));
        wait_for(|| count.load(Ordering::Acquire) >= 5);
        timer.cancel_sync();
        let stopped_at = count.load(Ordering::Acquire);
        let sleep = SleepTimer::start(Deadline::after(5_000_000));
        wait_for(|| sleep.has_fired());
        assert_eq!(count.load(Ordering::Acquire), stopped_at);
    }

    /// A time-out ends a wait, not before its time.
    fn wait_times_out() {
        let queue = WaitQueue::new();
        let begin = monotonic_ns();
        let outcome = queue.wait_killable_until(Some(Deadline::after(5_000_000)), || None::<()>);
        assert_eq!(outcome, Err(crate::Errno::ETIMEDOUT));
        assert!(monotonic_ns() - begin >= 5_000_000 && queue.is_empty());
    }

    /// Two tasks hand a turn to each other ten thousand times, on whatever CPUs they are.
    fn wake_ups_are_not_lost() {
        const ROUNDS: u64 = 10_000;
        struct Shared {
            turn: AtomicU64,
            queue: WaitQueue,
            done: AtomicUsize,
        }
        let shared = Arc::new(Shared { turn: AtomicU64::new(0), queue: WaitQueue::new(), done: AtomicUsize::new(0) });
        for me in 0..2 {
            let shared = shared.clone();
            let task = super::spawn_kernel("turn", move || {
                for round in 0..ROUNDS {
                    let mine = round * 2 + me;
                    shared.queue.wait_until(|| (shared.turn.load(Ordering::Acquire) == mine).then_some(()));
                    shared.turn.store(mine + 1, Ordering::Release);
                    shared.queue.wake_all();
                }
                shared.done.fetch_add(1, Ordering::Release);
            });
            assert!(task.is_some());
        }
        wait_for(|| shared.done.load(Ordering::Acquire) == 2);
        assert_eq!(shared.turn.load(Ordering::Relaxed), ROUNDS * 2);
    }

    /// `wake_one` wakes one sleeper at a time.
    fn wake_one_wakes_one() {
        let queue = Arc::new(WaitQueue::new());
        let (tickets, woken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..4 {
            let (queue, tickets, woken) = (queue.clone(), tickets.clone(), woken.clone());
            super::spawn_kernel("sleeper", move || {
                let take = || tickets.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).ok();
                queue.wait_until(take);
                woken.fetch_add(1, Ordering::Release);
            });
        }
        for expected in 1..=4 {
            tickets.fetch_add(1, Ordering::SeqCst);
            queue.wake_one();
            wait_for(|| woken.load(Ordering::Acquire) == expected);
        }
        wait_for(|| queue.is_empty());
    }

    /// What is woken on every CPU within nested batches runs once the outermost has ended.
    fn wake_batches_interrupt_at_their_end() {
        let queue = Arc::new(WaitQueue::new());
        let [entered, open, woken] = core::array::from_fn(|_| Arc::new(AtomicUsize::new(0)));
        let online = super::online_cpus();
        for cpu in (0..64).filter(|cpu| online >> cpu & 1 != 0) {
            let (queue, entered, open, woken) = (queue.clone(), entered.clone(), open.clone(), woken.clone());
            super::spawn_kernel("batched", move || {
                super::set_affinity(&super::current_task(), 1 << cpu).expect("the CPU schedules");
                entered.fetch_add(1, Ordering::Release);
                queue.wait_until(|| (open.load(Ordering::Acquire) == 1).then_some(()));
                woken.fetch_add(1, Ordering::Release);
            });
        }
        let count = online.count_ones() as usize;
        wait_for(|| entered.load(Ordering::Acquire) == count && !queue.is_empty());
        let (outer, inner) = (super::WakeBatch::begin(), super::WakeBatch::begin());
        open.store(1, Ordering::Release);
        queue.wake_all();
        drop(inner);
        assert_eq!(super::CPUS.get().batches.load(Ordering::Relaxed), 1);
        drop(outer);
        assert_eq!(super::CPUS.get().batched.load(Ordering::Relaxed), 0);
        wait_for(|| woken.load(Ordering::Acquire) == count);
    }

    /// A task moves to the CPU that its mask names.
    fn affinity_moves_a_running_task() {
        let online = super::online_cpus();
        let last = 63 - online.leading_zeros() as usize;
        let seen = Arc::new(AtomicUsize::new(usize::MAX));
        let seen_there = seen.clone();
        super::spawn_kernel("mover", move || {
            let me = super::current_task();
            super::set_affinity(&me, 1 << last).expect("the CPU schedules");
            super::yield_now();
            seen_there.store(ursa_hal::smp::current_cpu(), Ordering::Release);
        });
        wait_for(|| seen.load(Ordering::Acquire) != usize::MAX);
        assert_eq!(seen.load(Ordering::Acquire), last);
        assert!(super::set_affinity(&super::current_task(), 0).is_err());
    }

    /// A wake-up between the announcement of a sleep and the sleep itself is seen.
    fn early_wake_up_cancels_the_sleep() {
        let me = super::current_task();
        super::prepare_to_sleep(SleepState::UNINTERRUPTIBLE);
        assert!(super::wake(&me, SleepState::ANY_SLEEP));
        super::schedule();
        assert!(!super::wake(&me, SleepState::ANY_SLEEP));
    }
}
