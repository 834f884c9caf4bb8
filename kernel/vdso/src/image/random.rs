//! Random bytes from a generator in the program's own memory, keyed by the kernel (`vgetrandom`).
//!
//! A [`State`] lies in memory that the program mapped with the flags of [`Parameters`]: `MAP_DROPPABLE`, which a fork leaves
//! empty and which the kernel may empty at any time. A state whose generation is not the kernel's is keyed anew, and an empty
//! one has generation 0, which the kernel never has: what was drawn is handed out only if the generation still stands
//! afterwards. Key and unused bytes are overwritten as soon as they are used (fast key erasure).
//!
//! References: Linux `lib/vdso/getrandom.c`, `<uapi/linux/random.h>`; glibc `sysdeps/unix/sysv/linux/getrandom.c`.

use core::ptr;
use core::sync::atomic::{Ordering, compiler_fence};

use super::syscall;
use crate::Data;
use crate::chacha::{self, BLOCK, KEY};

const SYS_GETRANDOM: usize = 318;
const GRND_NONBLOCK: u32 = 1;
const GRND_RANDOM: u32 = 2;
const GRND_INSECURE: u32 = 4;
const EFAULT: isize = 14;

/// Bytes that one refill gives: two blocks, less the next key.
const BATCH: usize = 2 * BLOCK - KEY;

/// `struct vgetrandom_opaque_params`: what the memory for a [`State`] must be.
#[repr(C)]
pub struct Parameters {
    size_of_opaque_state: u32,
    mmap_prot: u32,
    mmap_flags: u32,
    reserved: [u32; 13],
}

impl Parameters {
    /// Ours.
    pub const THIS: Parameters = Parameters {
        size_of_opaque_state: size_of::<State>() as u32,
        mmap_prot: 1 | 2,        // PROT_READ | PROT_WRITE
        mmap_flags: 0x08 | 0x20, // MAP_DROPPABLE | MAP_ANONYMOUS
        reserved: [0; 13],
    };
}

/// A generator. The words are a batch of random bytes with the key for the next one behind it.
#[repr(C)]
pub struct State {
    words: [u32; 2 * BLOCK / 4],
    generation: u64,
    /// Bytes of the batch that are used up.
    position: u32,
    in_use: u32,
}

/// Copies `count` bytes of the batch out and wipes them.
///
/// # Safety
/// `state` is a state, `from + count` at most [`BATCH`], `to` takes `count` bytes.
#[inline]
unsafe fn take(state: *mut State, from: usize, to: *mut u8, count: usize) {
    // SAFETY: as above.
    unsafe {
        let batch = (&raw mut (*state).words).cast::<u8>().add(from);
        let mut i = 0;
        while i < count {
            to.add(i).write_volatile(batch.add(i).read_volatile());
            batch.add(i).write_volatile(0);
            i += 1;
        }
    }
}

/// Where the key is in [`State::words`].
const KEY_AT: usize = BATCH / 4;

/// Reads the key.
///
/// # Safety
/// `state` is a state.
#[inline]
unsafe fn key(state: *mut State) -> [u32; 8] {
    let mut key = [0; 8];
    let mut i = 0;
    while i < 8 {
        // SAFETY: `KEY_AT + 8` words are there.
        key[i] = unsafe { (&raw const (*state).words).cast::<u32>().add(KEY_AT + i).read_volatile() };
        i += 1;
    }
    key
}

/// getrandom(2) from `state`.
///
/// # Safety
/// `buffer` takes `length` bytes and `state` is a state that no other thread uses; a bad pointer faults.
pub unsafe fn fill(data: &Data, buffer: *mut u8, length: usize, flags: u32, state: *mut State) -> isize {
    let ask_kernel = || syscall(SYS_GETRANDOM, [buffer as usize, length, flags as usize, 0, 0]);
    // A state over the edge of a page could lose one half of it.
    if state as usize % super::PAGE + size_of::<State>() > super::PAGE {
        return -EFAULT;
    }
    if flags & !(GRND_NONBLOCK | GRND_RANDOM | GRND_INSECURE) != 0 || flags & (GRND_RANDOM | GRND_INSECURE) != 0 {
        return ask_kernel();
    }
    if length == 0 {
        return 0;
    }
    let length = length.min(isize::MAX as usize);
    // SAFETY: the state is the caller's, in one page; volatile accesses, since the kernel may empty the page at any time.
    unsafe {
        let in_use = &raw mut (*state).in_use;
        // A signal handler that interrupted another call on this state asks the kernel.
        if in_use.read_volatile() != 0 {
            return ask_kernel();
        }
        in_use.write_volatile(1);
        let generation = &raw mut (*state).generation;
        let position = &raw mut (*state).position;
        loop {
            let current = data.random_generation.load(Ordering::Acquire);
            if current == 0 {
                in_use.write_volatile(0);
                return ask_kernel();
            }
            if generation.read_volatile() != current {
                // The generation stands before the key: a page that is emptied between has generation 0 afterwards.
                generation.write_volatile(current);
                compiler_fence(Ordering::SeqCst);
                let key = (&raw mut (*state).words).cast::<u32>().add(KEY_AT);
                if syscall(SYS_GETRANDOM, [key as usize, KEY, 0, 0, 0]) != KEY as isize {
                    generation.write_volatile(0);
                    in_use.write_volatile(0);
                    return ask_kernel();
                }
                position.write_volatile(BATCH as u32);
            }
            let mut done = 0;
            let mut counter = 0;
            loop {
                let used = (position.read_volatile() as usize).min(BATCH);
                let count = (BATCH - used).min(length - done);
                take(state, used, buffer.add(done), count);
                position.write_volatile((used + count) as u32);
                done += count;
                if done == length {
                    break;
                }
                let mut now = key(state);
                // Whole blocks go out without a stop in the batch.
                while length - done >= BLOCK {
                    let block = chacha::block(&now, counter);
                    counter += 1;
                    ptr::copy_nonoverlapping((&raw const block).cast::<u8>(), buffer.add(done), BLOCK);
                    done += BLOCK;
                }
                let words = (&raw mut (*state).words).cast::<u32>();
                let mut half = 0;
                while half < 2 {
                    let block = chacha::block(&now, counter);
                    counter += 1;
                    let mut i = 0;
                    while i < BLOCK / 4 {
                        words.add(half * (BLOCK / 4) + i).write_volatile(block[i]);
                        i += 1;
                    }
                    half += 1;
                }
                // The key for the next time stands behind the batch; the old one is not kept.
                (&raw mut now).write_volatile([0; 8]);
                position.write_volatile(0);
                counter = 0;
            }
            compiler_fence(Ordering::SeqCst);
            if generation.read_volatile() == data.random_generation.load(Ordering::Acquire) {
                in_use.write_volatile(0);
                return length as isize;
            }
        }
    }
}
