//! A replaceable `Arc`.

use super::spin::SpinLock;
use alloc::sync::Arc;

/// An `Arc` that is loaded often and replaced seldom.
///
/// `load` holds a spin lock for the one increment; the old value is dropped outside the lock. Task context only.
pub struct RcuCell<T: ?Sized>(SpinLock<Arc<T>>);

impl<T: ?Sized> RcuCell<T> {
    /// A cell holding `value`.
    pub const fn new(value: Arc<T>) -> Self {
        Self(SpinLock::new(value))
    }
    /// The present value.
    #[inline]
    pub fn load(&self) -> Arc<T> {
        self.0.lock().clone()
    }
    /// Looks at the present value in place: no reference count is touched. `f` must be short and must not sleep.
    #[inline]
    pub fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        f(&self.0.lock())
    }
    /// Replaces the value.
    pub fn store(&self, value: Arc<T>) {
        drop(self.swap(value));
    }
    /// Replaces the value and returns the former one.
    pub fn swap(&self, value: Arc<T>) -> Arc<T> {
        core::mem::replace(&mut *self.0.lock(), value)
    }
    /// Replaces the value if it still is `old`.
    pub fn compare_exchange(&self, old: &Arc<T>, new: Arc<T>) -> Result<(), Arc<T>> {
        let mut cur = self.0.lock();
        if Arc::ptr_eq(&cur, old) {
            let former = core::mem::replace(&mut *cur, new);
            drop(cur);
            drop(former);
            Ok(())
        } else {
            Err(new)
        }
    }
}
