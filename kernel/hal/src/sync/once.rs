//! Values that are set once.

use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::mem::MaybeUninit;
use core::ops::Deref;
use core::sync::atomic::{AtomicU8, Ordering};

const EMPTY: u8 = 0;
const BUSY: u8 = 1;
const READY: u8 = 2;

/// A cell that is filled once. Others spin while one CPU fills it; filling it from inside its own initialiser panics
/// on the same CPU only by spinning for ever, so do not.
pub struct Once<T> {
    state: AtomicU8,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: after READY only `&T` is given out; before, one CPU holds BUSY.
unsafe impl<T: Send + Sync> Sync for Once<T> {}
// SAFETY: moving the cell moves the value.
unsafe impl<T: Send> Send for Once<T> {}

impl<T> Once<T> {
    /// An empty cell.
    pub const fn new() -> Self {
        Self { state: AtomicU8::new(EMPTY), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }
    /// The value, if it is there.
    #[inline]
    pub fn get(&self) -> Option<&T> {
        if self.state.load(Ordering::Acquire) == READY {
            // SAFETY: READY is stored after the value and never taken back.
            Some(unsafe { (*self.value.get()).assume_init_ref() })
        } else {
            None
        }
    }
    /// The value; made by `f` if it is not there.
    #[inline]
    pub fn call_once(&self, f: impl FnOnce() -> T) -> &T {
        match self.get() {
            Some(v) => v,
            None => self.fill(f),
        }
    }
    /// Puts `value` in; hands it back when the cell is full already.
    pub fn set(&self, value: T) -> Result<&T, T> {
        let mut value = Some(value);
        let r = self.call_once(|| value.take().expect("called once"));
        match value {
            None => Ok(r),
            Some(v) => Err(v),
        }
    }
    #[cold]
    fn fill(&self, f: impl FnOnce() -> T) -> &T {
        loop {
            match self.state.compare_exchange(EMPTY, BUSY, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => {
                    let v = f();
                    // SAFETY: BUSY is ours alone; nobody reads before READY.
                    unsafe { (*self.value.get()).write(v) };
                    self.state.store(READY, Ordering::Release);
                }
                Err(READY) => {}
                Err(_) => {
                    spin_loop();
                    continue;
                }
            }
            // SAFETY: READY was seen or stored.
            return unsafe { (*self.value.get()).assume_init_ref() };
        }
    }
}
impl<T> Default for Once<T> {
    fn default() -> Self {
        Self::new()
    }
}
impl<T> Drop for Once<T> {
    fn drop(&mut self) {
        if *self.state.get_mut() == READY {
            // SAFETY: the value is there and nobody else has the cell.
            unsafe { self.value.get_mut().assume_init_drop() };
        }
    }
}

/// A static that is built at first use.
pub struct Lazy<T, F = fn() -> T> {
    cell: Once<T>,
    init: F,
}
impl<T, F: Fn() -> T> Lazy<T, F> {
    /// `init` runs at the first access.
    pub const fn new(init: F) -> Self {
        Self { cell: Once::new(), init }
    }
    /// Builds the value now, if that has not happened.
    #[inline]
    pub fn force(this: &Self) -> &T {
        this.cell.call_once(&this.init)
    }
}
impl<T, F: Fn() -> T> Deref for Lazy<T, F> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        Self::force(self)
    }
}
