//! Power-off, reboot, and QEMU's exit device.
//!
//! Power-off is ACPI's S5: the sleep type comes from the DSDT's `\_S5`, found without an interpreter ([`crate::acpi::parse::s5`]).
//! References: ACPI 6.5, 4.8.3 (PM1 control), 4.8.3.6 (reset register), 16.1.

use core::sync::atomic::{Ordering, fence};

use crate::acpi::parse::{self, Gas};
use crate::mm::{CacheMode, mmio};
use crate::pio::{inb, inw, outb, outl, outw};

const SCI_EN: u16 = 1;
const SLP_TYP_SHIFT: u32 = 10;
const SLP_TYP_MASK: u16 = 7 << SLP_TYP_SHIFT;
const SLP_EN: u16 = 1 << 13;

/// Ends QEMU with status `code * 2 + 1` where `-device isa-debug-exit,iobase=0xf4,iosize=4` is given; else returns.
pub fn qemu_exit(code: u8) {
    // SAFETY: port 0xf4 is QEMU's isa-debug-exit, or decoded by nothing.
    unsafe { outl(0xf4, u32::from(code)) };
}

/// The I/O port of a register; `None` for memory-mapped or absent ones.
fn port(gas: Gas) -> Option<u16> {
    (gas.space == 1).then_some(())?;
    u16::try_from(gas.address).ok().filter(|p| *p != 0)
}

/// Takes ACPI mode over from the firmware, if it is not on already.
fn enable_acpi(fadt: &parse::Fadt, pm1a: u16) {
    // SAFETY: the FADT names these ports; the write asks the firmware to hand ACPI over.
    unsafe {
        if inw(pm1a) & SCI_EN != 0 || fadt.smi_cmd == 0 || fadt.acpi_enable == 0 {
            return;
        }
        outb(fadt.smi_cmd as u16, fadt.acpi_enable);
        for _ in 0..300 {
            if inw(pm1a) & SCI_EN != 0 {
                return;
            }
            crate::time::spin_ns(10_000_000);
        }
    }
    crate::warn!("power: firmware does not hand over ACPI");
}

/// Turns the machine off; where that fails, says so and halts.
pub fn off() -> ! {
    crate::info!("power off");
    crate::cpu::irq_disable();
    if let Some(fadt) = crate::acpi::fadt()
        && let Some(pm1a) = port(fadt.pm1a_cnt)
    {
        match crate::acpi::tables()
            .iter()
            .filter(|t| matches!(&t.signature, b"DSDT" | b"SSDT"))
            .find_map(|t| parse::s5(t.bytes))
        {
            None => crate::error!("power: no \\_S5 in the ACPI tables"),
            Some((a, b)) => {
                enable_acpi(fadt, pm1a);
                // SAFETY: PM1 control registers named by the FADT; entering S5 is what is asked for.
                unsafe {
                    let value = |port, typ: u8| inw(port) & !SLP_TYP_MASK | u16::from(typ) << SLP_TYP_SHIFT | SLP_EN;
                    outw(pm1a, value(pm1a, a));
                    if let Some(pm1b) = port(fadt.pm1b_cnt) {
                        outw(pm1b, value(pm1b, b));
                    }
                }
                crate::time::spin_ns(500_000_000);
            }
        }
    }
    qemu_exit(0);
    crate::error!("power: the machine does not turn off; it is safe to do that by hand");
    crate::smp::stop_others();
    crate::cpu::halt_forever()
}

/// Restarts the machine: ACPI's reset register, the chipset's, the keyboard controller's line, at last a triple fault.
pub fn reboot() -> ! {
    crate::info!("reboot");
    crate::cpu::irq_disable();
    if let Some((gas, value)) = crate::acpi::fadt().and_then(|f| f.reset) {
        match (gas.space, port(gas)) {
            // SAFETY: the FADT's reset register, written as it says.
            (1, Some(p)) => unsafe { outb(p, value) },
            (0, _) => {
                if let Some(m) = mmio(crate::addr::PhysAddr(gas.address), 1, CacheMode::Uncached) {
                    m.write8(0, value);
                }
            }
            _ => {}
        }
        crate::time::spin_ns(50_000_000);
    }
    // SAFETY: the reset control register of PC chipsets; then the 8042's command to pulse the reset line.
    unsafe {
        outb(0xcf9, 0x02);
        outb(0xcf9, 0x06);
        crate::time::spin_ns(50_000_000);
        for _ in 0..10_000 {
            if inb(0x64) & 2 == 0 {
                break;
            }
        }
        outb(0x64, 0xfe);
    }
    crate::time::spin_ns(50_000_000);
    fence(Ordering::SeqCst);
    let no_idt = [0u16; 5];
    // SAFETY: with an empty IDT the breakpoint cannot be delivered, which resets the CPU: intended.
    unsafe { core::arch::asm!("lidt [{}]", "int3", in(reg) no_idt.as_ptr()) };
    crate::cpu::halt_forever()
}

/// Stops every CPU and leaves the power on (reboot(2), `LINUX_REBOOT_CMD_HALT`).
pub fn halt() -> ! {
    crate::info!("system halted");
    crate::cpu::irq_disable();
    crate::smp::stop_others();
    crate::cpu::halt_forever()
}
