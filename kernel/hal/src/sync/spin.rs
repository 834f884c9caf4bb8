//! Test-and-set spin lock.
//!
//! Not a ticket lock: under an emulator or a busy hypervisor a descheduled virtual CPU would hold up everyone behind it
//! in the queue, and sections are short enough for fairness not to matter.

use super::dep;
use core::cell::UnsafeCell;
use core::fmt;
use core::hint::spin_loop;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, Ordering};

/// Mutual exclusion for short sections in task context. `LEVEL` is the lock's place in the locking order (0: unchecked).
///
/// Never take one in interrupt context: the handler could spin on a lock that the interrupted task holds.
pub struct SpinLock<T: ?Sized, const LEVEL: u8 = 0> {
    locked: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the lock gives one holder at a time access to the value.
unsafe impl<T: ?Sized + Send, const L: u8> Sync for SpinLock<T, L> {}
// SAFETY: moving the lock moves the value.
unsafe impl<T: ?Sized + Send, const L: u8> Send for SpinLock<T, L> {}

impl<T, const L: u8> SpinLock<T, L> {
    /// An unlocked lock.
    pub const fn new(value: T) -> Self {
        Self { locked: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }
    /// The value back.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized, const L: u8> SpinLock<T, L> {
    /// Waits for the lock.
    #[inline]
    pub fn lock(&self) -> SpinLockGuard<'_, T, L> {
        dep::acquire(L);
        if self.locked.swap(true, Ordering::Acquire) {
            self.contended();
        }
        SpinLockGuard { lock: self, _not_send: PhantomData }
    }
    /// Takes the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<SpinLockGuard<'_, T, L>> {
        if self.locked.swap(true, Ordering::Acquire) {
            return None;
        }
        dep::acquire(L);
        Some(SpinLockGuard { lock: self, _not_send: PhantomData })
    }
    #[cold]
    fn contended(&self) {
        loop {
            while self.locked.load(Ordering::Relaxed) {
                spin_loop();
            }
            if !self.locked.swap(true, Ordering::Acquire) {
                return;
            }
        }
    }
    /// Whether anyone holds it.
    pub fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Relaxed)
    }
    /// The value, without locking: `&mut self` proves that nobody else has it.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T: Default, const L: u8> Default for SpinLock<T, L> {
    fn default() -> Self {
        Self::new(T::default())
    }
}
impl<T, const L: u8> From<T> for SpinLock<T, L> {
    fn from(v: T) -> Self {
        Self::new(v)
    }
}
impl<T: fmt::Debug, const L: u8> fmt::Debug for SpinLock<T, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.try_lock() {
            Some(g) => f.debug_tuple("SpinLock").field(&*g).finish(),
            None => f.write_str("SpinLock(<locked>)"),
        }
    }
}

/// Holds a [`SpinLock`].
#[must_use]
pub struct SpinLockGuard<'a, T: ?Sized, const L: u8 = 0> {
    lock: &'a SpinLock<T, L>,
    _not_send: PhantomData<*mut ()>,
}

// SAFETY: a shared guard gives `&T` only.
unsafe impl<T: ?Sized + Sync, const L: u8> Sync for SpinLockGuard<'_, T, L> {}

impl<T: ?Sized, const L: u8> Deref for SpinLockGuard<'_, T, L> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}
impl<T: ?Sized, const L: u8> DerefMut for SpinLockGuard<'_, T, L> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock and is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}
impl<T: ?Sized, const L: u8> Drop for SpinLockGuard<'_, T, L> {
    #[inline]
    fn drop(&mut self) {
        self.lock.locked.store(false, Ordering::Release);
        dep::release(L);
    }
}
