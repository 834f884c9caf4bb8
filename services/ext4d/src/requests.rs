//! Which requests are on the disk: what a successor needs to know.
//!
//! A server that dies leaves requests behind that were never answered, and some that were answered and whose transaction was
//! not committed. Both come again. Each commit says which have happened: all up to a number, and some beyond it, each with
//! what it made. The numbers are FUSE's `unique`, in the order in which requests were read.
//!
//! Only requests that change something count. A request is *done* when its effect is in the running transaction; names are
//! changed and the request marked in one handle, so that no commit comes between. Other changes may be found done although they
//! are not marked: to write the same bytes once more is no harm. It is *finished* when it was answered. All up to the first
//! unfinished one are "up to"; those behind it that are done are named one by one, with what they made, since an answer that
//! did not reach anybody must be given again.
//!
//! One that failed is never done: it may be tried again until it is answered.
//!
//! While this is on, requests are read one at a time (and answered by as many threads as there are), so that none can be
//! overtaken unseen.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ext4::{Done, Ledger, Progress};
use parking_lot::{Condvar, Mutex, MutexGuard};

/// The kernel's side of a connection.
pub trait Kernel: Send + Sync {
    /// Reads a request.
    ///
    /// # Errors
    /// `ENODEV` at the end.
    fn receive(&self, into: &mut [u8]) -> rustix::io::Result<usize>;

    /// Answers one.
    ///
    /// # Errors
    /// `ENOENT` when nobody waits for it.
    fn answer(&self, bytes: &[u8]) -> rustix::io::Result<()>;

    /// So much is durable.
    ///
    /// # Errors
    /// The kernel does not believe it.
    fn committed(&self, progress: &Progress) -> std::io::Result<()>;

    /// The numbers of requests that come again and change something.
    ///
    /// # Errors
    /// The connection has ended.
    fn outstanding(&self) -> std::io::Result<Vec<u64>>;
}

/// Where a test ends the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A request was read.
    Received,
    /// Its effect is there.
    Done,
    /// Just before it is answered.
    BeforeReply,
    /// It was answered.
    AfterReply,
}

/// The request, counted from 1, and the phase at which a test ends the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitAt {
    request: u64,
    phase: Phase,
}

impl std::str::FromStr for ExitAt {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<ExitAt, &'static str> {
        let (request, phase) = text.split_once(':').ok_or("--exit-at wants K:PHASE")?;
        let phase = match phase {
            "received" => Phase::Received,
            "done" => Phase::Done,
            "before-reply" => Phase::BeforeReply,
            "after-reply" => Phase::AfterReply,
            _ => return Err("--exit-at: unknown phase"),
        };
        Ok(ExitAt { request: request.parse().map_err(|_| "--exit-at: no number")?, phase })
    }
}

/// A request that is not finished, or behind one that is not.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// Its effect is there; what it made.
    done: Option<u64>,
    answered: bool,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<u64, Entry>,
    /// The highest that was read.
    highest: u64,
    /// What the kernel was told last.
    told: Progress,
    /// How many were read, for [`ExitAt`].
    count: u64,
}

/// The requests of a connection.
pub struct Requests {
    kernel: Arc<dyn Kernel>,
    /// The mount can be resumed.
    resumable: AtomicBool,
    /// There was a server before.
    successor: bool,
    /// The kernel listens.
    mounted: AtomicBool,
    state: Mutex<State>,
    finished: Condvar,
    reading: Mutex<()>,
    /// How many a commit can name one by one.
    room: AtomicUsize,
    exit_at: Option<ExitAt>,
}

thread_local! {
    /// The request that this thread works on, if it changes something.
    static CURRENT: Cell<Option<u64>> = const { Cell::new(None) };
}

impl Requests {
    /// Of a connection that is `resumable`; `successor`: it was served before.
    pub fn new(kernel: Arc<dyn Kernel>, resumable: bool, successor: bool, exit_at: Option<ExitAt>) -> Requests {
        Requests {
            kernel,
            resumable: AtomicBool::new(resumable),
            successor,
            mounted: AtomicBool::new(successor),
            state: Mutex::default(),
            finished: Condvar::new(),
            reading: Mutex::new(()),
            room: AtomicUsize::new(usize::MAX),
            exit_at,
        }
    }

    /// Whether answers are worth remembering.
    pub fn is_resumable(&self) -> bool {
        self.resumable.load(Ordering::Relaxed)
    }

    /// They are not, since commits cannot say what is in them. Before anything is served.
    pub fn give_up(&self) {
        self.resumable.store(false, Ordering::Relaxed);
    }

    /// The file system is mounted, and a commit can name so many requests one by one.
    pub fn start(&self, room: usize) {
        self.room.store(room, Ordering::Relaxed);
        self.mounted.store(true, Ordering::Release);
    }

    /// Held while a request is read and noted, where the order matters.
    pub fn reading(&self) -> Option<MutexGuard<'_, ()>> {
        self.is_resumable().then(|| self.reading.lock())
    }

    /// Counts a request, for tests that end the process at one.
    pub fn count(&self) -> u64 {
        if self.exit_at.is_none() {
            return 0;
        }
        let mut state = self.state.lock();
        state.count += 1;
        state.count
    }

    /// Whether a test wants the process to end here.
    pub fn reached(&self, count: u64, phase: Phase) -> bool {
        self.exit_at == Some(ExitAt { request: count, phase })
    }

    /// A request that changes something was read.
    pub fn begin(&self, unique: u64) {
        if self.is_resumable() {
            let mut state = self.state.lock();
            state.entries.entry(unique).or_default();
            state.highest = state.highest.max(unique);
        }
    }

    /// Waits while so much is done beyond the first that is not that a commit could not name it.
    pub fn wait_turn(&self, unique: u64) {
        if self.is_resumable() {
            let room = self.room.load(Ordering::Relaxed);
            let mut state = self.state.lock();
            while state.entries.len() > room
                && state.entries.first_key_value().is_some_and(|(first, _)| *first != unique)
            {
                self.finished.wait(&mut state);
            }
        }
    }

    /// Does what request `unique` asks for.
    pub fn work<T>(&self, unique: u64, operation: impl FnOnce() -> T) -> T {
        CURRENT.set(Some(unique));
        let result = operation();
        CURRENT.set(None);
        result
    }

    /// Its effect is there, with this result.
    pub fn end(&self, unique: u64, result: u64) {
        if self.is_resumable()
            && let Some(entry) = self.state.lock().entries.get_mut(&unique)
        {
            entry.done.get_or_insert(result);
        }
    }

    /// Its answer has arrived.
    pub fn answered(&self, unique: u64) {
        if !self.is_resumable() {
            return;
        }
        let mut state = self.state.lock();
        if let Some(entry) = state.entries.get_mut(&unique) {
            entry.answered = true;
        }
        while state.entries.first_entry().is_some_and(|first| first.get().answered) {
            state.entries.pop_first();
        }
        drop(state);
        self.finished.notify_all();
    }
}

impl Ledger for Requests {
    fn recovered(&self, progress: &Progress) {
        // Where there was no server before, what is on the disk is of another connection.
        if !self.successor {
            return;
        }
        let outstanding = self.kernel.committed(progress).and_then(|()| self.kernel.outstanding());
        let outstanding = outstanding.unwrap_or_else(|error| {
            eprintln!("ext4d: telling the kernel of requests up to {}: {error}", progress.upto);
            Vec::new()
        });
        let mut state = self.state.lock();
        state.highest = progress.upto;
        state.entries = outstanding.into_iter().map(|unique| (unique, Entry::default())).collect();
    }

    fn progress(&self) -> Progress {
        let state = self.state.lock();
        let upto = state.entries.first_key_value().map_or(state.highest, |(first, _)| first - 1);
        let done = state.entries.iter().filter_map(|(&request, entry)| Some(Done { request, result: entry.done? }));
        Progress { upto, also: done.collect() }
    }

    fn done(&self, made: Option<(u32, u32)>) {
        if let Some(unique) = CURRENT.get() {
            self.end(unique, made.map_or(0, |(ino, generation)| crate::node::number(ino, generation)));
        }
    }

    fn committed(&self, progress: &Progress) {
        if !self.is_resumable() || !self.mounted.load(Ordering::Acquire) {
            return;
        }
        {
            let mut state = self.state.lock();
            if state.told == *progress {
                return;
            }
            state.told = progress.clone();
        }
        if let Err(error) = self.kernel.committed(progress)
            && error.raw_os_error() != Some(ext4::Errno::NODEV.raw_os_error())
        {
            eprintln!("ext4d: telling the kernel of requests up to {}: {error}", progress.upto);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl Kernel for Nobody {
        fn receive(&self, _: &mut [u8]) -> rustix::io::Result<usize> {
            Err(ext4::Errno::NODEV)
        }

        fn answer(&self, _: &[u8]) -> rustix::io::Result<()> {
            Ok(())
        }

        fn committed(&self, _: &Progress) -> std::io::Result<()> {
            Ok(())
        }

        fn outstanding(&self) -> std::io::Result<Vec<u64>> {
            Ok(vec![12, 16, 14])
        }
    }

    fn done(request: u64, result: u64) -> Done {
        Done { request, result }
    }

    #[test]
    fn what_is_done_ahead_is_told_one_by_one() {
        let requests = Requests::new(Arc::new(Nobody), true, false, None);
        for unique in [2, 4, 6, 8] {
            requests.begin(unique);
        }
        requests.end(4, 40);
        requests.end(8, 80);
        requests.answered(4);
        assert_eq!(requests.progress(), Progress { upto: 1, also: vec![done(4, 40), done(8, 80)] });
        requests.end(2, 20);
        // Done, but the answer may be lost: what it made is still needed.
        assert_eq!(requests.progress(), Progress { upto: 1, also: vec![done(2, 20), done(4, 40), done(8, 80)] });
        requests.answered(2);
        assert_eq!(requests.progress(), Progress { upto: 5, also: vec![done(8, 80)] });
        // The third failed.
        requests.answered(6);
        requests.answered(8);
        assert_eq!(requests.progress(), Progress { upto: 8, also: Vec::new() });
    }

    #[test]
    fn a_successor_does_not_overtake_what_is_to_come_again() {
        let requests = Requests::new(Arc::new(Nobody), true, true, None);
        requests.recovered(&Progress { upto: 10, also: Vec::new() });
        assert_eq!(requests.progress(), Progress { upto: 11, also: Vec::new() });
        requests.begin(16);
        requests.end(16, 0);
        requests.answered(16);
        assert_eq!(requests.progress(), Progress { upto: 11, also: vec![done(16, 0)] });
        for unique in [12, 14] {
            requests.begin(unique);
            requests.end(unique, 0);
            requests.answered(unique);
        }
        assert_eq!(requests.progress(), Progress { upto: 16, also: Vec::new() });
    }
}
