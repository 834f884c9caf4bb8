//! The kernel's random numbers: [`fill`], and [`mix`] for what writers of `/dev/urandom` add.
//!
//! A base key, seeded from the hardware, is stretched by ChaCha20 into one generator per CPU. A generator makes a batch
//! of 256 bytes: the first 32 replace its key, the rest is handed out and wiped as it goes, so that a later look at
//! memory tells nothing about earlier output (fast key erasure, as Linux's `crng`). Every CPU takes a new key when the
//! base's generation has moved; the base is reseeded from the hardware each minute that somebody asks.
//!
//! ChaCha20 is `rand_chacha`, built without SIMD: the kernel does not touch vector registers.
//! References: random(7), getrandom(2); D. J. Bernstein, "Fast-key-erasure random-number generators" (2017).

use core::sync::atomic::{AtomicU64, Ordering::*};

use blake2::Blake2s256;
use blake2::digest::Digest;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use ursa_hal::percpu::PerCpu;
use ursa_hal::sync::{IrqLock, Lazy};

const BATCH: usize = 256;
const KEY: usize = 32;
const RESEED_NS: u64 = 60_000_000_000;

struct Base {
    key: [u8; KEY],
    seeded_ns: u64,
}

struct Generator {
    generation: u64,
    key: [u8; KEY],
    batch: [u8; BATCH],
    /// What of `batch` is handed out.
    used: usize,
}

static GENERATION: AtomicU64 = AtomicU64::new(0);
static RESEED_AT: AtomicU64 = AtomicU64::new(0);
static BASE: IrqLock<Base> = IrqLock::new(Base { key: [0; KEY], seeded_ns: 0 });
static GENERATORS: Lazy<PerCpu<IrqLock<Generator>>> = Lazy::new(|| {
    PerCpu::new(|_| IrqLock::new(Generator { generation: 0, key: [0; KEY], batch: [0; BATCH], used: BATCH }))
});

impl Base {
    /// Hashes `input` and fresh hardware entropy into the key.
    fn absorb(&mut self, input: &[u8]) {
        let mut hardware = [0; KEY];
        ursa_hal::rand::seed_bytes(&mut hardware);
        let mut hash = Blake2s256::new();
        hash.update(self.key);
        hash.update(hardware);
        hash.update(input);
        self.key.copy_from_slice(&hash.finalize());
        self.seeded_ns = ursa_hal::time::monotonic_ns();
        RESEED_AT.store(self.seeded_ns + RESEED_NS, Relaxed);
        let generation = GENERATION.fetch_add(1, Release) + 1;
        crate::time::vdso::set_random_generation(generation);
    }

    /// Returns a key for a generator and moves on.
    fn derive(&mut self) -> [u8; KEY] {
        let mut out = [0; 2 * KEY];
        ChaCha20Rng::from_seed(self.key).fill_bytes(&mut out);
        self.key.copy_from_slice(&out[..KEY]);
        let mut derived = [0; KEY];
        derived.copy_from_slice(&out[KEY..]);
        derived
    }
}

impl Generator {
    fn refill(&mut self) {
        let generation = GENERATION.load(Acquire);
        if self.generation != generation {
            self.key = BASE.lock().derive();
            self.generation = generation;
        }
        ChaCha20Rng::from_seed(self.key).fill_bytes(&mut self.batch);
        self.key.copy_from_slice(&self.batch[..KEY]);
        self.batch[..KEY].fill(0);
        self.used = KEY;
    }

    fn take(&mut self, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            if self.used == BATCH || self.generation != GENERATION.load(Acquire) {
                self.refill();
            }
            let n = (out.len() - done).min(BATCH - self.used);
            let from = &mut self.batch[self.used..self.used + n];
            out[done..done + n].copy_from_slice(from);
            from.fill(0);
            self.used += n;
            done += n;
        }
    }
}

/// Fills `out` with random bytes. Large requests run on a key of their own, so that no lock is held for long.
pub fn fill(out: &mut [u8]) {
    if GENERATION.load(Acquire) == 0 || ursa_hal::time::monotonic_ns() >= RESEED_AT.load(Relaxed) {
        BASE.lock().absorb(&[]);
    }
    if out.len() <= BATCH - KEY {
        GENERATORS.get().lock().take(out);
    } else {
        let mut key = [0; KEY];
        GENERATORS.get().lock().take(&mut key);
        ChaCha20Rng::from_seed(key).fill_bytes(out);
    }
}

/// Returns a random number.
pub fn u64() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// Returns a source of random bytes on a key of its own, for a request that is served in pieces.
pub fn stream() -> impl FnMut(&mut [u8]) {
    let mut key = [0; KEY];
    fill(&mut key);
    let mut rng = ChaCha20Rng::from_seed(key);
    move |out| rng.fill_bytes(out)
}

/// Mixes `input` into the base key. It can only add: the hardware's entropy stays in.
pub fn mix(input: &[u8]) {
    BASE.lock().absorb(input);
}
