//! Copies between the kernel and user memory.
//!
//! Every function checks that the range lies in user space, opens the door (STAC where the CPU has SMAP), and touches memory with
//! instructions that are listed in the exception table (`.ex_table`: address and fix-up address). A page fault there asks
//! `Hooks::user_fault` for the page, which may sleep, and retries; if there is no page, or under [`nofault`], or with interrupts off,
//! execution goes on at the fix-up, which reports how far it came. AC is cleared by every trap entry and saved with the
//! flags, so the door is closed while a fault is served.
//!
//! User memory is untyped: programs change it at any time. It is only moved by assembly, never referenced.

use crate::addr::VirtAddr;
use crate::percpu;
use crate::trap::{clac, has_smap, stac};
use core::arch::{asm, global_asm};

/// A user address could not be accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserFault {
    /// Bytes that were copied before. May be less than what is accessible (whole words only).
    pub copied: usize,
}

/// Why a string could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StrError {
    /// No NUL within the buffer's length.
    TooLong,
    /// A byte before the NUL is not accessible.
    Fault,
}

#[cfg(target_os = "none")]
global_asm!(
    ".pushsection .text, \"ax\"",
    // (rdi dst, rsi src, rdx len) -> rax = bytes not copied
    ".balign 16",
    ".global ursa_copy_user",
    "ursa_copy_user:",
    stac!(),
    "    mov rcx, rdx",
    "    shr rcx, 3",
    "    and edx, 7",
    "1:  rep movsq",
    "    mov ecx, edx",
    "2:  rep movsb",
    "    xor eax, eax",
    clac!(),
    "    ret",
    "3:  lea rax, [rcx * 8 + rdx]",
    clac!(),
    "    ret",
    "4:  mov rax, rcx",
    clac!(),
    "    ret",
    // (rdi dst, sil byte x8 in rsi, rdx len) -> rax = bytes not set
    ".balign 16",
    ".global ursa_fill_user",
    "ursa_fill_user:",
    stac!(),
    "    mov rax, rsi",
    "    mov rcx, rdx",
    "    shr rcx, 3",
    "    and edx, 7",
    "5:  rep stosq",
    "    mov ecx, edx",
    "6:  rep stosb",
    "    xor eax, eax",
    clac!(),
    "    ret",
    // (rdi dst kernel, rsi src user, rdx max) -> rax = length without NUL, or max if there is none, or !copied on a fault.
    // Eight bytes at a time where they cannot reach into the next page, which need not be there.
    ".balign 16",
    ".global ursa_strncpy_user",
    "ursa_strncpy_user:",
    stac!(),
    "    xor eax, eax",
    "    movabs r8, 0x0101010101010101",
    "    mov r9, r8",
    "    shl r9, 7",
    "7:  lea r10, [rax + 8]",
    "    cmp r10, rdx",
    "    ja 11f",
    "    lea r11d, [rsi + rax]",
    "    and r11d, 4095",
    "    cmp r11d, 4088",
    "    ja 11f",
    "8:  mov rcx, [rsi + rax]",
    "    mov [rdi + rax], rcx",
    // Is a byte of rcx zero? (rcx - 0x01..) & !rcx & 0x80.., whose lowest set bit marks the first.
    "    mov r11, rcx",
    "    sub rcx, r8",
    "    not r11",
    "    and rcx, r11",
    "    and rcx, r9",
    "    jnz 12f",
    "    mov rax, r10",
    "    jmp 7b",
    "12: bsf rcx, rcx",
    "    shr ecx, 3",
    "    add rax, rcx",
    "    jmp 9f",
    // Byte by byte, up to eight of them.
    "11: cmp rax, rdx",
    "    jae 9f",
    "13: mov cl, [rsi + rax]",
    "    mov [rdi + rax], cl",
    "    test cl, cl",
    "    jz 9f",
    "    inc rax",
    "    lea ecx, [rsi + rax]",
    "    test ecx, 4095",
    "    jnz 11b",
    "    jmp 7b",
    "9:",
    clac!(),
    "    ret",
    "10: not rax",
    clac!(),
    "    ret",
    ".popsection",
    ".pushsection .ex_table, \"a\"",
    ".quad 1b, 3b",
    ".quad 2b, 4b",
    ".quad 5b, 3b",
    ".quad 6b, 4b",
    ".quad 8b, 10b",
    ".quad 13b, 10b",
    ".popsection",
);

unsafe extern "C" {
    fn ursa_copy_user(dst: *mut u8, src: *const u8, len: usize) -> usize;
    fn ursa_fill_user(dst: *mut u8, byte: u64, len: usize) -> usize;
    fn ursa_strncpy_user(dst: *mut u8, src: *const u8, max: usize) -> isize;
    static __ex_table_start: [u64; 2];
    static __ex_table_end: [u64; 2];
    static __smap_sites_start: [u64; 2];
    static __smap_sites_end: [u64; 2];
}

/// Writes STAC and CLAC into the places left for them, if the CPU has SMAP. Runs before the text becomes read-only.
pub(crate) fn patch_smap() {
    if !has_smap() {
        return;
    }
    let (mut p, end) = (&raw const __smap_sites_start, &raw const __smap_sites_end);
    while p < end {
        // SAFETY: the linker gathered the entries; each names three bytes of NOP in the text, which the boot tables map writable
        // and which no CPU executes now. Any later execution is behind a serialising CR3 load.
        unsafe {
            let [at, stac] = *p;
            let last = if stac != 0 { 0xcb } else { 0xca };
            (at as *mut [u8; 3]).write_volatile([0x0f, 0x01, last]);
            p = p.add(1);
        }
    }
}

/// The exception table's entries: instruction and fix-up.
fn ex_table() -> (*const [u64; 2], usize) {
    let start = &raw const __ex_table_start;
    // SAFETY: both symbols belong to the one section, which holds only whole entries.
    (start, unsafe { (&raw const __ex_table_end).offset_from_unsigned(start) })
}

/// Sorts the exception table for [`fixup_for`]. Runs before rodata becomes read-only.
pub(crate) fn sort_ex_table() {
    let (start, n) = ex_table();
    // SAFETY: the boot tables map the section writable, one CPU runs, and no other reference to the table exists now.
    unsafe { core::slice::from_raw_parts_mut(start.cast_mut(), n) }.sort_unstable_by_key(|e| e[0]);
}

/// Where to go on after a failed user access at `rip`.
pub(crate) fn fixup_for(rip: u64) -> Option<u64> {
    let (start, n) = ex_table();
    // SAFETY: the section's entries, which nobody writes after boot.
    let table = unsafe { core::slice::from_raw_parts(start, n) };
    table.binary_search_by_key(&rip, |e| e[0]).ok().map(|i| table[i][1])
}

#[inline(always)]
fn check(at: VirtAddr, len: usize) -> Result<(), UserFault> {
    if at.is_user_range(len as u64) { Ok(()) } else { Err(UserFault { copied: 0 }) }
}

#[inline(always)]
fn done(len: usize, left: usize) -> Result<(), UserFault> {
    if left == 0 { Ok(()) } else { Err(UserFault { copied: len - left.min(len) }) }
}

/// Copies kernel memory to user memory.
///
/// # Safety
/// `from` is readable for `len` bytes.
#[inline]
pub(crate) unsafe fn raw_copy_to_user(to: VirtAddr, from: *const u8, len: usize) -> Result<(), UserFault> {
    check(to, len)?;
    // SAFETY: the user range was checked, faults there are fixed up; `from` is the caller's promise.
    done(len, unsafe { ursa_copy_user(to.0 as *mut u8, from, len) })
}

/// Copies user memory to kernel memory.
///
/// # Safety
/// `to` is writable for `len` bytes.
#[inline]
pub(crate) unsafe fn raw_copy_from_user(to: *mut u8, from: VirtAddr, len: usize) -> Result<(), UserFault> {
    check(from, len)?;
    // SAFETY: the user range was checked, faults there are fixed up; `to` is the caller's promise.
    done(len, unsafe { ursa_copy_user(to, from.0 as *const u8, len) })
}

/// Fills `to` from user memory.
#[inline]
pub fn copy_from_user(to: &mut [u8], from: VirtAddr) -> Result<(), UserFault> {
    // SAFETY: a slice is writable for its length.
    unsafe { raw_copy_from_user(to.as_mut_ptr(), from, to.len()) }
}

/// Copies `from` to user memory.
#[inline]
pub fn copy_to_user(to: VirtAddr, from: &[u8]) -> Result<(), UserFault> {
    // SAFETY: a slice is readable for its length.
    unsafe { raw_copy_to_user(to, from.as_ptr(), from.len()) }
}

/// Sets user memory to `byte`.
pub fn fill_user(to: VirtAddr, len: usize, byte: u8) -> Result<(), UserFault> {
    check(to, len)?;
    // SAFETY: the user range was checked, faults are fixed up.
    done(len, unsafe { ursa_fill_user(to.0 as *mut u8, u64::from(byte) * 0x0101_0101_0101_0101, len) })
}

/// Reads a NUL-terminated string. Returns its length without the NUL, which is in the buffer too.
pub fn strncpy_from_user(to: &mut [u8], from: VirtAddr) -> Result<usize, StrError> {
    // A string may end before user space does, even if the buffer is longer.
    if from.0 >= crate::addr::USER_END {
        return Err(StrError::Fault);
    }
    let max = to.len().min((crate::addr::USER_END - from.0) as usize);
    // SAFETY: the buffer is writable for `max` bytes, the user range was cut to user space, faults are fixed up.
    let n = unsafe { ursa_strncpy_user(to.as_mut_ptr(), from.0 as *const u8, max) };
    match usize::try_from(n) {
        Err(_) => Err(StrError::Fault),
        Ok(n) if n < max => Ok(n),
        Ok(_) if max < to.len() => Err(StrError::Fault),
        Ok(_) => Err(StrError::TooLong),
    }
}

/// One access at a listed instruction; `$err` becomes 1 where it fails.
macro_rules! access {
    ($insn:literal, $err:ident, $($args:tt)*) => {
        asm!(
            stac!(),
            concat!("2: ", $insn),
            "3:",
            clac!(),
            ".pushsection .text.fixup, \"ax\"",
            "4: mov {err:e}, 1",
            "jmp 3b",
            ".popsection",
            ".pushsection .ex_table, \"a\"",
            ".quad 2b, 4b",
            ".popsection",
            err = inout(reg) $err,
            $($args)*
        )
    };
}

macro_rules! scalar {
    ($load:ident, $store:ident, $t:ty, $ld:literal, $st:literal, $class:ident) => {
        /// Reads one value; it need not be aligned.
        #[inline]
        pub fn $load(at: VirtAddr) -> Result<$t, UserFault> {
            check(at, size_of::<$t>())?;
            let mut err = 0u32;
            let v: $t;
            // SAFETY: a checked user address; a fault is fixed up and leaves `v` at the zero it was given.
            unsafe { access!($ld, err, p = in(reg) at.0, v = inout($class) 0 as $t => v, options(nostack)) };
            if err == 0 { Ok(v) } else { Err(UserFault { copied: 0 }) }
        }
        /// Writes one value; it need not be aligned.
        #[inline]
        pub fn $store(at: VirtAddr, v: $t) -> Result<(), UserFault> {
            check(at, size_of::<$t>())?;
            let mut err = 0u32;
            // SAFETY: a checked user address; a fault is fixed up.
            unsafe { access!($st, err, p = in(reg) at.0, v = in($class) v, options(nostack)) };
            if err == 0 { Ok(()) } else { Err(UserFault { copied: 0 }) }
        }
    };
}
scalar!(load_u8, store_u8, u8, "mov {v}, byte ptr [{p}]", "mov byte ptr [{p}], {v}", reg_byte);
scalar!(load_u16, store_u16, u16, "mov {v:x}, word ptr [{p}]", "mov word ptr [{p}], {v:x}", reg);
scalar!(load_u32, store_u32, u32, "mov {v:e}, dword ptr [{p}]", "mov dword ptr [{p}], {v:e}", reg);
scalar!(load_u64, store_u64, u64, "mov {v}, qword ptr [{p}]", "mov qword ptr [{p}], {v}", reg);

/// Atomic compare and exchange on an aligned word: `Ok(Ok(old))` when it was `old` and is now `new`, `Ok(Err(found))` when not.
#[inline]
pub fn cmpxchg_u32(at: VirtAddr, old: u32, new: u32) -> Result<Result<u32, u32>, UserFault> {
    check(at, 4)?;
    if !at.is_aligned(4) {
        return Err(UserFault { copied: 0 });
    }
    let mut err = 0u32;
    let found: u32;
    // SAFETY: a checked user address; a fault is fixed up.
    unsafe {
        access!(
            "lock cmpxchg dword ptr [{p}], {n:e}", err,
            p = in(reg) at.0, n = in(reg) new, inout("eax") old => found, options(nostack)
        );
    }
    if err != 0 {
        return Err(UserFault { copied: 0 });
    }
    Ok(if found == old { Ok(found) } else { Err(found) })
}

/// Operations of `FUTEX_WAKE_OP`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RmwOp {
    /// Store the argument.
    Set,
    /// Add it.
    Add,
    /// Or it in.
    Or,
    /// Clear its bits.
    AndNot,
    /// Exclusive or.
    Xor,
}

/// Atomically changes an aligned word and returns the former value.
pub fn atomic_rmw_u32(at: VirtAddr, op: RmwOp, arg: u32) -> Result<u32, UserFault> {
    let mut old = load_u32(at)?;
    loop {
        let new = match op {
            RmwOp::Set => arg,
            RmwOp::Add => old.wrapping_add(arg),
            RmwOp::Or => old | arg,
            RmwOp::AndNot => old & !arg,
            RmwOp::Xor => old ^ arg,
        };
        match cmpxchg_u32(at, old, new)? {
            Ok(v) => return Ok(v),
            Err(now) => old = now,
        }
    }
}

/// Runs `f` with user copies failing at once where a page is not there, instead of asking for it: for use under spin locks. `f` must
/// not sleep.
pub fn nofault<R>(f: impl FnOnce() -> R) -> R {
    struct Undo;
    impl Drop for Undo {
        fn drop(&mut self) {
            let n = &percpu::local().nofault;
            n.set(n.get() - 1);
        }
    }
    let n = &percpu::local().nofault;
    n.set(n.get() + 1);
    let _undo = Undo;
    f()
}
