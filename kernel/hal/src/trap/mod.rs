//! Exceptions, interrupts, system calls: what brings a CPU from a program into the kernel.
//!
//! [`UserContext::run`] is the only way into user mode and returns at the next event. [`entry`] holds the assembly with
//! its invariants; [`gdt`] the descriptor tables. Traps inside the kernel:
//!
//! * interrupts: dispatched to `irq::dispatch` on the current stack, with interrupts off;
//! * page faults at an instruction in the exception table that touched a user address: the page is asked for
//!   (`Hooks::user_fault`) and the instruction retried, or execution goes on at the fix-up;
//! * everything else is a broken invariant: panic with the registers.

mod entry;
pub(crate) mod gdt;
#[cfg(target_os = "none")]
mod tests;

pub(crate) use entry::{clac, stac};

use crate::addr::{USER_END, VirtAddr};
use crate::cpu::{cpuid, rdmsr, wrmsr};
use crate::percpu;
use core::arch::asm;
use core::fmt;
use core::mem::offset_of;

/// `ursa_user_enter` came back because of `need_resched`.
const RESCHED: u32 = 0x200;
const IF: u64 = 1 << 9;
const TF: u64 = 1 << 8;

/// All registers of an interrupted or calling program, in the order in which entry code stores them.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "register names")]
pub struct Regs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// System call number; all ones after any other event.
    pub orig_rax: u64,
    /// Error code of the last exception.
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

const FRAME_BYTES: usize = size_of::<Regs>();
const _: () = assert!(FRAME_BYTES == 176 && FRAME_BYTES.is_multiple_of(16));

/// Offsets in `UserContext` for assembly.
mod frame_off {
    use super::*;
    macro_rules! offsets {
        ($($name:ident = $field:ident),*) => {
            $(pub(super) const $name: usize = offset_of!(Regs, $field);)*
        };
    }
    offsets!(
        R15 = r15,
        R14 = r14,
        R13 = r13,
        R12 = r12,
        RBP = rbp,
        RBX = rbx,
        R10 = r10,
        R9 = r9,
        R8 = r8,
        RAX = rax,
        RDX = rdx,
        RSI = rsi,
        RDI = rdi,
        ORIG_RAX = orig_rax,
        RIP = rip,
        RFLAGS = rflags,
        RSP = rsp
    );
    pub(super) const SLOW: usize = offset_of!(UserContext, slow);
}

/// Flags a program may set: CF PF AF ZF SF TF DF OF NT RF AC ID. IF is always on, IOPL always 0.
const USER_FLAGS: u64 = 0x0025_4dd5;
const ALWAYS_FLAGS: u64 = IF | 2;

/// How a program touched memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Exec,
}

impl Access {
    fn of(error_code: u64) -> Self {
        if error_code & 16 != 0 {
            Self::Exec
        } else if error_code & 2 != 0 {
            Self::Write
        } else {
            Self::Read
        }
    }
}

/// Why a program stopped running.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UserEvent {
    /// It made a system call: number in rax and orig_rax, arguments in rdi, rsi, rdx, r10, r8, r9.
    Syscall,
    /// It touched memory that is not mapped so.
    PageFault {
        /// What it touched.
        addr: VirtAddr,
        /// How.
        access: Access,
        /// A page is mapped, with too few rights.
        present: bool,
    },
    /// Any other exception.
    Exception {
        /// Its vector.
        vector: u8,
        /// Its error code, 0 where it has none.
        error_code: u64,
        /// #DB: the debug status register (DR6).
        dr6: u64,
    },
    /// A device or another CPU wanted attention, or `need_resched` was set: look at the scheduler and at signals.
    Interrupt,
}

/// A program's registers, and the way to run it.
///
/// `regs_mut` marks the whole frame as changed, so that the next `run` checks it and restores every register; results of system calls
/// are better set with [`UserContext::set_return`], which keeps the fast path.
#[repr(C, align(16))]
#[derive(Clone, Debug)]
pub struct UserContext {
    frame: Regs,
    /// Not zero: leave by IRETQ, restoring everything.
    slow: u32,
    /// The frame was changed by the kernel and must be checked.
    changed: u32,
}

unsafe extern "C" {
    /// See [`entry`]. Follows no calling convention but the one that `run` declares.
    fn ursa_user_enter();
    fn ursa_syscall_entry();
    static ursa_trap_stubs: [[u8; 16]; 256];
}

impl Default for UserContext {
    fn default() -> Self {
        Self::new()
    }
}

impl UserContext {
    /// All registers zero.
    pub const fn new() -> Self {
        Self {
            frame: Regs {
                r15: 0,
                r14: 0,
                r13: 0,
                r12: 0,
                rbp: 0,
                rbx: 0,
                r11: 0,
                r10: 0,
                r9: 0,
                r8: 0,
                rax: 0,
                rcx: 0,
                rdx: 0,
                rsi: 0,
                rdi: 0,
                orig_rax: !0,
                error_code: 0,
                rip: 0,
                cs: gdt::USER_CS as u64,
                rflags: ALWAYS_FLAGS,
                rsp: 0,
                ss: gdt::USER_SS as u64,
            },
            slow: 1,
            changed: 1,
        }
    }
    /// A context that starts at `rip` with stack `rsp`.
    pub const fn start(rip: u64, rsp: u64) -> Self {
        let mut c = Self::new();
        c.frame.rip = rip;
        c.frame.rsp = rsp;
        c
    }
    /// The registers.
    #[inline(always)]
    pub fn regs(&self) -> &Regs {
        &self.frame
    }
    /// The registers, for changing. `cs` and `ss` are put back to their only legal values, illegal flags are dropped; a `rip`
    /// outside of user space makes the next `run` report #GP at once.
    #[inline]
    pub fn regs_mut(&mut self) -> &mut Regs {
        self.slow = 1;
        self.changed = 1;
        &mut self.frame
    }
    /// The system call number. As on Linux it is an `int`: the upper half of the register means nothing.
    #[inline(always)]
    pub fn syscall_number(&self) -> usize {
        self.frame.rax as u32 as usize
    }
    /// The system call arguments.
    #[inline(always)]
    pub fn syscall_args(&self) -> [u64; 6] {
        let r = &self.frame;
        [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9]
    }
    /// Sets rax, the result of a system call, and nothing else.
    #[inline(always)]
    pub fn set_return(&mut self, value: u64) {
        self.frame.rax = value;
    }

    /// Runs `f` with the context in a place where [`Task::user_regs`](crate::task::Task::user_regs) finds it.
    pub fn expose<R>(mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        let task = crate::task::current();
        task.set_user_regs(&raw mut self.frame);
        let result = f(&mut self);
        task.set_user_regs(core::ptr::null_mut());
        result
    }

    /// Makes the frame legal. False when rip cannot be a user address.
    #[cold]
    fn prepare(&mut self) -> bool {
        let f = &mut self.frame;
        f.cs = gdt::USER_CS.into();
        f.ss = gdt::USER_SS.into();
        f.rflags = f.rflags & USER_FLAGS | ALWAYS_FLAGS;
        // Not canonical: IRETQ itself would fault. The last page below the hole can never be mapped.
        f.rip < USER_END + crate::addr::PAGE_SIZE as u64
    }

    /// Runs the program until something happens. Interrupts are on before and after.
    #[inline(always)]
    pub fn run(&mut self) -> UserEvent {
        if self.changed != 0 {
            if !self.prepare() {
                return UserEvent::Exception { vector: 13, error_code: 0, dr6: 0 };
            }
            self.changed = 0;
        }
        let code: u32;
        // SAFETY: the frame is legal (fresh from the CPU, or prepared), so entry code cannot fault; it returns here with rbx, rbp and
        // rsp restored and everything else declared clobbered. RSP0 points into `self` until the next `run`, but is used only
        // by events from user mode, which end this one.
        unsafe {
            asm!(
                "call {enter}",
                enter = sym ursa_user_enter,
                inout("rdi") &raw mut *self => _,
                out("eax") code,
                out("rcx") _, out("rdx") _, out("rsi") _,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            );
        }
        if code == 0 {
            return UserEvent::Syscall;
        }
        self.event(code)
    }

    #[cold]
    #[inline(never)]
    fn event(&mut self, code: u32) -> UserEvent {
        if code == RESCHED {
            return UserEvent::Interrupt;
        }
        // Interrupts are off here.
        self.frame.orig_rax = !0;
        let vector = code as u8;
        let error_code = self.frame.error_code;
        let event = match vector {
            14 => UserEvent::PageFault {
                addr: VirtAddr(read_cr2()),
                access: Access::of(error_code),
                present: error_code & 1 != 0,
            },
            0..=31 => UserEvent::Exception {
                vector,
                error_code,
                dr6: if vector == 1 { crate::debug::take_status() } else { 0 },
            },
            _ => {
                crate::irq::dispatch(vector);
                UserEvent::Interrupt
            }
        };
        crate::cpu::irq_enable();
        event
    }
}

/// Registers at a trap inside the kernel.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct TrapFrame(Regs);

impl TrapFrame {
    /// The registers.
    pub fn regs(&self) -> &Regs {
        &self.0
    }
    /// The vector that brought it.
    pub fn vector(&self) -> u8 {
        self.0.orig_rax as u8
    }
    /// Whether it interrupted user code.
    pub fn from_user(&self) -> bool {
        self.0.cs & 3 != 0
    }
}

impl fmt::Display for TrapFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = &self.0;
        writeln!(
            f,
            "rip {:016x} rsp {:016x} flags {:08x} cs {:x} error {:x}",
            r.rip, r.rsp, r.rflags, r.cs, r.error_code
        )?;
        writeln!(f, "rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}", r.rax, r.rbx, r.rcx, r.rdx)?;
        writeln!(f, "rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}", r.rsi, r.rdi, r.rbp, r.r8)?;
        writeln!(f, "r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}", r.r9, r.r10, r.r11, r.r12)?;
        write!(f, "r13 {:016x} r14 {:016x} r15 {:016x} cr2 {:016x}", r.r13, r.r14, r.r15, read_cr2())
    }
}

fn read_cr2() -> u64 {
    let v;
    // SAFETY: reads a control register.
    unsafe { asm!("mov {}, cr2", out(reg) v, options(nomem, nostack, preserves_flags)) };
    v
}

/// Names of the exceptions, for panics.
const NAMES: [&str; 22] = [
    "divide error",
    "debug",
    "NMI",
    "breakpoint",
    "overflow",
    "bound range",
    "invalid opcode",
    "device not available",
    "double fault",
    "coprocessor overrun",
    "invalid TSS",
    "segment not present",
    "stack fault",
    "general protection",
    "page fault",
    "reserved",
    "x87 error",
    "alignment check",
    "machine check",
    "SIMD error",
    "virtualisation",
    "control protection",
];

/// A trap inside the kernel, on the stack it interrupted. Called by entry code with interrupts off.
extern "C" fn kernel_trap(frame: &mut TrapFrame) {
    let vector = frame.vector();
    if vector >= 32 {
        crate::irq::dispatch(vector);
    } else if vector != 14 || !page_fault(frame) {
        fatal(frame);
    }
}

/// A page fault inside the kernel. True when execution can go on.
fn page_fault(frame: &mut TrapFrame) -> bool {
    let addr = read_cr2();
    let Some(fixup) = crate::user::fixup_for(frame.0.rip) else { return false };
    if addr >= USER_END + crate::addr::PAGE_SIZE as u64 {
        return false;
    }
    if frame.0.rflags & IF != 0 && percpu::local().nofault.get() == 0 {
        crate::cpu::irq_enable();
        let access = Access::of(frame.0.error_code);
        let ok = crate::hooks::hooks().is_some_and(|h| h.user_fault(VirtAddr(addr), access));
        crate::cpu::irq_disable();
        if ok {
            return true;
        }
    }
    frame.0.rip = fixup;
    true
}

#[cold]
fn fatal(frame: &TrapFrame) -> ! {
    let v = frame.vector();
    let name = NAMES.get(usize::from(v)).copied().unwrap_or("reserved");
    crate::panic::set_origin(frame);
    panic!("exception {v} ({name}) in the kernel\n{frame}");
}

/// NMI, #MC, #DF, #DB on their IST stacks. True when user code's #DB goes on as a user event: the frame has been moved to its context.
extern "C" fn paranoid_trap(frame: &mut TrapFrame) -> u32 {
    match frame.vector() {
        2 => {
            crate::panic::nmi(frame);
            0
        }
        1 if frame.from_user() => {
            // SAFETY: RSP0 is the end of the frame of the context that runs on this CPU; interrupts are off.
            unsafe {
                let end = (percpu::local() as *const _ as *const u8)
                    .add(percpu::off::TABLES + gdt::RSP0)
                    .cast::<u64>()
                    .read();
                let ctx = (end - FRAME_BYTES as u64) as *mut UserContext;
                (*ctx).frame = frame.0;
                (*ctx).slow = 1;
            }
            // The value of eax at the return of `ursa_user_enter`.
            0x101
        }
        // The kernel sets no breakpoints and does not step: it has touched what a program watches, or got what was put off behind a
        // program's `mov ss` (whose trap flag must not go on here).
        1 => {
            crate::debug::take_status();
            frame.0.rflags &= !TF;
            0
        }
        _ => fatal(frame),
    }
}

/// Interrupt descriptor table, shared by all CPUs.
#[repr(C, align(16))]
struct Idt([[u64; 2]; 256]);

static IDT: crate::sync::Once<Idt> = crate::sync::Once::new();

fn build_idt() -> Idt {
    let mut idt = Idt([[0; 2]; 256]);
    for (v, gate) in idt.0.iter_mut().enumerate() {
        // SAFETY: only the address of the stub is taken.
        let stub = unsafe { &raw const ursa_trap_stubs[v] } as u64;
        let ist = match v {
            1 => gdt::ist::DEBUG,
            2 => gdt::ist::NMI,
            8 => gdt::ist::DOUBLE_FAULT,
            18 => gdt::ist::MACHINE_CHECK,
            _ => 0,
        };
        // Programs may execute INT3 and INTO; an INT with any other vector is #GP.
        let dpl: u64 = if v == 3 || v == 4 { 3 } else { 0 };
        gate[0] = stub & 0xffff
            | u64::from(gdt::KERNEL_CS) << 16
            | u64::from(ist) << 32
            | (0x8e | dpl << 5) << 40
            | (stub >> 16 & 0xffff) << 48;
        gate[1] = stub >> 32;
    }
    idt
}

const MSR_EFER: u32 = 0xc000_0080;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_CSTAR: u32 = 0xc000_0083;
const MSR_SFMASK: u32 = 0xc000_0084;
const MSR_PAT: u32 = 0x277;

/// Whether the CPU can keep the kernel from touching user memory by accident.
pub(crate) fn has_smap() -> bool {
    cpuid(7, 0).ebx & 1 << 20 != 0
}

/// Sets this CPU up: tables, control registers, system call entry. Interrupts are off; `percpu` is set up.
pub fn init_cpu() {
    gdt::load();
    let idt = IDT.call_once(build_idt);
    let f7 = cpuid(7, 0);
    let f1 = cpuid(1, 0);
    let mut cr4 = 1 << 9 | 1 << 10; // OSFXSR, OSXMMEXCPT
    let set = [
        (f1.edx & 1 << 7 != 0, 1 << 6),   // MCE
        (f1.edx & 1 << 13 != 0, 1 << 7),  // PGE
        (f7.ecx & 1 << 2 != 0, 1 << 11),  // UMIP
        (f7.ebx & 1 << 7 != 0, 1 << 20),  // SMEP
        (f7.ebx & 1 << 20 != 0, 1 << 21), // SMAP
    ];
    for (has, bit) in set {
        if has {
            cr4 |= bit;
        }
    }
    let pointer = gdt::TablePointer { limit: size_of::<Idt>() as u16 - 1, base: idt as *const Idt as u64 };
    // SAFETY: the table lives for ever and its gates are right; the bits set only add protection, or enable what `fpu` and `mm` use
    // (write protection, no-execute, global pages). PAT entries 0 and 3 keep their meaning; 1 becomes write-combining.
    unsafe {
        asm!("lidt [{}]", in(reg) &pointer, options(readonly, nostack, preserves_flags));
        let mut now: u64;
        asm!("mov {}, cr4", out(reg) now, options(nomem, nostack, preserves_flags));
        // FSGSBASE (16) stays off: entry code relies on it. PCIDE (17) too.
        now = now & !(1 << 16 | 1 << 17) | 1 << 5 | cr4;
        asm!("mov cr4, {}", in(reg) now, options(nostack, preserves_flags));
        let mut cr0: u64;
        asm!("mov {}, cr0", out(reg) cr0, options(nomem, nostack, preserves_flags));
        // WP, NE, MP, AM on; EM, TS off; caches on.
        cr0 = cr0 & !(1 << 2 | 1 << 3 | 1 << 29 | 1 << 30) | 1 << 1 | 1 << 5 | 1 << 16 | 1 << 18;
        asm!("mov cr0, {}", in(reg) cr0, options(nostack, preserves_flags));
        wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1 | 1 << 11); // SCE, NXE
        wrmsr(MSR_STAR, 0x23 << 48 | u64::from(gdt::KERNEL_CS) << 32);
        wrmsr(MSR_LSTAR, ursa_syscall_entry as *const () as u64);
        wrmsr(MSR_CSTAR, 0);
        wrmsr(MSR_SFMASK, 1 << 8 | IF | 1 << 10 | 1 << 14 | 1 << 18 | 3 << 12 | 0x8d5);
        wrmsr(MSR_PAT, 0x0007_0406_0007_0106);
    }
}
