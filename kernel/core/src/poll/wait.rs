//! Waiting for any of several files: what `poll` and `select` share.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ursa_hal::task::Task;

use super::{PollEvents, PollTable};
use crate::sched::{self, SleepState};
use crate::time::{Deadline, SleepTimer};
use crate::wait::WakeTarget;
use crate::{Errno, Result};

/// The sleeping caller, as wait queues see it.
struct Sleeper {
    task: Arc<Task>,
    /// Something may have changed since the last look.
    woken: AtomicBool,
    /// Union of what is waited for.
    interest: AtomicU32,
}

impl WakeTarget for Sleeper {
    fn wake(&self, events: PollEvents) -> bool {
        let interest = PollEvents::from_bits_truncate(self.interest.load(Ordering::Relaxed));
        if !events.is_empty() && !events.intersects(interest | PollEvents::ALWAYS) {
            return false;
        }
        self.woken.store(true, Ordering::SeqCst);
        sched::wake_with(&self.task, SleepState::ANY_SLEEP, false)
    }
}

/// Looks at files again and again until one is ready.
///
/// The first look registers with the files' queues; later ones only ask. Nothing is registered or allocated when there is
/// no reason to wait.
pub struct Poller {
    sleeper: Option<Arc<Sleeper>>,
    table: Option<PollTable>,
}

impl Poller {
    /// Runs `look` until it returns a value, the deadline passes (`None`: never) or a signal is pending.
    ///
    /// `look` asks each file, passing on the table that it is given. It is called at least once.
    ///
    /// # Errors
    /// `ERESTARTNOHAND` when a signal is pending; `ETIMEDOUT` after the deadline.
    pub fn run<R>(
        deadline: Option<Deadline>,
        files: usize,
        mut look: impl FnMut(&mut Looker<'_>) -> Result<Option<R>>,
    ) -> Result<R> {
        // A caller that does not mean to wait is served without registering.
        if deadline.is_some_and(Deadline::has_passed) {
            return look(&mut Looker { table: None })?.ok_or(Errno::ETIMEDOUT);
        }
        let sleeper = Arc::new(Sleeper {
            task: sched::current_task(),
            woken: AtomicBool::new(false),
            interest: AtomicU32::new(PollEvents::all().bits()),
        });
        let mut this = Poller {
            table: Some(PollTable::new(sleeper.clone(), PollEvents::all(), false, files)),
            sleeper: Some(sleeper),
        };
        if let Some(value) = look(&mut Looker { table: this.table.as_mut() })? {
            return Ok(value);
        }
        let timer = deadline.map(SleepTimer::start);
        let sleeper = this.sleeper.take().ok_or(Errno::EINVAL)?;
        loop {
            sched::prepare_to_sleep(SleepState::INTERRUPTIBLE);
            let fired = timer.as_ref().is_some_and(SleepTimer::has_fired);
            let woken = sleeper.woken.swap(false, Ordering::SeqCst);
            if !fired && !woken && !sched::signal_pending() {
                sched::schedule();
            }
            sched::finish_sleep();
            sleeper.woken.store(false, Ordering::SeqCst);
            if let Some(value) = look(&mut Looker { table: None })? {
                return Ok(value);
            }
            if timer.as_ref().is_some_and(SleepTimer::has_fired) {
                return Err(Errno::ETIMEDOUT);
            }
            if sched::signal_pending() {
                return Err(Errno::ERESTARTNOHAND);
            }
        }
    }
}

/// What a look passes to the files.
pub struct Looker<'a> {
    table: Option<&'a mut PollTable>,
}

impl Looker<'_> {
    /// Asks a file for `interest` (errors and hang-ups come with it).
    pub fn ask(&mut self, file: &crate::fs::File, interest: PollEvents) -> PollEvents {
        if let Some(table) = &mut self.table {
            table.set_interest(interest);
        }
        file.poll(self.table.as_deref_mut()) & (interest | PollEvents::ALWAYS)
    }

    /// Something is ready: no further registrations are needed.
    pub fn stop_registering(&mut self) {
        self.table = None;
    }
}
