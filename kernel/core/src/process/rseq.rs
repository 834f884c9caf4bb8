//! Restartable sequences: [`register`], and [`on_return`], which keeps the CPU number in user memory current and
//! aborts a critical section that was interrupted.
//!
//! Preemption and moves to another CPU are seen when the thread gets a CPU again ([`switched_in`]); the way back to user mode then does
//! the work once ([`on_return`]), whatever came together; signal delivery does it before it saves the registers ([`on_signal`]). A bad
//! area is the program's error: SIGSEGV, as on Linux. References: rseq(2), Linux `kernel/rseq.c`.

use core::sync::atomic::Ordering::*;

use linux_uapi::process::RseqCs;
use linux_uapi::signal::{SIGSEGV, SigInfo};
use ursa_hal::trap::UserContext;

use super::thread::Thread;
use crate::sched::{self, Work};
use crate::signal;
use crate::user::{self, UserAddr, UserPtr};
use crate::{Errno, Result};

/// Bytes of the first version of `struct rseq`.
pub const RSEQ_SIZE: u32 = 32;
/// Bytes that the kernel fills (`AT_RSEQ_FEATURE_SIZE`): up to and with `mm_cid`.
pub const RSEQ_FEATURE_SIZE: u32 = 28;
/// Alignment (`AT_RSEQ_ALIGN`).
pub const RSEQ_ALIGN: u32 = 32;
const FLAG_UNREGISTER: u32 = 1;
const CPU_ID_UNINITIALIZED: u32 = u32::MAX;
/// Offsets in `struct rseq`.
const CPU_ID_START: u64 = 0;
const CPU_ID: u64 = 4;
const RSEQ_CS: u64 = 8;
const NODE_ID: u64 = 20;
const MM_CID: u64 = 24;

/// A registration.
#[derive(Clone, Copy, Debug)]
pub struct Rseq {
    addr: u64,
    len: u32,
    signature: u32,
}

/// The number that no other thread of the address space has while both run: 0 for the only one, then that of the CPU. Linux's is
/// smaller than the number of threads; that costs it an allocator and a look at each switch.
fn concurrency_id(thread: &Thread, cpu: u32) -> u32 {
    if thread.process().with_vm(|vm| vm.has_threads()) { cpu } else { 0 }
}

/// Another thread is about to share the memory of the running one, whose `mm_cid` changes with that.
pub(super) fn memory_is_shared(thread: &Thread) {
    if thread.process().with_vm(|vm| vm.set_has_threads()) {
        interrupted(thread);
    }
}

/// Registers or unregisters the area at `addr` for the thread.
///
/// # Errors
/// As rseq(2) lists them.
pub fn register(thread: &Thread, addr: u64, len: u32, flags: u32, signature: u32) -> Result {
    let mut slot = thread.rseq.lock();
    if flags & FLAG_UNREGISTER != 0 {
        if flags != FLAG_UNREGISTER {
            return Err(Errno::EINVAL);
        }
        let current = slot.filter(|r| r.addr == addr && r.len == len).ok_or(Errno::EINVAL)?;
        if current.signature != signature {
            return Err(Errno::EPERM);
        }
        drop(slot);
        reset_area(&current)?;
        *thread.rseq.lock() = None;
        thread.has_rseq.store(false, Relaxed);
        return Ok(());
    }
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    if let Some(current) = *slot {
        if current.addr != addr || current.len != len {
            return Err(Errno::EINVAL);
        }
        return Err(if current.signature == signature { Errno::EBUSY } else { Errno::EPERM });
    }
    let aligned = addr.is_multiple_of(RSEQ_ALIGN as u64);
    if len < RSEQ_SIZE || !aligned {
        return Err(Errno::EINVAL);
    }
    if addr.checked_add(len as u64).is_none_or(|end| end > ursa_hal::USER_END) {
        return Err(Errno::EFAULT);
    }
    *slot = Some(Rseq { addr, len, signature });
    drop(slot);
    thread.has_rseq.store(true, Relaxed);
    interrupted(thread);
    Ok(())
}

fn reset_area(rseq: &Rseq) -> Result {
    let put = |offset, value| UserPtr::<u32>::new(rseq.addr + offset).write(&value);
    put(CPU_ID_START, 0)?;
    put(CPU_ID, CPU_ID_UNINITIALIZED)?;
    put(NODE_ID, 0)?;
    put(MM_CID, 0)
}

/// A forked process has its parent's registration, in its copy of the memory.
pub(super) fn inherit(parent: &Thread, child: &Thread) {
    let registration = *parent.rseq.lock();
    *child.rseq.lock() = registration;
    child.has_rseq.store(registration.is_some(), Relaxed);
}

/// Drops the registration (exit, exec).
pub(super) fn forget(thread: &Thread) {
    *thread.rseq.lock() = None;
    thread.has_rseq.store(false, Relaxed);
}

/// Has the area brought up to date, and a critical section ended, before the running thread is back in user mode.
#[inline]
fn interrupted(thread: &Thread) {
    if thread.has_rseq.load(Relaxed) {
        sched::with_current(|ext| ext.add_work(Work::NOTIFY));
    }
}

/// Notes that the thread has got a CPU: another one than before must show in its area, and a critical section that was
/// `preempted` is over. One that slept did so in a system call, where there is no critical section, or in a fault
/// ([`slept_in_fault`]).
#[inline]
pub fn switched_in(thread: &Thread, preempted: bool) {
    if thread.has_rseq.load(Relaxed)
        && (preempted || thread.rseq_cpu.load(Relaxed) != ursa_hal::percpu::cpu_id() as u32)
    {
        sched::with_current(|ext| ext.add_work(Work::NOTIFY));
    }
}

/// Notes that others may have run while the running thread handled a fault of its program.
#[inline]
pub fn slept_in_fault(thread: &Thread) {
    interrupted(thread);
}

/// Brings the area up to date before the thread runs in user mode. An area that cannot be used ends in SIGSEGV.
#[inline]
pub fn on_return(thread: &Thread, context: &mut UserContext) {
    if thread.has_rseq.load(Relaxed) && update(thread, context).is_err() {
        signal::force_signal(thread, SigInfo::kernel(SIGSEGV));
    }
}

/// A handler is about to run: a critical section that it interrupts is over, and the frame must show that.
#[inline]
pub fn on_signal(thread: &Thread, context: &mut UserContext) {
    on_return(thread, context);
}

#[cold]
fn update(thread: &Thread, regs: &mut UserContext) -> Result {
    let Some(rseq) = *thread.rseq.lock() else { return Ok(()) };
    abort_critical_section(&rseq, regs)?;
    // A copy that faults may sleep and move us: the number written must be of the CPU that we return on, and a move asks
    // for another update.
    let cpu = ursa_hal::percpu::cpu_id() as u32;
    thread.rseq_cpu.store(cpu, Relaxed);
    let put = |offset, value| UserPtr::<u32>::new(rseq.addr + offset).write(&value);
    put(CPU_ID_START, cpu)?;
    put(CPU_ID, cpu)?;
    put(NODE_ID, 0)?;
    put(MM_CID, concurrency_id(thread, cpu))
}

fn abort_critical_section(rseq: &Rseq, regs: &mut UserContext) -> Result {
    let pointer = UserPtr::<u64>::new(rseq.addr + RSEQ_CS);
    let section = pointer.read()?;
    if section == 0 {
        return Ok(());
    }
    if section >= ursa_hal::USER_END {
        return Err(Errno::EINVAL);
    }
    let cs = UserPtr::<RseqCs>::new(section).read()?;
    let end = cs.start_ip.checked_add(cs.post_commit_offset).ok_or(Errno::EINVAL)?;
    if cs.start_ip >= ursa_hal::USER_END
        || end >= ursa_hal::USER_END
        || cs.abort_ip >= ursa_hal::USER_END
        || cs.version != 0
        || cs.flags != 0
        || cs.abort_ip.wrapping_sub(cs.start_ip) < cs.post_commit_offset
        || cs.abort_ip < 4
    {
        return Err(Errno::EINVAL);
    }
    // The four bytes before the handler are the signature: an attacker's pointer must not make any code a handler.
    let mut signature = [0; 4];
    user::read_bytes(UserAddr::new(cs.abort_ip - 4), &mut signature)?;
    if u32::from_le_bytes(signature) != rseq.signature {
        return Err(Errno::EINVAL);
    }
    let inside = regs.regs().rip.wrapping_sub(cs.start_ip) < cs.post_commit_offset;
    pointer.write(&0)?;
    if inside {
        regs.regs_mut().rip = cs.abort_ip;
    }
    Ok(())
}
