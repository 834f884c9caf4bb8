//! Signal structures of `asm/signal.h`, `asm-generic/siginfo.h`, `asm/sigcontext.h` and `asm/ucontext.h`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Number of signals; valid numbers are `1..=NSIG`.
pub const NSIG: usize = 64;
/// First real-time signal of the kernel (glibc keeps 32 and 33 to itself).
pub const SIGRTMIN: u32 = 32;

macro_rules! signals {
    ($($name:ident = $nr:literal),* $(,)?) => {
        $(#[doc = concat!("`", stringify!($name), "`, signal(7).")] pub const $name: u32 = $nr;)*

        /// Returns the symbolic name of a standard signal.
        pub fn signal_name(signo: u32) -> &'static str {
            match signo { $($nr => stringify!($name),)* _ => "SIGRT" }
        }
    };
}

signals! {
    SIGHUP = 1, SIGINT = 2, SIGQUIT = 3, SIGILL = 4, SIGTRAP = 5, SIGABRT = 6, SIGBUS = 7, SIGFPE = 8, SIGKILL = 9,
    SIGUSR1 = 10, SIGSEGV = 11, SIGUSR2 = 12, SIGPIPE = 13, SIGALRM = 14, SIGTERM = 15, SIGSTKFLT = 16, SIGCHLD = 17,
    SIGCONT = 18, SIGSTOP = 19, SIGTSTP = 20, SIGTTIN = 21, SIGTTOU = 22, SIGURG = 23, SIGXCPU = 24, SIGXFSZ = 25,
    SIGVTALRM = 26, SIGPROF = 27, SIGWINCH = 28, SIGIO = 29, SIGPWR = 30, SIGSYS = 31,
}

/// A set of signals as the kernel's 64-bit mask; bit `n - 1` is signal `n`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct SigSet(pub u64);

impl SigSet {
    /// No signal.
    pub const EMPTY: SigSet = SigSet(0);
    /// Every signal.
    pub const ALL: SigSet = SigSet(!0);
    /// `SIGKILL` and `SIGSTOP`, which cannot be blocked, ignored or caught.
    pub const UNBLOCKABLE: SigSet = SigSet::of(&[SIGKILL, SIGSTOP]);
    /// The signals that stop a process by default.
    pub const STOP: SigSet = SigSet::of(&[SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU]);
    /// The signals that a fault of the thread itself raises; they are taken before others.
    pub const SYNCHRONOUS: SigSet = SigSet::of(&[SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGSYS]);
    /// The signals whose default action is to do nothing.
    pub const DEFAULT_IGNORED: SigSet = SigSet::of(&[SIGCONT, SIGCHLD, SIGWINCH, SIGURG]);
    /// The signals whose default action is to end the process and dump core.
    pub const CORE_DUMP: SigSet =
        SigSet::of(&[SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGFPE, SIGSEGV, SIGBUS, SIGSYS, SIGXCPU, SIGXFSZ]);

    /// The set of the listed signals.
    pub const fn of(signals: &[u32]) -> SigSet {
        let mut bits = 0;
        let mut i = 0;
        while i < signals.len() {
            bits |= 1 << (signals[i] - 1);
            i += 1;
        }
        SigSet(bits)
    }

    /// The set of one signal.
    pub const fn single(signo: u32) -> SigSet {
        SigSet(1 << (signo - 1))
    }

    /// Whether the signal is a member.
    pub const fn contains(self, signo: u32) -> bool {
        signo >= 1 && signo <= NSIG as u32 && self.0 >> (signo - 1) & 1 != 0
    }

    /// Adds a signal.
    pub const fn insert(&mut self, signo: u32) {
        self.0 |= 1 << (signo - 1);
    }

    /// Takes a signal out.
    pub const fn remove(&mut self, signo: u32) {
        self.0 &= !(1 << (signo - 1));
    }

    /// Members of either.
    pub const fn union(self, other: SigSet) -> SigSet {
        SigSet(self.0 | other.0)
    }

    /// Members of both.
    pub const fn intersection(self, other: SigSet) -> SigSet {
        SigSet(self.0 & other.0)
    }

    /// Members of `self` that are not in `other`.
    pub const fn difference(self, other: SigSet) -> SigSet {
        SigSet(self.0 & !other.0)
    }

    /// Whether there is no member.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The lowest member.
    pub const fn first(self) -> Option<u32> {
        if self.0 == 0 { None } else { Some(self.0.trailing_zeros() + 1) }
    }

    /// Members from low to high.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        let mut bits = self.0;
        core::iter::from_fn(move || {
            let n = SigSet(bits).first()?;
            bits &= bits - 1;
            Some(n)
        })
    }
}

impl core::fmt::Debug for SigSet {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SigSet({:016x})", self.0)
    }
}

/// `struct sigaction` of the kernel on x86-64 (`sa_restorer` before the mask).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SigAction {
    /// Address of the handler, [`SIG_DFL`] or [`SIG_IGN`].
    pub handler: u64,
    /// `SA_*` flags.
    pub flags: u64,
    /// Where the handler returns to; it calls rt_sigreturn.
    pub restorer: u64,
    /// Signals blocked while the handler runs.
    pub mask: SigSet,
}

/// Default action.
pub const SIG_DFL: u64 = 0;
/// Ignore the signal.
pub const SIG_IGN: u64 = 1;

/// `stack_t` of sigaltstack(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SigAltStack {
    /// Lowest address.
    pub ss_sp: u64,
    /// `SS_*` flags.
    pub ss_flags: i32,
    /// Padding.
    pub pad: u32,
    /// Length in bytes.
    pub ss_size: u64,
}

/// The kernel's view of `siginfo_t`: the 48 bytes that carry data. User memory holds 128 bytes, the rest zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SigInfo {
    /// Signal number.
    pub si_signo: i32,
    /// An errno value, nearly always 0.
    pub si_errno: i32,
    /// `SI_*` or the signal's own code.
    pub si_code: i32,
    /// Padding.
    pub pad: u32,
    /// The union; use the constructors and accessors.
    pub fields: [u64; 4],
}

/// Size of `siginfo_t` in user memory.
pub const SIGINFO_SIZE: usize = 128;

#[expect(missing_docs, reason = "the names are those of siginfo.h")]
mod codes {
    pub const SI_USER: i32 = 0;
    pub const SI_KERNEL: i32 = 0x80;
    pub const SI_QUEUE: i32 = -1;
    pub const SI_TIMER: i32 = -2;
    pub const SI_MESGQ: i32 = -3;
    pub const SI_ASYNCIO: i32 = -4;
    pub const SI_SIGIO: i32 = -5;
    pub const SI_TKILL: i32 = -6;
    pub const ILL_ILLOPN: i32 = 2;
    pub const FPE_INTDIV: i32 = 1;
    pub const FPE_INTOVF: i32 = 2;
    pub const FPE_FLTDIV: i32 = 3;
    pub const FPE_FLTOVF: i32 = 4;
    pub const FPE_FLTUND: i32 = 5;
    pub const FPE_FLTRES: i32 = 6;
    pub const FPE_FLTINV: i32 = 7;
    pub const SEGV_MAPERR: i32 = 1;
    pub const SEGV_ACCERR: i32 = 2;
    pub const SEGV_PKUERR: i32 = 4;
    pub const BUS_ADRALN: i32 = 1;
    pub const BUS_ADRERR: i32 = 2;
    pub const BUS_OBJERR: i32 = 3;
    pub const TRAP_BRKPT: i32 = 1;
    pub const TRAP_TRACE: i32 = 2;
    pub const TRAP_HWBKPT: i32 = 4;
    pub const CLD_EXITED: i32 = 1;
    pub const CLD_KILLED: i32 = 2;
    pub const CLD_DUMPED: i32 = 3;
    pub const CLD_TRAPPED: i32 = 4;
    pub const CLD_STOPPED: i32 = 5;
    pub const CLD_CONTINUED: i32 = 6;
    pub const POLL_IN: i32 = 1;
    pub const POLL_OUT: i32 = 2;
    pub const POLL_MSG: i32 = 3;
    pub const POLL_ERR: i32 = 4;
    pub const POLL_PRI: i32 = 5;
    pub const POLL_HUP: i32 = 6;
    pub const SYS_SECCOMP: i32 = 1;
    pub const SYS_USER_DISPATCH: i32 = 2;
}
pub use codes::*;

impl SigInfo {
    /// A signal without further data.
    pub const fn new(signo: u32, code: i32) -> SigInfo {
        SigInfo { si_signo: signo as i32, si_errno: 0, si_code: code, pad: 0, fields: [0; 4] }
    }

    /// A signal that the kernel itself sends (`SI_KERNEL`).
    pub const fn kernel(signo: u32) -> SigInfo {
        SigInfo::new(signo, SI_KERNEL)
    }

    /// A signal from kill(2) (`SI_USER`) or tgkill(2) (`SI_TKILL`).
    pub const fn user(signo: u32, code: i32, pid: i32, uid: u32) -> SigInfo {
        let mut info = SigInfo::new(signo, code);
        info.fields[0] = pid as u32 as u64 | (uid as u64) << 32;
        info
    }

    /// A fault at an address (`SIGSEGV`, `SIGBUS`, `SIGILL`, `SIGFPE`, `SIGTRAP`).
    pub const fn fault(signo: u32, code: i32, addr: u64) -> SigInfo {
        let mut info = SigInfo::new(signo, code);
        info.fields[0] = addr;
        info
    }

    /// A POSIX timer's expiry (`SI_TIMER`).
    pub const fn timer(signo: u32, timer_id: i32, overrun: i32, value: u64) -> SigInfo {
        let mut info = SigInfo::new(signo, SI_TIMER);
        info.fields[0] = timer_id as u32 as u64 | (overrun as u32 as u64) << 32;
        info.fields[1] = value;
        info
    }

    /// A change of a child's state (`SIGCHLD`); times in clock ticks.
    pub const fn child(code: i32, pid: i32, uid: u32, status: i32, utime: u64, stime: u64) -> SigInfo {
        let mut info = SigInfo::user(SIGCHLD, code, pid, uid);
        info.fields[1] = status as u32 as u64;
        info.fields[2] = utime;
        info.fields[3] = stime;
        info
    }

    /// Readiness of a descriptor (`SIGIO`).
    pub const fn poll(signo: u32, code: i32, band: i64, fd: i32) -> SigInfo {
        let mut info = SigInfo::new(signo, code);
        info.fields[0] = band as u64;
        info.fields[1] = fd as u32 as u64;
        info
    }

    /// A refused system call (`SIGSYS`).
    pub const fn syscall(code: i32, call_addr: u64, syscall: i32, arch: u32) -> SigInfo {
        let mut info = SigInfo::new(SIGSYS, code);
        info.fields[0] = call_addr;
        info.fields[1] = syscall as u32 as u64 | (arch as u64) << 32;
        info
    }

    /// The signal number.
    pub const fn signo(&self) -> u32 {
        self.si_signo as u32
    }

    /// `si_pid`.
    pub const fn pid(&self) -> i32 {
        self.fields[0] as u32 as i32
    }

    /// `si_uid`.
    pub const fn uid(&self) -> u32 {
        (self.fields[0] >> 32) as u32
    }

    /// `si_addr`.
    pub const fn addr(&self) -> u64 {
        self.fields[0]
    }

    /// Sets `si_value`.
    pub const fn set_value(&mut self, value: u64) {
        self.fields[1] = value;
    }

    /// `si_value` of a queued signal or timer.
    pub const fn value(&self) -> u64 {
        self.fields[1]
    }

    /// `si_status` of a child's change.
    pub const fn status(&self) -> i32 {
        self.fields[1] as u32 as i32
    }

    /// `si_timerid`.
    pub const fn timer_id(&self) -> i32 {
        self.fields[0] as u32 as i32
    }

    /// `si_overrun`.
    pub const fn overrun(&self) -> i32 {
        (self.fields[0] >> 32) as u32 as i32
    }

    /// Replaces `si_overrun`.
    pub const fn set_overrun(&mut self, overrun: i32) {
        self.fields[0] = self.fields[0] as u32 as u64 | (overrun as u32 as u64) << 32;
    }

    /// Whether a process sent it and not the kernel (`SI_FROMUSER`).
    pub const fn is_from_user(&self) -> bool {
        self.si_code <= 0
    }

    /// Takes the sender's number away where there is one: the receiver cannot see who it is (0 is somebody outside of its PID namespace).
    pub const fn hide_sender(&mut self) {
        if matches!(self.si_code, codes::SI_USER | codes::SI_QUEUE | codes::SI_MESGQ | codes::SI_TKILL) {
            self.fields[0] &= !0xffff_ffff;
        }
    }

    /// The 128 bytes of `siginfo_t`.
    pub fn to_user(&self) -> [u8; SIGINFO_SIZE] {
        let mut bytes = [0; SIGINFO_SIZE];
        bytes[..size_of::<SigInfo>()].copy_from_slice(self.as_bytes());
        bytes
    }
}

/// `struct sigcontext_64`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are those of asm/sigcontext.h")]
pub struct SigContext {
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub di: u64,
    pub si: u64,
    pub bp: u64,
    pub bx: u64,
    pub dx: u64,
    pub ax: u64,
    pub cx: u64,
    pub sp: u64,
    pub ip: u64,
    pub flags: u64,
    pub cs: u16,
    pub gs: u16,
    pub fs: u16,
    pub ss: u16,
    pub err: u64,
    pub trapno: u64,
    pub oldmask: u64,
    pub cr2: u64,
    pub fpstate: u64,
    pub reserved: [u64; 8],
}

/// `struct ucontext` of x86-64.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are those of asm-generic/ucontext.h")]
pub struct UContext {
    pub uc_flags: u64,
    pub uc_link: u64,
    pub uc_stack: SigAltStack,
    pub uc_mcontext: SigContext,
    pub uc_sigmask: SigSet,
}

/// The frame holds extended state behind `fpstate` (`UC_FP_XSTATE`).
pub const UC_FP_XSTATE: u64 = 1;
/// `ss` is saved in the context.
pub const UC_SIGCONTEXT_SS: u64 = 2;
/// `ss` is restored as saved.
pub const UC_STRICT_RESTORE_SS: u64 = 4;

/// `struct rt_sigframe` of x86-64: what lies at the stack pointer when a handler starts.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RtSigFrame {
    /// Return address: the action's restorer.
    pub pretcode: u64,
    /// Machine context, mask and alternate stack.
    pub uc: UContext,
    /// Why the signal came.
    pub info: [u8; SIGINFO_SIZE],
}

/// `struct _fpx_sw_bytes`: what follows the legacy FXSAVE image, at its offset 464.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FpxSwBytes {
    /// [`FP_XSTATE_MAGIC1`] when extended state follows.
    pub magic1: u32,
    /// Whole size, with the trailing magic.
    pub extended_size: u32,
    /// XSAVE feature bits of the state.
    pub xfeatures: u64,
    /// Size of the XSAVE area.
    pub xstate_size: u32,
    /// Padding.
    pub padding: [u32; 7],
}

/// Marks [`FpxSwBytes`].
pub const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
/// Follows the XSAVE area.
pub const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Offset of [`FpxSwBytes`] in the FXSAVE image.
pub const FPX_SW_BYTES_OFFSET: usize = 464;

/// `struct sigevent` of timer_create(2) (64 bytes).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SigEvent {
    /// `sigev_value`.
    pub value: u64,
    /// `sigev_signo`.
    pub signo: i32,
    /// `SIGEV_*`.
    pub notify: i32,
    /// `sigev_notify_thread_id`.
    pub tid: i32,
    /// The rest of the union.
    pub pad: [u32; 11],
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn layouts_are_those_of_linux() {
        assert_eq!(size_of::<SigAction>(), 32);
        assert_eq!(size_of::<SigAltStack>(), 24);
        assert_eq!(size_of::<SigInfo>(), 48);
        assert_eq!(size_of::<SigContext>(), 256);
        assert_eq!(offset_of!(SigContext, fpstate), 184);
        assert_eq!(size_of::<UContext>(), 304);
        assert_eq!(offset_of!(UContext, uc_mcontext), 40);
        assert_eq!(offset_of!(UContext, uc_sigmask), 296);
        assert_eq!(size_of::<RtSigFrame>(), 8 + 304 + 128);
        assert_eq!(size_of::<FpxSwBytes>(), 48);
        assert_eq!(size_of::<SigEvent>(), 64);
    }

    #[test]
    fn sets_hold_signals_one_to_sixty_four() {
        let mut set = SigSet::EMPTY;
        set.insert(1);
        set.insert(64);
        assert!(set.contains(1) && set.contains(64) && !set.contains(0) && !set.contains(65));
        assert_eq!(set.iter().collect::<std::vec::Vec<_>>(), [1, 64]);
        assert_eq!(SigSet::UNBLOCKABLE.0, 1 << 8 | 1 << 18);
    }

    #[test]
    fn union_fields_lie_where_programs_look() {
        let info = SigInfo::child(CLD_EXITED, 77, 1000, 3, 5, 6);
        let bytes = info.to_user();
        assert_eq!(bytes[16..20], 77i32.to_ne_bytes());
        assert_eq!(bytes[20..24], 1000u32.to_ne_bytes());
        assert_eq!(bytes[24..28], 3i32.to_ne_bytes());
        assert_eq!(bytes[32..40], 5u64.to_ne_bytes());
    }
}
