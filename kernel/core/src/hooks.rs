//! What `hal` calls back: the timer, faults on user memory during copies, requests to reschedule.

use ursa_hal::{Hooks, VirtAddr, trap::Access};

struct CoreHooks;

static HOOKS: CoreHooks = CoreHooks;

/// Makes `hal` call into `core`.
pub fn install() {
    ursa_hal::set_hooks(&HOOKS);
}

impl Hooks for CoreHooks {
    fn timer(&self) {
        crate::time::on_timer();
    }

    fn user_fault(&self, addr: VirtAddr, access: Access) -> bool {
        crate::mm::handle_kernel_fault(addr, access)
    }

    fn reschedule(&self) {}
}
