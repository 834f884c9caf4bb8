//! The register structures of `asm/user_64.h`.

use linux_uapi::zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
use ursa_hal::task::Task;
use ursa_hal::trap::Regs;

use crate::{Errno, Result};

/// `struct user_regs_struct`.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UserRegs {
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
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

impl UserRegs {
    /// The registers of a stopped thread.
    pub fn read(regs: &Regs, task: &Task) -> UserRegs {
        UserRegs {
            r15: regs.r15,
            r14: regs.r14,
            r13: regs.r13,
            r12: regs.r12,
            rbp: regs.rbp,
            rbx: regs.rbx,
            r11: regs.r11,
            r10: regs.r10,
            r9: regs.r9,
            r8: regs.r8,
            rax: regs.rax,
            rcx: regs.rcx,
            rdx: regs.rdx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            orig_rax: regs.orig_rax,
            rip: regs.rip,
            cs: regs.cs,
            eflags: regs.rflags,
            rsp: regs.rsp,
            ss: regs.ss,
            fs_base: task.fs_base(),
            gs_base: task.gs_base(),
            ..UserRegs::default()
        }
    }

    /// Puts them into a stopped thread. Segment selectors stay; hal drops flags that a program may not set.
    ///
    /// # Errors
    /// `EIO` for a segment base outside of user space.
    pub fn write(&self, regs: &mut Regs, task: &Task) -> Result {
        if self.fs_base != task.fs_base() && !task.set_fs_base(self.fs_base)
            || self.gs_base != task.gs_base() && !task.set_gs_base(self.gs_base)
        {
            return Err(Errno::EIO);
        }
        (regs.r15, regs.r14, regs.r13, regs.r12) = (self.r15, self.r14, self.r13, self.r12);
        (regs.r11, regs.r10, regs.r9, regs.r8) = (self.r11, self.r10, self.r9, self.r8);
        (regs.rbp, regs.rbx, regs.rax, regs.rcx) = (self.rbp, self.rbx, self.rax, self.rcx);
        (regs.rdx, regs.rsi, regs.rdi, regs.orig_rax) = (self.rdx, self.rsi, self.rdi, self.orig_rax);
        (regs.rip, regs.rflags, regs.rsp) = (self.rip, self.eflags, self.rsp);
        Ok(())
    }
}

const _: () = assert!(size_of::<UserRegs>() == 27 * 8);
