//! A small built-in program runs in user mode and comes back in every way there is.

use super::{Access, UserContext, UserEvent};
use crate::addr::{PAGE_SIZE, USER_END, VirtAddr};
use crate::mm::{CacheMode, Frame, Prot, UserSpace};
use crate::{task, user};
use alloc::sync::Arc;
use core::arch::global_asm;

#[cfg(target_os = "none")]
global_asm!(
    ".pushsection .rodata, \"a\"",
    ".balign 16",
    ".global ursa_test_program",
    "ursa_test_program:",
    // 0: 1,000 system calls; the result must come back in rax and all else survive.
    "    mov ebx, 1000",
    "    mov r12, 0x1212121212121212",
    "    mov r15, 0x1515151515151515",
    "1:  mov eax, 39",
    "    mov edi, ebx",
    "    mov r10d, 0x10",
    "    mov r8d, 0x8",
    "    mov r9d, 0x9",
    "    mov esi, 0x51",
    "    mov edx, 0xd",
    "    syscall",
    "    lea ecx, [rbx + 1]",
    "    cmp eax, ecx",
    "    jne 9f",
    "    cmp r10d, 0x10",
    "    jne 9f",
    "    cmp edx, 0xd",
    "    jne 9f",
    "    dec ebx",
    "    jnz 1b",
    "    mov rax, 0x1212121212121212",
    "    cmp rax, r12",
    "    jne 9f",
    "    mov rax, 0x1515151515151515",
    "    cmp rax, r15",
    "    jne 9f",
    "    int3",
    // Flags that would hurt the kernel: DF, AC, NT, TF are set at a system call.
    "    pushfq",
    "    or dword ptr [rsp], 0x44400",
    "    popfq",
    "    mov eax, 100",
    "    syscall",
    "    pushfq",
    "    pop r14",
    "    cld",
    "    push 0x202",
    "    popfq",
    // Exceptions.
    "    ud2",
    "    nop",
    "    xor edx, edx",
    "    xor ecx, ecx",
    "    div ecx",
    "    nop",
    "    hlt",
    "    mov rax, 0x8000000000000000",
    "    mov al, [rax]",
    "    nop",
    "    mov al, [0x10]",
    "    nop",
    "    mov byte ptr [0x20], al",
    "    nop",
    "    mov rax, 0xffff800000200000",
    "    mov al, [rax]",
    "    nop",
    "    int 0x80",
    // Spin until interrupted, with known registers.
    "    mov eax, 1",
    "    mov ecx, 2",
    "    mov r13d, 13",
    "2:  pause",
    "    jmp 2b",
    "9:  mov eax, 60",
    "    syscall",
    "    ud2",
    ".global ursa_test_program_end",
    "ursa_test_program_end:",
    ".popsection",
);

unsafe extern "C" {
    static ursa_test_program: u8;
    static ursa_test_program_end: u8;
}

const CODE: u64 = 0x40_0000;
const STACK: u64 = 0x7fff_0000_0000;

fn load() -> (Arc<UserSpace>, UserContext) {
    let s = Arc::new(UserSpace::new().unwrap());
    let (start, end) = (&raw const ursa_test_program, &raw const ursa_test_program_end);
    // SAFETY: the linker symbols enclose the program, in rodata.
    let text = unsafe { core::slice::from_raw_parts(start, end.offset_from_unsigned(start)) };
    let code = Frame::alloc_zeroed().unwrap();
    code.write(0, text);
    s.map(VirtAddr(CODE), code, Prot::RX, CacheMode::WriteBack).unwrap();
    let stack = Frame::alloc_zeroed().unwrap();
    s.map(VirtAddr(STACK - PAGE_SIZE as u64), stack, Prot::RW, CacheMode::WriteBack).unwrap();
    task::switch_space(&s);
    (s, UserContext::start(CODE, STACK))
}

/// Runs until something other than an interrupt happens.
fn event(ctx: &mut UserContext) -> UserEvent {
    loop {
        match ctx.run() {
            UserEvent::Interrupt => task::clear_need_resched(),
            e => return e,
        }
    }
}

fn skip(ctx: &mut UserContext, bytes: u64) {
    ctx.regs_mut().rip += bytes;
}

ktest! {
    /// System calls, exceptions and faults of a program arrive as what they are.
    fn user_program_events() {
        let (_space, mut ctx) = load();
        for i in (1..=1000u64).rev() {
            assert_eq!(event(&mut ctx), UserEvent::Syscall);
            assert_eq!((ctx.syscall_number(), ctx.syscall_args()), (39, [i, 0x51, 0xd, 0x10, 8, 9]));
            if i % 7 == 0 {
                // The slow way back must be as good.
                ctx.regs_mut().rax = i + 1;
            } else {
                ctx.set_return(i + 1);
            }
        }
        let at = |v, e| UserEvent::Exception { vector: v, error_code: e, dr6: 0 };
        assert_eq!(event(&mut ctx), at(3, 0));
        assert_eq!(event(&mut ctx), UserEvent::Syscall);
        assert_eq!(ctx.syscall_number(), 100);
        assert_eq!(ctx.regs().rflags & 0x44400, 0x44400);
        assert_eq!(event(&mut ctx), at(6, 0));
        assert_eq!(ctx.regs().r14 & 0x44400, 0x44400);
        skip(&mut ctx, 2);
        assert_eq!(event(&mut ctx), at(0, 0));
        skip(&mut ctx, 2);
        assert_eq!(event(&mut ctx), at(13, 0));
        skip(&mut ctx, 1);
        assert_eq!(event(&mut ctx), at(13, 0));
        skip(&mut ctx, 2);
        let fault = |addr, access, present| UserEvent::PageFault { addr: VirtAddr(addr), access, present };
        assert_eq!(event(&mut ctx), fault(0x10, Access::Read, false));
        skip(&mut ctx, 7);
        assert_eq!(event(&mut ctx), fault(0x20, Access::Write, false));
        skip(&mut ctx, 7);
        assert_eq!(event(&mut ctx), fault(0xffff_8000_0020_0000, Access::Read, true));
        skip(&mut ctx, 2);
        assert!(matches!(event(&mut ctx), UserEvent::Exception { vector: 13, .. }));
        skip(&mut ctx, 2);
        // Now it spins. Someone wants the CPU.
        task::set_need_resched(crate::percpu::cpu_id());
        assert_eq!(ctx.run(), UserEvent::Interrupt);
        task::clear_need_resched();
        // Single-step: the trap comes through an IST stack.
        for _ in 0..20 {
            ctx.regs_mut().rflags |= 0x100;
            match event(&mut ctx) {
                UserEvent::Exception { vector: 1, dr6, .. } => assert_eq!(dr6 & 1 << 14, 1 << 14),
                e => panic!("{e:?}"),
            }
        }
        let r = *ctx.regs();
        assert_eq!((r.rax, r.rcx, r.r13), (1, 2, 13));
        task::leave_space();
    }

    /// No register value that core could set harms the kernel.
    fn bad_contexts_are_refused() {
        let (_space, mut ctx) = load();
        for rip in [USER_END + PAGE_SIZE as u64, 1 << 47, 0xdead_0000_0000_0000, !0, 0xffff_ffff_8020_0000] {
            ctx.regs_mut().rip = rip;
            assert_eq!(event(&mut ctx), UserEvent::Exception { vector: 13, error_code: 0, dr6: 0 });
        }
        let r = ctx.regs_mut();
        (r.rip, r.rsp, r.cs, r.ss, r.rflags) = (USER_END, 0x8000_0000_0000_0000, 0x10, 0x18, !0x100);
        assert!(matches!(event(&mut ctx), UserEvent::PageFault { access: Access::Exec, present: false, .. }));
        assert_eq!((ctx.regs().cs, ctx.regs().ss, ctx.regs().rflags >> 12 & 3), (0x33, 0x2b, 0));
        // Stack pages are not executable.
        ctx.regs_mut().rip = STACK - 16;
        assert!(matches!(event(&mut ctx), UserEvent::PageFault { access: Access::Exec, present: true, .. }));
        task::leave_space();
    }

    /// FS and GS bases are kept, and kernel addresses are refused.
    fn segment_bases() {
        let me = task::current();
        assert!(!me.set_fs_base(USER_END) && !me.set_gs_base(0xffff_8000_0000_0000));
        assert!(me.set_fs_base(0x1000) && me.set_gs_base(0x2000));
        assert_eq!((me.fs_base(), me.gs_base()), (0x1000, 0x2000));
    }

    /// Copies stop at the first page that is not there and say how far they came; kernel addresses never work.
    fn user_copies_fault_cleanly() {
        let (s, _) = load();
        let page = VirtAddr(STACK - PAGE_SIZE as u64);
        let end = VirtAddr(STACK);
        user::copy_to_user(page, &[7; PAGE_SIZE]).unwrap();
        let mut b = [0; 300];
        user::copy_from_user(&mut b, end - 300).unwrap();
        assert!(b.iter().all(|x| *x == 7));
        for (before, len) in [(0u64, 8usize), (5, 100), (100, 300), (64, 65), (1, 2), (8, 9)] {
            let e = user::copy_to_user(end - before, &b[..len]).unwrap_err();
            assert!(e.copied <= before as usize && e.copied + 8 > before as usize, "{e:?} {before}");
            let e = user::copy_from_user(&mut b[..len], end - before).unwrap_err();
            assert!(e.copied <= before as usize && e.copied + 8 > before as usize, "{e:?} {before}");
            let e = user::fill_user(end - before, len, 7).unwrap_err();
            assert!(e.copied <= before as usize);
        }
        for bad in [0, 8, USER_END, USER_END - 4, 0xffff_8000_0000_0000, !0 - 3, 1 << 47] {
            let bad = VirtAddr(bad);
            assert!(user::copy_to_user(bad, &[0; 8]).is_err() && user::copy_from_user(&mut b[..8], bad).is_err());
            assert!(user::load_u64(bad).is_err() && user::store_u64(bad, 1).is_err() && user::fill_user(bad, 8, 0).is_err());
            assert!(user::cmpxchg_u32(bad, 0, 1).is_err());
            assert_eq!(user::strncpy_from_user(&mut b, bad), Err(user::StrError::Fault));
        }
        assert!(user::copy_to_user(VirtAddr(0), &[]).is_ok());
        // Read-only pages.
        assert_eq!(user::store_u8(VirtAddr(CODE), 0), Err(user::UserFault { copied: 0 }));
        assert!(user::load_u8(VirtAddr(CODE)).is_ok());
        // Words.
        user::store_u64(page, 0x1122_3344_5566_7788).unwrap();
        assert_eq!((user::load_u8(page), user::load_u16(page), user::load_u32(page + 1)), (Ok(0x88), Ok(0x7788), Ok(0x4455_6677)));
        assert_eq!(user::cmpxchg_u32(page, 0x5566_7788, 1), Ok(Ok(0x5566_7788)));
        assert_eq!(user::cmpxchg_u32(page, 2, 1), Ok(Err(1)));
        assert!(user::cmpxchg_u32(page + 2, 2, 1).is_err());
        assert_eq!(user::atomic_rmw_u32(page, user::RmwOp::Add, 9), Ok(1));
        assert_eq!(user::load_u32(page), Ok(10));
        // Strings.
        user::copy_to_user(end - 6, b"hello\0").unwrap();
        assert_eq!(user::strncpy_from_user(&mut b, end - 6), Ok(5));
        assert_eq!(&b[..6], b"hello\0");
        assert_eq!(user::strncpy_from_user(&mut b[..5], end - 6), Err(user::StrError::TooLong));
        assert_eq!(user::strncpy_from_user(&mut b[..6], end - 6), Ok(5));
        user::store_u8(end - 1, b'!').unwrap();
        assert_eq!(user::strncpy_from_user(&mut b, end - 6), Err(user::StrError::Fault));
        // A page without rights, and frames.
        s.protect(page..end, |_, _, _| Prot::empty());
        assert!(user::load_u8(page).is_err());
        assert!(user::nofault(|| user::load_u8(page)).is_err());
        s.protect(page..end, |_, _, _| Prot::RW);
        let f = Frame::alloc_zeroed().unwrap();
        f.copy_from_user(100, end - 6, 6).unwrap();
        f.read(100, &mut b[..6]);
        assert_eq!(&b[..6], b"hello!");
        assert_eq!(f.copy_to_user(0, end - 16, 32).unwrap_err().copied, 16);
        task::leave_space();
    }
}
