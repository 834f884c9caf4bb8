//! Spinning reader-writer lock.

use super::dep;
use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

const WRITER: u32 = 1 << 31;
/// A writer waits: new readers hold back, so that a stream of readers cannot starve it.
const WAITING: u32 = 1 << 30;

/// Many readers or one writer, for short sections in task context. A reader must not take it again while it holds it.
pub struct RwSpinLock<T: ?Sized, const LEVEL: u8 = 0> {
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: readers share `&T`, a writer is alone.
unsafe impl<T: ?Sized + Send + Sync, const L: u8> Sync for RwSpinLock<T, L> {}
// SAFETY: moving the lock moves the value.
unsafe impl<T: ?Sized + Send, const L: u8> Send for RwSpinLock<T, L> {}

impl<T, const L: u8> RwSpinLock<T, L> {
    /// An unlocked lock.
    pub const fn new(value: T) -> Self {
        Self { state: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }
    /// The value back.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized, const L: u8> RwSpinLock<T, L> {
    /// Waits until no writer holds it.
    #[inline]
    pub fn read(&self) -> RwSpinReadGuard<'_, T, L> {
        dep::acquire(L);
        loop {
            let s = self.state.load(Ordering::Relaxed);
            if s & (WRITER | WAITING) == 0
                && self.state.compare_exchange_weak(s, s + 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return RwSpinReadGuard { lock: self, _not_send: PhantomData };
            }
            spin_loop();
        }
    }
    /// Waits until nobody holds it.
    #[inline]
    pub fn write(&self) -> RwSpinWriteGuard<'_, T, L> {
        dep::acquire(L);
        loop {
            let s = self.state.load(Ordering::Relaxed);
            if s & !WAITING == 0 {
                if self.state.compare_exchange_weak(s, WRITER, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return RwSpinWriteGuard { lock: self, _not_send: PhantomData };
                }
            } else if s & WAITING == 0 {
                self.state.fetch_or(WAITING, Ordering::Relaxed);
            }
            spin_loop();
        }
    }
    /// Takes it for writing if nobody holds it.
    #[inline]
    pub fn try_write(&self) -> Option<RwSpinWriteGuard<'_, T, L>> {
        self.state.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).ok()?;
        dep::acquire(L);
        Some(RwSpinWriteGuard { lock: self, _not_send: PhantomData })
    }
    /// The value, without locking.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T: Default, const L: u8> Default for RwSpinLock<T, L> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// Holds a [`RwSpinLock`] for reading.
#[must_use]
pub struct RwSpinReadGuard<'a, T: ?Sized, const L: u8 = 0> {
    lock: &'a RwSpinLock<T, L>,
    _not_send: PhantomData<*mut ()>,
}
/// Holds a [`RwSpinLock`] for writing.
#[must_use]
pub struct RwSpinWriteGuard<'a, T: ?Sized, const L: u8 = 0> {
    lock: &'a RwSpinLock<T, L>,
    _not_send: PhantomData<*mut ()>,
}

impl<T: ?Sized, const L: u8> Deref for RwSpinReadGuard<'_, T, L> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: held for reading, no writer exists.
        unsafe { &*self.lock.value.get() }
    }
}
impl<T: ?Sized, const L: u8> Deref for RwSpinWriteGuard<'_, T, L> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: held for writing.
        unsafe { &*self.lock.value.get() }
    }
}
impl<T: ?Sized, const L: u8> DerefMut for RwSpinWriteGuard<'_, T, L> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: held for writing and borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}
impl<T: ?Sized, const L: u8> Drop for RwSpinReadGuard<'_, T, L> {
    #[inline]
    fn drop(&mut self) {
        self.lock.state.fetch_sub(1, Ordering::Release);
        dep::release(L);
    }
}
impl<T: ?Sized, const L: u8> Drop for RwSpinWriteGuard<'_, T, L> {
    #[inline]
    fn drop(&mut self) {
        self.lock.state.fetch_and(WAITING, Ordering::Release);
        dep::release(L);
    }
}
