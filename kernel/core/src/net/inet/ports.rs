//! Who has which port: [`Ports`], one table a protocol.
//!
//! The rules are Linux's (`inet_csk_bind_conflict`, `udp_lib_lport_inuse`): two sockets may share a port when their addresses
//! or devices do not overlap; when both reuse addresses and none of them listens (TCP) or at all (UDP); or when both reuse
//! ports and belong to one user. A connection keeps its listener's port taken, and so does, for a minute, a connection that
//! this end closed first (`TIME_WAIT`).

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::IpAddr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ursa_hal::sync::SpinLock;

use super::address::Endpoint;
use crate::process::rng;
use crate::time::Deadline;
use crate::{Errno, Result};

/// `net.ipv4.ip_local_port_range`
pub static RANGE_FIRST: AtomicU32 = AtomicU32::new(32768);
/// Its end, included.
pub static RANGE_LAST: AtomicU32 = AtomicU32::new(60999);
/// `net.ipv4.ip_unprivileged_port_start`
pub static UNPRIVILEGED: AtomicU32 = AtomicU32::new(1024);
/// How long a port stays taken after this end closed a connection (`TCP_TIMEWAIT_LEN`).
const TIME_WAIT_NS: u64 = 60_000_000_000;
/// `net.ipv4.tcp_max_tw_buckets`: older ones make room.
const TIME_WAIT_MAX: usize = 16_384;

/// What a socket claims.
pub struct Claim<T> {
    /// The address; the wildcard of a family for all.
    pub ip: IpAddr,
    /// An IPv6 wildcard does not mean IPv4 as well.
    pub v6_only: bool,
    /// The interface that the socket is bound to, or 0.
    pub device: u32,
    /// `SO_REUSEADDR`
    pub reuse_address: bool,
    /// `SO_REUSEPORT`
    pub reuse_port: bool,
    /// The user.
    pub uid: u32,
    /// It takes connections (TCP).
    pub listens: bool,
    /// Where it is connected to (UDP).
    pub remote: Option<Endpoint>,
    /// The socket.
    pub owner: Weak<T>,
}

impl<T> Clone for Claim<T> {
    fn clone(&self) -> Self {
        Claim { owner: self.owner.clone(), ..*self }
    }
}

/// Whether two claims mean some address both.
fn overlap<T>(a: &Claim<T>, b: &Claim<T>) -> bool {
    if a.device != 0 && b.device != 0 && a.device != b.device {
        return false;
    }
    match (a.ip, b.ip) {
        (IpAddr::V4(x), IpAddr::V4(y)) => x == y || x.is_unspecified() || y.is_unspecified(),
        (IpAddr::V6(x), IpAddr::V6(y)) => x == y || x.is_unspecified() || y.is_unspecified(),
        (IpAddr::V6(x), IpAddr::V4(_)) => x.is_unspecified() && !a.v6_only,
        (IpAddr::V4(_), IpAddr::V6(y)) => y.is_unspecified() && !b.v6_only,
    }
}

impl<T> Claim<T> {
    /// How well it fits a packet to `to` from `from` that came in on `device`; `None`: not at all.
    fn score(&self, to: IpAddr, from: Option<&Endpoint>, device: u32) -> Option<u32> {
        let mut score = 1;
        match (self.ip, to) {
            (ip, to) if ip == to => score += 4,
            (IpAddr::V4(ip), IpAddr::V4(_)) if ip.is_unspecified() => score += 1,
            (IpAddr::V6(ip), IpAddr::V6(_)) if ip.is_unspecified() => score += 1,
            (IpAddr::V6(ip), IpAddr::V4(_)) if ip.is_unspecified() && !self.v6_only => {}
            _ => return None,
        }
        if self.device != 0 {
            if self.device != device {
                return None;
            }
            score += 8;
        }
        if let (Some(remote), Some(from)) = (&self.remote, from) {
            if remote.ip != from.ip || remote.port != from.port {
                return None;
            }
            score += 16;
        }
        Some(score)
    }
}

/// The claims on one port.
struct Port<T> {
    /// Those of sockets that were bound.
    bound: BTreeMap<u64, Claim<T>>,
    /// Those of connections: they only keep others from binding.
    connections: BTreeMap<u64, Claim<T>>,
}

impl<T> Port<T> {
    const fn new() -> Self {
        Port { bound: BTreeMap::new(), connections: BTreeMap::new() }
    }
}

/// The ports of a protocol.
pub struct Ports<T: 'static> {
    ports: SpinLock<BTreeMap<u16, Port<T>>>,
    /// Ports of connections that are over: when they are free again, oldest first.
    waiting: SpinLock<VecDeque<(Deadline, Binding<T>)>>,
    /// Whether sockets that reuse addresses may share although one listens.
    listeners_matter: bool,
}

/// A claim that stands; it ends when this is dropped.
pub struct Binding<T: 'static> {
    table: &'static Ports<T>,
    port: u16,
    id: u64,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl<T> Ports<T> {
    /// An empty table.
    pub const fn new(listeners_matter: bool) -> Self {
        Ports { ports: SpinLock::new(BTreeMap::new()), waiting: SpinLock::new(VecDeque::new()), listeners_matter }
    }

    fn conflict(&self, new: &Claim<T>, old: &Claim<T>) -> bool {
        if new.owner.ptr_eq(&old.owner) || !overlap(new, old) {
            return false;
        }
        let by_address = new.reuse_address && old.reuse_address && !(self.listeners_matter && old.listens);
        let by_port = new.reuse_port && old.reuse_port && new.uid == old.uid;
        !by_address && !by_port
    }

    fn is_free(&self, port: &Port<T>, claim: &Claim<T>) -> bool {
        port.bound.values().chain(port.connections.values()).all(|old| !self.conflict(claim, old))
    }

    /// The ports of the local range, from a random one on.
    fn range() -> impl Iterator<Item = u16> {
        let first = RANGE_FIRST.load(Ordering::Relaxed);
        let count = RANGE_LAST.load(Ordering::Relaxed).saturating_sub(first) + 1;
        let start = (rng::u64() % u64::from(count)) as u32;
        (0..count).map(move |i| (first + (start + i) % count) as u16)
    }

    /// Claims `port`, or a free one for 0.
    ///
    /// # Errors
    /// `EADDRINUSE`.
    pub fn bind(&'static self, port: u16, claim: Claim<T>) -> Result<Binding<T>> {
        self.expire();
        let mut ports = self.ports.lock();
        let port = if port == 0 {
            // A port that nobody has, before one that would have to be shared.
            let unused = Self::range().find(|p| !ports.contains_key(p));
            unused.or_else(|| Self::range().find(|p| ports.get(p).is_none_or(|e| self.is_free(e, &claim))))
        } else {
            ports.get(&port).is_none_or(|entry| self.is_free(entry, &claim)).then_some(port)
        };
        let port = port.ok_or(Errno::EADDRINUSE)?;
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        ports.entry(port).or_insert_with(Port::new).bound.insert(id, claim);
        Ok(Binding { table: self, port, id })
    }

    /// Claims a port for a connection: one that no bound socket overlaps and that `is_unique` agrees to.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` when there is none.
    pub fn bind_for_connection(&'static self, claim: Claim<T>, is_unique: impl Fn(u16) -> bool) -> Result<Binding<T>> {
        self.expire();
        let mut ports = self.ports.lock();
        let fits = |p: &u16| {
            ports.get(p).is_none_or(|entry| entry.bound.values().all(|old| !overlap(&claim, old))) && is_unique(*p)
        };
        let port = Self::range().find(fits).ok_or(Errno::EADDRNOTAVAIL)?;
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        ports.entry(port).or_insert_with(Port::new).connections.insert(id, claim);
        Ok(Binding { table: self, port, id })
    }

    /// Claims a listener's port for a connection that it takes.
    pub fn share(&'static self, port: u16, claim: Claim<T>) -> Binding<T> {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        self.ports.lock().entry(port).or_insert_with(Port::new).connections.insert(id, claim);
        Binding { table: self, port, id }
    }

    /// The socket that fits a packet best; sockets that share a port evenly get a share of the senders each.
    pub fn find(&self, to: IpAddr, port: u16, from: &Endpoint, device: u32, listens: bool) -> Option<Arc<T>> {
        let ports = self.ports.lock();
        let entry = ports.get(&port)?;
        let mut best = 0;
        let mut count = 0u64;
        for claim in entry.bound.values().filter(|c| !listens || c.listens) {
            match claim.score(to, Some(from), device) {
                Some(score) if score > best => (best, count) = (score, 1),
                Some(score) if score == best => count += 1,
                _ => {}
            }
        }
        if count == 0 {
            return None;
        }
        let fits =
            entry.bound.values().filter(|c| (!listens || c.listens) && c.score(to, Some(from), device) == Some(best));
        // Without SO_REUSEPORT the latest socket gets it all, as on Linux.
        let chosen = fits.clone().all(|c| c.reuse_port).then(|| hash(from) % count);
        let claim = match chosen {
            Some(index) => fits.clone().nth(index as usize),
            None => fits.clone().next_back(),
        };
        claim.and_then(|c| c.owner.upgrade())
    }

    /// All sockets that a multicast or broadcast packet is for.
    pub fn find_all(&self, to: IpAddr, port: u16, from: &Endpoint, device: u32) -> Vec<Arc<T>> {
        let ports = self.ports.lock();
        let fits = ports.get(&port).map(|entry| {
            let claims = entry.bound.values().filter(|c| c.score(to, Some(from), device).is_some());
            claims.filter_map(|c| c.owner.upgrade()).collect()
        });
        drop(ports);
        fits.unwrap_or_default()
    }

    /// All sockets of the table that are bound, with their ports.
    pub fn all(&self) -> Vec<(u16, Arc<T>)> {
        let ports = self.ports.lock();
        let bound = ports.iter().flat_map(|(port, entry)| entry.bound.values().map(|c| (*port, c)));
        bound.filter_map(|(port, claim)| claim.owner.upgrade().map(|owner| (port, owner))).collect()
    }

    /// How many ended connections keep their port.
    pub fn waiting(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Keeps the claim of a connection that this end closed first for a minute.
    pub fn wait_out(&self, binding: Binding<T>) {
        let mut over = Vec::new();
        let mut waiting = self.waiting.lock();
        waiting.push_back((Deadline::after(TIME_WAIT_NS), binding));
        while waiting.len() > TIME_WAIT_MAX {
            over.extend(waiting.pop_front());
        }
        drop(waiting);
        drop(over);
    }

    fn expire(&self) {
        let mut over = Vec::new();
        let mut waiting = self.waiting.lock();
        while waiting.front().is_some_and(|(at, _)| at.has_passed()) {
            over.extend(waiting.pop_front());
        }
        drop(waiting);
        drop(over);
    }
}

/// Spreads senders over sockets that share a port.
fn hash(from: &Endpoint) -> u64 {
    use core::hash::{BuildHasher, Hasher};
    let mut hasher = foldhash::fast::FixedState::with_seed(0x5bd1_e995).build_hasher();
    core::hash::Hash::hash(from, &mut hasher);
    hasher.finish()
}

impl<T> Binding<T> {
    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes the claim, if the others allow the result.
    ///
    /// # Errors
    /// `EADDRINUSE`.
    pub fn change(&self, change: impl FnOnce(&mut Claim<T>)) -> Result {
        let mut ports = self.table.ports.lock();
        let Some(entry) = ports.get_mut(&self.port) else { return Ok(()) };
        let Some(old) = entry.bound.get(&self.id) else { return Ok(()) };
        let mut new = old.clone();
        change(&mut new);
        if new.listens && !self.table.is_free(entry, &new) {
            return Err(Errno::EADDRINUSE);
        }
        let old = entry.bound.insert(self.id, new);
        drop(ports);
        drop(old);
        Ok(())
    }
}

impl<T> Drop for Binding<T> {
    fn drop(&mut self) {
        let mut ports = self.table.ports.lock();
        let mut old = None;
        if let Some(entry) = ports.get_mut(&self.port) {
            old = entry.bound.remove(&self.id).or_else(|| entry.connections.remove(&self.id));
            if entry.bound.is_empty() && entry.connections.is_empty() {
                ports.remove(&self.port);
            }
        }
        drop(ports);
        drop(old);
    }
}
