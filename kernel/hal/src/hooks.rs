//! What hal asks of the kernel above it.

use crate::addr::VirtAddr;
use crate::sync::Once;
use crate::trap::Access;

/// Implemented by `core`, installed once with [`set_hooks`].
pub trait Hooks: Sync {
    /// This CPU's deadline ([`crate::time::set_deadline`]) has come. Interrupt context.
    fn timer(&self);
    /// A kernel access to user memory faulted. Returns whether the access is worth another try. Task context, may sleep.
    fn user_fault(&self, addr: VirtAddr, access: Access) -> bool;
    /// Another CPU asked this one to look at its run queue. Interrupt context.
    fn reschedule(&self) {}
}

static HOOKS: Once<&'static dyn Hooks> = Once::new();

/// Installs the hooks. Until then interrupts that would call them are only acknowledged.
///
/// # Panics
/// On the second call.
pub fn set_hooks(hooks: &'static dyn Hooks) {
    assert!(HOOKS.set(hooks).is_ok(), "hooks set twice");
}

/// The hooks, if installed.
#[inline]
pub fn hooks() -> Option<&'static dyn Hooks> {
    HOOKS.get().copied()
}
