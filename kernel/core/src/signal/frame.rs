//! Signal frames: what a handler finds on its stack, and the way back.
//!
//! ```text
//!   high   XSAVE area (64-byte aligned), FP_XSTATE_MAGIC2 behind it    ◀── uc_mcontext.fpstate
//!          siginfo_t
//!          ucontext
//!   low    return address = sa_restorer                                ◀── rsp at the handler's first instruction
//! ```
//! Exactly Linux's `struct rt_sigframe`, because unwinders, debuggers and programs that edit the context read it.
//! On the way back nothing in the frame is trusted: registers are made legal by hal, the vector state is validated, addresses may
//! fault; a bad frame is `SIGSEGV`.
//! References: Linux `arch/x86/kernel/signal_64.c`, `arch/x86/kernel/fpu/signal.c`, `asm/sigcontext.h`.

use alloc::vec::Vec;

use linux_uapi::signal::{
    FP_XSTATE_MAGIC1, FP_XSTATE_MAGIC2, FPX_SW_BYTES_OFFSET, FpxSwBytes, RtSigFrame, SIGSEGV, SigAction, SigAltStack,
    SigContext, SigInfo, SigSet, UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS, UContext,
};
use linux_uapi::zerocopy::{FromBytes, IntoBytes};
use ursa_hal::fpu;
use ursa_hal::trap::UserContext;

use super::{SA_RESTORER, SS_AUTODISARM, SS_DISABLE, SS_ONSTACK, force_signal, set_blocked};
use crate::process::Thread;
use crate::user::{self, UserAddr, UserPtr};
use crate::{Errno, Result};

/// What the ABI lets a function use below its stack pointer.
const RED_ZONE: u64 = 128;
/// Bytes of the FXSAVE image.
const LEGACY_SIZE: usize = 512;
const MAGIC2_SIZE: usize = 4;

/// Bytes of stack that the delivery of a signal needs, for auxv's `AT_MINSIGSTKSZ`.
pub fn min_stack_size() -> usize {
    const ALIGNMENT_SLACK: usize = 64 + 16 + 8;
    size_of::<RtSigFrame>() + fpu::size() + MAGIC2_SIZE + ALIGNMENT_SLACK + RED_ZONE as usize
}

/// Whether `sp` lies on the alternate stack. With `SS_AUTODISARM` the stack is off while it is in use.
pub(super) fn on_alt_stack(stack: &SigAltStack, sp: u64) -> bool {
    stack.ss_flags & SS_AUTODISARM == 0 && sp > stack.ss_sp && sp - stack.ss_sp <= stack.ss_size
}

/// `ss_flags` as sigaltstack(2) reports them.
pub(super) fn alt_stack_flags(stack: &SigAltStack, sp: u64) -> i32 {
    if stack.ss_size == 0 {
        SS_DISABLE
    } else if on_alt_stack(stack, sp) {
        SS_ONSTACK
    } else {
        0
    }
}

/// Builds the frame and points the registers at the handler.
///
/// # Errors
/// `EFAULT` when the frame cannot be written.
pub(super) fn push(
    thread: &Thread,
    context: &mut UserContext,
    info: &SigInfo,
    action: &SigAction,
    mask: SigSet,
    use_alt_stack: bool,
) -> Result {
    // x86-64 programs must bring their restorer.
    if action.flags & SA_RESTORER == 0 {
        return Err(Errno::EFAULT);
    }
    let registers = *context.regs();
    let alt_stack = thread.signals.alt_stack();
    let was_on_alt_stack = on_alt_stack(&alt_stack, registers.rsp);
    let mut sp = registers.rsp.wrapping_sub(RED_ZONE);
    let mut enters_alt_stack = false;
    if use_alt_stack && alt_stack_flags(&alt_stack, registers.rsp) == 0 {
        sp = alt_stack.ss_sp + alt_stack.ss_size;
        enters_alt_stack = true;
    }

    let state_size = fpu::size();
    sp = sp.wrapping_sub((state_size + MAGIC2_SIZE) as u64) & !63;
    let fpstate = sp;
    sp = (sp.wrapping_sub(size_of::<RtSigFrame>() as u64) & !15).wrapping_sub(8);
    // Once on the alternate stack a frame must stay there: an overflow would run over what lies below.
    if (was_on_alt_stack || enters_alt_stack) && !(sp > alt_stack.ss_sp && sp - alt_stack.ss_sp <= alt_stack.ss_size) {
        return Err(Errno::EFAULT);
    }

    write_vector_state(fpstate, state_size)?;
    let fault = thread.signals.ptrace.fault();
    let frame = RtSigFrame {
        pretcode: action.restorer,
        uc: UContext {
            uc_flags: UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS,
            uc_link: 0,
            uc_stack: alt_stack,
            uc_mcontext: SigContext {
                r8: registers.r8,
                r9: registers.r9,
                r10: registers.r10,
                r11: registers.r11,
                r12: registers.r12,
                r13: registers.r13,
                r14: registers.r14,
                r15: registers.r15,
                di: registers.rdi,
                si: registers.rsi,
                bp: registers.rbp,
                bx: registers.rbx,
                dx: registers.rdx,
                ax: registers.rax,
                cx: registers.rcx,
                sp: registers.rsp,
                ip: registers.rip,
                flags: registers.rflags,
                cs: registers.cs as u16,
                gs: 0,
                fs: 0,
                ss: registers.ss as u16,
                err: fault.error_code,
                trapno: fault.vector,
                oldmask: mask.0,
                cr2: fault.address,
                fpstate,
                reserved: [0; 8],
            },
            uc_sigmask: mask,
        },
        info: info.to_user(),
    };
    UserPtr::new(sp).write(&frame)?;

    if alt_stack.ss_flags & SS_AUTODISARM != 0 {
        thread.signals.disable_alt_stack();
    }
    const TF_RF_DF: u64 = 0x100 | 0x1_0000 | 0x400;
    let uc = sp + core::mem::offset_of!(RtSigFrame, uc) as u64;
    let siginfo = sp + core::mem::offset_of!(RtSigFrame, info) as u64;
    let registers = context.regs_mut();
    registers.rsp = sp;
    registers.rip = action.handler;
    registers.rdi = u64::from(info.signo());
    // All three arguments even without SA_SIGINFO, as on Linux.
    registers.rsi = siginfo;
    registers.rdx = uc;
    registers.rax = 0;
    registers.rflags &= !TF_RF_DF;
    registers.orig_rax = !0;
    Ok(())
}

fn write_vector_state(fpstate: u64, size: usize) -> Result {
    let mut area = Vec::new();
    area.try_reserve_exact(size + MAGIC2_SIZE).map_err(|_| Errno::EFAULT)?;
    area.resize(size + MAGIC2_SIZE, 0);
    fpu::save_to(&mut area[..size]);
    let extended = size > LEGACY_SIZE;
    let software = FpxSwBytes {
        magic1: if extended { FP_XSTATE_MAGIC1 } else { 0 },
        extended_size: (size + MAGIC2_SIZE) as u32,
        xfeatures: fpu::components(),
        xstate_size: size as u32,
        padding: [0; 7],
    };
    area[FPX_SW_BYTES_OFFSET..LEGACY_SIZE].copy_from_slice(software.as_bytes());
    area[size..].copy_from_slice(&FP_XSTATE_MAGIC2.to_ne_bytes());
    user::write_bytes(UserAddr::new(fpstate), &area)
}

/// rt_sigreturn(2): restores what the frame below the stack pointer says.
pub(super) fn pop(thread: &Thread, context: &mut UserContext) {
    if restore(thread, context).is_err() {
        force_signal(thread, SigInfo::kernel(SIGSEGV));
    }
}

fn restore(thread: &Thread, context: &mut UserContext) -> Result {
    let sp = context.regs().rsp;
    // The restorer's `ret` address is popped already.
    let frame: RtSigFrame = UserPtr::new(sp.wrapping_sub(8)).read()?;
    let machine = frame.uc.uc_mcontext;
    set_blocked(thread, frame.uc.uc_sigmask);
    let registers = context.regs_mut();
    registers.r8 = machine.r8;
    registers.r9 = machine.r9;
    registers.r10 = machine.r10;
    registers.r11 = machine.r11;
    registers.r12 = machine.r12;
    registers.r13 = machine.r13;
    registers.r14 = machine.r14;
    registers.r15 = machine.r15;
    registers.rdi = machine.di;
    registers.rsi = machine.si;
    registers.rbp = machine.bp;
    registers.rbx = machine.bx;
    registers.rdx = machine.dx;
    registers.rax = machine.ax;
    registers.rcx = machine.cx;
    registers.rsp = machine.sp;
    registers.rip = machine.ip;
    registers.rflags = restored_flags(registers.rflags, machine.flags);
    // Not a system call any more: nothing to restart.
    registers.orig_rax = !0;
    // After the registers, as on Linux: who handles the SIGSEGV of a bad image goes on where the frame says.
    if let Err(error) = restore_vector_state(machine.fpstate) {
        fpu::reset();
        return Err(error);
    }
    // As on Linux, a frame with a bad alternate stack restores all but that.
    let _ = super::syscall::set_alt_stack(thread, &frame.uc.uc_stack, machine.sp, 0);
    Ok(())
}

/// The flags that a program may restore (`FIX_EFLAGS`).
fn restored_flags(current: u64, saved: u64) -> u64 {
    // AC OF DF TF SF ZF AF PF CF RF
    const FIX_EFLAGS: u64 = 0x4_0000 | 0x800 | 0x400 | 0x100 | 0x80 | 0x40 | 0x10 | 0x4 | 0x1 | 0x1_0000;
    current & !FIX_EFLAGS | saved & FIX_EFLAGS
}

fn restore_vector_state(address: u64) -> Result {
    if address == 0 {
        fpu::reset();
        return Ok(());
    }
    let size = fpu::size();
    let mut area = Vec::new();
    area.try_reserve_exact(size + MAGIC2_SIZE).map_err(|_| Errno::EFAULT)?;
    area.resize(size + MAGIC2_SIZE, 0);
    user::read_bytes(UserAddr::new(address), &mut area[..LEGACY_SIZE])?;
    let software = FpxSwBytes::read_from_bytes(&area[FPX_SW_BYTES_OFFSET..LEGACY_SIZE]).map_err(|_| Errno::EFAULT)?;
    let has_extended = size > LEGACY_SIZE
        && software.magic1 == FP_XSTATE_MAGIC1
        && software.xstate_size as usize == size
        && software.extended_size as usize == size + MAGIC2_SIZE;
    if has_extended {
        user::read_bytes(UserAddr::new(address), &mut area)?;
        if area[size..] == FP_XSTATE_MAGIC2.to_ne_bytes() {
            return fpu::restore_from(&area[..size]).map_err(|_| Errno::EFAULT);
        }
    }
    // Only the legacy image is there: x87 and SSE from it, everything else initial.
    const X87_AND_SSE: u64 = 3;
    area[LEGACY_SIZE..].fill(0);
    if size >= LEGACY_SIZE + 8 {
        area[LEGACY_SIZE..LEGACY_SIZE + 8].copy_from_slice(&X87_AND_SSE.to_ne_bytes());
    }
    fpu::restore_from(&area[..size]).map_err(|_| Errno::EFAULT)
}
