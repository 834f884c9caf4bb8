//! Sequence lock.

use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::mem::{MaybeUninit, size_of};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// Small `Copy` data whose readers copy it without a lock and try again when a writer was at work.
///
/// Writers exclude each other with the sequence word and have interrupts off meanwhile, so readers and writers may be in
/// any context. The value is read and written in atomic pieces: a torn copy is possible and thrown away.
pub struct SeqLock<T: Copy> {
    seq: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: all access to the value goes through atomic pieces.
unsafe impl<T: Copy + Send> Sync for SeqLock<T> {}

impl<T: Copy> SeqLock<T> {
    /// A lock with a first value.
    pub const fn new(value: T) -> Self {
        Self { seq: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }
    /// A consistent copy.
    #[inline]
    pub fn read(&self) -> T {
        loop {
            let before = self.seq.load(Ordering::Acquire);
            if before & 1 == 0 {
                let mut out = MaybeUninit::<T>::uninit();
                // SAFETY: source and destination are valid; the source is only ever accessed atomically.
                unsafe { load_pieces(self.value.get(), out.as_mut_ptr()) };
                fence(Ordering::Acquire);
                if self.seq.load(Ordering::Relaxed) == before {
                    // SAFETY: no writer was at work between the two reads, so the copy is a value that was stored.
                    return unsafe { out.assume_init() };
                }
            }
            spin_loop();
        }
    }
    /// Replaces the value.
    pub fn write(&self, value: T) {
        self.update(|v| *v = value);
    }
    /// Changes the value; writers exclude each other.
    pub fn update(&self, f: impl FnOnce(&mut T)) {
        let _irqs = super::IrqsOff::new();
        let mut s = self.seq.load(Ordering::Relaxed);
        loop {
            if s & 1 == 0 {
                match self.seq.compare_exchange_weak(s, s.wrapping_add(1), Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => break,
                    Err(now) => s = now,
                }
            } else {
                spin_loop();
                s = self.seq.load(Ordering::Relaxed);
            }
        }
        fence(Ordering::Release);
        // SAFETY: this is the only writer; others only load atomically.
        let mut v = unsafe { *self.value.get() };
        f(&mut v);
        let src = (&raw const v).cast::<u8>();
        let dst = self.value.get().cast::<u8>();
        let n = size_of::<T>();
        let mut i = 0;
        // SAFETY: within both values; 8-byte pieces only where the destination is aligned.
        unsafe {
            while i < n {
                if n - i >= 8 && (dst as usize + i).is_multiple_of(8) {
                    (*dst.add(i).cast::<AtomicU64>())
                        .store(src.add(i).cast::<u64>().read_unaligned(), Ordering::Relaxed);
                    i += 8;
                } else {
                    (*dst.add(i).cast::<AtomicU8>()).store(src.add(i).read(), Ordering::Relaxed);
                    i += 1;
                }
            }
        }
        self.seq.store(s.wrapping_add(2), Ordering::Release);
    }
}

/// Copies `*src` to `*dst`, loading atomic pieces.
///
/// # Safety
/// Both are valid, all concurrent access to `*src` is atomic, `*dst` is the caller's alone.
#[inline]
unsafe fn load_pieces<T>(src: *const T, dst: *mut T) {
    let (src, dst) = (src.cast::<u8>(), dst.cast::<u8>());
    let n = size_of::<T>();
    let mut i = 0;
    // SAFETY: inside the values; 8-byte pieces only where the source is aligned.
    unsafe {
        while i < n {
            if n - i >= 8 && (src as usize + i).is_multiple_of(8) {
                dst.add(i).cast::<u64>().write_unaligned((*src.add(i).cast::<AtomicU64>()).load(Ordering::Relaxed));
                i += 8;
            } else {
                dst.add(i).write((*src.add(i).cast::<AtomicU8>()).load(Ordering::Relaxed));
                i += 1;
            }
        }
    }
}
