//! Entry and exit code.
//!
//! # Into user mode and back
//!
//! `ursa_user_enter(ctx)` saves what the ABI says must survive and cannot be declared clobbered (rbp, rbx), stores the kernel stack
//! pointer, points RSP0 at the end of `ctx`'s frame, and goes to user mode. It *returns* at the next event, with the event's
//! vector in eax (0 = syscall): entry code stores the user registers in the frame, loads the kernel stack pointer and
//! executes `ret`. Everything else the caller of `ursa_user_enter` treats as clobbered.
//!
//! * **syscall**: `swapgs`, then RSP0 serves as a pointer to the frame. Nothing is pushed: the words the CPU would have pushed
//!   for an interrupt (cs, ss) never change.
//! * **interrupts and exceptions from user mode**: the CPU pushes ss, rsp, rflags, cs, rip right into the frame; the stub pushes the
//!   rest below them. Interrupts stay off; Rust code handles the event and turns them on.
//! * **exit**: SYSRET when the frame was not touched except for rax since a syscall (then rip and rflags are the user's own and
//!   legal), else IRETQ with everything restored. Rust code has made the frame legal (`UserContext::prepare`), so that neither can
//!   fault: Intel CPUs raise #GP for SYSRET to a non-canonical address *in kernel mode on the user's stack*.
//!
//! # GS
//!
//! The kernel's GS base is active in all Rust code. Between kernel entry and `swapgs` it is not, so handlers that can arrive
//! there (NMI, #MC, #DB, #DF) run on IST stacks and look at the sign of the active GS base rather than at the interrupted CS. User
//! code cannot make that base negative: CR4.FSGSBASE is off and `Task::set_gs_base` refuses kernel addresses.
//!
//! # Flags
//!
//! SFMASK clears IF, DF, TF, NT, AC on syscall. Other entries clear DF; AC is cleared by CLAC where the CPU has SMAP (patched in at
//! boot). References: Intel SDM vol. 2B SYSRET, vol. 3A 6.12, 6.14; Linux `Documentation/arch/x86/entry_64.rst`.

use super::gdt::{RSP0, USER_CS};
use super::{FRAME_BYTES, frame_off as f};
use crate::percpu::off;
use core::arch::global_asm;
use core::mem::offset_of;

/// GS offset of RSP0.
const GS_RSP0: usize = off::TABLES + RSP0;

/// A place where CLAC (or STAC) belongs if the CPU has SMAP: three bytes of NOP and a table entry.
/// The entry's second word tells which instruction.
macro_rules! clac {
    () => {
        "771: .byte 0x0f, 0x1f, 0x00\n.pushsection .smap_sites, \"a\"\n.quad 771b\n.quad 0\n.popsection\n"
    };
}
macro_rules! stac {
    () => {
        "772: .byte 0x0f, 0x1f, 0x00\n.pushsection .smap_sites, \"a\"\n.quad 772b\n.quad 1\n.popsection\n"
    };
}
pub(crate) use {clac, stac};

#[cfg(target_os = "none")]
global_asm!(
    ".pushsection .text.entry, \"ax\"",
    ".balign 64",
    ".global ursa_user_enter",
    "ursa_user_enter:",
    "    push rbp",
    "    push rbx",
    "    lea rax, [rdi + {frame}]",
    "    mov gs:[{run_rsp}], rsp",
    "    mov gs:[{rsp0}], rax",
    "    cli",
    "    cmp dword ptr gs:[{need_resched}], 0",
    "    jne 5f",
    "    cmp dword ptr [rdi + {slow}], 0",
    "    jne 4f",
    "    mov r15, [rdi + {r15}]",
    "    mov r14, [rdi + {r14}]",
    "    mov r13, [rdi + {r13}]",
    "    mov r12, [rdi + {r12}]",
    "    mov rbp, [rdi + {rbp}]",
    "    mov rbx, [rdi + {rbx}]",
    "    mov r11, [rdi + {rflags}]",
    "    mov r10, [rdi + {r10}]",
    "    mov r9, [rdi + {r9}]",
    "    mov r8, [rdi + {r8}]",
    "    mov rax, [rdi + {rax}]",
    "    mov rcx, [rdi + {rip}]",
    "    mov rdx, [rdi + {rdx}]",
    "    mov rsi, [rdi + {rsi}]",
    "    mov rsp, [rdi + {rsp}]",
    "    mov rdi, [rdi + {rdi_}]",
    "    swapgs",
    "    sysretq",
    // The whole frame, by IRETQ.
    "4:  mov dword ptr [rdi + {slow}], 0",
    "    mov rsp, rdi",
    "    pop r15",
    "    pop r14",
    "    pop r13",
    "    pop r12",
    "    pop rbp",
    "    pop rbx",
    "    pop r11",
    "    pop r10",
    "    pop r9",
    "    pop r8",
    "    pop rax",
    "    pop rcx",
    "    pop rdx",
    "    pop rsi",
    "    pop rdi",
    "    add rsp, 16",
    "    swapgs",
    "    iretq",
    // Someone wants this CPU: back to the caller as if interrupted.
    "5:  sti",
    "    mov eax, {resched}",
    "    pop rbx",
    "    pop rbp",
    "    ret",
    "",
    ".balign 64",
    ".global ursa_syscall_entry",
    "ursa_syscall_entry:",
    "    swapgs",
    "    mov gs:[{scratch}], rsp",
    "    mov rsp, gs:[{rsp0}]",
    "    mov [rsp - {frame} + {rdi_}], rdi",
    "    mov [rsp - {frame} + {rsi}], rsi",
    "    mov [rsp - {frame} + {rdx}], rdx",
    "    mov [rsp - {frame} + {rip}], rcx",
    "    mov [rsp - {frame} + {rax}], rax",
    "    mov [rsp - {frame} + {orig_rax}], rax",
    "    mov [rsp - {frame} + {r8}], r8",
    "    mov [rsp - {frame} + {r9}], r9",
    "    mov [rsp - {frame} + {r10}], r10",
    "    mov [rsp - {frame} + {rflags}], r11",
    "    mov [rsp - {frame} + {rbx}], rbx",
    "    mov [rsp - {frame} + {rbp}], rbp",
    "    mov [rsp - {frame} + {r12}], r12",
    "    mov [rsp - {frame} + {r13}], r13",
    "    mov [rsp - {frame} + {r14}], r14",
    "    mov [rsp - {frame} + {r15}], r15",
    "    mov rax, gs:[{scratch}]",
    "    mov [rsp - {frame} + {rsp}], rax",
    "    mov rsp, gs:[{run_rsp}]",
    "    sti",
    "    pop rbx",
    "    pop rbp",
    "    xor eax, eax",
    "    ret",
    "",
    // An exception or interrupt. On the stack: error code and vector below the words that the CPU pushed.
    ".balign 64",
    "ursa_trap_common:",
    "    test byte ptr [rsp + 24], 3",
    "    jz 6f",
    "    swapgs",
    "    push rdi",
    "    push rsi",
    "    push rdx",
    "    push rcx",
    "    push rax",
    "    push r8",
    "    push r9",
    "    push r10",
    "    push r11",
    "    push rbx",
    "    push rbp",
    "    push r12",
    "    push r13",
    "    push r14",
    "    push r15",
    "    mov eax, [rsp + {orig_rax}]",
    "    mov dword ptr [rsp + {slow}], 1",
    "    mov rsp, gs:[{run_rsp}]",
    "    cld",
    clac!(),
    "    pop rbx",
    "    pop rbp",
    "    ret",
    // From the kernel.
    "6:  push rdi",
    "    push rsi",
    "    push rdx",
    "    push rcx",
    "    push rax",
    "    push r8",
    "    push r9",
    "    push r10",
    "    push r11",
    "    push rbx",
    "    push rbp",
    "    push r12",
    "    push r13",
    "    push r14",
    "    push r15",
    "    cld",
    clac!(),
    "    mov rdi, rsp",
    "    call {kernel_trap}",
    "ursa_trap_return:",
    "    pop r15",
    "    pop r14",
    "    pop r13",
    "    pop r12",
    "    pop rbp",
    "    pop rbx",
    "    pop r11",
    "    pop r10",
    "    pop r9",
    "    pop r8",
    "    pop rax",
    "    pop rcx",
    "    pop rdx",
    "    pop rsi",
    "    pop rdi",
    "    add rsp, 16",
    "    iretq",
    "",
    // NMI, #MC, #DF, #DB: on an IST stack, with any GS base.
    ".balign 64",
    "ursa_trap_paranoid:",
    "    push rdi",
    "    push rsi",
    "    push rdx",
    "    push rcx",
    "    push rax",
    "    push r8",
    "    push r9",
    "    push r10",
    "    push r11",
    "    push rbx",
    "    push rbp",
    "    push r12",
    "    push r13",
    "    push r14",
    "    push r15",
    "    cld",
    clac!(),
    "    xor ebx, ebx",
    "    mov ecx, 0xc0000101",
    "    rdmsr",
    "    test edx, edx",
    "    js 7f",
    "    swapgs",
    "    mov ebx, 1",
    "7:  mov rdi, rsp",
    "    call {paranoid_trap}",
    "    test eax, eax",
    "    jnz 8f",
    "    test ebx, ebx",
    "    jz ursa_trap_return",
    "    swapgs",
    "    jmp ursa_trap_return",
    // A #DB of user code: its frame is in the context now; leave the IST stack for good.
    "8:  mov rsp, gs:[{run_rsp}]",
    "    pop rbx",
    "    pop rbp",
    "    ret",
    "",
    // One stub for each vector, 16 bytes apart.
    ".balign 16",
    ".global ursa_trap_stubs",
    "ursa_trap_stubs:",
    ".set vec, 0",
    ".rept 256",
    "  .balign 16",
    "  .if (vec == 8) || (vec == 10) || (vec == 11) || (vec == 12) || (vec == 13) || (vec == 14) || (vec == 17) || (vec == 21) || (vec == 29) || (vec == 30)",
    "  .else",
    "    push 0",
    "  .endif",
    "  .byte 0x68",
    "  .long vec | 0x100",
    "  .if (vec == 1) || (vec == 2) || (vec == 8) || (vec == 18)",
    "    jmp ursa_trap_paranoid",
    "  .else",
    "    jmp ursa_trap_common",
    "  .endif",
    "  .set vec, vec + 1",
    ".endr",
    ".popsection",
    frame = const FRAME_BYTES,
    slow = const f::SLOW,
    run_rsp = const off::RUN_RSP,
    rsp0 = const GS_RSP0,
    scratch = const off::SCRATCH,
    need_resched = const off::NEED_RESCHED,
    resched = const super::RESCHED,
    r15 = const f::R15,
    r14 = const f::R14,
    r13 = const f::R13,
    r12 = const f::R12,
    rbp = const f::RBP,
    rbx = const f::RBX,
    r10 = const f::R10,
    r9 = const f::R9,
    r8 = const f::R8,
    rax = const f::RAX,
    rdx = const f::RDX,
    rsi = const f::RSI,
    rdi_ = const f::RDI,
    orig_rax = const f::ORIG_RAX,
    rip = const f::RIP,
    rflags = const f::RFLAGS,
    rsp = const f::RSP,
    kernel_trap = sym super::kernel_trap,
    paranoid_trap = sym super::paranoid_trap,
);

const _: () = assert!(USER_CS & 3 == 3);
const _: () = assert!(offset_of!(super::UserContext, frame) == 0);
