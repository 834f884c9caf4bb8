//! Registers and structures of PCI configuration space, as far as the kernel knows them.
//!
//! References: PCI 3.0, 6; PCI Express 6.0, 7.5, 7.7; PCI power management 1.2, 3.

use ursa_hal::pci::{Address, Width, config_read, config_size, config_write};

/// Offsets in the header.
pub mod reg {
    /// Command.
    pub const COMMAND: u16 = 0x04;
    /// Status.
    pub const STATUS: u16 = 0x06;
    /// Cache line size.
    pub const CACHE_LINE: u16 = 0x0c;
    /// Latency timer.
    pub const LATENCY: u16 = 0x0d;
    /// Header type.
    pub const HEADER: u16 = 0x0e;
    /// First base address register.
    pub const BAR: u16 = 0x10;
    /// Secondary bus of a bridge.
    pub const SECONDARY: u16 = 0x19;
    /// Subsystem vendor (header type 0).
    pub const SUBSYSTEM_VENDOR: u16 = 0x2c;
    /// Subsystem device (header type 0).
    pub const SUBSYSTEM: u16 = 0x2e;
    /// Expansion ROM (header type 0).
    pub const ROM: u16 = 0x30;
    /// Expansion ROM (header type 1).
    pub const BRIDGE_ROM: u16 = 0x38;
    /// First capability.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin.
    pub const INTERRUPT_PIN: u16 = 0x3d;
}

/// Bits of the command register.
pub mod command {
    /// Ports are decoded.
    pub const IO: u16 = 1 << 0;
    /// Memory is decoded.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may start transfers: DMA, message interrupts.
    pub const MASTER: u16 = 1 << 2;
    /// Parity errors are answered.
    pub const PARITY: u16 = 1 << 6;
    /// SERR# is driven.
    pub const SERR: u16 = 1 << 8;
    /// INTx is not driven.
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// Status: INTx is pending.
pub const STATUS_INTX: u16 = 1 << 3;
/// Status: there are capabilities.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Ids of capabilities.
pub mod cap {
    /// Power management.
    pub const POWER: u8 = 0x01;
    /// Message interrupts.
    pub const MSI: u8 = 0x05;
    /// Vendor-specific.
    pub const VENDOR: u8 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
    /// Advanced features of a conventional function.
    pub const ADVANCED: u8 = 0x13;
}

/// PCI Express: device capabilities, where function level reset is bit 28.
pub const EXPRESS_DEVICE_CAPS: u16 = 4;
/// PCI Express: device control, where bit 15 starts a function level reset.
pub const EXPRESS_DEVICE_CONTROL: u16 = 8;
/// PCI Express: device status, where bit 5 says that transactions are pending.
pub const EXPRESS_DEVICE_STATUS: u16 = 10;
/// Starts a function level reset.
pub const EXPRESS_FLR: u16 = 1 << 15;

/// Reads a byte.
pub fn read8(a: Address, at: u16) -> u8 {
    config_read(a, at, Width::Byte) as u8
}
/// Reads 16 bits.
pub fn read16(a: Address, at: u16) -> u16 {
    config_read(a, at, Width::Word) as u16
}
/// Reads 32 bits.
pub fn read32(a: Address, at: u16) -> u32 {
    config_read(a, at, Width::Dword)
}
/// Writes a byte.
pub fn write8(a: Address, at: u16, v: u8) {
    config_write(a, at, Width::Byte, v.into());
}
/// Writes 16 bits.
pub fn write16(a: Address, at: u16, v: u16) {
    config_write(a, at, Width::Word, v.into());
}
/// Writes 32 bits.
pub fn write32(a: Address, at: u16, v: u32) {
    config_write(a, at, Width::Dword, v);
}

/// Reads `buf.len()` bytes from `at` in accesses of their natural size; what lies beyond the space reads as ones.
pub fn read_bytes(a: Address, mut at: u16, mut buf: &mut [u8]) {
    while !buf.is_empty() {
        let width = natural(at, buf.len());
        let n = usize::from(width.bytes());
        let (head, rest) = buf.split_at_mut(n);
        head.copy_from_slice(&config_read(a, at, width).to_le_bytes()[..n]);
        buf = rest;
        at = at.wrapping_add(n as u16);
    }
}

/// The widest access that is aligned at `at` and not longer than `len`.
pub fn natural(at: u16, len: usize) -> Width {
    if at.is_multiple_of(4) && len >= 4 {
        Width::Dword
    } else if at.is_multiple_of(2) && len >= 2 {
        Width::Word
    } else {
        Width::Byte
    }
}

/// The capabilities of a function: id and offset. A list that runs in circles ends.
pub fn capabilities(a: Address) -> impl Iterator<Item = (u8, u16)> {
    let has = read16(a, reg::STATUS) & STATUS_CAPABILITIES != 0;
    let mut at = if has { u16::from(read8(a, reg::CAPABILITIES) & !3) } else { 0 };
    // As many as fit above the header.
    let mut left = 48;
    core::iter::from_fn(move || {
        if at < 0x40 || left == 0 {
            return None;
        }
        left -= 1;
        let [id, next] = read16(a, at).to_le_bytes();
        let found = (id, at);
        at = u16::from(next & !3);
        (id != 0xff).then_some(found)
    })
}

/// Where the extended capability `id` is.
pub fn extended(a: Address, id: u16) -> Option<u16> {
    extended_capabilities(a).find(|c| c.0 == id).map(|c| c.1)
}

/// The extended capabilities: id and offset.
pub fn extended_capabilities(a: Address) -> impl Iterator<Item = (u16, u16)> {
    let mut at = if config_size(a) > 0x100 { 0x100 } else { 0 };
    let mut left = (4096 - 256) / 8;
    core::iter::from_fn(move || {
        if at < 0x100 || left == 0 {
            return None;
        }
        left -= 1;
        let head = read32(a, at);
        let found = (head as u16, at);
        at = (head >> 20) as u16 & 0xffc;
        (head != 0 && head != u32::MAX).then_some(found)
    })
}
