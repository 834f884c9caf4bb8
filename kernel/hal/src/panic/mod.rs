//! Kernel panics: the message, backtraces of all CPUs, and what happens then.
//!
//! The first CPU to panic takes over the log and sends the others an NMI; each prints where it was and halts. Then, by
//! `panic=` on the command line: `exit` ends QEMU with status 3 (isa-debug-exit), `reboot` restarts, `off` turns off; else
//! the machine stays as it is for a debugger. A panic within the panic halts.
//! Backtraces follow frame pointers ([`backtrace`]); names come from the table that the post-link step appends
//! ([`symbols`]), without it addresses are printed.

pub mod backtrace;
pub mod symbols;

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

pub(crate) use symbols::len as ksyms_len;

static PANICKING: AtomicBool = AtomicBool::new(false);
/// Nested panics of the CPU that panicked first.
static DEPTH: AtomicU32 = AtomicU32::new(0);
/// The CPU that reports at this moment, plus one.
static TURN: AtomicUsize = AtomicUsize::new(0);

/// Where the exception that panics happened: rip, rbp, and the CPU plus one.
static ORIGIN: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// For fatal exceptions: the backtrace is to begin at the instruction that trapped, not in the handler.
pub(crate) fn set_origin(frame: &crate::trap::TrapFrame) {
    if !in_progress() {
        let values = [frame.regs().rip, frame.regs().rbp, crate::smp::current_cpu() as u64 + 1];
        ORIGIN.iter().zip(values).for_each(|(o, v)| o.store(v, Ordering::Relaxed));
    }
}

/// Whether a panic is being reported: locks may be held by CPUs that will never run again.
pub(crate) fn in_progress() -> bool {
    PANICKING.load(Ordering::Relaxed)
}

/// Prints the panic and stops the machine.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    crate::cpu::irq_disable();
    if PANICKING.swap(true, Ordering::SeqCst) && DEPTH.fetch_add(1, Ordering::SeqCst) > 0 {
        // Another CPU panicked first and its NMI is on the way, or reporting itself panicked.
        crate::cpu::halt_forever();
    }
    DEPTH.fetch_add(1, Ordering::SeqCst);
    crate::log::bust_lock();
    crate::console::resume();
    crate::log::set_console_level(8);
    let cpu = (!crate::percpu::online().is_empty()).then(crate::smp::current_cpu);
    crate::ktest::report_panic(format_args!("{}", info.message()));
    crate::log!(crate::log::Level::Emerg, "KERNEL PANIC: {}", info.message());
    if let Some(at) = info.location() {
        crate::error!("  at {}:{}:{} on CPU {}", at.file(), at.line(), at.column(), cpu.unwrap_or(0));
    }
    let origin = ORIGIN.each_ref().map(|o| o.load(Ordering::Relaxed));
    if cpu.is_some_and(|c| c as u64 + 1 == origin[2]) {
        backtrace::print(backtrace::Frame { rip: origin[0], rbp: origin[1] });
    } else {
        backtrace::print(backtrace::here());
    }
    if cpu.is_some() {
        stop_and_trace_others();
    }
    crate::ktest::report_end();
    stop()
}

/// The end of a kernel that cannot go on: what `panic=` on the command line says. Says nothing itself.
pub fn stop() -> ! {
    match crate::boot::try_option("panic") {
        Some("exit") => {
            crate::power::qemu_exit(1);
            crate::power::off()
        }
        Some("reboot") => crate::power::reboot(),
        Some("off") => crate::power::off(),
        _ => {
            crate::smp::stop_others();
            crate::cpu::halt_forever()
        }
    }
}

/// Has each other CPU print its backtrace and halt, one after the other.
fn stop_and_trace_others() {
    let me = crate::smp::current_cpu();
    for cpu in crate::smp::running().without(me).iter() {
        TURN.store(cpu + 1, Ordering::SeqCst);
        crate::smp::send_nmi(cpu);
        // Bounded without trusting any clock: the CPU may be dead.
        for _ in 0..20_000_000u32 {
            if TURN.load(Ordering::SeqCst) == 0 {
                break;
            }
            core::hint::spin_loop();
        }
    }
}

/// Called by the NMI handler with what it interrupted. Returns unless the machine is being stopped.
pub(crate) fn nmi(frame: &crate::trap::TrapFrame) {
    let (rip, rbp, user) = (frame.regs().rip, frame.regs().rbp, frame.from_user());
    if crate::smp::stopping() {
        crate::cpu::halt_forever();
    }
    if !PANICKING.load(Ordering::SeqCst) {
        crate::log::try_write(crate::log::Level::Error, format_args!("NMI at {rip:#x}: no source known"));
        return;
    }
    let me = crate::smp::current_cpu();
    if TURN.load(Ordering::SeqCst) == me + 1 {
        crate::error!("CPU {me}:");
        if user {
            crate::error!("  in user mode at {rip:#x}");
        } else {
            backtrace::print(backtrace::Frame { rip, rbp });
        }
        TURN.store(0, Ordering::SeqCst);
    }
    crate::cpu::halt_forever()
}
