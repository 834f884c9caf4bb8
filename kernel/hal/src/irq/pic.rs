//! The two 8259 interrupt controllers: moved out of the way and masked, since the I/O APICs take their place.
//!
//! They can still give spurious interrupts, so they are remapped away from the CPU's exception vectors first.
//! References: Intel 8259A data sheet.

use super::vector;
use crate::pio::{inb, outb};

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;

/// Remaps both controllers to [`vector::PIC`] and masks all lines.
pub(super) fn mask() {
    // SAFETY: the initialisation sequence of the data sheet; nothing else drives the 8259s.
    unsafe {
        for (port, base, cascade) in [(MASTER, vector::PIC, 4), (SLAVE, vector::PIC + 8, 2)] {
            outb(port, 0x11);
            outb(port + 1, base);
            outb(port + 1, cascade);
            outb(port + 1, 0x01);
            outb(port + 1, 0xff);
        }
    }
}

/// An interrupt from a masked controller is spurious (lines 7 and 15): the slave's must be acknowledged at the master.
pub(super) fn spurious(line: u8) {
    // SAFETY: reads the in-service register and acknowledges, as the data sheet asks.
    unsafe {
        let port = if line < 8 { MASTER } else { SLAVE };
        outb(port, 0x0b);
        let real = inb(port) & 1 << (line & 7) != 0;
        if real {
            outb(port, 0x20);
        }
        if line >= 8 {
            outb(MASTER, 0x20);
        }
    }
}
