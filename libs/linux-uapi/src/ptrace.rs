//! Structures that ptrace(2) exchanges: `<linux/ptrace.h>`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `AUDIT_ARCH_X86_64` of `<linux/audit.h>`: which calling convention a system call has.
pub const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// `struct ptrace_peeksiginfo_args`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PeekSigInfoArgs {
    /// The place in the queue of the first signal to copy.
    pub off: u64,
    /// `PTRACE_PEEKSIGINFO_SHARED`.
    pub flags: u32,
    /// How many to copy at most.
    pub nr: i32,
}

/// `struct ptrace_sud_config`: as the arguments of `PR_SET_SYSCALL_USER_DISPATCH`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SudConfig {
    /// `PR_SYS_DISPATCH_*`.
    pub mode: u64,
    /// Address of the byte that switches, or 0.
    pub selector: u64,
    /// Where calls go to the kernel all the same.
    pub offset: u64,
    /// Bytes from there.
    pub len: u64,
}

#[cfg(test)]
mod tests {
    use core::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn layouts_are_those_of_linux() {
        assert_eq!(size_of::<PeekSigInfoArgs>(), 16);
        assert_eq!(offset_of!(PeekSigInfoArgs, nr), 12);
        assert_eq!(size_of::<SudConfig>(), 32);
    }
}
