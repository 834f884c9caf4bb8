//! System calls that a program takes for itself: `PR_SET_SYSCALL_USER_DISPATCH` of prctl(2).
//!
//! A thread names a range of its code whose calls go to the kernel, and a byte that says what is done with all others: they go
//! to the kernel, too, or become a `SIGSYS` whose handler does them (Wine does so with Windows's). That the thread has such a
//! range is one of the flags that every system call looks at in any case ([`Work::AT_SYSCALL`]). Neither a child nor a new
//! program inherits it. Reference: Linux `Documentation/admin-guide/syscall-user-dispatch.rst`.

use ursa_hal::sync::SpinLock;
use ursa_hal::task::Task;
use ursa_hal::trap::UserContext;

use linux_uapi::ptrace::{AUDIT_ARCH_X86_64, SudConfig};
use linux_uapi::signal::{SIGSEGV, SIGSYS, SYS_USER_DISPATCH, SigInfo};

use super::Thread;
use crate::sched::{self, Work};
use crate::signal;
use crate::user::{UserAddr, UserPtr};
use crate::{Errno, Result};

const PR_SYS_DISPATCH_OFF: u64 = 0;
const PR_SYS_DISPATCH_ON: u64 = 1;
const FILTER_ALLOW: u8 = 0;
const FILTER_BLOCK: u8 = 1;

/// The range and the byte of a thread; its mode is [`Work::USER_DISPATCH`].
#[derive(Default)]
pub struct UserDispatch(SpinLock<Range>);

#[derive(Clone, Copy, Default)]
struct Range {
    offset: u64,
    len: u64,
    selector: u64,
}

impl UserDispatch {
    /// Sets it, for the running thread or a stopped tracee, whose task is `task`.
    ///
    /// # Errors
    /// `EINVAL` for an unknown mode, arguments with "off", or a range that is empty or wraps; `EFAULT` for a byte that no program
    /// has.
    pub fn set(&self, task: &Task, config: &SudConfig) -> Result {
        let &SudConfig { mode, selector, offset, len } = config;
        match mode {
            PR_SYS_DISPATCH_OFF if offset != 0 || len != 0 || selector != 0 => return Err(Errno::EINVAL),
            PR_SYS_DISPATCH_ON if offset != 0 && offset.wrapping_add(len) <= offset => return Err(Errno::EINVAL),
            PR_SYS_DISPATCH_ON if selector != 0 && !UserAddr::new(selector).is_user_range(1) => {
                return Err(Errno::EFAULT);
            }
            PR_SYS_DISPATCH_OFF | PR_SYS_DISPATCH_ON => {}
            _ => return Err(Errno::EINVAL),
        }
        *self.0.lock() = Range { offset, len, selector };
        let ext = sched::ext_of(task);
        if mode == PR_SYS_DISPATCH_ON {
            ext.add_work(Work::USER_DISPATCH);
        } else {
            ext.take_work(Work::USER_DISPATCH);
        }
        Ok(())
    }

    /// What is set, of the thread whose task is `task`.
    pub fn config(&self, task: &Task) -> SudConfig {
        let Range { offset, len, selector } = *self.0.lock();
        let on = sched::ext_of(task).work().contains(Work::USER_DISPATCH);
        SudConfig { mode: if on { PR_SYS_DISPATCH_ON } else { PR_SYS_DISPATCH_OFF }, selector, offset, len }
    }

    /// The running thread executes a program.
    pub fn end(&self) {
        *self.0.lock() = Range::default();
        sched::with_current(|ext| ext.take_work(Work::USER_DISPATCH));
    }

    /// Whether the system call that the running thread is about to make is the program's: then `SIGSYS` is on its way, or the end.
    pub(super) fn takes(&self, thread: &Thread, context: &mut UserContext) -> bool {
        let Range { offset, len, selector } = *self.0.lock();
        let rip = context.regs().rip;
        if rip.wrapping_sub(offset) < len {
            return false;
        }
        if selector != 0 {
            match UserPtr::<u8>::new(selector).read() {
                Ok(FILTER_ALLOW) => return false,
                Ok(FILTER_BLOCK) => {}
                // Neither can be caught, nor kept away by a tracer.
                Ok(_) => {
                    signal::die(thread, &SigInfo::kernel(SIGSYS), context);
                    return true;
                }
                Err(_) => {
                    signal::die(thread, &SigInfo::kernel(SIGSEGV), context);
                    return true;
                }
            }
        }
        // The registers stay as they were at the call, `rax` with its number.
        let number = context.syscall_number() as i32;
        signal::force_signal(thread, SigInfo::syscall(SYS_USER_DISPATCH, rip, number, AUDIT_ARCH_X86_64));
        true
    }
}
