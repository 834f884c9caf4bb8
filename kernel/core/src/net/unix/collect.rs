//! Descriptors in flight, and sockets that only reach each other.
//!
//! A descriptor travels inside a message in a receive queue. Sockets that are sent over one another can form a circle that no
//! process reaches any more; counting references never frees it. So, when a socket closes while sockets are in flight,
//! [`collect`] looks for them: a socket all of whose references are in flight, and those only in queues of such sockets,
//! is garbage, and its queue is emptied. (The scheme of Linux before 6.10; the counts are taken without stopping the
//! world, and a reference that a process holds meanwhile only makes a socket look alive.)
//!
//! Emptying a queue drops files whose own queues hold files …: a long chain would overrun the stack. So messages of closed
//! sockets go to a [`bury`] list that one caller works off in a loop.
//! References: `unix(7)`, "Ancillary messages"; `net/unix/garbage.c`.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ursa_hal::sync::SpinLock;

use super::Unix;
use super::queue::Message;
use crate::fs::File;
use crate::net::Socket;
use crate::process::{Cap, Resource, current};
use crate::{Errno, Result};

/// Sockets in flight: by address of the open file, with how often it is in flight.
static SOCKETS: SpinLock<BTreeMap<usize, (Weak<File>, usize)>> = SpinLock::new(BTreeMap::new());
/// Descriptors in flight per user.
static PER_USER: SpinLock<BTreeMap<u32, usize>> = SpinLock::new(BTreeMap::new());
static SOCKETS_IN_FLIGHT: AtomicUsize = AtomicUsize::new(0);
/// Sockets closed since the last search, and how many sockets in flight one of them pays for.
static CLOSES: AtomicUsize = AtomicUsize::new(0);
const CLOSE_SHARE: usize = 16;
static COLLECTING: AtomicBool = AtomicBool::new(false);

static GRAVE: SpinLock<VecDeque<Arc<Message>>> = SpinLock::new(VecDeque::new());
static BURYING: AtomicBool = AtomicBool::new(false);

/// Descriptors inside a message.
pub struct InFlight {
    files: Vec<Arc<File>>,
    uid: u32,
}

fn unix_of(file: &File) -> Option<Arc<Unix>> {
    file.ops::<Socket>()?.ops().clone().as_any_arc().downcast::<Unix>().ok()
}

impl InFlight {
    /// Puts descriptors in flight at the calling user's expense.
    ///
    /// # Errors
    /// `ETOOMANYREFS` when the user has more in flight than it may have open.
    pub fn new(files: Vec<Arc<File>>) -> Result<Option<InFlight>> {
        if files.is_empty() {
            return Ok(None);
        }
        let cred = current().cred();
        let privileged = cred.has_cap(Cap::SysResource) || cred.has_cap(Cap::SysAdmin);
        {
            let mut users = PER_USER.lock();
            let count = users.entry(cred.uid).or_default();
            if *count as u64 > current().process().rlimits.soft(Resource::Nofile) && !privileged {
                return Err(Errno::ETOOMANYREFS);
            }
            *count += files.len();
        }
        for file in files.iter().filter(|f| unix_of(f).is_some()) {
            let mut sockets = SOCKETS.lock();
            sockets.entry(Arc::as_ptr(file).addr()).or_insert_with(|| (Arc::downgrade(file), 0)).1 += 1;
            SOCKETS_IN_FLIGHT.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Some(InFlight { files, uid: cred.uid }))
    }

    /// The descriptors once more, for `MSG_PEEK`.
    pub fn peek(&self) -> Vec<Arc<File>> {
        self.files.clone()
    }

    /// The descriptors, which have arrived.
    pub fn land(mut self) -> Vec<Arc<File>> {
        self.leave();
        core::mem::take(&mut self.files)
    }

    fn leave(&mut self) {
        if self.files.is_empty() {
            return;
        }
        {
            let mut users = PER_USER.lock();
            if let Some(count) = users.get_mut(&self.uid) {
                *count -= self.files.len().min(*count);
                if *count == 0 {
                    users.remove(&self.uid);
                }
            }
        }
        let mut gone = Vec::new();
        for file in self.files.iter().filter(|f| unix_of(f).is_some()) {
            let mut sockets = SOCKETS.lock();
            let key = Arc::as_ptr(file).addr();
            if let Some(entry) = sockets.get_mut(&key) {
                entry.1 -= 1;
                if entry.1 == 0 {
                    gone.extend(sockets.remove(&key));
                }
            }
            SOCKETS_IN_FLIGHT.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Drops messages without recursion: files in them may be sockets with messages of their own.
pub fn bury(messages: impl Iterator<Item = Arc<Message>>) {
    GRAVE.lock().extend(messages);
    loop {
        if BURYING.swap(true, Ordering::Acquire) {
            // Whoever is at it, perhaps a caller of ours, takes these too.
            return;
        }
        loop {
            let next = GRAVE.lock().pop_front();
            let Some(message) = next else { break };
            drop(message);
        }
        BURYING.store(false, Ordering::Release);
        if GRAVE.lock().is_empty() {
            return;
        }
    }
}

/// Frees sockets that only reach each other. Called when a socket has closed.
///
/// A search looks at every socket in flight. With many of them it waits for some closes, so that a program that closes
/// thousands pays for each close a bounded share.
pub fn collect() {
    let in_flight = SOCKETS_IN_FLIGHT.load(Ordering::Relaxed);
    if in_flight == 0 || (CLOSES.fetch_add(1, Ordering::Relaxed) + 1).saturating_mul(CLOSE_SHARE) < in_flight {
        return;
    }
    if COLLECTING.swap(true, Ordering::Acquire) {
        return;
    }
    CLOSES.store(0, Ordering::Relaxed);
    let garbage = find_garbage();
    COLLECTING.store(false, Ordering::Release);
    for socket in garbage {
        bury(socket.empty().into_iter());
    }
}

struct Candidate {
    socket: Arc<Unix>,
    in_flight: usize,
}

fn find_garbage() -> Vec<Arc<Unix>> {
    let listed: Vec<(usize, Arc<File>, usize)> = SOCKETS
        .lock()
        .iter()
        .filter_map(|(key, (file, count))| file.upgrade().map(|file| (*key, file, *count)))
        .collect();
    let mut candidates = BTreeMap::new();
    for (key, file, in_flight) in &listed {
        // One reference is ours.
        if Arc::strong_count(file) == in_flight + 1
            && let Some(socket) = unix_of(file)
        {
            candidates.insert(*key, Candidate { socket, in_flight: *in_flight });
        }
    }
    // How often each is in a queue of another candidate, and which those are.
    let mut inside: BTreeMap<usize, usize> = BTreeMap::new();
    let mut reaches: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (key, candidate) in &candidates {
        candidate.socket.for_each_file(&mut |file| {
            let target = Arc::as_ptr(file).addr();
            if candidates.contains_key(&target) {
                *inside.entry(target).or_default() += 1;
                reaches.entry(*key).or_default().push(target);
            }
        });
    }
    // What somebody else's queue holds is alive, and so is all that it reaches.
    let mut alive = BTreeSet::new();
    let mut todo: Vec<usize> = candidates
        .iter()
        .filter(|(key, c)| inside.get(key).copied().unwrap_or(0) < c.in_flight)
        .map(|(key, _)| *key)
        .collect();
    while let Some(key) = todo.pop() {
        if alive.insert(key) {
            todo.extend(reaches.get(&key).into_iter().flatten());
        }
    }
    // Still nobody's but the queues': our list's reference is the one more.
    let still_dead =
        |key: &usize| listed.iter().any(|(k, file, in_flight)| k == key && Arc::strong_count(file) == in_flight + 1);
    let dead: Vec<usize> = candidates.keys().filter(|k| !alive.contains(*k) && still_dead(k)).copied().collect();
    dead.into_iter().filter_map(|key| candidates.remove(&key)).map(|c| c.socket).collect()
}
