//! Port input and output, for hal's own platform devices.
//!
//! Crate-private: a port access can do anything to the machine, so what other crates need is a typed interface in its module.
use core::arch::asm;

/// Reads a byte from `port`.
///
/// # Safety
/// The read must have no side effect that breaks memory safety or another driver's state.
pub(crate) unsafe fn inb(port: u16) -> u8 {
    let v;
    // SAFETY: passed on to the caller.
    unsafe { asm!("in al, dx", in("dx") port, out("al") v, options(nomem, nostack, preserves_flags)) };
    v
}
/// Writes a byte to `port`.
///
/// # Safety
/// The write must not break memory safety (start a DMA, remap memory) or another driver's state.
pub(crate) unsafe fn outb(port: u16, v: u8) {
    // SAFETY: passed on to the caller.
    unsafe { asm!("out dx, al", in("dx") port, in("al") v, options(nomem, nostack, preserves_flags)) };
}
/// Reads 16 bits from `port`.
///
/// # Safety
/// As [`inb`].
pub(crate) unsafe fn inw(port: u16) -> u16 {
    let v;
    // SAFETY: passed on to the caller.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") v, options(nomem, nostack, preserves_flags)) };
    v
}
/// Writes 16 bits to `port`.
///
/// # Safety
/// As [`outb`].
pub(crate) unsafe fn outw(port: u16, v: u16) {
    // SAFETY: passed on to the caller.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") v, options(nomem, nostack, preserves_flags)) };
}
/// Reads 32 bits from `port`.
///
/// # Safety
/// As [`inb`].
pub(crate) unsafe fn inl(port: u16) -> u32 {
    let v;
    // SAFETY: passed on to the caller.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") v, options(nomem, nostack, preserves_flags)) };
    v
}
/// Writes 32 bits to `port`.
///
/// # Safety
/// As [`outb`].
pub(crate) unsafe fn outl(port: u16, v: u32) {
    // SAFETY: passed on to the caller.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") v, options(nomem, nostack, preserves_flags)) };
}
