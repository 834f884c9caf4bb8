//! `/proc/PID/syscall`, `wchan`, `stack`: what a thread that sleeps in the kernel is doing there.
//!
//! A task is looked at while it is off its CPU and kept there for the moment; one that runs says so, except for the reader
//! itself. Who may know is as on Linux: who may trace the process, and for the stack only root.
//!
//! References: proc_pid_syscall(5), proc_pid_wchan(5), proc_pid_stack(5), Linux `fs/proc/base.c`, `lib/syscall.c`.

use alloc::sync::Arc;
use core::fmt::Write;

use ursa_hal::{panic::symbols, task::Task};

use super::{Text, pid::Target};
use crate::{
    Errno, Result,
    process::{Cap, Thread, capable, current},
    sched,
};

/// The deepest stack that is shown (`MAX_STACK_TRACE_DEPTH`).
const DEPTH: usize = 64;
/// Where waiting itself is done: not what a thread waits for.
const WAITING: &[&str] = &["ursa_hal::task::", "ursa_hal::sync::", "ursa_core::sched::", "ursa_core::wait::"];

/// The thread's task, unless it runs or is about to: `None` then.
fn sleeping(thread: &Arc<Thread>) -> Option<Arc<Task>> {
    let task = thread.task()?;
    let sleeps = !sched::ext_of(&task).sleep_state().is_empty() && !task.is_on_cpu();
    sleeps.then_some(task)
}

/// The task of a thread that stands still, or of the reader itself.
fn readable(thread: &Arc<Thread>) -> Option<Arc<Task>> {
    if core::ptr::eq(&*current(), &**thread) { thread.task() } else { sleeping(thread) }
}

/// `/proc/PID/syscall`
pub fn syscall(target: &Target, out: &mut Text) -> Result {
    let thread = target.thread()?;
    if thread.is_dead() {
        out.push_str("-1 0x0 0x0\n");
        return Ok(());
    }
    let Some(Ok(Some(regs))) = readable(&thread).map(|task| task.user_regs()) else {
        out.push_str("running\n");
        return Ok(());
    };
    let number = regs.orig_rax as i32;
    write!(out, "{number}")?;
    if number >= 0 {
        for argument in [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] {
            write!(out, " {argument:#x}")?;
        }
    }
    writeln!(out, " {:#x} {:#x}", regs.rsp, regs.rip)?;
    Ok(())
}

/// `/proc/PID/wchan`: the function that waits, `0` for who runs or may not be asked about.
pub fn wchan(target: &Target, out: &mut Text) -> Result {
    let found = target.may_inspect().ok().and_then(|()| {
        let mut addresses = [0; DEPTH];
        let count = sleeping(&target.thread().ok()?)?.backtrace(&mut addresses).ok()?;
        let mut names = addresses[..count].iter().filter_map(|address| symbols::find(address.wrapping_sub(1)));
        names.find(|(name, _)| !WAITING.iter().any(|prefix| name.trim_start_matches('<').starts_with(prefix)))
    });
    out.push_str(found.map_or("0", |(name, _)| name));
    Ok(())
}

/// `/proc/PID/stack`: the functions on the kernel stack.
pub fn stack(target: &Target, out: &mut Text) -> Result {
    if !capable(Cap::SysAdmin) {
        return Err(Errno::EACCES);
    }
    target.may_inspect().map_err(|_| Errno::EPERM)?;
    let thread = target.thread()?;
    let mut addresses = [0; DEPTH];
    let count = readable(&thread).and_then(|task| task.backtrace(&mut addresses).ok()).unwrap_or(0);
    for address in &addresses[..count] {
        // A return address may be the first of the next function: the call lies before it.
        match symbols::find(address.wrapping_sub(1)) {
            Some((name, offset)) => writeln!(out, "[<0>] {name}+{:#x}", offset + 1)?,
            None => out.push_str("[<0>] 0\n"),
        }
    }
    Ok(())
}
