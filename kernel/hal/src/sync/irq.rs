//! Local interrupt state and the spin lock that disables interrupts.

use super::spin::{SpinLock, SpinLockGuard};
use core::arch::asm;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};

const IF: u64 = 1 << 9;

/// Whether this CPU takes interrupts.
#[inline]
pub fn irqs_enabled() -> bool {
    let flags: u64;
    // SAFETY: reads RFLAGS.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    flags & IF != 0
}

/// Interrupts are off on this CPU until it is dropped (then as they were before). Nests.
///
/// It must be dropped in the reverse order of other `IrqsOff` values; a wrong order leaves interrupts on or off too
/// long, which no memory safety hangs on.
#[must_use]
pub struct IrqsOff {
    was_on: bool,
    _not_send: PhantomData<*mut ()>,
}

impl IrqsOff {
    /// Turns interrupts off.
    #[inline]
    pub fn new() -> Self {
        let flags: u64;
        // SAFETY: disabling interrupts harms nothing; the state is put back on drop. Not `nomem`: acts as a compiler barrier.
        unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
        Self { was_on: flags & IF != 0, _not_send: PhantomData }
    }
}
impl Default for IrqsOff {
    fn default() -> Self {
        Self::new()
    }
}
impl Drop for IrqsOff {
    #[inline]
    fn drop(&mut self) {
        if self.was_on {
            // SAFETY: they were on before.
            unsafe { asm!("sti", options(nostack)) };
        }
    }
}

/// Runs `f` with interrupts off.
#[inline]
pub fn without_irqs<R>(f: impl FnOnce() -> R) -> R {
    let _off = IrqsOff::new();
    f()
}

/// Mutual exclusion with interrupt handlers: interrupts are off on this CPU while it is held.
///
/// Keep sections short, and never wait for another CPU inside (a TLB shoot-down would deadlock with a CPU that spins here).
pub struct IrqLock<T: ?Sized, const LEVEL: u8 = 0>(SpinLock<T, LEVEL>);

impl<T, const L: u8> IrqLock<T, L> {
    /// An unlocked lock.
    pub const fn new(value: T) -> Self {
        Self(SpinLock::new(value))
    }
    /// The value back.
    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

impl<T: ?Sized, const L: u8> IrqLock<T, L> {
    /// Turns interrupts off and waits for the lock.
    #[inline]
    pub fn lock(&self) -> IrqGuard<'_, T, L> {
        let irqs = IrqsOff::new();
        IrqGuard { guard: ManuallyDrop::new(self.0.lock()), irqs: ManuallyDrop::new(irqs) }
    }
    /// Takes the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<IrqGuard<'_, T, L>> {
        let irqs = IrqsOff::new();
        let guard = self.0.try_lock()?;
        Some(IrqGuard { guard: ManuallyDrop::new(guard), irqs: ManuallyDrop::new(irqs) })
    }
    /// Whether anyone holds it.
    pub fn is_locked(&self) -> bool {
        self.0.is_locked()
    }
    /// The value, without locking.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

impl<T: Default, const L: u8> Default for IrqLock<T, L> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// Holds an [`IrqLock`].
#[must_use]
pub struct IrqGuard<'a, T: ?Sized, const L: u8 = 0> {
    guard: ManuallyDrop<SpinLockGuard<'a, T, L>>,
    irqs: ManuallyDrop<IrqsOff>,
}

impl<T: ?Sized, const L: u8> Deref for IrqGuard<'_, T, L> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.guard
    }
}
impl<T: ?Sized, const L: u8> DerefMut for IrqGuard<'_, T, L> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}
impl<T: ?Sized, const L: u8> Drop for IrqGuard<'_, T, L> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: each is dropped once, here: first the lock, then the interrupt state.
        unsafe {
            ManuallyDrop::drop(&mut self.guard);
            ManuallyDrop::drop(&mut self.irqs);
        }
    }
}
