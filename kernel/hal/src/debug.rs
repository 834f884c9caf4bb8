//! Debug registers: the hardware breakpoints and watchpoints of programs.
//!
//! DR0 to DR3 hold addresses, DR7 says which of them count and for what; DR6 tells which one was hit. They belong to tasks: the registers
//! of a CPU hold those of the last program that ran there, and are loaded with its vector registers ([`load`]), so that a switch between
//! tasks without breakpoints costs two loads. Only addresses of user space are taken. The kernel may still hit one when it touches a
//! program's memory for it: that is passed over, as on Linux.
//!
//! References: Intel SDM vol. 3B 18.2; Linux `arch/x86/kernel/hw_breakpoint.c`.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::addr::USER_END;
use crate::percpu::local;
use crate::sync::IrqsOff;
use crate::task::Task;

/// Number of addresses.
pub const SLOTS: usize = 4;
/// DR6: a single step.
pub const STEP: u64 = 1 << 14;
/// DR6: which addresses were hit.
pub const HITS: u64 = 0xf;
/// DR6 when nothing has happened: what is always one.
pub const STATUS_CLEAR: u64 = 0xffff_0ff0;

/// DR7: what a program may have there: enable bits, exactness bits, kinds and lengths.
const CONTROL: u64 = 0xffff_03ff;
/// DR7: always one.
const CONTROL_FIXED: u64 = 1 << 10;

/// The debug registers of a task while they are not a CPU's.
#[derive(Default)]
pub(crate) struct Registers {
    addresses: [AtomicU64; SLOTS],
    control: AtomicU64,
}

/// Whether the kernel may load these values: user addresses, and no breakpoints on ports.
fn acceptable(addresses: &[u64; SLOTS], control: u64) -> bool {
    let on_port = |slot: usize| control >> (16 + 4 * slot) & 3 == 2;
    control & !CONTROL == 0 && addresses.iter().all(|&address| address < USER_END) && !(0..SLOTS).any(on_port)
}

impl Task {
    /// Gives the task breakpoints: `addresses` for DR0 to DR3, `control` for DR7 without the bits that are fixed. They count at once for the
    /// current task, for a stopped one from when it next runs. False, and nothing done, for a kernel address and for what DR7 may not have.
    pub fn set_breakpoints(&self, addresses: [u64; SLOTS], control: u64) -> bool {
        if !acceptable(&addresses, control) {
            return false;
        }
        let _off = IrqsOff::new();
        for (to, address) in self.debug.addresses.iter().zip(addresses) {
            to.store(address, Relaxed);
        }
        self.debug.control.store(control, Relaxed);
        self.registers_changed();
        if self.is_user() && self.is_current() {
            load(self);
        }
        true
    }
}

/// Loads the breakpoints of `me`, the current task. Interrupts are off.
#[inline(always)]
pub(crate) fn load(me: &Task) {
    if me.debug.control.load(Relaxed) != 0 || local().breakpoints_on.get() {
        exchange(&me.debug);
    }
}

#[cold]
fn exchange(new: &Registers) {
    let control = new.control.load(Relaxed);
    let [a, b, c, d] = [0, 1, 2, 3].map(|slot: usize| new.addresses[slot].load(Relaxed));
    local().breakpoints_on.set(control != 0);
    // SAFETY: user addresses and a checked DR7: all they do is raise #DB, which `trap` takes from programs and passes over in the kernel.
    unsafe {
        asm!("mov dr7, {}", in(reg) CONTROL_FIXED, options(nomem, nostack, preserves_flags));
        if control != 0 {
            asm!(
                "mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", "mov dr7, {}",
                in(reg) a, in(reg) b, in(reg) c, in(reg) d, in(reg) control | CONTROL_FIXED,
                options(nomem, nostack, preserves_flags),
            );
        }
    }
}

/// Reads and clears DR6. Interrupts are off, and nothing has happened since the #DB that asks.
pub(crate) fn take_status() -> u64 {
    let status: u64;
    // SAFETY: DR6 holds status bits only.
    unsafe {
        asm!("mov {0}, dr6", "mov dr6, {1}", out(reg) status, in(reg) STATUS_CLEAR, options(nomem, nostack, preserves_flags));
    }
    status
}
