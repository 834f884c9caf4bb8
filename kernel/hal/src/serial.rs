//! Serial ports (16550 and compatible).
//!
//! Early in the boot there is only the polled console output below.
//! References: PC16550D data sheet.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::pio::{inb, outb};

const COM1: u16 = 0x3f8;
/// Register offsets.
mod reg {
    pub const DATA: u16 = 0;
    pub const IER: u16 = 1;
    pub const FCR: u16 = 2;
    pub const LCR: u16 = 3;
    pub const MCR: u16 = 4;
    pub const LSR: u16 = 5;
    pub const SCRATCH: u16 = 7;
}
const LSR_THR_EMPTY: u8 = 0x20;

static COM1_PRESENT: AtomicBool = AtomicBool::new(false);

/// Whether a UART answers at `base`: its scratch register keeps what is written.
fn probe(base: u16) -> bool {
    // SAFETY: COM port ranges hold a UART or nothing; the scratch register has no function.
    unsafe {
        [0x5a, 0xa5].iter().all(|v| {
            outb(base + reg::SCRATCH, *v);
            inb(base + reg::SCRATCH) == *v
        })
    }
}

/// Sets COM1 to 115200 8N1, FIFO on, no interrupts.
pub(crate) fn early_init() {
    if !probe(COM1) {
        return;
    }
    // SAFETY: probe found a UART there, which nothing else uses yet.
    unsafe {
        outb(COM1 + reg::IER, 0);
        outb(COM1 + reg::LCR, 0x80);
        outb(COM1 + reg::DATA, 1);
        outb(COM1 + reg::IER, 0);
        outb(COM1 + reg::LCR, 0x03);
        outb(COM1 + reg::FCR, 0xc7);
        outb(COM1 + reg::MCR, 0x0b);
    }
    COM1_PRESENT.store(true, Ordering::Relaxed);
}

/// Writes to COM1 and waits until the UART took it; `\n` becomes `\r\n`. For the kernel log.
pub(crate) fn console_write(text: &[u8]) {
    if !COM1_PRESENT.load(Ordering::Relaxed) {
        return;
    }
    for b in text {
        if *b == b'\n' {
            put(b'\r');
        }
        put(*b);
    }
}

fn put(b: u8) {
    // Bounded: a dead UART must not hang the kernel. 16 ms is more than a full FIFO needs at 9600 baud.
    for _ in 0..16_000 {
        // SAFETY: COM1 was probed; reading the line status and writing the data register affect the UART alone.
        unsafe {
            if inb(COM1 + reg::LSR) & LSR_THR_EMPTY != 0 {
                outb(COM1 + reg::DATA, b);
                return;
            }
        }
    }
}
