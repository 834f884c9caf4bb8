//! The loop in which a user thread lives: into user mode, out at the next event, handle it, and see to pending work before
//! going back.
//!
//! ```text
//!   run ──▶ syscall │ page fault │ exception │ interrupt ──▶ work? ──▶ run
//!                                                            ├ resched, signals, stops, tracer, rseq
//!                                                            └ the thread is to end: finish and return
//! ```
//! hal looks at `need_resched` with interrupts off just before it enters user mode, and whoever gives a thread work sets that flag for
//! its CPU: so work that arrives between our look and the entry brings us back at once.
//! References: Linux `kernel/entry/common.c`, `arch/x86/kernel/traps.c`.

use core::sync::atomic::Ordering::Relaxed;

use linux_uapi::signal::{
    BUS_ADRALN, FPE_FLTDIV, FPE_FLTINV, FPE_FLTOVF, FPE_FLTRES, FPE_FLTUND, FPE_INTDIV, ILL_ILLOPN, SI_KERNEL, SIGBUS,
    SIGFPE, SIGILL, SIGSEGV, SIGTRAP, SigInfo, TRAP_BRKPT, TRAP_HWBKPT, TRAP_TRACE,
};
use ursa_hal::addr::VirtAddr;
use ursa_hal::debug;
use ursa_hal::task;
use ursa_hal::trap::{Access, UserContext, UserEvent};

use super::Thread;
use crate::sched::{self, TaskExt, Work};
use crate::signal::{force_fault, force_signal};
use crate::{coredump, ptrace, signal, syscall};

/// Runs the calling task as a user thread until it ends. The caller must end the task then.
pub fn user_loop(context: UserContext) {
    context.expose(run);
}

fn run(context: &mut UserContext) {
    let current = task::current();
    let ext = sched::ext_of(&current);
    let Some(thread) = ext.thread() else {
        panic!("a kernel task has no user mode");
    };
    loop {
        // The usual way back from a system call: nothing to do, one load each.
        while ext.has_work() || task::need_resched() {
            before_user_mode(thread, ext, context);
            if thread.exit_status().is_some() {
                coredump::park(thread, context);
                super::exit::finish(thread);
                return;
            }
        }
        ext.set_in_user(true);
        let event = context.run();
        ext.set_in_user(false);
        match event {
            UserEvent::Syscall => {
                if ext.work().intersects(Work::AT_SYSCALL) {
                    watched_syscall(thread, ext, context);
                } else {
                    syscall::dispatch(thread, context);
                }
            }
            UserEvent::PageFault { addr, access, present } => page_fault(thread, addr, access, present),
            UserEvent::Exception { vector, error_code, dr6 } => {
                exception(thread, ext, context, vector, error_code, dr6)
            }
            UserEvent::Interrupt => {}
        }
    }
}

/// A system call that the program itself or a tracer has a say in.
#[cold]
fn watched_syscall(thread: &Thread, ext: &TaskExt, context: &mut UserContext) {
    // As Linux: the program comes first, and its tracer sees nothing of what it takes.
    if ext.work().contains(Work::USER_DISPATCH) && thread.dispatch.takes(thread, context) {
        return;
    }
    let stepping = ext.work().contains(Work::SINGLE_STEP);
    let run = !ext.work().contains(Work::SYSCALL_TRACE) || ptrace::syscall_enter(thread, context);
    if run {
        syscall::dispatch(thread, context);
    }
    ptrace::event_during_syscall(thread, context);
    if ext.work().contains(Work::SYSCALL_TRACE) {
        ptrace::syscall_exit(thread, context);
    } else if stepping && ext.work().contains(Work::SINGLE_STEP) {
        ptrace::step_over_syscall(thread, context);
    }
}

fn before_user_mode(thread: &Thread, ext: &TaskExt, context: &mut UserContext) {
    sched::cond_resched();
    let work = ext.work();
    if work.contains(Work::NOTIFY) {
        ext.take_work(Work::NOTIFY);
        super::rseq::on_return(thread, context);
    }
    if work.intersects(Work::SIGNAL | Work::KILL | Work::RESTORE_MASK) {
        signal::deliver(thread, context);
    }
}

fn page_fault(thread: &Thread, addr: VirtAddr, access: Access, present: bool) {
    // The thread alone writes its counters.
    let faults = &thread.usage.minor_faults;
    faults.store(faults.load(Relaxed) + 1, Relaxed);
    let switches = thread.usage.voluntary_switches.load(Relaxed);
    let handled = thread.vm().handle_fault(addr, access);
    if thread.usage.voluntary_switches.load(Relaxed) != switches {
        super::rseq::slept_in_fault(thread);
    }
    if let Err(fault) = handled {
        // What the CPU told, for the signal frame: present, write, user, instruction fetch.
        let error_code = u64::from(present)
            | u64::from(access == Access::Write) << 1
            | 1 << 2
            | u64::from(access == Access::Exec) << 4;
        const PAGE_FAULT: u64 = 14;
        thread.signals.ptrace.set_fault(PAGE_FAULT, error_code, addr.as_u64());
        force_fault(thread, fault.signo, fault.code, fault.addr.as_u64());
    }
}

fn exception(thread: &Thread, ext: &TaskExt, context: &mut UserContext, vector: u8, error_code: u64, dr6: u64) {
    thread.signals.ptrace.set_fault(u64::from(vector), error_code, 0);
    let rip = context.regs().rip;
    let info = match vector {
        0 => SigInfo::fault(SIGFPE, FPE_INTDIV, rip),
        1 => {
            // Neither: the instruction INT1.
            let code = match dr6 {
                _ if dr6 & debug::STEP != 0 => TRAP_TRACE,
                _ if dr6 & debug::HITS != 0 => TRAP_HWBKPT,
                _ => TRAP_BRKPT,
            };
            ext.take_work(Work::SINGLE_STEP);
            thread.signals.ptrace.debug_trap(dr6, context);
            SigInfo::fault(SIGTRAP, code, rip)
        }
        3 => SigInfo::fault(SIGTRAP, SI_KERNEL, 0),
        6 => SigInfo::fault(SIGILL, ILL_ILLOPN, rip),
        16 | 19 => SigInfo::fault(SIGFPE, floating_point_code(vector), rip),
        17 => SigInfo::fault(SIGBUS, BUS_ADRALN, 0),
        11 | 12 => SigInfo::fault(SIGBUS, SI_KERNEL, 0),
        // Overflow, bounds, #GP and whatever else: as Linux, SIGSEGV from the kernel without an address.
        _ => SigInfo::kernel(SIGSEGV),
    };
    force_signal(thread, info);
}

/// `FPE_*` from the x87 or SSE status of the running thread (Linux's `fpu__exception_code`).
fn floating_point_code(vector: u8) -> i32 {
    const X87: u8 = 16;
    let mut area = [0u8; 512];
    ursa_hal::fpu::save_to(&mut area);
    let word = |offset: usize| u16::from_le_bytes([area[offset], area[offset + 1]]);
    let raised = if vector == X87 {
        let (control, status) = (word(0), word(2));
        status & !control
    } else {
        let mxcsr = word(24);
        !(mxcsr >> 7) & mxcsr
    };
    match raised {
        r if r & 0x01 != 0 => FPE_FLTINV,
        r if r & 0x04 != 0 => FPE_FLTDIV,
        r if r & 0x08 != 0 => FPE_FLTOVF,
        r if r & 0x12 != 0 => FPE_FLTUND,
        r if r & 0x20 != 0 => FPE_FLTRES,
        _ => 0,
    }
}
