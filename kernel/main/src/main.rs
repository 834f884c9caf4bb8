//! The bootable kernel: joins `hal` and `core`.
//!
//! `hal` brings the machine up on the boot CPU and then calls [`kernel_main`]; everything after that is `core`'s.
#![no_std]
#![no_main]

use ursa_core as _;
use ursa_hal::boot::BootInfo;

/// Called by hal on the boot CPU, on the stack of its idle task, with interrupts on.
#[unsafe(no_mangle)]
extern "Rust" fn kernel_main(_info: &'static BootInfo) -> ! {
    ursa_hal::smp::start_aps(idle);
    if ursa_hal::ktest::wanted() {
        ursa_hal::ktest::run_all();
        ursa_hal::power::qemu_exit(0);
    }
    ursa_hal::power::off()
}

/// The other CPUs, until the scheduler takes them.
fn idle() -> ! {
    loop {
        ursa_hal::cpu::wait_for_interrupt();
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    ursa_hal::panic::panic(info)
}
