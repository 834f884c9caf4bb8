//! Locks that sleep while they wait. What sleeping means is the scheduler's: see [`Park`].

use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

/// How a task waits and is woken.
pub trait Park {
    /// Tasks that wait.
    type Queue: Default + Send + Sync;
    /// Sleeps until `cond` holds. `cond` is called at least once, again after each wake-up, and always after the caller is
    /// on the queue, so that no wake-up is lost.
    fn wait_until(queue: &Self::Queue, cond: &mut dyn FnMut() -> bool);
    /// Wakes one waiter.
    fn wake_one(queue: &Self::Queue);
    /// Wakes all waiters.
    fn wake_all(queue: &Self::Queue);
}

const FREE: u32 = 0;
const LOCKED: u32 = 1;
const CONTENDED: u32 = 2;

/// Mutual exclusion; waiting tasks sleep. Free: one atomic operation to lock, one to unlock.
pub struct Mutex<T: ?Sized, P: Park> {
    state: AtomicU32,
    queue: P::Queue,
    value: UnsafeCell<T>,
}

// SAFETY: one holder at a time.
unsafe impl<T: ?Sized + Send, P: Park> Sync for Mutex<T, P> {}
// SAFETY: moving the lock moves the value.
unsafe impl<T: ?Sized + Send, P: Park> Send for Mutex<T, P> {}

impl<T, P: Park> Mutex<T, P> {
    /// An unlocked mutex.
    pub fn new(value: T) -> Self {
        Self { state: AtomicU32::new(FREE), queue: P::Queue::default(), value: UnsafeCell::new(value) }
    }
    /// An unlocked mutex with a queue made by the caller, for statics.
    pub const fn with_queue(value: T, queue: P::Queue) -> Self {
        Self { state: AtomicU32::new(FREE), queue, value: UnsafeCell::new(value) }
    }
    /// The value back.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized, P: Park> Mutex<T, P> {
    /// Sleeps until the lock is this task's.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T, P> {
        super::might_sleep();
        if self.state.compare_exchange(FREE, LOCKED, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.contended();
        }
        MutexGuard { lock: self, _not_send: PhantomData }
    }
    /// Takes the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T, P>> {
        self.state.compare_exchange(FREE, LOCKED, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(MutexGuard { lock: self, _not_send: PhantomData })
    }
    #[cold]
    fn contended(&self) {
        // Whoever slept leaves CONTENDED behind: there may be more sleepers.
        P::wait_until(&self.queue, &mut || self.state.swap(CONTENDED, Ordering::Acquire) == FREE);
    }
    /// Whether anyone holds it.
    pub fn is_locked(&self) -> bool {
        self.state.load(Ordering::Relaxed) != FREE
    }
    /// The value, without locking.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T: Default, P: Park> Default for Mutex<T, P> {
    fn default() -> Self {
        Self::new(T::default())
    }
}
impl<T: fmt::Debug, P: Park> fmt::Debug for Mutex<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.try_lock() {
            Some(g) => f.debug_tuple("Mutex").field(&*g).finish(),
            None => f.write_str("Mutex(<locked>)"),
        }
    }
}

/// Holds a [`Mutex`].
#[must_use]
pub struct MutexGuard<'a, T: ?Sized, P: Park> {
    lock: &'a Mutex<T, P>,
    _not_send: PhantomData<*mut ()>,
}
impl<T: ?Sized, P: Park> Deref for MutexGuard<'_, T, P> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}
impl<T: ?Sized, P: Park> DerefMut for MutexGuard<'_, T, P> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock and is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}
impl<T: ?Sized, P: Park> Drop for MutexGuard<'_, T, P> {
    #[inline]
    fn drop(&mut self) {
        if self.lock.state.swap(FREE, Ordering::Release) == CONTENDED {
            P::wake_one(&self.lock.queue);
        }
    }
}

const WRITER: u32 = 1 << 31;
/// A task sleeps on the queue, or is about to.
const WAITING: u32 = 1 << 30;
const READERS: u32 = WAITING - 1;

/// Many readers or one writer; waiting tasks sleep. A sleeping writer holds new readers back, so neither side starves
/// and a reader must not take the lock again while it holds it.
pub struct RwLock<T: ?Sized, P: Park> {
    state: AtomicU32,
    queue: P::Queue,
    value: UnsafeCell<T>,
}

// SAFETY: readers share `&T`, a writer is alone.
unsafe impl<T: ?Sized + Send + Sync, P: Park> Sync for RwLock<T, P> {}
// SAFETY: moving the lock moves the value.
unsafe impl<T: ?Sized + Send, P: Park> Send for RwLock<T, P> {}

impl<T, P: Park> RwLock<T, P> {
    /// An unlocked lock.
    pub fn new(value: T) -> Self {
        Self { state: AtomicU32::new(0), queue: P::Queue::default(), value: UnsafeCell::new(value) }
    }
    /// An unlocked lock with a queue made by the caller, for statics.
    pub const fn with_queue(value: T, queue: P::Queue) -> Self {
        Self { state: AtomicU32::new(0), queue, value: UnsafeCell::new(value) }
    }
    /// The value back.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized, P: Park> RwLock<T, P> {
    #[inline]
    fn try_read_state(&self, mask: u32) -> bool {
        let mut s = self.state.load(Ordering::Relaxed);
        while s & mask == 0 {
            assert!(s & READERS != READERS, "too many readers");
            match self.state.compare_exchange_weak(s, s + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => s = now,
            }
        }
        false
    }
    fn try_write_state(&self) -> bool {
        let mut s = self.state.load(Ordering::Relaxed);
        while s & (WRITER | READERS) == 0 {
            match self.state.compare_exchange_weak(s, s | WRITER, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => s = now,
            }
        }
        false
    }
    /// Marks that someone waits; false when `busy` no longer holds, so that the caller tries again instead of sleeping.
    fn mark_waiting(&self, busy: u32) -> bool {
        let s = self.state.load(Ordering::Relaxed);
        s & busy != 0
            && (s & WAITING != 0
                || self.state.compare_exchange(s, s | WAITING, Ordering::Relaxed, Ordering::Relaxed).is_ok())
    }

    /// Sleeps until it is held for reading.
    #[inline]
    pub fn read(&self) -> RwLockReadGuard<'_, T, P> {
        super::might_sleep();
        if !self.try_read_state(WRITER | WAITING) {
            self.read_slow();
        }
        RwLockReadGuard { lock: self, _not_send: PhantomData }
    }
    #[cold]
    fn read_slow(&self) {
        // Once queued, a reader is only held back by a writer that is in: wake-ups let readers and writers race fairly.
        P::wait_until(&self.queue, &mut || {
            loop {
                if self.try_read_state(WRITER) {
                    return true;
                }
                if self.mark_waiting(WRITER) {
                    return false;
                }
            }
        });
    }
    /// Sleeps until it is held for writing.
    #[inline]
    pub fn write(&self) -> RwLockWriteGuard<'_, T, P> {
        super::might_sleep();
        if self.state.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.write_slow();
        }
        RwLockWriteGuard { lock: self, _not_send: PhantomData }
    }
    #[cold]
    fn write_slow(&self) {
        P::wait_until(&self.queue, &mut || {
            loop {
                if self.try_write_state() {
                    return true;
                }
                if self.mark_waiting(WRITER | READERS) {
                    return false;
                }
            }
        });
    }
    /// Takes it for reading if no writer has it or waits for it.
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T, P>> {
        self.try_read_state(WRITER | WAITING).then(|| RwLockReadGuard { lock: self, _not_send: PhantomData })
    }
    /// Takes it for writing if nobody has it.
    pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T, P>> {
        self.try_write_state().then(|| RwLockWriteGuard { lock: self, _not_send: PhantomData })
    }
    /// The value, without locking.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
    /// The last holder is out: everyone who waits may race for it.
    #[cold]
    fn wake(&self) {
        self.state.fetch_and(!WAITING, Ordering::Relaxed);
        P::wake_all(&self.queue);
    }
}

impl<T: Default, P: Park> Default for RwLock<T, P> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// Holds a [`RwLock`] for reading.
#[must_use]
pub struct RwLockReadGuard<'a, T: ?Sized, P: Park> {
    lock: &'a RwLock<T, P>,
    _not_send: PhantomData<*mut ()>,
}
/// Holds a [`RwLock`] for writing.
#[must_use]
pub struct RwLockWriteGuard<'a, T: ?Sized, P: Park> {
    lock: &'a RwLock<T, P>,
    _not_send: PhantomData<*mut ()>,
}
impl<'a, T: ?Sized, P: Park> RwLockWriteGuard<'a, T, P> {
    /// Goes on as a reader, without letting a writer in between.
    pub fn downgrade(self) -> RwLockReadGuard<'a, T, P> {
        let lock = self.lock;
        core::mem::forget(self);
        // WRITER out, one reader in, in one step.
        let s = lock.state.fetch_sub(WRITER - 1, Ordering::Release);
        if s & WAITING != 0 {
            lock.wake();
        }
        RwLockReadGuard { lock, _not_send: PhantomData }
    }
}
impl<T: ?Sized, P: Park> Deref for RwLockReadGuard<'_, T, P> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: held for reading, no writer exists.
        unsafe { &*self.lock.value.get() }
    }
}
impl<T: ?Sized, P: Park> Deref for RwLockWriteGuard<'_, T, P> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: held for writing.
        unsafe { &*self.lock.value.get() }
    }
}
impl<T: ?Sized, P: Park> DerefMut for RwLockWriteGuard<'_, T, P> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: held for writing and borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}
impl<T: ?Sized, P: Park> Drop for RwLockReadGuard<'_, T, P> {
    #[inline]
    fn drop(&mut self) {
        let s = self.lock.state.fetch_sub(1, Ordering::Release);
        if s & READERS == 1 && s & WAITING != 0 {
            self.lock.wake();
        }
    }
}
impl<T: ?Sized, P: Park> Drop for RwLockWriteGuard<'_, T, P> {
    #[inline]
    fn drop(&mut self) {
        if self.lock.state.fetch_and(!WRITER, Ordering::Release) & WAITING != 0 {
            self.lock.wake();
        }
    }
}
