//! Entropy for the kernel's generator: CPU instructions where there are any, and the jitter of the TSC.
//!
//! `core` runs the generator itself; this only gives seeds. What the CPU gives is mixed with jitter rather than believed.
//! References: Intel SDM volume 1, 7.3.17 (RDRAND, RDSEED).

use core::arch::asm;

use crate::cpu::{Features, features, rdtsc};

macro_rules! random_instruction {
    ($name:ident, $insn:literal, $flag:ident) => {
        fn $name() -> Option<u64> {
            if !features().contains(Features::$flag) {
                return None;
            }
            for _ in 0..10 {
                let (v, ok): (u64, u8);
                // SAFETY: the CPU has the instruction; it writes the two registers and flags.
                unsafe { asm!(concat!($insn, " {}"), "setc {}", out(reg) v, out(reg_byte) ok, options(nomem, nostack)) };
                if ok != 0 {
                    return Some(v);
                }
                core::hint::spin_loop();
            }
            None
        }
    };
}
random_instruction!(rdseed, "rdseed", RDSEED);
random_instruction!(rdrand, "rdrand", RDRAND);

/// Finalizer of splitmix64: every input bit reaches every output bit.
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Folds the timing noise of memory and pipeline into 64 bits.
fn jitter(mut h: u64) -> u64 {
    let mut table = [0u8; 256];
    for i in 0..256u64 {
        let t = rdtsc();
        let at = (t ^ h) as usize & 255;
        table[at] = core::hint::black_box(table[at].wrapping_add(i as u8));
        h = mix(h ^ rdtsc().wrapping_sub(t) << 32 ^ t ^ u64::from(table[at]));
    }
    h
}

/// Whether the CPU has a random number generator; without one the seeds hold timing noise alone.
pub fn has_hardware() -> bool {
    features().intersects(Features::RDSEED | Features::RDRAND)
}

/// Fills `seed` with fresh entropy.
pub fn seed_bytes(seed: &mut [u8; 32]) {
    let mut h = jitter(0x9e37_79b9_7f4a_7c15 ^ crate::time::monotonic_ns());
    for chunk in seed.chunks_exact_mut(8) {
        h = jitter(h);
        let v = h ^ rdseed().or_else(rdrand).map_or(0, mix);
        chunk.copy_from_slice(&v.to_le_bytes());
    }
}
