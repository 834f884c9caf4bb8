//! Terminal structures: `asm-generic/termbits.h`, `asm-generic/termios.h`.
//!
//! Flag constants are those of [`crate::raw::general`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Control characters in [`Termios2::cc`].
pub const NCCS: usize = 19;

/// `struct termios` as `TCGETS` and `TCSETS*` exchange it: no speeds of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Termios {
    /// Input modes.
    pub iflag: u32,
    /// Output modes.
    pub oflag: u32,
    /// Control modes, with the coded speed.
    pub cflag: u32,
    /// Local modes.
    pub lflag: u32,
    /// Line discipline.
    pub line: u8,
    /// Control characters, by `VINTR` … `VEOL2`.
    pub cc: [u8; NCCS],
}

/// `struct termios2` (also the kernel's own form): [`Termios`] with speeds in bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Termios2 {
    /// Input modes.
    pub iflag: u32,
    /// Output modes.
    pub oflag: u32,
    /// Control modes, with the coded speed.
    pub cflag: u32,
    /// Local modes.
    pub lflag: u32,
    /// Line discipline.
    pub line: u8,
    /// Control characters, by `VINTR` … `VEOL2`.
    pub cc: [u8; NCCS],
    /// Input speed.
    pub ispeed: u32,
    /// Output speed.
    pub ospeed: u32,
}

impl Termios2 {
    /// Returns the form without speeds.
    pub fn without_speeds(&self) -> Termios {
        Termios {
            iflag: self.iflag,
            oflag: self.oflag,
            cflag: self.cflag,
            lflag: self.lflag,
            line: self.line,
            cc: self.cc,
        }
    }
}

/// `struct termio`, System V's older form, for `TCGETA` and `TCSETA*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Termio {
    /// Low half of the input modes.
    pub iflag: u16,
    /// Low half of the output modes.
    pub oflag: u16,
    /// Low half of the control modes.
    pub cflag: u16,
    /// Low half of the local modes.
    pub lflag: u16,
    /// Line discipline.
    pub line: u8,
    /// The first eight control characters.
    pub cc: [u8; 8],
    /// Padding.
    pub pad: u8,
}

/// `struct winsize`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Winsize {
    /// Rows in characters.
    pub rows: u16,
    /// Columns in characters.
    pub cols: u16,
    /// Width in pixels.
    pub xpixel: u16,
    /// Height in pixels.
    pub ypixel: u16,
}

/// `struct serial_struct` of `linux/serial.h`, as `TIOCGSERIAL` returns it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SerialStruct {
    /// Kind of UART (`PORT_16550A` = 4).
    pub kind: i32,
    /// Line number.
    pub line: i32,
    /// I/O port.
    pub port: u32,
    /// Interrupt number.
    pub irq: i32,
    /// `ASYNC_*` flags.
    pub flags: i32,
    /// Transmit FIFO size.
    pub xmit_fifo_size: i32,
    /// Custom divisor.
    pub custom_divisor: i32,
    /// Base baud rate.
    pub baud_base: i32,
    /// Delay before close, in hundredths of a second.
    pub close_delay: u16,
    /// Kind of I/O access.
    pub io_type: u8,
    /// Reserved.
    pub reserved_char: u8,
    /// Reserved.
    pub hub6: i32,
    /// Time to drain on close, in hundredths of a second.
    pub closing_wait: u16,
    /// No longer used.
    pub closing_wait2: u16,
    /// Padding before the pointer.
    pub pad: u32,
    /// Memory base; 0 for port I/O.
    pub iomem_base: u64,
    /// Register shift.
    pub iomem_reg_shift: u16,
    /// Padding.
    pub pad2: u16,
    /// High part of the port.
    pub port_high: u32,
    /// Physical base.
    pub iomap_base: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layouts_are_those_of_linux() {
        assert_eq!(size_of::<Termios>(), 36);
        assert_eq!(size_of::<Termios2>(), 44);
        assert_eq!(offset_of!(Termios2, cc), 17);
        assert_eq!(offset_of!(Termios2, ispeed), 36);
        assert_eq!(size_of::<Termio>(), 18);
        assert_eq!(size_of::<Winsize>(), 8);
        assert_eq!(size_of::<SerialStruct>(), 72);
        assert_eq!(offset_of!(SerialStruct, iomem_base), 48);
        assert_eq!(offset_of!(SerialStruct, port_high), 60);
    }
}
