//! Copying and filling untyped memory.
//!
//! Assembly, so that the compiler assumes nothing about bytes that others may change meanwhile. `rep movsq`/`rep stosq` are
//! the fastest forms on current CPUs (ERMS, fast strings) and move 8 bytes for each step under an emulator.

use crate::addr::PAGE_SIZE;
use core::arch::asm;

/// Copies `len` bytes.
///
/// # Safety
/// Both ranges are valid and do not overlap; either may be changed by others meanwhile.
#[inline]
pub(crate) unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: as the caller promises; DF is clear in kernel code.
    unsafe {
        asm!(
            "rep movsq",
            "mov ecx, {tail:e}",
            "rep movsb",
            tail = in(reg) len & 7,
            inout("rcx") len >> 3 => _,
            inout("rdi") dst => _,
            inout("rsi") src => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Sets `len` bytes.
///
/// # Safety
/// The range is valid for writes.
#[inline]
pub(crate) unsafe fn fill(dst: *mut u8, byte: u8, len: usize) {
    // SAFETY: as the caller promises; DF is clear in kernel code.
    unsafe {
        asm!(
            "rep stosq",
            "mov ecx, {tail:e}",
            "rep stosb",
            tail = in(reg) len & 7,
            inout("rcx") len >> 3 => _,
            inout("rdi") dst => _,
            in("rax") u64::from(byte) * 0x0101_0101_0101_0101,
            options(nostack, preserves_flags),
        );
    }
}

/// Clears a page.
///
/// # Safety
/// `p` is a page, valid for writes.
#[inline]
pub(crate) unsafe fn zero_page(p: *mut u8) {
    // SAFETY: as the caller promises; DF is clear in kernel code.
    unsafe {
        asm!(
            "rep stosq",
            inout("rcx") PAGE_SIZE / 8 => _,
            inout("rdi") p => _,
            in("rax") 0,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies a page.
///
/// # Safety
/// Both are pages, valid, and either the same or disjoint.
#[inline]
pub(crate) unsafe fn copy_page(dst: *mut u8, src: *const u8) {
    // SAFETY: as the caller promises; DF is clear in kernel code.
    unsafe {
        asm!(
            "rep movsq",
            inout("rcx") PAGE_SIZE / 8 => _,
            inout("rdi") dst => _,
            inout("rsi") src => _,
            options(nostack, preserves_flags),
        );
    }
}
