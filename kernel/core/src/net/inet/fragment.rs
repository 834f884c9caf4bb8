//! Fragments of IP packets, until the rest has come: [`Reassembly`].
//!
//! Overlapping fragments end their packet, as RFC 5722 demands for IPv6 and Linux does for IPv4 as well. References: RFC 791,
//! RFC 8200 section 4.5, `net/ipv4/inet_fragment.c`.

use alloc::vec::Vec;
use core::net::IpAddr;

use ursa_hal::sync::SpinLock;

use crate::time::Deadline;

/// Packets in work at most, on an interface.
const PACKETS_MAX: usize = 64;
/// Fragments of one packet at most: 64 KiB in pieces of a minimal link, and some.
const PIECES_MAX: usize = 160;
/// How long the rest may take (`net.ipv4.ipfrag_time`).
const TIME_NS: u64 = 30_000_000_000;
/// The longest packet.
const LENGTH_MAX: usize = 65_535;

/// What the fragments of a packet have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Sender.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
    /// `IPPROTO_*`
    pub protocol: u8,
    /// The packet's number.
    pub id: u32,
}

struct Partial {
    key: Key,
    deadline: Deadline,
    /// In the order of their offsets.
    pieces: Vec<(usize, Vec<u8>)>,
    /// Where the packet ends, once the last fragment has come.
    end: Option<usize>,
}

/// Packets of which some fragments have come.
pub struct Reassembly(SpinLock<Vec<Partial>>);

impl Reassembly {
    /// None.
    pub const fn new() -> Reassembly {
        Reassembly(SpinLock::new(Vec::new()))
    }

    /// Adds a fragment; the whole payload if it was the last that was missing.
    pub fn add(&self, key: Key, offset: usize, more: bool, data: &[u8]) -> Option<Vec<u8>> {
        // All but the last are multiples of eight bytes.
        if more && !data.len().is_multiple_of(8) || data.is_empty() || offset + data.len() > LENGTH_MAX {
            return None;
        }
        let mut partials = self.0.lock();
        partials.retain(|p| !p.deadline.has_passed());
        let at = match partials.iter().position(|p| p.key == key) {
            Some(at) => at,
            None => {
                if partials.len() >= PACKETS_MAX {
                    partials.remove(0);
                }
                partials.push(Partial { key, deadline: Deadline::after(TIME_NS), pieces: Vec::new(), end: None });
                partials.len() - 1
            }
        };
        let partial = &mut partials[at];
        if !partial.insert(offset, more, data) {
            partials.swap_remove(at);
            return None;
        }
        partial.is_whole().then(|| partials.swap_remove(at).pieces.into_iter().flat_map(|(_, piece)| piece).collect())
    }
}

impl Partial {
    /// Puts a piece in its place; false when it contradicts the others.
    fn insert(&mut self, offset: usize, more: bool, data: &[u8]) -> bool {
        let end = offset + data.len();
        if !more {
            if self.end.is_some_and(|e| e != end) {
                return false;
            }
            self.end = Some(end);
        }
        if self.end.is_some_and(|e| end > e) || self.pieces.len() >= PIECES_MAX {
            return false;
        }
        let at = self.pieces.partition_point(|(o, _)| *o < offset);
        if self.pieces.get(at).is_some_and(|(o, piece)| *o == offset && piece == data) {
            // The same once more.
            return true;
        }
        let before_ends = at.checked_sub(1).map_or(0, |i| self.pieces[i].0 + self.pieces[i].1.len());
        let after_begins = self.pieces.get(at).map_or(usize::MAX, |(o, _)| *o);
        if before_ends > offset || after_begins < end {
            return false;
        }
        self.pieces.insert(at, (offset, data.to_vec()));
        true
    }

    fn is_whole(&self) -> bool {
        let mut next = 0;
        for (offset, piece) in &self.pieces {
            if *offset != next {
                return false;
            }
            next += piece.len();
        }
        self.end == Some(next)
    }
}
