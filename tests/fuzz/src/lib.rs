//! Fuzzing of the parsers that read what others wrote: programs, archives, servers, terminals, the network, the guest.
//!
//! A [`Target`] takes bytes and must hold its own promises on any of them: it ends, does not panic (overflow checks are on),
//! and what it says about the bytes is true. [`run`] feeds it mutations of a few sound inputs, from a seed, so that a failure
//! repeats. `cargo test` gives each a moment; `cargo run --release -p ursa-fuzz -- TARGET SECONDS` gives one as long as asked.
#![deny(unsafe_code)]

extern crate alloc;

mod elsewhere;
mod mutate;
mod system;
mod targets;

use std::time::{Duration, Instant};

pub use mutate::Mutator;

/// All parsers.
pub fn all() -> impl Iterator<Item = &'static Target> {
    targets::TARGETS.iter().chain(system::TARGETS)
}

// As the kernel's files name them.
use linux_uapi::Errno;
type Result<T = (), E = Errno> = std::result::Result<T, E>;

/// A parser under test.
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// Sound inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Parses; panics when a promise is broken.
    pub parse: fn(&[u8]),
}

/// Feeds `target` until `limit` has passed or `count` inputs were tried; how many were.
pub fn run(target: &Target, seed: u64, limit: Duration, count: u64) -> u64 {
    let seeds = (target.seeds)();
    for input in &seeds {
        (target.parse)(input);
    }
    let mut mutator = Mutator::new(seed);
    let start = Instant::now();
    let mut tried = 0;
    // The clock is looked at now and then only.
    while tried < count && (tried % 64 != 0 || start.elapsed() < limit) {
        let input = mutator.mutate(&seeds);
        (target.parse)(&input);
        tried += 1;
    }
    tried
}
