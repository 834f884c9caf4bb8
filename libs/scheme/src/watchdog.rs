//! The watchdog of a server: tells `init` that its loop goes on, as long as it does.
//!
//! A thread of its own says so (`WATCHDOG=1`, sd_notify(3)), so that a loop with nothing to do need not wake up; it is silent as soon as
//! the loop has been at one thing for a quarter of the limit. A process that is stopped is silent altogether.

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// How far a server's loop is: goes up when it begins to wait for something to do, and when it ends, so it is odd meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Pulse(AtomicU64);

impl Pulse {
    /// Waits.
    pub fn rest<T>(&self, wait: impl FnOnce() -> T) -> T {
        // Nothing else depends on the order.
        self.0.fetch_add(1, Ordering::Relaxed);
        let result = wait();
        self.0.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// Whether the loop waits or has moved since the last look, of which `seen` is kept.
    fn beats(&self, seen: &mut Option<u64>) -> bool {
        let now = self.0.load(Ordering::Relaxed);
        now % 2 == 1 || seen.replace(now) != Some(now)
    }
}

/// Starts the thread, if `init` has set a limit; it ends with the server's connection.
pub(crate) fn start(pulse: &Arc<Pulse>) -> io::Result<()> {
    match sd_notify::watchdog_enabled() {
        Some(limit) => {
            let pulse = Arc::downgrade(pulse);
            thread::Builder::new().name("watchdog".into()).spawn(move || watch(&pulse, limit)).map(drop)
        }
        None => Ok(()),
    }
}

fn watch(pulse: &Weak<Pulse>, limit: Duration) {
    let mut seen = None;
    while let Some(pulse) = pulse.upgrade() {
        if pulse.beats(&mut seen) {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
        drop(pulse);
        thread::sleep(limit / 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_waits_or_moves_beats_and_one_that_is_stuck_does_not() {
        let pulse = Pulse::default();
        let mut seen = None;
        assert!(pulse.beats(&mut seen), "it has just begun");
        assert!(!pulse.beats(&mut seen), "it has been at that ever since");
        pulse.rest(|| {
            assert!(pulse.beats(&mut seen) && pulse.beats(&mut seen), "it waits, however long");
        });
        assert!(pulse.beats(&mut seen), "it has something new to do");
        assert!(!pulse.beats(&mut seen));
        pulse.rest(|| ());
        assert!(pulse.beats(&mut seen), "it has done something between two looks");
    }
}
