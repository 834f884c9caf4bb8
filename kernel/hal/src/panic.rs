//! Kernel panics: the message, backtraces, and what happens then.

use core::panic::PanicInfo;

/// Length of the symbol table that the post-link step appended, with its header.
pub(crate) fn ksyms_len() -> usize {
    0
}

/// Prints the panic and stops the machine.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    crate::cpu::irq_disable();
    crate::log::bust_lock();
    crate::error!("KERNEL PANIC: {}", info.message());
    if let Some(at) = info.location() {
        crate::error!("  at {}:{}", at.file(), at.line());
    }
    if crate::boot::try_option("panic") == Some("exit") {
        crate::power::qemu_exit(1);
    }
    crate::cpu::halt_forever()
}

/// An NMI arrived.
pub(crate) fn nmi(_: &crate::trap::TrapFrame) {}
