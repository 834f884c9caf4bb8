//! Who has which link address on an interface: [`Neighbours`], filled by ARP and by neighbour discovery.
//!
//! ```text
//!  (none) ──packet──▶ INCOMPLETE ──answer──▶ REACHABLE ──30 s──▶ STALE ──packet──▶ PROBE ──answer──▶ REACHABLE
//!                         └─── 3 s without one ──▶ FAILED (packets dropped) ◀──────────┘
//! ```
//! References: arp(7), RFC 826, RFC 4861, `net/core/neighbour.c`.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::IpAddr;

use ursa_hal::sync::SpinLock;

use crate::time::monotonic_ns;

/// How long an answer is believed.
const REACHABLE_NS: u64 = 30_000_000_000;
/// Time between questions.
const RETRY_NS: u64 = 1_000_000_000;
/// Questions before giving up.
const PROBES: u32 = 3;
/// Packets that wait for one answer.
const WAITING_MAX: usize = 16;
/// Entries at most (`gc_thresh3`).
const ENTRIES_MAX: usize = 1024;

/// What is known of a neighbour: `NUD_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Being asked for the first time.
    Incomplete,
    /// Answered lately.
    Reachable,
    /// Answered once.
    Stale,
    /// Being asked again, and used meanwhile.
    Probe,
    /// Did not answer.
    Failed,
    /// Entered by hand.
    Permanent,
}

impl State {
    /// `NUD_*`
    pub fn number(self) -> u16 {
        match self {
            State::Incomplete => 0x01,
            State::Reachable => 0x02,
            State::Stale => 0x04,
            State::Probe => 0x10,
            State::Failed => 0x20,
            State::Permanent => 0x80,
        }
    }
}

struct Entry {
    mac: [u8; 6],
    state: State,
    /// When the state was entered or the last question asked.
    since: u64,
    probes: u32,
    waiting: Vec<Vec<u8>>,
}

/// The table.
pub struct Neighbours(SpinLock<BTreeMap<IpAddr, Entry>>);

/// What to do with a packet.
pub enum Resolution {
    /// Send it there; and ask, if true.
    Known([u8; 6], bool),
    /// It was kept until an answer comes; ask, if true.
    Kept(bool),
}

impl Neighbours {
    /// An empty table.
    pub const fn new() -> Neighbours {
        Neighbours(SpinLock::new(BTreeMap::new()))
    }

    /// The link address of `ip`, or `packet` kept until it is known.
    pub fn resolve(&self, ip: IpAddr, packet: impl FnOnce() -> Vec<u8>) -> Resolution {
        let now = monotonic_ns();
        let mut table = self.0.lock();
        if table.len() >= ENTRIES_MAX && !table.contains_key(&ip) {
            // The oldest that nobody entered by hand makes room.
            let oldest = table.iter().filter(|(_, e)| e.state != State::Permanent).min_by_key(|(_, e)| e.since);
            if let Some(key) = oldest.map(|(key, _)| *key) {
                table.remove(&key);
            }
        }
        let entry = table.entry(ip).or_insert_with(|| Entry {
            mac: [0; 6],
            state: State::Failed,
            since: 0,
            probes: 0,
            waiting: Vec::new(),
        });
        match entry.state {
            State::Permanent => Resolution::Known(entry.mac, false),
            State::Reachable if now.saturating_sub(entry.since) < REACHABLE_NS => Resolution::Known(entry.mac, false),
            State::Reachable | State::Stale => {
                entry.state = State::Probe;
                entry.since = now;
                entry.probes = 1;
                Resolution::Known(entry.mac, true)
            }
            State::Probe => Resolution::Known(entry.mac, false),
            State::Incomplete => {
                if entry.waiting.len() < WAITING_MAX {
                    entry.waiting.push(packet());
                }
                Resolution::Kept(false)
            }
            State::Failed => {
                entry.state = State::Incomplete;
                entry.since = now;
                entry.probes = 1;
                entry.waiting = alloc::vec![packet()];
                Resolution::Kept(true)
            }
        }
    }

    /// An answer came, or (`asked` false) word that was not asked for: the packets that waited.
    pub fn learn(&self, ip: IpAddr, mac: [u8; 6], asked: bool, may_add: bool) -> Vec<Vec<u8>> {
        let mut table = self.0.lock();
        if !may_add && !table.contains_key(&ip) || table.len() >= ENTRIES_MAX && !table.contains_key(&ip) {
            return Vec::new();
        }
        let fresh = || Entry { mac, state: State::Stale, since: monotonic_ns(), probes: 0, waiting: Vec::new() };
        let entry = table.entry(ip).or_insert_with(fresh);
        if entry.state == State::Permanent {
            return Vec::new();
        }
        let same = entry.mac == mac;
        entry.mac = mac;
        if asked {
            entry.state = State::Reachable;
            entry.since = monotonic_ns();
        } else if !same || matches!(entry.state, State::Incomplete | State::Failed) {
            entry.state = State::Stale;
            entry.since = monotonic_ns();
        }
        entry.probes = 0;
        core::mem::take(&mut entry.waiting)
    }

    /// Questions that are due again; and whether there will be more. Who did not answer has failed.
    pub fn due(&self) -> (Vec<IpAddr>, Vec<IpAddr>, bool) {
        let now = monotonic_ns();
        let (mut ask, mut failed, mut more) = (Vec::new(), Vec::new(), false);
        let mut dropped = Vec::new();
        for (ip, entry) in self.0.lock().iter_mut() {
            if !matches!(entry.state, State::Incomplete | State::Probe) {
                continue;
            }
            if now.saturating_sub(entry.since) < RETRY_NS {
                more = true;
            } else if entry.probes >= PROBES {
                entry.state = State::Failed;
                dropped.append(&mut entry.waiting);
                failed.push(*ip);
            } else {
                entry.probes += 1;
                entry.since = now;
                ask.push(*ip);
                more = true;
            }
        }
        (ask, failed, more)
    }

    /// Enters a neighbour by hand.
    pub fn set(&self, ip: IpAddr, mac: [u8; 6], permanent: bool) -> Vec<Vec<u8>> {
        let state = if permanent { State::Permanent } else { State::Reachable };
        let mut table = self.0.lock();
        let fresh = || Entry { mac, state, since: 0, probes: 0, waiting: Vec::new() };
        let entry = table.entry(ip).or_insert_with(fresh);
        (entry.mac, entry.state, entry.since) = (mac, state, monotonic_ns());
        core::mem::take(&mut entry.waiting)
    }

    /// Forgets one; whether it was there.
    pub fn remove(&self, ip: IpAddr) -> bool {
        let old = self.0.lock().remove(&ip);
        old.is_some()
    }

    /// Forgets all.
    pub fn clear(&self) {
        let old = core::mem::take(&mut *self.0.lock());
        drop(old);
    }

    /// All neighbours.
    pub fn all(&self) -> Vec<(IpAddr, [u8; 6], State)> {
        let now = monotonic_ns();
        let state = |e: &Entry| match e.state {
            State::Reachable if now.saturating_sub(e.since) >= REACHABLE_NS => State::Stale,
            state => state,
        };
        self.0.lock().iter().map(|(ip, e)| (*ip, e.mac, state(e))).collect()
    }
}
