//! Power-off, reboot, and QEMU's exit device.

use crate::pio::{outb, outl};

/// Ends QEMU with status `code * 2 + 1` where `-device isa-debug-exit,iobase=0xf4,iosize=4` is given; else returns.
pub fn qemu_exit(code: u8) {
    // SAFETY: port 0xf4 is QEMU's isa-debug-exit, or decoded by nothing.
    unsafe { outl(0xf4, u32::from(code)) };
}

/// Turns the machine off; where that fails, halts.
pub fn off() -> ! {
    // SAFETY: PM1a control of QEMU's q35 and i440fx, SLP_TYP 0 | SLP_EN.
    unsafe {
        crate::pio::outw(0x604, 0x2000);
        crate::pio::outw(0xb004, 0x2000);
    }
    qemu_exit(0);
    crate::cpu::halt_forever()
}

/// Restarts the machine.
pub fn reboot() -> ! {
    // SAFETY: pulses the reset line through the keyboard controller.
    unsafe { outb(0x64, 0xfe) };
    crate::cpu::halt_forever()
}
