//! Backtraces along the chain of frame pointers.
//!
//! The kernel is built with `-C force-frame-pointers`, so every function begins with `push rbp; mov rbp, rsp`: at `[rbp]` is the
//! caller's rbp, at `[rbp + 8]` the return address. Entry code and new stacks end the chain with 0. A walk happens when things
//! are broken already, so each word is read only after the page tables were asked whether it is mapped.

use core::arch::asm;

use super::symbols;
use crate::addr::PhysAddr;

/// Where to begin.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Instruction.
    pub rip: u64,
    /// Frame pointer there.
    pub rbp: u64,
}

const MAX_FRAMES: usize = 64;

/// The caller's frame.
#[inline(never)]
pub fn here() -> Frame {
    let rbp: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    // `rbp` is this function's own frame: its return address and saved pointer describe the caller.
    match (read(rbp), read(rbp.wrapping_add(8))) {
        (Some(rbp), Some(rip)) => Frame { rip, rbp },
        _ => Frame { rip: here as *const () as u64, rbp: 0 },
    }
}

/// Calls `f` with each instruction address, innermost first.
pub fn walk(from: Frame, mut f: impl FnMut(u64)) {
    let Frame { mut rip, mut rbp } = from;
    for _ in 0..MAX_FRAMES {
        f(rip);
        // Frames lie ever higher on a stack; anything else is a loop or garbage.
        let (Some(next), Some(ret)) = (read(rbp), read(rbp.wrapping_add(8))) else { return };
        if ret == 0 {
            return;
        }
        rip = ret;
        if next != 0 && next <= rbp {
            f(rip);
            return;
        }
        rbp = next;
    }
}

/// Logs a backtrace.
pub fn print(from: Frame) {
    let mut first = true;
    walk(from, |rip| {
        // A return address may be the first of the next function: the call lies before it.
        let probe = if first { rip } else { rip.wrapping_sub(1) };
        first = false;
        match symbols::find(probe) {
            Some((name, offset)) => crate::error!("  {rip:#018x} {name}+{offset:#x}"),
            None => crate::error!("  {rip:#018x}"),
        }
    });
}

/// The word at `va`, if that is mapped kernel memory.
fn read(va: u64) -> Option<u64> {
    // Kernel half, aligned: then the word does not cross a page.
    if va >> 47 != 0x1_ffff || !va.is_multiple_of(8) || !mapped(va) {
        return None;
    }
    // SAFETY: the page is present; kernel memory that is mapped can be read, and whatever is there is only printed.
    Some(unsafe { (va as *const u64).read_volatile() })
}

/// Whether the page tables in use map `va` (below the device memory types: a stack is RAM).
fn mapped(va: u64) -> bool {
    let cr3: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack, preserves_flags)) };
    let mut table = cr3 & 0x000f_ffff_ffff_f000;
    if crate::mm::kernel_root().0 == 0 {
        // Early boot runs on the entry code's tables, which map the image and its stack.
        return va >= crate::boot::KERNEL_OFFSET;
    }
    for level in (0..4).rev() {
        let index = (va >> (12 + 9 * level)) as usize & 511;
        let at = PhysAddr(table + index as u64 * 8).direct() as *const u64;
        // SAFETY: page-table frames are RAM and so in the direct map; CR3's tree consists of them.
        let entry = unsafe { at.read_volatile() };
        if entry & 1 == 0 {
            return false;
        }
        if level == 0 || entry & 0x80 != 0 {
            return true;
        }
        table = entry & 0x000f_ffff_ffff_f000;
    }
    false
}
