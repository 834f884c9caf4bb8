//! Which requests are on the disk: what a successor needs to know.
//!
//! A server that dies leaves requests behind that were never answered, and some that were answered and whose transaction was
//! not committed. Both come again. Which of them have happened is in the last commit: all up to a number, and some beyond
//! it, each with its answer. The numbers are FUSE's `unique`, in the order in which requests were read.
//!
//! Only requests that change something count. While this is on, requests are read one at a time (and answered by as many
//! threads as there are), so that none can be overtaken unseen.

use std::collections::{BTreeMap, BTreeSet};

use ext4::{Done, Progress};
use parking_lot::{Mutex, MutexGuard};

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

#[derive(Debug, Default)]
struct State {
    /// Read, and not done.
    open: BTreeSet<u64>,
    /// The highest that was read.
    highest: u64,
    /// Done, although an earlier one is open.
    ahead: BTreeMap<u64, u64>,
    /// How many were read, for [`ExitAt`].
    count: u64,
}

/// The requests of a connection.
pub struct Requests {
    resumable: bool,
    state: Mutex<State>,
    reading: Mutex<()>,
    /// What the server before had done of what comes again.
    inherited: Mutex<BTreeMap<u64, u64>>,
    inherited_upto: u64,
    exit_at: Option<ExitAt>,
}

impl Requests {
    /// After what was found on the disk.
    pub fn new(resumable: bool, recovered: &Progress, exit_at: Option<ExitAt>) -> Requests {
        let inherited = recovered.also.iter().map(|done| (done.request, done.result)).collect();
        let state = State { highest: recovered.upto, ..State::default() };
        Requests {
            resumable,
            state: Mutex::new(state),
            reading: Mutex::new(()),
            inherited: Mutex::new(inherited),
            inherited_upto: recovered.upto,
            exit_at,
        }
    }

    /// Held while a request is read and noted, where the order matters.
    pub fn reading(&self) -> Option<MutexGuard<'_, ()>> {
        self.resumable.then(|| self.reading.lock())
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

    /// Ends the process if a test wants that here.
    pub fn reached(&self, count: u64, phase: Phase) {
        if self.exit_at == Some(ExitAt { request: count, phase }) {
            std::process::exit(86);
        }
    }

    /// A request that changes something was read.
    pub fn begin(&self, unique: u64) {
        if self.resumable {
            let mut state = self.state.lock();
            state.open.insert(unique);
            state.highest = state.highest.max(unique);
        }
    }

    /// It is done, with this result; or it failed, which comes to the same.
    pub fn end(&self, unique: u64, result: u64) {
        if self.resumable {
            let mut state = self.state.lock();
            state.open.remove(&unique);
            match state.open.first() {
                Some(&first) if first < unique => {
                    state.ahead.insert(unique, result);
                }
                Some(&first) => state.ahead = state.ahead.split_off(&first),
                None => state.ahead.clear(),
            }
        }
    }

    /// What the server before answered, or would have, when a request comes again that it had done.
    pub fn done_before(&self, unique: u64) -> Option<u64> {
        if unique <= self.inherited_upto {
            return Some(0);
        }
        self.inherited.lock().remove(&unique)
    }

    /// How far requests are, for a commit.
    pub fn progress(&self) -> Progress {
        let state = self.state.lock();
        let upto = state.open.first().map_or(state.highest, |first| first - 1);
        let also = state.ahead.iter().map(|(&request, &result)| Done { request, result }).collect();
        Progress { upto, also }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_ahead_is_told_one_by_one() {
        let requests = Requests::new(true, &Progress::default(), None);
        for unique in [2, 4, 6, 8] {
            requests.begin(unique);
        }
        requests.end(4, 40);
        requests.end(8, 80);
        let also = vec![Done { request: 4, result: 40 }, Done { request: 8, result: 80 }];
        assert_eq!(requests.progress(), Progress { upto: 1, also });
        requests.end(2, 20);
        assert_eq!(requests.progress(), Progress { upto: 5, also: vec![Done { request: 8, result: 80 }] });
        requests.end(6, 0);
        assert_eq!(requests.progress(), Progress { upto: 8, also: Vec::new() });
    }

    #[test]
    fn a_successor_knows_what_was_done() {
        let found = Progress { upto: 10, also: vec![Done { request: 14, result: 7 }] };
        let requests = Requests::new(true, &found, None);
        assert_eq!(
            (requests.done_before(9), requests.done_before(14), requests.done_before(12)),
            (Some(0), Some(7), None)
        );
    }
}
