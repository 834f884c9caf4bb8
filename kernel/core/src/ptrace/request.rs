//! ptrace(2) itself: the requests of a tracer.

use alloc::sync::Arc;
use alloc::vec;

use linux_uapi::ptrace::{AUDIT_ARCH_X86_64, PeekSigInfoArgs, SudConfig};
use linux_uapi::raw::ptrace as uapi;
use linux_uapi::signal::{NSIG, SI_USER, SIGINFO_SIZE, SIGKILL, SIGSTOP, SigInfo, SigSet};
use linux_uapi::zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};
use ursa_hal::task::{NotStopped, Task};
use ursa_hal::trap::Regs;

use super::regs::UserRegs;
use super::{Kind, Mode, Resume, Stop, attach, check_access, detach};
use crate::process::{Cap, Thread, seen_thread};
use crate::sched::{self, SleepState, Work};
use crate::signal;
use crate::syscall::Cx;
use crate::user::{self, UserAddr, UserPtr};
use crate::{Errno, Result};

crate::syscalls! { ROWS;
    101 ptrace => sys_ptrace(0, 1, 2, 3);
}

/// Numbers that `linux/ptrace.h` and `asm/ptrace-abi.h` give without a place in the bindings.
const PTRACE_GETREGS: u32 = 12;
const PTRACE_SETREGS: u32 = 13;
const PTRACE_GETFPREGS: u32 = 14;
const PTRACE_SETFPREGS: u32 = 15;
const PTRACE_ARCH_PRCTL: u32 = 30;
const NT_PRSTATUS: u64 = 1;
const NT_PRFPREG: u64 = 2;
const NT_X86_XSTATE: u64 = 0x202;
/// Bytes of the FXSAVE image.
const FP_SIZE: usize = 512;

/// Traces, looks into and steers a thread.
pub fn sys_ptrace(cx: &mut Cx<'_>, request: u32, pid: i32, addr: u64, data: u64) -> Result<i64> {
    match request {
        uapi::PTRACE_TRACEME => return trace_me(cx),
        uapi::PTRACE_ATTACH => return attach_to(cx, pid, None),
        uapi::PTRACE_SEIZE => {
            if addr != 0 {
                return Err(Errno::EIO);
            }
            return attach_to(cx, pid, Some(decode_options(data)?));
        }
        _ => {}
    }
    let thread = seen_thread(pid).ok_or(Errno::ESRCH)?;
    let mine = thread.signals.ptrace.tracer().is_some_and(|tracer| Arc::ptr_eq(&tracer, cx.thread.process()));
    if !mine {
        return Err(Errno::ESRCH);
    }
    match request {
        uapi::PTRACE_KILL => {
            signal::send_to_thread(&thread, SigInfo::kernel(SIGKILL));
            return Ok(0);
        }
        uapi::PTRACE_INTERRUPT => return interrupt(&thread),
        _ => {}
    }
    stopped_request(cx, &thread, request, addr, data)
}

fn decode_options(raw: u64) -> Result<u32> {
    let options = u32::try_from(raw).map_err(|_| Errno::EINVAL)?;
    if options & !uapi::PTRACE_O_MASK != 0 { Err(Errno::EINVAL) } else { Ok(options) }
}

fn trace_me(cx: &Cx<'_>) -> Result<i64> {
    let parent = cx.thread.process().parent().ok_or(Errno::EPERM)?;
    match attach(&cx.thread.arc(), &parent, 0, false, false) {
        // The parent has just ended: there is no tracer then, and on Linux no error.
        Ok(()) | Err(Errno::ESRCH) => Ok(0),
        Err(errno) => Err(errno),
    }
}

fn attach_to(cx: &Cx<'_>, pid: i32, seize: Option<u32>) -> Result<i64> {
    let thread = seen_thread(pid).filter(|thread| !thread.is_dead()).ok_or(Errno::ESRCH)?;
    if Arc::ptr_eq(thread.process(), cx.thread.process()) {
        return Err(Errno::EPERM);
    }
    check_access(cx.thread, &thread)?;
    let privileged = cx.thread.with_cred(|cred| cred.has_cap(Cap::SysPtrace));
    attach(&thread, cx.thread.process(), seize.unwrap_or(0), seize.is_some(), privileged)?;
    if seize.is_none() {
        signal::send_to_thread(&thread, SigInfo::user(SIGSTOP, SI_USER, cx.thread.process().seen_pid(), 0));
    }
    // A thread that is stopped already stops anew, for its tracer.
    if let Some(task) = thread.task() {
        sched::ext_of(&task).add_work(Work::SIGNAL);
        sched::kick(&task, SleepState::STOPPED);
    }
    Ok(0)
}

fn interrupt(thread: &Arc<Thread>) -> Result<i64> {
    {
        let mut state = thread.signals.ptrace.state.lock();
        if !state.seized {
            return Err(Errno::EIO);
        }
        // One that stands still for its tracer already is not interrupted again.
        if state.stop.is_some() {
            return Ok(0);
        }
        state.interrupt = true;
    }
    if let Some(task) = thread.task() {
        sched::ext_of(&task).add_work(Work::SIGNAL);
        sched::kick(&task, SleepState::INTERRUPTIBLE | SleepState::STOPPED);
    }
    Ok(0)
}

/// Runs `f` on the stop of a tracee that stands still.
fn with_stop<R>(thread: &Thread, f: impl FnOnce(&mut Stop) -> R) -> Result<R> {
    thread.signals.ptrace.state.lock().stop.as_mut().map(f).ok_or(Errno::ESRCH)
}

fn stopped_request(cx: &mut Cx<'_>, thread: &Arc<Thread>, request: u32, addr: u64, data: u64) -> Result<i64> {
    let kind = with_stop(thread, |stop| stop.kind)?;
    let task = thread.task().ok_or(Errno::ESRCH)?;
    // It has announced its stop; let it get off its CPU.
    while task.is_on_cpu() {
        sched::yield_now();
    }
    match request {
        uapi::PTRACE_PEEKTEXT | uapi::PTRACE_PEEKDATA => {
            let mut word = [0; 8];
            let read = thread.vm().read_remote(UserAddr::new(addr), &mut word).map_err(|_| Errno::EIO)?;
            if read < word.len() {
                return Err(Errno::EIO);
            }
            UserPtr::new(data).write(&word)?;
        }
        uapi::PTRACE_POKETEXT | uapi::PTRACE_POKEDATA => {
            let written = thread.vm().write_remote(UserAddr::new(addr), &data.to_ne_bytes()).map_err(|_| Errno::EIO)?;
            if written < size_of::<u64>() {
                return Err(Errno::EIO);
            }
        }
        uapi::PTRACE_PEEKUSR => UserPtr::new(data).write(&peek_user(thread, &task, addr)?)?,
        uapi::PTRACE_POKEUSR => poke_user(thread, &task, addr, data)?,
        PTRACE_GETREGS => UserPtr::new(data).write(&registers(thread, &task)?)?,
        PTRACE_SETREGS => set_registers(thread, &task, &UserPtr::<UserRegs>::new(data).read()?)?,
        PTRACE_GETFPREGS => {
            let state = vector_state(&task)?;
            user::write_bytes(UserAddr::new(data), &state[..FP_SIZE])?;
        }
        PTRACE_SETFPREGS => {
            let mut state = vector_state(&task)?;
            user::read_bytes(UserAddr::new(data), &mut state[..FP_SIZE])?;
            set_vector_state(&task, &state)?;
        }
        uapi::PTRACE_GETREGSET => get_register_set(thread, &task, addr, UserPtr::new(data))?,
        uapi::PTRACE_SETREGSET => set_register_set(thread, &task, addr, UserPtr::new(data))?,
        uapi::PTRACE_SETOPTIONS => {
            let options = decode_options(data)?;
            thread.signals.ptrace.state.lock().options = options;
        }
        uapi::PTRACE_GETEVENTMSG => {
            let message = thread.signals.ptrace.state.lock().event_message;
            UserPtr::new(data).write(&message)?;
        }
        uapi::PTRACE_GETSIGINFO => {
            let seized = thread.signals.ptrace.state.lock().seized;
            if kind == Kind::Group && !seized {
                return Err(Errno::EINVAL);
            }
            let info = with_stop(thread, |stop| stop.info)?;
            user::write_bytes(UserAddr::new(data), &info.to_user())?;
        }
        uapi::PTRACE_SETSIGINFO => {
            let mut bytes = [0; SIGINFO_SIZE];
            user::read_bytes(UserAddr::new(data), &mut bytes)?;
            let (info, _) = SigInfo::read_from_prefix(&bytes).map_err(|_| Errno::EINVAL)?;
            with_stop(thread, |stop| stop.info = info)?;
        }
        uapi::PTRACE_PEEKSIGINFO => return peek_siginfo(thread, UserPtr::new(addr), data),
        uapi::PTRACE_GETSIGMASK => {
            check_mask_size(addr)?;
            UserPtr::new(data).write(&thread.signals.blocked())?;
        }
        uapi::PTRACE_SETSIGMASK => {
            check_mask_size(addr)?;
            let mask: SigSet = UserPtr::new(data).read()?;
            signal::set_blocked_of_tracee(thread, mask);
        }
        uapi::PTRACE_GET_SYSCALL_INFO => return syscall_info(thread, kind, addr, data),
        uapi::PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG => {
            check_sud_size(addr)?;
            UserPtr::new(data).write(&thread.dispatch.config(&task))?;
        }
        uapi::PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG => {
            check_sud_size(addr)?;
            thread.dispatch.set(&task, &UserPtr::<SudConfig>::new(data).read()?)?;
        }
        uapi::PTRACE_CONT => resume(thread, &task, Mode::Continue, data)?,
        uapi::PTRACE_SYSCALL => resume(thread, &task, Mode::ToSyscall, data)?,
        uapi::PTRACE_SINGLESTEP => resume(thread, &task, Mode::Step, data)?,
        uapi::PTRACE_LISTEN => {
            let seized = thread.signals.ptrace.state.lock().seized;
            if !seized || kind != Kind::Group {
                return Err(Errno::EIO);
            }
            resume(thread, &task, Mode::Listen, 0)?;
        }
        uapi::PTRACE_DETACH => {
            let signal = decode_signal(data)?;
            detach(thread, signal);
        }
        PTRACE_ARCH_PRCTL => arch_prctl(&task, addr, data)?,
        _ => {
            let _ = cx;
            return Err(Errno::EIO);
        }
    }
    Ok(0)
}

fn check_mask_size(size: u64) -> Result {
    if size == size_of::<SigSet>() as u64 { Ok(()) } else { Err(Errno::EINVAL) }
}

fn check_sud_size(size: u64) -> Result {
    if size == size_of::<SudConfig>() as u64 { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Copies signals of a queue, from a place on, without taking them. Returns how many.
fn peek_siginfo(thread: &Thread, args: UserPtr<PeekSigInfoArgs>, data: u64) -> Result<i64> {
    let PeekSigInfoArgs { off, flags, nr } = args.read()?;
    if flags & !uapi::PTRACE_PEEKSIGINFO_SHARED != 0 || nr < 0 {
        return Err(Errno::EINVAL);
    }
    let shared = flags & uapi::PTRACE_PEEKSIGINFO_SHARED != 0;
    let mut copied: i64 = 0;
    while copied < i64::from(nr) {
        let Some(index) = off.checked_add(copied as u64).and_then(|n| usize::try_from(n).ok()) else { break };
        let info = if shared { thread.process().signals.peek(index) } else { thread.signals.peek(index) };
        let Some(info) = info else { break };
        let to = data.wrapping_add(copied as u64 * SIGINFO_SIZE as u64);
        match user::write_bytes(UserAddr::new(to), &info.to_user()) {
            Ok(()) => copied += 1,
            Err(_) if copied > 0 => break,
            Err(error) => return Err(error),
        }
        if sched::signal_pending() {
            break;
        }
        sched::cond_resched();
    }
    Ok(copied)
}

fn decode_signal(raw: u64) -> Result<u32> {
    u32::try_from(raw).ok().filter(|&signo| signo <= NSIG as u32).ok_or(Errno::EIO)
}

fn resume(thread: &Thread, task: &Arc<Task>, mode: Mode, signal: u64) -> Result {
    let signal = decode_signal(signal)?;
    thread.signals.ptrace.state.lock().resume = Some(Resume { mode, signal });
    sched::wake(task, SleepState::TRACED);
    Ok(())
}

fn registers(thread: &Thread, task: &Task) -> Result<UserRegs> {
    with_stop(thread, |stop| UserRegs::read(&stop.regs, task))
}

fn set_registers(thread: &Thread, task: &Task, new: &UserRegs) -> Result {
    with_stop(thread, |stop| {
        let mut regs: Regs = stop.regs;
        new.write(&mut regs, task).map(|()| stop.regs = regs)
    })?
}

/// Offset of the debug registers (`u_debugreg`) in `struct user`, and its size.
const DEBUG_REGISTERS: core::ops::Range<u64> = 848..912;
const USER_SIZE: u64 = 912;

fn user_word(addr: u64) -> Result<usize> {
    if addr.is_multiple_of(8) && addr < USER_SIZE { Ok(addr as usize / 8) } else { Err(Errno::EIO) }
}

/// The number of the debug register at this offset of `struct user`.
fn debug_register(addr: u64) -> Option<usize> {
    DEBUG_REGISTERS.contains(&addr).then(|| (addr - DEBUG_REGISTERS.start) as usize / 8)
}

fn peek_user(thread: &Thread, task: &Task, addr: u64) -> Result<u64> {
    let index = user_word(addr)?;
    if let Some(register) = debug_register(addr) {
        return Ok(thread.signals.ptrace.breakpoints.lock().get(register));
    }
    let all = registers(thread, task)?;
    let words = <[u64; 27]>::read_from_bytes(all.as_bytes()).map_err(|_| Errno::EIO)?;
    // The rest of the structure reads as zero.
    Ok(words.get(index).copied().unwrap_or(0))
}

fn poke_user(thread: &Thread, task: &Task, addr: u64, data: u64) -> Result {
    let index = user_word(addr)?;
    if let Some(register) = debug_register(addr) {
        return thread.signals.ptrace.breakpoints.lock().set(register, data, task);
    }
    let mut all = registers(thread, task)?;
    let bytes = all.as_mut_bytes();
    let at = bytes.get_mut(index * 8..index * 8 + 8).ok_or(Errno::EIO)?;
    at.copy_from_slice(&data.to_ne_bytes());
    set_registers(thread, task, &all)
}

fn arch_prctl(task: &Task, addr: u64, code: u64) -> Result {
    const ARCH_SET_GS: u64 = 0x1001;
    const ARCH_SET_FS: u64 = 0x1002;
    const ARCH_GET_FS: u64 = 0x1003;
    const ARCH_GET_GS: u64 = 0x1004;
    match code {
        ARCH_GET_FS => UserPtr::new(addr).write(&task.fs_base()),
        ARCH_GET_GS => UserPtr::new(addr).write(&task.gs_base()),
        ARCH_SET_FS if task.set_fs_base(addr) => Ok(()),
        ARCH_SET_GS if task.set_gs_base(addr) => Ok(()),
        ARCH_SET_FS | ARCH_SET_GS => Err(Errno::EPERM),
        _ => Err(Errno::EINVAL),
    }
}

fn vector_state(task: &Task) -> Result<vec::Vec<u8>> {
    let mut state = vec![0; ursa_hal::fpu::size()];
    task.fpu_read(&mut state).map_err(|NotStopped| Errno::ESRCH)?;
    Ok(state)
}

fn set_vector_state(task: &Task, state: &[u8]) -> Result {
    task.fpu_write(state).map_err(|NotStopped| Errno::ESRCH)?.map_err(|_| Errno::EINVAL)
}

/// `struct iovec`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct IoVec {
    base: u64,
    len: u64,
}

fn get_register_set(thread: &Thread, task: &Task, set: u64, iov: UserPtr<IoVec>) -> Result {
    let IoVec { base, len } = iov.read()?;
    let bytes = match set {
        NT_PRSTATUS => registers(thread, task)?.as_bytes().to_vec(),
        NT_PRFPREG => {
            let mut state = vector_state(task)?;
            state.truncate(FP_SIZE);
            state
        }
        NT_X86_XSTATE => {
            let mut state = vector_state(task)?;
            // Debuggers read the enabled components here (`USER_XSTATE_XCR0_WORD`).
            const XCR0_OFFSET: usize = 464;
            state[XCR0_OFFSET..XCR0_OFFSET + 8].copy_from_slice(&ursa_hal::fpu::components().to_ne_bytes());
            state
        }
        _ => return Err(Errno::EINVAL),
    };
    let copied = bytes.len().min(usize::try_from(len).unwrap_or(usize::MAX));
    user::write_bytes(UserAddr::new(base), &bytes[..copied])?;
    iov.write(&IoVec { base, len: copied as u64 })
}

fn set_register_set(thread: &Thread, task: &Task, set: u64, iov: UserPtr<IoVec>) -> Result {
    let IoVec { base, len } = iov.read()?;
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    match set {
        NT_PRSTATUS => {
            let mut all = registers(thread, task)?;
            let len = len.min(size_of::<UserRegs>());
            if !len.is_multiple_of(8) {
                return Err(Errno::EINVAL);
            }
            user::read_bytes(UserAddr::new(base), &mut all.as_mut_bytes()[..len])?;
            set_registers(thread, task, &all)
        }
        NT_PRFPREG | NT_X86_XSTATE => {
            let mut state = vector_state(task)?;
            let whole = if set == NT_PRFPREG { FP_SIZE } else { state.len() };
            if set == NT_X86_XSTATE && len != whole {
                return Err(Errno::EINVAL);
            }
            let len = len.min(whole);
            user::read_bytes(UserAddr::new(base), &mut state[..len])?;
            if set == NT_X86_XSTATE {
                // The software bytes are the debugger's, not the CPU's.
                state[464..512].zero();
            }
            set_vector_state(task, &state)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// `struct ptrace_syscall_info`, as long as its longest form.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SyscallInfo {
    op: u8,
    pad: [u8; 3],
    arch: u32,
    instruction_pointer: u64,
    stack_pointer: u64,
    data: [u64; 7],
}

fn syscall_info(thread: &Thread, kind: Kind, size: u64, data: u64) -> Result<i64> {
    const HEADER: usize = 24;
    let regs = with_stop(thread, |stop| stop.regs)?;
    let mut info = SyscallInfo::new_zeroed();
    info.arch = AUDIT_ARCH_X86_64;
    info.instruction_pointer = regs.rip;
    info.stack_pointer = regs.rsp;
    let actual = match kind {
        Kind::SyscallEntry => {
            info.op = uapi::PTRACE_SYSCALL_INFO_ENTRY as u8;
            info.data = [regs.orig_rax, regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
            HEADER + 56
        }
        Kind::SyscallExit => {
            info.op = uapi::PTRACE_SYSCALL_INFO_EXIT as u8;
            const MAX_ERRNO: i64 = 4095;
            let failed = (-MAX_ERRNO..0).contains(&(regs.rax as i64));
            info.data[0] = regs.rax;
            info.data[1] = u64::from(failed);
            HEADER + 9
        }
        _ => HEADER,
    };
    let copied = actual.min(usize::try_from(size).unwrap_or(usize::MAX));
    user::write_bytes(UserAddr::new(data), &info.as_bytes()[..copied])?;
    Ok(actual as i64)
}
