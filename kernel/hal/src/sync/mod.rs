//! Locks and cells.
//!
//! | type | for | may sleep |
//! |---|---|---|
//! | [`SpinLock`] | short sections among tasks; never in interrupt context | no |
//! | [`IrqLock`] | data shared with interrupt handlers; disables local interrupts | no |
//! | [`RwSpinLock`] | short sections with many readers | no |
//! | [`SeqLock`] | small `Copy` data, readers never wait for each other | no |
//! | [`RcuCell`] | an `Arc` that is read often and replaced seldom | no |
//! | [`Once`], [`Lazy`] | set once | spins |
//! | [`Mutex`], [`RwLock`] | long sections; generic over [`Park`], which the scheduler's wait queues implement | yes |
//!
//! The kernel is not preemptible, so a spin lock's holder runs until it unlocks. Interrupts stay on under a `SpinLock`:
//! a CPU that spins can serve TLB shoot-downs. With feature `lockdep` each CPU checks that typed levels only rise and
//! that no task sleeps with a spin lock held. Order: sleeping locks, then `SpinLock` by level, then `IrqLock`.

mod irq;
mod once;
mod rcu;
mod rwspin;
mod seq;
mod sleep;
mod spin;
#[cfg(test)]
mod tests;

pub use crate::percpu::PerCpu;
pub use irq::{IrqGuard, IrqLock, IrqsOff, irqs_enabled, without_irqs};
pub use once::{Lazy, Once};
pub use rcu::RcuCell;
pub use rwspin::{RwSpinLock, RwSpinReadGuard, RwSpinWriteGuard};
pub use seq::SeqLock;
pub use sleep::{Mutex, MutexGuard, Park, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use spin::{SpinLock, SpinLockGuard};

/// Panics when the caller holds a spin lock (feature `lockdep`); called by everything that may sleep.
#[inline]
pub fn might_sleep() {
    #[cfg(feature = "lockdep")]
    {
        let held = crate::percpu::local().spin_depth.get();
        assert!(held == 0, "sleeping with {held} spin lock(s) held");
    }
}

/// Bookkeeping of spin locks held by this CPU; empty without feature `lockdep`.
pub(crate) mod dep {
    #[cfg(feature = "lockdep")]
    pub(super) fn acquire(level: u8) {
        let l = crate::percpu::local();
        l.spin_depth.set(l.spin_depth.get() + 1);
        if level != 0 {
            assert!(level < 64, "lock level out of range");
            let held = l.lock_levels.get();
            assert!(held >> level == 0, "lock level {level} taken while holding levels {held:#b}");
            l.lock_levels.set(held | 1 << level);
        }
    }
    #[cfg(feature = "lockdep")]
    pub(super) fn release(level: u8) {
        let l = crate::percpu::local();
        l.spin_depth.set(l.spin_depth.get() - 1);
        if level != 0 {
            l.lock_levels.set(l.lock_levels.get() & !(1 << level));
        }
    }
    #[cfg(not(feature = "lockdep"))]
    #[inline(always)]
    pub(super) fn acquire(_level: u8) {}
    #[cfg(not(feature = "lockdep"))]
    #[inline(always)]
    pub(super) fn release(_level: u8) {}
}
