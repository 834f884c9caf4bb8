//! The bootable kernel: joins `hal` and `core`.
//!
//! `hal` brings the machine up on the boot CPU and then calls [`kernel_main`]; everything after that is `core`'s.
#![no_std]
#![no_main]

use ursa_hal::boot::BootInfo;

/// Called by hal on the boot CPU, on the stack of its idle task, with interrupts on.
#[unsafe(no_mangle)]
extern "Rust" fn kernel_main(info: &'static BootInfo) -> ! {
    ursa_core::boot::start(info)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    ursa_hal::panic::panic(info)
}
